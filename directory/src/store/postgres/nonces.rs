//! The nonces that replicas share: a request that one of them took is refused by all. A thread of its own asks, with a connection of its
//! own; what waits together goes as one statement. What is written is a keyed hash, which says neither whose nonce it was nor which.
//!
//! The answer does not wait for the server's disk: what a crash of the database can lose of it is its last moments, in which a request would
//! also have to be sent again to another replica than the one that took it.

use std::collections::HashSet;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::Instant;

use tokio::sync::oneshot;

use super::link::Link;
use super::{Target, hash};
use crate::error::{Error, Result};
use crate::limits::{NONCE_BATCH, SHARED_NONCE_LIFE, STORE_QUEUE, SWEEP};

/// One nonce, and who waits for it.
struct Asked {
    tag: [u8; 32],
    tell: oneshot::Sender<Result<bool>>,
}

/// Asks the thread.
#[derive(Clone)]
pub struct SharedNonces {
    asked: SyncSender<Asked>,
}

impl std::fmt::Debug for SharedNonces {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SharedNonces")
    }
}

impl SharedNonces {
    /// Connects, and starts the thread. It ends with the last handle.
    ///
    /// # Errors
    /// As a store's; no thread could be started.
    pub fn start(target: &Target) -> Result<Self> {
        let mut link = Link::new(target)?.not_durable();
        link.connect()?;
        let (asked, waiting) = sync_channel(STORE_QUEUE);
        let thread = std::thread::Builder::new().name("nonces".into());
        thread.spawn(move || serve(&mut link, &waiting)).map_err(Error::LocalRuntime)?;
        Ok(Self { asked })
    }

    /// Takes a nonce; false when a replica has taken it before.
    ///
    /// # Errors
    /// The database's.
    pub async fn take(&self, tag: [u8; 32]) -> Result<bool> {
        let (tell, answer) = oneshot::channel();
        self.asked.try_send(Asked { tag, tell }).map_err(|error| match error {
            TrySendError::Full(_) => Error::LocalStoreBusy,
            TrySendError::Disconnected(_) => Error::LocalStoreStopped,
        })?;
        answer.await.map_err(|_| Error::LocalStoreStopped)?
    }
}

fn serve(link: &mut Link, waiting: &Receiver<Asked>) {
    let mut swept: Option<Instant> = None;
    while let Ok(first) = waiting.recv() {
        let batch: Vec<Asked> = std::iter::once(first).chain(waiting.try_iter().take(NONCE_BATCH - 1)).collect();
        let tags: Vec<Vec<u8>> = batch.iter().map(|asked| asked.tag.to_vec()).collect();
        match take(link, &tags) {
            Ok(mut new) => {
                for Asked { tag, tell, .. } in batch {
                    // A caller that went away needs no answer. Of two with one nonce the first has it.
                    let _ = tell.send(Ok(new.remove(&tag)));
                }
            }
            Err(error) => {
                tracing::warn!(%error, requests = batch.len(), "nonces could not be taken");
                for Asked { tell, .. } in batch {
                    let _ = tell.send(Err(away(&error)));
                }
            }
        }
        if swept.is_none_or(|at| at.elapsed() >= SWEEP) {
            swept = Some(Instant::now());
            // What is not dropped now is dropped the next time.
            let _ = sweep(link);
        }
    }
}

/// The database's clock: a replica whose own is minutes ahead drops nothing of the others' too early.
const NOW: &str = "(extract(epoch FROM clock_timestamp()) * 1000)::bigint";

/// Those that nobody had taken.
fn take(link: &mut Link, tags: &[Vec<u8>]) -> Result<HashSet<[u8; 32]>> {
    link.connect()?;
    let sql = format!(
        "INSERT INTO nonces (tag, at) SELECT DISTINCT tag, {NOW} FROM unnest($1::bytea[]) AS new (tag)
        ORDER BY tag ON CONFLICT DO NOTHING RETURNING tag"
    );
    link.rows(&sql, &[&tags])?.iter().map(|row| hash(row, 0)).collect()
}

fn sweep(link: &mut Link) -> Result<u64> {
    let life = i64::try_from(SHARED_NONCE_LIFE.as_millis()).unwrap_or(i64::MAX);
    link.execute(&format!("DELETE FROM nonces WHERE at < {NOW} - $1::bigint"), &[&life])
}

/// What everybody in the group is told: whether it holds is of no use to know, the request is signed again.
fn away(error: &Error) -> Error {
    match error {
        Error::LocalStoreFull => Error::LocalStoreFull,
        Error::LocalStoreBusy => Error::LocalStoreBusy,
        _ => Error::LocalStoreAway,
    }
}
