//! `openred up` with the real processes: what ends is named and restarted, what breaks its filter is not, and start-up refuses
//! what it must by name and exit code.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use openred_tests::harness::{Answer, Node, PATIENCE, binaries, is_root, run, signal_pid, wait_for};
use serde_json::Value;

/// A base of uids that no other test of this suite uses.
const UID_BASE: u32 = 61_400;

fn node(folder: &Path, step: u32) -> Result<Node> {
    let nowhere = "did:key:z6MkiTBz1ymuepAQ4HEHYSF1H8quG5GLVVQR3djdX3mDooWp@http://127.0.0.1:9";
    Node::init(&folder.canonicalize()?, "node", nowhere, UID_BASE + 10 * step, "")
}

fn status(node: &Node) -> Result<Value> {
    Ok(serde_json::from_str(node.cli(&["status"])?.stdout.trim())?)
}

fn process(node: &Node, name: &str) -> Result<Value> {
    let status = status(node)?;
    let processes = status["supervisor"]["processes"].as_array().context("processes")?;
    processes.iter().find(|process| process["name"] == name).cloned().context("no such process")
}

fn ready(node: &Node) -> Result<()> {
    wait_for("the node to be ready again", || Ok((status(node)?["supervisor"]["state"] == "ready").then_some(())))
}

/// Starts a second `up` with the given passphrase and waits for its end.
fn up(node: &Node, passphrase: &Path) -> Result<Answer> {
    let (home, passphrase) = (node.home.display().to_string(), passphrase.display().to_string());
    run(&binaries()?.join("openred"), &["--json", "--home", &home, "up", "--passphrase-file", &passphrase])
}

#[test]
fn what_is_killed_is_named_and_restarted() {
    let folder = tempfile::tempdir().unwrap();
    let mut node = node(folder.path(), 0).unwrap();
    node.up().unwrap();
    for (number, (victim, bystander)) in
        [("vault", "noded"), ("front", "noded"), ("noded", "vault")].into_iter().enumerate()
    {
        let (pid, other) = (node.child_pid(victim).unwrap(), node.child_pid(bystander).unwrap());
        signal_pid(pid, Signal::SIGKILL).unwrap();
        wait_for("the victim's end in status", || {
            let seen = process(&node, victim)?;
            Ok((seen["last_exit"] == "SIGKILL" && seen["pid"] != pid).then_some(()))
        })
        .unwrap_or_else(|error| panic!("{victim}: {error:#}\n{:?}", status(&node)));
        ready(&node).unwrap();
        assert_ne!(node.child_pid(victim).unwrap(), pid);
        assert_eq!(node.child_pid(bystander).unwrap(), other, "{bystander} lives on when {victim} dies");
        let restarts = process(&node, "vault").unwrap()["restarts"].as_u64().unwrap();
        assert_eq!(restarts, (number as u64 + 1).min(2), "front and vault are replaced together");
    }
    let doctor = node.cli(&["doctor"]).unwrap().json().unwrap();
    assert_eq!(doctor["ok"], true, "{doctor}");
    node.down().unwrap();
}

#[test]
fn a_death_by_the_filter_is_an_alarm_and_no_restart() {
    let folder = tempfile::tempdir().unwrap();
    let mut node = node(folder.path(), 1).unwrap();
    node.up().unwrap();
    // What the kernel sends when the filter says no.
    signal_pid(node.child_pid("vault").unwrap(), Signal::SIGSYS).unwrap();
    let status = wait_for("the alarm", || {
        let status = status(&node)?;
        let conditions = status["supervisor"]["conditions"].as_array().context("conditions")?.clone();
        Ok(conditions.iter().any(|alarm| alarm["code"] == "process.vault.filter").then_some(status))
    })
    .unwrap();
    assert_eq!(status["supervisor"]["state"], "degraded");
    assert_eq!(node.cli(&["status"]).unwrap().code, 3);
    for name in ["front", "vault"] {
        let process = process(&node, name).unwrap();
        assert_eq!((process["state"].as_str(), process["restarts"].as_u64()), (Some("down"), Some(0)), "{process}");
    }
    assert_eq!(process(&node, "noded").unwrap()["state"], "ready", "what needs no key goes on");
    assert_eq!(node.cli(&["doctor"]).unwrap().code, 3);
    node.down().unwrap();
}

