//! Boxes that detectors find: how far two overlap, and which of those that show the same thing stays.

use std::cmp::Ordering;

/// Boxes of one image that are looked at before suppression, the best of them.
const CANDIDATES_MAX: usize = 3000;

/// A rectangle in pixels, as COCO's annotations have it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rect {
    /// Left side.
    pub x: f64,
    /// Upper side.
    pub y: f64,
    /// To the right side.
    pub width: f64,
    /// To the lower side.
    pub height: f64,
}

/// A box that a detector found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Detection {
    /// Where.
    pub rect: Rect,
    /// Of what class; in the form `found` the label as the graph gives it.
    pub class: usize,
    /// How sure, 0 to 1.
    pub score: f64,
}

/// Which boxes stay.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Suppression {
    /// Boxes below this score go first.
    pub score_min: f64,
    /// Of two boxes of a class that overlap by more (intersection over union), the one of the lower score goes.
    pub overlap_max: f64,
    /// Boxes of one image that stay, of all classes together.
    pub kept_max: usize,
}

impl Rect {
    /// From the left upper and the right lower corner; none where that is no rectangle with an area.
    pub fn of_corners([left, top, right, bottom]: [f64; 4]) -> Option<Self> {
        Self { x: left, y: top, width: right - left, height: bottom - top }.sound()
    }

    /// From the centre and the sizes; none where that is no rectangle with an area.
    pub fn of_centre([x, y, width, height]: [f64; 4]) -> Option<Self> {
        Self { x: x - width / 2.0, y: y - height / 2.0, width, height }.sound()
    }

    fn sound(self) -> Option<Self> {
        let Self { x, y, width, height } = self;
        (x.is_finite() && y.is_finite() && width > 0.0 && height > 0.0 && self.area().is_finite()).then_some(self)
    }

    /// Square pixels.
    pub fn area(&self) -> f64 {
        self.width * self.height
    }

    /// Area that both have in common.
    pub fn intersection(&self, other: &Self) -> f64 {
        let width = (self.x + self.width).min(other.x + other.width) - self.x.max(other.x);
        let height = (self.y + self.height).min(other.y + other.height) - self.y.max(other.y);
        if width > 0.0 && height > 0.0 { width * height } else { 0.0 }
    }

    /// Intersection over union, 0 to 1; 0 where they do not touch.
    pub fn overlap(&self, other: &Self) -> f64 {
        let both = self.intersection(other);
        if both > 0.0 { both / (self.area() + other.area() - both) } else { 0.0 }
    }
}

impl Suppression {
    /// What stays, the highest score first; of equal scores the one that came first. From the best box on, each takes away the lower
    /// ones of its class that it overlaps (greedy non-maximum suppression).
    pub fn thin(&self, mut found: Vec<Detection>) -> Vec<Detection> {
        found.retain(|one| one.score >= self.score_min);
        best_first(&mut found, CANDIDATES_MAX);
        let mut kept: Vec<Detection> = Vec::new();
        for one in found {
            if kept.len() >= self.kept_max {
                break;
            }
            let covered =
                |better: &Detection| better.class == one.class && better.rect.overlap(&one.rect) > self.overlap_max;
            if !kept.iter().any(covered) {
                kept.push(one);
            }
        }
        kept
    }

    /// As [`Suppression::thin`] where the graph itself took away what overlaps.
    pub fn limit(&self, mut found: Vec<Detection>) -> Vec<Detection> {
        found.retain(|one| one.score >= self.score_min);
        best_first(&mut found, self.kept_max);
        found
    }
}

