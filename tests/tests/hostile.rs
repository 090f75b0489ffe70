//! Garbage, oversized, truncated and slow input on every route and socket: refused alike, nothing dies, nobody is let in.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use openred_tests::harness::Node;
use openred_tests::world::{World, status};

/// Longer than any server here waits for a body.
const PATIENT: Duration = Duration::from_secs(60);

/// Sends raw bytes, ends the sending side when `end`, and reads what comes back.
fn exchange(address: SocketAddr, bytes: &[u8], end: bool) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENT)).unwrap();
    let _ = stream.write_all(bytes);
    if end {
        let _ = stream.shutdown(std::net::Shutdown::Write);
    }
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    answer
}

fn post(path: &str, body: &[u8]) -> Vec<u8> {
    let head =
        format!("POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}

fn status_line(answer: &[u8]) -> String {
    String::from_utf8_lossy(answer).lines().next().unwrap_or_default().to_owned()
}

/// The head and body of an answer without its date.
fn shape(answer: &[u8]) -> String {
    let text = String::from_utf8_lossy(answer).to_lowercase();
    text.lines().filter(|line| !line.starts_with("date:")).collect::<Vec<_>>().join("\n")
}

fn alive(node: &Node, front: u32, vault: u32, noded: u32) {
    assert_eq!(node.child_pid("front").unwrap(), front, "the front lives");
    assert_eq!(node.child_pid("vault").unwrap(), vault, "the vault lives");
    assert_eq!(node.child_pid("noded").unwrap(), noded, "noded lives");
}

#[test]
fn junk_on_the_peer_to_peer_port_is_refused_alike_and_never_reaches_the_vault() {
    let world = World::start().unwrap();
    let node = world.node("alice").unwrap();
    let pids = ["front", "vault", "noded"].map(|name| node.child_pid(name).unwrap());
    let operations = || status(&node).unwrap()["node"]["cryptod_operations"].as_u64().unwrap();
    let before = operations();
    let mut shapes = Vec::new();
    let mut request = vec![0x0a, 0x29, 0x08, 0x01, 0x22, 0x10];
    request.extend([7; 16]);
    request.extend([0x2a, 0x10]);
    request.extend([8; 16]);
    request.extend([0x3a, 0x01, 0x09]);
    for body in [&b""[..], b"garbage", &[0; 64], &[0xff; 3000], &request, &[0x12, 0x14, 0x0a, 0x10, 1, 2, 3]] {
        let answer = exchange(node.listen, &post("/p2p/handshake", body), false);
        assert!(status_line(&answer).contains("403"), "{:?}: {}", body.len(), status_line(&answer));
        shapes.push(shape(&answer));
    }
    shapes.dedup();
    assert_eq!(shapes.len(), 1, "every refusal looks the same: {shapes:#?}");
    for body in [&b""[..], b"garbage", &[0; 25], &[0; 70_000]] {
        let answer = exchange(node.listen, &post("/p2p/session", body), false);
        assert!(status_line(&answer).contains("403"), "{:?}: {}", body.len(), status_line(&answer));
    }
    let huge = exchange(node.listen, &post("/p2p/handshake", &vec![1; 200_000]), false);
    assert!(!status_line(&huge).contains(" 200"), "oversized");
    let cut = b"POST /p2p/handshake HTTP/1.1\r\nhost: x\r\ncontent-length: 500\r\n\r\nshort";
    assert!(!status_line(&exchange(node.listen, cut, true)).contains(" 200"), "truncated");
    assert!(!status_line(&exchange(node.listen, b"\x16\x03\x01 not http at all\r\n\r\n", true)).contains(" 200"));
    assert_eq!(operations(), before, "no junk reached the vault");
    alive(&node, pids[0], pids[1], pids[2]);
}

#[test]
fn slow_bodies_are_cut() {
    let world = World::start().unwrap();
    let node = world.node("alice").unwrap();
    for address in [node.listen, world.directory.listen] {
        let path = if address == node.listen { "/p2p/handshake" } else { "/api/v3/nodes/register" };
        let head = format!("POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 500\r\n\r\nx");
        let answer = exchange(address, head.as_bytes(), false);
        assert!(!status_line(&answer).contains(" 200"), "{path}: {}", status_line(&answer));
        // Not even a head: the connection is closed, not kept.
        exchange(address, b"POST /p2p/ha", false);
    }
    assert_eq!(node.cli(&["status"]).unwrap().code, 0);
}

#[test]
fn the_directory_answers_junk_with_problem_documents() {
    let world = World::start().unwrap();
    let posts = ["/api/v3/nodes/register", "/api/v3/tokens/request-connection", "/api/v3/tokens/acknowledge"];
    for path in posts {
        for body in [&b""[..], b"garbage", b"{}", b"{\"card\": 5}", &[0xff; 2000]] {
            let answer = exchange(world.directory.listen, &post(path, body), false);
            let text = String::from_utf8_lossy(&answer).to_lowercase();
            assert!(status_line(&answer).contains(" 4"), "{path}: {text}");
            assert!(text.contains("application/problem+json"), "{path}: {text}");
        }
        let huge = exchange(world.directory.listen, &post(path, &vec![b'x'; 1 << 20]), false);
        assert!(!status_line(&huge).contains(" 200"), "{path} oversized");
    }
    for path in ["/api/v3/nodes/nonsense", "/api/v3/nodes/discover?cursor=%00", "/api/v3/tokens/receive", "/nowhere"] {
        let get = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        let answer = exchange(world.directory.listen, get.as_bytes(), false);
        assert!(status_line(&answer).contains(" 4"), "{path}: {}", status_line(&answer));
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
