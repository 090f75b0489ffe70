//! The modules' timers: one bounded table, one waiter.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use openred_module::TimerId;
use openred_proto::id::UnixMillis;
use tokio::sync::Notify;

use crate::clock;

/// Timers of all modules. A module has a handful; beyond this, new ones are dropped.
const TIMERS: usize = 1024;
/// Of those, of one module.
const OF_ONE: usize = 256;
/// The wall clock may jump while a timer waits: it is looked at again at least this often.
const LOOK_AGAIN: Duration = Duration::from_secs(30);
/// How far ahead a timer may be by the monotonic clock, which has an end: a module that asks for more is asked sooner.
const FARTHEST: Duration = Duration::from_secs(366 * 24 * 3600);

/// When a timer is due, whichever comes first: a clock that is set back must not hold it up by as much.
#[derive(Clone, Copy)]
struct Due {
    /// By the wall clock.
    at: UnixMillis,
    /// As long after it was set as the wall clock said then.
    by: Instant,
}

impl Due {
    fn new(at: UnixMillis, (now, instant): (UnixMillis, Instant)) -> Self {
        Self { at, by: instant + Duration::from_millis(at.0.saturating_sub(now.0)).min(FARTHEST) }
    }

    fn left(self, (now, instant): (UnixMillis, Instant)) -> Duration {
        let wall = Duration::from_millis(self.at.0.saturating_sub(now.0));
        wall.min(self.by.saturating_duration_since(instant))
    }
}

/// Which timers are set.
#[derive(Default)]
pub(super) struct Timers {
    set: Mutex<BTreeMap<(&'static str, TimerId), Due>>,
    changed: Notify,
}

impl Timers {
    /// Sets or moves a timer; false where there are too many.
    pub(super) fn set(&self, module: &'static str, timer: TimerId, at: UnixMillis) -> bool {
        self.set_at(module, timer, at, moment())
    }

    fn set_at(&self, module: &'static str, timer: TimerId, at: UnixMillis, now: (UnixMillis, Instant)) -> bool {
        {
            let mut set = self.set.lock().unwrap_or_else(PoisonError::into_inner);
            let own = set.range((module, TimerId::MIN)..=(module, TimerId::MAX)).count();
            if (set.len() >= TIMERS || own >= OF_ONE) && !set.contains_key(&(module, timer)) {
                return false;
            }
            set.insert((module, timer), Due::new(at, now));
        }
        self.changed.notify_one();
        true
    }

    /// Drops those of a module that is gone.
    pub(super) fn forget(&self, module: &'static str) {
        let mut set = self.set.lock().unwrap_or_else(PoisonError::into_inner);
        set.retain(|(of, _), _| *of != module);
    }

    /// Waits for the next timer that is due and takes it.
    pub(super) async fn due(&self) -> (&'static str, TimerId) {
        loop {
            let wait = match self.take(moment()) {
                Ok(due) => return due,
                Err(wait) => wait,
            };
            tokio::select! {
                () = self.changed.notified() => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// The earliest timer if it is due, else how long to wait.
    fn take(&self, now: (UnixMillis, Instant)) -> Result<(&'static str, TimerId), Duration> {
        let mut set = self.set.lock().unwrap_or_else(PoisonError::into_inner);
        let left = set.iter().map(|(&key, due)| (due.left(now), due.at, key));
        let Some((left, _, key)) = left.min() else { return Err(LOOK_AGAIN) };
        if left.is_zero() {
            set.remove(&key);
            return Ok(key);
        }
        Err(left.min(LOOK_AGAIN))
    }
}

/// Now, by both clocks.
fn moment() -> (UnixMillis, Instant) {
    (clock::now(), Instant::now())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_earliest_due_timer_comes_first_and_once() {
        let (timers, begun) = (Timers::default(), Instant::now());
        let at = |millis| (UnixMillis(millis), begun + Duration::from_millis(millis));
        assert_eq!(timers.take(at(5)), Err(LOOK_AGAIN));
        timers.set_at("m", 1, UnixMillis(20), at(5));
        timers.set_at("m", 2, UnixMillis(10), at(5));
        timers.set_at("m", 1, UnixMillis(15), at(5));
        assert_eq!(timers.take(at(5)), Err(Duration::from_millis(5)));
        assert_eq!(timers.take(at(15)), Ok(("m", 2)));
        assert_eq!(timers.take(at(15)), Ok(("m", 1)));
        assert_eq!(timers.take(at(99)), Err(LOOK_AGAIN));
    }

    #[test]
    fn a_clock_that_is_set_makes_no_timer_late() {
        const HOUR: u64 = 3_600_000;
        let (timers, begun) = (Timers::default(), Instant::now());
        let after = |seconds| begun + Duration::from_secs(seconds);
        timers.set_at("m", 1, UnixMillis(2 * HOUR + 60_000), (UnixMillis(2 * HOUR), begun));
        // Set back by an hour: as late as it was to be, not an hour later.
        assert_eq!(timers.take((UnixMillis(HOUR), begun)), Err(LOOK_AGAIN));
        assert_eq!(timers.take((UnixMillis(HOUR + 50_000), after(50))), Err(Duration::from_secs(10)));
        assert_eq!(timers.take((UnixMillis(HOUR + 60_000), after(60))), Ok(("m", 1)));
        // Set on by an hour: its moment has come.
        timers.set_at("m", 1, UnixMillis(2 * HOUR), (UnixMillis(HOUR), begun));
        assert_eq!(timers.take((UnixMillis(2 * HOUR), after(1))), Ok(("m", 1)));
        // As far ahead as there is.
        timers.set_at("m", 1, UnixMillis(u64::MAX), (UnixMillis(0), begun));
        assert_eq!(timers.take((UnixMillis(HOUR), after(3600))), Err(LOOK_AGAIN));
    }
}
