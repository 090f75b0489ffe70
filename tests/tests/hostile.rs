//! Garbage, oversized, truncated and slow input on every route and socket: refused alike, nothing dies, nobody is let in.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use openred_proto::checked::handshake::{HandshakeFinalize, HandshakeRequest};
use openred_proto::checked::session::StreamKind;
use openred_proto::id::HandshakeId;
use openred_proto::limits::{HANDSHAKE_BYTES, NOISE_BYTES};
use openred_tests::caller::Caller;
use openred_tests::flood::flood;
use openred_tests::harness::{Node, wait_for};
use openred_tests::world::{World, link, registered, status};

/// Longer than any server here waits for a head (a minute) or a body: who waits this long in vain has found one that never
/// hangs up.
const PATIENT: Duration = Duration::from_secs(150);

/// What came back before the server hung up.
struct Reply {
    bytes: Vec<u8>,
}

impl Reply {
    /// The status code; none when there was no answer at all.
    fn code(&self) -> Option<u16> {
        let text = String::from_utf8_lossy(&self.bytes);
        text.lines().next()?.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()
    }

    /// The status code and the code of the problem document.
    fn problem(&self) -> (Option<u16>, String) {
        let text = String::from_utf8_lossy(&self.bytes);
        let body = text.split_once("\r\n\r\n").map(|(_, body)| body).unwrap_or_default();
        assert!(text.to_lowercase().contains("application/problem+json"), "{text}");
        let document: serde_json::Value = serde_json::from_str(body).unwrap();
        (self.code(), document["code"].as_str().unwrap().to_owned())
    }

    /// The head and body without the date.
    fn shape(&self) -> String {
        let text = String::from_utf8_lossy(&self.bytes).to_lowercase();
        text.lines().filter(|line| !line.starts_with("date:")).collect::<Vec<_>>().join("\n")
    }
}

/// Sends raw bytes, ends the sending side when `end`, and reads until the server has hung up.
fn exchange(address: SocketAddr, bytes: &[u8], end: bool) -> Reply {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENT)).unwrap();
    // A server that has heard enough may hang up before all is sent.
    let _ = stream.write_all(bytes);
    if end {
        let _ = stream.shutdown(std::net::Shutdown::Write);
    }
    let (mut answer, mut piece) = (Vec::new(), [0; 4096]);
    loop {
        match stream.read(&mut piece) {
            Ok(0) => break,
            Ok(count) => answer.extend_from_slice(&piece[..count]),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => break,
            Err(error) => panic!("the server did not hang up ({error}) after {}", String::from_utf8_lossy(&answer)),
        }
    }
    Reply { bytes: answer }
}

fn head(path: &str, length: usize) -> Vec<u8> {
    format!("POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n").into_bytes()
}

fn post(path: &str, body: &[u8]) -> Vec<u8> {
    [&head(path, body.len()), body].concat()
}

/// Operations that the vault served, as `status` says it once nothing has come in for a while: the node asks its vault every five seconds.
fn operations(node: &Node) -> u64 {
    let read = || status(node).unwrap()["node"]["cryptod_operations"].as_u64().unwrap();
    let mut last = read();
    loop {
        std::thread::sleep(Duration::from_secs(6));
        match read() {
            same if same == last => return same,
            other => last = other,
        }
    }
}

fn alive(node: &Node, front: u32, vault: u32, noded: u32) {
    assert_eq!(node.child_pid("front").unwrap(), front, "the front lives");
    assert_eq!(node.child_pid("vault").unwrap(), vault, "the vault lives");
    assert_eq!(node.child_pid("noded").unwrap(), noded, "noded lives");
}

/// A node whose log has the reason of each refusal.
fn talkative(world: &World) -> Node {
    let mut node = world.init("alice", "[links]\nincoming = \"open\"\n[log]\nlevel = \"debug\"\n").unwrap();
    node.up().unwrap();
    registered(&node).unwrap();
    node
}

/// Bodies of the right shape, each with the reason that the log gives for its refusal.
fn well_formed() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let request =
        |noise: usize| HandshakeRequest { tag: [7; 16], mac1: [8; 16], cookie: None, noise: vec![9; noise] }.encode();
    let finalize = HandshakeFinalize { handshake: HandshakeId::from_bytes([5; 16]), noise: vec![9; 100] }.encode();
    let session = [&[6; 16][..], &[StreamKind::Request as u8], &1_u64.to_be_bytes(), &[0xaa; 400]].concat();
    vec![
        ("/p2p/handshake", request(1200), "no link expects this tag"),
        ("/p2p/handshake", request(NOISE_BYTES), "no link expects this tag"),
        ("/p2p/handshake", finalize, "no such half-open handshake"),
        ("/p2p/session", session, "no session has this tag"),
    ]
}

