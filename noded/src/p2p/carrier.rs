//! Messages of a session as HTTP bodies, both ways: sealed as they are polled, opened as they arrive, never held whole.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream;
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::BodyExt as _;
use openred_module::{Body, BodyError};

use super::pool::InUse;
use crate::reports::{Reports, Seen};
use crate::session::SessionError;
use crate::session::chunks::{ChunkOpener, MessageSealer};
use crate::session::message::split_head;
use crate::session::state::{IncomingRequest, OutgoingResponse, ReleasedWithResponse};

/// A message on its way out. Pulled by the connection, so a slow reader slows the source down.
#[derive(Debug)]
pub(super) struct SealedBody {
    message: Option<MessageSealer>,
    body: Body,
    current: Bytes,
    /// What the head promised of the body and has not come yet.
    owed: Option<u64>,
    /// Bytes on the wire, when known.
    length: Option<u64>,
    /// The session stays in the pool until this has gone.
    #[expect(dead_code, reason = "held for its Drop")]
    using: Option<InUse>,
}

impl SealedBody {
    /// `length` is the body's length, if the head promises one.
    pub(super) fn new(message: MessageSealer, body: Body, length: Option<u64>) -> Self {
        let sealed = length.map(|length| message.sealed_length(length));
        Self { message: Some(message), body, current: Bytes::new(), owed: length, length: sealed, using: None }
    }

    /// The same, with its session held until it has gone.
    pub(super) fn using(self, using: InUse) -> Self {
        Self { using: Some(using), ..self }
    }

    /// A message without a body of its own (handshakes use the same connections).
    pub(super) fn plain(bytes: Bytes) -> Self {
        let length = Some(bytes.len() as u64);
        Self { message: None, body: Body::whole(bytes), current: Bytes::new(), owed: None, length, using: None }
    }

    fn poll_sealed(&mut self, task: &mut Context<'_>) -> Poll<Option<Result<Bytes, OutflowError>>> {
        let Some(message) = &mut self.message else {
            return Pin::new(&mut self.body).poll_next(task).map_err(OutflowError::from);
        };
        loop {
            while !self.current.is_empty() {
                if let Some(sealed) = message.push(&mut self.current)? {
                    return Poll::Ready(Some(Ok(sealed)));
                }
            }
            match ready!(Pin::new(&mut self.body).poll_next(task)) {
                Some(bytes) => {
                    self.current = bytes?;
                    if let Some(owed) = &mut self.owed {
                        let limit = *owed;
                        *owed = owed.checked_sub(self.current.len() as u64).ok_or(BodyError::TooLong { limit })?;
                    }
                }
                None if self.owed.is_some_and(|owed| owed > 0) => {
                    return Poll::Ready(Some(Err(BodyError::Truncated.into())));
                }
                None => {
                    let message = self.message.take().ok_or(SessionError::Bug)?;
                    self.body = Body::empty();
                    return Poll::Ready(Some(message.finish().map_err(OutflowError::from)));
                }
            }
        }
    }
}

