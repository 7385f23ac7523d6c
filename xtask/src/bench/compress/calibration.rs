//! Memory of observing ranges: many examples against few.

use std::process::Command;

use anyhow::{Context as _, ensure};

use super::{data, text};
use crate::{
    bench::{Effort, Row, peers::Edgeward},
    steps,
};

const PEAK: &str = "import json, resource, subprocess, sys
report = subprocess.run(sys.argv[1:], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout
print(json.loads(report)['data']['calibrated'], resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)";
const FEW: usize = 64;

/// The most memory of whole processes, and what an image adds.
pub fn run(edgeward: &Edgeward, effort: Effort) -> anyhow::Result<Vec<Row>> {
    let data = data()?;
    let model = text(&data.join("onnx/mnist_rten.onnx"));
    let images = text(&data.join("mnist/t10k-images-idx3-ubyte.gz"));
    let labels = text(&data.join("mnist/t10k-labels-idx1-ubyte.gz"));
    let many = 10_000 / effort.divisor;
    let peak = |examples: usize| -> anyhow::Result<f64> {
        let folder = text(&edgeward.work.join(format!("calibration{examples}")));
        let mut command = Command::new(&edgeward.python);
        command.args(["-c", PEAK]).arg(&edgeward.binary).args(["compress", &model, "--data", &images]);
        // Nothing is set aside: all are observed.
        command.args(["--labels", &labels, "--val-fraction", "0", "--mean", "0.1307", "--std", "0.3081", "--quick"]);
        command.args(["--calibration", &examples.to_string(), "--json", "-o", &folder]);
        let printed = steps::output(&mut command)?;
        let (observed, kilobytes) = printed.trim().split_once(' ').context("no two figures")?;
        ensure!(observed == examples.to_string(), "{observed} of {examples} examples were observed");
        Ok(kilobytes.parse::<f64>()? / 1024.0)
    };
    let (few, all) = (peak(FEW)?, peak(many)?);
    let slope = (all - few) * 1024.0 / (many - FEW) as f64;
    Ok(vec![
        Row::at_most("calibration", format!("most memory, {many} examples to {FEW}"), all / few, "×", 1.05)
            .against(format!("{all:.0} and {few:.0} MB of the whole process")),
        Row::information("calibration", "what an example more adds", slope, "kB"),
    ])
}
