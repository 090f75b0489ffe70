//! Callers over kept connections: each sends its next request when its last is answered, all of them on one thread. Requests are bytes that
//! somebody made; of an answer only the status is looked at.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use futures_util::future::try_join_all;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Longest answer: a page of nodes is 150 KiB.
const ANSWER_BYTES: usize = 1 << 20;

/// Where callers call.
#[derive(Clone)]
pub(crate) struct Door {
    pub(crate) address: SocketAddr,
    /// One for each caller in turn; none: plain.
    pub(crate) tls: Vec<TlsConnector>,
}

/// What calls have come to.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// Answers by status.
    pub(crate) answers: BTreeMap<u16, u64>,
    /// Microseconds from the first byte sent to the last byte received, for each write.
    pub(crate) took: Vec<f64>,
    pub(crate) seconds: f64,
}

impl Outcome {
    pub(crate) fn count(&self, status: u16) -> u64 {
        self.answers.get(&status).copied().unwrap_or(0)
    }

    /// All of these, or nothing counts.
    pub(crate) fn all(self, status: u16) -> Result<Self> {
        ensure!(self.answers.keys().all(|answered| *answered == status), "answers of another kind: {:?}", self.answers);
        Ok(self)
    }

    pub(crate) fn rate(&self) -> f64 {
        self.answers.values().sum::<u64>() as f64 / self.seconds
    }
}

/// How the callers call.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Manner {
    pub(crate) callers: usize,
    /// Requests that are sent in one write, before the answer to the first is read.
    pub(crate) depth: usize,
    pub(crate) time: Duration,
}

/// Calls until the time is over or there is no next request.
pub(crate) async fn drive(
    door: &Door,
    manner: Manner,
    next: impl FnMut() -> Option<Result<Vec<u8>>>,
) -> Result<Outcome> {
    drive_all(std::slice::from_ref(door), manner, next).await
}

/// The same over several doors, to which the callers come in turn.
pub(crate) async fn drive_all(
    doors: &[Door],
    manner: Manner,
    next: impl FnMut() -> Option<Result<Vec<u8>>>,
) -> Result<Outcome> {
    let (next, outcome) = (RefCell::new(next), RefCell::new(Outcome::default()));
    let mut connections = Vec::with_capacity(manner.callers);
    for number in 0..manner.callers {
        connections.push(connect(&doors[number % doors.len()], number / doors.len()).await?);
    }
    let begun = Instant::now();
    let callers = connections.into_iter().map(|connection| async {
        let mut connection = connection;
        let mut read = Answers::default();
        while begun.elapsed() < manner.time {
            let requests = std::iter::from_fn(|| (next.borrow_mut())()).take(manner.depth);
            let requests = requests.collect::<Result<Vec<_>>>()?;
            if requests.is_empty() {
                break;
            }
            let sent = Instant::now();
            connection.write_all(&requests.concat()).await?;
            connection.flush().await?;
            for _ in &requests {
                let status = read.status(&mut connection).await?;
                *outcome.borrow_mut().answers.entry(status).or_default() += 1;
            }
            outcome.borrow_mut().took.push(sent.elapsed().as_nanos() as f64 / 1e3);
        }
        anyhow::Ok(())
    });
    try_join_all(callers).await?;
    let mut outcome = outcome.into_inner();
    outcome.seconds = begun.elapsed().as_secs_f64();
    Ok(outcome)
}

trait Connection: AsyncRead + AsyncWrite + Unpin {}
impl<S: AsyncRead + AsyncWrite + Unpin> Connection for S {}

async fn connect(door: &Door, number: usize) -> Result<Box<dyn Connection>> {
    let stream = TcpStream::connect(door.address).await?;
    stream.set_nodelay(true)?;
    if door.tls.is_empty() {
        return Ok(Box::new(stream));
    }
    let name = ServerName::try_from("localhost")?;
    Ok(Box::new(door.tls[number % door.tls.len()].connect(name, stream).await?))
}

