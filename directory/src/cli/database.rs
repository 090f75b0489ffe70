//! `directory db …`: the database while nobody serves.

use std::path::Path;

use clap::Subcommand;

use super::{print, render};
use crate::admin::client;
use crate::config::Loaded;
use crate::daemon;
use crate::error::{Error, Result};
use crate::store::postgres::PostgresStore;
use crate::store::sqlite::migrate;

#[derive(Debug, Subcommand)]
pub(super) enum Db {
    /// Look through the whole database, also while the directory serves: seconds for a million nodes.
    Check,
    /// Bring the database to this version's schema, after a snapshot. `serve` does the same by itself.
    Migrate {
        /// Try it on a copy, and say what would be done.
        #[arg(long)]
        dry_run: bool,
    },
}

pub(super) fn run(loaded: &Loaded, command: &Db, json: bool) -> Result<()> {
    if let Some(target) = daemon::database(&loaded.config)? {
        let Db::Migrate { dry_run } = command else {
            // Its pages are for its own tools (pg_amcheck); what is looked through here is what stands in them.
            let walked = PostgresStore::open(&target)?.walk_log()?;
            let faults: Vec<String> = walked.err().iter().map(ToString::to_string).collect();
            return checked(Path::new("store.url"), &faults, json);
        };
        is_stopped(loaded)?;
        return print(&render::migrated(&PostgresStore::migrate(&target, *dry_run)?, json));
    }
    let path = loaded.home.database();
    if !path.exists() {
        return Err(Error::LocalNoDatabase { path });
    }
    let Db::Migrate { dry_run } = command else {
        return checked(&path, &migrate::faults(&path), json);
    };
    is_stopped(loaded)?;
    let migration = migrate::run(&path, *loaded.config.store.max_megabytes.get_ref(), *dry_run)?;
    print(&render::migrated(&migration, json))
}

fn checked(what: &Path, faults: &[String], json: bool) -> Result<()> {
    print(&render::database(what, faults, json))?;
    if faults.is_empty() { Ok(()) } else { Err(Error::LocalDegraded) }
}

fn is_stopped(loaded: &Loaded) -> Result<()> {
    let socket = loaded.home.socket();
    if client::is_running(&socket) { Err(Error::LocalAlreadyRunning { socket }) } else { Ok(()) }
}
