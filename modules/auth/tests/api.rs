//! The API on a test host, in virtual time: who comes in, who does not, for how long, and what a request may ask for.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;

use bytes::Bytes;
use openred_auth::{Auth, Enrolled, Sessions, Users, code_at};
use openred_module::{
    Body, Context, HostError, Manifest, Method, Module, ModuleError, OperateError, PeerRequest, Request, Response,
    Routes, Status, TestHost,
};
use serde_json::{Value, json};

const PASSWORD: &str = "a long password";
const MINUTE: u64 = 60_000;
/// Longer than a code holds, with its neighbours.
const A_CODE: u64 = 90_000;

struct World {
    host: TestHost,
    uri: String,
}

/// What came back over a connection.
struct Said {
    status: u16,
    head: String,
    body: Value,
}

impl Said {
    fn read(text: &str) -> Self {
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((text, ""));
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
        let body = serde_json::from_str(body).unwrap_or_else(|_| Value::String(body.to_owned()));
        Self { status, head: head.to_ascii_lowercase(), body }
    }

    fn code(&self) -> &str {
        self.body["code"].as_str().unwrap_or_default()
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| line.strip_prefix(&format!("{name}: ")))
    }
}

/// A session's cookie and token.
#[derive(Clone)]
struct Session {
    cookie: String,
    token: String,
}

impl Session {
    fn of(said: &Said) -> Self {
        let cookie = said.header("set-cookie").unwrap().split(';').next().unwrap();
        Self { cookie: cookie.to_owned(), token: said.body["token"].as_str().unwrap().to_owned() }
    }

    fn headers(&self) -> String {
        format!("Cookie: {}\r\nopenred-token: {}\r\n", self.cookie, self.token)
    }
}

impl World {
    async fn new() -> Self {
        let host = TestHost::start(1, Auth::default()).await;
        let made = add(&host, "ada", &json!({ "password": PASSWORD })).await;
        assert!(made.status.is_success());
        let made: Enrolled = made.json_body().await.unwrap();
        Self { host, uri: made.uri }
    }

    fn code(&self) -> String {
        code_at(&self.uri, self.host.context().now()).unwrap()
    }

    /// One request over a connection of its own, byte for byte.
    async fn raw(&self, text: impl Into<Bytes>) -> String {
        let answer = self.host.connect(Body::whole(text)).await;
        assert_eq!(answer.status, Status::Ok);
        String::from_utf8_lossy(&answer.body.collect(8 << 20).await.unwrap()).into_owned()
    }

    async fn send(&self, line: &str, headers: &str, body: &str) -> Said {
        let length = body.len();
        let head =
            format!("{line} HTTP/1.1\r\nHost: 127.0.0.1:9000\r\nConnection: close\r\nContent-Length: {length}\r\n");
        Said::read(&self.raw(format!("{head}{headers}\r\n{body}")).await)
    }

    async fn post(&self, path: &str, headers: &str, body: &Value) -> Said {
        self.send(&format!("POST {path}"), &format!("Content-Type: application/json\r\n{headers}"), &body.to_string())
            .await
    }

    async fn try_with(&self, name: &str, password: &str, code: &str) -> Said {
        self.post("/v1/session", "", &json!({ "name": name, "password": password, "code": code })).await
    }

    async fn login(&self) -> Session {
        let said = self.try_with("ada", PASSWORD, &self.code()).await;
        assert_eq!(said.status, 200, "{}", said.body);
        Session::of(&said)
    }

    async fn who(&self, headers: &str) -> Said {
        self.send("GET /v1/session", headers, "").await
    }

    async fn operator<T: serde::de::DeserializeOwned>(&self, request: PeerRequest) -> T {
        self.host.operator(request).await.json_body().await.unwrap()
    }

    async fn tell(&self, path: &str) -> Response {
        self.host.operator(PeerRequest::post(path, "", Body::empty())).await
    }

    async fn users(&self) -> Users {
        self.operator(PeerRequest::get("/users")).await
    }

    fn trail(&self, code: &str) -> Vec<String> {
        let of = self.host.audit_trail().into_iter().filter(|event| event.code == code);
        of.map(|event| event.outcome.to_owned()).collect()
    }
}

