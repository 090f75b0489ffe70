//! Operators' decisions in SQLite, and the history of them, which triggers keep from being changed.

use ipnet::IpNet;
use openred_proto::id::{NodeId, UnixMillis};
use rusqlite::{Connection, OptionalExtension as _, Row, params};

use super::{WITHDRAW, signed, unsigned};
use crate::error::Result;
use crate::limits::{INVITE_KEPT, PURGE};
use crate::store::decision::{Author, Ban, Bans, Change, Entry, InviteLine};

/// What schema 5 added.
pub(super) const CREATE: &str = "
ALTER TABLE nodes ADD COLUMN quarantined INTEGER NOT NULL DEFAULT 0;
CREATE INDEX quarantined_nodes ON nodes (id) WHERE quarantined = 1;
CREATE TABLE prefix_bans (prefix TEXT NOT NULL PRIMARY KEY, at INTEGER NOT NULL, reason TEXT NOT NULL) STRICT;
CREATE TABLE invites (
    hash BLOB NOT NULL PRIMARY KEY CHECK (length(hash) = 32),
    uses INTEGER NOT NULL,
    used INTEGER NOT NULL,
    made_at INTEGER NOT NULL,
    not_after INTEGER NOT NULL,
    revoked INTEGER NOT NULL,
    note TEXT NOT NULL
) STRICT;
CREATE TABLE admitted (node BLOB NOT NULL PRIMARY KEY, at INTEGER NOT NULL, invite BLOB) STRICT; -- by an operator: invite NULL
CREATE TABLE history (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    at INTEGER NOT NULL,
    uid INTEGER NOT NULL,
    action TEXT NOT NULL,
    target TEXT NOT NULL,
    remark TEXT NOT NULL
) STRICT;
CREATE TRIGGER history_stays BEFORE UPDATE ON history BEGIN SELECT RAISE(ABORT, 'the history is only added to'); END;
CREATE TRIGGER history_remains BEFORE DELETE ON history BEGIN SELECT RAISE(ABORT, 'the history is only added to'); END;
";

pub(super) fn is_admitted(connection: &Connection, node: &NodeId) -> Result<bool> {
    let sql = "SELECT EXISTS (SELECT 1 FROM admitted WHERE node = ?1)";
    Ok(connection.prepare_cached(sql)?.query_row([node.as_bytes()], |row| row.get(0))?)
}

pub(super) fn is_banned(connection: &Connection, node: &NodeId) -> Result<bool> {
    let sql = "SELECT EXISTS (SELECT 1 FROM bans WHERE node = ?1)";
    Ok(connection.prepare_cached(sql)?.query_row([node.as_bytes()], |row| row.get(0))?)
}

pub(super) fn is_here(connection: &Connection, node: &NodeId) -> Result<bool> {
    let sql = "SELECT EXISTS (SELECT 1 FROM nodes WHERE id = ?1 AND card IS NOT NULL AND quarantined = 0)";
    Ok(connection.prepare_cached(sql)?.query_row([node.as_bytes()], |row| row.get(0))?)
}

pub(super) fn invite(connection: &Connection, hash: &[u8; 32]) -> Result<Option<InviteLine>> {
    let sql = "SELECT hash, uses, used, made_at, not_after, revoked, note FROM invites WHERE hash = ?1";
    Ok(connection.prepare_cached(sql)?.query_row([hash], invite_line).optional()?)
}

/// Uses an invite that was found good, once.
pub(super) fn use_invite(connection: &Connection, now: UnixMillis, node: &NodeId, hash: &[u8; 32]) -> Result<()> {
    connection.prepare_cached("UPDATE invites SET used = used + 1 WHERE hash = ?1")?.execute([hash])?;
    let sql = "INSERT OR IGNORE INTO admitted (node, at, invite) VALUES (?1, ?2, ?3)";
    connection.prepare_cached(sql)?.execute(params![node.as_bytes(), signed(now.0), hash])?;
    Ok(())
}

