//! Puts a restored node into its home so that at every moment the old one or the new one is whole.
//!
//! The new one is laid out in a folder beside it and made durable. That folder's rename is the moment of the change: before it
//! the home is untouched; after it whoever takes the home next, this command or a later one, carries the exchange to its end. What was there is
//! moved aside, never deleted. In: files that were verified. Out: a home.

use std::fs::{self, File};
use std::io::{ErrorKind, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use openred_policy::socket::sync_directory;
use serde::{Deserialize, Serialize};

use super::backup::failed;
use super::keystore::put;
use super::places::{lock_alone, make_private};
use crate::archive::Manifest;
use crate::cli::{Exit, Failure};
use crate::home::Home;

/// The layout's name while it is made. Nobody but a restore looks at it.
const LAYING: &str = "restoring";
/// Its name once it is whole.
const READY: &str = "restored";
/// In it: where files are read to,
const READ: &str = "read";
/// what goes into the home,
const NEW: &str = "new";
/// and what it is.
const NOTE: &str = "note.json";
/// Longest note: a backup's manifest and a name.
const NOTE_BYTES: u64 = 64 * 1024;
/// How folders are called in which a replaced node lies.
const REPLACED: &str = "replaced-";

/// Where an exchange has got to; the fault test kills the process at each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// All of the new node is on the disk.
    Laid,
    /// It has the name that makes it the one to be put in place.
    Ready,
    /// The part of this number was moved aside.
    Aside(usize),
    /// Its successor is in place.
    Placed(usize),
    /// All are; the layout is still there.
    Whole,
    /// It is gone.
    Done,
}

/// What is put in place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Note {
    manifest: Manifest,
    /// Name of the folder for what was there.
    replaced: String,
}

/// An exchange that is done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Finished {
    /// Of the backup.
    pub(crate) manifest: Manifest,
    /// Where the node lies that was there, if any was.
    pub(crate) aside: Option<PathBuf>,
}

/// What a node in its home consists of, in the order in which it is exchanged.
fn parts(home: &Home) -> [PathBuf; 5] {
    [home.vault(), home.state(), home.audit(), home.config(), home.keystore()]
}

/// A new node beside the home that it is for. Dropped before it is ready it leaves nothing.
pub(crate) struct Layout<'a> {
    home: &'a Home,
    folder: PathBuf,
}

impl<'a> Layout<'a> {
    /// Begins one, in the place of what a killed restore has left.
    pub(crate) fn begin(home: &'a Home) -> Result<Self, Failure> {
        let folder = home.path().join(LAYING);
        remove_tree(&folder)?;
        let layout = Self { home, folder };
        for folder in ["", READ, NEW, "new/vault", "new/state", "new/audit"] {
            let folder = layout.folder.join(folder);
            make_private(&folder).map_err(failed(&folder))?;
        }
        Ok(layout)
    }

    /// Where a backup's files are read to.
    pub(crate) fn reading(&self) -> PathBuf {
        self.folder.join(READ)
    }

    /// Where a file or folder goes that is `place` in the home.
    fn at(&self, place: &Path) -> PathBuf {
        let inside = place.strip_prefix(self.home.path()).unwrap_or(place);
        self.folder.join(NEW).join(inside)
    }

    /// Takes over what was read, if there is any of it.
    pub(crate) fn take(&self, name: &str, place: &Path) -> Result<(), Failure> {
        let (read, target) = (self.reading().join(name), self.at(place));
        let is_there = fs::metadata(&read).is_ok_and(|seen| seen.is_dir() || seen.len() > 0);
        if is_there { fs::rename(&read, &target).map_err(failed(&target)) } else { Ok(()) }
    }

    /// Writes a small file.
    pub(crate) fn put(&self, place: &Path, content: &[u8]) -> Result<(), Failure> {
        put(&self.at(place), content, true, |_| ())
    }

    /// From here on it is the node of this home.
    pub(crate) fn commit(self, manifest: &Manifest, mut after: impl FnMut(Step)) -> Result<(), Failure> {
        can_be_moved(self.home)?;
        let note = Note { manifest: manifest.clone(), replaced: format!("{REPLACED}{}", super::now()) };
        let text = serde_json::to_vec(&note).map_err(|error| failed(&self.folder)(error.into()))?;
        put(&self.folder.join(NOTE), &text, true, |_| ())?;
        remove_tree(&self.reading())?;
        // Whole files of any number at once, and their folders.
        let synced = File::open(&self.folder).and_then(|folder| Ok(nix::unistd::syncfs(folder)?));
        synced.map_err(failed(&self.folder))?;
        after(Step::Laid);
        // Made while there is a way back: behind the moment of the change a full disk must stop nothing.
        let aside = self.home.path().join(&note.replaced);
        make_private(&aside).map_err(failed(&aside))?;
        let ready = self.home.path().join(READY);
        fs::rename(&self.folder, &ready).map_err(|error| {
            let _ = fs::remove_dir(&aside);
            failed(&ready)(error)
        })?;
        sync_directory(self.home.path()).map_err(failed(self.home.path()))?;
        after(Step::Ready);
        Ok(())
    }
}

