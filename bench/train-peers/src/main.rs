//! One side of `cargo xtask bench train`: steps of a model in candle or burn, on numbers drawn by chance.
//!
//!     edgeward-train-peers candle|burn resnet18_28|transformer STEPS
//!
//! Prints the median time of a step and the peak of resident memory as JSON. The models are those of `train_peer.py`; only time and
//! memory are compared, so the weights are their own.

mod burn;
mod candle;

use std::time::Instant;

/// Sizes of the models, as in `train_peer.py`.
mod sizes {
    pub const CLASSES: usize = 10;
    pub const PICTURES: usize = 64;
    pub const SIDE: usize = 28;
    /// Width and stride of each group of two blocks.
    pub const GROUPS: [(usize, usize); 4] = [(64, 1), (128, 2), (256, 2), (512, 2)];
    pub const TEXTS: usize = 32;
    pub const LENGTH: usize = 64;
    pub const WORDS: usize = 8000;
    pub const WIDTH: usize = 256;
    pub const LAYERS: usize = 4;
    pub const HEADS: usize = 4;
}

/// Numbers around 0, the same in every run.
fn numbers(count: usize) -> Vec<f32> {
    (0..count).map(|i| ((i * 7919 % 1000) as f32 / 500.0) - 1.0).collect()
}

/// Whole numbers below `below`, the same in every run.
fn indices(count: usize, below: usize) -> Vec<i64> {
    (0..count).map(|i| (i * 7919 % below) as i64).collect()
}

/// Runs the steps; each returns its loss.
fn timed(steps: usize, mut step: impl FnMut() -> anyhow::Result<f32>) -> anyhow::Result<()> {
    let (mut times, mut losses) = (Vec::new(), Vec::new());
    for _ in 0..steps {
        let began = Instant::now();
        losses.push(step()?);
        times.push(began.elapsed().as_secs_f64() * 1e3);
    }
    times.sort_by(f64::total_cmp);
    let status = std::fs::read_to_string("/proc/self/status")?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_default();
    let kib: f64 = peak.trim().trim_end_matches(" kB").parse()?;
    anyhow::ensure!(losses.iter().all(|loss| loss.is_finite()), "a loss is no number: {losses:?}");
    let loss = losses.iter().sum::<f32>() / losses.len() as f32;
    let report = serde_json::json!({
        "step_p50_ms": times[times.len() / 2], "loss": loss, "peak_memory_bytes": kib * 1024.0,
    });
    println!("{report}");
    Ok(())
}

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [library, model, steps] = args.as_slice() else { anyhow::bail!("expected LIBRARY MODEL STEPS") };
    let steps = steps.parse()?;
    match (library.as_str(), model.as_str()) {
        ("candle", "resnet18_28") => candle::resnet(steps),
        ("candle", "transformer") => candle::transformer(steps),
        ("burn", "resnet18_28") => burn::resnet(steps),
        ("burn", "transformer") => burn::transformer(steps),
        _ => anyhow::bail!("no `{model}` in `{library}`"),
    }
}
