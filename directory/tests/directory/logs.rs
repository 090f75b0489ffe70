//! What the real program writes to its log: one JSON object a line where it is told so, and at no level who called from where, or whose
//! card, offer or receipt it was.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::Stdio;

use serde_json::Value;

use crate::cluster::wait_for;
use crate::fixture::{HOUR, Node, json};
use crate::process::{Place, Serving, now};

/// An address of this machine that none but these callers have.
const CALLER: &str = "127.83.19.7";

/// Sends these bytes from that address and reads what comes back.
fn from_elsewhere(at: SocketAddr, bytes: &[u8]) -> String {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let connected = runtime.block_on(async {
        let socket = tokio::net::TcpSocket::new_v4()?;
        socket.bind(format!("{CALLER}:0").parse().unwrap())?;
        socket.connect(at).await?.into_std()
    });
    let mut stream: TcpStream = connected.unwrap();
    stream.set_nonblocking(false).unwrap();
    // Some of it is refused before it is read to its end.
    let _ = stream.write_all(bytes);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

/// A signed call from there.
fn call(serving: &Serving, node: &Node, method: &str, path: &str, body: &[u8]) -> String {
    let input = node.input(method, &format!("{}{path}", serving.origin), body, now().seconds());
    let mut head =
        format!("{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n", body.len());
    for (name, value) in node.sign_input(&input) {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    from_elsewhere(serving.socket, &[head.as_bytes(), b"\r\n", body].concat())
}

#[test]
fn each_line_is_an_object_and_no_line_names_a_caller() {
    for level in ["info", "debug"] {
        let place = Place::of(None);
        place.configure(&format!("listen = \"127.0.0.1:0\"\n[log]\nformat = \"json\"\nlevel = \"{level}\"\n[limits]\nrequests_per_second = 1\nrequests_burst = 10\n"));
        let log = place.folder.path().join("log");
        let mut command = place.command(&["serve"]);
        let child = command.stderr(Stdio::from(File::create(&log).unwrap())).spawn().unwrap();
        let lines = || -> Vec<Value> {
            let text = std::fs::read_to_string(&log).unwrap();
            let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
            whole
                .lines()
                .map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("no object: {line}")))
                .collect()
        };
        let address = || lines().iter().find_map(|line| Some(line["fields"]["address"].as_str()?.to_owned()));
        wait_for("it serves", || address().is_some());
        let address = address().unwrap();
        let socket = address.split_once("://").unwrap().1.parse().unwrap();
        let serving = Serving::of(child, &address, socket);

        let (alice, bob) = (Node::new(1), Node::new(2));
        let card = |node: &Node| json("card", &node.sign_card(&node.card(now())));
        let mut answers = Vec::new();
        for node in [&alice, &bob] {
            answers.push(call(&serving, node, "POST", "/api/v3/nodes/register", &card(node)));
        }
        let offer = alice.offer(&bob.id(), now().plus(HOUR), 7);
        answers.push(call(&serving, &alice, "POST", "/api/v3/tokens/request-connection", &json("offer", &offer)));
        answers.push(call(&serving, &bob, "GET", "/api/v3/tokens/receive?wait=1", b""));
        let receipt = bob.receipt(&alice.id(), &offer, now());
        answers.push(call(&serving, &bob, "POST", "/api/v3/tokens/acknowledge", &json("receipt", &receipt)));
        for answer in &answers {
            assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        }
        // What is refused, and what is none.
        call(&serving, &alice, "POST", "/api/v3/nodes/register", &card(&bob));
        // Two cards of one sequence: a warning, which names the node by its last characters alone.
        let mut other = alice.card(now());
        other.sequence += 1000;
        call(&serving, &alice, "POST", "/api/v3/nodes/register", &json("card", &alice.sign_card(&other)));
        other.fields.name = "another".into();
        call(&serving, &alice, "POST", "/api/v3/nodes/register", &json("card", &alice.sign_card(&other)));
        for bytes in [&b"\x16\x03\x01\x02\x00"[..], b"GET / HTTP/9.9\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"] {
            from_elsewhere(serving.socket, bytes);
        }
        let get = |path: &str| {
            from_elsewhere(
                serving.socket,
                format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").as_bytes(),
            )
        };
        get(&format!("/api/v3/nodes/{}", bob.id()));
        // More of them than lines may be written about a node: what is left out is counted.
        let carol = Node::new(3);
        let mut wrong = carol.card(now());
        for name in ["one", "two", "three", "four", "five", "six"] {
            wrong.fields.name = name.into();
            call(&serving, &carol, "POST", "/api/v3/nodes/register", &json("card", &carol.sign_card(&wrong)));
        }
        let left_out = || lines().into_iter().find(|line| line.to_string().contains("were left out"));
        wait_for("it says what it left out", || left_out().is_some());
        let fields = left_out().unwrap()["fields"].clone();
        assert_eq!(
            (&fields["lines"], &fields["last"]),
            (&1.into(), &carol.id().short().to_string().into()),
            "{fields}"
        );
        // More than one node may.
        let again =
            |_| call(&serving, &alice, "POST", "/api/v3/nodes/register", &card(&alice)).starts_with("HTTP/1.1 429");
        assert!((0..1000).any(again));
        place.text(&["nodes", "ban", &format!("{CALLER}/32")]);
        assert!(get("/api/v3/health").contains("403"));
        assert_eq!(serving.end(), Some(0));

        let text = std::fs::read_to_string(&log).unwrap();
        let mut named = text.lines().filter(|line| line.contains(CALLER));
        // The operator's own word is written down as the operator said it, and as such.
        let word = named.next().unwrap();
        assert!(word.contains("changed by the operator") && word.contains("\"uid\""), "{word}");
        assert_eq!(named.next(), None);
        assert!(text.contains("two cards of one sequence"), "{text}");
        for node in [&alice, &bob, &carol] {
            assert!(!text.contains(&node.id().to_string()), "{text}");
        }
        for line in lines() {
            assert!(line["timestamp"].is_string() && line["level"].is_string() && line["fields"].is_object(), "{line}");
        }
    }
}
