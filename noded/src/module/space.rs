//! Conditions about space: the database or the disk that took no more of a module's state, and modules that have no room for
//! more of what peers send.
//!
//! A module that has used up its own quota is such a module, and no condition of the node: what was granted to it is less than what it wants, and
//! nobody else has less room for that.
//!
//! A refused write says that something of its size did not fit. So its condition ends when as much was written again, or, for
//! blobs, when something was deleted; smaller writes that still fit in between prove nothing.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use openred_module::manifest::PermissionName;
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
    /// Bytes that a module's own quota has no room for.
    own: BTreeMap<(&'static str, Place), u64>,
}

/// Where a module's state goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
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

    const fn quota(self) -> PermissionName {
        match self {
            Self::Rows => PermissionName::KvQuota,
            Self::Blobs => PermissionName::BlobQuota,
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
        module: &'static str,
        place: Place,
        bytes: u64,
        outcome: Result<T, HostError>,
    ) -> Result<T, HostError> {
        let mut state = self.state();
        let own = state.own.get(&(module, place)).copied();
        if outcome.is_ok() && own.is_some_and(|refused| bytes >= refused) {
            state.own.remove(&(module, place));
            self.show(&state);
        }
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

    /// Notes that a module's own quota has no room for so many bytes; what it is told.
    pub(super) fn own_full(&self, module: &'static str, place: Place, bytes: u64) -> HostError {
        let mut state = self.state();
        let known = state.own.get(&(module, place)).copied();
        let least = known.map_or(bytes, |before| before.min(bytes));
        if known != Some(least) {
            state.own.insert((module, place), least);
            self.show(&state);
        }
        HostError::Full
    }

    /// A blob of this module was deleted: whether that is room enough, the next write tells.
    pub(super) fn blob_deleted(&self, module: &'static str) {
        let mut state = self.state();
        if state.blobs.take().is_some() {
            self.health.clear(Condition::BlobsFull);
        }
        if state.own.remove(&(module, Place::Blobs)).is_some() {
            self.show(&state);
        }
    }

    /// Nothing is known of a module that is gone.
    pub(super) fn forget(&self, module: &'static str) {
        let mut state = self.state();
        state.own.retain(|(of, _), _| *of != module);
        state.full.remove(module);
        self.show(&state);
    }

    /// What a module has no room for, or that it has again.
    pub(super) fn module_full(&self, module: &'static str, detail: Option<String>) {
        let mut state = self.state();
        match detail {
            Some(detail) => state.full.insert(module, detail),
            None => state.full.remove(module),
        };
        self.show(&state);
    }

    fn show(&self, state: &State) {
        let said = state.full.iter().map(|(module, detail)| format!("{module}: {detail}"));
        let own = state.own.iter().map(|((module, place), bytes)| {
            let quota = place.quota();
            format!("{module}: its {quota} has no room for {bytes} bytes; it is what it was granted")
        });
        let details: Vec<String> = said.chain(own).collect();
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
        space.blob_deleted("m");
        assert!(codes(&health).is_empty());
        assert_eq!(write(Place::Rows, 500, Err::<(), _>(HostError::Storage)), Err(HostError::Storage));
        assert!(codes(&health).is_empty(), "another failure is none of space");
    }

    #[test]
    fn a_quota_that_is_used_up_is_its_modules_matter() {
        let health = Arc::new(Health::default());
        let space = Space::new(Arc::clone(&health));
        assert_eq!(space.own_full("m", Place::Blobs, 90), HostError::Full);
        assert_eq!(space.own_full("m", Place::Rows, 9), HostError::Full);
        assert_eq!(codes(&health), ["module.full"], "the node has room");
        assert!(health.report()[0].detail.starts_with("m: its kv.quota has no room for 9 bytes"));
        let _ = space.noted("other", Place::Rows, 100, Ok(()));
        assert_eq!(codes(&health), ["module.full"], "another's writes are none of this one's");
        let _ = space.noted("m", Place::Rows, 9, Ok(()));
        assert!(health.report()[0].detail.starts_with("m: its blob.quota"));
        space.blob_deleted("other");
        assert_eq!(codes(&health), ["module.full"]);
        space.blob_deleted("m");
        assert!(codes(&health).is_empty());
        space.own_full("m", Place::Rows, 9);
        space.forget("m");
        assert!(codes(&health).is_empty());
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
