//! How good detected boxes are: COCO's average precision (Lin et al. 2014, section 6; the definition that pycocotools computes).
//!
//! Boxes are matched once, image by image, and the figure is taken from the matches as often as one likes, which is what an interval by
//! repeated draws needs.

use std::collections::BTreeMap;

use crate::boxes::{Detection, Rect};

/// Overlaps from which on a box counts as found: 0.50 to 0.95.
const THRESHOLDS: usize = 10;
/// Parts of the true boxes at which precision is read: 0, 0.01 to 1.
const RECALLS: usize = 101;
/// Boxes of one class in one image that count, the best of them.
const DETECTIONS_MAX: usize = 100;

/// A box that is there.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Truth {
    /// Where.
    pub rect: Rect,
    /// Of what class.
    pub class: usize,
    /// Whether it is drawn around many: such a box need not be found, and what lies within it is not counted as wrong.
    pub crowd: bool,
}

/// Detected boxes beside those that are there.
#[derive(Clone, Debug, Default)]
pub struct Matched {
    images: usize,
    classes: BTreeMap<usize, Class>,
}

/// One class in all images.
#[derive(Clone, Debug, Default)]
struct Class {
    /// Detected boxes, the highest score first.
    hits: Vec<Hit>,
    /// Images with how many boxes there are to be found.
    wanted: Vec<(usize, u32)>,
}

/// One detected box; a bit for each threshold.
#[derive(Clone, Copy, Debug)]
struct Hit {
    score: f64,
    image: usize,
    /// Where it found a box.
    right: u16,
    /// Where it lies in a crowd and is not counted.
    ignored: u16,
}

impl Matched {
    /// Matches what is there with what was detected, one pair for each image. Classes of which nothing is there are left out. Where scores
    /// are equal, the order of the images decides; pycocotools takes them by their ids.
    pub fn new<'a>(images: impl IntoIterator<Item = (&'a [Truth], &'a [Detection])>) -> Self {
        let mut matched = Self::default();
        for (image, (truths, detections)) in images.into_iter().enumerate() {
            matched.images += 1;
            let mut both: BTreeMap<usize, (Vec<&Truth>, Vec<&Detection>)> = BTreeMap::new();
            truths.iter().for_each(|truth| both.entry(truth.class).or_default().0.push(truth));
            detections.iter().for_each(|one| both.entry(one.class).or_default().1.push(one));
            for (class, (truths, detections)) in both {
                matched.classes.entry(class).or_default().add(image, truths, detections);
            }
        }
        matched.classes.retain(|_, class| !class.wanted.is_empty());
        for class in matched.classes.values_mut() {
            class.hits.sort_by(|a, b| b.score.total_cmp(&a.score));
        }
        matched
    }

    /// Images.
    pub fn images(&self) -> usize {
        self.images
    }

    /// Mean average precision, 0 to 1: over overlaps of 0.50, 0.55, …, 0.95, 101 recalls and the classes of which something is there. None
    /// where nothing is there.
    pub fn precision(&self) -> Option<f64> {
        self.weighted(&vec![1; self.images])
    }

    /// The same of some images, of which one may be there more than once.
    pub fn precision_of(&self, images: &[usize]) -> Option<f64> {
        let mut times = vec![0; self.images];
        for image in images {
            *times.get_mut(*image)? += 1;
        }
        self.weighted(&times)
    }

    fn weighted(&self, times: &[u32]) -> Option<f64> {
        let precisions: Vec<f64> = self.classes.values().filter_map(|class| class.precision(times)).collect();
        (!precisions.is_empty()).then(|| precisions.iter().sum::<f64>() / precisions.len() as f64)
    }
}

/// Overlap from which on a box counts as found, by the number of the threshold.
fn threshold(number: usize) -> f64 {
    let (low, high) = (0.5, 0.95);
    if number + 1 == THRESHOLDS { high } else { low + number as f64 * ((high - low) / (THRESHOLDS - 1) as f64) }
}

impl Class {
    /// Takes in one image.
    fn add(&mut self, image: usize, mut truths: Vec<&Truth>, mut detections: Vec<&Detection>) {
        let wanted = truths.iter().filter(|truth| !truth.crowd).count();
        if wanted > 0 {
            self.wanted.push((image, u32::try_from(wanted).unwrap_or(u32::MAX)));
        }
        truths.sort_by_key(|truth| truth.crowd);
        detections.sort_by(|a, b| b.score.total_cmp(&a.score));
        detections.truncate(DETECTIONS_MAX);
        let near: Vec<Vec<(usize, f64)>> = detections.iter().map(|one| near(one, &truths)).collect();
        let hit = |one: &&Detection| Hit { score: one.score, image, right: 0, ignored: 0 };
        let mut hits: Vec<Hit> = detections.iter().map(hit).collect();
        for number in 0..THRESHOLDS {
            let mut taken = vec![false; truths.len()];
            for (hit, near) in hits.iter_mut().zip(&near) {
                let Some(found) = choose(near, &truths, &taken, threshold(number)) else { continue };
                let crowd = truths.get(found).is_some_and(|truth| truth.crowd);
                *(if crowd { &mut hit.ignored } else { &mut hit.right }) |= 1 << number;
                taken.get_mut(found).into_iter().for_each(|taken| *taken = true);
            }
        }
        self.hits.extend(hits);
    }

