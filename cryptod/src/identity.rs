//! The node's identity: one Ed25519 key, and the only place that signs with it.
//!
//! Nothing here takes bytes to sign as they are: each function builds its payload from checked fields and adds its own
//! label (PROTOCOL 1). The two exceptions of the protocol are one: HTTP (RFC 9421), whose base begins with 0x22 and so
//! collides with no label. In: the seed from the keyring. Out: signed statements.

use openred_proto::audit::Checkpoint;
use openred_proto::checked::card::Card;
use openred_proto::checked::check_window;
use openred_proto::checked::module_word::ModuleWord;
use openred_proto::checked::receipt::Receipt;
use openred_proto::checked::session_proof::SessionWord;
use openred_proto::checked::statement;
use openred_proto::checked::static_certificate::StaticCertificate;
use openred_proto::checked::succession::Succession;
use openred_proto::concat::concat;
use openred_proto::error::WireError;
use openred_proto::http_signature::SignatureInput;
use openred_proto::id::{NodeId, UnixMillis};
use openred_proto::label::{Label, signed_bytes};
use openred_proto::limits::{CARD_BYTES, TARGET_URI_BYTES};
use openred_proto::secret::Secret;

use crate::error::{Error, Result};
use crate::signing::SigningKey;

/// Longest HTTP method name that is signed.
const HTTP_METHOD_BYTES: usize = 16;

/// The identity key.
pub struct Identity {
    key: SigningKey,
    node_id: NodeId,
}

/// What an issuer's signature on an offer covers (PROTOCOL 4.3).
#[derive(Clone, Copy, Debug)]
pub struct LinkStatement<'a> {
    /// The routing header's exact bytes.
    pub routing: &'a [u8],
    /// The sealed header's exact bytes.
    pub header: &'a [u8],
    /// The HPKE encapsulated key.
    pub enc: &'a [u8],
    /// SHA-256 of the recipient's prekey.
    pub prekey_hash: &'a [u8; 32],
}

impl LinkStatement<'_> {
    /// The bytes under the label.
    #[must_use]
    pub fn payload(&self) -> Vec<u8> {
        concat(&[self.routing, self.header, self.enc, self.prekey_hash])
    }
}

impl Identity {
    /// The identity of `seed` (RFC 8032's 32-byte private key).
    #[must_use]
    pub fn from_seed(seed: &Secret<32>) -> Self {
        let key = SigningKey::from_seed(seed);
        let node_id = NodeId::from_bytes(key.public());
        Self { key, node_id }
    }

    /// This node.
    #[must_use]
    pub const fn node_id(&self) -> NodeId {
        self.node_id
    }

    /// Signs this node's card.
    ///
    /// # Errors
    /// [`Error::MisuseNotAllowed`] for another node's card; too long when the fields do not fit a card.
    pub fn sign_card(&self, card: &Card) -> Result<Vec<u8>> {
        if card.node_id != self.node_id {
            return Err(Error::MisuseNotAllowed);
        }
        let signed = self.statement(Label::Card, &card.encode());
        if signed.len() > CARD_BYTES {
            return Err(WireError::TooLong { what: "card", limit: CARD_BYTES }.into());
        }
        Ok(signed)
    }

    /// Signs a certificate for one of this node's static keys.
    ///
    /// # Errors
    /// [`Error::MisuseNotAllowed`] for another node's key.
    pub fn sign_static(&self, certificate: &StaticCertificate) -> Result<Vec<u8>> {
        if certificate.node_id != self.node_id {
            return Err(Error::MisuseNotAllowed);
        }
        Ok(self.statement(Label::Static, &certificate.encode()))
    }

    /// Signs the word that this node took an offer.
    ///
    /// # Errors
    /// [`Error::MisuseNotAllowed`] when another node is the recipient.
    pub fn sign_receipt(&self, receipt: &Receipt) -> Result<Vec<u8>> {
        if receipt.recipient != self.node_id {
            return Err(Error::MisuseNotAllowed);
        }
        Ok(self.statement(Label::Receipt, &receipt.encode()))
    }

    /// Signs an offer of this node.
    #[must_use]
    pub fn sign_link(&self, link: &LinkStatement<'_>) -> [u8; 64] {
        self.sign(Label::Link, &link.payload())
    }

