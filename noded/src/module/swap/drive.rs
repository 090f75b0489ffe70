//! Does what the machine says: processes, rows, callers. One module's; its life owns it.

use std::collections::VecDeque;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use openred_module::remote::Attached;
use openred_proto::modules::{Ask, Told};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use super::machine::{Action, Event, LEAVING, Machine};
use super::record::{Generation, Record};
use super::wish::{Done, Shown, Want, Wish};
use crate::clock;
use crate::module::Wanted;
use crate::module::lives::{End, Life, STOP, Trouble};
use crate::module::terms::{Settling, Terms};
use crate::store::{Pen, Writer};

/// How long calls in flight may hold up those that come.
const HOLD: Duration = Duration::from_secs(1);
/// How long the start of a generation may hold them up, whose place the one before it keeps otherwise.
const BEGIN: Duration = Duration::from_secs(10);
/// How long a migration may take.
const MIGRATE: Duration = Duration::from_secs(60);
/// How long a new generation may take to say that it is well.
const HEALTH: Duration = Duration::from_secs(10);
/// How long a generation that was replaced may take to end what it does.
const DRAIN: Duration = Duration::from_secs(30);

/// A generation that is attached.
pub(in crate::module) struct Live {
    pub(in crate::module) number: u64,
    pub(in crate::module) attached: Arc<Attached>,
    pub(in crate::module) pen: Arc<Pen>,
    pub(in crate::module) told: mpsc::Receiver<Told>,
    pub(in crate::module) wanted: Wanted,
    pub(in crate::module) terms: Terms,
    pub(in crate::module) settings: Arc<watch::Sender<String>>,
    pub(in crate::module) settled: Settling,
}

/// Who waits for a swap.
struct Waiting {
    /// The generation that was active before.
    before: u64,
    /// It is one to the version before.
    back: bool,
    done: Done,
}

/// See the file's head.
pub(in crate::module) struct Drive<'a> {
    life: &'a Life,
    machine: Machine,
    active: Option<Live>,
    next: Option<Live>,
    /// Replaced, until it is told to go.
    replaced: Vec<Live>,
    /// Writes of the active one that are in the copy.
    copied: u64,
    left: mpsc::Receiver<u64>,
    leaves: mpsc::Sender<u64>,
    /// What the operator has installed.
    desired: Wanted,
    /// What the active generation is of, if that is another.
    known: Option<Wanted>,
    /// It is not what runs, and was not tried.
    pending: bool,
    /// Nothing has run yet, and what shall is another since that was tried.
    anew: bool,
    queue: VecDeque<Wish>,
    /// Who waits for the swap that is under way.
    waiting: Option<Waiting>,
    /// The supervisor has heard of this one that did not take its place.
    told_left: Option<(String, u32)>,
}

impl<'a> Drive<'a> {
    /// From what is stored; ends what was left over.
    pub(in crate::module) async fn restore(life: &'a Life) -> Result<Self, Trouble> {
        let stored = life.modules.parts.store.module_record(life.id).await;
        let stored = stored.map_err(|error| format!("what is stored of it cannot be read: {error}"))?;
        let record = match stored {
            Some(bytes) => Record::decode(&bytes).ok_or("what is stored of it cannot be read")?,
            None => Record::default(),
        };
        let told_left = record.left.clone();
        let (machine, actions) = Machine::restore(record);
        // As many may be on their way at once, and the one that is given up.
        let (leaves, left) = mpsc::channel(LEAVING + 1);
        let mut drive = Self {
            life,
            machine,
            active: None,
            next: None,
            replaced: Vec::new(),
            copied: 0,
            left,
            leaves,
            desired: life.wanted.clone(),
            known: None,
            pending: false,
            anew: false,
            queue: VecDeque::new(),
            waiting: None,
            told_left,
        };
        drive.pending = drive.is_another(&life.wanted);
        drive.known = life.modules.earlier(life.id, &drive.record().active.version);
        if drive.pending && drive.is_left(&life.wanted) {
            // It was on its way to be told when this process ended.
            drive.pending = false;
            drive.told_left = None;
        }
        drive.run(actions).await;
        Ok(drive)
    }

    fn record(&self) -> &Record {
        self.machine.record()
    }

    /// Which generation the machine takes for the active one.
    fn number(&self) -> u64 {
        self.record().active.number
    }

