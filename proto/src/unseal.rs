//! What crosses the unsealer's descriptors beside keystores: the order that it gets, and its word on what it did.
//!
//! The order carries the secret that opens or seals, so it is built once, in a buffer that never moves, and wiped. The word
//! holds no secret: what a keystore says of itself, or why it was refused.

use zeroize::Zeroizing;

use crate::checked::succession::Lineage;
use crate::error::{Result, WireError};
use crate::fields::{Reader, Writer};
use crate::id::{NodeId, UnixMillis};
use crate::limits::{LINEAGE, SUCCESSION_BYTES};

/// Longest passphrase or list of identities in bytes; a page of text would be a file named by mistake.
pub const SECRET_BYTES: usize = 1024;
/// Recipients of one file: an operator, a few others who may recover it, a machine.
pub const RECIPIENTS: usize = 8;
/// Longest recipient: `age1…` of an X25519 key has 62 characters; what a plugin would take is longer and is refused by name.
pub const RECIPIENT_BYTES: usize = 128;
/// Longest order.
pub const ORDER_BYTES: usize =
    2 + SECRET_BYTES + 8 + 1 + RECIPIENTS * (1 + RECIPIENT_BYTES) + 1 + 32 + 2 + SECRET_BYTES;
/// Longest word: what a keystore says of itself, with all recipients and the longest lineage.
pub const WORD_BYTES: usize = 4096;

/// What the unsealer needs to know beside its files.
#[derive(Debug)]
pub struct Order {
    /// A passphrase, or age identities; what seals anew when there is nothing to open. Empty where only recipients seal.
    pub secret: Zeroizing<Vec<u8>>,
    /// Whom to seal to instead of the passphrase; none: as what was opened is sealed.
    pub recipients: Vec<String>,
    /// The asker's time: the unsealer has no clock of its own that it would trust more.
    pub now: UnixMillis,
    /// The node that the errand is about, where it is not the keystore's own.
    pub named: Option<NodeId>,
    /// What opens the older of two keystores, where `secret` does not. Empty where it does.
    pub older: Zeroizing<Vec<u8>>,
}

impl Order {
    /// An order that opens and seals with `secret`.
    #[must_use]
    pub fn with_secret(secret: Zeroizing<Vec<u8>>, now: UnixMillis) -> Self {
        Self { secret, recipients: Vec::new(), now, named: None, older: Zeroizing::default() }
    }

    /// The bytes for the unsealer's pipe.
    ///
    /// # Errors
    /// Too long a secret or recipient, or too many.
    pub fn encode(&self) -> Result<Zeroizing<Vec<u8>>> {
        let too_long = |limit| WireError::TooLong { what: "unsealer's order", limit };
        if self.secret.len().max(self.older.len()) > SECRET_BYTES {
            return Err(too_long(SECRET_BYTES));
        }
        if self.recipients.len() > RECIPIENTS {
            return Err(too_long(RECIPIENTS));
        }
        // Whole from the start, so that growing leaves no copy of the secret behind.
        let mut bytes = Zeroizing::new(Vec::with_capacity(ORDER_BYTES));
        let length = u16::try_from(self.secret.len()).map_err(|_| too_long(SECRET_BYTES))?;
        bytes.extend_from_slice(&length.to_be_bytes());
        bytes.extend_from_slice(&self.secret);
        bytes.extend_from_slice(&self.now.0.to_be_bytes());
        bytes.push(u8::try_from(self.recipients.len()).map_err(|_| too_long(RECIPIENTS))?);
        for recipient in &self.recipients {
            let length = u8::try_from(recipient.len()).ok().filter(|length| usize::from(*length) <= RECIPIENT_BYTES);
            bytes.push(length.ok_or(too_long(RECIPIENT_BYTES))?);
            bytes.extend_from_slice(recipient.as_bytes());
        }
        bytes.push(u8::from(self.named.is_some()));
        bytes.extend_from_slice(self.named.as_ref().map_or(&[][..], |named| named.as_bytes()));
        let length = u16::try_from(self.older.len()).map_err(|_| too_long(SECRET_BYTES))?;
        bytes.extend_from_slice(&length.to_be_bytes());
        bytes.extend_from_slice(&self.older);
        Ok(bytes)
    }

