//! A message from end to end with real processes: what it names is fetched, and that it was read is told, whatever is killed between.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;
use openred_tests::harness::{Node, binaries, run, signal_pid, wait_for};
use openred_tests::world::World;
use serde_json::Value;

fn shown(node: &Node, arguments: &[&str]) -> anyhow::Result<Vec<Value>> {
    let answer = node.cli(arguments)?.json()?;
    Ok(answer["messages"].as_array().cloned().unwrap_or_default())
}

/// Ends a process of the node and waits until another has taken its place and answers.
fn kill(node: &Node, name: &str) {
    let pid = node.child_pid(name).unwrap();
    signal_pid(pid, Signal::SIGKILL).unwrap();
    wait_for("the next one", || {
        let is_new = node.child_pid(name).is_ok_and(|next| next != pid);
        Ok((is_new && node.cli(&["sent"])?.code == 0).then_some(()))
    })
    .unwrap();
}

#[test]
fn a_message_with_a_file_is_fetched_and_read_and_its_sender_knows_whatever_is_killed() {
    let world = World::start().unwrap();
    let (alice, bob) = world.linked().unwrap();
    let (path, into) = (world.path().join("a report.txt"), world.path().join("downloads"));
    fs::write(&path, "the report").unwrap();
    fs::create_dir(&into).unwrap();
    let sent = alice.cli(&["send", &bob.id, "see this", "--attach", path.to_str().unwrap()]).unwrap().json().unwrap();
    assert_eq!(sent["attachments"][0]["name"], "a report.txt");
    kill(&alice, "module messaging");
    let message = wait_for("the message", || Ok(shown(&bob, &["inbox", "--peek"])?.pop())).unwrap();
    assert_eq!((&message["text"], &message["state"]), (&"see this".into(), &"unread".into()));
    let file = &message["attachments"][0];
    assert_eq!((&file["id"], &file["length"]), (&sent["attachments"][0]["id"], &10.into()));
    // The command is there to be copied; run as it stands.
    let home = bob.home.display().to_string();
    let told = run(&binaries().unwrap().join("openred"), &["--home", &home, "inbox", "--peek"]).unwrap().ok().unwrap();
    let command = told.stdout.lines().find_map(|line| line.trim().strip_prefix("openred ")).unwrap();
    let mut words: Vec<&str> = command.split(' ').collect();
    *words.last_mut().unwrap() = into.to_str().unwrap();
    kill(&bob, "module files");
    wait_for("the file", || Ok((bob.cli(&words)?.code == 0).then_some(()))).unwrap();
    assert_eq!(fs::read_to_string(into.join("a report.txt")).unwrap(), "the report");
    let state = |node: &Node| {
        Ok::<_, anyhow::Error>(shown(node, &["sent", "--to", &bob.id])?.pop().map(|one| one["state"].clone()))
    };
    wait_for("its delivery", || Ok((state(&alice)? == Some("delivered".into())).then_some(()))).unwrap();

    // What could not be printed was not read.
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let mut printing = Command::new(binaries().unwrap().join("openred"));
    let printing = printing.args(["--home", &home, "inbox"]).stdin(Stdio::null()).stdout(full).stderr(Stdio::null());
    assert_eq!(printing.status().unwrap().code(), Some(9));
    assert_eq!(shown(&bob, &["inbox", "--peek"]).unwrap()[0]["state"], "unread");

    // Read while the sender cannot hear of it; then the reader's processes end, and the sender's.
    let noded = alice.child_pid("noded").unwrap();
    signal_pid(noded, Signal::SIGSTOP).unwrap();
    assert_eq!(shown(&bob, &["inbox"]).unwrap().len(), 1);
    kill(&bob, "module messaging");
    kill(&bob, "noded");
    // Its supervisor may have been quicker.
    let _ = signal_pid(noded, Signal::SIGKILL);
    wait_for("the next noded", || {
        let is_new = alice.child_pid("noded").is_ok_and(|next| next != noded);
        Ok((is_new && alice.cli(&["sent"])?.code == 0).then_some(()))
    })
    .unwrap();
    wait_for("the word that it was read", || Ok((state(&alice)? == Some("read".into())).then_some(()))).unwrap();
    kill(&alice, "module messaging");
    let message = shown(&alice, &["conversations", &bob.id]).unwrap().pop().unwrap();
    assert_eq!(message["state"], "read");
    assert!(message["read_at"].is_u64() && message["delivered_at"].is_u64(), "{message}");
    let lines = bob.cli(&["conversations"]).unwrap().json().unwrap();
    assert_eq!((&lines["conversations"][0]["unread"], &lines["conversations"][0]["received"]), (&0.into(), &1.into()));
}

#[test]
fn the_operators_settings_reach_messaging_and_silence_it() {
    let world = World::start().unwrap();
    let alice = world.node("alice").unwrap();
    let mut bob =
        world.init("bob", "[links]\nincoming = \"open\"\n[module.messaging]\nread_receipts = false\n").unwrap();
    bob.up().unwrap();
    openred_tests::world::registered(&bob).unwrap();
    openred_tests::world::link(&alice, &bob).unwrap();
    alice.cli(&["send", &bob.id, "one"]).unwrap().ok().unwrap();
    wait_for("the message", || Ok(shown(&bob, &["inbox"])?.pop())).unwrap();
    alice.cli(&["send", &bob.id, "two"]).unwrap().ok().unwrap();
    let place = bob.home.join("openred.toml");
    let text = fs::read_to_string(&place).unwrap();
    // A value that is none is refused by name, and the one before stays.
    fs::write(&place, text.replace("read_receipts = false", "retention_of = \"some\"")).unwrap();
    let refused = bob.cli(&["check"]).unwrap();
    assert!(refused.stdout.contains("module.messaging.retention_of"), "{refused:?}");
    fs::write(&place, text.replace("read_receipts = false", "read_receipts = true")).unwrap();
    signal_pid(bob.daemon().unwrap().pid(), Signal::SIGHUP).unwrap();
    wait_for("the settings in force", || {
        alice.cli(&["send", &bob.id, "again"])?.ok()?;
        shown(&bob, &["inbox"])?;
        Ok(shown(&alice, &["sent"])?.iter().any(|message| message["state"] == "read").then_some(()))
    })
    .unwrap();
    let first = shown(&alice, &["sent"]).unwrap().swap_remove(0);
    assert_eq!(
        (&first["text"], &first["state"]),
        (&"one".into(), &"delivered".into()),
        "what was read in silence stays so"
    );
}
