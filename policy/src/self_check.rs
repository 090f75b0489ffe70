//! Step 2: what a process checks about itself before it does anything else. Reads `/proc/self`, which is gone later.

use std::fs;
use std::os::fd::{AsFd, RawFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Pid, getsid, setsid};

use crate::error::{Error, Result};
use crate::layer::{Layer, LayerName};
use crate::role::Role;
use crate::spawn::Exit;
use crate::{seccomp, sys};

/// Files are their owner's alone, as `/proc/self/status` writes it.
const UMASK: &str = "0077";

/// What descriptors a process may have at its start.
#[derive(Clone, Copy, Debug)]
pub enum Descriptors<'a> {
    /// Exactly these; anything else is fatal. For children of the supervisor.
    Exactly(&'a [RawFd]),
    /// These must be there, all others are closed. For a program started from a shell or by systemd.
    CloseOthers(&'a [RawFd]),
}

/// The value of one field of a `/proc/…/status` text.
pub(crate) fn status_field<'a>(status: &'a str, field: &str) -> Option<&'a str> {
    status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':')).map(str::trim)
}

fn own_text(layer: LayerName, field: &'static str) -> Result<String> {
    let status = fs::read_to_string("/proc/self/status").map_err(Error::io(layer, "read /proc/self/status"))?;
    status_field(&status, field).map(str::to_owned).ok_or(Error::LocalProc { layer, field })
}

fn own_status(layer: LayerName, field: &'static str) -> Result<i64> {
    own_text(layer, field)?.parse().map_err(|_| Error::LocalProc { layer, field })
}

pub(crate) fn untraced() -> Result<Layer> {
    match own_status(LayerName::Untraced, "TracerPid")? {
        0 => Ok(Layer::new(LayerName::Untraced, "no tracer", "no tracer")),
        tracer => Err(Error::LocalTraced { tracer: tracer as i32 }),
    }
}

pub(crate) fn no_core_dumps() -> Result<Layer> {
    setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(Error::kernel(LayerName::CoreDumps, "setrlimit"))?;
    Ok(Layer::new(LayerName::CoreDumps, "limit 0", "limit 0"))
}

pub(crate) fn session(role: Role) -> Result<Layer> {
    let seen = match setsid() {
        Ok(_) => "new",
        Err(Errno::EPERM) if getsid(None) == Ok(Pid::this()) => "new",
        // A group leader started from a shell cannot leave its session; only the directory is started so.
        Err(Errno::EPERM) if role == Role::Directory => "the shell's",
        Err(errno) => return Err(Error::kernel(LayerName::Session, "setsid")(errno)),
    };
    umask(Mode::from_bits_truncate(0o077));
    // Read back: `umask` has no way to refuse.
    let mask = own_text(LayerName::Session, "Umask")?;
    if !sys::one_malloc_arena() {
        return Err(Error::kernel(LayerName::Session, "mallopt")(Errno::EINVAL));
    }
    let expected = if role == Role::Directory { seen } else { "new" };
    let (expected, seen) = (format!("{expected}, umask {UMASK}"), format!("{seen}, umask {mask}"));
    Ok(Layer::new(LayerName::Session, expected, seen).detail("one malloc arena"))
}

/// The descriptors that are open now, without the one that reads the list.
fn open_descriptors() -> Result<Vec<RawFd>> {
    let failed = Error::io(LayerName::Descriptors, "read /proc/self/fd");
    let names: Vec<RawFd> = fs::read_dir("/proc/self/fd")
        .map_err(&failed)?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    // The directory's own descriptor was in the list and is closed by now.
    let mut open: Vec<RawFd> =
        names.into_iter().filter(|number| fs::symlink_metadata(format!("/proc/self/fd/{number}")).is_ok()).collect();
    open.sort_unstable();
    Ok(open)
}

pub(crate) fn descriptors(wanted: Descriptors<'_>) -> Result<(Layer, Vec<RawFd>)> {
    let (Descriptors::Exactly(expected) | Descriptors::CloseOthers(expected)) = wanted;
    let mut expected = expected.to_vec();
    expected.sort_unstable();
    if matches!(wanted, Descriptors::CloseOthers(_)) {
        let first = expected.iter().max().map_or(0, |last| last + 1);
        sys::close_range(first as u32, u32::MAX).map_err(Error::io(LayerName::Descriptors, "close_range"))?;
    }
    let open = open_descriptors()?;
    let unexpected: Vec<RawFd> = open.iter().copied().filter(|number| !expected.contains(number)).collect();
    let missing: Vec<RawFd> = expected.iter().copied().filter(|number| !open.contains(number)).collect();
    if !unexpected.is_empty() || !missing.is_empty() {
        return Err(Error::LocalDescriptors { unexpected, missing });
    }
    Ok((Layer::new(LayerName::Descriptors, format!("{expected:?}"), format!("{open:?}")), open))
}

pub(crate) fn close_on_exec(descriptor: impl AsFd) -> Result<()> {
    fcntl(descriptor, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).map_err(Error::kernel(LayerName::Descriptors, "fcntl"))?;
    Ok(())
}

/// No filter has a rule for reading the clock: the vDSO must serve it. A forked child tries with the call forbidden.
pub(crate) fn clock() -> Result<Layer> {
    let end = sys::in_child(|| match seccomp::forbid_clock() {
        0 => {
            let _ = (std::time::Instant::now(), std::time::SystemTime::now());
            0
        }
        refused => refused,
    });
    match end.map_err(Error::io(LayerName::Clock, "fork"))? {
        Exit::Code(0) => {}
        Exit::Code(refused) => return Err(seccomp::not_forbidden(refused)),
        Exit::Signal(_) => return Err(Error::LocalClock),
    }
    Ok(Layer::new(LayerName::Clock, "vdso", "vdso"))
}

/// Namespaces, Landlock and capabilities cover one thread.
pub(crate) fn one_thread() -> Result<()> {
    match own_status(LayerName::Threads, "Threads")? {
        1 => Ok(()),
        count => Err(Error::MisuseThreads { count: usize::try_from(count).unwrap_or(0) }),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn fields_of_a_status_text() {
        let text = "Name:\tx\nThreads:\t3\nThreadsOther:\t9\n";
        assert_eq!(status_field(text, "Threads"), Some("3"));
        assert_eq!(status_field(text, "Thread"), None);
    }

    #[test]
    fn a_table_with_more_or_less_is_refused() {
        let refused = descriptors(Descriptors::Exactly(&[0, 1, 2, 900])).unwrap_err();
        assert!(matches!(refused, Error::LocalDescriptors { missing, .. } if missing == [900]));
        let extra = fs::File::open("/dev/null").unwrap();
        let refused = descriptors(Descriptors::Exactly(&[0, 1, 2])).unwrap_err();
        let number = std::os::fd::AsRawFd::as_raw_fd(&extra);
        assert!(matches!(refused, Error::LocalDescriptors { unexpected, .. } if unexpected.contains(&number)));
    }
}
