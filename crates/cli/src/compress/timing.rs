//! How fast candidates are: all of them in turns on one engine, so that a drift of the machine hits all alike. By successive halving
//! (Jamieson and Talwalkar 2016) the slower half has no further turns where it is clear that it is: the time goes to those that could be
//! chosen.

use std::{
    num::NonZeroUsize,
    time::{Duration, Instant},
};

use edgeward_compress::{choose::Goal, observe::Inputs};
use edgeward_engine::{Engine, RunOptions, Session, SessionOptions, Source};

use super::candidates::Candidate;
use crate::{
    engines,
    failure::{Failure, Outcome},
    inputs::{self, NamedShape, Wanted},
    measure::{self, Load, Summary},
};

/// Items of one run when throughput is measured.
const BATCH: usize = 8;
/// Turns of a candidate that is timed alone, and seconds of each: of a large model a single run takes longer.
const TURNS_ALONE: usize = 3;
const SECONDS_ALONE: f64 = 0.25;
/// A slice ends after so many runs, but not before it took this part of its time: what is fast is known sooner.
const RUNS_ENOUGH: f64 = 500.0;
const SLICE_MIN: f64 = 0.2;
/// Of what takes longer, one run is enough of a slice.
const SLOW_MS: f64 = 50.0;
/// An engine on which everything costs so many times what the best does elsewhere has no further turns in a hurry.
const HOPELESS: f64 = 2.0;
/// Candidates that always go on.
const LANES_MIN: usize = 4;
/// How much slower than the last that goes on a candidate must be: what noise put behind goes on as well.
const CLEARLY: f64 = 1.1;

/// What does not change from engine to engine.
pub struct Timing<'a> {
    /// Threads within one run.
    pub threads: NonZeroUsize,
    /// Shorter slices.
    pub quick: bool,
    /// Shapes of made-up inputs.
    pub shapes: &'a [NamedShape],
    /// What candidates shall be best at.
    pub goal: Goal,
    /// Told before each turn: its number, of how many, and what is left of the time for this engine.
    pub each: &'a dyn Fn(usize, usize, Option<Duration>) -> Outcome,
}

/// A candidate on one engine.
#[derive(Clone, Debug)]
pub struct Timed {
    /// Engine.
    pub engine: String,
    /// Median time of one request.
    pub p50_ms: Option<f64>,
    /// Items per second.
    pub per_second: Option<f64>,
    /// Processor time of one request.
    pub core_ms: Option<f64>,
    /// Why it does not run.
    pub refused: Option<String>,
}

impl Timed {
    /// What is to be small.
    pub fn cost(&self, goal: Goal) -> f64 {
        cost(goal, self.p50_ms, self.per_second, self.core_ms)
    }
}

/// Which figure is the better one.
#[derive(Clone, Copy)]
enum Better {
    Less,
    More,
}

/// A session with its slices so far.
struct Lane {
    session: Result<Box<dyn Session>, String>,
    inputs: Inputs,
    /// For throughput, where the model takes batches.
    many: Option<Inputs>,
    latency: Vec<Summary>,
    throughput: Vec<Summary>,
    /// Milliseconds of a run, one item and many, by the first run, then by the first turn.
    about_ms: (f64, f64),
    /// False where it is too slow to be worth more turns.
    goes_on: bool,
}

