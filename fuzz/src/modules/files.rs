//! `files`: which paths a peer asks for, by which secret it wants to be let in, what it answers to a fetch and for a list, and the text of a link
//! that somebody has handed on.

use openred_files::{Files, MadeLink, Offers, Progress, ShareView};
use openred_module::{Body, PeerRequest, Response, TestHost};

use super::{ANSWER, BOB, CAROL, Peer, answers, block_on, body, choice, is_plain, post, read, refused, value};

/// What nobody may fetch, and what one peer may.
const HIDDEN: &[u8] = b"hidden from everybody";
const SHOWN: &[u8] = b"shown to one";

pub(crate) fn files(bytes: &[u8]) {
    let (which, bytes) = choice(bytes, 5);
    block_on(async {
        match which {
            0 => asked_for(bytes).await,
            1 => redeemed(bytes).await,
            2 => fetched(bytes).await,
            3 => listed(bytes).await,
            _ => handed_on(bytes).await,
        }
    });
}

async fn share(host: &TestHost, to: &str, content: &[u8]) -> ShareView {
    let body = Body::whole(content.to_vec());
    read(host.operator(PeerRequest::post(format!("/share/{to}/file.txt"), "application/octet-stream", body)).await)
        .await
}

/// A node that shares one file with a peer and another with nobody.
async fn sharing() -> (TestHost, ShareView, ShareView) {
    let host = TestHost::start(1, Files::default()).await;
    let (hidden, shown) = (share(&host, "none", HIDDEN).await, share(&host, &BOB.to_string(), SHOWN).await);
    (host, hidden, shown)
}

/// No path leads to what is not shared with who asks.
async fn asked_for(bytes: &[u8]) {
    let Ok(path) = std::str::from_utf8(bytes) else { return };
    let (host, hidden, shown) = sharing().await;
    let names = |share: &ShareView| path.to_ascii_lowercase().contains(&share.id.to_string());
    for (peer, others) in [(BOB, vec![&hidden]), (CAROL, vec![&hidden, &shown])] {
        let answer = host.as_peer(peer, PeerRequest::get(path)).await;
        assert!(!(answer.status.is_success() && others.iter().any(|share| names(share))), "{path}");
        let told = answer.body.collect(ANSWER).await.unwrap_or_default();
        for share in others {
            let id = share.id.to_string();
            assert!(!told.windows(id.len()).any(|part| part == id.as_bytes()) || names(share), "{path}");
        }
    }
}

/// The link's own secret lets in who shows it, and nothing else does.
async fn redeemed(bytes: &[u8]) {
    let (host, hidden, _) = sharing().await;
    let made: MadeLink = read(host.operator(post(format!("/link/{}", hidden.id), "{}")).await).await;
    let secret = made.text.rsplit('/').next().unwrap();
    let answer = host.as_peer(BOB, post(format!("/redeem/{}", hidden.id), bytes.to_vec())).await;
    let order = value(bytes);
    let is_in = answer.status.is_success();
    assert!(!is_in || order["secret"] == secret, "{order}");
    let by = |ticket: &str| PeerRequest::get(format!("/by/{ticket}/meta/{}", hidden.id));
    if let Some(ticket) = order["ticket"].as_str() {
        assert_eq!(host.as_peer(BOB, by(ticket)).await.status.is_success(), is_in);
        assert!(!host.as_peer(CAROL, by(ticket)).await.status.is_success(), "the ticket of another");
    }
}

async fn ended(answer: Response) {
    if !answer.status.is_success() {
        return refused(answer).await;
    }
    let lines = body(answer).await;
    let last = lines.split(|byte| *byte == b'\n').rfind(|line| !line.is_empty()).expect("a fetch says how it ended");
    match serde_json::from_slice(last).expect("a line has its form") {
        Progress::Done { length, verified, .. } => assert_eq!(length, verified),
        Progress::Failed { code, .. } => assert!(!code.is_empty()),
        other => panic!("neither an end nor a failure: {other:?}"),
    }
}

