//! The node's configuration: one TOML file (`openred.toml`), its defaults, and where each value came from.
//!
//! Text comes from the file, the environment (`OPENRED_…`) and flags, in rising precedence ([`resolve`]); the supervisor
//! resolves it once and hands the result to `noded` on a descriptor, so both read the same values. This module parses and
//! checks; it opens no file and resolves no name. Decisions (approved peers, revoked links) are no settings: they live in
//! the store and can only narrow what stands here.

mod auth;
mod directory;
mod document;
mod hooks;
mod layers;
mod modules;
mod monitor;
mod recipient;
mod text;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use openred_proto::checked::card::check_endpoint;
use openred_proto::id::NodeId;
use openred_proto::limits::{
    CARD_ENDPOINTS, CARD_LIFE, LINK_LIFE, LINK_LIFE_MAX, LINK_LIFE_MIN, LINKS, NAME_BYTES, SESSION_BYTES, SESSION_LIFE,
    SESSION_REQUESTS, SIGNATURES_PER_SECOND, SIGNATURES_PER_SECOND_MAX,
};
use openred_proto::method::{Method, MethodSet, Schedule};
use serde::{Deserialize, Serialize};
use url::{Host, Url};

pub use auth::AuthConfig;
pub use directory::{DirectoryConfig, LookUps};
pub use document::document;
pub use hooks::HooksConfig;
pub(crate) use layers::refuse_key;
pub use layers::{Origin, Resolved, resolve};
pub use modules::ModulesConfig;
pub use monitor::MonitorConfig;
pub use text::DirectoryAddress;

/// Directories that one node registers with; each holds a stream open, so a handful is plenty.
pub const DIRECTORIES: usize = 4;
/// Peers in `links.allow`; longer lists belong to the `sector` or `ask` policy.
pub const ALLOWED_PEERS: usize = 1024;
/// The protocol's limit of a session's bytes in megabytes of 2^20.
const SESSION_MEGABYTES: u32 = (SESSION_BYTES >> 20) as u32;
/// Shortest life and idle time of a session: an eighth of a life is for the handshake of the next one, which takes milliseconds, or a
/// second on a slow machine.
const SESSION_SECONDS_MIN: u32 = 10;
/// Fewest requests of a session: an eighth of them begin while the next one is made.
const SESSION_REQUESTS_MIN: u64 = 1024;
/// Fewest megabytes of a session: an eighth of them is 32 chunks.
const SESSION_MEGABYTES_MIN: u32 = 16;
/// Port that nodes listen on unless told otherwise.
pub const DEFAULT_PORT: u16 = 7690;
/// Opening a keystore takes up to a second of scrypt, at the most work that is accepted: a machine a hundred times slower is waited for.
const PATIENCE_SECONDS: u32 = 300;
/// A day: nobody waits longer.
const PATIENCE_SECONDS_MAX: u32 = 86_400;
/// First of the uids that the node's processes take when started as root (SANDBOX): four of its own, and 64 for modules.
pub const DEFAULT_UID_BASE: u32 = 61_000;

/// All settings of a node. Every key has a default; unknown keys are refused.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NodeConfig {
    /// Name for people, in the card; proves nothing.
    pub name: String,
    /// Group that policies and discovery may use, in the card.
    pub sector: String,
    /// Whether directories may list this node in discovery.
    pub listed: bool,
    /// Address of the peer-to-peer listener.
    pub listen: SocketAddr,
    /// URLs under which peers reach it; empty: the listener's own address, unless that is a wildcard.
    pub endpoints: Vec<String>,
    /// Directories, each `did:key:…@https://host[:port]`; the first that answers is used for look-ups.
    pub directories: Vec<DirectoryAddress>,
    /// First of 68 consecutive uids for the node's processes and modules; only used when started as root.
    pub uid_base: u32,
    /// How links are made.
    pub links: LinkConfig,
    /// Sessions with peers.
    pub sessions: SessionConfig,
    /// How directories are spoken to.
    pub directory: DirectoryConfig,
    /// What the key process does for the node.
    pub keys: KeysConfig,
    /// What the node may keep on disk.
    pub storage: StorageConfig,
    /// Modules' processes, and what they may be granted.
    pub modules: ModulesConfig,
    /// `[module.NAME]`: the settings of one module, as its manifest declares them.
    pub module: BTreeMap<String, toml::Table>,
    /// Who reads the audit trail's closed segments.
    pub audit: AuditConfig,
    /// Modules' parts in calls that are not their own.
    pub hooks: HooksConfig,
    /// What the module `monitor` serves.
    pub monitor: MonitorConfig,
    /// What the module `auth` serves.
    pub auth: AuthConfig,
    /// What the processes log.
    pub log: LogConfig,
    /// Switches for measurements.
    pub diagnostics: DiagnosticsConfig,
}

