//! Cookies against changed bytes, other places and time; and the responder that asks for them, at each bound of its load.
#![allow(clippy::unwrap_used, reason = "tests")]

use openred_proto::checked::handshake::{HandshakeRequest, RequestAnswer};
use openred_proto::id::HandshakeId;
use openred_proto::limits::HALF_OPEN_PER_LINK;

use super::*;
use crate::handshake::responder::{Answering, Arrival, Request, Responder};
use crate::handshake::tests::{ALICE, BOB, from_alice, handle, request_keys};

fn at(text: &str) -> Source {
    Source::Network(text.parse().unwrap())
}

/// Each call draws other bytes.
fn fresh(number: u8) -> impl FnOnce() -> Fresh {
    move || Fresh { secret: Secret::new([number; 32]), nonce: [number; COOKIE_NONCE_BYTES] }
}

/// A responder's cookies and one REQUEST of alice to them.
struct Asked {
    cookies: Cookies,
    covered: Vec<u8>,
    mac1: Mark,
    key: Secret<32>,
}

impl Asked {
    fn new() -> Self {
        let request = from_alice(1, 1, &[7; 48]);
        let (covered, mac1) = (request.without_cookie(), request.mac1);
        Self { cookies: Cookies::default(), covered, mac1, key: request_keys(4).mac1 }
    }

    fn check(&mut self, proof: Option<&Mark>, source: Source, now: Instant, draw: u8) -> Result<(), HandshakeCookie> {
        let shown = Shown { covered: &self.covered, mac1: &self.mac1, mac1_key: &self.key, proof };
        self.cookies.check(&shown, source, now, fresh(draw))
    }

    /// What alice shows after she was asked from `source`.
    fn proof(&mut self, source: Source, now: Instant, draw: u8) -> Mark {
        let answer = self.check(None, source, now, draw).unwrap_err();
        Cookie::open(&answer, &self.key, &self.mac1).unwrap().proof(&self.covered)
    }
}

#[test]
fn a_cookie_is_good_from_where_it_was_given_and_nowhere_else() {
    let (mut asked, now) = (Asked::new(), Instant::now());
    let places = ["192.0.2.1", "192.0.2.2", "2001:db8::", "2001:db8:0:1::", "::"];
    for (draw, from) in places.into_iter().enumerate() {
        let proof = asked.proof(at(from), now, draw as u8);
        for source in places {
            assert_eq!(asked.check(Some(&proof), at(source), now, 9).is_ok(), source == from, "{from} {source}");
        }
        assert!(asked.check(Some(&proof), Source::Hidden, now, 9).is_ok());
    }
    assert!(asked.check(None, Source::Hidden, now, 9).is_ok(), "a carrier without addresses is not asked");
}

#[test]
fn each_bit_of_what_is_shown_and_of_what_it_covers_counts() {
    let (mut asked, now, from) = (Asked::new(), Instant::now(), at("192.0.2.1"));
    let proof = asked.proof(from, now, 1);
    for bit in 0..proof.len() * 8 {
        let mut changed = proof;
        changed[bit / 8] ^= 1 << (bit % 8);
        assert!(asked.check(Some(&changed), from, now, 2).is_err(), "bit {bit} of the proof");
    }
    for bit in 0..asked.covered.len() * 8 {
        asked.covered[bit / 8] ^= 1 << (bit % 8);
        assert!(asked.check(Some(&proof), from, now, 2).is_err(), "bit {bit} of the message");
        asked.covered[bit / 8] ^= 1 << (bit % 8);
    }
    assert!(asked.check(Some(&proof), from, now, 2).is_ok());
}

