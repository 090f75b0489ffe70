//! A whole and consistent copy of the database while it is in use, and the look that tells a sound one from a damaged one.

use std::fs::File;
use std::io::ErrorKind;
use std::path::Path;

use openred_proto::id::NodeId;
use rusqlite::backup::{Backup, StepResult};
use rusqlite::config::DbConfig;
use rusqlite::types::FromSql;
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension as _};

use super::{Result, StoreError, schema};
use crate::link::methods::Methods;

/// Name of the copy in the state directory; the operator's command takes it from there and removes it.
pub(crate) const COPY: &str = "backup.sqlite";
/// Pages copied at a time: 4 MiB. Nobody else writes meanwhile, so the size only bounds SQLite's own buffers.
const PAGES: i32 = 1024;

/// Copies the database into [`COPY`] in `directory`, in place of an earlier one, durably; its length in bytes.
pub(super) fn copy(connection: &Connection, directory: &Path) -> Result<u64> {
    let place = directory.join(COPY);
    let local = |error: std::io::Error| match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => StoreError::Full,
        _ => StoreError::Open(ErrorCode::CannotOpen),
    };
    match std::fs::remove_file(&place) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(local(error)),
        _ => {}
    }
    let copied = pages(connection, &place);
    if copied.is_err() {
        let _ = std::fs::remove_file(&place);
    }
    copied?;
    let file = File::open(&place).map_err(local)?;
    file.sync_all().map_err(local)?;
    Ok(file.metadata().map_err(local)?.len())
}

fn pages(connection: &Connection, place: &Path) -> Result<()> {
    let mut target = Connection::open(place)?;
    // A copy that was cut short is thrown away, so it needs no journal.
    target.pragma_update(None, "journal_mode", "OFF")?;
    let backup = Backup::new(connection, &mut target)?;
    loop {
        match backup.step(PAGES)? {
            StepResult::Done => return Ok(()),
            StepResult::More => {}
            // This connection holds the one lock; busy is only a copy that somebody else has opened.
            _ => return Err(StoreError::InUse),
        }
    }
}

/// Whose state the database of a node that does not run is; none where nobody has run on it. It is the caged process's file:
/// nothing in it is run, and nothing is written.
pub(crate) fn bound_to(file: &Path) -> Result<Option<NodeId>> {
    let bound: Option<[u8; 32]> = noted(file, "node")?;
    Ok(bound.map(NodeId::from_bytes))
}

/// What the operator has decided about methods, from the database of a node that does not run; as of [`bound_to`].
pub(crate) fn decided_methods(file: &Path) -> Result<Methods> {
    let kept: Option<Vec<u8>> = noted(file, "methods")?;
    kept.map_or(Ok(Methods::default()), |bytes| Methods::decode(&bytes).ok_or(StoreError::Damaged("meta")))
}

fn noted<T: FromSql>(file: &Path, name: &str) -> Result<Option<T>> {
    if file.symlink_metadata().is_err() {
        return Ok(None);
    }
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NOFOLLOW;
    let connection = Connection::open_with_flags(file, flags)?;
    distrust(&connection)?;
    if schema::version(&connection)? == 0 {
        return Ok(None);
    }
    let noted = connection.query_row("SELECT value FROM meta WHERE name = ?1", [name], |row| row.get(0));
    Ok(noted.optional()?)
}

/// The settings for a file that may come from anywhere.
fn distrust(connection: &Connection) -> Result<()> {
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, false)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_VIEW, false)?;
    connection.pragma_update(None, "trusted_schema", false)?;
    connection.pragma_update(None, "cell_size_check", true)?;
    Ok(connection.pragma_update(None, "temp_store", "MEMORY")?)
}

/// What is known of a copy after it was read as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sound {
    /// Schema version.
    pub(crate) schema: u32,
    /// Links in it, those that have ended too.
    pub(crate) links: u32,
}

/// Opens a copy and reads all of it. It may come from anywhere: it has to have the very tables that this program makes and nothing else,
/// nothing in it is run, and it is checked page by page.
pub(crate) fn check(file: &Path) -> Result<Sound> {
    let connection = Connection::open_with_flags(file, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    distrust(&connection)?;
    let schema = schema::version(&connection)?;
    schema::check_shape(&connection, schema)?;
    let verdict: String = connection.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))?;
    if verdict != "ok" {
        return Err(StoreError::Damaged("database"));
    }
    let links = connection.query_row("SELECT count(*) FROM link", [], |row| row.get(0))?;
    Ok(Sound { schema, links })
}
