//! The JSON of the operator's routes. Each document carries its version `v`.

use serde::{Deserialize, Serialize};

use crate::attachment::Attachment;

/// The answer to `POST /send/{peer}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sent {
    /// Version of this document.
    pub v: u32,
    /// The message's id, in hexadecimal.
    pub id: String,
    /// Its position in this node's log of messages.
    pub sequence: u64,
    /// `delivered`: the peer has it durably. `queued`: this node has it durably and goes on trying. `refused`: the peer will not take it.
    pub state: String,
    /// The files that it names.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub attachments: Vec<Attachment>,
    /// The peer's code, if it refused.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub refused: Option<String>,
    /// If it is queued: a stable code for why it waits.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub waiting: Option<String>,
    /// The same for people.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub detail: Option<String>,
}

/// The body of `POST /inbox`, `POST /sent` and `POST /conversations/{peer}`; every field may be left out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct InboxQuery {
    /// Version of this document; 0 counts as the present one.
    pub v: u32,
    /// Only messages after this sequence: the `next` of the page before.
    pub after: u64,
    /// At most so many (up to 100).
    pub limit: Option<usize>,
    /// Only unread ones.
    pub unread: bool,
    /// Only those that arrived at or after this time (Unix milliseconds, this node's clock).
    pub since: u64,
    /// Only from this peer, or to it (did:key).
    pub peer: Option<String>,
}

/// One message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MessageView {
    /// Position in this node's log of messages.
    pub sequence: u64,
    /// `in` or `out`.
    pub direction: String,
    /// The message's id.
    pub id: String,
    /// The other node (did:key), by the id that it has today.
    pub peer: String,
    /// The id that it had with this message, if that was another.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub identity: Option<String>,
    /// When this node stored it.
    pub at: u64,
    /// When it was sent, by the sender's clock.
    pub sent_at: u64,
    /// Media type.
    pub content_type: String,
    /// The content, if it is text.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub text: Option<String>,
    /// The content in base64, if it is not.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub data: Option<String>,
    /// The files that it names: to be fetched of its sender by their ids.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub attachments: Vec<Attachment>,
    /// For a received one: `unread` or `read`; for a sent one: `queued`, `delivered`, `read` or `refused`.
    pub state: String,
    /// For a sent one: when the peer was known to have it, by this node's clock.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub delivered_at: Option<u64>,
    /// For a sent one: when the peer read it, by the peer's clock, if it says so.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub read_at: Option<u64>,
    /// For a sent one: the peer's code, if it refused.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub refused: Option<String>,
}

/// A page of messages.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Page {
    /// Version of this document.
    pub v: u32,
    /// In order of arrival.
    pub messages: Vec<MessageView>,
    /// Where the next page begins (`after`).
    pub next: u64,
    /// Whether there may be more.
    pub more: bool,
}

/// The body of `POST /read`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MarkRead {
    /// Version of this document.
    pub v: u32,
    /// Which received messages, at most 1,000.
    pub sequences: Vec<u64>,
}

/// The body of `POST /delete`: these messages, or all of a peer's if none is named. With both, only those that are its.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Delete {
    /// Version of this document; 0 counts as the present one.
    pub v: u32,
    /// Which received messages, at most 1,000.
    pub sequences: Vec<u64>,
    /// Of whom (did:key).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
}

/// The answer to `POST /delete`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deleted {
    /// Version of this document.
    pub v: u32,
    /// How many were there and are gone.
    pub deleted: u64,
}

/// The body of `POST /conversations`; every field may be left out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ConversationsQuery {
    /// Version of this document; 0 counts as the present one.
    pub v: u32,
    /// Only those after this peer (did:key): the `next` of the page before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
    /// At most so many (up to 1,000).
    pub limit: Option<usize>,
}

/// One conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// The other node (did:key).
    pub peer: String,
    /// Messages received from it.
    pub received: u64,
    /// Messages sent to it.
    pub sent: u64,
    /// Of those received, still here.
    pub kept: u64,
    /// What these count for, in bytes.
    pub kept_bytes: u64,
    /// Of those received, not yet read.
    pub unread: u64,
    /// Of those sent, not yet delivered.
    pub waiting: u64,
    /// When the last one was stored.
    pub last_at: u64,
}

/// A page of conversations.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peers {
    /// Version of this document.
    pub v: u32,
    /// In order of node ids.
    pub conversations: Vec<Summary>,
    /// Where the next page begins (`after`); absent when there is none.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub next: Option<String>,
    /// Whether there are more.
    pub more: bool,
}

/// A message that waits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueuedView {
    /// Position in this node's log of messages.
    pub sequence: u64,
    /// For whom (did:key).
    pub peer: String,
    /// A stable code for why it waits; absent when nothing was tried since the node started.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub waiting: Option<String>,
}
