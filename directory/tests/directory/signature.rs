//! RFC 9421 on every call that acts for a node: what is covered, when, and only once.

use std::time::Duration;

use axum::http::Request;
use openred_directory::api::problem::ProblemDocument;
use openred_directory::api::signed::Peer;
use openred_directory::config::Config;
use openred_directory::limits::NONCES_PER_NODE;
use openred_directory::store::PreviousRun;

use crate::fixture::{Node, ORIGIN, Reply, START, TestDirectory, json, request};

const REGISTER: &str = "/api/v3/nodes/register";
/// The calls that act for a node.
const SIGNED: [(&str, &str); 4] = [
    ("POST", REGISTER),
    ("POST", "/api/v3/tokens/request-connection"),
    ("POST", "/api/v3/tokens/acknowledge"),
    ("GET", "/api/v3/tokens/receive"),
];

async fn reply(test: &TestDirectory, request: Request<axum::body::Body>) -> Reply {
    Reply::read(test.send(request).await).await
}

#[tokio::test]
async fn each_header_must_be_there_exactly_once() {
    let (test, node) = (TestDirectory::new(), Node::new(1));
    for (method, path) in SIGNED {
        for name in ["content-digest", "signature-input", "signature"] {
            let mut without = test.signed(&node, method, path, Vec::new());
            without.headers_mut().remove(name);
            assert_eq!(reply(&test, without).await.refusal(), (401, "signature.missing".into()), "{path} {name}");
            let mut twice = test.signed(&node, method, path, Vec::new());
            let value = twice.headers()[name].clone();
            twice.headers_mut().append(name, value);
            assert_eq!(reply(&test, twice).await.code(), "signature.missing", "{path} {name}");
        }
    }
}

#[tokio::test]
async fn everything_that_is_covered_is_held_to() {
    let (test, node, other) = (TestDirectory::new(), Node::new(1), Node::new(2));
    let now = test.now().seconds();
    let body = json("card", &node.sign_card(&node.card(test.now())));
    let target = format!("{ORIGIN}{REGISTER}");
    for (what, method, target, signed_body, code) in [
        ("method", "PUT", target.as_str(), body.as_slice(), "signature.bad"),
        ("path", "POST", "https://directory.example/api/v3/tokens/acknowledge", &body, "signature.bad"),
        ("query", "POST", "https://directory.example/api/v3/nodes/register?a=1", &body, "signature.bad"),
        ("origin", "POST", "https://other.example/api/v3/nodes/register", &body, "signature.bad"),
        ("body", "POST", &target, b"other", "signature.digest"),
    ] {
        let headers = node.sign_input(&node.input(method, target, signed_body, now));
        let refused = reply(&test, request("POST", REGISTER, &headers, body.clone())).await;
        assert_eq!(refused.refusal(), (401, code.into()), "{what}");
    }
    let mut headers = node.sign_input(&node.input("POST", &target, &body, now));
    headers[2].1 = other.sign_input(&node.input("POST", &target, &body, now))[2].1.clone();
    assert_eq!(reply(&test, request("POST", REGISTER, &headers, body.clone())).await.code(), "signature.bad");
    for (index, from, to) in [
        (1, "ed25519", "rsa-pss-sha512"),
        (1, "openred/1/http", "openred/1/card"),
        (1, "\"@method\" ", ""),
        (1, "openred=", "sig1="),
        (2, "openred=:", "openred=:="),
        (2, "openred=:", "openred=:AAAA"),
    ] {
        let mut headers = node.sign_input(&node.input("POST", &target, &body, now));
        headers[index].1 = headers[index].1.replacen(from, to, 1);
        let refused = reply(&test, request("POST", REGISTER, &headers, body.clone())).await;
        assert_eq!(refused.refusal(), (401, "signature.malformed".into()), "{from} {to}");
    }
    let headers = node.sign_input(&node.input("POST", &target, &body, now));
    assert_eq!(reply(&test, request("POST", REGISTER, &headers, body)).await.status, 200);
}

#[tokio::test]
async fn the_host_header_means_nothing() {
    let (test, node) = (TestDirectory::new(), Node::new(1));
    let mut request = test.signed(&node, "POST", REGISTER, json("card", &node.sign_card(&node.card(test.now()))));
    request.headers_mut().insert("host", "evil.example".parse().unwrap());
    request.headers_mut().insert("x-forwarded-host", "evil.example".parse().unwrap());
    assert_eq!(reply(&test, request).await.status, 200);
}

