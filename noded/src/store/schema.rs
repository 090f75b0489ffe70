//! The database's schema: steps from one version to the next, and the refusal of versions from the future.
//!
//! A step is never edited once released: a change is a new step. Before a step is taken on an existing file, a copy of it
//! is made beside it, named after the version that it has.

use std::fs::File;
use std::io::ErrorKind;
use std::path::Path;

use rusqlite::{Connection, ErrorCode};

use super::{Result, StoreError};

/// "ORed" in ASCII: marks the file as ours (PRAGMA application_id).
const APPLICATION_ID: i32 = 0x4f52_6564;

/// Step n leads from version n to version n + 1.
const STEPS: [&str; 9] = [
    "
    -- Times are Unix milliseconds. Ids are raw bytes. Enumerations are the numbers in src/link/state.rs.
    CREATE TABLE link (
        link_id BLOB PRIMARY KEY,
        peer BLOB NOT NULL,
        state INTEGER NOT NULL,
        issuer INTEGER NOT NULL,
        method INTEGER NOT NULL,
        epoch INTEGER NOT NULL,
        not_before INTEGER NOT NULL,
        not_after INTEGER NOT NULL,
        created_at INTEGER NOT NULL,
        changed_at INTEGER NOT NULL,
        sealed_row BLOB NOT NULL,      -- opens in the key process only; empty while waiting for the operator
        token_id BLOB NOT NULL UNIQUE, -- SHA-256 of the offer
        offer BLOB NOT NULL,           -- until the receipt (issuer) or the operator's word (recipient); else empty
        directory BLOB NOT NULL,       -- which directory carried it
        receipt BLOB NOT NULL,         -- the acceptor's signed receipt; else empty
        reason INTEGER NOT NULL,       -- why it ended, src/link/state.rs
        vault_told INTEGER NOT NULL,   -- whether the key process knows that it ended
        mutual_link BLOB NOT NULL,     -- of the last handshake; else empty
        matched INTEGER NOT NULL,
        matched_at INTEGER NOT NULL,
        handshake_at INTEGER NOT NULL,
        sent_counter INTEGER NOT NULL,     -- last accepted tag counter of our REQUESTs
        received_counter INTEGER NOT NULL  -- and of the peer's
    ) WITHOUT ROWID;
    CREATE INDEX link_by_peer ON link (peer);

    CREATE TABLE peer (
        node_id BLOB PRIMARY KEY,
        card BLOB NOT NULL,            -- signed, as received; empty once forgotten
        sequence INTEGER NOT NULL,     -- of the newest card ever seen: survives forgetting, so that no older one is believed
        fetched_at INTEGER NOT NULL,
        seen_at INTEGER NOT NULL,      -- last open session
        approved_at INTEGER NOT NULL   -- zero: offers from it are up to the policy
    ) WITHOUT ROWID;

    CREATE TABLE module_row (
        module TEXT NOT NULL,
        key BLOB NOT NULL,             -- in clear: scans need its order
        version INTEGER NOT NULL,
        sealed BLOB NOT NULL,          -- nonce, ciphertext, tag; associated data: module, key, version
        PRIMARY KEY (module, key)
    ) WITHOUT ROWID;

    CREATE TABLE meta (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
    ",
    "
    CREATE TABLE succession (
        old BLOB PRIMARY KEY,
        new BLOB NOT NULL,
        sequence INTEGER NOT NULL,     -- of the old identity's last word about it
        heard_at INTEGER NOT NULL,
        taken_back INTEGER NOT NULL
    ) WITHOUT ROWID;

    -- Whose approval is that of an earlier identity.
    CREATE TABLE carried (peer BLOB PRIMARY KEY, earlier BLOB NOT NULL, withdrawn INTEGER NOT NULL) WITHOUT ROWID;

    -- Peers that this node, under a new identity of its own, still has to offer a link.
    CREATE TABLE reoffer (peer BLOB PRIMARY KEY, since INTEGER NOT NULL) WITHOUT ROWID;
    ",
    "
    -- The link that a link renews; empty for one that renews none.
    ALTER TABLE link ADD COLUMN renews BLOB NOT NULL DEFAULT x'';
    ",
    "
    -- When the operator denied the peer; zero: not.
    ALTER TABLE peer ADD COLUMN denied_at INTEGER NOT NULL DEFAULT 0;
    -- Of the newest card that a directory gave: one that gives an older one lies. Peers hand over newer ones themselves.
    ALTER TABLE peer ADD COLUMN listed INTEGER NOT NULL DEFAULT 0;
    UPDATE peer SET listed = sequence;
    ",
    "
    -- What both sides of a session signed; kept when its link is gone.
    CREATE TABLE session_proof (
        hash BLOB PRIMARY KEY,
        peer BLOB NOT NULL,
        link_id BLOB NOT NULL,
        initiator BLOB NOT NULL,       -- signed statements
        responder BLOB NOT NULL,
        signed_at INTEGER NOT NULL
    ) WITHOUT ROWID;
    CREATE INDEX session_proof_by_peer ON session_proof (peer, signed_at);
    ",
    "
    -- Where the link's method stands among those of modules; zero: it is none of them.
    ALTER TABLE link ADD COLUMN registered INTEGER NOT NULL DEFAULT 0;
    ",
    "
    -- The generations of a module that was swapped. An earlier program would take rows of the first state for today's.
    CREATE TABLE module_life (
        module TEXT PRIMARY KEY,
        epoch INTEGER NOT NULL,        -- of the one that may write
        record BLOB NOT NULL           -- src/module/swap/record.rs
    ) WITHOUT ROWID;
    ",
    "
    -- Bytes of keys and sealed values of each module's rows, changed with them: a quota is held without looking at the rows.
    CREATE TABLE module_bytes (module TEXT PRIMARY KEY, bytes INTEGER NOT NULL) WITHOUT ROWID;
    INSERT INTO module_bytes SELECT module, SUM(LENGTH(key) + LENGTH(sealed)) FROM module_row GROUP BY module;
    ",
    "
    -- The last head of each directory's log that was checked: what it shows later has to go on from there.
    CREATE TABLE directory_head (
        directory BLOB PRIMARY KEY,
        note BLOB NOT NULL,
        checked_at INTEGER NOT NULL
    ) WITHOUT ROWID;
    -- What directories were caught at.
    CREATE TABLE directory_evidence (
        number INTEGER PRIMARY KEY,
        directory BLOB NOT NULL,
        lie INTEGER NOT NULL,          -- src/directory/honesty.rs
        first BLOB NOT NULL,           -- signed statements
        second BLOB NOT NULL,
        at INTEGER NOT NULL
    );
    ",
];

/// Brings the file to this program's version.
pub(super) fn migrate(connection: &Connection, directory: &Path) -> Result<()> {
    take_steps(connection, directory, &STEPS)
}

/// The version of a file that is of this program, and not of a later one.
pub(super) fn version(connection: &Connection) -> Result<u32> {
    known_version(connection, &STEPS)
}

fn known_version(connection: &Connection, steps: &[&str]) -> Result<u32> {
    let known = u32::try_from(steps.len()).expect("a handful of steps");
    let found: u32 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let application: i32 = connection.pragma_query_value(None, "application_id", |row| row.get(0))?;
    if found > 0 && application != APPLICATION_ID {
        return Err(StoreError::Foreign);
    }
    if found > known {
        return Err(StoreError::NewerSchema { found, known });
    }
    Ok(found)
}

/// One thing of a database: type, name, table, and the statement that made it.
type Object = (String, String, String, Option<String>);

/// Holds a file of `version` to exactly what this program makes of it: a table, view, trigger or index more, fewer or otherwise was put there by
/// somebody else. To be asked before anything is read: what a table's own text has computed (a check, an index) is computed by looking.
pub(super) fn check_shape(connection: &Connection, version: u32) -> Result<()> {
    let fresh = Connection::open_in_memory()?;
    let taken: String = STEPS.iter().take(version as usize).copied().collect();
    fresh.execute_batch(&taken)?;
    let expected = objects(&fresh, usize::MAX)?;
    // One more than there may be is enough to know.
    if version == 0 || objects(connection, expected.len() + 1)? != expected {
        return Err(StoreError::Shape);
    }
    Ok(())
}

fn objects(connection: &Connection, at_most: usize) -> Result<Vec<Object>> {
    let text = "SELECT type, name, tbl_name, sql FROM sqlite_schema ORDER BY type, name";
    let mut statement = connection.prepare(text)?;
    let read = |row: &rusqlite::Row<'_>| {
        let sql: Option<String> = row.get(3)?;
        Ok((row.get(0)?, row.get(1)?, row.get(2)?, sql.as_deref().map(plain)))
    };
    let objects = statement.query_map([], read)?.take(at_most).collect::<rusqlite::Result<_>>()?;
    Ok(objects)
}

