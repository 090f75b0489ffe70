//! The four token transforms (PROTOCOL 3): bijections over 32 bytes that turn a link's `base` into the token that one
//! side keeps, and back.
//!
//! They protect nothing: their parameters come from public values (method, link id, node id, role), and a uniform secret
//! stays a uniform secret under any bijection. What they do is keep methods and sides apart. This file holds no key and
//! draws no randomness. In: `base` from `issue` or `accept`; out: tokens for `seal`.
//!
//! Parameter of a side: `PRK = HKDF-Extract(salt = "openred/1/transform", concat(method name, link id))`, and
//! `HKDF-Expand(PRK, concat(node id, role, draw))`, where `draw` is one byte, 0 at first. The acceptor's draw is raised
//! until its parameter differs from the issuer's: both sides know both ids, so both find the same draw without knowing
//! `base`. A registered method goes through its steps one after the other: its id takes the place of the method's name, and the number
//! of the step stands behind the draw. Different parameters may still meet in one token for a periodic `base` (chance about 2^-128): then the issuer
//! draws the offer again, and an acceptor refuses it ([`tokens_differ`](Transform::tokens_differ)).

use hkdf::Hkdf;
use hmac::{Hmac, KeyInit, Mac};
use openred_proto::concat::concat;
use openred_proto::id::{LinkId, NodeId};
use openred_proto::label::derive;
use openred_proto::method::Method;
use openred_proto::method::description::{Step, Vetted};
use openred_proto::secret::Secret;
use sha2::Sha256;
use zeroize::{Zeroize, Zeroizing};

use crate::error::{Error, Result};

/// Bytes of a base and of a token.
pub const TOKEN_BYTES: usize = 32;
/// Draws of the acceptor's parameter before giving up: equal masks once are a 2^-256 event, so twice is a fault.
const DRAWS: u8 = 4;
/// Rounds of the Feistel network; four make it a strong permutation of its two halves (Luby–Rackoff).
const ROUNDS: usize = 4;
/// Half of a token, in bytes.
const HALF: usize = TOKEN_BYTES / 2;
/// Bits of a token, the modulus of a rotation.
const BITS: u16 = 256;

/// Which side of a link keeps a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The node that made the offer.
    Issuer,
    /// The node that accepted it.
    Acceptor,
}

impl Side {
    const fn name(self) -> &'static [u8] {
        match self {
            Side::Issuer => b"issuer",
            Side::Acceptor => b"acceptor",
        }
    }

    /// As stored: 1 issuer, 2 acceptor; 0 stays free for "no link here".
    pub(crate) const fn number(self) -> u8 {
        match self {
            Side::Issuer => 1,
            Side::Acceptor => 2,
        }
    }

    /// From the stored number.
    pub(crate) const fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Side::Issuer),
            2 => Some(Side::Acceptor),
            _ => None,
        }
    }
}

/// The parameter of one side's transform.
#[derive(Clone, PartialEq, Eq)]
enum Parameter {
    Mask([u8; TOKEN_BYTES]),
    Rotation(u8),
    Permutation([u8; TOKEN_BYTES]),
    RoundKeys(Box<[[u8; 32]; ROUNDS]>),
}

/// Both sides' transforms of one link, step by step.
pub struct Transform {
    issuer: Vec<Parameter>,
    acceptor: Vec<Parameter>,
}

impl Transform {
    /// Derives both parameters of one of the four methods.
    ///
    /// # Errors
    /// [`Error::Bug`] when no draw makes the acceptor's parameter differ, which no honest hash does.
    pub fn new(method: Method, link: &LinkId, issuer: &NodeId, acceptor: &NodeId) -> Result<Self> {
        let step = match method {
            Method::Alpha => Step::Mask,
            Method::Beta => Step::Rotation,
            Method::Gamma => Step::Permutation,
            Method::Delta => Step::Feistel,
        };
        Source { steps: &[step], is_registered: false, hkdf: extract(method.name().as_bytes(), link) }
            .both(issuer, acceptor)
    }

    /// The same of a method that a module registered.
    ///
    /// # Errors
    /// As [`Transform::new`].
    pub fn registered(method: &Vetted, link: &LinkId, issuer: &NodeId, acceptor: &NodeId) -> Result<Self> {
        Source { steps: &method.steps, is_registered: true, hkdf: extract(method.id.as_bytes(), link) }
            .both(issuer, acceptor)
    }

