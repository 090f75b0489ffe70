//! What each run leaves behind: of a directory that is alone, the greatest `created` that it took; of a replica, its number, because the
//! nonces that it took are in the database for all to see.

use openred_proto::id::UnixMillis;

use super::link::Link;
use super::{signed, unsigned};
use crate::error::{Error, Result};
use crate::limits::{REPLICA_BITS, SIGNATURE_SKEW};
use crate::store::PreviousRun;

/// A directory that is alone begins. Replicas that ran here before kept their nonces for each other: for it they are runs like any.
fn begin_alone(link: &mut Link) -> Result<PreviousRun> {
    let rows = link.rows("DELETE FROM runs RETURNING latest", &[])?;
    link.execute("INSERT INTO runs (replica, number, latest) VALUES ('', 0, NULL)", &[])?;
    let mut before = PreviousRun::Never;
    for row in rows {
        let latest: Option<i64> = row.try_get(0)?;
        before = match (before, latest.map(unsigned)) {
            (PreviousRun::CutOff, _) | (_, None) => PreviousRun::CutOff,
            (PreviousRun::Ended { latest: other }, Some(latest)) => PreviousRun::Ended { latest: latest.max(other) },
            (PreviousRun::Never, Some(latest)) => PreviousRun::Ended { latest },
        };
    }
    Ok(before)
}

/// A run begins, of the replica of this name or of a directory that is alone; with its number.
pub(super) fn begin(link: &mut Link, replica: Option<&str>, now: UnixMillis) -> Result<(PreviousRun, u16)> {
    match replica {
        Some(name) => begin_replica(link, name, now),
        None => begin_alone(link).map(|before| (before, 0)),
    }
}

/// A replica begins; with its number, which its name keeps. Nonces of other replicas and of its own runs are shared; those of a directory
/// that was alone are not, so what that left behind counts.
fn begin_replica(link: &mut Link, name: &str, now: UnixMillis) -> Result<(PreviousRun, u16)> {
    // That one runs no more: its name is held. What it may have taken was signed before this.
    let over = now.seconds() + SIGNATURE_SKEW.as_secs();
    link.execute("UPDATE runs SET latest = $1 WHERE replica = '' AND latest IS NULL", &[&signed(over)])?;
    let row = link.row("SELECT latest FROM runs WHERE replica = ''", &[])?;
    let alone: Option<i64> = row.map(|row| row.try_get(0)).transpose()?;
    let sql = "INSERT INTO runs (replica, number, latest)
        SELECT $1::text, (SELECT min(free) FROM generate_series(1, $2::integer) AS free WHERE free NOT IN (SELECT number FROM runs)), NULL::bigint
        ON CONFLICT (replica) DO UPDATE SET latest = NULL RETURNING number";
    let most: i32 = (1 << REPLICA_BITS) - 1;
    let row = link.row(sql, &[&name, &most])?.ok_or(Error::LocalStoreAway)?;
    let number: i32 = row.try_get(0)?;
    let before = alone.map_or(PreviousRun::Never, |latest| PreviousRun::Ended { latest: unsigned(latest) });
    Ok((before, u16::try_from(number).unwrap_or(0)))
}

/// A run ends in order and took nothing signed after `latest`.
pub(super) fn end(link: &mut Link, replica: &str, latest: u64) -> Result<()> {
    link.execute("UPDATE runs SET latest = $1 WHERE replica = $2", &[&signed(latest), &replica]).map(drop)
}
