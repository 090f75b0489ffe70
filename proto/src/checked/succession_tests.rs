//! What a lineage takes, and everything that it refuses.
#![allow(clippy::unwrap_used, reason = "tests")]

use ed25519_dalek::{Signer as _, SigningKey};

use super::*;
use crate::label::signed_bytes;

fn key(seed: u8) -> SigningKey {
    SigningKey::from_bytes(&[seed; 32])
}

fn id(seed: u8) -> NodeId {
    NodeId::from_bytes(key(seed).verifying_key().to_bytes())
}

/// `signer` signs; `old` and `new` are whom the word names.
fn word_by(signer: u8, label: Label, step: Step, old: u8, new: u8, sequence: u64) -> Vec<u8> {
    let word = Succession { step, old: id(old), new: id(new), sequence };
    let signature = key(signer).sign(&signed_bytes(label, &word.encode())).to_bytes();
    statement::encode(&word.encode(), &id(signer), &signature)
}

fn succeed(old: u8, new: u8, sequence: u64) -> Vec<u8> {
    word_by(old, Label::Succession, Step::Succeed, old, new, sequence)
}

fn take_back(old: u8, new: u8, sequence: u64) -> Vec<u8> {
    word_by(old, Label::Succession, Step::TakeBack, old, new, sequence)
}

fn verify(words: &[Vec<u8>], node: u8) -> Result<Lineage> {
    Lineage::verify(words.iter().map(Vec::as_slice), id(node))
}

#[test]
fn a_chain_names_who_the_node_was() {
    assert_eq!(verify(&[], 9).unwrap().earlier(), []);
    let lineage = verify(&[succeed(1, 2, 5), succeed(2, 3, 6)], 3).unwrap();
    assert_eq!(lineage.earlier(), [id(1), id(2)]);
    let back = verify(&[succeed(1, 2, 5), take_back(1, 2, 6)], 1).unwrap();
    assert_eq!(back.earlier(), [id(2)], "who followed to the second finds back to the first");
    let again = verify(&[succeed(1, 2, 5), take_back(1, 2, 6), succeed(1, 3, 7)], 3).unwrap();
    assert_eq!(again.earlier(), [id(1), id(2)]);
    assert_eq!(verify(&[take_back(1, 2, 6)], 1).unwrap().earlier(), [id(2)], "of a word that somebody else published");
}

#[test]
fn words_that_are_no_chain_to_the_node_are_refused() {
    for (words, node) in [
        (vec![succeed(1, 2, 5)], 1),
        (vec![succeed(1, 2, 5)], 3),
        (vec![succeed(1, 2, 5), succeed(3, 4, 6)], 4),
        (vec![succeed(2, 3, 6), succeed(1, 2, 5)], 3),
        (vec![succeed(1, 2, 5), take_back(1, 3, 6)], 1),
        (vec![succeed(1, 2, 5), take_back(2, 1, 6)], 2),
        // 1 and 7 lead to 2 and away again, and 2 has said nothing.
        (vec![succeed(1, 2, 5), take_back(7, 2, 6)], 7),
        (vec![succeed(3, 1, 4), succeed(1, 2, 5), take_back(7, 2, 6), succeed(7, 8, 9)], 8),
    ] {
        assert!(matches!(verify(&words, node), Err(WireError::Malformed { what: "lineage", .. })), "{node}");
    }
    let long: Vec<_> = (1..=5).map(|step| succeed(step, step + 1, 5)).collect();
    assert!(matches!(verify(&long, 6), Err(WireError::TooLong { .. })));
    assert!(verify(&long[1..], 6).is_ok(), "its end is a chain of its own");
}

#[test]
fn only_the_old_identity_speaks_and_only_under_this_label() {
    let stranger = word_by(7, Label::Succession, Step::Succeed, 1, 2, 5);
    assert_eq!(Succession::verify(&stranger), Err(WireError::WrongSigner { what: WHAT }));
    let by_the_new = word_by(2, Label::Succession, Step::Succeed, 1, 2, 5);
    assert_eq!(Succession::verify(&by_the_new), Err(WireError::WrongSigner { what: WHAT }));
    for label in Label::ALL.into_iter().filter(|label| *label != Label::Succession) {
        let other = word_by(1, label, Step::Succeed, 1, 2, 5);
        assert_eq!(Succession::verify(&other), Err(WireError::BadSignature { what: WHAT }), "{label:?}");
    }
    let itself = succeed(1, 1, 5);
    assert!(matches!(Succession::verify(&itself), Err(WireError::Malformed { .. })));
    let good = succeed(1, 2, 5);
    for place in 0..good.len() {
        for bit in 0..8 {
            let mut flipped = good.clone();
            flipped[place] ^= 1 << bit;
            assert!(Succession::verify(&flipped).is_err(), "byte {place} bit {bit}");
        }
        assert!(Succession::verify(&good[..place]).is_err());
    }
}

