//! The group `directory`: how many signed announcements and look-ups one directory takes, what an offer takes to its recipient, what an open
//! stream costs, whether the operator gets through, and how soon a directory with many cards is there again. The release program in its
//! cage, one directory on all processors; those who call it are this process, so each row of rates has beside it what both took of the
//! processors. Beside a file, the same with PostgreSQL; with `--peers`, Syncthing's discovery server.

mod cluster;
mod crowd;
mod discovery;
mod drive;
mod operator;
pub(crate) mod replicas;
mod streams;

use std::fs::{self, File};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use nix::time::ClockId;
use nix::unistd::Pid;
use openred_tests::harness::{Directory, free_port, is_root, signal_pid, wait_for};

use super::figures::{Better, Figure, Figures, say};
use super::groups::pss_kib;
use crowd::Crowd;
use drive::{Door, Manner, Outcome, drive};
use operator::Operator;
use streams::Streams;

/// Callers at once where rates count.
const CALLERS: usize = 64;
/// Requests that a caller of the overload sends before it reads: it does not wait for answers.
const OVERLOAD_DEPTH: usize = 16;
/// Of so many requests of the overload one is an announcement, the others are look-ups.
const OVERLOAD_ANNOUNCES: usize = 4;
/// Slices of the time in which all nodes come for the first time: the slowest is a figure.
const SLICES: usize = 5;

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    /// Nodes of the large directory.
    pub(crate) nodes: usize,
    /// Of the small one.
    pub(crate) few: usize,
    /// Of one of usual size.
    pub(crate) usual: usize,
    /// Of the one on PostgreSQL.
    pub(crate) shared: usize,
    /// Streams.
    pub(crate) streams: usize,
    /// Offers.
    pub(crate) offers: usize,
    /// How long a run of a rate lasts.
    pub(crate) millis: u64,
    /// Runs of a rate.
    pub(crate) runs: usize,
    /// `limits.overall_per_second` of the overload.
    pub(crate) overall: u32,
}

/// A directory that serves.
struct Served {
    directory: Directory,
    origin: String,
    door: Door,
}

impl Served {
    /// Makes one in `home`. The limits that these callers would meet on one machine are raised, as an operator raises them.
    fn new(home: &Path) -> Result<Self> {
        let listen = free_port()?;
        let origin = format!("http://{listen}");
        let directory = Directory::init(home, listen, &origin)?;
        Ok(Self { directory, origin, door: Door { address: listen, tls: Vec::new() } })
    }

    /// Starts it; milliseconds until it answers.
    async fn up(&mut self, store: &str, overall: u32) -> Result<f64> {
        let (listen, home) = (self.door.address, &self.directory.home);
        let tls = if self.door.tls.is_empty() {
            String::new()
        } else {
            let path = |name: &str| home.join(name).display().to_string();
            format!("[tls]\ncertificate = \"{}\"\nkey = \"{}\"\n", path("tls.pem"), path("tls.key"))
        };
        let text = format!(
            "listen = \"{listen}\"\norigin = \"{}\"\n{tls}[store]\nmax_megabytes = 16384\n{store}[limits]\nnodes = 2000000\n\
             connections = 19500\nstreams = 19000\noverall_per_second = {overall}\n",
            self.origin
        );
        fs::write(home.join("directory.toml"), text)?;
        let begun = Instant::now();
        self.directory.up()?;
        // It listens before it reads its database, and signatures of before its start are refused.
        let health = b"GET /api/v3/health HTTP/1.1\r\nhost: x\r\n\r\n".to_vec();
        let mut once = Some(Ok(health));
        drive(&self.door, Manner { callers: 1, ..manner(60_000) }, || once.take()).await?.all(200)?;
        Ok(begun.elapsed().as_secs_f64() * 1e3)
    }

    fn pid(&self) -> Result<i32> {
        Ok(i32::try_from(self.directory.pid()?)?)
    }

    /// From now on it speaks TLS.
    fn with_tls(&mut self) -> Result<()> {
        let files = [
            ("tls.pem", include_str!("../../../../directory/tests/directory/tls/localhost.pem")),
            ("tls.key", include_str!("../../../../directory/tests/directory/tls/localhost.key")),
        ];
        for (name, text) in files {
            fs::write(self.directory.home.join(name), text)?;
        }
        self.origin = self.origin.replace("http:", "https:");
        self.door.tls = vec![drive::tls(None)?];
        Ok(())
    }
}

