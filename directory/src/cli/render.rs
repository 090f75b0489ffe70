//! What the commands print: text that fits 80 columns, or JSON with a versioned schema. Pure: values in, text out.

use std::fmt::Write as _;
use std::path::Path;

use openred_proto::config::Setting;
use openred_proto::id::NodeId;
use serde::Serialize;

use crate::admin::{NodeLine, NodeList, Status};
use crate::health::Condition;
use crate::mirror::UpstreamAddress;

mod decisions;

pub use decisions::{bans, database, exported, history, imported, invited, invites, migrated, stats};

/// JSON: the schema's name beside the value's own fields.
fn document(schema: &str, value: &impl Serialize) -> String {
    #[derive(Serialize)]
    struct Document<'a, T> {
        schema: &'a str,
        #[serde(flatten)]
        value: &'a T,
    }
    let document = Document { schema: &format!("openred.directory.{schema}/1"), value };
    // Every value here is a plain struct with text keys: serialising it cannot fail.
    let mut text = serde_json::to_string(&document).unwrap_or_default();
    text.push('\n');
    text
}

pub(super) fn version(json: bool) -> String {
    #[derive(Serialize)]
    struct Version {
        version: &'static str,
    }
    let version = env!("CARGO_PKG_VERSION");
    if json { document("version", &Version { version }) } else { format!("directory {version}\n") }
}

pub(super) fn init(
    address: &str,
    mirror: Option<&(UpstreamAddress, NodeId)>,
    home: &Path,
    new: bool,
    json: bool,
) -> String {
    #[derive(Serialize)]
    struct Init<'a> {
        address: &'a str,
        /// A mirror's: by which it asks the directory that it mirrors.
        #[serde(skip_serializing_if = "Option::is_none")]
        key: Option<String>,
        home: &'a Path,
        created: bool,
    }
    let key = mirror.map(|(_, key)| key.to_string());
    if json {
        return document("init", &Init { address, key, home, created: new });
    }
    let what = if new { "made" } else { "was there" };
    let text = format!("home      {}\nidentity  {what}\n", home.display());
    match mirror {
        None => format!("{text}Nodes configure this address:\n{address}\n"),
        Some((of, key)) => format!(
            "{text}The operator of {of}\nallows this mirror by (mirror.allow):\n{key}\n\
             Nodes that use that directory may configure (directory.mirrors):\n{address}\n"
        ),
    }
}

pub(super) fn checked(file: &Path, json: bool) -> String {
    #[derive(Serialize)]
    struct Checked<'a> {
        file: &'a Path,
        ok: bool,
    }
    if json { document("check", &Checked { file, ok: true }) } else { format!("{}: ok\n", file.display()) }
}

/// `config show`.
#[must_use]
pub fn settings(settings: &[Setting], origin: bool, json: bool) -> String {
    #[derive(Serialize)]
    struct Settings<'a> {
        settings: &'a [Setting],
    }
    if json {
        return document("config", &Settings { settings });
    }
    let mut text = String::new();
    for setting in settings {
        let value = setting.value.to_string();
        let _ = match origin {
            true => writeln!(text, "{:<28} {value:<40} {}", setting.key, setting.origin),
            false => writeln!(text, "{} = {value}", setting.key),
        };
    }
    text
}

/// A condition that is not in order: how bad, since when, what is the case, the way out; as far as the running process says so.
pub(super) fn condition(condition: &Condition, now: u64) -> String {
    let since = duration(now.saturating_sub(condition.since / 1000));
    let how = if condition.since > 0 { format!("{} for {since}", condition.severity) } else { String::new() };
    let words = [how.as_str(), &condition.detail, &condition.help];
    words.into_iter().filter(|words| !words.is_empty()).collect::<Vec<&str>>().join("; ")
}

