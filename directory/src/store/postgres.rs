//! Cards in PostgreSQL, for directories of one identity that share what they keep. The rules stand in `rules` for both stores, and one suite
//! of tests holds both to them.
//!
//! Who writes locks the one row of `log_end` first, so that one transaction after the other sees what those before it wrote: the log
//! has one order, whichever directory adds to it. A look-up takes no lock. What is acknowledged was committed; where the answer to
//! a commit was lost, the caller is told that it is not known, and asks again.

use std::time::Duration;

use openred_proto::id::{NodeId, UnixMillis};
use openred_proto::limits::CARD_LIFE;
use openred_proto::log::tree::{Frontier, kept};
use openred_proto::log::{Hash, Salt, entry};
use openred_proto::method::{Method, MethodSet};
use tokio_postgres::Row;

use super::decision::{Author, Bans, Change, Entry, InviteLine, Kept};
use super::followed::PresentRow;
use super::rules::{self, Before, Taking, take_in};
use super::sqlite::migrate::Migration;
use super::{
    CardReader, CardStore, Counts, Held, LogEnd, Logged, Mark, NewCard, Page, PreviousRun, Query, Registration, Stats,
    Terms,
};
use crate::error::{Error, Result};
use crate::limits::{EVIDENCE, EVIDENCE_OF_NODE, PURGE, SUCCESSION_KEPT};

mod decisions;
mod followed;
mod known;
mod link;
mod nonces;
mod portable;
mod runs;
mod schema;
mod seen;
mod successions;
mod target;
mod walk;

use link::Link;
pub use nonces::SharedNonces;
pub use target::{Place, Target, check_files, parse};

const HELD: &str = "SELECT id, sequence, card, listed, sector, expires_at, first_seen,
    coalesce((SELECT at FROM seen WHERE place = log_index), first_seen),
    (SELECT count(*) FROM evidence WHERE evidence.node = nodes.id), log_index, log_salt, quarantined
    FROM nodes WHERE card IS NOT NULL";
/// Rows that a page looks at in one go.
const CHUNK: usize = 512;
const DAY: Duration = Duration::from_secs(86_400);

/// The PostgreSQL store.
pub struct PostgresStore {
    link: Link,
    /// A transaction is open.
    begun: bool,
    known: Option<Known>,
    /// Hashes that the transaction adds to the log, and where the first of them stands.
    grown: Vec<Vec<u8>>,
    grown_from: u64,
    /// Its name among replicas, and its number there.
    replica: Option<String>,
    number: u16,
}

/// What a writer remembers; it holds as long as nobody else has written.
struct Known {
    /// Transactions so far, by the row that says so.
    writes: i64,
    log: Frontier,
    /// Places taken: counting a million for each new node would be slow.
    taken: Option<u64>,
}

impl std::fmt::Debug for PostgresStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PostgresStore")
    }
}

impl PostgresStore {
    /// Connects to tables of this program's version.
    ///
    /// # Errors
    /// The server cannot be reached or refuses; the database is not one of this version's.
    pub fn open(target: &Target) -> Result<Self> {
        let mut link = Link::new(target)?;
        link.connect()?;
        Ok(Self { link, begun: false, known: None, grown: Vec::new(), grown_from: 0, replica: None, number: 0 })
    }

    /// Brings the tables up to date, or tries it and takes it back.
    ///
    /// # Errors
    /// As [`PostgresStore::open`]; a newer or foreign schema.
    pub fn migrate(target: &Target, dry_run: bool) -> Result<Migration> {
        let mut link = Link::new(target)?.unchecked();
        link.connect()?;
        schema::migrate(&mut link, dry_run)
    }

    /// Whether the database holds a directory's log, also one of an earlier version.
    ///
    /// # Errors
    /// The server cannot be reached or refuses; its schema of our name is somebody else's.
    pub fn holds_log(target: &Target) -> Result<bool> {
        let mut link = Link::new(target)?.unchecked();
        link.connect()?;
        schema::holds_log(&mut link)
    }

    /// As the replica of this name: the note of its run is its own, and the nonces that it takes are kept for all ([`SharedNonces`]).
    #[must_use]
    pub fn as_replica(self, name: &str) -> Self {
        Self { replica: Some(name.to_owned()), ..self }
    }

