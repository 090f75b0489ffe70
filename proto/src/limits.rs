//! Caps, each beside its reason. The other side's number never sizes one of our buffers.

use std::time::Duration;

/// Longest HTTP/2 frame between processes of one node that carry bodies. HTTP/2's own default, 16 KiB, makes four times as many reads and
/// wake-ups of a file, in two sockets and back.
pub const LOCAL_HTTP2_FRAME: u32 = 256 * 1024;

/// Clock grace on every not-before and not-after (PROTOCOL 1): two nodes with clocks two hours off still link.
pub const CLOCK_GRACE: Duration = Duration::from_secs(3 * 3600);
/// A sequence may run at most this far ahead of the receiver's clock (PROTOCOL 1).
pub const SEQUENCE_AHEAD: Duration = Duration::from_secs(2 * 3600);

/// Longest card, signature included (PROTOCOL 2).
pub const CARD_BYTES: usize = 4096;
/// A card may not expire further ahead than this (PROTOCOL 2).
pub const CARD_LIFE: Duration = Duration::from_secs(8 * 86400);
/// Endpoints in one card: two address families, a LAN and a public one, and as many to spare.
pub const CARD_ENDPOINTS: usize = 8;
/// Longest endpoint URL: scheme, a 253-byte host name, port and a short path.
pub const ENDPOINT_BYTES: usize = 300;
/// Longest node or sector name in bytes; fits a DNS label.
pub const NAME_BYTES: usize = 63;

/// Words of succession in one card: an identity changes once in years, and a change that was taken back is two of them.
pub const LINEAGE: usize = 4;
/// Longest word of succession, signature included.
pub const SUCCESSION_BYTES: usize = 256;
/// An identity may take its word for a successor back for this long after it was first heard.
pub const TAKE_BACK: Duration = Duration::from_secs(72 * 3600);

/// X-Wing public (encapsulation) key: ML-KEM-768 (1184) and X25519 (32).
pub const XWING_PUBLIC_BYTES: usize = 1216;
/// X-Wing ciphertext (HPKE `enc`): ML-KEM-768 (1088) and X25519 (32).
pub const XWING_CIPHERTEXT_BYTES: usize = 1120;
/// ML-KEM-768 encapsulation key (FIPS 203).
pub const MLKEM_PUBLIC_BYTES: usize = 1184;
/// ML-KEM-768 ciphertext (FIPS 203).
pub const MLKEM_CIPHERTEXT_BYTES: usize = 1088;

/// Sealed body of an offer before the AEAD tag: one size for all (PROTOCOL 4.3).
pub const OFFER_BODY_BYTES: usize = 2048;
/// Longest offer: routing header (< 256), enc, padded body and tag.
pub const OFFER_BYTES: usize = 256 + XWING_CIPHERTEXT_BYTES + OFFER_BODY_BYTES + 16 + 64;
/// Default life of a link (PROTOCOL 4).
pub const LINK_LIFE: Duration = Duration::from_secs(24 * 3600);
/// Shortest life that an operator may ask for: renewal has a third of it to succeed, over a session or through a directory.
pub const LINK_LIFE_MIN: Duration = Duration::from_secs(10);
/// Longest life that an issuer may ask for.
pub const LINK_LIFE_MAX: Duration = Duration::from_secs(30 * 86400);
/// Offers wait at most this long in a directory's memory (PROTOCOL 7).
pub const OFFER_IN_DIRECTORY: Duration = Duration::from_secs(600);
/// Proof of work for a directory is taken this long before and after its time: longer than a slow machine needs for it.
pub const WORK_LIFE: Duration = Duration::from_secs(600);
/// Most zero bits that a node works for: 2^28 hashes, a minute or two of a core.
pub const WORK_BITS: u32 = 28;

/// Life of a static certificate and how far it is backdated (PROTOCOL 1).
pub const STATIC_LIFE: Duration = Duration::from_secs(24 * 3600);
/// See [`STATIC_LIFE`].
pub const STATIC_BACKDATE: Duration = Duration::from_secs(3 * 3600);
/// A prekey is rotated after this long.
pub const PREKEY_ROTATE: Duration = Duration::from_secs(7 * 86400);
/// An old prekey still opens offers for this long.
pub const PREKEY_KEEP: Duration = Duration::from_secs(14 * 86400);

/// Links that one vault holds; the state file is laid out for exactly these.
pub const LINKS: usize = 4096;
/// Link ids in one answer of the vault to whoever asks which it holds: half a frame.
pub const LINKS_PAGE: usize = 256;
/// Issuer sequences remembered per link partner (PROTOCOL 4).
pub const SEQUENCE_WINDOW: u64 = 64;

