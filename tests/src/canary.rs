//! Canaries: random marks put into what must stay private, and the search for them.
//!
//! A canary counts as seen when it occurs raw, in hex (either case) or in base64 (any of the three alignments, both
//! alphabets) in a byte string, a file below a folder, or the memory of a process (as root). Secrets of 32 bytes, many at once, are
//! hunted through a process's memory by [`hunt`].

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File};
use std::io::{ErrorKind, IoSliceMut};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::Pid;

use crate::secrets::Named;

/// Random bytes in a canary, shown as twice as many hex digits.
const CANARY_BYTES: usize = 12;
/// Memory is read in pieces of this size, overlapping by the longest pattern.
const PIECE_BYTES: usize = 4 << 20;
/// A page of memory.
const PAGE_BYTES: usize = 4096;

/// One random mark.
#[derive(Clone, Debug)]
pub struct Canary {
    /// What it marks, for the report.
    pub name: &'static str,
    text: String,
    patterns: Vec<Vec<u8>>,
}

impl Canary {
    /// Draws a new mark: lower-case letters and digits, so that it may stand in a file or module name.
    ///
    /// # Panics
    /// When the system has no randomness.
    #[must_use]
    pub fn draw(name: &'static str) -> Self {
        let mut random = [0; CANARY_BYTES];
        getrandom::fill(&mut random).expect("the system has randomness");
        let text = format!("c{}", hex::encode(random));
        let patterns = patterns(text.as_bytes());
        Self { name, text, patterns }
    }

    /// What is known to be somewhere, as text or as bytes: the control that a search finds anything at all.
    #[must_use]
    pub fn known(name: &'static str, text: &str, bytes: &[u8]) -> Self {
        Self { name, text: text.to_owned(), patterns: [patterns(text.as_bytes()), patterns(bytes)].concat() }
    }

    /// The mark itself.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether `bytes` hold the mark in any of its forms.
    #[must_use]
    pub fn is_in(&self, bytes: &[u8]) -> bool {
        self.patterns.iter().any(|pattern| find(bytes, pattern))
    }

    /// Looks into every file below `folder`, to the first that holds the mark.
    ///
    /// # Errors
    /// When a file cannot be read; one that has gone meanwhile is none.
    pub fn search_below(&self, folder: &Path) -> Result<Searched> {
        let mut searched = Searched::default();
        for entry in fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))? {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_dir() {
                searched.add(self.search_below(&entry.path())?);
            } else if kind.is_file() {
                let bytes = match fs::read(entry.path()) {
                    Err(error) if error.kind() == ErrorKind::NotFound => continue,
                    read => read.with_context(|| format!("reading {}", entry.path().display()))?,
                };
                searched.add(Searched { found: self.is_in(&bytes), bytes: bytes.len() as u64 });
            }
            if searched.found {
                break;
            }
        }
        Ok(searched)
    }

    /// Looks into the writable memory of process `pid`, to the first occurrence. Only root may.
    ///
    /// # Errors
    /// When the process is gone, may not be read, or none of its memory could be.
    pub fn search_memory(&self, pid: u32) -> Result<Searched> {
        let maps = fs::read_to_string(format!("/proc/{pid}/maps")).with_context(|| format!("memory map of {pid}"))?;
        let mut memory = File::open(format!("/proc/{pid}/mem")).with_context(|| format!("memory of {pid}"))?;
        let mut searched = Searched::default();
        for line in maps.lines().filter(|line| line.split(' ').nth(1).is_some_and(|rights| rights.starts_with("rw"))) {
            let Some((start, end)) = line.split(' ').next().and_then(range) else { continue };
            self.search_range(&mut memory, start, end, &mut searched);
            if searched.found {
                break;
            }
        }
        ensure!(searched.bytes > 0, "not a byte of process {pid}'s memory could be read");
        Ok(searched)
    }

    /// A piece that the kernel refuses as a whole is read page by page; pages that it refuses (a guard, a secret mapping) are
    /// passed over.
    fn search_range(&self, memory: &mut File, start: u64, end: u64, searched: &mut Searched) {
        let overlap = self.patterns.iter().map(Vec::len).max().unwrap_or(0);
        let mut piece = vec![0; PIECE_BYTES + overlap];
        let mut at = start;
        while at < end && !searched.found {
            let want = usize::try_from(end - at).unwrap_or(usize::MAX).min(piece.len());
            let mut have = read_at(memory, at, &mut piece[..want]);
            if have == 0 && want > PAGE_BYTES {
                have = read_at(memory, at, &mut piece[..PAGE_BYTES]);
            }
            searched.found = self.is_in(&piece[..have]);
            searched.bytes += have.min(PIECE_BYTES) as u64;
            at += if have == want { PIECE_BYTES } else { have.max(PAGE_BYTES) } as u64;
        }
    }
}

