//! Typed state: tables of rows under a module's own keys, written as JSON, changed under expectations.
//!
//! A [`Table`] is a name and two types; the rows are the host's, so a table costs nothing and holds nothing. Changes that belong
//! together go into one [`Batch`] ([`Table::put_in`], [`Table::delete_in`]); one row alone is changed by [`Table::update`], which tries again when another
//! task was faster. What a row holds may grow new fields with `#[serde(default)]`: old rows are read as they are.

use std::marker::PhantomData;

use bytes::Bytes;
use openred_proto::id::NodeId;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::context::Context;
use crate::host::{Batch, Committed, HostError, SCAN_LIMIT, Scan};

/// A type whose values are keys of a table. Rows are in the order of their keys' bytes.
pub trait Key: Sized {
    /// As bytes; different values as different bytes.
    fn to_bytes(&self) -> Vec<u8>;
    /// The same back.
    fn from_bytes(bytes: &[u8]) -> Option<Self>;
}

impl Key for String {
    fn to_bytes(&self) -> Vec<u8> {
        self.as_bytes().to_vec()
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        Self::from_utf8(bytes.to_vec()).ok()
    }
}

/// In the order of the numbers.
impl Key for u64 {
    fn to_bytes(&self) -> Vec<u8> {
        self.to_be_bytes().to_vec()
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        Some(Self::from_be_bytes(bytes.try_into().ok()?))
    }
}

impl Key for NodeId {
    fn to_bytes(&self) -> Vec<u8> {
        self.as_bytes().to_vec()
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        Some(Self::from_bytes(bytes.try_into().ok()?))
    }
}

impl<const N: usize> Key for [u8; N] {
    fn to_bytes(&self) -> Vec<u8> {
        self.as_slice().to_vec()
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok()
    }
}

/// Rows of one kind. Two tables of a module need two names, of which none is the beginning of the other up to a `/`.
///
/// ```
/// use openred_module::{Context, HostError, Table};
///
/// #[derive(Default, serde::Serialize, serde::Deserialize)]
/// struct Visits {
///     count: u64,
/// }
/// static VISITS: Table<String, Visits> = Table::new("visits");
///
/// async fn visited(context: &Context, name: String) -> Result<u64, HostError> {
///     let now = VISITS.update(context, &name, |visits| Visits { count: visits.unwrap_or_default().count + 1 }).await?;
///     Ok(now.count)
/// }
/// ```
#[derive(Debug)]
pub struct Table<K, V> {
    name: &'static str,
    row: PhantomData<fn() -> (K, V)>,
}

/// A row as it was read, so that it can be replaced if it is still so.
#[derive(Debug, Clone)]
pub struct Entry<V> {
    /// What it holds; nothing where there is no row.
    pub value: Option<V>,
    key: Bytes,
    stored: Option<Bytes>,
}

/// Rows of a scan.
#[derive(Debug, Clone)]
pub struct Rows<K, V> {
    /// In the order of their keys.
    pub rows: Vec<(K, V)>,
    /// Where the next scan goes on, if there are more.
    pub next: Option<Bytes>,
}

impl<K: Key, V: Serialize + DeserializeOwned + Send> Table<K, V> {
    /// The table of this name: 1 to 64 bytes without `/`.
    ///
    /// # Panics
    /// While compiling, for a name that is none.
    pub const fn new(name: &'static str) -> Self {
        let bytes = name.as_bytes();
        assert!(!bytes.is_empty() && bytes.len() <= 64, "a table's name has 1 to 64 bytes");
        let mut at = 0;
        while at < bytes.len() {
            assert!(bytes[at] != b'/', "a table's name has no '/'");
            at += 1;
        }
        Self { name, row: PhantomData }
    }

    fn prefix(&self) -> Bytes {
        format!("{}/", self.name).into()
    }

    fn place(&self, key: &K) -> Bytes {
        [format!("{}/", self.name).as_bytes(), &key.to_bytes()].concat().into()
    }

    fn read(stored: &Bytes) -> Result<V, HostError> {
        // Only this module writes its rows: one that cannot be read is damage, or an older form without `#[serde(default)]`.
        serde_json::from_slice(stored).map_err(|_| HostError::Storage)
    }

