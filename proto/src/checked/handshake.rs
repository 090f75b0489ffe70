//! The handshake's messages on the wire, and the payloads inside Noise (PROTOCOL 5).

use crate::error::{Result, WireError};
use crate::fields::{Reader, Writer};
use crate::id::{HandshakeId, UnixMillis};
use crate::limits::{
    COOKIE_BYTES, COOKIE_NONCE_BYTES, HANDSHAKE_BYTES, MLKEM_CIPHERTEXT_BYTES, MLKEM_PUBLIC_BYTES, NOISE_BYTES,
    NOISE_FINALIZE_MIN, NOISE_REQUEST_MIN, NOISE_VERIFY_MIN, TAG_BYTES,
};

use super::direct::{self, DirectInbound};
use super::static_certificate::CERTIFICATE_BYTES;

/// Over a link.
pub const MODE_LINKED: u64 = 1;
/// Without one.
pub const MODE_DIRECT: u64 = 2;
/// Longest directory head inside a payload: a 32-byte hash, or nothing.
const HEAD_BYTES: usize = 32;

/// REQUEST: the initiator's first message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HandshakeRequest {
    /// Names the link to its two parties, nobody else, and never twice the same.
    pub tag: [u8; 16],
    /// Shows that the sender holds the link, before `cryptod` is asked.
    pub mac1: [u8; 16],
    /// Made with the cookie that the responder asked for; absent otherwise.
    pub cookie: Option<[u8; COOKIE_BYTES]>,
    /// Noise message 1.
    pub noise: Vec<u8>,
}

impl HandshakeRequest {
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
        let message = Writer::new().number(1, MODE_LINKED).bytes(4, &self.tag).bytes(5, &self.mac1);
        message.bytes(6, cookie).bytes(7, &self.noise).finish()
    }
}

/// VERIFY: the responder's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HandshakeVerify {
    /// The half-open handshake at the responder.
    pub handshake: HandshakeId,
    /// Noise message 2.
    pub noise: Vec<u8>,
}

/// What a responder under load answers a REQUEST with: a cookie, sealed to whoever holds the REQUEST's mac1 key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HandshakeCookie {
    /// Nonce of the seal; random.
    pub nonce: [u8; COOKIE_NONCE_BYTES],
    /// The cookie and the seal's tag.
    pub sealed: [u8; COOKIE_BYTES + TAG_BYTES],
}

impl HandshakeCookie {
    /// Wire form.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        Writer::new().bytes(3, &self.nonce).bytes(4, &self.sealed).finish()
    }
}

/// The answer to a REQUEST. The two have no field in common.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RequestAnswer {
    /// Phase two.
    Verify(HandshakeVerify),
    /// The REQUEST is to be sent again, with this.
    Cookie(HandshakeCookie),
}

impl RequestAnswer {
    /// Reads the body of the answer to a REQUEST.
    ///
    /// # Errors
    /// Too long or malformed.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let what = "answer to a REQUEST";
        if bytes.len() > HANDSHAKE_BYTES {
            return Err(WireError::TooLong { what, limit: HANDSHAKE_BYTES });
        }
        let mut reader = Reader::new(what, bytes);
        if !reader.clone().bytes(1, HANDSHAKE_BYTES)?.is_empty() {
            return HandshakeVerify::decode(bytes).map(Self::Verify);
        }
        let cookie = HandshakeCookie { nonce: reader.array(3)?, sealed: reader.array(4)? };
        reader.finish()?;
        Ok(Self::Cookie(cookie))
    }
}

/// FINALIZE: the initiator's second message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HandshakeFinalize {
    /// The half-open handshake at the responder.
    pub handshake: HandshakeId,
    /// Noise message 3.
    pub noise: Vec<u8>,
}

/// What an initiator may post to a responder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Inbound {
    /// Phase one.
    Request(HandshakeRequest),
    /// Phase one of direct contact, or the question before it.
    Direct(DirectInbound),
    /// Phase three.
    Finalize(HandshakeFinalize),
}

impl Inbound {
    /// Reads what came to `POST /p2p/handshake`.
    ///
    /// # Errors
    /// Too long, malformed, or a mode not spoken here.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let what = "handshake message";
        if bytes.len() > HANDSHAKE_BYTES {
            return Err(WireError::TooLong { what, limit: HANDSHAKE_BYTES });
        }
        let mut reader = Reader::new(what, bytes);
        let inbound = match reader.bytes(1, HANDSHAKE_BYTES)? {
            [] => {
                let bytes = reader.bytes(2, HANDSHAKE_BYTES)?;
                let (handshake, noise) = decode_reply("FINALIZE", NOISE_FINALIZE_MIN, bytes)?;
                Self::Finalize(HandshakeFinalize { handshake, noise })
            }
            request => decode_request(request)?,
        };
        reader.finish()?;
        Ok(inbound)
    }
}

fn decode_request(bytes: &[u8]) -> Result<Inbound> {
    let mut reader = Reader::new("REQUEST", bytes);
    match reader.number(1)? {
        MODE_LINKED => {}
        MODE_DIRECT => return direct::decode(reader).map(Inbound::Direct),
        _ => return Err(WireError::Unsupported { what: "REQUEST mode" }),
    }
    let request = HandshakeRequest {
        tag: reader.array(4)?,
        mac1: reader.array(5)?,
        cookie: cookie(&mut reader)?,
        noise: request_noise(&mut reader)?,
    };
    reader.finish()?;
    Ok(Inbound::Request(request))
}

/// REQUEST's Noise message, in either mode.
pub(super) fn request_noise(reader: &mut Reader<'_>) -> Result<Vec<u8>> {
    noise(reader, 7, NOISE_REQUEST_MIN)
}

