//! Models that were trained here, and everything that is made of them.

use anyhow::Context as _;

use super::{peers, report::Compressed, script, text};
use crate::bench::{
    Effort, Row, figure,
    peers::Edgeward,
    starter::{PNEUMONIA, SENTENCES, Starter, TRANSFORMER},
};

const RESNET: Starter = Starter {
    what: "ResNet-18 on PneumoniaMNIST",
    start: "resnet --input 1,28,28 --classes 2 --depth 18",
    data: PNEUMONIA,
    how: "--epochs 4 --crop 2",
    metric: "auc",
};

/// Three times as wide as what `train` is measured on: a request of that one takes a third of a millisecond, most of it calls.
const TEACHER: Starter = Starter {
    start: "transformer --input 64 --classes 2 --width 384 --depth 2 --dropout 0.3",
    how: "--epochs 1 --token-drop 0.25 --rate 0.001 --ema 0.998 --smoothing 0.1 --weight-decay 0.05",
    metric: "f1",
    ..TRANSFORMER
};

/// A student for texts: narrower, and of fewer layers.
const STUDENT: Starter = Starter {
    what: "student",
    start: "transformer --input 64 --classes 2 --width 128 --depth 1 --seed 1",
    data: SENTENCES,
    how: "",
    metric: "f1",
};

/// Bytes by which a variant is smaller.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Size {
    File,
    Transfer,
}

/// What the best of some variants must be.
struct Wanted {
    what: &'static str,
    /// Whether a variant is one of them, by its name.
    names: fn(&str) -> bool,
    /// Times as fast as fp32 on ONNX Runtime.
    faster: f64,
    size: Size,
    /// Percent.
    smaller: f64,
    /// What its metric may lose, as a part.
    drop: f64,
    /// What the paper has.
    paper: &'static str,
}

const RESIDUAL: [Wanted; 3] = [
    Wanted {
        what: "ResNet-18, int8",
        names: bytes_alone,
        faster: 1.0,
        size: Size::Transfer,
        smaller: 80.0,
        drop: 0.003,
        paper: "80 %, 3×, 2 points",
    },
    Wanted {
        what: "ResNet-18, pruned",
        names: |name| name.starts_with("pruned") && !name.contains("int8"),
        faster: 2.2,
        size: Size::File,
        smaller: 65.0,
        drop: 0.005,
        paper: "60 %, 2×, 1 point",
    },
    Wanted {
        what: "ResNet-18, everything",
        names: |_| true,
        faster: 8.0,
        size: Size::Transfer,
        smaller: 95.0,
        drop: 0.01,
        paper: "none",
    },
];
const SENTIMENT: [Wanted; 3] = [
    Wanted {
        what: "transformer, int8",
        names: bytes_alone,
        faster: 3.0,
        size: Size::Transfer,
        smaller: 75.0,
        drop: 0.0035,
        paper: "80 %, 3×, 2 points",
    },
    Wanted {
        what: "transformer, distilled",
        names: |name| name == "student",
        faster: 3.0,
        size: Size::File,
        smaller: 60.0,
        drop: 0.005,
        paper: "50 %, 2.5×, 0.5 points",
    },
    Wanted {
        what: "transformer, everything",
        names: |_| true,
        faster: 8.0,
        size: Size::Transfer,
        smaller: 95.0,
        drop: 0.01,
        paper: "none",
    },
];

fn bytes_alone(name: &str) -> bool {
    (name.starts_with("int8") || name == "int7") && !name.contains("qat")
}

impl Wanted {
    fn rows(&self, bar: &'static str, report: &Compressed) -> anyhow::Result<Vec<Row>> {
        let (before, original) = (report.before_ms()?, report.original());
        let variant = report.best(self.drop, before / self.faster, self.names)?;
        let bytes = if self.size == Size::File { variant.bytes()? } else { variant.transfer_bytes()? };
        let smaller = 100.0 * (1.0 - bytes / original.bytes()?);
        let what = |text: &str| format!("{}: {text}", self.what);
        let how = if self.size == Size::File { "smaller" } else { "smaller in transfer than the original's file" };
        Ok(vec![
            Row::at_least(bar, what("times as fast"), before / variant.p50_ms()?, "×", self.faster).against(format!(
                "{}; fp32 on ONNX Runtime {} ms; the paper: {}",
                variant.shown(),
                figure(before),
                self.paper
            )),
            Row::at_least(bar, what(how), smaller, "%", self.smaller)
                .against(format!("{bytes:.0} of {:.0} bytes", original.bytes()?)),
            Row::at_most(bar, what("points lost"), 100.0 * variant.drop()?, "", 100.0 * self.drop).against(format!(
                "{:.4}, the original {:.4}",
                variant.metric()?,
                original.metric()?
            )),
        ])
    }
}

