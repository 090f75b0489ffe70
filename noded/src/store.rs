//! The node's database: one SQLite file in its state directory, used by one thread of its own.
//!
//! The thread is started before the final filter (no thread can be started after it) and takes jobs from a bounded queue.
//! Jobs that wait together share one transaction and one fsync (group commit); each has a savepoint, so one that fails
//! takes nothing with it. **A call that has answered `Ok` is durable** (write-ahead log, `synchronous = FULL`).
//!
//! What is kept: links with their sealed rows (the key process alone can open them), cards of peers, approvals, and the
//! modules' rows, which are sealed here with a key from the key process. No secret of a link or session is ever in it.

mod calls;
mod copy;
mod honesty;
mod links;
mod peers;
mod proofs;
mod rows;
mod schema;
mod seal;
mod states;
mod successions;

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, ffi};
use tokio::sync::{mpsc, oneshot};

pub(crate) use copy::{COPY, Sound, bound_to, check, decided_methods};
pub(crate) use honesty::Evidence;
pub(crate) use peers::{KnownPeer, Word};
pub(crate) use seal::RowSeal;
pub(crate) use states::{Pen, Writer};
pub(crate) use successions::Carried;

/// Name of the database in the state directory.
pub(crate) const FILE: &str = "node.sqlite";
/// Jobs that may wait; callers beyond it wait for room. Two full groups.
const QUEUE: usize = 128;
/// Jobs that share one transaction. Beyond 64 the fsync is no longer what costs.
const GROUP: usize = 64;
/// Prepared statements kept; there are fewer kinds of them.
const STATEMENTS: usize = 64;
/// Bytes of a database page: SQLite's default, named because the size limit is given in pages.
const PAGE_BYTES: u64 = 4096;
/// Another process holds the file for longer than this only if it is a second node on the same state.
const IN_USE_AFTER: Duration = Duration::from_secs(2);
/// Size of the row that is tried while the store is in trouble: the longest message with its envelope.
const PROBE_BYTES: u32 = 272 * 1024;

/// Why the store could not do it. All are this machine's condition or a defect, never a peer's doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum StoreError {
    /// The disk, or the configured size, is used up. Reads still work.
    #[error("no space left for the node's database; free some, or raise `storage.database_megabytes`")]
    Full,
    /// A second process uses the file.
    #[error("the node's database is in use by another process; is this node running twice?")]
    InUse,
    /// Not a database of this program.
    #[error("node.sqlite is not a database of an OpenRed node")]
    Foreign,
    /// Its tables are not those that this program makes.
    #[error("node.sqlite has tables, views or triggers that no node puts there, or lacks one: somebody changed it")]
    Shape,
    /// Written by a newer version.
    #[error("node.sqlite has schema {found}, this program knows up to {known}; use the newer version of openred")]
    NewerSchema {
        /// In the file.
        found: u32,
        /// Of this program.
        known: u32,
    },
    /// The database could not be opened.
    #[error("node.sqlite cannot be opened ({0:?}); check the state directory's owner and mode")]
    Open(ErrorCode),
    /// What was written may not be on disk: nothing is acknowledged any more.
    #[error("writes may be lost: the disk failed to sync; restart the node once the disk is sound")]
    Lost,
    /// A row that only this program writes cannot be read.
    #[error("a row of table {0} cannot be read: the file was changed or damaged")]
    Damaged(&'static str),
    /// A read, write or statement failed.
    #[error("the node's database failed ({0:?})")]
    Failed(ErrorCode),
    /// A module's rows would be more than it was granted.
    #[error("the module's rows would be more bytes than its `kv.quota`")]
    Quota,
    /// A write of a module's generation that was replaced.
    #[error("this generation of the module was replaced: it writes nothing more")]
    Replaced,
    /// The store's thread has ended.
    #[error("the node is stopping")]
    Closed,
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        match error {
            rusqlite::Error::SqliteFailure(failure, _) => match (failure.code, failure.extended_code) {
                (ErrorCode::DiskFull, _) => Self::Full,
                // The file may not grow: a limit of the process or the file system, which is no less full for it.
                (_, ffi::SQLITE_IOERR_WRITE) => Self::Full,
                (_, ffi::SQLITE_IOERR_FSYNC | ffi::SQLITE_IOERR_DIR_FSYNC) => Self::Lost,
                (ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked, _) => Self::InUse,
                (ErrorCode::NotADatabase, _) => Self::Foreign,
                (code, _) => Self::Failed(code),
            },
            rusqlite::Error::FromSqlConversionFailure(..) | rusqlite::Error::InvalidColumnType(..) => {
                Self::Damaged("unknown")
            }
            _ => Self::Failed(ErrorCode::InternalMalfunction),
        }
    }
}

impl StoreError {
    /// Whether it says something about the database rather than about one call.
    const fn is_trouble(&self) -> bool {
        matches!(self, Self::Full | Self::Lost | Self::Failed(_) | Self::Damaged(_))
    }
}

