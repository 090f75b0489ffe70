//! The sender's numbers: each request takes a new one, kept within 1,024 of the oldest unanswered one (PROTOCOL 6).

use std::collections::BTreeSet;

use openred_proto::limits::SENDER_SPAN;

use super::SessionError;

/// Hands out numbers from 1 and remembers which are unanswered; at most [`SENDER_SPAN`] of them.
#[derive(Debug, Default)]
pub(crate) struct Numbers {
    last: u64,
    open: BTreeSet<u64>,
}

impl Numbers {
    /// The next number up to `most`, never the same twice.
    pub(crate) fn take(&mut self, most: u64) -> Result<u64, SessionError> {
        let next = self.last.saturating_add(1);
        if self.last >= most {
            return Err(SessionError::LimitReached);
        }
        if self.is_full() {
            return Err(SessionError::SpanFull);
        }
        self.open.insert(next);
        self.last = next;
        Ok(next)
    }

    /// Whether the oldest unanswered number holds up every new one.
    pub(crate) fn is_full(&self) -> bool {
        self.open.first().is_some_and(|oldest| self.last + 1 - oldest >= SENDER_SPAN)
    }

    /// `number` is answered or given up.
    pub(crate) fn release(&mut self, number: u64) {
        self.open.remove(&number);
    }

    /// How many were handed out.
    pub(crate) const fn taken(&self) -> u64 {
        self.last
    }

    /// Goes on behind `last`, as after so many requests.
    #[cfg(test)]
    pub(crate) fn skip_to(&mut self, last: u64) {
        self.last = last;
    }

    /// How many are unanswered.
    #[cfg(test)]
    pub(crate) fn open(&self) -> usize {
        self.open.len()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use openred_proto::limits::SESSION_REQUESTS;

    #[test]
    fn the_oldest_unanswered_number_holds_the_span() {
        let mut numbers = Numbers::default();
        for expected in 1..=SENDER_SPAN {
            assert_eq!(numbers.take(SESSION_REQUESTS), Ok(expected));
        }
        assert_eq!(numbers.take(SESSION_REQUESTS), Err(SessionError::SpanFull));
        numbers.release(2);
        assert_eq!(numbers.take(SESSION_REQUESTS), Err(SessionError::SpanFull), "1 is still open");
        numbers.release(1);
        assert_eq!(numbers.take(SESSION_REQUESTS), Ok(SENDER_SPAN + 1));
        assert_eq!(numbers.open() as u64, SENDER_SPAN - 1);
    }

    #[test]
    fn numbers_end_at_the_session_limit() {
        let mut numbers = Numbers { last: SESSION_REQUESTS - 1, open: BTreeSet::new() };
        assert_eq!(numbers.take(SESSION_REQUESTS), Ok(SESSION_REQUESTS));
        numbers.release(SESSION_REQUESTS);
        assert_eq!(numbers.take(SESSION_REQUESTS), Err(SessionError::LimitReached));
    }
}
