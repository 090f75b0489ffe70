//! Cards in SQLite: write-ahead log, one writer (the store's thread), two that mostly read beside it (look-ups, the admin's).
//! Every commit is durable before it is answered. The size of the file is capped, so a flood of cards ends in a refusal and
//! not in a full disk.

use std::path::Path;
use std::time::Duration;

use openred_proto::checked::succession::Heard;
use openred_proto::id::{NodeId, UnixMillis};
use openred_proto::limits::CARD_LIFE;
use openred_proto::log::Hash;
use openred_proto::log::tree::Frontier;
use rusqlite::{Connection, OptionalExtension as _, Row, params};

use super::decision::{Author, Bans, Change, Entry, InviteLine, Kept};
use super::followed::{Following, PresentRow, Step};
use super::rules::{self, Before, Plan, Taking, take_in};
use super::{
    CardReader, CardStore, Counts, Held, LogEnd, Logged, NewCard, Page, PreviousRun, Query, Registration, Stats, Terms,
};
use crate::error::{Error, Result};
use crate::limits::{EVIDENCE, EVIDENCE_OF_NODE, PURGE, SUCCESSION_KEPT};

mod decisions;
mod followed;
mod log;
pub mod migrate;
mod pages;
mod place;
mod portable;
mod seen;
mod stats;
mod successions;

use place::Place;

/// Schema that this program writes.
const SCHEMA: i64 = 7;
/// The writer of the other thread holds its lock for one commit; more is an error.
const BUSY: Duration = Duration::from_secs(2);
/// Pages that the write-ahead log takes before they go to their places, 32 MiB: many announcements change the same ones, and each time
/// costs two waits for the disk.
const CHECKPOINT: i64 = 8192;
/// Most that the writer keeps of the file in memory: the inner pages of a million cards' indexes, and those that changed last. With much more,
/// going through all of it at each commit costs more than the kernel's copy does.
const WRITER_KIB: i64 = 16 * 1024;
/// The same of each reader, which has to forget it whenever something is written.
const READER_KIB: i64 = 8 * 1024;
/// SQLite's page size, for the cap.
const PAGE_BYTES: u64 = 4096;

const CREATE: &str = "
CREATE TABLE nodes (
    id BLOB NOT NULL UNIQUE CHECK (length(id) = 32),
    sequence INTEGER NOT NULL,
    card BLOB,                    -- NULL once it has ended: the sequence stays, so that no older card comes back
    card_hash BLOB NOT NULL,
    listed INTEGER NOT NULL,      -- 0 without a card; 2 while it wants to be and is quarantined
    sector TEXT NOT NULL,
    methods INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    first_seen INTEGER NOT NULL,
    last_seen INTEGER NOT NULL
) STRICT;
CREATE INDEX listed_nodes ON nodes (id, methods, last_seen, expires_at, listed) WHERE listed = 1;
CREATE INDEX listed_sectors ON nodes (sector, id, methods, last_seen, expires_at, listed) WHERE listed = 1;
CREATE INDEX ending_cards ON nodes (expires_at) WHERE card IS NOT NULL;
CREATE INDEX ended_cards ON nodes (expires_at) WHERE card IS NULL;
CREATE INDEX seen_nodes ON nodes (last_seen) WHERE card IS NOT NULL;
CREATE TABLE evidence (
    node BLOB NOT NULL, sequence INTEGER NOT NULL, held BLOB NOT NULL, offered BLOB NOT NULL, at INTEGER NOT NULL,
    UNIQUE (node, sequence)
) STRICT;
CREATE TABLE bans (node BLOB NOT NULL PRIMARY KEY, at INTEGER NOT NULL, reason TEXT NOT NULL) STRICT;
CREATE TABLE run (one INTEGER PRIMARY KEY CHECK (one = 1), latest INTEGER) STRICT; -- latest: NULL until it ended in order
";

/// From the first schema. It says nothing of its last run.
const UPGRADE_1: &str = "
UPDATE nodes SET listed = 0 WHERE card IS NULL;
DROP INDEX listed_nodes;
CREATE INDEX listed_nodes ON nodes (id, methods, last_seen, expires_at, listed) WHERE listed = 1;
CREATE INDEX listed_sectors ON nodes (sector, id, methods, last_seen, expires_at, listed) WHERE listed = 1;
CREATE INDEX ended_cards ON nodes (expires_at) WHERE card IS NULL;
CREATE TABLE run (one INTEGER PRIMARY KEY CHECK (one = 1), latest INTEGER) STRICT;
INSERT INTO run (one, latest) VALUES (1, NULL);
";

