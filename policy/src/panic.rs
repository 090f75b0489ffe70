//! The panic hook: one line on descriptor 2, then SIGABRT. No backtrace (it would open files), no unwinding past it.

use std::io::{Cursor, Write};
use std::panic::PanicHookInfo;

/// Longest line; the rest is cut. Formatted on the stack, so that a panic inside the allocator still prints.
const LINE: usize = 512;

/// Installs the hook. The text of a panic is printed only when it is a literal of our source: a formatted one may hold
/// what a peer sent, or a secret.
pub(crate) fn install() {
    std::panic::set_hook(Box::new(|info| {
        write_line(info);
        std::process::abort();
    }));
}

fn write_line(info: &PanicHookInfo<'_>) {
    let mut line = [0u8; LINE];
    let mut cursor = Cursor::new(&mut line[..LINE - 1]);
    let _ = match (info.location(), info.payload().downcast_ref::<&'static str>()) {
        (Some(place), Some(text)) => write!(cursor, "panic at {}:{}: {text}", place.file(), place.line()),
        (Some(place), None) => write!(cursor, "panic at {}:{}", place.file(), place.line()),
        (None, _) => write!(cursor, "panic"),
    };
    let length = cursor.position() as usize;
    line[length] = b'\n';
    let text = &mut line[..=length];
    // One line, whatever the literal holds.
    text[..length].iter_mut().filter(|byte| **byte == b'\n').for_each(|byte| *byte = b' ');
    let _ = nix::unistd::write(std::io::stderr(), text);
}
