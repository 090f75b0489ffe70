//! The lists of `seccomp/*.json`: their form, what makes one unfit, and how one becomes BPF. Used by `build.rs`, and by a test
//! that unfit lists are refused; no part of the library.

use std::collections::BTreeSet;

use seccompiler::{BpfProgram, TargetArch};
use serde::Deserialize;
use serde_json::{Value, json};

/// A reason shorter than this says nothing.
const SHORTEST_REASON: usize = 12;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Policy {
    pub(crate) role: String,
    #[expect(dead_code, reason = "read by people")]
    purpose: String,
    pub(crate) allow: Vec<Rule>,
    #[serde(default)]
    pub(crate) answer: Vec<Answer>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Rule {
    pub(crate) call: String,
    reason: String,
    /// `service`: while it serves; `end`: only on the way out (exit, panic, abort).
    pub(crate) when: When,
    /// Conditions that must all hold.
    #[serde(default)]
    pub(crate) args: Vec<Argument>,
    /// Instead of `args`: lists of conditions, of which one must hold (an option's number says nothing without its level).
    #[serde(default)]
    pub(crate) either: Vec<Vec<Argument>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Answer {
    pub(crate) call: String,
    reason: String,
    pub(crate) errno: u32,
    #[serde(default)]
    pub(crate) args: Vec<Argument>,
}

#[derive(Deserialize, PartialEq, Clone, Copy)]
#[serde(rename_all = "lowercase")]
pub(crate) enum When {
    Service,
    End,
}

/// One condition. `any_of`: the 32-bit argument is one of these; `without`: none of these bits is set; `masked`: under the
/// first number as a mask it is the second; `exactly`: all 64 bits.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Argument {
    pub(crate) index: u8,
    pub(crate) any_of: Option<Vec<u32>>,
    pub(crate) without: Option<u32>,
    pub(crate) masked: Option<[u32; 2]>,
    pub(crate) exactly: Option<u64>,
}

/// Reads a list and refuses it, naming the rule, when a rule has no reason, stands twice, or is malformed.
pub(crate) fn parse(text: &str) -> Result<Policy, String> {
    let policy: Policy = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let reasons = policy.allow.iter().map(|rule| (&rule.call, &rule.reason));
    for (call, reason) in reasons.chain(policy.answer.iter().map(|rule| (&rule.call, &rule.reason))) {
        if reason.trim().len() < SHORTEST_REASON {
            return Err(format!("the rule for `{call}` has no reason"));
        }
    }
    let mut seen = BTreeSet::new();
    match policy.allow.iter().find(|rule| !seen.insert(rule.call.as_str())) {
        Some(rule) => Err(format!("`{}` stands twice", rule.call)),
        None => Ok(policy),
    }
}

/// The programs of a list: the allow-list first, then one for each errno with which calls are answered.
pub(crate) fn programs(policy: &Policy) -> Result<Vec<BpfProgram>, String> {
    let mut allow = Vec::new();
    for rule in &policy.allow {
        match (rule.args.is_empty(), rule.either.as_slice()) {
            (_, []) => allow.extend(rules(&rule.call, &rule.args)?),
            (true, lists) if lists.iter().all(|list| !list.is_empty()) => {
                for list in lists {
                    allow.extend(rules(&rule.call, list)?);
                }
            }
            _ => return Err(format!("`{}` needs args or either, and no empty list in it", rule.call)),
        }
    }
    // What is answered must pass the allow-list, because of two programs the more severe action counts.
    for rule in &policy.answer {
        allow.extend(rules(&rule.call, &rule.args)?);
    }
    let mut programs = vec![compile(json!("kill_process"), json!("allow"), allow)?];
    let errnos: BTreeSet<u32> = policy.answer.iter().map(|rule| rule.errno).collect();
    for errno in errnos {
        let mut answers = Vec::new();
        for rule in policy.answer.iter().filter(|rule| rule.errno == errno) {
            answers.extend(rules(&rule.call, &rule.args)?);
        }
        programs.push(compile(json!("allow"), json!({"errno": errno}), answers)?);
    }
    Ok(programs)
}

/// The conditions as seccompiler's rules: one rule for each combination of `any_of` values.
fn rules(call: &str, args: &[Argument]) -> Result<Vec<Value>, String> {
    let mut combinations: Vec<Vec<Value>> = vec![Vec::new()];
    for argument in args {
        let index = argument.index;
        let masked =
            |mask: u32, value: u32| json!({"index": index, "type": "dword", "op": {"masked_eq": mask}, "val": value});
        let choices: Vec<Value> = match (&argument.any_of, argument.without, argument.masked, argument.exactly) {
            (Some(values), None, None, None) => {
                values.iter().map(|value| json!({"index": index, "type": "dword", "op": "eq", "val": value})).collect()
            }
            (None, Some(bits), None, None) => vec![masked(bits, 0)],
            (None, None, Some([mask, value]), None) if value & !mask == 0 => vec![masked(mask, value)],
            (None, None, None, Some(value)) => vec![json!({"index": index, "type": "qword", "op": "eq", "val": value})],
            _ => return Err(format!("an argument of `{call}` needs exactly one of any_of, without, masked, exactly")),
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
    Ok(combinations.into_iter().map(rule).collect())
}

fn compile(mismatch: Value, matched: Value, filter: Vec<Value>) -> Result<BpfProgram, String> {
    let text = json!({"program": {"mismatch_action": mismatch, "match_action": matched, "filter": filter}}).to_string();
    let compiled = seccompiler::compile_from_json(text.as_bytes(), TargetArch::x86_64);
    let mut compiled = compiled.map_err(|error| error.to_string())?;
    compiled.remove("program").ok_or_else(|| "no program came out".to_owned())
}
