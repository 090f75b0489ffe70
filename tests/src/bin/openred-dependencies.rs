//! Holds the dependency tree against `deny.toml`: licences, sources, banned crates. For machines without cargo-deny.
//!
//! `cargo metadata --locked --format-version 1 | openred-dependencies deny.toml`. Prints each offence; exits 1 if there is one. It
//! reads the same keys as cargo-deny and does less: no advisories, no licence texts.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a tool")]

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::process::ExitCode;

use anyhow::{Context, Result};
use serde::Deserialize;

/// Longest metadata that is read: ours is 3 MiB.
const METADATA_LIMIT: u64 = 64 << 20;

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    resolve: Resolve,
}

/// Who really depends on whom: what a package declares holds its own tests' and what nobody asked for besides.
#[derive(Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Deserialize)]
struct Node {
    id: String,
    dependencies: Vec<String>,
}

#[derive(Deserialize)]
struct Package {
    id: String,
    name: String,
    version: String,
    license: Option<String>,
    source: Option<String>,
}

#[derive(Deserialize)]
struct Rules {
    licenses: Licences,
    bans: Bans,
    sources: Sources,
}

#[derive(Deserialize)]
struct Licences {
    allow: BTreeSet<String>,
}

#[derive(Deserialize)]
struct Bans {
    deny: Vec<Ban>,
}

