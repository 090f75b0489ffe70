//! The life of one module that is a process: asked for, awaited, started, called, mourned, and asked for again.
//!
//! The supervisor starts and ends processes; whether there shall be one is decided here. A module that ends comes back after a pause that
//! grows; one that ends again and again is put under quarantine and named, and the rest of the node goes on.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use openred_module::manifest::Manifest;
use openred_module::remote::{Attached, Door, Fault, PROOF_BYTES};
use openred_proto::modules::{Ask, Told, reason};
use openred_proto::secret::Secret;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;

use super::meter::Meter;
use super::methods::{self, ModuleMethods};
use super::slot::Slot;
use super::supervisor::Supervisor;
use super::swap::{Board, Drive, Generation, Live, Wish};
use super::terms::{Settling, Terms};
use super::{Hosts, Modules, Wanted};
use crate::clock;
use crate::health::{Condition, Health};
use crate::store::{Pen, Writer};
use crate::supervisor::Backoff;

/// How long a module may take to be started, caged and attached, on a loaded machine.
const ATTACH: Duration = Duration::from_secs(30);
/// How long the supervisor may take to end it.
pub(super) const STOP: Duration = Duration::from_secs(30);
/// How long after its connection a process may take to be gone.
const LAST_WORD: Duration = Duration::from_secs(2);
/// So many ends within [`WINDOW`] are no accident any more.
const ENDS: usize = 3;
/// See [`ENDS`].
const WINDOW: Duration = Duration::from_secs(600);

/// What a life is made of.
pub(super) struct Life {
    pub(super) id: &'static str,
    /// Whether it comes with the node: then its version is what it says, and its program what lies beside `openred`.
    pub(super) comes_with_us: bool,
    /// What is to run, as it stood when this life began.
    pub(super) wanted: Wanted,
    /// Whether another life of it was ended here: its processes must be gone first. One that outlived a `noded` is taken over.
    pub(super) anew: bool,
    pub(super) hosts: Hosts,
    /// The operator's word on how long one may run that nobody needs.
    pub(super) idle: Option<Duration>,
    pub(super) slot: Arc<Slot>,
    pub(super) meter: Arc<Meter>,
    pub(super) door: Arc<Door>,
    pub(super) supervisor: Arc<Supervisor>,
    pub(super) troubles: Arc<Troubles>,
    pub(super) methods: Option<Arc<ModuleMethods>>,
    pub(super) shown: Board,
    pub(super) modules: Arc<Modules>,
}

/// Looks at whether a module is needed, within the time after which it is not.
const LOOKS: u32 = 4;

/// Which modules are away and why, and which of them stay so: two conditions of the node.
pub(super) struct Troubles {
    health: Arc<Health>,
    away: Mutex<BTreeMap<&'static str, (Condition, String)>>,
}

impl Troubles {
    pub(super) fn new(health: Arc<Health>) -> Arc<Self> {
        Arc::new(Self { health, away: Mutex::default() })
    }

    pub(super) fn raise(&self, module: &'static str, detail: String) {
        self.change(|away| drop(away.insert(module, (Condition::ModuleDown, detail))));
    }

    fn quarantine(&self, module: &'static str, detail: String) {
        self.change(|away| drop(away.insert(module, (Condition::ModuleQuarantined, detail))));
    }

    pub(super) fn clear(&self, module: &'static str) {
        self.change(|away| drop(away.remove(module)));
    }

    fn change(&self, change: impl FnOnce(&mut BTreeMap<&'static str, (Condition, String)>)) {
        let mut away = self.away.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut away);
        for condition in [Condition::ModuleDown, Condition::ModuleQuarantined] {
            let of = away.iter().filter(|(_, (of, _))| *of == condition);
            let details: Vec<String> = of.map(|(module, (_, detail))| format!("{module}: {detail}")).collect();
            if details.is_empty() {
                self.health.clear(condition);
            } else {
                self.health.raise(condition, clock::now(), details.join("; "));
            }
        }
    }
}

/// The last ends of a module. Time is an argument.
#[derive(Default)]
struct Ends(VecDeque<Instant>);

impl Ends {
    /// Notes one; true if that is one too many.
    fn add(&mut self, now: Instant) -> bool {
        self.0.push_back(now);
        while self.0.front().is_some_and(|first| now.saturating_duration_since(*first) > WINDOW) {
            self.0.pop_front();
        }
        self.0.len() >= ENDS
    }
}

/// Why a module does not run, in a few words.
#[derive(Debug)]
pub(super) struct Trouble {
    pub(super) detail: String,
    /// The supervisor does not start it before the operator says so.
    pub(super) quarantined: bool,
}

impl From<String> for Trouble {
    fn from(detail: String) -> Self {
        Self { detail, quarantined: false }
    }
}

impl From<&str> for Trouble {
    fn from(detail: &str) -> Self {
        detail.to_owned().into()
    }
}

/// How a module came to its end.
pub(super) enum End {
    /// Nobody needed it.
    Idle,
    Trouble(Trouble),
}

