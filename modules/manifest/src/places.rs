//! Where a key of a manifest stands in its text: so a complaint names the key as well as the line.

use std::ops::Range;

use openred_proto::config::{ConfigError, Source};
use toml::de::{DeTable, DeValue};

/// A complaint about the value of `key` (`route[1].path`), at its place.
pub(super) fn refuse(source: &Source, key: &str, what: &str) -> ConfigError {
    let span = all(source.text()).into_iter().find(|(name, _)| name == key).map_or(0..0, |(_, span)| span);
    source.refuse(span, format!("{key}: {what}"))
}

/// The same complaint with the name of the key at its place, where it does not name it itself.
pub(super) fn name_the_key(error: ConfigError, text: &str) -> ConfigError {
    let ConfigError::Refused(mut problem) = error else { return error };
    if problem.message.starts_with("unknown key") || problem.message.starts_with("missing key") {
        return ConfigError::Refused(problem);
    }
    let offset = offset_of(text, problem.line, problem.column);
    let around = all(text).into_iter().filter(|(_, span)| span.contains(&offset));
    if let Some((key, _)) = around.min_by_key(|(key, span)| (span.len(), usize::MAX - key.len())) {
        problem.message = format!("{key}: {}", problem.message);
    }
    ConfigError::Refused(problem)
}

fn offset_of(text: &str, line: usize, column: usize) -> usize {
    let start: usize = text.split_inclusive('\n').take(line - 1).map(str::len).sum();
    let rest = &text[start.min(text.len())..];
    start + rest.chars().take(column - 1).map(char::len_utf8).sum::<usize>()
}

/// Every key with the place of its value.
fn all(text: &str) -> Vec<(String, Range<usize>)> {
    let mut found = Vec::new();
    if let Ok(table) = DeTable::parse(text) {
        walk_table("", table.get_ref(), &mut found);
    }
    found
}

fn walk_table(prefix: &str, table: &DeTable<'_>, found: &mut Vec<(String, Range<usize>)>) {
    for (key, value) in table {
        let name = match prefix {
            "" => key.get_ref().to_string(),
            prefix => format!("{prefix}.{}", key.get_ref()),
        };
        // A table written by dotted keys has no place of its own: its first key's is near.
        let span = if value.span().is_empty() { key.span() } else { value.span() };
        found.push((name.clone(), span));
        walk(&name, value.get_ref(), found);
    }
}

fn walk(name: &str, value: &DeValue<'_>, found: &mut Vec<(String, Range<usize>)>) {
    match value {
        DeValue::Table(table) => walk_table(name, table, found),
        DeValue::Array(items) => {
            for (number, item) in items.iter().enumerate() {
                let name = format!("{name}[{number}]");
                found.push((name.clone(), item.span()));
                walk(&name, item.get_ref(), found);
            }
        }
        _ => {}
    }
}
