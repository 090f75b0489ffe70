//! The lists of `seccomp/*.json`: their form, what makes one unfit, and how one becomes BPF. Used by `build.rs`, and by a test
//! that unfit lists are refused; no part of the library.

use std::collections::BTreeSet;

use seccompiler::{BpfProgram, TargetArch, sock_filter};
use serde::Deserialize;
use serde_json::{Value, json};

/// A reason shorter than this says nothing.
const SHORTEST_REASON: usize = 12;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Policy {
    pub(crate) role: String,
    /// The list that this one adds to.
    #[serde(default)]
    pub(crate) extends: Option<String>,
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

/// A list with those rules that it adds to; what stands in both is refused.
pub(crate) fn joined(base: Policy, more: Policy) -> Result<Policy, String> {
    let mut policy = Policy { role: more.role, ..base };
    if let Some(twice) = more.allow.iter().find(|rule| policy.allow.iter().any(|held| held.call == rule.call)) {
        return Err(format!("`{}` stands in the list that this one adds to", twice.call));
    }
    policy.allow.extend(more.allow);
    policy.answer.extend(more.answer);
    Ok(policy)
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
    let mut programs = vec![dispatch(&by_number(allow)?)?];
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

/// A rule and the number of its call.
type Numbered = (u32, Value);

/// Calls of an allow-list that are looked through one after the other; more are split in two by their number.
const MOST_IN_A_ROW: usize = 8;

// Instructions of classic BPF.
const LOAD: u16 = 0x20;
const EQUAL: u16 = 0x15;
const GREATER_OR_EQUAL: u16 = 0x35;
const JUMP: u16 = 0x05;

/// The rules in the order of their numbers, which are read from what each call compiles to.
fn by_number(rules: Vec<Value>) -> Result<Vec<Numbered>, String> {
    let mut numbered = Vec::with_capacity(rules.len());
    for rule in rules {
        let program = compile(json!("kill_process"), json!("allow"), vec![json!({"syscall": rule["syscall"]})])?;
        // After the number (the word at 0) is loaded, it is compared with the one call's.
        let loaded = program.iter().skip_while(|line| (line.code, line.k) != (LOAD, 0));
        let number = loaded.into_iter().find(|line| line.code == EQUAL).map(|line| line.k);
        numbered.push((number.ok_or("a call compiles to no comparison")?, rule));
    }
    numbered.sort_by_key(|(number, _)| *number);
    Ok(numbered)
}

/// The allow-list as a tree: a number is compared with a few others and not with each. The leaves are whole programs, which look at
/// the architecture first.
fn dispatch(rules: &[Numbered]) -> Result<BpfProgram, String> {
    let mut numbers: Vec<u32> = rules.iter().map(|(number, _)| *number).collect();
    numbers.dedup();
    if numbers.len() <= MOST_IN_A_ROW {
        return compile(json!("kill_process"), json!("allow"), rules.iter().map(|(_, rule)| rule.clone()).collect());
    }
    let pivot = numbers[numbers.len() / 2];
    let (low, high) = rules.split_at(rules.partition_point(|(number, _)| *number < pivot));
    let (low, high) = (dispatch(low)?, dispatch(high)?);
    let step = |code, jf, k| sock_filter { code, jt: 0, jf, k };
    let over = u32::try_from(low.len()).map_err(|error| error.to_string())?;
    let mut program = vec![step(LOAD, 0, 0), step(GREATER_OR_EQUAL, 1, pivot), step(JUMP, 0, over)];
    program.extend(low);
    program.extend(high);
    Ok(program)
}

fn compile(mismatch: Value, matched: Value, filter: Vec<Value>) -> Result<BpfProgram, String> {
    let text = json!({"program": {"mismatch_action": mismatch, "match_action": matched, "filter": filter}}).to_string();
    let compiled = seccompiler::compile_from_json(text.as_bytes(), TargetArch::x86_64);
    let mut compiled = compiled.map_err(|error| error.to_string())?;
    compiled.remove("program").ok_or_else(|| "no program came out".to_owned())
}
