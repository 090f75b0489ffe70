//! Follows the mirrored directory: page by page what its log has more, from nothing or from where it ended; then who is present, round after
//! round. What is taken was proven first: each page's entries lead to a head that it signed, each card is one of those entries and carries
//! its node's signature, and every head goes on from the one before. One that does not is named, and nothing is followed after it.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use openred_proto::checked::card::Card;
use openred_proto::error::WireError;
use openred_proto::id::UnixMillis;
use openred_proto::log::head::Head;
use openred_proto::log::tree::{Frontier, leaf_hash, position, verify_consistency};
use openred_proto::log::{Hash, LOG_ENTRIES, PROOF_HASHES, Salt, entry};
use openred_proto::pause::BackOff;
use tokio::time::Instant;

use super::client::{Client, Target, Unanswered};
use super::{Upstream, Whole};
use crate::api::mirror::{Changes, MirrorCard, PRESENT_PAGE, Present};
use crate::error::Error;
use crate::limits::MIRROR_PAGE;
use crate::state::Directory;
use crate::store::{LogEnd, Logged, NewCard, Step};

/// First pause after a failure; doubled each time.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// Longest pause after a failure.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// Who is present is asked for this often.
const PRESENT_EVERY: Duration = Duration::from_secs(15);
/// Pages of who is present come no faster than this: a million nodes are asked about in four minutes.
const PRESENT_PAUSE: Duration = Duration::from_secs(1);
/// Cards that are not here though they should be, fetched for one page of who is present.
const FETCHES: usize = 16;

/// The next pause after a failure.
fn next_pause(back_off: &mut BackOff) -> Duration {
    let mut spread = [0];
    // Without randomness mirrors move in step: no harm beyond a peak.
    let _ = getrandom::fill(&mut spread);
    back_off.next(spread[0])
}

/// Why a round ended.
#[derive(Debug)]
enum Fault {
    /// To be tried again, perhaps not before a while.
    Away(String, Option<Duration>),
    /// It answers, and has more to do than to answer now.
    Later(Duration),
    /// It contradicts what it signed.
    Lie(String),
}

impl From<Unanswered> for Fault {
    fn from(why: Unanswered) -> Self {
        match &why {
            Unanswered::Refused { code, after: Some(after), .. } if code == "rate.limited" => Self::Later(*after),
            Unanswered::Refused { after, .. } => Self::Away(why.to_string(), *after),
            Unanswered::Away(_) => Self::Away(why.to_string(), None),
        }
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Self::Away(format!("what came could not be kept: {error}"), None)
    }
}

fn lie(what: impl Into<String>) -> Fault {
    Fault::Lie(what.into())
}

/// An answer that no directory of this version gives; nothing signed says otherwise.
fn malformed(what: &str) -> Fault {
    Fault::Away(format!("its answer is out of contract: {what}"), None)
}

/// Follows one directory.
pub struct Follower {
    directory: Arc<Directory>,
    upstream: Arc<Upstream>,
    client: Client,
    /// The log was shorter at the last answer than what is here.
    set_back: bool,
    /// Where the next page of who is present begins, and when it is due.
    present: (u64, Instant),
}

impl std::fmt::Debug for Follower {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Follower({})", self.upstream.address)
    }
}

/// A page that was proven.
struct Proven {
    step: Step,
    /// Entries afterwards, and of the head that they lead to.
    size: u64,
    theirs: u64,
}

impl Follower {
    /// Of the directory that `directory` mirrors.
    #[must_use]
    pub fn new(directory: Arc<Directory>, upstream: Arc<Upstream>, target: Target) -> Self {
        Self { directory, upstream, client: Client::new(target), set_back: false, present: (0, Instant::now()) }
    }

    /// Until the directory drains, or the mirrored one is caught.
    pub async fn run(mut self) {
        let mut draining = self.directory.draining();
        let mut back_off = BackOff::new(FIRST_PAUSE, LONGEST_PAUSE);
        while !*draining.borrow_and_update() {
            let done = tokio::select! {
                done = self.round() => done,
                _ = draining.changed() => continue,
            };
            let pause = match done {
                Ok(()) => {
                    back_off.reset();
                    continue;
                }
                Err(Fault::Lie(what)) => return self.upstream.caught(what),
                Err(Fault::Later(after)) => after,
                Err(Fault::Away(why, after)) => {
                    self.upstream.away(&why);
                    next_pause(&mut back_off).max(after.unwrap_or_default())
                }
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                _ = draining.changed() => {}
            }
        }
    }

