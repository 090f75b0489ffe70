//! Offers and receipts: routed, waited for, acknowledged, bounded.

use std::time::Duration;

use axum::body::Body;
use http_body_util::BodyExt as _;
use openred_directory::api::signed::Peer;
use openred_directory::api::tokens::{Acknowledged, Delivery, Received, Routed};
use openred_directory::config::Config;
use openred_directory::route::Kind;
use openred_proto::checked::offer::Offer;
use openred_proto::checked::receipt::{Receipt, ReceiptKind};
use openred_proto::label::Label;
use tower::ServiceExt as _;

use crate::fixture::{HOUR, Node, TestDirectory, base64};

const RECEIVE: &str = "/api/v3/tokens/receive";

async fn pair() -> (TestDirectory, Node, Node) {
    let (test, issuer, recipient) = (TestDirectory::new(), Node::new(1), Node::new(2));
    assert_eq!(test.register(&issuer).await.status, 200);
    assert_eq!(test.register(&recipient).await.status, 200);
    (test, issuer, recipient)
}

#[tokio::test]
async fn an_offer_goes_there_and_its_receipt_comes_back() {
    let (test, issuer, recipient) = pair().await;
    let offer = issuer.offer(&recipient.id(), test.now().plus(HOUR), 0xA5);
    let routed: Routed = test.request_connection(&issuer, &offer).await.ok();
    let receipt = Receipt::verify(&base64(&routed.receipt), &test.directory.identity.id()).unwrap();
    assert_eq!(receipt.kind, ReceiptKind::Routed);
    assert_eq!(receipt.token_id, Offer::token_id(&offer));
    assert_eq!((receipt.issuer, receipt.recipient, receipt.at), (issuer.id(), recipient.id(), test.now()));
    assert_eq!((routed.token, routed.held_seconds), (hex::encode(receipt.token_id), 600));

    let received: Received = test.receive(&recipient, "?wait=0").await.ok();
    let [item] = &received.items[..] else { panic!("{received:?}") };
    assert_eq!((item.kind, item.from.as_str()), (Kind::Offer, issuer.id().to_string().as_str()));
    assert_eq!(base64(&item.payload), offer);

    let signed = recipient.receipt(&issuer.id(), &offer, test.now());
    assert_eq!(test.acknowledge(&recipient, &signed).await.ok::<Acknowledged>(), Acknowledged { delivered: true });
    assert_eq!(test.receive(&recipient, "?wait=0").await.ok::<Received>().items, [], "acknowledged");

    let back: Received = test.receive(&issuer, "?wait=0").await.ok();
    let [item] = &back.items[..] else { panic!("{back:?}") };
    assert_eq!((item.kind, &item.token), (Kind::Receipt, &hex::encode(Offer::token_id(&offer))));
    assert_eq!(Receipt::verify(&base64(&item.payload), &recipient.id()).unwrap().kind, ReceiptKind::Accepted);
    let rest: Received = test.receive(&issuer, &format!("?wait=0&after={}", back.cursor)).await.ok();
    assert_eq!((rest.items.len(), rest.cursor), (0, back.cursor));
    assert!(test.directory.mailboxes().is_empty());
}

#[tokio::test]
async fn offers_never_touch_the_disk() {
    let (test, issuer, recipient) = pair().await;
    let offer = issuer.offer(&recipient.id(), test.now().plus(HOUR), 0xA5);
    assert_eq!(test.request_connection(&issuer, &offer).await.status, 200);
    let card = recipient.sign_card(&recipient.card(test.now()));
    let holds = |needle: &[u8]| {
        std::fs::read_dir(test.folder.path()).unwrap().any(|file| {
            std::fs::read(file.unwrap().path()).unwrap().windows(needle.len()).any(|window| window == needle)
        })
    };
    assert!(holds(&card[100..132]), "control: the card is found");
    assert!(!holds(&[0xA5; 32]));
}

