//! Published Noise vectors for the four suites, over our resolver: each message both ways, the hash, and the split keys.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::Path;

use serde::Deserialize;
use snow::params::NoiseParams;
use snow::resolvers::CryptoResolver;

use super::*;
use crate::handshake::resolver::Resolver;

#[derive(Deserialize)]
struct Vector {
    method: String,
    protocol_name: String,
    init_prologue: String,
    init_psks: Vec<String>,
    init_static: String,
    init_ephemeral: String,
    resp_static: String,
    resp_ephemeral: String,
    handshake_hash: String,
    messages: Vec<Message>,
}

#[derive(Deserialize)]
struct Message {
    payload: String,
    ciphertext: String,
}

fn bytes(hex_text: &str) -> Vec<u8> {
    hex::decode(hex_text).unwrap()
}

fn key(hex_text: &str) -> Secret<32> {
    Secret::new(bytes(hex_text).try_into().unwrap())
}

fn start(vector: &Vector, name: &'static str, side: Side) -> Noise {
    let (own_static, ephemeral) = match side {
        Side::Initiator => (&vector.init_static, &vector.init_ephemeral),
        Side::Responder => (&vector.resp_static, &vector.resp_ephemeral),
    };
    let psks: Vec<_> = vector.init_psks.iter().map(|psk| key(psk)).collect();
    let (psk0, psk3) = match psks.as_slice() {
        [psk0, psk3] => (Some(psk0), psk3),
        [psk3] => (None, psk3),
        _ => panic!("one or two keys"),
    };
    let prologue = bytes(&vector.init_prologue);
    let static_secret = key(own_static);
    let start =
        Start { side, name, prologue: &prologue, static_secret: &static_secret, ephemeral: key(ephemeral), psk0 };
    let mut noise = Noise::start(start).unwrap();
    noise.set_psk3(psk3).unwrap();
    noise
}

fn check(vector: &Vector) {
    let name: &'static str = vector.protocol_name.clone().leak();
    let mut initiator = start(vector, name, Side::Initiator);
    let mut responder = start(vector, name, Side::Responder);
    for (index, message) in vector.messages.iter().take(3).enumerate() {
        let (writer, reader) =
            if index % 2 == 0 { (&mut initiator, &mut responder) } else { (&mut responder, &mut initiator) };
        let written = writer.write(&bytes(&message.payload)).unwrap();
        assert_eq!(hex::encode(&written), message.ciphertext, "{name}, message {index}");
        assert_eq!(*reader.read(&written).unwrap(), bytes(&message.payload));
    }
    let (ours, theirs) = (initiator.split().unwrap(), responder.split().unwrap());
    assert_eq!(hex::encode(&ours.hash), vector.handshake_hash, "{name}");
    assert_eq!(ours.hash, theirs.hash);
    assert!(ours.from_initiator == theirs.from_initiator && ours.from_responder == theirs.from_responder);
    check_transport(vector, name, &ours);
}

/// The vectors' transport messages prove the raw split: message 3 is the responder's, and each direction counts from 0.
fn check_transport(vector: &Vector, name: &'static str, split: &Split) {
    let params: NoiseParams = name.parse().unwrap();
    let resolver = Resolver::new(Secret::new([0; 32]));
    for (index, message) in vector.messages.iter().enumerate().skip(3) {
        let mut cipher = resolver.resolve_cipher(&params.cipher).unwrap();
        let from_responder = index % 2 == 1;
        cipher.set(if from_responder { split.from_responder.expose() } else { split.from_initiator.expose() });
        let counter = (index as u64 - 3) / 2;
        let mut sealed = vec![0; bytes(&message.payload).len() + 16];
        cipher.encrypt(counter, &[], &bytes(&message.payload), &mut sealed);
        assert_eq!(hex::encode(&sealed), message.ciphertext, "{name}, transport message {index}");
    }
}

#[test]
fn published_vectors_of_every_suite_and_both_patterns() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../proto/vectors/noise");
    let mut seen = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let text = std::fs::read_to_string(entry.unwrap().path()).unwrap();
        let vector: Vector = serde_json::from_str(&text).unwrap();
        check(&vector);
        seen.push((vector.method.clone(), vector.init_psks.len()));
    }
    seen.sort();
    let wanted =
        ["alpha", "beta", "delta", "gamma"].iter().flat_map(|method| [1, 2].map(|psks| ((*method).to_owned(), psks)));
    assert_eq!(seen, wanted.collect::<Vec<_>>());
}

#[test]
fn a_key_of_low_order_aborts() {
    let mut own = Resolver::new(Secret::new([0; 32])).resolve_dh(&"25519".parse().unwrap()).unwrap();
    own.set(&[9; 32]);
    // The points of order 1, 2, 4 and 8 and their non-canonical encodings (RFC 7748, section 6.1, and the curve's list).
    let low_order = [
        "0000000000000000000000000000000000000000000000000000000000000000",
        "0100000000000000000000000000000000000000000000000000000000000000",
        "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
        "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    ];
    for point in low_order {
        let mut shared = [0; 56];
        assert!(own.dh(&bytes(point), &mut shared).is_err(), "{point}");
        assert_eq!(shared, [0; 56]);
    }
    let mut shared = [0; 56];
    assert!(own.dh(&[9; 32], &mut shared).is_ok());
}

#[test]
fn the_ephemeral_secret_is_drawn_once() {
    let resolver = Resolver::new(Secret::new([1; 32]));
    let mut first = resolver.resolve_rng().unwrap();
    let mut out = [0; 32];
    assert!(first.try_fill_bytes(&mut out).is_ok());
    assert!(first.try_fill_bytes(&mut out).is_err());
    assert!(resolver.resolve_rng().unwrap().try_fill_bytes(&mut out).is_err());
}
