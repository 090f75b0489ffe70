//! Behind `scripts/interop`: a directory, a node that takes every offer, and a program of another language that is told where they
//! are. Ends as that program does.

use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, Result, bail};
use openred_tests::harness::binaries;
use openred_tests::world::World;

/// Starts the two, runs the program, stops them.
fn main() -> ExitCode {
    let program: Vec<String> = std::env::args().skip(1).collect();
    match run(&program) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(program: &[String]) -> Result<()> {
    let (first, rest) = program.split_first().context("usage: openred-interop PROGRAM ARGUMENT…")?;
    let world = World::start()?;
    let mut node = world.node("node")?;
    let openred = binaries()?.join("openred");
    let status = Command::new(first)
        .args(rest)
        .args([&node.id, &format!("http://{}", node.listen), &world.directory.id, &world.origin()])
        .arg(openred)
        .arg("--home")
        .arg(&node.home)
        .args(["link", "request"])
        .stdin(Stdio::null())
        .status()
        .with_context(|| format!("{first} cannot be started"))?;
    if !status.success() {
        bail!("the other side gave up ({status}); the node says:\n{}", node.daemon()?.output());
    }
    node.down()
}

#[expect(clippy::print_stderr, reason = "a command for people")]
fn say(text: &str) {
    eprintln!("{text}");
}
