//! `[modules]`: the modules' processes, and what may be granted to those that are installed, whatever an operator grants them.

use openred_module::manifest::{Grants, PermissionName};
use serde::{Deserialize, Serialize};

use super::BadValue;

/// `[modules]`: the modules' processes, and what may be granted to them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ModulesConfig {
    /// A module that is not called for so many seconds is ended, and started by the next call; zero: never.
    pub idle_seconds: u32,
    /// Permissions that may be granted, `NAME` for any amount or `NAME=AMOUNT`; nothing else is given, whatever was granted.
    pub ceiling: Vec<String>,
}

impl Default for ModulesConfig {
    fn default() -> Self {
        Self { idle_seconds: 0, ceiling: PermissionName::ALL.iter().map(ToString::to_string).collect() }
    }
}

impl ModulesConfig {
    pub(super) fn check(&self) -> Result<(), BadValue> {
        if self.idle_seconds > 86_400 {
            return Err(BadValue { key: "modules.idle_seconds", why: "above 86400 (a day)" });
        }
        if Grants::parse(self.ceiling.iter().map(String::as_str)).is_err() {
            let why = "each entry is a permission, as `openred module show` names them, alone or with =AMOUNT";
            return Err(BadValue { key: "modules.ceiling", why });
        }
        Ok(())
    }

    /// The ceiling, read. What [`super::NodeConfig::check`] has refused is nothing.
    #[must_use]
    pub fn ceiling(&self) -> Grants {
        Grants::parse(self.ceiling.iter().map(String::as_str)).unwrap_or_default()
    }
}
