//! The four methods (cipher suites), places for those that modules register, and what a schedule is: names and choices as data. The
//! schedule is computed, and the transforms are made, in the key process (PROTOCOL 3). What a module says of a method is in
//! [`description`].

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Result, WireError};

pub mod description;

/// A method: a Noise suite and a token transform.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum Method {
    /// ChaCha20-Poly1305 with BLAKE2s; xor mask.
    Alpha = 1,
    /// AES-256-GCM with SHA-256; bit rotation.
    Beta = 2,
    /// ChaCha20-Poly1305 with SHA-512; byte permutation.
    Gamma = 3,
    /// AES-256-GCM with BLAKE2b; Feistel cascade.
    Delta = 4,
}

impl Method {
    /// All methods in the order in which schedules count them.
    pub const ALL: [Method; 4] = [Method::Alpha, Method::Beta, Method::Gamma, Method::Delta];

    /// Name as configured and shown.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Method::Alpha => "alpha",
            Method::Beta => "beta",
            Method::Gamma => "gamma",
            Method::Delta => "delta",
        }
    }

    /// The suite part of the Noise name.
    #[must_use]
    pub const fn suite(self) -> &'static str {
        match self {
            Method::Alpha => "25519_ChaChaPoly_BLAKE2s",
            Method::Beta => "25519_AESGCM_SHA256",
            Method::Gamma => "25519_ChaChaPoly_SHA512",
            Method::Delta => "25519_AESGCM_BLAKE2b",
        }
    }

    /// The Noise name over a link (PROTOCOL 5).
    #[must_use]
    pub const fn noise_name(self) -> &'static str {
        match self {
            Method::Alpha => "Noise_XXpsk0+psk3_25519_ChaChaPoly_BLAKE2s",
            Method::Beta => "Noise_XXpsk0+psk3_25519_AESGCM_SHA256",
            Method::Gamma => "Noise_XXpsk0+psk3_25519_ChaChaPoly_SHA512",
            Method::Delta => "Noise_XXpsk0+psk3_25519_AESGCM_BLAKE2b",
        }
    }

    /// The Noise name of direct contact, without a link (PROTOCOL 5).
    #[must_use]
    pub const fn direct_noise_name(self) -> &'static str {
        match self {
            Method::Alpha => "Noise_XXpsk3_25519_ChaChaPoly_BLAKE2s",
            Method::Beta => "Noise_XXpsk3_25519_AESGCM_SHA256",
            Method::Gamma => "Noise_XXpsk3_25519_ChaChaPoly_SHA512",
            Method::Delta => "Noise_XXpsk3_25519_AESGCM_BLAKE2b",
        }
    }

    /// Number on the wire.
    #[must_use]
    pub const fn number(self) -> u64 {
        self as u64
    }

    /// From the number on the wire.
    ///
    /// # Errors
    /// [`WireError::Unsupported`] for any other.
    pub fn from_number(number: u64) -> Result<Self> {
        Self::ALL.into_iter().find(|method| method.number() == number).ok_or(WireError::Unsupported { what: "method" })
    }

    /// Whether the suite's AEAD is AES-256-GCM; otherwise it is ChaCha20-Poly1305.
    #[must_use]
    pub const fn is_aes(self) -> bool {
        matches!(self, Method::Beta | Method::Delta)
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Method {
    type Err = WireError;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|method| method.name() == name).ok_or(WireError::Unsupported { what: "method" })
    }
}

/// Methods of modules that one node holds at a time, those included whose last links still live.
pub const PLACES: usize = 8;

/// Where a registered method stands in one node's table. It means nothing to another node: peers know it by its
/// [`MethodId`](crate::id::MethodId).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Place(u8);

impl Place {
    /// All of them, in the order in which schedules count them, after the four.
    pub fn all() -> impl Iterator<Item = Self> {
        (1..=PLACES as u8).map(Self)
    }

    /// Its number, from 1.
    #[must_use]
    pub const fn number(self) -> u8 {
        self.0
    }

    /// From its number.
    ///
    /// # Errors
    /// [`WireError::Unsupported`] for any other.
    pub fn from_number(number: u64) -> Result<Self> {
        Self::all().find(|place| u64::from(place.0) == number).ok_or(WireError::Unsupported { what: "method" })
    }

