//! The order of a swap. Sans-IO: the driver does one [`Action`] at a time and says how it went; whatever fails before the new generation is
//! active leaves the one before it as it was, and whatever fails in its probation leads back to the last that has finished its own.
//!
//! The moment of the swap is one write of the record. Before it callers are held and the active generation has ended what it was asked;
//! with it the store refuses the old writer; after it callers go to the new generation. So no call is answered by nobody, and no write is by two.

use super::record::{Generation, Probation, Record};

/// How long a new generation is on probation.
pub(crate) const PROBATION_MILLIS: u64 = 5 * 60 * 1000;
/// Generations that may be on their way out at once; the next swap waits.
pub(crate) const LEAVING: usize = 4;

/// What the driver does, one after the other. Each but the last three is answered with one event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Makes the record durable, and forgets the rows of states that it does not name, in one transaction: [`Event::Saved`].
    Save(Box<Record>),
    /// Copies rows of one state to another, in place of what is there: [`Event::Copied`].
    Copy { from: u64, to: u64 },
    /// Has a process started and attached, and the active one's program kept; it may write to its state if that is a copy:
    /// [`Event::Attached`].
    Start { next: Generation, copy: bool },
    /// Has the new generation bring its copy up to date: [`Event::Migrated`].
    Migrate { from: String },
    /// Lets no new call begin and waits until those that run have ended or their time is over: [`Event::Quiet`].
    Hold,
    /// Has the new generation begin as the active one: [`Event::Begun`].
    Begin { number: u64, epoch: u64 },
    /// Calls go to this generation from now on, those that were held first; it writes with this epoch.
    Route { number: u64, epoch: u64 },
    /// Ends a generation in its own time; [`Event::Left`] comes when it is gone.
    Drain(u64),
    /// Ends one at once: it was never active, or does not answer; [`Event::Left`] comes when it is gone.
    Stop(u64),
}

/// What happens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    Saved,
    Copied,
    /// With the version that it names.
    Attached(String),
    /// Whether it has written to its copy.
    Migrated {
        changed: bool,
    },
    /// Whether the active generation has written since the last copy.
    Quiet {
        written: bool,
    },
    Begun,
    /// What was to be done was not, and why.
    Failed(String),
    /// A generation's process is gone that was to go.
    Left(u64),
}

/// Why a swap is not begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    #[error("a swap of this module is under way; wait for its end")]
    UnderWay,
    #[error("no earlier generation has finished its probation, so there is none to go back to")]
    NothingBefore,
    #[error("no rows were put aside by the last swap: the version before works on the same ones")]
    NoSnapshot,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// As many leave as may.
    Waiting,
    Noting,
    Copying,
    Starting,
    Migrating,
    Holding,
    /// Once more, with callers held: the active generation has written since the first copy.
    Recopying,
    Remigrating,
    Committing,
    Beginning,
    /// The new generation did not begin: the one before it is made active again.
    Returning,
    /// What was prepared is given up.
    Clearing,
}

/// Where a swap goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// To another version, with a copy of the rows.
    On,
    /// To the last generation that finished its probation, with its own rows.
    Back,
}

struct Swap {
    way: Way,
    step: Step,
    next: Generation,
    /// The copy was written: it is what the new generation works on.
    changed: bool,
    held: bool,
    /// Why it goes back by itself.
    why: Option<String>,
    /// The record as it was, once that has changed.
    before: Option<Record>,
}

/// See the file's head.
pub(crate) struct Machine {
    record: Record,
    swap: Option<Swap>,
}

impl Machine {
    /// After the node's start: what was prepared and not finished is given up; `record` is to be saved if that is so, and every process of
    /// a generation that is not the active one ended.
    pub(crate) fn restore(mut record: Record) -> (Self, Vec<Action>) {
        let mut gone = std::mem::take(&mut record.leaving);
        if let Some(next) = record.next.take() {
            gone.push(next.number);
            record.outcome =
                format!("the swap to {} was cut short; the version before it goes on", name(&next.version));
        }
        let spare = !std::mem::take(&mut record.spare).is_empty();
        gone.sort_unstable();
        gone.dedup();
        record.leaving.clone_from(&gone);
        let mut actions: Vec<Action> = gone.into_iter().map(Action::Stop).collect();
        if spare || !actions.is_empty() {
            actions.push(Action::Save(Box::new(record.clone())));
        }
        (Self { record, swap: None }, actions)
    }

