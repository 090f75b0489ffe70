//! `[modules]`: the modules' processes, what they may take of the machine, and what may be granted to those that are installed, whatever an
//! operator grants them. `[module.NAME]`: the settings of one, held against its manifest here and nowhere else.

use std::collections::BTreeMap;

use openred_module::manifest::{self, Grants, Manifest, ModuleId, PermissionName, WrongSetting};
use openred_policy::limits::Limits;
use serde::{Deserialize, Serialize};

use super::{BadValue, NodeConfig};

/// Modules with settings of their own: as many as a node has uids for.
const MODULES: usize = 64;

/// `[modules]`: the modules' processes, and what may be granted to them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ModulesConfig {
    /// A module that is not called for so many seconds is ended, and started by the next call; zero: never.
    pub idle_seconds: u32,
    /// Megabytes of memory that one module may have, whatever its manifest asks for.
    pub memory_megabytes: u32,
    /// Percent of one processor, likewise.
    pub cpu_percent: u32,
    /// Threads, likewise.
    pub tasks: u32,
    /// Open files and sockets, likewise.
    pub descriptors: u32,
    /// Permissions that may be granted, `NAME` for any amount or `NAME=AMOUNT`; nothing else is given, whatever was granted.
    pub ceiling: Vec<String>,
}

impl Default for ModulesConfig {
    fn default() -> Self {
        // Who may do all that the operator may, an operator has to say here first.
        let most = PermissionName::ALL.iter().filter(|name| **name != PermissionName::NodeOperate);
        Self {
            idle_seconds: 0,
            memory_megabytes: 1024,
            cpu_percent: 200,
            tasks: 256,
            descriptors: 1024,
            ceiling: most.map(ToString::to_string).collect(),
        }
    }
}

impl ModulesConfig {
    /// `settings`: those of single modules, by name.
    pub(super) fn check(&self, settings: &BTreeMap<String, toml::Table>) -> Result<(), BadValue> {
        if settings.len() > MODULES || !settings.keys().all(|id| id.parse::<ModuleId>().is_ok()) {
            let why =
                "not [module.NAME] with a module's name, or more than 64 of them; `openred module list` names them";
            return Err(BadValue { key: "module", why });
        }
        if self.idle_seconds > 86_400 {
            return Err(BadValue { key: "modules.idle_seconds", why: "above 86400 (a day)" });
        }
        // The least are those of a manifest: a module that cannot be started at all is disabled, not starved.
        let rules = [
            ("modules.memory_megabytes", self.memory_megabytes, 8..=1 << 16, "not between 8 and 65536"),
            ("modules.cpu_percent", self.cpu_percent, 1..=6400, "not between 1 and 6400 (64 processors)"),
            ("modules.tasks", self.tasks, 1..=4096, "not between 1 and 4096"),
            ("modules.descriptors", self.descriptors, 16..=65536, "not between 16 and 65536"),
        ];
        for (key, number, range, why) in rules {
            if !range.contains(&number) {
                return Err(BadValue { key, why });
            }
        }
        if Grants::parse(self.ceiling.iter().map(String::as_str)).is_err() {
            let why = "each entry is a permission, as `openred module show` names them, alone or with =AMOUNT";
            return Err(BadValue { key: "modules.ceiling", why });
        }
        Ok(())
    }

    /// What a module may take of the machine: what it asks for, as far as it may.
    #[must_use]
    pub fn limits(&self, asked: manifest::Limits) -> Limits {
        Limits {
            memory: u64::from(asked.memory_megabytes.min(self.memory_megabytes)) << 20,
            cpu: asked.cpu_percent.min(self.cpu_percent),
            tasks: asked.tasks.min(self.tasks),
            descriptors: asked.descriptors.min(self.descriptors),
        }
    }

    /// The ceiling, read. What [`super::NodeConfig::check`] has refused is nothing.
    #[must_use]
    pub fn ceiling(&self) -> Grants {
        Grants::parse(self.ceiling.iter().map(String::as_str)).unwrap_or_default()
    }
}

impl NodeConfig {
    /// The settings of a module as TOML: what the operator says, over its manifest's defaults; empty where it has none.
    ///
    /// # Errors
    /// The first that it does not take.
    pub fn settings_of(&self, manifest: &Manifest) -> Result<String, WrongSetting> {
        let said = self.module.get(manifest.id.as_str());
        Ok(manifest.settings(said.unwrap_or(&toml::Table::new()))?.to_string())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn a_module_gets_its_settings_and_no_more_than_the_ceiling() {
        let text = "id = \"m\"\nversion = \"1.0.0\"\nprogram = \"m\"\ndescription = \"d\"\n
[limits]\nmemory_megabytes = 4096\ntasks = 2\n
[config.days]\ntype = \"integer\"\nleast = 1\nmost = 9\ndefault = 3\nhelp = \"h\"\n";
        let manifest = Manifest::parse("openred.toml", text).unwrap();
        let limits = ModulesConfig { cpu_percent: 50, ..ModulesConfig::default() }.limits(manifest.limits);
        assert_eq!(limits, Limits { memory: 1 << 30, cpu: 50, tasks: 2, descriptors: 256 });
        let mut config = NodeConfig::default();
        assert_eq!(config.settings_of(&manifest).unwrap(), "days = 3\n");
        config.module.insert("m".into(), toml::from_str("days = 5").unwrap());
        assert_eq!(config.settings_of(&manifest).unwrap(), "days = 5\n");
        config.module.insert("m".into(), toml::from_str("days = 10").unwrap());
        let wrong = config.settings_of(&manifest).unwrap_err();
        let key = |config: &NodeConfig| config.check().map_err(|bad| bad.key);
        assert_eq!(key(&config), Ok(()));
        config.modules.memory_megabytes = 7;
        assert_eq!(key(&config), Err("modules.memory_megabytes"));
        config.module.insert("Guard".into(), toml::Table::new());
        assert_eq!(key(&config), Err("module"));
        assert_eq!(wrong.to_string(), "days: not a value of it; use a whole number from 1 to 9");
    }
}
