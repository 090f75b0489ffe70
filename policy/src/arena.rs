//! A fixed arena as the vault's global allocator: mapped whole before the filter, so that allocating needs no system call.
//!
//! The arena lies between two guard pages in `memfd_secret` memory: not in the kernel's own map, not dumped, not swapped; and
//! it is sealed, so that nobody maps something else there. An ordinary user's limit on locked memory (often 8 MiB) is below the
//! arena's size: then only its first part is secret, where the stack and the blocks of the start lie, keys among them ([`KEYS`]; less
//! protects none of them, and ends the start); the rest is left out of dumps and wiped in a forked child, but may be swapped. Where the kernel gives no secret memory, as much as the limit
//! allows is locked instead. [`kind`] says which, and so does the report of a confined process ([`layer`]), in which root must
//! have all of it secret, and anybody at least the start out of reach of the swap. Freed blocks are cleared, and a panic, or
//! [`crate::exit`], clears all of it. When it is full, an allocation fails
//! and the process ends in SIGABRT: the vault asks [`left`] before it takes on work that lasts.
//!
//! Only the vault uses it; in other processes nothing is mapped and [`kind`] is [`Kind::None`].

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::layer::{Layer, LayerName};
use crate::role::Uid;
use crate::sys::{self, Heap};

/// Half-open handshakes that the vault keeps at most, begun and answered together (PROTOCOL 5).
pub const HANDSHAKES: usize = 1024;
/// One half-open handshake: two KEM keys expanded, the Noise state, buffers.
pub const HANDSHAKE_BYTES: usize = 14 * 1024;
/// Links that the vault keeps at most (SANDBOX, state).
pub const LINKS: usize = 4096;
/// One link in memory: its row, its place in the map, its rate.
pub const LINK_BYTES: usize = 1024;
/// The stack: several times what the deepest operation takes (an offer, in a build without optimisation).
pub const STACK: usize = 1024 * 1024;
/// The stack, frames, the image of a state slot, keys, and what fragmentation costs.
const SLACK: usize = 6 * 1024 * 1024;

/// Size of the arena in bytes: 24 MiB.
pub const CAPACITY: usize = HANDSHAKES * HANDSHAKE_BYTES + LINKS * LINK_BYTES + SLACK;

/// The least that protects keys: the stack, which lies first, and the first mebibyte of the heap, where the blocks of the start lie.
pub const KEYS: usize = STACK + 1024 * 1024;

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
    /// The kernel gave no secret memory: locked, left out of dumps, wiped in a forked child.
    Locked,
    /// The same, its first [`locked_bytes`].
    PartlyLocked,
    /// Left out of dumps, but it may be swapped.
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
            Kind::Locked => "locked",
            Kind::PartlyLocked => "locked in part",
            Kind::Plain => "plain",
        }
    }
}

/// What the kernel gave when the arena was mapped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Mapped {
    /// Bytes from the start that are `memfd_secret`.
    pub(crate) secret: usize,
    /// Bytes from the start that are locked without being secret; not asked for where any are secret.
    pub(crate) locked: usize,
    /// Whether `mseal` held.
    pub(crate) sealed: bool,
}

impl Mapped {
    const fn kind(self) -> Kind {
        match (self.secret, self.locked) {
            (CAPACITY, _) => Kind::Secret,
            (0, CAPACITY) => Kind::Locked,
            (0, 0) => Kind::Plain,
            (0, _) => Kind::PartlyLocked,
            (_, _) => Kind::PartlySecret,
        }
    }

    fn layer(self, uid: Uid) -> Layer {
        let (kind, sealed) = (self.kind(), if self.sealed { "sealed" } else { "not sealed" });
        // An ordinary user has what his limit gives; but the keys, which lie at the start, are never in the swap.
        let wanted = match (uid, kind) {
            (Uid::Shared, had) if self.secret + self.locked >= KEYS => had,
            (Uid::Separate | Uid::Shared, _) => Kind::Secret,
        };
        let mebibytes = (self.secret + self.locked) >> 20;
        let detail = match kind {
            Kind::None | Kind::Secret => "not in dumps, not in swap, not in the kernel's own map".to_owned(),
            Kind::PartlySecret => {
                format!("its first {mebibytes} MiB; the rest may be swapped, RLIMIT_MEMLOCK is too low for all")
            }
            Kind::Locked => {
                "not in dumps, not in swap, but in the kernel's own map: it gives no secret memory".to_owned()
            }
            Kind::PartlyLocked => format!(
                "its first {mebibytes} MiB; the kernel gives no secret memory and RLIMIT_MEMLOCK is too low for the rest"
            ),
            Kind::Plain => format!(
                "keys could be swapped: it is neither secret nor locked. The kernel gives no secret memory, or RLIMIT_MEMLOCK is \
                 below the {} KiB in which keys lie: raise it (`ulimit -l`, `LimitMEMLOCK=`)",
                KEYS >> 10
            ),
        };
        Layer::new(LayerName::Arena, format!("{}, sealed", wanted.name()), format!("{}, {sealed}", kind.name()))
            .detail(detail)
    }
}

