//! The database's schema: steps from one version to the next, and the refusal of versions from the future.
//!
//! A step is never edited once released: a change is a new step. Before a step is taken on an existing file, a copy of it
//! is made beside it, named after the version that it has.

use std::path::Path;

use rusqlite::Connection;

use super::{Result, StoreError};

/// "ORed" in ASCII: marks the file as ours (PRAGMA application_id).
const APPLICATION_ID: i32 = 0x4f52_6564;

/// Step n leads from version n to version n + 1.
const STEPS: [&str; 1] = [
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
];

/// Brings the file to this program's version.
pub(super) fn migrate(connection: &Connection, directory: &Path) -> Result<()> {
    let known = u32::try_from(STEPS.len()).expect("a handful of steps");
    let found: u32 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let application: i32 = connection.pragma_query_value(None, "application_id", |row| row.get(0))?;
    if found > 0 && application != APPLICATION_ID {
        return Err(StoreError::Foreign);
    }
    if found > known {
        return Err(StoreError::NewerSchema { found, known });
    }
    if found == known {
        return Ok(());
    }
    if found > 0 {
        keep_copy(connection, directory, found)?;
    }
    let steps: String = STEPS.iter().skip(found as usize).copied().collect();
    connection.execute_batch(&format!(
        "BEGIN; {steps} PRAGMA user_version = {known}; PRAGMA application_id = {APPLICATION_ID}; COMMIT"
    ))?;
    Ok(())
}

fn keep_copy(connection: &Connection, directory: &Path, version: u32) -> Result<()> {
    let copy = directory.join(format!("{}.schema-{version}", super::FILE));
    if copy.exists() {
        return Ok(());
    }
    connection.execute("VACUUM INTO ?1", [copy.to_string_lossy()])?;
    Ok(())
}
