//! The node's named conditions: what is wrong now, since when, and what helps. One list for `status`, logs and `doctor`.
//!
//! A condition is raised and cleared by whoever sees it change; it is a fact, not an event. The codes are stable and each
//! has a line in `docs/errors.md`. Nothing here decides anything.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use openred_proto::admin;
use openred_proto::id::UnixMillis;
use openred_proto::severity::Severity;

/// Every condition that this process can be in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Condition {
    /// The key process does not answer.
    CryptodAway,
    /// No configured directory takes this node's card.
    DirectoryUnreachable,
    /// A directory refused this node.
    DirectoryRefused,
    /// A directory broke its word: a bad receipt, an older card, two cards of one sequence, two logs.
    DirectoryDishonest,
    /// A directory left something out, and nothing proves that it lied.
    DirectoryDoubtful,
    /// This machine's clock is off by more than the directory tolerates.
    ClockOff,
    /// No directory is configured.
    NoDirectory,
    /// No endpoint can be announced: peers cannot dial this node.
    NoEndpoint,
    /// The database is full.
    StoreFull,
    /// The disk, or a module's share of it, is full.
    BlobsFull,
    /// The database failed.
    StoreFailed,
    /// A link's row was refused by the key process.
    LinkRowRefused,
    /// The two tokens of a link do not match.
    LinkMismatch,
    /// A module did not start.
    ModuleDown,
    /// A module ended too often, and is left down until the operator releases it.
    ModuleQuarantined,
    /// A module has no room for more of what peers send.
    ModuleFull,
    /// A module's hooks fail again and again.
    HookOff,
    /// A module's description of a method was refused.
    MethodRefused,
    /// A module that watches the node says that the operator has to look.
    ModuleAlert,
}

struct Entry {
    code: &'static str,
    severity: Severity,
    depends_on: &'static [&'static str],
    help: &'static str,
}

const fn entry(
    code: &'static str,
    severity: Severity,
    depends_on: &'static [&'static str],
    help: &'static str,
) -> Entry {
    Entry { code, severity, depends_on, help }
}

impl Condition {
    const fn entry(self) -> Entry {
        use Severity::{Error, Warning};
        match self {
            Self::CryptodAway => {
                entry("cryptod.away", Error, &[], "The supervisor restarts it; `openred status` shows why it ended.")
            }
            Self::DirectoryUnreachable => entry(
                "directory.unreachable",
                Warning,
                &[],
                "Linked peers stay reachable. Check the address in `directories` and the network; it is retried.",
            ),
            Self::DirectoryRefused => entry(
                "directory.refused",
                Warning,
                &["cryptod.away"],
                "Ask the directory's operator; the reason is in the detail.",
            ),
            Self::DirectoryDishonest => entry(
                "directory.dishonest",
                Error,
                &[],
                "The directory said what its signature or an earlier card contradicts. Use another one.",
            ),
            Self::DirectoryDoubtful => entry(
                "directory.doubtful",
                Warning,
                &["directory.unreachable"],
                "Noticed, not proven: the directory left something out. Ask its operator, or configure a second one beside it.",
            ),
            Self::ClockOff => {
                entry("clock.off", Warning, &[], "Set this machine's clock (NTP); until then the offset is corrected.")
            }
            Self::NoDirectory => entry(
                "directory.none",
                Warning,
                &[],
                "Add one to `directories`; until then nobody can be found, and `openred link direct` alone makes links.",
            ),
            Self::NoEndpoint => entry(
                "endpoint.none",
                Warning,
                &[],
                "Set `endpoints`, or `listen` on an address that peers can reach; until then this node only dials out.",
            ),
            Self::StoreFull => {
                entry("store.full", Error, &[], "Free space on the disk, or raise `storage.database_megabytes`.")
            }
            Self::BlobsFull => {
                entry("blobs.full", Error, &[], "Free space on the disk, or raise `storage.blobs_megabytes`.")
            }
            Self::StoreFailed => entry("store.failed", Error, &[], "Check the disk, then restart the node."),
            Self::LinkRowRefused => {
                entry("link.row-refused", Warning, &[], "The link cannot be used any more. Request it anew.")
            }
            Self::LinkMismatch => {
                entry("link.mismatch", Error, &[], "Revoke the link and request it anew; `openred link list` names it.")
            }
            Self::ModuleDown => {
                entry("module.down", Error, &["store.failed", "cryptod.away"], "The log says why it did not start.")
            }
            Self::MethodRefused => entry(
                "method.refused",
                Warning,
                &[],
                "The module serves without it. Its author has to describe a stronger one; docs/errors.md has each reason.",
            ),
            Self::ModuleQuarantined => entry(
                "module.quarantined",
                Error,
                &[],
                "`openred module logs ID` has its last words; `openred module release ID` has it started again.",
            ),
            Self::ModuleAlert => entry(
                "module.alert",
                Error,
                &[],
                "`openred doctor` shows each layer. One that is off and was not switched off by you: treat it as a break-in.",
            ),
            Self::ModuleFull => entry(
                "module.full",
                Warning,
                &[],
                "Delete what is no longer needed: `openred inbox --delete --from DID`. Until then it waits at the sender.",
            ),
            Self::HookOff => entry(
                "hook.off",
                Error,
                &["module.down"],
                "It is tried again within a minute; until then it counts as failed. `openred hooks` shows how it fails.",
            ),
        }
    }

