//! The temporary folder of one run of `openred module dev`: made, locked while the run lasts, removed with it.
//!
//! A run that was killed removes nothing, and leaves a key and a passphrase: so each run first removes what others have left. That is what lies
//! where such folders do under a name as theirs, belongs to the same user, and is locked by nobody: neither by a run nor by a node that still ends.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use openred_policy::socket::open_no_symlinks;

use crate::cli::{Exit, Failure};
use crate::home::Home;

/// Before a random part.
const PREFIX: &str = "openred-dev.";
/// Folders that are made until one is kept: another run may take one for left before it is locked.
const TRIES: usize = 8;
/// As root, the node's processes have uids of their own and go through it.
const MODE: u32 = 0o711;

/// See the file's head.
pub(super) struct Folder {
    path: PathBuf,
    _lock: File,
}

impl Folder {
    /// Removes what is left of others, and makes one; which were removed.
    pub(super) fn make() -> Result<(Self, Vec<PathBuf>), Failure> {
        let above = std::env::temp_dir();
        // Its links are the user's own choice; below it none counts.
        Self::make_in(&above.canonicalize().map_err(|error| Failure::local(above.display(), &error))?)
    }

    fn make_in(above: &Path) -> Result<(Self, Vec<PathBuf>), Failure> {
        let left = remove_left(above);
        for _ in 0..TRIES {
            let path = above.join(format!("{PREFIX}{}", hex::encode(super::node::random()?)));
            let local = |error| Failure::local(path.display(), &error);
            DirBuilder::new().mode(MODE).create(&path).map_err(local)?;
            if let Some(lock) = locked(&path) {
                lock.set_permissions(Permissions::from_mode(MODE)).map_err(local)?;
                return Ok((Self { path, _lock: lock }, left));
            }
        }
        let what = format!("{}: other runs of `openred module dev` take each new folder away", above.display());
        Err(Failure::new(Exit::Conflict, "conflict", what, "try again"))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// The folder there, if it is this user's and nobody has locked it: locked now.
fn locked(path: &Path) -> Option<File> {
    let folder = open_no_symlinks(path, OFlag::O_RDONLY | OFlag::O_DIRECTORY, 0).ok()?;
    let opened = folder.metadata().ok()?;
    if opened.uid() != nix::unistd::geteuid().as_raw() || folder.try_lock().is_err() {
        return None;
    }
    // It may have been removed between the two.
    let there = fs::symlink_metadata(path).ok()?;
    ((there.dev(), there.ino()) == (opened.dev(), opened.ino())).then_some(folder)
}

/// Whether a node runs in it: one whose `dev` was killed takes a moment to end.
fn has_a_node(folder: &Path) -> bool {
    let lock = Home::new(folder.join(super::node::HOME)).lock();
    match open_no_symlinks(&lock, OFlag::O_RDONLY, 0) {
        Ok(file) => file.try_lock().is_err(),
        Err(error) => error.kind() != ErrorKind::NotFound,
    }
}

fn remove_left(above: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(above) else { return Vec::new() };
    let mut left = Vec::new();
    for entry in entries.filter_map(Result::ok) {
        if !entry.file_name().to_str().is_some_and(|name| name.starts_with(PREFIX)) {
            continue;
        }
        let path = entry.path();
        let Some(_lock) = locked(&path) else { continue };
        // What is in it is removed by descriptors, so that no link is followed.
        if !has_a_node(&path) && fs::remove_dir_all(&path).is_ok() {
            left.push(path);
        }
    }
    left
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn what_a_killed_run_left_is_removed_and_nothing_else() {
        let above = tempfile::tempdir().unwrap();
        let place = |name: &str| above.path().join(name);
        let folder = |name: &str| {
            let run = Home::new(place(name).join("node")).run();
            fs::create_dir_all(run).unwrap();
            fs::write(place(name).join("publisher.key"), "a key").unwrap();
            place(name)
        };
        let (left, used, other) = (folder("openred-dev.left"), folder("openred-dev.used"), folder("other"));
        let ending = folder("openred-dev.ending");
        let _used = locked(&used).unwrap();
        let lock = File::create(Home::new(ending.join("node")).lock()).unwrap();
        lock.try_lock().unwrap();
        // Links lead out of what is removed, and one looks like a folder that was left.
        std::os::unix::fs::symlink(&other, left.join("out")).unwrap();
        std::os::unix::fs::symlink(&other, place("openred-dev.link")).unwrap();
        fs::write(place("openred-dev.file"), "").unwrap();
        let foreign = folder("openred-dev.foreign");
        let as_root = nix::unistd::geteuid().is_root();
        if as_root {
            std::os::unix::fs::chown(&foreign, Some(4711), None).unwrap();
        }

        let (own, mut removed) = Folder::make_in(above.path()).unwrap();
        removed.retain(|path| as_root || *path != foreign);
        assert_eq!(removed, [left]);
        for kept in [&used, &other, &ending] {
            assert!(kept.join("publisher.key").exists(), "{}", kept.display());
        }
        assert!(!as_root || foreign.join("publisher.key").exists());
        assert!(fs::symlink_metadata(place("openred-dev.link")).is_ok() && place("openred-dev.file").exists());

        // This run's is its own until it ends; the node's goes once that has ended.
        drop(lock);
        let (next, removed) = Folder::make_in(above.path()).unwrap();
        assert_eq!(removed, [ending]);
        assert!(own.path().is_dir());
        let paths = [own.path().to_owned(), next.path().to_owned()];
        drop((own, next));
        assert!(paths.iter().all(|path| !path.exists()));
    }
}
