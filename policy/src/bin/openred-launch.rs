//! Puts itself into the cage of a foreign program and then becomes that program. Started by a supervisor alone
//! (`openred_policy::launch`), which says on the command line what to keep.

#![forbid(unsafe_code)]

use std::io::Write;
use std::process::ExitCode;

/// Not the program's own: it never ran.
const NOT_STARTED: u8 = 99;

fn main() -> ExitCode {
    let Err(error) = openred_policy::launch::become_program(std::env::args_os().skip(1));
    let _ = std::io::stderr().write_all(format!("{error}\n").as_bytes());
    ExitCode::from(NOT_STARTED)
}
