//! Which waiting requests run together, and when: pure, told the time, runs nothing.
//!
//! Requests wait in levels of priority, each in the order of arrival. A batch starts with the first request of the
//! highest level and takes along those that have its signature, until it is full. An incomplete batch is held back
//! only while other callers are known to be about, and never longer than the configured delay.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use crate::proto::{ModelDynamicBatching, ModelQueuePolicy, model_queue_policy::TimeoutAction};

/// Requests that may wait for one version, whatever its configuration says.
pub(super) const QUEUE_MAX: usize = 4096;
/// Requests of another signature that are passed over in search of one that fits.
const PASSED_OVER_MAX: usize = 256;
/// Concurrency that was seen longer ago than this many delays says nothing about now.
const MEMORY_DELAYS: u32 = 8;

/// How one level of priority queues.
#[derive(Clone, Debug)]
struct Level {
    /// When its time is over a request runs after all others instead of being refused.
    delays: bool,
    timeout: Option<Duration>,
    /// Requests may shorten the level's timeout.
    overridable: bool,
    max: usize,
}

impl Level {
    fn new(policy: Option<&ModelQueuePolicy>) -> Self {
        let Some(policy) = policy else {
            return Self { delays: false, timeout: None, overridable: true, max: QUEUE_MAX };
        };
        let timeout = Some(policy.default_timeout_microseconds).filter(|&us| us > 0).map(Duration::from_micros);
        Self {
            delays: policy.timeout_action() == TimeoutAction::Delay,
            timeout,
            overridable: policy.allow_timeout_override,
            max: if policy.max_queue_size == 0 { QUEUE_MAX } else { QUEUE_MAX.min(policy.max_queue_size as usize) },
        }
    }

    fn timeout(&self, asked: Option<Duration>) -> Option<Duration> {
        match (self.timeout, asked.filter(|_| self.overridable)) {
            (Some(own), Some(asked)) => Some(own.min(asked)),
            (own, asked) => own.or(asked),
        }
    }
}

/// A request as the queue sees it.
pub(super) struct Entry<T> {
    /// What is carried.
    pub payload: T,
    /// Inferences in it, one at least.
    pub size: usize,
    /// When it came.
    pub arrived: Instant,
    /// Requests of equal signature may run together.
    signature: u64,
    deadline: Option<Instant>,
    delays: bool,
}

/// What came in and is asked to wait.
pub(super) struct Arrival<T> {
    pub payload: T,
    pub size: usize,
    pub signature: u64,
    /// 0 for the default level, 1 for the highest.
    pub priority: u32,
    pub timeout: Option<Duration>,
}

/// Where a request waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ticket {
    level: usize,
    number: u64,
    /// When it is refused, should it still wait then.
    pub refused_at: Option<Instant>,
}

/// Why a request may not wait.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// The level holds this many already.
    Full(usize),
    /// There is no such level, the lowest is this one.
    Priority(usize),
}

/// What is to be done next.
pub(super) enum Take<T> {
    /// Run these together.
    Batch(Vec<Entry<T>>),
    /// Nothing before this moment, unless a request comes.
    Wait(Instant),
    /// Nothing waits.
    Empty,
}

/// The waiting requests of one version.
pub(super) struct Queue<T> {
    levels: Vec<Level>,
    default_level: usize,
    max_batch: usize,
    /// Ascending.
    preferred: Vec<usize>,
    delay: Duration,
    /// One map per level and one for requests whose time is over but that are to run all the same.
    waiting: Vec<BTreeMap<u64, Entry<T>>>,
    next: u64,
    inferences: usize,
    /// No deadline is earlier than this.
    soonest: Option<Instant>,
    /// Most inferences that were queued or running at once, and when that was seen last.
    peak: (usize, Instant),
}

impl<T> Queue<T> {
    /// An empty queue for batches of at most `max_batch`.
    pub fn new(config: &ModelDynamicBatching, max_batch: usize, now: Instant) -> Self {
        let policy = |level: u64| config.priority_queue_policy.get(&level).or(config.default_queue_policy.as_ref());
        let levels: Vec<Level> = (1..=config.priority_levels.max(1)).map(|level| Level::new(policy(level))).collect();
        let mut preferred: Vec<usize> =
            config.preferred_batch_size.iter().filter_map(|&size| usize::try_from(size).ok()).collect();
        preferred.sort_unstable();
        Self {
            default_level: (config.default_priority_level.max(1) - 1) as usize,
            max_batch,
            preferred,
            delay: Duration::from_micros(config.max_queue_delay_microseconds),
            waiting: (0..=levels.len()).map(|_| BTreeMap::new()).collect(),
            levels,
            next: 0,
            inferences: 0,
            soonest: None,
            peak: (0, now),
        }
    }

