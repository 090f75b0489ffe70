//! A request's or response's body: a stream of byte chunks that either ends or fails, never silently stops.
//!
//! Bodies are pulled by their reader; a writer that is faster waits (bounded channel), so a body of any length passes in
//! constant memory. A writer that goes away without saying that it is done is a truncation, and the reader sees an error.

use std::pin::Pin;
use std::task::{Context as TaskContext, Poll, ready};

use bytes::{Buf as _, Bytes, BytesMut};
use futures_util::stream::BoxStream;
use futures_util::{Stream, StreamExt};
use tokio::sync::mpsc;

use crate::context::Context;
use crate::range::{BlobRange, Ranges};

/// Chunks that wait between a writer and its reader. Four of at most 1 MiB keep both busy without hoarding.
const CHANNEL_DEPTH: usize = 4;

/// Why a body stopped before its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// The other side stopped in the middle.
    #[error("the body ended before it was complete")]
    Truncated,
    /// Longer than the route, the reader or its own declared length allows.
    #[error("the body is longer than {limit} bytes")]
    TooLong {
        /// The limit that was passed, in bytes.
        limit: u64,
    },
    /// The deadline of the call passed.
    #[error("the body did not arrive in time")]
    TimedOut,
    /// The carrier, the session or the local source failed.
    #[error("the body's source failed")]
    Failed,
}

/// A stream of byte chunks with a definite end.
///
/// ```
/// use std::sync::Arc;
///
/// use bytes::Bytes;
/// use futures_util::StreamExt as _;
/// use openred_module::{Body, ModuleError, Response, Status};
///
/// # struct Lines;
/// # impl Lines {
/// /// In: of any length, in bounded memory.
/// async fn count(self: Arc<Self>, mut body: Body) -> Result<String, ModuleError> {
///     let mut lines = 0;
///     while let Some(chunk) = body.next().await {
///         // A writer that vanished is an error here, not an end.
///         lines += chunk?.iter().filter(|byte| **byte == b'\n').count();
///     }
///     Ok(format!("{lines} lines"))
/// }
///
/// /// Out: written while it is read, only as fast as it is read.
/// async fn numbers(self: Arc<Self>) -> Result<Response, ModuleError> {
///     let body = Body::produced(|sender| async move {
///         for number in 0..1_000_000 {
///             if sender.send(Bytes::from(format!("{number}\n"))).await.is_err() {
///                 return;
///             }
///         }
///         sender.finish().await;
///     });
///     Ok(Response::new(Status::Ok, "text/plain", body))
/// }
/// # }
/// ```
pub struct Body(Inner);

enum Inner {
    Empty,
    Whole(Bytes),
    Stream(BoxStream<'static, Result<Bytes, BodyError>>),
    Ranges(Ranges),
}

impl Body {
    /// A body of no bytes.
    pub fn empty() -> Self {
        Self(Inner::Empty)
    }

    /// A body that is wholly in memory.
    pub fn whole(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        if bytes.is_empty() { Self::empty() } else { Self(Inner::Whole(bytes)) }
    }

    /// A body out of any stream. The stream's end is the body's end.
    pub fn stream(stream: impl Stream<Item = Result<Bytes, BodyError>> + Send + 'static) -> Self {
        Self(Inner::Stream(stream.boxed()))
    }

    /// A body out of ranges of the module's own blobs, one after the other, which its node reads: none of these bytes passes the module. The next range
    /// is asked for when there is room for it, at most two before the reader; so whoever wants to look again and again whether a reader may go on
    /// gives short ones (1 MiB, say), and ends the body with an error. Under a node without the feature `ranges` the module reads them.
    ///
    /// ```
    /// use std::sync::Arc;
    ///
    /// use openred_module::{BlobName, BlobRange, Body, Context, ModuleError, Response, Status};
    ///
    /// # struct Shelf;
    /// # impl Shelf {
    /// /// The first megabyte of what is kept as `book`.
    /// async fn read(self: Arc<Self>, context: Context) -> Result<Response, ModuleError> {
    ///     let name = BlobName::new("book").expect("is a name");
    ///     let length = context.blob_length(&name).await?.unwrap_or_default().min(1 << 20);
    ///     let part = futures_util::stream::iter([Ok(BlobRange { name, offset: 0, length })]);
    ///     Ok(Response::new(Status::Ok, "text/plain", Body::ranges(&context, part)).with_length(length))
    /// }
    /// # }
    /// ```
    pub fn ranges(
        context: &Context,
        ranges: impl Stream<Item = Result<BlobRange, BodyError>> + Send + 'static,
    ) -> Self {
        Self(Inner::Ranges(Ranges::new(context.host(), ranges)))
    }

