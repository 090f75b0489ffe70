//! Blobs: plain files under `blobs/<module>/`, all touched by one thread of their own so that no disk holds up the network.
//!
//! A name is no path (checked by the SDK's type), links are not followed, and a module's folder is its own. The thread is
//! started before the final filter. A blob counts for no less than a block of the disk, and a bounded module has so many and no more: files cost more than
//! their bytes. Open files are kept for a while: a transfer writes many chunks to one of them.

mod ahead;

use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use bytes::Bytes;
use nix::fcntl::OFlag;
use openred_module::{BLOB_CHUNK, BlobName, Check, HostError, SCAN_LIMIT};
use tokio::sync::{Semaphore, mpsc, oneshot};

use ahead::Ahead;

/// Jobs that may wait; each carries at most one chunk of 1 MiB.
const QUEUE: usize = 32;
/// Of these, one module's: enough that the thread never waits for a module that has more to do, and few for another's to wait behind.
pub(super) const SHARE: usize = 4;
/// Files kept open.
const OPEN_FILES: usize = 32;
/// What a blob counts for at least: a file takes an inode and a name, and of the disk a block as soon as there is anything in it.
const LEAST: u64 = 4096;
/// Blobs of a module whose bytes are bounded.
const BLOBS: u64 = 65_536;

type Job = Box<dyn FnOnce(&mut Folder) + Send>;
type Result<T> = std::result::Result<T, HostError>;

/// A hold on the disk's thread: cheap to clone; the thread ends when the last one is dropped.
#[derive(Clone, Debug)]
pub(crate) struct Disk {
    queue: mpsc::Sender<Job>,
    /// A module's places in the queue; the node's own jobs have no bound.
    share: Option<Arc<Semaphore>>,
}

/// The disk's thread.
#[derive(Debug)]
pub(crate) struct DiskThread(JoinHandle<()>);

impl DiskThread {
    /// Whether [`DiskThread::join`] would return at once.
    pub(crate) fn is_finished(&self) -> bool {
        self.0.is_finished()
    }

    /// Waits until every queued job is done. All [`Disk`]s must be dropped before.
    pub(crate) fn join(self) {
        // A panic of the thread has been reported by the panic hook.
        let _ = self.0.join();
    }
}

impl Disk {
    /// Makes the folder if need be and starts the thread. `most_bytes` for each module; zero: as the disk has.
    pub(super) fn open(root: &Path, most_bytes: u64) -> io::Result<(Self, DiskThread)> {
        fs::create_dir_all(root)?;
        let mut folder = Folder::new(root, most_bytes, Ahead::start()?);
        let (queue, mut jobs) = mpsc::channel::<Job>(QUEUE);
        let thread = std::thread::Builder::new().name("disk".to_owned()).spawn(move || {
            while let Some(job) = jobs.blocking_recv() {
                job(&mut folder);
            }
        })?;
        Ok((Self { queue, share: None }, DiskThread(thread)))
    }

    /// The same for one module, whose calls have [`SHARE`] places in the queue together, through this hold and its clones: the others wait their turn outside it, and
    /// a call of another module waits behind no more than these.
    pub(super) fn shared(&self) -> Self {
        Self { queue: self.queue.clone(), share: Some(Arc::new(Semaphore::new(SHARE))) }
    }