    /// Stable code.
    pub(crate) const fn code(self) -> &'static str {
        self.entry().code
    }
}

struct Raised {
    detail: String,
    since: UnixMillis,
}

/// The conditions that hold now.
#[derive(Default)]
pub(crate) struct Health(Mutex<BTreeMap<Condition, Raised>>);

impl Health {
    /// The condition holds. Its start is kept while it lasts; the log hears of it once.
    pub(crate) fn raise(&self, condition: Condition, now: UnixMillis, detail: impl Into<String>) {
        let detail = detail.into();
        let mut raised = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = raised.get_mut(&condition) {
            known.detail = detail;
            return;
        }
        match condition.entry().severity {
            Severity::Error => tracing::error!(code = condition.code(), %detail, "condition raised"),
            Severity::Warning => tracing::warn!(code = condition.code(), %detail, "condition raised"),
        }
        raised.insert(condition, Raised { detail, since: now });
    }

    /// The condition holds no longer.
    pub(crate) fn clear(&self, condition: Condition) {
        if self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&condition).is_some() {
            tracing::info!(code = condition.code(), "condition cleared");
        }
    }

    /// All that hold, as the admin contract shows them.
    pub(crate) fn report(&self) -> Vec<admin::Condition> {
        let raised = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let report = |(condition, raised): (&Condition, &Raised)| {
            let entry = condition.entry();
            admin::Condition {
                code: entry.code.to_owned(),
                severity: entry.severity.name().to_owned(),
                detail: raised.detail.clone(),
                depends_on: entry.depends_on.iter().map(|code| (*code).to_owned()).collect(),
                since: raised.since.0,
                help: entry.help.to_owned(),
            }
        };
        raised.iter().map(report).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_keeps_its_start_until_it_is_cleared() {
        let health = Health::default();
        health.raise(Condition::CryptodAway, UnixMillis(5), "first");
        health.raise(Condition::CryptodAway, UnixMillis(9), "second");
        let report = health.report();
        assert_eq!((report.len(), report[0].since, report[0].detail.as_str()), (1, 5, "second"));
        health.clear(Condition::CryptodAway);
        health.clear(Condition::CryptodAway);
        assert!(health.report().is_empty());
        health.raise(Condition::CryptodAway, UnixMillis(11), "third");
        assert_eq!(health.report()[0].since, 11);
    }
}
