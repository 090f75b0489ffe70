//! The vault's audit trail: what was done with the keys, durable before anybody hears of it. Sans-IO: [`Trail::commit`] returns
//! the writes; the loop makes them durable, before those of the state, and only then replies.
//!
//! Two segments, both preallocated, so that a full disk does not stop the writing. When one is full the vault signs it, goes on in
//! the other, and refuses to use a key when that is full as well before the first was filed away. What others can bring about as
//! often as they like (refusals, the front's reports) has a share of its own: so many a second, and a tenth of a segment; what is
//! refused over it is counted, what is reported over it is not taken, so that who reports keeps it. What the supervisor notes has a
//! share that nobody else can spend: a death by the filter is recorded however many refusals came before it. How a trail is found again at a start is in `audit/open`; the format is `openred_proto::audit`.

use hmac::{Hmac, KeyInit, Mac};
use openred_proto::audit::{
    CHECKPOINT_EVERY, CHECKPOINT_RECORDS, Checkpoint, Event, Hash, Header, Record, SLOT_BYTES, SLOTS, encode_signature,
};
use openred_proto::id::{NodeId, UnixMillis};
use openred_proto::secret::Secret;
use openred_proto::vault::AuditStatus;
use sha2::Sha256;

use crate::error::{Error, Result};
use crate::identity::Identity;

pub mod open;

/// Slots that one request can take at most: its record, one about records left out, new keys of two kinds, a signed checkpoint.
const REQUEST_SLOTS: usize = 8;
/// Slots kept for the end: a signed record that closes the segment, and one that says that the vault was locked or
/// left, behind one about what has no record of its own.
const CLOSING_SLOTS: usize = 5;
/// Pending slots above which a commit is due: 32 KiB.
const PENDING_SLOTS: usize = 256;
/// Refusals and reports that have a record of their own: at once,
const LIMITED_BURST: u64 = 100;
/// and in a second.
const LIMITED_PER_SECOND: u64 = 10;
/// And of a segment at most a tenth.
const LIMITED_SLOTS: usize = SLOTS / 10;
/// Notes of the supervisor: at once, more than it has kinds of them,
const NOTED_BURST: u64 = 20;
/// in a second: one of each kind with each of its looks,
const NOTED_PER_SECOND: u64 = 4;
/// and of a segment.
const NOTED_SLOTS: usize = SLOTS / 50;
/// Of these, deaths that the filter had no part in: a process can bring about more of them than of any other kind.
const NOTED_DEATHS: usize = NOTED_SLOTS / 2;

/// One write to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrailWrite {
    /// Which of the two files.
    pub file: usize,
    /// Where in it.
    pub offset: u64,
    /// What.
    pub bytes: Vec<u8>,
}

/// Where the trail stands, as the state remembers it: what a start holds the files against.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// The segment that is written; zero before the first.
    pub segment: u64,
    /// The file that it is in.
    pub file: u8,
    /// Its next free slot.
    pub slot: u32,
    /// The last record.
    pub sequence: u64,
    /// Hash of the last record.
    pub hash: Hash,
    /// Number of the closed segment in the other file; zero when that is zeros.
    pub waiting: u64,
}

/// The trail as it is written.
pub struct Trail {
    node: NodeId,
    head: Head,
    /// Time of the last record.
    time: UnixMillis,
    pending: [Pending; 2],
    unsigned: u32,
    signed_at: UnixMillis,
    limit: Limit,
    /// The start is still to be recorded: there was no room for it.
    start_owed: bool,
}

/// Slots of one file that are not durable yet.
#[derive(Default)]
struct Pending {
    from: usize,
    bytes: Vec<u8>,
}

/// What may have a record of its own, of what comes as often as somebody likes.
struct Limit {
    /// Refusals, and the front's reports of them.
    others: Share,
    /// What `noded` reports of the network: strangers bring it about, and it takes nothing from refusals.
    reports: Share,
    /// The supervisor's notes: nobody but the supervisor spends them.
    notes: Share,
    /// Left out since the last record that says so.
    left_out: u32,
}

/// So many at once, so many a second, so many slots of a segment.
struct Share {
    burst: u64,
    per_second: u64,
    /// In thousandths.
    level: u64,
    filled: UnixMillis,
    /// Slots of this segment.
    taken: usize,
}

/// How `peer` is named in the trail that `key` belongs to: who has the trail alone does not learn with whom the node spoke.
#[must_use]
pub fn subject(key: &Secret<32>, peer: &NodeId) -> Hash {
    let mut mac = Hmac::<Sha256>::new_from_slice(key.expose()).expect("HMAC takes a key of any length");
    mac.update(peer.as_bytes());
    mac.finalize().into_bytes().into()
}