    async fn call<T: Send + 'static>(&self, work: impl FnOnce(&mut Folder) -> Result<T> + Send + 'static) -> Result<T> {
        let place = match &self.share {
            Some(share) => Some(Arc::clone(share).acquire_owned().await.map_err(|_| HostError::ShuttingDown)?),
            None => None,
        };
        let (reply, answer) = oneshot::channel();
        let job: Job = Box::new(move |folder| {
            let done = work(folder);
            // Not before: a call that is given up stays in the queue.
            drop(place);
            // A caller that has gone needs no answer.
            let _ = reply.send(done);
        });
        self.queue.send(job).await.map_err(|_| HostError::ShuttingDown)?;
        answer.await.map_err(|_| HostError::ShuttingDown)?
    }

    /// Writes, if the module's blobs are not more than `most` bytes then, each counted for [`LEAST`] at least, and not more than [`BLOBS`].
    pub(super) async fn write(
        &self,
        module: &'static str,
        name: &BlobName,
        offset: u64,
        bytes: Bytes,
        most: Option<u64>,
    ) -> Result<Written> {
        if bytes.len() > BLOB_CHUNK {
            return Err(HostError::TooLarge { limit: BLOB_CHUNK });
        }
        let name = name.clone();
        self.call(move |folder| folder.write(module, &name, offset, &[bytes], most)).await
    }

    /// The same for bytes of any number that come one behind the other, which are hashed here besides: as fast as they are written, and not on the thread that
    /// opens them.
    pub(super) async fn store(
        &self,
        module: &'static str,
        name: &BlobName,
        offset: u64,
        parts: Vec<Bytes>,
        most: Option<u64>,
        mut check: Check,
    ) -> Result<(Written, Check)> {
        let name = name.clone();
        let work = move |folder: &mut Folder| {
            let written = folder.write(module, &name, offset, &parts, most)?;
            parts.iter().for_each(|part| check.update(part));
            Ok((written, check))
        };
        self.call(work).await
    }

    /// Has the thread do nothing until the other end is dropped.
    #[cfg(test)]
    pub(super) async fn hold(&self) -> std::sync::mpsc::SyncSender<()> {
        let (end, held) = std::sync::mpsc::sync_channel::<()>(1);
        let (begun, begins) = oneshot::channel();
        let job: Job = Box::new(move |_| {
            let _ = begun.send(());
            let _ = held.recv();
        });
        assert!(self.queue.send(job).await.is_ok(), "the thread is there");
        assert_eq!(begins.await, Ok(()));
        end
    }

    /// Jobs in the queue.
    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        QUEUE - self.queue.capacity()
    }

    /// Deletes every blob of a module.
    pub(super) async fn forget(&self, module: &'static str) -> Result<()> {
        self.call(move |folder| folder.forget(module)).await
    }

    pub(super) async fn read(&self, module: &'static str, name: &BlobName, offset: u64, most: usize) -> Result<Bytes> {
        let name = name.clone();
        self.call(move |folder| folder.read(module, &name, offset, most.min(BLOB_CHUNK))).await
    }

    pub(super) async fn length(&self, module: &'static str, name: &BlobName) -> Result<Option<u64>> {
        let name = name.clone();
        self.call(move |folder| folder.length(module, &name)).await
    }

    pub(super) async fn sync(&self, module: &'static str, name: &BlobName) -> Result<()> {
        let name = name.clone();
        self.call(move |folder| folder.sync(module, &name)).await
    }

    pub(super) async fn rename(&self, module: &'static str, from: &BlobName, to: &BlobName) -> Result<()> {
        let (from, to) = (from.clone(), to.clone());
        self.call(move |folder| folder.rename(module, &from, &to)).await
    }

    pub(super) async fn delete(&self, module: &'static str, name: &BlobName) -> Result<()> {
        let name = name.clone();
        self.call(move |folder| folder.delete(module, &name)).await
    }

    pub(super) async fn list(&self, module: &'static str, after: Option<&BlobName>) -> Result<Vec<BlobName>> {
        let after = after.cloned();
        self.call(move |folder| folder.list(module, after.as_ref())).await
    }
}

/// What became of a write.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Written {
    /// It is there.
    Yes,
    /// Nothing was written: the module would have more than it was granted.
    BeyondQuota,
}

/// What a module's blobs come to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Sum {
    blobs: u64,
    bytes: u64,
}

impl Sum {
    /// One blob of this length more; none that is not there.
    const fn with(self, length: Option<u64>) -> Self {
        let Some(length) = length else { return self };
        let counts = if length > LEAST { length } else { LEAST };
        Self { blobs: self.blobs.saturating_add(1), bytes: self.bytes.saturating_add(counts) }
    }

    const fn without(self, length: Option<u64>) -> Self {
        let less = Self { blobs: 0, bytes: 0 }.with(length);
        Self { blobs: self.blobs.saturating_sub(less.blobs), bytes: self.bytes.saturating_sub(less.bytes) }
    }
}

/// The folder of all modules' blobs, on its thread.
struct Folder {
    root: PathBuf,
    most_bytes: u64,
    /// Each module's blobs, counted once and kept up.
    used: HashMap<&'static str, Sum>,
    /// Open files, the last used at the back.
    open: VecDeque<Open>,
    ahead: Ahead,
}

struct Open {
    path: PathBuf,
    file: File,
    /// Bytes written since it was written out.
    waiting: u64,
}

