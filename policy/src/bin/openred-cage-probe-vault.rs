//! The test program with the vault's allocator: the same acts, all memory from the arena. Not installed.

#![forbid(unsafe_code)]

use openred_policy::arena::Arena;

#[path = "openred-cage-probe.rs"]
mod probe_program;

#[global_allocator]
static ARENA: Arena = Arena::new();

fn main() -> std::process::ExitCode {
    probe_program::main()
}