/// Processor time of the directory and of this process, in percent of one processor.
struct Spent {
    directory: i32,
    before: [Duration; 2],
    begun: Instant,
}

impl Spent {
    fn since_now(directory: i32) -> Result<Self> {
        Ok(Self { directory, before: clocks(directory)?, begun: Instant::now() })
    }

    fn end(self) -> Result<[f64; 2]> {
        let after = clocks(self.directory)?;
        let seconds = self.begun.elapsed().as_secs_f64();
        let share = |place: usize| (after[place].saturating_sub(self.before[place])).as_secs_f64() / seconds * 100.0;
        Ok([share(0), share(1)])
    }
}

fn clocks(directory: i32) -> Result<[Duration; 2]> {
    let clock = |pid| anyhow::Ok(Duration::from(ClockId::pid_cpu_clock_id(Pid::from_raw(pid))?.now()?));
    Ok([clock(directory)?, clock(i32::try_from(std::process::id())?)?])
}

/// Runs the group.
pub(crate) fn measure(out: &Path, size: Size, peers: bool) -> Result<Figures> {
    let most = getrlimit(Resource::RLIMIT_NOFILE)?.1;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    let folder = out.canonicalize()?.join(format!("directory-{}", std::process::id()));
    fs::create_dir(&folder)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut figures = Figures::default();
    let measured = runtime.block_on(async {
        let begun = Instant::now();
        let crowd = Crowd::make(size.nodes)?;
        one(&mut figures, "cards_made", "s", begun.elapsed().as_secs_f64());
        on_file(&folder.join("file"), &crowd, size, &mut figures).await?;
        on_postgres(&folder, &crowd, size, &mut figures).await?;
        if peers {
            match discovery::installed() {
                Some(program) => discovery::measure(&program, &folder.join("peer"), size, &mut figures).await?,
                None => say("stdiscosrv is not on the path: the peer's figures are docs/benchmarks.md's"),
            }
        }
        anyhow::Ok(())
    });
    let removed = fs::remove_dir_all(&folder);
    if measured.is_err() {
        figures.print("directory, so far");
    }
    measured?;
    removed?;
    Ok(figures)
}

fn one(figures: &mut Figures, name: &str, unit: &'static str, value: f64) {
    figures.add(name, Figure { median: value, p99: value, unit, n: 1 });
}

fn latency(figures: &mut Figures, name: &str, unit: &'static str, mut samples: Vec<f64>) -> Result<f64> {
    samples.sort_by(f64::total_cmp);
    ensure!(!samples.is_empty(), "{name}: nothing was measured");
    let at = |share: f64| samples[((samples.len() - 1) as f64 * share) as usize];
    figures.add(name, Figure { median: at(0.5), p99: at(0.99), unit, n: samples.len() as u64 });
    Ok(at(0.99))
}

/// All that is measured of a directory with a file.
async fn on_file(home: &Path, crowd: &Crowd, size: Size, figures: &mut Figures) -> Result<()> {
    let mut served = Served::new(home)?;
    served.up("", 1_000_000).await?;
    let mut load = first_announcements(&served, crowd, 0..size.few).await?.seconds;
    let few = look_ups(&served, crowd, size.few, size).await?;
    let few_p99 = latency(figures, "lookup_few_took", "µs", few.took)?;
    load += first_announcements(&served, crowd, size.few..size.usual).await?.seconds;
    rates_of("usual_", &served, crowd, size.usual, size, figures).await?;
    let mut rates = Vec::new();
    let each = (size.nodes - size.usual).div_ceil(SLICES);
    for slice in 0..SLICES {
        let range = size.usual + slice * each..size.nodes.min(size.usual + (slice + 1) * each);
        let new = first_announcements(&served, crowd, range).await?;
        load += new.seconds;
        rates.push(new.rate());
    }
    one(figures, "load", "s", load);
    figures.add_runs("announce_new", "/s", Better::Higher, rates);
    let p99 = rates_of("", &served, crowd, size.nodes, size, figures).await?;
    one(figures, "lookup_p99_ratio", "", p99 / few_p99);
    served.directory.down()?;
    let database = home.join("state/directory.sqlite");
    one(figures, "database", "MiB", fs::metadata(&database)?.len() as f64 / f64::from(1 << 20));
    let started = cold(&mut served, &database).await?;
    one(figures, "start_cold", "ms", started);
    held_streams(&served, crowd, size, figures).await?;
    served.directory.down()?;
    overloaded(&mut served, crowd, size, figures).await?;
    served.with_tls()?;
    served.up("", 1_000_000).await?;
    tls_rates(&served, crowd, size, figures).await?;
    killed(&mut served, crowd, size, figures).await?;
    served.directory.down()
}