    fn write(value: &V) -> Result<Bytes, HostError> {
        serde_json::to_vec(value).map(Bytes::from).map_err(|_| HostError::Storage)
    }

    /// One row.
    ///
    /// # Errors
    /// The host's, and [`HostError::Storage`] for a row that is not of this type.
    pub async fn get(&self, context: &Context, key: &K) -> Result<Option<V>, HostError> {
        Ok(self.entry(context, key).await?.value)
    }

    /// One row, to be changed if it is still so then.
    ///
    /// # Errors
    /// As [`Table::get`].
    pub async fn entry(&self, context: &Context, key: &K) -> Result<Entry<V>, HostError> {
        let key = self.place(key);
        let stored = context.get(key.clone()).await?;
        let value = stored.as_ref().map(Self::read).transpose()?;
        Ok(Entry { value, key, stored })
    }

    /// Writes one row, whatever it was; durable when it returns.
    ///
    /// # Errors
    /// The host's.
    pub async fn put(&self, context: &Context, key: &K, value: &V) -> Result<(), HostError> {
        context.put(self.place(key), Self::write(value)?).await
    }

    /// Removes one row; durable when it returns.
    ///
    /// # Errors
    /// The host's.
    pub async fn delete(&self, context: &Context, key: &K) -> Result<(), HostError> {
        context.delete(self.place(key)).await
    }

    /// Compare and set: writes the row if it is still as `entry` was read.
    ///
    /// # Errors
    /// The host's.
    pub async fn replace(&self, context: &Context, entry: Entry<V>, value: &V) -> Result<Committed, HostError> {
        context.compare_and_set(entry.key, entry.stored, Self::write(value)?).await
    }

    /// Changes one row by `change`, and gives what it is now. Runs `change` again when another task was faster.
    ///
    /// # Errors
    /// The host's.
    pub async fn update(
        &self,
        context: &Context,
        key: &K,
        change: impl Fn(Option<V>) -> V + Send,
    ) -> Result<V, HostError> {
        loop {
            let mut entry = self.entry(context, key).await?;
            let value = change(entry.value.take());
            if self.replace(context, entry, &value).await? == Committed::Yes {
                return Ok(value);
            }
        }
    }

    /// Adds the writing of a row to a batch.
    ///
    /// # Errors
    /// [`HostError::Storage`] for what JSON cannot hold.
    pub fn put_in(&self, batch: Batch, key: &K, value: &V) -> Result<Batch, HostError> {
        Ok(batch.put(self.place(key), Self::write(value)?))
    }

    /// Adds the removal of a row to a batch.
    pub fn delete_in(&self, batch: Batch, key: &K) -> Batch {
        batch.delete(self.place(key))
    }

    /// Adds to a batch that a row must still be as `entry` was read.
    pub fn expect_in(&self, batch: Batch, entry: &Entry<V>) -> Batch {
        batch.expect(entry.key.clone(), entry.stored.clone())
    }

    /// So many rows at most, in order; `after` is where an earlier scan stopped.
    ///
    /// # Errors
    /// The host's, and [`HostError::Storage`] for a row that is not of this type.
    pub async fn scan(&self, context: &Context, after: Option<Bytes>, limit: usize) -> Result<Rows<K, V>, HostError> {
        let prefix = self.prefix();
        let page = context.scan(Scan::prefix(prefix.clone()).after(after).limit(limit)).await?;
        let next = if page.more { page.rows.last().map(|(key, _)| key.clone()) } else { None };
        let row = |(key, stored): (Bytes, Bytes)| {
            let key = K::from_bytes(&key[prefix.len()..]).ok_or(HostError::Storage)?;
            Ok((key, Self::read(&stored)?))
        };
        Ok(Rows { rows: page.rows.into_iter().map(row).collect::<Result<_, HostError>>()?, next })
    }

    /// All rows, in order: for a table that is small by its nature.
    ///
    /// # Errors
    /// As [`Table::scan`].
    pub async fn all(&self, context: &Context) -> Result<Vec<(K, V)>, HostError> {
        let (mut all, mut after) = (Vec::new(), None);
        loop {
            let page = self.scan(context, after, SCAN_LIMIT).await?;
            all.extend(page.rows);
            match page.next {
                Some(next) => after = Some(next),
                None => return Ok(all),
            }
        }
    }
}