    /// Inferences that wait.
    pub fn inferences(&self) -> usize {
        self.inferences
    }

    /// Takes a request in. `running` is how many inferences run now.
    pub fn push(&mut self, arrival: Arrival<T>, running: usize, now: Instant) -> Result<Ticket, Refused> {
        let level = match arrival.priority as usize {
            0 => self.default_level,
            // Models without levels take every priority alike, as clients set it without knowing the model.
            _ if self.levels.len() == 1 => 0,
            priority => priority - 1,
        };
        let lowest = self.levels.len();
        let (Some(policy), Some(waiting)) = (self.levels.get(level), self.waiting.get_mut(level)) else {
            return Err(Refused::Priority(lowest));
        };
        if waiting.len() >= policy.max {
            return Err(Refused::Full(policy.max));
        }
        let deadline = policy.timeout(arrival.timeout).and_then(|timeout| now.checked_add(timeout));
        let (size, delays) = (arrival.size.max(1), policy.delays);
        let ticket = Ticket { level, number: self.next, refused_at: deadline.filter(|_| !delays) };
        let (payload, signature) = (arrival.payload, arrival.signature);
        waiting.insert(self.next, Entry { payload, size, arrived: now, signature, deadline, delays });
        self.next += 1;
        self.inferences += size;
        self.soonest = self.soonest.into_iter().chain(deadline).min();
        self.saw(self.inferences + running, now);
        Ok(ticket)
    }

    fn saw(&mut self, concurrent: usize, now: Instant) {
        if concurrent >= self.peak.0 || self.forgotten(now) {
            self.peak = (concurrent, now);
        }
    }

    fn forgotten(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.peak.1) > self.delay * MEMORY_DELAYS
    }

    /// Takes a request out that need not run any more; none where it no longer waits.
    pub fn remove(&mut self, ticket: Ticket) -> Option<T> {
        let late = self.levels.len();
        let found = [ticket.level, late].into_iter().find_map(|at| self.waiting.get_mut(at)?.remove(&ticket.number))?;
        self.inferences -= found.size;
        Some(found.payload)
    }

    /// What to run now. Requests whose time is over go to `expired`, or behind all others where their level says so.
    pub fn take(&mut self, running: usize, now: Instant, expired: &mut Vec<T>) -> Take<T> {
        self.expire(now, expired);
        let Some(pick) = self.pick() else { return Take::Empty };
        let due = pick.oldest + self.delay;
        if !pick.full && pick.size < self.goal(running, now) && now < due {
            return Take::Wait(due);
        }
        if !pick.full && now >= due {
            // The others did not come.
            self.peak = (self.inferences + running, now);
        }
        let mut batch = Vec::with_capacity(pick.chosen.len());
        for (level, number) in self.preferred_part(pick) {
            batch.extend(self.waiting.get_mut(level).and_then(|waiting| waiting.remove(&number)));
        }
        self.inferences -= batch.iter().map(|entry| entry.size).sum::<usize>();
        Take::Batch(batch)
    }

    fn expire(&mut self, now: Instant, expired: &mut Vec<T>) {
        if self.soonest.is_none_or(|soonest| soonest > now) {
            return;
        }
        let late_at = self.levels.len();
        let mut late = Vec::new();
        for waiting in self.waiting.iter_mut().take(late_at) {
            let over = waiting.extract_if(.., |_, entry| entry.deadline.is_some_and(|deadline| deadline <= now));
            late.extend(over);
        }
        for (number, entry) in late {
            if entry.delays {
                if let Some(last) = self.waiting.get_mut(late_at) {
                    last.insert(number, entry);
                }
            } else {
                self.inferences -= entry.size;
                expired.push(entry.payload);
            }
        }
        let in_time = self.waiting.iter().take(late_at).flat_map(BTreeMap::values);
        self.soonest = in_time.filter_map(|entry| entry.deadline).min();
    }

    /// Inferences worth waiting for: no more than callers that were there at once lately, whose requests may return.
    fn goal(&self, running: usize, now: Instant) -> usize {
        if self.delay.is_zero() || self.forgotten(now) {
            return 0;
        }
        let wanted = self.preferred.last().copied().unwrap_or(self.max_batch);
        wanted.min(self.peak.0.saturating_sub(running))
    }

    fn pick(&self) -> Option<Pick> {
        let mut all =
            self.waiting.iter().enumerate().flat_map(|(level, of)| of.iter().map(move |(n, e)| (level, n, e)));
        let (level, &number, first) = all.next()?;
        let mut pick = Pick {
            chosen: vec![(level, number, first.size)],
            size: first.size,
            oldest: first.arrived,
            full: first.size >= self.max_batch,
        };
        let mut passed_over = 0;
        for (level, &number, entry) in all {
            if pick.full || passed_over >= PASSED_OVER_MAX {
                break;
            }
            if entry.signature != first.signature {
                passed_over += 1;
            } else if pick.size + entry.size > self.max_batch {
                // The next one opens the next batch; overtaking it would starve large requests.
                pick.full = true;
            } else {
                pick.chosen.push((level, number, entry.size));
                pick.size += entry.size;
                pick.oldest = pick.oldest.min(entry.arrived);
                pick.full = pick.size == self.max_batch;
            }
        }
        Some(pick)
    }

    /// The largest beginning of a pick that has a preferred size; the whole where none has.
    fn preferred_part(&self, pick: Pick) -> Vec<(usize, u64)> {
        let (mut size, mut keep) = (0, 0);
        for (index, (_, _, one)) in pick.chosen.iter().enumerate() {
            size += one;
            if self.preferred.contains(&size) {
                keep = index + 1;
            }
        }
        let keep = if keep == 0 { pick.chosen.len() } else { keep };
        pick.chosen.into_iter().take(keep).map(|(level, number, _)| (level, number)).collect()
    }
}