impl Folder {
    fn new(root: &Path, most_bytes: u64, ahead: Ahead) -> Self {
        Self { root: root.to_owned(), most_bytes, used: HashMap::new(), open: VecDeque::new(), ahead }
    }

    fn path(&self, module: &str, name: &BlobName) -> PathBuf {
        self.root.join(module).join(name.as_str())
    }

    /// The blob's file, made if `create`; `None` if there is none.
    fn file(&mut self, module: &str, name: &BlobName, create: bool) -> io::Result<Option<&File>> {
        let path = self.path(module, name);
        if let Some(at) = self.open.iter().position(|open| open.path == path) {
            let found = self.open.remove(at).expect("the position was just found");
            self.open.push_back(found);
        } else {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(create).custom_flags(OFlag::O_NOFOLLOW.bits());
            let file = match options.open(&path) {
                Ok(file) => file,
                Err(error) if error.kind() == ErrorKind::NotFound && create => {
                    fs::create_dir_all(self.root.join(module))?;
                    options.open(&path)?
                }
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(error),
            };
            if self.open.len() == OPEN_FILES {
                self.open.pop_front();
            }
            self.open.push_back(Open { path, file, waiting: 0 });
        }
        Ok(self.open.back().map(|open| &open.file))
    }

    /// Nothing is known any more of what had this name, and has it no more.
    fn close(&mut self, path: &Path) {
        let _ = self.ahead.failure(path);
        self.open.retain(|open| open.path != path);
    }

    fn write(
        &mut self,
        module: &'static str,
        name: &BlobName,
        offset: u64,
        parts: &[impl AsRef<[u8]>],
        most: Option<u64>,
    ) -> Result<Written> {
        let before = self.length(module, name)?;
        let count: u64 = parts.iter().map(|part| part.as_ref().len() as u64).sum();
        let after = before.unwrap_or(0).max(offset.saturating_add(count));
        let used = self.used(module).map_err(fault)?;
        let others = used.without(before);
        let all = others.with(Some(after));
        // What takes no more is written: a module that was granted less meanwhile goes on with what it has.
        if all != used && most.is_some_and(|most| all.bytes > most || all.blobs > BLOBS) {
            return Ok(Written::BeyondQuota);
        }
        if self.most_bytes > 0 && all.bytes > self.most_bytes {
            return Err(HostError::Full);
        }
        let file = self.file(module, name, true).map_err(fault)?.ok_or(HostError::Storage)?;
        let mut at = offset;
        let written = parts.iter().map(AsRef::as_ref).try_for_each(|part| {
            file.write_all_at(part, at)?;
            at += part.len() as u64;
            Ok(())
        });
        // A disk that fills up takes a part of a write: what counts is what is there.
        let length = file.metadata().map_err(fault)?.len();
        self.used.insert(module, others.with(Some(length)));
        self.write_out_ahead(count);
        written.map(|()| Written::Yes).map_err(fault)
    }

    /// So many bytes were written to the file used last.
    fn write_out_ahead(&mut self, bytes: u64) {
        let Some(open) = self.open.back_mut() else { return };
        open.waiting = open.waiting.saturating_add(bytes);
        if open.waiting >= ahead::STEP && self.ahead.begin(&open.path) {
            open.waiting = 0;
        }
    }

    fn read(&mut self, module: &str, name: &BlobName, offset: u64, most: usize) -> Result<Bytes> {
        let file = self.file(module, name, false).map_err(fault)?.ok_or(HostError::NoBlob)?;
        let left = file.metadata().map_err(fault)?.len().saturating_sub(offset);
        let mut bytes = vec![0; most.min(usize::try_from(left).unwrap_or(usize::MAX))];
        file.read_exact_at(&mut bytes, offset).map_err(fault)?;
        Ok(bytes.into())
    }

    fn length(&mut self, module: &str, name: &BlobName) -> Result<Option<u64>> {
        let Some(file) = self.file(module, name, false).map_err(fault)? else { return Ok(None) };
        Ok(Some(file.metadata().map_err(fault)?.len()))
    }

    fn sync(&mut self, module: &str, name: &BlobName) -> Result<()> {
        let file = self.file(module, name, false).map_err(fault)?.ok_or(HostError::NoBlob)?;
        file.sync_data().map_err(fault)?;
        if let Some(open) = self.open.back_mut() {
            open.waiting = 0;
            if let Some(kind) = self.ahead.failure(&open.path) {
                return Err(fault(kind.into()));
            }
        }
        self.sync_folder(module).map_err(fault)
    }

