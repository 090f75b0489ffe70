//! How many wrong links a peer may try: a secret of 32 bytes is guessed by nobody, so whoever tries many makes work and nothing else.
//!
//! In memory, and forgotten with the process: what a peer does ends no process. Time comes from the caller.

use std::collections::HashMap;

use openred_module::NodeId;

use crate::link::LinkError;

/// Wrong links in one window.
pub(crate) const TRIES: u32 = 10;
/// Milliseconds of a window.
pub(crate) const WINDOW: u64 = 60_000;
/// Peers in memory: as many as are heard of in a window, and far more than a node has links.
const PEERS: usize = 4096;

/// What each peer has tried of late.
#[derive(Debug, Default)]
pub(crate) struct Tries(HashMap<NodeId, Window>);

#[derive(Debug, Clone, Copy)]
struct Window {
    begun: u64,
    tried: u32,
}

impl Window {
    /// A clock that was set back ends a window as well.
    fn is_over(self, now: u64) -> bool {
        now.abs_diff(self.begun) >= WINDOW
    }
}

impl Tries {
    /// Takes one try before its outcome is known, so that many at the same time are no more than that many.
    pub(crate) fn take(&mut self, peer: NodeId, now: u64) -> Result<(), LinkError> {
        if !self.0.contains_key(&peer) && self.0.len() >= PEERS {
            self.0.retain(|_, window| !window.is_over(now));
            if self.0.len() >= PEERS {
                return Err(LinkError::TooManyTries);
            }
        }
        let window = self.0.entry(peer).or_insert(Window { begun: now, tried: 0 });
        if window.is_over(now) {
            *window = Window { begun: now, tried: 0 };
        }
        if window.tried >= TRIES {
            return Err(LinkError::TooManyTries);
        }
        window.tried += 1;
        Ok(())
    }

    /// It was no wrong one.
    pub(crate) fn give_back(&mut self, peer: NodeId) {
        if let Some(window) = self.0.get_mut(&peer) {
            window.tried = window.tried.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_a_minute_and_no_more_peers_than_fit() {
        let mut tries = Tries::default();
        let peer = |number: usize| {
            let mut bytes = [0; 32];
            bytes[..8].copy_from_slice(&number.to_le_bytes());
            NodeId::from_bytes(bytes)
        };
        let now = 1_000_000;
        for _ in 0..TRIES {
            assert_eq!(tries.take(peer(0), now), Ok(()));
        }
        assert_eq!(tries.take(peer(0), now + WINDOW - 1), Err(LinkError::TooManyTries));
        assert_eq!(tries.take(peer(1), now), Ok(()), "one peer's tries are not another's");
        assert_eq!(tries.take(peer(0), now + WINDOW), Ok(()));
        assert_eq!(tries.take(peer(0), 0), Ok(()), "a clock that was set back locks nobody out for long");
        for _ in 0..3 * TRIES {
            assert_eq!(tries.take(peer(2), now), Ok(()));
            tries.give_back(peer(2));
        }
        for number in 0..2 * PEERS {
            let _ = tries.take(peer(number), now);
        }
        assert!(tries.0.len() <= PEERS);
        assert_eq!(tries.take(peer(3 * PEERS), now + 2 * WINDOW), Ok(()));
    }
}
