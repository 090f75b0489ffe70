//! Two nodes and all that can happen to a link between them, searched exhaustively: offers and receipts that are lost, repeated,
//! reordered and replayed at any later time, renewals that cross, crashes between any two durable writes, backups and databases that
//! were set back, revocation, expiry, clocks that disagree; and, in `handshakes`, the messages of the handshakes over one link.
//!
//! The nodes are the real rules: `state`, `judge`, `renewal`, `sync` and `changes` of this folder, and the key process's
//! `PeerRecord`. What the drivers do around them (which question comes first, what is stored when) is told again in `steps`, against
//! a network that keeps all that was ever sent. From every state that can be reached a fair run, in which messages arrive and time
//! passes, must end with a link that both can use, or with none on either side.
//!
//! Each search goes in one order and takes as many states each time: `docs/states.md` has their numbers, and the shortest way by which
//! each wrong rule is found. `OPENRED_SEARCH=deep` searches on, for minutes, and prints what it saw.
#![allow(clippy::print_stdout, reason = "says how much was looked at")]

mod handshakes;
mod properties;
mod steps;
mod world;

use std::time::{Duration, Instant};

use proptest::prelude::*;

use crate::config::IncomingPolicy;
use crate::explore::{Machine, explore, is_deep, wander};
use crate::link::changes;
use crate::link::judge::{RefusedOffer, Verdict, judge, judge_renewal};
use crate::link::state::{EndReason, Link, LinkState};
use crate::link::sync::{Repair, repairs};
use crate::rendered::has_row;
use world::{Action, Budget, Model, Rules};

const HOUR: Duration = Duration::from_secs(3600);

/// States that a search may see: a search that is not deep stays far below, a deep one has them in a few gigabytes.
const MOST: usize = 200_000;
const MOST_DEEP: usize = 8_000_000;

/// Nothing but messages.
const CALM: Budget = Budget { offers: 2, ticks: 0, waits: 0, revocations: 0, crashes: 0, restores: 0 };

/// Searches all of it. `what` may happen stands in the documents beside how much that was.
fn holds<M: Machine>(name: &str, what: &str, model: &M) {
    let begun = Instant::now();
    let explored = explore(model, if is_deep() { MOST_DEEP } else { MOST });
    let explored = explored.unwrap_or_else(|broken| panic!("{name}: {broken}"));
    println!("{name}: {explored}, {} ms", begun.elapsed().as_millis());
    assert!(explored.states > 50, "{name}: hardly anything happens");
    if !is_deep() {
        let figures = [explored.states, explored.steps, explored.depth].map(|figure| figure.to_string());
        let cells = [name.to_owned(), what.to_owned()].into_iter().chain(figures);
        has_row("search", &cells.collect::<Vec<_>>());
    }
}

/// A model with one rule that is wrong: the search must say so, and by the shortest way.
fn is_caught<M: Machine>(name: &str, model: &M, property: &str) {
    let begun = Instant::now();
    let broken = explore(model, MOST).err().unwrap_or_else(|| panic!("{name}: a wrong rule went unnoticed"));
    println!("{name}: {broken}\n{} ms", begun.elapsed().as_millis());
    assert!(broken.property.contains(property), "{name}: {broken}");
    has_row("wrong rules", &[name.to_owned(), broken.property.clone(), broken.told()]);
}

/// Searches within the suite's budget, or the deep one.
fn searched(name: &str, what: &str, model: fn(Budget) -> Model, budget: Budget, deep: Budget) {
    holds(name, what, &model(if is_deep() { deep } else { budget }));
}

fn linked(budget: Budget) -> Model {
    Model::new(budget).linked()
}

#[test]
fn first_offers_that_cross_repeat_and_get_lost() {
    let ask: fn(Budget) -> Model = |budget| Model::new(budget).incoming(IncomingPolicy::Ask);
    let deep = Budget { waits: 1, crashes: 1, revocations: 1, ..CALM };
    let (revoked, crashed) = (Budget { revocations: 1, ..CALM }, Budget { crashes: 1, ..CALM });
    searched("first offers, open", "2 offers, a revocation", Model::new, revoked, deep);
    searched("first offers, ask", "2 offers, a revocation", ask, revoked, deep);
    searched("first offers, crashes", "2 offers, a crash", Model::new, crashed, deep);
}

#[test]
fn renewals_that_cross_repeat_and_get_lost() {
    let (once, deep) = (Budget { ticks: 7, ..CALM }, Budget { ticks: 9, waits: 2, ..CALM });
    searched("renewals", "1 renewal, 28 hours", linked, once, deep);
    let crossed = Budget { offers: 3, ticks: 5, waits: 1, ..CALM };
    let deep = Budget { offers: 4, ticks: 6, waits: 1, ..CALM };
    searched("renewals that cross", "2 renewals, 20 hours, 6 minutes", linked, crossed, deep);
}

#[test]
fn renewals_between_clocks_two_hours_apart() {
    let (what, budget) = ("1 renewal, 28 hours, clocks 2 hours apart", Budget { ticks: 7, ..CALM });
    let deep = Budget { offers: 3, ticks: 9, ..CALM };
    searched("A's clock ahead", what, |budget| Model::new(budget).skewed([HOUR * 2, Duration::ZERO]), budget, deep);
    searched("B's clock ahead", what, |budget| Model::new(budget).skewed([Duration::ZERO, HOUR * 2]), budget, deep);
}

#[test]
fn renewals_through_crashes_and_revocation() {
    let deep = Budget { ticks: 5, revocations: 1, crashes: 1, ..CALM };
    let (crashed, revoked) = (Budget { ticks: 5, crashes: 1, ..CALM }, Budget { ticks: 4, revocations: 1, ..CALM });
    searched("renewals, crashes", "1 renewal, 20 hours, a crash", linked, crashed, deep);
    searched("renewals, revoked", "1 renewal, 16 hours, a revocation", linked, revoked, deep);
}

