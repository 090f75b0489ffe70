//! Pages of nodes, in the order of their ids.

use openred_proto::id::NodeId;
use rusqlite::{Row, params};

use super::{SqliteStore, unsigned};
use crate::error::Result;
use crate::store::{Page, Query};

/// A page of nodes.
pub(super) fn page(store: &SqliteStore, query: &Query) -> Result<Page> {
    let mut fitting = Vec::new();
    let mut next = None;
    {
        // Looked through in an index that has all that is asked for; the cards are fetched for those that fit.
        let (among, gone) = match (query.listed_only, query.quarantined_only) {
            (true, _) => ("listed = 1", "0"),
            (_, true) => ("quarantined = 1 AND card IS NOT NULL", "0"),
            // Rows without a card are passed over here, where they are counted: there may be a million of them.
            _ if query.examine.is_some() => ("1", "card IS NULL"),
            _ => ("card IS NOT NULL", "0"),
        };
        let sector = if query.sector.is_some() { " AND sector = ?2" } else { "" };
        let mut select = store.connection.prepare_cached(&format!(
                "SELECT id, methods, (SELECT at FROM seen WHERE place = log_index), expires_at, listed, {gone} FROM nodes WHERE {among} AND id > ?1{sector} ORDER BY id"
            ))?;
        let after = query.begins_after();
        let mut rows = match &query.sector {
            Some(sector) => select.query(params![after, sector])?,
            None => select.query([after])?,
        };
        let mut examined = 0;
        while next.is_none()
            && let Some(row) = rows.next()?
        {
            let id = NodeId::from_bytes(row.get(0)?);
            if query.to.is_some_and(|last| id > last) {
                break;
            }
            examined += 1;
            if fits(query, row)? {
                fitting.push(id);
            }
            let enough = fitting.len() == query.limit || Some(examined) == query.examine;
            next = enough.then_some(id);
        }
    }
    let held = fitting.iter().filter_map(|id| store.read(id).transpose()).collect::<Result<_>>()?;
    Ok(Page { held, next })
}

/// Whether a row of (id, methods, when it came last, expires_at, listed, without a card) is asked for.
fn fits(query: &Query, row: &Row<'_>) -> rusqlite::Result<bool> {
    if row.get(5)? {
        return Ok(false);
    }
    let (methods, expires_at): (i64, i64) = (row.get(1)?, row.get(3)?);
    let last_seen = row.get::<_, Option<i64>>(2)?.unwrap_or(0);
    if query.wants_listing && row.get::<_, i64>(4)? == 0 {
        return Ok(false);
    }
    Ok(query.method.is_none_or(|method| methods & method_bit(method) != 0)
        && query.seen_since.is_none_or(|since| unsigned(last_seen) >= since.0)
        && query.seen_before.is_none_or(|before| unsigned(last_seen) < before.0)
        && query.alive_at.is_none_or(|now| unsigned(expires_at) > now.0))
}

/// The bit of a method in a card's set.
pub(super) fn method_bit(method: openred_proto::method::Method) -> i64 {
    i64::from(openred_proto::method::MethodSet::EMPTY.with(method).bits())
}
