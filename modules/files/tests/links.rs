//! Lists, permissions and links between nodes in virtual time: who may see and fetch what, until when, and how often.
#![allow(clippy::unwrap_used, reason = "tests")]

use futures_util::{FutureExt, StreamExt};
use openred_files::{ByLink, FileId, Files, LinkOrder, Links, MadeLink, Offers, PIECE, Progress, ShareView, Shares};
use openred_module::{Body, BodyError, Fault, NodeId, PeerRequest, Response, Status, TestHost, link};
use serde::Serialize;
use serde::de::DeserializeOwned;

const MIB: usize = 1 << 20;
const HOUR: u64 = 3_600_000;

async fn pair() -> (TestHost, TestHost) {
    let alice = TestHost::start(1, Files::default()).await;
    let bob = TestHost::start(2, Files::default()).await;
    link(&alice, &bob);
    (alice, bob)
}

async fn third(alice: &TestHost) -> TestHost {
    let carol = TestHost::start(3, Files::default()).await;
    link(alice, &carol);
    carol
}

fn content(length: usize) -> Vec<u8> {
    (0..length).map(|at| u8::try_from((at * 7 + at / 255 + at / 65_536) % 256).unwrap()).collect()
}

fn pieces(count: usize) -> usize {
    count * usize::try_from(PIECE).unwrap()
}

async fn ok<T: DeserializeOwned>(response: Response) -> T {
    let status = response.status;
    let body = response.body.collect(4 * MIB).await.unwrap();
    assert!(status.is_success(), "{status:?}: {}", String::from_utf8_lossy(&body));
    serde_json::from_slice(&body).unwrap()
}

/// Everything that a caller is told of a refusal.
async fn refusal(response: Response) -> (Status, String, String) {
    assert!(!response.status.is_success());
    let body = response.body.collect(MIB).await.unwrap();
    let problem: serde_json::Value = serde_json::from_slice(&body).unwrap();
    let code = problem["code"].as_str().unwrap().to_owned();
    (response.status, code, String::from_utf8(body.to_vec()).unwrap())
}

fn post(path: String, body: &impl Serialize) -> PeerRequest {
    PeerRequest::post(path, "application/json", Body::whole(serde_json::to_vec(body).unwrap()))
}

fn empty(path: String) -> PeerRequest {
    PeerRequest::post(path, "", Body::empty())
}

async fn share_named(host: &TestHost, to: &str, name: &str, bytes: Vec<u8>) -> ShareView {
    let request = PeerRequest::post(format!("/share/{to}/{name}"), "application/octet-stream", Body::whole(bytes));
    ok(host.operator(request).await).await
}

async fn share(host: &TestHost, to: &str, bytes: Vec<u8>) -> ShareView {
    share_named(host, to, "film.mkv", bytes).await
}

async fn make(host: &TestHost, id: FileId, seconds: u64, fetches: u64) -> MadeLink {
    let order = LinkOrder { seconds: Some(seconds), fetches: Some(fetches) };
    ok(host.operator(post(format!("/link/{id}"), &order)).await).await
}

fn fetch_request(link: &str) -> PeerRequest {
    post("/fetch-link".to_owned(), &ByLink { link: link.to_owned() })
}

async fn run(to: &TestHost, request: PeerRequest) -> Vec<Progress> {
    let response = to.operator(request).await;
    assert_eq!(response.status, Status::Ok);
    let lines = response.body.collect(MIB).await.unwrap();
    let lines = lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    lines.map(|line| serde_json::from_slice(line).unwrap()).collect()
}

async fn fetch(to: &TestHost, link: &str) -> Vec<Progress> {
    run(to, fetch_request(link)).await
}

fn outcome(progress: &[Progress]) -> &str {
    match progress.last().unwrap() {
        Progress::Failed { code, .. } => code,
        Progress::Done { length, verified, .. } if length == verified => "done",
        other => panic!("neither an end nor a failure: {other:?}"),
    }
}

/// Reads progress for as long as any comes: from a node that was killed none does, and no end either.
async fn read_until_killed(mut lines: Body) {
    for _ in 0..10_000 {
        match lines.next().now_or_never() {
            Some(None | Some(Err(_))) => return,
            Some(Some(Ok(_))) | None => tokio::task::yield_now().await,
        }
    }
}

