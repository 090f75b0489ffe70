//! Protobuf to requests, replies to protobuf, refusals to gRPC status. Every length is checked before a request is made.

use std::time::Duration;

use openred_proto::audit::Event;
use openred_proto::checked::card::CardFields;
use openred_proto::cryptod as rpc;
use openred_proto::http_signature::SignatureInput;
use openred_proto::id::{HandshakeId, LinkId, NodeId};
use openred_proto::limits::{
    CARD_BYTES, CARD_ENDPOINTS, ENDPOINT_BYTES, NAME_BYTES, NOISE_BYTES, OFFER_BYTES, TARGET_URI_BYTES,
};
use openred_proto::method::{Method, MethodSet, Schedule};
use openred_proto::refusal::REFUSAL_HEADER;
use openred_proto::secret::Secret;
use openred_proto::vault::{
    LinkKeys, LinkSummary, ReceivedOffer, ReceivedRenewal, Refusal, Reply, Request, SessionGrant, StatementFault,
};
use prost::bytes::Bytes;
use tonic::metadata::MetadataValue;
use tonic::{Code, Status};

use crate::seal::ROW_BYTES;

/// Longest HTTP method name that is signed.
const HTTP_METHOD_BYTES: usize = 16;
/// Bytes of a directory head.
const HEAD_BYTES: usize = 32;

pub(super) type Checked<T> = Result<T, Status>;

pub(super) fn wrong(field: &'static str) -> Status {
    Status::invalid_argument(format!("field `{field}` has a wrong length or value"))
}

pub(super) fn array<const N: usize>(field: &'static str, bytes: &[u8]) -> Checked<[u8; N]> {
    bytes.try_into().map_err(|_| wrong(field))
}

fn capped(field: &'static str, bytes: &[u8], limit: usize) -> Checked<Vec<u8>> {
    if bytes.is_empty() || bytes.len() > limit { Err(wrong(field)) } else { Ok(bytes.to_vec()) }
}

/// As [`capped`], for bytes that a peer or a directory chose and `noded` only hands on: refused as a statement that cannot
/// be read, which is no fault of the caller ([`is_callers_fault`]). Or whoever sends `noded` an empty offer could have its
/// connection closed.
pub(super) fn foreign(field: &'static str, bytes: &[u8], limit: usize) -> Checked<Vec<u8>> {
    capped(field, bytes, limit).map_err(|mut status| {
        let code = Refusal::PeerStatement(StatementFault::Malformed).code();
        status.metadata_mut().insert(REFUSAL_HEADER, MetadataValue::from_static(code));
        status
    })
}

/// Whether a request that did not become one is what a correct caller never sends.
pub(super) fn is_callers_fault(status: &Status) -> bool {
    !status.metadata().contains_key(REFUSAL_HEADER)
}

pub(super) fn text(field: &'static str, text: String, limit: usize) -> Checked<String> {
    if text.len() > limit { Err(wrong(field)) } else { Ok(text) }
}

fn head(bytes: &[u8]) -> Checked<Vec<u8>> {
    if matches!(bytes.len(), 0 | HEAD_BYTES) { Ok(bytes.to_vec()) } else { Err(wrong("directory_head")) }
}

fn methods(field: &'static str, bits: u32) -> Checked<MethodSet> {
    MethodSet::from_local_bits(bits.into()).map_err(|_| wrong(field))
}

fn method(number: u32) -> Checked<Method> {
    Method::from_number(number.into()).map_err(|_| wrong("method"))
}

pub(super) fn row(bytes: &[u8]) -> Checked<Vec<u8>> {
    capped("row", bytes, ROW_BYTES)
}

pub(super) fn sign_card(message: rpc::SignCardRequest) -> Checked<Request> {
    if message.endpoints.len() > CARD_ENDPOINTS {
        return Err(wrong("endpoints"));
    }
    let endpoints = message.endpoints.into_iter().map(|endpoint| text("endpoints", endpoint, ENDPOINT_BYTES));
    Ok(Request::SignCard {
        fields: CardFields {
            endpoints: endpoints.collect::<Checked<_>>()?,
            name: text("name", message.name, NAME_BYTES)?,
            sector: text("sector", message.sector, NAME_BYTES)?,
            listed: message.listed,
        },
        suites: methods("suites", message.suites)?,
        life: Duration::from_secs(message.life_seconds),
    })
}

pub(super) fn sign_http(message: rpc::SignHttpRequest, node: NodeId) -> Checked<SignatureInput> {
    Ok(SignatureInput {
        method: text("method", message.method, HTTP_METHOD_BYTES)?,
        target_uri: text("target_uri", message.target_uri, TARGET_URI_BYTES)?,
        content_sha256: array("content_sha256", &message.content_sha256)?,
        created: message.created,
        nonce: array("nonce", &message.nonce)?,
        key_id: node,
    })
}

