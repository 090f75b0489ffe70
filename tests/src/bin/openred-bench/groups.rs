//! The groups: what each measures, on one stage of a directory and two linked nodes.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail, ensure};
use openred_tests::flood::flood;
use openred_tests::harness::{Directory, Node, binaries, free_port, is_root, run, wait_for};
use openred_tests::large::{self, Held};
use openred_tests::world::{link, registered};
use serde_json::Value;

use super::figures::{Better, Figure, Figures};
use super::{directory, modules, swaps, vault};

/// What the stage's nodes have in their configuration: method beta (AES-256-GCM, SHA-256).
const EXTRA: &str = "[diagnostics]\nthroughput = true\n[links]\nincoming = \"open\"\nmethods = [\"beta\"]\n\
                     [sessions]\nheld = 2000\nper_peer = 2000\nidle_seconds = 3600\n";

/// How much each group does.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    /// Fresh sessions, one after the other.
    fresh: &'static str,
    /// Fresh sessions at eight dialers.
    dialed: &'static str,
    /// Bad REQUESTs during fifty handshakes.
    bad_requests: usize,
    /// Requests on an open session, one in flight.
    requests: &'static str,
    /// Requests at 64 in flight.
    flight: &'static str,
    /// Bytes of one bulk response and of the file.
    bulk_bytes: u64,
    /// MiB of the large file.
    large_mebibytes: u64,
    /// Sessions held, and connections.
    held: (u64, usize),
    /// Blocks of system calls with and without a filter, and cages set up.
    blocks: &'static str,
    /// System calls of a block.
    calls: &'static str,
    /// The group `vault`.
    pub(crate) vault: vault::Size,
    /// The group `modules`.
    pub(crate) modules: modules::Size,
    /// The group `modules-swap`.
    pub(crate) swaps: swaps::Size,
    /// The group `directory`.
    pub(crate) directory: directory::Size,
    /// The group `replicas`.
    pub(crate) replicas: directory::replicas::Size,
    /// Runs of a rate, bulk responses, files and starts measured.
    runs: usize,
}

impl Size {
    /// What `scripts/bench` measures: 1 GiB in bulk and as a file.
    pub(crate) const FULL: Size = Size {
        fresh: "500",
        dialed: "1000",
        bad_requests: 100_000,
        requests: "5000",
        flight: "20000",
        bulk_bytes: 1 << 30,
        large_mebibytes: 10 << 10,
        held: (1000, 200),
        blocks: "20",
        calls: "50000",
        vault: vault::Size { single: 2000, rate: 16_000, runs: 3 },
        modules: modules::Size { single: 20_000, rate: 200_000, starts: 20, runs: 5 },
        swaps: swaps::Size { rate: 2000, seconds: 60, swaps: 20 },
        directory: directory::Size {
            nodes: 1_000_000,
            few: 1000,
            usual: 50_000,
            shared: 50_000,
            streams: 18_000,
            offers: 500,
            millis: 5000,
            runs: 3,
            overall: 3000,
        },
        replicas: directory::replicas::Size {
            nodes: 20_000,
            cards: 500,
            streams: 64,
            offers: 2000,
            recipients: 24,
            restarts: 3,
            pause: 20,
            millis: 4000,
            runs: 3,
        },
        runs: 3,
    };
    /// Everything once, on little: shows that the measuring works and yields no figure to quote.
    pub(crate) const SMOKE: Size = Size {
        fresh: "5",
        dialed: "16",
        bad_requests: 60_000,
        requests: "50",
        flight: "128",
        bulk_bytes: 8 << 20,
        large_mebibytes: 64,
        held: (150, 100),
        blocks: "1",
        calls: "1000",
        vault: vault::Size { single: 64, rate: 256, runs: 1 },
        modules: modules::Size { single: 50, rate: 200, starts: 2, runs: 1 },
        swaps: swaps::Size { rate: 20, seconds: 2, swaps: 2 },
        directory: directory::Size {
            nodes: 300,
            few: 50,
            usual: 100,
            shared: 100,
            streams: 40,
            offers: 8,
            millis: 200,
            runs: 1,
            overall: 50,
        },
        replicas: directory::replicas::Size {
            nodes: 300,
            cards: 8,
            streams: 6,
            offers: 12,
            recipients: 6,
            restarts: 1,
            pause: 40,
            millis: 200,
            runs: 1,
        },
        runs: 1,
    };
}

