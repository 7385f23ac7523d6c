//! Quantisation alone, next to the quantisers that people use.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};

use super::{
    data,
    peers::{self, Made, Times},
    report::{Compressed, Variant},
    script, text,
};
use crate::bench::{Effort, Row, figure, peers::Edgeward};

/// The part of the boxes that must match the original's.
const BOXES_MATCHED_MIN: f64 = 0.95;

/// Files that were made.
fn files(others: &[Made]) -> impl Iterator<Item = &Path> {
    others.iter().filter_map(|made| Some(made.made.as_ref().ok()?.0.as_path()))
}

/// One model, compressed by us and quantised by others.
struct Sides {
    bar: &'static str,
    name: &'static str,
    report: Compressed,
    others: Vec<Made>,
    /// Times of ours, then of each other file that was made, on each engine.
    times: Times,
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
        let files: Vec<&Path> = std::iter::once(ours.as_path()).chain(files(&others)).collect();
        let times = peers::times(edgeward, &files, effort)?;
        Ok(Self { bar, name, report, others, times })
    }

    fn chosen(&self) -> anyhow::Result<Variant<'_>> {
        self.report.chosen().context("nothing was good enough")
    }

    fn row(&self, what: &str) -> String {
        format!("{}: {what}", self.name)
    }

    /// Time to the original's.
    fn speed(&self, faster: f64, paper: &str) -> anyhow::Result<Row> {
        let (variant, before) = (self.chosen()?, self.report.before_ms()?);
        let what = self.row("times as fast as fp32 on ONNX Runtime");
        Ok(Row::at_least(self.bar, what, before / variant.p50_ms()?, "×", faster).against(format!(
            "{} against {} ms{paper}",
            variant.shown(),
            figure(before)
        )))
    }

    /// Time to the best of the others'. What `right` says no to, of a file on an engine, is not compared: it does not do its work there.
    fn speed_beside_others(&self, right: &dyn Fn(&Path, &str) -> bool) -> anyhow::Result<Row> {
        let (own, theirs) = self.times.split_first().context("nothing was timed")?;
        let files: Vec<&Path> = files(&self.others).collect();
        let kept: Times = files
            .iter()
            .zip(theirs)
            .map(|(file, times)| times.iter().copied().filter(|(engine, _)| right(file, engine)).collect())
            .collect();
        let best = kept.iter().map(|times| peers::least(times)).fold(f64::INFINITY, f64::min);
        let what = self.row("time to that of the others' best");
        let told = format!("each on its best engine; {}", peers::told(&self.others, theirs));
        if best.is_infinite() {
            let own = peers::least(own);
            return Ok(Row::information(self.bar, what, own, "ms")
                .against(format!("none of the others' is right on any engine that runs it; {told}")));
        }
        let told = format!("{told}; right are {}", peers::told(&self.others, &kept));
        // Two files of one speed differ by the noise of the machine.
        Ok(Row::at_most(self.bar, what, peers::least(own) / best, "×", 1.05).against(told))
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
    fn seconds(&self, part: Option<f64>) -> anyhow::Result<Row> {
        let own = self.report.seconds_of(|part| {
            part == "observing ranges" || part.starts_with("calibrating by") || part == "quantising: int8"
        })?;
        let others: Vec<(&str, f64)> =
            self.others.iter().filter_map(|made| Some((made.name, made.made.as_ref().ok()?.1))).collect();
        let least = others.iter().map(|(_, seconds)| *seconds).fold(f64::INFINITY, f64::min);
        let told: Vec<String> = others.iter().map(|(name, seconds)| format!("{name} {seconds:.1} s")).collect();
        let what = self.row("time to quantise, to that of the fastest other");
        let row = match part {
            Some(part) => Row::at_most(self.bar, what, own / least, "×", part),
            None => Row::information(self.bar, what, own / least, "×"),
        };
        Ok(row.against(format!(
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
    // Its weights are random: it is right nowhere, or everywhere.
    Ok(vec![
        sides.speed(3.0, "; the paper has 3×")?,
        sides.speed_beside_others(&|_, _| true)?,
        sides.size(Some(80.0), "; the paper has 80 %")?,
        sides.seconds(Some(1.0 / 3.0))?,
    ])
}

/// The part of the boxes of a file and of the original that match, and how many boxes that is of.
fn matched(model: &Path, inputs: &Path, engine: &str, file: &Path) -> anyhow::Result<(f64, f64)> {
    ensure!(engine != "rten", "the script knows no rten");
    let printed = script("match_boxes.py", &[&text(model), &text(inputs), engine, &text(file)])?;
    let mut figures = printed.split_whitespace().map(str::parse::<f64>);
    Ok((figures.next().context("no figure")??, figures.next().context("no count")??))
}

/// YOLOX-Nano on photos: the boxes must be those of the original.
pub fn detector(edgeward: &Edgeward, effort: Effort) -> anyhow::Result<Vec<Row>> {
    let (model, inputs) = (data()?.join("onnx/yolox_nano_416.onnx"), photos(edgeward, "images", "416")?);
    let arguments = ["--metric", "map", "--max-drop", "0.06"];
    let sides = Sides::measure(edgeward, effort, ("detector", "YOLOX-Nano"), (&model, &inputs), &arguments)?;
    let file = edgeward.work.join("detector/model.onnx");
    let (part, boxes) = matched(&model, &inputs, sides.chosen()?.engine(), &file)?;
    let right = |file: &Path, engine: &str| {
        matched(&model, &inputs, engine, file).is_ok_and(|(part, _)| part >= BOXES_MATCHED_MIN)
    };
    let what = "YOLOX-Nano: boxes that match the original's at IoU 0.5";
    Ok(vec![
        sides.speed(1.7, "")?,
        sides.speed_beside_others(&right)?,
        Row::at_least("detector", what, 100.0 * part, "%", 100.0 * BOXES_MATCHED_MIN)
            .against(format!("of {boxes:.0} boxes of both on photos, their parts and mirror images")),
        sides.size(None, "")?,
        sides.seconds(None)?,
    ])
}
