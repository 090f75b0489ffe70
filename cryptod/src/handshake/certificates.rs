//! Peers' static certificates that verified, so that the next handshake within their day costs a hash and no signature check.
//!
//! In: certificates as they came inside a handshake. Out: what they say. Known again by the hash of all their bytes, signature
//! included; that they are within their window is looked at each time.

use openred_proto::checked::check_window;
use openred_proto::checked::static_certificate::StaticCertificate;
use openred_proto::error::Result;
use openred_proto::id::UnixMillis;
use sha2::{Digest, Sha256};

/// How many are kept, the newest: 32 KiB. A peer has one a method and day.
const KEPT: usize = 256;

/// Certificates that verified, oldest first from `next` on.
pub(super) struct Certificates {
    known: Vec<([u8; 32], StaticCertificate)>,
    next: usize,
}

impl Certificates {
    pub(super) const fn new() -> Self {
        Self { known: Vec::new(), next: 0 }
    }

    /// Verifies a certificate, or finds that these bytes verified before.
    ///
    /// # Errors
    /// As [`StaticCertificate::verify`].
    pub(super) fn verify(&mut self, bytes: &[u8], now: UnixMillis) -> Result<StaticCertificate> {
        let hash: [u8; 32] = Sha256::digest(bytes).into();
        if let Some((_, known)) = self.known.iter().find(|(of, _)| *of == hash) {
            check_window("static certificate", now, known.not_before, known.not_after)?;
            return Ok(known.clone());
        }
        let certificate = StaticCertificate::verify(bytes, now)?;
        let entry = (hash, certificate.clone());
        if self.known.len() < KEPT {
            self.known.push(entry);
        } else {
            self.known[self.next] = entry;
            self.next = (self.next + 1) % KEPT;
        }
        Ok(certificate)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use openred_proto::error::WireError;
    use openred_proto::limits::{CLOCK_GRACE, STATIC_LIFE};
    use openred_proto::method::Method;
    use openred_proto::secret::Secret;

    use super::*;
    use crate::identity::Identity;

    const NOW: UnixMillis = UnixMillis(1_800_000_000_000);

    fn certificate(node: u8, key: u8) -> (StaticCertificate, Vec<u8>) {
        let identity = Identity::from_seed(&Secret::new([node; 32]));
        let certificate = StaticCertificate {
            node_id: identity.node_id(),
            method: Method::Alpha,
            key: [key; 32],
            not_before: NOW,
            not_after: NOW.plus(STATIC_LIFE),
        };
        let bytes = identity.sign_static(&certificate).unwrap();
        (certificate, bytes)
    }

    #[test]
    fn a_known_one_is_still_looked_at_for_its_window_and_each_changed_byte() {
        let mut certificates = Certificates::new();
        let (said, bytes) = certificate(1, 2);
        for _ in 0..2 {
            assert_eq!(certificates.verify(&bytes, NOW).unwrap(), said);
        }
        assert_eq!(certificates.known.len(), 1);
        let late = NOW.plus(STATIC_LIFE).plus(CLOCK_GRACE * 2);
        assert!(matches!(certificates.verify(&bytes, late), Err(WireError::OutOfTime { early: false, .. })));
        assert!(certificates.verify(&bytes, NOW.minus(CLOCK_GRACE * 2)).is_err(), "not yet");
        for bit in 0..bytes.len() * 8 {
            let mut changed = bytes.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(certificates.verify(&changed, NOW).is_err(), "bit {bit}");
        }
        assert_eq!(certificates.known.len(), 1, "what was refused is not kept");
    }

    #[test]
    fn no_more_are_kept_than_there_is_room_for_and_the_oldest_goes() {
        let mut certificates = Certificates::new();
        let all: Vec<_> = (0..KEPT + 3).map(|place| certificate(place as u8, (place / 256) as u8)).collect();
        for (said, bytes) in &all {
            assert_eq!(certificates.verify(bytes, NOW).unwrap(), *said);
        }
        assert_eq!(certificates.known.len(), KEPT);
        assert!(!certificates.known.iter().any(|(_, known)| *known == all[0].0));
        assert!(certificates.known.iter().any(|(_, known)| *known == all[KEPT + 2].0));
        assert_eq!(certificates.verify(&all[0].1, NOW).unwrap(), all[0].0, "forgotten is not refused");
    }
}
