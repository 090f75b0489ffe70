//! Token buckets by class of operation, kept inside the vault: what a compromised caller can make the keys do in a second.

use openred_proto::id::UnixMillis;
use openred_proto::limits::{SIGNATURES_PER_SECOND, SIGNATURES_PER_SECOND_MAX};

use super::access::Class;
use crate::error::{Error, Result};

/// Parts of one token; a rate of one a second fills one part a millisecond.
const PARTS: u64 = 1000;

/// How often one class may be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// At once.
    pub burst: u32,
    /// Refilled in a second.
    pub per_second: u32,
}

impl Rate {
    /// So many a second, and ten times as many at once.
    const fn of_signatures(per_second: u32) -> Self {
        Self { burst: per_second.saturating_mul(10), per_second }
    }
}

/// The rates of every class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rates {
    /// Who the node is.
    pub describe: Rate,
    /// Cards and HTTP requests: a few a minute in service, more when a directory is retried.
    pub sign: Rate,
    /// What modules state: each signature leaves a record in the trail, so the operator's number of signatures does not raise it.
    pub module: Rate,
    /// Offers: rare; each costs about a millisecond of the one thread.
    pub offer: Rate,
    /// Phases of handshakes: two a side and session, for as many peers as there are links.
    pub handshake: Rate,
    /// Beginnings of direct contact: an operator's word on one side, anybody's with a cookie on the other.
    pub direct: Rate,
    /// Rows: all links' keys once at start, then one a session.
    pub row: Rate,
    /// Store keys, seal keys and methods: a few a module and start of `noded`, which is started again after 250 ms at the soonest.
    pub store: Rate,
    /// Reports for the audit trail; those over the trail's own share are only counted.
    pub report: Rate,
    /// The operator's: a look at the audit trail a second, and a command now and then.
    pub control: Rate,
}

impl Default for Rates {
    fn default() -> Self {
        Self {
            describe: Rate { burst: 200, per_second: 100 },
            sign: Rate::of_signatures(SIGNATURES_PER_SECOND),
            module: Rate::of_signatures(SIGNATURES_PER_SECOND),
            offer: Rate { burst: 200, per_second: 50 },
            handshake: Rate { burst: 8192, per_second: 4096 },
            direct: Rate { burst: 64, per_second: 8 },
            row: Rate { burst: 8192, per_second: 4096 },
            store: Rate { burst: 64, per_second: 1 },
            report: Rate { burst: 200, per_second: 50 },
            control: Rate { burst: 100, per_second: 20 },
        }
    }
}

impl Rates {
    /// With the operator's number of signatures a second, if it is one that he may choose.
    #[must_use]
    pub fn with_signatures(self, per_second: u32) -> Option<Self> {
        let may = (1..=SIGNATURES_PER_SECOND_MAX).contains(&per_second);
        may.then_some(Self { sign: Rate::of_signatures(per_second), ..self })
    }

    const fn of(&self, class: Class) -> Rate {
        match class {
            Class::Describe => self.describe,
            Class::Sign => self.sign,
            Class::SignModule => self.module,
            Class::Offer => self.offer,
            Class::Handshake => self.handshake,
            Class::Direct => self.direct,
            Class::Row => self.row,
            Class::Store => self.store,
            Class::Report => self.report,
            Class::Control => self.control,
        }
    }
}

struct Bucket {
    rate: Rate,
    /// In parts of a token.
    level: u64,
    filled: UnixMillis,
}

/// The buckets.
pub(crate) struct Quotas([Bucket; Class::ALL.len()]);

impl Quotas {
    pub(crate) fn new(rates: &Rates, now: UnixMillis) -> Self {
        Self(Class::ALL.map(|class| {
            let rate = rates.of(class);
            Bucket { rate, level: u64::from(rate.burst) * PARTS, filled: now }
        }))
    }

    /// Takes one token of `class`.
    ///
    /// # Errors
    /// [`Error::MisuseQuota`] when there is none.
    pub(crate) fn take(&mut self, class: Class, now: UnixMillis) -> Result<()> {
        let bucket = &mut self.0[class as usize];
        // A clock that was set back refills nothing, and starts to count anew from there.
        let passed = now.0.saturating_sub(bucket.filled.0);
        bucket.filled = now;
        let full = u64::from(bucket.rate.burst) * PARTS;
        let refill = passed.saturating_mul(u64::from(bucket.rate.per_second));
        bucket.level = bucket.level.saturating_add(refill).min(full);
        bucket.level = bucket.level.checked_sub(PARTS).ok_or(Error::MisuseQuota)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::time::Duration;

    use super::*;
    use crate::testing::NOW;

    #[test]
    fn a_burst_then_the_rate_and_never_more_than_a_burst() {
        let rates = Rates { sign: Rate { burst: 3, per_second: 2 }, ..Rates::default() };
        let mut quotas = Quotas::new(&rates, NOW);
        let mut took = |now| (0..10).take_while(|_| quotas.take(Class::Sign, now).is_ok()).count();
        assert_eq!(took(NOW), 3);
        assert_eq!(took(NOW.plus(Duration::from_millis(499))), 0);
        assert_eq!(took(NOW.plus(Duration::from_millis(500))), 1);
        assert_eq!(took(NOW.plus(Duration::from_secs(3600))), 3);
        assert_eq!(took(NOW), 0, "set back");
        assert_eq!(took(NOW.plus(Duration::from_secs(1))), 2);
    }

    #[test]
    fn the_operator_chooses_the_signatures_alone_and_within_bounds() {
        let raised = Rates::default().with_signatures(15_000).unwrap();
        assert_eq!(raised.sign, Rate { burst: 150_000, per_second: 15_000 });
        assert_eq!(Rates { sign: Rates::default().sign, ..raised }, Rates::default());
        for number in [0, SIGNATURES_PER_SECOND_MAX + 1] {
            assert_eq!(Rates::default().with_signatures(number), None);
        }
    }

    #[test]
    fn classes_do_not_starve_each_other() {
        let mut quotas = Quotas::new(&Rates::default(), NOW);
        while quotas.take(Class::SignModule, NOW).is_ok() {}
        assert!(quotas.take(Class::Sign, NOW).is_ok(), "the node signs its card whatever its modules state");
        while quotas.take(Class::Offer, NOW).is_ok() {}
        assert_eq!(quotas.take(Class::Offer, NOW), Err(Error::MisuseQuota));
        assert!(quotas.take(Class::Handshake, NOW).is_ok());
    }
}
