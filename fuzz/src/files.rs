//! What lies on disk: configuration, keystore, the vault's state file.
//!
//! A keystore and a state file are sealed; where the seal stands before a reader, the target seals its bytes itself.

use std::io::Write;
use std::path::Path;
use std::sync::OnceLock;

use age::scrypt;
use age::secrecy::SecretString;
use openred_cryptod::audit::Trail;
use openred_cryptod::keyring::Keyring;
use openred_cryptod::state::State;
use openred_cryptod::unseal::Keystore;
use openred_cryptod::vault::Vault;
use openred_cryptod::vault::quota::Rates;
use openred_directory::config::Config;
use openred_proto::config::Source;
use openred_proto::id::NodeId;
use openred_proto::limits::PREKEY_ROTATE;
use openred_proto::vault::{Frame, Reply, Request, Role};
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng;

use crate::oracle::{Oracle, Slot, secrets};
use crate::records::NOW;

/// The first byte: whose configuration, and whether a part of the text comes by an override instead of the file.
pub(crate) fn config(bytes: &[u8]) {
    let Some((which, rest)) = bytes.split_first() else { return };
    let Ok(text) = std::str::from_utf8(rest) else { return };
    let (text, overridden) = text.split_once('\0').unwrap_or((text, ""));
    if which.is_multiple_of(2) {
        let source = Source::new("directory.toml", text);
        match Config::parse(&source) {
            Ok(config) => drop(source.settings(&config)),
            Err(error) => drop(error.to_string()),
        }
        return;
    }
    let flags: Vec<(String, String)> = overridden
        .lines()
        .filter_map(|line| line.split_once('='))
        .map(|(key, value)| (key.into(), value.into()))
        .collect();
    match openred_node::config::resolve(Path::new("openred.toml"), text, [], &flags) {
        Ok(resolved) => {
            // What is read can be handed on, and is the same there.
            let again = toml_of(&resolved.config);
            let reread = openred_node::config::resolve(Path::new("openred.toml"), &again, [], &[]);
            assert_eq!(reread.map(|reread| reread.config).ok(), Some(resolved.config.clone()), "{again}");
            drop(resolved.settings());
        }
        Err(error) => drop(error.to_string()),
    }
}

fn toml_of(config: &openred_node::config::NodeConfig) -> String {
    openred_node::config::document(config)
}

/// What the targets' keystores are sealed with.
const SECRET: &[u8] = b"p";

fn passphrase() -> SecretString {
    SecretString::from("p".to_owned())
}

/// An age file around `payload`, as cheap as the format allows.
fn sealed(payload: &[u8]) -> Vec<u8> {
    let mut recipient = scrypt::Recipient::new(passphrase());
    recipient.set_work_factor(LIGHT);
    let encryptor = age::Encryptor::with_recipients(std::iter::once(&recipient as &dyn age::Recipient)).unwrap();
    let mut file = Vec::new();
    let mut writer = encryptor.wrap_output(&mut file).unwrap();
    writer.write_all(payload).unwrap();
    writer.finish().unwrap();
    file
}

/// Base-2 logarithm of scrypt's cost in what the targets seal.
const LIGHT: u8 = 1;
/// A file that asks for more work than this is left alone: what it costs is bounded in the reader and tested there.
const BEARABLE: u8 = 4;

pub(crate) fn keystore(bytes: &[u8]) {
    let Some((which, rest)) = bytes.split_first() else { return };
    let opened = match which % 2 {
        0 if is_bearable(rest) => Keystore::open(rest, SECRET),
        0 => return,
        _ => Keystore::open(&sealed(rest), SECRET),
    };
    if let Ok((keystore, about, _)) = opened {
        assert_eq!(keystore.node_id(), about.node);
        let node = keystore.node_id();
        let keyring = Keyring::from_secrets(&mut keystore.into_secrets());
        let trail = Trail::fresh(keyring.identity(), NOW).unwrap();
        let mut random = ChaCha20Rng::from_seed([1; 32]);
        let vault = Vault::open(keyring, State::new(), trail, &Rates::default(), NOW, &mut random);
        assert_eq!(vault.unwrap().node_id(), node, "a keystore of another node's key was opened");
    }
}

/// Whether every scrypt stanza of the header asks for little.
fn is_bearable(file: &[u8]) -> bool {
    let text = String::from_utf8_lossy(file);
    text.lines()
        .take_while(|line| !line.starts_with("---"))
        .filter(|line| line.starts_with("-> "))
        .all(|line| line.split(' ').nth(3).is_none_or(|work| work.parse::<u8>().is_ok_and(|work| work <= BEARABLE)))
}

/// The first byte: the file as it stands from there on, or a record of it in a slot that opens.
pub(crate) fn state(bytes: &[u8]) {
    let Some((which, rest)) = bytes.split_first() else { return };
    let mut given = secrets(1);
    let (node, mut file) = new_file();
    let oracle = Oracle::new(&given, node);
    match which % 4 {
        0 => file = rest.to_vec(),
        1 => put(&mut file, Slot::Header(0), &oracle.seal(Slot::Header(0), rest)),
        2 => put(&mut file, Slot::Record(0, 1), &oracle.seal(Slot::Record(0, 1), rest)),
        _ => patch(&mut file, rest),
    }
    let keyring = Keyring::from_secrets(&mut given);
    let Ok(state) = State::load(&oracle.state_key(), &mut |offset, buffer| {
        let have = usize::try_from(offset).ok().and_then(|offset| file.get(offset..)).unwrap_or(&[]);
        let length = have.len().min(buffer.len());
        buffer.fill(0);
        buffer[..length].copy_from_slice(&have[..length]);
        Ok(())
    }) else {
        return;
    };
    // What opens can be worked with: it answers, and writes itself back.
    let mut random = ChaCha20Rng::from_seed([2; 32]);
    let trail = Trail::fresh(keyring.identity(), NOW).unwrap();
    let Ok(mut vault) = Vault::open(keyring, state, trail, &Rates::default(), NOW, &mut random) else { return };
    let outcome = vault.handle(NOW, &mut random, Role::Node, Frame { id: 1, body: Request::Describe });
    assert!(matches!(outcome.reply.body, Reply::Described { .. } | Reply::Refused(_)));
    let _ = vault.commit(&mut random);
}