/// Whether each part that is there lies on the home's file system, and can so be moved within it.
fn can_be_moved(home: &Home) -> Result<(), Failure> {
    let device = |place: &Path| fs::symlink_metadata(place).map(|seen| seen.dev());
    let home_is_on = device(home.path()).map_err(failed(home.path()))?;
    for part in parts(home) {
        match device(&part) {
            Ok(is_on) if is_on != home_is_on => {
                let what =
                    format!("{} lies on another file system than the home, and cannot be moved aside", part.display());
                let out = "restore into a home that is all on one file system, or unmount this part and move it there";
                return Err(Failure::new(Exit::Failed, "restore.elsewhere", what, out));
            }
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(failed(&part)(error)),
            _ => {}
        }
    }
    Ok(())
}

impl Drop for Layout<'_> {
    fn drop(&mut self) {
        // Once it is ready it has another name.
        let _ = remove_tree(&self.folder);
    }
}

/// Whether a new node waits to be put in place.
pub(crate) fn is_pending(home: &Home) -> bool {
    home.path().join(READY).symlink_metadata().is_ok()
}

/// Carries an exchange that was cut short to its end, for a home that nobody holds.
pub(crate) fn finish_pending(home: &Home) -> Result<Option<Finished>, Failure> {
    if !is_pending(home) {
        return Ok(None);
    }
    let _lock = lock_alone(home)?;
    finish(home, |_| ())
}

/// The same for who holds the lock. Each part is exchanged as long as its successor waits, so that it does not matter how often this
/// is begun.
pub(crate) fn finish(home: &Home, mut after: impl FnMut(Step)) -> Result<Option<Finished>, Failure> {
    let ready = home.path().join(READY);
    if !is_pending(home) {
        return Ok(None);
    }
    // What is left to do is durable below `new`; without the note it was emptied and is being removed.
    let note = match read_note(&ready)? {
        Some(note) => note,
        None => return remove_tree(&ready).map(|()| None),
    };
    let aside = home.path().join(&note.replaced);
    for (number, part) in parts(home).iter().enumerate() {
        let name = part.file_name().unwrap_or_default();
        let (fresh, older) = (ready.join(NEW).join(name), aside.join(name));
        if fresh.symlink_metadata().is_err() {
            continue;
        }
        if part.symlink_metadata().is_ok() {
            make_private(&aside).map_err(failed(&aside))?;
            fs::rename(part, &older).map_err(failed(part))?;
            sync_directory(&aside).and_then(|()| sync_directory(home.path())).map_err(failed(&aside))?;
            after(Step::Aside(number));
        }
        fs::rename(&fresh, part).map_err(failed(part))?;
        sync_directory(home.path()).map_err(failed(part))?;
        after(Step::Placed(number));
    }
    after(Step::Whole);
    fs::remove_file(ready.join(NOTE)).map_err(failed(&ready))?;
    sync_directory(&ready).map_err(failed(&ready))?;
    remove_tree(&ready)?;
    sync_directory(home.path()).map_err(failed(home.path()))?;
    // Where there was nothing to move it is empty.
    let _ = fs::remove_dir(&aside);
    after(Step::Done);
    let aside = aside.symlink_metadata().is_ok().then_some(aside);
    Ok(Some(Finished { manifest: note.manifest, aside }))
}

fn read_note(ready: &Path) -> Result<Option<Note>, Failure> {
    let place = ready.join(NOTE);
    let mut text = Vec::new();
    match File::open(&place).and_then(|file| file.take(NOTE_BYTES).read_to_end(&mut text)) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        read => read.map_err(failed(&place))?,
    };
    let note = serde_json::from_slice::<Note>(&text).ok();
    let note = note.filter(|note| note.replaced.starts_with(REPLACED) && !note.replaced.contains('/'));
    let damaged = || {
        let what = format!("{}: a restored node waits here, and what is noted of it cannot be read", ready.display());
        Failure::new(Exit::Failed, "restore.damaged", what, "move this folder away and restore the backup again")
    };
    note.map(Some).ok_or_else(damaged)
}

fn remove_tree(folder: &Path) -> Result<(), Failure> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(failed(folder)(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
#[path = "restore_tests.rs"]
mod tests;
