//! What the drivers do with one event (`offers`, `renew`, `inside`, `upkeep`), against databases in memory: first the key process,
//! then the rules, then what is stored.

use openred_cryptod::link::transform::Side;
use openred_proto::checked::link_sync::LinkSync;
use openred_proto::id::{LinkId, UnixMillis};
use openred_proto::method::{Method, MethodSet};
use openred_proto::vault::LinkSummary;

use super::super::life::DIRECTORY;
use super::world::{Action, Budget, LIFE, Model, Node, Offer, TICK, WAIT, World, link_id, token_id};
use crate::link::changes;
use crate::link::judge::{Situation, Verdict};
use crate::link::renewal::Turn;
use crate::link::state::{Aged, EndReason, Link, LinkState};
use crate::link::sync::{self, Repair};

/// What came of an offer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Receipt(Vec<u8>),
    Waits,
    Left,
}

impl Node {
    pub(super) fn link(&self, id: &LinkId) -> Option<&Link> {
        self.links.iter().find(|link| link.id() == *id)
    }

    /// As `Links::place`.
    fn put(&mut self, link: Link) {
        self.links.retain(|other| other.id() != link.id());
        self.links.push(link);
        self.links.sort_by_key(|link| (link.created_at, link.id()));
    }

    /// As `Links::keep`.
    fn keep(&mut self, mut changed: Vec<Link>, now: UnixMillis) {
        changed.extend(changes::orphans(self.links.iter(), &changed, now));
        changed.into_iter().for_each(|link| self.put(link));
    }

    /// As `Links::standing`.
    fn stands(&self, now: UnixMillis) -> bool {
        self.links
            .iter()
            .any(|link| (link.state.is_live() || link.state == LinkState::Offered) && !link.is_past_life(now))
    }
}

impl Model {
    /// What one node may do.
    pub(super) fn actions_of(&self, world: &World, by: usize, actions: &mut Vec<Action>) {
        let (node, now) = (&world.nodes[by], self.clock(world, by));
        let may_offer = world.offers.len() < world.left.offers;
        let may_crash = world.left.crashes > 0;
        if may_offer {
            actions.push(Action::Request(by));
            if may_crash {
                actions.push(Action::RequestLost(by));
            }
            let due = node.links.iter().filter(|link| (self.rules.turn)(link, &node.links, now) == Some(Turn::Renew));
            for link in due.map(Link::id) {
                actions.push(Action::Renew { by, link, lost: false });
                if may_crash {
                    actions.push(Action::Renew { by, link, lost: true });
                }
            }
        }
        if !node.approved {
            actions.push(Action::Approve(by));
        }
        if world.left.revocations > 0 && node.links.iter().any(|link| !link.state.is_over()) {
            actions.extend([true, false].map(|heard| Action::Revoke { by, heard }));
        }
        actions.extend([true, false].map(|accepted| Action::Handshake { by, accepted }));
        actions.extend([true, false].map(|answered| Action::Sync { by, answered }));
        actions.push(Action::Tend(by));
        if world.left.restores > 0 {
            match world.copies[by] {
                None if world.copies[1 - by].is_none() => actions.push(Action::Copy(by)),
                None => {}
                Some(_) => actions.extend([Action::Restore(by), Action::SetBack(by)]),
            }
        }
    }

    pub(super) fn act(&self, world: &mut World, action: Action) {
        match action {
            Action::Request(by) => self.request(world, by, true),
            Action::RequestLost(by) => {
                self.request(world, by, false);
                self.crash(world, by);
            }
            Action::Approve(by) => self.approve(world, by),
            Action::Revoke { by, heard } => self.revoke(world, by, heard),
            Action::Offer { offer, lost } => {
                let to = 1 - world.offers[offer].from;
                self.deliver(world, offer, !lost);
                if lost {
                    self.crash(world, to);
                }
            }
            Action::Inside { offer, answered } => self.offer_inside(world, offer, answered),
            Action::Receipt { offer, at } => {
                let bytes = self.receipt(world, offer, at);
                let issuer = world.offers[offer].from;
                self.hear_receipt(world, issuer, bytes);
            }
            Action::Renew { by, link, lost } => {
                self.issue(world, by, Some(link), !lost);
                if lost {
                    self.crash(world, by);
                }
            }
            Action::Handshake { by, accepted } => {
                self.handshake(world, by, accepted);
            }
            Action::Sync { by, answered } => self.sync(world, by, answered),
            Action::Tend(by) => self.tend(world, by),
            Action::Tick => self.pass(world, TICK, |left| left.ticks -= 1),
            Action::Wait => self.pass(world, WAIT, |left| left.waits -= 1),
            Action::Copy(of) => world.copies[of] = Some(Box::new(world.nodes[of].clone())),
            Action::Restore(of) | Action::SetBack(of) => self.set_back(world, of, matches!(action, Action::Restore(_))),
        }
    }

