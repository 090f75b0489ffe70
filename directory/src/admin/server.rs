//! The daemon's end of the admin socket: one thread, blocking, one caller at a time. It shares with the API only what is
//! behind short locks; the database it reads through a connection of its own, and changes by the one thread that writes, before
//! whatever waits there.

mod changes;
mod nodes;
mod portable;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::socket::{getsockopt, sockopt};
use openred_policy::LayerReport;
use openred_proto::config::Setting;
use openred_proto::id::{NodeId, UnixMillis};

use super::{Answer, Ask, Doctor, Refusal, Status};
use crate::api::system::health_of;
use crate::error::{Error, Result};
use crate::limits::{ADMIN_BYTES, ADMIN_TIME};
use crate::replicas::To;
use crate::replicas::message::Word;
use crate::state::Directory;
use crate::store::decision::{Author, Change};
use crate::store::{CardReader, Counts, Held};

/// What an ask comes to.
type Answered = std::result::Result<Answer, Refusal>;

/// Counting that takes no longer is done for each `status`.
const AT_ONCE: Duration = Duration::from_millis(10);
/// Counting that takes longer is done again after so many times as long: 20 s for a million cards.
const COUNTS_APART: u32 = 200;

/// What was counted last.
#[derive(Debug)]
pub struct Counted {
    counts: Counts,
    at: Instant,
    took: Duration,
}

/// The uid that ids outside a user namespace read as.
const UNMAPPED: u32 = 65_534;

/// What the thread works with.
pub struct Server {
    /// Bound in the operator's folder.
    pub listener: UnixListener,
    /// The user who started the directory.
    pub operator: u32,
    /// Shared with the API.
    pub directory: Arc<Directory>,
    /// A connection of its own, to read.
    pub store: Box<dyn CardReader + Send>,
    /// Nothing, at first.
    pub counted: Option<Counted>,
    /// Filled once the cage is closed.
    pub cage: Arc<OnceLock<LayerReport>>,
    /// The settings that hold.
    pub settings: Arc<Mutex<Vec<Setting>>>,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Server")
    }
}

impl Server {
    /// Starts the thread. It lives as long as the process.
    ///
    /// # Errors
    /// No thread could be started.
    pub fn start(mut self) -> Result<()> {
        let thread = std::thread::Builder::new().name("admin".into());
        let spawned = thread.spawn(move || {
            loop {
                match self.listener.accept() {
                    // A caller that went away needs no answer.
                    Ok((stream, _)) => drop(self.serve(stream)),
                    Err(_) => std::thread::sleep(Duration::from_millis(50)),
                }
            }
        });
        spawned.map(|_| ()).map_err(Error::LocalRuntime)
    }

    fn serve(&mut self, mut stream: UnixStream) -> std::io::Result<()> {
        stream.set_write_timeout(Some(ADMIN_TIME))?;
        let answer = self.caller(&stream).and_then(|uid| read_ask(&stream).and_then(|ask| self.answer(ask, uid)));
        let mut line = serde_json::to_vec(&answer.unwrap_or_else(Answer::Refused))?;
        line.push(b'\n');
        stream.write_all(&line)
    }

    /// Who asks. The folder's permissions are the first check; this is the second. Inside a user namespace root reads as unmapped.
    fn caller(&self, stream: &UnixStream) -> std::result::Result<u32, Refusal> {
        let uid = getsockopt(stream, sockopt::PeerCredentials).map_err(|_| Refusal::Denied)?.uid();
        let may = uid == self.operator || (self.operator != 0 && [0, UNMAPPED].contains(&uid));
        if may { Ok(uid) } else { Err(Refusal::Denied) }
    }

    fn answer(&mut self, ask: Ask, uid: u32) -> Answered {
        let author = Author { uid, at: self.directory.now() };
        let is_upstreams = matches!(
            ask,
            Ask::Approve { .. }
                | Ask::Remove { .. }
                | Ask::Invite { .. }
                | Ask::ImportBegins { .. }
                | Ask::Import { .. }
        );
        if is_upstreams && self.directory.upstream.is_some() {
            return Err(Refusal::Mirror);
        }
        match ask {
            Ask::Status => self.status(),
            Ask::Doctor => self.doctor(),
            Ask::Nodes { state, listed, sector, after, limit } => {
                self.nodes(state, listed, sector, after.as_deref(), limit)
            }
            Ask::Show { node } => self.show(&node),
            Ask::Ban { who, reason } => self.ban(author, &who, reason),
            Ask::Unban { who } => self.unban(author, &who),
            Ask::Bans => self.bans(),
            Ask::Approve { node } => self.approve(author, &node),
            Ask::Remove { node } => self.remove(author, &node),
            Ask::Invite { uses, life_seconds, note } => self.invite(author, uses, life_seconds, note),
            Ask::Invites => self.invites(),
            Ask::Revoke { invite } => self.revoke(author, &invite),
            Ask::History { before, limit } => self.history(before, limit),
            Ask::Stats => self.stats(),
            Ask::Export { after } => self.export(after.as_ref()),
            Ask::ImportBegins { records } => self.import_begins(author, records),
            Ask::Import { records } => self.import(records),
        }
    }

