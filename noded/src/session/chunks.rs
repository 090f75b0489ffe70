//! One stream as chunks: 64 KiB each, the last one shorter and flagged (STREAM). Truncation is an error.
//!
//! A chunk of full size is never the last, so that a reader knows from the length alone which flag to expect and can open
//! each chunk as soon as it is whole. A body that fills its last chunk is followed by an empty one.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Buf as _, Bytes, BytesMut};
use openred_proto::limits::{CHUNK_BYTES, SESSION_BYTES, TAG_BYTES};

use super::SessionError;
use super::keys::StreamCipher;

/// A full chunk as it travels.
const SEALED_BYTES: usize = CHUNK_BYTES + TAG_BYTES;
/// A reader that has this much of a chunk expects a full one and makes room for it at once; less grows as it comes.
const LARGE: usize = 4096;

/// The bytes that a session may still carry, both ways together.
#[derive(Debug, Default)]
pub(crate) struct Budget(AtomicU64);

impl Budget {
    fn spend(&self, bytes: usize) -> Result<(), SessionError> {
        let before = self.0.fetch_add(bytes as u64, Ordering::Relaxed);
        if before >= SESSION_BYTES { Err(SessionError::LimitReached) } else { Ok(()) }
    }

    /// Bytes carried so far.
    pub(crate) fn spent(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    #[cfg(test)]
    pub(crate) fn set(&self, spent: u64) {
        self.0.store(spent, Ordering::Relaxed);
    }
}

/// Seals one stream; consumed by its last chunk.
#[derive(Debug)]
pub(crate) struct ChunkSealer {
    cipher: StreamCipher,
    position: u32,
    budget: Arc<Budget>,
}

impl ChunkSealer {
    pub(super) const fn new(cipher: StreamCipher, budget: Arc<Budget>) -> Self {
        Self { cipher, position: 0, budget }
    }

    /// Seals a full chunk in place.
    pub(super) fn seal_full(&mut self, chunk: &mut BytesMut) -> Result<(), SessionError> {
        if chunk.len() != CHUNK_BYTES {
            return Err(SessionError::MisuseTooLong);
        }
        self.budget.spend(chunk.len())?;
        self.cipher.seal(self.position, false, chunk).map_err(|_| SessionError::Bug)?;
        // A position is used once: past the last one the stream ends, long after the session's limit of bytes.
        self.position = self.position.checked_add(1).ok_or(SessionError::LimitReached)?;
        Ok(())
    }

    /// Seals the last chunk in place: shorter than a full one, possibly empty.
    pub(super) fn seal_last(self, chunk: &mut BytesMut) -> Result<(), SessionError> {
        if chunk.len() >= CHUNK_BYTES {
            return Err(SessionError::MisuseTooLong);
        }
        self.budget.spend(chunk.len())?;
        self.cipher.seal(self.position, true, chunk).map_err(|_| SessionError::Bug)
    }
}

/// Opens one stream from bytes that come in pieces of any size; consumed by its last chunk.
#[derive(Debug)]
pub(crate) struct ChunkOpener {
    cipher: StreamCipher,
    position: u32,
    buffer: BytesMut,
    budget: Arc<Budget>,
}

impl ChunkOpener {
    pub(super) fn new(cipher: StreamCipher, budget: Arc<Budget>) -> Self {
        Self { cipher, position: 0, buffer: BytesMut::new(), budget }
    }

    /// Takes bytes from the front of `data`; gives a chunk's plaintext as soon as a full one authenticates. To be called
    /// until `data` is empty.
    pub(crate) fn feed(&mut self, data: &mut Bytes) -> Result<Option<Bytes>, SessionError> {
        let missing = SEALED_BYTES - self.buffer.len();
        let taken = missing.min(data.len());
        let expected = if self.buffer.len() + taken >= LARGE { missing } else { taken };
        self.buffer.reserve(expected);
        self.buffer.extend_from_slice(&data[..taken]);
        data.advance(taken);
        if self.buffer.len() < SEALED_BYTES {
            return Ok(None);
        }
        self.cipher.open(self.position, false, &mut self.buffer).map_err(|_| SessionError::PeerForged)?;
        // Only what authenticates uses up the session: anybody can send bytes under its tag.
        self.budget.spend(CHUNK_BYTES)?;
        self.position = self.position.checked_add(1).ok_or(SessionError::LimitReached)?;
        Ok(Some(std::mem::take(&mut self.buffer).freeze()))
    }