#[tokio::test]
async fn a_clock_over_a_minute_off_is_told_the_time() {
    let (test, node) = (TestDirectory::new(), Node::new(1));
    test.advance(Duration::from_secs(1000));
    let now = test.now().seconds();
    let body = json("card", &node.sign_card(&node.card(test.now())));
    for (created, taken) in [(now - 61, false), (now + 61, false), (now - 60, true), (now + 60, true), (0, false)] {
        let headers = node.sign_input(&node.input("POST", &format!("{ORIGIN}{REGISTER}"), &body, created));
        let answer = reply(&test, request("POST", REGISTER, &headers, body.clone())).await;
        if taken {
            assert_eq!(answer.status, 200, "{created}");
            continue;
        }
        assert_eq!(answer.refusal(), (401, "signature.clock".into()), "{created}");
        let problem: ProblemDocument = serde_json::from_slice(&answer.body).unwrap();
        assert_eq!(problem.now, Some(now), "the client corrects itself by this, or by the Date header");
    }
}

#[tokio::test]
async fn what_was_signed_before_the_start_is_refused() {
    let (test, node) = (TestDirectory::new(), Node::new(1));
    let body = json("card", &node.sign_card(&node.card(test.now())));
    let input = node.input("POST", &format!("{ORIGIN}{REGISTER}"), &body, test.now().seconds() - 1);
    let early = request("POST", REGISTER, &node.sign_input(&input), body);
    assert_eq!(reply(&test, early).await.code(), "signature.clock", "its nonce may have been used before the restart");
}

#[tokio::test]
async fn a_nonce_is_good_once() {
    let (test, node, other) = (TestDirectory::new(), Node::new(1), Node::new(2));
    let body = json("card", &node.sign_card(&node.card(test.now())));
    let input = node.input("POST", &format!("{ORIGIN}{REGISTER}"), &body, test.now().seconds());
    let again = || request("POST", REGISTER, &node.sign_input(&input), body.clone());
    assert_eq!(reply(&test, again()).await.status, 200);
    assert_eq!(reply(&test, again()).await.refusal(), (401, "signature.repeated".into()));
    test.advance(Duration::from_secs(60));
    assert_eq!(reply(&test, again()).await.code(), "signature.repeated");
    let mut others = other.input("POST", &format!("{ORIGIN}{REGISTER}"), &body, test.now().seconds());
    others.nonce = input.nonce;
    let theirs = request("POST", REGISTER, &other.sign_input(&others), body.clone());
    assert_eq!(reply(&test, theirs).await.code(), "card.foreign", "another node's same nonce is its own");
}

#[tokio::test]
async fn a_request_that_does_not_verify_costs_its_victim_nothing() {
    let mut config = Config::default();
    *config.limits.requests_burst.get_mut() = 2;
    *config.limits.requests_per_second.get_mut() = 1;
    let (test, node) = (TestDirectory::with(&config), Node::new(1));
    let body = json("card", &node.sign_card(&node.card(test.now())));
    let input = node.input("POST", &format!("{ORIGIN}{REGISTER}"), &body, test.now().seconds());
    for _ in 0..5 {
        let mut headers = node.sign_input(&input);
        headers[2].1 = Node::new(2).sign_input(&input)[2].1.clone();
        let forged = request("POST", REGISTER, &headers, body.clone());
        assert_eq!(reply(&test, forged).await.code(), "signature.bad");
    }
    let honest = request("POST", REGISTER, &node.sign_input(&input), body);
    assert_eq!(reply(&test, honest).await.status, 200, "neither its nonce nor its tokens were taken");
}

#[tokio::test]
async fn a_node_that_asks_too_much_waits_and_others_do_not() {
    let mut config = Config::default();
    *config.limits.requests_burst.get_mut() = 2;
    *config.limits.requests_per_second.get_mut() = 1;
    let (test, node) = (TestDirectory::with(&config), Node::new(1));
    assert_eq!(test.register(&node).await.status, 200);
    assert_eq!(test.register(&node).await.status, 200);
    let refused = test.register(&node).await;
    assert_eq!(refused.refusal(), (429, "rate.limited".into()));
    assert_eq!(refused.headers["retry-after"], "1");
    assert_eq!(test.register(&Node::new(2)).await.status, 200);
    test.advance(Duration::from_secs(1));
    assert_eq!(test.register(&node).await.status, 200);
}