    fn pass(&self, world: &mut World, time: std::time::Duration, spend: impl Fn(&mut Budget)) {
        world.now = world.now.plus(time);
        spend(&mut world.left);
    }

    fn crash(&self, world: &mut World, who: usize) {
        world.left.crashes = world.left.crashes.saturating_sub(1);
        world.disturbed = true;
        world.nodes[who].fresh = true;
        world.nodes[who].in_step = false;
    }

    fn set_back(&self, world: &mut World, who: usize, is_backup: bool) {
        let Some(copy) = world.copies[who].take() else { return };
        let vault = world.nodes[who].vault.clone();
        let mut node = Node { fresh: true, in_step: false, over: Default::default(), ..*copy };
        if is_backup {
            // `State::begin_epoch`: the epoch is a time, greater than any before; prekeys are drawn anew.
            node.vault.epoch = vault.epoch + 1;
        } else {
            node.vault = vault;
        }
        world.nodes[who] = node;
        world.left.restores -= 1;
        world.disturbed = true;
    }

    /// As `Links::offer_to`.
    fn request(&self, world: &mut World, by: usize, stored: bool) {
        let now = self.clock(world, by);
        if world.nodes[by].stands(now) {
            return;
        }
        if world.nodes[by].links.iter().any(|link| link.state == LinkState::Waiting) {
            return self.approve(world, by);
        }
        world.nodes[by].approved = true;
        self.issue(world, by, None, stored);
    }

    /// As `Links::approve`.
    fn approve(&self, world: &mut World, by: usize) {
        let node = &mut world.nodes[by];
        node.approved = true;
        let Some(waiting) = node.links.iter().rfind(|link| link.state == LinkState::Waiting).cloned() else { return };
        let ends = changes::replaced_by(node.links.iter(), &waiting);
        let offer = usize::from(waiting.token_id[0]) - 1;
        // One whose life is over is left to age; the operator may ask for a link instead.
        let _ = self.accept(world, offer, &ends, true);
    }

    /// As `Links::request` and `Links::renew`: the key process first, then the row.
    pub(super) fn issue(&self, world: &mut World, by: usize, renews: Option<LinkId>, stored: bool) {
        let (now, number) = (UnixMillis(self.clock(world, by).0 + 1), world.offers.len());
        let prekey = world.nodes[1 - by].vault.epoch;
        let node = &mut world.nodes[by];
        let old = renews.and_then(|old| node.link(&old).cloned());
        if old.as_ref().is_some_and(|old| node.vault.open(&old.row, now).is_none()) {
            return;
        }
        let header = LinkSummary {
            link: link_id(number),
            peer: self.ids[1 - by],
            issuer: true,
            method: Method::Alpha,
            epoch: 1,
            not_before: now,
            not_after: now.plus(LIFE),
            registered: None,
        };
        let sequence = now.0.max(node.vault.last_sequence + 1);
        let made = Offer { from: by, header, sequence, renews, prekey, sent: stored, taken: 0 };
        node.vault.last_sequence = sequence;
        if !node.vault.take(&made, number, Side::Issuer, now) {
            return;
        }
        let link = Link::issued(
            made.header.clone(),
            node.vault.row(&link_id(number)),
            vec![1],
            token_id(number),
            DIRECTORY,
            now,
        );
        world.offers.push(made);
        // No two things are made at the same time.
        world.now = UnixMillis(world.now.0 + 1);
        if !stored {
            return;
        }
        let others = old.as_ref().map(|old| changes::renewed(node.links.iter(), old, link.id(), now));
        match others.transpose() {
            Ok(others) => {
                others.into_iter().flatten().for_each(|other| node.put(other));
                node.put(link.in_place_of(renews));
            }
            Err(_) => world.offers[number].sent = false,
        }
    }

