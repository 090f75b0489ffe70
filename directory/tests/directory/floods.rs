//! Clients that are slow, speak another HTTP, or ask without end, over real sockets; beside each an honest one is answered.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use openred_directory::config::Config;
use openred_directory::serve::{Service, serve};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::fixture::{Node, ORIGIN, TestDirectory};

async fn listening(connections: u32) -> (TestDirectory, SocketAddr) {
    let mut config = Config::default();
    *config.limits.requests_burst.get_mut() = 100_000;
    let test = TestDirectory::with(&config);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let service = Service { listener, tls: None, router: test.router.clone(), connections };
    tokio::spawn(serve(Arc::clone(&test.directory), service));
    (test, address)
}

async fn rest(mut stream: TcpStream) -> String {
    let mut answer = Vec::new();
    // Cut by a reset as well as in order.
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

async fn is_well(address: SocketAddr) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"GET /api/v3/health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
    let answer = rest(stream).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
}

async fn all_closed(test: &TestDirectory) {
    while test.directory.metrics.connections_open.get() > 0 {
        tokio::task::yield_now().await;
    }
}

/// One frame of HTTP/2.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

#[tokio::test]
async fn http_2_and_its_floods_find_nobody() {
    let (test, address) = listening(64).await;
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    let settings = frame(4, 0, 0, &[]);
    let streams: Vec<u8> = (0..5000_u32).flat_map(|number| frame(1, 5, 2 * number + 1, &[0x82, 0x84, 0x86])).collect();
    let resets: Vec<u8> = (0..5000_u32)
        .flat_map(|number| [frame(1, 4, 2 * number + 1, &[0x82]), frame(3, 0, 2 * number + 1, &[0, 0, 0, 8])].concat())
        .collect();
    let endless: Vec<u8> =
        [frame(1, 0, 1, &[0x82]), (0..200).flat_map(|_| frame(9, 0, 1, &[0; 1000])).collect()].concat();
    let pings: Vec<u8> = (0..5000).flat_map(|_| frame(6, 0, 0, &[0; 8])).collect();
    for flood in [streams, resets, endless, pings] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        // It may close before it has taken all of it.
        let _ = stream.write_all(&[&preface[..], &settings, &flood].concat()).await;
        let answer = rest(stream).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
        is_well(address).await;
    }
    all_closed(&test).await;
}

#[tokio::test]
async fn an_upgrade_to_http_2_is_not_taken() {
    let (_test, address) = listening(64).await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    let head = "GET /api/v3/health HTTP/1.1\r\nhost: x\r\nconnection: upgrade, http2-settings, close\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let answer = rest(stream).await;
    assert!(!answer.starts_with("HTTP/1.1 101"), "{answer}");
}

#[tokio::test(start_paused = true)]
async fn a_head_that_trickles_is_cut_whatever_it_sends() {
    let (test, address) = listening(64).await;
    let mut slow = Vec::new();
    for _ in 0..20 {
        slow.push(TcpStream::connect(address).await.unwrap());
    }
    while test.directory.metrics.connections_open.get() < 20 {
        tokio::task::yield_now().await;
    }
    let begun = tokio::time::Instant::now();
    while test.directory.metrics.connections_open.get() > 0 {
        for stream in &mut slow {
            // Those that were cut take nothing.
            let _ = stream.write_all(b"x").await;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(begun.elapsed() < Duration::from_secs(30), "a byte a second does not keep it");
    }
    assert!(begun.elapsed() >= Duration::from_secs(9), "it had its time");
    is_well(address).await;
}

#[tokio::test(start_paused = true)]
async fn a_body_that_trickles_is_refused_in_its_time() {
    let (test, address) = listening(64).await;
    let node = Node::new(1);
    let input = node.input("POST", &format!("{ORIGIN}/api/v3/nodes/register"), b"", test.now().seconds());
    let headers: String = node.sign_input(&input).iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let head = format!("POST /api/v3/nodes/register HTTP/1.1\r\nhost: x\r\ncontent-length: 5000\r\n{headers}\r\n");
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    let (mut from, mut to) = stream.into_split();
    let trickle = tokio::spawn(async move {
        for second in 0..100 {
            if to.write_all(b" ").await.is_err() {
                return second;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        100
    });
    let mut answer = [0; 12];
    from.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 408");
    is_well(address).await;
    let seconds = trickle.await.unwrap();
    assert!(seconds < 30, "the rest of the body is not waited for: {seconds} s");
}

#[tokio::test]
async fn requests_without_end_on_one_connection_keep_no_other_waiting() {
    let (_test, address) = listening(64).await;
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut from, mut to) = stream.into_split();
    let flood = tokio::spawn(async move {
        let request = b"GET /api/v3/health HTTP/1.1\r\nhost: x\r\n\r\n".repeat(100);
        while to.write_all(&request).await.is_ok() {}
    });
    for _ in 0..20 {
        is_well(address).await;
    }
    let mut some = vec![0; 64 * 1024];
    from.read_exact(&mut some).await.unwrap();
    flood.abort();
    is_well(address).await;
}

#[tokio::test(start_paused = true)]
async fn a_client_that_reads_nothing_is_cut() {
    let (test, address) = listening(64).await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = b"GET /api/v3/openapi.json HTTP/1.1\r\nhost: x\r\n\r\n".repeat(2000);
    let begun = tokio::time::Instant::now();
    while test.directory.metrics.connections_open.get() == 0 {
        tokio::task::yield_now().await;
    }
    // It is not read on either once its answers are not.
    let _ = tokio::time::timeout(Duration::from_secs(1), stream.write_all(&request)).await;
    while test.directory.metrics.connections_open.get() > 0 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(begun.elapsed() < Duration::from_secs(300));
    }
    is_well(address).await;
}
