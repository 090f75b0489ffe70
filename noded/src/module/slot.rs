//! Where one module's calls go: to where it is attached, or, while it sleeps, to whoever starts it; a caller waits for that, not for ever. While
//! it is swapped, callers are held for a moment: they wait for what takes its place.
//!
//! Falling asleep and taking a place exclude each other: a call either finds the module awake and keeps it so until its answer has
//! begun (how long the rest takes, the attachment knows), or finds it asleep and has it started. None falls between. So do being held and
//! taking a place: whoever waits until it is quiet misses no call.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use openred_module::remote::Attached;
use openred_module::{ModuleError, Status};
use tokio::sync::{Notify, watch};
use tokio::time::timeout;

/// How long a call waits for its module to be started; the same machine, perhaps a loaded one.
const WAKE: Duration = Duration::from_secs(30);

/// How a module is.
enum Phase {
    /// It does not run, and its life waits before it tries again.
    Away,
    /// It does not run because nobody needs it: a call has it started.
    Asleep,
    /// On its way.
    Starting,
    /// It ended again and again: the operator has the next word.
    Quarantined,
    Serving(Arc<Attached>),
    /// Its callers wait; the version that they have called.
    Held(String),
}

/// See the file's head.
pub(super) struct Slot {
    phase: watch::Sender<Phase>,
    wanted: Notify,
    /// Whoever keeps it awake.
    uses: AtomicUsize,
    /// Of those, calls whose answers have not begun.
    calls: AtomicUsize,
    answered: Notify,
    used: Mutex<Instant>,
}

impl Default for Slot {
    fn default() -> Self {
        let phase = watch::Sender::new(Phase::Away);
        let (uses, calls) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let (wanted, answered) = (Notify::new(), Notify::new());
        Self { phase, wanted, uses, calls, answered, used: Mutex::new(Instant::now()) }
    }
}

/// A module that stays awake while this is held.
pub(super) struct Use {
    slot: Arc<Slot>,
    pub(super) attached: Arc<Attached>,
    is_call: bool,
}

impl Use {
    /// No swap waits for it: it may take long, and whoever comes next looks itself at what there is.
    pub(super) fn wait_not(mut self) -> Self {
        self.end_call();
        self
    }

    /// Waits until calls do not go to this attachment any more.
    pub(super) async fn replaced(&self) {
        let mut phases = self.slot.phase.subscribe();
        let is_other = |phase: &Phase| !matches!(phase, Phase::Serving(now) if Arc::ptr_eq(now, &self.attached));
        // The sender is in the slot, so it is not gone.
        let _ = phases.wait_for(is_other).await;
    }

    fn end_call(&mut self) {
        if std::mem::take(&mut self.is_call) && self.slot.calls.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.slot.answered.notify_waiters();
        }
    }
}

