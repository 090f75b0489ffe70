//! What both sides derive from a link's `base` (PROTOCOL 4): one pre-shared key per direction, the keys of REQUEST tags
//! and of mac1, and the match proof that cross-validates the two tokens on an open session.
//!
//! It holds nothing: `base` comes from `issue`, `accept` or the reconstruction of a token, and is the caller's to drop.
//! Each output is `HKDF-Expand(base, concat(purpose, initiator id, responder id, Noise name, method, epoch, link id))` with
//! SHA-256. The two ids stand in the order of the handshake, so a message reflected to its sender fails.

use hkdf::Hkdf;
use hmac::{Hmac, KeyInit, Mac};
use openred_proto::concat::concat;
use openred_proto::id::{LinkId, NodeId};
use openred_proto::label::derive;
use openred_proto::method::Method;
use openred_proto::method::description::{Kdf, Vetted};
use openred_proto::secret::Secret;
use sha2::{Digest, Sha256, Sha512};

use crate::error::{Error, Result};

/// What a link's derivations are bound to, besides the direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkTerms {
    /// The link.
    pub link: LinkId,
    /// Its method, as chosen by the issuer.
    pub method: Method,
    /// The epoch in which the issuer chose it.
    pub epoch: u64,
}

/// Keys of one direction: `initiator` opens the handshake, `responder` answers.
pub struct DirectionKeys {
    /// Noise psk0.
    pub psk: Secret<32>,
    /// Key of REQUEST tags; handed to `noded`.
    pub tag: Secret<32>,
    /// Key of mac1; handed to `noded`.
    pub mac1: Secret<32>,
}

impl DirectionKeys {
    /// Derives the three keys of (`initiator` → `responder`).
    ///
    /// # Errors
    /// [`Error::AllZero`] for an all-zero base.
    pub fn derive(base: &Secret<32>, terms: &LinkTerms, initiator: &NodeId, responder: &NodeId) -> Result<Self> {
        let expand = |purpose| expand(base, purpose, terms, initiator, responder);
        Ok(Self { psk: expand(derive::PSK)?, tag: expand(derive::TAG)?, mac1: expand(derive::MAC1)? })
    }

    /// The same of a link with a method that a module registered: by its key derivation, bound to its id, a label of its own for each
    /// key (PROTOCOL 3).
    ///
    /// # Errors
    /// [`Error::AllZero`] for an all-zero base.
    pub fn derive_registered(
        base: &Secret<32>,
        terms: &LinkTerms,
        method: &Vetted,
        initiator: &NodeId,
        responder: &NodeId,
    ) -> Result<Self> {
        refuse_all_zero(base)?;
        let salt = concat(&[derive::REGISTERED, method.id.as_bytes()]);
        let [psk, tag, mac1] = method.purposes.each_ref().map(|label| {
            let info = concat(&[
                label.as_bytes(),
                initiator.as_bytes(),
                responder.as_bytes(),
                terms.method.noise_name().as_bytes(),
                method.id.as_bytes(),
                &terms.epoch.to_be_bytes(),
                terms.link.as_bytes(),
            ]);
            let mut key = [0; 32];
            let expanded = match method.kdf {
                Kdf::HkdfSha256 => Hkdf::<Sha256>::new(Some(&salt), base.expose()).expand(&info, &mut key),
                Kdf::HkdfSha512 => Hkdf::<Sha512>::new(Some(&salt), base.expose()).expand(&info, &mut key),
            };
            expanded.expect("32 bytes are far below 255 hash lengths");
            Secret::new(key)
        });
        Ok(Self { psk, tag, mac1 })
    }
}

fn expand(
    base: &Secret<32>,
    purpose: &[u8],
    terms: &LinkTerms,
    initiator: &NodeId,
    responder: &NodeId,
) -> Result<Secret<32>> {
    refuse_all_zero(base)?;
    let hkdf = Hkdf::<Sha256>::from_prk(base.expose()).expect("a base is one SHA-256 output long");
    let info = concat(&[
        purpose,
        initiator.as_bytes(),
        responder.as_bytes(),
        terms.method.noise_name().as_bytes(),
        terms.method.name().as_bytes(),
        &terms.epoch.to_be_bytes(),
        terms.link.as_bytes(),
    ]);
    let mut key = [0; 32];
    hkdf.expand(&info, &mut key).expect("32 bytes are far below 255 hash lengths");
    Ok(Secret::new(key))
}

/// `base = HKDF-Expand(export, SHA-256(header))` (PROTOCOL 4.4).
///
/// # Errors
/// [`Error::AllZero`] when the export or the result is all zero.
pub fn link_base(export: &Secret<32>, header: &[u8]) -> Result<Secret<32>> {
    refuse_all_zero(export)?;
    let hkdf = Hkdf::<Sha256>::from_prk(export.expose()).expect("an export of 32 bytes is one SHA-256 output long");
    let mut base = [0; 32];
    hkdf.expand(&Sha256::digest(header), &mut base).expect("32 bytes are far below 255 hash lengths");
    let base = Secret::new(base);
    refuse_all_zero(&base)?;
    Ok(base)
}

