//! The client against a directory that may lie, over real sockets, with a real front and vault signing.

mod log;

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};

use axum::Router;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use chacha20poly1305::aead::{Aead as _, Payload};
use chacha20poly1305::{ChaCha20Poly1305, KeyInit as _};
use openred_proto::admission::Work;

use super::client::Standing;
use super::*;
use crate::keys::tests::{Daemon, daemon};
use crate::reports::Seen;
use crate::store::StoreThread;

const DAY: Duration = Duration::from_secs(86_400);
/// Whose key is of the seed that [`log`] signs heads with.
const LIAR: NodeId = NodeId::from_bytes([
    0x6e, 0xe0, 0x91, 0xfd, 0x28, 0x0a, 0x9b, 0x68, 0x55, 0x4f, 0xa7, 0x3c, 0x58, 0x81, 0x25, 0xd4, 0x7d, 0x34, 0x25,
    0xc6, 0x8a, 0x26, 0xba, 0x23, 0x6b, 0x4d, 0xad, 0x90, 0xf9, 0x0a, 0x8f, 0x92,
]);

/// What the directory says next.
#[derive(Default)]
struct Script {
    /// Cards for look-ups, in order; the last one again and again.
    cards: Mutex<VecDeque<Bytes>>,
    /// Seconds by which its clock is ahead.
    ahead: u64,
    /// Requests to `receive`.
    received: AtomicU64,
    /// Zero bits of work that it asks for.
    work: Option<u32>,
    /// What it says of a registration.
    outcome: &'static str,
    /// What registrations brought.
    bodies: Mutex<Vec<serde_json::Value>>,
    /// Registrations, with the time that each was signed for.
    registered: Mutex<Vec<u64>>,
    /// Digits below which too many nodes begin so.
    digits: usize,
    /// Ids and prefixes that were asked for.
    asked: Mutex<Vec<String>>,
    /// Nobody answers look-ups.
    silent: bool,
    /// The log that it shows.
    log: Mutex<log::Played>,
}

