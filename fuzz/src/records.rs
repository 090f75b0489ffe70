//! What peers and directories send: statements, offers, messages of a handshake, signed requests.
//!
//! Where a signature stands before a decoder, the target signs its bytes itself, so that the decoder behind it is reached.
//! Every decoder of the contract is canonical: what it takes, it would have written.

use ed25519_dalek::{Signer, SigningKey};
use openred_proto::checked::card::Card;
use openred_proto::checked::direct::{DirectInbound, encode_hello};
use openred_proto::checked::handshake::{
    HandshakeFinalize, HandshakeRequest, Inbound, RequestAnswer, RequestPayload, SenderPayload,
};
use openred_proto::checked::link_sync::LinkSync;
use openred_proto::checked::module_word::ModuleWord;
use openred_proto::checked::offer::{Offer, RoutingHeader, SealedHeader};
use openred_proto::checked::receipt::Receipt;
use openred_proto::checked::statement::{self, Unverified};
use openred_proto::checked::static_certificate::StaticCertificate;
use openred_proto::checked::succession::{Lineage, Succession};
use openred_proto::http_signature::SignatureInput;
use openred_proto::id::{NodeId, UnixMillis};
use openred_proto::label::{Label, signed_bytes};
use openred_proto::method::description::MethodDescription;

/// A time in 2026.
pub(crate) const NOW: UnixMillis = UnixMillis(1_780_000_000_000);

/// The signer of what the targets sign.
pub(crate) fn key() -> SigningKey {
    SigningKey::from_bytes(&[7; 32])
}

pub(crate) fn signer() -> NodeId {
    NodeId::from_bytes(key().verifying_key().to_bytes())
}

fn signed(label: Label, payload: &[u8]) -> Vec<u8> {
    let signature = key().sign(&signed_bytes(label, payload)).to_bytes();
    statement::encode(payload, &signer(), &signature)
}

/// The first byte says which reader; without one there is nothing to read.
pub(crate) fn choice(bytes: &[u8], of: u8) -> (u8, &[u8]) {
    bytes.split_first().map_or((0, bytes), |(first, rest)| (first % of, rest))
}

pub(crate) fn statements(bytes: &[u8]) {
    let (which, bytes) = choice(bytes, 7);
    match which {
        0 => as_received(bytes),
        5 => {
            if let Ok(description) = MethodDescription::decode(bytes) {
                assert_eq!(description.encode(), bytes, "a description has one encoding");
                if let Ok(vetted) = description.vet() {
                    assert!(
                        (description.key_bits, description.tag_bits) == (256, 128) && description.post_quantum == 1
                    );
                    assert_eq!(vetted.id, description.id());
                }
            }
        }
        6 => {
            if let Ok(word) = ModuleWord::decode(bytes) {
                assert_eq!(word.encode(), bytes, "a module's word has one encoding");
                let signed = signed(Label::Module, bytes);
                let other = ModuleWord::verify(&signed, &signer(), "other", "domain", &[]);
                assert!(other.is_err() || word.module == "other");
            }
        }
        1 => {
            let statement = signed(Label::Card, bytes);
            if let Ok(card) = Card::verify(&statement, NOW) {
                assert_eq!(card.encode(), bytes, "a card has one encoding");
                assert_eq!(card.node_id, signer());
                let _ = card.check_succession(&statement, card.sequence, &statement);
            }
        }
        2 => {
            if let Ok(certificate) = StaticCertificate::verify(&signed(Label::Static, bytes), NOW) {
                assert_eq!(certificate.encode(), bytes, "a certificate has one encoding");
            }
        }
        3 => {
            if let Ok(receipt) = Receipt::verify(&signed(Label::Receipt, bytes), &signer()) {
                assert_eq!(receipt.encode(), bytes, "a receipt has one encoding");
            }
        }
        _ => {
            if let Ok(word) = Succession::verify(&signed(Label::Succession, bytes)) {
                assert_eq!((word.encode().as_slice(), word.old), (bytes, signer()), "a succession has one encoding");
                let lineage = Lineage::default().with(signed(Label::Succession, bytes)).expect("one word is a chain");
                let _ = lineage.follow(|_| None, NOW);
            }
        }
    }
}

