//! Looking a peer up: mirrors first, then the directories; by id, or by a prefix of it, so that who answers is not told whom this node seeks.
//!
//! A mirror is asked for what a directory has, and believed as little. What it has not is asked of the directories; that it is behind is
//! no lie; a card that its node did not sign, a head that the directory did not, or a proof that leads nowhere is named with the mirror's
//! address. Its heads are held against those that the directory shows here, as those that peers were shown are.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use chacha20poly1305::aead::{Aead as _, Payload};
use chacha20poly1305::{ChaCha20Poly1305, KeyInit as _};
use openred_proto::checked::card::Card;
use openred_proto::crowd::{InCrowd, PREFIX_DIGITS, key};
use openred_proto::id::NodeId;
use openred_proto::log::head::Head;
use tokio::time::Instant;

use super::announce::BackOff;
use super::client::{Client, Shown};
use super::honesty::Lie;
use super::{CachedCard, Directories, DirectoryError, Keep, lock};
use crate::config::LookUps;
use crate::sensitive::Sensitive;

/// A mirror's log is looked at this often when nothing asks for it.
const CHECK_EVERY: Duration = Duration::from_secs(600);
/// A silent mirror is left alone for so many times as long as it was waited for.
const SHARE: u32 = 6;
/// Shortest time between two looks.
const CHECK_PAUSE: Duration = Duration::from_secs(1);

/// How a client looks nodes up.
#[derive(Debug)]
pub(super) struct Seeking {
    how: LookUps,
    /// Digits that are asked for: as few as are answered.
    digits: AtomicUsize,
    /// A mirror that said nothing is left alone until then: who looks a peer up must not wait for it each time.
    silent: Mutex<(BackOff, Option<Instant>)>,
}

impl Seeking {
    pub(super) fn new(how: LookUps) -> Self {
        Self { how, digits: AtomicUsize::new(1), silent: Mutex::default() }
    }

    fn is_silent(&self) -> bool {
        lock(&self.silent).1.is_some_and(|until| Instant::now() < until)
    }

    /// What came of asking, and how long that took: one that does not even refuse costs its whole wait each time.
    fn note(&self, answers: bool, took: Duration) {
        let (back_off, until) = &mut *lock(&self.silent);
        if answers {
            back_off.reset();
        }
        *until = (!answers).then(|| Instant::now() + back_off.next().max(took * SHARE));
    }
}

impl Client {
    /// A node's card as this directory or mirror shows it, unverified.
    pub(super) async fn seek(&self, node: NodeId) -> Result<Shown, DirectoryError> {
        match self.seeking.how {
            LookUps::Plain => self.node(node).await,
            LookUps::Prefix => self.in_crowd(node).await,
        }
    }

    /// A verified card is to be found in the log. Who asks for a proof says where the card stands there, and so whose it is: where nobody is
    /// to be told that, none is asked for.
    pub(super) fn gave(&self, card: &Card, shown: Shown) {
        if self.seeking.how == LookUps::Plain {
            self.watch.gave(card, shown.card, shown.place);
        }
    }

    /// The same out of all whose ids begin alike.
    async fn in_crowd(&self, node: NodeId) -> Result<Shown, DirectoryError> {
        let digits = hex::encode(node.as_bytes());
        loop {
            let length = self.seeking.digits.load(Ordering::Relaxed).clamp(1, PREFIX_DIGITS);
            match self.by_prefix(&digits[..length]).await {
                Err(DirectoryError::PrefixWide) if length < PREFIX_DIGITS => {
                    self.seeking.digits.fetch_max(length + 1, Ordering::Relaxed);
                }
                Err(error) => return Err(error),
                Ok(sealed) => {
                    let found = sealed.iter().find_map(|sealed| open(&digits[..length], &node, sealed));
                    let found = InCrowd::decode(&found.ok_or(DirectoryError::UnknownNode)?)?;
                    return Ok(Shown { card: found.card.into(), place: None, fresh: false });
                }
            }
        }
    }
}

/// Opens a sealed card of this node; none when it is another's.
fn open(prefix: &str, node: &NodeId, sealed: &[u8]) -> Option<Vec<u8>> {
    let (nonce, sealed) = sealed.split_first_chunk::<12>()?;
    let payload = Payload { msg: sealed, aad: prefix.as_bytes() };
    ChaCha20Poly1305::new(&key(node).into()).decrypt(&(*nonce).into(), payload).ok()
}

impl Directories {
    /// A peer's card: from a mirror, else from the directories; the first good answer counts.
    ///
    /// # Errors
    /// The worst of what the directories said: a lie before a refusal before silence.
    pub(super) async fn look_up(&self, peer: NodeId, keep: Keep) -> Result<CachedCard, DirectoryError> {
        match self.ask_mirrors(peer, keep).await {
            Some(found) => Ok(found),
            None => self.ask_directories(peer, keep).await,
        }
    }

    /// The same where what is known does not hold any more: the directories have it first. Mirrors are asked for what those do not give.
    ///
    /// # Errors
    /// As [`Directories::look_up`].
    pub(super) async fn look_up_anew(&self, peer: NodeId) -> Result<CachedCard, DirectoryError> {
        match self.ask_directories(peer, Keep::Card).await {
            Err(error) if !error.is_dishonest() => self.ask_mirrors(peer, Keep::Card).await.ok_or(error),
            answer => answer,
        }
    }

