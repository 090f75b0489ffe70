//! The unsealer: opens, makes or re-seals a keystore, seals or opens a backup, and ends; see `openred_cryptod::unseal`.
//!
//! Started with exactly these descriptors: 0 and 1 nothing, 2 log, 3 barrier, 4 input, 5 order, 6 output, 7 its word, and one
//! argument. `open`: 4 is the keystore, 6 the vault's pipe. `create`: 4 is nothing, 6 takes the keystore. `rewrap` and
//! `succeed`: 4 is the keystore, 6 takes the new one. `take-back`: 4 is the older keystore, 8 the one here, 6 takes the new
//! one. `encrypt` and `decrypt`: 4 is a stream, 6 takes the other. `renew`: 4 is the keystore, 8 the vault's state, 6 takes
//! the new state.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::Write;

use anyhow::{Context, bail};
use openred_cryptod::unseal::{self, Failure};
use openred_policy::barrier::Barrier;
use openred_policy::{Cage, Descriptors, Identity, Role, Unconfined};
use openred_proto::unseal::{About, Word};
use rand_core::CryptoRng;

fn main() {
    let mut barrier = None;
    let code = run(&mut barrier).unwrap_or_else(|error| openred_cryptod::report::failed(barrier.as_ref(), &error));
    openred_policy::exit(code)
}

/// What was given.
struct Files {
    input: File,
    order: File,
    output: File,
    /// For `renew` the state, for `take-back` the keystore here.
    second: Option<File>,
}

fn run(slot: &mut Option<Barrier>) -> anyhow::Result<i32> {
    let mode = std::env::args().nth(1).context("unseal: no mode given")?;
    let has_second = matches!(mode.as_str(), "renew" | "take-back");
    let given: &[i32] = if has_second { &[0, 1, 2, 3, 4, 5, 6, 7, 8] } else { &[0, 1, 2, 3, 4, 5, 6, 7] };
    // Exactly what was given; one descriptor more or less is fatal.
    let mut inherited = Unconfined::enter(Role::Unseal, Descriptors::Exactly(given))?;
    let barrier = slot.insert(inherited.barrier(3)?);
    let [input, order, output, mut word] =
        [inherited.take(4)?, inherited.take(5)?, inherited.take(6)?, inherited.take(7)?].map(File::from);
    let second = if has_second { Some(File::from(inherited.take(8)?)) } else { None };
    // Namespaces, empty root and uid, while the supervisor may still look; it notes them and lets this go on.
    let separated = inherited.separate(&Cage::new(Role::Unseal, Identity::from_env()?))?;
    barrier.namespaced()?;
    // Not dumpable, and filtered, before a byte of order or keystore is read.
    let restricted = separated.restrict()?;
    let mut random = openred_cryptod::vault::serve::generator().context("unseal: the kernel gives no randomness")?;
    let confined = restricted.seal()?;
    barrier.confined(confined.report())?;
    barrier.ready()?;
    let files = Files { input, order, output, second };
    let done = match mode.as_str() {
        "open" | "create" | "rewrap" | "succeed" | "take-back" | "renew" => {
            keystore(&mode, files, &mut random).map(Word::Keystore)
        }
        "encrypt" | "decrypt" => stream(&mode, files).map(|()| Word::Done),
        _ => bail!("unseal: unknown mode (open, create, rewrap, succeed, take-back, renew, encrypt or decrypt)"),
    };
    let said = done.as_ref().map_or_else(|failure| Word::Refused(failure.word()), Word::clone);
    word.write_all(&said.encode()).context("unseal: giving the word")?;
    done?;
    Ok(0)
}

fn keystore(mode: &str, files: Files, random: &mut impl CryptoRng) -> Result<About, Failure> {
    let order = unseal::read_order(files.order)?;
    match (mode, files.second) {
        ("create", _) => unseal::create(random, &order, files.output),
        ("rewrap", _) => unseal::rewrap(&order, files.input, files.output),
        ("succeed", _) => unseal::succeed(random, &order, files.input, files.output),
        ("take-back", Some(here)) => unseal::take_back(&order, files.input, here, files.output),
        ("renew", Some(state)) => unseal::renew(random, &order, files.input, state, files.output),
        _ => unseal::open(&order, files.input, files.output),
    }
}

fn stream(mode: &str, files: Files) -> Result<(), Failure> {
    let order = unseal::read_order(files.order)?;
    match mode {
        "encrypt" => unseal::encrypt(&order, files.input, files.output),
        _ => unseal::decrypt(&order, files.input, files.output),
    }
}
