//! A backup as somebody would make it who has its key and means ill: opened, its database changed, and sealed again as a whole that is in
//! order, manifest, hashes and all.

use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::str::FromStr;

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

/// A block of tar.
const BLOCK: usize = 512;
const MANIFEST: &str = "manifest.json";
const DATABASE: &str = "state/node.sqlite";
/// The database's log, behind it.
const LOG: &str = "state/node.sqlite-wal";

/// An opened backup: names and contents in their order.
#[derive(Clone, Debug)]
pub struct Forged(Vec<(String, Vec<u8>)>);

impl Forged {
    /// Opens a backup with an age identity.
    ///
    /// # Errors
    /// When it does not open, or is none.
    pub fn open(backup: &Path, identity: &str) -> Result<Self> {
        let identity = age::x25519::Identity::from_str(identity).map_err(|error| anyhow!("the identity: {error}"))?;
        let opened = age::Decryptor::new(fs::File::open(backup)?)?.decrypt(std::iter::once(&identity as _));
        let mut bytes = Vec::new();
        opened?.read_to_end(&mut bytes)?;
        let (mut rest, mut files) = (bytes.as_slice(), Vec::new());
        loop {
            let (head, behind) = rest.split_first_chunk::<BLOCK>().context("a tar that ends too early")?;
            if head == &[0; BLOCK] {
                return Ok(Self(files));
            }
            let text = |from: usize, to: usize| head[from..to].split(|byte| *byte == 0).next().unwrap_or_default();
            let length = usize::from_str_radix(std::str::from_utf8(text(124, 136))?, 8)?;
            let (content, behind) = behind.split_at_checked(length).context("a file that ends too early")?;
            files.push((String::from_utf8(text(0, 100).to_vec())?, content.to_vec()));
            rest = behind.get(length.next_multiple_of(BLOCK) - length..).context("a block that ends too early")?;
        }
    }

    fn content(&mut self, name: &str) -> Result<&mut Vec<u8>> {
        self.0.iter_mut().find(|(known, _)| known == name).map(|(_, content)| content).context("no such file in it")
    }

    /// Changes the database, as a file, and its log, if the change leaves one.
    ///
    /// # Errors
    /// When that fails.
    pub fn with_database(mut self, change: impl FnOnce(&Path) -> Result<()>) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let place = folder.path().join("node.sqlite");
        fs::write(&place, &*self.content(DATABASE)?)?;
        change(&place)?;
        *self.content(DATABASE)? = fs::read(&place)?;
        let log = place.with_file_name("node.sqlite-wal");
        if log.exists() {
            self.0.push((LOG.to_owned(), fs::read(log)?));
        }
        Ok(self)
    }

    /// Seals it again; what the manifest says of the files is true. `claimed`: what it and the tar say instead of the database's length.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn seal(mut self, place: &Path, recipient: &str, claimed: Option<u64>) -> Result<()> {
        let lengths = |name: &str, content: &[u8]| claimed.filter(|_| name == DATABASE).unwrap_or(content.len() as u64);
        let described = self.0.iter().filter(|(name, _)| name != MANIFEST).map(|(name, content)| {
            let sha256 = hex::encode(Sha256::digest(content));
            serde_json::json!({ "name": name, "bytes": lengths(name, content), "sha256": sha256 })
        });
        let described: Vec<Value> = described.collect();
        let manifest = self.content(MANIFEST)?;
        let mut text: Value = serde_json::from_slice(manifest)?;
        ensure!(text["files"].is_array(), "a manifest names files");
        text["files"] = described.into();
        *manifest = serde_json::to_vec_pretty(&text)?;
        let recipient =
            age::x25519::Recipient::from_str(recipient).map_err(|error| anyhow!("the recipient: {error}"))?;
        let encryptor = age::Encryptor::with_recipients(std::iter::once(&recipient as _))?;
        let mut sealed = encryptor.wrap_output(fs::File::create(place)?)?;
        for (name, content) in &self.0 {
            sealed.write_all(&head(name, lengths(name, content)))?;
            sealed.write_all(content)?;
            sealed.write_all(&vec![0; content.len().next_multiple_of(BLOCK) - content.len()])?;
        }
        sealed.write_all(&[0; 2 * BLOCK])?;
        sealed.finish()?;
        Ok(())
    }
}

/// The header of a regular file (POSIX ustar).
fn head(name: &str, length: u64) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let length = format!("{length:011o}");
    for (at, text) in [
        (0, name),
        (100, "0000600"),
        (108, "0000000"),
        (116, "0000000"),
        (124, &length),
        (136, "00000000000"),
        (148, "        "),
        (156, "0"),
        (257, "ustar\x0000"),
    ] {
        block[at..at + text.len()].copy_from_slice(text.as_bytes());
    }
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}
