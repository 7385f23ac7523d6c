//! What a model tells of the data that it was trained on: membership and inversion.

use super::{
    Stage,
    data::Rows,
    maths::{auc, majority, normal, percentile, probabilities, rng, roc, ssim},
    model::{Oracle, Scores},
    outcome::{Evidence, Figure, Line, Outcome, Verdict},
};
use crate::failure::Failure;

/// An area above this tells members from others.
const AREA_MAX: f64 = 0.55;
/// Fewer rows of a kind say nothing.
const ROWS_LEAST: usize = 20;
/// More are not asked about.
const ROWS_MAX: usize = 256;
/// An image that is so like the class's data was got out of the model.
const LIKENESS_MAX: f64 = 0.5;
/// Directions of each step, and steps, of the search.
const DIRECTIONS: usize = 16;
const STEPS: usize = 40;
const BLOCKS_MAX: usize = 196;

/// Membership inference by confidence (Salem et al. 2019, adversary 3): members are taken to be those the model is surest of.
pub async fn membership(stage: &Stage<'_>) -> Result<Verdict, Failure> {
    let (Some(members), Some(others)) = (&stage.members, &stage.non_members) else {
        let text =
            "it needs rows that the model was trained on and rows that it was not: --members FILE --non-members FILE";
        return Ok(Verdict::not_applicable(text));
    };
    let mut insider = match stage.oracles() {
        Ok((insider, _)) => insider,
        Err(why) => return Ok(Verdict::not_applicable(why)),
    };
    let count = members.all.len().min(others.all.len()).min(ROWS_MAX);
    // One of each in turn: a budget that ends cuts both alike.
    let pairs: Vec<Vec<f32>> =
        members.all.iter().zip(&others.all).take(count).flat_map(|(a, b)| [a.clone(), b.clone()]).collect();
    let answers = insider.ask(&pairs).await;
    let of = |first: usize| -> Vec<&Scores> { answers.iter().skip(first).step_by(2).collect() };
    let (members, others) = (of(0), of(1));
    let refused = insider.refused.as_ref().map_or_else(String::new, |refused| format!(", then refused with {refused}"));
    let asked = Evidence::new("rows that were answered", format!("{} of {}{refused}", answers.len(), pairs.len()));
    if members.len().min(others.len()) < ROWS_LEAST {
        let (outcome, reason) = match insider.refused {
            Some(_) => (Outcome::Held, "the insider is refused before its answers tell anything".to_owned()),
            None => (Outcome::NotApplicable, format!("fewer than {ROWS_LEAST} rows of each kind tell nothing")),
        };
        return Ok(Verdict { outcome, reason, evidence: vec![asked], figure: None });
    }
    Ok(told(&members, &others, asked))
}

fn told(members: &[&Scores], others: &[&Scores], asked: Evidence) -> Verdict {
    let by = |measure: fn(&Scores) -> f64| {
        let score = |of: &[&Scores]| of.iter().map(|scores| measure(scores)).collect::<Vec<f64>>();
        (score(members), score(others))
    };
    let measures: [(&str, fn(&Scores) -> f64); 2] = [("confidence", confidence), ("entropy", sharpness)];
    let mut evidence = vec![asked];
    let mut lines = Vec::new();
    let mut largest: f64 = 0.0;
    for (name, measure) in measures {
        let (members, others) = by(measure);
        let (area, error) = auc(&members, &others);
        largest = largest.max(area);
        // One-sided, at 95 %.
        let through = area > AREA_MAX && area - 1.645 * error > 0.5;
        evidence.push(Evidence::attempt(
            format!("area under the ROC curve by {name}"),
            format!("{area:.3} ± {error:.3}"),
            through,
        ));
        lines.push(Line { name: format!("by {name}"), points: roc(&members, &others) });
    }
    let figure = Figure {
        title: "Members told from others".to_owned(),
        x: "others that are taken for members".to_owned(),
        y: "members that are found".to_owned(),
        lines,
        bound: None,
    };
    let verdict = Verdict::of(
        evidence,
        format!("an area of {largest:.3}; up to {AREA_MAX}, or no more than chance, tells nothing"),
        format!("tells members from others with an area of {largest:.3}"),
    );
    Verdict { figure: Some(figure), ..verdict }
}