/// Directory, alice and bob, linked. State is on the disk of the output folder, never on tmpfs.
pub(crate) struct Stage {
    folder: PathBuf,
    directory: Directory,
    /// The directory, as nodes configure it.
    at: String,
    alice: Node,
    bob: Node,
    ready_ms: Vec<f64>,
    size: Size,
}

impl Stage {
    /// Starts everybody and links them by method beta (AES-256-GCM, SHA-256).
    pub(crate) fn start(out: &Path, size: Size) -> Result<Self> {
        let folder = out.canonicalize()?.join(format!("run-{}", std::process::id()));
        fs::create_dir(&folder)?;
        let listen = free_port()?;
        let origin = format!("http://{listen}");
        let mut directory = Directory::init(&folder.join("directory"), listen, &origin)?;
        directory.up()?;
        let at = format!("{}@{origin}", directory.id);
        let alice = Node::init(&folder, "alice", &at, 61_000, EXTRA)?;
        let bob = Node::init(&folder, "bob", &at, 61_010, EXTRA)?;
        let mut stage = Self { folder, directory, at, alice, bob, ready_ms: Vec::new(), size };
        stage.bob.up()?;
        for _ in 0..2 * size.runs {
            stage.alice.down()?;
            stage.alice.up()?;
            let status: Value = serde_json::from_str(stage.alice.cli(&["status"])?.stdout.trim())?;
            let at = |name: &str| status["supervisor"][name].as_f64();
            if let (Some(started), Some(ready)) = (at("started_at"), at("ready_at")) {
                stage.ready_ms.push(ready - started);
            }
        }
        stage.link()?;
        Ok(stage)
    }

    fn link(&self) -> Result<()> {
        wait_for("alice's link request", || {
            Ok((self.alice.cli(&["link", "request", &self.bob.id])?.code == 0).then_some(()))
        })?;
        wait_for("the first reply over the link", || {
            Ok((self.alice.cli(&["peers", "ping", &self.bob.id, "--count", "1"])?.code == 0).then_some(()))
        })
    }

    /// Stops everybody and removes the state.
    pub(crate) fn stop(mut self) -> Result<()> {
        self.alice.down()?;
        self.bob.down()?;
        self.directory.down()?;
        Ok(fs::remove_dir_all(&self.folder)?)
    }

    fn ping(&self, arguments: &[&str]) -> Result<Value> {
        let answer = self.alice.cli(&[&["peers", "ping", &self.bob.id], arguments].concat())?.json()?;
        ensure!(answer["failed"] == 0, "requests failed: {answer}");
        Ok(answer)
    }
}

/// Runs one group.
pub(crate) fn measure(group: &str, stage: &mut Stage) -> Result<Figures> {
    match group {
        "handshake" => handshake(stage),
        "session" => {
            let mut figures = session(stage)?;
            held(stage, &mut figures)?;
            Ok(figures)
        }
        "file" => file(stage),
        "file-large" => file_large(stage),
        "memory" => memory(stage),
        "cage" => cage(stage),
        other => bail!("{other} is not measured on a stage"),
    }
}

fn latency(answer: &Value) -> Result<Figure> {
    let number = |name: &str| answer[name].as_f64().with_context(|| format!("ping reports {name}: {answer}"));
    Ok(Figure {
        median: number("median_us")?,
        p99: number("p99_us")?,
        unit: "µs",
        n: answer["sent"].as_u64().unwrap_or(0),
    })
}

/// Answers a second, in several runs.
fn rates(stage: &Stage, arguments: &[&str]) -> Result<Vec<f64>> {
    (0..stage.size.runs).map(|_| stage.ping(arguments)?["rate"].as_f64().context("ping reports a rate")).collect()
}

fn handshake(stage: &Stage) -> Result<Figures> {
    let mut figures = Figures::default();
    stage.ping(&["--fresh", "--count", "20"])?;
    figures.add("connect_first_reply", latency(&stage.ping(&["--fresh", "--count", stage.size.fresh])?)?);
    let dialing = ["--fresh", "--count", stage.size.dialed, "--concurrency", "8"];
    figures.add_runs("handshake_rate_8", "/s", Better::Higher, rates(stage, &dialing)?);
    figures.add("connect_first_reply_8", latency(&stage.ping(&dialing)?)?);
    figures.add("connect_first_reply_flooded", flooded(stage)?);
    Ok(figures)
}

