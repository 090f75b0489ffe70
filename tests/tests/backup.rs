//! Backups with the real processes: made of a running and of a stopped node, opened by a stock `age` and `tar`, verified to the
//! last byte, restored, and what was sealed before the restore opening no more.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs::{self, Permissions};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use age::secrecy::{ExposeSecret, SecretString};
use openred_tests::harness::{Answer, Node, binaries, passphrase, refusal, run, wait_for};
use openred_tests::world::{World, inbox, link, link_with, registered};
use serde_json::Value;

/// A base of uids that no other test of this suite uses.
const UID_BASE: u32 = 61_560;

fn node(folder: &Path, step: u32) -> Node {
    let nowhere = "did:key:z6MkiTBz1ymuepAQ4HEHYSF1H8quG5GLVVQR3djdX3mDooWp@http://127.0.0.1:9";
    Node::init(&folder.canonicalize().unwrap(), "node", nowhere, UID_BASE + 10 * step, "").unwrap()
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

const NAMES: [&str; 6] =
    ["manifest.json", "openred.toml", "keystore.age", "vault/state", "state/node.sqlite", "blobs.b3"];

#[test]
fn the_files_that_a_node_holds_come_back_with_it_unless_they_are_left_out() {
    let world = World::start().unwrap();
    let (mut alice, mut bob) = world.linked().unwrap();
    let folder = world.path().canonicalize().unwrap();
    // Two pieces.
    let content: Vec<u8> = (0..1_300_000_u32).flat_map(u32::to_le_bytes).collect();
    fs::write(folder.join("film"), &content).unwrap();
    let shared = alice.cli(&["share", folder.join("film").to_str().unwrap()]).unwrap().json().unwrap();
    let id = shared["id"].as_str().unwrap().to_owned();
    bob.cli(&["fetch", &alice.id, &id]).unwrap().ok().unwrap();
    let whole = folder.join("whole.backup").display().to_string();
    let made = with(&bob, &["backup", "create", &whole]).json().unwrap();
    assert_eq!((&made["verified"], &made["blobs"]["files"]), (&true.into(), &2.into()), "the content and its hashes");
    assert!(made["blobs"]["bytes"].as_u64() > Some(content.len() as u64), "{made}");
    assert_eq!(made["manifest"]["schema"], "openred.backup/2");

    // A stock `age` and `tar` have the file as it was, and its hash beside it.
    let tar = opened_with_passphrase(Path::new(&whole), "passphrase of bob");
    let mut names = listed_by_stock_tar(tar.clone());
    assert_eq!(names.pop().as_deref(), Some("blobs.b3"));
    let data = format!("state/blobs/files/{id}.data");
    assert!(names.contains(&data) && names.len() == 7, "{names:?}");
    let stock = tempfile::tempdir().unwrap();
    fs::write(stock.path().join("backup.tar"), &tar).unwrap();
    let unpacked = Command::new("tar").arg("-xf").arg("backup.tar").current_dir(stock.path()).status().unwrap();
    assert!(unpacked.success() && fs::read(stock.path().join(&data)).unwrap() == content);
    assert!(fs::read_to_string(stock.path().join("blobs.b3")).unwrap().contains(&format!("  {data}\n")));

    // One without them has the form of before there were any, which is still read.
    let small = folder.join("small.backup").display().to_string();
    let made = with(&bob, &["backup", "create", &small, "--without-files"]).json().unwrap();
    assert_eq!((&made["blobs"], &made["manifest"]["schema"]), (&Value::Null, &"openred.backup/1".into()));
    assert_eq!(with(&bob, &["backup", "verify", &small]).json().unwrap()["blobs"], Value::Null);

    bob.down().unwrap();
    alice.down().unwrap();
    with(&bob, &["backup", "restore", &small, "--force"]).ok().unwrap();
    assert!(!bob.home.join(&data).exists());
    let restored = with(&bob, &["backup", "restore", &whole, "--force"]).json().unwrap();
    assert_eq!(restored["blobs"]["files"], 2);
    bob.up().unwrap();
    let out = folder.join("out").display().to_string();
    let fetched = bob.cli(&["fetch", &alice.id, &id, "--out", &out]).unwrap().json().unwrap();
    assert_eq!((&fetched["verified"], &fetched["received"]), (&true.into(), &0.into()), "nobody was asked");
    assert!(fs::read(&out).unwrap() == content);
    bob.down().unwrap();
}

/// Most that the command may have in memory, in kilobytes: pieces, names and the program itself.
const COMMAND_KILOBYTES: u64 = 64 * 1024;

#[test]
fn a_long_file_passes_in_pieces() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().canonicalize().unwrap();
    let node = node(&place, 2);
    let blobs = node.home.join("state/blobs/files");
    fs::create_dir_all(&blobs).unwrap();
    let file = fs::File::create(blobs.join("long.data")).unwrap();
    file.set_len(160 << 20).unwrap();
    let mut command = Command::new(binaries().unwrap().join("openred"))
        .args(["--json", "--home"])
        .arg(&node.home)
        .args(["backup", "create"])
        .arg(place.join("long.backup"))
        .args(["--passphrase-file", &passphrase(&node)])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let status = format!("/proc/{}/status", command.id());
    let mut most = 0;
    let ended = loop {
        let seen = fs::read_to_string(&status).unwrap_or_default();
        let line = seen.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        most = most.max(line.map_or(0, |line| line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()));
        if let Some(ended) = command.try_wait().unwrap() {
            break ended;
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    };
    assert!(ended.success());
    assert!(0 < most && most < COMMAND_KILOBYTES, "{most} kB");
    assert!(fs::metadata(place.join("long.backup")).unwrap().len() > 160 << 20);
}

/// Whether the node in this home is the one from before the restore. Its parts must agree.
fn is_old(home: &Path) -> bool {
    let marks = [
        fs::read_to_string(home.join("openred.toml")).unwrap().contains("# later"),
        home.join("state/later").exists(),
        home.join("vault/later").exists(),
        home.join("audit/later").exists(),
    ];
    assert!(marks.iter().all(|mark| *mark == marks[0]), "of two nodes: {marks:?}");
    marks[0]
}

/// A moment of a restore, and how it shows in the home.
type Moment = (&'static str, Box<dyn Fn() -> bool>);

/// The moments at which a restore is killed, as they come one after the other.
fn moments(home: &Path) -> [Moment; 7] {
    let there = |name: &'static str| -> Box<dyn Fn() -> bool> {
        let place = home.join(name);
        Box::new(move || place.exists())
    };
    let (key, folder) = (home.join("keystore.age"), home.to_owned());
    let is_aside = |entry: fs::DirEntry| entry.file_name().to_string_lossy().starts_with("replaced-");
    [
        ("begun", there("restoring")),
        ("read", there("restoring/read/node.sqlite")),
        ("laid out", there("restoring/new/keystore.age")),
        ("noted", there("restoring/note.json")),
        ("ready", there("restored")),
        ("moved aside", Box::new(move || fs::read_dir(&folder).unwrap().flatten().any(is_aside))),
        ("without a key", Box::new(move || !key.exists())),
    ]
}

/// Gives the node's command and kills it once that moment is seen.
fn killed_when(node: &Node, arguments: &[&str], reached: impl Fn() -> bool) {
    let mut restoring = Command::new(binaries().unwrap().join("openred"))
        .args(["--json", "--home"])
        .arg(&node.home)
        .args(arguments)
        .args(["--passphrase-file", &passphrase(node)])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    while !reached() && restoring.try_wait().unwrap().is_none() {
        std::thread::sleep(std::time::Duration::from_micros(50));
    }
    let _ = restoring.kill();
    restoring.wait().unwrap();
}

#[test]
fn a_key_restore_that_is_killed_leaves_a_whole_node_and_is_done_again() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().canonicalize().unwrap();
    let mut node = node(&place, 4);
    node.up().unwrap();
    node.down().unwrap();
    let key = place.join("key").display().to_string();
    with(&node, &["key", "backup", &key]).ok().unwrap();
    let home = node.home.clone();
    let state = || fs::read(home.join("vault/state")).unwrap();
    let moments = [
        ("begun", home.join("changing"), true),
        ("noted", home.join("changing/note.json"), true),
        ("ready", home.join("restored"), true),
        ("without a key", home.join("keystore.age"), false),
    ];
    for (moment, place, is_there) in moments {
        let (before, aside) = (state(), replaced(&home).len());
        killed_when(&node, &["key", "restore", &key, "--force"], || place.exists() == is_there);
        let was_ready = home.join("restored").exists();
        if was_ready {
            // One that got past its moment is carried to its end by the same command, which then has nothing to move aside.
            with(&node, &["key", "restore", &key]).ok().unwrap();
            assert_ne!(state(), before, "killed when {moment}: the state is that of the restored key");
            assert_eq!(replaced(&home).len(), aside + 1, "killed when {moment}");
        }
        node.up().unwrap_or_else(|error| panic!("killed when {moment}: {error:#}"));
        assert_eq!(node.cli(&["key", "show"]).unwrap().json().unwrap()["key"]["node_id"], node.id.as_str());
        node.cli(&["audit", "verify"]).unwrap().ok().unwrap();
        node.down().unwrap();
        assert!(!home.join("changing").exists() && !home.join("restored").exists(), "killed when {moment}");
    }
}

