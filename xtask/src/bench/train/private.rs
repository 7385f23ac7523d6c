//! Steps that clip each example and add noise: against the plain step, and against Opacus.

use anyhow::bail;

use super::sides::{Case, Form, GROUP_RESNET, Material, Side, TRANSFORMER};
use crate::bench::{Effort, Row, peers::Edgeward};

/// The transformer and a convolutional network.
pub fn run(edgeward: &Edgeward, effort: Effort) -> anyhow::Result<Vec<Row>> {
    let material = Material::new(edgeward, effort);
    let mut rows = Vec::new();
    for (case, most) in [(TRANSFORMER, 1.4), (GROUP_RESNET, 2.0)] {
        match of(&material, &case, most, effort) {
            Ok(found) => rows.extend(found),
            Err(error) => rows.push(Row::skipped("dp", case.what, error)),
        }
    }
    Ok(rows)
}

fn of(material: &Material<'_>, case: &Case, most: f64, effort: Effort) -> anyhow::Result<Vec<Row>> {
    let own = |form| Side::Edgeward { engine: material.edgeward.fast_engine(), form };
    let sides = [own(Form::Lowered), own(Form::Private), Side::Torch("hooks"), Side::Torch("ghost")];
    let mut turns = material.alternate(case, &sides, effort.rounds)?.into_iter();
    let (Some(plain), Some(private)) = (turns.next(), turns.next()) else { bail!("no side ran") };
    let (plain, private) = (plain?, private?);
    let what = format!("{}: time of a private step to that of a plain one", case.what);
    let against = format!("{} and {}", private.shown(), plain.shown());
    let mut rows = vec![Row::at_most("dp", what, private.step_ms / plain.step_ms, "", most).against(against)];
    let (mut best, mut told) = (None::<f64>, Vec::new());
    for (mode, turn) in ["hooks", "ghost"].into_iter().zip(turns) {
        match turn {
            Ok(turn) => {
                told.push(format!("{mode} {}", turn.shown()));
                best = Some(best.map_or(turn.step_ms, |best| best.min(turn.step_ms)));
            }
            Err(error) => told.push(format!("{mode} fails: {error:#}")),
        }
    }
    let what = format!("{}: time of Opacus's private step to that", case.what);
    rows.push(match best {
        Some(best) => Row::at_least("dp", what, best / private.step_ms, "", 2.5).against(told.join(", ")),
        None => Row::skipped("dp", what, told.join(", ")),
    });
    Ok(rows)
}
