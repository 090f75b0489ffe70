//! What the demonstration found: the report file, and the table on screen.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

/// The report, as `target/demo/report.json`.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Report {
    pub(crate) linked: bool,
    pub(crate) mutual_link_equal: bool,
    pub(crate) tokens_matched: bool,
    pub(crate) handshake_ms: f64,
    pub(crate) messages_sent: u64,
    pub(crate) messages_received: u64,
    pub(crate) file_bytes: u64,
    pub(crate) file_verified: bool,
    pub(crate) resumed: bool,
    pub(crate) directory_saw_plaintext: bool,
    /// Every mark that could be looked for at bob was found there; see `control_not_searched` for those that could not.
    pub(crate) canaries_found_in_control: bool,
    /// Marks that were not looked for at bob: they are in memory only, which an ordinary user may not read.
    pub(crate) control_not_searched: Vec<String>,
    /// Alice's id, which the directory must know, was found by the same search in each of these.
    pub(crate) control_found_at_directory: Vec<String>,
    /// Bytes searched for each mark at the directory, by place.
    pub(crate) searched_bytes: BTreeMap<String, u64>,
    pub(crate) key_process_network_interfaces: Vec<String>,
    pub(crate) key_process_syscalls_allowed: BTreeMap<String, u64>,
    pub(crate) uid: String,
    #[serde(skip)]
    rows: Vec<[String; 3]>,
}

impl Report {
    /// Adds a row to the table: what, how long, how much.
    pub(crate) fn row(&mut self, what: &str, seconds: f64, how_much: &str) {
        self.rows.push([what.to_owned(), format!("{seconds:.2} s"), how_much.to_owned()]);
        say(&format!("  {what:<40} {seconds:>7.2} s  {how_much}"));
    }

    /// Whether everything that the demonstration promises was seen.
    pub(crate) fn holds(&self) -> bool {
        self.faults().is_empty()
    }

    /// The promises that were not kept.
    pub(crate) fn faults(&self) -> Vec<&'static str> {
        let promises = [
            (self.linked, "the nodes are linked"),
            (self.mutual_link_equal, "both sides show the same mutual link"),
            (self.tokens_matched, "both link tokens come from one base"),
            (self.messages_sent == 200 && self.messages_received == 200, "200 messages sent and received"),
            (self.file_verified, "the file arrived and verified"),
            (self.resumed, "the interrupted transfer resumed"),
            (!self.directory_saw_plaintext, "the directory saw no plaintext"),
            (self.canaries_found_in_control, "the search finds the marks at bob, where they must be"),
            (self.searched_bytes.values().all(|bytes| *bytes > 0), "there was something to search at the directory"),
            (
                self.searched_bytes.keys().eq(&self.control_found_at_directory),
                "the search finds at the directory what must be there, in every place",
            ),
            (self.key_process_network_interfaces.is_empty(), "the key process has no network interface"),
        ];
        promises.into_iter().filter(|(kept, _)| !kept).map(|(_, promise)| promise).collect()
    }

    /// Writes `report.json` below `folder`.
    pub(crate) fn write(&self, folder: &Path) -> Result<()> {
        let path = folder.join("report.json");
        let text = serde_json::to_string_pretty(self)?;
        std::fs::write(&path, text + "\n").with_context(|| format!("writing {}", path.display()))
    }

    /// Prints the table and the verdict.
    pub(crate) fn print(&self) {
        say("\n  what                                       how long  how much");
        say("  ---------------------------------------------------------------------------");
        for [what, how_long, how_much] in &self.rows {
            say(&format!("  {what:<40} {how_long:>10}  {how_much}"));
        }
        for fault in self.faults() {
            say(&format!("\n  NOT SEEN: {fault}"));
        }
    }
}

/// Prints a line for the person who watches.
#[allow(clippy::print_stdout, reason = "the demonstration's whole point is what it prints")]
pub(crate) fn say(line: &str) {
    println!("{line}");
}