fn replaced(home: &Path) -> Vec<PathBuf> {
    let names = fs::read_dir(home).unwrap().map(|entry| entry.unwrap().path());
    names.filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with("replaced-")).collect()
}

#[test]
fn a_restore_that_is_killed_leaves_the_old_or_the_new_node_whole_and_is_done_again() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().canonicalize().unwrap();
    let mut node = node(&place, 3);
    node.up().unwrap();
    node.down().unwrap();
    let backup = place.join("backup").display().to_string();
    // As a verification leaves it that was killed: the next one, which `create` makes, takes it away.
    let mut gone = Command::new("true").spawn().unwrap();
    gone.wait().unwrap();
    let left = node.home.join(format!("openred-verifying-{}", gone.id()));
    fs::create_dir(&left).unwrap();
    fs::write(left.join("node.sqlite"), "in clear").unwrap();
    with(&node, &["backup", "create", &backup]).ok().unwrap();
    let home = node.home.clone();
    let in_home = fs::read_dir(&home).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert_eq!(in_home.filter(|name| name.starts_with("openred-verifying-")).count(), 0);
    let grow_old = || {
        replaced(&home).iter().for_each(|path| fs::remove_dir_all(path).unwrap());
        for place in ["state/later", "vault/later", "audit/later"] {
            fs::write(home.join(place), "").unwrap();
        }
        let config = fs::read_to_string(home.join("openred.toml")).unwrap();
        fs::write(home.join("openred.toml"), format!("{config}# later\n")).unwrap();
    };
    for (round, (moment, reached)) in moments(&home).into_iter().enumerate() {
        grow_old();
        assert!(is_old(&home));
        killed_when(&node, &["backup", "restore", &backup, "--force"], reached);
        let is_left = home.join("restoring").exists();
        if round % 2 == 0 {
            node.up().unwrap_or_else(|error| panic!("killed when {moment}: {error:#}"));
            let status = node.cli(&["status"]).unwrap().json().unwrap();
            let named = status["supervisor"]["conditions"].as_array().unwrap().iter();
            let named = named.filter(|condition| condition["code"] == "restore.unfinished").count();
            assert_eq!(named, usize::from(is_left), "killed when {moment}: {status}");
            // It is no layer: named, and no reason for another exit code.
            let report = node.cli(&["doctor"]).unwrap().json().unwrap();
            let named = report["conditions"].as_array().unwrap().iter();
            let named = named.filter(|condition| condition["code"] == "restore.unfinished").count();
            assert_eq!((named, &report["ok"]), (usize::from(is_left), &true.into()), "killed when {moment}: {report}");
            assert_eq!(home.join("restoring").exists(), is_left, "what it left is not for a start to remove");
            assert_eq!(node.cli(&["key", "show"]).unwrap().json().unwrap()["key"]["node_id"], node.id.as_str());
            node.down().unwrap();
            let _ = is_old(&home);
        }
        let again = with(&node, &["backup", "restore", &backup, "--force"]);
        assert_eq!(again.code, 0, "killed when {moment}: {again:?}");
        assert!(!is_old(&home), "killed when {moment}");
        assert!(!home.join("restoring").exists() && !home.join("restored").exists());
        // What was replaced is whole as well, once or twice.
        for aside in replaced(&home) {
            assert!(aside.join("keystore.age").exists() && aside.join("vault").exists(), "killed when {moment}");
            let _ = is_old(&aside);
        }
    }
    node.up().unwrap();
    node.down().unwrap();
}

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
    assert_eq!((&made["links"], &made["schema"]), (&1.into(), &9.into()));
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
    assert_eq!((&verified["verified"], &verified["schema"]), (&true.into(), &9.into()));
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
    let parts = ["audit", "keystore.age", "modules", "openred.toml", "run", "state", "vault"];
    assert_eq!(restored, parts, "nothing is left behind");
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
