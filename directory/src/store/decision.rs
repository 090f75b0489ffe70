//! What an operator decides: bans, invites, approvals, removals. They are state, not settings (docs/directory.md); each change is
//! written down with who made it, in the same transaction. Plain values; [`super::CardStore`] keeps them.

use ipnet::IpNet;
use openred_proto::id::{NodeId, UnixMillis};
use serde::{Deserialize, Serialize};

/// A ban of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ban<Who = NodeId> {
    /// Who.
    pub who: Who,
    /// Since when.
    pub at: UnixMillis,
    /// The operator's reason; shown to operators alone.
    pub reason: String,
}

/// All bans.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bans {
    /// Of nodes, in the order of their ids.
    pub nodes: Vec<Ban>,
    /// Of address prefixes.
    pub prefixes: Vec<Ban<IpNet>>,
}

/// An invite as it is kept: without its secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InviteLine {
    /// Hash of its secret.
    #[serde(with = "hex_digits")]
    pub hash: [u8; 32],
    /// Nodes that may come by it.
    pub uses: u32,
    /// Nodes that have.
    pub used: u32,
    /// When it was made, Unix milliseconds.
    pub made_at: u64,
    /// Good until then, Unix milliseconds.
    pub not_after: u64,
    /// Revoked by an operator.
    pub revoked: bool,
    /// For the operator's own memory.
    pub note: String,
}

/// A hash as hex digits.
mod hex_digits {
    use serde::de::Error as _;
    use serde::{Deserialize as _, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(hash: &[u8; 32], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&hex::encode(hash))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<[u8; 32], D::Error> {
        let mut hash = [0; 32];
        let text = String::deserialize(deserializer)?;
        hex::decode_to_slice(text, &mut hash).map_err(|_| D::Error::custom("not 64 hex digits"))?;
        Ok(hash)
    }
}

impl InviteLine {
    /// What it is called in commands: the first eight bytes of its hash.
    #[must_use]
    pub fn name(&self) -> String {
        hex::encode(&self.hash[..8])
    }

    /// `open`, `spent`, `ended` or `revoked`.
    #[must_use]
    pub const fn state(&self, now: UnixMillis) -> &'static str {
        match self {
            Self { revoked: true, .. } => "revoked",
            Self { used, uses, .. } if *used >= *uses => "spent",
            Self { not_after, .. } if *not_after <= now.0 => "ended",
            _ => "open",
        }
    }
}

/// A change that an operator makes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Refuse a node from now on.
    Ban(NodeId, String),
    /// Lift that.
    Unban(NodeId),
    /// Refuse whoever calls from these addresses.
    BanPrefix(IpNet, String),
    /// Lift that.
    UnbanPrefix(IpNet),
    /// Let a node in, or out of quarantine; it need not have come yet.
    Approve(NodeId),
    /// Drop a node's card, and the approval or invite that let it in. Its sequence stays, so that no older card comes back.
    Remove(NodeId),
    /// Hand out an invite.
    Invite(InviteLine),
    /// Take an invite back, by its hash. Nodes that came by it stay.
    Revoke([u8; 32]),
    /// Records were taken over, and so many.
    Import(u64),
}

impl Change {
    /// What it is called in the history; whom or what it is about; a remark.
    #[must_use]
    pub fn words(&self) -> (&'static str, String, String) {
        match self {
            Self::Ban(node, reason) => ("ban", node.to_string(), reason.clone()),
            Self::Unban(node) => ("unban", node.to_string(), String::new()),
            Self::BanPrefix(prefix, reason) => ("ban", prefix.to_string(), reason.clone()),
            Self::UnbanPrefix(prefix) => ("unban", prefix.to_string(), String::new()),
            Self::Approve(node) => ("approve", node.to_string(), String::new()),
            Self::Remove(node) => ("remove", node.to_string(), String::new()),
            Self::Invite(invite) => ("invite", invite.name(), invite.note.clone()),
            Self::Revoke(hash) => ("revoke", hex::encode(&hash[..8]), String::new()),
            Self::Import(records) => ("import", format!("{records} records"), String::new()),
        }
    }
}

/// Who makes a change, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Author {
    /// The user at the other end of the admin socket.
    pub uid: u32,
    /// The directory's time.
    pub at: UnixMillis,
}

/// One change as it was written down.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Grows by one from change to change.
    pub number: u64,
    /// When, Unix milliseconds.
    pub at: u64,
    /// Who.
    pub uid: u32,
    /// What.
    pub action: String,
    /// About whom or what.
    pub target: String,
    /// The operator's remark.
    pub remark: String,
}

/// One record that can be taken to another directory, in the order in which they are handed out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Kept {
    /// A ban of a node.
    Ban {
        /// Its did:key.
        node: String,
        /// Since when, Unix milliseconds.
        at: u64,
        /// Why.
        reason: String,
    },
    /// A ban of addresses.
    BanPrefix {
        /// The prefix.
        prefix: IpNet,
        /// Since when, Unix milliseconds.
        at: u64,
        /// Why.
        reason: String,
    },
    /// An invite, without its secret: who has it can go on using it.
    Invite(InviteLine),
    /// A node that was let in by its operator or an invite.
    Admitted {
        /// Its did:key.
        node: String,
        /// Since when, Unix milliseconds.
        at: u64,
    },
    /// A node with its signed card. Comes last.
    Card {
        /// Its did:key.
        node: String,
        /// The signed card, standard base64.
        card: String,
        /// Last registration, Unix milliseconds.
        last_seen: u64,
        /// Whether it waits for approval.
        quarantined: bool,
    },
}
