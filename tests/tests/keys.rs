//! The life of a node's key with the real processes: locked and unlocked, sealed to a passphrase or to age recipients, refused
//! by name when its keystore is not as it must be, rotated.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs::{self, Permissions};
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use age::secrecy::ExposeSecret;
use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use openred_cryptod::unseal::envelope::Seal;
use openred_proto::fields::Writer;
use openred_proto::id::UnixMillis;
use openred_proto::unseal::Order;
use openred_tests::canary::Canary;
use openred_tests::harness::{Answer, Daemon, Node, binaries, is_root, run, signal_pid, wait_for};
use openred_tests::world::{World, status};
use serde_json::Value;

/// A base of uids that no other test of this suite uses.
const UID_BASE: u32 = 61_500;

fn node(folder: &Path, step: u32) -> Node {
    let nowhere = "did:key:z6MkiTBz1ymuepAQ4HEHYSF1H8quG5GLVVQR3djdX3mDooWp@http://127.0.0.1:9";
    Node::init(&folder.canonicalize().unwrap(), "node", nowhere, UID_BASE + 10 * step, "").unwrap()
}

fn secret(folder: &Path, name: &str, content: &str) -> String {
    let path = folder.join(name);
    fs::write(&path, content).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
    path.display().to_string()
}

/// The line of a failure as a program reads it: exit code and stable code.
fn refusal(answer: &Answer) -> (i32, String, String) {
    let line = answer.stderr.lines().rev().find(|line| line.contains("openred.error/1"));
    let body: Value = serde_json::from_str(line.unwrap_or_else(|| panic!("{}", answer.stderr))).unwrap();
    (answer.code, body["code"].as_str().unwrap().to_owned(), body["message"].to_string())
}

fn refused(node: &Node, arguments: &[&str]) -> (i32, String) {
    let (exit, code, _) = refusal(&node.cli(arguments).unwrap());
    (exit, code)
}

fn state(node: &Node) -> String {
    status(node).unwrap()["supervisor"]["state"].as_str().unwrap().to_owned()
}

fn ready(node: &Node) {
    wait_for("the node to be ready again", || Ok((state(node) == "ready").then_some(()))).unwrap();
}

fn process(node: &Node, name: &str) -> Value {
    let status = status(node).unwrap();
    let processes = status["supervisor"]["processes"].as_array().unwrap().clone();
    processes.into_iter().find(|process| process["name"] == name).unwrap()
}

fn ping(node: &Node, peer: &Node, fresh: bool) -> i32 {
    let mut arguments = vec!["peers", "ping", &peer.id, "--count", "1"];
    arguments.extend(fresh.then_some("--fresh"));
    node.cli(&arguments).unwrap().code
}

#[test]
fn a_locked_node_holds_no_key_and_goes_on_with_what_needs_none() {
    let world = World::start().unwrap();
    let (mut alice, mut bob) = world.linked().unwrap();
    let (vault, front) = (alice.child_pid("vault").unwrap(), alice.child_pid("front").unwrap());
    let noded = alice.child_pid("noded").unwrap();
    let shown = alice.cli(&["key", "show"]).unwrap().json().unwrap();
    assert_eq!((&shown["key"]["state"], &shown["key"]["node_id"]), (&"open".into(), &alice.id.as_str().into()));
    assert_eq!((&shown["key"]["passphrase"], &shown["key"]["version"]), (&true.into(), &3.into()));
    assert!(shown["key"]["created_at"].as_u64().unwrap() > 1_700_000_000_000);

    let locked = alice.cli(&["key", "lock"]).unwrap().json().unwrap();
    assert_eq!(locked["key"]["state"], "locked");
    for pid in [vault, front] {
        assert!(!Path::new(&format!("/proc/{pid}")).exists(), "{pid} is gone");
    }
    assert!(!alice.home.join("run/cryptod/cryptod.sock").exists());
    assert_eq!((alice.cli(&["status"]).unwrap().code, state(&alice).as_str()), (8, "locked"));
    assert_eq!(alice.cli(&["doctor"]).unwrap().code, 0, "nothing is off: it is as the operator wants it");
    assert_eq!(alice.child_pid("noded").unwrap(), noded);
    assert_eq!(alice.cli(&["key", "show"]).unwrap().json().unwrap()["key"]["node_id"], alice.id.as_str());
    // The open session goes on; a new one, and a new link, need a key.
    assert_eq!((ping(&alice, &bob, false), ping(&bob, &alice, false)), (0, 0));
    assert_ne!(ping(&bob, &alice, true), 0);
    wait_for("the condition", || {
        let status = status(&alice)?;
        let conditions = status["node"]["conditions"].as_array().context("conditions")?.clone();
        Ok(conditions.iter().any(|condition| condition["code"] == "cryptod.away").then_some(()))
    })
    .unwrap();
    let mut carol = world.node("carol").unwrap();
    assert_eq!(refused(&alice, &["link", "request", &carol.id]), (8, "cryptod.away".into()));
    carol.down().unwrap();
    assert_eq!(refused(&alice, &["key", "rotate", "prekey"]), (8, "keys.locked".into()));
    assert_eq!(alice.cli(&["key", "lock"]).unwrap().code, 0, "locking twice is no fault");

    let wrong = secret(world.path(), "wrong", "another\n");
    assert_eq!(refused(&alice, &["key", "unlock", "--passphrase-file", &wrong]), (8, "keystore.locked".into()));
    assert_eq!(state(&alice), "locked");
    let right = format!("{}.passphrase", alice.home.display());
    alice.cli(&["key", "unlock", "--passphrase-file", &right]).unwrap().ok().unwrap();
    ready(&alice);
    wait_for("a new session after the unlock", || Ok((ping(&bob, &alice, true) == 0).then_some(()))).unwrap();
    assert_eq!(refused(&alice, &["key", "unlock", "--passphrase-file", &right]), (6, "keys.open".into()));
    let unlocked = alice.child_pid("vault").unwrap();
    assert_ne!(unlocked, vault);
    // The secret of the unlock opens it after a crash as well.
    fs::remove_file(&right).unwrap();
    signal_pid(unlocked, Signal::SIGKILL).unwrap();
    wait_for("the restart", || Ok((process(&alice, "vault")["restarts"] == 1).then_some(()))).unwrap();
    ready(&alice);
    assert_eq!(alice.cli(&["doctor"]).unwrap().code, 0);
    alice.down().unwrap();
    bob.down().unwrap();
}

