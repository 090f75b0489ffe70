//! Where the state lies in its file, how it is sealed, and how a torn write is survived. Sans-IO: [`State::load`] reads
//! through a callback, [`State::commit`] returns the writes.
//!
//! Layout: two header slots of 4 KiB, then 4,096 places of two record slots of 512 bytes (a disk sector each, so a torn
//! write reaches no neighbour). Everything has two slots and is written to the one that does not hold its latest version. Each
//! slot is `nonce (24) || XChaCha20-Poly1305 (padded record)`; random nonces, because a file that was set back must not
//! make one repeat. The associated data is the slot's place, so no slot can be moved. A commit writes one header and
//! the records that changed: a handshake costs 4 KiB and 512 bytes, whatever the number of links.
//!
//! A commit counts only when its header and every record that the header lists are there; the caller answers nobody before
//! all of it is durable. After a torn commit the load falls back to the header before it, whose records are all still in
//! their other slots, and the leftovers are written over by the next commit. The header holds a keyed digest over (place,
//! commit) of all records, so a single record that was set back or swapped is noticed ([`Error::LocalStateRolledBack`]).
//! Setting back the whole file, or undoing exactly the last commit as a torn write would, is not: SECURITY.md says so.

use std::collections::HashMap;

use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use hmac::{Hmac, Mac};
use openred_proto::concat::concat;
use openred_proto::label::derive;
use openred_proto::limits::{LINKS, TAG_BYTES};
use openred_proto::secret::Secret;
use rand_core::CryptoRng;
use sha2::Sha256;
use zeroize::Zeroizing;

use super::codec::{self, Head};
use super::{NodeState, PeerRecord, State, TOUCHED};
use crate::error::{Error, Result};
use crate::keyring::expand;

/// Bytes of one header slot: a page, of which a commit's list, the prekeys and statics take under 1 KiB and methods of modules at most 2.5.
pub const HEADER_BYTES: usize = 4096;
/// Bytes of one record slot: a sector; a peer with two links takes 305.
pub const RECORD_BYTES: usize = 512;
/// Bytes of the whole file.
pub const FILE_BYTES: u64 = (2 * HEADER_BYTES + 2 * LINKS * RECORD_BYTES) as u64;
const NONCE_BYTES: usize = 24;
const OVERHEAD: usize = NONCE_BYTES + TAG_BYTES;

/// One write to make; all writes of a commit, then one fdatasync, then the replies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateWrite {
    /// Where in the file.
    pub offset: u64,
    /// What.
    pub bytes: Vec<u8>,
}

/// Which slot and commit each part of the state was last written in.
#[derive(Default)]
pub(super) struct Slots {
    /// The highest commit number seen anywhere, so that none is used twice.
    commit: u64,
    /// Slot of the current header; none before the first commit.
    header: Option<u8>,
    digest: [u8; 16],
    /// Slot and commit of each record that was ever written.
    records: HashMap<u16, (u8, u64)>,
}

/// A place in the file.
#[derive(Clone, Copy)]
enum Place {
    Header(u8),
    Record(u16, u8),
}

impl Place {
    const fn offset(self) -> u64 {
        match self {
            Place::Header(slot) => slot as u64 * HEADER_BYTES as u64,
            Place::Record(index, slot) => {
                2 * HEADER_BYTES as u64 + (index as u64 * 2 + slot as u64) * RECORD_BYTES as u64
            }
        }
    }

    fn associated(self) -> Vec<u8> {
        match self {
            Place::Header(slot) => concat(&[derive::STATE, b"header", &[slot]]),
            Place::Record(index, slot) => concat(&[derive::STATE, b"record", &index.to_be_bytes(), &[slot]]),
        }
    }

    fn seal(self, key: &Secret<32>, plain: &[u8], random: &mut impl CryptoRng) -> Result<StateWrite> {
        let mut nonce = [0; NONCE_BYTES];
        random.fill_bytes(&mut nonce);
        let payload = Payload { msg: plain, aad: &self.associated() };
        let sealed = XChaCha20Poly1305::new(&(*key.expose()).into()).encrypt(&XNonce::from(nonce), payload);
        let sealed = sealed.map_err(|_| Error::Bug("a state record is too long to seal"))?;
        Ok(StateWrite { offset: self.offset(), bytes: [&nonce[..], &sealed].concat() })
    }

