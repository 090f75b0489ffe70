//! Single system calls under a shipped filter with its shipped action: each in a forked process of its own, which puts the
//! role's filter on itself and makes that one call. Used by the test program (`src/bin/openred-cage-sweep.rs`) only.
//!
//! The filter alone is on, because it is what is measured here; `tests/cage.rs` has the whole cage.

use std::io;

use nix::unistd::alarm;

use crate::role::Role;
use crate::spawn::Exit;
use crate::{seccomp, sys};

/// Ends a call that waits: SIGALRM after so many seconds. The longest that a call which returns may take.
const PATIENCE: u32 = 1;

/// The exit code of a process that could not put the filter on itself: no errno has this number.
pub const NOT_FILTERED: i32 = 250;

/// How a system call is entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// `syscall`; numbers with bit 30 are x32's.
    Syscall,
    /// `int 0x80`, with i386 numbers.
    Interrupt,
}

/// One call: how it is entered, its number, its arguments.
pub type Case = (Entry, u32, [u64; 6]);

/// Makes the call under the filter of `role` (`None`: no filter, the control) and says how the process ended: exit code 0 when
/// the call worked, the errno when the kernel refused it, SIGSYS when the filter ended it, SIGALRM when it waited. Call it
/// while this process has one thread.
pub fn attempt(role: Option<Role>, (entry, number, arguments): Case) -> io::Result<Exit> {
    sys::in_child(|| {
        alarm::set(PATIENCE);
        // As in `seal`: the runtime's handler of SIGSEGV would make calls of its own.
        let signals = sys::default_fault_signals();
        if signals.is_err() || role.is_some_and(|role| seccomp::install(role, false).is_err()) {
            return NOT_FILTERED;
        }
        sys::attempt_and_exit(entry == Entry::Interrupt, u64::from(number), arguments)
    })
}
