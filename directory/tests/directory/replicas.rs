//! Three directories of one identity, each in its cage, on a PostgreSQL and over a NATS server that are real: whoever comes to one of them
//! finds what was left at another, whatever ends meanwhile.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use openred_directory::api::tokens::Received;
use openred_proto::id::NodeId;
use serde_json::Value;

use crate::broker::Broker;
use crate::cluster::{Cluster, wait_for};
use crate::fixture::{HOUR, Node, base64, json};
use crate::process::{Place, Serving, now, places};

pub(crate) const ORIGIN: &str = "http://directory.test";

/// Starts a directory, which is reached at this address, and waits until it serves.
pub(crate) fn started(mut command: Command, at: SocketAddr) -> Serving {
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
    let mut said = Vec::new();
    let address = loop {
        let line = lines.next().unwrap_or_else(|| panic!("it ended: {said:?}"));
        if let Some((_, address)) = line.split_once("address=") {
            break address.to_owned();
        }
        said.push(line);
    };
    // Read on, so that it never waits for us.
    std::thread::spawn(move || lines.for_each(drop));
    Serving::of(child, &address, at)
}

/// One of several: its home, and the listener that it inherits, so that its address stays its own.
pub(crate) struct Replica {
    pub(crate) place: Place,
    listener: TcpListener,
    address: SocketAddr,
    name: &'static str,
    serving: Option<Serving>,
}

/// All of them, and what they share.
pub(crate) struct Replicas {
    pub(crate) all: Vec<Replica>,
    pub(crate) broker: Broker,
    _cluster: Arc<Cluster>,
}

impl Replica {
    fn start(&mut self) {
        let mut command = Command::new("/bin/sh");
        let script = "exec 3<&0 </dev/null; export LISTEN_PID=$$ LISTEN_FDS=1; exec \"$0\" \"$@\"";
        command.args(["-c", script]).arg(&self.place.program).arg("--home").arg(self.place.home()).arg("serve");
        command.env_clear().current_dir("/").stdin(Stdio::from(OwnedFd::from(self.listener.try_clone().unwrap())));
        if let Some(user) = self.place.user {
            command.uid(user).gid(user);
        }
        self.serving = Some(started(command, self.address));
    }

    pub(crate) fn serving(&self) -> &Serving {
        self.serving.as_ref().unwrap()
    }

    fn kill(&mut self) {
        let mut serving = self.serving.take().unwrap();
        nix::sys::signal::kill(serving.process(), nix::sys::signal::Signal::SIGKILL).unwrap();
        serving.gone();
    }

    fn status(&self) -> Value {
        serde_json::from_str(&self.place.outcome(&["status", "--json"]).1).unwrap()
    }

    /// The others that it hears, by name; none while it is not connected.
    fn hears(&self) -> Vec<String> {
        let status = self.status();
        let others = status["replicas"]["others"].as_array().unwrap();
        let names = others.iter().map(|other| other["name"].as_str().unwrap().to_owned());
        if status["replicas"]["connected"] == true { names.collect() } else { Vec::new() }
    }

    pub(crate) fn offer(&self, from: &Node, offer: &[u8]) -> (u16, Value) {
        self.serving().call(from, "POST", "/api/v3/tokens/request-connection", &json("offer", offer))
    }

    pub(crate) fn acknowledge(&self, from: &Node, receipt: &[u8]) -> (u16, Value) {
        self.serving().call(from, "POST", "/api/v3/tokens/acknowledge", &json("receipt", receipt))
    }

    pub(crate) fn receive(&self, node: &Node, wait: u32, after: u64) -> Received {
        let path = format!("/api/v3/tokens/receive?wait={wait}&after={after}");
        let (status, received) = self.serving().call(node, "GET", &path, b"");
        assert_eq!(status, 200, "{received}");
        serde_json::from_value(received).unwrap()
    }

    fn payloads(&self, node: &Node, wait: u32, after: u64) -> Vec<Vec<u8>> {
        self.receive(node, wait, after).items.iter().map(|item| base64(&item.payload)).collect()
    }

    fn metric(&self, name: &str) -> u64 {
        let text = self.serving().get("/api/v3/metrics").1;
        let mut lines = text.as_str().unwrap().lines();
        lines.find_map(|line| line.strip_prefix(&format!("openred_directory_{name} "))?.parse().ok()).unwrap()
    }
}

impl Replicas {
    /// Three that hear each other, run by this user.
    pub(crate) fn new(user: Option<u32>) -> Self {
        Self::over(user, Broker::new(), "")
    }

