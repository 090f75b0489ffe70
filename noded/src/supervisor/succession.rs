//! A new identity for a node that does not run, and its taking back: the caged unsealer signs and seals, here the outcome is put
//! in place. What it replaces is kept aside: the keystore under a second name, the trail as a copy.
//!
//! The keystore's rename is the moment of the change: before it the home is the earlier identity's, untouched but for the copies
//! beside it; after it the other one's, which starts with whatever of the rest is done.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use openred_policy::socket::sync_directory;
use openred_proto::id::NodeId;
use openred_proto::unseal::About;

use super::backup::{Backup, failed, read_state, resolved};
use super::create::small_with;
use super::keystore::{open, put};
use super::places::{lock, make_private};
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
            Ok(_) if is_another => Some(self.renewed(sealed, &read_state(&home.vault_state())?)?.1),
            _ => None,
        };
        let aside = home.path().join(format!("replaced-{}", super::now()));
        fs::create_dir(&aside).and_then(|()| make_private(&aside)).map_err(failed(&aside))?;
        let kept = aside.join("keystore.age");
        fs::hard_link(home.keystore(), &kept).map_err(failed(&kept))?;
        let state = state.filter(|state| !state.is_empty());
        if state.is_some() {
            self.copy_trail(&aside.join("audit"))?;
        }
        sync_directory(&aside).and_then(|()| sync_directory(home.path())).map_err(failed(&aside))?;
        // From here on it is the other identity's. Its vault knows the earlier one's trail, and begins its own over it.
        put(&home.keystore(), sealed, true, |_| ())?;
        if let Some(state) = &state {
            put(&home.vault_state(), state, true, |_| ())?;
            let (filed, target) = (home.audit_filed(), aside.join("audit/filed"));
            if filed.symlink_metadata().is_ok() {
                fs::rename(&filed, &target).map_err(failed(&filed))?;
                sync_directory(&aside.join("audit")).map_err(failed(&target))?;
            }
        }
        Ok(Changed { about, aside })
    }

    /// The segments as they stand: the trail belongs to the identity that signed it, and what is here is written over.
    fn copy_trail(&self, aside: &Path) -> Result<(), Failure> {
        fs::create_dir(aside).and_then(|()| make_private(aside)).map_err(failed(aside))?;
        for segment in self.home.audit_segments() {
            let target = aside.join(segment.file_name().unwrap_or_default());
            match fs::copy(&segment, &target) {
                Ok(_) => File::open(&target).and_then(|copy| copy.sync_all()).map_err(failed(&target))?,
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(failed(&segment)(error)),
            }
        }
        sync_directory(aside).map_err(failed(aside))
    }
}