fn shares(scores: &Scores) -> Vec<f64> {
    let classes = scores.of.iter().map(|(class, _)| class + 1).max().unwrap_or(0);
    probabilities(&scores.of, classes)
}

/// The largest probability; 0 where no score was said.
fn confidence(scores: &Scores) -> f64 {
    shares(scores).into_iter().fold(0.0, f64::max)
}

/// Entropy, negative: members have less.
fn sharpness(scores: &Scores) -> f64 {
    shares(scores).iter().filter(|share| **share > 0.0).map(|share| share * share.ln()).sum()
}

/// Inversion (Fredrikson et al. 2015) without gradients: the input of which the model is surest is sought by natural evolution strategies
/// (Ilyas et al. 2018, algorithm 1), and compared with the mean of the class's data.
pub async fn inversion(stage: &Stage<'_>) -> Result<Verdict, Failure> {
    let Some(data) = &stage.data else {
        return Ok(Verdict::not_applicable("it needs data to compare with what is got out: --data FILE"));
    };
    let (mut insider, mut admin) = match stage.oracles() {
        Ok(oracles) => oracles,
        Err(why) => return Ok(Verdict::not_applicable(why)),
    };
    let rows: Vec<Vec<f32>> = data.all.iter().take(ROWS_MAX).cloned().collect();
    let labels: Vec<usize> = admin.ask(&rows).await.iter().map(|scores| scores.label).collect();
    if labels.is_empty() {
        return Ok(Verdict::not_applicable(format!(
            "the administrator is refused: {}",
            admin.refused.unwrap_or_default()
        )));
    }
    let (class, _) = majority(&labels);
    let coarse = stage.coarse(BLOCKS_MAX);
    let of_class: Vec<Vec<f32>> =
        rows.iter().zip(&labels).filter(|(_, label)| **label == class).map(|(row, _)| coarse.down(row)).collect();
    let mean: Vec<f32> = (0..coarse.len())
        .map(|at| of_class.iter().map(|row| row[at]).sum::<f32>() / of_class.len().max(1) as f32)
        .collect();
    let likeness = |image: &[f32]| ssim(image, &mean, coarse.plane, data.span());
    let mut search = Search::new(coarse.len(), data, class);
    let start = likeness(&search.at);
    let mut curve = vec![(0.0, start)];
    for _ in 0..STEPS {
        if !search.step(&mut insider, |means| coarse.up(means)).await {
            break;
        }
        curve.push((insider.rows as f64, likeness(&search.at)));
    }
    Ok(inverted(&search, &insider, (class, start), curve))
}

fn inverted(search: &Search, insider: &Oracle, (class, start): (usize, f64), curve: Vec<(f64, f64)>) -> Verdict {
    let best = curve.iter().map(|point| point.1).fold(start, f64::max);
    let last = curve.last().map_or(start, |point| point.1);
    let refused = insider.refused.as_ref().map_or_else(String::new, |refused| format!(", then refused with {refused}"));
    let through = last >= LIKENESS_MAX && last - start >= 0.1;
    let evidence = vec![
        Evidence::attempt(
            format!("likeness (SSIM) of what was got out to the data of class {class}"),
            format!("{last:.3}, at best {best:.3}"),
            through,
        ),
        Evidence::new("likeness of the grey at the start", format!("{start:.3}")),
        Evidence::new(
            "probability of the class that was reached",
            search.reached.map_or_else(|| "not said".to_owned(), |score| format!("{score:.3}")),
        ),
        Evidence::new("rows that were answered", format!("{}{refused}", insider.rows)),
    ];
    let figure = Figure {
        title: format!("Likeness to the data of class {class}"),
        x: "rows that were answered".to_owned(),
        y: "SSIM".to_owned(),
        lines: vec![Line { name: "on the insider's terms".to_owned(), points: curve }],
        bound: Some(LIKENESS_MAX),
    };
    let verdict = Verdict::of(
        evidence,
        format!("what was got out is like the data by {last:.2}; up to {LIKENESS_MAX} is no image of it"),
        format!("got an image out that is like the data by {last:.2}"),
    );
    Verdict { figure: Some(figure), ..verdict }
}

