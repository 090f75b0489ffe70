//! The directory's configuration: one TOML file, all keys optional, unknown ones refused (`directory.example.toml` shows the
//! defaults). Reads the file and two variables; decides where things lie on disk; opens nothing else.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use openred_proto::config::{ConfigError, Source, Spanned};
use openred_proto::id::NodeId;
use openred_proto::limits::WORK_BITS;
use serde::{Deserialize, Serialize};

use crate::mirror::UpstreamAddress;
use crate::store::postgres::{self, Place};

mod replicas;

pub use replicas::Replicas;

/// Longest configured public origin.
const ORIGIN_BYTES: usize = 512;

/// The whole file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Folder of key, database and admin socket; empty: the platform's place. The flag `--home` goes before it.
    pub home: PathBuf,
    /// Address that the API listens on.
    pub listen: Spanned<SocketAddr>,
    /// Public origin (`https://directory.example.org`): what clients sign as `@target-uri`, whatever the Host header says.
    /// Empty: made from `listen`.
    pub origin: Spanned<String>,
    /// A proxy on this machine or network terminates TLS; allows plain HTTP on other addresses than loopback.
    pub behind_proxy: bool,
    /// A loopback address for `/metrics` and `/health` of their own; empty: `/metrics` on `listen`, to loopback callers only.
    pub metrics_listen: Spanned<String>,
    /// User id to run as when started as root.
    pub uid: Spanned<u32>,
    /// Group id to run as when started as root.
    pub gid: Spanned<u32>,
    /// TLS.
    pub tls: Tls,
    /// Log.
    pub log: Log,
    /// How often nodes come back.
    pub lease: Lease,
    /// Database.
    pub store: Store,
    /// Other directories of this identity.
    pub replicas: Replicas,
    /// Who may come.
    pub admission: Admission,
    /// Mirrors.
    pub mirror: Mirror,
    /// Limits that an operator may want to change; the fixed ones are in the program.
    pub limits: Limits,
}

/// Who may come that is not here yet. Nodes that are here stay, whatever is set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Admission {
    /// What a new node is asked for.
    pub mode: Mode,
    /// Zero bits that a new node must find by trying (mode `work`): 2 to the power of so many hashes.
    pub work_bits: Spanned<u32>,
}

/// What a new node is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Nothing.
    Open,
    /// Proof of work; or an invite.
    Work,
    /// An invite, or the operator's approval before it comes.
    Invite,
    /// Nothing, and it is neither shown nor routed to until the operator approves; or an invite.
    Approval,
}

/// HTTPS by rustls.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tls {
    /// PEM file with the certificate chain; empty: plain HTTP.
    pub certificate: Spanned<PathBuf>,
    /// PEM file with its private key.
    pub key: PathBuf,
}

/// Where log lines go is the standard error; this is how they look.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// Lowest level that is written.
    pub level: Level,
    /// Text for people or one JSON object a line.
    pub format: Format,
}

/// Log levels; their meanings are in docs/logging.md.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "the names say it")]
pub enum Level {
    Error,
    Warn,
    Info,
    Debug,
}

/// Log formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "the names say it")]
pub enum Format {
    Human,
    Json,
}

/// Leases: a node that was not heard of for that long is not listed any more.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Lease {
    /// Seconds of a lease. Nodes are told to announce again after a third of it.
    pub seconds: Spanned<u32>,
}

/// The database.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Store {
    /// Largest size of the database file; then new cards are refused.
    pub max_megabytes: Spanned<u32>,
    /// A PostgreSQL database instead of the file, without its password; empty: the file.
    pub url: Spanned<String>,
    /// File with the database's password, for nobody else to read.
    pub password_file: PathBuf,
    /// PEM file with those certificates that the database's own must come from.
    pub certificates: PathBuf,
}

