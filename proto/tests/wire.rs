//! Holds our strict codec against generated protobuf types, and signed statements against every kind of change.
#![cfg(feature = "grpc")]
#![allow(clippy::unwrap_used, reason = "tests")]

use ed25519_dalek::{Signer, SigningKey};
use openred_proto::checked::card::{Card, CardFields, Prekey, Succession, prekey_id};
use openred_proto::checked::direct::{DirectGreeting, DirectInbound, DirectRequest, encode_hello};
use openred_proto::checked::handshake::{
    HandshakeCookie, HandshakeFinalize, HandshakeRequest, HandshakeVerify, Inbound, RequestAnswer, RequestPayload,
    SenderPayload,
};
use openred_proto::checked::link_sync::LinkSync;
use openred_proto::checked::offer::{Offer, RoutingHeader, SealedHeader};
use openred_proto::checked::receipt::{Receipt, ReceiptKind};
use openred_proto::checked::session::{Accept, RequestHead, ResponseHead};
use openred_proto::checked::statement;
use openred_proto::checked::static_certificate::StaticCertificate;
use openred_proto::checked::succession::Lineage;
use openred_proto::error::WireError;
use openred_proto::http_signature::SignatureInput;
use openred_proto::id::{HandshakeId, LinkId, NodeId, PrekeyId, UnixMillis};
use openred_proto::label::{Label, signed_bytes};
use openred_proto::limits::{CARD_LIFE, CLOCK_GRACE, OFFER_BODY_BYTES, XWING_CIPHERTEXT_BYTES};
use openred_proto::method::{Method, MethodSet};
use openred_proto::wire;
use prost::Message;

const NOW: UnixMillis = UnixMillis(1_790_000_000_000);

fn key(byte: u8) -> SigningKey {
    SigningKey::from_bytes(&[byte; 32])
}

fn id(key: &SigningKey) -> NodeId {
    NodeId::from_bytes(key.verifying_key().to_bytes())
}

fn signed(label: Label, payload: &[u8], key: &SigningKey) -> Vec<u8> {
    statement::encode(payload, &id(key), &key.sign(&signed_bytes(label, payload)).to_bytes())
}

fn card() -> Card {
    let key_bytes = vec![9; 1216];
    Card {
        node_id: id(&key(1)),
        sequence: NOW.0,
        issued_at: NOW,
        expires_at: NOW.plus(CARD_LIFE),
        fields: CardFields {
            endpoints: vec!["http://127.0.0.1:7000".into(), "https://[::1]:1".into()],
            name: "alice".into(),
            sector: "blue".into(),
            listed: true,
        },
        suites: MethodSet::ALL,
        prekey: Prekey { id: prekey_id(&key_bytes), key: key_bytes, not_before: NOW, not_after: NOW.plus(CARD_LIFE) },
        lineage: Lineage::default(),
        methods: Vec::new(),
    }
}

/// Generated types read our bytes, and write the same ones.
fn same<M: Message + Default>(ours: &[u8]) -> M {
    let theirs = M::decode(ours).unwrap();
    assert_eq!(theirs.encode_to_vec(), ours);
    theirs
}

