//! The form of a message, the same on the wire and at rest: a length, a small JSON head, the bytes.
//!
//! `u32 big-endian: length of the head || head (JSON, versioned) || content`. The head of another version is refused, fields
//! that are unknown in this one are ignored: a later version may add some. What a message must not go without, such as the files
//! that it names, is therefore delivered by a route that only versions have which know of it. At rest these files are a row of
//! their own, so that an older version still reads the message.

use std::borrow::Cow;

use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use crate::attachment::{self, Attachment};

/// Longest content of a message, in bytes. Larger things are files.
pub const TEXT_LIMIT: usize = 256 * 1024;
/// Media type of an encoded message.
pub const MESSAGE_CONTENT_TYPE: &str = "application/vnd.openred.message";
/// Longest head that names files, in bytes: eight of the longest names, escaped, with their ids take 5,200.
const LONG_HEAD_LIMIT: usize = 8 * 1024;
/// Longest encoded message that names no files, as its route lets it pass: in a head of 1 KiB an id, two times and a media type
/// fit several times over.
#[cfg(test)]
pub(crate) const PLAIN_LIMIT: usize = 4 + 1024 + TEXT_LIMIT;
/// Longest encoded message.
pub(crate) const ENVELOPE_LIMIT: usize = 4 + LONG_HEAD_LIMIT + TEXT_LIMIT;
/// Longest media type (RFC 6838 §4.2 allows 127 a part).
const CONTENT_TYPE_LIMIT: usize = 255;
/// Version of the head.
pub(crate) const VERSION: u32 = 1;

/// Made by the sender once, kept through every retry.
pub(crate) type MessageId = [u8; 16];

/// Why bytes are no message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FormError {
    #[error("cut short")]
    Short,
    #[error("longer than allowed")]
    Long,
    #[error("its head cannot be read")]
    Head,
    #[error("its version is not {VERSION}")]
    Version,
    #[error("its content type is not a media type")]
    ContentType,
    #[error("what it names of files is not allowed")]
    Attachment,
}

/// A message with its head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Envelope {
    pub(crate) id: MessageId,
    /// By the sender's clock: shown, never relied on.
    pub(crate) sent_at: u64,
    pub(crate) content_type: String,
    pub(crate) content: Bytes,
    /// Files that the sender shares.
    pub(crate) attachments: Vec<Attachment>,
}

#[derive(Serialize, Deserialize)]
struct Head<'a> {
    v: u32,
    id: String,
    sent_at: u64,
    content_type: String,
    #[serde(default, skip_serializing_if = "<[_]>::is_empty")]
    attachments: Cow<'a, [Attachment]>,
}

impl Envelope {
    /// As it goes to the peer.
    pub(crate) fn encode(&self) -> Bytes {
        self.encode_with(&self.attachments)
    }

    /// As it rests: without what it names.
    pub(crate) fn encode_at_rest(&self) -> Bytes {
        self.encode_with(&[])
    }

    fn encode_with(&self, attachments: &[Attachment]) -> Bytes {
        let head = Head {
            v: VERSION,
            id: hex::encode(self.id),
            sent_at: self.sent_at,
            content_type: self.content_type.clone(),
            attachments: attachments.into(),
        };
        let head = serde_json::to_vec(&head).expect("strings and numbers always serialise");
        let mut bytes = BytesMut::with_capacity(4 + head.len() + self.content.len());
        bytes.put_u32(u32::try_from(head.len()).expect("a head is short"));
        bytes.put_slice(&head);
        bytes.put_slice(&self.content);
        bytes.freeze()
    }

    pub(crate) fn decode(bytes: &Bytes) -> Result<Self, FormError> {
        let (length, rest) = bytes.split_first_chunk::<4>().ok_or(FormError::Short)?;
        let length = u32::from_be_bytes(*length) as usize;
        if length > LONG_HEAD_LIMIT {
            return Err(FormError::Long);
        }
        let (head, content) = rest.split_at_checked(length).ok_or(FormError::Short)?;
        if content.len() > TEXT_LIMIT {
            return Err(FormError::Long);
        }
        let head: Head<'_> = serde_json::from_slice(head).map_err(|_| FormError::Head)?;
        if head.v != VERSION {
            return Err(FormError::Version);
        }
        if !is_content_type(&head.content_type) {
            return Err(FormError::ContentType);
        }
        attachment::check(&head.attachments)?;
        let mut id = MessageId::default();
        hex::decode_to_slice(&head.id, &mut id).map_err(|_| FormError::Head)?;
        let (attachments, content) = (head.attachments.into_owned(), bytes.slice(4 + length..));
        Ok(Self { id, sent_at: head.sent_at, content_type: head.content_type, content, attachments })
    }
}