/// Mirrors: of which directory this is one, and who may be one of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Mirror {
    /// The directory that is mirrored, as nodes name it; empty: this is a directory of its own.
    pub of: Spanned<String>,
    /// PEM file with those certificates that the mirrored directory's own must come from; empty: those of the web.
    pub certificates: PathBuf,
    /// Ids of the mirrors that may follow this directory.
    pub allow: Spanned<Vec<String>>,
}

/// Limits.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Nodes that may be registered.
    pub nodes: u32,
    /// Connections open at once; more are closed at once.
    pub connections: u32,
    /// Streams and long polls open at once.
    pub streams: u32,
    /// Offers in memory for one recipient.
    pub offers_per_node: u32,
    /// Offers and receipts in memory in all, about 4 KiB each.
    pub offers: u32,
    /// Signed requests a second of one node, and look-ups of one address that is not loopback.
    pub requests_per_second: Spanned<u32>,
    /// How many of them may come at once.
    pub requests_burst: Spanned<u32>,
    /// Requests a second of everybody together; more are told to come again.
    pub overall_per_second: Spanned<u32>,
}

fn plain<T>(value: T) -> Spanned<T> {
    Spanned::new(0..0, value)
}

impl Default for Config {
    fn default() -> Self {
        Self {
            home: PathBuf::new(),
            listen: plain(SocketAddr::from(([127, 0, 0, 1], 7440))),
            origin: plain(String::new()),
            behind_proxy: false,
            metrics_listen: plain(String::new()),
            uid: plain(61_100),
            gid: plain(61_100),
            tls: Tls::default(),
            log: Log::default(),
            lease: Lease::default(),
            store: Store::default(),
            replicas: Replicas::default(),
            admission: Admission::default(),
            mirror: Mirror::default(),
            limits: Limits::default(),
        }
    }
}

impl Default for Tls {
    fn default() -> Self {
        Self { certificate: plain(PathBuf::new()), key: PathBuf::new() }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self { level: Level::Info, format: Format::Human }
    }
}

impl Default for Lease {
    fn default() -> Self {
        Self { seconds: plain(3600) }
    }
}

impl Default for Store {
    fn default() -> Self {
        Self {
            max_megabytes: plain(4096),
            url: plain(String::new()),
            password_file: PathBuf::new(),
            certificates: PathBuf::new(),
        }
    }
}

impl Default for Admission {
    fn default() -> Self {
        Self { mode: Mode::Open, work_bits: plain(20) }
    }
}

impl Default for Mirror {
    fn default() -> Self {
        Self { of: plain(String::new()), certificates: PathBuf::new(), allow: plain(Vec::new()) }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            nodes: 100_000,
            connections: 8192,
            streams: 4096,
            offers_per_node: 32,
            offers: 16_384,
            requests_per_second: plain(20),
            requests_burst: plain(60),
            overall_per_second: plain(50_000),
        }
    }
}

/// A configuration with the text it came from.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The values.
    pub config: Config,
    /// The text, for `config show`.
    pub source: Source,
    /// Where things lie.
    pub home: Home,
    /// File and home as they were asked for, for who reads them again.
    pub asked: (Option<PathBuf>, Option<PathBuf>),
}

impl Loaded {
    /// Reads and checks. Without `file`, `directory.toml` in the home is read if it is there.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn read(file: Option<&Path>, home: Option<&Path>) -> Result<Self, ConfigError> {
        let before = home.map_or_else(default_home, Path::to_owned);
        let own = before.join("directory.toml");
        let source = match file {
            Some(file) => Source::read(file)?,
            None if own.exists() => Source::read(&own)?,
            None => Source::new(own, ""),
        };
        let config = Config::parse(&source)?;
        let asked = (file.map(Path::to_owned), home.map(Path::to_owned));
        let home = match home {
            Some(flag) => flag.to_owned(),
            None if config.home.as_os_str().is_empty() => before,
            None => config.home.clone(),
        };
        let home = std::path::absolute(&home).unwrap_or(home);
        Ok(Self { config, source, home: Home { folder: home }, asked })
    }
}

