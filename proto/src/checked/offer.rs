//! Link offers: a routing header in clear, an HPKE encapsulation, and a sealed body of one size (PROTOCOL 4).
//!
//! `offer = u16 length || routing header || enc (1,120) || sealed (2,048 + 16)`. The directory reads the routing header and
//! sees who and to whom; the sealed part is the key processes' alone.

use serde::{Deserialize, Serialize};

use crate::error::{Result, WireError};
use crate::fields::{Reader, Writer};
use crate::id::{LinkId, MethodId, NodeId, PrekeyId, UnixMillis};
use crate::limits::{OFFER_BODY_BYTES, OFFER_BYTES, TAG_BYTES, XWING_CIPHERTEXT_BYTES};
use crate::method::Method;

const WHAT: &str = "link offer";
/// The version that this build writes and reads.
pub const VERSION: u64 = 1;
/// Longest routing header.
const ROUTING_BYTES: usize = 255;

/// The clear part; its exact bytes are the associated data of the sealed one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoutingHeader {
    /// A: who offers.
    pub issuer: NodeId,
    /// B: to whom.
    pub recipient: NodeId,
    /// Which of B's prekeys it is sealed to.
    pub prekey: PrekeyId,
    /// The link whose base is the HPKE PSK (renewal), if any.
    pub psk: Option<LinkId>,
    /// When the offer ends.
    pub expiry: UnixMillis,
}

impl RoutingHeader {
    /// The bytes as they stand in the offer.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        Writer::new()
            .number(1, VERSION)
            .bytes(2, self.issuer.as_bytes())
            .bytes(3, self.recipient.as_bytes())
            .bytes(4, self.prekey.as_bytes())
            .bytes(5, self.psk.as_ref().map_or(&[][..], |psk| psk.as_bytes()))
            .number(6, self.expiry.0)
            .finish()
    }

    /// Reads a routing header.
    ///
    /// # Errors
    /// Malformed, or a version not spoken here.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let mut reader = Reader::new("offer routing header", bytes);
        if reader.number(1)? != VERSION {
            return Err(WireError::Unsupported { what: WHAT });
        }
        let issuer = NodeId::from_bytes(reader.array(2)?);
        let recipient = NodeId::from_bytes(reader.array(3)?);
        let prekey = PrekeyId::from_bytes(reader.array(4)?);
        let psk = match reader.bytes(5, 16)? {
            [] => None,
            id => Some(LinkId::from_bytes(id.try_into().map_err(|_| reader.malformed("psk id is not 16 bytes"))?)),
        };
        let expiry = UnixMillis(reader.number(6)?);
        reader.finish()?;
        Ok(Self { issuer, recipient, prekey, psk, expiry })
    }
}

/// An offer split into its parts; nothing of it is verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// The routing header, decoded.
    pub routing: RoutingHeader,
    /// The routing header's exact bytes.
    pub routing_bytes: Vec<u8>,
    /// HPKE encapsulated key, 1,120 bytes.
    pub enc: Vec<u8>,
    /// The sealed, padded body with its tag.
    pub sealed: Vec<u8>,
}

impl Offer {
    /// Splits an offer.
    ///
    /// # Errors
    /// Incomplete, too long, or malformed.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        if bytes.len() > OFFER_BYTES {
            return Err(WireError::TooLong { what: WHAT, limit: OFFER_BYTES });
        }
        let incomplete = WireError::Incomplete { what: WHAT };
        let (length, rest) = bytes.split_at_checked(2).ok_or(incomplete)?;
        let length = usize::from(u16::from_be_bytes([length[0], length[1]]));
        if length > ROUTING_BYTES {
            return Err(WireError::TooLong { what: "offer routing header", limit: ROUTING_BYTES });
        }
        let (routing_bytes, rest) = rest.split_at_checked(length).ok_or(incomplete)?;
        let (enc, sealed) = rest.split_at_checked(XWING_CIPHERTEXT_BYTES).ok_or(incomplete)?;
        if sealed.len() < OFFER_BODY_BYTES + TAG_BYTES {
            return Err(incomplete);
        }
        if sealed.len() > OFFER_BODY_BYTES + TAG_BYTES {
            return Err(WireError::Malformed { what: WHAT, why: "trailing bytes" });
        }
        Ok(Self {
            routing: RoutingHeader::decode(routing_bytes)?,
            routing_bytes: routing_bytes.to_vec(),
            enc: enc.to_vec(),
            sealed: sealed.to_vec(),
        })
    }

    /// Joins the parts of an offer.
    #[must_use]
    pub fn encode(routing_bytes: &[u8], enc: &[u8], sealed: &[u8]) -> Vec<u8> {
        let length = u16::try_from(routing_bytes.len()).expect("a routing header is at most 255 bytes");
        [&length.to_be_bytes()[..], routing_bytes, enc, sealed].concat()
    }

    /// `token_id` = SHA-256(offer): what a receipt names.
    #[must_use]
    pub fn token_id(offer: &[u8]) -> [u8; 32] {
        use sha2::Digest as _;
        sha2::Sha256::digest(offer).into()
    }
}

