//! Unfit lists of system calls are refused at build time, and what is refused is named. The shipped lists are the accepts.

#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "../build/lists.rs"]
mod lists;

use lists::{When, joined, parse, programs};

const FIT: &str = r#"{"role": "r", "purpose": "a test", "allow": [
    {"call": "read", "when": "service", "reason": "Reads what comes in."}]}"#;

/// The list with one text replaced, and why it is refused.
fn refusal(from: &str, to: &str) -> String {
    assert!(FIT.contains(from));
    parse(&FIT.replace(from, to)).and_then(|policy| programs(&policy).map(drop)).unwrap_err()
}

#[test]
fn shipped_lists_and_the_smallest_one_are_fit() {
    let shipped = [
        ("front", include_str!("../seccomp/front.json")),
        ("vault", include_str!("../seccomp/vault.json")),
        ("unseal", include_str!("../seccomp/unseal.json")),
        ("noded", include_str!("../seccomp/noded.json")),
        ("directory", include_str!("../seccomp/directory.json")),
        ("module", include_str!("../seccomp/module.json")),
    ];
    for (role, text) in shipped {
        let policy = parse(text).unwrap();
        assert_eq!(policy.role, role);
        // The allow-list, and one for each number with which it answers.
        let answers: std::collections::BTreeSet<u32> = policy.answer.iter().map(|answer| answer.errno).collect();
        assert_eq!(programs(&policy).unwrap().len(), 1 + answers.len(), "{role}");
    }
    assert!(parse(FIT).unwrap().allow[0].when == When::Service);
}

#[test]
fn a_list_that_adds_to_another_repeats_nothing_of_it() {
    let base = || parse(include_str!("../seccomp/directory.json")).unwrap();
    let more = || parse(include_str!("../seccomp/directory-database.json")).unwrap();
    assert_eq!(more().extends.as_deref(), Some("directory"));
    let whole = joined(base(), more()).unwrap();
    assert_eq!((whole.role.as_str(), whole.allow.len()), ("directory-database", base().allow.len() + 2));
    let Err(twice) = joined(base(), base()) else { panic!("every rule stood twice") };
    assert!(twice.contains("stands in the list that this one adds to"), "{twice}");
}

/// The names that a list allows in service, or at the end.
fn names(text: &str, when: When) -> Vec<String> {
    let mut names: Vec<String> =
        parse(text).unwrap().allow.into_iter().filter(|rule| rule.when == when).map(|rule| rule.call).collect();
    names.sort_unstable();
    names
}

/// The bars of the design: what the vault may do, call by call; how much the front may do.
#[test]
fn iso_the_lists_keep_to_the_design() {
    let vault = include_str!("../seccomp/vault.json");
    assert_eq!(names(vault, When::Service), ["fdatasync", "getrandom", "ppoll", "pwrite64", "read", "write"]);
    let end = ["exit_group", "getpid", "gettid", "rt_sigprocmask", "rt_sigreturn", "tgkill"];
    assert_eq!(names(vault, When::End), end);
    let front = include_str!("../seccomp/front.json");
    let (service, end) = (names(front, When::Service).len(), names(front, When::End).len());
    assert!(service <= 24 && service + end <= 32, "{service} and {end}");
}

#[test]
fn a_rule_without_a_reason_is_refused() {
    assert_eq!(refusal("Reads what comes in.", ""), "the rule for `read` has no reason");
    assert_eq!(refusal("Reads what comes in.", "   needed   "), "the rule for `read` has no reason");
    assert!(refusal(r#", "reason": "Reads what comes in.""#, "").contains("missing field `reason`"));
    let answer = r#"}], "answer": [{"call": "clone3", "errno": 38, "reason": "no"}]}"#;
    assert_eq!(refusal("}]}", answer), "the rule for `clone3` has no reason");
}

#[test]
fn malformed_rules_are_refused() {
    assert!(refusal(r#""call": "read""#, r#""call": "raed""#).contains("raed"));
    assert!(refusal("service", "always").contains("unknown variant"));
    assert!(refusal(r#""role""#, r#""default": "allow", "role""#).contains("unknown field"));
    let twice = r#"}, {"call": "read", "when": "end", "reason": "Reads what comes in.", "args": [{"index": 0, "any_of": [1]}]}]}"#;
    assert_eq!(refusal("}]}", twice), "`read` stands twice");
    let empty = r#", "args": [{"index": 0}]}]}"#;
    assert!(refusal("}]}", empty).contains("exactly one of"));
    let seventh = r#", "args": [{"index": 6, "any_of": [1]}]}]}"#;
    assert!(!refusal("}]}", seventh).is_empty());
    let beyond = r#", "args": [{"index": 1, "masked": [15, 16]}]}]}"#;
    assert!(refusal("}]}", beyond).contains("exactly one of"), "a value that no argument can have");
    let both = r#", "args": [{"index": 1, "any_of": [1]}], "either": [[{"index": 1, "any_of": [1]}]]}]}"#;
    assert!(refusal("}]}", both).contains("args or either"));
    let hollow = r#", "either": [[{"index": 1, "any_of": [1]}], []]}]}"#;
    assert!(refusal("}]}", hollow).contains("no empty list"), "an empty list would allow everything");
}
