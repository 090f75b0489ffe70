//! A node's backup as a stream: a manifest, the files that it names, in one order, and those of the modules (`blobs`), as a
//! plain tar.
//!
//! What is written a stock `tar` lists; what is read is exactly that and nothing else, because it may come from anywhere.
//! Sealing and opening the stream is the unsealer's business.

pub(crate) mod blobs;
pub(crate) mod tar;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use blobs::{Blobs, Totals};

/// Name of the first entry.
const MANIFEST: &str = "manifest.json";
/// Longest manifest; six short lines.
const MANIFEST_BYTES: u64 = 64 * 1024;
/// Schema of the manifest of a backup without the modules' files: as it was before there were any with them.
const WITHOUT_BLOBS: &str = "openred.backup/1";
/// Schema of one with them.
const WITH_BLOBS: &str = "openred.backup/2";
/// Most bytes of the small files: configuration (1 MiB), keystore (16 KiB), vault state (4 MiB and 8 KiB).
const SMALL_BYTES: u64 = 8 << 20;
/// Bytes copied at once.
const PIECE: usize = 64 * 1024;

/// The files of a backup in their order, and whether each has to be there.
pub(crate) const FILES: [(&str, bool); 6] =
    [(CONFIG, true), (KEYSTORE, true), (VAULT_STATE, true), (DATABASE, true), (LOG, false), (PACKAGES, false)];
/// The configuration.
pub(crate) const CONFIG: &str = "openred.toml";
/// The key part.
pub(crate) const KEYSTORE: &str = "keystore.age";
/// The vault's state; empty for a node that never ran.
pub(crate) const VAULT_STATE: &str = "vault/state";
/// `noded`'s database; empty for a node that never ran.
pub(crate) const DATABASE: &str = "state/node.sqlite";
/// The database's log, of a node that was killed and not started since.
pub(crate) const LOG: &str = "state/node.sqlite-wal";

/// The installed modules, if there are any: a tar of its own (`packages::carry`).
pub(crate) const PACKAGES: &str = "modules.tar";

/// Why a backup cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ArchiveError {
    /// Reading or writing failed; a pipe's other end may have given up.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// Not the shape that this program writes.
    #[error("no backup of this program: {0}")]
    Shape(&'static str),
    /// A file is not what the manifest says.
    #[error("{0} is not what the manifest says: the backup is damaged")]
    Mismatch(&'static str),
    /// A file changed while it was read.
    #[error("{0} changed while it was copied; try again")]
    Changed(&'static str),
    /// A module's file became shorter.
    #[error("{} changed while it was copied; try again", .0.display())]
    Shrunk(PathBuf),
    /// In a module's folder.
    #[error("{} is no regular file; somebody changed the node's state", .0.display())]
    NoFile(PathBuf),
    /// More of the modules' files than are read at once.
    #[error("there are more than {most} files of modules; leave them out with --without-files")]
    TooMany { most: usize },
}

/// One file as the manifest names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Entry {
    pub(crate) name: String,
    pub(crate) bytes: u64,
    pub(crate) sha256: String,
}

/// What a backup says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Manifest {
    pub(crate) schema: String,
    pub(crate) version: String,
    pub(crate) node_id: String,
    pub(crate) created_at: u64,
    pub(crate) running: bool,
    pub(crate) files: Vec<Entry>,
}

/// Where a file's content is.
pub(crate) enum Content {
    Bytes(Vec<u8>),
    File(File),
}

impl Content {
    fn open(&self) -> io::Result<Box<dyn Read + '_>> {
        match self {
            Self::Bytes(bytes) => Ok(Box::new(&bytes[..])),
            Self::File(file) => {
                let mut again = file.try_clone()?;
                io::Seek::rewind(&mut again)?;
                Ok(Box::new(again))
            }
        }
    }
}

