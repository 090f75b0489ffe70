//! Bounds and times of the network layer, each beside its reason.

use std::time::Duration;

use crate::config::{AuditedPolicy, DirectPolicy};
pub use crate::handshake::cookie::LoadBounds;
use crate::session::SessionLimits;

/// What an operator or a test may set; the defaults are those of the shipped configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkSettings {
    /// Sessions held; of those that nobody uses the least recently used one makes room, and
    /// where all are in use, one of the peer that has most.
    pub sessions: usize,
    /// Of those, with one peer: one in use, one that takes over, and what measurements open beside them.
    pub sessions_per_peer: usize,
    /// A session that is not used for this long is dropped.
    pub session_idle: Duration,
    /// When a session ends and a new handshake is made.
    pub limits: SessionLimits,
    /// Connections of peers that are served at once.
    pub connections: usize,
    /// Of those, from one address.
    pub connections_per_address: usize,
    /// How long a TCP connection to a peer may take.
    pub connect_timeout: Duration,
    /// How long a handshake message's body may take to come in, and its answer to come back, the same bytes sent a second time
    /// after half of it.
    pub handshake_timeout: Duration,
    /// How long one chunk of a session's stream may take to come in, and a write may stand still.
    pub chunk_timeout: Duration,
    /// How long a caller waits for the head of an answer when it does not say.
    pub request_timeout: Duration,
    /// How long requests that are being served may take when the node stops.
    pub drain: Duration,
    /// Refusals that one address may cause in a burst before its connections are cut, and how many it regains a second.
    pub refusals: (u32, u32),
    /// When a sender of REQUESTs is asked to show where it is.
    pub load: LoadBounds,
    /// Whether both sides sign that a session was opened.
    pub audited: AuditedPolicy,
    /// Whether the built-in module answers `GET /source` (for measurements).
    pub throughput: bool,
    /// What is done with strangers who come without a link.
    pub direct: DirectPolicy,
}

impl Default for NetworkSettings {
    fn default() -> Self {
        Self {
            sessions: 100,
            sessions_per_peer: 32,
            session_idle: Duration::from_secs(300),
            limits: SessionLimits::default(),
            connections: 1024,
            connections_per_address: 256,
            connect_timeout: Duration::from_secs(5),
            handshake_timeout: Duration::from_secs(5),
            chunk_timeout: Duration::from_secs(30),
            request_timeout: Duration::from_secs(30),
            drain: Duration::from_secs(5),
            refusals: (256, 64),
            load: LoadBounds::default(),
            audited: AuditedPolicy::Off,
            throughput: false,
            direct: DirectPolicy::Off,
        }
    }
}

/// A session that another took over from is kept for this long after its last use: the peer's requests may be on their way.
pub(super) const SUPERSEDED_IDLE: Duration = Duration::from_secs(60);
/// After a background handshake that failed none is begun for this long, then twice as long, and so on.
pub(super) const RENEWAL_PAUSE: Duration = Duration::from_secs(1);
/// See [`RENEWAL_PAUSE`]: an eighth of an hour, in which a session of an hour is to be renewed, has room for several.
pub(super) const RENEWAL_PAUSE_MAX: Duration = Duration::from_secs(60);
/// Handshakes that this node runs at once with one peer; the peer holds no more of a link half-open (PROTOCOL 5).
pub(super) const HANDSHAKES_PER_PEER: usize = openred_proto::limits::HALF_OPEN_PER_LINK;
/// Times the time of a request that opening a session may take, with all of a peer's endpoints and all attempts: whoever waits for it gives
/// up sooner, and it must not wait for ever, since none other is begun meanwhile.
pub(super) const OPENING_WAITS: u32 = 4;
/// Fresh REQUESTs before a handshake is given up: those that overtake each other on parallel connections are refused as
/// out of order, which says nothing about the next one.
pub(super) const HANDSHAKE_ATTEMPTS: usize = 6;
/// An idle connection of a peer is closed after this long; also what a request's header may take.
pub(super) const SERVER_KEEP_ALIVE: Duration = Duration::from_secs(60);
/// What a connection's first request may take to begin: nobody has shown anything before it.
pub(super) const FIRST_REQUEST: Duration = Duration::from_secs(10);
/// Longest head of a request, and a connection's read buffer: our own heads take a few hundred bytes, chunks come in
/// pieces of any size.
pub(super) const HEAD_BUFFER: usize = 64 * 1024;
/// Most header fields of a request.
pub(super) const HEAD_FIELDS: usize = 32;
/// Our own idle connections are let go before the peer closes them under a request.
pub(super) const CLIENT_KEEP_ALIVE: Duration = Duration::from_secs(45);
/// How long a connection whose answer was just read may take until the next request can go out: the reader is told of the end by another
/// task, which has a few steps left.
pub(super) const COMES_TO_REST: Duration = Duration::from_millis(10);
/// Idle connections kept to one address.
pub(super) const IDLE_CONNECTIONS: usize = 64;
/// Open connections to peers in all: a quarter of what an ordinary limit of 1,024 descriptors leaves, twice.
pub(super) const CLIENT_CONNECTIONS: usize = 512;
/// Addresses whose refusals are counted; the table is emptied when full, which forgives everybody alike.
pub(super) const COUNTED_ADDRESSES: usize = 4096;
/// A module may take at most this long, whatever deadline the caller says.
pub(super) const DISPATCH_MAX: Duration = Duration::from_secs(600);
/// A body up to this size is held in memory, so that it can be sent again after the peer restarted.
pub(super) const REPEATABLE_BYTES: u64 = 64 * 1024;