/// Printable ASCII with a slash: enough to be shown safely. What it means is the reader's affair.
pub(crate) fn is_content_type(text: &str) -> bool {
    text.len() <= CONTENT_TYPE_LIMIT && text.contains('/') && text.bytes().all(|byte| (0x20..0x7f).contains(&byte))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use proptest::prelude::*;

    fn any_envelope() -> impl Strategy<Value = Envelope> {
        let content = proptest::collection::vec(any::<u8>(), 0..2000);
        let file = (any::<u128>(), "[^/\\\\\\p{C}]{1,60}", 0..=1_u64 << 40)
            .prop_map(|(id, name, length)| Attachment { id: format!("{id:064x}"), name, length })
            .prop_filter("some names are none", |one| attachment::check(std::slice::from_ref(one)).is_ok());
        let files = proptest::collection::vec(file, 0..=attachment::ATTACHMENTS);
        (any::<[u8; 16]>(), any::<u64>(), "[a-z]{1,20}/[ -~]{1,60}", content, files)
            .prop_map(|(id, sent_at, content_type, content, attachments)| Envelope {
                id,
                sent_at,
                content_type,
                content: content.into(),
                attachments,
            })
            .prop_filter("ids are distinct", |envelope| attachment::check(&envelope.attachments).is_ok())
    }

    proptest! {
        #[test]
        fn what_is_encoded_decodes_to_itself(envelope in any_envelope()) {
            prop_assert_eq!(Envelope::decode(&envelope.encode()).unwrap(), envelope.clone());
            let at_rest = Envelope::decode(&envelope.encode_at_rest()).unwrap();
            prop_assert_eq!(at_rest, Envelope { attachments: Vec::new(), ..envelope });
        }

        #[test]
        fn garbage_is_refused_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(Envelope::decode(&bytes.into()).is_err());
        }

        #[test]
        fn a_head_cut_anywhere_is_refused(envelope in any_envelope(), cut in 0.0..1.0_f64) {
            let bytes = envelope.encode();
            let head = bytes.len() - envelope.content.len();
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss, reason = "a position")]
            let at = (head as f64 * cut) as usize;
            prop_assert!(Envelope::decode(&bytes.slice(..at)).is_err());
        }
    }

    #[test]
    fn each_rule_of_the_form_is_kept() {
        let content_type = "text/plain".to_owned();
        let good = Envelope { id: [7; 16], sent_at: 1, content_type, content: "hi".into(), attachments: Vec::new() };
        assert_eq!(Envelope { content: vec![0; TEXT_LIMIT].into(), ..good.clone() }.encode().len(), {
            good.encode().len() - 2 + TEXT_LIMIT
        });
        let long = Envelope { content: vec![0; TEXT_LIMIT + 1].into(), ..good.clone() };
        assert_eq!(Envelope::decode(&long.encode()), Err(FormError::Long));
        for content_type in ["", "text", "text/plain\n", "text/\u{202e}"] {
            let bad = Envelope { content_type: content_type.into(), ..good.clone() };
            assert_eq!(Envelope::decode(&bad.encode()), Err(FormError::ContentType), "{content_type:?}");
        }
        let names = |count: usize, name: &str| -> Envelope {
            let one =
                |number: usize| Attachment { id: format!("{number:064x}"), name: name.to_owned(), length: 1 << 40 };
            Envelope { attachments: (0..count).map(one).collect(), ..good.clone() }
        };
        let longest = names(attachment::ATTACHMENTS, &"\"".repeat(255));
        assert_eq!(Envelope::decode(&longest.encode()).as_ref(), Ok(&longest), "the longest names fit");
        for bad in [names(attachment::ATTACHMENTS + 1, "a"), names(1, "../a"), names(1, "")] {
            assert_eq!(Envelope::decode(&bad.encode()), Err(FormError::Attachment));
        }
        let framed = |head: &str| {
            let mut bytes = BytesMut::new();
            bytes.put_u32(u32::try_from(head.len()).unwrap());
            bytes.put_slice(head.as_bytes());
            Envelope::decode(&bytes.freeze())
        };
        let id = "00".repeat(16);
        assert!(framed(&format!(r#"{{"v":1,"id":"{id}","sent_at":0,"content_type":"a/b","later":true}}"#)).is_ok());
        assert_eq!(
            framed(&format!(r#"{{"v":2,"id":"{id}","sent_at":0,"content_type":"a/b"}}"#)),
            Err(FormError::Version)
        );
        assert_eq!(framed(r#"{"v":1,"id":"0","sent_at":0,"content_type":"a/b"}"#), Err(FormError::Head));
        assert_eq!(framed("{}"), Err(FormError::Head));
    }
}
