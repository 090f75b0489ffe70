//! Keeping this node announced: one loop a directory. The card is signed once for all of them and renewed at a third of its
//! life; in between the same bytes are sent again as a heartbeat, as often as the directory asks.

use std::sync::Arc;
use std::time::Duration;

use openred_proto::pause;

use super::client::{Client, Standing};
use super::{Directories, DirectoryError};
use crate::clock;
use crate::health::Condition;
use crate::keys::SignedCard;

/// First pause after a failure; doubled each time.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// Longest pause after a failure.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// Longest time between two announcements, whatever a directory says.
const LONGEST_LEASE: Duration = Duration::from_secs(3600);
/// Shortest time between two announcements, whatever a directory says.
const SHORTEST_LEASE: Duration = Duration::from_secs(5);

/// Pauses after failures of a directory.
#[derive(Debug)]
pub(super) struct BackOff(pause::BackOff);

impl Default for BackOff {
    fn default() -> Self {
        Self(pause::BackOff::new(FIRST_PAUSE, LONGEST_PAUSE))
    }
}

impl BackOff {
    pub(super) fn reset(&mut self) {
        self.0.reset();
    }

    pub(super) fn next(&mut self) -> Duration {
        let mut spread = [0];
        getrandom::fill(&mut spread).expect("the kernel's generator answers since the probe at start");
        self.0.next(spread[0])
    }
}

impl Directories {
    /// Announces at one directory, forever.
    pub(super) async fn announce(self: Arc<Self>, client: Arc<Client>) {
        let mut back_off = BackOff::default();
        loop {
            let pause = match self.announce_once(&client).await {
                Ok(again) => {
                    back_off.reset();
                    client.stands(Standing::Registered);
                    client.registered.notify_one();
                    again.clamp(SHORTEST_LEASE, LONGEST_LEASE)
                }
                Err(error) => {
                    tracing::debug!(directory = %client.address(), %error, "not announced");
                    client.stands(standing_of(error));
                    back_off.next()
                }
            };
            self.report();
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = client.announce_now.notified() => tokio::time::sleep(FIRST_PAUSE).await,
            }
        }
    }

    async fn announce_once(&self, client: &Client) -> Result<Duration, DirectoryError> {
        let card = self.own_card().await?;
        match client.register(&card.statement).await {
            // The directory holds a newer card of this node, or another of this sequence: a fresh one is above both.
            Err(DirectoryError::Refused(409)) => {
                *self.own.lock().await = None;
                let card = self.own_card().await?;
                client.register(&card.statement).await
            }
            outcome => outcome,
        }
    }

    /// This node's card, signed anew at a third of its life.
    pub(super) async fn own_card(&self) -> Result<SignedCard, DirectoryError> {
        let mut own = self.own.lock().await;
        let now = clock::now();
        if let Some((card, signed_at)) = own.as_ref()
            && now < signed_at.plus(self.card_life / 3)
        {
            return Ok(card.clone());
        }
        let suites = *super::lock(&self.suites);
        let card = self.keys.sign_card(self.card.clone(), suites, self.card_life).await?;
        *own = Some((card.clone(), now));
        Ok(card)
    }

    /// Raises or clears the conditions that follow from how the directories stand.
    fn report(&self) {
        let now = clock::now();
        let standings: Vec<Standing> = self.clients.iter().map(|client| client.standing()).collect();
        let refused = standings.iter().find_map(|standing| match standing {
            Standing::Refused(error) => Some(error),
            _ => None,
        });
        let unreachable = standings.iter().find_map(|standing| match standing {
            Standing::Unreachable(error) => Some(error),
            _ => None,
        });
        match refused {
            Some(error) => self.health.raise(Condition::DirectoryRefused, now, error.to_string()),
            None => self.health.clear(Condition::DirectoryRefused),
        }
        match unreachable.filter(|_| !standings.contains(&Standing::Registered)) {
            Some(error) => self.health.raise(Condition::DirectoryUnreachable, now, error.to_string()),
            None => self.health.clear(Condition::DirectoryUnreachable),
        }
        match self.clients.iter().find_map(|client| client.clock_error()) {
            Some(off) => self.health.raise(Condition::ClockOff, now, format!("off by {} s", off.as_secs())),
            None => self.health.clear(Condition::ClockOff),
        }
    }
}

const fn standing_of(error: DirectoryError) -> Standing {
    match error {
        DirectoryError::Refused(_)
        | DirectoryError::BadAnswer(_)
        | DirectoryError::Unregistered
        | DirectoryError::Mirror
        | DirectoryError::Behind
        | DirectoryError::WorkWanted(_)
        | DirectoryError::InviteWanted
        | DirectoryError::Quarantined
        | DirectoryError::Succeeded => Standing::Refused(error),
        _ => Standing::Unreachable(error),
    }
}
