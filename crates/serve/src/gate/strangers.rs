//! Refusals of those whom nobody recognises: anybody who reaches the port can have them by the thousand, so that only some have a record
//! and a line of their own. The others are counted, and the log is told how many they were.

use std::{
    net::IpAddr,
    time::{Duration, SystemTime},
};

use parking_lot::Mutex;

/// How many have a record of their own at once, and how many more each second.
const BURST: f64 = 200.0;
const PER_SECOND: f64 = 10.0;
/// Those that have none are told of at most so often.
const TELL_EVERY: Duration = Duration::from_secs(5);

/// What is known of refusals of nobody.
#[derive(Default)]
pub(super) struct Strangers(Mutex<State>);

#[derive(Default)]
struct State {
    /// Used up, and as of when.
    used: f64,
    as_of: Option<SystemTime>,
    left_out: LeftOut,
    told: Option<SystemTime>,
}

/// Refusals without a record of their own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct LeftOut {
    pub(super) count: u64,
    /// Where the last came from.
    pub(super) last: Option<IpAddr>,
}

impl Strangers {
    /// True where a refusal has a record and a line of its own; else it is counted.
    pub(super) fn has_record(&self, source: IpAddr, now: SystemTime) -> bool {
        let mut state = self.0.lock();
        let passed = state.as_of.and_then(|as_of| now.duration_since(as_of).ok()).unwrap_or_default();
        state.used = (state.used - passed.as_secs_f64() * PER_SECOND).max(0.0);
        state.as_of = Some(now);
        if state.used + 1.0 <= BURST {
            state.used += 1.0;
            return true;
        }
        state.left_out.count += 1;
        state.left_out.last = Some(source);
        false
    }

    /// What the log is to be told now; nothing where all had records of their own, or it was told a short time ago.
    pub(super) fn to_tell(&self, now: SystemTime) -> Option<LeftOut> {
        let mut state = self.0.lock();
        let recent = state.told.is_some_and(|told| now.duration_since(told).is_ok_and(|ago| ago < TELL_EVERY));
        if state.left_out.count == 0 || recent {
            return None;
        }
        state.told = Some(now);
        Some(std::mem::take(&mut state.left_out))
    }

    /// What is still to be told, at the end.
    pub(super) fn rest(&self) -> Option<LeftOut> {
        Some(std::mem::take(&mut self.0.lock().left_out)).filter(|left_out| left_out.count > 0)
    }

    /// The log did not take it.
    pub(super) fn untold(&self, left_out: LeftOut) {
        let mut state = self.0.lock();
        state.left_out.count += left_out.count;
        state.left_out.last = state.left_out.last.or(left_out.last);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_has_a_bounded_number_of_records_and_is_counted_whole() {
        let (strangers, source) = (Strangers::default(), IpAddr::from([192, 0, 2, 1]));
        let begin = SystemTime::UNIX_EPOCH + Duration::from_secs(1 << 31);
        let (mut recorded, mut told) = (0, 0);
        for step in 0..100_000u32 {
            let now = begin + Duration::from_micros(100) * step;
            recorded += u64::from(strangers.has_record(source, now));
            told += strangers.to_tell(now).map_or(0, |left_out| left_out.count);
        }
        // 10 s at 10 a second, beside the burst.
        assert!((295..=300).contains(&recorded), "{recorded}");
        let rest = strangers.rest().unwrap();
        assert_eq!((recorded + told + rest.count, rest.last), (100_000, Some(source)));
        assert_eq!(strangers.rest(), None);
        strangers.untold(rest);
        assert_eq!(strangers.rest(), Some(rest));
        assert!(strangers.has_record(source, begin + Duration::from_secs(11)), "who comes later is seen again");
    }

    #[test]
    fn a_clock_that_goes_back_opens_no_flood() {
        let (strangers, source) = (Strangers::default(), IpAddr::from([192, 0, 2, 1]));
        let begin = SystemTime::UNIX_EPOCH + Duration::from_secs(1 << 31);
        let recorded = (0..1000).filter(|n| strangers.has_record(source, begin - Duration::from_secs(*n))).count();
        assert_eq!(recorded as f64, BURST);
    }
}
