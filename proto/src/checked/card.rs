//! A node's card: what it says of itself, signed (PROTOCOL 2).

use serde::{Deserialize, Serialize};

use crate::checked::statement::{Unverified, Verified};
use crate::checked::succession::Lineage;
use crate::error::{Result, WireError};
use crate::fields::{Reader, Writer};
use crate::id::{MethodId, NodeId, PrekeyId, UnixMillis};
use crate::label::Label;
use crate::limits::{
    CARD_BYTES, CARD_ENDPOINTS, CARD_LIFE, CLOCK_GRACE, ENDPOINT_BYTES, LINEAGE, NAME_BYTES, SEQUENCE_AHEAD,
    SUCCESSION_BYTES, XWING_PUBLIC_BYTES,
};
use crate::method::{MethodSet, PLACES};

const WHAT: &str = "card";
/// The version that this build writes and reads.
pub const VERSION: u64 = 1;

/// A public X-Wing key that others seal link offers to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prekey {
    /// First 16 bytes of SHA-256(key).
    pub id: PrekeyId,
    /// X-Wing encapsulation key, 1,216 bytes.
    pub key: Vec<u8>,
    /// Start of its use.
    pub not_before: UnixMillis,
    /// End of its use by issuers.
    pub not_after: UnixMillis,
}

impl Prekey {
    fn encode(&self) -> Vec<u8> {
        Writer::new()
            .bytes(1, self.id.as_bytes())
            .bytes(2, &self.key)
            .number(3, self.not_before.0)
            .number(4, self.not_after.0)
            .finish()
    }

    fn decode(bytes: &[u8]) -> Result<Self> {
        let mut reader = Reader::new("card prekey", bytes);
        let prekey = Self {
            id: PrekeyId::from_bytes(reader.array(1)?),
            key: reader.array::<XWING_PUBLIC_BYTES>(2)?.to_vec(),
            not_before: UnixMillis(reader.number(3)?),
            not_after: UnixMillis(reader.number(4)?),
        };
        if prekey.id != prekey_id(&prekey.key) {
            return Err(reader.malformed("the prekey id is not the hash of the key"));
        }
        reader.finish()?;
        Ok(prekey)
    }
}

/// The id of a prekey: the first 16 bytes of SHA-256 of its public key.
#[must_use]
pub fn prekey_id(key: &[u8]) -> PrekeyId {
    use sha2::Digest as _;
    let digest = sha2::Sha256::digest(key);
    let mut id = [0; 16];
    id.copy_from_slice(&digest[..16]);
    PrekeyId::from_bytes(id)
}

/// What the operator and the node choose about a card; the key process adds the rest and signs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CardFields {
    /// URLs at which the peer-to-peer API answers (`http://host:port` or `https://…`); may be empty behind NAT.
    pub endpoints: Vec<String>,
    /// A name for people; proves nothing.
    pub name: String,
    /// A group that policies and discovery may use.
    pub sector: String,
    /// Whether the directory may list it in discovery.
    pub listed: bool,
}

/// A card whose signature, signer, size, times and content have been checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Card {
    /// Whose card it is; equals the signer.
    pub node_id: NodeId,
    /// Order among this node's cards.
    pub sequence: u64,
    /// When it was signed, by its node's clock.
    pub issued_at: UnixMillis,
    /// When it ends.
    pub expires_at: UnixMillis,
    /// Chosen fields.
    pub fields: CardFields,
    /// Methods that the node speaks.
    pub suites: MethodSet,
    /// Where to seal offers to.
    pub prekey: Prekey,
    /// Which identities this one goes on for.
    pub lineage: Lineage,
    /// Registered methods that the node speaks, in rising order.
    pub methods: Vec<MethodId>,
}

