//! `openred init`: the home directory, its configuration, and a sealed identity. It replaces nothing that exists.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use openred_proto::id::UnixMillis;
use openred_proto::unseal::Order;
use serde_json::json;
use zeroize::Zeroizing;

use super::arguments::Init;
use super::output::now;
use super::{Exit, Failure, Invocation, Passphrase};
use crate::config::resolve;
use crate::supervisor;

const HEADER: &str = "\
# Configuration of this OpenRed node. Only what differs from the defaults stands here:
# `openred config show` prints every setting, docs/openred.md explains each, `openred check` reads this file.
";

pub(crate) fn init(invocation: &Invocation, options: Init) -> Result<Exit, Failure> {
    let home = &invocation.home;
    let text = written(&options);
    // Judged before anything is made, so that a mistake leaves nothing behind.
    let config = resolve(&invocation.config, &text, [], &invocation.overrides)?.config;
    // A restored node that waits to be put in place is one that lives here.
    supervisor::finish_pending(home)?;
    if home.keystore().symlink_metadata().is_ok() {
        let what = format!("{}: a node lives here already", home.path().display());
        return Err(Failure::new(Exit::Conflict, "keystore.exists", what, "name another place with --home"));
    }
    let passphrase = match options.recipient.as_slice() {
        [] => Some(Passphrase::new_for_creation(&options.passphrase)?),
        _ => None,
    };
    let order = || {
        let secret = passphrase.as_ref().map_or_else(|| Ok(Zeroizing::default()), Passphrase::bytes)?;
        Ok(Order { recipients: options.recipient.clone(), ..Order::with_secret(secret, UnixMillis(now())) })
    };
    make_home(home.path())?;
    let fresh = write_new(&invocation.config, &text)?;
    let about = supervisor::create(home, &config, order).inspect_err(|_| {
        if fresh {
            let _ = std::fs::remove_file(&invocation.config);
            // Only an empty folder goes.
            let _ = std::fs::remove_dir(home.path());
        }
    })?;
    let node = about.node;
    let (place, file) = (home.path().display(), invocation.config.display());
    invocation.output.line(format!("{node}"));
    invocation.output.line(format!("made in {place}"));
    if !fresh {
        invocation.output.line(format!("{file} was there and is kept as it is"));
    }
    invocation.output.line(match about.passphrase {
        true => "keep the passphrase: without it the node's identity is lost",
        false => "keep the recipients' identities: without one of them the node's identity is lost",
    });
    let body = json!({ "node_id": node.to_string(), "home": place.to_string(), "config": file.to_string() });
    invocation.output.document("openred.init/1", &body);
    Ok(Exit::Ok)
}

/// The file of the chosen settings; later sections can be appended by hand.
fn written(options: &Init) -> String {
    let text = |value: &str| toml::Value::from(value).to_string();
    let list = |values: &[String]| toml::Value::from(values.to_vec()).to_string();
    let mut lines = String::from(HEADER);
    let mut put = |key: &str, value: String| lines.push_str(&format!("{key} = {value}\n"));
    if let Some(name) = &options.name {
        put("name", text(name));
    }
    if let Some(listen) = &options.listen {
        put("listen", text(&listen.to_string()));
    }
    if !options.endpoint.is_empty() {
        put("endpoints", list(&options.endpoint));
    }
    if !options.directory.is_empty() {
        put("directories", list(&options.directory));
    }
    if let Some(base) = options.uid_base {
        put("uid_base", base.to_string());
    }
    lines
}

fn make_home(path: &Path) -> Result<(), Failure> {
    let failed = |error: std::io::Error| Failure::local(path.display(), &error);
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(failed)?;
    }
    supervisor::make_private(path).map_err(failed)
}

/// Whether it was written; a file that exists is kept.
fn write_new(path: &Path, text: &str) -> Result<bool, Failure> {
    let failed = |error: std::io::Error| Failure::local(path.display(), &error);
    let file: File = match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::AlreadyExists => return Ok(false),
        Err(error) => return Err(failed(error)),
    };
    let mut file = file;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)?;
    Ok(true)
}
