//! The audit trail's two readers: the offline verifier, which is given files from anywhere, and the vault's start, which finds its
//! trail again after a crash, or after somebody wrote to its disk.

use std::sync::OnceLock;

use openred_cryptod::audit::open::Opening;
use openred_cryptod::audit::{Head, Trail, TrailWrite};
use openred_cryptod::error::Result;
use openred_cryptod::keyring::Keyring;
use openred_cryptod::state::State;
use openred_cryptod::vault::Vault;
use openred_cryptod::vault::quota::Rates;
use openred_proto::audit::verify::{Known, Verifier};
use openred_proto::audit::{Checkpoint, Event, Record, SEGMENT_BYTES, SLOT_BYTES};
use openred_proto::id::NodeId;
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng;

use crate::oracle::secrets;
use crate::records::NOW;

/// Slots of a segment that the targets look at; zeros follow.
const SLOTS_USED: usize = 16;
/// What one appended record takes of an input: event, outcome, count, steps of sequence and time, and whether the chain holds.
const APPENDED: usize = 6;

fn keyring() -> Keyring {
    Keyring::from_secrets(&mut secrets(1))
}

fn lay(file: &mut [u8], write: &TrailWrite) {
    let from = usize::try_from(write.offset).unwrap();
    file[from..from + write.bytes.len()].copy_from_slice(&write.bytes);
}

/// The first slots of a real segment: a vault's start, new keys, and its signed end.
fn segment() -> &'static (NodeId, Vec<u8>) {
    static SEGMENT: OnceLock<(NodeId, Vec<u8>)> = OnceLock::new();
    SEGMENT.get_or_init(|| {
        let (keyring, mut random) = (keyring(), ChaCha20Rng::from_seed([3; 32]));
        let trail = Trail::fresh(keyring.identity(), NOW).unwrap();
        let mut vault = Vault::open(keyring, State::new(), trail, &Rates::default(), NOW, &mut random).unwrap();
        vault.close(NOW, Event::Stopped);
        let mut slots = vec![0; SLOTS_USED * SLOT_BYTES];
        vault.commit(&mut random).unwrap().trail.iter().for_each(|write| lay(&mut slots, write));
        (vault.node_id(), slots)
    })
}

/// The first byte: any bytes as a segment, a real segment with changes, or a checkpoint that was kept.
pub(crate) fn verify(bytes: &[u8]) {
    let Some((which, rest)) = bytes.split_first() else { return };
    let (node, real) = segment();
    match which % 3 {
        0 => {
            let mut seen = 0;
            let mut verifier = Verifier::new(*node, vec![Known { sequence: 1, hash: [0; 32] }]);
            rest.split(|byte| *byte == 0xa5).for_each(|part| verifier.segment(part, &mut |_| seen += 1));
            let report = verifier.finish();
            assert!(report.signed <= report.last || report.fault_count > 0);
            assert!(seen <= rest.len() / SLOT_BYTES);
        }
        1 => {
            let mut changed = real.clone();
            for change in rest.as_chunks::<3>().0 {
                let at = usize::from(u16::from_be_bytes([change[0], change[1]])) % changed.len();
                changed[at] ^= change[2];
            }
            let mut verifier = Verifier::new(*node, Vec::new());
            verifier.segment(&changed, &mut |_| {});
            let report = verifier.finish();
            assert_eq!(report.fault_count == 0, changed == *real, "a change that is not found: {report:?}");
        }
        _ => {
            if let Ok(checkpoint) = Checkpoint::verify(rest) {
                assert!(checkpoint.check(rest.last_chunk().unwrap()).is_ok(), "verified, and its signature does not");
            }
        }
    }
}

/// Two files and what the state remembers of them: a trail that has begun.
fn begun() -> ([Vec<u8>; 2], Head) {
    let mut trail = Trail::fresh(keyring().identity(), NOW).unwrap();
    let mut files = [vec![0; SEGMENT_BYTES], vec![0; SEGMENT_BYTES]];
    for write in trail.commit() {
        lay(&mut files[write.file], &write);
    }
    (files, trail.head())
}

