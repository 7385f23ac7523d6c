//! How candidates are trained, whatever they learn: by the first engine that can, shown on the bar, ended by Ctrl-C.

use anyhow::anyhow;
use edgeward_engine::{Engine, Session, SessionOptions, Source};
use edgeward_graph::Model;
use edgeward_train::{
    Step,
    data::Loader,
    trainer::{End, EpochReport, Go, Run, Settings, Stepped, Trained, Watch, train},
};
use indicatif::ProgressBar;

use super::Work;
use crate::{failure::Failure, interrupt, train::failed};

/// A run of training.
pub struct Lesson<'a> {
    /// What is trained.
    pub forward: &'a Model,
    /// Its step.
    pub step: &'a Step,
    /// What it learns from.
    pub data: Loader,
    /// What it is judged by, where it is.
    pub judge: Option<Loader>,
    /// How it goes.
    pub settings: Settings,
    /// What is shown meanwhile.
    pub title: &'a str,
}

impl Work<'_> {
    /// The engine that runs a step, and its session.
    pub fn trains(&self, step: &Step) -> Result<(&dyn Engine, Box<dyn Session>), Failure> {
        let source = Source::Bytes(step.graph.to_bytes()?.into());
        let options = SessionOptions { lower: true, ..self.options() };
        let mut reasons = Vec::new();
        for engine in &self.engines {
            match engine.load(&source, &options) {
                Ok(session) => return Ok((engine.as_ref(), session)),
                Err(error) => reasons.push(error.to_string()),
            }
        }
        Err(Failure::Work(anyhow!("no engine runs the training step: {}", reasons.join("; "))))
    }

    /// Trains to the end.
    pub fn train(&self, lesson: Lesson<'_>) -> Result<Trained, Failure> {
        let (engine, session) = self.trains(lesson.step)?;
        let Lesson { forward, step, data, judge, settings, title } = lesson;
        let mut watch = Watching { bar: &self.bar, title, epochs: settings.epochs };
        let (session, options) = (session.as_ref(), self.options());
        let run = Run { forward, step, session, engine, options, data, judge, settings };
        let trained = train(&run, None, &mut watch).map_err(failed)?;
        if trained.end == End::Stopped {
            return Err(self.interrupted());
        }
        Ok(trained)
    }
}

/// Shows how far a run is, and ends it where it is interrupted.
struct Watching<'a> {
    bar: &'a ProgressBar,
    title: &'a str,
    epochs: u64,
}

impl Watching<'_> {
    fn go() -> Go {
        if interrupt::came() { Go::Stop } else { Go::On }
    }
}

impl Watch for Watching<'_> {
    fn stepped(&mut self, step: &Stepped) -> Go {
        let (epoch, batch) = (step.epoch + 1, step.batch + 1);
        let place = format!("epoch {epoch} of {}, batch {batch} of {}", self.epochs, step.batches);
        self.bar.set_message(format!("{}: {place}, loss {:.4}", self.title, step.loss));
        Self::go()
    }

    fn epoch(&mut self, _report: &EpochReport) -> Go {
        Self::go()
    }
}