/// The HPKE pre-shared key of an offer from `sender` to `recipient` that renews `link` (PROTOCOL 4, "Life of a link"):
/// `HKDF-Expand(base, concat("openred/1/renew", link id, sender, recipient))`. An offer that is reflected, or meant for another link of
/// the two, does not open.
///
/// # Errors
/// [`Error::AllZero`] for an all-zero base.
pub fn renewal_psk(base: &Secret<32>, link: &LinkId, sender: &NodeId, recipient: &NodeId) -> Result<Secret<32>> {
    refuse_all_zero(base)?;
    let hkdf = Hkdf::<Sha256>::from_prk(base.expose()).expect("a base is one SHA-256 output long");
    let info = concat(&[derive::RENEW, link.as_bytes(), sender.as_bytes(), recipient.as_bytes()]);
    let mut psk = [0; 32];
    hkdf.expand(&info, &mut psk).expect("32 bytes are far below 255 hash lengths");
    Ok(Secret::new(psk))
}

/// The proof that `own` knows the base of a link, bound to one handshake: `HMAC(base, ("openred/1/match", own id, final
/// hash))` (PROTOCOL 4.5).
#[must_use]
pub fn match_proof(base: &Secret<32>, own: &NodeId, final_hash: &[u8]) -> [u8; 32] {
    let mut mac = Hmac::<Sha256>::new_from_slice(base.expose()).expect("HMAC takes a key of any length");
    mac.update(&concat(&[derive::MATCH, own.as_bytes(), final_hash]));
    mac.finalize().into_bytes().into()
}

/// Whether `proof` is the other side's; compared in constant time.
#[must_use]
pub fn match_proof_verifies(base: &Secret<32>, peer: &NodeId, final_hash: &[u8], proof: &[u8; 32]) -> bool {
    Secret::new(match_proof(base, peer, final_hash)) == Secret::new(*proof)
}

