//! What an installed module may reach beyond its node: destinations of its grant through the node, files of its grant in its cage, and nothing else.
//! What was not granted, or leads elsewhere than it seems, is refused by name; what is open ends with the module.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc::{Receiver, sync_channel};

use openred_tests::desk::{Desk, VERSION, answers, module, probe_manifest};
use openred_tests::harness::{Answer, Node, wait_for};
use openred_tests::world::{World, status};

/// A server that says back what it hears, until that ends; each connection is also handed to the test.
fn echo() -> (u16, Receiver<TcpStream>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (connected, connections) = sync_channel(64);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _ = connected.try_send(stream.try_clone().unwrap());
            std::thread::spawn(move || {
                let mut piece = vec![0; 1 << 16];
                while let Ok(count @ 1..) = stream.read(&mut piece) {
                    if stream.write_all(&piece[..count]).is_err() {
                        return;
                    }
                }
                let _ = stream.shutdown(std::net::Shutdown::Both);
            });
        }
    });
    (port, connections)
}

fn dial(node: &Node, to: &str, wanted: &str) {
    answers(node, &["POST", "/try/dial", "--data", &format!("{to}\nhello")], wanted).unwrap();
}

/// A call that goes on for as long as the connection that it has opened.
fn hold(node: &Node, to: &str) -> std::thread::JoinHandle<Answer> {
    let (home, to) = (node.home.display().to_string(), to.to_owned());
    std::thread::spawn(move || {
        let openred = openred_tests::harness::binaries().unwrap().join("openred");
        let call = ["--json", "--home", &home, "module", "call", "probe", "POST", "/try/dial", "--data", &to];
        openred_tests::harness::run(&openred, &call).unwrap()
    })
}

#[test]
fn a_module_reaches_what_it_was_granted_through_its_node_and_nothing_else() {
    let world = World::without_directory().unwrap();
    let node = world.alone("alice", "").unwrap();
    let desk = Desk::new(&world.path().join("desk")).unwrap();
    let (port, connections) = echo();
    let (address, name) = (format!("127.0.0.1:{port}"), format!("localhost:{port}"));
    let egress = format!("net.egress = {{ to = [\"{address}\", \"{name}\"], reason = \"echoes\" }}\n");
    let noded = node.child_pid("noded").unwrap();
    desk.install_probe(&node, &probe_manifest(VERSION, &egress, "")).unwrap();
    // An address is granted as such; its bytes go through the node.
    dial(&node, &address, "\"heard\":\"hello\"");
    // A name is looked up when `noded` starts, so it was started anew; where it leads is not for modules.
    wait_for("the next noded", || Ok((node.child_pid("noded")? != noded).then_some(()))).unwrap();
    dial(&node, &name, "egress-private");
    // What is not on the list, or is written another way.
    for other in ["127.0.0.1:1", "other.example:443", &format!("127.1:{port}"), &format!("LOCALHOST:{port}"), "x"] {
        dial(&node, other, "not-granted");
    }
    // More than any buffer on the way has room for.
    let much = format!("{address}\n{}", "x".repeat(100_000));
    answers(&node, &["POST", "/try/dial", "--data", &much], "\"bytes\":100000").unwrap();
    wait_for("the count", || {
        let audit = module(&node, &["audit", "probe"])?;
        let line = &audit["modules"][0]["permissions"][0];
        Ok((line["name"] == "net.egress" && line["used"].as_u64() >= Some(3)).then_some(()))
    })
    .unwrap();
    // What is open ends with the module.
    while connections.try_recv().is_ok() {}
    let holding = hold(&node, &address);
    let mut held = connections.recv_timeout(openred_tests::harness::PATIENCE).unwrap();
    held.set_read_timeout(Some(openred_tests::harness::PATIENCE)).unwrap();
    module(&node, &["approve", "probe", "--only", &format!("net.egress={name}")]).unwrap();
    let mut rest = Vec::new();
    // It ends, in whatever way; the echo thread may be the one to hear of it.
    let _ = held.read_to_end(&mut rest);
    holding.join().unwrap();
    // What is not granted any more is refused.
    dial(&node, &address, "not-granted");
    dial(&node, &name, "egress-private");
}

#[test]
fn one_that_takes_its_time_to_end_holds_no_other_up() {
    let world = World::without_directory().unwrap();
    let node = world.alone("alice", "").unwrap();
    let desk = Desk::new(&world.path().join("desk")).unwrap();
    let (port, connections) = echo();
    let address = format!("127.0.0.1:{port}");
    let egress = format!("net.egress = {{ to = [\"{address}\"], reason = \"echoes\" }}\n");
    let manifest = probe_manifest(VERSION, &egress, "[limits]\nstop_seconds = 60\n");
    desk.install_probe(&node, &manifest).unwrap();
    dial(&node, &address, "\"heard\":\"hello\"");
    while connections.try_recv().is_ok() {}
    let holding = hold(&node, &address);
    let held = connections.recv_timeout(openred_tests::harness::PATIENCE).unwrap();
    module(&node, &["disable", "probe"]).unwrap();
    // Beside it another comes, whose program says that it is somebody else: that it is there is enough.
    let other = manifest.replace("id = \"probe\"", "id = \"other\"");
    let other = desk.pack(&other, &desk.probe(VERSION).unwrap(), "").unwrap();
    let other = openred_tests::desk::text(&other);
    module(&node, &["install", &other, "--publisher", &desk.publisher, "--approve"]).unwrap();
    wait_for("the other module", || Ok(status(&node)?["node"]["modules"].to_string().contains("other").then_some(())))
        .unwrap();
    assert!(!holding.is_finished(), "the first has a call still");
    module(&node, &["enable", "probe"]).unwrap();
    held.shutdown(std::net::Shutdown::Both).unwrap();
    holding.join().unwrap();
    // Gone, it comes back.
    dial(&node, &address, "\"heard\":\"hello\"");
}