#[test]
fn backups_and_databases_that_were_set_back() {
    let budget = Budget { ticks: 4, restores: 1, ..CALM };
    let deep = Budget { offers: 3, ticks: 5, restores: 2, ..CALM };
    searched("restored", "1 renewal, 16 hours, a copy put back", linked, budget, deep);
}

#[test]
fn a_rule_by_which_both_keep_their_own_first_offer_is_caught() {
    let rules = Rules {
        judge: |situation, links, summary, token, now| {
            let crossed = links.iter().any(|link| link.state == LinkState::Offered && link.peer() == summary.peer);
            if crossed {
                return Verdict::Refuse(RefusedOffer::OursGoesFirst);
            }
            judge(situation, links.iter(), summary, token, now)
        },
        ..Rules::REAL
    };
    is_caught("both keep their own first offer", &Model::new(CALM).under(rules), "stuck");
}

#[test]
fn a_rule_that_ends_the_old_link_before_the_new_one_is_held_by_both_is_caught() {
    let rules = Rules {
        outlived: |links, allowed, now| {
            let mut ended = changes::outlived(links, allowed, now);
            let hasty = links.iter().filter(|link| link.state == LinkState::Renewing);
            ended.extend(hasty.filter_map(|link| link.clone().expired(EndReason::Renewed, now).ok()));
            ended
        },
        ..Rules::REAL
    };
    let model = Model::new(Budget { ticks: 6, ..CALM }).linked();
    is_caught("a renewed link ends at once", &model.under(rules), "cut off");
}

#[test]
fn a_comparison_that_takes_an_offer_under_way_for_lost_is_caught() {
    let rules = Rules {
        repairs: |links, peer, theirs, now| {
            let mut found = repairs(links.iter(), peer, theirs, now);
            let silent = |link: &&Link| theirs.entries.iter().all(|entry| entry.link != link.id());
            let missing = links.iter().filter(|link| !link.state.is_over()).filter(silent);
            found.extend(missing.map(|link| Repair::End(link.id(), EndReason::PeerEnded)));
            found
        },
        ..Rules::REAL
    };
    let model = Model::new(Budget { ticks: 6, ..CALM }).linked();
    is_caught("what a list lacks has ended", &model.under(rules), "nobody had ended");
}

/// As it was once: a link that was used before its receipt came was joined, for all that was known, when it was offered.
#[test]
fn an_offer_that_is_held_against_the_receipt_alone_is_caught() {
    let rules = Rules {
        judge: |situation, links, summary, token, now| {
            let judged = judge(situation, links.iter(), summary, token, now);
            let is_late = judged == Verdict::Refuse(RefusedOffer::Outdated);
            let used = links.iter().find(|link| link.state.is_live() && link.lacks_receipt());
            match used.filter(|link| is_late && summary.not_before > link.summary.not_before) {
                Some(link) => Verdict::Accept(vec![(link.id(), EndReason::Replaced)]),
                None => judged,
            }
        },
        ..Rules::REAL
    };
    is_caught("an offer is held against the receipt alone", &Model::new(CALM).under(rules), "cut off");
}

/// Each takes the other's renewal late, after it has ended its own.
#[test]
fn an_initiator_that_knows_only_its_newest_link_is_caught() {
    let model = Model::new(Budget { offers: 3, ticks: 6, waits: 1, ..CALM }).linked();
    let rules = Rules { falls_back: false, ..Rules::REAL };
    is_caught("an initiator tries its newest link alone", &model.under(rules), "cut off");
}

#[test]
fn a_key_process_that_forgets_what_it_has_heard_is_caught() {
    // The copy is from before the first offer; its link has to leave the key process's two places before the offer comes again.
    let only = |action: &Action| {
        let offers = matches!(action, Action::Request(0) | Action::Revoke { by: 0, .. } | Action::Offer { .. });
        offers || matches!(action, Action::Copy(1) | Action::SetBack(1))
    };
    let model = Model::new(Budget { offers: 3, restores: 1, revocations: 2, ..CALM }).only(only);
    let rules = Rules { remembers: false, ..Rules::REAL };
    is_caught("the key process forgets sequences", &model.under(rules), "accepted twice");
}

#[test]
fn renewals_of_which_each_side_takes_the_others_are_caught() {
    let rules = Rules {
        judge_renewal: |me, links, old, summary, token, now| match judge_renewal(
            me,
            links.iter(),
            old,
            summary,
            token,
            now,
        ) {
            Verdict::Refuse(RefusedOffer::OursGoesFirst) => Verdict::Accept(Vec::new()),
            verdict => verdict,
        },
        ..Rules::REAL
    };
    let model = Model::new(Budget { offers: 3, ticks: 6, ..CALM }).linked();
    is_caught("each takes the other's crossing renewal", &model.under(rules), "cut off");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Far beyond what can be searched: long lists of events, by clocks that agree or do not, from nothing or from a link.
    #[test]
    fn long_lists_of_events(choices in proptest::collection::vec(any::<u16>(), 1..100), begin in 0_usize..4) {
        let budget = Budget { offers: 12, ticks: 20, waits: 8, revocations: 2, crashes: 4, restores: 2 };
        let model = Model::new(budget);
        let model = match begin {
            0 => model,
            1 => model.incoming(IncomingPolicy::Ask),
            2 => model.linked(),
            _ => model.skewed([HOUR * 2, Duration::ZERO]),
        };
        if let Err(broken) = wander(&model, &choices) {
            prop_assert!(false, "{broken}");
        }
    }
}
