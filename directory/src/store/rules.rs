//! The rules by which a card is taken, whatever keeps the cards: sequence, lineage, admission, room (docs/protocol.md sections 1 and 7, decisions
//! 0014 and 0041). They ask the store for its rows through [`Known`] and have it change them through [`Taking`], inside one transaction of its own.

use std::cmp::Ordering;

use openred_proto::checked::succession::{Contradiction, Followed, Heard};
use openred_proto::id::{NodeId, UnixMillis};
use openred_proto::limits::CARD_LIFE;
use sha2::{Digest as _, Sha256};

use super::decision::InviteLine;
use super::{Lack, Logged, NewCard, Registration, Terms};
use crate::config::Mode;
use crate::error::Result;

/// Rows that decide.
pub(super) trait Known {
    /// What was heard of a node's successor, and whether that one, or one that goes on for it, said the same.
    fn heard(&mut self, old: &NodeId) -> Result<Option<(Heard, bool)>>;
    /// A node and those that go on for it, each by the next one's consent.
    fn line_of(&mut self, node: &NodeId) -> Result<Vec<NodeId>>;
    /// Whether an operator's word, or an invite, has let a node in.
    fn is_admitted(&mut self, node: &NodeId) -> Result<bool>;
    /// Whether an operator has banned a node.
    fn is_banned(&mut self, node: &NodeId) -> Result<bool>;
    /// Whether a node has a card that is not quarantined.
    fn is_here(&mut self, node: &NodeId) -> Result<bool>;
    /// An invite by its hash.
    fn invite(&mut self, hash: &[u8; 32]) -> Result<Option<InviteLine>>;
    /// Uses an invite that was found good, once.
    fn use_invite(&mut self, now: UnixMillis, node: &NodeId, hash: &[u8; 32]) -> Result<()>;
    /// Keeps what a card that was taken says of successions; how many places the cards that go give back.
    fn keep(&mut self, plan: &Plan) -> Result<u64>;
}

/// A node's row before a card of it is taken.
pub(super) struct Before {
    pub(super) sequence: u64,
    pub(super) hash: [u8; 32],
    /// When its last card ends, or ended.
    pub(super) expires_at: UnixMillis,
    pub(super) quarantined: bool,
    /// Where its card stands in the log; it has none any more where this is nothing.
    pub(super) place: Option<u64>,
}

impl Before {
    /// The mirrored directory may have dropped its own row by now, and with it what a card has to be newer than. It does so some hours after
    /// this at the earliest, which is more than two clocks differ by.
    fn is_over(&self, now: UnixMillis) -> bool {
        self.place.is_none() && self.expires_at.plus(CARD_LIFE) < now
    }
}

/// A store that takes a card.
pub(super) trait Taking {
    /// Its rows.
    type Known: Known;
    /// Its rows.
    fn known(&mut self) -> &mut Self::Known;
    /// A node's row.
    fn before(&mut self, node: &NodeId) -> Result<Option<Before>>;
    /// Keeps two cards of one sequence, once; whether they are kept.
    fn keep_evidence(&mut self, now: UnixMillis, card: &NewCard) -> Result<bool>;
    /// Whether one more node may have a card.
    fn has_place(&mut self, most: u64) -> Result<bool>;
    /// So many places are free again.
    fn give_places_back(&mut self, places: u64);
    /// Adds a card to the log.
    fn log(&mut self, card: &NewCard) -> Result<Logged>;
    /// Notes that the card at a place in the log came again, and nothing else.
    fn touch(&mut self, now: UnixMillis, place: u64) -> Result<()>;
    /// Notes that a card that is here is quarantined from now on, or no more.
    fn quarantine(&mut self, card: &NewCard, quarantined: bool) -> Result<()>;
    /// Writes the node's row.
    fn insert(
        &mut self,
        now: UnixMillis,
        card: &NewCard,
        hash: &[u8; 32],
        quarantined: bool,
        logged: Logged,
    ) -> Result<()>;
}