async fn forget(host: &TestHost, id: FileId) {
    assert_eq!(host.operator(empty(format!("/remove/{id}"))).await.status, Status::Ok);
}

async fn used(host: &TestHost) -> Vec<u64> {
    let links: Links = ok(host.operator(PeerRequest::get("/links")).await).await;
    links.links.iter().map(|link| link.used).collect()
}

async fn offered(to: &TestHost, from: &TestHost) -> Vec<Offers> {
    let (mut pages, mut after): (Vec<Offers>, _) = (Vec::new(), "start".to_owned());
    loop {
        let page: Offers = ok(to.operator(PeerRequest::get(format!("/offered/{}/{after}", from.id()))).await).await;
        let next = page.next.clone();
        pages.push(page);
        let Some(next) = next else { return pages };
        after = next;
    }
}

#[tokio::test]
async fn a_list_holds_what_this_node_may_fetch_in_pages_that_hide_the_rest() {
    let (alice, bob) = pair().await;
    let carol = third(&alice).await;
    let (mut for_bob, mut hidden) = (Vec::new(), Vec::new());
    for number in 0..450_u32 {
        let (bytes, name) = (number.to_le_bytes().to_vec(), format!("file-{number}"));
        let to = if number % 3 == 0 { bob.id() } else { carol.id() };
        let shared = share_named(&alice, &to.to_string(), &name, bytes).await;
        if number % 3 == 0 { for_bob.push((shared.id, name)) } else { hidden.push(shared.id.to_string()) }
    }
    let pages = offered(&bob, &alice).await;
    assert_eq!(pages.len(), 3, "200 rows a page are looked at");
    for page in &pages {
        let text = serde_json::to_string(page).unwrap();
        assert!(hidden.iter().all(|id| !text.contains(&id[..8])), "a cursor names no file that bob may not have");
    }
    let mut seen: Vec<_> = pages.iter().flat_map(|page| &page.files).map(|file| (file.id, file.name.clone())).collect();
    seen.sort();
    for_bob.sort();
    assert!(seen == for_bob);
    // A cursor stays good over a restart and over changes around it, for its owner alone.
    let next = pages[0].next.clone().unwrap();
    alice.kill_and_restart(Files::default()).await;
    assert_eq!(alice.operator(empty(format!("/unshare/{}", for_bob[0].0))).await.status, Status::Ok);
    let again: Offers = ok(bob.operator(PeerRequest::get(format!("/offered/{}/{next}", alice.id()))).await).await;
    assert_eq!(again, pages[1]);
    for bad in [next.replace(&next[..4], "0000"), "0".repeat(96), "zz".into(), "0".repeat(200)] {
        let (status, code, _) =
            refusal(alice.as_peer(bob.id(), PeerRequest::get(format!("/offers/{bad}"))).await).await;
        assert_eq!((status, code.as_str()), (Status::BadRequest, "bad-cursor"), "{bad}");
    }
    let stolen = alice.as_peer(carol.id(), PeerRequest::get(format!("/offers/{next}"))).await;
    assert_eq!(refusal(stolen).await.1, "bad-cursor");
    // What the operator is shown goes on, too.
    let first: Shares = ok(alice.operator(PeerRequest::get("/shares")).await).await;
    let place = first.shares[99].id;
    let rest: Shares = ok(alice.operator(PeerRequest::get(format!("/shares/{place}"))).await).await;
    assert_eq!(rest.shares[..], first.shares[100..]);
}

#[tokio::test]
async fn a_peer_that_lists_nonsense_is_refused() {
    let (alice, bob) = pair().await;
    share(&alice, "all", content(10)).await;
    let ask = || PeerRequest::get(format!("/offered/{}/start", alice.id()));
    for (fault, code) in [
        (Fault::CorruptResponse(0), "bad-meta"),
        (Fault::TruncateResponse(10), "interrupted"),
        (Fault::ExtendResponse(1 << 20), "interrupted"),
        (Fault::DropResponse, "peer-interrupted"),
    ] {
        bob.faults([fault]);
        let refused = refusal(bob.operator(ask()).await).await;
        assert!(refused.1 == code || fault == Fault::DropResponse, "{fault:?}: {refused:?}");
    }
    let list: Offers = ok(bob.operator(ask()).await).await;
    assert_eq!((list.files.len(), list.next), (1, None));
    assert_eq!(refusal(bob.operator(PeerRequest::get("/offered/nobody/start")).await).await.1, "bad-peer");
}

