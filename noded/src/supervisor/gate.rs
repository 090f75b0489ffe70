//! What the operator asks of the keys: lock, unlock, rotate, a peer's name in the audit trail. Asked on the control socket, answered by the row that holds the
//! key process, which alone knows what of it makes sense just now.

use openred_proto::id::NodeId;
use openred_proto::vault::ShortKey;
use tokio::sync::{mpsc, oneshot};
use zeroize::Zeroizing;

use crate::cli::{Exit, Failure};

/// Asks that wait; as many as the control socket lets one connection have at a time.
const WAITING: usize = 8;

/// Where the outcome of one ask goes.
pub(crate) type Answer = oneshot::Sender<Result<(), Failure>>;

/// Where a peer's name in the audit trail goes.
pub(crate) type Named = oneshot::Sender<Result<[u8; 32], Failure>>;

/// One wish of the operator.
pub(crate) enum Ask {
    /// Wipe the keys and end the vault until it is unlocked.
    Lock(Answer),
    /// Open the keystore with this passphrase or identity, and start a new vault.
    Unlock(Zeroizing<Vec<u8>>, Answer),
    /// Draw a short-term key anew.
    Rotate(ShortKey, Answer),
    /// Say how the audit trail names this peer.
    Name(NodeId, Named),
}

/// The asking side.
#[derive(Clone)]
pub(crate) struct Asker(mpsc::Sender<Ask>);

/// The answering side.
pub(crate) struct Gate {
    asks: mpsc::Receiver<Ask>,
    /// Held so that a gate without askers waits for ever instead of hearing that all are gone.
    _own: mpsc::Sender<Ask>,
}

pub(crate) fn gate() -> (Asker, Gate) {
    let (asker, asks) = mpsc::channel(WAITING);
    (Asker(asker.clone()), Gate { asks, _own: asker })
}

pub(crate) fn not_locked() -> Failure {
    Failure::new(Exit::Conflict, "keys.open", "the keys are not locked", "`openred key lock` locks them")
}

fn locked() -> Failure {
    Failure::new(Exit::Locked, "keys.locked", "the keys are locked", "`openred key unlock`")
}

fn away() -> Failure {
    let what = "the key process is not in service just now";
    Failure::new(Exit::Locked, "cryptod.away", what, "`openred status` says why; try again")
}

impl Asker {
    /// Asks, and waits for the outcome.
    pub(crate) async fn ask<T>(
        &self,
        ask: impl FnOnce(oneshot::Sender<Result<T, Failure>>) -> Ask,
    ) -> Result<T, Failure> {
        let (answer, outcome) = oneshot::channel();
        let stopping = || Failure::new(Exit::Failed, "node.down", "the node is stopping", "start it with `openred up`");
        self.0.send(ask(answer)).await.map_err(|_| stopping())?;
        outcome.await.unwrap_or_else(|_| Err(stopping()))
    }
}

impl Gate {
    /// The next ask.
    pub(crate) async fn next(&mut self) -> Ask {
        match self.asks.recv().await {
            Some(ask) => ask,
            // Its own sender keeps the channel open.
            None => std::future::pending().await,
        }
    }

    /// The next wish to lock; others are answered that there are no keys to do it with.
    pub(crate) async fn lock(&mut self) -> Answer {
        loop {
            match self.next().await {
                Ask::Lock(answer) => return answer,
                Ask::Unlock(_, answer) => drop(answer.send(Err(not_locked()))),
                Ask::Rotate(_, answer) => drop(answer.send(Err(away()))),
                Ask::Name(_, answer) => drop(answer.send(Err(away()))),
            }
        }
    }

    /// The next secret to unlock with; others are answered that it is locked.
    pub(crate) async fn unlock(&mut self) -> (Zeroizing<Vec<u8>>, Answer) {
        loop {
            match self.next().await {
                Ask::Unlock(secret, answer) => return (secret, answer),
                Ask::Lock(answer) => drop(answer.send(Ok(()))),
                Ask::Rotate(_, answer) => drop(answer.send(Err(locked()))),
                Ask::Name(_, answer) => drop(answer.send(Err(locked()))),
            }
        }
    }

    /// Answers everybody that there is no key process any more; never returns.
    pub(crate) async fn refuse_all(&mut self) {
        loop {
            match self.next().await {
                Ask::Lock(answer) | Ask::Unlock(_, answer) | Ask::Rotate(_, answer) => drop(answer.send(Err(away()))),
                Ask::Name(_, answer) => drop(answer.send(Err(away()))),
            }
        }
    }
}
