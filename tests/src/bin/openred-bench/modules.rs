//! The group `modules`: what a call and a hook of a module cost that runs in its cage, how long it takes to be there, and what it holds
//! while nobody asks it. This process stands in for `noded` and its supervisor, with the same door and the same launcher; the node's own
//! work around a hook (the choice, the order, the budget) is microseconds and is in no figure here.
//!
//! Beside a round trip on the stream stands a unary call of gRPC over the same kind of socket, both 1 KiB, in the same run.

use std::fs::{self, File, Permissions};
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use openred_module::remote::{Attached, Door, HookAsk, PROOF_BYTES};
use openred_module::{
    Body, Caller, Class, Fields, HookRequest, Manifest, Method, Module, Point, Request, Routes, Status, TestHost,
    Verdict,
};
use openred_policy::barrier::{Host, Stage};
use openred_policy::launch::{DOOR, DOOR_SOCKET, Launch, digest_of, runtime};
use openred_policy::spawn::Child;
use openred_policy::{Identity, KeptPath};
use openred_proto::id::NodeId;
use openred_proto::secret::Secret;
use openred_tests::harness::{binaries, is_root};
use tokio::net::UnixListener;

use super::figures::{Better, Figure, Figures};

/// The program that is measured.
const PROGRAM: &str = "openred-hook-module";
/// Its id, as it says itself.
const MODULE: &str = "hooked";
/// As root: the uid that it gets, one of those that nodes give to modules.
const UID: u32 = 61_060;
/// Bytes of a call, a row, a round trip.
const BYTES: usize = 1024;
/// Questions in flight where the rate counts: as many as a node lets a module's deciding hooks have.
const IN_FLIGHT: usize = 32;
/// Hooks that one request passes.
const HOOKS: u32 = 5;
/// Longest that a stage of a start may take, on a loaded machine.
const STAGE: Duration = Duration::from_secs(60);

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    /// Round trips one after the other.
    pub(crate) single: u32,
    /// Questions of a run at [`IN_FLIGHT`].
    pub(crate) rate: u32,
    /// Starts.
    pub(crate) starts: usize,
    /// Runs.
    pub(crate) runs: usize,
}

/// The module behind the host in memory: nothing calls it.
struct Nothing;

impl Module for Nothing {
    fn manifest(&self) -> Manifest {
        Manifest { id: "nothing", version: "0", summary: "" }
    }

    fn routes(_: &mut Routes<Self>) {}
}

/// A folder with the socket that modules dial, removed in the end.
struct Ground {
    folder: PathBuf,
    door: Arc<Door>,
    host: TestHost,
}

/// A module that runs; it ends with its pipe, and dies with its handle.
struct Running {
    child: Child,
    attached: Attached,
    _values: File,
}

impl Drop for Ground {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

impl Ground {
    async fn new() -> Result<Self> {
        // Short: the socket's path has to fit its address. The caged uid has to reach it.
        let folder = tempfile::Builder::new().prefix("orb").tempdir_in("/tmp")?.keep();
        fs::set_permissions(&folder, Permissions::from_mode(0o755))?;
        let host = TestHost::start(1, Nothing).await;
        host.context().put("row", Bytes::from(vec![7; BYTES])).await.map_err(|error| anyhow!("{error}"))?;
        let ground = Self { door: Door::new(host.id()), folder, host };
        let listener = UnixListener::bind(ground.socket())?;
        fs::set_permissions(ground.socket(), Permissions::from_mode(0o666))?;
        tokio::spawn(Arc::clone(&ground.door).serve(listener));
        Ok(ground)
    }

    fn socket(&self) -> PathBuf {
        self.folder.join(DOOR_SOCKET)
    }