    fn over(user: Option<u32>, broker: Broker, more: &str) -> Self {
        let cluster = Cluster::shared();
        let url = cluster.database();
        let mut all: Vec<Replica> = Vec::new();
        for name in ["a", "b", "c"] {
            let place = Place::of(user);
            let password = place.password(&cluster);
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = listener.local_addr().unwrap();
            let nats =
                broker.url().replace("127.0.0.1", if more.is_empty() { "127.0.0.1" } else { "openred@localhost" });
            place.configure(&format!(
                "listen = \"{address}\"\norigin = \"{ORIGIN}\"\n[limits]\nrequests_per_second = 1000\nrequests_burst = 1000\n[store]\nurl = \"{url}\"\npassword_file = \"{}\"\n[replicas]\nurl = \"{nats}\"\nname = \"{name}\"\n{more}",
                password.display()
            ));
            match all.first() {
                None => drop(place.text(&["init"])),
                Some(first) => {
                    let key = place.home().join("directory.key");
                    std::fs::copy(first.place.home().join("directory.key"), &key).unwrap();
                    std::os::unix::fs::chown(&key, user, user).unwrap();
                }
            }
            assert_eq!(place.text(&["check"]).lines().count(), 1);
            all.push(Replica { place, listener, address, name, serving: None });
        }
        let mut replicas = Self { all, broker, _cluster: cluster };
        replicas.all.iter_mut().for_each(Replica::start);
        replicas.meet();
        replicas
    }

    /// Waits until all that run hear each other.
    fn meet(&self) {
        let running: Vec<&Replica> = self.all.iter().filter(|replica| replica.serving.is_some()).collect();
        for replica in &running {
            let mut others: Vec<&str> = running.iter().map(|other| other.name).collect();
            others.retain(|name| *name != replica.name);
            wait_for("the replicas hear each other", || replica.hears() == others);
        }
    }

    pub(crate) fn register(&self, nodes: &[&Node]) {
        for (place, node) in nodes.iter().enumerate() {
            assert_eq!(self.all[place % self.all.len()].serving().register(node).0, 200);
        }
    }
}

pub(crate) fn offer(from: &Node, to: &Node, fill: u8) -> Vec<u8> {
    from.offer(&to.id(), now().plus(HOUR), fill)
}

#[test]
fn whoever_comes_to_one_finds_what_was_left_at_another() {
    for place in places() {
        let replicas = Replicas::new(place.user);
        let [a, b, c] = &replicas.all[..] else { panic!() };
        let (alice, bob) = (Node::new(1), Node::new(2));
        replicas.register(&[&alice, &bob]);
        // To one who waits elsewhere.
        let first = offer(&alice, &bob, 0xA5);
        let received = std::thread::scope(|scope| {
            let waiting = scope.spawn(|| b.receive(&bob, 60, 0));
            wait_for("he waits", || b.metric("streams") == 1);
            assert_eq!(a.offer(&alice, &first).0, 200);
            waiting.join().unwrap()
        });
        assert_eq!(base64(&received.items[0].payload), first);
        // To one who comes later, and to a third; then with the cursor of the first.
        let second = offer(&alice, &bob, 0x5A);
        assert_eq!(a.offer(&alice, &second).0, 200);
        wait_for("both are at the third", || c.payloads(&bob, 0, 0) == [first.clone(), second.clone()]);
        wait_for("what was shown is known", || c.payloads(&bob, 0, received.cursor) == [second.clone()]);
        assert_eq!(b.payloads(&bob, 0, received.cursor), std::slice::from_ref(&second));
        // The receipt goes back, and the offer with it, wherever each is.
        assert_eq!(c.acknowledge(&bob, &bob.receipt(&alice.id(), &first, now())).1["delivered"], true);
        let receipts = a.receive(&alice, 0, 0);
        assert_eq!(receipts.items.len(), 1);
        for replica in [a, b, c] {
            wait_for("it is done with", || replica.payloads(&bob, 0, 0) == [second.clone()]);
        }
        assert_eq!(b.receive(&alice, 0, 0).items.len(), 1);
        wait_for("the receipt was read", || b.receive(&alice, 0, receipts.cursor).items.is_empty());
        for replica in [a, b, c] {
            assert_eq!(replica.place.json(&["doctor"])["ok"], true);
        }
        assert_eq!(
            replicas.all.into_iter().map(|replica| replica.serving.unwrap().end()).collect::<Vec<_>>(),
            [Some(0); 3]
        );
    }
}

