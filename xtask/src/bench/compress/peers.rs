//! The quantisers that people use: what they make, in what time, and how fast it is.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use super::{script, text};
use crate::{
    bench::{Effort, figure, median, peers::Edgeward},
    steps,
};

/// Where a model's file is run.
const ENGINES: [&str; 3] = ["onnxruntime", "openvino", "rten"];

/// What a quantiser made.
pub struct Made {
    /// Who.
    pub name: &'static str,
    /// The file and the seconds that it took, or why there is none.
    pub made: anyhow::Result<(PathBuf, f64)>,
}

/// Lets all of them quantise a model; `arguments` are NNCF's beyond model, inputs and output.
pub fn quantise(edgeward: &Edgeward, model: &Path, inputs: &Path, arguments: &[&str]) -> Vec<Made> {
    let make = |name: &'static str, file: &str, more: &[&str]| {
        let output = edgeward.work.join(format!("{}.onnx", file.trim_end_matches(".py")));
        let (model, inputs, path) = (text(model), text(inputs), text(&output));
        let arguments: Vec<&str> = [model.as_str(), &inputs, &path].into_iter().chain(more.iter().copied()).collect();
        // The figure is the last line: some speak before.
        let seconds = script(file, &arguments)
            .and_then(|text| Ok(text.trim().lines().last().unwrap_or_default().parse::<f64>()?));
        Made { name, made: seconds.map(|seconds| (output, seconds)) }
    };
    vec![
        make("ONNX Runtime", "quantise_onnxruntime.py", &[]),
        make("NNCF", "quantise_nncf.py", arguments),
        make("Olive", "quantise_olive.py", &[]),
    ]
}

/// Of each file, the median time on each engine that runs it.
pub type Times = Vec<Vec<(&'static str, f64)>>;

/// The least of some times; infinite where there is none.
pub fn least(times: &[(&str, f64)]) -> f64 {
    times.iter().map(|(_, ms)| *ms).fold(f64::INFINITY, f64::min)
}

/// What was made, in words.
pub fn told(all: &[Made], times: &[Vec<(&str, f64)>]) -> String {
    let mut times = times.iter().map(|times| least(times));
    let each = |made: &Made| match &made.made {
        Ok(_) => match times.next() {
            Some(ms) if ms.is_finite() => format!("{} {} ms", made.name, figure(ms)),
            _ => format!("{} nowhere", made.name),
        },
        Err(error) => format!("{} skipped: {error:#}", made.name),
    };
    all.iter().map(each).collect::<Vec<_>>().join(", ")
}

/// Times of each file; files take turns.
pub fn times(edgeward: &Edgeward, files: &[&Path], effort: Effort) -> anyhow::Result<Times> {
    let mut all: Times = files.iter().map(|_| Vec::new()).collect();
    for engine in ENGINES {
        let mut taken: Vec<Vec<f64>> = files.iter().map(|_| Vec::new()).collect();
        for _ in 0..effort.rounds {
            for (file, times) in files.iter().zip(&mut taken) {
                let mut command = Command::new(&edgeward.binary);
                command.args(["bench", "--json", "--engine", engine, "--seconds", &effort.seconds.to_string()]);
                // An engine that cannot run a file is none that it is best on.
                let Ok(printed) = steps::output(command.arg(file)) else { continue };
                let report: serde_json::Value = serde_json::from_str(&printed)?;
                times.extend(report["p50_ms"].as_f64());
            }
        }
        for (all, times) in all.iter_mut().zip(&mut taken).filter(|(_, times)| !times.is_empty()) {
            all.push((engine, median(times)));
        }
    }
    Ok(all)
}
