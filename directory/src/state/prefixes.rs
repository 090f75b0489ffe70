//! The banned prefixes in memory: each caller's address is looked for in them.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use ipnet::IpNet;

/// Prefixes that are refused, by their length: one look for each length that is used.
#[derive(Debug, Default)]
pub(super) struct BannedPrefixes {
    by_length: HashMap<u8, HashSet<IpNet>>,
    count: usize,
}

impl BannedPrefixes {
    pub(super) fn contain(&self, address: IpAddr) -> bool {
        let is_in = |(length, prefixes): (&u8, &HashSet<IpNet>)| {
            IpNet::new(address, *length).is_ok_and(|prefix| prefixes.contains(&prefix.trunc()))
        };
        self.by_length.iter().any(is_in)
    }

    pub(super) fn insert(&mut self, prefix: IpNet) {
        self.count += usize::from(self.by_length.entry(prefix.prefix_len()).or_default().insert(prefix));
    }

    pub(super) fn remove(&mut self, prefix: &IpNet) {
        if let Some(prefixes) = self.by_length.get_mut(&prefix.prefix_len()) {
            self.count -= usize::from(prefixes.remove(prefix));
            if prefixes.is_empty() {
                self.by_length.remove(&prefix.prefix_len());
            }
        }
    }

    /// This prefix itself.
    pub(super) fn holds(&self, prefix: &IpNet) -> bool {
        self.by_length.get(&prefix.prefix_len()).is_some_and(|prefixes| prefixes.contains(prefix))
    }

    pub(super) fn count(&self) -> usize {
        self.count
    }
}