/// A backup that is to be written.
pub(crate) struct Source {
    pub(crate) node_id: String,
    pub(crate) created_at: u64,
    pub(crate) running: bool,
    pub(crate) contents: Vec<(&'static str, Content)>,
    /// The modules' files, unless they are left out.
    pub(crate) blobs: Option<Blobs>,
}

/// What was read of a backup.
#[derive(Debug)]
pub(crate) struct Extracted {
    pub(crate) manifest: Manifest,
    /// The small files.
    pub(crate) small: BTreeMap<&'static str, Vec<u8>>,
    /// Of the modules' files, if it has them.
    pub(crate) blobs: Option<Totals>,
}

/// Reads every file once for its hash.
pub(crate) fn manifest(source: &Source) -> Result<Manifest, ArchiveError> {
    let mut files = Vec::with_capacity(source.contents.len());
    for (name, content) in &source.contents {
        let (bytes, sha256) = digest(content.open()?, io::sink())?;
        files.push(Entry { name: (*name).to_owned(), bytes, sha256 });
    }
    Ok(Manifest {
        schema: if source.blobs.is_some() { WITH_BLOBS } else { WITHOUT_BLOBS }.to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        node_id: source.node_id.clone(),
        created_at: source.created_at,
        running: source.running,
        files,
    })
}

/// Writes the whole stream; every file is read again, and must be what it was when the manifest was made. How much of the
/// modules' files is in it.
pub(crate) fn write(source: &Source, manifest: &Manifest, mut out: impl Write) -> Result<Option<Totals>, ArchiveError> {
    let text = serde_json::to_vec_pretty(manifest).map_err(io::Error::other)?;
    let seconds = source.created_at / 1000;
    out.write_all(&tar::header(MANIFEST, text.len() as u64, seconds))?;
    out.write_all(&text)?;
    out.write_all(tar::padding(text.len() as u64))?;
    for ((name, content), entry) in source.contents.iter().zip(&manifest.files) {
        out.write_all(&tar::header(name, entry.bytes, seconds))?;
        let (bytes, sha256) = digest(content.open()?.take(entry.bytes), &mut out)?;
        if (bytes, &sha256) != (entry.bytes, &entry.sha256) {
            return Err(ArchiveError::Changed(name));
        }
        out.write_all(tar::padding(entry.bytes))?;
    }
    let blobs = source.blobs.as_ref().map(|blobs| blobs.write(seconds, &mut out)).transpose()?;
    out.write_all(&tar::END)?;
    out.flush()?;
    Ok(blobs)
}

/// Reads a whole stream into `folder`, which is empty: every file of it, and each as the manifest says. Small files come back.
/// The modules' files are put below `keep`, or only verified.
pub(crate) fn extract(mut stream: impl Read, folder: &Path, keep: Option<&Path>) -> Result<Extracted, ArchiveError> {
    let manifest = read_manifest(&mut stream)?;
    let small = read_files(&mut stream, &manifest, folder)?;
    let blobs = match manifest.schema == WITH_BLOBS {
        true => Some(blobs::read(&mut stream, keep)?),
        false => None,
    };
    if tar::read_header(&mut stream)?.is_some() {
        return Err(ArchiveError::Shape("there is more in it than its manifest says"));
    }
    // To the end, so that the seal over all of it is checked.
    io::copy(&mut stream, &mut io::sink())?;
    Ok(Extracted { manifest, small, blobs })
}

fn read_manifest(mut stream: impl Read) -> Result<Manifest, ArchiveError> {
    let (name, bytes) = tar::read_header(&mut stream)?.ok_or(ArchiveError::Shape("it is empty"))?;
    if name != MANIFEST || bytes > MANIFEST_BYTES {
        return Err(ArchiveError::Shape("it does not begin with its manifest"));
    }
    let mut text = vec![0; usize::try_from(bytes).unwrap_or(0)];
    stream.read_exact(&mut text)?;
    tar::skip_padding(&mut stream, bytes)?;
    let manifest: Manifest =
        serde_json::from_slice(&text).map_err(|_| ArchiveError::Shape("its manifest cannot be read"))?;
    if ![WITHOUT_BLOBS, WITH_BLOBS].contains(&manifest.schema.as_str()) {
        return Err(ArchiveError::Shape("its manifest is of another version"));
    }
    Ok(manifest)
}

/// The files that the manifest names; the small ones come back.
fn read_files(
    mut stream: impl Read,
    manifest: &Manifest,
    folder: &Path,
) -> Result<BTreeMap<&'static str, Vec<u8>>, ArchiveError> {
    let names = expected(manifest)?;
    let mut small = BTreeMap::new();
    for (name, entry) in names.into_iter().zip(&manifest.files) {
        if tar::read_header(&mut stream)? != Some((name.to_owned(), entry.bytes)) {
            return Err(ArchiveError::Mismatch(name));
        }
        let is_small = !name.starts_with(DATABASE) && name != PACKAGES;
        if is_small && entry.bytes > SMALL_BYTES {
            return Err(ArchiveError::Shape("a small file is too long"));
        }
        let content = (&mut stream).take(entry.bytes);
        let (bytes, sha256) = if is_small {
            let mut held = Vec::new();
            let read = digest(content, &mut held)?;
            small.insert(name, held);
            read
        } else {
            digest(content, File::create_new(folder.join(place_of(name)))?)?
        };
        if (bytes, &sha256) != (entry.bytes, &entry.sha256) {
            return Err(ArchiveError::Mismatch(name));
        }
        tar::skip_padding(&mut stream, entry.bytes)?;
    }
    Ok(small)
}