/// As [`on_file`], as much of it as is not the file's.
async fn on_postgres(folder: &Path, crowd: &Crowd, size: Size, figures: &mut Figures) -> Result<()> {
    let Some(programs) = cluster::installed() else {
        say("PostgreSQL is not installed: its rows are left out");
        return Ok(());
    };
    let cluster = cluster::Cluster::start(&programs, &folder.join("postgres"))?;
    let mut served = Served::new(&folder.join("shared"))?;
    served.up(&cluster.settings(), 1_000_000).await?;
    let new = first_announcements(&served, crowd, 0..size.shared).await?;
    figures.add_runs("postgres_announce_new", "/s", Better::Higher, vec![new.rate()]);
    rates_of("postgres_", &served, crowd, size.shared, size, figures).await?;
    let mut streams =
        Streams::open(crowd, &served.origin, served.door.address, 0..size.offers.min(size.shared / 2)).await?;
    let offers = streams.offers(crowd, &served.origin, served.door.address, size.offers).await?;
    latency(figures, "postgres_offer_routed", "ms", offers)?;
    drop(streams);
    served.directory.down()
}

fn manner(millis: u64) -> Manner {
    Manner { callers: CALLERS, depth: 1, time: Duration::from_millis(millis) }
}

/// Each of them once.
async fn first_announcements(served: &Served, crowd: &Crowd, mut who: std::ops::Range<usize>) -> Result<Outcome> {
    let next = || who.next().map(|who| crowd.announce(&served.origin, who));
    drive(&served.door, Manner { time: Duration::MAX, ..manner(0) }, next).await?.all(200)
}

/// All in an order that no cache likes: a step that is prime to every number of nodes that is asked for.
fn anybody(nodes: usize) -> impl FnMut() -> usize {
    let mut number = 0_usize;
    move || {
        number += 1;
        number.wrapping_mul(618_034_003) % nodes
    }
}

async fn look_ups(served: &Served, crowd: &Crowd, nodes: usize, size: Size) -> Result<Outcome> {
    let mut anybody = anybody(nodes);
    drive(&served.door, manner(size.millis), || Some(Ok(crowd.look_up(anybody())))).await?.all(200)
}

/// Announcements of the same cards again, and look-ups, in several runs, with the operator beside the first; the look-ups' 99th percentile.
async fn rates_of(
    prefix: &str,
    served: &Served,
    crowd: &Crowd,
    nodes: usize,
    size: Size,
    figures: &mut Figures,
) -> Result<f64> {
    let socket = operator::socket(&served.directory.home);
    let idle = Operator::start(&socket, crowd.id(0));
    tokio::time::sleep(Duration::from_millis(size.millis / 2)).await;
    latency(figures, &format!("{prefix}admin_calm"), "ms", idle.end()?)?;
    let (mut announced, mut looked_up) = (Run::default(), Run::default());
    let mut anybody = anybody(nodes);
    let operator = Operator::start(&socket, crowd.id(0));
    for _ in 0..size.runs {
        let spent = Spent::since_now(served.pid()?)?;
        let next = || Some(crowd.announce(&served.origin, anybody()));
        announced.add(drive(&served.door, manner(size.millis), next).await?.all(200)?, spent.end()?);
    }
    latency(figures, &format!("{prefix}admin_saturated"), "ms", operator.end()?)?;
    for _ in 0..size.runs {
        let spent = Spent::since_now(served.pid()?)?;
        looked_up.add(look_ups(served, crowd, nodes, size).await?, spent.end()?);
    }
    announced.figures(figures, &format!("{prefix}announce_again"))?;
    looked_up.figures(figures, &format!("{prefix}lookup"))
}

