//! A mutual link as words that two people can read to each other: eight pronounceable words of five letters, each for two
//! bytes (the scheme known as proquints).

const CONSONANTS: &[u8; 16] = b"bdfghjklmnprstvz";
const VOWELS: &[u8; 4] = b"aiou";

/// The words of a mutual link.
pub(crate) fn words(mutual_link: &[u8; 16]) -> String {
    let words: Vec<String> =
        mutual_link.chunks_exact(2).map(|pair| word(u16::from_be_bytes([pair[0], pair[1]]))).collect();
    words.join("-")
}

fn word(number: u16) -> String {
    let letter = |shift: u16| char::from(CONSONANTS[usize::from(number >> shift & 15)]);
    let vowel = |shift: u16| char::from(VOWELS[usize::from(number >> shift & 3)]);
    [letter(12), vowel(10), letter(6), vowel(4), letter(0)].iter().collect()
}

#[cfg(test)]
mod tests {
    use super::words;

    #[test]
    fn the_published_examples() {
        // 127.0.0.1 and 63.84.220.193 in the scheme's own description.
        let mut link = [0; 16];
        link[..8].copy_from_slice(&[127, 0, 0, 1, 63, 84, 220, 193]);
        assert_eq!(words(&link), "lusab-babad-gutih-tugad-babab-babab-babab-babab");
    }
}