    /// A connection for what comes next: the open transaction's, or any.
    fn reach(&mut self) -> Result<&mut Link> {
        // A transaction that lost its connection does not go on in another.
        if !self.begun {
            self.link.connect()?;
        }
        Ok(&mut self.link)
    }

    /// Runs a change in the open transaction, or in one of its own.
    fn within<T>(&mut self, work: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        if self.begun {
            return work(self);
        }
        self.begin()?;
        let done = work(self).and_then(|value| self.commit().map(|()| value));
        if done.is_err() {
            self.roll_back();
        }
        done
    }

    fn remembered(&mut self) -> Result<&mut Known> {
        self.known.as_mut().ok_or(Error::LocalStoreAway)
    }

    /// Locks the row that orders all who write, and takes up what it says.
    fn lock(&mut self) -> Result<()> {
        let row = self.link.row("SELECT writes, size FROM log_end FOR UPDATE", &[])?;
        let row = row.ok_or(Error::LocalStoreUnfit { why: "the row that says how far the log goes is missing" })?;
        let (writes, size): (i64, i64) = (row.try_get(0)?, row.try_get(1)?);
        if self.known.as_ref().is_none_or(|known| known.writes != writes) {
            let link = &mut self.link;
            let log = Frontier::load(unsigned(size), |position| log_hash(link, position))?;
            self.known = Some(Known { writes, log, taken: None });
        }
        Ok(())
    }

    /// Writes what the transaction added to the log.
    fn close_log(&mut self) -> Result<()> {
        let hashes = std::mem::take(&mut self.grown);
        let known = self.known.as_mut().ok_or(Error::LocalStoreAway)?;
        known.writes += 1;
        let (size, root) = (signed(known.log.size()), known.log.root());
        if !hashes.is_empty() {
            let first = signed(self.grown_from);
            let sql = "INSERT INTO log_hashes (position, hash)
                SELECT $1 + number - 1, hash FROM unnest($2::bytea[]) WITH ORDINALITY AS new (hash, number)";
            self.link.execute(sql, &[&first, &hashes])?;
        }
        self.link.execute("UPDATE log_end SET size = $1, root = $2, writes = writes + 1", &[&size, &&root[..]])?;
        Ok(())
    }

    /// Ids of a page, from rows that have all that is asked for.
    fn fitting(&mut self, query: &Query) -> Result<(Vec<Vec<u8>>, Option<NodeId>)> {
        let (among, gone) = match (query.listed_only, query.quarantined_only) {
            (true, _) => ("listed = 1", "false"),
            (_, true) => ("quarantined AND card IS NOT NULL", "false"),
            // Rows without a card are passed over here, where they are counted: there may be a million of them.
            _ if query.examine.is_some() => ("true", "card IS NULL"),
            _ => ("card IS NOT NULL", "false"),
        };
        let sector = if query.sector.is_some() { " AND sector = $3" } else { "" };
        let sql = format!(
            "SELECT id, methods, (SELECT at FROM seen WHERE place = log_index), expires_at, listed, {gone} FROM nodes WHERE {among} AND id > $1{sector} ORDER BY id LIMIT $2"
        );
        let mut after = query.begins_after();
        let (mut fitting, mut examined) = (Vec::new(), 0);
        loop {
            let size = CHUNK.min(query.examine.map_or(CHUNK, |most| most - examined));
            let limit = signed(size as u64);
            let link = self.reach()?;
            let rows = match &query.sector {
                // No card says such a name, and the server would refuse to hear it.
                Some(sector) if sector.contains('\0') => Vec::new(),
                Some(sector) => link.rows(&sql, &[&after, &limit, sector])?,
                None => link.rows(&sql, &[&after, &limit])?,
            };
            for row in &rows {
                let id = node_id(row, 0)?;
                if query.to.is_some_and(|last| id > last) {
                    return Ok((fitting, None));
                }
                examined += 1;
                if fits(query, row)? {
                    fitting.push(id.as_bytes().to_vec());
                }
                if fitting.len() == query.limit || Some(examined) == query.examine {
                    return Ok((fitting, Some(id)));
                }
                after = id.as_bytes().to_vec();
            }
            if rows.len() < size {
                return Ok((fitting, None));
            }
        }
    }
}

