//! Answers of peers that go into a blob. The module says where to, how long the body must be and what its BLAKE3 hash is; its node writes the bytes
//! while it hashes them, and says whether they were what the module named. None of them passes the module, which decides as before what counts.

#[cfg(any(feature = "remote", feature = "test-host"))]
mod check;
#[cfg(any(feature = "remote", feature = "test-host"))]
mod receive;

use crate::body::BodyError;
use crate::host::{BlobName, HostError, PeerError};
use crate::message::Response;

#[cfg(any(feature = "remote", feature = "test-host"))]
pub use check::Check;
#[cfg(any(feature = "remote", feature = "test-host"))]
pub use receive::{Sink, receive};

/// Bytes of a BLAKE3 hash, and of a chunk of its tree.
const CHUNK: u64 = 1024;

/// Where an answer's body goes, and what it must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreInto {
    /// One of the module's own blobs; made if there is none.
    pub blob: BlobName,
    /// Where in it the body begins.
    pub offset: u64,
    /// How long the body must be.
    pub length: u64,
    /// What it must hash to.
    pub hash: Blake3,
}

impl StoreInto {
    /// # Errors
    /// [`StoreError::BadRange`] for what no body can be.
    pub fn check(&self) -> Result<(), StoreError> {
        let in_tree = match self.hash {
            Blake3::Whole(_) => true,
            Blake3::Subtree { at, .. } => self.length > 0 && self.length <= longest_subtree(at),
        };
        let fits = in_tree && self.offset.checked_add(self.length).is_some();
        if fits { Ok(()) } else { Err(StoreError::BadRange) }
    }
}

/// The longest input of a subtree that begins there (BLAKE3 paper §2.1); 0 where none does.
fn longest_subtree(at: u64) -> u64 {
    match at {
        0 => u64::MAX,
        at if at % CHUNK == 0 => 1 << at.trailing_zeros(),
        _ => 0,
    }
}

/// A BLAKE3 hash that a body must have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blake3 {
    /// That of a whole input.
    Whole([u8; 32]),
    /// The chaining value of a subtree: of a part of a longer input, which begins there.
    Subtree {
        /// The value.
        value: [u8; 32],
        /// Where the part begins in the whole: a multiple of 1024, at which a subtree of this length may begin.
        at: u64,
    },
}

/// What became of an answer that was to be stored.
#[derive(Debug)]
pub enum Stored {
    /// What came had its hash and was written there. It is there for as long as nobody else writes to that place: of two stores into one place, or a
    /// write beside a store, each spoils the other, whatever it is told.
    Verified,
    /// It has another hash or another length. What is in the blob there now is worth nothing.
    Wrong {
        /// Bytes of it that came.
        received: u64,
    },
    /// It stopped before its end, and so is there in part, with no hash.
    Broken {
        /// Bytes of it that came.
        received: u64,
        /// Why.
        error: BodyError,
    },
    /// The peer refused; nothing was written. Of a refusal from a node, no more of the body than 32 KiB.
    Refused(Response),
}

/// Why no answer came, or it could not be stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// As for any request to a peer.
    #[error("{0}")]
    Peer(#[from] PeerError),
    /// As for any write of a blob.
    #[error("{0}")]
    Host(#[from] HostError),
    /// No body is of that length at that place.
    #[error("no subtree of BLAKE3's tree has that length there")]
    BadRange,
    /// The node has not the feature `stores`: the module has to read the answer itself.
    #[error("this node stores no answers for modules")]
    Unsupported,
}
