//! What can go wrong on the way into the cage. Every text is one line: layer, reason, way out.

use std::io;
use std::os::fd::RawFd;

use crate::layer::{Layer, LayerName};
use crate::role::Role;

/// The crate's result.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a process cannot be confined, started or observed. `Local…`: this machine; `Misuse…`: the calling program;
/// `Peer…`: the process on the other side of the barrier.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused a call that a layer needs.
    #[error("{layer}: {call}: {source}; {}", layer.way_out())]
    LocalKernel {
        /// The layer that cannot be had.
        layer: LayerName,
        /// The call that was refused.
        call: &'static str,
        /// The kernel's reason.
        source: io::Error,
    },
    /// Somebody traces this process.
    #[error("untraced: process {tracer} traces this one; {}", LayerName::Untraced.way_out())]
    LocalTraced {
        /// The tracer's process id.
        tracer: i32,
    },
    /// The descriptor table is not the expected one.
    #[error("descriptors: unexpected {unexpected:?}, missing {missing:?}; {}", LayerName::Descriptors.way_out())]
    LocalDescriptors {
        /// Open but not expected.
        unexpected: Vec<RawFd>,
        /// Expected but not open.
        missing: Vec<RawFd>,
    },
    /// After the change of uid, root could be had back or the ids are not the wanted ones.
    #[error("uid: privileges came back after the change to {uid}; {}", LayerName::Uid.way_out())]
    LocalRootReturned {
        /// The uid that was to be final.
        uid: u32,
    },
    /// Landlock is missing or older than the rights that are handled.
    #[error("landlock: {source}; {}", LayerName::Landlock.way_out())]
    LocalLandlock {
        /// The reason.
        source: Box<::landlock::RulesetError>,
    },
    /// A layer was applied without a refusal, and yet is not what it must be.
    #[error("{}: {} where it must be {} {}; {}", .0.name, .0.seen, .0.expected, .0.detail, .0.name.way_out())]
    LocalLayer(Box<Layer>),
    /// An act that the layer must refuse was allowed.
    #[error("{layer}: the probe was not refused; {}", layer.way_out())]
    LocalProbe {
        /// The layer without effect.
        layer: LayerName,
    },
    /// Reading the clock makes a system call on this machine.
    #[error("clock: reading it takes a system call; {}", LayerName::Clock.way_out())]
    LocalClock,
    /// A file under `/proc` does not have the expected form.
    #[error("{layer}: cannot read `{field}` from /proc; mount /proc without hidepid for this user")]
    LocalProc {
        /// What was to be learned.
        layer: LayerName,
        /// The field that is missing or malformed.
        field: &'static str,
    },
    /// A foreign program that is not what it was said to be, or none that can be started.
    #[error("program: {fault}; start it with the digest of the file as it is now, at most {} MiB of it", crate::launch::MOST >> 20)]
    LocalProgram {
        /// What is wrong with it.
        fault: &'static str,
    },
    /// A second thread exists where one thread must confine itself for all.
    #[error("threads: {count} before confinement, must be 1; start threads after `restrict`")]
    MisuseThreads {
        /// How many there are.
        count: usize,
    },
    /// Started as root without a uid to change to, or with uid 0.
    #[error("uid: root needs an identity other than 0; {}", LayerName::Uid.way_out())]
    MisuseIdentity,
    /// The environment's identity is not `uid:gid`.
    #[error("uid: OPENRED_IDENTITY must be `uid:gid` with both above 0")]
    MisuseIdentityText,
    /// The role is not one that is caged, or keeps what it must not.
    #[error("the role {role} cannot do this")]
    MisuseRole {
        /// The role.
        role: Role,
    },
    /// A descriptor that is not in the table, or was taken before.
    #[error("descriptors: {number} is not in the table or was taken before")]
    MisuseDescriptor {
        /// Its number.
        number: RawFd,
    },
    /// A descriptor table that is too long or not contiguous from 0.
    #[error("descriptors: a table must hold 0 to n without a gap, at most {} entries", crate::spawn::MAX_DESCRIPTORS)]
    MisuseTable,
    /// A text with a NUL byte, or too many arguments.
    #[error("spawn: an argument or variable holds a NUL byte")]
    MisuseText,
    /// The other side of the barrier ended.
    #[error("barrier: the other side is gone")]
    PeerGone,
    /// A line on the barrier that is not one of the stages.
    #[error("barrier: a line that is no stage")]
    PeerMalformed,
    /// No line on the barrier in time.
    #[error("barrier: nothing within {seconds} s")]
    PeerSilent {
        /// How long was waited.
        seconds: u64,
    },
}

impl Error {
    pub(crate) fn kernel(layer: LayerName, call: &'static str) -> impl Fn(nix::Error) -> Error {
        move |errno| Error::LocalKernel { layer, call, source: io::Error::from(errno) }
    }

    pub(crate) fn io(layer: LayerName, call: &'static str) -> impl Fn(io::Error) -> Error {
        move |source| Error::LocalKernel { layer, call, source }
    }
}
