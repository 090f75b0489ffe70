//! The real program, in its cage: as root with a uid of its own and as an ordinary user. Run as root, both are tested;
//! run as an ordinary user, only that half exists.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};
use openred_directory::api::tokens::{Received, Routed};
use openred_proto::checked::offer::Offer;
use openred_proto::checked::receipt::{Receipt, ReceiptKind};
use openred_proto::id::{NodeId, UnixMillis};
use serde_json::Value;

use crate::fixture::{HOUR, Node, base64, json};

/// The ordinary user of the root run: nobody's uid.
const ORDINARY: u32 = 64_123;

/// A home on this machine and the user who runs a directory in it.
pub(crate) struct Place {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) program: PathBuf,
    pub(crate) user: Option<u32>,
}

/// Every kind of user that this run can be.
pub(crate) fn places() -> Vec<Place> {
    if geteuid().is_root() { vec![Place::of(None), Place::of(Some(ORDINARY))] } else { vec![Place::of(None)] }
}

impl Place {
    /// A new home of this user; none is the one who runs the test.
    pub(crate) fn of(user: Option<u32>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        // The build's folder may be closed to the other user. Copied by a process of its own: a child that another test
        // forks meanwhile would inherit our writing descriptor, and a program open for writing cannot be started.
        let program = folder.path().join("directory");
        let copied = Command::new("cp").arg(env!("CARGO_BIN_EXE_directory")).arg(&program).status().unwrap();
        assert!(copied.success(), "{copied}");
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::create_dir(folder.path().join("home")).unwrap();
        if let Some(user) = user {
            std::os::unix::fs::chown(folder.path().join("home"), Some(user), Some(user)).unwrap();
        }
        let place = Self { folder, program, user };
        place.configure("listen = \"127.0.0.1:0\"\n");
        place
    }

    pub(crate) fn home(&self) -> PathBuf {
        self.folder.path().join("home")
    }

    pub(crate) fn configure(&self, text: &str) {
        std::fs::write(self.home().join("directory.toml"), text).unwrap();
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--home").arg(self.home()).args(arguments).env_clear().current_dir("/").stdin(Stdio::null());
        if let Some(user) = self.user {
            command.uid(user).gid(user);
        }
        command
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// A command that succeeds; its output.
    pub(crate) fn text(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?} {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// A command's exit code and what it prints.
    pub(crate) fn outcome(&self, arguments: &[&str]) -> (i32, String) {
        let output = self.run(arguments);
        (output.status.code().unwrap_or(-1), String::from_utf8(output.stdout).unwrap())
    }

    /// The same whatever the exit code is.
    pub(crate) fn json_of(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.outcome(&[arguments, &["--json"]].concat()).1).unwrap()
    }

    pub(crate) fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.text(&[arguments, &["--json"]].concat())).unwrap()
    }

    /// A command that fails: its code and what it says.
    pub(crate) fn failure(&self, arguments: &[&str]) -> (i32, String) {
        let output = self.run(arguments);
        (output.status.code().unwrap_or(-1), String::from_utf8(output.stderr).unwrap())
    }

    /// One that may not come up: then none.
    pub(crate) fn run_for_a_moment(&self) -> Option<Serving> {
        let mut child = self.command(&["serve"]).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let address = lines.find_map(|line| line.ok()?.split_once("address=").map(|(_, address)| address.to_owned()));
        let Some(address) = address else {
            let ended = child.wait().unwrap();
            assert_eq!(ended.code(), Some(1), "it ends with a line, not with a crash");
            return None;
        };
        std::thread::spawn(move || lines.for_each(drop));
        let mut serving = Serving::at(&address);
        serving.child = Some(child);
        Some(serving)
    }

    pub(crate) fn serve(&self) -> Serving {
        let mut child = self.command(&["serve"]).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut said = Vec::new();
        let address = loop {
            let line = lines.next().unwrap_or_else(|| panic!("it ended: {said:?}")).unwrap();
            if let Some((_, address)) = line.split_once("address=") {
                break address.to_owned();
            }
            said.push(line);
        };
        // Read on, so that it never waits for us.
        std::thread::spawn(move || lines.for_each(drop));
        let mut serving = Serving::at(&address);
        serving.child = Some(child);
        serving
    }
}

