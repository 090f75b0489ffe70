//! The front as the attacker sees it: the generated client, calls that the contract has not, and raw bytes on its socket. Each byte
//! that comes back over any of its connections is kept in a file as it came, for the test to search, and behind it what the client makes
//! of a refusal: its texts are packed on the wire.

use std::fs::File;
use std::future::Future;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context as Waking, Poll, ready};
use std::time::Duration;

use anyhow::{Context, Result};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use openred_proto::cryptod::cryptod_client::CryptodClient;
use openred_proto::refusal::REFUSAL_HEADER;
use prost::Message;
use prost::bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::runtime::{Builder, Runtime};
use tonic::body::Body;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Response, Status};
use tower::{Service, ServiceExt, service_fn};

/// Longer than any call takes.
const DEADLINE: Duration = Duration::from_secs(30);

/// Why a call brought nothing.
#[derive(Debug)]
pub(crate) struct Refused {
    pub(crate) code: Code,
    /// The vault's refusal by its code, where it was the vault that refused.
    pub(crate) refusal: Option<String>,
    pub(crate) text: String,
    /// What else came with it.
    pub(crate) more: Vec<u8>,
}

impl From<Status> for Refused {
    fn from(status: Status) -> Self {
        let refusal = status.metadata().get(REFUSAL_HEADER).and_then(|code| code.to_str().ok()).map(str::to_owned);
        let (text, more) = (format!("{:?}: {}", status.code(), status.message()), status.details().to_vec());
        Self { code: status.code(), refusal, text, more }
    }
}

/// Where all goes that came back.
struct Received {
    file: File,
    /// Bytes that came, kept or not: the test holds the file against it.
    came: AtomicU64,
}

impl Received {
    fn keep(&self, bytes: &[u8]) {
        self.came.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        let _ = (&self.file).write_all(bytes);
    }
}

/// A connection all of whose incoming bytes are kept.
struct Kept {
    stream: tokio::net::UnixStream,
    received: Arc<Received>,
}

impl AsyncRead for Kept {
    fn poll_read(
        mut self: Pin<&mut Self>,
        waking: &mut Waking<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(waking, buffer))?;
        self.received.keep(&buffer.filled()[before..]);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Kept {
    fn poll_write(mut self: Pin<&mut Self>, waking: &mut Waking<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(waking, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, waking: &mut Waking<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(waking)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, waking: &mut Waking<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(waking)
    }
}

/// A way to the front.
pub(crate) struct Front {
    runtime: Runtime,
    pub(crate) socket: PathBuf,
    channel: Channel,
    received: Arc<Received>,
}

impl Front {
    /// Made before the filter, like `noded`'s own.
    pub(crate) fn new(socket: &Path, received: &Path) -> Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let file = File::options().create(true).append(true).open(received).context("what is received")?;
        let received = Arc::new(Received { came: AtomicU64::new(file.metadata()?.len()), file });
        let entered = runtime.enter();
        let channel = connect(socket, &received)?;
        drop(entered);
        Ok(Self { runtime, socket: socket.to_owned(), channel, received })
    }

    /// Begins a new connection: a connection's faults are counted.
    pub(crate) fn afresh(&mut self) -> Result<()> {
        let entered = self.runtime.enter();
        let channel = connect(&self.socket, &self.received)?;
        drop(entered);
        self.channel = channel;
        Ok(())
    }

    /// One call of the contract.
    pub(crate) fn call<M, F>(&mut self, call: impl FnOnce(CryptodClient<Channel>) -> F) -> Result<M, Refused>
    where
        M: Message,
        F: Future<Output = Result<Response<M>, Status>>,
    {
        let answered = self.runtime.block_on(call(CryptodClient::new(self.channel.clone())));
        Ok(answered.inspect_err(|status| self.keep_texts(status))?.into_inner())
    }

    /// A call of any name, with any message; the whole body that came.
    pub(crate) fn call_named(&mut self, path: &str, message: &[u8]) -> Result<Vec<u8>, Refused> {
        let length = u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes();
        let body = Bytes::from([&[0][..], &length, message].concat());
        let request = http::Request::builder()
            .method("POST")
            .uri(format!("http://cryptod{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(Body::new(Full::new(body)))
            .map_err(|error| Refused::from(Status::internal(error.to_string())))?;
        let mut channel = self.channel.clone();
        let answered = self.runtime.block_on(async { channel.ready().await?.call(request).await });
        let answered = answered.map_err(|error| Refused::from(Status::unavailable(error.to_string())))?;
        let (head, body) = answered.into_parts();
        let body = self.runtime.block_on(body.collect()).map_or_else(|_| Bytes::new(), |body| body.to_bytes()).to_vec();
        match Status::from_header_map(&head.headers) {
            Some(status) if status.code() != Code::Ok => {
                self.keep_texts(&status);
                Err(Refused { more: body, ..status.into() })
            }
            _ => Ok(body),
        }
    }

    /// Bytes as they are on a connection of their own; what came back before it was closed.
    pub(crate) fn raw(&mut self, bytes: &[u8]) -> Result<Vec<u8>> {
        let mut stream = UnixStream::connect(&self.socket)?;
        stream.set_read_timeout(Some(DEADLINE))?;
        stream.write_all(bytes)?;
        let mut answer = Vec::new();
        // An end by a reset is an end as well.
        let _ = stream.read_to_end(&mut answer);
        self.received.keep(&answer);
        Ok(answer)
    }

    /// What a refusal says in words, in its details and in its headers.
    fn keep_texts(&self, status: &Status) {
        self.received.keep(status.message().as_bytes());
        self.received.keep(status.details());
        self.received.keep(format!("{:?}", status.metadata()).as_bytes());
    }

    /// How many bytes came back so far.
    pub(crate) fn came(&self) -> u64 {
        self.received.came.load(Ordering::Relaxed)
    }
}

fn connect(socket: &Path, received: &Arc<Received>) -> Result<Channel> {
    let (socket, received) = (socket.to_owned(), Arc::clone(received));
    let connector = service_fn(move |_: http::Uri| {
        let (socket, received) = (socket.clone(), Arc::clone(&received));
        async move {
            let stream = tokio::net::UnixStream::connect(socket).await?;
            Ok::<_, std::io::Error>(TokioIo::new(Kept { stream, received }))
        }
    });
    // The address is of no use to the connector.
    Ok(Endpoint::from_static("http://cryptod").timeout(DEADLINE).connect_with_connector_lazy(connector))
}
