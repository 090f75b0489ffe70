//! How a start finds its trail again: at the place that the state remembers, and on from there as far as the chain goes.
//!
//! The state is committed after the trail, so the trail may be ahead of it, never behind: a record that the state knows and the
//! file has not was taken out. A crash in a commit can leave slots that were written in part; nothing of them was answered, they
//! are cleared, and the clearing is recorded. More of them than one commit writes are no crash's doing.

use std::time::Duration;

use openred_proto::audit::{Content, Event, Hash, Record, SLOT_BYTES, SLOTS, Slot};
use openred_proto::id::{NodeId, UnixMillis};

use super::{CLOSING_SLOTS, Head, Limit, PENDING_SLOTS, Pending, REQUEST_SLOTS, Trail};
use crate::error::{Error, Result};
use crate::identity::Identity;

/// A clock may be set back by this much between two starts: what a time service corrects in steps.
const CLOCK_BACK: Duration = Duration::from_secs(60);
/// Slots that one commit can have left half-written.
const TORN_SLOTS: usize = PENDING_SLOTS + REQUEST_SLOTS + CLOSING_SLOTS;
/// Slots read at once: 32 KiB. The vault's memory is not for whole segments.
const CHUNK: usize = 256;

/// Reads at an offset of one of the two files: which, where, into what.
pub type Read<'a> = &'a mut dyn FnMut(usize, u64, &mut [u8]) -> Result<()>;

/// What a start needs to know.
pub struct Opening<'a> {
    /// Whose trail, and who signs it.
    pub identity: &'a Identity,
    /// What the state remembers.
    pub head: Head,
    /// The operator's word that what was there is lost: begin anew, and say so.
    pub anew: bool,
    /// Identities that this one goes on for, and what the trail calls the last of them: theirs may be the trail that is there.
    pub earlier: &'a [NodeId],
    /// See `earlier`.
    pub taken: Option<Hash>,
    /// The clock.
    pub now: UnixMillis,
}

/// The two files, a chunk at a time.
struct Files<'a> {
    read: Read<'a>,
    chunk: Vec<u8>,
    loaded: Option<(usize, usize)>,
}

impl Files<'_> {
    fn slot(&mut self, file: usize, at: usize) -> Result<Slot> {
        let wanted = (file, at / CHUNK);
        if self.loaded != Some(wanted) {
            self.loaded = None;
            (self.read)(file, (wanted.1 * CHUNK * SLOT_BYTES) as u64, &mut self.chunk)?;
            self.loaded = Some(wanted);
        }
        let slot = self.chunk.as_chunks::<SLOT_BYTES>().0.get(at % CHUNK);
        slot.copied().ok_or(Error::Bug("a slot outside its chunk"))
    }

    fn content(&mut self, file: usize, at: usize) -> Result<Content> {
        self.slot(file, at).map(|slot| Content::of(&slot))
    }

    /// Slots from `from` up to the last one that is not zeros.
    fn used(&mut self, file: usize, from: usize) -> Result<usize> {
        let mut used = 0;
        for at in from..SLOTS {
            if self.slot(file, at)? != [0; SLOT_BYTES] {
                used = at - from + 1;
            }
        }
        Ok(used)
    }
}

/// The chain up to one place.
struct Walk {
    head: Head,
    time: UnixMillis,
    /// The last record closes its segment.
    closed: bool,
}

fn changed<T>(how: &'static str) -> Result<T> {
    Err(Error::LocalAuditChanged(how))
}

impl Trail {
    /// Finds the trail in the two files, or begins one.
    ///
    /// # Errors
    /// [`Error::LocalAuditUnreadable`] from the callback, [`Error::LocalAuditChanged`] when the files are not as the state
    /// remembers them, [`Error::LocalAuditClock`] when the clock is before the last record.
    pub fn open(opening: Opening<'_>, read: Read<'_>) -> Result<Self> {
        let Opening { identity, head, anew, earlier, taken, now } = opening;
        let (node, pending, limit) = (identity.node_id(), <[Pending; 2]>::default(), Limit::new(now));
        let mut trail = Self { node, head, time: now, pending, unsigned: 0, signed_at: now, limit, start_owed: true };
        let mut files = Files { read, chunk: vec![0; CHUNK * SLOT_BYTES], loaded: None };
        if anew {
            trail.begin_over(&mut files, Event::BegunAnew, None, now)?;
        } else if head.segment == 0 {
            if files.used(0, 0)? + files.used(1, 0)? > 0 {
                return changed("the state knows of no trail, and the files hold one");
            }
            trail.begin(1, 0, now);
        } else {
            match files.content(usize::from(head.file.min(1)), 0)? {
                // As far as the state knows it is whole, and its own identity's; this one's begins behind it.
                Content::Header(header, _) if header.node != node && earlier.contains(&header.node) => {
                    known(&mut files, head)?;
                    trail.begin_over(&mut files, Event::IdentityTaken, taken, now)?;
                }
                Content::Header(header, _) if header.node != node => return changed("it is another node's"),
                _ => trail.resume(&mut files, now)?,
            }
        }
        // With both segments full the vault has to come up all the same: how else would one be filed?
        match trail.make_room(identity, now) {
            Ok(_) | Err(Error::LocalAuditFull) => Ok(trail),
            Err(other) => Err(other),
        }
    }

    /// Begins a trail in two files of zeros.
    ///
    /// # Errors
    /// As [`Trail::open`].
    pub fn fresh(identity: &Identity, now: UnixMillis) -> Result<Self> {
        Self::open(
            Opening { identity, head: Head::default(), anew: false, earlier: &[], taken: None, now },
            &mut |_, _, buffer| {
                buffer.fill(0);
                Ok(())
            },
        )
    }

