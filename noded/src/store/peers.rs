//! Peers: the newest card of each, the highest sequence ever seen, and the operator's word on it.

use bytes::Bytes;
use openred_proto::id::{NodeId, UnixMillis};
use rusqlite::{Connection, OptionalExtension as _, Row, params};

use super::links::{millis, node_id, number};
use super::{Result, StoreError};

const COLUMNS: &str = "node_id, card, sequence, fetched_at, seen_at, approved_at, denied_at, listed";

/// What the operator has said of a peer's offers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Word {
    /// Nothing: they are up to the policy.
    #[default]
    None,
    Yes,
    No,
}

/// What the store knows of a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KnownPeer {
    pub(crate) node: NodeId,
    /// Signed card as received; empty when none is kept.
    pub(crate) card: Vec<u8>,
    /// Of the newest card ever seen.
    pub(crate) sequence: u64,
    pub(crate) fetched_at: UnixMillis,
    /// Last open session; zero: never.
    pub(crate) seen_at: UnixMillis,
    /// When the operator approved its offers; zero: not.
    pub(crate) approved_at: UnixMillis,
    /// When the operator denied them; zero: not. At most one of the two is set.
    pub(crate) denied_at: UnixMillis,
    /// Sequence of the newest card that a directory gave; `sequence` may be above it, from the peer itself.
    pub(crate) listed: u64,
}

impl KnownPeer {
    /// The operator's word on it.
    pub(crate) const fn word(&self) -> Word {
        match (self.denied_at.0, self.approved_at.0) {
            (0, 0) => Word::None,
            (0, _) => Word::Yes,
            _ => Word::No,
        }
    }
}

pub(crate) fn get(connection: &Connection, node: &NodeId) -> Result<Option<KnownPeer>> {
    let mut statement = connection.prepare_cached(&format!("SELECT {COLUMNS} FROM peer WHERE node_id = ?1"))?;
    statement.query_row([node.as_bytes()], |row| Ok(read(row))).optional()?.transpose()
}

pub(crate) fn all(connection: &Connection) -> Result<Vec<KnownPeer>> {
    let mut statement = connection.prepare_cached(&format!("SELECT {COLUMNS} FROM peer ORDER BY node_id"))?;
    let rows = statement.query_map([], |row| Ok(read(row)))?;
    rows.map(|row| row?).collect()
}

/// Keeps a verified card whose sequence is not below the one known. The caller has checked the succession.
pub(crate) fn keep_card(
    connection: &Connection,
    node: &NodeId,
    card: &[u8],
    sequence: u64,
    now: UnixMillis,
) -> Result<(u64, Bytes)> {
    connection
        .prepare_cached(
            "INSERT INTO peer (node_id, card, sequence, fetched_at, seen_at, approved_at) VALUES (?1, ?2, ?3, ?4, 0, 0)
             ON CONFLICT (node_id) DO UPDATE SET card = excluded.card, sequence = excluded.sequence,
             fetched_at = excluded.fetched_at WHERE excluded.sequence > sequence
             OR (excluded.sequence = sequence AND (length(card) = 0 OR card = excluded.card))",
        )?
        .execute(params![node.as_bytes(), card, number(sequence), millis(now)])?;
    let mut kept = connection.prepare_cached("SELECT sequence, card FROM peer WHERE node_id = ?1")?;
    let kept = kept.query_row([node.as_bytes()], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, Vec<u8>>(1)?)))?;
    Ok((kept.0.unsigned_abs(), kept.1.into()))
}

/// A directory gave a card of a known peer.
pub(crate) fn list(connection: &Connection, node: &NodeId, sequence: u64) -> Result<()> {
    connection
        .prepare_cached("UPDATE peer SET listed = ?2 WHERE node_id = ?1 AND listed < ?2")?
        .execute(params![node.as_bytes(), number(sequence)])?;
    Ok(())
}

/// The operator's word for a peer; it also covers later offers.
pub(crate) fn approve(connection: &Connection, node: &NodeId, now: UnixMillis) -> Result<()> {
    touch(connection, node, "denied_at", UnixMillis(0))?;
    touch(connection, node, "approved_at", now)
}

/// The operator's word against a peer.
pub(crate) fn deny(connection: &Connection, node: &NodeId, now: UnixMillis) -> Result<()> {
    touch(connection, node, "approved_at", UnixMillis(0))?;
    touch(connection, node, "denied_at", now)
}

/// Takes the operator's word back.
pub(crate) fn disapprove(connection: &Connection, node: &NodeId) -> Result<()> {
    connection.prepare_cached("UPDATE peer SET approved_at = 0 WHERE node_id = ?1")?.execute([node.as_bytes()])?;
    Ok(())
}

pub(crate) fn seen(connection: &Connection, node: &NodeId, now: UnixMillis) -> Result<()> {
    touch(connection, node, "seen_at", now)
}

/// Nodes of which nothing is left but that they were known once: no link, no word of the operator, no succession, and neither card nor
/// session since `before`. They are dropped; all of their cards of before have ended by then, so no sequence is needed to tell an older one.
pub(crate) fn purge(connection: &Connection, before: UnixMillis) -> Result<Vec<NodeId>> {
    let mut statement = connection.prepare_cached(
        "DELETE FROM peer WHERE approved_at = 0 AND denied_at = 0 AND max(fetched_at, seen_at) < ?1
         AND node_id NOT IN (SELECT peer FROM link) AND node_id NOT IN (SELECT peer FROM carried)
         AND node_id NOT IN (SELECT peer FROM reoffer)
         AND node_id NOT IN (SELECT old FROM succession UNION SELECT new FROM succession) RETURNING node_id",
    )?;
    let rows = statement.query_map([millis(before)], |row| Ok(node_id(row, 0)))?;
    rows.map(|row| row?.ok_or(StoreError::Damaged("peer"))).collect()
}

/// Drops card and the operator's word. The sequence stays: an older card must not be believed later.
pub(crate) fn forget(connection: &Connection, node: &NodeId) -> Result<()> {
    connection
        .prepare_cached("UPDATE peer SET card = x'', seen_at = 0, approved_at = 0, denied_at = 0 WHERE node_id = ?1")?
        .execute([node.as_bytes()])?;
    Ok(())
}

fn touch(connection: &Connection, node: &NodeId, column: &'static str, now: UnixMillis) -> Result<()> {
    connection
        .prepare_cached(
            "INSERT INTO peer (node_id, card, sequence, fetched_at, seen_at, approved_at) VALUES (?1, x'', 0, 0, 0, 0)
             ON CONFLICT (node_id) DO NOTHING",
        )?
        .execute([node.as_bytes()])?;
    connection
        .prepare_cached(&format!("UPDATE peer SET {column} = ?2 WHERE node_id = ?1"))?
        .execute(params![node.as_bytes(), millis(now)])?;
    Ok(())
}

fn read(row: &Row<'_>) -> Result<KnownPeer> {
    let damaged = |_| StoreError::Damaged("peer");
    let time = |column| Ok::<_, StoreError>(UnixMillis(row.get::<_, i64>(column).map_err(damaged)?.cast_unsigned()));
    Ok(KnownPeer {
        node: node_id(row, 0).ok_or(StoreError::Damaged("peer"))?,
        card: row.get(1).map_err(damaged)?,
        sequence: row.get::<_, i64>(2).map_err(damaged)?.cast_unsigned(),
        fetched_at: time(3)?,
        seen_at: time(4)?,
        approved_at: time(5)?,
        denied_at: time(6)?,
        listed: row.get::<_, i64>(7)?.unsigned_abs(),
    })
}
