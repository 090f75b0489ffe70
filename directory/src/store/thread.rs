//! The store's own threads. Requests are closures in bounded queues. Those that write go to one thread; what waits together
//! shares one transaction and one fdatasync (group commit), and nobody is answered before it held. Look-ups go to others,
//! each with a connection of its own, so that they neither wait for a commit nor fail with a transaction, nor for one another's pages. The threads exist because
//! the filter lets no new blocking thread be needed later, and because one slow disk must not stop the network side.

use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::{CardReader, CardStore};
use crate::error::{Error, Result};
use crate::limits::{LOOK_UP_BATCH, STORE_BATCH, STORE_QUEUE, URGENT_QUEUE};

/// Look-ups look so often whether the database still stands where it should; who writes does so each time.
const CHECKS_APART: Duration = Duration::from_millis(100);

/// Tells one waiting caller how the transaction ended.
type Answer = Box<dyn FnOnce(Result<()>) + Send>;
/// Works on the store, or is told why it cannot; says whether the storage failed under it, so that the whole group is rolled
/// back.
type Job = Box<dyn FnOnce(Result<&mut dyn CardStore>) -> (bool, Answer) + Send>;
/// An operator's request. It waits for nobody else's, and holds or fails by itself.
type Urgent = Box<dyn FnOnce(&mut dyn CardStore) + Send>;
/// Looks something up and answers, or is told why it cannot.
type LookUp = Box<dyn FnOnce(Result<&mut dyn CardReader>) + Send>;

/// Asks the store's threads.
#[derive(Clone)]
pub struct StoreHandle {
    jobs: SyncSender<Job>,
    urgent: SyncSender<Urgent>,
    look_ups: SyncSender<LookUp>,
    ground: Arc<Ground>,
}

/// The database's place where its files stand there no more, as who writes and who looks up found it last.
#[derive(Debug, Default)]
struct Ground([Mutex<Option<PathBuf>>; 2]);

/// Who finds it out: only its own finding is taken back.
#[derive(Clone, Copy)]
enum By {
    Writer,
    Reader,
}

impl Ground {
    fn found(&self, by: By) -> MutexGuard<'_, Option<PathBuf>> {
        self.0[by as usize].lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn gone(&self) -> Option<PathBuf> {
        self.found(By::Writer).clone().or_else(|| self.found(By::Reader).clone())
    }

    /// Notes what became of something that was asked of the storage. What says nothing of its place changes nothing.
    fn note<T>(&self, by: By, result: &Result<T>) {
        let before = self.gone().is_some();
        match result {
            Err(Error::LocalStoreGone { path }) => *self.found(by) = Some(path.clone()),
            Ok(_) => *self.found(by) = None,
            Err(_) => {}
        }
        match (before, result) {
            (false, Err(error @ Error::LocalStoreGone { .. })) => tracing::error!(%error, "nothing is served from it"),
            (true, Ok(_)) if self.gone().is_none() => tracing::info!("the database is at its place again"),
            _ => {}
        }
    }
}

impl std::fmt::Debug for StoreHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("StoreHandle")
    }
}

