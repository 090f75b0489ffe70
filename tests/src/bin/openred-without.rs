//! `openred-without SHIM PROGRAM ARGUMENT…`: becomes the program, on a kernel that lacks one thing (`openred_policy::probe::shim`), and so
//! does whatever that starts. A tool of the tests; not installed.
#![forbid(unsafe_code)]
#![allow(clippy::print_stderr, reason = "a tool")]

use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use openred_policy::probe::shim::{Lack, answer, named};

/// The program did not run: none of the codes that a node ends with (OPERATIONS).
const NOT_STARTED: u8 = 70;

fn main() -> ExitCode {
    let mut words = std::env::args_os().skip(1);
    let (shim, program) = (words.next(), words.next());
    let found = shim.as_ref().and_then(|name| named(name.to_str()?));
    let (Some((.., Lack::Call(number, conditions, errno))), Some(program)) = (found, program) else {
        eprintln!("openred-without: no shim that answers a call is called {shim:?}");
        return NOT_STARTED.into();
    };
    if !answer(number, conditions, errno) {
        eprintln!("openred-without: the shim could not be put on");
        return NOT_STARTED.into();
    }
    let error = Command::new(&program).args(words).exec();
    eprintln!("openred-without: {}: {error}", program.display());
    NOT_STARTED.into()
}
