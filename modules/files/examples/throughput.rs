//! How fast the module moves a file between two nodes in one process, the carrier and the disk aside.
//!
//! `cargo run --release -p openred-files --example throughput [MEBIBYTES]`. Prints rates; judges nothing.
#![allow(clippy::print_stdout, reason = "a tool")]

use std::time::Instant;

use bytes::Bytes;
use futures_util::StreamExt;
use openred_files::{Files, ShareView};
use openred_module::{Body, PeerRequest, TestHost, link};

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let mebibytes: usize = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(256);
    let alice = TestHost::start(1, Files::default()).await;
    let bob = TestHost::start(2, Files::default()).await;
    link(&alice, &bob);
    let chunk = Bytes::from(vec![0x5a; 64 * 1024]);
    let body = Body::stream(futures_util::stream::iter((0..mebibytes * 16).map(move |_| Ok(chunk.clone()))));

    let begun = Instant::now();
    let answer = alice.operator(PeerRequest::post("/share/all/sample", "", body)).await;
    let share: ShareView = answer.json_body().await.expect("the file is shared");
    report("share", mebibytes, begun);

    let begun = Instant::now();
    let path = format!("/fetch/{}/{}", alice.id(), share.id);
    let lines = bob.operator(PeerRequest::post(path, "", Body::empty())).await.body.collect(1 << 20).await;
    assert!(lines.expect("progress").ends_with(format!("\"received\":{}}}\n", share.length).as_bytes()));
    report("fetch, verified", mebibytes, begun);

    let begun = Instant::now();
    let mut body = bob.operator(PeerRequest::get(format!("/read/{}", share.id))).await.body;
    while let Some(chunk) = body.next().await {
        chunk.expect("content");
    }
    report("read", mebibytes, begun);
}

fn report(what: &str, mebibytes: usize, begun: Instant) {
    let seconds = begun.elapsed().as_secs_f64();
    #[allow(clippy::cast_precision_loss, reason = "a few thousand")]
    let rate = mebibytes as f64 / seconds;
    println!("{what:>16}: {rate:8.0} MiB/s");
}
