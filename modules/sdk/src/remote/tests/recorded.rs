//! Modules of earlier versions of the contract, as they were recorded, against the node of today.
//!
//! `tests/contract/v1.txt` is what a module built from this crate at version 1 said on its first connection, message by message and as its bytes were,
//! while a node led it through [`session`]. It is played back here: the same calls must have the same outcome, whatever this crate has
//! learned since. A recording is made once a version, with `OPENRED_GOLDEN=write`, and never again for a version that was released.

use std::collections::VecDeque;
use std::sync::Mutex;

use openred_proto::secret::Secret;
use prost::Message as _;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite};

use super::*;

const V1: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/contract/v1.txt");

/// What the node leads a module through: everything that version 1 has, but for what is not answered.
async fn session(attached: &Attached) {
    attached.start().await.unwrap();
    let answer = attached.dispatch(post("/echo", Body::whole("hello"))).await;
    assert_eq!((answer.content_type.as_str(), answer.length), ("text/plain", Some(5)));
    assert_eq!(said(answer).await, (Status::Created, "hello".into()));
    let pieces = || (0..3).map(|number| Ok(Bytes::from(vec![b'a' + number; 5000])));
    let answer = attached.dispatch(post("/echo", Body::stream(futures_util::stream::iter(pieces())))).await;
    let whole: Vec<u8> = pieces().flat_map(|piece: Result<Bytes, BodyError>| piece.unwrap()).collect();
    assert_eq!(answer.body.collect(20_000).await.unwrap(), whole);
    let broken = [Ok(Bytes::from_static(b"half")), Err(BodyError::TimedOut)];
    let answer = attached.dispatch(post("/echo", Body::stream(futures_util::stream::iter(broken)))).await;
    assert_eq!(answer.body.collect(100).await, Err(BodyError::TimedOut));
    let (status, problem) = said(attached.dispatch(get("/none")).await).await;
    assert!(status == Status::NotFound && problem.contains("no-such-route"), "{problem}");
    assert!(attached.event(Event::PeerReachable(NodeId::from_bytes([3; 32]))).await);
    {
        let forever = attached.dispatch(get("/forever"));
        tokio::pin!(forever);
        assert!(futures_util::poll!(&mut forever).is_pending());
        // The call is on its way before it is given up.
        assert!(attached.ping().await);
    }
    assert!(attached.ping().await);
    assert_eq!(attached.running(), 0, "it has let go");
    assert!(attached.drain(std::time::Duration::from_secs(60)).await);
}

/// The messages of one direction of a gRPC stream, out of HTTP/2's bytes (RFC 9113 §4.1, §6.1).
fn messages(bytes: &[u8]) -> VecDeque<Vec<u8>> {
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let mut rest = bytes.strip_prefix(PREFACE).unwrap_or(bytes);
    let mut data = Vec::new();
    while let [l1, l2, l3, kind, _, _, _, _, _, after @ ..] = rest {
        let length = usize::from(*l1) << 16 | usize::from(*l2) << 8 | usize::from(*l3);
        // Data, of a library that does not pad.
        if *kind == 0 {
            data.extend_from_slice(&after[..length]);
        }
        rest = &after[length..];
    }
    let (mut found, mut rest) = (VecDeque::new(), data.as_slice());
    while let [0, l1, l2, l3, l4, after @ ..] = rest {
        let length = u32::from_be_bytes([*l1, *l2, *l3, *l4]) as usize;
        found.push_back(after[..length].to_vec());
        rest = &after[length..];
    }
    found
}

type Bytes1 = Arc<Mutex<Vec<u8>>>;

async fn copy(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, kept: Bytes1) {
    let mut buffer = vec![0; 65536];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        kept.lock().unwrap().extend_from_slice(&buffer[..count]);
        if to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}

/// Records a session of the module of today.
async fn record() -> Vec<Vec<u8>> {
    let node = Node::new().await;
    let tap = node.socket.with_file_name("tap.sock");
    let listener = UnixListener::bind(&tap).unwrap();
    let (first, behind) = (Bytes1::default(), node.socket.clone());
    let kept = Arc::clone(&first);
    tokio::spawn(async move {
        let mut kept = Some(kept);
        while let Ok((module, _)) = listener.accept().await {
            let host = UnixStream::connect(&behind).await.unwrap();
            let ((from, to), (back, forth)) = (module.into_split(), host.into_split());
            tokio::spawn(copy(from, forth, kept.take().unwrap_or_default()));
            tokio::spawn(copy(back, to, Bytes1::default()));
        }
    });
    let (mut pipe, proofs) = tokio::io::duplex(64);
    let instance = Arc::new(Instance::load(Probe::default()).unwrap());
    tokio::spawn(async move { process::serve(instance, &tap, proofs).await });
    let expected = node.expect(PROOF);
    pipe.write_all(&PROOF).await.unwrap();
    session(&expected.attached().await.unwrap()).await;
    let bytes = first.lock().unwrap().clone();
    messages(&bytes).into()
}

