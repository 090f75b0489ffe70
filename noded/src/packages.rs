//! The modules that an operator installed: packages and their signatures, what each was granted, which version runs.
//!
//! All of it lies in `modules/` of the node's home, which only the operator enters: a folder for each module with a folder for each
//! version, one small file that says which of them runs, and one that says what was granted. The supervisor makes changes while the
//! node runs, the command line while it does not; both through [`Packages::change`]. What is read here is checked each time: a
//! manifest counts only with its publisher's signature, a program only with the digest that the manifest binds.

mod carry;
mod change;
mod offer;
mod record;
mod signature;
#[cfg(test)]
mod tests;
mod trust;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{ErrorKind, Read as _};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use openred_module::manifest::{Abi, Digest, Grants, Manifest, ModuleId, SPOKEN, Version};
use openred_policy::socket::open_no_symlinks;
use openred_proto::config::CONFIG_BYTES;
use openred_proto::id::NodeId;
use sha2::{Digest as _, Sha256};

use crate::cli::{Exit, Failure};
use crate::home::Home;
use crate::module::BUILT_IN;
pub(crate) use carry::unpack;
pub(crate) use change::Order;
pub(crate) use offer::write as write_package;
pub(crate) use record::{Granted, Record};
pub(crate) use signature::{PublisherKey, Signature};

/// Name of a package's manifest.
pub(crate) const MANIFEST: &str = "openred.toml";
/// Name of its signature.
pub(crate) const SIGNATURE: &str = "openred.sig";
/// Modules beside those that come with the node: each has a uid of its own.
pub(crate) const INSTALLED: usize = 56;
/// First slot of an installed module: those before it are for modules that come with the node.
const FIRST_SLOT: u32 = 8;
/// Bytes of a manifest's SHA-256 that an operator copies.
const SHOWN_BYTES: usize = 16;

/// The place where they lie.
#[derive(Clone, Debug)]
pub(crate) struct Packages {
    folder: PathBuf,
}

/// A version whose signature was checked.
#[derive(Clone, Debug)]
pub(crate) struct Verified {
    pub(crate) manifest: Manifest,
    /// The manifest as it was signed.
    pub(crate) text: String,
    pub(crate) publisher: NodeId,
    /// Of its program.
    pub(crate) digest: Digest,
    folder: PathBuf,
}

impl Verified {
    /// Where its program is.
    pub(crate) fn program(&self) -> PathBuf {
        self.folder.join(self.manifest.program.as_str())
    }

    /// What names this version and all that its manifest says, for the operator who has looked at it: `VERSION:HASH`.
    pub(crate) fn shown(&self) -> String {
        let hash = Sha256::digest(self.text.as_bytes());
        format!("{}:{}", self.manifest.version, hex::encode(&hash[..SHOWN_BYTES]))
    }

    /// Whether the program is the one that the manifest binds.
    pub(crate) fn check_program(&self) -> Result<(), Failure> {
        let place = self.program();
        let file = open_regular(&place)?;
        let found =
            openred_policy::launch::digest_of(&file).map_err(|error| Failure::local(place.display(), &error))?;
        if found == self.digest.0 {
            return Ok(());
        }
        let what = format!("{}: not the program that its manifest names", place.display());
        Err(Failure::new(Exit::Denied, "package.digest", what, "fetch the package again from its publisher"))
    }
}

/// A module as it stands.
#[derive(Clone, Debug)]
pub(crate) struct Installed {
    pub(crate) id: ModuleId,
    pub(crate) record: Record,
    pub(crate) granted: Option<Granted>,
}

/// A module, or why it cannot be read.
pub(crate) type Known = (ModuleId, Result<Installed, Failure>);

impl Packages {
    /// Of this home. Nothing need be there yet.
    pub(crate) fn of(home: &Home) -> Self {
        Self { folder: home.packages() }
    }

    /// Every installed module, by id; in its place why it cannot be read, where that is so: one that is damaged says nothing of the others.
    pub(crate) fn each(&self) -> Result<Vec<Known>, Failure> {
        let mut ids = BTreeSet::new();
        for name in names(&self.folder)? {
            // What begins with a dot is on its way in or out.
            if let Ok(id) = name.parse::<ModuleId>() {
                ids.insert(id);
            }
        }
        Ok(ids.into_iter().filter_map(|id| Some((id.clone(), self.get(&id).transpose()?))).collect())
    }

    /// Those that can be read.
    fn others(&self) -> Result<Vec<Installed>, Failure> {
        Ok(self.each()?.into_iter().filter_map(|(_, installed)| installed.ok()).collect())
    }

    /// One of them.
    pub(crate) fn get(&self, id: &ModuleId) -> Result<Option<Installed>, Failure> {
        let folder = self.module(id);
        let read = || -> Result<_, Failure> {
            let Some(record) = record::read::<Record>(&folder.join(record::RECORD))? else { return Ok(None) };
            let granted = record::read::<Granted>(&folder.join(record::GRANTS))?;
            Ok(Some(Installed { id: id.clone(), record, granted }))
        };
        let way_out = || format!("restore that file, or `openred module remove {id}` and install it again");
        read().map_err(|failure| Failure { way_out: way_out(), ..failure })
    }

    /// The same, or that there is none.
    pub(crate) fn need(&self, id: &ModuleId) -> Result<Installed, Failure> {
        self.get(id)?.ok_or_else(|| {
            let (what, way_out) = match BUILT_IN.iter().any(|module| module.id == id.as_str()) {
                true => (format!("the module {id} comes with the node"), "only installed modules are changed"),
                false => (format!("there is no module {id}"), "`openred module list` names those there are"),
            };
            Failure::new(Exit::NotFound, "package.unknown", what, way_out)
        })
    }

