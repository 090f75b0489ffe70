//! Making a node's identity: the caged unsealer draws the key and writes the sealed keystore; only the node id comes back.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nix::fcntl::{AT_FDCWD, OFlag, RenameFlags, renameat2};
use openred_policy::observe::Baseline;
use openred_policy::socket::{open_no_symlinks, sync_directory};
use openred_policy::spawn::Exit as Ended;
use openred_policy::{Identity, Role};
use openred_proto::id::NodeId;

use super::board::Board;
use super::child::{self, Fault, Plan, Starter};
use super::log::Log;
use super::places::remove;
use super::{StartFailure, now, null, programs, settle};
use crate::cli::{Exit, Failure, Passphrase};
use crate::config::LogFormat;
use crate::home::Home;

/// Makes the keystore of `home`, whose folder exists. Refuses to replace one.
pub(crate) fn create(home: &Home, uid_base: u32, passphrase: &Passphrase) -> Result<NodeId, Failure> {
    settle()?;
    let identity = super::places::Identities::new(uid_base).unseal;
    let place = home.keystore();
    if place.symlink_metadata().is_ok() {
        return Err(exists(&place));
    }
    let temporary = home.path().join("keystore.age.new");
    let failed = |error: io::Error| Failure::local(temporary.display(), &error);
    remove(&temporary).map_err(failed)?;
    let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL;
    let file = open_no_symlinks(&temporary, flags, 0o600).map_err(failed)?;
    let (log, writer) = Log::start(LogFormat::Human);
    let board = Arc::new(Board::new(Baseline::of_this_process()?, home.path().display().to_string(), now()));
    let starter = Starter { programs: programs()?, null: null()?, board, log };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::local("starting the runtime", &error))?;
    let made = runtime.block_on(seal(&starter, &file, identity, passphrase)).map_err(Failure::from);
    drop(runtime);
    starter.log.end();
    writer.finish_within(Duration::from_secs(2));
    let node = match made {
        Ok(node) => node,
        Err(failure) => {
            let _ = remove(&temporary);
            return Err(failure);
        }
    };
    file.sync_all().map_err(failed)?;
    // Durable under its final name, and never in place of another node's.
    match renameat2(AT_FDCWD, &temporary, AT_FDCWD, &place, RenameFlags::RENAME_NOREPLACE) {
        Err(nix::Error::EEXIST) => return Err(exists(&place)),
        renamed => renamed.map_err(|errno| Failure::local(place.display(), &errno.into()))?,
    }
    sync_directory(home.path()).map_err(|error| Failure::local(home.path().display(), &error))?;
    Ok(node)
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

async fn seal(
    starter: &Starter,
    file: &File,
    identity: Option<Identity>,
    passphrase: &Passphrase,
) -> Result<NodeId, StartFailure> {
    let role = Role::Unseal;
    let setup = |what| move |source: io::Error| StartFailure::Child(Fault::Setup { role, what, source });
    let pipe = |what| nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(|errno| setup(what)(errno.into()));
    let ((passphrase_read, passphrase_write), (id_read, id_write)) = (pipe("the passphrase")?, pipe("the node id")?);
    let plan = Plan {
        role,
        program: "cryptod-unseal",
        arguments: vec!["create".into()],
        identity,
        kept: Vec::new(),
        descriptors: vec![file.try_clone().map_err(setup("the keystore"))?.into(), passphrase_read, id_write],
    };
    let mut child = child::start(starter, plan).await?;
    let bytes = passphrase.bytes().map_err(StartFailure::Passphrase)?;
    File::from(passphrase_write).write_all(&bytes).map_err(setup("the passphrase"))?;
    drop(bytes);
    match child.finished().await? {
        Ended::Code(0) => {}
        exit => return Err(Fault::Ended { role, exit }.into()),
    }
    let mut node = [0; 32];
    File::from(id_read).read_exact(&mut node).map_err(setup("the node id"))?;
    Ok(NodeId::from_bytes(node))
}
