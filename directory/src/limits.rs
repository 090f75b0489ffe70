//! Caps of the directory, each beside its reason, and the token buckets that hold one caller back.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::Duration;

use openred_proto::id::UnixMillis;

/// A registration's body: base64 of a 4 KiB card (5,464 characters), its JSON, and room.
pub const CARD_BODY_BYTES: usize = 8 * 1024;
/// A request for connection: base64 of one offer (about 4,700 characters), its JSON, and room.
pub const OFFER_BODY_BYTES: usize = 16 * 1024;
/// A receipt's body: base64 of a statement of about 230 bytes, with room.
pub const RECEIPT_BODY_BYTES: usize = 4 * 1024;
/// Head of a request: the longest honest one (both signature headers) has under 1 KiB.
pub const HEAD_BYTES: usize = 16 * 1024;
/// Header fields of a request.
pub const HEADERS: usize = 32;
/// A head must be there after this long; it also ends idle connections.
pub const HEAD_TIME: Duration = Duration::from_secs(10);
/// A body must be there after this long.
pub const BODY_TIME: Duration = Duration::from_secs(10);
/// Bytes that were sent and stay unacknowledged end the connection after this long.
pub const UNACKNOWLEDGED_TIME: Duration = Duration::from_secs(30);
/// The TLS handshake must be over after this long.
pub const TLS_TIME: Duration = Duration::from_secs(10);
/// How long the end waits for requests under way.
pub const DRAIN_TIME: Duration = Duration::from_secs(5);

/// |now − created| of a signature (PROTOCOL 7).
pub const SIGNATURE_SKEW: Duration = Duration::from_secs(60);
/// How long a nonce is remembered (PROTOCOL 7): both sides of the skew.
pub const NONCE_LIFE: Duration = Duration::from_secs(120);
/// Nonces remembered at once: 1,000 signed requests a second for two minutes, about 10 MB.
pub const NONCES: usize = 131_072;

/// Longest a long poll waits.
pub const WAIT: Duration = Duration::from_secs(60);
/// A quiet stream carries a comment this often, so that middle boxes keep it.
pub const STREAM_KEEP_ALIVE: Duration = Duration::from_secs(15);
/// A stream is ended after this long; the client comes back with its last id.
pub const STREAM_LIFE: Duration = Duration::from_secs(3600);
/// So many addresses take all streams together; one alone has that part of them, 512 by default: a large office.
pub const ADDRESSES_FOR_ALL_STREAMS: u64 = 8;
/// Offers of one issuer that wait for one recipient: a renewal and a fresh one, twice.
pub const OFFERS_PER_ISSUER: usize = 4;
/// Receipts that are kept for one issuer, besides its offers.
pub const RECEIPTS_PER_NODE: usize = 64;
/// Expired offers are dropped this often, besides at each touch of their mailbox.
pub const SWEEP: Duration = Duration::from_secs(30);

/// Requests for the store that may wait; more are answered 503.
pub const STORE_QUEUE: usize = 1024;
/// Requests that one transaction takes together (group commit).
pub const STORE_BATCH: usize = 64;
/// Nodes on a page of discovery: about 150 KiB of JSON.
pub const PAGE: usize = 64;
/// Evidence rows kept: two cards each, so 80 MB at the most.
pub const EVIDENCE: i64 = 10_000;
/// Bans held in memory.
pub const BANS: usize = 100_000;

/// One admin request or answer line. An answer holds a page of nodes.
pub const ADMIN_BYTES: usize = 1024 * 1024;
/// An admin caller must send its line within this.
pub const ADMIN_TIME: Duration = Duration::from_secs(5);

/// Callers that buckets are kept for. A full table first forgets those whose bucket is full again.
const BUCKETS: usize = 65_536;

/// Token buckets by caller: `rate` a second, bursts of `burst`.
#[derive(Debug)]
pub struct Buckets<K> {
    rate: f64,
    burst: f64,
    filled: HashMap<K, Bucket>,
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    tokens: f64,
    at: UnixMillis,
}

impl<K: Eq + Hash> Buckets<K> {
    /// Empty table.
    #[must_use]
    pub fn new(rate_per_second: u32, burst: u32) -> Self {
        Self { rate: f64::from(rate_per_second), burst: f64::from(burst), filled: HashMap::new() }
    }

