//! How much a foreign program may take of the machine: memory, processor, tasks, descriptors; and which way holds each.
//!
//! The kernel's groups hold what they can: cgroup v2 where a subtree is ours, else the controllers of v1 where they may be written; what
//! neither holds is held by resource limits of the process, and by the supervisor, which looks and kills ([`Usage::look`]). The choice is made once, per
//! resource ([`Ways::find`]), and every way is named to the operator. A program has one process, which starts no other, so a process's
//! own limits are the program's.
//!
//! Sources: `/proc`, the mounted hierarchies. Nothing here starts or ends a process.

mod cgroup;
mod usage;

use std::fmt;
use std::io;
use std::sync::Mutex;

use nix::sys::resource::{RLIM_INFINITY, Resource as Rlimit};
use serde::{Deserialize, Serialize};

use crate::layer::{Layer, LayerName};
use cgroup::{Group, Places};
pub use usage::{Usage, Used};

const MIB: u64 = 1 << 20;
/// The largest page of any machine that this runs on.
const PAGE: u64 = 1 << 16;

/// What a program may take at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Bytes of memory that are its own: not what it shares with others, as its libraries.
    pub memory: u64,
    /// Percent of one processor.
    pub cpu: u32,
    /// Threads.
    pub tasks: u32,
    /// Open descriptors.
    pub descriptors: u32,
}

impl Default for Limits {
    /// What a module has that asks for nothing else.
    fn default() -> Self {
        Self { memory: 128 * MIB, cpu: 100, tasks: 64, descriptors: 256 }
    }
}

/// What is limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Resource {
    /// See [`Limits::memory`].
    Memory,
    /// See [`Limits::cpu`].
    Cpu,
    /// See [`Limits::tasks`].
    Tasks,
    /// See [`Limits::descriptors`].
    Descriptors,
}

impl Resource {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Memory, Self::Cpu, Self::Tasks, Self::Descriptors];

    /// Its name in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Cpu => "cpu",
            Self::Tasks => "tasks",
            Self::Descriptors => "descriptors",
        }
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.name())
    }
}

/// What holds a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// A group of the one hierarchy.
    CgroupV2,
    /// A group of a controller of its own.
    CgroupV1,
    /// A resource limit of the process (setrlimit(2)).
    Rlimit,
    /// The supervisor, which looks a few times a second and kills.
    Watch,
}

impl Way {
    /// Its name in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::CgroupV2 => "cgroup-v2",
            Self::CgroupV1 => "cgroup-v1",
            Self::Rlimit => "rlimit",
            Self::Watch => "watch",
        }
    }
}

impl fmt::Display for Way {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.name())
    }
}

/// Which way holds each limit on this machine, for this supervisor.
#[derive(Debug)]
pub struct Ways {
    places: Places,
}

impl Ways {
    /// Looks what this process may use. `node` tells the supervisors of one machine apart: groups that one of the same name left behind are
    /// removed. Call it before anything else is started: where a subtree of v2 is ours, this process moves into a leaf of it.
    #[must_use]
    pub fn find(node: &str) -> Self {
        Self { places: Places::find(node) }
    }

    /// The ways of a machine on which no group can be had.
    #[must_use]
    pub fn without_groups() -> Self {
        Self { places: Places::default() }
    }

    /// What holds this one.
    #[must_use]
    pub fn of(&self, resource: Resource) -> Way {
        match (self.places.way(resource), resource) {
            (Some(way), _) => way,
            (None, Resource::Memory | Resource::Cpu) => Way::Watch,
            (None, Resource::Tasks | Resource::Descriptors) => Way::Rlimit,
        }
    }

    /// Whether the supervisor has to look.
    #[must_use]
    pub fn watches(&self) -> bool {
        Resource::ALL.into_iter().any(|resource| self.of(resource) == Way::Watch)
    }

    /// Makes what will hold `limits` for the program `name`; `program` is the size of its file, of which it runs a copy in memory.
    ///
    /// # Errors
    /// A group that could be had when this was found, and cannot now.
    pub fn hold(&self, name: &str, limits: Limits, program: u64) -> io::Result<Held> {
        let ways = Resource::ALL.map(|resource| self.of(resource));
        // The kernel counts in pages, and so what is read back is what was set.
        let limits = Limits { memory: limits.memory / PAGE * PAGE, ..limits };
        let groups = self.places.make(name, &limits)?;
        Ok(Held { limits, ways, program, groups: Mutex::new(groups) })
    }
}

impl fmt::Display for Ways {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, resource) in Resource::ALL.into_iter().enumerate() {
            let comma = if place == 0 { "" } else { ", " };
            write!(out, "{comma}{resource} by {}", self.of(resource))?;
        }
        Ok(())
    }
}

/// What holds one program's limits. The groups go with it; a program that still ran in one would keep it.
#[derive(Debug)]
pub struct Held {
    limits: Limits,
    ways: [Way; 4],
    program: u64,
    groups: Mutex<Vec<Group>>,
}

