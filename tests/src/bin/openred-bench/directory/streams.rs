//! Open streams: each on a connection of its own from one of several addresses of this machine, and offers that arrive through one.

use std::net::{Ipv4Addr, SocketAddr};
use std::ops::Range;
use std::time::Instant;

use anyhow::{Result, ensure};
use futures_util::{StreamExt as _, TryStreamExt as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};

use super::crowd::Crowd;
use super::drive::Answers;

/// Addresses that streams come from: 127.0.0.2 and those after it.
const ADDRESSES: usize = 8;
/// Streams that are being opened at once.
const AT_ONCE: usize = 16;
/// Longest head of an answer, and longest event.
const EVENT_BYTES: usize = 64 * 1024;

/// Streams that are held open, by nodes that follow each other.
pub(crate) struct Streams {
    open: Vec<TcpStream>,
    first: usize,
}

impl Streams {
    /// Opens one for each of these nodes.
    pub(crate) async fn open(crowd: &Crowd, origin: &str, at: SocketAddr, who: Range<usize>) -> Result<Self> {
        let first = who.start;
        let opened = futures_util::stream::iter(who).map(|who| open(crowd, origin, at, who));
        Ok(Self { open: opened.buffered(AT_ONCE).try_collect().await?, first })
    }

    /// Those that the directory has ended meanwhile.
    pub(crate) fn ended(&self) -> usize {
        let is_over = |stream: &&TcpStream| matches!(stream.try_read(&mut [0; 4096]), Ok(0));
        self.open.iter().filter(is_over).count()
    }

    /// Milliseconds from the first byte of an offer to the last byte of its event at its recipient, one after the other. Recipients take
    /// turns, and issuers, so that no mailbox and no share is ever full.
    pub(crate) async fn offers(
        &mut self,
        crowd: &Crowd,
        origin: &str,
        at: SocketAddr,
        count: usize,
    ) -> Result<Vec<f64>> {
        let mut issuer = TcpStream::connect(at).await?;
        issuer.set_nodelay(true)?;
        let (mut answers, mut took) = (Answers::default(), Vec::with_capacity(count));
        let recipients = self.open.len();
        for number in 0..count {
            let stream = number % recipients;
            let to = self.first + stream;
            let from = (to + 1 + number / recipients) % crowd.len();
            let request = crowd.offer(origin, from, to)?;
            let begun = Instant::now();
            issuer.write_all(&request).await?;
            let shown = async {
                event(&mut self.open[stream], b"event: offer").await?;
                Ok(begun.elapsed())
            };
            // At the same time: one that is refused never comes.
            let answered = async {
                let (status, body) = answers.answer(&mut issuer).await?;
                ensure!(status == 200, "an offer was answered with {status}: {}", String::from_utf8_lossy(&body));
                Ok(())
            };
            let (shown, ()) = tokio::try_join!(shown, answered)?;
            took.push(shown.as_nanos() as f64 / 1e6);
        }
        Ok(took)
    }
}

async fn open(crowd: &Crowd, origin: &str, at: SocketAddr, who: usize) -> Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    let last = u8::try_from(2 + who % ADDRESSES)?;
    socket.bind((Ipv4Addr::new(127, 0, 0, last), 0).into())?;
    let mut stream = socket.connect(at).await?;
    stream.write_all(&crowd.receive(origin, who, 0)?).await?;
    let mut head = Vec::new();
    while !head.windows(4).any(|four| four == b"\r\n\r\n") {
        ensure!(stream.read_buf(&mut head).await? > 0 && head.len() < EVENT_BYTES, "no stream was opened");
    }
    ensure!(head.starts_with(b"HTTP/1.1 200"), "no stream: {}", String::from_utf8_lossy(&head));
    Ok(stream)
}

/// Reads up to the end of an event of this name; comments before it are passed over.
async fn event(stream: &mut TcpStream, name: &[u8]) -> Result<()> {
    let mut seen = Vec::with_capacity(8192);
    loop {
        ensure!(stream.read_buf(&mut seen).await? > 0, "a stream was ended");
        ensure!(seen.len() < EVENT_BYTES, "no event came");
        let named = seen.windows(name.len()).any(|part| part == name);
        if named && seen.ends_with(b"\n\n\r\n") {
            return Ok(());
        }
    }
}
