//! Garbage, oversized, truncated and slow bytes on each route, in-process and over real sockets: a clear refusal, a bounded
//! wait, and the next honest request answered.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use openred_directory::api::Document;
use openred_directory::api::signed::Peer;
use openred_directory::config::Config;
use openred_directory::serve::{Service, serve};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use utoipa::OpenApi as _;

use crate::fixture::{Node, ORIGIN, Reply, TestDirectory, request};

const POSTS: [(&str, usize); 3] = [
    ("/api/v3/nodes/register", 8 * 1024),
    ("/api/v3/tokens/request-connection", 16 * 1024),
    ("/api/v3/tokens/acknowledge", 4 * 1024),
];

#[tokio::test]
async fn bodies_that_are_not_what_the_route_takes() {
    let (test, node) = (TestDirectory::new(), Node::new(1));
    test.register(&node).await;
    for (path, limit) in POSTS {
        let bodies: [&[u8]; 9] = [
            b"",
            b"{",
            b"[]",
            b"null",
            b"\xff\xfe\x00",
            b"{\"card\":7,\"offer\":7,\"receipt\":7}",
            b"{\"card\":\"AA==\",\"offer\":\"AA==\",\"receipt\":\"AA==\"}",
            b"{\"card\":\"%%%\"}",
            &vec![b'['; limit],
        ];
        for body in bodies {
            let reply = test.call(&node, "POST", path, body.to_vec()).await;
            assert_eq!(reply.refusal(), (400, "body.malformed".into()), "{path} {:?}", &body[..body.len().min(40)]);
        }
        let reply = test.call(&node, "POST", path, vec![b'x'; limit + 1]).await;
        assert_eq!(reply.refusal(), (413, "body.too-large".into()), "{path}");
    }
    let reply = test.call(&node, "GET", "/api/v3/tokens/receive", b"body".to_vec()).await;
    assert_eq!(reply.refusal(), (413, "body.too-large".into()));
}

/// A body of these pieces, then silence for ever or an error.
fn body_of(pieces: Vec<Bytes>, then_fails: bool) -> Body {
    let stream = futures_util::stream::unfold(pieces.into_iter(), move |mut rest| async move {
        match rest.next() {
            Some(piece) => Some((Ok(piece), rest)),
            None if then_fails => Some((Err(std::io::Error::from(std::io::ErrorKind::ConnectionReset)), rest)),
            None => std::future::pending().await,
        }
    });
    Body::from_stream(stream)
}

#[tokio::test(start_paused = true)]
async fn bodies_that_stop_or_never_end() {
    let (test, node) = (TestDirectory::new(), Node::new(1));
    for (path, limit) in POSTS {
        let input = node.input("POST", &format!("{ORIGIN}{path}"), b"", test.now().seconds());
        let send = async |body: Body| {
            let (parts, _) = request("POST", path, &node.sign_input(&input), Vec::new()).into_parts();
            Reply::read(test.send(axum::http::Request::from_parts(parts, body)).await).await
        };
        let piece = Bytes::from_static(b"{\"card\":");
        let before = tokio::time::Instant::now();
        let slow = send(body_of(vec![piece.clone()], false)).await;
        assert_eq!(slow.refusal(), (408, "body.slow".into()), "{path}");
        assert!(before.elapsed() < Duration::from_secs(11));
        assert_eq!(send(body_of(vec![piece], true)).await.refusal(), (400, "body.incomplete".into()), "{path}");
        let endless = vec![Bytes::from(vec![b'x'; 1024]); limit / 1024 + 1];
        assert_eq!(send(body_of(endless, false)).await.refusal(), (413, "body.too-large".into()), "{path}");
    }
}

#[tokio::test]
async fn unknown_calls_and_methods_and_the_document() {
    let test = TestDirectory::new();
    for path in ["/", "/api/v3", "/api/v2/health", "/api/v3/nodes", "/api/v3/nodes/a/b", "/api/v3/../health", "/%00"] {
        assert_eq!(test.get(path).await.refusal(), (404, "request.unknown".into()), "{path}");
    }
    let document: serde_json::Value = test.get("/api/v3/openapi.json").await.ok();
    assert_eq!(document, serde_json::to_value(Document::openapi()).unwrap());
    let paths = document["paths"].as_object().unwrap();
    assert_eq!(paths.len(), 8, "{:?}", paths.keys());
    for (path, operations) in paths {
        let path = path.replace("{id}", &Node::new(1).id().to_string());
        let reply = Reply::read(test.send(request("DELETE", &path, &[], Vec::new())).await).await;
        assert_eq!(reply.refusal(), (405, "request.method".into()), "{path}");
        for method in operations.as_object().unwrap().keys() {
            let method = method.to_uppercase();
            let reply = Reply::read(test.send(request(&method, &path, &[], Vec::new())).await).await;
            assert!(![404, 405].contains(&reply.status) || reply.code() == "node.unknown", "{method} {path}");
        }
    }
}

