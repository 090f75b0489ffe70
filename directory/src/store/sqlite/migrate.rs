//! From an older schema to this one: a snapshot first, all steps in one transaction, never back. A newer schema is refused by name.

use std::path::{Path, PathBuf};

use rusqlite::Connection;
use serde::Serialize;

use super::{CREATE, SCHEMA, SqliteStore, UPGRADE_1, decisions, followed, log, seen, successions};
use crate::error::{Error, Result};

/// What was done, or would be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Migration {
    /// Schema that was found.
    pub found: i64,
    /// Schema of this program.
    pub known: i64,
    /// What the steps add.
    pub steps: Vec<&'static str>,
    /// The copy of what was there before.
    pub snapshot: Option<PathBuf>,
    /// Nothing was changed.
    pub dry_run: bool,
}

/// A step: the schemas that need it, what it adds, its statements.
type Step = (std::ops::Range<i64>, &'static str, &'static str);

const STEPS: [Step; 7] = [
    (0..1, "nodes, evidence, bans", CREATE),
    (1..2, "indexes of listed nodes, the note of the last run", UPGRADE_1),
    (0..3, "successions", successions::CREATE),
    (0..4, "the log of cards, and those that are held as its first entries", log::CREATE),
    (0..5, "quarantine, bans of prefixes, invites, approvals, the history of changes", decisions::CREATE),
    (0..6, "cards by their place in the log, whose log a mirror follows", followed::CREATE),
    (0..7, "when each card came last, apart from the cards", seen::CREATE),
];

/// Brings an open database up to date.
pub(super) fn upgrade(connection: &mut Connection, path: &Path) -> Result<Migration> {
    let found: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let mut migration = Migration { found, known: SCHEMA, steps: Vec::new(), snapshot: None, dry_run: false };
    if found == SCHEMA {
        return Ok(migration);
    }
    if !(0..SCHEMA).contains(&found) {
        return Err(Error::LocalSchemaNewer { found, known: SCHEMA });
    }
    let steps = STEPS.iter().filter(|(needed, ..)| needed.contains(&found));
    migration.steps = steps.clone().map(|(_, what, _)| *what).collect();
    if found > 0 {
        let snapshot = beside(path, &format!("schema-{found}"));
        copy(connection, &snapshot)?;
        migration.snapshot = Some(snapshot);
    }
    // Rolled back when it is dropped.
    let change = connection.transaction()?;
    for (_, _, statements) in steps {
        change.execute_batch(statements)?;
        // What comes after knows a card by its place in the log.
        if *statements == log::CREATE {
            log::take_over(&change)?;
        }
    }
    change.pragma_update(None, "user_version", SCHEMA)?;
    change.commit()?;
    Ok(migration)
}

/// `directory db migrate`: nobody serves meanwhile.
///
/// # Errors
/// The database's; a newer schema.
pub fn run(path: &Path, max_megabytes: u32, dry_run: bool) -> Result<Migration> {
    if !dry_run {
        return SqliteStore::open_and_tell(path, max_megabytes).map(|(_, migration)| migration);
    }
    let trial = beside(path, "dry-run");
    let tried = SqliteStore::connect(path).and_then(|store| {
        copy(&store.connection, &trial)?;
        SqliteStore::open_and_tell(&trial, max_megabytes)
    });
    let told = tried.map(|(_, migration)| migration);
    let leftovers = ["", "-wal", "-shm"].map(|end| PathBuf::from(format!("{}{end}", trial.display())));
    let snapshots = (0..SCHEMA).map(|found| beside(&trial, &format!("schema-{found}")));
    leftovers.into_iter().chain(snapshots).for_each(|file| drop(std::fs::remove_file(file)));
    let migration = told?;
    Ok(Migration { snapshot: None, dry_run, ..migration })
}

/// What is damaged in a database, as SQLite says it; none when it is sound.
#[must_use]
pub fn faults(path: &Path) -> Vec<String> {
    let look = || -> Result<Vec<String>> {
        let store = SqliteStore::open_reader(path)?;
        let mut select = store.connection.prepare("PRAGMA integrity_check(20)")?;
        let found = select.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<Vec<String>>>()?;
        Ok(found.into_iter().filter(|line| line != "ok").collect())
    };
    look().unwrap_or_else(|error| vec![error.to_string()])
}

fn beside(path: &Path, what: &str) -> PathBuf {
    PathBuf::from(format!("{}.{what}", path.display()))
}

/// A whole copy. One that an attempt before left is replaced: the database has not changed its schema since.
fn copy(connection: &Connection, to: &Path) -> Result<()> {
    let _ = std::fs::remove_file(to);
    connection.execute("VACUUM INTO ?1", [to.display().to_string()])?;
    Ok(())
}
