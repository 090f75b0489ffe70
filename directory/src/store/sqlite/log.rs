//! The log of cards (docs/protocol.md section 7) in the database: the hash of each complete subtree at its position, one row for how far
//! the log goes, and beside each card where it stands in the log. It grows in the transaction that takes the card, so that
//! after a crash there is a card with its entry or neither; the row is written once a transaction.
//!
//! The salt of an unlisted card is kept with the card and goes with it: from then on nobody can tell what its entry says.

use openred_proto::id::NodeId;
use openred_proto::log::tree::{self, Frontier, kept};
use openred_proto::log::{Hash, Salt, entry};
use rusqlite::{Connection, OptionalExtension as _, params};

use super::{SqliteStore, signed, unsigned};
use crate::error::{Error, Result};
use crate::store::walk::{self, Fault, Walked};
use crate::store::{LogEnd, Logged};

/// The tables; part of the schema since version 4, as are two columns of `nodes`.
pub(super) const CREATE: &str = "
CREATE TABLE log_hashes (position INTEGER PRIMARY KEY, hash BLOB NOT NULL CHECK (length(hash) = 32)) STRICT;
CREATE TABLE log_end (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    size INTEGER NOT NULL,
    root BLOB NOT NULL CHECK (length(root) = 32)
) STRICT;
ALTER TABLE nodes ADD COLUMN log_index INTEGER;
ALTER TABLE nodes ADD COLUMN log_salt BLOB CHECK (log_salt IS NULL OR length(log_salt) = 16);
";

/// How far the log goes.
pub(super) fn end(connection: &Connection) -> Result<LogEnd> {
    let mut select = connection.prepare_cached("SELECT size, root FROM log_end")?;
    let end = select.query_row([], |row| Ok(LogEnd { size: unsigned(row.get(0)?), root: row.get(1)? })).optional()?;
    Ok(end.unwrap_or(LogEnd { size: 0, root: tree::empty_root() }))
}

/// The hash at a position.
pub(super) fn hash(connection: &Connection, position: u64) -> Result<Hash> {
    let mut select = connection.prepare_cached("SELECT hash FROM log_hashes WHERE position = ?1")?;
    Ok(select.query_row([signed(position)], |row| row.get(0))?)
}

/// Writes how far the log goes by now.
pub(super) fn close(connection: &Connection, grown: &Frontier) -> Result<()> {
    let mut write = connection.prepare_cached("INSERT OR REPLACE INTO log_end (one, size, root) VALUES (1, ?1, ?2)")?;
    write.execute(params![signed(grown.size()), grown.root()])?;
    Ok(())
}

/// The log's end while a transaction makes it longer.
pub(super) fn growing<'a>(connection: &Connection, growing: &'a mut Option<Frontier>) -> Result<&'a mut Frontier> {
    match growing {
        Some(growing) => Ok(growing),
        none => {
            let size = end(connection)?.size;
            Ok(none.insert(Frontier::load(size, |position| hash(connection, position))?))
        }
    }
}

/// Adds an entry for a card.
pub(super) fn append(connection: &Connection, log: &mut Frontier, card: &[u8], listed: bool) -> Result<Logged> {
    let salt = if listed { None } else { Some(draw_salt()?) };
    let (index, first) = (log.size(), kept(log.size()));
    let mut insert = connection.prepare_cached("INSERT INTO log_hashes (position, hash) VALUES (?1, ?2)")?;
    for (position, hash) in (first..).zip(log.append(&entry(card, salt.as_ref()))) {
        insert.execute(params![signed(position), hash])?;
    }
    Ok(Logged { index, salt })
}

fn draw_salt() -> Result<Salt> {
    let mut salt = [0; 16];
    getrandom::fill(&mut salt).map_err(|_| Error::LocalRuntime(std::io::ErrorKind::Unsupported.into()))?;
    Ok(salt)
}

/// Begins the log of a database that had none: every card that it holds, in the order of coming.
pub(super) fn take_over(connection: &Connection) -> Result<()> {
    let mut select = connection.prepare("SELECT rowid FROM nodes WHERE card IS NOT NULL ORDER BY rowid")?;
    let rows = select.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<Vec<i64>>>()?;
    let mut log = Frontier::default();
    let mut read = connection.prepare("SELECT card, listed FROM nodes WHERE rowid = ?1")?;
    let mut write = connection.prepare("UPDATE nodes SET log_index = ?2, log_salt = ?3 WHERE rowid = ?1")?;
    for row in rows {
        let (card, listed): (Vec<u8>, bool) = read.query_row([row], |row| Ok((row.get(0)?, row.get(1)?)))?;
        let logged = append(connection, &mut log, &card, listed)?;
        write.execute(params![row, signed(logged.index), logged.salt])?;
    }
    close(connection, &log)
}

impl SqliteStore {
    /// Walks the whole log, then every card, in one view of the database.
    ///
    /// # Errors
    /// The database's.
    pub fn walk_log(&mut self) -> Result<std::result::Result<Walked, Fault>> {
        let view = self.connection.unchecked_transaction()?;
        let end = end(&view)?;
        let walked = match walk_hashes(&view, end)? {
            Some(fault) => Err(fault),
            None => walk_cards(&view, end.size)?.map(|cards| Walked { end, cards }),
        };
        drop(view);
        Ok(walked)
    }
}

fn walk_hashes(view: &Connection, end: LogEnd) -> Result<Option<Fault>> {
    let mut select = view.prepare("SELECT position, hash FROM log_hashes ORDER BY position")?;
    let mut rows = select.query([])?;
    walk::hashes(end, || {
        let row = rows.next()?.map(|row| Ok::<_, Error>((row.get(0).map(unsigned)?, row.get(1)?)));
        row.transpose()
    })
}

fn walk_cards(view: &Connection, size: u64) -> Result<std::result::Result<u64, Fault>> {
    let sql = "SELECT id, sequence, card, listed, log_index, log_salt FROM nodes WHERE card IS NOT NULL";
    let mut select = view.prepare(sql)?;
    let mut rows = select.query([])?;
    let mut cards = 0;
    while let Some(row) = rows.next()? {
        let bytes: Vec<u8> = row.get(2)?;
        let index: Option<i64> = row.get(4)?;
        let card = walk::Row {
            node: NodeId::from_bytes(row.get(0)?),
            sequence: unsigned(row.get(1)?),
            card: &bytes,
            listed: row.get(3)?,
            index: index.map(unsigned),
            salt: row.get(5)?,
        };
        if let Some(fault) = walk::card(&card, size, |position| hash(view, position))? {
            return Ok(Err(fault));
        }
        cards += 1;
    }
    Ok(Ok(cards))
}

#[cfg(test)]
#[path = "log_tests.rs"]
mod tests;
