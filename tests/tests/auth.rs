//! The module `auth` on real nodes: the operator's API over real HTTP with real codes, what a hostile page or program on the same machine sends, and challenges
//! between two nodes' key processes.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::sys::signal::Signal;
use openred_auth::code_at;
use openred_tests::harness::{Node, PATIENCE, free_port, is_root, refusal, signal_pid, wait_for};
use openred_tests::world::{World, status};
use serde_json::{Value, json};

const PASSWORD: &str = "a long password";

/// A node with the API, and its first user.
struct Served {
    node: Node,
    address: SocketAddr,
    uri: String,
}

/// What came back: status, head in lower case, body.
struct Said {
    status: u16,
    head: String,
    body: Value,
}

impl Said {
    fn code(&self) -> &str {
        self.body["code"].as_str().unwrap_or_default()
    }

    /// The headers that show the session.
    fn session(&self) -> String {
        let cookie = self.head.lines().find_map(|line| line.strip_prefix("set-cookie: ")).unwrap();
        let cookie = cookie.split(';').next().unwrap();
        format!("Cookie: {cookie}\r\nopenred-token: {}\r\n", self.body["token"].as_str().unwrap())
    }
}

/// Milliseconds by this machine's clock, and so many seconds on.
fn in_seconds(seconds: u64) -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis();
    u64::try_from(now).unwrap() + seconds * 1000
}

impl Served {
    fn start(world: &World) -> Self {
        let address = free_port().unwrap();
        let mut node = world.init("alice", &format!("[auth]\nlisten = \"{address}\"\n")).unwrap();
        node.up().unwrap();
        let password = world.path().join("password");
        std::fs::write(&password, PASSWORD).unwrap();
        std::fs::set_permissions(&password, PermissionsExt::from_mode(0o600)).unwrap();
        let file = password.to_str().unwrap();
        let made = node.cli(&["auth", "user", "add", "ada", "--passphrase-file", file]).unwrap().json().unwrap();
        let uri = made["uri"].as_str().unwrap().to_owned();
        Self { node, address, uri }
    }

    fn send(&self, line: &str, host: &str, headers: &str, body: &str) -> Said {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let length = body.len();
        let head = format!(
            "{line} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n"
        );
        // Who refuses may do so before all of it has gone.
        let _ = stream.write_all(format!("{head}{body}").as_bytes());
        let mut said = Vec::new();
        let _ = stream.read_to_end(&mut said);
        let said = String::from_utf8_lossy(&said).into_owned();
        let (head, body) = said.split_once("\r\n\r\n").unwrap_or((&said, ""));
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
        let body = serde_json::from_str(body).unwrap_or_else(|_| Value::String(body.to_owned()));
        Said { status, head: head.to_ascii_lowercase(), body }
    }

    fn request(&self, line: &str, headers: &str, body: &str) -> Said {
        self.send(line, &self.address.to_string(), headers, body)
    }

    fn post(&self, path: &str, headers: &str, body: &Value) -> Said {
        let headers = format!("Content-Type: application/json\r\n{headers}");
        self.request(&format!("POST {path}"), &headers, &body.to_string())
    }

    fn attempt(&self, password: &str, code: &str) -> Said {
        self.post("/v1/session", "", &json!({ "name": "ada", "password": password, "code": code }))
    }

    /// Logs in, whichever code the clock stands at by now.
    fn login(&self) -> String {
        let said = self.attempt(PASSWORD, &code_at(&self.uri, in_seconds(0)).unwrap());
        assert_eq!(said.status, 200, "{}", said.body);
        said.session()
    }
}

#[test]
fn the_api_says_what_the_admin_socket_says_to_who_has_both_factors() {
    let world = World::start().unwrap();
    let served = Served::start(&world);
    let nobody = served.post("/v1/node/GetStatus", "", &json!({}));
    assert_eq!((nobody.status, nobody.code()), (401, "no-session"));
    let session = served.login();
    let seen = served.post("/v1/node/GetStatus", &session, &json!({}));
    assert_eq!((seen.status, &seen.body["node_id"]), (200, &status(&served.node).unwrap()["node"]["node_id"]));
    let stranger = world.init("carol", "").unwrap().id.clone();
    let denied = served.post("/v1/node/DecidePeer", &session, &json!({ "peer": stranger, "allow": false }));
    assert_eq!(denied.body["decision"], "denied", "{}", denied.body);
    let shown = served.node.cli(&["peers", "show", &stranger]).unwrap().json().unwrap();
    assert_eq!(shown["decision"], "denied", "what it changes is changed");
    let refused = served.post("/v1/node/ShowLink", &session, &json!({ "link": "00" }));
    assert!((400..500).contains(&refused.status), "{}", refused.body);
    let inbox = served.request("GET /v1/modules/messaging/inbox", &session, "");
    assert_eq!((inbox.status, &inbox.body["messages"]), (200, &json!([])), "{}", inbox.body);
    assert_eq!(served.request("GET /v1/modules/auth/users", &session, "").code(), "not-here");
    assert_eq!(served.request("GET /v1/openapi.json", "", "").body["openapi"], "3.1.0");
    let listed = served.node.cli(&["auth", "sessions"]).unwrap().json().unwrap();
    assert_eq!(listed["sessions"][0]["name"], "ada");
    served.node.cli(&["auth", "sessions", "--end-all"]).unwrap().ok().unwrap();
    assert_eq!(served.post("/v1/node/GetStatus", &session, &json!({})).code(), "no-session");
}