fn schedule(number: u32) -> Checked<Schedule> {
    match number {
        0 => Ok(Schedule::Hourly),
        1 => Ok(Schedule::Daily),
        2 => Ok(Schedule::Seeded),
        _ => Err(wrong("schedule")),
    }
}

pub(super) fn renew_link(message: rpc::RenewLinkRequest) -> Checked<Request> {
    Ok(Request::RenewLink {
        row: row(&message.row)?,
        card: foreign("card", &message.card, CARD_BYTES)?,
        directory: NodeId::from_bytes(array("directory", &message.directory)?),
        allowed: methods("allowed", message.allowed)?,
        schedule: schedule(message.schedule)?,
        life: Duration::from_secs(message.life_seconds),
    })
}

pub(super) fn issue_link(message: rpc::IssueLinkRequest) -> Checked<Request> {
    Ok(Request::IssueLink {
        peer: NodeId::from_bytes(array("peer", &message.peer)?),
        card: foreign("card", &message.card, CARD_BYTES)?,
        directory: NodeId::from_bytes(array("directory", &message.directory)?),
        allowed: methods("allowed", message.allowed)?,
        schedule: schedule(message.schedule)?,
        life: Duration::from_secs(message.life_seconds),
    })
}

pub(super) fn received_offer(message: rpc::ReceivedOffer) -> Checked<ReceivedOffer> {
    Ok(ReceivedOffer {
        offer: foreign("offer", &message.offer, OFFER_BYTES)?,
        sender: NodeId::from_bytes(array("sender", &message.sender)?),
        directory: NodeId::from_bytes(array("directory", &message.directory)?),
        allowed: methods("allowed", message.allowed)?,
    })
}

pub(super) fn received_renewal(message: rpc::ReceivedRenewal) -> Checked<ReceivedRenewal> {
    let received = message.received.ok_or_else(|| wrong("received"))?;
    Ok(ReceivedRenewal { received: received_offer(received)?, row: row(&message.row)? })
}

pub(super) fn list_links(message: &rpc::ListLinksRequest) -> Checked<Request> {
    let after = if message.after.is_empty() { [0; 16] } else { array("after", &message.after)? };
    Ok(Request::ListLinks { after: LinkId::from_bytes(after) })
}

pub(super) fn revoke_link(message: rpc::LinkName) -> Checked<Request> {
    Ok(Request::RevokeLink { link: LinkId::from_bytes(array("link_id", &message.link_id)?) })
}

pub(super) fn start_handshake(message: &rpc::LinkRow) -> Checked<Request> {
    Ok(Request::StartHandshake { row: row(&message.row)? })
}

pub(super) fn answer_handshake(message: rpc::AnswerHandshakeRequest) -> Checked<Request> {
    Ok(Request::AnswerHandshake {
        row: row(&message.row)?,
        noise: foreign("noise", &message.noise, NOISE_BYTES)?,
        directory_head: head(&message.directory_head)?,
    })
}

pub(super) fn finish_handshake(message: rpc::ContinueHandshakeRequest) -> Checked<Request> {
    Ok(Request::FinishHandshake {
        handshake: HandshakeId::from_bytes(array("handshake", &message.handshake)?),
        noise: foreign("noise", &message.noise, NOISE_BYTES)?,
        directory_head: head(&message.directory_head)?,
    })
}

pub(super) fn complete_handshake(message: rpc::ContinueHandshakeRequest) -> Checked<Request> {
    if !message.directory_head.is_empty() {
        return Err(wrong("directory_head"));
    }
    Ok(Request::CompleteHandshake {
        handshake: HandshakeId::from_bytes(array("handshake", &message.handshake)?),
        noise: foreign("noise", &message.noise, NOISE_BYTES)?,
    })
}

pub(super) fn start_direct(message: &rpc::StartDirectRequest) -> Checked<Request> {
    Ok(Request::StartDirect {
        method: method(message.method)?,
        peer: NodeId::from_bytes(array("peer", &message.peer)?),
    })
}

pub(super) fn answer_direct(message: &rpc::AnswerDirectRequest) -> Checked<Request> {
    Ok(Request::AnswerDirect {
        method: method(message.method)?,
        noise: foreign("noise", &message.noise, NOISE_BYTES)?,
        directory_head: head(&message.directory_head)?,
    })
}