/// `[links]`: who may link with this node, and with which methods.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LinkConfig {
    /// What happens to an offer from a peer that the operator has not approved.
    pub incoming: IncomingPolicy,
    /// What is done with strangers who come without a link and without a directory.
    pub direct: DirectPolicy,
    /// Peers whose offers are accepted under `allow-list`.
    #[serde(with = "text::node_ids")]
    pub allow: Vec<NodeId>,
    /// Methods that this node issues and accepts.
    pub methods: Vec<Method>,
    /// Which rule picks the method of a link that this node issues.
    pub schedule: Schedule,
    /// Life of a link that this node issues, in seconds; it is renewed at two thirds of it.
    pub life_seconds: u32,
    /// Whether both sides sign that a session was opened: lasting proof of contact.
    pub audited: AuditedPolicy,
}

/// Whether sessions are signed by both sides (`audited` mode). Without it a session proves nothing to anybody afterwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AuditedPolicy {
    /// Never; a peer that demands it gets no session.
    Off,
    /// With peers that demand it.
    Allow,
    /// Always; a peer that does not agree gets no session.
    Require,
}

/// `[sessions]`: how many are held, and when the next one takes over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SessionConfig {
    /// Sessions held with all peers.
    pub held: u32,
    /// Of those, with one peer.
    pub per_peer: u32,
    /// A session that is not used for so many seconds is dropped.
    pub idle_seconds: u32,
    /// A session ends after so many seconds.
    pub life_seconds: u32,
    /// A session ends after so many requests of one side.
    pub requests: u64,
    /// A session ends after so many megabytes, both ways.
    pub megabytes: u32,
}

/// What happens to an offer that nobody has approved yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum IncomingPolicy {
    /// Accept every valid offer.
    Open,
    /// Accept offers of the peers in `links.allow`, refuse others.
    AllowList,
    /// Accept offers of peers whose card names this node's sector, refuse others.
    Sector,
    /// Keep it until `openred link accept`.
    Ask,
}

/// What is done with strangers who come without a link (PROTOCOL 5, "Direct mode").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DirectPolicy {
    /// They are refused as everything is that is refused.
    Off,
    /// They wait until the operator has compared the words: `openred link accept`.
    Ask,
    /// They get a link: trust on first use.
    Open,
}

/// `[keys]`: what the key process does for the node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct KeysConfig {
    /// Cards and HTTP requests that it signs in a second, and ten times as many at once.
    pub signatures_per_second: u32,
    /// Longest that opening or making a keystore may take, and longest without a byte of a backup, in seconds.
    pub patience_seconds: u32,
}

/// `[storage]`: what the node may keep.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StorageConfig {
    /// Most megabytes of the node's database; zero: as the disk has.
    pub database_megabytes: u32,
    /// Most megabytes of the blobs of one module; zero: as the disk has.
    pub blobs_megabytes: u32,
}

/// `[audit]`: the trail of what was done with the keys.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AuditConfig {
    /// The age recipient that closed segments are sealed to; empty: they are filed as they are.
    pub auditor: String,
}

/// `[log]`: what the processes write to the supervisor's log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogConfig {
    /// Least level that is written.
    pub level: LogLevel,
    /// Lines for people, or one JSON object a line.
    pub format: LogFormat,
    /// Whether peers' ids and addresses are written out; otherwise they are hidden.
    pub sensitive: bool,
}

/// Levels as `docs/logging.md` defines them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// Something is lost or refused that should not be.
    Error,
    /// It works, and somebody should look.
    Warn,
    /// Changes of state; nothing per request.
    Info,
    /// Per request.
    Debug,
    /// Per chunk.
    Trace,
}

/// How a log line is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Human,
    /// For programs.
    Json,
}

