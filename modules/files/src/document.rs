//! The JSON of this module: rows, answers, progress. Each document carries its version `v`.

use openred_module::NodeId;
use serde::{Deserialize, Serialize};

use crate::error::FilesError;
use crate::tree::FileId;

/// Version of all documents here.
pub(crate) const VERSION: u32 = 1;
/// Most peers that one file is shared with by name.
pub(crate) const AUDIENCE_LIMIT: usize = 1000;

/// Who may fetch a share.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Audience {
    /// Every linked peer.
    #[serde(default)]
    pub all: bool,
    /// These peers (did:key), at most 1,000.
    #[serde(default)]
    pub peers: Vec<String>,
}

impl Audience {
    /// `all`, `none`, or one peer.
    pub(crate) fn parse(text: &str) -> Result<Self, FilesError> {
        match text {
            "all" => Ok(Self { all: true, peers: Vec::new() }),
            "none" => Ok(Self::default()),
            peer => Self { all: false, peers: vec![peer.to_owned()] }.checked(),
        }
    }

    /// With each peer in its one spelling, once.
    pub(crate) fn checked(mut self) -> Result<Self, FilesError> {
        if self.peers.len() > AUDIENCE_LIMIT {
            return Err(FilesError::TooManyReaders);
        }
        for peer in &mut self.peers {
            *peer = peer.parse::<NodeId>().map_err(|_| FilesError::BadAudience)?.to_string();
        }
        self.peers.sort();
        self.peers.dedup();
        Ok(self)
    }

    pub(crate) fn admits(&self, peer: NodeId) -> bool {
        self.all || self.peers.binary_search(&peer.to_string()).is_ok()
    }

    /// Both together: sharing a file again never takes it from anyone.
    pub(crate) fn joined(mut self, other: Self) -> Result<Self, FilesError> {
        self.all |= other.all;
        self.peers.extend(other.peers);
        self.peers.sort();
        self.peers.dedup();
        self.checked()
    }
}

/// A shared file, as it rests and as the operator sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShareView {
    /// Version of this document.
    pub v: u32,
    /// BLAKE3 of the content.
    pub id: FileId,
    /// For people.
    pub name: String,
    /// In bytes.
    pub length: u64,
    /// When it was shared (Unix milliseconds).
    pub shared_at: u64,
    /// Who may fetch it.
    pub audience: Audience,
}

/// The answer to `GET /shares`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shares {
    /// Version of this document.
    pub v: u32,
    /// In order of ids.
    pub shares: Vec<ShareView>,
    /// Whether there are more than fit.
    pub more: bool,
}

/// What a module of this node is told of a share that it has let a peer fetch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attached {
    /// Version of this document.
    pub v: u32,
    /// BLAKE3 of the content.
    pub id: FileId,
    /// For people.
    pub name: String,
    /// In bytes.
    pub length: u64,
}

/// A file that a peer shares with this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// BLAKE3 of the content.
    pub id: FileId,
    /// For people, as the peer names it.
    pub name: String,
    /// In bytes.
    pub length: u64,
}

/// The answer to `GET /offers/{after}` and `GET /offered/{peer}/{after}`: one page.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offers {
    /// Version of this document.
    pub v: u32,
    /// In order of ids. May be empty although pages follow: what the caller may not have is left out.
    pub files: Vec<Offer>,
    /// Where the next page begins; none after the last one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub next: Option<String>,
}

/// What a peer is told of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    /// Version of this document.
    pub v: u32,
    /// BLAKE3 of the content.
    pub id: FileId,
    /// For people.
    pub name: String,
    /// In bytes.
    pub length: u64,
    /// Bytes in a piece.
    pub piece: u64,
}

/// A transfer, as it rests and as the operator sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransferView {
    /// Version of this document.
    pub v: u32,
    /// BLAKE3 of the content.
    pub id: FileId,
    /// From whom (did:key); the last one asked.
    pub peer: String,
    /// For people, as the peer named it.
    pub name: String,
    /// In bytes.
    pub length: u64,
    /// When it was begun (Unix milliseconds).
    pub begun_at: u64,
    /// When it was completed; absent until then.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub completed_at: Option<u64>,
    /// Code of the last failure; absent while all is well.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub failed: Option<String>,
}

/// The answer to `GET /transfers`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transfers {
    /// Version of this document.
    pub v: u32,
    /// In order of ids.
    pub transfers: Vec<TransferView>,
    /// Whether there are more than fit.
    pub more: bool,
}

/// One line of the answer to `POST /fetch/{peer}/{id}`. The last one is `done` or `failed`; an answer that ends without
/// either was cut short.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum Progress {
    /// The file is known and what was there before is verified.
    Begun {
        /// Version of this document.
        v: u32,
        /// BLAKE3 of the content.
        id: FileId,
        /// For people, as the peer names it.
        name: String,
        /// In bytes.
        length: u64,
        /// Bytes that are here already, verified.
        present: u64,
    },
    /// More has been verified.
    Verified {
        /// Bytes here and verified, those of earlier runs included.
        present: u64,
        /// Bytes that this run received of the file's content.
        received: u64,
    },
    /// All of it is here and durable.
    Done {
        /// In bytes.
        length: u64,
        /// Bytes that this run has seen to have their hash: all of them, if all is well.
        verified: u64,
        /// Bytes that this run received of the file's content.
        received: u64,
    },
    /// It ended here. What was verified stays, and the next run goes on with it.
    Failed {
        /// Stable name, as in a problem document.
        code: String,
        /// For people.
        detail: String,
        /// Bytes that this run received of the file's content.
        received: u64,
    },
}
