//! A new identity for a node that does not run, and its taking back: the caged unsealer signs and seals, here the outcome is put
//! in place. What it replaces is moved aside, never deleted.
//!
//! The order is such that at every moment the home is that of one identity, whole: first everything that either identity can
//! start with, the keystore last, in one rename.

use std::fs;
use std::path::{Path, PathBuf};

use openred_policy::socket::sync_directory;
use openred_proto::id::NodeId;
use openred_proto::unseal::About;

use super::backup::{Backup, failed, read_state, resolved};
use super::create::small_with;
use super::keystore::{open, put};
use super::places::{lock, make_private, remove};
use crate::cli::Failure;

/// What came of it.
pub(crate) struct Changed {
    /// Of the keystore that is here now.
    pub(crate) about: About,
    /// Where the keystore and the trail that were here lie.
    pub(crate) aside: PathBuf,
}

impl Backup<'_> {
    /// `key rotate identity`.
    pub(crate) fn succeed(&self) -> Result<Changed, Failure> {
        let _lock = lock(self.home)?;
        let keystore = open(&self.home.keystore())?;
        let order = || self.order(&[]);
        let (about, sealed) = small_with(&self.workshop, "succeed", keystore.into(), None, order)?;
        self.change(about, &sealed, true)
    }

    /// `key take-back`: `older` is the keystore whose identity goes on itself; without `successor` the keystore here is the
    /// one that it named.
    pub(crate) fn take_back(&self, older: Option<&Path>, successor: Option<NodeId>) -> Result<Changed, Failure> {
        let _lock = lock(self.home)?;
        let here = open(&self.home.keystore())?;
        let older = match older {
            Some(place) => open(&resolved(place)?)?,
            None => open(&self.home.keystore())?,
        };
        let order = || {
            let order = self.order(&[])?;
            Ok(openred_proto::unseal::Order { named: successor, ..order })
        };
        let (about, sealed) = small_with(&self.workshop, "take-back", older.into(), Some(here.into()), order)?;
        self.change(about, &sealed, successor.is_none())
    }

    /// `is_another`: the identity is not the one that was here; state and trail are that one's.
    fn change(&self, about: About, sealed: &[u8], is_another: bool) -> Result<Changed, Failure> {
        let home = self.home;
        let state = match home.vault_state().symlink_metadata() {
            // Under the new keystore: that it opens the state is proven before anything is changed.
            Ok(_) if is_another => Some(self.renewed("adopt", sealed, &read_state(&home.vault_state())?)?.1),
            _ => None,
        };
        let aside = home.path().join(format!("replaced-{}", super::now()));
        fs::create_dir(&aside).and_then(|()| make_private(&aside)).map_err(failed(&aside))?;
        let kept = aside.join("keystore.age");
        fs::hard_link(home.keystore(), &kept).map_err(failed(&kept))?;
        sync_directory(&aside).and_then(|()| sync_directory(home.path())).map_err(failed(&aside))?;
        let state = state.filter(|state| !state.is_empty());
        if let Some(state) = &state {
            // Until the keystore is in its place the older identity may start: over a gap in its trail, which says so.
            make_private(&home.audit()).map_err(failed(&home.audit()))?;
            put(&home.audit_anew(), b"", true, |_| ())?;
            self.put_trail_aside(&aside.join("audit"))?;
            put(&home.vault_state(), state, true, |_| ())?;
        }
        put(&home.keystore(), sealed, true, |_| ())?;
        if state.is_some() {
            // The new identity's trail begins without one: its state knows of none.
            remove(&home.audit_anew()).map_err(failed(&home.audit_anew()))?;
        }
        Ok(Changed { about, aside })
    }
    /// A trail belongs to the identity that signs it: everything of it but the marker.
    fn put_trail_aside(&self, aside: &Path) -> Result<(), Failure> {
        let audit = self.home.audit();
        fs::create_dir(aside).and_then(|()| make_private(aside)).map_err(failed(aside))?;
        for entry in fs::read_dir(&audit).map_err(failed(&audit))? {
            let place = entry.map_err(failed(&audit))?.path();
            if place != self.home.audit_anew() {
                fs::rename(&place, aside.join(place.file_name().unwrap_or_default())).map_err(failed(&place))?;
            }
        }
        sync_directory(aside).and_then(|()| sync_directory(&audit)).map_err(failed(aside))
    }
}
