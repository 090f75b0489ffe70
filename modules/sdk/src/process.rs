//! A module as a process of its own: what its `main` calls.
//!
//! The supervisor starts it in a cage, with the path of the node's module socket as its argument and a pipe as descriptor 0. Each 32 bytes
//! on the pipe are a proof for one attachment ([`openred_proto::module`] says how that goes). Calls of the node come over the
//! first connection (`calls`), the module's own go over the second (`host`). When the node's process is replaced, another proof comes: what
//! ran for the old one is dropped, and the module's `start` runs again. When the pipe ends, the module ends.
//!
//! The one part of this crate that dials, reads the clock and draws randomness.

mod calls;
mod files;
mod host;
mod notes;

use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Uri;
use hyper_util::rt::TokioIo;
use openred_proto::limits::LOCAL_HTTP2_FRAME;
use openred_proto::module::attachment_client::AttachmentClient;
use openred_proto::module::host_client::HostClient;
use openred_proto::module::host_frame::Kind as FromHost;
use openred_proto::module::module_frame::Kind as FromModule;
use openred_proto::module::network_client::NetworkClient;
use openred_proto::module::peers_client::PeersClient;
use openred_proto::module::{Hello, HostFrame, OpenRequest, Welcome};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::UnixStream;
use tokio::net::unix::pipe;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

pub use files::open_granted;

use crate::context::Context;
use crate::instance::Instance;
use crate::module::Module;
use crate::wire::lane::Lane;
use crate::wire::{
    CALL_WINDOW, CONNECTION_WINDOW, FEATURES, FRAME_BYTES, MESSAGE_BYTES, NEWEST, OLDEST, PROOF_BYTES, RANGES, STORES,
    STREAM_WINDOW, convert,
};
use calls::{Calls, Next};
use host::RemoteHost;

/// Longest message that the node sends on the second connection: what it cuts its pages to, and its head.
const REPLY_BYTES: usize = 2 * MESSAGE_BYTES;
/// How long the node may take to answer a Hello; it is the same machine.
const WELCOME: Duration = Duration::from_secs(10);
/// Proofs that wait while an attachment ends: the node is replaced one at a time.
const PROOFS: usize = 2;

/// Why an attachment ended or did not begin.
#[derive(Debug, thiserror::Error)]
enum Lost {
    #[error("the node's socket: {0}")]
    Socket(#[from] io::Error),
    #[error("the node's connection: {0}")]
    Connection(#[from] tonic::transport::Error),
    #[error("the node ended it: {}", .0.message())]
    Ended(Box<tonic::Status>),
    #[error("the node does not answer")]
    Silent,
    #[error("the node speaks another contract")]
    Contract,
    #[error("the node closed it")]
    Closed,
}

impl From<tonic::Status> for Lost {
    fn from(status: tonic::Status) -> Self {
        Self::Ended(Box::new(status))
    }
}

/// Runs `module` until the supervisor ends it: the whole of a module's `main`.
///
/// ```no_run
/// # use openred_module::{Manifest, Module, Routes};
/// struct Greeter;
/// impl Module for Greeter {
///     fn manifest(&self) -> Manifest {
///         Manifest { id: "greeter", version: "1.0.0", summary: "Says hello" }
///     }
///     fn routes(_: &mut Routes<Self>) {}
/// }
/// fn main() -> std::process::ExitCode {
///     openred_module::run(Greeter)
/// }
/// ```
pub fn run<M: Module>(module: M) -> ExitCode {
    start_log();
    let done = begin(module).and_then(|(instance, socket)| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let served = runtime.block_on(async {
            let proofs = pipe::Receiver::from_owned_fd(io::stdin().as_fd().try_clone_to_owned()?)?;
            serve(Arc::new(instance), &socket, proofs).await;
            Ok(())
        });
        // Tasks of a module that do not end keep nobody.
        runtime.shutdown_background();
        served
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "{error}");
            ExitCode::FAILURE
        }
    }
}

fn begin<M: Module>(module: M) -> io::Result<(Instance, PathBuf)> {
    let instance = Instance::load(module).map_err(io::Error::other)?;
    let socket = std::env::args_os().nth(1).map(PathBuf::from);
    let usage = "a module is started by its node, with the path of the module socket; see `openred module`";
    Ok((instance, socket.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, usage))?))
}

/// Lines on descriptor 2, which the supervisor reads and names.
fn start_log() {
    let level = std::env::var("OPENRED_LOG").ok().and_then(|level| level.parse().ok()).unwrap_or(tracing::Level::INFO);
    let lines = tracing_subscriber::fmt().with_max_level(level).with_ansi(false).with_writer(io::stderr);
    // A module that has set one before keeps it.
    let _ = match std::env::var("OPENRED_LOG_FORMAT").as_deref() {
        Ok("json") => tracing::subscriber::set_global_default(lines.json().finish()),
        _ => tracing::subscriber::set_global_default(lines.compact().finish()),
    };
}

