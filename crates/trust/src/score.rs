//! The trust score: how far a request is to be believed beyond its credential (SP 800-207, 3.3.1: score-based, contextual).
//!
//! A pure function from signals to 0..100 with the list of what each signal brought. The weights are the operator's; what a score
//! permits is the policies' word (`context.score >= 60`), not this module's.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::{ErrorKind, Strength, TrustError, detect::Detector};

/// What is known of a request beside who asks for what.
#[derive(Clone, Debug, PartialEq)]
pub struct Signals<'a> {
    /// What the credential proves.
    pub strength: Strength,
    /// Time since workload or device was attested, where it was.
    pub attested_age: Option<Duration>,
    /// Checks of the device's posture that were reported, by name: passed or not.
    pub posture: &'a [(String, bool)],
    /// Address of the peer, where it has one.
    pub source: Option<IpAddr>,
    /// Hour of the day (0 to 23) and day of the week (1 is Monday), UTC.
    pub hour: u8,
    /// See `hour`.
    pub weekday: u8,
    /// The principal's requests per second now, against what is usual for it; 1 is usual, `None` where nothing is known yet.
    pub rate_ratio: Option<f32>,
    /// Time since the principal was first seen at this resource; `None` where this is the first time.
    pub known_for: Option<Duration>,
    /// Suspicion of each detector, 0 (none) to 1 (certain).
    pub detectors: &'a [(Detector, f32)],
}

/// Where a peer's address lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Network {
    /// This machine.
    Loopback,
    /// In one of the networks that the settings list.
    Known,
    /// Of an organisation (RFC 1918, RFC 4193) or a link.
    Private,
    /// Anywhere else, or unknown.
    Public,
}

impl Network {
    /// The word that policies use.
    pub fn name(self) -> &'static str {
        match self {
            Self::Loopback => "loopback",
            Self::Known => "known",
            Self::Private => "private",
            Self::Public => "public",
        }
    }
}

/// A part of the score.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// What the credential proves.
    Identity,
    /// Attestation and posture of the device or workload.
    Posture,
    /// Where the request comes from.
    Network,
    /// When it comes.
    Time,
    /// How many come.
    Rate,
    /// How new the caller is at this resource.
    Novelty,
    /// What the detectors of attacks say; it caps the sum.
    Detectors,
}

impl Part {
    /// All, in the order of [`Score::parts`].
    pub const ALL: [Self; 7] =
        [Self::Identity, Self::Posture, Self::Network, Self::Time, Self::Rate, Self::Novelty, Self::Detectors];
}

/// The score: 0 (not believed) to 100, and why.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Score {
    /// 0 to 100.
    pub total: u8,
    /// One per [`Part`], in its order.
    pub parts: [Contribution; 7],
    /// What each detector suspects that suspects something, in percent.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub suspicions: Vec<(Detector, u8)>,
}

/// What one part brought.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Contribution {
    /// Which.
    pub part: Part,
    /// 0 (worst) to 100.
    pub value: u8,
    /// Its share of the total, in points; for `detectors`, the points that they took away, as a negative number.
    pub points: f32,
    /// Why, in words of an operator.
    pub because: &'static str,
}

impl Score {
    /// A score whose parts all equal its total: for cases of tests that name only the total.
    pub fn flat(total: u8) -> Self {
        let total = total.min(100);
        let contribution = |part| Contribution { part, value: total, points: 0.0, because: "given" };
        Self { total, parts: Part::ALL.map(contribution), suspicions: Vec::new() }
    }

    /// The value of a part.
    pub fn part(&self, part: Part) -> u8 {
        self.parts.iter().find(|contribution| contribution.part == part).map_or(0, |contribution| contribution.value)
    }
}

/// `[trust.score]`: what each part weighs and where its bounds are.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ScoreSettings {
    /// Weight of each part but the detectors, relative to the others. A part without a weight counts nothing.
    pub weights: BTreeMap<Part, f32>,
    /// An attestation counts in full until this age, in seconds, and falls to nothing at twice of it.
    pub attestation_fresh_s: u64,
    /// Networks of the organisation.
    pub known_networks: Vec<IpNet>,
    /// First and last hour (0 to 23, UTC) of ordinary work; a last hour below the first goes past midnight.
    pub work_hours: Option<(u8, u8)>,
    /// Days of ordinary work, 1 is Monday; all where empty.
    pub work_days: Vec<u8>,
    /// A caller is as known as can be after so many seconds at a resource.
    pub known_after_s: u64,
}

