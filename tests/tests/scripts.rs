//! The project's scripts where they judge or install: what counts as a passed test program, how two lanes of them run and end, and
//! which Rust is taken.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::Context as _;
use nix::sys::signal::Signal;
use openred_tests::harness::{signal_pid, wait_for};

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("scripts").join(name)
}

/// Written by a process of its own: a child that another test starts meanwhile would inherit our writing descriptor, and a program
/// that is open for writing cannot be started.
fn program(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let text = format!("#!/bin/sh\n{text}\n");
    let write = "printf %s \"$1\" >\"$2\" && chmod 755 \"$2\"";
    let wrote = Command::new("sh").args(["-c", write, "sh", &text]).arg(path).status().unwrap();
    assert!(wrote.success());
}

/// The totals, "passed failed", of one test program that does this.
fn totals(text: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let (test, list, out) = (folder.path().join("test"), folder.path().join("list"), folder.path().join("out"));
    program(&test, text);
    fs::write(&list, format!("{} {}\n", folder.path().display(), test.display())).unwrap();
    let ran = Command::new(script("test")).arg("--programs").args([&list, &out]).arg("").output().unwrap();
    assert!(ran.status.success(), "{ran:?}");
    fs::read_to_string(out.join("totals")).unwrap().trim().to_owned()
}

#[test]
fn a_test_program_counts_only_by_what_it_says() {
    assert_eq!(totals("echo 'test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured'"), "3 0 0");
    assert_eq!(totals("echo 'test result: FAILED. 3 passed; 1 failed; 0 ignored'; exit 101"), "3 1 0");
    assert_eq!(totals("echo 'test result: ok. 3 passed; 0 failed; 2 ignored'"), "3 2 0", "skipped is not passed");
    assert_eq!(totals("echo 'test result: ok. 0 passed; 0 failed; 0 ignored'"), "0 0 0", "there may be none");
    assert_eq!(totals("exit 0"), "0 1 0", "no word is no pass");
    assert_eq!(totals("exit 7"), "0 1 0");
}

/// A disk of its own that is too small, in a mount namespace of the script's.
#[test]
fn on_a_full_disk_the_suite_stops_and_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let (test, list, out) = (folder.path().join("test"), folder.path().join("list"), folder.path().join("out"));
    program(&test, "touch \"$0\".ran; echo 'test result: ok. 1 passed; 0 failed; 0 ignored'");
    fs::write(&list, format!("{} {}\n", folder.path().display(), test.display())).unwrap();
    fs::create_dir(&out).unwrap();
    let run = "mount -t tmpfs -o size=64m tmpfs \"$2\" && \"$0\" --programs \"$1\" \"$2\" '' && cat \"$2/totals\"";
    let ran = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "--propagation", "private", "sh", "-c", run])
        .args([&script("test"), &list, &out])
        .output()
        .unwrap();
    let said = String::from_utf8(ran.stdout).unwrap();
    assert!(said.contains("64 MiB are free") && said.ends_with("\n0 1 0\n"), "{said}{:?}", ran.stderr);
    assert!(!folder.path().join("test.ran").exists());
}

#[test]
fn what_fails_and_passes_when_it_is_run_again_is_counted_and_named() {
    const OK: &str = "echo 'test result: ok. 1 passed; 0 failed; 0 ignored'";
    let first =
        |said: &str| format!("[ -e {{}}.ran ] || {{ touch {{}}.ran; {said}; exit 101; }}").replace("{}", "\"$0\"");
    let named = "echo 'test a::lamp ... FAILED'; echo 'test result: FAILED. 4 passed; 1 failed; 0 ignored'";
    // Asked for by its name, and for nothing else.
    let asked = format!("{}; [ \"$*\" = '--color never --exact a::lamp' ] || exit 3; {OK}", first(named));
    assert_eq!(totals(&asked), "5 0 1");
    assert_eq!(totals(&format!("{named}; exit 101")), "4 1 0", "it fails again");
    assert_eq!(totals(&format!("{}; {OK}", first("true"))), "1 0 1", "it ended without a word: all of it");
    let skipped = format!("{}; {OK}", first("echo 'test result: ok. 4 passed; 0 failed; 1 ignored'"));
    assert_eq!(totals(&skipped), "4 1 0", "skipped stays skipped");
    let (code, said) = ran(&[&asked], &[OK], false);
    assert!(
        code == 0
            && said.ends_with("\n1 of those that passed had failed first (unsteady, above)\n6 passed, 0 failed\n"),
        "{said}"
    );
    assert!(said.contains("unsteady: ") && said.contains("a::lamp"), "{said}");
}

