//! The way to the daemons: gRPC over the two AF_UNIX sockets of the node's home.

use std::future::Future;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use openred_proto::admin::node_client::NodeClient;
use openred_proto::admin::supervisor_client::SupervisorClient;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};

use super::{Exit, Failure, Invocation};

/// An answer to the operator that takes longer than this is a fault; streams (files, pings) have no such bound.
pub(crate) const ANSWER: Duration = Duration::from_secs(60);
/// A local socket answers at once or not at all.
const CONNECT: Duration = Duration::from_secs(5);

/// Runs one command's conversation on this thread.
pub(crate) fn block_on<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::local("starting the runtime", &error))?;
    runtime.block_on(work)
}

/// `noded`.
pub(crate) async fn node(invocation: &Invocation) -> Result<NodeClient<Channel>, Failure> {
    let path = invocation.home.admin_socket();
    match channel(&path).await {
        Ok(channel) => Ok(NodeClient::new(channel)),
        Err(failure) => Err(explain(invocation, failure).await),
    }
}

/// The supervisor.
pub(crate) async fn supervisor(invocation: &Invocation) -> Result<SupervisorClient<Channel>, Failure> {
    Ok(SupervisorClient::new(
        channel(&invocation.home.control_socket()).await.map_err(|error| away(invocation, &error))?,
    ))
}

/// Without its socket `noded` may be starting, restarting or not wanted at all: the supervisor knows.
async fn explain(invocation: &Invocation, error: std::io::Error) -> Failure {
    if supervisor(invocation).await.is_ok() {
        let what = format!("the node in {} runs, but noded does not answer", invocation.home.path().display());
        return Failure::new(Exit::Failed, "node.away", what, "`openred status` says why");
    }
    away(invocation, &error)
}

fn away(invocation: &Invocation, error: &std::io::Error) -> Failure {
    let home = invocation.home.path();
    match error.kind() {
        ErrorKind::NotFound if !home.exists() => Failure::new(
            Exit::NotFound,
            "home.missing",
            format!("{}: no node lives here", home.display()),
            "make one with `openred init`, or name another place with --home",
        ),
        ErrorKind::NotFound | ErrorKind::ConnectionRefused => {
            let what = format!("no node runs in {}", home.display());
            Failure::new(Exit::Failed, "node.down", what, "start it with `openred up`")
        }
        ErrorKind::PermissionDenied => {
            let what = format!("{}: the node belongs to another user", home.display());
            Failure::new(Exit::Denied, "node.foreign", what, "become that user")
        }
        _ => Failure::local("the node's socket", error),
    }
}

async fn channel(path: &Path) -> std::io::Result<Channel> {
    let path: PathBuf = path.to_owned();
    // A socket of somebody else could imitate the node: the name must belong to this user or to root.
    let owner = std::fs::symlink_metadata(&path)?.uid();
    let own = nix::unistd::geteuid().as_raw();
    if owner != own && owner != 0 && own != 0 {
        return Err(ErrorKind::PermissionDenied.into());
    }
    let first = tokio::time::timeout(CONNECT, UnixStream::connect(&path)).await.map_err(|_| ErrorKind::TimedOut)??;
    // One connection: the stream made above is the one that is used, so that the socket's own error is what is reported.
    let mut first = Some(first);
    let connector = tower::service_fn(move |_| {
        let first = first.take();
        async move { first.map(TokioIo::new).ok_or_else(|| std::io::Error::from(ErrorKind::ConnectionReset)) }
    });
    Endpoint::from_static("http://openred.invalid")
        .max_frame_size(openred_proto::limits::LOCAL_HTTP2_FRAME)
        .connect_with_connector(connector)
        .await
        .map_err(std::io::Error::other)
}

/// A request with the usual deadline.
pub(crate) fn request<T>(message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.set_timeout(ANSWER);
    request
}
