//! A program that takes more than it may: `openred-conformance` under the name `take-memory`, `take-cpu`, `take-tasks` or `take-descriptors`. It is
//! started in a module's cage by the check of limits, by nobody else.

use std::io::{self, Read as _};
use std::os::fd::AsFd as _;
use std::time::Duration;

/// How its names begin.
pub const TAKE: &str = "take-";
/// Its exit code when the kernel has refused it more.
pub(crate) const REFUSED: u8 = 100;
/// Its exit code when it got all that it wanted.
const TAKEN: u8 = 1;
/// More than any manifest may ask for.
const MOST: usize = 1 << 20;
/// It takes so much, and lets others look: who holds it may have to see it.
const PIECE: usize = 1 << 20;

/// Takes what `name` says until it is stopped; the exit code.
#[must_use]
pub fn take(name: &str) -> u8 {
    // Told to begin once its cage was looked at: one that has ended already has none.
    let mut word = [0; 1];
    if io::stdin().read_exact(&mut word).is_err() {
        return TAKEN;
    }
    let taken = match name.strip_prefix(TAKE) {
        Some("memory") => memory(),
        Some("cpu") => processor(),
        Some("tasks") => tasks(),
        Some("descriptors") => descriptors(),
        _ => Ok(()),
    };
    if taken.is_ok() { TAKEN } else { REFUSED }
}

fn memory() -> io::Result<()> {
    let mut all: Vec<Vec<u8>> = Vec::new();
    for _ in 0..MOST {
        let mut piece = Vec::new();
        piece.try_reserve_exact(PIECE).map_err(|_| io::ErrorKind::OutOfMemory)?;
        // Each page is touched.
        piece.resize(PIECE, 1);
        all.push(std::hint::black_box(piece));
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// Nobody refuses it: it goes on until it is ended.
fn processor() -> ! {
    loop {
        std::hint::spin_loop();
    }
}

fn tasks() -> io::Result<()> {
    let wait = || {
        loop {
            std::thread::park();
        }
    };
    (0..MOST).try_for_each(|_| std::thread::Builder::new().stack_size(64 << 10).spawn(wait).map(drop))
}

fn descriptors() -> io::Result<()> {
    let mut all = Vec::new();
    for _ in 0..MOST {
        all.push(io::stdin().as_fd().try_clone_to_owned()?);
    }
    Ok(())
}
