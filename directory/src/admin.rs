//! The operator's door: an AF_UNIX socket in a folder that only the operator can enter, served by a thread of its own with its
//! own database connection, so that it answers while the API is flooded. One JSON line asks, one answers, then it closes.
//!
//! This file holds the words both ends use; [`server`] is in the daemon, [`client`] in the commands. What an operator changes is
//! written down with the user id of the socket's other end.

pub mod client;
pub mod server;

use openred_policy::LayerReport;
use openred_proto::config::Setting;
use serde::{Deserialize, Serialize};

use crate::api::system::Health;
use crate::store::decision::{Entry, InviteLine, Kept};
use crate::store::{Counts, Stats};

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
        /// Only those in this state.
        state: Option<State>,
        /// Only those that chose to be listed.
        listed: bool,
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
    /// Refuse a node, or whoever calls from these addresses, from now on.
    Ban {
        /// A did:key, an address, or a prefix.
        who: String,
        /// For operators' own memory.
        reason: String,
    },
    /// Lift a ban.
    Unban {
        /// What was banned.
        who: String,
    },
    /// All bans.
    Bans,
    /// Let a node in, or out of quarantine.
    Approve {
        /// Its did:key.
        node: String,
    },
    /// Drop a node's card.
    Remove {
        /// Its did:key.
        node: String,
    },
    /// Make an invite.
    Invite {
        /// Nodes that may come by it.
        uses: u32,
        /// Good for so long.
        life_seconds: u64,
        /// For operators' own memory.
        note: String,
    },
    /// All invites.
    Invites,
    /// Take an invite back.
    Revoke {
        /// Its name, or a beginning that only one has.
        invite: String,
    },
    /// What operators changed, the newest first.
    History {
        /// Before this number.
        before: Option<u64>,
        /// At most so many.
        limit: usize,
    },
    /// Figures.
    Stats,
    /// The next piece of everything that can be taken elsewhere.
    Export {
        /// The last record of the piece before.
        after: Option<Kept>,
    },
    /// Records will be taken over: so many.
    ImportBegins {
        /// How many.
        records: u64,
    },
    /// Take these records over.
    Import {
        /// At most 64.
        records: Vec<Kept>,
    },
}

/// States that nodes are listed by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Heard of within its lease.
    Fresh,
    /// Not heard of within its lease.
    Away,
    /// Waits for approval.
    Quarantined,
    /// Banned.
    Banned,
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
    /// To what changes one thing.
    Done {
        /// Which node, prefix or invite.
        what: String,
        /// `banned`, `unbanned`, `approved`, `removed`, `revoked`, `begun`.
        done: String,
    },
    /// To `nodes bans`.
    Bans(BanList),
    /// To `invite create`: the only time that its text is shown.
    Invited {
        /// What a node's operator configures.
        invite: String,
        /// How it is kept.
        line: InviteView,
    },
    /// To `invite list`.
    Invites(InviteList),
    /// To `history`.
    History(History),
    /// To `stats`.
    Stats(Box<Stats>),
    /// To `export`; empty after the last.
    Exported {
        /// The records.
        records: Vec<Kept>,
    },
    /// To `import`.
    Imported(Imported),
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
    /// The other replicas, where there are to be some.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replicas: Option<crate::replicas::View>,
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
    /// `fresh`, `away` (over its lease), `ended` (card over), `quarantined` or `banned`; a banned node without a card is
    /// `banned` too.
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

/// All bans.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BanList {
    /// Prefixes first, then nodes.
    pub bans: Vec<BanLine>,
}

/// One ban.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BanLine {
    /// A did:key or a prefix.
    pub who: String,
    /// Since so many seconds.
    pub for_seconds: u64,
    /// Why.
    pub reason: String,
}

/// All invites.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InviteList {
    /// The oldest first.
    pub invites: Vec<InviteView>,
}

/// One invite, as the operator sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InviteView {
    /// Its name in commands.
    pub name: String,
    /// `open`, `spent`, `ended` or `revoked`.
    pub state: String,
    /// Nodes that may come by it.
    pub uses: u32,
    /// Nodes that have.
    pub used: u32,
    /// Seconds until it ends.
    pub ends_in_seconds: u64,
    /// For operators' own memory.
    pub note: String,
}

impl InviteView {
    /// At this time.
    #[must_use]
    pub fn new(invite: &InviteLine, now: openred_proto::id::UnixMillis) -> Self {
        Self {
            name: invite.name(),
            state: invite.state(now).to_owned(),
            uses: invite.uses,
            used: invite.used,
            ends_in_seconds: invite.not_after.saturating_sub(now.0) / 1000,
            note: invite.note.clone(),
        }
    }
}

/// A page of the history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    /// The newest first.
    pub entries: Vec<Entry>,
    /// `--before` of the next page.
    pub next: Option<u64>,
}

/// What became of records.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Imported {
    /// New here.
    pub taken: u64,
    /// Here before, or a newer card is.
    pub known: u64,
    /// Cards that have ended.
    pub ended: u64,
    /// Refused: the place among those that were sent, and why.
    pub refused: Vec<(u64, String)>,
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
    /// Neither a did:key nor addresses.
    #[error("neither a node id (did:key:z6Mk…) nor an address nor a prefix (192.0.2.0/24, 2001:db8::/32)")]
    BadTarget,
    /// A prefix that covers too much.
    #[error("this prefix covers a large part of the internet; name a longer one (/8 or more, for IPv6 /16 or more)")]
    PrefixTooShort,
    /// Approved before.
    #[error("this node is in already")]
    AlreadyIn,
    /// No such invite, or several begin like that.
    #[error("no invite has this name, or several begin like that; see `directory invite list`")]
    UnknownInvite,
    /// Revoked before.
    #[error("this invite is revoked already")]
    AlreadyRevoked,
    /// Uses or life.
    #[error("an invite is for 1 to 100,000 nodes and at most 366 days")]
    BadInvite,
    /// Too many invites.
    #[error("10,000 invites are kept; they go 30 days after their end")]
    TooManyInvites,
    /// Unknown node.
    #[error("no such node here; see `directory nodes list`")]
    UnknownNode,
    /// Banned before.
    #[error("banned already")]
    AlreadyBanned,
    /// Not banned.
    #[error("not banned; see `directory nodes bans`")]
    NotBanned,
    /// Too many bans.
    #[error("as many are banned as can be (100,000 nodes, 10,000 prefixes); lift some first")]
    TooManyBans,
    /// The database failed; the log says how.
    #[error("the database failed; see the directory's log")]
    Store,
    /// A mirror's cards are its upstream's.
    #[error("this is a mirror: ask the operator of the directory that it mirrors; bans can be set here as well")]
    Mirror,
    /// Somebody else's connection.
    #[error("only the user who runs this directory may ask")]
    Denied,
}

impl Refusal {
    /// The exit code of docs/operations.md.
    #[must_use]
    pub const fn exit_code(self) -> u8 {
        match self {
            Refusal::BadNode | Refusal::BadTarget | Refusal::PrefixTooShort | Refusal::BadInvite => 2,
            Refusal::UnknownNode | Refusal::UnknownInvite => 4,
            Refusal::Denied => 5,
            Refusal::AlreadyBanned | Refusal::NotBanned | Refusal::TooManyBans => 6,
            Refusal::Mirror => 6,
            Refusal::AlreadyIn | Refusal::AlreadyRevoked | Refusal::TooManyInvites => 6,
            Refusal::Malformed | Refusal::Store => 1,
        }
    }
}
