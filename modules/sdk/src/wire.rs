//! What both ends of the contract between a module's process and its node share (`openred.module.v1`): bounds, the queue of outgoing
//! frames, the flow of bodies by credit, and conversions between generated types and the SDK's.
//!
//! Everything here is a table or a queue: no socket, clock or randomness. The module's end is [`crate::process`], the node's
//! [`crate::remote`].

pub(crate) mod bodies;
pub(crate) mod convert;
pub(crate) mod flow;
pub(crate) mod hooks;
pub(crate) mod lane;
pub(crate) mod status;
pub(crate) mod stored;
pub(crate) mod words;

use crate::host::BLOB_CHUNK;

/// Version of the contract that this crate speaks best, and the oldest that it still speaks.
pub(crate) const NEWEST: u32 = crate::manifest::SPOKEN.newest;
/// See [`NEWEST`]: that one, the one before it, and the one before that.
pub(crate) const OLDEST: u32 = crate::manifest::SPOKEN.oldest;
/// Features by name; both sides use those that both have.
pub(crate) const FEATURES: [&str; 6] = [HOOKS, NODE_STATUS, LOOPBACK, OPERATE, RANGES, STORES];
/// Calls of hooks and their answers.
pub(crate) const HOOKS: &str = "hooks";
/// The node's state, and alerts.
pub(crate) const NODE_STATUS: &str = "node-status";
/// Calls that are connections. A module without it would take them for the operator's: it gets none.
pub(crate) const LOOPBACK: &str = "loopback";
/// Operations of the node's operator.
pub(crate) const OPERATE: &str = "operate";
/// Ranges of the module's blobs as pieces of its answers' bodies.
pub(crate) const RANGES: &str = "ranges";
/// Answers of peers that the node puts into the module's blobs.
pub(crate) const STORES: &str = "stores";

/// Longest frame of the stream, in bytes: short enough that one call's body does not hold up another's head for long.
pub(crate) const FRAME_BYTES: usize = 64 * 1024;
/// Bytes of a body in one frame: what is left beside the longest head (a path of 1 KiB, a media type, numbers).
pub(crate) const PIECE_BYTES: usize = FRAME_BYTES - 4096;
/// Bytes of each body that may be on their way at first, and again after the reader has taken them: four frames keep both sides busy.
pub(crate) const CREDIT: u32 = 256 * 1024;
/// What a range of a blob costs of it: the reader has nothing of it in memory, so one is read while another waits, however long they are.
pub(crate) const RANGE_CREDIT: u32 = CREDIT / 2;
/// Longest range of a blob in one piece. Credit is for two: so much the node reads at most for a module that is no more.
pub(crate) const RANGE_BYTES: u64 = 16 << 20;
/// The most credit that a side may pile up: beyond it the other side miscounts.
pub(crate) const CREDIT_MOST: usize = 4 * 1024 * 1024;
/// Calls in flight in one attachment, events among them.
pub(crate) const CALLS: usize = 256;
/// Longest message of the second connection: a chunk of a blob, or a batch of rows, with its head.
pub(crate) const MESSAGE_BYTES: usize = BLOB_CHUNK + 64 * 1024;
/// Frames with bodies that wait for the other side to read: 4 MiB at most.
pub(crate) const LANE: usize = 64;

/// Bytes of the proof and of the ticket.
pub(crate) const PROOF_BYTES: usize = 32;
/// Longest media type.
pub(crate) const CONTENT_TYPE_BYTES: usize = 128;
/// Longest version, and longest name of a feature.
pub(crate) const NAME_BYTES: usize = 64;
/// Most features that are read.
pub(crate) const FEATURES_MOST: usize = 32;
/// Longest body of a refusal beside an answer that was to be stored.
pub(crate) const REFUSAL_BYTES: usize = 32 * 1024;
/// Longest text for people: a summary, the detail of a failure.
pub(crate) const DETAIL_BYTES: usize = 1024;

/// HTTP/2's own window of the one stream of the first connection.
pub(crate) const STREAM_WINDOW: u32 = 1 << 20;
/// Of each call of the second connection.
pub(crate) const CALL_WINDOW: u32 = 256 * 1024;
/// Of the second connection: as many calls' as can stall without one that does not being held up by them.
pub(crate) const CONNECTION_WINDOW: u32 = 16 << 20;
