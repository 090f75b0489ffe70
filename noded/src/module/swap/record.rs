//! What must be known of a module's generations after any of the node's processes was killed.

use serde::{Deserialize, Serialize};

/// One process of a module, past, present or to come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Generation {
    /// Drawn once, rising.
    pub(crate) number: u64,
    /// Which program it runs: the one that was kept for the generation of this number; zero: the one that comes with the node.
    pub(crate) program: u64,
    /// As it said when it attached; of an installed module, as its manifest says. Empty before.
    pub(crate) version: String,
    /// Of an installed module: in which turn of the operator it was installed.
    #[serde(default)]
    pub(crate) turn: u32,
    /// Which rows it works on, `store::states`.
    pub(crate) state: u64,
}

/// A generation that has not finished its probation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Probation {
    /// Unix milliseconds.
    pub(crate) until: u64,
    /// The last that did finish: where a rollback goes.
    pub(crate) good: Generation,
    /// The rows as they were before the active generation, where it works on the same ones.
    pub(crate) snapshot: Option<u64>,
}

/// See the file's head. Everything that it does not name (rows of other states, processes of other generations) is left over, and removed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// Of the one who may write. Rises with each change of the active generation.
    pub(crate) epoch: u64,
    /// The last number that was drawn, for a generation or a state.
    pub(crate) drawn: u64,
    pub(crate) active: Generation,
    pub(crate) probation: Option<Probation>,
    /// On its way; its state is a copy, or, on the way back, the one to go back to.
    pub(crate) next: Option<Generation>,
    /// Replaced, and perhaps not gone yet.
    pub(crate) leaving: Vec<u64>,
    /// Rows that a rollback has put aside: those of the version that was left. Kept until another has finished its probation.
    pub(crate) aside: Option<u64>,
    /// States of before the last change, in case that has to be taken back.
    pub(crate) spare: Vec<u64>,
    /// The version, and its turn, that did not take its place or was rolled back.
    #[serde(default)]
    pub(crate) left: Option<(String, u32)>,
    /// How the last swap ended, for people.
    pub(crate) outcome: String,
}

impl Default for Record {
    /// The record of a module that was never swapped.
    fn default() -> Self {
        Self {
            epoch: 1,
            drawn: 1,
            active: Generation { number: 1, program: 0, version: String::new(), turn: 0, state: 0 },
            probation: None,
            next: None,
            leaving: Vec::new(),
            aside: None,
            spare: Vec::new(),
            left: None,
            outcome: String::new(),
        }
    }
}

impl Record {
    /// As the store keeps it.
    pub(crate) fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("numbers and texts are JSON")
    }

    /// The record in these bytes.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice(bytes).ok()
    }

    /// The rows that are kept, each once.
    pub(crate) fn states(&self) -> Vec<u64> {
        let probation = self.probation.iter();
        let mut states: Vec<u64> = [self.active.state].into_iter().chain(self.aside).collect();
        states.extend(probation.flat_map(|probation| [Some(probation.good.state), probation.snapshot]).flatten());
        states.extend(&self.spare);
        states.extend(self.next.iter().map(|next| next.state));
        states.sort_unstable();
        states.dedup();
        states
    }

    /// The kept programs that may be needed.
    pub(crate) fn programs(&self) -> Vec<u64> {
        let mut programs = vec![self.active.program];
        programs.extend(self.probation.iter().map(|probation| probation.good.program));
        // The active one's own is kept when the next is started.
        programs.extend(self.next.iter().flat_map(|next| [next.program, self.active.number]));
        programs.retain(|program| *program != 0);
        programs
    }

    /// The versions that may be needed.
    pub(crate) fn versions(&self) -> Vec<String> {
        let good = self.probation.iter().map(|probation| &probation.good);
        let all = [&self.active].into_iter().chain(good).chain(&self.next);
        let mut versions: Vec<String> = all.map(|generation| generation.version.clone()).collect();
        versions.sort_unstable();
        versions.dedup();
        versions
    }

    pub(super) fn draw(&mut self) -> u64 {
        self.drawn += 1;
        self.drawn
    }
}