/// A directory that serves; killed when dropped, if it is our child.
pub(crate) struct Serving {
    child: Option<Child>,
    pub(crate) id: NodeId,
    pub(crate) origin: String,
    pub(crate) socket: SocketAddr,
}

impl Drop for Serving {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

pub(crate) fn now() -> UnixMillis {
    (openred_directory::state::system_clock())()
}

impl Serving {
    /// One that somebody else started, by the `did@url` that it announced.
    pub(crate) fn at(address: &str) -> Self {
        let (id, origin) = address.split_once('@').unwrap();
        let socket = origin.split_once("://").unwrap().1.replace("localhost", "127.0.0.1");
        Self { child: None, id: id.parse().unwrap(), origin: origin.to_owned(), socket: socket.parse().unwrap() }
    }

    /// One that we started, reached at this address whatever its origin says.
    pub(crate) fn of(child: Child, address: &str, socket: SocketAddr) -> Self {
        let (id, origin) = address.split_once('@').unwrap();
        Self { child: Some(child), id: id.parse().unwrap(), origin: origin.to_owned(), socket }
    }

    fn child(&mut self) -> &mut Child {
        self.child.as_mut().unwrap()
    }

    pub(crate) fn pid(&self) -> i32 {
        i32::try_from(self.child.as_ref().unwrap().id()).unwrap()
    }

    pub(crate) fn process(&self) -> Pid {
        Pid::from_raw(self.pid())
    }

    /// Waits until it is gone, however it ends.
    pub(crate) fn gone(&mut self) {
        self.child().wait().unwrap();
    }

    /// Ends it with SIGTERM; its exit code.
    pub(crate) fn end(mut self) -> Option<i32> {
        kill(Pid::from_raw(self.pid()), Signal::SIGTERM).unwrap();
        self.child().wait().unwrap().code()
    }

    pub(crate) fn call(&self, node: &Node, method: &str, path: &str, body: &[u8]) -> (u16, Value) {
        let input = node.input(method, &format!("{}{path}", self.origin), body, now().seconds());
        self.send(method, path, &node.sign_input(&input), body)
    }

    /// Sends a request with these signature headers.
    pub(crate) fn send(&self, method: &str, path: &str, headers: &[(&str, String)], body: &[u8]) -> (u16, Value) {
        let mut head =
            format!("{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n", body.len());
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        exchange(TcpStream::connect(self.socket).unwrap(), head.as_bytes(), body)
    }

