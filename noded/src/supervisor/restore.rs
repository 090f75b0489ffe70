//! Exchanges a node's parts in its home so that at every moment the old ones or the new ones are whole: all of them for a restored
//! node, some for a restored key or another identity.
//!
//! The new ones are laid out in a folder beside the home's and made durable. That folder's rename is the moment of the change: before it
//! the home is untouched; after it whoever takes the home next, this command or a later one, carries the exchange to its end. What was there is
//! moved aside, never deleted, but for the vault's state of a node that goes on: the new one is the same with its short-lived keys
//! drawn anew, and those of before are not to be kept. In: files that were verified. Out: a home.

use std::fs::{self, File};
use std::io::{ErrorKind, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use openred_policy::socket::sync_directory;
use serde::{Deserialize, Serialize};

use super::backup::failed;
use super::keystore::put;
use super::places::{lock_alone, make_private};
use crate::archive::{ArchiveError, Manifest};
use crate::cli::{Exit, Failure};
use crate::home::Home;
use crate::packages::unpack;

/// The layout's name while it is read from a backup.
const RESTORING: &str = "restoring";
/// The layout's name while it is made of what is here: a key or another identity for it.
const CHANGING: &str = "changing";
/// Its name once it is whole.
const READY: &str = "restored";
/// In it: where files are read to,
const READ: &str = "read";
/// what goes into the home,
const NEW: &str = "new";
/// and what it is.
const NOTE: &str = "note.json";
/// The vault's state of a node that goes on, which takes the place of the one that is there.
const STATE: &str = "vault-state";
/// What of `audit/` goes on under another identity beside the two segments: what the trail is owed, and the operator's word.
const WORDS: [fn(&Home) -> PathBuf; 2] = [Home::audit_owed, Home::audit_anew];
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

/// What is put in place, and by what it is known again: a command that was cut short is given once more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Change {
    /// The node of the backup with this manifest.
    #[serde(rename = "manifest")]
    Node(Manifest),
    /// The key of the file with this SHA-256.
    #[serde(rename = "key")]
    Key(String),
    /// The keystore of this identity, which goes on for the one that was there.
    #[serde(rename = "successor")]
    Successor(String),
    /// The keystore of this identity, which has taken its word for another back.
    #[serde(rename = "taken_back")]
    TakenBack(String),
}

/// What is noted of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Note {
    #[serde(flatten)]
    change: Change,
    /// Name of the folder for what was there.
    replaced: String,
}

/// An exchange that is done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Finished {
    pub(crate) change: Change,
    /// Where that lies which was there, if anything was.
    pub(crate) aside: Option<PathBuf>,
}

/// A part of a node in its home.
struct Part {
    /// Its name in a layout, and among what was moved aside.
    name: &'static str,
    place: PathBuf,
    /// What was there is moved aside; otherwise it is replaced.
    is_kept: bool,
}

/// What a node in its home consists of, in the order in which it is exchanged. Those that a layout does not hold stay.
fn parts(home: &Home) -> [Part; 7] {
    let kept = |name, place| Part { name, place, is_kept: true };
    [
        kept("vault", home.vault()),
        kept("state", home.state()),
        kept("audit", home.audit()),
        kept("openred.toml", home.config()),
        kept("keystore.age", home.keystore()),
        Part { name: STATE, place: home.vault_state(), is_kept: false },
        kept("modules", home.packages()),
    ]
}

/// New parts beside the home that they are for. Dropped before it is ready it leaves nothing.
pub(crate) struct Layout<'a> {
    home: &'a Home,
    folder: PathBuf,
}

impl<'a> Layout<'a> {
    /// Begins one for a whole node, which is read from a backup.
    pub(crate) fn of_node(home: &'a Home) -> Result<Self, Failure> {
        Self::begin(home, RESTORING, &[READ, "new/vault", "new/state", "new/audit", "new/modules"])
    }

    /// Begins one for another key of the node that is here.
    pub(crate) fn of_key(home: &'a Home) -> Result<Self, Failure> {
        Self::begin(home, CHANGING, &[])
    }

    /// In the place of what a killed one has left.
    fn begin(home: &'a Home, name: &str, folders: &[&str]) -> Result<Self, Failure> {
        let folder = home.path().join(name);
        remove_tree(&folder)?;
        if !is_pending(home) {
            clear_asides(home);
        }
        let layout = Self { home, folder };
        layout.folders(&["", NEW])?;
        layout.folders(folders)?;
        Ok(layout)
    }