    /// Reads an order to its last byte.
    ///
    /// # Errors
    /// Incomplete, too long, or malformed.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let mut rest = bytes;
        let mut take = |count: usize| {
            let (head, tail) =
                rest.split_at_checked(count).ok_or(WireError::Incomplete { what: "unsealer's order" })?;
            rest = tail;
            Ok::<&[u8], WireError>(head)
        };
        let malformed = |why| WireError::Malformed { what: "unsealer's order", why };
        let secret_length = |bytes: &[u8]| match bytes {
            [high, low] if usize::from(u16::from_be_bytes([*high, *low])) <= SECRET_BYTES => {
                Ok(usize::from(u16::from_be_bytes([*high, *low])))
            }
            _ => Err(WireError::TooLong { what: "unsealer's order", limit: SECRET_BYTES }),
        };
        let length = secret_length(take(2)?)?;
        let secret = Zeroizing::new(take(length)?.to_vec());
        let now: [u8; 8] = take(8)?.try_into().map_err(|_| malformed("a time is 8 bytes"))?;
        let count = usize::from(take(1)?[0]);
        if count > RECIPIENTS {
            return Err(WireError::TooLong { what: "unsealer's order", limit: RECIPIENTS });
        }
        let mut recipients = Vec::with_capacity(count);
        for _ in 0..count {
            let length = usize::from(take(1)?[0]);
            let text = std::str::from_utf8(take(length)?).map_err(|_| malformed("a recipient is no text"))?;
            recipients.push(text.to_owned());
        }
        let named = match take(1)?[0] {
            0 => None,
            1 => {
                let id: [u8; 32] = take(32)?.try_into().map_err(|_| malformed("a node id is 32 bytes"))?;
                Some(NodeId::from_bytes(id))
            }
            _ => return Err(malformed("a flag is neither 0 nor 1")),
        };
        let length = secret_length(take(2)?)?;
        let older = Zeroizing::new(take(length)?.to_vec());
        if !rest.is_empty() {
            return Err(malformed("trailing bytes"));
        }
        Ok(Self { secret, recipients, now: UnixMillis(u64::from_be_bytes(now)), named, older })
    }
}

/// What a keystore says of itself; nothing of it is secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct About {
    /// Version of its format.
    pub version: u64,
    /// The node that its key makes.
    pub node: NodeId,
    /// When its identity was made; zero in version 1, which did not say.
    pub created: UnixMillis,
    /// Whether a passphrase opens it; otherwise an age identity does.
    pub passphrase: bool,
    /// Whom it was sealed to.
    pub recipients: Vec<String>,
    /// Which identities its own goes on for.
    pub lineage: Lineage,
}

/// Why a keystore was refused, for the one who has to name it: its text comes in the unsealer's last line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Refused {
    /// The passphrase or identity does not open it, or is none.
    Secret = 1,
    /// Cut short, changed, or no keystore.
    Damaged = 2,
    /// Of a version that this build does not know.
    Newer = 3,
    /// Its node id is not that of its key.
    Mismatched = 4,
    /// It asks for more work than is done.
    Work = 5,
    /// A recipient is none.
    Recipient = 6,
    /// The vault's state is not this keystore's, or damaged.
    State = 7,
    /// Reading or writing failed.
    Local = 8,
    /// The two keystores are not of one lineage, or the time to take a succession back is over.
    Succession = 9,
    /// As `Secret`, of the older of two keystores.
    OlderSecret = 10,
    /// The older of two keystores is refused for another reason of its own.
    OlderKeystore = 11,
    /// No space is left where the outcome goes.
    Full = 12,
}

impl Refused {
    const ALL: [Self; 12] = [
        Self::Secret,
        Self::Damaged,
        Self::Newer,
        Self::Mismatched,
        Self::Work,
        Self::Recipient,
        Self::State,
        Self::Local,
        Self::Succession,
        Self::OlderSecret,
        Self::OlderKeystore,
        Self::Full,
    ];
}

/// The unsealer's word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Word {
    /// Done, with a keystore.
    Keystore(About),
    /// Done, with a file that is none.
    Done,
    /// Not done.
    Refused(Refused),
}