#[test]
fn one_supervisor_a_home_and_one_listener_a_port() {
    let folder = tempfile::tempdir().unwrap();
    let mut node = node(folder.path(), 2).unwrap();
    let passphrase = folder.path().join("node.passphrase");
    let taken = TcpListener::bind(node.listen).unwrap();
    let refused = up(&node, &passphrase).unwrap();
    assert_eq!(refused.code, 6, "{}", refused.stderr);
    assert!(refused.stderr.contains(&node.listen.to_string()), "{}", refused.stderr);
    drop(taken);
    node.up().unwrap();
    let second = up(&node, &passphrase).unwrap();
    assert_eq!(second.code, 6, "{}", second.stderr);
    assert!(second.stderr.contains("already runs"), "{}", second.stderr);
    ready(&node).unwrap();
    node.down().unwrap();
    let gone = node.cli(&["status"]).unwrap();
    assert!(gone.code == 1 && gone.stderr.contains("openred up"), "{}", gone.stderr);
}

#[test]
fn a_wrong_passphrase_leaves_the_keys_locked() {
    let folder = tempfile::tempdir().unwrap();
    let node = node(folder.path(), 3).unwrap();
    let wrong = folder.path().join("wrong");
    fs::write(&wrong, "another\n").unwrap();
    fs::set_permissions(&wrong, fs::Permissions::from_mode(0o600)).unwrap();
    let refused = up(&node, &wrong).unwrap();
    assert_eq!(refused.code, 8, "{}", refused.stderr);
    assert_eq!(refused.stderr.lines().filter(|line| line.contains("keystore.locked")).count(), 1, "{}", refused.stderr);
    fs::set_permissions(&wrong, fs::Permissions::from_mode(0o644)).unwrap();
    assert_eq!(up(&node, &wrong).unwrap().code, 5, "a passphrase that others may read");
}

#[test]
fn init_replaces_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let node = node(folder.path(), 4).unwrap();
    let keystore = fs::read(node.home.join("keystore.age")).unwrap();
    let (home, passphrase) =
        (node.home.display().to_string(), folder.path().join("node.passphrase").display().to_string());
    let openred = binaries().unwrap().join("openred");
    let again = run(&openred, &["--home", &home, "init", "--passphrase-file", &passphrase]).unwrap();
    assert_eq!(again.code, 6, "{}", again.stderr);
    assert_eq!(fs::read(node.home.join("keystore.age")).unwrap(), keystore);
    assert_eq!(fs::metadata(&node.home).unwrap().mode() & 0o777, 0o700);
}

/// Every layer as seen from outside; uids as the kind of user that runs this half of the suite has them.
#[test]
fn every_layer_is_seen_from_outside() {
    let folder = tempfile::tempdir().unwrap();
    let mut node = node(folder.path(), 5).unwrap();
    node.up().unwrap();
    let doctor = node.cli(&["doctor"]).unwrap().json().unwrap();
    assert_eq!(doctor["uid"], if is_root() { "separate" } else { "shared" });
    for process in doctor["processes"].as_array().unwrap() {
        let name = process["name"].as_str().unwrap();
        let layers = doctor["layers"].as_array().unwrap().iter().filter(|layer| layer["process"] == name).count();
        assert!(layers >= 9, "{name} has {layers}");
        let interfaces = process["network_interfaces"].as_array().unwrap();
        assert_eq!(interfaces.is_empty(), name != "noded", "{name}: {interfaces:?}");
    }
    // The files' owners are who may reach them.
    let cryptod = fs::metadata(node.home.join("run/cryptod")).unwrap();
    assert_eq!(cryptod.mode() & 0o777, 0o700);
    let own = nix::unistd::geteuid().as_raw();
    assert_eq!(cryptod.uid(), if is_root() { UID_BASE + 52 } else { own });
    drained(&mut node).unwrap();
    for socket in ["run/control.sock", "run/admin/admin.sock", "run/cryptod/cryptod.sock"] {
        assert!(!node.home.join(socket).exists(), "{socket} outlives the node");
    }
}

