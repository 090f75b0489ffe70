//! A disk that is really full: a test runs again with one folder of it mounted as a small file system, and fills that to the last byte.
//!
//! The file system is mounted in a mount namespace that only this test sees, which takes root. An ordinary user could mount it inside a user
//! namespace only, and there the cage refuses to start, rightly: the kernel gives the files of a process that is not dumpable to the root
//! of the outer namespace, who is the user itself then, and the layer `not-dumpable` would not hold.

use std::fs::{self, File};
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

/// Names the folder of the small disk's node to a child of a test: the test program again.
const CHILD: &str = "OPENRED_TEST_SMALL_DISK";

/// In the child of [`again_on_a_small_disk`]: the folder in which the node's home is the small file system.
#[must_use]
pub fn folder() -> Option<PathBuf> {
    std::env::var_os(CHILD).map(PathBuf::from)
}

/// Runs one test of this program again, with the home of `node` in a fresh folder as a file system of so many bytes.
///
/// # Errors
/// What the test said, where it did not pass.
pub fn again_on_a_small_disk(test: &str, node: &str, bytes: u64) -> Result<()> {
    let folder = tempfile::Builder::new().prefix("openred-disk-").tempdir()?;
    fs::create_dir(folder.path().join(node))?;
    let script = format!(
        "mount -t tmpfs -o size={bytes},mode=0700 tmpfs \"${CHILD}/{node}\" && \
         exec \"$0\" --exact {test} --nocapture --test-threads 1"
    );
    let output = Command::new("unshare")
        .args(["--mount", "sh", "-c", &script])
        .arg(std::env::current_exe()?)
        .env(CHILD, folder.path())
        .output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    if output.status.success() && said.contains("1 passed") {
        return Ok(());
    }
    bail!("{said}{}", String::from_utf8_lossy(&output.stderr))
}

/// Takes every byte that is left, into this file.
///
/// # Errors
/// Any but the one that says that the disk is full.
pub fn fill(file: &Path) -> Result<()> {
    let mut file = File::create(file)?;
    for size in [1 << 16, 1 << 12, 1] {
        loop {
            match file.write(&vec![0x5a; size]) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::StorageFull => break,
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(())
}