#[test]
fn generated_types_read_and_write_the_same_bytes() {
    let card = card();
    let read: wire::Card = same(&card.encode());
    assert_eq!((read.version, read.sequence, read.endpoints.len(), read.listed), (1, card.sequence, 2, true));
    assert_eq!(read.prekey.unwrap().key, card.prekey.key);
    let certificate = StaticCertificate {
        node_id: card.node_id,
        method: Method::Delta,
        key: [3; 32],
        not_before: NOW,
        not_after: NOW,
    };
    assert_eq!(same::<wire::StaticCertificate>(&certificate.encode()).method, 4);
    let routing = RoutingHeader {
        issuer: card.node_id,
        recipient: id(&key(2)),
        prekey: card.prekey.id,
        psk: Some(LinkId::from_bytes([5; 16])),
        expiry: NOW,
    };
    assert_eq!(same::<wire::RoutingHeader>(&routing.encode()).psk, [5; 16][..]);
    let request = HandshakeRequest { tag: [1; 16], mac1: [2; 16], cookie: None, noise: vec![4; 99] };
    assert_eq!(same::<wire::HandshakeInbound>(&request.encode()).request.unwrap().noise, vec![4; 99]);
    assert_eq!(Inbound::decode(&request.encode()).unwrap(), Inbound::Request(request.clone()));
    let shown = HandshakeRequest { cookie: Some([3; 16]), ..request.clone() };
    assert_eq!(same::<wire::HandshakeInbound>(&shown.encode()).request.unwrap().cookie, vec![3; 16]);
    assert_eq!(Inbound::decode(&shown.encode()).unwrap(), Inbound::Request(shown.clone()));
    assert_eq!(shown.without_cookie(), request.without_cookie());
    assert_eq!(request.encode()[3..], request.without_cookie(), "as it stands in the message");
    let cookie = HandshakeCookie { nonce: [5; 24], sealed: [6; 32] };
    same::<wire::HandshakeCookie>(&cookie.encode());
    assert_eq!(RequestAnswer::decode(&cookie.encode()).unwrap(), RequestAnswer::Cookie(cookie));
    let direct = DirectRequest { method: Method::Delta, mac1: [2; 16], cookie: None, noise: vec![4; 99] };
    assert_eq!(same::<wire::HandshakeInbound>(&direct.encode()).request.unwrap().suite, vec![4]);
    assert_eq!(direct.encode()[3..], direct.without_cookie(), "as it stands in the message");
    let greeting = DirectGreeting { node: id(&key(3)), suites: MethodSet::ALL };
    assert_eq!(same::<wire::DirectGreeting>(&greeting.encode()).suites, 15);
    let handshake = HandshakeId::from_bytes([8; 16]);
    let finalize = HandshakeFinalize { handshake, noise: vec![1; 64] };
    assert!(same::<wire::HandshakeInbound>(&finalize.encode()).finalize.is_some());
    assert_eq!(Inbound::decode(&finalize.encode()).unwrap(), Inbound::Finalize(finalize));
    let verify = HandshakeVerify { handshake, noise: vec![1; 96] };
    same::<wire::HandshakeReply>(&verify.encode());
    assert_eq!(HandshakeVerify::decode(&verify.encode()).unwrap(), verify);
    assert_eq!(RequestAnswer::decode(&verify.encode()).unwrap(), RequestAnswer::Verify(verify));
    let head = RequestHead { module: "files".into(), path: "/x".into(), length: Some(0), ..RequestHead::default() };
    assert_eq!(same::<wire::RequestHead>(&head.encode()).length_plus_one, 1);
    assert_eq!(RequestHead::decode(&head.encode()).unwrap(), head);
    let head = ResponseHead { status: 200, length: None, ..ResponseHead::default() };
    same::<wire::ResponseHead>(&head.encode());
    assert_eq!(ResponseHead::decode(&head.encode()).unwrap(), head);
    for audited in [false, true] {
        let accept = Accept { refusal: 0, match_proof: vec![1; 32], audited };
        assert_eq!(same::<wire::Accept>(&accept.encode()).audited, u64::from(audited));
        assert_eq!(Accept::decode(&accept.encode()).unwrap(), accept);
    }
}

#[test]
fn payloads_inside_noise_keep_their_shape() {
    let request = RequestPayload { timestamp: NOW, kem_key: vec![1; 1184] };
    assert_eq!(RequestPayload::decode(&request.encode()).unwrap(), request);
    let sender = SenderPayload {
        kem_ciphertext: vec![2; 1088],
        certificate: vec![3; 100],
        card_sequence: 4,
        directory_head: vec![5; 32],
    };
    assert_eq!(SenderPayload::decode_verify(&sender.encode()).unwrap(), sender);
    assert!(SenderPayload::decode_finalize(&sender.encode()).is_err(), "FINALIZE carries no ciphertext");
    let finalize = SenderPayload { kem_ciphertext: vec![], ..sender.clone() };
    assert_eq!(SenderPayload::decode_finalize(&finalize.encode()).unwrap(), finalize);
    assert!(SenderPayload::decode_verify(&finalize.encode()).is_err(), "VERIFY carries one");
    let short_head = SenderPayload { directory_head: vec![5; 31], ..sender };
    assert!(SenderPayload::decode_verify(&short_head.encode()).is_err());
}