/// Reads answers one after the other.
#[derive(Default)]
pub(crate) struct Answers {
    buffer: Vec<u8>,
}

impl Answers {
    /// For answers of which this much was read already.
    pub(crate) fn begun(buffer: Vec<u8>) -> Self {
        Self { buffer }
    }

    /// The next answer's status; its body is dropped.
    pub(crate) async fn status(&mut self, from: &mut (impl AsyncRead + Unpin + ?Sized)) -> Result<u16> {
        let (status, body) = self.next(from).await?;
        self.buffer.drain(..body.end);
        Ok(status)
    }

    /// The next answer's status and body.
    pub(crate) async fn answer(&mut self, from: &mut (impl AsyncRead + Unpin + ?Sized)) -> Result<(u16, Vec<u8>)> {
        let (status, body) = self.next(from).await?;
        let text = self.buffer[body.clone()].to_vec();
        self.buffer.drain(..body.end);
        Ok((status, text))
    }

    /// Reads up to the end of an answer: its status, and where its body is.
    async fn next(&mut self, from: &mut (impl AsyncRead + Unpin + ?Sized)) -> Result<(u16, Range<usize>)> {
        let mut looked = 0;
        let head = loop {
            let found = self.buffer[looked..].windows(4).position(|four| four == b"\r\n\r\n");
            match found {
                Some(place) => break looked + place + 4,
                None => looked = self.buffer.len().saturating_sub(3),
            }
            self.more(from).await?;
        };
        let (status, length) = parse(&self.buffer[..head])?;
        ensure!(length <= ANSWER_BYTES, "an answer of {length} bytes");
        while self.buffer.len() < head + length {
            self.more(from).await?;
        }
        Ok((status, head..head + length))
    }

    async fn more(&mut self, from: &mut (impl AsyncRead + Unpin + ?Sized)) -> Result<()> {
        if self.buffer.capacity() - self.buffer.len() < 4096 {
            self.buffer.reserve(16_384);
        }
        ensure!(from.read_buf(&mut self.buffer).await? > 0, "the connection was ended");
        Ok(())
    }
}

/// Status and length of the body.
fn parse(head: &[u8]) -> Result<(u16, usize)> {
    let head = std::str::from_utf8(head)?;
    let mut lines = head.split("\r\n");
    let status = lines.next().and_then(|line| line.get(9..12)).context("an answer has a status")?.parse()?;
    for line in lines {
        let Some((name, value)) = line.split_once(':') else { continue };
        if name.eq_ignore_ascii_case("content-length") {
            return Ok((status, value.trim().parse()?));
        }
    }
    // 204 has none.
    if status == 204 { Ok((status, 0)) } else { bail!("an answer without a length: {head}") }
}

/// TLS 1.3 to a server whose certificate nobody looks at; with a client's own, where the server wants one.
pub(crate) fn tls(own: Option<(&[u8], &[u8])>) -> Result<TlsConnector> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody));
    let config = match own {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let chain = CertificateDer::pem_slice_iter(certificate).collect::<Result<_, _>>()?;
            builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(key)?)?
        }
    };
    Ok(TlsConnector::from(Arc::new(config)))
}

/// Who is at the other end of loopback is known.
#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let ring = rustls::crypto::ring::default_provider();
        ring.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[tokio::test]
    async fn answers_are_told_apart() {
        let text = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabcHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhiHTTP/1.1 503 x\r\ncontent-length: 0\r\n\r\nHTTP/1.1 204 x\r\n\r\n";
        let (mut from, mut answers) = (&text[..], Answers::default());
        assert_eq!(answers.status(&mut from).await.unwrap(), 200);
        assert_eq!(answers.answer(&mut from).await.unwrap(), (200, b"hi".to_vec()));
        assert_eq!(answers.status(&mut from).await.unwrap(), 503);
        assert_eq!(answers.status(&mut from).await.unwrap(), 204);
        assert!(answers.status(&mut from).await.is_err(), "there are no more");
    }
}
