//! Node to node: the HTTP carrier of handshakes and sessions, both ends, and the pool of open sessions.
//!
//! In: bytes of peers (`server` → `answer`, `receive`) and requests of this node's modules (`send`). Out: decoded requests to
//! the module host, answers to both. It holds session secrets and nothing that outlives them; every decision about keys is
//! the key process's, every decision about links the link store's (`ports`).

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use axum::body::Body;
use axum::response::Response;
use http::StatusCode;
use openred_proto::checked::session::Side;
use openred_proto::id::{LinkId, NodeId, UnixMillis};
use openred_proto::method::Method;
use tokio::sync::{Notify, Semaphore};

use crate::handshake::attempts::Attempts;
use crate::handshake::cookie::CookieJar;
use crate::handshake::direct::DirectTable;
use crate::handshake::responder::Responder;
use crate::keys::HandshakeKeys;

mod answer;
mod attention;
mod audited;
mod carrier;
mod connections;
pub(crate) mod direct;
mod error;
mod guard;
mod internal;
mod open;
mod ping;
mod pool;
pub mod ports;
mod receive;
mod renew;
mod resume;
mod send;
mod server;
mod settings;
mod stall;

#[cfg(test)]
mod tests;

pub use error::NetworkError;
pub(crate) use internal::MODULE;
pub use ping::{PingOutcome, PingPlan};
pub use settings::{LoadBounds, NetworkSettings};

pub use crate::session::{SessionError, SessionLimits};

use attention::Attention;
use connections::Connections;
use direct::contacts::Contacts;
use guard::Guard;
use pool::Pool;
use ports::{LinkHandle, Ports};

/// Where REQUEST and FINALIZE are posted.
const HANDSHAKE_PATH: &str = "/p2p/handshake";
/// Where requests of a session are posted.
const SESSION_PATH: &str = "/p2p/session";

/// All of the node's dealings with peers. One per process, used behind an [`Arc`].
pub struct PeerNetwork {
    me: NodeId,
    settings: NetworkSettings,
    keys: Arc<dyn HandshakeKeys>,
    ports: Ports,
    pool: Arc<Pool>,
    connections: Arc<Connections>,
    guard: Arc<Guard>,
    responder: Mutex<Responder>,
    attempts: Mutex<Attempts>,
    /// What peers under load have asked this node to show.
    cookies: Mutex<CookieJar>,
    attention: Attention,
    /// The key process has looked at a REQUEST or a FINALIZE: who sent the same bytes meanwhile waits for it.
    settled: Notify,
    /// Half-open handshakes of strangers, and what came of them.
    direct: Mutex<DirectTable>,
    contacts: Contacts,
    turns: Mutex<HashMap<NodeId, Arc<Turn>>>,
    /// Links whose tokens this process has seen compared, by both sides, on a session that it opened. Tokens never change: once is
    /// enough. At most one entry a link that is expected.
    validated: Mutex<HashSet<LinkId>>,
}

/// What orders this node's handshakes with one peer.
#[derive(Debug)]
struct Turn {
    /// How many run at once.
    running: Semaphore,
    /// Held while a REQUEST is made, until `sending` is held too: what is made next has a later timestamp and is sent later.
    making: tokio::sync::Mutex<()>,
    /// Held until a REQUEST is answered: the peer takes a link's REQUESTs in the order of their timestamps, and on
    /// connections of their own they would overtake each other.
    sending: tokio::sync::Mutex<()>,
}

impl Turn {
    fn new() -> Self {
        Self {
            running: Semaphore::new(settings::HANDSHAKES_PER_PEER),
            making: tokio::sync::Mutex::default(),
            sending: tokio::sync::Mutex::default(),
        }
    }
}

/// An open session as `openred status` and `openred link show` tell it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionStatus {
    /// The proven peer.
    pub peer: NodeId,
    /// The link it runs over.
    pub link: LinkId,
    /// The link's method.
    pub method: Method,
    /// Whether this node was the initiator.
    pub initiator: bool,
    /// Whole seconds since it was opened.
    pub age_seconds: u64,
    /// Requests that this node began.
    pub requests: u64,
    /// Bytes both ways.
    pub bytes: u64,
    /// Equal on both sides.
    pub mutual_link: [u8; 16],
    /// The result of the cross-validation, once known.
    pub matched: Option<bool>,
}

