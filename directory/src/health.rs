//! How the directory is: a graph of named conditions, the same for `/health`, `status`, `doctor` and the metrics, in the shape that a node's
//! conditions have (proto/openred/admin/v1). Each says whether it is in order, how bad it is if not, what may be its cause, since when it is
//! so, and the way out. What is the case is asked of whoever knows it ([`facts`]); this file keeps since when.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use openred_proto::id::UnixMillis;
use openred_proto::severity::Severity;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::mirror::MirrorView;
use crate::state::Directory;

/// What to do when the database was taken away.
const GONE: &str = "the database was deleted or replaced while the directory runs: `directory export` still gives what it holds; then end it, put the file back or move state/ away, start it, and import";
const LINK_HELP: &str = "start the NATS server of replicas.url, or let this machine reach it; until then offers to nodes that wait at another replica are refused, and the log says why";
const NAME_HELP: &str = "another replica that runs has this one's name: give each its own (replicas.name)";
const SETTINGS_HELP: &str = "the last SIGHUP was refused, or none can be taken any more; what held before goes on, and the log says why: mend it and send SIGHUP again, or restart";

/// The database is where it was.
const PRESENT: &str = "store.present";
/// This replica reaches the others.
const LINK: &str = "replicas.link";
/// The settings hold that the last SIGHUP was for.
const SETTINGS: &str = "settings.taken";

/// A condition as whoever knows it tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fact {
    /// Stable name.
    pub(crate) code: &'static str,
    /// How bad it is when it is not in order.
    pub(crate) severity: Severity,
    /// Conditions that may be its cause.
    pub(crate) depends_on: &'static [&'static str],
    /// What is the case, where it is not in order.
    pub(crate) wrong: Option<String>,
    /// The way out.
    pub(crate) help: &'static str,
}

impl Fact {
    /// One that has nothing to add to its name.
    fn plain(
        code: &'static str,
        severity: Severity,
        depends_on: &'static [&'static str],
        ok: bool,
        help: &'static str,
    ) -> Self {
        Self { code, severity, depends_on, wrong: (!ok).then(String::new), help }
    }
}

/// One thing that is or is not in order. A process from before it said how bad, and since when, is asked as well, while it waits for its restart.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Condition {
    /// Stable name.
    pub code: String,
    /// Whether it is in order.
    pub ok: bool,
    /// `ok`, `warning` or `error`.
    #[serde(default)]
    #[schema(required = true)]
    pub severity: String,
    /// What is the case, where the name does not say it all.
    #[serde(default)]
    #[schema(required = true)]
    pub detail: String,
    /// Names of conditions that may be its cause.
    #[serde(default)]
    #[schema(required = true)]
    pub depends_on: Vec<String>,
    /// Since when it is or is not in order: milliseconds since the epoch, by one look a second.
    #[serde(default)]
    #[schema(required = true)]
    pub since: u64,
    /// What to do when it is not.
    pub help: String,
}

/// How the directory is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Health {
    /// `ok` or `degraded`.
    pub status: String,
    /// The directory's id.
    pub directory: String,
    /// Version of the program.
    pub version: String,
    /// Its time, seconds since the epoch.
    pub now: u64,
    /// The conditions.
    pub conditions: Vec<Condition>,
    /// Of a mirror: how it stands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mirror: Option<MirrorView>,
}

impl Health {
    /// Whether it serves: a mirror also while the directory that it mirrors is away, and a replica without NATS, else all of them would be
    /// taken out of service together; and whoever goes on with the settings before.
    #[must_use]
    pub fn serves(&self) -> bool {
        let stays = |code: &str| code.starts_with("upstream.") || [LINK, SETTINGS].contains(&code);
        self.conditions.iter().all(|condition| condition.ok || stays(&condition.code))
    }
}

/// Since when each condition is as it is.
#[derive(Debug, Default)]
pub(crate) struct Standing {
    since: Mutex<BTreeMap<&'static str, (bool, UnixMillis)>>,
    settings_refused: AtomicBool,
}

impl Standing {
    /// Notes how the last SIGHUP ended.
    pub(crate) fn note_settings(&self, refused: bool) {
        self.settings_refused.store(refused, Ordering::Relaxed);
    }

    /// Since when a condition is as it is now. One that was never looked at and is in order has been so from the start.
    fn since(&self, code: &'static str, ok: bool, now: UnixMillis, started: UnixMillis) -> UnixMillis {
        let mut since = self.since.lock().unwrap_or_else(PoisonError::into_inner);
        let (was, at) = since.entry(code).or_insert((ok, if ok { started } else { now }));
        if *was != ok {
            (*was, *at) = (ok, now);
        }
        *at
    }
}

/// All conditions of this directory, as they are.
fn facts(directory: &Directory) -> Vec<Fact> {
    let writable = "free disk space; the log names the database's error";
    let mut facts = vec![
        Fact::plain("store.writable", Severity::Error, &[PRESENT], !directory.store_failing(), writable),
        Fact::plain(PRESENT, Severity::Error, &[], !directory.store.is_gone(), GONE),
        Fact::plain(
            "serving",
            Severity::Warning,
            &[],
            !*directory.draining().borrow(),
            "it is ending; wait for the next start",
        ),
        Fact::plain(
            SETTINGS,
            Severity::Warning,
            &[],
            !directory.standing.settings_refused.load(Ordering::Relaxed),
            SETTINGS_HELP,
        ),
    ];
    facts.extend(directory.upstream.iter().flat_map(|upstream| upstream.conditions()));
    if let Some(replicas) = directory.replicas() {
        facts.push(Fact::plain(LINK, Severity::Warning, &[], replicas.is_up(), LINK_HELP));
        facts.push(Fact::plain("replicas.name", Severity::Error, &[], !replicas.has_twin(), NAME_HELP));
    }
    facts
}

/// How it is now. Whoever asks also notes it, besides the daemon's look each second.
#[must_use]
pub fn health_of(directory: &Directory) -> Health {
    let now = directory.now();
    let condition = |fact: Fact| {
        let ok = fact.wrong.is_none();
        Condition {
            code: fact.code.to_owned(),
            ok,
            severity: if ok { "ok" } else { fact.severity.name() }.to_owned(),
            detail: fact.wrong.unwrap_or_default(),
            depends_on: fact.depends_on.iter().map(|code| (*code).to_owned()).collect(),
            since: directory.standing.since(fact.code, ok, now, directory.started).0,
            help: fact.help.to_owned(),
        }
    };
    let conditions: Vec<Condition> = facts(directory).into_iter().map(condition).collect();
    let ok = conditions.iter().all(|condition| condition.ok);
    Health {
        status: if ok { "ok" } else { "degraded" }.to_owned(),
        directory: directory.id().to_string(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        now: now.seconds(),
        conditions,
        mirror: directory.upstream.as_ref().map(|upstream| upstream.view(now)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_keeps_its_start_until_it_changes() {
        let (standing, started) = (Standing::default(), UnixMillis(5));
        let since = |ok, now| standing.since("a", ok, UnixMillis(now), started).0;
        assert_eq!(
            [since(true, 7), since(true, 8), since(false, 9), since(false, 10), since(true, 11)],
            [5, 5, 9, 9, 11]
        );
        assert_eq!(standing.since("b", false, UnixMillis(12), started).0, 12, "it was not in order at the first look");
    }
}
