//! Properties of the transforms and the vectors in `proto/vectors/transform/`.
#![allow(clippy::unwrap_used, reason = "tests")]

use proptest::prelude::*;
use serde_json::Value;

use super::*;
use crate::vectors::{hex_array, read_vectors};

fn any_method() -> impl Strategy<Value = Method> {
    prop::sample::select(Method::ALL.to_vec())
}

fn transform(method: Method, link: [u8; 16], issuer: [u8; 32], acceptor: [u8; 32]) -> Transform {
    Transform::new(method, &LinkId::from_bytes(link), &NodeId::from_bytes(issuer), &NodeId::from_bytes(acceptor))
        .unwrap()
}

proptest! {
    #[test]
    fn both_directions_are_inverse(method in any_method(), link: [u8; 16], a: [u8; 32], b: [u8; 32], bytes: [u8; 32]) {
        let transform = transform(method, link, a, b);
        for side in [Side::Issuer, Side::Acceptor] {
            let base = Secret::new(bytes);
            prop_assert_eq!(*transform.reconstruct(&transform.token(&base, side), side).expose(), bytes);
            let token = Secret::new(bytes);
            prop_assert_eq!(*transform.token(&transform.reconstruct(&token, side), side).expose(), bytes);
        }
    }

    #[test]
    fn tokens_of_one_base_match_and_differ(method in any_method(), link: [u8; 16], a: [u8; 32], b: [u8; 32], bytes: [u8; 32], flip in 0_usize..256) {
        prop_assume!(bytes.iter().any(|byte| *byte != bytes[0]));
        let transform = transform(method, link, a, b);
        let base = Secret::new(bytes);
        let (issuer, acceptor) = (transform.token(&base, Side::Issuer), transform.token(&base, Side::Acceptor));
        prop_assert!(transform.tokens_match(&issuer, &acceptor));
        prop_assert!(transform.tokens_differ(&base));
        let mut other = *acceptor.expose();
        other[flip / 8] ^= 1 << (flip % 8);
        prop_assert!(!transform.tokens_match(&issuer, &Secret::new(other)));
    }

    #[test]
    fn rotations_of_the_two_sides_always_differ(link: [u8; 16], a: [u8; 32], b: [u8; 32]) {
        let transform = transform(Method::Beta, link, a, b);
        prop_assert!(transform.issuer != transform.acceptor);
    }

    #[test]
    fn a_rotation_moves_each_bit(bytes: [u8; 32], bits in 0_u16..=256) {
        let rotated = rotate_left(&bytes, bits);
        let bit = |token: &[u8; 32], n: usize| token[n / 8] >> (7 - n % 8) & 1;
        for n in 0..256 {
            prop_assert_eq!(bit(&rotated, n), bit(&bytes, (n + usize::from(bits)) % 256));
        }
    }
}

#[test]
fn each_public_value_changes_the_token() {
    let bytes: [u8; 32] = std::array::from_fn(|place| place as u8 * 7 + 1);
    let base = Secret::new(bytes);
    for method in Method::ALL {
        let reference = *transform(method, [1; 16], [2; 32], [3; 32]).token(&base, Side::Issuer).expose();
        let others = [
            transform(method, [9; 16], [2; 32], [3; 32]).token(&base, Side::Issuer),
            transform(method, [1; 16], [9; 32], [3; 32]).token(&base, Side::Issuer),
            transform(method, [1; 16], [2; 32], [3; 32]).token(&base, Side::Acceptor),
        ];
        assert!(others.iter().all(|other| *other.expose() != reference), "{method}");
    }
}

#[test]
fn a_periodic_base_is_noticed() {
    let transform = transform(Method::Beta, [1; 16], [2; 32], [3; 32]);
    assert!(!transform.tokens_differ(&Secret::new([0; 32])));
}

#[test]
fn a_node_linked_with_itself_still_gets_two_parameters() {
    for method in Method::ALL {
        let transform = transform(method, [1; 16], [2; 32], [2; 32]);
        assert!(transform.issuer != transform.acceptor, "{method}");
    }
}

/// What a case of the vector files holds.
struct Case {
    method: Method,
    transform: Transform,
    base: Secret<32>,
    issuer: Secret<32>,
    acceptor: Secret<32>,
}

fn case(case: &Value) -> Case {
    let method: Method = case["method"].as_str().unwrap().parse().unwrap();
    let transform =
        transform(method, hex_array(&case["link_id"]), hex_array(&case["issuer"]), hex_array(&case["acceptor"]));
    Case {
        method,
        transform,
        base: Secret::new(hex_array(&case["base"])),
        issuer: Secret::new(hex_array(&case["token_issuer"])),
        acceptor: Secret::new(hex_array(&case["token_acceptor"])),
    }
}

#[test]
fn accept_vectors() {
    let cases = read_vectors("transform/accept.json");
    for value in &cases {
        let case = case(value);
        assert_eq!(case.transform.token(&case.base, Side::Issuer), case.issuer, "{value}");
        assert_eq!(case.transform.token(&case.base, Side::Acceptor), case.acceptor, "{value}");
        assert!(case.transform.tokens_match(&case.issuer, &case.acceptor), "{value}");
    }
    for method in Method::ALL {
        assert!(cases.iter().filter(|value| case(value).method == method).count() >= 2, "{method} has too few cases");
    }
}

#[test]
fn reject_vectors() {
    let cases = read_vectors("transform/reject.json");
    assert!(cases.len() > read_vectors("transform/accept.json").len(), "more rejects than accepts");
    for value in &cases {
        let case = case(value);
        assert!(!case.transform.tokens_match(&case.issuer, &case.acceptor), "{value}");
    }
}