impl Default for ScoreSettings {
    fn default() -> Self {
        let weights = [
            (Part::Identity, 35.0),
            (Part::Posture, 25.0),
            (Part::Network, 10.0),
            (Part::Time, 5.0),
            (Part::Rate, 15.0),
            (Part::Novelty, 10.0),
        ];
        Self {
            weights: weights.into(),
            attestation_fresh_s: 3600,
            known_networks: Vec::new(),
            work_hours: None,
            work_days: Vec::new(),
            known_after_s: 7 * 24 * 3600,
        }
    }
}

/// Scores requests by checked settings.
#[derive(Clone, Debug)]
pub struct Scorer {
    settings: ScoreSettings,
    weights: [f32; 6],
    sum: f32,
}

impl Scorer {
    /// Checks the settings.
    ///
    /// # Errors
    /// A weight that is negative or no number, weights that are all zero, a weight of the detectors, hours or days that there are not.
    pub fn new(settings: ScoreSettings) -> Result<Self, TrustError> {
        let wrong = |message: String| Err(TrustError::new(ErrorKind::Invalid, message));
        let mut weights = [0.0; 6];
        for (part, &weight) in &settings.weights {
            let Some(slot) = Part::ALL.iter().position(|known| known == part).and_then(|place| weights.get_mut(place))
            else {
                return wrong("`detectors` has no weight: what detectors say caps the sum of the others".to_owned());
            };
            if !weight.is_finite() || !(0.0..=1e6).contains(&weight) {
                return wrong(format!("weight `{weight}` of the trust score is wrong; expected 0 to 1000000"));
            }
            *slot = weight;
        }
        let sum = weights.iter().sum();
        if sum == 0.0 {
            return wrong("the weights of the trust score are all zero; give at least one part a weight".to_owned());
        }
        if let Some((first, last)) = settings.work_hours.filter(|(first, last)| *first > 23 || *last > 23) {
            return wrong(format!("`work_hours = [{first}, {last}]` is wrong; expected hours from 0 to 23"));
        }
        if let Some(day) = settings.work_days.iter().find(|day| !(1..=7).contains(*day)) {
            return wrong(format!("`{day}` in `work_days` is wrong; expected 1 (Monday) to 7"));
        }
        Ok(Self { settings, weights, sum })
    }

    /// Where an address lies.
    pub fn network(&self, source: Option<IpAddr>) -> Network {
        // An IPv4 client of a dual-stack listener shows as `::ffff:a.b.c.d`.
        match source.map(|address| address.to_canonical()) {
            None => Network::Public,
            Some(address) if address.is_loopback() => Network::Loopback,
            Some(address) if self.settings.known_networks.iter().any(|net| net.contains(&address)) => Network::Known,
            Some(IpAddr::V4(v4)) if v4.is_private() || v4.is_link_local() => Network::Private,
            Some(IpAddr::V6(v6)) if v6.is_unique_local() || v6.is_unicast_link_local() => Network::Private,
            Some(_) => Network::Public,
        }
    }

    /// The score of a request: the weighted mean of six parts, capped by what detectors say.
    pub fn score(&self, signals: &Signals<'_>) -> Score {
        let values = [
            identity(signals.strength),
            self.posture(signals),
            network(self.network(signals.source)),
            self.time(signals),
            rate(signals.rate_ratio),
            self.novelty(signals.known_for),
        ];
        let mut parts = Score::flat(0).parts;
        let mut mean = 0.0;
        for ((slot, (value, because)), weight) in parts.iter_mut().zip(values).zip(self.weights) {
            let points = value * 100.0 * weight / self.sum;
            mean += points;
            *slot = Contribution { part: slot.part, value: percent(value), points, because };
        }
        let (trusted, because) = detectors(signals.detectors);
        let total = mean.min(trusted * 100.0);
        if let Some(slot) = parts.last_mut() {
            *slot = Contribution { part: Part::Detectors, value: percent(trusted), points: total - mean, because };
        }
        let suspicions = signals.detectors.iter().map(|(detector, value)| (*detector, percent(suspicion(*value))));
        let suspicions = suspicions.filter(|(_, value)| *value > 0).collect();
        Score { total: total.clamp(0.0, 100.0).round() as u8, parts, suspicions }
    }

