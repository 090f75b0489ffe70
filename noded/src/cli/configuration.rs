//! `check` and `config show`: the configuration read, judged and shown without starting anything. What commands have decided beside it
//! says the node, or while it does not run its database.

use std::path::{Path, PathBuf};

use openred_policy::limits::{Resource, Ways};
use openred_proto::admin::ListMethodsRequest;
use openred_proto::config::{ConfigError, Source};
use openred_proto::method::{Method, Schedule};
use serde_json::{Map, Value, json};

use super::client::{block_on, node, request};
use super::{Exit, Failure, Invocation, packages};
use crate::config::{LinkConfig, NodeConfig, Resolved, refuse_key, resolve};
use crate::store;

/// The configuration in force: defaults, file, environment, `--set`.
pub(crate) fn resolved(invocation: &Invocation) -> Result<Resolved, Failure> {
    let source = Source::read(&invocation.config)?;
    Ok(resolve(source.file(), source.text(), environment(), &invocation.overrides)?)
}

/// The same for a node that runs: also the settings of its modules are held against their manifests.
pub(crate) fn reread(invocation: &Invocation) -> Result<NodeConfig, Failure> {
    let config = resolved(invocation)?.config;
    check_modules(invocation, &Source::read(&invocation.config)?, &config)?;
    Ok(config)
}

/// The same for work on a home that may have no configuration yet, or none any more.
pub(crate) fn resolved_if_any(invocation: &Invocation) -> Result<NodeConfig, Failure> {
    match resolved(invocation) {
        Err(failure) if failure.code == "config.missing" => {
            Ok(resolve(&invocation.config, "", environment(), &invocation.overrides)?.config)
        }
        resolved => resolved.map(|resolved| resolved.config),
    }
}

fn environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os().filter_map(|(name, text)| Some((name.into_string().ok()?, text.into_string().ok()?)))
}

/// Checks files alone: the environment does not count, and of the home only what modules are installed there.
pub(crate) fn check(invocation: &Invocation, mut files: Vec<PathBuf>) -> Result<Exit, Failure> {
    let is_own = files.is_empty();
    if is_own {
        files.push(invocation.config.clone());
    }
    let (mut good, mut worst) = (0, None);
    for file in &files {
        match check_one(invocation, file) {
            Ok(()) => {
                good += 1;
                invocation.output.line(format!("{}: ok", file.display()));
                report(invocation, file, &Value::Null);
                if is_own {
                    show_limits(invocation);
                }
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

/// What would hold modules' limits if the node were started from here.
fn show_limits(invocation: &Invocation) {
    // Under a name of its own: a node of this home may run, and its groups are not touched.
    let ways = Ways::find(&format!("check {}", std::process::id()));
    let way = |resource: Resource| (resource.name().to_owned(), json!(ways.of(resource).name()));
    invocation.output.line(format!("modules' limits on this machine: {ways}"));
    invocation.output.document("openred.limits/1", &Value::Object(Resource::ALL.map(way).into_iter().collect()));
}

fn check_one(invocation: &Invocation, file: &Path) -> Result<(), ConfigError> {
    let source = Source::read(file)?;
    let resolved = resolve(source.file(), source.text(), [], &[])?;
    check_modules(invocation, &source, &resolved.config)
}

/// Holds what `[module.NAME]` says against the manifests that are at hand.
fn check_modules(invocation: &Invocation, source: &Source, config: &NodeConfig) -> Result<(), ConfigError> {
    for id in config.module.keys() {
        let Some(manifest) = packages::manifest_of(invocation, id) else {
            let what = format!("{}: [module.{id}]: no such module is installed here", source.file().display());
            invocation.output.line(format!("{what}: its settings are not looked at"));
            continue;
        };
        config.settings_of(&manifest).map_err(|wrong| {
            let key = format!("module.{id}.{}", wrong.key);
            refuse_key(source, &key, &format!("`{key}`: {}", wrong.what))
        })?;
    }
    Ok(())
}

fn report(invocation: &Invocation, file: &Path, problem: &Value) {
    let body = json!({ "file": file.display().to_string(), "ok": problem.is_null(), "problem": problem });
    invocation.output.document("openred.check/1", &body);
}

/// Every setting, in the order of the documented file.
pub(crate) fn show(invocation: &Invocation, origin: bool) -> Result<Exit, Failure> {
    let resolved = resolved(invocation)?;
    let settings = resolved.settings();
    let decided = Decided::of(invocation).unwrap_or_else(|failure| {
        invocation.output.line(format!("# what commands have decided is not known: {}", failure.what));
        Decided::default()
    });
    let in_force = decided.narrow(&resolved.config.links);
    let mut body = Map::new();
    for (key, value, from) in &settings {
        let Some((_, by_command)) = in_force.iter().find(|(decided, value_then)| decided == key && value_then != value)
        else {
            body.insert((*key).to_owned(), json!({ "value": value, "origin": from }));
            invocation.output.line(match origin {
                true => format!("{:<12} {key} = {value}", from.to_string()),
                false => format!("{key} = {value}"),
            });
            continue;
        };
        let configured = json!({ "value": value, "origin": from });
        body.insert((*key).to_owned(), json!({ "value": by_command, "origin": "command", "configured": configured }));
        invocation.output.line(match origin {
            true => format!("{:<12} {key} = {by_command}  # {from}: {value}", "command"),
            false => format!("{key} = {by_command}"),
        });
    }
    invocation
        .output
        .document("openred.config/1", &json!({ "file": invocation.config.display().to_string(), "settings": body }));
    Ok(Exit::Ok)
}

/// What `openred method` has decided.
#[derive(Default)]
struct Decided {
    disabled: Vec<Method>,
    schedule: Option<Schedule>,
}

impl Decided {
    /// From the node, or where none runs from its database.
    fn of(invocation: &Invocation) -> Result<Self, Failure> {
        let asked = block_on(async {
            let mut node = node(invocation).await?;
            Ok(node.list_methods(request(ListMethodsRequest {})).await?.into_inner())
        });
        if let Ok(methods) = asked {
            let disabled = methods.methods.iter().filter(|method| method.disabled);
            let differs = methods.schedule != methods.configured_schedule;
            return Ok(Self {
                disabled: disabled.filter_map(|method| method.name.parse().ok()).collect(),
                schedule: methods.schedule.parse().ok().filter(|_| differs),
            });
        }
        let kept = store::decided_methods(&invocation.home.state().join(store::FILE));
        let kept = kept.map_err(|error| Failure::new(Exit::Failed, "store.failed", error.to_string(), ""))?;
        let disabled = Method::ALL.into_iter().filter(|method| kept.is_disabled(*method)).collect();
        Ok(Self { disabled, schedule: kept.decided_schedule() })
    }

    /// The settings that it is about, as they are in force. What would leave no method counts for nothing.
    fn narrow(&self, links: &LinkConfig) -> Vec<(&'static str, toml::Value)> {
        let left: Vec<&'static str> =
            links.methods.iter().filter(|method| !self.disabled.contains(method)).map(|method| method.name()).collect();
        let methods = (!left.is_empty()).then(|| ("links.methods", toml::Value::from(left)));
        let schedule = self.schedule.map(|schedule| ("links.schedule", toml::Value::from(schedule.name())));
        methods.into_iter().chain(schedule).collect()
    }
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
