//! Quantisation alone, next to the quantisers that people use.

use std::path::{Path, PathBuf};

use anyhow::Context as _;

use super::{
    data,
    peers::{self, Made},
    report::{Compressed, Variant},
    script, text,
};
use crate::bench::{Effort, Row, figure, peers::Edgeward};

/// One model, compressed by us and quantised by others.
struct Sides {
    bar: &'static str,
    name: &'static str,
    report: Compressed,
    others: Vec<Made>,
    /// Times of ours, then of each other file that was made.
    times: Vec<f64>,
}

impl Sides {
    fn measure(
        edgeward: &Edgeward,
        effort: Effort,
        (bar, name): (&'static str, &'static str),
        (model, inputs): (&Path, &Path),
        arguments: &[&str],
    ) -> anyhow::Result<Self> {
        let folder = edgeward.work.join(bar);
        let (model_text, inputs_text, out) = (text(model), text(inputs), text(&folder));
        let mut all = vec![model_text.as_str(), "--data", &inputs_text, "-o", &out];
        all.extend(arguments);
        let report = Compressed::run(edgeward, &all)?;
        report.chosen().context("nothing was good enough")?;
        let others = peers::quantise(edgeward, model, inputs, &[]);
        let ours = folder.join("model.onnx");
        let made = others.iter().filter_map(|made| Some(made.made.as_ref().ok()?.0.as_path()));
        let files: Vec<&Path> = std::iter::once(ours.as_path()).chain(made).collect();
        let times = peers::fastest(edgeward, &files, effort)?;
        Ok(Self { bar, name, report, others, times })
    }

    fn chosen(&self) -> anyhow::Result<Variant<'_>> {
        self.report.chosen().context("nothing was good enough")
    }

    fn row(&self, what: &str) -> String {
        format!("{}: {what}", self.name)
    }

    /// Time to the original's, and to the best of the others'.
    fn speed(&self, faster: f64, paper: &str) -> anyhow::Result<Vec<Row>> {
        let (variant, before) = (self.chosen()?, self.report.before_ms()?);
        let (own, theirs) = self.times.split_first().context("nothing was timed")?;
        let best = theirs.iter().copied().fold(f64::INFINITY, f64::min);
        let what = self.row("times as fast as fp32 on ONNX Runtime");
        Ok(vec![
            Row::at_least(self.bar, what, before / variant.p50_ms()?, "×", faster).against(format!(
                "{} against {} ms{paper}",
                variant.shown(),
                figure(before)
            )),
            // Two files of one speed differ by the noise of the machine.
            Row::at_most(self.bar, self.row("time to that of the others' best"), own / best, "×", 1.05)
                .against(format!("each on its best engine; {}", peers::told(&self.others, theirs))),
        ])
    }

    fn size(&self, less: Option<f64>, paper: &str) -> anyhow::Result<Row> {
        let (variant, before) = (self.chosen()?, self.report.original());
        let part = 100.0 * (1.0 - variant.transfer_bytes()? / before.bytes()?);
        let both = 100.0 * (1.0 - variant.transfer_bytes()? / before.transfer_bytes()?);
        let what = self.row("smaller in transfer than the original's file");
        let row = match less {
            Some(less) => Row::at_least(self.bar, what, part, "%", less),
            None => Row::information(self.bar, what, part, "%"),
        };
        let file = 100.0 * (1.0 - variant.bytes()? / before.bytes()?);
        Ok(row.against(format!("{both:.1} % than the original in transfer, {file:.1} % as files{paper}")))
    }

    /// How long it takes to have one file.
    fn seconds(&self) -> anyhow::Result<Row> {
        let own = self.report.seconds_of(|part| {
            part == "observing ranges" || part.starts_with("calibrating by") || part == "quantising: int8"
        })?;
        let others: Vec<(&str, f64)> =
            self.others.iter().filter_map(|made| Some((made.name, made.made.as_ref().ok()?.1))).collect();
        let least = others.iter().map(|(_, seconds)| *seconds).fold(f64::INFINITY, f64::min);
        let told: Vec<String> = others.iter().map(|(name, seconds)| format!("{name} {seconds:.1} s")).collect();
        let what = self.row("time to quantise, to that of the fastest other");
        Ok(Row::at_most(self.bar, what, own / least, "×", 1.0 / 3.0).against(format!(
            "{own:.1} s for observing, choosing how ranges follow, and one file; {}; the whole search {:.0} s",
            told.join(", "),
            self.report.seconds()?
        )))
    }
}

/// Photos as the input of a model.
fn photos(edgeward: &Edgeward, name: &str, side: &str) -> anyhow::Result<PathBuf> {
    let inputs = edgeward.work.join(format!("photos{side}.npz"));
    script("photo_inputs.py", &[&text(&data()?.join("photos")), name, side, &text(&inputs)])?;
    Ok(inputs)
}

/// ResNet-50 with random weights: what matters for time and size is its form.
pub fn resnet50(edgeward: &Edgeward, effort: Effort) -> anyhow::Result<Vec<Row>> {
    let (model, inputs) = (edgeward.model("resnet50"), photos(edgeward, "image", "224")?);
    let arguments = ["--max-drop", "0.05", "--quick", "--for", "size"];
    let sides = Sides::measure(edgeward, effort, ("resnet50", "ResNet-50"), (&model, &inputs), &arguments)?;
    let mut rows = sides.speed(3.0, "; the paper has 3×")?;
    rows.extend([sides.size(Some(80.0), "; the paper has 80 %")?, sides.seconds()?]);
    Ok(rows)
}

/// YOLOX-Nano on photos: the boxes must be those of the original.
pub fn detector(edgeward: &Edgeward, effort: Effort) -> anyhow::Result<Vec<Row>> {
    let (model, inputs) = (data()?.join("onnx/yolox_nano_416.onnx"), photos(edgeward, "images", "416")?);
    let arguments = ["--max-drop", "0.02"];
    let sides = Sides::measure(edgeward, effort, ("detector", "YOLOX-Nano"), (&model, &inputs), &arguments)?;
    let mut rows = sides.speed(1.7, "")?;
    let file = edgeward.work.join("detector/model.onnx");
    let arguments = [&text(&model), &text(&inputs), sides.chosen()?.engine(), &text(&file)].map(str::to_owned);
    let printed = script("match_boxes.py", &arguments.each_ref().map(String::as_str))?;
    let mut figures = printed.split_whitespace().map(str::parse::<f64>);
    let (matched, boxes) = (figures.next().context("no figure")??, figures.next().context("no count")??);
    rows.push(
        Row::at_least("detector", "YOLOX-Nano: boxes that match the original's at IoU 0.5", 100.0 * matched, "%", 95.0)
            .against(format!("of {boxes:.0} boxes of both on photos, their parts and mirror images")),
    );
    rows.extend([sides.size(None, "")?, sides.seconds()?]);
    Ok(rows)
}