/// Bytes, pruning and all of it, of a residual network.
pub fn resnet(edgeward: &Edgeward, effort: Effort) -> anyhow::Result<Vec<Row>> {
    let (file, _) = RESNET.train(edgeward, "resnet")?;
    let arguments = "--metric auc --prune 0.7,0.9,0.92 --epochs 4 --qat 2";
    let report = compress(edgeward, &RESNET, &text(&file), arguments)?;
    let mut rows = rows("resnet", &report, &RESIDUAL);
    rows.push(rounding(&report));
    let what = "ResNet-18, pruned: times as fast, to Torch-Pruning's";
    rows.push(torch_pruning(edgeward, effort, &report, what).unwrap_or_else(|e| Row::skipped("resnet", what, e)));
    Ok(rows)
}

/// The same network, trained, pruned by as much and trained on by PyTorch; both files on their best engines.
fn torch_pruning(edgeward: &Edgeward, effort: Effort, report: &Compressed, what: &str) -> anyhow::Result<Row> {
    let folder = edgeward.work.join("torch-pruning");
    std::fs::create_dir_all(&folder)?;
    let data = RESNET.data()?;
    let data = data.last().map(String::as_str).unwrap_or_default();
    let printed = script("prune_torch.py", &[data, &text(&folder), "0.7", "4", "4"])?;
    let figures: serde_json::Value = serde_json::from_str(printed.trim().lines().last().unwrap_or_default())?;
    let (original, pruned) = (folder.join("original.onnx"), folder.join("pruned.onnx"));
    let times = peers::times(edgeward, &[&original, &pruned], effort)?;
    let [before, after] = times.as_slice() else { anyhow::bail!("two files were timed") };
    let (before, after) = (peers::least(before), peers::least(after));
    let number = |key: &str| figures[key].as_f64().unwrap_or(f64::NAN);
    let own = report.named("pruned-70").context("nothing was pruned by 70 %")?;
    let ratio = report.best_before_ms()? / own.p50_ms()? / (before / after);
    Ok(Row::at_least("resnet", what, ratio, "×", 1.0).against(format!(
        "Torch-Pruning {}× with {:.0} % of the multiply-adds, {:.2} points lost; ours lost {:.2}",
        figure(before / after),
        100.0 * number("left"),
        100.0 * (number("auc_before") - number("auc")),
        100.0 * own.drop()?
    )))
}

/// Bytes, a student and all of it, of a transformer.
pub fn text_models(edgeward: &Edgeward, _: Effort) -> anyhow::Result<Vec<Row>> {
    let (file, _) = TEACHER.train(edgeward, "text")?;
    let student = edgeward.work.join("student.onnx");
    STUDENT.begin(edgeward, &student)?;
    let arguments = format!("--metric f1 --student {} --epochs 5", student.display());
    let report = compress(edgeward, &TEACHER, &text(&file), &arguments)?;
    Ok(rows("text", &report, &SENTIMENT))
}

fn compress(edgeward: &Edgeward, starter: &Starter, model: &str, arguments: &str) -> anyhow::Result<Compressed> {
    let data = starter.data()?;
    let mut all = vec![model, "--max-drop", "0.01"];
    all.extend(data.iter().map(String::as_str).chain(arguments.split(' ')));
    Compressed::run(edgeward, &all)
}

fn rows(bar: &'static str, report: &Compressed, all: &[Wanted]) -> Vec<Row> {
    let rows =
        |wanted: &Wanted| wanted.rows(bar, report).unwrap_or_else(|error| vec![Row::skipped(bar, wanted.what, error)]);
    all.iter().flat_map(rows).collect()
}

/// What training with rounding gives back of what 4 bits lose.
fn rounding(report: &Compressed) -> Row {
    let (bar, before, after) = ("resnet", "int4", "int4-qat");
    let what = format!("part of what 4 bits lose ({before}) that training with rounding gives back");
    let drop = |name| report.named(name).and_then(|variant| variant.drop().ok());
    let Some((lost, left)) = drop(before).zip(drop(after)) else {
        return Row::skipped(bar, what, "the report has no such variants");
    };
    let told = format!("{:.2} points lost, {:.2} after training", 100.0 * lost, 100.0 * left);
    if lost > 0.0 {
        Row::at_least(bar, what, 1.0 - left / lost, "", 0.5).against(told)
    } else {
        Row::information(bar, what, 0.0, "").against(format!("nothing is lost: {told}"))
    }
}
