//! `scripts/install` into a root of its own: what it puts there works, and what it takes away leaves nothing of ours but state.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use openred_tests::harness::{Daemon, binaries, free_port, is_root, run, wait_for};

/// As root: uid of a foreign program that is started, which no other test of this suite uses.
const LAUNCHED: u32 = 61_930;

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("scripts/install")
}

fn install(arguments: &[&str]) -> Output {
    Command::new(script()).args(arguments).env_remove("CARGO_TARGET_DIR").output().unwrap()
}

fn installed(root: &str) -> String {
    let programs = binaries().unwrap();
    let ran = install(&["--destdir", root, "--binaries", programs.to_str().unwrap()]);
    assert!(ran.status.success(), "{ran:?}");
    String::from_utf8(ran.stdout).unwrap()
}

/// Every file and folder below `root`, without it.
fn tree(root: &Path) -> BTreeSet<String> {
    let (mut found, mut waiting) = (BTreeSet::new(), vec![root.to_owned()]);
    while let Some(folder) = waiting.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            found.insert(entry.path().strip_prefix(root).unwrap().display().to_string());
            if entry.file_type().unwrap().is_dir() {
                waiting.push(entry.path());
            }
        }
    }
    found
}

#[test]
fn what_is_installed_works_and_goes_away_again() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("root").display().to_string();
    let root_path = Path::new(&root);
    let said = installed(&root);
    let first = tree(root_path);
    for expected in [
        "usr/local/lib/openred/cryptod-unseal",
        "usr/local/bin/openred",
        "usr/local/share/man/man1/openred-up.1",
        "usr/local/share/doc/openred/operations.md",
        "etc/systemd/system/directory.socket",
    ] {
        assert!(first.contains(expected), "{expected} is missing: {first:?}");
        assert!(said.contains(expected), "it did not say that it put {expected} there: {said}");
    }
    let unit = fs::read_to_string(root_path.join("etc/systemd/system/openred.service")).unwrap();
    assert!(unit.contains("ExecStart=/usr/local/lib/openred/openred up"), "{unit}");
    // All that a node and a directory start, and nothing that only tests need.
    let lib = "usr/local/lib/openred/";
    let programs: BTreeSet<&str> = first.iter().filter_map(|path| path.strip_prefix(lib)).collect();
    let ours = ["openred", "noded", "cryptod", "cryptod-vault", "cryptod-unseal", "openred-launch", "directory"];
    let modules = ["openred-messaging", "openred-files", "openred-monitor", "openred-auth", "openred-conformance"];
    assert_eq!(programs, ours.into_iter().chain(modules).chain(["installed"]).collect());
    // An installed program finds the others beside itself, by its link too: `init` seals an identity in a caged process.
    let home = root_path.join("var/lib/openred");
    let passphrase = folder.path().join("passphrase");
    fs::write(&passphrase, "p\n").unwrap();
    fs::set_permissions(&passphrase, fs::Permissions::from_mode(0o600)).unwrap();
    let (home_text, passphrase) = (home.display().to_string(), passphrase.display().to_string());
    let openred = root_path.join("usr/local/bin/openred");
    let init = ["--json", "--home", &home_text, "init", "--name", "n", "--passphrase-file", &passphrase];
    let made = run(&openred, &init).unwrap().json().unwrap();
    assert!(made["node_id"].as_str().unwrap().starts_with("did:key:"), "{made}");
    // Again over itself: the same files, and the state stays.
    installed(&root);
    assert!(tree(root_path).is_superset(&first));
    let gone = install(&["--destdir", &root, "--uninstall"]);
    assert!(gone.status.success(), "{gone:?}");
    let left = tree(root_path);
    assert!(left.contains("var/lib/openred/keystore.age"), "{left:?}");
    let ours = |path: &&String| !["var", "etc"].contains(&path.split('/').next().unwrap());
    assert_eq!(left.iter().find(ours), None, "{left:?}");
    assert!(!left.iter().any(|path| path.contains("systemd")), "{left:?}");
    // Nothing is listed any more, so nothing can be taken away; and with --purge state and configuration go.
    let again = install(&["--destdir", &root, "--uninstall"]);
    assert_eq!(again.status.code(), Some(4), "{again:?}");
    installed(&root);
    assert!(install(&["--destdir", &root, "--uninstall", "--purge"]).status.success());
    assert_eq!(tree(root_path), BTreeSet::new());
}

