//! The unsealer's operations as functions: what they make opens again, and what is refused is named and leaks nothing.
#![allow(clippy::unwrap_used, reason = "tests")]
use age::secrecy::ExposeSecret;
use openred_proto::id::NodeId;

use super::*;
use crate::testing::{NOW, random};

fn order(secret: &[u8]) -> Order {
    Order::with_secret(Zeroizing::new(secret.to_vec()), NOW)
}

fn made(secret: &[u8]) -> (Vec<u8>, NodeId) {
    let mut file = Vec::new();
    let about = create(&mut random(3), &order(secret), &mut file).unwrap();
    assert_eq!((about.created, about.passphrase), (NOW, true));
    (file, about.node)
}

#[test]
fn create_open_and_rewrap() {
    let (file, node) = made(b"correct horse\n");
    let mut secrets = Vec::new();
    open(&order(b"correct horse"), &file[..], &mut secrets).unwrap();
    assert_eq!(secrets.len(), 64);
    let seed: [u8; 32] = secrets[..32].try_into().unwrap();
    let key = ed25519_dalek::SigningKey::from_bytes(&seed).verifying_key();
    assert_eq!(node, NodeId::from_bytes(key.to_bytes()), "bound to the node id");

    let identity = age::x25519::Identity::generate();
    let to = Order { recipients: vec![identity.to_public().to_string()], ..order(b"correct horse") };
    let mut wrapped = Vec::new();
    let about = rewrap(&to, &file[..], &mut wrapped).unwrap();
    assert_eq!((about.node, about.passphrase, about.created), (node, false, NOW));
    let held = identity.to_string();
    let mut again = Vec::new();
    open(&order(held.expose_secret().as_bytes()), &wrapped[..], &mut again).unwrap();
    assert_eq!(secrets, again);
    let old = open(&order(b"correct horse"), &wrapped[..], &mut Vec::new());
    assert!(matches!(old, Err(Failure::NeedsIdentity)));

    // Without a word on it, sealed as it was.
    let mut same = Vec::new();
    let about = rewrap(&order(held.expose_secret().as_bytes()), &wrapped[..], &mut same).unwrap();
    assert_eq!(about.recipients, to.recipients);
    let mut once_more = Vec::new();
    rewrap(&order(b"correct horse"), &file[..], &mut once_more).unwrap();
    again.clear();
    open(&order(b"correct horse\r\n"), &once_more[..], &mut again).unwrap();
    assert_eq!(secrets, again);
}

#[test]
fn a_wrong_passphrase_is_one_line_with_the_way_out_and_nothing_leaves() {
    let (file, _) = made(b"right");
    let mut out = Vec::new();
    let failure = open(&order(b"wrong"), &file[..], &mut out).unwrap_err();
    assert!(matches!(failure, Failure::WrongPassphrase));
    assert_eq!((failure.exit_code(), out.len(), failure.to_string().lines().count()), (5, 0, 1));
}

#[test]
fn what_is_no_order() {
    let longer = vec![b'a'; 2 * ORDER_BYTES];
    for bytes in [&b""[..], b"\xff\xff", &longer] {
        assert!(matches!(read_order(bytes), Err(Failure::BadOrder)));
    }
    let bytes = order(b"p").encode().unwrap();
    assert_eq!(*read_order(&bytes[..]).unwrap().secret, b"p");
}

#[test]
fn a_damaged_file_is_named_as_such() {
    let (file, _) = made(b"right");
    let last = file.len() - 1;
    let mut changed = file.clone();
    changed[last] ^= 1;
    let huge = vec![0; KEYSTORE_BYTES + 1];
    for damaged in [&changed[..], &file[..last], &file[..40], b"", &huge] {
        let failure = open(&order(b"right"), damaged, &mut Vec::new()).unwrap_err();
        assert!(matches!(failure, Failure::Damaged), "{failure}");
    }
}

#[test]
fn a_stream_reads_back_and_a_changed_or_cut_one_is_damaged() {
    let identity = age::x25519::Identity::generate();
    let to = Order { recipients: vec![identity.to_public().to_string()], ..order(b"") };
    let content: Vec<u8> = (0..200_000_u32).map(|number| number as u8).collect();
    let mut sealed = Vec::new();
    encrypt(&to, &content[..], &mut sealed).unwrap();
    let held = order(identity.to_string().expose_secret().as_bytes());
    let mut plain = Vec::new();
    decrypt(&held, &sealed[..], &mut plain).unwrap();
    assert!(plain == content);
    let mut changed = sealed.clone();
    changed[100_000] ^= 1;
    for damaged in [&changed[..], &sealed[..sealed.len() - 1], &sealed[..70_000]] {
        let failure = decrypt(&held, damaged, &mut Vec::new()).unwrap_err();
        assert!(matches!(failure, Failure::Damaged), "{failure}");
    }
    let stranger = age::x25519::Identity::generate();
    let failure = decrypt(&order(stranger.to_string().expose_secret().as_bytes()), &sealed[..], &mut Vec::new());
    assert!(matches!(failure, Err(Failure::WrongIdentity)));
}