impl Config {
    /// Reads a file's text and checks it.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn parse(source: &Source) -> Result<Self, ConfigError> {
        let config: Self = source.parse()?;
        config.check(source)?;
        Ok(config)
    }

    /// What types alone cannot say.
    fn check(&self, source: &Source) -> Result<(), ConfigError> {
        let listen = *self.listen.get_ref();
        let tls = !self.tls.certificate.get_ref().as_os_str().is_empty();
        if tls && self.tls.key.as_os_str().is_empty() {
            return Err(source.refuse(self.tls.certificate.span(), "a certificate needs its key: set tls.key"));
        }
        if !tls && !listen.ip().is_loopback() && !self.behind_proxy {
            let why = "plain HTTP is served on loopback only: set tls.certificate and tls.key, or behind_proxy = true";
            return Err(source.refuse(self.listen.span(), why));
        }
        check_origin(self.origin.get_ref()).map_err(|why| source.refuse(self.origin.span(), why))?;
        if self.origin.get_ref().starts_with("https:") && !tls && !self.behind_proxy {
            // Unsaid, every caller of the proxy would pass for this machine: no limits for look-ups, metrics for all.
            let why =
                "an https origin needs tls.certificate and tls.key, or behind_proxy = true where a proxy has them";
            return Err(source.refuse(self.origin.span(), why));
        }
        let needs_origin = self.behind_proxy || tls || listen.ip().is_unspecified();
        if needs_origin && self.origin.get_ref().is_empty() {
            let why = "what clients reach this directory by is not known: set origin, as in origin = \"https://directory.example.org\"";
            return Err(source.refuse(self.listen.span(), why));
        }
        self.metrics_address(source)?;
        for id in [&self.uid, &self.gid] {
            if *id.get_ref() == 0 {
                return Err(source.refuse(id.span(), "0 is root; name an id that nothing else uses"));
            }
        }
        let bits = &self.admission.work_bits;
        if !(1..=WORK_BITS).contains(bits.get_ref()) {
            return Err(source.refuse(bits.span(), "must be between 1 and 28; each one more doubles the work"));
        }
        self.store.check(source)?;
        self.check_mirror(source)?;
        self.check_replicas(source)?;
        let positive = [&self.lease.seconds, &self.store.max_megabytes, &self.limits.requests_per_second];
        let limits = &self.limits;
        for number in positive.into_iter().chain([&limits.requests_burst, &limits.overall_per_second]) {
            if *number.get_ref() == 0 {
                return Err(source.refuse(number.span(), "must be at least 1"));
            }
        }
        Ok(())
    }

    fn check_mirror(&self, source: &Source) -> Result<(), ConfigError> {
        let Mirror { of, certificates, allow } = &self.mirror;
        let upstream = of.get_ref().parse::<UpstreamAddress>();
        let why = match upstream {
            _ if of.get_ref().is_empty() && certificates.as_os_str().is_empty() => None,
            _ if of.get_ref().is_empty() => Some("certificates are the mirrored directory's: set mirror.of"),
            Err(why) => Some(why),
            Ok(_) if !self.store.url.get_ref().is_empty() => {
                Some("a mirror keeps its cards in a file of its own: leave store.url empty")
            }
            Ok(_) => None,
        };
        if let Some(why) = why {
            return Err(source.refuse(of.span(), why));
        }
        if allow.get_ref().iter().any(|id| id.parse::<NodeId>().is_err()) {
            let why = "must be the mirrors' ids (`directory init` prints one), as in [\"did:key:z6Mk…\"]";
            return Err(source.refuse(allow.span(), why));
        }
        Ok(())
    }

    /// The directory that is mirrored, if this is a mirror.
    #[must_use]
    pub fn upstream(&self) -> Option<UpstreamAddress> {
        self.mirror.of.get_ref().parse().ok()
    }

    /// The address for metrics, if one is set.
    ///
    /// # Errors
    /// Not an address, or not a loopback one.
    pub fn metrics_address(&self, source: &Source) -> Result<Option<SocketAddr>, ConfigError> {
        let text = self.metrics_listen.get_ref();
        if text.is_empty() {
            return Ok(None);
        }
        match text.parse::<SocketAddr>() {
            Ok(address) if address.ip().is_loopback() => Ok(Some(address)),
            _ => Err(source
                .refuse(self.metrics_listen.span(), "must be a loopback address and port, as in \"127.0.0.1:7441\"")),
        }
    }

    /// The public origin, without a slash at the end; `bound` is where the listener really is (a configured port may be 0).
    #[must_use]
    pub fn public_origin(&self, bound: SocketAddr) -> String {
        let configured = self.origin.get_ref().trim_end_matches('/');
        if configured.is_empty() { format!("http://{bound}") } else { configured.to_owned() }
    }
}