async fn add(host: &TestHost, name: &str, body: &Value) -> Response {
    let body = Body::whole(body.to_string());
    host.operator(PeerRequest::post(format!("/users/{name}"), "application/json", body)).await
}

#[tokio::test]
async fn password_and_code_together_open_a_session_and_nothing_less_does() {
    let world = World::new().await;
    let code = world.code();
    let wrong = if code == "000000" { "000001" } else { "000000" };
    for (name, password, code) in [
        ("ada", "another password", code.as_str()),
        ("ada", PASSWORD, wrong),
        ("ada", PASSWORD, ""),
        ("eve", PASSWORD, code.as_str()),
    ] {
        let said = world.try_with(name, password, code).await;
        assert_eq!((said.status, said.code()), (401, "denied"), "{name} {password} {code}");
        assert!(said.header("set-cookie").is_none());
    }
    let said = world.try_with("ada", PASSWORD, &code).await;
    assert_eq!((said.status, said.body["role"].as_str()), (200, Some("operator")));
    let cookie = said.header("set-cookie").unwrap();
    assert!(cookie.contains("httponly") && cookie.contains("samesite=strict"), "{cookie}");
    let session = Session::of(&said);
    assert_eq!(world.who(&session.headers()).await.body["name"], "ada");
    assert_eq!(world.users().await.users[0].failures, 0, "forgiven");
    assert_eq!(world.trail("login"), ["denied", "denied", "denied", "unknown", "in"]);
}

#[tokio::test]
async fn a_code_opens_once() {
    let world = World::new().await;
    let code = world.code();
    assert_eq!(world.try_with("ada", PASSWORD, &code).await.status, 200);
    assert_eq!(world.try_with("ada", PASSWORD, &code).await.code(), "denied", "a replay");
    world.host.kill_and_restart(Auth::default()).await;
    assert_eq!(
        world.try_with("ada", PASSWORD, &code).await.code(),
        "denied",
        "and of a module that has just been started"
    );
    world.host.advance(A_CODE).await;
    assert_eq!(world.try_with("ada", PASSWORD, &world.code()).await.status, 200);
}

#[tokio::test]
async fn after_five_wrong_attempts_not_even_the_right_one_is_taken_until_the_pause_is_over() {
    let world = World::new().await;
    for _ in 0..5 {
        assert_eq!(world.try_with("ada", "another password", &world.code()).await.status, 401);
    }
    assert_eq!(
        world.try_with("ada", PASSWORD, &world.code()).await.code(),
        "denied",
        "locked, and says no more than before"
    );
    // Whatever ends the module, the pause goes on.
    world.host.kill_and_restart(Auth::default()).await;
    assert_eq!(world.try_with("ada", PASSWORD, &world.code()).await.code(), "denied");
    let known = &world.users().await.users[0];
    assert_eq!(known.failures, 5, "an attempt in the pause does not count");
    assert!(known.locked_until.is_some());
    world.host.advance(MINUTE).await;
    assert!(world.users().await.users[0].locked_until.is_none());
    assert_eq!(world.try_with("ada", PASSWORD, &world.code()).await.status, 200, "its end");
    for _ in 0..5 {
        world.try_with("ada", "another password", "1").await;
    }
    assert!(world.tell("/users/ada/unlock").await.status.is_success());
    world.host.advance(A_CODE).await;
    assert_eq!(world.try_with("ada", PASSWORD, &world.code()).await.status, 200, "the operator's word ends it, too");
}

#[tokio::test(start_paused = true)]
async fn an_attempt_counts_also_where_the_module_is_killed_before_it_is_judged() {
    let world = World::new().await;
    for _ in 0..5 {
        world.host.crash_after(1);
        let answer = world.host.connect(Body::whole(attempt_text("another password"))).await;
        // Nobody answers any more; the clock is the test's own.
        let _ = tokio::time::timeout(std::time::Duration::from_secs(1), answer.body.collect(1 << 20)).await;
        world.host.kill_and_restart(Auth::default()).await;
    }
    assert_eq!(world.users().await.users[0].failures, 5);
    assert_eq!(world.try_with("ada", PASSWORD, &world.code()).await.code(), "denied");
}