    fn folders(&self, names: &[&str]) -> Result<(), Failure> {
        for name in names {
            let folder = self.folder.join(name);
            make_private(&folder).map_err(failed(&folder))?;
        }
        Ok(())
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

    /// Lays out the installed modules that were read, if there were any.
    pub(crate) fn take_modules(&self, name: &str) -> Result<Result<(), ArchiveError>, Failure> {
        let read = self.reading().join(name);
        match File::open(&read) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Ok(())),
            Err(error) => Err(failed(&read)(error)),
            Ok(file) => Ok(unpack(std::io::BufReader::new(file), &self.at(&self.home.packages()))),
        }
    }

    /// Writes a small file.
    pub(crate) fn put(&self, place: &Path, content: &[u8]) -> Result<(), Failure> {
        put(&self.at(place), content, true, |_| ())
    }

    /// Writes the state of a vault that goes on, for the place of the one that is there.
    pub(crate) fn put_state(&self, content: &[u8]) -> Result<(), Failure> {
        put(&self.folder.join(NEW).join(STATE), content, true, |_| ())
    }

    /// The trail for another identity: its vault knows the earlier one's segments as they stand, and begins its own over them. So they go
    /// on as copies, and all that was there, the filed ones above all, is moved aside with the identity that signed it.
    pub(crate) fn copy_trail(&self) -> Result<(), Failure> {
        self.folders(&["new/audit", "new/audit/filed"])?;
        for place in self.home.audit_segments().into_iter().chain(WORDS.map(|word| word(self.home))) {
            match fs::copy(&place, self.at(&place)) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(failed(&place)(error)),
                _ => {}
            }
        }
        Ok(())
    }

    /// From here on it is the node of this home.
    pub(crate) fn commit(self, change: Change, mut after: impl FnMut(Step)) -> Result<(), Failure> {
        self.can_be_moved()?;
        let note = Note { change, replaced: format!("{REPLACED}{}", super::now()) };
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

    /// Whether each part that is there and has a successor lies on the home's file system, and can so be moved within it.
    fn can_be_moved(&self) -> Result<(), Failure> {
        let device = |place: &Path| fs::symlink_metadata(place).map(|seen| seen.dev());
        let home_is_on = device(self.home.path()).map_err(failed(self.home.path()))?;
        let exchanged = |part: &Part| self.folder.join(NEW).join(part.name).symlink_metadata().is_ok();
        for Part { place, .. } in parts(self.home).into_iter().filter(exchanged) {
            match device(&place) {
                Ok(is_on) if is_on != home_is_on => {
                    let what = format!(
                        "{} lies on another file system than the home, and cannot be exchanged in one step",
                        place.display()
                    );
                    let out = "put all of the home on one file system: unmount this part and move it there";
                    return Err(Failure::new(Exit::Failed, "restore.elsewhere", what, out));
                }
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(failed(&place)(error)),
                _ => {}
            }
        }
        Ok(())
    }
}

impl Drop for Layout<'_> {
    fn drop(&mut self) {
        // Once it is ready it has another name.
        let _ = remove_tree(&self.folder);
    }
}

/// Where that lies which a restore has left that was killed before its moment. The home is untouched by it, and it may be all that is left
/// of a backup that came through a pipe: its operator removes it, or the next restore.
pub(crate) fn unfinished(home: &Home) -> PathBuf {
    home.path().join(RESTORING)
}

/// Removes what a change of key has left that was killed before its moment, for who holds the lock: it was made of what is still there.
pub(crate) fn clear(home: &Home) -> Result<(), Failure> {
    remove_tree(&home.path().join(CHANGING))
}

/// Removes the folders for what is replaced that a process left empty which was killed before its moment.
fn clear_asides(home: &Home) {
    let entries = fs::read_dir(home.path()).into_iter().flatten().flatten();
    for entry in entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(REPLACED)) {
        // One that holds something is what an operator keeps.
        let _ = fs::remove_dir(entry.path());
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
        let Part { name, place, is_kept } = part;
        let (fresh, older) = (ready.join(NEW).join(name), aside.join(name));
        if fresh.symlink_metadata().is_err() {
            continue;
        }
        if *is_kept && place.symlink_metadata().is_ok() {
            make_private(&aside).map_err(failed(&aside))?;
            fs::rename(place, &older).map_err(failed(place))?;
            sync_directory(&aside).and_then(|()| sync_directory(home.path())).map_err(failed(&aside))?;
            after(Step::Aside(number));
        }
        fs::rename(&fresh, place).map_err(failed(place))?;
        sync_directory(place.parent().unwrap_or(home.path())).map_err(failed(place))?;
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
    Ok(Some(Finished { change: note.change, aside }))
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
        let what = format!(
            "{}: what was to be put in place waits here, and what is noted of it cannot be read",
            ready.display()
        );
        Failure::new(Exit::Failed, "restore.damaged", what, "move this folder away and give the command again")
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
