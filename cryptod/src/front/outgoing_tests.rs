//! The counting by itself, and the whole front on a real socket with a vault that only listens.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::Path;
use std::time::Duration;

use openred_proto::checked::card::Prekey;
use openred_proto::id::{NodeId, PrekeyId, UnixMillis};
use openred_proto::limits::XWING_PUBLIC_BYTES;
use openred_proto::vault::{Frame, Reply, Request, decode_frame, encode_frame};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinHandle;

use super::*;
use crate::front::{Callers, serve};

/// Longer than anything here takes; a test that waits for nothing ends by it.
const PATIENCE: Duration = Duration::from_secs(60);
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let [_, length @ ..] = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

#[test]
fn an_error_on_its_way_out_is_counted_once_however_it_is_cut() {
    let code = |code: u32| code.to_be_bytes();
    let goaway = |with: u32| frame(7, 0, 0, &[&[0; 4][..], &code(with), b"why"].concat());
    let bytes = [
        frame(4, 0, 0, &[0; 36]),
        frame(4, 1, 0, &[]),
        frame(1, 4, 1, &[7; 300]),
        frame(1, 5, 1, &[0x88]),
        frame(1, 5, 1, &[]),
        frame(0, 1, 1, &[3; 40_000]),
        frame(3, 0, 1, &code(1)),
        frame(3, 0, 3, &code(0)),
        frame(3, 0, 5, &code(8)),
        frame(3, 0, 7, &code(7)),
        goaway(0),
        goaway(11),
    ]
    .concat();
    for piece in [1, 2, 3, 7, 9, 13, 4096, bytes.len()] {
        let refused = Arc::new(Refused::default());
        let mut outgoing = Outgoing::new(Arc::clone(&refused));
        assert!(bytes.chunks(piece).all(|piece| !outgoing.is_over(piece)));
        assert_eq!(refused.counted(), 3, "in pieces of {piece}");
        // Too long a head is the end of it, and is counted once.
        let last = [frame(1, 5, 9, &TOO_LONG), frame(3, 0, 9, &code(7))].concat();
        assert!(last.chunks(piece).map(|piece| outgoing.is_over(piece)).last().unwrap());
        assert_eq!(refused.counted(), 4, "in pieces of {piece}");
    }
}

/// The vault's next request.
async fn asked(vault: &mut UnixStream) -> Frame<Request> {
    let mut length = [0; 4];
    vault.read_exact(&mut length).await.unwrap();
    let mut body = vec![0; u32::from_le_bytes(length) as usize];
    vault.read_exact(&mut body).await.unwrap();
    decode_frame(&body).unwrap()
}

/// A head of a request in literal fields (RFC 7541, 6.2.2), none of which is indexed.
fn head(fields: &[(&str, &str)]) -> Vec<u8> {
    let text = |text: &str| [&[u8::try_from(text.len()).unwrap()][..], text.as_bytes()].concat();
    fields.iter().flat_map(|(name, value)| [vec![0], text(name), text(value)].concat()).collect()
}

/// A front on a socket in `folder`, and the vault's end of its stream, which has said who the node is.
async fn front(folder: &Path) -> (UnixStream, JoinHandle<()>) {
    let listener = UnixListener::bind(folder.join("cryptod.sock")).unwrap();
    let (near, mut vault) = UnixStream::pair().unwrap();
    let front = tokio::spawn(async {
        let _ = serve(listener, near, Callers::this_process().unwrap(), || {}).await;
    });
    let described = asked(&mut vault).await;
    assert!(matches!(described.body, Request::Describe));
    let (id, key, now) = (PrekeyId::from_bytes([0; 16]), vec![0; XWING_PUBLIC_BYTES], UnixMillis(0));
    let prekey = Prekey { id, key, not_before: now, not_after: now };
    let (node, earlier) = (NodeId::from_bytes([1; 32]), Vec::new());
    let body = Reply::Described { node, prekey, operations: 0, links: 0, half_open: 0, earlier };
    vault.write_all(&encode_frame(&Frame { id: described.id, body }).unwrap()).await.unwrap();
    (vault, front)
}

/// What a front reports when all these bytes came to it, each on a connection of its own.
async fn reported(connections: &[&[u8]]) -> Request {
    let folder = tempfile::tempdir().unwrap();
    let (mut vault, front) = front(folder.path()).await;
    let mut open = Vec::new();
    for bytes in connections {
        let mut caller = UnixStream::connect(folder.path().join("cryptod.sock")).await.unwrap();
        caller.write_all(bytes).await.unwrap();
        // It has been let in: the server says its settings, or hangs up.
        let _ = caller.read(&mut [0; HEAD]).await;
        open.push(caller);
    }
    let asked = tokio::time::timeout(PATIENCE, asked(&mut vault)).await;
    front.abort();
    asked.map(|frame| frame.body).unwrap_or(Request::Describe)
}

#[tokio::test]
async fn what_http_2_refuses_after_a_good_beginning_reaches_the_trail() {
    let path = "/openred.cryptod.v1.Cryptod/Describe";
    let call = [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "a")];
    let settings = [PREFACE, &frame(4, 0, 0, &[])].concat();
    let long = "x".repeat(120);
    let many: Vec<_> = call.into_iter().chain([("name", long.as_str()); 100]).collect();
    // More calls than there may be, none of which is ever sent whole.
    let streams = (0..1000).flat_map(|stream| frame(1, 4, 2 * stream + 1, &head(&call))).collect();
    for (name, bytes) in [
        ("a frame that is longer than any may be", frame(0, 0, 1, &[0; 20_000])),
        ("data on no stream", frame(0, 0, 0, b"data")),
        ("a head that cannot be read", frame(1, 4, 1, &[0xff; 40])),
        ("a request without a path", frame(1, 5, 1, &head(&call[..2]))),
        ("a head that is too long", frame(1, 5, 1, &head(&many))),
        ("a head on a stream of the server's", frame(1, 5, 2, &head(&call))),
        ("settings of another length", frame(4, 0, 0, &[0; 5])),
        ("more room than there is", [frame(8, 0, 0, &[0x7f, 0xff, 0xff, 0xff]), frame(8, 0, 0, &[0x7f; 4])].concat()),
        ("a promise", frame(5, 4, 1, &[0; 8])),
        ("more streams than there may be", streams),
    ] {
        let report = reported(&[&[&settings[..], &bytes].concat()]).await;
        assert!(matches!(report, Request::Report { event: EVENT, count: 1.. }), "{name}: {report:?}");
    }
    // The control: connections that say what they should, and a call that waits for its message, are none of it.
    let good = [&settings[..], &frame(4, 1, 0, &[]), &frame(1, 4, 1, &head(&call))].concat();
    let report = reported(&[&good, &settings, b"GET / HTTP/1.1\r\n\r\n"]).await;
    assert!(matches!(report, Request::Report { event: EVENT, count: 1 }), "{report:?}");
}

const EVENT: u16 = openred_proto::audit::Event::CallRefused.number();
