//! The time that all hooks of one call have together. Pure; what was used is an argument.

use std::time::Duration;

/// For all points of a call: a request with every hook at its limit must not become slow.
pub(crate) const CHAIN: Duration = Duration::from_millis(250);

/// How long a hook is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limit {
    pub(crate) time: Duration,
    /// Less than its own: if it is too late, that is not its fault.
    pub(crate) is_cut: bool,
}

/// What is left for one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Budget(Duration);

impl Default for Budget {
    fn default() -> Self {
        Self(CHAIN)
    }
}

impl Budget {
    /// How long a hook may take that wants `own`; nothing if there is no time left.
    pub(crate) fn limit(self, own: Duration) -> Option<Limit> {
        if self.0.is_zero() {
            return None;
        }
        Some(Limit { time: own.min(self.0), is_cut: self.0 < own })
    }

    /// A hook took so long.
    pub(crate) fn spend(&mut self, took: Duration) {
        self.0 = self.0.saturating_sub(took);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn hooks_never_have_more_than_the_chain(wanted in prop::collection::vec((50_u64..=100, 0_u64..=100), 0..20)) {
            let (mut budget, mut used) = (Budget::default(), Duration::ZERO);
            for (own, took) in wanted {
                let own = Duration::from_millis(own);
                let Some(limit) = budget.limit(own) else {
                    prop_assert_eq!(used, CHAIN);
                    break;
                };
                prop_assert!(limit.time <= own && used + limit.time <= CHAIN);
                prop_assert_eq!(limit.is_cut, limit.time < own);
                let took = Duration::from_millis(took).min(limit.time);
                budget.spend(took);
                used += took;
            }
        }
    }
}
