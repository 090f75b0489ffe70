//! The search for canaries: everything that the directory received, its files, its memory (as root).
//!
//! That something is not found says little by itself. So the same search must find, in each of these places, what has to be
//! there (alice's id), and every mark at bob's node. What could not be searched is named, not counted as found.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use openred_proto::id::NodeId;
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

    /// The marked module name: the mark twice, for it stays in memory only as long as a request takes, and what the allocator
    /// writes into freed memory covers the beginning.
    fn module_name(&self) -> String {
        self.module.text().repeat(2)
    }

    fn all(&self) -> [&Canary; 4] {
        [&self.message, &self.file_name, &self.file_content, &self.module]
    }
}

/// Where the search looked and what it found.
#[derive(Debug, Default)]
pub(crate) struct Search {
    pub(crate) directory_saw: bool,
    /// Every mark that could be looked for at bob was found there.
    pub(crate) control_found: bool,
    /// The marks that could not.
    pub(crate) not_searched: Vec<String>,
    /// Places at the directory in which the search found what must be there.
    pub(crate) found_at_directory: Vec<String>,
    /// Bytes searched at the directory, by place.
    pub(crate) searched: BTreeMap<String, u64>,
}

/// What a search of one place came to.
struct Place {
    name: &'static str,
    found: bool,
    bytes: u64,
}

/// Looks for one mark wherever the directory could have it.
fn at_directory(mark: &Canary, received: &[u8], directory: &Directory) -> Result<Vec<Place>> {
    let mut places = vec![Place { name: "received bytes", found: mark.is_in(received), bytes: received.len() as u64 }];
    let files = mark.search_below(&directory.home)?;
    places.push(Place { name: "files", found: files.found, bytes: files.bytes });
    if is_root() {
        let memory = mark.search_memory(directory.pid()?)?;
        places.push(Place { name: "memory", found: memory.found, bytes: memory.bytes });
    }
    Ok(places)
}

/// Looks for every mark at the directory, and for every mark at bob.
pub(crate) fn search(marks: &Marks, tap: &Tap, directory: &Directory, bob: &Node, alice: &Node) -> Result<Search> {
    // Before anything is searched, so that it could be found.
    alice.cli(&["peers", "ping", &bob.id, "--count", "100", "--module", &marks.module_name()])?.ok()?;
    let received = tap.received().context("the recording of what the directory received")?;
    let mut search = Search { control_found: true, ..Search::default() };
    let alice_id: NodeId = alice.id.parse().context("alice's id")?;
    for place in at_directory(&Canary::known("alice's id", &alice.id, alice_id.as_bytes()), &received, directory)? {
        search.searched.insert(place.name.to_owned(), 0);
        if place.found {
            search.found_at_directory.push(place.name.to_owned());
        }
    }
    search.found_at_directory.sort();
    for mark in marks.all() {
        let places = at_directory(mark, &received, directory)?;
        let seen: Vec<&str> = places.iter().filter(|place| place.found).map(|place| place.name).collect();
        for place in &places {
            // A search ends at the first find: the longest one is of the whole place.
            let most = search.searched.entry(place.name.to_owned()).or_default();
            *most = place.bytes.max(*most);
        }
        search.directory_saw |= !seen.is_empty();
        let seen = if seen.is_empty() { "not seen".to_owned() } else { format!("SEEN in {}", seen.join(", ")) };
        // Only root can read bob's memory, and this one never leaves it for a file or a screen.
        let memory_only = mark.text() == marks.module.text();
        let control = if memory_only && !is_root() {
            search.not_searched.push(mark.name.to_owned());
            "NOT SEARCHED: in memory only, which root alone can read"
        } else if control(mark, marks, bob, alice)? {
            "found"
        } else {
            search.control_found = false;
            "NOT FOUND"
        };
        say(&format!("    {:<14} at the directory: {seen}; at bob (control): {control}", mark.name));
    }
    let searched: Vec<String> =
        search.searched.iter().map(|(place, bytes)| format!("{place} ({bytes} bytes)")).collect();
    say(&format!("    searched for each mark at the directory: {}", searched.join(", ")));
    say(&format!("    alice's id, as it must be, is found there in: {}", search.found_at_directory.join(", ")));
    Ok(search)
}

/// The control: the mark in the memory of bob's `noded` (as root, while requests that carry it keep coming), in bob's
/// files, or in what bob's own operator is shown.
fn control(mark: &Canary, marks: &Marks, bob: &Node, alice: &Node) -> Result<bool> {
    let (count, module) = (PINGS.to_string(), marks.module_name());
    let end = Instant::now() + if is_root() { PATIENCE / 4 } else { Duration::ZERO };
    loop {
        for shown in [bob.cli(&["inbox", "--all"])?, bob.cli(&["files", "list", &alice.id])?] {
            if mark.is_in(shown.stdout.as_bytes()) {
                return Ok(true);
            }
        }
        if mark.search_below(&bob.home)?.found {
            return Ok(true);
        }
        let ping = ["peers", "ping", &bob.id, "--count", &count, "--module", &module];
        let (mut pings, _lines) = alice.stream(&ping)?;
        let mut found = false;
        while is_root() && !found && pings.try_wait()?.is_none() {
            found = mark.search_memory(bob.child_pid("noded").context("bob's noded")?)?.found;
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
