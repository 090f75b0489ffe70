//! A node with an attacker in `noded`'s place (`openred-compromised-noded`), started by the real supervisor, which takes each of its
//! programs from the folder that it lies in itself.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::harness::{Node, binaries, lay_out, run, wait_for};

/// What leads the attacker, and what it leaves, in the node's state directory.
const FILES: [&str; 4] = ["attack.order", "attack.report", "attack.received", "attack.mute"];

/// The attacker's program.
///
/// # Errors
/// When it is not built.
pub fn program() -> Result<PathBuf> {
    Ok(binaries()?.join("openred-compromised-noded"))
}

/// What it can try that its filter ends it for, by name.
///
/// # Errors
/// When it does not say.
pub fn fatal_acts() -> Result<Vec<String>> {
    let said = run(&program()?, &["--acts"])?.ok()?.stdout;
    Ok(said.lines().map(str::to_owned).collect())
}

/// A node that is attacked.
#[derive(Debug)]
pub struct Attacked<'a> {
    /// The node.
    pub node: &'a mut Node,
    /// Lines of the report that were read.
    seen: usize,
}

impl<'a> Attacked<'a> {
    /// Puts the attacker in `noded`'s place, from the node's next start on. The programs are laid out in `folder`.
    ///
    /// # Errors
    /// When that is not possible.
    pub fn new(node: &'a mut Node, folder: &Path) -> Result<Self> {
        lay_out(folder, "noded", &program()?)?;
        node.run_from(folder);
        Ok(Self { node, seen: 0 })
    }

    fn file(&self, name: &str) -> PathBuf {
        self.node.home.join("state").join(name)
    }

    /// From its next start on it holds the operator's socket without answering, or has it closed.
    ///
    /// # Errors
    /// When it cannot be told.
    pub fn mute(&self, mute: bool) -> Result<()> {
        let place = self.file(FILES[3]);
        if mute {
            fs::write(place, "")?
        } else {
            fs::remove_file(place)?
        };
        Ok(())
    }

    /// Gives an order; what the attacker says of it comes by [`Attacked::said`].
    ///
    /// # Errors
    /// When it cannot be laid down.
    pub fn order(&self, order: &Value) -> Result<()> {
        let (beside, place) = (self.file("attack.beside"), self.file(FILES[0]));
        fs::write(&beside, order.to_string())?;
        fs::set_permissions(&beside, fs::Permissions::from_mode(0o644))?;
        Ok(fs::rename(beside, place)?)
    }

    /// What it has said since the last time, up to now.
    ///
    /// # Errors
    /// When a line is none of its.
    pub fn said(&mut self) -> Result<Vec<Value>> {
        let text = fs::read_to_string(self.file(FILES[1])).unwrap_or_default();
        // A line that is being written is for the next time.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        let lines = whole.lines().skip(self.seen).map(serde_json::from_str).collect::<Result<Vec<_>, _>>()?;
        self.seen += lines.len();
        Ok(lines)
    }

    /// Gives an order and waits until all of it is done.
    ///
    /// # Errors
    /// When it is not, or went another way than it was written for.
    pub fn obeyed(&mut self, order: &Value) -> Result<Vec<Value>> {
        self.order(order)?;
        let mut lines = Vec::new();
        wait_for("the attacker", || {
            lines.extend(self.said()?);
            Ok(lines.iter().any(|line| line["kind"] == "done").then_some(()))
        })
        .with_context(|| format!("{lines:#?}"))?;
        let broken = lines.iter().find(|line| line["kind"] == "broken");
        ensure!(broken.is_none(), "{broken:?}");
        Ok(lines)
    }

    /// Everything that the key process ever gave it.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn received(&self) -> Result<Vec<u8>> {
        fs::read(self.file(FILES[2])).context("what the attacker received")
    }

    /// Puts the honest program back, and takes away what the attacker left.
    ///
    /// # Errors
    /// When a file stays.
    pub fn end(self) -> Result<()> {
        for name in FILES {
            if let Err(error) = fs::remove_file(self.file(name)) {
                ensure!(error.kind() == std::io::ErrorKind::NotFound, "{name}: {error}");
            }
        }
        self.node.run_from(&binaries()?);
        Ok(())
    }
}

/// Values of lines of one kind.
pub fn of_kind<'a>(lines: &'a [Value], kind: &'a str) -> impl Iterator<Item = &'a Value> {
    lines.iter().filter(move |line| line["kind"] == kind)
}