impl Store {
    /// What `url` says of the database, if it names one.
    fn check(&self, source: &Source) -> Result<(), ConfigError> {
        let url = self.url.get_ref();
        let files = [&self.password_file, &self.certificates];
        let why = match postgres::parse(url) {
            _ if url.is_empty() && files.iter().all(|file| file.as_os_str().is_empty()) => return Ok(()),
            _ if url.is_empty() => "password_file and certificates are a database's: set store.url",
            Err(why) => why,
            Ok((_, Place::Network(host, _))) if self.certificates.as_os_str().is_empty() && !is_here(&host) => {
                "a database on another machine is reached by TLS alone: set store.certificates"
            }
            Ok(_) => return Ok(()),
        };
        Err(without_line(source.refuse(self.url.span(), why)))
    }
}

/// The line may hold a password: it is named and not shown.
fn without_line(mut error: ConfigError) -> ConfigError {
    if let ConfigError::Refused(problem) = &mut error {
        (problem.source, problem.column, problem.width) = ("url = …".to_owned(), 1, 3);
    }
    error
}

pub(crate) fn is_here(host: &str) -> bool {
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

pub(crate) fn check_origin(text: &str) -> Result<(), &'static str> {
    if text.is_empty() {
        return Ok(());
    }
    let wrong = "must be scheme, host and port alone, as in \"https://directory.example.org\"";
    if text.len() > ORIGIN_BYTES {
        return Err(wrong);
    }
    let url = url::Url::parse(text).map_err(|_| wrong)?;
    let plain = matches!(url.scheme(), "http" | "https") && url.path() == "/" && url.query().is_none();
    let exact = url.origin().ascii_serialization() == text.trim_end_matches('/');
    if plain && exact && url.username().is_empty() && url.fragment().is_none() { Ok(()) } else { Err(wrong) }
}

/// Where a directory's files lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Home {
    folder: PathBuf,
}

impl Home {
    /// A home at `folder`.
    #[must_use]
    pub fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned() }
    }

    /// The folder itself; the operator's.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The identity key. Outside the state, so that the confined process cannot read it again.
    #[must_use]
    pub fn key(&self) -> PathBuf {
        self.folder.join("directory.key")
    }

    /// What the confined process keeps.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.folder.join("state")
    }

    /// The database.
    #[must_use]
    pub fn database(&self) -> PathBuf {
        self.state().join("directory.sqlite")
    }

    /// The folder that only the operator can enter.
    #[must_use]
    pub fn admin(&self) -> PathBuf {
        self.folder.join("admin")
    }

    /// The admin socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.admin().join("admin.sock")
    }
}

