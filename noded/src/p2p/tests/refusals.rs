//! Every reason for which a REQUEST or a FINALIZE is refused, provoked over a real socket: the log names it, and the answer is the same to
//! the byte: status, names and lengths of headers, body.

use std::collections::HashSet;
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use openred_proto::checked::handshake::{HandshakeFinalize, HandshakeRequest, HandshakeVerify};
use openred_proto::id::HandshakeId;
use openred_proto::limits::{HALF_OPEN_PER_LINK, HANDSHAKE_BYTES};
use openred_proto::method::Method;
use openred_proto::vault::{Capacity, Refusal, Request};
use tracing::subscriber::DefaultGuard;

use super::harness::{TestNode, body_of, genuine, pair_with, patient, post, raw};
use crate::handshake::{HandshakeRefusal, request};
use crate::keys::{HandshakeKeys as _, KeysError};
use crate::p2p::{HANDSHAKE_PATH, NetworkSettings};

/// The log of this thread, which these nodes run on.
#[derive(Clone, Default)]
pub(super) struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Log {
    pub(super) fn start() -> (Self, DefaultGuard) {
        let log = Self::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::DEBUG)
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .finish();
        (log, tracing::subscriber::set_default(subscriber))
    }

    /// What was logged since the last call.
    pub(super) fn take(&self) -> String {
        String::from_utf8(std::mem::take(&mut self.0.lock().unwrap())).unwrap()
    }
}

/// Collects refusals.
struct Judge {
    log: Log,
    _guard: DefaultGuard,
    answers: HashSet<Vec<u8>>,
    reasons: HashSet<String>,
}

impl Judge {
    fn new() -> Self {
        let (log, guard) = Log::start();
        Self { log, _guard: guard, answers: HashSet::new(), reasons: HashSet::new() }
    }

    /// `bob` refuses `body`, and his log gives the `reason`.
    async fn refused(&mut self, bob: &TestNode, body: &[u8], reason: impl ToString) {
        let reason = reason.to_string();
        self.log.take();
        let answer = post(bob.address, HANDSHAKE_PATH, body).await;
        let logged = self.log.take();
        assert!(logged.contains(&format!("reason={reason}")), "{reason}: {logged}");
        self.answers.insert(answer);
        self.reasons.insert(reason);
    }

    /// One shape for all of them, and an empty one.
    fn same(&self, reasons: usize) {
        assert_eq!(self.reasons.len(), reasons, "each reason is another: {:?}", self.reasons);
        let [answer] = &self.answers.iter().collect::<Vec<_>>()[..] else { panic!("{:?}", self.answers) };
        let text = String::from_utf8((*answer).clone()).unwrap();
        assert!(text.starts_with("HTTP/1.1 403 Forbidden\r\n") && text.ends_with("\r\n\r\n"), "{text}");
        assert!(!text.to_lowercase().contains("date:"), "{text}");
    }
}

/// Alice, who sends, and bob, who refuses and has the lower id: so that he refuses simultaneous openings, too.
fn linked() -> (TestNode, TestNode) {
    let (one, other) = pair_with(patient(), Method::Alpha);
    if one.id < other.id { (other, one) } else { (one, other) }
}

fn refused_by_keys(refusal: Refusal) -> KeysError {
    KeysError::Refused(refusal)
}

/// A REQUEST of alice that her link's keys vouch for, with whatever Noise message.
fn vouched(alice: &TestNode, bob: &TestNode, counter: u64, noise: &[u8]) -> Vec<u8> {
    request::build(&alice.links.handle().keys.outgoing, &alice.id, &bob.id, counter, noise).encode()
}

/// Alice's REQUEST number `counter`, answered; and the FINALIZE for it.
async fn to_finalize(alice: &TestNode, bob: &TestNode, counter: u64) -> HandshakeFinalize {
    let handle = alice.links.handle();
    let half_open = alice.keys.start_handshake(handle.row.clone()).await.unwrap();
    let request = vouched(alice, bob, counter, &half_open.noise);
    let verify = post(bob.address, HANDSHAKE_PATH, &request).await;
    let verify = HandshakeVerify::decode(body_of(&verify)).unwrap();
    let noise = Bytes::from(verify.noise);
    let (noise, _) = alice.keys.finish_handshake(half_open.handshake, noise, Bytes::new()).await.unwrap();
    HandshakeFinalize { handshake: verify.handshake, noise: noise.to_vec() }
}