#[tokio::test]
async fn peers_are_let_in_and_taken_out_one_by_one() {
    let (alice, bob) = pair().await;
    let carol = third(&alice).await;
    let id = share(&alice, "none", content(1000)).await.id;
    let may =
        async |peer: NodeId| alice.as_peer(peer, PeerRequest::get(format!("/meta/{id}"))).await.status.is_success();
    let say = async |what: &str, whom: String| alice.operator(empty(format!("/{what}/{id}/{whom}"))).await;
    assert!(!may(bob.id()).await);
    let _: ShareView = ok(say("admit", bob.id().to_string()).await).await;
    assert!(may(bob.id()).await && !may(carol.id()).await);
    let both: ShareView = ok(say("admit", carol.id().to_string()).await).await;
    assert_eq!(both.audience.peers.len(), 2);
    let _: ShareView = ok(say("exclude", bob.id().to_string()).await).await;
    assert!(!may(bob.id()).await && may(carol.id()).await);
    let _: ShareView = ok(say("admit", "all".into()).await).await;
    assert!(may(bob.id()).await);
    assert_eq!(refusal(say("exclude", bob.id().to_string()).await).await.1, "shared-with-all");
    let _: ShareView = ok(say("exclude", "all".into()).await).await;
    assert!(!may(bob.id()).await && may(carol.id()).await, "who was named stays");
    // Under whatever id: a successor goes with the peer.
    let new = NodeId::from_bytes([9; 32]);
    alice.succeed(carol.id(), new).await;
    assert!(may(new).await);
    let left: ShareView = ok(say("exclude", new.to_string()).await).await;
    assert!(left.audience.peers.is_empty() && !may(new).await && !may(carol.id()).await);
    for whom in ["none", "nobody"] {
        assert_eq!(refusal(say("admit", whom.into()).await).await.1, "bad-audience");
    }
    let unknown = FileId::from_bytes([1; 32]);
    assert_eq!(refusal(alice.operator(empty(format!("/admit/{unknown}/all"))).await).await.1, "no-such-file");
}

#[tokio::test]
async fn what_is_taken_back_ends_while_it_is_read() {
    for way in ["unshare", "exclude", "exclude by link", "audience", "revoke", "expiry", "unrelated"] {
        let (alice, bob) = pair().await;
        let id = share(&alice, "none", content(pieces(1))).await.id;
        let by_link = ["revoke", "expiry", "exclude by link"].contains(&way);
        let made = make(&alice, id, 60, 1).await;
        let mut door = String::new();
        if by_link {
            let secret = made.text.rsplit('/').next().unwrap();
            let order = serde_json::json!({ "v": 1, "secret": secret, "ticket": "00".repeat(16) });
            let answer = alice.as_peer(bob.id(), post(format!("/redeem/{id}"), &order)).await;
            assert_eq!(answer.status, Status::Ok);
            door = format!("/by/{}", "00".repeat(16));
        } else {
            let _: ShareView = ok(alice.operator(empty(format!("/admit/{id}/{}", bob.id()))).await).await;
        }
        let range = PeerRequest::get(format!("{door}/range/{id}/0/{PIECE}"));
        let mut body = alice.as_peer(bob.id(), range).await.body;
        body.next().await.unwrap().unwrap();
        // A copy of its own stays in the node after the share, so that nothing ends for want of content.
        let data = openred_module::BlobName::new(&format!("{id}.data")).unwrap();
        match way {
            "unshare" => {
                assert_eq!(alice.operator(empty(format!("/unshare/{id}"))).await.status, Status::Ok);
                let bytes = bytes::Bytes::from(vec![0; 512 * 1024]);
                for at in 0..8 {
                    alice.context().blob_write(&data, at * 512 * 1024, bytes.clone()).await.unwrap();
                }
            }
            "exclude" | "exclude by link" => drop(alice.operator(empty(format!("/exclude/{id}/{}", bob.id()))).await),
            "audience" => {
                drop(alice.operator(post(format!("/audience/{id}"), &serde_json::json!({ "all": false }))).await);
            }
            "revoke" => drop(alice.operator(empty(format!("/revoke/{}", made.link.link))).await),
            "expiry" => alice.advance(60_000).await,
            _ => {
                let other = share(&alice, &bob.id().to_string(), content(10)).await.id;
                drop(alice.operator(empty(format!("/exclude/{other}/{}", bob.id()))).await);
            }
        }
        let rest = body.collect(pieces(1)).await;
        if way == "unrelated" {
            assert!(rest.is_ok(), "a change of another file ends nothing");
        } else {
            assert_eq!(rest, Err(BodyError::Failed), "{way}");
            let again = alice.as_peer(bob.id(), PeerRequest::get(format!("{door}/meta/{id}"))).await;
            assert_eq!(refusal(again).await.0, Status::NotFound, "{way}");
        }
        if way == "exclude by link" {
            assert_eq!(outcome(&fetch(&bob, &made.text).await), "link-refused", "it was for one fetch");
            assert_eq!((used(&alice).await, alice.count_rows(b"k/")), (vec![1], 0));
            let more = make(&alice, id, 60, 1).await;
            assert_eq!(outcome(&fetch(&bob, &more.text).await), "done", "what it is given anew counts anew");
        }
    }
}

