//! What the soak found: the report file, and the table on screen.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

use super::counter::Counted;
use super::ledger::Outcome;
use super::plan::{Options, Planned, SPARED};
use super::watch::{Alarm, Life};
use super::weather::Did;

/// Violations that are kept; the first say most.
const VIOLATIONS: usize = 200;

/// The report, as `report.json`.
#[derive(Debug, Serialize)]
pub(crate) struct Report<'a> {
    pub(crate) options: &'a Options,
    /// Whether it ran to its end.
    pub(crate) whole: bool,
    pub(crate) seconds: BTreeMap<&'static str, f64>,
    pub(crate) pairs: usize,
    pub(crate) pairs_linked: usize,
    pub(crate) links: BTreeMap<&'static str, u64>,
    pub(crate) messages: Outcome,
    /// By the installed module.
    pub(crate) counted: Counted,
    /// As the supervisors that ran at the end have counted.
    pub(crate) modules_started_again: BTreeMap<String, u64>,
    /// Modules that had to be released from quarantine, and how often.
    pub(crate) released: BTreeMap<&'static str, usize>,
    /// Troubles by kind: made, and how many of them found nothing to strike.
    pub(crate) faults: BTreeMap<&'static str, [usize; 2]>,
    pub(crate) started_again: Vec<String>,
    pub(crate) weather: &'a Did,
    pub(crate) alarms: BTreeMap<String, Alarm>,
    pub(crate) memory: Vec<Life>,
    pub(crate) violations: Vec<String>,
    pub(crate) plan: &'a [Planned],
}

impl Report<'_> {
    /// Adds a violation.
    pub(crate) fn violated(&mut self, what: String) {
        if self.violations.len() < VIOLATIONS && !self.violations.contains(&what) {
            self.violations.push(what);
        }
    }

    /// Writes `report.json` below `folder`.
    pub(crate) fn write(&self, folder: &Path) -> Result<()> {
        let path = folder.join("report.json");
        std::fs::write(&path, serde_json::to_string_pretty(self)? + "\n")
            .with_context(|| format!("writing {}", path.display()))
    }

    /// Prints the table and the verdict.
    pub(crate) fn print(&self) {
        let row = |what: &str, how_much: String| say(&format!("  {what:<32} {how_much}"));
        say("");
        row("seed", self.options.seed.to_string());
        for (phase, seconds) in &self.seconds {
            row(phase, format!("{seconds:.0} s"));
        }
        row("pairs linked at the end", format!("{} of {}", self.pairs_linked, self.pairs));
        self.links.iter().for_each(|(what, count)| row(what, count.to_string()));
        let messages = &self.messages;
        row("messages tried", messages.tried.to_string());
        row("  acknowledged", format!("{} ({} delivered at once)", messages.acknowledged, messages.delivered_at_once));
        row("  not acknowledged", format!("{} ({} arrived)", messages.unacknowledged, messages.unacknowledged_arrived));
        row("  received", messages.received.to_string());
        row(
            "  lost, doubled, out of order",
            format!("{}, {}, {}", messages.lost.len(), messages.doubled.len(), messages.out_of_order.len()),
        );
        row("slowest send", format!("{} ms", messages.slowest_send_ms));
        let counted = &self.counted;
        row("installed module asked", counted.tried.to_string());
        row("  acknowledged, kept", format!("{}, {}", counted.acknowledged, counted.kept));
        row("  lost or doubled, at nodes", counted.wrong.len().to_string());
        for (module, count) in self.modules_started_again.iter().filter(|(_, count)| **count > 0) {
            row(&format!("started again: {module}"), count.to_string());
        }
        for (module, count) in &self.released {
            row(&format!("quarantined, released: {module}"), count.to_string());
        }
        for (name, [made, missed]) in &self.faults {
            row(&format!("trouble: {name}"), format!("{made} ({missed} found nothing to strike)"));
        }
        for (code, alarm) in &self.alarms {
            row(&format!("alarm: {code}"), format!("{} looks, {} unprovoked", alarm.seen, alarm.unprovoked));
        }
        say(
            "\n  memory (PSS, KiB)            lived    first     last     most   KiB/min | no file behind it: last   KiB/min",
        );
        for life in
            self.memory.iter().filter(|life| life.of == format!("n{SPARED}") || life.of == "directory" || life.grew)
        {
            say(&format!(
                "  {:<10} {:<14} {:>6.0} s {:>8.0} {:>8.0} {:>8.0} {:>9.1} | {:>29.0} {:>9.1}{}",
                life.of,
                life.process,
                life.seconds,
                life.first_kib,
                life.last_kib,
                life.most_kib,
                life.kib_per_minute,
                life.own_last_kib,
                life.own_kib_per_minute,
                if life.grew { "  GREW" } else { "" }
            ));
        }
        self.violations.iter().for_each(|what| say(&format!("\n  VIOLATED: {what}")));
        say(&format!("\n  {} violations", self.violations.len()));
    }
}

/// Prints a line for the person who watches.
#[allow(clippy::print_stdout, reason = "a soak says how far it is")]
pub(crate) fn say(line: &str) {
    println!("{line}");
}
