//! `openred key backup`, `key restore` and `openred backup …`: what is asked for, and what came of it. The work is the
//! supervisor's (`supervisor/backup`), which runs the caged unsealer for it, here without a running node.

use std::path::Path;
use std::time::Duration;

use openred_proto::admin::CopyDatabaseRequest;
use openred_proto::unseal::About;
use serde_json::{Value, json};

use super::arguments::{self, Recipients, SecretSource};
use super::audit::left_in_clear;
use super::client::{block_on, node, request};
use super::output::{bytes, moment, now};
use super::{Exit, Failure, Invocation, Passphrase, configuration};
use crate::archive::Manifest;
use crate::archive::blobs::{FOLDER, Totals};
use crate::supervisor::{Backup, Restored, Verified, finish_pending, remove_copy};

/// A database of some gigabytes on a slow disk.
const COPY: Duration = Duration::from_secs(1800);

/// The work on this home.
pub(super) fn work<'a>(invocation: &'a Invocation, secret: &SecretSource) -> Result<Backup<'a>, Failure> {
    let finished = finish_pending(&invocation.home)?;
    let config = configuration::resolved_if_any(invocation)?;
    let secret = Passphrase::by_hand(secret)?;
    Backup::new(&invocation.home, (&invocation.config, &config), secret, finished)
}

pub(super) fn key(
    invocation: &Invocation,
    file: &Path,
    to: &Recipients,
    secret: &SecretSource,
) -> Result<Exit, Failure> {
    let about = work(invocation, secret)?.key(file, &to.recipient)?;
    invocation.output.line(format!("{}\nwritten to {}, {}", about.node, file.display(), sealing(&about)));
    invocation.output.document("openred.key-backup/1", &about_json(&about, file));
    Ok(Exit::Ok)
}

pub(super) fn restore_key(
    invocation: &Invocation,
    file: &Path,
    force: bool,
    to: &Recipients,
    secret: &SecretSource,
) -> Result<Exit, Failure> {
    let about = work(invocation, secret)?.restore_key(file, &to.recipient, force)?;
    invocation.output.line(format!("{}\nis back in {}", about.node, invocation.home.path().display()));
    invocation.output.line("links are requested anew; nothing that was sealed for them before opens");
    invocation.output.document("openred.key-backup/1", &about_json(&about, file));
    Ok(Exit::Ok)
}

fn sealing(about: &About) -> String {
    match (about.passphrase, about.recipients.len()) {
        (true, _) => String::from("behind the keystore's passphrase"),
        (false, 1) => String::from("for 1 age recipient"),
        (false, count) => format!("for {count} age recipients"),
    }
}

fn about_json(about: &About, file: &Path) -> Value {
    json!({
        "file": file.display().to_string(),
        "node_id": about.node.to_string(),
        "version": about.version,
        "created_at": about.created.0,
        "passphrase": about.passphrase,
        "recipients": about.recipients,
    })
}

pub(crate) fn backup(invocation: &Invocation, command: arguments::Backup) -> Result<Exit, Failure> {
    use arguments::Backup as Word;
    match command {
        Word::Create { file, without_files, to, secret } => create(invocation, &file, !without_files, &to, &secret),
        Word::Verify { file, secret } => {
            let verified = work(invocation, &secret)?.verify(&file)?;
            print(invocation, &file, (&verified.manifest, verified.blobs), Some(&verified), (None, Vec::new()))
        }
        Word::Restore { file, force, secret } => {
            let Restored { verified, aside, unfiled } = work(invocation, &secret)?.restore(&file, force)?;
            let home = invocation.home.path().display();
            invocation.output.line(format!("is back in {home}; links are requested anew"));
            if let Some(aside) = &aside {
                invocation.output.line(format!("what was there is in {}", aside.display()));
            }
            let audit = aside.as_deref().unwrap_or(invocation.home.path()).join("audit");
            let left = left_in_clear(&invocation.output, &unfiled, &audit);
            let replaced = (aside.as_deref(), left);
            print(invocation, &file, (&verified.manifest, verified.blobs), Some(&verified), replaced)
        }
    }
}

/// A running node copies its database itself, which nobody else can open meanwhile.
fn create(
    invocation: &Invocation,
    file: &Path,
    with_files: bool,
    to: &Recipients,
    secret: &SecretSource,
) -> Result<Exit, Failure> {
    let work = work(invocation, secret)?;
    let copy = match block_on_copy(invocation) {
        Ok(name) => Some(invocation.home.state().join(name)),
        Err(failure) if matches!(failure.code.as_str(), "node.down" | "home.missing") => None,
        Err(failure) => return Err(failure),
    };
    let created = work.create(file, &to.recipient, copy.as_deref(), with_files);
    if let Some(copy) = &copy {
        remove_copy(copy);
    }
    let (manifest, blobs) = created?;
    // A backup that was not read back is a hope.
    let verified = match to.recipient.is_empty() {
        // One that cannot be read back is not left behind to be relied on.
        true => Some(work.verify(file).inspect_err(|_| remove_copy(file))?),
        false => None,
    };
    print(invocation, file, (&manifest, blobs), verified.as_ref(), (None, Vec::new()))
}

fn block_on_copy(invocation: &Invocation) -> Result<String, Failure> {
    let mut name = String::new();
    block_on(async {
        let mut asked = request(CopyDatabaseRequest {});
        asked.set_timeout(COPY);
        let copied = node(invocation).await?.copy_database(asked).await?.into_inner();
        // A name, never a path: it comes from the process that speaks to strangers.
        if copied.name.contains('/') || copied.name.is_empty() || copied.name.starts_with('.') {
            return Err(Failure::new(Exit::Failed, "node", "noded named no file of its own", ""));
        }
        name = copied.name;
        Ok(Exit::Ok)
    })?;
    Ok(name)
}

fn print(
    invocation: &Invocation,
    file: &Path,
    (manifest, blobs): (&Manifest, Option<Totals>),
    verified: Option<&Verified>,
    (aside, left): (Option<&Path>, Vec<Value>),
) -> Result<Exit, Failure> {
    let output = &invocation.output;
    output.line(&manifest.node_id);
    let how = if manifest.running { "of the running node" } else { "of the stopped node" };
    output.line(format!("{}, made {}, {how}", file.display(), moment(manifest.created_at, now())));
    for entry in &manifest.files {
        output.line(format!("  {:<22} {}", entry.name, bytes(entry.bytes)));
    }
    output.line(match blobs {
        Some(Totals { files: 1, bytes: size }) => format!("  {FOLDER:<22} {} in 1 file", bytes(size)),
        Some(Totals { files, bytes: size }) => format!("  {FOLDER:<22} {} in {files} files", bytes(size)),
        None => String::from("without the files that the node held"),
    });
    output.line(match verified {
        Some(Verified { database: Some(database), .. }) => {
            format!("read to its end: key and state open, database sound (schema {})", database.schema)
        }
        Some(_) => String::from("read to its end: key and state open; there is no database yet"),
        None => String::from("sealed to recipients: prove it with `openred backup verify` and an identity"),
    });
    let body = json!({
        "file": file.display().to_string(),
        "manifest": manifest,
        "blobs": blobs,
        "verified": verified.is_some(),
        "schema": verified.and_then(|verified| verified.database).map(|database| database.schema),
        "links": verified.and_then(|verified| verified.database).map(|database| database.links),
        "format": verified.map(|verified| verified.about.version),
        "replaced": aside.map(|aside| aside.display().to_string()),
        "left_in_clear": left,
    });
    output.document("openred.backup/1", &body);
    Ok(Exit::Ok)
}