#[test]
fn a_restored_state_is_a_later_epoch_with_fresh_keys() {
    let (file, _) = made(b"p");
    let mut secrets = Vec::new();
    open(&order(b"p"), &file[..], &mut secrets).unwrap();
    let keyring = crate::keyring::Keyring::from_secrets(&mut secrets.try_into().unwrap());
    let mut image = Vec::new();
    let mut state = crate::state::State::new();
    state.node.sealing_epoch = 4;
    state.node.prekeys.rotate(NOW, &mut random(5)).unwrap();
    let id = state.node.prekeys.current().unwrap().id;
    renew::apply(&mut image, &state.commit(&keyring.state, &mut random(6)).unwrap());

    let mut renewed = Vec::new();
    renew(&mut random(7), &order(b"p"), &file[..], &image[..], &mut renewed).unwrap();
    let read = renew::load(&keyring.state, &renewed).unwrap();
    assert_eq!(read.node.sealing_epoch, NOW.0, "later than any that a restore before this one made");
    assert!(read.node.prekeys.hash(&id).is_err() && read.node.statics.is_empty());
    let foreign = renew(&mut random(7), &order(b"p"), &made(b"p").0[..], &[9; 9000][..], &mut Vec::new());
    assert!(matches!(foreign, Err(Failure::State(_))));
    // A node that never had any state stays without.
    let mut none = Vec::new();
    renew(&mut random(7), &order(b"p"), &file[..], &[][..], &mut none).unwrap();
    assert!(none.is_empty());
}

fn given(secret: &[u8], file: &[u8]) -> (Vec<u8>, crate::keyring::Descent) {
    let mut given = Vec::new();
    open(&order(secret), file, &mut given).unwrap();
    let descent = crate::keyring::Descent::decode(&given[64..]).unwrap();
    given.truncate(64);
    (given, descent)
}

#[test]
fn a_new_identity_keeps_the_storage_root_and_names_where_it_comes_from() {
    let (first, old) = made(b"p");
    let mut second = Vec::new();
    let about = succeed(&mut random(8), &order(b"p"), &first[..], &mut second).unwrap();
    assert_ne!(about.node, old);
    assert_eq!((about.lineage.earlier(), about.passphrase), (vec![old], true));
    let ((before, none), (after, descent)) = (given(b"p", &first), given(b"p", &second));
    assert_eq!(none, crate::keyring::Descent::default());
    assert_eq!(before[32..], after[32..], "what is at rest opens");
    assert_ne!(before[..32], after[..32]);
    assert_eq!((descent.origin, descent.words.len()), (Some(old), 1));
    let mut third = Vec::new();
    let next = succeed(&mut random(9), &order(b"p"), &second[..], &mut third).unwrap();
    assert_eq!(next.lineage.earlier(), [old, about.node]);
    assert_eq!(given(b"p", &third).1.origin, Some(old), "bound to the first for good");
}

#[test]
fn the_older_identity_takes_it_back_in_time_and_only_from_its_own_successor() {
    let ((first, old), mut second, mut back) = (made(b"p"), Vec::new(), Vec::new());
    let successor = succeed(&mut random(8), &order(b"p"), &first[..], &mut second).unwrap().node;
    let about = take_back(&order(b"p"), &first[..], &second[..], &mut back).unwrap();
    assert_eq!((about.node, about.lineage.earlier()), (old, vec![successor]));
    assert_eq!(given(b"p", &back).0, given(b"p", &first).0);

    let refused = |order: &Order, older: &[u8], here: &[u8]| {
        let mut out = Vec::new();
        let failure = take_back(order, older, here, &mut out).unwrap_err();
        assert!(out.is_empty());
        failure.word()
    };
    let late = Order {
        now: NOW.plus(openred_proto::limits::TAKE_BACK).plus(std::time::Duration::from_secs(1)),
        ..order(b"p")
    };
    assert_eq!(refused(&late, &first, &second), Refused::Succession, "too late");
    assert_eq!(refused(&order(b"p"), &first, &first), Refused::Succession, "there is nothing to take back");
    assert_eq!(refused(&order(b"p"), &second, &first), Refused::Succession, "the younger one from the older");
    assert_eq!(refused(&order(b"p"), &made(b"p").0, &back), Refused::Succession, "it was taken back before");
    assert_eq!(refused(&order(b"q"), &first, &second), Refused::Secret, "of the one here");
    // Sealed anew since, the one here has another passphrase than the older one: each refusal says of which.
    let of_two = |older: &[u8]| Order { older: Zeroizing::new(older.to_vec()), ..order(b"q") };
    let resealed = Keystore::open(&second, b"p").unwrap().0.seal(&Seal::ordered(&order(b"q")).unwrap()).unwrap().0;
    assert_eq!(refused(&order(b"q"), &first, &resealed), Refused::OlderSecret, "one for both");
    assert_eq!(refused(&of_two(b"r"), &first, &resealed), Refused::OlderSecret);
    assert_eq!(refused(&of_two(b"p"), &first, &second), Refused::Secret);
    assert_eq!(refused(&of_two(b"p"), b"no keystore", &resealed), Refused::OlderKeystore);
    let mut of_both = Vec::new();
    take_back(&of_two(b"p"), &first[..], &resealed[..], &mut of_both).unwrap();
    assert_eq!(given(b"p", &of_both).0, given(b"p", &first).0, "sealed as the older one was");

    // Somebody else had the key: the word is about an identity that is not here.
    let named = Order { named: Some(NodeId::from_bytes([7; 32])), ..order(b"p") };
    let mut own = Vec::new();
    let about = take_back(&named, &first[..], &[][..], &mut own).unwrap();
    assert_eq!((about.node, about.lineage.earlier()), (old, vec![NodeId::from_bytes([7; 32])]));
    let itself = Order { named: Some(old), ..order(b"p") };
    assert_eq!(refused(&itself, &first, &[]), Refused::Succession);
}
