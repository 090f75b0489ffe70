//! Prekey rotation, HPKE in both directions, and the vectors of RFC 9180, X-Wing and ML-KEM.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::time::Duration;

use ml_kem::kem::{Decapsulate, KeyExport};
use ml_kem::{DecapsulationKey768, FromSeed, MlKem768};
use shake::{ExtendableOutput, Shake128, Update, XofReader};

use super::*;
use crate::testing::{NOW, Playback, random};
use crate::vectors::{hex_array, hex_bytes, read_vectors};

const DAY: Duration = Duration::from_secs(86_400);

fn made(seed: u64) -> Prekeys {
    let mut prekeys = Prekeys::default();
    prekeys.rotate(NOW, &mut random(seed)).unwrap();
    prekeys
}

#[test]
fn a_prekey_lives_seven_days_and_is_kept_fourteen_more() {
    let mut prekeys = made(1);
    let first = prekeys.current().unwrap().id;
    let mut random = random(2);
    assert!(!prekeys.rotate(NOW.plus(DAY * 6), &mut random).unwrap());
    assert!(prekeys.rotate(NOW.plus(DAY * 7), &mut random).unwrap());
    assert_ne!(prekeys.current().unwrap().id, first);
    assert!(prekeys.hash(&first).is_ok());
    prekeys.rotate(NOW.plus(DAY * 20), &mut random).unwrap();
    assert!(prekeys.hash(&first).is_ok(), "six days into its keeping");
    prekeys.rotate(NOW.plus(DAY * 21), &mut random).unwrap();
    assert_eq!(prekeys.hash(&first), Err(Error::PeerUnknownPrekey));
}

#[test]
fn one_that_is_replaced_by_hand_still_opens_what_was_sealed_to_it() {
    let (mut prekeys, mut random) = (made(1), random(2));
    let first = prekeys.current().unwrap().id;
    let mut replaced = 0;
    while prekeys.has_room() {
        prekeys.replace(NOW, &mut random).unwrap();
        replaced += 1;
    }
    assert_eq!(replaced, PREKEYS - 1);
    assert_ne!(prekeys.current().unwrap().id, first);
    assert!(prekeys.hash(&first).is_ok(), "none is given up while it may be named");
    prekeys.rotate(NOW.plus(DAY * 14), &mut random).unwrap();
    assert!(prekeys.has_room());
}

#[test]
fn a_clock_that_was_set_back_gets_a_prekey_that_is_valid_now() {
    let (mut prekeys, mut random) = (made(1), random(2));
    let first = prekeys.current().unwrap().id;
    assert!(!prekeys.rotate(NOW.minus(CLOCK_GRACE), &mut random).unwrap(), "within the grace it serves on");
    let back = NOW.minus(DAY * 30);
    assert!(prekeys.rotate(back, &mut random).unwrap());
    let current = prekeys.current().unwrap();
    assert_eq!(current.not_before, back);
    assert_ne!(current.id, first);
    assert!(!prekeys.rotate(back, &mut random).unwrap(), "once");
    // The clock is set right: what peers sealed to the first one meanwhile still opens.
    prekeys.rotate(NOW.plus(DAY), &mut random).unwrap();
    assert!(prekeys.hash(&first).is_ok());
}

#[test]
fn never_more_prekeys_than_the_state_file_holds() {
    let (mut prekeys, mut random) = (made(1), random(2));
    for day in (0..200).step_by(7) {
        prekeys.rotate(NOW.plus(DAY * day), &mut random).unwrap();
        assert!((1..=PREKEYS).contains(&prekeys.records().count()));
    }
}

#[test]
fn records_restore_the_same_prekeys() {
    let prekeys = made(1);
    let records =
        prekeys.records().map(|record| PrekeyRecord { seed: Secret::new(*record.seed.expose()), ..*record }).collect();
    assert_eq!(Prekeys::from_records(records).unwrap().current().unwrap(), prekeys.current().unwrap());
}