pub(super) fn abandon_handshake(message: rpc::HandshakeName) -> Checked<Request> {
    Ok(Request::AbandonHandshake { handshake: HandshakeId::from_bytes(array("handshake", &message.handshake)?) })
}

pub(super) fn sign_session(message: rpc::HandshakeName) -> Checked<Request> {
    Ok(Request::SignSession { handshake: HandshakeId::from_bytes(array("handshake", &message.handshake)?) })
}

pub(super) fn validate_match(message: rpc::ValidateMatchRequest) -> Checked<Request> {
    Ok(Request::ValidateMatch {
        row: row(&message.row)?,
        hash: array("hash", &message.hash)?,
        proof: array("proof", &message.proof)?,
    })
}

/// Only what is `noded`'s to see: what the front itself reports goes another way.
pub(super) fn report(message: &rpc::ReportRequest) -> Checked<Request> {
    let event = match message.event() {
        rpc::NodeEvent::SessionForged => Event::SessionForged,
        rpc::NodeEvent::Flooded => Event::Flooded,
        rpc::NodeEvent::DirectoryLied => Event::DirectoryLied,
        rpc::NodeEvent::OfferRefused => Event::OfferRefused,
        rpc::NodeEvent::Unspecified => return Err(wrong("event")),
    };
    if message.count == 0 {
        return Err(wrong("count"));
    }
    Ok(Request::Report { event: event.number(), count: message.count })
}

pub(super) fn store_key_request(message: rpc::StoreKeyRequest) -> Checked<Request> {
    Ok(Request::StoreKey { purpose: text("purpose", message.purpose, NAME_BYTES)? })
}

/// What any reply but the expected one is: a refusal with its code, or a defect.
pub(super) fn refused(reply: &Reply) -> Status {
    let refusal = if let Reply::Refused(refusal) = reply { *refusal } else { Refusal::Bug };
    let code = match refusal {
        Refusal::Malformed => Code::InvalidArgument,
        Refusal::NotAllowed => Code::PermissionDenied,
        Refusal::Quota | Refusal::Capacity(_) => Code::ResourceExhausted,
        Refusal::LinkGone | Refusal::HandshakeGone | Refusal::MethodGone => Code::NotFound,
        Refusal::PeerStatement(_)
        | Refusal::OfferForOther
        | Refusal::OfferSender
        | Refusal::UnknownPrekey
        | Refusal::OfferSealed
        | Refusal::Replay
        | Refusal::NoCommonMethod
        | Refusal::WeakMethod(_)
        | Refusal::MethodMalformed
        | Refusal::MethodTaken
        | Refusal::Downgrade
        | Refusal::DirectDowngrade
        | Refusal::RowSealed
        | Refusal::LinkExpired
        | Refusal::HandshakeFailed => Code::FailedPrecondition,
        Refusal::StateLost | Refusal::AuditFull => Code::Unavailable,
        Refusal::Bug => Code::Internal,
    };
    let mut status = Status::new(code, refusal.to_string());
    status.metadata_mut().insert(REFUSAL_HEADER, MetadataValue::from_static(refusal.code()));
    status
}

pub(super) fn description(reply: Reply) -> Checked<rpc::Description> {
    match reply {
        Reply::Described { node, prekey, operations, links, half_open, earlier } => Ok(rpc::Description {
            node_id: copy(node.as_bytes()),
            prekey_id: copy(prekey.id.as_bytes()),
            operations,
            links,
            half_open,
            earlier: earlier.iter().map(|node| copy(node.as_bytes())).collect(),
        }),
        other => Err(refused(&other)),
    }
}

pub(super) fn signed_card(reply: Reply) -> Checked<rpc::SignedCard> {
    match reply {
        Reply::Card { statement, sequence, expires_at } => {
            Ok(rpc::SignedCard { statement: statement.into(), sequence, expires_at: expires_at.0 })
        }
        other => Err(refused(&other)),
    }
}

pub(super) fn http_signature(input: &SignatureInput, reply: Reply) -> Checked<rpc::HttpSignature> {
    match reply {
        Reply::Signature(signature) => {
            let bytes: [u8; 64] = signature.as_slice().try_into().map_err(|_| refused(&Reply::Done))?;
            Ok(rpc::HttpSignature {
                signature: signature.into(),
                signature_input: input.signature_input_header(),
                signature_header: SignatureInput::signature_header(&bytes),
                content_digest: input.content_digest(),
            })
        }
        other => Err(refused(&other)),
    }
}

pub(super) fn issued_link(reply: Reply) -> Checked<rpc::IssuedLink> {
    match reply {
        Reply::LinkIssued { summary: link, row, offer, keys: link_keys } => Ok(rpc::IssuedLink {
            summary: Some(summary(&link)),
            row: row.into(),
            offer: offer.into(),
            keys: Some(keys(link_keys)),
        }),
        other => Err(refused(&other)),
    }
}

