//! Cards in SQLite: write-ahead log, one writer (the store's thread), one reader (the admin's). Every commit is durable
//! before it is answered. The size of the file is capped, so a flood of cards ends in a refusal and not in a full disk.

use std::path::Path;
use std::time::Duration;

use openred_proto::id::{NodeId, UnixMillis};
use rusqlite::{Connection, OptionalExtension as _, Row, params};
use sha2::{Digest as _, Sha256};

use super::{Ban, CardStore, Counts, Held, NewCard, Query, Registration};
use crate::error::{Error, Result};
use crate::limits::EVIDENCE;

/// Schema that this program writes.
const SCHEMA: i64 = 1;
/// The writer of the other thread holds its lock for one commit; more is an error.
const BUSY: Duration = Duration::from_secs(2);
/// SQLite's page size, for the cap.
const PAGE_BYTES: u64 = 4096;

const CREATE: &str = "
BEGIN;
CREATE TABLE nodes (
    id BLOB NOT NULL UNIQUE CHECK (length(id) = 32),
    sequence INTEGER NOT NULL,
    card BLOB,                    -- NULL once it has ended: the sequence stays, so that no older card comes back
    card_hash BLOB NOT NULL,
    listed INTEGER NOT NULL,
    sector TEXT NOT NULL,
    methods INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    first_seen INTEGER NOT NULL,
    last_seen INTEGER NOT NULL
) STRICT;
CREATE INDEX listed_nodes ON nodes (id) WHERE listed = 1 AND card IS NOT NULL;
CREATE INDEX ending_cards ON nodes (expires_at) WHERE card IS NOT NULL;
CREATE INDEX seen_nodes ON nodes (last_seen) WHERE card IS NOT NULL;
CREATE TABLE evidence (
    node BLOB NOT NULL, sequence INTEGER NOT NULL, held BLOB NOT NULL, offered BLOB NOT NULL, at INTEGER NOT NULL,
    UNIQUE (node, sequence)
) STRICT;
CREATE TABLE bans (node BLOB NOT NULL PRIMARY KEY, at INTEGER NOT NULL, reason TEXT NOT NULL) STRICT;
PRAGMA user_version = 1;
COMMIT;";

const HELD: &str = "SELECT id, sequence, card, listed, sector, expires_at, first_seen, last_seen,
    (SELECT count(*) FROM evidence WHERE evidence.node = nodes.id) FROM nodes WHERE card IS NOT NULL";

/// The SQLite store.
#[derive(Debug)]
pub struct SqliteStore {
    connection: Connection,
    /// Rows of `nodes`, once counted: counting a million for each new node would be slow.
    rows: Option<u64>,
}

impl SqliteStore {
    /// Opens or creates the database; it may grow to `max_megabytes`.
    ///
    /// # Errors
    /// The file cannot be used, is no database, or comes from a newer version.
    pub fn open(path: &Path, max_megabytes: u32) -> Result<Self> {
        let connection = Connection::open(path)?;
        connection.busy_timeout(BUSY)?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        // FULL: what is acknowledged survives a power cut. Group commit pays for it.
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.pragma_update(None, "trusted_schema", false)?;
        connection.pragma_update(None, "temp_store", "MEMORY")?;
        let mut store = Self { connection, rows: None };
        store.limit_pages(u64::from(max_megabytes) * 1024 * 1024 / PAGE_BYTES)?;
        let found: i64 = store.connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
        match found {
            0 => store.connection.execute_batch(CREATE)?,
            SCHEMA => {}
            found => return Err(Error::LocalSchemaNewer { found, known: SCHEMA }),
        }
        Ok(store)
    }

    /// Caps the file at so many pages.
    ///
    /// # Errors
    /// The database's.
    pub fn limit_pages(&mut self, pages: u64) -> Result<()> {
        let pages = i64::try_from(pages).unwrap_or(i64::MAX);
        self.connection.pragma_update_and_check(None, "max_page_count", pages, |_| Ok(()))?;
        Ok(())
    }

