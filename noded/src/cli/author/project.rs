//! An author's project: a folder with Cargo.toml and openred.toml, and what cargo builds of it.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use openred_module::manifest::Manifest;
use serde_json::Value;

use crate::cli::{Exit, Failure};

/// The manifest's file.
pub(super) const MANIFEST: &str = "openred.toml";
/// Where a project notes the node on which it runs now.
pub(super) const NODE: &str = "target/openred-dev";

/// See the file's head.
pub(super) struct Project {
    pub(super) folder: PathBuf,
}

impl Project {
    /// The project of the current folder, or of one above it.
    pub(super) fn here() -> Result<Self, Failure> {
        let here = std::env::current_dir().map_err(|error| Failure::local("the current folder", &error))?;
        let is_project = |folder: &&Path| folder.join(MANIFEST).is_file() && folder.join("Cargo.toml").is_file();
        match here.ancestors().find(is_project) {
            Some(folder) => Ok(Self { folder: folder.to_owned() }),
            None => {
                let what = format!("{}: no module's project, which has Cargo.toml and {MANIFEST}", here.display());
                Err(Failure::new(
                    Exit::NotFound,
                    "usage",
                    what,
                    "go into one, or make one with `openred module new NAME`",
                ))
            }
        }
    }

    /// Claims it for this run, which notes its node there: another one would take this one's place. Free again when the file is closed.
    pub(super) fn claim(&self) -> Result<File, Failure> {
        let place = self.folder.join(NODE);
        let local = |error| Failure::local(place.display(), &error);
        place.parent().map_or(Ok(()), fs::create_dir_all).map_err(local)?;
        let file = File::options().create(true).truncate(false).write(true).open(&place).map_err(local)?;
        match file.try_lock() {
            Ok(()) => Ok(file),
            Err(TryLockError::WouldBlock) => {
                let what = format!("{}: `openred module dev` runs here already", self.folder.display());
                Err(Failure::new(Exit::Conflict, "conflict", what, "end it with Ctrl-C in its terminal"))
            }
            Err(TryLockError::Error(error)) => Err(local(error)),
        }
    }

    /// Its manifest, as it is written now.
    pub(super) fn manifest(&self) -> Result<Manifest, Failure> {
        let place = self.folder.join(MANIFEST);
        let text = fs::read_to_string(&place).map_err(|error| Failure::local(place.display(), &error))?;
        Ok(Manifest::parse(&place.display().to_string(), &text)?)
    }

    /// Builds its program; cargo says on standard error what it does. The program's place.
    pub(super) fn build(&self, program: &str) -> Result<PathBuf, Failure> {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let built = Command::new(cargo)
            .args(["build", "--bin", program, "--message-format", "json-render-diagnostics"])
            .current_dir(&self.folder)
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .output();
        let built = built.map_err(|error| {
            Failure::local("cargo", &error).way_out("install Rust (https://rustup.rs), so that `cargo` is in PATH")
        })?;
        if !built.status.success() {
            return Err(Failure::new(Exit::Failed, "local", "the project does not build", "see what cargo says above"));
        }
        let messages = String::from_utf8_lossy(&built.stdout);
        let executable = |line: &str| -> Option<PathBuf> {
            let message: Value = serde_json::from_str(line).ok()?;
            let is_it = message["reason"] == "compiler-artifact" && message["target"]["name"] == program;
            is_it.then(|| message["executable"].as_str()).flatten().map(PathBuf::from)
        };
        messages.lines().filter_map(executable).next_back().ok_or_else(|| {
            let what = format!("cargo built no program {program}");
            Failure::new(Exit::Failed, "local", what, format!("`program` of {MANIFEST} must be a binary of Cargo.toml"))
        })
    }
}
