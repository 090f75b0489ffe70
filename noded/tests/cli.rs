//! The command line from outside: golden files for help, refusals and answers that need no daemon, and exit codes. The files in
//! `golden/` are what a user sees; `OPENRED_GOLDEN=write cargo test -p openred-node --test cli` writes them anew.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

const OPENRED: &str = env!("CARGO_BIN_EXE_openred");

fn openred(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(OPENRED)
        .args(arguments)
        .current_dir(folder)
        .env_clear()
        .env("HOME", folder)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

/// Both streams and the code as one text, with the test's own folder named `DIR`.
fn shown(folder: &Path, arguments: &[&str]) -> String {
    let output = openred(folder, arguments);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).replace(&folder.display().to_string(), "DIR");
    let mut shown = format!("$ openred {}\n{}", arguments.join(" "), text(&output.stdout));
    for line in text(&output.stderr).lines() {
        shown.push_str(&format!("! {line}\n"));
    }
    shown.push_str(&format!("exit {}\n", code(&output)));
    shown.replace(&folder.display().to_string(), "DIR")
}

fn golden(name: &str, actual: &str) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("OPENRED_GOLDEN").is_some_and(|value| value == "write") {
        fs::write(&path, actual).unwrap();
        return;
    }
    let expected = fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(actual, expected, "{} differs; see the first lines of this file", path.display());
}

fn folder() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().canonicalize().unwrap();
    (folder, path)
}

#[test]
fn help_of_every_command_is_golden_and_fits_80_columns() {
    let (_guard, folder) = folder();
    let commands: [&[&str]; 70] = [
        &[],
        &["init"],
        &["up"],
        &["status"],
        &["top"],
        &["doctor"],
        &["key"],
        &["key", "show"],
        &["key", "unlock"],
        &["key", "rotate"],
        &["key", "backup"],
        &["key", "restore"],
        &["backup"],
        &["backup", "create"],
        &["backup", "verify"],
        &["backup", "restore"],
        &["link"],
        &["link", "request"],
        &["link", "direct"],
        &["link", "accept"],
        &["link", "offers"],
        &["link", "refuse"],
        &["link", "list"],
        &["link", "show"],
        &["link", "revoke"],
        &["module"],
        &["module", "new"],
        &["module", "dev"],
        &["module", "install"],
        &["module", "approve"],
        &["module", "enable"],
        &["module", "disable"],
        &["module", "remove"],
        &["module", "swap"],
        &["module", "rollback"],
        &["module", "generations"],
        &["module", "list"],
        &["module", "show"],
        &["module", "audit"],
        &["module", "call"],
        &["module", "trust"],
        &["module", "distrust"],
        &["module", "trusted"],
        &["module", "logs"],
        &["module", "release"],
        &["module", "key"],
        &["module", "sign"],
        &["peers"],
        &["peers", "allow"],
        &["peers", "deny"],
        &["peers", "ping"],
        &["send"],
        &["inbox"],
        &["sent"],
        &["conversations"],
        &["share"],
        &["fetch"],
        &["files"],
        &["files", "list"],
        &["files", "link"],
        &["audit"],
        &["audit", "tail"],
        &["audit", "verify"],
        &["audit", "export"],
        &["audit", "digest"],
        &["check"],
        &["config"],
        &["config", "show"],
        &["completions"],
        &["man"],
    ];
    let mut all = String::new();
    for command in commands {
        let arguments = [command, &["--help"]].concat();
        all.push_str(&shown(&folder, &arguments));
        all.push('\n');
    }
    assert!(!all.contains("\u{1b}["), "no colour without a terminal");
    for line in all.lines() {
        assert!(line.chars().count() <= 80, "{line}");
    }
    golden("help.txt", &all);
}

#[test]
fn refusals_name_what_why_and_the_way_out() {
    let (_guard, folder) = folder();
    fs::create_dir(folder.join("home")).unwrap();
    let home = folder.join("home").display().to_string();
    let did = "did:key:z6MkiTBz1ymuepAQ4HEHYSF1H8quG5GLVVQR3djdX3mDooWp";
    let cases: Vec<Vec<&str>> = vec![
        vec!["--home", "missing", "status"],
        vec!["--home", &home, "status"],
        vec!["--home", &home, "link", "list"],
        vec!["--home", &home, "send", did, "x"],
        vec!["--home", &home, "send", "somebody", "x"],
        vec!["--home", &home, "up"],
        vec!["--home", &home, "--set", "name", "config", "show"],
        vec!["--home", &home, "init"],
        vec!["--home", &home, "init", "--passphrase-file", "missing"],
        vec!["--home", &home, "share", "missing"],
        vec!["--home", "/an/extremely/long/name/of/a/home/directory/that/no/socket/address/can/hold/at/all", "status"],
        vec!["--home", &home, "--json", "status"],
        vec!["frobnicate"],
    ];
    let all: String = cases.iter().map(|case| shown(&folder, case) + "\n").collect();
    golden("refusals.txt", &all);
}