/// `proto/vectors/handshake`: bodies of `POST /p2p/handshake` (REQUEST, FINALIZE) and of its first answer (VERIFY).
#[test]
fn handshake_vectors() {
    let read = |name: &str| -> Vec<serde_json::Value> {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("vectors/handshake").join(name);
        let file: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        file["cases"].as_array().unwrap().clone()
    };
    let decode = |case: &serde_json::Value| {
        let bytes = hex::decode(case["bytes"].as_str().unwrap()).unwrap();
        match case["message"].as_str().unwrap() {
            "VERIFY" => HandshakeVerify::decode(&bytes).map(|verify| verify.noise),
            "COOKIE" => RequestAnswer::decode(&bytes).map(|answer| match answer {
                RequestAnswer::Cookie(cookie) => [&cookie.nonce[..], &cookie.sealed].concat(),
                RequestAnswer::Verify(_) => panic!("{case}"),
            }),
            message => Inbound::decode(&bytes).map(|inbound| match (message, inbound) {
                ("REQUEST", Inbound::Request(request)) => request.noise,
                ("FINALIZE", Inbound::Finalize(finalize)) => finalize.noise,
                (_, other) => panic!("{other:?}"),
            }),
        }
    };
    let (accepts, rejects) = (read("accept.json"), read("reject.json"));
    assert!(rejects.len() > accepts.len(), "more rejects than accepts");
    for case in accepts {
        let text = |name: &str| case[name].as_str().unwrap_or_default();
        let said = [text("noise"), text("nonce"), text("sealed")].concat();
        assert_eq!(hex::encode(decode(&case).unwrap()), said, "{case}");
        if let Some(cookie) = case["cookie"].as_str() {
            let bytes = hex::decode(text("bytes")).unwrap();
            let Ok(Inbound::Request(request)) = Inbound::decode(&bytes) else { panic!("{case}") };
            assert_eq!(hex::encode(request.cookie.unwrap()), cookie);
            assert_eq!(request.encode(), bytes);
        }
    }
    for case in rejects {
        assert!(matches!(decode(&case), Err(WireError::Malformed { .. })), "{case}");
    }
}

/// `proto/vectors/handshake/direct-bodies.json`: what direct contact posts first, and what it is greeted with.
#[test]
fn direct_bodies_vectors() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("vectors/handshake/direct-bodies.json");
    let file: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let (mut right, mut wrong) = (0, 0);
    for case in file["cases"].as_array().unwrap() {
        let bytes = hex::decode(case["bytes"].as_str().unwrap()).unwrap();
        let again = match case["message"].as_str().unwrap() {
            "GREETING" => DirectGreeting::decode(&bytes).map(|greeting| greeting.encode()),
            message => Inbound::decode(&bytes).map(|inbound| match (message, inbound) {
                ("HELLO", Inbound::Direct(DirectInbound::Hello)) => encode_hello(),
                ("REQUEST", Inbound::Direct(DirectInbound::Request(request))) => request.encode(),
                (_, other) => panic!("{other:?}"),
            }),
        };
        let accept = case["accept"].as_bool().unwrap();
        assert_eq!(again.ok(), accept.then_some(bytes), "{case}");
        *(if accept { &mut right } else { &mut wrong }) += 1;
    }
    assert!(right > 0 && wrong > right, "more rejects than accepts");
}

/// `proto/vectors/link-sync`: lists of links. The generated type reads and writes the right ones alike.
#[test]
fn link_sync_vectors() {
    let read = |name: &str| -> Vec<serde_json::Value> {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("vectors/link-sync").join(name);
        let file: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        file["cases"].as_array().unwrap().clone()
    };
    let (accepts, rejects) = (read("accept.json"), read("reject.json"));
    assert!(rejects.len() > accepts.len(), "more rejects than accepts");
    for case in accepts {
        let bytes = hex::decode(case["bytes"].as_str().unwrap()).unwrap();
        assert_eq!(LinkSync::decode(&bytes).unwrap().encode(), bytes, "{case}");
        same::<wire::LinkSync>(&bytes);
    }
    for case in rejects {
        assert!(LinkSync::decode(&hex::decode(case["bytes"].as_str().unwrap()).unwrap()).is_err(), "{case}");
    }
}

#[test]
fn every_flipped_bit_of_a_signed_card_is_refused() {
    let bytes = signed(Label::Card, &card().encode(), &key(1));
    assert_eq!(Card::verify(&bytes, NOW).unwrap(), card());
    // The prekey's 1,216 bytes are alike: every 37th bit of them, every bit of the rest.
    for bit in (0..bytes.len() * 8).filter(|bit| !(200 * 8..1300 * 8).contains(bit) || bit % 37 == 0) {
        let mut changed = bytes.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        assert!(Card::verify(&changed, NOW).is_err(), "bit {bit}");
    }
    for length in 0..bytes.len() {
        assert!(Card::verify(&bytes[..length], NOW).is_err(), "cut to {length}");
    }
    let mut longer = bytes;
    longer.push(0);
    assert!(Card::verify(&longer, NOW).is_err(), "trailing byte");
}

