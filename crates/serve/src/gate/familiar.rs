//! What is usual for a caller at a resource: since when it comes, and how often.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use edgeward_trust::{Principal, Resource};
use parking_lot::Mutex;
use quick_cache::sync::Cache;

/// Pairs of caller and resource that are remembered; each takes about 100 bytes.
const PAIRS_MAX: usize = 65_536;
/// Time over which the rate of now, and that which is usual, are averaged.
const NOW_S: f64 = 10.0;
const USUAL_S: f64 = 3600.0;
/// As much has to be known before anything is called unusual.
const LEARNS_FOR: Duration = Duration::from_secs(60);

/// The memory, which begins anew with each start.
pub(super) struct Familiar(Cache<u128, Arc<Mutex<Seen>>>, [std::hash::RandomState; 2]);

struct Seen {
    first: SystemTime,
    last: SystemTime,
    /// Requests per second, averaged over a short and a long time.
    now: f64,
    usual: f64,
}

/// What is known of a caller at a resource.
pub(super) struct Habit {
    /// Since when it comes; none on the first time.
    pub(super) known_for: Option<Duration>,
    /// Its rate against what is usual; none while that is not known.
    pub(super) rate_ratio: Option<f32>,
}

impl Default for Familiar {
    fn default() -> Self {
        Self(Cache::new(PAIRS_MAX), Default::default())
    }
}

impl Familiar {
    /// Notes a request and says what was known before it.
    pub(super) fn note(&self, principal: &Principal, resource: &Resource, now: SystemTime) -> Habit {
        let key = self.key(principal, resource);
        let Some(seen) = self.0.get(&key) else {
            let seen = Seen { first: now, last: now, now: 0.0, usual: 0.0 };
            self.0.insert(key, Arc::new(Mutex::new(seen)));
            return Habit { known_for: None, rate_ratio: None };
        };
        seen.lock().note(now)
    }

    /// What is known, without a request.
    pub(super) fn look(&self, principal: &Principal, resource: &Resource, now: SystemTime) -> Habit {
        let seen = self.0.get(&self.key(principal, resource));
        seen.map_or(Habit { known_for: None, rate_ratio: None }, |seen| seen.lock().habit(now))
    }

    fn key(&self, principal: &Principal, resource: &Resource) -> u128 {
        use std::hash::BuildHasher as _;
        let asked = (&principal.id, resource);
        let [a, b] = &self.1;
        u128::from(a.hash_one(asked)) << 64 | u128::from(b.hash_one(asked))
    }
}

impl Seen {
    fn note(&mut self, now: SystemTime) -> Habit {
        self.decay(now);
        self.now += 1.0 / NOW_S;
        self.usual += 1.0 / USUAL_S;
        self.habit(now)
    }

    /// Exponentially weighted counts per second.
    fn decay(&mut self, now: SystemTime) {
        let passed = now.duration_since(self.last).unwrap_or_default().as_secs_f64();
        self.now *= (-passed / NOW_S).exp();
        self.usual *= (-passed / USUAL_S).exp();
        self.last = now.max(self.last);
    }

    fn habit(&mut self, now: SystemTime) -> Habit {
        self.decay(now);
        let known_for = now.duration_since(self.first).unwrap_or_default();
        // The long average has not yet filled: it is scaled to the time that it has seen.
        let share = 1.0 - (-known_for.as_secs_f64() / USUAL_S).exp();
        let usual = self.usual / share.max(1e-9);
        let knows = known_for >= LEARNS_FOR && usual > 0.0;
        Habit { known_for: Some(known_for), rate_ratio: knows.then(|| (self.now / usual) as f32) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: f64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs_f64(1e9 + seconds)
    }

    #[test]
    fn an_even_rate_is_usual_and_a_burst_is_not() {
        let mut seen = Seen { first: at(0.0), last: at(0.0), now: 0.0, usual: 0.0 };
        let mut habit = Habit { known_for: None, rate_ratio: None };
        for second in 1..600 {
            habit = seen.note(at(f64::from(second)));
            assert_eq!(habit.rate_ratio.is_some(), second >= 60, "{second}");
        }
        let even = habit.rate_ratio.unwrap();
        assert!((0.8..1.3).contains(&even), "{even}");
        for n in 0..500 {
            habit = seen.note(at(600.0 + f64::from(n) * 0.01));
        }
        assert!(habit.rate_ratio.unwrap() > 8.0, "{:?}", habit.rate_ratio);
    }

    #[test]
    fn a_clock_that_is_set_back_harms_nothing() {
        let mut seen = Seen { first: at(100.0), last: at(100.0), now: 0.0, usual: 0.0 };
        assert_eq!(seen.note(at(0.0)).known_for, Some(Duration::ZERO));
        assert!(seen.note(at(200.0)).rate_ratio.unwrap().is_finite());
    }
}
