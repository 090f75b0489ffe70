//! The operator's commands against the real program: approvals, bans of prefixes, invites, the history of changes, export and
//! import, migration, and all of it while the API is flooded.

use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use nix::unistd::geteuid;
use openred_directory::store::sqlite::SqliteStore;
use openred_directory::store::{CardReader as _, CardStore as _, PreviousRun};
use serde_json::{Value, json};

use crate::fixture::{Node, base64_text};
use crate::process::{Place, Serving, now, places};

/// Registers with an invite.
fn register_with(serving: &Serving, node: &Node, invite: &str) -> (u16, Value) {
    let card = base64_text(&node.sign_card(&node.card(now())));
    let body = json!({ "card": card, "invite": invite }).to_string();
    serving.call(node, "POST", "/api/v3/nodes/register", body.as_bytes())
}

/// What the history says, the newest first.
fn actions(place: &Place) -> Vec<(String, String)> {
    let entries = place.json(&["history"])["entries"].as_array().unwrap().clone();
    let text = |entry: &Value, name: &str| entry[name].as_str().unwrap().to_owned();
    entries.iter().map(|entry| (text(entry, "action"), text(entry, "target"))).collect()
}

#[test]
fn nodes_come_by_invite_and_by_approval() {
    for place in places() {
        place.configure("listen = \"127.0.0.1:0\"\n[admission]\nmode = \"approval\"\n");
        let serving = place.serve();
        let (waiting, invited) = (Node::new(1), Node::new(2));
        let id = waiting.id().to_string();
        assert_eq!(serving.register(&waiting).1["outcome"], "quarantined");
        let made = place.json(&["invite", "create", "--uses", "1", "--days", "2", "--note", "the lab"]);
        let text = made["invite"].as_str().unwrap();
        assert_eq!(register_with(&serving, &invited, text).1["outcome"], "stored");
        let listed = |state: &str| place.json(&["nodes", "list", "--state", state])["nodes"].as_array().unwrap().len();
        assert_eq!((listed("quarantined"), listed("fresh"), listed("away")), (1, 2, 0));
        assert_eq!(place.json(&["nodes", "show", &id])["state"], "quarantined");
        assert_eq!(place.text(&["nodes", "approve", &id]), format!("approved {id}\n"));
        assert_eq!(place.failure(&["nodes", "approve", &id]).0, 6);
        assert_eq!(serving.get(&format!("/api/v3/nodes/{id}")).0, 200);
        let name = made["name"].as_str().unwrap();
        let line = place.json(&["invite", "list"])["invites"][0].clone();
        assert_eq!((&line["name"], &line["state"], &line["note"]), (&name.into(), &"spent".into(), &"the lab".into()));
        assert_eq!(place.text(&["invite", "revoke", &name[..4]]), format!("revoked {name}\n"));
        assert_eq!(
            (place.failure(&["invite", "revoke", name]).0, place.failure(&["invite", "revoke", "zz"]).0),
            (6, 4)
        );
        assert_eq!(place.failure(&["invite", "create", "--uses", "0"]).0, 2);
        assert_eq!(place.text(&["nodes", "remove", &id]), format!("removed {id}\n"));
        assert_eq!(place.failure(&["nodes", "remove", &id]).0, 4);
        let stats = place.json(&["stats"]);
        assert_eq!(
            (&stats["counts"]["nodes"], &stats["tombstones"], &stats["sectors"][0][0]),
            (&1.into(), &1.into(), &"lab".into())
        );
        let expected = [("remove", &*id), ("revoke", name), ("approve", &*id), ("invite", name)];
        let expected: Vec<_> =
            expected.iter().map(|(action, target)| ((*action).to_owned(), (*target).to_owned())).collect();
        assert_eq!(actions(&place), expected);
        let page = place.json(&["history", "--limit", "3"]);
        assert_eq!(
            (&page["next"], &page["entries"][0]["uid"]),
            (&2.into(), &json!(place.user.unwrap_or(geteuid().as_raw())))
        );
        let state = place.home().join("state");
        let kept = std::fs::read_dir(state).unwrap().map(|file| std::fs::read(file.unwrap().path()).unwrap());
        let is_in = |bytes: Vec<u8>| bytes.windows(text.len()).any(|part| part == text.as_bytes());
        assert!(!kept.into_iter().any(is_in), "an invite's text is kept nowhere");
    }
}

