//! Raw bytes to checked types, one file a schema. Past this module only checked types travel; decoding a statement that
//! somebody signed is possible only by the function that verifies it.

pub mod card;
pub mod direct;
pub mod handshake;
pub mod link_sync;
pub mod module_word;
pub mod offer;
pub mod receipt;
pub mod session;
pub mod session_proof;
pub mod statement;
pub mod static_certificate;
pub mod succession;

use crate::error::{Result, WireError};
use crate::id::UnixMillis;
use crate::limits::CLOCK_GRACE;

/// Checks `now` against a window, with three hours of grace at both ends (PROTOCOL 1).
///
/// # Errors
/// [`WireError::OutOfTime`], naming `what` and at which end.
pub fn check_window(what: &'static str, now: UnixMillis, not_before: UnixMillis, not_after: UnixMillis) -> Result<()> {
    if now.plus(CLOCK_GRACE) < not_before {
        return Err(WireError::OutOfTime { what, early: true });
    }
    if now > not_after.plus(CLOCK_GRACE) {
        return Err(WireError::OutOfTime { what, early: false });
    }
    Ok(())
}