/// `[diagnostics]`: off in service.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DiagnosticsConfig {
    /// Answer a linked peer's request for a stream of zero bytes, to measure throughput.
    pub throughput: bool,
}

impl Default for NodeConfig {
    fn default() -> Self {
        Self {
            name: String::new(),
            sector: String::new(),
            listed: false,
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, DEFAULT_PORT)),
            endpoints: Vec::new(),
            directories: Vec::new(),
            uid_base: DEFAULT_UID_BASE,
            links: LinkConfig::default(),
            sessions: SessionConfig::default(),
            directory: DirectoryConfig::default(),
            keys: KeysConfig::default(),
            storage: StorageConfig::default(),
            modules: ModulesConfig::default(),
            module: BTreeMap::new(),
            audit: AuditConfig::default(),
            hooks: HooksConfig::default(),
            monitor: MonitorConfig::default(),
            auth: AuthConfig::default(),
            log: LogConfig::default(),
            diagnostics: DiagnosticsConfig::default(),
        }
    }
}

impl Default for LinkConfig {
    fn default() -> Self {
        Self {
            incoming: IncomingPolicy::Ask,
            direct: DirectPolicy::Off,
            allow: Vec::new(),
            methods: Method::ALL.to_vec(),
            schedule: Schedule::Hourly,
            life_seconds: seconds(LINK_LIFE),
            audited: AuditedPolicy::Off,
        }
    }
}

impl Default for SessionConfig {
    fn default() -> Self {
        Self {
            held: 100,
            per_peer: 32,
            idle_seconds: 300,
            life_seconds: seconds(SESSION_LIFE),
            requests: SESSION_REQUESTS,
            megabytes: SESSION_MEGABYTES,
        }
    }
}

impl Default for KeysConfig {
    fn default() -> Self {
        Self { signatures_per_second: SIGNATURES_PER_SECOND, patience_seconds: PATIENCE_SECONDS }
    }
}

impl Default for StorageConfig {
    fn default() -> Self {
        Self { database_megabytes: 1024, blobs_megabytes: 0 }
    }
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { level: LogLevel::Info, format: LogFormat::Human, sensitive: false }
    }
}

impl LogLevel {
    /// The level as `tracing` names it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

impl LinkConfig {
    /// The configured methods as a set.
    #[must_use]
    pub fn method_set(&self) -> MethodSet {
        self.methods.iter().copied().collect()
    }

