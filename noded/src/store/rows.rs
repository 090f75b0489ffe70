//! The modules' rows: sealed values under clear keys, changed in batches that happen as a whole or not at all.

use bytes::Bytes;
use openred_module::{Batch, Committed, SCAN_BYTES, SCAN_LIMIT, Scan, ScanPage};
use rusqlite::{Connection, OptionalExtension as _, params};

use super::{Result, RowSeal, StoreError};

/// One row's value.
pub(crate) fn get(connection: &Connection, seal: &RowSeal, key: &[u8]) -> Result<Option<Bytes>> {
    Ok(read(connection, seal, key)?.map(|(_, value)| value))
}

/// All of a batch, or nothing; also nothing if the rows grow by it and are more than `most` bytes then.
///
/// # Errors
/// [`StoreError::Quota`] then.
pub(crate) fn apply(connection: &Connection, seal: &RowSeal, batch: &Batch, most: Option<u64>) -> Result<Committed> {
    for (key, expected) in &batch.expect {
        if get(connection, seal, key)? != *expected {
            return Ok(Committed::No);
        }
    }
    let before = counted(connection, seal.place())?;
    let (mut added, mut removed) = (0, 0);
    for (key, value) in &batch.put {
        let known = known(connection, seal, key)?;
        let version = known.map_or(1, |(version, _)| version.saturating_add(1));
        let sealed = seal.seal(key, version, value);
        added += (key.len() + sealed.len()) as u64;
        removed += known.map_or(0, |(_, bytes)| bytes);
        connection
            .prepare_cached(
                "INSERT INTO module_row (module, key, version, sealed) VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT (module, key) DO UPDATE SET version = excluded.version, sealed = excluded.sealed",
            )?
            .execute(params![seal.place(), &key[..], version, sealed])?;
    }
    for key in &batch.delete {
        removed += known(connection, seal, key)?.map_or(0, |(_, bytes)| bytes);
        connection
            .prepare_cached("DELETE FROM module_row WHERE module = ?1 AND key = ?2")?
            .execute(params![seal.place(), &key[..]])?;
    }
    let after = before.saturating_add(added).saturating_sub(removed);
    if after > before && most.is_some_and(|most| after > most) {
        return Err(StoreError::Quota);
    }
    if after != before {
        count(connection, seal.place(), after)?;
    }
    Ok(Committed::Yes)
}

/// Bytes of all rows under this name, as they lie in the database: kept up with each change of them, so that nobody has them counted.
fn counted(connection: &Connection, place: &str) -> Result<u64> {
    let known: Option<i64> = connection
        .prepare_cached("SELECT bytes FROM module_bytes WHERE module = ?1")?
        .query_row([place], |row| row.get(0))
        .optional()?;
    u64::try_from(known.unwrap_or(0)).map_err(|_| StoreError::Damaged("module_bytes"))
}

fn count(connection: &Connection, place: &str, bytes: u64) -> Result<()> {
    let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
    connection
        .prepare_cached("INSERT OR REPLACE INTO module_bytes (module, bytes) VALUES (?1, ?2)")?
        .execute(params![place, bytes])?;
    Ok(())
}

/// Deletes all rows under this name.
pub(crate) fn forget(connection: &Connection, place: &str) -> Result<()> {
    connection.prepare_cached("DELETE FROM module_row WHERE module = ?1")?.execute([place])?;
    connection.prepare_cached("DELETE FROM module_bytes WHERE module = ?1")?.execute([place])?;
    Ok(())
}

/// Rows of a prefix, in the order of their keys' bytes.
pub(crate) fn scan(connection: &Connection, seal: &RowSeal, scan: &Scan) -> Result<ScanPage> {
    let limit = scan.limit.min(SCAN_LIMIT);
    let end = end_of_prefix(&scan.prefix);
    let after = scan.after.as_deref();
    // `low` is taken in unless it is `after`; `high` is left out. A missing upper end is an empty blob: no key sorts below it.
    let (low, high) = if scan.backwards { (None, after) } else { (after, None) };
    let order = if scan.backwards { "DESC" } else { "ASC" };
    let mut statement = connection.prepare_cached(&format!(
        "SELECT key, version, sealed FROM module_row WHERE module = ?1 AND key >= ?2
         AND (?3 IS NULL OR key < ?3) AND (?4 IS NULL OR key > ?4) AND (?5 IS NULL OR key < ?5)
         ORDER BY key {order} LIMIT ?6"
    ))?;
    let most = i64::try_from(limit + 1).expect("at most a thousand and one");
    let mut rows = statement.query(params![seal.place(), &scan.prefix[..], end, low, high, most])?;
    let mut page = ScanPage::default();
    let mut bytes = 0;
    while let Some(row) = rows.next()? {
        if page.rows.len() == limit || bytes > SCAN_BYTES {
            page.more = true;
            break;
        }
        let key: Vec<u8> = row.get(0)?;
        let value = seal.open(&key, row.get(1)?, row.get_ref(2)?.as_blob().unwrap_or_default())?;
        bytes += value.len();
        page.rows.push((key.into(), value.into()));
    }
    Ok(page)
}

fn read(connection: &Connection, seal: &RowSeal, key: &[u8]) -> Result<Option<(i64, Bytes)>> {
    let found: Option<(i64, Vec<u8>)> = connection
        .prepare_cached("SELECT version, sealed FROM module_row WHERE module = ?1 AND key = ?2")?
        .query_row(params![seal.place(), key], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    let open = |(version, sealed): (i64, Vec<u8>)| Ok((version, seal.open(key, version, &sealed)?.into()));
    found.map(open).transpose()
}

/// A row's version, and its bytes as they lie in the database.
fn known(connection: &Connection, seal: &RowSeal, key: &[u8]) -> Result<Option<(i64, u64)>> {
    let found: Option<(i64, i64)> = connection
        .prepare_cached("SELECT version, LENGTH(key) + LENGTH(sealed) FROM module_row WHERE module = ?1 AND key = ?2")?
        .query_row(params![seal.place(), key], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    Ok(found.map(|(version, bytes)| (version, u64::try_from(bytes).unwrap_or(0))))
}

/// The least key beyond every key with this prefix; none for a prefix of nothing but 0xff, or an empty one.
fn end_of_prefix(prefix: &[u8]) -> Option<Vec<u8>> {
    let keep = prefix.iter().rposition(|byte| *byte != 0xff)?;
    let mut end = prefix[..=keep].to_vec();
    end[keep] += 1;
    Some(end)
}

#[cfg(test)]
mod tests {
    use super::end_of_prefix;

    #[test]
    fn ends_of_prefixes() {
        assert_eq!(end_of_prefix(b""), None);
        assert_eq!(end_of_prefix(&[0xff, 0xff]), None);
        assert_eq!(end_of_prefix(b"ab"), Some(b"ac".to_vec()));
        assert_eq!(end_of_prefix(&[b'a', 0xff]), Some(b"b".to_vec()));
    }
}