/// A resource limit of the launcher's: its number in setrlimit(2) and the most that it leaves.
pub(crate) type Rlimited = (&'static str, Rlimit, u64);

impl Held {
    /// The limits.
    #[must_use]
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// What holds this one.
    #[must_use]
    pub fn way(&self, resource: Resource) -> Way {
        self.ways[resource as usize]
    }

    /// The most that there is of this one, in its own unit.
    #[must_use]
    pub fn most(&self, resource: Resource) -> u64 {
        match resource {
            Resource::Memory => self.limits.memory,
            Resource::Cpu => self.limits.cpu.into(),
            Resource::Tasks => self.limits.tasks.into(),
            Resource::Descriptors => self.limits.descriptors.into(),
        }
    }

    /// Bytes of the program's file.
    pub(crate) fn program(&self) -> u64 {
        self.program
    }

    /// Puts a process into the groups. For a child: while it stands at the barrier, its program's copy made and nothing of it run.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn enter(&self, pid: i32) -> io::Result<()> {
        self.groups().iter().try_for_each(|group| group.enter(pid))
    }

    fn groups(&self) -> std::sync::MutexGuard<'_, Vec<Group>> {
        self.groups.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// The resource limits that the launcher sets: those that hold a limit, and where the supervisor watches memory, those that bound what
    /// can be taken between two looks.
    pub(crate) fn rlimits(&self) -> Vec<Rlimited> {
        let mut rlimits = vec![("nofile", Rlimit::RLIMIT_NOFILE, u64::from(self.limits.descriptors))];
        if self.way(Resource::Tasks) == Way::Rlimit {
            rlimits.push(("nproc", Rlimit::RLIMIT_NPROC, u64::from(self.limits.tasks)));
        }
        if self.way(Resource::Memory) == Way::Watch {
            // Stacks and heaps are reserved before they are used, by some runtimes by the GiB.
            let memory = self.limits.memory.saturating_mul(2);
            rlimits.push(("data", Rlimit::RLIMIT_DATA, memory.saturating_add(64 * MIB)));
            rlimits.push(("as", Rlimit::RLIMIT_AS, memory.saturating_add(1024 * MIB)));
        }
        rlimits
    }

    /// One line of a report: each limit as it is read back from what holds it.
    #[must_use]
    pub fn layer(&self, pid: i32) -> Layer {
        let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap_or_default();
        let groups = self.groups();
        let seen = |resource: Resource| -> String {
            let read = match self.way(resource) {
                Way::CgroupV1 | Way::CgroupV2 => groups.iter().find_map(|group| group.read(resource, pid)),
                Way::Rlimit => usage::limit(&limits, resource),
                // Held by the one who asks.
                Way::Watch => Some(self.most(resource)),
            };
            read.map_or_else(|| format!("{resource} not held"), |most| format!("{resource} {most}"))
        };
        let expected = Resource::ALL.map(|resource| format!("{resource} {}", self.most(resource)));
        let ways = Resource::ALL.map(|resource| format!("{resource} by {}", self.way(resource)));
        Layer::new(LayerName::Resources, expected.join(", "), Resource::ALL.map(seen).join(", "))
            .detail(ways.join(", "))
    }

    /// The limit for which the kernel has killed a process of these groups, if it has.
    #[must_use]
    pub fn killed_for(&self) -> Option<Resource> {
        self.groups().iter().any(Group::killed_for_memory).then_some(Resource::Memory)
    }

    /// How often a task was refused or the processor held back, where a group counts that.
    #[must_use]
    pub fn refused(&self, resource: Resource) -> u64 {
        self.groups().iter().filter_map(|group| group.refused(resource)).sum()
    }

    /// What a program that broke this limit is said to have done.
    #[must_use]
    pub fn breach(&self, resource: Resource) -> String {
        let most = match resource {
            Resource::Memory => format!("{} MiB of memory", self.limits.memory / MIB),
            Resource::Cpu => format!("{} % of a processor", self.limits.cpu),
            Resource::Tasks => format!("{} tasks", self.limits.tasks),
            Resource::Descriptors => format!("{} descriptors", self.limits.descriptors),
        };
        format!("module.limit: {resource} (more than {most}, held by {})", self.way(resource))
    }
}

/// Reads one `NAME=NUMBER` of the launcher's command line.
pub(crate) fn parse_rlimit(text: &str) -> Option<Rlimited> {
    const KNOWN: [(&str, Rlimit); 4] = [
        ("nofile", Rlimit::RLIMIT_NOFILE),
        ("nproc", Rlimit::RLIMIT_NPROC),
        ("data", Rlimit::RLIMIT_DATA),
        ("as", Rlimit::RLIMIT_AS),
    ];
    let (name, most) = text.split_once('=')?;
    let (name, resource) = KNOWN.into_iter().find(|(known, _)| *known == name)?;
    let most = most.parse().ok().filter(|most| *most < RLIM_INFINITY)?;
    Some((name, resource, most))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn every_resource_has_a_way_without_any_group() {
        let ways = Ways::without_groups();
        assert_eq!(ways.to_string(), "memory by watch, cpu by watch, tasks by rlimit, descriptors by rlimit");
        assert!(ways.watches());
        let held = ways.hold("m", Limits::default(), 0).unwrap();
        let names: Vec<&str> = held.rlimits().iter().map(|(name, ..)| *name).collect();
        assert_eq!(names, ["nofile", "nproc", "data", "as"]);
        for (name, _, most) in held.rlimits() {
            let (read, _, number) = parse_rlimit(&format!("{name}={most}")).unwrap();
            assert_eq!((read, number), (name, most));
        }
        let text = held.breach(Resource::Memory);
        assert_eq!(text, "module.limit: memory (more than 128 MiB of memory, held by watch)");
    }

    #[test]
    fn no_other_resource_limit_is_read() {
        for text in ["", "nofile", "nofile=", "nofile=-1", "core=1", "as=18446744073709551615", "nofile=1=2"] {
            assert!(parse_rlimit(text).is_none(), "{text}");
        }
    }
}
