//! One module as the supervisor has it, and its processes: one, or several while it is swapped, each a generation.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use openred_policy::limits::{Held, Resource, Usage};
use openred_policy::spawn::Exit as Ended;
use openred_proto::secret::Secret;

use crate::supervisor::child::Caged;
use crate::supervisor::installed::Known;

/// Starts of one generation within [`WINDOW`]: `noded` asks for three in ten minutes at most, and one more each time it is restarted.
const STARTS: usize = 20;
/// Starts of all generations of a module within [`WINDOW`]: the operator may swap every other second.
const SWAPS: usize = 300;
/// See [`STARTS`].
const WINDOW: Duration = Duration::from_secs(600);
/// Beyond what a module has for its end: for `noded` to say so.
const GRACE: Duration = Duration::from_secs(5);

/// A process that runs.
pub(super) struct Running {
    pub(super) child: Rc<Caged>,
    /// Where it reads its values.
    pub(super) values: std::fs::File,
    /// Its program, as it was started.
    pub(super) program: std::fs::File,
    /// As was asked.
    pub(super) stopping: bool,
    /// It may not run any more: `noded` lets it end what it does, and it is ended here then at the latest.
    pub(super) leave_by: Option<Instant>,
    pub(super) held: Arc<Held>,
    pub(super) usage: Usage,
    /// For what it was killed here.
    pub(super) broken: Option<Resource>,
}

impl Running {
    pub(super) fn leave(&mut self) {
        self.stopping = true;
        self.child.end_now();
    }

    /// The limit for which it was killed, if for one: by this process or by the kernel.
    pub(super) fn broke(&self, exit: Ended) -> Option<Resource> {
        let killed = exit == Ended::Signal(Signal::SIGKILL as i32);
        self.broken.or_else(|| self.held.killed_for()).filter(|_| killed)
    }
}

/// What a generation is to its module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rank {
    /// It is not called yet.
    Next,
    Active,
    /// Another is called in its place.
    Leaving,
}

pub(super) enum State {
    /// On its way into its cage; what it shall be given there, and whether it is not wanted any more.
    Starting(Secret<32>, bool),
    Running(Running),
}

/// One generation of a module, from the wish for it to its end.
pub(super) struct Process {
    pub(super) generation: u64,
    pub(super) rank: Rank,
    pub(super) state: State,
}

impl Process {
    /// As the board has it; one that leaves is not on the board.
    pub(super) fn label(&self, id: &str) -> Option<String> {
        match self.rank {
            Rank::Next => Some(format!("{id} (next)")),
            Rank::Active => Some(id.to_owned()),
            Rank::Leaving => None,
        }
    }

    pub(super) fn leave(&mut self) {
        match &mut self.state {
            State::Starting(_, unwanted) => *unwanted = true,
            State::Running(running) => running.leave(),
        }
    }

    /// The same, once `noded`, which hears of it, had so long to let it come to its end.
    pub(super) fn leave_in(&mut self, stop: Duration) {
        match &mut self.state {
            State::Starting(_, unwanted) => *unwanted = true,
            State::Running(running) => {
                running.leave_by.get_or_insert(Instant::now() + stop + GRACE);
            }
        }
    }
}

/// Nobody starts it before the operator says so.
pub(super) struct Quarantine {
    pub(super) why: String,
    /// One generation that broke its filter; zero: the module, which ended too often.
    pub(super) generation: u64,
}

/// A module.
pub(super) struct Entry {
    pub(super) module: Known,
    /// Whether it may run now.
    pub(super) wanted: bool,
    pub(super) quarantine: Option<Quarantine>,
    pub(super) processes: Vec<Process>,
    /// Recent starts, with their generations.
    pub(super) starts: Vec<(u64, Instant)>,
    /// `noded` waits until none of its processes is left.
    pub(super) ending: bool,
}

impl Entry {
    pub(super) fn new(module: Known) -> Self {
        let (processes, starts) = (Vec::new(), Vec::new());
        Self { module, wanted: true, quarantine: None, processes, starts, ending: false }
    }

    pub(super) fn process(&mut self, generation: u64) -> Option<&mut Process> {
        self.processes.iter_mut().find(|process| process.generation == generation)
    }

    /// Whether one more start is not too often; notes it then.
    pub(super) fn is_seldom(&mut self, generation: u64, now: Instant) -> bool {
        self.starts.retain(|(_, start)| now.saturating_duration_since(*start) < WINDOW);
        let own = self.starts.iter().filter(|(of, _)| *of == generation).count();
        let seldom = own < STARTS && self.starts.len() < SWAPS;
        if seldom {
            self.starts.push((generation, now));
        }
        seldom
    }

    /// One that was wanted away: no start too many.
    pub(super) fn forgive(&mut self, generation: u64) {
        if let Some(place) = self.starts.iter().rposition(|(of, _)| *of == generation) {
            self.starts.remove(place);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::NodeConfig;
    use crate::module::BUILT_IN;

    #[test]
    fn a_module_is_not_started_again_and_again() {
        let (mut entry, begun) = (Entry::new(Known::built_in(&BUILT_IN[0], &NodeConfig::default())), Instant::now());
        assert!((0..STARTS).all(|_| entry.is_seldom(1, begun)));
        assert!(!entry.is_seldom(1, begun + WINDOW / 2));
        assert!(entry.is_seldom(2, begun + WINDOW / 2), "the next generation is another");
        assert!(entry.is_seldom(1, begun + WINDOW));
        assert!((2..SWAPS).all(|number| entry.is_seldom(number as u64, begun + WINDOW)));
        assert!(!entry.is_seldom(1000, begun + WINDOW));
        entry.forgive(2);
        assert!(entry.is_seldom(1000, begun + WINDOW));
    }
}
