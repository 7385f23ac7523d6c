//! One loaded version of a model: how a request enters it, waits, and is answered.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use edgeward_engine::{Dim, Loaded, TensorInfo};

use crate::{
    core::{
        InferRequest, InferResponse, ModelRef, RequestTimes, ServeError, ServeErrorKind, Server,
        batcher::Batcher,
        cache::{Cache, Key},
        config,
        ensemble::Ensemble,
        execute::{Executor, Ran, Times, named},
        labels::Labels,
        snapshot::Origin,
        stats::{Served, Stats},
        warmup,
    },
    proto::{ModelConfig, ModelDynamicBatching},
};

/// Runs that may overlap where the configuration does not say.
const INSTANCES_DEFAULT: usize = 2;

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
    /// The files that it was loaded from; none where they came with the call.
    pub(super) origin: Option<Origin>,
    stats: Arc<Stats>,
    work: Work,
    cache: Option<Cache>,
    labels: Labels,
}

/// Who answers.
enum Work {
    /// The model's own session.
    Session(Arc<Executor>, Batcher),
    /// Other models.
    Ensemble(Ensemble, Vec<Arc<str>>),
}

impl Version {
    /// Readies a loaded model: runs its warm-up samples, whose files lie in `warmup` of its `folder`. `cache` is shared by all
    /// versions that ask for it.
    pub(super) fn new(
        name: &str,
        number: u64,
        config: ModelConfig,
        loaded: Loaded,
        folder: &std::path::Path,
        cache: Option<&Cache>,
    ) -> Result<Self, String> {
        let labels = Labels::read(&config, folder)?;
        let sample = warmup::run(&config, &*loaded.session, &folder.join("warmup"))?;
        let count: usize = config.instance_group.iter().map(|g| usize::try_from(g.count).unwrap_or(1).max(1)).sum();
        let instances = if count == 0 { INSTANCES_DEFAULT } else { count };
        let max_batch = usize::try_from(config.max_batch_size).unwrap_or(0);
        let name: Arc<str> = name.into();
        let executor = Arc::new(Executor::new(name.clone(), loaded.session, max_batch, sample));
        let batcher = match config::batching(&config) {
            Some(batching) => {
                if max_batch > 1 {
                    batches(&executor)?;
                }
                Batcher::new(executor.clone(), batching, max_batch, instances)
            }
            None => Batcher::new(executor.clone(), &ModelDynamicBatching::default(), 1, instances),
        };
        let cache = own_cache(&name, &config, cache);
        let (engine, stats) = (loaded.engine.name(), executor.stats.clone());
        Ok(Self {
            name,
            number,
            engine,
            config,
            origin: None,
            stats,
            work: Work::Session(executor, batcher),
            cache,
            labels,
        })
    }

    /// A version that other models answer for.
    pub(super) fn ensemble(
        name: &str,
        number: u64,
        config: ModelConfig,
        graph: Ensemble,
        cache: Option<&Cache>,
    ) -> Self {
        let (name, outputs) = (Arc::from(name), graph.outputs.iter().map(|o| Arc::from(o.name.as_str())).collect());
        let cache = own_cache(&name, &config, cache);
        let stats = Arc::new(Stats::new(usize::try_from(config.max_batch_size).unwrap_or(0)));
        Self {
            name,
            number,
            engine: "ensemble",
            config,
            origin: None,
            stats,
            work: Work::Ensemble(graph, outputs),
            cache,
            labels: Labels::default(),
        }
    }

    /// Inputs of the model.
    pub fn inputs(&self) -> &[TensorInfo] {
        match &self.work {
            Work::Session(executor, _) => executor.inputs(),
            Work::Ensemble(graph, _) => &graph.inputs,
        }
    }

    /// Outputs of the model.
    pub fn outputs(&self) -> &[TensorInfo] {
        match &self.work {
            Work::Session(executor, _) => executor.outputs(),
            Work::Ensemble(graph, _) => &graph.outputs,
        }
    }

    /// True where other models answer for it.
    pub fn is_ensemble(&self) -> bool {
        matches!(self.work, Work::Ensemble(..))
    }

    /// What it has done.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// False while the engine fails, whatever it is asked. An ensemble has no engine of its own.
    pub fn healthy(&self) -> bool {
        match &self.work {
            Work::Session(executor, _) => executor.healthy(),
            Work::Ensemble(..) => true,
        }
    }

    /// The models that an ensemble runs; none for a model of its own.
    pub(super) fn members(&self) -> Vec<ModelRef> {
        match &self.work {
            Work::Session(..) => Vec::new(),
            Work::Ensemble(graph, _) => graph.members().cloned().collect(),
        }
    }

    /// An error where the models of an ensemble were replaced by some that do not fit.
    pub(super) fn fits_members(&self, server: &Server) -> Result<(), String> {
        match &self.work {
            Work::Session(..) => Ok(()),
            Work::Ensemble(graph, _) => graph.check(server),
        }
    }