    /// The carrier says that nothing follows: what is buffered must be the last chunk.
    pub(crate) fn finish(mut self) -> Result<Bytes, SessionError> {
        self.finish_in_place()
    }

    /// As [`ChunkOpener::finish`], for an owner that is itself consumed by it.
    pub(super) fn finish_in_place(&mut self) -> Result<Bytes, SessionError> {
        if self.buffer.len() < TAG_BYTES {
            return Err(SessionError::PeerTruncated);
        }
        match self.cipher.open(self.position, true, &mut self.buffer) {
            Ok(()) => self.budget.spend(self.buffer.len()).map(|()| std::mem::take(&mut self.buffer).freeze()),
            // A forged last chunk and a cut one look the same: neither authenticates as the last.
            Err(_) => Err(SessionError::PeerTruncated),
        }
    }
}

/// A message on its way out: bytes in clear, then head and body gathered into chunks.
#[derive(Debug)]
pub(crate) struct MessageSealer {
    sealer: ChunkSealer,
    pending: BytesMut,
    /// Bytes at the front of `pending` that travel in clear (a request's header); zero after the first chunk.
    clear: usize,
}

impl MessageSealer {
    /// Begins with `header` in clear and `head` sealed; `body` is the body's length as far as known.
    pub(super) fn new(
        sealer: ChunkSealer,
        header: &[u8],
        head: &[u8],
        body: Option<u64>,
    ) -> Result<Self, SessionError> {
        let length = u16::try_from(head.len()).map_err(|_| SessionError::MisuseTooLong)?;
        let body = body.map_or(CHUNK_BYTES, |body| usize::try_from(body).unwrap_or(CHUNK_BYTES));
        let first = (2 + head.len()).saturating_add(body).min(CHUNK_BYTES);
        let mut pending = BytesMut::with_capacity(header.len() + first + TAG_BYTES);
        pending.extend_from_slice(header);
        pending.extend_from_slice(&length.to_be_bytes());
        pending.extend_from_slice(head);
        Ok(Self { sealer, pending, clear: header.len() })
    }

    /// How many bytes will travel for a body of `body` bytes; to be asked before the first push.
    pub(crate) fn sealed_length(&self, body: u64) -> u64 {
        let plain = (self.pending.len() - self.clear) as u64 + body;
        let chunks = plain / CHUNK_BYTES as u64 + 1;
        self.clear as u64 + plain + chunks * TAG_BYTES as u64
    }

    /// Takes bytes from the front of `data`; gives what is ready to travel. To be called until `data` is empty.
    pub(crate) fn push(&mut self, data: &mut Bytes) -> Result<Option<Bytes>, SessionError> {
        let missing = self.clear + CHUNK_BYTES - self.pending.len();
        let taken = missing.min(data.len());
        if self.pending.is_empty() && taken == missing {
            self.pending.reserve(SEALED_BYTES);
        }
        self.pending.extend_from_slice(&data[..taken]);
        data.advance(taken);
        if taken < missing {
            return Ok(None);
        }
        let mut chunk = self.pending.split_off(self.clear);
        self.sealer.seal_full(&mut chunk)?;
        Ok(Some(self.join(chunk)))
    }

    /// Ends the stream.
    pub(crate) fn finish(mut self) -> Result<Bytes, SessionError> {
        let mut chunk = self.pending.split_off(self.clear);
        let Self { sealer, pending, .. } = self;
        sealer.seal_last(&mut chunk)?;
        Ok(joined(pending, chunk))
    }

    fn join(&mut self, chunk: BytesMut) -> Bytes {
        self.clear = 0;
        joined(std::mem::take(&mut self.pending), chunk)
    }
}

/// Puts the clear bytes and the sealed chunk back together; they lie side by side, so nothing is copied.
fn joined(mut clear: BytesMut, chunk: BytesMut) -> Bytes {
    clear.unsplit(chunk);
    clear.freeze()
}
