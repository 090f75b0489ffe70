//! What can be taken to another directory, in pieces, and how it is taken over; in the order of SQLite, so that an export of one store
//! goes on where that of the other would.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use openred_proto::id::NodeId;
use tokio_postgres::Row;

use super::decisions::{INVITE, insert_admitted, insert_ban, insert_invite, insert_prefix_ban, invite_line};
use super::link::Link;
use super::{node_id, signed, unsigned};
use crate::error::Result;
use crate::store::decision::Kept;

/// The next piece: each kind's rows after a key, in the order of their keys.
pub(super) fn kept(link: &mut Link, after: Option<&Kept>, limit: usize) -> Result<Vec<Kept>> {
    let (first, mut key) = after.map_or((0, Vec::new()), place);
    for stage in first..STAGES {
        let piece = piece(link, stage, &key, signed(limit as u64))?;
        if !piece.is_empty() {
            return Ok(piece);
        }
        key = Vec::new();
    }
    Ok(Vec::new())
}

const STAGES: usize = 5;

fn piece(link: &mut Link, stage: usize, key: &[u8], limit: i64) -> Result<Vec<Kept>> {
    let invites = format!("SELECT {INVITE} FROM invites WHERE hash > $1 ORDER BY hash LIMIT $2");
    let cards =
        "SELECT id, card, coalesce((SELECT at FROM seen WHERE place = log_index), first_seen), quarantined FROM nodes
            WHERE card IS NOT NULL AND id > $1 ORDER BY id LIMIT $2";
    let (sql, read): (&str, fn(&Row) -> Result<Kept>) = match stage {
        0 => ("SELECT node, at, reason FROM bans WHERE node > $1 ORDER BY node LIMIT $2", ban),
        1 => {
            let sql = "SELECT prefix, at, reason FROM prefix_bans WHERE prefix > $1 ORDER BY prefix LIMIT $2";
            let rows = link.rows(sql, &[&String::from_utf8_lossy(key), &limit])?;
            return Ok(rows.iter().map(prefix_ban).collect::<Result<Vec<_>>>()?.into_iter().flatten().collect());
        }
        2 => (&invites, |row| invite_line(row).map(Kept::Invite)),
        3 => ("SELECT node, at FROM admitted WHERE node > $1 ORDER BY node LIMIT $2", admitted),
        _ => (cards, card),
    };
    link.rows(sql, &[&key, &limit])?.iter().map(read).collect()
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

fn ban(row: &Row) -> Result<Kept> {
    let node = node_id(row, 0)?.to_string();
    Ok(Kept::Ban { node, at: unsigned(row.try_get(1)?), reason: row.try_get(2)? })
}

/// None where it is no prefix: `restore` and `change` never wrote such a row.
fn prefix_ban(row: &Row) -> Result<Option<Kept>> {
    let (at, reason) = (unsigned(row.try_get(1)?), row.try_get(2)?);
    let prefix = row.try_get::<_, String>(0)?.parse().ok();
    Ok(prefix.map(|prefix| Kept::BanPrefix { prefix, at, reason }))
}

fn admitted(row: &Row) -> Result<Kept> {
    Ok(Kept::Admitted { node: node_id(row, 0)?.to_string(), at: unsigned(row.try_get(1)?) })
}

fn card(row: &Row) -> Result<Kept> {
    Ok(Kept::Card {
        node: node_id(row, 0)?.to_string(),
        card: STANDARD.encode(row.try_get::<_, &[u8]>(1)?),
        last_seen: unsigned(row.try_get(2)?),
        quarantined: row.try_get(3)?,
    })
}

/// Takes one record over that is not a card; cards go by the rules of a registration.
pub(super) fn restore(link: &mut Link, kept: &Kept) -> Result<bool> {
    let added = match kept {
        Kept::Ban { node, at, reason } => match node.parse() {
            Ok(node) => insert_ban(link, &node, signed(*at), reason)?,
            Err(_) => 0,
        },
        Kept::BanPrefix { prefix, at, reason } => insert_prefix_ban(link, prefix, signed(*at), reason)?,
        Kept::Invite(invite) => insert_invite(link, invite)?,
        Kept::Admitted { node, at } => match node.parse() {
            Ok(node) => insert_admitted(link, &node, signed(*at))?,
            Err(_) => 0,
        },
        Kept::Card { .. } => 0,
    };
    Ok(added == 1)
}