    /// One node, without the exclusive access that [`CardStore`] asks for.
    pub(crate) fn read(&self, node: &NodeId) -> Result<Option<Held>> {
        let mut select = self.connection.prepare_cached(&format!("{HELD} AND id = ?1"))?;
        Ok(select.query_row([node.as_bytes()], held).optional()?)
    }

    fn rows(&self) -> Result<u64> {
        let count = || self.connection.query_row("SELECT count(*) FROM nodes", [], |row| row.get::<_, i64>(0));
        Ok(self.rows.map_or_else(|| count().map(unsigned), Ok)?)
    }

    fn keep_evidence(&self, now: UnixMillis, card: &NewCard) -> Result<()> {
        let kept: i64 = self.connection.query_row("SELECT count(*) FROM evidence", [], |row| row.get(0))?;
        if kept < EVIDENCE {
            self.connection.execute(
                "INSERT OR IGNORE INTO evidence SELECT id, sequence, card, ?2, ?3 FROM nodes WHERE id = ?1 AND card IS NOT NULL",
                params![card.node.as_bytes(), card.bytes, signed(now.0)],
            )?;
        }
        Ok(())
    }

    fn insert(&self, now: UnixMillis, card: &NewCard, hash: &[u8; 32]) -> Result<()> {
        let mut insert = self.connection.prepare_cached(
            "INSERT INTO nodes (id, sequence, card, card_hash, listed, sector, methods, expires_at, first_seen, last_seen)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?9)
             ON CONFLICT (id) DO UPDATE SET sequence = ?2, card = ?3, card_hash = ?4, listed = ?5, sector = ?6, methods = ?7,
                 expires_at = ?8, last_seen = ?9",
        )?;
        insert.execute(params![
            card.node.as_bytes(),
            signed(card.sequence),
            card.bytes,
            hash,
            card.listed,
            card.sector,
            card.methods,
            signed(card.expires_at.0),
            signed(now.0),
        ])?;
        Ok(())
    }
}

impl CardStore for SqliteStore {
    fn begin(&mut self) -> Result<()> {
        Ok(self.connection.execute_batch("BEGIN IMMEDIATE")?)
    }

    fn commit(&mut self) -> Result<()> {
        Ok(self.connection.execute_batch("COMMIT")?)
    }

    fn roll_back(&mut self) {
        // SQLite rolls back by itself on some errors; then there is nothing left to do and this fails.
        let _ = self.connection.execute_batch("ROLLBACK");
        self.rows = None;
    }