#[test]
fn cards_are_refused_by_name() {
    let verify = |change: fn(&mut Card), signer: u8, now: UnixMillis| {
        let mut card = card();
        change(&mut card);
        Card::verify(&signed(Label::Card, &card.encode(), &key(signer)), now).unwrap_err()
    };
    assert_eq!(verify(|_| (), 2, NOW), WireError::WrongSigner { what: "card" });
    let late = NOW.plus(CARD_LIFE).plus(CLOCK_GRACE).plus(std::time::Duration::from_millis(1));
    assert_eq!(verify(|_| (), 1, late), WireError::OutOfTime { what: "card", early: false });
    let early = NOW.minus(CLOCK_GRACE).minus(std::time::Duration::from_millis(1));
    assert!(matches!(verify(|_| (), 1, early), WireError::OutOfTime { early: true, .. }));
    let far = |card: &mut Card| card.expires_at = NOW.plus(CARD_LIFE * 2);
    assert!(matches!(verify(far, 1, NOW), WireError::Malformed { .. }));
    let ahead = |card: &mut Card| card.sequence += 3 * 3600 * 1000;
    assert!(matches!(verify(ahead, 1, NOW), WireError::Malformed { .. }));
    let endpoint = |card: &mut Card| card.fields.endpoints = vec!["ftp://x".into()];
    assert!(matches!(verify(endpoint, 1, NOW), WireError::Malformed { .. }));
    let many = |card: &mut Card| card.fields.endpoints = vec!["http://x".into(); 9];
    assert!(matches!(verify(many, 1, NOW), WireError::TooLong { .. }));
    let prekey = |card: &mut Card| card.prekey.id = PrekeyId::from_bytes([0x11; 16]);
    assert!(matches!(verify(prekey, 1, NOW), WireError::Malformed { .. }));
    let long = |card: &mut Card| card.fields.name = "x".repeat(64);
    assert!(matches!(verify(long, 1, NOW), WireError::TooLong { .. }));
}

#[test]
fn a_statement_of_one_label_is_nothing_under_another() {
    for label in Label::ALL.into_iter().filter(|label| *label != Label::Card) {
        let bytes = signed(label, &card().encode(), &key(1));
        assert_eq!(Card::verify(&bytes, NOW), Err(WireError::BadSignature { what: "card" }), "{label:?}");
    }
}

#[test]
fn succession_tells_heartbeat_rollback_and_equivocation() {
    let (card, bytes) = (card(), [1, 2]);
    assert_eq!(card.check_succession(&bytes, card.sequence - 1, &[]), Succession::Newer);
    assert_eq!(card.check_succession(&bytes, card.sequence, &bytes), Succession::Same);
    assert_eq!(card.check_succession(&bytes, card.sequence, &[2]), Succession::Equivocation);
    assert_eq!(card.check_succession(&bytes, card.sequence + 1, &bytes), Succession::Rollback);
}

#[test]
fn receipts_are_the_signers_own() {
    let receipt = Receipt {
        kind: ReceiptKind::Accepted,
        token_id: [7; 32],
        issuer: id(&key(1)),
        recipient: id(&key(2)),
        at: NOW,
    };
    let bytes = signed(Label::Receipt, &receipt.encode(), &key(2));
    assert_eq!(Receipt::verify(&bytes, &id(&key(2))).unwrap(), receipt);
    assert_eq!(Receipt::verify(&bytes, &id(&key(3))), Err(WireError::WrongSigner { what: "receipt" }));
    let by_directory = signed(Label::Receipt, &receipt.encode(), &key(3));
    assert!(Receipt::verify(&by_directory, &id(&key(3))).is_err(), "only the recipient can accept");
}

#[test]
fn certificates_hold_for_a_day_and_no_longer() {
    let day = std::time::Duration::from_secs(24 * 3600);
    let mut certificate = StaticCertificate {
        node_id: id(&key(1)),
        method: Method::Beta,
        key: [3; 32],
        not_before: NOW,
        not_after: NOW.plus(day),
    };
    let verify = |certificate: &StaticCertificate, now| {
        StaticCertificate::verify(&signed(Label::Static, &certificate.encode(), &key(1)), now)
    };
    assert_eq!(verify(&certificate, NOW).unwrap(), certificate);
    assert!(verify(&certificate, NOW.plus(day * 2)).is_err(), "expired");
    certificate.not_after = NOW.plus(day * 2);
    assert!(verify(&certificate, NOW).is_err(), "too long a window");
    certificate.node_id = id(&key(2));
    assert!(verify(&certificate, NOW).is_err(), "another node's name");
}

