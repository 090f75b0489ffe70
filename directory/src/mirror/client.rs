//! The mirror's side of HTTP: one connection to the mirrored directory, opened again when it ends; signed requests, bounded answers, deadlines.
//! The name was looked up before the cage closed; nothing else is ever called.

use std::net::{SocketAddr, ToSocketAddrs as _};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Request, Response, StatusCode, body::Incoming, header};
use hyper_util::rt::TokioIo;
use openred_proto::http_signature::SignatureInput;
use openred_proto::id::{NodeId, UnixMillis};
use rustls::pki_types::ServerName;
use serde::de::DeserializeOwned;
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::UpstreamAddress;
use crate::api::problem::ProblemDocument;
use crate::error::{Error, Result};
use crate::identity::Identity;

/// Addresses of one host that are tried, one after the other.
const ADDRESSES: usize = 4;
/// A connection, with its TLS, must stand after this long.
const CONNECT_TIME: Duration = Duration::from_secs(5);
/// An answer must be there after this long, besides what it was asked to wait.
const ANSWER_TIME: Duration = Duration::from_secs(30);
/// Longest answer: a page of the longest cards in base64.
const ANSWER_BYTES: usize = 4 * 1024 * 1024;
/// An answer to wait for is never longer away than this.
const LONGEST_RETRY: Duration = Duration::from_secs(60);

/// Where the mirrored directory is, found before the cage closes.
#[derive(Clone)]
pub struct Target {
    /// Its id and origin.
    pub address: UpstreamAddress,
    addresses: Vec<SocketAddr>,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    host: String,
}

impl std::fmt::Debug for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Target({})", self.address)
    }
}

impl Target {
    /// Looks the name up, reads the certificates; empty: those of the web.
    ///
    /// # Errors
    /// A file that cannot be used, a name that is not known.
    pub fn open(address: UpstreamAddress, certificates: &Path) -> Result<Self> {
        let unfit = Error::Misuse("mirror.of is not an address that can be called");
        let Ok(url) = url::Url::parse(&address.origin) else { return Err(unfit) };
        let (Some(host), Some(port)) = (url.host_str(), url.port_or_known_default()) else { return Err(unfit) };
        let name = host.trim_matches(['[', ']']).to_owned();
        let unknown = |source| Error::LocalUpstreamHost { host: name.clone(), source };
        let addresses: Vec<_> = (name.as_str(), port).to_socket_addrs().map_err(unknown)?.take(ADDRESSES).collect();
        if addresses.is_empty() {
            return Err(unknown(std::io::ErrorKind::NotFound.into()));
        }
        let tls = if url.scheme() == "https" {
            let server = ServerName::try_from(name.clone()).map_err(|_| unfit)?;
            Some((TlsConnector::from(Arc::new(tls_config(certificates)?)), server))
        } else {
            None
        };
        let host = url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
        Ok(Self { address, addresses, tls, host })
    }

    /// The port that the cage has to let through.
    #[must_use]
    pub fn port(&self) -> Option<u16> {
        self.addresses.first().map(SocketAddr::port)
    }
}

