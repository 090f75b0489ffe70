//! Names: of files (for people), of rows and of blobs (for the host).
//!
//! | key | value |
//! |---|---|
//! | `s/` id | a share: JSON `Share` |
//! | `t/` id | a transfer: JSON `Transfer` |
//! | `l/` id, link | a link to a share: JSON `Link` |
//! | `k/` id, peer, ticket | a fetch that a link has let in: JSON `Ticket` |
//! | `f/` id, link | the ticket of this node's own fetch by a link: 16 bytes |
//! | `cursor-key` | what cursors of lists are sealed with: 32 random bytes |
//!
//! | blob | |
//! |---|---|
//! | `up-` random | a share that is being written; removed at start |
//! | id `.part` | a transfer's content so far, each piece at its place |
//! | id `.data` | a complete, verified file |
//! | id `.hash` | the hashes of its pieces |
//!
//! What has neither a share nor a transfer is nobody's, and removed at start.

use bytes::{BufMut, Bytes, BytesMut};
use openred_module::BlobName;

use crate::error::FilesError;
use crate::tree::FileId;

/// Longest name of a file, in bytes: what file systems take.
const NAME_LIMIT: usize = 255;

pub(crate) const SHARES: &str = "s/";
pub(crate) const TRANSFERS: &str = "t/";
pub(crate) const LINKS: &str = "l/";
pub(crate) const TICKETS: &str = "k/";
pub(crate) const OWN_TICKETS: &str = "f/";
pub(crate) const CURSOR_KEY: &str = "cursor-key";
/// How names of unfinished shares begin.
pub(crate) const UPLOAD: &str = "up-";

pub(crate) fn row(prefix: &str, id: &FileId) -> Bytes {
    let mut key = BytesMut::from(prefix);
    key.put_slice(id.as_bytes());
    key.freeze()
}

/// A row below that of a file: of a fixed length for each prefix, so that no two parts run into each other.
pub(crate) fn row_below(prefix: &str, id: &FileId, parts: &[&[u8]]) -> Bytes {
    let mut key = BytesMut::from(prefix);
    key.put_slice(id.as_bytes());
    parts.iter().for_each(|part| key.put_slice(part));
    key.freeze()
}

/// The file that a row's key names.
pub(crate) fn file_of(prefix: &str, key: &[u8]) -> Option<FileId> {
    key.strip_prefix(prefix.as_bytes())?.first_chunk().copied().map(FileId::from_bytes)
}

fn blob(id: &FileId, suffix: &str) -> BlobName {
    BlobName::new(&format!("{id}{suffix}")).expect("hexadecimal and a suffix is a blob name")
}

/// The file of which a blob is the content, a part of it, or the hashes; none for another.
pub(crate) fn content_of(name: &BlobName) -> Option<FileId> {
    let (id, suffix) = name.as_str().split_once('.')?;
    matches!(suffix, "data" | "part" | "hash").then(|| id.parse().ok()).flatten()
}

pub(crate) fn data(id: &FileId) -> BlobName {
    blob(id, ".data")
}

pub(crate) fn part(id: &FileId) -> BlobName {
    blob(id, ".part")
}

pub(crate) fn hashes(id: &FileId) -> BlobName {
    blob(id, ".hash")
}

pub(crate) fn upload(unique: [u8; 16]) -> BlobName {
    BlobName::new(&format!("{UPLOAD}{}", hex::encode(unique))).expect("hexadecimal and a prefix is a blob name")
}

/// A file name that is safe to show and to write into a folder: no path, nothing that moves a terminal's cursor or
/// turns the direction of text.
pub(crate) fn is_file_name(name: &str) -> bool {
    let unsafe_character = |character: char| {
        character == '/'
            || character == '\\'
            || character.is_control()
            || matches!(character, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200e}' | '\u{200f}' | '\u{61c}')
    };
    !name.is_empty() && name.len() <= NAME_LIMIT && name != "." && name != ".." && !name.chars().any(unsafe_character)
}

/// A file name out of a path segment: percent-encoded (RFC 3986 §2.1).
pub(crate) fn decode_file_name(segment: &str) -> Result<String, FilesError> {
    let mut bytes = Vec::with_capacity(segment.len());
    let mut rest = segment.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let (digits, after) = rest.split_first_chunk::<2>().ok_or(FilesError::BadName)?;
        let mut byte = [0];
        hex::decode_to_slice(digits, &mut byte).map_err(|_| FilesError::BadName)?;
        bytes.push(byte[0]);
        rest = after;
    }
    let name = String::from_utf8(bytes).map_err(|_| FilesError::BadName)?;
    if is_file_name(&name) { Ok(name) } else { Err(FilesError::BadName) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_that_are_paths_or_tricks_are_refused() {
        let long = "x".repeat(256);
        let bad = [
            "",
            ".",
            "..",
            "a/b",
            "a\\b",
            "a\0b",
            "a\nb",
            "\u{1b}[2J",
            "cod\u{202e}exe.txt",
            "\u{61c}a",
            "a\u{2029}b",
            &long,
        ];
        for name in bad {
            assert!(!is_file_name(name), "{name:?}");
        }
        for name in ["a", "...", ".hidden", "Ünïcode 文件 🙂.tar.gz", &long[1..]] {
            assert!(is_file_name(name), "{name:?}");
        }
        for segment in ["%", "%4", "%zz", "%2f", "%2e%2e", "%00", "%ff", ""] {
            assert_eq!(decode_file_name(segment), Err(FilesError::BadName), "{segment}");
        }
        assert_eq!(decode_file_name("a%20b%C3%A9").unwrap(), "a bé");
    }

    proptest! {
        #[test]
        fn encoded_names_are_read_as_written(name in "[^/\\\\\\p{C}]{1,60}") {
            let encoded: String = name.bytes().map(|byte| format!("%{byte:02X}")).collect();
            prop_assume!(is_file_name(&name));
            prop_assert_eq!(decode_file_name(&encoded).unwrap(), name);
        }

        #[test]
        fn any_segment_is_decoded_without_a_panic(segment in ".{0,100}") {
            if let Ok(name) = decode_file_name(&segment) {
                prop_assert!(is_file_name(&name));
            }
        }
    }
}
