//! The manifest's table `permissions`: how each is written, with its reason.

use serde::{Deserialize, Deserializer};

use super::ENTRIES;
use super::permission::{MEGABYTES, Permission, PermissionName, is_destination, is_loopback, is_operation, is_path};
use super::words::{Line, ModuleId};

/// A permission that a manifest asks for, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// Which and how much.
    pub permission: Permission,
    /// In the author's words.
    pub reason: Line,
}

/// The manifest's table `permissions`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Written")]
pub struct Permissions(pub(super) Vec<Asked>);

impl Permissions {
    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = &Asked> {
        self.0.iter()
    }
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Written {
    kv: KvFamily,
    blob: KvFamily,
    peer: PeerFamily,
    module: ModuleFamily,
    sign: SignFamily,
    seal: Option<Bare>,
    net: NetFamily,
    fs: FsFamily,
    http: HttpFamily,
    node: NodeFamily,
}

/// `kv.quota` and the like: a family of permissions with one member each so far.
macro_rules! family {
    ($($name:ident { $member:ident: $type:ty })*) => {
        $(#[derive(Default, Deserialize)]
        #[serde(deny_unknown_fields)]
        struct $name {
            $member: Option<$type>,
        })*
    };
}

family! {
    KvFamily { quota: Quota }
    PeerFamily { send: Bare }
    ModuleFamily { call: Modules }
    SignFamily { domain: Bare }
    NetFamily { egress: Destinations }
    FsFamily { read: Paths }
    HttpFamily { listen: Listener }
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct NodeFamily {
    status: Option<Bare>,
    operate: Option<Operations>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Bare {
    reason: Line,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Quota {
    #[serde(deserialize_with = "megabytes")]
    megabytes: u64,
    reason: Line,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Modules {
    modules: Vec<ModuleId>,
    reason: Line,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Destinations {
    to: Vec<Destination>,
    reason: Line,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Paths {
    paths: Vec<ReadPath>,
    reason: Line,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Operations {
    operations: Vec<Operation>,
    reason: Line,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Listener {
    address: Loopback,
    reason: Line,
}

fn megabytes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let megabytes = u64::deserialize(deserializer)?;
    let wrong = || serde::de::Error::custom(format!("not an amount; use 1 to {MEGABYTES} megabytes"));
    (1..=MEGABYTES).contains(&megabytes).then_some(megabytes).ok_or_else(wrong)
}

/// A text that must pass a test.
macro_rules! entry {
    ($(#[$doc:meta])* $visibility:vis $name:ident, $check:expr, $way_out:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
        $visibility struct $name(String);

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                if $check(&text) { Ok(Self(text)) } else { Err(serde::de::Error::custom($way_out)) }
            }
        }
    };
}

entry!(
    /// A host and a port of it: `api.example.com:443`, `192.0.2.1:80`, `[2001:db8::1]:443`.
    pub Destination,
    is_destination,
    "not a destination; use HOST:PORT with a name in lower case or an address, and no pattern"
);
entry!(
    ReadPath,
    is_path,
    "not a path that can be granted; use an absolute one without . or .., outside of /proc, /sys and /dev, whose first name has three bytes at least"
);
entry!(Operation, is_operation, "not an operation; use names of the admin contract's service Node, such as ListLinks");
entry!(Loopback, is_loopback, "not an address of this machine; use 127.0.0.1:PORT or [::1]:PORT, from 1024 up");

impl Destination {
    /// As text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<Written> for Permissions {
    type Error = String;

    fn try_from(written: Written) -> Result<Self, String> {
        let mut asked = Vec::new();
        let mut quota = |name, quota: Option<Quota>| {
            if let Some(Quota { megabytes, reason }) = quota {
                asked.push(Asked { permission: Permission::quota(name, megabytes), reason });
            }
        };
        quota(PermissionName::KvQuota, written.kv.quota);
        quota(PermissionName::BlobQuota, written.blob.quota);
        let bare = [
            (PermissionName::PeerSend, written.peer.send),
            (PermissionName::SignDomain, written.sign.domain),
            (PermissionName::Seal, written.seal),
            (PermissionName::NodeStatus, written.node.status),
        ];
        let bare = bare
            .into_iter()
            .filter_map(|(name, bare)| Some(Asked { permission: Permission::whole(name), reason: bare?.reason }));
        asked.extend(bare);
        if let Some(Modules { modules, reason }) = written.module.call {
            asked.push(listed(PermissionName::ModuleCall, modules.iter().map(ToString::to_string).collect(), reason)?);
        }
        if let Some(Destinations { to, reason }) = written.net.egress {
            asked.push(listed(PermissionName::NetEgress, to.into_iter().map(|to| to.0).collect(), reason)?);
        }
        if let Some(Paths { paths, reason }) = written.fs.read {
            asked.push(listed(PermissionName::FsRead, paths.into_iter().map(|path| path.0).collect(), reason)?);
        }
        if let Some(Listener { address, reason }) = written.http.listen {
            asked.push(listed(PermissionName::HttpListen, vec![address.0], reason)?);
        }
        if let Some(Operations { operations, reason }) = written.node.operate {
            let operations = operations.into_iter().map(|operation| operation.0).collect();
            asked.push(listed(PermissionName::NodeOperate, operations, reason)?);
        }
        asked.sort_by_key(|asked| asked.permission.name());
        Ok(Self(asked))
    }
}

fn listed(name: PermissionName, entries: Vec<String>, reason: Line) -> Result<Asked, String> {
    if entries.is_empty() || entries.len() > ENTRIES {
        return Err(format!("{name} names 1 to {ENTRIES} of them; name each, or leave the permission out"));
    }
    Ok(Asked { permission: Permission::of(name, entries), reason })
}
