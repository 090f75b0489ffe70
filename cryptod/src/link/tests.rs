//! Issue and accept against each other, with every lie that a directory or a third node could tell.
#![allow(clippy::unwrap_used, reason = "tests")]

mod renewal;
mod vectors;

use std::time::Duration;

use openred_proto::checked::card::{Card, CardFields};
use openred_proto::checked::offer::{Offer, RoutingHeader, SealedHeader};
use openred_proto::checked::succession::Lineage;
use openred_proto::error::WireError;
use openred_proto::id::{LinkId, NodeId, UnixMillis};
use openred_proto::limits::{CLOCK_GRACE, LINK_LIFE_MAX, LINK_LIFE_MIN};
use openred_proto::method::{Method, MethodSet, Schedule};
use openred_proto::secret::Secret;
use openred_proto::vault::ReceivedOffer;
use sha2::Digest;

use super::accept::open;
use super::issue::{IssueTerms, Issued, issue};
use super::transform::{Side, Transform};
use crate::error::{Error, Result};
use crate::identity::{Identity, LinkStatement};
use crate::prekey::{Prekeys, Sender};
use crate::registered::Methods;
use crate::testing::{NOW, random};

const DIRECTORY: NodeId = NodeId::from_bytes([0xd1; 32]);
const SEED: Secret<32> = Secret::new([7; 32]);
const DAY: Duration = Duration::from_secs(86_400);

struct Node {
    identity: Identity,
    prekeys: Prekeys,
}

impl Node {
    fn new(seed: u8) -> Self {
        let mut prekeys = Prekeys::default();
        prekeys.rotate(NOW, &mut random(u64::from(seed))).unwrap();
        Self { identity: Identity::from_seed(&Secret::new([seed; 32])), prekeys }
    }

    fn id(&self) -> NodeId {
        self.identity.node_id()
    }

    fn card_fields(&self) -> Card {
        Card {
            node_id: self.id(),
            sequence: NOW.0,
            issued_at: NOW,
            expires_at: NOW.plus(DAY),
            fields: CardFields::default(),
            suites: MethodSet::ALL,
            prekey: self.prekeys.current().unwrap().clone(),
            lineage: Lineage::default(),
            methods: Vec::new(),
        }
    }

    fn card(&self) -> Vec<u8> {
        self.identity.sign_card(&self.card_fields()).unwrap()
    }

    fn open(&self, received: &ReceivedOffer, now: UnixMillis) -> Result<super::accept::Opened> {
        open(&self.id(), (&self.prekeys, &Methods::default()), received, None, now)
    }
}

fn terms<'a>(peer: NodeId, card: &'a [u8]) -> IssueTerms<'a> {
    IssueTerms { peer, card, directory: DIRECTORY, allowed: MethodSet::ALL, schedule: Schedule::Hourly, life: DAY }
}

fn issue_to(from: &Node, terms: &IssueTerms<'_>) -> Result<Issued> {
    issue(&from.identity, (&SEED, &Methods::default()), terms, None, NOW.0, NOW, &mut random(99))
}

fn received(from: &Node, offer: Vec<u8>) -> ReceivedOffer {
    ReceivedOffer { offer, sender: from.id(), directory: DIRECTORY, allowed: MethodSet::ALL }
}

/// Alice, Bob, and what Alice offered him.
fn offered() -> (Node, Node, Issued) {
    let (alice, bob) = (Node::new(1), Node::new(2));
    let issued = issue_to(&alice, &terms(bob.id(), &bob.card())).unwrap();
    (alice, bob, issued)
}

