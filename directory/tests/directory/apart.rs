//! Three replicas in networks of their own, as on three machines: one wire leads to the nodes, another to NATS. While nodes announce
//! themselves and send each other offers by whichever replica they come to, one is killed, one is cut off, and all are restarted one after
//! the other. No card is lost; each offer that was taken reaches its recipient, each other was refused by name. And what one
//! took while it was cut off is with the others before it ends.
//!
//! Networks are made by root alone; run as an ordinary user, this file tests nothing.
#![allow(clippy::print_stderr, reason = "what went on, for whoever reads of a failure")]

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use nix::sys::signal::Signal;
use nix::unistd::geteuid;
use openred_directory::api::tokens::Received;
use openred_directory::limits::CARD_EVERY;
use openred_proto::checked::card::Card;
use openred_proto::checked::offer::Offer;
use openred_proto::id::{NodeId, UnixMillis};
use serde_json::Value;

use crate::broker::Broker;
use crate::cluster::{Cluster, wait_for};
use crate::fixture::{HOUR, Node, base64, json};
use crate::process::{Place, Serving, now};
use crate::replicas::{ORIGIN, started};

/// Refusals that name what is the matter while something is; whoever gets one tries again.
const NAMED: [&str; 5] =
    ["directory.cut-off", "directory.busy", "signature.clock", "recipient.full", "stream.replaced"];
const PORT: u16 = 7440;
const NODES: u8 = 6;

/// A network namespace: it lives as long as the process that holds it.
struct Net(Child);

impl Net {
    fn new() -> Self {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "unshare", "--net", "sleep", "infinity"]);
        let net = Self(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
        // This thread's, which may be in one of ours: the child is in the same until it has made its own.
        let own = std::fs::read_link("/proc/thread-self/ns/net").unwrap();
        wait_for("the namespace is there", || std::fs::read_link(net.path()).is_ok_and(|path| path != own));
        net
    }

    fn path(&self) -> String {
        format!("/proc/{}/ns/net", self.0.id())
    }

    /// A command that runs in it.
    fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path())).arg("--").arg(program);
        command
    }

    /// `ip` with these words.
    fn ip(&self, words: &str) {
        eprintln!("{} ip {words}", now().0);
        let output =
            self.command("ip").args(words.split(' ')).env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").output().unwrap();
        assert!(output.status.success(), "ip {words}: {output:?}");
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// One replica and its machine.
struct Machine {
    net: Net,
    place: Place,
    address: SocketAddr,
    name: &'static str,
    number: usize,
    serving: Mutex<Option<Serving>>,
}

impl Machine {
    fn start(&self) {
        eprintln!("{} start {}", now().0, self.name);
        let mut command = self.net.command(&self.place.program);
        command.arg("--home").arg(self.place.home()).arg("serve").env_clear().env("PATH", "/usr/bin:/bin");
        command.current_dir("/").stdin(Stdio::null());
        *self.serving.lock().unwrap() = Some(started(command, self.address));
    }

    fn end(&self, signal: Signal) {
        eprintln!("{} end {} {signal}", now().0, self.name);
        let mut serving = self.serving.lock().unwrap().take().unwrap();
        nix::sys::signal::kill(serving.process(), signal).unwrap();
        serving.gone();
    }

    fn status(&self) -> Value {
        serde_json::from_str(&self.place.outcome(&["status", "--json"]).1).unwrap_or_default()
    }

    /// The others that it hears, where it is connected.
    fn hears(&self) -> Vec<String> {
        let status = self.status();
        let others = status["replicas"]["others"].as_array().cloned().unwrap_or_default();
        let names = others.iter().map(|other| other["name"].as_str().unwrap().to_owned());
        if status["replicas"]["connected"] == true { names.collect() } else { Vec::new() }
    }
}

/// The machines, and what joins them.
struct World {
    hub: Net,
    machines: Vec<Machine>,
}

impl World {
    fn new(cluster: &Arc<Cluster>, broker: &Broker, hub: Net) -> Self {
        let url = cluster.database();
        let mut machines: Vec<Machine> = Vec::new();
        for (place, name) in ["a", "b", "c"].into_iter().enumerate() {
            let number = place + 1;
            let net = Net::new();
            net.ip("link set lo up");
            for (wire, side) in [("front", 1), ("back", 2)] {
                hub.ip(&format!("link add {wire}{number} type veth peer name {wire} netns {}", net.0.id()));
                hub.ip(&format!("link set {wire}{number} master {wire} up"));
                net.ip(&format!("address add 10.99.{side}.{number}/24 dev {wire}"));
                net.ip(&format!("link set {wire} up"));
            }
            let place = Place::of(None);
            let password = place.password(cluster);
            let address = format!("10.99.1.{number}:{PORT}");
            place.configure(&format!(
                "listen = \"{address}\"\norigin = \"{ORIGIN}\"\nbehind_proxy = true\n[limits]\nrequests_per_second = 1000\nrequests_burst = 1000\n[store]\nurl = \"{url}\"\npassword_file = \"{}\"\n[replicas]\nurl = \"nats://10.99.2.254:{}\"\nname = \"{name}\"\n",
                password.display(),
                broker.port()
            ));
            match machines.first() {
                None => drop(place.text(&["init"])),
                Some(first) => {
                    let key = |place: &Place| place.home().join("directory.key");
                    std::fs::copy(key(&first.place), key(&place)).unwrap();
                }
            }
            let address = address.parse().unwrap();
            machines.push(Machine { net, place, address, name, number, serving: Mutex::default() });
        }
        Self { hub, machines }
    }

    fn meet(&self) {
        for machine in &self.machines {
            let names = self.machines.iter().map(|other| other.name);
            let others: Vec<&str> = names.filter(|name| *name != machine.name).collect();
            wait_for("the replicas hear each other", || machine.hears() == others);
        }
    }
}

/// A node that comes to whichever replica is next.
struct Caller<'a> {
    node: Node,
    world: &'a World,
    turn: AtomicUsize,
}

