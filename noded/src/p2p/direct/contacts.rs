//! Open contacts: sessions without a link that wait until two people have compared their words. In memory alone: whatever ends this
//! process ends them, and leaves nothing half made.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use openred_proto::id::{NodeId, UnixMillis};

use crate::p2p::connections::Reach;
use crate::session::Session;
use crate::session::keys::SessionTag;

/// Contacts of strangers that are open at once: as many as may be half-open.
pub(crate) const CONTACTS: usize = openred_proto::limits::HALF_OPEN_DIRECT;
/// Of those, from one address.
const PER_ADDRESS: usize = 8;
/// Contacts that this node has begun and that are open at once, beside those: strangers leave the operator his own.
pub(in crate::p2p) const OURS: usize = 16;
/// Two people find each other on the telephone within this time: as long as a directory keeps an offer.
pub(crate) const LIFE: Duration = openred_proto::limits::OFFER_IN_DIRECTORY;
/// Questions that one contact may ask: its offer every two seconds for as long as it lives, and a few.
const QUESTIONS: u32 = 320;

/// How a contact came about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::p2p) enum Came {
    /// This node went there.
    To(Reach),
    /// The other side came from there (see `guard::network`).
    From(IpAddr),
}

/// One open contact.
#[derive(Debug)]
pub(crate) struct Contact {
    pub(crate) session: Arc<Session>,
    /// Who the other side has proved to be.
    pub(crate) peer: NodeId,
    pub(in crate::p2p) came: Came,
    /// When it was opened, for people.
    pub(crate) at: UnixMillis,
    asked: AtomicU32,
    /// The stranger has brought an offer, which was taken or waits.
    has_offer: AtomicBool,
}

impl Contact {
    pub(in crate::p2p) fn new(session: Session, came: Came, at: UnixMillis) -> Arc<Self> {
        let (asked, has_offer) = (AtomicU32::new(0), AtomicBool::new(false));
        Arc::new(Self { peer: session.peer, session: Arc::new(session), came, at, asked, has_offer })
    }

    /// Whether this node began it.
    pub(crate) const fn is_ours(&self) -> bool {
        matches!(self.came, Came::To(_))
    }

    /// What two people compare.
    pub(crate) fn mutual_link(&self) -> &[u8; 16] {
        &self.session.mutual_link
    }

    /// Whether it is open at `now`: neither its own time nor its session's is over (`sessions.life_seconds` may be shorter).
    pub(crate) fn is_open(&self, now: Instant) -> bool {
        let serves = if self.is_ours() { self.session.is_live(now) } else { self.session.is_receiving(now) };
        serves && now.saturating_duration_since(self.session.opened_at()) < LIFE
    }

    /// Counts a question; false when there were too many.
    pub(crate) fn count(&self) -> bool {
        self.asked.fetch_add(1, Ordering::Relaxed) < QUESTIONS
    }

    /// Its offer is here: it does not make way for others any more.
    pub(in crate::p2p) fn set_has_offer(&self) {
        self.has_offer.store(true, Ordering::Relaxed);
    }

    /// Where a stranger came from.
    const fn from(&self) -> Option<IpAddr> {
        match self.came {
            Came::From(address) => Some(address),
            Came::To(_) => None,
        }
    }

    /// The same of one that may make way for another.
    fn spare_from(&self) -> Option<IpAddr> {
        self.from().filter(|_| !self.has_offer.load(Ordering::Relaxed))
    }
}

/// All of them, oldest first.
#[derive(Debug, Default)]
pub(crate) struct Contacts(Mutex<Vec<Arc<Contact>>>);

impl Contacts {
    /// Whether one more may come from `address`.
    pub(crate) fn has_room(&self, address: IpAddr, now: Instant) -> bool {
        let open = self.open(now);
        let of_address = open.iter().filter(|contact| contact.from() == Some(address)).count();
        of_address < PER_ADDRESS && (strangers(&open) < CONTACTS || spare(&open).is_some())
    }

    /// Whether this node may begin one with `peer`.
    pub(in crate::p2p) fn has_room_to(&self, peer: &NodeId, now: Instant) -> bool {
        self.open(now).iter().filter(|contact| contact.is_ours() && contact.peer != *peer).count() < OURS
    }

    /// Takes one in, in the place of an older one with the same peer the same way. False when there is no room.
    pub(crate) fn insert(&self, contact: &Arc<Contact>, now: Instant) -> bool {
        let mut open = self.open(now);
        open.retain(|older| older.peer != contact.peer || older.is_ours() != contact.is_ours());
        if contact.is_ours() {
            if open.len() - strangers(&open) >= OURS {
                return false;
            }
        } else if strangers(&open) >= CONTACTS {
            let Some(leaves) = spare(&open) else { return false };
            open.remove(leaves);
        }
        open.push(Arc::clone(contact));
        true
    }

    /// The contact of an incoming request.
    pub(crate) fn by_tag(&self, tag: &SessionTag, now: Instant) -> Option<Arc<Contact>> {
        self.open(now).iter().find(|contact| contact.session.incoming_tag() == tag).cloned()
    }

    /// The contact that this node has made there.
    pub(in crate::p2p) fn at(&self, reach: &Reach, now: Instant) -> Option<Arc<Contact>> {
        let there = |contact: &&Arc<Contact>| matches!(&contact.came, Came::To(to) if to == reach);
        self.open(now).iter().find(there).cloned()
    }

    pub(crate) fn all(&self, now: Instant) -> Vec<Arc<Contact>> {
        self.open(now).clone()
    }

    /// Ends one.
    pub(crate) fn remove(&self, contact: &Arc<Contact>) {
        self.lock().retain(|other| !Arc::ptr_eq(other, contact));
    }

    /// Ends all with `peer`.
    pub(crate) fn remove_peer(&self, peer: &NodeId) {
        self.lock().retain(|contact| contact.peer != *peer);
    }

    /// Drops those whose time is over: their keys go with them.
    pub(in crate::p2p) fn sweep(&self, now: Instant) {
        drop(self.open(now));
    }

    /// How many there are, whether or not their time is over.
    #[cfg(test)]
    pub(in crate::p2p) fn kept(&self) -> usize {
        self.lock().len()
    }

    fn open(&self, now: Instant) -> MutexGuard<'_, Vec<Arc<Contact>>> {
        let mut contacts = self.lock();
        contacts.retain(|contact| contact.is_open(now));
        contacts
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Contact>>> {
        self.0.lock().expect("nothing panics while it holds the contacts")
    }
}

fn strangers(open: &[Arc<Contact>]) -> usize {
    open.iter().filter(|contact| !contact.is_ours()).count()
}

/// Which stranger makes way for another: one that has brought no offer, the oldest of the address from which most of these have come. So
/// whoever fills the places with names that he has just made up fills them over and over at his own cost.
fn spare(open: &[Arc<Contact>]) -> Option<usize> {
    let of = |address| open.iter().filter(|other| other.spare_from() == Some(address)).count();
    // Of several that are alike the last one is taken: from the newest to the oldest.
    let spare = open.iter().enumerate().rev().filter_map(|(place, contact)| Some((place, of(contact.spare_from()?))));
    spare.max_by_key(|(_, many)| *many).map(|(place, _)| place)
}
