//! The channel to the supervisor: which modules shall run, and what became of them.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use openred_proto::error::WireError;
use openred_proto::modules::{Ask, FRAME_BYTES, Told, decode, encode};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;

/// Words that wait to be written: each module asks one thing at a time.
const ASKS: usize = 64;
/// Words about one module that wait to be heard; there are two at most between two asks.
const WORDS: usize = 8;

/// The supervisor, for the modules' lives.
pub(super) struct Supervisor {
    asks: mpsc::Sender<Ask>,
    hearing: Mutex<HashMap<&'static str, mpsc::Sender<Told>>>,
    changed: Notify,
}

impl Supervisor {
    /// Takes the channel over; its work ends with `tasks`.
    pub(super) fn start(stream: UnixStream, tasks: &mut JoinSet<()>) -> Arc<Self> {
        let (asks, waiting) = mpsc::channel(ASKS);
        let supervisor = Arc::new(Self { asks, hearing: Mutex::default(), changed: Notify::new() });
        let (from, to) = stream.into_split();
        tasks.spawn(write(to, waiting));
        let hearing = Arc::clone(&supervisor);
        tasks.spawn(async move {
            let Err(error) = hearing.read(from).await;
            // This process dies with its supervisor, so that is about to happen.
            tracing::error!(%error, "the supervisor's channel for modules has ended");
        });
        supervisor
    }

    /// What is said of `module` from now on.
    pub(super) fn hear(&self, module: &'static str) -> mpsc::Receiver<Told> {
        let (sender, words) = mpsc::channel(WORDS);
        self.hearing.lock().unwrap_or_else(PoisonError::into_inner).insert(module, sender);
        words
    }

    /// Waits until what is installed has changed since the last time.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Asks something; the answer comes to whoever hears of the module.
    pub(super) async fn ask(&self, ask: Ask) {
        // Closed only when this process ends.
        let _ = self.asks.send(ask).await;
    }

    async fn read(&self, mut from: OwnedReadHalf) -> io::Result<std::convert::Infallible> {
        let mut bytes = Vec::with_capacity(2 * FRAME_BYTES);
        loop {
            match decode::<Told>(&bytes) {
                Ok((told, used)) => {
                    bytes.drain(..used);
                    if told == Told::Changed {
                        self.changed.notify_one();
                        continue;
                    }
                    let hearing = self.hearing.lock().unwrap_or_else(PoisonError::into_inner);
                    if let Some(words) = hearing.get(told.module())
                        && words.try_send(told).is_err()
                    {
                        tracing::warn!("too many words of the supervisor about one module; one was dropped");
                    }
                }
                Err(WireError::Incomplete { .. }) => {
                    if from.read_buf(&mut bytes).await? == 0 {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                }
                Err(error) => return Err(io::Error::new(io::ErrorKind::InvalidData, error.to_string())),
            }
        }
    }
}

async fn write(mut to: OwnedWriteHalf, mut asks: mpsc::Receiver<Ask>) {
    while let Some(ask) = asks.recv().await {
        let Ok(bytes) = encode(&ask) else {
            tracing::error!("a module's id is too long for the supervisor");
            continue;
        };
        if to.write_all(&bytes).await.is_err() {
            return;
        }
    }
}
