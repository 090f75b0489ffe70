//! What a module tells its node without waiting: timers, that it has no room, audit events. Kept in order of importance: of each
//! timer the last word counts, and of audit events so many wait.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use openred_proto::module::host_client::HostClient;
use openred_proto::module::{AuditRequest, FullRequest, TimerRequest};
use tokio::sync::Notify;
use tonic::transport::Channel;

use crate::host::UnixMillis;
use crate::module::TimerId;

/// Timers of a module that wait to be told: it has a handful.
const TIMERS: usize = 1024;
/// Audit events that wait while the node is busy; more are dropped and counted in the log.
const AUDITS: usize = 256;

#[derive(Default)]
struct Waiting {
    timers: BTreeMap<TimerId, UnixMillis>,
    full: Option<FullRequest>,
    audits: VecDeque<AuditRequest>,
    dropped: u64,
}

/// See the file's head.
#[derive(Default)]
pub(super) struct Notes {
    waiting: Mutex<Waiting>,
    some: Notify,
}

impl Notes {
    pub(super) fn new() -> Arc<Self> {
        Arc::default()
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn timer(&self, timer: TimerId, at: UnixMillis) {
        {
            let mut waiting = self.waiting();
            if waiting.timers.len() >= TIMERS && !waiting.timers.contains_key(&timer) {
                return tracing::warn!(timer, "too many timers wait; this one is dropped");
            }
            waiting.timers.insert(timer, at);
        }
        self.some.notify_one();
    }

    pub(super) fn full(&self, detail: Option<String>) {
        self.waiting().full = Some(FullRequest { detail });
        self.some.notify_one();
    }

    pub(super) fn audit(&self, event: AuditRequest) {
        {
            let mut waiting = self.waiting();
            if waiting.audits.len() >= AUDITS {
                waiting.dropped += 1;
                return;
            }
            waiting.audits.push_back(event);
        }
        self.some.notify_one();
    }

    /// Sends what comes until the connection ends.
    pub(super) async fn send(self: Arc<Self>, mut client: HostClient<Channel>) {
        loop {
            let now = std::mem::take(&mut *self.waiting());
            if now.dropped > 0 {
                tracing::warn!(dropped = now.dropped, "audit events were dropped: the node takes them too slowly");
            }
            if tell(&mut client, now).await.is_err() {
                return;
            }
            self.some.notified().await;
        }
    }
}

/// A refusal of one is logged; only a connection that is gone ends the work.
async fn tell(client: &mut HostClient<Channel>, now: Waiting) -> Result<(), ()> {
    for (timer, at) in now.timers {
        taken(client.timer(TimerRequest { timer, at }).await)?;
    }
    if let Some(full) = now.full {
        taken(client.full(full).await)?;
    }
    for event in now.audits {
        taken(client.audit(event).await)?;
    }
    Ok(())
}

fn taken<T>(outcome: Result<T, tonic::Status>) -> Result<(), ()> {
    match outcome {
        Ok(_) => Ok(()),
        Err(status) if matches!(status.code(), tonic::Code::Unavailable | tonic::Code::Unknown) => Err(()),
        Err(status) => {
            tracing::warn!(reason = status.message(), "the node did not take a note");
            Ok(())
        }
    }
}