    /// As `Links::revoke`. Whoever has a session with the peer tells it.
    fn revoke(&self, world: &mut World, by: usize, heard: bool) {
        let now = self.clock(world, by);
        let can_tell = heard && self.session(world, by).is_some();
        let node = &mut world.nodes[by];
        let Some(link) = node.links.iter().rfind(|link| !link.state.is_over()).cloned() else { return };
        let Ok((ended, others)) = changes::revoked(node.links.iter(), link, now) else { return };
        node.approved = false;
        let changed: Vec<Link> = std::iter::once(ended).chain(others).collect();
        changed.iter().for_each(|link| node.put(link.clone()));
        world.left.revocations -= 1;
        world.disturbed = true;
        if can_tell {
            let said = sync::list(changed.iter(), &self.ids[1 - by]);
            self.repair(world, 1 - by, &said);
        }
    }

    /// As `Links::take_offer`, through a directory: the receipt goes the same way.
    pub(super) fn deliver(&self, world: &mut World, offer: usize, stored: bool) -> Answer {
        let to = 1 - world.offers[offer].from;
        let now = self.clock(world, to);
        let (made, node) = (world.offers[offer].clone(), &world.nodes[to]);
        let token = token_id(offer);
        if let Some(known) = changes::taken_before(node.links.iter(), &token, &self.ids[made.from]) {
            let receipt = known.receipt.clone();
            self.send_receipt(world, offer, &receipt);
            return Answer::Receipt(receipt);
        }
        let row = match made.renews {
            None => None,
            Some(old) => match node.link(&old).filter(|link| link.is_usable(now)) {
                Some(link) => Some(link.row.clone()),
                None => return Answer::Left,
            },
        };
        if node.vault.opens(&made, offer, row.as_deref(), now).is_none() {
            return Answer::Left;
        }
        let summary = LinkSummary { peer: self.ids[made.from], issuer: false, ..made.header };
        let verdict = match made.renews {
            Some(old) => (self.rules.judge_renewal)(self.ids[to], &node.links, &old, &summary, &token, now),
            None => {
                let (me, policy, approved) = (self.ids[to], self.incoming, node.approved);
                let situation = Situation { me, policy, allow: &[], approved, denied: false, same_sector: false };
                (self.rules.judge)(situation, &node.links, &summary, &token, now)
            }
        };
        match verdict {
            Verdict::Accept(ends) => self.accept(world, offer, &ends, stored).map_or(Answer::Left, Answer::Receipt),
            Verdict::Wait(older) => {
                let node = &mut world.nodes[to];
                node.links.retain(|link| Some(link.id()) != older);
                node.keep(vec![Link::waiting(summary, vec![1], token, DIRECTORY, now)], now);
                Answer::Waits
            }
            Verdict::Repeat(id) => {
                let receipt = node.link(&id).map(|link| link.receipt.clone()).unwrap_or_default();
                self.send_receipt(world, offer, &receipt);
                Answer::Receipt(receipt)
            }
            Verdict::StillWaiting => Answer::Waits,
            Verdict::Refuse(_) => Answer::Left,
        }
    }

    fn send_receipt(&self, world: &mut World, offer: usize, receipt: &[u8]) {
        if let Some(receipt) = self.read(receipt) {
            world.receipts.insert((offer, receipt.at));
        }
    }

