//! Gathers what is written to a connection: it goes out one turn of the runtime after it was first flushed. The end of a gRPC answer
//! is made a turn after its beginning; written apart, the two would cost two calls and wake the caller twice.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes that are gathered before they are written out; h2 gathers as many itself.
const GATHERED: usize = 16 * 1024;

/// A stream whose writes are gathered.
pub(super) struct Gather<S> {
    stream: S,
    waiting: Vec<u8>,
    /// A flush has been put off; the next one writes.
    is_due: bool,
}

impl<S: AsyncWrite + Unpin> Gather<S> {
    pub(super) const fn new(stream: S) -> Self {
        Self { stream, waiting: Vec::new(), is_due: false }
    }

    fn poll_out(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.waiting.is_empty() {
            match ready!(Pin::new(&mut self.stream).poll_write(context, &self.waiting))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => drop(self.waiting.drain(..count)),
            }
        }
        self.is_due = false;
        Pin::new(&mut self.stream).poll_flush(context)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Gather<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gather<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.waiting.len() >= GATHERED {
            ready!(self.poll_out(context))?;
        }
        let taken = bytes.len().min(GATHERED);
        self.waiting.extend_from_slice(&bytes[..taken]);
        Poll::Ready(Ok(taken))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.waiting.is_empty() && !self.is_due {
            self.is_due = true;
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        self.poll_out(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_out(context))?;
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixStream;

    use super::*;

    #[tokio::test]
    async fn what_comes_a_turn_later_goes_out_with_the_rest() {
        let (near, mut far) = UnixStream::pair().unwrap();
        let mut near = Gather::new(near);
        near.write_all(b"head").await.unwrap();
        let mut context = Context::from_waker(std::task::Waker::noop());
        assert!(Pin::new(&mut near).poll_flush(&mut context).is_pending(), "put off");
        assert!(far.try_read(&mut [0; 8]).is_err(), "nothing is out yet");
        near.write_all(b" end").await.unwrap();
        assert!(Pin::new(&mut near).poll_flush(&mut context).is_ready());
        let mut read = [0; 16];
        let count = far.read(&mut read).await.unwrap();
        assert_eq!(&read[..count], b"head end");
    }

    #[tokio::test]
    async fn all_of_it_arrives_in_order_and_the_buffer_stays_small() {
        let (near, mut far) = UnixStream::pair().unwrap();
        let sent: Vec<u8> = (0..1_000_000_u32).map(|byte| byte as u8).collect();
        let content = sent.clone();
        let writer = tokio::spawn(async move {
            let mut near = Gather::new(near);
            for piece in content.chunks(7000) {
                near.write_all(piece).await.unwrap();
                assert!(near.waiting.len() < 2 * GATHERED);
            }
            near.shutdown().await.unwrap();
        });
        let mut read = Vec::new();
        far.read_to_end(&mut read).await.unwrap();
        writer.await.unwrap();
        assert!(read == sent);
    }
}