const HELD: &str = "SELECT id, sequence, card, listed, sector, expires_at, first_seen,
    coalesce((SELECT at FROM seen WHERE place = log_index), first_seen),
    (SELECT count(*) FROM evidence WHERE evidence.node = nodes.id), log_index, log_salt, quarantined
    FROM nodes WHERE card IS NOT NULL";

/// Takes the card from rows, and all that goes with one: its place in the log, by which it is known when it came last, and the salt of its entry.
const WITHDRAW: &str = "UPDATE nodes SET card = NULL, listed = 0, log_index = NULL, log_salt = NULL, quarantined = 0";

/// The SQLite store.
#[derive(Debug)]
pub struct SqliteStore {
    connection: Connection,
    /// Places taken, and the version of the data that they were counted in: counting a million for each new node would be
    /// slow, and a ban comes in by another connection.
    taken: Option<(u64, i64)>,
    /// The log's end while a transaction makes it longer; another connection may do so before the next one.
    growing: Option<Frontier>,
    /// Where its files are.
    place: Place,
}

impl SqliteStore {
    /// Opens or creates the database; it may grow to `max_megabytes`.
    ///
    /// # Errors
    /// The file cannot be used, is no database, or comes from a newer version.
    pub fn open(path: &Path, max_megabytes: u32) -> Result<Self> {
        let (store, migration) = Self::open_and_tell(path, max_megabytes)?;
        if let Some(snapshot) = &migration.snapshot {
            let (from, to) = (migration.found, migration.known);
            tracing::info!(from, to, snapshot = %snapshot.display(), "brought the database to this version's schema");
        }
        Ok(store)
    }

    fn open_and_tell(path: &Path, max_megabytes: u32) -> Result<(Self, migrate::Migration)> {
        let mut store = Self::connect(path)?;
        store.connection.pragma_update(None, "journal_mode", "WAL")?;
        // FULL: what is acknowledged survives a power cut. Group commit pays for it.
        store.connection.pragma_update(None, "synchronous", "FULL")?;
        store.connection.pragma_update(None, "wal_autocheckpoint", CHECKPOINT)?;
        store.connection.pragma_update(None, "cache_size", -WRITER_KIB)?;
        let migration = migrate::upgrade(&mut store.connection, path)?;
        if migration.snapshot.is_some() {
            // The log holds all of the database, and would keep its length.
            store.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
        }
        // Only now: a database that is full is taken over as well.
        store.limit_pages(u64::from(max_megabytes) * 1024 * 1024 / PAGE_BYTES)?;
        store.place = Place::of(path);
        store.place.leave();
        Ok((store, migration))
    }

    /// A second connection to a database that is open, for look-ups alone.
    ///
    /// # Errors
    /// The file cannot be used.
    pub fn open_reader(path: &Path) -> Result<Self> {
        let reader = Self::connect(path)?;
        reader.connection.pragma_update(None, "query_only", true)?;
        reader.connection.pragma_update(None, "cache_size", -READER_KIB)?;
        Ok(reader)
    }

    /// The same, of this program's schema and no other: for a look from outside of the process that serves.
    ///
    /// # Errors
    /// As [`SqliteStore::open_reader`], and [`Error::LocalSchemaNewer`].
    pub fn open_checked(path: &Path) -> Result<Self> {
        let reader = Self::open_reader(path)?;
        match reader.connection.pragma_query_value(None, "user_version", |row| row.get(0))? {
            SCHEMA => Ok(reader),
            found if found > SCHEMA => Err(Error::LocalSchemaNewer { found, known: SCHEMA }),
            _ => Err(Error::Misuse("the database is of an older version, which kept no log; start the directory once")),
        }
    }

