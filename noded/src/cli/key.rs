//! `openred key …`: what the keystore says of itself, and the operator's hold on the keys, through the supervisor.
//!
//! The passphrase of an unlock goes over the supervisor's socket, which only the operator reaches, and from there into the
//! unsealer's pipe, as at a start.

use std::fs::File;
use std::io::Read;

use bytes::Bytes;
use openred_proto::admin::{KeyStatus, LockKeysRequest, RotateKeyRequest, ShowKeyRequest, UnlockKeysRequest};
use serde_json::json;

use super::arguments::{Key, Rotated, SecretSource};
use super::client::{block_on, request, supervisor};
use super::output::{moment, now};
use super::{Exit, Failure, Invocation, Passphrase, backup, one_line, succession};

/// The head of an age file is looked at this far: eight stanzas of recipients and more.
const HEAD_BYTES: u64 = 4096;

pub(crate) fn key(invocation: &Invocation, command: Key) -> Result<Exit, Failure> {
    match command {
        Key::Show => block_on(show(invocation)),
        Key::Lock => block_on(async {
            let status = supervisor(invocation).await?.lock_keys(request(LockKeysRequest {})).await?.into_inner();
            print(invocation, &status)
        }),
        Key::Unlock(source) => unlock(invocation, &source),
        Key::Backup { file, to, secret } => backup::key(invocation, &file, &to, &secret),
        Key::Restore { file, force, to, secret } => backup::restore_key(invocation, &file, force, &to, &secret),
        Key::TakeBack { older: Some(older), secret, older_secret, .. } => {
            succession::take_back(invocation, &older, &secret, &older_secret.into())
        }
        Key::TakeBack { of: Some(of), secret, .. } => succession::take_back_of(invocation, of, &secret),
        Key::TakeBack { .. } => {
            Err(Failure::usage("nothing is named", "name the older keystore, or the successor with --of"))
        }
        Key::Rotate { what: Rotated::Identity, secret } => succession::rotate(invocation, &secret),
        Key::Rotate { what, .. } => block_on(async {
            let what = if matches!(what, Rotated::Prekey) { "prekey" } else { "statics" };
            let asked = request(RotateKeyRequest { what: what.to_owned() });
            let status = supervisor(invocation).await?.rotate_key(asked).await?.into_inner();
            invocation.output.line(format!("{what}: drawn anew"));
            print(invocation, &status)
        }),
    }
}

fn unlock(invocation: &Invocation, source: &SecretSource) -> Result<Exit, Failure> {
    // Nothing is asked of a person before it is known that somebody waits for it.
    block_on(async { supervisor(invocation).await.map(|_| Exit::Ok) })?;
    let secret = Passphrase::by_hand(source)?.bytes()?;
    block_on(async {
        let asked = request(UnlockKeysRequest { secret: Bytes::from_owner(secret) });
        let status = supervisor(invocation).await?.unlock_keys(asked).await?.into_inner();
        print(invocation, &status)
    })
}

/// From the supervisor; of a node that does not run, what the file's head says without being opened.
async fn show(invocation: &Invocation) -> Result<Exit, Failure> {
    match supervisor(invocation).await {
        Ok(mut running) => print(invocation, &running.show_key(request(ShowKeyRequest {})).await?.into_inner()),
        Err(failure) if failure.code == "node.down" => print(invocation, &at_rest(invocation)?),
        Err(failure) => Err(failure),
    }
}

fn at_rest(invocation: &Invocation) -> Result<KeyStatus, Failure> {
    let place = invocation.home.keystore();
    let failed = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::NotFound => {
            let what = format!("{}: no keystore", invocation.home.path().display());
            Failure::new(Exit::NotFound, "keystore.missing", what, "make a node with `openred init`")
        }
        _ => Failure::local(place.display(), &error),
    };
    let mut head = Vec::new();
    File::open(&place).and_then(|file| file.take(HEAD_BYTES).read_to_end(&mut head)).map_err(failed)?;
    let head = String::from_utf8_lossy(&head);
    let mut stanzas = head.lines().take_while(|line| !line.starts_with("---")).filter(|line| line.starts_with("-> "));
    Ok(KeyStatus {
        state: String::from("at rest"),
        passphrase: stanzas.any(|line| line.starts_with("-> scrypt ")),
        ..KeyStatus::default()
    })
}

fn print(invocation: &Invocation, status: &KeyStatus) -> Result<Exit, Failure> {
    let output = &invocation.output;
    let known = !status.node_id.is_empty();
    if known {
        output.line(one_line(&status.node_id));
    }
    let state = output.paint(super::links::tone(&status.state), &one_line(&status.state));
    output.line(format!("keystore: {state}"));
    output.line(match (status.passphrase, status.recipients.len()) {
        (true, _) => String::from("sealed with a passphrase"),
        (false, 0) if !known => String::from("sealed to age recipients"),
        (false, 1) => String::from("sealed to an age recipient"),
        (false, count) => format!("sealed to {count} age recipients"),
    });
    status.recipients.iter().for_each(|recipient| output.line(format!("  {}", one_line(recipient))));
    if known {
        output.line(format!("format version {}", status.version));
        output.line(match status.created_at {
            0 => String::from("made by a version that did not note when"),
            at => format!("made {}", moment(at, now())),
        });
        for word in &status.lineage {
            let at = moment(word.at, now());
            output.line(match word.step.as_str() {
                "succeed" => format!("{at}: {} named {}", one_line(&word.old), one_line(&word.new)),
                _ => format!("{at}: {} took {} back", one_line(&word.old), one_line(&word.new)),
            });
        }
    } else {
        output.line("the rest is inside: it is shown while the node runs");
    }
    output.document(
        "openred.key/1",
        &json!({ "keystore": invocation.home.keystore().display().to_string(), "key": status }),
    );
    Ok(Exit::Ok)
}