    /// Average precision, each image as often as `times` says; none where nothing is there.
    fn precision(&self, times: &[u32]) -> Option<f64> {
        let times = |image: usize| u64::from(times.get(image).copied().unwrap_or(0));
        let wanted: u64 = self.wanted.iter().map(|(image, count)| times(*image) * u64::from(*count)).sum();
        if wanted == 0 {
            return None;
        }
        let mut curves: [Curve; THRESHOLDS] = Default::default();
        let mut seen = 0;
        for hit in &self.hits {
            let weight = times(hit.image);
            seen += weight;
            // Most boxes found nothing at any threshold: they are counted once for all.
            if weight == 0 || hit.right | hit.ignored == 0 {
                continue;
            }
            for (number, curve) in curves.iter_mut().enumerate() {
                if hit.ignored >> number & 1 == 1 {
                    curve.ignored += weight;
                } else if hit.right >> number & 1 == 1 {
                    curve.right += weight;
                    curve.steps.push((curve.right, seen - curve.ignored));
                }
            }
        }
        Some(curves.iter().map(|curve| curve.area(wanted)).sum::<f64>() / THRESHOLDS as f64)
    }
}

/// Boxes that are there and that one overlaps enough for the lowest threshold, in their order. Of a crowd the part of the detected box
/// counts that lies in it.
fn near(one: &Detection, truths: &[&Truth]) -> Vec<(usize, f64)> {
    let overlap = |truth: &Truth| {
        if truth.crowd { truth.rect.intersection(&one.rect) / one.rect.area() } else { one.rect.overlap(&truth.rect) }
    };
    let all = truths.iter().enumerate().map(|(at, truth)| (at, overlap(truth)));
    all.filter(|(_, overlap)| *overlap >= threshold(0)).collect()
}

/// The box that a detected one stands for: of those not taken the one that it overlaps most, the last of equals, before any crowd.
fn choose(near: &[(usize, f64)], truths: &[&Truth], taken: &[bool], threshold: f64) -> Option<usize> {
    let crowd = |at: usize| truths.get(at).is_some_and(|truth| truth.crowd);
    let (mut least, mut found) = (threshold.min(1.0 - 1e-10), None);
    for &(at, overlap) in near {
        if taken.get(at).copied().unwrap_or(false) && !crowd(at) {
            continue;
        }
        if found.is_some_and(|found| !crowd(found)) && crowd(at) {
            break;
        }
        if overlap >= least {
            (least, found) = (overlap, Some(at));
        }
    }
    found
}

/// Precision over recall, as it rises.
#[derive(Default)]
struct Curve {
    right: u64,
    ignored: u64,
    /// At each box that was found: how many were found, of how many detected ones that count.
    steps: Vec<(u64, u64)>,
}