#[test]
fn what_is_sealed_opens_with_the_same_info_and_aad_only() {
    let prekeys = made(1);
    let public = prekeys.current().unwrap().clone();
    let sender = Sender::setup(&public.key, b"info", None, &mut random(3)).unwrap();
    let (enc, export) = (sender.enc.clone(), sender.export(b"label").unwrap());
    let sealed = sender.seal(b"aad", b"body").unwrap();
    let mut receiver = prekeys.open(&public.id, &enc, b"info", None).unwrap();
    assert_eq!(receiver.export(b"label").unwrap(), export);
    assert_eq!(*receiver.open(b"aad", &sealed).unwrap(), b"body");
    let again = |enc: &[u8], info: &[u8]| prekeys.open(&public.id, enc, info, None).unwrap();
    assert_eq!(again(&enc, b"info").open(b"other", &sealed), Err(Error::PeerOfferSealed));
    assert_eq!(again(&enc, b"other").open(b"aad", &sealed), Err(Error::PeerOfferSealed));
    let mut changed = enc.clone();
    changed[17] ^= 1;
    assert_eq!(again(&changed, b"info").open(b"aad", &sealed), Err(Error::PeerOfferSealed));
}

#[test]
fn what_is_sealed_under_a_psk_opens_under_no_other_and_under_none() {
    let prekeys = made(1);
    let public = prekeys.current().unwrap().clone();
    let psk = |link: u8, secret: u8| Psk { link: LinkId::from_bytes([link; 16]), secret: Secret::new([secret; 32]) };
    let sender = Sender::setup(&public.key, b"info", Some(&psk(1, 2)), &mut random(3)).unwrap();
    let (enc, export) = (sender.enc.clone(), sender.export(b"label").unwrap());
    let sealed = sender.seal(b"aad", b"body").unwrap();
    let open = |psk: Option<&Psk>| {
        let mut receiver = prekeys.open(&public.id, &enc, b"info", psk).unwrap();
        (receiver.open(b"aad", &sealed).map(|body| body.to_vec()), receiver.export(b"label").unwrap() == export)
    };
    assert_eq!(open(Some(&psk(1, 2))), (Ok(b"body".to_vec()), true));
    for other in [None, Some(psk(1, 3)), Some(psk(2, 2))] {
        assert_eq!(open(other.as_ref()), (Err(Error::PeerOfferSealed), false));
    }
    let plain = Sender::setup(&public.key, b"info", None, &mut random(3)).unwrap();
    let (enc, sealed) = (plain.enc.clone(), plain.seal(b"aad", b"body").unwrap());
    let mut under_a_psk = prekeys.open(&public.id, &enc, b"info", Some(&psk(1, 2))).unwrap();
    assert_eq!(under_a_psk.open(b"aad", &sealed), Err(Error::PeerOfferSealed));
}

#[test]
fn sealing_is_a_function_of_the_random_bytes_given() {
    let public = made(1).current().unwrap().key.clone();
    let seal = |seed| {
        let sender = Sender::setup(&public, b"info", None, &mut random(seed)).unwrap();
        (sender.enc.clone(), sender.seal(b"aad", b"body").unwrap())
    };
    assert_eq!(seal(3), seal(3));
    assert_ne!(seal(3), seal(4));
}

#[test]
fn low_order_halves_are_refused() {
    let prekeys = made(1);
    let mut public = prekeys.current().unwrap().clone();
    public.key[XWING_PUBLIC_BYTES - 32..].fill(0);
    assert!(matches!(Sender::setup(&public.key, b"", None, &mut random(3)), Err(Error::AllZero)));
    assert!(matches!(prekeys.open(&public.id, &[0; XWING_CIPHERTEXT_BYTES], b"", None), Err(Error::AllZero)));
    assert!(matches!(prekeys.open(&public.id, &[9; 10], b"", None), Err(Error::PeerOfferSealed)));
}