impl Limit {
    const fn new(now: UnixMillis) -> Self {
        let others = Share::new(LIMITED_BURST, LIMITED_PER_SECOND, now);
        let reports = Share::new(LIMITED_BURST, LIMITED_PER_SECOND, now);
        Self { others, reports, notes: Share::new(NOTED_BURST, NOTED_PER_SECOND, now), left_out: 0 }
    }

    /// The shares of the next segment.
    const fn begin_segment(&mut self) {
        (self.others.taken, self.reports.taken, self.notes.taken) = (0, 0, 0);
    }
}

impl Share {
    const fn new(burst: u64, per_second: u64, now: UnixMillis) -> Self {
        Self { burst, per_second, level: burst * 1000, filled: now, taken: 0 }
    }

    /// Whether one more may have a record, of at most `slots` in this segment.
    fn take(&mut self, slots: usize, now: UnixMillis) -> bool {
        let refill = now.0.saturating_sub(self.filled.0).saturating_mul(self.per_second);
        self.filled = now;
        self.level = self.level.saturating_add(refill).min(self.burst * 1000);
        let may = self.level >= 1000 && self.taken < slots;
        if may {
            self.level -= 1000;
            self.taken += 1;
        }
        may
    }
}

impl Trail {
    /// Where it stands, for the state.
    #[must_use]
    pub const fn head(&self) -> Head {
        self.head
    }

    /// For the supervisor, and for whoever compares the files with the living vault.
    #[must_use]
    pub fn status(&self) -> AuditStatus {
        AuditStatus {
            segment: self.head.segment,
            file: self.head.file,
            slots: self.head.slot,
            sequence: self.head.sequence,
            hash: self.head.hash,
            waiting: (self.head.waiting != 0).then_some(self.head.waiting),
            full: self.head.waiting != 0 && !self.has_room(),
        }
    }

    pub(crate) const fn has_room(&self) -> bool {
        self.head.slot as usize + REQUEST_SLOTS + CLOSING_SLOTS <= SLOTS
    }

    /// Sees to it that what one request does can be recorded: goes on in the other segment when this one is full.
    ///
    /// # Errors
    /// [`Error::LocalAuditFull`] when that one is not free yet.
    pub(crate) fn make_room(&mut self, identity: &Identity, now: UnixMillis) -> Result<bool> {
        let switched = !self.has_room();
        if switched {
            if self.head.waiting != 0 {
                return Err(Error::LocalAuditFull);
            }
            self.sign(Event::SegmentClosed, identity, now);
            let (segment, file) = (self.head.segment, 1 - self.head.file);
            self.head.waiting = segment;
            self.begin(segment + 1, file, now);
            self.limit.begin_segment();
        }
        if std::mem::take(&mut self.start_owed) {
            self.record(Event::Started, 0, None, now);
        }
        Ok(switched)
    }

    /// A signed record at the end of the vault's life. It takes what is kept for it, not what is kept for closing.
    pub(crate) fn end(&mut self, event: Event, identity: &Identity, now: UnixMillis) {
        if self.head.slot as usize + CLOSING_SLOTS <= SLOTS {
            self.say_left_out(now);
            self.sign(event, identity, now);
        }
    }

    /// Begins a segment with its header and a record that says so.
    fn begin(&mut self, segment: u64, file: u8, now: UnixMillis) {
        let header = Header { node: self.node, segment, first: self.head.sequence + 1, previous: self.head.hash };
        let (slot, hash) = header.encode();
        (self.head.segment, self.head.file, self.head.slot, self.head.hash) = (segment, file, 0, hash);
        self.push(&slot);
        self.record(Event::SegmentBegun, 0, None, now);
    }

    fn push(&mut self, slot: &[u8; SLOT_BYTES]) {
        let (pending, at) = (&mut self.pending[usize::from(self.head.file)], self.head.slot as usize);
        if pending.bytes.is_empty() {
            pending.from = at;
        }
        // What is pending may reach further already: zeros over what a crash has left.
        let place = (at - pending.from) * SLOT_BYTES;
        pending.bytes.resize(pending.bytes.len().max(place + SLOT_BYTES), 0);
        pending.bytes[place..place + SLOT_BYTES].copy_from_slice(slot);
        self.head.slot += 1;
    }

    fn write(&mut self, event: Event, outcome: u8, count: u32, subject: Hash, now: UnixMillis) {
        // A clock that is set back does not let time fall; at the next start it is refused by name.
        self.time = self.time.max(now);
        self.head.sequence += 1;
        let (sequence, time, previous) = (self.head.sequence, self.time, self.head.hash);
        let (slot, hash) = Record { sequence, time, event, outcome, count, subject, previous }.encode();
        self.head.hash = hash;
        self.push(&slot);
        self.unsigned += 1;
    }

