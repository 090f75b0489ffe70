//! The group `modules-swap`: an installed module of a real node called at a steady rate by its operator, first in peace, then while it is
//! swapped again and again; how long calls take then, and how many fail.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use openred_tests::harness::{Node, wait_for};
use openred_tests::load::{Load, Outcome};
use openred_tests::swap_desk::{Desk, MODULE, version};

use super::figures::{Better, Figure, Figures, say};

/// As root: the first uid of the node.
const UIDS: u32 = 61_100;
/// Callers: enough that one that waits does not hold the rate up.
const CALLERS: usize = 28;

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    /// Calls a second.
    pub(crate) rate: u32,
    /// In peace, and while it is swapped.
    pub(crate) seconds: u64,
    /// Swaps in that time.
    pub(crate) swaps: u32,
}

/// Starts a node, measures, ends it.
pub(crate) fn measure(out: &Path, size: Size) -> Result<Figures> {
    let folder = out.canonicalize()?.join(format!("swaps-{}", std::process::id()));
    fs::create_dir(&folder)?;
    let figures = measure_in(&folder, size);
    fs::remove_dir_all(&folder)?;
    figures
}

fn measure_in(folder: &Path, size: Size) -> Result<Figures> {
    let mut node = Node::init(folder, "node", "", UIDS, "")?;
    node.up_without_answers()?;
    let desk = Desk::new(&folder.join("desk"))?;
    let path = |package: &Path| package.to_string_lossy().into_owned();
    let first = path(&desk.package(&version(0, 0), "", "")?);
    node.cli(&["module", "install", &first, "--publisher", &desk.publisher, "--approve"])?.ok()?;
    let call = ["module", "call", MODULE, "POST", "/add"];
    wait_for("the module", || Ok((node.cli(&call)?.code == 0).then_some(())))?;
    let packages = (1..=size.swaps).map(|number| desk.package(&version(number / 10, number % 10), "", ""));
    let packages: Vec<String> = packages.map(|package| package.map(|package| path(&package))).collect::<Result<_>>()?;
    let load = |path| Load::start(&node.home, MODULE, path, CALLERS, Some(size.rate));
    let time = Duration::from_secs(size.seconds);
    let calm = load("/look")?;
    std::thread::sleep(time);
    let calm = calm.stop()?;
    let busy = load("/look")?;
    let (begun, mut took) = (Instant::now(), Vec::new());
    for (number, package) in (0..).zip(&packages) {
        let at = begun + time * number / size.swaps;
        std::thread::sleep(at.saturating_duration_since(Instant::now()));
        let began = Instant::now();
        node.cli(&["module", "swap", MODULE, package])?.ok()?;
        took.push(began.elapsed().as_secs_f64() * 1e3);
    }
    std::thread::sleep((begun + time).saturating_duration_since(Instant::now()));
    let busy = busy.stop()?;
    node.down()?;
    busy.failed.iter().take(3).for_each(|failed| say(&format!("a call failed: {failed}")));
    ensure!(calm.failed.is_empty(), "calls fail without a swap: {:?}", calm.failed.first());
    let mut figures = Figures::default();
    figures.add("call_calm", figure(&calm));
    figures.add("call_swapped", figure(&busy));
    let millis = |outcome: &Outcome| outcome.quantile(990).as_secs_f64() * 1e3;
    let added = (millis(&busy) - millis(&calm)).max(0.0);
    let (n, swaps) = (busy.took.len() as u64, took.len() as u64);
    figures.add("added_p99", Figure { median: added, p99: added, unit: "ms", n });
    let longest = busy.quantile(1000).as_secs_f64() * 1e3;
    figures.add("longest_call", Figure { median: longest, p99: longest, unit: "ms", n });
    let failed = busy.failed.len() as f64;
    figures.add("failed_calls", Figure { median: failed, p99: failed, unit: "", n: n + busy.failed.len() as u64 });
    figures.add("rate_swapped", Figure { median: n as f64 / time.as_secs_f64(), p99: 0.0, unit: "1/s", n: swaps });
    figures.add_runs("swap", "ms", Better::Lower, took);
    Ok(figures)
}

fn figure(outcome: &Outcome) -> Figure {
    let millis = |thousandths| outcome.quantile(thousandths).as_secs_f64() * 1e3;
    Figure { median: millis(500), p99: millis(990), unit: "ms", n: outcome.took.len() as u64 }
}
