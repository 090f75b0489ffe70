//! Step 8: the system-call filter of a role, on every thread. The lists are data (`seccomp/*.json`, a reason on each rule);
//! `build.rs` compiled them. What is not allowed ends the process (SIGSYS); a few calls are answered with an error, because
//! libraries ask for them and know another way.
//!
//! A program can also be read instead of run: [`syscalls_allowed`] counts what it can let through, so that the figure in a
//! report is that of the filter and not of the list.

use seccompiler::{BpfProgram, SeccompAction, sock_filter};

use crate::error::{Error, Result};
use crate::layer::{Layer, LayerName};
use crate::role::Role;

pub(crate) struct Filter {
    /// Calls that the list allows, some only with certain arguments.
    names: &'static [&'static str],
    /// How many of them are needed while serving; the others belong to exit and panic.
    service: usize,
    /// The allow-list, then the programs that answer.
    programs: &'static [&'static [(u16, u8, u8, u32)]],
}

include!(concat!(env!("OUT_DIR"), "/filters.rs"));

/// Numbers that are looked at when a program is read: beyond the last call of any kernel we know.
const NUMBERS: u32 = 600;

// The instructions that our programs are made of (classic BPF).
const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP: u16 = 0x05;
const EQUAL: u16 = 0x15;
const GREATER: u16 = 0x25;
const GREATER_OR_EQUAL: u16 = 0x35;
const RETURN: u16 = 0x06;

const ARCHITECTURE: u32 = 0xC000_003E; // AUDIT_ARCH_X86_64

fn filter(role: Role) -> Option<&'static Filter> {
    match role {
        Role::Front => Some(&FRONT),
        Role::Vault => Some(&VAULT),
        Role::Unseal => Some(&UNSEAL),
        Role::Noded => Some(&NODED),
        Role::Directory => Some(&DIRECTORY),
        Role::Module => Some(&MODULE),
        Role::Supervisor => None,
    }
}

fn program(instructions: &[(u16, u8, u8, u32)]) -> BpfProgram {
    instructions.iter().map(|&(code, jt, jf, k)| sock_filter { code, jt, jf, k }).collect()
}

/// The filter of a process: its role's, or that of a directory which connects to its database.
fn filter_of(role: Role, database: bool) -> Option<&'static Filter> {
    match (role, database) {
        (Role::Directory, true) => Some(&DIRECTORY_DATABASE),
        (_, true) => None,
        (role, false) => filter(role),
    }
}

/// How many system calls the process's filter can let through.
pub(crate) fn allowed(role: Role, database: bool) -> usize {
    filter_of(role, database).map_or(0, count)
}

/// Puts the process's filter on every thread of it.
pub(crate) fn install(role: Role, database: bool) -> Result<Layer> {
    let filter = filter_of(role, database).ok_or(Error::MisuseRole { role })?;
    let programs: Vec<BpfProgram> = filter.programs.iter().map(|instructions| program(instructions)).collect();
    let text = format!("{} programs on all threads", programs.len());
    let layer = Layer::new(LayerName::Seccomp, text.clone(), text)
        .detail(format!("{} calls allowed, anything else ends the process", count(filter)));
    // The allow-list comes last: it does not allow installing another.
    for instructions in programs.iter().rev() {
        apply(instructions)?;
    }
    Ok(layer)
}

fn apply(program: &BpfProgram) -> Result<()> {
    seccompiler::apply_filter_all_threads(program).map_err(refused)
}

/// The layer that the kernel refused when a filter was put on: a filter needs `no_new_privs` first.
fn refused(error: seccompiler::Error) -> Error {
    let (layer, call, source) = match error {
        seccompiler::Error::Prctl(source) => (LayerName::NoNewPrivs, "prctl", source),
        seccompiler::Error::Seccomp(source) => (LayerName::Seccomp, "seccomp", source),
        _ => (LayerName::Seccomp, "seccomp", std::io::Error::from_raw_os_error(libc::EBUSY)), // a thread could not be synchronised
    };
    Error::LocalKernel { layer, call, source }
}