/// Runs of one kind of request.
#[derive(Default)]
struct Run {
    rates: Vec<f64>,
    took: Vec<f64>,
    spent: [Vec<f64>; 2],
}

impl Run {
    fn add(&mut self, outcome: Outcome, spent: [f64; 2]) {
        self.rates.push(outcome.rate());
        self.took.extend(outcome.took);
        self.spent.iter_mut().zip(spent).for_each(|(all, this)| all.push(this));
    }

    /// Gives the 99th percentile.
    fn figures(self, figures: &mut Figures, name: &str) -> Result<f64> {
        figures.add_runs(name, "/s", Better::Higher, self.rates);
        let [directory, generator] = self.spent;
        figures.add_runs(&format!("{name}_cpu_directory"), "%", Better::Lower, directory);
        figures.add_runs(&format!("{name}_cpu_generator"), "%", Better::Lower, generator);
        latency(figures, &format!("{name}_took"), "µs", self.took)
    }
}

/// The same requests over TLS, as the peer takes them.
async fn tls_rates(served: &Served, crowd: &Crowd, size: Size, figures: &mut Figures) -> Result<()> {
    let (mut announced, mut looked_up, mut anybody) = (Vec::new(), Vec::new(), anybody(size.nodes));
    for _ in 0..size.runs {
        let next = || Some(crowd.announce(&served.origin, anybody()));
        announced.push(drive(&served.door, manner(size.millis), next).await?.all(200)?.rate());
    }
    for _ in 0..size.runs {
        looked_up.push(look_ups(served, crowd, size.nodes, size).await?.rate());
    }
    figures.add_runs("tls_announce_again", "/s", Better::Higher, announced);
    figures.add_runs("tls_lookup", "/s", Better::Higher, looked_up);
    Ok(())
}

/// Starts it with nothing of its database in the kernel's cache.
async fn cold(served: &mut Served, database: &Path) -> Result<f64> {
    let file = File::open(database).context("opening the database")?;
    file.sync_all()?;
    posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
    served.up("", 1_000_000).await
}

/// Opens all streams on a directory that has just started, so that none of them lies where something else was before.
async fn held_streams(served: &Served, crowd: &Crowd, size: Size, figures: &mut Figures) -> Result<()> {
    let warm = Streams::open(crowd, &served.origin, served.door.address, 0..size.streams / 100 + 1).await?;
    drop(warm);
    let pid = served.directory.pid()?;
    wait_for("the end of the first streams", || Ok((waiting(served)? == 0).then_some(())))?;
    let before = if is_root() { Some(pss_kib(pid)?) } else { None };
    if let Some(before) = before {
        one(figures, "pss_idle", "MiB", before / 1024.0);
    }
    let begun = Instant::now();
    let mut streams = Streams::open(crowd, &served.origin, served.door.address, 0..size.streams).await?;
    one(figures, "streams_opened", "/s", size.streams as f64 / begun.elapsed().as_secs_f64());
    let open = waiting(served)?;
    ensure!(open == size.streams as u64, "{open} streams are open");
    one(figures, "streams", "", open as f64);
    if let Some(before) = before {
        let each = (pss_kib(pid)? - before) / size.streams as f64;
        figures.add("stream_pss", Figure { median: each, p99: each, unit: "KiB", n: size.streams as u64 });
    }
    let offers = streams.offers(crowd, &served.origin, served.door.address, size.offers).await?;
    latency(figures, "offer_routed", "ms", offers)?;
    ensure!(streams.ended() == 0, "streams have ended by themselves");
    Ok(())
}

/// Streams that the directory says are open.
fn waiting(served: &Served) -> Result<u64> {
    let status = served.directory.cli(&["status"])?.json()?;
    status["streams"].as_u64().context("status counts streams")
}

