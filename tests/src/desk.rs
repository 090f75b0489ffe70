//! An author's desk: a key, packages signed with it; and the operator's commands about modules, as tests give them.

use std::cell::Cell;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use memchr::memmem;
use serde_json::Value;

use crate::harness::{Answer, Node, binaries, refusal, run, wait_for};

/// Version of `openred-probe-module` as it is built. Others of the same length are made of it.
pub const VERSION: &str = "1.0.0+openred.probe";

/// See the file's head.
#[derive(Debug)]
pub struct Desk {
    /// Everything that was made.
    pub folder: PathBuf,
    /// The publisher's key.
    pub key: PathBuf,
    /// Its did:key.
    pub publisher: String,
    made: Cell<u32>,
}

impl Desk {
    /// A new key in a new folder.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn new(folder: &Path) -> Result<Self> {
        fs::create_dir(folder)?;
        let key = folder.join("publisher.key");
        let made = openred(&["--json", "module", "key", &text(&key)])?.json()?;
        let publisher = made["publisher"].as_str().context("it prints the publisher")?.to_owned();
        Ok(Self { folder: folder.to_owned(), key, publisher, made: Cell::default() })
    }

    /// A place for something new.
    pub fn place(&self, name: &str) -> PathBuf {
        self.made.set(self.made.get() + 1);
        self.folder.join(format!("{}-{name}", self.made.get()))
    }

    /// The probe's program as another version of itself.
    ///
    /// # Errors
    /// When the program is not built, or has its version nowhere.
    pub fn probe(&self, version: &str) -> Result<PathBuf> {
        let mut bytes = fs::read(binaries()?.join("openred-probe-module"))?;
        ensure!(version.len() == VERSION.len(), "{version} is not as long as {VERSION}");
        let places: Vec<usize> = memmem::find_iter(&bytes, VERSION).collect();
        ensure!(!places.is_empty(), "the program has its version nowhere");
        for place in places {
            bytes[place..place + version.len()].copy_from_slice(version.as_bytes());
        }
        let place = self.place("program");
        fs::write(&place, bytes)?;
        Ok(place)
    }

    /// A signed package of a program.
    ///
    /// # Errors
    /// When it cannot be signed.
    pub fn pack(&self, manifest: &str, program: &Path, ending: &str) -> Result<PathBuf> {
        let (place, out) = (self.place("openred.toml"), self.place(&format!("package{ending}")));
        fs::write(&place, manifest)?;
        let signed = ["module", "sign", &text(&place), "--program", &text(program), "--key", &text(&self.key)];
        openred(&[&signed[..], &["--out", &text(&out)]].concat())?.ok()?;
        Ok(out)
    }

    /// Installs a package of the probe with this manifest, and grants what it asks for.
    ///
    /// # Errors
    /// When the node refuses it.
    pub fn install_probe(&self, node: &Node, manifest: &str) -> Result<()> {
        let package = self.pack(manifest, &self.probe(VERSION)?, "")?;
        let install = ["module", "install", &text(&package), "--publisher", &self.publisher, "--approve"];
        node.cli(&install)?.ok().map(drop)
    }
}

/// A manifest of the probe that asks for these permissions; `more` are tables behind them.
#[must_use]
pub fn probe_manifest(version: &str, permissions: &str, more: &str) -> String {
    format!(
        "id = \"probe\"\nversion = \"{version}\"\nprogram = \"probe\"\ndescription = \"Tries what it may\"\n
[[route]]\nmethod = \"POST\"\npath = \"/try/{{what}}\"\nauth = \"operator\"\nbody_bytes = 4194304
[[route]]\nmethod = \"GET\"\npath = \"/kept\"\nauth = \"operator\"
[[route]]\nmethod = \"POST\"\npath = \"/end\"\nauth = \"operator\"
[permissions]\n{permissions}\n{more}"
    )
}

/// A path as text.
#[must_use]
pub fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// Runs `openred` without a node.
///
/// # Errors
/// When it cannot be started.
pub fn openred(arguments: &[&str]) -> Result<Answer> {
    run(&binaries()?.join("openred"), arguments)
}

/// `openred module …`, which must do it.
///
/// # Errors
/// When it does not.
pub fn module(node: &Node, arguments: &[&str]) -> Result<Value> {
    node.cli(&[&["module"], arguments].concat())?.json()
}

/// Approves the probe's version that waits, as whoever has just looked at it.
///
/// # Errors
/// When the node refuses it.
pub fn approve(node: &Node, more: &[&str]) -> Result<Value> {
    let shown = module(node, &["show", "probe"])?["shown"].as_str().context("it names the version")?.to_owned();
    module(node, &[&["approve", "probe", "--shown", &shown], more].concat())
}

/// The same as [`module`], which must refuse it with this code.
///
/// # Panics
/// When it does not.
pub fn refused(node: &Node, arguments: &[&str], code: &str) -> Answer {
    let answer = node.cli(&[&["module"], arguments].concat()).expect("the program can be started");
    assert_eq!(refusal(&answer).1, code, "{}{}", answer.stdout, answer.stderr);
    answer
}

/// Calls the probe until it answers as wanted.
///
/// # Errors
/// When it does not in time.
pub fn answers(node: &Node, what: &[&str], wanted: &str) -> Result<()> {
    wait_for(&format!("{what:?} to answer {wanted}"), || {
        let answer = node.cli(&[&["module", "call", "probe"], what].concat())?;
        let said = format!("{}{}", answer.stdout, answer.stderr);
        ensure!(said.contains(wanted), "{said}");
        Ok(Some(()))
    })
}