#[tokio::test]
async fn a_link_lets_in_whoever_holds_it_as_often_as_it_says() {
    let (alice, bob) = pair().await;
    let carol = third(&alice).await;
    let bytes = content(pieces(2) + 5);
    let id = share(&alice, "none", bytes.clone()).await.id;
    let made = make(&alice, id, 3600, 2).await;
    assert!(made.text.starts_with(&format!("openred-file:{}/{id}/", alice.id())));
    assert_eq!(outcome(&run(&bob, empty(format!("/fetch/{}/{id}", alice.id()))).await), "not-shared");
    assert_eq!(outcome(&fetch(&bob, &made.text).await), "done");
    let read = bob.operator(PeerRequest::get(format!("/read/{id}"))).await;
    assert!(read.body.collect(pieces(3)).await.unwrap() == bytes);
    assert_eq!(used(&alice).await, [1]);
    assert_eq!(outcome(&fetch(&bob, &made.text).await), "done", "what is here asks nobody");
    assert_eq!(used(&alice).await, [1]);
    // Once removed, it is another fetch; and the ticket of the first lets in no other peer.
    forget(&bob, id).await;
    assert_eq!(outcome(&run(&bob, empty(format!("/fetch/{}/{id}", alice.id()))).await), "not-shared");
    assert_eq!(outcome(&fetch(&bob, &made.text).await), "done");
    assert_eq!(used(&alice).await, [2]);
    assert_eq!(outcome(&fetch(&carol, &made.text).await), "link-refused");
    assert_eq!(carol.count_rows(b""), 0, "a refused link leaves nothing");
    // One that is in the audience uses up nothing.
    let _: ShareView = ok(alice.operator(empty(format!("/admit/{id}/{}", carol.id()))).await).await;
    let other = make(&alice, id, 3600, 1).await;
    assert_eq!(outcome(&fetch(&carol, &other.text).await), "done");
    let links: Links = ok(alice.operator(PeerRequest::get("/links")).await).await;
    assert_eq!(links.links.iter().find(|link| link.link == other.link.link).unwrap().used, 0);
}

#[tokio::test]
async fn what_rests_of_a_link_opens_nothing() {
    let (alice, _bob) = pair().await;
    let id = share(&alice, "none", content(10)).await.id;
    let made = make(&alice, id, 3600, 1).await;
    let secret = made.text.rsplit('/').next().unwrap();
    let rows = alice.context().scan(openred_module::Scan::prefix("")).await.unwrap().rows;
    assert!(!rows.is_empty());
    for (key, row) in rows {
        for bytes in [key, row] {
            assert!(!String::from_utf8_lossy(&bytes).contains(secret));
            assert!(!bytes.windows(32).any(|window| window == hex::decode(secret).unwrap()));
        }
    }
    let links: serde_json::Value = ok(alice.operator(PeerRequest::get("/links")).await).await;
    assert!(!links.to_string().contains(secret));
}