impl Taking for PostgresStore {
    type Known = Link;

    fn known(&mut self) -> &mut Link {
        &mut self.link
    }

    fn before(&mut self, node: &NodeId) -> Result<Option<Before>> {
        let sql = "SELECT sequence, card_hash, quarantined, expires_at, CASE WHEN card IS NOT NULL THEN log_index END
            FROM nodes WHERE id = $1";
        let Some(row) = self.link.row(sql, &[&&node.as_bytes()[..]])? else { return Ok(None) };
        let place = row.try_get::<_, Option<i64>>(4)?.map(unsigned);
        let (sequence, hash, quarantined) = (unsigned(row.try_get(0)?), hash(&row, 1)?, row.try_get(2)?);
        Ok(Some(Before { sequence, hash, quarantined, expires_at: time(&row, 3)?, place }))
    }

    fn keep_evidence(&mut self, now: UnixMillis, card: &NewCard) -> Result<bool> {
        let (node, sequence) = (&card.node.as_bytes()[..], signed(card.sequence));
        let room =
            "SELECT (SELECT count(*) FROM evidence WHERE node = $1) < $2 AND (SELECT count(*) FROM evidence) < $3";
        if self.link.holds(room, &[&node, &EVIDENCE_OF_NODE, &EVIDENCE])? {
            let sql =
                "INSERT INTO evidence SELECT id, sequence, card, $2, $3 FROM nodes WHERE id = $1 AND card IS NOT NULL
                ON CONFLICT DO NOTHING";
            self.link.execute(sql, &[&node, &card.bytes, &signed(now.0)])?;
        }
        let sql = "SELECT EXISTS (SELECT 1 FROM evidence WHERE node = $1 AND sequence = $2)";
        self.link.holds(sql, &[&node, &sequence])
    }

    fn has_place(&mut self, most: u64) -> Result<bool> {
        let taken = match self.remembered()?.taken {
            Some(taken) => taken,
            None => self.link.number(
                "SELECT (SELECT count(*) FROM nodes WHERE card IS NOT NULL)
                    - (SELECT count(*) FROM bans JOIN nodes ON nodes.id = bans.node WHERE nodes.card IS NOT NULL)",
                &[],
            )?,
        };
        let free = taken < most;
        self.remembered()?.taken = Some(taken + u64::from(free));
        Ok(free)
    }

    fn give_places_back(&mut self, places: u64) {
        if let Some(Known { taken: Some(taken), .. }) = &mut self.known {
            *taken = taken.saturating_sub(places);
        }
    }

    fn log(&mut self, card: &NewCard) -> Result<Logged> {
        let mut salt: Option<Salt> = None;
        if !card.listed {
            let drawn = salt.insert([0; 16]);
            getrandom::fill(drawn).map_err(|_| Error::LocalRuntime(std::io::ErrorKind::Unsupported.into()))?;
        }
        let log = &mut self.remembered()?.log;
        let index = log.size();
        let new = log.append(&entry(&card.bytes, salt.as_ref()));
        if self.grown.is_empty() {
            self.grown_from = kept(index);
        }
        self.grown.extend(new.iter().map(|hash| hash.to_vec()));
        Ok(Logged { index, salt })
    }

    fn touch(&mut self, now: UnixMillis, place: u64) -> Result<()> {
        seen::note(&mut self.link, place, now)
    }

    fn quarantine(&mut self, card: &NewCard, out: bool) -> Result<()> {
        let sql = "UPDATE nodes SET listed = $2, quarantined = $3 WHERE id = $1";
        self.link.execute(sql, &[&&card.node.as_bytes()[..], &listed(card, out), &out])?;
        Ok(())
    }

