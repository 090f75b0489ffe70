//! One-time codes of an authenticator (RFC 6238 with what authenticators use: HMAC-SHA-1, six digits, thirty seconds).
//!
//! SHA-1's collisions do not touch HMAC, and authenticators know nothing else; it comes from `ring`, not from a crate of its own. Time is an
//! argument.

use openred_module::UnixMillis;
use ring::hmac;
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq as _;

/// Bytes of a secret: as long as the hash (RFC 4226 §4).
const SECRET: usize = 20;
/// How long a code holds.
const STEP: u64 = 30_000;
/// Codes before and after today's that are taken, for clocks that differ.
const DRIFT: u64 = 1;
/// Six digits.
const CODES: u32 = 1_000_000;

/// What authenticator and node share. Prints nothing of itself.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Totp {
    secret: [u8; SECRET],
    /// The last step whose code was taken: it and those before it are never taken again.
    used: u64,
}

impl std::fmt::Debug for Totp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Totp(<secret>)")
    }
}

impl Totp {
    /// A new one out of random bytes.
    pub(crate) fn new(random: [[u8; 16]; 2]) -> Self {
        let mut secret = [0; SECRET];
        secret.iter_mut().zip(random.as_flattened()).for_each(|(to, from)| *to = *from);
        Self { secret, used: 0 }
    }

    /// Whether an authenticator has shown its first code.
    pub(crate) fn is_used(&self) -> bool {
        self.used > 0
    }

    /// With this code used up, if it holds now and was not used before.
    pub(crate) fn take(&self, code: &str, now: UnixMillis) -> Option<Self> {
        let today = now / STEP;
        let steps = today.saturating_sub(DRIFT)..=today + DRIFT;
        let mut taken = None;
        for step in steps {
            // All of them, in the same time.
            let holds: bool = self.code(step).as_bytes().ct_eq(code.as_bytes()).into();
            if holds && step > self.used {
                taken = Some(step);
            }
        }
        taken.map(|used| Self { used, ..self.clone() })
    }

    fn code(&self, step: u64) -> String {
        let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, &self.secret);
        let tag = hmac::sign(&key, &step.to_be_bytes());
        // RFC 4226 §5.3: four bytes where the last one's lower half says, without the sign.
        let tag = tag.as_ref();
        let at = usize::from(tag[tag.len() - 1] & 0xf);
        let number = u32::from_be_bytes([tag[at] & 0x7f, tag[at + 1], tag[at + 2], tag[at + 3]]);
        format!("{:06}", number % CODES)
    }

    /// As authenticators read it, most from a picture of it.
    pub(crate) fn uri(&self, name: &str, node: &str) -> String {
        let secret = base32(&self.secret);
        format!(
            "otpauth://totp/OpenRed:{name}%40{node}?secret={secret}&issuer=OpenRed&algorithm=SHA1&digits=6&period=30"
        )
    }
}

/// The code that an authenticator shows at this time for the address of its enrolment: for tests and scripts, which have no telephone.
pub fn code_at(uri: &str, now: UnixMillis) -> Option<String> {
    let (_, secret) = uri.split_once("secret=")?;
    let secret = from_base32(secret.split('&').next()?)?.try_into().ok()?;
    Some(Totp { secret, used: 0 }.code(now / STEP))
}

const LETTERS: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";

/// RFC 4648 §6, without padding.
fn base32(bytes: &[u8]) -> String {
    let (mut text, mut bits, mut waiting) = (String::new(), 0u32, 0);
    for byte in bytes {
        bits = (bits << 8 | u32::from(*byte)) & 0xfff;
        waiting += 8;
        while waiting >= 5 {
            waiting -= 5;
            text.push(char::from(LETTERS[(bits >> waiting & 31) as usize]));
        }
    }
    if waiting > 0 {
        text.push(char::from(LETTERS[(bits << (5 - waiting) & 31) as usize]));
    }
    text
}

fn from_base32(text: &str) -> Option<Vec<u8>> {
    let (mut bytes, mut bits, mut waiting) = (Vec::new(), 0u32, 0);
    for letter in text.bytes() {
        let value = LETTERS.iter().position(|known| *known == letter)?;
        bits = (bits << 5 | u32::try_from(value).ok()?) & 0xfff;
        waiting += 5;
        if waiting >= 8 {
            waiting -= 8;
            bytes.push(u8::try_from(bits >> waiting & 0xff).ok()?);
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    impl Totp {
        fn shown(&self, now: UnixMillis) -> String {
            self.code(now / STEP)
        }
    }

    fn of_the_rfc() -> Totp {
        Totp { secret: *b"12345678901234567890", used: 0 }
    }

    #[test]
    fn the_vectors_of_rfc_6238() {
        // Appendix B, the last six of eight digits.
        let vectors: [(u64, &str); 6] = [
            (59, "287082"),
            (1_111_111_109, "081804"),
            (1_111_111_111, "050471"),
            (1_234_567_890, "005924"),
            (2_000_000_000, "279037"),
            (20_000_000_000, "353130"),
        ];
        for (seconds, code) in vectors {
            assert_eq!(of_the_rfc().shown(seconds * 1000), code);
        }
    }

    #[test]
    fn a_code_is_taken_once_and_none_before_it_ever() {
        let (totp, now) = (of_the_rfc(), 1_111_111_111_000);
        let late = totp.shown(now - STEP);
        let taken = totp.take("050471", now).unwrap();
        assert!(taken.is_used() && !totp.is_used());
        assert_eq!(taken.take("050471", now), None, "a replay");
        assert_eq!(taken.take("050471", now + STEP), None, "and a moment later");
        assert_eq!(taken.take(&late, now), None, "one that was read over the shoulder before");
        assert!(taken.take(&totp.shown(now + STEP), now).is_some(), "a clock that is ahead");
        assert!(totp.take(&late, now).is_some(), "one that is behind");
        for wrong in ["", "0", "050470", "0504710", "050 471", "５０４７１"] {
            assert_eq!(totp.take(wrong, now), None, "{wrong}");
        }
        assert_eq!(totp.take(&totp.shown(now + 2 * STEP), now), None, "too far ahead");
    }

    #[test]
    fn base32_as_in_rfc_4648() {
        let vectors =
            [("", ""), ("f", "MY"), ("fo", "MZXQ"), ("foo", "MZXW6"), ("foob", "MZXW6YQ"), ("foobar", "MZXW6YTBOI")];
        for (bytes, text) in vectors {
            assert_eq!(base32(bytes.as_bytes()), text);
        }
        let uri = of_the_rfc().uri("ada", "z6Mk");
        assert!(uri.contains("secret=GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ&"));
        assert_eq!(code_at(&uri, 59_000).unwrap(), "287082");
        assert_eq!(code_at("otpauth://totp/x?secret=1&", 0), None);
    }
}