#[tokio::test]
async fn metrics_are_for_this_machine() {
    let mut config = Config::default();
    let test = TestDirectory::with(&config);
    let from = async |test: &TestDirectory, address: &str| {
        let mut request = request("GET", "/api/v3/metrics", &[], Vec::new());
        request.extensions_mut().insert(Peer(address.parse().unwrap()));
        Reply::read(test.send(request).await).await
    };
    assert_eq!(from(&test, "192.0.2.1:9").await.refusal(), (403, "metrics.remote".into()));
    assert_eq!(test.get("/api/v3/metrics").await.code(), "metrics.remote", "an unknown caller is not this machine");
    let here = from(&test, "127.0.0.1:9").await;
    let text = String::from_utf8(here.body).unwrap();
    assert!(text.contains("\nopenred_directory_answers_total{class=\"4xx\"} 2\n"), "{text}");
    config.behind_proxy = true;
    let proxied = TestDirectory::with(&config);
    assert_eq!(from(&proxied, "127.0.0.1:9").await.code(), "metrics.remote");
}

#[tokio::test]
async fn look_ups_of_one_address_are_limited() {
    let mut config = Config::default();
    *config.limits.requests_burst.get_mut() = 3;
    let test = TestDirectory::with(&config);
    let ask = async |path: &str, address: &str| {
        let mut request = request("GET", path, &[], Vec::new());
        request.extensions_mut().insert(Peer(address.parse().unwrap()));
        Reply::read(test.send(request).await).await.status
    };
    for _ in 0..3 {
        assert_eq!(from("[2001:db8::1]:9").await, 200);
    }
    assert_eq!(from("[2001:db8::2]:9").await, 429, "the same /64");
    let node = format!("/api/v3/nodes/{}", Node::new(1).id());
    for path in [node.as_str(), "/api/v3/health", "/api/v3/openapi.json"] {
        assert_eq!(ask(path, "[2001:db8::3]:9").await, 429, "{path}");
    }
    assert_eq!(from("[2001:db8:0:1::1]:9").await, 200);
    for _ in 0..9 {
        assert_eq!(from("127.0.0.1:9").await, 200);
    }
}

/// Serves a directory on a real socket.
async fn listening(connections: u32) -> (TestDirectory, SocketAddr) {
    let test = TestDirectory::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let service = Service { listener, tls: None, router: test.router.clone(), connections };
    tokio::spawn(serve(Arc::clone(&test.directory), service));
    (test, address)
}

/// Sends bytes and reads until the other side closes.
async fn exchange(address: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    // It may close before it has read all of it.
    let _ = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

const HEALTH: &[u8] = b"GET /api/v3/health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";

async fn is_well(address: SocketAddr) {
    let answer = exchange(address, HEALTH).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.to_ascii_lowercase().contains("\r\ndate: "), "every answer carries Date");
}

#[tokio::test]
async fn garbage_heads_are_refused_and_others_unharmed() {
    let (_test, address) = listening(64).await;
    let many: String = (0..200).map(|number| format!("x-{number}: y\r\n")).collect();
    let long = format!("GET /{} HTTP/1.1\r\nhost: x\r\n\r\n", "a".repeat(100_000));
    let heads: [&[u8]; 7] = [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/9.9\r\n\r\n",
        b"\0\0\0\0\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"POST /api/v3/nodes/register HTTP/1.1\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello",
        long.as_bytes(),
        &[b"GET / HTTP/1.1\r\n", many.as_bytes(), b"\r\n"].concat(),
    ];
    for head in heads {
        let answer = exchange(address, head).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
        is_well(address).await;
    }
}

#[tokio::test]
async fn a_truncated_body_over_a_socket_ends_and_harms_nobody() {
    let (test, address) = listening(64).await;
    let node = Node::new(1);
    for (path, _) in POSTS {
        let input = node.input("POST", &format!("{ORIGIN}{path}"), b"", test.now().seconds());
        let headers: String =
            node.sign_input(&input).iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let head = format!("POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 500\r\n{headers}\r\n{{\"card\"");
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400"), "{answer}");
        is_well(address).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_head_is_cut() {
    let (test, address) = listening(64).await;
    let before = tokio::time::Instant::now();
    let answer = exchange(address, b"GET /api/v3/health HT").await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 408"), "{answer}");
    assert!(before.elapsed() >= Duration::from_secs(10));
    while test.directory.metrics.connections_open.get() > 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn connections_over_the_cap_are_closed_at_once() {
    let (test, address) = listening(2).await;
    let one = TcpStream::connect(address).await.unwrap();
    let two = TcpStream::connect(address).await.unwrap();
    while test.directory.metrics.connections_open.get() < 2 {
        tokio::task::yield_now().await;
    }
    assert_eq!(exchange(address, b"").await, "");
    assert_eq!(test.directory.metrics.connections_refused.get(), 1);
    drop((one, two));
    while test.directory.metrics.connections_open.get() > 0 {
        tokio::task::yield_now().await;
    }
    is_well(address).await;
}
