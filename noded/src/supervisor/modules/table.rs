//! Which modules may run, which of their processes do, and what `noded` and the operator ask of them.
//!
//! A module has one process, or several while it is swapped: each is a generation, with limits of its own.

use std::collections::BTreeSet;
use std::io::{self, Write as _};
use std::pin::Pin;
use std::rc::Rc;
use std::time::{Duration, Instant};

use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, StreamExt as _};
use openred_policy::limits::Usage;
use openred_policy::spawn::Exit as Ended;
use openred_proto::audit::Event;
use openred_proto::modules::{Ask, Told, reason};
use openred_proto::secret::Secret;

use super::entry::{Entry, Process, Quarantine, Rank, Running, State};
use super::start::{Begun, Wanted, begin};
use super::{Channel, Fault};
use crate::cli::{Exit, Failure};
use crate::packages::Order;
use crate::supervisor::installed::{self, Known};
use crate::supervisor::programs::Programs;
use crate::supervisor::{Context, looked, now};

/// Why one is under quarantine that the filter has killed.
const FILTER: &str = "SIGSYS: a system call outside its filter";

/// A look is told again for so long.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// Which process something is about.
type Place = (&'static str, u64);
type Started = (Place, Result<Begun, Fault>);
type Starting<'a> = FuturesUnordered<Pin<Box<dyn Future<Output = Started> + 'a>>>;
type Ending = FuturesUnordered<Pin<Box<dyn Future<Output = (Place, Ended)>>>>;

/// Everything about modules that the supervisor holds.
pub(super) struct Table<'a> {
    context: &'a Context,
    entries: Vec<Entry>,
    pub(super) starting: Starting<'a>,
    pub(super) ending: Ending,
    pub(super) node: Option<Channel>,
    /// The last look, as it is told.
    looked: Option<(Instant, Vec<u8>)>,
    /// Names that `noded` has looked up when it started, or will.
    names: BTreeSet<String>,
}

impl<'a> Table<'a> {
    pub(super) fn new(context: &'a Context, known: Vec<Known>) -> Self {
        let names = known.iter().flat_map(|known| known.names.iter().cloned()).collect();
        let entries = known.into_iter().map(Entry::new).collect();
        Self { context, entries, starting: Starting::new(), ending: Ending::new(), node: None, looked: None, names }
    }

    /// Tells `noded` at once or not at all: one that does not read its channel is told nothing.
    fn tell(&mut self, told: &Told) {
        let Some(channel) = &self.node else { return };
        if !channel.tell(told) {
            tracing::warn!("noded does not hear what becomes of its modules");
            self.node = None;
        }
    }

    fn refuse(&mut self, module: &str, generation: u64, why: &str) {
        tracing::warn!("the module {} is not started: {why}", crate::cli::one_line(module));
        self.tell(&Told::Refused { module: module.to_owned(), generation, reason: reason(why) });
    }

    /// One change of what is installed, and what follows from it.
    pub(super) fn change(&mut self, order: &Order) -> Result<(), Failure> {
        installed::change(self.context, order)?;
        self.reload();
        Ok(())
    }

    /// Looks again at what may run. What may not any more is ended; of what runs in another version, or shall be started anew, `noded` says how
    /// the one takes the other's place.
    pub(super) fn reload(&mut self) {
        self.follow(None);
    }

    /// The same. Of the module of that name a swap was taken back: not on the operator's word, who has not looked at what was found then.
    fn follow(&mut self, settled: Option<&str>) {
        let known = installed::look(self.context);
        for entry in &mut self.entries {
            let now = known.iter().find(|known| known.id == entry.module.id);
            entry.wanted = now.is_some();
            let Some(now) = now else {
                let stop = entry.module.stop;
                entry.processes.iter_mut().for_each(|process| process.leave_in(stop));
                entry.quarantine = None;
                continue;
            };
            if now.is_looked_at(&entry.module) && settled != Some(now.id) {
                // `noded` begins another life of it for that, or swaps it, and so ends the quarantine where it is, too.
                entry.quarantine = None;
                self.context.starter.board.clear(&format!("module.{}.filter", entry.module.id));
            }
            if now.is_changed(&entry.module) {
                entry.starts.clear();
                let stop = entry.module.stop;
                match (now.is_another_version(&entry.module), now.is_another_to_noded(&entry.module)) {
                    (true, _) => {}
                    (false, true) => entry.processes.iter_mut().for_each(|process| process.leave_in(stop)),
                    (false, false) => entry.processes.iter_mut().for_each(Process::leave),
                }
            }
            entry.module = now.clone();
        }
        for new in known {
            if self.entries.iter().all(|entry| entry.module.id != new.id) {
                self.entries.push(Entry::new(new));
            }
        }
        self.tell(&Told::Changed);
        let wanted = self.entries.iter().filter(|entry| entry.wanted);
        let names: BTreeSet<String> = wanted.flat_map(|entry| entry.module.names.clone()).collect();
        if !names.is_subset(&self.names) {
            self.names.extend(names);
            self.context.settings.begin_anew("a module may connect to names that it has not looked up");
        }
    }