#[test]
fn both_sides_get_one_base_and_tokens_that_match() {
    for method in Method::ALL {
        let (alice, bob) = (Node::new(1), Node::new(2));
        let card = bob.card();
        let only = MethodSet::EMPTY.with(method);
        let issued = issue_to(&alice, &IssueTerms { allowed: only, ..terms(bob.id(), &card) }).unwrap();
        let opened = bob.open(&received(&alice, issued.offer.clone()), NOW).unwrap();
        assert_eq!((opened.issuer, &opened.header), (alice.id(), &issued.header));
        assert_eq!(opened.base, issued.base);
        assert_eq!(opened.header.method, method);
        let transform = Transform::new(method, &opened.header.link_id, &alice.id(), &bob.id()).unwrap();
        let (a, b) = (transform.token(&issued.base, Side::Issuer), transform.token(&opened.base, Side::Acceptor));
        assert!(transform.tokens_match(&a, &b) && a != b);
    }
}

#[test]
fn all_offers_have_one_size_but_for_the_routing_header() {
    let (alice, bob, issued) = offered();
    let card = bob.card();
    let other = issue_to(&alice, &IssueTerms { life: LINK_LIFE_MIN, ..terms(bob.id(), &card) }).unwrap();
    assert_eq!(issued.offer.len(), other.offer.len());
}

#[test]
fn every_changed_byte_and_every_bit_of_the_clear_header_is_refused() {
    let (alice, bob, issued) = offered();
    let clear = 2 + usize::from(u16::from_be_bytes([issued.offer[0], issued.offer[1]]));
    let bits = (0..clear * 8).chain((clear..issued.offer.len()).step_by(13).map(|place| place * 8 + place % 8));
    for bit in bits {
        let mut offer = issued.offer.clone();
        offer[bit / 8] ^= 1 << (bit % 8);
        assert!(bob.open(&received(&alice, offer), NOW).is_err(), "bit {bit}");
    }
    for length in [0, 1, clear - 1, clear, clear + 5, issued.offer.len() - 1] {
        assert!(bob.open(&received(&alice, issued.offer[..length].to_vec()), NOW).is_err(), "{length}");
    }
    assert!(bob.open(&received(&alice, [&issued.offer[..], &[0]].concat()), NOW).is_err());
}

/// What a third node can do: it knows Bob's prekey, so it can seal what it likes; it cannot sign as Alice.
fn resealed(alice: &Node, bob: &Node, change: impl FnOnce(&mut Vec<u8>, &mut [u8; 64])) -> Vec<u8> {
    let (_, _, issued) = offered();
    let card = bob.card_fields();
    let routing = RoutingHeader {
        issuer: alice.id(),
        recipient: bob.id(),
        prekey: card.prekey.id,
        psk: None,
        expiry: issued.header.not_after,
    };
    let (routing_bytes, prekey_hash) = (routing.encode(), sha2::Sha256::digest(&card.prekey.key).into());
    let info = super::issue::info(&alice.id(), &bob.id(), &card.prekey.id, &prekey_hash, &DIRECTORY);
    let sender = Sender::setup(&card.prekey.key, &info, None, &mut random(5)).unwrap();
    let mut header = issued.header.encode();
    let statement =
        LinkStatement { routing: &routing_bytes, header: &header, enc: &sender.enc, prekey_hash: &prekey_hash };
    let mut signature = alice.identity.sign_link(&statement);
    change(&mut header, &mut signature);
    let (body, enc) = (SealedHeader::encode_body(&header, &signature), sender.enc.clone());
    Offer::encode(&routing_bytes, &enc, &sender.seal(&routing_bytes, &body).unwrap())
}

#[test]
fn every_bit_of_the_sealed_header_and_of_the_signature_is_signed() {
    let (alice, bob) = (Node::new(1), Node::new(2));
    assert!(bob.open(&received(&alice, resealed(&alice, &bob, |_, _| {})), NOW).is_ok(), "the control");
    let length = offered().2.header.encode().len();
    for bit in 0..length * 8 {
        let offer = resealed(&alice, &bob, |header, _| header[bit / 8] ^= 1 << (bit % 8));
        let refused = bob.open(&received(&alice, offer), NOW);
        assert_eq!(
            refused.err(),
            Some(Error::PeerStatement(WireError::BadSignature { what: "link offer" })),
            "header bit {bit}"
        );
    }
    for bit in 0..64 * 8 {
        let offer = resealed(&alice, &bob, |_, signature| signature[bit / 8] ^= 1 << (bit % 8));
        assert!(bob.open(&received(&alice, offer), NOW).is_err(), "signature bit {bit}");
    }
}