impl HttpBody for SealedBody {
    type Data = Bytes;
    type Error = OutflowError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        task: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, OutflowError>>> {
        let polled = ready!(self.poll_sealed(task));
        if let (Some(Ok(bytes)), Some(length)) = (&polled, &mut self.length) {
            *length = length.saturating_sub(bytes.len() as u64);
        }
        Poll::Ready(polled.map(|bytes| bytes.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        self.message.is_none() && self.body.known_length() == Some(0)
    }

    fn size_hint(&self) -> SizeHint {
        self.length.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

/// Why an outgoing stream stopped before its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum OutflowError {
    /// Its source did.
    #[error(transparent)]
    Body(#[from] BodyError),
    /// Nothing more may be sealed.
    #[error(transparent)]
    Session(#[from] SessionError),
}

/// Why an incoming stream stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum InflowError {
    /// A chunk did not come in time.
    #[error("a chunk did not come in time")]
    Slow,
    /// The connection broke.
    #[error("the connection broke")]
    Broken,
    /// It does not open.
    #[error(transparent)]
    Session(#[from] SessionError),
}

impl From<InflowError> for BodyError {
    fn from(error: InflowError) -> Self {
        match error {
            InflowError::Slow => Self::TimedOut,
            InflowError::Session(SessionError::PeerTruncated) => Self::Truncated,
            InflowError::Broken | InflowError::Session(_) => Self::Failed,
        }
    }
}

/// What opens a stream: a request as it comes in, or the response to one of ours.
pub(super) trait Opens: Send + 'static {
    fn feed(&mut self, data: &mut Bytes) -> Result<Option<Bytes>, SessionError>;
    /// The last chunk, and what the stream's end yields.
    fn finish(self) -> Result<(Bytes, Option<OutgoingResponse>), SessionError>;
}

impl Opens for IncomingRequest {
    fn feed(&mut self, data: &mut Bytes) -> Result<Option<Bytes>, SessionError> {
        IncomingRequest::feed(self, data)
    }

    fn finish(self) -> Result<(Bytes, Option<OutgoingResponse>), SessionError> {
        IncomingRequest::finish(self)
    }
}

impl Opens for ChunkOpener {
    fn feed(&mut self, data: &mut Bytes) -> Result<Option<Bytes>, SessionError> {
        ChunkOpener::feed(self, data)
    }

    fn finish(self) -> Result<(Bytes, Option<OutgoingResponse>), SessionError> {
        ChunkOpener::finish(self).map(|last| (last, None))
    }
}

/// A stream on its way in: the carrier's frames, opened.
pub(super) struct Inflow<B, O> {
    frames: B,
    opener: Option<O>,
    current: Bytes,
    limit: Duration,
    /// Gives the connection and the number free when the stream has ended or is dropped.
    _held: Held,
}

/// What lives as long as a stream is read.
#[derive(Debug, Default)]
pub(super) struct Held {
    #[expect(dead_code, reason = "held for its Drop")]
    pub(super) number: Option<ReleasedWithResponse>,
    #[expect(dead_code, reason = "held for its Drop")]
    pub(super) using: Option<InUse>,
    pub(super) lease: Option<super::connections::Lease>,
    /// Who hears of what does not authenticate.
    pub(super) reports: Arc<Reports>,
}

/// The first chunk of a message, split.
pub(super) struct Opened<B, O> {
    pub(super) head: Bytes,
    pub(super) start: Bytes,
    pub(super) answer: Option<OutgoingResponse>,
    /// Absent when the first chunk was the last.
    pub(super) rest: Option<Inflow<B, O>>,
}

impl<B, O> Inflow<B, O>
where
    B: HttpBody<Data = Bytes> + Unpin + Send + 'static,
    O: Opens,
{
    /// `current` are bytes of the stream that were read already.
    pub(super) const fn new(frames: B, opener: O, current: Bytes, limit: Duration, held: Held) -> Self {
        Self { frames, opener: Some(opener), current, limit, _held: held }
    }

    /// Reads until the first chunk authenticates.
    pub(super) async fn open(mut self) -> Result<Opened<B, O>, InflowError>
    where
        O: TakesAnswer,
    {
        let (chunk, mut answer) = self.next().await?.ok_or(InflowError::Broken)?;
        if answer.is_none() {
            answer = self.opener.as_mut().and_then(O::take_answer);
        }
        let (head, start) = split_head(chunk).map_err(SessionError::from)?;
        let rest = if self.opener.is_some() { Some(self) } else { self.end() };
        Ok(Opened { head, start, answer, rest })
    }

    /// The stream has ended: the connection may serve the next request.
    fn end(mut self) -> Option<Self> {
        if let Some(lease) = self._held.lease.take() {
            lease.give_back();
        }
        None
    }

    /// The next chunk's plaintext; none after the last.
    async fn next(&mut self) -> Result<Option<(Bytes, Option<OutgoingResponse>)>, InflowError> {
        let limit = self.limit;
        let chunk = tokio::time::timeout(limit, self.next_chunk()).await.unwrap_or(Err(InflowError::Slow));
        // A message that the carrier brought whole and whose last chunk is none was changed or cut on its way, as one with a
        // chunk in its midst that does not authenticate; a connection that broke looks otherwise.
        if let Err(InflowError::Session(SessionError::PeerForged | SessionError::PeerTruncated)) = chunk {
            self._held.reports.note(Seen::SessionForged);
        }
        chunk
    }

    async fn next_chunk(&mut self) -> Result<Option<(Bytes, Option<OutgoingResponse>)>, InflowError> {
        let Some(opener) = &mut self.opener else { return Ok(None) };
        loop {
            while !self.current.is_empty() {
                if let Some(chunk) = opener.feed(&mut self.current)? {
                    return Ok(Some((chunk, None)));
                }
            }
            match self.frames.frame().await {
                Some(Ok(frame)) => self.current = frame.into_data().unwrap_or_default(),
                Some(Err(_)) => return Err(InflowError::Broken),
                None => break,
            }
        }
        let opener = self.opener.take().ok_or(InflowError::Broken)?;
        Ok(Some(opener.finish()?))
    }
}

/// Streams that yield the right to answer with their first chunk.
pub(super) trait TakesAnswer {
    fn take_answer(&mut self) -> Option<OutgoingResponse>;
}

impl TakesAnswer for IncomingRequest {
    fn take_answer(&mut self) -> Option<OutgoingResponse> {
        IncomingRequest::take_answer(self)
    }
}

impl TakesAnswer for ChunkOpener {
    fn take_answer(&mut self) -> Option<OutgoingResponse> {
        None
    }
}

impl<B, O> Opened<B, O>
where
    B: HttpBody<Data = Bytes> + Unpin + Send + 'static,
    O: Opens,
{
    /// The body: its beginning, and whatever is still to come.
    pub(super) fn into_body(self) -> Body {
        match self.rest {
            None => Body::whole(self.start),
            Some(rest) => Body::stream(stream(self.start, rest)),
        }
    }
}

fn stream<B, O>(start: Bytes, rest: Inflow<B, O>) -> impl Stream<Item = Result<Bytes, BodyError>> + Send + 'static
where
    B: HttpBody<Data = Bytes> + Unpin + Send + 'static,
    O: Opens,
{
    let start = (!start.is_empty()).then_some(start);
    futures_util::stream::unfold((start, Some(rest)), |(start, rest)| async {
        if let Some(start) = start {
            return Some((Ok(start), (None, rest)));
        }
        let mut rest = rest?;
        match rest.next().await {
            Ok(Some((chunk, _))) if chunk.is_empty() => {
                rest.end();
                None
            }
            Ok(Some((chunk, _))) => Some((Ok(chunk), (None, Some(rest)))),
            Ok(None) => {
                rest.end();
                None
            }
            Err(error) => Some((Err(error.into()), (None, None))),
        }
    })
}
