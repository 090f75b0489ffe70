//! The modules' processes. `noded` says which shall run, on a channel of its own; they are started here through the launcher, each in a
//! cage of its own, and outlive the `noded` that asked: the next one gives them a new value, and they dial anew.
//!
//! Only modules of the table are started, and not too often. All of them end with the node, and die with this process.

mod channel;
mod start;

use std::collections::BTreeSet;
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdStream;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, StreamExt as _};
use nix::sys::signal::Signal;
use openred_policy::limits::{Held, Resource, Usage};
use openred_policy::spawn::Exit as Ended;
use openred_proto::audit::Event;
use openred_proto::modules::{Ask, Told, reason};
use openred_proto::secret::Secret;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};

use channel::Channel;
use start::{Begun, begin};

use super::child::{Caged, Fault};
use super::installed::{self, Known};
use super::{Context, looked, now};
use crate::cli::{Exit, Failure};
use crate::packages::Order;

/// Starts of one module within [`WINDOW`]: `noded` asks for three in ten minutes at most, and one more each time it is restarted.
const STARTS: usize = 20;
/// See [`STARTS`].
const WINDOW: Duration = Duration::from_secs(600);
/// Between two looks at what modules take, where nobody but this process holds them to it.
const LOOK: Duration = Duration::from_millis(250);
/// Beyond what a module has for its end: for `noded` to say so.
const GRACE: Duration = Duration::from_secs(5);
/// Why one is under quarantine that the filter has killed.
const FILTER: &str = "SIGSYS: a system call outside its filter";
/// A look is told again for so long.
const LOOK_AGAIN: Duration = Duration::from_secs(2);
/// Words to this part of the supervisor that wait: one `noded` after the other, and the end.
const WORDS: usize = 4;

/// The rest of the supervisor's hold on the modules.
#[derive(Clone)]
pub(crate) struct Modules(mpsc::Sender<Word>);

/// See [`Modules`].
pub(crate) struct Words(mpsc::Receiver<Word>);

enum Word {
    /// A `noded` that asks on this end of a pair.
    Node(UnixStream),
    /// The operator ends a module's quarantine.
    Release(String, oneshot::Sender<Result<(), Failure>>),
    /// The operator changes what is installed.
    Change(Order, oneshot::Sender<Result<(), Failure>>),
    /// The configuration is another.
    Reload,
    /// The node ends.
    End(oneshot::Sender<()>),
}

/// The two ends of it.
pub(crate) fn modules() -> (Modules, Words) {
    let (sender, words) = mpsc::channel(WORDS);
    (Modules(sender), Words(words))
}

impl Modules {
    /// Listens to a new `noded` on this end of its channel; the one before it is not heard any more.
    pub(crate) async fn hear(&self, end: OwnedFd) -> io::Result<()> {
        let stream = StdStream::from(end);
        stream.set_nonblocking(true)?;
        // What serves them lives as long as the supervisor.
        let _ = self.0.send(Word::Node(UnixStream::from_std(stream)?)).await;
        Ok(())
    }

    /// Ends a module's quarantine.
    pub(crate) async fn release(&self, module: String) -> Result<(), Failure> {
        let stopping = || Failure::new(Exit::Failed, "node.down", "the node is stopping", "start it with `openred up`");
        let (done, outcome) = oneshot::channel();
        self.0.send(Word::Release(module, done)).await.map_err(|_| stopping())?;
        outcome.await.unwrap_or_else(|_| Err(stopping()))
    }

    /// Changes what is installed, on the operator's word.
    pub(crate) async fn change(&self, order: Order) -> Result<(), Failure> {
        let stopping =
            || Failure::new(Exit::Failed, "node.down", "the node is stopping", "try again when it has stopped");
        let (answer, outcome) = oneshot::channel();
        self.0.send(Word::Change(order, answer)).await.map_err(|_| stopping())?;
        outcome.await.unwrap_or_else(|_| Err(stopping()))
    }

