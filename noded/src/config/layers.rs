//! Precedence: defaults, then the file, then the environment, then flags; and where each value came from in the end.
//!
//! A value from the environment or a flag is written as a one-line TOML text and parsed like the file, so that a mistake
//! in it is reported in the same form. Nothing here reads the environment itself: the caller hands it in.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::path::Path;

use openred_proto::config::{ConfigError, Source};
use serde::Serialize;
use toml::{Table, Value};

use super::document::{SETTINGS, environment_variable};
use super::{BadValue, NodeConfig};

/// Where a value came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// Built in.
    Default,
    /// `openred.toml`.
    File,
    /// A variable `OPENRED_…`.
    Environment,
    /// The command line.
    Flag,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Default => "default",
            Self::File => "file",
            Self::Environment => "environment",
            Self::Flag => "flag",
        })
    }
}

/// A configuration with the origin of each of its values.
#[derive(Clone, Debug, PartialEq)]
pub struct Resolved {
    /// The values.
    pub config: NodeConfig,
    /// Origin by dotted key; every known key is in it.
    pub origins: BTreeMap<&'static str, Origin>,
}

impl Resolved {
    /// Each setting in the order of the documented file: key, value as TOML writes it, origin.
    #[must_use]
    pub fn settings(&self) -> Vec<(&'static str, Value, Origin)> {
        let table = table_of(&self.config);
        let origin = |key| self.origins.get(key).copied().unwrap_or(Origin::Default);
        SETTINGS
            .iter()
            .filter_map(|setting| Some((setting.key, look_up(&table, setting.key)?.clone(), origin(setting.key))))
            .collect()
    }
}

/// Resolves a configuration. `environment` may be the whole environment: only the variables of known settings are taken.
/// `flags` are dotted keys with their text.
///
/// # Errors
/// The first mistake, with file (or variable, or flag), line, column and the nearest known key.
pub fn resolve(
    file: &Path,
    text: &str,
    environment: impl IntoIterator<Item = (String, String)>,
    flags: &[(String, String)],
) -> Result<Resolved, ConfigError> {
    let source = Source::new(file, text);
    let mut table = table_of(&source.parse::<NodeConfig>()?);
    let written: Table = toml::from_str(text).unwrap_or_default();
    let mut origins: BTreeMap<&'static str, Origin> = SETTINGS
        .iter()
        .map(|setting| {
            let in_file = look_up(&written, setting.key).is_some();
            (setting.key, if in_file { Origin::File } else { Origin::Default })
        })
        .collect();
    let mut overlays = BTreeMap::new();
    for (origin, name, key, text) in overrides(environment, flags) {
        let overlay = overlay(&name, &key, &text)?;
        let Some(setting) = SETTINGS.iter().find(|setting| setting.key == key) else { continue };
        let parsed = table_of(&overlay.parse::<NodeConfig>()?);
        if let Some(value) = look_up(&parsed, &key) {
            put(&mut table, &key, value.clone());
        }
        origins.insert(setting.key, origin);
        overlays.insert(setting.key, overlay);
    }
    let config: NodeConfig = toml::from_str(&toml::to_string(&table).unwrap_or_default())
        .map_err(|error| source.refuse(0..0, error.message().to_owned()))?;
    match config.check() {
        Ok(()) => Ok(Resolved { config, origins }),
        Err(bad) => Err(refuse(&bad, overlays.get(bad.key).unwrap_or(&source))),
    }
}

/// The overrides in rising precedence: origin, name for people, dotted key, text.
fn overrides(
    environment: impl IntoIterator<Item = (String, String)>,
    flags: &[(String, String)],
) -> Vec<(Origin, String, String, String)> {
    let variables: BTreeMap<String, &str> =
        SETTINGS.iter().map(|setting| (environment_variable(setting.key), setting.key)).collect();
    let mut overrides: Vec<_> = environment
        .into_iter()
        .filter_map(|(name, text)| {
            let key = (*variables.get(&name)?).to_owned();
            Some((Origin::Environment, name, key, text))
        })
        .collect();
    overrides.extend(flags.iter().map(|(key, text)| (Origin::Flag, format!("--set {key}"), key.clone(), text.clone())));
    overrides
}

/// One override as a TOML text of one line. Text settings are quoted, lists split at commas, the rest taken as it is.
fn overlay(name: &str, key: &str, text: &str) -> Result<Source, ConfigError> {
    let defaults = table_of(&NodeConfig::default());
    let value = match look_up(&defaults, key) {
        Some(Value::String(_)) => Value::from(text).to_string(),
        Some(Value::Array(_)) => {
            let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
            Value::Array(items.map(Value::from).collect()).to_string()
        }
        Some(_) => text.lines().next().unwrap_or_default().to_owned(),
        None => String::from("\"\""),
    };
    let source = Source::new(name, format!("{key} = {value}\n"));
    // An unknown dotted key must be refused here: merging would lose it silently.
    source.parse::<NodeConfig>().map(|_| source)
}