    fn connect(path: &Path) -> Result<Self> {
        let connection = Connection::open(path)?;
        connection.busy_timeout(BUSY)?;
        // Plans do not follow the values that are bound: without this a kept statement is compiled anew whenever those change.
        connection.set_db_config(rusqlite::config::DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
        connection.pragma_update(None, "trusted_schema", false)?;
        connection.pragma_update(None, "temp_store", "MEMORY")?;
        Ok(Self { connection, taken: None, growing: None, place: Place::of(path) })
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
}

impl Taking for SqliteStore {
    type Known = Connection;

    fn known(&mut self) -> &mut Connection {
        &mut self.connection
    }

    fn before(&mut self, node: &NodeId) -> Result<Option<Before>> {
        let mut select = self.connection.prepare_cached(seen::KNOWN)?;
        let known = |row: &Row<'_>| {
            let (sequence, hash, quarantined) = (unsigned(row.get(0)?), row.get(1)?, row.get(2)?);
            let expires_at = UnixMillis(unsigned(row.get(3)?));
            let place = row.get::<_, Option<i64>>(4)?.map(unsigned);
            Ok(Before { sequence, hash, quarantined, expires_at, place })
        };
        Ok(select.query_row([node.as_bytes()], known).optional()?)
    }

    fn keep_evidence(&mut self, now: UnixMillis, card: &NewCard) -> Result<bool> {
        let room =
            "SELECT (SELECT count(*) FROM evidence WHERE node = ?1) < ?2 AND (SELECT count(*) FROM evidence) < ?3";
        if self
            .connection
            .query_row(room, params![card.node.as_bytes(), EVIDENCE_OF_NODE, EVIDENCE], |row| row.get(0))?
        {
            self.connection.execute(
                "INSERT OR IGNORE INTO evidence SELECT id, sequence, card, ?2, ?3 FROM nodes WHERE id = ?1 AND card IS NOT NULL",
                params![card.node.as_bytes(), card.bytes, signed(now.0)],
            )?;
        }
        let sql = "SELECT EXISTS (SELECT 1 FROM evidence WHERE node = ?1 AND sequence = ?2)";
        Ok(self.connection.query_row(sql, params![card.node.as_bytes(), signed(card.sequence)], |row| row.get(0))?)
    }

    fn has_place(&mut self, most: u64) -> Result<bool> {
        let version: i64 = self.connection.prepare_cached("PRAGMA data_version")?.query_row([], |row| row.get(0))?;
        let count = || {
            let sql = "SELECT (SELECT count(*) FROM nodes WHERE card IS NOT NULL)
                - (SELECT count(*) FROM bans JOIN nodes ON nodes.id = bans.node WHERE nodes.card IS NOT NULL)";
            self.connection.query_row(sql, [], |row| row.get::<_, i64>(0)).map(unsigned)
        };
        let taken = match self.taken {
            Some((taken, then)) if then == version => taken,
            _ => count()?,
        };
        let free = taken < most;
        self.taken = Some((taken + u64::from(free), version));
        Ok(free)
    }

    fn give_places_back(&mut self, places: u64) {
        if let Some((taken, _)) = &mut self.taken {
            *taken = taken.saturating_sub(places);
        }
    }

    fn log(&mut self, card: &NewCard) -> Result<Logged> {
        let growing = log::growing(&self.connection, &mut self.growing)?;
        log::append(&self.connection, growing, &card.bytes, card.listed)
    }

    fn touch(&mut self, now: UnixMillis, place: u64) -> Result<()> {
        seen::note(&self.connection, place, now)
    }

    fn quarantine(&mut self, card: &NewCard, quarantined: bool) -> Result<()> {
        let mut update =
            self.connection.prepare_cached("UPDATE nodes SET listed = ?2, quarantined = ?3 WHERE id = ?1")?;
        update.execute(params![card.node.as_bytes(), listed(card, quarantined), quarantined])?;
        Ok(())
    }

    fn insert(
        &mut self,
        now: UnixMillis,
        card: &NewCard,
        hash: &[u8; 32],
        quarantined: bool,
        logged: Logged,
    ) -> Result<()> {
        let mut insert = self.connection.prepare_cached(
            "INSERT INTO nodes (id, sequence, card, card_hash, listed, sector, methods, expires_at, first_seen, log_index, log_salt,
                 quarantined)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)
             ON CONFLICT (id) DO UPDATE SET sequence = ?2, card = ?3, card_hash = ?4, listed = ?5, sector = ?6, methods = ?7,
                 expires_at = ?8, log_index = ?10, log_salt = ?11, quarantined = ?12",
        )?;
        insert.execute(params![
            card.node.as_bytes(),
            signed(card.sequence),
            card.bytes,
            hash,
            listed(card, quarantined),
            card.sector,
            card.methods,
            signed(card.expires_at.0),
            signed(now.0),
            signed(logged.index),
            logged.salt,
            quarantined,
        ])?;
        seen::note(&self.connection, logged.index, now)
    }
}