    /// The ranges of a body that is made of them, for whoever hands them on as such.
    #[cfg(feature = "wire")]
    pub(crate) fn as_ranges(&mut self) -> Option<&mut Ranges> {
        match &mut self.0 {
            Inner::Ranges(ranges) => Some(ranges),
            _ => None,
        }
    }

    /// A body and the end that feeds it.
    pub fn channel() -> (BodySender, Self) {
        let (sender, receiver) = mpsc::channel(CHANNEL_DEPTH);
        let stream = futures_util::stream::unfold(Some(receiver), |receiver| async {
            let mut receiver = receiver?;
            match receiver.recv().await {
                Some(Item::Chunk(bytes)) => Some((Ok(bytes), Some(receiver))),
                Some(Item::End) => None,
                Some(Item::Abort(error)) => Some((Err(error), None)),
                None => Some((Err(BodyError::Truncated), None)),
            }
        });
        (BodySender(sender), Self::stream(stream))
    }

    /// A body that is written by `produce` while it is read: the work goes on only as far as the reader pulls, and a
    /// reader that goes away drops the work with the body. `produce` ends it with [`BodySender::finish`].
    pub fn produced<P, W>(produce: P) -> Self
    where
        P: FnOnce(BodySender) -> W,
        W: Future<Output = ()> + Send + 'static,
    {
        let (sender, mut body) = Self::channel();
        let mut work = Some(Box::pin(produce(sender)));
        Self::stream(futures_util::stream::poll_fn(move |task| {
            if let Some(running) = &mut work
                && running.as_mut().poll(task).is_ready()
            {
                work = None;
            }
            body.poll_next_unpin(task)
        }))
    }

    /// The length, where it is known without reading.
    pub fn known_length(&self) -> Option<u64> {
        match &self.0 {
            Inner::Empty => Some(0),
            Inner::Whole(bytes) => Some(bytes.len() as u64),
            Inner::Stream(_) | Inner::Ranges(_) => None,
        }
    }

    /// Takes out a body that is in memory and no longer than `most`; any other stays as it is.
    #[cfg(feature = "wire")]
    pub(crate) fn short(&mut self, most: usize) -> Option<Bytes> {
        match &mut self.0 {
            Inner::Empty => Some(Bytes::new()),
            Inner::Whole(bytes) if bytes.len() <= most => {
                let bytes = std::mem::take(bytes);
                self.0 = Inner::Empty;
                Some(bytes)
            }
            Inner::Whole(_) | Inner::Stream(_) | Inner::Ranges(_) => None,
        }
    }

    /// The same body, which fails with [`BodyError::TooLong`] once more than `limit` bytes have passed.
    pub fn limited(self, limit: u64) -> Self {
        if self.known_length().is_some_and(|length| length <= limit) {
            return self;
        }
        let mut passed = 0_u64;
        Self::stream(self.scan(false, move |over, item| {
            if *over {
                return std::future::ready(None);
            }
            let item = item.and_then(|bytes| {
                passed = passed.saturating_add(bytes.len() as u64);
                if passed > limit { Err(BodyError::TooLong { limit }) } else { Ok(bytes) }
            });
            *over = item.is_err();
            std::future::ready(Some(item))
        }))
    }

    /// The same body without its first `count` bytes; a shorter one is [`BodyError::Truncated`].
    pub fn after(mut self, count: u64) -> Self {
        if count == 0 {
            return self;
        }
        if let Inner::Whole(bytes) = &mut self.0
            && let Ok(count) = usize::try_from(count)
            && count <= bytes.len()
        {
            return Self::whole(bytes.split_off(count));
        }
        let mut left = count;
        let mut over = false;
        Self::stream(futures_util::stream::poll_fn(move |task| {
            loop {
                if over {
                    return Poll::Ready(None);
                }
                let Some(item) = ready!(self.poll_next_unpin(task)) else {
                    over = true;
                    return Poll::Ready((left > 0).then_some(Err(BodyError::Truncated)));
                };
                let mut bytes = item.inspect_err(|_| over = true)?;
                let skipped = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
                left -= skipped as u64;
                bytes.advance(skipped);
                if !bytes.is_empty() {
                    return Poll::Ready(Some(Ok(bytes)));
                }
            }
        }))
    }

    /// The whole body in memory, refused once it passes `limit` bytes.
    ///
    /// # Errors
    /// [`BodyError::TooLong`], or whatever stopped the body.
    pub async fn collect(self, limit: usize) -> Result<Bytes, BodyError> {
        let mut body = self.limited(limit as u64);
        if let Inner::Whole(bytes) = body.0 {
            return Ok(bytes);
        }
        let mut all = BytesMut::new();
        while let Some(chunk) = body.next().await {
            all.extend_from_slice(&chunk?);
        }
        Ok(all.freeze())
    }
}

impl Stream for Body {
    type Item = Result<Bytes, BodyError>;

