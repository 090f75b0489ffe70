//! The installed modules as `noded` knows them: a file that the supervisor writes where `noded` can read it and not write, and names
//! whenever it has changed. What a module may do stands in it already cut to what was granted and what the configuration allows.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{ErrorKind, Read as _};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use openred_module::manifest::{Grants, Manifest, ModuleId};
use serde::{Deserialize, Serialize};

/// Longest file: every module that a node can have, with the longest manifest, all that it can be granted, and its settings, each twice as long
/// where it is quoted. Versions that may be gone back to are in it as far as there is room.
const BYTES: usize = 32 << 20;

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

impl Installed {
    /// As it is written: never longer than what is read.
    pub(crate) fn written(mut self) -> std::io::Result<Vec<u8>> {
        let bytes = serde_json::to_vec(&self)?;
        let mut over = bytes.len().saturating_sub(BYTES);
        if over == 0 {
            return Ok(bytes);
        }
        while over > 0 {
            let Some(dropped) = self.earlier.pop() else { return Err(too_long()) };
            over = over.saturating_sub(serde_json::to_vec(&dropped)?.len());
            tracing::warn!("too much is installed for {} to go back to a version before it", dropped.id);
        }
        Ok(serde_json::to_vec(&self)?)
    }
}

/// One of them.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Module {
    /// Names it where its manifest does not.
    pub(crate) id: String,
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
    /// Those that shall run and cannot be read.
    pub(crate) unread: Vec<&'static str>,
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
    file.take(BYTES as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > BYTES {
        return Err(too_long());
    }
    let installed: Installed = serde_json::from_slice(&bytes).map_err(|error| bad(error.to_string()))?;
    let settings = installed.settings.into_iter().map(|(id, settings)| ((id, String::new()), settings)).collect();
    let mut reading = Reading { settings, ..Reading::default() };
    for (modules, are_wanted) in [(installed.modules, true), (installed.earlier, false)] {
        for module in modules {
            let (id, said) = (module.id.clone(), module.settings.clone());
            match wanted(module) {
                Ok(wanted) => {
                    reading.settings.insert((wanted.id.to_owned(), wanted.manifest.version.to_string()), said);
                    let list = if are_wanted { &mut reading.wanted } else { &mut reading.earlier };
                    list.push(wanted);
                }
                // One that cannot be read says nothing of the others.
                Err(error) => {
                    tracing::error!("what is installed as {} cannot be read: {error}", crate::cli::one_line(&id));
                    reading.unread.extend(id.parse::<ModuleId>().ok().map(|id| interned(id.as_str())));
                }
            }
        }
    }
    let forget = installed.forget.iter().filter(|id| id.parse::<ModuleId>().is_ok());
    reading.forget = forget.map(|id| interned(id)).collect();
    Ok(reading)
}

fn wanted(module: Module) -> std::io::Result<Wanted> {
    let manifest = Manifest::parse("openred.toml", &module.manifest).map_err(|error| bad(error.to_string()))?;
    let granted = Grants::parse(module.granted.iter().map(String::as_str));
    let granted = granted.map_err(|(text, error)| bad(format!("{text}: {error}")))?;
    let id = interned(manifest.id.as_str());
    Ok(Wanted { id, manifest: Arc::new(manifest), granted, turn: module.turn })
}

fn too_long() -> std::io::Error {
    bad(format!("what is installed is longer than {BYTES} bytes"))
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn module(id: &str, manifest: &str) -> Module {
        let (manifest, settings) = (manifest.to_owned(), String::new());
        Module { id: id.to_owned(), manifest, granted: Vec::new(), turn: 1, settings }
    }

    fn manifest(id: &str, more: &str) -> String {
        format!("id = \"{id}\"\nversion = \"1.0.0\"\nprogram = \"m\"\ndescription = \"d\"\n{more}")
    }

    #[test]
    fn one_that_cannot_be_read_takes_no_other_with_it() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("modules.json");
        assert!(read(&place).unwrap().wanted.is_empty(), "there is none");
        let bad_grant = Module { granted: vec!["everything".into()], ..module("c", &manifest("c", "")) };
        let modules = vec![module("a", "no manifest"), module("b", &manifest("b", "")), bad_grant];
        let earlier = vec![module("b", "no manifest")];
        let forget = vec!["gone".into(), "No Module".into()];
        let file = Installed { modules, earlier, forget, settings: BTreeMap::new() };
        std::fs::write(&place, file.written().unwrap()).unwrap();
        let reading = read(&place).unwrap();
        let wanted: Vec<&str> = reading.wanted.iter().map(|wanted| wanted.id).collect();
        assert_eq!((wanted, reading.unread, reading.forget), (vec!["b"], vec!["a", "c", "b"], vec!["gone"]));
        std::fs::write(&place, vec![b' '; BYTES + 1]).unwrap();
        assert!(read(&place).unwrap_err().to_string().contains("longer than"), "not cut, and then called no JSON");
    }

    #[test]
    fn what_is_written_can_be_read_whatever_is_installed() {
        // All that one can have: it is quoted, so that each character is two.
        let full = |id: String| {
            let head = manifest(&id, "# ");
            let rest = 65_536 - head.len();
            let granted = vec!["\"".repeat(1 << 16)];
            Module { granted, settings: "\"".repeat(1 << 15), ..module(&id, &(head + &"\"".repeat(rest))) }
        };
        let all = |count: usize| (0..count).map(|number| full(format!("m{number}"))).collect::<Vec<_>>();
        let file = Installed { modules: all(56), earlier: all(60), ..Installed::default() };
        let written = file.written().unwrap();
        let back: Installed = serde_json::from_slice(&written).unwrap();
        assert_eq!(back.modules.len(), 56);
        assert!(written.len() <= BYTES && !back.earlier.is_empty() && back.earlier.len() < 60);
    }
}
