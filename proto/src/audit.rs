//! The audit trail's format: slots of a segment, the chain through them, signed checkpoints. Written by the vault, read by
//! `openred audit`; no secret and no clock here. The reader that finds changes is in `audit/verify`.
//!
//! A segment is a file of [`SLOTS`] slots of [`SLOT_BYTES`] bytes, zero where nothing was written yet. Slot 0 is its header; a
//! record takes one slot, a signed record the next one as well, for the signature. Each record holds the hash of the one before
//! it, the header that of the last record of the segment before: a record that was changed, taken out or swapped breaks the
//! chain, and a signature over a hash covers everything before it. Numbers are little-endian; hashes are SHA-256 over the slot's
//! bytes before the hash, after `openred/1/audit-slot` and a zero byte.

use sha2::{Digest, Sha256};

use crate::error::{Result, WireError};
use crate::fields::{Reader, Writer};
use crate::id::{NodeId, UnixMillis};
use crate::label::{self, Label};

mod event;
pub mod verify;

pub use event::Event;

/// One slot: a record with two hashes, or a signature.
pub const SLOT_BYTES: usize = 128;
/// Slots of a segment, header included: 4 MiB, about a minute and a half of handshakes at the rate of two cores (docs/benchmarks.md).
pub const SLOTS: usize = 32_768;
/// Bytes of a segment.
pub const SEGMENT_BYTES: usize = SLOTS * SLOT_BYTES;
/// Records after which a checkpoint is signed.
pub const CHECKPOINT_RECORDS: u32 = 1000;
/// Time after which one is signed when there are records since the last.
pub const CHECKPOINT_EVERY: std::time::Duration = std::time::Duration::from_secs(60);

const MAGIC: [u8; 8] = *b"ORAUDIT1";
/// Kinds of slots; a header begins with its magic.
const RECORD: u8 = 1;
const SIGNATURE: u8 = 2;
/// Where a slot's own hash begins.
const HASH_AT: usize = SLOT_BYTES - 40;
const WHAT: &str = "audit checkpoint";

/// A slot's bytes.
pub type Slot = [u8; SLOT_BYTES];
/// A link of the chain.
pub type Hash = [u8; 32];

/// First slot of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Whose trail.
    pub node: NodeId,
    /// Number of the segment, from one.
    pub segment: u64,
    /// Sequence of its first record.
    pub first: u64,
    /// Hash of the last record before; zeros before the first.
    pub previous: Hash,
}

/// One record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// Rises by one from record to record, from one.
    pub sequence: u64,
    /// The vault's clock; never falls.
    pub time: UnixMillis,
    /// What happened.
    pub event: Event,
    /// Zero when it was done, else the number of the refusal ([`crate::refusal::outcome_name`]).
    pub outcome: u8,
    /// Of a report about several: how many. Else zero.
    pub count: u32,
    /// HMAC of the peer under a key that stays in the vault; zeros when there is no peer.
    pub subject: Hash,
    /// Hash of the slot before it in the chain.
    pub previous: Hash,
}

/// What a slot holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// Nothing was ever written there.
    Empty,
    /// A segment's first slot, and its hash.
    Header(Header, Hash),
    /// A record, and its hash.
    Record(Record, Hash),
    /// The signature of the record before it.
    Signature {
        /// Sequence of that record.
        sequence: u64,
        /// Ed25519 over [`Checkpoint::encode`].
        signature: [u8; 64],
    },
    /// Bytes that are none of these, or whose hash is another.
    Damaged,
}

fn slot_hash(bytes: &Slot) -> Hash {
    Sha256::new().chain_update(b"openred/1/audit-slot\0").chain_update(&bytes[..HASH_AT]).finalize().into()
}

fn finish(mut bytes: Slot) -> (Slot, Hash) {
    let hash = slot_hash(&bytes);
    bytes[HASH_AT..HASH_AT + 32].copy_from_slice(&hash);
    (bytes, hash)
}

/// Writes fields into a slot, one after the other.
struct Fields(Slot, usize);

impl Fields {
    fn new() -> Self {
        Self([0; SLOT_BYTES], 0)
    }

    fn put(mut self, bytes: &[u8]) -> Self {
        self.0[self.1..self.1 + bytes.len()].copy_from_slice(bytes);
        self.1 += bytes.len();
        self
    }
}

fn array<const N: usize>(slot: &Slot, at: usize) -> [u8; N] {
    std::array::from_fn(|place| slot[at + place])
}

fn number(slot: &Slot, at: usize) -> u64 {
    u64::from_le_bytes(array(slot, at))
}

