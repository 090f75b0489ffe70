//! What the host's table has to do with swaps: the operator's wishes on their way to a module's life, and a module's routes and hooks changed with
//! the generation that is called.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};

use openred_module::Context;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::AbortHandle;

use super::granted::Granted;
use super::swap::{Board, Done, Wish};
use super::{BUILT_IN, Loaded, Modules, Shown, Want, Wanted};
use crate::store::{Pen, RowSeal};

/// Wishes that wait for one module.
pub(super) const WISHES: usize = 8;

/// What the hosts of a module's generations are made of.
#[derive(Clone)]
pub(super) struct Hosts {
    pub(super) seal: Arc<RowSeal>,
    pub(super) make: Arc<dyn Fn(Arc<Pen>, Arc<Granted>) -> Context + Send + Sync>,
    /// The operator has had it taken out: none of them reads its blobs any more.
    pub(super) taken_out: Arc<AtomicBool>,
}

/// The way to a module's life.
#[derive(Default)]
pub(super) struct Reach {
    /// Ends it.
    pub(super) abort: Mutex<Option<AbortHandle>>,
    wishes: Mutex<Option<mpsc::Sender<Wish>>>,
    /// The version that it was last asked to run.
    asked: Mutex<Option<Wanted>>,
    pub(super) shown: Board,
}

impl Reach {
    /// From now on it hears wishes here.
    pub(super) fn open(&self) -> mpsc::Receiver<Wish> {
        let (wishes, wished) = mpsc::channel(WISHES);
        *self.wishes.lock().unwrap_or_else(PoisonError::into_inner) = Some(wishes);
        wished
    }

    /// Asks for a swap to what was installed, once. False if that has to be tried again.
    pub(super) fn ask(&self, wanted: &Wanted) -> bool {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        if asked.as_ref() == Some(wanted) {
            return true;
        }
        let sent = self.wish(Wish { want: Want::To(wanted.clone()), done: None }).is_ok();
        if sent {
            *asked = Some(wanted.clone());
        }
        sent
    }

    /// What was asked for is there, or was taken back.
    pub(super) fn asked_nothing(&self) {
        *self.asked.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn wish(&self, wish: Wish) -> Result<(), SwapError> {
        let wishes = self.wishes.lock().unwrap_or_else(PoisonError::into_inner);
        let wishes = wishes.as_ref().ok_or(SwapError::Stopping)?;
        wishes.try_send(wish).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => SwapError::Busy,
            mpsc::error::TrySendError::Closed(_) => SwapError::Stopping,
        })
    }
}

/// A wish on its way to the keeper, which first looks at what is installed.
pub(super) struct Nudge {
    pub(super) module: String,
    pub(super) want: Want,
    pub(super) done: oneshot::Sender<Result<(), SwapError>>,
}

/// Why a swap did not happen.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SwapError {
    #[error("this node has no such module")]
    Unknown,
    #[error("the node starts or stops")]
    Stopping,
    #[error("too many wishes wait for this module")]
    Busy,
    #[error("the module was ended meanwhile, because the operator changed it or the node stops; the swap was given up")]
    Ended,
    #[error("{0}")]
    NotDone(String),
}

impl Modules {
    /// Swaps a module, or takes a swap back; returns when that is over.
    ///
    /// # Errors
    /// Why it was not done; the version before it goes on then.
    pub(crate) async fn swap(&self, module: String, want: Want) -> Result<(), SwapError> {
        let nudges = self.nudges.get().ok_or(SwapError::Stopping)?;
        let (done, outcome) = oneshot::channel();
        nudges.send(Nudge { module, want, done }).await.map_err(|_| SwapError::Stopping)?;
        outcome.await.map_err(|_| SwapError::Stopping)?
    }

    /// Passes a wish on to the life of its module.
    pub(super) fn pass(&self, Nudge { module, want, done }: Nudge) {
        let Some(loaded) = self.get(&module) else { return drop(done.send(Err(SwapError::Unknown))) };
        let (over, outcome): (Done, _) = oneshot::channel();
        if let Err(error) = loaded.life.wish(Wish { want, done: Some(over) }) {
            return drop(done.send(Err(error)));
        }
        tokio::spawn(async move {
            let outcome = match outcome.await {
                Ok(outcome) => outcome.map_err(SwapError::NotDone),
                Err(_) => Err(SwapError::Ended),
            };
            // Whoever asked may have gone.
            let _ = done.send(outcome);
        });
    }

    /// Each module's generations.
    pub(crate) fn generations(&self) -> Vec<(&'static str, Shown)> {
        let shown = |loaded: &Arc<Loaded>| {
            let shown = loaded.life.shown.lock().unwrap_or_else(PoisonError::into_inner).clone();
            (loaded.id, shown)
        };
        self.all().iter().map(shown).collect()
    }

    /// An installed version that may be gone back to.
    pub(super) fn earlier(&self, id: &str, version: &str) -> Option<Wanted> {
        let earlier = self.earlier.read().unwrap_or_else(PoisonError::into_inner);
        earlier.iter().find(|wanted| wanted.id == id && wanted.manifest.version.as_str() == version).cloned()
    }

    /// The operator's settings for what is to run.
    pub(super) fn settings_of(&self, wanted: &Wanted) -> String {
        let comes_with_us = BUILT_IN.iter().any(|module| module.id == wanted.id);
        let version = if comes_with_us { String::new() } else { wanted.manifest.version.to_string() };
        let settings = self.settings.read().unwrap_or_else(PoisonError::into_inner);
        settings.get(&(wanted.id.to_owned(), version)).cloned().unwrap_or_default()
    }

    /// From now on the module's routes, hooks and settings are these. Its callers are held meanwhile.
    pub(super) fn serve(&self, id: &'static str, wanted: &Wanted, settings: &Arc<watch::Sender<String>>) {
        let Some(loaded) = self.get(id) else { return };
        loaded.life.asked_nothing();
        let is_same = loaded.wanted.as_ref() == Some(wanted);
        self.put(Loaded {
            id,
            callee: loaded.callee.clone(),
            hosts: loaded.hosts.clone(),
            places: Arc::clone(&loaded.places),
            meter: Arc::clone(&loaded.meter),
            wanted: Some(wanted.clone()),
            settings: Arc::clone(settings),
            gates: self.gates(wanted),
            life: Arc::clone(&loaded.life),
        });
        // They may have changed since it was handed them.
        let said = self.settings_of(wanted);
        settings.send_if_modified(|known| std::mem::replace(known, said.clone()) != said);
        if !is_same {
            self.set_granted_hooks();
        }
    }
}
