//! The search for canaries: everything that the directory received, its files, its memory; and the control in bob's node.

use anyhow::{Context, Result};
use openred_tests::canary::Canary;
use openred_tests::harness::{Directory, Node, PATIENCE, is_root};
use openred_tests::tap::Tap;
use std::time::{Duration, Instant};

use super::report::say;

/// Requests for a module of the marked name that are under way while bob's memory is read.
const PINGS: u32 = 20_000;

/// One mark for each kind of thing that must stay between the two nodes.
#[derive(Debug)]
pub(crate) struct Marks {
    pub(crate) message: Canary,
    pub(crate) file_name: Canary,
    pub(crate) file_content: Canary,
    pub(crate) module: Canary,
}

impl Marks {
    pub(crate) fn draw() -> Self {
        Self {
            message: Canary::draw("message text"),
            file_name: Canary::draw("file name"),
            file_content: Canary::draw("file content"),
            module: Canary::draw("module name"),
        }
    }

    fn all(&self) -> [&Canary; 4] {
        [&self.message, &self.file_name, &self.file_content, &self.module]
    }
}

/// Where the search looked and what it found.
#[derive(Debug, Default)]
pub(crate) struct Search {
    pub(crate) directory_saw: bool,
    pub(crate) control_found: bool,
}

/// Looks for every mark at the directory, and for every mark at bob.
pub(crate) fn search(marks: &Marks, tap: &Tap, directory: &Directory, bob: &Node, alice: &Node) -> Result<Search> {
    let received = tap.received();
    let mut found = Search { directory_saw: false, control_found: true };
    for mark in marks.all() {
        let mut places = Vec::new();
        if mark.is_in(&received) {
            places.push("received bytes");
        }
        if mark.is_below(&directory.home)? {
            places.push("files");
        }
        if is_root() && mark.is_in_memory(directory.pid()?)? {
            places.push("memory");
        }
        found.directory_saw |= !places.is_empty();
        let seen = if places.is_empty() { "not seen".to_owned() } else { format!("SEEN in {}", places.join(", ")) };
        // Only root can read bob's memory, and these two never leave it for a file or a screen.
        let memory_only = [marks.file_name.text(), marks.module.text()].contains(&mark.text());
        let control = match control(mark, marks, bob, alice)? {
            true => "found",
            false if memory_only && !is_root() => "in memory only, which root alone can read",
            false => {
                found.control_found = false;
                "NOT FOUND"
            }
        };
        say(&format!("    {:<14} at the directory: {seen}; at bob (control): {control}", mark.name));
    }
    let where_looked = if is_root() { "received bytes, files and memory" } else { "received bytes and files" };
    say(&format!("    searched {where_looked} of the directory ({} bytes received)", received.len()));
    Ok(found)
}

/// The control: the mark in the memory of bob's `noded` (as root, while requests that carry it keep coming), in bob's
/// files, or in what bob's own operator is shown.
fn control(mark: &Canary, marks: &Marks, bob: &Node, alice: &Node) -> Result<bool> {
    let (count, module) = (PINGS.to_string(), marks.module.text());
    let end = Instant::now() + if is_root() { PATIENCE / 4 } else { Duration::ZERO };
    loop {
        let shown = bob.cli(&["inbox", "--all"])?;
        if mark.is_in(shown.stdout.as_bytes()) || mark.is_below(&bob.home)? {
            return Ok(true);
        }
        let ping = ["peers", "ping", &bob.id, "--count", &count, "--module", module];
        let (mut pings, _lines) = alice.stream(&ping)?;
        let mut found = false;
        while is_root() && !found && pings.try_wait()?.is_none() {
            found = mark.is_in_memory(bob.child_pid("noded").context("bob's noded")?)?;
        }
        let log = std::fs::read_to_string(bob.home.with_extension("log")).unwrap_or_default();
        let _ = pings.kill();
        pings.wait()?;
        if found || mark.is_in(log.as_bytes()) {
            return Ok(true);
        }
        if Instant::now() >= end {
            return Ok(false);
        }
    }
}
