//! The walk over the whole log (`directory log verify`), in one view of the database.

use std::collections::VecDeque;

use openred_proto::log::Hash;

use super::link::Link;
use super::{PostgresStore, hash, log_hash, node_id, signed, unsigned};
use crate::error::{Error, Result};
use crate::store::LogEnd;
use crate::store::walk::{self, Fault, Walked};

/// Rows that come in one go.
const ROWS: i64 = 4096;

impl PostgresStore {
    /// Walks the whole log, then every card.
    ///
    /// # Errors
    /// The database's.
    pub fn walk_log(&mut self) -> Result<std::result::Result<Walked, Fault>> {
        let link = self.reach()?;
        link.batch("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")?;
        let walked = walked(link);
        // It has changed nothing.
        let _ = link.batch("ROLLBACK");
        walked
    }
}

fn walked(link: &mut Link) -> Result<std::result::Result<Walked, Fault>> {
    let row = link.row("SELECT size, root FROM log_end", &[])?.ok_or(Error::LocalStoreAway)?;
    let end = LogEnd { size: unsigned(row.try_get(0)?), root: hash(&row, 1)? };
    match walk_hashes(link, end)? {
        Some(fault) => Ok(Err(fault)),
        None => Ok(walk_cards(link, end.size)?.map(|cards| Walked { end, cards })),
    }
}

/// Hashes in the order of their positions.
struct Hashes<'a> {
    link: &'a mut Link,
    here: VecDeque<(u64, Hash)>,
    after: i64,
}

impl Hashes<'_> {
    fn next(&mut self) -> Result<Option<(u64, Hash)>> {
        if self.here.is_empty() {
            let sql = "SELECT position, hash FROM log_hashes WHERE position > $1 ORDER BY position LIMIT $2";
            for row in self.link.rows(sql, &[&self.after, &ROWS])? {
                self.after = row.try_get(0)?;
                self.here.push_back((unsigned(self.after), hash(&row, 1)?));
            }
        }
        Ok(self.here.pop_front())
    }
}

fn walk_hashes(link: &mut Link, end: LogEnd) -> Result<Option<Fault>> {
    let mut hashes = Hashes { link, here: VecDeque::new(), after: -1 };
    walk::hashes(end, || hashes.next())
}

fn walk_cards(link: &mut Link, size: u64) -> Result<std::result::Result<u64, Fault>> {
    let sql = "SELECT id, sequence, card, listed <> 0, log_index, log_salt FROM nodes
        WHERE card IS NOT NULL AND id > $1 ORDER BY id LIMIT $2";
    let (mut after, mut cards) = (Vec::new(), 0);
    loop {
        let rows = link.rows(sql, &[&after, &ROWS])?;
        for row in &rows {
            let (index, salt): (Option<i64>, Option<&[u8]>) = (row.try_get(4)?, row.try_get(5)?);
            let card = walk::Row {
                node: node_id(row, 0)?,
                sequence: unsigned(row.try_get(1)?),
                card: row.try_get(2)?,
                listed: row.try_get(3)?,
                index: index.map(unsigned),
                salt: salt.and_then(|salt| salt.try_into().ok()),
            };
            if let Some(fault) = walk::card(&card, size, |position| log_hash(link, position))? {
                return Ok(Err(fault));
            }
            after = card.node.as_bytes().to_vec();
            cards += 1;
        }
        if signed(rows.len() as u64) < ROWS {
            return Ok(Ok(cards));
        }
    }
}
