//! What one principal has used of one model.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::{Demand, Limit, Refusal, Used};
use crate::policy::{Limits, Rate, Window};

const WINDOWS: [Window; 4] = [Window::Second, Window::Minute, Window::Hour, Window::Day];

/// The used amounts.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    /// When the next request is due if requests come evenly: the theoretical arrival time of GCRA (ITU-T I.371, annex A), in nanoseconds
    /// since 1970.
    due_ns: u64,
    /// For each of [`WINDOWS`], its number since 1970 and the requests in it.
    windows: [(u64, u32); 4],
    day: u64,
    computed: Duration,
    /// Principal and model, once limits count what is used: then it is kept.
    of: Option<Box<(String, String)>>,
}

impl Ledger {
    /// Charges one request, or says which limit it meets and charges nothing. Returns the computing that was reserved, and the day.
    pub(super) fn charge(
        &mut self,
        limits: &Limits,
        compute: Duration,
        now: SystemTime,
    ) -> Result<(Duration, u64), Refusal> {
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        let due_ns = self.due(limits, now)?;
        self.check_budgets(limits, now)?;
        self.check_computing(limits, compute, now)?;
        self.due_ns = due_ns;
        for (place, window) in WINDOWS.iter().enumerate() {
            if let (true, Some(slot)) = (limits.query_budgets.contains_key(window), self.windows.get_mut(place)) {
                *slot = (slot.0.max(number(*window, now)), in_window(*slot, *window, now).saturating_add(1));
            }
        }
        let today = number(Window::Day, now);
        if today > self.day {
            (self.day, self.computed) = (today, Duration::ZERO);
        }
        self.computed = self.computed.saturating_add(compute);
        Ok((compute, self.day))
    }

    /// Remembers whose it is, where a restart must not forget it.
    pub(super) fn name(&mut self, limits: &Limits, demand: &Demand<'_>) {
        if self.of.is_none()
            && (!limits.query_budgets.is_empty() || limits.compute_per_day.is_some() || limits.rate.is_some())
        {
            self.of = Some(Box::new((demand.principal.to_owned(), demand.model.to_owned())));
        }
    }

    /// What is used in windows that have not ended.
    pub(super) fn used(&self, now: SystemTime) -> Option<Used> {
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        let (principal, model) = self.of.as_deref()?.clone();
        let [second, minute, hour, day] = self.windows;
        let open = |slot: (u64, u32), window| Some(slot).filter(|slot| slot.1 > 0 && slot.0 >= number(window, now));
        let computed = (self.day, nanos(self.computed));
        let used = Used {
            principal,
            model,
            second: open(second, Window::Second),
            minute: open(minute, Window::Minute),
            hour: open(hour, Window::Hour),
            day: open(day, Window::Day),
            computed_ns: Some(computed).filter(|(day, time)| *time > 0 && *day >= number(Window::Day, now)),
            due_ns: Some(self.due_ns).filter(|due| *due > nanos(now)),
        };
        Some(used).filter(|used| !used.is_nothing())
    }

    /// Counts what was used before. A window that is still to come was numbered by a clock that went ahead: it is the one of now.
    pub(super) fn add(&mut self, used: &Used, now: SystemTime) {
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        let before = [used.second, used.minute, used.hour, used.day];
        for ((slot, window), before) in self.windows.iter_mut().zip(WINDOWS).zip(before) {
            let Some((numbered, count)) = before else { continue };
            if numbered >= number(window, now) {
                *slot = (number(window, now), in_window(*slot, window, now).saturating_add(count));
            }
        }
        let today = number(Window::Day, now);
        if let Some((day, time)) = used.computed_ns.filter(|(day, _)| *day >= today) {
            let counted = if self.day >= today { self.computed } else { Duration::ZERO };
            (self.day, self.computed) = (day.min(today), counted.saturating_add(Duration::from_nanos(time)));
        }
        self.due_ns = self.due_ns.max(used.due_ns.unwrap_or_default());
        self.of.get_or_insert_with(|| Box::new((used.principal.clone(), used.model.clone())));
    }