/// How a card's lineage stands to what was heard before.
enum Standing {
    /// To be kept with the card.
    Follows(Plan),
    /// The node itself has named a successor that is not taken back.
    Succeeded(NodeId),
    /// Nothing of it counts.
    Contradicts(Contradiction),
}

/// What to change once the card is taken.
#[derive(Default)]
pub(super) struct Plan {
    pub(super) followed: Followed,
    /// Nodes whose cards go: they had an earlier one's standing.
    pub(super) ended: Vec<NodeId>,
}

impl Plan {
    /// Whose standing the card's node has, by their own word.
    fn earlier(&self) -> &[NodeId] {
        &self.followed.earlier
    }
}

/// The successor that a node has named and not taken back.
pub(super) fn successor(known: &mut impl Known, node: &NodeId) -> Result<Option<NodeId>> {
    Ok(known.heard(node)?.map(|(heard, _)| heard).filter(|heard| !heard.taken_back).map(|heard| heard.new))
}

/// Judges a card's lineage; changes nothing.
fn follow(known: &mut impl Known, card: &NewCard, now: UnixMillis) -> Result<Standing> {
    let mut words = Vec::new();
    for word in card.lineage.steps() {
        words.extend(known.heard(&word.old)?.map(|(heard, consented)| (word.old, heard, consented)));
    }
    let of = |old: &NodeId| words.iter().find(|(held, ..)| held == old).map(|(_, heard, _)| *heard);
    let followed = match card.lineage.follow(of, now) {
        Ok(followed) => followed,
        Err(contradiction) => return Ok(Standing::Contradicts(contradiction)),
    };
    let speaks_again = followed.changes.iter().rev().find(|(old, _)| *old == card.node);
    match speaks_again {
        Some((_, heard)) if heard.taken_back => {}
        _ => {
            if let Some(successor) = successor(known, &card.node)? {
                return Ok(Standing::Succeeded(successor));
            }
        }
    }
    // A card goes only for one that its node's own card had agreed to before.
    let agreed = |old: &NodeId, new: &NodeId| {
        words.iter().any(|(held, heard, consented)| held == old && heard.new == *new && *consented)
    };
    let mut ended = Vec::new();
    for (_, new) in followed.taken_back.iter().filter(|(old, new)| agreed(old, new)) {
        ended.extend(known.line_of(new)?);
    }
    Ok(Standing::Follows(Plan { followed, ended }))
}

/// Whether a node is let in, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Admission {
    /// As it is, or by the word of an operator.
    In,
    /// By the invite that it shows, which is used up by one.
    ByInvite([u8; 32]),
    /// Held, and kept out of sight.
    Quarantined,
    /// Not let in.
    Out(Lack),
}

/// Judges a node by the terms; `held` says of the card that is held of it whether it is quarantined. Changes nothing.
fn admit(
    known: &mut impl Known,
    now: UnixMillis,
    card: &NewCard,
    earlier: &[NodeId],
    terms: &Terms,
    held: Option<bool>,
) -> Result<Admission> {
    if held == Some(false) || terms.mode == Mode::Open || known.is_admitted(&card.node)? {
        return Ok(Admission::In);
    }
    if inherits(known, card, earlier)? {
        return Ok(Admission::In);
    }
    let invited = match &terms.invite {
        Some(hash) => may_use(known, now, hash)?.map(|()| *hash),
        None => Err(Lack::Invite),
    };
    Ok(match (invited, terms.mode) {
        (Ok(hash), _) => Admission::ByInvite(hash),
        (Err(_), Mode::Open) => Admission::In,
        (Err(_), Mode::Approval) => Admission::Quarantined,
        // It was held in quarantine, and the operator has opened the door since.
        (Err(_), Mode::Work) if terms.worked || held.is_some() => Admission::In,
        (Err(_), Mode::Work) => Admission::Out(Lack::Work),
        (Err(lack), Mode::Invite) => Admission::Out(lack),
    })
}

