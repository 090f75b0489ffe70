//! What of the node reads sealed streams, as a function of bytes for the fuzz targets. Nothing else uses it.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use openred_proto::checked::session::RequestHead;
use openred_proto::id::{LinkId, NodeId};
use openred_proto::method::Method;
use openred_proto::secret::Secret;
use openred_proto::vault::SessionGrant;

use crate::session::Session;
use crate::session::message::{HEADER_LENGTH, RequestHeader, split_head};

fn grant(initiator: bool) -> SessionGrant {
    let (one, other) = (Secret::new([1; 32]), Secret::new([2; 32]));
    let (send, receive) = if initiator { (one, other) } else { (other, one) };
    SessionGrant {
        link: Some(LinkId::from_bytes([1; 16])),
        peer: NodeId::from_bytes([if initiator { 2 } else { 1 }; 32]),
        method: Method::Alpha,
        send,
        receive,
        hash: [3; 32],
        mutual_link: [4; 16],
        match_proof: [5; 32],
        peer_card_sequence: 0,
        peer_directory_head: Vec::new(),
    }
}

/// Seals a request whose body is the rest of `bytes` (several times, so that it fills chunks), changes it as the first six say,
/// and has the other side read it in pieces: what was not changed arrives whole, and what was changed anywhere but in its number never opens.
///
/// # Panics
/// When one of these does not hold.
pub fn session(bytes: &[u8]) {
    let Some((script, body)) = bytes.split_first_chunk::<6>() else { return };
    let now = Instant::now();
    let body = &body.repeat(1 + usize::from(script[5] / 16))[..];
    let (responder, record) = Session::as_responder(&grant(false), now).expect("a fresh session");
    let (initiator, _) = Session::as_initiator(&grant(true), &record, now).expect("its own record");
    let (initiator, responder) = (Arc::new(initiator), Arc::new(responder));
    let head = RequestHead { module: "m".into(), path: "/".into(), ..RequestHead::default() };
    let outgoing = initiator.begin_request(now).expect("the first request");
    let (mut sealer, _response) = outgoing.start(&head, Some(body.len() as u64)).expect("a short head");
    let (mut data, mut wire) = (Bytes::copy_from_slice(body), Vec::new());
    while !data.is_empty() {
        wire.extend(sealer.push(&mut data).expect("within the limits").into_iter().flatten());
    }
    wire.extend(sealer.finish().expect("within the limits"));
    let sealed = wire.clone();
    change(&mut wire, script);
    let Some((header, stream)) = wire.split_first_chunk::<HEADER_LENGTH>() else { return };
    let Ok(header) = RequestHeader::decode(header) else { return };
    let read = read(&responder, header, stream, usize::from(script[4]) * 16 + 1, now);
    let same_tag_apart = sealed[16..] == wire[16..];
    match read {
        Some(plain) => {
            assert!(same_tag_apart, "changed bytes were taken");
            assert_eq!(plain, body);
        }
        None => assert!(!same_tag_apart, "unchanged bytes were refused"),
    }
}

/// Flips, cuts, or puts something in front; the tag at the head is the carrier's to look up and is left out.
fn change(wire: &mut Vec<u8>, script: &[u8; 6]) {
    let at = 16 + usize::from(u16::from_be_bytes([script[2], script[1]])) % wire.len().saturating_sub(16).max(1);
    match script[0] % 4 {
        1 => wire[at] ^= script[3].max(1),
        2 => wire.truncate(at),
        3 => drop(wire.splice(at..at, std::iter::repeat_n(script[5], usize::from(script[3])))),
        _ => {}
    }
}

fn read(responder: &Arc<Session>, header: RequestHeader, stream: &[u8], piece: usize, now: Instant) -> Option<Vec<u8>> {
    let mut incoming = responder.receive_request(header, now).ok()?;
    let mut plain = Vec::new();
    for part in stream.chunks(piece) {
        let mut part = Bytes::copy_from_slice(part);
        while !part.is_empty() {
            plain.extend(incoming.feed(&mut part).ok()?.into_iter().flatten());
        }
    }
    let (last, _answer) = incoming.finish().ok()?;
    plain.extend(last);
    let (head, rest) = split_head(plain.into()).ok()?;
    RequestHead::decode(&head).ok()?;
    Some(rest.to_vec())
}
