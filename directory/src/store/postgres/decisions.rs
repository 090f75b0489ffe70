//! Operators' decisions in PostgreSQL, and the history of them, which triggers keep from being changed; as in SQLite; `rules` judges by them for both.

use ipnet::IpNet;
use openred_proto::id::{NodeId, UnixMillis};
use tokio_postgres::Row;

use super::link::Link;
use super::{hash, node_id, signed, text, time, unsigned};
use crate::error::{Error, Result};
use crate::limits::{INVITE_KEPT, PURGE};
use crate::store::Mark;
use crate::store::decision::{Author, Ban, Bans, Change, Entry, InviteLine};

pub(super) const INVITE: &str = "hash, uses, used, made_at, not_after, revoked, note";

pub(super) fn is_admitted(link: &mut Link, node: &NodeId) -> Result<bool> {
    link.holds("SELECT EXISTS (SELECT 1 FROM admitted WHERE node = $1)", &[&&node.as_bytes()[..]])
}

pub(super) fn is_banned(link: &mut Link, node: &NodeId) -> Result<bool> {
    link.holds("SELECT EXISTS (SELECT 1 FROM bans WHERE node = $1)", &[&&node.as_bytes()[..]])
}

pub(super) fn is_here(link: &mut Link, node: &NodeId) -> Result<bool> {
    let sql = "SELECT EXISTS (SELECT 1 FROM nodes WHERE id = $1 AND card IS NOT NULL AND NOT quarantined)";
    link.holds(sql, &[&&node.as_bytes()[..]])
}

pub(super) fn invite(link: &mut Link, hash: &[u8; 32]) -> Result<Option<InviteLine>> {
    let row = link.row(&format!("SELECT {INVITE} FROM invites WHERE hash = $1"), &[&&hash[..]])?;
    row.as_ref().map(invite_line).transpose()
}

/// Uses an invite that was found good, once.
pub(super) fn use_invite(link: &mut Link, now: UnixMillis, node: &NodeId, hash: &[u8; 32]) -> Result<()> {
    link.execute("UPDATE invites SET used = used + 1 WHERE hash = $1", &[&&hash[..]])?;
    let sql = "INSERT INTO admitted (node, at, invite) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING";
    link.execute(sql, &[&&node.as_bytes()[..], &signed(now.0), &&hash[..]])?;
    Ok(())
}

/// Makes a change; false when there was nothing to change. With its line in the history.
pub(super) fn change(link: &mut Link, author: &Author, change: &Change) -> Result<bool> {
    let at = signed(author.at.0);
    let changed = match change {
        Change::Ban(node, reason) => insert_ban(link, node, at, reason)?,
        Change::Unban(node) => link.execute("DELETE FROM bans WHERE node = $1", &[&&node.as_bytes()[..]])?,
        Change::BanPrefix(prefix, reason) => insert_prefix_ban(link, prefix, at, reason)?,
        Change::UnbanPrefix(prefix) => {
            link.execute("DELETE FROM prefix_bans WHERE prefix = $1", &[&prefix.to_string()])?
        }
        Change::Approve(node) => {
            let free = "UPDATE nodes SET quarantined = false, listed = least(listed, 1::smallint) WHERE id = $1 AND quarantined";
            link.execute(free, &[&&node.as_bytes()[..]])? + insert_admitted(link, node, at)?
        }
        Change::Remove(node) => {
            let drop_card = "UPDATE nodes SET card = NULL, listed = 0, log_salt = NULL, quarantined = false
                WHERE id = $1 AND card IS NOT NULL";
            // Those that it goes on for as well: else it came back by their standing.
            let dismiss = "DELETE FROM admitted WHERE node IN (WITH RECURSIVE line (id) AS (SELECT $1::bytea UNION
                SELECT old FROM successions JOIN line ON new = id WHERE NOT taken_back AND consented) SELECT id FROM line)";
            link.execute(drop_card, &[&&node.as_bytes()[..]])? + link.execute(dismiss, &[&&node.as_bytes()[..]])?
        }
        Change::Invite(invite) => insert_invite(link, invite)?,
        Change::Revoke(hash) => {
            link.execute("UPDATE invites SET revoked = true WHERE hash = $1 AND NOT revoked", &[&&hash[..]])?
        }
        Change::Import(_) => 1,
    };
    if changed > 0 {
        let (action, target, remark) = change.words();
        let sql = "INSERT INTO history (at, uid, action, target, remark) VALUES ($1, $2, $3, $4, $5)";
        link.execute(sql, &[&at, &i64::from(author.uid), &action, &text(&target), &text(&remark)])?;
    }
    Ok(changed > 0)
}

pub(super) fn insert_ban(link: &mut Link, node: &NodeId, at: i64, reason: &str) -> Result<u64> {
    let sql = "INSERT INTO bans (node, at, reason) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING";
    link.execute(sql, &[&&node.as_bytes()[..], &at, &text(reason)])
}