pub(crate) fn default_home() -> PathBuf {
    if nix::unistd::geteuid().is_root() {
        return PathBuf::from("/var/lib/openred-directory");
    }
    let data = std::env::var_os("XDG_DATA_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/share"));
    data.or_else(home).unwrap_or_else(|| PathBuf::from(".")).join("openred-directory")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn check(text: &str) -> Result<Config, String> {
        let source = Source::new("directory.toml", text);
        Config::parse(&source).map_err(|error| error.to_string())
    }

    #[test]
    fn the_shipped_example_equals_the_defaults() {
        let source = Source::new("directory.example.toml", include_str!("../directory.example.toml"));
        let example: Config = source.parse().unwrap();
        assert_eq!(toml::Value::try_from(&example).unwrap(), toml::Value::try_from(Config::default()).unwrap());
        let settings = source.settings(&Config::default()).unwrap();
        let missing: Vec<_> =
            settings.iter().filter(|setting| setting.origin == openred_proto::config::Origin::Default).collect();
        assert!(missing.is_empty(), "the example leaves out {missing:?}");
    }

    #[test]
    fn an_unknown_key_is_refused_with_the_nearest() {
        let expected =
            "directory.toml:2:1: unknown key `straems`; did you mean `streams`?\n   |\n 2 | straems = 4\n   | ^^^^^^^";
        assert_eq!(check("[limits]\nstraems = 4\n").unwrap_err(), expected);
    }

    #[test]
    fn a_database_is_named_without_its_password() {
        for (text, expected) in [
            ("[store]\nurl = \"postgresql://a:secret@/b?host=/run/postgresql\"", "holds a password"),
            ("[store]\nurl = \"mysql://a:secret@/b\"", "must be a URL"),
            ("[store]\nurl = \"postgresql://a@db.example/b\"", "a database on another machine is reached by TLS alone"),
            ("[store]\npassword_file = \"x\"", "set store.url"),
        ] {
            let error = check(text).unwrap_err();
            assert!(error.contains(expected) && !error.contains("secret"), "{text}\n{error}");
        }
        for text in [
            "[store]\nurl = \"postgresql://a@/b?host=/run/postgresql\"\npassword_file = \"x\"",
            "[store]\nurl = \"postgresql://a@127.0.0.1:5433/b\"",
            "[store]\nurl = \"postgresql://a@db.example/b\"\ncertificates = \"db.pem\"",
        ] {
            check(text).unwrap();
        }
    }

    #[test]
    fn what_would_be_unsafe_or_useless_is_refused_where_it_stands() {
        for (text, expected) in [
            ("listen = \"192.0.2.1:80\"", "directory.toml:1:10: plain HTTP is served on loopback only"),
            ("listen = \"0.0.0.0:80\"\nbehind_proxy = true", "directory.toml:1:10: what clients reach"),
            ("listen = \"nowhere\"", "directory.toml:1:10: invalid socket address"),
            ("origin = \"https://a.example\"", "directory.toml:1:10: an https origin needs tls.certificate"),
            ("origin = \"https://a.example/path\"", "directory.toml:1:10: must be scheme, host and port"),
            ("origin = \"https://u@a.example\"", "directory.toml:1:10: must be scheme, host and port"),
            ("origin = \"HTTPS://A.example\"", "directory.toml:1:10: must be scheme, host and port"),
            ("[tls]\ncertificate = \"a.pem\"", "directory.toml:2:15: a certificate needs its key"),
            ("metrics_listen = \"0.0.0.0:1\"", "directory.toml:1:18: must be a loopback address"),
            ("uid = 0", "directory.toml:1:7: 0 is root"),
            ("[lease]\nseconds = 0", "directory.toml:2:11: must be at least 1"),
            ("[admission]\nwork_bits = 29", "directory.toml:2:13: must be between 1 and 28"),
            ("[admission]\nmode = \"friends\"", "directory.toml:2:8: unknown value `friends`"),
        ] {
            let error = check(text).unwrap_err();
            assert!(error.starts_with(expected), "{text}\n{error}");
        }
        for text in [
            "listen = \"[::1]:1\"",
            "listen = \"192.0.2.1:80\"\nbehind_proxy = true\norigin = \"https://a.example\"",
            "origin = \"https://a.example:8443/\"\nbehind_proxy = true",
            "origin = \"https://a.example\"\n[tls]\ncertificate = \"a.pem\"\nkey = \"a.key\"",
            "origin = \"http://a.example\"",
            "metrics_listen = \"[::1]:9\"",
        ] {
            check(text).unwrap();
        }
    }
}
