//! One loaded version of a model: its session, its queue and how it runs a request.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use edgeward_engine::{Dim, ErrorKind, Loaded, RunOptions, Session, TensorInfo};
use edgeward_graph::{DataType, Tensor};
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::{
    core::{InferRequest, InferResponse, ServeError, ServeErrorKind, stats::Stats},
    proto::ModelConfig,
};

/// Runs this short are cheaper on the caller's thread than a hand-over to another.
const INLINE_US_MAX: u64 = 300;
/// Requests that may wait for one version.
const QUEUE_MAX: u64 = 4096;
/// Runs that may overlap where the configuration does not say.
const INSTANCES_DEFAULT: usize = 2;
/// Failures of the engine in a row after which the version is not ready.
const FAILURES_MAX: u32 = 3;

/// A version that can answer.
pub struct Version {
    /// Model name.
    pub name: Arc<str>,
    /// Version number.
    pub number: u64,
    /// Name of the engine that runs it.
    pub engine: &'static str,
    /// Configuration, completed from the model.
    pub config: ModelConfig,
    /// What it has done.
    pub stats: Stats,
    session: Arc<dyn Session>,
    outputs: Vec<Arc<str>>,
    slots: Semaphore,
    instances: usize,
    run_us: AtomicU64,
    failures: AtomicU32,
}

impl Version {
    pub(super) fn new(name: &str, number: u64, config: ModelConfig, loaded: Loaded) -> Self {
        let count: usize = config.instance_group.iter().map(|g| usize::try_from(g.count).unwrap_or(1).max(1)).sum();
        let instances = if count == 0 { INSTANCES_DEFAULT } else { count };
        let outputs = loaded.session.outputs().iter().map(|o| Arc::from(o.name.as_str())).collect();
        Self {
            name: name.into(),
            number,
            engine: loaded.engine.name(),
            config,
            stats: Stats::default(),
            session: loaded.session.into(),
            outputs,
            slots: Semaphore::new(instances),
            instances,
            // Unknown until the first run, which is taken for long.
            run_us: AtomicU64::new(u64::MAX),
            failures: AtomicU32::new(0),
        }
    }

    /// Inputs of the model.
    pub fn inputs(&self) -> &[TensorInfo] {
        self.session.inputs()
    }

    /// Outputs of the model.
    pub fn outputs(&self) -> &[TensorInfo] {
        self.session.outputs()
    }

    /// False once the engine has failed several times in a row.
    pub fn healthy(&self) -> bool {
        self.failures.load(Relaxed) < FAILURES_MAX
    }

    /// Answers a request. Dropping the future takes it out of the queue.
    pub async fn infer(&self, request: InferRequest) -> Result<InferResponse, ServeError> {
        let arrived = Instant::now();
        let pending = Pending::enter(&self.stats.pending);
        let result = self.answer(request, arrived).await;
        drop(pending);
        if result.is_err() {
            self.stats.failed(arrived.elapsed());
        }
        result
    }

    async fn answer(&self, request: InferRequest, arrived: Instant) -> Result<InferResponse, ServeError> {
        self.within_batch(&request)?;
        let permit = self.slot(request.timeout).await?;
        let queued = arrived.elapsed();
        let (batch, id) = (batch(&request, &self.config), request.id.clone());
        let started = Instant::now();
        let outputs = if self.run_us.load(Relaxed) <= INLINE_US_MAX {
            run(&*self.session, &self.outputs, &request)
        } else {
            let (session, names) = (self.session.clone(), self.outputs.clone());
            let task = tokio::task::spawn_blocking(move || run(&*session, &names, &request));
            task.await.unwrap_or_else(|e| Err(ServeError::new(ServeErrorKind::Internal, format!("the run ended: {e}"))))
        };
        drop(permit);
        let compute = started.elapsed();
        self.learn(compute, outputs.as_ref().err());
        let outputs = outputs?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.stats.succeeded(batch, arrived.elapsed(), queued, compute, now.as_millis() as u64);
        let (model_name, model_version) = (self.name.clone(), self.number);
        Ok(InferResponse { model_name, model_version, id, outputs, parameters: Vec::new() })
    }