    /// The status of a registration that is signed a minute ahead; none when the directory is gone before it answers.
    pub(crate) fn try_register(&self, node: &Node) -> Option<u16> {
        let (body, path) = (json("card", &node.sign_card(&node.card(now()))), "/api/v3/nodes/register");
        let input = node.input("POST", &format!("{}{path}", self.origin), &body, now().seconds() + 59);
        let mut head =
            format!("POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n", body.len());
        for (name, value) in node.sign_input(&input) {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        let mut stream = TcpStream::connect(self.socket).ok()?;
        stream.write_all(&[head.as_bytes(), b"\r\n", &body].concat()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        answer.split(' ').nth(1)?.parse().ok()
    }

    pub(crate) fn register(&self, node: &Node) -> (u16, Value) {
        let card = node.sign_card(&node.card(now()));
        self.call(node, "POST", "/api/v3/nodes/register", &json("card", &card))
    }

    /// The same over TLS.
    pub(crate) fn register_sealed(&self, node: &Node) -> (u16, Value) {
        let (body, path) = (json("card", &node.sign_card(&node.card(now()))), "/api/v3/nodes/register");
        let input = node.input("POST", &format!("{}{path}", self.origin), &body, now().seconds());
        let mut head =
            format!("POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n", body.len());
        for (name, value) in node.sign_input(&input) {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        exchange(tls(self), head.as_bytes(), &body)
    }

    pub(crate) fn get(&self, path: &str) -> (u16, Value) {
        let head = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n");
        exchange(TcpStream::connect(self.socket).unwrap(), head.as_bytes(), b"")
    }
}

pub(crate) fn exchange(mut stream: impl std::io::Read + std::io::Write, head: &[u8], body: &[u8]) -> (u16, Value) {
    stream.write_all(&[head, b"\r\n", body].concat()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.contains("\r\ndate: "), "{head}");
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, serde_json::from_str(body).unwrap_or(Value::String(body.to_owned())))
}

#[test]
fn the_whole_way_confined_as_each_user() {
    for place in places() {
        let serving = place.serve();
        let (alice, bob) = (Node::new(1), Node::new(2));
        assert_eq!(serving.register(&alice).0, 200);
        assert_eq!(serving.register(&bob).0, 200);
        let offer = alice.offer(&bob.id(), now().plus(HOUR), 0xA5);
        let (status, routed) =
            serving.call(&alice, "POST", "/api/v3/tokens/request-connection", &json("offer", &offer));
        assert_eq!(status, 200, "{routed}");
        let routed: Routed = serde_json::from_value(routed).unwrap();
        let receipt = Receipt::verify(&base64(&routed.receipt), &serving.id).unwrap();
        assert_eq!((receipt.kind, receipt.token_id), (ReceiptKind::Routed, Offer::token_id(&offer)));
        let (_, received) = serving.call(&bob, "GET", "/api/v3/tokens/receive?wait=5", b"");
        let received: Received = serde_json::from_value(received).unwrap();
        assert_eq!(base64(&received.items[0].payload), offer);
        let accepted = bob.receipt(&alice.id(), &offer, now());
        let (status, _) = serving.call(&bob, "POST", "/api/v3/tokens/acknowledge", &json("receipt", &accepted));
        assert_eq!(status, 200);
        let (_, back) = serving.call(&alice, "GET", "/api/v3/tokens/receive?wait=5", b"");
        let back: Received = serde_json::from_value(back).unwrap();
        assert_eq!(base64(&back.items[0].payload), accepted);
        assert_eq!(serving.get("/api/v3/metrics").0, 200);

        let doctor = place.json(&["doctor"]);
        assert_eq!(
            (&doctor["schema"], &doctor["ok"]),
            (&"openred.directory.doctor/1".into(), &true.into()),
            "{doctor:#}"
        );
        let named = |name: &str| doctor["findings"].as_array().unwrap().iter().any(|finding| finding["name"] == name);
        assert!(named("cage: landlock") && named("cage: seccomp") && named("outside: Seccomp"), "{doctor:#}");
        let status = place.json(&["status"]);
        assert_eq!((&status["counts"]["nodes"], &status["health"]["status"]), (&2.into(), &"ok".into()), "{status:#}");
        assert_eq!(serving.end(), Some(0), "SIGTERM drains");
    }
}

#[test]
fn the_operator_lists_shows_and_bans() {
    for place in places() {
        let serving = place.serve();
        let (node, other) = (Node::new(1), Node::new(2));
        let id = node.id().to_string();
        assert_eq!(place.text(&["nodes", "list"]), "no nodes\n");
        serving.register(&node);
        let listed = place.text(&["nodes", "list"]);
        assert!(listed.starts_with(&format!("{:<56}  STATE        SEEN\n{id}  fresh        ", "NODE")), "{listed}");
        assert!(
            place
                .text(&["nodes", "show", &id])
                .starts_with(&format!("node      {id}\nstate     fresh\nlisted    yes\n"))
        );
        assert_eq!(place.failure(&["nodes", "show", &other.id().to_string()]).0, 4);
        assert_eq!(place.failure(&["nodes", "show", "bob"]).0, 2);
        assert_eq!(place.text(&["nodes", "ban", &id, "--reason", "spam"]), format!("banned {id}\n"));
        assert_eq!(place.failure(&["nodes", "ban", &id]).0, 6);
        let (status, problem) = serving.register(&node);
        assert_eq!((status, &problem["code"]), (403, &"node.banned".into()));
        assert_eq!(place.json(&["nodes", "list", "--state", "banned"])["nodes"][0]["ban_reason"], "spam");
        assert_eq!(serving.end(), Some(0));

        let serving = place.serve();
        assert_eq!(serving.register(&node).0, 403, "a ban outlives the process");
        assert_eq!(place.json(&["nodes", "unban", &id])["done"], "unbanned");
        assert_eq!(place.failure(&["nodes", "unban", &id]).0, 6);
        assert_eq!(serving.register(&node).0, 200);
    }
}

#[test]
fn a_killed_directory_loses_no_card_and_starts_again() {
    for place in places() {
        let mut serving = place.serve();
        let (id, node) = (serving.id, Node::new(1));
        assert_eq!(serving.register(&node).0, 200);
        serving.child().kill().unwrap();
        serving.child().wait().unwrap();
        let serving = place.serve();
        assert_eq!(serving.id, id, "the identity is the same");
        assert_eq!(serving.get(&format!("/api/v3/nodes/{}", node.id())).0, 200);
    }
}

#[test]
fn a_request_that_was_taken_is_not_taken_again_after_a_restart() {
    for place in places() {
        // The same origin each time: what was signed for another would not verify.
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        place.configure(&format!("listen = \"{free}\"\n"));
        let (node, path) = (Node::new(1), "/api/v3/nodes/register");
        let mut serving = place.serve();
        let body = json("card", &node.sign_card(&node.card(now())));
        let ahead = node.input("POST", &format!("{}{path}", serving.origin), &body, now().seconds() + 55);
        let headers = node.sign_input(&ahead);
        assert_eq!(serving.send("POST", path, &headers, &body).0, 200);
        for in_order in [true, false] {
            if in_order {
                assert_eq!(serving.end(), Some(0));
            } else {
                serving.child().kill().unwrap();
                serving.child().wait().unwrap();
            }
            serving = place.serve();
            let (status, problem) = serving.send("POST", path, &headers, &body);
            assert_eq!((status, &problem["code"]), (503, &"directory.busy".into()), "{in_order} {problem}");
            assert_eq!(serving.get(&format!("/api/v3/nodes/{}", node.id())).0, 200, "look-ups need no signature");
        }
    }
}

#[test]
fn from_inside_there_is_only_the_state() {
    for place in places() {
        let serving = place.serve();
        let pid = serving.pid();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        for field in ["NoNewPrivs:\t1", "Seccomp:\t2", "CapEff:\t0000000000000000", "CapBnd:\t0000000000000000"] {
            assert!(status.contains(field), "{field}\n{status}");
        }
        let mounts = std::fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
        let mut inside: Vec<&str> = mounts.lines().filter_map(|line| line.split(' ').nth(4)).collect();
        inside.sort_unstable();
        let home = place.home();
        assert_eq!(inside, ["/", home.join("state").to_str().unwrap()], "{mounts}");
        if geteuid().is_root() {
            let root = PathBuf::from(format!("/proc/{pid}/root"));
            let seen = |path: &Path| root.join(path.strip_prefix("/").unwrap()).exists();
            assert!(seen(&home.join("state/directory.sqlite")), "control");
            assert!(!seen(&home.join("directory.key")) && !seen(Path::new("/etc/passwd")));
            let uid = if place.user.is_some() { ORDINARY } else { 61_100 };
            assert!(status.contains(&format!("\nUid:\t{uid}\t{uid}\t{uid}\t{uid}\n")), "{status}");
        }
    }
}

#[test]
fn what_stops_the_start_is_one_line_with_a_way_out() {
    for place in places() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        place.configure(&format!("listen = \"{address}\"\n"));
        let (code, said) = place.failure(&["serve"]);
        // A new identity is announced; the complaint is the last line.
        let complaint = said.lines().last().unwrap();
        let way_out = "end what listens there (`ss -ltnp`) or set another `listen` in the configuration";
        assert_eq!((code, complaint), (6, format!("directory: {address}: the port is taken; {way_out}").as_str()));

        place.configure("listen = \"127.0.0.1:0\"\n");
        let serving = place.serve();
        let (code, said) = place.failure(&["serve"]);
        assert_eq!((code, said.lines().count()), (6, 1), "{said}");
        assert!(said.contains("another directory serves this home; stop it first"), "{said}");
        assert_eq!(serving.end(), Some(0));

        std::fs::set_permissions(place.home().join("directory.key"), std::fs::Permissions::from_mode(0o644)).unwrap();
        let (code, said) = place.failure(&["serve"]);
        assert_eq!((code, said.lines().count()), (1, 1), "{said}");
        assert!(said.contains("others may read this key; `chmod 600` it"), "{said}");
        std::fs::set_permissions(place.home().join("directory.key"), std::fs::Permissions::from_mode(0o600)).unwrap();

        std::fs::rename(place.home().join("directory.key"), place.home().join("lost.key")).unwrap();
        let (code, said) = place.failure(&["serve"]);
        assert_eq!((code, said.lines().count()), (1, 1), "{said}");
        assert!(said.contains("is missing, and there is a database: restore it"), "{said}");
        std::fs::rename(place.home().join("lost.key"), place.home().join("directory.key")).unwrap();

        let state = place.home().join("state");
        for file in std::fs::read_dir(&state).unwrap() {
            std::fs::write(
                file.unwrap().path(),
                b"this is no database, and it is longer than a header of one hundred bytes would be, by far",
            )
            .unwrap();
        }
        let (code, said) = place.failure(&["serve"]);
        assert_eq!((code, said.lines().count()), (1, 1), "{said}");
        assert!(said.starts_with("directory: database: "), "{said}");
    }
}

#[test]
fn a_wrong_configuration_is_shown_where_it_is_wrong() {
    let place = Place::of(None);
    let file = place.home().join("directory.toml");
    let file = file.display();
    for command in ["serve", "check", "status"] {
        place.configure("lisen = \"127.0.0.1:0\"\n");
        let expected = format!(
            "directory: {file}:1:1: unknown key `lisen`; did you mean `listen`?\n   |\n 1 | lisen = \"127.0.0.1:0\"\n   | ^^^^^\n"
        );
        assert_eq!(place.failure(&[command]), (78, expected));
    }
    place.configure("listen = \"192.0.2.7:80\"\n");
    let (code, said) = place.failure(&["check"]);
    assert!(code == 78 && said.contains("plain HTTP is served on loopback only: set tls.certificate"), "{said}");
    place.configure("[tls]\ncertificate = \"/nowhere.pem\"\nkey = \"/nowhere.key\"\n");
    assert_eq!(place.failure(&["check"]).0, 78);
    let (code, said) = place.failure(&["--config", "/nowhere.toml", "check", "--json"]);
    let said: Value = serde_json::from_str(&said).unwrap();
    assert_eq!((code, &said["exit_code"], &said["schema"]), (78, &78.into(), &"openred.directory.error/1".into()));
}

#[test]
fn commands_that_need_no_directory() {
    let place = Place::of(None);
    let (code, said) = place.failure(&["status"]);
    assert!(code == 1 && said.contains("no directory is running there; start it with `directory serve`"), "{said}");
    assert_eq!(place.failure(&["no-such-command"]).0, 2);
    assert_eq!(place.json(&["version"])["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(place.text(&["check"]), format!("{}: ok\n", place.home().join("directory.toml").display()));
    let made = place.json(&["init"]);
    assert_eq!(made["created"], true);
    assert_eq!(place.json(&["init"])["address"], made["address"]);
    let shown = place.text(&["config", "show", "--origin"]);
    let listen = shown.lines().find(|line| line.starts_with("listen ")).unwrap();
    assert!(listen.contains("127.0.0.1:0") && listen.ends_with(" file"), "{listen}");
    assert!(place.text(&["completions", "bash"]).contains("_directory"));
    let pages = place.home().join("man");
    std::fs::create_dir(&pages).unwrap();
    place.text(&["man", pages.to_str().unwrap()]);
    assert!(std::fs::read_dir(&pages).unwrap().count() > 5);
}

#[test]
fn init_writes_only_what_can_be_served() {
    let place = Place::of(None);
    let file = place.home().join("directory.toml");
    std::fs::remove_file(&file).unwrap();
    for (listen, origin, why) in [
        ("0.0.0.0:7440", "http://a.example", "plain HTTP is served on loopback only"),
        ("0.0.0.0:7440", "https://a.example", "plain HTTP is served on loopback only"),
        ("127.0.0.1:7440", "https://a.example/path", "must be scheme, host and port"),
    ] {
        let (code, said) = place.failure(&["init", "--listen", listen, "--origin", origin]);
        assert!(code == 78 && said.contains(why), "{code} {said}");
        assert!(!file.exists(), "nothing stands in the way of the corrected command");
    }
    let made = place.json(&["init", "--listen", "127.0.0.1:7440", "--origin", "https://a.example"]);
    assert!(made["address"].as_str().unwrap().ends_with("@https://a.example"), "{made}");
    let text = std::fs::read_to_string(&file).unwrap();
    assert_eq!(text, "listen = \"127.0.0.1:7440\"\norigin = \"https://a.example\"\nbehind_proxy = true\n");
    assert_eq!(place.text(&["check"]), format!("{}: ok\n", file.display()));
    let (code, said) = place.failure(&["init", "--origin", "http://b.example"]);
    assert!(code == 1 && said.contains("init never overwrites"), "{code} {said}");
}

#[test]
fn https_and_metrics_of_their_own() {
    for place in places() {
        let (certificate, key) = (place.folder.path().join("tls.pem"), place.folder.path().join("tls.key"));
        std::fs::write(&certificate, include_bytes!("tls/localhost.pem")).unwrap();
        std::fs::write(&key, include_bytes!("tls/localhost.key")).unwrap();
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let metrics = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        place.configure(&format!(
            "listen = \"{free}\"\norigin = \"https://localhost:{}\"\nmetrics_listen = \"{metrics}\"\n[tls]\ncertificate = {certificate:?}\nkey = {key:?}\n",
            free.port()
        ));
        let serving = place.serve();
        let (status, health) =
            exchange(tls(&serving), b"GET /api/v3/health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n", b"");
        assert_eq!((status, &health["status"]), (200, &"ok".into()));
        let plain = TcpStream::connect(metrics).unwrap();
        let (status, text) = exchange(plain, b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n", b"");
        assert!(status == 200 && text.as_str().unwrap().contains("openred_directory_uptime_seconds"), "{text}");
        let mut plain = TcpStream::connect(serving.socket).unwrap();
        plain.write_all(b"GET /api/v3/health HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
        let mut answer = Vec::new();
        let _ = plain.read_to_end(&mut answer);
        assert!(!answer.starts_with(b"HTTP/"), "no plain HTTP where there is a certificate");
    }
}

fn tls(serving: &Serving) -> rustls::StreamOwned<rustls::ClientConnection, TcpStream> {
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject as _;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(include_bytes!("tls/ca.pem")).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = builder.with_root_certificates(roots).with_no_client_auth();
    let client = rustls::ClientConnection::new(Arc::new(config), "localhost".try_into().unwrap()).unwrap();
    rustls::StreamOwned::new(client, TcpStream::connect(serving.socket).unwrap())
}