    /// Signs that a handshake ended, for `audited` mode.
    #[must_use]
    pub fn sign_session(&self, word: &SessionWord) -> Vec<u8> {
        self.statement(Label::Session, &word.encode())
    }

    /// Signs what a module states in its own domain.
    #[must_use]
    pub fn sign_module(&self, word: &ModuleWord) -> Vec<u8> {
        self.statement(Label::Module, &word.encode())
    }

    /// Signs this identity's word for its successor, or the taking back of it.
    ///
    /// # Errors
    /// [`Error::MisuseNotAllowed`] when another node is the one that speaks.
    pub fn sign_succession(&self, word: &Succession) -> Result<Vec<u8>> {
        if word.old != self.node_id {
            return Err(Error::MisuseNotAllowed);
        }
        Ok(word.signed(&self.sign(Label::Succession, &word.encode())))
    }

    /// Signs a place in this node's audit trail.
    #[must_use]
    pub fn sign_audit(&self, checkpoint: &Checkpoint) -> [u8; 64] {
        self.sign(Label::Audit, &checkpoint.encode())
    }

    /// Signs an HTTP request that acts for this node (RFC 9421; PROTOCOL 7), made about `now`: a caller cannot lay in
    /// signatures for a time when it will not be asked any more.
    ///
    /// # Errors
    /// [`Error::MisuseNotAllowed`] when `key_id` is another node, or a field could break out of its line of the base;
    /// [`WireError::OutOfTime`] when `created` is more than [`CLOCK_GRACE`](openred_proto::limits::CLOCK_GRACE) from `now`.
    pub fn sign_http(&self, input: &SignatureInput, now: UnixMillis) -> Result<[u8; 64]> {
        let method = input.method.as_bytes();
        let method_is_plain =
            (1..=HTTP_METHOD_BYTES).contains(&method.len()) && method.iter().all(u8::is_ascii_uppercase);
        // RFC 9421 §2.5: one component a line. A line break in a field would let it pose as other components.
        let uri = input.target_uri.as_bytes();
        let uri_is_plain = (1..=TARGET_URI_BYTES).contains(&uri.len()) && uri.iter().all(u8::is_ascii_graphic);
        if input.key_id != self.node_id || !method_is_plain || !uri_is_plain {
            return Err(Error::MisuseNotAllowed);
        }
        // A node follows its directory's clock, which may differ from its own; by more than the grace it follows none.
        let created = UnixMillis(input.created.saturating_mul(1000));
        check_window("HTTP request", now, created, created)?;
        Ok(self.key.sign(&input.base()))
    }

    fn statement(&self, label: Label, payload: &[u8]) -> Vec<u8> {
        statement::encode(payload, &self.node_id, &self.sign(label, payload))
    }

