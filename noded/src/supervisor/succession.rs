//! A new identity for a node that does not run, and its taking back: the caged unsealer signs and seals, here the outcome is put
//! in place. What it replaces is moved aside: the keystore, and the trail with its filed segments.
//!
//! Keystore, state and trail are exchanged in one step (`restore`): before it the home is the earlier identity's, but for a closed segment
//! that is filed by then; after it the other one's, whoever has to carry it to its end.

use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use openred_proto::audit::{Content, SLOT_BYTES};
use openred_proto::id::{NodeId, UnixMillis};
use openred_proto::limits::LINEAGE;
use openred_proto::unseal::{About, Order, Refused};

use super::StartFailure;
use super::backup::{Backup, failed, read_state, resolved};
use super::create::small_with;
use super::filing::file_closed;
use super::keystore::open;
use super::places::lock;
use super::restore::{Change, Finished, Layout, finish};
use crate::cli::{Exit, Failure, Passphrase};
use crate::store::bound_to;

/// The older keystore stays closed: with another passphrase it may be tried again.
pub(crate) const OLDER_LOCKED: &str = "keystore.older-locked";

/// A refusal where two keystores are in play, with the name of the one that it is about.
fn which(failure: StartFailure, here: &Path, older: &Path) -> Failure {
    let StartFailure::Keystore { refused, fault } = failure else { return failure.into() };
    let closed = |place: &Path| format!("{}: this passphrase or identity does not open it", place.display());
    match refused {
        Refused::Secret => {
            let way_out = "give what opens the keystore here; if the older one has another passphrase, that goes with \
                           --older-passphrase-file";
            Failure::new(Exit::Locked, "keystore.locked", closed(here), way_out)
        }
        Refused::OlderSecret => {
            let way_out = "give what the older one was sealed with: --older-passphrase-file or --older-identity-file";
            Failure::new(Exit::Locked, OLDER_LOCKED, closed(older), way_out)
        }
        Refused::OlderKeystore => {
            let what = format!("{}: {fault}", older.display());
            Failure::new(
                Exit::Failed,
                "keystore.older",
                what,
                "name the keystore that the rotation moved aside, or its backup",
            )
        }
        _ => StartFailure::Keystore { refused, fault }.into(),
    }
}

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
        if let Some(Finished { change: Change::Successor(_), aside: Some(aside) }) = &self.finished {
            return self.done(aside, &self.secret);
        }
        let keystore = open(&self.home.keystore())?;
        let order = || self.order(&[]);
        let (about, sealed) = small_with(&self.workshop, "succeed", keystore.into(), None, order)?;
        let change = Change::Successor(about.node.to_string());
        self.change(change, about, &sealed, Some(&self.secret))
    }

    /// `key take-back OLDER`: the identity of the keystore in `older`, which `secret` opens if the one of the keystore here does
    /// not, goes on itself; the one here is whom it named.
    pub(crate) fn take_back(&self, older: &Path, secret: Option<&Passphrase>) -> Result<Changed, Failure> {
        let _lock = lock(self.home)?;
        if let Some(Finished { change: Change::TakenBack(_), aside: Some(aside) }) = &self.finished {
            return self.done(aside, secret.unwrap_or(&self.secret));
        }
        let (here, older) = (self.home.keystore(), resolved(older)?);
        let (first, second) = (open(&older)?, open(&here)?);
        let order = || {
            let older = secret.map(Passphrase::bytes).transpose()?.unwrap_or_default();
            Ok(Order { older, ..self.order(&[])? })
        };
        let done = small_with(&self.workshop, "take-back", first.into(), Some(second.into()), order);
        let (about, sealed) = done.map_err(|failure| which(failure, &here, &older))?;
        // It is sealed as the older one was, and opens with the same.
        self.change(taken_back(&about), about, &sealed, Some(secret.unwrap_or(&self.secret)))
    }

    /// `key take-back --of`: the identity here goes on itself; somebody else named `successor`.
    pub(crate) fn take_back_of(&self, successor: NodeId) -> Result<Changed, Failure> {
        let _lock = lock(self.home)?;
        if let Some(Finished { change: Change::TakenBack(_), aside: Some(aside) }) = &self.finished {
            return self.done(aside, &self.secret);
        }
        let here = self.home.keystore();
        let (first, second) = (open(&here)?, open(&here)?);
        let order = || Ok(Order { named: Some(successor), ..self.order(&[])? });
        let done = small_with(&self.workshop, "take-back", first.into(), Some(second.into()), order);
        let (about, sealed) = done.map_err(|failure| which(failure, &here, &here))?;
        self.change(taken_back(&about), about, &sealed, None)
    }

    /// What this command is to do was cut short before, and is whole since it began: done twice it would be another change.
    fn done(&self, aside: &Path, opens: &Passphrase) -> Result<Changed, Failure> {
        let here = open(&self.home.keystore())?;
        let order = || Ok(Order::with_secret(opens.bytes()?, UnixMillis(super::now())));
        let (about, _) = small_with(&self.workshop, "rewrap", here.into(), None, order)?;
        Ok(Changed { about, aside: aside.to_owned() })
    }

    /// `opens`: what opens the new keystore, where its identity is not the one that was here; state and trail are that one's.
    fn change(
        &self,
        change: Change,
        about: About,
        sealed: &[u8],
        opens: Option<&Passphrase>,
    ) -> Result<Changed, Failure> {
        self.reaches_back(&about)?;
        let home = self.home;
        let state = match (home.vault_state().symlink_metadata(), opens) {
            // Under the new keystore: that it opens the state is proven before anything is changed.
            (Ok(_), Some(secret)) => Some(self.renewed_with(secret, sealed, &read_state(&home.vault_state())?)?.1),
            _ => None,
        };
        let layout = Layout::of_key(home)?;
        layout.put(&home.keystore(), sealed)?;
        if let Some(state) = state.filter(|state| !state.is_empty()) {
            // What cannot be filed is not left behind: nothing is changed then.
            let unfiled = file_closed(home, &self.workshop, self.auditor.as_deref());
            unfiled.into_iter().next().map_or(Ok(()), |unfiled| Err(unfiled.why))?;
            layout.put_state(&state)?;
            layout.copy_trail()?;
        }
        layout.commit(change, |_| ())?;
        let aside = finish(home, |_| ())?.and_then(|finished| finished.aside);
        // The keystore that was here lies there.
        aside.map(|aside| Changed { about, aside }).ok_or_else(|| failed(home.path())(ErrorKind::NotFound.into()))
    }

    /// Database and trail belong to the identity that ran last. One that the new lineage does not reach back to could not take
    /// them over at the next start.
    fn reaches_back(&self, about: &About) -> Result<(), Failure> {
        let database = self.home.database();
        let bound = match database.parent().map(Path::canonicalize) {
            Some(Ok(folder)) => bound_to(&folder.join(database.file_name().unwrap_or_default())),
            _ => Ok(None),
        };
        let bound = bound.map_err(|error| {
            let what = format!("{}: {error}", database.display());
            Failure::new(Exit::Failed, "state.unread", what, "start the node once with `openred up`, then try again")
        })?;
        let earlier = about.lineage.earlier();
        let is_known = |node: &NodeId| *node == about.node || earlier.contains(node);
        let foreign = bound.into_iter().chain(self.trail_of()?).find(|node| !is_known(node));
        let Some(foreign) = foreign else { return Ok(()) };
        let what = format!(
            "{}: the node last ran as {foreign}, {LINEAGE} changes of identity ago; after one more its state would not be known as \
             its own",
            self.home.path().display()
        );
        let way_out =
            "start it once with `openred up`, so that it takes its state over, then try again; nothing was changed";
        Err(Failure::new(Exit::Conflict, "keystore.succession", what, way_out))
    }

    /// Whose the segments of the trail are, as their headers say.
    fn trail_of(&self) -> Result<Vec<NodeId>, Failure> {
        let mut nodes = Vec::new();
        for segment in self.home.audit_segments() {
            let mut slot = [0; SLOT_BYTES];
            let read = File::open(&segment).and_then(|file| file.read_exact_at(&mut slot, 0));
            match (read, Content::of(&slot)) {
                (Ok(()), Content::Header(header, _)) => nodes.push(header.node),
                // A segment that is cut or changed is for the next start to name.
                (Ok(()), _) => {}
                (Err(error), _) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::UnexpectedEof) => {}
                (Err(error), _) => return Err(failed(&segment)(error)),
            }
        }
        Ok(nodes)
    }
}

fn taken_back(about: &About) -> Change {
    Change::TakenBack(about.node.to_string())
}