#[test]
fn only_who_sent_the_request_and_saw_the_answer_learns_the_cookie() {
    let (mut asked, now) = (Asked::new(), Instant::now());
    let answer = asked.check(None, at("192.0.2.1"), now, 1).unwrap_err();
    assert!(Cookie::open(&answer, &asked.key, &asked.mac1).is_some());
    assert!(Cookie::open(&answer, &request_keys(8).mac1, &asked.mac1).is_none(), "another link");
    assert!(Cookie::open(&answer, &asked.key, &[0; 16]).is_none(), "the answer to another REQUEST");
    for bit in 0..(answer.nonce.len() + answer.sealed.len()) * 8 {
        let mut changed = answer.clone();
        match (bit / 8).checked_sub(answer.nonce.len()) {
            None => changed.nonce[bit / 8] ^= 1 << (bit % 8),
            Some(byte) => changed.sealed[byte] ^= 1 << (bit % 8),
        }
        assert!(Cookie::open(&changed, &asked.key, &asked.mac1).is_none(), "bit {bit}");
    }
    // The cookie itself is not in it: it is that of the address, whoever asks, and never the same on the wire.
    let again = asked.check(None, at("192.0.2.1"), now, 2).unwrap_err();
    assert_ne!(again.sealed, answer.sealed);
    let proofs = [&answer, &again].map(|answer| Cookie::open(answer, &asked.key, &asked.mac1).unwrap().proof(b"x"));
    assert_eq!(proofs[0], proofs[1]);
}

#[test]
fn the_secret_is_drawn_anew_after_two_minutes_and_the_one_before_is_taken_for_two_more() {
    let (mut asked, now, from) = (Asked::new(), Instant::now(), at("192.0.2.1"));
    let second = Duration::from_secs(1);
    let first = asked.proof(from, now, 1);
    assert_eq!(asked.proof(from, now + COOKIE_LIFE - second, 2), first, "within two minutes it is the same");
    let next = asked.proof(from, now + COOKIE_LIFE, 3);
    assert_ne!(next, first);
    for (proof, until) in [(first, COOKIE_LIFE * 2), (next, COOKIE_LIFE * 3)] {
        assert!(asked.check(Some(&proof), from, now + until - second, 4).is_ok());
    }
    assert!(asked.check(Some(&first), from, now + COOKIE_LIFE * 2, 5).is_err());
    // That drew a third secret: the first is gone, and so is the second in its time.
    assert!(asked.check(Some(&next), from, now + COOKIE_LIFE * 3 - second, 6).is_ok());
    assert!(asked.check(Some(&next), from, now + COOKIE_LIFE * 3, 7).is_err());
}

#[test]
fn an_initiator_shows_a_cookie_for_two_minutes_and_keeps_a_bounded_number() {
    let (mut jar, now) = (CookieJar::default(), Instant::now());
    let cookie = |number: u8| Cookie(Secret::new([number; COOKIE_BYTES]));
    let here: SocketAddr = "192.0.2.1:7000".parse().unwrap();
    jar.keep(BOB, here, cookie(1), now);
    assert_eq!(jar.proof(BOB, here, b"m", now), Some(cookie(1).proof(b"m")));
    assert_eq!(jar.proof(ALICE, here, b"m", now), None, "another peer's");
    assert_eq!(jar.proof(BOB, "192.0.2.2:7000".parse().unwrap(), b"m", now), None, "another address of the peer");
    assert_eq!(jar.proof(BOB, here, b"m", now + COOKIE_LIFE), None);
    let port = |number: usize| SocketAddr::new(here.ip(), number as u16);
    for number in 0..3 * KEPT {
        jar.keep(BOB, port(number), cookie(2), now);
        assert!(jar.0.len() <= KEPT);
        assert!(jar.proof(BOB, port(number), b"m", now).is_some(), "the newest is always kept");
    }
    jar.sweep(now);
    assert!(!jar.0.is_empty());
    jar.sweep(now + COOKIE_LIFE);
    assert!(jar.0.is_empty());
}

fn look(responder: &mut Responder, request: &HandshakeRequest, source: Source, now: Instant) -> Request {
    responder.handle_request(request, Arrival { source, now, fresh: fresh(1) }).unwrap()
}

fn asks(responder: &mut Responder, request: &HandshakeRequest, source: Source, now: Instant) -> Option<Answering> {
    match look(responder, request, source, now) {
        Request::Ask(answering) => Some(answering),
        _ => None,
    }
}

