//! What `noded` saw of others, in the audit trail: a forged record on a session, a peer over its rate. And a peer's own records,
//! found by its node id through the living vault.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use openred_tests::harness::{Node, wait_for};
use openred_tests::tap::Tap;
use openred_tests::world::{World, link, registered};
use serde_json::Value;

/// Bytes of a request's header: tag, kind, number.
const HEADER: usize = 16 + 1 + 8;
/// More refused requests than are forgiven at once.
const FLOOD: usize = 2000;
/// So many of them cut off are enough.
const CUT: usize = 20;
/// A node of nobody.
const STRANGER: &str = "did:key:z6MkiTBz1ymuepAQ4HEHYSF1H8quG5GLVVQR3djdX3mDooWp";

/// The header of the last request over a session that went to `tap`.
fn last_header(tap: &Tap) -> [u8; HEADER] {
    let bytes = tap.received().unwrap();
    let find = |from: &[u8], what: &[u8]| from.windows(what.len()).rposition(|window| window == what);
    let request = &bytes[find(&bytes, b"POST /p2p/session").unwrap()..];
    let end = request.windows(4).position(|window| window == b"\r\n\r\n").unwrap();
    let chunked = String::from_utf8_lossy(&request[..end]).to_lowercase().contains("chunked");
    let mut body = &request[end + 4..];
    if chunked {
        body = &body[body.windows(2).position(|window| window == b"\r\n").unwrap() + 2..];
    }
    *body.first_chunk().unwrap()
}

/// Sends one request under `header` with bytes that were never sealed; the status, if there was an answer.
fn forge(address: SocketAddr, header: &[u8]) -> Option<u16> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let length = header.len() + 64;
    let head =
        format!("POST /p2p/session HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n");
    stream.write_all(&[head.as_bytes(), header, &[7; 64]].concat()).ok()?;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()
}

fn tail(node: &Node, more: &[&str]) -> Vec<Value> {
    let answer = node.cli(&[&["audit", "tail", "-n", "10000"], more].concat()).unwrap().ok().unwrap();
    answer.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// How many of an event the trail says there were.
fn count(node: &Node, event: &str) -> u64 {
    tail(node, &[]).iter().filter(|record| record["event"] == event).filter_map(|record| record["count"].as_u64()).sum()
}

#[test]
fn what_noded_saw_of_others_is_recorded_and_a_peers_records_are_found() {
    let world = World::start().unwrap();
    let alice = world.node("alice").unwrap();
    let mut bob = world.init("bob", "[links]\nincoming = \"open\"\n").unwrap();
    let tap = bob.tapped().unwrap();
    bob.up().unwrap();
    registered(&bob).unwrap();
    link(&alice, &bob).unwrap();
    alice.cli(&["peers", "ping", &bob.id, "--count", "1"]).unwrap().ok().unwrap();

    // A tag that no session has is nobody's record; one that was seen on the way, with bytes of one's own, is a forgery.
    let mut header = last_header(&tap);
    let number = u64::from_be_bytes(header[HEADER - 8..].try_into().unwrap()) + 1;
    header[HEADER - 8..].copy_from_slice(&number.to_be_bytes());
    let mut unknown = header;
    unknown[0] ^= 1;
    assert_eq!((forge(bob.listen, &unknown), count(&bob, "node.session_forged")), (Some(403), 0));
    for _ in 0..3 {
        assert_eq!(forge(bob.listen, &header), Some(403));
    }
    wait_for("the forged records", || Ok((count(&bob, "node.session_forged") == 3).then_some(()))).unwrap();
    alice.cli(&["peers", "ping", &bob.id, "--count", "1"]).unwrap().ok().unwrap();

    // What goes over the rate: one report a second, however much it is.
    assert_eq!(count(&bob, "node.flooded"), 0);
    let cut = (0..FLOOD).filter(|_| forge(bob.listen, &unknown).is_none()).take(CUT).count();
    assert_eq!(cut, CUT);
    wait_for("the flood", || Ok((count(&bob, "node.flooded") >= CUT as u64).then_some(()))).unwrap();
    assert_eq!(count(&bob, "node.session_forged"), 3);

    let of_alice = tail(&bob, &["--peer", &alice.id]);
    let events: Vec<&str> = of_alice.iter().filter_map(|record| record["event"].as_str()).collect();
    assert!(
        events.contains(&"link.accepted") && events.iter().any(|event| event.starts_with("handshake.")),
        "{events:?}"
    );
    assert!(of_alice.iter().all(|record| record["subject"].is_string() && record["subject"] == of_alice[0]["subject"]));
    assert!(of_alice.len() < tail(&bob, &[]).len());
    assert_eq!(tail(&bob, &["--peer", STRANGER]), [] as [Value; 0]);
    assert_eq!(bob.cli(&["audit", "tail", "--peer", "alice"]).unwrap().code, 2);
    bob.cli(&["key", "lock"]).unwrap().ok().unwrap();
    assert_eq!(bob.cli(&["audit", "tail", "--peer", &alice.id]).unwrap().code, 8, "the name is the vault's to say");
    bob.down().unwrap();
    let down = bob.cli(&["audit", "tail", "--peer", &alice.id]).unwrap();
    assert!(down.code == 1 && down.stderr.contains("node.down"), "{down:?}");
}
