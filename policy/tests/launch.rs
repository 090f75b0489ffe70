//! Foreign programs behind the launcher: they run, they have what they were given, and they do not get out. As root each test runs
//! for both forms of the cage.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use openred_policy::launch::DOOR_SOCKET;
use openred_policy::probe::{FORBIDDEN, FORBIDDEN_PAST_LANDLOCK};
use openred_policy::{Layer, LayerName};
use tempfile::TempDir;

#[path = "cage/stage.rs"]
mod stage;

use stage::{CAGED, Form, ORDINARY, WORKED, errno, forms, is_root, refused};

const ECONNREFUSED: i32 = 111;

/// A place with the launcher, the test program and a state directory of the caged uid.
struct Place {
    form: Form,
    folder: TempDir,
    /// The socket that the program may connect to.
    _door: UnixListener,
}

/// A socket that everybody may connect to.
fn listener(place: &Path) -> UnixListener {
    let listener = UnixListener::bind(place).unwrap();
    fs::set_permissions(place, fs::Permissions::from_mode(0o666)).unwrap();
    listener
}

impl Place {
    fn new(form: Form) -> Self {
        let folder = tempfile::tempdir_in("/tmp").unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        for program in [env!("CARGO_BIN_EXE_openred-cage-foreign"), env!("CARGO_BIN_EXE_openred-launch")] {
            // By a process of its own: a child that another test forks meanwhile would keep it open for writing.
            assert!(Command::new("cp").arg(program).arg(folder.path()).status().unwrap().success());
        }
        let state = folder.path().join("state");
        fs::create_dir(&state).unwrap();
        if is_root() {
            let owner = if form == Form::Root { CAGED } else { ORDINARY };
            chown(&state, Some(owner), Some(owner)).unwrap();
        }
        let door = folder.path().join("door");
        fs::create_dir(&door).unwrap();
        let _door = listener(&door.join(DOOR_SOCKET));
        Self { form, folder, _door }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self) -> Command {
        let mut command = Command::new(self.path("openred-cage-foreign"));
        command.current_dir("/").stdin(Stdio::null());
        if self.form == Form::Ordinary && is_root() {
            command.uid(ORDINARY).gid(ORDINARY);
        }
        command
    }

    /// Starts `program` through the launcher.
    fn launch(&self, how: &str, program: &str, arguments: &[&str]) -> (serde_json::Value, String) {
        let mut command = self.command();
        let uid = if self.form == Form::Root { CAGED.to_string() } else { "none".to_owned() };
        command.args(["launch", how, &uid]).arg(self.path("state")).arg(program).args(arguments);
        if how == "leave" {
            command.stderr(Stdio::null()); // a program that outlives its supervisor must not hold the test up
        }
        let output = command.output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{:?} {program} {arguments:?}: {stderr}", self.form);
        (serde_json::from_slice(&output.stdout).unwrap(), stderr)
    }

    /// How the test program ended in the cage, which tried `act`.
    fn inside(&self, act: &str) -> String {
        let (line, stderr) = self.launch("right", "self", &["foreign", act, self.path("state").to_str().unwrap()]);
        assert!(line["failed"].is_null(), "{act}: {line} {stderr}");
        line["exit"].as_str().unwrap().to_owned()
    }

    /// How it ends outside: the control.
    fn outside(&self, act: &str) -> String {
        let status = self.command().args(["foreign", act]).arg(self.path("state")).stdout(Stdio::null()).status();
        let status = status.unwrap();
        status.code().map_or_else(|| format!("{status}"), |code| format!("exit code {code}"))
    }
}

/// A program of the distribution runs, with its loader and libraries; what it is given comes in, what it says comes out.
#[test]
fn iso_a_foreign_program_runs_in_its_cage() {
    for form in forms() {
        let place = Place::new(*form);
        let (line, stderr) = place.launch("right", "/bin/cat", &[]);
        assert_eq!((&line["exit"], &line["said"]), (&WORKED.into(), &"hello\n".into()), "{form:?}: {line} {stderr}");
        let inside: Vec<Layer> = serde_json::from_value(line["inside"].clone()).unwrap();
        assert!(inside.len() >= 14 && inside.iter().all(|layer| layer.ok), "{form:?}: {inside:?}");
        for act in ["nothing", "thread", "state", "read-runtime", "variable", "descriptors", "mprotect-none"] {
            assert_eq!(place.inside(act), WORKED, "{form:?} {act}");
        }
        assert_eq!(place.inside("panic"), "exit code 101", "{form:?}: it may handle its own panics");
    }
}

