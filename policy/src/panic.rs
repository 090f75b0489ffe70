//! The panic hook: the vault's arena is cleared, then one line on descriptor 2, then SIGABRT. No backtrace (it would open files),
//! no unwinding past it, no allocation.

use std::io::{Cursor, Write};
use std::panic::PanicHookInfo;

use crate::sys;

/// Longest line; the rest is cut. Formatted on the stack, so that a panic inside the allocator still prints.
pub(crate) const LINE: usize = 512;

/// Installs the hook. The text of a panic is printed only when it is a literal of our source: a formatted one may hold
/// what a peer sent, or a secret.
pub(crate) fn install() {
    std::panic::set_hook(Box::new(|info| {
        // What the line is made of may lie in the arena: it is made first, and said last.
        let (line, length) = line(info);
        sys::end(&(line, length, None));
        // No arena: this process has nothing to clear.
        let _ = nix::unistd::write(std::io::stderr(), &line[..length]);
        std::process::abort();
    }));
}

fn line(info: &PanicHookInfo<'_>) -> ([u8; LINE], usize) {
    let mut line = [0u8; LINE];
    let mut cursor = Cursor::new(&mut line[..LINE - 1]);
    let _ = match (info.location(), info.payload().downcast_ref::<&'static str>()) {
        (Some(place), Some(text)) => write!(cursor, "panic at {}:{}: {text}", place.file(), place.line()),
        (Some(place), None) => write!(cursor, "panic at {}:{}", place.file(), place.line()),
        (None, _) => write!(cursor, "panic"),
    };
    let length = cursor.position() as usize;
    line[length] = b'\n';
    // One line, whatever the literal holds.
    line[..length].iter_mut().filter(|byte| **byte == b'\n').for_each(|byte| *byte = b' ');
    (line, length + 1)
}
