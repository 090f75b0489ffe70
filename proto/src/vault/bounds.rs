//! Each operation's own cap on its frame, both ways: what its fields may hold by the contract, and not a byte more. Under the one
//! cap of all frames a caller could send 8 KiB where a few bytes are meant, 64 times at once.
//!
//! No wildcard arm: a new operation has to be given its size here.

use super::{Reply, Request};
use crate::checked::module_word::{DOMAIN_BYTES, MODULE_WORD_BYTES};
use crate::checked::session_proof::SESSION_WORD_BYTES;
use crate::checked::static_certificate::CERTIFICATE_BYTES;
use crate::limits::{
    CARD_BYTES, CARD_ENDPOINTS, ENDPOINT_BYTES, FRAME_BYTES, LINEAGE, LINK_ROW_BYTES, LINKS_PAGE, NAME_BYTES,
    NOISE_BYTES, OFFER_BYTES, TARGET_URI_BYTES, XWING_PUBLIC_BYTES,
};
use crate::method::PLACES;
use crate::method::description::DESCRIPTION_BYTES;
use crate::modules::MODULE_ID_BYTES;

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
/// Link, peer, issuer, method, epoch, two times, and a place or none.
const SUMMARY: usize = ID + HASH + 2 + 3 * NUMBER + 2;
/// A set of methods, places included.
const SET: usize = 2;
const MODULE: usize = LENGTH + MODULE_ID_BYTES;
/// Place, module, description, epoch, whether it is retired.
const REGISTERED: usize = 1 + MODULE + LENGTH + DESCRIPTION_BYTES + NUMBER + 1;
/// Tag and mac1 keys of two directions.
const KEYS: usize = 4 * HASH;
/// A link or none, peer, method, two secrets, hash, the mutual value, the proof, a sequence and a head.
const GRANT: usize = 1 + ID + HASH + 1 + 2 * HASH + HASH + ID + HASH + NUMBER + DIRECTORY_HEAD;

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
                CARD_ENDPOINTS * (LENGTH + ENDPOINT_BYTES) + 2 * (LENGTH + NAME_BYTES) + 1 + SET + DURATION
            }
            Request::SignHttp(_) => LENGTH + METHOD + LENGTH + TARGET_URI_BYTES + HASH + NUMBER + ID + HASH,
            Request::IssueLink { .. } => 2 * HASH + CARD + SET + 1 + DURATION,
            Request::InspectOffer(_) | Request::AcceptOffer(_) => OFFER + 2 * HASH + SET,
            Request::LinkKeys { .. } | Request::StartHandshake { .. } => ROW,
            Request::RevokeLink { .. } | Request::AbandonHandshake { .. } | Request::SignSession { .. } => ID,
            Request::AnswerHandshake { .. } => ROW + NOISE + DIRECTORY_HEAD,
            Request::FinishHandshake { .. } => ID + NOISE + DIRECTORY_HEAD,
            Request::CompleteHandshake { .. } => ID + NOISE,
            Request::ValidateMatch { .. } => ROW + 2 * HASH,
            Request::StoreKey { .. } => LENGTH + NAME_BYTES,
            Request::RenewLink { .. } => ROW + HASH + CARD + SET + 1 + DURATION,
            Request::InspectRenewal(_) | Request::AcceptRenewal(_) => OFFER + 2 * HASH + SET + ROW,
            Request::ListLinks { .. } => ID,
            Request::StartDirect { .. } => 1 + HASH,
            Request::AnswerDirect { .. } => 1 + NOISE + DIRECTORY_HEAD,
            Request::RegisterMethod { .. } => MODULE + LENGTH + DESCRIPTION_BYTES,
            Request::RetireMethod { .. } => ID,
            Request::ListMethods => 0,
            Request::SignModule { .. } => MODULE + LENGTH + DOMAIN_BYTES + HASH + NUMBER,
            Request::SealKey { .. } => MODULE,
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
            Reply::SessionSigned { .. } => HASH + LENGTH + SESSION_WORD_BYTES,
            Reply::StoreKey(_) | Reply::AuditSubject(_) => HASH,
            Reply::AuditStatus(_) => HASH + 6 * NUMBER,
            Reply::Links(_) => LENGTH + LINKS_PAGE * ID,
            Reply::MethodRegistered(_) => 1,
            Reply::Methods(_) => 1 + PLACES * REGISTERED,
            Reply::ModuleSigned(_) => LENGTH + MODULE_WORD_BYTES,
        }
    }
}