/// The line about the arena in the report of a process with `uid`; none where there is no arena.
pub(crate) fn layer(uid: Uid) -> Option<Layer> {
    mapped().map(|mapped| mapped.layer(uid))
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
static LOCKED: AtomicUsize = AtomicUsize::new(0);
static SEALED: AtomicBool = AtomicBool::new(false);
static TAKEN: AtomicUsize = AtomicUsize::new(0);

pub(crate) fn note_mapped(mapped: Mapped) {
    SECRET.store(mapped.secret, Ordering::Relaxed);
    LOCKED.store(mapped.locked, Ordering::Relaxed);
    SEALED.store(mapped.sealed, Ordering::Relaxed);
    MAPPED.store(true, Ordering::Relaxed);
}

fn mapped() -> Option<Mapped> {
    MAPPED.load(Ordering::Relaxed).then(|| Mapped {
        secret: secret_bytes(),
        locked: locked_bytes(),
        sealed: SEALED.load(Ordering::Relaxed),
    })
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
    mapped().map_or(Kind::None, Mapped::kind)
}

/// How many bytes from the arena's start are `memfd_secret`.
#[must_use]
pub fn secret_bytes() -> usize {
    SECRET.load(Ordering::Relaxed)
}

/// How many bytes from the arena's start are locked without being `memfd_secret`.
#[must_use]
pub fn locked_bytes() -> usize {
    LOCKED.load(Ordering::Relaxed)
}

/// Bytes that live blocks hold.
#[must_use]
pub fn taken() -> usize {
    TAKEN.load(Ordering::Relaxed)
}

/// Bytes that are not taken. Fragmentation can make the largest possible block smaller.
#[must_use]
pub fn left() -> usize {
    (CAPACITY - STACK).saturating_sub(taken())
}

/// Runs `act` on the arena's stack: everything that handles secrets belongs in it. Where there is no arena, on this one. Must not be
/// called before the last fork, and a panic in it must find the hook installed or ends in SIGABRT all the same.
pub fn on_stack<T>(act: impl FnOnce() -> T) -> T {
    sys::on_stack(act)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: Mapped = Mapped { secret: CAPACITY, locked: 0, sealed: true };

    #[test]
    fn root_has_all_of_it_secret_or_the_line_says_no() {
        assert!(SECRET.layer(Uid::Separate).ok);
        let less = [
            Mapped { secret: CAPACITY / 4, ..SECRET },
            Mapped { secret: 0, locked: CAPACITY, ..SECRET },
            Mapped { secret: 0, locked: CAPACITY / 4, ..SECRET },
            Mapped { secret: 0, ..SECRET },
            Mapped { sealed: false, ..SECRET },
        ];
        for mapped in less {
            let layer = mapped.layer(Uid::Separate);
            assert!(!layer.ok && layer.expected == "memfd-secret, sealed" && !layer.detail.is_empty(), "{layer:?}");
        }
    }

    #[test]
    fn an_ordinary_user_has_what_his_limit_gives_but_never_keys_in_the_swap() {
        let enough = [
            SECRET,
            Mapped { secret: CAPACITY / 4, ..SECRET },
            Mapped { secret: 0, locked: CAPACITY, ..SECRET },
            Mapped { secret: 0, locked: CAPACITY / 4, ..SECRET },
        ];
        for mapped in enough {
            assert!(mapped.layer(Uid::Shared).ok, "{mapped:?}");
            assert!(!Mapped { sealed: false, ..mapped }.layer(Uid::Shared).ok, "{mapped:?}");
        }
        assert!(!Mapped { secret: 0, ..SECRET }.layer(Uid::Shared).ok);
        // The stack lies first: what is not more than that covers no key.
        for part in [192 << 10, 384 << 10, 768 << 10, STACK, KEYS - 1] {
            for mapped in [Mapped { secret: part, ..SECRET }, Mapped { secret: 0, locked: part, ..SECRET }] {
                assert!(!mapped.layer(Uid::Shared).ok, "{mapped:?}");
            }
        }
        assert!(Mapped { secret: KEYS, ..SECRET }.layer(Uid::Shared).ok);
    }
}