pub(super) fn inspected_offer(reply: Reply) -> Checked<rpc::LinkSummary> {
    match reply {
        Reply::OfferInspected(link) => Ok(summary(&link)),
        other => Err(refused(&other)),
    }
}

pub(super) fn accepted_link(reply: Reply) -> Checked<rpc::AcceptedLink> {
    match reply {
        Reply::LinkAccepted { summary: link, row, receipt, keys: link_keys } => Ok(rpc::AcceptedLink {
            summary: Some(summary(&link)),
            row: row.into(),
            receipt: receipt.into(),
            keys: Some(keys(link_keys)),
        }),
        other => Err(refused(&other)),
    }
}

pub(super) fn link_keys(reply: Reply) -> Checked<rpc::LinkKeys> {
    match reply {
        Reply::LinkKeys(link_keys) => Ok(keys(link_keys)),
        other => Err(refused(&other)),
    }
}

pub(super) fn link_names(reply: Reply) -> Checked<rpc::LinkNames> {
    match reply {
        Reply::Links(links) => {
            Ok(rpc::LinkNames { link_ids: links.iter().map(|link| copy(link.as_bytes())).collect() })
        }
        other => Err(refused(&other)),
    }
}

pub(super) fn done(reply: Reply) -> Checked<rpc::Done> {
    match reply {
        Reply::Done => Ok(rpc::Done {}),
        other => Err(refused(&other)),
    }
}

pub(super) fn started_handshake(reply: Reply) -> Checked<rpc::StartedHandshake> {
    match reply {
        Reply::HandshakeStarted { handshake, noise } | Reply::HandshakeAnswered { handshake, noise } => {
            Ok(rpc::StartedHandshake { handshake: copy(handshake.as_bytes()), noise: noise.into() })
        }
        other => Err(refused(&other)),
    }
}

pub(super) fn finished_handshake(reply: Reply) -> Checked<rpc::FinishedHandshake> {
    match reply {
        Reply::HandshakeFinished { noise, grant } => {
            Ok(rpc::FinishedHandshake { noise: noise.into(), grant: Some(session(grant)) })
        }
        other => Err(refused(&other)),
    }
}

pub(super) fn completed_handshake(reply: Reply) -> Checked<rpc::SessionGrant> {
    match reply {
        Reply::HandshakeCompleted { grant } => Ok(session(grant)),
        other => Err(refused(&other)),
    }
}

pub(super) fn signed_session(reply: Reply) -> Checked<rpc::SignedSession> {
    match reply {
        Reply::SessionSigned { statement, .. } => Ok(rpc::SignedSession { statement: statement.into() }),
        other => Err(refused(&other)),
    }
}

pub(super) fn match_result(reply: Reply) -> Checked<rpc::MatchResult> {
    match reply {
        Reply::MatchValidated { matched } => Ok(rpc::MatchResult { matched }),
        other => Err(refused(&other)),
    }
}

pub(super) fn store_key(reply: Reply) -> Checked<rpc::StoreKey> {
    match reply {
        Reply::StoreKey(key) => Ok(rpc::StoreKey { key: wiped(key) }),
        other => Err(refused(&other)),
    }
}

fn copy(bytes: &[u8]) -> Bytes {
    Bytes::copy_from_slice(bytes)
}

/// A secret as a message's field: the same bytes, moved and not copied, wiped when the message is dropped. What tonic encodes
/// out of it on its way into the socket is a buffer of the library, which is not.
fn wiped(secret: Secret<32>) -> Bytes {
    Bytes::from_owner(Exposed(secret))
}

/// Lets [`Bytes`] own a secret.
struct Exposed(Secret<32>);

impl AsRef<[u8]> for Exposed {
    fn as_ref(&self) -> &[u8] {
        self.0.expose()
    }
}

fn summary(link: &LinkSummary) -> rpc::LinkSummary {
    rpc::LinkSummary {
        link_id: copy(link.link.as_bytes()),
        peer: copy(link.peer.as_bytes()),
        issuer: link.issuer,
        method: u32::from(link.method as u8),
        epoch: link.epoch,
        not_before: link.not_before.0,
        not_after: link.not_after.0,
        registered: link.registered.map_or(0, |place| place.number().into()),
    }
}

fn keys(keys: LinkKeys) -> rpc::LinkKeys {
    rpc::LinkKeys {
        outgoing_tag: wiped(keys.outgoing.tag),
        outgoing_mac1: wiped(keys.outgoing.mac1),
        incoming_tag: wiped(keys.incoming.tag),
        incoming_mac1: wiped(keys.incoming.mac1),
    }
}