impl Word {
    /// The bytes for the supervisor's pipe.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Word::Done => Writer::new().flag(2, true).finish(),
            Word::Refused(refused) => Writer::new().number(1, *refused as u64).finish(),
            Word::Keystore(about) => {
                let writer = Writer::new()
                    .number(3, about.version)
                    .bytes(4, about.node.as_bytes())
                    .number(5, about.created.0)
                    .flag(6, about.passphrase);
                let writer = about.recipients.iter().fold(writer, |writer, text| writer.item(7, text.as_bytes()));
                about.lineage.items().fold(writer, |writer, word| writer.item(8, word)).finish()
            }
        }
    }

    /// Reads a word to its last byte.
    ///
    /// # Errors
    /// Malformed or too long.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        if bytes.len() > WORD_BYTES {
            return Err(WireError::TooLong { what: "unsealer's word", limit: WORD_BYTES });
        }
        let mut reader = Reader::new("unsealer's word", bytes);
        let refused = reader.number(1)?;
        if refused != 0 {
            let known = Refused::ALL.into_iter().find(|known| *known as u64 == refused);
            let word = Word::Refused(known.ok_or_else(|| reader.malformed("an unknown refusal"))?);
            return reader.finish().map(|()| word);
        }
        if reader.flag(2)? {
            return reader.finish().map(|()| Word::Done);
        }
        let version = reader.number(3)?;
        let node = NodeId::from_bytes(reader.array(4)?);
        let created = UnixMillis(reader.number(5)?);
        let passphrase = reader.flag(6)?;
        let text = |item: &[u8]| String::from_utf8(item.to_vec()).map_err(|_| reader_text());
        let recipients = reader.items(7, RECIPIENTS, RECIPIENT_BYTES)?.into_iter().map(text).collect::<Result<_>>()?;
        let lineage = Lineage::verify(reader.items(8, LINEAGE, SUCCESSION_BYTES)?, node)?;
        reader.finish()?;
        Ok(Word::Keystore(About { version, node, created, passphrase, recipients, lineage }))
    }
}

const fn reader_text() -> WireError {
    WireError::Malformed { what: "unsealer's word", why: "a recipient is no text" }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn order() -> Order {
        let recipients = vec![String::from("age1abc"), String::from("age1def")];
        let named = Some(NodeId::from_bytes([5; 32]));
        Order {
            secret: Zeroizing::new(b"two words\n".to_vec()),
            recipients,
            now: UnixMillis(7),
            named,
            older: Zeroizing::new(b"another".to_vec()),
        }
    }

    #[test]
    fn orders_read_back_and_every_cut_or_addition_is_refused() {
        let bytes = order().encode().unwrap();
        let read = Order::decode(&bytes).unwrap();
        assert_eq!((&read.secret, &read.recipients, read.now), (&order().secret, &order().recipients, UnixMillis(7)));
        assert_eq!((&read.named, &read.older), (&order().named, &order().older));
        let unnamed = Order { named: None, ..order() }.encode().unwrap();
        assert_eq!(Order::decode(&unnamed).unwrap().named, None);
        for length in 0..bytes.len() {
            assert!(Order::decode(&bytes[..length]).is_err(), "{length}");
        }
        assert!(Order::decode(&[&bytes[..], &[0]].concat()).is_err());
    }

    #[test]
    fn orders_over_their_bounds_are_refused_on_both_sides() {
        let long = Order { secret: Zeroizing::new(vec![b'a'; SECRET_BYTES + 1]), ..order() };
        let many = Order { recipients: vec![String::from("x"); RECIPIENTS + 1], ..order() };
        let wide = Order { recipients: vec!["x".repeat(RECIPIENT_BYTES + 1)], ..order() };
        let older = Order { older: Zeroizing::new(vec![b'a'; SECRET_BYTES + 1]), ..order() };
        for refused in [long, many, wide, older] {
            assert!(matches!(refused.encode(), Err(WireError::TooLong { .. })));
        }
        let largest = Order {
            secret: Zeroizing::new(vec![1; SECRET_BYTES]),
            recipients: vec!["x".repeat(RECIPIENT_BYTES); RECIPIENTS],
            now: UnixMillis(1),
            named: Some(NodeId::from_bytes([9; 32])),
            older: Zeroizing::new(vec![2; SECRET_BYTES]),
        };
        assert_eq!(largest.encode().unwrap().len(), ORDER_BYTES);
        assert!(Order::decode(&[0xff; 2]).is_err());
    }

    #[test]
    fn words_read_back() {
        let about = About {
            version: 2,
            node: NodeId::from_bytes([3; 32]),
            created: UnixMillis(9),
            passphrase: false,
            recipients: vec!["r".repeat(RECIPIENT_BYTES); RECIPIENTS],
            lineage: Lineage::default(),
        };
        let first =
            About { version: 1, created: UnixMillis(0), passphrase: true, recipients: Vec::new(), ..about.clone() };
        let refusals = Refused::ALL.map(Word::Refused);
        for word in refusals.into_iter().chain([Word::Done, Word::Keystore(about), Word::Keystore(first)]) {
            let bytes = word.encode();
            assert!(bytes.len() <= WORD_BYTES);
            assert_eq!(Word::decode(&bytes).unwrap(), word);
            assert!(Word::decode(&[&bytes[..], &[0]].concat()).is_err());
        }
        assert!(Word::decode(&[]).is_err(), "no word is not a good one");
        assert!(Word::decode(&Writer::new().number(1, 99).finish()).is_err());
    }
}
