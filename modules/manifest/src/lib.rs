//! A module's manifest, `openred.toml`: what it is, what it serves, what it hooks into, what it asks for and why.
//!
//! One text in, one checked value out; everybody who reads a manifest reads it here: the installer, the supervisor, the node, tests and
//! the authors' tools. Unknown keys are refused, every list and number has a bound, and each complaint names file, line, key and the way
//! out. Nothing here opens a file; what is granted of what is asked for is `Grants`' business.
//!
//! ```
//! let text = r#"
//! id = "greet"
//! version = "1.0.0"
//! program = "greet"
//! description = "Greets peers and counts them"
//!
//! [[route]]
//! method = "POST"
//! path = "/greet"
//! auth = "peer"
//! body_bytes = 1024
//!
//! [permissions]
//! kv.quota = { megabytes = 1, reason = "how often each peer was greeted" }
//! "#;
//! let manifest = openred_manifest::Manifest::parse("openred.toml", text)?;
//! assert_eq!(manifest.id.as_str(), "greet");
//! assert_eq!(manifest.routes.len(), 1);
//! # Ok::<(), openred_proto::config::ConfigError>(())
//! ```
#![forbid(unsafe_code)]

mod asked;
mod check;
mod hook;
mod permission;
mod places;
mod raised;
mod settings;
#[cfg(test)]
mod tests;
mod vocabulary;
mod words;

use std::collections::BTreeMap;

use openred_proto::config::{ConfigError, Source};
use serde::Deserialize;

pub use asked::{Asked, Destination, Permissions};
pub use hook::{Hook, HookName, Match, OnFailure};
pub use permission::{BadGrant, Grants, Permission, PermissionName};
pub use settings::{Kind, Setting, WrongSetting};
pub use vocabulary::{Field, Fields, HookClass, Point};
pub use words::{BadWord, Code, Digest, Line, ModuleId, Pattern, Program, Version};

/// What a call wants: to read, or to change something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Method {
    /// Reads; may be repeated freely.
    Get,
    /// Changes something; repeated only with the same idempotency key.
    Post,
}

/// Most routes of a module.
pub const ROUTES: usize = 64;
/// Most hooks of a module.
pub const HOOKS: usize = 16;
/// Most settings of a module.
pub const SETTINGS: usize = 64;
/// Most kinds of events that a module writes to the audit trail.
pub const AUDIT_EVENTS: usize = 32;
/// Most methods that a module describes.
pub const METHODS: usize = 4;
/// Most entries of any list inside one entry.
pub const ENTRIES: usize = 32;
/// Longest body that a route may take, in bytes.
pub const BODY_BYTES: u64 = 1 << 40;

/// A manifest, checked.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Name by which peers and the operator call it.
    pub id: ModuleId,
    /// Its own version (SemVer 2.0.0).
    pub version: Version,
    /// The versions of `openred.module` that it speaks.
    #[serde(default)]
    pub abi: Abi,
    /// File name of its program, beside the manifest.
    pub program: Program,
    /// SHA-256 of the program: written by `openred module sign`, so that the signature over the manifest binds the program too.
    #[serde(default)]
    pub sha256: Option<Digest>,
    /// One line for the operator.
    pub description: Line,
    /// What it serves.
    #[serde(default, rename = "route")]
    pub routes: Vec<Route>,
    /// Where it takes part in other modules' calls.
    #[serde(default, rename = "hook")]
    pub hooks: Vec<Hook>,
    /// What it asks for.
    #[serde(default)]
    pub permissions: Permissions,
    /// What it may use of the machine.
    #[serde(default)]
    pub limits: Limits,
    /// When it is started.
    #[serde(default)]
    pub start: Start,
    /// Its settings, by name.
    #[serde(default)]
    pub config: BTreeMap<Code, Setting>,
    /// Codes of the events that it writes to the audit trail, each with what it says.
    #[serde(default)]
    pub audit: BTreeMap<Code, Line>,
    /// Methods that it describes.
    #[serde(default, rename = "method")]
    pub methods: Vec<MethodDescription>,
}

/// What this build speaks.
pub const SPOKEN: Abi = Abi { oldest: 1, newest: 1 };

/// The versions of the contract that a module speaks, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Abi {
    /// The oldest.
    pub oldest: u32,
    /// The newest.
    pub newest: u32,
}

impl Default for Abi {
    fn default() -> Self {
        Self { oldest: 1, newest: 1 }
    }
}

impl Abi {
    /// The newest version that both sides speak.
    #[must_use]
    pub fn common(self, oldest: u32, newest: u32) -> Option<u32> {
        let both = self.newest.min(newest);
        (both >= self.oldest.max(oldest)).then_some(both)
    }
}

/// Who may call a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Auth {
    /// The same module of a linked peer, over an open session.
    Peer,
    /// The operator of this node.
    Operator,
    /// Other modules of this node that were granted `module.call`.
    Module,
}