#[test]
fn a_newer_reader_ends_an_older_one_at_another() {
    let replicas = Replicas::new(None);
    let [a, b, _] = &replicas.all[..] else { panic!() };
    let bob = Node::new(2);
    replicas.register(&[&bob]);
    std::thread::scope(|scope| {
        let older = scope.spawn(|| a.serving().call(&bob, "GET", "/api/v3/tokens/receive?wait=60", b""));
        wait_for("he waits", || a.metric("streams") == 1);
        b.receive(&bob, 0, 0);
        let (status, problem) = older.join().unwrap();
        assert_eq!((status, &problem["code"]), (409, &"stream.replaced".into()));
    });
}

#[test]
fn a_nonce_of_one_is_refused_by_all_and_a_ban_of_one_holds_at_all() {
    let mut replicas = Replicas::new(None);
    let (alice, bob) = (Node::new(1), Node::new(2));
    replicas.register(&[&alice, &bob]);
    for nats in [true, false] {
        if !nats {
            replicas.broker.kill();
        }
        let [a, b, _] = &replicas.all[..] else { panic!() };
        let (path, body) = ("/api/v3/nodes/register", json("card", &alice.sign_card(&alice.card(now()))));
        let input = alice.input("POST", &format!("{ORIGIN}{path}"), &body, now().seconds());
        let headers = alice.sign_input(&input);
        assert_eq!(a.serving().send("POST", path, &headers, &body).0, 200);
        for replica in [b, a, b] {
            let (status, problem) = replica.serving().send("POST", path, &headers, &body);
            assert_eq!((status, &problem["code"]), (401, &"signature.repeated".into()), "{problem}");
        }
        let (ban, unban) = (["nodes", "ban"], ["nodes", "unban"]);
        a.place.text(&[&ban[..], &[&bob.id().to_string()]].concat());
        wait_for("the ban is followed", || b.serving().register(&bob).1["code"] == "node.banned");
        b.place.text(&[&unban[..], &[&bob.id().to_string()]].concat());
        wait_for("so is its end", || a.serving().register(&bob).0 == 200);
    }
    // A run that was killed leaves its nonces behind.
    let (path, body) = ("/api/v3/nodes/register", json("card", &alice.sign_card(&alice.card(now()))));
    let ahead = alice.input("POST", &format!("{ORIGIN}{path}"), &body, now().seconds() + 50);
    let headers = alice.sign_input(&ahead);
    assert_eq!(replicas.all[0].serving().send("POST", path, &headers, &body).0, 200);
    replicas.all[0].kill();
    replicas.all[0].start();
    let [a, b, _] = &replicas.all[..] else { panic!() };
    for replica in [a, b] {
        assert_eq!(replica.serving().send("POST", path, &headers, &body).1["code"], "signature.repeated");
    }
    wait_for("it serves at once", || a.serving().register(&bob).0 == 200);
}

#[test]
fn a_killed_replica_takes_no_offer_with_it() {
    let mut replicas = Replicas::new(None);
    let (alice, bob) = (Node::new(1), Node::new(2));
    replicas.register(&[&alice, &bob]);
    let waits = offer(&alice, &bob, 0xA5);
    assert_eq!(replicas.all[0].offer(&alice, &waits).0, 200);
    replicas.all[0].kill();
    let [_, b, c] = &replicas.all[..] else { panic!() };
    assert_eq!(b.payloads(&bob, 0, 0), std::slice::from_ref(&waits));
    assert_eq!(b.acknowledge(&bob, &bob.receipt(&alice.id(), &waits, now())).0, 200);
    assert_eq!(c.receive(&alice, 0, 0).items.len(), 1);
    // One that comes back is told what waits.
    let other = offer(&alice, &bob, 0x5A);
    wait_for("the dead one is not waited for", || c.offer(&alice, &other).0 == 200);
    replicas.all[0].start();
    replicas.meet();
    let [a, _, _] = &replicas.all[..] else { panic!() };
    wait_for("it has what waits", || a.payloads(&bob, 0, 0) == [other.clone()]);
    wait_for("receipts too", || a.receive(&alice, 0, 0).items.len() == 1);
}

