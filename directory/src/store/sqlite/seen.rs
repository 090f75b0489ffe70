//! When each card came last, in a table of its own, by the card's place in the log. It is what most announcements change, and nothing else:
//! beside the cards, each would write their page and those of the indexes anew; here a million times fit into 12 MB, and one page has three
//! hundred of them. What such an announcement is judged by has an index of its own, for the same reason.

use openred_proto::id::UnixMillis;
use rusqlite::{Connection, params};

use super::{signed, unsigned};
use crate::error::Result;

/// Part of the schema since version 7. A row stands for each card that is held; it goes with the card, as the card's place does.
pub(super) const CREATE: &str = "
CREATE TABLE seen (place INTEGER PRIMARY KEY, at INTEGER NOT NULL) STRICT;
UPDATE nodes SET log_index = NULL WHERE card IS NULL;
INSERT OR REPLACE INTO seen SELECT log_index, last_seen FROM nodes WHERE card IS NOT NULL AND log_index IS NOT NULL;
DROP INDEX seen_nodes;
DROP INDEX listed_nodes;
DROP INDEX listed_sectors;
ALTER TABLE nodes DROP COLUMN last_seen;
CREATE INDEX listed_nodes ON nodes (id, methods, expires_at, log_index, listed) WHERE listed = 1;
CREATE INDEX listed_sectors ON nodes (sector, id, methods, expires_at, log_index, listed) WHERE listed = 1;
CREATE INDEX known_nodes ON nodes (id, sequence, card_hash, quarantined, expires_at, log_index);
CREATE TRIGGER seen_goes AFTER UPDATE OF log_index ON nodes WHEN NEW.log_index IS NOT OLD.log_index
    BEGIN DELETE FROM seen WHERE place = OLD.log_index; END;
";

/// What is asked of a node that announces itself, from the index alone; it has no place in the log while it has no card.
pub(super) const KNOWN: &str = "SELECT sequence, card_hash, quarantined, expires_at, log_index FROM nodes
    INDEXED BY known_nodes WHERE id = ?1";

/// Notes when the card at a place came last.
pub(super) fn note(connection: &Connection, place: u64, at: UnixMillis) -> Result<()> {
    let sql = "INSERT INTO seen (place, at) VALUES (?1, ?2) ON CONFLICT (place) DO UPDATE SET at = ?2";
    connection.prepare_cached(sql)?.execute(params![signed(place), signed(at.0)])?;
    Ok(())
}

/// How many cards are held, and how many of them came since then.
pub(super) fn counts(connection: &Connection, since: UnixMillis) -> Result<(u64, u64)> {
    let sql = "SELECT count(*), count(*) FILTER (WHERE at >= ?1) FROM seen";
    let mut select = connection.prepare_cached(sql)?;
    Ok(select.query_row([signed(since.0)], |row| Ok((unsigned(row.get(0)?), unsigned(row.get(1)?))))?)
}
