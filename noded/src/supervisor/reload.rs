//! SIGHUP: the configuration is read again, by the rules of the start. What holds up replaces `noded`, which alone reads it;
//! what does not is named in the log, and the last one that worked stays.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use crate::cli::Failure;
use crate::config::{LogFormat, NodeConfig};

/// Reads the configuration as the start did.
type Reread = Box<dyn Fn() -> Result<NodeConfig, Failure>>;

/// The configuration of `noded`, now and before.
pub(super) struct Settings {
    reread: Reread,
    held: Mutex<Held>,
    reloaded: Notify,
}

struct Held {
    /// What the next `noded` gets.
    current: NodeConfig,
    /// What the last one that came up got.
    good: NodeConfig,
}

impl Settings {
    pub(super) fn new(config: NodeConfig, reread: Reread) -> Self {
        let held = Held { current: config.clone(), good: config };
        Self { reread, held: Mutex::new(held), reloaded: Notify::new() }
    }

    /// What `noded` reads.
    pub(super) fn text(&self) -> String {
        toml::to_string(&self.held().current).expect("a configuration that was read can be written")
    }

    /// How modules write their lines.
    pub(super) fn log(&self) -> (&'static str, LogFormat) {
        let held = self.held();
        (held.current.log.level.as_str(), held.current.log.format)
    }

    /// What may be granted to modules at most.
    pub(super) fn ceiling(&self) -> openred_module::manifest::Grants {
        self.held().current.modules.ceiling()
    }

    /// The vault's quota of signatures.
    pub(super) fn signatures_per_second(&self) -> u32 {
        self.held().current.keys.signatures_per_second
    }

    /// How long one that opens the keystore is waited for.
    pub(super) fn patience(&self) -> Duration {
        self.held().current.keys.patience()
    }

    /// Whom closed segments of the audit trail are sealed to, if to anybody.
    pub(super) fn auditor(&self) -> Option<String> {
        Some(self.held().current.audit.auditor.clone()).filter(|auditor| !auditor.is_empty())
    }

    /// Reads the configuration again. `listen`, `uid_base`, `keys` and `monitor` are the supervisor's own: they stay until it is restarted.
    pub(super) fn reload(&self) {
        let mut config = match (self.reread)() {
            Ok(config) => config,
            Err(failure) => return tracing::error!("SIGHUP: {failure}; the configuration stays as it was"),
        };
        let mut held = self.held();
        let own = |config: &NodeConfig| (config.listen, config.uid_base, config.keys.clone(), config.monitor.clone());
        if own(&config) != own(&held.current) {
            tracing::warn!("SIGHUP: `listen`, `uid_base`, `keys` and `monitor` change only when the node is restarted");
            (config.listen, config.uid_base, config.keys, config.monitor) = own(&held.current);
        }
        if config == held.current {
            return tracing::info!("SIGHUP: nothing else changed");
        }
        held.current = config;
        tracing::info!("SIGHUP: noded restarts with the new configuration");
        self.reloaded.notify_one();
    }

    /// Returns when there is a new configuration.
    pub(super) async fn reloaded(&self) {
        self.reloaded.notified().await;
    }

    /// `noded` came up with the current one.
    pub(super) fn taken(&self) {
        let mut held = self.held();
        held.good = held.current.clone();
    }

    /// `noded` did not come up: the next one gets what worked before.
    pub(super) fn refused(&self) {
        let mut held = self.held();
        if held.current != held.good {
            tracing::error!("noded did not come up with the new configuration; the one before is taken again");
            held.current = held.good.clone();
        }
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::cell::RefCell;
    use std::rc::Rc;

    use super::*;

    #[test]
    fn what_fails_leaves_what_worked() {
        let next = Rc::new(RefCell::new(Ok(NodeConfig::default())));
        let read = Rc::clone(&next);
        let settings = Settings::new(
            NodeConfig::default(),
            Box::new(move || match &*read.borrow() {
                Ok(config) => Ok(NodeConfig::clone(config)),
                Err(()) => Err(Failure::usage("no", "")),
            }),
        );
        let first = settings.text();
        *next.borrow_mut() = Err(());
        settings.reload();
        assert_eq!(settings.text(), first);
        let named = NodeConfig { name: "new".into(), uid_base: 70_000, ..NodeConfig::default() };
        *next.borrow_mut() = Ok(named.clone());
        settings.reload();
        let second = settings.text();
        assert!(second.contains("new") && !second.contains("70000"), "{second}");
        settings.refused();
        assert_eq!(settings.text(), first);
        settings.reload();
        settings.taken();
        settings.refused();
        assert_eq!(settings.text(), second);
    }
}
