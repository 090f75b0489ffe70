//! The service manager that started a program, if one did: what it is told (sd_notify), and what it handed over (listeners,
//! credentials).
//!
//! The socket is connected at the start, while its name can still be reached: afterwards it takes a `send` and nothing else. In:
//! the variables that systemd documents, checked here and used nowhere else. Out: datagrams; a manager that is gone is nobody's
//! fault and stops nothing.

use std::io;
use std::os::fd::RawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::PathBuf;
use std::time::Duration;

/// First number of the descriptors that a manager hands over (sd_listen_fds(3)).
const FIRST_LISTENER: RawFd = 3;
/// Listeners that are taken over: what any of our programs opens, and as many again.
const LISTENERS: RawFd = 8;
/// Shortest watchdog that is kept up with; a shorter one is a mistake in the unit.
const SHORTEST_WATCHDOG: Duration = Duration::from_millis(100);

/// A connection to the service manager; or none, where none started this process.
#[derive(Debug, Default)]
pub struct Manager {
    socket: Option<UnixDatagram>,
    watchdog: Option<Duration>,
}

impl Manager {
    /// Connects to the manager that the environment names.
    ///
    /// # Errors
    /// When one is named and cannot be reached: then nobody would learn that this process is ready.
    pub fn from_env() -> io::Result<Self> {
        let Some(place) = std::env::var_os("NOTIFY_SOCKET") else { return Ok(Self::default()) };
        let address = match place.as_bytes().strip_prefix(b"@") {
            Some(name) => SocketAddr::from_abstract_name(name),
            None => SocketAddr::from_pathname(&place),
        }?;
        let socket = UnixDatagram::unbound()?;
        socket.connect_addr(&address)?;
        // A manager whose queue is full must not hold up who serves.
        socket.set_nonblocking(true)?;
        Ok(Self { socket: Some(socket), watchdog: watchdog(variable, std::process::id()) })
    }

    /// Says `message`: lines of `NAME=value`. Whether it was taken.
    pub fn say(&self, message: &str) -> bool {
        self.socket.as_ref().is_some_and(|socket| socket.send(message.as_bytes()).is_ok())
    }

    /// How often to say `WATCHDOG=1`: at half of what the manager waits for. None when it does not wait.
    #[must_use]
    pub const fn watchdog(&self) -> Option<Duration> {
        self.watchdog
    }
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// Half of WATCHDOG_USEC, if it is for this process (sd_watchdog_enabled(3)).
fn watchdog(variable: impl Fn(&str) -> Option<String>, own: u32) -> Option<Duration> {
    if variable("WATCHDOG_PID").is_some_and(|pid| pid.parse() != Ok(own)) {
        return None;
    }
    let micros: u64 = variable("WATCHDOG_USEC")?.parse().ok().filter(|micros| *micros > 0)?;
    Some((Duration::from_micros(micros) / 2).max(SHORTEST_WATCHDOG / 2))
}

/// Numbers of the listeners that the manager opened for this process; none without socket activation.
#[must_use]
pub fn listeners() -> Vec<RawFd> {
    listening(variable, std::process::id())
}

fn listening(variable: impl Fn(&str) -> Option<String>, own: u32) -> Vec<RawFd> {
    let number = |name| variable(name).and_then(|text| text.parse::<u32>().ok());
    // The variables of a parent that did not clear them name the parent.
    if number("LISTEN_PID") != Some(own) {
        return Vec::new();
    }
    let count = number("LISTEN_FDS").and_then(|count| RawFd::try_from(count).ok()).unwrap_or(0);
    (FIRST_LISTENER..FIRST_LISTENER + count.clamp(0, LISTENERS)).collect()
}

/// Where the credential `name` lies, if the manager gave one (systemd.exec(5), "Credentials").
#[must_use]
pub fn credential(name: &str) -> Option<PathBuf> {
    let folder = PathBuf::from(std::env::var_os("CREDENTIALS_DIRECTORY")?);
    Some(folder.join(name)).filter(|path| folder.is_absolute() && path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of<'a>(variables: &'a [(&'a str, &'a str)]) -> impl Fn(&str) -> Option<String> + 'a {
        |name| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
    }

    #[test]
    fn half_of_the_watchdog_and_only_for_this_process() {
        let half = |variables: &[(&str, &str)]| watchdog(of(variables), 7);
        assert_eq!(half(&[("WATCHDOG_USEC", "30000000")]), Some(Duration::from_secs(15)));
        assert_eq!(half(&[("WATCHDOG_USEC", "30000000"), ("WATCHDOG_PID", "7")]), Some(Duration::from_secs(15)));
        assert_eq!(half(&[("WATCHDOG_USEC", "30000000"), ("WATCHDOG_PID", "8")]), None);
        assert_eq!(half(&[("WATCHDOG_USEC", "1")]), Some(SHORTEST_WATCHDOG / 2));
        for wrong in ["0", "-1", "soon", ""] {
            assert_eq!(half(&[("WATCHDOG_USEC", wrong)]), None, "{wrong}");
        }
        assert_eq!(half(&[]), None);
    }

    #[test]
    fn listeners_are_this_processs_and_bounded() {
        let numbers = |variables: &[(&str, &str)]| listening(of(variables), 7);
        assert_eq!(numbers(&[("LISTEN_PID", "7"), ("LISTEN_FDS", "2")]), [3, 4]);
        assert!(numbers(&[("LISTEN_PID", "7"), ("LISTEN_FDS", "4000000000")]).is_empty());
        assert_eq!(numbers(&[("LISTEN_PID", "7"), ("LISTEN_FDS", "200")]).len(), LISTENERS as usize);
        for other in [&[("LISTEN_PID", "8"), ("LISTEN_FDS", "1")][..], &[("LISTEN_FDS", "1")], &[("LISTEN_PID", "7")]] {
            assert!(numbers(other).is_empty());
        }
    }
}
