//! Garbage, oversized, truncated and slow bytes on each route, in-process and over real sockets: a clear refusal, a bounded
//! wait, and the next honest request answered.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use openred_directory::api::Document;
use openred_directory::api::problem::ProblemDocument;
use openred_directory::api::signed::Peer;
use openred_directory::config::Config;
use openred_directory::serve::{Service, serve};
use openred_proto::http_signature::SignatureInput;
use openred_proto::id::UnixMillis;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use utoipa::OpenApi as _;

use crate::fixture::{Node, ORIGIN, Reply, TestDirectory, json, request};

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

/// Each signed call with a body limit, and a body that it would read to the end.
fn signed_calls(node: &Node, now: UnixMillis) -> [(&'static str, &'static str, usize, Vec<u8>); 4] {
    let card = json("card", &node.sign_card(&node.card(now)));
    let [(register, most_card), (offer, most_offer), (acknowledge, most_receipt)] = POSTS;
    [
        ("POST", register, most_card, card),
        ("POST", offer, most_offer, json("offer", &node.offer(&Node::new(2).id(), now, 1))),
        ("POST", acknowledge, most_receipt, json("receipt", &node.receipt(&Node::new(2).id(), b"", now))),
        ("GET", "/api/v3/tokens/receive?wait=0", 0, Vec::new()),
    ]
}

#[tokio::test(start_paused = true)]
async fn signed_bodies_that_are_slow_broken_or_too_long_have_their_code_and_use_nothing_up() {
    let (test, node) = (TestDirectory::new(), Node::new(1));
    test.register(&node).await;
    for (method, path, limit, whole) in signed_calls(&node, test.now()) {
        let signed = |body: &[u8]| node.input(method, &format!("{ORIGIN}{path}"), body, test.now().seconds());
        let honest = signed(&whole);
        let send = async |input: &SignatureInput, body: Body| {
            let (parts, _) = request(method, path, &node.sign_input(input), Vec::new()).into_parts();
            Reply::read(test.send(axum::http::Request::from_parts(parts, body)).await).await
        };
        let half = || match &whole[..whole.len() / 2] {
            [] => Vec::new(),
            half => vec![Bytes::copy_from_slice(half)],
        };
        let before = tokio::time::Instant::now();
        let slow = send(&honest, body_of(half(), false)).await;
        assert_eq!(slow.refusal(), (408, "body.slow".into()), "{path}");
        assert!(before.elapsed() >= Duration::from_secs(10), "it had its whole time");
        assert_eq!(send(&honest, body_of(half(), true)).await.refusal(), (400, "body.incomplete".into()), "{path}");
        for length in [limit + 1, limit + 100_000] {
            let long = vec![b' '; length];
            let announced = test.call(&node, method, path, long.clone()).await;
            assert_eq!(announced.refusal(), (413, "body.too-large".into()), "{path} {length}");
            let pieces = long.chunks(1000).map(Bytes::copy_from_slice).collect();
            let streamed = send(&signed(&long), body_of(pieces, false)).await;
            assert_eq!(streamed.refusal(), (413, "body.too-large".into()), "{path} {length}");
        }
        let answered = send(&honest, Body::from(whole)).await;
        let code = if answered.status == 200 { String::new() } else { answered.code() };
        assert!(!code.starts_with("signature.") && !code.starts_with("body."), "{path}: {code}");
    }
}

