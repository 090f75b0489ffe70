//! A mirror's side of the store: entries and cards as the mirrored directory's log has them; and what a directory reads for its mirrors.

use std::collections::HashSet;

use openred_proto::id::{NodeId, UnixMillis};
use openred_proto::log::tree::kept;
use rusqlite::{Connection, OptionalExtension as _, Row, params};

use super::{HELD, SqliteStore, WITHDRAW, held, log, signed, unsigned};
use crate::error::Result;
use crate::store::followed::{Following, PresentRow, Step};
use crate::store::{Held, rules};

/// The table and the index; part of the schema since version 6.
pub(super) const CREATE: &str = "
CREATE INDEX logged_cards ON nodes (log_index) WHERE card IS NOT NULL;
CREATE TABLE upstream (one INTEGER PRIMARY KEY CHECK (one = 1), directory BLOB NOT NULL, head TEXT) STRICT;
";

/// A time of presence that differs by less is not written.
const SEEN_NOISE_MILLIS: u64 = 5000;

/// Cards that are shown, from one place in the log to before another, in its order.
pub(super) fn logged(connection: &Connection, from: u64, to: u64) -> Result<Vec<Held>> {
    let sql = format!("{HELD} AND quarantined = 0 AND log_index >= ?1 AND log_index < ?2 ORDER BY log_index");
    let mut select = connection.prepare_cached(&sql)?;
    let rows = select.query_map(params![signed(from), signed(to)], held)?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

/// The same by their places alone, at most `limit`.
pub(super) fn present(connection: &Connection, from: u64, limit: usize) -> Result<Vec<PresentRow>> {
    let sql = "SELECT id, log_index, coalesce((SELECT at FROM seen WHERE place = log_index), first_seen), expires_at FROM nodes
        WHERE card IS NOT NULL AND quarantined = 0 AND log_index >= ?1 ORDER BY log_index LIMIT ?2";
    let row = |row: &Row<'_>| {
        let number = |column| row.get(column).map(unsigned);
        let (last_seen, expires_at) = (UnixMillis(number(2)?), UnixMillis(number(3)?));
        Ok(PresentRow { node: NodeId::from_bytes(row.get(0)?), index: number(1)?, last_seen, expires_at })
    };
    let mut select = connection.prepare_cached(sql)?;
    let rows = select.query_map(params![signed(from), signed(limit as u64)], row)?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

pub(super) fn following(connection: &Connection) -> Result<Option<Following>> {
    let row = connection.query_row("SELECT directory, head FROM upstream", [], |row| {
        Ok(Following { directory: NodeId::from_bytes(row.get(0)?), head: row.get(1)? })
    });
    Ok(row.optional()?)
}

/// [`crate::store::CardStore::follow`] inside a transaction.
pub(super) fn follow(store: &mut SqliteStore, now: UnixMillis, step: &Step) -> Result<Option<NodeId>> {
    if !step.leaves.is_empty() {
        let growing = log::growing(&store.connection, &mut store.growing)?;
        let mut insert = store.connection.prepare_cached("INSERT INTO log_hashes (position, hash) VALUES (?1, ?2)")?;
        for leaf in &step.leaves {
            let first = kept(growing.size());
            for (position, hash) in (first..).zip(growing.append_leaf(*leaf)) {
                insert.execute(params![signed(position), hash])?;
            }
        }
    }
    store.taken = None;
    let mut contradicted = None;
    for (card, logged, seen) in &step.cards {
        if !rules::take_over(store, now, *seen, card, *logged)? {
            contradicted.get_or_insert(card.node);
        }
    }
    let sql = "INSERT INTO upstream (one, directory, head) VALUES (1, ?1, ?2)
        ON CONFLICT (one) DO UPDATE SET directory = ?1, head = coalesce(?2, head)";
    store.connection.prepare_cached(sql)?.execute(params![step.directory.as_bytes(), step.head])?;
    Ok(contradicted)
}

/// [`crate::store::CardStore::keep_present`].
pub(super) fn keep_present(
    connection: &Connection,
    from: u64,
    to: u64,
    present: &[(u64, UnixMillis)],
) -> Result<Vec<u64>> {
    let mut select = connection
        .prepare_cached("SELECT log_index FROM nodes WHERE card IS NOT NULL AND log_index >= ?1 AND log_index < ?2")?;
    let rows = select.query_map(params![signed(from), signed(to)], |row| row.get(0).map(unsigned))?;
    let mut here = rows.collect::<rusqlite::Result<HashSet<u64>>>()?;
    let mut update = connection.prepare_cached(
        "INSERT INTO seen (place, at) VALUES (?1, ?2) ON CONFLICT (place) DO UPDATE SET at = ?2 WHERE abs(at - ?2) > ?3",
    )?;
    let mut missing = Vec::new();
    for (index, seen) in present {
        if here.remove(index) {
            update.execute(params![signed(*index), signed(seen.0), signed(SEEN_NOISE_MILLIS)])?;
        } else {
            missing.push(*index);
        }
    }
    let mut drop = connection.prepare_cached(&format!("{WITHDRAW} WHERE card IS NOT NULL AND log_index = ?1"))?;
    for gone in here {
        drop.execute([signed(gone)])?;
    }
    Ok(missing)
}
