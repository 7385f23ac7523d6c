//! Runs requests on a version's session, alone or several as one batch.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use edgeward_engine::{Cancel, EngineError, ErrorKind, RunOptions, Session, TensorInfo};
use edgeward_graph::{DataType, Tensor};
use half::{bf16, f16};

use crate::core::{
    InferRequest, ServeError, ServeErrorKind,
    health::{Health, Sample},
    stats::Stats,
    told,
};

/// Runs this short are cheaper on the caller's thread than a hand-over to another.
pub(super) const INLINE_US_MAX: u64 = 300;

/// A session with what is known of its runs.
pub(super) struct Executor {
    pub name: Arc<str>,
    pub stats: Arc<Stats>,
    batched: bool,
    session: Arc<dyn Session>,
    outputs: Vec<Arc<str>>,
    run_us: AtomicU64,
    health: Arc<Health>,
}

/// What one request came to.
pub(super) struct Ran {
    pub outputs: Vec<(Arc<str>, Tensor)>,
    pub times: Times,
}

/// Where a run's time went; the same for all requests of a batch.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Times {
    pub input: Duration,
    pub infer: Duration,
    pub output: Duration,
}

type Named = Vec<(Arc<str>, Tensor)>;

impl Executor {
    /// `sample` is what the engine is asked with when a run fails; zeros where none.
    pub(super) fn new(name: Arc<str>, session: Box<dyn Session>, max_batch: usize, sample: Option<Sample>) -> Self {
        let outputs = session.outputs().iter().map(|o| Arc::from(o.name.as_str())).collect();
        // The time of a run is unknown until the first, which is taken for long.
        let (run_us, health) = (AtomicU64::new(u64::MAX), Health::new(name.clone(), sample));
        Self {
            name,
            stats: Arc::new(Stats::new(max_batch)),
            batched: max_batch > 0,
            session: session.into(),
            outputs,
            run_us,
            health,
        }
    }

    pub(super) fn inputs(&self) -> &[TensorInfo] {
        self.session.inputs()
    }

    pub(super) fn outputs(&self) -> &[TensorInfo] {
        self.session.outputs()
    }

    /// Moving average of a run's time; none before the first.
    pub(super) fn run_us(&self) -> Option<u64> {
        Some(self.run_us.load(Relaxed)).filter(|&us| us != u64::MAX)
    }

    /// False while the engine fails, whatever it is asked.
    pub(super) fn healthy(&self) -> bool {
        self.health.good()
    }

    /// Inferences in a request: the first dimension where the model batches.
    pub(super) fn size(&self, request: &InferRequest) -> usize {
        let first = request.inputs.first().and_then(|(_, t)| t.shape().first().copied());
        if self.batched { first.unwrap_or(1) } else { 1 }
    }

    /// Runs one request.
    pub(super) fn run(&self, request: &InferRequest, cancel: Option<&Cancel>) -> Result<Ran, ServeError> {
        let inputs: Vec<(&str, &Tensor)> = request.inputs.iter().map(|(n, t)| (n.as_str(), t)).collect();
        let (tensors, infer) = self.timed(&inputs, &request.outputs, cancel)?;
        let began = Instant::now();
        let outputs = named(&self.outputs, request, tensors)?;
        let times = Times { infer, output: began.elapsed(), ..Times::default() };
        self.stats.ran(self.size(request), times);
        Ok(Ran { outputs, times })
    }

    /// Runs requests of one signature as one batch. Where that fails, each runs alone: a request that the engine
    /// refuses must not take others with it.
    pub(super) fn run_together(&self, requests: &[InferRequest], cancel: &Cancel) -> Vec<Result<Ran, ServeError>> {
        if let [_, _, ..] = requests {
            match self.batch(requests, cancel) {
                Ok(all) => return all,
                Err(error) if error.kind == ServeErrorKind::Cancelled => {
                    tracing::debug!(model = &*self.name, "a batch ends early: all its callers have gone");
                    return requests.iter().map(|_| Err(error.clone())).collect();
                }
                Err(error) => tracing::debug!(model = &*self.name, %error, "a batch fails, its requests run alone"),
            }
        }
        requests.iter().map(|request| self.run(request, Some(cancel))).collect()
    }

