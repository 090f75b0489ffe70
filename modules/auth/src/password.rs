//! Passwords as they are kept: Argon2id (RFC 9106), the parameters beside each, so that they can grow.

use argon2::{Algorithm, Argon2, Params, Version};
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq as _;

/// KiB of memory, passes and lanes of new ones. What a guess costs whoever stole the rows; the module's own memory has room for one at a time.
const COST: (u32, u32, u32) = (47_104, 1, 1);
/// Bytes of a hash.
const HASH: usize = 32;
/// Fewest characters of a password: with the second factor beside it, and five guesses, it need not be a poem.
pub(crate) const SHORTEST: usize = 12;
/// Longest, in bytes.
pub(crate) const LONGEST: usize = 256;

/// A password's hash. Prints nothing of itself.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Hashed {
    memory: u32,
    passes: u32,
    lanes: u32,
    salt: [u8; 16],
    hash: [u8; HASH],
}

impl std::fmt::Debug for Hashed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hashed(<secret>)")
    }
}

impl Hashed {
    /// The hash of a password, with a salt of its own. Costs what [`COST`] says.
    pub(crate) fn new(password: &str, salt: [u8; 16]) -> Self {
        let (memory, passes, lanes) = COST;
        let mut hashed = Self { memory, passes, lanes, salt, hash: [0; HASH] };
        hashed.hash = hashed.of(password).expect("the parameters above are among those of RFC 9106");
        hashed
    }

    /// Whether this is the password. One that no row has costs the same.
    pub(crate) fn is(&self, password: &str) -> bool {
        self.of(password).is_some_and(|hash| hash.ct_eq(&self.hash).into())
    }

    /// What no password is: for names that nobody has.
    pub(crate) fn nobody() -> Self {
        let (memory, passes, lanes) = COST;
        Self { memory, passes, lanes, salt: [0; 16], hash: [0; HASH] }
    }

    fn of(&self, password: &str) -> Option<[u8; HASH]> {
        let params = Params::new(self.memory, self.passes, self.lanes, Some(HASH)).ok()?;
        let mut hash = [0; HASH];
        let argon = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
        argon.hash_password_into(password.as_bytes(), &self.salt, &mut hash).ok()?;
        Some(hash)
    }
}

/// Whether it can be one at all.
pub(crate) fn is_strong(password: &str) -> bool {
    password.len() <= LONGEST && password.chars().count() >= SHORTEST && !password.chars().any(char::is_control)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_password_itself_opens() {
        let hashed = Hashed::new("correct horse", [7; 16]);
        assert!(hashed.is("correct horse"));
        assert!(!hashed.is("correct horsf") && !hashed.is("") && !Hashed::nobody().is("correct horse"));
        assert_ne!(Hashed::new("correct horse", [8; 16]), hashed);
        assert!(!format!("{hashed:?}").contains('7'));
    }

    #[test]
    fn a_password_has_a_length() {
        assert!(is_strong("twelve chars") && is_strong(&"é".repeat(12)));
        assert!(!is_strong("eleven char") && !is_strong(&"x".repeat(LONGEST + 1)) && !is_strong("twelve\nchars"));
    }
}