    /// Begins a segment in a file of zeros, with the numbers going on over the gap. Files that hold anything are cleared: the
    /// operator has put them aside, or given them up.
    fn begin_over(
        &mut self,
        files: &mut Files<'_>,
        event: Event,
        subject: Option<Hash>,
        now: UnixMillis,
    ) -> Result<()> {
        let used = [files.used(0, 0)?, files.used(1, 0)?];
        self.head.waiting = 0;
        self.begin(self.head.segment + 1, 0, now);
        self.record(event, 0, subject, now);
        self.clear(0, 0, used[0]);
        self.clear(1, 0, used[1]);
        Ok(())
    }

    /// Zeros over `count` slots from `from`, under what is pending from the same slot on.
    fn clear(&mut self, file: usize, from: usize, count: usize) {
        let pending = &mut self.pending[file];
        if pending.bytes.is_empty() {
            pending.from = from;
        }
        debug_assert_eq!(pending.from, from);
        pending.bytes.resize(pending.bytes.len().max(count * SLOT_BYTES), 0);
    }

    /// Goes on where the state left the trail.
    fn resume(&mut self, files: &mut Files<'_>, now: UnixMillis) -> Result<()> {
        let mut walk = known(files, self.head)?;
        go_on(files, &mut walk)?;
        if walk.closed && next_begins(files, &walk)? {
            // The switch was durable, the state behind it not yet. That file was free: whatever the state says of it is over.
            let head = &mut walk.head;
            head.waiting = head.segment;
            (head.segment, head.file, head.slot, walk.closed) = (head.segment + 1, 1 - head.file, 0, false);
            go_on(files, &mut walk)?;
        }
        let behind = walk.time.0.saturating_sub(now.plus(CLOCK_BACK).0);
        if behind > 0 {
            return Err(Error::LocalAuditClock(behind.div_ceil(1000)));
        }
        (self.head, self.time) = (walk.head, walk.time.max(now));
        // Whatever stands there unsigned gets its signature with the next checkpoint.
        self.unsigned = 1;
        let leftover = files.used(usize::from(self.head.file), self.head.slot as usize)?;
        if leftover > TORN_SLOTS || (walk.closed && leftover > 0) {
            return changed("it breaks off in the middle");
        }
        let (mut file, mut from, mut torn) = (usize::from(self.head.file), self.head.slot as usize, leftover);
        if walk.closed {
            // Closed for good, and its successor's first slots torn or not there yet.
            (file, from) = (1 - file, 0);
            torn = files.used(file, 0)?;
            if torn > TORN_SLOTS {
                return changed("the segment behind a closed one is not its successor");
            }
            self.head.waiting = self.head.segment;
            self.begin(self.head.segment + 1, file as u8, now);
        }
        if torn > 0 {
            if self.has_room() {
                self.record(Event::TailCleared, u32::try_from(torn).unwrap_or(u32::MAX), None, now);
            }
            self.clear(file, from, torn);
        }
        Ok(())
    }
}

/// The place that the state remembers is still there: the last thing before it is the record with its hash.
fn known(files: &mut Files<'_>, head: Head) -> Result<Walk> {
    const HOW: &str = "it does not reach as far as the state knows, or holds something else there";
    let file = usize::from(head.file.min(1));
    match files.content(file, 0)? {
        Content::Header(header, _) if header.segment == head.segment => {}
        _ => return changed(HOW),
    }
    let last = (head.slot as usize).checked_sub(1).filter(|last| *last < SLOTS).ok_or(Error::LocalStateForeign)?;
    let is_signature =
        matches!(files.content(file, last)?, Content::Signature { sequence, .. } if sequence == head.sequence);
    let at = if is_signature { last.saturating_sub(1) } else { last };
    match files.content(file, at)? {
        Content::Record(record, hash)
            if hash == head.hash && record.sequence == head.sequence && record.event.is_signed() == is_signature =>
        {
            Ok(Walk { head, time: record.time, closed: record.event == Event::SegmentClosed })
        }
        _ => changed(HOW),
    }
}

/// Follows the chain to its end in one segment.
fn go_on(files: &mut Files<'_>, walk: &mut Walk) -> Result<()> {
    let file = usize::from(walk.head.file);
    if walk.head.slot == 0 {
        let Content::Header(_, hash) = files.content(file, 0)? else { return Ok(()) };
        (walk.head.slot, walk.head.hash) = (1, hash);
    }
    while (walk.head.slot as usize) < SLOTS && !walk.closed {
        let at = walk.head.slot as usize;
        let Content::Record(record, hash) = files.content(file, at)? else { return Ok(()) };
        if !follows(&record, walk) {
            return Ok(());
        }
        if record.event.is_signed() {
            // A signed record without its signature is the torn end of a commit: both are written anew.
            let is_whole = at + 1 < SLOTS
                && matches!(files.content(file, at + 1)?, Content::Signature { sequence, .. } if sequence == record.sequence);
            if !is_whole {
                return Ok(());
            }
            walk.head.slot += 1;
        }
        walk.head.slot += 1;
        (walk.head.sequence, walk.head.hash, walk.time) = (record.sequence, hash, record.time);
        walk.closed = record.event == Event::SegmentClosed;
    }
    Ok(())
}

fn follows(record: &Record, walk: &Walk) -> bool {
    record.previous == walk.head.hash && record.sequence == walk.head.sequence + 1 && record.time >= walk.time
}

/// Whether the other file holds the segment that comes after a closed one.
fn next_begins(files: &mut Files<'_>, walk: &Walk) -> Result<bool> {
    let head = &walk.head;
    Ok(matches!(files.content(usize::from(1 - head.file), 0)?, Content::Header(header, _)
        if header.segment == head.segment + 1 && header.previous == head.hash && header.first == head.sequence + 1))
}
