//! Candidates with fewer channels, neurons and heads: cut a part, train on, cut on, then quantise as well.
//!
//! What can go and what matters is `edgeward-compress`'s; the training is that of `edgeward train`, by `[train]` of the
//! settings. The last epoch counts: the data that judges candidates chooses none.

use std::rc::Rc;

use edgeward_compress::{
    CompressError,
    observe::Inputs,
    prepare,
    prune::{
        Norm, Plan, Scores, Selection, Target, activations, apply, blocks, choose, gradients, influence, magnitude,
        normalisation, plan, ready, taylor, without,
    },
    report::DataKind,
};
use edgeward_graph::Model;
use edgeward_train::{Pattern, build, trainer::Settings};
use serde::{Deserialize, Serialize};

use super::{GoalName, Work, candidates::Candidate, training::Lesson};
use crate::{
    Context, engines,
    failure::{Failure, OrInput as _, Outcome},
    print,
    train::{
        failed,
        material::{Material, Recipe},
        options::TrainOptions,
        plan::Planned,
    },
};

/// Times through the data that a ratio is tuned for, where nobody says so.
const EPOCHS: u64 = 6;
/// Cuts on the way to a ratio, at most.
const CUTS: u64 = 3;
/// The part of each group's channels that stays at least.
const FLOOR: f64 = 0.1;
/// Channels that stay in a wide group are a multiple of this.
const MULTIPLE: usize = 8;
/// Batches that gradients are told by, and examples that activations are observed on.
const BATCHES: usize = 16;
const EXAMPLES: usize = 256;
/// Layers that are named, where they stay as they are.
const NAMED: usize = 8;

/// Options of pruning.
#[derive(clap::Args)]
pub struct PruneOptions {
    /// Also take out channels, neurons and heads until this part of the multiply-adds is gone, with `--for size` of the
    /// weights; several ratios between commas
    #[arg(long = "prune", value_name = "RATIO,…", value_delimiter = ',', value_parser = ratio)]
    ratios: Vec<f64>,
    /// Also take out so many whole blocks, those that change least what goes past them; several counts between commas. With `--prune` channels
    /// are cut of what is left
    #[arg(long = "prune-blocks", value_name = "N,…", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..))]
    blocks: Vec<u32>,
    /// What says how much a channel matters
    #[arg(long, value_name = "NAME", default_value = "magnitude", requires = "ratios")]
    importance: ImportanceName,
}

impl PruneOptions {
    /// The first option that takes something out.
    pub fn asks_to_cut(&self) -> Option<&'static str> {
        let ratios = (!self.ratios.is_empty()).then_some("--prune");
        ratios.or((!self.blocks.is_empty()).then_some("--prune-blocks"))
    }

    /// What is made on the way down, in order.
    fn stops(&self) -> Vec<Stop> {
        let (mut ratios, mut blocks) = (self.ratios.clone(), self.blocks.clone());
        ratios.sort_by(f64::total_cmp);
        ratios.dedup();
        blocks.sort_unstable();
        blocks.dedup();
        let mut stops: Vec<Stop> =
            blocks.into_iter().map(Stop::Blocks).chain(ratios.into_iter().map(Stop::Ratio)).collect();
        // Ratios that differ by less than their names tell are one.
        stops.dedup_by_key(|stop| stop.name());
        stops
    }
}

/// An importance by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum ImportanceName {
    /// Root of the sum of squares of all weights that belong to it
    Magnitude,
    /// Sum of the sizes of all weights that belong to it
    L1,
    /// Scales of its normalisations
    Scale,
    /// What the loss would do without it, by gradients on labelled data
    Taylor,
    /// Mean size of what it makes on data
    Activation,
}

fn ratio(text: &str) -> Result<f64, String> {
    let value: f64 = text.parse().map_err(|_| format!("`{text}` is no number"))?;
    if value > 0.0 && value < 1.0 { Ok(value) } else { Err("expected more than 0 and less than 1".to_owned()) }
}

