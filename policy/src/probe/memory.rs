//! Mappings: what `/proc/<pid>/smaps` says of them, attempts to change one, and a search through those of another process. Used by the test programs only.

use std::fs;
use std::io::{self, IoSliceMut};
use std::os::unix::fs::FileExt;

use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;

use super::READ_WRITE_EXECUTE;
use crate::spawn::Exit;
use crate::{arena, sys};

const PAGE: u64 = 4096;
/// Larger than what the allocator keeps pages beside: whole pages in it are its alone.
const BLOCK: usize = 16 * PAGE as usize;
const READ_WRITE: u64 = (libc::PROT_READ | libc::PROT_WRITE) as u64;
const READ_EXECUTE: u64 = (libc::PROT_READ | libc::PROT_EXEC) as u64;

/// What a text of `smaps` says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mappings {
    /// Mappings that may be executed.
    pub executable: usize,
    /// Mappings that may be both written and executed.
    pub writable_and_executable: usize,
    /// Bytes in mappings that are sealed (`mseal`).
    pub sealed: u64,
    /// Heaps that glibc made for threads beside the one of the process (`arena.c`: a reservation of [`HEAP`] at a multiple of it, of which
    /// the beginning may be used).
    pub heaps: usize,
}

/// What glibc reserves for a further heap on a machine of 64 bits (HEAP_MAX_SIZE).
const HEAP: u64 = 64 << 20;

/// Reads a text of `smaps`.
#[must_use]
pub fn mappings(smaps: &str) -> Mappings {
    let (mut found, mut length) = (Mappings::default(), 0);
    let mut begun = None;
    for line in smaps.lines() {
        let mut words = line.split(' ');
        if let (Some((from, to)), Some(rights)) = (words.next().and_then(|range| range.split_once('-')), words.next()) {
            let number = |text| u64::from_str_radix(text, 16).unwrap_or(0);
            let (from, to) = (number(from), number(to));
            length = to - from;
            found.heaps += usize::from(rights == "---p" && begun.is_some_and(|(used, end)| used == from && to >= end));
            begun = (rights == "rw-p" && from.is_multiple_of(HEAP)).then(|| (to, from.saturating_add(HEAP)));
            found.executable += usize::from(rights.contains('x'));
            found.writable_and_executable += usize::from(rights.contains('w') && rights.contains('x'));
        } else if line.strip_prefix("VmFlags:").is_some_and(|flags| flags.split(' ').any(|flag| flag == "sl")) {
            found.sealed += length;
        }
    }
    found
}

/// Tries to change a page: of the arena where there is one, else of a fresh mapping. The page is given up for it.
pub fn attempt(act: &str) -> Option<Result<i64, i32>> {
    let page = || match arena::kind() {
        arena::Kind::None => {
            let private = super::PRIVATE_ANONYMOUS;
            sys::attempt(libc::SYS_mmap, [0, PAGE, READ_WRITE, private, u64::MAX, 0]).map(|page| page as u64)
        }
        _ => Ok((Vec::leak(vec![0u8; BLOCK]).as_ptr() as u64).next_multiple_of(PAGE)),
    };
    let change = |number: i64, rest: [u64; 4]| {
        page().and_then(|page| sys::attempt(number, [page, rest[0], rest[1], rest[2], rest[3], 0]))
    };
    Some(match act {
        "munmap" => change(libc::SYS_munmap, [PAGE, 0, 0, 0]),
        "mremap" => change(libc::SYS_mremap, [PAGE, 2 * PAGE, libc::MREMAP_MAYMOVE as u64, 0]),
        "mprotect-none" => change(libc::SYS_mprotect, [PAGE, 0, 0, 0]),
        "mprotect-exec" => change(libc::SYS_mprotect, [PAGE, READ_EXECUTE, 0, 0]),
        "mprotect-all" => change(libc::SYS_mprotect, [PAGE, READ_WRITE_EXECUTE, 0, 0]),
        _ => return None,
    })
}

// ---------------------------------------------------------------- searching another process

/// Bytes that are read at a time.
const STEP: usize = 1 << 16;
const CANARY: usize = 32;

/// The bytes that are searched for, made anew each time: they lie in no program and, one after the other, in no register.
fn canary(at: usize) -> u8 {
    std::hint::black_box(at as u8).wrapping_mul(167) ^ 0xa5
}

/// Puts them into a block of the allocator, for good.
pub fn plant() {
    let block = Vec::leak(vec![0u8; BLOCK]);
    for (at, byte) in block.iter_mut().skip(PAGE as usize).take(CANARY).enumerate() {
        *byte = canary(at);
    }
}

