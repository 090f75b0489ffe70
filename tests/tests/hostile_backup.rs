//! A hostile database in a backup that is in order otherwise: refused by name before anything of a home is touched, by `verify` and
//! `restore` alike.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

use age::secrecy::ExposeSecret;
use anyhow::Result;
use openred_tests::forge::Forged;
use openred_tests::harness::{Answer, Node, binaries, run};
use rusqlite::Connection;
use serde_json::Value;

/// A base of uids that no other test of this suite uses.
const UID_BASE: u32 = 61_360;
/// Bytes of a page of a node's database.
const PAGE: u64 = 4096;

/// A stopped node, a backup of it for a recipient, and the identity that opens it.
struct Place {
    folder: tempfile::TempDir,
    node: Node,
    backup: Forged,
    recipient: String,
    identity: String,
}

impl Place {
    fn new(step: u32) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().canonicalize().unwrap();
        let nowhere = "did:key:z6MkiTBz1ymuepAQ4HEHYSF1H8quG5GLVVQR3djdX3mDooWp@http://127.0.0.1:9";
        let mut node = Node::init(&place, "node", nowhere, UID_BASE + 10 * step, "").unwrap();
        node.up().unwrap();
        node.down().unwrap();
        let key = age::x25519::Identity::generate();
        let (recipient, identity) = (key.to_public().to_string(), place.join("identity"));
        fs::write(&identity, format!("{}\n", key.to_string().expose_secret())).unwrap();
        fs::set_permissions(&identity, Permissions::from_mode(0o600)).unwrap();
        let whole = place.join("whole.backup");
        let (text, passphrase) = (whole.display().to_string(), format!("{}.passphrase", node.home.display()));
        let create = ["backup", "create", &text, "--recipient", &recipient, "--passphrase-file", &passphrase];
        let create = [&create[..], &["--without-files"]].concat();
        node.cli(&create).unwrap().ok().unwrap();
        let backup = Forged::open(&whole, key.to_string().expose_secret()).unwrap();
        Self { folder, node, backup, recipient, identity: identity.display().to_string() }
    }

    fn forged(&self, change: impl FnOnce(&Path) -> Result<()>, claimed: Option<u64>) -> String {
        let place = self.folder.path().join("forged.backup");
        self.backup.clone().with_database(change).unwrap().seal(&place, &self.recipient, claimed).unwrap();
        place.display().to_string()
    }

    fn asked(&self, what: &str, place: &str) -> Answer {
        let mut arguments = vec!["backup", what, place, "--identity-file", &self.identity];
        arguments.extend((what == "restore").then_some("--force"));
        self.node.cli(&arguments).unwrap()
    }
}

fn refusal(answer: &Answer) -> (i32, String, String) {
    let line = answer.stderr.lines().rev().find(|line| line.contains("openred.error/1"));
    let body: Value = serde_json::from_str(line.unwrap_or_else(|| panic!("{answer:?}"))).unwrap();
    (answer.code, body["code"].as_str().unwrap().to_owned(), body["message"].to_string())
}

/// Every file of a home and what is in it, but for where its processes meet.
fn content(home: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let (mut found, mut waiting) = (BTreeMap::new(), vec![home.to_owned()]);
    while let Some(folder) = waiting.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            match entry.file_type().unwrap().is_dir() {
                true if entry.path() == home.join("run") => {}
                true => waiting.push(entry.path()),
                false => drop(found.insert(entry.path(), fs::read(entry.path()).unwrap())),
            }
        }
    }
    found
}

/// Runs statements in the database.
fn sql(text: &'static str) -> impl Fn(&Path) -> Result<()> {
    move |file| Ok(Connection::open(file)?.execute_batch(text)?)
}

/// Writes bytes into it.
fn bytes(at: u64, bytes: &'static [u8]) -> impl Fn(&Path) -> Result<()> {
    move |file| Ok(fs::File::options().write(true).open(file)?.write_all_at(bytes, at)?)
}

/// The same by a log alone: the file itself is as the node left it.
fn in_the_log(file: &Path) -> Result<()> {
    let beside = file.with_file_name("beside.sqlite");
    fs::copy(file, &beside)?;
    let connection = Connection::open(&beside)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    // The header that says so is in the file before the rest is only in the log.
    connection.execute_batch("PRAGMA wal_checkpoint(TRUNCATE); PRAGMA wal_autocheckpoint = 0")?;
    fs::copy(&beside, file)?;
    connection.execute_batch(TRIGGER)?;
    let log = "beside.sqlite-wal";
    fs::copy(file.with_file_name(log), file.with_file_name("node.sqlite-wal"))?;
    Ok(())
}

const TRIGGER: &str = "CREATE TRIGGER approve AFTER INSERT ON peer BEGIN UPDATE peer SET approved_at = 1; END";
const SHAPE: &str = "no node puts there";
const FOREIGN: &str = "not a database of an OpenRed node";
/// What SQLite itself says of a file that contradicts itself.
const DAMAGED: &str = "database";

type Change = Box<dyn Fn(&Path) -> Result<()>>;

