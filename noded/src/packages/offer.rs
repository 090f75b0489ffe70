//! A package on its way in: a folder, or an uncompressed tar of one. Its files are copied into a folder of their own beside the
//! installed modules, bounded and durable, before anything of them is believed.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use openred_module::manifest::{ModuleId, Program};
use openred_policy::launch::MOST;
use openred_proto::config::CONFIG_BYTES;

use super::{MANIFEST, Packages, SIGNATURE, Verified, malformed};
use crate::archive::tar;
use crate::cli::{Exit, Failure};
use crate::supervisor::make_private;

/// Before its name: a package on its way in.
pub(super) const STAGE: &str = ".stage-";
/// Bytes that are copied at a time.
const STEP: usize = 1 << 16;

impl Packages {
    /// Copies the package at `path`; its name here, for [`super::Order::Install`]. Nothing of it is installed yet.
    pub(crate) fn stage(&self, path: &Path) -> Result<String, Failure> {
        let failed = |error: io::Error| Failure::local(self.folder.display(), &error);
        make_private(&self.folder).map_err(failed)?;
        let mut random = [0; 8];
        getrandom::fill(&mut random).map_err(|_| failed(io::ErrorKind::Other.into()))?;
        let name = format!("{STAGE}{}", hex::encode(random));
        let folder = self.folder.join(&name);
        DirBuilder::new().mode(0o700).create(&folder).map_err(failed)?;
        let staged = self.fill(path, &folder);
        if staged.is_err() {
            let _ = fs::remove_dir_all(&folder);
        }
        staged.map(|()| name)
    }

    /// What was staged, if its signature holds and its program is the one that it binds.
    pub(crate) fn staged(&self, name: &str) -> Result<Verified, Failure> {
        let is_ours = name.strip_prefix(STAGE).is_some_and(|rest| rest.bytes().all(|byte| byte.is_ascii_hexdigit()));
        if !is_ours {
            return Err(Failure::usage(format!("{name:?} is no staged package"), "`openred module install PATH`"));
        }
        let verified = self.open(&self.folder.join(name))?;
        verified.check_program()?;
        Ok(verified)
    }

    /// Which module was staged, as it says of itself: for what is shown once it is installed.
    pub(crate) fn staged_id(&self, name: &str) -> Result<ModuleId, Failure> {
        let place = self.folder.join(name).join(MANIFEST);
        super::parse(&place, &super::read_text(&place)?).map(|manifest| manifest.id)
    }

    /// Removes what was staged and not installed.
    pub(crate) fn drop_staged(&self, name: &str) {
        if name.starts_with(STAGE) && !name.contains('/') {
            let _ = fs::remove_dir_all(self.folder.join(name));
        }
    }

    fn fill(&self, path: &Path, folder: &Path) -> Result<(), Failure> {
        let failed = |error: io::Error| Failure::local(path.display(), &error);
        if fs::metadata(path).map_err(failed)?.is_dir() {
            for (name, most) in [(MANIFEST, CONFIG_BYTES as u64), (SIGNATURE, CONFIG_BYTES as u64)] {
                copy(open(&path.join(name))?, folder, name, most)?;
            }
            let program = program_of(folder)?;
            copy(open(&path.join(program.as_str()))?, folder, program.as_str(), MOST)?;
        } else {
            unpack(open(path)?, path, folder)?;
            let program = program_of(folder)?;
            let mut names = super::names(folder)?;
            names.retain(|name| ![MANIFEST, SIGNATURE, program.as_str()].contains(&name.as_str()));
            if let Some(other) = names.first() {
                return Err(malformed(path, &format!("it holds {other} as well")));
            }
        }
        let synced = File::open(folder).and_then(|folder| folder.sync_all());
        synced.map_err(|error| Failure::local(folder.display(), &error))
    }
}

/// What the manifest calls its program. Whether the manifest can be believed is looked at when it is installed.
fn program_of(folder: &Path) -> Result<Program, Failure> {
    let place = folder.join(MANIFEST);
    let text = super::read_text(&place)?;
    super::parse(&place, &text).map(|manifest| manifest.program)
}

