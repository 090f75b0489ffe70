//! The short texts of a manifest, each with its own alphabet and bound. They become file names, rows and lines on a terminal, so
//! nothing else may be in them.

use std::fmt;
use std::str::FromStr;

use openred_proto::modules::MODULE_ID_BYTES;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::Method;

/// Longest name of a setting, an event, a hook.
const CODE_BYTES: usize = 64;
/// Longest text for people.
const LINE_BYTES: usize = 200;
/// Longest version.
const VERSION_BYTES: usize = 64;
/// Longest path pattern, and most of its segments.
const PATTERN_BYTES: usize = 256;
/// See [`PATTERN_BYTES`].
const SEGMENTS: usize = 16;
/// Longest file name of a program.
const PROGRAM_BYTES: usize = 64;

/// Why a word was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadWord {
    /// A module's id.
    #[error("not a module's id; use 1 to 32 of a-z, 0-9 and -, beginning with a letter, and not `openred`")]
    Id,
    /// A version.
    #[error("not a version; use MAJOR.MINOR.PATCH as SemVer has it, of 64 characters at most")]
    Version,
    /// A name.
    #[error("not a name; use 1 to 64 of a-z, 0-9, - and _, beginning with a letter")]
    Code,
    /// A text.
    #[error("not a line for people; use 1 to 200 bytes of printable text without a line break")]
    Line,
    /// A path.
    #[error(
        "not a path; use /word/{{name}} of at most 16 segments, of letters, digits, ., _, - and ~, names once each"
    )]
    Pattern,
    /// A program.
    #[error("not a file name; use 1 to 64 of letters, digits, ., _ and -, not beginning with a dot, and no path")]
    Program,
    /// A digest.
    #[error("not a SHA-256; `openred module sign` writes its 64 hexadecimal digits")]
    Digest,
}

/// A text type: parsed from a string, shown as it was.
macro_rules! word {
    ($(#[$doc:meta])* $name:ident, $bad:ident, $check:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(String);

        impl $name {
            /// As text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = BadWord;

            fn from_str(text: &str) -> Result<Self, BadWord> {
                let check: fn(&str) -> bool = $check;
                if check(text) { Ok(Self(text.to_owned())) } else { Err(BadWord::$bad) }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

word!(
    /// A module's id: 1 to 32 of `a-z`, `0-9`, `-`, beginning with a letter. `openred` is the node's own.
    ModuleId,
    Id,
    |text| text.len() <= MODULE_ID_BYTES && is_code(text) && !text.contains('_') && text != "openred"
);
word!(
    /// A module's version (SemVer 2.0.0). It is the name of a folder too. Compare with [`Version::is_newer_than`].
    Version,
    Version,
    |text| text.len() <= VERSION_BYTES && semver::Version::parse(text).is_ok()
);
word!(
    /// A name in lower case: 1 to 64 of `a-z`, `0-9`, `-`, `_`, beginning with a letter.
    Code,
    Code,
    is_code
);
word!(
    /// One line for people: 1 to 200 bytes, nothing in it that moves a cursor or turns the direction of writing.
    Line,
    Line,
    |text| !text.trim().is_empty() && text.len() <= LINE_BYTES && !text.chars().any(is_unprintable)
);
word!(
    /// A path of a route: literal segments, and `{name}` for one segment of any text.
    Pattern,
    Pattern,
    is_pattern
);
word!(
    /// File name of a program.
    Program,
    Program,
    |text| !text.is_empty()
        && text.len() <= PROGRAM_BYTES
        && !text.starts_with('.')
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
);

impl Version {
    /// Whether it comes after `other` (SemVer 11).
    #[must_use]
    pub fn is_newer_than(&self, other: &Self) -> bool {
        match (semver::Version::parse(&self.0), semver::Version::parse(&other.0)) {
            (Ok(own), Ok(other)) => own > other,
            _ => false,
        }
    }

    /// Whether it is `other`, or a build of it: the same with more build metadata (SemVer 10), which a program need not know.
    #[must_use]
    pub fn is_build_of(&self, other: &Self) -> bool {
        let separator = if other.0.contains('+') { '.' } else { '+' };
        self.0.strip_prefix(other.as_str()).is_some_and(|more| more.is_empty() || more.starts_with(separator))
    }
}

impl Pattern {
    /// Which calls it serves: the same for two patterns that no call can tell apart.
    #[must_use]
    pub fn shape(&self) -> String {
        let part = |part: &str| if part.starts_with('{') { String::from("{}") } else { part.to_owned() };
        self.0.split('/').map(part).collect::<Vec<_>>().join("/")
    }

    /// Whether a path is one of those that it serves.
    #[must_use]
    pub fn matches(&self, path: &str) -> bool {
        let mut given = path.split('/');
        let fits = |want: &str| match given.next() {
            Some(have) if want.starts_with('{') => !have.is_empty(),
            have => have == Some(want),
        };
        self.0.split('/').all(fits) && given.next().is_none()
    }
}

fn is_code(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_".contains(&byte);
    text.len() <= CODE_BYTES && text.starts_with(|first: char| first.is_ascii_lowercase()) && text.bytes().all(allowed)
}

fn is_unprintable(letter: char) -> bool {
    // Beside controls: line separators, marks that turn the direction of writing, and the mark of byte order.
    letter.is_control()
        || matches!(letter, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

fn is_pattern(text: &str) -> bool {
    let Some(rest) = text.strip_prefix('/') else { return false };
    let mut names = std::collections::BTreeSet::new();
    let mut is_part = |part: &str| match part.strip_prefix('{').map(|rest| rest.strip_suffix('}')) {
        Some(Some(name)) => is_code(name) && names.insert(name.to_owned()),
        Some(None) => false,
        None => !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-~".contains(&byte)),
    };
    text.len() <= PATTERN_BYTES && rest.split('/').count() <= SEGMENTS && rest.split('/').all(&mut is_part)
}

/// SHA-256 of a program.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Digest(pub [u8; 32]);

impl FromStr for Digest {
    type Err = BadWord;

    fn from_str(text: &str) -> Result<Self, BadWord> {
        let digit = |byte: u8| match byte {
            b'0'..=b'9' => Ok(byte - b'0'),
            b'a'..=b'f' => Ok(byte - b'a' + 10),
            _ => Err(BadWord::Digest),
        };
        let mut digest = [0; 32];
        let (pairs, rest) = text.as_bytes().as_chunks::<2>();
        if pairs.len() != digest.len() || !rest.is_empty() {
            return Err(BadWord::Digest);
        }
        for (byte, [high, low]) in digest.iter_mut().zip(pairs) {
            *byte = digit(*high)? << 4 | digit(*low)?;
        }
        Ok(Self(digest))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// `GET` or `POST`.
pub(super) fn method<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Method, D::Error> {
    match String::deserialize(deserializer)?.as_str() {
        "GET" => Ok(Method::Get),
        "POST" => Ok(Method::Post),
        _ => Err(serde::de::Error::custom("not a method of a route; use GET to read or POST to change")),
    }
}
