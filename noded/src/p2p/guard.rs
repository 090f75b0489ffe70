//! Who may connect and how often refusals are forgiven: counts per address, no names, nothing kept on disk.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use super::settings::COUNTED_ADDRESSES;

/// Counts connections and refusals per address.
#[derive(Debug)]
pub(super) struct Guard {
    connections: usize,
    per_address: usize,
    burst: u32,
    per_second: u32,
    counts: Mutex<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    total: usize,
    open: HashMap<IpAddr, usize>,
    buckets: HashMap<IpAddr, Bucket>,
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    tokens: f64,
    at: Instant,
}

/// One admitted connection; leaves the count when dropped.
#[derive(Debug)]
pub(super) struct Admission {
    guard: Arc<Guard>,
    address: IpAddr,
}

impl Guard {
    /// Bounds: connections in all, of one address; refusals in a burst, regained a second.
    pub(super) fn new(connections: usize, per_address: usize, (burst, per_second): (u32, u32)) -> Arc<Self> {
        Arc::new(Self { connections, per_address, burst, per_second, counts: Mutex::default() })
    }

    /// Admits a connection, if there is room.
    pub(super) fn admit(self: &Arc<Self>, address: IpAddr) -> Option<Admission> {
        let address = network(address);
        let mut counts = self.counts();
        let open = counts.open.get(&address).copied().unwrap_or_default();
        if counts.total >= self.connections || open >= self.per_address {
            return None;
        }
        counts.total += 1;
        counts.open.insert(address, open + 1);
        Some(Admission { guard: Arc::clone(self), address })
    }

    /// Counts a refusal; false when the address has used up its patience and its connection is to be cut.
    pub(super) fn forgive(&self, address: IpAddr, now: Instant) -> bool {
        let address = network(address);
        let mut counts = self.counts();
        if counts.buckets.len() >= COUNTED_ADDRESSES && !counts.buckets.contains_key(&address) {
            counts.buckets.clear();
        }
        let full = f64::from(self.burst);
        let bucket = counts.buckets.entry(address).or_insert(Bucket { tokens: full, at: now });
        let gained = now.saturating_duration_since(bucket.at).as_secs_f64() * f64::from(self.per_second);
        bucket.tokens = (bucket.tokens + gained).min(full);
        bucket.at = now;
        if bucket.tokens < 1.0 {
            return false;
        }
        bucket.tokens -= 1.0;
        true
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().expect("nothing panics while it counts")
    }
}

/// What is one sender to whoever counts or asks for a cookie: an IPv4 address, or the /64 that a host's provider gives it in IPv6.
pub(super) fn network(address: IpAddr) -> IpAddr {
    const HOST_BITS: u32 = 64;
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6((address.to_bits() >> HOST_BITS << HOST_BITS).into()),
        v4 @ IpAddr::V4(_) => v4,
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        let mut counts = self.guard.counts();
        counts.total -= 1;
        if let Some(open) = counts.open.get_mut(&self.address) {
            *open -= 1;
            if *open == 0 {
                counts.open.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use std::time::Duration;

    #[test]
    fn connections_are_bounded_in_all_and_per_address() {
        let guard = Guard::new(3, 2, (1, 1));
        let [one, other]: [IpAddr; 2] = ["192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap()];
        let held = [guard.admit(one).unwrap(), guard.admit(one).unwrap()];
        assert!(guard.admit(one).is_none(), "two of one address");
        let third = guard.admit(other).unwrap();
        assert!(guard.admit(other).is_none(), "three in all");
        drop(held);
        assert!(guard.admit(one).is_some());
        drop(third);
        assert_eq!(guard.counts().total, 0);
        assert!(guard.counts().open.is_empty());
    }

    #[test]
    fn a_host_is_one_sender_whatever_of_its_own_network_it_uses() {
        let guard = Guard::new(9, 1, (1, 1));
        let at = |text: &str| text.parse::<IpAddr>().unwrap();
        let _held = [guard.admit(at("2001:db8::1")).unwrap(), guard.admit(at("192.0.2.1")).unwrap()];
        assert!(guard.admit(at("2001:db8::ffff:2")).is_none(), "the same /64");
        assert!(guard.admit(at("::ffff:192.0.2.1")).is_none(), "IPv4 in IPv6 clothes");
        assert!(guard.admit(at("2001:db8:0:1::1")).is_some());
        let now = Instant::now();
        assert!(guard.forgive(at("2001:db8::1"), now) && !guard.forgive(at("2001:db8::2"), now));
    }

    #[test]
    fn refusals_are_forgiven_at_a_rate() {
        let guard = Guard::new(1, 1, (2, 4));
        let (one, now) = ("192.0.2.1".parse().unwrap(), Instant::now());
        assert!(guard.forgive(one, now) && guard.forgive(one, now));
        assert!(!guard.forgive(one, now));
        assert!(guard.forgive(one, now + Duration::from_millis(250)));
        assert!(!guard.forgive(one, now + Duration::from_millis(250)));
        assert!(guard.forgive("192.0.2.2".parse().unwrap(), now), "others are not held liable");
    }
}
