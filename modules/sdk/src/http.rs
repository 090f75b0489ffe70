//! HTTP/1.1 over the connections that a node hands a module: [`serve`] inside a handler of [`crate::Routes::connection`] is all of it.
//!
//! The module has no network; bytes come and go as the bodies of one call. What every service on this machine's loopback owes is here: a
//! bound on the time and size of heads, and the check of `Host`, without which any page in the operator's browser could reach the service
//! under a name of its own that points here (DNS rebinding).

use std::time::Duration;

use axum::Router;
use axum::http::header::HOST;
use axum::http::uri::Authority;
use axum::http::{HeaderMap, Request as HttpRequest, StatusCode, Uri};
use axum::middleware::{Next, from_fn};
use axum::response::IntoResponse as _;
use bytes::Bytes;
use futures_util::StreamExt as _;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::AsyncReadExt as _;
use tokio_util::io::StreamReader;

use crate::body::{Body, BodySender};
use crate::error::{ModuleError, Status};
use crate::message::Request;

/// A head must have come after this long, the first as well as each after an answer.
const HEAD: Duration = Duration::from_secs(10);
/// An answer must be there after this long, the request's body included.
const ANSWER: Duration = Duration::from_secs(30);
/// Header fields of one request.
const HEADERS: usize = 64;
/// Bytes of a head, and of what is read ahead.
const BUFFER: usize = 16 * 1024;

/// The two ends of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ends {
    /// What was dialled.
    pub address: std::net::SocketAddr,
    /// From where.
    pub client: std::net::SocketAddr,
}

impl Ends {
    /// Those of a call that is a connection.
    ///
    /// # Errors
    /// `no-connection` for any other call.
    pub fn of(request: &Request) -> Result<Self, ModuleError> {
        let end = |name| request.params.get(name).parse();
        match (end("address"), end("client")) {
            (Ok(address), Ok(client)) => Ok(Self { address, client }),
            _ => Err(ModuleError::bad_request("no-connection", "this call is no connection")),
        }
    }

    /// Whether a `Host` names what was dialled: the address itself, or `localhost` with its port.
    fn is_host(&self, host: &str) -> bool {
        let Ok(authority) = host.parse::<Authority>() else { return false };
        let port = authority.port_u16().unwrap_or(80);
        let name = authority.host();
        let is_address = name.trim_matches(['[', ']']).parse() == Ok(self.address.ip());
        let is_plain = !host.contains('@');
        is_plain && port == self.address.port() && (is_address || name.eq_ignore_ascii_case("localhost"))
    }
}

/// Answers the requests of one connection with `router`, which finds [`Ends`] among the extensions of each.
///
/// # Errors
/// `no-connection` for a call that is none.
pub fn serve(request: Request, router: Router) -> Result<crate::Response, ModuleError> {
    let ends = Ends::of(&request)?;
    let router = router.layer(from_fn(move |mut request: HttpRequest<axum::body::Body>, next: Next| {
        let ends = ends.clone();
        async move {
            if let Err(refusal) = check_host(&ends, request.headers(), request.uri()) {
                return refusal.into_response();
            }
            request.extensions_mut().insert(ends);
            match tokio::time::timeout(ANSWER, next.run(request)).await {
                Ok(answer) => answer,
                Err(_) => (StatusCode::REQUEST_TIMEOUT, "the request took too long\n").into_response(),
            }
        }
    }));
    let body = Body::produced(move |sender| connection(request.body, router, sender));
    Ok(crate::Response::new(Status::Ok, "", body))
}

