//! A fixed arena as the vault's global allocator: mapped whole before the filter, so that allocating needs no system call.
//!
//! The arena lies between two guard pages in `memfd_secret` memory: not in the kernel's own map, not dumped, not swapped.
//! An ordinary user's limit on locked memory (often 8 MiB) is below the arena's size: then only its first part is secret,
//! where the blocks of the start lie, keys among them; the rest is left out of dumps and wiped in a forked child, but may be
//! swapped. [`kind`] says which, and so does `openred doctor`. Freed blocks are cleared. When it is full, an allocation fails
//! and the process ends in SIGABRT: the vault asks [`left`] before it takes on work that lasts.
//!
//! Only the vault uses it; in other processes nothing is mapped and [`kind`] is [`Kind::None`].

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::sys::Heap;

/// Half-open handshakes that the vault keeps at most (PROTOCOL 5).
const HANDSHAKES: usize = 1024;
/// One half-open handshake: two KEM keys expanded, the Noise state, buffers.
const HANDSHAKE_BYTES: usize = 14 * 1024;
/// Links that the vault keeps at most (SANDBOX, state).
const LINKS: usize = 4096;
/// One link in memory: its row, its place in the map, its rate.
const LINK_BYTES: usize = 1024;
/// Frames, the image of a state slot, keys, and what fragmentation costs.
const SLACK: usize = 6 * 1024 * 1024;

/// Size of the arena in bytes: 24 MiB.
pub const CAPACITY: usize = HANDSHAKES * HANDSHAKE_BYTES + LINKS * LINK_BYTES + SLACK;

/// One guard page on each side.
pub(crate) const GUARD: usize = 4096;

/// What memory the arena is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// No arena: this process uses the system's allocator.
    None,
    /// All of it is `memfd_secret`.
    Secret,
    /// Its first [`secret_bytes`] are `memfd_secret`.
    PartlySecret,
    /// The kernel gave no secret memory: left out of dumps, but it may be swapped.
    Plain,
}

impl Kind {
    /// One word for reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Kind::None => "none",
            Kind::Secret => "memfd-secret",
            Kind::PartlySecret => "memfd-secret in part",
            Kind::Plain => "plain",
        }
    }
}

/// The allocator. `#[global_allocator] static ARENA: Arena = Arena::new();`
pub struct Arena {
    pub(crate) heap: Heap,
}

impl Arena {
    /// An arena that is mapped at the first allocation.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "a global allocator is made in a const context")]
    pub const fn new() -> Self {
        Self { heap: Heap::new() }
    }
}

static MAPPED: AtomicBool = AtomicBool::new(false);
static SECRET: AtomicUsize = AtomicUsize::new(0);
static TAKEN: AtomicUsize = AtomicUsize::new(0);

pub(crate) fn note_mapped(secret: usize) {
    SECRET.store(secret, Ordering::Relaxed);
    MAPPED.store(true, Ordering::Relaxed);
}

pub(crate) fn note_taken(bytes: usize) {
    TAKEN.fetch_add(bytes, Ordering::Relaxed);
}

pub(crate) fn note_given_back(bytes: usize) {
    TAKEN.fetch_sub(bytes, Ordering::Relaxed);
}

/// What memory this process's arena is made of.
#[must_use]
pub fn kind() -> Kind {
    match (MAPPED.load(Ordering::Relaxed), secret_bytes()) {
        (false, _) => Kind::None,
        (true, CAPACITY) => Kind::Secret,
        (true, 0) => Kind::Plain,
        (true, _) => Kind::PartlySecret,
    }
}

/// How many bytes from the arena's start are `memfd_secret`.
#[must_use]
pub fn secret_bytes() -> usize {
    SECRET.load(Ordering::Relaxed)
}

/// Bytes that live blocks hold.
#[must_use]
pub fn taken() -> usize {
    TAKEN.load(Ordering::Relaxed)
}

/// Bytes that are not taken. Fragmentation can make the largest possible block smaller.
#[must_use]
pub fn left() -> usize {
    CAPACITY.saturating_sub(taken())
}
