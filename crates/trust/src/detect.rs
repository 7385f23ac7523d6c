//! Detectors of attacks by callers who may use a model: what their requests look like, not who sends them.
//!
//! Pure: a caller's [`Watch`] over one model is told of its requests and says how suspicious they are. What that permits is the policies'
//! word (`context.score_detectors`), by way of the score.

mod sketch;

use serde::{Deserialize, Serialize};

pub use self::sketch::{Sketch, Sketcher};

/// `[trust.detectors]`: which of them look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DetectorSettings {
    /// Requests that cannot be read, one after the other: whoever tries out a parser.
    pub malformed: bool,
    /// Requests that compute much longer than the model's others: sponge examples (Shumailov et al. 2021, "Sponge Examples").
    pub costly: bool,
    /// Inputs that are almost those before: evasion, inversion and extraction ask around a point (Chen, Carlini and Wagner 2020, "Stateful
    /// Detection of Black-Box Adversarial Attacks"). So does a camera in front of which nothing moves, so it is to be asked for.
    pub probing: bool,
}

impl Default for DetectorSettings {
    fn default() -> Self {
        Self { malformed: true, costly: true, probing: false }
    }
}

/// A detector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Detector {
    /// See [`DetectorSettings::malformed`].
    Malformed,
    /// See [`DetectorSettings::costly`].
    Costly,
    /// See [`DetectorSettings::probing`].
    Probing,
}

impl Detector {
    /// All, in the order of [`Watch::suspicions`].
    pub const ALL: [Self; 3] = [Self::Malformed, Self::Costly, Self::Probing];
}

/// Shares and means are over about so many requests.
const MEMORY: f32 = 32.0;
/// Fewer requests say nothing.
const REQUESTS_MIN: u32 = 16;
/// Inputs that are compared with the next.
const KEPT: usize = 32;
/// Two inputs are almost the same where they differ by less than this share of their own size.
const NEAR: f32 = 0.1;
/// The share that is nothing, and the share that is certain.
const MALFORMED: (f32, f32) = (0.25, 0.75);
const NEARBY: (f32, f32) = (0.5, 0.9);
/// How many times longer than usual, as powers of two.
const DEARER: (f32, f32) = (2.0, 6.0);

/// One caller's requests to one model.
#[derive(Clone, Debug, Default)]
pub struct Watch {
    requests: u32,
    malformed: f32,
    costs: u32,
    /// Mean of the logarithms, to base 2, of cost against the usual one.
    dearer: f32,
    near: f32,
    kept: Vec<Sketch>,
    oldest: usize,
}

/// What a run of a model usually costs, over all callers: the logarithms of seconds, and of seconds for each byte of input.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usual {
    runs: u32,
    log2_seconds: f32,
    log2_per_byte: f32,
}

impl Watch {
    /// A request was read, or could not be.
    pub fn read(&mut self, well_formed: bool) {
        self.requests = self.requests.saturating_add(1);
        blend(&mut self.malformed, if well_formed { 0.0 } else { 1.0 }, MEMORY);
    }

    /// An input that was asked about. The very same one as before is no sign of anything: whoever retries sends it.
    pub fn asked(&mut self, sketch: Sketch) {
        let distances = || self.kept.iter().map(|kept| kept.distance(&sketch));
        if distances().any(|distance| distance == 0.0) {
            return;
        }
        let near = distances().any(|distance| distance < NEAR * sketch.size());
        blend(&mut self.near, if near { 1.0 } else { 0.0 }, MEMORY);
        match self.kept.get_mut(self.oldest) {
            Some(oldest) => *oldest = sketch,
            None => self.kept.push(sketch),
        }
        self.oldest = (self.oldest + 1) % KEPT;
    }

    /// A request of so many bytes took so many seconds of computing.
    pub fn computed(&mut self, seconds: f32, bytes: usize, usual: &mut Usual) {
        let Some(ratio) = usual.note(seconds, bytes) else { return };
        self.costs = self.costs.saturating_add(1);
        // Cheap requests do not make up for dear ones.
        blend(&mut self.dearer, ratio.clamp(0.0, DEARER.1 * 2.0), MEMORY / 4.0);
    }

    /// Suspicion of each detector, 0 (none) to 1 (certain).
    pub fn suspicions(&self, settings: &DetectorSettings) -> [(Detector, f32); 3] {
        let between = |value: f32, (none, certain): (f32, f32)| ((value - none) / (certain - none)).clamp(0.0, 1.0);
        let enough = |asked: bool, count: u32| asked && count >= REQUESTS_MIN;
        let of = |detector| match detector {
            Detector::Malformed if enough(settings.malformed, self.requests) => between(self.malformed, MALFORMED),
            Detector::Costly if enough(settings.costly, self.costs) => between(self.dearer, DEARER),
            Detector::Probing if settings.probing => between(self.near, NEARBY),
            _ => 0.0,
        };
        Detector::ALL.map(|detector| (detector, of(detector)))
    }
}

impl Usual {
    /// The logarithm of a run's cost against what was usual; none while that is not known. A long text is dear and a short one is so for
    /// each of its bytes, which is no sign of anything: the lesser of both counts. No run moves what is usual by more than a fourfold one.
    fn note(&mut self, seconds: f32, bytes: usize) -> Option<f32> {
        let seconds = seconds.clamp(1e-6, 1e6).max(1e-6);
        let (run, byte) = (seconds.log2(), (seconds / bytes.max(1) as f32).log2());
        if self.runs == 0 {
            (self.log2_seconds, self.log2_per_byte) = (run, byte);
        }
        let (run, byte) = (run - self.log2_seconds, byte - self.log2_per_byte);
        self.runs = self.runs.saturating_add(1);
        // A mean at first, then one that forgets slowly.
        let share = 1.0 / (self.runs as f32).min(1024.0);
        self.log2_seconds += run.clamp(-2.0, 2.0) * share;
        self.log2_per_byte += byte.clamp(-2.0, 2.0) * share;
        (self.runs > REQUESTS_MIN * 2).then_some(run.min(byte))
    }
}