#[tokio::test]
async fn what_a_run_before_may_have_taken_is_refused_until_it_cannot_have() {
    for (before, seconds) in [(PreviousRun::Ended { latest: START.seconds() + 2 }, 3), (PreviousRun::CutOff, 61)] {
        let (test, node) = (TestDirectory::after(before), Node::new(1));
        let refused = test.register(&node).await;
        assert_eq!(refused.refusal(), (503, "directory.busy".into()), "{before:?}");
        assert_eq!(refused.headers["retry-after"], seconds.to_string().as_str());
        let body = json("card", &node.sign_card(&node.card(test.now())));
        let early = node.input("POST", &format!("{ORIGIN}{REGISTER}"), &body, test.now().seconds() + 1);
        test.advance(Duration::from_secs(seconds));
        let early = request("POST", REGISTER, &node.sign_input(&early), body);
        assert_eq!(reply(&test, early).await.code(), "signature.clock", "{before:?}");
        assert_eq!(test.register(&node).await.status, 200, "{before:?}");
    }
}

#[tokio::test]
async fn a_request_signed_ahead_is_not_taken_again_when_its_time_has_come() {
    let (test, node) = (TestDirectory::new(), Node::new(1));
    let body = json("card", &node.sign_card(&node.card(test.now())));
    let ahead = node.input("POST", &format!("{ORIGIN}{REGISTER}"), &body, test.now().seconds() + 60);
    let again = || request("POST", REGISTER, &node.sign_input(&ahead), body.clone());
    assert_eq!(reply(&test, again()).await.status, 200);
    for millis in [119_999, 1, 600, 399] {
        test.advance(Duration::from_millis(millis));
        assert_eq!(reply(&test, again()).await.refusal(), (401, "signature.repeated".into()), "{:?}", test.now());
    }
    test.advance(Duration::from_millis(1));
    assert_eq!(reply(&test, again()).await.code(), "signature.clock");
}

#[tokio::test]
async fn refused_requests_fill_nothing_that_others_need() {
    let mut config = Config::default();
    *config.limits.requests_burst.get_mut() = 2;
    *config.limits.requests_per_second.get_mut() = 1;
    let (test, flooding) = (TestDirectory::with(&config), Node::new(1));
    let same_nonce = flooding.input("GET", &format!("{ORIGIN}/api/v3/tokens/receive"), b"", test.now().seconds());
    for _ in 0..3 {
        test.receive(&flooding, "").await;
    }
    let again = || request("GET", "/api/v3/tokens/receive", &flooding.sign_input(&same_nonce), Vec::new());
    assert_eq!(reply(&test, again()).await.code(), "rate.limited");
    test.advance(Duration::from_secs(1));
    assert_eq!(
        reply(&test, again()).await.code(),
        "node.unregistered",
        "its nonce was not remembered with the refusal"
    );
}

#[tokio::test]
async fn one_key_alone_cannot_fill_the_table_of_nonces() {
    let mut config = Config::default();
    *config.limits.requests_burst.get_mut() = u32::MAX;
    let (test, flooding) = (TestDirectory::with(&config), Node::new(1));
    for _ in 0..NONCES_PER_NODE {
        assert_eq!(test.receive(&flooding, "").await.code(), "node.unregistered");
    }
    let refused = test.receive(&flooding, "").await;
    assert_eq!(refused.refusal(), (429, "rate.limited".into()));
    assert!(refused.headers.contains_key("retry-after"));
    assert_eq!(test.register(&Node::new(2)).await.status, 200, "a fresh node is served");
}

#[tokio::test]
async fn an_address_is_held_back_before_its_signatures_are_looked_at() {
    let mut config = Config::default();
    *config.limits.requests_burst.get_mut() = 3;
    let test = TestDirectory::with(&config);
    let path = "/api/v3/tokens/receive";
    for seed in 1..=3 {
        let reply = test.call_from("192.0.2.1:9", &Node::new(seed), "GET", path, Vec::new()).await;
        assert_eq!(reply.code(), "node.unregistered", "{seed}");
    }
    let mut unsigned = request("GET", path, &[], Vec::new());
    unsigned.extensions_mut().insert(Peer("192.0.2.1:10".parse().unwrap()));
    assert_eq!(reply(&test, unsigned).await.refusal(), (429, "rate.limited".into()), "many keys, one address");
    for (address, code) in [("192.0.2.2:9", "node.unregistered"), ("127.0.0.1:9", "node.unregistered")] {
        assert_eq!(test.call_from(address, &Node::new(4), "GET", path, Vec::new()).await.code(), code, "{address}");
    }
}
