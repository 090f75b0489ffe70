//! The vault: holds the node's keys and answers typed requests on two sockets; see `openred_cryptod::vault`.
//!
//! Started by the supervisor alone, with exactly these descriptors: 0 and 1 nothing, 2 log, 3 barrier, 4 front, 5 operator,
//! 6 state file, 7 secrets, 8 and 9 the audit trail's segments. It opens nothing, has no thread but this one, and its memory is one arena mapped beforehand.
#![forbid(unsafe_code)]

use std::fs::File;
use std::os::fd::OwnedFd;

use anyhow::Context;
use openred_cryptod::vault::{serve, start};
use openred_policy::arena::{Arena, on_stack};
use openred_policy::barrier::Barrier;
use openred_policy::{Cage, Descriptors, Identity, Restricted, Role, Unconfined};

// Allocating needs no system call, so the filter has none for it; freed blocks are wiped.
#[global_allocator]
static ARENA: Arena = Arena::new();

fn main() {
    let mut barrier = None;
    let code = run(&mut barrier).unwrap_or_else(|error| openred_cryptod::report::failed(barrier.as_ref(), &error));
    // Not by returning: the filter has no call for the runtime's own way out.
    openred_policy::exit(code)
}

fn run(slot: &mut Option<Barrier>) -> anyhow::Result<i32> {
    // Exactly what the supervisor gave; one descriptor more or less is fatal.
    let mut inherited = Unconfined::enter(Role::Vault, Descriptors::Exactly(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]))?;
    let barrier = slot.insert(inherited.barrier(3)?);
    let (front, operator) = (inherited.take(4)?, inherited.take(5)?);
    let (state, secrets) = (inherited.take(6)?, inherited.take(7)?);
    let trail = [inherited.take(8)?.into(), inherited.take(9)?.into()];
    let orders = start::Orders::from_arguments(std::env::args().skip(1)).context("vault: unknown argument")?;
    // Namespaces, empty root and uid, while the supervisor may still look; it notes them and lets this go on.
    let separated = inherited.separate(&Cage::new(Role::Vault, Identity::from_env()?))?;
    barrier.namespaced()?;
    // Not dumpable from here on: only now may secrets come in.
    let restricted = separated.restrict()?;
    let callers = [front, operator];
    let files = serve::Files { state: state.into(), trail };
    // What the cryptography leaves on a stack lies in the arena as well.
    on_stack(|| serve(restricted, barrier, callers, secrets.into(), files, &orders))
}

fn serve(
    restricted: Restricted,
    barrier: &Barrier,
    [front, operator]: [OwnedFd; 2],
    secrets: File,
    files: serve::Files,
    orders: &start::Orders,
) -> anyhow::Result<i32> {
    let (mut secrets, descent) =
        start::read_secrets(secrets).context("vault: no secrets came from the unsealer; its own line says why")?;
    // The generator's first draw and the clock's first reading take their lazy paths before the filter.
    let mut random = serve::generator().context("vault: the kernel gives no randomness")?;
    let vault = start::open(&mut secrets, &descent, &files, orders, &mut random)?;
    let server = serve::Server::new(vault, front, operator, files, random);
    let server = server
        .context("vault: its state or audit trail cannot be written; free space on their disk and start again")?;
    // Never dropped: closing a descriptor is a call that the filter has not. The keys are wiped when serving ends.
    let server = Box::leak(Box::new(server));
    let confined = restricted.seal()?;
    barrier.confined(confined.report())?;
    barrier.ready()?;
    Ok(server.serve().exit_code())
}
