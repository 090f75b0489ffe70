//! A module's part in calls that are not its own: where, when, of which calls, with what of them, and what becomes of a call when the
//! hook fails.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use openred_proto::id::NodeId;
use serde::{Deserialize, Deserializer};

use super::vocabulary::{Field, HookClass, Point};
use super::words::{BadWord, Code, Line, ModuleId};
use crate::Method;

/// Least and most that a hook may ask for, in milliseconds.
pub(super) const TIMEOUT_MILLIS: std::ops::RangeInclusive<u32> = 50..=100;
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
    /// As it is named among grants: all of it that an operator weighs, so that a hook which wants more is another grant. That is what it
    /// sees and changes, of which calls, between which others, and whether calls go on where it fails. Its reason and its time-out, which has a
    /// bound of its own, are not in it. No two hooks that differ in any of the rest have the same entry.
    #[must_use]
    pub fn entry(&self) -> String {
        let fields = |fields: &[Field]| {
            let sorted: BTreeSet<_> = fields.iter().map(|field| field.name()).collect();
            sorted.into_iter().collect::<Vec<_>>().join("+")
        };
        let mut entry = format!("{} {} {}", self.id, self.point.name(), self.class.name());
        if !self.fields.is_empty() {
            entry += &format!(" sees {}", fields(&self.fields));
        }
        if !self.changes.is_empty() {
            entry += &format!(" changes {}", fields(&self.changes));
        }
        entry += &self.matches.entry();
        for (word, others) in [("before", &self.before), ("after", &self.after)] {
            if !others.is_empty() {
                entry += &format!(" {word} {}", sorted(others));
            }
        }
        // Of the other classes none has a choice.
        if self.class == HookClass::Transform && self.on_failure() == OnFailure::Open {
            entry += " opens";
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

/// What becomes of a call when its hook fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnFailure {
    /// It is refused, with the module's name.
    Close,
    /// It goes on as if there were no such hook.
    Open,
}

/// Which calls: what is said must fit, what is not said fits. The node's chain holds calls against it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Match {
    /// Calls of these modules.
    pub modules: Vec<ModuleId>,
    /// Calls by this method.
    #[serde(deserialize_with = "method")]
    pub method: Option<Method>,
    /// Paths that begin so; with `{name}` in it, paths of this shape.
    pub path: Option<String>,
    /// Calls of, or to, these peers.
    #[serde(deserialize_with = "peers")]
    pub peers: Vec<NodeId>,
    /// The media type up to here: calls between nodes have no other header.
    pub content_type: Option<String>,
}

impl Match {
    /// What it leaves of all calls; nothing where that is each.
    fn entry(&self) -> String {
        let mut entry = String::new();
        if !self.modules.is_empty() {
            entry += &format!(" of {}", sorted(&self.modules));
        }
        entry += match self.method {
            Some(Method::Get) => " method GET",
            Some(Method::Post) => " method POST",
            None => "",
        };
        // Quoted: what an author writes there is no word of the entry.
        if let Some(path) = &self.path {
            entry += &format!(" path {path:?}");
        }
        if !self.peers.is_empty() {
            entry += &format!(" peers {}", sorted(&self.peers));
        }
        if let Some(kind) = &self.content_type {
            entry += &format!(" type {kind:?}");
        }
        entry
    }
}

/// The same text in whatever order they are named.
fn sorted<T: ToString>(names: &[T]) -> String {
    let sorted: BTreeSet<String> = names.iter().map(ToString::to_string).collect();
    sorted.into_iter().collect::<Vec<_>>().join("+")
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