    /// A version of a module, if its signature holds and its publisher is still one of ours.
    pub(crate) fn version(&self, installed: &Installed, version: &Version) -> Result<Verified, Failure> {
        let verified = self.open(&self.module(&installed.id).join(version.as_str()))?;
        let (is_it, publisher) = (verified.manifest.id == installed.id, installed.record.publisher_of(version)?);
        if !is_it || verified.manifest.version != *version {
            return Err(malformed(&verified.folder, "it holds another module than its place says"));
        }
        if verified.publisher != publisher {
            return Err(foreign(&verified.manifest.id, &verified.publisher));
        }
        Ok(verified)
    }

    /// What a module may do: what it asks for, as far as it was granted, as far as the configuration allows.
    pub(crate) fn effective(installed: &Installed, manifest: &Manifest, ceiling: &Grants) -> Result<Grants, Failure> {
        let granted = match &installed.granted {
            Some(granted) => granted.grants()?,
            None => Grants::default(),
        };
        Ok(manifest.asks().meet(&granted).meet(ceiling))
    }

    /// Modules whose state is to be deleted, before one of that name is started again.
    pub(crate) fn forgotten(&self) -> Result<Vec<ModuleId>, Failure> {
        let names = names(&self.folder)?;
        Ok(names.iter().filter_map(|name| name.strip_prefix(FORGET)?.parse().ok()).collect())
    }

    /// Its state is deleted; false where that was known.
    pub(crate) fn forget_done(&self, id: &ModuleId) -> Result<bool, Failure> {
        let place = self.folder.join(format!("{FORGET}{id}"));
        match fs::remove_file(&place) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(Failure::local(place.display(), &error)),
        }
    }

    fn module(&self, id: &ModuleId) -> PathBuf {
        self.folder.join(id.as_str())
    }

    /// A folder of a package: its manifest, if the signature beside it holds.
    fn open(&self, folder: &Path) -> Result<Verified, Failure> {
        let text = read_text(&folder.join(MANIFEST))?;
        let signature = Signature::parse(&folder.join(SIGNATURE), &read_text(&folder.join(SIGNATURE))?)?;
        signature.verify(&text, folder)?;
        let manifest = parse(&folder.join(MANIFEST), &text)?;
        let digest = manifest.sha256.ok_or_else(|| malformed(folder, "its manifest binds no program (`sha256`)"))?;
        Ok(Verified { manifest, text, publisher: signature.publisher, digest, folder: folder.to_owned() })
    }
}

/// Before its name: a module whose state is to be deleted.
const FORGET: &str = ".forget-";

/// The version of the contract that both this node and a module speak.
fn check_abi(abi: Abi, id: &ModuleId) -> Result<(), Failure> {
    if abi.common(SPOKEN.oldest, SPOKEN.newest).is_some() {
        return Ok(());
    }
    let what = format!(
        "{id} speaks versions {} to {} of openred.module, this node {} to {}",
        abi.oldest, abi.newest, SPOKEN.oldest, SPOKEN.newest
    );
    Err(Failure::new(
        Exit::Conflict,
        "package.abi",
        what,
        "take a version of the module for this node, or the other way round",
    ))
}

fn parse(place: &Path, text: &str) -> Result<Manifest, Failure> {
    let parsed = Manifest::parse(&place.display().to_string(), text);
    parsed.map_err(|error| Failure::new(Exit::Usage, "package.manifest", error.to_string(), "tell its publisher"))
}

fn malformed(place: &Path, what: &str) -> Failure {
    let what = format!("{}: no package: {what}", place.display());
    Failure::new(
        Exit::Usage,
        "package.malformed",
        what,
        "a package has openred.toml, openred.sig and its program; `openred module sign` makes one",
    )
}

fn foreign(id: &ModuleId, publisher: &NodeId) -> Failure {
    let what = format!("{id} is signed by {publisher}, who is not its publisher here");
    let way_out = format!("if you know that key, name it: --publisher {publisher}");
    Failure::new(Exit::Denied, "package.publisher", what, way_out)
}

/// Names in a folder; none where there is no such folder.
fn names(folder: &Path) -> Result<Vec<String>, Failure> {
    let failed = |error: std::io::Error| Failure::local(folder.display(), &error);
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed)?,
    };
    let mut names = Vec::new();
    for entry in entries {
        names.extend(entry.map_err(failed)?.file_name().into_string());
    }
    names.sort();
    Ok(names)
}

fn open_regular(place: &Path) -> Result<File, Failure> {
    let failed = |error: std::io::Error| Failure::local(place.display(), &error);
    let file = open_no_symlinks(place, OFlag::O_RDONLY | OFlag::O_NONBLOCK, 0).map_err(failed)?;
    if file.metadata().map_err(failed)?.is_file() { Ok(file) } else { Err(malformed(place, "not a regular file")) }
}

/// A small text of ours.
fn read_text(place: &Path) -> Result<String, Failure> {
    read_bounded(place, CONFIG_BYTES)
}

fn read_bounded(place: &Path, most: usize) -> Result<String, Failure> {
    let mut text = String::new();
    let read = open_regular(place)?.take(most as u64 + 1).read_to_string(&mut text);
    read.map_err(|error| match error.kind() {
        ErrorKind::InvalidData => malformed(place, "not UTF-8 text"),
        _ => Failure::local(place.display(), &error),
    })?;
    if text.len() > most { Err(malformed(place, &format!("longer than {most} bytes"))) } else { Ok(text) }
}
