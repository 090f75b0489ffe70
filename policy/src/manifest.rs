//! The expected state of each process as data (`manifest/*.toml`), read by the supervisor and by `openred doctor`.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::role::Role;

/// Which network interfaces a process may see.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Interfaces {
    /// None but a `lo` that is down.
    None,
    /// Those of the host.
    Host,
}

/// What must be seen of a process from outside.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Whose manifest it is.
    pub role: Role,
    /// Most threads.
    pub threads_at_most: usize,
    /// Namespaces that must differ from the supervisor's, by their names under `/proc/<pid>/ns`.
    pub own_namespaces: Vec<String>,
    /// Interfaces it may see.
    pub interfaces: Interfaces,
    /// Whether anything may be mounted in its root.
    pub keeps_paths: bool,
    /// Fields of the status text, for the process and each of its tasks.
    pub status: BTreeMap<String, String>,
}

impl Manifest {
    /// The manifest of a caged role; `None` for the supervisor.
    #[must_use]
    pub fn of(role: Role) -> Option<Self> {
        let text = match role {
            Role::Front => include_str!("../manifest/front.toml"),
            Role::Vault => include_str!("../manifest/vault.toml"),
            Role::Unseal => include_str!("../manifest/unseal.toml"),
            Role::Noded => include_str!("../manifest/noded.toml"),
            Role::Directory => include_str!("../manifest/directory.toml"),
            Role::Module => include_str!("../manifest/module.toml"),
            Role::Supervisor => return None,
        };
        Some(toml::from_str(text).expect("the manifests are part of this crate and a test parses each"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_caged_role_has_one() {
        for role in Role::FILTERED {
            let manifest = Manifest::of(role);
            assert!(manifest.as_ref().is_some_and(|found| found.role == role), "{role}");
            assert_eq!(manifest.is_some_and(|found| found.interfaces == Interfaces::Host), role.keeps_network());
            assert_eq!(Manifest::of(role).is_some_and(|found| found.keeps_paths), role.keeps_paths());
        }
    }
}
