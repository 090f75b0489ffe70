//! Caps of the directory, each beside its reason, and the token buckets that hold one caller back.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::Duration;

use openred_proto::id::UnixMillis;

/// A registration's body: base64 of a 4 KiB card (5,464 characters), its JSON, and room.
pub const CARD_BODY_BYTES: usize = 8 * 1024;
/// A look-up of many: 64 did:keys of 56 characters, their JSON, and room.
pub const LOOK_UP_BODY_BYTES: usize = 8 * 1024;
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
/// Announcements a second that the directory steers its nodes to: a quarter of what it can take (docs/benchmarks.md).
pub const ANNOUNCES: u64 = 2000;
/// How long the end waits for requests under way.
pub const DRAIN_TIME: Duration = Duration::from_secs(5);

/// |now − created| of a signature (PROTOCOL 7).
pub const SIGNATURE_SKEW: Duration = Duration::from_secs(60);
/// How long a nonce is remembered (PROTOCOL 7): both sides of the skew, a second because `created` is a whole one (what is
/// taken 60 s early at the second's begin is taken until the end of the second 60 s late), and one to spare.
pub const NONCE_LIFE: Duration = Duration::from_secs(122);
/// Nonces remembered at once: 10,000 signed requests a second for two and a half minutes, about 50 MB when so many come from as many nodes.
pub const NONCES: usize = 1_500_000;
/// Nonces remembered of one node: what its bucket lets through in that time, so that no node alone fills the table.
pub const NONCES_PER_NODE: usize = 4096;

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
/// So many senders fill all the room for offers and receipts; one alone has that part of it, 512 by default: a busy node with as many peers away.
pub const SENDERS_FOR_ALL_ITEMS: usize = 32;
/// Receipts that are kept for one issuer, besides its offers.
pub const RECEIPTS_PER_NODE: usize = 64;
/// Expired offers are dropped this often, besides at each touch of their mailbox.
pub const SWEEP: Duration = Duration::from_secs(30);

/// Conditions of health are looked at this often: so exact is since when they are as they are.
pub const LOOK: Duration = Duration::from_secs(1);

/// Longest letter between replicas, sealed: an item of [`OFFER_BODY_BYTES`], or as many entries as follow.
pub const LETTER_BYTES: usize = 20 * 1024;
/// Entries of one letter between replicas.
pub const LETTER_ENTRIES: usize = 256;
/// Longest name of a replica.
pub const REPLICA_NAME_BYTES: usize = 32;
/// Longest line that a NATS server may say: what it says about itself names other servers.
pub const NATS_LINE_BYTES: usize = 32 * 1024;
/// Letters that wait for the connection to NATS; a second of what one replica takes.
pub const LETTERS: usize = 4096;
/// Replicas are told apart by so many bits of an item's id.
pub const REPLICA_BITS: u32 = 10;
/// Runs of other replicas that are remembered: more than there are, with those that have ended within five minutes.
pub const RUNS: usize = 64;
/// A replica that ends waits so long for others that ask for what waits at it: round trips, many times over.
pub const HAND_OVER_QUIET: Duration = Duration::from_millis(500);
/// And no longer than this: all that can wait (`limits.offers`), to two others, over 100 Mbit/s. A service manager waits longer.
pub const HAND_OVER_MOST: Duration = Duration::from_secs(10);
/// A replica says so often that it is there.
pub const BEAT: Duration = Duration::from_secs(1);
/// One that was not heard of for so long is not waited for.
pub const BEAT_LOST: Duration = Duration::from_secs(6);
/// One that has not heard itself for so long is cut off: it knows before it would take the others for gone.
pub const ECHO_LOST: Duration = Duration::from_secs(3);
/// So long the others have to answer for an offer: they are asked over one network, and answer from memory.
pub const ANSWER_TIME: Duration = Duration::from_secs(1);
/// A letter that is older, or comes from the future, is none: half of what callers' clocks are allowed.
pub const LETTER_AGE: Duration = Duration::from_secs(30);
/// What waits is compared so often, besides whenever a replica comes.
pub const COMPARE: Duration = Duration::from_secs(30);
/// Streams of a replica that is cut off are ended after so long, once: their nodes come again where they are let.
pub const CUT_STREAMS: Duration = Duration::from_secs(10);
/// Bans that another replica made are looked for so often, besides when it says so.
pub const FOLLOW: Duration = Duration::from_secs(2);
/// Nonces that one statement takes together.
pub const NONCE_BATCH: usize = 256;
/// Nonces are dropped from the database after this, by its own clock: what they could be used with is long over, whatever a replica's clock says.
pub const SHARED_NONCE_LIFE: Duration = Duration::from_secs(300);

