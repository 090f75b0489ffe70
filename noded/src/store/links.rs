//! Links in the database: written as a whole, read as a whole, so that what is kept is always one of the machine's states.

use openred_proto::id::{LinkId, NodeId, UnixMillis};
use openred_proto::method::{Method, Place};
use openred_proto::vault::LinkSummary;
use rusqlite::{Connection, Row, params};

use super::{Result, StoreError};
use crate::link::state::{EndReason, Link, LinkState, TokenMatch};

const COLUMNS: &str = "link_id, peer, state, issuer, method, epoch, not_before, not_after, created_at, changed_at, \
     sealed_row, token_id, offer, directory, receipt, reason, vault_told, mutual_link, matched, matched_at, \
     handshake_at, sent_counter, received_counter, renews, registered";

/// Every link, ended ones included.
pub(crate) fn all(connection: &Connection) -> Result<Vec<Link>> {
    let mut statement =
        connection.prepare_cached(&format!("SELECT {COLUMNS} FROM link ORDER BY created_at, link_id"))?;
    let rows = statement.query_map([], |row| Ok(read(row)))?;
    rows.map(|row| row?.ok_or(StoreError::Damaged("link"))).collect()
}

/// Writes a link, new or changed.
pub(crate) fn put(connection: &Connection, link: &Link) -> Result<()> {
    let summary = &link.summary;
    connection
        .prepare_cached(&format!(
            "INSERT OR REPLACE INTO link ({COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13,
             ?14, ?15, ?16, ?17, ?18, ?19, ?20, ?21, ?22, ?23, ?24, ?25)"
        ))?
        .execute(params![
            summary.link.as_bytes(),
            summary.peer.as_bytes(),
            link.state as u8,
            summary.issuer,
            number(summary.method.number()),
            number(summary.epoch),
            millis(summary.not_before),
            millis(summary.not_after),
            millis(link.created_at),
            millis(link.changed_at),
            link.row,
            link.token_id,
            link.offer,
            link.directory.as_bytes(),
            link.receipt,
            link.reason as u8,
            link.vault_told,
            link.mutual_link.as_ref().map_or(&[][..], |bytes| &bytes[..]),
            link.matched as u8,
            millis(link.matched_at),
            millis(link.handshake_at),
            number(link.sent_counter),
            number(link.received_counter),
            link.renews.as_ref().map_or(&[][..], |renewed| renewed.as_bytes()),
            summary.registered.map_or(0, Place::number),
        ])?;
    Ok(())
}

/// Drops a link for good.
pub(crate) fn purge(connection: &Connection, link: &LinkId) -> Result<()> {
    connection.prepare_cached("DELETE FROM link WHERE link_id = ?1")?.execute([link.as_bytes()])?;
    Ok(())
}

/// SQLite's integers are signed: the bits are kept, the sign means nothing.
pub(super) const fn number(value: u64) -> i64 {
    value.cast_signed()
}

pub(super) const fn millis(time: UnixMillis) -> i64 {
    time.0.cast_signed()
}

pub(super) fn node_id(row: &Row<'_>, column: usize) -> Option<NodeId> {
    Some(NodeId::from_bytes(row.get(column).ok()?))
}

fn read(row: &Row<'_>) -> Option<Link> {
    let unsigned = |column| row.get::<_, i64>(column).ok().map(i64::cast_unsigned);
    let time = |column| unsigned(column).map(UnixMillis);
    let small = |column| row.get::<_, u8>(column).ok();
    let blob = |column| row.get::<_, Vec<u8>>(column).ok();
    Some(Link {
        summary: LinkSummary {
            link: LinkId::from_bytes(row.get(0).ok()?),
            peer: node_id(row, 1)?,
            issuer: row.get(3).ok()?,
            method: Method::from_number(unsigned(4)?).ok()?,
            epoch: unsigned(5)?,
            not_before: time(6)?,
            not_after: time(7)?,
            registered: match small(24)? {
                0 => None,
                place => Some(Place::from_number(place.into()).ok()?),
            },
        },
        state: LinkState::ALL.into_iter().find(|state| Some(*state as u8) == small(2))?,
        created_at: time(8)?,
        changed_at: time(9)?,
        row: blob(10)?,
        token_id: row.get(11).ok()?,
        offer: blob(12)?,
        directory: node_id(row, 13)?,
        receipt: blob(14)?,
        reason: EndReason::ALL.into_iter().find(|reason| Some(*reason as u8) == small(15))?,
        vault_told: row.get(16).ok()?,
        mutual_link: match blob(17)?.as_slice() {
            [] => None,
            bytes => Some(bytes.try_into().ok()?),
        },
        matched: TokenMatch::ALL.into_iter().find(|matched| Some(*matched as u8) == small(18))?,
        matched_at: time(19)?,
        handshake_at: time(20)?,
        sent_counter: unsigned(21)?,
        received_counter: unsigned(22)?,
        renews: match blob(23)?.as_slice() {
            [] => None,
            id => Some(LinkId::from_bytes(id.try_into().ok()?)),
        },
    })
}
