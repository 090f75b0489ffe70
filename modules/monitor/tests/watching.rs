//! The module on a test host: what it tells the operator as layers go off and on, what it serves, and to whom.
#![allow(clippy::unwrap_used, reason = "tests")]

use openred_module::{Body, LayerState, NodeStatus, PeerRequest, ProcessState, Status, TestHost};
use openred_monitor::{Alerts, Graph, Monitor, State};

/// Longer than between two looks.
const A_LOOK: u64 = 11_000;

fn status(on: bool) -> NodeStatus {
    let layer = LayerState { name: "seccomp".into(), on, detail: "expected 2, seen 0".into() };
    let vault =
        ProcessState { name: "vault".into(), state: "ready".into(), restarts: 0, since: 1, layers: vec![layer] };
    NodeStatus { processes: vec![vault], seen_at: Some(7), ..NodeStatus::default() }
}

async fn alerts(host: &TestHost) -> Alerts {
    host.operator(PeerRequest::get("/alerts")).await.json_body().await.unwrap()
}

async fn get(host: &TestHost, head: &str) -> String {
    let answer = host.connect(Body::whole(format!("{head}\r\nConnection: close\r\n\r\n"))).await;
    String::from_utf8(answer.body.collect(1 << 20).await.unwrap().to_vec()).unwrap()
}

#[tokio::test]
async fn a_layer_that_goes_off_is_told_until_it_is_on_again() {
    let host = TestHost::start(1, Monitor).await;
    host.set_status(status(true));
    host.advance(A_LOOK).await;
    assert_eq!(host.alerted(), None);
    host.set_status(status(false));
    host.advance(A_LOOK).await;
    assert_eq!(host.alerted().unwrap(), "vault lacks the layer seccomp: expected 2, seen 0");
    host.advance(3 * A_LOOK).await;
    assert_eq!(alerts(&host).await.alerts.len(), 1, "told once while it lasts");
    // Nobody saw: what stood stands.
    host.set_status(NodeStatus::default());
    host.advance(A_LOOK).await;
    assert!(host.alerted().is_some());
    // A module that was killed goes on with what it knew.
    host.set_status(status(false));
    host.kill_and_restart(Monitor).await;
    host.advance(A_LOOK).await;
    assert_eq!(alerts(&host).await.alerts.len(), 1);
    host.set_status(status(true));
    host.advance(A_LOOK).await;
    assert_eq!(host.alerted(), None);
    assert_eq!(alerts(&host).await.alerts[0].until, Some(7));
    let trail: Vec<(String, String)> =
        host.audit_trail().iter().map(|event| (event.code.to_owned(), event.outcome.to_owned())).collect();
    let told = |outcome: &str| (String::from("layer-off"), outcome.to_owned());
    assert_eq!(trail, [told("raised"), told("cleared")]);
}

#[tokio::test]
async fn a_full_store_keeps_no_alert_back() {
    let host = TestHost::start(1, Monitor).await;
    host.set_status(status(false));
    host.set_full(true);
    host.advance(A_LOOK).await;
    assert!(host.alerted().is_some());
}

#[tokio::test]
async fn without_the_permission_nothing_is_known_or_told() {
    let host = TestHost::start(1, Monitor).await;
    host.advance(A_LOOK).await;
    assert_eq!(host.alerted(), None);
    let refused = host.operator(PeerRequest::get("/graph")).await;
    assert_eq!(refused.status, Status::Forbidden);
    assert!(get(&host, "GET /metrics HTTP/1.1\r\nHost: 127.0.0.1:9000").await.starts_with("HTTP/1.1 503"));
}

#[tokio::test]
async fn the_page_is_for_this_machine_and_the_graph_for_the_operator() {
    let host = TestHost::start(1, Monitor).await;
    host.set_status(status(false));
    let graph: Graph = host.operator(PeerRequest::get("/graph")).await.json_body().await.unwrap();
    assert_eq!(graph.state, State::Error);
    let page = get(&host, "GET /metrics HTTP/1.1\r\nHost: 127.0.0.1:9000").await;
    assert!(page.starts_with("HTTP/1.1 200") && page.contains("openred_layer_on{process=\"vault\""), "{page}");
    assert!(get(&host, "GET /health HTTP/1.1\r\nHost: localhost:9000").await.contains("503"));
    for (request, code) in [
        ("GET /graph HTTP/1.1\r\nHost: 127.0.0.1:9000", "404"),
        ("GET /alerts HTTP/1.1\r\nHost: 127.0.0.1:9000", "404"),
        ("POST /metrics HTTP/1.1\r\nHost: 127.0.0.1:9000\r\nContent-Length: 0", "405"),
        ("GET /metrics HTTP/1.1\r\nHost: evil.example", "421"),
    ] {
        assert!(get(&host, request).await.starts_with(&format!("HTTP/1.1 {code}")), "{request}");
    }
    let peer = host.as_peer(openred_module::NodeId::from_bytes([9; 32]), PeerRequest::get("/graph")).await;
    assert_eq!(peer.status, Status::NotFound);
}