pub(super) fn cookie(reader: &mut Reader<'_>) -> Result<Option<[u8; COOKIE_BYTES]>> {
    match reader.bytes(6, HANDSHAKE_BYTES)? {
        [] => Ok(None),
        bytes => bytes.try_into().map(Some).map_err(|_| reader.malformed("a cookie is not 16 bytes")),
    }
}

/// A Noise message. One that cannot be one is refused here, before anybody is asked about it: a peer must not make this
/// node ask its own key process what a correct caller never asks.
fn noise(reader: &mut Reader<'_>, field: u32, at_least: usize) -> Result<Vec<u8>> {
    let noise = reader.bytes(field, NOISE_BYTES)?;
    if noise.len() < at_least {
        return Err(reader.malformed("the Noise message is missing or too short to be one"));
    }
    Ok(noise.to_vec())
}

fn encode_reply(handshake: &HandshakeId, noise: &[u8]) -> Vec<u8> {
    Writer::new().bytes(1, handshake.as_bytes()).bytes(2, noise).finish()
}

fn decode_reply(what: &'static str, at_least: usize, bytes: &[u8]) -> Result<(HandshakeId, Vec<u8>)> {
    let mut reader = Reader::new(what, bytes);
    let handshake = HandshakeId::from_bytes(reader.array(1)?);
    let noise = noise(&mut reader, 2, at_least)?;
    reader.finish()?;
    Ok((handshake, noise))
}

impl HandshakeVerify {
    /// Wire form.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        encode_reply(&self.handshake, &self.noise)
    }

    /// Reads the body of the answer to a REQUEST.
    ///
    /// # Errors
    /// Too long or malformed.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        if bytes.len() > HANDSHAKE_BYTES {
            return Err(WireError::TooLong { what: "VERIFY", limit: HANDSHAKE_BYTES });
        }
        let (handshake, noise) = decode_reply("VERIFY", NOISE_VERIFY_MIN, bytes)?;
        Ok(Self { handshake, noise })
    }
}

impl HandshakeFinalize {
    /// Wire form.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        Writer::new().bytes(2, &encode_reply(&self.handshake, &self.noise)).finish()
    }
}

/// Payload of REQUEST inside Noise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestPayload {
    /// `max(now, last sent + 1)`; the responder keeps the greatest it accepted.
    pub timestamp: UnixMillis,
    /// Ephemeral ML-KEM-768 encapsulation key, 1,184 bytes.
    pub kem_key: Vec<u8>,
}

impl RequestPayload {
    /// Plaintext bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        Writer::new().number(1, self.timestamp.0).bytes(2, &self.kem_key).finish()
    }

    /// Reads a decrypted payload.
    ///
    /// # Errors
    /// Malformed.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let mut reader = Reader::new("REQUEST payload", bytes);
        let timestamp = UnixMillis(reader.number(1)?);
        let kem_key = reader.array::<MLKEM_PUBLIC_BYTES>(2)?.to_vec();
        reader.finish()?;
        Ok(Self { timestamp, kem_key })
    }
}

/// What both VERIFY and FINALIZE say about their sender inside Noise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SenderPayload {
    /// ML-KEM-768 ciphertext (VERIFY only; empty in FINALIZE).
    pub kem_ciphertext: Vec<u8>,
    /// The sender's static certificate, as signed.
    pub certificate: Vec<u8>,
    /// Sequence of the sender's latest card.
    pub card_sequence: u64,
    /// Latest directory head that the sender saw; 32 bytes, or empty.
    pub directory_head: Vec<u8>,
}

impl SenderPayload {
    /// Plaintext bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        Writer::new()
            .bytes(1, &self.kem_ciphertext)
            .bytes(2, &self.certificate)
            .number(3, self.card_sequence)
            .bytes(4, &self.directory_head)
            .finish()
    }

    /// Reads a decrypted VERIFY payload: the ciphertext must be there.
    ///
    /// # Errors
    /// Malformed.
    pub fn decode_verify(bytes: &[u8]) -> Result<Self> {
        let payload = Self::decode("VERIFY payload", bytes)?;
        if payload.kem_ciphertext.len() != MLKEM_CIPHERTEXT_BYTES {
            return Err(WireError::Malformed { what: "VERIFY payload", why: "no ML-KEM ciphertext of 1,088 bytes" });
        }
        Ok(payload)
    }

    /// Reads a decrypted FINALIZE payload: no ciphertext may be there.
    ///
    /// # Errors
    /// Malformed.
    pub fn decode_finalize(bytes: &[u8]) -> Result<Self> {
        let payload = Self::decode("FINALIZE payload", bytes)?;
        if !payload.kem_ciphertext.is_empty() {
            return Err(WireError::Malformed { what: "FINALIZE payload", why: "an unexpected ML-KEM ciphertext" });
        }
        Ok(payload)
    }

    fn decode(what: &'static str, bytes: &[u8]) -> Result<Self> {
        let mut reader = Reader::new(what, bytes);
        let payload = Self {
            kem_ciphertext: reader.bytes(1, MLKEM_CIPHERTEXT_BYTES)?.to_vec(),
            certificate: reader.bytes(2, CERTIFICATE_BYTES)?.to_vec(),
            card_sequence: reader.number(3)?,
            directory_head: reader.bytes(4, HEAD_BYTES)?.to_vec(),
        };
        if !matches!(payload.directory_head.len(), 0 | HEAD_BYTES) {
            return Err(reader.malformed("a directory head is not 32 bytes"));
        }
        reader.finish()?;
        Ok(payload)
    }
}
