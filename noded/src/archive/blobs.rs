//! The modules' files in a backup: each an entry of its own, and behind them all a list of their BLAKE3 hashes, of the form that
//! `b3sum --check` reads where a stock `tar` unpacked them.
//!
//! Written while a node may run: what is gone when its turn comes is left out, what came since is looked for once more, and of
//! what grows so much is taken as there was when its turn came. Contents pass in pieces; what is held is names and hashes, within a bound.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use openred_module::BlobName;
use openred_policy::socket::open_no_symlinks;

use super::{ArchiveError, PIECE, tar};

/// Where they lie, in the archive and in the home.
pub(crate) const FOLDER: &str = "state/blobs";
/// The last entry.
pub(super) const LIST: &str = "blobs.b3";
/// Most of them: below what a start gives to the node's uid in one go. 15 MB of names and hashes.
const MOST: usize = 90_000;
/// Longest name of a module.
const MODULE_BYTES: usize = 32;

/// How much of them there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub(crate) struct Totals {
    pub(crate) files: u64,
    pub(crate) bytes: u64,
}

/// The folder of a node's blobs, to be read for a backup.
pub(crate) struct Blobs(PathBuf);

impl Blobs {
    /// Those below `root`, an absolute path.
    pub(crate) const fn below(root: PathBuf) -> Self {
        Self(root)
    }

    /// Modules and names, as they are now.
    fn names(&self) -> Result<BTreeSet<(String, String)>, ArchiveError> {
        let mut names = BTreeSet::new();
        for module in entries(&self.0)? {
            // What is no module's folder was put there by nobody whom a restored node would ask for it.
            let module = module.file_name().into_string().ok().filter(|module| is_module(module));
            let Some(module) = module else { continue };
            for blob in entries(&self.0.join(&module))? {
                let name = blob.file_name().into_string().ok().filter(|name| BlobName::new(name).is_some());
                names.extend(name.map(|name| (module.clone(), name)));
                if names.len() > MOST {
                    return Err(ArchiveError::TooMany { most: MOST });
                }
            }
        }
        Ok(names)
    }

    /// Writes all of them, and their list.
    pub(super) fn write(&self, seconds: u64, mut out: impl Write) -> Result<Totals, ArchiveError> {
        let (mut totals, mut list) = (Totals::default(), String::new());
        let first = self.names()?;
        for name in &first {
            self.entry(name, seconds, &mut out, (&mut totals, &mut list))?;
        }
        let since: Vec<_> = self.names()?.into_iter().filter(|name| !first.contains(name)).collect();
        if first.len() + since.len() > MOST {
            return Err(ArchiveError::TooMany { most: MOST });
        }
        for name in &since {
            self.entry(name, seconds, &mut out, (&mut totals, &mut list))?;
        }
        out.write_all(&tar::header(LIST, list.len() as u64, seconds))?;
        out.write_all(list.as_bytes())?;
        out.write_all(tar::padding(list.len() as u64))?;
        Ok(totals)
    }

    fn entry(
        &self,
        (module, name): &(String, String),
        seconds: u64,
        mut out: impl Write,
        (totals, list): (&mut Totals, &mut String),
    ) -> Result<(), ArchiveError> {
        let place = self.0.join(module).join(name);
        let file = match open_no_symlinks(&place, OFlag::O_RDONLY | OFlag::O_NONBLOCK, 0) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            opened => opened?,
        };
        let seen = file.metadata()?;
        if !seen.is_file() {
            return Err(ArchiveError::NoFile(place));
        }
        let path = format!("{FOLDER}/{module}/{name}");
        out.write_all(&tar::header(&path, seen.len(), seconds))?;
        let (bytes, hash) = hashed((&file).take(seen.len()), &mut out)?;
        if bytes != seen.len() {
            return Err(ArchiveError::Shrunk(place));
        }
        out.write_all(tar::padding(bytes))?;
        list.push_str(&line(&hash, &path));
        *totals = Totals { files: totals.files + 1, bytes: totals.bytes + bytes };
        Ok(())
    }
}

