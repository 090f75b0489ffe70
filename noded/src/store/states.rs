//! Several sets of rows of one module, and who may write: what a swap of modules needs (`module::swap`).
//!
//! A state is a set of rows under a number; the rows of number zero lie under the module's own name, as they did before there were others. Copies
//! are made sealed: associated data names the module and not the state. The epoch is looked at in the transaction of each write, so a
//! writer that was replaced writes nothing more, however late it comes.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use openred_module::{Batch, Committed};
use rusqlite::{Connection, OptionalExtension as _, params};

use super::{Result, RowSeal, StoreError, rows};

/// What a generation may do with its rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Writer {
    /// It is the active one, with this epoch; a module that was never swapped has the first.
    Active(u64),
    /// It works on a copy, which is nobody else's.
    Copy,
    /// It reads.
    Nobody,
}

/// The epoch before the first swap.
const FIRST: u64 = 1;

/// Which rows a generation works on, and whether it may write there. Looked at by the store when a write's turn has come.
#[derive(Debug)]
pub(crate) struct Pen {
    now: Mutex<(Arc<RowSeal>, Writer)>,
    writes: AtomicU64,
}

impl Pen {
    pub(crate) fn new(seal: RowSeal, writer: Writer) -> Arc<Self> {
        Arc::new(Self { now: Mutex::new((Arc::new(seal), writer)), writes: AtomicU64::new(0) })
    }

    fn now(&self) -> MutexGuard<'_, (Arc<RowSeal>, Writer)> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on it works on this state's rows, as this writer.
    pub(crate) fn pass(&self, state: u64, writer: Writer) {
        let mut now = self.now();
        *now = (Arc::new(now.0.of_state(state)), writer);
    }

    /// The seal of its rows.
    pub(crate) fn seal(&self) -> Arc<RowSeal> {
        Arc::clone(&self.now().0)
    }

    /// Whether it is the active one.
    pub(crate) fn is_active(&self) -> bool {
        matches!(self.now().1, Writer::Active(_))
    }

    /// Whether it works on a copy, and is to do nothing but that.
    pub(crate) fn is_copy(&self) -> bool {
        self.now().1 == Writer::Copy
    }

    /// Batches that it has written so far.
    pub(crate) fn writes(&self) -> u64 {
        self.writes.load(Ordering::Acquire)
    }

    /// A batch, if it may.
    pub(super) fn apply(&self, connection: &Connection, batch: &Batch, most: Option<u64>) -> Result<Committed> {
        let (seal, writer) = self.now().clone();
        let committed = apply(connection, &seal, writer, batch, most)?;
        if committed == Committed::Yes {
            self.writes.fetch_add(1, Ordering::AcqRel);
        }
        Ok(committed)
    }
}

/// The name under which a state's rows lie. No module has an `@` in its id.
pub(crate) fn place(module: &str, state: u64) -> String {
    if state == 0 { module.to_owned() } else { format!("{module}@{state}") }
}

/// What is kept of a module's generations, if it was ever swapped.
pub(crate) fn record(connection: &Connection, module: &str) -> Result<Option<Vec<u8>>> {
    let sql = "SELECT record FROM module_life WHERE module = ?1";
    Ok(connection.prepare_cached(sql)?.query_row([module], |row| row.get(0)).optional()?)
}

/// Keeps it, with the epoch of the one writer, and forgets the rows of all states but these.
pub(crate) fn save(connection: &Connection, module: &str, epoch: u64, record: &[u8], states: &[u64]) -> Result<()> {
    let epoch = i64::try_from(epoch).map_err(|_| StoreError::Damaged("module_life"))?;
    connection
        .prepare_cached("INSERT OR REPLACE INTO module_life (module, epoch, record) VALUES (?1, ?2, ?3)")?
        .execute(params![module, epoch, record])?;
    let kept: Vec<String> = states.iter().map(|state| place(module, *state)).collect();
    for found in places(connection, module)? {
        if !kept.contains(&found) {
            rows::forget(connection, &found)?;
        }
    }
    Ok(())
}

