//! Backups with the real processes: made of a running and of a stopped node, opened by a stock `age` and `tar`, verified to the
//! last byte, restored, and what was sealed before the restore opening no more.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs::{self, Permissions};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use age::secrecy::{ExposeSecret, SecretString};
use openred_tests::harness::{Answer, Node, binaries, run, wait_for};
use openred_tests::world::{World, inbox, link, link_with, registered};
use serde_json::Value;

/// A base of uids that no other test of this suite uses.
const UID_BASE: u32 = 61_560;

fn node(folder: &Path, step: u32) -> Node {
    let nowhere = "did:key:z6MkiTBz1ymuepAQ4HEHYSF1H8quG5GLVVQR3djdX3mDooWp@http://127.0.0.1:9";
    Node::init(&folder.canonicalize().unwrap(), "node", nowhere, UID_BASE + 10 * step, "").unwrap()
}

fn refusal(answer: &Answer) -> (i32, String) {
    let line = answer.stderr.lines().rev().find(|line| line.contains("openred.error/1"));
    let body: Value = serde_json::from_str(line.unwrap_or_else(|| panic!("{answer:?}"))).unwrap();
    (answer.code, body["code"].as_str().unwrap().to_owned())
}

fn passphrase(node: &Node) -> String {
    format!("{}.passphrase", node.home.display())
}

/// Runs a command with the node's passphrase.
fn with(node: &Node, arguments: &[&str]) -> Answer {
    node.cli(&[arguments, &["--passphrase-file", &passphrase(node)]].concat()).unwrap()
}

fn identity_file(folder: &Path, name: &str) -> (String, String) {
    let identity = age::x25519::Identity::generate();
    let place = folder.join(name);
    fs::write(&place, format!("{}\n", identity.to_string().expose_secret())).unwrap();
    fs::set_permissions(&place, Permissions::from_mode(0o600)).unwrap();
    (identity.to_public().to_string(), place.display().to_string())
}

/// What the `age` crate's own decryptor makes of a file behind a passphrase.
fn opened_with_passphrase(file: &Path, passphrase: &str) -> Vec<u8> {
    let decryptor = age::Decryptor::new(fs::File::open(file).unwrap()).unwrap();
    let identity = age::scrypt::Identity::new(SecretString::from(passphrase.to_owned()));
    let mut content = Vec::new();
    decryptor.decrypt(std::iter::once(&identity as _)).unwrap().read_to_end(&mut content).unwrap();
    content
}

/// What the distribution's `age` makes of a file that is sealed to a recipient.
fn opened_by_stock_age(file: &Path, identity: &str) -> Vec<u8> {
    let opened = Command::new("age").args(["--decrypt", "--identity", identity]).arg(file).output();
    let opened = opened.expect("`age` is installed by scripts/prepare");
    assert!(opened.status.success(), "{}", String::from_utf8_lossy(&opened.stderr));
    opened.stdout
}

