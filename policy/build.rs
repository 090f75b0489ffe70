//! Compiles `seccomp/*.json` to BPF. The build fails when a rule has no reason, names an unknown call, or stands twice.
//!
//! Our files say what is allowed and what is answered with an error; everything else ends the process. seccompiler knows
//! one action a filter, so a role becomes two programs: the allow-list, and one that answers (installed first).

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;
use std::{env, fs};

use seccompiler::{BpfProgram, TargetArch};
use serde::Deserialize;
use serde_json::{Value, json};

const ROLES: [&str; 5] = ["front", "vault", "unseal", "noded", "directory"];
/// A reason shorter than this says nothing.
const SHORTEST_REASON: usize = 12;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Policy {
    role: String,
    #[expect(dead_code, reason = "read by people")]
    purpose: String,
    allow: Vec<Rule>,
    #[serde(default)]
    answer: Vec<Answer>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Rule {
    call: String,
    reason: String,
    /// `service`: while it serves; `end`: only on the way out (exit, panic, abort).
    when: When,
    #[serde(default)]
    args: Vec<Argument>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Answer {
    call: String,
    reason: String,
    errno: u32,
    #[serde(default)]
    args: Vec<Argument>,
}

#[derive(Deserialize, PartialEq, Clone, Copy)]
#[serde(rename_all = "lowercase")]
enum When {
    Service,
    End,
}

/// One condition. `any_of`: the 32-bit argument is one of these; `without`: none of these bits is set; `exactly`: all 64 bits.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Argument {
    index: u8,
    any_of: Option<Vec<u32>>,
    without: Option<u32>,
    exactly: Option<u64>,
}

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=seccomp");
    let target = env::var("CARGO_CFG_TARGET_ARCH").unwrap_or_default();
    assert!(target == "x86_64", "the allow-lists name x86-64 system calls; add lists for {target} first");
    let mut source = String::from("// Made by build.rs from seccomp/*.json.\n");
    for role in ROLES {
        let path = format!("seccomp/{role}.json");
        let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
        let policy: Policy = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{path}: {error}"));
        assert!(policy.role == role, "{path}: the role is `{}`", policy.role);
        check_reasons(&path, &policy);
        write_role(&mut source, &path, &policy);
    }
    let out = env::var("OUT_DIR").expect("cargo sets OUT_DIR");
    fs::write(Path::new(&out).join("filters.rs"), source).expect("OUT_DIR is writable");
}

fn check_reasons(path: &str, policy: &Policy) {
    let reasons = policy.allow.iter().map(|rule| (&rule.call, &rule.reason));
    for (call, reason) in reasons.chain(policy.answer.iter().map(|rule| (&rule.call, &rule.reason))) {
        assert!(reason.trim().len() >= SHORTEST_REASON, "{path}: the rule for `{call}` has no reason");
    }
    let mut seen = BTreeSet::new();
    for rule in &policy.allow {
        let first = seen.insert(rule.call.clone());
        assert!(first || !rule.args.is_empty(), "{path}: `{}` stands twice", rule.call);
    }
}

/// The conditions as seccompiler's rules: one rule for each combination of `any_of` values.
fn rules(path: &str, call: &str, args: &[Argument]) -> Vec<Value> {
    let mut combinations: Vec<Vec<Value>> = vec![Vec::new()];
    for argument in args {
        let index = argument.index;
        let choices: Vec<Value> = match (&argument.any_of, argument.without, argument.exactly) {
            (Some(values), None, None) => {
                values.iter().map(|value| json!({"index": index, "type": "dword", "op": "eq", "val": value})).collect()
            }
            (None, Some(bits), None) => {
                vec![json!({"index": index, "type": "dword", "op": {"masked_eq": bits}, "val": 0})]
            }
            (None, None, Some(value)) => vec![json!({"index": index, "type": "qword", "op": "eq", "val": value})],
            _ => panic!("{path}: an argument of `{call}` needs exactly one of any_of, without, exactly"),
        };
        combinations = combinations
            .iter()
            .flat_map(|left| choices.iter().map(move |right| left.iter().chain([right]).cloned().collect()))
            .collect();
    }
    let rule = |conditions: Vec<Value>| match conditions.is_empty() {
        true => json!({"syscall": call}),
        false => json!({"syscall": call, "args": conditions}),
    };
    combinations.into_iter().map(rule).collect()
}

fn compile(path: &str, mismatch: Value, matched: Value, filter: Vec<Value>) -> BpfProgram {
    let text = json!({"program": {"mismatch_action": mismatch, "match_action": matched, "filter": filter}}).to_string();
    let programs = seccompiler::compile_from_json(text.as_bytes(), TargetArch::x86_64);
    let mut programs = programs.unwrap_or_else(|error| panic!("{path}: {error}"));
    programs.remove("program").expect("the map has the one name given above")
}

fn write_role(source: &mut String, path: &str, policy: &Policy) {
    // What is answered must pass the allow-list, because of two programs the more severe action counts.
    let mut allow: Vec<Value> = policy.allow.iter().flat_map(|rule| rules(path, &rule.call, &rule.args)).collect();
    allow.extend(policy.answer.iter().flat_map(|rule| rules(path, &rule.call, &rule.args)));
    let mut programs = vec![compile(path, json!("kill_process"), json!("allow"), allow)];
    let errnos: BTreeSet<u32> = policy.answer.iter().map(|rule| rule.errno).collect();
    for errno in errnos {
        let answers = policy.answer.iter().filter(|rule| rule.errno == errno);
        let filter = answers.flat_map(|rule| rules(path, &rule.call, &rule.args)).collect();
        programs.push(compile(path, json!("allow"), json!({"errno": errno}), filter));
    }
    let name = policy.role.to_uppercase();
    let service: BTreeSet<&str> =
        policy.allow.iter().filter(|rule| rule.when == When::Service).map(|rule| rule.call.as_str()).collect();
    let names: BTreeSet<&str> = policy.allow.iter().map(|rule| rule.call.as_str()).collect();
    writeln!(source, "pub(crate) static {name}: Filter = Filter {{").expect("writing to a String");
    writeln!(source, "    names: &{:?}, service: {},", names.iter().collect::<Vec<_>>(), service.len())
        .expect("as above");
    writeln!(source, "    programs: &[").expect("as above");
    for program in programs {
        let instructions: Vec<_> = program.iter().map(|line| (line.code, line.jt, line.jf, line.k)).collect();
        writeln!(source, "        &{instructions:?},").expect("as above");
    }
    writeln!(source, "    ],\n}};").expect("as above");
}
