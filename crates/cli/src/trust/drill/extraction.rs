//! Extraction: a surrogate is trained on what the model answers, and compared with the model on rows that it has not seen.
//!
//! Tramèr et al. 2016, with a surrogate of one hidden layer over coarse inputs. The yardstick is what the administrator is answered, whom no
//! terms bind: so the same attack without terms is told beside it.

use super::{
    Stage,
    data::Rows,
    maths::{Coarse, majority, probabilities, rng},
    model::{Oracle, Scores},
    outcome::{Evidence, Figure, Line, Outcome, Verdict},
    surrogate::{Learning, Surrogate},
};
use crate::failure::Failure;

/// A surrogate that agrees with the model on so many rows is a copy.
const AGREEMENT_MAX: f64 = 0.6;
/// So much better than always the same class it must be at least.
const GAIN_MAX: f64 = 0.15;
/// Rows on which surrogate and model are compared.
const HELD_OUT: usize = 256;
const BLOCKS_MAX: usize = 256;
/// Rows that a surrogate is shown in all.
const LESSONS: usize = 20_000;

/// What one caller's answers are worth.
#[derive(Clone)]
struct Copied {
    /// Agreement by rows that were answered.
    curve: Vec<(f64, f64)>,
    answered: usize,
    refused: Option<String>,
}

impl Copied {
    fn agreement(&self) -> f64 {
        self.curve.iter().map(|point| point.1).fold(0.0, f64::max)
    }
}

/// Plays it.
pub async fn play(stage: &Stage<'_>) -> Result<Verdict, Failure> {
    let (mut insider, mut admin) = match stage.oracles() {
        Ok(oracles) => oracles,
        Err(why) => return Ok(Verdict::not_applicable(why)),
    };
    let wanted = stage.queries + HELD_OUT;
    let rows = stage.rows(wanted, insider.width);
    let (held_out, queries) = rows.all.split_at(HELD_OUT.min(rows.all.len() / 3));
    let truth = admin.ask(held_out).await;
    if truth.len() < held_out.len() {
        let why = admin.refused.unwrap_or_default();
        return Ok(Verdict::not_applicable(format!(
            "the administrator, by whom the copy would be measured, is refused: {why}"
        )));
    }
    let labels: Vec<usize> = truth.iter().map(|scores| scores.label).collect();
    let (class, share) = majority(&labels);
    if share > 0.9 {
        let text = format!(
            "the model says class {class} of {:.0} % of these rows, which is no measure; give rows with --data",
            share * 100.0
        );
        return Ok(Verdict::not_applicable(text));
    }
    let coarse = stage.coarse(BLOCKS_MAX);
    let classes = classes(stage, &truth);
    let (seen, unseen) = (shrink(&coarse, queries), shrink(&coarse, held_out));
    let copy = |answers: &[Scores], refused| copied(&seen, answers, (&unseen, &labels), classes, refused);
    let answers = insider.ask(queries).await;
    let got = copy(&answers, insider.refused.take());
    // Where terms change nothing, the same copy need not be trained twice.
    let freely = admin.ask(queries).await;
    let refused = admin.refused.take();
    let unbound = if freely == answers && refused == got.refused { got.clone() } else { copy(&freely, refused) };
    Ok(verdict(&got, &unbound, share, (insider.requests, rows_kind(stage))))
}