impl Life {
    /// Lives until the node ends. `first` is told how the first attempt went, whichever way.
    pub(super) async fn run(self, first: oneshot::Sender<()>, mut wishes: mpsc::Receiver<Wish>) {
        let id = self.id;
        // Of the module, not of one of its processes.
        let mut told = self.supervisor.hear(id, 0);
        if self.anew {
            // The generations before it may still be on their way out.
            self.stop(0, &mut told).await;
        }
        let mut drive = match Drive::restore(&self).await {
            Ok(drive) => drive,
            Err(Trouble { detail, .. }) => {
                tracing::error!(module = id, "{detail}");
                return self.troubles.raise(id, detail);
            }
        };
        let (mut ends, mut backoff, mut first) = (Ends::default(), Backoff::default(), Some(first));
        let mut said = |()| {
            if let Some(first) = first.take() {
                // Whoever waits for it may have stopped.
                let _ = first.send(());
            }
        };
        if self.terms(&self.wanted, &watch::Sender::default()).is_lazy {
            self.slot.asleep();
            said(());
            drive.sleep(&mut wishes).await;
        }
        loop {
            let begun = Instant::now();
            let Trouble { detail, quarantined } = match drive.live(&mut wishes, &mut said).await {
                End::Idle => {
                    tracing::debug!(module = id, "nobody needs it");
                    drive.sleep(&mut wishes).await;
                    continue;
                }
                End::Trouble(trouble) => trouble,
            };
            if drive.ended(&detail).await {
                tracing::warn!(module = id, "{detail}; the version before it has taken its place");
                continue;
            }
            self.slot.away();
            said(());
            drive.refuse(&detail);
            if quarantined || ends.add(Instant::now()) {
                let more = format!("{detail}; it ended {ENDS} times in ten minutes and is not started again");
                self.quarantine(if quarantined { detail } else { more }, &mut told, (&mut drive, &mut wishes)).await;
                (ends, backoff) = (Ends::default(), Backoff::default());
                continue;
            }
            let pause = backoff.after(begun.elapsed());
            tracing::warn!(module = id, "{detail}; it is started again in {} ms", pause.as_millis());
            self.troubles.raise(id, detail);
            let _ = timeout(pause, drive.wait(&mut wishes)).await;
        }
    }