#[test]
fn a_module_reads_what_it_was_granted_and_nothing_else() {
    let world = World::without_directory().unwrap();
    let node = world.alone("alice", "").unwrap();
    let desk = Desk::new(&world.path().join("desk")).unwrap();
    let shared = world.path().canonicalize().unwrap().join("shared");
    fs::create_dir(&shared).unwrap();
    fs::set_permissions(&shared, fs::Permissions::from_mode(0o755)).unwrap();
    for (name, mode) in [("one", 0o644), ("two", 0o644), ("beside", 0o644)] {
        fs::write(shared.join(name), name).unwrap();
        fs::set_permissions(shared.join(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    let inner = shared.join("inner");
    fs::create_dir(&inner).unwrap();
    fs::set_permissions(&inner, fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(inner.join("three"), "three").unwrap();
    fs::set_permissions(inner.join("three"), fs::Permissions::from_mode(0o644)).unwrap();
    let place = |name: &str| shared.join(name).display().to_string();
    let asks = |paths: &[String]| {
        let paths: Vec<String> = paths.iter().map(|path| format!("\"{path}\"")).collect();
        format!("fs.read = {{ paths = [{}], reason = \"lists\" }}\n", paths.join(", "))
    };
    let read = |name: &str, wanted: &str| {
        answers(&node, &["POST", "/try/read", "--data", &place(name)], wanted).unwrap();
    };
    let paths = [place("one"), place("two"), place("inner"), place("inner/three")];
    desk.install_probe(&node, &probe_manifest(VERSION, &asks(&paths), "")).unwrap();
    read("one", "\"read\":\"one\"");
    read("inner/three", "\"read\":\"three\"");
    read("beside", "not-granted");
    answers(&node, &["POST", "/try/read", "--data", "/etc/passwd"], "fs.read of /etc/passwd: not granted").unwrap();
    // A file that is read is not written.
    module(&node, &["approve", "probe", "--only", &format!("fs.read={}", place("two"))]).unwrap();
    read("one", "not-granted");
    read("two", "\"read\":\"two\"");
    // What a module cannot be shown, or must not be, keeps it down, by name.
    let link = shared.join("link");
    std::os::unix::fs::symlink(shared.join("one"), &link).unwrap();
    let _socket = UnixListener::bind(shared.join("socket")).unwrap();
    let home = node.home.canonicalize().unwrap().display().to_string();
    for (version, path, why) in [
        ("1.0.1+openred.probe", place("link"), "a symbolic link is on the way"),
        ("1.0.2+openred.probe", home, "this node's own files"),
        ("1.0.3+openred.probe", place("nothing"), "No such file"),
        ("1.0.4+openred.probe", place("socket"), "neither a file nor a folder"),
    ] {
        let manifest = probe_manifest(version, &asks(&[path]), "");
        let package = desk.pack(&manifest, &desk.probe(version).unwrap(), "").unwrap();
        module(&node, &["install", &openred_tests::desk::text(&package), "--approve"]).unwrap();
        wait_for(why, || {
            let named = status(&node)?["supervisor"]["conditions"].to_string();
            Ok((named.contains("module.probe.refused") && named.contains(why)).then_some(()))
        })
        .unwrap();
    }
    assert_eq!(node.cli(&["inbox"]).unwrap().code, 0, "the rest goes on");
}

#[test]
fn iso_a_module_connects_to_no_socket_that_it_may_read() {
    let world = World::without_directory().unwrap();
    let node = world.alone("alice", "").unwrap();
    let desk = Desk::new(&world.path().join("desk")).unwrap();
    let shared = world.path().canonicalize().unwrap().join("shared");
    fs::create_dir(&shared).unwrap();
    fs::set_permissions(&shared, fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(shared.join("file"), "text").unwrap();
    fs::set_permissions(shared.join("file"), fs::Permissions::from_mode(0o644)).unwrap();
    let socket = shared.join("agent");
    let agent = UnixListener::bind(&socket).unwrap();
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o666)).unwrap();
    // The control: whoever is not in a cage connects.
    drop((UnixStream::connect(&socket).unwrap(), agent.accept().unwrap()));
    let asks = format!("fs.read = {{ paths = [\"{}\"], reason = \"lists\" }}\n", shared.display());
    desk.install_probe(&node, &probe_manifest(VERSION, &asks, "")).unwrap();
    let file = shared.join("file").display().to_string();
    answers(&node, &["POST", "/try/read", "--data", &file], "\"read\":\"text\"").unwrap();
    let path = socket.display().to_string();
    let said = node.cli(&["module", "call", "probe", "POST", "/try/connect", "--data", &path]).unwrap();
    assert!(said.code != 0 && !said.stdout.contains("connected"), "{}{}", said.stdout, said.stderr);
    agent.set_nonblocking(true).unwrap();
    assert_eq!(agent.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    wait_for("what became of it", || {
        let conditions = status(&node)?["node"]["conditions"].to_string();
        Ok((conditions.contains("module.quarantined") && conditions.contains("SIGSYS")).then_some(()))
    })
    .unwrap();
}
