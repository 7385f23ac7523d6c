//! The two sides: `edgeward train` and `bench/train_peer.py`, on the same models, weights and batches, each turn a process of its own.

use std::{collections::HashSet, path::PathBuf, process::Command, sync::Mutex};

use anyhow::Context as _;

use crate::{
    bench::{Effort, figure, median, peers::Edgeward, starter::THREADS},
    python, steps,
};

/// What PyTorch clips examples with, and what it needs that the environment of the tests lacks.
const OPACUS: &str = "opacus==1.6.0\nopt-einsum==3.4.0";

/// A model with its batch; the names are those of the script.
#[derive(Clone, Copy)]
pub struct Case {
    /// Name of its files.
    pub name: &'static str,
    /// As the table has it.
    pub what: &'static str,
    batch: usize,
    optimiser: &'static str,
    pictures: Pictures,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Pictures {
    Yes,
    No,
}

/// Those of the bars on time and memory.
pub const CASES: [Case; 4] = [
    RESNET,
    Case::pictures("resnet18_224", "ResNet-18, 224x224, batch 8", 8),
    Case::pictures("mobilenetv2_96", "MobileNetV2, 96x96, batch 16", 16),
    TRANSFORMER,
];
/// For small pictures.
pub const RESNET: Case = Case::pictures("resnet18_28", "ResNet-18, 28x28, batch 64", 64);
/// 4 layers of 256, 64 tokens, 8000 pieces.
pub const TRANSFORMER: Case = Case {
    name: "transformer",
    what: "transformer, 4 x 256, batch 32",
    batch: 32,
    optimiser: "adam",
    pictures: Pictures::No,
};
/// For privacy: no example knows of the others.
pub const GROUP_RESNET: Case = Case::pictures("resnet18_group", "ResNet-18 with GroupNorm, 28x28, batch 16", 16);

impl Case {
    const fn pictures(name: &'static str, what: &'static str, batch: usize) -> Self {
        Self { name, what, batch, optimiser: "sgd", pictures: Pictures::Yes }
    }

    /// PyTorch's settings beside eager that mean something here.
    pub fn settings(&self) -> impl Iterator<Item = Side> + use<> {
        let layout = self.pictures == Pictures::Yes;
        super::SETTINGS.into_iter().filter(move |side| layout || *side != Side::Torch("channels_last"))
    }
}

/// Who makes the steps.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The binary.
    Edgeward {
        /// On this engine.
        engine: &'static str,
        /// Which step.
        form: Form,
    },
    /// The script in this mode.
    Torch(&'static str),
    /// What trains in Rust, by name.
    Rust(&'static str),
}

/// What Edgeward's step is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// As users have it: in the engine's own operators where there are some.
    Lowered,
    /// In standard operators alone.
    Portable,
    /// Each example clipped, with noise.
    Private,
}

impl Side {
    /// As the table has it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Edgeward { form: Form::Portable, .. } => "portable graph",
            Self::Edgeward { engine, .. } => engine,
            Self::Torch(name) | Self::Rust(name) => name,
        }
    }
}

/// What the turns of a side came to.
#[derive(Clone, Debug)]
pub struct Turn {
    /// Median time of a step; of several turns the median of these.
    pub step_ms: f64,
    /// The least of several turns' medians.
    pub least_ms: f64,
    /// Mean loss over the steps.
    pub loss: f64,
    /// The most memory that the process had.
    pub peak_memory_bytes: f64,
}

impl Turn {
    /// Times for a table.
    pub fn shown(&self) -> String {
        format!("{} ms (least {})", figure(self.step_ms), figure(self.least_ms))
    }

    fn of(report: &serde_json::Value, loss: &serde_json::Value) -> anyhow::Result<Self> {
        let number = |key: &str| report[key].as_f64().with_context(|| format!("no `{key}` is reported"));
        let step_ms = number("step_p50_ms")?;
        let loss = loss.as_f64().context("no loss is reported")?;
        Ok(Self { step_ms, least_ms: step_ms, loss, peak_memory_bytes: number("peak_memory_bytes")? })
    }

    fn of_several(turns: &[Self]) -> Option<Self> {
        let mut times: Vec<f64> = turns.iter().map(|turn| turn.step_ms).collect();
        let peak_memory_bytes = turns.iter().map(|turn| turn.peak_memory_bytes).fold(0.0, f64::max);
        let step_ms = median(&mut times);
        Some(Self { step_ms, least_ms: *times.first()?, loss: turns.first()?.loss, peak_memory_bytes })
    }
}

/// The models and their data, made when they are first asked for.
pub struct Material<'a> {
    /// The binary.
    pub edgeward: &'a Edgeward,
    folder: PathBuf,
    steps: usize,
    made: Mutex<HashSet<&'static str>>,
}

impl<'a> Material<'a> {
    /// Steps of a turn follow from the effort: so many that the first, which touch their memory for the first time, do not decide
    /// the median.
    pub fn new(edgeward: &'a Edgeward, effort: Effort) -> Self {
        let steps = if effort.divisor == 1 { 11 } else { 7 };
        Self { edgeward, folder: edgeward.work.join("train"), steps, made: Mutex::default() }
    }

