//! What can be taken to another directory, in pieces that each go on where the last one ended, and how it is taken over.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use openred_proto::id::NodeId;
use rusqlite::{Connection, Row, params};

use super::decisions::{insert_invite, invite_line};
use super::{signed, unsigned};
use crate::error::Result;
use crate::store::decision::Kept;

/// How a row is read.
type Read = fn(&Row<'_>) -> rusqlite::Result<Kept>;

/// Each kind: its rows after a key, in the order of their keys.
const STAGES: [(&str, Read); 5] = [
    ("SELECT node, at, reason FROM bans WHERE node > ?1 ORDER BY node LIMIT ?2", ban),
    ("SELECT prefix, at, reason FROM prefix_bans WHERE prefix > CAST(?1 AS TEXT) ORDER BY prefix LIMIT ?2", prefix_ban),
    (
        "SELECT hash, uses, used, made_at, not_after, revoked, note FROM invites WHERE hash > ?1 ORDER BY hash LIMIT ?2",
        |row| invite_line(row).map(Kept::Invite),
    ),
    ("SELECT node, at FROM admitted WHERE node > ?1 ORDER BY node LIMIT ?2", admitted),
    (
        "SELECT id, card, coalesce((SELECT at FROM seen WHERE place = log_index), first_seen), quarantined
            FROM nodes WHERE card IS NOT NULL AND id > ?1 ORDER BY id LIMIT ?2",
        card,
    ),
];

/// The next piece.
pub(super) fn kept(connection: &Connection, after: Option<&Kept>, limit: usize) -> Result<Vec<Kept>> {
    let (first, mut key) = after.map_or((0, Vec::new()), place);
    for (sql, read) in &STAGES[first..] {
        let mut select = connection.prepare_cached(sql)?;
        let rows = select.query_map(params![key, signed(limit as u64)], read)?;
        let piece = rows.collect::<rusqlite::Result<Vec<_>>>()?;
        if !piece.is_empty() {
            return Ok(piece);
        }
        key = Vec::new();
    }
    Ok(Vec::new())
}

/// Stage and key of a record.
fn place(kept: &Kept) -> (usize, Vec<u8>) {
    let node = |text: &str| text.parse::<NodeId>().map(|node| node.as_bytes().to_vec()).unwrap_or_default();
    match kept {
        Kept::Ban { node: text, .. } => (0, node(text)),
        Kept::BanPrefix { prefix, .. } => (1, prefix.to_string().into_bytes()),
        Kept::Invite(invite) => (2, invite.hash.to_vec()),
        Kept::Admitted { node: text, .. } => (3, node(text)),
        Kept::Card { node: text, .. } => (4, node(text)),
    }
}

fn node(row: &Row<'_>) -> rusqlite::Result<String> {
    Ok(NodeId::from_bytes(row.get(0)?).to_string())
}

fn ban(row: &Row<'_>) -> rusqlite::Result<Kept> {
    Ok(Kept::Ban { node: node(row)?, at: unsigned(row.get(1)?), reason: row.get(2)? })
}

fn prefix_ban(row: &Row<'_>) -> rusqlite::Result<Kept> {
    let text: String = row.get(0)?;
    let wrong = |error| rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Text, Box::new(error));
    Ok(Kept::BanPrefix { prefix: text.parse().map_err(wrong)?, at: unsigned(row.get(1)?), reason: row.get(2)? })
}

fn admitted(row: &Row<'_>) -> rusqlite::Result<Kept> {
    Ok(Kept::Admitted { node: node(row)?, at: unsigned(row.get(1)?) })
}

fn card(row: &Row<'_>) -> rusqlite::Result<Kept> {
    let card: Vec<u8> = row.get(1)?;
    let last_seen = unsigned(row.get(2)?);
    Ok(Kept::Card { node: node(row)?, card: STANDARD.encode(card), last_seen, quarantined: row.get(3)? })
}

/// Takes one record over that is not a card; cards go by the rules of a registration.
pub(super) fn restore(connection: &Connection, kept: &Kept) -> Result<bool> {
    let id = |text: &str| text.parse::<NodeId>().map(|node| *node.as_bytes()).ok();
    let added = match kept {
        Kept::Ban { node, at, reason } => connection.execute(
            "INSERT OR IGNORE INTO bans (node, at, reason) SELECT ?1, ?2, ?3 WHERE ?1 IS NOT NULL",
            params![id(node), signed(*at), reason],
        )?,
        Kept::BanPrefix { prefix, at, reason } => connection.execute(
            "INSERT OR IGNORE INTO prefix_bans (prefix, at, reason) VALUES (?1, ?2, ?3)",
            params![prefix.to_string(), signed(*at), reason],
        )?,
        Kept::Invite(invite) => insert_invite(connection, invite)?,
        Kept::Admitted { node, at } => connection.execute(
            "INSERT OR IGNORE INTO admitted (node, at, invite) SELECT ?1, ?2, NULL WHERE ?1 IS NOT NULL",
            params![id(node), signed(*at)],
        )?,
        Kept::Card { .. } => 0,
    };
    Ok(added == 1)
}