impl rules::Known for Connection {
    fn heard(&mut self, old: &NodeId) -> Result<Option<(Heard, bool)>> {
        successions::heard(self, old)
    }

    fn line_of(&mut self, node: &NodeId) -> Result<Vec<NodeId>> {
        successions::line_of(self, node)
    }

    fn is_admitted(&mut self, node: &NodeId) -> Result<bool> {
        decisions::is_admitted(self, node)
    }

    fn is_banned(&mut self, node: &NodeId) -> Result<bool> {
        decisions::is_banned(self, node)
    }

    fn is_here(&mut self, node: &NodeId) -> Result<bool> {
        decisions::is_here(self, node)
    }

    fn invite(&mut self, hash: &[u8; 32]) -> Result<Option<InviteLine>> {
        decisions::invite(self, hash)
    }

    fn use_invite(&mut self, now: UnixMillis, node: &NodeId, hash: &[u8; 32]) -> Result<()> {
        decisions::use_invite(self, now, node, hash)
    }

    fn keep(&mut self, plan: &Plan) -> Result<u64> {
        successions::keep(self, plan)
    }
}

impl CardReader for SqliteStore {
    fn check(&mut self) -> Result<()> {
        self.place.is_kept()
    }

    fn begin_view(&mut self) -> Result<()> {
        self.connection.prepare_cached("BEGIN")?.execute([])?;
        Ok(())
    }

    fn end_view(&mut self) {
        // Nothing was changed in it: that it ends is all, and an error of the file has ended it.
        let _ = self.connection.prepare_cached("COMMIT").and_then(|mut end| end.execute([]));
    }

    fn node(&mut self, node: &NodeId) -> Result<Option<Held>> {
        self.read(node)
    }

    fn successor(&mut self, node: &NodeId) -> Result<Option<NodeId>> {
        rules::successor(&mut self.connection, node)
    }

    fn page(&mut self, query: &Query) -> Result<Page> {
        pages::page(self, query)
    }

    fn counts(&mut self, seen_since: UnixMillis) -> Result<Counts> {
        let count = |sql: &str| -> Result<u64> {
            Ok(unsigned(self.connection.query_row(sql, [], |row| row.get::<_, i64>(0))?))
        };
        let (nodes, fresh) = seen::counts(&self.connection, seen_since)?;
        Ok(Counts {
            nodes,
            fresh,
            // By itself it would look at every row that has a card.
            quarantined: count(
                "SELECT count(*) FROM nodes INDEXED BY quarantined_nodes WHERE quarantined = 1 AND card IS NOT NULL",
            )?,
            evidence: count("SELECT count(*) FROM evidence")?,
            bans: count("SELECT (SELECT count(*) FROM bans) + (SELECT count(*) FROM prefix_bans)")?,
            bytes: count("SELECT page_count * page_size FROM pragma_page_count, pragma_page_size")?,
        })
    }

    fn log_end(&mut self) -> Result<LogEnd> {
        log::end(&self.connection)
    }

    fn log_hash(&mut self, position: u64) -> Result<Hash> {
        log::hash(&self.connection, position)
    }

    fn logged(&mut self, from: u64, to: u64) -> Result<Vec<Held>> {
        followed::logged(&self.connection, from, to)
    }

    fn present(&mut self, from: u64, limit: usize) -> Result<Vec<PresentRow>> {
        followed::present(&self.connection, from, limit)
    }

    fn following(&mut self) -> Result<Option<Following>> {
        followed::following(&self.connection)
    }

    fn stats(&mut self, now: UnixMillis, seen_since: UnixMillis) -> Result<Stats> {
        let counts = self.counts(seen_since)?;
        stats::stats(&self.connection, now, counts)
    }

    fn bans(&mut self) -> Result<Bans> {
        decisions::bans(&self.connection)
    }

    fn invites(&mut self) -> Result<Vec<InviteLine>> {
        decisions::invites(&self.connection)
    }

    fn history(&mut self, before: Option<u64>, limit: usize) -> Result<Vec<Entry>> {
        decisions::history(&self.connection, before, limit)
    }

    fn kept(&mut self, after: Option<&Kept>, limit: usize) -> Result<Vec<Kept>> {
        portable::kept(&self.connection, after, limit)
    }
}

impl CardStore for SqliteStore {
    fn begin(&mut self) -> Result<()> {
        self.place.is_as_left()?;
        Ok(self.connection.execute_batch("BEGIN IMMEDIATE")?)
    }

