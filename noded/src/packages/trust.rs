//! Whose packages are taken: publishers that the operator trusts, and those that he does no more. One file has both, a key on each line, with a
//! `-` before one that was distrusted: upgrades that it signed are refused too, so that a key which was lost cannot be used.

use std::path::PathBuf;

use openred_proto::id::NodeId;

use super::{Packages, malformed, read_text};
use crate::cli::{Exit, Failure};
use crate::supervisor::put;

/// The file's name.
pub(super) const TRUST: &str = "trusted.keys";
/// Publishers that are trusted at a time.
const TRUSTED: usize = 64;
/// Publishers that are remembered as distrusted.
const DISTRUSTED: usize = 512;

/// See the file's head.
#[derive(Debug, Default)]
pub(super) struct Keys {
    pub(super) trusted: Vec<NodeId>,
    pub(super) distrusted: Vec<NodeId>,
}

impl Packages {
    /// Publishers whose packages are taken without naming them.
    pub(crate) fn trusted(&self) -> Result<Vec<NodeId>, Failure> {
        Ok(self.keys()?.trusted)
    }

    pub(super) fn keys(&self) -> Result<Keys, Failure> {
        let place = self.trust_file();
        let text = match read_text(&place) {
            Err(failure) if failure.exit == Exit::NotFound => return Ok(Keys::default()),
            text => text?,
        };
        let mut keys = Keys::default();
        for line in text.lines().filter(|line| !line.is_empty()) {
            let (list, most, key) = match line.strip_prefix('-') {
                Some(key) => (&mut keys.distrusted, DISTRUSTED, key),
                None => (&mut keys.trusted, TRUSTED, line),
            };
            let key = key.parse().map_err(|_| malformed(&place, "a line of it is no did:key"))?;
            if list.len() < most {
                list.push(key);
            }
        }
        Ok(keys)
    }

    pub(super) fn trust(&self, publisher: &NodeId) -> Result<(), Failure> {
        let mut keys = self.keys()?;
        if keys.trusted.contains(publisher) {
            return Ok(());
        }
        if keys.trusted.len() >= TRUSTED {
            return Err(full(
                &format!("{TRUSTED} publishers are trusted already"),
                "`openred module distrust` one of them",
            ));
        }
        keys.distrusted.retain(|known| known != publisher);
        keys.trusted.push(*publisher);
        self.write_keys(&keys)
    }

    /// Also one that was named for a module alone, with `--publisher`.
    pub(super) fn distrust(&self, publisher: &NodeId) -> Result<(), Failure> {
        let mut keys = self.keys()?;
        let is_of = |record: &super::Record| record.publisher().is_ok_and(|of| of == *publisher);
        let is_trusted = keys.trusted.contains(publisher);
        let is_known = is_trusted || self.others()?.iter().any(|installed| is_of(&installed.record));
        if !is_known || keys.distrusted.contains(publisher) {
            let what = format!("{publisher} was not trusted");
            return Err(Failure::new(Exit::NotFound, "package.trust", what, "`openred module trusted` lists who is"));
        }
        if keys.distrusted.len() >= DISTRUSTED {
            let way_out = "`openred module remove` what it has signed; then its key is of no use here";
            return Err(full(&format!("{DISTRUSTED} publishers were distrusted already"), way_out));
        }
        keys.trusted.retain(|known| known != publisher);
        keys.distrusted.push(*publisher);
        self.write_keys(&keys)
    }

    fn write_keys(&self, keys: &Keys) -> Result<(), Failure> {
        let trusted = keys.trusted.iter().map(|publisher| format!("{publisher}\n"));
        let distrusted = keys.distrusted.iter().map(|publisher| format!("-{publisher}\n"));
        let text: String = trusted.chain(distrusted).collect();
        put(&self.trust_file(), text.as_bytes(), true, |_| ())
    }

    fn trust_file(&self) -> PathBuf {
        self.folder.join(TRUST)
    }
}

fn full(what: &str, way_out: &str) -> Failure {
    Failure::new(Exit::Conflict, "package.trust", what.to_owned(), way_out)
}