    fn poll_next(mut self: Pin<&mut Self>, task: &mut TaskContext<'_>) -> Poll<Option<Self::Item>> {
        match &mut self.0 {
            Inner::Empty => Poll::Ready(None),
            Inner::Whole(bytes) => {
                let bytes = std::mem::take(bytes);
                self.0 = Inner::Empty;
                Poll::Ready(Some(Ok(bytes)))
            }
            Inner::Stream(stream) => stream.poll_next_unpin(task),
            Inner::Ranges(ranges) => ranges.poll_bytes(task),
        }
    }
}

impl std::fmt::Debug for Body {
    /// Never the bytes: a body may be anything that people wrote to each other.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.known_length() {
            Some(length) => write!(f, "Body({length} bytes)"),
            None => f.write_str("Body(stream)"),
        }
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        Self::whole(bytes)
    }
}

enum Item {
    Chunk(Bytes),
    End,
    Abort(BodyError),
}

/// The writing end of [`Body::channel`]. Dropped without [`BodySender::finish`], the reader sees a truncation.
#[derive(Debug)]
pub struct BodySender(mpsc::Sender<Item>);

impl std::fmt::Debug for Item {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Item")
    }
}

impl BodySender {
    /// Hands one chunk over, waiting while the reader is behind.
    ///
    /// # Errors
    /// [`BodyError::Failed`] when nobody reads any more.
    pub async fn send(&self, chunk: Bytes) -> Result<(), BodyError> {
        self.0.send(Item::Chunk(chunk)).await.map_err(|_| BodyError::Failed)
    }

    /// Ends the body.
    pub async fn finish(self) {
        // A reader that has gone needs no end.
        let _ = self.0.send(Item::End).await;
    }

    /// Fails the body.
    pub async fn abort(self, error: BodyError) {
        let _ = self.0.send(Item::Abort(error)).await;
    }

    /// Whether the reader has gone.
    pub fn is_closed(&self) -> bool {
        self.0.is_closed()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[tokio::test]
    async fn a_writer_that_vanishes_is_a_truncation() {
        let (sender, body) = Body::channel();
        sender.send(Bytes::from_static(b"half")).await.unwrap();
        drop(sender);
        assert_eq!(body.collect(100).await, Err(BodyError::Truncated));
    }

    #[tokio::test]
    async fn limits_hold_for_whole_and_streamed_bodies() {
        assert_eq!(Body::whole("12345").collect(4).await, Err(BodyError::TooLong { limit: 4 }));
        assert_eq!(Body::whole("1234").collect(4).await.unwrap(), "1234");
        let parts = || futures_util::stream::iter(["123", "45"].map(|part| Ok(Bytes::from_static(part.as_bytes()))));
        assert_eq!(Body::stream(parts()).collect(4).await, Err(BodyError::TooLong { limit: 4 }));
        assert_eq!(Body::stream(parts()).collect(5).await.unwrap(), "12345");
    }

    #[tokio::test]
    async fn a_body_goes_on_after_any_byte_and_a_shorter_one_is_an_error() {
        let parts = || Body::stream(futures_util::stream::iter(["123", "", "45"].map(|part| Ok(Bytes::from(part)))));
        for count in 0..=5 {
            for body in [parts(), Body::whole("12345")] {
                assert_eq!(body.after(count).collect(5).await.unwrap(), "12345"[count as usize..]);
            }
        }
        for body in [parts(), Body::whole("12345"), Body::whole("12345").after(5).after(0).after(1)] {
            assert_eq!(body.after(6).collect(5).await, Err(BodyError::Truncated));
        }
        let failing = Body::stream(futures_util::stream::iter([Ok(Bytes::from("1")), Err(BodyError::TimedOut)]));
        assert_eq!(failing.after(1).collect(5).await, Err(BodyError::TimedOut));
    }

    #[tokio::test]
    async fn a_produced_body_is_longer_than_its_channel() {
        let body = Body::produced(|sender| async move {
            for _ in 0..100 {
                sender.send(Bytes::from_static(b"0123456789")).await.unwrap();
            }
            sender.finish().await;
        });
        assert_eq!(body.collect(1000).await.unwrap().len(), 1000);
    }

    #[tokio::test]
    async fn an_aborted_body_gives_its_reason_and_ends() {
        let (sender, mut body) = Body::channel();
        sender.abort(BodyError::TimedOut).await;
        assert_eq!(body.next().await, Some(Err(BodyError::TimedOut)));
        assert_eq!(body.next().await, None);
    }
}
