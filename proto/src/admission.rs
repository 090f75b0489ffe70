//! What a directory may ask of a node that comes for the first time (docs/protocol.md section 7): proof of work, or an invite.
//!
//! Work binds directory, node and time, so that it serves nobody else, nowhere else and not later; it is verified by one hash and
//! nothing is remembered for it. An invite names its directory by four bytes, so that a node shows it to that one alone; what the
//! directory keeps is a hash. Sans-IO: time and randomness are arguments.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest as _, Sha256};

use crate::error::{Result, WireError};
use crate::id::{NodeId, UnixMillis};
use crate::limits::WORK_LIFE;

/// First bytes of what is hashed for work. No signature is over it: those are over a label of `label.rs`, this is hashed alone.
const WORK_LABEL: &[u8] = b"openred/1/work\0";
/// First characters of an invite's text.
const INVITE_PREFIX: &str = "invite-";
/// Base58 of the 20 bytes of an invite: 28 characters at the most.
const INVITE_CHARACTERS: usize = 28;

/// What a node says to have worked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Work {
    /// When it began, seconds since the epoch, by the directory's clock as the node knows it.
    pub time: u64,
    /// What it found.
    pub nonce: u64,
}

/// Work that is to be done: one hash for each nonce that is tried.
#[derive(Clone, Debug)]
pub struct Challenge {
    prefix: Sha256,
}

impl Challenge {
    /// For this node, at this directory, at this time.
    #[must_use]
    pub fn new(directory: &NodeId, node: &NodeId, time: u64) -> Self {
        let prefix = Sha256::new_with_prefix(WORK_LABEL);
        let prefix = prefix.chain_update(directory.as_bytes()).chain_update(node.as_bytes());
        Self { prefix: prefix.chain_update(time.to_be_bytes()) }
    }

    /// Zero bits that the hash with this nonce begins with.
    #[must_use]
    pub fn zero_bits(&self, nonce: u64) -> u32 {
        let hash = self.prefix.clone().chain_update(nonce.to_be_bytes()).finalize();
        let mut bits = 0;
        for byte in hash {
            bits += byte.leading_zeros();
            if byte != 0 {
                break;
            }
        }
        bits
    }

    /// Tries the nonces from `from` on, `tries` of them; the first that does.
    #[must_use]
    pub fn search(&self, bits: u32, from: u64, tries: u64) -> Option<u64> {
        (from..from.saturating_add(tries)).find(|nonce| self.zero_bits(*nonce) >= bits)
    }
}

impl Work {
    /// Whether it was done for this directory and node, lately, and is enough.
    ///
    /// # Errors
    /// Out of time, or too little.
    pub fn verify(&self, directory: &NodeId, node: &NodeId, now: UnixMillis, bits: u32) -> Result<()> {
        if now.seconds().abs_diff(self.time) > WORK_LIFE.as_secs() {
            return Err(WireError::OutOfTime { what: "work", early: self.time > now.seconds() });
        }
        if Challenge::new(directory, node, self.time).zero_bits(self.nonce) < bits {
            return Err(WireError::Malformed { what: "work", why: "its hash has too few leading zero bits" });
        }
        Ok(())
    }
}

/// An invite, as a directory's operator hands it out.
#[derive(Clone, PartialEq, Eq)]
pub struct Invite {
    directory: [u8; 4],
    secret: [u8; 16],
}

impl Invite {
    /// To this directory, from 16 random bytes.
    #[must_use]
    pub fn new(directory: &NodeId, secret: [u8; 16]) -> Self {
        Self { directory: Self::short(directory), secret }
    }

    /// Whether it is for this directory.
    #[must_use]
    pub fn is_for(&self, directory: &NodeId) -> bool {
        self.directory == Self::short(directory)
    }

    /// What the directory keeps of it.
    #[must_use]
    pub fn hash(&self) -> [u8; 32] {
        Sha256::new_with_prefix(b"openred/1/invite\0").chain_update(self.secret).finalize().into()
    }

