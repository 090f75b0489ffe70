//! What must hold in every state, and what a fair run from it must lead to.

use openred_proto::id::LinkId;

use super::steps::Answer;
use super::world::{LIFE, Model, TICK, WAIT, World, essence, link_id};
use crate::config::IncomingPolicy;
use crate::link::renewal::Turn;
use crate::link::state::{EndReason, Link, LinkState};

/// A fair run has this many steps of time to come to an end in: two lives, and what clocks may differ by.
const LONG_ENOUGH: usize = 14;
/// Offers that a fair run may make on top of those of the search.
const MORE_OFFERS: usize = 24;

impl Model {
    /// Keeps the search's own memory of what was: links that were over, and until when the two are bound.
    pub(super) fn note(&self, world: &mut World) {
        for node in &mut world.nodes {
            let over = node.links.iter().filter(|link| link.state.is_over()).map(Link::id);
            node.over.extend(over.collect::<Vec<_>>());
        }
        let clocks = [self.clock(world, 0), self.clock(world, 1)];
        let both = world.nodes[0]
            .links
            .iter()
            .filter(|link| link.is_usable(clocks[0]))
            .filter(|link| world.nodes[1].link(&link.id()).is_some_and(|theirs| theirs.is_usable(clocks[1])));
        world.bound_until =
            both.map(|link| link.summary.not_after).max().unwrap_or(world.bound_until).max(world.bound_until);
    }

    pub(super) fn properties(&self, world: &World) -> Result<(), String> {
        if let Some((number, _)) = world.offers.iter().enumerate().find(|(_, offer)| offer.taken > 1) {
            return Err(format!("offer {} was accepted twice", number + 1));
        }
        for (who, node) in world.nodes.iter().enumerate() {
            let live: Vec<LinkId> = node.links.iter().filter(|link| link.state.is_live()).map(Link::id).collect();
            if live.len() > 2 {
                return Err(format!("{} has more than two live links", NAMES[who]));
            }
            if let Some(back) = node.links.iter().find(|link| !link.state.is_over() && node.over.contains(&link.id())) {
                return Err(format!("link {} came back at {}", named(back), NAMES[who]));
            }
            let ended = |link: &Link| world.nodes[1 - who].link(&link.id()).is_some_and(|link| link.state.is_over());
            let accused = node.links.iter().filter(|link| link.reason == EndReason::PeerEnded);
            if !world.disturbed && !accused.clone().all(ended) {
                return Err(format!("{} ended a link that nobody had ended", NAMES[who]));
            }
        }
        self.agreement(world)?;
        // The last minutes of a life are each clock's own.
        let apart = self.skew.into_iter().max().unwrap_or_default() + super::HOUR / 6;
        let bound = !world.disturbed && world.now.plus(apart) < world.bound_until;
        if bound && (self.session(world, 0).is_none() || self.session(world, 1).is_none()) {
            return Err("the two are cut off from each other although a link of both lives".to_owned());
        }
        Ok(())
    }

    /// What both hold as live is one link: issued by the one, accepted by the other, in the place of the same.
    fn agreement(&self, world: &World) -> Result<(), String> {
        for mine in world.nodes[0].links.iter().filter(|link| link.state.is_live()) {
            let Some(theirs) = world.nodes[1].link(&mine.id()).filter(|link| link.state.is_live()) else { continue };
            let agree = mine.summary.issuer != theirs.summary.issuer
                && mine.renews == theirs.renews
                && mine.token_id == theirs.token_id
                && mine.summary.not_after == theirs.summary.not_after;
            if !agree {
                return Err(format!("the two do not agree on link {}", named(mine)));
            }
        }
        for (offer, made) in world.offers.iter().enumerate() {
            let issuer = world.nodes[made.from].link(&link_id(offer));
            if issuer.is_some_and(|link| link.state == LinkState::Pending) && made.taken == 0 {
                return Err(format!("link {} is confirmed, and nobody had accepted it", offer + 1));
            }
        }
        Ok(())
    }

    /// From here on messages arrive, both nodes look after their links, and time passes: the two must come to one link, or to none. Those
    /// that come to one keep it as long as nobody ends it.
    pub(super) fn fair_run(&self, world: &World) -> Result<Option<World>, String> {
        let must_link = self.must_link(world);
        let mut world = world.clone();
        world.left.offers = world.offers.len() + MORE_OFFERS;
        let mut passed = Vec::new();
        for round in 0..LONG_ENOUGH {
            self.fair_round(&mut world);
            let key = essence(&world);
            passed.push(key);
            if self.ends_linked.borrow().contains(&key) || self.is_linked(&world) {
                let is_news = !passed.iter().any(|key| self.ends_linked.borrow().contains(key));
                self.ends_linked.borrow_mut().extend(passed);
                return Ok(is_news.then_some(world));
            }
            if !must_link && (self.ends_well.borrow().contains(&key) || self.has_parted(&world)) {
                self.ends_well.borrow_mut().extend(passed);
                return Ok(None);
            }
            world.now = world.now.plus(if round < 2 { WAIT } else { TICK });
        }
        Err(format!("stuck: {}", describe(&world)))
    }