/// Result of a store call.
pub(crate) type Result<T> = std::result::Result<T, StoreError>;

/// A hold on the store: cheap to clone; the thread ends when the last one is dropped.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    queue: mpsc::Sender<Work>,
    /// What the last write met.
    trouble: Arc<Mutex<Option<StoreError>>>,
}

/// The store's thread. Joined at the end, so that the log is checkpointed before the process leaves.
#[derive(Debug)]
pub(crate) struct StoreThread(JoinHandle<()>);

impl StoreThread {
    /// Whether [`StoreThread::join`] would return at once.
    pub(crate) fn is_finished(&self) -> bool {
        self.0.is_finished()
    }

    /// Waits until every queued job is done and the file is closed. All [`Store`]s must be dropped before.
    pub(crate) fn join(self) {
        // A panic of the thread has been reported by the panic hook.
        let _ = self.0.join();
    }
}

impl Store {
    /// Opens or makes the database in `directory` and starts its thread. `most_bytes` zero: no limit of our own.
    ///
    /// # Errors
    /// See [`StoreError`]; no thread is left behind.
    pub(crate) fn open(directory: &Path, most_bytes: u64) -> Result<(Self, StoreThread)> {
        let connection = connect(&directory.join(FILE), most_bytes)?;
        schema::migrate(&connection, directory)?;
        let (queue, jobs) = mpsc::channel(QUEUE);
        let trouble = Arc::new(Mutex::new(None));
        let said = Arc::clone(&trouble);
        let directory = directory.to_owned();
        let serving = move || serve(&connection, jobs, &said, &directory);
        let thread = std::thread::Builder::new().name("store".to_owned()).spawn(serving);
        let thread = thread.map_err(|_| StoreError::Failed(ErrorCode::OutOfMemory))?;
        Ok((Self { queue, trouble }, StoreThread(thread)))
    }

    /// What is wrong with the store, if anything. While something is, a write as long as the longest that is asked of it is
    /// tried; when that goes through, all is well again.
    pub(crate) async fn trouble(&self) -> Option<StoreError> {
        let trouble = *self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(trouble, None | Some(StoreError::Lost)) {
            return trouble;
        }
        let tried = self.call(|connection| {
            connection.execute("INSERT OR REPLACE INTO meta VALUES ('probe', zeroblob(?1))", [PROBE_BYTES])?;
            Ok(())
        });
        let removed = |connection: &Connection| Ok(connection.execute("DELETE FROM meta WHERE name = 'probe'", [])?);
        let (tried, removed) = (tried.await.err(), self.call(removed).await.err());
        let met = tried.or(removed);
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = met;
        met
    }

    /// Runs `work` on the store's thread. It may run twice: a group that fails as a whole is repeated one by one.
    pub(crate) async fn call<T, F>(&self, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnMut(&Connection) -> Result<T> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let job = Box::new(Call { work, outcome: Err(StoreError::Closed), reply });
        self.queue.send(Work::Job(job)).await.map_err(|_| StoreError::Closed)?;
        answer.await.unwrap_or(Err(StoreError::Closed))
    }

    /// Copies the whole database, as it is between two groups, into [`COPY`] in its directory; how long the copy is. Other
    /// calls wait meanwhile.
    pub(crate) async fn copy(&self) -> Result<u64> {
        let (reply, answer) = oneshot::channel();
        self.queue.send(Work::Copy(reply)).await.map_err(|_| StoreError::Closed)?;
        answer.await.unwrap_or(Err(StoreError::Closed))
    }
}

fn connect(file: &Path, most_bytes: u64) -> Result<Connection> {
    let open = |error: rusqlite::Error| match StoreError::from(error) {
        StoreError::Failed(code) => StoreError::Open(code),
        known => known,
    };
    let connection = Connection::open(file).map_err(open)?;
    connection.busy_timeout(IN_USE_AFTER)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    // Plans do not follow the values that are bound: without this a kept statement is compiled anew whenever those change.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    // An exclusive lock before the first access in WAL mode: one process, and no shared-memory file to map.
    connection.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
    connection.pragma_update(None, "journal_mode", "WAL").map_err(open)?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    connection.pragma_update(None, "trusted_schema", false)?;
    connection.pragma_update(None, "cell_size_check", true)?;
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    // Negative: kibibytes. Small: the kernel caches the file anyway.
    connection.pragma_update(None, "cache_size", -1024)?;
    connection.pragma_update(None, "journal_size_limit", 4 << 20)?;
    if most_bytes > 0 {
        let pages = i64::try_from(most_bytes / PAGE_BYTES).unwrap_or(i64::MAX);
        connection.pragma_update(None, "max_page_count", pages)?;
    }
    Ok(connection)
}

