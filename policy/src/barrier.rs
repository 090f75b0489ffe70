//! Where child and supervisor meet: descriptor 3, a packet socket, one JSON line a message.
//!
//! The child writes `namespaced`, waits for one byte, then writes `confined` with its report, and `ready` once it serves;
//! or `failed` with the reason. Once it is ready the supervisor may tell it who its caller is ([`Admission`]), anew each time that is
//! another process. The supervisor's end is [`Host`]. What the child says about its cage is a claim; the
//! supervisor looks for itself (`observe`) before it lets anybody reach the child.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::layer::{LayerName, LayerReport};
use crate::socket::ProcessId;
use crate::{poll, socket};

/// Longest message. A report of twenty layers is under 4 KiB.
pub const MAX_LINE: usize = 16 * 1024;

/// The byte with which the supervisor lets the child go on.
const GO: u8 = b'g';
/// Before the number of the process that may connect.
const CALLER: u8 = b'c';
/// Length of that message.
const CALLER_BYTES: usize = 1 + ProcessId::BYTES;

/// What a child tells its supervisor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "stage", rename_all = "kebab-case")]
pub enum Stage {
    /// It has its namespaces and its uid, is still dumpable, and waits.
    Namespaced,
    /// The filter is on.
    Confined {
        /// What it says about its layers.
        report: LayerReport,
    },
    /// It serves.
    Ready,
    /// It gives up; the text is one line.
    Failed {
        /// Layer, reason, way out.
        reason: String,
    },
}

/// The child's end.
#[derive(Debug)]
pub struct Barrier(File);

impl Barrier {
    pub(crate) fn new(descriptor: OwnedFd) -> Self {
        Self(File::from(descriptor))
    }

    /// Says `namespaced` and stops until the supervisor lets it go on.
    pub fn namespaced(&self) -> Result<()> {
        self.say(&Stage::Namespaced)?;
        let mut byte = [0u8; 1];
        match (&self.0).read(&mut byte) {
            Ok(1) if byte[0] == GO => Ok(()),
            Ok(_) => Err(Error::PeerGone),
            Err(error) => Err(Error::io(LayerName::Barrier, "read")(error)),
        }
    }

    /// Sends the report of a confined process.
    pub fn confined(&self, report: &LayerReport) -> Result<()> {
        self.say(&Stage::Confined { report: report.clone() })
    }

    /// Says that the process serves.
    pub fn ready(&self) -> Result<()> {
        self.say(&Stage::Ready)
    }

    /// Says why the process gives up. A supervisor that is gone is no further error.
    pub fn failed(&self, reason: &dyn std::error::Error) {
        let reason: String = reason.to_string().chars().take(MAX_LINE / 8).collect();
        let _ = self.say(&Stage::Failed { reason });
    }

    /// What the supervisor will tell of callers, apart from the barrier. To be taken before the filter.
    pub fn callers(&self) -> Result<Callers> {
        let own = self.0.try_clone().map_err(Error::io(LayerName::Barrier, "dup"))?;
        // For both: from here on this end only says short words, for which there is always room.
        fcntl(&own, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map_err(Error::kernel(LayerName::Barrier, "fcntl"))?;
        Ok(Callers(own))
    }

    fn say(&self, stage: &Stage) -> Result<()> {
        let line = serde_json::to_vec(stage).map_err(|_| Error::PeerMalformed)?;
        // `write`, not `send`: the vault's filter has no socket calls. A packet is written whole or not at all.
        (&self.0).write(&line).map_err(Error::io(LayerName::Barrier, "write"))?;
        Ok(())
    }
}

/// The child's view of who may connect to it.
#[derive(Debug)]
pub struct Callers(File);

impl Callers {
    /// The process that the supervisor named last, if it named one since the last time.
    pub fn next(&self) -> Option<ProcessId> {
        let mut last = None;
        let mut message = [0; CALLER_BYTES];
        // One message a read. What is none names nobody.
        while let Ok(CALLER_BYTES) = (&self.0).read(&mut message) {
            if let [CALLER, process @ ..] = message {
                last = Some(ProcessId::from_bytes(process));
            }
        }
        last
    }
}

/// The supervisor's word on who may connect to a child; outlives the [`Host`] it came from.
#[derive(Debug)]
pub struct Admission(File);

impl Admission {
    /// Names the one process that may connect from now on.
    pub fn admit(&self, process: ProcessId) -> std::io::Result<()> {
        let mut message = [CALLER; CALLER_BYTES];
        message[1..].copy_from_slice(&process.to_bytes());
        (&self.0).write(&message).map(drop)
    }
}

/// The supervisor's end. Readable (`AsFd`, non-blocking) when a message waits.
#[derive(Debug)]
pub struct Host(File);

impl Host {
    /// A new barrier: the supervisor's end, and the child's descriptor 3.
    pub fn pair() -> Result<(Host, OwnedFd)> {
        let failed = Error::io(LayerName::Barrier, "socketpair");
        let (near, far) = socket::packet_pair().map_err(failed)?;
        fcntl(&near, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map_err(Error::kernel(LayerName::Barrier, "fcntl"))?;
        Ok((Host(File::from(near)), far))
    }

    /// The next message if one waits: `None` when not. [`Error::PeerGone`] when the child closed its end.
    pub fn try_next(&self) -> Result<Option<Stage>> {
        let mut line = vec![0u8; MAX_LINE];
        match (&self.0).read(&mut line) {
            Ok(0) => Err(Error::PeerGone),
            Ok(length) => serde_json::from_slice(&line[..length]).map(Some).map_err(|_| Error::PeerMalformed),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(None),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => Err(Error::PeerGone),
            Err(error) => Err(Error::io(LayerName::Barrier, "read")(error)),
        }
    }

    /// The next message, waiting for at most `at_most`.
    pub fn next(&self, at_most: Duration) -> Result<Stage> {
        let end = Instant::now() + at_most;
        loop {
            if let Some(stage) = self.try_next()? {
                return Ok(stage);
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Error::PeerSilent { seconds: at_most.as_secs() });
            }
            let mut wait = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
            poll::wait(&mut wait, Some(left)).map_err(Error::io(LayerName::Barrier, "ppoll"))?;
        }
    }

