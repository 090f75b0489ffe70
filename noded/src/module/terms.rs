//! The terms of a module's life: when it is started, how long its start and its end may take, when nobody needs it, and the operator's
//! settings for it, which it is handed before its start and again whenever they change.
//!
//! In: its manifest, the operator's `modules.idle_seconds`, the settings as the supervisor has checked them against the manifest. Out: to the
//! module itself, whose refusal ends it by name.

use std::sync::Arc;
use std::time::Duration;

use openred_module::manifest::{Manifest, Start};
use openred_module::remote::Attached;
use tokio::sync::{oneshot, watch};
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

/// How long a module may take to look at its settings.
const LOOKED: Duration = Duration::from_secs(10);

/// See the file's head.
pub(super) struct Terms {
    /// Not started before somebody needs it.
    pub(super) is_lazy: bool,
    /// Ended when nobody has needed it for so long.
    pub(super) idle: Option<Duration>,
    /// How long its own start may take.
    pub(super) start: Duration,
    /// How long it may take to end what it does.
    pub(super) stop: Duration,
    settings: watch::Receiver<String>,
}

impl Terms {
    /// What the manifest says, as far as the operator's `idle` does not say less.
    pub(super) fn new(manifest: &Manifest, idle: Option<Duration>, settings: watch::Receiver<String>) -> Self {
        let seconds = |count: u32| Duration::from_secs(count.into());
        let own = Some(manifest.limits.idle_seconds).filter(|idle| *idle > 0).map(seconds);
        Self {
            is_lazy: manifest.start == Start::Lazy || idle.is_some(),
            idle: own.into_iter().chain(idle).min(),
            start: seconds(manifest.limits.start_seconds),
            stop: seconds(manifest.limits.stop_seconds),
            settings,
        }
    }

    /// Hands the settings over as they are now; what follows the changes from there, or why the module does not take them.
    pub(super) async fn settle(&self, attached: &Attached) -> Result<Settled, String> {
        let mut settled = Settled(self.settings.clone());
        settled.hand_over(attached).await?;
        Ok(settled)
    }
}

/// A module that has its settings.
pub(super) struct Settled(watch::Receiver<String>);

impl Settled {
    async fn hand_over(&mut self, attached: &Attached) -> Result<(), String> {
        let settings = self.0.borrow_and_update().clone();
        if settings.is_empty() {
            // Its manifest declares none.
            return Ok(());
        }
        match timeout(LOOKED, attached.configure(settings)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(refused)) => Err(format!("it does not take its settings: {}", refused.detail)),
            Err(_) => Err(String::from("it did not say in time whether it takes its settings")),
        }
    }

    /// Hands over every change; returns with why the module does not take one.
    pub(super) async fn follow(mut self, attached: &Attached) -> String {
        loop {
            if self.0.changed().await.is_err() {
                // Whoever changes them goes with the module itself.
                return std::future::pending().await;
            }
            if let Err(refused) = self.hand_over(attached).await {
                return refused;
            }
            tracing::info!(module = attached.module(), "has new settings");
        }
    }
}

/// The same, beside everything else: what it refuses is heard of by [`Settling::refused`].
pub(super) struct Settling {
    refused: oneshot::Receiver<String>,
    _task: AbortOnDropHandle<()>,
}

impl Settling {
    pub(super) fn begin(settled: Settled, attached: Arc<Attached>) -> Self {
        let (refuse, refused) = oneshot::channel();
        let task = tokio::spawn(async move {
            // Whoever hears of it may have gone.
            let _ = refuse.send(settled.follow(&attached).await);
        });
        Self { refused, _task: AbortOnDropHandle::new(task) }
    }

    /// Waits until it does not take a change, and says why.
    pub(super) async fn refused(&mut self) -> String {
        match (&mut self.refused).await {
            Ok(why) => why,
            Err(_) => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn the_operator_says_less_and_never_more() {
        let terms = |limits: &str, idle: Option<u64>| {
            let text = format!("id = \"m\"\nversion = \"1.0.0\"\nprogram = \"m\"\ndescription = \"d\"\n{limits}");
            let (_, settings) = watch::channel(String::new());
            let manifest = Manifest::parse("openred.toml", &text).unwrap();
            let terms = Terms::new(&manifest, idle.map(Duration::from_secs), settings);
            (terms.is_lazy, terms.idle.map(|idle| idle.as_secs()))
        };
        assert_eq!(terms("", None), (false, None));
        assert_eq!(terms("", Some(9)), (true, Some(9)));
        assert_eq!(terms("[limits]\nidle_seconds = 30\n", Some(40)), (true, Some(30)));
        assert_eq!(terms("[limits]\nidle_seconds = 50\n", Some(9)), (true, Some(9)));
        assert_eq!(terms("[limits]\nidle_seconds = 50\n", None), (false, Some(50)));
        assert_eq!(terms("start = \"lazy\"\n", None), (true, None));
    }
}