impl Header {
    /// The slot and its hash.
    #[must_use]
    pub fn encode(&self) -> (Slot, Hash) {
        let fields = Fields::new().put(&MAGIC).put(self.node.as_bytes()).put(&self.segment.to_le_bytes());
        finish(fields.put(&self.first.to_le_bytes()).put(&self.previous).0)
    }
}

impl Record {
    /// The slot and its hash.
    #[must_use]
    pub fn encode(&self) -> (Slot, Hash) {
        let event = self.event.number().to_le_bytes();
        let fields = Fields::new().put(&[RECORD, self.outcome]).put(&event).put(&self.count.to_le_bytes());
        let fields = fields.put(&self.sequence.to_le_bytes()).put(&self.time.0.to_le_bytes());
        finish(fields.put(&self.subject).put(&self.previous).0)
    }
}

/// The slot behind a signed record.
#[must_use]
pub fn encode_signature(sequence: u64, signature: &[u8; 64]) -> Slot {
    finish(Fields::new().put(&[SIGNATURE, 0, 0, 0, 0, 0, 0, 0]).put(&sequence.to_le_bytes()).put(signature).0).0
}

impl Content {
    /// Reads a slot.
    #[must_use]
    pub fn of(slot: &Slot) -> Self {
        if slot.iter().all(|byte| *byte == 0) {
            return Content::Empty;
        }
        let hash = slot_hash(slot);
        if array::<32>(slot, HASH_AT) != hash || slot[HASH_AT + 32..].iter().any(|byte| *byte != 0) {
            return Content::Damaged;
        }
        match slot[0] {
            RECORD => Self::record(slot, hash),
            SIGNATURE if slot[1..8] == [0; 7] && slot[80..HASH_AT] == [0; HASH_AT - 80] => {
                Content::Signature { sequence: number(slot, 8), signature: array(slot, 16) }
            }
            byte if byte == MAGIC[0] && slot[..8] == MAGIC => {
                let node = NodeId::from_bytes(array(slot, 8));
                let (segment, first, previous) = (number(slot, 40), number(slot, 48), array(slot, 56));
                Content::Header(Header { node, segment, first, previous }, hash)
            }
            _ => Content::Damaged,
        }
    }

    fn record(slot: &Slot, hash: Hash) -> Self {
        let Some(event) = Event::from_number(u16::from_le_bytes(array(slot, 2))) else { return Content::Damaged };
        let record = Record {
            sequence: number(slot, 8),
            time: UnixMillis(number(slot, 16)),
            event,
            outcome: slot[1],
            count: u32::from_le_bytes(array(slot, 4)),
            subject: array(slot, 24),
            previous: array(slot, 56),
        };
        Content::Record(record, hash)
    }
}

/// What a signature covers: a place in a node's trail, and through its hash everything before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// Whose trail.
    pub node: NodeId,
    /// The segment of the record.
    pub segment: u64,
    /// The record.
    pub sequence: u64,
    /// Its time.
    pub time: UnixMillis,
    /// Its hash.
    pub hash: Hash,
}

impl Checkpoint {
    /// The payload to sign.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        Writer::new()
            .bytes(1, self.node.as_bytes())
            .number(2, self.segment)
            .number(3, self.sequence)
            .number(4, self.time.0)
            .bytes(5, &self.hash)
            .finish()
    }

    /// Checks a signature over it.
    ///
    /// # Errors
    /// Bad signature.
    pub fn check(&self, signature: &[u8; 64]) -> Result<()> {
        label::verify(Label::Audit, &self.encode(), &self.node, signature, WHAT)
    }

    /// Verifies a checkpoint that was kept elsewhere, as `openred audit export --checkpoint` writes it.
    ///
    /// # Errors
    /// Malformed, bad signature, or signed by another than the node that it speaks for.
    pub fn verify(statement: &[u8]) -> Result<Self> {
        let statement = crate::checked::statement::Unverified::decode(WHAT, statement)?.verify(Label::Audit, WHAT)?;
        let mut reader = Reader::new(WHAT, statement.payload());
        let checkpoint = Self {
            node: NodeId::from_bytes(reader.array(1)?),
            segment: reader.number(2)?,
            sequence: reader.number(3)?,
            time: UnixMillis(reader.number(4)?),
            hash: reader.array(5)?,
        };
        reader.finish()?;
        if checkpoint.node == statement.signer() { Ok(checkpoint) } else { Err(WireError::WrongSigner { what: WHAT }) }
    }
}

#[cfg(test)]
pub(crate) mod tests;
