//! Receipts: the acceptor's signed word that it took an offer, and a directory's that it routed one (PROTOCOL 4, 7).

use crate::checked::statement::Unverified;
use crate::error::{Result, WireError};
use crate::fields::{Reader, Writer};
use crate::id::{NodeId, UnixMillis};
use crate::label::Label;

const WHAT: &str = "receipt";

/// What a receipt confirms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ReceiptKind {
    /// The recipient accepted the offer: the link is there.
    Accepted = 1,
    /// The directory took the offer for its recipient.
    Routed = 2,
}

/// A verified receipt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// Accepted (by the recipient) or routed (by a directory).
    pub kind: ReceiptKind,
    /// SHA-256 of the offer.
    pub token_id: [u8; 32],
    /// Who offered.
    pub issuer: NodeId,
    /// To whom.
    pub recipient: NodeId,
    /// The signer's clock.
    pub at: UnixMillis,
}

impl Receipt {
    /// The payload to sign.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        Writer::new()
            .number(1, self.kind as u64)
            .bytes(2, &self.token_id)
            .bytes(3, self.issuer.as_bytes())
            .bytes(4, self.recipient.as_bytes())
            .number(5, self.at.0)
            .finish()
    }

    /// Verifies a receipt by `signer`.
    ///
    /// # Errors
    /// Malformed, bad signature, or signed by another than `signer`.
    pub fn verify(bytes: &[u8], signer: &NodeId) -> Result<Self> {
        let statement = Unverified::decode(WHAT, bytes)?.verify(Label::Receipt, WHAT)?;
        if statement.signer() != *signer {
            return Err(WireError::WrongSigner { what: WHAT });
        }
        let mut reader = Reader::new(WHAT, statement.payload());
        let kind = match reader.number(1)? {
            1 => ReceiptKind::Accepted,
            2 => ReceiptKind::Routed,
            _ => return Err(WireError::Unsupported { what: WHAT }),
        };
        let receipt = Self {
            kind,
            token_id: reader.array(2)?,
            issuer: NodeId::from_bytes(reader.array(3)?),
            recipient: NodeId::from_bytes(reader.array(4)?),
            at: UnixMillis(reader.number(5)?),
        };
        reader.finish()?;
        if receipt.kind == ReceiptKind::Accepted && receipt.recipient != *signer {
            return Err(WireError::WrongSigner { what: WHAT });
        }
        Ok(receipt)
    }
}
