//! Places: how many calls may be before the vault, of each lane, in all and of one caller. Who finds none waits in turn, so that
//! nobody is refused for what somebody else asks; only dear calls beyond [`DEAR_WAITING`] of one caller are.
//!
//! Each caller has at most half of each lane's places, and dear calls never take a cheap one's: whoever asks for much that is
//! dear, or for much at all, leaves room for the rest.

use std::sync::Arc;

use openred_proto::vault::Lane;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Cheap requests that the vault may have before it: as many as it answers in one turn.
pub(super) const CHEAP: usize = 64;
/// Dear requests that the vault may have before it: these of the slowest (an offer, about a millisecond) stay far under the
/// deadline.
pub(super) const DEAR: usize = 32;
/// Dear calls of one caller that may be open: `noded` serves 512 connections of peers over two of its own.
pub(super) const DEAR_WAITING: usize = 256;
/// Calls of one connection that may be open. The dear ones leave 128, above what a client opens before it was told a number (100 by
/// custom): less, and those of a new connection's first burst would be sent back.
pub(super) const STREAMS: u32 = DEAR_WAITING as u32 + 128;

/// Places of both lanes.
pub(super) struct Places {
    cheap: Arc<Semaphore>,
    dear: Arc<Semaphore>,
}

impl std::fmt::Debug for Places {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Places({} cheap, {} dear free)", self.cheap.available_permits(), self.dear.available_permits())
    }
}

impl Places {
    /// Of the vault.
    pub(super) fn of_vault() -> Self {
        Self { cheap: Arc::new(Semaphore::new(CHEAP)), dear: Arc::new(Semaphore::new(DEAR)) }
    }

    /// Of one caller.
    pub(super) fn of_caller() -> Self {
        Self { cheap: Arc::new(Semaphore::new(CHEAP / 2)), dear: Arc::new(Semaphore::new(DEAR / 2)) }
    }

    fn of(&self, lane: Lane) -> &Arc<Semaphore> {
        match lane {
            Lane::Cheap => &self.cheap,
            Lane::Dear => &self.dear,
        }
    }

    /// Waits for a place, in turn; none once they were closed.
    pub(super) async fn take(&self, lane: Lane) -> Option<OwnedSemaphorePermit> {
        Arc::clone(self.of(lane)).acquire_owned().await.ok()
    }

    /// Nobody gets a place any more: the vault is gone.
    pub(super) fn close(&self) {
        self.cheap.close();
        self.dear.close();
    }
}
