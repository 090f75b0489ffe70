//! Who takes part: a directory and nodes, each in its place, started and asked as an operator would.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use openred_tests::harness::{Answer, Directory, Node, binaries, run, signal_pid, wait_for};
use openred_tests::swap_desk::{Desk, MODULE, version};
use serde_json::Value;

use super::place::{FOLDER, Place};
use super::plan::Options;
use super::weather::{Way, Weather, open};

/// Where a node listens, where its proxy does, and where the directory is found on each node's own loopback.
const NODE_PORT: u16 = 7690;
const PROXY_PORT: u16 = 7691;
const DIRECTORY_PORT: u16 = 7440;
/// The directory's place; nodes count from 1.
const DIRECTORY_PLACE: u8 = 250;
/// First uid of the first node, as root, and how far apart they are: a node with its modules takes 68.
const UIDS: (u32, u32) = (40_000, 70);
/// What the installed module asks for beside its rows: to stand before every delivery to `messaging`, which waits where it does not answer.
const GATE: &str = "\n[[hook]]\nid = \"gate\"\npoint = \"inbound\"\nclass = \"authz\"\nreason = \"it watches\"\n\
    timeout_millis = 100\nmatch = { modules = [\"messaging\"] }\n";
/// How long an operator's command may take: longer is a hang. The node's own longest wait is for a delivery, half a minute.
const COMMAND_SECONDS: &str = "120";
/// What `timeout` says of a command that took longer.
const HUNG: i32 = 124;

/// Locks what no panic leaves half done.
pub(crate) fn held<T>(lock: &Mutex<T>) -> MutexGuard<'_, T> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One node.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) name: String,
    pub(crate) id: String,
    pub(crate) place: Arc<Place>,
    home: PathBuf,
    program: PathBuf,
    pub(crate) node: Mutex<Node>,
    /// One message at a time, so that their order is known.
    pub(crate) voice: Mutex<()>,
    /// Held by whoever has pulled its cable, or stepped its clock.
    pub(crate) cable: Mutex<()>,
    pub(crate) clock: Mutex<()>,
}

impl Member {
    fn make(number: usize, directory: &str, options: &Options, weather: &Arc<Weather>) -> Result<Self> {
        let count = u8::try_from(number)? + 1;
        let place = Arc::new(Place::make(count)?);
        let name = format!("n{number}");
        let uids = UIDS.0 + UIDS.1 * u32::from(count);
        let extra = format!("[links]\nincoming = \"open\"\nlife_seconds = {}\n", options.life);
        let node = Node::init_at(Path::new(FOLDER), &name, directory, uids, &extra, place.at(NODE_PORT))?;
        let mut ways = vec![Way::Stream {
            from: ([127, 0, 0, 1], DIRECTORY_PORT).into(),
            to: ([10, 77, 0, DIRECTORY_PLACE], DIRECTORY_PORT).into(),
        }];
        // Every second one is reached through a proxy, the others directly.
        if number % 2 == 1 {
            ways.push(Way::Requests { from: place.at(PROXY_PORT), to: place.at(NODE_PORT) });
            let config = node.home.join("openred.toml");
            let text = format!("endpoints = [\"http://{}\"]\n{}", place.at(PROXY_PORT), fs::read_to_string(&config)?);
            fs::write(&config, text)?;
        }
        open(Arc::clone(&place), ways, Arc::clone(weather));
        Ok(Self {
            name,
            id: node.id.clone(),
            place,
            home: node.home.clone(),
            program: binaries()?.join("openred"),
            node: Mutex::new(node),
            voice: Mutex::default(),
            cable: Mutex::default(),
            clock: Mutex::default(),
        })
    }

    /// Starts it; its processes are up then.
    pub(crate) fn up(&self, node: &mut Node) -> Result<()> {
        self.place.inside(|| node.up_without_answers())
    }

    /// Runs an operator's command.
    pub(crate) fn cli(&self, words: &[&str]) -> Result<Answer> {
        let (program, home) = (self.program.to_string_lossy(), self.home.to_string_lossy());
        let begun = [COMMAND_SECONDS, &program, "--json", "--home", &home];
        let answer = run(Path::new("timeout"), &[&begun[..], words].concat())?;
        ensure!(answer.code != HUNG, "HANGS: {} {}", self.name, words.first().unwrap_or(&""));
        Ok(answer)
    }

    /// `status`, whatever its exit code.
    pub(crate) fn status(&self) -> Result<Value> {
        let answer = self.cli(&["status"])?;
        serde_json::from_str(answer.stdout.trim()).with_context(|| format!("{}: {}", self.name, answer.stderr))
    }