/// Reads the entries up to and with their list, which must be of exactly these. They are put below `keep`, if it is given.
pub(super) fn read(mut stream: impl Read, keep: Option<&Path>) -> Result<Totals, ArchiveError> {
    let (mut totals, mut list, mut list_bytes) = (Totals::default(), blake3::Hasher::new(), 0);
    loop {
        let entry =
            tar::read_header(&mut stream)?.ok_or(ArchiveError::Shape("the list of its files' hashes is missing"))?;
        let (path, length) = entry;
        if path == LIST {
            let (bytes, hash) = hashed((&mut stream).take(length), io::sink())?;
            if (bytes, length, hash) != (list_bytes, list_bytes, list.finalize()) {
                return Err(ArchiveError::Mismatch(LIST));
            }
            tar::skip_padding(&mut stream, length)?;
            return Ok(totals);
        }
        let (module, name) = parts(&path).ok_or(ArchiveError::Shape("it holds a file that is no module's"))?;
        if totals.files >= MOST as u64 {
            return Err(ArchiveError::TooMany { most: MOST });
        }
        let content = (&mut stream).take(length);
        let (bytes, hash) = match keep {
            Some(folder) => hashed(content, fresh(&folder.join(module), name)?)?,
            None => hashed(content, io::sink())?,
        };
        if bytes != length {
            return Err(ArchiveError::Shape("it ends too early"));
        }
        tar::skip_padding(&mut stream, length)?;
        let line = line(&hash, &path);
        list.update(line.as_bytes());
        list_bytes += line.len() as u64;
        totals = Totals { files: totals.files + 1, bytes: totals.bytes + bytes };
    }
}

/// A new file in a folder that is made if need be. One that is there already was in the archive twice.
fn fresh(folder: &Path, name: &str) -> Result<File, ArchiveError> {
    for folder in folder.parent().into_iter().chain([folder]) {
        match DirBuilder::new().mode(0o700).create(folder) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error.into()),
            _ => {}
        }
    }
    match File::create_new(folder.join(name)) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Err(ArchiveError::Shape("it holds a file twice")),
        made => Ok(made?),
    }
}

