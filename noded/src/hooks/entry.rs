//! One hook in its place: asked within its time, counted, and left alone while its breaker is open.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use openred_module::remote::HookAsk;
use openred_module::{HookRequest, Verdict};
use openred_proto::admin;
use tokio::time::{Instant, timeout};

use super::breaker::{self, Breaker, Turn};
use super::budget::{Budget, Limit};
use super::decide::Failure;
use super::order::Reason;
use super::spec::Spec;
use super::{Askable, Troubles};

/// See the file's head.
pub(super) struct Entry {
    pub(super) spec: Spec,
    pub(super) reason: Reason,
    pub(super) asked: Arc<dyn Askable>,
    pub(super) standing: Arc<Standing>,
    pub(super) troubles: Arc<Troubles>,
}

/// What outlives a change of the other hooks.
#[derive(Default)]
pub(super) struct Standing(Mutex<State>);

#[derive(Default)]
struct State {
    breaker: Breaker,
    counts: Counts,
}

/// What came of a hook's calls.
#[derive(Default)]
struct Counts {
    calls: u64,
    changed: u64,
    answered: u64,
    denied: u64,
    failed: u64,
    /// What the last failure was.
    failure: &'static str,
    /// Of those that were asked.
    took: Duration,
    worst: Duration,
    asked: u64,
}

impl Standing {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A question on its way. Given up before its end, it says nothing of the hook.
struct Asking<'a>(Option<&'a Standing>);

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        if let Some(standing) = self.0.take() {
            standing.state().breaker.left();
        }
    }
}

impl Entry {
    /// Asks the hook in the way of a call, out of that call's time.
    pub(super) async fn ask(&self, request: HookRequest, budget: &mut Budget) -> Result<Verdict, Failure> {
        let said = match budget.limit(self.spec.timeout()) {
            Some(limit) => {
                self.let_in().await;
                let begun = Instant::now();
                let said = self.within(request, limit).await;
                budget.spend(begun.elapsed());
                said
            }
            None => Err(Failure::NoTime),
        };
        self.count(&said);
        said
    }

    /// Tells an observer, beside the call's way.
    pub(super) async fn tell(self: Arc<Self>, request: HookRequest) {
        let limit = Limit { time: self.spec.timeout(), is_cut: false };
        self.let_in().await;
        let said = self.within(request, limit).await;
        self.count(&said);
    }

    /// A swap of its module holds everybody who wants something of it, for a moment: none of its time passes meanwhile, nor of the call's.
    async fn let_in(&self) {
        if let Some(held) = self.asked.held() {
            held.await;
        }
    }

    async fn within(&self, request: HookRequest, limit: Limit) -> Result<Verdict, Failure> {
        let begun = Instant::now();
        if !self.standing.state().breaker.ask(begun.into_std()) {
            return Err(Failure::Off);
        }
        let mut asking = Asking(Some(&self.standing));
        let ask = HookAsk {
            hook: self.spec.id.clone(),
            class: self.spec.class,
            changes: self.spec.changes,
            millis: u32::try_from(limit.time.as_millis()).unwrap_or(u32::MAX).max(1),
            request,
        };
        let said = match timeout(limit.time, self.asked.ask(ask)).await {
            Ok(said) => said,
            Err(_) if limit.is_cut => Err(Failure::NoTime),
            Err(_) => Err(Failure::TimedOut),
        };
        asking.0 = None;
        self.judge(&said, begun.elapsed());
        said
    }

    /// Takes the cost of a question, and what it says of the hook.
    fn judge(&self, said: &Result<Verdict, Failure>, took: Duration) {
        let now = Instant::now().into_std();
        let mut state = self.standing.state();
        let counts = &mut state.counts;
        (counts.asked, counts.took, counts.worst) = (counts.asked + 1, counts.took + took, counts.worst.max(took));
        let turn = match said {
            Ok(_) => state.breaker.noted(true, now),
            Err(failure) if failure.is_its_own() => state.breaker.noted(false, now),
            Err(_) => {
                state.breaker.left();
                Turn::None
            }
        };
        drop(state);
        let name = || self.spec.name();
        match turn {
            Turn::None => {}
            Turn::Opened => self.troubles.change(|off| {
                off.insert(name());
            }),
            Turn::Closed => self.troubles.change(|off| {
                off.remove(&name());
            }),
        }
    }

    fn count(&self, said: &Result<Verdict, Failure>) {
        let mut state = self.standing.state();
        let counts = &mut state.counts;
        counts.calls += 1;
        match said {
            Ok(Verdict::Continue) => {}
            Ok(Verdict::Mutate(_)) => counts.changed += 1,
            Ok(Verdict::Respond(_)) => counts.answered += 1,
            Ok(Verdict::Deny(_)) => counts.denied += 1,
            Err(failure) => {
                (counts.failed, counts.failure) = (counts.failed + 1, failure.name());
                tracing::debug!(hook = self.spec.name(), ?failure, "a hook has not decided");
            }
        }
    }

    /// Whether its breaker is open.
    pub(super) fn is_off(&self) -> bool {
        self.standing.state().breaker.state() != breaker::State::Closed
    }

    pub(super) fn report(&self) -> admin::Hook {
        let Spec { module, id, class, filter, fields, changes, .. } = &self.spec;
        let state = self.standing.state();
        let counts = &state.counts;
        let micros = |took: Duration| took.as_secs_f64() * 1e6;
        let names = |fields: &openred_module::Fields| fields.iter().map(|field| field.name().to_owned()).collect();
        admin::Hook {
            module: module.clone(),
            id: id.clone(),
            class: class.name().to_owned(),
            because: self.reason.to_string(),
            r#match: filter.text(),
            fields: names(&fields.and(self.spec.point.shows())),
            changes: names(&changes.and(self.spec.point.changes())),
            timeout_millis: u32::try_from(self.spec.timeout().as_millis()).unwrap_or(u32::MAX),
            on_failure: if self.spec.opens() { "open" } else { "close" }.to_owned(),
            breaker: state.breaker.state().name().to_owned(),
            calls: counts.calls,
            changed: counts.changed,
            answered: counts.answered,
            denied: counts.denied,
            failed: counts.failed,
            last_failure: counts.failure.to_owned(),
            mean_micros: if counts.asked == 0 { 0.0 } else { micros(counts.took) / counts.asked as f64 },
            worst_micros: micros(counts.worst),
        }
    }
}
