//! Installed modules in a backup: their packages, what was granted and which version runs, as one tar inside the backup's. Their state is
//! not here: rows and files are the node's, and go with them.
//!
//! Written while a node may run: of each module everything is opened before anything is written, and anew if its record has changed
//! meanwhile; what is open stays as it was. Read, it may come from anywhere: names and lengths are those of this program, and whether a
//! manifest or a program is to be believed is looked at when the module is started, as always.

use std::collections::BTreeSet;
use std::fs::{DirBuilder, File};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;

use openred_module::manifest::{ModuleId, Program, Version};
use openred_policy::launch::MOST;
use openred_proto::config::CONFIG_BYTES;

use super::change::KEPT;
use super::record::{GRANTS, RECORD, RECORD_BYTES};
use super::trust::TRUST;
use super::{FORGET, INSTALLED, MANIFEST, Packages, SIGNATURE, names, open_regular, parse, read_text};
use crate::archive::{ArchiveError, tar};
use crate::cli::{Exit, Failure};

/// Attempts at a module that is changed meanwhile.
const ATTEMPTS: usize = 10;
/// Most files: two versions of three files and two small ones of each module, whose state is to be forgotten or was kept, and the trusted keys.
const FILES: usize = INSTALLED * 8 + 1024;

/// A file by its name in the tar.
type Entry = (String, File);

impl Packages {
    /// Writes all of them; how many files that are.
    pub(crate) fn pack(&self, mut out: impl Write) -> Result<usize, Failure> {
        let failed = |error: io::Error| Failure::local(self.folder.display(), &error);
        let mut entries = Vec::new();
        for name in names(&self.folder)? {
            if name == TRUST || marked(&name).is_some() {
                entries.push((name.clone(), open_regular(&self.folder.join(&name))?));
            } else if let Ok(id) = name.parse::<ModuleId>() {
                entries.extend(self.whole(&id)?);
            }
        }
        for (name, file) in &entries {
            let length = file.metadata().map_err(failed)?.len();
            let mut write = || -> io::Result<u64> {
                out.write_all(&tar::header(name, length, 0))?;
                let copied = io::copy(&mut file.take(length), &mut out)?;
                out.write_all(tar::padding(length))?;
                Ok(copied)
            };
            if write().map_err(failed)? != length {
                return Err(changing(name));
            }
        }
        out.write_all(&tar::END).and_then(|()| out.flush()).map_err(failed)?;
        Ok(entries.len())
    }

    /// The files of one module as they belong together.
    fn whole(&self, id: &ModuleId) -> Result<Vec<Entry>, Failure> {
        for _ in 0..ATTEMPTS {
            let before = self.get(id)?;
            match self.opened(id) {
                Ok(entries) if self.get(id)?.map(|now| now.record) == before.map(|before| before.record) => {
                    return Ok(entries);
                }
                Err(failure) if failure.exit != Exit::NotFound => return Err(failure),
                _ => {}
            }
        }
        Err(changing(id.as_str()))
    }

    fn opened(&self, id: &ModuleId) -> Result<Vec<Entry>, Failure> {
        let folder = self.module(id);
        let mut entries: Vec<Entry> = Vec::new();
        let Some(installed) = self.get(id)? else { return Ok(entries) };
        let mut add = |place: String| -> Result<(), Failure> {
            entries.push((format!("{id}/{place}"), open_regular(&folder.join(&place))?));
            Ok(())
        };
        let versions: BTreeSet<&str> =
            [&installed.record.active, &installed.record.staged].into_iter().flatten().map(Version::as_str).collect();
        for version in versions {
            let place = folder.join(version).join(MANIFEST);
            let program = parse(&place, &read_text(&place)?)?.program;
            for name in [MANIFEST, SIGNATURE, program.as_str()] {
                add(format!("{version}/{name}"))?;
            }
        }
        add(RECORD.to_owned())?;
        if installed.granted.is_some() {
            add(GRANTS.to_owned())?;
        }
        Ok(entries)
    }
}

fn changing(what: &str) -> Failure {
    let what = format!("the installed module {what} changes while it is copied");
    Failure::new(Exit::Conflict, "backup.unread", what, "try again when no module is being changed")
}

/// Puts all that was packed below `folder`, which is there and empty.
pub(crate) fn unpack(mut stream: impl Read, folder: &Path) -> Result<(), ArchiveError> {
    for _ in 0..FILES {
        let Some((name, length)) = tar::read_header(&mut stream)? else { return Ok(()) };
        let (most, mode) =
            kind(&name).ok_or(ArchiveError::Shape("its modules hold a file that is none of a module"))?;
        if length > most {
            return Err(ArchiveError::Shape("a file of its modules is too long"));
        }
        let place = folder.join(&name);
        if let Some(parent) = place.parent() {
            match DirBuilder::new().recursive(true).mode(0o700).create(parent) {
                Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error.into()),
                _ => {}
            }
        }
        let mut file = File::options().write(true).create_new(true).mode(mode).open(&place)?;
        if io::copy(&mut (&mut stream).take(length), &mut file)? != length {
            return Err(ArchiveError::Shape("it ends too early"));
        }
        tar::skip_padding(&mut stream, length)?;
    }
    Err(ArchiveError::Shape("its modules have more files than a node has"))
}

/// The module that was removed, by the name of an empty file that says what becomes of its state: rows and files are in the backup, and whose they are is
/// said here alone.
fn marked(name: &str) -> Option<ModuleId> {
    [FORGET, KEPT].into_iter().find_map(|mark| name.strip_prefix(mark))?.parse().ok()
}

/// The longest that a file of this name may be, and its mode; nothing where no module has such a file.
fn kind(name: &str) -> Option<(u64, u32)> {
    let small = CONFIG_BYTES as u64;
    let parts: Vec<&str> = name.split('/').collect();
    match parts[..] {
        [TRUST] => Some((small, 0o600)),
        [mark] => marked(mark).map(|_| (0, 0o600)),
        [id, file] => {
            id.parse::<ModuleId>().ok()?;
            [RECORD, GRANTS].contains(&file).then_some((RECORD_BYTES as u64, 0o600))
        }
        [id, version, file] => {
            id.parse::<ModuleId>().ok()?;
            version.parse::<Version>().ok()?;
            if [MANIFEST, SIGNATURE].contains(&file) {
                return Some((small, 0o400));
            }
            file.parse::<Program>().ok().map(|_| (MOST, 0o500))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn only_what_an_installed_module_has_is_taken() {
        assert_eq!(kind("trusted.keys"), Some((65_536, 0o600)));
        assert_eq!(kind("greet/1.0.0/greet"), Some((MOST, 0o500)));
        assert_eq!((kind(".forget-greet"), kind(".kept-greet")), (Some((0, 0o600)), Some((0, 0o600))));
        for bad in [
            "",
            "greet",
            ".kept-",
            ".gone-greet",
            "greet/x",
            "../state.toml",
            "greet/1.0.0/..",
            "greet/1.0.0/a/b",
            "Greet/state.toml",
        ] {
            assert_eq!(kind(bad), None, "{bad}");
        }
        let read = |name: &str, length: u64| {
            let mut bytes = tar::header(name, length, 0).to_vec();
            bytes.extend_from_slice(&tar::END);
            unpack(&bytes[..], tempfile::tempdir().unwrap().path())
        };
        assert!(read("trusted.keys", 0).is_ok());
        assert!(read("trusted.keys", 70_000).is_err() && read("etc/passwd", 0).is_err());
        assert!(matches!(read("greet/state.toml", 1500), Err(ArchiveError::Shape(_))), "it ends too early");
    }
}