#[test]
fn prefixes_are_banned_and_the_history_cannot_be_changed() {
    for place in places() {
        let serving = place.serve();
        assert_eq!(place.text(&["nodes", "ban", "127.0.0.0/8", "--reason", "flood"]), "banned 127.0.0.0/8\n");
        assert_eq!(serving.get("/api/v3/health").1["code"], "address.banned");
        assert_eq!(place.failure(&["nodes", "ban", "127.1.2.3/8"]).0, 6, "the same prefix");
        for (wrong, code) in [("bob", 2), ("0.0.0.0/0", 2), ("::/1", 2), ("192.0.2.0/33", 2), ("did:key:x", 2)] {
            assert_eq!(place.failure(&["nodes", "ban", wrong]).0, code, "{wrong}");
        }
        assert_eq!(serving.end(), Some(0));
        let serving = place.serve();
        assert_eq!(serving.get("/api/v3/health").0, 403, "a ban outlives the process");
        let bans = place.json(&["nodes", "bans"]);
        assert_eq!((&bans["bans"][0]["who"], &bans["bans"][0]["reason"]), (&"127.0.0.0/8".into(), &"flood".into()));
        assert_eq!(place.text(&["nodes", "unban", "127.0.0.0/8"]), "unbanned 127.0.0.0/8\n");
        assert_eq!(serving.get("/api/v3/health").0, 200);
        let single = place.text(&["nodes", "ban", "2001:db8::1"]);
        assert_eq!(single, "banned 2001:db8::1/128\n");
        assert_eq!(actions(&place).len(), 3);
        assert_eq!(serving.end(), Some(0));

        let database = rusqlite::Connection::open(place.home().join("state/directory.sqlite")).unwrap();
        for forbidden in ["DELETE FROM history", "UPDATE history SET uid = 1"] {
            let refused = database.execute(forbidden, []).unwrap_err().to_string();
            assert!(refused.contains("only added to"), "{refused}");
        }
    }
}

#[test]
fn what_one_directory_exports_another_imports_and_checks() {
    for place in places() {
        let serving = place.serve();
        let nodes: Vec<Node> = (1..100).map(Node::new).collect();
        nodes.iter().for_each(|node| assert_eq!(serving.register(node).0, 200));
        let banned = Node::new(200).id().to_string();
        place.text(&["nodes", "ban", &banned, "--reason", "spam"]);
        place.text(&["nodes", "ban", "192.0.2.0/24"]);
        place.text(&["nodes", "approve", &Node::new(201).id().to_string()]);
        place.text(&["invite", "create"]);
        let file = place.home().join("export.jsonl");
        let path = file.to_str().unwrap();
        assert_eq!(place.text(&["export", path]), format!("103 records in {path}\n"));
        assert_eq!(place.text(&["export"]), std::fs::read_to_string(&file).unwrap(), "the same on the standard output");
        assert!(place.failure(&["export", path]).1.contains("export never overwrites"));
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(place.json(&["import", path])["known"], 103, "here there is nothing new");
        assert_eq!(serving.end(), Some(0));

        let other = Place::of(place.user);
        let serving = other.serve();
        let copied = other.home().join("import.jsonl");
        let lines: Vec<String> = std::fs::read_to_string(&file).unwrap().lines().map(str::to_owned).collect();
        let mut wrong = lines.clone();
        // Two cards whose bytes were exchanged, one changed: believed is none of them.
        let (last, before) = (lines.len() - 1, lines.len() - 2);
        let card = |line: &str| serde_json::from_str::<Value>(line).unwrap()["card"].clone();
        let with = |line: &str, card: Value| {
            let mut value: Value = serde_json::from_str(line).unwrap();
            value["card"] = card;
            value.to_string()
        };
        wrong[last] = with(&lines[last], card(&lines[before]));
        wrong[before] = with(&lines[before], card(&lines[before]).as_str().unwrap().replace('A', "B").into());
        std::fs::write(&copied, wrong.join("\n") + "\n").unwrap();
        let output = other.run(&["import", copied.to_str().unwrap()]);
        let said = String::from_utf8(output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(9), "{said}");
        assert!(said.starts_with("101 taken, 0 known before, 0 ended, 2 refused\n"), "{said}");
        assert!(said.contains(&format!("line {}: ", lines.len())), "{said}");
        std::fs::write(&copied, lines.join("\n") + "\n").unwrap();
        assert!(other.text(&["import", copied.to_str().unwrap()]).starts_with("2 taken, 101 known before"));
        assert_eq!(serving.get(&format!("/api/v3/nodes/{}", nodes[0].id())).0, 200);
        assert_eq!(serving.register(&Node::new(200)).1["code"], "node.banned", "at once");
        assert_eq!(actions(&other)[0], ("import".into(), "103 records".into()));

        for (text, why) in [("", "taken"), ("{}\n", ":1: not written by"), ("not json\n", ":1: not written by")] {
            std::fs::write(&copied, text).unwrap();
            let output = other.run(&["import", copied.to_str().unwrap()]);
            let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
            assert!(said.contains(why), "{text:?} {said}");
        }
        std::fs::write(&copied, format!("{}\n{{\"kind\":\"ban\"}}\n", lines[0])).unwrap();
        assert!(other.failure(&["import", copied.to_str().unwrap()]).1.contains(":2: not a record"));
        std::fs::write(&copied, format!("{}\n{}\n", lines[0], "x".repeat(10_000))).unwrap();
        assert!(other.failure(&["import", copied.to_str().unwrap()]).1.contains(":2: longer than any record"));
    }
}

