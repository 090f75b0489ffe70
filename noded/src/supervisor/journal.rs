//! The modules' last words: the lines that each of them wrote, bounded in number, length and rate, for `openred module logs`.
//!
//! A module writes to a pipe (`log`); what comes of it goes here and into the node's own log, and no faster into either than is allowed here: what is
//! too much is counted and dropped. Lines are escaped before they are kept. Kept in memory, as long as the supervisor runs.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::cli::one_line;

/// Bytes that are kept of one module.
const BYTES: usize = 256 * 1024;
/// Lines that are kept of one module.
const LINES: usize = 2000;
/// Lines a second in the long run.
const RATE: u32 = 100;
/// Lines at once.
const RUSH: u32 = 1000;
/// Modules that lines are kept of: more than a node has.
const MODULES: usize = 256;

/// One line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Line {
    /// Rising by one a line, from 1.
    pub(crate) number: u64,
    /// Unix milliseconds.
    pub(crate) at: u64,
    pub(crate) text: String,
}

/// All modules' lines.
#[derive(Default)]
pub(crate) struct Journal(Mutex<BTreeMap<String, Arc<Words>>>);

impl Journal {
    /// Where a module's lines go; what it wrote before is kept.
    pub(crate) fn of(&self, module: &str) -> Arc<Words> {
        let mut modules = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if modules.len() >= MODULES && !modules.contains_key(module) {
            modules.pop_first();
        }
        Arc::clone(modules.entry(module.to_owned()).or_default())
    }

    /// The lines of a module that was ever started.
    pub(crate) fn find(&self, module: &str) -> Option<Arc<Words>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(module).cloned()
    }
}

/// One module's lines.
pub(crate) struct Words {
    kept: Mutex<Kept>,
    /// The number of the last one.
    last: watch::Sender<u64>,
}

struct Kept {
    lines: VecDeque<Line>,
    bytes: usize,
    next: u64,
    /// Lines that may still come at once, in thousandths.
    room: u64,
    since: Option<Instant>,
    dropped: u64,
}

impl Default for Words {
    fn default() -> Self {
        let room = u64::from(RUSH) * 1000;
        let kept = Kept { lines: VecDeque::new(), bytes: 0, next: 1, room, since: None, dropped: 0 };
        Self { kept: Mutex::new(kept), last: watch::Sender::new(0) }
    }
}

impl Words {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a line; what of it (and of what was dropped before it) goes on into the node's log.
    pub(crate) fn take(&self, line: &[u8], at: u64, now: Instant) -> Vec<String> {
        let mut kept = self.kept();
        let passed = kept.since.replace(now).map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        let more = u64::try_from(passed.as_millis()).unwrap_or(u64::MAX).saturating_mul(u64::from(RATE));
        kept.room = kept.room.saturating_add(more).min(u64::from(RUSH) * 1000);
        let Some(room) = kept.room.checked_sub(1000) else {
            kept.dropped += 1;
            return Vec::new();
        };
        kept.room = room;
        let mut lines = Vec::new();
        let dropped = std::mem::take(&mut kept.dropped);
        if dropped > 0 {
            lines.push(format!("({dropped} lines were dropped: more than {RATE} a second)"));
        }
        lines.push(one_line(&String::from_utf8_lossy(line)));
        for text in &lines {
            kept.add(at, text.clone());
        }
        let last = kept.next - 1;
        drop(kept);
        self.last.send_replace(last);
        lines
    }

    /// The last `count` lines behind number `after`.
    pub(crate) fn read(&self, after: u64, count: usize) -> Vec<Line> {
        let kept = self.kept();
        let behind = kept.lines.iter().filter(|line| line.number > after).count();
        kept.lines.iter().skip(kept.lines.len() - behind.min(count)).cloned().collect()
    }

    /// Hears of each number that becomes the last.
    pub(crate) fn hear(&self) -> watch::Receiver<u64> {
        self.last.subscribe()
    }
}

impl Kept {
    fn add(&mut self, at: u64, text: String) {
        self.bytes += text.len();
        self.lines.push_back(Line { number: self.next, at, text });
        self.next += 1;
        while self.lines.len() > LINES || self.bytes > BYTES {
            let Some(first) = self.lines.pop_front() else { return };
            self.bytes -= first.text.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_kept_in_bounds_and_escaped() {
        let (words, begun) = (Words::default(), Instant::now());
        for second in 0..3000_u64 {
            words.take(b"a \x1b[2J line", second, begun + Duration::from_secs(second));
        }
        let read = words.read(0, usize::MAX);
        assert_eq!((read.len(), read[LINES - 1].number), (LINES, 3000));
        assert!(!read[0].text.contains('\u{1b}'));
        assert_eq!(words.read(0, 2).iter().map(|line| line.number).collect::<Vec<_>>(), [2999, 3000]);
        assert!(words.read(3000, 5).is_empty());
        for _ in 0..RUSH {
            words.take(&[b'x'; 4096], 0, begun + Duration::from_secs(4000));
        }
        assert!(words.kept().bytes <= BYTES && !words.read(0, usize::MAX).is_empty());
    }

    #[test]
    fn a_flood_is_dropped_and_counted() {
        let (words, begun) = (Words::default(), Instant::now());
        let passed: usize = (0..RUSH + 50).map(|_| words.take(b"x", 0, begun).len()).sum();
        assert_eq!(passed, RUSH as usize);
        let later = words.take(b"later", 0, begun + Duration::from_secs(1));
        assert_eq!(later, ["(50 lines were dropped: more than 100 a second)", "later"]);
    }

    #[test]
    fn modules_are_told_apart() {
        let journal = Journal::default();
        journal.of("a").take(b"of a", 0, Instant::now());
        assert_eq!(journal.find("a").map(|words| words.read(0, 9).len()), Some(1));
        assert!(journal.find("b").is_none());
        assert_eq!(journal.of("b").read(0, 9), []);
    }
}