    fn short(directory: &NodeId) -> [u8; 4] {
        let hash = Sha256::digest(directory.as_bytes());
        [hash[0], hash[1], hash[2], hash[3]]
    }
}

impl fmt::Display for Invite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = [&self.directory[..], &self.secret].concat();
        write!(f, "{INVITE_PREFIX}{}", bs58::encode(bytes).into_string())
    }
}

/// Whoever reads an invite may use it: logs do not hold one.
impl fmt::Debug for Invite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Invite(<secret>)")
    }
}

impl FromStr for Invite {
    type Err = WireError;

    fn from_str(text: &str) -> Result<Self> {
        let malformed =
            WireError::Malformed { what: "invite", why: "expected invite-… as the directory's operator gave it" };
        let encoded = text.strip_prefix(INVITE_PREFIX).filter(|encoded| encoded.len() <= INVITE_CHARACTERS);
        let bytes = bs58::decode(encoded.ok_or(malformed)?).into_vec().map_err(|_| malformed)?;
        let bytes: [u8; 20] = bytes.try_into().map_err(|_| malformed)?;
        let (mut directory, mut secret) = ([0; 4], [0; 16]);
        directory.copy_from_slice(&bytes[..4]);
        secret.copy_from_slice(&bytes[4..]);
        Ok(Self { directory, secret })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    const NOW: UnixMillis = UnixMillis(1_800_000_000_000);

    fn node(seed: u8) -> NodeId {
        NodeId::from_bytes([seed; 32])
    }

    #[test]
    fn work_is_for_one_directory_one_node_and_one_time() {
        let (directory, mine) = (node(1), node(2));
        let time = NOW.seconds();
        let nonce = Challenge::new(&directory, &mine, time).search(12, 0, 1 << 20).unwrap();
        let work = Work { time, nonce };
        assert_eq!(work.verify(&directory, &mine, NOW, 12), Ok(()));
        for (work, directory, mine, bits) in [
            (work, node(3), mine, 12),
            (work, directory, node(3), 12),
            (Work { time: time + 1, ..work }, directory, mine, 12),
            (work, directory, mine, 64),
        ] {
            assert!(matches!(work.verify(&directory, &mine, NOW, bits), Err(WireError::Malformed { .. })));
        }
        for (after, good) in [(600, true), (601, false)] {
            let later = NOW.plus(std::time::Duration::from_secs(after));
            assert_eq!(work.verify(&directory, &mine, later, 12).is_ok(), good);
            let sooner = UnixMillis(NOW.0 - after * 1000);
            assert_eq!(work.verify(&directory, &mine, sooner, 12).is_ok(), good);
        }
        let late = Err(WireError::OutOfTime { what: "work", early: false });
        assert_eq!(work.verify(&directory, &mine, UnixMillis(u64::MAX), 0), late);
    }

    #[test]
    fn the_hash_is_what_the_document_says() {
        // Written out: another implementation must find the same.
        let whole = [b"openred/1/work\0", &[1; 32][..], &[2; 32], &7_u64.to_be_bytes(), &9_u64.to_be_bytes()].concat();
        let hash = Sha256::digest(whole);
        let expected = u64::from_be_bytes(hash[..8].try_into().unwrap()).leading_zeros();
        assert_eq!(Challenge::new(&node(1), &node(2), 7).zero_bits(9), expected);
    }

    #[test]
    fn an_invite_is_for_one_directory_and_has_one_text() {
        let invite = Invite::new(&node(1), [7; 16]);
        assert!(invite.is_for(&node(1)) && !invite.is_for(&node(2)));
        let text = invite.to_string();
        assert_eq!(text.parse(), Ok(invite.clone()));
        assert_eq!(format!("{invite:?}"), "Invite(<secret>)");
        for wrong in ["", "invite-", "invite-0", &text[1..], &text.to_uppercase(), &format!("{text}{text}")] {
            assert!(wrong.parse::<Invite>().is_err(), "{wrong}");
        }
    }
}
