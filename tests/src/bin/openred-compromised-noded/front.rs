//! The front as the attacker sees it: the generated client, calls that the contract has not, and raw bytes on its socket. All
//! that comes back is kept in a file, for the test to search.

use std::fs::File;
use std::future::Future;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use http_body_util::{BodyExt, Full};
use openred_proto::cryptod::cryptod_client::CryptodClient;
use openred_proto::refusal::REFUSAL_HEADER;
use prost::Message;
use prost::bytes::Bytes;
use tokio::runtime::{Builder, Runtime};
use tonic::body::Body;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Response, Status};
use tower::{Service, ServiceExt};

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

/// A way to the front.
pub(crate) struct Front {
    runtime: Runtime,
    pub(crate) socket: PathBuf,
    channel: Channel,
    received: File,
}

impl Front {
    /// Made before the filter, like `noded`'s own.
    pub(crate) fn new(socket: &Path, received: &Path) -> Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let entered = runtime.enter();
        let channel = connect(socket)?;
        drop(entered);
        let received = File::options().create(true).append(true).open(received).context("what is received")?;
        Ok(Self { runtime, socket: socket.to_owned(), channel, received })
    }

    /// Begins a new connection: a connection's faults are counted.
    pub(crate) fn afresh(&mut self) -> Result<()> {
        let entered = self.runtime.enter();
        let channel = connect(&self.socket)?;
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
        let message = self.runtime.block_on(call(CryptodClient::new(self.channel.clone())))?.into_inner();
        self.keep(&message.encode_to_vec());
        Ok(message)
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
        self.keep(&body);
        match Status::from_header_map(&head.headers) {
            Some(status) if status.code() != Code::Ok => Err(Refused { more: body, ..status.into() }),
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
        self.keep(&answer);
        Ok(answer)
    }

    fn keep(&mut self, bytes: &[u8]) {
        // The test finds a file that is too short by what else must be in it.
        let _ = self.received.write_all(bytes);
    }
}

fn connect(socket: &Path) -> Result<Channel> {
    let address = socket.to_str().context("a path of text")?;
    Ok(Endpoint::from_shared(format!("unix:{address}"))?.timeout(DEADLINE).connect_lazy())
}