fn rows_kind(stage: &Stage<'_>) -> &'static str {
    if stage.data.is_some() { "of the data" } else { "of noise" }
}

fn shrink(coarse: &Coarse, rows: &[Vec<f32>]) -> Vec<Vec<f32>> {
    rows.iter().map(|row| coarse.down(row)).collect()
}

/// Classes of the model: by its interface, else by what was seen.
fn classes(stage: &Stage<'_>, seen: &[Scores]) -> usize {
    let said = stage.model.as_ref().and_then(|model| model.outputs.first()?.dims.last().copied());
    let most = seen.iter().flat_map(|scores| scores.of.iter().map(|(class, _)| *class).chain([scores.label])).max();
    said.and_then(|said| usize::try_from(said).ok()).unwrap_or(0).max(most.unwrap_or(0) + 1)
}

fn copied(
    rows: &[Vec<f32>],
    answers: &[Scores],
    (unseen, labels): (&[Vec<f32>], &[usize]),
    classes: usize,
    refused: Option<String>,
) -> Copied {
    let targets: Vec<Vec<f64>> = answers
        .iter()
        .map(|scores| match scores.of.is_empty() {
            true => probabilities(&[(scores.label, 1.0)], classes),
            false => probabilities(&scores.of, classes),
        })
        .collect();
    let mut curve = vec![(0.0, 0.0)];
    for part in [4, 2, 1] {
        let count = answers.len() / part;
        if count == 0 {
            continue;
        }
        let train = |hidden| {
            let learning = Learning { hidden, epochs: (LESSONS / count).clamp(10, 100), rate: 0.01 };
            Surrogate::train(&scaled(&rows[..count]), &targets[..count], classes, learning)
                .agreement(&scaled(unseen), labels)
        };
        curve.push((count as f64, train(0).max(train(32))));
    }
    Copied { curve, answered: answers.len(), refused }
}

/// Rows whose values are at most about one, whatever the model's own unit is.
fn scaled(rows: &[Vec<f32>]) -> Vec<Vec<f32>> {
    let most = rows.iter().flatten().fold(f32::EPSILON, |most, value| most.max(value.abs()));
    rows.iter().map(|row| row.iter().map(|value| value / most).collect()).collect()
}

fn verdict(got: &Copied, unbound: &Copied, majority: f64, (requests, kind): (usize, &str)) -> Verdict {
    let percent = |share: f64| format!("{:.1} %", share * 100.0);
    let agreement = got.agreement();
    let through = agreement >= AGREEMENT_MAX && agreement - majority >= GAIN_MAX;
    let refused = got.refused.as_ref().map_or_else(String::new, |refused| format!(", then refused with {refused}"));
    let found = format!("{} after {} rows {kind} in {requests} requests{refused}", percent(agreement), got.answered);
    let evidence = vec![
        Evidence::attempt("a surrogate agrees with the model on", found, through),
        Evidence::new(
            "the same attack without terms, as the administrator",
            format!("{} after {} rows", percent(unbound.agreement()), unbound.answered),
        ),
        Evidence::new("always the same class would agree on", percent(majority)),
        Evidence::new("a copy agrees on at least", percent(AGREEMENT_MAX)),
    ];
    let reason = match through {
        true => format!("a copy that agrees on {} was trained on {} answers", percent(agreement), got.answered),
        false => {
            format!("the copy agrees on {} only; without terms {}", percent(agreement), percent(unbound.agreement()))
        }
    };
    let outcome = if through { Outcome::GotThrough } else { Outcome::Held };
    let line = |name: &str, copied: &Copied| Line { name: name.to_owned(), points: copied.curve.clone() };
    let figure = Figure {
        title: "Agreement of the copy with the model".to_owned(),
        x: "rows that were answered".to_owned(),
        y: "agreement".to_owned(),
        lines: vec![line("on the insider's terms", got), line("without terms", unbound)],
        bound: Some(AGREEMENT_MAX),
    };
    Verdict { outcome, reason, evidence, figure: Some(figure) }
}

impl Stage<'_> {
    /// The model as the insider and as the administrator see it; why that cannot be.
    pub fn oracles(&self) -> Result<(Oracle, Oracle), String> {
        let model = self.may_use()?;
        let oracle = |shown| Oracle::new(&self.cast.dialer, &self.http, shown, model);
        Ok((oracle(&self.cast.insider.shown)?, oracle(&self.cast.admin.shown)?))
    }

    /// Rows to ask about: of the data, else noise.
    pub fn rows(&self, count: usize, width: usize) -> Rows {
        match &self.data {
            Some(data) => Rows { all: data.all.iter().take(count).cloned().collect(), range: data.range },
            None => Rows::noise(count, width, &mut rng()),
        }
    }

    /// The model's input, seen coarsely.
    pub fn coarse(&self, most: usize) -> Coarse {
        let input = self.model.as_ref().and_then(|model| model.inputs.first());
        Coarse::of(&input.map(|input| input.shape(1)).unwrap_or_default(), most)
    }
}