impl Curve {
    /// Mean of the precision at all recalls; at each the best that is reached there or beyond.
    fn area(&self, wanted: u64) -> f64 {
        let mut sum = 0.0;
        let mut steps = self.steps.iter().rev().peekable();
        let mut best = 0f64;
        for number in (0..RECALLS).rev() {
            let recall = if number + 1 == RECALLS { 1.0 } else { number as f64 * 0.01 };
            while let Some((right, seen)) = steps.next_if(|(right, _)| *right as f64 / wanted as f64 >= recall) {
                best = best.max(*right as f64 / (*seen as f64 + f64::EPSILON));
            }
            sum += best;
        }
        sum / RECALLS as f64
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn rect(x: f64, side: f64) -> Rect {
        Rect { x, y: 0.0, width: side, height: side }
    }

    fn truth(x: f64, class: usize) -> Truth {
        Truth { rect: rect(x, 10.0), class, crowd: false }
    }

    fn found(x: f64, class: usize, score: f64) -> Detection {
        Detection { rect: rect(x, 10.0), class, score }
    }

    fn precision(truths: &[Truth], found: &[Detection]) -> Option<f64> {
        Matched::new([(truths, found)]).precision()
    }

    #[test]
    fn figures_are_as_counted_by_hand() {
        let two = [truth(0.0, 0), truth(50.0, 0)];
        assert_eq!(precision(&two, &[found(0.0, 0, 0.9), found(50.0, 0, 0.8)]), Some(1.0));
        assert_eq!(precision(&two, &[]), Some(0.0));
        assert_eq!(precision(&[], &[found(0.0, 0, 0.9)]), None);
        // Half of the boxes: recalls 0 to 0.5, which are 51 of 101.
        let near = |a: Option<f64>, b: f64| assert!(a.is_some_and(|a| (a - b).abs() < 1e-12), "{a:?} {b}");
        near(precision(&two, &[found(0.0, 0, 0.9)]), 51.0 / 101.0);
        // A wrong box before: precision 1/2 throughout.
        near(precision(&two, &[found(90.0, 0, 0.95), found(0.0, 0, 0.9)]), 0.5 * 51.0 / 101.0);
        // Overlap of 2/3: four of ten thresholds.
        near(precision(&two[..1], &[found(2.0, 0, 0.9)]), 0.4);
        // A class of which nothing is there does not count, nor what was found of it.
        near(precision(&two, &[found(0.0, 0, 0.9), found(50.0, 0, 0.8), found(0.0, 7, 0.99)]), 1.0);
        near(precision(&[truth(0.0, 0), truth(0.0, 1)], &[found(0.0, 0, 0.9)]), 0.5);
    }

    #[test]
    fn crowds_need_not_be_found() {
        let crowd = Truth { rect: rect(0.0, 100.0), class: 0, crowd: true };
        let truths = [truth(200.0, 0), crowd];
        // Three boxes within the crowd, better than the right one, are not counted as wrong.
        let many = [found(0.0, 0, 0.9), found(20.0, 0, 0.9), found(40.0, 0, 0.9), found(200.0, 0, 0.5)];
        let figure = precision(&truths, &many);
        assert!(figure.is_some_and(|figure| (figure - 1.0).abs() < 1e-12), "{figure:?}");
        assert_eq!(precision(&[crowd], &many), None);
    }

    #[test]
    fn a_draw_is_what_its_images_are() {
        let images: [(&[Truth], &[Detection]); 3] = [
            (&[truth(0.0, 0)], &[found(0.0, 0, 0.9), found(30.0, 0, 0.95)]),
            (&[truth(0.0, 0)], &[found(40.0, 0, 0.5)]),
            (&[], &[found(0.0, 0, 0.7)]),
        ];
        let matched = Matched::new(images);
        assert_eq!((matched.images(), matched.precision_of(&[2, 2])), (3, None));
        assert_eq!(matched.precision_of(&[9]), None);
        assert_eq!(matched.precision_of(&[0, 1, 2]), matched.precision());
        assert_eq!(matched.precision_of(&[0]), Matched::new([images[0]]).precision());
    }

    type Image = (Vec<Truth>, Vec<Detection>);

    fn any_image(scores: u32) -> impl Strategy<Value = Image> {
        let place = || (0u32..8, 0u32..6, 0usize..2);
        let truths = vec((place(), any::<bool>(), any::<bool>()), 0..5);
        let truths = truths.prop_map(|all| {
            let one = |((x, side, class), a, b): &((u32, u32, usize), bool, bool)| Truth {
                rect: rect(f64::from(*x), f64::from(side + 5)),
                class: *class,
                crowd: *a && *b,
            };
            all.iter().map(one).collect()
        });
        let found = vec((place(), 1..=scores), 0..8).prop_map(move |all| {
            let one = |((x, side, class), score): &((u32, u32, usize), u32)| Detection {
                rect: rect(f64::from(*x), f64::from(side + 5)),
                class: *class,
                score: f64::from(*score) / f64::from(scores),
            };
            all.iter().map(one).collect()
        });
        (truths, found)
    }

    fn borrowed(images: &[Image]) -> impl Iterator<Item = (&[Truth], &[Detection])> {
        images.iter().map(|(truths, found)| (truths.as_slice(), found.as_slice()))
    }

    proptest! {
        #[test]
        fn what_is_found_exactly_is_precise(images in vec(any_image(1000), 1..5)) {
            let all = Matched::new(borrowed(&images));
            prop_assert!(all.precision().is_none_or(|figure| (0.0..=1.0).contains(&figure)));
            let perfect = |(truths, _): &Image| {
                let found = truths.iter().filter(|truth| !truth.crowd);
                let found = found.map(|t| Detection { rect: t.rect, class: t.class, score: 0.5 });
                (truths.clone(), found.collect::<Vec<_>>())
            };
            let perfect: Vec<Image> = images.iter().map(perfect).collect();
            let figure = Matched::new(borrowed(&perfect)).precision();
            prop_assert!(figure.is_none_or(|figure| (figure - 1.0).abs() < 1e-12), "{figure:?}");
        }

        // With many different scores equal ones are rare enough to be left out: their order is that of the images.
        #[test]
        fn images_that_are_drawn_twice_are_there_twice(
            images in vec(any_image(1_000_000_000), 1..5),
            drawn in vec(0usize..5, 1..8),
        ) {
            let rows: Vec<usize> = drawn.iter().map(|row| row % images.len()).collect();
            let repeated: Vec<Image> = rows.iter().map(|&row| images[row].clone()).collect();
            let expected = Matched::new(borrowed(&repeated)).precision();
            let figure = Matched::new(borrowed(&images)).precision_of(&rows);
            prop_assert_eq!(expected.is_some(), figure.is_some());
            let gap = expected.zip(figure).map_or(0.0, |(a, b)| (a - b).abs());
            prop_assert!(gap < 1e-9, "{expected:?} {figure:?}");
        }
    }
}