fn open(files: &[Vec<u8>; 2], head: Head, anew: bool) -> Result<Trail> {
    let keyring = keyring();
    Trail::open(
        Opening { identity: keyring.identity(), head, anew, earlier: &[], taken: None, now: NOW },
        &mut |file, offset, buffer| {
            let from = usize::try_from(offset).unwrap();
            buffer.copy_from_slice(&files[file][from..from + buffer.len()]);
            Ok(())
        },
    )
}

/// The first byte: changed bytes, records behind the known end that may or may not follow, or a file of any bytes.
pub(crate) fn start(bytes: &[u8]) {
    let Some((which, rest)) = bytes.split_first() else { return };
    let (mut files, head) = begun();
    match which % 3 {
        0 => {
            for change in rest.as_chunks::<4>().0 {
                let at = usize::from(u16::from_be_bytes([change[1], change[2]])) % (SLOTS_USED * SLOT_BYTES);
                files[usize::from(change[0] % 2)][at] ^= change[3];
            }
        }
        1 => append(&mut files, head, rest),
        _ => {
            let length = rest.len().min(SLOTS_USED * SLOT_BYTES);
            files[usize::from(which / 3 % 2)][..length].copy_from_slice(&rest[..length]);
        }
    }
    let Ok(mut trail) = open(&files, head, which & 0x80 != 0) else { return };
    assert!(trail.head().sequence >= head.sequence, "what the state knew is not there any more");
    for write in trail.commit() {
        lay(&mut files[write.file], &write);
    }
    // What a start made of it is found by the next one, which adds no more than its own record.
    let again = open(&files, trail.head(), false).expect("a trail that was just opened and written");
    assert!((trail.head().sequence..=trail.head().sequence + 4).contains(&again.head().sequence));
}

fn append(files: &mut [Vec<u8>; 2], head: Head, rest: &[u8]) {
    let (mut sequence, mut previous, mut time) = (head.sequence, head.hash, NOW);
    for (number, fields) in rest.as_chunks::<APPENDED>().0.iter().take(SLOTS_USED).enumerate() {
        let event = Event::ALL[usize::from(fields[0]) % Event::ALL.len()];
        sequence = sequence.wrapping_add(u64::from(fields[3]));
        time.0 = time.0.wrapping_add(u64::from(fields[4]));
        let subject = [fields[5]; 32];
        let (outcome, count) = (fields[1], u32::from(fields[2]));
        let (slot, hash) = Record { sequence, time, event, outcome, count, subject, previous }.encode();
        if fields[5] % 8 != 0 {
            previous = hash;
        }
        let at = (head.slot as usize + number) * SLOT_BYTES;
        files[usize::from(head.file)][at..at + SLOT_BYTES].copy_from_slice(&slot);
    }
}

/// Real segments and small changes to them.
pub(crate) mod corpus {
    use openred_proto::checked::statement;

    use super::*;
    use crate::corpus::numbered;

    pub(crate) fn verify() -> Vec<(String, Vec<u8>)> {
        let (node, real) = segment();
        let after = |which: u8, bytes: &[u8]| [&[which], bytes].concat();
        let used = real.iter().rposition(|byte| *byte != 0).unwrap().next_multiple_of(SLOT_BYTES);
        let statement = statement::encode(&[0x0a, 0x20], node, &[1; 64]);
        numbered([
            after(0, &real[..used]),
            after(0, &real[SLOT_BYTES..used]),
            after(1, &[]),
            after(1, &[0, 1, 1]),
            after(1, &[1, 0, 0x80, 1, 0, 0x80]),
            after(2, &statement),
        ])
    }

    pub(crate) fn start() -> Vec<(String, Vec<u8>)> {
        let (files, head) = begun();
        let after = |which: u8, bytes: &[u8]| [&[which], bytes].concat();
        numbered([
            after(0, &[]),
            after(0, &[0, 0, 5, 1]),
            after(1, &[10, 0, 0, 1, 0, 1]),
            after(1, &[10, 0, 0, 1, 0, 1, 11, 2, 0, 1, 7, 1]),
            after(2, &files[0][..head.slot as usize * SLOT_BYTES]),
            after(5, &files[0][..SLOT_BYTES]),
            after(0x80, &[]),
        ])
    }
}
