//! Successions of the nodes that were registered here: who goes on for whom, since when it was heard.
//!
//! What a registered card says is kept even of older ids that were never here: a second successor must not come first with
//! them. So many words are kept and no more; beyond it only those of ids that have a row here.

use openred_proto::checked::succession::Heard;
use openred_proto::id::{NodeId, UnixMillis};
use rusqlite::{Connection, OptionalExtension as _, params};

use super::{WITHDRAW, decisions, signed, unsigned};
use crate::error::Result;
use crate::limits::{PURGE, SUCCESSIONS};
use crate::store::rules::Plan;

/// The table; part of the schema since version 3.
pub(super) const CREATE: &str = "
CREATE TABLE successions (
    old BLOB NOT NULL PRIMARY KEY,
    new BLOB NOT NULL,
    sequence INTEGER NOT NULL,
    heard_at INTEGER NOT NULL,
    taken_back INTEGER NOT NULL,
    consented INTEGER NOT NULL    -- a card of the new node, or of one that goes on for it, said the same
) STRICT;
CREATE INDEX heard_successions ON successions (heard_at);
";

/// A node and those that go on for it, each by the next one's consent.
pub(super) fn line_of(connection: &Connection, node: &NodeId) -> Result<Vec<NodeId>> {
    let sql = "WITH RECURSIVE line (id) AS (SELECT ?1 UNION SELECT new FROM successions JOIN line ON old = id
        WHERE taken_back = 0 AND consented = 1) SELECT id FROM line";
    let mut select = connection.prepare_cached(sql)?;
    let ids = select.query_map([node.as_bytes()], |row| row.get(0).map(NodeId::from_bytes))?;
    Ok(ids.collect::<rusqlite::Result<_>>()?)
}

/// Keeps what a card that was taken says of successions; how many places the cards that go give back. A banned node's took none.
pub(super) fn keep(connection: &Connection, plan: &Plan) -> Result<u64> {
    for (old, heard) in &plan.followed.changes {
        let is_here =
            "SELECT EXISTS (SELECT 1 FROM nodes WHERE id = ?1) OR EXISTS (SELECT 1 FROM successions WHERE old = ?1)
            OR EXISTS (SELECT 1 FROM admitted WHERE node = ?1) OR (SELECT count(*) FROM successions) < ?2";
        let has_place = connection
            .prepare_cached(is_here)?
            .query_row(params![old.as_bytes(), SUCCESSIONS], |row| row.get::<_, bool>(0))?;
        if !has_place {
            continue;
        }
        let consented = plan.followed.earlier.contains(old);
        let sql = "INSERT OR REPLACE INTO successions (old, new, sequence, heard_at, taken_back, consented)
            VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
        connection.prepare_cached(sql)?.execute(params![
            old.as_bytes(),
            heard.new.as_bytes(),
            signed(heard.sequence),
            signed(heard.heard_at.0),
            heard.taken_back,
            consented
        ])?;
    }
    let mut places = 0;
    for gone in plan.followed.earlier.iter().chain(&plan.ended) {
        let sql = format!("{WITHDRAW} WHERE id = ?1 AND card IS NOT NULL");
        let went = connection.prepare_cached(&sql)?.execute([gone.as_bytes()])?;
        places += u64::from(went > 0 && !decisions::is_banned(connection, gone)?);
    }
    Ok(places)
}

/// Drops some of what was heard before then and leads to nobody who is here.
pub(super) fn purge(connection: &Connection, heard_before: UnixMillis) -> Result<usize> {
    let sql = format!(
        "DELETE FROM successions WHERE rowid IN (SELECT rowid FROM successions WHERE heard_at < ?1
            AND NOT EXISTS (SELECT 1 FROM nodes WHERE id = new AND card IS NOT NULL)
            AND new NOT IN (SELECT old FROM successions) LIMIT {PURGE})"
    );
    Ok(connection.execute(&sql, [signed(heard_before.0)])?)
}

pub(super) fn heard(connection: &Connection, old: &NodeId) -> Result<Option<(Heard, bool)>> {
    let sql = "SELECT new, sequence, heard_at, taken_back, consented FROM successions WHERE old = ?1";
    let read = connection.prepare_cached(sql)?.query_row([old.as_bytes()], |row| {
        let number = |column| row.get::<_, i64>(column).map(unsigned);
        let heard = Heard {
            new: NodeId::from_bytes(row.get(0)?),
            sequence: number(1)?,
            heard_at: UnixMillis(number(2)?),
            taken_back: row.get(3)?,
        };
        Ok((heard, row.get(4)?))
    });
    Ok(read.optional()?)
}