    /// As `Links::accept`: the key process first, then the rows.
    fn accept(&self, world: &mut World, offer: usize, ends: &[(LinkId, EndReason)], stored: bool) -> Option<Vec<u8>> {
        let to = 1 - world.offers[offer].from;
        let now = UnixMillis(self.clock(world, to).0 + 1);
        let made = world.offers[offer].clone();
        let row = made.renews.and_then(|old| world.nodes[to].link(&old)).map(|old| old.row.clone());
        let vault = &mut world.nodes[to].vault;
        if !vault.opens(&made, offer, row.as_deref(), now)? {
            if !vault.take(&made, offer, Side::Acceptor, now) {
                return None;
            }
            if !self.rules.remembers {
                vault.record.heard = Default::default();
            }
            world.offers[offer].taken += 1;
            world.now = UnixMillis(world.now.0 + 1);
        }
        let decided = world.nodes[to].vault.record.links.iter().flatten().find(|held| held.link == link_id(offer));
        let receipt = self.receipt(world, offer, decided?.decided_at);
        if !stored {
            return None;
        }
        let node = &mut world.nodes[to];
        let summary = LinkSummary { peer: self.ids[made.from], issuer: false, ..made.header };
        let row = node.vault.row(&link_id(offer));
        let link =
            Link::accepted(summary, row, receipt.clone(), token_id(offer), DIRECTORY, now).in_place_of(made.renews);
        let others = changes::accepted(node.links.iter(), &link, ends, now);
        node.put(link);
        others.into_iter().for_each(|other| node.put(other));
        self.send_receipt(world, offer, &receipt);
        Some(receipt)
    }

    /// As `Links::handle_receipt`.
    pub(super) fn hear_receipt(&self, world: &mut World, who: usize, bytes: Vec<u8>) {
        let now = self.clock(world, who);
        let Some(receipt) = self.read(&bytes) else { return };
        let node = &mut world.nodes[who];
        let confirmed = changes::confirmed_by(node.links.iter(), &self.ids[who], &receipt).cloned();
        if let Some(Ok(pending)) = confirmed.map(|link| link.with_receipt(bytes, now)) {
            node.keep(vec![pending], now);
        }
    }

    /// The link over which this node can open a session now (`p2p::open`): its newest, or the one before when the peer refuses that. It
    /// does so where it does not expect the link, or its key process does not open it; what this node's own does not open is not
    /// tried, and nothing instead of it.
    pub(super) fn session(&self, world: &World, by: usize) -> Option<LinkId> {
        let (node, peer, now) = (&world.nodes[by], &world.nodes[1 - by], self.clock(world, by));
        let takes = |link: &Link| {
            let theirs = peer.link(&link.id()).filter(|link| link.state.is_expected());
            theirs.is_some_and(|theirs| peer.vault.open(&theirs.row, self.clock(world, 1 - by)).is_some())
        };
        let newest = changes::preferred(node.links.iter(), &self.ids[1 - by], now)?;
        let before = changes::fallback(node.links.iter(), &self.ids[1 - by], now).filter(|_| self.rules.falls_back);
        let mut tried = std::iter::once(newest).chain(before);
        let answered = tried.find(|link| node.vault.open(&link.row, now).is_none() || takes(link))?;
        takes(answered).then(|| answered.id()).filter(|_| node.vault.open(&answered.row, now).is_some())
    }

    /// Opens one; `accepted`: its ACCEPT reaches the initiator, too.
    pub(super) fn handshake(&self, world: &mut World, by: usize, accepted: bool) -> bool {
        let Some(link) = self.session(world, by) else { return false };
        for who in [1 - by, by].into_iter().take(1 + usize::from(accepted)) {
            let now = self.clock(world, who);
            let node = &mut world.nodes[who];
            node.vault.proven(&link);
            let used = node.link(&link).cloned().map(|link| link.with_handshake(who == by, 1, [0; 16], now));
            if let Some(Ok(used)) = used {
                node.keep(vec![used], now);
            }
        }
        // FINALIZE is what the initiator's key process grants by, with or without an answer.
        world.nodes[by].vault.proven(&link);
        true
    }

