//! Offers that renew a link: what opens them, and everything that must not.

use super::*;
use crate::link::accept::Renewed;
use crate::link::derive::renewal_psk;
use crate::prekey::Psk;

const OLD: LinkId = LinkId::from_bytes([0x0d; 16]);
const BASE: Secret<32> = Secret::new([0xb0; 32]);

fn psk(link: LinkId, base: &Secret<32>, from: &Node, to: &Node) -> Psk {
    Psk { link, secret: renewal_psk(base, &link, &from.id(), &to.id()).unwrap() }
}

fn renewed(peer: &Node) -> Renewed {
    Renewed { link: OLD, peer: peer.id(), base: BASE, life: DAY }
}

/// What Alice offers Bob in the place of the old link.
fn renewal(alice: &Node, bob: &Node) -> Issued {
    let psk = psk(OLD, &BASE, alice, bob);
    issue(
        &alice.identity,
        (&SEED, &Methods::default()),
        &terms(bob.id(), &bob.card()),
        Some(&psk),
        NOW.0,
        NOW,
        &mut random(99),
    )
    .unwrap()
}

fn open_renewal(
    node: &Node,
    received: &ReceivedOffer,
    renewed: Option<&Renewed>,
) -> Result<super::super::accept::Opened> {
    open(&node.id(), (&node.prekeys, &Methods::default()), received, renewed, NOW)
}

#[test]
fn both_sides_get_one_base_that_is_not_the_old_one() {
    let (alice, bob) = (Node::new(1), Node::new(2));
    let issued = renewal(&alice, &bob);
    let opened = open_renewal(&bob, &received(&alice, issued.offer.clone()), Some(&renewed(&alice))).unwrap();
    assert_eq!((opened.base, &opened.header), (issued.base, &issued.header));
    assert!(*issued.header.link_id.as_bytes() != *OLD.as_bytes());
    assert_eq!(Offer::decode(&issued.offer).unwrap().routing.psk, Some(OLD), "named in clear");
    // The psk id is the only thing that a renewal shows more than a first offer.
    assert_eq!(issued.offer.len(), offered().2.offer.len() + 2 + 16);
}

#[test]
fn it_opens_under_the_link_that_it_renews_and_no_other() {
    let (alice, bob, carol) = (Node::new(1), Node::new(2), Node::new(3));
    let offer = received(&alice, renewal(&alice, &bob).offer);
    let malformed = |why| Some(Error::PeerStatement(WireError::Malformed { what: "link offer", why }));
    assert_eq!(open_renewal(&bob, &offer, None).err(), malformed("it renews a link"));
    let another = Renewed { link: LinkId::from_bytes([1; 16]), ..renewed(&alice) };
    assert_eq!(open_renewal(&bob, &offer, Some(&another)).err(), malformed("it does not renew that link"));
    let other_base = Renewed { base: Secret::new([1; 32]), ..renewed(&alice) };
    assert_eq!(open_renewal(&bob, &offer, Some(&other_base)).err(), Some(Error::PeerOfferSealed));
    assert_eq!(open_renewal(&bob, &offer, Some(&renewed(&carol))).err(), Some(Error::PeerOfferSender));
    let longer = Renewed { life: DAY * 2, ..renewed(&alice) };
    let why = "its life is not that of the link that it renews";
    assert_eq!(open_renewal(&bob, &offer, Some(&longer)).err(), malformed(why), "a life is inherited");
    let plain = received(&alice, offered().2.offer);
    assert_eq!(open_renewal(&bob, &plain, Some(&renewed(&alice))).err(), malformed("it does not renew that link"));
}

#[test]
fn who_lacks_the_old_base_can_name_the_link_and_gets_nowhere() {
    let (alice, bob) = (Node::new(1), Node::new(2));
    let card = bob.card();
    let guess = Psk { link: OLD, secret: Secret::new([0x55; 32]) };
    let forged = issue(
        &alice.identity,
        (&SEED, &Methods::default()),
        &terms(bob.id(), &card),
        Some(&guess),
        NOW.0,
        NOW,
        &mut random(9),
    )
    .unwrap();
    let refused = open_renewal(&bob, &received(&alice, forged.offer), Some(&renewed(&alice)));
    assert_eq!(refused.err(), Some(Error::PeerOfferSealed), "Alice's identity alone renews nothing");
    // Reflected: the key of the other direction.
    let turned = psk(OLD, &BASE, &bob, &alice);
    let offer = issue(
        &alice.identity,
        (&SEED, &Methods::default()),
        &terms(bob.id(), &card),
        Some(&turned),
        NOW.0,
        NOW,
        &mut random(9),
    )
    .unwrap();
    let refused = open_renewal(&bob, &received(&alice, offer.offer), Some(&renewed(&alice)));
    assert_eq!(refused.err(), Some(Error::PeerOfferSealed));
}

#[test]
fn every_bit_of_the_clear_header_is_bound() {
    let (alice, bob) = (Node::new(1), Node::new(2));
    let offer = renewal(&alice, &bob).offer;
    let clear = 2 + usize::from(u16::from_be_bytes([offer[0], offer[1]]));
    for bit in 0..clear * 8 {
        let mut changed = offer.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        assert!(open_renewal(&bob, &received(&alice, changed), Some(&renewed(&alice))).is_err(), "bit {bit}");
    }
}