/// Makes a change; false when there was nothing to change. With its line in the history.
pub(super) fn change(connection: &Connection, author: &Author, change: &Change) -> Result<bool> {
    let at = signed(author.at.0);
    let run = |sql: &str, values: &[&dyn rusqlite::ToSql]| connection.execute(sql, values);
    let changed = match change {
        Change::Ban(node, reason) => {
            run("INSERT OR IGNORE INTO bans (node, at, reason) VALUES (?1, ?2, ?3)", &[node.as_bytes(), &at, reason])?
        }
        Change::Unban(node) => run("DELETE FROM bans WHERE node = ?1", &[node.as_bytes()])?,
        Change::BanPrefix(prefix, reason) => {
            let sql = "INSERT OR IGNORE INTO prefix_bans (prefix, at, reason) VALUES (?1, ?2, ?3)";
            run(sql, &[&prefix.to_string(), &at, reason])?
        }
        Change::UnbanPrefix(prefix) => run("DELETE FROM prefix_bans WHERE prefix = ?1", &[&prefix.to_string()])?,
        Change::Approve(node) => {
            let free = "UPDATE nodes SET quarantined = 0, listed = min(listed, 1) WHERE id = ?1 AND quarantined = 1";
            let admit = "INSERT OR IGNORE INTO admitted (node, at, invite) VALUES (?1, ?2, NULL)";
            run(free, &[node.as_bytes()])? + run(admit, &[node.as_bytes(), &at])?
        }
        Change::Remove(node) => {
            let drop_card = format!("{WITHDRAW} WHERE id = ?1 AND card IS NOT NULL");
            // Those that it goes on for as well: else it came back by their standing.
            let dismiss = "DELETE FROM admitted WHERE node IN (WITH RECURSIVE line (id) AS (SELECT ?1 UNION
                SELECT old FROM successions JOIN line ON new = id WHERE taken_back = 0 AND consented = 1) SELECT id FROM line)";
            run(&drop_card, &[node.as_bytes()])? + run(dismiss, &[node.as_bytes()])?
        }
        Change::Invite(invite) => insert_invite(connection, invite)?,
        Change::Revoke(hash) => run("UPDATE invites SET revoked = 1 WHERE hash = ?1 AND revoked = 0", &[hash])?,
        Change::Import(_) => 1,
    };
    if changed > 0 {
        let (action, target, remark) = change.words();
        let sql = "INSERT INTO history (at, uid, action, target, remark) VALUES (?1, ?2, ?3, ?4, ?5)";
        run(sql, &[&at, &author.uid, &action, &target, &remark])?;
    }
    Ok(changed > 0)
}

pub(super) fn insert_invite(connection: &Connection, invite: &InviteLine) -> rusqlite::Result<usize> {
    let sql = "INSERT OR IGNORE INTO invites (hash, uses, used, made_at, not_after, revoked, note)
        VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
    let (made_at, not_after) = (signed(invite.made_at), signed(invite.not_after));
    let values = params![invite.hash, invite.uses, invite.used, made_at, not_after, invite.revoked, invite.note];
    connection.execute(sql, values)
}

pub(super) fn invite_line(row: &Row<'_>) -> rusqlite::Result<InviteLine> {
    Ok(InviteLine {
        hash: row.get(0)?,
        uses: row.get(1)?,
        used: row.get(2)?,
        made_at: unsigned(row.get(3)?),
        not_after: unsigned(row.get(4)?),
        revoked: row.get(5)?,
        note: row.get(6)?,
    })
}

/// All bans.
pub(super) fn bans(connection: &Connection) -> Result<Bans> {
    let time = |row: &Row<'_>| row.get(1).map(|at: i64| UnixMillis(unsigned(at)));
    let mut select = connection.prepare_cached("SELECT node, at, reason FROM bans ORDER BY node")?;
    let nodes = select
        .query_map([], |row| Ok(Ban { who: NodeId::from_bytes(row.get(0)?), at: time(row)?, reason: row.get(2)? }))?;
    let mut select_prefixes =
        connection.prepare_cached("SELECT prefix, at, reason FROM prefix_bans ORDER BY prefix")?;
    let prefixes = select_prefixes.query_map([], |row| {
        let text: String = row.get(0)?;
        // Written by `change` from the same type: what is none was never written.
        let who = text.parse::<IpNet>().ok();
        let (at, reason) = (time(row)?, row.get(2)?);
        Ok(who.map(|who| Ban { who, at, reason }))
    })?;
    let nodes = nodes.collect::<rusqlite::Result<_>>()?;
    let prefixes: Vec<Option<Ban<IpNet>>> = prefixes.collect::<rusqlite::Result<_>>()?;
    Ok(Bans { nodes, prefixes: prefixes.into_iter().flatten().collect() })
}

/// All invites, the oldest first.
pub(super) fn invites(connection: &Connection) -> Result<Vec<InviteLine>> {
    let sql = "SELECT hash, uses, used, made_at, not_after, revoked, note FROM invites ORDER BY made_at, hash";
    Ok(connection.prepare_cached(sql)?.query_map([], invite_line)?.collect::<rusqlite::Result<_>>()?)
}

/// Drops some invites that nobody could use for a long time.
pub(super) fn purge(connection: &Connection, now: UnixMillis) -> Result<usize> {
    let sql =
        format!("DELETE FROM invites WHERE rowid IN (SELECT rowid FROM invites WHERE not_after < ?1 LIMIT {PURGE})");
    Ok(connection.execute(&sql, [signed(now.minus(INVITE_KEPT).0)])?)
}

/// The newest entries of the history before that number.
pub(super) fn history(connection: &Connection, before: Option<u64>, limit: usize) -> Result<Vec<Entry>> {
    let sql =
        "SELECT number, at, uid, action, target, remark FROM history WHERE number < ?1 ORDER BY number DESC LIMIT ?2";
    let mut select = connection.prepare_cached(sql)?;
    let rows = select.query_map(params![before.map_or(i64::MAX, signed), signed(limit as u64)], |row| {
        Ok(Entry {
            number: unsigned(row.get(0)?),
            at: unsigned(row.get(1)?),
            uid: row.get(2)?,
            action: row.get(3)?,
            target: row.get(4)?,
            remark: row.get(5)?,
        })
    })?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}
