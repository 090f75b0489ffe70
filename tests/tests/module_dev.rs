//! `openred module new` and `dev` from outside: what is written, what runs where, what follows a save, and that nothing is left however `dev` ends. A
//! script that hands out a built program stands in for cargo: building a project is what `scripts/tutorial` tries.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::ensure;
use nix::sys::signal::Signal;
use openred_tests::desk::{Desk, VERSION, answers, module, probe_manifest};
use openred_tests::harness::{Answer, binaries, run, signal_pid, wait_for};
use openred_tests::swap_desk;
use openred_tests::world::World;
use serde_json::Value;

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
        Self::of("probe", &binaries().unwrap().join("openred-probe-module"), MANIFEST)
    }

    fn of(id: &str, program: &Path, manifest: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("Cargo.toml"), "[package]\n").unwrap();
        fs::write(folder.path().join("openred.toml"), manifest).unwrap();
        let program = folder.path().join(program);
        let built = serde_json::json!({
            "reason": "compiler-artifact", "target": { "name": id }, "executable": program,
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
        let mut dev = self.begin(&["module", "dev"]);
        dev.says("probe 1.0.0+openred.probe runs", 1);
        dev
    }

    fn begin(&self, arguments: &[&str]) -> Dev {
        // Where nobody watches for saves.
        let log = self.path().join("target/dev.log");
        fs::create_dir_all(self.path().join("target")).unwrap();
        drop(File::create(&log).unwrap());
        let file = File::options().append(true).open(&log).unwrap();
        let mut command = self.command(arguments);
        let child = command.stdout(file.try_clone().unwrap()).stderr(file).spawn().unwrap();
        Dev { child, log }
    }

    /// Its generations, as the throw-away node has them.
    fn generation(&self, id: &str) -> Value {
        let home = fs::read_to_string(self.path().join("target/openred-dev")).unwrap();
        let shown = self.ask(&["--json", "--home", &home, "module", "generations", id]).json().unwrap();
        shown["modules"][0].clone()
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
    fs::write(project.path().join("openred.toml"), &text).unwrap();
    dev.says("probe 1.0.0+openred.probe runs", 2);
    project.answers(&mut dev, &["POST", "/try/kv", "--data", "hello!"], "no such route");
    let swapped = project.generation("probe");
    assert_eq!((&swapped["version"], &swapped["epoch"]), (&"1.0.0+openred.probe.dev.2".into(), &2.into()), "{swapped}");
    project.answers(&mut dev, &["GET", "/kept"], "\"bytes\":5");
    // It asks for more, and for a name that the node's process has to be started anew for.
    let more = format!("{text}net.egress = {{ to = [\"localhost:9\"], reason = \"a name\" }}\n");
    fs::write(project.path().join("openred.toml"), &more).unwrap();
    dev.says("probe 1.0.0+openred.probe runs", 3);
    project.answers(&mut dev, &["GET", "/kept"], "\"bytes\":5");
    assert_eq!(project.generation("probe")["version"], "1.0.0+openred.probe.dev.3");
    // Taken off by hand, it is installed by the next save.
    let home = fs::read_to_string(project.path().join("target/openred-dev")).unwrap();
    project.ask(&["--home", &home, "module", "remove", "probe", "--keep-data"]).ok().unwrap();
    fs::write(project.path().join("openred.toml"), format!("{more}# saved\n")).unwrap();
    dev.says("probe 1.0.0+openred.probe runs", 4);
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
    wait_for("the supervisor's end", || match File::open(home.join("run/lock")) {
        Ok(lock) => Ok(lock.try_lock().is_ok().then_some(())),
        // A run of another test has removed it already.
        Err(_) => Ok(Some(())),
    })
    .unwrap();
    let mut next = project.dev();
    assert!(!home.parent().unwrap().exists(), "its key and passphrase do not stay");
    project.answers(&mut next, &["GET", "/kept"], "\"bytes\":null");
    assert_eq!(next.end(Signal::SIGTERM), Some(0));
}

#[test]
fn a_build_that_is_not_taken_is_named_and_the_one_before_goes_on() {
    let version = swap_desk::version(0, 0);
    let project = Project::of(swap_desk::MODULE, Path::new("target/program"), &swap_desk::manifest_of(&version, ""));
    let program = project.path().join("target/program");
    fs::create_dir(project.path().join("target")).unwrap();
    let save = |act: &str| {
        fs::write(&program, swap_desk::program_of(&version, act).unwrap()).unwrap();
        fs::write(project.path().join("source"), act).unwrap();
    };
    let call = |what: &[&str]| project.ask(&[&["module", "call", "--dev", swap_desk::MODULE], what].concat()).json();
    let counts = |dev: &mut Dev, wanted: u64, migrated: &str| {
        wait_for(&format!("{wanted}"), || {
            dev.is_there()?;
            let shown = call(&["GET", "/shown"])?;
            ensure!(shown["count"] == wanted && shown["migrated"].as_str().unwrap_or_default() == migrated, "{shown}");
            Ok(Some(()))
        })
        .unwrap();
    };
    // The first one does not start at all.
    save("start-fails");
    let mut dev = project.begin(&["module", "dev"]);
    dev.says("ends again and again", 1);
    save("");
    dev.says(&format!("swapped {version} runs"), 1);
    call(&["POST", "/add"]).unwrap();
    counts(&mut dev, 1, "");
    let before = project.generation(swap_desk::MODULE);
    save("half-migrates");
    dev.says("has not taken the place of the one before it, which is as it was", 1);
    dev.says("half-way", 1);
    let after = project.generation(swap_desk::MODULE);
    assert_eq!((&after["generation"], &after["version"]), (&before["generation"], &before["version"]), "{after}");
    call(&["POST", "/add"]).unwrap();
    counts(&mut dev, 2, "");
    save("migrates");
    dev.says(&format!("swapped {version} runs"), 2);
    counts(&mut dev, 2, before["version"].as_str().unwrap());
    // An earlier version is no upgrade: it is installed anew, with what is kept.
    let earlier = swap_desk::version(0, 0).replace("1.0.0", "0.9.0");
    fs::write(&program, swap_desk::program_of(&earlier, "").unwrap()).unwrap();
    fs::write(project.path().join("openred.toml"), swap_desk::manifest_of(&earlier, "")).unwrap();
    dev.says(&format!("swapped {earlier} runs"), 1);
    counts(&mut dev, 2, before["version"].as_str().unwrap());
    assert_eq!(dev.end(Signal::SIGINT), Some(0));
}

#[test]
fn what_was_on_the_operators_node_before_is_left_alone() {
    let world = World::without_directory().unwrap();
    let node = world.alone("alice", "").unwrap();
    let desk = Desk::new(&world.path().join("desk")).unwrap();
    let home = node.home.display().to_string();
    let project = Project::new();
    let dev = ["--home", &home, "module", "dev", "--node"];
    let keeps = "kv.quota = { megabytes = 1, reason = \"what it was told\" }\n";
    let manifest = probe_manifest(VERSION, keeps, "");
    desk.install_probe(&node, &manifest).unwrap();
    answers(&node, &["POST", "/try/kv", "--data", "hello"], "tried").unwrap();
    let refused = |why: &str| {
        let answer = project.ask(&dev);
        assert!(answer.code != 0 && answer.stderr.contains(why), "{}{}", answer.stdout, answer.stderr);
    };
    // A newer one of the same name is still another's.
    fs::write(project.path().join("openred.toml"), MANIFEST.replace("1.0.0", "1.0.1")).unwrap();
    refused("which this run of `openred module dev` has not installed");
    let owned = || {
        let list = module(&node, &["list"]).unwrap();
        let all = list["modules"].as_array().unwrap().clone();
        all.into_iter().find(|module| module["id"] == "probe").map(|module| module["publisher"].clone())
    };
    assert_eq!(owned(), Some(desk.publisher.as_str().into()));
    answers(&node, &["GET", "/kept"], "\"bytes\":5").unwrap();
    // Nor is what it has left for the next of its name.
    module(&node, &["remove", "probe", "--keep-data"]).unwrap();
    refused("removed with --keep-data");
    desk.install_probe(&node, &manifest).unwrap();
    answers(&node, &["GET", "/kept"], "\"bytes\":5").unwrap();
    module(&node, &["remove", "probe"]).unwrap();

    fs::write(project.path().join("openred.toml"), MANIFEST).unwrap();
    let mut run = project.begin(&dev);
    run.says("probe 1.0.0+openred.probe runs", 1);
    answers(&node, &["GET", "/kept"], "\"bytes\":null").unwrap();
    assert_eq!(run.end(Signal::SIGINT), Some(0));
    assert_eq!(owned(), None, "what this run has installed is gone");

    // The operator takes it off meanwhile and installs his own: that is not this run's any more.
    let mut run = project.begin(&dev);
    run.says("probe 1.0.0+openred.probe runs", 1);
    module(&node, &["remove", "probe"]).unwrap();
    desk.install_probe(&node, &manifest).unwrap();
    fs::write(project.path().join("openred.toml"), format!("{MANIFEST}# saved\n")).unwrap();
    run.says("has not installed", 1);
    assert_eq!(run.end(Signal::SIGINT), Some(0));
    assert_eq!(owned(), Some(desk.publisher.as_str().into()));
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