#[test]
fn a_lineage_grows_at_its_end_and_forgets_at_its_beginning() {
    let now = UnixMillis(1000);
    let mut lineage = Lineage::default();
    for step in 1..=6 {
        let sequence = lineage.next_sequence(now);
        assert_eq!(sequence, 999 + u64::from(step));
        lineage = lineage.with(succeed(step, step + 1, sequence)).unwrap();
    }
    assert_eq!((lineage.items().len(), lineage.earlier()), (LINEAGE, vec![id(3), id(4), id(5), id(6)]));
    assert!(lineage.with(succeed(1, 2, 9)).is_err(), "a word of somebody else");
    assert!(lineage.check_times(now).is_ok());
    let ahead = Lineage::default().with(succeed(1, 2, now.plus(SEQUENCE_AHEAD).0 + 1)).unwrap();
    assert!(ahead.check_times(now).is_err());
}

/// A reader with its memory.
#[derive(Default)]
struct Reader {
    heard: std::collections::BTreeMap<NodeId, Heard>,
}

impl Reader {
    fn read(&mut self, words: &[Vec<u8>], node: u8, now: u64) -> std::result::Result<Followed, Contradiction> {
        let lineage = verify(words, node).unwrap();
        let followed = lineage.follow(|old| self.heard.get(old).copied(), UnixMillis(now))?;
        self.heard.extend(followed.changes.iter().copied());
        Ok(followed)
    }
}

const WINDOW: u64 = TAKE_BACK.as_millis() as u64;

#[test]
fn a_reader_follows_an_identity_to_its_successor_and_to_no_second_one() {
    let mut reader = Reader::default();
    let followed = reader.read(&[succeed(1, 2, 5)], 2, 10).unwrap();
    assert_eq!((followed.earlier, followed.changes.len()), (vec![id(1)], 1));
    let again = reader.read(&[succeed(1, 2, 5)], 2, 11).unwrap();
    assert_eq!((again.earlier, again.changes.len()), (vec![id(1)], 0), "heard once");
    assert_eq!(reader.read(&[succeed(1, 3, 9)], 3, 12), Err(Contradiction::Another));
    let on = reader.read(&[succeed(1, 2, 5), succeed(2, 4, 6)], 4, 13).unwrap();
    assert_eq!(on.earlier, [id(1), id(2)]);
}

#[test]
fn a_succession_is_taken_back_within_its_window_and_not_after() {
    let mut reader = Reader::default();
    reader.read(&[succeed(1, 2, 5)], 2, 10).unwrap();
    let late = [succeed(1, 2, 5), take_back(1, 2, 6)];
    assert_eq!(reader.read(&late, 1, 10 + WINDOW + 1), Err(Contradiction::TooLate));
    let back = reader.read(&late, 1, 10 + WINDOW).unwrap();
    assert_eq!((back.earlier, back.taken_back), (vec![], vec![(id(1), id(2))]));
    assert_eq!(reader.read(&[succeed(1, 2, 5)], 2, 11), Err(Contradiction::TakenBack));
    assert_eq!(reader.read(&late, 1, 12).unwrap(), Followed::default(), "heard once");
    let dated_late = [succeed(1, 2, 5_000)];
    assert_eq!(reader.read(&dated_late, 2, 12), Err(Contradiction::TakenBack), "whatever its sequence");
    let next = [succeed(1, 2, 5), take_back(1, 2, 6), succeed(1, 3, 7)];
    let followed = reader.read(&next, 3, 13).unwrap();
    assert_eq!((followed.earlier, followed.changes.len()), (vec![id(1)], 1));
}

#[test]
fn one_that_hears_of_the_taking_back_first_never_follows() {
    let mut reader = Reader::default();
    assert!(reader.read(&[take_back(1, 2, 6)], 1, 10).unwrap().earlier.is_empty());
    assert_eq!(reader.read(&[succeed(1, 2, 5)], 2, 11), Err(Contradiction::TakenBack));
}

#[test]
fn nobody_takes_over_the_standing_of_one_that_said_nothing() {
    // The stranger 7 names the bystander 2 its successor, and takes it back: whoever knows 2, or 1 that 2 goes on for, must
    // not be led to 7.
    for words in [vec![succeed(7, 2, 5), take_back(7, 2, 6)], vec![take_back(7, 2, 6)]] {
        let mut reader = Reader::default();
        assert_eq!(reader.read(&words, 7, 10).unwrap().earlier, []);
        let mut warned = Reader::default();
        warned.read(&[succeed(1, 2, 5)], 2, 10).unwrap();
        assert_eq!(warned.read(&words, 7, 11).unwrap().earlier, []);
        let own = warned.read(&[succeed(1, 2, 5)], 2, 12).unwrap();
        assert_eq!(own.earlier, [id(1)], "what 2 stands for is untouched");
    }
    // Who led to the one that speaks again still does.
    let words = [succeed(1, 2, 5), succeed(2, 3, 6), take_back(2, 3, 7)];
    assert_eq!(Reader::default().read(&words, 2, 10).unwrap().earlier, [id(1)]);
}
