//! The group `vault`: what the key process costs beyond its cryptography, what it signs in a second through gRPC, and what it does for
//! one caller while another floods it. By itself, without a node: this process stands in for `noded` and its supervisor.
//!
//! Its state lies in the output folder, on a disk; the quota of signatures is raised as an operator would raise it. Beside the
//! figures, in the same run: an append with its fdatasync there, a ping-pong over AF_UNIX, and OpenSSH's agent.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use nix::time::ClockId;
use nix::unistd::Pid;
use openred_cryptod::front::raw::Link;
use openred_proto::cryptod as rpc;
use openred_proto::cryptod::cryptod_client::CryptodClient;
use openred_proto::vault::{Reply, Request};
use openred_tests::cryptod::KeyProcess;
use openred_tests::harness::is_root;
use tokio::task::JoinSet;
use tonic::Code;
use tonic::transport::Channel;

use super::agent::Agent;
use super::figures::{Better, Figure, Figures, say};
use super::groups::pss_kib;
use super::peer_vault::Linked;

/// Calls in flight where the rate counts, over [`CONNECTIONS`].
const IN_FLIGHT: usize = 64;
/// As `noded` keeps.
const CONNECTIONS: usize = 2;
/// Calls in flight of the caller that floods with cheap ones.
const FLOOD: usize = 256;
/// Handshakes of one link that may be half-open.
const DEAR_FLOOD: usize = 4;

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    /// Calls one after the other.
    pub(crate) single: u32,
    /// Calls of a run at [`IN_FLIGHT`]; three runs fit the trail.
    pub(crate) rate: u32,
    /// Runs.
    pub(crate) runs: usize,
}

type Client = CryptodClient<Channel>;

/// A folder that is removed in the end.
struct Place(PathBuf);

