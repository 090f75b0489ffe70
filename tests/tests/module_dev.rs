//! `openred module new` and `dev` from outside: what is written, what runs where, what follows a save, and that nothing is left however `dev` ends. A
//! script that hands out a built program stands in for cargo: building a project is what `scripts/tutorial` tries.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::ensure;
use nix::sys::signal::Signal;
use openred_tests::harness::{Answer, binaries, run, signal_pid, wait_for};

const MANIFEST: &str =
    "id = \"probe\"\nversion = \"1.0.0+openred.probe\"\nprogram = \"probe\"\ndescription = \"Tries\"\n
[[route]]\nmethod = \"GET\"\npath = \"/kept\"\nauth = \"operator\"
[[route]]\nmethod = \"POST\"\npath = \"/try/{what}\"\nauth = \"operator\"\nbody_bytes = 4194304
[permissions]\nkv.quota = { megabytes = 1, reason = \"what it was told\" }\n";

/// A project whose program is there already.
struct Project {
    folder: tempfile::TempDir,
}

impl Project {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let program = binaries().unwrap().join("openred-probe-module");
        fs::write(folder.path().join("Cargo.toml"), "[package]\n").unwrap();
        fs::write(folder.path().join("openred.toml"), MANIFEST).unwrap();
        let built = serde_json::json!({
            "reason": "compiler-artifact", "target": { "name": "probe" }, "executable": program,
        });
        let cargo = folder.path().join("cargo");
        // A save that does not build: the file says so.
        fs::write(&cargo, format!("#!/bin/sh\n[ ! -e broken ] || exit 101\necho '{built}'\n")).unwrap();
        fs::set_permissions(&cargo, Permissions::from_mode(0o755)).unwrap();
        Self { folder }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(binaries().unwrap().join("openred"));
        command.args(arguments).current_dir(self.path()).env("CARGO", self.path().join("cargo"));
        command.env_remove("OPENRED_HOME").stdin(Stdio::null());
        command
    }

    fn ask(&self, arguments: &[&str]) -> Answer {
        let output = self.command(arguments).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Answer { code: output.status.code().unwrap(), stdout: text(&output.stdout), stderr: text(&output.stderr) }
    }

    fn call(&self, what: &[&str]) -> Answer {
        self.ask(&[&["module", "call", "--dev", "probe"], what].concat())
    }

    fn answers(&self, dev: &mut Dev, what: &[&str], wanted: &str) {
        wait_for(&format!("{what:?} to answer {wanted}"), || {
            dev.is_there()?;
            let answer = self.call(what);
            let said = format!("{}{}", answer.stdout, answer.stderr);
            ensure!(said.contains(wanted), "{said}");
            Ok(Some(()))
        })
        .unwrap();
    }

    fn dev(&self) -> Dev {
        let log = self.path().join("dev.log");
        let file = File::options().create(true).append(true).open(&log).unwrap();
        let mut command = self.command(&["module", "dev"]);
        let child = command.stdout(file.try_clone().unwrap()).stderr(file).spawn().unwrap();
        let mut dev = Dev { child, log };
        dev.says("probe 1.0.0+openred.probe runs", 1);
        dev
    }

    /// Where the throw-away node lives, and its processes.
    fn node(&self) -> (PathBuf, Vec<u64>) {
        let home = PathBuf::from(fs::read_to_string(self.path().join("target/openred-dev")).unwrap());
        // Whatever its conditions are, which its exit code tells.
        let status = self.ask(&["--json", "--home", home.to_str().unwrap(), "status"]).stdout;
        let status: serde_json::Value = serde_json::from_str(status.trim()).unwrap();
        let processes = status["supervisor"]["processes"].as_array().unwrap();
        let pids: Vec<u64> =
            processes.iter().filter_map(|process| process["pid"].as_u64()).filter(|pid| *pid > 0).collect();
        assert!(processes.iter().any(|process| process["name"] == "module probe") && pids.len() >= 4, "{status}");
        (home, pids)
    }
}

struct Dev {
    child: Child,
    log: PathBuf,
}

impl Dev {
    fn is_there(&mut self) -> anyhow::Result<()> {
        let ended = self.child.try_wait()?;
        ensure!(ended.is_none(), "dev ended with {ended:?}: {}", fs::read_to_string(&self.log)?);
        Ok(())
    }