/// Ten times as many requests as the operator allows, and the operator beside them.
async fn overloaded(served: &mut Served, crowd: &Crowd, size: Size, figures: &mut Figures) -> Result<()> {
    served.up("", size.overall).await?;
    let mut anybody = anybody(size.nodes);
    let mut number = 0_usize;
    let operator = Operator::start(&operator::socket(&served.directory.home), crowd.id(0));
    let spent = Spent::since_now(served.pid()?)?;
    let manner = Manner { depth: OVERLOAD_DEPTH, ..manner(size.millis * 2) };
    let outcome = drive(&served.door, manner, || {
        number += 1;
        let who = anybody();
        let announces = number.is_multiple_of(OVERLOAD_ANNOUNCES);
        Some(if announces { crowd.announce(&served.origin, who) } else { Ok(crowd.look_up(who)) })
    })
    .await?;
    let [directory, generator] = spent.end()?;
    latency(figures, "admin_overload", "ms", operator.end()?)?;
    let refused = outcome.count(503);
    ensure!(outcome.answers.keys().all(|status| [200, 503].contains(status)), "answers: {:?}", outcome.answers);
    one(figures, "overload_offered", "/s", outcome.rate());
    one(figures, "overload_factor", "", outcome.rate() * outcome.seconds / (outcome.count(200).max(1)) as f64);
    one(figures, "overload_refused", "/s", refused as f64 / outcome.seconds);
    one(figures, "overload_cpu_directory", "%", directory);
    one(figures, "overload_cpu_generator", "%", generator);
    served.directory.down()
}

/// Kills it while it writes; milliseconds until the next one answers.
async fn killed(served: &mut Served, crowd: &Crowd, size: Size, figures: &mut Figures) -> Result<()> {
    let mut anybody = anybody(size.nodes);
    let next = || Some(crowd.announce(&served.origin, anybody()));
    drive(&served.door, manner(size.millis), next).await?.all(200)?;
    signal_pid(served.directory.pid()?, Signal::SIGKILL)?;
    served.directory.down()?;
    let started = served.up("", 1_000_000).await?;
    one(figures, "start_killed", "ms", started);
    Ok(())
}

/// What docs/budgets.md asks for, beside what was measured.
pub(crate) fn print_goals(figures: &Figures) {
    say(&format!("\n{:<58} {:>12} {:>9}", "goal", "measured", "goal"));
    let rows: [(&str, &str, f64, bool); 13] = [
        ("announcements of new nodes a second", "announce_new", 8_000.0, true),
        ("announcements again a second, usual size", "usual_announce_again", 8_000.0, true),
        ("announcements again a second, all cards", "announce_again", 8_000.0, true),
        ("look-ups a second, usual size", "usual_lookup", 20_000.0, true),
        ("look-ups a second, all cards", "lookup", 20_000.0, true),
        ("an offer to a recipient that waits, p50, ms", "offer_routed", 2.0, false),
        ("streams held", "streams", 18_000.0, true),
        ("a stream, KiB", "stream_pss", 6.0, false),
        ("p99 of look-ups, many cards to few", "lookup_p99_ratio", 2.0, false),
        ("start with a cold cache, ms", "start_cold", 2_000.0, false),
        ("start after a kill, ms", "start_killed", 2_000.0, false),
        ("operator, announcements without end beside, p99, ms", "admin_saturated", 50.0, false),
        ("operator, ten times what is allowed beside, p99, ms", "admin_overload", 50.0, false),
    ];
    for (what, name, goal, more) in rows {
        let Some(figure) = figures.get(name) else { continue };
        let value = if name.starts_with("admin") { figure.p99 } else { figure.median };
        let met = if (value >= goal) == more { "met" } else { "missed" };
        say(&format!("{what:<58} {value:>12.1} {goal:>9.0}  {met}"));
    }
    // docs/benchmarks.md: measured before, on the same kind of machine.
    let earlier = [
        ("tls_announce_again", "syncthing_announce_rate", 12_500.0),
        ("tls_lookup", "syncthing_lookup_rate", 17_100.0),
    ];
    for (ours, theirs, before) in earlier {
        let Some(ours) = figures.get(ours) else { continue };
        let (value, mark) =
            figures.get(theirs).map_or((before, "measured before, not in this run"), |now| (now.median, ""));
        say(&format!(
            "{:<58} {:>12.1} {value:>9.1}  {:.2} {mark}",
            format!("to {theirs}, over TLS too"),
            ours.median,
            ours.median / value
        ));
    }
}