// PROTOCOL 4: low-order or all-zero results abort.
fn refuse_all_zero(secret: &Secret<32>) -> Result<()> {
    if *secret == Secret::new([0; 32]) { Err(Error::AllZero) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;
    use crate::vectors::{hex_array, hex_bytes, read_vectors};

    const A: NodeId = NodeId::from_bytes([1; 32]);
    const B: NodeId = NodeId::from_bytes([2; 32]);

    /// Every registered method has keys of its own: for each purpose, under either derivation, and none that a built-in has.
    #[test]
    fn keys_of_registered_methods_are_all_different() {
        use openred_proto::method::description::MethodDescription;
        let floor = || MethodDescription::floor("omega");
        let methods =
            [floor(), MethodDescription { kdf: 2, ..floor() }, MethodDescription { transforms: vec![2], ..floor() }];
        let (one, other) = (NodeId::from_bytes([1; 32]), NodeId::from_bytes([2; 32]));
        let (base, terms) = (Secret::new([9; 32]), LinkTerms { method: Method::Alpha, ..terms() });
        let mut seen = std::collections::BTreeSet::new();
        let mut all = |keys: DirectionKeys| {
            assert!([keys.psk, keys.tag, keys.mac1].iter().all(|key| seen.insert(*key.expose())));
        };
        all(DirectionKeys::derive(&base, &terms, &one, &other).unwrap());
        for method in methods {
            let method = method.vet().unwrap();
            let derive = |from, to| DirectionKeys::derive_registered(&base, &terms, &method, from, to);
            all(derive(&one, &other).unwrap());
            all(derive(&other, &one).unwrap());
            let zero = DirectionKeys::derive_registered(&Secret::new([0; 32]), &terms, &method, &one, &other);
            assert!(matches!(zero, Err(Error::AllZero)));
        }
    }

    fn terms() -> LinkTerms {
        LinkTerms { link: LinkId::from_bytes([3; 16]), method: Method::Beta, epoch: 494_123 }
    }

    fn all(keys: &DirectionKeys) -> [[u8; 32]; 3] {
        [*keys.psk.expose(), *keys.tag.expose(), *keys.mac1.expose()]
    }

    #[test]
    fn directions_purposes_and_terms_never_share_a_key() {
        let base = Secret::new([7; 32]);
        let mut seen = std::collections::HashSet::new();
        let mut variants = vec![terms()];
        variants.push(LinkTerms { link: LinkId::from_bytes([4; 16]), ..terms() });
        variants.push(LinkTerms { epoch: 494_124, ..terms() });
        variants.extend(
            Method::ALL
                .into_iter()
                .filter(|method| *method != Method::Beta)
                .map(|method| LinkTerms { method, ..terms() }),
        );
        for terms in variants {
            for (initiator, responder) in [(A, B), (B, A)] {
                for key in all(&DirectionKeys::derive(&base, &terms, &initiator, &responder).unwrap()) {
                    assert!(seen.insert(key));
                }
            }
        }
        assert_eq!(seen.len(), 6 * 2 * 3);
    }

    #[test]
    fn all_zero_aborts() {
        let zero = Secret::new([0; 32]);
        assert!(matches!(DirectionKeys::derive(&zero, &terms(), &A, &B), Err(Error::AllZero)));
        assert!(matches!(link_base(&zero, b"header"), Err(Error::AllZero)));
    }

    #[test]
    fn match_proof_is_bound_to_node_and_handshake() {
        let base = Secret::new([7; 32]);
        let proof = match_proof(&base, &A, b"hash");
        assert!(match_proof_verifies(&base, &A, b"hash", &proof));
        assert!(!match_proof_verifies(&base, &B, b"hash", &proof), "reflected");
        assert!(!match_proof_verifies(&base, &A, b"other", &proof), "another handshake");
        assert!(!match_proof_verifies(&Secret::new([8; 32]), &A, b"hash", &proof), "another base");
    }

    proptest! {
        #[test]
        fn every_bit_of_the_header_changes_the_base(header in proptest::collection::vec(any::<u8>(), 1..200), bit in 0_usize..1600) {
            let export = Secret::new([9; 32]);
            let mut other = header.clone();
            let place = bit / 8 % header.len();
            other[place] ^= 1 << (bit % 8);
            prop_assert_ne!(link_base(&export, &header).unwrap(), link_base(&export, &other).unwrap());
        }
    }

    fn case(value: &Value) -> (Secret<32>, LinkTerms, NodeId, NodeId) {
        let terms = LinkTerms {
            link: LinkId::from_bytes(hex_array(&value["link_id"])),
            method: value["method"].as_str().unwrap().parse().unwrap(),
            epoch: value["epoch"].as_u64().unwrap(),
        };
        let id = |name: &str| NodeId::from_bytes(hex_array(&value[name]));
        (Secret::new(hex_array(&value["base"])), terms, id("initiator"), id("responder"))
    }

    fn derived(value: &Value) -> [[u8; 32]; 4] {
        let (base, terms, initiator, responder) = case(value);
        let keys = DirectionKeys::derive(&base, &terms, &initiator, &responder).unwrap();
        let proof = match_proof(&base, &initiator, &hex_bytes(&value["final_hash"]));
        [*keys.psk.expose(), *keys.tag.expose(), *keys.mac1.expose(), proof]
    }

    fn written(value: &Value) -> [[u8; 32]; 4] {
        ["psk", "k_tag", "k_mac1", "match_proof"].map(|name| hex_array(&value[name]))
    }

    #[test]
    fn a_renewals_key_is_bound_to_link_and_direction() {
        let (base, link) = (Secret::new([7; 32]), LinkId::from_bytes([3; 16]));
        let keys = [
            renewal_psk(&base, &link, &A, &B).unwrap(),
            renewal_psk(&base, &link, &B, &A).unwrap(),
            renewal_psk(&base, &LinkId::from_bytes([4; 16]), &A, &B).unwrap(),
            renewal_psk(&Secret::new([8; 32]), &link, &A, &B).unwrap(),
            DirectionKeys::derive(&base, &terms(), &A, &B).unwrap().psk,
        ];
        for (place, key) in keys.iter().enumerate() {
            assert!(keys[..place].iter().all(|other| other != key), "{place}");
        }
        assert!(matches!(renewal_psk(&Secret::new([0; 32]), &link, &A, &B), Err(Error::AllZero)));
    }

    #[test]
    fn renewal_vectors() {
        for value in read_vectors("derive/renewal_psk.json") {
            let id = |name: &str| NodeId::from_bytes(hex_array(&value[name]));
            let link = LinkId::from_bytes(hex_array(&value["link_id"]));
            let base = Secret::new(hex_array(&value["base"]));
            let psk = renewal_psk(&base, &link, &id("sender"), &id("recipient")).unwrap();
            assert_eq!(*psk.expose() == hex_array::<32>(&value["psk"]), value["accept"].as_bool().unwrap(), "{value}");
        }
    }

    #[test]
    fn accept_vectors() {
        for value in read_vectors("derive/accept.json") {
            assert_eq!(derived(&value), written(&value), "{value}");
        }
    }

    #[test]
    fn reject_vectors() {
        let cases = read_vectors("derive/reject.json");
        assert!(cases.len() > read_vectors("derive/accept.json").len(), "more rejects than accepts");
        for value in cases {
            let (derived, written) = (derived(&value), written(&value));
            assert!(derived.iter().zip(written).all(|(derived, written)| *derived != written), "{value}");
        }
    }

    #[test]
    fn link_base_vectors() {
        for value in read_vectors("derive/link_base.json") {
            let base = link_base(&Secret::new(hex_array(&value["export"])), &hex_bytes(&value["header"])).unwrap();
            assert_eq!(
                *base.expose() == hex_array::<32>(&value["base"]),
                value["accept"].as_bool().unwrap(),
                "{value}"
            );
        }
    }
}
