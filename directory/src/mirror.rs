//! A mirror: serves another directory's cards and log to whoever reads. It believes nothing: each card carries its node's signature, each
//! entry is proven against a head that the mirrored directory signed, and that head is what it passes on; it has no key to sign one.
//!
//! [`follow`] asks the mirrored directory over [`client`]; what holds goes into the store. This file keeps how the mirror stands, for
//! `/log/head`, health, `status` and metrics (decision 0060).

pub mod client;
pub mod follow;

use std::fmt;
use std::str::FromStr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use openred_proto::id::{NodeId, UnixMillis};
use openred_proto::severity::Severity;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::config::check_origin;
use crate::health::Fact;

/// The mirrored directory as nodes name it: `did:key:…@https://…`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamAddress {
    /// Whose heads are passed on.
    pub id: NodeId,
    /// Where it is asked.
    pub origin: String,
}

impl FromStr for UpstreamAddress {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = "must be a directory's address, as in \"did:key:z6Mk…@https://directory.example.org\"";
        let (id, origin) = text.split_once('@').ok_or(wrong)?;
        let origin = origin.trim_end_matches('/');
        if origin.is_empty() {
            return Err(wrong);
        }
        check_origin(origin).map_err(|_| wrong)?;
        let url = url::Url::parse(origin).map_err(|_| wrong)?;
        let is_here = url.host_str().is_some_and(|host| crate::config::is_here(host.trim_matches(['[', ']'])));
        if url.scheme() == "http" && !is_here {
            return Err("cards of nodes that are not listed must not travel in the clear: use https");
        }
        Ok(Self { id: id.parse().map_err(|_| wrong)?, origin: origin.to_owned() })
    }
}

impl fmt::Display for UpstreamAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.id, self.origin)
    }
}

/// A head up to which every entry is here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Whole {
    pub(crate) size: u64,
    pub(crate) note: String,
}

/// How a mirror stands to the directory that it mirrors.
#[derive(Debug)]
pub struct Upstream {
    /// Which.
    pub address: UpstreamAddress,
    standing: Mutex<Standing>,
}

#[derive(Debug, Default)]
struct Standing {
    head: Option<Whole>,
    /// Entries that are here.
    entries: u64,
    /// Entries of the newest head that was seen.
    theirs: u64,
    /// When nothing was missing last.
    current_at: Option<UnixMillis>,
    /// When it was last heard who is present.
    present_at: Option<UnixMillis>,
    /// Why it is not reached.
    trouble: Option<String>,
    /// What it was caught at.
    lie: Option<String>,
}

/// A mirror, as health and `status` show it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MirrorView {
    /// The mirrored directory.
    pub of: String,
    /// Entries of its log that are here.
    pub entries: u64,
    /// Entries of the newest head that it gave.
    pub upstream_entries: u64,
    /// Seconds since nothing was missing; absent while it is filled for the first time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current_seconds_ago: Option<u64>,
}

impl Upstream {
    /// Nothing is known of it yet.
    #[must_use]
    pub fn new(address: UpstreamAddress) -> Self {
        Self { address, standing: Mutex::default() }
    }

    fn standing(&self) -> MutexGuard<'_, Standing> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The head to pass on; none while it is filled for the first time.
    pub(crate) fn head(&self) -> Option<Whole> {
        self.standing().head.clone()
    }

    /// Everything up to this head is here.
    pub(crate) fn is_whole(&self, head: Whole) {
        let mut standing = self.standing();
        standing.entries = standing.entries.max(head.size);
        standing.theirs = standing.theirs.max(head.size);
        standing.head = Some(head);
    }

    /// It answered: so many entries are here of so many.
    pub(crate) fn reached(&self, now: UnixMillis, entries: u64, theirs: u64) {
        let mut standing = self.standing();
        if standing.trouble.take().is_some() {
            tracing::info!(upstream = %self.address, "the mirrored directory is back");
        }
        (standing.entries, standing.theirs) = (entries, theirs);
        if entries == theirs {
            standing.current_at = Some(now);
        }
    }

    /// It said who is present.
    pub(crate) fn said_present(&self, now: UnixMillis) {
        self.standing().present_at = Some(now);
    }

    /// It cannot be followed just now.
    pub(crate) fn away(&self, why: &str) {
        let before = self.standing().trouble.replace(why.to_owned());
        if before.is_none() {
            tracing::warn!(upstream = %self.address, why, "the mirrored directory cannot be followed; tried again");
        }
    }

    /// It was caught, and is followed no more.
    pub(crate) fn caught(&self, lie: String) {
        tracing::error!(upstream = %self.address, lie, "the mirrored directory was caught; it is followed no more");
        self.standing().lie = Some(lie);
    }