/// Where a model on its way down is trained and judged.
#[derive(Clone, Copy)]
enum Stop {
    /// So many of the original's blocks are gone.
    Blocks(u32),
    /// This part of the target is gone.
    Ratio(f64),
}

impl Stop {
    /// The variant's name.
    fn name(self) -> String {
        match self {
            Self::Blocks(count) => format!("pruned-blocks-{count}"),
            Self::Ratio(ratio) => {
                let percent = format!("{:05.2}", ratio * 100.0);
                format!("pruned-{}", percent.trim_end_matches('0').trim_end_matches('.'))
            }
        }
    }
}

/// A model on its way down.
struct Shrinking {
    model: Model,
    so_far: SoFar,
}

/// How far down a model is.
#[derive(Clone, Serialize, Deserialize)]
struct SoFar {
    /// The part of the target that is left of the original's.
    left: f64,
    /// Layers of each block that is gone.
    blocks: Vec<Vec<String>>,
}

/// What models are trained on with.
struct Tuning {
    options: TrainOptions,
    material: Material,
}

impl Work<'_> {
    /// Makes all pruned candidates, each from the one before.
    pub fn pruned(&mut self, model: &Model, context: &Context, made: &mut Vec<Candidate>) -> Outcome {
        let stops = self.args.pruning.stops();
        if stops.is_empty() {
            return Ok(());
        }
        self.go_on("looking for what can be pruned")?;
        let so_far = SoFar { left: 1.0, blocks: Vec::new() };
        let mut shrinking = Shrinking { model: ready(model).or_input()?, so_far };
        let first = plan(&shrinking.model)?;
        if !self.args.pruning.ratios.is_empty() {
            self.tell(&first);
        }
        if first.groups.is_empty() && self.args.pruning.blocks.is_empty() {
            return Ok(());
        }
        let tuning = self.tuning(&shrinking.model, context)?;
        for stop in stops {
            let name = stop.name();
            if let Stop::Ratio(ratio) = stop
                && shrinking.so_far.left <= 1.0 - ratio
            {
                let left = shrinking.so_far.left * 100.0;
                self.bar.suspend(|| print::note!("no `{name}`: {left:.0} % of {} are left before it", self.of()));
                continue;
            }
            if let Some(kept) = self.kept_shrinking(&name)
                && let Some(noted) = self.taken(&name)
            {
                made.extend(noted);
                shrinking = kept;
                continue;
            }
            let shrunk = self.shrink(&mut shrinking, stop, tuning.as_ref());
            if self.unless_it_fails(&name, shrunk)?.is_none() {
                return Ok(());
            }
            let recipe = self.recipe(&shrinking.so_far, stop, tuning.is_some());
            let (before, first) =
                (std::mem::replace(&mut self.prepared, Rc::new(prepare(&shrinking.model)?)), made.len());
            let kept = self.keep_pruned(&name, &recipe, made);
            self.prepared = before;
            kept?;
            self.keep_shrinking(&name, &shrinking)?;
            self.kept.note_candidates(&name, made.get(first..).unwrap_or_default())?;
        }
        Ok(())
    }

    /// What cannot be pruned as it was asked for, before any work.
    pub fn check_pruning(&self, model: &Model) -> Outcome {
        let pruning = &self.args.pruning;
        let labelled = self.material.kind == DataKind::Labelled;
        if pruning.importance == ImportanceName::Taylor && !pruning.ratios.is_empty() && !labelled {
            return Err(Failure::input("`--importance taylor` needs labels; name labelled data with `--data PATH`"));
        }
        let Some(&most) = pruning.blocks.iter().max() else { return Ok(()) };
        let (mut model, mut gone) = (ready(model).or_input()?, 0);
        while gone < most {
            // One may be the last that can go, whose input nothing else reads.
            let all = blocks(&model)?;
            let Some(block) = all.first() else { break };
            model = without(&model, block)?;
            gone += 1;
        }
        match gone {
            0 => Err(Failure::input("`--prune-blocks`: the graph adds no layers to what goes past them")),
            _ if gone < most => {
                Err(Failure::input(format!("`--prune-blocks {most}`: the graph has {gone} blocks that could go")))
            }
            _ => Ok(()),
        }
    }

    fn recipe(&self, so_far: &SoFar, stop: Stop, tuned: bool) -> String {
        let tuned = if tuned && self.epochs() > 0 { "trained on" } else { "not trained on" };
        let gone: Vec<String> = so_far.blocks.iter().map(|layers| layers.join(" + ")).collect();
        let gone = if gone.is_empty() { String::new() } else { format!("without the blocks {}; ", gone.join(", ")) };
        let until = if let Stop::Ratio(_) = stop { "channels and heads taken out until " } else { "" };
        // An empty sum is -0.
        let percent = so_far.left.abs() * 100.0;
        format!("{gone}{until}{percent:.0} % of {} are left, {tuned}", self.of())
    }

    /// Notes what the next stop goes on from.
    fn keep_shrinking(&self, name: &str, shrinking: &Shrinking) -> Outcome {
        shrinking.model.write(self.kept.path(&format!("{name}.shrinking")))?;
        self.kept.note(&format!("{name}.left"), &shrinking.so_far)
    }

    fn kept_shrinking(&self, name: &str) -> Option<Shrinking> {
        let so_far = self.kept.noted(&format!("{name}.left"))?;
        let model = engines::read_model(&self.kept.path(&format!("{name}.shrinking"))).ok()?;
        Some(Shrinking { model, so_far })
    }

    /// Times through the data for each ratio.
    fn epochs(&self) -> u64 {
        self.args.epochs.unwrap_or(if self.args.quick { 1 } else { EPOCHS })
    }

    fn target(&self) -> Target {
        match self.args.goal {
            GoalName::Size => Target::Parameters,
            GoalName::Latency | GoalName::Throughput | GoalName::Energy => Target::MultiplyAdds,
        }
    }

    fn of(&self) -> &'static str {
        match self.target() {
            Target::Parameters => "the weights",
            Target::MultiplyAdds => "the multiply-adds",
        }
    }

    /// Says which layers stay as wide as they are.
    fn tell(&self, plan: &Plan) {
        if plan.groups.is_empty() && plan.left.is_empty() {
            self.bar.suspend(|| print::note!("nothing can be pruned: no layer has constant weights of float32"));
        }
        let what = if plan.groups.is_empty() { "nothing can be pruned" } else { "stays as wide as it is" };
        self.bar.suspend(|| {
            for left in plan.left.iter().take(NAMED) {
                print::note!("{what}: `{}`: {}", left.layer, left.reason);
            }
            if plan.left.len() > NAMED {
                print::note!("{what}: {} more layers", plan.left.len() - NAMED);
            }
        });
    }

    fn shrink(&self, shrinking: &mut Shrinking, stop: Stop, tuning: Option<&Tuning>) -> Outcome {
        match stop {
            Stop::Blocks(count) => self.shorten(shrinking, count as usize, tuning),
            Stop::Ratio(ratio) => self.narrow(shrinking, ratio, tuning),
        }
    }

    /// Takes out one block after the other, each time the one that turns its stream the least in what is left, and trains on.
    fn shorten(&self, shrinking: &mut Shrinking, count: usize, tuning: Option<&Tuning>) -> Outcome {
        let load = |model: &Model| self.load(model);
        while shrinking.so_far.blocks.len() < count {
            self.go_on(&format!(
                "looking for block {} of {count} that matters least",
                shrinking.so_far.blocks.len() + 1
            ))?;
            let (model, all) = (&shrinking.model, blocks(&shrinking.model)?);
            let none_left = || CompressError::Data(format!("only {} blocks could go", shrinking.so_far.blocks.len()));
            if all.is_empty() {
                return Err(none_left().into());
            }
            let turned = influence(model, &all, &load, &mut self.material.calibrate(EXAMPLES))?;
            let told = all.iter().zip(&turned).filter(|(_, turned)| turned.is_finite());
            let (block, _) = told.min_by(|(_, a), (_, b)| a.total_cmp(b)).ok_or_else(none_left)?;
            let shorter = without(model, block)?;
            let part = plan(&shorter)?.cost(self.target()) / plan(model)?.cost(self.target()).max(f64::MIN_POSITIVE);
            shrinking.so_far.blocks.push(block.layers.clone());
            shrinking.so_far.left *= part;
            shrinking.model = shorter;
        }
        if let Some(tuning) = tuning.filter(|_| self.epochs() > 0) {
            let text = format!("without {count} blocks");
            shrinking.model = self.tune(&shrinking.model, tuning, self.epochs(), &text)?;
        }
        Ok(())
    }

    /// Cuts channels in steps, and trains on after each.
    fn narrow(&self, shrinking: &mut Shrinking, ratio: f64, tuning: Option<&Tuning>) -> Outcome {
        let epochs = cuts(if tuning.is_some() { self.epochs() } else { 0 });
        let (from, to) = (shrinking.so_far.left, 1.0 - ratio);
        for (cut, &epochs_now) in epochs.iter().enumerate() {
            let (cut, all) = (cut + 1, epochs.len());
            self.go_on(&format!("pruning by {:.0} %: cut {cut} of {all}", ratio * 100.0))?;
            let goal = from * (to / from).powf(cut as f64 / all as f64);
            self.cut(shrinking, goal, tuning)?;
            if let Some(tuning) = tuning.filter(|_| epochs_now > 0) {
                let text = format!("pruning by {:.0} %, cut {cut} of {all}", ratio * 100.0);
                shrinking.model = self.tune(&shrinking.model, tuning, epochs_now, &text)?;
            }
        }
        Ok(())
    }

    /// Takes out what matters least until `goal` of the target is left.
    fn cut(&self, shrinking: &mut Shrinking, goal: f64, tuning: Option<&Tuning>) -> Outcome {
        let model = &shrinking.model;
        let plan = plan(model)?;
        let scores = self.scores(model, &plan, tuning)?;
        let part = (1.0 - goal / shrinking.so_far.left).max(0.0);
        // No group loses much more of its channels than the whole shall lose, unless the goal is not reached so.
        let even = Selection { target: self.target(), part, floor: (1.0 - 2.0 * part).max(FLOOR), multiple: MULTIPLE };
        let mut removal = choose(&plan, &scores, &even);
        if removal.left > 1.0 - part {
            removal = choose(&plan, &scores, &Selection { floor: FLOOR, ..even });
        }
        shrinking.model = apply(model, &plan, &removal)?;
        shrinking.so_far.left *= removal.left;
        Ok(())
    }

    fn scores(&self, model: &Model, plan: &Plan, tuning: Option<&Tuning>) -> Result<Scores, Failure> {
        Ok(match self.args.pruning.importance {
            ImportanceName::Magnitude => magnitude(model, plan, Norm::Two)?,
            ImportanceName::L1 => magnitude(model, plan, Norm::One)?,
            ImportanceName::Scale => normalisation(model, plan)?,
            ImportanceName::Activation => {
                let load = |model: &Model| self.load(model);
                activations(model, plan, &load, &mut self.material.calibrate(EXAMPLES))?
            }
            ImportanceName::Taylor => {
                // That there are labels was looked at first.
                let none = || {
                    Failure::input(
                        "`--importance taylor` goes by gradients, which do not pass through this model (the note before says \
                         why); take `magnitude`, `l1`, `scale` or `activation`",
                    )
                };
                self.told_by_gradients(model, plan, tuning.ok_or_else(none)?)?
            }
        })
    }

    fn told_by_gradients(&self, model: &Model, plan: &Plan, tuning: &Tuning) -> Result<Scores, Failure> {
        let planned = Planned::new(&tuning.options, model, &tuning.material)?;
        let step = gradients(model, &planned.spec.loss).map_err(failed)?;
        let (data, _) = planned.loaders(&tuning.material, &step)?;
        let (_, session) = self.trains(&step)?;
        let inputs = |batch: Result<edgeward_train::data::Batch, edgeward_train::data::DataError>| {
            let batch = batch.map_err(|error| CompressError::Data(error.to_string()))?;
            Ok(batch.inputs.into_iter().chain(batch.targets).collect::<Inputs>())
        };
        let mut batches = data.epoch(0, 0)?.take(BATCHES).map(inputs);
        Ok(taylor(model, plan, &step, session.as_ref(), &mut batches)?)
    }

    /// What to train with; none, with a word about it, where there are no labels or no gradients.
    fn tuning(&self, model: &Model, context: &Context) -> Result<Option<Tuning>, Failure> {
        let Some(material) = self.material.labelled() else {
            self.bar.suspend(|| print::note!("pruned variants are not trained on: that needs labelled data"));
            return Ok(None);
        };
        let mut options = context.settings.train.clone();
        options.data = self.args.data.or(&options.data);
        options.rate = self.args.rate.or(options.rate);
        let recipe = Recipe::read(model);
        options.data.mean = options.data.mean.or(recipe.mean);
        options.data.std = options.data.std.or(recipe.std);
        let planned = Planned::new(&options, model, &material)?;
        let step = build(model, &planned.spec).map_err(Failure::from);
        match step.and_then(|step| self.trains(&step).map(drop)) {
            Ok(()) => Ok(Some(Tuning { options, material })),
            Err(failure) => {
                self.bar.suspend(|| print::note!("pruned variants are not trained on: {}", failure.message()));
                Ok(None)
            }
        }
    }

    fn tune(&self, model: &Model, tuning: &Tuning, epochs: u64, title: &str) -> Result<Model, Failure> {
        let mut options = TrainOptions { epochs: Some(epochs), ..tuning.options.clone() };
        // What was to stay as it is may have been taken out.
        if let Some(patterns) = &mut options.freeze {
            patterns.retain(|text| {
                let weights = &model.graph().initializer;
                Pattern::new(text).is_ok_and(|pattern| weights.iter().any(|weight| pattern.fits(weight.name())))
            });
        }
        let planned = Planned::new(&options, model, &tuning.material)?;
        let step = build(model, &planned.spec).map_err(Failure::from)?;
        let (data, judge) = planned.loaders(&tuning.material, &step)?;
        let settings = planned.settings(&data, &self.kept.path("checkpoint"));
        let settings = Settings { checkpoint: None, checkpoint_batches: None, ..settings };
        Ok(self.train(Lesson { forward: model, step: &step, data, judge, settings, title })?.model)
    }

    /// The pruned model, which is prepared, as it is and as bytes.
    fn keep_pruned(&self, name: &str, recipe: &str, made: &mut Vec<Candidate>) -> Outcome {
        made.push(self.keep(name, recipe, &self.prepared.model, |_| 4.0, std::collections::BTreeMap::new())?);
        if self.prepared.layers.is_empty() {
            return Ok(());
        }
        match self.calibrated() {
            Ok(calibrated) => self.both_forms(&calibrated, (&format!("{name}-int8"), &format!("{recipe}; ")), made),
            Err(Failure::Input(error)) => Err(Failure::Input(error)),
            Err(failure) => {
                self.bar.suspend(|| print::note!("no static quantisation of `{name}`: {}", failure.message()));
                Ok(())
            }
        }
    }
}

/// Epochs after each cut: few after the first ones, the rest after the last.
fn cuts(epochs: u64) -> Vec<u64> {
    let count = epochs.clamp(1, CUTS);
    let each = (epochs / (count + 1)).max(1);
    let mut all = vec![each; usize::try_from(count - 1).unwrap_or(0)];
    all.push(epochs.saturating_sub(each * (count - 1)));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn epochs_are_shared_out() {
        for epochs in 0..20 {
            let all = cuts(epochs);
            assert_eq!(all.iter().sum::<u64>(), epochs);
            assert!(all.len() as u64 <= CUTS && all.last() >= all.first(), "{all:?}");
        }
        assert_eq!(cuts(6), [1, 1, 4]);
    }
}
