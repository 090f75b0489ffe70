//! Runs targets without coverage, repeats one input, or writes the corpus anew; see `openred_fuzz`.
//!
//! `openred-fuzz list` · `run TARGET SECONDS FAILURES` · `input TARGET FILE` · `corpus FOLDER`
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a tool")]
#![forbid(unsafe_code)]

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use openred_fuzz::driver::Run;
use openred_fuzz::{TARGETS, corpus, target};

const USAGE: &str = "openred-fuzz list | run TARGET SECONDS FAILURES | input TARGET FILE | corpus FOLDER";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("{why}");
            ExitCode::from(2)
        }
    }
}

fn run(arguments: &[&str]) -> Result<(), String> {
    let named = |name: &str| target(name).ok_or(format!("no such target: {name}; openred-fuzz list names them"));
    match arguments {
        ["list"] => {
            for target in &TARGETS {
                println!("{:18} {}", target.name, target.reads);
            }
            Ok(())
        }
        ["run", name, seconds, failures] => {
            let target = named(name)?;
            let seconds = seconds.parse().map_err(|_| USAGE)?;
            let inputs = corpus::read(&corpus::folder(), target).map_err(|error| error.to_string())?;
            let run = Run { failures: Path::new(failures), time: Duration::from_secs(seconds) };
            println!("{name}: {} inputs, nothing failed", run.drive(target, &inputs));
            Ok(())
        }
        ["input", name, file] => {
            let bytes = std::fs::read(file).map_err(|error| format!("{file}: {error}"))?;
            (named(name)?.run)(&bytes);
            println!("{name}: nothing failed");
            Ok(())
        }
        ["corpus", folder] => corpus::write(Path::new(folder)).map_err(|error| format!("{folder}: {error}")),
        _ => Err(USAGE.to_owned()),
    }
}