/// RFC 9180, appendix A.2.1: the KDF and AEAD of our suite with the RFC's own KEM, so that the key schedule is the RFC's.
#[test]
fn rfc_9180_vectors() {
    type Kem = hpke::kem::X25519HkdfSha256;
    for value in read_vectors("standards/rfc9180.json") {
        let bytes = |name: &str| hex_bytes(&value[name]);
        let (private, public) = Kem::derive_keypair(&bytes("ikm_r"));
        assert_eq!(public.to_bytes().to_vec(), bytes("pk_r"));
        let (enc, mut sender) = hpke::setup_sender_with_rng::<ChaCha20Poly1305, HkdfSha256, Kem>(
            &OpModeS::Base,
            &public,
            &bytes("info"),
            &mut Playback(bytes("ikm_e")),
        )
        .unwrap();
        assert_eq!(enc.to_bytes().to_vec(), bytes("enc"));
        let mut receiver =
            hpke::setup_receiver::<ChaCha20Poly1305, HkdfSha256, Kem>(&OpModeR::Base, &private, &enc, &bytes("info"))
                .unwrap();
        for message in value["messages"].as_array().unwrap() {
            let (aad, sealed) = (hex_bytes(&message["aad"]), hex_bytes(&message["ct"]));
            assert_eq!(sender.seal(&bytes("pt"), &aad).unwrap(), sealed);
            assert_eq!(receiver.open(&sealed, &aad).unwrap(), bytes("pt"));
        }
        for export in value["exports"].as_array().unwrap() {
            let mut out = [0; 32];
            receiver.export(&hex_bytes(&export["context"]), &mut out).unwrap();
            assert_eq!(out, hex_array(&export["value"]));
        }
    }
}

/// The X-Wing draft's vectors, through the HPKE library's KEM as we use it.
#[test]
fn x_wing_vectors() {
    use x_wing::{Decapsulate as _, Encapsulate as _, TryKeyInit as _};
    for value in read_vectors("standards/x-wing.json") {
        let private = PrivateKey::from_bytes(&hex_bytes(&value["seed"])).unwrap();
        assert_eq!(XWing::sk_to_pk(&private).to_bytes().to_vec(), hex_bytes(&value["pk"]));
        let public = x_wing::EncapsulationKey::new_from_slice(&hex_bytes(&value["pk"])).unwrap();
        let (ciphertext, shared) = public.encapsulate_with_rng(&mut Playback(hex_bytes(&value["eseed"])));
        assert_eq!(ciphertext.to_vec(), hex_bytes(&value["ct"]));
        assert_eq!(shared.to_vec(), hex_bytes(&value["ss"]));
        let private = x_wing::DecapsulationKey::from(hex_array::<32>(&value["seed"]));
        assert_eq!(private.decapsulate(&ciphertext).to_vec(), hex_bytes(&value["ss"]));
    }
}

fn key_pair(seed: &[u8; 64]) -> (DecapsulationKey768, Vec<u8>) {
    let (private, public) = MlKem768::from_seed(&(*seed).into());
    let public = public.to_bytes().to_vec();
    (private, public)
}

/// FIPS 203: a key pair of NIST's vectors.
#[test]
fn ml_kem_key_generation_vectors() {
    for value in ml_kem_vectors("key generation") {
        let mut seed = hex_bytes(&value["d"]);
        seed.extend(hex_bytes(&value["z"]));
        let (_, public) = key_pair(&seed.try_into().unwrap());
        assert_eq!(<[u8; 32]>::from(Sha256::digest(&public)), hex_array(&value["ek_sha256"]));
    }
}

fn ml_kem_vectors(kind: &str) -> Vec<serde_json::Value> {
    let mut cases = read_vectors("standards/ml-kem-768.json");
    cases.retain(|value| value["kind"] == kind);
    assert!(!cases.is_empty(), "no cases of {kind}");
    cases
}

/// FIPS 203 over many keys: generation, encapsulation, decapsulation and implicit rejection, accumulated into one hash.
#[test]
fn ml_kem_accumulated_vectors() {
    for value in ml_kem_vectors("accumulated") {
        let mut stream = Shake128::default().finalize_xof();
        let mut hash = Shake128::default();
        for _ in 0..value["count"].as_u64().unwrap() {
            let (mut seed, mut message, mut junk) = ([0; 64], [0; 32], [0; 1088]);
            stream.read(&mut seed);
            let (private, public) = key_pair(&seed);
            hash.update(&public);
            stream.read(&mut message);
            let (ciphertext, shared) = private.encapsulation_key().encapsulate_deterministic(&message.into());
            hash.update(&ciphertext);
            hash.update(&shared);
            assert_eq!(private.decapsulate(&ciphertext), shared);
            stream.read(&mut junk);
            hash.update(&private.decapsulate(&junk.into()));
        }
        let mut digest = [0; 32];
        hash.finalize_xof().read(&mut digest);
        assert_eq!(digest, hex_array(&value["shake128"]));
    }
}