/// Deletes all of them, and what is kept of the module's generations.
pub(crate) fn forget(connection: &Connection, module: &str) -> Result<()> {
    for found in places(connection, module)? {
        rows::forget(connection, &found)?;
    }
    connection.execute("DELETE FROM module_life WHERE module = ?1", [module])?;
    Ok(())
}

/// The names under which there are rows of this module: one look at the index each.
fn places(connection: &Connection, module: &str) -> Result<Vec<String>> {
    let mut found: Vec<String> = Vec::new();
    // 'A' is the letter behind '@': no other module's name lies in between but those that have it as their beginning.
    let (mut after, end) = (module.to_owned(), format!("{module}A"));
    let own: Option<i64> = connection
        .prepare_cached("SELECT 1 FROM module_row WHERE module = ?1 LIMIT 1")?
        .query_row([module], |row| row.get(0))
        .optional()?;
    found.extend(own.map(|_| module.to_owned()));
    after.push('@');
    loop {
        let next: Option<String> = connection
            .prepare_cached("SELECT module FROM module_row WHERE module > ?1 AND module < ?2 ORDER BY module LIMIT 1")?
            .query_row([&after, &end], |row| row.get(0))
            .optional()?;
        let Some(next) = next else { return Ok(found) };
        found.push(next.clone());
        after = next;
    }
}

/// Copies a state's rows to another, in place of what is there; how many.
pub(crate) fn copy(connection: &Connection, module: &str, from: u64, to: u64) -> Result<usize> {
    let (from, to) = (place(module, from), place(module, to));
    rows::forget(connection, &to)?;
    let sql = "INSERT INTO module_row (module, key, version, sealed)
        SELECT ?2, key, version, sealed FROM module_row WHERE module = ?1 ORDER BY key";
    let copied = connection.prepare_cached(sql)?.execute([&from, &to])?;
    let sql = "INSERT INTO module_bytes (module, bytes) SELECT ?2, bytes FROM module_bytes WHERE module = ?1";
    connection.prepare_cached(sql)?.execute([&from, &to])?;
    Ok(copied)
}

/// A batch of rows by a writer, if it is the one who may.
fn apply(
    connection: &Connection,
    seal: &RowSeal,
    writer: Writer,
    batch: &Batch,
    most: Option<u64>,
) -> Result<Committed> {
    let may = match writer {
        Writer::Copy => true,
        Writer::Nobody => false,
        Writer::Active(own) => epoch(connection, seal.module())? == own,
    };
    if may { rows::apply(connection, seal, batch, most) } else { Err(StoreError::Replaced) }
}

