//! Conditions about space: the database or the disk that took no more of a module's state, and modules that have no room for
//! more of what peers send.
//!
//! A refused write says that something of its size did not fit. So its condition ends when as much was written again, or, for
//! blobs, when something was deleted; smaller writes that still fit in between prove nothing.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use openred_module::{Batch, HostError};

use crate::clock;
use crate::health::{Condition, Health};

/// What all module hosts of a node know about space.
pub(super) struct Space {
    health: Arc<Health>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Bytes that did not fit into the database; none while all is well.
    rows: Option<u64>,
    /// Bytes that did not fit among the blobs.
    blobs: Option<u64>,
    /// What modules have no room for, in their words.
    full: BTreeMap<&'static str, String>,
}

/// Where a module's state goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// The database.
    Rows,
    /// Files.
    Blobs,
}

impl Place {
    const fn condition(self) -> Condition {
        match self {
            Self::Rows => Condition::StoreFull,
            Self::Blobs => Condition::BlobsFull,
        }
    }
}

/// What a batch writes.
pub(super) fn batch_bytes(batch: &Batch) -> u64 {
    batch.put.iter().map(|(key, value)| (key.len() + value.len()) as u64).sum()
}

impl Space {
    pub(super) fn new(health: Arc<Health>) -> Arc<Self> {
        Arc::new(Self { health, state: Mutex::default() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes how a module's write of so many bytes ended.
    pub(super) fn noted<T>(
        &self,
        module: &str,
        place: Place,
        bytes: u64,
        outcome: Result<T, HostError>,
    ) -> Result<T, HostError> {
        let mut state = self.state();
        let refused = match place {
            Place::Rows => &mut state.rows,
            Place::Blobs => &mut state.blobs,
        };
        match &outcome {
            Err(HostError::Full) => {
                *refused = Some(refused.map_or(bytes, |before| before.min(bytes)));
                let detail = format!("no space for {bytes} bytes of the module {module}");
                self.health.raise(place.condition(), clock::now(), detail);
            }
            Ok(_) if refused.is_some_and(|refused| bytes >= refused) => {
                *refused = None;
                self.health.clear(place.condition());
            }
            _ => {}
        }
        outcome
    }

    /// A blob was deleted: whether that is room enough, the next write tells.
    pub(super) fn blob_deleted(&self) {
        if self.state().blobs.take().is_some() {
            self.health.clear(Condition::BlobsFull);
        }
    }

    /// What a module has no room for, or that it has again.
    pub(super) fn module_full(&self, module: &'static str, detail: Option<String>) {
        let mut state = self.state();
        match detail {
            Some(detail) => state.full.insert(module, detail),
            None => state.full.remove(module),
        };
        let details: Vec<String> = state.full.iter().map(|(module, detail)| format!("{module}: {detail}")).collect();
        if details.is_empty() {
            self.health.clear(Condition::ModuleFull);
        } else {
            self.health.raise(Condition::ModuleFull, clock::now(), details.join("; "));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn codes(health: &Health) -> Vec<String> {
        health.report().into_iter().map(|condition| condition.code).collect()
    }

    #[test]
    fn a_full_place_is_named_until_as_much_was_written() {
        let health = Arc::new(Health::default());
        let space = Space::new(Arc::clone(&health));
        let write = |place, bytes, outcome| space.noted("m", place, bytes, outcome);
        assert_eq!(write(Place::Rows, 500, Err(HostError::Full)), Err(HostError::Full));
        assert_eq!(write(Place::Blobs, 90, Err::<(), _>(HostError::Full)), Err(HostError::Full));
        assert_eq!(codes(&health), ["store.full", "blobs.full"]);
        assert_eq!(write(Place::Rows, 10, Ok(())), Ok(()));
        assert_eq!(codes(&health), ["store.full", "blobs.full"], "a small write proves nothing");
        assert_eq!(write(Place::Rows, 500, Ok(())), Ok(()));
        assert_eq!(codes(&health), ["blobs.full"]);
        space.blob_deleted();
        assert!(codes(&health).is_empty());
        assert_eq!(write(Place::Rows, 500, Err::<(), _>(HostError::Storage)), Err(HostError::Storage));
        assert!(codes(&health).is_empty(), "another failure is none of space");
    }

    #[test]
    fn modules_without_room_are_named_together() {
        let health = Arc::new(Health::default());
        let space = Space::new(Arc::clone(&health));
        space.module_full("b", Some("of b".to_owned()));
        space.module_full("a", Some("of a".to_owned()));
        assert_eq!(codes(&health), ["module.full"]);
        assert_eq!(health.report()[0].detail, "a: of a; b: of b");
        space.module_full("a", None);
        assert_eq!(health.report()[0].detail, "b: of b");
        space.module_full("b", None);
        assert!(codes(&health).is_empty());
    }
}
