//! Runs waiting requests, together where the model batches: one queue, as many runs at once as there are instances.
//!
//! What goes together, and when, is [`queue`](super::queue)'s to say; this room holds the lock, the clock and the
//! threads. A run that ends takes the next batch on its own thread, so that a busy server hands nothing over.

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash, Hasher},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use edgeward_engine::Cancel;
use parking_lot::Mutex;
use tokio::{
    runtime::{Handle, RuntimeFlavor},
    sync::oneshot,
    task::block_in_place,
    time::{sleep_until, timeout_at},
};

use crate::{
    core::{
        InferRequest, ServeError, ServeErrorKind,
        execute::{Executor, INLINE_US_MAX, Ran},
        queue::{Arrival, Entry, Queue, Refused, Take, Ticket},
    },
    proto::ModelDynamicBatching,
};

type Reply = Result<(Ran, Duration), ServeError>;

struct Job {
    request: InferRequest,
    reply: oneshot::Sender<Reply>,
    caller: Arc<Caller>,
}

/// Who waits for an answer.
#[derive(Default)]
struct Caller(Mutex<Stage>);

#[derive(Default)]
enum Stage {
    #[default]
    Queued,
    Running(Arc<Together>),
    Gone,
}

/// The callers of one run. Once all are gone nobody needs it.
struct Together {
    left: AtomicUsize,
    cancel: Cancel,
}

impl Caller {
    /// Its request runs now, in the run of these.
    fn runs(&self, together: &Arc<Together>) {
        let mut stage = self.0.lock();
        match *stage {
            Stage::Gone => together.leave(),
            _ => *stage = Stage::Running(together.clone()),
        }
    }

    fn leave(&self) {
        if let Stage::Running(together) = std::mem::replace(&mut *self.0.lock(), Stage::Gone) {
            together.leave();
        }
    }
}

impl Together {
    fn leave(&self) {
        if self.left.fetch_sub(1, SeqCst) == 1 {
            self.cancel.cancel();
        }
    }
}

/// The queue of a version.
pub(super) struct Batcher {
    shared: Arc<Shared>,
}

struct Shared {
    executor: Arc<Executor>,
    state: Mutex<State>,
    instances: usize,
    /// 1 where each request runs alone.
    max_batch: usize,
    /// Answers leave in the order of their requests.
    ordered: Option<Mutex<Ordered>>,
}

struct State {
    queue: Queue<Job>,
    /// Runs now, and the inferences in them.
    running: usize,
    running_inferences: usize,
    started: u64,
    timer: Option<Instant>,
}

/// Answers that wait for those before them.
#[derive(Default)]
struct Ordered {
    next: u64,
    done: BTreeMap<u64, Vec<(oneshot::Sender<Reply>, Reply)>>,
}

/// How long a run takes, for whose thread runs it.
enum Pace {
    /// Shorter than any hand-over: on whatever thread it comes to.
    Short,
    /// On the caller's thread, whose other work moves to another meanwhile.
    Middling,
    /// On a thread of its own, so that a caller who goes away can end it.
    Long,
}

/// Runs longer than this leave the caller's thread.
const HELD_US_MAX: u64 = 20_000;

/// A batch on its way, with its place among all batches.
struct Batch {
    number: u64,
    entries: Vec<Entry<Job>>,
    size: usize,
}

impl Batcher {
    pub(super) fn new(
        executor: Arc<Executor>,
        config: &ModelDynamicBatching,
        max_batch: usize,
        instances: usize,
    ) -> Self {
        let max_batch = max_batch.max(1);
        let queue = Queue::new(config, max_batch, Instant::now());
        let state = State { queue, running: 0, running_inferences: 0, started: 0, timer: None };
        let ordered = config.preserve_ordering.then(Mutex::default);
        Self { shared: Arc::new(Shared { executor, state: Mutex::new(state), instances, max_batch, ordered }) }
    }

