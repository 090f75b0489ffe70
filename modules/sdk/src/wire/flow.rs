//! The flow of one body: the reader's [`Inbox`] grants credit as it is read, the writer's [`Budget`] is what it may still send.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use bytes::{Bytes, BytesMut};
use futures_util::stream::BoxStream;
use futures_util::{Stream, StreamExt};
use openred_proto::module::End;
use tokio::sync::Semaphore;

use super::{CREDIT, CREDIT_MOST, PIECE_BYTES, RANGE_BYTES, RANGE_CREDIT};
use crate::body::{Body, BodyError};
use crate::range::BlobRange;

/// Pieces shorter than this are gathered, so that a writer of single bytes costs no more memory than it has credit for.
const SHORT: usize = 4096;

/// The other side broke the rules of the flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Broken {
    /// More than was granted.
    Overrun,
    /// A piece that says nothing.
    Empty,
    /// A piece after the end.
    AfterEnd,
    /// More credit than any reader can mean.
    CreditOverflow,
    /// A value that the contract does not have.
    Unknown,
}

/// Where an inbox says that it was read, or left.
pub(crate) trait Reading: Send + Sync {
    /// So many bytes were read: the writer may send as many more.
    fn read(&self, bytes: u32);
    /// The reader has gone before the end.
    fn left(&self);
    /// The bytes of a range that the writer has named; none where ranges do not come, or their blobs are no more.
    fn fetch(&self, range: BlobRange) -> Option<BoxStream<'static, Result<Bytes, BodyError>>> {
        let _ = range;
        None
    }
}

/// What waits for the reader.
enum Waiting {
    Bytes(Bytes),
    Range(BlobRange),
}

#[derive(Default)]
struct State {
    pieces: VecDeque<Waiting>,
    short: BytesMut,
    /// What the writer may still send.
    granted: usize,
    /// Read and not yet granted again.
    read: usize,
    /// For the reader.
    end: Option<Result<(), BodyError>>,
    /// The writer has ended it: nothing may follow.
    ended: bool,
    /// The end was handed out, or nobody reads any more.
    over: bool,
    task: Option<Waker>,
}

/// A body that comes in frames.
pub(crate) struct Inbox(Mutex<State>);

impl Inbox {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new(State { granted: CREDIT as usize, ..State::default() })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a piece of the other side. `first` may be empty without being an end.
    pub(crate) fn take(&self, bytes: Bytes, end: Option<Result<(), BodyError>>, first: bool) -> Result<(), Broken> {
        let mut state = self.state();
        if state.ended {
            return Err(Broken::AfterEnd);
        }
        if bytes.is_empty() && end.is_none() && !first {
            return Err(Broken::Empty);
        }
        state.granted = state.granted.checked_sub(bytes.len()).ok_or(Broken::Overrun)?;
        state.ended = end.is_some();
        // Ended on this side already: counted all the same, and thrown away.
        if state.end.is_none() {
            if !state.over && !bytes.is_empty() {
                state.keep(bytes);
            }
            state.end = end;
        }
        if let Some(task) = state.task.take() {
            task.wake();
        }
        Ok(())
    }

    /// The same for a range, behind which more may follow.
    pub(crate) fn take_range(&self, range: BlobRange) -> Result<(), Broken> {
        let mut state = self.state();
        if state.ended {
            return Err(Broken::AfterEnd);
        }
        state.granted = state.granted.checked_sub(RANGE_CREDIT as usize).ok_or(Broken::Overrun)?;
        if state.end.is_none() && !state.over {
            state.gather();
            state.pieces.push_back(Waiting::Range(range));
        }
        if let Some(task) = state.task.take() {
            task.wake();
        }
        Ok(())
    }

    /// Ends the body for its reader, and grants nothing any more; what the writer has on its way may still come.
    pub(crate) fn fail(&self, error: BodyError) {
        let mut state = self.state();
        if state.end.is_none() {
            state.end = Some(Err(error));
            if let Some(task) = state.task.take() {
                task.wake();
            }
        }
    }

    /// The reader's end.
    pub(crate) fn body(self: &Arc<Self>, reading: Arc<dyn Reading>) -> Body {
        Body::stream(Reader { inbox: Arc::clone(self), reading, range: None })
    }
}

impl State {
    fn keep(&mut self, bytes: Bytes) {
        if bytes.len() < SHORT {
            self.short.extend_from_slice(&bytes);
            if self.short.len() >= SHORT {
                self.gather();
            }
            return;
        }
        self.gather();
        self.pieces.push_back(Waiting::Bytes(bytes));
    }

