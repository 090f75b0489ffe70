//! Every setting with the sentence that explains it, and the commented file made of them.
//!
//! `openred init` writes this file; the shipped example `openred.toml` beside this source is its output for the defaults,
//! which a test holds it to. A setting that is missing here is found by a test too.

use std::fmt::Write as _;

use toml::Value;

use super::NodeConfig;
use super::layers::{look_up, table_of};

/// A setting: dotted key, and what it does.
pub(super) struct Setting {
    pub(super) key: &'static str,
    help: &'static str,
}

const fn setting(key: &'static str, help: &'static str) -> Setting {
    Setting { key, help }
}

/// All settings in the order of the file; a section's keys stand together.
pub(super) const SETTINGS: [Setting; 43] = [
    setting("name", "Name for people, part of the card. Proves nothing."),
    setting("sector", "Group that policies and discovery may use, part of the card."),
    setting("listed", "Whether directories may list this node in discovery."),
    setting("listen", "Address of the peer-to-peer listener."),
    setting(
        "endpoints",
        "URLs \"http://ADDRESS:PORT\" under which peers reach this node. Empty: the listener's address, unless a wildcard.",
    ),
    setting("directories", "Directories to register with, each \"did:key:…@https://host[:port]\"."),
    setting(
        "uid_base",
        "As root: first of 68 consecutive uids for the node's processes and modules. One range per node.",
    ),
    setting("links.incoming", "Offers from peers not yet approved: \"ask\", \"open\", \"allow-list\" or \"sector\"."),
    setting(
        "links.direct",
        "Strangers who come without a link: \"off\", \"ask\" (compare words, then `link accept`) or \"open\" (trust on first use).",
    ),
    setting("links.allow", "With \"allow-list\": the peers whose offers are accepted."),
    setting("links.methods", "Methods that this node issues and accepts."),
    setting("links.schedule", "Which rule picks a new link's method: \"hourly\", \"daily\" or \"seeded\"."),
    setting(
        "links.life_seconds",
        "Life of a link that this node issues; 10 to 2592000. It is renewed at two thirds of it.",
    ),
    setting(
        "links.audited",
        "Signatures of both sides on each session, lasting proof of contact: \"off\", \"allow\" (peers that demand it) or \"require\".",
    ),
    setting(
        "sessions.held",
        "Sessions held with all peers; 1 to 4096. Of those that nobody uses the longest unused one goes.",
    ),
    setting("sessions.per_peer", "Of those, with one peer; 2 to 4096."),
    setting("sessions.idle_seconds", "A session that is not used for so long is dropped; 10 to 3600."),
    setting("sessions.life_seconds", "A session ends after so long; 10 to 3600. The next one is opened before."),
    setting("sessions.requests", "A session ends after so many requests of one side; 1024 to 4294967296."),
    setting("sessions.megabytes", "A session ends after so many megabytes, both ways; 16 to 65536."),
    setting("directory.ca_file", "PEM file of the authorities to trust for https. Empty: the public web's."),
    setting("directory.card_hours", "Life of the registered card; 1 to 192. It is renewed at a third of it."),
    setting(
        "directory.invites",
        "Invites that operators of directories gave you; each goes to the directory that it is for.",
    ),
    setting(
        "directory.mirrors",
        "Mirrors of these directories, each \"did:key:…@https://mirror\" with its directory's id: asked first for look-ups.",
    ),
    setting(
        "directory.look_ups",
        "How peers are looked up: \"plain\" (by id) or \"prefix\" (among up to 64, so that nobody is told whom; ten times the bytes).",
    ),
    setting(
        "keys.signatures_per_second",
        "Cards and directory requests that the key process signs in a second, ten times as many at once; 1 to 100000.",
    ),
    setting(
        "keys.patience_seconds",
        "Longest that opening a keystore may take, and longest without a byte of a backup; 1 to 86400. For slow machines.",
    ),
    setting("storage.database_megabytes", "Most megabytes of the database. 0: as the disk has."),
    setting("storage.blobs_megabytes", "Most megabytes of one module's blobs. 0: as the disk has."),
    setting(
        "modules.idle_seconds",
        "A module that is not called for so long is ended, and started by the next call; to 86400. 0: never.",
    ),
    setting("modules.memory_megabytes", "Most megabytes of memory of one module, whatever it asks for; 8 to 65536."),
    setting("modules.cpu_percent", "Most percent of one processor, likewise; 1 to 6400."),
    setting("modules.tasks", "Most threads, likewise; 1 to 4096."),
    setting("modules.descriptors", "Most open files and sockets, likewise; 16 to 65536."),
    setting(
        "modules.ceiling",
        "What may be granted to installed modules: permissions, each for any amount or with =AMOUNT.",
    ),
    setting(
        "audit.auditor",
        "The age recipient (age1…) that closed audit segments are sealed to. Empty: filed as they are.",
    ),
    setting(
        "hooks.order",
        "Order of modules' hooks (\"MODULE/HOOK\" or \"MODULE\") where they say nothing of each other.",
    ),
    setting(
        "monitor.listen",
        "Where this machine's Prometheus reads the node's figures, such as \"127.0.0.1:7692\". Empty: nowhere.",
    ),
    setting(
        "auth.listen",
        "Where the operator's API is served on this machine, such as \"127.0.0.1:7693\". Empty: nowhere.",
    ),
    setting("log.level", "\"error\", \"warn\", \"info\", \"debug\" or \"trace\" (docs/logging.md)."),
    setting("log.format", "\"human\" or \"json\"."),
    setting("log.sensitive", "Write peers' ids and addresses out; otherwise they are hidden."),
    setting("diagnostics.throughput", "Answer linked peers' requests for a stream of zero bytes (measurements)."),
];