impl Timing<'_> {
    /// Times all candidates on `engine`; one that it refuses says why. `least` is the least that a run cost on the engines before.
    pub fn all(
        &self,
        engine: &dyn Engine,
        candidates: &[&Candidate],
        first: Option<&Inputs>,
        least: f64,
    ) -> Result<Vec<Timed>, Failure> {
        let (turns, seconds, rungs) = if self.quick { (3, 0.05, &[1][..]) } else { (7, 0.25, &[2, 4][..]) };
        let mut lanes: Vec<Lane> =
            candidates.iter().map(|candidate| self.lane(engine, candidate, first)).collect::<Result<_, _>>()?;
        let mut took = None;
        for turn in 0..=turns {
            (self.each)(turn + 1, turns + 1, took.map(|took: Duration| took * (turns + 1 - turn) as u32))?;
            let began = Instant::now();
            // What is slow settled what it could in its first run.
            let settled = |lane: &Lane| turn == 0 && self.quick && lane.is_slow();
            for lane in lanes.iter_mut().filter(|lane| lane.goes_on && !settled(lane)) {
                lane.turn(turn, seconds);
            }
            took = (turn > 0).then(|| began.elapsed());
            if rungs.contains(&turn) {
                halve(&mut lanes, self.goal);
            }
            if self.quick && turn > 0 && lanes.iter().all(|lane| lane.cost(self.goal) > least * HOPELESS) {
                break;
            }
        }
        Ok(lanes.into_iter().map(|lane| lane.timed(engine.name())).collect())
    }

    /// Times one candidate alone, in a session that is given back if it works.
    pub fn alone(
        &self,
        engine: &str,
        candidate: &Candidate,
        session: Box<dyn Session>,
        first: Option<&Inputs>,
    ) -> Result<(Timed, Option<Box<dyn Session>>), Failure> {
        let mut lane = self.lane_of(session, candidate, first)?;
        for turn in 0..=TURNS_ALONE {
            (self.each)(turn + 1, TURNS_ALONE + 1, None)?;
            lane.turn(turn, SECONDS_ALONE);
        }
        let timed = lane.timed(engine);
        Ok((timed, lane.session.ok()))
    }

    fn lane(&self, engine: &dyn Engine, candidate: &Candidate, first: Option<&Inputs>) -> Result<Lane, Failure> {
        let options = SessionOptions { threads: Some(self.threads), ..SessionOptions::default() };
        match engine.load(&Source::File(candidate.path.clone()), &options) {
            Ok(session) => self.lane_of(session, candidate, first),
            Err(error) => Ok(Lane { session: Err(error.message().to_owned()), ..Lane::new() }),
        }
    }

    fn lane_of(
        &self,
        session: Box<dyn Session>,
        candidate: &Candidate,
        first: Option<&Inputs>,
    ) -> Result<Lane, Failure> {
        let mut lane = Lane::new();
        let takes_batches = self.shapes.is_empty() && inputs::takes_batches(session.inputs());
        // Real inputs where they come one by one: what is made up may be of a size that the model cannot take.
        lane.inputs = match first.map(|inputs| one(inputs, takes_batches)) {
            Some(inputs) => inputs,
            None => {
                let model = engines::read_model(&candidate.path)?;
                let wanted = Wanted { shapes: self.shapes.to_vec(), batch: Some(1) };
                inputs::synthesise(session.inputs(), &model, &wanted)?
            }
        };
        lane.many = takes_batches.then(|| repeated(&lane.inputs)).flatten();
        // The first run also shows about how long one takes.
        let works = |inputs: &Inputs| {
            let began = Instant::now();
            let ran = session.run(&inputs::borrowed(inputs), RunOptions::default());
            ran.map(|_| began.elapsed().as_secs_f64() * 1e3)
        };
        match works(&lane.inputs) {
            Ok(ms) => lane.about_ms.0 = ms,
            Err(error) => return Ok(Lane { session: Err(error.message().to_owned()), ..lane }),
        }
        match lane.many.as_ref().map(works) {
            Some(Ok(ms)) => lane.about_ms.1 = ms,
            _ => lane.many = None,
        }
        lane.session = Ok(session);
        Ok(lane)
    }
}

/// The slower half of those that go on stops; the original, which all are held against, is the first and goes on.
fn halve(lanes: &mut [Lane], goal: Goal) {
    let mut costs: Vec<f64> = lanes.iter().skip(1).filter(|lane| lane.goes_on).map(|lane| lane.cost(goal)).collect();
    costs.sort_by(f64::total_cmp);
    let Some(&last) = costs.get(costs.len().div_ceil(2).max(LANES_MIN) - 1) else { return };
    for lane in lanes.iter_mut().skip(1) {
        lane.goes_on &= lane.cost(goal) <= last * CLEARLY;
    }
}

/// The first example alone, where the model takes any number.
fn one(inputs: &Inputs, takes_batches: bool) -> Inputs {
    let first = |(name, tensor): &(String, edgeward_graph::Tensor)| {
        let rows = tensor.shape().first().copied().unwrap_or(1);
        let split = (takes_batches && rows > 1).then(|| tensor.split_first(&[1, rows - 1]).ok()).flatten();
        (name.clone(), split.and_then(|parts| parts.into_iter().next()).unwrap_or_else(|| tensor.clone()))
    };
    inputs.iter().map(first).collect()
}