impl Drop for Use {
    fn drop(&mut self) {
        self.slot.touch();
        self.end_call();
        self.slot.uses.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Slot {
    fn set(&self, phase: Phase) {
        // The last one to let go of an attachment ends it: outside the channel's lock.
        drop(self.phase.send_replace(phase));
    }

    pub(super) fn away(&self) {
        self.set(Phase::Away);
    }

    /// The same; its attachment, if it had one.
    pub(super) fn leave(&self) -> Option<Arc<Attached>> {
        match self.phase.send_replace(Phase::Away) {
            Phase::Serving(attached) => Some(attached),
            _ => None,
        }
    }

    pub(super) fn starting(&self) {
        self.set(Phase::Starting);
    }

    pub(super) fn quarantined(&self) {
        self.set(Phase::Quarantined);
    }

    pub(super) fn asleep(&self) {
        self.set(Phase::Asleep);
    }

    /// Forgets who wanted it before it fell asleep. To be called while the phase is held.
    fn unwanted(&self) {
        let _heard = self.wanted.notified().now_or_never();
    }

    pub(super) fn serving(&self, attached: Arc<Attached>) {
        self.touch();
        self.set(Phase::Serving(attached));
    }

    /// No call begins from now on; whoever comes waits.
    pub(super) fn hold(&self) {
        let mut before = None;
        self.phase.send_if_modified(|phase| {
            let version = match phase {
                Phase::Serving(attached) => attached.version().to_owned(),
                _ => String::new(),
            };
            before = Some(std::mem::replace(phase, Phase::Held(version)));
            true
        });
        drop(before);
    }

    pub(super) fn is_held(&self) -> bool {
        matches!(*self.phase.borrow(), Phase::Held(_))
    }

    /// Waits until callers are not held any more, as long as a caller does.
    pub(super) async fn let_in(&self) {
        let mut phases = self.phase.subscribe();
        // The sender is in here, so it is not gone.
        let _ = timeout(WAKE, phases.wait_for(|phase| !matches!(phase, Phase::Held(_)))).await;
    }

    /// Waits until no call is in flight whose answer has not begun. To be called while callers are held.
    pub(super) async fn quiet(&self) {
        loop {
            let answered = self.answered.notified();
            tokio::pin!(answered);
            // Before the look, so that none is missed in between.
            answered.as_mut().enable();
            if self.calls.load(Ordering::Acquire) == 0 {
                return;
            }
            answered.await;
        }
    }

    fn touch(&self) {
        *self.used.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// Puts it to sleep if nobody has needed it for `idle`; its attachment then, which nobody else has.
    pub(super) fn retire(&self, idle: Duration) -> Option<Arc<Attached>> {
        let mut retired = None;
        self.phase.send_if_modified(|phase| {
            let Phase::Serving(attached) = &*phase else { return false };
            if self.uses.load(Ordering::Acquire) > 0 || attached.running() > 0 {
                self.touch();
                return false;
            }
            let used = *self.used.lock().unwrap_or_else(PoisonError::into_inner);
            if used.elapsed() < idle {
                return false;
            }
            self.unwanted();
            if let Phase::Serving(attached) = std::mem::replace(phase, Phase::Asleep) {
                retired = Some(attached);
            }
            true
        });
        retired
    }

    /// Waits until somebody needs it.
    pub(super) async fn wanted(&self) {
        self.wanted.notified().await;
    }

    /// Where to call it; one that sleeps is started for it.
    pub(super) async fn awake(self: &Arc<Self>) -> Result<Use, ModuleError> {
        let waited = timeout(WAKE, async {
            let mut phases = self.phase.subscribe();
            loop {
                let found = self.look(&phases.borrow_and_update());
                if let Some(outcome) = found {
                    return outcome;
                }
                // The sender is in here, so it is not gone.
                let _ = phases.changed().await;
            }
        });
        waited.await.unwrap_or_else(|_| Err(down("the module was not started in time")))
    }

    /// Where to tell it of something, if it is awake, or soon will be, because its callers are held.
    pub(super) async fn now(self: &Arc<Self>) -> Option<Use> {
        let mut phases = self.phase.subscribe();
        let waited = timeout(WAKE, async {
            loop {
                match &*phases.borrow_and_update() {
                    Phase::Serving(attached) => return Some(self.using(attached)),
                    Phase::Held(_) => {}
                    _ => return None,
                }
                let _ = phases.changed().await;
            }
        });
        waited.await.ok().flatten()
    }

    /// To be called while the phase is held.
    fn look(self: &Arc<Self>, phase: &Phase) -> Option<Result<Use, ModuleError>> {
        match phase {
            Phase::Serving(attached) => Some(Ok(self.using(attached))),
            Phase::Away => Some(Err(down("the module does not run now"))),
            Phase::Quarantined => {
                let detail = "the module ended again and again; its operator has to release it";
                Some(Err(ModuleError::new(Status::Unavailable, "module-quarantined", detail)))
            }
            Phase::Asleep => {
                self.wanted.notify_one();
                None
            }
            Phase::Starting | Phase::Held(_) => None,
        }
    }

    fn using(self: &Arc<Self>, attached: &Arc<Attached>) -> Use {
        self.uses.fetch_add(1, Ordering::AcqRel);
        self.calls.fetch_add(1, Ordering::AcqRel);
        Use { slot: Arc::clone(self), attached: Arc::clone(attached), is_call: true }
    }

    /// Its state in a word, and its version while it runs.
    pub(super) fn state(&self) -> (&'static str, Option<String>) {
        match &*self.phase.borrow() {
            Phase::Away => ("away", None),
            Phase::Asleep => ("asleep", None),
            Phase::Starting => ("starting", None),
            Phase::Quarantined => ("quarantined", None),
            Phase::Serving(attached) => ("serving", Some(attached.version().to_owned())),
            Phase::Held(version) if version.is_empty() => ("starting", None),
            Phase::Held(version) => ("serving", Some(version.clone())),
        }
    }
}

/// The module does not run now.
fn down(detail: &str) -> ModuleError {
    ModuleError::new(Status::Unavailable, "module-down", detail)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn code(outcome: Result<Use, ModuleError>) -> String {
        outcome.err().unwrap().code.to_string()
    }

    #[tokio::test]
    async fn a_call_has_a_module_started_that_sleeps_and_waits_for_it() {
        let slot = Arc::new(Slot::default());
        assert_eq!(code(slot.awake().await), "module-down", "one that is away is not waited for");
        slot.asleep();
        let call = tokio::spawn({
            let slot = Arc::clone(&slot);
            async move { slot.awake().await }
        });
        slot.wanted().await;
        slot.starting();
        tokio::task::yield_now().await;
        assert!(!call.is_finished());
        slot.quarantined();
        assert_eq!(code(call.await.unwrap()), "module-quarantined");
        assert_eq!(slot.state(), ("quarantined", None));
    }

    #[tokio::test]
    async fn callers_that_are_held_wait_for_what_comes() {
        let slot = Arc::new(Slot::default());
        slot.hold();
        slot.quiet().await;
        let call = tokio::spawn({
            let slot = Arc::clone(&slot);
            async move { slot.awake().await }
        });
        let event = tokio::spawn({
            let slot = Arc::clone(&slot);
            async move { slot.now().await.is_some() }
        });
        tokio::task::yield_now().await;
        assert!(!call.is_finished() && !event.is_finished());
        slot.away();
        assert_eq!(code(call.await.unwrap()), "module-down");
        assert!(!event.await.unwrap());
    }

    #[tokio::test]
    async fn a_wish_that_came_before_anybody_listened_is_heard() {
        let slot = Arc::new(Slot::default());
        slot.asleep();
        let call = tokio::spawn({
            let slot = Arc::clone(&slot);
            async move { slot.awake().await }
        });
        tokio::task::yield_now().await;
        slot.wanted().await;
        slot.away();
        assert_eq!(code(call.await.unwrap()), "module-down");
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_ever() {
        let slot = Arc::new(Slot::default());
        slot.starting();
        assert_eq!(code(slot.awake().await), "module-down");
    }
}
