//! The shared database by itself: its schema, and what comes of losing it; and the real program, caged, on it.

use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::signal::Signal;
use openred_directory::error::Error;
use openred_directory::store::postgres::{PostgresStore, SharedNonces, Target};
use openred_directory::store::walk::Fault;
use openred_directory::store::{CardReader as _, CardStore as _, NewCard, Registration, Terms};
use openred_proto::id::UnixMillis;
use sha2::{Digest as _, Sha256};

use crate::cluster::{Cluster, wait_for};
use crate::fixture::Node;
use crate::process::{Place, places};
use crate::stores::{DAY, NOW, card};

impl Place {
    /// The same identity as another's.
    fn take_key(&self, other: &Place) {
        let key = self.home().join("directory.key");
        std::fs::copy(other.home().join("directory.key"), &key).unwrap();
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
        if let Some(user) = self.user {
            std::os::unix::fs::chown(&key, Some(user), Some(user)).unwrap();
        }
    }

    /// A copy of the password's file for whoever runs the directory.
    pub(crate) fn password(&self, cluster: &Cluster) -> PathBuf {
        let password = self.home().join("password");
        std::fs::copy(cluster.password_file(), &password).unwrap();
        if let Some(user) = self.user {
            std::os::unix::fs::chown(&password, Some(user), Some(user)).unwrap();
        }
        password
    }
}

#[test]
fn tables_are_made_once_and_foreign_or_newer_ones_are_refused() {
    let cluster = Cluster::shared();
    let url = cluster.database();
    let target = cluster.target(&url);
    let unfit = |result: Result<PostgresStore, Error>| match result {
        Err(error @ (Error::LocalStoreUnfit { .. } | Error::LocalSchemaNewer { .. })) => error.to_string(),
        other => panic!("{other:?}"),
    };
    assert!(unfit(PostgresStore::open(&target)).contains("run `directory db migrate`"));
    let tried = PostgresStore::migrate(&target, true).unwrap();
    assert_eq!((tried.found, tried.steps.len(), tried.dry_run), (0, 4, true));
    assert!(PostgresStore::open(&target).is_err(), "a dry run leaves nothing");
    // Several that start at once.
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..3).map(|_| scope.spawn(|| PostgresStore::migrate(&target, false).unwrap())).collect();
        let made: usize = all.into_iter().map(|one| one.join().unwrap().steps.len()).sum();
        assert_eq!(made, 4);
    });
    PostgresStore::open(&target).unwrap();
    cluster.batch(&url, "UPDATE openred_directory.about SET version = 99");
    assert!(unfit(PostgresStore::open(&target)).contains("schema 99 is newer than"));
    assert!(matches!(PostgresStore::migrate(&target, false), Err(Error::LocalSchemaNewer { found: 99, .. })));

    let url = cluster.database();
    cluster.batch(&url, "CREATE SCHEMA openred_directory; CREATE TABLE openred_directory.about (one int, program int)");
    let foreign = PostgresStore::migrate(&cluster.target(&url), false).unwrap_err();
    assert!(foreign.to_string().contains("is not a directory's"), "{foreign}");
    let url = cluster.database().replace("openred@", "nobody@");
    let refused = PostgresStore::open(&cluster.target(&url)).unwrap_err().to_string();
    assert!(refused.contains("SQLSTATE 28P01") && !refused.contains(cluster.password()), "{refused}");
}

#[test]
fn a_change_of_the_schema_takes_the_time_that_it_takes() {
    let cluster = Cluster::shared();
    let url = cluster.database();
    // Longer than a statement of those who serve may take, at either end of the connection.
    cluster.batch(
        &url,
        "CREATE FUNCTION slow() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(11); END $$;
        CREATE EVENT TRIGGER slow ON ddl_command_end WHEN TAG IN ('CREATE SCHEMA') EXECUTE FUNCTION slow()",
    );
    assert_eq!(PostgresStore::migrate(&cluster.target(&url), false).unwrap().steps.len(), 4);
}