    /// Whether nothing was missing at the last answer.
    pub(crate) fn is_current(&self) -> bool {
        let standing = self.standing();
        standing.head.is_some() && standing.entries == standing.theirs
    }

    /// The time that "heard of within its lease" is told by: who was present when it was last heard.
    pub(crate) fn presence_now(&self, now: UnixMillis) -> UnixMillis {
        self.standing().present_at.unwrap_or(now).min(now)
    }

    pub(crate) fn view(&self, now: UnixMillis) -> MirrorView {
        let standing = self.standing();
        let ago = |at: UnixMillis| now.0.saturating_sub(at.0) / 1000;
        MirrorView {
            of: self.address.to_string(),
            entries: standing.entries,
            upstream_entries: standing.theirs,
            current_seconds_ago: standing.current_at.map(ago),
        }
    }

    /// What is or is not in order; a mirror that is behind serves all the same.
    pub(crate) fn conditions(&self) -> [Fact; 3] {
        let standing = self.standing();
        let missing = standing.theirs.saturating_sub(standing.entries);
        let behind = match &standing.head {
            None => Some("it is being filled for the first time".to_owned()),
            Some(_) if missing > 0 => Some(format!("{missing} entries of its log are missing here")),
            Some(_) => None,
        };
        [
            Fact {
                code: HONEST,
                severity: Severity::Error,
                depends_on: &[],
                wrong: standing.lie.clone(),
                help: "it is followed no more: ask its operator, keep this log, and restart once it is explained",
            },
            Fact {
                code: REACHED,
                severity: Severity::Warning,
                depends_on: &[HONEST],
                wrong: standing.trouble.clone(),
                help: "it is tried again; ask its operator, or let this machine reach it",
            },
            Fact {
                code: "upstream.current",
                severity: Severity::Warning,
                depends_on: &[REACHED, HONEST],
                wrong: behind,
                help: "wait; it serves what it has",
            },
        ]
    }
}

/// The mirrored directory was caught at nothing.
const HONEST: &str = "upstream.honest";
/// The mirrored directory answers.
const REACHED: &str = "upstream.reached";

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    const ID: &str = "did:key:z6MkiTBz1ymuepAQ4HEHYSF1H8quG5GLVVQR3djdX3mDooWp";

    #[test]
    fn an_upstream_is_named_as_nodes_name_it() {
        for origin in ["https://a.example", "https://a.example:8443", "http://127.0.0.1:7440", "http://[::1]:7440"] {
            let address: UpstreamAddress = format!("{ID}@{origin}").parse().unwrap();
            assert_eq!(address.to_string(), format!("{ID}@{origin}"));
        }
        for wrong in ["", ID, "@https://a.example", "did:key:x@https://a.example"] {
            assert!(wrong.parse::<UpstreamAddress>().unwrap_err().starts_with("must be"), "{wrong}");
        }
        assert!(format!("{ID}@https://a.example/path").parse::<UpstreamAddress>().is_err());
        assert!(format!("{ID}@").parse::<UpstreamAddress>().is_err());
        let clear = format!("{ID}@http://a.example").parse::<UpstreamAddress>().unwrap_err();
        assert!(clear.contains("in the clear"));
    }

    #[test]
    fn a_mirror_says_how_far_behind_it_is_and_what_it_caught() {
        let upstream = Upstream::new(format!("{ID}@https://a.example").parse().unwrap());
        let wrong = |upstream: &Upstream| {
            upstream
                .conditions()
                .into_iter()
                .filter(|found| found.wrong.is_some())
                .map(|found| found.code)
                .collect::<Vec<_>>()
        };
        assert_eq!(wrong(&upstream), ["upstream.current"]);
        upstream.reached(UnixMillis(1000), 5, 9);
        upstream.is_whole(Whole { size: 9, note: "n".into() });
        upstream.reached(UnixMillis(2000), 9, 9);
        assert!(wrong(&upstream).is_empty() && upstream.is_current());
        assert_eq!(upstream.view(UnixMillis(5000)).current_seconds_ago, Some(3));
        upstream.away("cut off");
        assert_eq!(wrong(&upstream), ["upstream.reached"]);
        upstream.reached(UnixMillis(6000), 9, 12);
        upstream.caught("it lied".into());
        assert_eq!(wrong(&upstream), ["upstream.honest", "upstream.current"]);
        upstream.said_present(UnixMillis(6000));
        assert_eq!(upstream.presence_now(UnixMillis(9000)), UnixMillis(6000));
    }
}
