//! The life of one module that is a process: asked for, awaited, started, called, mourned, and asked for again.
//!
//! The supervisor starts and ends processes; whether there shall be one is decided here. A module that ends comes back after a pause that
//! grows; one that ends again and again is put under quarantine and named, and the rest of the node goes on.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use openred_module::Context;
use openred_module::remote::{Attached, Door, Fault, PROOF_BYTES};
use openred_proto::modules::{Ask, Told};
use openred_proto::secret::Secret;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::built_in::BuiltIn;
use super::callee::Slot;
use super::methods::ModuleMethods;
use super::supervisor::Supervisor;
use crate::clock;
use crate::health::{Condition, Health};
use crate::supervisor::Backoff;

/// How long a module may take to be started, caged and attached, on a loaded machine.
const ATTACH: Duration = Duration::from_secs(30);
/// How long its own start may take.
const START: Duration = Duration::from_secs(30);
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
    pub(super) module: &'static BuiltIn,
    pub(super) context: Context,
    pub(super) slot: Arc<Slot>,
    pub(super) door: Arc<Door>,
    pub(super) supervisor: Arc<Supervisor>,
    pub(super) troubles: Arc<Troubles>,
    pub(super) methods: Option<Arc<ModuleMethods>>,
}

/// Which modules are away and why: one condition of the node.
pub(super) struct Troubles {
    health: Arc<Health>,
    away: Mutex<BTreeMap<&'static str, String>>,
}

impl Troubles {
    pub(super) fn new(health: Arc<Health>) -> Arc<Self> {
        Arc::new(Self { health, away: Mutex::default() })
    }

    pub(super) fn raise(&self, module: &'static str, detail: String) {
        self.change(|away| drop(away.insert(module, detail)));
    }

    fn clear(&self, module: &'static str) {
        self.change(|away| drop(away.remove(module)));
    }

    fn change(&self, change: impl FnOnce(&mut BTreeMap<&'static str, String>)) {
        let mut away = self.away.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut away);
        let details: Vec<String> = away.iter().map(|(module, detail)| format!("{module}: {detail}")).collect();
        if details.is_empty() {
            self.health.clear(Condition::ModuleDown);
        } else {
            self.health.raise(Condition::ModuleDown, clock::now(), details.join("; "));
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
type Trouble = String;

impl Life {
    /// Lives until the node ends. `first` is told how the first attempt went, whichever way.
    pub(super) async fn run(self, first: oneshot::Sender<()>) {
        let id = self.module.id;
        let mut told = self.supervisor.hear(id);
        let (mut ends, mut backoff, mut first) = (Ends::default(), Backoff::default(), Some(first));
        loop {
            let begun = Instant::now();
            let trouble = match self.begin(&mut told).await {
                Ok(attached) => {
                    if let Some(first) = first.take() {
                        let _ = first.send(());
                    }
                    let fault = self.serve(attached).await;
                    match self.own_end(fault, &mut told).await {
                        Some(how) => format!("{fault} ({how})"),
                        None => fault.to_string(),
                    }
                }
                Err(trouble) => trouble,
            };
            let trouble = match self.stop(&mut told).await {
                Some(how) => format!("{trouble} ({how})"),
                None => trouble,
            };
            if ends.add(Instant::now()) {
                let detail = format!("{trouble}; it ended {ENDS} times in ten minutes and is not started again");
                tracing::error!(module = id, "{detail}");
                self.troubles.raise(id, detail);
                return;
            }
            let pause = backoff.after(begun.elapsed());
            tracing::warn!(module = id, "{trouble}; it is started again in {} ms", pause.as_millis());
            self.troubles.raise(id, trouble);
            if let Some(first) = first.take() {
                let _ = first.send(());
            }
            tokio::time::sleep(pause).await;
        }
    }

    /// Has it started and waits until it serves.
    async fn begin(&self, told: &mut mpsc::Receiver<Told>) -> Result<Attached, Trouble> {
        let mut value = [0; PROOF_BYTES];
        getrandom::fill(&mut value).map_err(|_| "the kernel's random generator does not answer".to_owned())?;
        let expected = self.door.expect(self.module.id, Secret::new(value), self.context.clone());
        let module = self.module.id.to_owned();
        self.supervisor.ask(Ask::Start { module: module.clone(), value: Secret::new(value) }).await;
        let attached = tokio::select! {
            attached = timeout(ATTACH, expected.attached()) => match attached {
                Ok(attached) => attached.map_err(|fault| fault.to_string())?,
                Err(_) => return Err("it did not attach in time".to_owned()),
            },
            said = told.recv() => return Err(match said {
                Some(Told::Refused { reason, .. }) => reason,
                Some(Told::Ended { how, .. }) => format!("it ended before it had attached: {how}"),
                Some(Told::Stopped { .. }) => "it was ended".to_owned(),
                None => "the supervisor has gone".to_owned(),
            }),
        };
        // Before it serves: what it describes is known when it is first called.
        if let Some(methods) = &self.methods {
            methods.declared(self.module.id, attached.methods()).await;
        }
        match timeout(START, attached.start()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(format!("it did not start: {}", error.detail)),
            Err(_) => return Err("it did not start in time".to_owned()),
        }
        self.supervisor.ask(Ask::Ready { module }).await;
        Ok(attached)
    }

    /// Lets calls in until it ends.
    async fn serve(&self, attached: Attached) -> Fault {
        let attached = Arc::new(attached);
        tracing::info!(module = self.module.id, version = attached.version(), "attached");
        self.slot.set(Some(Arc::clone(&attached)));
        self.troubles.clear(self.module.id);
        let fault = attached.ended().await;
        self.slot.set(None);
        fault
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
        self.supervisor.ask(Ask::Stop { module: self.module.id.to_owned() }).await;
        let mut how = None;
        let stopped = async {
            while let Some(said) = told.recv().await {
                match said {
                    Told::Ended { how: by_itself, .. } => how = Some(by_itself),
                    Told::Stopped { .. } => return,
                    Told::Refused { .. } => {}
                }
            }
        };
        if timeout(STOP, stopped).await.is_err() {
            tracing::error!(module = self.module.id, "the supervisor does not say that it has ended");
        }
        how
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
        troubles.clear("messaging");
        assert!(health.report().is_empty());
    }
}
