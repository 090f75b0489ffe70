//! Tests of the store: what is acknowledged survives `kill -9`, what cannot be written is refused and harms nothing else.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, Command, Stdio};

use bytes::Bytes;
use openred_module::{Batch, Committed, Scan};
use openred_proto::id::{LinkId, NodeId, UnixMillis};
use openred_proto::method::Method;
use openred_proto::secret::Secret;
use openred_proto::vault::LinkSummary;

use super::*;
use crate::link::state::{EndReason, Link};

/// Names the state directory to a child of these tests, which is this test program again.
const CHILD: &str = "OPENRED_TEST_STORE";

fn seal() -> RowSeal {
    RowSeal::new("test", &Secret::new([7; 32]))
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

fn open(directory: &Path) -> (Store, StoreThread) {
    Store::open(directory, 0).unwrap()
}

async fn put(store: &Store, key: impl Into<Bytes>, value: impl Into<Bytes>) -> Result<()> {
    let batch = Batch::new().put(key, value);
    let committed = store.call(move |connection| rows::apply(connection, &seal(), &batch, None)).await?;
    assert_eq!(committed, Committed::Yes);
    Ok(())
}

async fn get(store: &Store, key: &'static str) -> Result<Option<Bytes>> {
    store.call(move |connection| rows::get(connection, &seal(), key.as_bytes())).await
}

fn this_test(name: &str, directory: &Path, limits: &str) -> Child {
    let script = format!("{limits} exec \"$0\" --exact {name} --nocapture --test-threads 1");
    Command::new("sh")
        .args(["-c", &script])
        .arg(std::env::current_exe().unwrap())
        .env(CHILD, directory)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    // The test harness has written its own words without ending the line.
    writeln!(out, "\n{line}").unwrap();
    out.flush().unwrap();
}

/// Numbers that a child said, until `enough` of them or its end.
fn heard(child: &mut Child, word: &str, enough: usize) -> Vec<u64> {
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    lines
        .map_while(std::result::Result::ok)
        .filter_map(|line| line.strip_prefix(word)?.trim().parse().ok())
        .take(enough)
        .collect()
}

#[test]
fn kill_nine_loses_nothing_that_was_acknowledged() {
    if let Some(directory) = std::env::var_os(CHILD) {
        let (store, _thread) = open(directory.as_ref());
        runtime().block_on(async {
            for number in 0_u64.. {
                put(&store, format!("row/{number:08}"), vec![0; 2000]).await.unwrap();
                say(&format!("acknowledged {number}"));
            }
        });
    }
    let directory = tempfile::tempdir().unwrap();
    for round in 1_u64..=3 {
        let mut child = this_test("store::tests::kill_nine_loses_nothing_that_was_acknowledged", directory.path(), "");
        let acknowledged = heard(&mut child, "acknowledged", 60 * usize::try_from(round).unwrap());
        child.kill().unwrap();
        child.wait().unwrap();
        let last = *acknowledged.last().unwrap();
        let (store, thread) = open(directory.path());
        let kept = runtime().block_on(store.call(|connection| {
            let scan = Scan::prefix("row/");
            rows::scan(connection, &seal(), &scan)
        }));
        assert!(kept.unwrap().rows.len() as u64 > last, "round {round}: acknowledged up to {last}");
        drop(store);
        thread.join();
    }
}

#[test]
fn a_full_disk_is_named_and_reads_go_on() {
    if let Some(directory) = std::env::var_os(CHILD) {
        let (store, _thread) = open(directory.as_ref());
        let refused = runtime().block_on(async {
            put(&store, "first", "kept").await.unwrap();
            let mut refused = 0;
            for number in 0..400 {
                match put(&store, format!("row/{number}"), vec![0; 4000]).await {
                    Ok(()) => {}
                    Err(StoreError::Full) => refused += 1,
                    Err(other) => panic!("{other}"),
                }
            }
            assert_eq!(get(&store, "first").await, Ok(Some("kept".into())));
            refused
        });
        say(&format!("refused {refused}"));
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    // The file may grow to 1 MiB or half of it, by the shell's unit: a write beyond fails as on a full disk.
    let limits = "trap '' XFSZ; ulimit -f 1024;";
    let mut child = this_test("store::tests::a_full_disk_is_named_and_reads_go_on", directory.path(), limits);
    let refused = heard(&mut child, "refused", usize::MAX);
    assert!(child.wait().unwrap().success());
    assert!(refused[0] > 0);
    let (store, _thread) = open(directory.path());
    assert_eq!(runtime().block_on(get(&store, "first")), Ok(Some("kept".into())), "still readable once there is room");
    assert!(runtime().block_on(put(&store, "later", "x")).is_ok());
}

#[test]
fn the_configured_size_is_a_limit() {
    let directory = tempfile::tempdir().unwrap();
    let (store, _thread) = Store::open(directory.path(), 256 << 10).unwrap();
    runtime().block_on(async {
        assert_eq!(put(&store, "large", vec![0; 500_000]).await, Err(StoreError::Full));
        assert!(put(&store, "small", vec![0; 500]).await.is_ok());
    });
}

#[test]
fn trouble_lasts_until_a_long_write_goes_through() {
    let directory = tempfile::tempdir().unwrap();
    let (store, _thread) = Store::open(directory.path(), 2 << 20).unwrap();
    runtime().block_on(async {
        assert_eq!(store.trouble().await, None);
        let mut kept = 0;
        while put(&store, format!("row {kept}"), vec![0; 100_000]).await.is_ok() {
            kept += 1;
        }
        assert_eq!(store.trouble().await, Some(StoreError::Full));
        put(&store, "small", "x").await.unwrap();
        assert_eq!(store.trouble().await, Some(StoreError::Full), "a small write proves nothing");
        let batch = (0..kept).fold(Batch::new(), |batch, row| batch.delete(format!("row {row}")));
        let _ = store.call(move |connection| rows::apply(connection, &seal(), &batch, None)).await.unwrap();
        assert_eq!(store.trouble().await, None);
        assert_eq!(get(&store, "small").await, Ok(Some("x".into())));
    });
}

#[test]
fn one_failing_job_of_a_group_takes_nothing_with_it() {
    let directory = tempfile::tempdir().unwrap();
    let (store, _thread) = open(directory.path());
    runtime().block_on(async {
        let failing = store.call(|connection| {
            let _ = rows::apply(connection, &seal(), &Batch::new().put("half", "x"), None)?;
            Err::<(), _>(StoreError::Damaged("test"))
        });
        let (one, failed, two) = tokio::join!(put(&store, "one", "1"), failing, put(&store, "two", "2"));
        assert_eq!((one, failed, two), (Ok(()), Err(StoreError::Damaged("test")), Ok(())));
        assert_eq!(get(&store, "half").await, Ok(None));
        assert_eq!(get(&store, "two").await, Ok(Some("2".into())));
    });
}

#[test]
fn batches_compare_and_set() {
    let directory = tempfile::tempdir().unwrap();
    let (store, _thread) = open(directory.path());
    runtime().block_on(async {
        let apply = |batch: Batch| {
            let store = store.clone();
            async move { store.call(move |connection| rows::apply(connection, &seal(), &batch, None)).await.unwrap() }
        };
        assert_eq!(apply(Batch::new().expect("a", None).put("a", "1").put("b", "1")).await, Committed::Yes);
        assert_eq!(apply(Batch::new().expect("a", None).put("b", "2")).await, Committed::No);
        assert_eq!(get(&store, "b").await, Ok(Some("1".into())));
        assert_eq!(apply(Batch::new().expect("a", Some("1".into())).delete("a").put("b", "3")).await, Committed::Yes);
        assert_eq!((get(&store, "a").await, get(&store, "b").await), (Ok(None), Ok(Some("3".into()))));
    });
}

#[test]
fn scans_keep_to_prefix_order_and_limit() {
    let directory = tempfile::tempdir().unwrap();
    let (store, _thread) = open(directory.path());
    runtime().block_on(async {
        for key in ["a", "m/1", "m/2", "m/3", "n"] {
            put(&store, key, key).await.unwrap();
        }
        let keys = |scan: Scan| {
            let store = store.clone();
            async move {
                let page = store.call(move |connection| rows::scan(connection, &seal(), &scan)).await.unwrap();
                let keys: Vec<String> =
                    page.rows.iter().map(|(key, _)| String::from_utf8(key.to_vec()).unwrap()).collect();
                (keys.join(" "), page.more)
            }
        };
        assert_eq!(keys(Scan::prefix("m/")).await, ("m/1 m/2 m/3".into(), false));
        assert_eq!(keys(Scan::prefix("m/").limit(2)).await, ("m/1 m/2".into(), true));
        assert_eq!(keys(Scan::prefix("m/").after(Some("m/1".into()))).await, ("m/2 m/3".into(), false));
        assert_eq!(keys(Scan::prefix("m/").backwards().limit(1)).await, ("m/3".into(), true));
        assert_eq!(keys(Scan::prefix("m/").backwards().after(Some("m/3".into()))).await, ("m/2 m/1".into(), false));
        assert_eq!(keys(Scan::prefix("")).await.0, "a m/1 m/2 m/3 n");
    });
}

#[test]
fn rows_rest_sealed_and_open_only_where_they_stand() {
    let directory = tempfile::tempdir().unwrap();
    let canary = "canary-8f14e45fceea167a5a36dedd4bea2543";
    let (store, thread) = open(directory.path());
    let in_files = |what: &str| {
        std::fs::read_dir(directory.path()).unwrap().any(|entry| {
            let bytes = std::fs::read(entry.unwrap().path()).unwrap();
            bytes.windows(what.len()).any(|window| window == what.as_bytes())
        })
    };
    runtime().block_on(async {
        put(&store, "the-key-in-clear", canary).await.unwrap();
        assert!(in_files("the-key-in-clear"), "the search finds what is there in clear");
        assert!(!in_files(canary));
        assert_eq!(get(&store, "the-key-in-clear").await, Ok(Some(canary.into())));
        store
            .call(|connection| {
                connection.execute("UPDATE module_row SET key = x'6d6f766564'", [])?;
                Ok(())
            })
            .await
            .unwrap();
        assert_eq!(get(&store, "moved").await, Err(StoreError::Damaged("module_row")));
        let other = RowSeal::new("other", &Secret::new([7; 32]));
        assert!(other.open(b"k", 1, &seal().seal(b"k", 1, b"v")).is_err(), "another module's row");
        assert!(seal().open(b"k", 2, &seal().seal(b"k", 1, b"v")).is_err(), "another version");
    });
    drop(store);
    thread.join();
    assert!(!in_files(canary));
}

#[test]
fn newer_schema_foreign_file_and_second_process_are_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let (store, thread) = open(directory.path());
    assert_eq!(Store::open(directory.path(), 0).err(), Some(StoreError::InUse));
    drop(store);
    thread.join();
    let file = directory.path().join(FILE);
    Connection::open(&file).unwrap().pragma_update(None, "user_version", 99).unwrap();
    assert_eq!(Store::open(directory.path(), 0).err(), Some(StoreError::NewerSchema { found: 99, known: 9 }));
    Connection::open(&file).unwrap().pragma_update(None, "application_id", 1).unwrap();
    assert_eq!(Store::open(directory.path(), 0).err(), Some(StoreError::Foreign));
    std::fs::write(&file, [7; 9000]).unwrap();
    assert_eq!(Store::open(directory.path(), 0).err(), Some(StoreError::Foreign));
}

#[test]
fn a_copy_taken_under_load_is_whole_and_as_of_one_moment() {
    let directory = tempfile::tempdir().unwrap();
    let (store, thread) = open(directory.path());
    runtime().block_on(async {
        let writing = store.clone();
        let writer = tokio::spawn(async move {
            for number in 0..400_u32 {
                // Two rows of one call: a copy has both or neither.
                let value = number.to_be_bytes().to_vec();
                let batch = Batch::new().put("one", value.clone()).put("two", value);
                let applied = writing.call(move |connection| rows::apply(connection, &seal(), &batch, None)).await;
                assert_eq!(applied, Ok(Committed::Yes));
            }
        });
        for _ in 0..5 {
            put(&store, "kept", "x").await.unwrap();
            let bytes = store.copy().await.unwrap();
            let copy = directory.path().join(COPY);
            assert_eq!(std::fs::metadata(&copy).unwrap().len(), bytes);
            assert_eq!(check(&copy).unwrap(), Sound { schema: 9, links: 0 });
            let connection = Connection::open(&copy).unwrap();
            let read = |key: &[u8]| rows::get(&connection, &seal(), key).unwrap();
            assert_eq!(read(b"one"), read(b"two"));
            assert_eq!(read(b"kept").as_deref(), Some(&b"x"[..]), "what was acknowledged before is in it");
        }
        writer.await.unwrap();
    });
    drop(store);
    thread.join();
    let copy = directory.path().join(COPY);
    let whole = std::fs::read(&copy).unwrap();
    std::fs::write(&copy, &whole[..whole.len() / 2]).unwrap();
    assert!(check(&copy).is_err());
    std::fs::write(&copy, [7; 9000]).unwrap();
    assert_eq!(check(&copy).err(), Some(StoreError::Foreign));
}

#[test]
fn links_and_peers_read_back_as_written() {
    let directory = tempfile::tempdir().unwrap();
    let (store, _thread) = open(directory.path());
    let (peer, now) = (NodeId::from_bytes([9; 32]), UnixMillis(u64::MAX));
    let summary = LinkSummary {
        link: LinkId::from_bytes([1; 16]),
        peer,
        issuer: true,
        method: Method::Delta,
        epoch: 5,
        not_before: UnixMillis(1),
        not_after: now,
        registered: None,
    };
    let link = Link::issued(summary, vec![1], vec![2], [3; 32], NodeId::from_bytes([4; 32]), now);
    let link = link.with_receipt(vec![5], now).unwrap().with_handshake(true, 17, [6; 16], now).unwrap();
    let link = link.with_match(false, now).ended(EndReason::Operator, now).unwrap();
    runtime().block_on(async {
        let written = link.clone();
        store.call(move |connection| links::put(connection, &written)).await.unwrap();
        assert_eq!(store.call(links::all).await, Ok(vec![link]));
        store.call(move |connection| peers::keep_card(connection, &peer, b"card", 7, now)).await.unwrap();
        store.call(move |connection| peers::approve(connection, &peer, now)).await.unwrap();
        store.call(move |connection| peers::keep_card(connection, &peer, b"older", 6, now)).await.unwrap();
        let known = store.call(move |connection| peers::get(connection, &peer)).await.unwrap().unwrap();
        assert_eq!((known.card.as_slice(), known.sequence, known.approved_at), (&b"card"[..], 7, now));
        store.call(move |connection| peers::forget(connection, &peer)).await.unwrap();
        let known = store.call(peers::all).await.unwrap().remove(0);
        assert_eq!((known.card.len(), known.sequence, known.approved_at), (0, 7, UnixMillis(0)));
    });
}