fn attempt_text(password: &str) -> String {
    let body = json!({ "name": "ada", "password": password, "code": "123456" }).to_string();
    let head =
        "POST /v1/session HTTP/1.1\r\nHost: 127.0.0.1:9000\r\nContent-Type: application/json\r\nConnection: close\r\n";
    format!("{head}Content-Length: {}\r\n\r\n{body}", body.len())
}

#[tokio::test]
async fn a_session_needs_its_cookie_and_its_own_token() {
    let world = World::new().await;
    let one = world.login().await;
    world.host.advance(A_CODE).await;
    let other = world.login().await;
    assert_eq!(world.who("").await.code(), "no-session");
    assert_eq!(world.who(&format!("Cookie: {}\r\n", one.cookie)).await.code(), "bad-token", "the cookie alone");
    assert_eq!(world.who(&format!("openred-token: {}\r\n", one.token)).await.code(), "no-session", "the token alone");
    let mixed = Session { cookie: one.cookie.clone(), token: other.token.clone() };
    assert_eq!(world.who(&mixed.headers()).await.code(), "bad-token");
    let twice = format!("Cookie: {}; {}\r\nopenred-token: {}\r\n", one.cookie, other.cookie, one.token);
    assert_eq!(world.who(&twice).await.code(), "no-session", "two cookies, of which one is somebody's");
    assert_eq!(world.who(&format!("{}Cookie: x=1\r\n", one.headers())).await.status, 200);
    let changing =
        world.post("/v1/node/ForgetPeer", &format!("Cookie: {}\r\n", one.cookie), &json!({ "peer": "x" })).await;
    assert_eq!((changing.status, changing.code()), (403, "bad-token"));
}

#[tokio::test]
async fn a_session_ends_when_it_is_idle_when_it_is_old_and_when_it_is_ended() {
    let world = World::new().await;
    let session = world.login().await;
    for _ in 0..3 {
        world.host.advance(20 * MINUTE).await;
        assert_eq!(world.who(&session.headers()).await.status, 200, "each request prolongs it");
    }
    world.host.advance(31 * MINUTE).await;
    assert_eq!(world.who(&session.headers()).await.code(), "no-session", "idle");
    let session = world.login().await;
    for _ in 0..35 {
        world.host.advance(20 * MINUTE).await;
        assert_eq!(world.who(&session.headers()).await.status, 200);
    }
    world.host.advance(21 * MINUTE).await;
    assert_eq!(world.who(&session.headers()).await.code(), "no-session", "twelve hours are its life");
    let session = world.login().await;
    let over = world.send("DELETE /v1/session", &session.headers(), "").await;
    assert!(over.status == 200 && over.header("set-cookie").unwrap().contains("max-age=0"));
    assert_eq!(world.who(&session.headers()).await.code(), "no-session", "logged out");
    world.host.advance(A_CODE).await;
    let session = world.login().await;
    let listed: Sessions = world.operator(PeerRequest::get("/sessions")).await;
    assert_eq!(listed.sessions.len(), 1, "those that are over are not shown");
    assert!(world.tell(&format!("/sessions/{}/end", listed.sessions[0].id)).await.status.is_success());
    assert_eq!(world.who(&session.headers()).await.code(), "no-session", "by the operator");
    assert_eq!(world.tell("/sessions/0123456789ab/end").await.status, Status::NotFound);
}

#[tokio::test]
async fn nobody_can_choose_the_session_that_a_login_opens() {
    let world = World::new().await;
    let fixed = "openred-session=00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";
    let attempt = json!({ "name": "ada", "password": PASSWORD, "code": world.code() });
    let said = world.post("/v1/session", &format!("Cookie: {fixed}\r\n"), &attempt).await;
    let session = Session::of(&said);
    assert_ne!(session.cookie, fixed);
    let planted = Session { cookie: fixed.to_owned(), token: session.token.clone() };
    assert_eq!(world.who(&planted.headers()).await.code(), "no-session");
    // The one that a browser had before is over.
    world.host.advance(A_CODE).await;
    let attempt = json!({ "name": "ada", "password": PASSWORD, "code": world.code() });
    let again = world.post("/v1/session", &format!("Cookie: {}\r\n", session.cookie), &attempt).await;
    assert_eq!(world.who(&session.headers()).await.code(), "no-session");
    assert_eq!(world.who(&Session::of(&again).headers()).await.status, 200);
}

