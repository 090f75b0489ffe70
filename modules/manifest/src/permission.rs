//! What a module asks for, and what it was granted: names, amounts, and the one rule that joins them.
//!
//! A module gets what it asks for, as far as it was granted, as far as the node's configuration lets anything be granted: each step is
//! [`Permission::meet`]. Nothing that is not named is had.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Component, Path};
use std::str::FromStr;

use super::words::ModuleId;

/// Most megabytes that can be asked for.
pub(super) const MEGABYTES: u64 = 1 << 20;
/// Longest host name of a destination (RFC 1035 §2.3.4).
const HOST_BYTES: usize = 253;
/// Longest path.
const PATH_BYTES: usize = 256;
/// Longest entry of a hook: every list of it full, every text of it quoted.
const HOOK_BYTES: usize = 16 << 10;
/// Shortest first name of a path: the launcher of modules refuses shorter ones, below which a socket could be named like the node's own.
const FIRST_BYTES: usize = 3;

/// What can be granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PermissionName {
    /// Rows in the node's store, up to an amount.
    KvQuota,
    /// Blobs on the node's disk, up to an amount.
    BlobQuota,
    /// Requests to the same module of linked peers.
    PeerSend,
    /// Answering peers, route by route. Asked for by the routes themselves.
    RoutePeer,
    /// Taking part in other modules' calls, hook by hook. Asked for by the hooks themselves.
    Hook,
    /// Calls of other modules of this node.
    ModuleCall,
    /// Signatures of the node in the module's own domain.
    SignDomain,
    /// Sealing under a key of the module's own.
    Seal,
    /// Connections to named hosts.
    NetEgress,
    /// Reading files of the host.
    FsRead,
    /// A listener on this machine's loopback.
    HttpListen,
    /// The node's health and figures.
    NodeStatus,
    /// The operator's own operations, one by one.
    NodeOperate,
}

impl PermissionName {
    /// All of them, in the order in which they are shown.
    pub const ALL: [Self; 13] = [
        Self::KvQuota,
        Self::BlobQuota,
        Self::PeerSend,
        Self::RoutePeer,
        Self::Hook,
        Self::ModuleCall,
        Self::SignDomain,
        Self::Seal,
        Self::NetEgress,
        Self::FsRead,
        Self::HttpListen,
        Self::NodeStatus,
        Self::NodeOperate,
    ];

    /// As it is written.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::KvQuota => "kv.quota",
            Self::BlobQuota => "blob.quota",
            Self::PeerSend => "peer.send",
            Self::RoutePeer => "route.peer",
            Self::Hook => "hook",
            Self::ModuleCall => "module.call",
            Self::SignDomain => "sign.domain",
            Self::Seal => "seal",
            Self::NetEgress => "net.egress",
            Self::FsRead => "fs.read",
            Self::HttpListen => "http.listen",
            Self::NodeStatus => "node.status",
            Self::NodeOperate => "node.operate",
        }
    }

    /// What a module that has it can do, for the operator who decides.
    #[must_use]
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::KvQuota => "keep rows in the node's store, up to so many megabytes",
            Self::BlobQuota => "keep files on the node's disk, up to so many megabytes",
            Self::PeerSend => "send requests to the same module of your linked peers, and know which peers are linked",
            Self::RoutePeer => "answer requests of your linked peers on these routes",
            Self::Hook => "see, and where it says so change or refuse, calls of other modules",
            Self::ModuleCall => "call these other modules of this node",
            Self::SignDomain => "have statements signed by your node's key, marked as this module's",
            Self::Seal => "seal and open bytes under a key that only this module's calls use",
            Self::NetEgress => "open connections to these hosts: what it knows can leave this machine",
            Self::FsRead => "read these files and folders of this machine, and all that is put into them later",
            Self::HttpListen => "answer HTTP on this address of this machine, to whoever can reach it here",
            Self::NodeStatus => "read the node's health and figures, among them peers' ids",
            Self::NodeOperate => {
                "do these operations as you would yourself: give it to nobody whom you would not give the admin socket"
            }
        }
    }

    const fn takes(self) -> Takes {
        match self {
            Self::KvQuota | Self::BlobQuota => Takes::Megabytes,
            Self::PeerSend | Self::SignDomain | Self::Seal | Self::NodeStatus => Takes::Nothing,
            Self::RoutePeer => Takes::Entries(is_bare),
            Self::Hook => Takes::Entries(is_hook),
            Self::ModuleCall => Takes::Entries(is_module),
            Self::NetEgress => Takes::Entries(is_destination),
            Self::FsRead => Takes::Entries(is_path),
            Self::HttpListen => Takes::Entries(is_loopback),
            Self::NodeOperate => Takes::Entries(is_operation),
        }
    }
}

enum Takes {
    Nothing,
    Megabytes,
    Entries(fn(&str) -> bool),
}

impl fmt::Display for PermissionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for PermissionName {
    type Err = BadGrant;