#[test]
fn tables_of_the_version_before_are_taken_over() {
    let cluster = Cluster::shared();
    let url = cluster.database();
    let target = cluster.target(&url);
    let mut store = cluster.open(&url);
    let later = NOW.plus(DAY / 2);
    for number in 0..3 {
        store.register(NOW, &card(number, NOW.plus(DAY)), &Terms::open(9)).unwrap();
    }
    store.register(later, &card(1, NOW.plus(DAY)), &Terms::open(9)).unwrap();
    let mut running = store;
    running.begin_run(NOW).unwrap();
    // What schema 4 has changed, back.
    cluster.batch(
        &url,
        "SET search_path = openred_directory; ALTER TABLE nodes ADD COLUMN last_seen bigint;
        UPDATE nodes SET last_seen = (SELECT at FROM seen WHERE place = log_index); ALTER TABLE nodes ALTER last_seen SET NOT NULL;
        DROP FUNCTION seen_goes CASCADE; DROP TABLE seen; UPDATE about SET version = 3",
    );
    assert!(PostgresStore::open(&target).is_err());
    let refused = PostgresStore::migrate(&target, false).unwrap_err().to_string();
    assert!(refused.contains("end all of them"), "{refused}");
    drop(running);
    assert_eq!(PostgresStore::migrate(&target, false).unwrap().steps.len(), 1);
    let mut store = PostgresStore::open(&target).unwrap();
    let counts = store.counts(NOW.plus(DAY / 4)).unwrap();
    assert_eq!((counts.nodes, counts.fresh), (3, 1));
    assert_eq!(store.node(&card(1, NOW).node).unwrap().unwrap().last_seen, later);
}

#[test]
fn two_directories_of_one_name_do_not_run_on_one_database() {
    let cluster = Cluster::shared();
    let url = cluster.database();
    let named = |name: &str| cluster.open(&url).as_replica(name);
    let (mut one, mut other, mut twin) = (named("a"), named("b"), named("a"));
    one.begin_run(NOW).unwrap();
    one.begin_run(NOW).unwrap();
    other.begin_run(NOW).unwrap();
    let refused = twin.begin_run(NOW).unwrap_err().to_string();
    assert!(refused.contains("another directory runs on it under this one's name"), "{refused}");
    // Who loses its connection has its name again at once, also where the server takes the old one for alive.
    let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()";
    cluster.batch(&url, end);
    wait_for("it writes again", || one.end_run(1).is_ok());
    assert!(twin.begin_run(NOW).is_err(), "and holds it");
    // Who was replaced meanwhile writes no more: here the name is another's before it comes back.
    cluster.batch(&url, end);
    wait_for("it takes over", || twin.begin_run(NOW).is_ok());
    for _ in 0..3 {
        assert!(matches!(one.end_run(1), Err(Error::LocalStoreAway)));
    }
    drop(twin);
    wait_for("the name is free", || one.end_run(1).is_ok());
    // Without [replicas] all have one name, and no replica beside them.
    drop((one, other));
    let (mut alone, mut second) = (cluster.open(&url), cluster.open(&url));
    alone.begin_run(NOW).unwrap();
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| second.begin_run(NOW));
        drop(alone);
        waits.join().unwrap().unwrap();
    });
}

/// A directory that is alone shares neither nonces nor offers, so no replica runs beside it.
#[test]
fn a_directory_that_is_alone_and_replicas_do_not_run_on_one_database() {
    let cluster = Cluster::shared();
    let url = cluster.database();
    let named = |name: &str| cluster.open(&url).as_replica(name);
    let (mut one, mut other) = (named("a"), named("b"));
    let mut alone = cluster.open(&url);
    one.begin_run(NOW).unwrap();
    other.begin_run(NOW).unwrap();
    let refused = alone.begin_run(NOW).unwrap_err().to_string();
    assert!(refused.contains("or one of the two without [replicas]"), "{refused}");
    drop(one);
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| alone.begin_run(NOW));
        drop(other);
        waits.join().unwrap().unwrap();
    });
    let mut late = named("c");
    assert!(late.begin_run(NOW).is_err());
    drop(alone);
    wait_for("the database is free", || late.begin_run(NOW).is_ok());
}

#[test]
fn nonces_are_kept_by_the_databases_clock() {
    let cluster = Cluster::shared();
    let url = cluster.database();
    drop(cluster.open(&url));
    let rows = "INSERT INTO openred_directory.nonces SELECT sha256(tag::bytea),
        (extract(epoch FROM clock_timestamp()) * 1000)::bigint - age FROM (VALUES ('young', 240000), ('old', 360000)) AS new (tag, age)";
    cluster.batch(&url, rows);
    let target = cluster.target(&url);
    let nonces = SharedNonces::start(&target).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let takes = |text: &str| runtime.block_on(nonces.take(Sha256::digest(text).into())).unwrap();
    // The first look at what is over comes behind the first nonce.
    assert!(takes("new") && !takes("new") && !takes("young"));
    assert!(takes("old"));
    let checked = "DO $$ BEGIN ASSERT (SELECT abs(max(at) - extract(epoch FROM clock_timestamp()) * 1000) < 120000
        FROM openred_directory.nonces); END $$";
    cluster.batch(&url, checked);
}

