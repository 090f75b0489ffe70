//! The installed module: called without end while it is killed, swapped and released; what it has acknowledged it still has at the end, once.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use openred_tests::swap_desk::MODULE;
use serde::Serialize;

use super::crew::{Crew, Member};
use super::plan::Chance;
use super::run::{Clock, is_ended};

/// What was asked of one node's.
#[derive(Debug, Default)]
struct Asked {
    tried: AtomicU64,
    acknowledged: AtomicU64,
}

/// Of each node, in their order.
#[derive(Debug)]
pub(crate) struct Counter(Vec<Asked>);

/// What became of it.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Counted {
    pub(crate) tried: u64,
    pub(crate) acknowledged: u64,
    /// What the modules have counted in the end.
    pub(crate) kept: u64,
    /// Nodes whose module has less than it acknowledged, or more than it was asked for.
    pub(crate) wrong: Vec<String>,
}

impl Counter {
    pub(crate) fn new(crew: &Crew) -> Self {
        Self(crew.members.iter().map(|_| Asked::default()).collect())
    }

    /// Has nodes drawn by chance count until the time is over. What hangs is told to `complain`.
    pub(crate) fn count(&self, crew: &Crew, clock: &Clock, mut chance: Chance, rate: f64, complain: impl Fn(String)) {
        while !clock.is_over() {
            let number = chance.below(crew.members.len());
            let asked = &self.0[number];
            asked.tried.fetch_add(1, Ordering::Relaxed);
            match crew.members[number].cli(&["module", "call", MODULE, "POST", "/add"]) {
                Ok(answer) => drop(asked.acknowledged.fetch_add(u64::from(answer.code == 0), Ordering::Relaxed)),
                Err(error) => complain(format!("{error:#}")),
            }
            clock.nap(super::plan::span(1.0 / rate));
        }
    }

    /// Asks every one for its count, each until it answers, all for at most so long.
    pub(crate) fn settle(&self, crew: &Crew, most: Duration) -> Counted {
        let end = Instant::now() + most;
        let mut counted = Counted::default();
        for (member, asked) in crew.members.iter().zip(&self.0) {
            let (tried, acknowledged) =
                (asked.tried.load(Ordering::Relaxed), asked.acknowledged.load(Ordering::Relaxed));
            counted.tried += tried;
            counted.acknowledged += acknowledged;
            let kept = loop {
                match shown(member) {
                    Err(_) if Instant::now() < end && !is_ended() => std::thread::sleep(Duration::from_secs(1)),
                    other => break other,
                }
            };
            counted.kept += kept.as_ref().copied().unwrap_or(0);
            match kept {
                Ok(kept) if (acknowledged..=tried).contains(&kept) => {}
                Ok(kept) => counted.wrong.push(format!(
                    "{}: {kept} counted of {acknowledged} acknowledged and {tried} asked for",
                    member.name
                )),
                Err(error) => counted.wrong.push(format!("{}: {error:#}", member.name)),
            }
        }
        counted
    }
}

fn shown(member: &Member) -> Result<u64> {
    let shown = member.cli(&["module", "call", MODULE, "GET", "/shown"])?.json()?;
    shown["count"].as_u64().context("the module says how far it has counted")
}
