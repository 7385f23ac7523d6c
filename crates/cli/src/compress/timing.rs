//! How fast candidates are: all of them in turns on one engine, so that a drift of the machine hits all alike.

use std::{num::NonZeroUsize, time::Duration};

use edgeward_compress::{choose::Goal, observe::Inputs};
use edgeward_engine::{Engine, RunOptions, Session, SessionOptions, Source};

use super::candidates::Candidate;
use crate::{
    engines,
    failure::Failure,
    inputs::{self, NamedShape, Wanted},
    measure::{self, Load, Summary},
};

/// Items of one run when throughput is measured.
const BATCH: usize = 8;

/// What does not change from engine to engine.
pub struct Timing<'a> {
    /// Threads within one run.
    pub threads: NonZeroUsize,
    /// Shorter slices.
    pub quick: bool,
    /// Shapes of made-up inputs.
    pub shapes: &'a [NamedShape],
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
    /// Why it does not run.
    pub refused: Option<String>,
}

impl Timed {
    /// What is to be small.
    pub fn cost(&self, goal: Goal) -> f64 {
        match goal {
            Goal::Throughput => self.per_second.map_or(f64::INFINITY, |rate| 1.0 / rate),
            _ => self.p50_ms.unwrap_or(f64::INFINITY),
        }
    }
}

/// A session with its slices so far.
struct Lane {
    session: Result<Box<dyn Session>, String>,
    inputs: Inputs,
    /// For throughput, where the model takes batches.
    many: Option<Inputs>,
    latency: Vec<Summary>,
    throughput: Vec<Summary>,
}

impl Timing<'_> {
    /// Times all candidates on `engine`; one that it refuses says why.
    pub fn all(
        &self,
        engine: &dyn Engine,
        candidates: &[&Candidate],
        first: Option<&Inputs>,
    ) -> Result<Vec<Timed>, Failure> {
        let (turns, seconds) = if self.quick { (3, 0.05) } else { (7, 0.25) };
        let mut lanes: Vec<Lane> =
            candidates.iter().map(|candidate| self.lane(engine, candidate, first)).collect::<Result<_, _>>()?;
        for turn in 0..=turns {
            for lane in &mut lanes {
                // The first turn settles caches and the processor's clock.
                lane.slice(if turn == 0 { 0.0 } else { seconds });
                if turn == 0 {
                    lane.latency.clear();
                    lane.throughput.clear();
                }
            }
        }
        Ok(lanes.into_iter().map(|lane| lane.timed(engine.name())).collect())
    }

    fn lane(&self, engine: &dyn Engine, candidate: &Candidate, first: Option<&Inputs>) -> Result<Lane, Failure> {
        let options = SessionOptions { threads: Some(self.threads), ..SessionOptions::default() };
        let loaded = engine.load(&Source::File(candidate.path.clone()), &options);
        let mut lane = Lane {
            session: Err(String::new()),
            inputs: Inputs::new(),
            many: None,
            latency: Vec::new(),
            throughput: Vec::new(),
        };
        let session = match loaded {
            Ok(session) => session,
            Err(error) => return Ok(Lane { session: Err(error.message().to_owned()), ..lane }),
        };
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
        let works = |inputs: &Inputs| session.run(&inputs::borrowed(inputs), RunOptions::default()).map(drop);
        if let Err(error) = works(&lane.inputs) {
            return Ok(Lane { session: Err(error.message().to_owned()), ..lane });
        }
        lane.many = lane.many.take().filter(|many| works(many).is_ok());
        lane.session = Ok(session);
        Ok(lane)
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
    fn slice(&mut self, seconds: f64) {
        let Ok(session) = &self.session else { return };
        let measure = |inputs: &Inputs, batch: usize| {
            let named = inputs::borrowed(inputs);
            let budget = Duration::from_secs_f64(seconds);
            measure::measure(&Load { sessions: &[session.as_ref()], inputs: &named, batch, budget, min_runs: 2 })
        };
        let result = measure(&self.inputs, 1).and_then(|latency| {
            let many = self.many.as_ref().map(|many| measure(many, BATCH)).transpose()?;
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

    fn timed(self, engine: &str) -> Timed {
        let engine = engine.to_owned();
        if let Err(reason) = self.session {
            return Timed { engine, p50_ms: None, per_second: None, refused: Some(reason) };
        }
        let median = |slices: &[Summary], pick: fn(&Summary) -> f64| {
            let mut values: Vec<f64> = slices.iter().map(pick).collect();
            values.sort_by(f64::total_cmp);
            values.get(values.len() / 2).copied()
        };
        Timed {
            engine,
            p50_ms: median(&self.latency, |summary| summary.p50_ms),
            per_second: median(&self.throughput, |summary| summary.per_second),
            refused: None,
        }
    }
}
