//! What `noded` sees of others that belongs into the audit trail, which the key process alone writes: records that do not
//! authenticate on a session, peers over their rate, directories that lie, offers that were left.
//!
//! In: a note at each place that sees it, which costs an addition. Out: one call to the key process a second at most and, when they do
//! not end, one in five minutes, each kind in its turn, with how many there were meanwhile; what is not taken is kept for the next
//! one. The trail shows these as `noded`'s word.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::keys::KeysError;

/// Between two calls.
const PAUSE: Duration = Duration::from_secs(1);
/// Calls that may follow each other like this. Strangers bring them about: more would spend the trail's share for them.
const BURST: u32 = 60;
/// After so long one more may. The trail's share of a segment then lasts for as long as a segment of an idle node.
const REFILL: Duration = Duration::from_secs(300);

/// What was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// A session's record did not authenticate.
    SessionForged,
    /// A connection, request or handshake over its rate was turned away.
    Flooded,
    /// A directory said what its own signatures contradict.
    DirectoryLied,
    /// An offer of a link was left.
    OfferRefused,
}

impl Seen {
    const ALL: [Self; 4] = [Self::SessionForged, Self::Flooded, Self::DirectoryLied, Self::OfferRefused];
}

/// What was seen and is not reported yet.
#[derive(Debug, Default)]
pub struct Reports {
    counts: [AtomicU32; Seen::ALL.len()],
    some: Notify,
}

impl Reports {
    /// Counts one.
    pub fn note(&self, seen: Seen) {
        self.add(seen, 1);
        self.some.notify_one();
    }

    fn add(&self, seen: Seen, count: u32) {
        // Saturates: a count that began again at zero would hide what it counts.
        let counter = &self.counts[seen as usize];
        let _ = counter.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |old| Some(old.saturating_add(count)));
    }

    /// How many of one kind wait.
    #[cfg(test)]
    pub(crate) fn waiting(&self, seen: Seen) -> u32 {
        self.counts[seen as usize].load(Ordering::Relaxed)
    }

    /// Takes what there is of the next kind after `last`; none when there is nothing. In turn, so that a flood of one kind hides no other.
    fn take(&self, last: Seen) -> Option<(Seen, u32)> {
        let kinds = Seen::ALL.into_iter().cycle().skip(last as usize + 1).take(Seen::ALL.len());
        let mut counts = kinds.map(|seen| (seen, self.counts[seen as usize].swap(0, Ordering::Relaxed)));
        counts.find(|(_, count)| *count > 0)
    }

    /// Reports for as long as the node runs.
    pub(crate) async fn run<F>(self: Arc<Self>, mut report: impl FnMut(Seen, u32) -> F)
    where
        F: Future<Output = Result<(), KeysError>>,
    {
        let (mut last, mut left, mut refilled) = (Seen::DirectoryLied, BURST, Instant::now());
        loop {
            let Some((seen, count)) = self.take(last) else {
                self.some.notified().await;
                continue;
            };
            last = seen;
            if let Err(error) = report(seen, count).await {
                tracing::debug!(%error, ?seen, "a report for the audit trail was not taken and waits");
                self.add(seen, count);
            }
            let periods = u32::try_from(refilled.elapsed().as_secs() / REFILL.as_secs()).unwrap_or(BURST);
            refilled += REFILL * periods;
            left = left.saturating_add(periods).min(BURST).saturating_sub(1);
            tokio::time::sleep(if left == 0 { REFILL } else { PAUSE }).await;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::cell::RefCell;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_flood_costs_one_call_a_second_and_nothing_is_lost() {
        let reports = Arc::new(Reports::default());
        let (calls, sum) = (RefCell::new(Vec::new()), RefCell::new(0));
        let running = Arc::clone(&reports).run(|seen, count| {
            calls.borrow_mut().push(seen);
            // The key process is away now and then.
            let taken = calls.borrow().len() % 3 != 0;
            if taken {
                *sum.borrow_mut() += count;
            }
            async move { if taken { Ok(()) } else { Err(KeysError::Away) } }
        });
        let flood = async {
            for round in 0..200 {
                (0..50).for_each(|_| reports.note(Seen::Flooded));
                if round % 10 == 0 {
                    reports.note(Seen::DirectoryLied);
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            tokio::time::sleep(Duration::from_secs(10)).await;
        };
        tokio::select! {
            () = running => {}
            () = flood => {}
        }
        assert_eq!(sum.into_inner(), 200 * 50 + 20);
        let calls = calls.into_inner();
        assert!(calls.len() <= 31, "{}", calls.len());
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_hides_no_other_kind_and_does_not_spend_the_trail() {
        let reports = Arc::new(Reports::default());
        let calls = RefCell::new(Vec::new());
        let running = Arc::clone(&reports).run(|seen, _| {
            calls.borrow_mut().push(seen);
            async { Ok(()) }
        });
        let flood = async {
            for second in 0..86_400 {
                (0..500).for_each(|_| reports.note(Seen::Flooded));
                if second == 5 {
                    reports.note(Seen::SessionForged);
                }
                if second == 8 {
                    assert!(calls.borrow().contains(&Seen::SessionForged), "while the flood lasts");
                }
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        };
        tokio::select! {
            () = running => {}
            () = flood => {}
        }
        let most = BURST as usize + 86_400 / REFILL.as_secs() as usize + 1;
        assert!((most / 2..=most).contains(&calls.borrow().len()), "{} in a day", calls.borrow().len());
    }

    #[test]
    fn a_count_does_not_begin_again_at_nothing() {
        let reports = Reports::default();
        reports.add(Seen::SessionForged, u32::MAX);
        reports.note(Seen::SessionForged);
        assert_eq!(reports.take(Seen::SessionForged), Some((Seen::SessionForged, u32::MAX)), "in turn, all round");
        assert_eq!(reports.take(Seen::Flooded), None);
    }
}