/// Starts a node whose passphrase comes on a descriptor, so that its supervisor has to keep it.
fn up_by_descriptor(node: &Node, passphrase: &str) -> Daemon {
    let openred = binaries().unwrap().join("openred").display().to_string();
    let script = "exec \"$0\" --home \"$1\" up --passphrase-fd 3 3<\"$2\"";
    let home = node.home.display().to_string();
    let log = node.home.with_extension("log");
    let daemon = Daemon::start(Path::new("sh"), &["-c", script, &openred, &home, passphrase], &log).unwrap();
    wait_for("the node", || Ok(node.cli(&["status"])?.json().is_ok().then_some(()))).unwrap();
    daemon
}

#[test]
fn a_lock_wipes_the_passphrase_and_nothing_opens_the_keystore_by_itself() {
    let folder = tempfile::tempdir().unwrap();
    let node = node(folder.path(), 0);
    let passphrase = secret(folder.path(), "node.passphrase", "passphrase of node\n");
    let daemon = up_by_descriptor(&node, &passphrase);
    let mark = Canary::known("passphrase", "passphrase of node", b"passphrase of node");
    let remembers = |what: &str, expected: bool| {
        // Only root may look; an ordinary user's half proves the rest.
        if is_root() {
            assert_eq!(mark.search_memory(daemon.pid()).unwrap().found, expected, "{what}");
        }
    };
    remembers("while open: the control", true);
    node.cli(&["key", "lock"]).unwrap().ok().unwrap();
    remembers("locked", false);
    // A front that dies is restarted; locked, there is nothing to die and nothing that comes back.
    assert_eq!((process(&node, "vault")["pid"].as_u64(), state(&node).as_str()), (Some(0), "locked"));
    // From standard input, as a script gives it.
    let mut unlock = Command::new(binaries().unwrap().join("openred"))
        .args(["--home".as_ref(), node.home.as_os_str()])
        .args(["key", "unlock", "--passphrase-fd", "0"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    unlock.stdin.take().unwrap().write_all(b"passphrase of node\n").unwrap();
    assert!(unlock.wait().unwrap().success());
    ready(&node);
    node.cli(&["key", "lock"]).unwrap().ok().unwrap();
    remembers("locked again", false);
    daemon.stop().unwrap();
}

#[test]
fn a_lock_in_the_middle_of_restarts_holds() {
    let folder = tempfile::tempdir().unwrap();
    let mut node = node(folder.path(), 1);
    node.up().unwrap();
    let passphrase = folder.path().canonicalize().unwrap().join("node.passphrase");
    let aside = folder.path().join("aside");
    fs::rename(&passphrase, &aside).unwrap();
    signal_pid(node.child_pid("vault").unwrap(), Signal::SIGKILL).unwrap();
    wait_for("the failing restart", || {
        let conditions = status(&node)?["supervisor"]["conditions"].as_array().context("conditions")?.clone();
        Ok(conditions.iter().any(|alarm| alarm["code"] == "process.vault.start").then_some(()))
    })
    .unwrap();
    node.cli(&["key", "lock"]).unwrap().ok().unwrap();
    fs::rename(&aside, &passphrase).unwrap();
    assert_eq!(state(&node), "locked", "the alarm is gone, and so is the wish to restart");
    let place = passphrase.display().to_string();
    node.cli(&["key", "unlock", "--passphrase-file", &place]).unwrap().ok().unwrap();
    ready(&node);
    node.down().unwrap();
}

#[test]
fn short_keys_are_rotated_and_peers_follow() {
    let world = World::start().unwrap();
    let (mut alice, mut bob) = world.linked().unwrap();
    for what in ["prekey", "statics"] {
        alice.cli(&["key", "rotate", what]).unwrap().ok().unwrap();
        assert_eq!((ping(&alice, &bob, true), ping(&bob, &alice, true)), (0, 0), "{what}");
    }
    assert_eq!(alice.cli(&["key", "rotate", "identity"]).unwrap().code, 2);
    alice.down().unwrap();
    bob.down().unwrap();
}

/// `up` that is expected to end by itself.
fn up(node: &Node, arguments: &[&str]) -> (i32, String, String) {
    let home = node.home.display().to_string();
    let arguments = [&["--json", "--home", &home, "up"], arguments].concat();
    refusal(&run(&binaries().unwrap().join("openred"), &arguments).unwrap())
}

/// A keystore file of any payload behind the node's passphrase.
fn sealed(payload: &[u8]) -> Vec<u8> {
    let order = Order::with_secret(b"passphrase of node".to_vec().into(), UnixMillis(1));
    let mut file = Vec::new();
    let mut writer = Seal::ordered(&order).unwrap().writer(&mut file).unwrap();
    writer.write_all(payload).unwrap();
    writer.finish().unwrap();
    file
}

#[test]
fn a_keystore_that_is_not_as_it_must_be_is_refused_by_name_and_kept() {
    let folder = tempfile::tempdir().unwrap();
    let node = node(folder.path(), 2);
    let (place, passphrase) = (node.home.join("keystore.age"), format!("{}.passphrase", node.home.display()));
    let whole = fs::read(&place).unwrap();
    let flipped = |at: usize| {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        bytes
    };
    // Still base64, so that it is read, and opens with nothing.
    let mut relettered = whole.clone();
    relettered[70] = if whole[70] == b'A' { b'B' } else { b'A' };
    let mismatched = Writer::new().number(1, 2).bytes(2, &[9; 32]).bytes(3, &[1; 32]).bytes(4, &[2; 32]).finish();
    let newer = Writer::new().number(1, 4).bytes(9, b"later").finish();
    let last = whole.len() - 1;
    let cases: [(&str, Vec<u8>, i32, &str); 8] = [
        ("empty", Vec::new(), 1, "keystore.length"),
        ("too long", vec![b'a'; 16 * 1024 + 1], 1, "keystore.length"),
        ("cut", whole[..last].to_vec(), 1, "keystore.damaged"),
        ("flipped in the payload", flipped(last), 1, "keystore.damaged"),
        ("flipped in the first line", flipped(3), 1, "keystore.damaged"),
        ("another letter in the wrapped key", relettered, 8, "keystore.locked"),
        ("newer version", sealed(&newer), 1, "keystore.newer"),
        ("another's public half", sealed(&mismatched), 1, "keystore.mismatched"),
    ];
    for (what, bytes, exit, code) in cases {
        fs::write(&place, &bytes).unwrap();
        let (seen, named, message) = up(&node, &["--passphrase-file", &passphrase]);
        assert_eq!((seen, named.as_str()), (exit, code), "{what}: {message}");
        assert!(message.contains("keystore"), "{what}: {message}");
        assert_eq!(fs::read(&place).unwrap(), bytes, "{what}: nothing is written over it");
    }
    fs::write(&place, &whole).unwrap();
    fs::set_permissions(&place, Permissions::from_mode(0o640)).unwrap();
    assert_eq!(up(&node, &["--passphrase-file", &passphrase]).1, "keystore.exposed");
    fs::set_permissions(&place, Permissions::from_mode(0o600)).unwrap();
    if is_root() {
        chown(&place, Some(61_999), None).unwrap();
        let (exit, code, _) = up(&node, &["--passphrase-file", &passphrase]);
        assert_eq!((exit, code.as_str()), (5, "keystore.foreign"));
        chown(&place, Some(0), None).unwrap();
    }
    fs::remove_file(&place).unwrap();
    fs::create_dir(&place).unwrap();
    assert_eq!(up(&node, &["--passphrase-file", &passphrase]).1, "keystore.kind");
    fs::remove_dir(&place).unwrap();
    assert_eq!(up(&node, &["--passphrase-file", &passphrase]).0, 4);
    fs::write(&place, &whole).unwrap();
    fs::set_permissions(&place, Permissions::from_mode(0o600)).unwrap();
    let mut node = node;
    node.up().unwrap();
    node.down().unwrap();
}

fn identity_file(folder: &Path, name: &str) -> (String, String) {
    let identity = age::x25519::Identity::generate();
    let text = format!("# created: today\n{}\n", identity.to_string().expose_secret());
    (identity.to_public().to_string(), secret(folder, name, &text))
}

/// Starts a node and waits until it is ready.
fn started(node: &Node, environment: &[(&str, &Path)], arguments: &[&str]) -> Daemon {
    let openred = binaries().unwrap().join("openred").display().to_string();
    let home = node.home.display().to_string();
    let set: Vec<String> = environment.iter().map(|(name, value)| format!("{name}={}", value.display())).collect();
    let mut all: Vec<&str> = set.iter().map(String::as_str).collect();
    all.extend([openred.as_str(), "--home", &home, "up"]);
    all.extend(arguments);
    let mut daemon = Daemon::start(Path::new("env"), &all, &node.home.with_extension("log")).unwrap();
    wait_for("the node", || {
        anyhow::ensure!(daemon.ended()?.is_none(), "{}", daemon.output());
        Ok(node.cli(&["status"])?.json().is_ok().then_some(()))
    })
    .unwrap();
    daemon
}

#[test]
fn a_keystore_sealed_to_recipients_opens_with_one_of_their_identities() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().canonicalize().unwrap();
    let node = node(&place, 3);
    let ((one, one_file), (two, two_file), (_, other_file)) =
        (identity_file(&place, "one"), identity_file(&place, "two"), identity_file(&place, "other"));
    fs::remove_file(node.home.join("keystore.age")).unwrap();
    let bad = refused(&node, &["init", "--recipient", "age1nonsense"]);
    assert_eq!(bad, (2, "keystore.recipient".into()));
    assert!(!node.home.join("keystore.age").exists());
    let made = node.cli(&["init", "--recipient", &one, "--recipient", &two]).unwrap().json().unwrap();
    let at_rest = node.cli(&["key", "show"]).unwrap().json().unwrap();
    assert_eq!((&at_rest["key"]["state"], &at_rest["key"]["passphrase"]), (&"at rest".into(), &false.into()));
    for (source, file, code) in [
        ("--identity-file", &other_file, "keystore.locked"),
        ("--passphrase-file", &format!("{}.passphrase", node.home.display()), "keystore.locked"),
    ] {
        let (exit, named, message) = up(&node, &[source, file]);
        assert_eq!((exit, named.as_str()), (8, code), "{message}");
    }
    for file in [&one_file, &two_file] {
        let daemon = started(&node, &[], &["--identity-file", file]);
        let shown = node.cli(&["key", "show"]).unwrap().json().unwrap();
        assert_eq!(shown["key"]["node_id"], made["node_id"]);
        assert_eq!(shown["key"]["recipients"], serde_json::json!([one, two]));
        daemon.stop().unwrap();
    }
    // As a service manager lays it down: found without an option, and an option comes first.
    let credentials = place.join("credentials");
    fs::create_dir(&credentials).unwrap();
    let credential = PathBuf::from(secret(&credentials, "openred.identity", &fs::read_to_string(&one_file).unwrap()));
    let daemon = started(&node, &[("CREDENTIALS_DIRECTORY", &credentials)], &[]);
    daemon.stop().unwrap();
    fs::copy(&other_file, &credential).unwrap();
    started(&node, &[("CREDENTIALS_DIRECTORY", &credentials)], &["--identity-file", &two_file]).stop().unwrap();
}

#[test]
fn a_passphrase_credential_opens_at_start_and_is_no_answer_to_an_unlock() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let place = folder.path().canonicalize()?;
    let node = node(&place, 4);
    let credentials = place.join("credentials");
    fs::create_dir(&credentials)?;
    secret(&credentials, "openred.passphrase", "passphrase of node\n");
    let daemon = started(&node, &[("CREDENTIALS_DIRECTORY", &credentials)], &[]);
    node.cli(&["key", "lock"])?.ok()?;
    // No terminal, no option: the operator has to say it, or the lock would be none.
    assert_eq!(refused(&node, &["key", "unlock"]).0, 2);
    assert_eq!(state(&node), "locked");
    daemon.stop()?;
    Ok(())
}