/// A database as the first schema left it.
fn old_database(path: &Path) {
    let old = rusqlite::Connection::open(path).unwrap();
    old.execute_batch(include_str!("../../src/store/sqlite/schema-1.sql")).unwrap();
}

#[test]
fn an_old_database_is_tried_then_migrated_with_a_snapshot() {
    let place = Place::of(None);
    place.text(&["init"]);
    let state = place.home().join("state");
    let missing = place.failure(&["db", "migrate"]);
    assert_eq!((missing.0, missing.1.contains("no database yet")), (4, true));
    std::fs::create_dir(&state).unwrap();
    std::fs::set_permissions(&state, std::fs::Permissions::from_mode(0o700)).unwrap();
    let database = state.join("directory.sqlite");
    old_database(&database);
    let version = |path: &Path| -> i64 {
        let open = rusqlite::Connection::open(path).unwrap();
        open.pragma_query_value(None, "user_version", |row| row.get(0)).unwrap()
    };
    let tried = place.json(&["db", "migrate", "--dry-run"]);
    assert_eq!((&tried["found"], &tried["dry_run"], &tried["snapshot"]), (&1.into(), &true.into(), &Value::Null));
    assert_eq!(version(&database), 1, "nothing was changed");
    let names = || {
        let files = std::fs::read_dir(&state).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = files.filter(|name| !name.contains("-wal") && !name.contains("-shm")).collect();
        names.sort();
        names
    };
    assert_eq!(names(), ["directory.sqlite"]);
    let done = place.json(&["db", "migrate"]);
    assert_eq!(done["steps"], tried["steps"]);
    assert_eq!(names(), ["directory.sqlite", "directory.sqlite.schema-1"]);
    assert_eq!(version(&state.join("directory.sqlite.schema-1")), 1);
    assert_eq!(done["known"], version(&database));
    assert!(place.text(&["db", "migrate"]).contains("nothing to do"));
    let serving = place.serve();
    assert_eq!(serving.get("/api/v3/health").0, 200);
    assert_eq!(place.failure(&["db", "migrate"]).0, 6, "not while it serves");
    assert_eq!(serving.end(), Some(0));

    let newer = rusqlite::Connection::open(&database).unwrap();
    newer.pragma_update(None, "user_version", 99).unwrap();
    drop(newer);
    for command in [&["serve"][..], &["db", "migrate"], &["db", "migrate", "--dry-run"]] {
        let (code, said) = place.failure(command);
        assert!(code == 1 && said.contains("schema 99 is newer than"), "{command:?} {code} {said}");
    }
}