fn as_received(bytes: &[u8]) {
    let read = [
        Card::verify(bytes, NOW).is_ok(),
        StaticCertificate::verify(bytes, NOW).is_ok(),
        Receipt::verify(bytes, &signer()).is_ok(),
    ];
    assert!(read.into_iter().filter(|read| *read).count() <= 1, "one statement, one label");
    if let Ok(unverified) = Unverified::decode("statement", bytes) {
        let labels = Label::ALL.into_iter().filter(|label| unverified.clone().verify(*label, "statement").is_ok());
        assert!(labels.count() <= 1, "one signature, one label");
    }
}

pub(crate) fn offers(bytes: &[u8]) {
    let (which, bytes) = choice(bytes, 5);
    match which {
        4 => {
            if let Ok(list) = LinkSync::decode(bytes) {
                assert_eq!(list.encode(), bytes, "a list has one encoding");
            }
        }
        0 => {
            if let Ok(offer) = Offer::decode(bytes) {
                assert_eq!(Offer::encode(&offer.routing_bytes, &offer.enc, &offer.sealed), bytes);
                assert_eq!(offer.routing.encode(), offer.routing_bytes);
            }
        }
        1 => {
            if let Ok(routing) = RoutingHeader::decode(bytes) {
                assert_eq!(routing.encode(), bytes);
            }
        }
        2 => {
            if let Ok(header) = SealedHeader::decode(bytes) {
                assert_eq!(header.encode(), bytes);
            }
        }
        _ => {
            if let Ok((header, signature)) = SealedHeader::split_body(bytes) {
                assert_eq!(SealedHeader::encode_body(header, &signature), bytes);
            }
        }
    }
}

pub(crate) fn handshake(bytes: &[u8]) {
    let (which, bytes) = choice(bytes, 5);
    let again = match which {
        0 => Inbound::decode(bytes).map(|inbound| match inbound {
            Inbound::Request(request) => HandshakeRequest::encode(&request),
            Inbound::Finalize(finalize) => HandshakeFinalize::encode(&finalize),
            Inbound::Direct(DirectInbound::Hello) => encode_hello(),
            Inbound::Direct(DirectInbound::Request(request)) => request.encode(),
        }),
        1 => RequestAnswer::decode(bytes).map(|answer| match answer {
            RequestAnswer::Verify(verify) => verify.encode(),
            RequestAnswer::Cookie(cookie) => cookie.encode(),
        }),
        2 => RequestPayload::decode(bytes).map(|payload| payload.encode()),
        3 => SenderPayload::decode_verify(bytes).map(|payload| payload.encode()),
        _ => SenderPayload::decode_finalize(bytes).map(|payload| payload.encode()),
    };
    if let Ok(again) = again {
        assert_eq!(again, bytes, "a message has one encoding");
    }
}

/// Two texts, with a line end between them: `Signature-Input` and `Signature`.
pub(crate) fn http_signature(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let (input, signature) = text.split_once('\n').unwrap_or((text, ""));
    let Ok(read) = SignatureInput::from_headers(METHOD, TARGET, [3; 32], input) else { return };
    assert_eq!(read.signature_input_header(), input, "nothing else can hide in the header");
    let _ = read.verify(signature);
    let own = SignatureInput { key_id: signer(), ..read };
    let made = SignatureInput::signature_header(&key().sign(&own.base()).to_bytes());
    assert!(own.verify(&made).is_ok());
    let other = SignatureInput { method: "GET".into(), ..own };
    assert!(other.verify(&made).is_err(), "another method is another request");
}

const METHOD: &str = "POST";
const TARGET: &str = "https://directory.example/api/v3/nodes/register";