    /// One page of the log, waiting for it where nothing is missing; and one of who is present when it is due.
    async fn round(&mut self) -> Result<(), Fault> {
        let until_due = self.present.1.saturating_duration_since(Instant::now());
        // Whole seconds: a rest of one would be asked for again and again.
        let wait = match until_due {
            Duration::ZERO => Duration::ZERO,
            rest if self.upstream.is_current() => Duration::from_secs(rest.as_secs() + 1),
            _ => Duration::ZERO,
        };
        self.go_on(wait).await?;
        if self.upstream.is_current() && Instant::now() >= self.present.1 {
            self.ask_present().await?;
        }
        Ok(())
    }

    /// Takes the next page of the log.
    async fn go_on(&mut self, wait: Duration) -> Result<(), Fault> {
        let have = self.directory.store.read(|store| store.log_end()).await?;
        let changes = self.changes(have.size, MIRROR_PAGE, wait).await?;
        let Some(proven) = self.prove(have, &changes).await? else { return Ok(()) };
        let Proven { step, size, theirs } = proven;
        let whole = step.head.clone().map(|note| Whole { size, note });
        if !step.leaves.is_empty() || whole != self.upstream.head() {
            self.keep(step).await?;
        }
        if let Some(whole) = whole {
            self.upstream.is_whole(whole);
        }
        self.upstream.reached(self.directory.now(), size, theirs);
        Ok(())
    }

    async fn changes(&mut self, from: u64, limit: u64, wait: Duration) -> Result<Changes, Fault> {
        let path = format!("/api/v3/mirror/changes?from={from}&limit={limit}&wait={}", wait.as_secs());
        Ok(self.client.get(&self.directory.identity, self.directory.now(), &path, wait).await?)
    }

    /// Holds a page against the head that comes with it, and the head against what is here. None where it has to be asked again.
    async fn prove(&mut self, have: LogEnd, changes: &Changes) -> Result<Option<Proven>, Fault> {
        let head = Head::verify(changes.head.as_bytes(), &self.client.id())
            .map_err(|error| lie(format!("what it gives as its log's head is not one of its own ({error})")))?;
        if head.size < have.size {
            // Twice, so that two answers that passed each other prove nothing.
            if std::mem::replace(&mut self.set_back, true) {
                let (theirs, ours) = (head.size, have.size);
                return Err(lie(format!(
                    "it rolled its log back: it signed {ours} entries before, and shows {theirs}"
                )));
            }
            return Err(malformed("its log is shorter than before"));
        }
        self.set_back = false;
        let leaves = hashes(&changes.leaves, MIRROR_PAGE)?;
        let size = have.size + leaves.len() as u64;
        if size > head.size || size > LOG_ENTRIES || (leaves.is_empty() && head.size > have.size) {
            return Err(malformed("entries that its head does not have, or none that it has"));
        }
        let mut log = self.frontier(have).await?;
        leaves.iter().for_each(|leaf| drop(log.append_leaf(*leaf)));
        let proof = hashes(&changes.proof, PROOF_HASHES as u64)?;
        verify_consistency(size, head.size, &log.root(), &head.root, &proof).map_err(|_| {
            lie(format!(
                "its entries up to {size} do not lead from what was followed so far to the head that it signed"
            ))
        })?;
        let cards = self.cards(&changes.cards, have.size, &leaves)?;
        let head_note = (size == head.size).then(|| changes.head.clone());
        let step = Step { directory: head.directory, leaves, cards, head: head_note };
        Ok(Some(Proven { step, size, theirs: head.size }))
    }

    /// The log as it is here.
    async fn frontier(&self, have: LogEnd) -> Result<Frontier, Fault> {
        let log = self.directory.store.read(move |store| Frontier::load(have.size, |place| store.log_hash(place)));
        Ok(log.await?)
    }

    /// The cards of a page: each its node's own, and the entry that it says it is.
    fn cards(
        &self,
        given: &[MirrorCard],
        from: u64,
        leaves: &[Hash],
    ) -> Result<Vec<(NewCard, Logged, UnixMillis)>, Fault> {
        if given.len() > leaves.len() {
            return Err(malformed("more cards than entries"));
        }
        let mut cards = Vec::with_capacity(given.len());
        for given in given {
            let leaf = given.index.checked_sub(from).and_then(|place| leaves.get(usize::try_from(place).ok()?));
            let leaf = leaf.ok_or_else(|| malformed("a card of another page"))?;
            cards.extend(self.card(given, leaf)?);
        }
        Ok(cards)
    }

