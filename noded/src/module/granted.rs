//! What one module may do here, and how often it used each permission: a call that was not granted ends with the permission's name, one
//! that was is counted. The counts are kept in a small file, for `openred module audit`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use openred_module::manifest::{Grants, PermissionName};
use openred_module::{HostError, PeerError};

/// The counts' file, in the node's state directory.
pub(crate) const USED: &str = "modules-used.json";
/// Between two looks at whether the counts have changed.
const EVERY: Duration = Duration::from_secs(1);

/// How often each permission was used by each module, since the module was first installed.
pub(crate) struct Used {
    place: Option<PathBuf>,
    counts: Mutex<BTreeMap<&'static str, Arc<Counts>>>,
    changed: AtomicBool,
}

/// Of one module, in the order of [`PermissionName::ALL`].
#[derive(Debug, Default)]
struct Counts([AtomicU64; PermissionName::ALL.len()]);

type Written = BTreeMap<String, BTreeMap<String, u64>>;

impl Used {
    /// Goes on with what the file says; one that cannot be read is begun anew.
    pub(crate) fn open(state: &Path) -> Arc<Self> {
        let place = state.join(USED);
        let written: Written =
            std::fs::read(&place).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
        let counts = written.iter().map(|(module, of)| {
            let counts = Counts::default();
            for (name, count) in PermissionName::ALL.iter().zip(&counts.0) {
                count.store(of.get(name.name()).copied().unwrap_or(0), Ordering::Relaxed);
            }
            (super::installed::interned(module), Arc::new(counts))
        });
        Arc::new(Self { place: Some(place), counts: Mutex::new(counts.collect()), changed: AtomicBool::new(false) })
    }

    /// For tests of the host: kept nowhere.
    #[cfg(test)]
    pub(super) fn nowhere() -> Arc<Self> {
        Arc::new(Self { place: None, counts: Mutex::default(), changed: AtomicBool::new(false) })
    }

    fn of(&self, module: &'static str) -> Arc<Counts> {
        Arc::clone(self.counts.lock().unwrap_or_else(PoisonError::into_inner).entry(module).or_default())
    }

    /// Nothing is known of this module any more.
    pub(super) fn forget(&self, module: &str) {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner).remove(module);
        self.changed.store(true, Ordering::Relaxed);
    }

    /// Keeps the file up to date; never returns. What a crash loses is a second of counts.
    pub(super) async fn keep(self: Arc<Self>) {
        loop {
            tokio::time::sleep(EVERY).await;
            if self.changed.swap(false, Ordering::Relaxed)
                && let Err(error) = self.write()
            {
                tracing::warn!(%error, "the modules' use of their permissions cannot be kept");
            }
        }
    }

    fn write(&self) -> io::Result<()> {
        let Some(place) = &self.place else { return Ok(()) };
        let of = |counts: &Counts| {
            let used = PermissionName::ALL.iter().zip(&counts.0);
            let used = used.map(|(name, count)| (name.to_string(), count.load(Ordering::Relaxed)));
            used.filter(|(_, count)| *count > 0).collect::<BTreeMap<_, _>>()
        };
        let written: Written = {
            let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
            counts.iter().map(|(module, counts)| ((*module).to_owned(), of(counts))).collect()
        };
        let fresh = place.with_extension("new");
        let mut file = File::create(&fresh)?;
        file.write_all(&serde_json::to_vec(&written)?)?;
        std::fs::rename(&fresh, place)
    }
}

/// What one module may do.
pub(super) struct Granted {
    module: &'static str,
    grants: Grants,
    counts: Arc<Counts>,
    used: Arc<Used>,
    /// Events that its manifest declares.
    codes: BTreeSet<String>,
}

impl Granted {
    #[cfg(test)]
    pub(super) fn new(module: &'static str, grants: Grants, used: &Arc<Used>) -> Arc<Self> {
        Self::with_codes(module, grants, BTreeSet::new(), used)
    }