#[derive(Deserialize)]
struct Ban {
    #[serde(rename = "crate")]
    name: String,
    reason: String,
    /// Who may depend on it all the same.
    #[serde(default)]
    wrappers: BTreeSet<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Sources {
    allow_registry: BTreeSet<String>,
}

fn main() -> ExitCode {
    match offences() {
        Ok(offences) if offences.is_empty() => ExitCode::SUCCESS,
        Ok(offences) => {
            offences.iter().for_each(|offence| println!("{offence}"));
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("openred-dependencies: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn offences() -> Result<Vec<String>> {
    let rules = std::env::args().nth(1).context("usage: openred-dependencies deny.toml < metadata")?;
    let rules: Rules = toml::from_str(&std::fs::read_to_string(&rules).with_context(|| rules.clone())?)?;
    let mut text = String::new();
    std::io::stdin().take(METADATA_LIMIT).read_to_string(&mut text)?;
    let metadata: Metadata = serde_json::from_str(&text).context("metadata")?;
    let names: BTreeMap<&str, &str> = metadata.packages.iter().map(|package| (&*package.id, &*package.name)).collect();
    let nodes: BTreeMap<&str, &Node> = metadata.resolve.nodes.iter().map(|node| (&*node.id, node)).collect();
    let depends_on = |package: &Package| -> Vec<&str> {
        let ids = nodes.get(&*package.id).map(|node| &node.dependencies).into_iter().flatten();
        ids.filter_map(|id| names.get(&**id).copied()).collect()
    };
    Ok(metadata.packages.iter().flat_map(|package| judge(package, &depends_on(package), &rules)).collect())
}

fn judge(package: &Package, depends_on: &[&str], rules: &Rules) -> Vec<String> {
    let mut offences = Vec::new();
    let mut note = |what: String| offences.push(format!("{} {}: {what}", package.name, package.version));
    match &package.license {
        None => note("says no licence".to_owned()),
        Some(licence) if !allowed(licence, &rules.licenses.allow) => note(format!("licence {licence} is not allowed")),
        Some(_) => {}
    }
    if let Some(source) = &package.source {
        let registry = source.strip_prefix("registry+");
        if !registry.is_some_and(|registry| rules.sources.allow_registry.contains(registry)) {
            note(format!("source {source} is not allowed"));
        }
    }
    for ban in &rules.bans.deny {
        if ban.wrappers.is_empty() && ban.name == package.name {
            note(format!("is banned: {}", ban.reason));
        }
        let depends = depends_on.contains(&&*ban.name);
        if !ban.wrappers.is_empty() && depends && !ban.wrappers.contains(&package.name) {
            note(format!("depends on {}, which is banned: {}", ban.name, ban.reason));
        }
    }
    offences
}

/// Whether an SPDX expression can be met with allowed licences alone. The old form `A/B` is read as `A OR B`.
fn allowed(expression: &str, allow: &BTreeSet<String>) -> bool {
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let mut tokens = spaced.split_whitespace().peekable();
    let met = either(&mut tokens, allow);
    met && tokens.next().is_none()
}

type Tokens<'a> = std::iter::Peekable<std::str::SplitWhitespace<'a>>;

fn either(tokens: &mut Tokens<'_>, allow: &BTreeSet<String>) -> bool {
    let mut met = both(tokens, allow);
    while tokens.next_if_eq(&"OR").is_some() {
        met |= both(tokens, allow);
    }
    met
}

fn both(tokens: &mut Tokens<'_>, allow: &BTreeSet<String>) -> bool {
    let mut met = single(tokens, allow);
    while tokens.next_if_eq(&"AND").is_some() {
        met &= single(tokens, allow);
    }
    met
}

fn single(tokens: &mut Tokens<'_>, allow: &BTreeSet<String>) -> bool {
    if tokens.next_if_eq(&"(").is_some() {
        let met = either(tokens, allow);
        return tokens.next() == Some(")") && met;
    }
    let Some(mut licence) = tokens.next().map(str::to_owned) else { return false };
    if tokens.next_if_eq(&"WITH").is_some() {
        licence = format!("{licence} WITH {}", tokens.next().unwrap_or_default());
    }
    allow.contains(&licence)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn met(expression: &str) -> bool {
        let allow = ["MIT", "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "ISC"].map(str::to_owned);
        allowed(expression, &BTreeSet::from(allow))
    }

    #[test]
    fn expressions_are_read_as_spdx_says() {
        for good in [
            "MIT",
            "GPL-2.0-only OR MIT",
            "MIT/GPL-3.0",
            "MIT AND ISC",
            "(MIT OR GPL-2.0-only) AND ISC",
            "Apache-2.0 WITH LLVM-exception OR GPL-2.0-only",
        ] {
            assert!(met(good), "{good}");
        }
        for bad in [
            "",
            "GPL-3.0-only",
            "MIT AND GPL-3.0-only",
            "(GPL-2.0-only OR MIT) AND GPL-3.0-only",
            "MIT WITH Classpath-exception-2.0",
            "MIT ISC",
            "(MIT",
            "GPL-2.0-only AND MIT OR GPL-3.0-only",
        ] {
            assert!(!met(bad), "{bad}");
        }
    }

    #[test]
    fn each_rule_names_its_offender() {
        let rules: Rules = toml::from_str(
            r#"
            licenses.allow = ["MIT"]
            bans.deny = [{ crate = "old", reason = "broken" }, { crate = "rusty", wrappers = ["one"], reason = "slow" }]
            sources.allow-registry = ["https://registry.example"]
            "#,
        )
        .expect("rules");
        let package = |name: &str, license: Option<&str>, source: Option<&str>| Package {
            name: name.to_owned(),
            version: "1.0.0".to_owned(),
            license: license.map(str::to_owned),
            source: source.map(str::to_owned),
            id: name.to_owned(),
        };
        let good = package("good", Some("MIT"), Some("registry+https://registry.example"));
        assert!(judge(&good, &["ours"], &rules).is_empty());
        let ours = package("ours", Some("MIT"), None);
        assert!(judge(&ours, &["good", "one"], &rules).is_empty());
        assert_eq!(judge(&ours, &["rusty"], &rules), ["ours 1.0.0: depends on rusty, which is banned: slow"]);
        assert!(judge(&package("rusty", Some("MIT"), None), &[], &rules).is_empty());
        assert!(judge(&package("one", Some("MIT"), None), &["rusty"], &rules).is_empty());
        assert_eq!(judge(&package("old", None, Some("git+https://elsewhere.example")), &[], &rules).len(), 3);
    }
}