#[test]
fn a_signature_of_another_offer_does_not_fit() {
    let (alice, bob, issued) = offered();
    // The same header under another encapsulation: the signature covers `enc`, so it cannot be moved.
    let offer = resealed(&alice, &bob, |_, signature| {
        let statement =
            LinkStatement { routing: b"", header: &issued.header.encode(), enc: b"", prekey_hash: &[0; 32] };
        *signature = alice.identity.sign_link(&statement);
    });
    assert!(matches!(bob.open(&received(&alice, offer), NOW), Err(Error::PeerStatement(_))));
}

#[test]
fn lies_about_who_and_where_are_named() {
    let (alice, bob, issued) = offered();
    let (carol, good) = (Node::new(3), received(&alice, issued.offer));
    assert_eq!(carol.open(&good, NOW).err(), Some(Error::PeerOfferForOther));
    let other_sender = ReceivedOffer { sender: carol.id(), ..good.clone() };
    assert_eq!(bob.open(&other_sender, NOW).err(), Some(Error::PeerOfferSender));
    let other_directory = ReceivedOffer { directory: carol.id(), ..good.clone() };
    assert_eq!(bob.open(&other_directory, NOW).err(), Some(Error::PeerOfferSealed));
    let other_methods = ReceivedOffer { allowed: MethodSet::EMPTY, ..good.clone() };
    assert_eq!(bob.open(&other_methods, NOW).err(), Some(Error::PeerDowngrade));
    let forgetful = Node { identity: Identity::from_seed(&Secret::new([2; 32])), prekeys: Node::new(9).prekeys };
    assert_eq!(forgetful.open(&good, NOW).err(), Some(Error::PeerUnknownPrekey));
}

#[test]
fn three_hours_of_grace_and_not_a_second_more() {
    let (alice, bob, issued) = offered();
    let (offer, grace) = (received(&alice, issued.offer), CLOCK_GRACE);
    let second = Duration::from_secs(1);
    assert!(bob.open(&offer, NOW.minus(grace)).is_ok());
    assert!(bob.open(&offer, NOW.plus(DAY).plus(grace)).is_ok());
    let refused = |now| bob.open(&offer, now).err();
    let out_of_time = |early| Some(Error::PeerStatement(WireError::OutOfTime { what: "link offer", early }));
    assert_eq!(refused(NOW.minus(grace + second)), out_of_time(true));
    assert_eq!(refused(NOW.plus(DAY + grace + second)), out_of_time(false));
}

#[test]
fn an_issuer_refuses_cards_that_are_foreign_expired_or_changed() {
    let (alice, bob, carol) = (Node::new(1), Node::new(2), Node::new(3));
    let refused = |card: &[u8], now| {
        issue(&alice.identity, (&SEED, &Methods::default()), &terms(bob.id(), card), None, NOW.0, now, &mut random(1))
            .err()
    };
    assert_eq!(refused(&carol.card(), NOW), Some(Error::PeerStatement(WireError::WrongSigner { what: "card" })));
    let late = NOW.plus(DAY + CLOCK_GRACE + Duration::from_secs(1));
    let expired = Some(Error::PeerStatement(WireError::OutOfTime { what: "card", early: false }));
    assert_eq!(refused(&bob.card(), late), expired);
    // A directory that swaps the prekey has to break the signature.
    let mut swapped = bob.card();
    let key = bob.prekeys.current().unwrap().key.clone();
    let place = swapped.windows(key.len()).position(|window| window == key).unwrap();
    swapped[place..place + key.len()].copy_from_slice(&carol.prekeys.current().unwrap().key);
    assert!(matches!(refused(&swapped, NOW), Some(Error::PeerStatement(_))));
    let mut prekey = bob.card_fields();
    prekey.prekey.not_after = NOW.minus(CLOCK_GRACE + DAY);
    let old = bob.identity.sign_card(&prekey).unwrap();
    let expired = Some(Error::PeerStatement(WireError::OutOfTime { what: "card prekey", early: false }));
    assert_eq!(refused(&old, NOW), expired);
}