/// How a process's memory is read from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    /// `/proc/<pid>/mem`.
    File,
    /// `process_vm_readv`.
    Call,
}

/// Every way.
pub const READINGS: [Reading; 2] = [Reading::File, Reading::Call];

/// Looks through all readable memory of process `pid` for any half of each of `marks` (secrets of 32 bytes), raw or in hex: the names of
/// those that are there, and how many bytes were looked at. Only root may.
///
/// # Errors
/// When the process is gone or may not be read.
pub fn hunt(pid: u32, marks: &[Named], reading: Reading) -> Result<(BTreeSet<String>, u64)> {
    let index = Index::of(marks);
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).with_context(|| format!("memory map of {pid}"))?;
    let memory = File::open(format!("/proc/{pid}/mem")).with_context(|| format!("memory of {pid}"))?;
    let (mut found, mut looked) = (BTreeSet::new(), 0);
    let mut piece = vec![0; HUNT_BYTES + LONGEST_PATTERN];
    for line in maps.lines().filter(|line| line.split(' ').nth(1).is_some_and(|rights| rights.starts_with('r'))) {
        let Some((start, end)) = line.split(' ').next().and_then(range) else { continue };
        for at in (start..end).step_by(HUNT_BYTES) {
            let want = usize::try_from(end - at).unwrap_or(usize::MAX).min(piece.len());
            let have = match reading {
                Reading::File => read_at(&memory, at, &mut piece[..want]),
                Reading::Call => {
                    let remote = RemoteIoVec { base: usize::try_from(at)?, len: want };
                    let pid = Pid::from_raw(i32::try_from(pid)?);
                    process_vm_readv(pid, &mut [IoSliceMut::new(&mut piece[..want])], &[remote]).unwrap_or(0)
                }
            };
            index.look(&piece[..have], |name| {
                found.insert(name.to_owned());
            });
            looked += have.min(HUNT_BYTES) as u64;
        }
    }
    Ok((found, looked))
}

/// Bytes that a hunt reads at once: a page, because the kernel gives a piece as a whole or up to what it refuses.
const HUNT_BYTES: usize = PAGE_BYTES;
/// Bytes of a secret that count as a find.
const HALF: usize = 16;
/// Half a secret in hex; pieces overlap by it.
const LONGEST_PATTERN: usize = 2 * HALF;

/// Patterns by their first bytes, so that all are looked for in one pass.
struct Index<'a> {
    /// Whether any pattern begins with these two bytes.
    starts: Vec<bool>,
    patterns: HashMap<[u8; 4], Vec<(Vec<u8>, &'a str)>>,
}

impl<'a> Index<'a> {
    fn of(marks: &'a [Named]) -> Self {
        let mut index = Self { starts: vec![false; 1 << 16], patterns: HashMap::new() };
        for (name, bytes) in marks {
            for half in bytes.chunks_exact(HALF) {
                for pattern in [half.to_vec(), hex::encode(half).into_bytes()] {
                    index.starts[usize::from(pattern[0]) << 8 | usize::from(pattern[1])] = true;
                    let first = [pattern[0], pattern[1], pattern[2], pattern[3]];
                    index.patterns.entry(first).or_default().push((pattern, name));
                }
            }
        }
        index
    }

