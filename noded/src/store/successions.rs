//! Successions of peers that matter here, whose standing was carried over, and peers that are to be offered a link anew.
//!
//! Only words about an identity that this node knows are kept, and those that lead to one: a stranger's card leaves nothing
//! behind.

use openred_proto::checked::succession::{Contradiction, Heard, Lineage};
use openred_proto::id::{NodeId, UnixMillis};
use rusqlite::{Connection, OptionalExtension as _, params};

use super::links::{millis, node_id, number};
use super::{Result, StoreError, Word};
use crate::link::state::{EndReason, LinkState};

/// What came of a lineage.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Carried {
    /// Identities that the card's node goes on for, by their own word; oldest first.
    pub(crate) earlier: Vec<NodeId>,
    /// Something was kept: links have to be held against it.
    pub(crate) is_news: bool,
}

/// Every succession in force: who, and who goes on in its place.
pub(crate) fn all(connection: &Connection) -> Result<Vec<(NodeId, NodeId)>> {
    let mut statement =
        connection.prepare_cached("SELECT old, new FROM succession WHERE taken_back = 0 ORDER BY old")?;
    let rows = statement.query_map([], |row| Ok(node_id(row, 0).zip(node_id(row, 1))))?;
    rows.map(|row| row?.ok_or(StoreError::Damaged("succession"))).collect()
}

/// Nodes that had an earlier identity's approval and have it no more; their links are to end.
pub(crate) fn withdrawn(connection: &Connection) -> Result<Vec<NodeId>> {
    let mut statement = connection.prepare_cached("SELECT peer FROM carried WHERE withdrawn = 1 ORDER BY peer")?;
    let rows = statement.query_map([], |row| Ok(node_id(row, 0)))?;
    rows.map(|row| row?.ok_or(StoreError::Damaged("carried"))).collect()
}

/// Their links have ended.
pub(crate) fn forget_withdrawn(connection: &Connection, peer: &NodeId) -> Result<()> {
    let sql = "DELETE FROM carried WHERE peer = ?1 AND withdrawn = 1";
    connection.prepare_cached(sql)?.execute([peer.as_bytes()])?;
    Ok(())
}

/// Follows the verified lineage of `node`'s card.
pub(crate) fn follow(
    connection: &Connection,
    node: &NodeId,
    lineage: &Lineage,
    now: UnixMillis,
) -> Result<std::result::Result<Carried, Contradiction>> {
    // Of a node that stands here by itself, too: who it goes on for must be heard from nobody else first.
    let (mut matters, mut heard) = (is_known(connection, node)?, Vec::new());
    for word in lineage.steps() {
        let held = get(connection, &word.old)?;
        matters |= held.is_some() || is_known(connection, &word.old)?;
        heard.extend(held.map(|heard| (word.old, heard)));
    }
    let of = |old: &NodeId| heard.iter().find(|(held, _)| held == old).map(|(_, heard)| *heard);
    let followed = match lineage.follow(of, now) {
        Ok(followed) => followed,
        Err(contradiction) => return Ok(Err(contradiction)),
    };
    if matters {
        for (old, heard) in &followed.changes {
            put(connection, old, heard)?;
        }
        for (old, _) in &followed.taken_back {
            withdraw(connection, old)?;
        }
        // Once, with the word itself: what the operator takes back later stays taken back.
        let is_new = |old: &&NodeId| followed.changes.iter().any(|(said, heard)| said == *old && !heard.taken_back);
        for earlier in followed.earlier.iter().filter(is_new) {
            if word(connection, earlier)? == Word::Yes && carry(connection, earlier, node, now)? {
                break;
            }
        }
    }
    let is_news = matters && !followed.changes.is_empty();
    Ok(Ok(Carried { earlier: followed.earlier, is_news }))
}

/// Whether there is anything about this node here: a link, or a word of the operator.
fn is_known(connection: &Connection, node: &NodeId) -> Result<bool> {
    let sql = "SELECT EXISTS (SELECT 1 FROM peer WHERE node_id = ?1 AND (approved_at > 0 OR denied_at > 0 OR length(card) > 0))
        OR EXISTS (SELECT 1 FROM link WHERE peer = ?1)";
    Ok(connection.prepare_cached(sql)?.query_row([node.as_bytes()], |row| row.get(0))?)
}

fn get(connection: &Connection, old: &NodeId) -> Result<Option<Heard>> {
    let sql = "SELECT new, sequence, heard_at, taken_back FROM succession WHERE old = ?1";
    let mut statement = connection.prepare_cached(sql)?;
    let read = statement.query_row([old.as_bytes()], |row| {
        Ok(node_id(row, 0).map(|new| {
            Ok::<_, rusqlite::Error>(Heard {
                new,
                sequence: row.get::<_, i64>(1)?.cast_unsigned(),
                heard_at: UnixMillis(row.get::<_, i64>(2)?.cast_unsigned()),
                taken_back: row.get(3)?,
            })
        }))
    });
    match read.optional()? {
        None => Ok(None),
        Some(read) => Ok(Some(read.ok_or(StoreError::Damaged("succession"))??)),
    }
}

fn put(connection: &Connection, old: &NodeId, heard: &Heard) -> Result<()> {
    let sql =
        "INSERT OR REPLACE INTO succession (old, new, sequence, heard_at, taken_back) VALUES (?1, ?2, ?3, ?4, ?5)";
    connection.prepare_cached(sql)?.execute(params![
        old.as_bytes(),
        heard.new.as_bytes(),
        number(heard.sequence),
        millis(heard.heard_at),
        heard.taken_back
    ])?;
    Ok(())
}

fn word(connection: &Connection, node: &NodeId) -> Result<Word> {
    Ok(super::peers::get(connection, node)?.map_or(Word::None, |peer| peer.word()))
}