/// The variable that overrides a setting: `links.incoming` is `OPENRED_LINKS_INCOMING`.
pub(super) fn environment_variable(key: &str) -> String {
    format!("OPENRED_{}", key.to_ascii_uppercase().replace('.', "_"))
}

/// The commented file that says exactly `config`.
#[must_use]
pub fn document(config: &NodeConfig) -> String {
    let table = table_of(config);
    let mut text =
        String::from("# Configuration of an OpenRed node. `openred check` reads it without starting anything.\n");
    let mut section = "";
    for setting in &SETTINGS {
        let Some(value) = look_up(&table, setting.key) else { continue };
        let (in_section, name) = setting.key.rsplit_once('.').unwrap_or(("", setting.key));
        if in_section != section {
            section = in_section;
            let _ = write!(text, "\n[{section}]");
        }
        let _ = write!(text, "\n# {}\n{name} = {}\n", setting.help, written(value));
    }
    text
}

/// A value as TOML; lists of more than one text get a line each.
fn written(value: &Value) -> String {
    match value {
        Value::Array(items) if items.iter().map(|item| item.to_string().len()).sum::<usize>() > 60 => {
            let lines: String = items.iter().map(|item| format!("    {item},\n")).collect();
            format!("[\n{lines}]")
        }
        value => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::path::Path;

    use openred_proto::id::NodeId;

    use super::*;
    use crate::config::{IncomingPolicy, resolve};

    const EXAMPLE: &str = include_str!("openred.toml");

    #[test]
    fn the_shipped_example_is_the_defaults() {
        assert_eq!(document(&NodeConfig::default()), EXAMPLE);
        let resolved = resolve(Path::new("openred.toml"), EXAMPLE, [], &[]).unwrap();
        assert_eq!(resolved.config, NodeConfig::default());
    }

    #[test]
    fn every_setting_is_documented() {
        fn keys(prefix: &str, table: &toml::Table, found: &mut Vec<String>) {
            for (key, value) in table {
                match value {
                    Value::Table(inner) => keys(&format!("{prefix}{key}."), inner, found),
                    _ => found.push(format!("{prefix}{key}")),
                }
            }
        }
        let mut found = Vec::new();
        keys("", &table_of(&NodeConfig::default()), &mut found);
        found.sort();
        let mut documented: Vec<_> = SETTINGS.iter().map(|setting| setting.key.to_owned()).collect();
        documented.sort();
        assert_eq!(found, documented);
    }

    #[test]
    fn a_written_file_reads_back_as_it_was() {
        let peers = [1_u8, 2, 3].map(|byte| NodeId::from_bytes([byte; 32]));
        let mut config = NodeConfig { name: "a \"quoted\" name".to_owned(), ..NodeConfig::default() };
        config.directories = vec![format!("{}@http://127.0.0.1:7700", peers[0]).parse().unwrap()];
        config.links.incoming = IncomingPolicy::AllowList;
        config.links.allow = peers.to_vec();
        let text = document(&config);
        assert_eq!(resolve(Path::new("x"), &text, [], &[]).unwrap().config, config);
    }
}