    fn register(&mut self, now: UnixMillis, card: &NewCard, most: u64) -> Result<Registration> {
        let hash: [u8; 32] = Sha256::digest(&card.bytes).into();
        let mut select =
            self.connection.prepare_cached("SELECT sequence, card_hash, card IS NULL FROM nodes WHERE id = ?1")?;
        let held: Option<(i64, [u8; 32], bool)> =
            select.query_row([card.node.as_bytes()], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?))).optional()?;
        let Some((sequence, held_hash, gone)) = held else {
            drop(select);
            let rows = self.rows()?;
            if rows >= most {
                return Ok(Registration::Full);
            }
            self.insert(now, card, &hash)?;
            self.rows = Some(rows + 1);
            return Ok(Registration::Stored);
        };
        match card.sequence.cmp(&unsigned(sequence)) {
            std::cmp::Ordering::Less => Ok(Registration::Rollback),
            std::cmp::Ordering::Greater => self.insert(now, card, &hash).map(|()| Registration::Stored),
            std::cmp::Ordering::Equal if hash == held_hash => {
                self.insert(now, card, &hash)?;
                Ok(if gone { Registration::Stored } else { Registration::Refreshed })
            }
            std::cmp::Ordering::Equal => self.keep_evidence(now, card).map(|()| Registration::Equivocation),
        }
    }

    fn node(&mut self, node: &NodeId) -> Result<Option<Held>> {
        self.read(node)
    }

    fn page(&mut self, query: &Query) -> Result<Vec<Held>> {
        let listed = if query.listed_only { " AND listed = 1" } else { "" };
        let mut select = self.connection.prepare_cached(&format!(
            "{HELD}{listed} AND id > ?1 AND (?2 IS NULL OR sector = ?2) AND (?3 IS NULL OR (methods & ?3) <> 0)
             AND last_seen >= ?4 AND expires_at > ?5 ORDER BY id LIMIT ?6"
        ))?;
        let after = query.after.as_ref().map_or(&[][..], |id| id.as_bytes());
        let rows = select.query_map(
            params![
                after,
                query.sector,
                query.method.map(method_bit),
                signed(query.seen_since.unwrap_or(UnixMillis(0)).0),
                signed(query.alive_at.unwrap_or(UnixMillis(0)).0),
                i64::try_from(query.limit).unwrap_or(i64::MAX),
            ],
            held,
        )?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    fn counts(&mut self, seen_since: UnixMillis) -> Result<Counts> {
        let count = |sql: &str| -> Result<u64> {
            Ok(unsigned(self.connection.query_row(sql, [], |row| row.get::<_, i64>(0))?))
        };
        let fresh: i64 = self.connection.query_row(
            "SELECT count(*) FROM nodes WHERE card IS NOT NULL AND last_seen >= ?1",
            [signed(seen_since.0)],
            |row| row.get(0),
        )?;
        Ok(Counts {
            nodes: count("SELECT count(*) FROM nodes WHERE card IS NOT NULL")?,
            fresh: unsigned(fresh),
            evidence: count("SELECT count(*) FROM evidence")?,
            bans: count("SELECT count(*) FROM bans")?,
            bytes: count("SELECT page_count * page_size FROM pragma_page_count, pragma_page_size")?,
        })
    }

    fn purge(&mut self, ended_before: UnixMillis) -> Result<u64> {
        let ended = self.connection.execute(
            "UPDATE nodes SET card = NULL WHERE card IS NOT NULL AND expires_at < ?1",
            [signed(ended_before.0)],
        )?;
        Ok(ended as u64)
    }

    fn bans(&mut self) -> Result<Vec<Ban>> {
        let mut select = self.connection.prepare_cached("SELECT node, at, reason FROM bans ORDER BY node")?;
        let rows = select.query_map([], |row| {
            let at: i64 = row.get(1)?;
            Ok(Ban { node: NodeId::from_bytes(row.get(0)?), at: UnixMillis(unsigned(at)), reason: row.get(2)? })
        })?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    fn ban(&mut self, ban: &Ban) -> Result<bool> {
        let added = self.connection.execute(
            "INSERT OR IGNORE INTO bans (node, at, reason) VALUES (?1, ?2, ?3)",
            params![ban.node.as_bytes(), signed(ban.at.0), ban.reason],
        )?;
        Ok(added == 1)
    }

    fn unban(&mut self, node: &NodeId) -> Result<bool> {
        Ok(self.connection.execute("DELETE FROM bans WHERE node = ?1", [node.as_bytes()])? == 1)
    }
}

/// The bit of a method in a card's set.
fn method_bit(method: openred_proto::method::Method) -> i64 {
    i64::from(openred_proto::method::MethodSet::EMPTY.with(method).bits())
}

fn held(row: &Row<'_>) -> rusqlite::Result<Held> {
    let time = |column| row.get(column).map(|at: i64| UnixMillis(unsigned(at)));
    Ok(Held {
        node: NodeId::from_bytes(row.get(0)?),
        sequence: unsigned(row.get(1)?),
        card: row.get(2)?,
        listed: row.get(3)?,
        sector: row.get(4)?,
        expires_at: time(5)?,
        first_seen: time(6)?,
        last_seen: time(7)?,
        evidence: unsigned(row.get(8)?),
    })
}

/// SQLite's integers are signed; ours are times and counters far below 2^63.
fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn unsigned(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}
