//! The measurements behind `scripts/bench GROUP…`: handshake, session, file, file-large, memory, cage, vault, modules, modules-swap, directory,
//! replicas.
//!
//! It starts a directory and two nodes with the release binaries, lets alice's node time its own requests to bob's (`vault` starts a
//! key process by itself, `modules` a module, `modules-swap` a node of its own, `directory` a
//! directory, `replicas` three), and writes `FOLDER/GROUP.json` as `{"name": {"median", "p99", "unit", "n"}}` beside a table (of a few runs `p99` is the worst).
//! Given the output of a run of the peers (`--peers FILE`, one line per figure), it prints the ratios that docs/budgets.md
//! speaks of. `--smoke` does a little of everything, for the suite: it shows that the measuring works.

#[path = "openred-bench"]
mod bench {
    pub(crate) mod agent;
    pub(crate) mod directory;
    pub(crate) mod figures;
    pub(crate) mod groups;
    pub(crate) mod modules;
    pub(crate) mod peer_vault;
    pub(crate) mod peers;
    pub(crate) mod swaps;
    pub(crate) mod vault;
}

use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use bench::figures::{Figures, say};
use bench::{directory, groups, modules, peers, swaps, vault};

/// What can be measured.
const GROUPS: [&str; 11] = [
    "handshake",
    "session",
    "file",
    "file-large",
    "memory",
    "cage",
    "vault",
    "modules",
    "modules-swap",
    "directory",
    "replicas",
];

/// Parses arguments, runs the groups in one stage, prints tables and ratios.
fn main() -> Result<()> {
    let (mut out, mut peer_output, mut names) = (PathBuf::from("target/bench"), None, Vec::new());
    let mut size = groups::Size::FULL;
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--out" => out = PathBuf::from(arguments.next().context("--out FOLDER")?),
            "--peers" => peer_output = Some(PathBuf::from(arguments.next().context("--peers FILE")?)),
            "--smoke" => size = groups::Size::SMOKE,
            _ => names.push(argument),
        }
    }
    // Asked before anything is started: a slip costs nothing.
    if let Some(name) = names.iter().find(|name| !GROUPS.contains(&name.as_str())) {
        bail!("no group {name}: {}", GROUPS.join(", "));
    }
    if names.is_empty() {
        bail!("usage: openred-bench [--smoke] [--out FOLDER] [--peers FILE] {} …", GROUPS.join("|"));
    }
    std::fs::create_dir_all(&out)?;
    let mut stage = None;
    let mut ours = Figures::default();
    for name in &names {
        let figures = match name.as_str() {
            "vault" => vault::measure(&out, size.vault)?,
            "modules" => modules::measure(size.modules)?,
            "modules-swap" => swaps::measure(&out, size.swaps)?,
            "directory" => directory::measure(&out, size.directory, peer_output.is_some())?,
            "replicas" => directory::replicas::measure(&out, size.replicas)?,
            _ => {
                if stage.is_none() {
                    stage = Some(groups::Stage::start(&out, size)?);
                }
                groups::measure(name, stage.as_mut().context("a stage")?)?
            }
        };
        figures.print(name);
        match name.as_str() {
            "vault" => vault::print_goals(&figures),
            "directory" => directory::print_goals(&figures),
            _ => {}
        }
        figures.write(&out.join(format!("{name}.json")))?;
        ours.extend(figures);
    }
    stage.map_or(Ok(()), groups::Stage::stop)?;
    if let Some(file) = peer_output {
        let text = std::fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
        peers::print_ratios(&ours, &peers::parse(&text));
    } else {
        say("\nno --peers FILE: absolute figures only; compare by ratio, in one run");
    }
    Ok(())
}