impl StoreHandle {
    /// Starts the threads, one for each reader; they end when the last handle is dropped.
    ///
    /// # Errors
    /// No thread could be started.
    pub fn start<Reader: CardReader + Send + 'static>(
        store: impl CardStore + Send + 'static,
        readers: impl IntoIterator<Item = Reader>,
    ) -> Result<Self> {
        let (jobs, to_write) = sync_channel(STORE_QUEUE);
        let (urgent, to_do_first) = sync_channel(URGENT_QUEUE);
        let (look_ups, to_look_up) = sync_channel::<LookUp>(STORE_QUEUE);
        let thread = |name: &str| std::thread::Builder::new().name(name.into());
        let ground = Arc::new(Ground::default());
        let noted = Arc::clone(&ground);
        thread("store").spawn(move || serve(store, &to_write, &to_do_first, &noted)).map_err(Error::LocalRuntime)?;
        let to_look_up = Arc::new(Mutex::new(to_look_up));
        for mut reader in readers {
            let (noted, to_look_up) = (Arc::clone(&ground), Arc::clone(&to_look_up));
            thread("look-ups").spawn(move || look_up(&mut reader, &to_look_up, &noted)).map_err(Error::LocalRuntime)?;
        }
        Ok(Self { jobs, urgent, look_ups, ground })
    }

    /// Whether the database was taken away under the running directory.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.ground.gone().is_some()
    }

    /// Runs `work` beside those who write; it sees what they were acknowledged.
    ///
    /// # Errors
    /// As [`StoreHandle::call`].
    pub async fn read<T, W>(&self, work: W) -> Result<T>
    where
        T: Send + 'static,
        W: FnOnce(&mut dyn CardReader) -> Result<T> + Send + 'static,
    {
        let (tell, answer) = oneshot::channel();
        // A caller that went away needs no answer.
        let look_up: LookUp = Box::new(move |reader| drop(tell.send(reader.and_then(work))));
        self.look_ups.try_send(look_up).map_err(not_queued)?;
        answer.await.map_err(|_| Error::LocalStoreStopped)?
    }

    /// Runs an operator's `work` before whatever waits, in a transaction of its own, and blocks until it is durable: for the admin's
    /// thread alone. By the one thread that writes, because a second writer would have to be lucky to get the lock under a flood.
    ///
    /// # Errors
    /// As [`StoreHandle::call`].
    pub fn urgently<T, W>(&self, work: W) -> Result<T>
    where
        T: Send + 'static,
        W: FnOnce(&mut dyn CardStore) -> Result<T> + Send + 'static,
    {
        let (tell, answer) = sync_channel(1);
        let urgent: Urgent = Box::new(move |store| {
            let result = store.begin().and_then(|()| work(store));
            let result = result.and_then(|value| store.commit().map(|()| value));
            if result.is_err() {
                store.roll_back();
            }
            // A caller that went away needs no answer.
            let _ = tell.send(result);
        });
        self.urgent.try_send(urgent).map_err(not_queued)?;
        // Wakes a thread that waits for work. One whose queue is full does not wait.
        let nothing: Job = Box::new(|_| (false, Box::new(|_| ())));
        let _ = self.jobs.try_send(nothing);
        answer.recv().map_err(|_| Error::LocalStoreStopped)?
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
            let result = store.and_then(work);
            let failed = result.is_err();
            let answer: Answer = Box::new(move |committed| {
                // A caller that went away needs no answer.
                let _ = tell.send(result.and_then(|value| committed.map(|()| value)));
            });
            (failed, answer)
        });
        self.jobs.try_send(job).map_err(not_queued)?;
        answer.await.map_err(|_| Error::LocalStoreStopped)?
    }
}

fn not_queued<T>(error: TrySendError<T>) -> Error {
    match error {
        TrySendError::Full(_) => Error::LocalStoreBusy,
        TrySendError::Disconnected(_) => Error::LocalStoreStopped,
    }
}

/// What waits together is looked up in one view. The view begins when all of it waits already, so that each sees what its caller was acknowledged.
fn look_up(reader: &mut dyn CardReader, look_ups: &Mutex<Receiver<LookUp>>, ground: &Ground) {
    let mut checked: Option<Instant> = None;
    loop {
        let batch: Vec<LookUp> = {
            // One of the threads waits for the next, the others for their turn to.
            let look_ups = look_ups.lock().unwrap_or_else(PoisonError::into_inner);
            let Ok(first) = look_ups.recv() else { return };
            std::iter::once(first).chain(look_ups.try_iter().take(LOOK_UP_BATCH - 1)).collect()
        };
        // While it was gone at the last look, each looks again.
        if ground.gone().is_some() || checked.is_none_or(|at| at.elapsed() >= CHECKS_APART) {
            checked = Some(Instant::now());
            ground.note(By::Reader, &reader.check());
        }
        if let Some(path) = ground.gone() {
            batch.into_iter().for_each(|look_up| look_up(Err(Error::LocalStoreGone { path: path.clone() })));
            continue;
        }
        // Without a view each looks up by itself.
        let held = batch.len() > 1 && reader.begin_view().is_ok();
        batch.into_iter().for_each(|look_up| look_up(Ok(&mut *reader)));
        if held {
            reader.end_view();
        }
    }
}