impl Caller<'_> {
    /// One call at one replica; none where it is not there, or ended under it.
    fn try_call(&self, method: &str, path: &str, body: &[u8]) -> Option<(u16, Value)> {
        let machines = &self.world.machines;
        let machine = &machines[self.turn.fetch_add(1, Ordering::Relaxed) % machines.len()];
        let input = self.node.input(method, &format!("{ORIGIN}{path}"), body, now().seconds());
        let mut stream = TcpStream::connect_timeout(&machine.address, Duration::from_secs(2)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut head =
            format!("{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n", body.len());
        for (name, value) in self.node.sign_input(&input) {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        stream.write_all(&[head.as_bytes(), b"\r\n", body].concat()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        Some((head.split(' ').nth(1)?.parse().ok()?, serde_json::from_str(body).ok()?))
    }

    /// The answer of a replica that carried a call out, whichever that is.
    fn call(&self, method: &str, path: &str, body: &[u8]) -> Value {
        let mut answered = None;
        self.until(method, path, body, |status, answer| {
            if status == 200 {
                answered = Some(answer.clone());
            }
            status == 200
        });
        answered.unwrap()
    }

    /// Calls one replica after the other until an answer will do. One that will not names why it is a refusal.
    fn until(&self, method: &str, path: &str, body: &[u8], mut will_do: impl FnMut(u16, &Value) -> bool) {
        let mut before = String::new();
        wait_for("some replica carries it out", || {
            let Some((status, answer)) = self.try_call(method, path, body) else { return false };
            if will_do(status, &answer) {
                return true;
            }
            let code = answer["code"].as_str().unwrap_or_default();
            assert!(NAMED.contains(&code), "{path} {status} {answer}");
            if before != code {
                eprintln!("{} {} {path} {status} {code}", now().0, self.node.id());
                code.clone_into(&mut before);
            }
            false
        });
    }

    /// Whether a receipt went: not while its recipient has not read the earlier ones. Who waited for that with reading might wait for one who
    /// waits for him.
    fn acknowledge(&self, receipt: &[u8]) -> bool {
        let mut went = false;
        self.until("POST", "/api/v3/tokens/acknowledge", &json("receipt", receipt), |status, answer| {
            went = status == 200;
            went || answer["code"] == "recipient.full"
        });
        went
    }

    /// The replica that was called last.
    fn last(&self) -> &'static str {
        let machines = &self.world.machines;
        machines[(self.turn.load(Ordering::Relaxed) - 1) % machines.len()].name
    }

    /// Registers a card of then; its sequence.
    fn announce(&self, then: UnixMillis) -> u64 {
        let card = self.node.card(then);
        self.call("POST", "/api/v3/nodes/register", &json("card", &self.node.sign_card(&card)));
        card.sequence
    }

    /// Receives and acknowledges until the others have stopped and nothing comes any more.
    fn receive(&self, done: &AtomicBool, delivered: &Mutex<HashSet<[u8; 32]>>) {
        let (mut cursor, mut owed) = (0, Vec::new());
        loop {
            let over = done.load(Ordering::SeqCst);
            let received = self.call("GET", &format!("/api/v3/tokens/receive?wait=1&after={cursor}"), b"");
            let received: Received = serde_json::from_value(received).unwrap();
            for item in &received.items {
                let payload = base64(&item.payload);
                if let Ok(offer) = Offer::decode(&payload) {
                    delivered.lock().unwrap().insert(Offer::token_id(&payload));
                    owed.push(self.node.receipt(&offer.routing.issuer, &payload, now()));
                }
            }
            owed.retain(|receipt: &Vec<u8>| !self.acknowledge(receipt));
            cursor = received.cursor;
            if over {
                return;
            }
        }
    }
}

/// What the nodes have been promised.
#[derive(Default)]
struct Promised {
    cards: Mutex<HashMap<NodeId, u64>>,
    /// With when and where each was taken, for whom.
    offers: Mutex<HashMap<[u8; 32], String>>,
}

impl Promised {
    /// Announces and sends offers to the others, until told to stop.
    fn keep_busy(&self, caller: &Caller<'_>, others: &[NodeId], stop: &AtomicBool) {
        let (mut round, mut changed) = (0_usize, UnixMillis(0));
        while !stop.load(Ordering::SeqCst) {
            // No node changes its card faster for long; the same one comes again.
            if changed.plus(CARD_EVERY / 5) < now() {
                changed = now();
            }
            let sequence = caller.announce(changed);
            self.cards.lock().unwrap().insert(caller.node.id(), sequence);
            let to = others[round % others.len()];
            let offer = caller.node.offer(&to, now().plus(HOUR), (round % 251) as u8);
            caller.call("POST", "/api/v3/tokens/request-connection", &json("offer", &offer));
            let taken = format!("{} by {} for {to}", now().0, caller.last());
            self.offers.lock().unwrap().insert(Offer::token_id(&offer), taken);
            round += 1;
        }
    }

    fn offers(&self) -> usize {
        self.offers.lock().unwrap().len()
    }

    /// Of the offers that were taken those that did not come.
    fn missing(&self, delivered: &Mutex<HashSet<[u8; 32]>>) -> Vec<String> {
        let (offers, delivered) = (self.offers.lock().unwrap(), delivered.lock().unwrap());
        let missing = offers.iter().filter(|(token, _)| !delivered.contains(*token));
        missing.map(|(token, taken)| format!("{} {taken}", hex::encode(token))).collect()
    }
}

/// Waits until so many more offers were taken: whatever the machine's speed, the fault lies in the middle of them.
fn more_offers(promised: &Promised, more: usize) {
    let before = promised.offers();
    wait_for("offers are taken", || promised.offers() >= before + more);
}

fn disturb(world: &World, promised: &Promised) {
    let [a, b, c] = &world.machines[..] else { panic!() };
    more_offers(promised, 30);
    a.end(Signal::SIGKILL);
    more_offers(promised, 30);
    a.start();
    world.meet();
    // Its way to NATS is gone; nodes still come to it.
    world.hub.ip(&format!("link set back{} down", b.number));
    wait_for("it knows that it is cut off", || b.status()["replicas"]["connected"] == false);
    more_offers(promised, 30);
    let conditions = b.status()["health"]["conditions"].clone();
    let link = conditions.as_array().unwrap().iter().find(|condition| condition["code"] == "replicas.link").cloned();
    assert_eq!(link.unwrap()["ok"], false, "{conditions}");
    world.hub.ip(&format!("link set back{} up", b.number));
    world.meet();
    // Both of its ways: a machine that is off the network altogether.
    for wire in ["front", "back"] {
        world.hub.ip(&format!("link set {wire}{} down", c.number));
    }
    more_offers(promised, 30);
    for wire in ["front", "back"] {
        world.hub.ip(&format!("link set {wire}{} up", c.number));
    }
    world.meet();
    for machine in [a, b, c] {
        machine.end(Signal::SIGTERM);
        more_offers(promised, 10);
        machine.start();
        world.meet();
    }
    more_offers(promised, 30);
}

fn all_that_was_promised_is_there(world: &World, promised: &Promised, delivered: &Mutex<HashSet<[u8; 32]>>) {
    let missing = promised.missing(delivered);
    assert!(missing.is_empty(), "{} of {} offers that were taken never came", missing.len(), promised.offers());
    for (node, sequence) in promised.cards.lock().unwrap().iter() {
        for machine in &world.machines {
            let serving = machine.serving.lock().unwrap();
            let (status, answer) = serving.as_ref().unwrap().get(&format!("/api/v3/nodes/{node}"));
            assert_eq!(status, 200, "{answer}");
            let card = Card::verify(&base64(answer["card"].as_str().unwrap()), now()).unwrap();
            assert!(card.sequence >= *sequence, "{node} {} {sequence}", card.sequence);
        }
    }
}

/// Runs a test in networks of its own, of which the first thread that it gets is a part.
fn apart(test: impl FnOnce(&World) + Send + 'static) {
    if !geteuid().is_root() {
        return;
    }
    let hub = Net::new();
    let inside = File::open(hub.path()).unwrap();
    hub.ip("link set lo up");
    for (wire, side) in [("front", 1), ("back", 2)] {
        hub.ip(&format!("link add {wire} type bridge"));
        hub.ip(&format!("address add 10.99.{side}.254/24 dev {wire}"));
        hub.ip(&format!("link set {wire} up"));
    }
    // Whatever this thread starts is in the middle of them.
    let run = move || {
        setns(&inside, CloneFlags::CLONE_NEWNET).unwrap();
        let cluster = Cluster::shared();
        let broker = Broker::with(&["-a", "10.99.2.254"]);
        let world = World::new(&cluster, &broker, hub);
        world.machines.iter().for_each(Machine::start);
        world.meet();
        test(&world);
    };
    std::thread::spawn(run).join().unwrap();
}

#[test]
fn what_one_replica_took_alone_is_with_the_others_before_it_ends() {
    apart(|world| {
        let b = &world.machines[1];
        let caller = |seed, place| Caller { node: Node::new(seed), world, turn: AtomicUsize::new(place) };
        let (issuer, recipient, reader) = (caller(1, 1), caller(2, 0), caller(2, 1));
        issuer.announce(now());
        recipient.announce(now());
        world.hub.ip("link set back2 down");
        wait_for("it knows that it is cut off", || b.status()["replicas"]["connected"] == false);
        let offer = issuer.node.offer(&recipient.node.id(), now().plus(HOUR), 7);
        std::thread::scope(|scope| {
            let read = scope.spawn(|| {
                wait_for("the offer comes", || {
                    reader.turn.store(1, Ordering::Relaxed);
                    let (status, received) = reader.try_call("GET", "/api/v3/tokens/receive?wait=5", b"").unwrap();
                    assert_eq!(status, 200, "{received}");
                    received["items"].as_array().unwrap().len() == 1
                });
            });
            wait_for("it is taken while its recipient waits there", || {
                issuer.turn.store(1, Ordering::Relaxed);
                let body = json("offer", &offer);
                let (status, answer) = issuer.try_call("POST", "/api/v3/tokens/request-connection", &body).unwrap();
                assert!(status == 200 || answer["code"] == "directory.cut-off", "{answer}");
                status == 200
            });
            read.join().unwrap();
        });
        // No receipt yet: it has to be there when its recipient comes again, whatever has become of the one that took it.
        world.hub.ip("link set back2 up");
        wait_for("it is heard again", || b.hears().len() == 2);
        b.end(Signal::SIGTERM);
        recipient.turn.store(0, Ordering::Relaxed);
        let (status, received) = recipient.try_call("GET", "/api/v3/tokens/receive?wait=0", b"").unwrap();
        assert_eq!((status, received["items"].as_array().unwrap().len()), (200, 1), "{received}");
    });
}

#[test]
fn kill_partition_and_rolling_restart_lose_no_card_and_strand_no_offer() {
    apart(|world| {
        let callers: Vec<Caller<'_>> = (1..=NODES)
            .map(|seed| Caller { node: Node::new(seed), world, turn: AtomicUsize::new(usize::from(seed)) })
            .collect();
        let ids: Vec<NodeId> = callers.iter().map(|caller| caller.node.id()).collect();
        let (promised, delivered) = (Promised::default(), Mutex::default());
        for caller in &callers {
            caller.announce(now());
        }
        let (stop, done) = (AtomicBool::new(false), AtomicBool::new(false));
        let disturbed = std::thread::scope(|scope| {
            let (over_soon, arrived) = (&done, &delivered);
            let read = |caller| scope.spawn(move || Caller::receive(caller, over_soon, arrived));
            let readers: Vec<_> = callers.iter().map(read).collect();
            let writers: Vec<_> = callers
                .iter()
                .map(|caller| {
                    let others: Vec<NodeId> = ids.iter().filter(|id| **id != caller.node.id()).copied().collect();
                    let (promised, stop) = (&promised, &stop);
                    scope.spawn(move || promised.keep_busy(caller, &others, stop))
                })
                .collect();
            let disturbed = scope.spawn(|| disturb(world, &promised)).join();
            stop.store(true, Ordering::SeqCst);
            let wrote = writers.into_iter().all(|writer| writer.join().is_ok());
            done.store(true, Ordering::SeqCst);
            let read = readers.into_iter().all(|reader| reader.join().is_ok());
            assert!(wrote && read, "a node could not go on");
            disturbed
        });
        disturbed.unwrap();
        // Each once more, so that the last are seen too.
        let over = AtomicBool::new(true);
        wait_for("all that was taken comes", || {
            eprintln!("{} {:?}", now().0, promised.missing(&delivered));
            callers.iter().for_each(|caller| caller.receive(&over, &delivered));
            promised.missing(&delivered).is_empty()
        });
        all_that_was_promised_is_there(world, &promised, &delivered);
    });
}