#[tokio::test]
async fn wrong_expired_used_up_and_revoked_links_look_the_same() {
    let (alice, bob) = pair().await;
    let id = share(&alice, "none", content(10)).await.id;
    let hidden = share(&alice, "none", content(20)).await.id;
    let secret = |made: &MadeLink| made.text.rsplit('/').next().unwrap().to_owned();
    let (short, once, gone, good) = (
        make(&alice, id, 1, 5).await,
        make(&alice, id, 60, 1).await,
        make(&alice, id, 60, 5).await,
        make(&alice, id, 60, 5).await,
    );
    let mut tickets = 0_u8;
    let mut redeem = async |id: FileId, secret: String| {
        tickets += 1;
        let order = serde_json::json!({ "v": 1, "secret": secret, "ticket": hex::encode([tickets; 16]) });
        alice.as_peer(bob.id(), post(format!("/redeem/{id}"), &order)).await
    };
    assert_eq!(redeem(id, secret(&once)).await.status, Status::Ok);
    alice.advance(1000).await;
    assert_eq!(alice.operator(empty(format!("/revoke/{}", gone.link.link))).await.status, Status::Ok);
    let mut seen = Vec::new();
    for (id, secret) in [
        (id, "00".repeat(32)),
        (id, secret(&short)),
        (id, secret(&once)),
        (id, secret(&gone)),
        (hidden, secret(&good)),
        (FileId::from_bytes([3; 32]), secret(&good)),
    ] {
        seen.push(refusal(redeem(id, secret).await).await);
    }
    seen.push(
        refusal(alice.as_peer(bob.id(), PeerRequest::get(format!("/meta/{}", FileId::from_bytes([3; 32])))).await)
            .await,
    );
    let ticket = "ab".repeat(16);
    seen.push(refusal(alice.as_peer(bob.id(), PeerRequest::get(format!("/by/{ticket}/meta/{id}"))).await).await);
    assert_eq!(seen[0].1, "no-such-file");
    assert!(seen.iter().all(|refusal| *refusal == seen[0]), "{seen:?}");
    assert_eq!(redeem(id, secret(&good)).await.status, Status::Ok);
    // What is no order is said, whatever it holds.
    for bad in [serde_json::json!({}), serde_json::json!({ "v": 1, "secret": "zz", "ticket": ticket })] {
        let answer = alice.as_peer(bob.id(), post(format!("/redeem/{id}"), &bad)).await;
        assert_eq!(refusal(answer).await.1, "bad-json");
    }
}

#[tokio::test]
async fn wrong_guesses_are_bounded_and_lock_out_nobody_else() {
    let (alice, bob) = pair().await;
    let carol = third(&alice).await;
    let id = share(&alice, "none", content(10)).await.id;
    let made = make(&alice, id, 3600, 9).await;
    let wrong = made.text.replace(made.text.rsplit('/').next().unwrap(), &"11".repeat(32));
    for _ in 0..10 {
        assert_eq!(outcome(&fetch(&bob, &wrong).await), "link-refused");
    }
    assert_eq!(outcome(&fetch(&bob, &wrong).await), "too-many-tries");
    assert_eq!(outcome(&fetch(&bob, &made.text).await), "too-many-tries", "and a right one tells nothing");
    assert_eq!(outcome(&fetch(&carol, &made.text).await), "done");
    // The peer's new name is the same peer.
    let new = NodeId::from_bytes([9; 32]);
    alice.succeed(bob.id(), new).await;
    let order = serde_json::json!({ "v": 1, "secret": "11".repeat(32), "ticket": "00".repeat(16) });
    let answer = alice.as_peer(new, post(format!("/redeem/{id}"), &order)).await;
    assert_eq!(refusal(answer).await.0, Status::TooMany);
    alice.advance(60_000).await;
    for _ in 0..20 {
        assert_eq!(outcome(&fetch(&bob, &made.text).await), "done", "right ones are not counted");
    }
}

