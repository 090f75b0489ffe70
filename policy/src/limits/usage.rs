//! What a process uses, as the kernel says it to anybody, and whether that is too much.
//!
//! Memory is what is the process's alone: anonymous, in swap, and shared memory beyond the copy of its own program. The proportional
//! share (`smaps_rollup`) would say the same of libraries more finely, but the kernel shows it to no ordinary user of a process that is not dumpable.

use std::collections::VecDeque;
use std::fs;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use nix::unistd::{SysconfVar, sysconf};

use super::{Held, Resource, Way};
use crate::self_check::status_field;

/// The processor's share is judged over this long: a rush is no breach.
const SPAN: Duration = Duration::from_secs(10);
/// Looks that are kept for that; those between are not.
const LOOKS: u32 = 32;

/// What a process has and has used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Used {
    /// Bytes, see the file's head.
    pub memory: u64,
    /// Processor time since its start, in microseconds.
    pub cpu: u64,
    /// Threads.
    pub tasks: u64,
}

impl Used {
    /// Of a process that is there; `program` is the size of its program's copy in memory.
    #[must_use]
    pub fn read(pid: i32, program: u64) -> Option<Self> {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        Self::parse(&status, &stat, program)
    }

    fn parse(status: &str, stat: &str, program: u64) -> Option<Self> {
        let kib = |field| -> Option<u64> { status_field(status, field)?.strip_suffix(" kB")?.trim().parse().ok() };
        // A process on its way out has no memory, and no such lines.
        let bytes = |field| kib(field).unwrap_or(0) * 1024;
        // The name, between brackets, may hold anything (proc_pid_stat(5)); utime and stime are fields 14 and 15.
        let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
        let mut ticks = || fields.next()?.parse::<u64>().ok();
        let ticks = ticks()?.saturating_add(ticks()?);
        Some(Self {
            memory: bytes("RssAnon") + bytes("VmSwap") + bytes("RssShmem").saturating_sub(program),
            cpu: ticks.saturating_mul(1_000_000 / ticks_a_second()),
            tasks: status_field(status, "Threads")?.parse().ok()?,
        })
    }
}

fn ticks_a_second() -> u64 {
    static TICKS: OnceLock<u64> = OnceLock::new();
    let ask = || sysconf(SysconfVar::CLK_TCK).ok().flatten().and_then(|ticks| u64::try_from(ticks).ok());
    *TICKS.get_or_init(|| ask().filter(|ticks| *ticks > 0).unwrap_or(100))
}

/// The looks at one process. Time is an argument.
#[derive(Debug, Default)]
pub struct Usage {
    looks: VecDeque<(Instant, u64)>,
    last: Option<Used>,
}

impl Usage {
    /// Looks at a process; the limit that it broke and that nobody but the supervisor holds, if it has.
    pub fn look(&mut self, held: &Held, pid: i32, now: Instant) -> Option<Resource> {
        let used = Used::read(pid, held.program())?;
        self.judge(held, used, now)
    }

    /// What the last look saw.
    #[must_use]
    pub fn last(&self) -> Option<Used> {
        self.last
    }

    fn judge(&mut self, held: &Held, used: Used, now: Instant) -> Option<Resource> {
        self.last = Some(used);
        let share = self.share(used.cpu, now);
        let limits = held.limits();
        let watched = |resource| held.way(resource) == Way::Watch;
        match () {
            () if watched(Resource::Memory) && used.memory > limits.memory => Some(Resource::Memory),
            () if watched(Resource::Cpu) && share > u64::from(limits.cpu) => Some(Resource::Cpu),
            // The kernel refuses them; were it not so, this would.
            () if held.way(Resource::Tasks) == Way::Rlimit && used.tasks > u64::from(limits.tasks) => {
                Some(Resource::Tasks)
            }
            () => None,
        }
    }

