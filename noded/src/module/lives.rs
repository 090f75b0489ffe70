//! The life of one module that is a process: asked for, awaited, started, called, mourned, and asked for again.
//!
//! The supervisor starts and ends processes; whether there shall be one is decided here. A module that ends comes back after a pause that
//! grows; one that ends again and again is put under quarantine and named, and the rest of the node goes on.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use openred_module::Context;
use openred_module::manifest::Manifest;
use openred_module::remote::{Attached, Door, Fault, PROOF_BYTES};
use openred_proto::modules::{Ask, Told, reason};
use openred_proto::secret::Secret;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::meter::Meter;
use super::methods::{self, ModuleMethods};
use super::slot::Slot;
use super::supervisor::Supervisor;
use super::terms::{Settled, Terms};
use crate::clock;
use crate::health::{Condition, Health};
use crate::supervisor::Backoff;

/// How long a module may take to be started, caged and attached, on a loaded machine.
const ATTACH: Duration = Duration::from_secs(30);
/// How long the supervisor may take to end it.
const STOP: Duration = Duration::from_secs(30);
/// How long after its connection a process may take to be gone.
const LAST_WORD: Duration = Duration::from_secs(2);
/// So many ends within [`WINDOW`] are no accident any more.
const ENDS: usize = 3;
/// See [`ENDS`].
const WINDOW: Duration = Duration::from_secs(600);

/// What a life is made of.
pub(super) struct Life {
    pub(super) id: &'static str,
    /// What it has to be as the operator has read it; where it comes with the node, whatever it says.
    pub(super) installed: Option<Arc<Manifest>>,
    /// Whether another life of it was ended here: that process must be gone first. One that outlived a `noded` is taken over.
    pub(super) anew: bool,
    pub(super) context: Context,
    pub(super) terms: Terms,
    pub(super) slot: Arc<Slot>,
    pub(super) meter: Arc<Meter>,
    pub(super) door: Arc<Door>,
    pub(super) supervisor: Arc<Supervisor>,
    pub(super) troubles: Arc<Troubles>,
    pub(super) methods: Option<Arc<ModuleMethods>>,
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
struct Trouble {
    detail: String,
    /// The supervisor does not start it before the operator says so.
    quarantined: bool,
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

/// Why a module is not called any more.
enum Last {
    /// Nobody needed it.
    Idle,
    Fault(Fault),
    /// It does not take its settings.
    Refused(String),
}

/// How a module came to its end.
enum End {
    /// Nobody needed it.
    Idle,
    Trouble(Trouble),
}

impl Life {
    /// Lives until the node ends. `first` is told how the first attempt went, whichever way.
    pub(super) async fn run(self, first: oneshot::Sender<()>) {
        let id = self.id;
        let mut told = self.supervisor.hear(id);
        if self.anew {
            // The generation before it may still be on its way out.
            self.stop(&mut told).await;
        }
        let (mut ends, mut backoff, mut first) = (Ends::default(), Backoff::default(), Some(first));
        let mut said = |()| {
            if let Some(first) = first.take() {
                // Whoever waits for it may have stopped.
                let _ = first.send(());
            }
        };
        if self.terms.is_lazy {
            self.slot.asleep();
            said(());
            self.slot.wanted().await;
        }
        loop {
            self.slot.starting();
            let begun = Instant::now();
            let trouble = match self.live(&mut told, &mut said).await {
                End::Idle => {
                    tracing::debug!(module = id, "nobody needs it");
                    self.slot.wanted().await;
                    continue;
                }
                End::Trouble(trouble) => trouble,
            };
            self.slot.away();
            said(());
            let Trouble { detail, quarantined } = trouble;
            if quarantined || ends.add(Instant::now()) {
                let more = format!("{detail}; it ended {ENDS} times in ten minutes and is not started again");
                self.quarantine(if quarantined { detail } else { more }, &mut told).await;
                (ends, backoff) = (Ends::default(), Backoff::default());
                continue;
            }
            let pause = backoff.after(begun.elapsed());
            tracing::warn!(module = id, "{detail}; it is started again in {} ms", pause.as_millis());
            self.troubles.raise(id, detail);
            tokio::time::sleep(pause).await;
        }
    }

    /// From its start to its end; its process is gone with that.
    async fn live(&self, told: &mut mpsc::Receiver<Told>, said: &mut (impl FnMut(()) + Send)) -> End {
        let mut trouble = match self.begin(told).await {
            Ok((attached, settled)) => {
                said(());
                let attached = Arc::new(attached);
                match self.serve(&attached, settled).await {
                    Last::Idle => {
                        // Still attached: a process that sees its connection end might end by itself before.
                        self.stop(told).await;
                        return End::Idle;
                    }
                    Last::Fault(fault) => match self.own_end(fault, told).await {
                        Some(how) => format!("{fault} ({how})").into(),
                        None => Trouble::from(fault.to_string()),
                    },
                    Last::Refused(why) => why.into(),
                }
            }
            Err(trouble) => trouble,
        };
        if let Some(how) = self.stop(told).await {
            trouble.detail = format!("{} ({how})", trouble.detail);
        }
        End::Trouble(trouble)
    }

