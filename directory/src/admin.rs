//! The operator's door: an AF_UNIX socket in a folder that only the operator can enter, served by a thread of its own with its
//! own database connection, so that it answers while the API is flooded. One JSON line asks, one answers, then it closes.
//!
//! This file holds the words both ends use; [`server`] is in the daemon, [`client`] in the commands.

pub mod client;
pub mod server;

use openred_policy::LayerReport;
use openred_proto::config::Setting;
use serde::{Deserialize, Serialize};

use crate::api::system::Health;
use crate::store::Counts;

/// What a command asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Ask {
    /// How is it.
    Status,
    /// The cage's layers, and the configuration that holds.
    Doctor,
    /// A page of nodes.
    Nodes {
        /// Only banned ones.
        banned: bool,
        /// Only this sector.
        sector: Option<String>,
        /// After this did:key.
        after: Option<String>,
        /// At most so many.
        limit: usize,
    },
    /// One node.
    Show {
        /// Its did:key.
        node: String,
    },
    /// Refuse a node from now on.
    Ban {
        /// Its did:key.
        node: String,
        /// For the operator's own memory.
        reason: String,
    },
    /// Lift a ban.
    Unban {
        /// Its did:key.
        node: String,
    },
}

/// What comes back.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// To `status`.
    Status(Box<Status>),
    /// To `doctor`.
    Doctor(Box<Doctor>),
    /// To `nodes list`.
    Nodes(NodeList),
    /// To `nodes show`.
    Node(Box<NodeLine>),
    /// To `nodes ban` and `unban`.
    Done {
        /// Which node.
        node: String,
        /// `banned` or `unbanned`.
        done: String,
    },
    /// It did not happen.
    Refused(Refusal),
}

/// The running directory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Process id.
    pub pid: u32,
    /// `did@url`: what nodes configure.
    pub address: String,
    /// Seconds since start.
    pub uptime_seconds: u64,
    /// As `/health` says.
    pub health: Health,
    /// Cards and bans.
    pub counts: Counts,
    /// Offers and receipts in memory.
    pub waiting: u64,
    /// Streams and long polls open.
    pub streams: u64,
    /// Connections open.
    pub connections: u64,
    /// Requests answered with 2xx, 4xx, 5xx.
    pub answers: [u64; 3],
}

/// What only the process itself knows about its cage.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Doctor {
    /// Process id.
    pub pid: u32,
    /// Health.
    pub health: Health,
    /// Its layers, as it applied them.
    pub cage: LayerReport,
    /// The settings it runs with.
    pub settings: Vec<Setting>,
}

/// A page of nodes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeList {
    /// In the order of their ids.
    pub nodes: Vec<NodeLine>,
    /// `--after` of the next page.
    pub next: Option<String>,
}

/// One node, as the operator sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeLine {
    /// Its did:key.
    pub node: String,
    /// `fresh`, `away` (over its lease), `ended` (card over) or `banned`; a banned node without a card is `banned` too.
    pub state: String,
    /// Whether discovery shows it.
    pub listed: bool,
    /// Its sector.
    pub sector: String,
    /// Sequence of its card.
    pub sequence: u64,
    /// Seconds since it was heard of.
    pub seen_seconds_ago: Option<u64>,
    /// Seconds since it first registered.
    pub known_for_seconds: Option<u64>,
    /// Seconds until its card ends.
    pub ends_in_seconds: Option<u64>,
    /// Conflicting cards kept.
    pub evidence: u64,
    /// Why it is banned.
    pub ban_reason: Option<String>,
}

/// Why something was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "kebab-case")]
pub enum Refusal {
    /// The line is not a request.
    #[error("the request cannot be read; are command and directory of the same version?")]
    Malformed,
    /// Not a did:key.
    #[error("not a node id; it looks like did:key:z6Mk…")]
    BadNode,
    /// Unknown node.
    #[error("no such node here; see `directory nodes list`")]
    UnknownNode,
    /// Banned before.
    #[error("this node is banned already")]
    AlreadyBanned,
    /// Not banned.
    #[error("this node is not banned")]
    NotBanned,
    /// Too many bans.
    #[error("100,000 nodes are banned; lift some first")]
    TooManyBans,
    /// The database failed; the log says how.
    #[error("the database failed; see the directory's log")]
    Store,
    /// Somebody else's connection.
    #[error("only the user who runs this directory may ask")]
    Denied,
}

impl Refusal {
    /// The exit code of docs/operations.md.
    #[must_use]
    pub const fn exit_code(self) -> u8 {
        match self {
            Refusal::BadNode => 2,
            Refusal::UnknownNode => 4,
            Refusal::Denied => 5,
            Refusal::AlreadyBanned | Refusal::NotBanned | Refusal::TooManyBans => 6,
            Refusal::Malformed | Refusal::Store => 1,
        }
    }
}
