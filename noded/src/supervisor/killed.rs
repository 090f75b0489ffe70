//! Tests only: a test that runs itself again as a child, up to one step, and kills it there.
//!
//! In: the test's name and the steps of what it tries. Out: a process that died at that step with SIGKILL, and what it left on the disk.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::ffi::OsStr;
use std::fmt::Debug;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

/// Names the folder to the child.
const FOLDER: &str = "OPENRED_TEST_FOLDER";
/// Tells it the number of the step to stop at.
const STEP: &str = "OPENRED_TEST_STEP";

/// The folder that this process is to work in, if it is the child.
pub(super) fn child() -> Option<PathBuf> {
    std::env::var_os(FOLDER).map(PathBuf::from)
}

/// The child at a step of `steps`: says so and waits to be killed if it is the one that it was told.
pub(super) fn wait_at<S: PartialEq + Debug>(steps: &[S], step: &S) {
    let stop: usize = std::env::var(STEP).unwrap().parse().unwrap();
    if *step == steps[stop] {
        let mut out = std::io::stdout().lock();
        writeln!(out, "\nreached {step:?}").and_then(|()| out.flush()).unwrap();
        std::thread::sleep(Duration::from_secs(3600));
    }
}

/// Runs `test` of this program in `folder` as a child, and kills it at the step of that number.
pub(super) fn at(test: &str, folder: impl AsRef<OsStr>, number: usize, step: &impl Debug) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads", "1"])
        .env(FOLDER, folder)
        .env(STEP, number.to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let reached = lines.any(|line| line.unwrap() == format!("reached {step:?}"));
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(reached, "{step:?}");
}
