//! What one session carries at once, and what happens to it when somebody reads slowly, sends slowly, goes away or is late.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt as _;
use openred_module::{Body, BodyError};
use openred_proto::checked::session::{RequestHead, ResponseHead};
use openred_proto::method::Method;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

use super::harness::{Answered, TestNode, body_of, head, pair, pair_of, pair_with, raw};
use super::pace::{Pace, Pacer, in_kernel};
use crate::p2p::{NetworkError, NetworkSettings, SESSION_PATH};
use crate::session::message::split_head;

/// Most that both nodes together may hold in memory of one body whose reader has stopped: the write buffer of a connection (400 KiB
/// and a chunk), its read buffer (64 KiB), and a chunk at each end.
const HELD: u64 = 1024 * 1024;
/// A body that no buffer takes whole.
const LARGE: u64 = 64 << 20;
/// What a proxy lets pass at full speed, so that small requests go on: more than all of them in a test.
const SPARED: u64 = 2 << 20;
/// A body's pieces.
static PIECE: [u8; 64 * 1024] = [7; 64 * 1024];

/// Of a body that a test gives: what was taken of it, and whether anybody still holds it.
#[derive(Default)]
struct Source {
    taken: AtomicU64,
    gone: AtomicBool,
}

struct Gone(Arc<Source>);

impl Drop for Gone {
    fn drop(&mut self) {
        self.0.gone.store(true, Ordering::Relaxed);
    }
}

fn source(length: u64) -> (Body, Arc<Source>) {
    let source = Arc::new(Source::default());
    let held = Gone(Arc::clone(&source));
    let pieces = futures_util::stream::iter(0..length / PIECE.len() as u64).map(move |_| {
        held.0.taken.fetch_add(PIECE.len() as u64, Ordering::Relaxed);
        Ok(Bytes::from_static(&PIECE))
    });
    (Body::stream(pieces), source)
}

/// Waits until nothing is taken any more, and gives what was.
async fn settled(source: &Source) -> u64 {
    let (mut last, mut same) = (0, 0);
    while same < 5 {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let taken = source.taken.load(Ordering::Relaxed);
        same = if taken == last && taken > 0 { same + 1 } else { 0 };
        last = taken;
    }
    last
}

async fn until(what: impl Fn() -> bool) {
    while !what() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn ok() -> ResponseHead {
    ResponseHead { status: 200, ..ResponseHead::default() }
}

async fn mirror(from: &TestNode, to: &TestNode) {
    let (_, body) = from.ask(to, head("POST", "/mirror"), Body::whole(&b"still here"[..])).await.unwrap();
    assert_eq!(body, "still here");
    // In a loop they are to stay below what a pacer spares.
    tokio::time::sleep(Duration::from_millis(2)).await;
}

/// Sends a request on a task of its own.
fn begin(from: &TestNode, to: &TestNode, body: Body) -> JoinHandle<Answered> {
    let (network, peer) = (Arc::clone(&from.network), to.id);
    tokio::spawn(async move {
        // The time is that of a slow machine: what is tested ends otherwise.
        let patient = RequestHead { deadline_millis: 600_000, ..head("POST", "/hook") };
        let (head, body) = network.request(peer, patient, body).await?;
        Ok((head, body.collect(1 << 20).await.unwrap()))
    })
}

/// Answers the next request to `/hook` with this body.
fn answer_once(node: &TestNode, body: Body) {
    let given = std::sync::Mutex::new(Some(body));
    node.module.answer_by(move |_, _| {
        let body = given.lock().unwrap().take().unwrap();
        async { (ok(), body) }
    });
}

/// Reads the first piece of a body, then nothing until `gate` is open, then the rest; answers with what came.
fn answer_slowly(node: &TestNode, read: &Arc<AtomicU64>) -> watch::Sender<bool> {
    let (gate, opened) = watch::channel(false);
    let read = Arc::clone(read);
    node.module.answer_by(move |_, mut body| {
        let (read, mut opened) = (Arc::clone(&read), opened.clone());
        async move {
            let mut waited = false;
            while let Some(piece) = body.next().await {
                match piece {
                    Ok(piece) => read.fetch_add(piece.len() as u64, Ordering::Relaxed),
                    Err(error) => return (ok(), Body::whole(format!("{error:?}").into_bytes())),
                };
                if !std::mem::replace(&mut waited, true) {
                    opened.wait_for(|open| *open).await.unwrap();
                }
            }
            (ok(), Body::whole(read.load(Ordering::Relaxed).to_string().into_bytes()))
        }
    });
    gate
}

#[tokio::test]
async fn many_requests_at_once_on_one_session_keep_their_answers_apart() {
    let (alice, bob) = pair();
    mirror(&alice, &bob).await;
    bob.links.matches(1).await;
    let ask = |from: &'static str, number: usize| {
        let (from, to) = if from == "alice" { (&alice, &bob) } else { (&bob, &alice) };
        async move {
            let body: Vec<u8> = (0..number * 4_099 % 200_000).map(|index| (index * (number + 3)) as u8).collect();
            // In pieces between those of all others.
            let (sender, streamed) = Body::channel();
            let feeding = async {
                for piece in body.chunks(9_973) {
                    sender.send(Bytes::copy_from_slice(piece)).await.unwrap();
                    tokio::task::yield_now().await;
                }
                sender.finish().await;
            };
            let (answered, ()) = tokio::join!(from.ask(to, head("POST", "/mirror"), streamed), feeding);
            assert!(answered.unwrap().1 == body, "request {number}");
        }
    };
    let all = (0..64).flat_map(|number| [ask("alice", number), ask("bob", number + 64)]);
    futures_util::future::join_all(all).await;
    assert_eq!((alice.network.sessions().len(), bob.network.sessions().len()), (1, 1));
    assert_eq!(alice.network.sessions()[0].requests, 65 + 1, "and the match proof");
}

