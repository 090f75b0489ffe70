//! Kernels that lack one layer, for the test that no process goes on without it. Used by the test programs only: a filter put on
//! before the process confines itself answers one call as such a kernel would, or (errno 0) says yes and does nothing. What is
//! shipped has no switch for it.

use seccompiler::sock_filter;

use crate::layer::LayerName;
use crate::role::{Role, Uid};

const LOAD: u16 = 0x20;
const EQUAL: u16 = 0x15;
const RETURN: u16 = 0x06;

/// Where the arguments begin in `struct seccomp_data`.
const ARGUMENTS: u32 = 16;

const UNSHARED: u32 = (libc::CLONE_NEWNS | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS | libc::CLONE_NEWCGROUP) as u32;
const WITHOUT_NETWORK: u32 = UNSHARED | libc::CLONE_NEWNET as u32;
const CORE: u32 = libc::RLIMIT_CORE;
const MSGQUEUE: u32 = libc::RLIMIT_MSGQUEUE;
const TSYNC: u32 = libc::SECCOMP_FILTER_FLAG_TSYNC as u32;
const YES: i32 = 0;

/// What is missing.
#[derive(Clone, Copy, Debug)]
pub enum Lack {
    /// A call, when these arguments (index, low word) are these: answered with the errno, or with success where that is 0.
    Call(i64, &'static [(u32, u32)], i32),
    /// A process that nobody traces.
    Untraced,
    /// A clock that is read without a system call.
    Clock,
    /// A process of one thread.
    OneThread,
    /// A clean descriptor table.
    Descriptors,
}

/// One kernel: its name, the layer that must be named, the role that tries, the form of the cage in which it makes a difference
/// (`None`: both), and what it lacks.
pub type Shim = (&'static str, LayerName, Role, Option<Uid>, Lack);

const ROOT: Option<Uid> = Some(Uid::Separate);
const ORDINARY: Option<Uid> = Some(Uid::Shared);

/// At least one for each layer. The arena's are put on before the process starts, because it is mapped before `main`.
pub const SHIMS: &[Shim] = {
    use Lack::{Call, Clock, Descriptors, OneThread, Untraced};
    use LayerName as L;
    use Role::{Directory, Noded, Vault};
    use libc::{EINVAL, ENOSYS, EOPNOTSUPP, EPERM};
    const fn prctl(option: i32) -> u32 {
        option as u32
    }
    &[
        ("traced", L::Untraced, Vault, None, Untraced),
        ("core-limit", L::CoreDumps, Vault, None, Call(libc::SYS_prlimit64, &[(1, CORE)], EPERM)),
        ("session", L::Session, Vault, None, Call(libc::SYS_setsid, &[], EPERM)),
        ("umask-says-yes", L::Session, Noded, None, Call(libc::SYS_umask, &[], YES)),
        ("descriptors", L::Descriptors, Noded, None, Descriptors),
        ("clock", L::Clock, Vault, None, Clock),
        ("threads", L::Threads, Noded, None, OneThread),
        (
            "user-namespace",
            L::UserNamespace,
            Vault,
            ORDINARY,
            Call(libc::SYS_unshare, &[(0, libc::CLONE_NEWUSER as u32)], EPERM),
        ),
        ("namespaces", L::Namespaces, Vault, None, Call(libc::SYS_unshare, &[(0, WITHOUT_NETWORK)], EPERM)),
        ("namespaces-of-noded", L::Namespaces, Noded, None, Call(libc::SYS_unshare, &[(0, UNSHARED)], EPERM)),
        ("mount", L::EmptyRoot, Vault, None, Call(libc::SYS_mount, &[], EPERM)),
        ("pivot-root", L::EmptyRoot, Vault, None, Call(libc::SYS_pivot_root, &[], EPERM)),
        ("pivot-root-says-yes", L::EmptyRoot, Vault, None, Call(libc::SYS_pivot_root, &[], YES)),
        ("old-root", L::EmptyRoot, Vault, None, Call(libc::SYS_umount2, &[], EPERM)),
        ("open-tree", L::EmptyRoot, Noded, None, Call(libc::SYS_open_tree, &[], ENOSYS)),
        ("mount-setattr", L::EmptyRoot, Directory, None, Call(libc::SYS_mount_setattr, &[], ENOSYS)),
        ("groups", L::Uid, Vault, ROOT, Call(libc::SYS_setgroups, &[], EPERM)),
        ("gid-says-yes", L::Uid, Vault, ROOT, Call(libc::SYS_setresgid, &[], YES)),
        ("uid", L::Uid, Vault, ROOT, Call(libc::SYS_setresuid, &[], EPERM)),
        ("uid-says-yes", L::Uid, Vault, ROOT, Call(libc::SYS_setresuid, &[], YES)),
        ("death-signal", L::Barrier, Vault, None, Call(libc::SYS_prctl, &[(0, prctl(libc::PR_SET_PDEATHSIG))], EINVAL)),
        ("limits", L::Limits, Vault, None, Call(libc::SYS_prlimit64, &[(1, MSGQUEUE)], EPERM)),
        ("limits-say-yes", L::Limits, Vault, None, Call(libc::SYS_prlimit64, &[(1, MSGQUEUE), (3, 0)], YES)),
        ("capabilities", L::Capabilities, Vault, None, Call(libc::SYS_capset, &[], EPERM)),
        (
            "bounding-set",
            L::Capabilities,
            Noded,
            None,
            Call(libc::SYS_prctl, &[(0, prctl(libc::PR_CAPBSET_DROP))], EINVAL),
        ),
        (
            "securebits",
            L::Capabilities,
            Vault,
            None,
            Call(libc::SYS_prctl, &[(0, prctl(libc::PR_SET_SECUREBITS))], EPERM),
        ),
        (
            "securebits-say-yes",
            L::Capabilities,
            Vault,
            None,
            Call(libc::SYS_prctl, &[(0, prctl(libc::PR_SET_SECUREBITS))], YES),
        ),
        ("memory-exec", L::MemoryExec, Vault, None, Call(libc::SYS_prctl, &[(0, prctl(libc::PR_SET_MDWE))], EINVAL)),
        (
            "memory-exec-says-yes",
            L::MemoryExec,
            Directory,
            None,
            Call(libc::SYS_prctl, &[(0, prctl(libc::PR_SET_MDWE))], YES),
        ),
        (
            "no-new-privs",
            L::NoNewPrivs,
            Vault,
            None,
            Call(libc::SYS_prctl, &[(0, prctl(libc::PR_SET_NO_NEW_PRIVS))], EINVAL),
        ),
        ("landlock", L::Landlock, Vault, None, Call(libc::SYS_landlock_create_ruleset, &[], EOPNOTSUPP)),
        ("landlock-says-yes", L::Landlock, Noded, None, Call(libc::SYS_landlock_restrict_self, &[], YES)),
        (
            "not-dumpable",
            L::NotDumpable,
            Vault,
            None,
            Call(libc::SYS_prctl, &[(0, prctl(libc::PR_SET_DUMPABLE)), (1, 0)], EINVAL),
        ),
        (
            "not-dumpable-says-yes", // as root the change of uid has made it so already
            L::NotDumpable,
            Directory,
            ORDINARY,
            Call(libc::SYS_prctl, &[(0, prctl(libc::PR_SET_DUMPABLE)), (1, 0)], YES),
        ),
        ("secret-memory", L::Arena, Vault, ROOT, Call(libc::SYS_memfd_secret, &[], ENOSYS)),
        ("sealed-memory", L::Arena, Vault, None, Call(libc::SYS_mseal, &[], ENOSYS)),
        (
            "filter-at-all",
            L::Seccomp,
            Noded,
            None,
            Call(libc::SYS_seccomp, &[(0, libc::SECCOMP_SET_MODE_FILTER)], ENOSYS),
        ),
        (
            "filter",
            L::Seccomp,
            Vault,
            None,
            Call(libc::SYS_seccomp, &[(0, libc::SECCOMP_SET_MODE_FILTER), (1, TSYNC)], EINVAL),
        ),
    ]
};

/// A kernel on which the filter says yes and is not there. Nothing inside can see that; the supervisor does.
pub const NO_FILTER: Shim = (
    "filter-says-yes",
    LayerName::Seccomp,
    Role::Vault,
    None,
    Lack::Call(libc::SYS_seccomp, &[(0, libc::SECCOMP_SET_MODE_FILTER), (1, TSYNC)], YES),
);

/// The shim of that name.
#[must_use]
pub fn named(name: &str) -> Option<Shim> {
    SHIMS.iter().copied().chain([NO_FILTER]).find(|(found, ..)| *found == name)
}

/// Puts the filter of a [`Lack::Call`] on this thread and what it starts; whether that worked.
#[must_use]
pub fn answer(number: i64, conditions: &[(u32, u32)], errno: i32) -> bool {
    let step = |code, jf, k| sock_filter { code, jt: 0, jf, k };
    // Where a comparison fails, the last line is next: allow.
    let lines = 4 + 2 * conditions.len();
    let to_end = |at: usize| u8::try_from(lines - at - 2).unwrap_or(u8::MAX);
    let mut program = vec![step(LOAD, 0, 0), step(EQUAL, to_end(1), number as u32)];
    for (index, value) in conditions {
        program.push(step(LOAD, 0, ARGUMENTS + 8 * index));
        program.push(step(EQUAL, to_end(program.len()), *value));
    }
    program.push(step(RETURN, 0, libc::SECCOMP_RET_ERRNO | errno as u32));
    program.push(step(RETURN, 0, libc::SECCOMP_RET_ALLOW));
    seccompiler::apply_filter(&program).is_ok()
}

/// Makes reading the time-stamp counter a fault, so that the vDSO cannot serve the clock.
#[must_use]
pub fn without_time_stamps() -> bool {
    crate::sys::prctl(libc::PR_SET_TSC, libc::PR_TSC_SIGSEGV as u64, 0).is_ok()
}
