//! The channel to the supervisor: which modules shall run, and what became of them.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use openred_module::{LayerState, ProcessState};
use openred_proto::error::WireError;
use openred_proto::modules::{Ask, FRAME_BYTES, Told, decode, encode};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::timeout;

/// Words that wait to be written: each generation asks one thing at a time.
const ASKS: usize = 64;
/// Words about one generation that wait to be heard; there are two at most between two asks.
const WORDS: usize = 8;
/// Processes and layers of each that are kept of a look: all that a node has, many times over.
const PROCESSES: usize = 128;
/// See [`PROCESSES`].
const LAYERS: usize = 64;
/// How long the supervisor may take to look.
const LOOK: Duration = Duration::from_secs(5);

/// The supervisor, for the modules' lives.
pub(super) struct Supervisor {
    asks: mpsc::Sender<Ask>,
    hearing: Mutex<HashMap<(&'static str, u64), mpsc::Sender<Told>>>,
    changed: Notify,
    /// One looks at a time.
    turn: tokio::sync::Mutex<()>,
    looking: Mutex<Looking>,
}

/// A look as it comes.
#[derive(Default)]
struct Looking {
    processes: Vec<ProcessState>,
    done: Option<oneshot::Sender<Look>>,
}

/// When it was taken, and what was seen.
type Look = (u64, Vec<ProcessState>);

impl Supervisor {
    /// Takes the channel over; its work ends with `tasks`.
    pub(super) fn start(stream: UnixStream, tasks: &mut JoinSet<()>) -> Arc<Self> {
        let (asks, waiting) = mpsc::channel(ASKS);
        let supervisor = Arc::new(Self {
            asks,
            hearing: Mutex::default(),
            changed: Notify::new(),
            turn: tokio::sync::Mutex::default(),
            looking: Mutex::default(),
        });
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

    /// What is said of this generation of `module` from now on; of generation zero: of the module.
    pub(super) fn hear(&self, module: &'static str, generation: u64) -> mpsc::Receiver<Told> {
        let (sender, words) = mpsc::channel(WORDS);
        self.hearing.lock().unwrap_or_else(PoisonError::into_inner).insert((module, generation), sender);
        words
    }

    /// Nobody hears of this generation any more.
    pub(super) fn forget(&self, module: &'static str, generation: u64) {
        self.hearing.lock().unwrap_or_else(PoisonError::into_inner).remove(&(module, generation));
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

    /// How the processes and their cages are; nothing when it does not answer in time.
    pub(super) async fn look(&self) -> Option<Look> {
        let _turn = self.turn.lock().await;
        let (done, seen) = oneshot::channel();
        // What is on its way of an earlier look, whose time was over, is as good: each comes whole.
        self.looking.lock().unwrap_or_else(PoisonError::into_inner).done = Some(done);
        self.ask(Ask::Look).await;
        timeout(LOOK, seen).await.ok()?.ok()
    }

    /// A word of a look, if it is one.
    fn seen(&self, told: Told) -> Option<Told> {
        let mut looking = self.looking.lock().unwrap_or_else(PoisonError::into_inner);
        match told {
            Told::Process { name, state, restarts, since } if looking.processes.len() < PROCESSES => {
                looking.processes.push(ProcessState { name, state, restarts, since, layers: Vec::new() });
            }
            Told::Layer { name, on, detail } => {
                let process = looking.processes.last_mut().filter(|process| process.layers.len() < LAYERS);
                if let Some(process) = process {
                    process.layers.push(LayerState { name, on, detail });
                }
            }
            Told::Looked { at } => {
                let processes = std::mem::take(&mut looking.processes);
                if let Some(done) = looking.done.take() {
                    let _ = done.send((at, processes));
                }
            }
            Told::Process { .. } => {}
            other => return Some(other),
        }
        None
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
                    let Some(told) = self.seen(told) else { continue };
                    let hearing = self.hearing.lock().unwrap_or_else(PoisonError::into_inner);
                    let words = hearing.get(&(told.module(), told.generation())).cloned();
                    if let Some(words) = words
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