fn put(file: &mut Vec<u8>, slot: Slot, bytes: &[u8]) {
    let place = slot.place();
    file.resize(file.len().max(place.end), 0);
    file[place].copy_from_slice(bytes);
}

/// Three bytes each: where, and what is flipped there.
fn patch(file: &mut [u8], changes: &[u8]) {
    for change in changes.as_chunks::<3>().0 {
        let at = usize::from(u16::from_be_bytes([change[0], change[1]])) % file.len().max(1);
        file[at] ^= change[2];
    }
}

/// The state file of a node that has just begun, with two commits in it.
fn new_file() -> (NodeId, Vec<u8>) {
    static FILE: OnceLock<(NodeId, Vec<u8>)> = OnceLock::new();
    FILE.get_or_init(|| {
        let keyring = Keyring::from_secrets(&mut secrets(1));
        let mut random = ChaCha20Rng::from_seed([3; 32]);
        let trail = Trail::fresh(keyring.identity(), NOW).unwrap();
        let mut vault = Vault::open(keyring, State::new(), trail, &Rates::default(), NOW, &mut random).unwrap();
        let mut file = Vec::new();
        for now in [NOW, NOW.plus(PREKEY_ROTATE)] {
            vault.handle_timeout(now, &mut random).unwrap();
            for write in vault.commit(&mut random).unwrap().state {
                let start = usize::try_from(write.offset).unwrap();
                file.resize(file.len().max(start + write.bytes.len()), 0);
                file[start..start + write.bytes.len()].copy_from_slice(&write.bytes);
            }
        }
        (vault.node_id(), file)
    })
    .clone()
}

/// Real files, and what is sealed inside them.
pub(crate) mod corpus {
    use openred_node::config::{NodeConfig, document};
    use openred_proto::fields::Writer;

    use super::*;
    use crate::corpus::numbered;

    pub(crate) fn config() -> Vec<(String, Vec<u8>)> {
        let example = include_str!("../../directory/directory.example.toml");
        let bare: String = example
            .lines()
            .filter(|line| !line.starts_with('#') && !line.is_empty())
            .map(|line| format!("{line}\n"))
            .collect();
        let node = document(&NodeConfig { name: "alice".into(), ..NodeConfig::default() });
        let short: String = node
            .lines()
            .filter(|line| !line.starts_with('#') && !line.is_empty())
            .map(|line| format!("{line}\n"))
            .collect();
        numbered(
            [
                format!("\0{bare}"),
                "\0listen = \"127.0.0.1:7440\"\norigin = \"https://d.example\"\nbehind_proxy = true\n".to_owned(),
                "\0[limits]\nconections = 5\n".to_owned(),
                format!("\u{1}{short}"),
                format!("\u{1}{short}\0log.level=debug\nlinks.methods=alpha,beta\n"),
                "\u{1}name = \"x\"\n\0storage.database_megabytes=1e9\nlisten=7\n".to_owned(),
            ]
            .map(String::into_bytes),
        )
    }

    pub(crate) fn keystore() -> Vec<(String, Vec<u8>)> {
        let secrets = secrets(1);
        let (node, _) = new_file();
        let payload = |version| {
            Writer::new()
                .number(1, version)
                .bytes(2, node.as_bytes())
                .bytes(3, &secrets[..32])
                .bytes(4, &secrets[32..])
                .finish()
        };
        let file = sealed(&payload(1));
        let foreign = Writer::new().number(1, 1).bytes(2, &[9; 32]).bytes(3, &[1; 32]).bytes(4, &[2; 32]).finish();
        let after = |which: u8, bytes: &[u8]| [&[which], bytes].concat();
        let half = &file[..file.len() / 2];
        numbered([after(0, &file), after(0, half), after(1, &payload(1)), after(1, &payload(2)), after(1, &foreign)])
    }

    pub(crate) fn state() -> Vec<(String, Vec<u8>)> {
        let (node, file) = new_file();
        let oracle = Oracle::new(&secrets(1), node);
        let after = |which: u8, bytes: &[u8]| [&[which], bytes].concat();
        let headers = [0, 1].map(|slot| oracle.open(Slot::Header(slot), &file).unwrap());
        let trimmed = |plain: &[u8]| plain[..plain.iter().rposition(|byte| *byte != 0).unwrap_or(0) + 1].to_vec();
        // As `state/codec` writes a peer with one link: version, commit, peer, window, end, and the link.
        let link =
            [&[1][..], &[5; 16], &[1], &[0; 8], &NOW.0.to_be_bytes(), &[0xff; 8], &[0; 8], &[2], &[0; 64]].concat();
        let of_commit = |commit: u64| [&[1][..], &commit.to_be_bytes(), &[8; 32], &[0; 24], &link, &[0]].concat();
        numbered([
            after(0, &file[..4096]),
            after(0, &[0; 64]),
            after(1, &trimmed(&headers[0])),
            after(1, &trimmed(&headers[1])),
            after(2, &of_commit(1)),
            after(3, &[0, 5, 1]),
            after(3, &[0x10, 5, 1, 0, 40, 0x80]),
            // After which no commit could come.
            after(2, &of_commit(u64::MAX)),
        ])
    }
}