/// The REQUEST again, as its sender would send it.
fn again(answer: &Request, request: &HandshakeRequest) -> HandshakeRequest {
    let Request::Cookie(answer) = answer else { panic!("{answer:?}") };
    let Ok(RequestAnswer::Cookie(answer)) = RequestAnswer::decode(answer) else { panic!("{answer:?}") };
    let cookie = Cookie::open(&answer, &request_keys(4).mac1, &request.mac1).unwrap();
    HandshakeRequest { cookie: Some(cookie.proof(&request.without_cookie())), ..request.clone() }
}

fn bob(load: LoadBounds, links: u8) -> Responder {
    let mut responder = Responder::new(BOB, load);
    for link in 1..=links {
        assert!(responder.tags.insert(handle(link, 0)));
    }
    responder
}

#[test]
fn under_load_a_request_is_looked_at_once_its_sender_has_shown_where_it_is() {
    let (now, here) = (Instant::now(), at("192.0.2.1"));
    let mut responder = bob(LoadBounds { asked: 0, ..LoadBounds::default() }, 1);
    let request = from_alice(1, 1, &[7; 48]);
    let shown = again(&look(&mut responder, &request, here, now), &request);
    assert!(asks(&mut responder, &request, here, now).is_none(), "without it, again nothing");
    assert!(asks(&mut responder, &shown, at("192.0.2.2"), now).is_none(), "from elsewhere, nothing");
    let other = HandshakeRequest { cookie: shown.cookie, ..from_alice(1, 2, &[7; 48]) };
    assert!(asks(&mut responder, &other, here, now).is_none(), "it serves no other REQUEST");
    let answering = asks(&mut responder, &shown, here, now).expect("nothing of that spent it");
    responder.answered(answering, HandshakeId::from_bytes([1; 16]), &bytes::Bytes::from_static(b"verify"), now);
    for repeated in [&request, &shown] {
        assert!(matches!(look(&mut responder, repeated, here, now), Request::Repeat(_)), "what is known costs nothing");
    }
    let mut unknown = request;
    unknown.tag[0] ^= 1;
    let arrival = Arrival { source: here, now, fresh: || panic!("no cookie for who holds no link") };
    assert!(responder.handle_request(&unknown, arrival).is_err());
}

#[test]
fn load_begins_at_each_of_its_bounds_and_lasts_a_moment_longer() {
    let (now, here) = (Instant::now(), at("192.0.2.1"));
    let hold = Duration::from_secs(1);
    for in_table in [false, true] {
        let bound = 2 * HALF_OPEN_PER_LINK;
        let high = usize::MAX;
        let (asked, half_open) = if in_table { (high, bound) } else { (bound, high) };
        let mut responder = bob(LoadBounds { asked, half_open, hold }, 3);
        let mut pending = Vec::new();
        for number in 0..bound {
            let (link, counter) = (1 + number / HALF_OPEN_PER_LINK, 1 + number % HALF_OPEN_PER_LINK);
            let request = from_alice(link as u8, counter as u64, &[7; 48]);
            let answering = asks(&mut responder, &request, here, now).expect("below the bound");
            if in_table {
                let id = HandshakeId::from_bytes([number as u8; 16]);
                responder.answered(answering, id, &bytes::Bytes::from_static(b"verify"), now);
            } else {
                pending.push(answering);
            }
        }
        let request = from_alice(3, 1, &[7; 48]);
        assert!(matches!(look(&mut responder, &request, here, now), Request::Cookie(_)), "at the bound");
        assert!(
            asks(&mut responder, &from_alice(3, 2, &[7; 48]), Source::Hidden, now).is_some(),
            "no address, no cookie"
        );
        // What was there is gone, by its end or by its time.
        let free = if in_table { now + openred_proto::limits::HALF_OPEN_LIFE } else { now };
        if in_table {
            assert!(matches!(look(&mut responder, &request, here, free - hold / 2), Request::Cookie(_)));
        }
        for answering in pending {
            responder.refused(&answering, true);
        }
        assert!(matches!(look(&mut responder, &request, here, free), Request::Cookie(_)), "a moment longer");
        assert!(asks(&mut responder, &request, here, free + hold).is_some(), "and no longer");
    }
}
