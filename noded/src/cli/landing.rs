//! Where a fetched file comes to rest: a temporary file beside its place, then its name, in one step.
//!
//! The name may come from a peer and the folder may be one that others write to. So the temporary name is random, nothing
//! that is there is followed, opened or replaced, and the file gets its name only if nobody has it. `--force` replaces
//! what has the name: the link itself, not what it points to.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, RenameFlags, renameat2};

use super::{Exit, Failure, one_line};

/// Random bytes in a temporary name: nobody guesses it, and no two runs draw the same.
const RANDOM: usize = 16;

/// A file on its way to its place. Dropped before [`Landing::land`], it leaves nothing.
#[derive(Debug)]
pub(super) struct Landing {
    place: PathBuf,
    temporary: PathBuf,
    file: File,
    landed: bool,
}

/// Refuses when something has this name already.
pub(super) fn free(place: &Path, force: bool) -> Result<(), Failure> {
    match fs::symlink_metadata(place) {
        Ok(_) if !force => Err(exists(place)),
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Failure::local(place.display(), &error)),
    }
}

fn exists(place: &Path) -> Failure {
    let what = format!("{}: exists already", one_line(&place.display().to_string()));
    Failure::new(Exit::Conflict, "file.exists", what, "name another place with --out, or replace it with --force")
}

fn folder_of(place: &Path) -> &Path {
    match place.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

impl Landing {
    /// A new, empty file beside `place`.
    pub(super) fn open(place: &Path) -> Result<Self, Failure> {
        let mut random = [0; RANDOM];
        getrandom::fill(&mut random).map_err(|_| Failure::local("random name", &io::Error::other("no randomness")))?;
        let temporary = folder_of(place).join(format!(".openred-{}.part", hex::encode(random)));
        let mut options = OpenOptions::new();
        options.write(true).create_new(true).custom_flags(OFlag::O_NOFOLLOW.bits());
        let file = options.open(&temporary).map_err(|error| Failure::local(place.display(), &error))?;
        Ok(Self { place: place.to_owned(), temporary, file, landed: false })
    }

    /// Appends.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        io::Write::write_all(&mut self.file, bytes).map_err(|error| Failure::local(self.place.display(), &error))
    }

    /// Gives the file its name, durably. Without `force` only if nothing has that name at that moment.
    pub(super) fn land(mut self, force: bool) -> Result<PathBuf, Failure> {
        let failed = |error: io::Error| match error.kind() {
            io::ErrorKind::AlreadyExists => exists(&self.place),
            _ => Failure::local(self.place.display(), &error),
        };
        self.file.sync_all().map_err(failed)?;
        let named =
            if force { fs::rename(&self.temporary, &self.place) } else { rename_new(&self.temporary, &self.place) };
        named.map_err(failed)?;
        self.landed = true;
        File::open(folder_of(&self.place)).and_then(|folder| folder.sync_all()).map_err(failed)?;
        Ok(std::mem::take(&mut self.place))
    }
}

impl Drop for Landing {
    fn drop(&mut self) {
        if !self.landed {
            // What cannot be removed is a hidden file of an unmistakable name.
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

/// Renames, replacing nothing.
fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    match renameat2(AT_FDCWD, from, AT_FDCWD, to, RenameFlags::RENAME_NOREPLACE) {
        // Some file systems do not know the flag (NFS, FUSE); a hard link never replaces either.
        Err(Errno::EINVAL | Errno::ENOSYS) => {
            fs::hard_link(from, to)?;
            fs::remove_file(from)
        }
        outcome => Ok(outcome?),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use std::os::unix::fs::symlink;

    fn landed(place: &Path, force: bool) -> Result<PathBuf, Failure> {
        let mut landing = Landing::open(place)?;
        landing.write(b"fetched")?;
        landing.land(force)
    }

    #[test]
    fn what_is_there_is_replaced_only_by_force_and_links_are_never_followed() {
        let folder = tempfile::tempdir().unwrap();
        let [notes, victim, link, broken] = ["notes", "victim", "link", "broken"].map(|name| folder.path().join(name));
        fs::write(&notes, "mine").unwrap();
        fs::write(&victim, "mine").unwrap();
        symlink(&victim, &link).unwrap();
        symlink(folder.path().join("nowhere"), &broken).unwrap();
        for place in [&notes, &link, &broken] {
            assert_eq!(free(place, false).unwrap_err().code, "file.exists", "{place:?}");
            // Also when it appears only after the first look.
            let refused = landed(place, false).unwrap_err();
            assert_eq!((refused.exit, refused.code.as_str()), (Exit::Conflict, "file.exists"), "{place:?}");
        }
        assert_eq!(fs::read_to_string(&notes).unwrap(), "mine");
        for place in [&notes, &link, &broken] {
            assert!(free(place, true).is_ok());
            assert_eq!(&landed(place, true).unwrap(), place);
            assert!(fs::symlink_metadata(place).unwrap().is_file());
            assert_eq!(fs::read_to_string(place).unwrap(), "fetched");
        }
        assert_eq!(fs::read_to_string(&victim).unwrap(), "mine");
        assert!(!folder.path().join("nowhere").exists());
        let names: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names.len(), 4, "nothing temporary is left: {names:?}");
    }

    #[test]
    fn a_temporary_name_cannot_be_foreseen_and_goes_with_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("x");
        let (victim, guess) = (folder.path().join("victim"), folder.path().join("x.part"));
        fs::write(&victim, "mine").unwrap();
        symlink(&victim, &guess).unwrap();
        let (one, other) = (Landing::open(&place).unwrap(), Landing::open(&place).unwrap());
        assert_ne!(one.temporary, other.temporary);
        drop((one, other));
        assert_eq!(landed(&place, false).unwrap(), place);
        assert_eq!(fs::read_to_string(&victim).unwrap(), "mine");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 3);
    }

    #[test]
    fn a_hard_link_replaces_nothing_either() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("from"), folder.path().join("to"));
        fs::write(&from, "new").unwrap();
        rename_new(&from, &to).unwrap();
        fs::write(&from, "newer").unwrap();
        assert_eq!(rename_new(&from, &to).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::hard_link(&from, &to).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read_to_string(&to).unwrap(), "new");
    }
}
