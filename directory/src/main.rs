//! The `directory` program: arguments in, exit code out; everything else is in the library.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    openred_directory::cli::run(std::env::args_os())
}
