//! Test program of this crate: makes system calls one by one under a role's filter and says how each ended. Not installed.
//!
//! `openred-cage-sweep ROLE` (`none`: no filter) reads cases from standard input, one a line: `syscall` or `interrupt`, the number
//! and six arguments, all in hexadecimal; it writes one line each: `SIGSYS`, `exit code 9` and so on.

#![forbid(unsafe_code)]

use std::io::{BufRead, ErrorKind, Write};
use std::process::ExitCode;

use nix::sys::resource::{Resource, setrlimit};
use openred_policy::Role;
use openred_policy::probe::sweep::{Case, Entry, attempt};

/// Most cases of one run: six times what the longest list needs.
const MOST: usize = 50_000;

fn main() -> ExitCode {
    let name = std::env::args().nth(1).unwrap_or_default();
    let role = Role::FILTERED.into_iter().find(|role| role.name() == name);
    if role.is_none() && name != "none" {
        return ExitCode::from(64);
    }
    match sweep(role) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "{error}");
            ExitCode::FAILURE
        }
    }
}

fn sweep(role: Option<Role>) -> std::io::Result<()> {
    // Each death by a signal would write a core.
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    let mut ends = String::new();
    for line in std::io::stdin().lock().lines().take(MOST) {
        let case = parse(&line?).ok_or(ErrorKind::InvalidInput)?;
        ends.push_str(&format!("{}\n", attempt(role, case)?));
    }
    std::io::stdout().write_all(ends.as_bytes())
}

fn parse(line: &str) -> Option<Case> {
    let mut words = line.split(' ');
    let entry = match words.next()? {
        "syscall" => Entry::Syscall,
        "interrupt" => Entry::Interrupt,
        _ => return None,
    };
    let numbers: Vec<u64> = words.map(|word| u64::from_str_radix(word, 16).ok()).collect::<Option<_>>()?;
    let (number, arguments) = numbers.split_first()?;
    Some((entry, u32::try_from(*number).ok()?, arguments.try_into().ok()?))
}
