//! The keystore as a file: looked at before it is opened for the unsealer, and put in place so that at every moment either
//! the old one or the new one is there, whole.

use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{AT_FDCWD, OFlag, RenameFlags, renameat2};
use openred_policy::socket::{open_no_symlinks, sync_directory};

use super::places::remove;
use crate::cli::{Exit, Failure};

/// Longest keystore file; the unsealer reads no further.
const KEYSTORE_BYTES: u64 = 16 * 1024;

/// Opens a keystore for the unsealer, or says by name why it is none of this user's: kind, owner, mode, length.
pub(crate) fn open(place: &Path) -> Result<File, Failure> {
    let shown = &place.display();
    let file = open_no_symlinks(place, OFlag::O_RDONLY | OFlag::O_NONBLOCK, 0).map_err(|error| match error.kind() {
        ErrorKind::NotFound => Failure::new(
            Exit::NotFound,
            "keystore.missing",
            format!("{}: no keystore", place.parent().unwrap_or(place).display()),
            "make a node with `openred init`, or bring its key back with `openred key restore`",
        ),
        _ => Failure::local(shown, &error),
    })?;
    let seen = file.metadata().map_err(|error| Failure::local(shown, &error))?;
    let own = nix::unistd::geteuid().as_raw();
    if !seen.is_file() {
        let what = format!("{shown}: no regular file");
        return Err(Failure::new(
            Exit::Denied,
            "keystore.kind",
            what,
            "put the keystore itself there, no link or pipe",
        ));
    }
    if seen.uid() != own && seen.uid() != 0 {
        let what = format!("{shown}: belongs to uid {}, not to this user ({own})", seen.uid());
        let way_out = "run the node as its owner, or bring the keystore back from a backup as this user";
        return Err(Failure::new(Exit::Denied, "keystore.foreign", what, way_out));
    }
    if seen.mode() & 0o077 != 0 {
        let what = format!("{shown}: open to other users (mode {:03o})", seen.mode() & 0o777);
        let way_out = "chmod 600 it; who read it can try passphrases at leisure, so choose a new one if it was weak";
        return Err(Failure::new(Exit::Denied, "keystore.exposed", what, way_out));
    }
    if seen.len() == 0 || seen.len() > KEYSTORE_BYTES {
        let what = format!("{shown}: {} bytes; a keystore has 1 to {KEYSTORE_BYTES}", seen.len());
        let way_out = "bring it back with `openred key restore` from a backup";
        return Err(Failure::new(Exit::Failed, "keystore.length", what, way_out));
    }
    Ok(file)
}

/// Where a replacement has got to; the fault test kills the process after each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// The temporary file is there, and empty.
    Created,
    /// Half of it is written.
    Half,
    /// All of it is written.
    Written,
    /// Its content is on the disk.
    Synced,
    /// It has the final name.
    Renamed,
    /// The name is on the disk.
    Durable,
}

/// A file that is being written beside its final place. Dropped before its end it leaves nothing.
pub(crate) struct Fresh {
    pub(crate) file: File,
    temporary: PathBuf,
    place: PathBuf,
    kept: bool,
}

impl Fresh {
    /// Begins one for `place`, whose folder must have no symbolic link in its path.
    pub(crate) fn begin(place: &Path) -> Result<Self, Failure> {
        let mut temporary = place.as_os_str().to_owned();
        temporary.push(".new");
        let temporary = PathBuf::from(temporary);
        let failed = |error: io::Error| Failure::local(temporary.display(), &error);
        // Left by a writer that was killed; nobody ever looked at it.
        remove(&temporary).map_err(failed)?;
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL;
        let file = open_no_symlinks(&temporary, flags, 0o600).map_err(failed)?;
        Ok(Self { file, temporary, place: place.to_owned(), kept: false })
    }

    /// Makes it durable under its final name. Without `replace` what is there already stays, and this is a conflict.
    pub(crate) fn finish(mut self, replace: bool, mut after: impl FnMut(Step)) -> Result<(), Failure> {
        let failed = |error: io::Error| Failure::local(self.temporary.display(), &error);
        self.file.sync_all().map_err(failed)?;
        after(Step::Synced);
        let flags = if replace { RenameFlags::empty() } else { RenameFlags::RENAME_NOREPLACE };
        match renameat2(AT_FDCWD, &self.temporary, AT_FDCWD, &self.place, flags) {
            Err(nix::Error::EEXIST) => return Err(exists(&self.place)),
            renamed => renamed.map_err(|errno| Failure::local(self.place.display(), &errno.into()))?,
        }
        self.kept = true;
        after(Step::Renamed);
        let folder = self.place.parent().unwrap_or(Path::new("/"));
        sync_directory(folder).map_err(|error| Failure::local(folder.display(), &error))?;
        after(Step::Durable);
        Ok(())
    }
}

impl Drop for Fresh {
    fn drop(&mut self) {
        if !self.kept {
            let _ = remove(&self.temporary);
        }
    }
}

fn exists(place: &Path) -> Failure {
    let what = format!("{}: it is there already", place.display());
    Failure::new(Exit::Conflict, "file.exists", what, "name another file; nothing is overwritten")
}

/// Puts `content` in `place`: temporary file, fsync, rename, fsync of the folder. `after` hears of each step.
pub(crate) fn put(place: &Path, content: &[u8], replace: bool, mut after: impl FnMut(Step)) -> Result<(), Failure> {
    let mut fresh = Fresh::begin(place)?;
    after(Step::Created);
    let (first, second) = content.split_at(content.len() / 2);
    let failed = |error: io::Error| Failure::local(place.display(), &error);
    fresh.file.write_all(first).map_err(failed)?;
    after(Step::Half);
    fresh.file.write_all(second).map_err(failed)?;
    after(Step::Written);
    fresh.finish(replace, after)
}

#[cfg(test)]
#[path = "keystore_tests.rs"]
mod tests;
