//! The directories' names: a name server that keeps `noded` waiting meets a process that has given up everything but its final
//! filter, and what it answers then is used.
//!
//! The name server is this test's own, in a network namespace where it has port 53 of the loopback, and in a mount namespace where
//! `/etc/resolv.conf` names it. That takes root: an ordinary user would have both inside a user namespace only, and there the cage refuses
//! to start (see `tests/disk.rs`). What root's form shows is worth the most to root, whose node has the farther way down; that names are
//! found inside the cage is tried in both forms, by `/etc/hosts`.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use openred_tests::harness::{Daemon, Node, binaries, is_root, passphrase, wait_for};

/// A base of uids that no other test of this suite uses.
const UID_BASE: u32 = 62_700;
/// Tells a child of this test, which is this test program again, that it is in its namespaces.
const CHILD: &str = "OPENRED_TEST_NAME_SERVER";
/// Longest question that is read.
const DATAGRAM: usize = 512;
/// Bytes before a datagram's question.
const HEAD: usize = 12;
/// How long a look for a question lasts, before it is seen whether the connection is there.
const LOOK: Duration = Duration::from_millis(25);

/// Runs a test of this program again in namespaces of its own.
fn in_namespaces(test: &str) {
    let output = Command::new("unshare")
        .args(["--mount", "--net"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads", "1"])
        .env(CHILD, "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("1 passed"), "{said}");
}

/// A node whose directory has this name and the port of a listener that is there.
fn node(folder: &Path, step: u32, name: &str) -> (Node, TcpListener) {
    let there = TcpListener::bind("127.0.0.1:0").unwrap();
    there.set_nonblocking(true).unwrap();
    let port = there.local_addr().unwrap().port();
    let address = format!("did:key:z6MkiTBz1ymuepAQ4HEHYSF1H8quG5GLVVQR3djdX3mDooWp@https://{name}:{port}");
    (Node::init(folder, "node", &address, UID_BASE + 10 * step, "").unwrap(), there)
}

/// Makes this the machine's name server, here.
fn name_server(folder: &Path) -> UdpSocket {
    let up = Command::new("ip").args(["link", "set", "lo", "up"]).status();
    assert!(up.expect("`ip` is installed by scripts/prepare").success());
    let file = folder.join("resolv.conf");
    fs::write(&file, "nameserver 127.0.0.1\n").unwrap();
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
    mount(Some(&file), "/etc/resolv.conf", none, MsFlags::MS_BIND, none).unwrap();
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 53)).unwrap();
    socket.set_read_timeout(Some(LOOK)).unwrap();
    socket
}

/// A question, and who asks.
fn asked(server: &UdpSocket) -> Option<(Vec<u8>, SocketAddr)> {
    let mut bytes = [0; DATAGRAM];
    let (length, from) = server.recv_from(&mut bytes).ok()?;
    Some((bytes[..length].to_vec(), from))
}

/// Says that the name's one address is the loopback's.
fn answer(server: &UdpSocket, (question, from): &(Vec<u8>, SocketAddr)) {
    // The name ends with an empty label; its type and class, two bytes each, come behind it.
    let name = question[HEAD..].iter().position(|byte| *byte == 0).unwrap();
    let end = HEAD + name + 5;
    let is_address = question[end - 4..end] == [0, 1, 0, 1];
    let mut said = question[..2].to_vec();
    said.extend([0x81, 0x80, 0, 1, 0, u8::from(is_address), 0, 0, 0, 0]);
    said.extend(&question[HEAD..end]);
    if is_address {
        // The name of the question, an address, for a minute.
        said.extend([0xc0, HEAD as u8, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 127, 0, 0, 1]);
    }
    server.send_to(&said, from).unwrap();
}

/// `/proc/<pid>/status` of the supervisor's child of this program name.
fn status_of_child(supervisor: u32, name: &str) -> Option<String> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let mut statuses = entries.filter_map(|entry| fs::read_to_string(entry.path().join("status")).ok());
    statuses.find(|status| field(status, "Name") == name && field(status, "PPid") == supervisor.to_string())
}

fn field<'a>(status: &'a str, name: &str) -> &'a str {
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap_or_default().trim()
}

#[test]
fn iso_names_are_asked_for_inside_the_cage() {
    const TEST: &str = "iso_names_are_asked_for_inside_the_cage";
    if !is_root() {
        // See the head of this file.
        return;
    }
    if std::env::var_os(CHILD).is_none() {
        return in_namespaces(TEST);
    }
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().canonicalize().unwrap();
    let server = name_server(&place);
    let (node, there) = node(&place, 0, "directory.openred.test");
    let (home, secret) = (node.home.display().to_string(), passphrase(&node));
    let up = ["--home", &home, "up", "--passphrase-file", &secret];
    let mut daemon = Daemon::start(&binaries().unwrap().join("openred"), &up, &place.join("up.log")).unwrap();

    let question = wait_for("a question", || {
        if let Some(code) = daemon.ended()? {
            panic!("it ended with {code}: {}", daemon.output());
        }
        Ok(asked(&server))
    })
    .unwrap();
    assert!(question.0.windows(9).any(|name| name == b"directory"), "{question:?}");
    // While its answer is held back.
    let status = status_of_child(daemon.pid(), "noded").expect("noded waits");
    let uids: Vec<&str> = field(&status, "Uid").split_whitespace().collect();
    assert_eq!(uids, vec![(UID_BASE + 2).to_string(); 4], "{status}");
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(field(&status, set), "0000000000000000", "{set} in {status}");
    }
    assert_eq!((field(&status, "NoNewPrivs"), field(&status, "Threads")), ("1", "1"), "{status}");
    // The control: the answer gets in there, and the connection goes where it says.
    answer(&server, &question);
    wait_for("a connection to the address", || {
        if let Some(question) = asked(&server) {
            answer(&server, &question);
        }
        Ok(there.accept().ok())
    })
    .unwrap();
    daemon.stop().unwrap();
}

/// Without a name server: what the resolver reads lies in the cage, in both forms.
#[test]
fn a_name_of_the_hosts_file_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let (mut node, there) = node(&folder.path().canonicalize().unwrap(), 1, "localhost");
    node.up_without_answers().unwrap();
    wait_for("a connection to the address", || Ok(there.accept().ok())).unwrap();
    node.down().unwrap();
}