    /// Short pieces become one, in front of what comes next.
    fn gather(&mut self) {
        if !self.short.is_empty() {
            let gathered = self.short.split().freeze();
            self.pieces.push_back(Waiting::Bytes(gathered));
        }
    }

    fn next(&mut self) -> Option<Waiting> {
        let short = |short: &mut BytesMut| Waiting::Bytes(short.split().freeze());
        self.pieces.pop_front().or_else(|| (!self.short.is_empty()).then(|| short(&mut self.short)))
    }

    /// What is to be granted now: in halves of the first credit, so that not every piece costs a frame back.
    fn owed(&mut self, bytes: usize) -> Option<u32> {
        self.read += bytes;
        if self.end.is_some() || self.read < CREDIT as usize / 2 {
            return None;
        }
        let owed = std::mem::take(&mut self.read);
        self.granted += owed;
        u32::try_from(owed).ok()
    }
}

struct Reader {
    inbox: Arc<Inbox>,
    reading: Arc<dyn Reading>,
    /// The range that is being read.
    range: Option<BoxStream<'static, Result<Bytes, BodyError>>>,
}

impl Reader {
    /// So many bytes were read, or a range that counts for as many.
    fn read(&self, state: &mut State, bytes: usize) {
        if let Some(owed) = state.owed(bytes) {
            // Under the lock: who ends the call closes the inbox first, and grants nothing afterwards.
            self.reading.read(owed);
        }
    }

    /// A range that cannot be read: nothing more of the body comes.
    fn give_up(&mut self, error: BodyError) -> Poll<Option<Result<Bytes, BodyError>>> {
        self.range = None;
        self.leave();
        Poll::Ready(Some(Err(error)))
    }

    fn leave(&self) {
        let left = {
            let mut state = self.inbox.state();
            state.pieces.clear();
            state.short = BytesMut::new();
            !std::mem::replace(&mut state.over, true) && state.end.is_none()
        };
        if left {
            self.reading.left();
        }
    }
}

impl Stream for Reader {
    type Item = Result<Bytes, BodyError>;

    fn poll_next(mut self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(range) = &mut self.range {
                match ready!(range.poll_next_unpin(task)) {
                    Some(Ok(bytes)) => return Poll::Ready(Some(Ok(bytes))),
                    Some(Err(error)) => return self.give_up(error),
                    None => self.range = None,
                }
                self.read(&mut self.inbox.state(), RANGE_CREDIT as usize);
            }
            let mut state = self.inbox.state();
            if state.over {
                return Poll::Ready(None);
            }
            let range = match state.next() {
                Some(Waiting::Bytes(bytes)) => {
                    self.read(&mut state, bytes.len());
                    return Poll::Ready(Some(Ok(bytes)));
                }
                Some(Waiting::Range(range)) => range,
                None => match state.end {
                    Some(end) => {
                        state.over = true;
                        return Poll::Ready(end.err().map(Err));
                    }
                    None => {
                        state.task = Some(task.waker().clone());
                        return Poll::Pending;
                    }
                },
            };
            drop(state);
            self.range = match self.reading.fetch(range) {
                Some(range) => Some(range),
                None => return self.give_up(BodyError::Failed),
            };
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.leave();
    }
}

/// What a writer may still send.
pub(crate) struct Budget(Semaphore);

impl Budget {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self(Semaphore::new(CREDIT as usize)))
    }

    /// Credit from the other side.
    pub(crate) fn add(&self, bytes: u32) -> Result<(), Broken> {
        let bytes = bytes as usize;
        if bytes == 0 || self.0.available_permits() + bytes > CREDIT_MOST {
            return Err(Broken::CreditOverflow);
        }
        if !self.0.is_closed() {
            self.0.add_permits(bytes);
        }
        Ok(())
    }

    /// Waits for credit and takes at most `most` of it; `None` once the call has ended.
    pub(crate) async fn take(&self, most: usize) -> Option<usize> {
        self.0.acquire().await.ok()?.forget();
        // There is one writer: what is there now is still there.
        let more = self.0.available_permits().min(most.saturating_sub(1));
        match u32::try_from(more).map(|more| self.0.try_acquire_many(more)) {
            Ok(Ok(permits)) => {
                permits.forget();
                Some(1 + more)
            }
            _ => Some(1),
        }
    }

    /// Waits for the credit that a range costs, and takes it. False once the call has ended.
    async fn take_range(&self) -> bool {
        self.0.acquire_many(RANGE_CREDIT).await.map(tokio::sync::SemaphorePermit::forget).is_ok()
    }

    pub(crate) fn close(&self) {
        self.0.close();
    }
}

