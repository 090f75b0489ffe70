//! What waits for this node at a directory: a stream of server-sent events, a long poll where streams do not come through.
//!
//! Everything in it is hostile: sizes are bounded before anything is kept, an event that cannot be read is dropped and the
//! cursor moves on, so that one bad item cannot block those behind it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use openred_proto::id::NodeId;
use openred_proto::limits::OFFER_BYTES;
use serde::Deserialize;
use tokio::sync::mpsc;

use super::announce::BackOff;
use super::client::Client;
use super::{DirectoryError, wire};

/// The directory sends a comment every 15 s; twice that without a byte is a dead connection.
const QUIET: Duration = Duration::from_secs(35);
/// How long a long poll waits at the directory.
const POLL_SECONDS: u64 = 25;
/// Longest line of a stream: an offer in base64 with its JSON.
const LINE_BYTES: usize = 2 * OFFER_BYTES + 1024;
/// An exchange that took this long was no failure of the directory, whatever it brought.
const LASTING: Duration = Duration::from_secs(10);
/// After so many streams that broke without a single event, long polls are used.
const BARREN_STREAMS: u32 = 3;

/// What an item is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    Offer,
    Receipt,
}

/// An item that came through a directory.
#[derive(Clone, Debug)]
pub(crate) struct Delivered {
    pub(crate) kind: Kind,
    /// Who sent it, as the directory says.
    pub(crate) sender: NodeId,
    pub(crate) directory: NodeId,
    pub(crate) payload: Bytes,
}

/// Listens at one directory, forever.
pub(super) async fn listen(client: Arc<Client>, delivered: mpsc::Sender<Delivered>) {
    let mut back_off = BackOff::default();
    let mut barren = 0;
    let mut cursor = 0;
    client.registered.notified().await;
    loop {
        let (before, begun) = (cursor, Instant::now());
        let streams = barren < BARREN_STREAMS;
        let outcome = if streams {
            follow(&client, &delivered, &mut cursor).await
        } else {
            poll(&client, &delivered, &mut cursor).await
        };
        let heard = cursor != before;
        // An answer alone is no reason to hurry: one that is empty at once would be asked for again and again.
        let lasted = begun.elapsed() >= LASTING;
        if heard || lasted {
            back_off.reset();
        }
        match outcome {
            Ok(()) => {}
            Err(DirectoryError::Unregistered | DirectoryError::Refused(403)) => client.announce_now.notify_one(),
            Err(error) => {
                tracing::debug!(directory = %client.address(), %error, "stream ended");
                // Whether the directory is there at all is for the announcement to find out and to say.
                if error == DirectoryError::Unreachable {
                    client.announce_now.notify_one();
                }
            }
        }
        if delivered.is_closed() {
            return;
        }
        // What a poll hears says nothing of streams.
        barren = match outcome {
            _ if streams && heard => 0,
            Err(DirectoryError::Slow) if streams => barren + 1,
            _ => barren,
        };
        if outcome.is_err() || !(heard || lasted) {
            tokio::select! {
                () = tokio::time::sleep(back_off.next()) => {}
                () = client.registered.notified() => {}
            }
        }
    }
}

async fn poll(client: &Client, delivered: &mpsc::Sender<Delivered>, cursor: &mut u64) -> Result<(), DirectoryError> {
    let received = client.poll(*cursor, POLL_SECONDS).await?;
    for item in &received.items {
        take(client, delivered, item).await;
    }
    *cursor = received.cursor;
    Ok(())
}

async fn follow(client: &Client, delivered: &mpsc::Sender<Delivered>, cursor: &mut u64) -> Result<(), DirectoryError> {
    let mut body: Incoming = client.receive(*cursor).await?;
    let mut events = Events::default();
    loop {
        let frame = tokio::time::timeout(QUIET, body.frame()).await.map_err(|_| DirectoryError::Slow)?;
        let Some(frame) = frame else { return Ok(()) };
        let Ok(bytes) = frame.map_err(|_| DirectoryError::Unreachable)?.into_data() else { continue };
        for text in events.feed(&bytes)? {
            let Ok(item) = serde_json::from_str::<wire::Delivery>(&text) else {
                tracing::warn!(directory = %client.address(), "an event that cannot be read was dropped");
                continue;
            };
            take(client, delivered, &item).await;
            *cursor = item.id.max(*cursor);
        }
    }
}

async fn take(client: &Client, delivered: &mpsc::Sender<Delivered>, item: &wire::Delivery) {
    let (Ok(sender), Ok(payload)) = (item.sender(), wire::decode("payload", &item.payload)) else {
        return tracing::warn!(directory = %client.address(), "an item that cannot be read was dropped");
    };
    let item = Delivered { kind: item.kind, sender, directory: client.address().id, payload };
    // Closed only when the node is stopping.
    let _ = delivered.send(item).await;
}

/// The lines of a stream of server-sent events, down to the data of each event. Sans-IO.
#[derive(Debug, Default)]
struct Events {
    line: Vec<u8>,
    data: String,
}

impl Events {
    /// Takes bytes in; gives the data of the events that they complete.
    fn feed(&mut self, bytes: &[u8]) -> Result<Vec<String>, DirectoryError> {
        let mut complete = Vec::new();
        for byte in bytes {
            if *byte != b'\n' {
                self.line.push(*byte);
                if self.line.len() > LINE_BYTES {
                    return Err(DirectoryError::BadAnswer(too_long()));
                }
                continue;
            }
            let line = std::mem::take(&mut self.line);
            let line = line.strip_suffix(b"\r").unwrap_or(&line);
            if line.is_empty() {
                if !self.data.is_empty() {
                    complete.push(std::mem::take(&mut self.data));
                }
            } else if let Some(data) = line.strip_prefix(b"data:") {
                self.data.push_str(&String::from_utf8_lossy(data.strip_prefix(b" ").unwrap_or(data)));
                if self.data.len() > LINE_BYTES {
                    return Err(DirectoryError::BadAnswer(too_long()));
                }
            }
        }
        Ok(complete)
    }
}

const fn too_long() -> openred_proto::error::WireError {
    openred_proto::error::WireError::TooLong { what: "event of a directory's stream", limit: LINE_BYTES }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn events_come_whole_however_the_bytes_are_cut() {
        let text = b":\n\nevent: offer\nid: 7\ndata: {\"a\":1}\n\n: comment\r\ndata: x\r\ndata: y\r\n\r\n";
        for cut in 0..text.len() {
            let mut events = Events::default();
            let mut seen = events.feed(&text[..cut]).unwrap();
            seen.extend(events.feed(&text[cut..]).unwrap());
            assert_eq!(seen, ["{\"a\":1}", "xy"], "cut at {cut}");
        }
    }

    #[test]
    fn an_endless_line_or_event_is_refused() {
        let mut events = Events::default();
        assert!(events.feed(&vec![b'x'; LINE_BYTES + 1]).is_err());
        let mut events = Events::default();
        let line = [b"data: ".as_slice(), &vec![b'x'; 1000], b"\n"].concat();
        assert!(events.feed(&line.repeat(LINE_BYTES / 1000 + 1)).is_err());
    }
}
