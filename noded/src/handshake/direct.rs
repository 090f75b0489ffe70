//! Direct contact as `noded` sees it before the key process does (PROTOCOL 5, "Direct mode"): the mac1 that anybody can make who
//! knows whom he means, and the half-open handshakes of strangers, bounded in all and by address.
//!
//! Sans-IO. A REQUEST is not remembered: who repeats one asks for a cookie first, and takes a place of his own.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Instant;

use hkdf::Hkdf;
use openred_proto::checked::direct::{DirectRequest, FEATURES};
use openred_proto::concat::concat;
use openred_proto::id::{HandshakeId, NodeId};
use openred_proto::label::derive;
use openred_proto::limits::{HALF_OPEN_DIRECT_PER_ROLE, HALF_OPEN_LIFE};
use openred_proto::method::Method;
use openred_proto::secret::Secret;
use sha2::Sha256;
use subtle::ConstantTimeEq as _;

use super::HandshakeRefusal;
use super::request::{Mark, mark};

/// Half-open handshakes of one address: a family behind one router, and no more of a flood than this.
const PER_ADDRESS: usize = 8;

/// The REQUEST with `noise` as message 1, under the mac1 key of its responder.
pub(crate) fn build(key: &Secret<32>, method: Method, noise: Vec<u8>) -> DirectRequest {
    DirectRequest { method, mac1: mac1(key, method, &noise), cookie: None, noise }
}

/// Checks mac1 in constant time.
pub(crate) fn verify_mac1(key: &Secret<32>, request: &DirectRequest) -> bool {
    mac1(key, request.method, &request.noise).ct_eq(&request.mac1).into()
}

/// The key that shows that a sender means this responder: everybody can make it who knows its id.
pub(crate) fn mac1_key(responder: &NodeId) -> Secret<32> {
    let mut key = [0; 32];
    let hkdf = Hkdf::<Sha256>::new(None, responder.as_bytes());
    hkdf.expand(derive::DIRECT_MAC1, &mut key).expect("32 bytes are within HKDF's bound");
    Secret::new(key)
}

fn mac1(key: &Secret<32>, method: Method, noise: &[u8]) -> Mark {
    mark(key.expose(), &concat(&[&[method as u8], &FEATURES, noise]))
}

/// The responder's half-open handshakes without a link.
#[derive(Debug, Default)]
pub(crate) struct DirectTable {
    waiting: HashMap<HandshakeId, (IpAddr, Instant)>,
    /// REQUESTs that the key process is looking at, by address.
    asking: HashMap<IpAddr, usize>,
}

impl DirectTable {
    /// Takes a place for a REQUEST of `address`, before the key process is asked; [`DirectTable::answered`] or
    /// [`DirectTable::refused`] is to follow.
    pub(crate) fn admit(&mut self, address: IpAddr, now: Instant) -> Result<(), HandshakeRefusal> {
        self.sweep(now);
        let asking = self.asking.get(&address).copied().unwrap_or_default();
        let of_address = asking + self.waiting.values().filter(|(of, _)| *of == address).count();
        let in_all = self.asking.values().sum::<usize>() + self.waiting.len();
        if of_address >= PER_ADDRESS || in_all >= HALF_OPEN_DIRECT_PER_ROLE {
            return Err(HandshakeRefusal::TooManyHalfOpen);
        }
        *self.asking.entry(address).or_default() += 1;
        Ok(())
    }

    /// Drops those whose FINALIZE did not come in time.
    pub(crate) fn sweep(&mut self, now: Instant) {
        self.waiting.retain(|_, (_, since)| now.saturating_duration_since(*since) < HALF_OPEN_LIFE);
    }

    /// How many wait for their FINALIZE.
    #[cfg(test)]
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// VERIFY goes out.
    pub(crate) fn answered(&mut self, address: IpAddr, handshake: HandshakeId, now: Instant) {
        self.refused(address);
        self.waiting.insert(handshake, (address, now));
    }

    /// The key process refused the REQUEST, or could not be asked.
    pub(crate) fn refused(&mut self, address: IpAddr) {
        if let Some(asking) = self.asking.get_mut(&address) {
            *asking -= 1;
            if *asking == 0 {
                self.asking.remove(&address);
            }
        }
    }

    /// A FINALIZE came: whether it is for one of these, which ends with it. One try.
    pub(crate) fn take(&mut self, handshake: &HandshakeId) -> bool {
        self.waiting.remove(handshake).is_some()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn id(number: usize) -> HandshakeId {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&number.to_le_bytes());
        HandshakeId::from_bytes(bytes)
    }

    fn address(number: usize) -> IpAddr {
        IpAddr::from([192, 0, 2, number as u8])
    }

    #[test]
    fn mac1_is_for_one_responder_and_covers_suite_and_message() {
        let [bob, carol] = [2, 3].map(|byte| mac1_key(&NodeId::from_bytes([byte; 32])));
        let built = build(&bob, Method::Beta, vec![8; 48]);
        assert!(verify_mac1(&bob, &built));
        assert!(!verify_mac1(&carol, &built));
        for changed in [
            DirectRequest { method: Method::Alpha, ..built.clone() },
            DirectRequest { noise: vec![9; 48], ..built.clone() },
            DirectRequest { mac1: [0; 16], ..built.clone() },
        ] {
            assert!(!verify_mac1(&bob, &changed), "{changed:?}");
        }
    }

    #[test]
    fn places_are_bounded_by_address_and_in_all_and_come_back() {
        let (mut table, now) = (DirectTable::default(), Instant::now());
        for number in 0..PER_ADDRESS {
            table.admit(address(1), now).unwrap();
            if number % 2 == 0 {
                table.answered(address(1), id(number), now);
            }
        }
        assert_eq!(table.admit(address(1), now), Err(HandshakeRefusal::TooManyHalfOpen));
        assert!(table.take(&id(0)) && !table.take(&id(0)), "one try");
        table.admit(address(1), now).unwrap();
        for number in PER_ADDRESS..HALF_OPEN_DIRECT_PER_ROLE {
            table.admit(address(2 + number / PER_ADDRESS), now).unwrap();
        }
        assert_eq!(table.admit(address(99), now), Err(HandshakeRefusal::TooManyHalfOpen));
        table.refused(address(2 + HALF_OPEN_DIRECT_PER_ROLE / PER_ADDRESS - 1));
        table.admit(address(99), now).unwrap();
        // What the key process still looks at keeps its place; what waited is over.
        let later = now + HALF_OPEN_LIFE;
        assert!(table.admit(address(98), later).is_ok() && !table.take(&id(2)));
    }
}
