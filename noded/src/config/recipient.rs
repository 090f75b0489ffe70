//! The text of an X25519 recipient of age, `age1…`: Bech32 (BIP 173) of 32 bytes. It is checked here so that a typing mistake shows
//! when the configuration is read, not when a segment is to be sealed; age itself is in the caged unsealer alone.

/// What the text begins with, its separator included.
const PREFIX: &str = "age1";
/// Characters behind the prefix: 32 bytes in groups of five bits, and six characters of checksum.
const CHARACTERS: usize = 52 + 6;
/// Bits of the last character of the key that mean nothing and must be zero: 52 · 5 − 256.
const PADDING: u32 = (1 << 4) - 1;
/// The character of each group of five bits.
const ALPHABET: &[u8; 32] = b"qpzry9x8gf2tvdw0s3jn54khce6mua7l";
/// The generator of the checksum's code.
const GENERATOR: [u32; 5] = [0x3b6a_57b2, 0x2650_8e6d, 0x1ea1_19fa, 0x3d42_33dd, 0x2a14_62b3];

/// Whether `text` is one.
pub(super) fn is_recipient(text: &str) -> bool {
    let Some(body) = text.strip_prefix(PREFIX).filter(|body| body.len() == CHARACTERS) else { return false };
    let value = |byte: u8| ALPHABET.iter().position(|of| *of == byte).and_then(|value| u32::try_from(value).ok());
    let Some(values) = body.bytes().map(value).collect::<Option<Vec<u32>>>() else { return false };
    let name = PREFIX.trim_end_matches('1').bytes().map(u32::from);
    let spread = name.clone().map(|byte| byte >> 5).chain([0]).chain(name.map(|byte| byte & 31));
    let sum = spread.chain(values.iter().copied()).fold(1, checksum);
    sum == 1 && values[CHARACTERS - 7] & PADDING == 0
}

fn checksum(sum: u32, value: u32) -> u32 {
    let shifted = (sum & 0x01ff_ffff) << 5 ^ value;
    let taken = GENERATOR.iter().enumerate().filter(|(bit, _)| sum >> (25 + bit) & 1 == 1);
    taken.fold(shifted, |sum, (_, generator)| sum ^ generator)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use openred_cryptod::unseal::envelope::Seal;

    use super::*;

    /// The age specification's own example.
    const GOOD: &str = "age1zvkyg2lqzraa2lnjvqej32nkuu0ues2s82hzrye869xeexvn73equnujwj";

    #[test]
    fn what_age_takes_is_taken_and_every_changed_character_refused_as_age_does() {
        let agree = |text: &str| {
            let taken = Seal::to(&[text.to_owned()]).is_ok();
            assert_eq!(is_recipient(text), taken, "{text}");
            taken
        };
        assert!(agree(GOOD));
        for place in PREFIX.len()..GOOD.len() {
            for other in *ALPHABET {
                let mut bytes = GOOD.as_bytes().to_vec();
                let same = std::mem::replace(&mut bytes[place], other) == other;
                assert_eq!(agree(&String::from_utf8(bytes).unwrap()), same);
            }
        }
        for none in ["", "age1", "age", &GOOD[..61], &format!("{GOOD}q"), "AGE-SECRET-KEY-1", "ssh-ed25519 AAAA"] {
            assert!(!agree(none));
        }
    }
}
