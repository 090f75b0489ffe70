//! What is kept of directories: the last head of each one's log that was checked, and what they were caught at.

use bytes::Bytes;
use openred_proto::id::{NodeId, UnixMillis};
use rusqlite::{Connection, OptionalExtension as _, params};

use super::links::{millis, node_id};
use super::{Result, Store, StoreError};

/// Two statements that prove a directory's lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Evidence {
    pub(crate) directory: NodeId,
    /// Its number in src/directory/honesty.rs.
    pub(crate) lie: u8,
    pub(crate) first: Vec<u8>,
    pub(crate) second: Vec<u8>,
    pub(crate) at: UnixMillis,
}

impl Store {
    /// The last head of a directory's log that was checked.
    pub(crate) async fn directory_head(&self, directory: NodeId) -> Result<Option<Bytes>> {
        self.call(move |connection| {
            let mut select = connection.prepare_cached("SELECT note FROM directory_head WHERE directory = ?1")?;
            let note: Option<Vec<u8>> = select.query_row([directory.as_bytes()], |row| row.get(0)).optional()?;
            Ok(note.map(Bytes::from))
        })
        .await
    }

    /// Keeps it in place of the one before.
    pub(crate) async fn keep_directory_head(&self, directory: NodeId, note: Bytes, now: UnixMillis) -> Result<()> {
        self.call(move |connection| {
            let sql = "INSERT OR REPLACE INTO directory_head (directory, note, checked_at) VALUES (?1, ?2, ?3)";
            connection.prepare_cached(sql)?.execute(params![directory.as_bytes(), &note[..], millis(now)])?;
            Ok(())
        })
        .await
    }

    /// Keeps what proves a lie.
    pub(crate) async fn keep_evidence(&self, evidence: Evidence) -> Result<()> {
        self.call(move |connection| {
            let Evidence { directory, lie, first, second, at } = &evidence;
            let sql = "INSERT INTO directory_evidence (directory, lie, first, second, at) VALUES (?1, ?2, ?3, ?4, ?5)";
            connection.prepare_cached(sql)?.execute(params![directory.as_bytes(), lie, first, second, millis(*at)])?;
            Ok(())
        })
        .await
    }

    /// All that is kept, in the order of coming.
    pub(crate) async fn evidence(&self) -> Result<Vec<Evidence>> {
        self.call(all).await
    }
}

fn all(connection: &Connection) -> Result<Vec<Evidence>> {
    let damaged = |_| StoreError::Damaged("directory_evidence");
    let mut select =
        connection.prepare("SELECT directory, lie, first, second, at FROM directory_evidence ORDER BY number")?;
    let read = |row: &rusqlite::Row<'_>| -> Result<Evidence> {
        Ok(Evidence {
            directory: node_id(row, 0).ok_or(StoreError::Damaged("directory_evidence"))?,
            lie: row.get(1).map_err(damaged)?,
            first: row.get(2).map_err(damaged)?,
            second: row.get(3).map_err(damaged)?,
            at: UnixMillis(row.get::<_, i64>(4).map_err(damaged)?.cast_unsigned()),
        })
    };
    let rows = select.query_map([], |row| Ok(read(row)))?;
    rows.map(|row| row?).collect()
}
