//! The soak behind `scripts/soak`: nodes and a directory in network namespaces, links of a short life, messages without end, and random
//! trouble meanwhile; then it demands that every pair is linked and that nothing acknowledged was lost or came twice.
//!
//! It starts itself anew as the first process of namespaces of its own (mounts, network, process ids): whatever it
//! makes in them goes with it, however it ends. It drives the built programs as an operator would, and writes `FOLDER/report.json`
//! and the nodes' logs. All chance comes from one seed, which it prints. It exits 0 only when nothing was violated.

#[path = "openred-soak"]
mod soak {
    pub(crate) mod counter;
    pub(crate) mod crew;
    pub(crate) mod faults;
    pub(crate) mod ledger;
    pub(crate) mod place;
    pub(crate) mod plan;
    pub(crate) mod report;
    pub(crate) mod run;
    pub(crate) mod watch;
    pub(crate) mod weather;
}

use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, ensure};
use openred_tests::harness::is_root;

use soak::plan::Options;
use soak::report::say;
use soak::run;

/// The word by which it knows that it runs inside its namespaces already.
const INSIDE: &str = "--inside";
/// Exit code when the machine does not give what a soak needs.
const NO_PLACE: u8 = 78;

/// Enters the namespaces, then runs.
fn main() -> ExitCode {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    let inside = arguments.first().is_some_and(|first| first == INSIDE);
    if inside {
        arguments.remove(0);
    }
    let options = match Options::parse(&arguments) {
        Ok(options) => options,
        Err(error) => {
            say(&format!("{error:#}"));
            return ExitCode::from(2);
        }
    };
    let ended = if inside { run::run(&options).map(|well| if well { 0 } else { 1 }) } else { enter(&options) };
    match ended {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            say(&format!("the soak failed: {error:#}"));
            ExitCode::from(if inside { 1 } else { NO_PLACE })
        }
    }
}

/// The namespaces that `unshare` is to give.
const NAMESPACES: [&str; 6] = ["--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"];

/// Whether there is a place for it here, or why not.
fn look() -> Result<()> {
    // In a user namespace of an ordinary user's there would be networks too, but neither uids of a node's own nor secret memory enough for a vault
    // that takes itself for root's.
    ensure!(is_root(), "a soak makes networks, and nodes under uids of their own: run it as root");
    let tried = Command::new("unshare").args(NAMESPACES).arg("true").stdin(Stdio::null()).output();
    let tried = tried.context("starting unshare (package util-linux)")?;
    let said = String::from_utf8_lossy(&tried.stderr);
    ensure!(tried.status.success(), "this machine gives root no namespaces: {}", said.trim());
    Ok(())
}

/// Starts itself as the first process of its namespaces and waits for its end; its exit code. It does not outlive this process, and all
/// that is in its namespaces does not outlive it.
fn enter(options: &Options) -> Result<u8> {
    look()?;
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = Command::new("setpriv");
    command
        .args(["--pdeathsig", "KILL", "unshare"])
        .args(NAMESPACES)
        .arg(std::env::current_exe()?)
        .arg(INSIDE)
        .args(options.to_arguments()?)
        // `ip` is where not every shell looks.
        .env("PATH", format!("{path}:/usr/sbin:/sbin"));
    let first = Arc::new(AtomicU32::new(0));
    let heard = Arc::clone(&first);
    run::on_signals(move || pass_on(heard.load(Ordering::Relaxed)))?;
    let mut child = command.spawn().context("starting setpriv (package util-linux)")?;
    first.store(child.id(), Ordering::Relaxed);
    let code = child.wait()?.code().unwrap_or(1);
    Ok(u8::try_from(code).unwrap_or(1))
}

/// Asks the one that runs inside to end: `unshare`, its parent, takes no notice of signals.
fn pass_on(unshare: u32) {
    let children = std::fs::read_to_string(format!("/proc/{unshare}/task/{unshare}/children")).unwrap_or_default();
    for child in children.split_whitespace().filter_map(|child| child.parse().ok()) {
        let _ = openred_tests::harness::signal_pid(child, nix::sys::signal::Signal::SIGTERM);
    }
}