/// Requests for the store that may wait; more are answered 503.
pub const STORE_QUEUE: usize = 1024;
/// Operators' requests for the store that may wait: the admin's thread asks one at a time.
pub const URGENT_QUEUE: usize = 4;
/// Requests that one transaction takes together (group commit), some 20 ms of work: an operator's waits behind one such group.
pub const STORE_BATCH: usize = 128;
/// Look-ups that one of their threads does together; the others take what comes meanwhile.
pub const LOOK_UP_BATCH: usize = 16;
/// Threads that look up: what is not in memory, or in another machine's, is waited for side by side.
pub const LOOK_UP_THREADS: usize = 3;
/// Threads that serve connections, of as many as there are processors: the store's two take their share as well.
pub const NETWORK_THREADS: usize = 4;
/// Nodes on a page of discovery: about 150 KiB of JSON.
pub const PAGE: usize = 64;
/// Entries on one page for a mirror: with the longest cards 1.4 MiB of JSON.
pub const MIRROR_PAGE: u64 = 256;
/// Who asks a mirror that is being filled comes again after this long.
pub const MIRROR_FILLS: Duration = Duration::from_secs(5);
/// Rows of nodes that one page of discovery looks at: under a millisecond; a page that finds less is short and goes on.
pub const EXAMINE: usize = 4096;
/// Rows that one look-up by prefix looks at, those of nodes that are here no more too: some milliseconds of the look-up thread. A prefix of more
/// is too wide, whatever is behind them.
pub const EXAMINE_PREFIX: usize = 1024;
/// Rows that one purge drops of each kind: about 10 ms, in which those who register wait.
pub const PURGE: usize = 1024;
/// An IPv4 /24 and an IPv6 /48, which one customer can have whole, may do together what so many addresses may.
pub const ADDRESSES_OF_A_NETWORK: u32 = 8;
/// New nodes of one address that may come at once: an office that is switched on.
pub const NEW_NODES_BURST: u32 = 32;
/// After those, one new node of an address comes in so long: in the eight days that a card may live, a tenth of the places.
pub const NEW_NODE_EVERY: Duration = Duration::from_secs(60);
/// Cards that a node may change at once.
pub const CARDS_BURST: u32 = 64;
/// After those, one in so long: each is an entry of the log for good, and a node signs one in some hours.
pub const CARD_EVERY: Duration = Duration::from_secs(15);
/// Successions kept of ids that were never registered here: 20 MB at the most.
pub const SUCCESSIONS: i64 = 100_000;
/// How long a succession is remembered: until whoever knew the older id has looked for it, or will not.
pub const SUCCESSION_KEPT: Duration = Duration::from_secs(366 * 86_400);
/// Evidence rows kept: two cards each, so 80 MB at the most.
pub const EVIDENCE: i64 = 10_000;
/// Of them of one node: it can sign as many as it likes, and one pair proves what there is to prove.
pub const EVIDENCE_OF_NODE: i64 = 4;
/// Lines in the log that one node's wrong cards may cost at once, and after that one in so long.
pub const REMARKS_BURST: u32 = 4;
/// See [`REMARKS_BURST`].
pub const REMARK_EVERY: Duration = Duration::from_secs(60);
/// The same of all nodes together.
pub const REMARKS_OF_ALL: u32 = 16;
/// Bans of nodes held in memory.
pub const BANS: usize = 100_000;
/// Bans of address prefixes held in memory; each request of a banned length costs one look.
pub const PREFIX_BANS: usize = 10_000;
/// Invites kept.
pub const INVITES: usize = 10_000;
/// Nodes that may come by one invite.
pub const INVITE_USES: u32 = 100_000;
/// Longest that an invite is good.
pub const INVITE_LIFE: Duration = Duration::from_secs(366 * 86_400);
/// An invite that has ended is shown so long.
pub const INVITE_KEPT: Duration = Duration::from_secs(30 * 86_400);

/// Records that go in or out in one piece: cards of 4 KiB in base64 make half a megabyte.
pub const RECORDS: usize = 64;
/// Longest line of an export: a card in base64 and its fields.
pub const RECORD_BYTES: u64 = 8 * 1024;
/// One admin request or answer line. An answer holds a page of nodes.
pub const ADMIN_BYTES: usize = 1024 * 1024;
/// An admin caller must send its line within this.
pub const ADMIN_TIME: Duration = Duration::from_secs(5);

/// Callers that buckets are kept for. A full table first forgets those whose bucket is full again.
const BUCKETS: usize = 65_536;
/// A full table is gone through so often: a millisecond's work.
const SWEEPS_APART: Duration = Duration::from_millis(100);