    /// Life of a link that this node issues.
    #[must_use]
    pub fn life(&self) -> Duration {
        Duration::from_secs(u64::from(self.life_seconds))
    }
}

impl KeysConfig {
    /// How long one that opens a keystore is waited for.
    #[must_use]
    pub fn patience(&self) -> Duration {
        Duration::from_secs(u64::from(self.patience_seconds))
    }
}

/// A value that parses and makes no sense: its key, and what is wrong with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{key}`: {why}")]
pub struct BadValue {
    /// Dotted key.
    pub key: &'static str,
    /// The rule it breaks.
    pub why: &'static str,
}

impl NodeConfig {
    /// Checks what types alone cannot: lengths, ranges, and settings that need each other.
    ///
    /// # Errors
    /// The first rule broken, by key.
    pub fn check(&self) -> Result<(), BadValue> {
        self.sessions.check()?;
        let rules: [(&'static str, bool, &'static str); 22] = [
            ("name", self.name.len() <= NAME_BYTES, "longer than 63 bytes"),
            ("sector", self.sector.len() <= NAME_BYTES, "longer than 63 bytes"),
            ("endpoints", self.endpoints.len() <= CARD_ENDPOINTS, "more than 8"),
            ("directories", self.directories.len() <= DIRECTORIES, "more than 4"),
            ("uid_base", self.uid_base >= 1000, "below 1000: such uids belong to the system"),
            ("uid_base", self.uid_base <= u32::MAX - 1024, "too high: 68 uids must follow"),
            ("links.allow", self.links.allow.len() <= ALLOWED_PEERS, "more than 1,024; use `sector` or `ask`"),
            ("links.allow", !has_twice(&self.links.allow), "names a node twice"),
            ("links.methods", !self.links.methods.is_empty(), "empty: no link could be made"),
            ("links.methods", !has_twice(&self.links.methods), "names a method twice"),
            ("directories", !has_twice(&self.directories), "names a directory twice"),
            (
                "links.life_seconds",
                (seconds(LINK_LIFE_MIN)..=seconds(LINK_LIFE_MAX)).contains(&self.links.life_seconds),
                "not between 10 and 2592000 (30 days)",
            ),
            ("directory.card_hours", in_hours(self.directory.card_hours, CARD_LIFE), "not between 1 and 192 (8 days)"),
            ("directory.invites", self.directory.checked_invites().is_some(), "not up to 16 invites (invite-…)"),
            ("directory.mirrors", self.directory.mirrors.len() <= DIRECTORIES, "more than 4"),
            (
                "directory.mirrors",
                self.directory.mirrors_are_of(&self.directories),
                "of none of `directories`: it begins with their id",
            ),
            (
                "keys.signatures_per_second",
                (1..=SIGNATURES_PER_SECOND_MAX).contains(&self.keys.signatures_per_second),
                "not between 1 and 100,000",
            ),
            (
                "keys.patience_seconds",
                (1..=PATIENCE_SECONDS_MAX).contains(&self.keys.patience_seconds),
                "not between 1 and 86400 (a day)",
            ),
            (
                "directory.ca_file",
                self.directory.ca_file.as_os_str().is_empty() || self.directory.ca_file.is_absolute(),
                "not an absolute path: the node does not run in the folder in which it is started",
            ),
            (
                "audit.auditor",
                self.audit.auditor.is_empty() || recipient::is_recipient(&self.audit.auditor),
                "no X25519 recipient of age: name what `age-keygen` prints as the public key, age1…",
            ),
            (
                "links.allow",
                self.links.incoming == IncomingPolicy::AllowList || self.links.allow.is_empty(),
                "set, but `links.incoming` is not \"allow-list\"",
            ),
            (
                "sector",
                self.links.incoming != IncomingPolicy::Sector || !self.sector.is_empty(),
                "empty, but `links.incoming` is \"sector\"",
            ),
        ];
        for (key, holds, why) in rules {
            if !holds {
                return Err(BadValue { key, why });
            }
        }
        self.modules.check(&self.module)?;
        self.hooks.check()?;
        self.monitor.check()?;
        self.auth.check(&self.monitor)?;
        for endpoint in &self.endpoints {
            check_endpoint(endpoint).map_err(|why| BadValue { key: "endpoints", why })?;
            if !is_dialable(endpoint) {
                let why = "not of the form \"http://ADDRESS:PORT\": peers dial IP addresses over plain HTTP only";
                return Err(BadValue { key: "endpoints", why });
            }
        }
        Ok(())
    }
}

/// Whether something stands in a list more than once: most likely another was meant.
fn has_twice<T: PartialEq>(list: &[T]) -> bool {
    list.iter().enumerate().any(|(place, item)| list[..place].contains(item))
}

impl SessionConfig {
    fn check(&self) -> Result<(), BadValue> {
        let count = |count: u32| (1..=LINKS as u32).contains(&count);
        let time = |seconds: u32, most: Duration| (SESSION_SECONDS_MIN..=self::seconds(most)).contains(&seconds);
        let rules: [(&'static str, bool, &'static str); 6] = [
            ("sessions.held", count(self.held), "not between 1 and 4096"),
            (
                "sessions.per_peer",
                self.per_peer >= 2 && count(self.per_peer),
                "not between 2 and 4096: one takes over from another",
            ),
            ("sessions.idle_seconds", time(self.idle_seconds, SESSION_LIFE), "not between 10 and 3600"),
            ("sessions.life_seconds", time(self.life_seconds, SESSION_LIFE), "not between 10 and 3600, the protocol's"),
            (
                "sessions.requests",
                (SESSION_REQUESTS_MIN..=SESSION_REQUESTS).contains(&self.requests),
                "not between 1024 and 4294967296, the protocol's",
            ),
            (
                "sessions.megabytes",
                (SESSION_MEGABYTES_MIN..=SESSION_MEGABYTES).contains(&self.megabytes),
                "not between 16 and 65536, the protocol's",
            ),
        ];
        match rules.into_iter().find(|(_, holds, _)| !holds) {
            Some((key, _, why)) => Err(BadValue { key, why }),
            None => Ok(()),
        }
    }
}

/// Whether a peer of this version would dial it (docs/decisions/0006).
fn is_dialable(endpoint: &str) -> bool {
    Url::parse(endpoint).is_ok_and(|url| url.scheme() == "http" && !matches!(url.host(), None | Some(Host::Domain(_))))
}

fn in_hours(value: u32, most: Duration) -> bool {
    (1..=hours(most)).contains(&value)
}

fn seconds(duration: Duration) -> u32 {
    u32::try_from(duration.as_secs()).unwrap_or(u32::MAX)
}

fn hours(duration: Duration) -> u32 {
    u32::try_from(duration.as_secs() / 3600).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_pass_their_own_check() {
        assert_eq!(NodeConfig::default().check(), Ok(()));
    }

    #[test]
    fn settings_that_make_no_sense_are_named_by_key() {
        let broken = |change: fn(&mut NodeConfig)| {
            let mut config = NodeConfig::default();
            change(&mut config);
            config.check().map_err(|bad| bad.key)
        };
        assert_eq!(broken(|c| c.name = "x".repeat(64)), Err("name"));
        assert_eq!(broken(|c| c.uid_base = 0), Err("uid_base"));
        assert_eq!(broken(|c| c.uid_base = u32::MAX), Err("uid_base"));
        assert_eq!(broken(|c| c.links.methods.clear()), Err("links.methods"));
        assert_eq!(broken(|c| c.links.life_seconds = 9), Err("links.life_seconds"));
        assert_eq!(broken(|c| c.links.life_seconds = 2_592_001), Err("links.life_seconds"));
        assert_eq!(broken(|c| c.sessions.held = 0), Err("sessions.held"));
        assert_eq!(broken(|c| c.sessions.per_peer = 1), Err("sessions.per_peer"));
        assert_eq!(broken(|c| c.sessions.idle_seconds = 9), Err("sessions.idle_seconds"));
        assert_eq!(broken(|c| c.sessions.life_seconds = 3601), Err("sessions.life_seconds"));
        assert_eq!(broken(|c| c.sessions.requests = 1023), Err("sessions.requests"));
        assert_eq!(broken(|c| c.sessions.requests = (1 << 32) + 1), Err("sessions.requests"));
        assert_eq!(broken(|c| c.sessions.megabytes = 65_537), Err("sessions.megabytes"));
        assert_eq!(broken(|c| c.keys.signatures_per_second = 0), Err("keys.signatures_per_second"));
        assert_eq!(broken(|c| c.keys.signatures_per_second = 100_001), Err("keys.signatures_per_second"));
        assert_eq!(broken(|c| c.keys.patience_seconds = 0), Err("keys.patience_seconds"));
        assert_eq!(broken(|c| c.keys.patience_seconds = 86_401), Err("keys.patience_seconds"));
        assert_eq!(broken(|c| c.directory.card_hours = 193), Err("directory.card_hours"));
        assert_eq!(broken(|c| c.links.incoming = IncomingPolicy::Sector), Err("sector"));
        assert_eq!(broken(|c| c.links.allow = vec![NodeId::from_bytes([1; 32])]), Err("links.allow"));
        assert_eq!(broken(|c| c.links.methods.push(Method::Alpha)), Err("links.methods"));
        let twice = |c: &mut NodeConfig| {
            c.links.incoming = IncomingPolicy::AllowList;
            c.links.allow = vec![NodeId::from_bytes([1; 32]), NodeId::from_bytes([2; 32]), NodeId::from_bytes([1; 32])];
        };
        assert_eq!(broken(twice), Err("links.allow"));
        assert_eq!(broken(|c| c.endpoints = vec!["ftp://x".to_owned()]), Err("endpoints"));
        assert_eq!(broken(|c| c.endpoints = vec!["https://192.0.2.1:7690".to_owned()]), Err("endpoints"));
        assert_eq!(broken(|c| c.endpoints = vec!["http://node.example:7690".to_owned()]), Err("endpoints"));
        assert_eq!(broken(|c| c.endpoints = vec!["http://[2001:db8::1]:7690".to_owned()]), Ok(()));
        assert_eq!(broken(|c| c.directory.ca_file = "ca.pem".into()), Err("directory.ca_file"));
        assert_eq!(broken(|c| c.endpoints = vec!["http://x".to_owned(); 9]), Err("endpoints"));
        assert_eq!(broken(|c| c.audit.auditor = "age1auditor".to_owned()), Err("audit.auditor"));
    }
}
