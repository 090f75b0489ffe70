//! Waits for a near peer's answer without going to sleep (decision 0070).
//!
//! In: an exchange on a session, and whether the last answer on that session came at once. Out: what the exchange gives. A processor that
//! has nothing to do takes longer to wake than a peer in the same network takes to answer, so who waits for a single answer looks for it
//! for the first [`AT_ONCE`]: other tasks and the sockets have their turn at each look. Where the last answer took longer, or more than one
//! exchange is under way, nobody looks: the wait is the kernel's.

use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// An answer that comes within this is worth being looked for; also the most processor time that one wait costs. A round trip on one
/// machine takes some 80 µs, of which half are wake-ups.
const AT_ONCE: Duration = Duration::from_micros(100);

/// Whether the last answer of a peer came [`AT_ONCE`].
#[derive(Debug, Default)]
pub(super) struct Quick(AtomicBool);

/// Exchanges under way, with whatever peers.
#[derive(Debug, Default)]
pub(super) struct Attention(AtomicUsize);

/// One exchange; leaves the count when dropped.
struct UnderWay<'a>(&'a AtomicUsize);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Attention {
    /// Carries out `exchange` with the peer of `quick`, and remembers whether it answered at once.
    pub(super) async fn attend<F: Future>(&self, quick: &Quick, exchange: F) -> F::Output {
        let begun = Instant::now();
        self.attend_by(quick, exchange, || begun.elapsed()).await
    }

    /// The same with a clock that tells how long it has been going on.
    async fn attend_by<F: Future>(&self, quick: &Quick, exchange: F, elapsed: impl Fn() -> Duration) -> F::Output {
        self.0.fetch_add(1, Ordering::Relaxed);
        let _under_way = UnderWay(&self.0);
        let mut exchange = pin!(exchange);
        let was_quick = quick.0.load(Ordering::Relaxed);
        let answer = loop {
            let alone = self.0.load(Ordering::Relaxed) == 1;
            if !(was_quick && alone && elapsed() < AT_ONCE) {
                break exchange.await;
            }
            tokio::select! {
                biased;
                answer = &mut exchange => break answer,
                () = tokio::task::yield_now() => {}
            }
        };
        quick.0.store(elapsed() < AT_ONCE, Ordering::Relaxed);
        answer
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::cell::Cell;
    use std::future::poll_fn;

    use tokio::sync::oneshot;

    use super::*;

    /// Of its own time, 10 µs at each look at the clock: times that an exchange is polled whose end comes from another task after a hundred
    /// turns, which is long after [`AT_ONCE`], or after one.
    async fn polls(attention: &Attention, quick: &Quick, turns: usize) -> usize {
        let (sender, mut end) = oneshot::channel();
        tokio::spawn(async move {
            for _ in 0..turns {
                tokio::task::yield_now().await;
            }
            sender.send(()).unwrap();
        });
        let (polls, micros) = (Cell::new(0), Cell::new(0));
        let exchange = poll_fn(|context| {
            polls.set(polls.get() + 1);
            pin!(&mut end).poll(context)
        });
        let elapsed = || Duration::from_micros(micros.replace(micros.get() + 10));
        attention.attend_by(quick, exchange, elapsed).await.unwrap();
        polls.get()
    }

    #[tokio::test]
    async fn only_who_answers_at_once_is_looked_for_and_not_for_long() {
        let (attention, quick) = (Attention::default(), Quick::default());
        assert!(polls(&attention, &quick, 1).await < 5, "nothing is known of it");
        assert!(quick.0.load(Ordering::Relaxed), "it answered at once");
        let looked = polls(&attention, &quick, 100).await;
        assert!((8..50).contains(&looked), "it is looked for until it is late: {looked}");
        assert!(!quick.0.load(Ordering::Relaxed), "this time it took longer");
        assert!(polls(&attention, &quick, 100).await < 5);
        assert_eq!(attention.0.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn nobody_is_looked_for_while_another_exchange_is_under_way() {
        let (attention, [quick, other]) = (Attention::default(), [(); 2].map(|()| Quick(AtomicBool::new(true))));
        let mut first = Box::pin(attention.attend(&other, std::future::pending::<()>()));
        assert!(futures_util::poll!(first.as_mut()).is_pending());
        assert!(polls(&attention, &quick, 100).await < 5);
        drop(first);
        quick.0.store(true, Ordering::Relaxed);
        assert!(polls(&attention, &quick, 100).await > 7, "one that was given up is under way no more");
    }
}
