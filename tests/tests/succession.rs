//! A node takes a new identity with the real processes: peer and directory follow it, what was kept stays readable, and the
//! older identity takes its word back. A rotation that is killed leaves a whole node of one identity.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs::{File, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use age::secrecy::{ExposeSecret, SecretString};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use openred_cryptod::unseal::Keystore;
use openred_cryptod::unseal::envelope::{Seal, WorkFactor};
use openred_tests::harness::{Answer, Node, binaries, refusal, run, wait_for};
use openred_tests::world::{World, inbox, link, link_with, registered};
use serde_json::Value;

fn with(node: &Node, arguments: &[&str]) -> Answer {
    let passphrase = format!("{}.passphrase", node.home.display());
    node.cli(&[arguments, &["--passphrase-file", &passphrase]].concat()).unwrap()
}

/// Stops the node, changes its identity and starts it again; what was replaced lies in the folder that is given back.
fn changed(node: &mut Node, arguments: &[&str]) -> PathBuf {
    node.down().unwrap();
    let said = with(node, arguments).json().unwrap();
    said["node_id"].as_str().unwrap().clone_into(&mut node.id);
    node.up().unwrap();
    registered(node).unwrap();
    PathBuf::from(said["replaced"].as_str().unwrap())
}

fn wait_active(node: &Node, peer: &str) {
    wait_for("an active link", || Ok((link_with(node, peer)?["state"] == "active").then_some(()))).unwrap();
}

fn wait_ended(node: &Node, peer: &str, why: &str) {
    wait_for("the end of the older link", || {
        let list = node.cli(&["link", "list", "--all"])?.json()?;
        let links = list["links"].as_array().cloned().unwrap_or_default();
        let mut of_peer = links.iter().filter(|link| link["peer"] == peer);
        let ended = of_peer
            .any(|link| link["state"] == "revoked" && link["detail"].as_str().is_some_and(|text| text.contains(why)));
        Ok(ended.then_some(()))
    })
    .unwrap();
}

fn send(from: &Node, to: &str, text: &str, reader: &Node) {
    from.cli(&["send", to, text]).unwrap().ok().unwrap();
    wait_for("the message", || Ok(inbox(reader)?.iter().any(|message| message == text).then_some(()))).unwrap();
}

#[test]
fn peers_and_directory_follow_a_new_identity_and_its_taking_back() {
    let world = World::start().unwrap();
    let mut alice = world.node("alice").unwrap();
    // Bob lets nobody in by himself: what he takes of the new identity, he takes because he knows the older one.
    let mut bob = world.init("bob", "[links]\nincoming = \"ask\"\n").unwrap();
    bob.up().unwrap();
    registered(&bob).unwrap();
    link(&bob, &alice).unwrap();
    send(&bob, &alice.id, "to the first", &alice);
    assert_eq!(refusal(&with(&alice, &["key", "rotate", "identity"])), (6, "home.locked".into()));

    let first = alice.id.clone();
    let aside = changed(&mut alice, &["key", "rotate", "identity"]);
    let second = alice.id.clone();
    assert_ne!(first, second);
    assert_eq!(inbox(&alice).unwrap(), ["to the first"], "what was sealed at rest still opens");
    wait_active(&bob, &second);
    wait_ended(&bob, &first, "new identity");
    wait_ended(&alice, &bob.id, "new identity");
    send(&bob, &first, "to the first id, for the second", &alice);
    send(&alice, &bob.id, "from the second", &bob);
    let shown = alice.cli(&["key", "show"]).unwrap().json().unwrap();
    let word = &shown["key"]["lineage"][0];
    assert_eq!(
        (&word["step"], &word["old"], &word["new"]),
        (&"succeed".into(), &first.as_str().into(), &second.as_str().into())
    );
    // One that knows only the older id is led on by the directory, and checks the words itself.
    let mut carol = world.node("carol").unwrap();
    let asked = carol.cli(&["link", "request", &first]).unwrap().json().unwrap();
    assert_eq!(asked["peer"], second.as_str(), "{asked}");
    wait_active(&alice, &carol.id);
    alice.cli(&["audit", "verify"]).unwrap().ok().unwrap();
    assert!(aside.join("audit/a.segment").exists(), "the older identity's trail is kept");

    let older = aside.join("keystore.age").display().to_string();
    assert_eq!(refusal(&with(&bob, &["key", "take-back", &older])), (6, "home.locked".into()));
    changed(&mut alice, &["key", "take-back", &older]);
    assert_eq!(alice.id, first);
    wait_active(&bob, &first);
    wait_ended(&bob, &second, "taken its word");
    send(&bob, &first, "to the first again", &alice);
    assert_eq!(inbox(&alice).unwrap().len(), 3);
    for node in [&mut alice, &mut bob, &mut carol] {
        node.down().unwrap();
    }
}