    /// The token that `side` keeps of `base`.
    #[must_use]
    pub fn token(&self, base: &Secret<TOKEN_BYTES>, side: Side) -> Secret<TOKEN_BYTES> {
        // Each step's value is another bijection's input, wiped as `base` is.
        let first = Zeroizing::new(*base.expose());
        let token = self.steps(side).iter().fold(first, |value, step| Zeroizing::new(step.forward(&value)));
        Secret::new(*token)
    }

    /// The base that gave `token` at `side`: the exact inverse of [`Transform::token`].
    #[must_use]
    pub fn reconstruct(&self, token: &Secret<TOKEN_BYTES>, side: Side) -> Secret<TOKEN_BYTES> {
        let last = Zeroizing::new(*token.expose());
        let base = self.steps(side).iter().rfold(last, |value, step| Zeroizing::new(step.backward(&value)));
        Secret::new(*base)
    }

    /// Whether the two sides' tokens come from one base; compared in constant time. For tests and vectors: no node ever
    /// holds both tokens.
    #[must_use]
    pub fn tokens_match(&self, issuer: &Secret<TOKEN_BYTES>, acceptor: &Secret<TOKEN_BYTES>) -> bool {
        self.reconstruct(issuer, Side::Issuer) == self.reconstruct(acceptor, Side::Acceptor)
    }

    /// Whether `base` gives the two sides different tokens.
    #[must_use]
    pub fn tokens_differ(&self, base: &Secret<TOKEN_BYTES>) -> bool {
        self.token(base, Side::Issuer) != self.token(base, Side::Acceptor)
    }

    fn steps(&self, side: Side) -> &[Parameter] {
        match side {
            Side::Issuer => &self.issuer,
            Side::Acceptor => &self.acceptor,
        }
    }
}

/// Where both sides' parameters are expanded from.
struct Source<'a> {
    steps: &'a [Step],
    is_registered: bool,
    hkdf: Hkdf<Sha256>,
}

fn extract(method: &[u8], link: &LinkId) -> Hkdf<Sha256> {
    Hkdf::new(Some(derive::TRANSFORM), &concat(&[method, link.as_bytes()]))
}

/// Which parameter.
#[derive(Clone, Copy)]
struct Which<'a> {
    node: &'a NodeId,
    side: Side,
    draw: u8,
    step: usize,
}

impl Source<'_> {
    fn both(&self, issuer: &NodeId, acceptor: &NodeId) -> Result<Transform> {
        let issuer = self.side(issuer, Side::Issuer, 0, None);
        for draw in 0..DRAWS {
            let candidate = self.side(acceptor, Side::Acceptor, draw, Some(&issuer));
            if candidate != issuer {
                return Ok(Transform { issuer, acceptor: candidate });
            }
        }
        Err(Error::Bug("every draw of a transform gave the issuer's parameter"))
    }

    fn side(&self, node: &NodeId, side: Side, draw: u8, issuer: Option<&[Parameter]>) -> Vec<Parameter> {
        let steps = self.steps.iter().enumerate();
        let parameter = |(step, kind): (usize, &Step)| {
            self.parameter(*kind, Which { node, side, draw, step }, issuer.and_then(|issuer| issuer.get(step)))
        };
        steps.map(parameter).collect()
    }

    fn expand<const N: usize>(&self, which: Which<'_>) -> [u8; N] {
        let mut out = [0; N];
        let step = [which.step as u8];
        let parts = [&which.node.as_bytes()[..], which.side.name(), &[which.draw], &step];
        let info = concat(if self.is_registered { &parts } else { &parts[..3] });
        self.hkdf.expand(&info, &mut out).expect("N is far below 255 hash lengths");
        out
    }

    fn parameter(&self, step: Step, which: Which<'_>, issuer: Option<&Parameter>) -> Parameter {
        match step {
            Step::Mask => Parameter::Mask(self.expand(which)),
            Step::Rotation => {
                let h = u64::from_be_bytes(self.expand(which));
                Parameter::Rotation(match issuer {
                    // PROTOCOL 3: the issuer's plus 1 + (h mod 255), so the two rotations always differ.
                    Some(Parameter::Rotation(bits)) => bits.wrapping_add(1).wrapping_add((h % 255) as u8),
                    _ => (h % u64::from(BITS)) as u8,
                })
            }
            Step::Permutation => Parameter::Permutation(shuffle(&self.expand(which))),
            Step::Feistel => {
                let keys: [u8; 32 * ROUNDS] = self.expand(which);
                let mut rounds = Box::new([[0; 32]; ROUNDS]);
                for (round, key) in rounds.iter_mut().zip(keys.chunks_exact(32)) {
                    round.copy_from_slice(key);
                }
                Parameter::RoundKeys(rounds)
            }
        }
    }
}

