//! Links to files as values: the text that is handed on, the secret in it, and what is kept of it.
//!
//! Whoever holds the text may fetch the file over a session of a linked node, so the secret is drawn anew for each link and never
//! stored: the sharing node keeps its hash. In: text from the operator, the secret from a peer. Out: the same, checked. No I/O.

use std::fmt;
use std::str::FromStr;

use openred_module::{NodeId, Status};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::tree::{FileId, HASH};

/// How a link begins.
const SCHEME: &str = "openred-file:";
/// Bytes of a link's name.
const NAME: usize = 8;
/// Bytes of a ticket.
pub(crate) const TICKET: usize = 16;
/// What the name is derived for: its own domain, so that it tells nothing of what is compared.
const NAME_CONTEXT: &str = "OpenRed files 2026: name of a link";
/// What the stored hash is derived for.
const PROOF_CONTEXT: &str = "OpenRed files 2026: proof of a link's secret";

/// What is wrong with a link, or with a call about one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum LinkError {
    /// Peer: it takes the link no more, or never did. It does not say why.
    #[error("the peer does not take this link: it is wrong, has expired, is used up or was revoked")]
    Refused,
    /// Peer: this node has tried too many.
    #[error("this node has tried too many links there that were none; try again in a minute")]
    RefusedForNow,
    /// Misuse, by a peer: as above, as that peer is told.
    #[error("too many links that are none; try again in a minute")]
    TooManyTries,
    /// Misuse.
    #[error("not a link to a file: openred-file:NODE/FILE/SECRET, as `openred share --link` printed it")]
    BadText,
    /// Misuse.
    #[error("a link is for 1 to {FETCHES} fetches and 1 s to {SECONDS} s", FETCHES = crate::door::FETCHES, SECONDS = crate::door::SECONDS)]
    BadOrder,
    /// Misuse.
    #[error("no such link")]
    None,
}

impl LinkError {
    pub(crate) fn code(self) -> &'static str {
        match self {
            Self::Refused => "link-refused",
            Self::RefusedForNow | Self::TooManyTries => "too-many-tries",
            Self::BadText => "bad-link",
            Self::BadOrder => "bad-link-order",
            Self::None => "no-such-link",
        }
    }

    pub(crate) fn status(self) -> Status {
        match self {
            Self::Refused | Self::None => Status::NotFound,
            Self::RefusedForNow | Self::TooManyTries => Status::TooMany,
            Self::BadText | Self::BadOrder => Status::BadRequest,
        }
    }
}

/// Reads hexadecimal digits in their one spelling, lower case.
pub(crate) fn read_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    let is_plain = !text.bytes().any(|byte| byte.is_ascii_uppercase());
    (is_plain && hex::decode_to_slice(text, &mut bytes).is_ok()).then_some(bytes)
}

/// What opens a link.
pub(crate) struct Secret(Zeroizing<[u8; HASH]>);

impl Secret {
    /// Out of random bytes.
    pub(crate) fn new(halves: [[u8; 16]; 2]) -> Self {
        let mut bytes = Zeroizing::new([0; HASH]);
        bytes[..16].copy_from_slice(&halves[0]);
        bytes[16..].copy_from_slice(&halves[1]);
        Self(bytes)
    }

    pub(crate) fn read(text: &str) -> Option<Self> {
        read_hex(text).map(|bytes| Self(Zeroizing::new(bytes)))
    }

    pub(crate) fn text(&self) -> Zeroizing<String> {
        Zeroizing::new(hex::encode(*self.0))
    }

    /// The link's name. Of a secret that somebody guesses it tells whether there may be such a row, which without the secret nobody meets.
    pub(crate) fn name(&self) -> LinkName {
        let hash = blake3::derive_key(NAME_CONTEXT, self.0.as_slice());
        LinkName(*hash.first_chunk().expect("a hash is longer than a name"))
    }

    /// What is stored to know it again: bound to the file, so that no row serves for another.
    pub(crate) fn proof(&self, id: &FileId) -> Proof {
        let mut hasher = blake3::Hasher::new_derive_key(PROOF_CONTEXT);
        Proof(hasher.update(self.0.as_slice()).update(id.as_bytes()).finalize())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<secret>")
    }
}

/// Hash of a secret. Compared in constant time, which is how `blake3::Hash` compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Proof(blake3::Hash);

impl Proof {
    pub(crate) fn text(&self) -> String {
        self.0.to_hex().to_string()
    }