    fn find(&self, module: &str) -> Option<usize> {
        self.entries.iter().position(|entry| entry.module.id == module)
    }

    pub(super) fn take(&mut self, ask: Ask) {
        let generation = ask.generation();
        let found = self.find(ask.module());
        match ask {
            Ask::Look => self.tell_look(),
            Ask::Forgotten { module } => {
                if installed::forgotten(self.context, &module) {
                    self.reload();
                }
            }
            Ask::Stop { module, .. } => match found {
                // One that may not run any more is ended like any other.
                Some(place) => self.stop(place, generation),
                None => self.tell(&Told::Stopped { module, generation }),
            },
            Ask::Settle { module, from, to, turn } => {
                if installed::settle(self.context, &module, &from, &to, turn) {
                    self.follow(Some(&module));
                }
            }
            Ask::Keep { module, programs, versions } => self.keep(&module, &programs, &versions),
            ask => match found.filter(|place| self.entries[*place].wanted) {
                Some(place) => self.take_known(place, ask),
                None => self.refuse(ask.module(), generation, "there is no module of that name"),
            },
        }
    }

    /// Tells `noded` how the processes and their cages are. Looking costs this process something, so it is not done anew too often.
    fn tell_look(&mut self) {
        let is_fresh = |(at, _): &(Instant, Vec<u8>)| at.elapsed() < LOOK_AGAIN;
        let seen = match self.looked.take().filter(is_fresh) {
            Some(seen) => seen,
            None => (Instant::now(), looked::told(&self.context.starter.board.doctor(), now())),
        };
        let Some(channel) = &self.node else { return };
        // All or nothing, as in `tell`.
        if !channel.put(&seen.1) {
            tracing::warn!("noded does not hear how its processes are");
            self.node = None;
        }
        self.looked = Some(seen);
    }

    fn take_known(&mut self, place: usize, ask: Ask) {
        match ask {
            Ask::Start { generation, program, preserve, version, value, .. } => {
                self.start(place, generation, (program, preserve, &version), value);
            }
            Ask::Quarantine { why, .. } => self.quarantine(place, &why),
            Ask::Ready { generation, .. } => self.ready(place, generation),
            _ => {}
        }
    }