/// The suite's two lanes, each with programs that do this.
fn lanes(folder: &Path, [one, other]: [&[&str]; 2]) -> Command {
    let list = |lane: &str, texts: &[&str]| {
        let path = |number: usize| folder.join(format!("{lane}-{number}"));
        texts.iter().enumerate().for_each(|(number, text)| program(&path(number), text));
        let line = |number: usize| format!("{} {}\n", folder.display(), path(number).display());
        let list = folder.join(format!("{lane}.list"));
        fs::write(&list, (0..texts.len()).map(line).collect::<String>()).unwrap();
        list
    };
    // As in a script's background, which the suite does not let its tests inherit.
    let mut command = Command::new("env");
    command.arg("--ignore-signal=INT").arg(script("test")).arg("--lanes").arg(folder.join("out"));
    command.arg(list("one", one)).arg(list("other", other));
    command
}

/// Exit code and output of two such lanes. They stand in a list that is not there, when `lost`.
fn ran(one: &[&str], other: &[&str], lost: bool) -> (i32, String) {
    let folder = tempfile::tempdir().unwrap();
    let mut lanes = lanes(folder.path(), [one, other]);
    if lost {
        fs::remove_file(folder.path().join("other.list")).unwrap();
    }
    let output = lanes.output().unwrap();
    (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
}

#[test]
fn two_lanes_run_at_once_and_what_fails_in_either_fails_all() {
    // Each goes on when the other is there, which is never when they come one after the other.
    let meets = |own: &str, other: &str| {
        format!(
            "touch {own}; for look in $(seq 600); do [ ! -e {other} ] || exec echo 'test result: ok. 2 passed; 0 failed; 0 ignored'; \
             sleep 0.1; done; exit 1"
        )
    };
    let (one, other) = (meets("here", "there"), meets("there", "here"));
    const BROKEN: &str =
        "echo 'thread a panicked at a lamp'; echo 'test result: FAILED. 1 passed; 1 failed; 0 ignored'; exit 101";
    let (code, said) = ran(&[&one], &[&other], false);
    assert!(code == 0 && said.ends_with("\n4 passed, 0 failed\n"), "{code}: {said}");
    for (first, second) in [(&[&one, BROKEN][..], &[other.as_str()][..]), (&[&one], &[&other, BROKEN])] {
        let (code, said) = ran(first, second, false);
        assert!(code == 1 && said.ends_with("\n5 passed, 1 failed\n"), "{code}: {said}");
        assert!(said.contains("panicked at a lamp"), "its own words are shown: {said}");
    }
    let (code, said) = ran(&["echo 'test result: ok. 2 passed; 0 failed; 0 ignored'"], &[], true);
    assert!(code == 1 && said.ends_with("\n2 passed, 1 failed\n"), "a lane that never came to its end: {code}: {said}");
    assert!(said.contains("the lane other ended before its time"), "{said}");
}

/// A line of a process's status; none when it has ended, whether or not anybody has taken note.
fn status_line(pid: u32, name: &str) -> Option<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let field = |name: &str| Some(status.lines().find_map(|line| line.strip_prefix(name))?.trim().to_owned());
    if field("State:")?.starts_with('Z') { None } else { field(name) }
}

