//! `noded` in an attacker's hands: what an exploited `noded` could try against the keys, the trail and the other processes.
//! Not installed.
//!
//! The real supervisor starts it under `noded`'s name, so it has `noded`'s uid, cage, filter, descriptors and sockets, and goes the same
//! way into the cage. From there it does what a test orders by a file in its state directory, and says in another file what it
//! tried, what it expected and what came of it. What the filter answers with death is one order, and one life, each.
//! `--control NAME PID` tries one act of those (`--acts`) outside any cage, on a process that the test gives up; `--hold` keeps what it
//! is given in plain memory: the control of a search through memory.
#![forbid(unsafe_code)]

#[path = "openred-compromised-noded"]
mod attack {
    pub(crate) mod audit;
    pub(crate) mod front;
    pub(crate) mod honest;
    pub(crate) mod kernel;
    pub(crate) mod labels;
    pub(crate) mod operations;
    pub(crate) mod peer;
    pub(crate) mod report;
    pub(crate) mod rows;
    pub(crate) mod work;
}

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use openred_node::daemon::{Outside, failed};
use openred_policy::barrier::Barrier;
use openred_policy::{Cage, Descriptors, Identity, Role, Unconfined};
use serde_json::Value;

use attack::front::Front;
use attack::honest::Honest;
use attack::kernel::{self, Targets};
use attack::report::Report;
use attack::{audit, labels, operations, rows, work};

/// Where an order lies, and where the report goes; `openred_tests::attacker` is the other end.
const ORDER: &str = "attack.order";
const REPORT: &str = "attack.report";
const RECEIVED: &str = "attack.received";
/// While this is there it lets the operator wait.
const MUTE: &str = "attack.mute";
/// Between two looks for an order.
const LOOK: Duration = Duration::from_millis(10);

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        [_, "--acts"] => openred_policy::exit(i32::from(list().is_err())),
        [_, "--control", name, pid] => openred_policy::exit(kernel::control(name, pid)),
        [_, "--hold"] => openred_policy::exit(i32::from(work::hold().is_err())),
        _ => {}
    }
    let mut barrier = None;
    let code = match run(&mut barrier) {
        Ok(()) => 0,
        Err(error) => failed(barrier.as_ref(), &error),
    };
    openred_policy::exit(code)
}

/// The acts that end it, by name.
fn list() -> std::io::Result<()> {
    kernel::names().try_for_each(|name| writeln!(std::io::stdout(), "{name}"))
}

/// The steps of `noded`'s own program (`noded/src/bin/noded.rs`) up to service.
fn run(slot: &mut Option<Barrier>) -> Result<()> {
    let home = std::env::args_os().nth(1).map(PathBuf::from).context("started as noded, with the node's home")?;
    let mut inherited = Unconfined::enter(Role::Noded, Descriptors::Exactly(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]))?;
    let barrier = slot.insert(inherited.barrier(3)?);
    let state = home.join("state");
    // Held: what an exploited process has, it has open. The operator's listener it holds without ever answering, or leaves alone.
    let _held = (inherited.take(4)?, inherited.take(6)?, inherited.take(8)?, inherited.take(9)?, inherited.take(10)?);
    let _api = inherited.take(11)?;
    let _mute = Some(inherited.take(5)?).filter(|_| state.join(MUTE).exists());
    let outside = Outside::read(home.clone(), inherited.take(7)?)?;
    let cage = outside.keeps().into_iter().fold(Cage::new(Role::Noded, Identity::from_env()?), Cage::keep);
    let separated = inherited.separate(&cage)?;
    barrier.namespaced()?;
    let restricted = separated.restrict()?;
    let mut report = Report::open(&state.join(REPORT))?;
    let mut front = Front::new(&home.join("run/cryptod/cryptod.sock"), &state.join(RECEIVED))?;
    let confined = restricted.seal()?;
    barrier.confined(confined.report())?;
    barrier.ready()?;
    loop {
        let order = next_order(&state.join(ORDER))?;
        if let Err(error) = obey(&order, &home, &mut front, &mut report) {
            // The test shows it, and fails by it.
            report.broken(&format!("{order}: {error:#}"))?;
        }
        report.done(front.came())?;
    }
}

fn next_order(path: &Path) -> Result<Value> {
    loop {
        if let Ok(text) = fs::read(path) {
            fs::remove_file(path).context("taking an order")?;
            return Ok(serde_json::from_slice(&text)?);
        }
        std::thread::sleep(LOOK);
    }
}

fn obey(order: &Value, home: &Path, front: &mut Front, report: &mut Report) -> Result<()> {
    let pid = |name: &str| order[name].as_i64().and_then(|pid| i32::try_from(pid).ok()).context("a process id");
    match order["do"].as_str() {
        Some("calls") => {
            let targets = Targets::of(home, pid("vault")?);
            let mut honest = Honest::begin(front, report)?;
            operations::all(front, report, &mut honest)?;
            labels::all(front, report, &mut honest)?;
            rows::all(front, report, &mut honest)?;
            kernel::answered(report, &targets)?;
            audit::all(front, report)
        }
        // By itself, because it leaves the trail no room for the others' records.
        Some("flood") => audit::flood(front, report),
        Some("work") => work::all(front, report, order["count"].as_u64().context("how much")?),
        Some("kernel") => {
            let targets = Targets::of(home, pid("vault")?);
            kernel::fatal(report, order["name"].as_str().context("which")?, &targets)
        }
        _ => bail!("no such order"),
    }
}