// The longest of all: an offer on its way out, and a card on its way in.
const _: () = assert!(HEAD + SUMMARY + ROW + OFFER + KEYS <= FRAME_BYTES);
const _: () = assert!(HEAD + 2 * HASH + CARD + SET + 1 + DURATION <= FRAME_BYTES);
const _: () = assert!(HEAD + ROW + HASH + CARD + SET + 1 + DURATION <= FRAME_BYTES);
const _: () = assert!(HEAD + LENGTH + LINKS_PAGE * ID <= FRAME_BYTES);

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::time::Duration;

    use super::*;
    use crate::checked::card::{CardFields, Prekey};
    use crate::http_signature::SignatureInput;
    use crate::id::{HandshakeId, LinkId, NodeId, PrekeyId, UnixMillis};
    use crate::method::{Method, MethodSet, Place, Schedule};
    use crate::secret::Secret;
    use crate::vault::{
        AuditStatus, Frame, LinkKeys, LinkSummary, ReceivedOffer, ReceivedRenewal, Refusal, RegisteredMethod,
        RequestKeys, SessionGrant, StatementFault, decode_frame, encode_frame,
    };

    const NODE: NodeId = NodeId::from_bytes([0xff; 32]);
    const LINK: LinkId = LinkId::from_bytes([0xff; 16]);
    const LAST_METHOD: Method = Method::Delta;

    fn local() -> MethodSet {
        Place::all().fold(MethodSet::ALL, MethodSet::with_place)
    }

    /// What a cap has beyond the longest: numbers and heads that are counted at more than they can take.
    const ROOM: usize = 2 * HEAD;

    /// Each operation that carries bytes of any length, with everything at its longest and `more` besides.
    fn longest(more: usize) -> Vec<Request> {
        let (row, noise) = (vec![1; LINK_ROW_BYTES], vec![2; NOISE_BYTES + more]);
        let (handshake, directory_head, life) = (HandshakeId::from_bytes([3; 16]), vec![4; 32], Duration::MAX);
        let offer =
            ReceivedOffer { offer: vec![5; OFFER_BYTES + more], sender: NODE, directory: NODE, allowed: local() };
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
            Request::SignCard { fields, suites: local(), life },
            Request::SignHttp(input),
            Request::IssueLink {
                peer: NODE,
                card: vec![8; CARD_BYTES + more],
                directory: NODE,
                allowed: local(),
                schedule: Schedule::Seeded,
                life,
            },
            Request::InspectOffer(offer.clone()),
            Request::AcceptOffer(offer.clone()),
            Request::RenewLink {
                row: row.clone(),
                card: vec![8; CARD_BYTES + more],
                directory: NODE,
                allowed: local(),
                schedule: Schedule::Seeded,
                life,
            },
            Request::InspectRenewal(ReceivedRenewal { received: offer.clone(), row: row.clone() }),
            Request::AcceptRenewal(ReceivedRenewal { received: offer, row: row.clone() }),
            Request::LinkKeys { row: vec![9; LINK_ROW_BYTES + more] },
            Request::StartHandshake { row: vec![9; LINK_ROW_BYTES + more] },
            Request::AnswerHandshake { row: row.clone(), noise: noise.clone(), directory_head: directory_head.clone() },
            Request::AnswerDirect { method: LAST_METHOD, noise: noise.clone(), directory_head: directory_head.clone() },
            Request::FinishHandshake { handshake, noise: noise.clone(), directory_head },
            Request::CompleteHandshake { handshake, noise },
            Request::ValidateMatch { row: vec![9; LINK_ROW_BYTES + more], hash: [1; 32], proof: [2; 32] },
            Request::StoreKey { purpose: "p".repeat(NAME_BYTES + more) },
            Request::RegisterMethod {
                module: "m".repeat(MODULE_ID_BYTES),
                description: vec![1; DESCRIPTION_BYTES + more],
            },
            Request::SignModule {
                module: "m".repeat(MODULE_ID_BYTES),
                domain: "d".repeat(DOMAIN_BYTES + more),
                digest: [0xff; 32],
                length: u64::MAX,
            },
            Request::SealKey { module: "m".repeat(MODULE_ID_BYTES + more) },
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

    /// Every reply with all of its fields at their longest, and those of any length longer by `more`.
    fn longest_replies(more: usize) -> Vec<Reply> {
        let (row, noise) = (vec![1; LINK_ROW_BYTES], vec![2; NOISE_BYTES + more]);
        let handshake = HandshakeId::from_bytes([3; 16]);
        let prekey = |more| Prekey {
            id: PrekeyId::from_bytes([8; 16]),
            key: vec![9; XWING_PUBLIC_BYTES + more],
            not_before: UnixMillis(u64::MAX),
            not_after: UnixMillis(u64::MAX),
        };
        let described = |earlier| Reply::Described {
            node: NODE,
            prekey: prekey(more),
            operations: u64::MAX,
            links: u32::MAX,
            half_open: u32::MAX,
            earlier: vec![NODE; earlier],
        };
        let status = AuditStatus {
            segment: u64::MAX,
            file: u8::MAX,
            slots: u32::MAX,
            sequence: u64::MAX,
            hash: [1; 32],
            waiting: Some(u64::MAX),
            full: true,
        };
        vec![
            described(LINEAGE),
            Reply::Card { statement: vec![1; CARD_BYTES + more], sequence: u64::MAX, expires_at: UnixMillis(u64::MAX) },
            Reply::Signature(vec![1; 64 + more]),
            Reply::LinkIssued {
                summary: summary(),
                row: row.clone(),
                offer: vec![2; OFFER_BYTES + more],
                keys: keys(),
            },
            Reply::OfferInspected(summary()),
            Reply::LinkAccepted { summary: summary(), row, receipt: vec![3; CERTIFICATE_BYTES + more], keys: keys() },
            Reply::LinkKeys(keys()),
            Reply::Done,
            Reply::HandshakeStarted { handshake, noise: noise.clone() },
            Reply::HandshakeAnswered { handshake, noise: noise.clone() },
            Reply::HandshakeFinished { noise, grant: grant(32) },
            Reply::HandshakeCompleted { grant: grant(32 + more) },
            Reply::MatchValidated { matched: true },
            Reply::StoreKey(Secret::new([0xff; 32])),
            Reply::AuditStatus(status),
            Reply::AuditSubject([1; 32]),
            Reply::Refused(Refusal::PeerStatement(StatementFault::NotYetValid)),
            Reply::Links(vec![LINK; LINKS_PAGE + more]),
            Reply::SessionSigned { peer: NODE, statement: vec![1; SESSION_WORD_BYTES + more] },
            Reply::MethodRegistered(last_place()),
            Reply::Methods(vec![registered(more); PLACES]),
            Reply::ModuleSigned(vec![1; MODULE_WORD_BYTES + more]),
        ]
    }

    fn last_place() -> Place {
        Place::all().last().unwrap()
    }

    fn registered(more: usize) -> RegisteredMethod {
        RegisteredMethod {
            place: last_place(),
            module: "m".repeat(MODULE_ID_BYTES),
            description: vec![1; DESCRIPTION_BYTES + more],
            epoch: u64::MAX,
            retired: true,
        }
    }

    fn keys() -> LinkKeys {
        let pair = || RequestKeys { tag: Secret::new([0xff; 32]), mac1: Secret::new([0xff; 32]) };
        LinkKeys { outgoing: pair(), incoming: pair() }
    }

    fn grant(directory_head: usize) -> SessionGrant {
        SessionGrant {
            link: Some(LINK),
            peer: NODE,
            method: LAST_METHOD,
            send: Secret::new([0xff; 32]),
            receive: Secret::new([0xff; 32]),
            hash: [4; 32],
            mutual_link: [5; 16],
            match_proof: [6; 32],
            peer_card_sequence: u64::MAX,
            peer_directory_head: vec![7; directory_head],
        }
    }

    fn summary() -> LinkSummary {
        LinkSummary {
            link: LINK,
            peer: NODE,
            issuer: true,
            method: LAST_METHOD,
            epoch: u64::MAX,
            not_before: UnixMillis(u64::MAX),
            not_after: UnixMillis(u64::MAX),
            registered: Some(last_place()),
        }
    }

    /// Its place in the list above, and whether it has a field of any length. No wildcard arm: a new reply has to be given both here.
    const fn place(reply: &Reply) -> (usize, bool) {
        match reply {
            Reply::Described { .. } => (0, true),
            Reply::Card { .. } => (1, true),
            Reply::Signature(_) => (2, true),
            Reply::LinkIssued { .. } => (3, true),
            Reply::OfferInspected(_) => (4, false),
            Reply::LinkAccepted { .. } => (5, true),
            Reply::LinkKeys(_) => (6, false),
            Reply::Done => (7, false),
            Reply::HandshakeStarted { .. } => (8, true),
            Reply::HandshakeAnswered { .. } => (9, true),
            Reply::HandshakeFinished { .. } => (10, true),
            Reply::HandshakeCompleted { .. } => (11, true),
            Reply::MatchValidated { .. } => (12, false),
            Reply::StoreKey(_) => (13, false),
            Reply::AuditStatus(_) => (14, false),
            Reply::AuditSubject(_) => (15, false),
            Reply::Refused(_) => (16, false),
            Reply::Links(_) => (17, true),
            Reply::SessionSigned { .. } => (18, true),
            Reply::MethodRegistered(_) => (19, false),
            Reply::Methods(_) => (20, true),
            Reply::ModuleSigned(_) => (21, true),
        }
    }

    /// The longest of each fits; its cap leaves it little more room than that; and what is longer goes neither out nor in.
    #[test]
    fn replies_are_held_to_theirs() {
        for (number, fits) in longest_replies(0).into_iter().enumerate() {
            assert_eq!(place(&fits).0, number, "{fits:?}");
            let (most, what) = (fits.most(), format!("{fits:?}").chars().take(20).collect::<String>());
            let frame = encode_frame(&Frame { id: u64::MAX, body: fits }).unwrap();
            let length = frame.len() - 4;
            assert!((most.saturating_sub(ROOM)..=most).contains(&length), "{what}: {length} of {most}");
            decode_frame::<Reply>(&frame[4..]).unwrap();
        }
        for over in longest_replies(ROOM + 1).into_iter().filter(|reply| place(reply).1) {
            let what = format!("{over:?}").chars().take(20).collect::<String>();
            assert!(raw(&over).len() <= FRAME_BYTES, "{what}: this must be its own cap");
            assert!(decode_frame::<Reply>(&raw(&over)).is_err(), "{what} is taken over its cap");
            assert!(encode_frame(&Frame { id: u64::MAX, body: over }).is_err(), "{what} is sent over its cap");
        }
        // Of fixed length: a byte more is none of it.
        for fixed in longest_replies(0).into_iter().filter(|reply| !place(reply).1) {
            let mut bytes = raw(&fixed);
            decode_frame::<Reply>(&bytes).unwrap();
            bytes.push(0);
            assert!(decode_frame::<Reply>(&bytes).is_err(), "{fixed:?}");
        }
    }
}