    pub(crate) fn record(&self) -> &Record {
        &self.record
    }

    /// Whether a swap is under way, and what it is doing, in a word.
    pub(crate) fn doing(&self) -> Option<&'static str> {
        self.swap.as_ref().map(|swap| match swap.step {
            Step::Waiting => "waiting",
            Step::Noting | Step::Copying => "copying",
            Step::Starting => "starting",
            Step::Migrating | Step::Remigrating | Step::Recopying => "migrating",
            Step::Holding | Step::Committing | Step::Beginning => "activating",
            Step::Returning | Step::Clearing => "giving up",
        })
    }

    /// The active generation has attached, and names its version; what is to be saved if that was not known.
    pub(crate) fn attached(&mut self, version: &str, turn: u32) -> Vec<Action> {
        let active = &mut self.record.active;
        if (active.version.as_str(), active.turn) == (version, turn) {
            return Vec::new();
        }
        (active.version, active.turn) = (version.to_owned(), turn);
        vec![Action::Save(Box::new(self.record.clone()))]
    }

    /// Swaps to this version, installed in that turn; or, where none is named, to the program that comes with the node as it is now, which is
    /// kept for that.
    pub(crate) fn swap(&mut self, version: &str, turn: u32) -> Result<Vec<Action>, Refused> {
        let next = Generation { number: 0, program: 0, version: version.to_owned(), turn, state: 0 };
        self.begin(Way::On, next, None)
    }

    /// Goes back to the last generation that finished its probation. What was written since is kept where both work on the same rows, unless
    /// `snapshot` asks for those of before; otherwise it is put aside.
    pub(crate) fn roll_back(&mut self, snapshot: bool) -> Result<Vec<Action>, Refused> {
        self.go_back(snapshot, None)
    }

    fn go_back(&mut self, snapshot: bool, why: Option<String>) -> Result<Vec<Action>, Refused> {
        let probation = self.record.probation.as_ref().ok_or(Refused::NothingBefore)?;
        let mut good = probation.good.clone();
        if snapshot {
            let same = good.state == self.record.active.state;
            good.state = if same { probation.snapshot.ok_or(Refused::NoSnapshot)? } else { good.state };
        }
        self.begin(Way::Back, good, why)
    }

    fn begin(&mut self, way: Way, mut next: Generation, why: Option<String>) -> Result<Vec<Action>, Refused> {
        if self.swap.is_some() {
            return Err(Refused::UnderWay);
        }
        next.number = self.record.draw();
        if way == Way::On {
            next.program = next.number;
            next.state = self.record.draw();
        }
        let swap = Swap { way, step: Step::Waiting, next, changed: false, held: false, why, before: None };
        self.swap = Some(swap);
        Ok(self.go_on())
    }

    /// Begins what waits, if it may. A rollback from one that has ended by itself waits for nobody: no call is served until it is done, and the
    /// process that it replaces is gone.
    fn go_on(&mut self) -> Vec<Action> {
        match &mut self.swap {
            Some(swap) if swap.step == Step::Waiting && (self.record.leaving.len() < LEAVING || swap.why.is_some()) => {
                swap.step = Step::Noting;
                self.record.next = Some(swap.next.clone());
                vec![Action::Save(Box::new(self.record.clone()))]
            }
            _ => Vec::new(),
        }
    }

    /// The active generation has ended by itself: in its probation that is the end of it. Otherwise, nothing: it is started again.
    pub(crate) fn active_ended(&mut self, why: &str) -> Vec<Action> {
        let on_probation = self.record.probation.is_some();
        match &self.swap {
            None if on_probation => self.go_back(false, Some(why.to_owned())).unwrap_or_default(),
            Some(Swap { step: Step::Waiting, .. }) if on_probation => {
                self.swap = None;
                self.go_back(false, Some(why.to_owned())).unwrap_or_default()
            }
            // It is only what is to be left that has ended.
            None | Some(Swap { way: Way::Back, .. } | Swap { step: Step::Waiting, .. }) => Vec::new(),
            // Too late to go back; whether the new one begins, the driver says.
            Some(Swap { before: Some(_), .. } | Swap { step: Step::Returning | Step::Clearing, .. }) => Vec::new(),
            Some(_) => self.give_up(&format!("the version before it ended meanwhile: {why}")),
        }
    }

    /// When its probation is over, in Unix milliseconds.
    pub(crate) fn poll_timeout(&self) -> Option<u64> {
        self.record.probation.as_ref().filter(|_| self.swap.is_none()).map(|probation| probation.until)
    }

    /// The time that was asked for has come.
    pub(crate) fn handle_timeout(&mut self, now: u64) -> Vec<Action> {
        match self.poll_timeout() {
            Some(until) if until <= now => {
                (self.record.probation, self.record.aside) = (None, None);
                // From now on it is what comes with the node.
                self.record.active.program = 0;
                self.record.outcome = format!("{} has finished its probation", name(&self.record.active.version));
                vec![Action::Save(Box::new(self.record.clone()))]
            }
            _ => Vec::new(),
        }
    }

    /// Goes on with what has happened. `now` in Unix milliseconds.
    pub(crate) fn handle(&mut self, event: Event, now: u64) -> Vec<Action> {
        if let Event::Left(number) = event {
            return self.left(number);
        }
        let Some(swap) = &mut self.swap else { return Vec::new() };
        let from = self.record.active.state;
        let copy = |to| Action::Copy { from, to };
        let (step, action) = match (swap.step, event) {
            (Step::Returning, Event::Failed(why)) => return self.returned(Some(&why)),
            (Step::Returning, _) => return self.returned(None),
            (Step::Clearing, _) => return self.cleared(),
            (Step::Beginning, Event::Failed(why)) => return self.give_back(&why),
            (_, Event::Failed(why)) => return self.give_up(&why),
            (Step::Noting, Event::Saved) if swap.way == Way::On => (Step::Copying, copy(swap.next.state)),
            (Step::Noting, Event::Saved) | (Step::Copying, Event::Copied) => {
                (Step::Starting, Action::Start { next: swap.next.clone(), copy: swap.way == Way::On })
            }
            (Step::Starting, Event::Attached(version)) => {
                swap.next.version = version;
                match swap.way {
                    Way::On => (Step::Migrating, Action::Migrate { from: self.record.active.version.clone() }),
                    Way::Back => (Step::Holding, Action::Hold),
                }
            }
            (Step::Migrating, Event::Migrated { changed }) => {
                swap.changed = changed;
                (Step::Holding, Action::Hold)
            }
            (Step::Holding, Event::Quiet { written: true }) if swap.changed => (Step::Recopying, copy(swap.next.state)),
            (Step::Recopying, Event::Copied) => {
                (Step::Remigrating, Action::Migrate { from: self.record.active.version.clone() })
            }
            (Step::Remigrating, Event::Migrated { changed }) => {
                // What it did to the first copy it may not need to do to this one; a state of its own it is in any case.
                swap.changed |= changed;
                return self.commit(now);
            }
            (Step::Holding, Event::Quiet { .. }) => return self.commit(now),
            (Step::Committing, Event::Saved) => {
                let action = Action::Begin { number: swap.next.number, epoch: self.record.epoch };
                (Step::Beginning, action)
            }
            (Step::Beginning, Event::Begun) => return self.routed(),
            // An answer to nothing that was asked.
            (_, _) => return Vec::new(),
        };
        swap.held |= step == Step::Holding;
        swap.step = step;
        vec![action]
    }

    /// The one write that changes who is active.
    fn commit(&mut self, now: u64) -> Vec<Action> {
        let Some(swap) = &mut self.swap else { return Vec::new() };
        let before = self.record.clone();
        let record = &mut self.record;
        let mut old = std::mem::replace(&mut record.active, swap.next.clone());
        if old.program == 0 {
            // What comes with the node may be another by the time of a rollback: its own was kept when the new one was started.
            old.program = old.number;
        }
        record.epoch += 1;
        record.next = None;
        record.leaving.push(old.number);
        match swap.way {
            Way::On => {
                let copy = swap.next.state;
                // A copy that was not written is what the rows were before; the new generation goes on with the old one's.
                let snapshot = if swap.changed { None } else { Some(copy) };
                record.active.state = if swap.changed { copy } else { old.state };
                let (good, kept) = match record.probation.take() {
                    // Its predecessor's probation ends unfinished: what it would have gone back to stays.
                    Some(probation) => (probation.good, probation.snapshot),
                    None => (old, snapshot),
                };
                // A snapshot is of use only to whoever works on the same rows.
                let snapshot = kept.filter(|_| good.state == record.active.state);
                record.probation = Some(Probation { until: now + PROBATION_MILLIS, good, snapshot });
                record.left = None;
                record.outcome = format!("swapped to {}", name(&record.active.version));
            }
            Way::Back => {
                record.probation = None;
                record.aside = (old.state != record.active.state).then_some(old.state);
                record.left = Some((old.version.clone(), old.turn));
                let version = name(&old.version);
                record.outcome = match &swap.why {
                    Some(why) => format!("{version} was rolled back in its probation: {why}"),
                    None => format!("{version} was rolled back"),
                };
            }
        }
        record.spare = before.states();
        swap.next.state = record.active.state;
        swap.before = Some(before);
        swap.step = Step::Committing;
        vec![Action::Save(Box::new(self.record.clone()))]
    }

    fn routed(&mut self) -> Vec<Action> {
        self.swap = None;
        self.record.spare.clear();
        let Record { active, epoch, leaving, .. } = &self.record;
        let route = Action::Route { number: active.number, epoch: *epoch };
        // The last is the one that was replaced; those before it are on their way already.
        let drain = leaving.last().copied().map(Action::Drain);
        [route].into_iter().chain(drain).chain([Action::Save(Box::new(self.record.clone()))]).collect()
    }

    /// Before the new generation is active: the old one goes on as if nothing had been.
    fn give_up(&mut self, why: &str) -> Vec<Action> {
        let Some(swap) = &mut self.swap else { return Vec::new() };
        if let Some(before) = swap.before.take() {
            let leaving = std::mem::take(&mut self.record.leaving);
            self.record = Record { leaving, ..before };
        }
        swap.step = Step::Clearing;
        let record = &mut self.record;
        let active = record.active.number;
        record.leaving.retain(|number| *number != active);
        record.next = None;
        if swap.way == Way::On {
            record.left = Some((swap.next.version.clone(), swap.next.turn));
        }
        let version = name(&swap.next.version);
        record.outcome = match swap.way {
            Way::On => format!("not swapped to {version}: {why}"),
            Way::Back => format!("not rolled back to {version}: {why}"),
        };
        record.leaving.push(swap.next.number);
        let route = Action::Route { number: record.active.number, epoch: record.epoch };
        let held = swap.held.then_some(route);
        let end = [Action::Stop(swap.next.number), Action::Save(Box::new(record.clone()))];
        held.into_iter().chain(end).collect()
    }

    fn cleared(&mut self) -> Vec<Action> {
        self.swap = None;
        Vec::new()
    }

    /// The new generation is active and does not begin: the one before it, which is held, takes over again, with an epoch of its own.
    fn give_back(&mut self, why: &str) -> Vec<Action> {
        let Some(swap) = &mut self.swap else { return Vec::new() };
        let Some(before) = swap.before.take() else { return Vec::new() };
        let (epoch, drawn) = (self.record.epoch + 1, self.record.drawn);
        let leaving = std::mem::take(&mut self.record.leaving);
        self.record = Record { epoch, drawn, next: None, leaving, ..before };
        let active = self.record.active.number;
        self.record.leaving.retain(|number| *number != active);
        self.record.leaving.push(swap.next.number);
        if swap.way == Way::On {
            self.record.left = Some((swap.next.version.clone(), swap.next.turn));
        }
        self.record.outcome = format!("not swapped to {}: it did not begin: {why}", name(&swap.next.version));
        swap.step = Step::Returning;
        vec![Action::Save(Box::new(self.record.clone()))]
    }

    fn returned(&mut self, failed: Option<&str>) -> Vec<Action> {
        if let Some(why) = failed {
            // The store takes nothing any more: nobody can write, and whoever comes after the next start is in the record.
            self.record.outcome = format!("{}; and the way back was not stored: {why}", self.record.outcome);
        }
        let Some(swap) = self.swap.take() else { return Vec::new() };
        let Record { active, epoch, .. } = &self.record;
        vec![Action::Route { number: active.number, epoch: *epoch }, Action::Stop(swap.next.number)]
    }

    fn left(&mut self, number: u64) -> Vec<Action> {
        let before = self.record.leaving.len();
        self.record.leaving.retain(|leaving| *leaving != number);
        if self.record.leaving.len() == before {
            return Vec::new();
        }
        // Saved with what is saved next: one that is gone is ended once more after a kill, and that finds nothing.
        self.go_on()
    }
}

fn name(version: &str) -> &str {
    if version.is_empty() { "the next version" } else { version }
}
