//! What the admin's commands print, as golden files.

use openred_directory::admin::{
    BanLine, BanList, History, Imported, InviteList, InviteView, NodeLine, NodeList, Status,
};
use openred_directory::api::system::{Condition, Health};
use openred_directory::cli::render;
use openred_directory::config::Config;
use openred_directory::store::decision::Entry;
use openred_directory::store::sqlite::migrate::Migration;
use openred_directory::store::{Counts, Stats};
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
    let condition = |code: &str, severity: &str, detail: &str, depends_on: &[&str], since, help: &str| Condition {
        code: code.into(),
        ok: severity == "ok",
        severity: severity.into(),
        detail: detail.into(),
        depends_on: depends_on.iter().map(|code| (*code).into()).collect(),
        since,
        help: help.into(),
    };
    let conditions = vec![
        condition("store.writable", "error", "", &["store.present"], 1_799_999_700_000, "free disk space"),
        condition("upstream.current", "warning", "3 entries are missing", &[], 1_799_999_990_000, "wait"),
        condition("serving", "ok", "", &[], 1_799_990_000_000, ""),
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
            mirror: None,
        },
        counts: counts(),
        waiting: 5,
        streams: 2,
        connections: 4,
        answers: [100, 7, 1],
        replicas: None,
    }
}

fn counts() -> Counts {
    Counts { nodes: 3, fresh: 2, quarantined: 1, evidence: 1, bans: 1, bytes: 40_960 }
}

fn stats() -> Stats {
    Stats {
        counts: counts(),
        listed: 2,
        new_today: 1,
        tombstones: 4,
        successions: 0,
        admitted: 2,
        invites_open: 1,
        changes: 9,
        sectors: vec![("lab".into(), 2), (String::new(), 1)],
        methods: vec![("alpha".into(), 3), ("beta".into(), 2)],
    }
}

fn invite(state: &str, used: u32) -> InviteView {
    let (name, note) = ("00c0ffee00c0ffee".into(), if used == 0 { "" } else { "the lab" }.into());
    InviteView { name, state: state.into(), uses: 2, used, ends_in_seconds: 600_000, note }
}

fn history() -> History {
    let entry = |number, action: &str, target: String, remark: &str| Entry {
        number,
        at: 1_800_000_000_000 - number * 1000,
        uid: 0,
        action: action.into(),
        target,
        remark: remark.into(),
    };
    let node = Node::new(1).id().to_string();
    let entries = vec![entry(8, "approve", node, ""), entry(7, "ban", "192.0.2.0/24".into(), "flood")];
    History { entries, next: Some(7) }
}

fn migration(dry_run: bool) -> Migration {
    let snapshot = (!dry_run).then(|| "/var/lib/directory.sqlite.schema-4".into());
    Migration { found: 4, known: 5, steps: vec!["this", "that"], snapshot, dry_run }
}

/// What commands about decisions print.
fn decisions() -> Vec<(&'static str, String, &'static str)> {
    let bans = BanList {
        bans: vec![
            BanLine { who: "192.0.2.0/24".into(), for_seconds: 60, reason: "flood".into() },
            BanLine { who: Node::new(3).id().to_string(), for_seconds: 90_000, reason: String::new() },
        ],
    };
    let invites = InviteList { invites: vec![invite("open", 0), invite("spent", 2)] };
    let imported =
        Imported { taken: 5, known: 2, ended: 1, refused: vec![(7, "card: signature does not verify".into())] };
    vec![
        ("bans.txt", render::bans(&bans, false), include_str!("golden/bans.txt")),
        ("bans.json", render::bans(&bans, true), include_str!("golden/bans.json")),
        ("invited.txt", render::invited("invite-abc", &invite("open", 0), false), include_str!("golden/invited.txt")),
        ("invited.json", render::invited("invite-abc", &invite("open", 0), true), include_str!("golden/invited.json")),
        ("invites.txt", render::invites(&invites, false), include_str!("golden/invites.txt")),
        ("invites.json", render::invites(&invites, true), include_str!("golden/invites.json")),
        ("history.txt", render::history(&history(), false), include_str!("golden/history.txt")),
        ("history.json", render::history(&history(), true), include_str!("golden/history.json")),
        ("stats.txt", render::stats(&stats(), false), include_str!("golden/stats.txt")),
        ("stats.json", render::stats(&stats(), true), include_str!("golden/stats.json")),
        ("imported.txt", render::imported(&imported, false), include_str!("golden/imported.txt")),
        ("imported.json", render::imported(&imported, true), include_str!("golden/imported.json")),
        ("migrated.txt", render::migrated(&migration(false), false), include_str!("golden/migrated.txt")),
        ("dry-run.txt", render::migrated(&migration(true), false), include_str!("golden/dry-run.txt")),
        ("dry-run.json", render::migrated(&migration(true), true), include_str!("golden/dry-run.json")),
    ]
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
    let outputs = [
        ("status.txt", render::status(&status(), false), include_str!("golden/status.txt")),
        ("status.json", render::status(&status(), true), include_str!("golden/status.json")),
        ("nodes.txt", render::nodes(&list(), false), include_str!("golden/nodes.txt")),
        ("nodes.json", render::nodes(&list(), true), include_str!("golden/nodes.json")),
        ("node.txt", render::node(&line(1, "fresh"), false), include_str!("golden/node.txt")),
        ("banned.txt", render::node(&banned, false), include_str!("golden/banned.txt")),
        ("done.json", render::done("did:key:z6Mk", "banned", true), include_str!("golden/done.json")),
        ("settings.txt", render::settings(&settings, true, false), include_str!("golden/settings.txt")),
    ];
    for (name, shown, golden) in outputs.into_iter().chain(decisions()) {
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

/// What a process says that was started before an upgrade, and is asked by the new program.
#[test]
fn a_condition_of_an_older_process_is_shown_as_far_as_it_goes() {
    let old = serde_json::json!({ "code": "serving", "ok": false, "help": "wait for the next start" });
    let mut status = status();
    status.health.conditions = vec![serde_json::from_value(old).unwrap()];
    let shown = render::status(&status, false);
    assert!(shown.contains("          serving: wait for the next start\n"), "{shown}");
}