/// Who goes on for a node that is in, by that one's own word, need not ask again; but no ban ends with a new name (decision 0065).
fn inherits(known: &mut impl Known, card: &NewCard, earlier: &[NodeId]) -> Result<bool> {
    for node in card.lineage.steps().flat_map(|word| [word.old, word.new]) {
        if known.is_banned(&node)? {
            return Ok(false);
        }
    }
    for node in earlier {
        if known.is_admitted(node)? || known.is_here(node)? {
            return Ok(true);
        }
    }
    Ok(false)
}

fn may_use(known: &mut impl Known, now: UnixMillis, hash: &[u8; 32]) -> Result<std::result::Result<(), Lack>> {
    Ok(match known.invite(hash)?.as_ref().map(|invite| invite.state(now)) {
        Some("open") => Ok(()),
        Some("spent") => Err(Lack::InviteSpent),
        Some("ended") => Err(Lack::InviteEnded),
        _ => Err(Lack::InviteUnknown),
    })
}

/// Takes a card as the mirrored directory has it, which has let its node in; false where an older or another one is here.
pub(super) fn take_over(
    store: &mut impl Taking,
    now: UnixMillis,
    seen: UnixMillis,
    card: &NewCard,
    logged: Logged,
) -> Result<bool> {
    let hash: [u8; 32] = Sha256::digest(&card.bytes).into();
    if let Some(row) = store.before(&card.node)?
        && (card.sequence < row.sequence || (card.sequence == row.sequence && hash != row.hash))
        && !row.is_over(now)
    {
        return Ok(false);
    }
    match follow(store.known(), card, now)? {
        Standing::Follows(plan) => {
            store.insert(seen, card, &hash, false, logged)?;
            store.known().keep(&plan)?;
        }
        // Not all that was said before is known here; what the node says of itself holds without it.
        Standing::Contradicts(_) => store.insert(seen, card, &hash, false, logged)?,
        Standing::Succeeded(_) => {}
    }
    Ok(true)
}

/// [`super::CardStore::register`] inside a transaction.
pub(super) fn take_in(store: &mut impl Taking, now: UnixMillis, card: &NewCard, terms: &Terms) -> Result<Registration> {
    let plan = match follow(store.known(), card, now)? {
        Standing::Follows(plan) => plan,
        Standing::Succeeded(successor) => return Ok(Registration::Succeeded(successor)),
        Standing::Contradicts(contradiction) => return Ok(Registration::Contradiction(contradiction)),
    };
    let hash: [u8; 32] = Sha256::digest(&card.bytes).into();
    let row = store.before(&card.node)?;
    let place = row.as_ref().and_then(|row| row.place);
    let mut refreshed = None;
    if let Some(row) = &row {
        match card.sequence.cmp(&row.sequence) {
            Ordering::Less => return Ok(Registration::Rollback),
            Ordering::Equal if hash != row.hash => {
                let kept = store.keep_evidence(now, card)?;
                return Ok(Registration::Equivocation { kept });
            }
            Ordering::Equal => refreshed = place,
            Ordering::Greater => {}
        }
    }
    let held = row.filter(|row| row.place.is_some()).map(|row| row.quarantined);
    let admission = admit(store.known(), now, card, plan.earlier(), terms, held)?;
    if let Admission::Out(lack) = admission {
        return Ok(Registration::NotAdmitted(lack));
    }
    if place.is_none() && !store.has_place(terms.most)? {
        return Ok(Registration::Full);
    }
    let quarantined = admission == Admission::Quarantined;
    if let Some(place) = refreshed {
        if held != Some(quarantined) {
            store.quarantine(card, quarantined)?;
        }
        store.touch(now, place)?;
    } else {
        let logged = store.log(card)?;
        store.insert(now, card, &hash, quarantined, logged)?;
    }
    if let Admission::ByInvite(hash) = admission {
        store.known().use_invite(now, &card.node, &hash)?;
    }
    let free = store.known().keep(&plan)?;
    store.give_places_back(free);
    Ok(match (quarantined, refreshed.is_some()) {
        (true, _) => Registration::Quarantined,
        (_, true) => Registration::Refreshed,
        (_, false) => Registration::Stored,
    })
}
