//! Answers that break off in the middle and go on: the same bytes, each once, under new numbers and the same key.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use openred_module::{Body, BodyError};
use openred_proto::checked::session::{RequestHead, ResponseHead};
use openred_proto::limits::CHUNK_BYTES;
use openred_proto::method::Method;

use super::harness::{TestNode, head, pair, pair_with};
use super::pace::{Pace, Pacer};
use crate::p2p::NetworkSettings;
use crate::p2p::resume::{self, Breaks};

const LENGTH: usize = 3_000_000;
const KEY: [u8; 16] = [7; 16];

/// More than the kernel takes off a program that ends.
const LONG: usize = 24_000_000;

fn content(length: usize) -> Vec<u8> {
    (0..length as u64).map(|index| ((index * index) >> 7) as u8).collect()
}

fn resumable() -> RequestHead {
    RequestHead { idempotency_key: KEY.to_vec(), ..head("GET", "/hook") }
}

/// Answers with the content, in pieces; keeps the heads of the requests.
fn answer_with_content(
    node: &TestNode,
    length: impl Fn(usize) -> usize + Send + Sync + 'static,
) -> Arc<Mutex<Vec<RequestHead>>> {
    let heads: Arc<Mutex<Vec<RequestHead>>> = Arc::default();
    let keep = Arc::clone(&heads);
    node.module.answer_by(move |head, _| {
        let mut heads = keep.lock().unwrap();
        let content = content(length(heads.len()));
        heads.push(head);
        async move {
            let length = Some(content.len() as u64);
            let pieces: Vec<_> = content.chunks(10_000).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
            let body = Body::stream(futures_util::stream::iter(pieces));
            (ResponseHead { status: 200, content_type: "x/y".into(), length }, body)
        }
    });
    heads
}

async fn through_a_pacer_that_cuts(alice: &TestNode, bob: &TestNode) {
    let pacer = Pacer::to(bob.address, 400_000).await;
    *alice.endpoints.0.lock().unwrap() = vec![format!("http://{}", pacer.address)];
    // Each connection breaks once so much has come back on it.
    pacer.back.send_replace(Pace::Cut);
}

#[tokio::test]
async fn an_answer_goes_on_where_its_connection_broke_each_time_it_does() {
    let (alice, bob) = pair();
    through_a_pacer_that_cuts(&alice, &bob).await;
    let heads = answer_with_content(&bob, |_| LENGTH);
    let (answer, body) = alice.network.request(bob.id, resumable(), Body::empty()).await.unwrap();
    assert_eq!(answer.length, Some(LENGTH as u64));
    assert!(body.collect(2 * LENGTH).await.unwrap() == content(LENGTH));
    let heads = heads.lock().unwrap();
    assert!(heads.len() > LENGTH / 400_000 / 2, "{} requests", heads.len());
    assert!(heads.windows(2).all(|pair| pair[0].from <= pair[1].from), "from ever later bytes");
    assert!(heads.iter().all(|head| head.idempotency_key == KEY));
    // A number each, on the one session that is there.
    let [session] = &alice.network.sessions()[..] else { panic!("one session") };
    assert!(session.requests >= heads.len() as u64);
}

#[tokio::test]
async fn an_answer_goes_on_when_the_peers_program_was_started_again() {
    let settings = NetworkSettings { drain: Duration::from_millis(50), ..NetworkSettings::default() };
    let (alice, mut bob) = pair_with(settings, Method::Beta);
    let heads = answer_with_content(&bob, |_| LONG);
    let (_, mut body) = alice.network.request(bob.id, resumable(), Body::empty()).await.unwrap();
    let mut got = body.next().await.unwrap().unwrap().to_vec();
    let before = alice.network.sessions()[0].mutual_link;
    // Its sessions end with it.
    bob.restart().await;
    while let Some(piece) = body.next().await {
        got.extend_from_slice(&piece.unwrap());
    }
    assert!(got == content(LONG));
    let heads = heads.lock().unwrap();
    assert!(heads.len() == 2 && heads[1].from > 0 && heads[1].from < LONG as u64, "{heads:?}");
    assert!(alice.network.sessions().iter().any(|session| session.mutual_link != before));
}

#[tokio::test]
async fn only_what_is_the_same_each_time_goes_on() {
    let (alice, bob) = pair();
    through_a_pacer_that_cuts(&alice, &bob).await;
    let broken = |head: RequestHead| {
        let alice = &alice;
        let bob = &bob;
        async move {
            let (_, body) = alice.network.request(bob.id, head, Body::empty()).await.unwrap();
            body.collect(2 * LENGTH).await.unwrap_err()
        }
    };
    // Without a key, or as a change.
    let heads = answer_with_content(&bob, |_| LENGTH);
    for asked in [head("GET", "/hook"), RequestHead { method: "POST".into(), ..resumable() }] {
        let error = broken(asked).await;
        assert!(matches!(error, BodyError::Failed | BodyError::Truncated), "{error:?}");
    }
    assert_eq!(heads.lock().unwrap().len(), 2);
    // The answer has become another one meanwhile.
    let heads = answer_with_content(&bob, |asked| LENGTH - asked);
    let error = broken(resumable()).await;
    assert!(matches!(error, BodyError::Failed | BodyError::Truncated), "{error:?}");
    assert_eq!(heads.lock().unwrap().len(), 2);
}

#[tokio::test]
async fn a_part_of_an_answer_is_given_from_any_byte_and_from_none_beyond() {
    let whole = || (ResponseHead { status: 200, ..ResponseHead::default() }, Body::whole("12345"));
    for (from, status, rest) in [(0, 200, "12345"), (3, 200, "45"), (5, 200, ""), (6, 416, ""), (u64::MAX, 416, "")] {
        let (head, body) = whole();
        let (head, body) = resume::skip(from, head, body);
        assert_eq!((head.status, &body.collect(9).await.unwrap()[..]), (status, rest.as_bytes()), "{from}");
    }
    let (head, body) = whole();
    let (head, body) = resume::skip(3, ResponseHead { status: 404, ..head }, body);
    assert_eq!((head.status, &body.collect(9).await.unwrap()[..]), (404, &b"12345"[..]), "a refusal is given whole");
}

/// A peer that gives a byte each time and breaks off again.
#[test]
fn a_break_after_each_byte_ends_after_as_many_attempts_as_one_without_any() {
    let length = 100 * CHUNK_BYTES as u64;
    for bytes in [0, 1, CHUNK_BYTES / 8] {
        let mut breaks = Breaks::of(length);
        let attempts = std::iter::from_fn(|| {
            breaks.came(bytes);
            breaks.next_pause()
        });
        assert_eq!(attempts.take(1000).count(), 5, "{bytes}");
    }
    // A chunk each time, and then nothing: what it has comes whole, and no attempt of its own is begun for each byte.
    let mut breaks = Breaks::of(length);
    for _ in 0..100 {
        breaks.came(CHUNK_BYTES);
        assert_eq!(breaks.next_pause(), Some(Duration::ZERO));
    }
    assert_eq!(std::iter::from_fn(|| breaks.next_pause()).count(), 4, "with ever longer pauses");
    // One that promises little has no more rounds than it has chunks, and five.
    let mut breaks = Breaks::of(10);
    let attempts = std::iter::from_fn(|| {
        breaks.came(CHUNK_BYTES);
        breaks.next_pause()
    });
    assert_eq!(attempts.take(1000).count(), 5);
}