/// Each layer of a running foreign program is seen from outside, as of our own.
#[test]
fn iso_a_foreign_program_is_measured_from_outside() {
    for form in forms() {
        let place = Place::new(*form);
        let state = place.path("state");
        let (line, stderr) = place.launch("right", "self", &["foreign", "nothing", state.to_str().unwrap()]);
        let outside: Vec<Layer> = serde_json::from_value(line["outside"].clone()).unwrap();
        assert_eq!(outside.len(), 11, "{form:?}: {line} {stderr}");
        for layer in &outside {
            assert!(layer.ok, "{form:?}: {layer:?}");
        }
        // Not dumpable, although it was executed: nobody may read the copy.
        assert!(outside.iter().any(|layer| layer.name == LayerName::NotDumpable));
    }
}

/// What runs is what was checked: another digest, a script, or no program at all start nothing.
#[test]
fn iso_only_the_checked_program_is_started() {
    for form in forms() {
        let place = Place::new(*form);
        assert_eq!(place.launch("right", "/bin/true", &[]).0["exit"], WORKED, "the control");
        let (line, _) = place.launch("wrong", "/bin/true", &[]);
        assert_eq!(line["exit"], "exit code 99", "{form:?}: {line}");
        assert!(
            line["inside"].is_null() && line["failed"].as_str().unwrap().contains("its digest is another"),
            "{line}"
        );
        let script = place.path("script");
        fs::write(&script, "#!/bin/cat\n").unwrap();
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(place.launch("right", script.to_str().unwrap(), &[]).0["exit"], "exit code 99", "{form:?}");
        fs::write(&script, "nothing that can be executed").unwrap();
        assert_eq!(place.launch("right", script.to_str().unwrap(), &[]).0["exit"], "exit code 99", "{form:?}");
    }
}

/// Attempts to get out: by calls, by files, by the network, by starting something.
#[test]
fn iso_a_foreign_program_does_not_get_out() {
    for form in forms() {
        let place = Place::new(*form);
        for (name, _, _, outside) in FORBIDDEN.into_iter().chain(FORBIDDEN_PAST_LANDLOCK) {
            // Descriptor 3 is none here, outside as inside.
            let control = place.outside(name);
            assert!(control.starts_with("exit code"), "{form:?}: the control of {name} ({outside:?}): {control}");
            assert_eq!(place.inside(name), "SIGSYS", "{form:?} {name}");
        }
        let refusals = [
            ("read-root", WORKED.to_owned(), vec![refused(errno::EACCES)]),
            ("read-passwd", WORKED.to_owned(), vec![refused(errno::ENOENT), refused(errno::EACCES)]),
            ("exec", WORKED.to_owned(), vec!["SIGSYS".to_owned()]),
            ("connect-tcp", refused(ECONNREFUSED), vec!["SIGSYS".to_owned()]),
            ("mprotect-exec", WORKED.to_owned(), vec!["SIGSYS".to_owned()]),
            ("mprotect-all", WORKED.to_owned(), vec!["SIGSYS".to_owned()]),
            ("connect-abstract", refused(ECONNREFUSED), vec!["SIGSYS".to_owned()]),
        ];
        for (act, control, expected) in refusals {
            assert_eq!(place.outside(act), control, "{form:?}: the control of {act}");
            let end = place.inside(act);
            assert!(expected.contains(&end), "{form:?} {act}: {end}");
        }
        assert_eq!(place.inside("read-proc"), refused(errno::ENOENT), "{form:?}: there is no /proc");
        let end = place.inside("write-runtime");
        assert!([refused(errno::EROFS), refused(errno::EACCES)].contains(&end), "{form:?}: {end}");
    }
}

/// It connects to its door, and to no socket that lies in what it may read.
#[test]
fn iso_a_foreign_program_connects_to_its_door_alone() {
    for form in forms() {
        let place = Place::new(*form);
        let granted = place.path("granted");
        fs::create_dir(&granted).unwrap();
        fs::write(granted.join("file"), "text").unwrap();
        let _other = listener(&granted.join("s"));
        assert_eq!(place.inside("connect-door"), WORKED, "{form:?}");
        assert_eq!(place.inside("read-granted"), WORKED, "{form:?}");
        assert_eq!(place.outside("connect-granted"), WORKED, "{form:?}: the control");
        assert_eq!(place.inside("connect-granted"), "SIGSYS", "{form:?}");
        assert_eq!(place.outside("change-directory"), WORKED, "{form:?}: the control");
        assert_eq!(place.inside("change-directory"), refused(errno::EACCES), "{form:?}");
    }
}

