//! Reads a trail offline, segment after segment, and names what was changed, swapped, left out or cut off.
//!
//! What it can say: everything up to the last signature is as the key holder wrote it. Records after that are chained and not
//! signed yet; that the trail ends where it ends shows only against the live vault or a checkpoint that was kept elsewhere.

use super::{Checkpoint, Content, Event, Hash, Header, Record, SLOT_BYTES, SLOTS};
use crate::id::{NodeId, UnixMillis};

/// Faults that are listed; a trail with more is not read better by a longer list.
const FAULTS: usize = 100;

/// What is wrong at one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FaultKind {
    /// The file is no segment.
    #[error("the file is no segment of an audit trail, or its first slot was changed")]
    NoHeader,
    /// The file's name says that it is sealed, and its bytes do not.
    #[error("the file is no sealed segment, or was cut: only its name says so")]
    NotSealed,
    /// Of another node.
    #[error("the segment is of another node")]
    WrongNode,
    /// Segments are missing before this one.
    #[error("segments are missing before this one: expected number {expected}")]
    MissingSegment {
        /// The number that should have come.
        expected: u64,
    },
    /// The slot's bytes are not what its hash says.
    #[error("the slot was changed, or never wholly written")]
    Damaged,
    /// The record does not follow the one before it.
    #[error("the record does not follow the one before it: something was changed, swapped or put in between")]
    Broken,
    /// Records are missing.
    #[error("records are missing: expected sequence {expected}")]
    MissingRecords {
        /// The sequence that should have come.
        expected: u64,
    },
    /// Time runs backwards.
    #[error("its time is before that of the record before it")]
    TimeFell,
    /// A signed record without its signature, or a signature without its record.
    #[error("a signed record and its signature do not stand together")]
    Unsigned,
    /// A signature that does not verify.
    #[error("the signature does not verify under the node id")]
    BadSignature,
    /// Something behind the end.
    #[error("there is something behind the end of the segment")]
    AfterEnd,
    /// A segment that others follow does not end as one.
    #[error("the segment has no closing record though others follow it: its end is cut off")]
    NotClosed,
    /// The operator began anew.
    #[error("the trail was begun anew by the operator: what was before it is lost")]
    BegunAnew,
    /// The trail ends before what is known of it from elsewhere.
    #[error("the trail ends before sequence {known}, which it had: its end is cut off")]
    Cut {
        /// What the live vault or the checkpoint says.
        known: u64,
    },
    /// The record with this sequence is another than the checkpoint's.
    #[error("the record is another than the one that the checkpoint covers")]
    NotTheSame,
}

/// A fault and its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Number of the segment as far as it is known.
    pub segment: u64,
    /// Slot in it.
    pub slot: usize,
    /// Sequence of the record, where there is one.
    pub sequence: u64,
    /// What.
    pub kind: FaultKind,
}

/// What is known of a place in the trail from elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    /// The record.
    pub sequence: u64,
    /// Its hash.
    pub hash: Hash,
}

/// What a reading found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Segments read.
    pub segments: u64,
    /// Records read.
    pub records: u64,
    /// Signatures that verified.
    pub signatures: u64,
    /// First and last sequence; zero when there is no record.
    pub first: u64,
    /// See `first`.
    pub last: u64,
    /// Hash of the last record.
    pub last_hash: Hash,
    /// Last sequence that a signature covers.
    pub signed: u64,
    /// The latest signature, to be kept elsewhere.
    pub checkpoint: Option<(Checkpoint, Signature)>,
    /// Sequences known from elsewhere whose records were not among those read, so that nothing was compared.
    pub uncompared: Vec<u64>,
    /// What is wrong, at most the first hundred.
    pub faults: Vec<Fault>,
    /// How many there are in all.
    pub fault_count: u64,
}

/// Sixty-four bytes that compare and print.
pub type Signature = [u8; 64];

/// Where the chain stands.
#[derive(Clone, Copy)]
struct Chain {
    segment: u64,
    sequence: u64,
    time: UnixMillis,
    hash: Hash,
    closed: bool,
    /// The segment is there and was not read.
    unread: bool,
}

/// What is known from elsewhere, and what became of it.
struct Held {
    known: Known,
    /// From the living vault, which writes where everybody can read.
    is_live: bool,
    /// Its record was read.
    met: bool,
}