    /// Percent of one processor over the last [`SPAN`]; nothing before that has passed.
    fn share(&mut self, cpu: u64, now: Instant) -> u64 {
        let age = |at: Instant| now.saturating_duration_since(at);
        if self.looks.back().is_none_or(|(at, _)| age(*at) >= SPAN / LOOKS) {
            self.looks.push_back((now, cpu));
        }
        // The oldest one that is kept is older than the span, and the next is not.
        while self.looks.get(1).is_some_and(|(at, _)| age(*at) >= SPAN) {
            self.looks.pop_front();
        }
        match self.looks.front() {
            Some((at, before)) if age(*at) >= SPAN => {
                let passed = u64::try_from(age(*at).as_micros()).unwrap_or(u64::MAX);
                cpu.saturating_sub(*before).saturating_mul(100) / passed
            }
            _ => 0,
        }
    }
}

/// The soft limit of a resource in `/proc/<pid>/limits`.
pub(super) fn limit(limits: &str, resource: Resource) -> Option<u64> {
    let name = match resource {
        Resource::Tasks => "Max processes",
        Resource::Descriptors => "Max open files",
        Resource::Memory | Resource::Cpu => return None,
    };
    limits.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::limits::{Limits, Ways};

    fn held(limits: Limits) -> Held {
        Ways::without_groups().hold("m", limits, 0).unwrap()
    }

    #[test]
    fn this_process_uses_something() {
        let used = Used::read(std::process::id() as i32, 0).unwrap();
        assert!(used.memory > 0 && used.tasks >= 1);
        assert_eq!(Used::read(0, 0), None);
        let status = "RssAnon:\t 8 kB\nVmSwap:\t 1 kB\nRssShmem:\t 6 kB\nThreads:\t3\n";
        let stat = "7 (a) 9 (b) S 1 1 1 0 -1 0 1 0 0 0 70 30 0 0";
        let used = Used::parse(status, stat, 4096).unwrap();
        assert_eq!((used.memory, used.tasks), ((8 + 1 + 2) * 1024, 3), "the program's own copy is not its memory");
        assert_eq!(used.cpu, 100 * 1_000_000 / ticks_a_second());
        assert_eq!(Used::parse("Threads:\t3\n", "7 (a", 0), None);
    }

    #[test]
    fn what_the_supervisor_holds_is_judged_by_its_looks() {
        let held = held(Limits { memory: 1 << 16, cpu: 50, tasks: 4, descriptors: 8 });
        let (mut usage, begun) = (Usage::default(), Instant::now());
        let mut look = |second: u64, memory: u64, cpu: u64, tasks: u64| {
            usage.judge(&held, Used { memory, cpu: cpu * 1_000_000, tasks }, begun + Duration::from_secs(second))
        };
        assert_eq!(look(0, 1 << 16, 0, 4), None);
        assert_eq!(look(1, (1 << 16) + 1, 1, 4), Some(Resource::Memory));
        assert_eq!(look(2, 10, 2, 5), Some(Resource::Tasks));
        assert_eq!(look(9, 10, 9, 1), None, "a rush is no breach");
        assert_eq!(look(10, 10, 10, 1), Some(Resource::Cpu));
        assert_eq!(look(25, 10, 14, 1), None, "it has become quiet");
        // However often it is looked.
        let (mut usage, mut broken) = (Usage::default(), false);
        for milli in 0..11_000 {
            let used = Used { memory: 0, cpu: milli * 1000, tasks: 1 };
            broken |= usage.judge(&held, used, begun + Duration::from_millis(milli)).is_some();
        }
        assert!(broken && usage.looks.len() <= LOOKS as usize + 2);
    }

    #[test]
    fn what_a_group_holds_is_not_judged_here() {
        let held = Held { ways: [Way::CgroupV1; 4], ..held(Limits { memory: 1, cpu: 1, tasks: 1, descriptors: 1 }) };
        let (mut usage, begun) = (Usage::default(), Instant::now());
        for second in 0..30 {
            let used = Used { memory: 1 << 30, cpu: second * 4_000_000, tasks: 99 };
            assert_eq!(usage.judge(&held, used, begun + Duration::from_secs(second)), None);
        }
        assert!(usage.last().is_some());
    }
}
