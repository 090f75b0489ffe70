//! Every bit of every message, every length below the right one, and one byte more: all refused, none of them a panic.
#![allow(clippy::unwrap_used, reason = "tests")]

use super::*;

/// One handshake, run again and again with the same randomness: only the side that reads the changed message has to.
struct Run {
    alice: Engine,
    bob: Engine,
    link: Link,
    fresh: [ChaCha20Rng; 2],
    request: Vec<u8>,
    verify: Vec<u8>,
    finalize: Vec<u8>,
}

impl Run {
    fn new(method: Method) -> Self {
        Self::of(method, |one, other| Link::between(one, other, method, 3))
    }

    /// Without a link.
    fn direct(method: Method) -> Self {
        Self::of(method, |one, other| Link::none(one, other, method))
    }

    fn of(method: Method, link: impl Fn(&Engine, &Engine) -> Link) -> Self {
        let (mut alice, mut bob) = (Engine::with(1, &[method]), Engine::with(2, &[method]));
        let link = link(&alice, &bob);
        let fresh = [alice.random.clone(), bob.random.clone()];
        let (exchange, request) = alice.begin(NOON, &link).unwrap();
        let answered = bob.answer(NOON, &link, &request).unwrap();
        let (finalize, _) = alice.handshakes.finish(NOON, exchange, &answered.message, &[6; 32]).unwrap();
        bob.handshakes.complete(NOON, answered.id, &finalize).unwrap();
        Self { alice, bob, link, fresh, request, verify: answered.message, finalize }
    }

    /// The responder reads this REQUEST.
    fn request(&mut self, message: &[u8]) -> Result<(), Refusal> {
        self.bob.rewind(&self.fresh[1]);
        self.bob.answer(NOON, &self.link, message).map(drop)
    }

    /// The initiator, whose REQUEST is out, reads this VERIFY.
    fn verify(&mut self, message: &[u8]) -> Result<(), Refusal> {
        self.alice.rewind(&self.fresh[0]);
        let (exchange, request) = self.alice.begin(NOON, &self.link).unwrap();
        assert_eq!(request, self.request, "the same handshake");
        self.alice.handshakes.finish(NOON, exchange, message, &[6; 32]).map(drop)
    }

    /// The responder, whose VERIFY is out, reads this FINALIZE.
    fn finalize(&mut self, message: &[u8]) -> Result<(), Refusal> {
        self.bob.rewind(&self.fresh[1]);
        let answered = self.bob.answer(NOON, &self.link, &self.request).unwrap();
        assert_eq!(answered.message, self.verify, "the same handshake");
        self.bob.handshakes.complete(NOON, answered.id, message).map(drop)
    }

    fn message(&self, phase: usize) -> Vec<u8> {
        [&self.request, &self.verify, &self.finalize][phase].clone()
    }

    fn read(&mut self, phase: usize, message: &[u8]) -> Result<(), Refusal> {
        match phase {
            0 => self.request(message),
            1 => self.verify(message),
            _ => self.finalize(message),
        }
    }
}

const PHASES: [&str; 3] = ["REQUEST", "VERIFY", "FINALIZE"];

fn assert_flips(mut run: Run, bits: impl Fn(usize) -> Vec<usize>) {
    let method = run.link.method;
    for (phase, name) in PHASES.into_iter().enumerate() {
        let mut message = run.message(phase);
        assert_eq!(run.read(phase, &message), Ok(()), "unchanged, it is accepted");
        for byte in 0..message.len() {
            for bit in bits(byte) {
                message[byte] ^= 1 << bit;
                let flipped = run.read(phase, &message);
                assert_eq!(flipped, Err(Refusal::NotAuthentic), "{method}, {name}, byte {byte}, bit {bit}");
                message[byte] ^= 1 << bit;
            }
        }
    }
}

#[test]
fn every_bit_of_every_message() {
    assert_flips(Run::new(Method::Alpha), |_| (0..8).collect());
}

#[test]
fn every_byte_of_every_message_in_the_other_suites() {
    for method in [Method::Beta, Method::Gamma, Method::Delta] {
        assert_flips(Run::new(method), |byte| vec![byte % 8]);
    }
}

#[test]
fn every_byte_of_every_message_without_a_link() {
    for method in Method::ALL {
        assert_flips(Run::direct(method), |byte| vec![byte % 8]);
    }
}

#[test]
fn every_length_but_the_right_one() {
    for mut run in [Run::new(Method::Delta), Run::direct(Method::Delta)] {
        assert_lengths(&mut run);
    }
}

fn assert_lengths(run: &mut Run) {
    for (phase, name) in PHASES.into_iter().enumerate() {
        let message = run.message(phase);
        for short in (0..message.len()).step_by(7).chain(message.len() - 17..message.len()) {
            assert_eq!(run.read(phase, &message[..short]), Err(Refusal::NotAuthentic), "{name} cut to {short}");
        }
        for more in [1, 16, 4096, 70_000] {
            let longer = [message.clone(), vec![0; more]].concat();
            assert_eq!(run.read(phase, &longer), Err(Refusal::NotAuthentic), "{name} with {more} bytes more");
        }
    }
}
