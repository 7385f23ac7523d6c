//! A failure that lasts is told of when it begins, when it becomes another, and at growing intervals.

use std::time::{Duration, SystemTime};

const FIRST_PAUSE: Duration = Duration::from_secs(60);
const LONGEST_PAUSE: Duration = Duration::from_secs(3600);

/// What was told last of something that is tried again and again.
#[derive(Default)]
pub(crate) struct Failing(Option<Told>);

struct Told {
    text: String,
    at: SystemTime,
    /// From then until the same is told again.
    pause: Duration,
}

impl Failing {
    /// Whether a failure is to be told of now.
    pub(crate) fn tells(&mut self, text: &str, now: SystemTime) -> bool {
        let pause = match &self.0 {
            Some(told) if told.text == text => {
                // A clock that was set back must not silence it.
                let passed = now.duration_since(told.at).unwrap_or(told.pause);
                if passed < told.pause {
                    return false;
                }
                (told.pause * 2).min(LONGEST_PAUSE)
            }
            _ => FIRST_PAUSE,
        };
        self.0 = Some(Told { text: text.to_owned(), at: now, pause });
        true
    }

    /// It went well.
    pub(crate) fn ended(&mut self) {
        self.0 = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_failure_is_told_more_and_more_seldom() {
        let mut failing = Failing::default();
        let at = |half_seconds: u64| SystemTime::UNIX_EPOCH + Duration::from_millis(500 * half_seconds);
        let told: Vec<u64> = (0..4 * 7200).filter(|&n| failing.tells("no", at(n))).map(|n| n / 2).collect();
        assert_eq!(told, [0, 60, 180, 420, 900, 1860, 3780, 7380, 10980]);
        assert!(failing.tells("another", at(28_800)));
        assert!(!failing.tells("another", at(28_801)));
        assert!(failing.tells("no", at(28_802)));
        assert!(failing.tells("no", at(0)), "a clock that was set back");
        failing.ended();
        assert!(failing.tells("no", at(1)));
    }
}
