//! The installed modules as `noded` knows them: a file that the supervisor writes where `noded` can read it and not write, and names
//! whenever it has changed. What a module may do stands in it already cut to what was granted and what the configuration allows.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{ErrorKind, Read as _};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use openred_module::manifest::{Grants, Manifest, ModuleId};
use serde::{Deserialize, Serialize};

/// Longest file: every module with the longest manifest, and what stands beside it.
const BYTES: u64 = 8 << 20;

/// What the file says.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Installed {
    /// Those that shall run.
    pub(crate) modules: Vec<Module>,
    /// Versions of them that may be gone back to.
    #[serde(default)]
    pub(crate) earlier: Vec<Module>,
    /// Those whose state is to be deleted before they may run.
    pub(crate) forget: Vec<String>,
    /// Settings of the modules that come with the node.
    pub(crate) settings: BTreeMap<String, String>,
}

/// One of them.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Module {
    pub(crate) manifest: String,
    pub(crate) granted: Vec<String>,
    /// Another one when the operator has it started anew.
    pub(crate) turn: u32,
    /// As TOML, checked and whole.
    pub(crate) settings: String,
}

/// Settings by module and version; without a version those of a module that comes with the node.
pub(crate) type SettingsOf = BTreeMap<(String, String), String>;

/// All that it says, read.
#[derive(Debug, Default)]
pub(crate) struct Reading {
    /// Those that shall run.
    pub(crate) wanted: Vec<Wanted>,
    /// Versions of them that may be gone back to.
    pub(crate) earlier: Vec<Wanted>,
    /// Those whose state is to be deleted.
    pub(crate) forget: Vec<&'static str>,
    pub(crate) settings: SettingsOf,
}

/// A module that shall run.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    pub(crate) id: &'static str,
    pub(crate) manifest: Arc<Manifest>,
    pub(crate) granted: Grants,
    pub(crate) turn: u32,
}

impl Wanted {
    /// Whether this is the version, installed in that turn.
    pub(crate) fn is(&self, version: &str, turn: u32) -> bool {
        self.manifest.version.as_str() == version && self.turn == turn
    }
}

impl PartialEq for Wanted {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
            && self.turn == other.turn
            && self.granted == other.granted
            && self.manifest == other.manifest
    }
}

/// Reads it; nothing is installed where there is none.
pub(crate) fn read(place: &Path) -> std::io::Result<Reading> {
    let file = match std::fs::File::open(place) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Reading::default()),
        file => file?,
    };
    let mut bytes = Vec::new();
    file.take(BYTES).read_to_end(&mut bytes)?;
    let installed: Installed = serde_json::from_slice(&bytes).map_err(|error| bad(error.to_string()))?;
    let mut settings: SettingsOf =
        installed.settings.into_iter().map(|(id, settings)| ((id, String::new()), settings)).collect();
    let mut all = |modules: Vec<Module>| {
        let read = |module: Module| {
            let said = module.settings.clone();
            let wanted = wanted(module)?;
            settings.insert((wanted.id.to_owned(), wanted.manifest.version.to_string()), said);
            Ok(wanted)
        };
        modules.into_iter().map(read).collect::<std::io::Result<Vec<_>>>()
    };
    let (wanted, earlier) = (all(installed.modules)?, all(installed.earlier)?);
    let forget = installed.forget.iter().filter(|id| id.parse::<ModuleId>().is_ok());
    let forget = forget.map(|id| interned(id)).collect();
    Ok(Reading { wanted, earlier, forget, settings })
}

fn wanted(module: Module) -> std::io::Result<Wanted> {
    let manifest = Manifest::parse("openred.toml", &module.manifest).map_err(|error| bad(error.to_string()))?;
    let granted = Grants::parse(module.granted.iter().map(String::as_str));
    let granted = granted.map_err(|(text, error)| bad(format!("{text}: {error}")))?;
    let id = interned(manifest.id.as_str());
    Ok(Wanted { id, manifest: Arc::new(manifest), granted, turn: module.turn })
}

fn bad(what: String) -> std::io::Error {
    std::io::Error::new(ErrorKind::InvalidData, what)
}

/// The id as a text that lives as long as the process. There is one for each module that was ever named here: as many as an operator
/// installs in a process's life, of 32 bytes each.
pub(crate) fn interned(id: &str) -> &'static str {
    static KNOWN: Mutex<BTreeSet<&'static str>> = Mutex::new(BTreeSet::new());
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = known.get(id) {
        return known;
    }
    let kept: &'static str = Box::leak(id.to_owned().into_boxed_str());
    known.insert(kept);
    kept
}