    fn programs(&self) -> Programs<'_> {
        Programs { installed: &self.context.starter.programs, kept: self.context.home.kept_programs() }
    }

    fn keep(&self, module: &str, programs: &[u64], versions: &[String]) {
        let Some(place) = self.find(module) else { return };
        let id = self.entries[place].module.id;
        if let Err(error) = self.programs().forget(id, programs) {
            tracing::warn!(%error, "kept programs of the module {id} cannot be removed");
        }
        installed::keep(self.context, id, versions);
    }

    /// Keeps the program of a generation that runs.
    fn preserve(&mut self, place: usize, generation: u64) -> io::Result<()> {
        if generation == 0 {
            return Ok(());
        }
        let (programs, entry) = (
            Programs { installed: &self.context.starter.programs, kept: self.context.home.kept_programs() },
            &mut self.entries[place],
        );
        let id = entry.module.id;
        match entry.process(generation).map(|process| &process.state) {
            Some(State::Running(running)) => programs.keep(id, generation, &running.program),
            _ => Err(io::Error::other("it does not run")),
        }
    }

    fn start(&mut self, place: usize, generation: u64, what: (u64, u64, &str), value: Secret<32>) {
        let (program, preserve, version) = what;
        let entry = &mut self.entries[place];
        let id = entry.module.id;
        if let Some(why) = entry.module.refused.clone() {
            return self.refuse(id, generation, &why);
        }
        let is_it = |quarantine: &&Quarantine| [0, generation].contains(&quarantine.generation);
        if let Some(quarantine) = entry.quarantine.as_ref().filter(is_it) {
            let told = Told::Quarantined { module: id.to_owned(), generation, why: quarantine.why.clone() };
            return self.tell(&told);
        }
        if let Some(process) = entry.process(generation) {
            let why = match &mut process.state {
                State::Running(running) if running.stopping => "it is being ended",
                // What runs is not what was asked for.
                State::Running(running) if running.leave_by.is_some() => {
                    running.leave();
                    "the one before it is being ended"
                }
                // Another `noded`: the module takes the value and dials anew.
                State::Running(running) => match running.values.write_all(value.expose()) {
                    Ok(()) => return,
                    Err(_) => "it does not read its values",
                },
                State::Starting(wanted, unwanted) => {
                    (*wanted, *unwanted) = (value, false);
                    return;
                }
            };
            return self.refuse(id, generation, why);
        }
        let Some(runnable) = entry.module.version(version).cloned() else {
            return self.refuse(id, generation, &format!("its version {version} is not installed"));
        };
        if !entry.is_seldom(generation, Instant::now()) {
            return self.refuse(id, generation, "it was started too often");
        }
        let slot = entry.module.slot;
        if let Err(error) = self.preserve(place, preserve) {
            let why = format!("the program of the one before it cannot be kept: {error}");
            return self.refuse(id, generation, &why);
        }
        let entry = &mut self.entries[place];
        let has_active = entry.processes.iter().any(|process| process.rank == Rank::Active);
        let rank = if has_active { Rank::Next } else { Rank::Active };
        let process = Process { generation, rank, state: State::Starting(value, false) };
        let label = process.label(id).unwrap_or_else(|| id.to_owned());
        entry.processes.push(process);
        let context = self.context;
        context.starter.board.module_state(&label, "starting", now());
        let wanted = Wanted { id, label, slot, generation, program, runnable };
        self.starting.push(Box::pin(async move { ((id, generation), begin(context, wanted).await) }));
    }

    fn stop(&mut self, place: usize, generation: u64) {
        let entry = &mut self.entries[place];
        let id = entry.module.id;
        if generation == 0 {
            entry.ending = !entry.processes.is_empty();
            entry.processes.iter_mut().for_each(Process::leave);
            if entry.ending {
                return;
            }
        } else if let Some(process) = entry.process(generation) {
            return process.leave();
        }
        self.tell(&Told::Stopped { module: id.to_owned(), generation });
    }

    /// It is the one that is called.
    fn ready(&mut self, place: usize, generation: u64) {
        let entry = &mut self.entries[place];
        let (id, board) = (entry.module.id, &self.context.starter.board);
        let Some(process) = entry.process(generation) else { return };
        if process.rank == Rank::Next {
            let label = process.label(id);
            for process in &mut entry.processes {
                process.rank = match process.rank {
                    _ if process.generation == generation => Rank::Active,
                    Rank::Active => Rank::Leaving,
                    rank => rank,
                };
            }
            if let Some(label) = label {
                board.module_replaced(id, &label);
            }
        }
        board.module_state(id, "ready", now());
    }

    /// Whether any has a time by which to leave.
    pub(super) fn leaves(&self) -> bool {
        let leaves =
            |process: &Process| matches!(&process.state, State::Running(running) if running.leave_by.is_some());
        self.entries.iter().flat_map(|entry| &entry.processes).any(leaves)
    }

    /// Ends those that take more than they may, and those whose time to leave is over.
    pub(super) fn look(&mut self, now: Instant) {
        for process in self.entries.iter_mut().flat_map(|entry| &mut entry.processes) {
            let State::Running(running) = &mut process.state else { continue };
            if running.leave_by.is_some_and(|by| by <= now) && !running.stopping {
                running.leave();
            }
            if let Some(broken) = running.usage.look(&running.held, running.child.pid(), now) {
                running.broken = Some(broken);
                running.child.end_now();
            }
        }
    }

    /// `noded` has seen it end too often. What runs of it is ended first: that is asked before this is.
    fn quarantine(&mut self, place: usize, why: &str) {
        let entry = &mut self.entries[place];
        if entry.processes.iter().all(|process| process.rank == Rank::Leaving) {
            entry.quarantine.get_or_insert_with(|| Quarantine { why: reason(why), generation: 0 });
            self.context.starter.board.module_state(entry.module.id, "quarantined", now());
        }
    }

    /// The operator's word.
    pub(super) fn release(&mut self, module: &str) -> Result<(), Failure> {
        let named = crate::cli::one_line(module);
        let Some(entry) = self.entries.iter_mut().find(|entry| entry.module.id == module) else {
            let what = format!("there is no module {named}");
            return Err(Failure::new(Exit::NotFound, "module.unknown", what, "`openred status` lists them"));
        };
        if entry.quarantine.take().is_none() {
            let (what, way_out) =
                (format!("the module {named} is not under quarantine"), "`openred status` says how it is");
            return Err(Failure::new(Exit::Conflict, "module.not-quarantined", what, way_out));
        }
        entry.starts.clear();
        let (id, is_away) = (entry.module.id, entry.processes.is_empty());
        let board = &self.context.starter.board;
        board.clear(&format!("module.{id}.filter"));
        if is_away {
            board.module_state(id, "down", now());
        }
        tracing::info!("the module {id} is released from its quarantine");
        self.tell(&Told::Released { module: id.to_owned() });
        Ok(())
    }

    pub(super) fn started(&mut self, (id, generation): Place, outcome: Result<Begun, Fault>) {
        let Some(place) = self.find(id) else { return };
        let Some(process) = self.entries[place].process(generation) else { return };
        let State::Starting(value, unwanted) = &process.state else { return };
        let unwanted = *unwanted;
        let Begun { child, mut values, program, held } = match outcome {
            Ok(started) => started,
            Err(fault) => return self.not_started(place, generation, &fault, unwanted),
        };
        let child = Rc::new(child);
        // Its pipe is empty: this does not wait.
        let given = values.write_all(value.expose()).is_ok();
        if unwanted || !given {
            child.end_now();
        }
        let running = Running {
            child: Rc::clone(&child),
            values,
            program,
            stopping: unwanted,
            leave_by: None,
            held,
            usage: Usage::default(),
            broken: None,
        };
        process.state = State::Running(running);
        self.ending.push(async move { ((id, generation), child.end().await) }.boxed_local());
        tracing::debug!("the module {id} runs in its cage");
    }

    fn not_started(&mut self, place: usize, generation: u64, fault: &Fault, unwanted: bool) {
        if let Fault::Layer { .. } = fault {
            self.context.starter.board.report(Event::LayerOff);
        }
        let how = fault.to_string();
        self.remove(place, generation, &how, unwanted);
        let module = self.entries[place].module.id.to_owned();
        if unwanted {
            self.tell(&Told::Stopped { module, generation });
        } else {
            self.refuse(&module, generation, &how);
        }
        self.tell_ended(place);
    }

    pub(super) fn ended(&mut self, (id, generation): Place, exit: Ended) {
        let Some(place) = self.find(id) else { return };
        let Some(Process { state: State::Running(running), .. }) = self.entries[place].process(generation) else {
            return;
        };
        let wanted = running.stopping;
        let filter = exit.broke_the_filter();
        let how = match running.broke(exit) {
            _ if filter => FILTER.to_owned(),
            Some(what) => running.held.breach(what),
            None => exit.to_string(),
        };
        if wanted {
            // Nobody needed it, or the node ends.
            self.entries[place].forgive(generation);
        }
        self.remove(place, generation, &how, wanted);
        let board = &self.context.starter.board;
        if filter {
            self.entries[place].quarantine = Some(Quarantine { why: FILTER.to_owned(), generation });
            if self.entries[place].processes.is_empty() {
                board.module_state(id, "quarantined", now());
            }
            board.report(Event::FilterBroken);
            let detail = format!("the module {id} tried a system call outside its filter and was killed");
            let help = "treat it as a break-in until explained: keep the log; `openred module release ID` has it started again";
            board.alarm(&format!("module.{id}.filter"), detail, help, now());
        } else if !wanted {
            board.report(Event::ProcessDied);
        }
        if wanted {
            self.tell(&Told::Stopped { module: id.to_owned(), generation });
        } else {
            tracing::warn!("the module {id} ended ({how})");
            self.tell(&Told::Ended { module: id.to_owned(), generation, how: reason(&how) });
        }
        self.tell_ended(place);
    }

    /// Takes one that is gone out of the table. How the active one ended stays to be seen.
    fn remove(&mut self, place: usize, generation: u64, how: &str, wanted: bool) {
        let entry = &mut self.entries[place];
        let (id, board) = (entry.module.id, &self.context.starter.board);
        let Some(place) = entry.processes.iter().position(|process| process.generation == generation) else { return };
        let process = entry.processes.remove(place);
        match (process.label(id), process.rank) {
            (Some(label), Rank::Active) => board.module_ended(&label, how, wanted, now()),
            (Some(label), _) => board.module_gone(&label),
            (None, _) => {}
        }
    }

    fn tell_ended(&mut self, place: usize) {
        let entry = &mut self.entries[place];
        if entry.ending && entry.processes.is_empty() {
            entry.ending = false;
            let module = entry.module.id.to_owned();
            self.tell(&Told::Stopped { module, generation: 0 });
        }
    }

    /// Ends every module and waits for it.
    pub(super) async fn end(&mut self) {
        self.node = None;
        // Those on their way end with their futures.
        self.starting.clear();
        for entry in &mut self.entries {
            entry.processes.retain(|process| matches!(process.state, State::Running(_)));
            entry.processes.iter_mut().for_each(Process::leave);
        }
        while let Some((place, exit)) = self.ending.next().await {
            self.ended(place, exit);
        }
    }
}
