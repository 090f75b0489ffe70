//! Lines in the log about what nodes did: so many of each node and of all together. Those that are left out are counted, and told once a while.

use openred_proto::id::{NodeId, UnixMillis};

use crate::limits::{Buckets, REMARK_EVERY, REMARKS_BURST, REMARKS_OF_ALL, take_both};

/// Who has lines left, and what was left out.
pub(super) struct Remarks {
    by_node: Buckets<NodeId>,
    all: Buckets<()>,
    left_out: Option<LeftOut>,
    told: Option<UnixMillis>,
}

/// What was left out since it was told the last time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LeftOut {
    pub(super) lines: u64,
    /// Whom the last of them was about.
    pub(super) last: NodeId,
}

impl Remarks {
    pub(super) fn new() -> Self {
        let all = REMARKS_OF_ALL;
        Self {
            by_node: Buckets::slow(REMARK_EVERY, REMARKS_BURST),
            all: Buckets::slow(REMARK_EVERY / all, all * REMARKS_BURST),
            left_out: None,
            told: None,
        }
    }

    /// Whether a line about this node may be written.
    pub(super) fn take(&mut self, now: UnixMillis, node: NodeId) -> bool {
        let may = take_both(&mut self.by_node, &mut self.all, now, node, ()).is_ok();
        if !may {
            let lines = self.left_out.map_or(0, |left| left.lines) + 1;
            self.left_out = Some(LeftOut { lines, last: node });
        }
        may
    }

    /// What is to be told now.
    pub(super) fn left_out(&mut self, now: UnixMillis) -> Option<LeftOut> {
        if self.told.is_some_and(|told| now < told.plus(REMARK_EVERY)) {
            return None;
        }
        let left = self.left_out.take()?;
        self.told = Some(now);
        Some(left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_is_told_once_a_while() {
        let (mut remarks, now) = (Remarks::new(), UnixMillis(1_000_000));
        let node = |number: u32| {
            let mut bytes = [0; 32];
            bytes[..4].copy_from_slice(&number.to_be_bytes());
            NodeId::from_bytes(bytes)
        };
        let all = REMARKS_OF_ALL * REMARKS_BURST;
        assert!((0..all).all(|number| remarks.take(now, node(number))));
        assert_eq!(remarks.left_out(now), None);
        assert!(!remarks.take(now, node(all)) && !remarks.take(now, node(all + 1)));
        assert_eq!(remarks.left_out(now), Some(LeftOut { lines: 2, last: node(all + 1) }));
        assert!(!remarks.take(now, node(all)));
        assert_eq!(remarks.left_out(now), None, "not again at once");
        assert_eq!(remarks.left_out(now.plus(REMARK_EVERY)), Some(LeftOut { lines: 1, last: node(all) }));
        assert_eq!(remarks.left_out(now.plus(REMARK_EVERY * 2)), None, "nothing was");
    }
}