    /// Waits for a free instance, at most `timeout`; refuses at once where too many wait already.
    async fn slot(&self, timeout: Option<Duration>) -> Result<SemaphorePermit<'_>, ServeError> {
        if let Ok(permit) = self.slots.try_acquire() {
            return Ok(permit);
        }
        let waiting = self.stats.pending.load(Relaxed);
        if waiting > QUEUE_MAX {
            let wait_us = self.run_us.load(Relaxed).min(1_000_000) * waiting / self.instances as u64;
            let text = format!("the queue of model `{}` is full ({QUEUE_MAX} requests wait)", self.name);
            let retry_after = Some(Duration::from_micros(wait_us));
            return Err(ServeError { kind: ServeErrorKind::Overloaded, message: text, retry_after });
        }
        let gone = |_| ServeError::new(ServeErrorKind::Unavailable, "the model is being unloaded");
        match timeout {
            None => self.slots.acquire().await.map_err(gone),
            Some(limit) => match tokio::time::timeout(limit, self.slots.acquire()).await {
                Ok(permit) => permit.map_err(gone),
                Err(_) => {
                    let text = format!("no instance of model `{}` was free within {limit:?}", self.name);
                    Err(ServeError::new(ServeErrorKind::DeadlineExceeded, text))
                }
            },
        }
    }

    fn within_batch(&self, request: &InferRequest) -> Result<(), ServeError> {
        let max = usize::try_from(self.config.max_batch_size).unwrap_or(0);
        if max == 0 {
            return Ok(());
        }
        let refuse = |text: String| Err(ServeError::new(ServeErrorKind::InvalidArgument, text));
        let sizes = request.inputs.iter().map(|(name, tensor)| (name, tensor.shape().first().copied()));
        let mut first = None;
        for (name, size) in sizes {
            match (size, first) {
                (None, _) => return refuse(format!("input `{name}` is a scalar, the model takes batches")),
                (Some(size), _) if size > max => {
                    return refuse(format!("input `{name}` has a batch of {size}, the model takes at most {max}"));
                }
                (Some(size), Some(other)) if size != other => {
                    return refuse(format!("input `{name}` has a batch of {size}, another input {other}"));
                }
                (size, _) => first = size,
            }
        }
        Ok(())
    }

    fn learn(&self, compute: Duration, error: Option<&ServeError>) {
        match error {
            None => {
                self.failures.store(0, Relaxed);
                let (old, new) = (self.run_us.load(Relaxed), compute.as_micros() as u64);
                self.run_us.store(if old == u64::MAX { new } else { (7 * old + new) / 8 }, Relaxed);
            }
            Some(e) if e.kind == ServeErrorKind::Internal => {
                self.failures.fetch_add(1, Relaxed);
            }
            Some(_) => {}
        }
    }
}

/// Counts a request while it is in the version's hands, however it leaves.
struct Pending<'a>(&'a AtomicU64);

impl<'a> Pending<'a> {
    fn enter(count: &'a AtomicU64) -> Self {
        count.fetch_add(1, Relaxed);
        Self(count)
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

fn batch(request: &InferRequest, config: &ModelConfig) -> u64 {
    let first = request.inputs.first().and_then(|(_, t)| t.shape().first().copied());
    if config.max_batch_size > 0 { first.unwrap_or(1) as u64 } else { 1 }
}

fn run(session: &dyn Session, all: &[Arc<str>], request: &InferRequest) -> Result<Vec<(Arc<str>, Tensor)>, ServeError> {
    let inputs: Vec<(&str, &Tensor)> = request.inputs.iter().map(|(n, t)| (n.as_str(), t)).collect();
    let wanted: Vec<&str> = request.outputs.iter().map(|o| o.name.as_str()).collect();
    let outputs = if wanted.is_empty() { None } else { Some(wanted.as_slice()) };
    let tensors = session.run(&inputs, RunOptions { outputs, cancel: None }).map_err(|e| {
        let kind = match e.kind() {
            ErrorKind::InvalidInput | ErrorKind::Unsupported => ServeErrorKind::InvalidArgument,
            ErrorKind::Cancelled => ServeErrorKind::Cancelled,
            _ => ServeErrorKind::Internal,
        };
        ServeError::new(kind, format!("model `{}`: {}", request.model.name, e.message()))
    })?;
    if wanted.is_empty() {
        return Ok(all.iter().cloned().zip(tensors).collect());
    }
    let named = request.outputs.iter().zip(tensors).map(|(output, tensor)| {
        let tensor = if output.classification > 0 { classify(&tensor, output.classification)? } else { tensor };
        Ok((Arc::from(output.name.as_str()), tensor))
    });
    named.collect()
}

/// The `count` highest values of each row as `value:index` strings, as the classification extension asks.
fn classify(tensor: &Tensor, count: usize) -> Result<Tensor, ServeError> {
    let refuse = |text: String| ServeError::new(ServeErrorKind::InvalidArgument, text);
    let values: Vec<f64> = match tensor.dtype() {
        DataType::Float32 => tensor.values::<f32>().map(|v| v.iter().map(|&x| f64::from(x)).collect()),
        DataType::Float64 => tensor.values::<f64>().map(|v| v.to_vec()),
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

/// A dimension as the protocol writes it: -1 where it is not fixed.
pub(super) fn wire_dims(info: &TensorInfo) -> Vec<i64> {
    let dims = info.shape.iter().flatten();
    dims.map(|d| if let Dim::Fixed(n) = d { i64::try_from(*n).unwrap_or(-1) } else { -1 }).collect()
}