    /// Answers a request. Dropping the future takes it out of the queue, or ends its run where the engine can.
    pub async fn infer(&self, request: InferRequest, server: &Server) -> Result<InferResponse, ServeError> {
        let arrived = Instant::now();
        let pending = Pending::enter(&self.stats.pending);
        let result = self.cached(request, arrived, server).await;
        drop(pending);
        if let Err(error) = &result {
            self.stats.failed(error.kind, arrived.elapsed());
        }
        result
    }

    async fn cached(
        &self,
        request: InferRequest,
        arrived: Instant,
        server: &Server,
    ) -> Result<InferResponse, ServeError> {
        let size = self.within_batch(&request)?;
        let id = request.id.clone();
        let Some(cache) = &self.cache else {
            return self
                .answer(request, size, arrived, server)
                .await
                .map(|(outputs, times)| self.response(id, outputs, times));
        };
        let key = Key::of(&request);
        if let Some(outputs) = cache.get(&key) {
            self.stats.hit(arrived.elapsed(), now_ms());
            return Ok(self.response(id, outputs, RequestTimes::default()));
        }
        let looked_up = arrived.elapsed();
        let (outputs, times) = self.answer(request, size, arrived, server).await?;
        let began = Instant::now();
        cache.put(key, &outputs);
        self.stats.missed(looked_up + began.elapsed());
        Ok(self.response(id, outputs, times))
    }

    fn response(&self, id: String, outputs: Outputs, times: RequestTimes) -> InferResponse {
        let (model_name, model_version) = (self.name.clone(), self.number);
        InferResponse { model_name, model_version, id, outputs, parameters: Vec::new(), times }
    }

    async fn answer(
        &self,
        request: InferRequest,
        size: usize,
        arrived: Instant,
        server: &Server,
    ) -> Result<(Outputs, RequestTimes), ServeError> {
        let labelled = self.labels.wanted(&request.outputs);
        let (mut ran, queue) = match &self.work {
            Work::Session(_, batcher) => batcher.infer(request, size).await?,
            Work::Ensemble(graph, outputs) => {
                let tensors = graph.infer(&request, server).await?;
                let times = Times { infer: arrived.elapsed(), ..Times::default() };
                self.stats.ran(size, times);
                (Ran { outputs: named(outputs, &request, tensors)?, times }, Duration::ZERO)
            }
        };
        let served = Served { size, request: arrived.elapsed(), queue, times: ran.times, now_ms: now_ms() };
        self.stats.succeeded(&served);
        self.labels.add(&labelled, &mut ran.outputs);
        let Times { input, infer, output } = ran.times;
        Ok((ran.outputs, RequestTimes { queue, input, infer, output }))
    }

    /// Inferences in the request; an error where the model does not take as many.
    fn within_batch(&self, request: &InferRequest) -> Result<usize, ServeError> {
        let max = usize::try_from(self.config.max_batch_size).unwrap_or(0);
        if max == 0 {
            return Ok(1);
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
        Ok(first.unwrap_or(1))
    }
}

/// The shared cache as one version sees it, where its configuration asks for one.
fn own_cache(name: &str, config: &ModelConfig, shared: Option<&Cache>) -> Option<Cache> {
    let asked = config.response_cache.as_ref().is_some_and(|c| c.enable);
    if asked && shared.is_none() {
        tracing::warn!(model = name, "asks for a response cache, the server has none; see `--cache-bytes`");
    }
    shared.filter(|_| asked).map(Cache::of_one_version)
}

type Outputs = Vec<(Arc<str>, edgeward_graph::Tensor)>;

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64
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

/// An error where requests cannot be joined along the first dimension of what the model takes and gives.
fn batches(executor: &Executor) -> Result<(), String> {
    for (what, info) in
        executor.inputs().iter().map(|i| ("input", i)).chain(executor.outputs().iter().map(|o| ("output", o)))
    {
        let first = info.shape.as_ref().map(|dims| dims.first());
        let fixed = match first {
            None | Some(Some(Dim::Symbol(_) | Dim::Dynamic(()))) => continue,
            Some(None) => "is a scalar".to_owned(),
            Some(Some(Dim::Fixed(size))) => format!("has the fixed first dimension {size}"),
        };
        let name = &info.name;
        return Err(format!(
            "`dynamic_batching` needs a batch dimension, {what} `{name}` {fixed}; export the model with a dynamic one, or set `max_batch_size` to 0"
        ));
    }
    Ok(())
}

/// A dimension as the protocol writes it: -1 where it is not fixed.
pub(super) fn wire_dims(info: &TensorInfo) -> Vec<i64> {
    let dims = info.shape.iter().flatten();
    dims.map(|d| if let Dim::Fixed(n) = d { i64::try_from(*n).unwrap_or(-1) } else { -1 }).collect()
}
