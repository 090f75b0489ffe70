//! `openred-bench --smoke` on the real programs: each group runs to its end and writes every figure that it owes.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use openred_tests::harness::is_root;
use serde_json::Value;

fn bench(words: &[&str]) -> Output {
    let program = Path::new(env!("CARGO_BIN_EXE_openred-bench"));
    let folder = program.parent().unwrap();
    Command::new(program).env("OPENRED_BIN_DIR", folder).arg("--smoke").args(words).output().unwrap()
}

/// What the program says that it can measure.
fn groups() -> Vec<String> {
    let said = bench(&[]);
    let said = String::from_utf8_lossy(&said.stderr).into_owned();
    let list = said.split_whitespace().find(|word| word.contains('|')).unwrap();
    list.split('|').map(str::to_owned).collect()
}

#[test]
fn every_group_measures_what_it_owes() {
    let out = tempfile::tempdir().unwrap();
    let groups = groups();
    let mut words = vec!["--out", out.path().to_str().unwrap()];
    words.extend(groups.iter().map(String::as_str));
    let ran = bench(&words);
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    let owed: [(&str, &[&str]); 11] = [
        (
            "handshake",
            &["connect_first_reply", "handshake_rate_8", "connect_first_reply_8", "connect_first_reply_flooded"],
        ),
        (
            "session",
            if is_root() {
                &["request_256", "request_rate_64", "bulk", "pss_session_answered", "pss_connection"]
            } else {
                &["request_256", "request_rate_64", "bulk"]
            },
        ),
        ("file", &["file_share", "file"]),
        ("file-large", &["file_large", "file_large_memory"]),
        (
            "vault",
            &[
                "fdatasync",
                "fdatasync_after",
                "unix_ping_pong",
                "worker_alone",
                "hop_cpu_1",
                "hop_cpu_32",
                "sign_http",
                "sign_http_rate_64",
                "worker_beside_flood",
                "flood_rate",
                "worker_beside_dear_flood",
                "dear_flood_rate",
                "ssh_agent_sign",
                "ssh_agent_rate",
            ],
        ),
        ("cage", &["call_plain", "call_plain_vault", "call_checked_front", "set_up_front", "set_up_noded"]),
        (
            "modules",
            if is_root() {
                &[
                    "spawn_to_ready",
                    "private_idle",
                    "private_idle_own",
                    "stream_1k",
                    "unary_1k",
                    "hook",
                    "hooks_5",
                    "hook_rate_32",
                ]
            } else {
                &["spawn_to_ready", "stream_1k", "unary_1k", "hook", "hooks_5", "hook_rate_32"]
            },
        ),
        (
            "directory",
            &[
                "cards_made",
                "load",
                "announce_new",
                "announce_again",
                "usual_announce_again",
                "announce_again_cpu_generator",
                "lookup",
                "lookup_cpu_generator",
                "lookup_p99_ratio",
                "tls_announce_again",
                "tls_lookup",
                "offer_routed",
                "streams",
                "start_cold",
                "start_killed",
                "admin_saturated",
                "admin_overload",
                "overload_factor",
                "postgres_announce_new",
                "postgres_lookup",
                "postgres_offer_routed",
            ],
        ),
        (
            "replicas",
            &[
                "announce_alone",
                "announce_three",
                "announce_three_cpu_generator",
                "lookup_alone",
                "lookup_three",
                "lookup_three_cpu_directories",
                "offer_alone",
                "offer_beside",
                "offer_across",
                "offer_across_cpu_directories",
                "card_seen",
                "roll_offers",
                "roll_offer",
                "roll_offer_longest",
                "roll_gap",
                "roll_restart",
            ],
        ),
        ("modules-swap", &["call_calm", "call_swapped", "longest_call", "rate_swapped", "swap"]),
        (
            "memory",
            if is_root() {
                &["up_to_ready", "pss_idle_node", "pss_supervisor", "pss_front", "pss_vault", "pss_noded"]
            } else {
                &["up_to_ready"]
            },
        ),
    ];
    let mut measured: Vec<&str> = owed.iter().map(|(group, _)| *group).collect();
    measured.sort_unstable();
    let mut groups: Vec<&str> = groups.iter().map(String::as_str).collect();
    groups.sort_unstable();
    assert_eq!(measured, groups, "each group owes something");
    for (group, names) in owed {
        let text = fs::read_to_string(out.path().join(format!("{group}.json"))).unwrap();
        let figures: BTreeMap<String, Value> = serde_json::from_str(&text).unwrap();
        for name in names {
            let figure = &figures[*name];
            assert!(figure["median"].as_f64().unwrap() > 0.0 && figure["n"].as_u64().unwrap() > 0, "{name}: {figure}");
            assert!(figure["p99"].is_number() && figure["unit"].is_string(), "{name}: {figure}");
        }
        // These say nothing of the machine: they are nought on any.
        for nought in ["failed_calls", "roll_lost"] {
            assert!(figures.get(nought).is_none_or(|failed| failed["median"] == 0.0), "{figures:?}");
        }
    }
}
