//! Acts that a process tries from inside its cage, to prove that they are refused there and work outside. Used by the
//! test program (`src/bin/openred-cage-probe.rs`) only; no daemon calls it.

use crate::sys;

pub mod cost;
pub mod memory;
pub mod shim;
pub mod sweep;

const READ_WRITE_EXECUTE: u64 = (libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC) as u64;
const PRIVATE_ANONYMOUS: u64 = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u64;
/// An argument that the kernel takes as a pointer: it answers EFAULT where it comes to read it.
const NULL: u64 = 0;

/// A single system call, its arguments, and what the kernel answers outside the cage (`None`: success).
pub type Raw = (&'static str, i64, [u64; 6], Option<i32>);

/// Calls that no caged role has. Each is harmless where it is allowed.
pub const FORBIDDEN: [Raw; 16] = [
    ("execve", libc::SYS_execve, [NULL; 6], Some(libc::EFAULT)),
    ("execveat", libc::SYS_execveat, [u64::MAX, NULL, NULL, NULL, 0, 0], Some(libc::EFAULT)),
    ("fork", libc::SYS_fork, [0; 6], None),
    ("clone-process", libc::SYS_clone, [libc::SIGCHLD as u64, 0, 0, 0, 0, 0], None),
    ("ptrace", libc::SYS_ptrace, [libc::PTRACE_TRACEME as u64, 0, 0, 0, 0, 0], None),
    ("unshare", libc::SYS_unshare, [libc::CLONE_NEWUSER as u64, 0, 0, 0, 0, 0], None),
    ("mount", libc::SYS_mount, [NULL; 6], Some(libc::EFAULT)),
    ("process-vm-readv", libc::SYS_process_vm_readv, [1, NULL, 1, NULL, 1, 0], Some(libc::EFAULT)),
    ("kill", libc::SYS_kill, [0, 0, 0, 0, 0, 0], None),
    ("dumpable", libc::SYS_prctl, [libc::PR_SET_DUMPABLE as u64, 1, 0, 0, 0, 0], None),
    ("mmap-exec", libc::SYS_mmap, [0, 4096, READ_WRITE_EXECUTE, PRIVATE_ANONYMOUS, u64::MAX, 0], None),
    ("recvmsg", libc::SYS_recvmsg, [3, NULL, 0, 0, 0, 0], Some(libc::EFAULT)),
    ("memfd", libc::SYS_memfd_create, [NULL; 6], Some(libc::EFAULT)),
    ("bind", libc::SYS_bind, [3, NULL, 2, 0, 0, 0], Some(libc::EFAULT)),
    ("netlink", libc::SYS_socket, [libc::AF_NETLINK as u64, libc::SOCK_RAW as u64, 0, 0, 0, 0], None),
    (
        "socketpair-inet",
        libc::SYS_socketpair,
        [libc::AF_INET as u64, libc::SOCK_STREAM as u64, 0, NULL, 0, 0],
        Some(libc::EFAULT),
    ),
];

/// Calls that front, vault and unseal do not have.
pub const FORBIDDEN_WITH_KEYS: [Raw; 5] = [
    ("socket-inet", libc::SYS_socket, [libc::AF_INET as u64, libc::SOCK_STREAM as u64, 0, 0, 0, 0], None),
    ("socket-unix", libc::SYS_socket, [libc::AF_UNIX as u64, libc::SOCK_STREAM as u64, 0, 0, 0, 0], None),
    ("connect", libc::SYS_connect, [3, NULL, 2, 0, 0, 0], Some(libc::EFAULT)),
    ("openat", libc::SYS_openat, [u64::MAX, NULL, 0, 0, 0, 0], Some(libc::EFAULT)),
    ("open", libc::SYS_open, [NULL; 6], Some(libc::EFAULT)),
];

/// Ways to reach the network, or another process, that Landlock does not see: `noded` and the directory do not have them.
pub const FORBIDDEN_PAST_LANDLOCK: [Raw; 8] = [
    ("socket-mptcp", libc::SYS_socket, stream(libc::IPPROTO_MPTCP), None),
    ("socket-udp", libc::SYS_socket, [libc::AF_INET as u64, libc::SOCK_DGRAM as u64, 0, 0, 0, 0], None),
    ("socket-udp6", libc::SYS_socket, [libc::AF_INET6 as u64, libc::SOCK_DGRAM as u64, 17, 0, 0, 0], None),
    ("send-fast-open", libc::SYS_sendto, [3, NULL, 0, libc::MSG_FASTOPEN as u64, NULL, 0], None),
    ("send-addressed", libc::SYS_sendto, [3, NULL, 0, 0, 1, 16], Some(libc::EFAULT)),
    ("sendmmsg", libc::SYS_sendmmsg, [3, NULL, 1, 0, 0, 0], Some(libc::EFAULT)),
    ("sendmsg", libc::SYS_sendmsg, [3, NULL, 0, 0, 0, 0], Some(libc::EFAULT)),
    (
        "peer-pidfd",
        libc::SYS_getsockopt,
        [3, libc::SOL_SOCKET as u64, libc::SO_PEERPIDFD as u64, NULL, NULL, 0],
        Some(libc::EFAULT),
    ),
];

/// Marks an open file of its own set-user-id: `noded` and the directory may not, though they may change a file's mode.
pub const SET_USER_ID: Raw = ("fchmod-setuid", libc::SYS_fchmod, [4, 0o4700, 0, 0, 0, 0], None);

const fn stream(protocol: i32) -> [u64; 6] {
    [libc::AF_INET as u64, libc::SOCK_STREAM as u64, protocol as u64, 0, 0, 0]
}

/// The call of that name.
#[must_use]
pub fn named(name: &str) -> Option<Raw> {
    let listed = FORBIDDEN.into_iter().chain(FORBIDDEN_WITH_KEYS).chain(FORBIDDEN_PAST_LANDLOCK);
    listed.chain([SET_USER_ID, CAPABLE, ROOT]).find(|(found, ..)| *found == name)
}

/// Signal 0 to process `pid`: whether a signal would reach it. Sends none.
#[must_use]
pub const fn signal(pid: u32) -> Raw {
    ("signal", libc::SYS_kill, [pid as u64, 0, 0, 0, 0, 0], None)
}

/// Takes a host name of its own: harmless, and refused to who has not CAP_SYS_ADMIN.
pub const CAPABLE: Raw = ("capable", libc::SYS_unshare, [libc::CLONE_NEWUTS as u64, 0, 0, 0, 0, 0], None);

/// Asks to be root again.
pub const ROOT: Raw = ("root", libc::SYS_setresuid, [0; 6], None);

/// Tries it: the kernel's answer, or the errno of its refusal.
pub fn attempt((_, number, arguments, _): Raw) -> Result<i64, i32> {
    sys::attempt(number, arguments)
}
