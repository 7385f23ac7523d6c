//! Whether a version's engine works: a failed run is a question, and a probe answers it.
//!
//! A caller's data can make a run fail (an index out of range), so that a failure alone says nothing of the engine. It is
//! asked off the way of requests with a sample of its own; while that fails the version is not ready, and it is asked
//! again until it answers.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Weak,
        atomic::{
            AtomicBool, AtomicU32,
            Ordering::{Relaxed, SeqCst},
        },
    },
    time::Duration,
};

use edgeward_engine::{Dim, ErrorKind, RunOptions, Session, TensorInfo};
use edgeward_graph::Tensor;

use crate::core::warmup;

/// Time between two probes while the engine fails; doubled each time.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// Failures of runs in a row that count as the engine's where the sample is no judge.
const FAILURES_MAX: u32 = 3;

/// Inputs by name.
pub(super) type Sample = Vec<(String, Tensor)>;

/// What is known of a session's engine.
pub(super) struct Health {
    model: Arc<str>,
    sample: Option<Sample>,
    failing: AtomicBool,
    probing: AtomicBool,
    /// A request was answered while the sample failed, so that the sample is what does not work.
    unfit: AtomicBool,
    failures: AtomicU32,
}

impl Health {
    /// Asks with the model's warm-up sample, else with zeros.
    pub fn new(model: Arc<str>, sample: Option<Sample>) -> Arc<Self> {
        let no = || AtomicBool::new(false);
        Arc::new(Self { model, sample, failing: no(), probing: no(), unfit: no(), failures: AtomicU32::new(0) })
    }

    /// False while a probe fails.
    pub fn good(&self) -> bool {
        !self.failing.load(SeqCst)
    }

    /// A request was answered.
    pub fn answered(&self) {
        if self.failures.load(Relaxed) > 0 {
            self.failures.store(0, Relaxed);
        }
        if self.failing.load(Relaxed) && self.failing.swap(false, SeqCst) {
            self.unfit.store(true, SeqCst);
        }
    }

    /// A run failed: asks the engine, unless that is under way.
    pub fn doubt(self: &Arc<Self>, session: &Arc<dyn Session>) {
        self.failures.fetch_add(1, Relaxed);
        if self.probing.swap(true, SeqCst) {
            return;
        }
        let probing = probe(self.clone(), Arc::downgrade(session));
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn(probing)),
            // Nobody can ask, so that the failure stands until a request is answered.
            Err(_) => {
                self.failing.store(true, SeqCst);
                self.probing.store(false, SeqCst);
            }
        }
    }

    /// The sample was answered.
    fn works(&self) {
        self.unfit.store(false, SeqCst);
        self.failures.store(0, Relaxed);
        if self.failing.swap(false, SeqCst) {
            tracing::info!(model = &*self.model, "the engine answers again");
        }
    }

    fn ask(&self, session: &dyn Session) -> Result<(), String> {
        let zeros;
        let sample = match &self.sample {
            Some(sample) => sample,
            None => match zero_sample(session.inputs()) {
                Ok(made) => {
                    zeros = made;
                    &zeros
                }
                // What cannot be asked is taken to work.
                Err(_) => return Ok(()),
            },
        };
        let named: Vec<(&str, &Tensor)> = sample.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
        match catch_unwind(AssertUnwindSafe(|| session.run(&named, RunOptions::default()))) {
            Ok(Ok(_)) => Ok(()),
            // The sample does not suit the model; that says nothing of the engine.
            Ok(Err(e)) if e.kind() != ErrorKind::Failed => Ok(()),
            Ok(Err(e)) => Err(e.to_string()),
            Err(_) => Err("the engine panicked".to_owned()),
        }
    }
}

/// Asks until the engine answers or the model is gone.
async fn probe(health: Arc<Health>, session: Weak<dyn Session>) {
    let mut pause = PAUSE_MIN;
    while let Some(session) = session.upgrade() {
        let asked = health.clone();
        let answer = tokio::task::spawn_blocking(move || asked.ask(&*session)).await;
        let Err(reason) = answer.unwrap_or_else(|e| Err(e.to_string())) else {
            health.works();
            break;
        };
        if health.unfit.load(SeqCst) {
            health.failing.store(health.failures.load(Relaxed) >= FAILURES_MAX, SeqCst);
            break;
        }
        if !health.failing.swap(true, SeqCst) {
            tracing::error!(
                model = &*health.model,
                reason,
                "the engine fails; the model is not ready until it answers"
            );
        }
        tokio::time::sleep(pause).await;
        pause = (2 * pause).min(PAUSE_MAX);
    }
    health.probing.store(false, SeqCst);
}

/// Zeros of the declared types and shapes, 1 where a size is open.
fn zero_sample(inputs: &[TensorInfo]) -> Result<Sample, String> {
    let size = |dim: &Dim| if let Dim::Fixed(size) = dim { *size } else { 1 };
    let zeros = |info: &TensorInfo| {
        let shape = info.shape.as_ref().ok_or_else(|| format!("input `{}` has no rank", info.name))?;
        let tensor = warmup::zeros(info.dtype, shape.iter().map(size).collect())?;
        Ok((info.name.clone(), tensor))
    };
    inputs.iter().map(zeros).collect()
}