#[tokio::test]
async fn a_handler_that_does_not_read_stalls_the_sender_and_fills_no_memory() {
    let (alice, bob) = pair();
    mirror(&alice, &bob).await;
    let read = Arc::default();
    let gate = answer_slowly(&bob, &read);
    let (body, source) = source(LARGE);
    let asking = begin(&alice, &bob, body);
    let taken = settled(&source).await;
    let held = taken.saturating_sub(read.load(Ordering::Relaxed) + in_kernel(bob.address.port()));
    assert!(taken < LARGE && held <= HELD, "{held} of {taken} bytes");
    for _ in 0..20 {
        mirror(&alice, &bob).await;
    }
    assert_eq!(alice.network.sessions().len(), 1);
    gate.send_replace(true);
    assert_eq!(asking.await.unwrap().unwrap().1, LARGE.to_string());
}

#[tokio::test]
async fn a_caller_that_does_not_read_stalls_the_answer_and_fills_no_memory() {
    let (alice, bob) = pair();
    mirror(&alice, &bob).await;
    let (body, source) = source(LARGE);
    answer_once(&bob, body);
    let (_, mut body) = alice.network.request(bob.id, head("GET", "/hook"), Body::empty()).await.unwrap();
    let mut read = body.next().await.unwrap().unwrap().len() as u64;
    let taken = settled(&source).await;
    let held = taken.saturating_sub(read + in_kernel(bob.address.port()));
    assert!(taken < LARGE && held <= HELD, "{held} of {taken} bytes");
    for _ in 0..20 {
        mirror(&alice, &bob).await;
    }
    while let Some(piece) = body.next().await {
        read += piece.unwrap().len() as u64;
    }
    assert_eq!(read, LARGE);
}

fn impatient() -> NetworkSettings {
    NetworkSettings { chunk_timeout: Duration::from_millis(1500), ..NetworkSettings::default() }
}

#[tokio::test]
async fn a_peer_that_stops_reading_ends_its_request_by_name_and_no_other() {
    let (alice, bob) = pair_with(impatient(), Method::Beta);
    mirror(&alice, &bob).await;
    let read = Arc::default();
    let gate = answer_slowly(&bob, &read);
    let (body, source) = source(LARGE);
    let asking = begin(&alice, &bob, body);
    while !asking.is_finished() {
        mirror(&alice, &bob).await;
    }
    assert_eq!(asking.await.unwrap().unwrap_err(), NetworkError::Stalled);
    until(|| source.gone.load(Ordering::Relaxed)).await;
    // The handler learns of it when it reads on.
    gate.send_replace(true);
    until(|| bob.network.pool.all().iter().all(|pooled| pooled.in_use() == 0)).await;
    assert!(read.load(Ordering::Relaxed) < LARGE);
    mirror(&alice, &bob).await;
    assert_eq!(alice.network.sessions().len(), 1, "the session is not harmed");
}

