//! One run of the unsealer: started in its cage, given its order once it was seen, heard to its word.
//!
//! What it reads and writes are descriptors of the caller's: files to read, pipes to write into. A pipe holds the largest
//! keystore; whoever asks for more than that drains it meanwhile.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
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

/// How long the unsealer may work once it goes past its barrier. It is killed then, and that is its fault.
pub(crate) enum Limit<'a> {
    /// All in all.
    Whole(Duration),
    /// Without a byte of a stream that moves.
    Pause(Duration, &'a Moved),
}

/// How many bytes of a stream went by; clones count together.
#[derive(Clone, Default)]
pub(crate) struct Moved(Arc<AtomicU64>);

impl Moved {
    pub(crate) fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// `inner`, whose bytes are counted.
    pub(crate) fn counting<T>(&self, inner: T) -> Counting<T> {
        Counting { inner, moved: self.clone() }
    }
}

/// A stream whose bytes are counted.
pub(crate) struct Counting<T> {
    inner: T,
    moved: Moved,
}

impl<T> Counting<T> {
    fn noted(&self, count: io::Result<usize>) -> io::Result<usize> {
        let count = count?;
        self.moved.0.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}

impl<T: Read> Read for Counting<T> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(into);
        self.noted(count)
    }
}

impl<T: Write> Write for Counting<T> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(bytes);
        self.noted(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Runs it. `order` is asked only when the unsealer's cage was seen: before, no secret is read. What it says of a keystore
/// comes back; nothing after a stream.
pub(crate) async fn run(
    starter: &Starter,
    identity: Option<Identity>,
    errand: Errand,
    order: impl FnOnce() -> Result<Order, Failure>,
    limit: Limit<'_>,
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
        Limit::Whole(limit) => child.finished_within(limit).await,
        Limit::Pause(pause, moved) => child.finished_moving(pause, moved).await,
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