    fn from_str(text: &str) -> Result<Self, BadGrant> {
        Self::ALL.into_iter().find(|name| name.name() == text).ok_or(BadGrant::Name)
    }
}

/// How much of a permission.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Amount {
    /// All there is of it.
    Whole,
    Megabytes(u64),
    Entries(BTreeSet<String>),
}

impl Amount {
    fn meet(&self, other: &Self) -> Option<Self> {
        match (self, other) {
            (Self::Whole, other) => Some(other.clone()),
            (own, Self::Whole) => Some(own.clone()),
            (Self::Megabytes(own), Self::Megabytes(other)) => Some(Self::Megabytes(*own.min(other))),
            (Self::Entries(own), Self::Entries(other)) => {
                let both: BTreeSet<String> = own.intersection(other).cloned().collect();
                (!both.is_empty()).then_some(Self::Entries(both))
            }
            // Amounts of one permission are of one kind.
            _ => None,
        }
    }
}

/// A permission and how much of it. Written `peer.send`, `kv.quota=16` (megabytes), `net.egress=a.example:443` (one entry).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Permission {
    name: PermissionName,
    amount: Amount,
}

/// Why a text is no grant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadGrant {
    /// No such permission.
    #[error("there is no such permission; `openred module show` lists them")]
    Name,
    /// Not an amount of it.
    #[error(
        "not an amount; use kv.quota=MEGABYTES, net.egress=HOST:PORT, module.call=ID, fs.read=/PATH, or the name alone"
    )]
    Amount,
}

impl Permission {
    /// All there is of it.
    #[must_use]
    pub const fn whole(name: PermissionName) -> Self {
        Self { name, amount: Amount::Whole }
    }

    pub(super) const fn quota(name: PermissionName, megabytes: u64) -> Self {
        Self { name, amount: Amount::Megabytes(megabytes) }
    }

    pub(super) fn of(name: PermissionName, entries: impl IntoIterator<Item = String>) -> Self {
        Self { name, amount: Amount::Entries(entries.into_iter().collect()) }
    }

    /// Which.
    #[must_use]
    pub const fn name(&self) -> PermissionName {
        self.name
    }

    /// Its megabytes, if it is a quota with a bound.
    #[must_use]
    pub const fn megabytes(&self) -> Option<u64> {
        match self.amount {
            Amount::Megabytes(megabytes) => Some(megabytes),
            _ => None,
        }
    }

    /// Its entries, if it has a list.
    #[must_use]
    pub fn entries(&self) -> Vec<&str> {
        match &self.amount {
            Amount::Entries(entries) => entries.iter().map(String::as_str).collect(),
            _ => Vec::new(),
        }
    }

    /// Whether an entry is among those that it has, or it has no list.
    #[must_use]
    pub fn includes(&self, entry: &str) -> bool {
        match &self.amount {
            Amount::Whole => true,
            Amount::Megabytes(_) => false,
            Amount::Entries(entries) => entries.contains(entry),
        }
    }

    /// What both allow; nothing if that is nothing.
    #[must_use]
    pub fn meet(&self, other: &Self) -> Option<Self> {
        if self.name != other.name {
            return None;
        }
        Some(Self { name: self.name, amount: self.amount.meet(&other.amount)? })
    }

    /// As texts that [`Grants`] reads back: one for each entry.
    #[must_use]
    pub fn texts(&self) -> Vec<String> {
        match &self.amount {
            Amount::Whole => vec![self.name.to_string()],
            Amount::Megabytes(megabytes) => vec![format!("{}={megabytes}", self.name)],
            Amount::Entries(entries) => entries.iter().map(|entry| format!("{}={entry}", self.name)).collect(),
        }
    }
}

impl fmt::Display for Permission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.amount {
            Amount::Whole => write!(f, "{}", self.name),
            Amount::Megabytes(megabytes) => write!(f, "{} {megabytes} MB", self.name),
            Amount::Entries(entries) => {
                let entries: Vec<&str> = entries.iter().map(String::as_str).collect();
                write!(f, "{} {}", self.name, entries.join(", "))
            }
        }
    }
}

impl FromStr for Permission {
    type Err = BadGrant;

    fn from_str(text: &str) -> Result<Self, BadGrant> {
        let Some((name, amount)) = text.split_once('=') else { return Ok(Self::whole(text.parse()?)) };
        let name: PermissionName = name.parse()?;
        let amount = match name.takes() {
            Takes::Nothing => return Err(BadGrant::Amount),
            Takes::Megabytes => match amount.parse() {
                Ok(megabytes) if (1..=MEGABYTES).contains(&megabytes) => Amount::Megabytes(megabytes),
                _ => return Err(BadGrant::Amount),
            },
            Takes::Entries(is_entry) if is_entry(amount) => Amount::Entries(BTreeSet::from([amount.to_owned()])),
            Takes::Entries(_) => return Err(BadGrant::Amount),
        };
        Ok(Self { name, amount })
    }
}

/// A set of permissions: what was granted, or what can be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Grants(BTreeMap<PermissionName, Permission>);