/// Schemas that are in order and not a node's: what is done to the database, and what is said of it.
fn strange_schemas() -> Vec<(&'static str, &'static str, Change)> {
    vec![
        ("a trigger", SHAPE, Box::new(sql(TRIGGER))),
        ("a trigger in the log", SHAPE, Box::new(in_the_log)),
        (
            "a view in a table's place",
            SHAPE,
            Box::new(sql("ALTER TABLE link RENAME TO hidden; CREATE VIEW link AS SELECT * FROM hidden")),
        ),
        (
            "a view that never ends",
            SHAPE,
            Box::new(sql(
                "DROP TABLE link; CREATE VIEW link AS WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x FROM n) SELECT x FROM n",
            )),
        ),
        ("a table more", SHAPE, Box::new(sql("CREATE TABLE more (x)"))),
        ("a table fewer", SHAPE, Box::new(sql("DROP TABLE succession"))),
        ("a column more", SHAPE, Box::new(sql("ALTER TABLE peer ADD COLUMN more BLOB"))),
        (
            "a check that is computed by looking",
            SHAPE,
            Box::new(sql(
                "DROP TABLE meta; CREATE TABLE meta (name TEXT PRIMARY KEY, value BLOB NOT NULL CHECK (length(randomblob(1000000000)) > 0)) WITHOUT ROWID",
            )),
        ),
        (
            "an index that is computed by looking",
            SHAPE,
            Box::new(sql("CREATE INDEX costly ON module_row (length(zeroblob(1000000000)))")),
        ),
        (
            "a table of a module of SQLite's",
            SHAPE,
            Box::new(sql(
                "PRAGMA writable_schema = ON; INSERT INTO sqlite_schema VALUES ('table', 'v', 'v', 0, 'CREATE VIRTUAL TABLE v USING nowhere(x)')",
            )),
        ),
    ]
}

/// Files that contradict themselves, or say that they are something else.
fn strange_files() -> Vec<(&'static str, &'static str, Change)> {
    vec![
        (
            "a schema that is no SQL",
            DAMAGED,
            Box::new(sql(
                "PRAGMA writable_schema = ON; UPDATE sqlite_schema SET sql = 'CREATE TABLE link (' WHERE name = 'link'",
            )),
        ),
        (
            "two tables on one page",
            DAMAGED,
            Box::new(sql(
                "PRAGMA writable_schema = ON; UPDATE sqlite_schema SET rootpage = (SELECT rootpage FROM sqlite_schema WHERE name = 'peer') WHERE name = 'link'",
            )),
        ),
        (
            "a table on a page that is not there",
            DAMAGED,
            Box::new(sql(
                "PRAGMA writable_schema = ON; UPDATE sqlite_schema SET rootpage = 999999 WHERE name = 'link'",
            )),
        ),
        ("another application", FOREIGN, Box::new(sql("PRAGMA application_id = 7"))),
        ("no version", SHAPE, Box::new(sql("PRAGMA user_version = 0"))),
        ("an older version than its tables", SHAPE, Box::new(sql("PRAGMA user_version = 1"))),
        ("a version of the future", "newer version", Box::new(sql("PRAGMA user_version = 99"))),
        ("text", FOREIGN, Box::new(|file: &Path| Ok(fs::write(file, "no database at all\n".repeat(300))?))),
        ("a page of junk", DAMAGED, Box::new(bytes(2 * PAGE, &[0xff; 4096]))),
        ("a page size that is none", DAMAGED, Box::new(bytes(16, &[3, 7]))),
        (
            "fewer pages than it says",
            DAMAGED,
            Box::new(|file: &Path| {
                let file = fs::File::options().write(true).open(file)?;
                let length = file.metadata()?.len();
                Ok(file.set_len(length / 2 / PAGE * PAGE)?)
            }),
        ),
    ]
}

#[test]
fn a_hostile_database_is_refused_by_name_and_nothing_is_replaced() {
    let place = Place::new(0);
    let before = content(&place.node.home);
    assert!(before.len() >= 4, "{:?}", before.keys());
    for (name, says, change) in strange_schemas().into_iter().chain(strange_files()) {
        let forged = place.forged(change, None);
        for command in ["verify", "restore"] {
            let (exit, code, message) = refusal(&place.asked(command, &forged));
            assert_eq!((exit, code.as_str()), (1, "backup.database"), "{name}, {command}: {message}");
            assert!(message.contains(says), "{name}, {command}: {message}");
            assert!(content(&place.node.home) == before, "{name}, {command}: something was touched");
        }
    }
    // A length that nothing of follows, and one that is wrong by a byte.
    for claimed in [(1 << 33) - 1, 1] {
        let (exit, code, message) = refusal(&place.asked("restore", &place.forged(|_| Ok(()), Some(claimed))));
        assert_eq!((exit, code.as_str()), (1, "backup.damaged"), "{claimed}: {message}");
        assert!(content(&place.node.home) == before, "{claimed}: something was touched");
    }
    // The control: made in the same way and not changed, it is verified and restored.
    let forged = place.forged(|_| Ok(()), None);
    for command in ["verify", "restore"] {
        assert_eq!(place.asked(command, &forged).json().unwrap()["verified"], true, "{command}");
    }
}

/// More than the disk, or a limit of this process, has room for: named as that, and nothing is left of it.
#[test]
fn a_database_that_finds_no_room_is_no_damage_and_leaves_nothing() {
    let place = Place::new(1);
    let before = content(&place.node.home);
    let large = sql("INSERT INTO meta VALUES ('large', zeroblob(8000000))");
    let forged = place.forged(large, None);
    let openred = binaries().unwrap().join("openred").display().to_string();
    let home = place.node.home.display().to_string();
    // Blocks of 512 bytes; the signal is ignored as a service manager would have it.
    let limited = "trap '' XFSZ; ulimit -f 4096; exec \"$0\" \"$@\"";
    let command =
        ["--json", "--home", &home, "backup", "restore", &forged, "--force", "--identity-file", &place.identity];
    let answer = run(Path::new("sh"), &[&["-c", limited, &openred], &command[..]].concat()).unwrap();
    let (exit, code, message) = refusal(&answer);
    assert_eq!((exit, code.as_str()), (1, "local"), "{message}");
    assert!(message.contains("too large"), "{message}");
    assert!(content(&place.node.home) == before);
    // The control: with room for it it is restored.
    place.asked("restore", &forged).ok().unwrap();
}
