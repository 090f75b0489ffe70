//! The tables in PostgreSQL, in a schema of their own, so that other programs may share the database and none of their names is taken for
//! one of ours. Changes are transactional: a step holds as a whole or not at all.

use super::link::Link;
use super::{followed, seen};
use crate::error::{Error, Result};
use crate::store::sqlite::migrate::Migration;

/// Schema that this program writes. Its numbers are its own, not those of SQLite.
pub(super) const SCHEMA: i64 = 4;

const FIRST: &str = "
CREATE TABLE about (one smallint PRIMARY KEY CHECK (one = 1), program text NOT NULL, version bigint NOT NULL);
INSERT INTO about VALUES (1, 'openred-directory', 1);
CREATE TABLE nodes (
    id bytea PRIMARY KEY CHECK (octet_length(id) = 32),
    sequence bigint NOT NULL,
    card bytea,                   -- NULL once it has ended: the sequence stays, so that no older card comes back
    card_hash bytea NOT NULL CHECK (octet_length(card_hash) = 32),
    listed smallint NOT NULL,     -- 0 without a card; 2 while it wants to be and is quarantined
    sector text COLLATE \"C\" NOT NULL,
    methods integer NOT NULL,
    expires_at bigint NOT NULL,
    first_seen bigint NOT NULL,
    last_seen bigint NOT NULL,
    quarantined boolean NOT NULL,
    log_index bigint,
    log_salt bytea CHECK (octet_length(log_salt) = 16)
);
CREATE INDEX listed_nodes ON nodes (id) WHERE listed = 1;
CREATE INDEX listed_sectors ON nodes (sector, id) WHERE listed = 1;
CREATE INDEX ending_cards ON nodes (expires_at) WHERE card IS NOT NULL;
CREATE INDEX ended_cards ON nodes (expires_at) WHERE card IS NULL;
CREATE INDEX quarantined_nodes ON nodes (id) WHERE quarantined;
CREATE TABLE evidence (
    node bytea NOT NULL, sequence bigint NOT NULL, held bytea NOT NULL, offered bytea NOT NULL, at bigint NOT NULL,
    PRIMARY KEY (node, sequence)
);
CREATE TABLE bans (node bytea PRIMARY KEY, at bigint NOT NULL, reason text NOT NULL);
CREATE TABLE prefix_bans (prefix text COLLATE \"C\" PRIMARY KEY, at bigint NOT NULL, reason text NOT NULL);
CREATE TABLE run (one smallint PRIMARY KEY CHECK (one = 1), latest bigint); -- latest: NULL until it ended in order
CREATE TABLE successions (
    old bytea PRIMARY KEY,
    new bytea NOT NULL,
    sequence bigint NOT NULL,
    heard_at bigint NOT NULL,
    taken_back boolean NOT NULL,
    consented boolean NOT NULL    -- a card of the new node, or of one that goes on for it, said the same
);
CREATE INDEX heard_successions ON successions (heard_at);
CREATE INDEX named_successors ON successions (new);
CREATE TABLE log_hashes (position bigint PRIMARY KEY, hash bytea NOT NULL CHECK (octet_length(hash) = 32));
-- Who writes locks this row first: one writer at a time orders the log, whatever directory it belongs to.
CREATE TABLE log_end (
    one smallint PRIMARY KEY CHECK (one = 1),
    size bigint NOT NULL,
    root bytea NOT NULL CHECK (octet_length(root) = 32),
    writes bigint NOT NULL        -- transactions so far: what a writer remembers holds as long as nobody else has written
);
CREATE TABLE invites (
    hash bytea PRIMARY KEY CHECK (octet_length(hash) = 32),
    uses bigint NOT NULL,
    used bigint NOT NULL,
    made_at bigint NOT NULL,
    not_after bigint NOT NULL,
    revoked boolean NOT NULL,
    note text NOT NULL
);
CREATE TABLE admitted (node bytea PRIMARY KEY, at bigint NOT NULL, invite bytea); -- by an operator: invite NULL
CREATE TABLE history (
    number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at bigint NOT NULL,
    uid bigint NOT NULL,
    action text NOT NULL,
    target text NOT NULL,
    remark text NOT NULL
);
CREATE FUNCTION history_stays() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN RAISE EXCEPTION 'the history is only added to'; END $$;
CREATE TRIGGER history_stays BEFORE UPDATE OR DELETE OR TRUNCATE ON history
    FOR EACH STATEMENT EXECUTE FUNCTION history_stays();
";

const THIRD: &str = "
-- replica '': a directory that is alone; latest: NULL until it ended in order
CREATE TABLE runs (
    replica text COLLATE \"C\" PRIMARY KEY,
    number integer NOT NULL UNIQUE CHECK (number BETWEEN 0 AND 1023),
    latest bigint
);
INSERT INTO runs SELECT '', 0, latest FROM run;
DROP TABLE run;
CREATE TABLE nonces (tag bytea PRIMARY KEY CHECK (octet_length(tag) = 32), at bigint NOT NULL);
CREATE INDEX old_nonces ON nonces (at);
";

const STEPS: [(&str, &str); 4] = [
    ("nodes, evidence, bans, successions, the log of cards, invites, approvals, the history of changes", FIRST),
    ("cards by their place in the log", followed::CREATE),
    ("replicas: the run of each, and the nonces that all have taken", THIRD),
    ("when each card came last, apart from the cards", seen::CREATE),
];

/// What every connection begins with. A lock is waited for as long as a commit may take; who stands still in the middle of a transaction
/// holds all who write up no longer than five seconds; who is gone without a word holds its name (`Link::hold_name`) no longer than ten; who waited for the lock then sees what the one before it wrote, whatever the database
/// is set to. A server that acknowledges what it has not written down is refused.
pub(super) fn begin_session(link: &mut Link) -> Result<()> {
    link.batch(
        "SET search_path = openred_directory; SET lock_timeout = '2s'; SET statement_timeout = '8s'; SET idle_in_transaction_session_timeout = '5s'; SET tcp_keepalives_idle = 4; SET tcp_keepalives_interval = 2; SET tcp_keepalives_count = 3; SET tcp_user_timeout = 10000; SET default_transaction_isolation = 'read committed'",
    )?;
    let setting = |link: &mut Link, name: &str| -> Result<String> {
        let row = link.row("SELECT current_setting($1)", &[&name])?;
        Ok(row.map(|row| row.try_get(0)).transpose()?.unwrap_or_default())
    };
    if setting(link, "server_encoding")? != "UTF8" {
        return Err(Error::LocalStoreUnfit { why: "its encoding is not UTF8; create it with ENCODING 'UTF8'" });
    }
    if setting(link, "fsync")? == "off" {
        return Err(Error::LocalStoreUnfit {
            why: "the server runs with fsync = off and loses what it acknowledged; turn it on",
        });
    }
    if setting(link, "synchronous_commit")? == "off" {
        link.batch("SET synchronous_commit = on")?;
    }
    Ok(())
}

/// The version of our tables; none where there are none.
///
/// # Errors
/// The server's; a schema of our name that is somebody else's.
pub(super) fn found(link: &mut Link) -> Result<Option<i64>> {
    let is_there = "SELECT EXISTS (SELECT 1 FROM pg_catalog.pg_namespace WHERE nspname = 'openred_directory')";
    if !link.holds(is_there, &[])? {
        return Ok(None);
    }
    let tables = "SELECT count(*) FROM pg_catalog.pg_class WHERE relnamespace = 'openred_directory'::regnamespace";
    if link.number(tables, &[])? == 0 {
        return Ok(None);
    }
    let foreign = Error::LocalStoreUnfit {
        why: "its schema openred_directory is not a directory's; name another database in store.url",
    };
    let about = "SELECT count(*) FROM pg_catalog.pg_attribute WHERE attrelid = to_regclass('openred_directory.about')
        AND (attname, atttypid) IN (('program', 'text'::regtype), ('version', 'bigint'::regtype))";
    if link.number(about, &[])? != 2 {
        return Err(foreign);
    }
    let row = link.row("SELECT program, version FROM about", &[])?;
    let said: Option<(String, i64)> = row.map(|row| Ok::<_, Error>((row.try_get(0)?, row.try_get(1)?))).transpose()?;
    match said {
        Some((program, version)) if program == "openred-directory" && version > 0 => Ok(Some(version)),
        _ => Err(foreign),
    }
}

/// That the tables are this program's.
///
/// # Errors
/// The server's; a newer, older or foreign schema, none.
pub(super) fn check(link: &mut Link) -> Result<()> {
    match found(link)? {
        Some(SCHEMA) => Ok(()),
        Some(found) if found > SCHEMA => Err(Error::LocalSchemaNewer { found, known: SCHEMA }),
        _ => Err(Error::LocalStoreUnfit { why: "it holds no tables of this version; run `directory db migrate`" }),
    }
}

/// Whether there is a log that some directory has signed, whatever version the tables are of.
///
/// # Errors
/// The server's; a foreign schema.
pub(super) fn holds_log(link: &mut Link) -> Result<bool> {
    if found(link)?.is_none() {
        return Ok(false);
    }
    link.holds("SELECT size > 0 FROM log_end", &[])
}

/// Brings the tables up to date, or tries and takes it back.
///
/// # Errors
/// The server's; a newer or foreign schema.
pub(super) fn migrate(link: &mut Link, dry_run: bool) -> Result<Migration> {
    // Who makes the schema, and who waits for one who does, has as long as it takes.
    link.batch("BEGIN; SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = 0")?;
    link.be_patient(true);
    let done = steps(link, dry_run);
    let ended = link.batch(if done.is_ok() && !dry_run { "COMMIT" } else { "ROLLBACK" });
    link.be_patient(false);
    let done = done?;
    ended?;
    Ok(done)
}

fn steps(link: &mut Link, dry_run: bool) -> Result<Migration> {
    // Two directories that start at once: the second finds what the first has made.
    link.batch("SELECT pg_advisory_xact_lock(hashtext('openred-directory schema'))")?;
    let found = found(link)?.unwrap_or(0);
    let mut migration = Migration { found, known: SCHEMA, steps: Vec::new(), snapshot: None, dry_run };
    if found > SCHEMA {
        return Err(Error::LocalSchemaNewer { found, known: SCHEMA });
    }
    if (1..SCHEMA).contains(&found) {
        link.wait_until_unused()?;
    }
    if found == 0 {
        link.batch("CREATE SCHEMA IF NOT EXISTS openred_directory")?;
    }
    for (what, statements) in STEPS.iter().skip(usize::try_from(found).unwrap_or(0)) {
        link.batch(statements)?;
        migration.steps.push(what);
    }
    if found == 0 {
        let empty = openred_proto::log::tree::empty_root();
        link.execute("INSERT INTO log_end (one, size, root, writes) VALUES (1, 0, $1, 0)", &[&&empty[..]])?;
    }
    link.execute("UPDATE about SET version = $1", &[&SCHEMA])?;
    Ok(migration)
}