    /// Whether a swap to it is to be made.
    fn is_untried(&self, wanted: &Wanted) -> bool {
        self.is_another(wanted) && !self.is_left(wanted)
    }

    /// Whether this is another version than the one that is active.
    fn is_another(&self, wanted: &Wanted) -> bool {
        let version = self.record().active.version.as_str();
        !self.life.comes_with_us && !version.is_empty() && wanted.manifest.version.as_str() != version
    }

    /// Whether it was left, and not installed again since.
    fn is_left(&self, wanted: &Wanted) -> bool {
        self.record().left.as_ref().is_some_and(|(version, turn)| wanted.is(version, *turn))
    }

    /// What a generation is of.
    fn wanted_of(&self, generation: &Generation) -> Result<Wanted, Trouble> {
        let is_it = |wanted: &Wanted| wanted.manifest.version.as_str() == generation.version;
        if self.life.comes_with_us || generation.version.is_empty() || is_it(&self.desired) {
            return Ok(self.desired.clone());
        }
        let known = self.known.clone().filter(is_it);
        let found = known.or_else(|| self.life.modules.earlier(self.life.id, &generation.version));
        let found = found.ok_or_else(|| {
            let why = match self.record().outcome.as_str() {
                "" => String::new(),
                outcome => format!(" ({outcome})"),
            };
            format!("its version {} is not installed any more{why}", generation.version)
        })?;
        Ok(Wanted { turn: generation.turn, ..found })
    }

    /// What is noted of it: of an installed one the manifest's version, of which its program may be a build.
    fn version_of(&self, live: &Live) -> String {
        if self.life.comes_with_us {
            live.attached.version().to_owned()
        } else {
            live.wanted.manifest.version.to_string()
        }
    }

    /// Whether another version waits to take the place of this one.
    pub(in crate::module) fn has_another(&self) -> bool {
        self.pending || self.anew
    }

    /// Waits until something is wished, which is done with the next start.
    pub(in crate::module) async fn wait(&mut self, wishes: &mut mpsc::Receiver<Wish>) {
        match wishes.recv().await {
            Some(wish) => self.note(wish),
            // Its keeper has gone, and this process goes with it.
            None => std::future::pending().await,
        }
    }

    /// Waits until somebody needs it, or wishes something. Its probation goes on, and ends, meanwhile.
    pub(in crate::module) async fn sleep(&mut self, wishes: &mut mpsc::Receiver<Wish>) {
        loop {
            let (slot, until) = (&self.life.slot, self.machine.poll_timeout());
            tokio::select! {
                () = slot.wanted() => return,
                () = self.wait(wishes) => return,
                () = probation_over(until) => {}
            }
            let actions = self.machine.handle_timeout(clock::now().0);
            self.run(actions).await;
        }
    }

    /// Whoever waits is told that it was not done.
    pub(in crate::module) fn refuse(&mut self, why: &str) {
        for wish in std::mem::take(&mut self.queue) {
            wish.done.into_iter().for_each(|done| drop(done.send(Err(why.to_owned()))));
        }
    }

    fn note(&mut self, wish: Wish) {
        match wish.want {
            Want::To(wanted) => {
                self.pending = self.is_untried(&wanted);
                // A first version that never began has left nothing to swap from: the next one is the first.
                self.anew = self.record().active.version.is_empty() && wanted != self.desired;
                self.desired = wanted;
            }
            _ => self.queue.push_back(wish),
        }
    }

    /// From its start to its end; its process is gone with that.
    pub(in crate::module) async fn live(
        &mut self,
        wishes: &mut mpsc::Receiver<Wish>,
        said: &mut (impl FnMut(()) + Send),
    ) -> End {
        let end = match self.begin().await {
            Ok(()) => {
                said(());
                self.serve(wishes).await
            }
            Err(trouble) => End::Trouble(trouble),
        };
        // Still attached: a process that sees its connection end might end by itself before.
        let number = self.number();
        let mut told = self.life.supervisor.hear(self.life.id, number);
        let how = self.life.stop(number, &mut told).await;
        self.active = None;
        match (end, how) {
            (End::Trouble(Trouble { detail, quarantined }), Some(how)) => {
                End::Trouble(Trouble { detail: format!("{detail} ({how})"), quarantined })
            }
            (end, _) => end,
        }
    }