    fn insert(&mut self, now: UnixMillis, card: &NewCard, hash: &[u8; 32], out: bool, logged: Logged) -> Result<()> {
        let sql = "INSERT INTO nodes (id, sequence, card, card_hash, listed, sector, methods, expires_at, first_seen,
                log_index, log_salt, quarantined)
            VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)
            ON CONFLICT (id) DO UPDATE SET sequence = $2, card = $3, card_hash = $4, listed = $5, sector = $6, methods = $7,
                expires_at = $8, log_index = $10, log_salt = $11, quarantined = $12";
        let salt = logged.salt.map(|salt| salt.to_vec());
        self.link.execute(
            sql,
            &[
                &&card.node.as_bytes()[..],
                &signed(card.sequence),
                &card.bytes,
                &&hash[..],
                &listed(card, out),
                &card.sector,
                &i32::from(card.methods),
                &signed(card.expires_at.0),
                &signed(now.0),
                &signed(logged.index),
                &salt,
                &out,
            ],
        )?;
        seen::note(&mut self.link, logged.index, now)
    }
}

impl CardReader for PostgresStore {
    fn node(&mut self, node: &NodeId) -> Result<Option<Held>> {
        let row = self.reach()?.row(&format!("{HELD} AND id = $1"), &[&&node.as_bytes()[..]])?;
        row.as_ref().map(held).transpose()
    }

    fn successor(&mut self, node: &NodeId) -> Result<Option<NodeId>> {
        rules::successor(self.reach()?, node)
    }

    fn page(&mut self, query: &Query) -> Result<Page> {
        let (ids, next) = self.fitting(query)?;
        let rows = self.reach()?.rows(&format!("{HELD} AND id = ANY($1) ORDER BY id"), &[&ids])?;
        Ok(Page { held: rows.iter().map(held).collect::<Result<_>>()?, next })
    }

    fn counts(&mut self, seen_since: UnixMillis) -> Result<Counts> {
        let sql = "SELECT count(*), (SELECT count(*) FROM seen WHERE at >= $1), count(*) FILTER (WHERE quarantined),
                (SELECT count(*) FROM evidence), (SELECT count(*) FROM bans) + (SELECT count(*) FROM prefix_bans),
                (SELECT coalesce(sum(pg_total_relation_size(oid)), 0)::bigint FROM pg_catalog.pg_class
                    WHERE relnamespace = 'openred_directory'::regnamespace AND relkind = 'r')
            FROM nodes WHERE card IS NOT NULL";
        let row = self.reach()?.row(sql, &[&signed(seen_since.0)])?.ok_or(Error::LocalStoreAway)?;
        let count = |column| row.try_get(column).map(unsigned);
        let (nodes, fresh, quarantined) = (count(0)?, count(1)?, count(2)?);
        Ok(Counts { nodes, fresh, quarantined, evidence: count(3)?, bans: count(4)?, bytes: count(5)? })
    }

    fn stats(&mut self, now: UnixMillis, seen_since: UnixMillis) -> Result<Stats> {
        let counts = self.counts(seen_since)?;
        let link = self.reach()?;
        let sql = "SELECT count(*) FILTER (WHERE listed <> 0), count(*) FILTER (WHERE card IS NOT NULL AND first_seen >= $1),
                count(*) FILTER (WHERE card IS NULL), (SELECT count(*) FROM successions), (SELECT count(*) FROM admitted),
                (SELECT count(*) FROM invites WHERE NOT revoked AND used < uses AND not_after > $2),
                (SELECT count(*) FROM history)
            FROM nodes";
        let row = link.row(sql, &[&signed(now.minus(DAY).0), &signed(now.0)])?.ok_or(Error::LocalStoreAway)?;
        let count = |column| row.try_get(column).map(unsigned);
        let sectors = "SELECT sector, count(*) FROM nodes WHERE card IS NOT NULL GROUP BY sector
            ORDER BY count(*) DESC, sector LIMIT 20";
        let sector = |row: &Row| Ok((row.try_get(0)?, unsigned(row.try_get(1)?)));
        let sectors = link.rows(sectors, &[])?.iter().map(sector).collect::<Result<_>>()?;
        let mut of_method = |method: Method| {
            let sql = "SELECT count(*) FROM nodes WHERE card IS NOT NULL AND methods & $1 <> 0";
            Ok((method.to_string(), link.number(sql, &[&method_bit(method)])?))
        };
        let methods = Method::ALL.into_iter().map(&mut of_method).collect::<Result<_>>()?;
        Ok(Stats {
            counts,
            listed: count(0)?,
            new_today: count(1)?,
            tombstones: count(2)?,
            successions: count(3)?,
            admitted: count(4)?,
            invites_open: count(5)?,
            changes: count(6)?,
            sectors,
            methods,
        })
    }