/// Fifty fresh sessions of an honest peer, one after the other, with a node that is sent bad REQUESTs as fast as one core sends them.
fn flooded(stage: &Stage) -> Result<Figure> {
    let mut victim = Node::init(&stage.folder, "victim", &stage.at, 61_020, EXTRA)?;
    let tap = victim.tapped()?;
    victim.up()?;
    registered(&victim)?;
    link(&stage.alice, &victim)?;
    let figure = std::thread::scope(|scope| {
        let flooding = scope.spawn(|| flood(victim.listen, stage.size.bad_requests, &tap));
        let answer = stage.alice.cli(&["peers", "ping", &victim.id, "--fresh", "--count", "50"])?.json()?;
        ensure!(answer["failed"] == 0, "handshakes failed during the flood: {answer}");
        ensure!(!flooding.is_finished(), "the flood was over before the fifty handshakes");
        let sent = flooding.join().map_err(|_| anyhow!("the flood's thread panicked"))??;
        ensure!(sent.refused + sent.repeated == stage.size.bad_requests, "another number of answers: {sent:?}");
        latency(&answer)
    })?;
    victim.down()?;
    Ok(figure)
}

fn session(stage: &Stage) -> Result<Figures> {
    let mut figures = Figures::default();
    stage.ping(&["--size", "256", "--count", "200"])?;
    figures.add("request_256", latency(&stage.ping(&["--size", "256", "--count", stage.size.requests])?)?);
    let flight = ["--size", "256", "--count", stage.size.flight, "--concurrency", "64"];
    figures.add_runs("request_rate_64", "/s", Better::Higher, rates(stage, &flight)?);
    let mut rates = Vec::new();
    for _ in 0..stage.size.runs {
        let answer = stage.ping(&["--bulk", &stage.size.bulk_bytes.to_string()])?;
        ensure!(answer["bytes"] == stage.size.bulk_bytes, "another length than asked for: {answer}");
        let seconds = answer["total_us"].as_f64().context("ping reports its time")? / 1e6;
        rates.push(stage.size.bulk_bytes as f64 / seconds / f64::from(1 << 20));
    }
    figures.add_runs("bulk", "MiB/s", Better::Higher, rates);
    Ok(figures)
}

/// What a session costs that nobody uses, and a connection: the difference of `noded`'s proportional set size over many of them. As
/// root, who may read it. The sessions are opened one after the other, each with one request, over a connection of its own that
/// ends; at bob's, who answered, each has its replay window.
fn held(stage: &mut Stage, figures: &mut Figures) -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let (sessions, connections) = stage.size.held;
    for node in [&mut stage.alice, &mut stage.bob] {
        node.down()?;
        node.up()?;
    }
    wait_for("the first reply", || {
        Ok((stage.alice.cli(&["peers", "ping", &stage.bob.id, "--count", "1"])?.code == 0).then_some(()))
    })?;
    let nodes = [("opened", stage.alice.child_pid("noded")?), ("answered", stage.bob.child_pid("noded")?)];
    // What is made once, and not for each, is there before.
    stage.ping(&["--fresh", "--count", "50"])?;
    let before = nodes.map(|(_, pid)| pss_kib(pid));
    stage.ping(&["--fresh", "--count", &sessions.to_string()])?;
    for ((name, pid), before) in nodes.into_iter().zip(before) {
        let kib = (pss_kib(pid)? - before?) / sessions as f64;
        figures.add(&format!("pss_session_{name}"), Figure { median: kib, p99: kib, unit: "KiB", n: sessions });
    }
    let pid = nodes[1].1;
    let before = pss_kib(pid)?;
    let mut open = Vec::new();
    for _ in 0..connections {
        let mut stream = TcpStream::connect(stage.bob.listen)?;
        // Refused: anybody may hold a connection.
        stream.write_all(
            b"POST /p2p/session HTTP/1.1\r\nhost: bench\r\ncontent-length: 25\r\n\r\n0123456789012345678901234",
        )?;
        let mut answer = [0; 12];
        stream.read_exact(&mut answer)?;
        ensure!(answer == *b"HTTP/1.1 403", "another answer than a refusal");
        open.push(stream);
    }
    let kib = (pss_kib(pid)? - before) / connections as f64;
    figures.add("pss_connection", Figure { median: kib, p99: kib, unit: "KiB", n: connections as u64 });
    Ok(())
}