/// The `most` best, the highest score first; equal ones stay in order.
fn best_first(found: &mut Vec<Detection>, most: usize) {
    let order = |(at, a): &(usize, Detection), (other, b): &(usize, Detection)| -> Ordering {
        b.score.total_cmp(&a.score).then(at.cmp(other))
    };
    let mut numbered: Vec<(usize, Detection)> = std::mem::take(found).into_iter().enumerate().collect();
    if numbered.len() > most && most > 0 {
        // A detector that scores everything high has hundreds of thousands; sorting all of them would take longer than the model.
        numbered.select_nth_unstable_by(most - 1, order);
    }
    numbered.truncate(most);
    numbered.sort_unstable_by(order);
    found.extend(numbered.into_iter().map(|(_, one)| one));
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    const RULE: Suppression = Suppression { score_min: 0.1, overlap_max: 0.45, kept_max: 20 };

    fn rect(x: f64, y: f64, width: f64, height: f64) -> Rect {
        Rect { x, y, width, height }
    }

    fn any_rect() -> impl Strategy<Value = Rect> {
        (0.0..50.0, 0.0..50.0, 0.1..40.0, 0.1..40.0).prop_map(|(x, y, width, height)| rect(x, y, width, height))
    }

    fn any_found() -> impl Strategy<Value = Vec<Detection>> {
        // Few different scores, so that some are equal.
        let one = (any_rect(), 0usize..3, 0u32..20);
        vec(one.prop_map(|(rect, class, score)| Detection { rect, class, score: f64::from(score) / 20.0 }), 0..60)
    }

    #[test]
    fn overlaps_are_as_drawn() {
        let square = rect(0.0, 0.0, 10.0, 10.0);
        for (other, expected) in [
            (square, 1.0),
            (rect(5.0, 0.0, 10.0, 10.0), 50.0 / 150.0),
            (rect(2.0, 2.0, 5.0, 4.0), 0.2),
            (rect(10.0, 0.0, 10.0, 10.0), 0.0),
            (rect(20.0, 20.0, 1.0, 1.0), 0.0),
        ] {
            assert!((square.overlap(&other) - expected).abs() < 1e-12, "{other:?}");
        }
    }

    #[test]
    fn what_is_no_rectangle_is_none() {
        for corners in
            [[0.0, 0.0, f64::NAN, 1.0], [0.0, 0.0, -1.0, 1.0], [0.0, 0.0, 0.0, 1.0], [0.0, 0.0, f64::INFINITY, 1.0]]
        {
            assert_eq!(Rect::of_corners(corners), None, "{corners:?}");
        }
        assert_eq!(Rect::of_centre([5.0, 5.0, 1e300, 1e300]), None);
        assert_eq!(Rect::of_centre([5.0, 6.0, 2.0, 4.0]), Some(rect(4.0, 4.0, 2.0, 4.0)));
    }

    #[test]
    fn the_best_of_many_are_looked_at() {
        let one = |i: usize| Detection { rect: rect(i as f64 * 3.0, 0.0, 2.0, 2.0), class: 0, score: 0.2 };
        let mut found: Vec<Detection> = (0..2 * CANDIDATES_MAX).map(one).collect();
        found.last_mut().unwrap().score = 0.9;
        let kept = RULE.thin(found);
        assert_eq!((kept.len(), kept[0].score, kept[1].rect.x, kept[2].rect.x), (20, 0.9, 0.0, 3.0));
    }

    proptest! {
        #[test]
        fn an_overlap_is_a_share_that_both_agree_on(a in any_rect(), b in any_rect()) {
            let share = a.overlap(&b);
            prop_assert!((0.0..=1.0 + 1e-12).contains(&share));
            prop_assert!((share - b.overlap(&a)).abs() < 1e-12);
            prop_assert!((a.overlap(&a) - 1.0).abs() < 1e-9);
        }

        #[test]
        fn what_goes_is_covered_by_what_stays(found in any_found()) {
            let kept = RULE.thin(found.clone());
            prop_assert!(kept.len() <= 20 && kept.is_sorted_by(|a, b| a.score >= b.score));
            let covers = |a: &Detection, b: &Detection| a.class == b.class && a.rect.overlap(&b.rect) > 0.45;
            for (i, a) in kept.iter().enumerate() {
                prop_assert!(found.contains(a) && kept[i + 1..].iter().all(|b| !covers(a, b)));
            }
            for gone in found.iter().filter(|one| one.score >= 0.1 && !kept.contains(one)) {
                let covered = kept.iter().any(|better| better.score >= gone.score && covers(better, gone));
                prop_assert!(covered || kept.len() == 20, "{gone:?}");
            }
        }
    }
}
