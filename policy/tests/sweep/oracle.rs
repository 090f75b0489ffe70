//! What a list of `seccomp/*.json` says about one call, read from the list itself and not from the compiled filter; and the
//! arguments with which each rule is tried.

use crate::lists::{Argument, Policy};

/// What becomes of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It reaches the kernel.
    Passes,
    /// It is answered with this errno.
    Answered(u32),
    /// It ends the process.
    Dies,
}

/// An argument that no call takes: no address, no descriptor, no flag.
pub(crate) const NOTHING: u64 = u64::MAX;

fn holds(condition: &Argument, arguments: &[u64; 6]) -> bool {
    let value = arguments[usize::from(condition.index)];
    let low = value as u32;
    if let Some(values) = &condition.any_of {
        return values.contains(&low);
    }
    if let Some(bits) = condition.without {
        return low & bits == 0;
    }
    if let Some([mask, wanted]) = condition.masked {
        return low & mask == wanted;
    }
    condition.exactly == Some(value)
}

/// The conditions under which `call` passes, one list an alternative.
fn alternatives<'a>(policy: &'a Policy, call: &str) -> Vec<&'a [Argument]> {
    let rules = policy.allow.iter().filter(|rule| rule.call == call);
    rules
        .flat_map(|rule| match rule.either.is_empty() {
            true => vec![rule.args.as_slice()],
            false => rule.either.iter().map(Vec::as_slice).collect(),
        })
        .collect()
}

pub(crate) fn verdict(policy: &Policy, call: &str, arguments: &[u64; 6]) -> Verdict {
    let all = |conditions: &[Argument]| conditions.iter().all(|condition| holds(condition, arguments));
    if let Some(answer) = policy.answer.iter().find(|answer| answer.call == call && all(&answer.args)) {
        return Verdict::Answered(answer.errno);
    }
    match alternatives(policy, call).into_iter().any(all) {
        true => Verdict::Passes,
        false => Verdict::Dies,
    }
}

/// Values that fulfil a condition.
fn fulfilling(condition: &Argument) -> Vec<u64> {
    match (&condition.any_of, condition.masked, condition.exactly) {
        (Some(values), ..) => values.iter().map(|value| u64::from(*value)).collect(),
        (_, Some([_, wanted]), _) => vec![u64::from(wanted)],
        (.., Some(value)) => vec![value],
        _ => vec![0],
    }
}

/// Arguments that fulfil every condition of one alternative; `pick` chooses among the values of each.
fn fulfilled(conditions: &[Argument], pick: usize) -> [u64; 6] {
    let mut arguments = [NOTHING; 6];
    for condition in conditions {
        let values = fulfilling(condition);
        arguments[usize::from(condition.index)] = values[pick % values.len()];
    }
    arguments
}

/// Arguments for one call that passes or is answered, for the sweep over numbers.
pub(crate) fn harmless(policy: &Policy, call: &str) -> [u64; 6] {
    let answered = policy.answer.iter().filter(|answer| answer.call == call).map(|answer| answer.args.as_slice());
    alternatives(policy, call).into_iter().chain(answered).next().map_or([NOTHING; 6], |list| fulfilled(list, 0))
}

/// Every rule with conditions, tried: each value that fulfils it, the same with the upper half set, and each single bit of each
/// condition's argument turned over.
pub(crate) fn trials(policy: &Policy) -> Vec<(String, [u64; 6])> {
    let mut trials = Vec::new();
    let allowed = policy.allow.iter().flat_map(|rule| {
        let lists = if rule.either.is_empty() { vec![&rule.args] } else { rule.either.iter().collect() };
        lists.into_iter().map(move |list| (&rule.call, list))
    });
    let answered = policy.answer.iter().map(|answer| (&answer.call, &answer.args));
    for (call, list) in allowed.chain(answered).filter(|(_, list)| !list.is_empty()) {
        let most = list.iter().map(|condition| fulfilling(condition).len()).max().unwrap_or(1);
        for pick in 0..most {
            let fits = fulfilled(list, pick);
            trials.push((call.clone(), fits));
            for condition in list {
                let bits = if pick == 0 { 0..64 } else { 40..41 };
                trials.extend(bits.map(|bit| {
                    let mut turned = fits;
                    turned[usize::from(condition.index)] ^= 1 << bit;
                    (call.clone(), turned)
                }));
            }
        }
    }
    trials
}