/// Moves a mean towards a value, as one over so many.
fn blend(mean: &mut f32, value: f32, memory: f32) {
    *mean += (value - *mean) / memory;
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ALL: DetectorSettings = DetectorSettings { malformed: true, costly: true, probing: true };

    fn suspicion(watch: &Watch, of: Detector) -> f32 {
        watch.suspicions(&ALL).into_iter().find(|(detector, _)| *detector == of).unwrap().1
    }

    #[test]
    fn a_caller_who_is_seldom_understood_is_suspected_and_forgiven() {
        let mut watch = Watch::default();
        (0..15).for_each(|_| watch.read(false));
        assert_eq!(suspicion(&watch, Detector::Malformed), 0.0, "too few to say");
        (0..30).for_each(|_| watch.read(false));
        assert!(suspicion(&watch, Detector::Malformed) > 0.9);
        (0..60).for_each(|_| watch.read(true));
        assert_eq!(suspicion(&watch, Detector::Malformed), 0.0);
        (0..400).for_each(|n| watch.read(n % 8 != 0));
        assert_eq!(suspicion(&watch, Detector::Malformed), 0.0, "one in eight");
    }

    #[test]
    fn a_caller_whose_requests_are_dear_is_suspected_once_others_are_known() {
        let (mut usual, mut sponge, mut other) = (Usual::default(), Watch::default(), Watch::default());
        (0..100).for_each(|_| sponge.computed(1.0, 64, &mut usual));
        assert_eq!(suspicion(&sponge, Detector::Costly), 0.0, "alone it is what is usual");
        let (mut usual, mut sponge) = (Usual::default(), Watch::default());
        (0..200).for_each(|n| other.computed(0.01 * (1.0 + (n % 3) as f32), 64, &mut usual));
        (0..40).for_each(|_| sponge.computed(1.0, 64, &mut usual));
        assert_eq!(suspicion(&other, Detector::Costly), 0.0);
        assert!(suspicion(&sponge, Detector::Costly) > 0.7, "{sponge:?}");
        // Cheap ones between do not hide them.
        let mut hidden = Watch::default();
        (0..200).for_each(|n| hidden.computed(if n % 2 == 0 { 1.0 } else { 0.0001 }, 64, &mut usual));
        assert!(suspicion(&hidden, Detector::Costly) > 0.0, "{hidden:?}");
        // Long texts take long, and short ones long for each byte.
        let (mut usual, mut long, mut short) = (Usual::default(), Watch::default(), Watch::default());
        for _ in 0..200 {
            long.computed(0.001 + 1e-6 * 8192.0, 8192, &mut usual);
            short.computed(0.001 + 1e-6 * 16.0, 16, &mut usual);
        }
        assert_eq!([&long, &short].map(|watch| suspicion(watch, Detector::Costly)), [0.0, 0.0]);
    }

    /// Rows of different inputs, and what attacks send: one input changed in one place after the other, or by a little noise.
    #[test]
    fn a_caller_who_asks_around_a_point_is_suspected() {
        let sketcher = Sketcher::new(7);
        let row = |seed: u32| (0..784u32).map(move |n| (hash(seed, n) % 256) as f32 / 255.0);
        let suspected = |input: &dyn Fn(u32) -> Vec<f32>| {
            let mut watch = Watch::default();
            (0..100).for_each(|n| watch.asked(sketcher.sketch(input(n).into_iter(), 784)));
            suspicion(&watch, Detector::Probing)
        };
        assert_eq!(suspected(&|n| row(n).collect()), 0.0, "other inputs each time");
        assert_eq!(suspected(&|n| row(n / 50).collect()), 0.0, "the same again");
        let place = |n: u32| row(1).enumerate().map(move |(at, v)| if at as u32 == n * 7 { 1.0 - v } else { v });
        assert!(suspected(&|n| place(n).collect()) > 0.9);
        let noisy = |n: u32| row(1).zip(row(n + 2)).map(|(v, noise)| v + 0.05 * (noise - 0.5));
        assert!(suspected(&|n| noisy(n).collect()) > 0.9);
    }

    fn hash(a: u32, b: u32) -> u32 {
        let x = (a.wrapping_mul(0x9e37_79b9) ^ b.wrapping_mul(0x85eb_ca6b)).wrapping_mul(0xc2b2_ae35);
        (x ^ (x >> 15)).wrapping_mul(0x27d4_eb2f) >> 7
    }

    proptest! {
        #[test]
        fn whatever_is_sent_a_suspicion_is_a_share(values in proptest::collection::vec(any::<f32>(), 0..64), seconds in any::<f32>()) {
            let (mut watch, mut usual) = (Watch::default(), Usual::default());
            let sketcher = Sketcher::new(1);
            for n in 0..80 {
                let length = values.len();
                watch.asked(sketcher.sketch(values.iter().map(|v| v * n as f32), length));
                watch.computed(seconds * n as f32, n, &mut usual);
                watch.read(n % 2 == 0);
            }
            for (_, suspicion) in watch.suspicions(&ALL) {
                prop_assert!((0.0..=1.0).contains(&suspicion));
            }
        }
    }
}