/// Ends the process at a clock call that the vDSO does not serve. A constant, because a forked probe has no heap where the
/// arena is wiped on fork.
static FORBID_CLOCK: [sock_filter; 6] = [
    sock_filter { code: LOAD, jt: 0, jf: 0, k: 0 },
    sock_filter { code: EQUAL, jt: 3, jf: 0, k: libc::SYS_clock_gettime as u32 },
    sock_filter { code: EQUAL, jt: 2, jf: 0, k: libc::SYS_gettimeofday as u32 },
    sock_filter { code: EQUAL, jt: 1, jf: 0, k: libc::SYS_time as u32 },
    sock_filter { code: RETURN, jt: 0, jf: 0, k: libc::SECCOMP_RET_ALLOW },
    sock_filter { code: RETURN, jt: 0, jf: 0, k: libc::SECCOMP_RET_KILL_PROCESS },
];

/// In the exit code of a probe that could not forbid the clock: `prctl` was refused, and not `seccomp`. Above every errno that
/// the two have.
const PRCTL: i32 = 128;

/// Forbids clock calls on this thread; returns 0, or what [`not_forbidden`] reads. Only for a forked probe; allocates nothing.
pub(crate) fn forbid_clock() -> i32 {
    let errno = |source: std::io::Error| source.raw_os_error().unwrap_or(libc::EIO);
    match seccompiler::apply_filter(&FORBID_CLOCK) {
        Ok(()) => 0,
        Err(seccompiler::Error::Prctl(source)) => errno(source) | PRCTL,
        Err(seccompiler::Error::Seccomp(source)) => errno(source),
        Err(_) => libc::EIO,
    }
}

/// Why a probe could not forbid the clock, from its exit code.
pub(crate) fn not_forbidden(code: i32) -> Error {
    let source = std::io::Error::from_raw_os_error(code & !PRCTL);
    refused(if code & PRCTL == 0 { seccompiler::Error::Seccomp(source) } else { seccompiler::Error::Prctl(source) })
}

/// How many programs a role's process carries, as `/proc/<pid>/status` shows it.
pub(crate) fn programs(role: Role) -> usize {
    filter(role).map_or(0, |filter| filter.programs.len())
}

/// How many system calls the role's compiled filter can let through, with whatever arguments. 0 for the supervisor.
#[must_use]
pub fn syscalls_allowed(role: Role) -> usize {
    filter(role).map_or(0, count)
}

fn count(filter: &Filter) -> usize {
    (0..NUMBERS).filter(|number| can_pass(filter, *number, None)).count()
}

/// How many of them the role needs while it serves; the others are those of exit and panic.
#[must_use]
pub fn syscalls_in_service(role: Role) -> usize {
    filter(role).map_or(0, |filter| filter.service)
}

/// The names in the role's list.
#[must_use]
pub fn allowed_names(role: Role) -> &'static [&'static str] {
    filter(role).map_or(&[], |filter| filter.names)
}

fn can_pass(filter: &Filter, number: u32, arguments: Option<[u64; 6]>) -> bool {
    filter.programs.iter().all(|program| {
        let input = Input { number, architecture: ARCHITECTURE, arguments };
        outcomes(program, &input).contains(&u32::from(SeccompAction::Allow))
    })
}

struct Input {
    number: u32,
    architecture: u32,
    /// `None`: any.
    arguments: Option<[u64; 6]>,
}

impl Input {
    /// The word of `struct seccomp_data` at `offset`; `None` when it is not known.
    fn word(&self, offset: u32) -> Option<u32> {
        match offset {
            0 => Some(self.number),
            4 => Some(self.architecture),
            16..64 => {
                let argument = self.arguments?[(offset as usize - 16) / 8];
                Some(if offset.is_multiple_of(8) { argument as u32 } else { (argument >> 32) as u32 })
            }
            _ => None,
        }
    }
}