    fn sign(&self, label: Label, payload: &[u8]) -> [u8; 64] {
        self.key.sign(&signed_bytes(label, payload))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use openred_proto::checked::receipt::ReceiptKind;
    use openred_proto::checked::statement::Unverified;
    use openred_proto::checked::succession::Step;
    use openred_proto::label;
    use openred_proto::limits::CLOCK_GRACE;

    use super::*;
    use crate::vectors::{hex_array, read_vectors};

    fn identity() -> Identity {
        Identity::from_seed(&Secret::new([1; 32]))
    }

    /// When [`http`] was made.
    const MADE: UnixMillis = UnixMillis(1_700_000_000_000);

    fn http(identity: &Identity) -> SignatureInput {
        SignatureInput {
            method: "POST".into(),
            target_uri: "https://directory.example/api/v3/nodes/register".into(),
            content_sha256: [3; 32],
            created: 1_700_000_000,
            nonce: [4; 16],
            key_id: identity.node_id(),
        }
    }

    #[test]
    fn did_key_vectors() {
        for value in read_vectors("standards/did-key.json") {
            let text = value["did"].as_str().unwrap();
            let parsed = text.parse::<NodeId>();
            if !value["accept"].as_bool().unwrap() {
                assert!(parsed.is_err(), "{value}");
                continue;
            }
            let identity = Identity::from_seed(&Secret::new(hex_array(&value["seed"])));
            assert_eq!(identity.node_id().to_string(), text);
            assert_eq!(parsed.unwrap(), identity.node_id());
        }
    }

    #[test]
    fn a_statement_of_one_label_verifies_under_no_other() {
        let identity = identity();
        let receipt = Receipt {
            kind: ReceiptKind::Accepted,
            token_id: [7; 32],
            issuer: NodeId::from_bytes([8; 32]),
            recipient: identity.node_id(),
            at: UnixMillis(9),
        };
        let bytes = identity.sign_receipt(&receipt).unwrap();
        assert_eq!(Receipt::verify(&bytes, &identity.node_id()).unwrap(), receipt);
        for other in Label::ALL {
            let verified = Unverified::decode("test", &bytes).unwrap().verify(other, "test");
            assert_eq!(verified.is_ok(), other == Label::Receipt, "{other:?}");
        }
    }

    #[test]
    fn an_http_signature_verifies_under_no_label() {
        let identity = identity();
        let input = http(&identity);
        let signature = identity.sign_http(&input, MADE).unwrap();
        assert!(input.verify(&SignatureInput::signature_header(&signature)).is_ok());
        for label in Label::ALL {
            assert!(label::verify(label, &input.base(), &identity.node_id(), &signature, "test").is_err());
        }
    }

    #[test]
    fn http_fields_cannot_break_out_of_their_line() {
        let identity = identity();
        let refused = [
            SignatureInput { target_uri: "https://a/\n\"@method\": DELETE".into(), ..http(&identity) },
            SignatureInput { target_uri: String::new(), ..http(&identity) },
            SignatureInput { target_uri: "x".repeat(TARGET_URI_BYTES + 1), ..http(&identity) },
            SignatureInput { method: "POST\n".into(), ..http(&identity) },
            SignatureInput { method: "post".into(), ..http(&identity) },
            SignatureInput { method: String::new(), ..http(&identity) },
            SignatureInput { key_id: NodeId::from_bytes([2; 32]), ..http(&identity) },
        ];
        for input in refused {
            assert_eq!(identity.sign_http(&input, MADE), Err(Error::MisuseNotAllowed), "{input:?}");
        }
    }

    #[test]
    fn an_http_request_is_of_now() {
        let identity = identity();
        let sign = |created: UnixMillis| {
            identity.sign_http(&SignatureInput { created: created.seconds(), ..http(&identity) }, MADE).map(drop)
        };
        let second = std::time::Duration::from_secs(1);
        assert_eq!((sign(MADE.plus(CLOCK_GRACE)), sign(MADE.minus(CLOCK_GRACE))), (Ok(()), Ok(())));
        let late = Error::PeerStatement(WireError::OutOfTime { what: "HTTP request", early: false });
        let early = Error::PeerStatement(WireError::OutOfTime { what: "HTTP request", early: true });
        assert_eq!(sign(MADE.plus(CLOCK_GRACE + second)), Err(early), "for later");
        assert_eq!(sign(MADE.minus(CLOCK_GRACE + second)), Err(late));
        for far in [UnixMillis(0), UnixMillis(u64::MAX)] {
            assert!(sign(far).is_err());
        }
    }

    #[test]
    fn nothing_is_signed_for_another_node() {
        let other = Identity::from_seed(&Secret::new([2; 32])).node_id();
        let receipt = Receipt {
            kind: ReceiptKind::Accepted,
            token_id: [7; 32],
            issuer: identity().node_id(),
            recipient: other,
            at: UnixMillis(9),
        };
        assert_eq!(identity().sign_receipt(&receipt), Err(Error::MisuseNotAllowed));
        let certificate = StaticCertificate {
            node_id: other,
            method: openred_proto::method::Method::Alpha,
            key: [0; 32],
            not_before: UnixMillis(1),
            not_after: UnixMillis(2),
        };
        assert_eq!(identity().sign_static(&certificate), Err(Error::MisuseNotAllowed));
        let word = Succession { step: Step::Succeed, old: other, new: identity().node_id(), sequence: 1 };
        assert_eq!(identity().sign_succession(&word), Err(Error::MisuseNotAllowed));
    }
}
