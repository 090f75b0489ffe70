//! Which method a new link gets (PROTOCOL 3): the schedule, computed by the issuer at issue time and by nobody else.
//!
//! Methods, their suites and sets of them are data in the contract; transforms are in `link/transform`. Nothing here reads
//! a clock: the caller's time is an argument, and nothing is computed from a clock at connect time.

use hmac::{Hmac, KeyInit, Mac};
use openred_proto::concat::concat;
use openred_proto::id::UnixMillis;
use openred_proto::method::{Method, MethodSet, Place, Schedule};
use openred_proto::secret::Secret;
use sha2::Sha256;

use crate::error::{Error, Result};

const HOUR: u64 = 3600;
const DAY: u64 = 86_400;

/// What a schedule picks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// One of the four.
    BuiltIn(Method),
    /// What a module registered, by its place here.
    Registered(Place),
}

/// The method that `schedule` picks at `now` among `common`, and the epoch in which it did. The four come first, then the registered
/// ones in the order of their places: the issuer alone counts, so its places are as good as any order.
///
/// # Errors
/// [`Error::LocalNoCommonMethod`] when the set is empty: a hard, named error, never a fallback.
pub fn pick(schedule: Schedule, seed: &Secret<32>, common: MethodSet, now: UnixMillis) -> Result<(Choice, u64)> {
    let registered = common.places().map(Choice::Registered);
    let methods: Vec<Choice> = common.iter().map(Choice::BuiltIn).chain(registered).collect();
    if methods.is_empty() {
        return Err(Error::LocalNoCommonMethod);
    }
    let (epoch, number) = match schedule {
        Schedule::Hourly => (now.seconds() / HOUR, now.seconds() / HOUR),
        Schedule::Daily => (now.seconds() / DAY, now.seconds() / DAY),
        Schedule::Seeded => (now.seconds() / HOUR, seeded(seed, now.seconds() / HOUR)),
    };
    Ok((methods[(number % methods.len() as u64) as usize], epoch))
}

/// The first eight bytes, big-endian, of `HMAC-SHA-256(seed, epoch)`.
fn seeded(seed: &Secret<32>, epoch: u64) -> u64 {
    let mut mac = Hmac::<Sha256>::new_from_slice(seed.expose()).expect("HMAC takes a key of any length");
    mac.update(&concat(&[&epoch.to_be_bytes()]));
    let hash: [u8; 32] = mac.finalize().into_bytes().into();
    u64::from_be_bytes(std::array::from_fn(|place| hash[place]))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    const SEED: Secret<32> = Secret::new([5; 32]);

    fn hours(count: u64) -> UnixMillis {
        UnixMillis(count * HOUR * 1000)
    }

    #[test]
    fn hourly_and_daily_walk_through_the_set_in_order() {
        let set: MethodSet = [Method::Alpha, Method::Gamma].into_iter().collect();
        for hour in 0..6 {
            let picked = pick(Schedule::Hourly, &SEED, set, hours(hour)).unwrap();
            let expected = if hour % 2 == 0 { Method::Alpha } else { Method::Gamma };
            assert_eq!(picked, (Choice::BuiltIn(expected), hour));
        }
        let picked = pick(Schedule::Daily, &SEED, MethodSet::ALL, hours(24 * 7 + 5)).unwrap();
        assert_eq!(picked, (Choice::BuiltIn(Method::Delta), 7));
        let place = Place::from_number(3).unwrap();
        let picked = pick(Schedule::Hourly, &SEED, MethodSet::ALL.with_place(place), hours(9)).unwrap();
        assert_eq!(picked, (Choice::Registered(place), 9), "after the four");
    }

    #[test]
    fn seeded_reaches_every_method_and_depends_on_the_seed() {
        let picks = |seed: &Secret<32>| -> Vec<Choice> {
            (0..64).map(|hour| pick(Schedule::Seeded, seed, MethodSet::ALL, hours(hour)).unwrap().0).collect()
        };
        let one = picks(&SEED);
        assert!(Method::ALL.into_iter().all(|method| one.contains(&Choice::BuiltIn(method))));
        assert_ne!(one, picks(&Secret::new([6; 32])));
        assert_eq!(one, picks(&SEED));
    }

    #[test]
    fn an_empty_intersection_is_a_named_error() {
        assert_eq!(pick(Schedule::Hourly, &SEED, MethodSet::EMPTY, hours(0)), Err(Error::LocalNoCommonMethod));
    }
}