#[tokio::test]
async fn a_ninth_session_ends_the_oldest() {
    let world = World::new().await;
    let first = world.login().await;
    for _ in 0..8 {
        world.host.advance(A_CODE).await;
        world.login().await;
    }
    assert_eq!(world.who(&first.headers()).await.code(), "no-session");
    let listed: Sessions = world.operator(PeerRequest::get("/sessions")).await;
    assert_eq!(listed.sessions.len(), 8);
}

#[tokio::test]
async fn pages_of_other_sites_and_other_names_get_nothing() {
    let world = World::new().await;
    let session = world.login().await;
    for (name, value) in [
        ("Origin", "http://evil.example"),
        ("Origin", "null"),
        ("Origin", "http://127.0.0.1:9001"),
        ("Origin", "https://127.0.0.1:9000"),
        ("Sec-Fetch-Site", "cross-site"),
        ("Sec-Fetch-Site", "same-site"),
    ] {
        let said = world.who(&format!("{}{name}: {value}\r\n", session.headers())).await;
        assert_eq!((said.status, said.code()), (403, "cross-origin"), "{value}");
    }
    let own = format!("{}Origin: http://127.0.0.1:9000\r\nSec-Fetch-Site: same-origin\r\n", session.headers());
    assert_eq!(world.who(&own).await.status, 200);
    for host in ["evil.example:9000", "127.0.0.1", "127.0.0.1.evil.example:9000", "127.0.0.2:9000"] {
        let text =
            format!("GET /v1/session HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{}\r\n", session.headers());
        assert_eq!(Said::read(&world.raw(text).await).status, 421, "{host}");
    }
    // What a form of another page can send without asking is no JSON.
    let body = json!({ "name": "ada", "password": PASSWORD, "code": world.code() }).to_string();
    let said = world.send("POST /v1/session", "Content-Type: text/plain\r\n", &body).await;
    assert_eq!((said.status, said.code()), (415, "not-json"));
    let said = world.who(&session.headers()).await;
    for (name, value) in [("cache-control", "no-store"), ("x-content-type-options", "nosniff")] {
        assert_eq!(said.header(name), Some(value));
    }
    assert!(said.header("access-control-allow-origin").is_none());
}