#[test]
fn who_waited_for_the_lock_sees_what_came_before_whatever_the_database_is_set_to() {
    let cluster = Cluster::shared();
    let url = cluster.database();
    let name = url.split_once("@/").unwrap().1.split_once('?').unwrap().0;
    cluster.batch(&url, &format!("ALTER DATABASE {name} SET default_transaction_isolation = 'serializable'"));
    let (mut one, mut two) = (cluster.open(&url), cluster.open(&url));
    one.begin().unwrap();
    one.register(NOW, &card(1, NOW.plus(DAY)), &Terms::open(9)).unwrap();
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| two.register(NOW, &card(2, NOW.plus(DAY)), &Terms::open(9)));
        let is_waiting = format!(
            "DO $$ BEGIN ASSERT EXISTS (SELECT 1 FROM pg_stat_activity WHERE datname = '{name}' AND wait_event_type = 'Lock'); END $$"
        );
        wait_for("the other waits", || waits.is_finished() || cluster.try_batch(name, &is_waiting).is_ok());
        one.commit().unwrap();
        assert_eq!(waits.join().unwrap().unwrap(), Registration::Stored);
    });
    assert_eq!(one.log_end().unwrap().size, 2);
}

#[test]
fn a_history_cannot_be_rewritten() {
    let cluster = Cluster::shared();
    let url = cluster.database();
    cluster.open(&url);
    for sql in ["DELETE FROM", "TRUNCATE", "UPDATE"] {
        let set = if sql == "UPDATE" { " SET uid = 1" } else { "" };
        let sql = format!(
            "DO $$ BEGIN {sql} openred_directory.history{set}; RAISE 'it went'; EXCEPTION WHEN raise_exception THEN
            IF SQLERRM = 'it went' THEN RAISE EXCEPTION SQLSTATE '22000'; END IF; END $$"
        );
        cluster.batch(&url, &sql);
    }
}

#[test]
fn a_log_that_was_changed_is_named() {
    let cluster = Cluster::shared();
    let url = cluster.database();
    let mut store = cluster.open(&url);
    for number in 0..5 {
        let new = NewCard { listed: number != 3, ..card(number, NOW.plus(DAY)) };
        store.register(NOW, &new, &Terms::open(9)).unwrap();
    }
    let walked = store.walk_log().unwrap().unwrap();
    assert_eq!((walked.end.size, walked.cards), (5, 5));
    let tables = "SET search_path = openred_directory; ";
    let mut fault_after = |sql: &str| {
        cluster.batch(&url, &format!("{tables}{sql}"));
        store.walk_log().unwrap().unwrap_err()
    };
    let node = card(3, NOW).node;
    assert_eq!(fault_after("UPDATE nodes SET log_salt = NULL WHERE log_index = 3"), Fault::Card { node, sequence: 1 });
    assert_eq!(fault_after("UPDATE log_end SET root = (SELECT hash FROM log_hashes LIMIT 1)"), Fault::Root { size: 5 });
    assert_eq!(fault_after("UPDATE log_end SET size = 4"), Fault::Beyond { size: 4 });
    let (index, level) = (3, 2);
    assert_eq!(
        fault_after("UPDATE log_hashes SET hash = sha256('') WHERE position = 6"),
        Fault::Changed { index, level }
    );
    assert_eq!(fault_after("DELETE FROM log_hashes WHERE position = 1"), Fault::Missing { index: 1, position: 1 });
}

#[test]
fn a_server_that_was_killed_is_found_again_with_every_card() {
    let cluster = Cluster::new();
    let url = cluster.database();
    let (mut store, mut reader) = (cluster.open(&url), cluster.open(&url));
    let one = card(1, NOW.plus(DAY));
    assert_eq!(store.register(NOW, &one, &Terms::open(9)).unwrap(), Registration::Stored);
    store.begin().unwrap();
    store.register(NOW, &card(2, NOW.plus(DAY)), &Terms::open(9)).unwrap();
    cluster.end(Signal::SIGKILL);
    let lost = store.register(NOW, &card(3, NOW.plus(DAY)), &Terms::open(9)).and_then(|_| store.commit());
    assert!(matches!(lost, Err(Error::LocalStoreAway)), "{lost:?}");
    store.roll_back();
    assert!(matches!(store.begin(), Err(Error::LocalStoreAway)));
    assert!(matches!(reader.node(&one.node), Err(Error::LocalStoreAway)));
    cluster.start();
    wait_for("the writer is back", || store.begin().is_ok());
    store.register(NOW, &card(3, NOW.plus(DAY)), &Terms::open(9)).unwrap();
    store.commit().unwrap();
    wait_for("the reader is back", || reader.counts(UnixMillis(0)).is_ok());
    assert_eq!(reader.node(&one.node).unwrap().unwrap().card, one.bytes);
    assert_eq!(
        (reader.counts(NOW).unwrap().nodes, reader.log_end().unwrap().size),
        (2, 2),
        "and what was not committed is not there"
    );
}

