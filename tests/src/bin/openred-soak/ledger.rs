//! Messages: sent without end between random pairs, written down with what the sender was told, compared with the inboxes at the end.

use std::collections::{BTreeMap, HashMap};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::Serialize;

use super::crew::{Crew, Member, held};
use super::plan::Chance;
use super::run::Clock;

/// Senders at once: one that waits for a peer that is away must not hold up the others.
pub(crate) const SENDERS: usize = 6;
/// A message in so many is long.
const LONG_IN: usize = 12;
/// Longest padding of a short one, and of a long one.
const PADDING: [usize; 2] = [200, 16_000];

#[derive(Debug)]
struct Sent {
    from: usize,
    to: usize,
    /// The sender's node said that it has it.
    acknowledged: bool,
}

/// All that was sent, by number.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    sent: Mutex<Vec<Sent>>,
    delivered: AtomicU64,
    slowest_millis: AtomicU64,
}

/// What became of them.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Outcome {
    pub(crate) tried: usize,
    /// The sender's node had them durably.
    pub(crate) acknowledged: usize,
    /// Of those, the peer had them before the sender was answered.
    pub(crate) delivered_at_once: u64,
    /// Refused or not answered: the node or a process of it was away.
    pub(crate) unacknowledged: usize,
    /// Of these, some arrived nevertheless.
    pub(crate) unacknowledged_arrived: usize,
    pub(crate) received: usize,
    pub(crate) slowest_send_ms: u64,
    /// `number: from-to` of each.
    pub(crate) lost: Vec<String>,
    pub(crate) doubled: Vec<String>,
    pub(crate) out_of_order: Vec<String>,
    pub(crate) strange: Vec<String>,
}

/// A message's text: its number first.
fn text(number: usize, padding: usize) -> String {
    format!("soak {number} {}", "x".repeat(padding))
}

fn number(text: &str) -> Option<usize> {
    text.strip_prefix("soak ")?.split(' ').next()?.parse().ok()
}

impl Ledger {
    /// Sends until the time is over. What hangs is told to `complain`.
    pub(crate) fn speak(&self, crew: &Crew, clock: &Clock, mut chance: Chance, rate: f64, complain: impl Fn(String)) {
        while !clock.is_over() {
            let from = chance.below(crew.members.len());
            let to = (from + 1 + chance.below(crew.members.len() - 1)) % crew.members.len();
            let is_long = chance.below(LONG_IN) == 0;
            let padding = chance.below(PADDING[usize::from(is_long)]);
            let pause = -(chance.part().max(1e-3).ln()) * SENDERS as f64 / rate;
            if let Ok(_turn) = crew.members[from].voice.try_lock()
                && let Err(error) = self.send(crew, from, to, padding)
            {
                complain(format!("{error:#}"));
            }
            clock.nap(super::plan::span(pause));
        }
    }

    fn send(&self, crew: &Crew, from: usize, to: usize, padding: usize) -> Result<()> {
        let number = {
            let mut sent = held(&self.sent);
            sent.push(Sent { from, to, acknowledged: false });
            sent.len() - 1
        };
        let begun = Instant::now();
        let answer = crew.members[from].cli(&["send", &crew.members[to].id, &text(number, padding)])?;
        let millis = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.slowest_millis.fetch_max(millis, Ordering::Relaxed);
        if answer.code == 0 {
            held(&self.sent)[number].acknowledged = true;
            if answer.json()?["state"] == "delivered" {
                self.delivered.fetch_add(1, Ordering::Relaxed);
            }
        }
        Ok(())
    }

    /// Compares with what the inboxes hold now.
    pub(crate) fn compare(&self, crew: &Crew) -> Result<Outcome> {
        let ids: Vec<&str> = crew.members.iter().map(|member| member.id.as_str()).collect();
        let inboxes: Vec<_> = crew.members.iter().map(inbox).collect::<Result<_>>()?;
        let mut outcome = compared(&held(&self.sent), &ids, &inboxes);
        outcome.delivered_at_once = self.delivered.load(Ordering::Relaxed);
        outcome.slowest_send_ms = self.slowest_millis.load(Ordering::Relaxed);
        Ok(outcome)
    }

    /// Compares again and again until nothing acknowledged is missing, for at most so long.
    pub(crate) fn settle(&self, crew: &Crew, most: Duration) -> Result<Outcome> {
        let end = Instant::now() + most;
        loop {
            let outcome = self.compare(crew);
            if super::run::is_ended()
                || Instant::now() >= end
                || outcome.as_ref().is_ok_and(|outcome| outcome.lost.is_empty())
            {
                return outcome;
            }
            std::thread::sleep(Duration::from_secs(2));
        }
    }
}