fn repeated(inputs: &Inputs) -> Option<Inputs> {
    let many = |(name, tensor): &(String, edgeward_graph::Tensor)| {
        Some((name.clone(), edgeward_graph::Tensor::concat_first(&[tensor; BATCH]).ok()?))
    };
    inputs.iter().map(many).collect()
}

impl Lane {
    /// Nothing is loaded yet.
    fn new() -> Self {
        Self {
            session: Err(String::new()),
            inputs: Inputs::new(),
            many: None,
            latency: Vec::new(),
            throughput: Vec::new(),
            about_ms: (0.0, 0.0),
            goes_on: true,
        }
    }

    fn is_slow(&self) -> bool {
        self.about_ms.0 + self.about_ms.1 > SLOW_MS
    }

    /// The first turn settles caches and the processor's clock.
    fn turn(&mut self, turn: usize, seconds: f64) {
        self.slice(if turn == 0 { 0.0 } else { seconds });
        if turn == 0 {
            let about = |of: &mut Vec<Summary>| of.drain(..).next().map_or(0.0, |summary| summary.p50_ms);
            self.about_ms = (about(&mut self.latency), about(&mut self.throughput));
        }
    }

    fn slice(&mut self, seconds: f64) {
        let Ok(session) = &self.session else { return };
        let measure = |inputs: &Inputs, batch: usize, about_ms: f64| {
            let named = inputs::borrowed(inputs);
            let enough = about_ms * RUNS_ENOUGH / 1e3;
            let budget = Duration::from_secs_f64(enough.clamp(seconds * SLICE_MIN, seconds));
            let min_runs = if about_ms > SLOW_MS { 1 } else { 2 };
            measure::measure(&Load { sessions: &[session.as_ref()], inputs: &named, batch, budget, min_runs })
        };
        let result = measure(&self.inputs, 1, self.about_ms.0).and_then(|latency| {
            let many = self.many.as_ref().map(|many| measure(many, BATCH, self.about_ms.1)).transpose()?;
            Ok((many.unwrap_or_else(|| latency.clone()), latency))
        });
        match result {
            Ok((throughput, latency)) => {
                self.throughput.push(throughput);
                self.latency.push(latency);
            }
            Err(error) => self.session = Err(error.message().to_owned()),
        }
    }

    fn timed(&self, engine: &str) -> Timed {
        let engine = engine.to_owned();
        match &self.session {
            Err(reason) => {
                Timed { engine, p50_ms: None, per_second: None, core_ms: None, refused: Some(reason.clone()) }
            }
            Ok(_) => {
                let (p50_ms, per_second, core_ms) = (self.p50_ms(), self.per_second(), self.core_ms());
                Timed { engine, p50_ms, per_second, core_ms, refused: None }
            }
        }
    }

    fn p50_ms(&self) -> Option<f64> {
        middle(&self.latency, |summary| summary.p50_ms, Better::Less)
    }

    fn per_second(&self) -> Option<f64> {
        middle(&self.throughput, |summary| summary.per_second, Better::More)
    }

    fn core_ms(&self) -> Option<f64> {
        middle(&self.latency, |summary| summary.core_ms, Better::Less)
    }

    /// What is to be small.
    fn cost(&self, goal: Goal) -> f64 {
        cost(goal, self.p50_ms(), self.per_second(), self.core_ms())
    }
}

/// The median of the slices. Of an even number the better one of the two in the middle: a busy machine makes slices slower, never faster, and two
/// slices, of which one met such a moment, are all that some are judged by.
fn middle(slices: &[Summary], pick: fn(&Summary) -> f64, better: Better) -> Option<f64> {
    let mut values: Vec<f64> = slices.iter().map(pick).collect();
    values.sort_by(f64::total_cmp);
    let at = match better {
        Better::Less => values.len().saturating_sub(1) / 2,
        Better::More => values.len() / 2,
    };
    values.get(at).copied()
}

fn cost(goal: Goal, p50_ms: Option<f64>, per_second: Option<f64>, core_ms: Option<f64>) -> f64 {
    match goal {
        Goal::Throughput => per_second.map_or(f64::INFINITY, |rate| 1.0 / rate),
        Goal::Energy => core_ms.unwrap_or(f64::INFINITY),
        Goal::Latency | Goal::Size => p50_ms.unwrap_or(f64::INFINITY),
    }
}