#[test]
fn without_nats_offers_go_where_they_can_or_are_refused_by_name() {
    let mut replicas = Replicas::new(None);
    let (alice, bob) = (Node::new(1), Node::new(2));
    replicas.register(&[&alice, &bob]);
    replicas.broker.kill();
    // Whoever else has its port meanwhile is heard and not believed.
    let stranger = replicas.broker.try_hold();
    let [a, b, _] = &replicas.all[..] else { panic!() };
    wait_for("it is noticed", || a.status()["replicas"]["connected"] == false);
    let health = a.serving().get("/api/v3/health");
    assert_eq!((health.0, &health.1["status"]), (200, &"degraded".into()), "it serves: {}", health.1);
    let doctor = a.place.outcome(&["doctor"]).1;
    assert!(doctor.contains("replicas.link") && doctor.contains("start the NATS server"), "{doctor}");
    let refused = offer(&alice, &bob, 0xA5);
    let (status, problem) = a.offer(&alice, &refused);
    assert_eq!((status, &problem["code"]), (503, &"directory.cut-off".into()), "{problem}");
    assert_eq!(a.serving().get(&format!("/api/v3/nodes/{}", bob.id())).0, 200, "others are unharmed");
    assert_eq!(a.serving().register(&alice).0, 200);
    // Where he reads, it goes. Those who read are once told to come again, because another replica may be better off.
    let there = offer(&alice, &bob, 0x5A);
    wait_for("he is shown it", || {
        let shown = std::thread::scope(|scope| {
            let waiting = scope.spawn(|| b.payloads(&bob, 60, 0));
            wait_for("he waits", || b.metric("streams") == 1 || waiting.is_finished());
            let _ = b.offer(&alice, &there);
            waiting.join().unwrap()
        });
        shown == [there.clone()]
    });
    drop(stranger);
    replicas.broker.start();
    replicas.meet();
    let [a, b, c] = &replicas.all[..] else { panic!() };
    for replica in [a, b, c] {
        wait_for("what waited at one waits at all", || replica.payloads(&bob, 0, 0) == [there.clone()]);
    }
    assert_eq!(a.offer(&alice, &refused).0, 200);
    assert_eq!(c.payloads(&bob, 0, 0), [there, refused]);
    assert_eq!(a.place.json(&["doctor"])["ok"], true);
}

/// Somebody who is let in by the NATS server.
pub(crate) struct Stranger {
    stream: TcpStream,
    heard: Vec<u8>,
}

impl Stranger {
    pub(crate) fn new(broker: &Broker) -> Self {
        let mut stream = TcpStream::connect(("127.0.0.1", broker.port())).unwrap();
        stream.write_all(b"CONNECT {\"verbose\":false,\"echo\":false}\r\nSUB > 1\r\nPING\r\n").unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let mut stranger = Self { stream, heard: Vec::new() };
        wait_for("the stranger is let in", || {
            stranger.listen();
            stranger.heard.windows(4).any(|four| four == b"PONG")
        });
        stranger
    }

    pub(crate) fn listen(&mut self) {
        let mut buffer = [0; 65536];
        while let Ok(length @ 1..) = self.stream.read(&mut buffer) {
            self.heard.extend_from_slice(&buffer[..length]);
        }
    }

    /// Subject and letter of all that was said.
    pub(crate) fn letters(&self) -> Vec<(String, Vec<u8>)> {
        let mut letters = Vec::new();
        let mut rest = &self.heard[..];
        while let Some(end) = rest.windows(2).position(|two| two == b"\r\n") {
            let line = std::str::from_utf8(&rest[..end]).unwrap();
            rest = &rest[end + 2..];
            if let Some(message) = line.strip_prefix("MSG ") {
                let words: Vec<&str> = message.split(' ').collect();
                let length: usize = words.last().unwrap().parse().unwrap();
                let Some(letter) = rest.get(..length).filter(|_| rest.len() >= length + 2) else { break };
                letters.push((words[0].to_owned(), letter.to_vec()));
                rest = &rest[length + 2..];
            }
        }
        letters
    }

    fn say(&mut self, subject: &str, letter: &[u8]) {
        self.stream.write_all(format!("PUB {subject} {}\r\n", letter.len()).as_bytes()).unwrap();
        self.stream.write_all(letter).unwrap();
        self.stream.write_all(b"\r\n").unwrap();
    }
}