#[test]
fn offers_split_only_at_their_one_size() {
    let routing = RoutingHeader {
        issuer: id(&key(1)),
        recipient: id(&key(2)),
        prekey: PrekeyId::from_bytes([1; 16]),
        psk: None,
        expiry: NOW,
    };
    let bytes = Offer::encode(&routing.encode(), &[2; XWING_CIPHERTEXT_BYTES], &[3; OFFER_BODY_BYTES + 16]);
    assert_eq!(Offer::decode(&bytes).unwrap().routing, routing);
    for length in 0..bytes.len() {
        assert!(Offer::decode(&bytes[..length]).is_err(), "cut to {length}");
    }
    assert!(Offer::decode(&[bytes.clone(), vec![0]].concat()).is_err(), "trailing byte");
    let header = SealedHeader {
        link_id: LinkId::from_bytes([4; 16]),
        method: Method::Gamma,
        epoch: 0,
        not_before: NOW,
        not_after: NOW,
        sequence: 1,
        registered: None,
    };
    let mut body = SealedHeader::encode_body(&header.encode(), &[6; 64]);
    let (split, signature) = SealedHeader::split_body(&body).unwrap();
    assert_eq!((SealedHeader::decode(split).unwrap(), signature), (header, [6; 64]));
    *body.last_mut().unwrap() = 1;
    assert!(SealedHeader::split_body(&body).is_err(), "padding carries nothing");
}

#[test]
fn http_signatures_take_exactly_one_shape() {
    let key = key(1);
    let input = SignatureInput {
        method: "POST".into(),
        target_uri: "https://directory.example/api/v3/nodes/register".into(),
        content_sha256: [1; 32],
        created: NOW.seconds(),
        nonce: [2; 16],
        key_id: id(&key),
    };
    assert_eq!(input.base()[0], 0x22);
    let header = input.signature_input_header();
    let parse = |header: &str| SignatureInput::from_headers("POST", &input.target_uri, [1; 32], header);
    let signature = SignatureInput::signature_header(&key.sign(&input.base()).to_bytes());
    assert_eq!(parse(&header).unwrap(), input);
    parse(&header).unwrap().verify(&signature).unwrap();
    let other_target = SignatureInput::from_headers("POST", "https://other.example/", [1; 32], &header).unwrap();
    assert!(other_target.verify(&signature).is_err());
    let other_body = SignatureInput::from_headers("POST", &input.target_uri, [9; 32], &header).unwrap();
    assert!(other_body.verify(&signature).is_err());
    for (from, to) in [
        ("openred=", "other="),
        ("alg=\"ed25519\"", "alg=\"hmac\""),
        ("openred/1/http", "other"),
        ("\"content-digest\"", "\"date\""),
        (";created=", ";expires=1;created="),
        (";nonce=", ";Nonce="),
    ] {
        assert!(parse(&header.replace(from, to)).is_err(), "{from} -> {to}");
    }
    assert!(parse(&format!("{header} ")).is_err());
}

/// `proto/vectors/session-proof`: words of two sides, right ones and wrong ones.
#[test]
fn session_proof_vectors() {
    use openred_proto::checked::session_proof::SessionProof;
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("vectors/session-proof/proofs.json");
    let file: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let (mut right, mut wrong) = (0, 0);
    for case in file["cases"].as_array().unwrap() {
        let bytes = |name: &str| hex::decode(case[name].as_str().unwrap()).unwrap();
        let verified = SessionProof::verify(&bytes("one"), &bytes("other"));
        if case["accept"].as_bool().unwrap() {
            let proof = verified.unwrap();
            assert_eq!(proof.initiator.as_bytes()[..], bytes("initiator"));
            assert_eq!(proof.responder.as_bytes()[..], bytes("responder"));
            assert_eq!(proof.hash[..], bytes("hash"));
            right += 1;
        } else {
            assert!(verified.is_err(), "{case}");
            wrong += 1;
        }
    }
    assert!(right > 0 && wrong > right, "more rejects than accepts");
}
