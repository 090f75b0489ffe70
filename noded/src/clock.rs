//! The one place where this process reads the wall clock. Protocol logic takes the time as an argument.

use std::time::{SystemTime, UNIX_EPOCH};

use openred_proto::id::UnixMillis;

/// Now, by this machine's clock; zero if it stands before 1970.
pub(crate) fn now() -> UnixMillis {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let now = UnixMillis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX));
    #[cfg(test)]
    let now = UnixMillis(now.0.saturating_add_signed(stepped::by()));
    now
}

/// A clock that a test sets: what runs on its own thread sees it.
#[cfg(test)]
pub(crate) mod stepped {
    use std::cell::Cell;
    use std::time::Duration;

    thread_local! {
        static BY: Cell<i64> = const { Cell::new(0) };
    }

    pub(super) fn by() -> i64 {
        BY.get()
    }

    /// A clock that was set; as it was before when this is dropped.
    pub(crate) struct Clock(i64);

    impl Clock {
        /// From now on the clock is so far ahead, or behind, of what it is.
        pub(crate) fn set(millis: i64) -> Self {
            Self(BY.replace(millis))
        }

        /// Time passes.
        pub(crate) fn pass(&self, time: Duration) {
            BY.set(BY.get() + i64::try_from(time.as_millis()).unwrap_or(i64::MAX));
        }
    }

    impl Drop for Clock {
        fn drop(&mut self) {
            BY.set(self.0);
        }
    }
}
