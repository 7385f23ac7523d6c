//! Evasion: inputs are changed a little, by what the model's scores tell, until its answer is another.
//!
//! SimBA (Guo et al. 2019, algorithm 1) with blocks of an image as the directions.

use rand::seq::SliceRandom as _;

use super::{
    Stage,
    maths::{Coarse, probabilities, rng},
    model::{Oracle, Scores},
    outcome::{Evidence, Figure, Line, Outcome, Verdict},
};
use crate::failure::Failure;

/// The most by which a value may be changed, of the range of values.
const STEP: f32 = 0.2;
/// Inputs that are attacked, and blocks that are tried on each.
const SAMPLES: usize = 12;
const TRIES: usize = 100;
const BLOCKS_MAX: usize = 196;
/// So many of the inputs may be changed with success.
const FOOLED_MAX: f64 = 0.5;

struct Sample {
    row: Vec<f32>,
    label: usize,
    /// Probability of the label; none where it is not said.
    sure: Option<f64>,
    fooled: bool,
    order: Vec<usize>,
}

/// Plays it.
pub async fn play(stage: &Stage<'_>) -> Result<Verdict, Failure> {
    let Some(data) = &stage.data else {
        return Ok(Verdict::not_applicable("it needs inputs whose answers should not change: --data FILE"));
    };
    let mut insider = match stage.oracles() {
        Ok((insider, _)) => insider,
        Err(why) => return Ok(Verdict::not_applicable(why)),
    };
    let rows: Vec<Vec<f32>> = data.all.iter().take(SAMPLES).cloned().collect();
    let (coarse, mut rng) = (stage.coarse(BLOCKS_MAX), rng());
    let answers = insider.ask(&rows).await;
    let mut samples: Vec<Sample> = rows
        .into_iter()
        .zip(&answers)
        .map(|(row, scores)| {
            let mut order: Vec<usize> = (0..coarse.len()).collect();
            order.shuffle(&mut rng);
            Sample { row, label: scores.label, sure: of_label(scores, scores.label), fooled: false, order }
        })
        .collect();
    if samples.is_empty() {
        let refused = Evidence::new("the first request", insider.refused.unwrap_or_default());
        return Ok(Verdict::of(vec![refused], "the insider is refused before it learns anything", ""));
    }
    let step = STEP * data.span();
    let mut curve = vec![(0.0, 1.0)];
    for turn in 0..TRIES.min(coarse.len()) {
        for sign in [1.0, -1.0] {
            if !push(&mut samples, &mut insider, (turn, sign * step, data.range), &coarse).await {
                break;
            }
        }
        curve.push((insider.rows as f64 / samples.len() as f64, robust(&samples)));
        if insider.refused.is_some() || samples.iter().all(|sample| sample.fooled) {
            break;
        }
    }
    Ok(verdict(&samples, &insider, curve))
}

/// Changes one block of every input that is not fooled yet, and keeps what makes the model less sure. False where it answers no more.
async fn push(
    samples: &mut [Sample],
    model: &mut Oracle,
    (turn, step, range): (usize, f32, (f32, f32)),
    coarse: &Coarse,
) -> bool {
    let open: Vec<usize> = (0..samples.len())
        .filter(|&at| !samples[at].fooled && samples[at].order.get(turn).is_some_and(|&block| block != usize::MAX))
        .collect();
    let tried: Vec<Vec<f32>> = open
        .iter()
        .map(|&at| {
            let mut row = samples[at].row.clone();
            coarse.add(&mut row, samples[at].order[turn], step, range);
            row
        })
        .collect();
    let answers = model.ask(&tried).await;
    for ((&at, row), scores) in open.iter().zip(tried).zip(&answers) {
        let sample = &mut samples[at];
        if scores.label != sample.label {
            (sample.fooled, sample.row) = (true, row);
            continue;
        }
        let sure = of_label(scores, sample.label);
        if let (Some(sure), Some(before)) = (sure, sample.sure)
            && sure < before
        {
            (sample.sure, sample.row) = (Some(sure), row);
            // This block is done with: the other sign is not tried.
            sample.order[turn] = usize::MAX;
        }
    }
    answers.len() == open.len()
}

/// Probability of a label, as far as scores are said.
fn of_label(scores: &Scores, label: usize) -> Option<f64> {
    let classes = scores.of.iter().map(|(class, _)| class + 1).max()?.max(label + 1);
    probabilities(&scores.of, classes).get(label).copied()
}

fn robust(samples: &[Sample]) -> f64 {
    samples.iter().filter(|sample| !sample.fooled).count() as f64 / samples.len().max(1) as f64
}

fn verdict(samples: &[Sample], insider: &Oracle, curve: Vec<(f64, f64)>) -> Verdict {
    let fooled = samples.iter().filter(|sample| sample.fooled).count();
    let share = fooled as f64 / samples.len().max(1) as f64;
    let refused = insider.refused.as_ref().map_or_else(String::new, |refused| format!(", then refused with {refused}"));
    let through = share >= FOOLED_MAX;
    let evidence = vec![
        Evidence::attempt(
            "inputs whose answer was changed",
            format!("{fooled} of {}, each value by at most {:.0} % of the range", samples.len(), STEP * 100.0),
            through,
        ),
        Evidence::new("accuracy that is left", format!("{:.0} %", 100.0 - share * 100.0)),
        Evidence::new("rows that were answered", format!("{}{refused}", insider.rows)),
    ];
    let reason = format!("{fooled} of {} inputs were changed so that the answer is another", samples.len());
    let outcome = if through { Outcome::GotThrough } else { Outcome::Held };
    let figure = Figure {
        title: "Inputs whose answer stands".to_owned(),
        x: "rows that were answered, for each input".to_owned(),
        y: "share".to_owned(),
        lines: vec![Line { name: "on the insider's terms".to_owned(), points: curve }],
        bound: Some(1.0 - FOOLED_MAX),
    };
    Verdict { outcome, reason, evidence, figure: Some(figure) }
}
