//! The modules' timers: one bounded table, one waiter.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use openred_module::TimerId;
use openred_proto::id::UnixMillis;
use tokio::sync::Notify;

use crate::clock;

/// Timers of all modules. A module has a handful; beyond this, new ones are dropped and logged.
const TIMERS: usize = 1024;
/// The wall clock may jump while a timer waits: it is looked at again at least this often.
const LOOK_AGAIN: Duration = Duration::from_secs(30);

/// Which timers are set.
#[derive(Default)]
pub(super) struct Timers {
    set: Mutex<BTreeMap<(&'static str, TimerId), UnixMillis>>,
    changed: Notify,
}

impl Timers {
    /// Sets or moves a timer.
    pub(super) fn set(&self, module: &'static str, timer: TimerId, at: UnixMillis) {
        {
            let mut set = self.set.lock().unwrap_or_else(PoisonError::into_inner);
            if set.len() >= TIMERS && !set.contains_key(&(module, timer)) {
                return tracing::warn!(module, timer, "too many timers; this one is dropped");
            }
            set.insert((module, timer), at);
        }
        self.changed.notify_one();
    }

    /// Waits for the next timer that is due and takes it.
    pub(super) async fn due(&self) -> (&'static str, TimerId) {
        loop {
            let wait = match self.take(clock::now()) {
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
    fn take(&self, now: UnixMillis) -> Result<(&'static str, TimerId), Duration> {
        let mut set = self.set.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((&key, &at)) = set.iter().min_by_key(|(_, at)| **at) else { return Err(LOOK_AGAIN) };
        if at <= now {
            set.remove(&key);
            return Ok(key);
        }
        Err(Duration::from_millis(at.0 - now.0).min(LOOK_AGAIN))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_earliest_due_timer_comes_first_and_once() {
        let timers = Timers::default();
        assert_eq!(timers.take(UnixMillis(5)), Err(LOOK_AGAIN));
        timers.set("m", 1, UnixMillis(20));
        timers.set("m", 2, UnixMillis(10));
        timers.set("m", 1, UnixMillis(15));
        assert_eq!(timers.take(UnixMillis(5)), Err(Duration::from_millis(5)));
        assert_eq!(timers.take(UnixMillis(15)), Ok(("m", 2)));
        assert_eq!(timers.take(UnixMillis(15)), Ok(("m", 1)));
        assert_eq!(timers.take(UnixMillis(99)), Err(LOOK_AGAIN));
    }
}