#[tokio::test]
async fn who_may_not_offer_or_be_offered() {
    let (test, issuer, recipient) = pair().await;
    let stranger = Node::new(9);
    let until = test.now().plus(HOUR);
    let refusal = async |by: &Node, offer: &[u8]| test.request_connection(by, offer).await.refusal();
    assert_eq!(refusal(&issuer, &issuer.offer(&stranger.id(), until, 1)).await, (404, "recipient.unregistered".into()));
    assert_eq!(refusal(&stranger, &stranger.offer(&issuer.id(), until, 1)).await, (403, "node.unregistered".into()));
    assert_eq!(refusal(&recipient, &issuer.offer(&recipient.id(), until, 1)).await, (403, "offer.foreign".into()));
    assert_eq!(refusal(&issuer, &issuer.offer(&issuer.id(), until, 1)).await, (422, "offer.malformed".into()));
    let ended = issuer.offer(&recipient.id(), test.now().minus(4 * HOUR), 1);
    assert_eq!(refusal(&issuer, &ended).await, (422, "offer.ended".into()));
    let whole = issuer.offer(&recipient.id(), until, 1);
    for bad in [&whole[..0], &whole[..1], &whole[..100], &whole[..whole.len() - 1], &[whole.as_slice(), b"x"].concat()]
    {
        assert_eq!(refusal(&issuer, bad).await, (422, "offer.malformed".into()), "{}", bad.len());
    }
    test.directory.ban(recipient.id());
    assert_eq!(refusal(&issuer, &whole).await, (404, "recipient.unregistered".into()));
    assert_eq!(test.receive(&recipient, "?wait=0").await.refusal(), (403, "node.banned".into()));
    assert_eq!(test.receive(&stranger, "?wait=0").await.refusal(), (403, "node.unregistered".into()));
    assert!(test.directory.mailboxes().is_empty());
}

#[tokio::test]
async fn receipts_that_are_not_the_callers_own_acceptance_are_refused() {
    let (test, issuer, recipient) = pair().await;
    let offer = issuer.offer(&recipient.id(), test.now().plus(HOUR), 1);
    test.request_connection(&issuer, &offer).await;
    let own = recipient.receipt(&issuer.id(), &offer, test.now());
    assert_eq!(test.acknowledge(&issuer, &own).await.refusal(), (403, "receipt.foreign".into()));
    let routed = Receipt {
        kind: ReceiptKind::Routed,
        token_id: Offer::token_id(&offer),
        issuer: issuer.id(),
        recipient: recipient.id(),
        at: test.now(),
    };
    let routed = recipient.statement(Label::Receipt, &routed.encode());
    assert_eq!(test.acknowledge(&recipient, &routed).await.refusal(), (403, "receipt.foreign".into()));
    let mut flipped = own.clone();
    flipped[20] ^= 1;
    assert_eq!(test.acknowledge(&recipient, &flipped).await.refusal(), (422, "receipt.malformed".into()));
    assert_eq!(test.acknowledge(&recipient, &own[..50]).await.refusal(), (422, "receipt.malformed".into()));
    let confused = recipient.statement(Label::Card, &Receipt::verify(&own, &recipient.id()).unwrap().encode());
    assert_eq!(test.acknowledge(&recipient, &confused).await.refusal(), (422, "receipt.malformed".into()));
    assert_eq!(test.directory.mailboxes().len(), 1, "the offer still waits");
    let to_nobody = recipient.receipt(&Node::new(9).id(), &offer, test.now());
    assert_eq!(test.acknowledge(&recipient, &to_nobody).await.ok::<Acknowledged>(), Acknowledged { delivered: false });
}

#[tokio::test]
async fn a_mailbox_is_bounded_and_ends_after_ten_minutes() {
    let mut config = Config::default();
    config.limits.offers_per_node = 6;
    let test = TestDirectory::with(&config);
    let recipient = Node::new(99);
    test.register(&recipient).await;
    let mut taken = 0;
    for seed in 1..=3 {
        let issuer = Node::new(seed);
        test.register(&issuer).await;
        for fill in 0..5 {
            let reply =
                test.request_connection(&issuer, &issuer.offer(&recipient.id(), test.now().plus(HOUR), fill)).await;
            if reply.status == 200 {
                taken += 1;
            } else {
                assert_eq!(reply.refusal(), (503, "recipient.full".into()));
                assert!(reply.headers.contains_key("retry-after"));
            }
        }
    }
    assert_eq!(taken, 6);
    test.advance(Duration::from_secs(601));
    assert_eq!(test.receive(&recipient, "?wait=0").await.ok::<Received>().items, []);
}