/// Passes bytes on between a client and the server; once it is armed, the answer to a commit does not come back.
fn cut_after_commit(server: &Path, folder: &Path) -> Arc<AtomicBool> {
    let (armed, listener) =
        (Arc::new(AtomicBool::new(false)), UnixListener::bind(folder.join(".s.PGSQL.5432")).unwrap());
    let (cut, server) = (Arc::clone(&armed), server.to_owned());
    std::thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            let back = UnixStream::connect(&server).unwrap();
            let (mut answers, mut to_client) = (back.try_clone().unwrap(), client.try_clone().unwrap());
            let (mut client, mut back, cut) = (client, back, Arc::clone(&cut));
            let lost = Arc::new(AtomicBool::new(false));
            let loses = Arc::clone(&lost);
            std::thread::spawn(move || {
                let mut bytes = [0; 8192];
                while let Ok(count @ 1..) = answers.read(&mut bytes) {
                    // The server has committed: it answers afterwards.
                    if loses.load(Ordering::SeqCst) || to_client.write_all(&bytes[..count]).is_err() {
                        break;
                    }
                }
                let _ = to_client.shutdown(std::net::Shutdown::Both);
            });
            std::thread::spawn(move || {
                let mut bytes = [0; 8192];
                while let Ok(count @ 1..) = client.read(&mut bytes) {
                    let commits = bytes[..count].windows(7).any(|word| word == b"COMMIT\0");
                    if commits && cut.swap(false, Ordering::SeqCst) {
                        lost.store(true, Ordering::SeqCst);
                    }
                    if back.write_all(&bytes[..count]).is_err() {
                        break;
                    }
                }
                let _ = back.shutdown(std::net::Shutdown::Both);
            });
        }
    });
    armed
}

#[test]
fn a_commit_whose_answer_was_lost_is_not_known_and_may_be_asked_for_again() {
    let (cluster, folder) = (Cluster::shared(), tempfile::tempdir().unwrap());
    let url = cluster.database();
    let name = url.split(['/', '?']).nth(3).unwrap();
    cluster.open(&url);
    let armed = cut_after_commit(&cluster.socket(), folder.path());
    let target = Target::open(&cluster.url(name, folder.path()), &cluster.password_file(), Path::new("")).unwrap();
    let mut store = PostgresStore::open(&target).unwrap();
    let one = card(1, NOW.plus(DAY));
    store.begin().unwrap();
    store.register(NOW, &one, &Terms::open(9)).unwrap();
    armed.store(true, Ordering::SeqCst);
    assert!(matches!(store.commit(), Err(Error::LocalStoreUnknown)));
    store.roll_back();
    assert_eq!(store.register(NOW, &one, &Terms::open(9)).unwrap(), Registration::Refreshed, "it had been stored");
    assert_eq!(store.log_end().unwrap().size, 1, "and is logged once");
}