    fn batch(&self, requests: &[InferRequest], cancel: &Cancel) -> Result<Vec<Result<Ran, ServeError>>, ServeError> {
        let Some(first) = requests.first() else { return Ok(Vec::new()) };
        let began = Instant::now();
        let joined = joined(requests)?;
        let input = began.elapsed();
        let inputs: Vec<(&str, &Tensor)> = joined.iter().map(|(name, tensor)| (*name, tensor)).collect();
        let (tensors, infer) = self.timed(&inputs, &first.outputs, Some(cancel))?;
        let began = Instant::now();
        let sizes: Vec<usize> = requests.iter().map(|request| self.size(request)).collect();
        let parts = self.split(first, tensors, &sizes)?;
        let times = Times { input, infer, output: began.elapsed() };
        self.stats.ran(sizes.iter().sum(), times);
        let answers = requests.iter().zip(parts).map(|(request, tensors)| {
            let outputs = named(&self.outputs, request, tensors)?;
            Ok(Ran { outputs, times })
        });
        Ok(answers.collect())
    }

    /// The outputs of a batch, by request.
    fn split(
        &self,
        request: &InferRequest,
        tensors: Vec<Tensor>,
        sizes: &[usize],
    ) -> Result<Vec<Vec<Tensor>>, ServeError> {
        let mut parts: Vec<Vec<Tensor>> = sizes.iter().map(|_| Vec::with_capacity(tensors.len())).collect();
        for (index, tensor) in tensors.into_iter().enumerate() {
            let split = tensor.split_first(sizes).map_err(|e| {
                let wanted = request.outputs.get(index).map(|o| o.name.as_str());
                let output = wanted.or(self.outputs.get(index).map(|o| &**o)).unwrap_or_default();
                let text =
                    format!("model `{}`: output `{output}` is not split into the batch's requests: {e}", self.name);
                ServeError::new(ServeErrorKind::Internal, text)
            })?;
            parts.iter_mut().zip(split).for_each(|(part, tensor)| part.push(tensor));
        }
        Ok(parts)
    }

    /// Runs the engine and learns from it.
    fn timed(
        &self,
        inputs: &[(&str, &Tensor)],
        outputs: &[crate::core::RequestedOutput],
        cancel: Option<&Cancel>,
    ) -> Result<(Vec<Tensor>, Duration), ServeError> {
        let wanted: Vec<&str> = outputs.iter().map(|o| o.name.as_str()).collect();
        let options = RunOptions { outputs: (!wanted.is_empty()).then_some(wanted.as_slice()), cancel };
        let began = Instant::now();
        // An engine that panics must neither end the server nor keep an instance for ever.
        let ran = catch_unwind(AssertUnwindSafe(|| self.session.run(inputs, options)));
        let infer = began.elapsed();
        let mut doubtful = false;
        let result = match ran {
            Ok(result) => result.map_err(|e| {
                let (error, failed) = self.refusal(&e);
                doubtful = failed;
                error
            }),
            Err(_) => {
                doubtful = true;
                let text = format!("model `{}`: the engine panicked", self.name);
                Err(ServeError::new(ServeErrorKind::Internal, text))
            }
        };
        self.learn(infer, result.is_ok(), doubtful);
        result.map(|tensors| (tensors, infer))
    }

    /// What a caller is told, and whether the engine is to be doubted. The log has what the engine says.
    fn refusal(&self, error: &EngineError) -> (ServeError, bool) {
        let failed = match error.kind() {
            ErrorKind::InvalidInput | ErrorKind::Unsupported => None,
            ErrorKind::Cancelled => return (self.error(ServeErrorKind::Cancelled, error.message()), false),
            _ => Some(told::of_values(error.message())),
        };
        let told = told::told(error.message());
        if failed.is_some() || told != error.message() {
            tracing::warn!(model = &*self.name, engine = error.engine(), error = error.message(), "a run fails");
        }
        match failed {
            None | Some(true) => (self.error(ServeErrorKind::InvalidArgument, &told), failed.is_some()),
            Some(false) => {
                let text = "the engine failed; the log of the server says why";
                (self.error(ServeErrorKind::Internal, text), true)
            }
        }
    }

