//! Mirrors: one in this process that follows a directory which lies in each way that it can, and real programs over cuts, ends and restarts.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::Request;
use axum::http::header;
use axum::response::{IntoResponse as _, Response};
use openred_directory::api;
use openred_directory::api::log::LogHead;
use openred_directory::api::lookup::Sealed;
use openred_directory::api::mirror::{Changes, Present};
use openred_directory::api::nodes::{NodeView, Page};
use openred_directory::api::system::{Health, health_of};
use openred_directory::config::Config;
use openred_directory::identity::Identity;
use openred_directory::mirror::client::Target;
use openred_directory::mirror::follow::Follower;
use openred_directory::state::{Clock, Directory, Remembered};
use openred_directory::store::decision::Bans;
use openred_directory::store::sqlite::SqliteStore;
use openred_directory::store::{PreviousRun, StoreHandle};
use openred_proto::log::head::Head;
use serde_json::Value;

use crate::cluster::Cluster;
use crate::fixture::{Node, Reply, START, base64_text, json, request};
use crate::process::{Place, Serving, places};

const MIRROR_SEED: [u8; 32] = [201; 32];

/// Changes an answer's JSON on its way out.
type Bend = Arc<Mutex<Option<Bender>>>;

/// A directory behind a real socket, and a mirror of it; both in this process, with a clock that stands.
struct Pair {
    upstream: Arc<Directory>,
    /// What answers at the socket now.
    serving: Arc<Mutex<Router>>,
    mirror: Arc<Directory>,
    origin: String,
    bend: Bend,
    _folders: Vec<tempfile::TempDir>,
}

fn directory(config: &Config, identity: [u8; 32], origin: &str) -> (Arc<Directory>, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let database = folder.path().join("directory.sqlite");
    let store = SqliteStore::open(&database, 64).unwrap();
    let store = StoreHandle::start(store, [SqliteStore::open_reader(&database).unwrap()]).unwrap();
    let remembered = Remembered { bans: Bans::default(), before: PreviousRun::Never };
    let clock: Clock = Arc::new(|| START);
    let identity = Identity::from_seed(&identity);
    (Directory::new(config, identity, origin.to_owned(), store, remembered, clock), folder)
}

fn upstream_config() -> Config {
    let mut config = Config::default();
    *config.mirror.allow.get_mut() = vec![Identity::from_seed(&MIRROR_SEED).id().to_string()];
    (*config.limits.requests_per_second.get_mut(), *config.limits.requests_burst.get_mut()) = (10_000, 10_000);
    config
}