    /// Has the active generation started and lets calls in; first another one takes its place, if one waits.
    async fn begin(&mut self) -> Result<(), Trouble> {
        if self.active.is_some() {
            return Ok(());
        }
        self.life.slot.starting();
        self.anew = false;
        self.go_on().await;
        if self.active.is_some() {
            return Ok(());
        }
        self.life.slot.starting();
        let (active, epoch) = (self.record().active.clone(), self.record().epoch);
        let wanted = self.wanted_of(&active)?;
        let live = self.life.attach(&active, wanted, (Writer::Active(epoch), 0)).await?;
        self.life.activate(&live, epoch, live.terms.start).await?;
        let actions = self.machine.attached(&self.version_of(&live), live.wanted.turn);
        self.life.serving(&live).await;
        self.known = Some(live.wanted.clone());
        self.active = Some(live);
        self.run(actions).await;
        Ok(())
    }

    /// Begins what waits, if nothing is under way. True if something was.
    async fn go_on(&mut self) -> bool {
        if self.machine.doing().is_some() {
            return false;
        }
        if std::mem::take(&mut self.pending) {
            let (version, turn) = (self.desired.manifest.version.to_string(), self.desired.turn);
            let actions = self.machine.swap(&version, turn).unwrap_or_default();
            self.run(actions).await;
            return true;
        }
        if self.active.is_some()
            && let Some(wish) = self.queue.pop_front()
        {
            let actions = self.wished(wish);
            self.run(actions).await;
            return true;
        }
        false
    }

    /// Serves until the active generation has ended, and does meanwhile what is wished.
    async fn serve(&mut self, wishes: &mut mpsc::Receiver<Wish>) -> End {
        loop {
            while self.go_on().await {}
            let Some(active) = &mut self.active else { return End::Trouble("it does not run".into()) };
            let (attached, idle, stop) = (Arc::clone(&active.attached), active.terms.idle, active.terms.stop);
            let actions = tokio::select! {
                fault = attached.ended() => {
                    self.life.slot.away();
                    return End::Trouble(self.life.own_end(fault, &mut active.told).await);
                }
                why = active.settled.refused() => {
                    self.life.slot.away();
                    return End::Trouble(why.into());
                }
                retired = self.life.retired(idle) => {
                    // Nobody calls it any more, and whoever does waits for the next one.
                    retired.drain(stop).await;
                    return End::Idle;
                }
                Some(wish) = wishes.recv() => {
                    self.note(wish);
                    Vec::new()
                }
                Some(number) = self.left.recv() => self.machine.handle(Event::Left(number), clock::now().0),
                () = probation_over(self.machine.poll_timeout()) => self.machine.handle_timeout(clock::now().0),
            };
            self.run(actions).await;
        }
    }

    /// The active generation has ended. True if another was made active in its place.
    pub(in crate::module) async fn ended(&mut self, why: &str) -> bool {
        // One that waits for its turn while its predecessor ends is still what the operator wishes, and was not tried.
        let waits = self.machine.doing() == Some("waiting") && self.is_untried(&self.desired);
        let actions = self.machine.active_ended(why);
        if actions.is_empty() {
            return false;
        }
        self.life.slot.starting();
        self.run(actions).await;
        self.pending |= waits;
        self.active.is_some()
    }

    fn wished(&mut self, Wish { want, done }: Wish) -> Vec<Action> {
        let active = self.record().active.clone();
        let back = matches!(want, Want::Back { .. });
        let begun = match want {
            Want::Again if self.life.comes_with_us => self.machine.swap("", 0),
            Want::Again => self.machine.swap(&active.version, active.turn),
            Want::Back { snapshot } => self.machine.roll_back(snapshot),
            Want::To(_) => return Vec::new(),
            Want::Await(version) => {
                let there = active.version == version && self.active.is_some();
                let outcome = if there { Ok(()) } else { Err(self.record().outcome.clone()) };
                done.into_iter().for_each(|done| drop(done.send(outcome.clone())));
                return Vec::new();
            }
        };
        match (begun, done) {
            (Ok(actions), done) => {
                self.waiting = done.map(|done| Waiting { before: active.number, back, done });
                actions
            }
            (Err(refused), done) => {
                done.into_iter().for_each(|done| drop(done.send(Err(refused.to_string()))));
                Vec::new()
            }
        }
    }