/// Every action that the program can return for `input`: where a word is not known, both ways of a comparison are followed.
fn outcomes(program: &[(u16, u8, u8, u32)], input: &Input) -> Vec<u32> {
    let mut found = Vec::new();
    let mut open = vec![(0usize, None::<u32>)];
    while let Some((at, word)) = open.pop() {
        let Some(&(code, yes, no, value)) = program.get(at) else { continue };
        let next = at + 1;
        let compare = |holds: fn(u32, u32) -> bool| word.map(|word| holds(word, value));
        let holds = match code {
            LOAD => {
                open.push((next, input.word(value)));
                continue;
            }
            AND => {
                open.push((next, word.map(|word| word & value)));
                continue;
            }
            JUMP => {
                open.push((next + value as usize, word));
                continue;
            }
            RETURN => {
                found.push(value);
                continue;
            }
            EQUAL => compare(|word, value| word == value),
            GREATER => compare(|word, value| word > value),
            GREATER_OR_EQUAL => compare(|word, value| word >= value),
            _ => unreachable!("seccompiler emits no other instruction"),
        };
        if holds != Some(false) {
            open.push((next + yes as usize, word));
        }
        if holds != Some(true) {
            open.push((next + no as usize, word));
        }
    }
    found.sort_unstable();
    found.dedup();
    found
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn passes(role: Role, number: i64, arguments: [u64; 6]) -> bool {
        can_pass(filter(role).unwrap(), number as u32, Some(arguments))
    }

    fn first(value: u64) -> [u64; 6] {
        [value, 0, 0, 0, 0, 0]
    }

    fn third(value: u64) -> [u64; 6] {
        [0, 0, value, 0, 0, 0]
    }

    #[test]
    fn counts_are_those_of_the_design() {
        assert_eq!(syscalls_allowed(Role::Vault), 12);
        assert_eq!(syscalls_in_service(Role::Vault), 6);
        assert!(syscalls_in_service(Role::Front) <= 24, "{}", syscalls_in_service(Role::Front));
        assert!(syscalls_allowed(Role::Front) <= 32, "{}", syscalls_allowed(Role::Front));
        for role in Role::CAGED {
            assert_eq!(syscalls_allowed(role), allowed_names(role).len(), "{role}");
        }
    }

    #[test]
    fn the_document_states_the_figures() {
        let document = include_str!("../../docs/sandbox.md");
        for role in [Role::Front, Role::Vault, Role::Unseal] {
            let figures = format!("{} in service, {} in all", syscalls_in_service(role), syscalls_allowed(role));
            assert!(document.contains(&figures), "{role}: {figures}");
        }
        for role in [Role::Noded, Role::Directory, Role::Module] {
            assert!(document.contains(&format!("| {} |", syscalls_allowed(role))), "{role}");
        }
    }

    #[test]
    fn another_architecture_or_x32_passes_nowhere() {
        const I386: u32 = 0x4000_0003;
        const X32: u32 = 0x4000_0000;
        for role in Role::FILTERED {
            let list = filter(role).unwrap().programs[0];
            for number in 0..NUMBERS {
                for (number, architecture) in [(number, I386), (number | X32, ARCHITECTURE)] {
                    let input = Input { number, architecture, arguments: None };
                    assert_eq!(outcomes(list, &input), [u32::from(SeccompAction::KillProcess)], "{role} {number}");
                }
            }
        }
    }

    /// How many instructions a list runs at the most for a call whose arguments are all zero.
    fn steps(program: &[(u16, u8, u8, u32)], number: u32) -> usize {
        let input = Input { number, architecture: ARCHITECTURE, arguments: Some([0; 6]) };
        let (mut at, mut word, mut count) = (0usize, 0u32, 0usize);
        loop {
            let (code, yes, no, value) = program[at];
            count += 1;
            at += 1;
            let jump = |holds: bool| usize::from(if holds { yes } else { no });
            match code {
                LOAD => word = input.word(value).unwrap(),
                AND => word &= value,
                JUMP => at += value as usize,
                EQUAL => at += jump(word == value),
                GREATER => at += jump(word > value),
                GREATER_OR_EQUAL => at += jump(word >= value),
                _ => return count,
            }
        }
    }

    /// Each instruction costs time in each call whose arguments are looked at.
    #[test]
    fn a_list_is_decided_in_few_steps() {
        for role in Role::FILTERED {
            let list = filter(role).unwrap().programs[0];
            let most = (0..NUMBERS).map(|number| steps(list, number)).max().unwrap();
            assert!(most <= 80, "{role}: {most} of {}", list.len());
        }
    }

    #[test]
    fn nobody_starts_traces_mounts_or_loads() {
        let never = [
            libc::SYS_execve,
            libc::SYS_execveat,
            libc::SYS_fork,
            libc::SYS_vfork,
            libc::SYS_ptrace,
            libc::SYS_mount,
            libc::SYS_umount2,
            libc::SYS_pivot_root,
            libc::SYS_chroot,
            libc::SYS_unshare,
            libc::SYS_setns,
            libc::SYS_bpf,
            libc::SYS_io_uring_setup,
            libc::SYS_io_uring_enter,
            libc::SYS_process_vm_readv,
            libc::SYS_process_vm_writev,
            libc::SYS_keyctl,
            libc::SYS_add_key,
            libc::SYS_request_key,
            libc::SYS_perf_event_open,
            libc::SYS_userfaultfd,
            libc::SYS_pidfd_getfd,
            libc::SYS_pidfd_open,
            libc::SYS_pidfd_send_signal,
            libc::SYS_kill,
            libc::SYS_tkill,
            libc::SYS_recvmsg,
            libc::SYS_recvmmsg,
            libc::SYS_bind,
            libc::SYS_listen,
            libc::SYS_setuid,
            libc::SYS_setresuid,
            libc::SYS_capset,
            libc::SYS_seccomp,
            libc::SYS_personality,
            libc::SYS_init_module,
            libc::SYS_finit_module,
            libc::SYS_kexec_load,
            libc::SYS_reboot,
            libc::SYS_open_by_handle_at,
            libc::SYS_mknodat,
            libc::SYS_symlinkat,
            libc::SYS_clone3,
            libc::SYS_open,
            libc::SYS_creat,
        ];
        for role in Role::CAGED {
            for number in never {
                assert!(!can_pass(filter(role).unwrap(), number as u32, None), "{role} lets {number} through");
            }
        }
        // A foreign program: the same, but that older C libraries `open`, and that the launcher starts it.
        for number in never.into_iter().filter(|number| ![libc::SYS_open, libc::SYS_execveat].contains(number)) {
            assert!(!can_pass(filter(Role::Module).unwrap(), number as u32, None), "module: {number}");
        }
    }

    #[test]
    fn arguments_decide() {
        for role in Role::CAGED {
            assert!(passes(role, libc::SYS_tgkill, third(6)), "{role} must be able to abort");
            assert!(!passes(role, libc::SYS_tgkill, third(9)), "{role}");
        }
        for role in [Role::Front, Role::Unseal, Role::Noded, Role::Directory] {
            assert!(passes(role, libc::SYS_mmap, third(3)), "{role}");
            assert!(!passes(role, libc::SYS_mmap, third(7)), "{role}");
            assert!(!passes(role, libc::SYS_mmap, third(4)), "{role}");
        }
        for role in [Role::Noded, Role::Directory] {
            assert!(passes(role, libc::SYS_clone, first(0x003d_0f00)), "{role} must be able to start a thread");
            assert!(!passes(role, libc::SYS_clone, first(libc::SIGCHLD as u64)), "{role}");
            assert!(!passes(role, libc::SYS_clone, first(0x003d_0f00 | libc::CLONE_NEWUSER as u64)), "{role}");
        }
    }

    /// What Landlock does not see (MPTCP, UDP, fast open) must not be had at all.
    #[test]
    fn connections_are_plain_tcp_of_noded_alone() {
        let stream = (libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK) as u64;
        let socket = |role, family: i32, kind: u64, protocol: i32| {
            passes(role, libc::SYS_socket, [family as u64, kind, protocol as u64, 0, 0, 0])
        };
        for family in [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6] {
            assert!(socket(Role::Noded, family, stream, 0) && socket(Role::Noded, family, 1, libc::IPPROTO_TCP));
            for protocol in [libc::IPPROTO_MPTCP, libc::IPPROTO_SCTP, libc::IPPROTO_UDP, 256] {
                assert!(!socket(Role::Noded, family, stream, protocol), "{family} {protocol}");
            }
            for kind in [libc::SOCK_DGRAM, libc::SOCK_RAW, libc::SOCK_SEQPACKET, libc::SOCK_DCCP, 0] {
                assert!(!socket(Role::Noded, family, kind as u64, 0), "{family} {kind}");
            }
        }
        const AF_SMC: i32 = 43;
        for family in [libc::AF_NETLINK, libc::AF_PACKET, libc::AF_VSOCK, libc::AF_ALG, AF_SMC] {
            assert!(!socket(Role::Noded, family, stream, 0), "{family}");
        }
        for call in [libc::SYS_socket, libc::SYS_connect] {
            assert!(
                !can_pass(filter(Role::Directory).unwrap(), call as u32, None),
                "the directory calls nobody: {call}"
            );
        }
    }

    /// With a database: two calls more, streams of plain TCP and AF_UNIX, and nothing else that was not allowed before.
    #[test]
    fn a_directory_with_a_database_connects_and_no_more() {
        let (alone, with) = (filter(Role::Directory).unwrap(), filter_of(Role::Directory, true).unwrap());
        let more = (0..NUMBERS).filter(|number| can_pass(with, *number, None) != can_pass(alone, *number, None));
        assert_eq!(Vec::from_iter(more), [libc::SYS_socket as u32, libc::SYS_connect as u32]);
        assert_eq!(with.programs.len(), alone.programs.len(), "as many as an observer expects of the role");
        let socket = |family: i32, kind: i32, protocol: i32| {
            can_pass(with, libc::SYS_socket as u32, Some([family as u64, kind as u64, protocol as u64, 0, 0, 0]))
        };
        for family in [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6] {
            assert!(socket(family, libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK, 0));
            assert!(!socket(family, libc::SOCK_STREAM, libc::IPPROTO_MPTCP) && !socket(family, libc::SOCK_DGRAM, 0));
        }
        assert!(!socket(libc::AF_NETLINK, libc::SOCK_STREAM, 0) && !socket(libc::AF_VSOCK, libc::SOCK_STREAM, 0));
        for role in Role::FILTERED.into_iter().filter(|role| *role != Role::Directory) {
            assert!(filter_of(role, true).is_none(), "{role}");
        }
    }

    #[test]
    fn sockets_are_used_in_the_listed_ways_alone() {
        for role in [Role::Noded, Role::Directory] {
            let send = |flags: i32, address: u64| passes(role, libc::SYS_sendto, [3, 0, 0, flags as u64, address, 0]);
            assert!(send(libc::MSG_NOSIGNAL, 0), "{role}");
            assert!(!send(libc::MSG_FASTOPEN, 0) && !send(libc::MSG_FASTOPEN | libc::MSG_NOSIGNAL, 0), "{role}");
            assert!(!send(0, 1) && !send(0, 1 << 40), "{role}: nobody is addressed");
            for call in [libc::SYS_sendmsg, libc::SYS_sendmmsg] {
                assert!(!can_pass(filter(role).unwrap(), call as u32, None), "{role} {call}");
            }
            let option = |call, level: i32, name: i32| passes(role, call, [3, level as u64, name as u64, 0, 0, 0]);
            let (get, set) = (libc::SYS_getsockopt, libc::SYS_setsockopt);
            assert!(option(get, libc::SOL_SOCKET, libc::SO_ERROR) && option(get, libc::SOL_SOCKET, libc::SO_PEERCRED));
            // The front alone asks who connects, and has no call that would do anything to him.
            for role in Role::CAGED {
                let asks = passes(role, get, [3, libc::SOL_SOCKET as u64, libc::SO_PEERPIDFD as u64, 0, 0, 0]);
                assert_eq!(asks, role == Role::Front, "{role}");
            }
            for call in [libc::SYS_pidfd_send_signal, libc::SYS_pidfd_getfd, libc::SYS_setns, libc::SYS_waitid] {
                assert!(!can_pass(filter(Role::Front).unwrap(), call as u32, None), "{call}");
            }
            for (level, name) in [
                (libc::IPPROTO_TCP, libc::TCP_NODELAY),
                (libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT),
                (libc::SOL_SOCKET, libc::SO_KEEPALIVE),
                (libc::SOL_SOCKET, libc::SO_RCVTIMEO),
            ] {
                assert!(option(set, level, name), "{role} {level} {name}");
            }
            assert!(!option(set, libc::IPPROTO_TCP, libc::TCP_FASTOPEN_CONNECT), "{role}");
            assert!(!option(set, libc::IPPROTO_TCP, libc::TCP_ULP), "{role}");
            assert!(!option(set, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER), "{role}");
        }
    }

    #[test]
    fn no_file_becomes_set_user_id() {
        for role in [Role::Noded, Role::Directory] {
            for bits in [0o4000, 0o2000] {
                assert!(!passes(role, libc::SYS_fchmod, [3, 0o755 | bits, 0, 0, 0, 0]), "{role}");
                assert!(!passes(role, libc::SYS_openat, [3, 0, 0x42, 0o755 | bits, 0, 0]), "{role}");
            }
            assert!(passes(role, libc::SYS_fchmod, [3, 0o600, 0, 0, 0, 0]), "{role}");
            assert!(passes(role, libc::SYS_openat, [3, 0, 0x42, 0o666, 0, 0]), "{role}");
        }
    }

    /// A foreign program names one socket by the length of its address, and nothing makes another's path shorter.
    #[test]
    fn a_module_connects_by_the_length_of_its_door() {
        let door = std::os::unix::net::SocketAddr::from_pathname(crate::launch::DOOR).unwrap();
        let length = 2 + door.as_pathname().unwrap().as_os_str().len() as u64;
        for given in 0..=128 {
            let may = passes(Role::Module, libc::SYS_connect, [3, 1, given, 0, 0, 0]);
            assert_eq!(may, given == length || given == length + 1, "{given}");
        }
        for call in [libc::SYS_chdir, libc::SYS_fchdir, libc::SYS_chroot, libc::SYS_symlinkat, libc::SYS_bind] {
            assert!(!can_pass(filter(Role::Module).unwrap(), call as u32, None), "{call}");
        }
    }

    /// A foreign program is started from the one descriptor, starts threads and no process, and has no network.
    #[test]
    fn a_module_is_started_once_and_starts_nobody() {
        let passes = |number, arguments| passes(Role::Module, number, arguments);
        let start = |descriptor: u64, flags: i32| passes(libc::SYS_execveat, [descriptor, 1, 1, 1, flags as u64, 0]);
        assert!(start(crate::launch::PROGRAM as u64, libc::AT_EMPTY_PATH));
        assert!(!start(crate::launch::PROGRAM as u64, 0), "by a name");
        assert!(!start(3, libc::AT_EMPTY_PATH) && !start(libc::AT_FDCWD as u64, libc::AT_EMPTY_PATH));
        // glibc, musl and Go.
        for flags in [0x003d_0f00, 0x007d_0f00, 0x0005_0f00] {
            assert!(passes(libc::SYS_clone, first(flags)), "{flags:x}");
        }
        for flags in [0, libc::SIGCHLD as u64, (libc::CLONE_VM | libc::CLONE_VFORK) as u64] {
            assert!(!passes(libc::SYS_clone, first(flags)), "{flags:x}");
        }
        for space in [libc::CLONE_NEWUSER, libc::CLONE_NEWNS, libc::CLONE_NEWPID, libc::CLONE_PIDFD] {
            assert!(!passes(libc::SYS_clone, first(0x003d_0f00 | space as u64)), "{space:x}");
        }
        for family in 0..64 {
            let stream = passes(libc::SYS_socket, [family, libc::SOCK_STREAM as u64, 0, 0, 0, 0]);
            assert_eq!(stream, family == libc::AF_UNIX as u64, "{family}");
        }
        for (rights, fits) in [(3, true), (5, true), (1, true), (6, false), (7, false)] {
            assert_eq!(passes(libc::SYS_mmap, third(rights)), fits, "{rights}");
        }
    }

    #[test]
    fn an_int_argument_is_compared_as_32_bits() {
        // The kernel ignores the upper half of an int: a filter that looks at it can be led past its rule.
        assert!(passes(Role::Vault, libc::SYS_tgkill, third(6 | 1 << 40)));
        assert!(!passes(Role::Front, libc::SYS_mmap, third(4 | 1 << 40)));
    }
}