    /// Starts the program in its cage, as a supervisor does, and waits until it serves.
    async fn start(&self) -> Result<Running> {
        let programs = binaries()?;
        let path = programs.join(PROGRAM);
        let digest = digest_of(&File::open(&path).with_context(|| format!("opening {}", path.display()))?)?;
        let (input, mut values) = std::io::pipe()?;
        let null = File::options().read(true).write(true).open("/dev/null")?;
        let identity = is_root().then_some(Identity { uid: UID, gid: UID });
        let launch = Launch::new(&programs.join("openred-launch"), File::open(&path)?, digest, PROGRAM)?;
        let launch = launch.argument(DOOR).variable("OPENRED_LOG", "error").identity(identity)?;
        let launch = runtime().into_iter().fold(launch.keep(KeptPath::door(&self.folder)), Launch::keep);
        let (child, host) = launch.descriptor(&input)?.descriptor(&null)?.descriptor(std::io::stderr())?.start()?;
        drop(input);
        stages(&host)?;
        let mut proof = [0; PROOF_BYTES];
        getrandom::fill(&mut proof).context("the system has randomness")?;
        let expected = self.door.expect(MODULE, Secret::new(proof), self.host.context());
        values.write_all(&proof)?;
        let attached = tokio::time::timeout(STAGE, expected.attached()).await.context("it does not attach")?;
        let attached = attached.map_err(|fault| anyhow!("{fault}"))?;
        attached.start().await.map_err(|error| anyhow!("{error}"))?;
        Ok(Running { child, attached, _values: File::from(std::os::fd::OwnedFd::from(values)) })
    }
}

/// The launcher's stages, to the end of its barrier: the program runs.
fn stages(host: &Host) -> Result<()> {
    let mut confined = false;
    loop {
        match host.next(STAGE) {
            Ok(Stage::Namespaced) => host.go()?,
            Ok(Stage::Confined { report }) => {
                ensure!(report.layers.iter().all(|layer| layer.ok), "a layer of the cage is off");
                confined = true;
            }
            Ok(Stage::Failed { reason }) => bail!("the launcher: {reason}"),
            Ok(Stage::Ready) => bail!("the launcher says what it does not say"),
            Err(openred_policy::Error::PeerGone) if confined => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Runs the group.
pub(crate) fn measure(size: Size) -> Result<Figures> {
    let mut figures = Figures::default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let ground = Ground::new().await?;
        starts(&ground, size, &mut figures).await?;
        let running = ground.start().await?;
        let attached = &running.attached;
        // What is made once is there before.
        round_trips(attached, size.single / 10 + 1).await?;
        figures.add("stream_1k", latency(round_trips(attached, size.single).await?));
        figures.add("unary_1k", latency(unary(attached, size.single).await?));
        figures.add("hook", latency(hooks(attached, size.single, 1).await?));
        figures.add("hooks_5", latency(hooks(attached, size.single, HOOKS).await?));
        let mut rates = Vec::new();
        for _ in 0..size.runs {
            rates.push(hook_rate(attached, size.rate).await?);
        }
        figures.add_runs("hook_rate_32", "/s", Better::Higher, rates);
        Ok(figures)
    })
}

/// From the start of the launcher to the first moment in which it serves; and, as root, who may read it, the idle module's own memory.
async fn starts(ground: &Ground, size: Size, figures: &mut Figures) -> Result<()> {
    let (mut took, mut held, mut own) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..size.starts {
        let begun = Instant::now();
        let running = ground.start().await?;
        took.push(begun.elapsed().as_secs_f64() * 1e3);
        if is_root() {
            let pid = running.child.pid();
            held.push(rollup_kib(pid, &["Private_Clean:", "Private_Dirty:"])?);
            own.push(rollup_kib(pid, &["Anonymous:"])?);
        }
        drop(running);
    }
    figures.add_runs("spawn_to_ready", "ms", Better::Lower, took);
    figures.add_runs("private_idle", "KiB", Better::Lower, held);
    figures.add_runs("private_idle_own", "KiB", Better::Lower, own);
    Ok(())
}

fn latency(mut samples: Vec<f64>) -> Figure {
    samples.sort_by(f64::total_cmp);
    let at = |share: f64| samples[((samples.len() - 1) as f64 * share) as usize];
    Figure { median: at(0.5), p99: at(0.99), unit: "µs", n: samples.len() as u64 }
}

fn micros(begun: Instant) -> f64 {
    begun.elapsed().as_nanos() as f64 / 1e3
}

async fn round_trips(attached: &Attached, count: u32) -> Result<Vec<f64>> {
    let body = Bytes::from(vec![5; BYTES]);
    let mut took = Vec::with_capacity(count as usize);
    for _ in 0..count {
        let request = Request::new(Caller::Operator, Method::Post, "/echo");
        let request = request.with_body("application/octet-stream", Body::whole(body.clone()));
        let begun = Instant::now();
        let response = attached.dispatch(request).await;
        let answer = response.body.collect(2 * BYTES).await?;
        took.push(micros(begun));
        ensure!(response.status == Status::Ok && answer == body, "another answer than an echo");
    }
    Ok(took)
}

/// As the module times them itself.
async fn unary(attached: &Attached, count: u32) -> Result<Vec<f64>> {
    let request = Request::new(Caller::Operator, Method::Get, format!("/unary/{count}"));
    let response = attached.dispatch(request).await;
    ensure!(response.status == Status::Ok, "the module could not read its row");
    let text = response.body.collect(4 << 20).await?;
    Ok(std::str::from_utf8(&text)?.split(' ').map(str::parse).collect::<Result<_, _>>()?)
}

fn ask() -> HookAsk {
    let request = HookRequest {
        module: Some("messaging".into()),
        method: Some(Method::Post),
        path: Some("/deliver".into()),
        peer: Some(NodeId::from_bytes([2; 32])),
        ..HookRequest::new(Point::Inbound)
    };
    HookAsk { hook: "pass".into(), class: Class::Authz, changes: Fields::default(), millis: 50, request }
}

async fn pass(attached: &Attached) -> Result<()> {
    let said = attached.hook(ask()).await;
    if said == Ok(Verdict::Continue) { Ok(()) } else { Err(anyhow!("another verdict: {said:?}")) }
}

/// So many hooks one after the other, as a request passes them.
async fn hooks(attached: &Attached, count: u32, each: u32) -> Result<Vec<f64>> {
    let mut took = Vec::with_capacity(count as usize);
    for _ in 0..count {
        let begun = Instant::now();
        for _ in 0..each {
            pass(attached).await?;
        }
        took.push(micros(begun));
    }
    Ok(took)
}

async fn hook_rate(attached: &Attached, count: u32) -> Result<f64> {
    let begun = Instant::now();
    let mut asked = 0;
    let mut flight = FuturesUnordered::new();
    while asked < count || !flight.is_empty() {
        while asked < count && flight.len() < IN_FLIGHT {
            flight.push(pass(attached));
            asked += 1;
        }
        if let Some(passed) = flight.next().await {
            passed?;
        }
    }
    Ok(f64::from(count) / begun.elapsed().as_secs_f64())
}

/// Pages of these kinds together. Those that nobody else has are a module's own (anonymous: heap, stack, what the loader has written) and those of
/// the sealed copy of its program, which it alone maps.
fn rollup_kib(pid: i32, kinds: &[&str]) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let lines = text.lines().filter(|line| kinds.iter().any(|kind| line.starts_with(kind)));
    let kib = lines.map(|line| line.split_whitespace().nth(1).and_then(|kib| kib.parse::<f64>().ok()));
    kib.sum::<Option<f64>>().context("smaps_rollup has such pages")
}