/// How often `wanted` stands in this process's own arena, its stack included. Nothing is put there by looking.
#[must_use]
pub fn in_arena(wanted: impl Fn(usize) -> u8, length: usize) -> usize {
    let places = (0..).take_while(|place| sys::arena_byte(place + length - 1).is_some());
    places.filter(|place| (0..length).all(|at| sys::arena_byte(place + at) == Some(wanted(at)))).count()
}

/// Whether the planted bytes are gone from the arena when a child ends in this way: by a panic under the hook, by this crate's exit, or, for
/// comparison, without either. The child is forked, so the secret part of the arena is the same memory for both. Ends this
/// process, for its heap may be gone: 0 when they are gone, `kept` when they are not, 255 when the child ended otherwise. Another
/// way than these is none.
pub fn cleared_by(way: &str, kept: i32) {
    let expected = match way {
        "clear-panic" | "clear-abort" => Exit::Signal(libc::SIGABRT),
        "clear-exit" | "clear-exit-now" => Exit::Code(0),
        _ => return,
    };
    plant();
    crate::panic::install();
    let before = in_arena(canary, CANARY);
    let end = sys::in_child(|| {
        arena::on_stack(|| {
            let on_stack: [u8; CANARY] = std::hint::black_box(std::array::from_fn(canary));
            match way {
                "clear-panic" => panic!("a panic that clears"),
                "clear-exit" => crate::exit(0),
                "clear-exit-now" => sys::exit_now(0),
                _ => drop(std::hint::black_box(on_stack)),
            }
        });
        std::process::abort()
    });
    let as_expected = before == 1 && end.is_ok_and(|end| end == expected);
    let code = match (as_expected, in_arena(canary, CANARY)) {
        (false, _) => 255,
        (true, 0) => 0,
        (true, _) => kept,
    };
    sys::exit_now(code)
}

/// Raises the limit on a process's dump as far as this one may.
pub fn allow_dump(pid: i32) -> bool {
    let all = libc::rlimit64 { rlim_cur: libc::RLIM64_INFINITY, rlim_max: libc::RLIM64_INFINITY };
    let limit = (&raw const all) as u64;
    sys::attempt(libc::SYS_prlimit64, [pid as u64, u64::from(libc::RLIMIT_CORE), limit, 0, 0, 0]).is_ok()
}

/// Waits for a child's end, without reaping it: whether the kernel dumped its memory.
#[must_use]
pub fn was_dumped(pid: i32) -> bool {
    let ended = waitid(Id::Pid(Pid::from_raw(pid)), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT);
    matches!(ended, Ok(WaitStatus::Signaled(_, _, true)))
}

/// How a process's memory is read from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    /// `/proc/<pid>/mem`.
    File,
    /// `process_vm_readv`.
    Call,
}

/// How often the planted bytes stand in the readable mappings of `pid`; the kernel's errno when it lets nobody look at all.
pub fn hunt(pid: i32, reading: Reading) -> Result<usize, i32> {
    let errno = |error: io::Error| error.raw_os_error().unwrap_or(libc::EIO);
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).map_err(errno)?;
    let file = fs::File::open(format!("/proc/{pid}/mem")).map_err(errno)?;
    let wanted: Vec<u8> = (0..CANARY).map(canary).collect();
    let mut found = 0;
    for line in maps.lines() {
        let range = line.split(' ').next().and_then(|range| range.split_once('-'));
        let Some((Ok(from), Ok(to))) =
            range.map(|(from, to)| (u64::from_str_radix(from, 16), u64::from_str_radix(to, 16)))
        else {
            continue;
        };
        // Read with an overlap, so that nothing is cut in two. What cannot be read is no find.
        let mut buffer = vec![0u8; STEP + CANARY - 1];
        for at in (from..to).step_by(STEP) {
            let wanted_length = buffer.len().min((to - at) as usize);
            let piece = &mut buffer[..wanted_length];
            let read = match reading {
                Reading::File => file.read_at(piece, at).unwrap_or(0),
                Reading::Call => {
                    let remote = RemoteIoVec { base: at as usize, len: piece.len() };
                    process_vm_readv(Pid::from_raw(pid), &mut [IoSliceMut::new(piece)], &[remote]).unwrap_or(0)
                }
            };
            found += buffer[..read].windows(CANARY).filter(|window| *window == wanted).count();
        }
    }
    Ok(found)
}