    /// What a module was granted whose manifest declares these events.
    pub(super) fn with_codes(
        module: &'static str,
        grants: Grants,
        codes: BTreeSet<String>,
        used: &Arc<Used>,
    ) -> Arc<Self> {
        Arc::new(Self { module, grants, counts: used.of(module), used: Arc::clone(used), codes })
    }

    /// Whether its manifest declares this event.
    pub(super) fn declares(&self, code: &str) -> bool {
        self.codes.contains(code)
    }

    /// Whether it has any of it. A use is counted.
    pub(super) fn may(&self, name: PermissionName) -> bool {
        let may = self.grants.has(name);
        if may {
            self.count(name)
        } else {
            self.refused(name)
        }
        may
    }

    /// Whether it has this entry of it. A use is counted.
    pub(super) fn may_do(&self, name: PermissionName, entry: &str) -> bool {
        let may = self.grants.includes(name, entry);
        if may {
            self.count(name)
        } else {
            self.refused(name)
        }
        may
    }

    /// The same as [`Granted::may`], as a module hears it.
    pub(super) fn need(&self, name: PermissionName) -> Result<(), HostError> {
        if self.may(name) { Ok(()) } else { Err(HostError::NotGranted) }
    }

    /// The same, for a request to a peer.
    pub(super) fn need_peer(&self) -> Result<(), PeerError> {
        if self.may(PermissionName::PeerSend) { Ok(()) } else { Err(PeerError::NotGranted) }
    }

    /// Whether peers have anything to do with it: then it may ask who they are.
    pub(super) fn knows_peers(&self) -> bool {
        let names = [PermissionName::PeerSend, PermissionName::RoutePeer, PermissionName::Hook];
        names.into_iter().any(|name| self.grants.has(name))
    }

    /// The most bytes of this quota; none where it is not bounded, or not granted, which [`Granted::need`] has refused.
    pub(super) fn bytes(&self, name: PermissionName) -> Option<u64> {
        self.grants.get(name)?.megabytes().map(|megabytes| megabytes << 20)
    }

    fn count(&self, name: PermissionName) {
        let place = PermissionName::ALL.iter().position(|known| *known == name).unwrap_or(0);
        self.counts.0[place].fetch_add(1, Ordering::Relaxed);
        self.used.changed.store(true, Ordering::Relaxed);
    }

    fn refused(&self, name: PermissionName) {
        tracing::debug!(module = self.module, permission = name.name(), "not granted");
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn what_is_granted_is_counted_and_the_counts_last() {
        let folder = tempfile::tempdir().unwrap();
        let used = Used::open(folder.path());
        let granted = Granted::new("m", Grants::parse(["kv.quota=2", "module.call=files"]).unwrap(), &used);
        assert!(granted.may(PermissionName::KvQuota) && granted.may(PermissionName::KvQuota));
        assert_eq!(granted.bytes(PermissionName::KvQuota), Some(2 << 20));
        assert_eq!(granted.need(PermissionName::PeerSend), Err(HostError::NotGranted));
        assert!(granted.may_do(PermissionName::ModuleCall, "files"));
        assert!(!granted.may_do(PermissionName::ModuleCall, "messaging") && !granted.knows_peers());
        used.write().unwrap();
        let again = Used::open(folder.path());
        let text = std::fs::read_to_string(folder.path().join(USED)).unwrap();
        assert_eq!(text, r#"{"m":{"kv.quota":2,"module.call":1}}"#);
        assert_eq!(again.of("m").0[0].load(Ordering::Relaxed), 2);
        again.forget("m");
        again.write().unwrap();
        assert_eq!(std::fs::read_to_string(folder.path().join(USED)).unwrap(), "{}");
        std::fs::write(folder.path().join(USED), "no json").unwrap();
        assert_eq!(Used::open(folder.path()).of("m").0[0].load(Ordering::Relaxed), 0);
    }
}
