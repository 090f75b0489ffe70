//! `openred module new` and `dev`: what an author of modules works with.
//!
//! `new` writes a project out of the template beside this file; `dev` builds a project and runs it on a throw-away node, again whenever one
//! of its files is saved.

mod dev;
mod folder;
mod node;
mod project;
mod session;

use std::fs;
use std::path::{Path, PathBuf};

use openred_module::manifest::ModuleId;
use serde_json::json;

use super::output::Output;
use super::{Exit, Failure, Invocation, one_line};
use crate::home::Home;
pub(crate) use dev::dev;
use project::{NODE, Project};

/// The template: where each file goes, and its text.
const TEMPLATE: [(&str, &str); 7] = [
    ("Cargo.toml", include_str!("author/template/Cargo.toml.in")),
    ("openred.toml", include_str!("author/template/openred.toml.in")),
    ("src/lib.rs", include_str!("author/template/lib.rs.in")),
    ("src/main.rs", include_str!("author/template/main.rs.in")),
    ("tests/module.rs", include_str!("author/template/test.rs.in")),
    ("README.md", include_str!("author/template/README.md.in")),
    (".gitignore", include_str!("author/template/gitignore.in")),
];

/// Names that a crate cannot have: Rust's own words and those that it keeps for later, what the template depends on, and folders of cargo's own, which
/// it calls no program by.
const TAKEN: [&str; 62] = [
    "as",
    "async",
    "await",
    "break",
    "const",
    "continue",
    "crate",
    "dyn",
    "else",
    "enum",
    "extern",
    "false",
    "fn",
    "for",
    "if",
    "impl",
    "in",
    "let",
    "loop",
    "match",
    "mod",
    "move",
    "mut",
    "pub",
    "ref",
    "return",
    "self",
    "static",
    "struct",
    "super",
    "trait",
    "true",
    "type",
    "unsafe",
    "use",
    "where",
    "while",
    "abstract",
    "become",
    "box",
    "do",
    "final",
    "gen",
    "macro",
    "override",
    "priv",
    "try",
    "typeof",
    "unsized",
    "virtual",
    "yield",
    "build",
    "deps",
    "examples",
    "incremental",
    "core",
    "std",
    "alloc",
    "test",
    "serde",
    "tokio",
    "openred-module",
];

/// Writes a new module's project into a folder of its name.
pub(crate) fn new(output: &Output, module: &ModuleId, named: Option<&Path>) -> Result<Exit, Failure> {
    let id = module.as_str();
    if TAKEN.contains(&id) {
        return Err(Failure::usage(format!("{id}: Rust, cargo or the template needs this name"), "choose another one"));
    }
    let folder = PathBuf::from(id);
    let local = |path: &Path| {
        let path = path.display().to_string();
        move |error: std::io::Error| Failure::local(path, &error)
    };
    let sdk = sdk(named)?;
    fs::create_dir(&folder).map_err(local(&folder))?;
    for (place, text) in TEMPLATE {
        let place = folder.join(place);
        let above = place.parent().unwrap_or(&folder);
        fs::create_dir_all(above).map_err(local(above))?;
        fs::write(&place, filled(text, module, &sdk)).map_err(local(&place))?;
    }
    // The versions with which the SDK was tested; cargo drops those that the project does not use.
    let lock = sdk.join("../../Cargo.lock");
    if lock.is_file() {
        fs::copy(&lock, folder.join("Cargo.lock")).map_err(local(&lock))?;
    }
    output.line(format!("{id}: a module's project; what next:"));
    for line in [format!("cd {id}"), "cargo test".to_owned(), "openred module dev".to_owned()] {
        output.line(format!("    {line}"));
    }
    output.document("openred.module-project/1", &json!({ "id": id, "folder": folder.display().to_string() }));
    Ok(Exit::Ok)
}

/// Where a project finds `openred-module`: the sources that were named, or those that this program was built from, while they are there. No registry has
/// it, and whoever took its name there must not be asked.
fn sdk(named: Option<&Path>) -> Result<PathBuf, Failure> {
    let built_from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../modules/sdk");
    let place = named.unwrap_or(&built_from);
    let manifest = fs::read_to_string(place.join("Cargo.toml")).unwrap_or_default();
    if manifest.contains("name = \"openred-module\"\n") {
        return place.canonicalize().map_err(|error| Failure::local(place.display(), &error));
    }
    let what = match named {
        Some(named) => format!("{}: not the sources of openred-module", named.display()),
        None => String::from("the sources that this program was built from are not here"),
    };
    Err(Failure::usage(what, "name the folder modules/sdk of a source tree of OpenRed with --sdk"))
}

/// A file of the template for this module.
fn filled(text: &str, id: &ModuleId, sdk: &Path) -> String {
    let sdk = format!("path = {}", toml::Value::from(sdk.display().to_string()));
    let capitalised = |part: &str| part[..1].to_uppercase() + &part[1..];
    let parts = id.as_str().split('-').filter(|part| !part.is_empty());
    let kind: String = parts.map(capitalised).chain([String::from("Module")]).collect();
    text.replace("{{sdk}}", &sdk)
        .replace("{{crate}}", &id.as_str().replace('-', "_"))
        .replace("{{Type}}", &kind)
        .replace("{{id}}", id.as_str())
}

/// For a call on the node on which `openred module dev` runs the project of this folder.
pub(crate) fn on_dev_node(invocation: &Invocation) -> Result<Invocation, Failure> {
    let place = Project::here()?.folder.join(NODE);
    match fs::read_to_string(&place) {
        Ok(home) => Ok(Invocation { home: Home::new(PathBuf::from(home.trim())), ..invocation.clone() }),
        Err(_) => {
            let what = format!("{}: `openred module dev` does not run here", one_line(&place.display().to_string()));
            Err(Failure::new(Exit::NotFound, "node.down", what, "start it in another terminal, in the same folder"))
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn names_of_which_nothing_could_be_built_are_refused() {
        let sdk = Path::new("no sources");
        for name in ["fn", "gen", "try", "macro", "build", "deps", "tokio"] {
            let refused = new(&Output::new(false), &name.parse().unwrap(), Some(sdk)).unwrap_err();
            assert!(refused.what.starts_with(&format!("{name}: Rust")), "{refused}");
        }
        let other = new(&Output::new(false), &"greet".parse().unwrap(), Some(sdk)).unwrap_err();
        assert!(other.what.contains("no sources"), "{other}");
    }

    #[test]
    fn the_template_is_filled_and_its_manifest_is_one() {
        let id: ModuleId = "two-words".parse().unwrap();
        for (place, text) in TEMPLATE {
            let text = filled(text, &id, Path::new("/with \"quotes\"/sdk"));
            // Two braces stand in Rust's own format strings as well.
            let open = |(at, _)| text[at + 2..].starts_with(char::is_alphabetic);
            assert!(!text.match_indices("{{").any(open), "{place}: {text}");
            match place {
                "openred.toml" => {
                    let manifest = openred_module::manifest::Manifest::parse(place, &text).unwrap();
                    assert_eq!((manifest.id.as_str(), manifest.program.as_str()), ("two-words", "two-words"));
                }
                "Cargo.toml" => {
                    let table: toml::Table = text.parse().unwrap();
                    let path = table["dependencies"]["openred-module"]["path"].as_str().unwrap();
                    assert_eq!(path, "/with \"quotes\"/sdk");
                }
                "src/lib.rs" => assert!(text.contains("pub struct TwoWordsModule;"), "{text}"),
                "tests/module.rs" => assert!(text.contains("use two_words::{Greeting, TwoWordsModule};"), "{text}"),
                _ => {}
            }
        }
    }
}
