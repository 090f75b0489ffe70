//! Retention by time: what is older than the operator wants is deleted, a few at a time, by a timer.
//!
//! Of what was received, read messages go, or all, as the settings say; of what was sent, whatever is not waiting. Ids of
//! received messages that went are remembered as those of deleted ones: a repeated delivery is acknowledged and shows
//! nothing again. The age is counted from a message's arrival, or sending, by this node's clock.

use std::sync::{Mutex, MutexGuard};

use openred_module::{Committed, Context, HostError, Scan, TimerId, UnixMillis};

use crate::Messaging;
use crate::error::MessagingError;
use crate::settings::Settings;
use crate::store::{self, ATTEMPTS, Change, Sequence, Stored, Writers};

type Result<T> = std::result::Result<T, MessagingError>;

/// The timer of the sweep.
pub(crate) const SWEEP_TIMER: TimerId = 3;
/// From one sweep to the next, in milliseconds: days are what is counted.
const EVERY: u64 = 6 * 3_600_000;
/// From one part of a sweep to the next, in milliseconds: calls come in between.
const PAUSE: u64 = 1_000;
/// A part that was cut short goes on after this long, in milliseconds.
const AGAIN: u64 = 60_000;
/// Messages looked at together: at 256 KiB each, a few megabytes.
const PAGE: usize = 32;
/// Pages of one part.
const PAGES: usize = 32;

/// Where a sweep stands: the list that it is in, and how far.
#[derive(Debug, Clone, Copy)]
enum At {
    Received(Sequence),
    Sent(Sequence),
}

/// A sweep under way. Memory only: after a restart it begins anew.
#[derive(Default)]
pub(crate) struct Sweep(Mutex<Option<At>>);

impl Sweep {
    fn at(&self) -> MutexGuard<'_, Option<At>> {
        self.0.lock().expect("no panic happens under this lock")
    }
}

/// What goes.
#[derive(Debug, Clone, Copy)]
struct Rule {
    /// Stored before.
    before: UnixMillis,
    unread_too: bool,
}

impl Messaging {
    /// The timer: one part of a sweep.
    pub(crate) async fn sweep(&self, context: &Context) {
        // First, so that it goes on whatever becomes of this part.
        context.set_timer(SWEEP_TIMER, context.now() + EVERY);
        let settings = match Settings::now(context) {
            Ok(settings) => settings,
            Err(error) => return tracing::warn!(%error, "nothing is swept"),
        };
        let Some(kept) = settings.kept_millis() else { return };
        let rule = Rule { before: context.now().saturating_sub(kept), unread_too: settings.sweeps_unread() };
        // A host ends handlers that take too long: what this part has seen to is not seen to again.
        context.set_timer(SWEEP_TIMER, context.now() + AGAIN);
        let (swept, next) = match self.sweep_on(context, rule).await {
            Ok(done) => done,
            Err(error) => {
                *self.sweep.at() = None;
                context.set_timer(SWEEP_TIMER, context.now() + EVERY);
                return tracing::warn!(%error, "a sweep was cut short");
            }
        };
        if swept > 0 {
            tracing::debug!(swept, "messages older than `retention_days` were deleted");
        }
        context.set_timer(SWEEP_TIMER, context.now() + if next.is_some() { PAUSE } else { EVERY });
    }

    /// One part, from where the last one ended: how many of those received went, and where to go on, if this was not all.
    async fn sweep_on(&self, context: &Context, rule: Rule) -> Result<(u64, Option<At>)> {
        let mut swept = 0;
        let mut next = Some(self.sweep.at().unwrap_or(At::Received(0)));
        for _ in 0..PAGES {
            let Some(at) = next else { break };
            next = match at {
                At::Received(after) => {
                    let (gone, next) = self.sweep_received(context, rule, after).await?;
                    swept += gone;
                    next.map(At::Received).or(Some(At::Sent(0)))
                }
                At::Sent(after) => self.sweep_sent(context, rule, after).await?.map(At::Sent),
            };
            *self.sweep.at() = next;
        }
        if swept > 0 {
            self.full.look_again(context).await?;
        }
        Ok((swept, next))
    }

    /// One page of what was received: how many went, and where the next page begins.
    async fn sweep_received(&self, context: &Context, rule: Rule, after: Sequence) -> Result<(u64, Option<Sequence>)> {
        let page = context.scan(Scan::prefix("i/").after(Some(store::incoming(after))).limit(PAGE)).await?;
        let (mut old, mut last, mut gone) = (false, None, Vec::new());
        for (key, row) in &page.rows {
            let sequence = store::sequence_of(key)?;
            last = Some(sequence);
            if Stored::decode(row)?.at >= rule.before {
                continue;
            }
            old = true;
            if rule.unread_too || context.get(store::unread(sequence)).await?.is_none() {
                gone.push(sequence);
            }
        }
        let swept = self.store.delete(context, None, &gone).await?;
        // In order of arrival: behind a page without an old one there is none, clocks that jump apart.
        Ok((swept, last.filter(|_| page.more && old)))
    }

    /// The same of what was sent.
    async fn sweep_sent(&self, context: &Context, rule: Rule, after: Sequence) -> Result<Option<Sequence>> {
        let page = context.scan(Scan::prefix("o/").after(Some(store::outgoing(after))).limit(PAGE)).await?;
        let (mut old, mut last, mut gone) = (false, None, Vec::new());
        for (key, row) in &page.rows {
            let sequence = store::sequence_of(key)?;
            last = Some(sequence);
            let stored = Stored::decode(row)?;
            if stored.at < rule.before {
                old = true;
                gone.push((sequence, stored));
            }
        }
        self.store.forget_sent(context, &gone).await?;
        Ok(last.filter(|_| page.more && old))
    }
}

impl Writers {
    /// Forgets those of these sent messages that wait for nothing any more, in one transaction.
    async fn forget_sent(&self, context: &Context, which: &[(Sequence, Stored)]) -> Result<()> {
        let _turn = self.turn().await;
        for _ in 0..ATTEMPTS {
            let (mut change, mut some) = (Change::new(context), false);
            for (sequence, stored) in which {
                let key = store::ended(*sequence);
                let Some(end) = context.get(key.clone()).await? else { continue };
                some = true;
                change.expect(key.clone(), Some(end));
                change.delete(key);
                change.delete(store::outgoing(*sequence));
                change.delete(store::attached(*sequence));
                change.delete(store::had_id(*sequence));
                change.delete(store::conversation(&stored.peer, Some(*sequence)));
                change.delete(store::given(&stored.peer, &stored.envelope.id));
            }
            if !some || change.commit().await? == Committed::Yes {
                return Ok(());
            }
        }
        Err(HostError::Storage.into())
    }
}