    /// From a linked state on and on: it is never without a link.
    pub(super) fn stays_linked(&self, mut world: World) -> Result<(), String> {
        if self.session(&world, 0).is_none() {
            return Ok(());
        }
        world.left.offers = world.offers.len() + MORE_OFFERS;
        let end = world.now.plus(LIFE * 3);
        while world.now < end {
            world.now = world.now.plus(TICK);
            self.fair_round(&mut world);
            if self.session(&world, 0).is_none() || self.session(&world, 0) != self.session(&world, 1) {
                return Err(format!("unlinked: {}", describe(&world)));
            }
        }
        Ok(())
    }

    fn fair_round(&self, world: &mut World) {
        for by in 0..2 {
            self.tend(world, by);
            let now = self.clock(world, by);
            let due = |link: &&Link| (self.rules.turn)(link, &world.nodes[by].links, now) == Some(Turn::Renew);
            let due: Vec<LinkId> = world.nodes[by].links.iter().filter(due).map(Link::id).collect();
            if world.offers.len() < world.left.offers {
                due.into_iter().for_each(|link| self.issue(world, by, Some(link), true));
            }
        }
        for offer in 0..world.offers.len() {
            self.send(world, offer);
        }
        for by in 0..2 {
            self.handshake(world, by, true);
            self.sync_if_due(world, by);
            self.tend(world, by);
        }
    }

    /// As `Links::send_offer`, and what it brings back.
    fn send(&self, world: &mut World, offer: usize) {
        let from = world.offers[offer].from;
        let offered = world.nodes[from].link(&link_id(offer)).cloned();
        let Some(offered) = offered.filter(|link| link.state == LinkState::Offered) else { return };
        if offered.renews.is_some() && self.session(world, from).is_some() {
            self.offer_inside(world, offer, true);
        } else if let Answer::Receipt(receipt) = self.deliver(world, offer, true) {
            self.hear_receipt(world, from, receipt);
        }
    }

    fn is_linked(&self, world: &World) -> bool {
        self.session(world, 0).is_some_and(|link| self.session(world, 1) == Some(link))
    }

    /// Nothing is left on either side but what waits for an operator's word, and nothing is owed.
    fn has_parted(&self, world: &World) -> bool {
        world.nodes.iter().zip([1, 0]).all(|(node, other)| {
            let has_parted = |link: &Link| {
                let waits = |id| world.nodes[other].link(id).is_some_and(|link| link.state == LinkState::Waiting);
                let is_asked = link.state == LinkState::Offered && waits(&link.id());
                link.state.is_over() || link.state == LinkState::Waiting || is_asked
            };
            node.links.iter().all(has_parted) && !node.owed
        })
    }

    /// Whether an offer is out that the other side admits: then a run in which it arrives must not end with nothing.
    fn must_link(&self, world: &World) -> bool {
        let admits = |who: usize| self.incoming == IncomingPolicy::Open || world.nodes[who].approved;
        let is_out = |link: &Link| {
            let is_young = world.now.plus(super::HOUR * 6) < link.summary.not_after;
            link.state == LinkState::Offered && link.renews.is_none() && is_young
        };
        !world.disturbed && (0..2).any(|by| admits(1 - by) && world.nodes[by].links.iter().any(is_out))
    }
}

/// The two, as ways name them.
pub(super) const NAMES: [&str; 2] = ["A", "B"];

/// A link by the number of its offer.
fn named(link: &Link) -> u8 {
    link.id().as_bytes()[0]
}

fn describe(world: &World) -> String {
    let links = |who: usize| {
        let links = world.nodes[who].links.iter();
        let shown = links.map(|link| match link.reason {
            EndReason::None => format!("{} {}", named(link), link.state.name()),
            reason => format!("{} {} ({reason:?})", named(link), link.state.name()),
        });
        shown.collect::<Vec<_>>().join(", ")
    };
    let passed = (world.now.0 - super::super::life::NOW.0) / 60_000;
    format!("after {passed} minutes A has {}; B has {}", links(0), links(1))
}
