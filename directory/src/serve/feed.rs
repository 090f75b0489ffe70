//! A connection that has become a stream of events: from then on it is nobody else's, so the HTTP machinery (two buffers of 8 KiB and
//! its state) is let go of, and what is left is the socket, the body and its timers (docs/decisions/0062).
//!
//! The body comes from the API as any other; here it is written in chunks (RFC 9112 §7.1) until it ends, the peer goes, or the peer
//! does not take what is written ([`super::unstalled`]). The connection ends with the stream, and its head says so.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use axum::body::Body;
use axum::http::{Method, Request, Response, StatusCode, Version, header};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// The media type of streams.
const EVENTS: &[u8] = b"text/event-stream";
/// What a peer says in the middle of a stream is not looked at; a look at it tells when the peer goes.
const OVERHEARD: usize = 16;

/// Whether the answer to a request can be written here: the chunks are HTTP/1.1's, and the head of a HEAD has no body.
pub(super) fn fits(request: &Request<Incoming>) -> bool {
    request.method() == Method::GET && request.version() == Version::HTTP_11
}

/// Whether an answer is a stream of events.
pub(super) fn is_stream(response: &Response<Body>) -> bool {
    let kind = response.headers().get(header::CONTENT_TYPE);
    response.status() == StatusCode::OK && kind.is_some_and(|kind| kind.as_bytes().starts_with(EVENTS))
}

/// Where a request leaves the answer that is to be written here.
#[derive(Clone, Default)]
pub(super) struct Left(Arc<Mutex<Option<Response<Body>>>>);

impl Left {
    pub(super) fn leave(&self, response: Response<Body>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(response);
    }

    pub(super) fn take(&self) -> Option<Response<Body>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// Writes a stream to its end.
///
/// # Errors
/// The connection's.
pub(super) async fn feed(mut peer: impl AsyncRead + AsyncWrite + Unpin, response: Response<Body>) -> io::Result<()> {
    peer.write_all(&head(&response)).await?;
    let mut body = response.into_body();
    let (mut overheard, mut listens) = ([0; OVERHEARD], true);
    loop {
        let frame = tokio::select! {
            frame = body.frame() => frame,
            heard = peer.read(&mut overheard), if listens => {
                if heard? == 0 {
                    return Ok(());
                }
                listens = false;
                continue;
            }
        };
        let Some(Ok(frame)) = frame else { break };
        // Nothing but bytes: an empty chunk would be the last.
        let Some(bytes) = frame.into_data().ok().filter(|bytes| !bytes.is_empty()) else { continue };
        let mut chunk = format!("{:x}\r\n", bytes.len()).into_bytes();
        chunk.extend_from_slice(&bytes);
        chunk.extend_from_slice(b"\r\n");
        peer.write_all(&chunk).await?;
    }
    peer.write_all(b"0\r\n\r\n").await?;
    peer.shutdown().await
}

fn head(response: &Response<Body>) -> Vec<u8> {
    let mut head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\nconnection: close\r\n".to_vec();
    for (name, value) in response.headers() {
        head.extend_from_slice(name.as_str().as_bytes());
        head.extend_from_slice(b": ");
        head.extend_from_slice(value.as_bytes());
        head.extend_from_slice(b"\r\n");
    }
    let date = httpdate::fmt_http_date(std::time::SystemTime::now());
    head.extend_from_slice(format!("date: {date}\r\n\r\n").as_bytes());
    head
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::convert::Infallible;

    use futures_util::stream;

    use super::*;

    fn response(body: Body) -> Response<Body> {
        let response = Response::builder().header(header::CONTENT_TYPE, "text/event-stream").body(body).unwrap();
        assert!(is_stream(&response));
        response
    }

    #[tokio::test]
    async fn a_stream_is_written_in_chunks_and_ends_the_connection() {
        let (near, mut far) = tokio::io::duplex(1024);
        let events = ["data: 1\n\n", "", "data: 2\n\n"].map(Ok::<_, Infallible>);
        feed(near, response(Body::from_stream(stream::iter(events)))).await.unwrap();
        let mut text = String::new();
        far.read_to_string(&mut text).await.unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\nconnection: close\r\n"), "{head}");
        assert!(head.contains("\r\ncontent-type: text/event-stream\r\ndate: "), "{head}");
        assert_eq!(body, "9\r\ndata: 1\n\n\r\n9\r\ndata: 2\n\n\r\n0\r\n\r\n", "nothing ends it early");
    }

    #[tokio::test]
    async fn a_peer_that_goes_ends_the_stream() {
        let (near, far) = tokio::io::duplex(1024);
        let silent = Body::from_stream(stream::pending::<Result<&str, Infallible>>());
        let fed = tokio::spawn(feed(near, response(silent)));
        drop(far);
        // In order, or while its head was written: it ends.
        let _ = fed.await.unwrap();
    }

    #[test]
    fn refusals_and_other_answers_are_no_streams() {
        let refused = Response::builder().status(503).header(header::CONTENT_TYPE, "text/event-stream");
        assert!(!is_stream(&refused.body(Body::empty()).unwrap()));
        assert!(!is_stream(&Response::new(Body::empty())));
    }
}
