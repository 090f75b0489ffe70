//! The inputs that are kept in the tree: real values, encoded, a few kilobytes a target; made by `openred-fuzz corpus`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::{TARGETS, Target};

/// Inputs of one target that are read: the tree holds some dozens.
const INPUTS: usize = 4096;

/// The folder of the tree.
#[must_use]
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus")
}

/// Every input of `target` in `folder`, in the order of their names.
///
/// # Errors
/// When the folder or a file cannot be read.
pub fn read(folder: &Path, target: &Target) -> io::Result<Vec<Vec<u8>>> {
    let entries = fs::read_dir(folder.join(target.name))?.take(INPUTS);
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.map(|entry| entry.path())).collect::<io::Result<_>>()?;
    paths.sort();
    paths.iter().map(fs::read).collect()
}

/// Writes the corpus of every target below `folder`; inputs that are there under other names stay.
///
/// # Errors
/// When a file cannot be written.
pub fn write(folder: &Path) -> io::Result<()> {
    for target in &TARGETS {
        let place = folder.join(target.name);
        fs::create_dir_all(&place)?;
        for (name, bytes) in (target.corpus)() {
            fs::write(place.join(name), bytes)?;
        }
    }
    Ok(())
}

/// Names for inputs that need none better.
pub(crate) fn numbered(inputs: impl IntoIterator<Item = Vec<u8>>) -> Vec<(String, Vec<u8>)> {
    inputs.into_iter().enumerate().map(|(number, bytes)| (format!("{number:02}"), bytes)).collect()
}