    /// What no secret has: compared where there is no link, so that the answer takes as long.
    pub(crate) fn none() -> Self {
        Self(blake3::Hash::from_bytes([0; HASH]))
    }

    pub(crate) fn read(text: &str) -> Option<Self> {
        read_hex(text).map(|bytes| Self(blake3::Hash::from_bytes(bytes)))
    }
}

/// A link's name for the operator: it opens nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LinkName([u8; NAME]);

impl LinkName {
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for LinkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl TryFrom<String> for LinkName {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        read_hex(&text).map(Self).ok_or("not the name of a link: 16 hexadecimal digits in lower case")
    }
}

impl From<LinkName> for String {
    fn from(name: LinkName) -> Self {
        name.to_string()
    }
}

/// All that is handed on.
#[derive(Debug)]
pub(crate) struct FileLink {
    pub(crate) node: NodeId,
    pub(crate) id: FileId,
    pub(crate) secret: Secret,
}

impl FileLink {
    /// As it is handed on.
    pub(crate) fn text(&self) -> String {
        format!("{SCHEME}{}/{}/{}", self.node, self.id, *self.secret.text())
    }
}

impl FromStr for FileLink {
    type Err = LinkError;

    /// One spelling only.
    fn from_str(text: &str) -> Result<Self, LinkError> {
        let mut parts = text.strip_prefix(SCHEME).ok_or(LinkError::BadText)?.split('/');
        let (Some(node), Some(id), Some(secret), None) = (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(LinkError::BadText);
        };
        let node: NodeId = node.parse().map_err(|_| LinkError::BadText)?;
        let id = id.parse().map_err(|_| LinkError::BadText)?;
        Ok(Self { node, id, secret: Secret::read(secret).ok_or(LinkError::BadText)? })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use proptest::prelude::*;

    fn link(seed: u8) -> FileLink {
        let node = NodeId::from_bytes([seed; 32]);
        let id = FileId::from_bytes([seed.wrapping_add(1); 32]);
        FileLink { node, id, secret: Secret::new([[seed.wrapping_add(2); 16], [seed; 16]]) }
    }

    #[test]
    fn links_that_are_none_are_refused_and_no_secret_is_shown() {
        let good = link(0xab);
        let text = good.text();
        let read: FileLink = text.parse().unwrap();
        assert_eq!((read.node, read.id, read.text()), (good.node, good.id, text.clone()));
        assert!(!format!("{read:?}").contains(good.secret.text().as_str()));
        let upper = text.replace(good.secret.text().as_str(), &good.secret.text().to_uppercase());
        let bad = [
            String::new(),
            SCHEME.to_owned(),
            text.trim_start_matches(SCHEME).to_owned(),
            format!("{text}/"),
            format!("{text}0"),
            format!(" {text}"),
            format!("{text}\n"),
            text[..text.len() - 1].to_owned(),
            text.replace("did:key:", "did:web:"),
            upper,
        ];
        for bad in bad {
            assert_eq!(bad.parse::<FileLink>().err(), Some(LinkError::BadText), "{bad}");
        }
    }

    #[test]
    fn what_is_kept_of_a_secret_is_bound_to_it_and_to_the_file() {
        let (one, other) = (link(1), link(2));
        assert_eq!(one.secret.proof(&one.id), Secret::read(&one.secret.text()).unwrap().proof(&one.id));
        assert_ne!(one.secret.proof(&one.id), one.secret.proof(&other.id));
        assert_ne!(one.secret.proof(&one.id), other.secret.proof(&one.id));
        assert_ne!(one.secret.name(), other.secret.name());
        let proof = one.secret.proof(&one.id);
        assert_eq!(Proof::read(&proof.text()), Some(proof));
        assert!(!proof.text().starts_with(&one.secret.name().to_string()));
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_a_panic_and_in_one_spelling(text in "(openred-file:)?[-a-zA-Z0-9:/]{0,220}") {
            if let Ok(link) = text.parse::<FileLink>() {
                prop_assert_eq!(link.text(), text);
            }
        }

        #[test]
        fn a_changed_link_is_another_or_none(seed: u8, at in 0_usize..198, to in "[0-9a-f/]") {
            let good = link(seed).text();
            let mut text = good.clone();
            let at = at.min(text.len() - 1);
            text.replace_range(at..=at, &to);
            prop_assume!(text != good);
            if let Ok(link) = text.parse::<FileLink>() {
                prop_assert_eq!(link.text(), text);
            }
        }
    }
}
