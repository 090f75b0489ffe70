//! A hook that fails again and again is left alone for a while: its calls are dealt with as failures at once, without waiting for it. Pure;
//! time is an argument.

use std::time::{Duration, Instant};

/// Failures in a row that open it.
const FAILURES: u32 = 5;
/// How long it stays open at first; twice as long each time the attempt afterwards fails.
const PAUSE: Duration = Duration::from_secs(1);
/// And at most.
const PAUSE_MOST: Duration = Duration::from_secs(60);

/// What a breaker is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// The hook is asked.
    Closed,
    /// It is not.
    Open,
    /// One call asks it; the others do not.
    Trying,
}

impl State {
    /// As lists show it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::Trying => "trying",
        }
    }
}

/// What came of a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// Nothing to tell.
    None,
    /// It has opened.
    Opened,
    /// It has closed again.
    Closed,
}

/// See the file's head.
#[derive(Debug, Default)]
pub(crate) struct Breaker {
    failures: u32,
    /// Since when it is open, and for how long.
    opened: Option<(Instant, Duration)>,
    trying: bool,
}

impl Breaker {
    /// Whether the hook may be asked. If so, what came of it is told afterwards: by [`Breaker::noted`], or [`Breaker::left`].
    pub(crate) fn ask(&mut self, now: Instant) -> bool {
        match self.opened {
            None => true,
            Some((at, pause)) if !self.trying && now.saturating_duration_since(at) >= pause => {
                self.trying = true;
                true
            }
            Some(_) => false,
        }
    }

    /// How an asking ended.
    pub(crate) fn noted(&mut self, well: bool, now: Instant) -> Turn {
        match self.opened {
            None if well => self.failures = 0,
            None => {
                self.failures += 1;
                if self.failures >= FAILURES {
                    self.opened = Some((now, PAUSE));
                    return Turn::Opened;
                }
            }
            // Of a call that was on its way when it opened.
            Some(_) if !self.trying => {}
            Some(_) if well => {
                *self = Self::default();
                return Turn::Closed;
            }
            Some((_, pause)) => {
                self.opened = Some((now, (2 * pause).min(PAUSE_MOST)));
                self.trying = false;
            }
        }
        Turn::None
    }

    /// The call was given up before the hook had answered, or by no fault of the hook's: that says nothing.
    pub(crate) fn left(&mut self) {
        self.trying = false;
    }

    /// What it is.
    pub(crate) fn state(&self) -> State {
        match self.opened {
            None => State::Closed,
            Some(_) if self.trying => State::Trying,
            Some(_) => State::Open,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn five_failures_in_a_row_open_it_and_one_success_closes_it() {
        let (mut breaker, begun) = (Breaker::default(), Instant::now());
        let after = |millis| begun + Duration::from_millis(millis);
        for _ in 0..FAILURES - 1 {
            assert_eq!(breaker.noted(false, after(0)), Turn::None);
        }
        assert_eq!(breaker.noted(true, after(0)), Turn::None);
        assert!((1..FAILURES).all(|_| breaker.noted(false, after(0)) == Turn::None), "not in a row");
        assert_eq!(breaker.noted(false, after(0)), Turn::Opened);
        assert!(!breaker.ask(after(999)) && breaker.state() == State::Open);
        assert_eq!(breaker.noted(true, after(999)), Turn::None, "of a call from before");
        assert!(breaker.ask(after(1000)) && !breaker.ask(after(1000)), "one tries");
        assert_eq!(breaker.state(), State::Trying);
        assert_eq!(breaker.noted(false, after(1000)), Turn::None);
        assert!(!breaker.ask(after(2999)) && breaker.ask(after(3000)), "twice as long");
        breaker.left();
        assert!(breaker.ask(after(3000)), "the one that tried was given up");
        assert_eq!(breaker.noted(true, after(3000)), Turn::Closed);
        assert!(breaker.ask(after(3000)) && breaker.state() == State::Closed);
    }

    proptest! {
        #[test]
        fn it_never_stays_open_for_longer_than_its_pause(steps in prop::collection::vec((0_u8..4, 0_u64..2000), 0..200)) {
            let (mut breaker, mut now, mut asked) = (Breaker::default(), Instant::now(), 0_u32);
            for (what, millis) in steps {
                now += Duration::from_millis(millis);
                match what {
                    0 => asked += u32::from(breaker.ask(now)),
                    1 | 2 if asked > 0 => {
                        breaker.noted(what == 1, now);
                        asked -= 1;
                    }
                    3 if asked > 0 => {
                        breaker.left();
                        asked -= 1;
                    }
                    _ => {}
                }
            }
            // Once nobody is on his way any more, a pause later it is asked.
            breaker.left();
            prop_assert!(breaker.ask(now + PAUSE_MOST));
        }
    }
}