#[tokio::test]
async fn a_fetch_counts_once_however_often_either_side_is_killed() {
    // The sharing node ends right after the batch that counts, and its peer hears nothing.
    let (alice, bob) = pair().await;
    let id = share(&alice, "none", content(pieces(3))).await.id;
    let made = make(&alice, id, 3600, 1).await;
    alice.crash_after(1);
    assert_ne!(outcome(&fetch(&bob, &made.text).await), "done");
    alice.kill_and_restart(Files::default()).await;
    assert_eq!(used(&alice).await, [1]);
    // The fetching node ends after each of its changes; the same command goes on.
    for changes in 1..4 {
        bob.crash_after(changes);
        read_until_killed(bob.operator(fetch_request(&made.text)).await.body).await;
        bob.kill_and_restart(Files::default()).await;
        assert_eq!(used(&alice).await, [1], "{changes}");
    }
    // And in the middle of the content.
    let mut lines = bob.operator(fetch_request(&made.text)).await.body;
    lines.next().await.unwrap().unwrap();
    drop(lines);
    bob.cut_power_and_restart(Files::default()).await;
    assert_eq!(outcome(&fetch(&bob, &made.text).await), "done");
    assert_eq!(used(&alice).await, [1]);
    // Answers that get lost, requests that come twice: one fetch all the same.
    forget(&bob, id).await;
    let made = make(&alice, id, 3600, 1).await;
    bob.faults([Fault::DropResponse, Fault::Duplicate, Fault::DropResponse]);
    while outcome(&fetch(&bob, &made.text).await) != "done" {}
    let links: Links = ok(alice.operator(PeerRequest::get("/links")).await).await;
    assert!(links.links.iter().all(|link| link.used == 1));
}

#[tokio::test]
async fn no_more_than_the_count_complete_whoever_comes_and_whenever_it_crashes() {
    let (alice, _bob) = pair().await;
    let id = share(&alice, "none", content(5000)).await.id;
    let made = make(&alice, id, 3600, 3).await;
    let mut peers = Vec::new();
    for seed in 10..18 {
        let peer = TestHost::start(seed, Files::default()).await;
        link(&alice, &peer);
        peers.push(peer);
    }
    // All at once, while the sharing node is killed again and again.
    let mut done = vec![false; peers.len()];
    for round in 0..6 {
        if round < 4 {
            alice.crash_after(1);
        }
        let runs = peers.iter().map(|peer| fetch(peer, &made.text));
        for (done, progress) in done.iter_mut().zip(futures_util::future::join_all(runs).await) {
            *done |= outcome(&progress) == "done";
        }
        alice.kill_and_restart(Files::default()).await;
    }
    assert_eq!(done.iter().filter(|done| **done).count(), 3);
    assert_eq!(used(&alice).await, [3]);
}

#[tokio::test]
async fn links_end_with_their_time_their_share_and_their_operator() {
    let (alice, bob) = pair().await;
    let id = share(&alice, "none", content(pieces(3))).await.id;
    let made = make(&alice, id, 3600, 5).await;
    // Begun in time, and cut off by the end all the same.
    let mut lines = bob.operator(fetch_request(&made.text)).await.body;
    lines.next().await.unwrap().unwrap();
    drop(lines);
    alice.advance(HOUR).await;
    assert_eq!(outcome(&fetch(&bob, &made.text).await), "link-refused");
    assert!(used(&alice).await.is_empty());
    // A share that ends takes its links with it; the same file shared again has none, whenever the node was killed.
    for crash in 1..7 {
        let made = make(&alice, id, 3600, 5).await;
        assert_ne!(outcome(&fetch(&bob, &made.text).await), "link-refused");
        forget(&bob, id).await;
        alice.crash_after(crash);
        drop(alice.operator(empty(format!("/unshare/{id}"))).await);
        alice.kill_and_restart(Files::default()).await;
        drop(alice.operator(empty(format!("/unshare/{id}"))).await);
        share(&alice, "none", content(pieces(3))).await;
        assert_eq!(outcome(&fetch(&bob, &made.text).await), "link-refused", "killed after {crash}");
        assert_eq!((alice.count_rows(b"l/"), alice.count_rows(b"k/")), (0, 0));
    }
    assert_eq!(refusal(alice.operator(empty("/revoke/0011223344556677".into())).await).await.1, "no-such-link");
    assert_eq!(refusal(alice.operator(empty("/revoke/x".into())).await).await.1, "no-such-link");
}

