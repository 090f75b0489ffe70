//! SIGHUP: the configuration is read again, by the rules of the start. What holds up replaces `noded`, which alone reads it;
//! what does not is named in the log, and the last one that worked stays.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use crate::cli::Failure;
use crate::config::{LogFormat, ModulesConfig, NodeConfig};

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

    /// All of it.
    pub(super) fn current(&self) -> NodeConfig {
        self.held().current.clone()
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

    /// Reads the configuration again. `listen`, `uid_base`, `keys`, `monitor` and `auth` are the supervisor's own: they stay until it is restarted.
    pub(super) fn reload(&self) {
        let mut config = match (self.reread)() {
            Ok(config) => config,
            Err(failure) => return tracing::error!("SIGHUP: {failure}; the configuration stays as it was"),
        };
        let mut held = self.held();
        let own = |config: &NodeConfig| {
            (config.listen, config.uid_base, config.keys.clone(), config.monitor.clone(), config.auth.clone())
        };
        if own(&config) != own(&held.current) {
            tracing::warn!(
                "SIGHUP: `listen`, `uid_base`, `keys`, `monitor` and `auth` change only when the node is restarted"
            );
            (config.listen, config.uid_base, config.keys, config.monitor, config.auth) = own(&held.current);
        }
        if config == held.current {
            return tracing::info!("SIGHUP: nothing else changed");
        }
        // What is the supervisor's to tell of modules is told to the `noded` that runs.
        let rest = |config: &NodeConfig| NodeConfig {
            module: Default::default(),
            modules: ModulesConfig { idle_seconds: config.modules.idle_seconds, ..ModulesConfig::default() },
            ..config.clone()
        };
        let only_modules = rest(&config) == rest(&held.current);
        if only_modules && held.good == held.current {
            held.good = config.clone();
        }
        held.current = config;
        if only_modules {
            return tracing::info!("SIGHUP: modules change, noded goes on");
        }
        tracing::info!("SIGHUP: noded restarts with the new configuration");
        self.reloaded.notify_one();
    }

    /// Has `noded` start anew, for what it reads only then.
    pub(super) fn begin_anew(&self, why: &str) {
        tracing::info!("noded restarts: {why}");
        self.reloaded.notify_one();
    }

    /// Returns when `noded` is to start anew.
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
    use futures_util::FutureExt as _;
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
        while settings.reloaded().now_or_never().is_some() {}
        let module = NodeConfig { module: [("m".to_owned(), toml::Table::new())].into(), ..named };
        *next.borrow_mut() = Ok(module);
        settings.reload();
        assert!(settings.current().module.contains_key("m"));
        assert!(settings.reloaded().now_or_never().is_none(), "noded is not restarted for that");
    }
}