    /// Records something that was done, to whom if to somebody ([`subject`]).
    pub(crate) fn record(&mut self, event: Event, count: u32, subject: Option<Hash>, now: UnixMillis) {
        self.write(event, 0, count, subject.unwrap_or_default(), now);
    }

    /// Records a refusal (`outcome` is its number), which others can bring about as often as they like; what has no place is counted.
    pub(crate) fn record_limited(&mut self, event: Event, outcome: u8, count: u32, now: UnixMillis) {
        if self.has_room() && self.limit.others.take(LIMITED_SLOTS, now) {
            self.say_left_out(now);
            self.write(event, outcome, count, [0; 32], now);
        } else {
            self.limit.left_out = self.limit.left_out.saturating_add(count.max(1));
        }
    }

    /// Records what the front or `noded` reports or the supervisor notes, `noded` and supervisor from a share of their own. False where that is spent: nothing is
    /// counted then, for who reports it still has it, and says it again.
    #[must_use]
    pub(crate) fn record_reported(&mut self, event: Event, count: u32, now: UnixMillis) -> bool {
        if !self.has_room() {
            return false;
        }
        let (share, slots) = match event {
            Event::ProcessDied => (&mut self.limit.notes, NOTED_DEATHS),
            _ if event.is_of_supervisor() => (&mut self.limit.notes, NOTED_SLOTS),
            Event::SessionForged | Event::Flooded | Event::DirectoryLied | Event::OfferRefused => {
                (&mut self.limit.reports, LIMITED_SLOTS)
            }
            _ => (&mut self.limit.others, LIMITED_SLOTS),
        };
        let may = share.take(slots, now);
        if may {
            self.say_left_out(now);
            self.write(event, 0, count, [0; 32], now);
        }
        may
    }

    #[cfg(test)]
    pub(crate) const fn left_out(&self) -> u32 {
        self.limit.left_out
    }

    fn say_left_out(&mut self, now: UnixMillis) {
        if self.limit.left_out > 0 {
            let count = std::mem::take(&mut self.limit.left_out);
            self.write(Event::NotListed, 0, count, [0; 32], now);
        }
    }

    /// Writes a signed record.
    pub(crate) fn sign(&mut self, event: Event, identity: &Identity, now: UnixMillis) {
        self.write(event, 0, self.unsigned, [0; 32], now);
        let (node, segment) = (self.node, self.head.segment);
        let checkpoint =
            Checkpoint { node, segment, sequence: self.head.sequence, time: self.time, hash: self.head.hash };
        let signature = identity.sign_audit(&checkpoint);
        self.push(&encode_signature(self.head.sequence, &signature));
        (self.unsigned, self.signed_at) = (0, now);
    }

    /// Signs when a checkpoint is due; true when it did.
    pub(crate) fn maintain(&mut self, identity: &Identity, now: UnixMillis) -> bool {
        if !self.has_room() {
            return false;
        }
        let waited = now.0.abs_diff(self.signed_at.0) >= CHECKPOINT_EVERY.as_millis() as u64;
        if waited {
            self.say_left_out(now);
        }
        let due = self.unsigned >= CHECKPOINT_RECORDS || (waited && self.unsigned > 0);
        if due {
            self.sign(Event::Checkpoint, identity, now);
        }
        due
    }

    /// The closed segment was filed away and its file is zeros again.
    ///
    /// # Errors
    /// [`Error::MisuseNotAllowed`] for another number than that of the segment that waits.
    pub(crate) fn filed(&mut self, segment: u64) -> Result<()> {
        if segment == 0 || segment != self.head.waiting {
            return Err(Error::MisuseNotAllowed);
        }
        self.head.waiting = 0;
        Ok(())
    }

    /// Whether the next request has to wait for a commit.
    #[must_use]
    pub fn must_commit(&self) -> bool {
        self.pending.iter().any(|pending| pending.bytes.len() >= PENDING_SLOTS * SLOT_BYTES)
    }

    /// The writes that make every record so far durable; a segment that was closed first.
    pub fn commit(&mut self) -> Vec<TrailWrite> {
        let current = usize::from(self.head.file);
        [1 - current, current]
            .into_iter()
            .filter_map(|file| {
                let Pending { from, bytes } = std::mem::take(&mut self.pending[file]);
                let offset = (from * SLOT_BYTES) as u64;
                (!bytes.is_empty()).then_some(TrailWrite { file, offset, bytes })
            })
            .collect()
    }
}

#[cfg(test)]
mod tests;