fn session(grant: SessionGrant) -> rpc::SessionGrant {
    rpc::SessionGrant {
        link_id: grant.link.map(|link| copy(link.as_bytes())).unwrap_or_default(),
        peer: copy(grant.peer.as_bytes()),
        method: u32::from(grant.method as u8),
        send: wiped(grant.send),
        receive: wiped(grant.receive),
        hash: copy(&grant.hash),
        mutual_link: copy(&grant.mutual_link),
        match_proof: copy(&grant.match_proof),
        peer_card_sequence: grant.peer_card_sequence,
        peer_directory_head: grant.peer_directory_head.into(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn lengths_are_held_to_their_caps_before_a_request_is_made() {
        let handshake = Bytes::from_static(&[1; 16]);
        let noise = Bytes::from(vec![0; NOISE_BYTES]);
        let good = rpc::ContinueHandshakeRequest { handshake, noise, directory_head: Bytes::new() };
        assert!(complete_handshake(good.clone()).is_ok());
        let short_id = rpc::ContinueHandshakeRequest { handshake: Bytes::from_static(&[1; 15]), ..good.clone() };
        let long_noise = rpc::ContinueHandshakeRequest { noise: Bytes::from(vec![0; NOISE_BYTES + 1]), ..good.clone() };
        let no_noise = rpc::ContinueHandshakeRequest { noise: Bytes::new(), ..good.clone() };
        let half_head = rpc::ContinueHandshakeRequest { directory_head: Bytes::from_static(&[1; 16]), ..good };
        for bad in [short_id, long_noise, no_noise, half_head] {
            assert_eq!(finish_handshake(bad.clone()).unwrap_err().code(), Code::InvalidArgument);
            assert_eq!(complete_handshake(bad).unwrap_err().code(), Code::InvalidArgument);
        }
        assert!(row(&[0; ROW_BYTES + 1]).is_err());
        assert!(methods("allowed", 0x1000).is_err());
        let endpoints = vec![String::new(); CARD_ENDPOINTS + 1];
        assert!(sign_card(rpc::SignCardRequest { endpoints, ..Default::default() }).is_err());
    }

    /// `Bytes` of an owner cannot be taken apart into a buffer: what it holds is the secret itself, which wipes itself. Bytes that
    /// were copied could.
    fn is_wiped(field: Bytes) -> bool {
        field.try_into_mut().is_err()
    }

    #[test]
    fn secrets_are_moved_into_messages_and_wiped_with_them() {
        use openred_proto::vault::RequestKeys;
        use zeroize::ZeroizeOnDrop;
        const fn wipes_itself<T: ZeroizeOnDrop>() {}
        const { wipes_itself::<Secret<32>>() };
        assert!(!is_wiped(copy(&[1; 32])), "the control");
        let secret = Secret::new;
        let both = |seed| RequestKeys { tag: secret([seed; 32]), mac1: secret([seed + 1; 32]) };
        let message = keys(LinkKeys { outgoing: both(1), incoming: both(3) });
        let fields = [message.outgoing_tag, message.outgoing_mac1, message.incoming_tag, message.incoming_mac1];
        for (seed, field) in (1..).zip(fields) {
            assert_eq!(field, [seed; 32][..]);
            assert!(is_wiped(field));
        }
        let message = session(SessionGrant {
            link: Some(LinkId::from_bytes([1; 16])),
            peer: NodeId::from_bytes([2; 32]),
            method: Method::Alpha,
            send: secret([3; 32]),
            receive: secret([4; 32]),
            hash: [5; 32],
            mutual_link: [6; 16],
            match_proof: [7; 32],
            peer_card_sequence: 8,
            peer_directory_head: Vec::new(),
        });
        assert_eq!((&message.send[..], &message.receive[..]), (&[3; 32][..], &[4; 32][..]));
        assert!(is_wiped(message.send) && is_wiped(message.receive));
        assert!(is_wiped(store_key(Reply::StoreKey(secret([9; 32]))).unwrap().key));
    }

    #[test]
    fn a_refusal_carries_its_code() {
        let status = done(Reply::Refused(Refusal::LinkExpired)).unwrap_err();
        assert_eq!(status.code(), Code::FailedPrecondition);
        assert_eq!(status.metadata().get(REFUSAL_HEADER).unwrap(), Refusal::LinkExpired.code());
        let defect = done(Reply::MatchValidated { matched: true }).unwrap_err();
        assert_eq!(defect.code(), Code::Internal, "a reply of another kind is a defect");
    }
}