/// Whom the mirrored directory's certificate must come from.
///
/// # Errors
/// The file cannot be used.
pub fn tls_config(certificates: &Path) -> Result<rustls::ClientConfig> {
    if !certificates.as_os_str().is_empty() {
        return crate::secrets::trusting(certificates, "mirror.certificates");
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.map_err(|_| Error::Misuse("this build speaks no TLS version"))?;
    let roots = rustls::RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unanswered {
    /// Nobody, or nobody in time.
    #[error("{0}")]
    Away(&'static str),
    /// It refuses, and perhaps says when to come again.
    #[error("it refuses ({code}): {help}")]
    Refused { code: String, help: String, after: Option<Duration> },
}

/// Asks the mirrored directory.
pub(super) struct Client {
    target: Target,
    connection: Option<SendRequest<Full<Bytes>>>,
    /// Milliseconds to add to this machine's clock to get its.
    offset: i64,
}

impl Client {
    pub(super) const fn new(target: Target) -> Self {
        Self { target, connection: None, offset: 0 }
    }

    pub(super) const fn id(&self) -> NodeId {
        self.target.address.id
    }

    /// A signed call; the answer may take `wait` longer than others.
    pub(super) async fn get<T: DeserializeOwned>(
        &mut self,
        identity: &Identity,
        now: UnixMillis,
        path: &str,
        wait: Duration,
    ) -> std::result::Result<T, Unanswered> {
        let deadline = wait + ANSWER_TIME;
        let asked = async {
            match self.ask(identity, now, path).await {
                Err((_, Some(theirs))) => {
                    self.offset = i64::try_from(theirs).unwrap_or(i64::MAX).saturating_mul(1000)
                        - i64::try_from(now.0).unwrap_or(i64::MAX);
                    self.ask(identity, now, path).await.map_err(|(why, _)| why)
                }
                answered => answered.map_err(|(why, _)| why),
            }
        };
        let answered =
            tokio::time::timeout(deadline, asked).await.unwrap_or(Err(Unanswered::Away("no answer in time")));
        if matches!(answered, Err(Unanswered::Away(_))) {
            self.connection = None;
        }
        answered
    }

    /// One try; with the other clock's time where that is what it refuses for.
    async fn ask<T: DeserializeOwned>(
        &mut self,
        identity: &Identity,
        now: UnixMillis,
        path: &str,
    ) -> std::result::Result<T, (Unanswered, Option<u64>)> {
        let away = |why| (Unanswered::Away(why), None);
        let request = self.request(identity, now, path).map_err(away)?;
        let connection = self.connected().await.map_err(away)?;
        let response = connection.send_request(request).await.map_err(|_| away("the connection broke"))?;
        let (status, after) = (response.status(), retry_after(&response));
        let body = Limited::new(response.into_body(), ANSWER_BYTES).collect().await;
        let body = body.map_err(|_| away("the answer broke off, or is too long"))?.to_bytes();
        if status.is_success() {
            return serde_json::from_slice(&body).map_err(|_| away("the answer is not the expected JSON"));
        }
        let Ok(problem) = serde_json::from_slice::<ProblemDocument>(&body) else {
            return Err(away("it refuses without a problem document; is this a directory?"));
        };
        let theirs = problem.now.filter(|_| status == StatusCode::UNAUTHORIZED && problem.code == "signature.clock");
        Err((Unanswered::Refused { code: problem.code, help: problem.help, after }, theirs))
    }

    fn request(
        &self,
        identity: &Identity,
        now: UnixMillis,
        path: &str,
    ) -> std::result::Result<Request<Full<Bytes>>, &'static str> {
        let mut nonce = [0; 16];
        getrandom::fill(&mut nonce).map_err(|_| "the kernel gives no random bytes")?;
        let input = SignatureInput {
            method: "GET".to_owned(),
            target_uri: format!("{}{path}", self.target.address.origin),
            content_sha256: Sha256::digest([]).into(),
            created: UnixMillis(now.0.saturating_add_signed(self.offset)).seconds(),
            nonce,
            key_id: identity.id(),
        };
        let request = Request::get(path)
            .header(header::HOST, &self.target.host)
            .header("content-digest", input.content_digest())
            .header("signature-input", input.signature_input_header())
            .header("signature", identity.sign_http(&input));
        request.body(Full::new(Bytes::new())).map_err(|_| "mirror.of is not an address that can be called")
    }

    async fn connected(&mut self) -> std::result::Result<&mut SendRequest<Full<Bytes>>, &'static str> {
        let usable = match &mut self.connection {
            // The other side may have closed it since the last answer.
            Some(connection) => connection.ready().await.is_ok(),
            None => false,
        };
        if !usable {
            let connecting = tokio::time::timeout(CONNECT_TIME, connect(&self.target));
            self.connection = Some(connecting.await.unwrap_or(Err("it does not take the connection in time"))?);
        }
        self.connection.as_mut().ok_or("no connection")
    }
}

fn retry_after(response: &Response<Incoming>) -> Option<Duration> {
    let seconds = response.headers().get(header::RETRY_AFTER)?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_secs(seconds).min(LONGEST_RETRY))
}

async fn connect(target: &Target) -> std::result::Result<SendRequest<Full<Bytes>>, &'static str> {
    for address in &target.addresses {
        let Ok(stream) = TcpStream::connect(address).await else { continue };
        // A failure here is a connection that ends: the request tells.
        let _ = stream.set_nodelay(true);
        return match &target.tls {
            None => speak(stream).await,
            Some((tls, name)) => {
                let stream = tls.connect(name.clone(), stream).await;
                speak(stream.map_err(|_| "its certificate is not trusted, or it speaks no TLS (mirror.certificates)")?)
                    .await
            }
        };
    }
    Err("nobody takes the connection")
}

async fn speak(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
) -> std::result::Result<SendRequest<Full<Bytes>>, &'static str> {
    let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(|_| "it does not speak HTTP")?;
    // It ends with the sender or the socket, and the sender tells.
    tokio::spawn(async move { drop(connection.await) });
    Ok(sender)
}