#[test]
fn what_ends_the_suite_ends_both_lanes() {
    const WAITS: &str = "echo $$ >\"$0.pid\"; exec sleep 1000";
    for (signal, code) in [(Signal::SIGINT, 130), (Signal::SIGTERM, 143)] {
        let folder = tempfile::tempdir().unwrap();
        let mut suite = lanes(folder.path(), [&[WAITS], &[WAITS]]).stdout(Stdio::null()).spawn().unwrap();
        let pids = ["one-0.pid", "other-0.pid"].map(|name| {
            let read = || Ok(Some(fs::read_to_string(folder.path().join(name))?.trim().parse::<u32>()?));
            wait_for("a program at work", read).unwrap()
        });
        for pid in pids {
            let ignored = status_line(pid, "SigIgn:").context("it runs").unwrap();
            let ignored = u64::from_str_radix(&ignored, 16).unwrap();
            assert_eq!(ignored >> (Signal::SIGINT as u32 - 1) & 1, 0, "it would not hear SIGINT");
        }
        signal_pid(suite.id(), signal).unwrap();
        assert_eq!(suite.wait().unwrap().code(), Some(code));
        for pid in pids {
            wait_for("its end", || Ok(status_line(pid, "State:").is_none().then_some(()))).unwrap();
        }
    }
}

#[test]
fn a_rust_that_is_too_old_and_not_rustups_gets_rustups_beside_it() {
    let folder = tempfile::tempdir().unwrap();
    let (home, path) = (folder.path().join("home"), folder.path().join("bin"));
    fs::create_dir(&home).unwrap();
    for name in ["cargo", "rustc"] {
        program(&path.join(name), &format!("echo '{name} 1.40.0 (old)'"));
    }
    // What is fetched is a script; this one stands in for rustup's.
    let install = "mkdir -p \"$HOME/.cargo/bin\"; for name in cargo rustc rustup; do \
                   printf '#!/bin/sh\\necho \"'$name' 99.0.0 (new)\"\\n' >\"$HOME/.cargo/bin/$name\"; \
                   chmod 755 \"$HOME/.cargo/bin/$name\"; done";
    program(&path.join("curl"), &format!("cat <<'END'\n{install}\nEND"));
    let prepare = |path: &Path| {
        Command::new("bash")
            .args(["-c", "source \"$0\" && rustc --version && command -v cargo"])
            .arg(script("prepare"))
            .env("HOME", &home)
            .env("PATH", format!("{}:/usr/bin:/bin", path.display()))
            .output()
            .unwrap()
    };
    for _ in 0..2 {
        let ran = prepare(&path);
        let said = String::from_utf8_lossy(&ran.stdout).into_owned();
        assert!(ran.status.success(), "{ran:?}");
        assert!(said.contains("rustc 99.0.0"), "{said}");
        assert!(said.trim().ends_with(home.join(".cargo/bin/cargo").to_str().unwrap()), "{said}");
        // The second time it is there, and nothing is fetched.
        program(&path.join("curl"), "exit 1");
    }
    // An old one of rustup's own is the operator's to update.
    program(&home.join(".cargo/bin/rustc"), "echo 'rustc 1.40.0 (old)'");
    let ran = prepare(&path);
    assert_eq!(ran.status.code(), Some(78), "{ran:?}");
    assert!(String::from_utf8_lossy(&ran.stderr).contains("rustup update"), "{ran:?}");
}

/// What a group of `scripts/check` says of a tree with these documents and one test file; empty when it is content.
fn checked(group: &str, documents: &[(&str, &str)]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    for place in ["scripts", "docs", "tests"] {
        fs::create_dir(path(place)).unwrap();
    }
    for name in ["check", "prepare"] {
        fs::copy(script(name), path("scripts").join(name)).unwrap();
    }
    fs::write(path("Cargo.toml"), "rust-version = \"1.0\"\n").unwrap();
    fs::write(path("tests/a.rs"), "#[test]\nfn iso_one() {}\n#[test]\nfn two() {}\n").unwrap();
    for &(name, text) in documents {
        fs::write(path(name), text).unwrap();
    }
    for name in ["cargo", "rustc"] {
        program(&path("bin").join(name), &format!("echo '{name} 99.0.0 (new)'")); // it builds nothing
    }
    let mut check = Command::new("bash");
    check
        .arg(path("scripts/check"))
        .arg(group)
        .env("PATH", format!("{}:/usr/bin:/bin", path("bin").display()))
        .env_remove("CARGO_TARGET_DIR");
    let ran = check.output().unwrap();
    let said = String::from_utf8_lossy(&ran.stdout).into_owned();
    assert_eq!(ran.status.success(), said.is_empty(), "{said} {ran:?}");
    said
}

