//! Acts that a process tries from inside its cage, to prove that they are refused there and work outside. Used by the
//! test program only; no daemon calls it.

use crate::sys;

/// One act. Each is harmless where it is allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// A system call by number with these arguments.
    Call(i64, [u64; 6]),
}

/// Tries it: the kernel's answer, or the errno of its refusal.
pub fn attempt(act: Act) -> Result<i64, i32> {
    let Act::Call(number, arguments) = act;
    sys::attempt(number, arguments)
}
