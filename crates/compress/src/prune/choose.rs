//! Which units go: the least of all by score until enough of the work, or of the weights, is gone.

use std::collections::HashMap;

use super::{Group, Plan, Scores};

/// What is to become less.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// Multiply-adds of layers with constant weights in a run.
    MultiplyAdds,
    /// Elements of all initialisers.
    Parameters,
}

/// How much shall go, and what must stay.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Selection {
    /// What is to become less.
    pub target: Target,
    /// The part of it that shall go, 0 to 1.
    pub part: f64,
    /// The part of each group's units that stays at least, 0 to 1.
    pub floor: f64,
    /// Channels that stay in a group are a multiple of this, since engines work on blocks of 8 or 16; of the half of it,
    /// the quarter and so on where the group has fewer than four times as many.
    pub multiple: usize,
}

/// Units that go.
#[derive(Clone, Debug, PartialEq)]
pub struct Removal {
    /// For each of [`Plan::groups`] the units, by index, ascending.
    pub units: Vec<Vec<usize>>,
    /// The part of the target that is left.
    pub left: f64,
}

impl Removal {
    /// Units of all groups together.
    pub fn count(&self) -> usize {
        self.units.iter().map(Vec::len).sum()
    }
}

/// The least part of the target that a group counts as.
const COST_MIN: f64 = 1e-12;
/// How much a group's cost counts beside its scores. The least costly groups are often the first layers, which all others stand
/// on; but by cost alone the few groups that cost the most would be cut to their floors.
const COST_POWER: f64 = 0.25;

/// Takes the units that are worth the least for what they cost, until `part` of the target is gone or every group is at
/// its floor. A unit's worth is its score as a part of its group's mean, over a small power of what its whole
/// group costs: a first layer of few weights is no place to save weights, and groups that cost the same are cut alike, be they of few
/// costly units or of many cheap ones.
pub fn choose(plan: &Plan, scores: &Scores, selection: &Selection) -> Removal {
    let whole = plan.cost(selection.target).max(f64::MIN_POSITIVE);
    let costs: Vec<f64> = (0..plan.groups.len())
        .map(|group| (1.0 - cost(plan, &emptied(plan, group), selection.target) / whole).max(COST_MIN).powf(COST_POWER))
        .collect();
    let order = order(scores, &costs);
    let removal = |first: usize| {
        let units = removed(plan, order.get(..first).unwrap_or_default(), selection);
        let left = cost(plan, &units, selection.target) / whole;
        Removal { units, left }
    };
    // What is left falls with the number that go, so the least number that is enough is found by halves.
    let (mut low, mut high) = (0, order.len());
    while low < high {
        let middle = low.midpoint(high);
        if removal(middle).left <= 1.0 - selection.part {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    removal(low)
}

/// Every unit of one group.
fn emptied(plan: &Plan, group: usize) -> Vec<Vec<usize>> {
    let all = |(at, each): (usize, &Group)| if at == group { (0..each.units.len()).collect() } else { Vec::new() };
    plan.groups.iter().enumerate().map(all).collect()
}

/// Group and unit of all units, the least worth for its cost first.
fn order(scores: &Scores, costs: &[f64]) -> Vec<(usize, usize)> {
    let mut all = Vec::new();
    for (group, (scores, cost)) in scores.0.iter().zip(costs).enumerate() {
        let mean = scores.iter().sum::<f64>() / scores.len().max(1) as f64;
        let part = |score: f64| if mean > 0.0 && score.is_finite() { score / mean / cost } else { 1.0 / cost };
        all.extend(scores.iter().enumerate().map(|(unit, &score)| (part(score), group, unit)));
    }
    all.sort_by(|a, b| a.0.total_cmp(&b.0));
    all.into_iter().map(|(_, group, unit)| (group, unit)).collect()
}

/// The first units that the floor and the multiple of their groups let go.
fn removed(plan: &Plan, first: &[(usize, usize)], selection: &Selection) -> Vec<Vec<usize>> {
    let mut wanted: Vec<Vec<usize>> = vec![Vec::new(); plan.groups.len()];
    for &(group, unit) in first {
        if let Some(wanted) = wanted.get_mut(group) {
            wanted.push(unit);
        }
    }
    for (group, wanted) in plan.groups.iter().zip(&mut wanted) {
        let all = group.units.len();
        let kept = kept(group, all.saturating_sub(wanted.len()), selection);
        // In the order of their scores: the least go.
        wanted.truncate(all.saturating_sub(kept));
        wanted.sort_unstable();
    }
    wanted
}

/// How many units of a group stay where `wanted` shall.
fn kept(group: &Group, wanted: usize, selection: &Selection) -> usize {
    let all = group.units.len();
    let floor = (all as f64 * selection.floor).ceil() as usize;
    let least = wanted.max(floor).max(1);
    // A unit of several channels, as a head, counts as many.
    let channels = |unit: &super::Unit| unit.members.iter().map(|member| member.indices.len()).min();
    let channels = group.units.first().and_then(channels).unwrap_or(1).max(1);
    let mut multiple = selection.multiple.div_ceil(channels).max(1);
    while multiple > 1 && all < multiple * 4 {
        multiple /= 2;
    }
    if least >= all {
        return all;
    }
    // To the nearest: rounding up alone would leave narrow groups as they are, and wide ones would pay for them.
    ((least + multiple / 2) / multiple * multiple).clamp(multiple, all)
}

/// What is left of the target.
pub(super) fn cost(plan: &Plan, removed: &[Vec<usize>], target: Target) -> f64 {
    let mut gone: HashMap<(&str, usize), usize> = HashMap::new();
    for (group, units) in plan.groups.iter().zip(removed) {
        for member in units.iter().filter_map(|&unit| group.units.get(unit)).flat_map(|unit| &unit.members) {
            *gone.entry((&member.tensor, member.axis)).or_default() += member.indices.len();
        }
    }
    let elements = |tensor: &str| -> f64 {
        let sizes = plan.sizes.get(tensor).map(Vec::as_slice).unwrap_or_default();
        let kept = |(axis, &size): (usize, &usize)| {
            size.saturating_sub(gone.get(&(tensor, axis)).copied().unwrap_or(0)) as f64
        };
        sizes.iter().enumerate().map(kept).product()
    };
    match target {
        Target::MultiplyAdds => plan.times.iter().map(|(tensor, times)| times * elements(tensor)).sum(),
        Target::Parameters => plan.sizes.keys().map(|tensor| elements(tensor)).sum(),
    }
}
