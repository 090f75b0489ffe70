//! The suite that every module must pass: its built program, in the cage that a node would put it into, against the SDK's own door.
//!
//! It asks what a node relies on and an author easily misses: that the module begins and ends as it is told, that its routes are those of
//! its manifest, that it answers, refuses and lets go as the contract says, and that nothing which a node may send brings it down. What a module does to
//! its node (garbage, floods, lies) is not asked here: a node stands that from any program.
//!
//! Each check has a program of its own, on a node of its own in memory; nothing is left behind. It changes nothing but what the
//! module's routes do when they are called with next to nothing.

mod checks;
pub mod probe;
mod subject;

use std::fmt;
use std::time::Duration;

use serde::Serialize;

pub use subject::Subject;

/// The longest that a module may take for one answer or one step of its life, on a loaded machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// What came of one check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// Stable name in kebab case.
    pub check: &'static str,
    /// What a module must do.
    pub demand: &'static str,
    /// What it did instead; nothing if it passed.
    pub offence: Option<String>,
}

/// What came of all of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// `openred.conformance/1`.
    pub schema: &'static str,
    /// The module.
    pub module: String,
    /// Whether it passed all.
    pub ok: bool,
    /// One a check, in the order in which they ran.
    pub verdicts: Vec<Verdict>,
}

/// Runs every check, one after the other.
pub async fn run(subject: &Subject) -> Report {
    let mut verdicts = Vec::new();
    for check in checks::ALL {
        let offence = (check.run)(subject).await.err().map(|error| format!("{error:#}"));
        verdicts.push(Verdict { check: check.name, demand: check.demand, offence });
    }
    let ok = verdicts.iter().all(|verdict| verdict.offence.is_none());
    Report { schema: "openred.conformance/1", module: subject.module.clone(), ok, verdicts }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for verdict in &self.verdicts {
            let word = if verdict.offence.is_none() { "ok" } else { "FAILED" };
            writeln!(f, "{word:<7} {:<16} {}", verdict.check, verdict.demand)?;
            if let Some(offence) = &verdict.offence {
                writeln!(f, "        {offence}")?;
            }
        }
        let passed = self.verdicts.iter().filter(|verdict| verdict.offence.is_none()).count();
        write!(f, "{}: {passed} of {} passed", self.module, self.verdicts.len())
    }
}