/// How a body ended, on the wire: the ending and, for one that was too long, the limit.
pub(crate) fn ending(error: BodyError) -> (End, u64) {
    match error {
        BodyError::Truncated => (End::Truncated, 0),
        BodyError::TooLong { limit } => (End::TooLong, limit),
        BodyError::TimedOut => (End::TimedOut, 0),
        BodyError::Failed => (End::Failed, 0),
    }
}

/// The same back; `None` while more follows.
pub(crate) fn ended(end: i32, limit: u64) -> Result<Option<Result<(), BodyError>>, Broken> {
    Ok(match End::try_from(end).map_err(|_| Broken::Unknown)? {
        End::More => None,
        End::Done => Some(Ok(())),
        End::Truncated => Some(Err(BodyError::Truncated)),
        End::TooLong => Some(Err(BodyError::TooLong { limit })),
        End::TimedOut => Some(Err(BodyError::TimedOut)),
        End::Failed => Some(Err(BodyError::Failed)),
    })
}

/// One piece of a body on its way out, and whether more follows.
pub(crate) struct Piece {
    pub(crate) bytes: Bytes,
    /// Instead of bytes.
    pub(crate) range: Option<BlobRange>,
    pub(crate) end: End,
    pub(crate) limit: u64,
}

impl Piece {
    /// Of a body that comes behind its head.
    pub(crate) fn none() -> Self {
        Self::last(End::More, 0)
    }

    fn last(end: End, limit: u64) -> Self {
        Self { bytes: Bytes::new(), range: None, end, limit }
    }

    fn ended_by(error: BodyError) -> Self {
        let (end, limit) = ending(error);
        Self::last(end, limit)
    }
}

/// A body as pieces that fit a frame and the credit.
pub(crate) struct Pieces {
    body: Body,
    rest: Bytes,
    /// Whether the reader takes ranges as such.
    ranges: bool,
    /// What is left of a range that was too long for one piece.
    rest_of_range: Option<BlobRange>,
}

impl Pieces {
    pub(crate) fn new(body: Body) -> Self {
        Self { body, rest: Bytes::new(), ranges: false, rest_of_range: None }
    }

    /// The same for a reader that takes ranges as such.
    pub(crate) fn with_ranges(self, ranges: bool) -> Self {
        Self { ranges, ..self }
    }

    /// What goes with the head: a short body that is in memory, whole; of any other nothing.
    pub(crate) fn first(&mut self, budget: &Budget) -> Option<Piece> {
        let bytes = self.body.short(PIECE_BYTES)?;
        // A fresh budget is larger than any piece.
        if let Ok(permits) = budget.0.try_acquire_many(u32::try_from(bytes.len()).ok()?) {
            permits.forget();
        }
        Some(Piece { bytes, ..Piece::last(End::Done, 0) })
    }

    /// The next piece; the last one has an end. `None` once the call has ended.
    pub(crate) async fn next(&mut self, budget: &Budget) -> Option<Piece> {
        if self.ranges && self.body.as_ranges().is_some() {
            return self.next_range(budget).await;
        }
        while self.rest.is_empty() {
            match self.body.next().await {
                Some(Ok(bytes)) => self.rest = bytes,
                Some(Err(error)) => return Some(Piece::ended_by(error)),
                None => return Some(Piece::last(End::Done, 0)),
            }
        }
        let most = budget.take(self.rest.len().min(PIECE_BYTES)).await?;
        Some(Piece { bytes: self.rest.split_to(most), ..Piece::none() })
    }

    async fn next_range(&mut self, budget: &Budget) -> Option<Piece> {
        // Room first: what the module says of a range holds when that goes out.
        if !budget.take_range().await {
            return None;
        }
        loop {
            let next = match self.rest_of_range.take() {
                Some(rest) => Some(Ok(rest)),
                None => self.body.as_ranges()?.next_range().await,
            };
            let piece = match next {
                Some(Ok(range)) if range.length == 0 => continue,
                // No blob is so long. Sent, it would break the contract; read as bytes, it fails the body alone.
                Some(Ok(range)) if range.offset.checked_add(range.length).is_none() => {
                    Piece::ended_by(BodyError::Failed)
                }
                Some(Ok(range)) => Piece { range: Some(self.cut(range)), ..Piece::none() },
                Some(Err(error)) => Piece::ended_by(error),
                None => Piece::last(End::Done, 0),
            };
            return Some(piece);
        }
    }

