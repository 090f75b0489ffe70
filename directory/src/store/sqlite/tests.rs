//! What is SQLite's alone: indexes, room for evidence, databases of before. The rest is both stores' (tests/directory/stores.rs).
#![allow(clippy::unwrap_used, reason = "tests")]
use openred_proto::checked::succession::Lineage;

use super::*;

const NOW: UnixMillis = UnixMillis(1_800_000_000_000);
const DAY: Duration = Duration::from_secs(86_400);

fn store() -> (tempfile::TempDir, SqliteStore) {
    let folder = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(&folder.path().join("db"), 64).unwrap();
    (folder, store)
}

fn card(number: u32, expires_at: UnixMillis) -> NewCard {
    let mut id = [0; 32];
    id[..4].copy_from_slice(&number.to_be_bytes());
    NewCard {
        node: NodeId::from_bytes(id),
        sequence: 1,
        expires_at,
        listed: true,
        sector: format!("s{}", number % 2),
        methods: 1,
        bytes: vec![7; 100],
        lineage: Lineage::default(),
    }
}

#[test]
fn a_page_is_looked_up_in_an_index_and_looks_at_so_many_rows() {
    let (_folder, mut store) = store();
    store.begin().unwrap();
    for number in 0..500 {
        let listed = number % 100 != 50;
        store.register(NOW, &NewCard { listed, ..card(number, NOW.plus(DAY)) }, &Terms::open(1000)).unwrap();
    }
    store.commit().unwrap();
    let all = Query { listed_only: true, limit: 64, examine: Some(100), ..Query::default() };
    for (query, pages, found) in [
        (all.clone(), 8, 495),
        (Query { sector: Some("none".into()), ..all.clone() }, 1, 0),
        (Query { sector: Some("s1".into()), ..all.clone() }, 4, 250),
        (Query { seen_since: Some(NOW.plus(DAY)), ..all.clone() }, 5, 0),
        (Query { alive_at: Some(NOW.plus(DAY)), examine: None, ..all.clone() }, 1, 0),
        (Query { listed_only: false, examine: None, limit: 1000, ..all }, 1, 500),
    ] {
        let (mut seen, mut asked, mut query) = (0, 0, query);
        loop {
            let page = store.page(&query).unwrap();
            asked += 1;
            seen += page.held.len();
            query.after = page.next;
            if page.next.is_none() {
                break;
            }
        }
        assert_eq!((asked, seen), (pages, found), "{query:?}");
    }
    for (sector, index) in [("", "listed_nodes"), (" AND sector = 'a'", "listed_sectors")] {
        let sql = format!(
            "EXPLAIN QUERY PLAN SELECT id, methods, (SELECT at FROM seen WHERE place = log_index), expires_at FROM nodes WHERE listed = 1 AND id > x'00'{sector} ORDER BY id"
        );
        let plan: String = store.connection.query_row(&sql, [], |row| row.get(3)).unwrap();
        assert!(plan.contains(&format!("USING COVERING INDEX {index} ")), "{plan}");
    }
}

#[test]
fn a_card_that_comes_again_is_judged_by_an_index_alone_and_changes_one_page() {
    let (folder, mut store) = store();
    for number in 0..100 {
        store
            .register(NOW, &NewCard { bytes: vec![7; 2000], ..card(number, NOW.plus(DAY)) }, &Terms::open(100))
            .unwrap();
    }
    let explain = format!("EXPLAIN QUERY PLAN {}", seen::KNOWN);
    let plan: String = store.connection.query_row(&explain, [[0; 32]], |row| row.get(3)).unwrap();
    assert!(plan.contains("USING COVERING INDEX known_nodes "), "{plan}");
    let log = folder.path().join("db-wal");
    let length = || std::fs::metadata(&log).unwrap().len();
    let again = NewCard { bytes: vec![7; 2000], ..card(50, NOW.plus(DAY)) };
    let before = length();
    assert_eq!(store.register(NOW.plus(DAY / 2), &again, &Terms::open(100)).unwrap(), Registration::Refreshed);
    assert_eq!(length() - before, 4096 + 24, "one page and its head in the write-ahead log");
}

#[test]
fn evidence_that_has_no_room_is_not_said_to_be_kept() {
    let (_folder, mut store) = store();
    let first = card(1, NOW.plus(DAY));
    store.register(NOW, &first, &Terms::open(9)).unwrap();
    let other = NewCard { bytes: vec![8; 100], ..first };
    let fill = "WITH RECURSIVE count(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM count WHERE n < ?1)
        INSERT INTO evidence SELECT randomblob(32), n, x'00', x'00', 0 FROM count";
    store.connection.execute(fill, [EVIDENCE]).unwrap();
    assert_eq!(store.register(NOW, &other, &Terms::open(9)).unwrap(), Registration::Equivocation { kept: false });
    store.connection.execute("DELETE FROM evidence", []).unwrap();
    for _ in 0..2 {
        assert_eq!(store.register(NOW, &other, &Terms::open(9)).unwrap(), Registration::Equivocation { kept: true });
    }
}