/// The messages of one peer as `openred inbox --from` shows them: text and who.
fn of_peer(node: &Node, peer: &str) -> Vec<(String, String)> {
    let shown = node.cli(&["inbox", "--all", "--peek", "--from", peer]).unwrap().json().unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    shown["messages"].as_array().unwrap().iter().map(|one| (text(&one["text"]), text(&one["peer"]))).collect()
}

#[test]
fn conversations_and_shares_go_on_under_a_new_identity_and_back() {
    let world = World::start().unwrap();
    let (mut alice, mut bob) = world.linked().unwrap();
    let first = alice.id.clone();
    send(&alice, &bob.id, "before", &bob);
    let (file, out) = (world.path().join("report.txt"), world.path().join("out"));
    let [early, late] = ["for alice alone", "for alice later"].map(|text| {
        std::fs::write(&file, text).unwrap();
        let shared = bob.cli(&["share", &file.display().to_string(), "--to", &first]).unwrap().json().unwrap();
        (shared["id"].as_str().unwrap().to_owned(), text)
    });

    // A delivery whose receipt alice lost: her database is set back to before it.
    bob.down().unwrap();
    let queued = alice.cli(&["send", &bob.id, "sent twice"]).unwrap().json().unwrap();
    assert_eq!(queued["state"], "queued", "{queued}");
    alice.down().unwrap();
    let (database, kept) = (alice.home.join("state/node.sqlite"), world.path().join("kept.sqlite"));
    std::fs::copy(&database, &kept).unwrap();
    bob.up().unwrap();
    registered(&bob).unwrap();
    alice.up().unwrap();
    wait_for("the message", || Ok((inbox(&bob)?.len() == 2).then_some(()))).unwrap();
    alice.down().unwrap();
    std::fs::copy(&kept, &database).unwrap();

    let aside = changed(&mut alice, &["key", "rotate", "identity"]);
    let second = alice.id.clone();
    wait_active(&bob, &second);
    // Messages go in order: once this one is there, the repeated one has come before it.
    send(&alice, &bob.id, "after", &bob);
    let all = |peer: &str| ["before", "sent twice", "after"].map(|text| (text.to_owned(), peer.to_owned()));
    for asked in [&first, &second] {
        assert_eq!(of_peer(&bob, asked), all(&second), "one conversation, and nothing twice");
    }
    let fetch = |node: &Node, (id, text): &(String, &str)| {
        let into = ["--force", "--out", &out.display().to_string()].map(str::to_owned);
        let into: Vec<&str> = into.iter().map(String::as_str).collect();
        node.cli(&[&["fetch", &bob.id, id], &into[..]].concat()).unwrap().ok().unwrap();
        assert_eq!(std::fs::read_to_string(&out).unwrap(), *text);
    };
    fetch(&alice, &early);

    // What waits for the second identity is for the first once it has taken its word back.
    alice.down().unwrap();
    assert_eq!(bob.cli(&["send", &second, "for whom it was"]).unwrap().json().unwrap()["state"], "queued");
    let older = aside.join("keystore.age").display().to_string();
    changed(&mut alice, &["key", "take-back", &older]);
    wait_active(&bob, &first);
    wait_for("what waited", || Ok(inbox(&alice)?.iter().any(|text| text == "for whom it was").then_some(()))).unwrap();
    assert_eq!(of_peer(&bob, &first), all(&first));
    assert!(of_peer(&bob, &second).is_empty());
    fetch(&alice, &late);
    for node in [&mut alice, &mut bob] {
        node.down().unwrap();
    }
}

