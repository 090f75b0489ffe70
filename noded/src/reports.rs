//! What `noded` sees of others that belongs into the audit trail, which the key process alone writes: records that do not
//! authenticate on a session, peers over their rate, directories that lie.
//!
//! In: a note at each place that sees it, which costs an addition. Out: one call to the key process a second at most, with how
//! many there were meanwhile; what it does not take is kept for the next one. The trail shows these as `noded`'s word.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::sync::Notify;

use crate::keys::KeysError;

/// Between two calls. A flood costs the keys one small record a second.
const PAUSE: Duration = Duration::from_secs(1);

/// What was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// A session's record did not authenticate.
    SessionForged,
    /// A connection, request or handshake over its rate was turned away.
    Flooded,
    /// A directory said what its own signatures contradict.
    DirectoryLied,
}

impl Seen {
    const ALL: [Self; 3] = [Self::SessionForged, Self::Flooded, Self::DirectoryLied];
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

    /// Takes what there is most of; none when there is nothing.
    fn take(&self) -> Option<(Seen, u32)> {
        let most = Seen::ALL.into_iter().max_by_key(|seen| self.counts[*seen as usize].load(Ordering::Relaxed))?;
        let count = self.counts[most as usize].swap(0, Ordering::Relaxed);
        (count > 0).then_some((most, count))
    }

    /// Reports for as long as the node runs.
    pub(crate) async fn run<F>(self: Arc<Self>, mut report: impl FnMut(Seen, u32) -> F)
    where
        F: Future<Output = Result<(), KeysError>>,
    {
        loop {
            let Some((seen, count)) = self.take() else {
                self.some.notified().await;
                continue;
            };
            if let Err(error) = report(seen, count).await {
                tracing::debug!(%error, ?seen, "a report for the audit trail was not taken and waits");
                self.add(seen, count);
            }
            tokio::time::sleep(PAUSE).await;
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
        assert!(calls.contains(&Seen::DirectoryLied), "a flood of one kind does not hide another for ever");
    }

    #[test]
    fn a_count_does_not_begin_again_at_nothing() {
        let reports = Reports::default();
        reports.add(Seen::SessionForged, u32::MAX);
        reports.note(Seen::SessionForged);
        assert_eq!(reports.take(), Some((Seen::SessionForged, u32::MAX)));
        assert_eq!(reports.take(), None);
    }
}