    fn posture(&self, signals: &Signals<'_>) -> (f32, &'static str) {
        let attested = signals.attested_age.map(|age| {
            let fresh = self.settings.attestation_fresh_s.max(1) as f32;
            (2.0 - age.as_secs_f32() / fresh).clamp(0.0, 1.0)
        });
        let passed = signals.posture.iter().filter(|(_, passed)| *passed).count() as f32;
        let reported = signals.posture.len() as f32;
        match (attested, signals.posture.is_empty()) {
            (None, true) => (0.0, "neither attested nor any posture reported"),
            (None, false) => (0.5 * passed / reported, "posture is reported, not attested"),
            (Some(fresh), true) => (fresh, if fresh < 1.0 { "the attestation has aged" } else { "attested" }),
            (Some(fresh), false) if passed < reported => (fresh * passed / reported, "a check of the posture failed"),
            (Some(fresh), false) if fresh < 1.0 => (fresh, "the attestation has aged"),
            (Some(fresh), false) => (fresh, "attested, all checks of the posture passed"),
        }
    }

    fn time(&self, signals: &Signals<'_>) -> (f32, &'static str) {
        let settings = &self.settings;
        let day = settings.work_days.is_empty() || settings.work_days.contains(&signals.weekday);
        let hour = settings.work_hours.is_none_or(|(first, last)| {
            let after = signals.hour >= first;
            let before = signals.hour <= last;
            if first <= last { after && before } else { after || before }
        });
        if day && hour {
            (1.0, "within the hours of ordinary work")
        } else {
            (0.0, "outside the hours of ordinary work")
        }
    }

    fn novelty(&self, known_for: Option<Duration>) -> (f32, &'static str) {
        match known_for {
            None => (0.0, "never seen at this resource"),
            Some(time) => {
                let share = time.as_secs_f32() / self.settings.known_after_s.max(1) as f32;
                if share < 1.0 {
                    (share, "known at this resource for a short time")
                } else {
                    (1.0, "known at this resource")
                }
            }
        }
    }
}

fn percent(value: f32) -> u8 {
    (value * 100.0).clamp(0.0, 100.0).round() as u8
}

fn identity(strength: Strength) -> (f32, &'static str) {
    match strength {
        Strength::Bearer => (0.3, "whoever has the token is taken for its owner"),
        Strength::KeyBound => (0.8, "the holder has shown the credential's key"),
        Strength::Attested => (1.0, "the holder was attested and has shown the credential's key"),
    }
}

fn network(network: Network) -> (f32, &'static str) {
    match network {
        Network::Loopback => (1.0, "from this machine"),
        Network::Known => (1.0, "from a network of the organisation"),
        Network::Private => (0.6, "from a private network that is not listed"),
        Network::Public => (0.2, "from a public or unknown network"),
    }
}

/// Full up to twice the usual rate, then falling with its logarithm: nothing is left at 64 times.
fn rate(ratio: Option<f32>) -> (f32, &'static str) {
    match ratio {
        None => (0.5, "what is usual for the caller is not known yet"),
        Some(ratio) if ratio <= 2.0 => (1.0, "as many requests as usual"),
        Some(ratio) if ratio > 2.0 => ((1.0 - (ratio / 2.0).log2() / 5.0).clamp(0.0, 1.0), "more requests than usual"),
        Some(_) => (0.0, "the rate is no number"),
    }
}

/// The most suspicious detector decides.
fn detectors(detectors: &[(Detector, f32)]) -> (f32, &'static str) {
    let worst = detectors.iter().map(|(_, value)| suspicion(*value)).fold(0.0, f32::max);
    (1.0 - worst, if worst > 0.0 { "a detector suspects an attack" } else { "no detector suspects anything" })
}

/// A detector that answers no number is as suspicious as can be.
fn suspicion(value: f32) -> f32 {
    if value.is_nan() { 1.0 } else { value.clamp(0.0, 1.0) }
}

#[cfg(test)]
mod tests;