/// Serves one attachment after the other, each with a proof out of `proofs`, until these end or the node says so.
pub(crate) async fn serve(instance: Arc<Instance>, socket: &Path, proofs: impl AsyncRead + Unpin + Send + 'static) {
    let (sender, mut waiting) = mpsc::channel(PROOFS);
    let reading = tokio::spawn(read_proofs(proofs, sender));
    let mut proof = waiting.recv().await;
    while let Some(current) = proof {
        let attached = attach(&instance, socket, current);
        proof = tokio::select! {
            ended = attached => match ended {
                Ok(Next::Stop) => break,
                Ok(Next::Go) => waiting.recv().await,
                Err(lost) => {
                    tracing::warn!("the attachment ended: {lost}");
                    waiting.recv().await
                }
            },
            // The node's process was replaced, or there is no supervisor any more.
            next = waiting.recv() => next,
        };
    }
    reading.abort();
}

async fn read_proofs(mut from: impl AsyncRead + Unpin, to: mpsc::Sender<Bytes>) {
    loop {
        let mut proof = vec![0; PROOF_BYTES];
        if from.read_exact(&mut proof).await.is_err() || to.send(proof.into()).await.is_err() {
            return;
        }
    }
}

async fn dial(socket: &Path, stream_window: u32, connection_window: u32) -> Result<Channel, Lost> {
    let mut stream = Some(UnixStream::connect(socket).await?);
    let endpoint = Endpoint::from_static("http://node")
        .initial_stream_window_size(stream_window)
        .initial_connection_window_size(connection_window)
        .max_frame_size(LOCAL_HTTP2_FRAME);
    // Once: a connection that breaks ends the attachment.
    let connector = service_fn(move |_: Uri| {
        let stream = stream.take();
        async move { stream.map(TokioIo::new).ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected)) }
    });
    Ok(endpoint.connect_with_connector(connector).await?)
}

/// One attachment, from Hello to its end.
async fn attach(instance: &Arc<Instance>, socket: &Path, proof: Bytes) -> Result<Next, Lost> {
    let lane = Lane::new();
    lane.push(convert::module_frame(FromModule::Hello(hello(instance, proof))));
    let mut client = AttachmentClient::new(dial(socket, STREAM_WINDOW, STREAM_WINDOW).await?)
        .max_decoding_message_size(FRAME_BYTES)
        .max_encoding_message_size(FRAME_BYTES);
    let welcomed = async {
        let mut frames = client.attach(lane.frames()).await?.into_inner();
        let welcome = match frames.message().await?.and_then(|frame| frame.kind) {
            Some(FromHost::Welcome(welcome)) => welcome,
            _ => return Err(Lost::Contract),
        };
        Ok((frames, welcome))
    };
    let (frames, welcome) = timeout(WELCOME, welcomed).await.map_err(|_| Lost::Silent)??;
    let ranges = welcome.features.iter().any(|name| name == RANGES);
    let (host, notes) = open(socket, welcome).await?;
    let settings = host.settings();
    let calls = Ending(Calls::new(Arc::clone(instance), Context::new(Arc::new(host)), lane, settings, ranges));
    tokio::select! {
        ended = follow(&calls.0, frames) => ended,
        () = notes => Err(Lost::Closed),
    }
}

/// What ran for an attachment ends with it, also where it is given up for the next.
struct Ending(Arc<Calls>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.end();
    }
}

fn hello(instance: &Instance, proof: Bytes) -> Hello {
    let manifest = instance.manifest();
    Hello {
        proof,
        module: manifest.id.to_owned(),
        version: manifest.version.to_owned(),
        newest: NEWEST,
        oldest: OLDEST,
        features: FEATURES.map(String::from).to_vec(),
        summary: manifest.summary.to_owned(),
        methods: instance.methods().to_vec(),
    }
}

/// The second connection, and the work that sends what nobody waits for.
async fn open(socket: &Path, welcome: Welcome) -> Result<(RemoteHost, impl Future<Output = ()>), Lost> {
    if !(OLDEST..=NEWEST).contains(&welcome.version) {
        return Err(Lost::Contract);
    }
    let node = convert::node_id(&welcome.node_id).ok_or(Lost::Contract)?;
    let stores = welcome.features.iter().any(|name| name == STORES);
    let channel = dial(socket, CALL_WINDOW, CONNECTION_WINDOW).await?;
    let peers =
        PeersClient::new(channel.clone()).max_decoding_message_size(FRAME_BYTES).max_encoding_message_size(FRAME_BYTES);
    let network = NetworkClient::new(channel.clone())
        .max_decoding_message_size(FRAME_BYTES)
        .max_encoding_message_size(FRAME_BYTES);
    let mut client =
        HostClient::new(channel).max_decoding_message_size(REPLY_BYTES).max_encoding_message_size(MESSAGE_BYTES);
    client.open(OpenRequest { ticket: welcome.ticket }).await?;
    let notes = notes::Notes::new();
    let sending = Arc::clone(&notes).send(client.clone());
    Ok((RemoteHost::new(node, client, (peers, network), notes, stores), sending))
}

async fn follow(calls: &Arc<Calls>, mut frames: Streaming<HostFrame>) -> Result<Next, Lost> {
    while let Some(frame) = frames.message().await? {
        match calls.handle(frame) {
            Ok(Next::Go) => {}
            Ok(Next::Stop) => return Ok(Next::Stop),
            Err(_) => return Err(Lost::Contract),
        }
    }
    Err(Lost::Closed)
}