fn serve(mut store: impl CardStore, jobs: &Receiver<Job>, urgent: &Receiver<Urgent>, ground: &Ground) {
    while let Ok(first) = jobs.recv() {
        urgent.try_iter().for_each(|work| work(&mut store));
        let batch = std::iter::once(first).chain(jobs.try_iter().take(STORE_BATCH - 1)).collect();
        run(&mut store, batch, ground);
    }
}

fn run(store: &mut dyn CardStore, batch: Vec<Job>, ground: &Ground) {
    let begun = store.begin();
    ground.note(By::Writer, &begun);
    if let Err(error) = begun {
        tracing::warn!(jobs = batch.len(), %error, "a group of store requests could not begin");
        // Without a transaction nothing may run: it would hold, and be answered as if it did not.
        return batch.into_iter().for_each(|job| job(Err(again(&error))).1(Ok(())));
    }
    let mut failed = false;
    let mut answers = Vec::with_capacity(batch.len());
    for job in batch {
        let (job_failed, answer) = job(Ok(&mut *store));
        failed |= job_failed;
        answers.push(answer);
    }
    let ended = if failed { Err(Error::LocalStoreBusy) } else { store.commit() };
    ground.note(By::Writer, &ended);
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
        Error::LocalStoreAway => Error::LocalStoreAway,
        Error::LocalStoreUnknown => Error::LocalStoreUnknown,
        Error::LocalStoreGone { path } => Error::LocalStoreGone { path: path.clone() },
        _ => Error::LocalStoreBusy,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::store::sqlite::SqliteStore;
    use openred_proto::id::UnixMillis;

    fn open(path: &std::path::Path) -> SqliteStore {
        SqliteStore::open(path, 64).unwrap()
    }

    #[tokio::test]
    async fn nothing_runs_without_its_transaction_and_look_ups_go_on() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("db");
        let store = StoreHandle::start(open(&path), [SqliteStore::open_reader(&path).unwrap()]).unwrap();
        // Somebody else writes for longer than the store waits.
        let mut other = open(&path);
        other.begin().unwrap();
        let ran = Arc::new(AtomicBool::new(false));
        let runs = Arc::clone(&ran);
        let refused = store.call(move |store| {
            runs.store(true, Ordering::SeqCst);
            store.end_run(1)
        });
        assert!(matches!(refused.await, Err(Error::LocalStoreBusy)));
        assert!(!ran.load(Ordering::SeqCst));
        assert_eq!(store.read(|reader| reader.counts(UnixMillis(0))).await.unwrap().nodes, 0);
        other.roll_back();
        store.call(|store| store.end_run(1)).await.unwrap();
    }

    #[tokio::test]
    async fn a_look_up_that_takes_long_holds_up_none_that_comes_later() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("db");
        let writer = open(&path);
        let store = StoreHandle::start(writer, [(); 2].map(|()| SqliteStore::open_reader(&path).unwrap())).unwrap();
        let (begin, begun) = oneshot::channel();
        let (end, ended) = sync_channel(1);
        let asked = store.clone();
        let long = tokio::spawn(async move {
            let work = move |_: &mut dyn CardReader| {
                begin.send(()).unwrap();
                Ok(ended.recv())
            };
            asked.read(work).await.unwrap().unwrap();
        });
        begun.await.unwrap();
        for _ in 0..9 {
            store.read(|reader| reader.counts(UnixMillis(0))).await.unwrap();
        }
        end.send(()).unwrap();
        long.await.unwrap();
    }

    #[tokio::test]
    async fn a_look_up_cannot_write() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("db");
        drop(open(&path));
        assert!(SqliteStore::open_reader(&path).unwrap().end_run(1).is_err());
    }
}