#[test]
fn iso_nobody_but_the_noded_that_was_started_reaches_the_front() {
    let folder = tempfile::tempdir().unwrap();
    let mut node = node(folder.path(), 7).unwrap();
    node.up().unwrap();
    let unread = |stream: &mut UnixStream| {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        std::io::Read::read_to_end(stream, &mut Vec::new()).unwrap()
    };
    // As root this process has another uid, as an ordinary user the same; it is another process in both.
    let socket = node.home.join("run/cryptod/cryptod.sock");
    for _ in 0..20 {
        assert_eq!(unread(&mut UnixStream::connect(&socket).unwrap()), 0, "a server that lets in speaks first");
    }
    // The control: noded says that it is ready once the front has answered it, and so does the next one.
    for _ in 0..2 {
        let pid = node.child_pid("noded").unwrap();
        signal_pid(pid, Signal::SIGKILL).unwrap();
        wait_for("another noded", || Ok((process(&node, "noded")?["pid"] != pid).then_some(()))).unwrap();
        ready(&node).unwrap();
    }
    assert_eq!(unread(&mut UnixStream::connect(&socket).unwrap()), 0);
    drained(&mut node).unwrap();
}

/// Connections that a listener of the test's remembers; `noded` tries every few seconds.
const HEARD: usize = 64;

/// What listens at `place`, for the node's own processes: each connection's bytes, up to its end.
fn stand_in(place: &Path) -> Receiver<Vec<u8>> {
    let listener = UnixListener::bind(place).unwrap();
    if is_root() {
        // As noded's own, so that nothing but its doubt keeps it away.
        chown(place, Some(UID_BASE + 112), Some(UID_BASE + 112)).unwrap();
    }
    let (hear, heard) = sync_channel(HEARD);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut bytes = Vec::new();
            let _ = std::io::Read::read_to_end(&mut &stream, &mut bytes);
            if hear.send(bytes).is_err() {
                return;
            }
        }
    });
    heard
}

/// Another program listens where `noded` expects the front: it is connected to, and told nothing.
#[test]
fn iso_who_stands_in_the_fronts_place_is_told_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut node = node(folder.path(), 11).unwrap();
    node.up().unwrap();
    let noded = node.child_pid("noded").unwrap();
    let socket = node.home.join("run/cryptod/cryptod.sock");
    node.cli(&["key", "lock"]).unwrap().ok().unwrap();
    assert!(!socket.exists(), "the place is free");
    let heard = stand_in(&socket);
    // The control: whoever does not look tells it all.
    UnixStream::connect(&socket).unwrap().write_all(b"PRI").unwrap();
    assert_eq!(heard.recv_timeout(PATIENCE).unwrap(), b"PRI");
    for _ in 0..3 {
        assert_eq!(heard.recv_timeout(PATIENCE).unwrap(), b"", "noded tries, and says nothing");
    }
    // By another name, and something that is no socket at all.
    let elsewhere = socket.with_file_name("elsewhere.sock");
    fs::remove_file(&socket).unwrap();
    let heard_elsewhere = stand_in(&elsewhere);
    std::os::unix::fs::symlink("elsewhere.sock", &socket).unwrap();
    assert_eq!(heard_elsewhere.recv_timeout(PATIENCE).unwrap(), b"");
    fs::remove_file(&socket).unwrap();
    fs::write(&socket, "no socket").unwrap();
    let log = node.daemon().unwrap().output();
    assert!(log.contains("another process than the supervisor listens in the front's place"), "{log}");
    // It looks at the key process now and then, and says so then.
    wait_for("the key process to be missed", || {
        let conditions = status(&node)?["node"]["conditions"].to_string();
        Ok(conditions.contains("cryptod.away").then_some(()))
    })
    .unwrap();
    assert_eq!(node.child_pid("noded").unwrap(), noded, "it goes on with what needs no key");
    // The supervisor puts the true one in its place, and noded finds it.
    let passphrase = format!("{}.passphrase", node.home.display());
    node.cli(&["key", "unlock", "--passphrase-file", &passphrase]).unwrap().ok().unwrap();
    ready(&node).unwrap();
    wait_for("the key process to be found again", || {
        let conditions = status(&node)?["node"]["conditions"].to_string();
        Ok((!conditions.contains("cryptod.away")).then_some(()))
    })
    .unwrap();
    assert!(heard.try_iter().chain(heard_elsewhere.try_iter()).all(|bytes| bytes.is_empty()));
    fs::remove_file(&elsewhere).unwrap();
    drained(&mut node).unwrap();
}

