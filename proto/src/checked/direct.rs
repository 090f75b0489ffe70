//! What direct contact adds to the handshake on the wire (PROTOCOL 5): the question who is there, its answer, and REQUEST without a
//! link. Cookie, VERIFY and FINALIZE are those of every handshake.

use super::handshake::{MODE_DIRECT, cookie, request_noise};
use crate::error::{Result, WireError};
use crate::fields::{Reader, Writer};
use crate::id::NodeId;
use crate::limits::COOKIE_BYTES;
use crate::method::{Method, MethodSet};

/// Feature bits of this version, as REQUEST and the prologue carry them: none.
pub const FEATURES: [u8; 8] = [0; 8];
/// Longest greeting: an id, a set, and their heads.
pub const GREETING_BYTES: usize = 64;

/// What may come first in direct contact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DirectInbound {
    /// Nothing but the mode: whoever sends it asks whom it reaches.
    Hello,
    /// REQUEST.
    Request(DirectRequest),
}

/// REQUEST without a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirectRequest {
    /// The suite that the initiator chose among those of the greeting.
    pub method: Method,
    /// Shows that the sender means this responder, before `cryptod` is asked.
    pub mac1: [u8; 16],
    /// Made with the cookie that the responder asked for; absent before.
    pub cookie: Option<[u8; COOKIE_BYTES]>,
    /// Noise message 1.
    pub noise: Vec<u8>,
}

/// The question that comes before REQUEST, in wire form.
#[must_use]
pub fn encode_hello() -> Vec<u8> {
    let request = Writer::new().number(1, MODE_DIRECT).finish();
    Writer::new().bytes(1, &request).finish()
}

impl DirectRequest {
    /// Wire form.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        Writer::new().bytes(1, &self.message(self.cookie.as_ref().map_or(&[], |cookie| &cookie[..]))).finish()
    }

    /// What a cookie vouches for: this message as it stands inside the wire form, its cookie left out.
    #[must_use]
    pub fn without_cookie(&self) -> Vec<u8> {
        self.message(&[])
    }

    fn message(&self, cookie: &[u8]) -> Vec<u8> {
        let message = Writer::new().number(1, MODE_DIRECT).bytes(2, &[self.method as u8]).bytes(3, &FEATURES);
        message.bytes(5, &self.mac1).bytes(6, cookie).bytes(7, &self.noise).finish()
    }
}

/// The fields of a REQUEST behind its mode; no tag is among them.
pub(super) fn decode(mut reader: Reader<'_>) -> Result<DirectInbound> {
    let suite = reader.bytes(2, 1)?;
    if suite.is_empty() {
        reader.finish()?;
        return Ok(DirectInbound::Hello);
    }
    let method = Method::from_number(u64::from(suite[0]))?;
    if reader.bytes(3, FEATURES.len())? != FEATURES {
        return Err(WireError::Unsupported { what: "REQUEST features" });
    }
    let request = DirectRequest {
        method,
        mac1: reader.array(5)?,
        cookie: cookie(&mut reader)?,
        noise: request_noise(&mut reader)?,
    };
    reader.finish()?;
    Ok(DirectInbound::Request(request))
}

/// The answer to the question. Nothing in it is proven: VERIFY proves the id, and the id alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirectGreeting {
    /// Whom the responder says it is.
    pub node: NodeId,
    /// Suites that it allows.
    pub suites: MethodSet,
}

impl DirectGreeting {
    /// Wire form.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        Writer::new().bytes(1, self.node.as_bytes()).number(2, u64::from(self.suites.bits())).finish()
    }

    /// Reads the answer.
    ///
    /// # Errors
    /// Too long or malformed.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let what = "greeting";
        if bytes.len() > GREETING_BYTES {
            return Err(WireError::TooLong { what, limit: GREETING_BYTES });
        }
        let mut reader = Reader::new(what, bytes);
        let greeting =
            Self { node: NodeId::from_bytes(reader.array(1)?), suites: MethodSet::from_bits(reader.number(2)?)? };
        reader.finish()?;
        Ok(greeting)
    }
}