    /// Takes one token, or says how long until there is one.
    ///
    /// # Errors
    /// The time to wait.
    pub fn take(&mut self, now: UnixMillis, caller: K) -> Result<(), Duration> {
        if self.filled.len() >= BUCKETS && !self.filled.contains_key(&caller) {
            self.forget(now);
            if self.filled.len() >= BUCKETS {
                return Err(Duration::from_secs(1));
            }
        }
        let (rate, burst) = (self.rate, self.burst);
        let bucket = self.filled.entry(caller).or_insert(Bucket { tokens: burst, at: now });
        bucket.tokens = bucket.level(now, rate, burst);
        bucket.at = now;
        if bucket.tokens < 1.0 {
            return Err(Duration::from_secs_f64((1.0 - bucket.tokens) / rate.max(f64::EPSILON)));
        }
        bucket.tokens -= 1.0;
        Ok(())
    }

    fn forget(&mut self, now: UnixMillis) {
        let (rate, burst) = (self.rate, self.burst);
        self.filled.retain(|_, bucket| bucket.level(now, rate, burst) < burst);
    }
}

impl Bucket {
    fn level(self, now: UnixMillis, rate: f64, burst: f64) -> f64 {
        let elapsed = now.0.saturating_sub(self.at.0) as f64 / 1000.0;
        (self.tokens + elapsed * rate).min(burst)
    }
}

/// Nonces that were seen, for [`NONCE_LIFE`]. Two generations, so that forgetting is one move.
#[derive(Debug, Default)]
pub struct Nonces {
    young: std::collections::HashSet<[u8; 48]>,
    old: std::collections::HashSet<[u8; 48]>,
    turned: u64,
}

/// Why a nonce was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NonceRefused {
    /// Seen before.
    Repeated,
    /// [`NONCES`] are remembered already.
    Full,
}

impl Nonces {
    /// Remembers a nonce of `node`.
    ///
    /// # Errors
    /// Repeated, or the table is full: then nothing is forgotten early, because forgetting would let a replay in.
    pub fn take(&mut self, now: UnixMillis, node: &[u8; 32], nonce: &[u8; 16]) -> Result<(), NonceRefused> {
        self.turn(now);
        let mut key = [0; 48];
        key[..32].copy_from_slice(node);
        key[32..].copy_from_slice(nonce);
        if self.old.contains(&key) || self.young.contains(&key) {
            return Err(NonceRefused::Repeated);
        }
        if self.young.len() + self.old.len() >= NONCES {
            return Err(NonceRefused::Full);
        }
        self.young.insert(key);
        Ok(())
    }

    fn turn(&mut self, now: UnixMillis) {
        let life = NONCE_LIFE.as_millis() as u64;
        let age = now.0.saturating_sub(self.turned);
        if age >= life {
            self.old = std::mem::take(&mut self.young);
            self.turned = now.0;
        }
        if age >= 2 * life {
            self.old.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_empties_and_fills_again() {
        let mut buckets = Buckets::new(2, 3);
        let start = UnixMillis(1_000_000);
        for _ in 0..3 {
            assert_eq!(buckets.take(start, 1), Ok(()));
        }
        assert_eq!(buckets.take(start, 1), Err(Duration::from_millis(500)));
        assert_eq!(buckets.take(start, 2), Ok(()), "others are unharmed");
        assert_eq!(buckets.take(start.plus(Duration::from_millis(500)), 1), Ok(()));
    }

    #[test]
    fn the_table_of_buckets_is_bounded() {
        let mut buckets = Buckets::new(1, 2);
        let start = UnixMillis(0);
        for caller in 0..BUCKETS {
            assert_eq!(buckets.take(start, caller), Ok(()));
        }
        assert!(buckets.take(start, BUCKETS).is_err());
        let later = start.plus(Duration::from_secs(10));
        assert_eq!(buckets.take(later, BUCKETS), Ok(()), "full buckets were forgotten");
        assert_eq!(buckets.filled.len(), 1);
    }

    #[test]
    fn a_nonce_is_refused_for_its_whole_life_and_the_table_is_bounded() {
        let mut nonces = Nonces::default();
        let start = UnixMillis(1_000_000);
        assert_eq!(nonces.take(start, &[1; 32], &[1; 16]), Ok(()));
        assert_eq!(nonces.take(start, &[2; 32], &[1; 16]), Ok(()), "nonces are per node");
        for after in [0, 60_000, 119_999] {
            let now = UnixMillis(start.0 + after);
            assert_eq!(nonces.take(now, &[1; 32], &[1; 16]), Err(NonceRefused::Repeated), "{after}");
        }
        for number in 0..NONCES as u64 {
            let mut nonce = [0; 16];
            nonce[..8].copy_from_slice(&number.to_be_bytes());
            let _ = nonces.take(UnixMillis(start.0 + 120_000), &[3; 32], &nonce);
        }
        assert_eq!(nonces.take(UnixMillis(start.0 + 120_000), &[4; 32], &[9; 16]), Err(NonceRefused::Full));
        assert_eq!(nonces.take(UnixMillis(start.0 + 400_000), &[4; 32], &[9; 16]), Ok(()));
    }
}
