//! What directories, mirrors and peers say of a directory's log: signed heads, lists of heads, proofs; and cards sealed in a crowd.

use ed25519_dalek::Signer as _;
use openred_proto::crowd::InCrowd;
use openred_proto::log::Hash;
use openred_proto::log::head::Head;
use openred_proto::log::heads::Heads;
use openred_proto::log::tree::{Frontier, leaf_hash, verify_consistency, verify_inclusion};

use crate::records::{choice, key, signer};

/// Entries of the log that proofs are held against.
const ENTRIES: u64 = 21;

/// That log, grown up to `size`.
fn grown(size: u64) -> Frontier {
    let mut log = Frontier::default();
    for entry in 0..size {
        log.append(&entry.to_be_bytes());
    }
    log
}

fn hashes(bytes: &[u8]) -> Vec<Hash> {
    bytes.chunks_exact(32).map(|chunk| chunk.try_into().unwrap()).collect()
}

/// Reads bytes as each of these.
pub(crate) fn log(bytes: &[u8]) {
    let (which, bytes) = choice(bytes, 6);
    match which {
        0 => {
            if let Ok(head) = Head::verify(bytes, &signer()) {
                let signature = key().sign(head.text().as_bytes()).to_bytes();
                assert_eq!(head.note(&signature).as_bytes(), bytes, "a head has one text");
                assert_eq!(Head::claimed(bytes), Ok(signer()));
            }
        }
        // The text is signed first, so that what stands behind the signature is reached.
        1 => {
            let (size, root) = bytes.split_at(bytes.len().min(8));
            let size = size.iter().fold(0, |size, byte| size << 8 | u64::from(*byte));
            let mut whole = [0; 32];
            whole.iter_mut().zip(root).for_each(|(to, from)| *to = *from);
            let head = Head { directory: signer(), size, root: whole };
            let note = head.note(&key().sign(head.text().as_bytes()).to_bytes());
            if let Ok(read) = Head::verify(note.as_bytes(), &signer()) {
                assert_eq!(read, head);
            }
        }
        2 => {
            if let Ok(heads) = Heads::decode(bytes) {
                assert_eq!(heads.encode(), bytes, "a list has one encoding");
            }
        }
        3 => {
            let (place, proof) = bytes.split_at(bytes.len().min(2));
            let [index, size] =
                [place.first(), place.get(1)].map(|byte| u64::from(byte.copied().unwrap_or(0)) % (ENTRIES + 1));
            let proof = hashes(proof);
            // A proof for an entry that is another can lead nowhere.
            let other = leaf_hash(b"none of them");
            assert!(
                verify_inclusion(index, size, &other, &proof, &grown(size).root()).is_err(),
                "nothing was logged so"
            );
            let _ = verify_inclusion(u64::MAX - index, u64::MAX, &other, &proof, &other);
        }
        4 => {
            let (sizes, proof) = bytes.split_at(bytes.len().min(2));
            let [old, new] =
                [sizes.first(), sizes.get(1)].map(|byte| u64::from(byte.copied().unwrap_or(0)) % (ENTRIES + 1));
            let (before, after) = (grown(old).root(), grown(new).root());
            let proof = hashes(proof);
            if verify_consistency(old, new, &before, &after, &proof).is_ok() {
                assert!(old <= new, "a log does not shrink");
            }
            if old > 0 {
                let mut another = before;
                another[0] ^= 1;
                assert!(
                    verify_consistency(old, new, &another, &after, &proof).is_err(),
                    "another log is no beginning of it"
                );
            }
        }
        _ => {
            if let Ok(card) = InCrowd::decode(bytes) {
                assert_eq!(card.encode(), bytes, "a sealed card has one encoding");
            }
        }
    }
}

/// Real inputs.
pub(crate) fn corpus() -> Vec<(String, Vec<u8>)> {
    use openred_proto::log::tree::{kept, prove_consistency, prove_inclusion};
    let mut held: Vec<Hash> = Vec::new();
    let mut log = Frontier::default();
    for entry in 0..ENTRIES {
        assert_eq!(held.len() as u64, kept(entry));
        held.extend(log.append(&entry.to_be_bytes()));
    }
    let read = |position: u64| usize::try_from(position).ok().and_then(|place| held.get(place).copied()).ok_or(());
    let head = Head { directory: signer(), size: ENTRIES, root: log.root() };
    let note = head.note(&key().sign(head.text().as_bytes()).to_bytes()).into_bytes();
    let number = |value: u64| u8::try_from(value).unwrap();
    let inclusion = prove_inclusion(6, ENTRIES, read).unwrap().concat();
    let consistency = prove_consistency(13, ENTRIES, read).unwrap().concat();
    let crowd = InCrowd { index: 7, salt: Some([9; 16]), card: vec![8; 40] };
    crate::corpus::numbered([
        [&[0][..], &note].concat(),
        [&[1][..], &ENTRIES.to_be_bytes(), &log.root()].concat(),
        [&[2][..], &Heads { notes: vec![note] }.encode()].concat(),
        [&[3, 6, number(ENTRIES)][..], &inclusion].concat(),
        [&[4, 13, number(ENTRIES)][..], &consistency].concat(),
        [&[5][..], &crowd.encode()].concat(),
        [&[5][..], &InCrowd { salt: None, ..crowd }.encode()].concat(),
    ])
}