/// `status`.
#[must_use]
pub fn status(status: &Status, json: bool) -> String {
    if json {
        return document("status", status);
    }
    let counts = &status.counts;
    let mut text = String::new();
    let _ = writeln!(text, "address   {}", status.address);
    let (state, pid, up) = (&status.health.status, status.pid, duration(status.uptime_seconds));
    let _ = writeln!(text, "state     {state}, process {pid}, up {up}");
    for condition in status.health.conditions.iter().filter(|condition| !condition.ok) {
        let words = self::condition(condition, status.health.now);
        let _ = writeln!(text, "          {}: {words}", condition.code);
    }
    if let Some(mirror) = &status.health.mirror {
        let _ = writeln!(text, "mirror    of {}", mirror.of);
        let since = match mirror.current_seconds_ago {
            Some(ago) => format!("nothing missing {} ago", duration(ago)),
            None => "being filled".to_owned(),
        };
        let _ = writeln!(text, "          {} of {} entries, {since}", mirror.entries, mirror.upstream_entries);
    }
    let _ = writeln!(
        text,
        "nodes     {} registered, {} fresh, {} quarantined",
        counts.nodes, counts.fresh, counts.quarantined
    );
    let _ = writeln!(
        text,
        "          {} bans, {} conflicts of cards, {} MiB",
        counts.bans,
        counts.evidence,
        counts.bytes.div_ceil(1024 * 1024)
    );
    let _ = writeln!(
        text,
        "waiting   {} offers and receipts, for {} open streams on {} connections",
        status.waiting, status.streams, status.connections
    );
    if let Some(view) = &status.replicas {
        let others: Vec<&str> = view.others.iter().map(|other| other.name.as_str()).collect();
        let others = if others.is_empty() { "no other".to_owned() } else { others.join(", ") };
        let away = if view.connected { "" } else { "; not connected to NATS" };
        let _ = writeln!(text, "replica   {}, hears {others}{away}", view.name);
    }
    let [good, refused, failed] = status.answers;
    let _ = writeln!(text, "answers   {good} good, {refused} refused, {failed} failed");
    text
}

/// `nodes list`.
#[must_use]
pub fn nodes(list: &NodeList, json: bool) -> String {
    if json {
        return document("nodes", list);
    }
    if list.nodes.is_empty() {
        return "no nodes\n".to_owned();
    }
    let mut text = format!("{:<56}  {:<11}  {}\n", "NODE", "STATE", "SEEN");
    for node in &list.nodes {
        let seen = node.seen_seconds_ago.map_or_else(|| "never".to_owned(), duration);
        let _ = writeln!(text, "{:<56}  {:<11}  {seen}", node.node, node.state);
    }
    if let Some(next) = &list.next {
        let _ = writeln!(text, "more: --after {next}");
    }
    text
}

/// `nodes show`.
#[must_use]
pub fn node(node: &NodeLine, json: bool) -> String {
    if json {
        return document("node", node);
    }
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        let _ = writeln!(text, "{name:<10}{value}");
    };
    let since = |seconds: Option<u64>| seconds.map_or_else(|| "-".to_owned(), duration);
    line("node", &node.node);
    line("state", &node.state);
    line("listed", if node.listed { "yes" } else { "no" });
    line("sector", if node.sector.is_empty() { "-" } else { &node.sector });
    line("sequence", &node.sequence.to_string());
    line("seen", &format!("{} ago", since(node.seen_seconds_ago)));
    line("known", &format!("for {}", since(node.known_for_seconds)));
    line("card ends", &format!("in {}", since(node.ends_in_seconds)));
    line("conflicts", &node.evidence.to_string());
    if let Some(reason) = &node.ban_reason {
        line("banned", if reason.is_empty() { "without a reason" } else { reason });
    }
    text
}

/// What changes one thing.
#[must_use]
pub fn done(what: &str, done: &str, json: bool) -> String {
    #[derive(Serialize)]
    struct Done<'a> {
        what: &'a str,
        done: &'a str,
    }
    if json { document("done", &Done { what, done }) } else { format!("{done} {what}\n") }
}

/// What `log verify` found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LogVerified {
    /// Whether all of it is in order.
    pub ok: bool,
    /// Entries, as far as the log says.
    pub size: u64,
    /// Root over them, hex.
    pub root: String,
    /// Cards that were found in it.
    pub cards: u64,
    /// The first thing that is not in order.
    pub fault: Option<String>,
}

/// `log verify`.
#[must_use]
pub fn log_verified(verified: &LogVerified, json: bool) -> String {
    if json {
        return document("log-verified", verified);
    }
    let LogVerified { size, root, cards, fault, .. } = verified;
    match fault {
        Some(fault) => format!("WRONG     {fault}\n"),
        None => format!("ok        {size} entries, {cards} cards among them\nroot      {root}\n"),
    }
}

/// One line of `doctor`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at.
    pub name: String,
    /// Whether it is in order.
    pub ok: bool,
    /// What was found, or the way out.
    pub detail: String,
}

/// `doctor`.
#[must_use]
pub fn doctor(findings: &[Finding], json: bool) -> String {
    #[derive(Serialize)]
    struct Findings<'a> {
        ok: bool,
        findings: &'a [Finding],
    }
    let ok = findings.iter().all(|finding| finding.ok);
    if json {
        return document("doctor", &Findings { ok, findings });
    }
    let mut text = String::new();
    for finding in findings {
        let mark = if finding.ok { "ok" } else { "WRONG" };
        let _ = writeln!(text, "{:<24} {mark:<5}  {}", finding.name, finding.detail);
    }
    text
}

/// The largest fitting unit.
fn duration(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}