/// Token buckets by caller: `rate` a second, bursts of `burst`.
#[derive(Debug)]
pub struct Buckets<K> {
    rate: f64,
    burst: f64,
    filled: HashMap<K, Bucket>,
    /// When a full table was last gone through.
    swept: Option<UnixMillis>,
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
        Self { rate: f64::from(rate_per_second), burst: f64::from(burst), filled: HashMap::new(), swept: None }
    }

    /// Empty table of slower buckets: one token in each `period`.
    #[must_use]
    pub fn slow(period: Duration, burst: u32) -> Self {
        Self { rate: 1.0 / period.as_secs_f64(), burst: f64::from(burst), filled: HashMap::new(), swept: None }
    }

    /// Whether there is a token; takes none, and has nobody kept.
    ///
    /// # Errors
    /// The time to wait.
    pub fn look(&self, now: UnixMillis, caller: &K) -> Result<(), Duration> {
        let tokens = self.filled.get(caller).map_or(self.burst, |bucket| bucket.level(now, self.rate, self.burst));
        if tokens < 1.0 { Err(self.until_one(tokens)) } else { Ok(()) }
    }

    fn until_one(&self, tokens: f64) -> Duration {
        Duration::from_secs_f64((1.0 - tokens) / self.rate.max(f64::EPSILON))
    }

    /// Whether there is no room for a caller who is not in the table. A full one is gone through now and then, not for each caller.
    pub fn is_full_for(&mut self, now: UnixMillis, caller: &K) -> bool {
        if self.filled.len() < BUCKETS || self.filled.contains_key(caller) {
            return false;
        }
        let since = self.swept.map_or(SWEEPS_APART, |swept| Duration::from_millis(now.0.abs_diff(swept.0)));
        if since >= SWEEPS_APART {
            self.swept = Some(now);
            self.forget(now);
        }
        self.filled.len() >= BUCKETS
    }

    /// Takes one token, or says how long until there is one.
    ///
    /// # Errors
    /// The time to wait.
    pub fn take(&mut self, now: UnixMillis, caller: K) -> Result<(), Duration> {
        if self.is_full_for(now, &caller) {
            return Err(Duration::from_secs(1));
        }
        let (rate, burst) = (self.rate, self.burst);
        let bucket = self.filled.entry(caller).or_insert(Bucket { tokens: burst, at: now });
        bucket.tokens = bucket.level(now, rate, burst);
        bucket.at = now;
        let tokens = bucket.tokens;
        if tokens < 1.0 {
            return Err(self.until_one(tokens));
        }
        bucket.tokens -= 1.0;
        Ok(())
    }

    fn forget(&mut self, now: UnixMillis) {
        let (rate, burst) = (self.rate, self.burst);
        self.filled.retain(|_, bucket| bucket.level(now, rate, burst) < burst);
    }
}

/// Takes a token of a caller, and one of the many that it is one of. Where those have none the caller is not even kept: else the addresses of
/// one customer's network fill the table, and nobody else's find room in it.
///
/// # Errors
/// The time to wait.
pub fn take_both<K: Eq + Hash, M: Eq + Hash>(
    callers: &mut Buckets<K>,
    many: &mut Buckets<M>,
    now: UnixMillis,
    caller: K,
    of: M,
) -> Result<(), Duration> {
    many.look(now, &of)?;
    callers.take(now, caller)?;
    many.take(now, of)
}

impl Bucket {
    fn level(self, now: UnixMillis, rate: f64, burst: f64) -> f64 {
        let elapsed = now.0.saturating_sub(self.at.0) as f64 / 1000.0;
        (self.tokens + elapsed * rate).min(burst)
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
    fn one_network_does_not_fill_the_table_of_addresses() {
        let (mut addresses, mut networks) = (Buckets::slow(NEW_NODE_EVERY, 32), Buckets::slow(NEW_NODE_EVERY, 256));
        let (start, mut taken) = (UnixMillis(0), 0);
        for address in 0..BUCKETS + 1 {
            taken += usize::from(take_both(&mut addresses, &mut networks, start, address, "its network").is_ok());
        }
        assert_eq!((taken, addresses.filled.len()), (256, 256));
        assert_eq!(take_both(&mut addresses, &mut networks, start, BUCKETS + 2, "another"), Ok(()));
        // What an address does alone costs its neighbours nothing.
        for _ in 0..1000 {
            let _ = take_both(&mut addresses, &mut networks, start, BUCKETS + 2, "another");
        }
        assert_eq!(take_both(&mut addresses, &mut networks, start, BUCKETS + 3, "another"), Ok(()));
    }

    #[test]
    fn the_table_of_buckets_is_bounded() {
        let mut buckets = Buckets::new(1, 2);
        let start = UnixMillis(0);
        for caller in 0..BUCKETS {
            assert_eq!(buckets.take(start, caller), Ok(()));
        }
        assert!(buckets.take(start, BUCKETS).is_err());
        assert_eq!(buckets.look(start, &BUCKETS), Ok(()), "a look keeps nobody");
        let later = start.plus(Duration::from_secs(10));
        assert_eq!(buckets.take(later, BUCKETS), Ok(()), "full buckets were forgotten");
        assert_eq!(buckets.filled.len(), 1);
    }
}