fn epoch(connection: &Connection, module: &str) -> Result<u64> {
    let sql = "SELECT epoch FROM module_life WHERE module = ?1";
    let epoch: Option<i64> = connection.prepare_cached(sql)?.query_row([module], |row| row.get(0)).optional()?;
    Ok(epoch.map_or(FIRST, i64::cast_unsigned))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use bytes::Bytes;
    use openred_proto::secret::Secret;

    use super::*;
    use crate::store::Store;

    fn pen(module: &str, state: u64, writer: Writer) -> Arc<Pen> {
        let pen = Pen::new(RowSeal::new(module, &Secret::new([7; 32])), writer);
        pen.pass(state, writer);
        pen
    }

    async fn put(store: &Store, pen: &Arc<Pen>, value: &'static str) -> Result<()> {
        store
            .apply(Arc::clone(pen), Batch::new().put("key", value), None)
            .await
            .map(|committed| assert_eq!(committed, Committed::Yes))
    }

    async fn get(store: &Store, pen: &Pen) -> Option<Bytes> {
        store.row(pen.seal(), "key".into()).await.unwrap()
    }

    #[tokio::test]
    async fn a_quota_is_held_by_a_sum_that_follows_the_rows() {
        let folder = tempfile::tempdir().unwrap();
        let (store, thread) = Store::open(folder.path(), 0).unwrap();
        let (pen, next) = (pen("m", 0, Writer::Active(1)), pen("m", 1, Writer::Copy));
        // A key of one byte, and 40 more for nonce and tag.
        let apply = |pen: &Arc<Pen>, batch: Batch, most: u64| store.apply(Arc::clone(pen), batch, Some(most));
        let long = |length: usize| vec![7u8; length];
        let mut value = Batch::new();
        for key in ["a", "b", "c"] {
            value = value.put(key, long(59));
        }
        assert_eq!(apply(&pen, value.clone(), 299).await, Err(StoreError::Quota));
        assert_eq!(apply(&pen, value, 300).await, Ok(Committed::Yes), "what was refused left nothing");
        assert_eq!(apply(&pen, Batch::new().put("d", ""), 300).await, Err(StoreError::Quota));
        assert_eq!(apply(&pen, Batch::new().put("a", long(60)), 300).await, Err(StoreError::Quota));
        // A full one may shorten, replace and delete, also where it was granted less meanwhile.
        assert_eq!(apply(&pen, Batch::new().put("a", long(59)), 10).await, Ok(Committed::Yes));
        assert_eq!(apply(&pen, Batch::new().put("a", long(9)), 10).await, Ok(Committed::Yes));
        assert_eq!(apply(&pen, Batch::new().put("d", long(9)), 300).await, Ok(Committed::Yes));
        assert_eq!(apply(&pen, Batch::new().delete("d").put("d", long(9)), 300).await, Ok(Committed::Yes));
        // Whoever takes its place has its rows, and so their sum.
        assert_eq!(store.copy_state("m", 0, 1).await.unwrap(), 3);
        assert_eq!(apply(&next, Batch::new().put("e", long(10)), 300).await, Err(StoreError::Quota));
        store.forget_rows("m").await.unwrap();
        assert_eq!(apply(&pen, Batch::new().put("a", long(259)), 300).await, Ok(Committed::Yes));
        drop(store);
        thread.join();
    }

    #[tokio::test]
    async fn who_was_replaced_writes_nothing_more_and_a_copy_is_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let (store, thread) = Store::open(folder.path(), 0).unwrap();
        let (old, copy, other) =
            (pen("m", 0, Writer::Active(1)), pen("m", 3, Writer::Copy), pen("mA", 0, Writer::Active(1)));
        put(&store, &other, "another's").await.unwrap();
        put(&store, &old, "1").await.unwrap();
        assert_eq!(store.copy_state("m", 0, 3).await.unwrap(), 1);
        put(&store, &old, "2").await.unwrap();
        assert_eq!((get(&store, &copy).await, old.writes()), (Some("1".into()), 2));
        put(&store, &copy, "migrated").await.unwrap();
        store.save_module("m", 2, b"record".to_vec(), vec![0, 3]).await.unwrap();
        assert_eq!(put(&store, &old, "late").await, Err(StoreError::Replaced));
        copy.pass(3, Writer::Active(2));
        put(&store, &copy, "3").await.unwrap();
        assert_eq!((get(&store, &old).await, get(&store, &copy).await), (Some("2".into()), Some("3".into())));
        copy.pass(3, Writer::Nobody);
        assert_eq!(put(&store, &copy, "4").await, Err(StoreError::Replaced));
        assert_eq!(store.module_record("m").await.unwrap().unwrap(), b"record");
        // What the record does not name is forgotten; another module's rows stay.
        store.save_module("m", 3, b"record".to_vec(), vec![3]).await.unwrap();
        assert_eq!((get(&store, &old).await, get(&store, &copy).await), (None, Some("3".into())));
        assert_eq!(get(&store, &other).await, Some("another's".into()));
        drop(store);
        thread.join();
    }
}
