//! `directory db …`: the database while nobody serves.

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
    /// Bring the database to this version's schema, after a snapshot. `serve` does the same by itself.
    Migrate {
        /// Try it on a copy, and say what would be done.
        #[arg(long)]
        dry_run: bool,
    },
}

pub(super) fn run(loaded: &Loaded, command: &Db, json: bool) -> Result<()> {
    let Db::Migrate { dry_run } = command;
    let socket = loaded.home.socket();
    if client::is_running(&socket) {
        return Err(Error::LocalAlreadyRunning { socket });
    }
    if let Some(target) = daemon::database(&loaded.config)? {
        return print(&render::migrated(&PostgresStore::migrate(&target, *dry_run)?, json));
    }
    let path = loaded.home.database();
    if !path.exists() {
        return Err(Error::LocalNoDatabase { path });
    }
    let migration = migrate::run(&path, *loaded.config.store.max_megabytes.get_ref(), *dry_run)?;
    print(&render::migrated(&migration, json))
}
