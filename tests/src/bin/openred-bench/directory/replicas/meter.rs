//! Processor time of all that takes part: the directories, PostgreSQL with its connections' processes, NATS, and the measuring process.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::Result;
use nix::time::ClockId;
use nix::unistd::Pid;

use super::World;

/// Whose time, in the order of [`Spent::of`].
pub(super) const WHOSE: [&str; 4] = ["directories", "database", "nats", "generator"];

type Clocks = [HashMap<i32, Duration>; WHOSE.len()];

/// The clocks at a moment.
pub(super) struct Meter {
    before: Clocks,
    begun: Instant,
}

/// What was spent since.
pub(super) struct Spent {
    pub(super) of: [Duration; WHOSE.len()],
    pub(super) elapsed: Duration,
}

impl Meter {
    pub(super) fn since_now(world: &World) -> Result<Self> {
        Ok(Self { before: clocks(world)?, begun: Instant::now() })
    }

    pub(super) fn end(self, world: &World) -> Result<Spent> {
        let (after, elapsed) = (clocks(world)?, self.begun.elapsed());
        // A process that has come meanwhile began at nought; one that has gone took little.
        let spent = |place: usize| {
            let since = |(pid, after): (&i32, &Duration)| {
                after.saturating_sub(self.before[place].get(pid).copied().unwrap_or_default())
            };
            after[place].iter().map(since).sum()
        };
        Ok(Spent { of: std::array::from_fn(spent), elapsed })
    }
}

fn clocks(world: &World) -> Result<Clocks> {
    let directories = world.served.iter().filter_map(|served| served.pid().ok()).collect();
    let own = i32::try_from(std::process::id())?;
    let all: [Vec<i32>; WHOSE.len()] = [directories, world.cluster.processes()?, vec![world.broker.pid()?], vec![own]];
    Ok(all.map(|pids| {
        let clock = |pid| Some((pid, ClockId::pid_cpu_clock_id(Pid::from_raw(pid)).ok()?.now().ok()?.into()));
        pids.into_iter().filter_map(clock).collect()
    }))
}