/// Real values of all of these.
pub(crate) mod corpus {
    use std::fs;
    use std::path::Path;

    use openred_proto::checked::card::{CardFields, Prekey, prekey_id};
    use openred_proto::checked::handshake::{HandshakeCookie, HandshakeVerify};
    use openred_proto::checked::link_sync::{SyncEntry, SyncState};
    use openred_proto::checked::receipt::ReceiptKind;
    use openred_proto::checked::succession::Step;
    use openred_proto::id::{HandshakeId, LinkId, PrekeyId};
    use openred_proto::limits::{MLKEM_CIPHERTEXT_BYTES, MLKEM_PUBLIC_BYTES, XWING_PUBLIC_BYTES};
    use openred_proto::method::{Method, MethodSet};

    use super::*;
    use crate::corpus::numbered;

    const HOUR: u64 = 3_600_000;

    fn card() -> Card {
        let public = vec![5; XWING_PUBLIC_BYTES];
        let prekey =
            Prekey { id: prekey_id(&public), key: public, not_before: NOW, not_after: UnixMillis(NOW.0 + 24 * HOUR) };
        let fields = CardFields {
            endpoints: vec!["http://192.0.2.7:7690".into(), "https://node.example/p".into()],
            name: "alice".into(),
            sector: "north".into(),
            listed: true,
        };
        let (sequence, issued_at, expires_at) = (NOW.0, NOW, UnixMillis(NOW.0 + 24 * HOUR));
        Card {
            node_id: signer(),
            sequence,
            issued_at,
            expires_at,
            fields,
            suites: MethodSet::ALL,
            prekey,
            lineage: Lineage::default(),
            methods: Vec::new(),
        }
    }

    fn after(which: u8, bytes: &[u8]) -> Vec<u8> {
        [&[which], bytes].concat()
    }

    pub(crate) fn statements() -> Vec<(String, Vec<u8>)> {
        let card = card();
        let certificate = StaticCertificate {
            node_id: signer(),
            method: Method::Alpha,
            key: [9; 32],
            not_before: UnixMillis(NOW.0 - 3 * HOUR),
            not_after: UnixMillis(NOW.0 + 24 * HOUR),
        };
        let receipt = |kind| Receipt {
            kind,
            token_id: [4; 32],
            issuer: NodeId::from_bytes([2; 32]),
            recipient: signer(),
            at: NOW,
        };
        let bare = Card { fields: CardFields::default(), ..card.clone() };
        let word = |step| Succession { step, old: signer(), new: NodeId::from_bytes([2; 32]), sequence: NOW.0 };
        let back = signed(Label::Succession, &word(Step::TakeBack).encode());
        let (module, domain) = ("greet".to_owned(), "words.v1".to_owned());
        let module_word = ModuleWord { module, domain, digest: [8; 32], length: 300, at: NOW };
        let floor = MethodDescription::floor("psi");
        let lineage = Lineage::verify([&back[..]], signer()).expect("a word of the signer's");
        numbered([
            after(0, &signed(Label::Card, &card.encode())),
            after(0, &signed(Label::Static, &certificate.encode())),
            after(0, &signed(Label::Receipt, &receipt(ReceiptKind::Accepted).encode())),
            after(1, &card.encode()),
            after(1, &bare.encode()),
            after(2, &certificate.encode()),
            after(3, &receipt(ReceiptKind::Accepted).encode()),
            after(3, &receipt(ReceiptKind::Routed).encode()),
            after(4, &word(Step::Succeed).encode()),
            after(4, &word(Step::TakeBack).encode()),
            after(1, &Card { lineage, ..card }.encode()),
            after(5, &MethodDescription::floor("omega").encode()),
            after(5, &MethodDescription { transforms: vec![4, 3, 2, 1], tag_bits: 64, ..floor }.encode()),
            after(6, &module_word.encode()),
        ])
    }