#[test]
fn who_is_on_nats_reads_nothing_and_what_he_says_changes_nothing() {
    let mut replicas = Replicas::new(None);
    let mut stranger = Stranger::new(&replicas.broker);
    let (alice, bob) = (Node::new(1), Node::new(2));
    replicas.register(&[&alice, &bob]);
    let sent = offer(&alice, &bob, 0xA5);
    assert_eq!(replicas.all[0].offer(&alice, &sent).0, 200);
    let cursor = replicas.all[1].receive(&bob, 0, 0).cursor;
    wait_for("letters of that length were carried", || {
        stranger.listen();
        stranger.letters().iter().any(|(_, letter)| letter.len() > sent.len())
    });
    let letters = stranger.letters();
    let contains = |needle: &[u8]| stranger.heard.windows(needle.len()).any(|window| window == needle);
    let id: NodeId = replicas.all[0].serving().id;
    for secret in [&sent[..64], &[0xA5; 32], bob.id().as_bytes(), alice.id().as_bytes(), id.as_bytes()] {
        assert!(!contains(secret), "it is sealed");
    }
    assert!(!contains(id.to_string().as_bytes()) && !contains(bob.id().to_string().as_bytes()));
    // All of it again, backwards, on other subjects, bent, and words of his own.
    let refused = |replicas: &Replicas| -> u64 {
        replicas.all.iter().map(|replica| replica.metric("replica_letters_refused_total")).sum()
    };
    let before = refused(&replicas);
    let subjects: Vec<String> = letters.iter().map(|(subject, _)| subject.clone()).collect();
    for (place, (subject, letter)) in letters.iter().enumerate().rev() {
        stranger.say(subject, letter);
        stranger.say(&subjects[(place + 1) % subjects.len()], letter);
        let mut bent = letter.clone();
        bent[place % letter.len()] ^= 1;
        stranger.say(subject, &bent);
        stranger.say(subject, &letter[..letter.len() / 2]);
        stranger.say(subject, b"");
    }
    stranger.say(&subjects[0], &vec![b'x'; 1 << 20]);
    wait_for("he was heard", || refused(&replicas) >= before + letters.len() as u64);
    let [_, b, c] = &replicas.all[..] else { panic!() };
    assert!(b.payloads(&bob, 0, cursor).is_empty(), "it is not shown again");
    assert_eq!(c.payloads(&bob, 0, 0), std::slice::from_ref(&sent));
    // Nor to one that has just come and knows nobody yet.
    assert_eq!(b.acknowledge(&bob, &bob.receipt(&alice.id(), &sent, now())).0, 200);
    replicas.all[2].kill();
    replicas.all[2].start();
    for (subject, letter) in &letters {
        stranger.say(subject, letter);
    }
    replicas.meet();
    let fresh = offer(&alice, &bob, 0x5A);
    wait_for("they go on", || replicas.all[0].offer(&alice, &fresh).0 == 200);
    assert!(replicas.all[1].payloads(&bob, 0, 0).contains(&fresh));
}

#[test]
fn all_show_one_log() {
    let replicas = Replicas::new(None);
    let mut last = 0;
    for seed in 1..12 {
        assert_eq!(replicas.all[usize::from(seed) % 3].serving().register(&Node::new(seed)).0, 200);
        for replica in &replicas.all {
            let head = replica.serving().get("/api/v3/log/head").1["head"].as_str().unwrap().to_owned();
            let size: u64 = head.lines().nth(1).unwrap().parse().unwrap();
            assert!(size >= u64::from(seed) && size >= last, "{size} after {last}: what one has taken all show");
            last = size;
        }
    }
    let heads: Vec<Value> = replicas.all.iter().map(|replica| replica.serving().get("/api/v3/log/head").1).collect();
    assert!(heads.iter().all(|head| *head == heads[0]), "one size has one text");
    assert_eq!(replicas.all[1].place.json(&["log", "verify"])["cards"], 11);
}

#[test]
fn nats_by_tls_and_password() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8], mode| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let certificate = write("server.pem", include_bytes!("tls/localhost.pem"), 0o644);
    let key = write("server.key", include_bytes!("tls/localhost.key"), 0o600);
    let trusted = write("ca.pem", include_bytes!("tls/ca.pem"), 0o644);
    let password = write("password", b"not-a-secret\n", 0o600);
    let broker = Broker::with(&[
        "--tls",
        "--tlscert",
        &certificate,
        "--tlskey",
        &key,
        "--user",
        "openred",
        "--pass",
        "not-a-secret",
    ]);
    let more = format!("password_file = \"{password}\"\ncertificates = \"{trusted}\"\n");
    let replicas = Replicas::over(None, broker, &more);
    let (alice, bob) = (Node::new(1), Node::new(2));
    replicas.register(&[&alice, &bob]);
    let sent = offer(&alice, &bob, 0xA5);
    assert_eq!(replicas.all[0].offer(&alice, &sent).0, 200);
    assert_eq!(replicas.all[2].payloads(&bob, 0, 0), [sent]);
}
