//! Calls of a module's operator route at a steady rate over the node's admin socket, each counted and timed, until told to stop.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use openred_proto::admin::node_client::NodeClient;
use openred_proto::admin::{ModuleRequestFrame, ModuleRequestHead};
use tokio::task::JoinSet;
use tonic::transport::{Channel, Endpoint};

/// How long a caller waits after a call that failed.
const AFTER_FAILURE: Duration = Duration::from_millis(5);

/// What calls have come to.
#[derive(Debug, Default)]
pub struct Outcome {
    /// How long each took that succeeded, in the order of their ends; with when it began, since the first.
    pub took: Vec<(Duration, Duration)>,
    /// In what way others failed.
    pub failed: Vec<String>,
}

impl Outcome {
    /// The time that so many of a thousand calls took at most.
    #[must_use]
    pub fn quantile(&self, thousandths: usize) -> Duration {
        let mut sorted: Vec<Duration> = self.took.iter().map(|(_, took)| *took).collect();
        sorted.sort_unstable();
        let place = (sorted.len() * thousandths).div_ceil(1000).saturating_sub(1);
        sorted.get(place).copied().unwrap_or_default()
    }
}

/// Calls that go on until they are stopped or this is dropped.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    ended: Arc<AtomicUsize>,
    thread: Option<JoinHandle<Result<Outcome>>>,
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
    }
}

impl Load {
    /// Begins to POST to `path` of `module`, so many times a second by so many at once; without a rate each begins its next call when one has ended.
    ///
    /// # Errors
    /// When there is no thread for it.
    pub fn start(home: &Path, module: &str, path: &str, callers: usize, rate: Option<u32>) -> Result<Self> {
        let (stop, ended) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let head = ModuleRequestHead {
            module: module.to_owned(),
            method: "POST".to_owned(),
            path: path.to_owned(),
            ..ModuleRequestHead::default()
        };
        let plan = Plan {
            socket: home.join("run/admin/admin.sock"),
            head,
            callers,
            rate,
            stop: Arc::clone(&stop),
            ended: Arc::clone(&ended),
        };
        let thread = std::thread::Builder::new().name(String::from("load")).spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(plan.run())
        })?;
        Ok(Self { stop, ended, thread: Some(thread) })
    }

    /// Calls that have ended so far.
    #[must_use]
    pub fn ended(&self) -> usize {
        self.ended.load(Ordering::SeqCst)
    }

    /// Begins no more, and waits for those that run.
    ///
    /// # Errors
    /// When the node could not be reached.
    pub fn stop(mut self) -> Result<Outcome> {
        self.stop.store(true, Ordering::SeqCst);
        let thread = self.thread.take().context("it was stopped before")?;
        thread.join().map_err(|_| anyhow!("the thread of calls has ended"))?
    }
}

#[derive(Clone)]
struct Plan {
    socket: PathBuf,
    head: ModuleRequestHead,
    callers: usize,
    rate: Option<u32>,
    stop: Arc<AtomicBool>,
    ended: Arc<AtomicUsize>,
}

impl Plan {
    async fn run(self) -> Result<Outcome> {
        let channel = Endpoint::from_shared(format!("unix://{}", self.socket.display()))?.connect().await?;
        let (begun, mut callers) = (Instant::now(), JoinSet::new());
        for number in 0..self.callers {
            callers.spawn(self.clone().call_on(NodeClient::new(channel.clone()), begun, number));
        }
        let mut all = Outcome::default();
        while let Some(outcome) = callers.join_next().await {
            let outcome = outcome.context("a caller has ended")?;
            all.took.extend(outcome.took);
            all.failed.extend(outcome.failed);
        }
        Ok(all)
    }

    async fn call_on(self, mut node: NodeClient<Channel>, begun: Instant, number: usize) -> Outcome {
        let mut outcome = Outcome::default();
        // The callers take turns; one that is late begins at once, and counts from when it should have begun.
        let between = self.rate.map(|rate| Duration::from_secs(1) / rate);
        let mut turn = u32::try_from(number).unwrap_or_default();
        while !self.stop.load(Ordering::SeqCst) {
            let mut at = Instant::now();
            if let Some(between) = between {
                at = begun + between * turn;
                turn += u32::try_from(self.callers).unwrap_or(1);
                tokio::time::sleep_until(at.into()).await;
            }
            match self.call(&mut node).await {
                Ok(()) => outcome.took.push((at.saturating_duration_since(begun), at.elapsed())),
                Err(error) => {
                    outcome.failed.push(format!("{error:#}"));
                    // A node that is away is not asked as fast as the processor can.
                    tokio::time::sleep(AFTER_FAILURE).await;
                }
            }
            self.ended.fetch_add(1, Ordering::SeqCst);
        }
        outcome
    }

    async fn call(&self, node: &mut NodeClient<Channel>) -> Result<()> {
        let frame = ModuleRequestFrame { head: Some(self.head.clone()), ..ModuleRequestFrame::default() };
        let mut frames = node.call_module(tokio_stream::once(frame)).await?.into_inner();
        let (mut status, mut body) = (0, Vec::new());
        while let Some(frame) = frames.message().await? {
            status = frame.head.map_or(status, |head| head.status);
            body.extend_from_slice(&frame.body);
        }
        ensure!(status == 200, "{status} {}", String::from_utf8_lossy(&body));
        Ok(())
    }
}