    fn bans(&mut self) -> Result<Bans> {
        decisions::bans(self.reach()?)
    }

    fn invites(&mut self) -> Result<Vec<InviteLine>> {
        decisions::invites(self.reach()?)
    }

    fn history(&mut self, before: Option<u64>, limit: usize) -> Result<Vec<Entry>> {
        decisions::history(self.reach()?, before, limit)
    }

    fn kept(&mut self, after: Option<&Kept>, limit: usize) -> Result<Vec<Kept>> {
        portable::kept(self.reach()?, after, limit)
    }

    fn mark(&mut self) -> Result<Mark> {
        decisions::mark(self.reach()?)
    }

    fn log_end(&mut self) -> Result<LogEnd> {
        let row = self.reach()?.row("SELECT size, root FROM log_end", &[])?.ok_or(Error::LocalStoreAway)?;
        Ok(LogEnd { size: unsigned(row.try_get(0)?), root: hash(&row, 1)? })
    }

    fn log_hash(&mut self, position: u64) -> Result<Hash> {
        log_hash(self.reach()?, position)
    }

    fn logged(&mut self, from: u64, to: u64) -> Result<Vec<Held>> {
        followed::logged(self.reach()?, from, to)
    }

    fn present(&mut self, from: u64, limit: usize) -> Result<Vec<PresentRow>> {
        followed::present(self.reach()?, from, limit)
    }
}

impl CardStore for PostgresStore {
    fn begin(&mut self) -> Result<()> {
        self.link.connect()?;
        self.link.batch("BEGIN")?;
        self.begun = true;
        let locked = self.lock();
        if locked.is_err() {
            self.roll_back();
        }
        locked
    }

    fn commit(&mut self) -> Result<()> {
        self.close_log()?;
        // Asked and not answered: it may hold or not. Nobody is told that it does not.
        let ended = self.link.batch("COMMIT").map_err(|error| match error {
            Error::LocalStoreAway => Error::LocalStoreUnknown,
            error => error,
        });
        self.begun = ended.is_err();
        ended
    }

    fn roll_back(&mut self) {
        // Where even this fails, the connection goes, and the transaction with it.
        if self.begun && self.link.batch("ROLLBACK").is_err() {
            self.link.forget();
        }
        self.begun = false;
        self.known = None;
        self.grown.clear();
    }

    fn register(&mut self, now: UnixMillis, card: &NewCard, terms: &Terms) -> Result<Registration> {
        self.within(|store| take_in(store, now, card, terms))
    }

    fn withdraw(&mut self, node: &NodeId) -> Result<bool> {
        self.within(|store| {
            store.remembered()?.taken = None;
            let sql = "UPDATE nodes SET card = NULL, listed = 0, log_salt = NULL, quarantined = false
                WHERE id = $1 AND card IS NOT NULL";
            Ok(store.link.execute(sql, &[&&node.as_bytes()[..]])? == 1)
        })
    }

    fn change(&mut self, author: &Author, change: &Change) -> Result<bool> {
        self.within(|store| {
            // A ban or a removal gives a place back.
            store.remembered()?.taken = None;
            decisions::change(&mut store.link, author, change)
        })
    }

    fn restore(&mut self, kept: &Kept) -> Result<bool> {
        self.within(|store| {
            store.remembered()?.taken = None;
            portable::restore(&mut store.link, kept)
        })
    }

    fn purge(&mut self, ended_before: UnixMillis) -> Result<u64> {
        self.within(|store| {
            store.remembered()?.taken = None;
            let link = &mut store.link;
            // Some at a time: nobody who registers waits for a hundred thousand.
            let some = |of: &str| format!("id IN (SELECT id FROM nodes WHERE {of} AND expires_at < $1 LIMIT {PURGE})");
            let ended =
                format!("UPDATE nodes SET card = NULL, listed = 0, log_salt = NULL WHERE {}", some("card IS NOT NULL"));
            let ended = link.execute(&ended, &[&signed(ended_before.0)])?;
            // An older card that its node signed has ended by then: it can live no longer than this.
            let forgotten = format!("DELETE FROM nodes WHERE {}", some("card IS NULL"));
            let forgotten = link.execute(&forgotten, &[&signed(ended_before.minus(CARD_LIFE).0)])?;
            successions::purge(link, ended_before.minus(SUCCESSION_KEPT))?;
            decisions::purge(link, ended_before)?;
            Ok(ended + forgotten)
        })
    }