    /// As `Links::offer_inside`: a session is opened for a renewal.
    pub(super) fn offer_inside(&self, world: &mut World, offer: usize, answered: bool) {
        let (from, id) = (world.offers[offer].from, link_id(offer));
        let is_offered = world.nodes[from].link(&id).is_some_and(|link| link.state == LinkState::Offered);
        if !is_offered || !self.handshake(world, from, true) {
            return;
        }
        let answer = self.deliver(world, offer, true);
        let now = self.clock(world, from);
        match answer {
            _ if !answered => {}
            Answer::Receipt(receipt) => self.hear_receipt(world, from, receipt),
            Answer::Waits => {}
            Answer::Left => {
                let node = &mut world.nodes[from];
                let offered = node.link(&id).filter(|link| link.state == LinkState::Offered).cloned();
                if let Some(Ok(ended)) = offered.map(|link| link.ended(EndReason::PeerRefused, now)) {
                    node.keep(vec![ended], now);
                }
            }
        }
    }

    /// As `Links::sync_if_due`, when there is a session: comparing is not what two that are in step do all the time.
    pub(super) fn sync_if_due(&self, world: &mut World, by: usize) {
        let now = self.clock(world, by);
        let node = &world.nodes[by];
        if !node.in_step || sync::is_due(node.links.iter(), &self.ids[1 - by], now) {
            self.sync(world, by, true);
        }
    }

    /// As `Links::sync` and `Links::answer_sync`.
    pub(super) fn sync(&self, world: &mut World, by: usize, answered: bool) {
        if !self.handshake(world, by, true) {
            return;
        }
        let own = sync::list(world.nodes[by].links.iter(), &self.ids[1 - by]);
        self.repair(world, 1 - by, &own);
        if answered {
            world.nodes[by].in_step = true;
            let theirs = sync::list(world.nodes[1 - by].links.iter(), &self.ids[by]);
            self.repair(world, by, &theirs);
        }
    }

    fn repair(&self, world: &mut World, who: usize, theirs: &LinkSync) {
        let now = self.clock(world, who);
        for repair in (self.rules.repairs)(&world.nodes[who].links, &self.ids[1 - who], theirs, now) {
            match repair {
                Repair::Receipt(receipt) => self.hear_receipt(world, who, receipt),
                Repair::End(link, reason) => {
                    let node = &mut world.nodes[who];
                    let ended = node.link(&link).cloned().map(|link| changes::ended_for(link, reason, now));
                    if let Some(Ok(ended)) = ended {
                        node.keep(vec![ended], now);
                    }
                }
            }
        }
    }

    /// As `Links::tend` and `Links::reoffer`.
    pub(super) fn tend(&self, world: &mut World, by: usize) {
        let now = self.clock(world, by);
        let node = &mut world.nodes[by];
        for link in node.links.clone() {
            match link.aged(now) {
                Some(Aged::Expired(link)) => {
                    let (is_last, orphans) = changes::lapsed(node.links.iter(), &link, now);
                    node.owed |= is_last && node.approved;
                    node.put(*link);
                    orphans.into_iter().for_each(|orphan| node.put(orphan));
                }
                Some(Aged::Purge) => node.links.retain(|other| other.id() != link.id()),
                None => {}
            }
        }
        let outlived = (self.rules.outlived)(&node.links, MethodSet::ALL, now);
        node.keep(outlived, now);
        if std::mem::take(&mut node.fresh) {
            wake(node, now);
        }
        for told in node.links.iter_mut().filter(|link| link.state.is_over() && !link.vault_told) {
            told.vault_told = true;
            let id = told.id();
            node.vault.revoke(&id);
        }
        if node.owed && world.offers.len() < world.left.offers {
            world.nodes[by].owed = false;
            if !world.nodes[by].stands(now) {
                self.issue(world, by, None, true);
            }
        }
    }
}

/// As `Links::fetch_keys` and `Links::sweep_vault`, after a start.
fn wake(node: &mut Node, now: UnixMillis) {
    for link in node.links.clone() {
        let wanted = link.state.is_live() || link.state == LinkState::Offered;
        if wanted && node.vault.open(&link.row, now).is_none() {
            let ended = changes::row_refused(node.links.iter(), link, now);
            node.keep(ended.into_iter().collect(), now);
        }
    }
    let issued =
        node.vault.record.links.iter().flatten().filter(|held| held.side == Side::Issuer).map(|held| held.link);
    let lost: Vec<LinkId> = issued.filter(|id| node.link(id).is_none()).collect();
    lost.iter().for_each(|id| node.vault.revoke(id));
}