impl Place {
    fn fresh(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Runs the group.
pub(crate) fn measure(out: &Path, size: Size) -> Result<Figures> {
    // Short: the socket's path has to fit its address.
    let place = Place(out.canonicalize()?.join(format!("v{}", std::process::id())));
    fs::create_dir(&place.0)?;
    let mut figures = Figures::default();
    figures.add("fdatasync", appends(&place.fresh("append"), size.single)?);
    figures.add("unix_ping_pong", ping_pong(size.single)?);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(hop(&place, size, &mut figures))?;
    runtime.block_on(signatures(&place, size, &mut figures))?;
    figures.add("fdatasync_after", appends(&place.fresh("append"), size.single)?);
    runtime.block_on(floods(&place, size, &mut figures))?;
    let agent = Agent::start(&place.fresh("agent"))?;
    figures.add("ssh_agent_sign", latency(agent.one_by_one(size.single / 2)?));
    figures.add_runs("ssh_agent_rate", "/s", Better::Higher, agent.rates(size.rate / 8, size.runs)?);
    Ok(figures)
}

fn latency(mut samples: Vec<f64>) -> Figure {
    samples.sort_by(f64::total_cmp);
    let at = |share: f64| samples[((samples.len() - 1) as f64 * share) as usize];
    Figure { median: at(0.5), p99: at(0.99), unit: "µs", n: samples.len() as u64 }
}

fn micros(begun: Instant) -> f64 {
    begun.elapsed().as_nanos() as f64 / 1e3
}

/// One record of the trail, written and made durable, as the vault does it: into a file that has its length already.
fn appends(path: &Path, count: u32) -> Result<Figure> {
    fs::write(path, vec![0; 128 * count as usize])?;
    let file = File::options().write(true).open(path)?;
    file.sync_all()?;
    let one = |number: u32| -> Result<f64> {
        let begun = Instant::now();
        file.write_all_at(&[7; 128], 128 * u64::from(number))?;
        file.sync_data()?;
        Ok(micros(begun))
    };
    Ok(latency((0..count).map(one).collect::<Result<_>>()?))
}

/// The machine's own price of a hop there and back between two threads.
fn ping_pong(count: u32) -> Result<Figure> {
    let (mut near, mut far) = UnixStream::pair()?;
    let echo = std::thread::spawn(move || {
        let mut byte = [0];
        while far.read_exact(&mut byte).is_ok() && far.write_all(&byte).is_ok() {}
    });
    let mut one = || -> Result<f64> {
        let begun = Instant::now();
        near.write_all(&[1])?;
        near.read_exact(&mut [0])?;
        Ok(micros(begun))
    };
    let samples = (0..count).map(|_| one()).collect::<Result<_>>()?;
    drop(near);
    let _ = echo.join();
    Ok(latency(samples))
}

/// Processor time so far, of this process and of others.
fn cpu(pids: &[i32]) -> Result<Duration> {
    let mut sum = Duration::ZERO;
    for pid in pids {
        sum += Duration::from(ClockId::pid_cpu_clock_id(Pid::from_raw(*pid))?.now()?);
    }
    Ok(sum)
}

fn per_call(spent: Duration, calls: u32) -> f64 {
    spent.as_nanos() as f64 / 1e3 / f64::from(calls)
}

/// The hop from the front's link code to the caged vault and back: processor time of both sides a call, less that of the operation
/// itself, done in this process. An operation that leaves no record, so that no disk is in it.
async fn hop(place: &Place, size: Size, figures: &mut Figures) -> Result<()> {
    let (process, stream) = KeyProcess::start_vault(&place.fresh("hop"), &[])?;
    stream.set_nonblocking(true)?;
    let link = Link::start(tokio::net::UnixStream::from_std(stream)?);
    let mut linked = Linked::with(&link).await?;
    let own = std::process::id() as i32;
    let (calls, both) = (size.single, [own, process.pids().0]);
    let (mut bare, mut one, mut many) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..size.runs {
        let before = cpu(&[own])?;
        for _ in 0..calls {
            linked.bare()?;
        }
        bare.push(per_call(cpu(&[own])? - before, calls));
        let before = cpu(&both)?;
        for _ in 0..calls {
            ensure!(matches!(link.ask(linked.request()).await, Some(Reply::LinkKeys(_))), "refused");
        }
        one.push(per_call(cpu(&both)? - before, calls));
        let before = cpu(&both)?;
        ask_at_once(&link, &linked, calls).await?;
        many.push(per_call(cpu(&both)? - before, calls));
        // The quota of rows runs in again.
        tokio::time::sleep(Duration::from_secs(u64::from(calls) / 1000)).await;
    }
    let least = bare.iter().copied().fold(f64::INFINITY, f64::min);
    let less = |runs: Vec<f64>| runs.into_iter().map(|run| run - least).collect();
    figures.add_runs("hop_cpu_1", "µs", Better::Lower, less(one));
    figures.add_runs("hop_cpu_32", "µs", Better::Lower, less(many));
    figures.add_runs("bare_operation_cpu", "µs", Better::Lower, bare);
    if is_root() {
        let (idle, _stream) = KeyProcess::start_vault(&place.fresh("idle"), &[])?;
        tokio::time::sleep(Duration::from_secs(2)).await;
        figures.add_runs("pss_idle_vault", "KiB", Better::Lower, vec![pss_kib(idle.pids().0 as u32)?]);
    }
    Ok(())
}

async fn ask_at_once(link: &Link, linked: &Linked, calls: u32) -> Result<()> {
    let mut tasks = JoinSet::new();
    let each = calls / 32;
    for _ in 0..32 {
        let (link, row) = (link.clone(), linked.row());
        tasks.spawn(async move {
            for _ in 0..each {
                let reply = link.ask(Request::LinkKeys { row: row.clone() }).await;
                ensure!(matches!(reply, Some(Reply::LinkKeys(_))), "refused");
            }
            Ok(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    Ok(())
}

fn http_request() -> rpc::SignHttpRequest {
    rpc::SignHttpRequest {
        method: "POST".to_owned(),
        target_uri: "https://directory.example/api/v3/nodes/register".to_owned(),
        content_sha256: vec![3; 32].into(),
        created: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
        nonce: vec![4; 16].into(),
    }
}

fn orders() -> Vec<String> {
    vec![format!("signatures={}", openred_proto::limits::SIGNATURES_PER_SECOND_MAX)]
}

async fn one_by_one(client: &mut Client, count: u32) -> Result<Vec<f64>> {
    let mut samples = Vec::with_capacity(count as usize);
    for _ in 0..count {
        let begun = Instant::now();
        client.sign_http(http_request()).await?;
        samples.push(micros(begun));
    }
    Ok(samples)
}

/// `SignHttp` with its durable record, through gRPC: one after the other, and [`IN_FLIGHT`] at once.
async fn signatures(place: &Place, size: Size, figures: &mut Figures) -> Result<()> {
    let process = KeyProcess::start(&place.fresh("sign"), &orders())?;
    let mut clients = Vec::new();
    for _ in 0..CONNECTIONS {
        clients.push(process.client().await?);
    }
    one_by_one(&mut clients[0], size.single / 10).await?;
    figures.add("sign_http", latency(one_by_one(&mut clients[0], size.single).await?));
    let (own, (vault, front)) = (std::process::id() as i32, process.pids());
    let sides = [("client", own), ("front", front.context("a front")?), ("vault", vault)];
    let mut rates = Vec::new();
    let mut spent: [Vec<f64>; 3] = Default::default();
    for _ in 0..size.runs {
        let before = sides.map(|(_, pid)| cpu(&[pid]));
        let begun = Instant::now();
        let mut tasks = JoinSet::new();
        let each = size.rate / IN_FLIGHT as u32;
        for number in 0..IN_FLIGHT {
            let mut client = clients[number % CONNECTIONS].clone();
            tasks.spawn(async move {
                for _ in 0..each {
                    client.sign_http(http_request()).await?;
                }
                anyhow::Ok(())
            });
        }
        while let Some(done) = tasks.join_next().await {
            done??;
        }
        let calls = each * IN_FLIGHT as u32;
        rates.push(f64::from(calls) / begun.elapsed().as_secs_f64());
        for ((side, before), (_, pid)) in spent.iter_mut().zip(before).zip(sides) {
            side.push(per_call(cpu(&[pid])? - before?, calls));
        }
    }
    figures.add_runs("sign_http_rate_64", "/s", Better::Higher, rates);
    for (side, (name, _)) in spent.into_iter().zip(sides) {
        figures.add_runs(&format!("sign_http_cpu_{name}"), "µs", Better::Lower, side);
    }
    Ok(())
}

/// One caller signs one after the other while another, over a connection of its own, asks for as much as it can: first signatures, then
/// handshakes.
async fn floods(place: &Place, size: Size, figures: &mut Figures) -> Result<()> {
    let count = size.single / 4;
    let process = KeyProcess::start(&place.fresh("flood"), &orders())?;
    let mut worker = process.client().await?;
    one_by_one(&mut worker, count / 10).await?;
    figures.add("worker_alone", latency(one_by_one(&mut worker, count).await?));
    let flooding = process.client().await?;
    let cheap = Flood::begin(FLOOD, &flooding, signed);
    figures.add("worker_beside_flood", latency(one_by_one(&mut worker, count).await?));
    figures.add_runs("flood_rate", "/s", Better::Higher, vec![cheap.end().await?]);
    let row = Linked::over(&mut worker).await?;
    let dear = Flood::begin(DEAR_FLOOD, &flooding, move |client| half_open(client, row.clone()));
    figures.add("worker_beside_dear_flood", latency(one_by_one(&mut worker, count).await?));
    figures.add_runs("dear_flood_rate", "/s", Better::Higher, vec![dear.end().await?]);
    Ok(())
}

async fn signed(mut client: Client) -> Result<(), Code> {
    client.sign_http(http_request()).await.map(drop).map_err(|status| status.code())
}

/// The dearer half of a handshake's first phase, given up at once.
async fn half_open(mut client: Client, row: Bytes) -> Result<(), Code> {
    let started = client.start_handshake(rpc::LinkRow { row }).await;
    let handshake = started.map_err(|status| status.code())?.into_inner().handshake;
    client.abandon_handshake(rpc::HandshakeName { handshake }).await.map(drop).map_err(|status| status.code())
}

/// A caller that asks without end.
struct Flood {
    tasks: JoinSet<Result<u32, Code>>,
    stop: Arc<AtomicBool>,
    begun: Instant,
}

impl Flood {
    fn begin<A>(width: usize, client: &Client, call: impl Fn(Client) -> A + Clone + Send + 'static) -> Self
    where
        A: Future<Output = Result<(), Code>> + Send,
    {
        let stop = Arc::new(AtomicBool::new(false));
        let mut tasks = JoinSet::new();
        for _ in 0..width {
            let (client, stop, call) = (client.clone(), Arc::clone(&stop), call.clone());
            tasks.spawn(async move {
                let mut served = 0;
                while !stop.load(Ordering::Relaxed) {
                    call(client.clone()).await?;
                    served += 1;
                }
                Ok(served)
            });
        }
        Self { tasks, stop, begun: Instant::now() }
    }

    /// Calls served a second; each was.
    async fn end(mut self) -> Result<f64> {
        self.stop.store(true, Ordering::Relaxed);
        let seconds = self.begun.elapsed().as_secs_f64();
        let mut served = 0;
        while let Some(done) = self.tasks.join_next().await {
            served += done?.map_err(|code| anyhow::anyhow!("who floods was refused: {code:?}"))?;
        }
        ensure!(served > 0, "who floods was not served");
        Ok(f64::from(served) / seconds)
    }
}

/// The goals beside what was measured.
pub(crate) fn print_goals(figures: &Figures) {
    let median = |name: &str| figures.get(name).map(|figure| figure.median);
    let rows = [
        ("hop front to vault, CPU over the operation", median("hop_cpu_1"), "µs", "≤ 15", Some(15.0), Better::Lower),
        ("the same, 32 in flight", median("hop_cpu_32"), "µs", "≤ 15", Some(15.0), Better::Lower),
        (
            "SignHttp/s, 64 in flight, 2 connections",
            median("sign_http_rate_64"),
            "/s",
            "≥ 15,000",
            Some(15_000.0),
            Better::Higher,
        ),
        (
            "  over ssh-agent's rate",
            median("sign_http_rate_64").zip(median("ssh_agent_rate")).map(|(ours, theirs)| ours / theirs),
            "×",
            "≥ 10",
            Some(10.0),
            Better::Higher,
        ),
        (
            "SignHttp p50, 1 in flight",
            median("sign_http"),
            "µs",
            "≤ 150 + fdatasync",
            median("fdatasync").map(|sync| 150.0 + sync),
            Better::Lower,
        ),
        ("idle vault, PSS", median("pss_idle_vault"), "KiB", "≤ 3,072", Some(3072.0), Better::Lower),
    ];
    say(&format!("\n{:<44} {:>12} {:<4} {:>18}  met", "goal", "ours", "", "goal"));
    for (what, ours, unit, goal, bound, better) in rows {
        let Some((ours, bound)) = ours.zip(bound) else { continue };
        let is_met = if better == Better::Lower { ours <= bound } else { ours >= bound };
        say(&format!("{what:<44} {ours:>12.1} {unit:<4} {goal:>18}  {}", if is_met { "yes" } else { "NO" }));
    }
}
