//! What an exploited process asks of the kernel: descriptors, `/proc`, other processes. Where the filter has the call, or this use of
//! it, not at all, it is the end of the process; where it has, the kernel answers as if nothing were there.

use std::fs::File;
use std::io::IoSlice;
use std::io::IoSliceMut;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::cmsg_space;
use nix::errno::Errno;
use nix::libc;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::prctl;
use nix::sys::ptrace;
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{ControlMessage, MsgFlags, recvmsg, sendmsg};
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::{Pid, execv, getegid, geteuid};
use openred_policy::probe;
use openred_policy::socket::ProcessId;

use super::report::{Area, Report};

/// Where a program's stack usually ends.
const SOMEWHERE: usize = 0x7fff_0000_0000;

/// Whom and what it is tried on.
pub(crate) struct Targets {
    home: PathBuf,
    /// The front's socket; none outside the cage, where a pair serves.
    socket: Option<PathBuf>,
    vault: i32,
}

impl Targets {
    pub(crate) fn of(home: &Path, vault: i32) -> Self {
        Self { home: home.to_owned(), socket: Some(home.join("run/cryptod/cryptod.sock")), vault }
    }

    /// A connection; outside the cage with a message and a descriptor in it.
    fn stream(&self) -> Result<(UnixStream, Option<UnixStream>), Errno> {
        let failed = |error: std::io::Error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO));
        match &self.socket {
            Some(socket) => Ok((UnixStream::connect(socket).map_err(failed)?, None)),
            None => {
                let (one, other) = UnixStream::pair().map_err(failed)?;
                give(&other, &other)?;
                Ok((one, Some(other)))
            }
        }
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.vault)
    }
}

/// Sends a descriptor.
fn give(through: &UnixStream, what: &UnixStream) -> Result<(), Errno> {
    let (bytes, rights) = ([IoSlice::new(b"x")], [what.as_raw_fd()]);
    sendmsg::<()>(through.as_raw_fd(), &bytes, &[ControlMessage::ScmRights(&rights)], MsgFlags::empty(), None).map(drop)
}

fn raw(number: i64, arguments: [u64; 6]) -> Result<(), Errno> {
    probe::attempt(("", number, arguments, None)).map(drop).map_err(Errno::from_raw)
}

type Act = fn(&Targets) -> Result<(), Errno>;

/// What the filter ends the process for.
const FATAL: [(Area, &str, Act); 14] = [
    (Area::Descriptors, "take-descriptor", |targets| {
        let (stream, _other) = targets.stream()?;
        let (mut byte, mut space) = ([0], cmsg_space!([i32; 1]));
        let mut into = [IoSliceMut::new(&mut byte)];
        recvmsg::<()>(stream.as_raw_fd(), &mut into, Some(&mut space), MsgFlags::MSG_DONTWAIT).map(drop)
    }),
    (Area::Descriptors, "give-descriptor", |targets| {
        let (stream, _other) = targets.stream()?;
        give(&stream, &stream)
    }),
    (Area::Descriptors, "pidfd-of-vault", |targets| {
        raw(libc::SYS_pidfd_open, [u64::from(targets.vault.unsigned_abs()), 0, 0, 0, 0, 0])
    }),
    (Area::Descriptors, "pidfd-of-peer", |targets| {
        let (stream, _other) = targets.stream()?;
        ProcessId::of_peer(&stream)
            .map(drop)
            .map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)))
    }),
    (Area::Descriptors, "memory-file", |_| memfd_create(c"attack", MFdFlags::empty()).map(drop)),
    (Area::Descriptors, "own-proc-files", |_| prctl::set_dumpable(true)),
    (Area::Descriptors, "mount", |targets| {
        if targets.socket.is_none() {
            own_user_namespace()?;
        }
        mount(Some("tmpfs"), Path::new("/"), Some("tmpfs"), MsFlags::empty(), None::<&str>)
    }),
    (Area::Processes, "kill", |targets| kill(targets.pid(), Signal::SIGKILL)),
    (Area::Processes, "thread-kill", |targets| {
        let pid = u64::from(targets.vault.unsigned_abs());
        raw(libc::SYS_tgkill, [pid, pid, libc::SIGKILL as u64, 0, 0, 0])
    }),
    (Area::Processes, "ptrace", |targets| ptrace::attach(targets.pid())),
    (Area::Processes, "read-memory", |targets| {
        let mut bytes = [0; 8];
        let remote = [RemoteIoVec { base: SOMEWHERE, len: bytes.len() }];
        match process_vm_readv(targets.pid(), &mut [IoSliceMut::new(&mut bytes)], &remote) {
            // Allowed, and nothing there.
            Err(Errno::EFAULT) => Ok(()),
            came => came.map(drop),
        }
    }),
    (Area::Processes, "fork", |_| raw(libc::SYS_fork, [0; 6])),
    (Area::Processes, "execute", |_| execv(c"/bin/true", &[c"/bin/true"]).map(drop)),
    (Area::Processes, "user-namespace", |_| unshare(CloneFlags::CLONE_NEWUSER)),
];