/// Over the network: TLS, from a server whose certificate is trusted and names it; the caged program dials again too.
#[test]
fn another_machine_is_reached_by_tls_and_trusted_by_its_certificate() {
    let (cluster, folder) = (Cluster::with_tls(), tempfile::tempdir().unwrap());
    let path = cluster.database();
    let name = path.split(['/', '?']).nth(3).unwrap();
    let url = |host: &str| format!("postgresql://openred@{host}:{}/{name}", cluster.port());
    let file = |name: &str, bytes: &[u8]| {
        std::fs::write(folder.path().join(name), bytes).unwrap();
        folder.path().join(name)
    };
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let trusted = file("ca.pem", include_bytes!("tls/ca.pem"));
    let stranger = file("stranger.pem", include_bytes!("tls/localhost.pem"));
    let target =
        |host: &str, certificates: &Path| Target::open(&url(host), &cluster.password_file(), certificates).unwrap();
    PostgresStore::migrate(&target("localhost", &trusted), false).unwrap();
    let mut store = PostgresStore::open(&target("localhost", &trusted)).unwrap();
    assert_eq!(store.register(NOW, &card(1, NOW.plus(DAY)), &Terms::open(9)).unwrap(), Registration::Stored);
    // It fails where the open connection is not one of TLS.
    let sealed = "SELECT 1 / count(*) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid)
        WHERE ssl AND application_name = 'openred-directory'";
    cluster.batch(&path, sealed);
    for (host, certificates) in [("localhost", &stranger), ("127.0.0.1", &trusted)] {
        let refused = PostgresStore::open(&target(host, certificates));
        assert!(matches!(refused, Err(Error::LocalStoreAway)), "{host} {certificates:?} {refused:?}");
    }
    drop(store);
    let mut first: Option<Place> = None;
    for place in places() {
        let password = place.password(&cluster);
        let configure = |host, trusted: &Path| {
            let (url, password, trusted) = (url(host), password.display(), trusted.display());
            place.configure(&format!(
                "listen = \"127.0.0.1:0\"\n[store]\nurl = \"{url}\"\npassword_file = \"{password}\"\ncertificates = \"{trusted}\"\n"
            ));
        };
        // A database that cannot be asked whether it holds a log stops the start, too.
        configure("127.0.0.1", &trusted);
        let (code, said) = place.failure(&["serve"]);
        assert!(code == 1 && !place.home().join("directory.key").exists(), "{said}");
        configure("localhost", &trusted);
        let (code, said) = place.failure(&["serve"]);
        let no_key = "directory.key: is missing, and the database of store.url holds a directory's log: copy the key";
        assert!(code == 1 && said.contains(no_key), "{said}");
        assert!(!place.home().join("directory.key").exists(), "no other identity is made");
        match &first {
            Some(first) => place.take_key(first),
            None => drop(place.text(&["init"])),
        }
        let serving = place.serve();
        assert_eq!(serving.register(&Node::new(1)).0, 200);
        cluster.batch(
            &path,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'openred-directory'",
        );
        wait_for("it dials again", || serving.register(&Node::new(2)).0 == 200);
        assert_eq!(serving.end(), Some(0));
        first = first.or(Some(place));
    }
}

#[test]
fn the_real_program_serves_from_it_and_outlives_its_loss() {
    for place in places() {
        let cluster = Cluster::new();
        let url = cluster.database();
        let password = place.password(&cluster);
        place.configure(&format!(
            "listen = \"127.0.0.1:0\"\n[store]\nurl = \"{url}\"\npassword_file = \"{}\"\n",
            password.display()
        ));
        place.text(&["check"]);
        let shown = place.text(&["config", "show"]);
        assert!(shown.contains(&url) && !shown.contains(cluster.password()), "{shown}");
        assert_eq!(place.json(&["db", "migrate", "--dry-run"])["steps"].as_array().unwrap().len(), 4);
        let serving = place.serve();
        let (one, two) = (Node::new(1), Node::new(2));
        assert_eq!(serving.register(&one).0, 200);
        let path = format!("/api/v3/nodes/{}", one.id());
        let (status, before) = serving.get(&path);
        assert_eq!(status, 200);
        assert!(!place.home().join("state/directory.sqlite").exists(), "there is one database");

        cluster.end(Signal::SIGKILL);
        let (status, problem) = serving.register(&two);
        assert_eq!((status, &problem["code"]), (503, &"directory.cut-off".into()), "{problem}");
        assert_eq!(serving.get(&path).1["code"], "directory.cut-off");
        assert_eq!(serving.get("/api/v3/openapi.json").0, 200, "what needs no database goes on");
        cluster.start();
        wait_for("it has found its database again", || serving.get(&path).0 == 200);
        assert_eq!(serving.get(&path).1["card"], before["card"]);
        wait_for("it writes again", || serving.register(&two).0 == 200);
        assert_eq!(place.json(&["status"])["counts"]["nodes"], 2);
        assert_eq!(place.json(&["doctor"])["ok"], true);
        assert_eq!(place.json(&["log", "verify"])["cards"], 2);
        assert_eq!(place.text(&["db", "check"]), "store.url: sound\n");
        assert_eq!(place.text(&["nodes", "ban", &two.id().to_string()]), format!("banned {}\n", two.id()));
        assert_eq!(serving.end(), Some(0));
        let serving = place.serve();
        assert_eq!(serving.get(&path).1["card"], before["card"]);
        assert_eq!(serving.register(&two).0, 403);
    }
}