    /// One card; none where it has ended by this clock.
    fn card(&self, given: &MirrorCard, leaf: &Hash) -> Result<Option<(NewCard, Logged, UnixMillis)>, Fault> {
        let now = self.directory.now();
        let bytes = STANDARD.decode(&given.card).map_err(|_| malformed("a card that is not base64"))?;
        let salt = given.salt.as_ref().map(|text| {
            let mut salt: Salt = [0; 16];
            hex::decode_to_slice(text, &mut salt).map(|()| salt).map_err(|_| malformed("a salt that is none"))
        });
        let salt = salt.transpose()?;
        if leaf_hash(&entry(&bytes, salt.as_ref())) != *leaf {
            return Err(lie(format!("a card that it gave is not the entry {} of its log", given.index)));
        }
        let card = match Card::verify(&bytes, now) {
            Ok(card) => card,
            Err(WireError::OutOfTime { .. }) => return Ok(None),
            Err(error) => return Err(lie(format!("a card that it gave was not signed by its node ({error})"))),
        };
        if card.fields.listed != salt.is_none() {
            return Err(malformed("a listed card is salted, or an unlisted one is not"));
        }
        let seen = now.minus(Duration::from_secs(given.seen_seconds_ago));
        Ok(Some((NewCard::new(&card, bytes), Logged { index: given.index, salt }, seen)))
    }

    async fn keep(&self, step: Step) -> Result<(), Fault> {
        let now = self.directory.now();
        let kept = self.directory.store.call(move |store| store.follow(now, &step)).await;
        self.directory.note_store(kept.is_err());
        match kept? {
            None => Ok(()),
            Some(node) => Err(lie(format!("it gave an older or another card of {node} than it gave before"))),
        }
    }

    /// One page of who is present: those who are not any more go, those who came back are fetched.
    async fn ask_present(&mut self) -> Result<(), Fault> {
        let from = self.present.0;
        let path = format!("/api/v3/mirror/present?from={from}");
        let page: Present =
            self.client.get(&self.directory.identity, self.directory.now(), &path, Duration::ZERO).await?;
        let in_order = page.cards.iter().map(|card| card.index).chain(page.next).is_sorted_by(|a, b| a < b);
        if !in_order || page.cards.len() > PRESENT_PAGE || page.cards.first().is_some_and(|card| card.index < from) {
            return Err(malformed("who is present does not come in order"));
        }
        // What was superseded meanwhile comes under its new place first, and so is not taken for gone.
        self.go_on(Duration::ZERO).await?;
        let now = self.directory.now();
        let seen = |ago: u64| now.minus(Duration::from_secs(ago));
        let present: Vec<(u64, UnixMillis)> =
            page.cards.iter().map(|card| (card.index, seen(card.seen_seconds_ago))).collect();
        let to = page.next.unwrap_or(LOG_ENTRIES);
        let kept = self.directory.store.call(move |store| store.keep_present(from, to, &present)).await;
        self.directory.note_store(kept.is_err());
        for index in some(&kept?) {
            self.fetch(index).await?;
        }
        self.present = match page.next {
            Some(next) => (next, Instant::now() + PRESENT_PAUSE),
            None => {
                self.upstream.said_present(now);
                (0, Instant::now() + PRESENT_EVERY)
            }
        };
        Ok(())
    }

    /// A card whose entry was here before it was shown: approved, or no longer banned.
    async fn fetch(&mut self, index: u64) -> Result<(), Fault> {
        let end = self.directory.store.read(|store| store.log_end()).await?;
        if index >= end.size {
            return Ok(());
        }
        let changes = self.changes(index, 1, Duration::ZERO).await?;
        let leaf = self.directory.store.read(move |store| store.log_hash(position(0, index))).await?;
        if let Some(given) = changes.cards.first().filter(|card| card.index == index)
            && let Some(card) = self.card(given, &leaf)?
        {
            let directory = self.client.id();
            self.keep(Step { directory, leaves: Vec::new(), cards: vec![card], head: None }).await?;
        }
        Ok(())
    }
}

/// Some of the places that are missing, from a random one on: those that cannot be had keep no others out for ever.
fn some(missing: &[u64]) -> Vec<u64> {
    let mut from = [0; 2];
    // Without randomness the first ones are tried each time: no harm where none is kept from us.
    let _ = getrandom::fill(&mut from);
    let from = usize::from(u16::from_le_bytes(from)).checked_rem(missing.len()).unwrap_or(0);
    missing.iter().cycle().skip(from).take(missing.len().min(FETCHES)).copied().collect()
}

fn hashes(texts: &[String], most: u64) -> Result<Vec<Hash>, Fault> {
    if texts.len() as u64 > most {
        return Err(malformed("more hashes than asked for"));
    }
    let hash = |text: &String| Hash::try_from(&STANDARD.decode(text).ok()?[..]).ok();
    texts.iter().map(hash).collect::<Option<_>>().ok_or_else(|| malformed("a hash that is none"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_cards_are_all_tried_in_the_end() {
        assert_eq!(some(&[]), [0; 0]);
        assert_eq!(some(&[7]), [7]);
        let missing: Vec<u64> = (0..100).collect();
        let mut tried = std::collections::HashSet::new();
        while tried.len() < missing.len() {
            let some = some(&missing);
            assert_eq!(some.len(), FETCHES);
            tried.extend(some);
        }
    }
}