    fn begin_run(&mut self, now: UnixMillis) -> Result<PreviousRun> {
        let name = self.replica.clone().unwrap_or_default();
        self.reach()?.hold_name(&name)?;
        self.within(|store| {
            let (before, number) = runs::begin(&mut store.link, store.replica.as_deref(), now)?;
            store.number = number;
            Ok(before)
        })
    }

    fn number(&self) -> u16 {
        self.number
    }
    fn end_run(&mut self, latest: u64) -> Result<()> {
        self.within(|store| runs::end(&mut store.link, store.replica.as_deref().unwrap_or_default(), latest))
    }
}

/// Whether a row of (id, methods, when it came last, expires_at, listed, without a card) is asked for.
fn fits(query: &Query, row: &Row) -> Result<bool> {
    if row.try_get(5)? {
        return Ok(false);
    }
    let (methods, expires_at): (i32, i64) = (row.try_get(1)?, row.try_get(3)?);
    let last_seen = row.try_get::<_, Option<i64>>(2)?.unwrap_or(0);
    if query.wants_listing && row.try_get::<_, i16>(4)? == 0 {
        return Ok(false);
    }
    Ok(query.method.is_none_or(|method| methods & method_bit(method) != 0)
        && query.seen_since.is_none_or(|since| unsigned(last_seen) >= since.0)
        && query.seen_before.is_none_or(|before| unsigned(last_seen) < before.0)
        && query.alive_at.is_none_or(|now| unsigned(expires_at) > now.0))
}

/// The bit of a method in a card's set.
fn method_bit(method: Method) -> i32 {
    i32::from(MethodSet::EMPTY.with(method).bits())
}

/// The column of that name.
fn listed(card: &NewCard, out: bool) -> i16 {
    i16::from(card.listed) * if out { 2 } else { 1 }
}

fn held(row: &Row) -> Result<Held> {
    let salt: Option<&[u8]> = row.try_get(10)?;
    Ok(Held {
        node: node_id(row, 0)?,
        sequence: unsigned(row.try_get(1)?),
        card: row.try_get(2)?,
        listed: row.try_get::<_, i16>(3)? != 0,
        sector: row.try_get(4)?,
        expires_at: time(row, 5)?,
        first_seen: time(row, 6)?,
        last_seen: time(row, 7)?,
        evidence: unsigned(row.try_get(8)?),
        logged: Logged {
            index: unsigned(row.try_get::<_, Option<i64>>(9)?.unwrap_or(0)),
            salt: salt.and_then(|salt| salt.try_into().ok()),
        },
        quarantined: row.try_get(11)?,
    })
}

fn log_hash(link: &mut Link, position: u64) -> Result<Hash> {
    let row = link.row("SELECT hash FROM log_hashes WHERE position = $1", &[&signed(position)])?;
    hash(&row.ok_or(Error::LocalStoreUnfit { why: "a hash of the log is missing; restore a backup" })?, 0)
}

/// 32 bytes; the tables hold no others.
fn hash(row: &Row, column: usize) -> Result<[u8; 32]> {
    let bytes: &[u8] = row.try_get(column)?;
    bytes
        .try_into()
        .map_err(|_| Error::LocalStoreUnfit { why: "a hash or id in it has another length; restore a backup" })
}

fn node_id(row: &Row, column: usize) -> Result<NodeId> {
    hash(row, column).map(NodeId::from_bytes)
}

fn time(row: &Row, column: usize) -> Result<UnixMillis> {
    Ok(UnixMillis(unsigned(row.try_get(column)?)))
}

/// PostgreSQL's text holds every character but one.
fn text(text: &str) -> String {
    text.replace('\0', "")
}

/// PostgreSQL's integers are signed; ours are times and counters far below 2^63.
fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn unsigned(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}
