//! Whether the files that stand at the database's place are still those that this process has open. Who deletes them, or lays others in their
//! place, takes nothing away from a process that has them open: it would go on, and what it acknowledged would be gone at its end.
//!
//! Another file at a name shows by its device and number. A file that was written over keeps both: then the database's time and length tell,
//! which only the process that writes it changes, and which it notes after each of its transactions; and the length of the write-ahead log,
//! which never becomes less (decision 0066).

use std::fs::{Metadata, metadata};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::error::{Error, Result};

/// What SQLite keeps beside the database: the write-ahead log, and its index.
const BESIDE: [&str; 2] = ["-wal", "-shm"];

/// What a transaction leaves: the database's time and length, and the length of the write-ahead log.
#[derive(Debug)]
struct Left {
    database: (SystemTime, u64),
    log: u64,
}

/// The database's place.
#[derive(Debug)]
pub(super) struct Place {
    path: PathBuf,
    /// Each file that is open, and what it is known by.
    files: Vec<(PathBuf, (u64, u64))>,
    /// What the last transaction left.
    left: Option<Left>,
    /// It was written over, and is not what is open any more, whatever is done about it.
    spoilt: bool,
}

impl Place {
    /// Of a database that is open. Files that are not there yet are not looked for.
    pub(super) fn of(path: &Path) -> Self {
        let beside = BESIDE.iter().map(|end| PathBuf::from(format!("{}{end}", path.display())));
        let files = std::iter::once(path.to_owned()).chain(beside);
        let files = files.filter_map(|file| Some((file.clone(), identity(&metadata(file).ok()?))));
        Self { path: path.to_owned(), files: files.collect(), left: None, spoilt: false }
    }

    /// That the files are those that are open.
    ///
    /// # Errors
    /// [`Error::LocalStoreGone`].
    pub(super) fn is_kept(&self) -> Result<()> {
        let kept = |(file, open): &(PathBuf, (u64, u64))| metadata(file).is_ok_and(|found| identity(&found) == *open);
        if self.files.iter().all(kept) { Ok(()) } else { Err(self.gone()) }
    }

    /// The same, and that nobody has written to the database since the last transaction.
    ///
    /// # Errors
    /// [`Error::LocalStoreGone`].
    pub(super) fn is_as_left(&mut self) -> Result<()> {
        self.is_kept()?;
        if let (Some(left), Some(found)) = (&self.left, self.state()) {
            self.spoilt |= found.database != left.database || found.log < left.log;
        }
        if self.spoilt { Err(self.gone()) } else { Ok(()) }
    }

    /// After a transaction of this process.
    pub(super) fn leave(&mut self) {
        self.left = self.state();
    }

    fn state(&self) -> Option<Left> {
        let found = metadata(&self.path).ok()?;
        let log = self.files.get(1).and_then(|(log, _)| metadata(log).ok()).map_or(0, |log| log.len());
        Some(Left { database: (found.modified().ok()?, found.len()), log })
    }

    fn gone(&self) -> Error {
        Error::LocalStoreGone { path: self.path.clone() }
    }
}

fn identity(found: &Metadata) -> (u64, u64) {
    (found.dev(), found.ino())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::super::SqliteStore;
    use super::*;
    use crate::store::{CardReader as _, CardStore as _};

    /// A database with its files, and a store that has them open.
    fn open() -> (tempfile::TempDir, PathBuf, SqliteStore) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("db");
        let mut store = SqliteStore::open(&path, 64).unwrap();
        write(&mut store).unwrap();
        (folder, path, store)
    }

    fn write(store: &mut SqliteStore) -> Result<()> {
        store.begin()?;
        let done = store.end_run(1).and_then(|()| store.commit());
        if done.is_err() {
            store.roll_back();
        }
        done
    }

    fn is_gone<T>(result: Result<T>) -> bool {
        matches!(result, Err(Error::LocalStoreGone { .. }))
    }

    #[test]
    fn what_is_deleted_moved_away_or_replaced_is_noticed_before_and_after_a_transaction() {
        for end in ["", "-wal", "-shm"] {
            let (folder, path, mut store) = open();
            let mut reader = SqliteStore::open_reader(&path).unwrap();
            let file = PathBuf::from(format!("{}{end}", path.display()));
            let away = folder.path().join("away");
            std::fs::rename(&file, &away).unwrap();
            assert!(is_gone(write(&mut store)) && is_gone(reader.check()), "{end} is away");
            std::fs::copy(&away, &file).unwrap();
            assert!(is_gone(write(&mut store)) && is_gone(reader.check()), "{end} is a copy");
            std::fs::rename(&away, &file).unwrap();
            write(&mut store).unwrap();
            reader.check().unwrap();
            store.begin().unwrap();
            store.end_run(2).unwrap();
            std::fs::remove_file(&file).unwrap();
            assert!(is_gone(store.commit()), "{end} went meanwhile: what was made durable is nowhere");
        }
    }

    #[test]
    fn a_database_that_is_written_over_is_noticed_and_stays_so() {
        let (folder, path, mut store) = open();
        let backup = folder.path().join("backup");
        std::fs::copy(&path, &backup).unwrap();
        // A file's time has steps of some milliseconds.
        let before = metadata(&path).unwrap().modified().unwrap();
        while metadata(&path).unwrap().modified().unwrap() == before {
            std::fs::copy(&backup, &path).unwrap();
        }
        assert!(is_gone(write(&mut store)) && is_gone(write(&mut store)));
        let (_folder, path, mut store) = open();
        std::fs::File::create(format!("{}-wal", path.display())).unwrap();
        assert!(is_gone(write(&mut store)), "what stood in the write-ahead log alone");
    }

    #[test]
    fn what_the_directory_does_itself_is_no_surprise() {
        let (_folder, path, mut store) = open();
        for _ in 0..3 {
            // Pages go to their places in the file: its time and length change.
            store.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
            store.place.leave();
            write(&mut store).unwrap();
        }
        // Who looks at it from outside changes nothing.
        assert_eq!(SqliteStore::open_checked(&path).unwrap().log_end().unwrap().size, 0);
        assert_eq!(super::super::migrate::faults(&path), [""; 0]);
        write(&mut store).unwrap();
    }
}
