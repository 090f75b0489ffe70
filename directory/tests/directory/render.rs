//! What the admin's commands print, as golden files.

use openred_directory::admin::{NodeLine, NodeList, Status};
use openred_directory::api::system::{Condition, Health};
use openred_directory::cli::render;
use openred_directory::config::Config;
use openred_directory::store::Counts;
use openred_proto::config::Source;

use crate::fixture::Node;

fn line(seed: u8, state: &str) -> NodeLine {
    NodeLine {
        node: Node::new(seed).id().to_string(),
        state: state.into(),
        listed: true,
        sector: "lab".into(),
        sequence: 1_800_000_000_000,
        seen_seconds_ago: Some(200),
        known_for_seconds: Some(200_000),
        ends_in_seconds: Some(80_000),
        evidence: 1,
        ban_reason: None,
    }
}

fn status() -> Status {
    let conditions = vec![
        Condition { code: "store.writable".into(), ok: false, help: "free disk space".into() },
        Condition { code: "serving".into(), ok: true, help: String::new() },
    ];
    Status {
        pid: 42,
        address: format!("{}@https://directory.example", Node::new(1).id()),
        uptime_seconds: 7300,
        health: Health {
            status: "degraded".into(),
            directory: Node::new(1).id().to_string(),
            version: "1".into(),
            now: 1_800_000_000,
            conditions,
        },
        counts: Counts { nodes: 3, fresh: 2, evidence: 1, bans: 1, bytes: 40_960 },
        waiting: 5,
        streams: 2,
        connections: 4,
        answers: [100, 7, 1],
    }
}

fn list() -> NodeList {
    let banned = NodeLine { seen_seconds_ago: None, ..line(3, "banned") };
    let nodes = vec![line(1, "fresh"), line(2, "away"), banned];
    NodeList { next: Some(Node::new(3).id().to_string()), nodes }
}

#[test]
fn golden_output() {
    let banned = NodeLine { ban_reason: Some("spam".into()), ..line(3, "banned") };
    let source = Source::new("directory.toml", "[log]\nlevel = \"debug\"\n");
    let config: Config = source.parse().unwrap();
    let settings = source.settings(&config).unwrap();
    for (name, shown, golden) in [
        ("status.txt", render::status(&status(), false), include_str!("golden/status.txt")),
        ("status.json", render::status(&status(), true), include_str!("golden/status.json")),
        ("nodes.txt", render::nodes(&list(), false), include_str!("golden/nodes.txt")),
        ("nodes.json", render::nodes(&list(), true), include_str!("golden/nodes.json")),
        ("node.txt", render::node(&line(1, "fresh"), false), include_str!("golden/node.txt")),
        ("banned.txt", render::node(&banned, false), include_str!("golden/banned.txt")),
        ("done.json", render::done("did:key:z6Mk", "banned", true), include_str!("golden/done.json")),
        ("settings.txt", render::settings(&settings, true, false), include_str!("golden/settings.txt")),
    ] {
        if let Some(folder) = std::env::var_os("OPENRED_WRITE_GOLDEN") {
            std::fs::write(std::path::Path::new(&folder).join(name), &shown).unwrap();
        } else {
            assert_eq!(shown, golden, "{name}");
        }
        if name.ends_with(".txt") {
            assert!(shown.lines().all(|line| line.chars().count() <= 80 || line.contains("did:key")), "{shown}");
        }
    }
    assert_eq!(render::nodes(&NodeList { nodes: Vec::new(), next: None }, false), "no nodes\n");
}
