//! The receiver's replay window: which of the last 65,536 request numbers of the peer were taken (PROTOCOL 6).

use openred_proto::limits::RECEIVER_WINDOW;

use super::SessionError;

const WORD_BITS: u64 = 64;
const WORDS: usize = (RECEIVER_WINDOW / WORD_BITS) as usize;

/// Marks numbers once. Its 8 KiB are there from the first request on, so that an idle session is small.
#[derive(Debug, Default)]
pub(crate) struct Window {
    greatest: u64,
    taken: u64,
    bits: Option<Box<[u64; WORDS]>>,
}

impl Window {
    /// Takes `number`, once. Called in the same breath as the first chunk's authentication, with nothing awaited between.
    pub(crate) fn mark(&mut self, number: u64) -> Result<(), SessionError> {
        if number == 0 || self.greatest.saturating_sub(number) >= RECEIVER_WINDOW {
            return Err(SessionError::PeerReplayed);
        }
        self.advance_to(number);
        let (word, bit) = place(number);
        let bits = self.bits.get_or_insert_with(|| Box::new([0; WORDS]));
        if bits[word] & bit != 0 {
            return Err(SessionError::PeerReplayed);
        }
        bits[word] |= bit;
        self.taken += 1;
        Ok(())
    }

    /// How many were taken. (What the greatest number is, the peer chooses.)
    pub(crate) const fn taken(&self) -> u64 {
        self.taken
    }

    /// Clears what leaves the window when `number` becomes the greatest.
    fn advance_to(&mut self, number: u64) {
        if number <= self.greatest {
            return;
        }
        let Some(bits) = &mut self.bits else {
            self.greatest = number;
            return;
        };
        if number - self.greatest >= RECEIVER_WINDOW {
            bits.fill(0);
        } else {
            for passed in self.greatest + 1..=number {
                let (word, bit) = place(passed);
                bits[word] &= !bit;
            }
        }
        self.greatest = number;
    }
}

const fn place(number: u64) -> (usize, u64) {
    let index = number % RECEIVER_WINDOW;
    ((index / WORD_BITS) as usize, 1 << (index % WORD_BITS))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn a_number_is_taken_once_and_only_inside_the_window() {
        let mut window = Window::default();
        assert!(window.mark(0).is_err());
        for number in [1, 3, 2, RECEIVER_WINDOW, RECEIVER_WINDOW + 2] {
            window.mark(number).unwrap();
            assert!(window.mark(number).is_err(), "{number} again");
        }
        assert!(window.mark(1).is_err() && window.mark(2).is_err(), "behind the window");
        window.mark(4).unwrap();
        window.mark(u64::MAX).unwrap();
        assert!(window.mark(5).is_err());
        window.mark(u64::MAX - RECEIVER_WINDOW + 1).unwrap();
        assert!(window.mark(u64::MAX - RECEIVER_WINDOW).is_err());
        assert_eq!(window.taken(), 8, "each that was taken, whatever its number");
    }

    proptest! {
        #[test]
        fn agrees_with_a_set(steps in proptest::collection::vec((0_u64..4, 0_u64..70_000), 1..200)) {
            let (mut window, mut model, mut greatest) = (Window::default(), BTreeSet::new(), 0_u64);
            for (kind, offset) in steps {
                let number = match kind {
                    0 => greatest + 1,
                    1 => greatest.saturating_sub(offset),
                    2 => greatest + offset % 8,
                    _ => greatest + offset,
                };
                let fresh = number > 0 && greatest.saturating_sub(number) < RECEIVER_WINDOW && !model.contains(&number);
                prop_assert_eq!(window.mark(number).is_ok(), fresh, "{}", number);
                if fresh {
                    model.insert(number);
                    greatest = greatest.max(number);
                }
            }
        }
    }
}
