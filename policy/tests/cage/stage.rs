//! What the tests of the cage stand on: a place that the caged uid can reach, and runs of the test program in it.

#![allow(dead_code, reason = "each test program uses a part")]

use std::fs;
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::{SocketAddr, UnixListener};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use openred_policy::{Layer, Role};
use tempfile::TempDir;

/// Uid of the caged process when the supervisor is root.
pub(crate) const CAGED: u32 = 61_750;
/// Uid of the ordinary user's supervisor.
pub(crate) const ORDINARY: u32 = 61_900;
pub(crate) const KEY_ROLES: [Role; 3] = [Role::Front, Role::Vault, Role::Unseal];
pub(crate) const NETWORK_ROLES: [Role; 2] = [Role::Noded, Role::Directory];

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Form {
    Root,
    Ordinary,
}

pub(crate) fn forms() -> &'static [Form] {
    if is_root() { &[Form::Root, Form::Ordinary] } else { &[Form::Ordinary] }
}

pub(crate) fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// A place that the caged uid can reach, with the program, a state directory and a directory of sockets.
pub(crate) struct Stage {
    pub(crate) form: Form,
    place: TempDir,
    _listeners: (UnixListener, UnixListener, TcpListener),
}

impl Stage {
    pub(crate) fn new(form: Form) -> Self {
        let place = tempfile::tempdir_in("/tmp").unwrap();
        fs::set_permissions(place.path(), fs::Permissions::from_mode(0o755)).unwrap();
        for (program, name) in [
            (env!("CARGO_BIN_EXE_openred-cage-probe"), "openred-cage-probe"),
            (env!("CARGO_BIN_EXE_openred-cage-probe-vault"), "openred-cage-probe-vault"),
        ] {
            // By a process of its own: a child that another test forks meanwhile would inherit our writing descriptor,
            // and a program open for writing cannot be started.
            let copied = Command::new("cp").arg(program).arg(place.path().join(name)).status().unwrap();
            assert!(copied.success(), "{copied}");
        }
        let sockets = place.path().join("sockets");
        for directory in [&place.path().join("state"), &sockets] {
            fs::create_dir(directory).unwrap();
        }
        let service = UnixListener::bind(sockets.join("service.sock")).unwrap();
        let name = format!("openred-probe{}", sockets.display());
        let hidden = UnixListener::bind_addr(&SocketAddr::from_abstract_name(name).unwrap()).unwrap();
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        fs::write(sockets.join("port"), tcp.local_addr().unwrap().port().to_string()).unwrap();
        if is_root() {
            let owner = if form == Form::Root { CAGED } else { ORDINARY };
            for path in ["state", "sockets", "sockets/service.sock", "sockets/port"] {
                chown(place.path().join(path), Some(owner), Some(owner)).unwrap();
            }
        }
        Self { form, place, _listeners: (service, hidden, tcp) }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.place.path().join(name)
    }

    /// Runs `act` in a child of `role` (`none`: no cage).
    pub(crate) fn run(&self, role: &str, act: &str) -> Outcome {
        let (line, stderr) = self.supervise(role, act);
        assert!(line["failed"].is_null(), "{:?} {role} {act}: {line} {stderr}", self.form);
        Outcome { exit: line["exit"].as_str().unwrap().to_owned(), line, stderr }
    }

    pub(crate) fn supervise(&self, role: &str, act: &str) -> (serde_json::Value, String) {
        self.supervise_through(Command::new(self.path("openred-cage-probe")), role, act)
    }

    /// `command` starts the probe; its arguments are added here.
    pub(crate) fn supervise_through(&self, mut command: Command, role: &str, act: &str) -> (serde_json::Value, String) {
        command.args(["supervise", role, act]).arg(self.path("state")).arg(self.path("sockets")).current_dir("/");
        match self.form {
            Form::Root => command.arg(CAGED.to_string()),
            Form::Ordinary if is_root() => command.arg("none").uid(ORDINARY).gid(ORDINARY),
            Form::Ordinary => command.arg("none"),
        };
        if act == "hang" {
            // No pipe: a child that outlives its supervisor must fail this test and not hold it up.
            command.stderr(Stdio::null());
        }
        let output = command.output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{:?} {role} {act}: {stderr}", self.form);
        (serde_json::from_slice(&output.stdout).unwrap(), stderr)
    }

    pub(crate) fn exit(&self, role: impl ToString, act: &str) -> String {
        self.run(&role.to_string(), act).exit
    }
}

pub(crate) struct Outcome {
    pub(crate) exit: String,
    pub(crate) line: serde_json::Value,
    pub(crate) stderr: String,
}

impl Outcome {
    pub(crate) fn layers(&self, side: &str) -> Vec<Layer> {
        serde_json::from_value(self.line[side].clone()).unwrap()
    }
}

pub(crate) fn refused(errno: i32) -> String {
    format!("exit code {}", 100 + errno)
}

pub(crate) const WORKED: &str = "exit code 0";

/// Numbers of the kernel's refusals.
pub(crate) mod errno {
    pub(crate) const EPERM: i32 = 1;
    pub(crate) const ENOENT: i32 = 2;
    /// What the probe makes of an answer that has no number.
    pub(crate) const EIO: i32 = 5;
    pub(crate) const EACCES: i32 = 13;
    pub(crate) const EROFS: i32 = 30;
    pub(crate) const EAFNOSUPPORT: i32 = 97;
}