/// One answer on a connection that is kept; nothing where it was closed before any of it.
fn kept_answer(stream: &mut BufReader<TcpStream>) -> Option<u16> {
    let (mut head, mut length) = (String::new(), 0);
    while !head.ends_with("\r\n\r\n") {
        let before = head.len();
        match stream.read_line(&mut head) {
            Ok(0) | Err(_) if before == 0 => return None,
            Ok(1..) => {}
            cut => panic!("{cut:?} in the middle of an answer: {head}"),
        }
        let line = head[before..].to_ascii_lowercase();
        length = line.strip_prefix("content-length:").map_or(length, |said| said.trim().parse().unwrap());
    }
    stream.read_exact(&mut vec![0; length]).unwrap();
    head.split(' ').nth(1)?.parse().ok()
}

#[test]
fn requests_on_a_connection_that_is_kept_do_not_fail_while_the_module_is_swapped() {
    let world = World::start().unwrap();
    let served = Served::start(&world);
    let (address, done) = (served.address, Arc::new(AtomicBool::new(false)));
    let ended = Arc::clone(&done);
    let asking = std::thread::spawn(move || {
        // Of nobody: each is written down all the same.
        let body = json!({ "name": "nobody", "password": PASSWORD, "code": "000000" }).to_string();
        let length = body.len();
        let request = format!(
            "POST /v1/session HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        let (mut answers, mut connections) = (Vec::new(), 0);
        while !ended.load(Ordering::SeqCst) {
            let stream = TcpStream::connect(address).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            let mut stream = BufReader::new(stream);
            connections += 1;
            // One that is closed between two requests is what every client knows: it asks on another.
            while !ended.load(Ordering::SeqCst) && stream.get_mut().write_all(request.as_bytes()).is_ok() {
                match kept_answer(&mut stream) {
                    Some(status) => answers.push(status),
                    None => break,
                }
            }
        }
        (answers, connections)
    });
    for _ in 0..3 {
        served.node.cli(&["module", "swap", "auth"]).unwrap().ok().unwrap();
        // The one that was replaced is not kept by a connection that goes on.
        wait_for("the end of the version before", || {
            let shown = served.node.cli(&["module", "generations", "auth"])?.json()?;
            Ok(shown["modules"][0]["leaving"].as_array().is_none_or(Vec::is_empty).then_some(()))
        })
        .unwrap();
    }
    done.store(true, Ordering::SeqCst);
    let (answers, connections) = asking.join().unwrap();
    assert!(!answers.is_empty() && answers.iter().all(|status| *status == 401), "{answers:?}");
    assert!(connections >= 4, "each swap ends the one that is kept: {connections}");
}

/// On how many TCP addresses `noded` listens, as the kernel says; only root may look.
fn listeners(node: &Node) -> Option<usize> {
    if !is_root() {
        return None;
    }
    let noded = node.child_pid("noded").unwrap();
    let held: Vec<String> = std::fs::read_dir(format!("/proc/{noded}/fd"))
        .unwrap()
        .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
        .map(|target| target.to_string_lossy().into_owned())
        .collect();
    let table = std::fs::read_to_string(format!("/proc/{noded}/net/tcp")).unwrap();
    let of_noded = |line: &&str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        // 0A: LISTEN. The tenth field is the socket's number.
        fields.get(3) == Some(&"0A") && fields.get(9).is_some_and(|inode| held.contains(&format!("socket:[{inode}]")))
    };
    Some(table.lines().skip(1).filter(of_noded).count())
}

