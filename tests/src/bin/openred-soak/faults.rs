//! Trouble as it was planned: each on a thread of its own, written down with its beginning and its end.

use std::sync::Mutex;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use openred_tests::harness::{Node, signal_pid, wait_for};

use super::crew::{Crew, Member, held};
use super::plan::{Fault, Planned, span};
use super::run::Clock;

/// How often a start is tried before it counts as failed: a service manager tries again as well.
const STARTS: usize = 5;

/// A trouble that was made. Times in seconds since the beginning.
#[derive(Clone, Debug)]
pub(crate) struct Struck {
    pub(crate) fault: Fault,
    pub(crate) from: f64,
    /// None while it lasts.
    pub(crate) to: Option<f64>,
    /// Whether there was something to strike.
    pub(crate) hit: bool,
}

/// All that were made.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    pub(crate) struck: Mutex<Vec<Struck>>,
    /// Starts that had to be tried again, with the reason.
    pub(crate) restarts: Mutex<Vec<String>>,
}

impl Faults {
    /// Makes the planned troubles, each at its time, and returns when all are over.
    pub(crate) fn make(&self, crew: &Crew, clock: &Clock, plan: &[Planned], complain: impl Fn(String) + Sync) {
        std::thread::scope(|threads| {
            for planned in plan {
                clock.nap_until(span(planned.at));
                if clock.is_over() {
                    return;
                }
                let complain = &complain;
                threads.spawn(move || {
                    if let Err(error) = self.strike(crew, clock, &planned.fault) {
                        complain(format!("{:?}: {error:#}", planned.fault));
                    }
                });
            }
        });
    }

    fn strike(&self, crew: &Crew, clock: &Clock, fault: &Fault) -> Result<()> {
        let number = {
            let mut struck = held(&self.struck);
            struck.push(Struck { fault: fault.clone(), from: clock.seconds(), to: None, hit: true });
            struck.len() - 1
        };
        let hit = self.act(crew, clock, fault);
        let mut struck = held(&self.struck);
        struck[number].to = Some(clock.seconds());
        struck[number].hit = *hit.as_ref().unwrap_or(&true);
        hit.map(|_| ())
    }

    /// False when there was nothing to strike.
    fn act(&self, crew: &Crew, clock: &Clock, fault: &Fault) -> Result<bool> {
        let member = |node: usize| &crew.members[node];
        match *fault {
            Fault::Kill { node, process } => return Ok(member(node).kill(process)),
            Fault::KillSupervisor { node, away } => self.fell(member(node), clock, away)?,
            Fault::Restart { node, away } => {
                let mut running = held(&member(node).node);
                running.down()?;
                clock.nap(span(away));
                self.start(member(node), &mut running)?;
            }
            Fault::KillDirectory { away } => {
                let mut directory = held(&crew.guide.directory);
                signal_pid(directory.pid()?, Signal::SIGKILL)?;
                clock.nap(span(away));
                crew.guide.up(&mut directory)?;
            }
            Fault::Unplug { node, lasts } => {
                let _turn = held(&member(node).cable);
                member(node).place.cable(false)?;
                clock.nap(span(lasts));
                member(node).place.cable(true)?;
            }
            Fault::UnplugDirectory { lasts } => {
                let _turn = held(&crew.guide.cable);
                crew.guide.place.cable(false)?;
                clock.nap(span(lasts));
                crew.guide.place.cable(true)?;
            }
            Fault::Split { mask, lasts } => split(crew, clock, mask, lasts)?,
            Fault::Clock { node, seconds, lasts } => {
                let _turn = held(&member(node).clock);
                member(node).place.step(seconds)?;
                clock.nap(span(lasts));
                member(node).place.step(0)?;
            }
            // One that meets another trouble is not done, and the version before it goes on; what messages came to is looked at in the end.
            Fault::Swap { node, module } => return Ok(member(node).cli(&["module", "swap", module])?.code == 0),
            Fault::Foul { lasts } => {
                crew.weather.turn(true);
                clock.nap(span(lasts));
                crew.weather.turn(false);
            }
        }
        Ok(true)
    }

    /// Ends a supervisor without a word, waits, starts it again.
    fn fell(&self, member: &Member, clock: &Clock, away: f64) -> Result<()> {
        let mut node = held(&member.node);
        let daemon = node.daemon()?;
        daemon.signal(Signal::SIGKILL)?;
        wait_for("the supervisor's end", || daemon.ended())?;
        clock.nap(span(away));
        self.start(member, &mut node)
    }

    fn start(&self, member: &Member, node: &mut Node) -> Result<()> {
        for _ in 1..STARTS {
            let Err(error) = member.up(node) else { return Ok(()) };
            held(&self.restarts).push(format!("{}: {:.300}", member.name, format!("{error:#}")));
            std::thread::sleep(span(1.0));
        }
        member.up(node).with_context(|| format!("{} does not start again", member.name))
    }
}

/// Moves the nodes of the mask to the other bridge, and back.
fn split(crew: &Crew, clock: &Clock, mask: u64, lasts: f64) -> Result<()> {
    let _turn = held(&crew.split);
    let moved = || crew.members.iter().enumerate().filter(|(number, _)| mask >> number & 1 == 1);
    for (_, member) in moved() {
        member.place.join(1)?;
    }
    clock.nap(span(lasts));
    for (_, member) in moved() {
        member.place.join(0)?;
    }
    Ok(())
}
