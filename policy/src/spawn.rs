//! Starting a child: an exact descriptor table, an exact environment, death with the parent, a pidfd to name it by.
//!
//! The child confines itself; this only makes sure that it starts with nothing else. It does not restart anybody.

use std::ffi::CString;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::Signal;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::pipe2;

use crate::confine::Identity;
use crate::error::{Error, Result};
use crate::layer::LayerName;
use crate::sys;

/// Most descriptors that a child can be given: the longest tables (`noded`, the vault) have 10.
pub const MAX_DESCRIPTORS: usize = 32;

/// Where sources are kept between duplication and fork: above every table.
const PARKING: RawFd = 64;

/// What to start and with what.
#[derive(Debug)]
pub struct SpawnSpec {
    program: PathBuf,
    arguments: Vec<CString>,
    environment: Vec<CString>,
    table: Vec<OwnedFd>,
}

impl SpawnSpec {
    /// Starts `program`, an absolute path. Argument 0 is its file name. The environment holds `RUST_BACKTRACE=0` only.
    pub fn new(program: impl Into<PathBuf>) -> Result<Self> {
        let program = program.into();
        let name = program.file_name().unwrap_or(program.as_os_str());
        let name = CString::new(name.as_bytes()).map_err(|_| Error::MisuseText)?;
        let spec = Self { program, arguments: vec![name], environment: Vec::new(), table: Vec::new() };
        spec.variable("RUST_BACKTRACE", "0")
    }

    /// Adds an argument.
    pub fn argument(mut self, text: impl AsRef<std::ffi::OsStr>) -> Result<Self> {
        self.arguments.push(CString::new(text.as_ref().as_bytes()).map_err(|_| Error::MisuseText)?);
        Ok(self)
    }

    /// Adds an environment variable.
    pub fn variable(mut self, name: &str, value: &str) -> Result<Self> {
        self.environment.push(CString::new(format!("{name}={value}")).map_err(|_| Error::MisuseText)?);
        Ok(self)
    }

    /// As root: the uid and gid that the child changes to ([`Identity::from_env`] reads it).
    pub fn identity(self, identity: Option<Identity>) -> Result<Self> {
        match identity {
            Some(identity) => self.variable(Identity::VARIABLE, &identity.to_string()),
            None => Ok(self),
        }
    }

    /// Gives the child the next descriptor number, counted from 0. The source stays open here.
    pub fn descriptor(mut self, source: impl AsFd) -> Result<Self> {
        if self.table.len() >= MAX_DESCRIPTORS {
            return Err(Error::MisuseTable);
        }
        self.table.push(park(source.as_fd())?);
        Ok(self)
    }
}

fn park(source: BorrowedFd<'_>) -> Result<OwnedFd> {
    let number = fcntl(source, FcntlArg::F_DUPFD_CLOEXEC(PARKING)).map_err(Error::kernel(LayerName::Spawn, "fcntl"))?;
    Ok(sys::own(number))
}

/// Starts the child. Call it from a thread that lives as long as the supervisor: the child is killed when that thread ends.
pub fn spawn(spec: SpawnSpec) -> Result<Child> {
    let program = CString::new(spec.program.as_os_str().as_bytes()).map_err(|_| Error::MisuseText)?;
    let (failure_read, failure_write) = pipe2(OFlag::O_CLOEXEC).map_err(Error::kernel(LayerName::Spawn, "pipe2"))?;
    let failure_write = park(failure_write.as_fd()).map(|parked| (parked, drop(failure_write)).0)?;
    let table: Vec<RawFd> = spec.table.iter().map(AsRawFd::as_raw_fd).collect();
    let plan = sys::Launch {
        program: &program,
        arguments: &spec.arguments,
        environment: &spec.environment,
        table: &table,
        failure: failure_write.as_raw_fd(),
    };
    let (pid, pidfd) = sys::launch(&plan).map_err(Error::io(LayerName::Spawn, "clone3"))?;
    let child = Child { pid, pidfd };
    drop(failure_write);
    let mut errno = [0u8; 4];
    // The pipe closes at `execve`: an end of file means that the new program runs.
    match File::from(failure_read).read(&mut errno) {
        Ok(0) => Ok(child),
        _ => {
            let _ = waitid(Id::PIDFd(child.pidfd.as_fd()), WaitPidFlag::WEXITED);
            let source = std::io::Error::from_raw_os_error(i32::from_ne_bytes(errno));
            Err(Error::LocalKernel { layer: LayerName::Spawn, call: "execve", source })
        }
    }
}

/// A started child. Dropping it neither ends nor reaps the process.
#[derive(Debug)]
pub struct Child {
    pid: i32,
    pidfd: OwnedFd,
}

impl Child {
    /// Its process id, valid until it was reaped.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// How it ended, if it has; reaps it then. The pidfd (`AsFd`, `AsRawFd`) is readable once it has ended.
    pub fn try_wait(&self) -> Result<Option<Exit>> {
        self.wait_with(WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG)
    }

    /// Waits until it has ended and reaps it. `None` when it was reaped before.
    pub fn wait(&self) -> Result<Option<Exit>> {
        self.wait_with(WaitPidFlag::WEXITED)
    }

    fn wait_with(&self, flags: WaitPidFlag) -> Result<Option<Exit>> {
        loop {
            match waitid(Id::PIDFd(self.pidfd.as_fd()), flags) {
                Ok(WaitStatus::Exited(_, code)) => return Ok(Some(Exit::Code(code))),
                Ok(WaitStatus::Signaled(_, signal, _)) => return Ok(Some(Exit::Signal(signal as i32))),
                Ok(_) | Err(Errno::ECHILD) => return Ok(None),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(Error::kernel(LayerName::Spawn, "waitid")(errno)),
            }
        }
    }

    /// Sends a signal to exactly this process. One that has ended already is no error.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        match sys::pidfd_signal(self.pidfd.as_fd(), signal as i32) {
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            result => result.map_err(Error::io(LayerName::Spawn, "pidfd_send_signal")),
        }
    }
}

impl AsFd for Child {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

impl AsRawFd for Child {
    fn as_raw_fd(&self) -> RawFd {
        self.pidfd.as_raw_fd()
    }
}

/// How a child ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// It exited with this code.
    Code(i32),
    /// This signal ended it.
    Signal(i32),
}

impl Exit {
    /// SIGSYS: it tried a system call that its filter does not allow. A security event: no restart loop.
    #[must_use]
    pub fn broke_the_filter(self) -> bool {
        self == Exit::Signal(libc::SIGSYS)
    }
}

impl std::fmt::Display for Exit {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Exit::Code(code) => write!(out, "exit code {code}"),
            Exit::Signal(number) => match Signal::try_from(*number) {
                Ok(signal) => out.write_str(signal.as_str()),
                Err(_) => write!(out, "signal {number}"),
            },
        }
    }
}
