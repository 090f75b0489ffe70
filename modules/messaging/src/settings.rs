//! The operator's settings (`[module.messaging]`), as the manifest declares them. They may change at any moment, so whoever
//! decides by one asks for them then.

use openred_module::{Context, ModuleError};

/// A struct with a field for each setting of `openred.toml`.
#[openred_module::config]
pub struct Settings;

impl Settings {
    pub(crate) fn now(context: &Context) -> Result<Self, ModuleError> {
        context.config()
    }

    /// How long messages are kept, in milliseconds; none: for ever.
    pub(crate) fn kept_millis(&self) -> Option<u64> {
        const DAY: u64 = 24 * 3_600_000;
        u64::try_from(self.retention_days).ok().filter(|days| *days > 0).map(|days| days * DAY)
    }

    /// Whether unread messages go as well.
    pub(crate) fn sweeps_unread(&self) -> bool {
        self.retention_of == "all"
    }
}