/// A file of a package. A pipe of that name must not hold anybody up.
fn open(place: &Path) -> Result<File, Failure> {
    let file = File::options().read(true).custom_flags(nix::libc::O_NONBLOCK).open(place);
    let file = file.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => malformed(place, "there is no such file"),
        _ => Failure::local(place.display(), &error),
    })?;
    let seen = file.metadata().map_err(|error| Failure::local(place.display(), &error))?;
    if seen.is_file() { Ok(file) } else { Err(malformed(place, "not a regular file")) }
}

fn unpack(mut stream: File, path: &Path, folder: &Path) -> Result<(), Failure> {
    let shape = |error: crate::archive::ArchiveError| malformed(path, &error.to_string());
    let mut count = 0;
    while let Some((name, size)) = tar::read_header(&mut stream).map_err(shape)? {
        count += 1;
        // One folder around the three is as good as none.
        let name = name.strip_prefix("./").unwrap_or(&name);
        let name = name.rsplit_once('/').map_or(name, |(_, name)| name);
        let most = if name == MANIFEST || name == SIGNATURE { CONFIG_BYTES as u64 } else { MOST };
        if name.parse::<Program>().is_err() || count > 3 {
            return Err(malformed(path, "it holds other files than a package's three"));
        }
        if size > most {
            return Err(malformed(path, &format!("{name} is too long")));
        }
        let mut part = (&mut stream).take(size);
        copy(&mut part, folder, name, most)?;
        if part.limit() > 0 {
            return Err(malformed(path, "it ends too early"));
        }
        tar::skip_padding(&mut stream, size).map_err(shape)?;
    }
    Ok(())
}

fn copy(mut from: impl Read, folder: &Path, name: &str, most: u64) -> Result<(), Failure> {
    let place = folder.join(name);
    let failed = |error: io::Error| Failure::local(place.display(), &error);
    let mut to = File::options().write(true).create_new(true).mode(0o600).open(&place).map_err(failed)?;
    let (mut buffer, mut total) = (vec![0; STEP], 0);
    loop {
        let length = from.read(&mut buffer).map_err(failed)?;
        if length == 0 {
            break;
        }
        total += length as u64;
        if total > most {
            return Err(malformed(&place, &format!("longer than {most} bytes")));
        }
        to.write_all(&buffer[..length]).map_err(failed)?;
    }
    let mode = if name == MANIFEST || name == SIGNATURE { 0o400 } else { 0o500 };
    to.set_permissions(Permissions::from_mode(mode)).and_then(|()| to.sync_all()).map_err(failed)
}

/// Writes a package: into a new folder, or a new file if its name ends with `.tar`.
pub(crate) fn write(out: &Path, files: [(&str, &[u8]); 3]) -> Result<(), Failure> {
    let failed = |error: io::Error| Failure::local(out.display(), &error);
    if out.extension().is_none_or(|ending| ending != "tar") {
        fs::create_dir(out).map_err(failed)?;
        return files.into_iter().try_for_each(|(name, content)| {
            let mode = if name == MANIFEST || name == SIGNATURE { 0o644 } else { 0o755 };
            let place: PathBuf = out.join(name);
            let mut file = File::options().write(true).create_new(true).mode(mode).open(&place).map_err(failed)?;
            file.write_all(content).map_err(failed)
        });
    }
    let mut file = File::options().write(true).create_new(true).open(out).map_err(failed)?;
    for (name, content) in files {
        if name.len() > 100 {
            return Err(Failure::new(Exit::Usage, "usage", format!("{name}: too long a name"), "shorten it"));
        }
        let size = content.len() as u64;
        let parts = [&tar::header(name, size, 0)[..], content, tar::padding(size)];
        parts.into_iter().try_for_each(|part| file.write_all(part)).map_err(failed)?;
    }
    file.write_all(&tar::END).and_then(|()| file.sync_all()).map_err(failed)
}