fn entries(folder: &Path) -> io::Result<Vec<fs::DirEntry>> {
    match fs::read_dir(folder) {
        Ok(entries) => entries.take(MOST + 1).collect(),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// Module and name of an entry, which are what a module's blob can have.
fn parts(path: &str) -> Option<(&str, &str)> {
    let (module, name) = path.strip_prefix(FOLDER)?.strip_prefix('/')?.split_once('/')?;
    (is_module(module) && BlobName::new(name).is_some()).then_some((module, name))
}

fn is_module(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    !name.is_empty() && name.len() <= MODULE_BYTES && name.bytes().all(allowed)
}

/// As `b3sum` writes it.
fn line(hash: &blake3::Hash, path: &str) -> String {
    format!("{}  {path}\n", hash.to_hex())
}

/// Copies to the end; how much it was, and its hash.
fn hashed(mut from: impl Read, mut to: impl Write) -> io::Result<(u64, blake3::Hash)> {
    let (mut hash, mut total, mut piece) = (blake3::Hasher::new(), 0, vec![0; PIECE]);
    loop {
        match from.read(&mut piece) {
            Ok(0) => return Ok((total, hash.finalize())),
            Ok(count) => {
                hash.update(&piece[..count]);
                to.write_all(&piece[..count])?;
                total += count as u64;
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn folder() -> (tempfile::TempDir, Blobs) {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap().join("blobs");
        for (module, name, content) in
            [("files", "aa.data", vec![7; 200_000]), ("files", "bb.part", Vec::new()), ("x-1", "c", vec![1; 512])]
        {
            fs::create_dir_all(root.join(module)).unwrap();
            fs::write(root.join(module).join(name), content).unwrap();
        }
        // Nobody asks for these.
        fs::create_dir_all(root.join("No Module")).unwrap();
        fs::write(root.join("files/.hidden"), "x").unwrap();
        (folder, Blobs::below(root))
    }

    fn written(blobs: &Blobs) -> Vec<u8> {
        let mut out = Vec::new();
        blobs.write(1, &mut out).unwrap();
        out
    }

    #[test]
    fn they_read_back_and_every_changed_byte_and_every_cut_is_refused() {
        let (_folder, blobs) = folder();
        let (bytes, keep) = (written(&blobs), tempfile::tempdir().unwrap());
        let keep = keep.path().join("blobs");
        let all = Totals { files: 3, bytes: 200_512 };
        assert_eq!(read(&bytes[..], Some(&keep)).unwrap(), all);
        assert_eq!(read(&bytes[..], None).unwrap(), all);
        assert!(fs::read(keep.join("files/aa.data")).unwrap() == vec![7; 200_000]);
        assert_eq!(fs::read(keep.join("files/bb.part")).unwrap(), b"");
        for place in (0..bytes.len()).step_by(4001).chain([600, bytes.len() - 300]) {
            let mut changed = bytes.clone();
            changed[place] ^= 1;
            assert!(read(&changed[..], None).is_err(), "changed at {place}");
            assert!(read(&bytes[..place], None).is_err(), "cut at {place}");
        }
    }

    #[test]
    fn a_stock_tar_unpacks_them_and_their_list_is_of_their_hashes() {
        let (_folder, blobs) = folder();
        let stock = tempfile::tempdir().unwrap();
        let place = stock.path().join("blobs.tar");
        fs::write(&place, [written(&blobs), tar::END.to_vec()].concat()).unwrap();
        let unpacked = std::process::Command::new("tar").arg("-xf").arg(&place).arg("-C").arg(stock.path()).status();
        assert!(unpacked.unwrap().success());
        let list = fs::read_to_string(stock.path().join(LIST)).unwrap();
        assert_eq!(list.lines().count(), 3);
        for line in list.lines() {
            let (hash, path) = line.split_once("  ").unwrap();
            assert_eq!(blake3::hash(&fs::read(stock.path().join(path)).unwrap()).to_hex().as_str(), hash);
        }
    }

    #[test]
    fn only_files_that_a_module_can_have_and_each_once() {
        let entry = |path: &str| [&tar::header(path, 1, 1)[..], b"x", tar::padding(1)].concat();
        let refused = |bytes: Vec<u8>| {
            let keep = tempfile::tempdir().unwrap();
            read(&bytes[..], Some(&keep.path().join("blobs"))).unwrap_err().to_string()
        };
        for path in [
            "state/blobs/../../x",
            "state/blobs/files/../x",
            "state/blobs/files/.x",
            "state/blobs/files/a/b",
            "state/blobs/Files/a",
            "/state/blobs/files/a",
            "state/node.sqlite",
            "keystore.age",
            "state/blobs/files",
        ] {
            assert!(refused(entry(path)).contains("no module's"), "{path}");
        }
        let twice = [entry("state/blobs/files/a"), entry("state/blobs/files/a")].concat();
        assert!(refused(twice).contains("twice"));
    }

    /// Does something to the folder once the first bytes come.
    struct Meanwhile<F: FnMut()>(Vec<u8>, Option<F>);

    impl<F: FnMut()> Write for Meanwhile<F> {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if let Some(mut act) = self.1.take() {
                act();
            }
            self.0.write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn of_a_node_that_goes_on_it_takes_what_is_there_when_its_turn_comes() {
        let (_folder, blobs) = folder();
        let place = |name: &str| blobs.0.join(name);
        // One grows while it is read, one is gone before its turn, one is new, and one has another name.
        let mut out = Meanwhile(
            Vec::new(),
            Some(|| {
                fs::write(place("files/aa.data"), vec![8; 300_000]).unwrap();
                fs::remove_file(place("x-1/c")).unwrap();
                fs::write(place("x-1/new"), "new").unwrap();
                fs::rename(place("files/bb.part"), place("files/bb.data")).unwrap();
            }),
        );
        assert_eq!(blobs.write(1, &mut out).unwrap(), Totals { files: 3, bytes: 200_003 });
        let keep = tempfile::tempdir().unwrap();
        let keep = keep.path().join("blobs");
        assert_eq!(read(&out.0[..], Some(&keep)).unwrap().files, 3);
        assert_eq!(fs::read_to_string(keep.join("x-1/new")).unwrap(), "new");
        assert!(keep.join("files/bb.data").exists() && !keep.join("x-1/c").exists());
        // What became shorter is no whole file any more, and is named.
        let mut out = Meanwhile(Vec::new(), Some(|| fs::write(place("files/aa.data"), "short").unwrap()));
        let refused = blobs.write(1, &mut out).unwrap_err();
        assert!(matches!(&refused, ArchiveError::Shrunk(name) if name.ends_with("files/aa.data")), "{refused}");
    }

    #[test]
    fn what_is_no_file_is_named_and_a_link_is_not_followed() {
        let (_folder, blobs) = folder();
        let place = blobs.0.join("files/pipe");
        nix::unistd::mkfifo(&place, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let refused = blobs.write(1, io::sink()).unwrap_err();
        assert!(refused.to_string().contains("files/pipe"), "{refused}");
        fs::remove_file(&place).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", blobs.0.join("files/link")).unwrap();
        assert!(blobs.write(1, io::sink()).is_err());
        assert_eq!(Blobs::below(PathBuf::from("/nonexistent/blobs")).write(1, io::sink()).unwrap(), Totals::default());
    }
}