#[tokio::test]
async fn settings_say_what_an_order_does_not_and_how_much_there_may_be() {
    let (alice, bob) = pair().await;
    let id = share(&alice, "all", content(10)).await.id;
    let plain = || post(format!("/link/{id}"), &LinkOrder::default());
    let made: MadeLink = ok(alice.operator(plain()).await).await;
    assert_eq!((made.link.expires_at - made.link.made_at, made.link.fetches), (24 * HOUR, 1));
    alice.configure("link_hours = 2\nlink_fetches = 7\nlinks = 2\n");
    let made: MadeLink = ok(alice.operator(plain()).await).await;
    assert_eq!((made.link.expires_at - made.link.made_at, made.link.fetches), (2 * HOUR, 7));
    assert_eq!(refusal(alice.operator(plain()).await).await.1, "too-many");
    alice.advance(2 * HOUR).await;
    let _: MadeLink = ok(alice.operator(plain()).await).await;
    for (seconds, fetches) in [(0, 1), (366 * 86_400 + 1, 1), (1, 0), (1, 1001), (u64::MAX, 1)] {
        let order = LinkOrder { seconds: Some(seconds), fetches: Some(fetches) };
        let refused = refusal(alice.operator(post(format!("/link/{id}"), &order)).await).await;
        assert_eq!(refused.1, "bad-link-order");
    }
    let nothing = post(format!("/link/{}", FileId::from_bytes([5; 32])), &LinkOrder::default());
    alice.configure("");
    assert_eq!(refusal(alice.operator(nothing).await).await.1, "no-such-file");
    assert_eq!(refusal(bob.operator(fetch_request("openred-file:x")).await).await.1, "bad-link");
    // So many fetches at a time.
    bob.configure("fetches = 1\n");
    let long = share(&alice, "all", content(pieces(9))).await.id;
    let mut first = bob.operator(empty(format!("/fetch/{}/{long}", alice.id()))).await.body;
    first.next().await.unwrap().unwrap();
    let second = bob.operator(empty(format!("/fetch/{}/{id}", alice.id()))).await;
    let (status, code, _) = refusal(second).await;
    assert_eq!((status, code.as_str()), (Status::TooMany, "too-many"));
    drop(first);
    assert_eq!(outcome(&run(&bob, empty(format!("/fetch/{}/{id}", alice.id()))).await), "done");
}

#[tokio::test]
async fn rows_of_the_version_before_are_read_as_they_are() {
    let (alice, bob) = pair().await;
    let id = share(&alice, "all", content(1000)).await.id;
    let key = |prefix: &str| [prefix.as_bytes(), id.as_bytes()].concat();
    let old = format!(
        r#"{{"v":1,"id":"{id}","name":"old","length":1000,"shared_at":1,"audience":{{"all":false,"peers":["{}"]}}}}"#,
        bob.id()
    );
    alice.context().put(key("s/"), old).await.unwrap();
    let old = format!(
        r#"{{"v":1,"id":"{id}","peer":"{}","name":"old","length":1000,"begun_at":1,"failed":"interrupted"}}"#,
        alice.id()
    );
    bob.context().put(key("t/"), old).await.unwrap();
    alice.kill_and_restart(Files::default()).await;
    bob.kill_and_restart(Files::default()).await;
    assert_eq!(offered(&bob, &alice).await[0].files[0].name, "old");
    let made = make(&alice, id, 60, 1).await;
    assert_eq!(outcome(&fetch(&bob, &made.text).await), "done");
    let transfers: openred_files::Transfers = ok(bob.operator(PeerRequest::get("/transfers")).await).await;
    assert_eq!((transfers.transfers[0].begun_at, transfers.transfers[0].failed.clone()), (1, None));
    forget(&bob, id).await;
    assert_eq!(bob.count_rows(b""), 0);
}
