//! What an operator lives through: a database that is damaged, and the way back from an export; a home moved to another machine.

use std::io::{Seek as _, SeekFrom, Write as _};

use serde_json::Value;

use crate::fixture::Node;
use crate::process::{Place, places};

/// Overwrites the second half of a database, where its rows are.
fn damage(path: &std::path::Path) {
    // What still stands in the write-ahead log goes into the file first.
    let database = rusqlite::Connection::open(path).unwrap();
    database.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
    drop(database);
    let mut file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    let length = file.metadata().unwrap().len();
    assert!(length > 100 * 1024, "{length}");
    file.seek(SeekFrom::Start(length / 2)).unwrap();
    file.write_all(&vec![0xA5; usize::try_from(length / 2).unwrap()]).unwrap();
}

#[test]
fn a_damaged_database_is_named_and_an_export_brings_everything_back() {
    for place in places() {
        let serving = place.serve();
        let nodes: Vec<Node> = (1..100).map(Node::new).collect();
        nodes.iter().for_each(|node| assert_eq!(serving.register(node).0, 200));
        place.text(&["nodes", "ban", &Node::new(200).id().to_string()]);
        let file = place.home().join("backup.jsonl");
        place.text(&["export", file.to_str().unwrap()]);
        let sound: Value = place.json(&["db", "check"]);
        assert_eq!((&sound["ok"], &sound["schema"]), (&true.into(), &"openred.directory.database/1".into()));
        assert_eq!(serving.end(), Some(0));
        let state = place.home().join("state");
        damage(&state.join("directory.sqlite"));
        let checked = place.run(&["db", "check"]);
        let said = String::from_utf8([checked.stdout, checked.stderr].concat()).unwrap();
        assert_eq!(checked.status.code(), Some(3), "{said}");
        assert!(said.contains("directory import"), "the way out: {said}");

        // Whether it comes up or not: what it says is a refusal with a name, and never another node's card.
        let served = place.run_for_a_moment();
        for (status, body) in served.map(|serving| ask_all(&serving, &nodes)).unwrap_or_default() {
            assert!([200, 404, 503].contains(&status), "{status} {body}");
        }

        std::fs::rename(&state, place.home().join("damaged")).unwrap();
        let serving = place.serve();
        let back = place.json(&["import", file.to_str().unwrap()]);
        assert_eq!((&back["taken"], &back["refused"]), (&100.into(), &Value::Array(Vec::new())));
        for node in &nodes {
            assert_eq!(serving.get(&format!("/api/v3/nodes/{}", node.id())).0, 200);
        }
        assert_eq!(place.json(&["db", "check"])["ok"], true);
        assert_eq!(serving.end(), Some(0));
    }
}

fn ask_all(serving: &crate::process::Serving, nodes: &[Node]) -> Vec<(u16, Value)> {
    let asked = nodes.iter().map(|node| (node, serving.get(&format!("/api/v3/nodes/{}", node.id()))));
    asked
        .map(|(node, answer)| {
            assert!(answer.0 != 200 || answer.1["node"] == node.id().to_string());
            answer
        })
        .collect()
}

#[test]
fn a_database_that_is_taken_away_is_named_nothing_is_served_from_it_and_what_it_held_is_saved() {
    for (place, replaced) in places().into_iter().flat_map(|place| [(Place::of(place.user), false), (place, true)]) {
        let serving = place.serve();
        let (first, second) = (Node::new(1), Node::new(2));
        assert_eq!(serving.register(&first).0, 200);
        let state = place.home().join("state");
        let database = state.join("directory.sqlite");
        let away = place.home().join("away.sqlite");
        std::fs::rename(&database, &away).unwrap();
        if replaced {
            std::fs::copy(&away, &database).unwrap();
        }
        let refused = serving.register(&second);
        assert_eq!((refused.0, &refused.1["code"]), (503, &"directory.store-gone".into()), "{}", refused.1);
        let (status, problem) = serving.get(&format!("/api/v3/nodes/{}", first.id()));
        assert_eq!((status, &problem["code"]), (503, &"directory.store-gone".into()), "{problem}");
        assert_eq!(serving.get("/api/v3/log/head").0, 503, "it signs nothing that is about to be lost");
        let (status, health) = serving.get("/api/v3/health");
        let condition =
            health["conditions"].as_array().unwrap().iter().find(|one| one["code"] == "store.present").unwrap();
        assert_eq!((status, &condition["ok"]), (503, &false.into()), "{health}");
        let told = place.outcome(&["status"]).1;
        assert!(told.contains("store.present") && told.contains("directory export"), "{told}");
        assert_eq!(place.failure(&["nodes", "ban", &second.id().to_string()]).0, 1, "it would be forgotten");

        // Put back, it goes on as if nothing had been.
        std::fs::rename(&away, &database).unwrap();
        assert_eq!(serving.register(&second).0, 200);
        assert_eq!(serving.get(&format!("/api/v3/nodes/{}", first.id())).0, 200);

        // Gone for good, it gives what it holds to who starts anew.
        for file in ["directory.sqlite", "directory.sqlite-wal", "directory.sqlite-shm"] {
            std::fs::remove_file(state.join(file)).unwrap();
        }
        assert_eq!(serving.register(&Node::new(3)).0, 503);
        let file = place.home().join("saved.jsonl");
        place.text(&["export", file.to_str().unwrap()]);
        assert_eq!(serving.end(), Some(0));
        std::fs::rename(&state, place.home().join("gone")).unwrap();
        let serving = place.serve();
        assert_eq!(place.json(&["import", file.to_str().unwrap()])["taken"], 2);
        for node in [&first, &second] {
            assert_eq!(serving.get(&format!("/api/v3/nodes/{}", node.id())).0, 200);
        }
    }
}

#[test]
fn a_directory_moves_with_its_key_and_an_export() {
    let place = Place::of(None);
    let serving = place.serve();
    let id = serving.id;
    let node = Node::new(1);
    serving.register(&node);
    let file = place.home().join("backup.jsonl");
    place.text(&["export", file.to_str().unwrap()]);
    assert_eq!(serving.end(), Some(0));
    let other = Place::of(None);
    std::fs::copy(place.home().join("directory.key"), other.home().join("directory.key")).unwrap();
    let serving = other.serve();
    assert_eq!(serving.id, id, "it has its name");
    other.text(&["import", file.to_str().unwrap()]);
    assert_eq!(serving.get(&format!("/api/v3/nodes/{}", node.id())).0, 200);
}
