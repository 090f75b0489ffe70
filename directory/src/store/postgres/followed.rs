//! What a directory reads for its mirrors. A mirror itself keeps its cards in a file of its own.

use super::link::Link;
use super::{HELD, held, node_id, signed, time, unsigned};
use crate::error::Result;
use crate::store::Held;
use crate::store::followed::PresentRow;

/// The index; part of the schema since version 2.
pub(super) const CREATE: &str = "CREATE INDEX logged_cards ON nodes (log_index) WHERE card IS NOT NULL;";

/// Cards that are shown, from one place in the log to before another, in its order.
pub(super) fn logged(link: &mut Link, from: u64, to: u64) -> Result<Vec<Held>> {
    let sql = format!("{HELD} AND NOT quarantined AND log_index >= $1 AND log_index < $2 ORDER BY log_index");
    link.rows(&sql, &[&signed(from), &signed(to)])?.iter().map(held).collect()
}

/// The same by their places alone, at most `limit`.
pub(super) fn present(link: &mut Link, from: u64, limit: usize) -> Result<Vec<PresentRow>> {
    let sql = "SELECT id, log_index, coalesce((SELECT at FROM seen WHERE place = log_index), first_seen), expires_at FROM nodes
        WHERE card IS NOT NULL AND NOT quarantined AND log_index >= $1 ORDER BY log_index LIMIT $2";
    let rows = link.rows(sql, &[&signed(from), &signed(limit as u64)])?;
    let row = |row: &tokio_postgres::Row| {
        let index = unsigned(row.try_get(1)?);
        Ok(PresentRow { node: node_id(row, 0)?, index, last_seen: time(row, 2)?, expires_at: time(row, 3)? })
    };
    rows.iter().map(row).collect()
}
