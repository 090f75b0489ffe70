//! Making a node's identity: the caged unsealer draws the key and hands out the sealed keystore, which is put in place whole.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::Path;

use openred_proto::unseal::{About, Order};

use super::StartFailure;
use super::errand::{Errand, pipe, setup};
use super::keystore::put;
use super::workshop::Workshop;
use crate::cli::{Exit, Failure};
use crate::config::NodeConfig;
use crate::home::Home;

/// Makes the keystore of `home`, whose folder exists. Refuses to replace one.
pub(crate) fn create(
    home: &Home,
    config: &NodeConfig,
    order: impl FnOnce() -> Result<Order, Failure>,
) -> Result<About, Failure> {
    let place = home.keystore();
    if place.symlink_metadata().is_ok() {
        return Err(exists(&place));
    }
    let workshop = Workshop::open(home, config)?;
    let (about, sealed) = small_with(&workshop, "create", workshop.nothing()?, None, order)?;
    put(&place, &sealed, false, |_| ()).map_err(|failure| match failure.code.as_str() {
        "file.exists" => exists(&place),
        _ => failure,
    })?;
    Ok(about)
}

/// Runs an errand whose outcome is a keystore: it fits into the pipe, so it is read when all is done.
pub(crate) fn small_with(
    workshop: &Workshop,
    mode: &'static str,
    input: OwnedFd,
    second: Option<OwnedFd>,
    order: impl FnOnce() -> Result<Order, Failure>,
) -> Result<(About, Vec<u8>), StartFailure> {
    let (read, output) = pipe("the new keystore")?;
    let about = workshop.run(Errand { mode, input, output, second }, order)?;
    let mut sealed = Vec::new();
    File::from(read).read_to_end(&mut sealed).map_err(setup("the new keystore"))?;
    let about = about.ok_or_else(|| setup("the unsealer's word")(std::io::ErrorKind::InvalidData.into()))?;
    Ok((about, sealed))
}

fn exists(place: &Path) -> Failure {
    let what = format!("{}: a node lives here already", place.display());
    Failure::new(
        Exit::Conflict,
        "keystore.exists",
        what,
        "name another place with --home; its identity cannot be made again",
    )
}