struct Pick {
    /// Level, number and size of each.
    chosen: Vec<(usize, u64, usize)>,
    size: usize,
    oldest: Instant,
    /// No other request fits in.
    full: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn queue(config: ModelDynamicBatching, max: usize) -> (Queue<u32>, Instant) {
        let now = Instant::now();
        (Queue::new(&config, max, now), now)
    }

    fn policy(timeout: TimeoutAction, timeout_us: u64, max: u32) -> Option<ModelQueuePolicy> {
        Some(ModelQueuePolicy {
            timeout_action: timeout as i32,
            default_timeout_microseconds: timeout_us,
            allow_timeout_override: true,
            max_queue_size: max,
        })
    }

    fn of(payload: u32, size: usize) -> Arrival<u32> {
        Arrival { payload, size, signature: 0, priority: 0, timeout: None }
    }

    fn push(queue: &mut Queue<u32>, payloads: std::ops::Range<u32>, now: Instant) {
        for payload in payloads {
            queue.push(of(payload, 1), 0, now).unwrap();
        }
    }

    fn batch(queue: &mut Queue<u32>, now: Instant) -> Vec<u32> {
        let mut expired = Vec::new();
        match queue.take(0, now, &mut expired) {
            Take::Batch(batch) => batch.into_iter().map(|e| e.payload).collect(),
            Take::Wait(_) | Take::Empty => Vec::new(),
        }
    }

    #[test]
    fn batches_keep_order_and_maximum() {
        let (mut queue, now) = queue(ModelDynamicBatching::default(), 4);
        for (payload, size) in [(1, 2), (2, 1), (3, 2), (4, 4), (5, 1)] {
            queue.push(of(payload, size), 0, now).unwrap();
        }
        queue.push(Arrival { signature: 7, ..of(6, 1) }, 0, now).unwrap();
        let all: Vec<_> = (0..4).map(|_| batch(&mut queue, now)).collect();
        assert_eq!(all, [vec![1, 2], vec![3], vec![4], vec![5]]);
        assert_eq!((batch(&mut queue, now), batch(&mut queue, now), queue.inferences()), (vec![6], vec![], 0));
    }