async fn look_up(State(script): State<Arc<Script>>, Path(id): Path<String>) -> Response {
    lock(&script.asked).push(id);
    if script.silent {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    let mut cards = lock(&script.cards);
    let card = if cards.len() > 1 { cards.pop_front() } else { cards.front().cloned() };
    match card {
        Some(card) => axum::Json(serde_json::json!({ "card": wire::encode(&card) })).into_response(),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

/// Everybody's sealed cards: those of the script, whatever the prefix, and one of a stranger.
async fn by_prefix(State(script): State<Arc<Script>>, Path(prefix): Path<String>) -> Response {
    lock(&script.asked).push(prefix.clone());
    if prefix.len() < script.digits {
        let problem = serde_json::json!({ "code": "prefix.wide" });
        return (StatusCode::UNPROCESSABLE_ENTITY, axum::Json(problem)).into_response();
    }
    let seal = |node: &NodeId, card: &[u8]| {
        let shown = openred_proto::crowd::InCrowd { index: 7, salt: None, card: card.to_vec() };
        let (nonce, plain) = ([3; 12], shown.encode());
        let payload = Payload { msg: &plain, aad: prefix.as_bytes() };
        let cipher = ChaCha20Poly1305::new(&openred_proto::crowd::key(node).into());
        wire::encode(&[&nonce[..], &cipher.encrypt(&nonce.into(), payload).unwrap()].concat())
    };
    let mut sealed = vec![seal(&NodeId::from_bytes([5; 32]), b"a stranger's")];
    for card in lock(&script.cards).iter() {
        sealed.push(seal(&Card::verify(card, clock::now()).unwrap().node_id, card));
    }
    axum::Json(serde_json::json!({ "sealed": sealed })).into_response()
}

/// Refuses a signature of another time than its own, as a directory does.
async fn register(State(script): State<Arc<Script>>, headers: HeaderMap, body: Bytes) -> Response {
    let input = headers["signature-input"].to_str().unwrap();
    let created = input.split_once("created=").unwrap().1.split(';').next().unwrap().parse::<u64>().unwrap();
    let now = clock::now().0 / 1000 + script.ahead;
    lock(&script.registered).push(created);
    if created.abs_diff(now) > 60 {
        return (StatusCode::UNAUTHORIZED, [(header::DATE, http_date(now))]).into_response();
    }
    let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
    lock(&script.bodies).push(body.clone());
    if let Some(bits) = script.work.filter(|_| body["work"].is_null()) {
        let problem = serde_json::json!({ "code": "admission.work", "work_bits": bits });
        return (StatusCode::FORBIDDEN, axum::Json(problem)).into_response();
    }
    let (outcome, again) = (script.outcome, 3600);
    axum::Json(serde_json::json!({ "outcome": outcome, "announce_after_seconds": again })).into_response()
}

fn http_date(seconds: u64) -> String {
    httpdate::fmt_http_date(std::time::UNIX_EPOCH + Duration::from_secs(seconds))
}

async fn receive(State(script): State<Arc<Script>>) -> StatusCode {
    script.received.fetch_add(1, Ordering::Relaxed);
    StatusCode::OK
}

struct Stage {
    directories: Arc<Directories>,
    script: Arc<Script>,
    /// What its mirror says, if it has one.
    mirror: Arc<Script>,
    health: Arc<Health>,
    reports: Arc<Reports>,
    peer: NodeId,
    /// The peer's cards, older first.
    cards: [Bytes; 2],
    _daemons: [Daemon; 2],
    _store: (tempfile::TempDir, StoreThread),
}

impl Stage {
    async fn new(script: Script) -> Self {
        Self::with(script, None, LookUps::Plain).await
    }

    async fn with(script: Script, mirror: Option<Script>, look_ups: LookUps) -> Self {
        let has_mirror = mirror.is_some();
        let mirror = Arc::new(mirror.unwrap_or_default());
        let at_mirror = serve(Arc::clone(&mirror));
        let mirrors = has_mirror.then(|| format!("{LIAR}@http://{at_mirror}").parse().unwrap());
        let (mine, theirs) = (daemon(1), daemon(2));
        let (keys, peer_keys) = (mine.client(), theirs.client());
        let peer = peer_keys.describe().await.unwrap().node;
        let mut cards = Vec::new();
        for port in [4000, 4001] {
            let fields = CardFields { endpoints: vec![format!("http://192.0.2.1:{port}")], ..CardFields::default() };
            cards.push(peer_keys.sign_card(fields, MethodSet::ALL, DAY).await.unwrap().statement);
        }
        let script = Arc::new(script);
        let address = serve(Arc::clone(&script));
        let folder = tempfile::tempdir().unwrap();
        let (store, thread) = Store::open(folder.path(), 0).unwrap();
        let (health, reports) = (Arc::new(Health::default()), Arc::new(Reports::default()));
        let directories = Directories::new(Parts {
            me: keys.describe().await.unwrap().node,
            listens_locally: false,
            addresses: vec![format!("{LIAR}@http://{address}").parse().unwrap()],
            mirrors: mirrors.into_iter().collect(),
            look_ups,
            names: ResolvedNames::default(),
            tls: Arc::new(crate::daemon::tls_config(std::path::Path::new("")).unwrap()),
            card: CardFields::default(),
            suites: MethodSet::ALL,
            card_life: DAY,
            invites: vec![Invite::new(&LIAR, [1; 16]), Invite::new(&NodeId::from_bytes([9; 32]), [2; 16])],
            keys,
            store,
            health: Arc::clone(&health),
            reports: Arc::clone(&reports),
        });
        let cards = [cards[0].clone(), cards[1].clone()];
        directories.clients[0].stands(Standing::Registered);
        Self {
            directories,
            script,
            mirror,
            health,
            reports,
            peer,
            cards,
            _daemons: [mine, theirs],
            _store: (folder, thread),
        }
    }

    fn says(&self, cards: &[&Bytes]) {
        *lock(&self.script.cards) = cards.iter().copied().cloned().collect();
    }

    fn conditions(&self) -> Vec<String> {
        self.health.report().into_iter().map(|condition| condition.code).collect()
    }
}

fn serve(script: Arc<Script>) -> SocketAddr {
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    let router = Router::new()
        .route("/api/v3/nodes/{id}", get(look_up))
        .route("/api/v3/nodes/prefix/{prefix}", get(by_prefix))
        .route("/api/v3/nodes/register", post(register))
        .route("/api/v3/tokens/receive", get(receive))
        .route("/api/v3/log/{call}", get(log::answer))
        .with_state(script);
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await });
    address
}

#[tokio::test]
async fn an_older_card_is_a_named_lie_until_the_truth_comes() {
    let stage = Stage::new(Script::default()).await;
    let [older, newer] = &stage.cards;
    stage.says(&[newer]);
    let found = stage.directories.look_up(stage.peer, Keep::Card).await.unwrap();
    assert_eq!(found.card.fields.endpoints, ["http://192.0.2.1:4001"]);
    stage.says(&[older]);
    assert_eq!(stage.directories.look_up(stage.peer, Keep::Card).await.unwrap_err(), DirectoryError::Rollback);
    assert_eq!(stage.conditions(), ["directory.dishonest"]);
    assert_eq!(stage.reports.waiting(Seen::DirectoryLied), 1, "each lie is for the audit trail");
    let known = stage.directories.known_card(stage.peer).await.unwrap();
    assert_eq!(known.card.fields.endpoints, ["http://192.0.2.1:4001"], "nothing was believed");
    stage.says(&[newer]);
    stage.directories.look_up(stage.peer, Keep::Card).await.unwrap();
    assert!(stage.conditions().is_empty());
}

#[tokio::test]
async fn a_directory_that_is_behind_what_a_peer_handed_over_tells_no_lie() {
    let stage = Stage::new(Script::default()).await;
    let [older, newer] = &stage.cards;
    stage.says(&[older]);
    stage.directories.look_up(stage.peer, Keep::Card).await.unwrap();
    stage.directories.take_from_peer(stage.peer, newer.clone()).await.unwrap();
    let found = stage.directories.look_up(stage.peer, Keep::Card).await.unwrap();
    assert_eq!(found.card.fields.endpoints, ["http://192.0.2.1:4001"], "the newer one, whoever gave it");
    assert!(stage.conditions().is_empty() && stage.reports.waiting(Seen::DirectoryLied) == 0);
    // Once it has had the newer one, the older one is a lie.
    stage.says(&[newer]);
    stage.directories.look_up(stage.peer, Keep::Card).await.unwrap();
    stage.says(&[older]);
    assert_eq!(stage.directories.look_up(stage.peer, Keep::Card).await.unwrap_err(), DirectoryError::Rollback);
    assert_eq!(stage.conditions(), ["directory.dishonest"]);
}

#[tokio::test]
async fn a_card_of_somebody_else_and_a_changed_one_are_lies_and_silence_is_none() {
    let stage = Stage::new(Script::default()).await;
    let mut changed = stage.cards[0].to_vec();
    *changed.last_mut().unwrap() ^= 1;
    let somebody_else = NodeId::from_bytes([7; 32]);
    stage.says(&[&stage.cards[0]]);
    let error = stage.directories.look_up(somebody_else, Keep::Card).await.unwrap_err();
    assert!(matches!(error, DirectoryError::BadAnswer(WireError::WrongSigner { .. })), "{error}");
    stage.says(&[&changed.into()]);
    assert!(stage.directories.look_up(stage.peer, Keep::Card).await.unwrap_err().is_dishonest());
    assert_eq!(stage.conditions(), ["directory.dishonest"]);
    stage.says(&[]);
    assert_eq!(stage.directories.look_up(stage.peer, Keep::Card).await.unwrap_err(), DirectoryError::UnknownNode);
    assert_eq!(stage.conditions(), ["directory.dishonest"], "a refusal takes nothing back");
    assert_eq!(stage.reports.waiting(Seen::DirectoryLied), 2, "and is no lie");
}

#[tokio::test]
async fn of_two_look_ups_at_once_the_newer_card_is_kept() {
    let stage = Stage::new(Script::default()).await;
    let [older, newer] = &stage.cards;
    for _ in 0..20 {
        stage.says(&[newer, older]);
        let (one, two) = tokio::join!(
            stage.directories.look_up(stage.peer, Keep::Card),
            stage.directories.look_up(stage.peer, Keep::Card)
        );
        // The older answer may be seen as what it is, or lose to the newer one: it is never what is believed afterwards.
        for answer in [one, two] {
            assert!(answer.is_ok() || answer.unwrap_err() == DirectoryError::Rollback);
        }
        let known = stage.directories.known_card(stage.peer).await.unwrap();
        assert_eq!(known.card.fields.endpoints, ["http://192.0.2.1:4001"]);
    }
}

#[tokio::test]
async fn a_clock_that_is_off_is_corrected_towards_the_directory() {
    let stage = Stage::new(Script { ahead: 1800, ..Script::default() }).await;
    let client = &stage.directories.clients[0];
    let again = client.register(&stage.cards[0]).await.unwrap();
    assert_eq!(again, Duration::from_secs(3600));
    let off = client.clock_error().unwrap();
    assert!(off.as_secs().abs_diff(1800) <= 2, "{off:?}");
    client.register(&stage.cards[0]).await.unwrap();
    let registered = lock(&stage.script.registered).clone();
    assert_eq!(registered.len(), 3, "once refused, then right at once: {registered:?}");
}

#[tokio::test]
async fn a_directory_that_answers_receive_with_nothing_is_not_asked_in_a_loop() {
    let stage = Stage::new(Script::default()).await;
    let client = Arc::clone(&stage.directories.clients[0]);
    client.registered.notify_one();
    let (delivered, _inbox) = mpsc::channel(1);
    let listening = tokio::spawn(stream::listen(client, delivered));
    // Long enough for a loop to show itself: pauses of half a second and more leave room for a handful.
    tokio::time::sleep(Duration::from_secs(2)).await;
    listening.abort();
    let received = stage.script.received.load(Ordering::Relaxed);
    assert!((1..=8).contains(&received), "{received}");
}

#[tokio::test]
async fn endpoints_come_from_memory_until_they_have_failed() {
    use crate::p2p::ports::Endpoints as _;
    let stage = Stage::new(Script::default()).await;
    let [older, newer] = &stage.cards;
    let ports = DirectoryPorts(Arc::clone(&stage.directories));
    stage.says(&[older, newer]);
    for _ in 0..5 {
        assert_eq!(ports.endpoints(&stage.peer).await, ["http://192.0.2.1:4000"]);
    }
    ports.failed(&stage.peer);
    assert_eq!(ports.endpoints(&stage.peer).await, ["http://192.0.2.1:4001"], "looked up anew, once");
    assert_eq!(ports.endpoints(&stage.peer).await, ["http://192.0.2.1:4001"]);
}

#[test]
fn a_card_sends_requests_to_other_hosts_only() {
    for good in ["http://192.0.2.1:7690", "http://10.1.2.3", "http://[2001:db8::1]:80/base"] {
        assert!(is_reachable(good, false), "{good}");
    }
    for bad in [
        "http://169.254.169.254/latest",
        "http://[fe80::1]:80",
        "http://0.0.0.0:1",
        "http://224.0.0.1:1",
        "http://255.255.255.255:1",
        "http://[::ffff:169.254.1.1]:80",
        "http://node.example:7690",
        "nonsense",
    ] {
        assert!(!is_reachable(bad, true), "{bad}");
    }
    for local in ["http://127.0.0.1:7690", "http://[::1]:7690", "http://[::ffff:127.0.0.1]:1"] {
        assert!(!is_reachable(local, false), "{local}");
        assert!(is_reachable(local, true), "{local}");
    }
}

#[tokio::test]
async fn a_node_works_for_its_place_and_shows_each_directory_its_own_invite() {
    let stage = Stage::new(Script { work: Some(10), ..Script::default() }).await;
    let client = &stage.directories.clients[0];
    client.register(b"card").await.unwrap();
    let bodies = lock(&stage.script.bodies).clone();
    assert_eq!(bodies.len(), 2, "it works when it is asked to");
    assert!(bodies.iter().all(|body| body["invite"] == Invite::new(&LIAR, [1; 16]).to_string()));
    let number = |name: &str| bodies[1]["work"][name].as_u64().unwrap();
    let work = Work { time: number("time"), nonce: number("nonce") };
    let me = stage.directories.me;
    assert_eq!(work.verify(&LIAR, &me, clock::now(), 10), Ok(()));
}

#[tokio::test]
async fn work_that_is_too_much_and_quarantine_are_told_by_name() {
    let stage = Stage::new(Script { work: Some(29), ..Script::default() }).await;
    let refused = stage.directories.clients[0].register(b"card").await;
    assert_eq!(refused, Err(DirectoryError::WorkWanted(29)));
    let stage = Stage::new(Script { outcome: "quarantined", ..Script::default() }).await;
    assert_eq!(stage.directories.clients[0].register(b"card").await, Err(DirectoryError::Quarantined));
}

/// A mirror that gives this card, or none, beside the stage's directory.
async fn mirrored(directory: Script, says: impl Fn(&Stage) -> Option<Bytes>) -> Stage {
    let stage = Stage::with(directory, Some(Script::default()), LookUps::Plain).await;
    *lock(&stage.mirror.cards) = says(&stage).into_iter().collect();
    stage
}

#[tokio::test]
async fn a_mirror_is_asked_first_and_the_directory_for_what_it_has_not() {
    let stage = mirrored(Script::default(), |stage| Some(stage.cards[0].clone())).await;
    let found = stage.directories.look_up(stage.peer, Keep::Card).await.unwrap();
    assert_eq!((found.directory, found.card.fields.endpoints[0].as_str()), (LIAR, "http://192.0.2.1:4000"));
    assert!(lock(&stage.script.asked).is_empty(), "the directory was not asked");

    let stage = mirrored(Script::default(), |_| None).await;
    stage.says(&[&stage.cards[1]]);
    stage.directories.look_up(stage.peer, Keep::Card).await.unwrap();
    assert_eq!((lock(&stage.mirror.asked).len(), lock(&stage.script.asked).len()), (1, 1));

    // What is known does not hold any more: the directory has the newer card first; a mirror serves where it is silent.
    let stage = mirrored(Script::default(), |stage| Some(stage.cards[0].clone())).await;
    stage.says(&[&stage.cards[1]]);
    let found = stage.directories.look_up_anew(stage.peer).await.unwrap();
    assert_eq!(found.card.fields.endpoints, ["http://192.0.2.1:4001"]);
    assert!(lock(&stage.mirror.asked).is_empty());
}

#[tokio::test]
async fn a_mirror_that_is_behind_tells_no_lie_and_one_that_forges_is_named() {
    let stage = mirrored(Script::default(), |stage| Some(stage.cards[0].clone())).await;
    stage.says(&[&stage.cards[1]]);
    stage.directories.look_up_anew(stage.peer).await.unwrap();
    let found = stage.directories.look_up(stage.peer, Keep::Card).await.unwrap();
    assert_eq!(found.card.fields.endpoints, ["http://192.0.2.1:4001"], "the older one is not believed");
    assert!(stage.conditions().is_empty(), "and nobody is blamed");

    let mut changed = stage.cards[0].to_vec();
    *changed.last_mut().unwrap() ^= 1;
    *lock(&stage.mirror.cards) = [changed.into()].into();
    stage.directories.look_up(stage.peer, Keep::Card).await.unwrap();
    let report = stage.health.report();
    let dishonest = report.iter().find(|condition| condition.code == "directory.dishonest").unwrap();
    assert!(dishonest.detail.contains(", a mirror: swapped-card"), "{}", dishonest.detail);
    assert_eq!(stage.reports.waiting(Seen::DirectoryLied), 1);
    assert!(
        stage.directories.status().iter().all(|directory| directory.evidence.is_empty()),
        "its directory is not blamed"
    );
}

#[tokio::test]
async fn among_others_nobody_is_told_whom_a_node_seeks() {
    let stage = Stage::with(Script { digits: 3, ..Script::default() }, None, LookUps::Prefix).await;
    stage.says(&[&stage.cards[0]]);
    let digits = hex::encode(stage.peer.as_bytes());
    let found = stage.directories.look_up(stage.peer, Keep::Card).await.unwrap();
    assert_eq!(found.card.node_id, stage.peer);
    assert_eq!(*lock(&stage.script.asked), [&digits[..1], &digits[..2], &digits[..3]]);
    lock(&stage.script.asked).clear();
    let nobody = NodeId::from_bytes([8; 32]);
    assert_eq!(stage.directories.look_up(nobody, Keep::Card).await.unwrap_err(), DirectoryError::UnknownNode);
    assert_eq!(*lock(&stage.script.asked), ["080"], "it begins with as many digits as were answered");
    stage.says(&[]);
    assert_eq!(stage.directories.look_up(stage.peer, Keep::Card).await.unwrap_err(), DirectoryError::UnknownNode);
}

#[tokio::test]
async fn a_mirror_is_asked_where_the_directory_is_silent() {
    let stage = mirrored(Script { silent: true, ..Script::default() }, |stage| Some(stage.cards[0].clone())).await;
    assert!(stage.directories.look_up_anew(stage.peer).await.is_ok());
    assert_eq!((lock(&stage.script.asked).len(), lock(&stage.mirror.asked).len()), (1, 1));
}

#[tokio::test]
async fn a_mirror_that_says_nothing_is_not_asked_each_time() {
    let silent = Script { silent: true, ..Script::default() };
    let stage = Stage::with(Script::default(), Some(silent), LookUps::Plain).await;
    stage.says(&[&stage.cards[0]]);
    for _ in 0..50 {
        stage.directories.look_up(stage.peer, Keep::Card).await.unwrap();
    }
    let asked = lock(&stage.mirror.asked).len();
    assert!((1..25).contains(&asked), "{asked}: its pauses double");
    assert_eq!(lock(&stage.script.asked).len(), 50);
}

#[tokio::test]
async fn a_directory_does_not_answer_for_what_a_mirror_alone_has_had() {
    let stage = mirrored(Script::default(), |stage| Some(stage.cards[1].clone())).await;
    stage.directories.look_up(stage.peer, Keep::Card).await.unwrap();
    stage.says(&[&stage.cards[0]]);
    let found = stage.directories.look_up_anew(stage.peer).await.unwrap();
    assert_eq!(found.card.fields.endpoints, ["http://192.0.2.1:4001"], "the newer one, whoever gave it");
    assert!(stage.conditions().is_empty() && stage.reports.waiting(Seen::DirectoryLied) == 0);
}

#[tokio::test]
async fn a_mirror_in_the_place_of_a_directory_has_no_duties_also_while_it_is_away() {
    let stage = Stage::new(Script::default()).await;
    let (client, [older, newer]) = (&stage.directories.clients[0], &stage.cards);
    stage.says(&[newer]);
    stage.directories.look_up(stage.peer, Keep::Card).await.unwrap();
    let mirror = Standing::Refused(DirectoryError::Mirror);
    for standings in [&[Standing::Starting][..], &[mirror], &[mirror, Standing::Unreachable(DirectoryError::Slow)]] {
        standings.iter().for_each(|standing| client.stands(*standing));
        stage.says(&[older]);
        let behind = stage.directories.look_up(stage.peer, Keep::Card).await.unwrap_err();
        assert_eq!(behind, DirectoryError::Behind, "{standings:?}");
        assert!(stage.directories.look(client).await, "and its log is not held against the directory's");
        assert!(stage.conditions().is_empty(), "{standings:?}: {:?}", stage.conditions());
        assert!(stage.directories.honesty.evidence(&LIAR).is_empty(), "{standings:?}");
    }
    let mut changed = older.to_vec();
    *changed.last_mut().unwrap() ^= 1;
    stage.says(&[&changed.into()]);
    assert!(stage.directories.look_up(stage.peer, Keep::Card).await.unwrap_err().is_dishonest());
    let detail = stage.health.report().remove(0).detail;
    assert!(detail.contains(", a mirror: swapped-card"), "{detail}");
    assert!(stage.directories.honesty.evidence(&LIAR).is_empty(), "nothing is proven against the directory");
    // Registered, it is one that has a log.
    client.stands(Standing::Registered);
    stage.says(&[older]);
    assert_eq!(stage.directories.look_up(stage.peer, Keep::Card).await.unwrap_err(), DirectoryError::Rollback);
    assert_eq!(stage.directories.honesty.evidence(&LIAR).len(), 1);
}