/// A granted path is what it is called: neither a link that somebody has put on the way to it, nor a socket.
#[test]
fn iso_a_granted_path_is_no_link_and_no_socket() {
    for form in forms() {
        let place = Place::new(*form);
        let (granted, elsewhere) = (place.path("granted"), place.path("elsewhere"));
        fs::create_dir(&elsewhere).unwrap();
        fs::write(elsewhere.join("file"), "text").unwrap();
        let fails = |why: &str| {
            let (line, stderr) = place.launch("right", "/bin/true", &[]);
            let failed = line["failed"].as_str().unwrap_or_default();
            assert!(failed.contains(why) && line["inside"].is_null(), "{form:?}: {line} {stderr}");
        };
        std::os::unix::fs::symlink(&elsewhere, &granted).unwrap();
        assert_eq!(place.outside("read-granted"), WORKED, "{form:?}: the control");
        fails("open of a kept path");
        fs::remove_file(&granted).unwrap();
        let _socket = listener(&granted);
        fails("neither a file nor a folder");
        fs::remove_file(&granted).unwrap();
        fs::rename(&elsewhere, &granted).unwrap();
        assert_eq!(place.inside("read-granted"), WORKED, "{form:?}");
    }
}

/// What it may write it may not execute, not even at the number that the filter allows to be executed.
#[test]
fn iso_what_a_foreign_program_writes_is_not_executed() {
    for form in forms() {
        let place = Place::new(*form);
        assert_eq!(place.inside("exec-own-file"), refused(errno::EACCES), "{form:?}");
        // The control: outside the kernel goes as far as to find that the file is empty.
        const ENOEXEC: i32 = 8;
        fs::remove_file(place.path("state/own")).unwrap();
        assert_eq!(place.outside("exec-own-file"), refused(ENOEXEC), "{form:?}");
    }
}

/// Programs of the distribution that would start, mount or make what they may not.
#[test]
fn iso_programs_of_the_distribution_do_not_get_out() {
    for form in forms() {
        let place = Place::new(*form);
        let device = place.path("state/pipe");
        let attempts: [(&str, &[&str]); 3] = [
            ("/usr/bin/env", &["/bin/true"]),
            ("/usr/bin/timeout", &["9", "/bin/true"]),
            ("/usr/bin/mkfifo", &[device.to_str().unwrap()]),
        ];
        for (program, arguments) in attempts {
            let (line, stderr) = place.launch("right", program, arguments);
            assert_eq!(line["exit"], "SIGSYS", "{form:?} {program}: {line} {stderr}");
            let control = Command::new(program).args(arguments).status().unwrap();
            assert!(control.success(), "{form:?}: the control of {program}");
            let _ = fs::remove_file(&device);
        }
        let (line, _) = place.launch("right", "/bin/cat", &["/etc/passwd"]);
        assert_eq!((&line["exit"], &line["said"]), (&"exit code 1".into(), &"".into()), "{form:?}");
        assert!(Command::new("/bin/cat").arg("/etc/passwd").stdout(Stdio::null()).status().unwrap().success());
    }
}

/// The kernel keeps the parent-death signal over the start of the program.
#[test]
fn iso_a_foreign_program_dies_with_its_supervisor() {
    for form in forms() {
        let place = Place::new(*form);
        let state = place.path("state");
        let (line, _) = place.launch("leave", "self", &["foreign", "hang", state.to_str().unwrap()]);
        let status = format!("/proc/{}/status", line["pid"].as_i64().unwrap());
        let end = Instant::now() + Duration::from_secs(30);
        while fs::read_to_string(&status).is_ok_and(|text| !text.contains("State:\tZ")) {
            assert!(Instant::now() < end, "{form:?}: it outlives its supervisor");
            std::thread::yield_now();
        }
    }
}

/// Paths of a runtime are a foreign program's alone.
#[test]
fn iso_our_own_programs_keep_nothing_executable() {
    use openred_policy::{Cage, KeptPath, Role};
    // Nothing is confined here: the descriptor table of this process is refused first, and the cage before that.
    let cage = Cage::new(Role::Noded, None).keep(KeptPath::runtime(Path::new("/usr/lib")));
    assert!(cage.keeps_too_much());
    // In a folder of so short a name a socket could be named like the door.
    assert!(Cage::new(Role::Module, None).keep(KeptPath::granted(Path::new("/ab"))).keeps_too_much());
    assert!(!Cage::new(Role::Module, None).keep(KeptPath::runtime(Path::new("/usr/lib"))).keeps_too_much());
    assert!(Cage::new(Role::Vault, None).keep(KeptPath::readable(Path::new("/usr/lib"))).keeps_too_much());
}