#[tokio::test]
async fn long_bodies_garbage_and_what_is_not_there_are_refused() {
    let world = World::new().await;
    let session = world.login().await;
    let json = format!("Content-Type: application/json\r\n{}", session.headers());
    let long = format!("\"{}\"", "x".repeat((1 << 20) + 1));
    let said = world.send("POST /v1/node/ListLinks", &json, &long).await;
    assert_eq!((said.status, said.code()), (413, "body-too-long"));
    let chunked = format!(
        "POST /v1/session HTTP/1.1\r\nHost: 127.0.0.1:9000\r\nConnection: close\r\nContent-Type: application/json\r\n\
         Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{long}\r\n0\r\n\r\n",
        long.len()
    );
    assert_eq!(Said::read(&world.raw(chunked).await).status, 413);
    for body in ["", "{", "[]", "{\"every\":true}", "{} {}", "\u{0}", "{\"all\":\"\u{feff}\"}"] {
        let said = world.send("POST /v1/node/ListLinks", &json, body).await;
        assert_eq!((said.status, said.code()), (400, "bad-json"), "{body}");
    }
    for body in [
        "",
        "{}",
        "[1]",
        "{\"name\":\"ada\",\"password\":\"x\",\"code\":1}",
        "{\"name\":\"ada\",\"password\":\"x\",\"code\":\"1\",\"x\":1}",
    ] {
        let said = world.send("POST /v1/session", "Content-Type: application/json\r\n", body).await;
        assert_eq!((said.status, said.code()), (400, "bad-json"), "{body}");
    }
    for (line, status) in [
        ("GET /", 404),
        ("GET /v1/session/", 404),
        ("POST /v1/node/CopyDatabase", 404),
        ("POST /v1/node/CallModule", 404),
        ("POST /v1/node/..%2fListLinks", 404),
        ("GET /v1/node/ListLinks", 405),
        ("PUT /v1/session", 405),
    ] {
        assert_eq!(world.send(line, &json, "").await.status, status, "{line}");
    }
    for garbage in ["\u{0}\u{0}\u{0}\r\n\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "POST /v1/session HTTP/1.1\r\n\r\n"]
    {
        let said = world.raw(garbage).await;
        assert!(!said.contains(" 200 "), "{said}");
    }
    assert_eq!(world.who(&session.headers()).await.status, 200, "and it goes on");
}

#[tokio::test]
async fn operations_are_carried_out_for_who_may_and_refused_without_the_permission() {
    let world = World::new().await;
    let session = world.login().await;
    let refused = world.post("/v1/node/ListLinks", &session.headers(), &json!({})).await;
    assert_eq!((refused.status, refused.code()), (403, "not-granted"));
    world.host.set_operations(|operation, request| match operation {
        "ListLinks" if request[..] == [8, 1] => Ok(Bytes::from_static(&[10, 4, 18, 2, b'z', b'6'])),
        "ListHooks" => Ok(Bytes::from_static(&[255])),
        "GetStatus" => Err(HostError::ShuttingDown.into()),
        _ => Err(OperateError::Refused { status: Status::Conflict, code: "peer.linked".into(), detail: "no".into() }),
    });
    let links = world.post("/v1/node/ListLinks", &session.headers(), &json!({ "all": true })).await;
    assert_eq!(links.body["links"][0]["peer"], "z6");
    assert_eq!(links.body["links"][0]["created_at"], 0, "a number, and there although it is zero");
    let refused = world.post("/v1/node/ForgetPeer", &session.headers(), &json!({ "peer": "x" })).await;
    assert_eq!((refused.status, refused.code()), (409, "peer.linked"), "the node's own refusal");
    assert_eq!(world.post("/v1/node/ListHooks", &session.headers(), &json!({})).await.code(), "bad-reply");
    assert_eq!(world.post("/v1/node/GetStatus", &session.headers(), &json!({})).await.status, 503);
    assert_eq!(world.trail("operation"), ["forget-peer"], "what changes nothing is not noted");
    assert_eq!(world.post("/v1/node/ListLinks", "", &json!({})).await.code(), "no-session");
}

#[tokio::test]
async fn a_viewer_looks_and_changes_nothing() {
    let world = World::new().await;
    let made: Enrolled =
        add(&world.host, "vera", &json!({ "password": PASSWORD, "role": "viewer" })).await.json_body().await.unwrap();
    let code = code_at(&made.uri, world.host.context().now()).unwrap();
    let session = Session::of(&world.try_with("vera", PASSWORD, &code).await);
    world.host.set_operations(|_, _| Ok(Bytes::new()));
    assert_eq!(world.post("/v1/node/ListLinks", &session.headers(), &json!({})).await.status, 200);
    let refused = world.post("/v1/node/RequestLink", &session.headers(), &json!({ "peer": "x" })).await;
    assert_eq!((refused.status, refused.code()), (403, "viewer"));
    let refused = world.post("/v1/modules/messaging/send/x", &session.headers(), &json!({})).await;
    assert_eq!(refused.code(), "viewer");
    assert!(world.trail("operation").is_empty());
}

#[tokio::test]
async fn modules_are_called_as_the_operator_calls_them_and_this_one_is_not() {
    let world = World::new().await;
    let session = world.login().await;
    world.host.set_operations(|_, _| Ok(Bytes::new()));
    for path in ["/v1/modules/auth/users", "/v1/modules/auth/sessions"] {
        let refused = world.send(&format!("GET {path}"), &session.headers(), "").await;
        assert_eq!((refused.status, refused.code()), (403, "not-here"));
    }
    assert_eq!(world.send("GET /v1/modules/none/x", &session.headers(), "").await.status, 503);
    let beside = TestHost::start(2, Auth::default()).await;
    world.host.beside(&beside);
    let bad = format!("{}Idempotency-Key: 12\r\n", session.headers());
    assert_eq!(world.send("GET /v1/modules/none/x", &bad, "").await.code(), "bad-idempotency-key");
    assert_eq!(world.send("GET /v1/modules/none/x", "", "").await.code(), "no-session");
}

/// Says how it was called.
struct Echo;

impl Module for Echo {
    fn manifest(&self) -> Manifest {
        Manifest { id: "echo", version: "1", summary: "for tests" }
    }

    fn routes(routes: &mut Routes<Self>) {
        routes.operator(Method::Get, "/of/{name}", 0, Self::of);
    }
}

impl Echo {
    async fn of(self: Arc<Self>, _: Context, request: Request) -> Result<Response, ModuleError> {
        Response::json(Status::Ok, &request.path)
    }
}

#[tokio::test]
async fn a_modules_path_is_handed_on_as_it_came() {
    let world = World::new().await;
    let session = world.login().await;
    world.host.set_operations(|_, _| Ok(Bytes::new()));
    let beside = TestHost::start(2, Echo).await;
    world.host.beside(&beside);
    let said = world.send("GET /v1/modules/echo/of/a%2Fb%20100%25.txt", &session.headers(), "").await;
    assert_eq!((said.status, said.body.as_str()), (200, Some("/of/a%2Fb%20100%25.txt")));
    let said = world.send("HEAD /v1/modules/echo/of/x", &session.headers(), "").await;
    assert_eq!(said.status, 200, "it is a GET, and no POST");
    assert!(world.trail("operation").is_empty());
    let said = world.send("GET /v1/modules/echo/of/x?limit=1", &session.headers(), "").await;
    assert_eq!((said.status, said.code()), (400, "no-query"), "nothing is left out without a word");
    // Nor is this module's own name another by being written otherwise.
    let said = world.send("GET /v1/modules/%61uth/users", &session.headers(), "").await;
    assert_eq!(said.status, 503, "there is no such module");
}

#[tokio::test]
async fn users_are_the_machines_to_change() {
    let world = World::new().await;
    for (name, body, status) in [
        ("ada", json!({ "password": PASSWORD }), Status::Conflict),
        ("Eve", json!({ "password": PASSWORD }), Status::BadRequest),
        ("eve", json!({ "password": "too short" }), Status::BadRequest),
        ("eve", json!({ "password": PASSWORD, "role": "god" }), Status::BadRequest),
        ("eve", json!({ "password": PASSWORD, "admin": true }), Status::BadRequest),
    ] {
        assert_eq!(add(&world.host, name, &body).await.status, status, "{name} {body}");
    }
    let session = world.login().await;
    let enrolled = world.tell("/users/ada/totp").await;
    let enrolled: Enrolled = enrolled.json_body().await.unwrap();
    assert_eq!(enrolled.ended, 1);
    assert_eq!(world.who(&session.headers()).await.code(), "no-session", "another factor ends what the old one opened");
    world.host.advance(A_CODE).await;
    assert_eq!(world.try_with("ada", PASSWORD, &world.code()).await.code(), "denied", "the old factor");
    let world = World { uri: enrolled.uri, ..world };
    let session = world.login().await;
    let body = Body::whole(json!({ "password": "another long password" }).to_string());
    let set = world.host.operator(PeerRequest::post("/users/ada/password", "application/json", body)).await;
    assert!(set.status.is_success());
    assert_eq!(world.who(&session.headers()).await.code(), "no-session");
    world.host.advance(A_CODE).await;
    assert_eq!(world.try_with("ada", PASSWORD, &world.code()).await.code(), "denied");
    let said = world.try_with("ada", "another long password", &world.code()).await;
    let session = Session::of(&said);
    assert!(world.tell("/users/ada/remove").await.status.is_success());
    assert_eq!(world.who(&session.headers()).await.code(), "no-session");
    for path in ["/users/ada/remove", "/users/ada/totp", "/users/ada/unlock"] {
        assert_eq!(world.tell(path).await.status, Status::NotFound, "{path}");
    }
    let peer = openred_module::NodeId::from_bytes([9; 32]);
    for path in ["/users", "/sessions"] {
        assert_eq!(world.host.as_peer(peer, PeerRequest::get(path)).await.status, Status::NotFound);
    }
    for number in 0..32 {
        assert!(add(&world.host, &format!("u{number}"), &json!({ "password": PASSWORD })).await.status.is_success());
    }
    assert_eq!(add(&world.host, "more", &json!({ "password": PASSWORD })).await.status, Status::Conflict);
}

#[tokio::test]
async fn the_description_is_for_everybody_and_says_nothing_of_the_node() {
    let world = World::new().await;
    let said = world.send("GET /v1/openapi.json", "", "").await;
    assert_eq!((said.status, said.body["openapi"].as_str()), (200, Some("3.1.0")));
    assert!(!said.body.to_string().contains("ada"));
}
