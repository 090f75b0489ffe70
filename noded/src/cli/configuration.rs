//! `check` and `config show`: the configuration read, judged and shown without starting anything.

use std::path::{Path, PathBuf};

use openred_proto::config::{ConfigError, Source};
use serde_json::{Map, Value, json};

use super::{Exit, Failure, Invocation};
use crate::config::{Resolved, resolve};

/// The configuration in force: defaults, file, environment, `--set`.
pub(crate) fn resolved(invocation: &Invocation) -> Result<Resolved, Failure> {
    let source = Source::read(&invocation.config)?;
    let environment =
        std::env::vars_os().filter_map(|(name, text)| Some((name.into_string().ok()?, text.into_string().ok()?)));
    Ok(resolve(source.file(), source.text(), environment, &invocation.overrides)?)
}

/// Checks files alone: neither the environment nor the home counts.
pub(crate) fn check(invocation: &Invocation, mut files: Vec<PathBuf>) -> Result<Exit, Failure> {
    if files.is_empty() {
        files.push(invocation.config.clone());
    }
    let (mut good, mut worst) = (0, None);
    for file in &files {
        match check_one(file) {
            Ok(()) => {
                good += 1;
                invocation.output.line(format!("{}: ok", file.display()));
                report(invocation, file, &Value::Null);
            }
            Err(error) => {
                let problem = match &error {
                    ConfigError::Refused(problem) => json!(problem),
                    other => json!({ "message": other.to_string() }),
                };
                report(invocation, file, &problem);
                let failure = Failure::from(error);
                if !invocation.output.is_json() {
                    invocation.output.failure(&failure);
                }
                worst = Some(failure.exit);
            }
        }
    }
    match worst {
        None => Ok(Exit::Ok),
        Some(Exit::BadConfiguration) => Ok(Exit::BadConfiguration),
        Some(exit) if good == 0 => Ok(exit),
        Some(_) => Ok(Exit::Partial),
    }
}

fn check_one(file: &Path) -> Result<(), ConfigError> {
    let source = Source::read(file)?;
    resolve(source.file(), source.text(), [], &[]).map(|_| ())
}

fn report(invocation: &Invocation, file: &Path, problem: &Value) {
    let body = json!({ "file": file.display().to_string(), "ok": problem.is_null(), "problem": problem });
    invocation.output.document("openred.check/1", &body);
}

/// Every setting, in the order of the documented file.
pub(crate) fn show(invocation: &Invocation, origin: bool) -> Result<Exit, Failure> {
    let resolved = resolved(invocation)?;
    let settings = resolved.settings();
    let mut body = Map::new();
    for (key, value, from) in &settings {
        body.insert((*key).to_owned(), json!({ "value": value, "origin": from }));
        invocation.output.line(match origin {
            true => format!("{:<12} {key} = {value}", from.to_string()),
            false => format!("{key} = {value}"),
        });
    }
    invocation
        .output
        .document("openred.config/1", &json!({ "file": invocation.config.display().to_string(), "settings": body }));
    Ok(Exit::Ok)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn the_reference_explains_every_setting_with_its_default() {
        let reference = include_str!("../../../docs/openred.md");
        for (key, value, _) in resolve(Path::new("x"), "", [], &[]).unwrap().settings() {
            let row = reference.lines().find(|line| line.starts_with(&format!("| `{key}` | ")));
            let row = row.unwrap_or_else(|| panic!("{key} is missing"));
            // Four methods do not fit the column.
            assert!(key == "links.methods" || row.contains(&format!("| `{value}` |")), "{key} = {value}: {row}");
        }
    }
}
