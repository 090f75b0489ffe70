//! When each card came last, in a table of its own, by the card's place in the log. It is what most announcements change, and nothing else:
//! beside the cards, each would write its whole row anew.

use openred_proto::id::UnixMillis;

use super::link::Link;
use super::signed;
use crate::error::Result;

/// Part of the schema since version 4. A row stands for each card that is held; it goes with the card. A page has room for rows that are
/// written again, which then stay on it and leave its index alone.
pub(super) const CREATE: &str = "
LOCK TABLE nodes IN ACCESS EXCLUSIVE MODE;
CREATE TABLE seen (place bigint PRIMARY KEY, at bigint NOT NULL) WITH (fillfactor = 60);
INSERT INTO seen SELECT log_index, last_seen FROM nodes WHERE card IS NOT NULL AND log_index IS NOT NULL ON CONFLICT DO NOTHING;
ALTER TABLE nodes DROP COLUMN last_seen;
CREATE FUNCTION seen_goes() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN DELETE FROM openred_directory.seen WHERE place = OLD.log_index; RETURN NULL; END $$;
CREATE TRIGGER seen_goes AFTER UPDATE OF card, log_index ON nodes FOR EACH ROW
    WHEN (OLD.card IS NOT NULL AND (NEW.card IS NULL OR NEW.log_index IS DISTINCT FROM OLD.log_index))
    EXECUTE FUNCTION seen_goes();
";

/// Notes when the card at a place came last.
pub(super) fn note(link: &mut Link, place: u64, at: UnixMillis) -> Result<()> {
    let sql = "INSERT INTO seen (place, at) VALUES ($1, $2) ON CONFLICT (place) DO UPDATE SET at = $2";
    link.execute(sql, &[&signed(place), &signed(at.0)])?;
    Ok(())
}
