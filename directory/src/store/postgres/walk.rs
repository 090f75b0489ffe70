//! The walk over the whole log (`directory log verify`), in one view of the database; the faults are those that SQLite's walk names.

use std::collections::VecDeque;

use openred_proto::log::tree::{self, Frontier, kept, position};
use openred_proto::log::{Hash, Salt, entry};

use super::link::Link;
use super::{PostgresStore, hash, log_hash, node_id, signed, unsigned};
use crate::error::{Error, Result};
use crate::store::LogEnd;
use crate::store::sqlite::{Fault, Walked};

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
        let walked = walk(link);
        // It has changed nothing.
        let _ = link.batch("ROLLBACK");
        walked
    }
}

fn walk(link: &mut Link) -> Result<std::result::Result<Walked, Fault>> {
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
    let mut log = Frontier::default();
    while log.size() < end.size {
        let (index, first) = (log.size(), kept(log.size()));
        let mut expected: Option<Vec<Hash>> = None;
        for level in 0..=index.trailing_ones() {
            let position = first + u64::from(level);
            let Some((_, hash)) = hashes.next()?.filter(|(found, _)| *found == position) else {
                return Ok(Some(Fault::Missing { index, position }));
            };
            // A leaf is what the others are held against; the root and the cards say whether it is right.
            let expected = expected.get_or_insert_with(|| log.append_leaf(hash));
            if expected.get(level as usize) != Some(&hash) {
                return Ok(Some(Fault::Changed { index, level }));
            }
        }
    }
    if hashes.next()?.is_some() {
        return Ok(Some(Fault::Beyond { size: end.size }));
    }
    Ok((log.root() != end.root).then_some(Fault::Root { size: end.size }))
}

fn walk_cards(link: &mut Link, size: u64) -> Result<std::result::Result<u64, Fault>> {
    let sql = "SELECT id, sequence, card, listed <> 0, log_index, log_salt FROM nodes
        WHERE card IS NOT NULL AND id > $1 ORDER BY id LIMIT $2";
    let (mut after, mut cards) = (Vec::new(), 0);
    loop {
        let rows = link.rows(sql, &[&after, &ROWS])?;
        for row in &rows {
            let (card, listed): (&[u8], bool) = (row.try_get(2)?, row.try_get(3)?);
            let (index, salt): (Option<i64>, Option<&[u8]>) = (row.try_get(4)?, row.try_get(5)?);
            let salt: Option<Salt> = salt.and_then(|salt| salt.try_into().ok());
            let index = index.map(unsigned).filter(|index| *index < size && listed == salt.is_none());
            let leaf = tree::leaf_hash(&entry(card, salt.as_ref()));
            let is_there = match index {
                Some(index) => log_hash(link, position(0, index))? == leaf,
                None => false,
            };
            let node = node_id(row, 0)?;
            if !is_there {
                return Ok(Err(Fault::Card { node, sequence: unsigned(row.try_get(1)?) }));
            }
            after = node.as_bytes().to_vec();
            cards += 1;
        }
        if signed(rows.len() as u64) < ROWS {
            return Ok(Ok(cards));
        }
    }
}