    fn error(&self, kind: ServeErrorKind, text: &str) -> ServeError {
        ServeError::new(kind, format!("model `{}`: {text}", self.name))
    }

    fn learn(&self, infer: Duration, answered: bool, doubtful: bool) {
        if answered {
            self.health.answered();
            let (old, new) = (self.run_us.load(Relaxed), infer.as_micros() as u64);
            self.run_us.store(if old == u64::MAX { new } else { (7 * old + new) / 8 }, Relaxed);
        } else if doubtful {
            self.health.doubt(&self.session);
        }
    }
}

/// Tensors with their names, `all` of them or those asked for, classified where that is asked.
pub(super) fn named(all: &[Arc<str>], request: &InferRequest, tensors: Vec<Tensor>) -> Result<Named, ServeError> {
    if request.outputs.is_empty() {
        return Ok(all.iter().cloned().zip(tensors).collect());
    }
    let named = request.outputs.iter().zip(tensors).map(|(output, tensor)| {
        let tensor = if output.classification > 0 { classify(&tensor, output.classification)? } else { tensor };
        Ok((Arc::from(output.name.as_str()), tensor))
    });
    named.collect()
}

/// The inputs of all requests as one batch.
fn joined(requests: &[InferRequest]) -> Result<Vec<(&str, Tensor)>, ServeError> {
    let Some(first) = requests.first() else { return Ok(Vec::new()) };
    let refuse = |text: String| ServeError::new(ServeErrorKind::InvalidArgument, text);
    let inputs = first.inputs.iter().enumerate().map(|(index, (name, _))| {
        let same = requests.iter().map(|r| r.inputs.get(index).filter(|(other, _)| other == name).map(|(_, t)| t));
        let all: Vec<&Tensor> =
            same.collect::<Option<_>>().ok_or_else(|| refuse(format!("input `{name}` is not in all requests")))?;
        let tensor = Tensor::concat_first(&all).map_err(|e| refuse(format!("input `{name}`: {e}")))?;
        Ok((name.as_str(), tensor))
    });
    inputs.collect()
}

/// The `count` highest values of each row as `value:index` strings, as the classification extension asks.
pub(crate) fn classify(tensor: &Tensor, count: usize) -> Result<Tensor, ServeError> {
    let refuse = |text: String| ServeError::new(ServeErrorKind::InvalidArgument, text);
    let values: Vec<f64> = match tensor.dtype() {
        DataType::Float32 => tensor.values::<f32>().map(|v| v.iter().map(|&x| f64::from(x)).collect()),
        DataType::Float64 => tensor.values::<f64>().map(|v| v.to_vec()),
        DataType::Float16 => tensor.values::<f16>().map(|v| v.iter().map(|x| x.to_f64()).collect()),
        DataType::BFloat16 => tensor.values::<bf16>().map(|v| v.iter().map(|x| x.to_f64()).collect()),
        DataType::Int32 => tensor.values::<i32>().map(|v| v.iter().map(|&x| f64::from(x)).collect()),
        DataType::Int64 => tensor.values::<i64>().map(|v| v.iter().map(|&x| x as f64).collect()),
        other => {
            return Err(refuse(format!(
                "classification of {other} is not supported, expected a float or integer output"
            )));
        }
    }
    .map_err(|e| refuse(e.to_string()))?;
    let classes = tensor.shape().last().copied().unwrap_or(1).max(1);
    let count = count.min(classes);
    let mut texts = Vec::new();
    for row in values.chunks(classes) {
        let mut order: Vec<(usize, f64)> = row.iter().copied().enumerate().collect();
        order.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        texts.extend(order.into_iter().take(count).map(|(i, v)| Bytes::from(format!("{v:.6}:{i}"))));
    }
    let mut shape = tensor.shape().to_vec();
    match shape.last_mut() {
        Some(last) => *last = count,
        None => shape.push(count),
    }
    Tensor::from_strings(shape, texts).map_err(|e| refuse(e.to_string()))
}