#[test]
fn a_database_of_the_schema_before_is_taken_over() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("db");
    let old = Connection::open(&path).unwrap();
    old.execute_batch(include_str!("schema-1.sql")).unwrap();
    old.execute_batch(
        "INSERT INTO nodes VALUES (zeroblob(32), 5, x'07', zeroblob(32), 1, 'lab', 1, 9, 1, 5);
         INSERT INTO nodes VALUES (randomblob(32), 5, NULL, zeroblob(32), 1, 'lab', 1, 9, 1, 1);",
    )
    .unwrap();
    drop(old);
    let mut store = SqliteStore::open(&path, 64).unwrap();
    assert_eq!(store.begin_run(NOW).unwrap(), PreviousRun::CutOff, "it may have run a moment ago");
    let query = Query { listed_only: true, sector: Some("lab".into()), limit: 9, ..Query::default() };
    let held = store.page(&query).unwrap().held;
    assert_eq!(
        held.iter().map(|held| (held.first_seen, held.last_seen)).collect::<Vec<_>>(),
        [(UnixMillis(1), UnixMillis(5))]
    );
    let counts = store.counts(UnixMillis(5)).unwrap();
    assert_eq!((counts.nodes, counts.fresh), (1, 1));
    drop(store);
    SqliteStore::open(&path, 64).unwrap();
}

/// A database of schema 6 with cards that came last at 5: the first with a tombstone beside it, one that is quarantined, and `more`.
fn schema_6(path: &Path, more: i64) {
    let old = Connection::open(path).unwrap();
    for statements in [CREATE, successions::CREATE, log::CREATE, decisions::CREATE, followed::CREATE] {
        old.execute_batch(statements).unwrap();
    }
    let row = "INSERT INTO nodes (id, sequence, card, card_hash, listed, sector, methods, expires_at, first_seen, last_seen, log_index, quarantined)";
    old.execute_batch(&format!(
        "{row} VALUES (randomblob(32), 5, x'07', zeroblob(32), 1, 'lab', 1, 9, 1, 5, 0, 0);
         {row} VALUES (zeroblob(32), 1, NULL, zeroblob(32), 0, 'lab', 1, 9, 1, 1, 1, 0);
         {row} VALUES (randomblob(32), 5, x'07', zeroblob(32), 2, 'lab', 1, 9, 1, 5, 2, 1);
         -- Not as any version left them: no place, and a place twice.
         {row} VALUES (randomblob(32), 5, x'07', zeroblob(32), 1, 'odd', 1, 9, 1, 5, NULL, 0);
         {row} VALUES (randomblob(32), 5, x'07', zeroblob(32), 1, 'odd', 1, 9, 1, 5, 2, 0);
         WITH RECURSIVE count(n) AS (SELECT 10 UNION ALL SELECT n + 1 FROM count WHERE n < 9 + {more})
         {row} SELECT randomblob(32), 1, randomblob(1300), randomblob(32), 1, 'lab', 1, 9, 1, 5, n, 0 FROM count;
         PRAGMA user_version = 6;"
    ))
    .unwrap();
}

#[test]
fn a_full_database_of_schema_6_is_taken_over_and_leaves_no_long_log() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("db");
    schema_6(&path, 2000);
    assert!(std::fs::metadata(&path).unwrap().len() > 2 << 20);
    let told = migrate::run(&path, 1, true).unwrap();
    assert_eq!(told.steps.len(), 1);
    let mut store = SqliteStore::open(&path, 1).unwrap();
    assert_eq!(std::fs::metadata(folder.path().join("db-wal")).unwrap().len(), 0);
    let names = std::fs::read_dir(folder.path()).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.filter(|name| !name.ends_with("-wal") && !name.ends_with("-shm")).collect();
    names.sort();
    assert_eq!(names, ["db", "db.schema-6"]);
    let mut seen = |at| store.counts(UnixMillis(at)).unwrap().fresh;
    assert_eq!((seen(5), seen(6)), (2002, 0), "those with a place of their own");
    let query = Query { sector: Some("lab".into()), limit: 9, ..Query::default() };
    assert!(store.page(&query).unwrap().held.iter().all(|held| held.last_seen == UnixMillis(5)));
    let gone = card(0, NOW.plus(DAY));
    let again = NewCard { node: NodeId::from_bytes([0; 32]), sequence: 1, ..gone };
    assert!(matches!(store.register(NOW, &again, &Terms::open(9999)), Ok(Registration::Equivocation { .. })));
    let newer = NewCard { sequence: 2, ..again };
    store.limit_pages(1 << 20).unwrap();
    assert_eq!(store.register(NOW, &newer, &Terms::open(9999)).unwrap(), Registration::Stored);
}
