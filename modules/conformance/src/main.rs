//! Judges one module: `openred-conformance MANIFEST PROGRAM`. Exit code 0: it passed all; 1: it did not; 2: there is nothing to judge.
#![forbid(unsafe_code)]

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Parser;
use openred_conformance::probe::{TAKE, take};
use openred_conformance::{Subject, run};
use openred_module::manifest::Manifest;

/// Judges a module's program by the suite that every module must pass
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Print one JSON document
    #[arg(long)]
    json: bool,
    /// The module's openred.toml
    manifest: PathBuf,
    /// Its built program
    program: PathBuf,
}

fn main() -> ExitCode {
    let name = std::env::args().next().unwrap_or_default();
    if name.starts_with(TAKE) {
        return ExitCode::from(take(&name));
    }
    match judge(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "{error:#}");
            ExitCode::from(2)
        }
    }
}

fn judge(arguments: &Arguments) -> Result<bool> {
    let file = arguments.manifest.display().to_string();
    let text = std::fs::read_to_string(&arguments.manifest).with_context(|| file.clone())?;
    let subject = Subject::new(&Manifest::parse(&file, &text)?, &arguments.program, std::env::current_exe()?);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let report = runtime.block_on(run(&subject));
    let text = if arguments.json { serde_json::to_string(&report)? } else { report.to_string() };
    writeln!(std::io::stdout(), "{text}")?;
    Ok(report.ok)
}
