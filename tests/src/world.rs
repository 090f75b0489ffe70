//! A small world for one test: a directory behind a recording proxy and nodes that use it, in a folder of its own.

use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tempfile::TempDir;

use crate::harness::{Directory, Node, free_port, wait_for};
use crate::tap::Tap;

/// First uid of the next node, as root: nodes of one host take disjoint ranges.
static NEXT_UID: AtomicU32 = AtomicU32::new(62_000);
/// Uids that one node may take: four of its own, and one for each module.
const UID_RANGE: u32 = 68;

/// A directory, its recording proxy, and room for nodes.
#[derive(Debug)]
pub struct World {
    /// Everything of this test is below it.
    pub folder: TempDir,
    /// The proxy that nodes reach the directory through.
    pub tap: Tap,
    /// The directory.
    pub directory: Directory,
}

impl World {
    /// A directory that is not started yet.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn without_directory() -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("openred-e2e-").tempdir()?;
        let listen = free_port()?;
        let tap = Tap::start(listen)?;
        let origin = format!("http://{}", tap.address());
        let directory = Directory::init(&folder.path().join("directory"), listen, &origin)?;
        Ok(Self { folder, tap, directory })
    }

    /// A running directory.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn start() -> Result<Self> {
        let mut world = Self::without_directory()?;
        world.directory.up()?;
        Ok(world)
    }

    /// The directory's public origin, which requests are signed for.
    #[must_use]
    pub fn origin(&self) -> String {
        format!("http://{}", self.tap.address())
    }

    /// A node's setting for this directory: `did@url`.
    #[must_use]
    pub fn directory_setting(&self) -> String {
        format!("{}@{}", self.directory.id, self.origin())
    }

    /// Makes a node that is not started yet.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn init(&self, name: &str, extra: &str) -> Result<Node> {
        self.init_in(self.folder.path(), name, extra)
    }

    /// The same, with its home in another folder.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn init_in(&self, folder: &Path, name: &str, extra: &str) -> Result<Node> {
        let uid = NEXT_UID.fetch_add(UID_RANGE, Ordering::Relaxed);
        Node::init_light(folder, name, &self.directory_setting(), uid, extra)
    }

    /// Makes and starts a node that has no directory.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn alone(&self, name: &str, extra: &str) -> Result<Node> {
        let uid = NEXT_UID.fetch_add(UID_RANGE, Ordering::Relaxed);
        let mut node = Node::init_light(self.path(), name, "", uid, extra)?;
        // That it has no directory is a warning in its status.
        node.up_without_answers()?;
        Ok(node)
    }

    /// Makes and starts a node that takes every offer.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn node(&self, name: &str) -> Result<Node> {
        let mut node = self.init(name, "[links]\nincoming = \"open\"\n")?;
        node.up()?;
        registered(&node)?;
        Ok(node)
    }

    /// Two nodes with an active link.
    ///
    /// # Errors
    /// When they do not link.
    pub fn linked(&self) -> Result<(Node, Node)> {
        let (alice, bob) = (self.node("alice")?, self.node("bob")?);
        link(&alice, &bob)?;
        Ok((alice, bob))
    }

    /// The folder's path.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.folder.path()
    }
}

/// Waits until a node is registered with its directory.
///
/// # Errors
/// When it is not in time.
pub fn registered(node: &Node) -> Result<()> {
    wait_for("registration with the directory", || {
        let status = status(node)?;
        let first = &status["node"]["directories"][0];
        ensure!(first["state"] == "registered", "the node says: {first}");
        Ok(Some(()))
    })
}

/// Requests a link and waits for the first reply over it.
///
/// # Errors
/// When it does not come about.
pub fn link(one: &Node, other: &Node) -> Result<()> {
    one.cli(&["link", "request", &other.id])?.ok()?;
    wait_for("the first reply over the link", || {
        one.cli(&["peers", "ping", &other.id, "--count", "1"])?.ok()?;
        Ok(Some(()))
    })
}

/// `status --json`, whatever its exit code.
///
/// # Errors
/// When it prints no JSON.
pub fn status(node: &Node) -> Result<Value> {
    let answer = node.cli(&["status"])?;
    serde_json::from_str(answer.stdout.trim()).with_context(|| format!("{}{}", answer.stdout, answer.stderr))
}

/// The link with a peer, as `link list` shows it.
///
/// # Errors
/// When there is none.
pub fn link_with(node: &Node, peer: &str) -> Result<Value> {
    let list = node.cli(&["link", "list"])?.json()?;
    let links = list["links"].as_array().context("link list prints links")?;
    links.iter().find(|link| link["peer"] == peer).cloned().with_context(|| format!("no link with {peer}: {list}"))
}

/// Texts in a node's inbox.
///
/// # Errors
/// When the inbox cannot be read.
pub fn inbox(node: &Node) -> Result<Vec<String>> {
    let answer = node.cli(&["inbox", "--all"])?.json()?;
    let messages = answer["messages"].as_array().context("inbox prints messages")?;
    Ok(messages.iter().filter_map(|message| message["text"].as_str().map(str::to_owned)).collect())
}