#[test]
fn an_identity_that_somebody_else_succeeded_is_told_so_and_takes_it_back() {
    let world = World::start().unwrap();
    let mut alice = world.node("alice").unwrap();
    let mut bob = world.node("bob").unwrap();
    link(&bob, &alice).unwrap();
    let key = world.path().canonicalize().unwrap().join("stolen").display().to_string();
    with(&alice, &["key", "backup", &key]).ok().unwrap();
    // The thief has the key and its passphrase, and names an identity of his own.
    let mut thief = world.init("thief", "[links]\nincoming = \"open\"\n").unwrap();
    let passphrase = format!("{}.passphrase", thief.home.display());
    std::fs::copy(format!("{}.passphrase", alice.home.display()), &passphrase).unwrap();
    with(&thief, &["key", "restore", &key, "--force"]).ok().unwrap();
    let said = with(&thief, &["key", "rotate", "identity"]).json().unwrap();
    said["node_id"].as_str().unwrap().clone_into(&mut thief.id);
    thief.up().unwrap();
    registered(&thief).unwrap();

    alice.down().unwrap();
    alice.up().unwrap();
    wait_for("the directory's word", || {
        let status = openred_tests::world::status(&alice)?;
        let first = &status["node"]["directories"][0];
        let told =
            first["state"] == "refused" && first["detail"].as_str().is_some_and(|text| text.contains("take-back"));
        Ok(told.then_some(()))
    })
    .unwrap();
    assert_eq!(with(&alice, &["key", "take-back", "--of", "nobody"]).code, 2);
    assert_eq!(with(&alice, &["key", "take-back"]).code, 2, "of whom?");
    let first = alice.id.clone();
    changed(&mut alice, &["key", "take-back", "--of", &thief.id.clone()]);
    assert_eq!(alice.id, first);
    let trail = alice.cli(&["audit", "export"]).unwrap().ok().unwrap().stdout;
    assert_eq!(trail.matches("succession.taken_back").count(), 1, "{trail}");
    alice.cli(&["audit", "verify"]).unwrap().ok().unwrap();
    wait_for("a link with the true node", || {
        alice.cli(&["peers", "ping", &bob.id, "--count", "1"])?.ok()?;
        Ok(Some(()))
    })
    .unwrap();
    thief.down().unwrap();
    thief.up().unwrap();
    wait_for("the thief's refusal", || {
        let status = openred_tests::world::status(&thief)?;
        Ok((status["node"]["directories"][0]["state"] == "refused").then_some(()))
    })
    .unwrap();
    for node in [&mut alice, &mut bob, &mut thief] {
        node.down().unwrap();
    }
}

/// A node of its own, which nobody else knows.
fn alone(folder: &Path, uid_base: u32) -> Node {
    let nowhere = "did:key:z6MkiTBz1ymuepAQ4HEHYSF1H8quG5GLVVQR3djdX3mDooWp@http://127.0.0.1:9";
    Node::init(&folder.canonicalize().unwrap(), "node", nowhere, uid_base, "").unwrap()
}

