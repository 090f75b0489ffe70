//! How the node is, as a module that was granted `node.status` sees it: numbers, states and names, and no peer's id.

use serde::{Deserialize, Serialize};

use crate::host::UnixMillis;

/// The node at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// When its process was started.
    pub started_at: UnixMillis,
    /// Links by state, those that are over left out.
    pub links: Vec<LinkCount>,
    /// Sessions that are open.
    pub sessions: u32,
    /// Operations of the key process since its start, as it said last.
    pub key_operations: u64,
    /// Directories, in the order of the configuration.
    pub directories: Vec<DirectoryState>,
    /// Modules, by id.
    pub modules: Vec<ModuleState>,
    /// What is wrong, by the node's own account.
    pub conditions: Vec<ConditionState>,
    /// Processes and their cages, as the supervisor sees them from outside.
    pub processes: Vec<ProcessState>,
    /// When it looked; nothing: it did not answer, and `processes` is empty.
    pub seen_at: Option<UnixMillis>,
}

/// So many links are in this state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkCount {
    /// As in `openred link list`.
    pub state: String,
    /// How many.
    pub links: u32,
}

/// A directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirectoryState {
    /// Where it is.
    pub url: String,
    /// `registered`, `unreachable`, `refused` or `starting`.
    pub state: String,
    /// Why.
    pub detail: String,
    /// Since when.
    pub since: UnixMillis,
}

/// A module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModuleState {
    /// Its id.
    pub id: String,
    /// Its version; empty: it does not run now.
    pub version: String,
    /// `serving`, `asleep` (the next call starts it), `starting`, `away`, `quarantined`; empty where the node does not say.
    pub state: String,
}

/// A condition that holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConditionState {
    /// Stable code.
    pub code: String,
    /// `warning` or `error`.
    pub severity: String,
    /// What exactly.
    pub detail: String,
    /// Codes of conditions that may be its cause.
    pub depends_on: Vec<String>,
    /// Since when.
    pub since: UnixMillis,
}

/// A process of the node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessState {
    /// As in `openred status`; a module's is `module ID`.
    pub name: String,
    /// `starting`, `ready`, `restarting`, `down`, `locked`, or `done` for one that has ended as it should.
    pub state: String,
    /// How often it was started again.
    pub restarts: u32,
    /// Since when it is in this state.
    pub since: UnixMillis,
    /// Layers of its cage; none for one that does not run.
    pub layers: Vec<LayerState>,
}

/// A layer of a cage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerState {
    /// As in `openred doctor`.
    pub name: String,
    /// Whether it is as it must be.
    pub on: bool,
    /// Of one that is off: what was expected, and what is there.
    pub detail: String,
}