/// Reports a value that breaks a rule at its place in the text that set it.
fn refuse(bad: &BadValue, source: &Source) -> ConfigError {
    source.refuse(span_of(source.text(), bad.key).unwrap_or(0..0), bad.to_string())
}

/// Refuses the value of a dotted key, at its place or at that of the section where it should stand.
pub(crate) fn refuse_key(source: &Source, key: &str, message: &str) -> ConfigError {
    let section = key.rsplit_once('.').map_or(key, |(section, _)| section);
    let span = span_of(source.text(), key).or_else(|| span_of(source.text(), section));
    source.refuse(span.unwrap_or(0..0), message)
}

fn span_of(text: &str, key: &str) -> Option<Range<usize>> {
    let table = toml::de::DeTable::parse(text).ok()?;
    let mut table = table.get_ref();
    let mut parts = key.split('.').peekable();
    while let Some(part) = parts.next() {
        let value = table.get(part)?;
        if parts.peek().is_none() {
            return Some(value.span());
        }
        table = value.get_ref().as_table()?;
    }
    None
}

pub(super) fn table_of(config: &NodeConfig) -> Table {
    Table::try_from(config).expect("every setting has a TOML form")
}

pub(super) fn look_up<'a>(table: &'a Table, key: &str) -> Option<&'a Value> {
    match key.split_once('.') {
        None => table.get(key),
        Some((section, rest)) => look_up(table.get(section)?.as_table()?, rest),
    }
}

fn put(table: &mut Table, key: &str, value: Value) {
    match key.split_once('.') {
        None => {
            table.insert(key.to_owned(), value);
        }
        Some((section, rest)) => {
            let inner = table.entry(section).or_insert_with(|| Value::Table(Table::new()));
            if let Value::Table(inner) = inner {
                put(inner, rest, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::config::IncomingPolicy;

    fn with(text: &str, environment: &[(&str, &str)], flags: &[(&str, &str)]) -> Result<Resolved, String> {
        let owned = |pairs: &[(&str, &str)]| -> Vec<(String, String)> {
            pairs.iter().map(|(key, text)| ((*key).to_owned(), (*text).to_owned())).collect()
        };
        resolve(Path::new("openred.toml"), text, owned(environment), &owned(flags)).map_err(|error| error.to_string())
    }

    #[test]
    fn later_layers_win_and_origins_say_so() {
        let text = "name = \"file\"\nsector = \"blue\"\n[links]\nincoming = \"open\"\n";
        let environment = [("OPENRED_NAME", "variable"), ("OPENRED_LINKS_LIFE_SECONDS", "48"), ("OPENRED_HOME", "/x")];
        let resolved = with(text, &environment, &[("name", "flag")]).unwrap();
        assert_eq!(resolved.config.name, "flag");
        assert_eq!(resolved.config.sector, "blue");
        assert_eq!(resolved.config.links.incoming, IncomingPolicy::Open);
        assert_eq!(resolved.config.links.life_seconds, 48);
        let origins =
            ["name", "sector", "links.life_seconds", "links.incoming", "listen"].map(|key| resolved.origins[key]);
        assert_eq!(origins, [Origin::Flag, Origin::File, Origin::Environment, Origin::File, Origin::Default],);
        assert_eq!(resolved.settings().len(), SETTINGS.len());
    }

    #[test]
    fn lists_from_the_environment_are_split_at_commas() {
        let resolved = with("", &[("OPENRED_LINKS_METHODS", "alpha, gamma")], &[]).unwrap();
        assert_eq!(
            toml::Value::try_from(&resolved.config.links.methods).unwrap().to_string(),
            "[\"alpha\", \"gamma\"]"
        );
    }

    #[test]
    fn mistakes_name_their_place() {
        let starts = |result: Result<Resolved, String>, expected: &str| {
            let error = result.unwrap_err();
            assert!(error.starts_with(expected), "{error}");
        };
        starts(
            with("[links]\nincomming = \"ask\"\n", &[], &[]),
            "openred.toml:2:1: unknown key `incomming`; did you mean `incoming`?",
        );
        starts(
            with("\n[links]\nlife_seconds = 0\n", &[], &[]),
            "openred.toml:3:16: `links.life_seconds`: not between 10 and 2592000",
        );
        starts(with("", &[("OPENRED_LISTEN", "nowhere")], &[]), "OPENRED_LISTEN:1:10: ");
        starts(
            with("", &[("OPENRED_LINKS_LIFE_SECONDS", "9999999")], &[]),
            "OPENRED_LINKS_LIFE_SECONDS:1:22: `links.life_seconds`",
        );
        starts(
            with("", &[], &[("links.incoming", "opne")]),
            "--set links.incoming:1:18: unknown value `opne`; did you mean `open`?",
        );
        starts(with("", &[], &[("lisen", "x")]), "--set lisen:1:1: unknown key `lisen`; did you mean `listen`?");
        starts(with("", &[], &[("links.sector", "x")]), "--set links.sector:1:");
        starts(with("directories = [\"https://x\"]\n", &[], &[]), "openred.toml:1:15: expected did:key:");
    }
}