    #[test]
    fn one_caller_never_waits_and_several_wait_for_each_other() {
        let config = ModelDynamicBatching { max_queue_delay_microseconds: 10_000, ..Default::default() };
        let (mut queue, mut now) = queue(config, 8);
        for payload in 0..5 {
            queue.push(of(payload, 1), 0, now).unwrap();
            assert_eq!(batch(&mut queue, now), [payload]);
            now += MS;
        }
        // Three at once: after their batch, the first that returns waits for the other two, and not for more.
        push(&mut queue, 10..13, now);
        assert_eq!(batch(&mut queue, now), [10, 11, 12]);
        queue.push(of(20, 1), 0, now).unwrap();
        assert!(matches!(queue.take(0, now, &mut Vec::new()), Take::Wait(until) if until == now + 10 * MS));
        push(&mut queue, 21..23, now);
        assert_eq!(batch(&mut queue, now), [20, 21, 22]);
        // They stay away: the wait ends with the delay, and the next request does not wait.
        queue.push(of(30, 1), 0, now).unwrap();
        assert_eq!(batch(&mut queue, now), [] as [u32; 0]);
        now += 10 * MS;
        assert_eq!(batch(&mut queue, now), [30]);
        queue.push(of(31, 1), 0, now).unwrap();
        assert_eq!(batch(&mut queue, now), [31]);
    }

    #[test]
    fn preferred_sizes_cut_a_batch() {
        let config = ModelDynamicBatching { preferred_batch_size: vec![4, 2], ..Default::default() };
        let (mut queue, now) = queue(config, 8);
        push(&mut queue, 0..7, now);
        assert_eq!(batch(&mut queue, now), [0, 1, 2, 3]);
        assert_eq!(batch(&mut queue, now), [4, 5]);
        assert_eq!(batch(&mut queue, now), [6]);
    }

    #[test]
    fn levels_overtake_and_have_policies_of_their_own() {
        let config = ModelDynamicBatching {
            priority_levels: 2,
            default_priority_level: 2,
            priority_queue_policy: [(1, policy(TimeoutAction::Reject, 0, 1).unwrap())].into(),
            ..Default::default()
        };
        let (mut queue, now) = queue(config, 1);
        queue.push(of(1, 1), 0, now).unwrap();
        queue.push(Arrival { priority: 1, ..of(2, 1) }, 0, now).unwrap();
        assert_eq!(queue.push(Arrival { priority: 1, ..of(3, 1) }, 0, now), Err(Refused::Full(1)));
        assert_eq!(queue.push(Arrival { priority: 3, ..of(3, 1) }, 0, now), Err(Refused::Priority(2)));
        assert_eq!((batch(&mut queue, now), batch(&mut queue, now)), (vec![2], vec![1]));
    }

    #[test]
    fn time_runs_out_by_refusal_or_by_waiting_longer() {
        for (action, expired, order) in
            [(TimeoutAction::Reject, vec![1], [2, 0]), (TimeoutAction::Delay, vec![], [2, 1])]
        {
            let config = ModelDynamicBatching { default_queue_policy: policy(action, 2000, 0), ..Default::default() };
            let (mut queue, now) = queue(config, 1);
            let ticket = queue.push(Arrival { timeout: Some(MS), ..of(1, 1) }, 0, now).unwrap();
            queue.push(Arrival { timeout: Some(9 * MS), ..of(2, 1) }, 0, now + MS).unwrap();
            assert_eq!(ticket.refused_at, (action == TimeoutAction::Reject).then_some(now + MS));
            let mut gone = Vec::new();
            let mut ran = [0, 0];
            for slot in &mut ran {
                if let Take::Batch(batch) = queue.take(0, now + MS, &mut gone) {
                    *slot = batch[0].payload;
                }
            }
            assert_eq!((gone, ran), (expired, order), "{action:?}");
        }
    }

    #[test]
    fn what_is_removed_never_runs() {
        let (mut queue, now) = queue(ModelDynamicBatching::default(), 8);
        let tickets: Vec<_> = (0..QUEUE_MAX as u32).map(|p| queue.push(of(p, 1), 0, now).unwrap()).collect();
        assert_eq!(queue.push(of(0, 1), 0, now), Err(Refused::Full(QUEUE_MAX)));
        for ticket in &tickets[1..] {
            assert!(queue.remove(*ticket).is_some() && queue.remove(*ticket).is_none());
        }
        assert_eq!((batch(&mut queue, now), queue.inferences()), (vec![0], 0));
    }
}
