//! The daemon's end of the admin socket: one thread, blocking, one caller at a time. It shares with the API only what is
//! behind short locks; the database it reads through a connection of its own.

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use nix::sys::socket::{getsockopt, sockopt};
use openred_policy::LayerReport;
use openred_proto::config::Setting;
use openred_proto::id::{NodeId, UnixMillis};

use super::{Answer, Ask, Doctor, NodeLine, NodeList, Refusal, Status};
use crate::api::system::health_of;
use crate::error::{Error, Result};
use crate::limits::{ADMIN_TIME, BANS};
use crate::state::Directory;
use crate::store::sqlite::SqliteStore;
use crate::store::{Ban, CardReader as _, CardStore as _, Held, Query};

/// Longest request line: a did:key and a reason.
const ASK_BYTES: u64 = 4096;
/// Longest reason that is kept.
const REASON_BYTES: usize = 200;
/// Nodes on one page.
const LIST: usize = 1000;
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
    /// A connection of its own.
    pub store: SqliteStore,
    /// Filled once the cage is closed.
    pub cage: Arc<OnceLock<LayerReport>>,
    /// The settings that hold.
    pub settings: Vec<Setting>,
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
        let answer = if self.may_ask(&stream) {
            read_ask(&stream).and_then(|ask| self.answer(ask))
        } else {
            Err(Refusal::Denied)
        };
        let mut line = serde_json::to_vec(&answer.unwrap_or_else(Answer::Refused))?;
        line.push(b'\n');
        stream.write_all(&line)
    }

    /// The folder's permissions are the first check; this is the second. Inside a user namespace root reads as unmapped.
    fn may_ask(&self, stream: &UnixStream) -> bool {
        let Ok(peer) = getsockopt(stream, sockopt::PeerCredentials) else { return false };
        peer.uid() == self.operator || (self.operator != 0 && [0, UNMAPPED].contains(&peer.uid()))
    }

    fn answer(&mut self, ask: Ask) -> std::result::Result<Answer, Refusal> {
        match ask {
            Ask::Status => self.status(),
            Ask::Doctor => self.doctor(),
            Ask::Nodes { banned, sector, after, limit } => self.nodes(banned, sector, after.as_deref(), limit),
            Ask::Show { node } => self.show(&node),
            Ask::Ban { node, reason } => self.ban(&node, reason),
            Ask::Unban { node } => self.unban(&node),
        }
    }

    fn status(&mut self) -> std::result::Result<Answer, Refusal> {
        let directory = &self.directory;
        let now = directory.now();
        let counts = self.store.counts(now.minus(directory.lease)).map_err(log)?;
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
        })))
    }

    fn doctor(&mut self) -> std::result::Result<Answer, Refusal> {
        // The thread starts before the cage is closed; nobody is answered in between.
        let cage = self.cage.get().ok_or(Refusal::Malformed)?.clone();
        let health = health_of(&self.directory);
        let settings = self.settings.clone();
        Ok(Answer::Doctor(Box::new(Doctor { pid: std::process::id(), health, cage, settings })))
    }

    fn nodes(
        &mut self,
        banned: bool,
        sector: Option<String>,
        after: Option<&str>,
        limit: usize,
    ) -> std::result::Result<Answer, Refusal> {
        let bans = self.bans()?;
        let after = after.map(str::parse::<NodeId>).transpose().map_err(|_| Refusal::BadNode)?;
        let limit = limit.clamp(1, LIST);
        let now = self.directory.now();
        if banned {
            let mut ids: Vec<NodeId> =
                bans.keys().copied().filter(|id| after.is_none_or(|after| *id > after)).collect();
            ids.sort_unstable();
            let next = ids.get(limit - 1).filter(|_| ids.len() > limit).map(ToString::to_string);
            ids.truncate(limit);
            let line = |id: &NodeId| Ok(self.line(now, *id, self.held(id)?.as_ref(), bans.get(id)));
            let nodes = ids.iter().map(line).collect::<std::result::Result<_, Refusal>>()?;
            return Ok(Answer::Nodes(NodeList { nodes, next }));
        }
        let page = self.store.page(&Query { sector, after, limit, ..Query::default() }).map_err(log)?;
        let nodes = page.held.iter().map(|held| self.line(now, held.node, Some(held), bans.get(&held.node))).collect();
        Ok(Answer::Nodes(NodeList { nodes, next: page.next.map(|next| next.to_string()) }))
    }

    fn show(&mut self, node: &str) -> std::result::Result<Answer, Refusal> {
        let id: NodeId = node.parse().map_err(|_| Refusal::BadNode)?;
        let (held, bans) = (self.held(&id)?, self.bans()?);
        if held.is_none() && !bans.contains_key(&id) {
            return Err(Refusal::UnknownNode);
        }
        let line = self.line(self.directory.now(), id, held.as_ref(), bans.get(&id));
        Ok(Answer::Node(Box::new(line)))
    }

    /// A node can be banned before it ever comes.
    fn ban(&mut self, node: &str, mut reason: String) -> std::result::Result<Answer, Refusal> {
        let id: NodeId = node.parse().map_err(|_| Refusal::BadNode)?;
        if self.store.counts(UnixMillis(0)).map_err(log)?.bans >= BANS as u64 {
            return Err(Refusal::TooManyBans);
        }
        reason.retain(|character| !character.is_control());
        reason.truncate(reason.floor_char_boundary(REASON_BYTES));
        // Durable first: a ban that was confirmed outlives this process.
        let ban = Ban { node: id, at: self.directory.now(), reason };
        if !self.store.ban(&ban).map_err(log)? {
            return Err(Refusal::AlreadyBanned);
        }
        self.directory.ban(id);
        tracing::info!(node = %id.short(), "banned by the operator");
        Ok(Answer::Done { node: id.to_string(), done: "banned".into() })
    }

    fn unban(&mut self, node: &str) -> std::result::Result<Answer, Refusal> {
        let id: NodeId = node.parse().map_err(|_| Refusal::BadNode)?;
        if !self.store.unban(&id).map_err(log)? {
            return Err(Refusal::NotBanned);
        }
        self.directory.unban(&id);
        tracing::info!(node = %id.short(), "ban lifted by the operator");
        Ok(Answer::Done { node: id.to_string(), done: "unbanned".into() })
    }

    fn bans(&mut self) -> std::result::Result<HashMap<NodeId, String>, Refusal> {
        let bans = self.store.bans().map_err(log)?;
        Ok(bans.into_iter().map(|ban| (ban.node, ban.reason)).collect())
    }

    fn held(&self, id: &NodeId) -> std::result::Result<Option<Held>, Refusal> {
        self.store.read(id).map_err(log)
    }

    fn line(&self, now: UnixMillis, id: NodeId, held: Option<&Held>, ban: Option<&String>) -> NodeLine {
        let lease = self.directory.lease;
        let state = match held {
            _ if ban.is_some() => "banned",
            Some(held) if held.expires_at <= now => "ended",
            Some(held) if held.last_seen.plus(lease) < now => "away",
            Some(_) => "fresh",
            None => "unknown",
        };
        let seconds = |from: UnixMillis, to: UnixMillis| to.0.saturating_sub(from.0) / 1000;
        NodeLine {
            node: id.to_string(),
            state: state.to_owned(),
            listed: held.is_some_and(|held| held.listed),
            sector: held.map(|held| held.sector.clone()).unwrap_or_default(),
            sequence: held.map_or(0, |held| held.sequence),
            seen_seconds_ago: held.map(|held| seconds(held.last_seen, now)),
            known_for_seconds: held.map(|held| seconds(held.first_seen, now)),
            ends_in_seconds: held.map(|held| seconds(now, held.expires_at)),
            evidence: held.map_or(0, |held| held.evidence),
            ban_reason: ban.cloned(),
        }
    }
}

fn log(error: Error) -> Refusal {
    tracing::error!(%error, "an admin request failed");
    Refusal::Store
}

/// Reads one line within [`ADMIN_TIME`], however it trickles in.
fn read_ask(stream: &UnixStream) -> std::result::Result<Ask, Refusal> {
    let ends = Instant::now() + ADMIN_TIME;
    let mut line = Vec::new();
    let mut reader = BufReader::new(stream.take(ASK_BYTES));
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