/// What became of each message, given all inboxes in the order of the nodes' ids: who sent, and what, in the order of arrival.
fn compared(sent: &[Sent], ids: &[&str], inboxes: &[Vec<(String, String)>]) -> Outcome {
    let mut outcome = Outcome { tried: sent.len(), ..Outcome::default() };
    outcome.acknowledged = sent.iter().filter(|message| message.acknowledged).count();
    outcome.unacknowledged = outcome.tried - outcome.acknowledged;
    let mut arrived = vec![0_usize; sent.len()];
    for (to, inbox) in inboxes.iter().enumerate() {
        let mut last = HashMap::<&str, usize>::new();
        for (peer, text) in inbox {
            outcome.received += 1;
            let known = number(text).and_then(|number| Some((number, sent.get(number)?)));
            let Some((number, message)) =
                known.filter(|(_, message)| message.to == to && ids[message.from] == peer.as_str())
            else {
                outcome.strange.push(format!("at n{to}: {text:.40}"));
                continue;
            };
            arrived[number] += 1;
            if message.acknowledged && last.insert(peer, number).is_some_and(|before| before > number) {
                outcome.out_of_order.push(named(number, message));
            }
        }
    }
    for (number, (message, times)) in sent.iter().zip(&arrived).enumerate() {
        match times {
            0 if message.acknowledged => outcome.lost.push(named(number, message)),
            0 | 1 => {}
            _ => outcome.doubled.push(named(number, message)),
        }
        outcome.unacknowledged_arrived += usize::from(!message.acknowledged && *times > 0);
    }
    outcome
}

fn named(number: usize, message: &Sent) -> String {
    format!("{number}: n{}-n{}", message.from, message.to)
}

/// Who sent, and what, in the order of arrival.
fn inbox(member: &Member) -> Result<Vec<(String, String)>> {
    let inbox = member.cli(&["inbox", "--all", "--peek"])?.json()?;
    let mut messages = BTreeMap::new();
    for message in inbox["messages"].as_array().context("inbox prints messages")? {
        let text = |name: &str| message[name].as_str().unwrap_or_default().to_owned();
        messages.insert(message["sequence"].as_u64().context("a message has a number")?, (text("peer"), text("text")));
    }
    Ok(messages.into_values().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_lost_doubled_turned_round_or_strange_is_named() {
        let sent = |from, to, acknowledged| Sent { from, to, acknowledged };
        let all = [sent(0, 1, true), sent(0, 1, true), sent(0, 1, false), sent(1, 0, true), sent(1, 0, false)];
        let ids = ["a", "b"];
        let message = |peer: &str, number| (peer.to_owned(), text(number, 3));
        let compare = |at_a: &[(String, String)], at_b: &[(String, String)]| {
            compared(&all, &ids, &[at_a.to_vec(), at_b.to_vec()])
        };
        let faults = |outcome: &Outcome| {
            [&outcome.lost, &outcome.doubled, &outcome.out_of_order, &outcome.strange].map(Vec::len)
        };
        let well = compare(&[message("b", 3)], &[message("a", 0), message("a", 1), message("a", 2)]);
        assert_eq!((faults(&well), well.acknowledged, well.unacknowledged_arrived), ([0; 4], 3, 1));
        let lost = compare(&[], &[message("a", 0), message("a", 1)]);
        assert_eq!((faults(&lost), lost.lost), ([1, 0, 0, 0], vec![String::from("3: n1-n0")]));
        let doubled =
            compare(&[message("b", 3)], &[message("a", 0), message("a", 1), message("a", 2), message("a", 2)]);
        assert_eq!(faults(&doubled), [0, 1, 0, 0], "one that was not acknowledged may come, but once");
        let turned = compare(&[message("b", 3)], &[message("a", 1), message("a", 0)]);
        assert_eq!(faults(&turned), [0, 0, 1, 0]);
        let wrong_place = compare(&[message("b", 3), message("b", 0)], &[message("a", 0), message("a", 1)]);
        assert_eq!(faults(&wrong_place), [0, 0, 0, 1]);
        let invented = compare(&[message("b", 3), message("b", 9)], &[message("a", 0), message("a", 1)]);
        assert_eq!(faults(&invented), [0, 0, 0, 1]);
    }
}