    /// Stays down until the operator has released it.
    async fn quarantine(&self, detail: String, told: &mut mpsc::Receiver<Told>) {
        let id = self.id;
        tracing::error!(module = id, "{detail}");
        self.slot.quarantined();
        self.supervisor.ask(Ask::Quarantine { module: id.to_owned(), why: reason(&detail) }).await;
        self.troubles.quarantine(id, detail);
        loop {
            match told.recv().await {
                Some(Told::Released { .. }) => break,
                Some(_) => {}
                // The supervisor has gone, and this process goes with it.
                None => std::future::pending().await,
            }
        }
        tracing::info!(module = id, "released by the operator");
        self.troubles.clear(id);
    }

    /// Has it started and waits until it serves.
    async fn begin(&self, told: &mut mpsc::Receiver<Told>) -> Result<(Attached, Settled), Trouble> {
        let mut value = [0; PROOF_BYTES];
        getrandom::fill(&mut value).map_err(|_| "the kernel's random generator does not answer")?;
        let expected = self.door.expect(self.id, Secret::new(value), self.context.clone());
        let module = self.id.to_owned();
        self.supervisor.ask(Ask::Start { module: module.clone(), value: Secret::new(value) }).await;
        let attached = tokio::select! {
            attached = timeout(ATTACH, expected.attached()) => match attached {
                Ok(attached) => attached.map_err(|fault| fault.to_string())?,
                Err(_) => return Err("it did not attach in time".into()),
            },
            said = not_stopped(told) => return Err(match said {
                Some(Told::Refused { reason, .. }) => reason.into(),
                Some(Told::Quarantined { why, .. }) => Trouble { detail: why, quarantined: true },
                Some(Told::Ended { how, .. }) => format!("it ended before it had attached: {how}").into(),
                Some(Told::Stopped { .. } | Told::Released { .. }) => "it was ended".into(),
                // Words about no module do not come here.
                _ => "the supervisor has gone".into(),
            }),
        };
        if let Some(manifest) = &self.installed {
            as_read(manifest, &attached)?;
        }
        // Before it serves: what it describes is known when it is first called.
        if let Some(methods) = &self.methods {
            methods.declared(self.id, attached.methods()).await;
        }
        let settled = self.terms.settle(&attached).await?;
        match timeout(self.terms.start, attached.start()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(format!("it did not start: {}", error.detail).into()),
            Err(_) => return Err("it did not start in time".into()),
        }
        self.supervisor.ask(Ask::Ready { module }).await;
        Ok((attached, settled))
    }

    /// Lets calls in until it ends.
    async fn serve(&self, attached: &Arc<Attached>, settled: Settled) -> Last {
        tracing::info!(module = self.id, version = attached.version(), "attached");
        self.meter.started();
        self.slot.serving(Arc::clone(attached));
        self.troubles.clear(self.id);
        tokio::select! {
            fault = attached.ended() => {
                self.slot.away();
                Last::Fault(fault)
            }
            why = settled.follow(attached) => {
                self.slot.away();
                Last::Refused(why)
            }
            retired = self.retired() => {
                // Nobody calls it any more, and whoever does waits for the next one.
                retired.drain(self.terms.stop).await;
                Last::Idle
            }
        }
    }

    /// Waits until nobody has needed it for as long as was said.
    async fn retired(&self) -> Arc<Attached> {
        let Some(idle) = self.terms.idle else { return std::future::pending().await };
        loop {
            tokio::time::sleep(idle / LOOKS).await;
            if let Some(retired) = self.slot.retire(idle) {
                return retired;
            }
        }
    }

    /// How a process ended whose connection broke: that is seen a moment earlier than its end. Asked at once to end it, the supervisor
    /// could not tell the two apart.
    async fn own_end(&self, fault: Fault, told: &mut mpsc::Receiver<Told>) -> Option<String> {
        if fault != Fault::Gone {
            return None;
        }
        match timeout(LAST_WORD, told.recv()).await {
            Ok(Some(Told::Ended { how, .. })) => Some(how),
            _ => None,
        }
    }

    /// Has its process ended, if it is still there; how it ended, if by itself.
    async fn stop(&self, told: &mut mpsc::Receiver<Told>) -> Option<String> {
        self.supervisor.ask(Ask::Stop { module: self.id.to_owned() }).await;
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
    let (says, version) = (attached.version(), manifest.version.as_str());
    if says != version {
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
