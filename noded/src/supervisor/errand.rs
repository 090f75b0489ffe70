//! One run of the unsealer: started in its cage, given its order once it was seen, heard to its word.
//!
//! What it reads and writes are descriptors of the caller's: files to read, pipes to write into. A pipe holds the largest
//! keystore; whoever asks for more than that drains it meanwhile.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::time::Duration;

use nix::fcntl::OFlag;
use openred_policy::spawn::Exit as Ended;
use openred_policy::{Identity, Role};
use openred_proto::unseal::{About, Order, WORD_BYTES, Word};

use super::StartFailure;
use super::child::{Fault, Plan, Starter, start};
use crate::cli::Failure;

/// What the unsealer is to do, and on what.
pub(crate) struct Errand {
    /// Its one argument.
    pub(crate) mode: &'static str,
    /// A keystore or a stream.
    pub(crate) input: OwnedFd,
    /// Where the outcome goes.
    pub(crate) output: OwnedFd,
    /// For `renew` the vault's state, for `take-back` the keystore here.
    pub(crate) second: Option<OwnedFd>,
}

pub(crate) fn setup(what: &'static str) -> impl Fn(io::Error) -> StartFailure {
    move |source| StartFailure::Child(Fault::Setup { role: Role::Unseal, what, source })
}

/// A pipe: the end to read, the end to write.
pub(crate) fn pipe(what: &'static str) -> Result<(OwnedFd, OwnedFd), StartFailure> {
    nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(|errno| setup(what)(errno.into()))
}

/// Runs it. `order` is asked only when the unsealer's cage was seen: before, no secret is read. What it says of a keystore
/// comes back; nothing after a stream.
pub(crate) async fn run(
    starter: &Starter,
    identity: Option<Identity>,
    errand: Errand,
    order: impl FnOnce() -> Result<Order, Failure>,
) -> Result<Option<About>, StartFailure> {
    run_within(starter, identity, errand, order, None).await
}

/// The same, for an errand whose work is bounded: one that takes longer than `limit` is ended, and that is its fault.
pub(crate) async fn run_within(
    starter: &Starter,
    identity: Option<Identity>,
    errand: Errand,
    order: impl FnOnce() -> Result<Order, Failure>,
    limit: Option<Duration>,
) -> Result<Option<About>, StartFailure> {
    let ((order_read, order_write), (word_read, word_write)) = (pipe("the order's pipe")?, pipe("the word's pipe")?);
    let mut descriptors = vec![errand.input, order_read, errand.output, word_write];
    descriptors.extend(errand.second);
    let plan = Plan {
        role: Role::Unseal,
        program: "cryptod-unseal",
        arguments: vec![errand.mode.into()],
        identity,
        kept: Vec::new(),
        descriptors,
    };
    let mut child = start(starter, plan).await?;
    let bytes = order().map_err(StartFailure::Named)?.encode();
    let bytes = bytes.map_err(|error| StartFailure::Named(Failure::usage(error.to_string(), "name the right file")))?;
    // A pipe holds far more than the longest order: this never waits.
    File::from(order_write).write_all(&bytes).map_err(setup("the order"))?;
    drop(bytes);
    let ended = match limit {
        Some(limit) => child.finished_within(limit).await,
        None => child.finished().await,
    };
    // It has ended, so this is the end of what it said.
    let mut said = Vec::new();
    let heard = File::from(word_read).take(WORD_BYTES as u64 + 1).read_to_end(&mut said);
    heard.map_err(setup("the word"))?;
    match (ended, Word::decode(&said)) {
        (Ok(Ended::Code(0)), Ok(Word::Keystore(about))) => Ok(Some(about)),
        (Ok(Ended::Code(0)), Ok(Word::Done)) => Ok(None),
        (Err(fault), Ok(Word::Refused(refused))) => Err(StartFailure::Keystore { refused, fault }),
        (Ok(exit), _) => Err(Fault::Ended { role: Role::Unseal, exit }.into()),
        (Err(fault), _) => Err(fault.into()),
    }
}
