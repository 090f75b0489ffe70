//! The group `replicas`: three directories of one identity (docs/directory.md, «Scale out»), each in its cage, on one PostgreSQL and over one
//! NATS server, all of them on this machine, beside one process alone on the same database. Those who call are this process. On few processors three
//! are no faster than one: the figures say what it costs that a node may come to any of them, and what a restart of one after the other is to
//! those who wait. An offer that was taken and never came is a failure of the run.

mod broker;
mod meter;
mod roll;

use std::fs;
use std::net::SocketAddr;
use std::ops::Range;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use openred_tests::harness::{PATIENCE, wait_for};
use serde_json::Value;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use super::cluster::{self, Cluster};
use super::crowd::Crowd;
use super::drive::{Answers, Door, drive_all};
use super::streams::Streams;
use super::{Served, anybody, first_announcements, latency, manner, one};
use crate::bench::figures::{Better, Figure, Figures};
use broker::Broker;
use meter::{Meter, Spent, WHOSE};

/// What the replicas are called.
const NAMES: [&str; 3] = ["a", "b", "c"];

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    /// Nodes.
    pub(crate) nodes: usize,
    /// Those among which a card is announced at one replica and looked for at another.
    pub(crate) cards: usize,
    /// Recipients with a stream, where offers go one after the other.
    pub(crate) streams: usize,
    /// Offers, one after the other.
    pub(crate) offers: usize,
    /// Recipients with a stream during the restarts.
    pub(crate) recipients: usize,
    /// Replicas that are restarted, one after the other.
    pub(crate) restarts: usize,
    /// Milliseconds between two offers of one issuer during the restarts.
    pub(crate) pause: u64,
    /// How long a run of a rate lasts.
    pub(crate) millis: u64,
    /// Runs of a rate.
    pub(crate) runs: usize,
}

/// All that takes part.
struct World {
    served: Vec<Served>,
    broker: Broker,
    cluster: Cluster,
    crowd: Crowd,
    origin: String,
    size: Size,
}

/// Runs the group.
pub(crate) fn measure(out: &Path, size: Size) -> Result<Figures> {
    let folder = out.canonicalize()?.join(format!("replicas-{}", std::process::id()));
    fs::create_dir(&folder)?;
    let mut figures = Figures::default();
    let measured = in_folder(&folder, size, &mut figures);
    let removed = fs::remove_dir_all(&folder);
    if measured.is_err() {
        figures.print("replicas, so far");
    }
    measured?;
    removed?;
    Ok(figures)
}

fn in_folder(folder: &Path, size: Size, figures: &mut Figures) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut world = World::new(folder, size)?;
    let recipients = |phase: usize| phase * size.streams..(phase + 1) * size.streams;
    runtime.block_on(async {
        world.served[0].up(&world.cluster.settings(), 1_000_000).await?;
        first_announcements(&world.served[0], &world.crowd, 0..size.nodes).await?;
        world.rates("alone", &world.served[..1], figures).await?;
        world.offers("offer_alone", [0, 0], recipients(0), figures).await?;
        world.served[0].directory.down()?;
        for (served, name) in world.served.iter_mut().zip(NAMES) {
            let (database, nats) = (world.cluster.settings(), world.broker.url());
            let settings = format!("{database}[replicas]\nurl = \"{nats}\"\nname = \"{name}\"\n");
            served.up(&settings, 1_000_000).await?;
        }
        meet(&world.served)?;
        world.rates("three", &world.served, figures).await?;
        world.cards(figures).await?;
        meet(&world.served)?;
        world.offers("offer_beside", [0, 0], recipients(1), figures).await?;
        world.offers("offer_across", [0, 1], recipients(2), figures).await
    })?;
    roll::measure(&runtime, &mut world, recipients(3).start, figures)?;
    world.served.iter_mut().try_for_each(|served| served.directory.down())
}

/// Waits until all hear each other.
fn meet(served: &[Served]) -> Result<()> {
    served.iter().zip(NAMES).try_for_each(|(one, own)| {
        wait_for("the replicas hear each other", || {
            let status = one.directory.cli(&["status"])?.json()?;
            let heard = status["replicas"]["others"].as_array().context("a replica names the others")?;
            let heard = heard.iter().filter_map(|other| other["name"].as_str());
            let all = heard.eq(NAMES.into_iter().filter(|name| *name != own));
            Ok((all && status["replicas"]["connected"] == true).then_some(()))
        })
    })
}

impl World {
    /// Makes everything and starts what the directories need. They have one key and one origin.
    fn new(folder: &Path, size: Size) -> Result<Self> {
        let programs = cluster::installed();
        let programs = programs.context("PostgreSQL is not installed; as root: apt-get install postgresql")?;
        let cluster = Cluster::start(&programs, &folder.join("postgres"))?;
        let broker = Broker::start()?;
        let mut served: Vec<Served> = Vec::new();
        for name in NAMES {
            let mut new = Served::new(&folder.join(name))?;
            if let Some(first) = served.first() {
                let key = |served: &Served| served.directory.home.join("directory.key");
                fs::copy(key(first), key(&new))?;
                new.origin.clone_from(&first.origin);
            }
            served.push(new);
        }
        let origin = served[0].origin.clone();
        Ok(Self { served, broker, cluster, crowd: Crowd::make(size.nodes + size.cards)?, origin, size })
    }