    async fn run(&mut self, actions: Vec<Action>) {
        let mut queue = VecDeque::from(actions);
        while let Some(action) = queue.pop_front() {
            tracing::debug!(module = self.life.id, ?action, "swap");
            if let Some(event) = self.act(action).await {
                queue.extend(self.machine.handle(event, clock::now().0));
            }
            self.show();
        }
        self.show();
        if self.machine.doing().is_some() {
            return;
        }
        self.settle().await;
        if let Some(Waiting { before, back, done }) = self.waiting.take() {
            // A version that ends in its probation while the next one waits is rolled back: that is not what was wished.
            let is_it = self.record().probation.is_none() == back;
            let swapped = self.number() != before && self.active.is_some() && is_it;
            let outcome = if swapped { Ok(()) } else { Err(self.record().outcome.clone()) };
            drop(done.send(outcome));
        }
    }

    /// Where an installed version did not take its place, the supervisor starts the one before it from now on.
    async fn settle(&mut self) {
        let Record { left, active, outcome, .. } = self.record();
        if *left == self.told_left {
            return;
        }
        tracing::info!(module = self.life.id, "{outcome}");
        if let Some((from, _)) = left.clone().filter(|(from, _)| !self.life.comes_with_us && *from != active.version) {
            let (module, to, turn) = (self.life.id.to_owned(), active.version.clone(), active.turn);
            self.life.supervisor.ask(Ask::Settle { module, from, to, turn }).await;
        }
        self.told_left = self.record().left.clone();
    }

    fn show(&self) {
        let shown = Shown { record: self.record().clone(), doing: self.machine.doing() };
        *self.life.shown.lock().unwrap_or_else(PoisonError::into_inner) = shown;
    }

    /// Does one thing; how it went, where that is waited for.
    async fn act(&mut self, action: Action) -> Option<Event> {
        let done = match action {
            Action::Save(record) => self.save(*record).await.map(|()| Event::Saved),
            Action::Copy { from, to } => self.copy(from, to).await.map(|()| Event::Copied),
            Action::Start { next, copy } => self.start(next, copy).await,
            Action::Migrate { from } => self.migrate(&from).await,
            Action::Hold => self.hold().await,
            Action::Begin { number, epoch } => self.begin_next(number, epoch).await,
            Action::Route { number, epoch } => {
                self.route(number, epoch).await;
                return None;
            }
            Action::Drain(number) => {
                self.leave(number, true);
                return None;
            }
            Action::Stop(number) => {
                self.leave(number, false);
                return None;
            }
        };
        Some(done.unwrap_or_else(|trouble| Event::Failed(trouble.detail)))
    }

    async fn save(&self, record: Record) -> Result<(), Trouble> {
        let (module, epoch, states) = (self.life.id, record.epoch, record.states());
        let saved = self.life.modules.parts.store.save_module(module, epoch, record.encode(), states).await;
        saved.map_err(|error| format!("it cannot be stored: {error}"))?;
        let (module, programs, versions) = (module.to_owned(), record.programs(), record.versions());
        self.life.supervisor.ask(Ask::Keep { module, programs, versions }).await;
        Ok(())
    }

    async fn copy(&mut self, from: u64, to: u64) -> Result<(), Trouble> {
        // Looked at first: a write in between counts as one that is not in the copy.
        self.copied = self.active.as_ref().map_or(0, |active| active.pen.writes());
        let copied = self.life.modules.parts.store.copy_state(self.life.id, from, to).await;
        copied.map(drop).map_err(|error| format!("its rows cannot be copied: {error}").into())
    }

    async fn start(&mut self, next: Generation, copy: bool) -> Result<Event, Trouble> {
        let writer = if copy { Writer::Copy } else { Writer::Nobody };
        let runs = self.active.as_ref().is_some_and(|active| active.number == self.number());
        let is_ours = self.life.comes_with_us && self.record().active.program == 0;
        let preserve = if is_ours && runs { self.number() } else { 0 };
        let wanted = self.wanted_of(&next)?;
        let live = self.life.attach(&next, wanted, (writer, preserve));
        let live = tokio::select! {
            live = live => live?,
            () = ended(self.active.as_ref()) => return Err(ended_meanwhile()),
        };
        let version = self.version_of(&live);
        self.next = Some(live);
        Ok(Event::Attached(version))
    }