    /// Installs a module that counts, and grants what it asks for; it answers then.
    fn install(&self, package: &Path, publisher: &str) -> Result<()> {
        let package = package.to_string_lossy();
        self.cli(&["module", "install", &package, "--publisher", publisher, "--approve"])?.ok()?;
        let call = ["module", "call", MODULE, "GET", "/shown"];
        wait_for("the installed module", || Ok((self.cli(&call)?.code == 0).then_some(())))
    }

    /// Ends one of its processes; false when it does not run at the moment.
    pub(crate) fn kill(&self, process: &str) -> bool {
        let pid = held(&self.node).child_pid(process);
        pid.and_then(|pid| signal_pid(pid, Signal::SIGKILL)).is_ok()
    }

    /// The links that it could use now: peer and link.
    fn links(&self) -> Result<BTreeMap<String, BTreeSet<String>>> {
        let list = self.cli(&["link", "list"])?.json()?;
        let mut links = BTreeMap::<String, BTreeSet<String>>::new();
        for link in list["links"].as_array().context("link list prints links")? {
            if link["state"] == "active" || link["state"] == "renewing" {
                let text = |name: &str| link[name].as_str().unwrap_or_default().to_owned();
                links.entry(text("peer")).or_default().insert(text("link_id"));
            }
        }
        Ok(links)
    }

    /// What its processes said so far.
    pub(crate) fn log(&self) -> PathBuf {
        self.home.with_extension("log")
    }
}

/// The directory in its place.
#[derive(Debug)]
pub(crate) struct Guide {
    pub(crate) place: Arc<Place>,
    pub(crate) directory: Mutex<Directory>,
    pub(crate) cable: Mutex<()>,
}

impl Guide {
    pub(crate) fn up(&self, directory: &mut Directory) -> Result<()> {
        self.place.inside(|| directory.up())
    }
}

/// All of them.
#[derive(Debug)]
pub(crate) struct Crew {
    pub(crate) guide: Guide,
    pub(crate) members: Vec<Member>,
    pub(crate) weather: Arc<Weather>,
    /// Held by whoever has split the network.
    pub(crate) split: Mutex<()>,
}

impl Crew {
    /// Makes and starts everybody.
    pub(crate) fn raise(options: &Options) -> Result<Self> {
        let weather = Arc::new(Weather::new(options.seed));
        let place = Arc::new(Place::make(DIRECTORY_PLACE)?);
        let local = ([127, 0, 0, 1], DIRECTORY_PORT).into();
        // Plain HTTP is for loopback alone: the way over the bridge ends on both sides at a loopback.
        let origin = format!("http://127.0.0.1:{DIRECTORY_PORT}");
        let mut directory = Directory::init(&Path::new(FOLDER).join("directory"), local, &origin)?;
        let way = Way::Stream { from: place.at(DIRECTORY_PORT), to: local };
        open(Arc::clone(&place), vec![way], Arc::new(Weather::new(0)));
        place.inside(|| directory.up())?;
        let at = format!("{}@{origin}", directory.id);
        let guide = Guide { place, directory: Mutex::new(directory), cable: Mutex::default() };
        let members: Result<Vec<Member>> =
            (0..options.nodes).map(|number| Member::make(number, &at, options, &weather)).collect();
        let crew = Self { guide, members: members?, weather, split: Mutex::default() };
        let desk = Desk::new(&Path::new(FOLDER).join("desk"))?;
        let package = desk.package(&version(0, 0), "", GATE)?;
        for member in &crew.members {
            member.up(&mut held(&member.node))?;
            member.install(&package, &desk.publisher).with_context(|| member.name.clone())?;
        }
        Ok(crew)
    }

    /// Every two, the one that asks first.
    pub(crate) fn pairs(&self) -> impl Iterator<Item = (&Member, &Member)> {
        let members = &self.members;
        members.iter().enumerate().flat_map(|(number, one)| members[number + 1..].iter().map(move |other| (one, other)))
    }

    /// Every pair asks for its link, once both are registered.
    pub(crate) fn link(&self) -> Result<()> {
        for (one, other) in self.pairs() {
            wait_for("a link to be asked for", || {
                one.cli(&["link", "request", &other.id, "--wait", "0"])?.ok()?;
                Ok(Some(()))
            })?;
        }
        Ok(())
    }

    /// The pairs that hold no usable link in common.
    pub(crate) fn unlinked(&self) -> Result<Vec<String>> {
        let links: Vec<_> = self.members.iter().map(Member::links).collect::<Result<_>>()?;
        let mut missing = Vec::new();
        let nothing = BTreeSet::new();
        for (number, one) in self.members.iter().enumerate() {
            for (count, other) in self.members.iter().enumerate().skip(number + 1) {
                let of = |at: usize, peer: &Member| links[at].get(&peer.id).unwrap_or(&nothing).clone();
                if of(number, other).is_disjoint(&of(count, one)) {
                    missing.push(format!("{}-{}", one.name, other.name));
                }
            }
        }
        Ok(missing)
    }
}