    /// The configuration is another: looks again at what may run, and how.
    pub(crate) fn look_again(&self) {
        if self.0.try_send(Word::Reload).is_err() {
            tracing::warn!("the modules' part has too much to do to hear of the new configuration; send SIGHUP again");
        }
    }

    /// Ends all of them and waits until they are gone.
    pub(crate) async fn end(&self) {
        let (done, ended) = oneshot::channel();
        if self.0.send(Word::End(done)).await.is_ok() {
            let _ = ended.await;
        }
    }
}

/// A module that runs.
struct Running {
    child: Rc<Caged>,
    /// Where it reads its values.
    values: std::fs::File,
    /// As was asked.
    stopping: bool,
    /// It may not run any more: `noded` lets it end what it does, and it is ended here then at the latest.
    leave_by: Option<Instant>,
    held: Arc<Held>,
    usage: Usage,
    /// For what it was killed here.
    broken: Option<Resource>,
}

impl Running {
    /// The limit for which it was killed, if for one: by this process or by the kernel.
    fn broke(&self, exit: Ended) -> Option<Resource> {
        let killed = exit == Ended::Signal(Signal::SIGKILL as i32);
        self.broken.or_else(|| self.held.killed_for()).filter(|_| killed)
    }
}

enum State {
    Away,
    /// On its way into its cage; what it shall be given there, and whether it is not wanted any more.
    Starting(Secret<32>, bool),
    Running(Running),
    /// It ended too often, or broke its filter: nobody starts it before the operator says so.
    Quarantined(String),
}

struct Entry {
    module: Known,
    /// Whether it may run now.
    wanted: bool,
    state: State,
    starts: Vec<Instant>,
}

type Started = (usize, Result<Begun, Fault>);
type Starting<'a> = FuturesUnordered<Pin<Box<dyn Future<Output = Started> + 'a>>>;
type Ending = FuturesUnordered<Pin<Box<dyn Future<Output = (usize, Ended)>>>>;

impl Entry {
    fn new(module: Known) -> Self {
        Self { module, wanted: true, state: State::Away, starts: Vec::new() }
    }

    /// Ends what runs of it. Where `noded` hears of the change, it has so long to let it come to its end.
    fn leave(&mut self, stop: Option<Duration>) {
        match (&mut self.state, stop) {
            (State::Starting(_, unwanted), _) => *unwanted = true,
            (State::Running(running), Some(stop)) => {
                running.leave_by.get_or_insert(Instant::now() + stop + GRACE);
            }
            (State::Running(running), None) => {
                running.stopping = true;
                running.child.end_now();
            }
            // The operator has looked at it.
            (State::Quarantined(_), _) => self.state = State::Away,
            (State::Away, _) => {}
        }
    }
}

/// Everything about modules that the supervisor holds.
struct Table<'a> {
    context: &'a Context,
    entries: Vec<Entry>,
    starting: Starting<'a>,
    ending: Ending,
    node: Option<Channel>,
    /// The last look, as it is told.
    looked: Option<(Instant, Vec<u8>)>,
    /// Names that `noded` has looked up when it started, or will.
    names: BTreeSet<String>,
}

