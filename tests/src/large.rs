//! A large file that passes from node to node, and what every process holds of its own meanwhile, sampled from `/proc`.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::harness::Node;

/// Time between two looks: short beside the life of any buffer that grows with a file.
const LOOK: Duration = Duration::from_millis(10);
/// What any one process may hold of its own while a file passes, in KiB, whatever the file's length.
pub const MEMORY_KIB: u64 = 96 * 1024;

/// Makes a file with a number in each MiB, so that no two pieces are the same; what lies between is a hole.
///
/// # Errors
/// The disk's.
pub fn sparse(path: &Path, mebibytes: u64) -> Result<()> {
    let file = File::create(path)?;
    file.set_len(mebibytes << 20)?;
    for place in 0..mebibytes {
        file.write_all_at(&place.to_le_bytes(), place << 20)?;
    }
    Ok(())
}

/// What a process holds of its own, behind which no file stands, in KiB; none once it has ended.
fn held_by(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?.split_whitespace().next()?.parse().ok()
}

/// Processes, and the most that each was seen to hold, in KiB.
#[derive(Debug, Default)]
pub struct Held {
    most: BTreeMap<(String, u32), u64>,
    looks: usize,
}

impl Held {
    /// Of these nodes, all that a file passes through.
    ///
    /// # Errors
    /// When a node does not name one.
    pub fn of(nodes: &[&Node]) -> Result<Self> {
        let mut held = Self::default();
        for node in nodes {
            for name in ["noded", "module files", "vault", "front"] {
                held.most.insert((name.to_owned(), node.child_pid(name)?), 0);
            }
        }
        Ok(held)
    }

    /// Carries out an operator's command and looks at all of them meanwhile, the command's own process among them.
    ///
    /// # Errors
    /// When it fails.
    pub fn run(&mut self, node: &Node, arguments: &[&str]) -> Result<Value> {
        let (mut child, lines) = node.stream(arguments)?;
        self.most.insert((String::from("openred"), child.id()), 0);
        let last = thread::spawn(move || lines.last());
        let ended = loop {
            for ((_, pid), most) in &mut self.most {
                *most = held_by(*pid).unwrap_or(0).max(*most);
            }
            self.looks += 1;
            if let Some(ended) = child.try_wait()? {
                break ended;
            }
            thread::sleep(LOOK);
        };
        let last = last.join().ok().flatten().context("it says what it did")?;
        ensure!(ended.success(), "{arguments:?}: {last}");
        Ok(serde_json::from_str(&last)?)
    }

    /// The most that any one held; an error where that is more than [`MEMORY_KIB`], or nothing was seen.
    ///
    /// # Errors
    /// As said.
    pub fn within_bound(&self) -> Result<u64> {
        ensure!(self.looks > 4, "only {} looks", self.looks);
        for ((name, pid), held) in &self.most {
            ensure!(*held > 0 && *held < MEMORY_KIB, "{name} ({pid}) held {held} KiB");
        }
        self.most.values().max().copied().context("no process was looked at")
    }
}