/// Whatever a peer answers, what is here under a file's id is that file.
async fn fetched(bytes: &[u8]) {
    let host = TestHost::start(1, Files::default()).await;
    let id = TestHost::start(9, Files::default()).await;
    let id = share(&id, "none", SHOWN).await.id;
    let _peer = Peer::beside(&host, answers(bytes)).await;
    ended(host.operator(post(format!("/fetch/{BOB}/{id}"), "")).await).await;
    let here = host.operator(PeerRequest::get(format!("/read/{id}"))).await;
    if here.status.is_success() {
        assert_eq!(body(here).await, SHOWN);
    }
    let transfers = body(host.operator(PeerRequest::get("/transfers")).await).await;
    for transfer in value(&transfers)["transfers"].as_array().expect("there is a list") {
        assert!(transfer["name"].as_str().is_some_and(is_plain), "{transfer}");
    }
}

/// A list that is shown keeps its rules.
async fn listed(bytes: &[u8]) {
    let host = TestHost::start(1, Files::default()).await;
    let _peer = Peer::beside(&host, answers(bytes)).await;
    let answer = host.operator(PeerRequest::get(format!("/offered/{BOB}/start"))).await;
    if !answer.status.is_success() {
        return refused(answer).await;
    }
    let page: Offers = read(answer).await;
    assert!(page.files.iter().all(|file| is_plain(&file.name)), "{page:?}");
    assert!(page.files.is_sorted_by(|one, next| one.id.as_bytes() < next.id.as_bytes()), "{page:?}");
}

/// A link that somebody has handed on leads to a fetch, or is refused.
async fn handed_on(bytes: &[u8]) {
    let host = TestHost::start(1, Files::default()).await;
    let _peer = Peer::beside(&host, answers(&[])).await;
    ended(host.operator(post("/fetch-link", bytes.to_vec())).await).await;
}

/// Real paths, orders, answers and links.
pub(crate) fn corpus() -> Vec<(String, Vec<u8>)> {
    use super::corpus::{after, said};

    let (hidden, shown, link) = block_on(async {
        let (host, hidden, shown) = sharing().await;
        let made: MadeLink = read(host.operator(post(format!("/link/{}", hidden.id), "{}")).await).await;
        (hidden.id.to_string(), shown.id.to_string(), made.text)
    });
    let secret = link.rsplit('/').next().unwrap();
    let redeem = |secret: &str| format!(r#"{{"v":1,"secret":"{secret}","ticket":"{}"}}"#, "5".repeat(32));
    let (length, piece) = (SHOWN.len(), openred_files::PIECE);
    let meta = |id: &str| format!(r#"{{"v":1,"id":"{id}","name":"file.txt","length":{length},"piece":{piece}}}"#);
    // A file of one piece has one hash, which is its id.
    let hash = hex::decode(&shown).unwrap();
    let offer = |id: &str| format!(r#"{{"id":"{id}","name":"a.txt","length":5}}"#);
    let list = format!(r#"{{"v":1,"files":[{},{}],"next":"00ff"}}"#, offer(&"0".repeat(64)), offer(&"a".repeat(64)));
    crate::corpus::numbered([
        after(0, format!("/meta/{hidden}")),
        after(0, format!("/pieces/{shown}")),
        after(0, format!("/range/{shown}/0/{length}")),
        after(0, "/offers/start"),
        after(0, format!("/by/{}/meta/{hidden}", "5".repeat(32))),
        after(1, redeem(secret)),
        after(1, redeem(&"0".repeat(64))),
        after(2, [said(0, meta(&shown)), said(0, &hash), said(0, SHOWN)].concat()),
        after(2, [said(0, meta(&shown)), said(0, &hash), said(0, b"shown to two")].concat()),
        after(2, [said(0, meta(&hidden)), said(1, "")].concat()),
        after(3, said(0, list)),
        after(3, said(0, r#"{"v":1,"files":[]}"#)),
        after(4, format!(r#"{{"link":"{link}"}}"#)),
        after(4, format!(r#"{{"link":"{}"}}"#, link.replace("openred-file", "openred"))),
    ])
}
