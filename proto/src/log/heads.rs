//! The heads that a node hands to a peer inside a session (docs/protocol.md section 7): of each directory that it uses, the last one that it
//! has checked. Each proves itself; what a peer says of them otherwise is nothing.

use super::head::{HEAD_BYTES, Head};
use crate::error::{Result, WireError};
use crate::fields::{Reader, Writer};

const WHAT: &str = "list of heads";
/// Heads in one list: twice as many as directories can be configured.
pub const HEADS: usize = 8;
/// Longest list.
pub const HEADS_BYTES: usize = HEADS * (HEAD_BYTES + 4);

/// Signed heads, of one directory each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Heads {
    /// At most [`HEADS`] notes, unverified.
    pub notes: Vec<Vec<u8>>,
}

impl Heads {
    /// The bytes to send; what is over the bound is left out.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        self.notes.iter().take(HEADS).fold(Writer::new(), |writer, note| writer.item(1, note)).finish()
    }

    /// Reads a list. Whether a head is one is for [`Head::verify`] to say.
    ///
    /// # Errors
    /// Too long, malformed, or two of one directory.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        if bytes.len() > HEADS_BYTES {
            return Err(WireError::TooLong { what: WHAT, limit: HEADS_BYTES });
        }
        let mut reader = Reader::new(WHAT, bytes);
        let notes: Vec<Vec<u8>> = reader.items(1, HEADS, HEAD_BYTES)?.into_iter().map(<[u8]>::to_vec).collect();
        reader.finish()?;
        let mut named = Vec::with_capacity(notes.len());
        for note in &notes {
            let directory = Head::claimed(note)?;
            if named.contains(&directory) {
                return Err(WireError::Malformed { what: WHAT, why: "one directory twice" });
            }
            named.push(directory);
        }
        Ok(Self { notes })
    }
}