/// Serves `noded`'s wishes until the supervisor ends; what still runs then dies with its handles.
pub(crate) async fn serve(context: &Context, known: Vec<Known>, mut words: Words) {
    let names = known.iter().flat_map(|known| known.names.iter().cloned()).collect();
    let entries = known.into_iter().map(Entry::new).collect();
    let (starting, ending) = (Starting::new(), Ending::new());
    let mut table = Table { context, entries, starting, ending, node: None, looked: None, names };
    let watches = context.starter.ways.watches();
    let mut looks = tokio::time::interval(LOOK);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            word = words.0.recv() => match word {
                Some(Word::Node(stream)) => table.node = Some(Channel::new(stream)),
                Some(Word::Release(module, done)) => {
                    let _ = done.send(table.release(&module));
                }
                Some(Word::Change(order, answer)) => {
                    // Whoever asked may have gone.
                    let _ = answer.send(table.change(&order));
                }
                Some(Word::Reload) => table.reload(),
                Some(Word::End(done)) => {
                    table.end().await;
                    let _ = done.send(());
                }
                None => return,
            },
            ask = Channel::next(&mut table.node) => match ask {
                Ok(ask) => table.take(ask),
                Err(error) => {
                    // It has ended, and what follows it brings another channel.
                    tracing::debug!(%error, "noded's channel for modules has ended");
                    table.node = None;
                }
            },
            Some((place, outcome)) = table.starting.next() => table.started(place, outcome),
            Some((place, exit)) = table.ending.next() => table.ended(place, exit),
            _ = looks.tick(), if watches || table.leaves() => table.look(Instant::now()),
        }
    }
}