    fn commit(&mut self) -> Result<()> {
        if let Some(grown) = self.growing.take() {
            log::close(&self.connection, &grown)?;
        }
        self.connection.execute_batch("COMMIT")?;
        // It may have brought pages to their places.
        self.place.leave();
        // What was made durable in files that are nowhere any more is not acknowledged.
        self.place.is_kept()
    }

    fn roll_back(&mut self) {
        // SQLite rolls back by itself on some errors; then there is nothing left to do and this fails.
        let _ = self.connection.execute_batch("ROLLBACK");
        self.taken = None;
        self.growing = None;
    }

    fn register(&mut self, now: UnixMillis, card: &NewCard, terms: &Terms) -> Result<Registration> {
        // A card and its entry hold together, also where nobody has begun a group.
        if !self.connection.is_autocommit() {
            return take_in(self, now, card, terms);
        }
        self.begin()?;
        let taken = take_in(self, now, card, terms).and_then(|taken| self.commit().map(|()| taken));
        if taken.is_err() {
            self.roll_back();
        }
        taken
    }

    fn withdraw(&mut self, node: &NodeId) -> Result<bool> {
        self.taken = None;
        let sql = format!("{WITHDRAW} WHERE id = ?1 AND card IS NOT NULL");
        Ok(self.connection.prepare_cached(&sql)?.execute([node.as_bytes()])? == 1)
    }

    fn change(&mut self, author: &Author, change: &Change) -> Result<bool> {
        // A ban or a removal gives a place back, and this connection does not see its own changes in the data's version.
        self.taken = None;
        decisions::change(&self.connection, author, change)
    }

    fn restore(&mut self, kept: &Kept) -> Result<bool> {
        self.taken = None;
        portable::restore(&self.connection, kept)
    }

    fn purge(&mut self, ended_before: UnixMillis) -> Result<u64> {
        // Some at a time: nobody who registers waits for a hundred thousand.
        let some =
            |of: &str| format!("rowid IN (SELECT rowid FROM nodes WHERE {of} AND expires_at < ?1 LIMIT {PURGE})");
        let ended = self
            .connection
            .execute(&format!("{WITHDRAW} WHERE {}", some("card IS NOT NULL")), [signed(ended_before.0)])?;
        // An older card that its node signed has ended by then: it can live no longer than this.
        let forgotten = self.connection.execute(
            &format!("DELETE FROM nodes WHERE {}", some("card IS NULL")),
            [signed(ended_before.minus(CARD_LIFE).0)],
        )?;
        successions::purge(&self.connection, ended_before.minus(SUCCESSION_KEPT))?;
        decisions::purge(&self.connection, ended_before)?;
        self.taken = None;
        Ok((ended + forgotten) as u64)
    }

    fn follow(&mut self, now: UnixMillis, step: &Step) -> Result<Option<NodeId>> {
        followed::follow(self, now, step)
    }

    fn keep_present(&mut self, from: u64, to: u64, present: &[(u64, UnixMillis)]) -> Result<Vec<u64>> {
        self.taken = None;
        followed::keep_present(&self.connection, from, to, present)
    }

    fn begin_run(&mut self, _: UnixMillis) -> Result<PreviousRun> {
        let left = self.connection.query_row("SELECT latest FROM run", [], |row| row.get::<_, Option<i64>>(0));
        self.connection.execute("INSERT OR REPLACE INTO run (one, latest) VALUES (1, NULL)", [])?;
        // In no group, and the first to write: what the run before left in the write-ahead log may go to its places now.
        self.place.leave();
        Ok(match left.optional()? {
            None => PreviousRun::Never,
            Some(Some(latest)) => PreviousRun::Ended { latest: unsigned(latest) },
            Some(None) => PreviousRun::CutOff,
        })
    }

    fn end_run(&mut self, latest: u64) -> Result<()> {
        self.connection.execute("UPDATE run SET latest = ?1", [signed(latest)])?;
        Ok(())
    }
}

/// The column of that name.
fn listed(card: &NewCard, quarantined: bool) -> i64 {
    i64::from(card.listed) * if quarantined { 2 } else { 1 }
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
        logged: Logged { index: unsigned(row.get(9)?), salt: row.get(10)? },
        quarantined: row.get(11)?,
    })
}

/// SQLite's integers are signed; ours are times and counters far below 2^63.
fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn unsigned(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

#[cfg(test)]
mod tests;
