//! What has to be renewed when. Pure: the state and the time go in, the steps come out.

use std::time::{Duration, SystemTime};

use super::state::{CaCertificate, State};

const DAY: Duration = Duration::from_secs(24 * 3600);

/// How long certificates live, and how long old and new ones overlap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lifetimes {
    /// Of a root.
    pub root: Duration,
    /// A new root is made so long before the old one ends.
    pub root_overlap: Duration,
    /// A new root signs nothing for so long, until all have it in their bundle.
    pub root_settle: Duration,
    /// Of an intermediate; renewed when a third is left.
    pub intermediate: Duration,
    /// The most of a leaf; renewed when a third is left.
    pub leaf: Duration,
    /// Of a revocation list; signed anew when half is left.
    pub crl: Duration,
    /// What has ended is remembered for so long.
    pub memory: Duration,
}

impl Default for Lifetimes {
    /// Five years, a year before the end, a month to settle; 90 days; a day; a day; a month.
    fn default() -> Self {
        Self {
            root: 5 * 365 * DAY,
            root_overlap: 365 * DAY,
            root_settle: 30 * DAY,
            intermediate: 90 * DAY,
            leaf: DAY,
            crl: DAY,
            memory: 30 * DAY,
        }
    }
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(tag = "step", rename_all = "snake_case")]
pub enum Step {
    /// Make a root beside those that there are.
    MakeRoot,
    /// Make an intermediate, which issues from then on.
    MakeIntermediate,
    /// Ask for a new certificate of this name.
    RenewLeaf {
        /// Path of its SPIFFE id.
        name: String,
        /// The certificate that ends.
        serial: String,
    },
    /// Sign the revocation lists anew.
    SignRevocations,
    /// Forget a certificate that has ended.
    Drop {
        /// Which.
        serial: String,
    },
}

/// What is due at `now`, in the order in which to do it.
pub fn plan(state: &State, lifetimes: &Lifetimes, now: SystemTime) -> Vec<Step> {
    let mut steps = Vec::new();
    let left = |not_after: SystemTime| not_after.duration_since(now).unwrap_or_default();
    let newest =
        |authorities: &[CaCertificate]| authorities.last().map_or(Duration::ZERO, |newest| left(newest.not_after));
    if newest(&state.roots) <= lifetimes.root_overlap.min(lifetimes.root / 2) {
        steps.push(Step::MakeRoot);
    }
    // An intermediate ends with its root at the latest: near that end its thirds are of what it was given.
    let third = state
        .intermediates
        .last()
        .map_or(Duration::ZERO, |newest| newest.not_after.duration_since(newest.not_before).unwrap_or_default() / 3);
    if newest(&state.intermediates) <= third {
        steps.push(Step::MakeIntermediate);
    }
    let newest_issuer = state.intermediates.last().map(|issuer| &issuer.serial);
    let age = state.crl_signed_at.map(|at| now.duration_since(at).unwrap_or_default());
    if age.is_none_or(|age| age >= lifetimes.crl / 2) || state.crl_issuer.as_ref() != newest_issuer {
        steps.push(Step::SignRevocations);
    }
    for leaf in &state.leaves {
        let third = leaf.not_after.duration_since(leaf.not_before).unwrap_or_default() / 3;
        let renewed = state.leaves.iter().any(|other| other.name == leaf.name && other.not_after > leaf.not_after);
        let wanted = !renewed && !state.revoked.contains_key(&leaf.serial) && leaf.not_after > now;
        if wanted && left(leaf.not_after) <= third {
            steps.push(Step::RenewLeaf { name: leaf.name.clone(), serial: leaf.serial.clone() });
        }
    }
    let ended =
        |not_after: SystemTime, memory: Duration| now.duration_since(not_after).is_ok_and(|since| since >= memory);
    let authorities = state.roots.iter().chain(&state.intermediates).filter(|ca| ended(ca.not_after, Duration::ZERO));
    let leaves = state.leaves.iter().filter(|leaf| ended(leaf.not_after, lifetimes.memory));
    let serials = authorities.map(|ca| &ca.serial).chain(leaves.map(|leaf| &leaf.serial));
    steps.extend(serials.map(|serial| Step::Drop { serial: serial.clone() }));
    steps
}

