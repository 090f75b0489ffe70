//! The channel to a `noded`: its asks in, what becomes of its modules out.

use std::io;

use openred_proto::error::WireError;
use openred_proto::modules::{Ask, FRAME_BYTES, Told, decode, encode};
use tokio::io::AsyncReadExt as _;
use tokio::net::UnixStream;

/// See the file's head.
pub(super) struct Channel {
    stream: UnixStream,
    bytes: Vec<u8>,
}

impl Channel {
    pub(super) fn new(stream: UnixStream) -> Self {
        Self { stream, bytes: Vec::new() }
    }

    /// Tells at once or not at all; whether it did.
    pub(super) fn tell(&self, told: &Told) -> bool {
        encode(told).is_ok_and(|bytes| self.put(&bytes))
    }

    /// The same, encoded already.
    pub(super) fn put(&self, bytes: &[u8]) -> bool {
        self.stream.try_write(bytes).is_ok_and(|count| count == bytes.len())
    }

    /// The next ask. Nothing is lost where another future is ready first.
    pub(super) async fn next(node: &mut Option<Self>) -> io::Result<Ask> {
        let Some(channel) = node else { return std::future::pending().await };
        loop {
            match decode::<Ask>(&channel.bytes) {
                Ok((ask, used)) => {
                    channel.bytes.drain(..used);
                    return Ok(ask);
                }
                Err(WireError::Incomplete { .. }) => {
                    channel.bytes.reserve(FRAME_BYTES);
                    if channel.stream.read_buf(&mut channel.bytes).await? == 0 {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                }
                Err(error) => return Err(io::Error::new(io::ErrorKind::InvalidData, error.to_string())),
            }
        }
    }
}
