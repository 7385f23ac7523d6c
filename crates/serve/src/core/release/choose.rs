//! Which variant of a release a machine runs: a function of what the manifest says and what the machine has.

use std::num::NonZeroUsize;

use edgeward_store::manifest::Variant;

use super::ReleaseGoal;

/// Figures that say how long a run takes, and how many items are done in a second; the first that is there counts.
const LATENCY: [&str; 3] = ["p50_ms", "latency_ms_p50", "latency_ms"];
const THROUGHPUT: [&str; 2] = ["per_second", "throughput_per_s"];

/// What matters of a machine.
pub(super) struct Machine<'a> {
    /// Whether an engine can be opened here.
    pub available: &'a dyn Fn(&str) -> bool,
    /// The engine that the operator wants.
    pub engine: Option<&'a str>,
    pub cores: NonZeroUsize,
    pub goal: ReleaseGoal,
}

impl Machine<'_> {
    /// Threads that a variant was measured with, as far as there are cores for them.
    pub fn threads(&self, variant: &Variant) -> Option<NonZeroUsize> {
        let threads = NonZeroUsize::try_from(variant.threads?).ok()?;
        Some(threads.min(self.cores))
    }

    /// Whether the variant runs here as it was measured.
    fn has_engine(&self, variant: &Variant) -> bool {
        let Some(named) = variant.engine.as_deref() else { return true };
        self.engine.is_none_or(|wanted| wanted == named) && (self.available)(named)
    }

    fn has_threads(&self, variant: &Variant) -> bool {
        self.threads(variant)
            .is_none_or(|threads| variant.threads.is_some_and(|wanted| wanted.get() as usize == threads.get()))
    }

    /// Less is better; none where nothing was measured.
    fn cost(&self, variant: &Variant) -> Option<f64> {
        let figure = |names: &[&str]| names.iter().find_map(|name| variant.figures.get(*name).copied());
        match self.goal {
            ReleaseGoal::Latency => figure(&LATENCY),
            ReleaseGoal::Throughput => figure(&THROUGHPUT).map(|per_second| -per_second),
        }
    }
}

/// The variants from the best to the last: those whose engine is here, then those whose threads have cores, then those that were measured,
/// by their figure; then as the manifest lists them.
pub(super) fn order<'v>(variants: &'v [Variant], machine: &Machine<'_>) -> Vec<&'v Variant> {
    let mut ranked: Vec<_> = variants
        .iter()
        .map(|variant| {
            let cost = machine.cost(variant);
            let misfits = (!machine.has_engine(variant), !machine.has_threads(variant), cost.is_none());
            (misfits, cost.unwrap_or_default(), variant)
        })
        .collect();
    ranked.sort_by(|a, b| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)));
    ranked.into_iter().map(|(.., variant)| variant).collect()
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;

    fn variant(name: &str, engine: Option<&str>, threads: u32, figures: &[(&str, f64)]) -> Variant {
        Variant {
            name: name.to_owned(),
            graph: format!("variants/{name}/model.onnx"),
            data: Vec::new(),
            engine: engine.map(str::to_owned),
            threads: NonZeroU32::new(threads),
            precision: "float32".to_owned(),
            figures: figures.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect(),
        }
    }

    #[test]
    fn the_machine_and_the_figures_decide() {
        let variants = [
            variant("any", None, 0, &[]),
            variant("ort-2", Some("onnxruntime"), 2, &[("p50_ms", 8.0), ("per_second", 200.0)]),
            variant("ort-8", Some("onnxruntime"), 8, &[("p50_ms", 3.0), ("per_second", 700.0)]),
            variant("vino", Some("openvino"), 2, &[("latency_ms_p50", 5.0), ("per_second", 150.0)]),
            variant("odd", Some("tensorrt"), 1, &[("p50_ms", 0.1)]),
        ];
        let order = |engines: &[&str], wanted, cores, goal| -> Vec<&str> {
            let available = |name: &str| engines.contains(&name);
            let cores = NonZeroUsize::new(cores).unwrap();
            let machine = Machine { available: &available, engine: wanted, cores, goal };
            super::order(&variants, &machine).into_iter().map(|variant| variant.name.as_str()).collect()
        };
        let (all, latency) = (&["onnxruntime", "openvino", "rten"][..], ReleaseGoal::Latency);
        assert_eq!(order(all, None, 2, latency), ["vino", "ort-2", "any", "ort-8", "odd"]);
        assert_eq!(order(all, None, 8, latency), ["ort-8", "vino", "ort-2", "any", "odd"]);
        assert_eq!(order(all, None, 2, ReleaseGoal::Throughput), ["ort-2", "vino", "any", "ort-8", "odd"]);
        assert_eq!(order(&["rten"], None, 8, latency)[0], "any");
        assert_eq!(order(all, Some("onnxruntime"), 2, latency), ["ort-2", "any", "ort-8", "odd", "vino"]);
        assert_eq!(order(all, Some("rten"), 2, latency)[0], "any");
    }

    #[test]
    fn threads_are_no_more_than_cores() {
        let machine = |cores| Machine {
            available: &|_| true,
            engine: None,
            cores: NonZeroUsize::new(cores).unwrap(),
            goal: ReleaseGoal::Latency,
        };
        let eight = variant("v", None, 8, &[]);
        assert_eq!(
            (machine(2).threads(&eight), machine(16).threads(&eight)),
            (NonZeroUsize::new(2), NonZeroUsize::new(8))
        );
        assert_eq!(machine(2).threads(&variant("v", None, 0, &[])), None);
    }
}
