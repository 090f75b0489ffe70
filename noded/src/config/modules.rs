//! `[modules]`: the modules' processes.

use serde::{Deserialize, Serialize};

/// `[modules]`: the modules' processes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ModulesConfig {
    /// A module that is not called for so many seconds is ended, and started by the next call; zero: never.
    pub idle_seconds: u32,
}
