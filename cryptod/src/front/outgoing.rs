//! What HTTP/2 itself refuses after a good beginning: frames that are none, lists of headers that cannot be read or are too long, requests
//! without a path, more streams than there may be. The library answers those before any service sees a call, and gives no hook; but
//! it says each in a GOAWAY or RST_STREAM with an error code (RFC 9113, 7), or with the status 431, and these are counted on their way out.
//!
//! In: the bytes of a connection as they are written. Out: how many of those frames were among them. No byte is changed or kept but one
//! frame's head and its code.

use std::sync::Arc;

use super::refused::Refused;

/// A frame's head: length (24 bits), type, flags, stream.
const HEAD: usize = 9;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const GOAWAY: u8 = 7;
/// How a head of an answer begins whose status is 431, too long a list of headers, as the library packs it (RFC 7541: the name from the
/// static table, the value in Huffman's code, kept for the next time).
const TOO_LONG: [u8; 5] = [0x48, 0x83, 0x69, 0x90, 0xff];
/// The most of a payload that is looked at: a last stream and a code.
const PAYLOAD: usize = 8;
/// An end without a reason against the caller, and one that the caller asked for.
const NO_FAULT: [u32; 2] = [0, 8];

/// One connection's outgoing bytes.
#[derive(Debug)]
pub(super) struct Outgoing {
    refused: Arc<Refused>,
    /// The frame's head and the beginning of its payload.
    held: [u8; HEAD + PAYLOAD],
    have: usize,
    /// Bytes of the payload that are passed over.
    skip: usize,
    /// It is to be hung up.
    over: bool,
}

impl Outgoing {
    pub(super) const fn new(refused: Arc<Refused>) -> Self {
        Self { refused, held: [0; HEAD + PAYLOAD], have: 0, skip: 0, over: false }
    }

    /// The connection's next bytes. Whether it is to be hung up: the second 431 of a connection is packed in another way, so the first
    /// is the last.
    pub(super) fn is_over(&mut self, mut bytes: &[u8]) -> bool {
        loop {
            let skipped = self.skip.min(bytes.len());
            bytes = &bytes[skipped..];
            self.skip -= skipped;
            if bytes.is_empty() || self.over {
                return self.over;
            }
            let taken = (self.wanted() - self.have).min(bytes.len());
            self.held[self.have..self.have + taken].copy_from_slice(&bytes[..taken]);
            self.have += taken;
            bytes = &bytes[taken..];
            if self.have == self.wanted() {
                self.finish();
            }
        }
    }

    const fn length(&self) -> usize {
        u32::from_be_bytes([0, self.held[0], self.held[1], self.held[2]]) as usize
    }

    /// The bytes to be held: a head, and what is looked at behind it.
    fn wanted(&self) -> usize {
        if self.have < HEAD {
            return HEAD;
        }
        HEAD + self.length().min(match self.held[3] {
            HEADERS => TOO_LONG.len(),
            RST_STREAM => 4,
            GOAWAY => PAYLOAD,
            _ => 0,
        })
    }

    fn finish(&mut self) {
        let payload = &self.held[HEAD..self.have];
        let is_refusal = match (self.held[3], payload.last_chunk()) {
            (HEADERS, _) => payload == TOO_LONG,
            (RST_STREAM | GOAWAY, Some(code)) => !NO_FAULT.contains(&u32::from_be_bytes(*code)),
            _ => false,
        };
        if is_refusal {
            self.refused.add(1);
        }
        self.over |= is_refusal && self.held[3] == HEADERS;
        self.skip = self.length() - payload.len();
        self.have = 0;
    }
}

#[cfg(test)]
#[path = "outgoing_tests.rs"]
mod tests;
