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

/// Whether a person has read these words, or the hex, off the other side: case and what stands between words do not count.
pub(crate) fn are(mutual_link: &[u8; 16], shown: &str) -> bool {
    let plain = |text: &str| text.chars().filter(char::is_ascii_alphanumeric).collect::<String>().to_ascii_lowercase();
    let shown = plain(shown);
    shown == plain(&words(mutual_link)) || shown == hex::encode(mutual_link)
}

fn word(number: u16) -> String {
    let letter = |shift: u16| char::from(CONSONANTS[usize::from(number >> shift & 15)]);
    let vowel = |shift: u16| char::from(VOWELS[usize::from(number >> shift & 3)]);
    [letter(12), vowel(10), letter(6), vowel(4), letter(0)].iter().collect()
}

#[cfg(test)]
mod tests {
    use super::{are, words};

    #[test]
    fn the_published_examples() {
        // 127.0.0.1 and 63.84.220.193 in the scheme's own description.
        let mut link = [0; 16];
        link[..8].copy_from_slice(&[127, 0, 0, 1, 63, 84, 220, 193]);
        assert_eq!(words(&link), "lusab-babad-gutih-tugad-babab-babab-babab-babab");
    }

    #[test]
    fn words_that_were_read_out_are_the_same_words() {
        let mut link = [0; 16];
        link[..8].copy_from_slice(&[127, 0, 0, 1, 63, 84, 220, 193]);
        let text = words(&link);
        let spoken = text.replace('-', " ").to_uppercase();
        assert!(are(&link, &text) && are(&link, &spoken) && are(&link, &hex::encode(link)));
        for wrong in ["", "lusab", &text[..46], &text.replace('l', "d"), &format!("{text}-babab")] {
            assert!(!are(&link, wrong), "{wrong}");
        }
    }
}
