//! The roles a process can have, and how its uid relates to the host. Names only; what a role may do is data elsewhere.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What a process of a node is. The name is the same in file names, barrier lines and reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// `openred up`: starts and watches the others. It is not caged by this crate; it is here so that reports can name it.
    Supervisor,
    /// `cryptod`: parses gRPC, holds no key of the node.
    Front,
    /// `cryptod-vault`: holds the keys.
    Vault,
    /// `cryptod-unseal`: opens or creates the keystore, then exits.
    Unseal,
    /// `noded`: the network side.
    Noded,
    /// `directory serve`.
    Directory,
    /// A foreign program that the launcher started: it does not confine itself.
    Module,
}

impl Role {
    /// Every role of our own programs, which confine themselves.
    pub const CAGED: [Role; 5] = [Role::Front, Role::Vault, Role::Unseal, Role::Noded, Role::Directory];

    /// Every role that has a filter: ours, and that of foreign programs.
    pub const FILTERED: [Role; 6] =
        [Role::Front, Role::Vault, Role::Unseal, Role::Noded, Role::Directory, Role::Module];

    /// The name in file names, barrier lines and reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Role::Supervisor => "supervisor",
            Role::Front => "front",
            Role::Vault => "vault",
            Role::Unseal => "unseal",
            Role::Noded => "noded",
            Role::Directory => "directory",
            Role::Module => "module",
        }
    }

    /// Whether paths may be kept in the role's empty root.
    #[must_use]
    pub const fn keeps_paths(self) -> bool {
        matches!(self, Role::Noded | Role::Directory | Role::Module)
    }

    /// Whether the role stays in the host's network namespace.
    #[must_use]
    pub const fn keeps_network(self) -> bool {
        matches!(self, Role::Noded | Role::Directory | Role::Supervisor)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.name())
    }
}

/// How a process's uid relates to the other processes of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Uid {
    /// Started as root: each process has a uid of its own.
    Separate,
    /// Started by an ordinary user: one user namespace a process, but all have that user's uid on the host.
    Shared,
}

impl Uid {
    /// `separate` or `shared`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Uid::Separate => "separate",
            Uid::Shared => "shared",
        }
    }

    /// What this process would give its children.
    #[must_use]
    pub fn of_this_process() -> Self {
        if nix::unistd::geteuid().is_root() { Uid::Separate } else { Uid::Shared }
    }
}

impl fmt::Display for Uid {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.name())
    }
}
