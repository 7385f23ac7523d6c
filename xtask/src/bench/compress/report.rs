//! What `edgeward compress --json` reports.

use std::process::Command;

use anyhow::{Context as _, bail};
use serde_json::Value;

use crate::bench::peers::Edgeward;

/// A report.
pub struct Compressed(Value);

/// One variant of it.
#[derive(Clone, Copy)]
pub struct Variant<'a>(&'a Value);

impl Compressed {
    /// Compresses, whether that finds something or not.
    pub fn run(edgeward: &Edgeward, arguments: &[&str]) -> anyhow::Result<Self> {
        let mut command = Command::new(&edgeward.binary);
        let output = command.current_dir(&edgeward.work).arg("compress").args(arguments).arg("--json").output()?;
        let said = || String::from_utf8_lossy(&output.stderr).into_owned();
        let report = serde_json::from_slice::<Value>(&output.stdout).with_context(said)?;
        match report["error"].as_str() {
            Some(error) => bail!("{error}"),
            None => Ok(Self(report)),
        }
    }

    /// The original.
    pub fn original(&self) -> Variant<'_> {
        Variant(&self.0["original"])
    }

    /// The original's time on ONNX Runtime.
    pub fn before_ms(&self) -> anyhow::Result<f64> {
        self.original().on("onnxruntime").context("ONNX Runtime is not installed")
    }

    /// The original's time on the engine that runs it best.
    pub fn best_before_ms(&self) -> anyhow::Result<f64> {
        self.original().p50_ms()
    }

    /// The variant that was chosen.
    pub fn chosen(&self) -> Option<Variant<'_>> {
        self.named(self.0["chosen"].as_str()?)
    }

    /// The variant of a name.
    pub fn named(&self, name: &str) -> Option<Variant<'_>> {
        self.variants().find(|variant| variant.name() == name)
    }

    fn variants(&self) -> impl Iterator<Item = Variant<'_>> {
        self.0["variants"].as_array().into_iter().flatten().map(Variant)
    }

    /// Of the variants that `wanted` names: the smallest in transfer that is fast enough and loses at most so much; where there is none, the
    /// fastest that loses at most so much, else the one that loses least.
    pub fn best(&self, drop_max: f64, ms_max: f64, wanted: impl Fn(&str) -> bool) -> anyhow::Result<Variant<'_>> {
        let rank = |variant: &Variant<'_>| -> anyhow::Result<(u8, f64)> {
            let (drop, ms) = (variant.drop()?, variant.p50_ms()?);
            Ok(match (drop <= drop_max, ms <= ms_max) {
                (true, true) => (0, variant.transfer_bytes()?),
                (true, false) => (1, ms),
                (false, _) => (2, drop),
            })
        };
        let named = self.variants().filter(|variant| wanted(variant.name()));
        let ranked = named.filter_map(|variant| Some((rank(&variant).ok()?, variant)));
        let best = ranked.min_by(|(a, _), (b, _)| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)));
        best.map(|(_, variant)| variant).context("no engine runs such a variant")
    }

    /// The most memory in bytes, by its key in the report.
    pub fn memory(&self, key: &str) -> anyhow::Result<f64> {
        number(&self.0["memory"], key)
    }

    /// Seconds of all of it.
    pub fn seconds(&self) -> anyhow::Result<f64> {
        number(&self.0, "seconds")
    }

    /// Seconds of all parts of the work that `wanted` says, by what they are called. Errors: none is.
    pub fn seconds_of(&self, wanted: impl Fn(&str) -> bool) -> anyhow::Result<f64> {
        let all = self.0["phases"].as_array().context("the report has no `phases`")?;
        let wanted = all.iter().filter(|phase| phase["what"].as_str().is_some_and(&wanted));
        let seconds: Vec<f64> = wanted.map(|phase| number(phase, "seconds")).collect::<anyhow::Result<_>>()?;
        anyhow::ensure!(!seconds.is_empty(), "the report has no such part of the work");
        Ok(seconds.iter().sum())
    }
}

impl Variant<'_> {
    /// Its name.
    pub fn name(&self) -> &str {
        self.0["name"].as_str().unwrap_or_default()
    }

    /// The engine that runs it best.
    pub fn engine(&self) -> &str {
        self.0["engine"].as_str().unwrap_or_default()
    }

    /// Its time on that engine.
    pub fn p50_ms(&self) -> anyhow::Result<f64> {
        number(&self.0["figures"], "p50_ms")
    }

    /// Its time on one engine.
    fn on(&self, engine: &str) -> Option<f64> {
        let engines = self.0["engines"].as_array()?;
        engines.iter().find(|entry| entry["engine"] == engine)?["p50_ms"].as_f64()
    }

    /// Bytes of its file.
    pub fn bytes(&self) -> anyhow::Result<f64> {
        number(&self.0["figures"], "bytes")
    }

    /// Bytes of its file on the way.
    pub fn transfer_bytes(&self) -> anyhow::Result<f64> {
        number(&self.0["figures"], "transfer_bytes")
    }

    /// How much worse its metric is, as a part.
    pub fn drop(&self) -> anyhow::Result<f64> {
        number(&self.0["figures"], "drop")
    }

    /// Its metric.
    pub fn metric(&self) -> anyhow::Result<f64> {
        number(self.0, "metric")
    }

    /// Name, engine and time.
    pub fn shown(&self) -> String {
        format!("{} on {}, {} ms", self.name(), self.engine(), crate::bench::figure(self.p50_ms().unwrap_or(f64::NAN)))
    }
}

fn number(value: &Value, key: &str) -> anyhow::Result<f64> {
    value[key].as_f64().with_context(|| format!("the report has no `{key}`"))
}
