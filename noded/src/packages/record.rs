//! The two small files of an installed module: which version runs, and what was granted. Each is replaced whole and durably.

use std::collections::BTreeMap;
use std::path::Path;

use openred_module::manifest::{Grants, Version};
use openred_proto::id::NodeId;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{malformed, read_bounded};
use crate::cli::{Exit, Failure};
use crate::supervisor::put;

/// Which version runs.
pub(super) const RECORD: &str = "state.toml";
/// What was granted.
pub(super) const GRANTS: &str = "grants.toml";
/// Longest of them: all that the longest manifest asks for, twice, quoted.
pub(super) const RECORD_BYTES: usize = 512 << 10;

/// Which version of a module runs, and whether it shall.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Record {
    /// Which of the modules' uids is its own.
    pub(crate) slot: u32,
    pub(crate) enabled: bool,
    /// Whose module it is: who signed the version that runs.
    pub(super) publisher: String,
    /// The version that runs when it is enabled.
    pub(crate) active: Option<Version>,
    /// One that waits for the operator's word.
    pub(crate) staged: Option<Version>,
    /// Versions that may be gone back to.
    #[serde(default)]
    pub(crate) earlier: Vec<Version>,
    /// Raised when the operator has it started anew, although nothing else changed.
    #[serde(default)]
    pub(crate) turn: u32,
    /// Who signed each version; one that is not here has the module's publisher.
    #[serde(default)]
    pub(super) signed: BTreeMap<Version, String>,
}

impl Record {
    pub(super) fn new(slot: u32, publisher: &NodeId) -> Self {
        let (earlier, signed) = Default::default();
        let publisher = publisher.to_string();
        Self { slot, enabled: false, publisher, active: None, staged: None, earlier, turn: draw_turn(), signed }
    }

    /// This version is here, signed by this publisher. Whose module it is says the version that runs.
    pub(super) fn took(&mut self, version: &Version, publisher: &NodeId) {
        let known: Vec<Version> = self.versions().cloned().collect();
        for version in known {
            self.signed.entry(version).or_insert_with(|| self.publisher.clone());
        }
        self.signed.insert(version.clone(), publisher.to_string());
        if self.active.is_none() {
            self.publisher = publisher.to_string();
        }
    }

    /// From now on this version runs; the one before it may be gone back to.
    pub(super) fn activate(&mut self, version: Version) {
        self.earlier.retain(|earlier| *earlier != version);
        if let Some(before) = self.run(version) {
            self.earlier.push(before);
        }
        (self.staged, self.turn) = (None, draw_turn());
    }

    /// The version before it has taken its place again, in that turn.
    pub(super) fn go_back(&mut self, version: Version, turn: u32) {
        self.earlier.retain(|earlier| *earlier != version);
        self.run(version);
        self.turn = turn;
    }

    /// The version that ran, if that was another.
    fn run(&mut self, version: Version) -> Option<Version> {
        if let Some(publisher) = self.signed.get(&version) {
            self.publisher.clone_from(publisher);
        }
        self.active.replace(version).filter(|before| Some(before) != self.active.as_ref())
    }

    /// Every version that it refers to.
    pub(super) fn versions(&self) -> impl Iterator<Item = &Version> {
        self.active.iter().chain(&self.staged).chain(&self.earlier)
    }

    pub(crate) fn publisher(&self) -> Result<NodeId, Failure> {
        self.publisher.parse().map_err(|_| malformed(Path::new(RECORD), "`publisher` is no did:key"))
    }

    /// Who signed that version.
    pub(super) fn publisher_of(&self, version: &Version) -> Result<NodeId, Failure> {
        let Some(publisher) = self.signed.get(version) else { return self.publisher() };
        publisher.parse().map_err(|_| malformed(Path::new(RECORD), "a publisher in `signed` is no did:key"))
    }

    /// The same without what it says of versions that are gone.
    fn without_gone(&self) -> Self {
        let mut record = self.clone();
        record.signed.retain(|version, _| self.versions().any(|known| known == version));
        record
    }
}

/// One that is installed again is another than the one before; where no randomness is to be had, that is told by its version alone.
fn draw_turn() -> u32 {
    let mut turn = [0; 4];
    let _ = getrandom::fill(&mut turn);
    u32::from_be_bytes(turn)
}

/// What an operator granted, and of what.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Granted {
    /// The version whose manifest was reviewed.
    pub(crate) version: Version,
    /// What that asked for: what a later one asks beyond it is asked anew.
    pub(crate) asked: Vec<String>,
    /// What was granted.
    pub(crate) granted: Vec<String>,
}

impl Granted {
    pub(crate) fn grants(&self) -> Result<Grants, Failure> {
        parse(&self.granted)
    }

    pub(crate) fn asked(&self) -> Result<Grants, Failure> {
        parse(&self.asked)
    }
}

/// Grants as an operator writes them.
pub(crate) fn parse(texts: &[String]) -> Result<Grants, Failure> {
    Grants::parse(texts.iter().map(String::as_str))
        .map_err(|(text, bad)| Failure::new(Exit::Usage, "package.grant", format!("{text:?}: {bad}"), ""))
}

pub(super) fn read<T: DeserializeOwned>(place: &Path) -> Result<Option<T>, Failure> {
    let text = match read_bounded(place, RECORD_BYTES) {
        Err(failure) if failure.exit == Exit::NotFound => return Ok(None),
        text => text?,
    };
    let parsed = toml::from_str(&text).map(Some);
    parsed.map_err(|error| malformed(place, error.message().lines().next().unwrap_or_default()))
}

/// Writes the record of a module.
pub(super) fn write_record(place: &Path, record: &Record) -> Result<(), Failure> {
    write(place, &record.without_gone())
}

/// Nothing is written that could not be read back.
pub(super) fn write<T: Serialize>(place: &Path, value: &T) -> Result<(), Failure> {
    let text = toml::to_string(value).expect("a record has a TOML form");
    if text.len() > RECORD_BYTES {
        let what = format!("{}: {} bytes, and at most {RECORD_BYTES} are kept", place.display(), text.len());
        return Err(Failure::new(Exit::Usage, "package.malformed", what, "ask its publisher for a shorter manifest"));
    }
    put(place, text.as_bytes(), true, |_| ())
}