#[tokio::test]
async fn signed_garbage_has_its_code_on_each_call() {
    let (test, node) = (TestDirectory::new(), Node::new(1));
    test.register(&node).await;
    let mut random = 1_u64;
    let mut garbage = |length: usize| -> Vec<u8> {
        let next = |_| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            random.to_be_bytes()[0]
        };
        (0..length).map(next).collect()
    };
    for (method, path, limit, _) in signed_calls(&node, test.now()) {
        for length in [1, 2, 100, limit].into_iter().filter(|length| *length > 0) {
            let reply = test.call(&node, method, path, garbage(length)).await;
            let expected = if length > limit { (413, "body.too-large") } else { (400, "body.malformed") };
            assert_eq!(reply.refusal(), (expected.0, expected.1.into()), "{path} {length}");
        }
    }
    let malformed = [("card", "card.malformed"), ("offer", "offer.malformed"), ("receipt", "receipt.malformed")];
    for ((path, limit), (field, code)) in POSTS.into_iter().zip(malformed) {
        for length in [0, 1, 200, limit * 3 / 4 - 30] {
            let reply = test.call(&node, "POST", path, json(field, &garbage(length))).await;
            assert_eq!(reply.refusal(), (422, code.into()), "{path} {length}");
        }
        let padded = format!("{{\"{field}\":\"AAAA=\"}}");
        let reply = test.call(&node, "POST", path, padded.into_bytes()).await;
        let problem: ProblemDocument = serde_json::from_slice(&reply.body).unwrap();
        assert_eq!(
            (reply.code().as_str(), problem.detail.as_str()),
            ("body.malformed", "not standard base64"),
            "{path}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn calls_without_a_body_read_none() {
    let (test, node) = (TestDirectory::new(), Node::new(1));
    test.register(&node).await;
    let known = format!("/api/v3/nodes/{}", node.id());
    let before = tokio::time::Instant::now();
    for path in [known.as_str(), "/api/v3/nodes/discover", "/api/v3/health", "/api/v3/openapi.json"] {
        for body in [body_of(Vec::new(), false), body_of(Vec::new(), true), Body::from(vec![0xFF; 1 << 20])] {
            let (mut parts, _) = request("GET", path, &[], Vec::new()).into_parts();
            parts.headers.insert("content-length", "99999999".parse().unwrap());
            let reply = Reply::read(test.send(axum::http::Request::from_parts(parts, body)).await).await;
            assert_eq!(reply.status, 200, "{path}");
        }
    }
    assert_eq!(before.elapsed(), Duration::ZERO);
}

#[tokio::test]
async fn signed_garbage_and_too_long_bodies_over_a_socket() {
    let (test, address) = listening(64).await;
    let node = Node::new(1);
    for (method, path, limit, _) in signed_calls(&node, test.now()) {
        for (length, status, code) in [(limit.min(50), "400", "body.malformed"), (limit + 1, "413", "body.too-large")] {
            if length == 0 {
                continue;
            }
            let body = vec![0xFF; length];
            let input = node.input(method, &format!("{ORIGIN}{path}"), &body, test.now().seconds());
            let headers: String =
                node.sign_input(&input).iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
            let head = format!(
                "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n{headers}\r\n"
            );
            let answer = exchange(address, &[head.as_bytes(), &body].concat()).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{path} {answer}");
            assert!(answer.contains(&format!("\"code\":\"{code}\"")), "{path} {answer}");
            is_well(address).await;
        }
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
    assert_eq!(paths.len(), 15, "{:?}", paths.keys());
    for (path, operations) in paths {
        let path = path.replace("{id}", &Node::new(1).id().to_string()).replace("{prefix}", "ab");
        let reply = Reply::read(test.send(request("PATCH", &path, &[], Vec::new())).await).await;
        assert_eq!(reply.refusal(), (405, "request.method".into()), "{path}");
        for method in operations.as_object().unwrap().keys() {
            let method = method.to_uppercase();
            let reply = Reply::read(test.send(request(&method, &path, &[], Vec::new())).await).await;
            assert!(![404, 405].contains(&reply.status) || reply.code() == "node.unknown", "{method} {path}");
        }
    }
}

/// What ends a statement, a string or a folder somewhere else, in everything that a caller fills in: a word that nothing matches, or none.
#[tokio::test]
async fn sql_and_path_tricks_are_words_like_others() {
    let (test, node) = (TestDirectory::new(), Node::new(1));
    test.register(&node).await;
    let tricks = [
        "%27%20OR%20%271%27%3D%271",
        "lab%27%3B%20DROP%20TABLE%20nodes%3B--",
        "%22%29%3B%20ATTACH%20%27%2Fetc%2Fpasswd%27%20AS%20x%3B--",
        "%25",
        "_",
        "lab%00",
        "..%2F..%2Fdirectory.key",
        "%2e%2e/%2e%2e/directory.key",
        "%c0%ae%c0%ae",
        "did:key:%27--",
    ];
    for trick in tricks {
        let discover = |field: &str| format!("/api/v3/nodes/discover?{field}={trick}");
        let found = test.get(&discover("sector")).await;
        let nobody = found.status == 200 && found.ok::<serde_json::Value>()["nodes"].as_array().unwrap().is_empty();
        assert!(nobody || found.status == 400, "{trick}: {}", found.status);
        let mut paths: Vec<_> = ["capability", "fresh_seconds", "cursor", "limit"].map(discover).into();
        paths.extend(
            ["nodes/", "nodes/prefix/", "log/inclusion?size=1&index=", "log/consistency?to=1&from="]
                .map(|path| format!("/api/v3/{path}{trick}")),
        );
        for path in paths {
            let reply = test.get(&path).await;
            assert!((400..423).contains(&reply.status), "{path}: {}", reply.status);
        }
        let reply = test.receive(&node, &format!("?after={trick}")).await;
        assert_eq!(reply.status, 400, "{trick}");
        let asked = serde_json::json!({ "nodes": [trick] }).to_string();
        let asked = request("POST", "/api/v3/nodes/lookup", &[], asked.into_bytes());
        assert_eq!(Reply::read(test.send(asked).await).await.status, 400, "{trick}");
    }
    // What a node says of itself is kept as it says it, and looked for as such.
    let mut card = node.card(test.now());
    (card.sequence, card.fields.sector) = (card.sequence + 1, "x'; DROP TABLE nodes;--".into());
    assert_eq!(test.register_bytes(&node, &node.sign_card(&card)).await.status, 200);
    let found: serde_json::Value =
        test.get("/api/v3/nodes/discover?sector=x%27%3B%20DROP%20TABLE%20nodes%3B--").await.ok();
    assert_eq!(found["nodes"].as_array().unwrap().len(), 1, "{found}");
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
    let from = async |address: &str| ask("/api/v3/nodes/discover", address).await;
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
