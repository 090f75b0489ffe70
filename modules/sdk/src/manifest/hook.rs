//! A module's part in calls that are not its own: where, when, of which calls, with what of them, and what becomes of a call when the
//! hook fails.

use std::fmt;
use std::str::FromStr;

use openred_proto::id::NodeId;
use serde::{Deserialize, Deserializer};

use super::words::{BadWord, Code, Line, ModuleId};
use crate::message::Method;

/// Least and most that a hook may ask for, in milliseconds.
pub(super) const TIMEOUT_MILLIS: std::ops::RangeInclusive<u32> = 1..=100;
/// Unless it says otherwise.
const TIMEOUT: u32 = 50;

/// One hook.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hook {
    /// Its name inside the module.
    pub id: Code,
    /// Which calls pass it.
    pub point: Point,
    /// Why it is needed, for the operator: a hook sees calls that are not its module's.
    pub reason: Line,
    /// What it is for; hooks run in the order of the classes.
    pub class: HookClass,
    /// Hooks of its class that come after it.
    #[serde(default)]
    pub before: Vec<HookName>,
    /// Hooks of its class that come before it.
    #[serde(default)]
    pub after: Vec<HookName>,
    /// Only these calls; the node looks, the module is not asked.
    #[serde(default, rename = "match")]
    pub matches: Match,
    /// What of a call it is shown.
    #[serde(default)]
    pub fields: Vec<Field>,
    /// What of a call it may change; each must be among `fields`.
    #[serde(default)]
    pub changes: Vec<Field>,
    /// How long a call waits for it.
    #[serde(default = "timeout")]
    pub timeout_millis: u32,
    /// For `transform`: what becomes of a call when the hook fails.
    #[serde(default)]
    pub on_failure: Option<OnFailure>,
}

const fn timeout() -> u32 {
    TIMEOUT
}

impl Hook {
    /// As it is named among grants: all of it that an operator weighs, so that a hook which wants more is another grant.
    #[must_use]
    pub fn entry(&self) -> String {
        let fields = |fields: &[Field]| {
            let sorted: std::collections::BTreeSet<_> = fields.iter().map(|field| field.name()).collect();
            sorted.into_iter().collect::<Vec<_>>().join("+")
        };
        let mut entry = format!("{} {} {}", self.id, self.point.name(), self.class.name());
        if !self.fields.is_empty() {
            entry += &format!(" sees {}", fields(&self.fields));
        }
        if !self.changes.is_empty() {
            entry += &format!(" changes {}", fields(&self.changes));
        }
        entry
    }

    /// What becomes of a call when the hook fails: `authn` and `authz` close, `observe` opens, `transform` as it says.
    #[must_use]
    pub fn on_failure(&self) -> OnFailure {
        match self.class {
            HookClass::Authn | HookClass::Authz => OnFailure::Close,
            HookClass::Transform => self.on_failure.unwrap_or(OnFailure::Close),
            HookClass::Observe => OnFailure::Open,
        }
    }
}

/// Which calls pass a hook.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Point {
    /// A peer's call, before the module that serves it.
    Inbound,
    /// A call of one of this node's modules, before it goes to the peer.
    Outbound,
}

/// What a hook is for, in the order in which they run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HookClass {
    /// Says who it is.
    Authn,
    /// Says whether he may.
    Authz,
    /// Changes the call.
    Transform,
    /// Looks on.
    Observe,
}

/// What becomes of a call when its hook fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnFailure {
    /// It is refused, with the module's name.
    Close,
    /// It goes on as if there were no such hook.
    Open,
}

/// A part of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Field {
    /// The peer's id.
    Peer,
    /// The module that is called.
    Module,
    /// The method.
    Method,
    /// The path.
    Path,
    /// The media type.
    ContentType,
    /// The length as the caller said it.
    Length,
    /// When the caller stops waiting.
    Deadline,
    /// The same for each retry.
    IdempotencyKey,
    /// The body's beginning.
    Body,
}

impl Point {
    /// As it is written.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Inbound => "inbound",
            Self::Outbound => "outbound",
        }
    }
}

impl HookClass {
    /// As it is written.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Authn => "authn",
            Self::Authz => "authz",
            Self::Transform => "transform",
            Self::Observe => "observe",
        }
    }
}

impl Field {
    /// As it is written.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Peer => "peer",
            Self::Module => "module",
            Self::Method => "method",
            Self::Path => "path",
            Self::ContentType => "content_type",
            Self::Length => "length",
            Self::Deadline => "deadline",
            Self::IdempotencyKey => "idempotency_key",
            Self::Body => "body",
        }
    }

    /// Whether a hook may change it. Who calls whom, and which retry it is, stays as it came.
    #[must_use]
    pub const fn may_change(self) -> bool {
        matches!(self, Self::Path | Self::ContentType | Self::Body)
    }
}

/// A filter: what is said must fit, what is not said fits.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Match {
    /// Calls of these modules.
    pub modules: Vec<ModuleId>,
    /// Calls by this method.
    #[serde(deserialize_with = "method")]
    pub method: Option<Method>,
    /// Paths that begin so.
    pub path: Option<String>,
    /// Calls of, or to, these peers.
    #[serde(deserialize_with = "peers")]
    pub peers: Vec<NodeId>,
    /// The media type up to here: calls between nodes have no other header.
    pub content_type: Option<String>,
}

impl Match {
    /// Whether a call fits.
    #[must_use]
    pub fn fits(&self, module: &str, method: Method, path: &str, peer: &NodeId, content_type: &str) -> bool {
        (self.modules.is_empty() || self.modules.iter().any(|wanted| wanted.as_str() == module))
            && self.method.is_none_or(|wanted| wanted == method)
            && self.path.as_ref().is_none_or(|prefix| path.starts_with(prefix.as_str()))
            && (self.peers.is_empty() || self.peers.contains(peer))
            && self.content_type.as_ref().is_none_or(|prefix| content_type.starts_with(prefix.as_str()))
    }
}

fn method<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Method>, D::Error> {
    super::words::method(deserializer).map(Some)
}

fn peers<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<NodeId>, D::Error> {
    let texts = Vec::<String>::deserialize(deserializer)?;
    let parse = |text: &String| {
        let wrong =
            |_| serde::de::Error::custom(format!("{text:?} is no did:key of a node; copy it from `peers list`"));
        text.parse().map_err(wrong)
    };
    texts.iter().map(parse).collect()
}

/// A hook, or all hooks of a module: `MODULE/HOOK` or `MODULE`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct HookName {
    /// Whose.
    pub module: ModuleId,
    /// Which; all of them if it is not said.
    pub hook: Option<Code>,
}

impl FromStr for HookName {
    type Err = BadWord;

    fn from_str(text: &str) -> Result<Self, BadWord> {
        match text.split_once('/') {
            Some((module, hook)) => Ok(Self { module: module.parse()?, hook: Some(hook.parse()?) }),
            None => Ok(Self { module: text.parse()?, hook: None }),
        }
    }
}

impl fmt::Display for HookName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.hook {
            Some(hook) => write!(f, "{}/{hook}", self.module),
            None => write!(f, "{}", self.module),
        }
    }
}

impl<'de> Deserialize<'de> for HookName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let wrong = |_| serde::de::Error::custom("not a hook; use MODULE/HOOK, or MODULE for all of its hooks");
        String::deserialize(deserializer)?.parse().map_err(wrong)
    }
}
