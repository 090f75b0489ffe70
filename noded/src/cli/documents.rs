//! What the program says about itself: version, completion scripts, manual pages.

use std::fs;
use std::path::{Path, PathBuf};

use clap::CommandFactory;
use serde_json::json;

use super::arguments::Arguments;
use super::{Exit, Failure, Invocation};

pub(crate) fn version(invocation: &Invocation) -> Result<Exit, Failure> {
    let version = env!("CARGO_PKG_VERSION");
    invocation.output.line(format!("openred {version}"));
    invocation.output.document("openred.version/1", &json!({ "version": version, "protocol": 1 }));
    Ok(Exit::Ok)
}

pub(crate) fn completions(shell: clap_complete::Shell) -> Result<Exit, Failure> {
    clap_complete::generate(shell, &mut Arguments::command(), "openred", &mut std::io::stdout());
    Ok(Exit::Ok)
}

/// One page a command: `openred.1`, `openred-link.1`, `openred-link-request.1`…
pub(crate) fn man(invocation: &Invocation, directory: &Path) -> Result<Exit, Failure> {
    let mut written = Vec::new();
    let mut root = Arguments::command().disable_help_subcommand(true);
    root.build();
    pages(&root, "openred", directory, &mut written)?;
    for path in &written {
        invocation.output.line(path.display().to_string());
    }
    let names: Vec<String> = written.iter().map(|path| path.display().to_string()).collect();
    invocation.output.document("openred.man/1", &json!({ "files": names }));
    Ok(Exit::Ok)
}

fn pages(command: &clap::Command, name: &str, directory: &Path, written: &mut Vec<PathBuf>) -> Result<(), Failure> {
    let path = directory.join(format!("{name}.1"));
    let failed = |error: std::io::Error| Failure::local(path.display(), &error);
    let mut page = Vec::new();
    let man = clap_mangen::Man::new(command.clone().bin_name(name.replace('-', " "))).title(name.to_uppercase());
    man.render(&mut page).map_err(failed)?;
    fs::write(&path, page).map_err(failed)?;
    written.push(path);
    for inner in command.get_subcommands() {
        pages(inner, &format!("{name}-{}", inner.get_name()), directory, written)?;
    }
    Ok(())
}
