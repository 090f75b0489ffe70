//! One end of a socketpair, non-blocking: bytes in, requests out, the cheap ones apart from the dear; replies in, bytes out.
//! Queues and buffers are bounded.
//!
//! Read and written through a file, because the vault's filter has `read` and `write` and no socket calls. While replies
//! wait for a reader, no further request is taken from this side; the other side is served all the same. Of the operator's everything
//! counts as cheap: he asks for one thing at a time.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use openred_policy::poll::PollFlags;
use openred_proto::error::WireError;
use openred_proto::limits::FRAME_BYTES;
use openred_proto::vault::{Frame, Lane, Refusal, Reply, Request, Role, decode_frame, encode_frame, split_frame};
use zeroize::{Zeroize, Zeroizing};

/// Bytes read at once: a few of the longest frames, dozens of the usual ones.
const READ_BYTES: usize = 4 * (FRAME_BYTES + 4);
/// Unsent bytes of replies above which no frame is taken.
const UNSENT_BYTES: usize = 8 * (FRAME_BYTES + 4);

/// Requests that wait in one lane: above what the front asks at once (64 cheap, 32 dear), so that it never fills one.
const WAITING: usize = 64;

/// The other side is gone, or sent what is no frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lost {
    /// End of file, or an error that amounts to it.
    Gone,
    /// A length over the cap: where the next frame starts is unknown.
    Misframed,
    /// A frame that is no request.
    Malformed,
}

/// One caller.
pub(super) struct Channel {
    pub(super) role: Role,
    file: File,
    incoming: Zeroizing<Vec<u8>>,
    filled: usize,
    cheap: VecDeque<Frame<Request>>,
    dear: VecDeque<Frame<Request>>,
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
            filled: 0,
            cheap: VecDeque::with_capacity(WAITING),
            dear: VecDeque::with_capacity(WAITING),
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
        if self.has_room() && self.may_queue() { unsent | PollFlags::POLLIN } else { unsent }
    }

    /// Whether replies still go somewhere.
    fn has_room(&self) -> bool {
        self.outgoing.len() - self.sent < UNSENT_BYTES
    }

    fn may_queue(&self) -> bool {
        self.cheap.len() < WAITING && self.dear.len() < WAITING
    }

    /// Reads what is there and puts every whole request into its lane, until nothing is left or a lane is full.
    ///
    /// # Errors
    /// [`Lost`]; what was whole before it is in its lane.
    pub(super) fn take_in(&mut self) -> Result<(), Lost> {
        while self.has_room() && self.may_queue() {
            // A whole frame always fits, so there is room once those that are here were taken out.
            let room = self.incoming.len() - self.filled;
            let count = match self.file.read(&mut self.incoming[self.filled..]) {
                Ok(0) => return Err(Lost::Gone),
                Ok(count) => count,
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => return Ok(()),
                Err(_) => return Err(Lost::Gone),
            };
            self.filled += count;
            self.sort()?;
            // Less than there was room for: that was all.
            if count < room {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Puts the whole frames that are here into their lanes.
    fn sort(&mut self) -> Result<(), Lost> {
        let mut taken = 0;
        let sorted = loop {
            if !self.may_queue() {
                break Ok(());
            }
            match split_frame(&self.incoming[taken..self.filled]) {
                Ok((body, used)) => {
                    let Ok(frame) = decode_frame::<Request>(body) else { break Err(Lost::Malformed) };
                    taken += used;
                    match (self.role, frame.body.lane()) {
                        (Role::Node, Lane::Dear) => self.dear.push_back(frame),
                        _ => self.cheap.push_back(frame),
                    }
                }
                Err(WireError::Incomplete { .. }) => break Ok(()),
                Err(_) => break Err(Lost::Misframed),
            }
        };
        self.incoming.copy_within(taken..self.filled, 0);
        self.incoming[self.filled - taken..self.filled].zeroize();
        self.filled -= taken;
        sorted
    }

    /// Whether a request waits, and may be answered.
    pub(super) fn has_request(&self) -> bool {
        self.has_room() && !(self.cheap.is_empty() && self.dear.is_empty())
    }

    /// The next request of a lane. What was left in the buffer by a full lane takes its place.
    ///
    /// # Errors
    /// [`Lost`], of the frames that were left.
    pub(super) fn next_request(&mut self, lane: Lane) -> Result<Option<Frame<Request>>, Lost> {
        if !self.has_room() {
            return Ok(None);
        }
        let was_full = !self.may_queue();
        let queue = match lane {
            Lane::Cheap => &mut self.cheap,
            Lane::Dear => &mut self.dear,
        };
        let next = queue.pop_front();
        if was_full && next.is_some() {
            self.sort()?;
        }
        Ok(next)
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