/// Half-open handshakes in all, per link, and their life (PROTOCOL 5): those begun and those answered together.
pub const HALF_OPEN: usize = 1024;
/// Of [`HALF_OPEN`], what one role may hold: a quarter stays for the other, so that neither starves it.
pub const HALF_OPEN_PER_ROLE: usize = HALF_OPEN / 4 * 3;
/// See [`HALF_OPEN`].
pub const HALF_OPEN_PER_LINK: usize = 4;
/// See [`HALF_OPEN`].
pub const HALF_OPEN_LIFE: Duration = Duration::from_secs(10);
/// Of [`HALF_OPEN`], those of direct contact, whose parties nobody knows yet: begun and answered together (PROTOCOL 5).
pub const HALF_OPEN_DIRECT: usize = 64;
/// Of [`HALF_OPEN_DIRECT`], what one role may hold: strangers who come do not keep this node from going itself.
pub const HALF_OPEN_DIRECT_PER_ROLE: usize = HALF_OPEN_DIRECT / 4 * 3;
/// Longest Noise message of a handshake: ML-KEM key or ciphertext, certificate, head and tags, with room.
pub const NOISE_BYTES: usize = 2048;
/// Shortest Noise message of REQUEST: an ephemeral key (32) and the AEAD tag of a payload (16); psk0 has set a key by then.
pub const NOISE_REQUEST_MIN: usize = 48;
/// Shortest of VERIFY: an ephemeral key (32), a sealed static key (48) and a payload's tag (16).
pub const NOISE_VERIFY_MIN: usize = 96;
/// Shortest of FINALIZE: a sealed static key (48) and a payload's tag (16).
pub const NOISE_FINALIZE_MIN: usize = 64;
/// Longest handshake message on the wire.
pub const HANDSHAKE_BYTES: usize = 3072;
/// A cookie, and what a REQUEST shows of it (PROTOCOL 5).
pub const COOKIE_BYTES: usize = 16;
/// Nonce of the seal of a cookie on its way to who asked: of a length that may be drawn.
pub const COOKIE_NONCE_BYTES: usize = 24;
/// A responder draws the secret of its cookies anew after this long, and takes what was made with one for as long again; an initiator
/// shows a cookie for this long and so never a stale one (PROTOCOL 5).
pub const COOKIE_LIFE: Duration = Duration::from_secs(120);
/// REQUESTs of one link that are remembered so that a repeat gets the same answer (PROTOCOL 5).
pub const REQUESTS_REMEMBERED: usize = 64;
/// How long a repeated REQUEST is answered (PROTOCOL 5).
pub const REQUEST_REPEAT: Duration = Duration::from_secs(10);
/// Tag counters behind and ahead of the last accepted one that a responder expects (PROTOCOL 5).
pub const TAG_BEHIND: u64 = 16;
/// See [`TAG_BEHIND`].
pub const TAG_AHEAD: u64 = 31;
/// An initiator's attempts cycle through this many counters.
pub const TAG_ATTEMPTS: u64 = 16;

/// Plaintext bytes of a session chunk (PROTOCOL 6).
pub const CHUNK_BYTES: usize = 64 * 1024;
/// AEAD tag of every suite.
pub const TAG_BYTES: usize = 16;
/// A session ends after this long.
pub const SESSION_LIFE: Duration = Duration::from_secs(3600);
/// A session ends after this many requests.
pub const SESSION_REQUESTS: u64 = 1 << 32;
/// A session ends after this many bytes.
pub const SESSION_BYTES: u64 = 64 << 30;
/// A sender keeps its open numbers this close to the oldest unanswered one.
pub const SENDER_SPAN: u64 = 1024;
/// Width of a receiver's window of request numbers.
pub const RECEIVER_WINDOW: u64 = 65_536;
/// Longest request or response head inside a session.
pub const HEAD_BYTES: usize = 2048;

/// Signatures (cards, HTTP requests) that a vault gives in a second unless the operator says otherwise, and ten times as many at once: a
/// few a minute in service, more when a directory is retried.
pub const SIGNATURES_PER_SECOND: u32 = 20;
/// The most that he may say: above what one thread can sign.
pub const SIGNATURES_PER_SECOND_MAX: u32 = 100_000;
/// A link row as `noded` stores it: layout, link, version, nonce, token and tag, sealed by the vault (PROTOCOL 4).
pub const LINK_ROW_BYTES: usize = 1 + 16 + 8 + 24 + 32 + TAG_BYTES;
/// Longest frame between front and vault, length prefix excluded (SANDBOX); each operation has a cap of its own below it.
pub const FRAME_BYTES: usize = 8192;
/// Longest HTTP target URI that the vault signs.
pub const TARGET_URI_BYTES: usize = 1024;
