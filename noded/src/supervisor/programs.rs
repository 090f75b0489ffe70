//! Programs of modules' generations that are kept, so that a swap can be taken back after what lies beside `openred` was replaced.
//!
//! A kept program is a file under its generation's number, whole or not there at all. Only the supervisor's own user can write here, as
//! beside `openred`; no process of the node sees the folder.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Seek as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// The folders of programs.
pub(super) struct Programs<'a> {
    /// Of those that come with the node.
    pub(super) installed: &'a Path,
    /// Of those that are kept.
    pub(super) kept: PathBuf,
}

impl Programs<'_> {
    fn place(&self, module: &str, number: u64) -> PathBuf {
        self.kept.join(module).join(number.to_string())
    }

    /// The module's program of this number; one that is not kept yet is the installed one, and kept from now on. Zero: the installed one.
    pub(super) fn open(&self, module: &str, file: &str, number: u64) -> io::Result<File> {
        let installed = || File::open(self.installed.join(file));
        if number == 0 {
            return installed();
        }
        match File::open(self.place(module, number)) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                self.keep(module, number, &installed()?)?;
                File::open(self.place(module, number))
            }
            opened => opened,
        }
    }

    /// Keeps an open program under this number, unless there is one. Durable when it returns.
    pub(super) fn keep(&self, module: &str, number: u64, mut program: &File) -> io::Result<()> {
        let place = self.place(module, number);
        if place.exists() {
            return Ok(());
        }
        let folder = self.kept.join(module);
        fs::create_dir_all(&folder)?;
        let unfinished = folder.join("new");
        let mut options = OpenOptions::new();
        let mut copy = options.write(true).create(true).truncate(true).mode(0o700).open(&unfinished)?;
        program.rewind()?;
        io::copy(&mut program, &mut copy)?;
        copy.sync_all()?;
        fs::rename(&unfinished, &place)?;
        File::open(&folder)?.sync_all()
    }

    /// Forgets all of a module's but these.
    pub(super) fn forget(&self, module: &str, needed: &[u64]) -> io::Result<()> {
        let entries = match fs::read_dir(self.kept.join(module)) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            let number: Option<u64> = entry.file_name().to_str().and_then(|name| name.parse().ok());
            if number.is_none_or(|number| !needed.contains(&number)) {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::io::Read as _;

    use super::*;

    fn text(mut file: File) -> String {
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn a_kept_program_stays_when_the_installed_one_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let installed = folder.path().join("installed");
        fs::create_dir(&installed).unwrap();
        let programs = Programs { installed: &installed, kept: folder.path().join("kept") };
        programs.forget("m", &[]).unwrap();
        fs::write(installed.join("p"), "one").unwrap();
        let running = programs.open("m", "p", 0).unwrap();
        // Replaced as packages are: by another file of that name.
        fs::write(installed.join("q"), "two").unwrap();
        fs::rename(installed.join("q"), installed.join("p")).unwrap();
        programs.keep("m", 1, &running).unwrap();
        assert_eq!(text(programs.open("m", "p", 2).unwrap()), "two");
        fs::write(installed.join("p"), "three").unwrap();
        let all = [0, 1, 2].map(|number| text(programs.open("m", "p", number).unwrap()));
        assert_eq!(all, ["three", "one", "two"]);
        // A copy that was cut short is none, and goes.
        fs::write(folder.path().join("kept/m/new"), "thr").unwrap();
        programs.forget("m", &[2]).unwrap();
        let left: Vec<_> =
            fs::read_dir(folder.path().join("kept/m")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["2"]);
    }
}
