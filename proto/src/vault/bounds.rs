//! Each operation's own cap on its frame, both ways: what its fields may hold by the contract, and not a byte more. Under the one
//! cap of all frames a caller could send 8 KiB where a few bytes are meant, 64 times at once.
//!
//! No wildcard arm: a new operation has to be given its size here.

use super::{Reply, Request};
use crate::checked::static_certificate::CERTIFICATE_BYTES;
use crate::limits::{
    CARD_BYTES, CARD_ENDPOINTS, ENDPOINT_BYTES, FRAME_BYTES, LINEAGE, LINK_ROW_BYTES, NAME_BYTES, NOISE_BYTES,
    OFFER_BYTES, TARGET_URI_BYTES, XWING_PUBLIC_BYTES,
};

/// Frame id, kind of operation, and what lies around the fields: three numbers at their longest.
const HEAD: usize = 30;
/// Length of a list or text that is at most 8 KiB long.
const LENGTH: usize = 2;
/// A number of 64 bits at its longest.
const NUMBER: usize = 10;
/// Seconds and nanoseconds.
const DURATION: usize = NUMBER + 5;
/// A node id, a digest, a secret.
const HASH: usize = 32;
/// A link id, a handshake id, a nonce.
const ID: usize = 16;
/// Longest HTTP method that is signed.
const METHOD: usize = 16;
/// A directory head, or none.
const DIRECTORY_HEAD: usize = LENGTH + HASH;
const ROW: usize = LENGTH + LINK_ROW_BYTES;
const NOISE: usize = LENGTH + NOISE_BYTES;
const CARD: usize = LENGTH + CARD_BYTES;
const OFFER: usize = LENGTH + OFFER_BYTES;
/// Link, peer, issuer, method, epoch and two times.
const SUMMARY: usize = ID + HASH + 2 + 3 * NUMBER;
/// Tag and mac1 keys of two directions.
const KEYS: usize = 4 * HASH;
/// Link, peer, method, two secrets, hash, the mutual value, the proof, a sequence and a head.
const GRANT: usize = ID + HASH + 1 + 2 * HASH + HASH + ID + HASH + NUMBER + DIRECTORY_HEAD;

/// A frame's body that knows how long it may be.
pub trait Bounded {
    /// The most bytes that its frame may have, length prefix excluded.
    fn most(&self) -> usize;
}

impl Bounded for Request {
    fn most(&self) -> usize {
        HEAD + match self {
            Request::Describe | Request::AuditStatus | Request::Lock | Request::Rotate { .. } => 0,
            Request::Report { .. } | Request::Note { .. } | Request::AuditFiled { .. } => NUMBER,
            Request::AuditSubject { .. } => HASH,
            Request::SignCard { .. } => {
                CARD_ENDPOINTS * (LENGTH + ENDPOINT_BYTES) + 2 * (LENGTH + NAME_BYTES) + 2 + DURATION
            }
            Request::SignHttp(_) => LENGTH + METHOD + LENGTH + TARGET_URI_BYTES + HASH + NUMBER + ID + HASH,
            Request::IssueLink { .. } => 2 * HASH + CARD + 2 + DURATION,
            Request::InspectOffer(_) | Request::AcceptOffer(_) => OFFER + 2 * HASH + 1,
            Request::LinkKeys { .. } | Request::StartHandshake { .. } => ROW,
            Request::RevokeLink { .. } | Request::AbandonHandshake { .. } => ID,
            Request::AnswerHandshake { .. } => ROW + NOISE + DIRECTORY_HEAD,
            Request::FinishHandshake { .. } => ID + NOISE + DIRECTORY_HEAD,
            Request::CompleteHandshake { .. } => ID + NOISE,
            Request::ValidateMatch { .. } => ROW + 2 * HASH,
            Request::StoreKey { .. } => LENGTH + NAME_BYTES,
        }
    }
}

impl Bounded for Reply {
    fn most(&self) -> usize {
        HEAD + match self {
            Reply::Described { .. } => HASH + ID + LENGTH + XWING_PUBLIC_BYTES + 5 * NUMBER + LENGTH + LINEAGE * HASH,
            Reply::Card { .. } => CARD + 2 * NUMBER,
            Reply::Signature(_) => LENGTH + 64,
            Reply::LinkIssued { .. } => SUMMARY + ROW + OFFER + KEYS,
            Reply::OfferInspected(_) => SUMMARY,
            Reply::LinkAccepted { .. } => SUMMARY + ROW + LENGTH + CERTIFICATE_BYTES + KEYS,
            Reply::LinkKeys(_) => KEYS,
            Reply::Done | Reply::MatchValidated { .. } | Reply::Refused(_) => 0,
            Reply::HandshakeStarted { .. } | Reply::HandshakeAnswered { .. } => ID + NOISE,
            Reply::HandshakeFinished { .. } => NOISE + GRANT,
            Reply::HandshakeCompleted { .. } => GRANT,
            Reply::StoreKey(_) | Reply::AuditSubject(_) => HASH,
            Reply::AuditStatus(_) => HASH + 6 * NUMBER,
        }
    }
}