impl Grants {
    /// Everything: for what comes with the node.
    #[must_use]
    pub fn all() -> Self {
        PermissionName::ALL.into_iter().map(Permission::whole).collect()
    }

    /// Reads texts; entries of one permission add up.
    ///
    /// # Errors
    /// The first text that is none, with its reason.
    pub fn parse<'a>(texts: impl IntoIterator<Item = &'a str>) -> Result<Self, (String, BadGrant)> {
        let parse = |text: &'a str| text.parse().map_err(|bad| (text.to_owned(), bad));
        texts.into_iter().map(parse).collect()
    }

    /// The permission, if it is among them.
    #[must_use]
    pub fn get(&self, name: PermissionName) -> Option<&Permission> {
        self.0.get(&name)
    }

    /// Whether there is any of it.
    #[must_use]
    pub fn has(&self, name: PermissionName) -> bool {
        self.0.contains_key(&name)
    }

    /// Whether this entry of it is among them.
    #[must_use]
    pub fn includes(&self, name: PermissionName, entry: &str) -> bool {
        self.get(name).is_some_and(|permission| permission.includes(entry))
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Permission> {
        self.0.values()
    }

    /// What both allow.
    #[must_use]
    pub fn meet(&self, other: &Self) -> Self {
        self.iter().filter_map(|own| own.meet(other.get(own.name)?)).collect()
    }

    /// What is here and not in `other`: what has to be asked for anew.
    #[must_use]
    pub fn beyond(&self, other: &Self) -> Vec<&Permission> {
        let is_covered = |own: &Permission| other.get(own.name).and_then(|other| own.meet(other)).as_ref() == Some(own);
        self.iter().filter(|own| !is_covered(own)).collect()
    }

    /// As texts that [`Grants::parse`] reads back.
    #[must_use]
    pub fn texts(&self) -> Vec<String> {
        self.iter().flat_map(Permission::texts).collect()
    }
}

impl FromIterator<Permission> for Grants {
    fn from_iter<I: IntoIterator<Item = Permission>>(permissions: I) -> Self {
        let mut grants = BTreeMap::new();
        for permission in permissions {
            match grants.get_mut(&permission.name) {
                None => drop(grants.insert(permission.name, permission)),
                Some(Permission { amount: Amount::Entries(known), .. }) => match permission.amount {
                    Amount::Entries(more) => known.extend(more),
                    other => drop(grants.insert(permission.name, Permission { name: permission.name, amount: other })),
                },
                // Said twice, the greater counts.
                Some(known) if known.meet(&permission).as_ref() == Some(known) => *known = permission,
                Some(_) => {}
            }
        }
        Self(grants)
    }
}

fn is_bare(text: &str) -> bool {
    !text.is_empty() && text.len() <= 2 * PATH_BYTES && !text.chars().any(char::is_control)
}

fn is_hook(text: &str) -> bool {
    !text.is_empty() && text.len() <= HOOK_BYTES && !text.chars().any(char::is_control)
}

fn is_module(text: &str) -> bool {
    text.parse::<ModuleId>().is_ok()
}

pub(super) fn is_destination(text: &str) -> bool {
    if let Ok(address) = text.parse::<SocketAddr>() {
        return address.port() > 0;
    }
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    let is_label = |label: &str| {
        let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(allowed)
    };
    // What looks like an address and is none would be resolved as a name.
    let is_name = host.split('.').next_back().is_some_and(|last| !last.bytes().all(|byte| byte.is_ascii_digit()));
    let is_port = port.parse::<u16>().is_ok_and(|number| number > 0 && number.to_string() == port);
    is_port && is_name && host.len() <= HOST_BYTES && host.split('.').all(is_label) && host.parse::<IpAddr>().is_err()
}

pub(super) fn is_path(text: &str) -> bool {
    let path = Path::new(text);
    let is_plain = |part: Component<'_>| matches!(part, Component::RootDir | Component::Normal(_));
    let is_system = ["/proc", "/sys", "/dev"].into_iter().any(|place| path.starts_with(place));
    let is_short = path.components().nth(1).is_none_or(|first| first.as_os_str().len() < FIRST_BYTES);
    let plain: String = path
        .components()
        .filter(|part| *part != Component::RootDir)
        .fold(String::new(), |whole, part| format!("{whole}/{}", part.as_os_str().to_string_lossy()));
    // Written one way only: what is compared as text is the same path.
    path.is_absolute()
        && path.components().all(is_plain)
        && !is_system
        && !is_short
        && plain == text
        && is_bare(text)
        && text.len() <= PATH_BYTES
}

/// A name in the contract of the admin socket; which there are, the node says.
pub(super) fn is_operation(text: &str) -> bool {
    (1..=32).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphabetic())
        && text.starts_with(char::is_uppercase)
}

pub(super) fn is_loopback(text: &str) -> bool {
    text.parse::<SocketAddr>()
        .is_ok_and(|address| address.ip().is_loopback() && address.port() >= 1024 && address.to_string() == text)
}
