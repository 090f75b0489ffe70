//! The modules' processes. `noded` says which shall run, on a channel of its own; they are started here through the launcher, each in a
//! cage of its own, and outlive the `noded` that asked: the next one gives them a new value, and they dial anew.
//!
//! Only modules of the table are started, and not too often. All of them end with the node, and die with this process.

mod channel;
mod entry;
mod start;
mod table;

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdStream;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};

use super::Context;
use super::child::Fault;
use super::installed::Known;
use crate::cli::{Exit, Failure};
use crate::packages::Order;
use channel::Channel;
use table::Table;

/// Between two looks at what modules take, where nobody but this process holds them to it.
const LOOK: Duration = Duration::from_millis(250);
/// Words to this part of the supervisor that wait: one `noded` after the other, and the end.
const WORDS: usize = 4;

/// The rest of the supervisor's hold on the modules.
#[derive(Clone)]
pub(crate) struct Modules(mpsc::Sender<Word>);

/// See [`Modules`].
pub(crate) struct Words(mpsc::Receiver<Word>);

enum Word {
    /// A `noded` that asks on this end of a pair.
    Node(UnixStream),
    /// The operator ends a module's quarantine.
    Release(String, oneshot::Sender<Result<(), Failure>>),
    /// The operator changes what is installed.
    Change(Order, oneshot::Sender<Result<(), Failure>>),
    /// The configuration is another.
    Reload,
    /// The node ends.
    End(oneshot::Sender<()>),
}

/// The two ends of it.
pub(crate) fn modules() -> (Modules, Words) {
    let (sender, words) = mpsc::channel(WORDS);
    (Modules(sender), Words(words))
}

impl Modules {
    /// Listens to a new `noded` on this end of its channel; the one before it is not heard any more.
    pub(crate) async fn hear(&self, end: OwnedFd) -> io::Result<()> {
        let stream = StdStream::from(end);
        stream.set_nonblocking(true)?;
        // What serves them lives as long as the supervisor.
        let _ = self.0.send(Word::Node(UnixStream::from_std(stream)?)).await;
        Ok(())
    }

    /// Ends a module's quarantine.
    pub(crate) async fn release(&self, module: String) -> Result<(), Failure> {
        let stopping = || Failure::new(Exit::Failed, "node.down", "the node is stopping", "start it with `openred up`");
        let (done, outcome) = oneshot::channel();
        self.0.send(Word::Release(module, done)).await.map_err(|_| stopping())?;
        outcome.await.unwrap_or_else(|_| Err(stopping()))
    }

    /// Changes what is installed, on the operator's word.
    pub(crate) async fn change(&self, order: Order) -> Result<(), Failure> {
        let stopping =
            || Failure::new(Exit::Failed, "node.down", "the node is stopping", "try again when it has stopped");
        let (answer, outcome) = oneshot::channel();
        self.0.send(Word::Change(order, answer)).await.map_err(|_| stopping())?;
        outcome.await.unwrap_or_else(|_| Err(stopping()))
    }

    /// The configuration is another: looks again at what may run, and how.
    pub(crate) fn look_again(&self) {
        if self.0.try_send(Word::Reload).is_err() {
            tracing::warn!("the modules' part has too much to do to hear of the new configuration; send SIGHUP again");
        }
    }

    /// Ends all of them and waits until they are gone.
    pub(crate) async fn end(&self) {
        let (done, ended) = oneshot::channel();
        if self.0.send(Word::End(done)).await.is_ok() {
            let _ = ended.await;
        }
    }
}

/// Serves `noded`'s wishes until the supervisor ends; what still runs then dies with its handles.
pub(crate) async fn serve(context: &Context, known: Vec<Known>, mut words: Words) {
    let mut table = Table::new(context, known);
    let watches = context.starter.ways.watches();
    let mut looks = tokio::time::interval(LOOK);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            word = words.0.recv() => match word {
                Some(Word::Node(stream)) => table.node = Some(Channel::new(stream)),
                Some(Word::Release(module, done)) => {
                    let _ = done.send(table.release(&module));
                }
                Some(Word::Change(order, answer)) => {
                    // Whoever asked may have gone.
                    let _ = answer.send(table.change(&order));
                }
                Some(Word::Reload) => table.reload(),
                Some(Word::End(done)) => {
                    table.end().await;
                    let _ = done.send(());
                }
                None => return,
            },
            ask = Channel::next(&mut table.node) => match ask {
                Ok(ask) => table.take(ask),
                Err(error) => {
                    // It has ended, and what follows it brings another channel.
                    tracing::debug!(%error, "noded's channel for modules has ended");
                    table.node = None;
                }
            },
            Some((place, outcome)) = table.starting.next() => table.started(place, outcome),
            Some((place, exit)) = table.ending.next() => table.ended(place, exit),
            _ = looks.tick(), if watches || table.leaves() => table.look(Instant::now()),
        }
    }
}
