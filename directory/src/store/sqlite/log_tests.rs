//! The log beside the cards: in one transaction with them, over crashes and older databases, and each fault by its name.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::Path;
use std::time::Duration;

use openred_proto::checked::succession::Lineage;
use openred_proto::id::UnixMillis;
use proptest::prelude::*;

use super::*;
use crate::store::{CardReader as _, CardStore as _, NewCard, Registration, Terms, prove_consistency, prove_inclusion};

const NOW: UnixMillis = UnixMillis(1_800_000_000_000);

fn open(folder: &tempfile::TempDir) -> SqliteStore {
    SqliteStore::open(&folder.path().join("db"), 64).unwrap()
}

fn card(node: u8, sequence: u64) -> NewCard {
    NewCard {
        node: NodeId::from_bytes([node; 32]),
        sequence,
        expires_at: NOW.plus(Duration::from_secs(3600)),
        listed: node.is_multiple_of(2),
        sector: String::new(),
        methods: 1,
        bytes: vec![node, sequence.to_be_bytes()[7]],
        lineage: Lineage::default(),
    }
}

fn verify(store: &mut SqliteStore, node: u8) {
    let end = store.log_end().unwrap();
    let held = store.node(&NodeId::from_bytes([node; 32])).unwrap().unwrap();
    assert_eq!(held.logged.salt.is_none(), held.listed, "unlisted ones are salted, and no others");
    let leaf = tree::leaf_hash(&entry(&held.card, held.logged.salt.as_ref()));
    let proof = prove_inclusion(store, held.logged.index, end.size).unwrap().unwrap();
    tree::verify_inclusion(held.logged.index, end.size, &leaf, &proof, &end.root).unwrap();
}

#[test]
fn a_card_is_logged_when_it_changes_and_is_proven_against_every_later_head() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = open(&folder);
    let mut ends = vec![store.log_end().unwrap()];
    for sequence in 1..4 {
        for node in 1..6 {
            assert_eq!(store.register(NOW, &card(node, sequence), &Terms::open(99)).unwrap(), Registration::Stored);
            assert_eq!(store.register(NOW, &card(node, sequence), &Terms::open(99)).unwrap(), Registration::Refreshed);
            assert_eq!(
                store.register(NOW, &card(node, sequence - 1), &Terms::open(99)).unwrap(),
                Registration::Rollback
            );
            ends.push(store.log_end().unwrap());
        }
    }
    (1..6).for_each(|node| verify(&mut store, node));
    let last = *ends.last().unwrap();
    assert_eq!((last.size, ends.len()), (15, 16));
    for (old, new) in ends.iter().flat_map(|old| ends.iter().map(move |new| (old, new))) {
        match prove_consistency(&mut store, old.size, new.size).unwrap() {
            Some(proof) => tree::verify_consistency(old.size, new.size, &old.root, &new.root, &proof).unwrap(),
            None => assert!(old.size > new.size),
        }
    }
    assert_eq!(prove_consistency(&mut store, 0, 16).unwrap(), None, "it does not go so far");
    assert_eq!(prove_inclusion(&mut store, 15, 15).unwrap(), None);
    assert_eq!(prove_inclusion(&mut store, 0, 16).unwrap(), None);
    assert_eq!(store.walk_log().unwrap(), Ok(Walked { end: last, cards: 5 }));
}

#[test]
fn a_group_that_is_lost_takes_cards_and_entries_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = open(&folder);
    store.register(NOW, &card(1, 1), &Terms::open(99)).unwrap();
    let before = store.log_end().unwrap();
    store.begin().unwrap();
    store.register(NOW, &card(2, 1), &Terms::open(99)).unwrap();
    store.register(NOW, &card(1, 2), &Terms::open(99)).unwrap();
    // As after kill -9: nothing is written back, another connection finds what was durable.
    let mut after = SqliteStore::open_reader(&folder.path().join("db")).unwrap();
    assert_eq!(after.walk_log().unwrap(), Ok(Walked { end: before, cards: 1 }));
    store.roll_back();
    assert_eq!(store.walk_log().unwrap(), Ok(Walked { end: before, cards: 1 }));
    // Two connections write in turn: neither goes on from an end that it remembers.
    let mut other = open(&folder);
    for sequence in 2..9 {
        let [one, two] = if sequence % 2 == 0 { [&mut store, &mut other] } else { [&mut other, &mut store] };
        one.begin().unwrap();
        one.register(NOW, &card(1, sequence), &Terms::open(99)).unwrap();
        one.register(NOW, &card(2, sequence), &Terms::open(99)).unwrap();
        one.commit().unwrap();
        two.register(NOW, &card(3, sequence), &Terms::open(99)).unwrap();
    }
    assert_eq!(store.walk_log().unwrap().unwrap().end.size, 1 + 7 * 3);
    (1..4).for_each(|node| verify(&mut store, node));
}

#[test]
fn a_salt_goes_with_its_card_and_one_that_comes_back_is_logged_again() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = open(&folder);
    store.register(NOW, &card(1, 1), &Terms::open(99)).unwrap();
    store.purge(NOW.plus(Duration::from_secs(7200))).unwrap();
    let salts = "SELECT count(*) FROM nodes WHERE log_salt IS NOT NULL";
    assert_eq!(store.connection.query_row(salts, [], |row| row.get::<_, i64>(0)).unwrap(), 0);
    assert_eq!(store.walk_log().unwrap().unwrap().cards, 0);
    store.register(NOW, &card(1, 1), &Terms::open(99)).unwrap();
    assert_eq!(store.walk_log().unwrap().unwrap().end.size, 2);
    verify(&mut store, 1);
}

