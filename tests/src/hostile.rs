//! Modules against the bare contract, one that does one thing wrong above all: how its program is told which, how it dials, and how the operator's calls
//! reach it.
//!
//! A module sees no file, no variable and no argument of a test's. So the act is written into the program itself, behind a mark, before the
//! program is put in the place of a built-in module's.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use hyper_util::rt::TokioIo;
use memchr::memmem;
use openred_proto::admin::node_client::NodeClient;
use openred_proto::admin::{ModuleRequestFrame, ModuleRequestHead};
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

use crate::harness::binaries;

/// What stands before the act.
pub const MARK: &[u8; 16] = b"openred-does-so:";
/// Longest act.
pub const ACT_BYTES: usize = 16;
/// The program's file name.
pub const PROGRAM: &str = "openred-hostile-module";

/// Puts the program at `place`, told to do `act`; whoever opens that path gets the one or the other, whole.
///
/// # Errors
/// When the program is not built, or holds no mark.
pub fn plant(place: &Path, act: &str) -> Result<()> {
    let mut program = fs::read(binaries()?.join(PROGRAM))?;
    ensure!(act.len() <= ACT_BYTES, "{act} is too long");
    // In the program's own code the mark may stand a second time, with something else behind it.
    let whole = [MARK.as_slice(), &[b'.'; ACT_BYTES]].concat();
    let at = memmem::find(&program, &whole).context("the program has no mark")?;
    let start = at + MARK.len();
    program[start..start + act.len()].copy_from_slice(act.as_bytes());
    let beside = place.with_extension("new");
    fs::write(&beside, program)?;
    fs::set_permissions(&beside, fs::Permissions::from_mode(0o755))?;
    Ok(fs::rename(&beside, place)?)
}

/// The operator's call of a module's route over the admin socket: status and body.
///
/// # Errors
/// When the node does not answer.
pub fn call(home: &Path, module: &str, path: &str) -> Result<(u32, String)> {
    let socket = home.join("run/admin/admin.sock");
    let head = ModuleRequestHead {
        module: module.to_owned(),
        method: "GET".to_owned(),
        path: path.to_owned(),
        ..ModuleRequestHead::default()
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let channel = Endpoint::from_shared(format!("unix://{}", socket.display()))?.connect().await?;
        let frame = ModuleRequestFrame { head: Some(head), ..ModuleRequestFrame::default() };
        let mut frames = NodeClient::new(channel).call_module(tokio_stream::once(frame)).await?.into_inner();
        let (mut status, mut body) = (0, Vec::new());
        while let Some(frame) = frames.message().await? {
            status = frame.head.map_or(status, |head| head.status);
            body.extend_from_slice(&frame.body);
        }
        Ok((status, String::from_utf8_lossy(&body).into_owned()))
    })
}

/// One connection of a module's to its node, by the socket of its first argument.
///
/// # Errors
/// When nobody listens there.
pub async fn dial(socket: &str) -> Result<Channel> {
    let mut stream = Some(UnixStream::connect(socket).await?);
    let connector = service_fn(move |_| {
        let stream = stream.take();
        async move { stream.map(TokioIo::new).ok_or_else(|| std::io::Error::from(std::io::ErrorKind::NotConnected)) }
    });
    Ok(Endpoint::from_static("http://node").connect_with_connector(connector).await?)
}
