//! The queue of outgoing frames of one attachment. Frames with bodies wait for room; what is bounded by the calls in flight (credit, cancels,
//! answers to pings) does not wait, so that whoever drops a call or reads a body never has to.

use std::collections::{BTreeMap, VecDeque};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use futures_util::Stream;
use futures_util::task::AtomicWaker;
use tokio::sync::{Semaphore, SemaphorePermit};

use super::LANE;

/// A frame that can carry credit.
pub(crate) trait Framed: Send + 'static {
    /// Credit for a call's body.
    fn credit(call: u64, bytes: u32) -> Self;
}

/// The lane is closed: the attachment has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Closed;

struct State<F> {
    frames: VecDeque<(F, bool)>,
    credits: BTreeMap<u64, u32>,
    closed: bool,
}

/// See the file's head.
pub(crate) struct Lane<F> {
    state: Mutex<State<F>>,
    room: Semaphore,
    reader: AtomicWaker,
}

/// The right to put one frame.
pub(crate) struct Room<'a, F> {
    lane: &'a Lane<F>,
    permit: SemaphorePermit<'a>,
}

impl<F: Framed> Lane<F> {
    pub(crate) fn new() -> Arc<Self> {
        let state = State { frames: VecDeque::new(), credits: BTreeMap::new(), closed: false };
        Arc::new(Self { state: Mutex::new(state), room: Semaphore::new(LANE), reader: AtomicWaker::new() })
    }

    fn state(&self) -> MutexGuard<'_, State<F>> {
        // No code panics while it holds the lock with the state half written.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until a frame with a body may be put.
    pub(crate) async fn room(&self) -> Result<Room<'_, F>, Closed> {
        let permit = self.room.acquire().await.map_err(|_| Closed)?;
        Ok(Room { lane: self, permit })
    }

    /// Puts a frame at once: only such as are bounded by the calls in flight.
    pub(crate) fn push(&self, frame: F) {
        self.put(frame, false);
    }

    fn put(&self, frame: F, counted: bool) {
        let mut state = self.state();
        if !state.closed {
            state.frames.push_back((frame, counted));
            drop(state);
            self.reader.wake();
        }
    }

    /// Grants credit; what waits for the same call is added to.
    pub(crate) fn credit(&self, call: u64, bytes: u32) {
        let mut state = self.state();
        if !state.closed {
            let waiting = state.credits.entry(call).or_default();
            *waiting = waiting.saturating_add(bytes);
            drop(state);
            self.reader.wake();
        }
    }

    /// Ends the lane: what waits is still sent, nothing more is taken.
    pub(crate) fn close(&self) {
        self.state().closed = true;
        self.room.close();
        self.reader.wake();
    }

    /// The frames, for the one connection that sends them.
    pub(crate) fn frames(self: &Arc<Self>) -> Frames<F> {
        Frames(Arc::clone(self))
    }
}

impl<F: Framed> Room<'_, F> {
    pub(crate) fn put(self, frame: F) {
        // Given back when the frame was taken out.
        self.permit.forget();
        self.lane.put(frame, true);
    }
}

/// See [`Lane::frames`].
pub(crate) struct Frames<F>(Arc<Lane<F>>);

impl<F: Framed> Stream for Frames<F> {
    type Item = F;

    fn poll_next(self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<Option<F>> {
        let lane = &self.0;
        lane.reader.register(task.waker());
        let mut state = lane.state();
        // Credit first: it belongs to calls that have not ended, and lets the other side go on.
        if let Some((call, bytes)) = state.credits.pop_first() {
            return Poll::Ready(Some(F::credit(call, bytes)));
        }
        match state.frames.pop_front() {
            Some((frame, counted)) => {
                if counted && !state.closed {
                    lane.room.add_permits(1);
                }
                Poll::Ready(Some(frame))
            }
            None if state.closed => Poll::Ready(None),
            None => Poll::Pending,
        }
    }
}

impl<F> Drop for Frames<F> {
    fn drop(&mut self) {
        // Nobody sends any more: whoever waits for room must not wait for ever.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner).closed = true;
        self.0.room.close();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use futures_util::{FutureExt, StreamExt};

    use super::*;

    #[derive(Debug, PartialEq)]
    enum Frame {
        Number(usize),
        Credit(u64, u32),
    }

    impl Framed for Frame {
        fn credit(call: u64, bytes: u32) -> Self {
            Self::Credit(call, bytes)
        }
    }

    #[tokio::test]
    async fn bodies_wait_for_room_and_credit_passes_them() {
        let lane = Lane::new();
        let mut frames = lane.frames();
        for number in 0..LANE {
            lane.room().await.unwrap().put(Frame::Number(number));
        }
        assert!(lane.room().now_or_never().is_none(), "full");
        lane.push(Frame::Number(LANE));
        lane.credit(7, 1);
        lane.credit(7, 2);
        assert_eq!(frames.next().await, Some(Frame::Credit(7, 3)));
        assert_eq!(frames.next().await, Some(Frame::Number(0)));
        assert!(lane.room().now_or_never().is_some(), "one was taken");
        lane.close();
        for number in 1..=LANE {
            assert_eq!(frames.next().await, Some(Frame::Number(number)));
        }
        assert_eq!(frames.next().await, None);
    }

    #[tokio::test]
    async fn whoever_waits_hears_of_the_end() {
        let lane: Arc<Lane<Frame>> = Lane::new();
        let frames = lane.frames();
        for number in 0..LANE {
            lane.room().await.unwrap().put(Frame::Number(number));
        }
        let waiting = Arc::clone(&lane);
        let waiting = tokio::spawn(async move { waiting.room().await.err() });
        tokio::task::yield_now().await;
        drop(frames);
        assert_eq!(waiting.await.unwrap(), Some(Closed));
    }
}
