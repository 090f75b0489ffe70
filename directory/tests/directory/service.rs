//! The directory as its unit starts it: listeners from the service manager, word of readiness and life to it.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::process::{Place, places};

/// How long the manager waits for a word; generous, a loaded machine is no defect.
const PATIENCE: Duration = Duration::from_secs(60);

/// A manager's socket that everybody may send to, as systemd's own is.
fn manager(place: &Place) -> UnixDatagram {
    let path = notify_socket(place);
    let manager = UnixDatagram::bind(&path).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o777)).unwrap();
    manager.set_read_timeout(Some(PATIENCE)).unwrap();
    manager
}

fn notify_socket(place: &Place) -> std::path::PathBuf {
    place.folder.path().join("notify")
}

fn told(manager: &UnixDatagram) -> String {
    let mut message = [0; 512];
    let length = manager.recv(&mut message).unwrap();
    String::from_utf8_lossy(&message[..length]).into_owned()
}

/// `serve` with `inherited` as descriptor 3, and the variables that a manager sets; a shell moves the descriptor and knows
/// the process id that the directory will have.
fn activated(place: &Place, inherited: OwnedFd, notify: &Path) -> Child {
    let mut command = Command::new("/bin/sh");
    let script = "exec 3<&0 </dev/null; export LISTEN_PID=$$ LISTEN_FDS=1; exec \"$0\" \"$@\"";
    command.args(["-c", script]).arg(&place.program).arg("--home").arg(place.home()).arg("serve").current_dir("/");
    command.env_clear().env("NOTIFY_SOCKET", notify).env("WATCHDOG_USEC", "1000000");
    command.stdin(Stdio::from(inherited)).stderr(Stdio::piped());
    if let Some(user) = place.user {
        command.uid(user).gid(user);
    }
    command.spawn().unwrap()
}

fn bound() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

#[test]
fn it_serves_on_what_it_is_given_and_says_how_it_is() {
    for place in places() {
        let (listener, address) = bound();
        place.configure(&format!("listen = \"{address}\"\n"));
        let manager = manager(&place);
        let mut child = activated(&place, listener.into(), &notify_socket(&place));
        let ready = told(&manager);
        assert!(ready.starts_with("READY=1\nSTATUS=serving as did:key:"), "{ready}");
        TcpStream::connect(address).unwrap();
        // From inside its cage, where the manager's socket has no name any more.
        assert_eq!([told(&manager), told(&manager)], ["WATCHDOG=1", "WATCHDOG=1"]);
        kill(Pid::from_raw(child.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
        let last = std::iter::repeat_with(|| told(&manager)).find(|message| message != "WATCHDOG=1");
        assert_eq!(last.as_deref(), Some("STOPPING=1"));
        assert_eq!(child.wait().unwrap().code(), Some(0));
    }
}

#[test]
fn listeners_that_do_not_fit_the_configuration_are_refused() {
    for place in places() {
        let manager = manager(&place);
        let (configured, address) = bound();
        drop(configured);
        place.configure(&format!("listen = \"{address}\"\n"));
        let no_listener = OwnedFd::from(UnixDatagram::unbound().unwrap());
        for (inherited, says) in [(bound().0.into(), "none listens on"), (no_listener, "is no listening TCP socket")] {
            let ended = activated(&place, inherited, &notify_socket(&place)).wait_with_output().unwrap();
            let said = String::from_utf8(ended.stderr).unwrap();
            assert_eq!(ended.status.code(), Some(78), "{said}");
            let last = said.lines().last().unwrap_or_default();
            assert!(last.contains(says) && last.contains("directory.socket"), "{said}");
        }
        manager.set_nonblocking(true).unwrap();
        assert!(manager.recv(&mut [0; 8]).is_err(), "it never said that it was ready");
    }
}

#[test]
fn a_manager_that_cannot_be_told_stops_the_start() {
    for place in places() {
        let (listener, address) = bound();
        place.configure(&format!("listen = \"{address}\"\n"));
        let ended = activated(&place, listener.into(), Path::new("/nonexistent/notify")).wait_with_output().unwrap();
        let said = String::from_utf8(ended.stderr).unwrap();
        assert_eq!(ended.status.code(), Some(1), "{said}");
        assert!(said.contains("NOTIFY_SOCKET"), "{said}");
    }
}