#[test]
fn the_quota_of_signatures_reaches_the_vault() {
    let folder = tempfile::tempdir().unwrap();
    let nowhere = "did:key:z6MkiTBz1ymuepAQ4HEHYSF1H8quG5GLVVQR3djdX3mDooWp@http://127.0.0.1:9";
    let quota = "[keys]\nsignatures_per_second = 77\n";
    let mut node = Node::init(&folder.path().canonicalize().unwrap(), "node", nowhere, UID_BASE + 80, quota).unwrap();
    node.up().unwrap();
    let vault = node.child_pid("vault").unwrap();
    let arguments = fs::read_to_string(format!("/proc/{vault}/cmdline")).unwrap_or_default();
    // No secret: whether another process of an ordinary user may read it depends on the namespaces that both are in.
    let given = "cryptod-vault\0signatures=77\0";
    assert!(arguments == given || (arguments.is_empty() && !is_root()), "{arguments:?}");
    drained(&mut node).unwrap();
}

fn drained(node: &mut Node) -> Result<()> {
    node.daemon()?.signal(Signal::SIGTERM)?;
    let code = wait_for("the end after SIGTERM", || node.daemon()?.ended())?;
    ensure!(code == 0, "exit code {code}");
    Ok(())
}

#[test]
fn a_service_manager_hears_of_readiness_and_of_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let mut node = node(folder.path(), 6).unwrap();
    let socket = folder.path().join("notify");
    let manager = UnixDatagram::bind(&socket).unwrap();
    manager.set_read_timeout(Some(PATIENCE)).unwrap();
    let told = || {
        let mut message = [0; 512];
        let length = manager.recv(&mut message).unwrap();
        String::from_utf8_lossy(&message[..length]).into_owned()
    };
    let mut up = Command::new(binaries().unwrap().join("openred"))
        .args(["--home".as_ref(), node.home.as_os_str(), "up".as_ref(), "--passphrase-file".as_ref()])
        .arg(folder.path().join("node.passphrase"))
        .env("NOTIFY_SOCKET", &socket)
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    assert!(told().starts_with("READY=1\n"));
    assert_eq!(status(&node).unwrap()["supervisor"]["state"], "ready", "what it says is so");
    signal_pid(up.id(), Signal::SIGINT).unwrap();
    assert_eq!(told(), "STOPPING=1");
    assert_eq!(up.wait().unwrap().code(), Some(0));
    node.down().unwrap();
}

/// A start as by the shipped unit: nobody at a terminal, the passphrase a credential, a watchdog.
#[test]
fn as_a_service_it_takes_its_credential_and_keeps_the_watchdog_fed() {
    let folder = tempfile::tempdir().unwrap();
    let mut node = node(folder.path(), 10).unwrap();
    let (socket, credentials) = (folder.path().join("notify"), folder.path().join("credentials"));
    let manager = UnixDatagram::bind(&socket).unwrap();
    manager.set_read_timeout(Some(PATIENCE)).unwrap();
    let told = || {
        let mut message = [0; 512];
        let length = manager.recv(&mut message).unwrap();
        String::from_utf8_lossy(&message[..length]).into_owned()
    };
    let up = || {
        let mut up = Command::new(binaries().unwrap().join("openred"));
        up.args(["--home".as_ref(), node.home.as_os_str(), "up".as_ref()]).stdin(Stdio::null()).stderr(Stdio::null());
        up.env("NOTIFY_SOCKET", &socket).env("WATCHDOG_USEC", "2000000").env("CREDENTIALS_DIRECTORY", &credentials);
        up.spawn().unwrap()
    };
    fs::create_dir(&credentials).unwrap();
    assert_eq!(up().wait().unwrap().code(), Some(2), "without the credential there is nobody to ask");
    fs::rename(folder.path().join("node.passphrase"), credentials.join("openred.passphrase")).unwrap();
    let mut up = up();
    assert!(told().starts_with("READY=1\n"));
    assert_eq!([told(), told()], ["WATCHDOG=1", "WATCHDOG=1"]);
    let other = || std::iter::repeat_with(told).find(|message| message != "WATCHDOG=1").unwrap();
    signal_pid(up.id(), Signal::SIGHUP).unwrap();
    let reloading = other();
    let since = reloading.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").unwrap_or_default();
    assert!(since.parse::<u64>().is_ok_and(|since| since > 0), "{reloading}");
    assert_eq!(other(), "READY=1");
    signal_pid(up.id(), Signal::SIGTERM).unwrap();
    assert_eq!(other(), "STOPPING=1");
    assert_eq!(up.wait().unwrap().code(), Some(0));
    node.down().unwrap();
}