    fn script(&self) -> Command {
        let mut command = Command::new(&self.edgeward.python);
        command.arg(crate::root().join("bench/train_peer.py"));
        // What the compiler made in one turn is there in the next.
        command.env("TORCHINDUCTOR_CACHE_DIR", self.edgeward.work.join("inductor"));
        command
    }

    fn make(&self, case: &Case) -> anyhow::Result<()> {
        let mut made = self.made.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if !made.contains(case.name) {
            let mut script = self.script();
            steps::output(script.arg("write").arg(&self.folder).args([&self.steps.to_string(), case.name]))?;
            made.insert(case.name);
        }
        Ok(())
    }

    /// So many turns of each side, one side after the other. A side whose turn fails has no more.
    pub fn alternate(&self, case: &Case, sides: &[Side], rounds: usize) -> anyhow::Result<Vec<anyhow::Result<Turn>>> {
        self.make(case)?;
        let mut turns: Vec<anyhow::Result<Vec<Turn>>> = sides.iter().map(|_| Ok(Vec::new())).collect();
        for round in 0..rounds {
            eprintln!("  {}: round {} of {rounds}", case.name, round + 1);
            for (side, turns) in sides.iter().zip(&mut turns) {
                let Ok(done) = turns else { continue };
                match self.turn(case, side) {
                    Ok(turn) => done.push(turn),
                    Err(error) => *turns = Err(error),
                }
            }
        }
        let sum = |turns: Vec<Turn>| Turn::of_several(&turns).context("no turn was made");
        Ok(turns.into_iter().map(|turns| turns.and_then(sum)).collect())
    }

    fn turn(&self, case: &Case, side: &Side) -> anyhow::Result<Turn> {
        match *side {
            Side::Edgeward { engine, form } => self.own(case, engine, form),
            Side::Torch(mode) => self.torch(case, mode),
            Side::Rust(library) => self.rust(case, library),
        }
    }

    /// An epoch of `edgeward train`.
    fn own(&self, case: &Case, engine: &str, form: Form) -> anyhow::Result<Turn> {
        let file = |ending: &str| self.folder.join(format!("{}.{ending}", case.name));
        let rate = if case.optimiser == "sgd" { "0.01" } else { "0.001" };
        let mut command = Command::new(&self.edgeward.binary);
        command.current_dir(&self.folder).arg("train").arg(file("onnx")).arg("--data").arg(file("npz"));
        command.arg("-o").arg(file("out.onnx")).args(["--json", "--engine", engine, "--threads", THREADS]);
        command.args(["--batch", &case.batch.to_string(), "--optimiser", case.optimiser, "--rate", rate]);
        command.args(["--epochs", "1", "--schedule", "constant", "--sampling", "sequential", "--val-fraction", "0"]);
        match form {
            Form::Lowered => {}
            Form::Portable => drop(command.arg("--portable")),
            Form::Private => drop(command.args(["--clip-each", "1", "--noise", "1"])),
        }
        let report: serde_json::Value = serde_json::from_str(&steps::output(&mut command)?)?;
        Turn::of(&report, &report["epochs"][0]["loss"])
    }

    /// Steps of a program of its own, built when it is first asked for.
    fn rust(&self, case: &Case, library: &str) -> anyhow::Result<Turn> {
        let folder = crate::root().join("target/train-peers");
        let mut build = Command::new("cargo");
        build.current_dir(crate::root().join("bench/train-peers")).env("CARGO_TARGET_DIR", &folder);
        steps::output(build.args(["build", "--release", "--locked", "--quiet"]))?;
        let mut command = Command::new(folder.join("release/edgeward-train-peers"));
        command.args([library, case.name, &self.steps.to_string()]).env("RAYON_NUM_THREADS", THREADS);
        let report: serde_json::Value = serde_json::from_str(&steps::output(&mut command)?)?;
        Turn::of(&report, &report["loss"])
    }

    /// The script's steps.
    fn torch(&self, case: &Case, mode: &str) -> anyhow::Result<Turn> {
        let mut script = self.script();
        script.arg("step").arg(&self.folder).args([case.name, mode]);
        if ["hooks", "ghost"].contains(&mode) {
            let home = crate::root().join("target/bench-env");
            script.env("PYTHONPATH", python::ensure_beside(&self.edgeward.python, &home.join("opacus"), OPACUS)?);
        }
        let text = steps::output(&mut script).map_err(|error| last_words(&error))?;
        let report: serde_json::Value = serde_json::from_str(text.lines().last().unwrap_or_default())?;
        Turn::of(&report, &report["loss"])
    }
}

/// A traceback says what is wrong in its last line.
fn last_words(error: &anyhow::Error) -> anyhow::Error {
    let text = format!("{error:#}");
    anyhow::anyhow!("{}", text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default().trim())
}
