//! The vectors in `proto/vectors/handshake/` for what `noded` alone computes: a REQUEST's tag and mac1 (`request.json`), the mac1
//! of direct contact (`direct-mac1.json`), and a cookie's
//! way (`cookie.json`).
#![allow(clippy::unwrap_used, reason = "tests")]

use openred_proto::checked::direct::DirectRequest;
use openred_proto::checked::handshake::{HandshakeRequest, Inbound, RequestAnswer};
use openred_proto::id::NodeId;
use openred_proto::secret::Secret;
use openred_proto::vault::RequestKeys;
use serde_json::Value;

use super::cookie::Cookie;
use super::{direct, request};

fn bytes(value: &Value) -> Vec<u8> {
    hex::decode(value.as_str().unwrap()).unwrap()
}

fn array<const N: usize>(value: &Value) -> [u8; N] {
    bytes(value).try_into().unwrap()
}

#[test]
fn tags_and_mac1s_are_those_of_the_vectors() {
    let file = include_str!("../../../proto/vectors/handshake/request.json");
    let file: Value = serde_json::from_str(file).unwrap();
    let (mut right, mut wrong) = (0, 0);
    for case in file["cases"].as_array().unwrap() {
        let keys =
            RequestKeys { tag: Secret::new(array(&case["tag_key"])), mac1: Secret::new(array(&case["mac1_key"])) };
        let id = |name: &str| NodeId::from_bytes(array(&case[name]));
        let (counter, noise) = (case["counter"].as_u64().unwrap(), bytes(&case["noise"]));
        let stated = HandshakeRequest {
            tag: array(&case["tag"]),
            mac1: array(&case["mac1"]),
            cookie: None,
            noise: noise.clone(),
        };
        let built = request::build(&keys, &id("initiator"), &id("responder"), counter, &noise);
        let looked = built.tag == stated.tag && request::verify_mac1(&keys, &stated);
        let accept = case["accept"].as_bool().unwrap();
        assert_eq!((built == stated, looked), (accept, accept), "{case}");
        *(if accept { &mut right } else { &mut wrong }) += 1;
    }
    assert!(right > 0 && wrong > right, "more rejects than accepts");
}

#[test]
fn mac1s_of_direct_contact_are_those_of_the_vectors() {
    let file = include_str!("../../../proto/vectors/handshake/direct-mac1.json");
    let file: Value = serde_json::from_str(file).unwrap();
    let (mut right, mut wrong) = (0, 0);
    for case in file["cases"].as_array().unwrap() {
        let key = direct::mac1_key(&NodeId::from_bytes(array(&case["responder"])));
        let built = direct::build(&key, case["method"].as_str().unwrap().parse().unwrap(), bytes(&case["noise"]));
        let stated = DirectRequest { mac1: array(&case["mac1"]), ..built.clone() };
        let accept = case["accept"].as_bool().unwrap();
        assert_eq!((built == stated, direct::verify_mac1(&key, &stated)), (accept, accept), "{case}");
        *(if accept { &mut right } else { &mut wrong }) += 1;
    }
    assert!(right > 0 && wrong > right, "more rejects than accepts");
}

#[test]
fn what_an_initiator_makes_of_a_cookie_is_what_the_vectors_say() {
    let file = include_str!("../../../proto/vectors/handshake/cookie.json");
    let file: Value = serde_json::from_str(file).unwrap();
    let (mut right, mut wrong) = (0, 0);
    for case in file["cases"].as_array().unwrap() {
        let Ok(Inbound::Request(mut request)) = Inbound::decode(&bytes(&case["request"])) else { panic!("{case}") };
        let Ok(RequestAnswer::Cookie(answer)) = RequestAnswer::decode(&bytes(&case["answer"])) else {
            panic!("{case}")
        };
        let cookie = Cookie::open(&answer, &Secret::new(array(&case["mac1_key"])), &request.mac1);
        request.cookie = cookie.map(|cookie| cookie.proof(&request.without_cookie()));
        let accept = case["accept"].as_bool().unwrap();
        assert_eq!(request.encode() == bytes(&case["again"]), accept, "{case}");
        *(if accept { &mut right } else { &mut wrong }) += 1;
    }
    assert!(right > 0 && wrong > right, "more rejects than accepts");
}
