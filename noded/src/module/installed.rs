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

/// All that it says, read.
#[derive(Debug, Default)]
pub(crate) struct Reading {
    /// Those that shall run.
    pub(crate) wanted: Vec<Wanted>,
    /// Those whose state is to be deleted.
    pub(crate) forget: Vec<&'static str>,
    /// Settings by module.
    pub(crate) settings: BTreeMap<String, String>,
}

/// A module that shall run.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    pub(crate) id: &'static str,
    pub(crate) manifest: Arc<Manifest>,
    pub(crate) granted: Grants,
    pub(crate) turn: u32,
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
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Default::default()),
        file => file?,
    };
    let mut bytes = Vec::new();
    file.take(BYTES).read_to_end(&mut bytes)?;
    let bad = |what: String| std::io::Error::new(ErrorKind::InvalidData, what);
    let installed: Installed = serde_json::from_slice(&bytes).map_err(|error| bad(error.to_string()))?;
    let (mut wanted, mut settings) = (Vec::new(), installed.settings);
    for module in installed.modules {
        let manifest = Manifest::parse("openred.toml", &module.manifest).map_err(|error| bad(error.to_string()))?;
        let granted = Grants::parse(module.granted.iter().map(String::as_str));
        let granted = granted.map_err(|(text, error)| bad(format!("{text}: {error}")))?;
        let id = interned(manifest.id.as_str());
        settings.insert(id.to_owned(), module.settings);
        wanted.push(Wanted { id, manifest: Arc::new(manifest), granted, turn: module.turn });
    }
    let forget = installed.forget.iter().filter(|id| id.parse::<ModuleId>().is_ok());
    let forget = forget.map(|id| interned(id)).collect();
    Ok(Reading { wanted, forget, settings })
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