    fn look(&self, bytes: &[u8], mut found: impl FnMut(&'a str)) {
        for (at, first) in bytes.windows(4).enumerate() {
            if self.starts[usize::from(first[0]) << 8 | usize::from(first[1])]
                && let Some(patterns) = self.patterns.get(first)
            {
                let here = patterns.iter().filter(|(pattern, _)| bytes[at..].starts_with(pattern));
                here.for_each(|(_, name)| found(name));
            }
        }
    }
}

/// As much as comes in one go; nothing where the kernel refuses.
fn read_at(memory: &File, at: u64, into: &mut [u8]) -> usize {
    memory.read_at(into, at).unwrap_or(0)
}

/// What a search came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Searched {
    /// Whether the mark was there.
    pub found: bool,
    /// Bytes looked at: a search of nothing finds nothing.
    pub bytes: u64,
}

impl Searched {
    fn add(&mut self, other: Self) {
        self.found |= other.found;
        self.bytes += other.bytes;
    }
}

fn range(text: &str) -> Option<(u64, u64)> {
    let (start, end) = text.split_once('-')?;
    Some((u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?))
}

/// The mark raw, in hex, and in base64 at each alignment: the first and last characters depend on neighbours and are cut.
fn patterns(mark: &[u8]) -> Vec<Vec<u8>> {
    let lower = hex::encode(mark);
    let mut patterns = vec![mark.to_vec(), lower.to_uppercase().into_bytes(), lower.into_bytes()];
    for shift in 0..3_usize {
        let mut shifted = vec![0; shift];
        shifted.extend_from_slice(mark);
        let start = [0, 2, 3][shift];
        for engine in [STANDARD_NO_PAD, URL_SAFE_NO_PAD] {
            let encoded = engine.encode(&shifted).into_bytes();
            let end = shifted.len() / 3 * 4;
            patterns.push(encoded[start..end].to_vec());
        }
    }
    patterns
}

fn find(haystack: &[u8], needle: &[u8]) -> bool {
    let first = needle[0];
    let mut rest = haystack;
    while let Some(at) = rest.iter().position(|byte| *byte == first) {
        if rest[at..].starts_with(needle) {
            return true;
        }
        rest = &rest[at + 1..];
    }
    false
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn finds_each_form_at_each_alignment_and_nothing_else() {
        let canary = Canary::draw("test");
        for before in ["", "x", "xy", "xyz"] {
            let text = format!("{before}{}tail", canary.text());
            for form in [
                text.clone(),
                hex::encode(&text),
                hex::encode_upper(&text),
                STANDARD_NO_PAD.encode(&text),
                URL_SAFE_NO_PAD.encode(&text),
            ] {
                assert!(canary.is_in(form.as_bytes()), "{form}");
            }
        }
        assert!(!canary.is_in(Canary::draw("other").text().as_bytes()));
    }

    #[test]
    fn finds_itself_in_this_process_and_below_a_folder() {
        let canary = Canary::draw("test");
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(canary.search_below(folder.path()).unwrap(), Searched::default());
        std::fs::create_dir(folder.path().join("a")).unwrap();
        std::fs::write(folder.path().join("a/b"), format!("--{}--", canary.text())).unwrap();
        let below = canary.search_below(folder.path()).unwrap();
        assert_eq!(below, Searched { found: true, bytes: canary.text().len() as u64 + 4 });
        let memory = canary.search_memory(std::process::id()).unwrap();
        assert!(memory.found && memory.bytes > 0);
        assert!(canary.search_memory(u32::MAX >> 1).is_err(), "no such process is no clean search");
    }
}
