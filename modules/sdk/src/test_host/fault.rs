//! What goes wrong between two test nodes, and how.

use bytes::Bytes;
use futures_util::{StreamExt, future};

use crate::body::{Body, BodyError};
use crate::host::PeerError;
use crate::message::Response;

/// What goes wrong with one peer request of a host. Faults are used up in order, one a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// This request goes well.
    None,
    /// The request never leaves.
    FailBefore,
    /// The peer carries the request out, its answer is lost.
    DropResponse,
    /// The request's body stops after so many bytes.
    TruncateRequest(u64),
    /// The answer's body stops after so many bytes.
    TruncateResponse(u64),
    /// One bit of the answer's body is flipped in the byte at this offset.
    CorruptResponse(u64),
    /// The answer's body arrives with this many bytes appended.
    ExtendResponse(usize),
    /// The answer comes so many milliseconds later: this node's clock has moved on by then, and a request whose deadline has
    /// passed (or that waited for a minute) is [`PeerError::TimedOut`], although the peer carried it out.
    Late(u64),
    /// The request arrives twice, with the same idempotency key, as from a sender that heard no answer; the second answer comes back.
    Duplicate,
}

pub(super) fn truncated(body: Body, after: u64) -> Body {
    Body::stream(body.limited(after).map(|item| item.map_err(|_| BodyError::Truncated)))
}

pub(super) fn corrupted(body: Body, at: u64) -> Body {
    let mut offset = 0_u64;
    Body::stream(body.map(move |item| {
        item.map(|chunk| {
            let start = offset;
            offset += chunk.len() as u64;
            if !(start..offset).contains(&at) {
                return chunk;
            }
            let mut bytes = chunk.to_vec();
            bytes[usize::try_from(at - start).expect("inside the chunk")] ^= 1;
            Bytes::from(bytes)
        })
    }))
}

impl Fault {
    pub(super) fn on_response(self, mut response: Response) -> Result<Response, PeerError> {
        match self {
            Self::DropResponse => return Err(PeerError::Interrupted),
            Self::TruncateResponse(after) => response.body = truncated(response.body, after),
            Self::CorruptResponse(at) => response.body = corrupted(response.body, at),
            Self::ExtendResponse(extra) => {
                let tail = futures_util::stream::once(future::ready(Ok(Bytes::from(vec![0; extra]))));
                response.body = Body::stream(response.body.chain(tail));
            }
            Self::None | Self::FailBefore | Self::TruncateRequest(_) | Self::Late(_) | Self::Duplicate => {}
        }
        Ok(response)
    }
}
