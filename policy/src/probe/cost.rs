//! What a filter costs: a cheap system call, made many times by a process that carries the filter of a role. Used by the
//! measuring program (`src/bin/openred-cage-bench.rs`) only.

use std::fs::File;
use std::io::{self, Read, Write};
use std::mem::ManuallyDrop;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::unistd::pipe2;

use crate::role::Role;
use crate::spawn::Exit;
use crate::{seccomp, sys};

/// Which call is made. Both are in every list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// `getpid`: allowed whatever its arguments are. Of such calls the kernel remembers the answer and does not run the filter.
    Plain,
    /// `tgkill` of nobody: its arguments decide, so the filter is run each time, here to its last rules.
    Checked,
}

impl Call {
    fn raw(self) -> (i64, [u64; 6]) {
        match self {
            Call::Plain => (libc::SYS_getpid, [0; 6]),
            Call::Checked => (libc::SYS_tgkill, [u64::MAX, u64::MAX, libc::SIGABRT as u64, 0, 0, 0]),
        }
    }
}

/// The time that so many calls take under the filter of `role` (`None`: without). Call it while this process has one thread.
pub fn of_calls(role: Option<Role>, call: Call, count: u32) -> io::Result<Duration> {
    let (number, arguments) = call.raw();
    let (reader, writer): (OwnedFd, OwnedFd) = pipe2(OFlag::O_CLOEXEC)?;
    let end = sys::in_child(|| {
        if role.is_some_and(|role| seccomp::install(role, false).is_err()) {
            return 1;
        }
        let start = Instant::now();
        for _ in 0..count {
            let _ = sys::attempt(number, arguments);
        }
        let nanoseconds = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        // Left open: the vault's list has no close.
        let mut writer = ManuallyDrop::new(File::from(writer));
        i32::from(writer.write_all(&nanoseconds.to_ne_bytes()).is_err())
    })?;
    if end != Exit::Code(0) {
        return Err(Errno::EIO.into());
    }
    let mut nanoseconds = [0; 8];
    File::from(reader).read_exact(&mut nanoseconds)?;
    Ok(Duration::from_nanos(u64::from_ne_bytes(nanoseconds)))
}