    async fn migrate(&self, from: &str) -> Result<Event, Trouble> {
        let next = self.next.as_ref().ok_or_else(gone)?;
        let before = next.pen.writes();
        let migrated = tokio::select! {
            migrated = timeout(MIGRATE, next.attached.migrate(from)) => migrated,
            () = ended(self.active.as_ref()) => return Err(ended_meanwhile()),
        };
        match migrated {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(format!("it did not migrate the rows: {}", error.detail).into()),
            Err(_) => return Err("it did not migrate the rows in time".into()),
        }
        match timeout(HEALTH, next.attached.ping()).await {
            Ok(true) => Ok(Event::Migrated { changed: next.pen.writes() != before }),
            _ => Err("it does not answer".into()),
        }
    }

    async fn hold(&self) -> Result<Event, Trouble> {
        self.life.slot.hold();
        let Some(active) = &self.active else { return Ok(Event::Quiet { written: false }) };
        if timeout(HOLD, self.life.slot.quiet()).await.is_err() {
            tracing::warn!(module = self.life.id, "calls go on at the version that is replaced, and only read");
        }
        active.pen.pass(self.record().active.state, Writer::Nobody);
        // Behind everything that was on its way to the store.
        let flushed = self.life.modules.parts.store.module_record(self.life.id).await;
        flushed.map_err(|error| format!("the store fails: {error}"))?;
        Ok(Event::Quiet { written: active.pen.writes() != self.copied })
    }

    async fn begin_next(&self, number: u64, epoch: u64) -> Result<Event, Trouble> {
        let next = self.next.as_ref().filter(|next| next.number == number).ok_or_else(gone)?;
        next.pen.pass(self.record().active.state, Writer::Active(epoch));
        self.life.activate(next, epoch, next.terms.start.min(BEGIN)).await.map(|()| Event::Begun)
    }

    async fn route(&mut self, number: u64, epoch: u64) {
        let has_next = self.next.as_ref().is_some_and(|next| next.number == number);
        if has_next {
            self.replaced.extend(self.active.take());
            self.active = self.next.take();
            tracing::info!(module = self.life.id, generation = number, "{}", self.record().outcome);
        }
        match &self.active {
            Some(active) if active.number == number => {
                if !has_next {
                    active.pen.pass(self.record().active.state, Writer::Active(epoch));
                }
                self.life.serving(active).await;
                self.known = Some(active.wanted.clone());
            }
            // It has ended: its life starts it again.
            _ => self.life.slot.starting(),
        }
    }

    /// Has a generation end, beside everything else.
    fn leave(&mut self, number: u64, drain: bool) {
        let next = self.next.take_if(|next| next.number == number);
        let replaced = self.replaced.iter().position(|live| live.number == number);
        let live = next.or_else(|| replaced.map(|place| self.replaced.swap_remove(place)));
        let id = self.life.id;
        let (attached, mut told) = match live {
            Some(Live { attached, told, .. }) => (Some(attached), told),
            None => (None, self.life.supervisor.hear(id, number)),
        };
        let (supervisor, leaves) = (Arc::clone(&self.life.supervisor), self.leaves.clone());
        tokio::spawn(async move {
            if let Some(attached) = &attached
                && drain
                && !attached.drain(DRAIN).await
            {
                tracing::warn!(module = id, "the version that was replaced did not end its calls in time");
            }
            supervisor.ask(Ask::Stop { module: id.to_owned(), generation: number }).await;
            let stopped = async {
                while let Some(said) = told.recv().await {
                    if let Told::Stopped { .. } = said {
                        return;
                    }
                }
            };
            if timeout(STOP, stopped).await.is_err() {
                tracing::error!(module = id, "the supervisor does not say that a generation has ended");
            }
            supervisor.forget(id, number);
            // Nobody hears it where the node ends.
            let _ = leaves.send(number).await;
        });
    }
}

fn gone() -> Trouble {
    "it has gone".into()
}

fn ended_meanwhile() -> Trouble {
    "the version before it ended meanwhile".into()
}

async fn ended(live: Option<&Live>) {
    match live {
        Some(live) => drop(live.attached.ended().await),
        None => std::future::pending().await,
    }
}

async fn probation_over(until: Option<u64>) {
    match until {
        Some(until) => tokio::time::sleep(Duration::from_millis(until.saturating_sub(clock::now().0))).await,
        None => std::future::pending().await,
    }
}