    fn says(&mut self, what: &str, times: usize) {
        wait_for(what, || {
            self.is_there()?;
            let log = fs::read_to_string(&self.log)?;
            ensure!(log.matches(what).count() >= times, "{log}");
            Ok(Some(()))
        })
        .unwrap();
    }

    fn end(mut self, signal: Signal) -> Option<i32> {
        signal_pid(self.child.id(), signal).unwrap();
        self.child.wait().unwrap().code()
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        // Its node ends with it. One that has been waited for is not killed again.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn are_gone(pids: &[u64]) {
    let is_there = |pid: &u64| Path::new(&format!("/proc/{pid}")).exists();
    wait_for("the node's processes to end", || Ok((!pids.iter().any(is_there)).then_some(()))).unwrap();
}

#[test]
fn a_save_puts_the_next_build_in_the_place_of_the_last_one_and_an_end_leaves_nothing() {
    let project = Project::new();
    let refused = project.call(&["GET", "/kept"]);
    assert!(refused.stderr.contains("`openred module dev` does not run here"), "{}", refused.stderr);
    let mut dev = project.dev();
    project.answers(&mut dev, &["POST", "/try/kv", "--data", "hello"], "tried");
    project.answers(&mut dev, &["GET", "/kept"], "\"bytes\":5");
    let second = project.ask(&["module", "dev"]);
    assert!(second.code != 0 && second.stderr.contains("runs here already"), "{}", second.stderr);
    // Another manifest: the route is gone, the state is not.
    let text = MANIFEST.replace(
        "[[route]]\nmethod = \"POST\"\npath = \"/try/{what}\"",
        "[[route]]\nmethod = \"POST\"\npath = \"/end\"",
    );
    fs::write(project.path().join("openred.toml"), text).unwrap();
    dev.says("probe 1.0.0+openred.probe runs", 2);
    project.answers(&mut dev, &["POST", "/try/kv", "--data", "hello!"], "no such route");
    project.answers(&mut dev, &["GET", "/kept"], "\"bytes\":5");
    // What does not build, or is no manifest, leaves the last one running.
    fs::write(project.path().join("broken"), "").unwrap();
    dev.says("the project does not build", 1);
    project.answers(&mut dev, &["GET", "/kept"], "\"bytes\":5");
    fs::write(project.path().join("openred.toml"), "id = 5\n").unwrap();
    dev.says("openred.toml:1", 1);
    project.answers(&mut dev, &["GET", "/kept"], "\"bytes\":5");
    let (home, processes) = project.node();
    assert_eq!(dev.end(Signal::SIGINT), Some(0));
    are_gone(&processes);
    assert!(!home.parent().unwrap().exists() && !project.path().join("target/openred-dev").exists());
}

#[test]
fn a_node_ends_with_a_dev_that_was_killed_and_the_next_one_is_not_hindered() {
    let project = Project::new();
    let dev = project.dev();
    let (home, processes) = project.node();
    assert_eq!(dev.end(Signal::SIGKILL), None);
    are_gone(&processes);
    fs::remove_dir_all(home.parent().unwrap()).unwrap();
    let mut next = project.dev();
    project.answers(&mut next, &["GET", "/kept"], "\"bytes\":null");
    assert_eq!(next.end(Signal::SIGTERM), Some(0));
}

#[test]
fn a_new_project_is_written_once_and_its_sources_are_those_that_were_named() {
    let folder = tempfile::tempdir().unwrap();
    let openred = binaries().unwrap().join("openred");
    let new = |arguments: &[&str]| {
        let arguments = [&["module", "new"], arguments].concat();
        let output = Command::new(&openred).args(arguments).current_dir(folder.path()).output().unwrap();
        (output.status.code().unwrap(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    assert_eq!(new(&["greet"]), (0, String::new()));
    let manifest = fs::read_to_string(folder.path().join("greet/Cargo.toml")).unwrap();
    assert!(manifest.contains("modules/sdk\""), "{manifest}");
    assert!(folder.path().join("greet/Cargo.lock").is_file());
    assert!(new(&["greet"]).0 != 0, "what is there is not written over");
    let (code, said) = new(&["other", "--sdk", "greet"]);
    assert!(code != 0 && said.contains("not the sources of openred-module"), "{said}");
    let (code, said) = new(&["tokio"]);
    assert!(code != 0 && said.contains("needs this name"), "{said}");
    assert!(!folder.path().join("other").exists() && !folder.path().join("tokio").exists());
    assert_eq!(run(&openred, &["module", "new", "No"]).unwrap().code, 2);
}