/// A file from alice's store on disk to bob's, verified and durable: what the peer program measures, too. Putting it
/// into alice's store is timed apart, taking it out of bob's (`--out`) is not measured.
fn file(stage: &Stage) -> Result<Figures> {
    let mut figures = Figures::default();
    let (mut shares, mut fetches) = (Vec::new(), Vec::new());
    let mebibytes = (stage.size.bulk_bytes >> 20) as f64;
    for number in 0..stage.size.runs {
        let path = stage.folder.join(format!("file-{number}"));
        let mut block = vec![0; 1 << 20];
        let mut file = File::create(&path)?;
        for _ in 0..stage.size.bulk_bytes >> 20 {
            getrandom::fill(&mut block[..64]).context("the system has randomness")?;
            file.write_all(&block)?;
        }
        file.sync_all()?;
        let start = Instant::now();
        let shared = stage.alice.cli(&["share", &path.to_string_lossy(), "--to", &stage.bob.id])?.json()?;
        shares.push(mebibytes / start.elapsed().as_secs_f64());
        let id = shared["id"].as_str().context("share prints an id")?;
        let start = Instant::now();
        let fetched = stage.bob.cli(&["fetch", &stage.alice.id, id])?.json()?;
        fetches.push(mebibytes / start.elapsed().as_secs_f64());
        ensure!(fetched["verified"] == true, "the file did not verify: {fetched}");
        fs::remove_file(&path)?;
    }
    figures.add_runs("file_share", "MiB/s", Better::Higher, shares);
    figures.add_runs("file", "MiB/s", Better::Higher, fetches);
    Ok(figures)
}

/// A file of 10 GiB, mostly a hole where it comes from, once into a store, over to the other and out again; the most memory that any process holds
/// meanwhile, with the bound that does not depend on the file. Needs three times its length on the disk.
fn file_large(stage: &Stage) -> Result<Figures> {
    let (path, out) = (stage.folder.join("large"), stage.folder.join("large-out"));
    large::sparse(&path, stage.size.large_mebibytes)?;
    let mut held = Held::of(&[&stage.alice, &stage.bob])?;
    let start = Instant::now();
    let shared = held.run(&stage.alice, &["share", &path.to_string_lossy(), "--to", &stage.bob.id])?;
    let id = shared["id"].as_str().context("share prints an id")?;
    let fetched = held.run(&stage.bob, &["fetch", &stage.alice.id, id, "--out", &out.to_string_lossy()])?;
    let rate = stage.size.large_mebibytes as f64 / start.elapsed().as_secs_f64();
    ensure!(fetched["verified"] == true, "the file did not verify: {fetched}");
    let most = held.within_bound()? as f64;
    fs::remove_file(&path)?;
    fs::remove_file(&out)?;
    let mut figures = Figures::default();
    figures.add_runs("file_large", "MiB/s", Better::Higher, vec![rate]);
    figures.add_runs("file_large_memory", "KiB", Better::Lower, vec![most]);
    Ok(figures)
}

/// Proportional set size of the idle node's processes (as root, who may read it), and time from start to ready.
fn memory(stage: &mut Stage) -> Result<Figures> {
    let mut figures = Figures::default();
    figures.add_runs("up_to_ready", "ms", Better::Lower, stage.ready_ms.clone());
    if is_root() {
        stage.bob.down()?;
        stage.bob.up()?;
        let mut pids = vec![("supervisor", stage.bob.daemon()?.pid())];
        for name in ["front", "vault", "noded"] {
            pids.push((name, stage.bob.child_pid(name)?));
        }
        let mut total = 0.0;
        for (name, pid) in pids {
            let kib = pss_kib(pid)?;
            total += kib;
            figures.add_runs(&format!("pss_{name}"), "KiB", Better::Lower, vec![kib]);
        }
        figures.add_runs("pss_idle_node", "KiB", Better::Lower, vec![total]);
    }
    Ok(figures)
}

/// A system call with each filter and without, alternating, and the time to set up a child's cage. By a program of its own, which
/// has one thread.
fn cage(stage: &Stage) -> Result<Figures> {
    let mut figures = Figures::default();
    let program = binaries()?.join("openred-cage-bench");
    let answer = run(&program, &[stage.size.blocks, stage.size.calls])?;
    ensure!(answer.code == 0, "{}: {}", program.display(), answer.stderr);
    for (name, samples) in serde_json::from_str::<BTreeMap<String, Vec<f64>>>(answer.stdout.trim())? {
        let unit = if name.starts_with("set_up") { "ms" } else { "ns" };
        figures.add_runs(&name, unit, Better::Lower, samples);
    }
    Ok(figures)
}

/// Proportional set size of a process.
pub(crate) fn pss_kib(pid: u32) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let line = text.lines().find(|line| line.starts_with("Pss:")).context("smaps_rollup has Pss")?;
    Ok(line.split_whitespace().nth(1).context("Pss has a value")?.parse()?)
}