/// For the control of what takes a capability.
fn own_user_namespace() -> Result<(), Errno> {
    let (uid, gid) = (geteuid(), getegid());
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS)?;
    for (file, text) in [
        ("setgroups", String::from("deny")),
        ("uid_map", format!("{uid} {uid} 1")),
        ("gid_map", format!("{gid} {gid} 1")),
    ] {
        std::fs::write(format!("/proc/self/{file}"), text).map_err(|_| Errno::EACCES)?;
    }
    Ok(())
}

/// The names of all of them.
pub(crate) fn names() -> impl Iterator<Item = &'static str> {
    FATAL.iter().map(|(_, name, _)| *name)
}

/// Tries one of those on the vault: what is written before it is the last word of this process.
pub(crate) fn fatal(report: &mut Report, name: &str, targets: &Targets) -> Result<()> {
    let (area, name, act) = FATAL.iter().find(|(_, known, _)| *known == name).context("no such act")?;
    report.last_word((*area, name))?;
    let came = act(targets);
    report.broken(&format!("{name} came back with {came:?}"))
}

/// Tries one of them outside any cage, on a process that is there for it: the errno of the kernel's refusal, or 0.
pub(crate) fn control(name: &str, pid: &str) -> i32 {
    let found = FATAL.iter().find(|(_, known, _)| *known == name);
    let (Some((_, _, act)), Ok(vault)) = (found, pid.parse()) else { return 255 };
    act(&Targets { home: PathBuf::new(), socket: None, vault }).map_or_else(|errno| errno as i32, |()| 0)
}

/// What the kernel answers by itself: nothing is there, or nothing may be done to it.
pub(crate) fn answered(report: &mut Report, targets: &Targets) -> Result<()> {
    let open = |path: PathBuf, write: bool| {
        let opened = File::options().read(true).write(write).open(path);
        opened.map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)))
    };
    let nothing = [Errno::ENOENT];
    let vault = targets.vault;
    for (area, name, path, write) in [
        (Area::Descriptors, "the vault's memory", PathBuf::from(format!("/proc/{vault}/mem")), false),
        (Area::Descriptors, "the vault's descriptors", PathBuf::from(format!("/proc/{vault}/fd/6")), false),
        (Area::Descriptors, "its own memory map", PathBuf::from("/proc/self/maps"), false),
        (Area::Descriptors, "the keystore", targets.home.join("keystore.age"), false),
        (Area::Descriptors, "the vault's state", targets.home.join("vault/state"), true),
        (Area::Audit, "a segment of the trail", targets.home.join("audit/a.segment"), true),
    ] {
        report.kernel((area, name), &nothing, open(path, write))?;
    }
    let connect = |path: &str| {
        let connected = UnixStream::connect(targets.home.join(path));
        connected.map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)))
    };
    report.kernel((Area::Processes, "the supervisor's socket"), &nothing, connect("run/control.sock"))?;
    let beside = targets.home.join("run/cryptod/attack.sock");
    let made = File::create(beside).map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)));
    report.kernel((Area::Descriptors, "a file beside the front's socket"), &[Errno::EROFS, Errno::EACCES], made)?;
    // The one signal that the filter lets through, because a panic ends in it: it reaches nobody else.
    let pid = u64::from(vault.unsigned_abs());
    let sent = raw(libc::SYS_tgkill, [pid, pid, libc::SIGABRT as u64, 0, 0, 0]);
    report.kernel((Area::Processes, "abort the vault"), &[Errno::EPERM], sent)
}