/// The sealed header: what both key processes agree on about a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SealedHeader {
    /// The link.
    pub link_id: LinkId,
    /// Its method, chosen by the issuer's schedule; of a registered one, its suite.
    pub method: Method,
    /// The schedule's epoch at issue.
    pub epoch: u64,
    /// Start of the link's life.
    pub not_before: UnixMillis,
    /// End of the link's life.
    pub not_after: UnixMillis,
    /// Order among this issuer's offers to this recipient.
    pub sequence: u64,
    /// The registered method, if it is one.
    pub registered: Option<MethodId>,
}

impl SealedHeader {
    /// The bytes inside the seal (before signature and padding).
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        Writer::new()
            .bytes(1, self.link_id.as_bytes())
            .number(2, self.method.number())
            .number(3, self.epoch)
            .number(4, self.not_before.0)
            .number(5, self.not_after.0)
            .number(6, self.sequence)
            .bytes(7, self.registered.as_ref().map_or(&[][..], |method| method.as_bytes()))
            .finish()
    }

    /// Reads a sealed header.
    ///
    /// # Errors
    /// Malformed, or a method not spoken here.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let mut reader = Reader::new("offer sealed header", bytes);
        let header = Self {
            link_id: LinkId::from_bytes(reader.array(1)?),
            method: Method::from_number(reader.number(2)?)?,
            epoch: reader.number(3)?,
            not_before: UnixMillis(reader.number(4)?),
            not_after: UnixMillis(reader.number(5)?),
            sequence: reader.number(6)?,
            registered: match reader.bytes(7, 16)? {
                [] => None,
                id => Some(MethodId::from_bytes(
                    id.try_into().map_err(|_| reader.malformed("a method id is not 16 bytes"))?,
                )),
            },
        };
        reader.finish()?;
        Ok(header)
    }

    /// The padded body: u16 length, header, 64-byte signature, zeros up to [`OFFER_BODY_BYTES`].
    #[must_use]
    pub fn encode_body(header: &[u8], signature: &[u8; 64]) -> Vec<u8> {
        let length = u16::try_from(header.len()).expect("a sealed header is under 100 bytes");
        let mut body = [&length.to_be_bytes()[..], header, signature].concat();
        body.resize(OFFER_BODY_BYTES, 0);
        body
    }

    /// Splits an opened body into the header's exact bytes and the signature; padding must be zero.
    ///
    /// # Errors
    /// Malformed.
    pub fn split_body(body: &[u8]) -> Result<(&[u8], [u8; 64])> {
        let malformed = |why| WireError::Malformed { what: "offer body", why };
        if body.len() != OFFER_BODY_BYTES {
            return Err(malformed("not of the one size"));
        }
        let length = usize::from(u16::from_be_bytes([body[0], body[1]]));
        let (header, rest) = body[2..].split_at_checked(length).ok_or(malformed("header length"))?;
        let (signature, padding) = rest.split_at_checked(64).ok_or(malformed("signature"))?;
        if padding.iter().any(|byte| *byte != 0) {
            return Err(malformed("padding is not zero"));
        }
        Ok((header, signature.try_into().map_err(|_| malformed("signature"))?))
    }
}