#[tokio::test]
async fn a_long_poll_is_answered_by_the_offer_it_waits_for() {
    let (test, issuer, recipient) = pair().await;
    let poll = test.signed(&recipient, "GET", "/api/v3/tokens/receive?wait=60", Vec::new());
    let polling = tokio::spawn(test.router.clone().oneshot(poll));
    while test.directory.metrics.streams_open.get() == 0 {
        tokio::task::yield_now().await;
    }
    let offer = issuer.offer(&recipient.id(), test.now().plus(HOUR), 1);
    assert_eq!(test.request_connection(&issuer, &offer).await.status, 200);
    let received: Received = crate::fixture::Reply::read(polling.await.unwrap().unwrap()).await.ok();
    assert_eq!(base64(&received.items[0].payload), offer);
    assert_eq!(test.directory.metrics.streams_open.get(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_long_poll_without_news_ends_in_time() {
    let (test, _, recipient) = pair().await;
    let before = tokio::time::Instant::now();
    let nothing: Received = test.receive(&recipient, "?wait=60&after=7").await.ok();
    assert_eq!((nothing.items.len(), nothing.cursor), (0, 7));
    assert!(before.elapsed() >= Duration::from_secs(60));
    for wrong in ["?wait=x", "?wait=-1", "?after=x", "?until=1"] {
        assert_eq!(test.receive(&recipient, wrong).await.refusal(), (400, "request.malformed".into()), "{wrong}");
    }
}

/// The next events of a stream: (id, name, data).
async fn events(stream: &mut Body, count: usize) -> Vec<(u64, String, Delivery)> {
    let mut text = String::new();
    while text.matches("\n\n").count() < count {
        let frame = stream.frame().await.unwrap().unwrap();
        text.push_str(std::str::from_utf8(&frame.into_data().unwrap()).unwrap());
    }
    let field = |event: &str, name: &str| {
        event.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ").map(str::to_owned)).unwrap()
    };
    let parse = |event: &str| {
        let data = serde_json::from_str(&field(event, "data")).unwrap();
        (field(event, "id").parse().unwrap(), field(event, "event"), data)
    };
    text.split("\n\n").filter(|event| !event.is_empty()).map(parse).collect()
}

#[tokio::test]
async fn a_stream_shows_what_waits_and_what_comes() {
    let (test, issuer, recipient) = pair().await;
    let until = test.now().plus(HOUR);
    let (first, second) = (issuer.offer(&recipient.id(), until, 1), issuer.offer(&recipient.id(), until, 2));
    test.request_connection(&issuer, &first).await;
    let response = test.send(test.signed(&recipient, "GET", RECEIVE, Vec::new())).await;
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let mut stream = response.into_body();
    let shown = events(&mut stream, 1).await;
    assert_eq!((shown[0].1.as_str(), base64(&shown[0].2.payload)), ("offer", first.clone()));
    test.request_connection(&issuer, &second).await;
    let next = events(&mut stream, 1).await;
    assert_eq!(base64(&next[0].2.payload), second);
    assert!(next[0].0 > shown[0].0);
    drop(stream);
    assert_eq!(test.directory.metrics.streams_open.get(), 0);

    let mut again = test.signed(&recipient, "GET", RECEIVE, Vec::new());
    again.headers_mut().insert("last-event-id", shown[0].0.into());
    let mut stream = test.send(again).await.into_body();
    assert_eq!(base64(&events(&mut stream, 1).await[0].2.payload), second, "it goes on after the id it names");
}

#[tokio::test]
async fn a_stream_ends_when_another_takes_over_when_banned_and_when_draining() {
    let (test, _, recipient) = pair().await;
    let open = async || test.send(test.signed(&recipient, "GET", RECEIVE, Vec::new())).await.into_body();
    let first = open().await;
    let second = open().await;
    assert_eq!(first.collect().await.unwrap().to_bytes(), "", "the older one ended");
    test.directory.ban(recipient.id());
    assert_eq!(second.collect().await.unwrap().to_bytes(), "", "banned");
    test.directory.unban(&recipient.id());
    let third = open().await;
    test.directory.drain();
    assert_eq!(third.collect().await.unwrap().to_bytes(), "", "draining");
}

#[tokio::test]
async fn streams_are_counted_and_capped() {
    let mut config = Config::default();
    config.limits.streams = 1;
    let test = TestDirectory::with(&config);
    let (one, two) = (Node::new(1), Node::new(2));
    test.register(&one).await;
    test.register(&two).await;
    let open = test.send(test.signed(&one, "GET", RECEIVE, Vec::new())).await;
    assert_eq!(test.receive(&two, "").await.refusal(), (503, "directory.busy".into()));
    drop(open);
    assert_eq!(test.receive(&two, "?wait=0").await.status, 200);
}

#[tokio::test]
async fn one_address_has_a_share_of_the_streams() {
    let mut config = Config::default();
    config.limits.streams = 16;
    let test = TestDirectory::with(&config);
    for seed in 1..=4 {
        test.register(&Node::new(seed)).await;
    }
    let open = async |seed, address: &str| {
        let mut request = test.signed(&Node::new(seed), "GET", RECEIVE, Vec::new());
        request.extensions_mut().insert(Peer(address.parse().unwrap()));
        test.send(request).await
    };
    let (first, _second) = (open(1, "[2001:db8::1]:9").await, open(2, "[2001:db8::2]:9").await);
    let third = crate::fixture::Reply::read(open(3, "[2001:db8::3]:9").await).await;
    assert_eq!(third.refusal(), (503, "directory.busy".into()));
    assert!(third.headers.contains_key("retry-after"));
    assert_eq!(open(4, "192.0.2.1:9").await.status(), 200, "another address has its own");
    drop(first);
    assert_eq!(open(3, "[2001:db8::3]:9").await.status(), 200);
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_is_fed_all_the_time_ends_after_its_life() {
    let (test, issuer, recipient) = pair().await;
    let mut stream = test.send(test.signed(&recipient, "GET", RECEIVE, Vec::new())).await.into_body();
    let feed = async |fill| {
        let offer = issuer.offer(&recipient.id(), test.now().plus(HOUR), fill);
        assert_eq!(test.request_connection(&issuer, &offer).await.status, 200);
    };
    feed(1).await;
    assert_eq!(events(&mut stream, 1).await.len(), 1);
    feed(2).await;
    tokio::time::advance(HOUR).await;
    let rest = stream.collect().await.unwrap().to_bytes();
    assert!(!rest.starts_with(b"event"), "it goes on with {}", String::from_utf8_lossy(&rest));
    let received: Received = test.receive(&recipient, "?wait=0").await.ok();
    assert_eq!(received.items.len(), 2, "what it did not show still waits");
}

#[tokio::test]
async fn receipts_go_on_coming_through_one_open_stream() {
    let (test, issuer, recipient) = pair().await;
    let mut stream = test.send(test.signed(&issuer, "GET", RECEIVE, Vec::new())).await.into_body();
    for fill in 0..20 {
        let offer = issuer.offer(&recipient.id(), test.now().plus(HOUR), fill);
        assert_eq!(test.request_connection(&issuer, &offer).await.status, 200, "{fill}");
        let signed = recipient.receipt(&issuer.id(), &offer, test.now());
        let reply = test.acknowledge(&recipient, &signed).await;
        assert_eq!(reply.ok::<Acknowledged>(), Acknowledged { delivered: true }, "{fill}");
        assert_eq!(base64(&events(&mut stream, 1).await[0].2.payload), signed, "{fill}");
    }
}