// The longest of all: an offer on its way out, and a card on its way in.
const _: () = assert!(HEAD + SUMMARY + ROW + OFFER + KEYS <= FRAME_BYTES);
const _: () = assert!(HEAD + 2 * HASH + CARD + 2 + DURATION <= FRAME_BYTES);

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::time::Duration;

    use super::*;
    use crate::checked::card::CardFields;
    use crate::http_signature::SignatureInput;
    use crate::id::{HandshakeId, NodeId};
    use crate::method::{MethodSet, Schedule};
    use crate::vault::{Frame, ReceivedOffer, decode_frame, encode_frame};

    const NODE: NodeId = NodeId::from_bytes([0xff; 32]);

    /// Each operation that carries bytes of any length, with everything at its longest and `more` besides.
    fn longest(more: usize) -> Vec<Request> {
        let (row, noise) = (vec![1; LINK_ROW_BYTES], vec![2; NOISE_BYTES + more]);
        let (handshake, directory_head, life) = (HandshakeId::from_bytes([3; 16]), vec![4; 32], Duration::MAX);
        let offer = ReceivedOffer {
            offer: vec![5; OFFER_BYTES + more],
            sender: NODE,
            directory: NODE,
            allowed: MethodSet::ALL,
        };
        let fields = CardFields {
            endpoints: vec!["e".repeat(ENDPOINT_BYTES); CARD_ENDPOINTS],
            name: "n".repeat(NAME_BYTES),
            sector: "s".repeat(NAME_BYTES + more),
            listed: true,
        };
        let input = SignatureInput {
            method: "M".repeat(METHOD),
            target_uri: "t".repeat(TARGET_URI_BYTES + more),
            content_sha256: [6; 32],
            created: u64::MAX,
            nonce: [7; 16],
            key_id: NODE,
        };
        vec![
            Request::SignCard { fields, suites: MethodSet::ALL, life },
            Request::SignHttp(input),
            Request::IssueLink {
                peer: NODE,
                card: vec![8; CARD_BYTES + more],
                directory: NODE,
                allowed: MethodSet::ALL,
                schedule: Schedule::Seeded,
                life,
            },
            Request::InspectOffer(offer.clone()),
            Request::AcceptOffer(offer),
            Request::LinkKeys { row: vec![9; LINK_ROW_BYTES + more] },
            Request::StartHandshake { row: vec![9; LINK_ROW_BYTES + more] },
            Request::AnswerHandshake { row: row.clone(), noise: noise.clone(), directory_head: directory_head.clone() },
            Request::FinishHandshake { handshake, noise: noise.clone(), directory_head },
            Request::CompleteHandshake { handshake, noise },
            Request::ValidateMatch { row: vec![9; LINK_ROW_BYTES + more], hash: [1; 32], proof: [2; 32] },
            Request::StoreKey { purpose: "p".repeat(NAME_BYTES + more) },
        ]
    }

    /// As somebody would who keeps to no cap.
    fn raw(body: &impl serde::Serialize) -> Vec<u8> {
        postcard::to_allocvec(&(u64::MAX, body)).unwrap()
    }

    #[test]
    fn what_the_contract_allows_fits_and_little_more_does_not() {
        for request in longest(0) {
            let frame = encode_frame(&Frame { id: u64::MAX, body: request }).unwrap();
            decode_frame::<Request>(&frame[4..]).unwrap();
        }
        for request in longest(HEAD + 20) {
            let what = format!("{request:?}").chars().take(20).collect::<String>();
            assert!(raw(&request).len() <= FRAME_BYTES, "{what}: this must be its own cap");
            assert!(decode_frame::<Request>(&raw(&request)).is_err(), "{what} is taken over its cap");
            assert!(encode_frame(&Frame { id: u64::MAX, body: request }).is_err(), "{what} is sent over its cap");
        }
    }

    #[test]
    fn replies_are_held_to_theirs() {
        for (fits, over) in [
            (Reply::Signature(vec![1; 64]), Reply::Signature(vec![1; 64 + HEAD + 8])),
            (
                Reply::HandshakeStarted { handshake: HandshakeId::from_bytes([1; 16]), noise: vec![2; NOISE_BYTES] },
                Reply::HandshakeStarted {
                    handshake: HandshakeId::from_bytes([1; 16]),
                    noise: vec![2; NOISE_BYTES + 60],
                },
            ),
        ] {
            decode_frame::<Reply>(&encode_frame(&Frame { id: 1, body: fits }).unwrap()[4..]).unwrap();
            assert!(decode_frame::<Reply>(&raw(&over)).is_err());
            assert!(encode_frame(&Frame { id: 1, body: over }).is_err());
        }
    }
}