#[test]
fn each_of_two_keystores_is_opened_with_its_own_secret_and_named_when_it_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let node = alone(folder.path(), 61_600);
    let (home, passphrase) = (node.home.display().to_string(), format!("{}.passphrase", node.home.display()));
    let file = |name: &str, content: &str| {
        let place = folder.path().canonicalize().unwrap().join(name);
        std::fs::write(&place, content).unwrap();
        std::fs::set_permissions(&place, Permissions::from_mode(0o600)).unwrap();
        place.display().to_string()
    };
    let key = age::x25519::Identity::generate();
    let identity = file("identity", key.to_string().expose_secret());
    let said = with(&node, &["key", "rotate", "identity"]).json().unwrap();
    let older = format!("{}/keystore.age", said["replaced"].as_str().unwrap());
    // The one here is sealed to a recipient since.
    let resealed = format!("{home}.key");
    with(&node, &["key", "backup", &resealed, "--recipient", &key.to_public().to_string()]).ok().unwrap();
    node.cli(&["key", "restore", &resealed, "--force", "--identity-file", &identity]).unwrap().ok().unwrap();
    let before = std::fs::read(node.home.join("keystore.age")).unwrap();

    let refused = |arguments: &[&str], about: &str| {
        let answer = node.cli(&[&["key", "take-back", &older], arguments].concat()).unwrap();
        assert!(answer.stderr.contains(&format!("{about}: ")), "{answer:?}");
        assert_eq!(std::fs::read(node.home.join("keystore.age")).unwrap(), before, "nothing is changed");
        refusal(&answer)
    };
    let here = format!("{home}/keystore.age");
    assert_eq!(refused(&["--passphrase-file", &passphrase], &here), (8, "keystore.locked".into()));
    assert_eq!(refused(&["--identity-file", &identity], &older), (8, "keystore.older-locked".into()));
    let wrong = file("wrong", "another\n");
    let both = ["--identity-file", &identity, "--older-passphrase-file"];
    assert_eq!(refused(&[&both[..], &[&wrong]].concat(), &older), (8, "keystore.older-locked".into()));
    let done = node.cli(&[&["key", "take-back", &older], &both[..], &[&passphrase]].concat()).unwrap().json().unwrap();
    assert_eq!(done["node_id"], node.id.as_str());
    // Sealed as the older one was.
    with(&node, &["key", "backup", &format!("{home}.again")]).ok().unwrap();
}

/// Runs a command of the node through a shell that opens descriptors for it.
fn with_descriptors(node: &Node, arguments: &str, descriptors: &str) -> Answer {
    let openred = binaries().unwrap().join("openred");
    let line = format!("exec {} --json --home {} {arguments} {descriptors}", openred.display(), node.home.display());
    run(Path::new("/bin/sh"), &["-c", &line]).unwrap()
}

/// Runs a command of the node at a terminal of its own, answers each prompt with the next text, and gives back what was asked.
fn at_terminal(node: &Node, arguments: &[&str], answers: &[&str]) -> (Answer, Vec<String>) {
    let pty = nix::pty::openpty(None, None).unwrap();
    for end in [&pty.master, &pty.slave] {
        fcntl(end, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).unwrap();
    }
    let child = Command::new("setsid")
        .args(["--ctty", "--wait"])
        .arg(binaries().unwrap().join("openred"))
        .args(["--json", "--home"])
        .arg(&node.home)
        .args(arguments)
        .stdin(Stdio::from(pty.slave))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut terminal = File::from(pty.master);
    let (mut shown, mut asked) = (String::new(), Vec::new());
    for answer in answers {
        let mut byte = [0];
        // Closed when the command has ended without a question.
        while !shown.ends_with(": ") && terminal.read(&mut byte).is_ok_and(|count| count == 1) {
            shown.push(char::from(byte[0]));
        }
        asked.push(std::mem::take(&mut shown).trim().to_owned());
        writeln!(terminal, "{answer}").unwrap();
    }
    let output = child.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    let code = output.status.code().unwrap();
    (Answer { code, stdout: text(output.stdout), stderr: text(output.stderr) }, asked)
}

