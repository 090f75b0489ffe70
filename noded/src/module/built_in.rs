//! The modules that come with the node: their programs lie beside `openred`, and what they are granted is not asked.
//!
//! Read by both sides: the supervisor starts no other module, `noded` awaits no other.

use std::sync::LazyLock;

use openred_module::manifest::Manifest;

/// A module that comes with the node.
#[derive(Debug)]
pub(crate) struct BuiltIn {
    /// As peers and the operator call it.
    pub(crate) id: &'static str,
    /// Its program's file name.
    pub(crate) program: &'static str,
    /// Which of the modules' uids is its own; never given to another.
    pub(crate) slot: u32,
}

impl BuiltIn {
    /// Its manifest, which its program was built with.
    pub(crate) fn manifest(&self) -> &'static Manifest {
        static ALL: LazyLock<[Manifest; 4]> = LazyLock::new(|| {
            [("messaging", MESSAGING), ("files", FILES), (MONITOR, WATCHER), (AUTH, DOOR)]
                .map(|(name, text)| Manifest::parse(name, text).expect("the manifest was read by a test"))
        });
        let own = ALL.iter().find(|manifest| manifest.id.as_str() == self.id);
        own.expect("each has its manifest, which a test looks at")
    }
}

const MESSAGING: &str = include_str!("../../../modules/messaging/openred.toml");
const FILES: &str = include_str!("../../../modules/files/openred.toml");
const WATCHER: &str = include_str!("../../../modules/monitor/openred.toml");
const DOOR: &str = include_str!("../../../modules/auth/openred.toml");

/// All of them.
pub(crate) static BUILT_IN: [BuiltIn; 4] = [
    BuiltIn { id: "messaging", program: "openred-messaging", slot: 0 },
    BuiltIn { id: "files", program: "openred-files", slot: 1 },
    BuiltIn { id: MONITOR, program: "openred-monitor", slot: 2 },
    BuiltIn { id: AUTH, program: "openred-auth", slot: 3 },
];

/// Watches the node.
pub(crate) const MONITOR: &str = "monitor";
/// Serves the operator's API.
pub(crate) const AUTH: &str = "auth";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_an_id_and_a_uid_of_its_own() {
        for (number, module) in BUILT_IN.iter().enumerate() {
            assert_eq!(module.manifest().program.as_str(), module.program);
            assert!(module.id.len() <= openred_proto::modules::MODULE_ID_BYTES);
            assert!(BUILT_IN[..number].iter().all(|other| other.id != module.id && other.slot != module.slot));
        }
    }
}