    /// Answers a request of `size` inferences, with the time that it waited. Dropping the future takes it out of the
    /// queue, or ends its run where the engine can and all whose requests are in it have gone.
    pub(super) async fn infer(&self, mut request: InferRequest, size: usize) -> Reply {
        // Where requests run alone, each is one run, however many inferences it holds.
        let size = if self.shared.max_batch > 1 { size } else { 1 };
        if let Some(pace) = self.shared.enter_at_once(size, request.beside) {
            let run = || self.shared.executor.run(&request, None);
            let ran = if let Pace::Middling = pace { block_in_place(run) } else { run() };
            if let Some(next) = self.shared.next(Some(size)) {
                self.shared.start(next);
            }
            return ran.map(|ran| (ran, Duration::ZERO));
        }
        // Requests that name the same inputs in another order may run together.
        request.inputs.sort_by(|(a, _), (b, _)| a.cmp(b));
        let (reply, answer) = oneshot::channel();
        let name = request.model.name.clone();
        let caller = Arc::new(Caller::default());
        let ticket = self.enter(Job { request, reply, caller: caller.clone() }, size)?;
        let mut waiting = Waiting { shared: &self.shared, ticket: Some(ticket), caller };
        self.shared.pump();
        let mut answer = std::pin::pin!(answer);
        let received = match ticket.refused_at {
            None => answer.await,
            Some(at) => match timeout_at(at.into(), answer.as_mut()).await {
                Ok(received) => received,
                Err(_) if waiting.leave() => return Err(too_late(&name)),
                // It runs already; only waiting is bounded.
                Err(_) => answer.await,
            },
        };
        waiting.ticket = None;
        received.unwrap_or_else(|_| Err(ServeError::new(ServeErrorKind::Internal, "the run ended without an answer")))
    }

    fn enter(&self, job: Job, size: usize) -> Result<Ticket, ServeError> {
        let request = &job.request;
        let (name, timeout, priority) = (request.model.name.clone(), request.timeout, request.priority);
        // Hashing needs no lock, and nobody asks for it where requests run alone.
        let signature = if self.shared.max_batch > 1 { signature(request) } else { 0 };
        let mut state = self.shared.state.lock();
        let estimate = self.shared.estimate(&state);
        ServeError::if_too_long(&name, estimate, timeout)?;
        let arrival = Arrival { payload: job, size, signature, priority, timeout };
        let running = state.running_inferences;
        state.queue.push(arrival, running, Instant::now()).map_err(|refused| match refused {
            Refused::Full(max) => ServeError::queue_full(&name, max, estimate),
            Refused::Priority(lowest) => ServeError::new(
                ServeErrorKind::InvalidArgument,
                format!("priority {priority} is unknown, model `{name}` has the levels 1 to {lowest}"),
            ),
        })
    }
}

fn too_late(name: &str) -> ServeError {
    let text = format!("the request waited for model `{name}` longer than its time allows");
    ServeError::new(ServeErrorKind::DeadlineExceeded, text)
}

/// What must be equal for two requests to run together: inputs with types and all sizes but the first, outputs.
fn signature(request: &InferRequest) -> u64 {
    let mut hasher = DefaultHasher::new();
    for (name, tensor) in &request.inputs {
        (name, tensor.dtype().to_onnx(), tensor.shape().get(1..)).hash(&mut hasher);
    }
    request.outputs.iter().for_each(|output| output.name.hash(&mut hasher));
    hasher.finish()
}

/// Takes a request out of the queue when its caller goes away, or ends its run.
struct Waiting<'a> {
    shared: &'a Shared,
    ticket: Option<Ticket>,
    caller: Arc<Caller>,
}

impl Waiting<'_> {
    /// False where the request runs already.
    fn leave(&mut self) -> bool {
        let Some(ticket) = self.ticket.take() else { return false };
        // The payload is dropped after the lock.
        let removed = self.shared.state.lock().queue.remove(ticket);
        removed.is_some()
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if self.ticket.is_some() && !self.leave() {
            self.caller.leave();
        }
    }
}

impl Shared {
    /// How long a request that came now would wait.
    fn estimate(&self, state: &State) -> Duration {
        if state.running < self.instances {
            return Duration::ZERO;
        }
        let ahead = (state.queue.inferences() / self.max_batch) as u64 + 1;
        Duration::from_micros(self.executor.run_us().unwrap_or(0).saturating_mul(ahead) / self.instances as u64)
    }

    /// Takes an instance for a run alone on the caller's own thread, which costs less than a hand-over there and one back.
    /// None where none is free, others wait, requests run together, or the thread must not be held. What is taken for
    /// a short run stays one: other runs may change the average meanwhile.
    fn enter_at_once(&self, size: usize, beside: bool) -> Option<Pace> {
        let pace = self.pace();
        let held = match pace {
            Pace::Short => true,
            Pace::Middling => !beside && Handle::current().runtime_flavor() == RuntimeFlavor::MultiThread,
            Pace::Long => false,
        };
        if !held || self.max_batch > 1 || self.ordered.is_some() {
            return None;
        }
        let mut state = self.state.lock();
        if state.running >= self.instances || state.queue.inferences() > 0 {
            return None;
        }
        state.running += 1;
        state.running_inferences += size;
        Some(pace)
    }

