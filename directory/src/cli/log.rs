//! `directory log verify`: walks the log in the database, whether the directory runs or not, and names the first fault. It needs the
//! home alone and changes nothing.

use std::path::PathBuf;

use clap::Subcommand;
use openred_proto::log::head::{HEAD_BYTES, Head};
use openred_proto::log::tree;

use super::render::{self, LogVerified};
use crate::config::Loaded;
use crate::daemon;
use crate::error::{Error, Result};
use crate::identity::Identity;
use crate::store::CardReader;
use crate::store::postgres::PostgresStore;
use crate::store::sqlite::SqliteStore;
use crate::store::walk::{Fault, Walked};

/// Commands on the log.
#[derive(Debug, Subcommand)]
pub(super) enum Log {
    /// Check every hash of the log, and that each card is the entry that it should be.
    Verify {
        /// Also check that the log still begins as this signed head says; a file, as `GET /log/head` gives it in `head`.
        #[arg(long, value_name = "FILE")]
        head: Option<PathBuf>,
    },
}

pub(super) fn run(loaded: &Loaded, command: Log, json: bool) -> Result<()> {
    let Log::Verify { head } = command;
    let head = head.map(|file| read_head(loaded, &file)).transpose()?;
    let verified = match daemon::database(&loaded.config)? {
        Some(target) => {
            let mut store = PostgresStore::open(&target)?;
            let walked = store.walk_log()?;
            judged(&mut store, walked, head)?
        }
        None => {
            let database = loaded.home.database();
            // To open it would make it.
            std::fs::metadata(&database).map_err(Error::file("open", &database))?;
            let mut store = SqliteStore::open_checked(&database)?;
            let walked = store.walk_log()?;
            judged(&mut store, walked, head)?
        }
    };
    super::print(&render::log_verified(&verified, json))?;
    if verified.ok { Ok(()) } else { Err(Error::LocalDegraded) }
}

fn judged(
    store: &mut dyn CardReader,
    walked: std::result::Result<Walked, Fault>,
    head: Option<Head>,
) -> Result<LogVerified> {
    Ok(match walked {
        Ok(walked) => {
            let fault = head.map(|head| behind(store, &head)).transpose()?.flatten();
            let (size, root) = (walked.end.size, hex::encode(walked.end.root));
            LogVerified { ok: fault.is_none(), size, root, cards: walked.cards, fault }
        }
        Err(fault) => {
            let end = store.log_end()?;
            let (size, root) = (end.size, hex::encode(end.root));
            LogVerified { ok: false, size, root, cards: 0, fault: Some(fault.to_string()) }
        }
    })
}

/// Reads a head that this directory is said to have signed.
fn read_head(loaded: &Loaded, file: &std::path::Path) -> Result<Head> {
    use std::io::Read as _;
    let mut note = Vec::new();
    let opened = std::fs::File::open(file).map_err(Error::file("open", file))?;
    opened.take(HEAD_BYTES as u64 + 1).read_to_end(&mut note).map_err(Error::file("read", file))?;
    let directory = match loaded.config.upstream() {
        Some(upstream) => upstream.id,
        None => Identity::load(&loaded.home.key())?.id(),
    };
    let wrong = Error::Misuse("--head: not a head that this directory's key signed");
    Head::verify(&note, &directory).map_err(|_| wrong)
}

/// Whether the log does not go on from a head.
fn behind(store: &mut dyn CardReader, head: &Head) -> Result<Option<String>> {
    let size = head.size;
    if size > store.log_end()?.size {
        return Ok(Some(format!("the head has {size} entries, and the log fewer: it was set back")));
    }
    let root = tree::root(size, |position| store.log_hash(position))?;
    Ok((root != head.root).then(|| format!("the first {size} entries are others than those of the head")))
}