impl PeerNetwork {
    /// The network layer of node `me`. Serves nobody before [`PeerNetwork::serve`], and expects REQUESTs over no link before
    /// [`PeerNetwork::link_added`].
    pub fn new(settings: NetworkSettings, me: NodeId, keys: Arc<dyn HandshakeKeys>, ports: Ports) -> Arc<Self> {
        Arc::new(Self {
            me,
            pool: Pool::new(&settings),
            connections: Connections::new(settings.connect_timeout, settings.chunk_timeout),
            guard: Guard::new(settings.connections, settings.connections_per_address, settings.refusals),
            responder: Mutex::new(Responder::new(me, settings.load)),
            attempts: Mutex::default(),
            cookies: Mutex::default(),
            attention: Attention::default(),
            settled: Notify::new(),
            direct: Mutex::default(),
            contacts: Contacts::default(),
            turns: Mutex::default(),
            validated: Mutex::default(),
            settings,
            keys,
            ports,
        })
    }

    /// Expects REQUESTs over `link` from now on, or takes over what changed in it. To be called for each live link at start,
    /// and for each that becomes usable: by the issuer when it has been offered, by the acceptor when it has been accepted.
    pub fn link_added(&self, link: Arc<LinkHandle>) {
        let id = link.link;
        // Held until it is counted, too: an end of the link comes after both.
        let mut responder = self.responder();
        if responder.tags.insert(link) {
            self.attempts().expect(id);
        } else {
            tracing::error!("more links than the key process holds: one is not expected");
        }
    }

    /// Ends contacts without a link with `peer`: there is one now, and it proves more.
    pub(crate) fn end_contacts(&self, peer: &NodeId) {
        self.contacts.remove_peer(peer);
    }

    /// Expects nothing over `link` any more and ends its sessions.
    pub fn link_removed(&self, link: &LinkId) {
        self.responder().forget(link);
        self.settled.notify_waiters();
        self.attempts().forget(link);
        self.validated().remove(link);
        self.pool.remove_link(link);
    }

    /// Whether a session with `peer` is open.
    pub fn has_session(&self, peer: &NodeId) -> bool {
        self.pool.all().iter().any(|pooled| pooled.session.peer == *peer)
    }

    /// All open sessions.
    pub fn sessions(&self) -> Vec<SessionStatus> {
        let now = Instant::now();
        self.pool.all().iter().map(|pooled| status(pooled, now)).collect()
    }

    /// Takes an open session into use unless its link ended while the handshake ran. The responder's lock is held meanwhile:
    /// [`PeerNetwork::link_removed`] comes either before, and the link is not expected, or after, and finds the session.
    fn adopt_session(&self, pooled: &Arc<pool::Pooled>, now: Instant) -> Result<(), NotAdopted> {
        let responder = self.responder();
        if !responder.tags.expects(&pooled.handle.link) {
            return Err(NotAdopted::LinkEnded);
        }
        self.pool.insert(pooled, now).map_err(|_| NotAdopted::PoolFull)
    }

    fn responder(&self) -> MutexGuard<'_, Responder> {
        self.responder.lock().expect("nothing panics while it holds the responder")
    }

    fn validated(&self) -> MutexGuard<'_, HashSet<LinkId>> {
        self.validated.lock().expect("nothing panics while it holds the validated links")
    }

    fn cookies(&self) -> MutexGuard<'_, CookieJar> {
        self.cookies.lock().expect("nothing panics while it holds the cookies")
    }

    fn direct(&self) -> MutexGuard<'_, DirectTable> {
        self.direct.lock().expect("nothing panics while it holds the strangers")
    }

    fn attempts(&self) -> MutexGuard<'_, Attempts> {
        self.attempts.lock().expect("nothing panics while it holds the attempts")
    }
}

impl std::fmt::Debug for PeerNetwork {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PeerNetwork({:?})", self.me)
    }
}

fn status(pooled: &pool::Pooled, now: Instant) -> SessionStatus {
    let session = &pooled.session;
    let (requests, bytes) = session.used();
    SessionStatus {
        peer: session.peer,
        link: pooled.handle.link,
        method: session.method,
        initiator: session.side == Side::Initiator,
        age_seconds: now.saturating_duration_since(session.opened_at()).as_secs(),
        requests,
        bytes,
        mutual_link: session.mutual_link,
        matched: pooled.matched(),
    }
}

/// Why an open session is not taken into use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum NotAdopted {
    LinkEnded,
    PoolFull,
}

/// Marks a refusal for the connection's own accounting; never sent.
#[derive(Clone, Copy, Debug)]
struct Refused;

/// The one refusal: whatever the reason, these bytes (PROTOCOL 5).
fn refused() -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::FORBIDDEN;
    response.extensions_mut().insert(Refused);
    response
}

/// The wall clock, for records; no protocol decision rests on it here.
fn unix_now() -> UnixMillis {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    UnixMillis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
