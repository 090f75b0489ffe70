//! `[directory]`: how directories and their mirrors are spoken to.

use std::path::PathBuf;
use std::time::Duration;

use openred_proto::admission::Invite;
use serde::{Deserialize, Serialize};

use super::{DIRECTORIES, DirectoryAddress};

/// `[directory]`: the client's side.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DirectoryConfig {
    /// PEM file of the certificate authorities to trust; empty: the public web's.
    pub ca_file: PathBuf,
    /// Life of the card that is registered, in hours; renewed at a third of it.
    pub card_hours: u32,
    /// Invites that directories' operators gave; each is shown to the one that it is for.
    pub invites: Vec<String>,
    /// Mirrors of the configured directories, each by its directory's id and its own URL: asked before those for look-ups.
    pub mirrors: Vec<DirectoryAddress>,
    /// How peers are looked up.
    pub look_ups: LookUps,
}

/// What directories and mirrors are told of whom this node seeks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LookUps {
    /// Its id.
    Plain,
    /// The first digits of its id, which it shares with up to 63 others.
    Prefix,
}

impl Default for DirectoryConfig {
    fn default() -> Self {
        Self {
            ca_file: PathBuf::new(),
            card_hours: 24,
            invites: Vec::new(),
            mirrors: Vec::new(),
            look_ups: LookUps::Plain,
        }
    }
}

impl DirectoryConfig {
    /// Life of the registered card.
    #[must_use]
    pub fn card_life(&self) -> Duration {
        Duration::from_secs(u64::from(self.card_hours) * 3600)
    }

    /// The invites; none when one of them is not one, or there are more than could be meant.
    pub(crate) fn checked_invites(&self) -> Option<Vec<Invite>> {
        let invites = self.invites.iter().map(|invite| invite.parse().ok()).collect::<Option<Vec<Invite>>>();
        invites.filter(|invites| invites.len() <= 4 * DIRECTORIES)
    }

    /// Whether each mirror is one of a directory that is used.
    pub(super) fn mirrors_are_of(&self, directories: &[DirectoryAddress]) -> bool {
        let is_one = |mirror: &DirectoryAddress| directories.iter().any(|directory| directory.id == mirror.id);
        self.mirrors.iter().all(is_one)
    }
}
