//! Hooks of an attached module, as its host asks them.

use openred_proto::module::host_frame::Kind as FromHost;

use super::attached::{Attached, Waiting};
use crate::hook::{Class, Fields, HookRequest, Verdict};
use crate::wire::convert::host_frame;
use crate::wire::hooks::{May, of_hook};

/// A question to a hook.
#[derive(Debug, Clone)]
pub struct HookAsk {
    /// Its id in the manifest.
    pub hook: String,
    /// Its class: an observer may only say Continue, and only a transform may change something.
    pub class: Class,
    /// Fields that it declares to change.
    pub changes: Fields,
    /// How long its host waits, for the module to know.
    pub millis: u32,
    /// What it is shown: its declared fields.
    pub request: HookRequest,
}

impl HookAsk {
    fn may(&self) -> May {
        let change = match self.class {
            // A body of which only the beginning was shown cannot be put in the whole one's place.
            Class::Transform if self.request.truncated => self.changes.without(crate::hook::Field::Body),
            Class::Transform => self.changes,
            Class::Authn | Class::Authz | Class::Observe => Fields::default(),
        };
        May { change: change.and(self.request.point.changes()), end: self.class != Class::Observe }
    }
}

/// Why a hook has not decided.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Undecided {
    /// The module ended or was ended, by what it answered perhaps.
    #[error("the module ended before it had answered")]
    Gone,
    /// As many calls as the contract allows are in flight.
    #[error("the module has too many calls in flight")]
    Busy,
    /// It says so itself, with a code.
    #[error("the module could not decide ({0})")]
    Failed(String),
    /// It speaks no hooks.
    #[error("the module's program serves no hooks")]
    Unserved,
}

impl Attached {
    /// Asks a hook. Dropped, the question is cancelled in the module.
    ///
    /// # Errors
    /// [`Undecided`]. An answer that the hook may not give ends the attachment.
    pub async fn hook(&self, ask: HookAsk) -> Result<Verdict, Undecided> {
        if !self.0.hooks {
            return Err(Undecided::Unserved);
        }
        let may = ask.may();
        let room = self.0.lane.room().await.map_err(|_| Undecided::Gone)?;
        let (call, decided) = {
            let mut calls = self.0.calls();
            let (call, decided) = calls.begin_hook(may).ok_or(Undecided::Busy)?;
            // With the table still held, so that calls leave in the order of their ids.
            room.put(host_frame(FromHost::HookCall(of_hook(call, ask.hook, ask.millis, ask.request))));
            (call, decided)
        };
        let mut waiting = Waiting { inner: &self.0, call: Some(call) };
        let decided = decided.await;
        waiting.call = None;
        decided.map_err(|_| Undecided::Gone)?.map_err(Undecided::Failed)
    }
}
