//! A folder for what a backup holds while that is only looked at: in the home, whose file system has room for its database, and no
//! longer there than it is used. One whose user was killed is removed by the next.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg, OFlag};

use super::backup::failed;
use super::places::make_private;
use crate::cli::{Exit, Failure};

/// How such folders are called; the process that uses one comes behind.
const NAME: &str = "openred-verifying-";
/// Names that are looked at for those that were left: more than a home has, and a bound where a folder for temporary files has many.
const LOOKED_AT: usize = 10_000;

/// Gone when it is dropped.
pub(super) struct Scratch {
    folder: PathBuf,
    /// As long as it is used.
    _held: Flock<File>,
}

impl Scratch {
    /// Below `home`, or where there is none that this user may write to, below the folder for temporary files.
    pub(super) fn new(home: &Path) -> Result<Self, Failure> {
        match Self::below(home) {
            Err(failure) if matches!(failure.exit, Exit::NotFound | Exit::Denied) => Self::below(&std::env::temp_dir()),
            made => made,
        }
    }

    fn below(place: &Path) -> Result<Self, Failure> {
        let place = place.canonicalize().map_err(failed(place))?;
        remove_left(&place);
        let folder = place.join(format!("{NAME}{}", std::process::id()));
        // Fails when it is there after all: then it is somebody else's.
        fs::create_dir(&folder).and_then(|()| make_private(&folder)).map_err(failed(&folder))?;
        let held = hold(&folder).map_err(failed(&folder))?;
        Ok(Self { folder, _held: held })
    }

    pub(super) fn path(&self) -> &Path {
        &self.folder
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn hold(folder: &Path) -> io::Result<Flock<File>> {
    let flags = (OFlag::O_NOFOLLOW | OFlag::O_DIRECTORY).bits();
    let file = File::options().read(true).custom_flags(flags).open(folder)?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| errno.into())
}

/// Removes this user's folders that nobody uses: their process is gone, and nobody holds them from where its number means another.
fn remove_left(place: &Path) {
    let own = nix::unistd::geteuid().as_raw();
    for entry in fs::read_dir(place).into_iter().flatten().take(LOOKED_AT).flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.strip_prefix(NAME)?.parse::<u32>().ok()) else { continue };
        let is_own = entry.metadata().is_ok_and(|seen| seen.is_dir() && seen.uid() == own);
        let is_used = pid != std::process::id() && Path::new("/proc").join(pid.to_string()).exists();
        if is_own
            && !is_used
            && let Ok(_held) = hold(&entry.path())
        {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::process::{Command, Stdio};

    use super::*;

    fn names(place: &Path) -> Vec<String> {
        let entries = fs::read_dir(place).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = entries.collect();
        names.sort();
        names
    }

    #[test]
    fn what_a_killed_one_left_is_removed_and_what_is_used_is_not() {
        let top = tempfile::tempdir().unwrap();
        let mut gone = Command::new("true").spawn().unwrap();
        gone.wait().unwrap();
        let mut lives = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let (left, used, held) =
            (format!("{NAME}{}", gone.id()), format!("{NAME}{}", lives.id()), format!("{NAME}{}", u32::MAX));
        for name in [&left, &used, &held, "openred-verifying-x", "other"] {
            fs::create_dir(top.path().join(name)).unwrap();
            fs::write(top.path().join(name).join("node.sqlite"), "x").unwrap();
        }
        let holds = hold(&top.path().join(&held)).unwrap();
        let scratch = Scratch::new(top.path()).unwrap();
        assert_eq!(scratch.path().parent(), Some(top.path().canonicalize().unwrap().as_path()));
        assert_eq!(fs::metadata(scratch.path()).unwrap().mode() & 0o777, 0o700);
        let mut expected = vec![used, held, String::from("openred-verifying-x"), String::from("other")];
        expected.sort();
        drop(scratch);
        assert_eq!(names(top.path()), expected);
        drop(holds);
        drop(lives.stdin.take());
        lives.wait().unwrap();
    }

    #[test]
    fn without_a_home_it_lies_among_temporary_files() {
        let top = tempfile::tempdir().unwrap();
        let scratch = Scratch::new(&top.path().join("none")).unwrap();
        assert_eq!(scratch.path().parent(), Some(std::env::temp_dir().canonicalize().unwrap().as_path()));
        let folder = scratch.path().to_owned();
        drop(scratch);
        assert!(!folder.exists());
    }
}
