//! The four methods (cipher suites) and what a schedule is: names and choices as data. The schedule is computed, and the
//! transforms are made, in the key process (PROTOCOL 3).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Result, WireError};

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

/// A set of methods: an operator's allow-list, a card's suites.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MethodSet(u8);

impl MethodSet {
    /// Every method of this version.
    pub const ALL: MethodSet = MethodSet(0b1111);
    /// None.
    pub const EMPTY: MethodSet = MethodSet(0);

    /// With `method`.
    #[must_use]
    pub const fn with(self, method: Method) -> Self {
        Self(self.0 | 1 << (method as u8 - 1))
    }

    /// Whether `method` is in the set.
    #[must_use]
    pub const fn contains(self, method: Method) -> bool {
        self.0 & 1 << (method as u8 - 1) != 0
    }

    /// What both sets hold; empty is the hard, named error "no common method" at the caller.
    #[must_use]
    pub const fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// In the order of [`Method::ALL`].
    pub fn iter(self) -> impl Iterator<Item = Method> {
        Method::ALL.into_iter().filter(move |method| self.contains(*method))
    }

    /// Whether it holds none.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The set as bits (bit n-1 = method n).
    #[must_use]
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// From bits.
    ///
    /// # Errors
    /// [`WireError::Unsupported`] when a bit has no method.
    pub fn from_bits(bits: u64) -> Result<Self> {
        match u8::try_from(bits) {
            Ok(bits) if bits & !Self::ALL.0 == 0 => Ok(Self(bits)),
            _ => Err(WireError::Unsupported { what: "method set" }),
        }
    }
}

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