    const fn bit(self) -> u16 {
        1 << (Method::ALL.len() - 1 + self.0 as usize)
    }
}

/// A set of methods: an operator's allow-list, a card's suites. Registered ones are in it by their places, and so inside a node alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MethodSet(u16);

impl MethodSet {
    /// Every method of this version.
    pub const ALL: MethodSet = MethodSet(0b1111);
    /// None.
    pub const EMPTY: MethodSet = MethodSet(0);
    /// Every place, and every method.
    const LOCAL: u16 = (1 << (Method::ALL.len() + PLACES)) - 1;

    /// With `method`.
    #[must_use]
    pub const fn with(self, method: Method) -> Self {
        Self(self.0 | 1 << (method as u8 - 1))
    }

    /// With the registered method at `place`.
    #[must_use]
    pub const fn with_place(self, place: Place) -> Self {
        Self(self.0 | place.bit())
    }

    /// Whether `method` is in the set.
    #[must_use]
    pub const fn contains(self, method: Method) -> bool {
        self.0 & 1 << (method as u8 - 1) != 0
    }

    /// Whether the registered method at `place` is.
    #[must_use]
    pub const fn contains_place(self, place: Place) -> bool {
        self.0 & place.bit() != 0
    }

    /// Whether a link with this suite, or with the registered method at this place, is made with a method of the set.
    #[must_use]
    pub const fn allows(self, suite: Method, registered: Option<Place>) -> bool {
        match registered {
            Some(place) => self.contains_place(place),
            None => self.contains(suite),
        }
    }

    /// What both sets hold; empty is the hard, named error "no common method" at the caller.
    #[must_use]
    pub const fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// What is in either.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Without the registered ones: what others may be told as bits.
    #[must_use]
    pub const fn built_in(self) -> Self {
        self.intersection(Self::ALL)
    }

    /// In the order of [`Method::ALL`]; the registered ones are [`MethodSet::places`].
    pub fn iter(self) -> impl Iterator<Item = Method> {
        Method::ALL.into_iter().filter(move |method| self.contains(*method))
    }

    /// The places of the registered ones.
    pub fn places(self) -> impl Iterator<Item = Place> {
        Place::all().filter(move |place| self.contains_place(*place))
    }

    /// Whether it holds none.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The set as bits (bit n-1 = method n; then the places).
    #[must_use]
    pub const fn bits(self) -> u16 {
        self.0
    }

    /// From bits that another node wrote: of methods that every node knows.
    ///
    /// # Errors
    /// [`WireError::Unsupported`] when a bit has no method.
    pub fn from_bits(bits: u64) -> Result<Self> {
        Self::from_local_bits(bits).ok().filter(|set| *set == set.built_in()).ok_or(UNSUPPORTED)
    }

    /// From bits of this node's own, places included.
    ///
    /// # Errors
    /// [`WireError::Unsupported`] when a bit has neither a method nor a place.
    pub fn from_local_bits(bits: u64) -> Result<Self> {
        match u16::try_from(bits) {
            Ok(bits) if bits & !Self::LOCAL == 0 => Ok(Self(bits)),
            _ => Err(UNSUPPORTED),
        }
    }
}

const UNSUPPORTED: WireError = WireError::Unsupported { what: "method set" };

impl FromIterator<Method> for MethodSet {
    fn from_iter<I: IntoIterator<Item = Method>>(methods: I) -> Self {
        methods.into_iter().fold(Self::EMPTY, Self::with)
    }
}

/// Which rule picks the method of a new link, at its issuer, at issue time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    /// `floor(unix / 3600) mod n`.
    Hourly,
    /// `floor(unix / 86400) mod n`.
    Daily,
    /// `HMAC-SHA-256(seed, epoch) mod n` with the hourly epoch and a seed that the vault holds.
    Seeded,
}

impl Schedule {
    /// All of them.
    pub const ALL: [Schedule; 3] = [Schedule::Hourly, Schedule::Daily, Schedule::Seeded];

    /// Name as configured and shown.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Schedule::Hourly => "hourly",
            Schedule::Daily => "daily",
            Schedule::Seeded => "seeded",
        }
    }
}

impl FromStr for Schedule {
    type Err = WireError;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL
            .into_iter()
            .find(|schedule| schedule.name() == name)
            .ok_or(WireError::Unsupported { what: "schedule" })
    }
}