fn check_host(ends: &Ends, headers: &HeaderMap, uri: &Uri) -> Result<(), (StatusCode, &'static str)> {
    let mut hosts = headers.get_all(HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else {
        return Err((StatusCode::BAD_REQUEST, "one Host is needed\n"));
    };
    let is_host = host.to_str().is_ok_and(|host| ends.is_host(host));
    let is_target = uri.authority().is_none_or(|authority| ends.is_host(authority.as_str()));
    if is_host && is_target {
        return Ok(());
    }
    let said =
        "this is served under its address alone: Host must be that address and port, or localhost with the port\n";
    Err((StatusCode::MISDIRECTED_REQUEST, said))
}

/// Runs as far as the node reads, and ends with it.
async fn connection(from: Body, router: Router, to: BodySender) {
    let reader = StreamReader::new(from.map(|piece| piece.map_err(std::io::Error::other)));
    let (writer, mut written) = tokio::io::duplex(BUFFER);
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_headers(HEADERS)
        .max_buf_size(BUFFER)
        .half_close(true)
        .serve_connection(TokioIo::new(tokio::io::join(reader, writer)), TowerToHyperService::new(router));
    let sending = async {
        let mut piece = vec![0; BUFFER];
        while let Ok(count @ 1..) = written.read(&mut piece).await {
            if to.send(Bytes::copy_from_slice(&piece[..count])).await.is_err() {
                return;
            }
        }
    };
    // What the client did wrong, it was told; the connection's end is all that follows.
    let (_, ()) = tokio::join!(serving, sending);
    to.finish().await;
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::sync::Arc;

    use axum::routing::get;

    use super::*;
    use crate::{Context, Manifest, Module, Response, Routes, TestHost};

    struct Site;

    impl Module for Site {
        fn manifest(&self) -> Manifest {
            Manifest { id: "site", version: "1", summary: "for tests" }
        }

        fn routes(routes: &mut Routes<Self>) {
            routes.connection(Self::connected);
        }
    }

    impl Site {
        async fn connected(self: Arc<Self>, _: Context, request: Request) -> Result<Response, ModuleError> {
            let client = |axum::Extension(ends): axum::Extension<Ends>| async move { ends.client.to_string() };
            serve(request, Router::new().route("/client", get(client)))
        }
    }

    async fn said(text: &str) -> String {
        let host = TestHost::start(1, Site).await;
        let answer = host.connect(Body::whole(text.to_owned())).await;
        assert_eq!(answer.status, Status::Ok);
        String::from_utf8(answer.body.collect(1 << 20).await.unwrap().to_vec()).unwrap()
    }

    #[tokio::test]
    async fn requests_of_one_connection_are_answered_in_turn() {
        let one = "GET /client HTTP/1.1\r\nHost: 127.0.0.1:9000\r\n\r\n";
        let two = "GET /nothing HTTP/1.1\r\nHost: localhost:9000\r\nConnection: close\r\n\r\n";
        let said = said(&format!("{one}{two}")).await;
        assert!(said.starts_with("HTTP/1.1 200") && said.contains("127.0.0.1:40000"), "{said}");
        assert!(said.contains("HTTP/1.1 404"), "{said}");
    }

    #[tokio::test]
    async fn another_host_is_refused_and_so_is_none() {
        for host in [
            "evil.example",
            "evil.example:9000",
            "127.0.0.1",
            "127.0.0.1:9001",
            "127.0.0.2:9000",
            "a@127.0.0.1:9000",
            "localhost.evil.example:9000",
            "[::1]:9000",
            "",
        ] {
            let said = said(&format!("GET /client HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")).await;
            assert!(said.starts_with("HTTP/1.1 421"), "{host}: {said}");
        }
        for bad in ["", "Host: 127.0.0.1:9000\r\nHost: 127.0.0.1:9000\r\n"] {
            let said = said(&format!("GET /client HTTP/1.1\r\n{bad}Connection: close\r\n\r\n")).await;
            assert!(said.starts_with("HTTP/1.1 400"), "{said}");
        }
        let said = said("GET http://evil.example/client HTTP/1.1\r\nHost: 127.0.0.1:9000\r\nConnection: close\r\n\r\n");
        assert!(said.await.starts_with("HTTP/1.1 421"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_that_does_not_come_ends_the_connection() {
        let host = TestHost::start(1, Site).await;
        let (sender, sends) = Body::channel();
        sender.send(Bytes::from_static(b"GET /client HTTP/1.1\r\nHo")).await.unwrap();
        let answer = host.connect(sends).await;
        // Returns because the connection ends, although the client says no more.
        let said = answer.body.collect(1 << 20).await.unwrap();
        assert!(said.is_empty() || said.starts_with(b"HTTP/1.1 408"), "{said:?}");
    }

    #[tokio::test]
    async fn garbage_and_heads_without_end_are_refused() {
        for garbage in
            ["\0\0\0\0garbage\r\n\r\n".to_owned(), format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(40_000))]
        {
            let said = said(&garbage).await;
            assert!(said.is_empty() || said.starts_with("HTTP/1.1 4"), "{said}");
        }
        let many = "X: 1\r\n".repeat(100);
        let said = said(&format!("GET /client HTTP/1.1\r\nHost: 127.0.0.1:9000\r\n{many}\r\n")).await;
        assert!(said.starts_with("HTTP/1.1 431"), "{said}");
    }
}