impl Table<'_> {
    /// Tells `noded` at once or not at all: one that does not read its channel is told nothing.
    fn tell(&mut self, told: &Told) {
        let Some(channel) = &self.node else { return };
        if !channel.tell(told) {
            tracing::warn!("noded does not hear what becomes of its modules");
            self.node = None;
        }
    }

    fn refuse(&mut self, module: &str, why: &str) {
        tracing::warn!("the module {} is not started: {why}", crate::cli::one_line(module));
        self.tell(&Told::Refused { module: module.to_owned(), reason: reason(why) });
    }

    /// One change of what is installed, and what follows from it.
    fn change(&mut self, order: &Order) -> Result<(), Failure> {
        installed::change(self.context, order)?;
        self.reload();
        Ok(())
    }

    /// Looks again at what may run. What may not any more, or runs in another version, is ended; `noded` asks for what it finds new.
    fn reload(&mut self) {
        let known = installed::look(self.context);
        for entry in &mut self.entries {
            let now = known.iter().find(|known| known.id == entry.module.id);
            entry.wanted = now.is_some();
            if now == Some(&entry.module) {
                continue;
            }
            let heard = now.is_none_or(|now| now.is_another_to_noded(&entry.module));
            let stop = Some(entry.module.stop).filter(|_| heard);
            if let Some(now) = now {
                entry.module = now.clone();
                entry.starts.clear();
                self.context.starter.board.clear(&format!("module.{}.filter", entry.module.id));
            }
            entry.leave(stop);
        }
        for new in known {
            if self.entries.iter().all(|entry| entry.module.id != new.id) {
                self.entries.push(Entry::new(new));
            }
        }
        self.tell(&Told::Changed);
        let names: BTreeSet<String> =
            self.entries.iter().filter(|entry| entry.wanted).flat_map(|entry| entry.module.names.clone()).collect();
        if !names.is_subset(&self.names) {
            self.names.extend(names);
            self.context.settings.begin_anew("a module may connect to names that it has not looked up");
        }
    }

    fn take(&mut self, ask: Ask) {
        if ask == Ask::Look {
            return self.tell_look();
        }
        if let Ask::Forgotten { module } = &ask {
            return installed::forgotten(self.context, module);
        }
        let Some(place) = self.entries.iter().position(|entry| entry.wanted && entry.module.id == ask.module()) else {
            if let Ask::Stop { module } = &ask {
                return self.stop_unwanted(module);
            }
            return self.refuse(ask.module(), "there is no module of that name");
        };
        let id = self.entries[place].module.id;
        match ask {
            Ask::Start { value, .. } => self.start(place, value),
            Ask::Stop { .. } => self.stop(place),
            Ask::Quarantine { why, .. } => self.quarantine(place, why),
            Ask::Ready { .. } => self.context.starter.board.module_state(id, "ready", now()),
            Ask::Look | Ask::Forgotten { .. } => {}
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

    fn start(&mut self, place: usize, value: Secret<32>) {
        let Entry { module, state, starts, .. } = &mut self.entries[place];
        let id = module.id;
        let why = match state {
            _ if module.refused.is_some() => module.refused.as_deref().unwrap_or_default(),
            State::Running(running) if running.stopping => "it is being ended",
            // What runs is not what was asked for.
            State::Running(running) if running.leave_by.is_some() => {
                running.stopping = true;
                running.child.end_now();
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
            State::Quarantined(why) => {
                let told = Told::Quarantined { module: id.to_owned(), why: why.clone() };
                return self.tell(&told);
            }
            State::Away if !is_seldom(starts, Instant::now()) => "it was started too often",
            State::Away => {
                *state = State::Starting(value, false);
                let (context, module) = (self.context, module.clone());
                context.starter.board.module_state(id, "starting", now());
                self.starting.push(Box::pin(async move { (place, begin(context, module).await) }));
                return;
            }
        };
        let why = why.to_owned();
        self.refuse(id, &why);
    }

    /// One that may not run any more is ended like any other.
    fn stop_unwanted(&mut self, module: &str) {
        match self.entries.iter().position(|entry| entry.module.id == module) {
            Some(place) => self.stop(place),
            None => self.tell(&Told::Stopped { module: module.to_owned() }),
        }
    }

    fn stop(&mut self, place: usize) {
        let Entry { module, state, .. } = &mut self.entries[place];
        let id = module.id;
        match state {
            State::Starting(_, unwanted) => *unwanted = true,
            State::Running(running) => {
                running.stopping = true;
                running.child.end_now();
            }
            State::Away | State::Quarantined(_) => self.tell(&Told::Stopped { module: id.to_owned() }),
        }
    }

    fn leaves(&self) -> bool {
        let leaves = |entry: &Entry| matches!(&entry.state, State::Running(running) if running.leave_by.is_some());
        self.entries.iter().any(leaves)
    }

    /// Ends those that take more than they may, and those whose time to leave is over.
    fn look(&mut self, now: Instant) {
        for Entry { state, .. } in &mut self.entries {
            let State::Running(running) = state else { continue };
            if running.leave_by.is_some_and(|by| by <= now) && !running.stopping {
                running.stopping = true;
                running.child.end_now();
            }
            if let Some(broken) = running.usage.look(&running.held, running.child.pid(), now) {
                running.broken = Some(broken);
                running.child.end_now();
            }
        }
    }

    /// `noded` has seen it end too often. One that runs is ended first: that is asked before this is.
    fn quarantine(&mut self, place: usize, why: String) {
        let entry = &mut self.entries[place];
        if let State::Away = entry.state {
            entry.state = State::Quarantined(reason(&why));
        }
        if let State::Quarantined(_) = entry.state {
            self.context.starter.board.module_state(entry.module.id, "quarantined", now());
        }
    }

    /// The operator's word.
    fn release(&mut self, module: &str) -> Result<(), Failure> {
        let named = crate::cli::one_line(module);
        let Some(entry) = self.entries.iter_mut().find(|entry| entry.module.id == module) else {
            let what = format!("there is no module {named}");
            return Err(Failure::new(Exit::NotFound, "module.unknown", what, "`openred status` lists them"));
        };
        let State::Quarantined(_) = entry.state else {
            let what = format!("the module {named} is not under quarantine");
            return Err(Failure::new(
                Exit::Conflict,
                "module.not-quarantined",
                what,
                "`openred status` says how it is",
            ));
        };
        entry.state = State::Away;
        entry.starts.clear();
        let id = entry.module.id;
        let board = &self.context.starter.board;
        board.clear(&format!("module.{id}.filter"));
        board.module_state(id, "down", now());
        tracing::info!("the module {id} is released from its quarantine");
        self.tell(&Told::Released { module: id.to_owned() });
        Ok(())
    }

    fn started(&mut self, place: usize, outcome: Result<Begun, Fault>) {
        let entry = &mut self.entries[place];
        let id = entry.module.id;
        let State::Starting(value, unwanted) = std::mem::replace(&mut entry.state, State::Away) else { return };
        let Begun { child, mut values, held } = match outcome {
            Ok(started) => started,
            Err(fault) => return self.not_started(place, &fault, unwanted),
        };
        let child = Rc::new(child);
        // Its pipe is empty: this does not wait.
        let given = values.write_all(value.expose()).is_ok();
        let stopping = unwanted || !given;
        if stopping {
            child.end_now();
        }
        let running = Running {
            child: Rc::clone(&child),
            values,
            stopping: unwanted,
            leave_by: None,
            held,
            usage: Usage::default(),
            broken: None,
        };
        entry.state = State::Running(running);
        self.ending.push(async move { (place, child.end().await) }.boxed_local());
        tracing::debug!("the module {id} runs in its cage");
    }

    fn not_started(&mut self, place: usize, fault: &Fault, unwanted: bool) {
        let id = self.entries[place].module.id;
        if let Fault::Layer { .. } = fault {
            self.context.starter.board.report(Event::LayerOff);
        }
        self.context.starter.board.module_ended(id, &fault.to_string(), unwanted, now());
        if unwanted {
            self.tell(&Told::Stopped { module: id.to_owned() });
        } else {
            self.refuse(id, &fault.to_string());
        }
    }

    fn ended(&mut self, place: usize, exit: Ended) {
        let entry = &mut self.entries[place];
        let id = entry.module.id;
        let wanted = matches!(&entry.state, State::Running(running) if running.stopping);
        let filter = exit.broke_the_filter();
        let how = match &entry.state {
            _ if filter => FILTER.to_owned(),
            State::Running(running) => running.broke(exit).map_or(exit.to_string(), |what| running.held.breach(what)),
            _ => exit.to_string(),
        };
        entry.state = if filter { State::Quarantined(FILTER.to_owned()) } else { State::Away };
        if wanted {
            // Nobody needed it, or the node ends: no start too many.
            entry.starts.pop();
        }
        let board = &self.context.starter.board;
        board.module_ended(id, &how, wanted, now());
        if filter {
            board.module_state(id, "quarantined", now());
            board.report(Event::FilterBroken);
            let detail = format!("the module {id} tried a system call outside its filter and was killed");
            let help = "treat it as a break-in until explained: keep the log; `openred module release ID` has it started again";
            board.alarm(&format!("module.{id}.filter"), detail, help, now());
        } else if !wanted {
            board.report(Event::ProcessDied);
        }
        if wanted {
            self.tell(&Told::Stopped { module: id.to_owned() });
        } else {
            tracing::warn!("the module {id} ended ({how})");
            self.tell(&Told::Ended { module: id.to_owned(), how: reason(&how) });
        }
    }

    /// Ends every module and waits for it.
    async fn end(&mut self) {
        self.node = None;
        // Those on their way end with their futures.
        self.starting.clear();
        for entry in &mut self.entries {
            match &mut entry.state {
                State::Running(running) => {
                    running.stopping = true;
                    running.child.end_now();
                }
                State::Starting(..) => entry.state = State::Away,
                State::Away | State::Quarantined(_) => {}
            }
        }
        while let Some((place, exit)) = self.ending.next().await {
            self.ended(place, exit);
        }
    }
}

/// Whether one more start is not too often; notes it then.
fn is_seldom(starts: &mut Vec<Instant>, now: Instant) -> bool {
    starts.retain(|start| now.saturating_duration_since(*start) < WINDOW);
    let seldom = starts.len() < STARTS;
    if seldom {
        starts.push(now);
    }
    seldom
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_is_not_started_again_and_again() {
        let (mut starts, begun) = (Vec::new(), Instant::now());
        assert!((0..STARTS).all(|_| is_seldom(&mut starts, begun)));
        assert!(!is_seldom(&mut starts, begun + WINDOW / 2));
        assert!(is_seldom(&mut starts, begun + WINDOW));
    }
}
