//! What is spoken with a NATS server (docs.nats.io, client protocol): lines of text, and messages behind their length. Sans-IO: bytes in,
//! what they say out. A reader takes any bytes at all: a line longer than a server's can be ends the connection, a message longer than ours is
//! left out, and nothing is kept that was not sent.

use bytes::{Buf as _, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use crate::limits::{LETTER_BYTES, NATS_LINE_BYTES};

/// Longest message that any NATS server carries.
const NATS_PAYLOAD: usize = 64 * 1024 * 1024;

/// What a server says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// About itself; the first thing that it says.
    Info(Info),
    /// A message for one of our subscriptions, by its number; empty in place of one that is longer than ours are.
    Message(u64, Bytes),
    /// Whether we are there.
    Ping,
    /// An answer to ours.
    Pong,
    /// Something was refused.
    Refused(String),
}

/// What concerns us of what a server says about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Info {
    /// It goes on in TLS alone.
    pub tls_required: bool,
    /// Longest message that it takes.
    pub max_payload: u64,
}

/// What we say about ourselves.
#[derive(Debug, Serialize)]
pub struct Connect<'a> {
    verbose: bool,
    pedantic: bool,
    tls_required: bool,
    name: &'static str,
    lang: &'static str,
    version: &'static str,
    protocol: u8,
    echo: bool,
    headers: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pass: Option<&'a str>,
}

/// Bytes that no server of this protocol says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("what the NATS server says cannot be read")]
pub struct Garbled;

/// Takes a server's bytes apart.
#[derive(Debug, Default)]
pub struct Reader {
    read: BytesMut,
    /// Bytes that come and are not kept: the rest of a message that is none of ours.
    skip: usize,
}

impl Reader {
    /// More bytes of the connection.
    pub fn feed(&mut self, bytes: &[u8]) {
        let skipped = self.skip.min(bytes.len());
        self.skip -= skipped;
        self.read.extend_from_slice(&bytes[skipped..]);
    }

    /// The next thing that was said, if it is there as a whole.
    ///
    /// # Errors
    /// Not this protocol, or longer than anything that is for us.
    pub fn said(&mut self) -> Result<Option<Said>, Garbled> {
        loop {
            let Some(end) = self.read.windows(2).position(|pair| pair == b"\r\n") else {
                return if self.read.len() > NATS_LINE_BYTES { Err(Garbled) } else { Ok(None) };
            };
            if end > NATS_LINE_BYTES {
                return Err(Garbled);
            }
            let line = std::str::from_utf8(&self.read[..end]).map_err(|_| Garbled)?;
            let (word, rest) = line.split_once([' ', '\t']).unwrap_or((line, ""));
            let said = match word {
                "MSG" => {
                    let (subscription, length) = announced(rest).ok_or(Garbled)?;
                    if length > LETTER_BYTES {
                        self.read.advance(end + 2);
                        let here = self.read.len().min(length + 2);
                        self.read.advance(here);
                        self.skip = length + 2 - here;
                        return Ok(Some(Said::Message(subscription, Bytes::new())));
                    }
                    if self.read.len() < end + 2 + length + 2 {
                        return Ok(None);
                    }
                    self.read.advance(end + 2);
                    let payload = self.read.split_to(length).freeze();
                    if !self.read.starts_with(b"\r\n") {
                        return Err(Garbled);
                    }
                    self.read.advance(2);
                    return Ok(Some(Said::Message(subscription, payload)));
                }
                "INFO" => Some(Said::Info(serde_json::from_str(rest).map_err(|_| Garbled)?)),
                "PING" => Some(Said::Ping),
                "PONG" => Some(Said::Pong),
                "-ERR" => Some(Said::Refused(plain(rest))),
                "+OK" => None,
                _ => return Err(Garbled),
            };
            self.read.advance(end + 2);
            if said.is_some() {
                return Ok(said);
            }
        }
    }
}

/// The subscription and the length that a message's line names: subject, subscription, perhaps where to answer, length.
fn announced(rest: &str) -> Option<(u64, usize)> {
    let mut words = rest.split_ascii_whitespace();
    let (_subject, subscription) = (words.next()?, words.next()?.parse().ok()?);
    let (third, fourth) = (words.next()?, words.next());
    let length: usize = fourth.unwrap_or(third).parse().ok()?;
    (words.next().is_none() && length <= NATS_PAYLOAD).then_some((subscription, length))
}