/// One route.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Route {
    /// `GET` or `POST`.
    #[serde(deserialize_with = "words::method")]
    pub method: Method,
    /// Path inside the module; `{name}` stands for one segment.
    pub path: Pattern,
    /// Who may call it.
    pub auth: Auth,
    /// Longest body in bytes; a longer one fails while it is read.
    #[serde(default)]
    pub body_bytes: u64,
    /// How often each caller may call; without it the node's own limits count alone.
    #[serde(default)]
    pub rate: Option<Rate>,
}

fn single((name, entry, reason): (PermissionName, String, Line)) -> Asked {
    Asked { permission: Permission::of(name, [entry]), reason }
}

impl Route {
    /// As it is named among grants.
    #[must_use]
    pub fn entry(&self) -> String {
        let method = match self.method {
            Method::Get => "GET",
            Method::Post => "POST",
        };
        format!("{method} {}", self.path)
    }
}

/// A token bucket for each caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rate {
    /// Calls a second in the long run.
    pub per_second: u32,
    /// Calls at once.
    pub burst: u32,
}

/// When a module is started. The operator's `modules.idle_seconds` makes each of them lazy.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Start {
    /// With its node.
    #[default]
    Eager,
    /// By its first call: it hears of nothing before.
    Lazy,
}

/// What a module may use of the machine. The cage holds it to this; the operator's configuration may say less.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Memory, in megabytes.
    pub memory_megabytes: u32,
    /// Processor time; 100 is one processor.
    pub cpu_percent: u32,
    /// Processes and threads.
    pub tasks: u32,
    /// Open files and sockets.
    pub descriptors: u32,
    /// How long its start may take, once it has attached.
    pub start_seconds: u32,
    /// How long it may take to end what it does, before it is ended.
    pub stop_seconds: u32,
    /// Without a call for so long it is ended, and started again by the next one: 30 at least. 0: never ended.
    pub idle_seconds: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            memory_megabytes: 64,
            cpu_percent: 100,
            tasks: 32,
            descriptors: 256,
            start_seconds: 30,
            stop_seconds: 10,
            idle_seconds: 0,
        }
    }
}

/// A method: a cipher suite and the order of a token's transforms, out of vetted primitives alone. What weakens is refused by the key
/// process, which has the table; here only the words are checked.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MethodDescription {
    /// Its name.
    pub name: Code,
    /// Derives keys.
    pub kdf: Kdf,
    /// Seals.
    pub aead: Aead,
    /// Hashes.
    pub hash: Hash,
    /// What is done to a token's bytes, in this order.
    pub transforms: Vec<Transform>,
}

/// How keys are derived.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "names of primitives")]
pub enum Kdf {
    Hkdf,
}

/// What seals.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[allow(missing_docs, reason = "names of primitives")]
pub enum Aead {
    #[serde(rename = "chacha20-poly1305")]
    ChaCha20Poly1305,
    #[serde(rename = "aes-256-gcm")]
    Aes256Gcm,
}

/// What hashes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "names of primitives")]
pub enum Hash {
    Blake2s,
    Blake2b,
    Sha256,
    Sha512,
}

/// One step over a token's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transform {
    /// A mask.
    Mask,
    /// Rotation of bits.
    Rotate,
    /// Permutation of bytes.
    Permute,
    /// A Feistel cascade.
    Feistel,
}

impl Manifest {
    /// Reads a manifest; `file` is only named in complaints.
    ///
    /// # Errors
    /// The first thing that is wrong, with its place and the way out.
    pub fn parse(file: &str, text: &str) -> Result<Self, ConfigError> {
        let source = Source::new(file, text);
        let manifest: Self = source.parse().map_err(|error| places::name_the_key(error, text))?;
        check::all(&manifest).map_err(|wrong| places::refuse(&source, &wrong.key, &wrong.what))?;
        Ok(manifest)
    }

    /// All that it asks for: its permissions, its hooks and its routes for peers. A grant beyond this is none.
    #[must_use]
    pub fn asked(&self) -> Vec<Asked> {
        let mut asked = self.permissions.0.clone();
        let serves = self.routes.iter().filter(|route| route.auth == Auth::Peer).map(Route::entry);
        asked.extend(serves.map(|entry| (PermissionName::RoutePeer, entry, self.description.clone())).map(single));
        let hooks = self.hooks.iter().map(|hook| (PermissionName::Hook, hook.entry(), hook.reason.clone()));
        asked.extend(hooks.map(single));
        asked.sort_by_key(|asked| asked.permission.name());
        asked
    }

    /// The same as a set.
    #[must_use]
    pub fn asks(&self) -> Grants {
        self.asked().into_iter().map(|asked| asked.permission).collect()
    }

    /// The module's settings: what `text` says, and the defaults for the rest.
    ///
    /// # Errors
    /// A setting that the module does not have, or a value that it does not take.
    pub fn configure(&self, file: &str, text: &str) -> Result<toml::Table, ConfigError> {
        settings::resolve(&self.config, &Source::new(file, text))
    }

    /// The same, where the operator's values are read already.
    ///
    /// # Errors
    /// As of [`Manifest::configure`].
    pub fn settings(&self, said: &toml::Table) -> Result<toml::Table, WrongSetting> {
        settings::over_defaults(&self.config, said)
    }
}
