//! The operator's end of the vault's second pair: one request at a time, each with its reply.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use openred_proto::error::WireError;
use openred_proto::limits::FRAME_BYTES;
use openred_proto::vault::{Frame, Reply, Request, decode_frame, encode_frame, split_frame};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

/// An operation of the vault takes milliseconds and one write to disk.
const DEADLINE: Duration = Duration::from_secs(5);

/// Held while the vault is in service: closed, it says that the supervisor is gone.
pub(crate) struct Operator {
    stream: UnixStream,
    asked: u64,
}

impl Operator {
    /// Takes the supervisor's end over.
    pub(crate) fn new(end: OwnedFd) -> io::Result<Self> {
        let stream = std::os::unix::net::UnixStream::from(end);
        stream.set_nonblocking(true)?;
        Ok(Self { stream: UnixStream::from_std(stream)?, asked: 0 })
    }

    /// Asks the vault and waits for its reply.
    pub(crate) async fn ask(&mut self, body: Request) -> io::Result<Reply> {
        self.asked += 1;
        let id = self.asked;
        timeout(DEADLINE, self.converse(Frame { id, body })).await.map_err(|_| io::ErrorKind::TimedOut)?
    }

    async fn converse(&mut self, request: Frame<Request>) -> io::Result<Reply> {
        let malformed = |error: WireError| io::Error::new(io::ErrorKind::InvalidData, error.to_string());
        self.stream.write_all(&encode_frame(&request).map_err(malformed)?).await?;
        let mut bytes = Vec::with_capacity(FRAME_BYTES + 4);
        loop {
            match split_frame(&bytes) {
                Ok((body, used)) => {
                    let reply: Frame<Reply> = decode_frame(body).map_err(malformed)?;
                    bytes.drain(..used);
                    // The answer to one that was given up on may still come.
                    if reply.id == request.id {
                        return Ok(reply.body);
                    }
                }
                Err(WireError::Incomplete { .. }) => {
                    if self.stream.read_buf(&mut bytes).await? == 0 {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                }
                Err(error) => return Err(malformed(error)),
            }
        }
    }
}