/// Fisher–Yates from the last place down; each draw is eight bytes, big-endian, reduced (bias below 2^-58).
fn shuffle(draws: &[u8; 8 * (TOKEN_BYTES - 1)]) -> [u8; TOKEN_BYTES] {
    let mut places: [u8; TOKEN_BYTES] = std::array::from_fn(|place| place as u8);
    for (draw, last) in draws.chunks_exact(8).zip((1..TOKEN_BYTES).rev()) {
        let draw = u64::from_be_bytes(draw.try_into().expect("chunks of eight"));
        places.swap(last, (draw % (last as u64 + 1)) as usize);
    }
    places
}

impl Parameter {
    fn forward(&self, base: &[u8; TOKEN_BYTES]) -> [u8; TOKEN_BYTES] {
        match self {
            Parameter::Mask(mask) => xor(base, mask),
            Parameter::Rotation(bits) => rotate_left(base, u16::from(*bits)),
            Parameter::Permutation(places) => std::array::from_fn(|place| base[usize::from(places[place])]),
            Parameter::RoundKeys(keys) => {
                let mut halves = split(base);
                for (round, key) in keys.iter().enumerate() {
                    halves = feistel(halves, round, key);
                }
                join(halves)
            }
        }
    }

    fn backward(&self, token: &[u8; TOKEN_BYTES]) -> [u8; TOKEN_BYTES] {
        match self {
            Parameter::Mask(mask) => xor(token, mask),
            Parameter::Rotation(bits) => rotate_left(token, BITS - u16::from(*bits)),
            Parameter::Permutation(places) => {
                let mut base = [0; TOKEN_BYTES];
                for (place, from) in places.iter().enumerate() {
                    base[usize::from(*from)] = token[place];
                }
                base
            }
            Parameter::RoundKeys(keys) => {
                let (left, right) = split(token);
                let mut halves = (right, left);
                for (round, key) in keys.iter().enumerate().rev() {
                    halves = feistel(halves, round, key);
                }
                join((halves.1, halves.0))
            }
        }
    }
}

fn xor<const N: usize>(left: &[u8; N], right: &[u8; N]) -> [u8; N] {
    std::array::from_fn(|place| left[place] ^ right[place])
}

/// Rotates the token, read as one big-endian number, to the left by `bits` (0 to 256).
fn rotate_left(token: &[u8; TOKEN_BYTES], bits: u16) -> [u8; TOKEN_BYTES] {
    let (bytes, bits) = (usize::from(bits / 8), u32::from(bits % 8));
    std::array::from_fn(|place| {
        let high = u16::from(token[(place + bytes) % TOKEN_BYTES]);
        let low = u16::from(token[(place + bytes + 1) % TOKEN_BYTES]);
        ((((high << 8) | low) << bits) >> 8) as u8
    })
}

type Halves = ([u8; HALF], [u8; HALF]);

fn split(token: &[u8; TOKEN_BYTES]) -> Halves {
    (std::array::from_fn(|place| token[place]), std::array::from_fn(|place| token[place + HALF]))
}

fn join((left, right): Halves) -> [u8; TOKEN_BYTES] {
    std::array::from_fn(|place| if place < HALF { left[place] } else { right[place - HALF] })
}

/// One round: `(L, R) → (R, L xor HMAC-SHA-256(key, concat(round, R))[..16])`.
fn feistel((left, right): Halves, round: usize, key: &[u8; 32]) -> Halves {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes a key of any length");
    mac.update(&concat(&[&[round as u8], &right]));
    let mut hash: [u8; 32] = mac.finalize().into_bytes().into();
    let mixed = std::array::from_fn(|place| left[place] ^ hash[place]);
    hash.zeroize();
    (right, mixed)
}

#[cfg(test)]
#[path = "transform_tests.rs"]
mod tests;
