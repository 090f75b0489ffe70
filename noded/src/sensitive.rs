//! Addresses and ids in logs: hidden unless the operator asked to see them (docs/logging.md).

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};

static SHOWN: AtomicBool = AtomicBool::new(false);

/// Wraps what tells who talks to whom; prints `[hidden]` unless [`show_sensitive`] was called.
#[derive(Clone, Copy)]
pub(crate) struct Sensitive<T>(pub(crate) T);

/// Called once at start when the configuration says `log.sensitive = true`.
pub fn show_sensitive() {
    SHOWN.store(true, Ordering::Relaxed);
}

impl<T: fmt::Display> fmt::Display for Sensitive<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if SHOWN.load(Ordering::Relaxed) { self.0.fmt(f) } else { f.write_str("[hidden]") }
    }
}

impl<T: fmt::Display> fmt::Debug for Sensitive<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