/// A byte now and then is no progress: the other side reads or sends a chunk in the time that one may take.
#[tokio::test]
async fn a_peer_that_takes_a_byte_now_and_then_is_ended_too() {
    let (alice, bob) = pair_with(impatient(), Method::Alpha);
    let pacer = Pacer::to(bob.address, SPARED).await;
    *alice.endpoints.0.lock().unwrap() = vec![format!("http://{}", pacer.address)];
    mirror(&alice, &bob).await;
    pacer.there.send_replace(Pace::Bytes(Duration::from_millis(10)));
    bob.module.answer_by(|_, body| async {
        let read = body.collect(LARGE as usize).await.map(drop);
        (ok(), Body::whole(format!("{read:?}").into_bytes()))
    });
    let (body, uploaded) = source(LARGE);
    let asking = begin(&alice, &bob, body);
    while !asking.is_finished() {
        mirror(&alice, &bob).await;
    }
    let ended = asking.await.unwrap();
    // Bob waits for the rest of a chunk, alice for room: whoever is first ends it.
    assert!(
        matches!(&ended, Err(NetworkError::Stalled | NetworkError::Interrupted))
            || ended.as_ref().is_ok_and(|(_, body)| body.starts_with(b"Err(TimedOut")),
        "{ended:?}"
    );
    until(|| uploaded.gone.load(Ordering::Relaxed)).await;
}

#[tokio::test]
async fn an_answer_that_nobody_takes_or_that_comes_byte_by_byte_ends_in_time() {
    // First the one who answers is impatient, then the one who asks.
    for bob_is_impatient in [true, false] {
        let (one, other) = (NetworkSettings::default(), impatient());
        let (alice, bob) = if bob_is_impatient { (one, other) } else { (other, one) };
        let (alice, bob) = pair_of(alice, bob, Method::Alpha);
        let pacer = Pacer::to(bob.address, SPARED).await;
        *alice.endpoints.0.lock().unwrap() = vec![format!("http://{}", pacer.address)];
        let (body, given) = source(LARGE);
        answer_once(&bob, body);
        pacer.back.send_replace(Pace::Bytes(Duration::from_millis(10)));
        let (_, mut body) = alice.network.request(bob.id, head("GET", "/hook"), Body::empty()).await.unwrap();
        if bob_is_impatient {
            // He lets go of what he gives although it is still wanted.
            body.next().await.unwrap().unwrap();
            while !given.gone.load(Ordering::Relaxed) {
                mirror(&alice, &bob).await;
            }
            continue;
        }
        let ended = loop {
            match body.next().await.expect("it never ends well") {
                Ok(_) => mirror(&alice, &bob).await,
                Err(error) => break error,
            }
        };
        assert_eq!(ended, BodyError::TimedOut);
        drop(body);
        until(|| given.gone.load(Ordering::Relaxed)).await;
    }
}