/// A reading under way. Give it the segments in their order, then ask for the report.
pub struct Verifier {
    node: NodeId,
    known: Vec<Held>,
    chain: Option<Chain>,
    report: Report,
}

impl Verifier {
    /// For the trail of `node`; `known` is what is known of it from elsewhere.
    #[must_use]
    pub fn new(node: NodeId, known: Vec<Known>) -> Self {
        let known = known.into_iter().map(|known| Held { known, is_live: false, met: false }).collect();
        Self { node, known, chain: None, report: Report::default() }
    }

    /// Where the living vault says that the trail stands: no unread segment excuses an end before that.
    #[must_use]
    pub fn living(mut self, known: Option<Known>) -> Self {
        self.known.extend(known.map(|known| Held { known, is_live: true, met: false }));
        self
    }

    /// Reads one segment's bytes and shows each of its records, those that are wrong as well, and their hashes.
    pub fn segment(&mut self, bytes: &[u8], visit: &mut dyn FnMut(&Record)) {
        let slots: Vec<&[u8; SLOT_BYTES]> = bytes.as_chunks().0.iter().take(SLOTS).collect();
        let header = match slots.first().map(|slot| Content::of(slot)) {
            Some(Content::Header(header, hash)) => (header, hash),
            _ => {
                let segment = self.chain.map_or(0, |chain| chain.segment.saturating_add(1));
                return self.fault(segment, 0, 0, FaultKind::NoHeader);
            }
        };
        self.report.segments += 1;
        self.header(header.0, header.1);
        let mut reading = Reading { segment: header.0.segment, slot: 1, owed: None, ended: false, told: false };
        for slot in &slots[1..] {
            self.slot(&mut reading, &Content::of(slot), visit);
            reading.slot += 1;
        }
        if reading.owed.is_some() {
            self.fault(reading.segment, reading.slot - 1, 0, FaultKind::Unsigned);
        }
    }

    /// A segment that is there and that this reader cannot open, in its place among the others: the chain begins anew behind it.
    pub fn unread(&mut self, segment: u64) {
        if let Some(chain) = self.chain {
            if segment != chain.segment.saturating_add(1) {
                self.fault(segment, 0, 0, FaultKind::MissingSegment { expected: chain.segment.saturating_add(1) });
            } else if !chain.closed {
                self.fault(chain.segment, SLOTS, chain.sequence, FaultKind::NotClosed);
            }
        }
        let (sequence, time) = self.chain.map_or((0, UnixMillis(0)), |chain| (chain.sequence, chain.time));
        self.chain = Some(Chain { segment, sequence, time, hash: [0; 32], closed: true, unread: true });
    }

    /// A file with a sealed segment's name that is none: its place among the others stays empty.
    pub fn unsealed(&mut self, segment: u64) {
        self.fault(segment, 0, 0, FaultKind::NotSealed);
    }

    fn header(&mut self, header: Header, hash: Hash) {
        let at = |kind| (header.segment, 0, header.first, kind);
        let mut faults = Vec::new();
        if header.node != self.node {
            faults.push(at(FaultKind::WrongNode));
        }
        // Of the first segment that is kept nothing is asked: whether earlier ones are owed is for the caller, who knows what was filed away.
        if let Some(chain) = self.chain {
            let foreign = header.previous != chain.hash || header.first != chain.sequence.saturating_add(1);
            let back = header.first <= chain.sequence;
            if header.segment != chain.segment.saturating_add(1) {
                faults.push(at(FaultKind::MissingSegment { expected: chain.segment.saturating_add(1) }));
            } else if !chain.closed {
                faults.push((chain.segment, SLOTS, chain.sequence, FaultKind::NotClosed));
            } else if (chain.unread && back) || (!chain.unread && foreign) {
                faults.push(at(FaultKind::Broken));
            }
        }
        if self.report.segments == 1 {
            self.report.first = header.first;
        }
        for (segment, slot, sequence, kind) in faults {
            self.fault(segment, slot, sequence, kind);
        }
        let time = self.chain.map_or(UnixMillis(0), |chain| chain.time);
        let sequence = header.first.saturating_sub(1);
        self.chain = Some(Chain { segment: header.segment, sequence, time, hash, closed: false, unread: false });
    }