#[test]
fn iso_the_api_is_off_unless_told_and_has_no_more_than_its_list() {
    let world = World::start().unwrap();
    let mut node = world.init("bob", "").unwrap();
    node.up().unwrap();
    assert_eq!(listeners(&node), is_root().then_some(1), "peers' alone");
    node.down().unwrap();
    for address in ["0.0.0.0:7693", "127.0.0.1:80", "nonsense"] {
        let refused = node.cli(&["--set", &format!("auth.listen={address}"), "config", "show"]).unwrap();
        assert_eq!(refused.code, 78, "{address}: {}{}", refused.stdout, refused.stderr);
    }
    let served = Served::start(&world);
    assert_eq!(listeners(&served.node), is_root().then_some(2), "the control");
    let session = served.login();
    for operation in ["CopyDatabase", "CallModule", "Stop", "LockKeys", "RotateKey", "ChangeModules", "Doctor"] {
        let refused = served.post(&format!("/v1/node/{operation}"), &session, &json!({}));
        assert_eq!((refused.status, refused.code()), (404, "no-such-operation"), "{operation}");
    }
    assert_eq!(served.post("/v1/node/ListLinks", &session, &json!({})).status, 200, "the control");
}

#[test]
fn other_names_and_pages_get_nothing_with_a_session_in_hand() {
    let world = World::start().unwrap();
    let served = Served::start(&world);
    let session = served.login();
    for host in ["evil.example", &format!("evil.example:{}", served.address.port()), "127.0.0.1", ""] {
        assert_eq!(served.send("GET /v1/session", host, &session, "").status, 421, "{host}");
    }
    let local = format!("localhost:{}", served.address.port());
    assert_eq!(served.send("GET /v1/session", &local, &session, "").status, 200);
    let cookie_alone = session.lines().next().unwrap();
    let forged = served.post("/v1/node/RevokeLink", &format!("{cookie_alone}\r\n"), &json!({ "link": "00" }));
    assert_eq!((forged.status, forged.code()), (403, "bad-token"));
    let foreign = served.request("GET /v1/session", &format!("{session}Origin: http://evil.example\r\n"), "");
    assert_eq!(foreign.code(), "cross-origin");
    let long = served.post("/v1/session", "", &json!({ "name": "x".repeat(2 << 20) }));
    assert!(long.status == 413 || long.status == 0, "{}", long.status);
}

#[test]
fn a_module_that_is_killed_remembers_who_is_locked_out_and_which_codes_were_used() {
    let world = World::start().unwrap();
    let served = Served::start(&world);
    let code = code_at(&served.uri, in_seconds(0)).unwrap();
    assert_eq!(served.attempt(PASSWORD, &code).status, 200);
    let session = |served: &Served| {
        let next = code_at(&served.uri, in_seconds(30)).unwrap();
        served.attempt(PASSWORD, &next)
    };
    let kill = |served: &Served| {
        let pid = served.node.child_pid("module auth").unwrap();
        signal_pid(pid, Signal::SIGKILL).unwrap();
        wait_for("the module's return", || {
            let is_back = served.node.child_pid("module auth").is_ok_and(|now| now != pid);
            let answers = is_back && served.node.cli(&["auth", "user", "list"])?.code == 0;
            Ok(answers.then_some(()))
        })
        .unwrap();
    };
    kill(&served);
    assert_eq!(served.attempt(PASSWORD, &code).code(), "denied", "a replay after kill -9");
    for _ in 0..4 {
        assert_eq!(served.attempt("another password", "000000").code(), "denied");
    }
    let locked = Instant::now();
    kill(&served);
    let users = served.node.cli(&["auth", "user", "list"]).unwrap().json().unwrap();
    assert_eq!(users["users"][0]["failures"], 5, "{users}");
    let said = session(&served);
    // The pause is a minute; a machine that took longer to start the module again has seen its end.
    if locked.elapsed() < Duration::from_secs(59) {
        assert_eq!(said.code(), "denied", "locked after kill -9");
        served.node.cli(&["auth", "unlock", "ada"]).unwrap().ok().unwrap();
        assert_eq!(session(&served).status, 200);
    }
    let unknown = served.node.cli(&["auth", "unlock", "nobody"]).unwrap();
    assert_eq!(refusal(&unknown).0, 4, "{}{}", unknown.stdout, unknown.stderr);
}

#[test]
fn a_peer_proves_its_key_and_a_stranger_is_not_asked() {
    let world = World::start().unwrap();
    let (alice, bob) = world.linked().unwrap();
    let proved = alice.cli(&["auth", "challenge", &bob.id]).unwrap().json().unwrap();
    assert_eq!(proved["peer"], bob.id.as_str());
    assert!(proved["at"].as_u64().unwrap() > 0);
    let stranger = world.init("carol", "").unwrap();
    let refused = alice.cli(&["auth", "challenge", &stranger.id]).unwrap();
    assert_ne!(refused.code, 0, "{}{}", refused.stdout, refused.stderr);
    let bad = alice.cli(&["auth", "challenge", "did:key:nobody"]).unwrap();
    assert_eq!(refusal(&bad).0, 2, "{}{}", bad.stdout, bad.stderr);
}
