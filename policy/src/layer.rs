//! Names of the layers, and one line of a report about a layer. Plain values: written by the child about itself, by the
//! supervisor about what it sees, printed by `openred doctor`.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::role::Role;

/// A layer of the cage, in the order in which it is applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LayerName {
    /// Nobody traces the process.
    Untraced,
    /// Core dumps off.
    CoreDumps,
    /// Session of its own, umask, one malloc arena.
    Session,
    /// Exactly the expected descriptors are open.
    Descriptors,
    /// Mount, network, IPC, UTS and cgroup namespaces.
    Namespaces,
    /// The user namespace of an ordinary user's process.
    UserNamespace,
    /// The empty root directory.
    EmptyRoot,
    /// Uid, gid and groups; root does not come back.
    Uid,
    /// Where child and supervisor meet.
    Barrier,
    /// Resource limits.
    Limits,
    /// What a foreign program may take of the machine, and which way holds it.
    Resources,
    /// All five capability sets empty, securebits locked.
    Capabilities,
    /// No mapping becomes executable.
    MemoryExec,
    /// `no_new_privs`.
    NoNewPrivs,
    /// Landlock.
    Landlock,
    /// Not dumpable: memory and `/proc` entries closed to the same uid.
    NotDumpable,
    /// The clock is read without a system call.
    Clock,
    /// The allocator's arena.
    Arena,
    /// The system-call filter.
    Seccomp,
    /// Threads: how many, and each one filtered.
    Threads,
    /// Network interfaces that the process can see.
    Interfaces,
    /// Mounts that the process can see.
    Mounts,
    /// Starting a child.
    Spawn,
}

impl LayerName {
    /// What an operator can do when this layer cannot be had.
    #[must_use]
    pub const fn way_out(self) -> &'static str {
        match self {
            LayerName::Untraced => "end the tracer and start again",
            LayerName::Descriptors => "start it through `openred up`, which passes exactly these descriptors",
            LayerName::Namespaces | LayerName::EmptyRoot => {
                "run as root with CAP_SYS_ADMIN, or as a user who may create user namespaces"
            }
            LayerName::UserNamespace => {
                "allow user namespaces (sysctl user.max_user_namespaces, kernel.apparmor_restrict_unprivileged_userns=0) or run as root"
            }
            LayerName::Uid => {
                "give the process a uid other than 0 that no other process has (uid_base in the configuration)"
            }
            LayerName::Landlock => {
                "use Linux 6.12 or newer with Landlock enabled (lsm=landlock,... on the kernel command line)"
            }
            LayerName::MemoryExec => "use Linux 6.3 or newer",
            LayerName::Clock => "use a clock source that the vDSO serves (tsc, kvm-clock, hyperv or arch_sys_counter)",
            LayerName::Seccomp => "use a kernel built with CONFIG_SECCOMP_FILTER",
            LayerName::Arena => {
                "use Linux 6.10 or newer with secret memory (secretmem.enable=1 on the kernel command line), and let it lock 32 MiB (ulimit -l, or CAP_IPC_LOCK)"
            }
            LayerName::Resources => "see docs/sandbox.md, section `Limits`",
            LayerName::Spawn => "check that the program lies beside `openred` and may be executed",
            _ => "see docs/sandbox.md, section `When a layer fails`",
        }
    }
}

impl fmt::Display for LayerName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The serialised name is the printed name: one spelling in logs, JSON and tables.
        self.serialize(out)
    }
}

/// One line about one layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    /// Which layer.
    pub name: LayerName,
    /// What must be so.
    pub expected: String,
    /// What is so.
    pub seen: String,
    /// Whether the two agree.
    pub ok: bool,
    /// A remark for the operator; often empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
}

impl Layer {
    /// A line that holds when `expected` and `seen` are the same text.
    #[must_use]
    pub fn new(name: LayerName, expected: impl Into<String>, seen: impl Into<String>) -> Self {
        let (expected, seen) = (expected.into(), seen.into());
        let ok = expected == seen;
        Self { name, expected, seen, ok, detail: String::new() }
    }

    /// The same line with a remark.
    #[must_use]
    pub fn detail(mut self, text: impl Into<String>) -> Self {
        self.detail = text.into();
        self
    }
}

/// What a process says about itself once it is confined. The supervisor believes only what it sees from outside
/// ([`crate::observe`]); this names what cannot be seen there (probes from inside).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerReport {
    /// The role it confined itself as.
    pub role: Role,
    /// One line a layer, in the order applied.
    pub layers: Vec<Layer>,
    /// System calls that its filter can let through, counted from the filter itself.
    pub syscalls_allowed: usize,
}
