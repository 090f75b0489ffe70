//! Every bit of every message, every length below the right one, and one byte more: all refused, none of them a panic.
#![allow(clippy::unwrap_used, reason = "tests")]

use super::*;

/// The three messages of one handshake, and fresh machines that expect them: engines are deterministic, so that a run is
/// repeated exactly for each change.
struct Run {
    alice: Engine,
    bob: Engine,
    link: Link,
    request: Vec<u8>,
    exchange: HandshakeId,
}

impl Run {
    fn begin(method: Method) -> Self {
        let (mut alice, bob) = (Engine::with(1, &[method]), Engine::with(2, &[method]));
        let link = Link::between(&alice, &bob, method, 3);
        let (exchange, request) = alice.begin(NOON, &link).unwrap();
        Self { alice, bob, link, request, exchange }
    }

    /// REQUEST with a change.
    fn request(mut self, change: impl Fn(&mut Vec<u8>)) -> Result<(), Refusal> {
        change(&mut self.request);
        self.bob.answer(NOON, &self.link, &self.request).map(drop)
    }

    /// VERIFY with a change.
    fn verify(mut self, change: impl Fn(&mut Vec<u8>)) -> Result<(), Refusal> {
        let mut verify = self.bob.answer(NOON, &self.link, &self.request).unwrap().message;
        change(&mut verify);
        self.alice.handshakes.finish(NOON, self.exchange, &verify, &[]).map(drop)
    }

    /// FINALIZE with a change.
    fn finalize(mut self, change: impl Fn(&mut Vec<u8>)) -> Result<(), Refusal> {
        let answered = self.bob.answer(NOON, &self.link, &self.request).unwrap();
        let (mut finalize, _) = self.alice.handshakes.finish(NOON, self.exchange, &answered.message, &[6; 32]).unwrap();
        change(&mut finalize);
        self.bob.handshakes.complete(NOON, answered.id, &finalize).map(drop)
    }
}

type Phase = fn(Run, &dyn Fn(&mut Vec<u8>)) -> Result<(), Refusal>;

const PHASES: [(&str, Phase); 3] = [
    ("REQUEST", |run, change| run.request(change)),
    ("VERIFY", |run, change| run.verify(change)),
    ("FINALIZE", |run, change| run.finalize(change)),
];

fn length(method: Method, phase: Phase) -> usize {
    let length = std::cell::Cell::new(0);
    phase(Run::begin(method), &|message| length.set(message.len())).expect("unchanged, it is accepted");
    length.get()
}

fn assert_flips(method: Method, bits: impl Fn(usize) -> Vec<usize>) {
    for (name, phase) in PHASES {
        for byte in 0..length(method, phase) {
            for bit in bits(byte) {
                let flipped = phase(Run::begin(method), &|message| message[byte] ^= 1 << bit);
                assert_eq!(flipped, Err(Refusal::NotAuthentic), "{method}, {name}, byte {byte}, bit {bit}");
            }
        }
    }
}

#[test]
fn every_bit_of_every_message() {
    assert_flips(Method::Alpha, |_| (0..8).collect());
}

#[test]
fn every_byte_of_every_message_in_the_other_suites() {
    for method in [Method::Beta, Method::Gamma, Method::Delta] {
        assert_flips(method, |byte| vec![byte % 8]);
    }
}

#[test]
fn every_length_but_the_right_one() {
    for (name, phase) in PHASES {
        let right = length(Method::Delta, phase);
        for short in (0..right).step_by(7).chain(right - 17..right) {
            let cut = phase(Run::begin(Method::Delta), &|message| message.truncate(short));
            assert_eq!(cut, Err(Refusal::NotAuthentic), "{name} cut to {short}");
        }
        for more in [1, 16, 4096, 70_000] {
            let longer = phase(Run::begin(Method::Delta), &|message| message.extend(vec![0; more]));
            assert_eq!(longer, Err(Refusal::NotAuthentic), "{name} with {more} bytes more");
        }
    }
}