#[test]
fn a_configuration_is_refused_with_line_caret_and_the_nearest_key() {
    let (_guard, folder) = folder();
    fs::write(folder.join("good.toml"), "name = \"alice\"\n").unwrap();
    fs::write(folder.join("typo.toml"), "name = \"alice\"\n\n[links]\nincomming = \"ask\"\n").unwrap();
    fs::write(folder.join("range.toml"), "[links]\nlife_seconds = 2592001\n").unwrap();
    fs::write(folder.join("auditor.toml"), "[audit]\nauditor = \"age1nobody\"\n").unwrap();
    fs::write(folder.join("directory.toml"), "directories = [\"https://directory.example\"]\n").unwrap();
    let list = |ids: &str| format!("[links]\nincoming = \"allow-list\"\nallow = [{ids}]\n");
    let did = "\"did:key:z6MkiTBz1ymuepAQ4HEHYSF1H8quG5GLVVQR3djdX3mDooWp\"";
    fs::write(folder.join("twice.toml"), list(&format!("{did}, {did}"))).unwrap();
    fs::write(folder.join("nobody.toml"), list(&format!("{did}, \"did:key:z6Mkalice\""))).unwrap();
    fs::write(folder.join("unused.toml"), list(did).replace("allow-list", "ask")).unwrap();
    let mut all = String::new();
    for case in [
        vec!["check", "good.toml"],
        vec!["check", "typo.toml"],
        vec!["check", "range.toml"],
        vec!["check", "directory.toml"],
        vec!["check", "auditor.toml"],
        vec!["check", "twice.toml"],
        vec!["check", "nobody.toml"],
        vec!["check", "unused.toml"],
        vec!["check", "missing.toml"],
        vec!["check", "good.toml", "typo.toml"],
        vec!["--json", "check", "good.toml", "typo.toml"],
        vec!["--config", "good.toml", "config", "show", "--origin"],
        vec!["--config", "good.toml", "--set", "log.level=loud", "config", "show"],
    ] {
        all.push_str(&shown(&folder, &case));
        all.push('\n');
    }
    golden("check.txt", &all);
    let mut command = Command::new(OPENRED);
    let output = command.args(["--config", "good.toml", "--json", "config", "show"]).current_dir(&folder);
    let output = output.env_clear().env("HOME", &folder).env("OPENRED_LINKS_LIFE_SECONDS", "48").output().unwrap();
    let shown: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(shown["schema"], "openred.config/1");
    assert_eq!(shown["settings"]["links.life_seconds"]["value"], 48);
    assert_eq!(shown["settings"]["links.life_seconds"]["origin"], "environment");
    assert_eq!(shown["settings"]["name"]["origin"], "file");
}

#[test]
fn the_shipped_example_passes_check() {
    let (_guard, folder) = folder();
    let example = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src/config/openred.toml");
    let output = openred(&folder, &["check", &example.display().to_string()]);
    assert_eq!(code(&output), 0, "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_mistake_at_init_leaves_nothing_behind() {
    let (_guard, folder) = folder();
    let passphrase = folder.join("passphrase");
    fs::write(&passphrase, "x\n").unwrap();
    let place = passphrase.display().to_string();
    let init = |extra: &[&str]| {
        let mut arguments = vec!["--home", "node", "init", "--passphrase-file", &place];
        arguments.extend(extra);
        openred(&folder, &arguments)
    };
    fs::set_permissions(&passphrase, fs::Permissions::from_mode(0o644)).unwrap();
    assert_eq!(code(&init(&[])), 5, "a passphrase that others may read");
    fs::set_permissions(&passphrase, fs::Permissions::from_mode(0o600)).unwrap();
    let refused = init(&["--directory", "https://directory.example"]);
    assert_eq!(code(&refused), 78, "{}", String::from_utf8_lossy(&refused.stderr));
    assert!(!folder.join("node").exists());
}

#[test]
fn completions_and_manual_pages() {
    let (_guard, folder) = folder();
    for (shell, sign) in
        [("bash", "complete -F _openred"), ("zsh", "#compdef openred"), ("fish", "complete -c openred")]
    {
        let output = openred(&folder, &["completions", shell]);
        assert!(String::from_utf8_lossy(&output.stdout).contains(sign), "{shell}");
    }
    assert_eq!(code(&openred(&folder, &["man", "."])), 0);
    let page = fs::read_to_string(folder.join("openred-link-request.1")).unwrap();
    assert!(page.contains("openred link request"), "{page}");
    assert_eq!(code(&openred(&folder, &["man", "missing"])), 4);
}
