//! One end of a socketpair, non-blocking: bytes in, whole frames out; replies in, bytes out. Both buffers are bounded.
//!
//! Read and written through a file, because the vault's filter has `read` and `write` and no socket calls. While replies
//! wait for a reader, no further frame is taken from this side; the other side is served all the same.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use openred_policy::poll::PollFlags;
use openred_proto::error::WireError;
use openred_proto::limits::FRAME_BYTES;
use openred_proto::vault::{Frame, Refusal, Reply, Role, encode_frame, split_frame};
use zeroize::{Zeroize, Zeroizing};

/// Bytes read at once: a few of the longest frames, dozens of the usual ones.
const READ_BYTES: usize = 4 * (FRAME_BYTES + 4);
/// Unsent bytes of replies above which no frame is taken.
const UNSENT_BYTES: usize = 8 * (FRAME_BYTES + 4);

/// The other side is gone, or sent what is no frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lost {
    /// End of file, or an error that amounts to it.
    Gone,
    /// A length over the cap: where the next frame starts is unknown.
    Misframed,
}

/// One caller.
pub(super) struct Channel {
    pub(super) role: Role,
    file: File,
    incoming: Zeroizing<Vec<u8>>,
    taken: usize,
    filled: usize,
    outgoing: Zeroizing<Vec<u8>>,
    sent: usize,
}

impl Channel {
    /// Takes a stream socket over and makes it non-blocking.
    pub(super) fn new(role: Role, socket: OwnedFd) -> std::io::Result<Self> {
        fcntl(&socket, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        Ok(Self {
            role,
            file: File::from(socket),
            incoming: Zeroizing::new(vec![0; READ_BYTES]),
            taken: 0,
            filled: 0,
            outgoing: Zeroizing::new(Vec::with_capacity(UNSENT_BYTES + FRAME_BYTES + 4)),
            sent: 0,
        })
    }

    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// What to wait for.
    pub(super) fn interest(&self) -> PollFlags {
        let unsent = if self.outgoing.is_empty() { PollFlags::empty() } else { PollFlags::POLLOUT };
        if self.has_room() { unsent | PollFlags::POLLIN } else { unsent }
    }

    fn has_room(&self) -> bool {
        self.outgoing.len() - self.sent < UNSENT_BYTES
    }

    /// Reads what is there, once.
    ///
    /// # Errors
    /// [`Lost::Gone`].
    pub(super) fn fill(&mut self) -> Result<(), Lost> {
        if self.taken > 0 {
            self.incoming.copy_within(self.taken..self.filled, 0);
            self.filled -= self.taken;
            self.taken = 0;
        }
        // A whole frame always fits, so a full buffer holds one that is still to be taken.
        if self.filled == self.incoming.len() {
            return Ok(());
        }
        match self.file.read(&mut self.incoming[self.filled..]) {
            Ok(0) => Err(Lost::Gone),
            Ok(count) => {
                self.filled += count;
                Ok(())
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(()),
            Err(_) => Err(Lost::Gone),
        }
    }

    /// Whether a whole frame waits, and may be taken.
    pub(super) fn has_frame(&self) -> bool {
        self.has_room()
            && !matches!(split_frame(&self.incoming[self.taken..self.filled]), Err(WireError::Incomplete { .. }))
    }

    /// The body of the next whole frame.
    ///
    /// # Errors
    /// [`Lost::Misframed`].
    pub(super) fn next_frame(&mut self) -> Result<Option<Zeroizing<Vec<u8>>>, Lost> {
        if !self.has_room() {
            return Ok(None);
        }
        match split_frame(&self.incoming[self.taken..self.filled]) {
            Ok((body, used)) => {
                let body = Zeroizing::new(body.to_vec());
                self.incoming[self.taken..self.taken + used].zeroize();
                self.taken += used;
                Ok(Some(body))
            }
            Err(WireError::Incomplete { .. }) => Ok(None),
            Err(_) => Err(Lost::Misframed),
        }
    }

    /// Puts a reply behind those that wait. One over the frame's cap is a defect, and said so to the caller.
    pub(super) fn queue(&mut self, reply: &Frame<Reply>) {
        let frame = encode_frame(reply).or_else(|_| {
            let body = Reply::Refused(Refusal::Bug);
            encode_frame(&Frame { id: reply.id, body })
        });
        let mut frame = frame.expect("a refusal is a few bytes");
        self.outgoing.append(&mut frame);
    }

    /// Writes what the other side takes.
    ///
    /// # Errors
    /// [`Lost::Gone`].
    pub(super) fn flush(&mut self) -> Result<(), Lost> {
        while self.sent < self.outgoing.len() {
            match self.file.write(&self.outgoing[self.sent..]) {
                Ok(0) => return Err(Lost::Gone),
                Ok(count) => self.sent += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Err(Lost::Gone),
            }
        }
        self.outgoing.as_mut_slice().zeroize();
        self.outgoing.clear();
        self.sent = 0;
        Ok(())
    }
}
