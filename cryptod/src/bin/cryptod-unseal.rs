//! The unsealer: opens, makes or re-wraps the keystore, and ends; see `openred_cryptod::unseal`.
//!
//! Started with exactly these descriptors: 0 and 1 nothing, 2 log, 3 barrier, 4 keystore, 5 passphrase, 6 output, and one
//! argument. `open`: 6 is the vault's pipe. `create`: 4 is the new file, 6 is told the node id. `rewrap`: 5 carries the old
//! passphrase, a line end and the new one, 6 is the new file.
#![forbid(unsafe_code)]

use std::fs::File;

use anyhow::{Context, bail};
use openred_cryptod::unseal;
use openred_policy::barrier::Barrier;
use openred_policy::{Cage, Descriptors, Identity, Role, Unconfined};

fn main() {
    let mut barrier = None;
    let code = run(&mut barrier).unwrap_or_else(|error| openred_cryptod::report::failed(barrier.as_ref(), &error));
    openred_policy::exit(code)
}

fn run(slot: &mut Option<Barrier>) -> anyhow::Result<i32> {
    let mode = std::env::args().nth(1).context("unseal: no mode given (open, create or rewrap)")?;
    // Exactly what was given; one descriptor more or less is fatal.
    let mut inherited = Unconfined::enter(Role::Unseal, Descriptors::Exactly(&[0, 1, 2, 3, 4, 5, 6]))?;
    let barrier = slot.insert(inherited.barrier(3)?);
    let [keystore, passphrase, output] = [inherited.take(4)?, inherited.take(5)?, inherited.take(6)?].map(File::from);
    // Namespaces, empty root and uid, while the supervisor may still look; it notes them and lets this go on.
    let separated = inherited.separate(&Cage::new(Role::Unseal, Identity::from_env()?))?;
    barrier.namespaced()?;
    // Not dumpable, and filtered, before a byte of passphrase or keystore is read.
    let restricted = separated.restrict()?;
    let mut random = openred_cryptod::vault::serve::generator().context("unseal: the kernel gives no randomness")?;
    let confined = restricted.seal()?;
    barrier.confined(confined.report())?;
    barrier.ready()?;
    let sync = |file: File| file.sync_all();
    match mode.as_str() {
        "open" => unseal::open(keystore, passphrase, output)?,
        "create" => drop(unseal::create(&mut random, keystore, passphrase, output, sync)?),
        "rewrap" => drop(unseal::rewrap(keystore, passphrase, output, sync)?),
        _ => bail!("unseal: unknown mode (open, create or rewrap)"),
    }
    Ok(0)
}