/// The file's own name, without its folder.
pub(crate) fn place_of(name: &str) -> &str {
    name.rsplit('/').next().unwrap_or(name)
}

/// The manifest's files, which must be those of [`FILES`] in their order.
fn expected(manifest: &Manifest) -> Result<Vec<&'static str>, ArchiveError> {
    let mut listed = manifest.files.iter().map(|entry| entry.name.as_str()).peekable();
    let mut names = Vec::new();
    for (name, needed) in FILES {
        if listed.next_if_eq(&name).is_some() {
            names.push(name);
        } else if needed {
            return Err(ArchiveError::Shape("a file is missing in its manifest"));
        }
    }
    match listed.next() {
        None => Ok(names),
        Some(_) => Err(ArchiveError::Shape("its manifest names a file that no backup has")),
    }
}

/// Copies to the end; how much it was, and its SHA-256.
fn digest(mut from: impl Read, mut to: impl Write) -> io::Result<(u64, String)> {
    let (mut hash, mut total, mut piece) = (Sha256::new(), 0, vec![0; PIECE]);
    loop {
        match from.read(&mut piece) {
            Ok(0) => return Ok((total, hex::encode(hash.finalize()))),
            Ok(count) => {
                hash.update(&piece[..count]);
                to.write_all(&piece[..count])?;
                total += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn source() -> Source {
        let file = tempfile::tempfile().unwrap();
        (&file).write_all(&[7; 200_000]).unwrap();
        let contents = vec![
            (CONFIG, Content::Bytes(b"name = \"a\"\n".to_vec())),
            (KEYSTORE, Content::Bytes(vec![1; 512])),
            (VAULT_STATE, Content::Bytes(Vec::new())),
            (DATABASE, Content::File(file)),
        ];
        Source { node_id: String::from("did:key:z"), created_at: 1_000, running: true, contents, blobs: None }
    }

    fn archive() -> Vec<u8> {
        let source = source();
        let mut out = Vec::new();
        write(&source, &manifest(&source).unwrap(), &mut out).unwrap();
        out
    }

    fn read(bytes: &[u8]) -> Result<Extracted, ArchiveError> {
        extract(bytes, tempfile::tempdir().unwrap().path(), None)
    }

    #[test]
    fn it_reads_back_and_a_stock_tar_lists_it() {
        let bytes = archive();
        let folder = tempfile::tempdir().unwrap();
        let Extracted { manifest, small, blobs } = extract(&bytes[..], folder.path(), None).unwrap();
        assert_eq!((manifest.files.len(), small[KEYSTORE].len(), blobs), (4, 512, None));
        assert_eq!(std::fs::read(folder.path().join("node.sqlite")).unwrap(), [7; 200_000]);
        let stock = tempfile::tempdir().unwrap();
        let place = stock.path().join("backup.tar");
        std::fs::write(&place, &bytes).unwrap();
        let listed = std::process::Command::new("tar").arg("-tf").arg(&place).output().unwrap();
        let listed = String::from_utf8(listed.stdout).unwrap();
        let names: Vec<&str> = listed.lines().collect();
        assert_eq!(names, [MANIFEST, CONFIG, KEYSTORE, VAULT_STATE, DATABASE]);
        let unpacked = std::process::Command::new("tar").arg("-xf").arg(&place).arg("-C").arg(stock.path()).status();
        assert!(unpacked.unwrap().success());
        assert_eq!(std::fs::read(stock.path().join(DATABASE)).unwrap(), [7; 200_000]);
    }

    #[test]
    fn every_cut_and_every_changed_byte_that_matters_is_named() {
        let bytes = archive();
        for length in (0..bytes.len() - 1024).step_by(97) {
            assert!(read(&bytes[..length]).is_err(), "cut at {length}");
        }
        let content = bytes.len() - 2_000;
        for place in [0, 100, 130, 520, 1030, 2100, content] {
            let mut changed = bytes.clone();
            changed[place] ^= 1;
            assert!(read(&changed).is_err(), "changed at {place}");
        }
    }

    #[test]
    fn only_a_backups_own_files_in_their_order() {
        let good = manifest(&source()).unwrap();
        let with = |change: &dyn Fn(&mut Manifest)| {
            let mut changed = good.clone();
            change(&mut changed);
            expected(&changed).err().map(|error| error.to_string())
        };
        assert_eq!(with(&|_| ()), None);
        assert!(with(&|manifest| manifest.files.swap(0, 1)).is_some());
        assert!(with(&|manifest| drop(manifest.files.pop())).is_some());
        assert!(with(&|manifest| manifest.files[1].name = String::from("../../etc/passwd")).is_some());
        assert!(with(&|manifest| manifest.files.push(manifest.files[0].clone())).is_some());
    }

    #[test]
    fn a_backup_with_the_modules_files_is_of_another_version_than_one_without() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap().join("blobs");
        std::fs::create_dir_all(root.join("files")).unwrap();
        std::fs::write(root.join("files/a.data"), [9; 70_000]).unwrap();
        let mut source = source();
        source.blobs = Some(Blobs::below(root));
        let manifest = manifest(&source).unwrap();
        assert_eq!(
            (manifest.schema.as_str(), read(&archive()).unwrap().manifest.schema),
            (WITH_BLOBS, WITHOUT_BLOBS.to_owned())
        );
        let (mut bytes, keep) = (Vec::new(), folder.path().join("kept"));
        let totals = Some(Totals { files: 1, bytes: 70_000 });
        assert_eq!(write(&source, &manifest, &mut bytes).unwrap(), totals);
        let scratch = tempfile::tempdir().unwrap();
        assert_eq!(extract(&bytes[..], scratch.path(), Some(&keep)).unwrap().blobs, totals);
        assert!(std::fs::read(keep.join("files/a.data")).unwrap() == vec![9; 70_000]);
        // A manifest that promises none, and one that promises some.
        let (before, after) = (bytes.clone(), archive());
        let swap = |bytes: &[u8], from: &str, to: &str| {
            let at = bytes.windows(from.len()).position(|window| window == from.as_bytes()).unwrap();
            let mut changed = bytes.to_vec();
            changed[at..at + to.len()].copy_from_slice(to.as_bytes());
            changed
        };
        assert!(read(&swap(&before, WITH_BLOBS, WITHOUT_BLOBS)).is_err());
        assert!(read(&swap(&after, WITHOUT_BLOBS, WITH_BLOBS)).is_err());
    }

    #[test]
    fn a_file_that_changes_meanwhile_is_named() {
        let source = source();
        let manifest = manifest(&source).unwrap();
        let Content::File(file) = &source.contents[3].1 else { panic!("a file") };
        std::os::unix::fs::FileExt::write_all_at(file, b"x", 5).unwrap();
        let changed = write(&source, &manifest, io::sink()).unwrap_err();
        assert!(matches!(changed, ArchiveError::Changed(DATABASE)), "{changed}");
    }
}
