//! What travels inside a session: stream names, request and response heads, the ACCEPT record (PROTOCOL 6).

use serde::{Deserialize, Serialize};

use crate::error::{Result, WireError};
use crate::fields::{Reader, Writer};
use crate::limits::HEAD_BYTES;

/// What a stream of chunks is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[repr(u8)]
pub enum StreamKind {
    /// The responder's ACCEPT record; number 0.
    Accept = 0,
    /// A request, numbered from 1 by its opener.
    Request = 1,
    /// The response to the request of the same opener and number.
    Response = 2,
}

impl StreamKind {
    /// From the byte on the wire.
    ///
    /// # Errors
    /// [`WireError::Unsupported`] for any other.
    pub fn from_byte(byte: u8) -> Result<Self> {
        match byte {
            0 => Ok(Self::Accept),
            1 => Ok(Self::Request),
            2 => Ok(Self::Response),
            _ => Err(WireError::Unsupported { what: "stream kind" }),
        }
    }
}

/// Which handshake role opened a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[repr(u8)]
pub enum Side {
    /// The handshake's initiator.
    Initiator = 0,
    /// The handshake's responder.
    Responder = 1,
}

impl Side {
    /// The other side.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Side::Initiator => Side::Responder,
            Side::Responder => Side::Initiator,
        }
    }
}

/// The name of one stream: no two streams of a session share it, so no two share a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StreamName {
    /// Accept, request or response.
    pub kind: StreamKind,
    /// Who opened it.
    pub opener: Side,
    /// The opener's number.
    pub number: u64,
}

/// Head of a request; stands before its body in the first chunk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestHead {
    /// Module that answers.
    pub module: String,
    /// Method (GET, POST, …).
    pub method: String,
    /// Path inside the module.
    pub path: String,
    /// Media type of the body; empty when there is none.
    pub content_type: String,
    /// Length of the body in bytes, if known.
    pub length: Option<u64>,
    /// The caller waits this many milliseconds; zero: not said.
    pub deadline_millis: u64,
    /// The same key on every retry of one request; empty when it may be repeated freely.
    pub idempotency_key: Vec<u8>,
    /// The answer's body is wanted from this byte on: a retry of a request whose answer broke off there.
    pub from: u64,
}

/// Head of a response.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResponseHead {
    /// HTTP status code.
    pub status: u16,
    /// Media type of the body.
    pub content_type: String,
    /// Length of the body in bytes, if known.
    pub length: Option<u64>,
}

/// Longest module name; one DNS label.
pub const MODULE_BYTES: usize = 63;
/// Longest method.
const METHOD_BYTES: usize = 16;
/// Longest path.
pub const PATH_BYTES: usize = 1024;
/// Longest media type.
pub const CONTENT_TYPE_BYTES: usize = 128;
/// Longest idempotency key.
pub const IDEMPOTENCY_BYTES: usize = 64;

impl RequestHead {
    /// Wire form.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        Writer::new()
            .bytes(1, self.module.as_bytes())
            .bytes(2, self.method.as_bytes())
            .bytes(3, self.path.as_bytes())
            .bytes(4, self.content_type.as_bytes())
            .number(5, encode_length(self.length))
            .number(6, self.deadline_millis)
            .bytes(7, &self.idempotency_key)
            .number(8, self.from)
            .finish()
    }

    /// Reads a head.
    ///
    /// # Errors
    /// Too long or malformed.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let what = "request head";
        if bytes.len() > HEAD_BYTES {
            return Err(WireError::TooLong { what, limit: HEAD_BYTES });
        }
        let mut reader = Reader::new(what, bytes);
        let head = Self {
            module: reader.text(1, MODULE_BYTES)?.to_owned(),
            method: reader.text(2, METHOD_BYTES)?.to_owned(),
            path: reader.text(3, PATH_BYTES)?.to_owned(),
            content_type: reader.text(4, CONTENT_TYPE_BYTES)?.to_owned(),
            length: decode_length(reader.number(5)?),
            deadline_millis: reader.number(6)?,
            idempotency_key: reader.bytes(7, IDEMPOTENCY_BYTES)?.to_vec(),
            from: reader.number(8)?,
        };
        reader.finish()?;
        Ok(head)
    }
}

impl ResponseHead {
    /// Wire form.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        Writer::new()
            .number(1, u64::from(self.status))
            .bytes(2, self.content_type.as_bytes())
            .number(3, encode_length(self.length))
            .finish()
    }

    /// Reads a head.
    ///
    /// # Errors
    /// Too long or malformed.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let what = "response head";
        if bytes.len() > HEAD_BYTES {
            return Err(WireError::TooLong { what, limit: HEAD_BYTES });
        }
        let mut reader = Reader::new(what, bytes);
        let head = Self {
            status: reader.small(1)?,
            content_type: reader.text(2, CONTENT_TYPE_BYTES)?.to_owned(),
            length: decode_length(reader.number(3)?),
        };
        if !(100..1000).contains(&head.status) {
            return Err(reader.malformed("status is not of three digits"));
        }
        reader.finish()?;
        Ok(head)
    }
}

/// Zero means "not known" on the wire, so a known length is sent plus one.
const fn encode_length(length: Option<u64>) -> u64 {
    match length {
        Some(length) => length.saturating_add(1),
        None => 0,
    }
}

const fn decode_length(wire: u64) -> Option<u64> {
    wire.checked_sub(1)
}

/// The ACCEPT record: the responder's first sealed word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accept {
    /// Zero: accepted; anything else is a refusal's reason (see docs/errors.md).
    pub refusal: u64,
    /// The responder's match proof over the final handshake hash (PROTOCOL 4.5).
    pub match_proof: Vec<u8>,
    /// The responder takes nothing on this session before the two have signed (`audited` mode, PROTOCOL 5).
    pub audited: bool,
}

impl Accept {
    /// Plaintext bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        Writer::new().number(1, self.refusal).bytes(2, &self.match_proof).flag(3, self.audited).finish()
    }

    /// Reads a decrypted record.
    ///
    /// # Errors
    /// Malformed.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let mut reader = Reader::new("ACCEPT", bytes);
        let refusal = reader.number(1)?;
        let match_proof = reader.bytes(2, 32)?.to_vec();
        let audited = reader.flag(3)?;
        reader.finish()?;
        Ok(Self { refusal, match_proof, audited })
    }
}
