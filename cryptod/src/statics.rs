//! Static keys: one X25519 key per cipher suite (Noise §14: one hash per static key), and the certificates that the
//! identity signs for them, once a day (PROTOCOL 1).
//!
//! In: the records of the state file, time and randomness. Out: the key and certificate of a suite for one handshake. The
//! certificate's window is kept, not its bytes: Ed25519 signatures are deterministic, so the same window gives the same bytes.

use openred_proto::checked::static_certificate::StaticCertificate;
use openred_proto::id::UnixMillis;
use openred_proto::limits::{STATIC_BACKDATE, STATIC_LIFE};
use openred_proto::method::Method;
use openred_proto::secret::Secret;
use rand_core::CryptoRng;
use x25519_dalek::{PublicKey, StaticSecret};

use crate::error::{Error, Result};
use crate::identity::Identity;
use crate::state::StaticRecord;

/// A suite's key with its certificate, ready for a handshake.
pub struct Certified<'a> {
    /// X25519 private key.
    pub secret: &'a Secret<32>,
    /// The signed certificate.
    pub certificate: &'a [u8],
}

/// The certificates in use, beside their records in the state.
#[derive(Default)]
pub struct Statics {
    signed: Vec<(Method, UnixMillis, Vec<u8>)>,
}

impl Statics {
    /// Makes missing keys and signs certificates that are missing or past their day; true when a record changed.
    ///
    /// # Errors
    /// [`Error::Bug`] when the identity refuses its own key.
    pub fn refresh(
        &mut self,
        records: &mut Vec<StaticRecord>,
        identity: &Identity,
        now: UnixMillis,
        random: &mut impl CryptoRng,
    ) -> Result<bool> {
        let mut changed = false;
        for method in Method::ALL {
            if !records.iter().any(|record| record.method == method) {
                records.push(fresh(method, random));
            }
            let record = records.iter_mut().find(|record| record.method == method);
            let record = record.ok_or(Error::Bug("a static key that was just made is missing"))?;
            // A clock that was set back makes the window lie in the future: sign again then, too.
            if now >= record.not_after || now < record.not_before {
                record.not_before = now.minus(STATIC_BACKDATE);
                record.not_after = now.plus(STATIC_LIFE);
                changed = true;
            }
            let signed = self.signed.iter().any(|(of, end, _)| *of == method && *end == record.not_after);
            if !signed {
                let bytes = identity.sign_static(&certificate(record, identity))?;
                self.signed.retain(|(of, ..)| *of != method);
                self.signed.push((method, record.not_after, bytes));
            }
        }
        Ok(changed)
    }

    /// The key and certificate of `method`.
    ///
    /// # Errors
    /// [`Error::Bug`] before the first [`Statics::refresh`].
    pub fn certified<'a>(&'a self, records: &'a [StaticRecord], method: Method) -> Result<Certified<'a>> {
        let record = records.iter().find(|record| record.method == method);
        let signed = self.signed.iter().find(|(of, ..)| *of == method);
        match (record, signed) {
            (Some(record), Some((_, _, bytes))) => Ok(Certified { secret: &record.secret, certificate: bytes }),
            _ => Err(Error::Bug("static keys were not made yet")),
        }
    }
}

fn fresh(method: Method, random: &mut impl CryptoRng) -> StaticRecord {
    let mut secret = [0; 32];
    random.fill_bytes(&mut secret);
    let record =
        StaticRecord { method, secret: Secret::new(secret), not_before: UnixMillis(0), not_after: UnixMillis(0) };
    zeroize::Zeroize::zeroize(&mut secret);
    record
}

fn certificate(record: &StaticRecord, identity: &Identity) -> StaticCertificate {
    let public = PublicKey::from(&StaticSecret::from(*record.secret.expose()));
    StaticCertificate {
        node_id: identity.node_id(),
        method: record.method,
        key: public.to_bytes(),
        not_before: record.not_before,
        not_after: record.not_after,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::time::Duration;

    use super::*;
    use crate::testing::{NOW, random};

    #[test]
    fn each_suite_has_its_own_key_and_a_certificate_for_a_day() {
        let identity = Identity::from_seed(&Secret::new([1; 32]));
        let (mut statics, mut records) = (Statics::default(), Vec::new());
        assert!(statics.refresh(&mut records, &identity, NOW, &mut random(1)).unwrap());
        let mut keys = std::collections::HashSet::new();
        for method in Method::ALL {
            let certified = statics.certified(&records, method).unwrap();
            let certificate = StaticCertificate::verify(certified.certificate, NOW).unwrap();
            assert_eq!((certificate.node_id, certificate.method), (identity.node_id(), method));
            assert_eq!(certificate.not_before, NOW.minus(STATIC_BACKDATE));
            assert_eq!(certificate.not_after, NOW.plus(STATIC_LIFE));
            assert!(keys.insert(certificate.key));
        }
    }

    #[test]
    fn the_identity_signs_again_after_a_day_and_never_before() {
        let identity = Identity::from_seed(&Secret::new([1; 32]));
        let (mut statics, mut records) = (Statics::default(), Vec::new());
        statics.refresh(&mut records, &identity, NOW, &mut random(1)).unwrap();
        let first = statics.certified(&records, Method::Beta).unwrap().certificate.to_vec();
        let later = NOW.plus(STATIC_LIFE - Duration::from_secs(1));
        assert!(!statics.refresh(&mut records, &identity, later, &mut random(2)).unwrap());
        assert_eq!(statics.certified(&records, Method::Beta).unwrap().certificate, first);
        assert!(statics.refresh(&mut records, &identity, NOW.plus(STATIC_LIFE), &mut random(2)).unwrap());
        assert_ne!(statics.certified(&records, Method::Beta).unwrap().certificate, first);
        let restarted = {
            let mut again = Statics::default();
            assert!(!again.refresh(&mut records, &identity, NOW.plus(STATIC_LIFE), &mut random(3)).unwrap());
            again.certified(&records, Method::Beta).unwrap().certificate.to_vec()
        };
        assert_eq!(restarted, statics.certified(&records, Method::Beta).unwrap().certificate);
    }
}
