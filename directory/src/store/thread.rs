//! The store's own thread. Requests are closures in a bounded queue; those that wait together share one transaction and
//! one fdatasync (group commit), and nobody is answered before it held. The thread exists because the filter lets no new
//! blocking thread be needed later, and because one slow disk must not stop the network side.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use tokio::sync::oneshot;

use super::CardStore;
use crate::error::{Error, Result};
use crate::limits::{STORE_BATCH, STORE_QUEUE};

/// Tells one waiting caller how the transaction ended.
type Answer = Box<dyn FnOnce(Result<()>) + Send>;
/// Works on the store; says whether the storage failed under it, so that the whole group is rolled back.
type Job = Box<dyn FnOnce(&mut dyn CardStore) -> (bool, Answer) + Send>;

/// Asks the store's thread.
#[derive(Clone)]
pub struct StoreHandle {
    queue: SyncSender<Job>,
}

impl std::fmt::Debug for StoreHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("StoreHandle")
    }
}

impl StoreHandle {
    /// Starts the thread; it ends when the last handle is dropped.
    ///
    /// # Errors
    /// No thread could be started.
    pub fn start(store: impl CardStore + Send + 'static) -> Result<Self> {
        let (queue, jobs) = sync_channel(STORE_QUEUE);
        let thread = std::thread::Builder::new().name("store".into());
        thread.spawn(move || serve(store, &jobs)).map_err(Error::LocalRuntime)?;
        Ok(Self { queue })
    }

    /// Runs `work` on the store and waits until it is durable.
    ///
    /// # Errors
    /// The storage's, [`Error::LocalStoreBusy`] when the queue is full, [`Error::LocalStoreStopped`] after the end.
    pub async fn call<T, W>(&self, work: W) -> Result<T>
    where
        T: Send + 'static,
        W: FnOnce(&mut dyn CardStore) -> Result<T> + Send + 'static,
    {
        let (tell, answer) = oneshot::channel();
        let job: Job = Box::new(move |store| {
            let result = work(store);
            let failed = result.is_err();
            let answer: Answer = Box::new(move |committed| {
                // A caller that went away needs no answer.
                let _ = tell.send(result.and_then(|value| committed.map(|()| value)));
            });
            (failed, answer)
        });
        self.queue.try_send(job).map_err(|error| match error {
            std::sync::mpsc::TrySendError::Full(_) => Error::LocalStoreBusy,
            std::sync::mpsc::TrySendError::Disconnected(_) => Error::LocalStoreStopped,
        })?;
        answer.await.map_err(|_| Error::LocalStoreStopped)?
    }
}

fn serve(mut store: impl CardStore, jobs: &Receiver<Job>) {
    while let Ok(first) = jobs.recv() {
        let batch = std::iter::once(first).chain(jobs.try_iter().take(STORE_BATCH - 1)).collect();
        run(&mut store, batch);
    }
}

fn run(store: &mut dyn CardStore, batch: Vec<Job>) {
    let started = store.begin();
    let mut answers = Vec::with_capacity(batch.len());
    let mut failed = started.is_err();
    for job in batch {
        let (job_failed, answer) = job(store);
        failed |= job_failed;
        answers.push(answer);
    }
    let ended = if failed { Err(Error::LocalStoreBusy) } else { store.commit() };
    if let Err(error) = &ended {
        store.roll_back();
        tracing::warn!(jobs = answers.len(), %error, "a group of store requests was rolled back");
    }
    for answer in answers {
        answer(match &ended {
            Ok(()) => Ok(()),
            Err(error) => Err(again(error)),
        });
    }
}

/// The error that everyone in a failed group gets, beside the one who caused it.
fn again(error: &Error) -> Error {
    match error {
        Error::LocalStoreFull => Error::LocalStoreFull,
        _ => Error::LocalStoreBusy,
    }
}