impl Pair {
    async fn new() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let origin = format!("http://{}", listener.local_addr().unwrap());
        let (upstream, folder) = directory(&upstream_config(), [200; 32], &origin);
        let serving = Arc::new(Mutex::new(api::router(Arc::clone(&upstream))));
        let bend: Bend = Arc::default();
        let (router, bends) = (Arc::clone(&serving), Arc::clone(&bend));
        let front = Router::new().fallback(move |request: Request| {
            let (router, bends) = (router.lock().unwrap().clone(), Arc::clone(&bends));
            async move {
                let response = tower::ServiceExt::oneshot(router, request).await.unwrap();
                bent(&bends, response).await
            }
        });
        tokio::spawn(async move { axum::serve(listener, front).await });
        let mut config = Config::default();
        *config.mirror.of.get_mut() = format!("{}@{origin}", upstream.identity.id());
        let (mirror, own) = directory(&config, MIRROR_SEED, "http://127.0.0.1:1");
        Self { upstream, serving, mirror, origin, bend, _folders: vec![folder, own] }
    }

    /// Another directory takes the place of the one that is mirrored.
    fn replace(&mut self, identity: [u8; 32]) {
        let (other, folder) = directory(&upstream_config(), identity, &self.origin);
        *self.serving.lock().unwrap() = api::router(Arc::clone(&other));
        self.upstream = other;
        self._folders.push(folder);
    }

    fn follow(&self) {
        let upstream = self.mirror.upstream.clone().unwrap();
        let target = Target::open(upstream.address.clone(), "".as_ref()).unwrap();
        tokio::spawn(Follower::new(Arc::clone(&self.mirror), upstream, target).run());
    }

    async fn register(&self, seed: u8, listed: bool) -> Node {
        let node = Node::new(seed);
        let mut card = node.card(START);
        card.fields.listed = listed;
        let (body, path) = (json("card", &node.sign_card(&card)), "/api/v3/nodes/register");
        let input = node.input("POST", &format!("{}{path}", self.origin), &body, START.seconds());
        let reply = self.at_upstream(request("POST", path, &node.sign_input(&input), body)).await;
        assert_eq!(reply.status, 200, "{}", String::from_utf8_lossy(&reply.body));
        node
    }

    async fn at_upstream(&self, request: axum::http::Request<Body>) -> Reply {
        let router = self.serving.lock().unwrap().clone();
        Reply::read(tower::ServiceExt::oneshot(router, request).await.unwrap()).await
    }

    async fn at_mirror(&self, method: &str, path: &str, body: &[u8]) -> Reply {
        let router = api::router(Arc::clone(&self.mirror));
        let request = request(method, path, &[], body.to_vec());
        Reply::read(tower::ServiceExt::oneshot(router, request).await.unwrap()).await
    }

    /// Waits for the mirror's health.
    async fn until(&self, what: &str, mut is_so: impl FnMut(&Health) -> bool) -> Health {
        for _ in 0..2400 {
            let health = health_of(&self.mirror);
            if is_so(&health) {
                return health;
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        panic!("not {what}: {:?}", health_of(&self.mirror));
    }

    async fn until_it_has(&self, entries: u64) {
        let has = |health: &Health| health.status == "ok" && health.mirror.as_ref().unwrap().entries == entries;
        self.until("whole", has).await;
    }

    /// Waits until it has caught the directory, and gives what it says.
    async fn until_caught(&self) -> String {
        let lie = |health: &Health| {
            health.conditions.iter().find(|found| found.code == "upstream.honest" && !found.ok).cloned()
        };
        lie(&self.until("caught", |health| lie(health).is_some()).await).unwrap().detail
    }
}

async fn bent(bend: &Bend, response: Response) -> Response {
    if !response.status().is_success() || bend.lock().unwrap().is_none() {
        return response;
    }
    let (parts, body) = response.into_parts();
    let bytes = to_bytes(body, 8 << 20).await.unwrap();
    let mut value: Value = serde_json::from_slice(&bytes).unwrap();
    if let Some(bend) = &*bend.lock().unwrap() {
        bend(&mut value);
    }
    (parts.status, [(header::CONTENT_TYPE, "application/json")], value.to_string()).into_response()
}

#[tokio::test]
async fn a_mirror_answers_who_reads_as_its_directory_does() {
    let pair = Pair::new().await;
    let filling = pair.at_mirror("GET", "/api/v3/nodes/discover", b"").await;
    assert_eq!(filling.refusal(), (503, "mirror.behind".into()), "nothing whole yet");
    assert!(filling.headers.contains_key("retry-after"));
    // More than one page.
    for seed in 1..=200 {
        pair.register(seed, seed % 3 != 0).await;
    }
    for seed in 1..=100 {
        let node = Node::new(seed);
        let mut card = node.card(START);
        card.sequence += 1;
        let (body, path) = (json("card", &node.sign_card(&card)), "/api/v3/nodes/register");
        let input = node.input("POST", &format!("{}{path}", pair.origin), &body, START.seconds());
        assert_eq!(pair.at_upstream(request("POST", path, &node.sign_input(&input), body)).await.status, 200);
    }
    pair.follow();
    pair.until_it_has(300).await;
    let prefix = format!("/api/v3/nodes/prefix/{}", &hex::encode(Node::new(3).id().as_bytes())[..4]);
    let same = [
        "/api/v3/log/head".to_owned(),
        "/api/v3/log/consistency?from=7&to=300".to_owned(),
        "/api/v3/log/inclusion?index=250&size=300".to_owned(),
        "/api/v3/nodes/discover".to_owned(),
        "/api/v3/nodes/discover?sector=lab&limit=3".to_owned(),
        format!("/api/v3/nodes/{}", Node::new(3).id()),
        format!("/api/v3/nodes/{}", Node::new(150).id()),
    ];
    for path in &same {
        let theirs = pair.at_upstream(request("GET", path, &[], Vec::new())).await;
        assert_eq!(theirs.ok::<Value>(), pair.at_mirror("GET", path, b"").await.ok::<Value>(), "{path}");
    }
    assert_eq!(pair.at_mirror("GET", &prefix, b"").await.ok::<Sealed>().sealed.len(), 1);
    let many = format!("{{\"nodes\":[\"{}\"]}}", Node::new(9).id());
    assert_eq!(pair.at_mirror("POST", "/api/v3/nodes/lookup", many.as_bytes()).await.status, 200);
    let head: LogHead = pair.at_mirror("GET", "/api/v3/log/head", b"").await.ok();
    let id = pair.upstream.identity.id();
    assert_eq!(Head::verify(head.head.as_bytes(), &id).unwrap().size, 300);
    assert_eq!(health_of(&pair.mirror).directory, id.to_string());

    // What the log gains comes at once, and what goes goes.
    let late = pair.register(210, false).await;
    pair.until_it_has(301).await;
    let view: NodeView = pair.at_mirror("GET", &format!("/api/v3/nodes/{}", late.id()), b"").await.ok();
    assert!(view.fresh && view.log.salt.is_some());
    pair.upstream.ban(late.id());
    let path = format!("/api/v3/nodes/{}", late.id());
    until_status(&pair, &path, 404).await;
    pair.upstream.unban(&late.id());
    until_status(&pair, &path, 200).await;
}

async fn until_status(pair: &Pair, path: &str, status: u16) {
    for _ in 0..2400 {
        if pair.at_mirror("GET", path, b"").await.status == status {
            return;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("{path} does not become {status}");
}

#[tokio::test]
async fn what_changes_something_is_refused_with_the_name_of_who_takes_it() {
    let pair = Pair::new().await;
    let node = Node::new(1);
    for (method, path) in [
        ("POST", "/api/v3/nodes/register".to_owned()),
        ("DELETE", format!("/api/v3/nodes/{}", node.id())),
        ("POST", "/api/v3/tokens/request-connection".to_owned()),
        ("GET", "/api/v3/tokens/receive".to_owned()),
        ("POST", "/api/v3/tokens/acknowledge".to_owned()),
    ] {
        let reply = pair.at_mirror(method, &path, b"{}").await;
        assert_eq!(reply.refusal(), (421, "mirror.reads-only".into()), "{method} {path}");
        let problem: Value = serde_json::from_slice(&reply.body).unwrap();
        let of = format!("{}@{}", pair.upstream.identity.id(), pair.origin);
        assert_eq!(problem["detail"], format!("it mirrors {of}"));
    }
    assert_eq!(pair.at_mirror("PUT", "/api/v3/nodes/register", b"").await.code(), "request.method");
}

#[tokio::test]
async fn only_named_mirrors_may_follow_and_ask_within_bounds() {
    let pair = Pair::new().await;
    pair.register(1, false).await;
    let ask = async |node: &Node, path: &str| {
        let input = node.input("GET", &format!("{}{path}", pair.origin), b"", START.seconds());
        pair.at_upstream(request("GET", path, &node.sign_input(&input), Vec::new())).await
    };
    let stranger = Node::new(9);
    for path in ["/api/v3/mirror/changes?from=0", "/api/v3/mirror/present?from=0"] {
        assert_eq!(ask(&stranger, path).await.refusal(), (403, "mirror.unknown".into()));
        assert_eq!(pair.at_upstream(request("GET", path, &[], Vec::new())).await.code(), "signature.missing");
    }
    let mirror = Node::new(201);
    assert_eq!(mirror.id(), Identity::from_seed(&MIRROR_SEED).id());
    for query in ["", "?from=-1", "?from=0&limit=0", "?from=0&limit=257", "?from=0&wait=61", "?from=0&more=1"] {
        let path = format!("/api/v3/mirror/changes{query}");
        assert_eq!(ask(&mirror, &path).await.code(), "request.malformed", "{query}");
    }
    let page: Changes = ask(&mirror, "/api/v3/mirror/changes?from=0").await.ok();
    assert_eq!((page.leaves.len(), page.cards.len(), page.proof.len()), (1, 1, 0));
    // One who has more than there is sees so by the head, and waits for nothing that is there.
    let page: Changes = ask(&mirror, "/api/v3/mirror/changes?from=9&wait=1").await.ok();
    assert!(page.leaves.is_empty() && page.cards.is_empty());
    let present: Present = ask(&mirror, "/api/v3/mirror/present?from=0").await.ok();
    assert_eq!((present.cards.len(), present.next), (1, None));
}

/// Bends an answer.
type Bender = Box<dyn Fn(&mut Value) + Send>;

fn bender(bend: impl Fn(&mut Value) + Send + 'static) -> Bender {
    Box::new(bend)
}

/// Bends the first card of a page.
fn of_card(bend: impl Fn(&mut Value) + Send + 'static) -> Bender {
    bender(move |value| value["cards"].as_array_mut().into_iter().flatten().take(1).for_each(&bend))
}

/// Each way in which a page can be wrong, and what is said of it.
fn lies() -> [(&'static str, Bender); 4] {
    let head = bender(|value| {
        let other = value["head"].as_str().map(|head| head.replacen("\n2\n", "\n3\n", 1));
        value["head"] = other.into();
    });
    let leaf = bender(|value| {
        if value["leaves"].as_array().is_some_and(|leaves| !leaves.is_empty()) {
            value["leaves"][0] = base64_text(&[7; 32]).into();
        }
    });
    // Its node signed it, and it is not in the log.
    let card = of_card(|card| {
        let node = Node::new(1);
        let mut other = node.card(START);
        other.fields.name = "another".into();
        card["card"] = base64_text(&node.sign_card(&other)).into();
    });
    let salt = of_card(|card| card["salt"] = "00112233445566778899aabbccddeeff".into());
    [
        ("is not one of its own", head),
        ("do not lead from what was followed so far", leaf),
        ("is not the entry", card),
        ("is not the entry", salt),
    ]
}

#[tokio::test]
async fn each_lie_on_a_page_is_named_and_nothing_of_it_is_served() {
    for (said, lie) in lies() {
        let pair = Pair::new().await;
        pair.register(1, true).await;
        pair.register(2, true).await;
        *pair.bend.lock().unwrap() = Some(lie);
        pair.follow();
        let detail = pair.until_caught().await;
        assert!(detail.contains(said), "{detail}");
        assert_eq!(pair.at_mirror("GET", "/api/v3/nodes/discover", b"").await.code(), "mirror.behind");
        let held = pair.mirror.store.read(|store| store.log_end()).await.unwrap();
        assert_eq!(held.size, 0, "{said}");
    }
}

#[tokio::test]
async fn a_log_that_is_rolled_back_or_rewritten_is_named_and_not_followed() {
    for (entries, said) in [(1_u8, "rolled its log back"), (2, "do not lead"), (5, "do not lead")] {
        let mut pair = Pair::new().await;
        pair.register(1, true).await;
        pair.register(2, false).await;
        pair.follow();
        pair.until_it_has(2).await;
        let before: LogHead = pair.at_mirror("GET", "/api/v3/log/head", b"").await.ok();
        // The same key, another log.
        pair.replace([200; 32]);
        for seed in 0..entries {
            pair.register(100 + seed, true).await;
        }
        let detail = pair.until_caught().await;
        assert!(detail.contains(said), "{entries}: {detail}");
        let after: LogHead = pair.at_mirror("GET", "/api/v3/log/head", b"").await.ok();
        assert_eq!(before, after, "it goes on to serve what held");
        let page: Page = pair.at_mirror("GET", "/api/v3/nodes/discover", b"").await.ok();
        assert_eq!(page.nodes.len(), 1);
        assert_eq!(pair.at_mirror("GET", "/api/v3/health", b"").await.status, 200, "it serves all the same");
    }
}

#[tokio::test]
async fn somebody_elses_directory_is_not_taken_for_the_mirrored_one() {
    let mut pair = Pair::new().await;
    pair.replace([202; 32]);
    pair.register(1, true).await;
    pair.follow();
    assert!(pair.until_caught().await.contains("is not one of its own"));
}

#[tokio::test]
async fn an_answer_out_of_contract_is_tried_again_and_blames_nobody() {
    let pair = Pair::new().await;
    pair.register(1, true).await;
    *pair.bend.lock().unwrap() = Some(bender(|value| value["leaves"] = Value::Array(Vec::new())));
    pair.follow();
    let away = |health: &Health| health.conditions.iter().any(|found| found.code == "upstream.reached" && !found.ok);
    let health = pair.until("away", away).await;
    assert!(health.conditions.iter().any(|found| found.code == "upstream.honest" && found.ok));
    *pair.bend.lock().unwrap() = None;
    pair.until_it_has(1).await;
}

/// A directory and a mirror of it as processes of this user.
struct Programs {
    upstream: Place,
    mirror: Place,
    /// The mirror's id.
    key: String,
}

impl Programs {
    fn of(user: Option<u32>) -> Self {
        let (upstream, mirror) = (Place::of(user), Place::of(user));
        let key = mirror.json(&["init"])["address"].as_str().unwrap().split_once('@').unwrap().0.to_owned();
        upstream.configure(&format!("listen = \"127.0.0.1:0\"\n[mirror]\nallow = [\"{key}\"]\n"));
        Self { upstream, mirror, key }
    }

    fn mirror_of(&self, serving: &Serving) {
        let of = format!("{}@{}", serving.id, serving.origin);
        self.mirror.configure(&format!("listen = \"127.0.0.1:0\"\n[mirror]\nof = \"{of}\"\n"));
    }
}

fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) {
    for _ in 0..2400 {
        if is_so() {
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("{what} did not come to be");
}

fn entries(serving: &Serving) -> u64 {
    serving.get("/api/v3/health").1["mirror"]["entries"].as_u64().unwrap_or(0)
}

#[test]
fn the_real_mirror_follows_in_its_cage_outlives_its_directory_and_goes_on_after_a_restart() {
    for place in places() {
        let programs = Programs::of(place.user);
        let upstream = programs.upstream.serve();
        let (alice, bob, carol) = (Node::new(1), Node::new(2), Node::new(3));
        assert_eq!(upstream.register(&alice).0, 200);
        programs.mirror_of(&upstream);
        let shown = programs.mirror.text(&["init"]);
        assert!(shown.contains("mirror.allow") && shown.contains(&upstream.id.to_string()), "{shown}");
        let mirror = programs.mirror.serve();
        assert_eq!(mirror.id, upstream.id, "nodes know it by the directory's id");
        let card = |serving: &Serving, node: &Node| serving.get(&format!("/api/v3/nodes/{}", node.id()));
        wait_for("alice at the mirror", || card(&mirror, &alice).0 == 200);
        assert_eq!(upstream.register(&bob).0, 200);
        wait_for("bob at the mirror", || card(&mirror, &bob).0 == 200);
        assert_eq!(card(&mirror, &bob).1["card"], card(&upstream, &bob).1["card"]);
        assert_eq!(mirror.register(&carol).1["code"], "mirror.reads-only");
        let status = programs.mirror.text(&["status"]);
        assert!(status.contains("mirror    of ") && status.contains("2 of 2 entries"), "{status}");
        assert_eq!(programs.mirror.json(&["doctor"])["ok"], true, "its cage is whole");
        let metrics = mirror.get("/api/v3/metrics").1;
        assert!(metrics.as_str().unwrap().contains("openred_directory_mirror_entries 2"), "{metrics}");
        assert_eq!(programs.mirror.failure(&["nodes", "remove", &alice.id().to_string()]).0, 6);
        assert_eq!(mirror.end(), Some(0));

        // What came meanwhile comes after the restart.
        assert_eq!(upstream.register(&carol).0, 200);
        let mirror = programs.mirror.serve();
        assert_eq!(card(&mirror, &alice).0, 200, "at once, from what it has");
        wait_for("carol at the mirror", || entries(&mirror) == 3 && card(&mirror, &carol).0 == 200);
        assert_eq!(programs.mirror.json(&["log", "verify"])["ok"], true);

        // The directory is killed: its mirror answers, and says that it is alone.
        nix::sys::signal::kill(upstream.process(), nix::sys::signal::Signal::SIGKILL).unwrap();
        drop(upstream);
        wait_for("the mirror's word of it", || programs.mirror.outcome(&["status"]).1.contains("upstream.reached"));
        assert_eq!(programs.mirror.outcome(&["status"]).0, 3);
        for node in [&alice, &bob, &carol] {
            assert_eq!(card(&mirror, node).0, 200);
        }
        assert_eq!(mirror.get("/api/v3/health").0, 200);
        drop(mirror);
        let mirror = programs.mirror.serve();
        assert_eq!(card(&mirror, &bob).0, 200, "also after a restart without its directory");
    }
}

#[test]
fn the_real_mirror_follows_over_https_and_out_of_a_database_that_several_share() {
    for place in places() {
        let (cluster, programs) = (Cluster::shared(), Programs::of(place.user));
        let file = |name: &str, bytes: &[u8]| {
            let path = programs.upstream.folder.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            path.display().to_string()
        };
        let certificate = file("tls.pem", include_bytes!("tls/localhost.pem"));
        let (key, authority) =
            (file("tls.key", include_bytes!("tls/localhost.key")), file("ca.pem", include_bytes!("tls/ca.pem")));
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let password = programs.upstream.password(&cluster);
        programs.upstream.configure(&format!(
            "listen = \"{free}\"\norigin = \"https://localhost:{}\"\n[tls]\ncertificate = \"{certificate}\"\nkey = \"{key}\"\n\
             [mirror]\nallow = [\"{}\"]\n[store]\nurl = \"{}\"\npassword_file = \"{}\"\n",
            free.port(),
            programs.key,
            cluster.database(),
            password.display(),
        ));
        let upstream = programs.upstream.serve();
        let (alice, bob) = (Node::new(1), Node::new(2));
        assert_eq!(upstream.register_sealed(&alice).0, 200);
        let of = format!("listen = \"127.0.0.1:0\"\n[mirror]\nof = \"{}@{}\"\n", upstream.id, upstream.origin);
        programs.mirror.configure(&of);
        let mirror = programs.mirror.serve();
        wait_for("the mirror's word of the certificate", || {
            programs.mirror.outcome(&["status"]).1.contains("upstream.reached")
        });
        assert_eq!(
            mirror.get("/api/v3/log/head").1["code"],
            "mirror.behind",
            "the public web vouches for nothing here"
        );
        assert_eq!(mirror.end(), Some(0));
        programs.mirror.configure(&format!("{of}certificates = \"{authority}\"\n"));
        let mirror = programs.mirror.serve();
        wait_for("alice at the mirror", || mirror.get(&format!("/api/v3/nodes/{}", alice.id())).0 == 200);
        assert_eq!(upstream.register_sealed(&bob).0, 200);
        wait_for("bob at the mirror", || mirror.get(&format!("/api/v3/nodes/{}", bob.id())).0 == 200);
        assert_eq!(entries(&mirror), 2);
        drop(upstream);
        assert_eq!(mirror.get("/api/v3/log/inclusion?index=0&size=2").0, 200);
        assert_eq!(programs.mirror.json(&["log", "verify"])["ok"], true);
    }
}

#[test]
fn a_home_holds_one_log() {
    let programs = Programs::of(None);
    let upstream = programs.upstream.serve();
    upstream.register(&Node::new(1));
    programs.mirror_of(&upstream);
    let mirror = programs.mirror.serve();
    wait_for("its entry", || entries(&mirror) == 1);
    drop(mirror);
    programs.mirror.configure("listen = \"127.0.0.1:0\"\n");
    assert!(programs.mirror.failure(&["serve"]).1.contains("it is a mirror's"));
    let other = format!("{}@{}", Node::new(5).id(), upstream.origin);
    programs.mirror.configure(&format!("listen = \"127.0.0.1:0\"\n[mirror]\nof = \"{other}\"\n"));
    assert!(programs.mirror.failure(&["serve"]).1.contains("the mirror of another directory"));
    drop(upstream);
    programs.upstream.configure(&format!("listen = \"127.0.0.1:0\"\n[mirror]\nof = \"{other}\"\n"));
    assert!(programs.upstream.failure(&["serve"]).1.contains("it is a directory's own"));
    for (wrong, said) in [
        ("of = \"x\"", "must be a directory's address"),
        ("allow = [\"x\"]", "must be the mirrors' ids"),
        ("certificates = \"x\"", "set mirror.of"),
    ] {
        programs.upstream.configure(&format!("[mirror]\n{wrong}\n"));
        let (code, text) = programs.upstream.failure(&["check"]);
        assert!(code == 78 && text.contains(said), "{text}");
    }
}