    /// Makes a change durable, with its line in the history; false when there was nothing to change.
    fn change(&self, author: Author, change: Change) -> std::result::Result<bool, Refusal> {
        let (action, target, _) = change.words();
        let changed = self.directory.store.urgently(move |store| store.change(&author, &change)).map_err(log)?;
        if changed {
            tracing::info!(uid = author.uid, action, target, "changed by the operator");
            if let Some(replicas) = self.directory.replicas() {
                // Where it is not heard, they look by themselves.
                let _ = replicas.say(To::All, Word::Changed);
            }
        }
        Ok(changed)
    }

    fn status(&mut self) -> Answered {
        let directory = &self.directory;
        let now = directory.now();
        let counts = counts(&mut self.counted, self.store.as_mut(), now.minus(directory.lease))?;
        Ok(Answer::Status(Box::new(Status {
            pid: std::process::id(),
            address: directory.address(),
            uptime_seconds: now.0.saturating_sub(directory.started.0) / 1000,
            health: health_of(directory),
            counts,
            waiting: directory.mailboxes().len() as u64,
            streams: directory.metrics.streams_open.get(),
            connections: directory.metrics.connections_open.get(),
            answers: [2, 4, 5].map(|class| directory.metrics.answers(class)),
            replicas: directory.replicas().map(|replicas| replicas.view()),
        })))
    }

    fn doctor(&mut self) -> Answered {
        // The thread starts before the cage is closed; nobody is answered in between.
        let cage = self.cage.get().ok_or(Refusal::Malformed)?.clone();
        let health = health_of(&self.directory);
        let settings = self.settings.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Ok(Answer::Doctor(Box::new(Doctor { pid: std::process::id(), health, cage, settings })))
    }

    fn held(&mut self, id: &NodeId) -> std::result::Result<Option<Held>, Refusal> {
        self.store.node(id).map_err(log)
    }

    fn stats(&mut self) -> Answered {
        let (now, lease) = (self.directory.now(), self.directory.lease);
        let stats = self.store.stats(now, now.minus(lease)).map_err(log)?;
        Ok(Answer::Stats(Box::new(stats)))
    }
}

/// What `status` counts. A million cards take a tenth of a second: then the last count serves until counting is a small part of the time,
/// so that who asks often is answered at once.
fn counts(
    counted: &mut Option<Counted>,
    store: &mut dyn CardReader,
    seen_since: UnixMillis,
) -> std::result::Result<Counts, Refusal> {
    if let Some(last) = counted
        && last.took > AT_ONCE
        && last.at.elapsed() < last.took * COUNTS_APART
    {
        return Ok(last.counts);
    }
    let at = Instant::now();
    let counts = store.counts(seen_since).map_err(log)?;
    *counted = Some(Counted { counts, at, took: at.elapsed() });
    Ok(counts)
}

/// A did:key.
fn node_id(text: &str) -> std::result::Result<NodeId, Refusal> {
    text.parse().map_err(|_| Refusal::BadNode)
}

fn log(error: Error) -> Refusal {
    tracing::error!(%error, "an admin request failed");
    Refusal::Store
}

/// Reads one line within [`ADMIN_TIME`], however it trickles in.
fn read_ask(stream: &UnixStream) -> std::result::Result<Ask, Refusal> {
    let ends = Instant::now() + ADMIN_TIME;
    let mut line = Vec::new();
    let mut reader = BufReader::new(stream.take(ADMIN_BYTES as u64));
    while !line.ends_with(b"\n") {
        let left = ends.saturating_duration_since(Instant::now());
        if left.is_zero() || stream.set_read_timeout(Some(left)).is_err() {
            return Err(Refusal::Malformed);
        }
        let here = reader.fill_buf().map_err(|_| Refusal::Malformed)?;
        let taken = here.iter().position(|byte| *byte == b'\n').map_or(here.len(), |end| end + 1);
        if taken == 0 {
            return Err(Refusal::Malformed);
        }
        line.extend_from_slice(&here[..taken]);
        reader.consume(taken);
    }
    serde_json::from_slice(&line).map_err(|_| Refusal::Malformed)
}