#[test]
fn a_directory_serves_from_where_it_was_installed() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("root").display().to_string();
    installed(&root);
    let directory = Path::new(&root).join("usr/local/bin/directory");
    let (home, listen) = (folder.path().join("home").display().to_string(), free_port().unwrap());
    run(&directory, &["--home", &home, "init", "--listen", &listen.to_string()]).unwrap().ok().unwrap();
    let daemon = Daemon::start(&directory, &["--home", &home, "serve"], &folder.path().join("log")).unwrap();
    wait_for("its answer", || {
        let mut stream = TcpStream::connect(listen)?;
        stream.write_all(b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer.starts_with("HTTP/1.1 ").then_some(()))
    })
    .unwrap();
    assert_eq!(daemon.stop().unwrap(), 0);
}

/// The launcher that is installed starts a foreign program in its cage; who asks it is a supervisor of the tests.
#[test]
fn the_installed_launcher_starts_a_foreign_program() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("root").display().to_string();
    installed(&root);
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let (state, supervisor) =
        (folder.path().join("state"), folder.path().join("root/usr/local/lib/openred/supervisor"));
    fs::create_dir(&state).unwrap();
    let uid = if is_root() { LAUNCHED.to_string() } else { String::from("none") };
    if is_root() {
        chown(&state, Some(LAUNCHED), Some(LAUNCHED)).unwrap();
    }
    // By a process of its own: a child that another test forks meanwhile would keep it open for writing.
    let copied = Command::new("cp").arg(binaries().unwrap().join("openred-cage-foreign")).arg(&supervisor).status();
    assert!(copied.unwrap().success());
    for (how, said) in [("right", Some("hello\n")), ("wrong", None)] {
        let state = state.display().to_string();
        let line = run(&supervisor, &["launch", how, &uid, &state, "/bin/cat"]).unwrap().json().unwrap();
        assert_eq!(line["said"].as_str().filter(|said| !said.is_empty()), said, "{how}: {line}");
        assert_eq!(line["failed"].is_string(), said.is_none(), "{how}: {line}");
    }
}

#[test]
fn what_was_there_before_stays() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("root");
    let config = root.join("etc/openred/directory.toml");
    let other = root.join("usr/local/lib/openred/of-somebody-else");
    for file in [&config, &other] {
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, "mine").unwrap();
    }
    installed(root.to_str().unwrap());
    assert!(install(&["--destdir", root.to_str().unwrap(), "--uninstall"]).status.success());
    for file in [&config, &other] {
        assert_eq!(fs::read_to_string(file).unwrap(), "mine");
    }
}

#[test]
fn an_ordinary_user_is_told_what_to_do() {
    // As root another word for who one is stands in front; as an ordinary user it is so.
    let folder = tempfile::tempdir().unwrap();
    let id = folder.path().join("id");
    fs::write(&id, "#!/bin/sh\necho 1000\n").unwrap();
    fs::set_permissions(&id, fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:/usr/bin:/bin", folder.path().display());
    for arguments in [&[][..], &["--uninstall"], &["--prefix", "/opt/openred"]] {
        let refused = Command::new(script()).args(arguments).env("PATH", &path).output().unwrap();
        assert_eq!(refused.status.code(), Some(5), "{refused:?}");
        let said = String::from_utf8(refused.stderr).unwrap();
        assert!(said.contains("--user") && said.contains("--destdir") && said.lines().count() == 1, "{said}");
    }
    // For himself alone: programs and no units.
    let home = folder.path().join("home");
    fs::create_dir(&home).unwrap();
    let own = |arguments: &[&str]| {
        Command::new(script()).args(arguments).env("PATH", &path).env("HOME", &home).output().unwrap()
    };
    let ran = own(&["--user", "--binaries", binaries().unwrap().to_str().unwrap()]);
    assert!(ran.status.success(), "{ran:?}");
    run(&home.join(".local/bin/openred"), &["version"]).unwrap().ok().unwrap();
    assert!(!tree(&home).iter().any(|path| path.ends_with(".service")));
    assert!(own(&["--user", "--uninstall"]).status.success());
    assert_eq!(tree(&home), BTreeSet::new());
}

#[test]
fn what_makes_no_sense_is_refused_before_anything_is_made() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("root").display().to_string();
    for (arguments, code) in [
        (&["--destdir"][..], 2),
        (&["--nonsense"], 2),
        (&["--purge", "--destdir", &root], 2),
        (&["--user", "--prefix", "/x"], 2),
        (&["--destdir", &root, "--binaries", "/nonexistent"], 4),
        (&["--destdir", &root, "--uninstall"], 4),
    ] {
        let refused = install(arguments);
        assert_eq!(refused.status.code(), Some(code), "{arguments:?} {refused:?}");
        assert!(!Path::new(&root).exists());
    }
}