/// What the thread is asked.
enum Work {
    /// A call, to share a transaction with others.
    Job(Box<dyn Job>),
    /// A copy of everything, between two transactions.
    Copy(oneshot::Sender<Result<u64>>),
}

/// One queued call, its types erased.
trait Job: Send {
    /// Does the work; what it changed is kept only when it succeeds.
    fn run(&mut self, connection: &Connection) -> Result<()>;
    /// What `run` met.
    fn error(&self) -> Option<StoreError>;
    /// Answers: with the outcome of `run`, or with what befell the whole transaction.
    fn finish(self: Box<Self>, fault: Option<StoreError>);
}

struct Call<T, F> {
    work: F,
    outcome: Result<T>,
    reply: oneshot::Sender<Result<T>>,
}

impl<T, F> Job for Call<T, F>
where
    T: Send,
    F: FnMut(&Connection) -> Result<T> + Send,
{
    fn run(&mut self, connection: &Connection) -> Result<()> {
        self.outcome = (self.work)(connection);
        self.outcome.as_ref().map(|_| ()).map_err(|error| *error)
    }

    fn error(&self) -> Option<StoreError> {
        self.outcome.as_ref().err().copied()
    }

    fn finish(self: Box<Self>, fault: Option<StoreError>) {
        // A caller that has gone needs no answer; what was done stays done.
        let _ = self.reply.send(fault.map_or(self.outcome, Err));
    }
}

fn serve(
    connection: &Connection,
    mut queue: mpsc::Receiver<Work>,
    trouble: &Mutex<Option<StoreError>>,
    directory: &Path,
) {
    let mut lost = false;
    let mut group: Vec<Box<dyn Job>> = Vec::with_capacity(GROUP);
    let mut copies = Vec::new();
    while let Some(first) = queue.blocking_recv() {
        let mut next = Some(first);
        while let Some(work) = next {
            match work {
                Work::Job(job) => group.push(job),
                Work::Copy(reply) => copies.push(reply),
            }
            next = if group.len() < GROUP && copies.is_empty() { queue.try_recv().ok() } else { None };
        }
        run_and_answer(connection, &mut group, trouble, &mut lost);
        for reply in copies.drain(..) {
            let _ = reply.send(copy::copy(connection, directory));
        }
    }
    // Leaves one file behind instead of a log that the next start must replay; failing costs only that replay.
    let _ = connection.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)");
}

/// One group: in one transaction, or one by one where that fails.
fn run_and_answer(
    connection: &Connection,
    group: &mut Vec<Box<dyn Job>>,
    trouble: &Mutex<Option<StoreError>>,
    lost: &mut bool,
) {
    if group.is_empty() {
        return;
    }
    let fault = if *lost { Some(StoreError::Lost) } else { commit(connection, group).err() };
    // After a failed fsync the kernel forgets which pages were dirty: a later success would prove nothing.
    *lost |= fault == Some(StoreError::Lost);
    if fault.is_none() || *lost || group.len() == 1 {
        note(trouble, fault.or_else(|| first_error(group)));
        group.drain(..).for_each(|job| job.finish(fault));
        return;
    }
    for mut job in group.drain(..) {
        let fault = commit(connection, std::slice::from_mut(&mut job)).err();
        *lost |= fault == Some(StoreError::Lost);
        note(trouble, fault.or_else(|| job.error()));
        job.finish(fault);
    }
}

fn first_error(group: &[Box<dyn Job>]) -> Option<StoreError> {
    group.iter().filter_map(|job| job.error()).find(StoreError::is_trouble)
}

/// Notes what a transaction met. One that went through takes nothing back: small writes fit where larger ones do not.
fn note(trouble: &Mutex<Option<StoreError>>, error: Option<StoreError>) {
    if let Some(error) = error.filter(StoreError::is_trouble) {
        *trouble.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
    }
}

/// Runs a group in one transaction. On an error nothing of it is kept.
fn commit(connection: &Connection, group: &mut [Box<dyn Job>]) -> Result<()> {
    let committed = run_group(connection, group);
    if committed.is_err() && !connection.is_autocommit() {
        connection.execute_batch("ROLLBACK")?;
    }
    committed
}

fn run_group(connection: &Connection, group: &mut [Box<dyn Job>]) -> Result<()> {
    connection.prepare_cached("BEGIN")?.execute([])?;
    for job in group {
        connection.prepare_cached("SAVEPOINT job")?.execute([])?;
        if let Err(error) = job.run(connection) {
            // On a full disk SQLite ends the whole transaction by itself, savepoints and all.
            if connection.is_autocommit() {
                return Err(error);
            }
            connection.prepare_cached("ROLLBACK TO job")?.execute([])?;
        }
        connection.prepare_cached("RELEASE job")?.execute([])?;
    }
    connection.prepare_cached("COMMIT")?.execute([])?;
    Ok(())
}

#[cfg(test)]
mod tests;