#[test]
fn a_restart_without_its_passphrase_is_an_alarm_that_goes_away() {
    let folder = tempfile::tempdir().unwrap();
    let mut node = node(folder.path(), 7).unwrap();
    node.up().unwrap();
    let (passphrase, aside) = (folder.path().join("node.passphrase"), folder.path().join("aside"));
    fs::rename(&passphrase, &aside).unwrap();
    signal_pid(node.child_pid("front").unwrap(), Signal::SIGKILL).unwrap();
    wait_for("the alarm", || {
        let status = status(&node)?;
        let conditions = status["supervisor"]["conditions"].as_array().context("conditions")?.clone();
        Ok(conditions.iter().any(|alarm| alarm["code"] == "process.vault.start").then_some(()))
    })
    .unwrap();
    fs::rename(&aside, &passphrase).unwrap();
    ready(&node).unwrap();
    assert_eq!(status(&node).unwrap()["supervisor"]["conditions"].as_array().map(Vec::len), Some(0));
    node.down().unwrap();
}

#[test]
fn garbage_on_the_control_socket_harms_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let mut node = node(folder.path(), 8).unwrap();
    node.up().unwrap();
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    let huge_frame = [preface.as_slice(), &[0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1], &[0; 4096]].concat();
    for bytes in [b"GET / HTTP/1.1\r\n\r\n".to_vec(), vec![0; 65_536], preface, huge_frame] {
        let mut stream = UnixStream::connect(node.home.join("run/control.sock")).unwrap();
        // It may hang up in the middle.
        let _ = stream.write_all(&bytes);
        drop(stream);
    }
    // One that says nothing stays open meanwhile.
    let _silent = UnixStream::connect(node.home.join("run/control.sock")).unwrap();
    ready(&node).unwrap();
    node.down().unwrap();
}

/// What is read again replaces `noded` alone; what does not hold up changes nothing.
#[test]
fn sighup_takes_a_configuration_that_holds_up() {
    let folder = tempfile::tempdir().unwrap();
    let mut node = node(folder.path(), 9).unwrap();
    node.up().unwrap();
    let file = node.home.join("openred.toml");
    let before = fs::read_to_string(&file).unwrap();
    let (vault, noded) = (node.child_pid("vault").unwrap(), node.child_pid("noded").unwrap());
    let supervisor = node.daemon().unwrap().pid();
    let reload = |text: &str| {
        fs::write(&file, text).unwrap();
        signal_pid(supervisor, Signal::SIGHUP).unwrap();
    };
    let named = |node: &Node| {
        wait_for("the new name", || Ok((status(node)?["node"]["name"] == "renamed").then_some(()))).unwrap();
    };
    reload("name = \"half\nlisten =");
    let renamed = before.replace("name = \"node\"", "name = \"renamed\"");
    assert_ne!(renamed, before);
    reload(&renamed);
    named(&node);
    ready(&node).unwrap();
    assert_eq!(node.child_pid("vault").unwrap(), vault, "the keys stay where they are");
    assert_ne!(node.child_pid("noded").unwrap(), noded);
    // Passes the check and fails in the process: the file of authorities is not there.
    reload(&format!("{renamed}\n[directory]\nca_file = \"/nowhere/ca.pem\"\n"));
    wait_for("the failed start in the log", || {
        Ok(node.daemon()?.output().contains("the one before is taken again").then_some(()))
    })
    .unwrap();
    ready(&node).unwrap();
    named(&node);
    node.down().unwrap();
}