/// The root that signs: the newest that has settled, else the oldest that is valid.
pub fn signing_root<'a>(state: &'a State, lifetimes: &Lifetimes, now: SystemTime) -> Option<&'a CaCertificate> {
    let settled =
        |root: &&CaCertificate| now.duration_since(root.not_before).is_ok_and(|age| age >= lifetimes.root_settle);
    let valid = || state.roots.iter().filter(|root| root.is_valid(now));
    valid().rfind(settled).or_else(|| valid().next())
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::*;
    use crate::authority::state::{LeafKind, LeafRecord};

    fn at(days: f64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs_f64(days * 86_400.0)
    }

    fn ca(serial: &str, days: f64, end: f64) -> CaCertificate {
        let (serial, key, pem) = (serial.to_owned(), String::new(), String::new());
        CaCertificate { serial, key, not_before: at(days), not_after: at(end), pem }
    }

    /// Six years of an authority that does at once what is due: every day on which something happens to roots and intermediates.
    #[test]
    fn roots_overlap_and_nothing_ends_before_its_successor_has_settled() {
        let lifetimes = Lifetimes::default();
        let mut state = State::default();
        let mut told = String::new();
        for day in 0..6 * 365 {
            let now = at(f64::from(day));
            let mut today = String::new();
            while let Some(step) = plan(&state, &lifetimes, now).into_iter().next() {
                let end = |lifetime: Duration| f64::from(day) + lifetime.as_secs_f64() / 86_400.0;
                match &step {
                    Step::MakeRoot => state.roots.push(ca(&format!("root@{day}"), f64::from(day), end(lifetimes.root))),
                    Step::MakeIntermediate => {
                        let root = signing_root(&state, &lifetimes, now).unwrap();
                        let until = end(lifetimes.intermediate)
                            .min(root.not_after.duration_since(at(0.0)).unwrap().as_secs_f64() / 86_400.0);
                        let serial = format!("by {}@{day}", root.serial);
                        state.intermediates.push(ca(&serial, f64::from(day), until));
                        if day % 365 < 60 {
                            let _ = write!(today, " {serial}");
                        }
                    }
                    Step::SignRevocations => {
                        state.crl_signed_at = Some(now);
                        state.crl_issuer = state.intermediates.last().map(|issuer| issuer.serial.clone());
                    }
                    Step::Drop { serial } => {
                        state.roots.retain(|root| root.serial != *serial);
                        state.intermediates.retain(|issuer| issuer.serial != *serial);
                        if serial.starts_with("root") {
                            let _ = write!(today, " drop {serial}");
                        }
                    }
                    Step::RenewLeaf { .. } => unreachable!(),
                }
                if step == Step::MakeRoot {
                    today.push_str(" make root");
                }
            }
            assert!(state.intermediates.iter().any(|issuer| issuer.is_valid(now)), "day {day}");
            if !today.is_empty() {
                let _ = writeln!(told, "{day}:{today}");
            }
        }
        let expected = "0: make root by root@0@0\n420: by root@0@420\n780: by root@0@780\n1140: by root@0@1140\n\
                        1460: make root\n1500: by root@1460@1500\n1825: drop root@0\n1860: by root@1460@1860\n";
        assert_eq!(told, expected);
    }

    #[test]
    fn leaves_are_renewed_once_and_forgotten_later() {
        let lifetimes = Lifetimes::default();
        let leaf = |name: &str, serial: &str, begin: f64| LeafRecord {
            serial: serial.to_owned(),
            name: name.to_owned(),
            kind: LeafKind::Client,
            issuer: "i".to_owned(),
            not_before: at(begin),
            not_after: at(begin + 1.0),
        };
        let mut state = State {
            roots: vec![ca("r", 0.0, 1825.0)],
            intermediates: vec![ca("i", 0.0, 90.0)],
            leaves: vec![leaf("a", "1", 0.0), leaf("b", "2", 0.0), leaf("b", "3", 0.5), leaf("c", "4", 0.0)],
            crl_signed_at: Some(at(0.0)),
            crl_issuer: Some("i".to_owned()),
            ..State::default()
        };
        state
            .revoked
            .insert("4".to_owned(), crate::authority::state::Revocation { at: at(0.0), reason: String::new() });
        let steps = |state: &mut State, days: f64| {
            state.crl_signed_at = Some(at(days));
            plan(state, &lifetimes, at(days))
        };
        let renew = |name: &str, serial: &str| Step::RenewLeaf { name: name.to_owned(), serial: serial.to_owned() };
        assert_eq!(steps(&mut state, 0.6), []);
        assert_eq!(steps(&mut state, 0.7), [renew("a", "1")]);
        assert_eq!(steps(&mut state, 1.3), [renew("b", "3")]);
        let dropped = |serial: &str| Step::Drop { serial: serial.to_owned() };
        assert_eq!(steps(&mut state, 31.2), [dropped("1"), dropped("2"), dropped("4")]);
    }
}
