//! The stream against a vault that the test plays: numbers, order, refusals, bounds and its end.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::pin::pin;

use futures_util::{FutureExt, stream};
use openred_proto::id::HandshakeId;
use openred_proto::vault::{Frame, Refusal, decode_frame, encode_frame};
use prost::bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tonic::Code;

use super::super::places::{DEAR, DEAR_WAITING};
use super::*;

/// A stream of `calls` and the far end of its vault.
fn line(
    calls: impl Stream<Item = Result<rpc::HandshakeCall, Status>> + Send,
) -> (impl Stream<Item = Result<rpc::HandshakeAnswer, Status>> + Send, UnixStream, Arc<Refused>, Arc<Caller>) {
    let (near, far) = UnixStream::pair().unwrap();
    let (refused, caller) = (Arc::new(Refused::default()), Arc::new(Caller::new()));
    let open = caller.may_stream().unwrap();
    let desk = Desk::new(VaultLink::start(near), Arc::clone(&caller), Arc::clone(&refused), open);
    (desk.serve(calls), far, refused, caller)
}

fn call(number: u64, phase: Phase) -> Result<rpc::HandshakeCall, Status> {
    Ok(rpc::HandshakeCall { number, phase: Some(phase) })
}

fn start(number: u64) -> Result<rpc::HandshakeCall, Status> {
    call(number, Phase::Start(rpc::LinkRow { row: Bytes::from(vec![number as u8; 97]) }))
}

fn refusal_of(answer: rpc::HandshakeAnswer) -> (u64, Code, String) {
    let Some(Outcome::Refused(refused)) = answer.outcome else { panic!("{answer:?}") };
    (answer.number, Code::from_i32(refused.code.cast_signed()), refused.refusal)
}

async fn asked(vault: &mut UnixStream) -> Frame<Request> {
    let mut length = [0; 4];
    vault.read_exact(&mut length).await.unwrap();
    let mut body = vec![0; u32::from_le_bytes(length) as usize];
    vault.read_exact(&mut body).await.unwrap();
    decode_frame(&body).unwrap()
}

async fn reply(vault: &mut UnixStream, id: u64, body: Reply) {
    vault.write_all(&encode_frame(&Frame { id, body }).unwrap()).await.unwrap();
}

#[tokio::test]
async fn calls_reach_the_vault_in_order_and_answers_come_as_they_are_ready() {
    let (answers, mut vault, refused, _caller) = line(stream::iter((1..=3).map(start)).chain(stream::pending()));
    let mut answers = pin!(answers);
    assert!(answers.next().now_or_never().is_none());
    let mut ids = Vec::new();
    for number in 1..=3_u8 {
        let frame = asked(&mut vault).await;
        assert!(matches!(frame.body, Request::StartHandshake { row } if row == [number; 97]));
        ids.push(frame.id);
    }
    let (handshake, noise) = (HandshakeId::from_bytes([5; 16]), vec![6; 9]);
    reply(&mut vault, ids[1], Reply::HandshakeStarted { handshake, noise }).await;
    let second = answers.next().await.unwrap().unwrap();
    let Some(Outcome::Started(started)) = second.outcome else { panic!("{second:?}") };
    assert_eq!((second.number, &started.handshake[..], &started.noise[..]), (2, &[5; 16][..], &[6; 9][..]));
    reply(&mut vault, ids[0], Reply::Refused(Refusal::LinkGone)).await;
    let first = refusal_of(answers.next().await.unwrap().unwrap());
    assert_eq!(first, (1, Code::NotFound, Refusal::LinkGone.code().into()), "as the status of a call by itself");
    assert_eq!(refused.counted(), 0, "the vault has its own record of it");
    drop(vault);
    let third = refusal_of(answers.next().await.unwrap().unwrap());
    assert_eq!(third, (3, Code::Unavailable, String::new()));
    assert!(answers.next().await.is_none(), "an open stream would keep the front from its end");
}

#[tokio::test]
async fn what_is_not_in_the_contract_is_refused_counted_and_a_fault() {
    let no_phase = Ok(rpc::HandshakeCall { number: 7, phase: None });
    let no_row = call(8, Phase::Start(rpc::LinkRow::default()));
    let foreign = rpc::AnswerHandshakeRequest { row: Bytes::from_static(&[1; 97]), ..Default::default() };
    let calls = [no_phase, no_row, call(9, Phase::Answer(foreign))];
    let (answers, _vault, refused, caller) = line(stream::iter(calls));
    let came: Vec<_> = answers.map(|answer| refusal_of(answer.unwrap())).collect().await;
    let invalid = |number, refusal: &str| (number, Code::InvalidArgument, String::from(refusal));
    assert_eq!(came, [invalid(7, ""), invalid(8, ""), invalid(9, "statement-malformed")]);
    assert_eq!(refused.counted(), 2, "the third is what a peer sent");
    assert!(!caller.is_out());

    let (answers, _vault, refused, caller) =
        line(stream::iter((0..20).map(|number| call(number, Phase::Abandon(rpc::HandshakeName::default())))));
    assert!(caller.may_stream().is_ok_and(|_second| caller.may_stream().is_err()), "two at most");
    assert_eq!(answers.count().await, 20);
    assert_eq!(refused.counted(), 20);
    assert!(caller.is_out(), "the connection is closed for it");
}

#[tokio::test]
async fn what_is_no_call_ends_the_stream() {
    let garbage = Err(Status::internal("failed to decode"));
    let (answers, _vault, refused, _caller) = line(stream::iter([garbage]));
    let came: Vec<_> = answers.collect().await;
    assert_eq!(came[0].as_ref().unwrap_err().code(), Code::Internal);
    assert_eq!(refused.counted(), 1);
    // One who leaves breaks no contract.
    let (answers, _vault, refused, _caller) = line(stream::iter([Err(Status::cancelled("reset"))]));
    assert_eq!(answers.count().await, 1);
    assert_eq!(refused.counted(), 0);
}

#[tokio::test]
async fn calls_are_bounded_as_those_by_themselves() {
    let read = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counter = Arc::clone(&read);
    let calls = stream::iter(0..10_000).map(move |number| {
        counter.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        start(number)
    });
    let (answers, mut vault, _refused, _caller) = line(calls);
    let mut answers = pin!(answers);
    // Nobody waits for a place but the dear calls that may: the next is refused at once.
    let busy = refusal_of(answers.next().await.unwrap().unwrap());
    assert_eq!(busy, (DEAR_WAITING as u64, Code::ResourceExhausted, String::new()));
    assert!(read.load(std::sync::atomic::Ordering::Relaxed) <= OPEN, "no more are read than may be open");
    for _ in 0..DEAR / 2 {
        asked(&mut vault).await;
    }
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert!(vault.try_read(&mut [0; 8]).is_err(), "the caller's places before the vault are used up");
}