/// Gives `node` the yes that `earlier` has, by the operator's word or by the configuration; whether nothing was said of it before.
pub(crate) fn carry(connection: &Connection, earlier: &NodeId, node: &NodeId, now: UnixMillis) -> Result<bool> {
    if word(connection, node)? != Word::None {
        return Ok(false);
    }
    super::peers::approve(connection, node, now)?;
    let sql = "INSERT OR REPLACE INTO carried (peer, earlier, withdrawn) VALUES (?1, ?2, 0)";
    connection.prepare_cached(sql)?.execute(params![node.as_bytes(), earlier.as_bytes()])?;
    Ok(true)
}

/// Takes the yes back from whoever had it from `earlier`, however many words later.
fn withdraw(connection: &Connection, earlier: &NodeId) -> Result<()> {
    const HAD: &str = "WITH RECURSIVE had (id) AS (SELECT peer FROM carried WHERE earlier = ?1
        UNION SELECT carried.peer FROM carried JOIN had ON carried.earlier = had.id)";
    for change in [
        "UPDATE peer SET approved_at = 0 WHERE node_id IN (SELECT id FROM had)",
        "UPDATE carried SET withdrawn = 1 WHERE peer IN (SELECT id FROM had)",
    ] {
        connection.prepare_cached(&format!("{HAD} {change}"))?.execute([earlier.as_bytes()])?;
    }
    Ok(())
}

/// The operator has spoken about this peer himself: what it had from an earlier identity is over.
pub(crate) fn spoken(connection: &Connection, peer: &NodeId) -> Result<()> {
    connection.prepare_cached("DELETE FROM carried WHERE peer = ?1 AND withdrawn = 0")?.execute([peer.as_bytes()])?;
    Ok(())
}

/// Nothing of a peer is to be remembered: neither its words, nor that it is owed a link.
pub(crate) fn forget(connection: &Connection, peer: &NodeId) -> Result<()> {
    spoken(connection, peer)?;
    reoffered(connection, peer)?;
    connection.prepare_cached("DELETE FROM succession WHERE old = ?1 OR new = ?1")?.execute([peer.as_bytes()])?;
    Ok(())
}

/// Says whose state this is. A state that belongs to an identity which `node` goes on for becomes `node`'s: its links, which
/// are the earlier identity's, end, and their peers are to be offered others. Another node's id is given back.
pub(crate) fn bind(
    connection: &Connection,
    node: &NodeId,
    earlier: &[NodeId],
    now: UnixMillis,
) -> Result<Option<NodeId>> {
    connection.execute("INSERT OR IGNORE INTO meta (name, value) VALUES ('node', ?1)", [node.as_bytes()])?;
    let bound = connection.query_row("SELECT value FROM meta WHERE name = 'node'", [], |row| row.get(0))?;
    let bound = NodeId::from_bytes(bound);
    if bound == *node {
        return Ok(None);
    }
    if !earlier.contains(&bound) {
        return Ok(Some(bound));
    }
    connection.execute(
        "INSERT OR REPLACE INTO reoffer (peer, since) SELECT DISTINCT peer, ?1 FROM link WHERE state IN (?2, ?3, ?4, ?5)",
        params![
            millis(now),
            LinkState::Offered as u8,
            LinkState::Pending as u8,
            LinkState::Active as u8,
            LinkState::Renewing as u8
        ],
    )?;
    // The key process has begun a new epoch: it knows none of these rows any more and needs not be told.
    connection.execute(
        "UPDATE link SET state = ?1, reason = ?2, changed_at = ?3, offer = x'', vault_told = 1 WHERE state NOT IN (?1, ?4)",
        params![
            LinkState::Revoked as u8,
            EndReason::OwnSuccession as u8,
            millis(now),
            LinkState::Expired as u8
        ],
    )?;
    connection.execute("UPDATE meta SET value = ?1 WHERE name = 'node'", [node.as_bytes()])?;
    Ok(None)
}

/// Peers that are to be offered a link anew, since when.
pub(crate) fn to_reoffer(connection: &Connection) -> Result<Vec<(NodeId, UnixMillis)>> {
    let mut statement = connection.prepare_cached("SELECT peer, since FROM reoffer ORDER BY peer")?;
    let rows = statement.query_map([], |row| {
        Ok(node_id(row, 0).zip(row.get::<_, i64>(1).ok().map(|at| UnixMillis(at.cast_unsigned()))))
    })?;
    rows.map(|row| row?.ok_or(StoreError::Damaged("reoffer"))).collect()
}

/// A peer's last link has run out: it is to be offered another, if the operator has said yes to it, or the policy `admits` it.
pub(crate) fn owe(connection: &Connection, peer: &NodeId, admits: bool, now: UnixMillis) -> Result<()> {
    if admits {
        let sql = "INSERT OR IGNORE INTO reoffer (peer, since) VALUES (?1, ?2)";
        connection.prepare_cached(sql)?.execute(params![peer.as_bytes(), millis(now)])?;
        return Ok(());
    }
    let sql = "INSERT OR IGNORE INTO reoffer (peer, since) SELECT node_id, ?2 FROM peer WHERE node_id = ?1 AND approved_at > 0";
    connection.prepare_cached(sql)?.execute(params![peer.as_bytes(), millis(now)])?;
    Ok(())
}

/// Done, or given up.
pub(crate) fn reoffered(connection: &Connection, peer: &NodeId) -> Result<()> {
    connection.prepare_cached("DELETE FROM reoffer WHERE peer = ?1")?.execute([peer.as_bytes()])?;
    Ok(())
}

#[cfg(test)]
#[path = "successions_tests.rs"]
mod tests;
