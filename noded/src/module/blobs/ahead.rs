//! Writing out ahead: what was written to a long blob goes to the disk while more of it comes. Else the kernel keeps all of it, and who has it made durable in
//! the end waits for the disk as long as the bytes took to come, once more.
//!
//! In: paths of files with much that is not written out. Out: nothing but failures, which whoever syncs that file next is told: the kernel tells each of them
//! once, and this thread may be the one that hears of it. Durable is what `sync` has answered for, as without this.

use std::collections::HashMap;
use std::fs::{File, OpenOptions, symlink_metadata};
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use nix::fcntl::OFlag;

/// Bytes after which a file is written out: enough for a disk to be busy with, and few to wait for in the end.
pub(super) const STEP: u64 = 32 << 20;
/// Files that wait. One that finds no room comes again with its next bytes.
const WAITING: usize = 4;

/// Paths whose writing out has failed.
#[derive(Clone, Default)]
struct Failed(Arc<Mutex<HashMap<PathBuf, ErrorKind>>>);

impl Failed {
    fn paths(&self) -> MutexGuard<'_, HashMap<PathBuf, ErrorKind>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that this file could not be written out, if it still has its name: what has that now is not what failed.
    fn note(&self, path: PathBuf, file: Option<&File>, kind: ErrorKind) {
        // Under the lock: who takes a name from a file asks for its failures afterwards.
        let mut paths = self.paths();
        let Ok(there) = symlink_metadata(&path) else { return };
        let is_there = |own: std::fs::Metadata| (own.dev(), own.ino()) == (there.dev(), there.ino());
        if file.is_none_or(|file| file.metadata().is_ok_and(is_there)) {
            paths.insert(path, kind);
        }
    }
}

/// A hold on the thread, which ends with it.
pub(super) struct Ahead {
    queue: Option<SyncSender<PathBuf>>,
    failed: Failed,
    thread: Option<JoinHandle<()>>,
}

impl Ahead {
    pub(super) fn start() -> std::io::Result<Self> {
        let (queue, paths) = sync_channel(WAITING);
        let failed = Failed::default();
        let noted = failed.clone();
        let thread =
            std::thread::Builder::new().name("disk-ahead".to_owned()).spawn(move || write_out(&paths, &noted))?;
        Ok(Self { queue: Some(queue), failed, thread: Some(thread) })
    }

    /// Has a file written out; false where too many wait.
    pub(super) fn begin(&self, path: &Path) -> bool {
        self.queue.as_ref().is_some_and(|queue| queue.try_send(path.to_owned()).is_ok())
    }

    /// How that has failed for this file since it was asked last.
    pub(super) fn failure(&self, path: &Path) -> Option<ErrorKind> {
        self.failed.paths().remove(path)
    }

    /// Nothing in this folder is known of any more.
    pub(super) fn forget(&self, folder: &Path) {
        self.failed.paths().retain(|path, _| !path.starts_with(folder));
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been reported by the panic hook.
            let _ = thread.join();
        }
    }
}

fn write_out(paths: &Receiver<PathBuf>, failed: &Failed) {
    while let Ok(path) = paths.recv() {
        let file = OpenOptions::new().read(true).custom_flags(OFlag::O_NOFOLLOW.bits()).open(&path);
        let kind = match &file {
            Ok(file) => file.sync_data().err().map(|error| error.kind()),
            Err(error) => Some(error.kind()),
        };
        match kind {
            // Deleted or renamed meanwhile: who did so has synced it, or wants it no more.
            None | Some(ErrorKind::NotFound) => {}
            Some(kind) => {
                tracing::error!(?kind, "a blob could not be written out");
                failed.note(path, file.as_ref().ok(), kind);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn what_is_gone_is_no_failure_and_what_fails_is_told_once() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, [7; 4096]).unwrap();
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&file, &link).unwrap();
        let ahead = Ahead::start().unwrap();
        for path in [&file, &folder.path().join("gone"), &link] {
            while !ahead.begin(path) {
                std::thread::yield_now();
            }
        }
        let failed = ahead.failed.clone();
        drop(ahead);
        // What it will not open stands for a disk that fails.
        assert_eq!(failed.paths().keys().collect::<Vec<_>>(), [&link]);
        let ahead = Ahead { queue: None, failed, thread: None };
        assert!(ahead.failure(&file).is_none() && ahead.failure(&link).is_some() && ahead.failure(&link).is_none());
    }

    #[test]
    fn what_has_the_name_of_a_file_that_failed_has_not_failed() {
        let folder = tempfile::tempdir().unwrap();
        let (failed, path) = (Failed::default(), folder.path().join("file"));
        std::fs::write(&path, "first").unwrap();
        let first = File::open(&path).unwrap();
        failed.note(path.clone(), Some(&first), ErrorKind::Other);
        assert_eq!(failed.paths().remove(&path), Some(ErrorKind::Other));
        std::fs::remove_file(&path).unwrap();
        failed.note(path.clone(), Some(&first), ErrorKind::Other);
        std::fs::write(&path, "second").unwrap();
        failed.note(path.clone(), Some(&first), ErrorKind::Other);
        assert!(failed.paths().is_empty());
    }
}