#[test]
fn a_database_without_a_log_gets_one_of_all_its_cards() {
    let folder = tempfile::tempdir().unwrap();
    let old = Connection::open(folder.path().join("db")).unwrap();
    old.execute_batch(include_str!("schema-1.sql")).unwrap();
    for node in 1..8_u8 {
        let sql = "INSERT INTO nodes VALUES (?1, 1, ?2, zeroblob(32), ?3, 'lab', 1, 9, 1, 1)";
        let card = (node != 5).then(|| vec![node; 3]);
        old.execute(sql, params![[node; 32], card, node.is_multiple_of(2)]).unwrap();
    }
    drop(old);
    let mut store = open(&folder);
    assert_eq!(store.walk_log().unwrap().map(|walked| (walked.end.size, walked.cards)), Ok((6, 6)));
    [1, 2, 3, 4, 6, 7].into_iter().for_each(|node| verify(&mut store, node));
    let end = store.log_end().unwrap();
    drop(store);
    assert_eq!(open(&folder).log_end().unwrap(), end, "once");
}

/// A store of ten entries and five cards in which something was changed by hand.
fn bent(folder: &Path, sql: &str) -> std::result::Result<Walked, Fault> {
    let mut store = SqliteStore::open(&folder.join("db"), 64).unwrap();
    if store.log_end().unwrap().size == 0 {
        for sequence in 1..3 {
            for node in 1..6 {
                store.register(NOW, &card(node, sequence), &Terms::open(99)).unwrap();
            }
        }
    }
    store.connection.execute_batch("SAVEPOINT bent").unwrap();
    store.connection.execute_batch(sql).unwrap();
    // Inside of the savepoint: what was bent is undone after the look.
    let end = end(&store.connection).unwrap();
    let found = match walk_hashes(&store.connection, end).unwrap() {
        Some(fault) => Err(fault),
        None => walk_cards(&store.connection, end.size).unwrap().map(|cards| Walked { end, cards }),
    };
    store.connection.execute_batch("ROLLBACK TO bent; RELEASE bent").unwrap();
    found
}

#[test]
fn each_fault_has_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let bent = |sql| bent(folder.path(), sql);
    assert_eq!(bent("").map(|walked| (walked.end.size, walked.cards)), Ok((10, 5)));
    let of = |node: u8| Fault::Card { node: NodeId::from_bytes([node; 32]), sequence: 2 };
    for (sql, fault) in [
        ("DELETE FROM log_hashes WHERE position = 7", Fault::Missing { index: 4, position: 7 }),
        ("DELETE FROM log_hashes WHERE position > 15", Fault::Missing { index: 9, position: 16 }),
        ("UPDATE log_hashes SET hash = zeroblob(32) WHERE position = 2", Fault::Changed { index: 1, level: 1 }),
        ("UPDATE log_hashes SET hash = zeroblob(32) WHERE position = 14", Fault::Changed { index: 7, level: 3 }),
        ("UPDATE log_hashes SET hash = zeroblob(32) WHERE position = 0", Fault::Changed { index: 1, level: 1 }),
        ("INSERT INTO log_hashes VALUES (18, zeroblob(32))", Fault::Beyond { size: 10 }),
        ("UPDATE log_end SET size = 9", Fault::Beyond { size: 9 }),
        ("UPDATE log_end SET root = zeroblob(32)", Fault::Root { size: 10 }),
        ("UPDATE nodes SET log_index = 9 WHERE log_index = 8", of(4)),
        ("UPDATE nodes SET log_index = NULL WHERE log_index = 8", of(4)),
        ("UPDATE nodes SET card = x'00' WHERE log_index = 5", of(1)),
        ("UPDATE nodes SET log_salt = zeroblob(16) WHERE log_index = 7", of(3)),
        ("UPDATE nodes SET log_salt = NULL WHERE log_index = 7", of(3)),
        ("UPDATE nodes SET log_salt = zeroblob(16) WHERE log_index = 6", of(2)),
    ] {
        assert_eq!(bent(sql), Err(fault), "{sql}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn whatever_comes_and_is_lost_the_log_is_whole(steps in prop::collection::vec((0_u8..8, 0_u8..6, 1_u64..5), 1..60)) {
        let folder = tempfile::tempdir().unwrap();
        let mut store = open(&folder);
        let mut known = vec![store.log_end().unwrap()];
        let mut grouped = false;
        for (step, node, sequence) in steps {
            match (step, grouped) {
                (0, false) => { store.begin().unwrap(); grouped = true; }
                (0 | 1, true) => { store.commit().unwrap(); grouped = false; }
                (2, true) => { store.roll_back(); grouped = false; }
                (3, false) => { store.purge(NOW.plus(Duration::from_secs(7200))).unwrap(); }
                (4, false) => { drop(store); store = open(&folder); }
                _ => { store.register(NOW, &card(node, sequence), &Terms::open(99)).unwrap(); }
            }
            if !grouped {
                known.push(store.log_end().unwrap());
            }
        }
        if grouped {
            store.commit().unwrap();
        }
        let walked = store.walk_log().unwrap();
        prop_assert!(walked.is_ok(), "{walked:?}");
        let unseen = "SELECT (SELECT count(*) FROM nodes LEFT JOIN seen ON place = log_index WHERE card IS NOT NULL AND at IS NULL)
            + (SELECT count(*) FROM seen WHERE NOT EXISTS (SELECT 1 FROM nodes WHERE log_index = place AND card IS NOT NULL))";
        prop_assert_eq!(store.connection.query_row(unseen, [], |row| row.get::<_, i64>(0)).unwrap(), 0);
        let last = store.log_end().unwrap();
        for old in known {
            let proof = prove_consistency(&mut store, old.size, last.size).unwrap().unwrap();
            prop_assert!(tree::verify_consistency(old.size, last.size, &old.root, &last.root, &proof).is_ok());
        }
    }
}