#[test]
fn as_many_bans_are_imported_as_can_be_set() {
    let place = Place::of(None);
    let serving = place.serve();
    let file = place.home().join("bans.jsonl");
    let line = |number: u32| {
        let prefix = std::net::Ipv4Addr::from_bits((10 << 24) + number);
        format!("{{\"kind\":\"ban-prefix\",\"prefix\":\"{prefix}/32\",\"at\":1,\"reason\":\"\"}}\n")
    };
    let header = place.text(&["export"]);
    std::fs::write(&file, header + &(0..10_002).map(line).collect::<String>()).unwrap();
    let (code, said) = place.outcome(&["import", file.to_str().unwrap(), "--json"]);
    let said: Value = serde_json::from_str(&said).unwrap();
    assert_eq!((code, &said["taken"], said["refused"].as_array().unwrap().len()), (9, &10_000.into(), 2), "{said}");
    assert!(said["refused"][1].to_string().contains("as many are banned as can be"), "{said}");
    let (_, again) = place.outcome(&["import", file.to_str().unwrap(), "--json"]);
    let again: Value = serde_json::from_str(&again).unwrap();
    assert_eq!((&again["known"], &again["taken"]), (&10_000.into(), &0.into()), "what is here takes no room: {again}");
    assert_eq!(serving.end(), Some(0));
}

#[test]
fn the_start_migrates_by_itself_and_loses_nothing() {
    let place = Place::of(None);
    place.text(&["init"]);
    let state = place.home().join("state");
    std::fs::create_dir(&state).unwrap();
    std::fs::set_permissions(&state, std::fs::Permissions::from_mode(0o700)).unwrap();
    old_database(&state.join("directory.sqlite"));
    let serving = place.serve();
    assert_eq!(serving.get("/api/v3/health").0, 200);
    assert!(state.join("directory.sqlite.schema-1").exists());
    assert_eq!(serving.end(), Some(0));
    let mut store = SqliteStore::open(&state.join("directory.sqlite"), 64).unwrap();
    assert!(matches!(store.begin_run(openred_proto::id::UnixMillis(0)).unwrap(), PreviousRun::Ended { .. }));
    assert_eq!(store.invites().unwrap(), []);
}

#[test]
fn the_operator_is_answered_while_the_api_is_flooded() {
    let place = Place::of(None);
    // Every request is let through, so that store and runtime have all that can be sent.
    place.configure("listen = \"127.0.0.1:0\"\n[limits]\nrequests_per_second = 1000000\nrequests_burst = 1000000\n");
    let serving = Arc::new(place.serve());
    let (over, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let flood = |seed: u8| {
        let (serving, over, sent) = (Arc::clone(&serving), Arc::clone(&over), Arc::clone(&sent));
        std::thread::spawn(move || {
            let node = Node::new(seed);
            while !over.load(Ordering::Relaxed) {
                serving.register(&node);
                sent.fetch_add(1, Ordering::Relaxed);
            }
        })
    };
    let floods: Vec<_> = (1..9).map(flood).collect();
    // Connections that say nothing, beside them.
    let silent: Vec<_> = (0..200).map(|_| TcpStream::connect(serving.socket).unwrap()).collect();
    for number in 0..20 {
        let id = Node::new(100 + number).id().to_string();
        let before = sent.load(Ordering::Relaxed);
        assert_eq!(place.text(&["nodes", "ban", &id]), format!("banned {id}\n"));
        place.text(&["status"]);
        place.text(&["nodes", "list"]);
        assert_eq!(place.text(&["nodes", "unban", &id]), format!("unbanned {id}\n"));
        while sent.load(Ordering::Relaxed) == before {
            std::thread::yield_now();
        }
    }
    over.store(true, Ordering::Relaxed);
    floods.into_iter().for_each(|flood| flood.join().unwrap());
    drop(silent);
    assert_eq!(place.json(&["stats"])["changes"], 40);
}
