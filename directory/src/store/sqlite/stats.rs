//! Figures for the operator, counted over all rows: a second or so for a million, on the admin's connection.

use std::time::Duration;

use openred_proto::id::UnixMillis;
use openred_proto::method::Method;
use rusqlite::{Connection, Params};

use super::pages::method_bit;
use super::{signed, unsigned};
use crate::error::Result;
use crate::store::{Counts, Stats};

const DAY: Duration = Duration::from_secs(86_400);

pub(super) fn stats(connection: &Connection, now: UnixMillis, counts: Counts) -> Result<Stats> {
    let count = |sql: &str| number(connection, sql, []);
    let new_today = "SELECT count(*) FROM nodes WHERE card IS NOT NULL AND first_seen >= ?1";
    let invites_open = "SELECT count(*) FROM invites WHERE revoked = 0 AND used < uses AND not_after > ?1";
    let with_method = "SELECT count(*) FROM nodes WHERE card IS NOT NULL AND methods & ?1 <> 0";
    let mut select = connection.prepare_cached(
        "SELECT sector, count(*) FROM nodes WHERE card IS NOT NULL GROUP BY sector ORDER BY count(*) DESC, sector LIMIT 20",
    )?;
    let sectors = select.query_map([], |row| Ok((row.get(0)?, row.get(1).map(unsigned)?)))?;
    let of_method = |method: Method| Ok((method.to_string(), number(connection, with_method, [method_bit(method)])?));
    Ok(Stats {
        counts,
        listed: count("SELECT count(*) FROM nodes WHERE listed <> 0")?,
        new_today: number(connection, new_today, [signed(now.minus(DAY).0)])?,
        tombstones: count("SELECT count(*) FROM nodes WHERE card IS NULL")?,
        successions: count("SELECT count(*) FROM successions")?,
        admitted: count("SELECT count(*) FROM admitted")?,
        invites_open: number(connection, invites_open, [signed(now.0)])?,
        changes: count("SELECT count(*) FROM history")?,
        sectors: sectors.collect::<rusqlite::Result<_>>()?,
        methods: Method::ALL.into_iter().map(of_method).collect::<Result<_>>()?,
    })
}

fn number(connection: &Connection, sql: &str, values: impl Params) -> Result<u64> {
    Ok(unsigned(connection.prepare_cached(sql)?.query_row(values, |row| row.get(0))?))
}