/// What a frame of the module is an answer to.
fn cause(frame: &FromModule) -> (&'static str, u64) {
    match frame {
        FromModule::Hello(_) => ("hello", 0),
        FromModule::Activated(_) => ("activate", 0),
        FromModule::Drained(_) => ("drain", 0),
        FromModule::Reply(reply) => ("call", reply.call),
        FromModule::Chunk(chunk) => ("call", chunk.call),
        FromModule::Credit(credit) => ("call", credit.call),
        FromModule::EventDone(done) => ("call", done.call),
        FromModule::Cancelled(cancelled) => ("cancel", cancelled.call),
        other => panic!("not a part of the session: {other:?}"),
    }
}

fn asked(frame: &FromHost) -> Option<(&'static str, u64)> {
    match frame {
        FromHost::Activate(_) => Some(("activate", 0)),
        FromHost::Drain(_) => Some(("drain", 0)),
        FromHost::Call(call) if call.end != i32::from(End::More) => Some(("call", call.call)),
        // Answered once it is whole, as the recorded module has read it.
        FromHost::Chunk(chunk) if chunk.end != i32::from(End::More) => Some(("call", chunk.call)),
        FromHost::Event(event) => Some(("call", event.call)),
        FromHost::Cancel(cancel) => Some(("cancel", cancel.call)),
        _ => None,
    }
}

/// Plays a recorded module to the node of today.
async fn replay(recorded: Vec<Vec<u8>>) {
    let node = Node::new().await;
    let frame = |bytes: &Vec<u8>| ModuleFrame::decode(bytes.as_slice()).unwrap().kind.expect("known then, known now");
    // How often it is pinged is the clock's matter: answered as it comes.
    let is_pong = |frame: &FromModule| matches!(frame, FromModule::Pong(_));
    let mut recorded: Vec<FromModule> = recorded.iter().map(frame).filter(|frame| !is_pong(frame)).collect();
    let FromModule::Hello(hello) = recorded.remove(0) else { panic!("it begins with its Hello") };
    let expected = node.door.expect("probe", Secret::new(PROOF), node.host.context());
    let (mut bare, ticket) = Bare::first(&node, hello).await.unwrap();
    bare.host.open(wire::OpenRequest { ticket }).await.unwrap();
    let attached = expected.attached().await.unwrap();
    let module = tokio::spawn(async move {
        while let Ok(Some(frame)) = bare.frames.message().await {
            if let Some(FromHost::Ping(ping)) = frame.kind {
                bare.say(FromModule::Pong(wire::Pong { number: ping.number })).await;
                continue;
            }
            let Some(cause_now) = frame.kind.as_ref().and_then(asked) else { continue };
            let (now, later): (Vec<_>, Vec<_>) = recorded.into_iter().partition(|frame| cause(frame) == cause_now);
            recorded = later;
            for frame in now {
                bare.say(frame).await;
            }
        }
        recorded
    });
    session(&attached).await;
    assert_eq!(attached.version(), "1.2.3");
    drop(attached);
    let left = module.await.unwrap();
    assert!(left.is_empty(), "not asked for: {left:?}");
}

fn hexadecimal(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

#[test]
fn a_module_of_version_1_is_served_as_ever() {
    run(async {
        if std::env::var_os("OPENRED_GOLDEN").is_some_and(|what| what == "write") {
            let line = |message: Vec<u8>| message.iter().map(|byte| format!("{byte:02x}")).collect::<String>() + "\n";
            let text: String = record().await.into_iter().map(line).collect();
            std::fs::write(V1, text).unwrap();
        }
        replay(std::fs::read_to_string(V1).unwrap().lines().map(hexadecimal).collect()).await;
    });
}

#[test]
fn the_module_of_today_is_served_like_its_recording() {
    run(async { replay(record().await).await });
}