    /// Offers of the vectors: the real ones, and some of those that are refused.
    pub(crate) fn offers() -> Vec<(String, Vec<u8>)> {
        let sealed = SealedHeader {
            link_id: LinkId::from_bytes([1; 16]),
            method: Method::Delta,
            epoch: 494_444,
            not_before: NOW,
            not_after: UnixMillis(NOW.0 + 24 * HOUR),
            sequence: NOW.0,
            registered: None,
        };
        let routing = |psk| RoutingHeader {
            issuer: signer(),
            recipient: NodeId::from_bytes([2; 32]),
            prekey: PrekeyId::from_bytes([3; 16]),
            psk,
            expiry: UnixMillis(NOW.0 + HOUR),
        };
        let entry = |link, state, receipt| SyncEntry { link: LinkId::from_bytes([link; 16]), state, receipt };
        let list = LinkSync {
            entries: vec![
                entry(1, SyncState::Live, vec![7; 240]),
                entry(2, SyncState::Offered, Vec::new()),
                entry(3, SyncState::Over, Vec::new()),
            ],
        };
        let mut inputs: Vec<_> =
            ["accept", "reject"].iter().flat_map(|kind| vector_offers(kind).into_iter().take(3)).collect();
        inputs.extend([
            after(1, &routing(None).encode()),
            after(1, &routing(Some(LinkId::from_bytes([4; 16]))).encode()),
            after(2, &sealed.encode()),
            after(3, &SealedHeader::encode_body(&sealed.encode(), &[6; 64])),
            after(4, &list.encode()),
        ]);
        numbered(inputs)
    }

    fn vector_offers(kind: &str) -> Vec<Vec<u8>> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../proto/vectors/offer/{kind}.json"));
        let vectors: serde_json::Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
        let cases = vectors["cases"].as_array().unwrap();
        let offers = cases.iter().filter_map(|case| hex::decode(case["offer"].as_str()?).ok());
        offers.map(|offer| after(0, &offer)).collect()
    }

    pub(crate) fn handshake() -> Vec<(String, Vec<u8>)> {
        let id = HandshakeId::from_bytes([5; 16]);
        let request = |cookie| HandshakeRequest { tag: [1; 16], mac1: [2; 16], cookie, noise: vec![3; 1248] }.encode();
        let payload = |kem: usize, head: usize| SenderPayload {
            kem_ciphertext: vec![8; kem],
            certificate: vec![9; 180],
            card_sequence: NOW.0,
            directory_head: vec![10; head],
        };
        numbered([
            after(0, &request(None)),
            after(0, &request(Some([4; 16]))),
            after(0, &HandshakeFinalize { handshake: id, noise: vec![6; 300] }.encode()),
            after(1, &HandshakeVerify { handshake: id, noise: vec![7; 1500] }.encode()),
            after(2, &RequestPayload { timestamp: NOW, kem_key: vec![8; MLKEM_PUBLIC_BYTES] }.encode()),
            after(3, &payload(MLKEM_CIPHERTEXT_BYTES, 32).encode()),
            after(4, &payload(0, 0).encode()),
            after(1, &HandshakeCookie { nonce: [11; 24], sealed: [12; 32] }.encode()),
        ])
    }

    pub(crate) fn http_signature() -> Vec<(String, Vec<u8>)> {
        let input = SignatureInput {
            method: METHOD.into(),
            target_uri: TARGET.into(),
            content_sha256: [3; 32],
            created: NOW.seconds(),
            nonce: [0x5a; 16],
            key_id: signer(),
        };
        let signature = SignatureInput::signature_header(&key().sign(&input.base()).to_bytes());
        let header = input.signature_input_header();
        let shuffled = header.replace("alg=\"ed25519\";", "") + ";alg=\"ed25519\"";
        numbered([format!("{header}\n{signature}"), header, format!("{shuffled}\n{signature}")].map(String::into_bytes))
    }
}