/// A server's own words, for the log: one short line.
fn plain(text: &str) -> String {
    text.chars().filter(|character| !character.is_control()).take(200).collect()
}

/// Who we are; then whether it is there.
#[must_use]
pub fn connect(tls: bool, login: Option<(&str, &str)>) -> Vec<u8> {
    let (user, pass) = login.unzip();
    let connect = Connect {
        verbose: false,
        pedantic: false,
        tls_required: tls,
        name: "openred-directory",
        lang: "rust",
        version: env!("CARGO_PKG_VERSION"),
        protocol: 0,
        // That our own words come back shows that the way is open.
        echo: true,
        headers: false,
        user,
        pass,
    };
    // A struct of plain fields: it cannot fail.
    let about = serde_json::to_string(&connect).unwrap_or_default();
    format!("CONNECT {about}\r\nPING\r\n").into_bytes()
}

/// Asks for the messages of a subject.
#[must_use]
pub fn subscribe(subject: &str, subscription: u64) -> Vec<u8> {
    format!("SUB {subject} {subscription}\r\n").into_bytes()
}

/// Appends a message.
pub fn publish(to: &mut Vec<u8>, subject: &str, payload: &[u8]) {
    to.extend_from_slice(format!("PUB {subject} {}\r\n", payload.len()).as_bytes());
    to.extend_from_slice(payload);
    to.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_said_comes_whole_however_the_bytes_are_cut() {
        let text = b"INFO {\"tls_required\":true,\"max_payload\":1048576,\"other\":[1]}\r\n+OK\r\nMSG a.b 2 5\r\n\r\nx\r\n\r\nPING\r\nMSG a 1 reply 0\r\n\r\n-ERR 'no'\r\n";
        let expected = [
            Said::Info(Info { tls_required: true, max_payload: 1_048_576 }),
            Said::Message(2, Bytes::from_static(b"\r\nx\r\n")),
            Said::Ping,
            Said::Message(1, Bytes::new()),
            Said::Refused("'no'".into()),
        ];
        for cut in 0..text.len() {
            let mut reader = Reader::default();
            let mut said = Vec::new();
            for part in [&text[..cut], &text[cut..]] {
                reader.feed(part);
                while let Some(one) = reader.said().unwrap() {
                    said.push(one);
                }
            }
            assert_eq!(said, expected, "cut at {cut}");
        }
    }

    #[test]
    fn nothing_is_waited_for_that_cannot_be_ours() {
        let long = format!("MSG a 1 {}\r\n", NATS_PAYLOAD + 1);
        let endless = "x".repeat(NATS_LINE_BYTES + 1);
        let texts =
            [&long, &endless, "MSG a 1 18446744073709551615\r\n", "MSG a 1 -1\r\n", "MSG a\r\n", "GET / HTTP/1.1\r\n"];
        for text in texts {
            let mut reader = Reader::default();
            reader.feed(text.as_bytes());
            assert_eq!(reader.said(), Err(Garbled), "{text:.40}");
        }
    }

    #[test]
    fn a_message_that_cannot_be_ours_is_left_out_and_not_kept() {
        let length = LETTER_BYTES * 3;
        let text = [format!("MSG a 1 {length}\r\n").as_bytes(), &vec![b'x'; length], b"\r\nPING\r\n"].concat();
        for piece in [1, 7, 4096, text.len()] {
            let (mut reader, mut said) = (Reader::default(), Vec::new());
            for bytes in text.chunks(piece) {
                reader.feed(bytes);
                assert!(reader.read.len() <= piece + 64, "{} bytes are kept", reader.read.len());
                while let Some(one) = reader.said().unwrap() {
                    said.push(one);
                }
            }
            assert_eq!(said, [Said::Message(1, Bytes::new()), Said::Ping]);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(parts in prop::collection::vec("(MSG a 1 [0-9]{1,3}\r\n|PING\r\n|[ -~\r\n]{0,40})", 0..12)) {
            let mut reader = Reader::default();
            for part in parts {
                reader.feed(part.as_bytes());
                while let Ok(Some(_)) = reader.said() {}
            }
        }
    }
}