/// Two keystores with two passphrases: the one that is here, and the older one that it goes on for.
fn of_two_passphrases(folder: &Path, uid_base: u32) -> (Node, String) {
    let node = alone(folder, uid_base);
    let said = with(&node, &["key", "rotate", "identity"]).json().unwrap();
    let place = node.home.join("keystore.age");
    let sealed = std::fs::read(&place).unwrap();
    let (keystore, ..) = Keystore::open(&sealed, b"passphrase of node").unwrap();
    let seal = Seal::Passphrase(SecretString::from("a newer passphrase".to_owned()), WorkFactor::STANDARD);
    std::fs::write(&place, keystore.seal(&seal).unwrap().0).unwrap();
    (node, format!("{}/keystore.age", said["replaced"].as_str().unwrap()))
}

#[test]
fn two_passphrases_come_on_two_descriptors_and_a_wrong_or_missing_one_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let (node, older) = of_two_passphrases(folder.path(), 61_620);
    let top = folder.path().canonicalize().unwrap();
    let file = |name: &str, content: &str| {
        std::fs::write(top.join(name), content).unwrap();
        top.join(name).display().to_string()
    };
    let (old, new) = (file("old", "passphrase of node\n"), file("new", "a newer passphrase\n"));
    let (empty, long) = (file("empty", ""), file("long", &"x".repeat(2000)));
    let before = std::fs::read(node.home.join("keystore.age")).unwrap();
    let take_back = |options: &str, descriptors: &str| {
        with_descriptors(&node, &format!("key take-back {older} {options}"), descriptors)
    };
    let both = "--passphrase-fd 3 --older-passphrase-fd 4";
    let here = node.home.join("keystore.age").display().to_string();
    for (options, descriptors, expected, about) in [
        (both, format!("3<{old} 4<{old}"), (8, "keystore.locked"), here.as_str()),
        (both, format!("3<{new} 4<{new}"), (8, "keystore.older-locked"), older.as_str()),
        (both, format!("3<{old} 4<{new}"), (8, "keystore.locked"), here.as_str()),
        (both, format!("3<{new}"), (2, "usage"), "descriptor 4 is not open"),
        (both, format!("4<{old}"), (2, "usage"), "descriptor 3 is not open"),
        (both, format!("3<{new} 4<{empty}"), (2, "usage"), "descriptor 4: empty"),
        (both, format!("3<{new} 4<{long}"), (2, "usage"), "descriptor 4: longer"),
        (both, format!("3<{new} 4</"), (1, "local"), "descriptor 4: "),
        // Nobody is there to be asked: the older one stays closed.
        ("--passphrase-fd 3", format!("3<{new}"), (8, "keystore.older-locked"), older.as_str()),
        ("--older-passphrase-fd 4", format!("4<{old}"), (2, "usage"), "no passphrase was given"),
        // A passphrase is no identity.
        ("--passphrase-fd 3 --older-identity-fd 4", format!("3<{new} 4<{empty}"), (2, "usage"), "descriptor 4: empty"),
    ] {
        let answer = take_back(options, &descriptors);
        assert_eq!(refusal(&answer), (expected.0, expected.1.into()), "{options} {descriptors}: {answer:?}");
        assert!(answer.stderr.contains(about), "{options} {descriptors}: {answer:?}");
        assert_eq!(std::fs::read(node.home.join("keystore.age")).unwrap(), before, "nothing is changed");
    }
    // One descriptor for both, from which only one can read; and two words for one secret.
    let answer = with_descriptors(
        &node,
        &format!("key take-back {older} --passphrase-fd 3 --older-passphrase-fd 3"),
        "3<<END\na newer passphrase\nEND\n",
    );
    assert_ne!(answer.code, 0, "{answer:?}");
    assert_eq!(take_back("--older-passphrase-fd 4 --older-identity-fd 5", "").code, 2);
    assert_eq!(take_back("--older-passphrase-fd -1", "").code, 2);
    let done = take_back(both, &format!("3<{new} 4<{old}")).json().unwrap();
    assert_eq!(done["node_id"], node.id.as_str());
    with(&node, &["key", "backup", &format!("{}.again", node.home.display())]).ok().unwrap();
}

