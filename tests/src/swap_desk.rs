//! The desk of an author whose module is swapped: a publisher's key, and signed packages of the module `swapped`, each with a version and with what
//! it does beside counting (`openred-swap-module`).

use std::cell::Cell;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use memchr::memmem;

use crate::harness::{binaries, run};

/// The module's id.
pub const MODULE: &str = "swapped";
/// The version that the program was built with.
const BUILT: &str = "1.0.0+openred.swap";
/// What stands before the act.
const MARK: &str = "openred-swap-act:";
/// Longest act.
const ACT_BYTES: usize = 16;

/// See the file's head.
#[derive(Debug)]
pub struct Desk {
    folder: PathBuf,
    key: PathBuf,
    /// The publisher's did.
    pub publisher: String,
    made: Cell<u32>,
}

/// A version's text: the same length whatever its numbers, below ten each.
#[must_use]
pub fn version(minor: u32, patch: u32) -> String {
    format!("1.{minor}.{patch}+openred.swap")
}

impl Desk {
    /// A desk in a new folder.
    ///
    /// # Errors
    /// When there is no such folder to be made.
    pub fn new(folder: &Path) -> Result<Self> {
        fs::create_dir(folder)?;
        let key = folder.join("publisher.key");
        let made = run(&binaries()?.join("openred"), &["--json", "module", "key", text(&key)?])?.json()?;
        let publisher = made["publisher"].as_str().context("a key has a publisher")?.to_owned();
        Ok(Self { folder: folder.to_owned(), key, publisher, made: Cell::new(0) })
    }

    fn place(&self, name: &str) -> PathBuf {
        self.made.set(self.made.get() + 1);
        self.folder.join(format!("{}-{name}", self.made.get()))
    }

    /// A signed package of that version that does so, and asks for this beside its rows.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn package(&self, version: &str, act: &str, permissions: &str) -> Result<PathBuf> {
        self.package_of(version, version, act, permissions)
    }

    /// The same, where the program says that it is another version.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn package_of(&self, version: &str, says: &str, act: &str, permissions: &str) -> Result<PathBuf> {
        let (manifest, program, out) = (self.place("openred.toml"), self.place("program"), self.place("package"));
        fs::write(&manifest, manifest_of(version, permissions))?;
        fs::write(&program, program_of(says, act)?)?;
        let sign = ["module", "sign", text(&manifest)?, "--program", text(&program)?, "--key", text(&self.key)?];
        run(&binaries()?.join("openred"), &[&sign[..], &["--out", text(&out)?]].concat())?.ok()?;
        Ok(out)
    }
}

/// The manifest of that version.
#[must_use]
pub fn manifest_of(version: &str, permissions: &str) -> String {
    let route = |method: &str, path: &str| {
        format!("[[route]]\nmethod = \"{method}\"\npath = \"/{path}\"\nauth = \"operator\"\n")
    };
    let posts: String = ["look", "add", "hang", "late", "go", "end"].map(|path| route("POST", path)).concat();
    let quota = "kv.quota = { megabytes = 1, reason = \"the count\" }";
    format!(
        "id = \"{MODULE}\"\nversion = \"{version}\"\nprogram = \"swapped\"\ndescription = \"Counts\"\n{}{posts}[permissions]\n{quota}\n{permissions}",
        route("GET", "shown")
    )
}

/// The program that says it is that version, and does so.
///
/// # Errors
/// When it is not built, or one of them has another length than there is room for.
pub fn program_of(says: &str, act: &str) -> Result<Vec<u8>> {
    let mut bytes = fs::read(binaries()?.join("openred-swap-module"))?;
    ensure!(says.len() == BUILT.len() && act.len() <= ACT_BYTES, "{says} or {act} has another length");
    replace(&mut bytes, BUILT.as_bytes(), says.as_bytes())?;
    let dots = [MARK.as_bytes(), &[b'.'; ACT_BYTES]].concat();
    let acts = format!("{MARK}{act:.<ACT_BYTES$}");
    replace(&mut bytes, &dots, acts.as_bytes())?;
    Ok(bytes)
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("paths of tests are UTF-8")
}

fn replace(bytes: &mut [u8], from: &[u8], to: &[u8]) -> Result<()> {
    let places: Vec<usize> = memmem::find_iter(bytes, from).collect();
    ensure!(!places.is_empty(), "the program has no such text to be changed");
    for at in places {
        bytes[at..at + to.len()].copy_from_slice(to);
    }
    Ok(())
}
