//! Where a message's parts stand: the request's header in clear, the head in front of the body in the first chunk.

use bytes::{Buf as _, Bytes};
use openred_proto::checked::session::StreamKind;
use openred_proto::error::WireError;
use openred_proto::limits::HEAD_BYTES;

use super::keys::{SessionTag, TAG_LENGTH};

/// Bytes of a [`RequestHeader`].
pub(crate) const HEADER_LENGTH: usize = TAG_LENGTH + 1 + 8;

/// What travels in clear before a request's chunks. The opener is the side whose tag this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RequestHeader {
    /// The session and direction.
    pub(crate) tag: SessionTag,
    /// The opener's number.
    pub(crate) number: u64,
}

impl RequestHeader {
    /// Wire form.
    pub(crate) fn encode(&self) -> [u8; HEADER_LENGTH] {
        let mut bytes = [0; HEADER_LENGTH];
        bytes[..TAG_LENGTH].copy_from_slice(&self.tag);
        bytes[TAG_LENGTH] = StreamKind::Request as u8;
        bytes[TAG_LENGTH + 1..].copy_from_slice(&self.number.to_be_bytes());
        bytes
    }

    /// Reads a header; a carrier of requests accepts no other kind.
    pub(crate) fn decode(bytes: &[u8; HEADER_LENGTH]) -> Result<Self, WireError> {
        let mut rest = &bytes[..];
        let mut tag = [0; TAG_LENGTH];
        rest.copy_to_slice(&mut tag);
        if StreamKind::from_byte(rest.get_u8())? != StreamKind::Request {
            return Err(WireError::Unsupported { what: "stream kind" });
        }
        Ok(Self { tag, number: rest.get_u64() })
    }
}

/// Splits the first chunk into head and the beginning of the body.
pub(crate) fn split_head(mut chunk: Bytes) -> Result<(Bytes, Bytes), WireError> {
    let what = "message head";
    if chunk.len() < 2 {
        return Err(WireError::Incomplete { what });
    }
    let length = usize::from(chunk.get_u16());
    if length > HEAD_BYTES {
        return Err(WireError::TooLong { what, limit: HEAD_BYTES });
    }
    if length > chunk.len() {
        return Err(WireError::Incomplete { what });
    }
    Ok((chunk.split_to(length), chunk))
}
