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