#[test]
fn junk_on_the_peer_to_peer_port_is_refused_alike_and_never_reaches_the_vault() {
    let world = World::start().unwrap();
    let node = talkative(&world);
    let pids = ["front", "vault", "noded"].map(|name| node.child_pid(name).unwrap());
    let before = operations(&node);
    let log = || fs::read_to_string(node.home.with_extension("log")).unwrap();
    let mut shapes = Vec::new();
    let mut refused = |what: &str, bytes: &[u8]| {
        let reply = exchange(node.listen, bytes, false);
        assert_eq!(reply.code(), Some(403), "{what}: {}", reply.shape());
        shapes.push(reply.shape());
    };
    let bodies = well_formed();
    bodies.iter().for_each(|(path, body, reason)| refused(reason, &post(path, body)));
    for (.., reason) in &bodies {
        // Each was read and judged, and refused for its own reason; the supervisor writes the log in its own time.
        let sent = bodies.iter().filter(|(.., other)| other == reason).count();
        wait_for(reason, || Ok((log().matches(reason).count() == sent).then_some(()))).unwrap();
    }
    for (path, body, _) in &bodies {
        for at in [0, body.len() / 2, body.len() - 1] {
            // Cut at any place, or with one bit changed, it is no better.
            refused("cut short", &post(path, &body[..at]));
            let mut flipped = body.clone();
            flipped[at] ^= 0x80;
            refused("flipped", &post(path, &flipped));
        }
    }
    for body in [&b""[..], b"garbage", &[0; 64], &[0xff; 3000], &[0x12, 0x14, 0x0a, 0x10, 1, 2, 3]] {
        refused("garbage to a handshake", &post("/p2p/handshake", body));
    }
    for body in [&b""[..], b"garbage", &[0; 25], &[0; 70_000]] {
        refused("garbage to a session", &post("/p2p/session", body));
    }
    // One byte too many is enough to be refused; the rest is not waited for.
    refused("oversized", &[&head("/p2p/handshake", 1 << 30), &vec![1; HANDSHAKE_BYTES + 1][..]].concat());
    shapes.dedup();
    assert_eq!(shapes.len(), 1, "every refusal looks the same: {shapes:#?}");
    let cut = [&head("/p2p/handshake", 500), &b"short"[..]].concat();
    assert_eq!(exchange(node.listen, &cut, true).code(), Some(403), "truncated");
    assert_eq!(exchange(node.listen, b"\x16\x03\x01 not http at all\r\n\r\n", true).code(), Some(400));
    for path in ["/", "/p2p", "/p2p/handshake/", "/p2p/sessions"] {
        assert_eq!(exchange(node.listen, &post(path, b"x"), false).code(), Some(404), "{path}");
    }
    assert_eq!(operations(&node), before, "no junk reached the vault");
    alive(&node, pids[0], pids[1], pids[2]);
}

#[test]
fn slow_heads_and_bodies_are_cut() {
    let world = World::start().unwrap();
    let node = world.node("alice").unwrap();
    let (peers, directory) = (node.listen, world.directory.listen);
    let caller = Caller::new(&world.origin());
    // All at once: the longest of them takes a minute.
    std::thread::scope(|scope| {
        for path in ["/p2p/handshake", "/p2p/session"] {
            scope.spawn(move || {
                let reply = exchange(peers, &[&head(path, 500), &b"x"[..]].concat(), false);
                assert_eq!(reply.code(), Some(403), "{path}: {}", reply.shape());
            });
        }
        for path in POSTS {
            // Unsigned it would be refused before anybody looked for a body.
            let slow = [&caller.head(path, b"", 500), &b"{"[..]].concat();
            scope.spawn(move || {
                let answer = exchange(directory, &slow, false).problem();
                assert_eq!(answer, (Some(408), "body.slow".to_owned()), "{path}");
            });
        }
        for address in [peers, directory] {
            for start in [&b""[..], b"POST /p2p/ha", b"POST / HTTP/1.1\r\nhost: x\r\nconte"] {
                // Not even a whole head: no answer is owed, but the connection is not kept. `exchange` demands its end.
                scope.spawn(move || assert_ne!(exchange(address, start, false).code(), Some(200)));
            }
        }
    });
    assert_eq!(node.cli(&["status"]).unwrap().code, 0);
}

/// The directory's calls that take a body.
const POSTS: [&str; 3] = ["/api/v3/nodes/register", "/api/v3/tokens/request-connection", "/api/v3/tokens/acknowledge"];

