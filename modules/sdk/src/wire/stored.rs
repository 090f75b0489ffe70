//! Answers that are stored, as the contract has them, and back.

use bytes::Bytes;
use openred_proto::module as wire;

use super::convert;
use super::flow::{ended, ending};
use crate::body::Body;
use crate::host::BlobName;
use crate::stored::{Blake3, StoreInto, Stored};

pub(crate) fn of_into(into: &StoreInto) -> wire::StoreInto {
    let (hash, subtree_at) = match into.hash {
        Blake3::Whole(hash) => (hash, None),
        Blake3::Subtree { value, at } => (value, Some(at)),
    };
    let (blob, hash) = (into.blob.as_str().to_owned(), Bytes::copy_from_slice(&hash));
    wire::StoreInto { blob, offset: into.offset, length: into.length, hash, subtree_at }
}

pub(crate) fn to_into(into: &wire::StoreInto) -> Option<StoreInto> {
    let hash = <[u8; 32]>::try_from(into.hash.as_ref()).ok()?;
    let hash = match into.subtree_at {
        None => Blake3::Whole(hash),
        Some(at) => Blake3::Subtree { value: hash, at },
    };
    Some(StoreInto { blob: BlobName::new(&into.blob)?, offset: into.offset, length: into.length, hash })
}

/// What became of it; `body` is what is told of a refusal.
pub(crate) fn of_stored(stored: Stored, length: u64, body: Bytes) -> wire::PeerStoreReply {
    use wire::StoreOutcome as Outcome;
    let (outcome, received, broken, head) = match stored {
        Stored::Verified => (Outcome::Verified, length, None, None),
        Stored::Wrong { received } => (Outcome::Wrong, received, None, None),
        Stored::Broken { received, error } => (Outcome::Broken, received, Some(error), None),
        Stored::Refused(refusal) => {
            let status = u32::from(refusal.status.code());
            let head = wire::PeerReplyHead { status, content_type: refusal.content_type, length: refusal.length };
            (Outcome::Refused, 0, None, Some(head))
        }
    };
    let (end, limit) = broken.map_or((wire::End::Done, 0), ending);
    wire::PeerStoreReply { head, outcome: outcome.into(), received, end: end.into(), limit, body }
}

pub(crate) fn to_stored(reply: wire::PeerStoreReply) -> Option<Stored> {
    use wire::StoreOutcome as Outcome;
    let received = reply.received;
    Some(match Outcome::try_from(reply.outcome).ok()? {
        Outcome::Unspecified => return None,
        Outcome::Verified => Stored::Verified,
        Outcome::Wrong => Stored::Wrong { received },
        Outcome::Broken => {
            let error = ended(reply.end, reply.limit).ok()??.err()?;
            Stored::Broken { received, error }
        }
        Outcome::Refused => {
            let head = reply.head?;
            // As long as what is told of it.
            let (length, body) = (Some(reply.body.len() as u64), Body::whole(reply.body));
            Stored::Refused(convert::to_response(head.status, head.content_type, length, body)?)
        }
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::body::BodyError;
    use crate::error::Status;
    use crate::message::Response;

    #[test]
    fn all_comes_back_as_itself_and_nonsense_not_at_all() {
        let blob = BlobName::new("a").unwrap();
        for hash in [Blake3::Whole([1; 32]), Blake3::Subtree { value: [2; 32], at: 0 }] {
            let into = StoreInto { blob: blob.clone(), offset: 3, length: 4, hash };
            assert_eq!(to_into(&of_into(&into)), Some(into.clone()));
            assert_eq!(to_into(&wire::StoreInto { blob: "../a".into(), ..of_into(&into) }), None);
            assert_eq!(to_into(&wire::StoreInto { hash: Bytes::from_static(b"short"), ..of_into(&into) }), None);
        }
        let back = |stored| to_stored(of_stored(stored, 9, Bytes::from_static(b"why"))).unwrap();
        assert!(matches!(back(Stored::Verified), Stored::Verified));
        assert!(matches!(back(Stored::Wrong { received: 5 }), Stored::Wrong { received: 5 }));
        let error = BodyError::TooLong { limit: 7 };
        assert!(matches!(
            back(Stored::Broken { received: 5, error }),
            Stored::Broken { received: 5, error: BodyError::TooLong { limit: 7 } }
        ));
        let Stored::Refused(refusal) = back(Stored::Refused(Response::empty(Status::NotFound))) else { panic!() };
        assert_eq!((refusal.status, refusal.body.known_length()), (Status::NotFound, Some(3)));
        for outcome in [0, 3, 4, 99] {
            assert!(to_stored(wire::PeerStoreReply { outcome, ..Default::default() }).is_none(), "{outcome}");
        }
    }
}