    fn address(&self, replica: usize) -> SocketAddr {
        self.served[replica].door.address
    }

    /// Announcements of the same cards again and look-ups, by callers that come to these directories in turn.
    async fn rates(&self, who: &str, served: &[Served], figures: &mut Figures) -> Result<()> {
        let doors: Vec<Door> = served.iter().map(|served| served.door.clone()).collect();
        let mut anybody = anybody(self.size.nodes);
        for what in ["announce", "lookup"] {
            let (mut rates, mut took, mut spent) = (Vec::new(), Vec::new(), Vec::new());
            for _ in 0..self.size.runs {
                let meter = Meter::since_now(self)?;
                let next = || {
                    let who = anybody();
                    let announces = what == "announce";
                    Some(if announces { self.crowd.announce(&self.origin, who) } else { Ok(self.crowd.look_up(who)) })
                };
                let outcome = drive_all(&doors, manner(self.size.millis), next).await?.all(200)?;
                spent.push(meter.end(self)?);
                rates.push(outcome.rate());
                took.extend(outcome.took);
            }
            let name = format!("{what}_{who}");
            figures.add_runs(&name, "/s", Better::Higher, rates);
            latency(figures, &format!("{name}_took"), "µs", took)?;
            shares(figures, &name, &spent);
        }
        Ok(())
    }

    /// Offers that are sent to one replica, one after the other, with their recipients' streams at another or at the same; and the processor
    /// time of one.
    async fn offers(
        &self,
        name: &str,
        [sent, read]: [usize; 2],
        recipients: Range<usize>,
        figures: &mut Figures,
    ) -> Result<()> {
        let mut streams = Streams::open(&self.crowd, &self.origin, self.address(read), recipients).await?;
        let meter = Meter::since_now(self)?;
        let took = streams.offers(&self.crowd, &self.origin, self.address(sent), self.size.offers).await?;
        let spent = meter.end(self)?;
        latency(figures, name, "ms", took)?;
        for (whose, of) in WHOSE.into_iter().zip(spent.of) {
            let each = of.as_secs_f64() * 1e6 / self.size.offers as f64;
            let figure = Figure { median: each, p99: each, unit: "µs", n: self.size.offers as u64 };
            figures.add(&format!("{name}_cpu_{whose}"), figure);
        }
        Ok(())
    }

    /// Cards that are new, announced at one replica and looked up at the others in turn until it is there, from the announcement's first byte on.
    async fn cards(&self, figures: &mut Figures) -> Result<()> {
        let mut near = Caller::at(self.address(0)).await?;
        let mut far = [Caller::at(self.address(1)).await?, Caller::at(self.address(2)).await?];
        let (mut announced, mut seen, mut late) = (Vec::new(), Vec::new(), 0);
        for who in self.size.nodes..self.size.nodes + self.size.cards {
            let (announce, look_up) = (self.crowd.announce(&self.origin, who)?, self.crowd.look_up(who));
            let far = &mut far[who % 2];
            let begun = Instant::now();
            let status = near.call(&announce).await?;
            ensure!(status == 200, "an announcement was answered with {status}");
            announced.push(begun.elapsed().as_secs_f64() * 1e3);
            loop {
                match far.call(&look_up).await? {
                    200 => break,
                    404 if begun.elapsed() < PATIENCE => late += 1,
                    status => bail!("a look-up of a card that was announced elsewhere was answered with {status}"),
                }
            }
            seen.push(begun.elapsed().as_secs_f64() * 1e3);
        }
        latency(figures, "card_announced", "ms", announced)?;
        latency(figures, "card_seen", "ms", seen)?;
        one(figures, "card_looked_for_again", "", f64::from(late));
        Ok(())
    }
}

/// Shares of the processors, in percent of one.
fn shares(figures: &mut Figures, name: &str, runs: &[Spent]) {
    for (place, whose) in WHOSE.into_iter().enumerate() {
        let share = |spent: &Spent| spent.of[place].as_secs_f64() / spent.elapsed.as_secs_f64() * 100.0;
        figures.add_runs(&format!("{name}_cpu_{whose}"), "%", Better::Lower, runs.iter().map(share).collect());
    }
}

/// Somebody on a kept connection.
struct Caller {
    stream: TcpStream,
    answers: Answers,
}

impl Caller {
    async fn at(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, answers: Answers::default() })
    }

    async fn call(&mut self, request: &[u8]) -> Result<u16> {
        self.stream.write_all(request).await?;
        self.answers.status(&mut self.stream).await
    }
}

/// What a problem is called.
fn code(body: &[u8]) -> Result<String> {
    let problem: Value = serde_json::from_slice(body)?;
    Ok(problem["code"].as_str().context("a problem has a code")?.to_owned())
}
