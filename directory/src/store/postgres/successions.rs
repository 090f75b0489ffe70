//! Successions of the nodes that were registered here, as in SQLite (`sqlite/successions.rs`); `rules` judges them for both.

use openred_proto::checked::succession::Heard;
use openred_proto::id::{NodeId, UnixMillis};

use super::link::Link;
use super::{decisions, node_id, signed, time, unsigned};
use crate::error::Result;
use crate::limits::{PURGE, SUCCESSIONS};
use crate::store::rules::Plan;

/// A node and those that go on for it, each by the next one's consent.
pub(super) fn line_of(link: &mut Link, node: &NodeId) -> Result<Vec<NodeId>> {
    let sql = "WITH RECURSIVE line (id) AS (SELECT $1::bytea UNION SELECT new FROM successions JOIN line ON old = id
        WHERE NOT taken_back AND consented) SELECT id FROM line";
    link.rows(sql, &[&&node.as_bytes()[..]])?.iter().map(|row| node_id(row, 0)).collect()
}

/// Keeps what a card that was taken says of successions; how many places the cards that go give back. A banned node's took none.
pub(super) fn keep(link: &mut Link, plan: &Plan) -> Result<u64> {
    for (old, heard) in &plan.followed.changes {
        let is_here =
            "SELECT EXISTS (SELECT 1 FROM nodes WHERE id = $1) OR EXISTS (SELECT 1 FROM successions WHERE old = $1)
            OR EXISTS (SELECT 1 FROM admitted WHERE node = $1) OR (SELECT count(*) FROM successions) < $2";
        if !link.holds(is_here, &[&&old.as_bytes()[..], &SUCCESSIONS])? {
            continue;
        }
        let consented = plan.followed.earlier.contains(old);
        let sql = "INSERT INTO successions (old, new, sequence, heard_at, taken_back, consented)
            VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (old) DO UPDATE SET new = excluded.new, sequence = excluded.sequence,
            heard_at = excluded.heard_at, taken_back = excluded.taken_back, consented = excluded.consented";
        let (sequence, heard_at) = (signed(heard.sequence), signed(heard.heard_at.0));
        let new = &heard.new.as_bytes()[..];
        link.execute(sql, &[&&old.as_bytes()[..], &new, &sequence, &heard_at, &heard.taken_back, &consented])?;
    }
    let mut places = 0;
    for gone in plan.followed.earlier.iter().chain(&plan.ended) {
        let sql = "UPDATE nodes SET card = NULL, listed = 0, log_salt = NULL WHERE id = $1 AND card IS NOT NULL";
        let went = link.execute(sql, &[&&gone.as_bytes()[..]])?;
        places += u64::from(went > 0 && !decisions::is_banned(link, gone)?);
    }
    Ok(places)
}

/// Drops some of what was heard before then and leads to nobody who is here.
pub(super) fn purge(link: &mut Link, heard_before: UnixMillis) -> Result<u64> {
    let sql = format!(
        "DELETE FROM successions WHERE old IN (SELECT old FROM successions AS s WHERE heard_at < $1
            AND NOT EXISTS (SELECT 1 FROM nodes WHERE id = s.new AND card IS NOT NULL)
            AND NOT EXISTS (SELECT 1 FROM successions AS later WHERE later.old = s.new) LIMIT {PURGE})"
    );
    link.execute(&sql, &[&signed(heard_before.0)])
}

pub(super) fn heard(link: &mut Link, old: &NodeId) -> Result<Option<(Heard, bool)>> {
    let sql = "SELECT new, sequence, heard_at, taken_back, consented FROM successions WHERE old = $1";
    let Some(row) = link.row(sql, &[&&old.as_bytes()[..]])? else { return Ok(None) };
    let heard = Heard {
        new: node_id(&row, 0)?,
        sequence: unsigned(row.try_get(1)?),
        heard_at: time(&row, 2)?,
        taken_back: row.try_get(3)?,
    };
    Ok(Some((heard, row.try_get(4)?)))
}