    async fn ask_directories(&self, peer: NodeId, keep: Keep) -> Result<CachedCard, DirectoryError> {
        let mut worst = DirectoryError::None;
        for client in &self.clients {
            let answer = self.look_up_at(client, peer, keep).await;
            match answer.as_ref().err() {
                error if !client.is_a_mirror() => self.honesty.judge(client.address(), peer, error),
                Some(error) => self.judge_mirror(client, peer, error),
                None => {}
            }
            match answer {
                Ok(found) => {
                    // The others are asked as well, in the background, for whom somebody here asked.
                    let others = self.clients.iter().filter(|other| keep == Keep::Card && !Arc::ptr_eq(other, client));
                    others.for_each(|other| other.watch.cross(found.card.node_id));
                    return Ok(found);
                }
                Err(error) if error.gravity() >= worst.gravity() => worst = error,
                Err(_) => {}
            }
        }
        Err(worst)
    }

    async fn look_up_at(&self, client: &Client, peer: NodeId, keep: Keep) -> Result<CachedCard, DirectoryError> {
        let shown = client.seek(peer).await?;
        client.watch.look();
        let taken = self.take_shown(client, peer, shown.card.clone(), keep).await;
        match &taken {
            Ok(found) if found.bytes == shown.card => client.gave(&found.card, shown),
            // That a mirror is behind is no lie, and whether it is one is not known before the first announcement.
            Err(DirectoryError::Rollback) if client.may_be_a_mirror() => return Err(DirectoryError::Behind),
            Err(error) if error.is_dishonest() && !client.is_a_mirror() => {
                self.keep_lie(client, peer, error, &shown.card).await;
            }
            _ => {}
        }
        taken
    }

    async fn ask_mirrors(&self, peer: NodeId, keep: Keep) -> Option<CachedCard> {
        for mirror in self.mirrors.iter().filter(|mirror| !mirror.seeking.is_silent()) {
            let begun = Instant::now();
            let answer = self.ask_mirror(mirror, peer, keep).await;
            mirror.seeking.note(!answer.as_ref().is_err_and(DirectoryError::is_silence), begun.elapsed());
            match answer {
                Ok(found) => return Some(found),
                Err(error) => self.judge_mirror(mirror, peer, &error),
            }
        }
        None
    }

    /// It may be behind what was seen before; what its node did not sign, it made.
    fn judge_mirror(&self, mirror: &Client, peer: NodeId, error: &DirectoryError) {
        if matches!(error, DirectoryError::BadAnswer(_)) && error.is_dishonest() {
            return self.honesty.mirror_lied(mirror.address(), Lie::of(error));
        }
        let peer = Sensitive(peer.short());
        tracing::debug!(mirror = %mirror.address(), %peer, %error, "not found at a mirror");
    }

    async fn ask_mirror(&self, mirror: &Client, peer: NodeId, keep: Keep) -> Result<CachedCard, DirectoryError> {
        let shown = mirror.seek(peer).await?;
        let found = self.take_shown(mirror, peer, shown.card.clone(), keep).await?;
        if found.bytes == shown.card {
            mirror.gave(&found.card, shown);
        }
        Ok(found)
    }

    /// Watches one mirror's log, forever.
    pub(super) async fn watch_mirror(self: Arc<Self>, mirror: Arc<Client>) {
        loop {
            mirror.watch.wait(CHECK_EVERY).await;
            if let Err(error) = self.look_at_mirror(&mirror).await {
                tracing::debug!(mirror = %mirror.address(), %error, "its log was not looked at");
            }
            tokio::time::sleep(CHECK_PAUSE).await;
        }
    }

    /// One look at a mirror's log: its head is the directory's, and goes into what that one is held to; its cards are in it.
    pub(super) async fn look_at_mirror(&self, mirror: &Client) -> Result<(), DirectoryError> {
        let note: Bytes = mirror.log_head().await?;
        let id = mirror.address().id;
        let Ok(head) = Head::verify(&note, &id) else {
            self.honesty.mirror_lied(mirror.address(), Lie::BadHead);
            return Ok(());
        };
        if let Some(directory) = self.clients.iter().find(|client| client.address().id == id && !client.is_a_mirror()) {
            directory.watch.was_shown(id, head, note.clone());
        }
        self.find_given_by_mirror(mirror, &head, &note).await
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_mirror_that_is_waited_for_in_vain_is_left_alone_for_longer_than_one_that_refuses() {
        let seeking = Seeking::new(LookUps::Plain);
        for (took, left_alone) in [(Duration::ZERO, Duration::ZERO), (Duration::from_secs(5), Duration::from_secs(29))]
        {
            seeking.note(false, took);
            tokio::time::advance(left_alone).await;
            assert!(seeking.is_silent(), "{took:?}");
            tokio::time::advance(Duration::from_secs(2)).await;
            assert!(!seeking.is_silent(), "{took:?}");
        }
        seeking.note(false, Duration::from_secs(10));
        seeking.note(true, Duration::from_secs(10));
        assert!(!seeking.is_silent());
    }

    #[test]
    fn a_sealed_card_is_opened_for_its_node_and_prefix_alone() {
        let (node, other) = (NodeId::from_bytes([1; 32]), NodeId::from_bytes([2; 32]));
        let nonce = [9; 12];
        let payload = Payload { msg: b"card", aad: b"01" };
        let sealed = ChaCha20Poly1305::new(&key(&node).into()).encrypt(&nonce.into(), payload).unwrap();
        let sealed = [&nonce[..], &sealed].concat();
        assert_eq!(open("01", &node, &sealed).unwrap(), b"card");
        assert!(open("01", &other, &sealed).is_none() && open("0", &node, &sealed).is_none());
        assert!(open("01", &node, &sealed[..11]).is_none() && open("01", &node, &[]).is_none());
    }
}
