//! The demonstration behind `scripts/demo`: two nodes, one directory, the whole path on real input, and a report.
//!
//! It drives the built programs as an operator would, measures, and writes `target/demo/report.json`. Every value in the
//! report is measured or searched for here; none is assumed. It exits 0 only when all of them hold.

#[path = "openred-demo"]
mod demo {
    pub(crate) mod privacy;
    pub(crate) mod report;
    pub(crate) mod story;
}

use std::path::PathBuf;
use std::process::ExitCode;

use demo::{report, story};

/// Parses the few arguments, runs the story, prints the table, writes the report.
fn main() -> ExitCode {
    let mut keep = false;
    let mut out = PathBuf::from("target/demo");
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--keep" => keep = true,
            "--out" => out = arguments.next().map_or(out, PathBuf::from),
            _ => {
                report::say("usage: openred-demo [--out FOLDER] [--keep]");
                return ExitCode::from(2);
            }
        }
    }
    match story::run(&out, keep) {
        Ok(report) if report.holds() => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            report::say(&format!("the demonstration failed: {error:#}"));
            ExitCode::FAILURE
        }
    }
}