    /// As much of a range, whose end is a number, as one piece holds; the rest comes next.
    fn cut(&mut self, range: BlobRange) -> BlobRange {
        let length = range.length.min(RANGE_BYTES);
        let (offset, left) = (range.offset + length, range.length - length);
        self.rest_of_range = (left > 0).then(|| BlobRange { name: range.name.clone(), offset, length: left });
        BlobRange { length, ..range }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

    use futures_util::FutureExt;

    use super::*;

    #[derive(Default)]
    struct Seen {
        granted: AtomicU32,
        left: AtomicBool,
    }

    impl Reading for Seen {
        fn read(&self, bytes: u32) {
            self.granted.fetch_add(bytes, Ordering::Relaxed);
        }

        fn left(&self) {
            self.left.store(true, Ordering::Relaxed);
        }
    }

    fn reader() -> (Arc<Inbox>, Arc<Seen>, Body) {
        let (inbox, seen) = (Inbox::new(), Arc::new(Seen::default()));
        let body = inbox.body(Arc::clone(&seen) as _);
        (inbox, seen, body)
    }

    #[tokio::test]
    async fn a_writer_gets_as_much_as_was_read_and_no_more() {
        let (inbox, seen, mut body) = reader();
        let piece = Bytes::from(vec![7; 64 * 1024]);
        for _ in 0..CREDIT as usize / piece.len() {
            inbox.take(piece.clone(), None, false).unwrap();
        }
        assert_eq!(inbox.take(Bytes::from_static(b"x"), None, false), Err(Broken::Overrun));
        for _ in 0..2 {
            assert_eq!(body.next().await.unwrap().unwrap().len(), piece.len());
        }
        assert_eq!(seen.granted.load(Ordering::Relaxed), CREDIT / 2);
        inbox.take(Bytes::from(vec![7; CREDIT as usize / 2]), Some(Ok(())), false).unwrap();
        assert_eq!(inbox.take(Bytes::from_static(b"x"), None, false), Err(Broken::AfterEnd));
        assert_eq!(body.collect(1 << 20).await.unwrap().len(), CREDIT as usize);
        assert!(!seen.left.load(Ordering::Relaxed));
    }

    #[tokio::test]
    async fn single_bytes_are_gathered_and_empty_pieces_refused() {
        let (inbox, _, mut body) = reader();
        inbox.take(Bytes::new(), None, true).unwrap();
        for _ in 0..10_000 {
            inbox.take(Bytes::from_static(b"1"), None, false).unwrap();
        }
        assert!(inbox.state().pieces.len() <= 3);
        assert_eq!(inbox.take(Bytes::new(), None, false), Err(Broken::Empty));
        let mut count = 0;
        while let Some(Some(piece)) = body.next().now_or_never() {
            count += piece.unwrap().len();
        }
        assert_eq!(count, 10_000);
    }

    #[test]
    fn a_reader_that_leaves_is_heard_of_and_costs_nothing() {
        let (inbox, seen, body) = reader();
        inbox.take(Bytes::from(vec![1; 5000]), None, false).unwrap();
        drop(body);
        assert!(seen.left.load(Ordering::Relaxed));
        inbox.take(Bytes::from(vec![1; 5000]), None, false).unwrap();
        assert!(inbox.state().pieces.is_empty());
    }

    #[tokio::test]
    async fn pieces_fit_the_credit_and_end() {
        let budget = Budget::new();
        let mut pieces = Pieces::new(Body::whole(vec![3; CREDIT as usize + 10]));
        assert!(pieces.first(&budget).is_none(), "too long to go with the head");
        let mut sent = 0;
        while let Some(Some(piece)) = pieces.next(&budget).now_or_never() {
            assert!(piece.bytes.len() <= PIECE_BYTES && piece.end == End::More);
            sent += piece.bytes.len();
        }
        assert_eq!(sent, CREDIT as usize, "then it waits");
        budget.add(5).unwrap();
        assert_eq!(pieces.next(&budget).await.unwrap().bytes.len(), 5);
        budget.add(100).unwrap();
        assert_eq!(pieces.next(&budget).await.unwrap().bytes.len(), 5);
        assert_eq!(pieces.next(&budget).await.unwrap().end, End::Done);
        assert_eq!(budget.add(0), Err(Broken::CreditOverflow));
        assert_eq!(budget.add(u32::MAX), Err(Broken::CreditOverflow));
        budget.close();
        let mut more = Pieces::new(Body::stream(futures_util::stream::iter([Ok(Bytes::from_static(b"x"))])));
        assert!(more.next(&budget).await.is_none());
    }
}
