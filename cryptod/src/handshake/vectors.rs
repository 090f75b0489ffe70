//! The vectors in `proto/vectors/handshake/` that this side computes: prologue, psk3, session secrets, `mutual_link`. Each case
//! says whether what it states is right; the wrong ones are right but for one thing.
#![allow(clippy::unwrap_used, reason = "tests")]

use serde_json::Value;

use super::*;
use crate::vectors::{hex_array, hex_bytes, read_vectors};

/// Holds each case's statement against `holds`, and that more of them are wrong than right.
fn judge(name: &str, holds: impl Fn(&Value) -> bool) {
    let cases = read_vectors(name);
    let right = cases.iter().filter(|case| case["accept"].as_bool().unwrap()).count();
    assert!(right > 0 && cases.len() - right > right, "{name}: more rejects than accepts");
    for case in cases {
        assert_eq!(holds(&case), case["accept"].as_bool().unwrap(), "{name}: {case}");
    }
}

#[test]
fn prologue() {
    judge("handshake/prologue.json", |case| {
        let id = |name: &str| NodeId::from_bytes(hex_array(&case[name]));
        let linked = Linked {
            link_id: LinkId::from_bytes(hex_array(&case["link_id"])),
            method: case["method"].as_str().unwrap().parse().unwrap(),
            registered: None,
            epoch: case["epoch"].as_u64().unwrap(),
            initiator: id("initiator"),
            responder: id("responder"),
            psk: Secret::new([1; 32]),
            base: Secret::new([2; 32]),
        };
        Mode::Linked(linked).prologue() == hex_bytes(&case["prologue"])
    });
}

#[test]
fn prologue_of_direct_contact() {
    judge("handshake/direct-prologue.json", |case| {
        let direct = Direct { method: case["method"].as_str().unwrap().parse().unwrap(), peer: None };
        Mode::Direct(direct).prologue() == hex_bytes(&case["prologue"])
    });
}

#[test]
fn psk3() {
    judge("handshake/psk3.json", |case| {
        let (key, ciphertext) = (hex_array(&case["key"]), hex_array(&case["ciphertext"]));
        *kem::derive_psk3(&hex_bytes(&case["shared"]), &key, &ciphertext).expose() == hex_array(&case["psk3"])
    });
}

#[test]
fn session_secrets() {
    judge("handshake/session-secret.json", |case| {
        let (raw, sender) = (Secret::new(hex_array(&case["raw"])), case["sender"].as_str().unwrap());
        let secret = session_secret(&raw, sender.as_bytes(), &hex_bytes(&case["hash"]));
        *secret.expose() == hex_array(&case["secret"])
    });
}

#[test]
fn mutual_links() {
    judge("handshake/mutual-link.json", |case| {
        mutual_link(&hex_bytes(&case["hash"])) == hex_array(&case["mutual_link"])
    });
}