impl Card {
    /// The payload to sign.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new()
            .number(1, VERSION)
            .bytes(2, self.node_id.as_bytes())
            .number(3, self.sequence)
            .number(4, self.issued_at.0)
            .number(5, self.expires_at.0);
        for endpoint in &self.fields.endpoints {
            writer = writer.item(6, endpoint.as_bytes());
        }
        let writer = writer
            .bytes(7, self.fields.name.as_bytes())
            .bytes(8, self.fields.sector.as_bytes())
            .flag(9, self.fields.listed)
            .number(10, u64::from(self.suites.bits()))
            .bytes(11, &self.prekey.encode());
        let writer = self.lineage.items().fold(writer, |writer, word| writer.item(12, word));
        self.methods.iter().fold(writer, |writer, method| writer.item(13, method.as_bytes())).finish()
    }

    /// Verifies and decodes a signed card. Sequence order against an earlier card is the caller's to check with
    /// [`Card::check_succession`].
    ///
    /// # Errors
    /// Too long, malformed, bad signature, signed by another than `node_id`, expired, expiring more than 8 days ahead,
    /// or with a sequence over 2 h ahead.
    pub fn verify(bytes: &[u8], now: UnixMillis) -> Result<Self> {
        if bytes.len() > CARD_BYTES {
            return Err(WireError::TooLong { what: WHAT, limit: CARD_BYTES });
        }
        Self::read(&Unverified::decode(WHAT, bytes)?.verify(Label::Card, WHAT)?, now)
    }

    /// As [`Card::verify`] for bytes whose signature the caller has verified before: exactly these.
    ///
    /// # Errors
    /// As [`Card::verify`], but for the signature.
    pub fn dangerously_verified_before(bytes: &[u8], now: UnixMillis) -> Result<Self> {
        if bytes.len() > CARD_BYTES {
            return Err(WireError::TooLong { what: WHAT, limit: CARD_BYTES });
        }
        Self::read(&Unverified::decode(WHAT, bytes)?.dangerously_verified_before(), now)
    }

    fn read(statement: &Verified, now: UnixMillis) -> Result<Self> {
        let card = Self::decode(statement.payload())?;
        if card.node_id != statement.signer() {
            return Err(WireError::WrongSigner { what: WHAT });
        }
        card.check_times(now)?;
        Ok(card)
    }

    /// Checks expiry and sequence against `now`.
    ///
    /// # Errors
    /// [`WireError::OutOfTime`], or malformed when it or its lineage claims too much of the future.
    pub fn check_times(&self, now: UnixMillis) -> Result<()> {
        super::check_window(WHAT, now, self.issued_at, self.expires_at)?;
        let malformed = |why| WireError::Malformed { what: WHAT, why };
        if self.expires_at > now.plus(CARD_LIFE).plus(CLOCK_GRACE) {
            return Err(malformed("it expires more than 8 days ahead"));
        }
        if self.sequence > now.plus(SEQUENCE_AHEAD).0 {
            return Err(malformed("its sequence is over 2 h ahead"));
        }
        self.lineage.check_times(now)
    }

    /// Whether this card may replace `earlier` of the same node. `bytes` and `earlier_bytes` are the signed bytes: an
    /// equal sequence with equal bytes is a heartbeat.
    #[must_use]
    pub fn check_succession(&self, bytes: &[u8], earlier_sequence: u64, earlier_bytes: &[u8]) -> Succession {
        match self.sequence.cmp(&earlier_sequence) {
            std::cmp::Ordering::Greater => Succession::Newer,
            std::cmp::Ordering::Less => Succession::Rollback,
            std::cmp::Ordering::Equal if bytes == earlier_bytes => Succession::Same,
            std::cmp::Ordering::Equal => Succession::Equivocation,
        }
    }

    fn decode(payload: &[u8]) -> Result<Self> {
        let mut reader = Reader::new(WHAT, payload);
        if reader.number(1)? != VERSION {
            return Err(WireError::Unsupported { what: WHAT });
        }
        let node_id = NodeId::from_bytes(reader.array(2)?);
        let card = Self {
            node_id,
            sequence: reader.number(3)?,
            issued_at: UnixMillis(reader.number(4)?),
            expires_at: UnixMillis(reader.number(5)?),
            fields: CardFields {
                endpoints: decode_endpoints(&mut reader)?,
                name: reader.text(7, NAME_BYTES)?.to_owned(),
                sector: reader.text(8, NAME_BYTES)?.to_owned(),
                listed: reader.flag(9)?,
            },
            suites: MethodSet::from_bits(reader.number(10)?)?,
            prekey: Prekey::decode(reader.bytes(11, CARD_BYTES)?)?,
            lineage: Lineage::verify(reader.items(12, LINEAGE, SUCCESSION_BYTES)?, node_id)?,
            methods: decode_methods(&mut reader)?,
        };
        reader.finish()?;
        Ok(card)
    }
}

/// How a card stands to an earlier one of the same node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Succession {
    /// Higher sequence: replaces it.
    Newer,
    /// The same bytes again: a heartbeat.
    Same,
    /// Lower sequence: refused.
    Rollback,
    /// Equal sequence, other bytes: refused, and both are kept as evidence.
    Equivocation,
}

fn decode_methods(reader: &mut Reader<'_>) -> Result<Vec<MethodId>> {
    let items = reader.items(13, PLACES, 16)?.into_iter();
    let ids: Vec<MethodId> = items
        .map(|item| {
            item.try_into().map(MethodId::from_bytes).map_err(|_| reader.malformed("a method id is not 16 bytes"))
        })
        .collect::<Result<_>>()?;
    if ids.windows(2).any(|pair| pair[0] >= pair[1]) {
        return Err(reader.malformed("method ids are not in rising order"));
    }
    Ok(ids)
}

fn decode_endpoints(reader: &mut Reader<'_>) -> Result<Vec<String>> {
    let items = reader.items(6, CARD_ENDPOINTS, ENDPOINT_BYTES)?;
    let mut endpoints = Vec::with_capacity(items.len());
    for item in items {
        let text = std::str::from_utf8(item).map_err(|_| reader.malformed("an endpoint is not UTF-8"))?;
        check_endpoint(text).map_err(|why| reader.malformed(why))?;
        endpoints.push(text.to_owned());
    }
    Ok(endpoints)
}

/// Checks an endpoint's shape: `http://` or `https://`, printable ASCII, no user part, query or fragment.
///
/// # Errors
/// Which rule it breaks.
pub fn check_endpoint(text: &str) -> std::result::Result<(), &'static str> {
    let rest = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://"));
    let rest = rest.ok_or("an endpoint is neither http:// nor https://")?;
    if rest.is_empty() || text.len() > ENDPOINT_BYTES || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err("an endpoint is empty, too long or not printable ASCII");
    }
    if rest.contains(['@', '?', '#', '\\', '"', '<', '>']) {
        return Err("an endpoint has a user part, a query or a fragment");
    }
    Ok(())
}