pub(super) fn insert_prefix_ban(link: &mut Link, prefix: &IpNet, at: i64, reason: &str) -> Result<u64> {
    let sql = "INSERT INTO prefix_bans (prefix, at, reason) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING";
    link.execute(sql, &[&prefix.to_string(), &at, &text(reason)])
}

pub(super) fn insert_admitted(link: &mut Link, node: &NodeId, at: i64) -> Result<u64> {
    let sql = "INSERT INTO admitted (node, at, invite) VALUES ($1, $2, NULL) ON CONFLICT DO NOTHING";
    link.execute(sql, &[&&node.as_bytes()[..], &at])
}

pub(super) fn insert_invite(link: &mut Link, invite: &InviteLine) -> Result<u64> {
    let sql = "INSERT INTO invites (hash, uses, used, made_at, not_after, revoked, note)
        VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT DO NOTHING";
    let (uses, used) = (i64::from(invite.uses), i64::from(invite.used));
    let (made_at, not_after) = (signed(invite.made_at), signed(invite.not_after));
    let note = text(&invite.note);
    link.execute(sql, &[&&invite.hash[..], &uses, &used, &made_at, &not_after, &invite.revoked, &note])
}

pub(super) fn invite_line(row: &Row) -> Result<InviteLine> {
    let count = |column| row.try_get(column).map(|count: i64| u32::try_from(count).unwrap_or(u32::MAX));
    Ok(InviteLine {
        hash: hash(row, 0)?,
        uses: count(1)?,
        used: count(2)?,
        made_at: unsigned(row.try_get(3)?),
        not_after: unsigned(row.try_get(4)?),
        revoked: row.try_get(5)?,
        note: row.try_get(6)?,
    })
}

/// How far operators' changes go.
pub(super) fn mark(link: &mut Link) -> Result<Mark> {
    let sql = "SELECT (SELECT coalesce(max(number), 0) FROM history), (SELECT count(*) FROM bans), (SELECT count(*) FROM prefix_bans)";
    let row = link.row(sql, &[])?.ok_or(Error::LocalStoreAway)?;
    let count = |column| row.try_get(column).map(unsigned);
    Ok(Mark { changes: count(0)?, bans: count(1)?, prefix_bans: count(2)? })
}

/// All bans.
pub(super) fn bans(link: &mut Link) -> Result<Bans> {
    let nodes = link.rows("SELECT node, at, reason FROM bans ORDER BY node", &[])?;
    let node = |row: &Row| Ok(Ban { who: node_id(row, 0)?, at: time(row, 1)?, reason: row.try_get(2)? });
    let nodes = nodes.iter().map(node).collect::<Result<_>>()?;
    let mut prefixes = Vec::new();
    for row in link.rows("SELECT prefix, at, reason FROM prefix_bans ORDER BY prefix", &[])? {
        // Written by `change` from the same type: what is none was never written.
        if let Ok(who) = row.try_get::<_, String>(0)?.parse::<IpNet>() {
            prefixes.push(Ban { who, at: time(&row, 1)?, reason: row.try_get(2)? });
        }
    }
    Ok(Bans { nodes, prefixes })
}

/// All invites, the oldest first.
pub(super) fn invites(link: &mut Link) -> Result<Vec<InviteLine>> {
    link.rows(&format!("SELECT {INVITE} FROM invites ORDER BY made_at, hash"), &[])?.iter().map(invite_line).collect()
}

/// Drops some invites that nobody could use for a long time.
pub(super) fn purge(link: &mut Link, now: UnixMillis) -> Result<u64> {
    let sql =
        format!("DELETE FROM invites WHERE hash IN (SELECT hash FROM invites WHERE not_after < $1 LIMIT {PURGE})");
    link.execute(&sql, &[&signed(now.minus(INVITE_KEPT).0)])
}

/// The newest entries of the history before that number.
pub(super) fn history(link: &mut Link, before: Option<u64>, limit: usize) -> Result<Vec<Entry>> {
    let sql =
        "SELECT number, at, uid, action, target, remark FROM history WHERE number < $1 ORDER BY number DESC LIMIT $2";
    let rows = link.rows(sql, &[&before.map_or(i64::MAX, signed), &signed(limit as u64)])?;
    let entry = |row: &Row| {
        Ok(Entry {
            number: unsigned(row.try_get(0)?),
            at: unsigned(row.try_get(1)?),
            uid: u32::try_from(row.try_get::<_, i64>(2)?).unwrap_or(u32::MAX),
            action: row.try_get(3)?,
            target: row.try_get(4)?,
            remark: row.try_get(5)?,
        })
    };
    rows.iter().map(entry).collect()
}