#[tokio::test]
async fn every_refusal_of_a_request_is_the_same_answer() {
    let mut judge = Judge::new();
    let (alice, bob) = linked();
    let good = genuine(&alice, &bob, 1).await;
    // What is no REQUEST at all, in a few of the ways there are.
    judge.refused(&bob, &good.encode()[..99], "handshake message: incomplete").await;
    judge.refused(&bob, &[0xff; 64], "handshake message: malformed").await;
    judge.refused(&bob, &vec![8; HANDSHAKE_BYTES + 1], "the body did not come in time or broke off").await;
    let mut other_mode = good.encode();
    let mode = other_mode.windows(2).position(|bytes| bytes == [0x08, 1]).unwrap() + 1;
    other_mode[mode] = 7;
    judge.refused(&bob, &other_mode, "REQUEST mode: version or kind not supported").await;
    // What memory refuses.
    let unknown = HandshakeRequest { tag: [9; 16], ..good.clone() };
    judge.refused(&bob, &unknown.encode(), HandshakeRefusal::UnknownTag).await;
    let wrong = HandshakeRequest { mac1: [9; 16], ..good.clone() };
    judge.refused(&bob, &wrong.encode(), HandshakeRefusal::WrongMac).await;
    // What the keys refuse; and the same bytes once more.
    let forged = vouched(&alice, &bob, 2, &[9; 1300]);
    judge.refused(&bob, &forged, refused_by_keys(Refusal::HandshakeFailed)).await;
    judge.refused(&bob, &forged, HandshakeRefusal::Repeated).await;
    let later = genuine(&alice, &bob, 3).await.encode();
    assert!(post(bob.address, HANDSHAKE_PATH, &later).await.starts_with(b"HTTP/1.1 200 "));
    judge.refused(&bob, &good.encode(), refused_by_keys(Refusal::Replay)).await;
    bob.keys.away.store(true, Ordering::Relaxed);
    judge.refused(&bob, &vouched(&alice, &bob, 4, &[8; 1300]), KeysError::Away).await;
    bob.keys.away.store(false, Ordering::Relaxed);
    // One is half-open; bob's keys have three begun ones beside it, and then alice begins the rest of her four.
    let row = bob.links.handle().row.clone();
    let mut begun = Vec::new();
    for _ in 1..HALF_OPEN_PER_LINK {
        begun.push(bob.keys.start_handshake(row.clone()).await.unwrap().handshake);
    }
    let full = vouched(&alice, &bob, 5, &[7; 1300]);
    judge.refused(&bob, &full, refused_by_keys(Refusal::Capacity(Capacity::HalfOpen))).await;
    for handshake in begun {
        bob.keys.abandon_handshake(handshake).await.unwrap();
    }
    for counter in 6..5 + HALF_OPEN_PER_LINK as u64 {
        let another = alice.keys.start_handshake(alice.links.handle().row.clone()).await.unwrap();
        let request = vouched(&alice, &bob, counter, &another.noise);
        alice.keys.abandon_handshake(another.handshake).await.unwrap();
        assert!(post(bob.address, HANDSHAKE_PATH, &request).await.starts_with(b"HTTP/1.1 200 "), "{counter}");
    }
    judge.refused(&bob, &vouched(&alice, &bob, 12, &[6; 1300]), HandshakeRefusal::TooManyHalfOpen).await;
    judge.same(12);

    let (alice, bob) = linked();
    let opening = bob.network.pool.renew(alice.id).unwrap();
    opening.sent().store(true, Ordering::Relaxed);
    judge.refused(&bob, &vouched(&alice, &bob, 1, &[5; 1300]), HandshakeRefusal::SimultaneousOpen).await;
    drop(opening);
    bob.keys.ask(Request::RevokeLink { link: bob.links.handle().link }).unwrap();
    judge.refused(&bob, &vouched(&alice, &bob, 2, &[5; 1300]), refused_by_keys(Refusal::LinkGone)).await;
    judge.same(14);
}

#[tokio::test]
async fn every_refusal_of_a_finalize_is_the_same_answer() {
    let mut judge = Judge::new();
    let (alice, bob) = linked();
    let nobodys = HandshakeFinalize { handshake: HandshakeId::from_bytes([9; 16]), noise: vec![9; 300] };
    judge.refused(&bob, &nobodys.encode(), HandshakeRefusal::NotHalfOpen).await;
    let mut forged = to_finalize(&alice, &bob, 1).await;
    *forged.noise.last_mut().unwrap() ^= 1;
    judge.refused(&bob, &forged.encode(), refused_by_keys(Refusal::HandshakeFailed)).await;
    judge.refused(&bob, &forged.encode(), HandshakeRefusal::NotHalfOpen).await;
    let finalize = to_finalize(&alice, &bob, 2).await;
    bob.keys.away.store(true, Ordering::Relaxed);
    judge.refused(&bob, &finalize.encode(), KeysError::Away).await;
    bob.keys.away.store(false, Ordering::Relaxed);
    // Finished, and then sent again with other bytes.
    let mut finalize = to_finalize(&alice, &bob, 3).await;
    assert!(post(bob.address, HANDSHAKE_PATH, &finalize.encode()).await.starts_with(b"HTTP/1.1 200 "));
    *finalize.noise.last_mut().unwrap() ^= 1;
    judge.refused(&bob, &finalize.encode(), HandshakeRefusal::NotHalfOpen).await;
    // The key process has forgotten it; the node has not.
    let finalize = to_finalize(&alice, &bob, 4).await;
    bob.keys.abandon_handshake(finalize.handshake).await.unwrap();
    judge.refused(&bob, &finalize.encode(), refused_by_keys(Refusal::HandshakeGone)).await;
    let finalize = to_finalize(&alice, &bob, 5).await;
    let opening = bob.network.pool.renew(alice.id).unwrap();
    opening.sent().store(true, Ordering::Relaxed);
    judge.refused(&bob, &finalize.encode(), HandshakeRefusal::SimultaneousOpen).await;
    drop(opening);
    // The link ends while the key process looks at it.
    let finalize = to_finalize(&alice, &bob, 6).await;
    bob.network.responder().tags.remove(&bob.links.handle().link);
    judge.refused(&bob, &finalize.encode(), HandshakeRefusal::LinkEnded).await;
    judge.same(6);
}

#[tokio::test]
async fn a_body_that_does_not_come_is_refused_alike() {
    let settings = NetworkSettings { handshake_timeout: Duration::from_millis(100), ..patient() };
    let (_alice, bob) = pair_with(settings, Method::Alpha);
    let garbage = post(bob.address, HANDSHAKE_PATH, b"garbage").await;
    let begun = format!(
        "POST {HANDSHAKE_PATH} HTTP/1.1\r\nhost: {}\r\ncontent-length: 100\r\nconnection: close\r\n\r\nabc",
        bob.address
    );
    assert_eq!(raw(bob.address, begun.as_bytes()).await, garbage);
}