    fn rename(&mut self, module: &'static str, from: &BlobName, to: &BlobName) -> Result<()> {
        self.sync(module, from)?;
        let replaced = if from == to { None } else { self.length(module, to)? };
        let (from, to) = (self.path(module, from), self.path(module, to));
        fs::rename(&from, &to).map_err(fault)?;
        self.close(&from);
        self.close(&to);
        let used = self.used(module).map_err(fault)?;
        self.used.insert(module, used.without(replaced));
        self.sync_folder(module).map_err(fault)
    }

    fn delete(&mut self, module: &'static str, name: &BlobName) -> Result<()> {
        let Some(length) = self.length(module, name)? else { return Ok(()) };
        let path = self.path(module, name);
        fs::remove_file(&path).map_err(fault)?;
        self.close(&path);
        let used = self.used(module).map_err(fault)?;
        self.used.insert(module, used.without(Some(length)));
        self.sync_folder(module).map_err(fault)
    }

    fn list(&mut self, module: &str, after: Option<&BlobName>) -> Result<Vec<BlobName>> {
        let entries = match fs::read_dir(self.root.join(module)) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(fault(error)),
        };
        // The least of them, the greatest on top: as many as are asked for, however many there are.
        let mut names = BinaryHeap::with_capacity(SCAN_LIMIT + 1);
        for entry in entries {
            let name = entry.map_err(fault)?.file_name();
            names.extend(name.to_str().and_then(BlobName::new).filter(|name| after.is_none_or(|after| name > after)));
            if names.len() > SCAN_LIMIT {
                names.pop();
            }
        }
        Ok(names.into_sorted_vec())
    }

    fn used(&mut self, module: &'static str) -> io::Result<Sum> {
        if let Some(used) = self.used.get(module) {
            return Ok(*used);
        }
        let mut used = Sum::default();
        match fs::read_dir(self.root.join(module)) {
            Ok(entries) => {
                for entry in entries {
                    used = used.with(Some(entry?.metadata()?.len()));
                }
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        self.used.insert(module, used);
        Ok(used)
    }

    /// Deletes every blob of a module.
    fn forget(&mut self, module: &'static str) -> Result<()> {
        let folder = self.root.join(module);
        self.open.retain(|open| !open.path.starts_with(&folder));
        self.used.remove(module);
        let removed = fs::remove_dir_all(&folder);
        self.ahead.forget(&folder);
        match removed {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(fault(error)),
            _ => Ok(()),
        }
    }

    fn sync_folder(&self, module: &str) -> io::Result<()> {
        File::open(self.root.join(module))?.sync_all()
    }
}

fn fault(error: io::Error) -> HostError {
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => HostError::Full,
        kind => {
            tracing::error!(?kind, "a blob could not be read or written");
            HostError::Storage
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use std::process::Command;

    /// Names the small file system to a child of this test, which is this test program again.
    const CHILD: &str = "OPENRED_TEST_FULL_DISK";
    /// Its size: less than one chunk, so that a write is cut in the middle.
    const SIZE: usize = 512 * 1024;

    /// Runs one test of this program again with a file system of its own, mounted where nobody else sees it.
    fn on_a_small_disk(test: &str) {
        let folder = tempfile::tempdir().unwrap();
        let script = format!(
            "mount -t tmpfs -o size={SIZE} tmpfs \"${CHILD}\" && exec \"$0\" --exact {test} --nocapture --test-threads 1"
        );
        let output = Command::new("unshare")
            .args(["--user", "--map-root-user", "--mount", "sh", "-c", &script])
            .arg(std::env::current_exe().unwrap())
            .env(CHILD, folder.path())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
        assert!(said.contains("1 passed"), "{said}");
    }

    #[test]
    fn a_write_that_the_disk_cut_is_counted_as_it_is() {
        let Some(root) = std::env::var_os(CHILD) else {
            return on_a_small_disk("module::blobs::tests::a_write_that_the_disk_cut_is_counted_as_it_is");
        };
        let mut folder = Folder::new(Path::new(&root), 1 << 30, Ahead::start().unwrap());
        let name = BlobName::new("a").unwrap();
        let chunk = vec![7; BLOB_CHUNK];
        for _ in 0..3 {
            assert_eq!(folder.write("m", &name, 0, &[&chunk], None), Err(HostError::Full));
            let there = folder.length("m", &name).unwrap().unwrap();
            assert!(0 < there && there <= SIZE as u64, "{there} bytes of the write fitted");
            assert_eq!(folder.used("m").unwrap(), Sum { blobs: 1, bytes: there });
        }
        folder.delete("m", &name).unwrap();
        assert_eq!(folder.used("m").unwrap(), Sum::default());
    }

    fn name(name: &str) -> BlobName {
        BlobName::new(name).unwrap()
    }

    #[test]
    fn a_quota_counts_bytes_blocks_and_blobs() {
        let root = tempfile::tempdir().unwrap();
        let mut folder = Folder::new(root.path(), 0, Ahead::start().unwrap());
        let write = |folder: &mut Folder, blob: &str, offset: u64, bytes: &[u8]| {
            folder.write("m", &name(blob), offset, &[bytes], Some(3 * LEAST)).unwrap()
        };
        let long = vec![7; usize::try_from(LEAST).unwrap()];
        assert_eq!(write(&mut folder, "a", 0, &long), Written::Yes);
        assert_eq!(write(&mut folder, "a", LEAST, &long), Written::Yes);
        // Nothing at all is a file still.
        assert_eq!(write(&mut folder, "b", 0, b""), Written::Yes);
        assert_eq!(folder.used("m").unwrap(), Sum { blobs: 2, bytes: 3 * LEAST });
        assert_eq!(write(&mut folder, "c", 0, b""), Written::BeyondQuota);
        assert_eq!(write(&mut folder, "a", 2 * LEAST, b"x"), Written::BeyondQuota);
        assert_eq!(folder.length("m", &name("c")).unwrap(), None, "and it was not made");
        assert_eq!(write(&mut folder, "b", LEAST - 1, b"x"), Written::Yes, "in what it counts for already");
        folder.rename("m", &name("b"), &name("a")).unwrap();
        assert_eq!(folder.used("m").unwrap(), Sum { blobs: 1, bytes: LEAST });
        assert_eq!(
            Folder::new(root.path(), 0, Ahead::start().unwrap()).used("m").unwrap(),
            Sum { blobs: 1, bytes: LEAST },
            "counted anew"
        );
        folder.delete("m", &name("a")).unwrap();
        assert_eq!(folder.used("m").unwrap(), Sum::default());
        // A million of them, as far as the sum knows.
        folder.used.insert("m", Sum { blobs: BLOBS, bytes: 0 });
        assert_eq!(write(&mut folder, "d", 0, b""), Written::BeyondQuota);
    }

    #[test]
    fn a_name_that_was_forgotten_owes_nothing_to_what_had_it() {
        let root = tempfile::tempdir().unwrap();
        let mut folder = Folder::new(root.path(), 0, Ahead::start().unwrap());
        let [first, last] = ["a", "b"].map(|blob| folder.path("m", &name(blob)));
        fs::create_dir(root.path().join("m")).unwrap();
        for path in [&first, &last] {
            // What is not opened stands for a disk that fails.
            std::os::unix::fs::symlink("nowhere", path).unwrap();
            while !folder.ahead.begin(path) {
                std::thread::yield_now();
            }
        }
        // They fail one behind the other.
        while folder.ahead.failure(&last).is_none() {
            std::thread::yield_now();
        }
        folder.forget("m").unwrap();
        assert_eq!(folder.write("m", &name("a"), 0, &[b"anew"], None), Ok(Written::Yes));
        assert_eq!(folder.sync("m", &name("a")), Ok(()));
    }

    #[test]
    fn a_list_is_the_least_names_in_their_order() {
        let root = tempfile::tempdir().unwrap();
        let mut folder = Folder::new(root.path(), 0, Ahead::start().unwrap());
        let numbered = |number: usize| name(&format!("n{number:05}"));
        for number in (0..SCAN_LIMIT + 5).rev() {
            let _ = folder.write("m", &numbered(number), 0, &[b""], None).unwrap();
        }
        let first = folder.list("m", None).unwrap();
        assert_eq!(first, (0..SCAN_LIMIT).map(numbered).collect::<Vec<_>>());
        let rest = folder.list("m", first.last()).unwrap();
        assert_eq!(rest, (SCAN_LIMIT..SCAN_LIMIT + 5).map(numbered).collect::<Vec<_>>());
    }
}