    fn pace(&self) -> Pace {
        match self.executor.run_us() {
            Some(us) if us <= INLINE_US_MAX => Pace::Short,
            Some(us) if us <= HELD_US_MAX => Pace::Middling,
            _ => Pace::Long,
        }
    }

    /// Starts a run for each free instance while there is something to run.
    fn pump(self: &Arc<Self>) {
        while let Some(batch) = self.next(None) {
            self.start(batch);
        }
    }

    /// Runs a batch and those that wait when it ends.
    fn start(self: &Arc<Self>, batch: Batch) {
        let this = self.clone();
        if matches!(self.pace(), Pace::Short) {
            tokio::spawn(async move {
                let mut batch = Some(batch);
                while let Some(one) = batch {
                    batch = this.run(one);
                    tokio::task::yield_now().await;
                }
            });
        } else {
            tokio::task::spawn_blocking(move || {
                let mut batch = Some(batch);
                while let Some(one) = batch {
                    batch = this.run(one);
                }
            });
        }
    }

    /// The next batch, where an instance is free; `ended` is the size of the caller's own run, which has just ended.
    fn next(self: &Arc<Self>, ended: Option<usize>) -> Option<Batch> {
        let mut expired = Vec::new();
        let batch = self.next_locked(ended, &mut expired);
        for job in expired {
            let error = too_late(&job.request.model.name);
            let _ = job.reply.send(Err(error));
        }
        batch
    }

    fn next_locked(self: &Arc<Self>, ended: Option<usize>, expired: &mut Vec<Job>) -> Option<Batch> {
        let mut state = self.state.lock();
        if let Some(size) = ended {
            state.running -= 1;
            state.running_inferences -= size;
        }
        if state.running >= self.instances {
            return None;
        }
        let running = state.running_inferences;
        match state.queue.take(running, Instant::now(), expired) {
            Take::Batch(entries) => {
                let size = entries.iter().map(|entry| entry.size).sum();
                state.running += 1;
                state.running_inferences += size;
                state.started += 1;
                Some(Batch { number: state.started - 1, entries, size })
            }
            Take::Wait(until) => {
                if state.timer.is_none_or(|set| until < set) {
                    state.timer = Some(until);
                    let this = self.clone();
                    tokio::spawn(async move {
                        sleep_until(until.into()).await;
                        this.state.lock().timer.take_if(|set| *set == until);
                        this.pump();
                    });
                }
                None
            }
            Take::Empty => None,
        }
    }

    /// Runs a batch, answers its requests, and takes the next.
    fn run(self: &Arc<Self>, batch: Batch) -> Option<Batch> {
        let began = Instant::now();
        let together = Arc::new(Together { left: AtomicUsize::new(batch.entries.len()), cancel: Cancel::default() });
        let (mut waited, mut replies, mut requests) = (Vec::new(), Vec::new(), Vec::new());
        for entry in batch.entries {
            waited.push(began.saturating_duration_since(entry.arrived));
            replies.push(entry.payload.reply);
            requests.push(entry.payload.request);
            entry.payload.caller.runs(&together);
        }
        tracing::trace!(model = &*self.executor.name, requests = requests.len(), "a run begins");
        let results = self.executor.run_together(&requests, &together.cancel);
        let answers = results.into_iter().zip(waited).map(|(result, waited)| result.map(|ran| (ran, waited)));
        self.answer(batch.number, replies.into_iter().zip(answers).collect());
        self.next(Some(batch.size))
    }

    fn answer(&self, number: u64, answers: Vec<(oneshot::Sender<Reply>, Reply)>) {
        let send = |answers: Vec<(oneshot::Sender<Reply>, Reply)>| {
            for (reply, answer) in answers {
                // A caller that has gone needs none.
                let _ = reply.send(answer);
            }
        };
        let Some(ordered) = &self.ordered else { return send(answers) };
        let mut ordered = ordered.lock();
        ordered.done.insert(number, answers);
        while let Some(answers) = {
            let next = ordered.next;
            ordered.done.remove(&next)
        } {
            ordered.next += 1;
            send(answers);
        }
    }
}