#[test]
fn the_directory_answers_junk_with_problem_documents() {
    let world = World::start().unwrap();
    let directory = world.directory.listen;
    let caller = Caller::new(&world.origin());
    let welcome = exchange(directory, &caller.register(), false);
    assert_eq!(welcome.code(), Some(200), "an honest call of the same caller: {}", welcome.shape());
    for path in POSTS {
        for body in [&b""[..], b"garbage", b"{}", b"{\"card\": 5, \"offer\": 5, \"receipt\": 5}", &[0xff; 2000]] {
            // Signed, so that the body itself is read and judged.
            let answer = exchange(directory, &caller.post(path, body), false).problem();
            assert_eq!(answer, (Some(400), "body.malformed".to_owned()), "{path}");
            let answer = exchange(directory, &post(path, body), false).problem();
            assert_eq!(answer, (Some(401), "signature.missing".to_owned()), "{path} unsigned");
            let other = [&caller.head(path, b"another body", body.len()), body].concat();
            let answer = exchange(directory, &other, false).problem();
            assert_eq!(answer, (Some(401), "signature.digest".to_owned()), "{path} with another body's signature");
        }
        let cut = [&caller.head(path, b"", 500), &b"{"[..]].concat();
        let answer = exchange(directory, &cut, true).problem();
        assert_eq!(answer, (Some(400), "body.incomplete".to_owned()), "{path} truncated");
        let huge = [&caller.head(path, b"", 1 << 30), &b"{"[..]].concat();
        assert_eq!(exchange(directory, &huge, false).problem(), (Some(413), "body.too-large".to_owned()), "{path}");
    }
    for (path, code) in [
        ("/api/v3/nodes/nonsense", 400),
        ("/api/v3/nodes/discover?cursor=%00", 400),
        ("/api/v3/tokens/receive", 401),
        ("/nowhere", 404),
    ] {
        let get = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        let answer = exchange(directory, get.as_bytes(), false).problem();
        assert_eq!(answer.0, Some(code), "{path}: {answer:?}");
    }
    assert_eq!(world.directory.cli(&["nodes", "list"]).unwrap().code, 0);
}

#[test]
fn junk_on_the_local_sockets_kills_nobody() {
    let world = World::start().unwrap();
    let node = world.node("alice").unwrap();
    let pids = ["front", "vault", "noded"].map(|name| node.child_pid(name).unwrap());
    let mut sockets = Vec::new();
    find_sockets(&node.home, &mut sockets);
    assert!(sockets.len() >= 3, "control, admin and cryptod sockets: {sockets:?}");
    for socket in &sockets {
        for bytes in
            [&b""[..], b"garbage\n", &[0; 4096], &[0xff; 100_000], b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff"]
        {
            // Who may connect at all depends on the socket; a refused connection is an answer too.
            if let Ok(mut stream) = UnixStream::connect(socket) {
                let _ = stream.write_all(bytes);
            }
        }
    }
    alive(&node, pids[0], pids[1], pids[2]);
    assert_eq!(node.cli(&["status"]).unwrap().code, 0);
}

fn find_sockets(folder: &std::path::Path, sockets: &mut Vec<std::path::PathBuf>) {
    use std::os::unix::fs::FileTypeExt;
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            find_sockets(&entry.path(), sockets);
        } else if kind.is_socket() {
            sockets.push(entry.path());
        }
    }
}

/// PROTOCOL 8.
#[test]
fn a_hundred_thousand_bad_requests_cost_no_key_operation_while_an_honest_peer_makes_fifty_handshakes() {
    const BAD: usize = 100_000;
    let world = World::start().unwrap();
    let alice = world.node("alice").unwrap();
    let mut bob = world.init("bob", "[links]\nincoming = \"open\"\n").unwrap();
    let tap = bob.tapped().unwrap();
    bob.up().unwrap();
    registered(&bob).unwrap();
    link(&alice, &bob).unwrap();
    let honest = |count: &str| {
        let answer = alice.cli(&["peers", "ping", &bob.id, "--fresh", "--count", count]).unwrap().json().unwrap();
        assert_eq!((answer["sent"].to_string().as_str(), &answer["failed"]), (count, &0.into()), "{answer}");
    };
    // The first session has compared the tokens and the lists of links.
    honest("2");
    let before = operations(&bob);
    let answers = std::thread::scope(|scope| {
        let flooding = scope.spawn(|| flood(bob.listen, BAD, &tap).unwrap());
        honest("50");
        assert!(!flooding.is_finished(), "the fifty were made during the flood");
        flooding.join().unwrap()
    });
    assert_eq!(operations(&bob) - before, 2 * 50, "REQUEST and FINALIZE of the fifty, and nothing of the flood");
    assert_eq!(answers.refused + answers.repeated, BAD);
    assert!(
        answers.repeated > 0 && answers.repeated <= BAD / 3,
        "only replays are answered, and from memory: {answers:?}"
    );
}
