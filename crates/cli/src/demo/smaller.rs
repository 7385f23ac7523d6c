//! The demo's model is made smaller: by the same command that a user types, on digits that the demo draws.

use std::path::Path;

use anyhow::{Context as _, anyhow};
use clap::Parser;
use edgeward_compress::{choose::Figures, report::Report};

use super::{digits, training};
use crate::{
    Context,
    compress::{self, CompressArgs},
    print::{self, note},
};

/// What is typed after `edgeward compress`.
#[derive(Parser)]
struct Typed {
    #[command(flatten)]
    args: CompressArgs,
}

/// The model before and after.
#[derive(serde::Serialize)]
pub struct Smaller {
    seconds: f64,
    before: Figures,
    accuracy_before: f64,
    /// The variant that was chosen; none where nothing was better.
    chosen: Option<Chosen>,
    /// Why the others may not be.
    refused: Vec<String>,
}

#[derive(serde::Serialize)]
struct Chosen {
    name: String,
    engine: String,
    after: Figures,
    accuracy_after: f64,
}

/// Compresses the model, for size, in a folder of its own beside the demo's others.
pub fn compress(model: &Path, folder: &Path, context: &Context) -> anyhow::Result<Smaller> {
    let (pictures, labels) = (folder.join("digits.idx"), folder.join("labels.idx"));
    let (drawn, shown) = digits::drawn(training::JUDGED * 2, training::SEED_JUDGED)?;
    let bytes = drawn.values::<u8>()?;
    let kinds = shown.values::<u8>()?;
    let (count, side) = (kinds.len() as u32, digits::SIDE as u32);
    idx(&pictures, &[count, side, side], bytes.as_ref())?;
    idx(&labels, &[count], kinds.as_ref())?;
    let words = |path: &Path| path.display().to_string();
    let output = folder.join("smaller");
    let typed = [
        "compress".to_owned(),
        words(model),
        format!("--data={}", words(&pictures)),
        format!("--labels={}", words(&labels)),
        "--val-fraction=0.5".to_owned(),
        "--for=size".to_owned(),
        // As it is served.
        "--threads=1".to_owned(),
        "--quick".to_owned(),
        format!("--output={}", words(&output)),
    ];
    let report =
        compress::compress(&Typed::try_parse_from(typed)?.args, context).map_err(|f| anyhow!("{}", f.message()))?;
    told(&report)
}

/// A file as MNIST's are.
fn idx(path: &Path, shape: &[u32], bytes: &[u8]) -> anyhow::Result<()> {
    let mut file = vec![0, 0, 8, shape.len() as u8];
    file.extend(shape.iter().flat_map(|size| size.to_be_bytes()));
    file.extend(bytes);
    std::fs::write(path, file).with_context(|| format!("cannot write `{}`", path.display()))
}

fn told(report: &Report) -> anyhow::Result<Smaller> {
    let original = &report.original;
    let (Some(before), Some(accuracy_before)) = (original.figures, original.metric) else {
        return Err(anyhow!("the original was not judged"));
    };
    let variant = report.chosen.as_ref().and_then(|name| report.variants.iter().find(|v| v.name == *name));
    let chosen = variant.and_then(|variant| {
        let (name, engine) = (variant.name.clone(), variant.engine.clone()?);
        Some(Chosen { name, engine, after: variant.figures?, accuracy_after: variant.metric? })
    });
    let refused = report.variants.iter().filter_map(|v| Some(format!("`{}`: {}", v.name, v.refused.as_ref()?)));
    Ok(Smaller { seconds: report.seconds, before, accuracy_before, chosen, refused: refused.collect() })
}

impl Smaller {
    /// Says what came of it.
    pub fn tell(&self) {
        let Some(Chosen { name, engine, after, accuracy_after }) = &self.chosen else {
            note!("compressed in {:.1} s: no variant was better, so none was written", self.seconds);
            self.refused.iter().for_each(|refused| note!("{refused}"));
            return note!("");
        };
        note!(
            "compressed in {:.1} s: `{name}` on {engine} is the smallest that is no slower and tells as well",
            self.seconds
        );
        let side = |figures: &Figures, accuracy: f64| {
            let (file, time) = (print::bytes(figures.bytes), print::ms(figures.p50_ms));
            format!("{file}, {time}, {:.1} % right", accuracy * 100.0)
        };
        note!("before: {}", side(&self.before, self.accuracy_before));
        note!("after:  {}\n", side(after, *accuracy_after));
    }
}
