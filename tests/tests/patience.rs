//! What opens keystores and backups is not waited for without end: helpers that were stopped in the middle of their work, and pipes
//! into which nobody writes. Each is ended after `keys.patience_seconds`, by name, and leaves nothing behind.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs::{self, File, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use age::secrecy::SecretString;
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use openred_cryptod::unseal::Keystore;
use openred_cryptod::unseal::envelope::{Seal, WorkFactor};
use openred_tests::harness::{Answer, Daemon, Node, binaries, passphrase, refusal, signal_pid, wait_for};

/// A base of uids that no other test of this suite uses.
const UID_BASE: u32 = 61_800;
/// Long enough for a helper to be seen at work on a loaded machine.
const PATIENCE: &str = "keys.patience_seconds=5";
/// Kilobytes that a helper has once it is at scrypt, and long past its barrier.
const AT_WORK: u64 = 32 * 1024;

fn node(folder: &Path, step: u32) -> Node {
    let nowhere = "did:key:z6MkiTBz1ymuepAQ4HEHYSF1H8quG5GLVVQR3djdX3mDooWp@http://127.0.0.1:9";
    Node::init(&folder.canonicalize().unwrap(), "node", nowhere, UID_BASE + 10 * step, "").unwrap()
}

/// The same key behind the most work that is accepted, which takes about a second.
fn made_dear(node: &Node) {
    let place = node.home.join("keystore.age");
    let secret = "passphrase of node";
    let (keystore, ..) = Keystore::open(&fs::read(&place).unwrap(), secret.as_bytes()).unwrap();
    let seal = Seal::Passphrase(SecretString::from(secret.to_owned()), WorkFactor::MOST);
    fs::write(&place, keystore.seal(&seal).unwrap().0).unwrap();
    fs::set_permissions(&place, Permissions::from_mode(0o600)).unwrap();
}

fn started(node: &Node, arguments: &[&str]) -> std::process::Child {
    Command::new(binaries().unwrap().join("openred"))
        .args(["--json", "--set", PATIENCE, "--home"])
        .arg(&node.home)
        .args(arguments)
        .args(["--passphrase-file", &passphrase(node)])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn ended(child: std::process::Child) -> Answer {
    let output = child.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Answer { code: output.status.code().unwrap(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

/// Stops the helper of a command once it is at its work in this mode; its process id.
fn stop_helper(of: u32, mode: &str) -> u32 {
    wait_for("a helper at work", || {
        for entry in fs::read_dir("/proc")?.flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
            let Ok(status) = fs::read_to_string(entry.path().join("status")) else { continue };
            let field = |name: &str| {
                let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
                line.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or_default()
            };
            if field("PPid:") != u64::from(of) || field("VmHWM:") < AT_WORK {
                continue;
            }
            let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            if command.split(|byte| *byte == 0).any(|word| word == mode.as_bytes()) {
                signal_pid(pid, Signal::SIGSTOP)?;
                return Ok(Some(pid));
            }
        }
        Ok(None)
    })
    .unwrap()
}

fn is_gone(pid: u32) -> bool {
    !Path::new(&format!("/proc/{pid}")).exists()
}

#[test]
fn a_helper_that_was_stopped_at_a_keystore_is_ended_and_the_keystore_still_opens() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().canonicalize().unwrap();
    let node = node(&place, 0);
    made_dear(&node);
    let key = place.join("key").display().to_string();
    let command = started(&node, &["key", "backup", &key]);
    let helper = stop_helper(command.id(), "rewrap");
    let answer = ended(command);
    assert_eq!(refusal(&answer), (7, "unseal.late".into()), "{answer:?}");
    assert!(answer.stderr.contains("within 5 s") && answer.stderr.contains("keys.patience_seconds"), "{answer:?}");
    assert!(is_gone(helper) && !Path::new(&key).exists());
    // The control: left alone, and with the time that is the default.
    node.cli(&["key", "backup", &key, "--passphrase-file", &passphrase(&node)]).unwrap().ok().unwrap();
}

#[test]
fn a_start_whose_helper_was_stopped_ends_and_the_next_one_serves() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().canonicalize().unwrap();
    let mut node = node(&place, 1);
    made_dear(&node);
    let (home, secret) = (node.home.display().to_string(), passphrase(&node));
    let up = ["--home", &home, "--set", PATIENCE, "up", "--passphrase-file", &secret];
    let mut daemon = Daemon::start(&binaries().unwrap().join("openred"), &up, &place.join("up.log")).unwrap();
    let helper = stop_helper(daemon.pid(), "open");
    let code = wait_for("the end of the start", || daemon.ended()).unwrap();
    let said = daemon.output();
    assert!(code == 7 && said.contains("keys.patience_seconds"), "{code}: {said}");
    assert!(is_gone(helper));
    node.up_without_answers().unwrap();
    node.down().unwrap();
}

#[test]
fn a_helper_that_was_stopped_at_a_backup_is_ended_and_nothing_is_left_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().canonicalize().unwrap();
    let node = node(&place, 2);
    let blobs = node.home.join("state/blobs/files");
    fs::create_dir_all(&blobs).unwrap();
    // Seconds of work, so that it is met in the middle of it.
    File::create(blobs.join("long.data")).unwrap().set_len(160 << 20).unwrap();
    let whole = place.join("backup").display().to_string();
    let command = started(&node, &["backup", "create", &whole]);
    let helper = stop_helper(command.id(), "encrypt");
    let answer = ended(command);
    assert_eq!(refusal(&answer), (7, "unseal.late".into()), "{answer:?}");
    assert!(answer.stderr.contains("nothing moved for 5 s"), "{answer:?}");
    assert!(is_gone(helper) && !Path::new(&whole).exists() && !place.join("backup.new").exists());
}

#[test]
fn a_pipe_that_nobody_writes_into_or_that_dries_up_is_not_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().canonicalize().unwrap();
    let node = node(&place, 3);
    let (whole, pipe) = (place.join("backup").display().to_string(), place.join("pipe"));
    let secret = passphrase(&node);
    node.cli(&["backup", "create", &whole, "--passphrase-file", &secret]).unwrap().ok().unwrap();
    nix::unistd::mkfifo(&pipe, Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
    let verify = ["backup", "verify", pipe.to_str().unwrap()];
    let answer = ended(started(&node, &verify));
    assert_eq!(refusal(&answer), (7, "backup.late".into()), "{answer:?}");
    assert!(answer.stderr.contains("keys.patience_seconds"), "{answer:?}");

    let content = fs::read(&whole).unwrap();
    let command = started(&node, &verify);
    let mut writer = File::options().write(true).open(&pipe).unwrap();
    writer.write_all(&content[..content.len() / 2]).unwrap();
    let answer = ended(command);
    assert_eq!(refusal(&answer), (7, "unseal.late".into()), "{answer:?}");
    drop(writer);

    // The control: one that is written to its end is a backup like another.
    let command = started(&node, &verify);
    let mut writer = File::options().write(true).open(&pipe).unwrap();
    writer.write_all(&content).unwrap();
    drop(writer);
    assert_eq!(ended(command).json().unwrap()["verified"], true);
    // And a keystore is none.
    let refused = ended(started(&node, &["key", "restore", pipe.to_str().unwrap(), "--force"]));
    assert_eq!(refusal(&refused), (5, "keystore.kind".into()), "{refused:?}");
}