#[test]
fn two_passphrases_are_asked_for_at_a_terminal_each_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let (node, older) = of_two_passphrases(folder.path(), 61_630);
    let take_back = ["key", "take-back", &older];
    let (answer, asked) = at_terminal(&node, &take_back, &["a newer passphrase", "a wrong one"]);
    assert_eq!(refusal(&answer), (8, "keystore.older-locked".into()), "{answer:?}");
    assert!(asked[0].ends_with("Passphrase:") && asked[1].ends_with(&format!("Passphrase of {older}:")), "{asked:?}");
    let (answer, _) = at_terminal(&node, &take_back, &["a wrong one"]);
    assert_eq!(refusal(&answer), (8, "keystore.locked".into()), "the older one is not asked for in vain: {answer:?}");
    let (answer, asked) = at_terminal(&node, &take_back, &["a newer passphrase", "passphrase of node"]);
    assert_eq!((answer.code, asked.len()), (0, 2), "{answer:?}");
    with(&node, &["key", "backup", &format!("{}.again", node.home.display())]).ok().unwrap();
}

#[test]
fn one_change_of_identity_too_many_without_a_start_is_refused_beforehand() {
    let folder = tempfile::tempdir().unwrap();
    let mut node = alone(folder.path(), 61_610);
    node.up().unwrap();
    node.down().unwrap();
    let rotate = |node: &Node| with(node, &["key", "rotate", "identity"]);
    for _ in 0..4 {
        rotate(&node).ok().unwrap();
    }
    let before = std::fs::read(node.home.join("keystore.age")).unwrap();
    let refused = rotate(&node);
    assert_eq!(refusal(&refused), (6, "keystore.succession".into()));
    assert!(refused.stderr.contains(&node.id) && refused.stderr.contains("openred up"), "{}", refused.stderr);
    assert_eq!(std::fs::read(node.home.join("keystore.age")).unwrap(), before, "nothing is changed");
    node.up().unwrap();
    node.cli(&["audit", "verify"]).unwrap().ok().unwrap();
    node.down().unwrap();
    rotate(&node).ok().unwrap();
    node.up().unwrap();
    node.down().unwrap();
}

#[test]
fn a_rotation_that_is_killed_leaves_a_whole_node_of_one_identity() {
    let world = World::start().unwrap();
    let mut node = world.node("alice").unwrap();
    node.down().unwrap();
    let openred = binaries().unwrap().join("openred");
    let (home, passphrase) = (node.home.display().to_string(), format!("{}.passphrase", node.home.display()));
    let rotate = || {
        Command::new(&openred)
            .args(["--json", "--home", &home, "key", "rotate", "identity", "--passphrase-file", &passphrase])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    };
    let began = Instant::now();
    assert!(rotate().wait().unwrap().success(), "the control: one that is left alone");
    let whole = began.elapsed();
    // Most of it is scrypt, and what is put in place comes at its end: the kills crowd there.
    for share in [10_u32, 50, 80, 90, 94, 96, 98, 100, 102] {
        let mut rotating = rotate();
        std::thread::sleep(whole * share / 100);
        let _ = rotating.kill();
        rotating.wait().unwrap();
        node.up().unwrap_or_else(|error| panic!("killed after {share} %: {error:#}"));
        assert!(node.cli(&["key", "show"]).unwrap().json().unwrap()["key"]["node_id"].is_string());
        let verified: Value = serde_json::from_str(&node.cli(&["audit", "verify"]).unwrap().stdout).unwrap();
        assert_eq!(verified["faults"].as_array().unwrap().len(), 0, "killed after {share} %: {verified}");
        node.down().unwrap();
        let filed = std::fs::read_dir(node.home.join("audit/filed")).unwrap().count();
        assert_eq!(filed, 0, "killed after {share} %: the older identity's are aside");
        std::thread::sleep(Duration::from_millis(1));
    }
}
