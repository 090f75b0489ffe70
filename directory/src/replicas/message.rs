//! What replicas tell each other, and how it is written (postcard). Each word is a fact that does no harm when it is heard twice; what is
//! longer than it can be is none. A reader takes any bytes at all.

use openred_proto::id::NodeId;
use serde::{Deserialize, Serialize};

use crate::limits::{LETTER_ENTRIES, OFFER_BODY_BYTES, REPLICA_NAME_BYTES};
use crate::route::{Key, Kind};

/// A run of a replica: drawn at its start.
pub type RunId = [u8; 16];

/// A word with who says it and when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Letter {
    /// The run that says it.
    pub run: RunId,
    /// The number of its replica.
    pub number: u16,
    /// Grows from letter to letter of a run: what does not is a copy, or came too late.
    pub count: u64,
    /// When, by its clock: Unix milliseconds.
    pub at: u64,
    /// What it says.
    pub word: Word,
}

/// What is said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Word {
    /// I am here.
    Beat {
        /// My name in the settings.
        name: String,
        /// I have just come, or come back: tell me what waits.
        hello: bool,
    },
    /// I go.
    Bye,
    /// This waits for its recipient.
    Item(Box<Copied>),
    /// What became of an item that was asked about.
    Answer {
        /// Which question.
        ask: u64,
        /// What became of it.
        answer: Answer,
    },
    /// These wait here.
    Have(Vec<Key>),
    /// Send me these.
    Want(Vec<Key>),
    /// These are done with: a receipt came, or was read.
    Done(Vec<(NodeId, Key)>),
    /// A reader here was shown these, by these ids.
    Shown(Vec<(NodeId, Key, u64)>),
    /// A node reads here from now on; a reader elsewhere is its older one.
    Reads {
        /// Which.
        node: NodeId,
        /// Since when: Unix milliseconds.
        at: u64,
    },
    /// An operator has changed something: look.
    Changed,
}

/// An item on its way to another replica.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Copied {
    /// Whose mailbox.
    pub recipient: NodeId,
    /// Offer or receipt.
    pub kind: Kind,
    /// Who sent it.
    pub from: NodeId,
    /// SHA-256 of the offer that it is or is about.
    pub token_id: [u8; 32],
    /// The bytes.
    pub payload: Vec<u8>,
    /// Dropped after this: Unix milliseconds.
    pub until: u64,
    /// Its sender has just sent it: it is shown again where it was shown before.
    pub sent: bool,
    /// Who sent this wants to know what becomes of it.
    pub ask: Option<u64>,
}

/// What became of an item at another replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// It waits there.
    pub taken: bool,
    /// Its recipient reads there.
    pub reads: bool,
}

impl Letter {
    /// As bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        // Plain values in memory: writing them cannot fail.
        postcard::to_allocvec(self).unwrap_or_default()
    }

    /// From bytes; none for what is no letter, or goes on after its end.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (letter, rest) = postcard::take_from_bytes::<Self>(bytes).ok()?;
        let fits = match &letter.word {
            Word::Beat { name, .. } => name.len() <= REPLICA_NAME_BYTES,
            Word::Item(item) => item.payload.len() <= OFFER_BODY_BYTES,
            Word::Have(keys) | Word::Want(keys) => keys.len() <= LETTER_ENTRIES,
            Word::Done(entries) => entries.len() <= LETTER_ENTRIES,
            Word::Shown(entries) => entries.len() <= LETTER_ENTRIES,
            Word::Bye | Word::Answer { .. } | Word::Reads { .. } | Word::Changed => true,
        };
        (fits && rest.is_empty()).then_some(letter)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use proptest::prelude::*;

    use super::*;
    use crate::limits::LETTER_BYTES;

    fn letter(word: Word) -> Letter {
        Letter { run: [1; 16], number: 1023, count: u64::MAX, at: u64::MAX, word }
    }

    #[test]
    fn every_word_comes_back_and_the_longest_fits() {
        let node = NodeId::from_bytes([7; 32]);
        let item = Copied {
            recipient: node,
            kind: Kind::Offer,
            from: node,
            token_id: [3; 32],
            payload: vec![0xFF; OFFER_BODY_BYTES],
            until: u64::MAX,
            sent: true,
            ask: Some(u64::MAX),
        };
        let words = [
            Word::Beat { name: "x".repeat(REPLICA_NAME_BYTES), hello: true },
            Word::Bye,
            Word::Item(Box::new(item)),
            Word::Answer { ask: u64::MAX, answer: Answer { taken: true, reads: false } },
            Word::Have(vec![[0xFF; 16]; LETTER_ENTRIES]),
            Word::Want(vec![[0xFF; 16]; LETTER_ENTRIES]),
            Word::Done(vec![(node, [0xFF; 16]); LETTER_ENTRIES]),
            Word::Shown(vec![(node, [0xFF; 16], u64::MAX); LETTER_ENTRIES]),
            Word::Reads { node, at: u64::MAX },
            Word::Changed,
        ];
        for word in words {
            let letter = letter(word);
            let bytes = letter.encode();
            assert!(bytes.len() + 64 <= LETTER_BYTES, "with its seal: {}", bytes.len());
            assert_eq!(Letter::decode(&bytes).as_ref(), Some(&letter));
            assert_eq!(Letter::decode(&[&bytes[..], &[0]].concat()), None, "it goes on after its end");
            for length in 0..bytes.len().min(200) {
                assert_eq!(Letter::decode(&bytes[..length]), None);
            }
        }
        assert_eq!(Letter::decode(&letter(Word::Have(vec![[0; 16]; LETTER_ENTRIES + 1])).encode()), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_letter_or_none(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            if let Some(letter) = Letter::decode(&bytes) {
                prop_assert_eq!(Letter::decode(&letter.encode()), Some(letter));
            }
        }
    }
}