    /// Charges so many queries more, which came in one request, or says which limit they meet and charges nothing.
    pub(super) fn charge_more(&mut self, limits: &Limits, queries: u32, now: SystemTime) -> Result<(), Refusal> {
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        let due_ns = match limits.rate {
            // They come at once: as many as the burst has room for.
            Some(rate) => self.due_after(rate, limits, queries, now)?,
            None => self.due_ns,
        };
        for (slot, window) in self.windows.into_iter().zip(WINDOWS) {
            let used = in_window(slot, window, now).saturating_add(queries);
            if limits.query_budgets.get(&window).is_some_and(|&budget| used > budget) {
                return Err(Refusal { limit: Limit::QueryBudget(window), retry_after: Some(until_next(window, now)) });
            }
        }
        self.due_ns = due_ns;
        for (place, window) in WINDOWS.iter().enumerate() {
            if let (true, Some(slot)) = (limits.query_budgets.contains_key(window), self.windows.get_mut(place)) {
                *slot = (slot.0.max(number(*window, now)), in_window(*slot, *window, now).saturating_add(queries));
            }
        }
        Ok(())
    }

    /// Replaces what was reserved by what was computed, unless the day is over.
    pub(super) fn settle(&mut self, reserved: Duration, computed: Duration, day: u64) {
        if day == self.day {
            self.computed = self.computed.saturating_sub(reserved).saturating_add(computed);
        }
    }

    /// When the request after this one is due.
    fn due(&mut self, limits: &Limits, now: Duration) -> Result<u64, Refusal> {
        let Some(rate) = limits.rate else { return Ok(self.due_ns) };
        self.due_after(rate, limits, 1, now)
    }

    /// When the next request is due after so many queries.
    fn due_after(&mut self, rate: Rate, limits: &Limits, queries: u32, now: Duration) -> Result<u64, Refusal> {
        let interval_ns = nanos(rate.interval());
        let in_a_second = nanos(Duration::from_secs(1)).checked_div(interval_ns).unwrap_or(u64::MAX).max(1);
        let burst = limits.burst.map_or(in_a_second, u64::from);
        let now_ns = nanos(now);
        let latest_ns = now_ns.saturating_add(interval_ns.saturating_mul(burst));
        // A due time beyond the burst is left by a clock that was set back or a limit that was raised: it becomes an empty bucket, which
        // fills from now on.
        self.due_ns = self.due_ns.min(latest_ns);
        let due_ns = self.due_ns.max(now_ns).saturating_add(interval_ns.saturating_mul(queries.into()));
        if due_ns > latest_ns {
            let retry_after = Some(Duration::from_nanos(due_ns - latest_ns));
            return Err(Refusal { limit: Limit::Rate, retry_after });
        }
        Ok(due_ns)
    }

    fn check_budgets(&self, limits: &Limits, now: Duration) -> Result<(), Refusal> {
        for (slot, window) in self.windows.into_iter().zip(WINDOWS) {
            if limits.query_budgets.get(&window).is_some_and(|&budget| in_window(slot, window, now) >= budget) {
                return Err(Refusal { limit: Limit::QueryBudget(window), retry_after: Some(until_next(window, now)) });
            }
        }
        Ok(())
    }

    fn check_computing(&self, limits: &Limits, compute: Duration, now: Duration) -> Result<(), Refusal> {
        let Some(most) = limits.compute_per_day else { return Ok(()) };
        let computed = if number(Window::Day, now) > self.day { Duration::ZERO } else { self.computed };
        if computed >= most || computed.saturating_add(compute) > most {
            let retry_after = (compute <= most && !most.is_zero()).then(|| until_next(Window::Day, now));
            return Err(Refusal { limit: Limit::ComputePerDay, retry_after });
        }
        Ok(())
    }
}

/// Requests in the window of now. A clock that was set back does not begin a window anew.
fn in_window((numbered, count): (u64, u32), window: Window, now: Duration) -> u32 {
    if number(window, now) > numbered { 0 } else { count }
}

fn number(window: Window, now: Duration) -> u64 {
    now.as_secs() / window.duration().as_secs()
}

fn until_next(window: Window, now: Duration) -> Duration {
    let length = window.duration();
    length.saturating_sub(Duration::new(now.as_secs() % length.as_secs(), now.subsec_nanos()))
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