#[tokio::test]
async fn a_request_that_comes_byte_by_byte_is_cut_and_never_dispatched() {
    let (alice, bob) = pair_with(impatient(), Method::Beta);
    mirror(&alice, &bob).await;
    let served = bob.module.served.load(Ordering::Relaxed);
    let pooled = alice.network.pool.find(&bob.id, Instant::now()).unwrap();
    let ticket = pooled.session.begin_request(Instant::now()).unwrap();
    let (message, _awaited) = ticket.start(&head("POST", "/mirror"), Some(0)).unwrap();
    let wire = message.finish().unwrap();
    let mut stream = TcpStream::connect(bob.address).await.unwrap();
    let begun = format!("POST {SESSION_PATH} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", wire.len());
    stream.write_all(begun.as_bytes()).await.unwrap();
    stream.write_all(&wire[..30]).await.unwrap();
    let (mut reading, mut writing) = stream.split();
    let dripping = async {
        for byte in &wire[30..wire.len() - 1] {
            if writing.write_all(&[*byte]).await.is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        std::future::pending::<()>().await;
    };
    let mut answer = [0; 12];
    tokio::select! {
        read = reading.read_exact(&mut answer) => assert!(read.is_ok()),
        () = dripping => {}
    }
    assert_eq!(&answer, b"HTTP/1.1 403");
    assert_eq!(bob.module.served.load(Ordering::Relaxed), served);
    mirror(&alice, &bob).await;
}

/// Tells when it is dropped.
struct Told(Arc<Notify>);

impl Drop for Told {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

/// Answers `/hook` never; tells when it was asked, and when it was ended.
fn never_answer(node: &TestNode) -> (Arc<Notify>, Arc<Notify>) {
    let (asked, ended) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (tell_asked, tell_ended) = (Arc::clone(&asked), Arc::clone(&ended));
    node.module.answer_by(move |_, _| {
        let told = Told(Arc::clone(&tell_ended));
        tell_asked.notify_one();
        async move {
            let _told = told;
            std::future::pending().await
        }
    });
    (asked, ended)
}

async fn nothing_is_left(alice: &TestNode, bob: &TestNode) {
    until(|| [alice, bob].iter().all(|node| node.network.pool.all().iter().all(|pooled| pooled.in_use() == 0))).await;
    assert!(alice.network.pool.all().iter().all(|pooled| pooled.session.open_requests() == 0));
    mirror(alice, bob).await;
    assert_eq!(alice.network.sessions().len(), 1);
}

#[tokio::test]
async fn a_caller_that_goes_away_ends_the_handler_and_frees_what_both_hold() {
    let (alice, bob) = pair();
    mirror(&alice, &bob).await;
    // While the handler works.
    let (asked, ended) = never_answer(&bob);
    let asking = begin(&alice, &bob, Body::empty());
    asked.notified().await;
    asking.abort();
    ended.notified().await;
    nothing_is_left(&alice, &bob).await;
    // While the body goes there: the handler reads an error, and the source is let go.
    let (body, upload) = source(LARGE);
    let (network, peer) = (Arc::clone(&alice.network), bob.id);
    let asking = tokio::spawn(async move { network.request(peer, head("POST", "/drain"), body).await.map(drop) });
    bob.module.holding.notified().await;
    asking.abort();
    until(|| upload.gone.load(Ordering::Relaxed)).await;
    let mut drained = bob.module.drained.subscribe();
    assert!(drained.wait_for(Option::is_some).await.unwrap().unwrap().is_err());
    nothing_is_left(&alice, &bob).await;
    // While the answer comes back.
    let (body, download) = source(LARGE);
    answer_once(&bob, body);
    let (_, mut body) = alice.network.request(bob.id, head("GET", "/hook"), Body::empty()).await.unwrap();
    body.next().await.unwrap().unwrap();
    drop(body);
    until(|| download.gone.load(Ordering::Relaxed)).await;
    nothing_is_left(&alice, &bob).await;
}

#[tokio::test]
async fn a_deadline_is_kept_by_the_one_who_serves_also_when_the_caller_stays() {
    let (alice, bob) = pair();
    mirror(&alice, &bob).await;
    let (_, ended) = never_answer(&bob);
    let pooled = alice.network.pool.find(&bob.id, Instant::now()).unwrap();
    let ticket = pooled.session.begin_request(Instant::now()).unwrap();
    let mut hurried = head("POST", "/hook");
    hurried.deadline_millis = 100;
    let (message, awaited) = ticket.start(&hurried, Some(0)).unwrap();
    let wire = message.finish().unwrap();
    let begun = format!(
        "POST {SESSION_PATH} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        wire.len()
    );
    // This caller would wait for ever.
    let answer = raw(bob.address, &[begun.as_bytes(), &wire].concat()).await;
    ended.notified().await;
    let (mut opener, mut sealed) = (awaited.opener, Bytes::copy_from_slice(body_of(&answer)));
    assert!(opener.feed(&mut sealed).unwrap().is_none());
    let (head, _) = split_head(opener.finish().unwrap()).unwrap();
    assert_eq!(ResponseHead::decode(&head).unwrap().status, 504);
}

#[tokio::test]
async fn a_deadline_is_kept_by_the_one_who_asks_also_when_the_peer_does_not() {
    let (alice, bob) = pair();
    let pacer = Pacer::to(bob.address, 0).await;
    *alice.endpoints.0.lock().unwrap() = vec![format!("http://{}", pacer.address)];
    mirror(&alice, &bob).await;
    pacer.back.send_replace(Pace::Stopped);
    let (body, source) = source(LARGE);
    let mut hurried = head("POST", "/drain");
    hurried.deadline_millis = 200;
    let late = alice.network.request(bob.id, hurried, body).await.unwrap_err();
    assert_eq!(late, NetworkError::TimedOut);
    until(|| source.gone.load(Ordering::Relaxed)).await;
    pacer.back.send_replace(Pace::Free);
    nothing_is_left(&alice, &bob).await;
}

#[tokio::test]
async fn what_a_handshake_took_of_a_deadline_is_not_given_to_the_peer_again() {
    let (alice, bob) = pair();
    let told = Arc::new(AtomicU64::new(0));
    let tell = Arc::clone(&told);
    bob.module.answer_by(move |head, _| {
        tell.store(head.deadline_millis, Ordering::Relaxed);
        async { (ok(), Body::empty()) }
    });
    alice.keys.gate.send_replace(false);
    let mut patient = head("POST", "/hook");
    patient.deadline_millis = 20_000;
    let asking = alice.ask(&bob, patient, Body::empty());
    let opening = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        alice.keys.gate.send_replace(true);
    };
    let (answered, ()) = tokio::join!(asking, opening);
    answered.unwrap();
    let told = told.load(Ordering::Relaxed);
    assert!((1..=19_950).contains(&told), "{told} ms");
}