    /// Stays down until the operator has released it, or has another version take its place.
    async fn quarantine(
        &self,
        detail: String,
        told: &mut mpsc::Receiver<Told>,
        (drive, wishes): (&mut Drive<'_>, &mut mpsc::Receiver<Wish>),
    ) {
        let id = self.id;
        tracing::error!(module = id, "{detail}");
        self.slot.quarantined();
        self.supervisor.ask(Ask::Quarantine { module: id.to_owned(), why: reason(&detail) }).await;
        self.troubles.quarantine(id, detail);
        loop {
            tokio::select! {
                said = told.recv() => match said {
                    Some(Told::Released { .. }) => break,
                    Some(_) => {}
                    // The supervisor has gone, and this process goes with it.
                    None => std::future::pending().await,
                },
                () = drive.wait(wishes) => {
                    if drive.has_another() {
                        break;
                    }
                    drive.refuse("it is under quarantine; `openred module release` has it started again");
                }
            }
        }
        tracing::info!(module = id, "released by the operator");
        self.troubles.clear(id);
    }

    /// Has a generation started and waits until it has attached. `preserve` names the running one whose program is kept.
    pub(super) async fn attach(
        &self,
        generation: &Generation,
        wanted: Wanted,
        (writer, preserve): (Writer, u64),
    ) -> Result<Live, Trouble> {
        let (id, number) = (self.id, generation.number);
        let mut told = self.supervisor.hear(id, number);
        let mut value = [0; PROOF_BYTES];
        getrandom::fill(&mut value).map_err(|_| "the kernel's random generator does not answer")?;
        let pen = Pen::new(self.hosts.seal.of_state(generation.state), writer);
        let context = (self.hosts.make)(Arc::clone(&pen), self.modules.granted(&wanted));
        let expected = self.door.expect(id, Secret::new(value), context);
        let version = if self.comes_with_us { String::new() } else { wanted.manifest.version.to_string() };
        let (module, program, value) = (id.to_owned(), generation.program, Secret::new(value));
        self.supervisor.ask(Ask::Start { module, generation: number, program, preserve, version, value }).await;
        let attached = tokio::select! {
            attached = timeout(ATTACH, expected.attached()) => match attached {
                Ok(attached) => Arc::new(attached.map_err(|fault| fault.to_string())?),
                Err(_) => return Err("it did not attach in time".into()),
            },
            said = not_stopped(&mut told) => return Err(match said {
                Some(Told::Refused { reason, .. }) => reason.into(),
                Some(Told::Quarantined { why, .. }) => Trouble { detail: why, quarantined: true },
                Some(Told::Ended { how, .. }) => format!("it ended before it had attached: {how}").into(),
                Some(Told::Stopped { .. } | Told::Released { .. }) => "it was ended".into(),
                // Words about no module do not come here.
                _ => "the supervisor has gone".into(),
            }),
        };
        if !self.comes_with_us {
            as_read(&wanted.manifest, &attached)?;
        }
        // Before it migrates anything: one that does not take its settings takes nobody's place.
        let settings = Arc::new(watch::Sender::new(self.modules.settings_of(&wanted)));
        let terms = self.terms(&wanted, &settings);
        let settled = Settling::begin(terms.settle(&attached).await?, attached.clone());
        tracing::info!(module = id, generation = number, version = attached.version(), "attached");
        Ok(Live { number, attached, pen, told, wanted, terms, settings, settled })
    }

    fn terms(&self, wanted: &Wanted, settings: &watch::Sender<String>) -> Terms {
        Terms::new(&wanted.manifest, self.idle, settings.subscribe())
    }

    /// Runs a generation's start; it is the one that writes.
    pub(super) async fn activate(&self, live: &Live, epoch: u64, most: Duration) -> Result<(), Trouble> {
        // Before it serves: what it describes is known when it is first called.
        if let Some(methods) = &self.methods {
            methods.declared(self.id, live.attached.methods()).await;
        }
        match timeout(most, live.attached.activate(epoch)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(format!("it did not start: {}", error.detail).into()),
            Err(_) => Err("it did not start in time".into()),
        }
    }

    /// Lets calls in: a generation is the one that is called from now on.
    pub(super) async fn serving(&self, live: &Live) {
        let generation = live.number;
        self.supervisor.ask(Ask::Ready { module: self.id.to_owned(), generation }).await;
        self.modules.serve(self.id, &live.wanted, &live.settings);
        self.meter.started();
        self.slot.serving(Arc::clone(&live.attached));
        self.troubles.clear(self.id);
    }

    /// Waits until nobody has needed it for as long as was said.
    pub(super) async fn retired(&self, idle: Option<Duration>) -> Arc<Attached> {
        let Some(idle) = idle else { return std::future::pending().await };
        loop {
            tokio::time::sleep(idle / LOOKS).await;
            if let Some(retired) = self.slot.retire(idle) {
                return retired;
            }
        }
    }

    /// How a process ended whose connection broke: that is seen a moment earlier than its end. Asked at once to end it, the supervisor
    /// could not tell the two apart.
    pub(super) async fn own_end(&self, fault: Fault, told: &mut mpsc::Receiver<Told>) -> Trouble {
        if fault != Fault::Gone {
            return fault.to_string().into();
        }
        match timeout(LAST_WORD, told.recv()).await {
            Ok(Some(Told::Ended { how, .. })) => format!("{fault} ({how})").into(),
            _ => fault.to_string().into(),
        }
    }

    /// Has a generation's process ended, if it is still there (zero: all of them); how it ended, if by itself.
    pub(super) async fn stop(&self, generation: u64, told: &mut mpsc::Receiver<Told>) -> Option<String> {
        self.supervisor.ask(Ask::Stop { module: self.id.to_owned(), generation }).await;
        let mut how = None;
        let stopped = async {
            while let Some(said) = told.recv().await {
                match said {
                    Told::Ended { how: by_itself, .. } => how = Some(by_itself),
                    Told::Stopped { .. } => return,
                    _ => {}
                }
            }
        };
        if timeout(STOP, stopped).await.is_err() {
            tracing::error!(module = self.id, "the supervisor does not say that it has ended");
        }
        how
    }
}

/// Whether a module is what its manifest says.
fn as_read(manifest: &Manifest, attached: &Attached) -> Result<(), String> {
    let (says, version) = (attached.version(), &manifest.version);
    // A build has its own name in the manifest alone.
    if !says.parse().is_ok_and(|says| version.is_build_of(&says)) {
        return Err(format!("it says that it is {says}, and its manifest says {version}"));
    }
    methods::differ(manifest, attached.methods()).map_or(Ok(()), Err)
}

/// The next word that is not the end of a generation before this one.
async fn not_stopped(told: &mut mpsc::Receiver<Told>) -> Option<Told> {
    loop {
        match told.recv().await {
            Some(Told::Stopped { .. }) => {}
            said => return said,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_ends_in_ten_minutes_are_too_many() {
        let (mut ends, begun) = (Ends::default(), Instant::now());
        let after = |seconds| begun + Duration::from_secs(seconds);
        assert!(!ends.add(after(0)) && !ends.add(after(400)));
        assert!(!ends.add(after(700)), "the first is too long ago");
        assert!(ends.add(after(900)));
    }

    #[test]
    fn modules_that_are_away_are_named_together() {
        let health = Arc::new(Health::default());
        let troubles = Troubles::new(Arc::clone(&health));
        troubles.raise("messaging", "it has gone".into());
        troubles.raise("files", "it does not answer".into());
        assert_eq!(health.report()[0].detail, "files: it does not answer; messaging: it has gone");
        troubles.clear("files");
        assert_eq!(health.report()[0].detail, "messaging: it has gone");
        troubles.quarantine("messaging", "again and again".into());
        assert_eq!(health.report()[0].code, "module.quarantined");
        troubles.clear("messaging");
        assert!(health.report().is_empty());
    }
}