    fn slot(&mut self, reading: &mut Reading, content: &Content, visit: &mut dyn FnMut(&Record)) {
        let (segment, slot) = (reading.segment, reading.slot);
        if matches!(content, Content::Empty) {
            reading.ended = true;
            return;
        }
        if reading.ended {
            // Said once a segment: what lies there is of no use to a reader.
            if !std::mem::replace(&mut reading.told, true) {
                self.fault(segment, slot, 0, FaultKind::AfterEnd);
            }
            return;
        }
        match content {
            Content::Record(record, hash) => {
                if reading.owed.take().is_some() {
                    self.fault(segment, slot, record.sequence, FaultKind::Unsigned);
                }
                self.record(segment, slot, record, *hash);
                if record.event.is_signed() {
                    let (sequence, time) = (record.sequence, record.time);
                    reading.owed = Some(Checkpoint { node: self.node, segment, sequence, time, hash: *hash });
                }
                visit(record);
            }
            Content::Signature { sequence, signature } => match reading.owed.take() {
                Some(owed) if owed.sequence == *sequence => self.signature(slot, owed, signature),
                _ => self.fault(segment, slot, *sequence, FaultKind::Unsigned),
            },
            Content::Empty => {}
            Content::Header(..) | Content::Damaged => self.fault(segment, slot, 0, FaultKind::Damaged),
        }
    }

    fn record(&mut self, segment: u64, slot: usize, record: &Record, hash: Hash) {
        let Some(chain) = self.chain else { return };
        let mut fault = |kind| self.fault(segment, slot, record.sequence, kind);
        if chain.closed {
            fault(FaultKind::AfterEnd);
        }
        if record.sequence > chain.sequence.saturating_add(1) {
            fault(FaultKind::MissingRecords { expected: chain.sequence.saturating_add(1) });
        } else if record.previous != chain.hash || record.sequence != chain.sequence.saturating_add(1) {
            fault(FaultKind::Broken);
        }
        if record.time < chain.time {
            fault(FaultKind::TimeFell);
        }
        if record.event == Event::BegunAnew {
            fault(FaultKind::BegunAnew);
        }
        let (sequence, time) = (record.sequence, record.time);
        let mut is_other = false;
        for held in self.known.iter_mut().filter(|held| held.known.sequence == sequence) {
            held.met = true;
            is_other |= held.known.hash != hash;
        }
        if is_other {
            self.fault(segment, slot, sequence, FaultKind::NotTheSame);
        }
        let closed = record.event == Event::SegmentClosed;
        self.chain = Some(Chain { segment, sequence, time, hash, closed, unread: false });
        self.report.records += 1;
        (self.report.last, self.report.last_hash) = (sequence, hash);
    }

    fn signature(&mut self, slot: usize, owed: Checkpoint, signature: &[u8; 64]) {
        if owed.check(signature).is_err() {
            return self.fault(owed.segment, slot, owed.sequence, FaultKind::BadSignature);
        }
        self.report.signatures += 1;
        self.report.signed = owed.sequence;
        self.report.checkpoint = Some((owed, *signature));
    }

    fn fault(&mut self, segment: u64, slot: usize, sequence: u64, kind: FaultKind) {
        self.report.fault_count += 1;
        if self.report.faults.len() < FAULTS {
            self.report.faults.push(Fault { segment, slot, sequence, kind });
        }
    }

    /// The report, with what is known from elsewhere held against the end.
    #[must_use]
    pub fn finish(mut self) -> Report {
        let (last, is_open) = (self.report.last, self.chain.is_some_and(|chain| chain.unread));
        // Behind the last record, where an unread segment may have it.
        let is_cut = |held: &&Held| held.known.sequence > last && (held.is_live || !is_open);
        let cut = self.known.iter().filter(is_cut).map(|held| held.known.sequence).max();
        let left = self.known.iter().filter(|held| held.known.sequence > 0 && !held.met && !is_cut(held));
        self.report.uncompared = left.map(|held| held.known.sequence).collect();
        if let Some(known) = cut {
            let segment = self.chain.map_or(0, |chain| chain.segment);
            self.fault(segment, SLOTS, last, FaultKind::Cut { known });
        }
        self.report
    }
}

/// Where the reading of one segment stands.
struct Reading {
    segment: u64,
    slot: usize,
    /// A signed record whose signature is to come next.
    owed: Option<Checkpoint>,
    /// An empty slot was seen.
    ended: bool,
    /// That something lies behind it was said.
    told: bool,
}
