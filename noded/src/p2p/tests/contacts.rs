//! Open contacts by themselves: who makes way when there are too many, and who does not.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Instant;

use openred_proto::id::{NodeId, UnixMillis};

use super::pool::grant;
use crate::p2p::connections::Reach;
use crate::p2p::direct::contacts::{CONTACTS, Came, Contact, Contacts, OURS};
use crate::session::Session;

fn peer(number: u8) -> NodeId {
    NodeId::from_bytes([number; 32])
}

fn address(number: u8) -> IpAddr {
    Ipv4Addr::new(192, 0, 2, number).into()
}

fn contact(number: u8, came: Came, now: Instant) -> Arc<Contact> {
    let (session, _) = Session::as_responder(&grant(peer(number), None, number), now).unwrap();
    Contact::new(session, came, UnixMillis(0))
}

pub(super) fn stranger(number: u8, from: u8, now: Instant) -> Arc<Contact> {
    contact(number, Came::From(address(from)), now)
}

pub(super) fn ours(number: u8, now: Instant) -> Arc<Contact> {
    contact(number, Came::To(Reach::parse("http://192.0.2.1:7690").unwrap()), now)
}

#[test]
fn strangers_and_our_own_take_no_place_of_each_other() {
    let (contacts, now) = (Contacts::default(), Instant::now());
    for number in 1..=CONTACTS as u8 {
        assert!(contacts.insert(&stranger(number, number, now), now));
    }
    for number in 101..101 + OURS as u8 {
        assert!(contacts.has_room_to(&peer(number), now) && contacts.insert(&ours(number, now), now), "{number}");
    }
    assert_eq!(contacts.all(now).len(), CONTACTS + OURS);
    assert!(!contacts.has_room_to(&peer(200), now) && !contacts.insert(&ours(200, now), now));
    assert!(contacts.has_room_to(&peer(101), now) && contacts.insert(&ours(101, now), now), "in place of itself");
    assert_eq!(contacts.all(now).iter().filter(|contact| !contact.is_ours()).count(), CONTACTS);
}

#[test]
fn a_stranger_without_an_offer_makes_way_first_where_most_came_from() {
    let (contacts, now) = (Contacts::default(), Instant::now());
    // Eight addresses with eight strangers each; the first of all has brought its offer.
    let all: Vec<_> = (1..=CONTACTS as u8).map(|number| stranger(number, number / 8, now)).collect();
    all.iter().for_each(|contact| assert!(contacts.insert(contact, now)));
    let is_open = |contact: &Arc<Contact>| contacts.all(now).iter().any(|open| Arc::ptr_eq(open, contact));
    all[7].set_has_offer();
    // Address 0 has seven, 1 has seven spare ones, and the 64th is alone at address 8.
    let lone = &all[63];
    for (number, from) in (101..=140).zip(31..) {
        assert!(contacts.has_room(address(from), now));
        assert!(contacts.insert(&stranger(number, from, now), now));
    }
    assert!(is_open(lone) && is_open(&all[7]), "one of many goes before one that is alone");
    assert!(!is_open(&all[0]) && !is_open(&all[8]), "the oldest of an address first");
    assert_eq!(contacts.all(now).len(), CONTACTS);
    // Nobody makes way whose offer is here.
    contacts.all(now).iter().for_each(|contact| contact.set_has_offer());
    assert!(!contacts.has_room(address(99), now) && !contacts.insert(&stranger(200, 99, now), now));
}