/// A statement without its comments and line breaks: wording that means nothing. A text or name that holds two dashes keeps its opening
/// mark, which no statement here has.
fn plain(sql: &str) -> String {
    let words = sql.lines().flat_map(|line| line.split("--").next().unwrap_or_default().split_whitespace());
    words.collect::<Vec<_>>().join(" ")
}

fn take_steps(connection: &Connection, directory: &Path, steps: &[&str]) -> Result<()> {
    let found = known_version(connection, steps)?;
    if found as usize == steps.len() {
        return Ok(());
    }
    if found > 0 {
        keep_copy(connection, directory, found)?;
    }
    let taken: String = steps.iter().skip(found as usize).copied().collect();
    let reached = steps.len();
    let stepped = connection.execute_batch(&format!(
        "BEGIN; {taken} PRAGMA user_version = {reached}; PRAGMA application_id = {APPLICATION_ID}; COMMIT"
    ));
    if stepped.is_err() && !connection.is_autocommit() {
        connection.execute_batch("ROLLBACK")?;
    }
    Ok(stepped?)
}

/// A copy of the file as it was before its first step from `version`: durable, and under its name only when it is whole. One
/// that is there already is of an upgrade that was cut short, when the file was what it is now.
fn keep_copy(connection: &Connection, directory: &Path, version: u32) -> Result<()> {
    let place = directory.join(format!("{}.schema-{version}", super::FILE));
    if place.exists() {
        return Ok(());
    }
    let failed = |error: std::io::Error| match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => StoreError::Full,
        _ => StoreError::Open(ErrorCode::CannotOpen),
    };
    let unfinished = directory.join(format!("{}.schema-{version}.new", super::FILE));
    match std::fs::remove_file(&unfinished) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    connection.execute("VACUUM INTO ?1", [unfinished.to_string_lossy()])?;
    File::open(&unfinished).and_then(|file| file.sync_all()).map_err(failed)?;
    std::fs::rename(&unfinished, &place).map_err(failed)?;
    File::open(directory).and_then(|folder| folder.sync_all()).map_err(failed)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    /// A later program's step.
    const NEXT: &str = "CREATE TABLE later (x); INSERT INTO meta VALUES ('upgraded', x'01');";

    fn database(folder: &Path) -> Connection {
        let connection = Connection::open(folder.join(super::super::FILE)).unwrap();
        migrate(&connection, folder).unwrap();
        connection.execute("INSERT OR REPLACE INTO meta VALUES ('mark', x'2a')", []).unwrap();
        connection
    }

    fn mark(file: &Path) -> (u32, Vec<u8>) {
        let connection = Connection::open(file).unwrap();
        let version = connection.pragma_query_value(None, "user_version", |row| row.get(0)).unwrap();
        (version, connection.query_row("SELECT value FROM meta WHERE name = 'mark'", [], |row| row.get(0)).unwrap())
    }

    #[test]
    fn an_upgrade_keeps_the_file_as_it_was_and_the_older_program_refuses_the_new_one_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let connection = database(folder.path());
        let kept = folder.path().join("node.sqlite.schema-9");
        // Half a copy of an upgrade that was killed.
        std::fs::write(folder.path().join("node.sqlite.schema-9.new"), "half").unwrap();
        assert!(!kept.exists(), "a new file is none that has to be kept");
        take_steps(&connection, folder.path(), &[&STEPS[..], &[NEXT]].concat()).unwrap();
        assert_eq!(mark(&kept), (9, vec![0x2a]));
        assert_eq!(mark(&folder.path().join(super::super::FILE)), (10, vec![0x2a]));
        assert!(!folder.path().join("node.sqlite.schema-9.new").exists());
        let older = migrate(&connection, folder.path()).unwrap_err();
        assert_eq!(older, StoreError::NewerSchema { found: 10, known: 9 });
        assert!(older.to_string().contains("newer version of openred"));
        // Put back, the copy is what the older program had.
        drop(connection);
        std::fs::rename(&kept, folder.path().join(super::super::FILE)).unwrap();
        migrate(&Connection::open(folder.path().join(super::super::FILE)).unwrap(), folder.path()).unwrap();
    }

    #[test]
    fn a_shape_that_no_step_leads_to_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let connection = database(folder.path());
        check_shape(&connection, 9).unwrap();
        for version in [0, 1, 2, 3, 4, 5, 6, 7, 8] {
            assert_eq!(check_shape(&connection, version), Err(StoreError::Shape), "as version {version}");
        }
        for (there, back) in [
            ("CREATE TABLE more (x)", "DROP TABLE more"),
            ("CREATE VIEW seen AS SELECT * FROM link", "DROP VIEW seen"),
            ("CREATE INDEX more ON peer (length(card))", "DROP INDEX more"),
            ("CREATE TRIGGER t AFTER INSERT ON peer BEGIN DELETE FROM link; END", "DROP TRIGGER t"),
            ("ALTER TABLE meta ADD COLUMN more", "ALTER TABLE meta DROP COLUMN more"),
        ] {
            connection.execute_batch(there).unwrap();
            assert_eq!(check_shape(&connection, 9), Err(StoreError::Shape), "{there}");
            connection.execute_batch(back).unwrap();
        }
        check_shape(&connection, 9).unwrap();
        connection.execute_batch("DROP TABLE carried").unwrap();
        assert_eq!(check_shape(&connection, 9), Err(StoreError::Shape));
        // Comments are no difference; what poses as one is.
        let text = "CREATE TABLE carried (peer BLOB PRIMARY KEY,{} earlier BLOB NOT NULL, withdrawn INTEGER NOT NULL) WITHOUT ROWID";
        connection.execute_batch(&text.replace("{}", " -- another comment\n")).unwrap();
        check_shape(&connection, 9).unwrap();
        connection.execute_batch("DROP TABLE carried").unwrap();
        connection.execute_batch(&text.replace("{}", " \"--\n\" TEXT,")).unwrap();
        assert_eq!(check_shape(&connection, 9), Err(StoreError::Shape));
    }

    #[test]
    fn links_of_an_older_file_renew_none() {
        let folder = tempfile::tempdir().unwrap();
        let connection = Connection::open(folder.path().join(super::super::FILE)).unwrap();
        take_steps(&connection, folder.path(), &STEPS[..2]).unwrap();
        let insert = "INSERT INTO link VALUES (x'01010101010101010101010101010101', zeroblob(32), 4, 1, 1, 7, 1, 2, 1, 1, x'07', zeroblob(32),
            x'', zeroblob(32), x'', 0, 1, x'', 0, 0, 0, 0, 0)";
        connection.execute(insert, []).unwrap();
        migrate(&connection, folder.path()).unwrap();
        let links = super::super::links::all(&connection).unwrap();
        assert_eq!((links.len(), links[0].renews, links[0].row.as_slice()), (1, None, &[7][..]));
        assert!(folder.path().join("node.sqlite.schema-2").exists(), "kept as it was");
    }

    #[test]
    fn rows_of_an_older_file_are_counted() {
        let folder = tempfile::tempdir().unwrap();
        let connection = Connection::open(folder.path().join(super::super::FILE)).unwrap();
        take_steps(&connection, folder.path(), &STEPS[..7]).unwrap();
        let insert = "INSERT INTO module_row VALUES ('a', x'0101', 1, zeroblob(40)), ('a', x'02', 1, zeroblob(50)), ('b', x'01', 1, zeroblob(60))";
        connection.execute(insert, []).unwrap();
        migrate(&connection, folder.path()).unwrap();
        let counted = |module: &str| {
            let sql = "SELECT bytes FROM module_bytes WHERE module = ?1";
            connection.query_row(sql, [module], |row| row.get::<_, i64>(0)).unwrap()
        };
        assert_eq!((counted("a"), counted("b")), (93, 61));
    }

    #[test]
    fn peers_of_an_older_file_are_denied_by_nobody() {
        let folder = tempfile::tempdir().unwrap();
        let connection = Connection::open(folder.path().join(super::super::FILE)).unwrap();
        take_steps(&connection, folder.path(), &STEPS[..3]).unwrap();
        connection.execute("INSERT INTO peer VALUES (zeroblob(32), x'01', 9, 1, 0, 5)", []).unwrap();
        migrate(&connection, folder.path()).unwrap();
        let peers = super::super::peers::all(&connection).unwrap();
        assert_eq!((peers.len(), peers[0].sequence, peers[0].word()), (1, 9, super::super::Word::Yes));
    }

    #[test]
    fn a_step_that_fails_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let connection = database(folder.path());
        take_steps(
            &connection,
            folder.path(),
            &[&STEPS[..], &["CREATE TABLE later (x); CREATE TABLE link (x);"]].concat(),
        )
        .unwrap_err();
        assert_eq!(mark(&folder.path().join(super::super::FILE)), (9, vec![0x2a]));
        migrate(&connection, folder.path()).unwrap();
        take_steps(&connection, folder.path(), &[&STEPS[..], &[NEXT]].concat()).unwrap();
    }
}