fn isolation(ledger: &str) -> String {
    checked("isolation", &[("docs/isolation.md", ledger)])
}

#[test]
fn a_claim_without_a_test_and_a_test_without_a_claim_are_offences() {
    const GOOD: &str = "| ISO-A-01 | It holds. | `tests/a.rs::iso_one` | `tests/a.rs::two` |\n";
    assert_eq!(isolation(GOOD), "");
    let refused = [
        ("`tests/a.rs::two`", "", "ISO-A-01 has no control"),
        ("`tests/a.rs::two`", "`tests/a.rs::three`", "its control tests/a.rs::three does not exist"),
        ("`tests/a.rs::two`", "`tests/b.rs::two`", "its control tests/b.rs::two does not exist"),
        ("`tests/a.rs::iso_one`", "by hand", "ISO-A-01 has no probe"),
        ("tests/a.rs::iso_one", "tests/a.rs::two", "no claim for the test iso_one"),
        ("It holds.", "", "ISO-A-01 says nothing"),
        ("ISO-A-01", "ISO-A", "is no id"),
    ];
    for (from, to, says) in refused {
        let said = isolation(&GOOD.replace(from, to));
        assert!(said.contains(says), "{to}: {said}");
    }
    assert!(isolation(&GOOD.repeat(2)).contains("stands more than once"));
    assert!(isolation("# Nothing\n").contains("holds no claim"));
}

#[test]
fn a_threat_without_a_test_or_a_reason_is_an_offence() {
    const LEDGER: &str = "| ISO-A-01 | It holds. | `tests/a.rs::iso_one` | `tests/a.rs::two` |\n";
    const SECURITY: &str =
        "| M-01 | It holds (ISO-A-01). | `tests/a.rs::two` |\n| N-01 | It does not. | No test: nobody can. |\n";
    const THREATS: &str = "### C-01 A thing\n\n| C-01.1 | C-01 yields something: N-01. | `tests/a.rs::iso_one` |\n";
    let said = |security: &str| {
        let documents = [("docs/isolation.md", LEDGER), ("SECURITY.md", security), ("docs/threat-model.md", THREATS)];
        checked("documents", &documents)
    };
    assert_eq!(said(SECURITY), "");
    let promised = [
        ("docs/isolation.md", LEDGER),
        ("SECURITY.md", SECURITY),
        ("docs/threat-model.md", THREATS),
        ("docs/protocol.md", "| It holds. | tests/a.rs::two, tests/a.rs::three |\n"),
    ];
    assert!(checked("documents", &promised).contains("docs/protocol.md: the test tests/a.rs::three does not exist"));
    let refused = [
        ("`tests/a.rs::two`", "`tests/a.rs::three`", "the test tests/a.rs::three does not exist"),
        ("`tests/a.rs::two`", "by hand", "M-01 names no test and no reason"),
        ("No test: nobody can.", "No test:", "N-01 names no test and no reason"),
        ("ISO-A-01", "ISO-A-02", "ISO-A-02 is no claim of docs/isolation.md"),
        ("N-01", "N-02", "docs/threat-model.md: N-01 is named and does not stand anywhere"),
        ("It does not.", "", "N-01 says nothing"),
        ("M-01", "M-1", "M-1 is no id"),
    ];
    for (from, to, says) in refused {
        let answer = said(&SECURITY.replace(from, to));
        assert!(answer.contains(says), "{to}: {answer}");
    }
    assert!(said(&SECURITY.repeat(2)).contains("M-01 stands more than once"));
    assert!(said("# Nothing\n").contains("SECURITY.md: holds no numbered line"));
}