    /// The record in this slot; none when it does not open (never written, torn, changed, foreign).
    fn open(self, key: &Secret<32>, bytes: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        if bytes.iter().all(|byte| *byte == 0) {
            return None;
        }
        let (nonce, sealed) = bytes.split_first_chunk::<NONCE_BYTES>()?;
        let payload = Payload { msg: sealed, aad: &self.associated() };
        let plain = XChaCha20Poly1305::new(&(*key.expose()).into()).decrypt(&XNonce::from(*nonce), payload);
        plain.ok().map(Zeroizing::new)
    }
}

/// Reads `buffer.len()` bytes at an offset; past the end of a shorter file it gives zeros.
pub type Read<'a> = &'a mut dyn FnMut(u64, &mut [u8]) -> Result<()>;

/// Both versions of one record.
type Versions = [Option<(u64, PeerRecord)>; 2];

impl State {
    /// Loads the state from its file; a file of zeros (or none) is a node that has no state yet.
    ///
    /// # Errors
    /// [`Error::LocalStateUnreadable`] from the callback, [`Error::LocalStateForeign`] when no header opens,
    /// [`Error::LocalStateRolledBack`] when the records are not the header's.
    pub fn load(key: &Secret<32>, read: Read<'_>) -> Result<Self> {
        Self::load_with(key, read, LINKS)
    }

    pub(super) fn load_with(key: &Secret<32>, read: Read<'_>, capacity: usize) -> Result<Self> {
        let (mut headers, mut empty) = (Vec::new(), true);
        for slot in [0, 1] {
            let mut bytes = vec![0; HEADER_BYTES];
            read(Place::Header(slot).offset(), &mut bytes)?;
            empty &= bytes.iter().all(|byte| *byte == 0);
            if let Some(plain) = Place::Header(slot).open(key, &bytes) {
                let (head, node) = codec::decode_header(&plain)?;
                headers.push((slot, head, node));
            }
        }
        let records = read_records(key, read, capacity, &mut empty)?;
        if headers.is_empty() {
            return if empty { Ok(Self::with_capacity(capacity)) } else { Err(Error::LocalStateForeign) };
        }
        headers.sort_by_key(|(_, head, _)| std::cmp::Reverse(head.commit));
        let highest = highest_commit(&headers, &records);
        if highest == u64::MAX {
            // No commit could follow, and none of ours came so far.
            return Err(Error::LocalStateUnreadable);
        }
        let (slot, head, node) = choose(headers, &records)?;
        let mut state = Self::with_capacity(capacity);
        state.node = node;
        state.node_touched = false;
        state.slots = Slots { commit: highest, header: Some(slot), digest: head.digest, records: HashMap::new() };
        state.take_records(records, head.commit);
        let (mut digest, digest_key) = ([0; 16], digest_key(key));
        for (index, (_, commit)) in &state.slots.records {
            mix(&mut digest, &digest_key, *index, *commit);
        }
        if digest == head.digest { Ok(state) } else { Err(Error::LocalStateRolledBack) }
    }

    /// Takes the newest version not above `commit` of each record; leftovers of a torn commit are marked to be written over.
    fn take_records(&mut self, records: HashMap<u16, Versions>, commit: u64) {
        for (index, versions) in records {
            let leftover = versions.iter().flatten().any(|(number, _)| *number > commit);
            let newest = versions
                .into_iter()
                .enumerate()
                .filter_map(|(slot, version)| version.map(|(number, record)| (number, slot as u8, record)))
                .filter(|(number, ..)| *number <= commit)
                .max_by_key(|(number, ..)| *number);
            if let Some((number, slot, record)) = newest {
                self.slots.records.insert(index, (slot, number));
                self.by_peer.insert(record.peer, index);
                self.by_link.extend(record.links.iter().flatten().map(|link| (link.link, index)));
                self.peers.insert(index, record);
            }
            if leftover {
                self.repair(index);
            }
        }
    }

    /// Marks a place whose other slot holds a version that never counted. A place without any version that counts gets
    /// an empty record, which the next peer may take.
    fn repair(&mut self, index: u16) {
        self.peers.entry(index).or_insert_with(|| PeerRecord::new(super::NodeId::from_bytes([0; 32])));
        self.touched.insert(index);
    }

