//! A connection that ends when its peer does not read: what is written to it waits for so long and no longer. The kernel's own
//! limit (TCP_USER_TIMEOUT) ends peers that acknowledge nothing; one that acknowledges and reads a byte now and then would keep an
//! answer, and its place, for ever. So what it takes buys it time by its bytes, until it has taken all of what was to be written.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

use crate::limits::UNACKNOWLEDGED_TIME;

/// Bytes a second that a peer has to take which lets us wait: any line has more.
const SLOWEST: u32 = 4096;

/// Wraps a stream.
#[derive(Debug)]
pub(super) struct Unstalled<S> {
    stream: S,
    /// Runs while something that is written is not taken.
    waiting: Option<Pin<Box<Sleep>>>,
}

impl<S> Unstalled<S> {
    pub(super) fn new(stream: S) -> Self {
        Self { stream, waiting: None }
    }

    /// Whether something that was to be written is not taken yet.
    pub(super) fn is_waiting(&self) -> bool {
        self.waiting.is_some()
    }

    /// Passes an outcome on, or ends the wait for it. `part` says how many bytes were taken where not all were.
    fn judge<T>(
        &mut self,
        context: &mut Context<'_>,
        outcome: Poll<io::Result<T>>,
        part: impl FnOnce(&T) -> Option<usize>,
    ) -> Poll<io::Result<T>> {
        if let Poll::Ready(ended) = outcome {
            match (ended.as_ref().ok().and_then(part), &mut self.waiting) {
                (Some(taken), Some(waiting)) => {
                    let bought = Duration::from_secs(1) * u32::try_from(taken).unwrap_or(u32::MAX) / SLOWEST;
                    let until = (waiting.deadline() + bought).min(Instant::now() + UNACKNOWLEDGED_TIME);
                    waiting.as_mut().reset(until);
                }
                _ => self.waiting = None,
            }
            return Poll::Ready(ended);
        }
        let waiting = self.waiting.get_or_insert_with(|| Box::pin(sleep(UNACKNOWLEDGED_TIME)));
        ready!(waiting.as_mut().poll(context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Unstalled<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Unstalled<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.judge(context, outcome, |taken| Some(*taken).filter(|taken| *taken < bytes.len()))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write_vectored(context, pieces);
        let all = || pieces.iter().map(|piece| piece.len()).sum::<usize>();
        self.judge(context, outcome, |taken| Some(*taken).filter(|taken| *taken < all()))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.stream).poll_flush(context);
        self.judge(context, outcome, |()| None)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.stream).poll_shutdown(context);
        self.judge(context, outcome, |()| None)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_nobody_takes_ends_and_what_is_taken_goes_on() {
        let (near, mut far) = tokio::io::duplex(64);
        let mut near = Unstalled::new(near);
        let begun = tokio::time::Instant::now();
        let ended = near.write_all(&[7; 100]).await.unwrap_err();
        assert_eq!(ended.kind(), io::ErrorKind::TimedOut);
        assert!(begun.elapsed() >= UNACKNOWLEDGED_TIME);
        let mut taken = [0; 64];
        far.read_exact(&mut taken).await.unwrap();
        near.write_all(&[7; 64]).await.unwrap();
    }

    /// Takes so many bytes at a time, so long apart, until the other end is gone.
    async fn sip(mut far: tokio::io::DuplexStream, bytes: usize, apart: Duration) {
        let mut taken = vec![0; bytes];
        while far.read_exact(&mut taken).await.is_ok() {
            sleep(apart).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_takes_a_little_now_and_then_keeps_no_place() {
        let (near, far) = tokio::io::duplex(64);
        tokio::spawn(sip(far, 64, UNACKNOWLEDGED_TIME / 2));
        let ended = Unstalled::new(near).write_all(&[7; 4096]).await.unwrap_err();
        assert_eq!(ended.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_slow_and_goes_on_gets_everything() {
        let (near, far) = tokio::io::duplex(8192);
        tokio::spawn(sip(far, 8192, Duration::from_secs(1)));
        let begun = Instant::now();
        Unstalled::new(near).write_all(&vec![7; 1 << 20]).await.unwrap();
        assert!(begun.elapsed() > UNACKNOWLEDGED_TIME);
    }
}
