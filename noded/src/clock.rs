//! The one place where this process reads the wall clock. Protocol logic takes the time as an argument.

use std::time::{SystemTime, UNIX_EPOCH};

use openred_proto::id::UnixMillis;

/// Now, by this machine's clock; zero if it stands before 1970.
pub(crate) fn now() -> UnixMillis {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    UnixMillis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