fn listed_by_stock_tar(bytes: Vec<u8>) -> Vec<String> {
    let mut tar = Command::new("tar").args(["-tf", "-"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = tar.stdin.take().unwrap();
    let writer = std::thread::spawn(move || std::io::Write::write_all(&mut stdin, &bytes));
    let output = tar.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

const NAMES: [&str; 5] = ["manifest.json", "openred.toml", "keystore.age", "vault/state", "state/node.sqlite"];

#[test]
fn a_running_node_is_backed_up_and_comes_back_without_its_old_rows() {
    let world = World::start().unwrap();
    let (mut alice, mut bob) = world.linked().unwrap();
    bob.cli(&["send", &alice.id, "before the backup"]).unwrap().ok().unwrap();
    wait_for("the message", || Ok((inbox(&alice)? == ["before the backup"]).then_some(()))).unwrap();
    let file = world.path().canonicalize().unwrap().join("alice.backup");
    let place = file.display().to_string();
    let made = with(&alice, &["backup", "create", &place]).json().unwrap();
    assert_eq!((&made["verified"], &made["manifest"]["running"]), (&true.into(), &true.into()));
    assert_eq!((&made["links"], &made["schema"]), (&1.into(), &2.into()));
    assert_eq!(made["manifest"]["node_id"], alice.id.as_str());
    assert!(!alice.home.join("state/backup.sqlite").exists(), "the copy is gone");
    assert_eq!(listed_by_stock_tar(opened_with_passphrase(&file, "passphrase of alice")), NAMES);
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(refusal(&with(&alice, &["backup", "create", &place])), (6, "file.exists".into()));

    // What comes after the backup is not in it.
    bob.cli(&["send", &alice.id, "after the backup"]).unwrap().ok().unwrap();
    wait_for("the message", || Ok((inbox(&alice)?.len() == 2).then_some(()))).unwrap();
    assert_eq!(refusal(&with(&alice, &["backup", "restore", &place, "--force"])), (6, "home.locked".into()));
    alice.down().unwrap();
    assert_eq!(refusal(&with(&alice, &["backup", "restore", &place])), (6, "keystore.exists".into()));
    let before = fs::read(alice.home.join("keystore.age")).unwrap();
    let restored = with(&alice, &["backup", "restore", &place, "--force"]).json().unwrap();
    let aside = PathBuf::from(restored["replaced"].as_str().unwrap());
    assert_eq!(fs::read(aside.join("keystore.age")).unwrap(), before, "what was there is kept");
    assert!(aside.join("state/node.sqlite").exists() && aside.join("vault/state").exists());

    alice.up().unwrap();
    registered(&alice).unwrap();
    assert_eq!(alice.cli(&["key", "show"]).unwrap().json().unwrap()["key"]["node_id"], alice.id.as_str());
    assert_eq!(inbox(&alice).unwrap(), ["before the backup"]);
    // The row of the old link is of an epoch before the restore.
    wait_for("the old link's end", || {
        let list = alice.cli(&["link", "list", "--all"])?.json()?;
        Ok((list["links"][0]["state"] == "revoked").then_some(()))
    })
    .unwrap();
    assert_ne!(alice.cli(&["peers", "ping", &bob.id, "--count", "1"]).unwrap().code, 0);
    link(&alice, &bob).unwrap();
    assert_eq!(link_with(&alice, &bob.id).unwrap()["state"], "active");
    alice.down().unwrap();
    bob.down().unwrap();
}

#[test]
fn a_stopped_node_is_backed_up_for_a_recipient_and_a_stock_age_opens_it() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().canonicalize().unwrap();
    let mut node = node(&place, 0);
    node.up().unwrap();
    node.down().unwrap();
    let ((recipient, identity), (_, other)) = (identity_file(&place, "identity"), identity_file(&place, "other"));
    let whole = place.join("whole.backup").display().to_string();
    let made = with(&node, &["backup", "create", &whole, "--recipient", &recipient]).json().unwrap();
    assert_eq!((&made["verified"], &made["manifest"]["running"]), (&false.into(), &false.into()));
    let verified = node.cli(&["backup", "verify", &whole, "--identity-file", &identity]).unwrap().json().unwrap();
    assert_eq!((&verified["verified"], &verified["schema"]), (&true.into(), &2.into()));
    assert_eq!(listed_by_stock_tar(opened_by_stock_age(Path::new(&whole), &identity)), NAMES);

    let key = place.join("key.backup").display().to_string();
    with(&node, &["key", "backup", &key, "--recipient", &recipient]).ok().unwrap();
    let payload = opened_by_stock_age(Path::new(&key), &identity);
    // Version 3, then the node id as field 4 of the canonical encoding says it: what `key show` prints is in it.
    assert_eq!(payload[..4], [0x08, 0x03, 0x12, 32]);
    let behind = place.join("behind.backup").display().to_string();
    with(&node, &["key", "backup", &behind]).ok().unwrap();
    assert_eq!(opened_with_passphrase(Path::new(&behind), "passphrase of node")[..36], payload[..36]);
    assert_eq!(refusal(&with(&node, &["key", "backup", &key])), (6, "file.exists".into()));

    let bytes = fs::read(&whole).unwrap();
    let damaged = place.join("damaged").display().to_string();
    let verify = |bytes: &[u8], identity: &str| {
        fs::write(&damaged, bytes).unwrap();
        refusal(&node.cli(&["backup", "verify", &damaged, "--identity-file", identity]).unwrap())
    };
    let mut flipped = bytes.clone();
    flipped[bytes.len() / 2] ^= 1;
    assert_eq!(verify(&flipped, &identity), (1, "backup.damaged".into()));
    assert_eq!(verify(&bytes[..bytes.len() - 1], &identity), (1, "backup.damaged".into()));
    assert_eq!(verify(&bytes[..bytes.len() / 2], &identity), (1, "backup.damaged".into()));
    assert_eq!(verify(b"", &identity), (1, "backup.damaged".into()));
    assert_eq!(verify(&bytes, &other), (8, "backup.locked".into()));
    // A sealed file that is no backup: the key alone.
    assert_eq!(verify(&fs::read(&key).unwrap(), &identity), (1, "backup.damaged".into()));

    // Into a home that is empty, by its recipient's identity; the same identity opens what is restored.
    let home = place.join("restored").display().to_string();
    let openred = binaries().unwrap().join("openred");
    let restore = ["--json", "--home", &home, "backup", "restore", &whole, "--identity-file", &identity];
    run(&openred, &restore).unwrap().ok().unwrap();
    assert_eq!(refusal(&run(&openred, &restore).unwrap()), (6, "keystore.exists".into()));
    let mut restored: Vec<String> =
        fs::read_dir(&home).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    restored.sort();
    assert_eq!(restored, ["audit", "keystore.age", "openred.toml", "run", "state", "vault"], "nothing is left behind");
    let config = fs::read_to_string(place.join("node/openred.toml")).unwrap();
    assert_eq!(fs::read_to_string(format!("{home}/openred.toml")).unwrap(), config);
    let log = place.join("restored.log");
    let up = ["--home", &home, "up", "--identity-file", &identity];
    let daemon = openred_tests::harness::Daemon::start(&openred, &up, &log).unwrap();
    wait_for("the restored node", || {
        let status = run(&openred, &["--json", "--home", &home, "status"])?.json()?;
        Ok((status["node"]["node_id"] == node.id.as_str()).then_some(()))
    })
    .unwrap();
    daemon.stop().unwrap();
}

#[test]
fn a_key_that_was_lost_comes_back_and_what_it_sealed_before_opens_no_more() {
    let world = World::start().unwrap();
    let (mut alice, mut bob) = world.linked().unwrap();
    let file = world.path().canonicalize().unwrap().join("alice.key").display().to_string();
    with(&alice, &["key", "backup", &file]).ok().unwrap();
    assert_eq!(refusal(&with(&alice, &["key", "restore", &file, "--force"])), (6, "home.locked".into()));
    alice.down().unwrap();
    fs::remove_file(alice.home.join("keystore.age")).unwrap();
    assert_eq!(alice.cli(&["up", "--passphrase-file", &passphrase(&alice)]).unwrap().code, 4);
    with(&alice, &["key", "restore", &file]).ok().unwrap();
    assert_eq!(refusal(&with(&alice, &["key", "restore", &file])), (6, "keystore.exists".into()));
    alice.up().unwrap();
    registered(&alice).unwrap();
    wait_for("the old link's end", || {
        let list = alice.cli(&["link", "list", "--all"])?.json()?;
        Ok((list["links"][0]["state"] == "revoked").then_some(()))
    })
    .unwrap();
    link(&alice, &bob).unwrap();
    alice.down().unwrap();
    // Another node's key does not go with this state; nothing is changed by the try.
    let other = world.init("other", "").unwrap();
    let foreign = world.path().canonicalize().unwrap().join("other.key").display().to_string();
    with(&other, &["key", "backup", &foreign]).ok().unwrap();
    let before = fs::read(alice.home.join("keystore.age")).unwrap();
    let place = passphrase(&other);
    let refused = alice.cli(&["key", "restore", &foreign, "--force", "--passphrase-file", &place]).unwrap();
    assert_eq!(refusal(&refused), (1, "state.foreign".into()));
    assert_eq!(fs::read(alice.home.join("keystore.age")).unwrap(), before);
    bob.down().unwrap();
}

#[test]
fn a_database_of_a_newer_program_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let mut node = node(folder.path(), 1);
    node.up().unwrap();
    node.down().unwrap();
    let file = node.home.join("state/node.sqlite");
    rusqlite::Connection::open(&file).unwrap().pragma_update(None, "user_version", 99).unwrap();
    let refused = node.cli(&["up", "--passphrase-file", &passphrase(&node)]).unwrap();
    assert_eq!(refused.code, 1, "{}", refused.stderr);
    assert!(refused.stderr.contains("schema 99") && refused.stderr.contains("newer version"), "{}", refused.stderr);
    // A backup of it cannot be proven by this program either, and says the same.
    let place = folder.path().canonicalize().unwrap().join("backup").display().to_string();
    let unproven = with(&node, &["backup", "create", &place]);
    assert_eq!(refusal(&unproven), (1, "backup.database".into()));
}