    /// Lets a child that said `namespaced` go on.
    pub fn go(&self) -> Result<()> {
        (&self.0).write(&[GO]).map_err(Error::io(LayerName::Barrier, "write"))?;
        Ok(())
    }

    /// For telling a child that is ready who may connect to it.
    pub fn admission(&self) -> Result<Admission> {
        self.0.try_clone().map(Admission).map_err(Error::io(LayerName::Barrier, "dup"))
    }
}

impl AsFd for Host {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl std::os::fd::AsRawFd for Host {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.0.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use crate::role::Role;

    #[test]
    fn both_sides_meet() {
        let (host, child) = Host::pair().unwrap();
        assert_eq!(host.try_next().unwrap(), None);
        let child = std::thread::spawn(move || {
            let barrier = Barrier::new(child);
            barrier.namespaced().unwrap();
            let report = LayerReport { role: Role::Front, layers: Vec::new(), syscalls_allowed: 12 };
            barrier.confined(&report).unwrap();
            barrier.failed(&Error::MisuseTable);
        });
        let wait = Duration::from_secs(10);
        assert_eq!(host.next(wait).unwrap(), Stage::Namespaced);
        host.go().unwrap();
        assert!(matches!(host.next(wait).unwrap(), Stage::Confined { report } if report.syscalls_allowed == 12));
        assert!(matches!(host.next(wait).unwrap(), Stage::Failed { reason } if reason.starts_with("descriptors:")));
        child.join().unwrap();
        assert!(matches!(host.next(wait), Err(Error::PeerGone)));
    }

    #[test]
    fn the_caller_that_was_named_last_counts() {
        let (host, child) = Host::pair().unwrap();
        let barrier = Barrier::new(child);
        let (callers, admission) = (barrier.callers().unwrap(), host.admission().unwrap());
        assert_eq!(callers.next(), None);
        let named = |number: u64| ProcessId::from_bytes(number.to_le_bytes());
        for number in [1, 2, 3] {
            admission.admit(named(number)).unwrap();
        }
        assert_eq!((callers.next(), callers.next()), (Some(named(3)), None));
        host.go().unwrap();
        assert_eq!(callers.next(), None, "another message names nobody");
        barrier.ready().unwrap();
        assert_eq!(host.try_next().unwrap(), Some(Stage::Ready), "the barrier goes on as before");
        drop(barrier);
        drop(callers);
        assert!(admission.admit(named(4)).is_err());
    }

    #[test]
    fn garbage_is_no_stage() {
        let (host, child) = Host::pair().unwrap();
        File::from(child).write_all(b"{\"stage\":\"root\"}").unwrap();
        assert!(matches!(host.try_next(), Err(Error::PeerMalformed)));
    }

    #[test]
    fn a_supervisor_that_leaves_stops_the_child() {
        let (host, child) = Host::pair().unwrap();
        drop(host);
        assert!(Barrier::new(child).namespaced().is_err());
    }
}
