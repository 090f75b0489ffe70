//! The tables of `docs/states.md` on handshakes over a link, rendered by asking the responder.

use std::time::{Duration, Instant};

use bytes::Bytes;
use openred_proto::checked::handshake::{HandshakeFinalize, HandshakeRequest};
use openred_proto::id::{HandshakeId, LinkId};
use openred_proto::limits::{HALF_OPEN_PER_LINK, TAG_AHEAD};

use crate::handshake::half_open::Finalize;
use crate::handshake::responder::{Request, Responder};
use crate::handshake::tests::{ask, bob, complete, from_alice, look};
use crate::rendered::{is_current, table};

const TEN_SECONDS: Duration = Duration::from_secs(10);

fn asked(responder: &mut Responder, request: &HandshakeRequest, now: Instant) -> String {
    match look(responder, request, now) {
        Ok(Request::Repeat(_)) => "the same VERIFY".to_owned(),
        Ok(Request::Cookie(_)) => "a cookie".to_owned(),
        Ok(Request::Wait) => "waits for the key process".to_owned(),
        Ok(Request::Ask(_)) => "the key process is asked".to_owned(),
        Err(refusal) => format!("refused: {refusal}"),
    }
}

fn finalized(responder: &mut Responder, id: u8, noise: u8, now: Instant) -> String {
    let finalize = HandshakeFinalize { handshake: HandshakeId::from_bytes([id; 16]), noise: vec![noise] };
    match responder.handle_finalize(&finalize, now) {
        Ok(Finalize::Repeat(_)) => "the same ACCEPT".to_owned(),
        Ok(Finalize::Wait) => "waits for the key process".to_owned(),
        Ok(Finalize::Ask(..)) => "the key process is asked".to_owned(),
        Err(refusal) => format!("refused: {refusal}"),
    }
}

/// A responder in each of the states that one REQUEST can have brought it to.
fn states(request: &HandshakeRequest, now: Instant) -> Vec<(&'static str, Responder)> {
    let fresh = bob(&[(1, 0)]);
    let mut looking = bob(&[(1, 0)]);
    let _ = ask(&mut looking, request, now);
    let mut refused = bob(&[(1, 0)]);
    let answering = ask(&mut refused, request, now).unwrap();
    refused.refused(&answering, true);
    let mut away = bob(&[(1, 0)]);
    let answering = ask(&mut away, request, now).unwrap();
    away.refused(&answering, false);
    let mut half_open = bob(&[(1, 0)]);
    let answering = ask(&mut half_open, request, now).unwrap();
    half_open.answered(answering, HandshakeId::from_bytes([9; 16]), &Bytes::from_static(b"verify"), now);
    let mut finished = bob(&[(1, 0)]);
    assert!(complete(&mut finished, request, 9, now));
    let mut full = bob(&[(1, 0)]);
    for number in 0..HALF_OPEN_PER_LINK as u8 {
        let answering = ask(&mut full, &from_alice(1, u64::from(number) + 1, &[number]), now).unwrap();
        full.answered(answering, HandshakeId::from_bytes([20 + number; 16]), &Bytes::from_static(b"verify"), now);
    }
    let mut forgotten = bob(&[(1, 0)]);
    forgotten.forget(&LinkId::from_bytes([1; 16]));
    vec![
        ("nothing was seen of it", fresh),
        ("the key process is looking at it", looking),
        ("the key process refused it", refused),
        ("the key process was away", away),
        ("VERIFY was sent", half_open),
        ("ACCEPT was sent", finished),
        ("the link has as many half-open as it may", full),
        ("the link has ended", forgotten),
    ]
}

#[test]
fn what_a_responder_does_with_a_request() {
    let (now, request) = (Instant::now(), from_alice(1, 1, &[77; 40]));
    let rows = states(&request, now).into_iter().map(|(name, state)| {
        let wrong_mac = HandshakeRequest { mac1: [0; 16], ..request.clone() };
        let beyond = from_alice(1, TAG_AHEAD + 30, b"n");
        vec![
            name.to_owned(),
            asked(&mut state.clone(), &request, now),
            asked(&mut state.clone(), &request, now + TEN_SECONDS),
            asked(&mut state.clone(), &from_alice(1, 5, b"another"), now),
            asked(&mut state.clone(), &wrong_mac, now),
            asked(&mut state.clone(), &beyond, now),
        ]
    });
    let head =
        ["what came before", "the same bytes", "10 s later", "another REQUEST", "mac1 is wrong", "beyond the window"];
    is_current("REQUEST", &table(&head, &rows.collect::<Vec<_>>()));
}

#[test]
fn what_a_responder_does_with_a_finalize() {
    let (now, request) = (Instant::now(), from_alice(1, 1, &[77; 40]));
    let states = states(&request, now).into_iter().filter(|(name, _)| name.contains("was sent"));
    let mut rows: Vec<Vec<String>> = Vec::new();
    for (name, state) in states {
        rows.push(vec![
            name.to_owned(),
            finalized(&mut state.clone(), 9, 9, now),
            finalized(&mut state.clone(), 9, 8, now),
            finalized(&mut state.clone(), 8, 9, now),
            finalized(&mut state.clone(), 9, 9, now + TEN_SECONDS),
        ]);
        if name.starts_with("VERIFY") {
            let mut completing = state.clone();
            let _ = finalized(&mut completing, 9, 9, now);
            let mut failed = completing.clone();
            failed.failed(&HandshakeId::from_bytes([9; 16]));
            for (name, state) in [("FINALIZE is being looked at", completing), ("FINALIZE was refused", failed)] {
                rows.push(vec![
                    name.to_owned(),
                    finalized(&mut state.clone(), 9, 9, now),
                    finalized(&mut state.clone(), 9, 8, now),
                    finalized(&mut state.clone(), 8, 9, now),
                    finalized(&mut state.clone(), 9, 9, now + TEN_SECONDS),
                ]);
            }
        }
    }
    let head = ["what came before", "FINALIZE", "with other bytes", "of another handshake", "10 s later"];
    is_current("FINALIZE", &table(&head, &rows));
}