#[test]
fn what_an_operator_may_not_ask_for() {
    let (alice, bob) = (Node::new(1), Node::new(2));
    let card = bob.card();
    let refused = |terms: IssueTerms<'_>| issue_to(&alice, &terms).err();
    assert_eq!(refused(terms(alice.id(), &alice.card())), Some(Error::MisuseNotAllowed));
    let good = || terms(bob.id(), &card);
    for life in [LINK_LIFE_MIN, LINK_LIFE_MAX] {
        assert_eq!(refused(IssueTerms { life, ..good() }), None, "{life:?}");
    }
    let (short, long) = (LINK_LIFE_MIN - Duration::from_millis(1), LINK_LIFE_MAX + Duration::from_millis(1));
    for life in [Duration::ZERO, short, long] {
        assert_eq!(refused(IssueTerms { life, ..good() }), Some(Error::MisuseNotAllowed), "{life:?}");
    }
    assert_eq!(refused(IssueTerms { allowed: MethodSet::EMPTY, ..good() }), Some(Error::LocalNoCommonMethod));
}

#[test]
fn a_life_too_short_to_be_renewed_in_is_refused() {
    let (alice, bob, issued) = offered();
    // By an issuer that does not refuse it himself.
    let open = |life| {
        let not_before = issued.header.not_after.minus(life);
        let offer = signed_anew(&alice, &bob, &SealedHeader { not_before, ..issued.header.clone() });
        bob.open(&received(&alice, offer), not_before).map(drop)
    };
    assert_eq!(open(LINK_LIFE_MIN), Ok(()));
    assert!(matches!(open(LINK_LIFE_MIN - Duration::from_millis(1)), Err(Error::PeerStatement(_))));
}

#[test]
fn an_issuer_that_breaks_the_rules_of_a_life_is_refused() {
    let (alice, bob, issued) = offered();
    let good = issued.header;
    let broken = [
        SealedHeader { not_after: good.not_after.plus(DAY), ..good.clone() },
        SealedHeader { not_before: good.not_after, ..good.clone() },
        SealedHeader { not_before: UnixMillis(1), ..good.clone() },
        SealedHeader { link_id: LinkId::from_bytes([1; 16]), not_before: NOW.plus(DAY * 40), ..good },
    ];
    for header in broken {
        let offer = signed_anew(&alice, &bob, &header);
        assert!(matches!(bob.open(&received(&alice, offer), NOW), Err(Error::PeerStatement(_))), "{header:?}");
    }
}

/// Alice herself signs `header` under a routing header that ends with her first offer.
fn signed_anew(alice: &Node, bob: &Node, header: &SealedHeader) -> Vec<u8> {
    let (prekey, routing) = (bob.prekeys.current().unwrap(), offered().2);
    let routing = RoutingHeader {
        issuer: alice.id(),
        recipient: bob.id(),
        prekey: prekey.id,
        psk: None,
        expiry: routing.header.not_after,
    };
    let (routing, hash) = (routing.encode(), sha2::Sha256::digest(&prekey.key).into());
    let info = super::issue::info(&alice.id(), &bob.id(), &prekey.id, &hash, &DIRECTORY);
    let sender = Sender::setup(&prekey.key, &info, None, &mut random(6)).unwrap();
    let header = header.encode();
    let statement = LinkStatement { routing: &routing, header: &header, enc: &sender.enc, prekey_hash: &hash };
    let body = SealedHeader::encode_body(&header, &alice.identity.sign_link(&statement));
    let enc = sender.enc.clone();
    Offer::encode(&routing, &enc, &sender.seal(&routing, &body).unwrap())
}
