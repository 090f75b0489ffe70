//! A TCP stream whose writes may not stand still: a peer that stops reading, or takes a byte now and then, holds no memory and no
//! connection for long.

use std::error::Error;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep_until};

/// What a write must bring off in the time that one chunk may take: a chunk. It is what the other direction demands of the peer.
const LEAST: usize = openred_proto::limits::CHUNK_BYTES;

/// A write was ended.
#[derive(Debug, thiserror::Error)]
#[error("the other side stopped reading, or reads too slowly")]
pub(super) struct Stalled;

/// Whether this is what ended a connection.
pub(super) fn is_stall(error: &(dyn Error + 'static)) -> bool {
    let by_guard = |error: &(dyn Error + 'static)| {
        error.downcast_ref::<io::Error>().and_then(io::Error::get_ref).is_some_and(|inner| inner.is::<Stalled>())
    };
    causes(error).any(by_guard)
}

/// An error and what caused it, one after the other.
pub(super) fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    let mut next = Some(error);
    std::iter::from_fn(move || {
        let error = next?;
        next = error.source();
        Some(error)
    })
}

/// Ends with [`Stalled`] when what is written does not go on for `limit`, or in that time not by a chunk.
#[derive(Debug)]
pub(super) struct StallGuard {
    stream: TcpStream,
    limit: Duration,
    /// Armed while a write is pending; kept for the next time.
    timer: Option<Pin<Box<Sleep>>>,
    armed: bool,
    /// Bytes that went since it was armed.
    gone: usize,
}

impl StallGuard {
    pub(super) const fn new(stream: TcpStream, limit: Duration) -> Self {
        Self { stream, limit, timer: None, armed: false, gone: 0 }
    }

    /// `offered` bytes were to be written.
    fn watch(
        &mut self,
        task: &mut Context<'_>,
        offered: usize,
        written: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if let Poll::Ready(ended) = written {
            self.gone = self.gone.saturating_add(*ended.as_ref().unwrap_or(&0));
            // A byte now and then keeps nobody waiting for ever: the timer runs on.
            if self.gone >= LEAST || ended.as_ref().is_ok_and(|gone| *gone == offered) {
                self.armed = false;
            }
            return Poll::Ready(ended);
        }
        let at = Instant::now() + self.limit;
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(at)));
        if !self.armed {
            timer.as_mut().reset(at);
            (self.armed, self.gone) = (true, 0);
        }
        ready!(timer.as_mut().poll(task));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, Stalled)))
    }
}

impl AsyncRead for StallGuard {
    fn poll_read(mut self: Pin<&mut Self>, task: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(task, buffer)
    }
}

impl AsyncWrite for StallGuard {
    fn poll_write(mut self: Pin<&mut Self>, task: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(task, bytes);
        self.watch(task, bytes.len(), written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        task: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(task, parts);
        self.watch(task, parts.iter().map(|part| part.len()).sum(), written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(task)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(task)
    }
}