/// A search for the input of which the model is surest.
struct Search {
    at: Vec<f32>,
    momentum: Vec<f32>,
    class: usize,
    range: (f32, f32),
    span: f32,
    reached: Option<f64>,
    rng: rand::rngs::StdRng,
}

impl Search {
    fn new(blocks: usize, data: &Rows, class: usize) -> Self {
        let middle = f32::midpoint(data.range.0, data.range.1);
        let (range, span) = (data.range, data.span());
        Self { at: vec![middle; blocks], momentum: vec![0.0; blocks], class, range, span, reached: None, rng: rng() }
    }

    /// One step up; false where the model answers no more.
    async fn step(&mut self, model: &mut Oracle, whole: impl Fn(&[f32]) -> Vec<f32>) -> bool {
        let sigma = 0.1 * self.span;
        let directions: Vec<Vec<f32>> =
            (0..DIRECTIONS).map(|_| self.at.iter().map(|_| normal(&mut self.rng)).collect()).collect();
        let moved = |direction: &[f32], sign: f32| -> Vec<f32> {
            self.at
                .iter()
                .zip(direction)
                .map(|(at, step)| (at + sign * sigma * step).clamp(self.range.0, self.range.1))
                .collect()
        };
        let rows: Vec<Vec<f32>> = directions
            .iter()
            .flat_map(|direction| [whole(&moved(direction, 1.0)), whole(&moved(direction, -1.0))])
            .collect();
        let answers = model.ask(&rows).await;
        if answers.len() < rows.len() {
            return false;
        }
        let value = |scores: &Scores| match scores.of.is_empty() {
            // Nothing but the label: it is the class or it is not.
            true => f64::from(u8::from(scores.label == self.class)),
            false => log_probability(scores, self.class),
        };
        let mut gradient = vec![0.0f32; self.at.len()];
        for (direction, pair) in directions.iter().zip(answers.chunks_exact(2)) {
            let slope = (value(&pair[0]) - value(&pair[1])) as f32;
            gradient.iter_mut().zip(direction).for_each(|(sum, step)| *sum += slope * step);
        }
        let norm = gradient.iter().map(|value| value * value).sum::<f32>().sqrt();
        if norm > 0.0 {
            let step = 0.06 * self.span * (self.at.len() as f32).sqrt() / norm;
            for ((at, momentum), value) in self.at.iter_mut().zip(&mut self.momentum).zip(&gradient) {
                *momentum = 0.7 * *momentum + step * value;
                *at = (*at + *momentum).clamp(self.range.0, self.range.1);
            }
        }
        let said: Vec<f64> = answers
            .iter()
            .filter(|scores| !scores.of.is_empty())
            .map(|scores| log_probability(scores, self.class).exp())
            .collect();
        self.reached = percentile(&said, 0.5);
        true
    }
}

/// Of a class; as good as impossible where another was said alone.
fn log_probability(scores: &Scores, class: usize) -> f64 {
    let classes = scores.of.iter().map(|(class, _)| class + 1).max().unwrap_or(0).max(class + 1);
    let share = probabilities(&scores.of, classes).get(class).copied().unwrap_or(0.0);
    let raw = scores.of.iter().find(|(known, _)| *known == class).map(|(_, score)| *score);
    match raw {
        // Scores that are no probabilities tell more than a share that is next to nothing.
        Some(raw) if share < 1e-9 => raw - scores.of.iter().map(|(_, score)| *score).fold(raw, f64::max),
        _ => share.max(1e-9).ln(),
    }
}
