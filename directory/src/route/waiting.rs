//! How much may wait in the mailboxes, and how much does: in all, and of each who sent it.

use std::collections::HashMap;

use openred_proto::id::NodeId;

use crate::limits::{RECEIPTS_PER_NODE, SENDERS_FOR_ALL_ITEMS};

/// How much may wait.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Offers for one node.
    pub offers_per_node: usize,
    /// Items in all.
    pub items: usize,
}

impl Bounds {
    /// Items of one sender, which is never fewer than a mailbox's receipts.
    pub(super) fn of_sender(self) -> usize {
        (self.items / SENDERS_FOR_ALL_ITEMS).max(RECEIPTS_PER_NODE)
    }
}

/// How much waits: in all, and of each who sent it.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    items: usize,
    of_sender: HashMap<NodeId, usize>,
}

impl Waiting {
    pub(super) const fn items(&self) -> usize {
        self.items
    }

    #[cfg(test)]
    pub(super) fn is_nothing(&self) -> bool {
        self.items == 0 && self.of_sender.is_empty()
    }

    pub(super) fn one_more(&mut self, from: NodeId) {
        self.items += 1;
        *self.of_sender.entry(from).or_default() += 1;
    }

    pub(super) fn one_less(&mut self, from: &NodeId) {
        self.items = self.items.saturating_sub(1);
        if let Some(items) = self.of_sender.get_mut(from) {
            *items = items.saturating_sub(1);
            if *items == 0 {
                self.of_sender.remove(from);
            }
        }
    }

    pub(super) fn of(&self, from: &NodeId) -> usize {
        self.of_sender.get(from).copied().unwrap_or(0)
    }
}