    /// The writes that make everything since the last commit durable; none when nothing changed.
    ///
    /// # Errors
    /// [`Error::Bug`] when more records changed than one commit can list, or one does not fit.
    pub fn commit(&mut self, key: &Secret<32>, random: &mut impl CryptoRng) -> Result<Vec<StateWrite>> {
        if !self.is_dirty() {
            return Ok(Vec::new());
        }
        if self.touched.len() > TOUCHED {
            return Err(Error::Bug("more records changed than one commit can list"));
        }
        self.settle();
        self.slots.commit = self.slots.commit.checked_add(1).ok_or(Error::Bug("no number is left for a commit"))?;
        let touched: Vec<u16> = std::mem::take(&mut self.touched).into_iter().collect();
        let commit = self.slots.commit;
        let (mut writes, digest_key) = (Vec::with_capacity(touched.len() + 1), digest_key(key));
        for index in &touched {
            let record = self.peers.get(index).ok_or(Error::Bug("a changed record is not in the table"))?;
            let before = self.slots.records.get(index).copied();
            let slot = before.map_or(0, |(slot, _)| 1 - slot);
            let plain = codec::encode_peer(commit, record, RECORD_BYTES - OVERHEAD)?;
            writes.push(Place::Record(*index, slot).seal(key, &plain, random)?);
            if let Some((_, number)) = before {
                mix(&mut self.slots.digest, &digest_key, *index, number);
            }
            mix(&mut self.slots.digest, &digest_key, *index, commit);
            self.slots.records.insert(*index, (slot, commit));
        }
        let slot = self.slots.header.map_or(0, |slot| 1 - slot);
        let head = Head { commit, digest: self.slots.digest, touched };
        let plain = codec::encode_header(&head, &self.node, HEADER_BYTES - OVERHEAD)?;
        writes.push(Place::Header(slot).seal(key, &plain, random)?);
        self.slots.header = Some(slot);
        self.node_touched = false;
        Ok(writes)
    }
}

fn read_records(key: &Secret<32>, read: Read<'_>, capacity: usize, empty: &mut bool) -> Result<HashMap<u16, Versions>> {
    let mut records = HashMap::new();
    let mut bytes = [0; 2 * RECORD_BYTES];
    for index in (0..=u16::MAX).take(capacity) {
        read(Place::Record(index, 0).offset(), &mut bytes)?;
        if bytes.iter().all(|byte| *byte == 0) {
            continue;
        }
        *empty = false;
        let (first, second) = bytes.split_at(RECORD_BYTES);
        let mut versions: Versions = [None, None];
        for (slot, bytes) in [(0, first), (1, second)] {
            if let Some(plain) = Place::Record(index, slot).open(key, bytes) {
                versions[usize::from(slot)] = Some(codec::decode_peer(&plain)?);
            }
        }
        records.insert(index, versions);
    }
    Ok(records)
}

fn highest_commit(headers: &[(u8, Head, NodeState)], records: &HashMap<u16, Versions>) -> u64 {
    let records = records.values().flatten().flatten().map(|(commit, _)| *commit);
    headers.iter().map(|(_, head, _)| head.commit).chain(records).max().unwrap_or(0)
}

/// The newest header whose commit is whole: every record that it lists is there.
fn choose(headers: Vec<(u8, Head, NodeState)>, records: &HashMap<u16, Versions>) -> Result<(u8, Head, NodeState)> {
    let is_whole = |head: &Head| {
        head.touched.iter().all(|index| {
            let versions = records.get(index).into_iter().flatten().flatten();
            versions.into_iter().any(|(commit, _)| *commit == head.commit)
        })
    };
    headers.into_iter().find(|(_, head, _)| is_whole(head)).ok_or(Error::LocalStateRolledBack)
}

/// The digest has a key of its own: no key serves two algorithms.
fn digest_key(key: &Secret<32>) -> Secret<32> {
    expand(key, &concat(&[derive::STATE, b"digest"]))
}

/// Adds or removes one record in the digest: an exclusive or of keyed values, so order does not matter.
fn mix(digest: &mut [u8; 16], key: &Secret<32>, index: u16, commit: u64) {
    let mut mac = Hmac::<Sha256>::new_from_slice(key.expose()).expect("HMAC takes a key of any length");
    mac.update(&concat(&[&index.to_be_bytes(), &commit.to_be_bytes()]));
    let value = mac.finalize().into_bytes();
    digest.iter_mut().zip(value).for_each(|(byte, value)| *byte ^= value);
}
