//! What a message names of the files that its sender shares: never their bytes, which are fetched by the module `files`.
//!
//! In: what the operator names, and what a peer says. What a peer says is data to be shown: it is held against the rules here
//! before it is stored, and nothing is fetched for it unasked.

use openred_module::{Context, ModuleError, NodeId, PeerRequest, Status};
use serde::{Deserialize, Serialize};

use crate::error::MessagingError;
use crate::record::FormError;

/// Most files that one message names: with their names they fit into a head, and their ids into a path.
pub const ATTACHMENTS: usize = 8;
/// The module whose files they are.
const FILES: &str = "files";
/// Longest name of a file, in bytes: what file systems take.
const NAME_LIMIT: usize = 255;
/// Longest file that there is (as `files` has it).
const FILE_LIMIT: u64 = 1 << 40;
/// Digits of a file's id.
const ID_DIGITS: usize = 64;
/// Longest answer of `files` that is read.
const ANSWER_LIMIT: usize = 256 * 1024;

/// A file that a message names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// BLAKE3 of the content, in hexadecimal: the id by which it is fetched of the sender.
    pub id: String,
    /// For people.
    pub name: String,
    /// In bytes.
    pub length: u64,
}

impl Attachment {
    /// One of which nothing is known but its id.
    pub(crate) fn unknown(id: &str) -> Self {
        Self { id: id.to_owned(), name: String::new(), length: 0 }
    }

    fn is_one(&self) -> bool {
        is_file_id(&self.id) && is_file_name(&self.name) && self.length <= FILE_LIMIT
    }
}

/// Whether a message may name these.
pub(crate) fn check(attachments: &[Attachment]) -> Result<(), FormError> {
    let distinct = |(at, one): (usize, &Attachment)| attachments[..at].iter().all(|other| other.id != one.id);
    let are = attachments.len() <= ATTACHMENTS
        && attachments.iter().all(Attachment::is_one)
        && attachments.iter().enumerate().all(distinct);
    if are { Ok(()) } else { Err(FormError::Attachment) }
}

fn is_file_id(text: &str) -> bool {
    text.len() == ID_DIGITS && text.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'))
}

/// A name that is safe to show and to write into a folder: no path, nothing that moves a terminal's cursor or turns the
/// direction of text.
fn is_file_name(name: &str) -> bool {
    let is_unsafe = |character: char| {
        matches!(character, '/' | '\\')
            || character.is_control()
            || matches!(character, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200e}' | '\u{200f}' | '\u{61c}')
    };
    !name.is_empty() && name.len() <= NAME_LIMIT && name != "." && name != ".." && !name.chars().any(is_unsafe)
}

/// The ids that the operator names: `ID,ID,…`, each once.
pub(crate) fn parse_ids(text: &str) -> Result<Vec<&str>, MessagingError> {
    let mut ids: Vec<&str> = Vec::new();
    for id in text.split(',').filter(|_| !text.is_empty()) {
        if !is_file_id(id) || ids.len() == ATTACHMENTS {
            return Err(MessagingError::BadAttachment);
        }
        if !ids.contains(&id) {
            ids.push(id);
        }
    }
    Ok(ids)
}

/// Has `files` let the peer fetch each of them, and tell its name and length.
pub(crate) async fn shared(context: &Context, peer: NodeId, ids: &[&str]) -> Result<Vec<Attachment>, ModuleError> {
    let mut attachments = Vec::with_capacity(ids.len());
    for id in ids {
        let request = PeerRequest::post(format!("/attach/{peer}/{id}"), "", openred_module::Body::empty());
        let response = context.call_module(FILES, request).await?;
        match response.status {
            status if status.is_success() => {}
            Status::NotFound => return Err(MessagingError::NoFile.into()),
            _ => return Err(MessagingError::FilesRefused.into()),
        }
        let answer = response.body.collect(ANSWER_LIMIT).await?;
        let one = serde_json::from_slice::<Attachment>(&answer).ok().filter(|one| one.is_one() && one.id == *id);
        attachments.push(one.ok_or(MessagingError::FilesRefused)?);
    }
    Ok(attachments)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn named(name: &str) -> Attachment {
        Attachment { id: "ab".repeat(32), name: name.to_owned(), length: 1 }
    }

    #[test]
    fn what_a_message_names_is_held_to_its_rules() {
        assert_eq!(check(&[named("Ünïcode 文件 🙂.tar.gz")]), Ok(()));
        let long = "x".repeat(NAME_LIMIT + 1);
        for name in
            ["", ".", "..", "a/b", "a\\b", "a\nb", "\u{1b}[2J", "cod\u{202e}exe.txt", "\u{61c}a", "a\u{2028}b", &long]
        {
            assert_eq!(check(&[named(name)]), Err(FormError::Attachment), "{name:?}");
        }
        for id in [String::new(), "ab".repeat(31), "AB".repeat(32), "g".repeat(64), "ab".repeat(33)] {
            assert_eq!(check(&[Attachment { id, ..named("a") }]), Err(FormError::Attachment));
        }
        assert!(check(&[Attachment { length: FILE_LIMIT + 1, ..named("a") }]).is_err());
        assert!(check(&[named("a"), named("b")]).is_err(), "one file twice");
        let many = |count: usize| -> Vec<_> {
            (0..count).map(|number| Attachment { id: format!("{number:064x}"), ..named("a") }).collect()
        };
        assert_eq!((check(&many(ATTACHMENTS)).is_ok(), check(&many(ATTACHMENTS + 1)).is_ok()), (true, false));
    }

    #[test]
    fn the_operators_ids_are_read_each_once() {
        let (one, other) = ("ab".repeat(32), "cd".repeat(32));
        assert!(parse_ids("").unwrap().is_empty());
        assert_eq!(parse_ids(&format!("{one},{other},{one}")).unwrap(), [one.as_str(), other.as_str()]);
        for bad in [",", "ab", &format!("{one},"), &format!("{one};{other}")] {
            assert_eq!(parse_ids(bad), Err(MessagingError::BadAttachment), "{bad}");
        }
        let many: Vec<String> = (0..=ATTACHMENTS).map(|number| format!("{number:064x}")).collect();
        assert!(parse_ids(&many.join(",")).is_err());
    }
}
