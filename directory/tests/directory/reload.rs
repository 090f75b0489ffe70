//! SIGHUP at the real program in its cage: what is read again, what is refused, and what health says of it.

use std::io::{BufRead as _, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde_json::Value;

use crate::cluster::children;
use crate::cluster::wait_for;
use crate::fixture::Node;
use crate::process::{Place, Serving, exchange, places};

/// Lines of its log that are kept until somebody looks.
const LINES: usize = 1024;
const RENEWED: [&[u8]; 2] = [include_bytes!("tls/renewed.pem"), include_bytes!("tls/renewed.key")];
const FIRST: [&[u8]; 2] = [include_bytes!("tls/localhost.pem"), include_bytes!("tls/localhost.key")];

/// A directory, and what it says.
struct Heard {
    serving: Serving,
    said: Receiver<String>,
}

impl Heard {
    /// Starts one that can be reached at this address.
    fn of(place: &Place, socket: std::net::SocketAddr) -> Self {
        let mut child = place.command(&["serve"]).stderr(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let (told, said) = sync_channel(LINES);
        // What nobody waits for is dropped, so that the directory never waits for us.
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(|line| drop(told.try_send(line))));
        let address = line(&said, &["address="]).split_once("address=").unwrap().1.to_owned();
        Self { serving: Serving::of(child, &address, socket), said }
    }

    fn hang_up(&self) {
        // To all of them, as a service manager may: who reads does not end by it.
        for process in children(self.serving.process()).into_iter().chain([self.serving.process()]) {
            kill(process, Signal::SIGHUP).unwrap();
        }
    }

    /// Sends SIGHUP and waits for a line with all of these.
    fn says(&self, words: &[&str]) -> String {
        self.hang_up();
        line(&self.said, words)
    }

    fn health(place: &Place) -> Value {
        place.json_of(&["status"])["health"].clone()
    }
}

fn line(said: &Receiver<String>, words: &[&str]) -> String {
    let mut before = Vec::new();
    loop {
        let line = said.recv_timeout(Duration::from_secs(60));
        let line = line.unwrap_or_else(|_| panic!("it did not say {words:?}: {before:?}"));
        if words.iter().all(|word| line.contains(word)) {
            return line;
        }
        before.push(line);
    }
}

fn condition(health: &Value, code: &str) -> Value {
    let all = health["conditions"].as_array().unwrap().iter();
    all.into_iter().find(|one| one["code"] == code).cloned().unwrap_or_else(|| panic!("{code}: {health}"))
}

/// A connection over TLS that trusts this authority alone.
fn connect(serving: &Serving, authority: &[u8]) -> rustls::StreamOwned<rustls::ClientConnection, TcpStream> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = builder.with_root_certificates(roots).with_no_client_auth();
    let client = rustls::ClientConnection::new(Arc::new(config), "localhost".try_into().unwrap()).unwrap();
    rustls::StreamOwned::new(client, TcpStream::connect(serving.socket).unwrap())
}

/// One answer on a connection that stays open.
fn answers(stream: &mut (impl Read + Write)) -> String {
    stream.write_all(b"GET /api/v3/health HTTP/1.1\r\nhost: x\r\n\r\n").and_then(|()| stream.flush()).unwrap();
    let mut answer = Vec::new();
    // The last byte of the object, and no more, so that the next answer begins at its own first.
    while !(answer.ends_with(b"}") && is_whole(&answer)) {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        answer.extend(byte);
    }
    String::from_utf8(answer).unwrap()
}

fn is_whole(answer: &[u8]) -> bool {
    let text = String::from_utf8_lossy(answer);
    text.split_once("\r\n\r\n").is_some_and(|(_, body)| serde_json::from_str::<Value>(body).is_ok())
}

/// Whether new connections are shown a certificate of this authority.
fn shows(serving: &Serving, authority: &[u8]) -> bool {
    let mut stream = connect(serving, authority);
    stream
        .write_all(b"GET /api/v3/health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        .and_then(|()| stream.flush())
        .is_ok()
}

#[test]
fn a_renewed_certificate_is_taken_at_sighup_and_a_bad_one_is_refused_by_name() {
    const OLD: &[u8] = include_bytes!("tls/ca.pem");
    const NEW: &[u8] = include_bytes!("tls/renewed-ca.pem");
    for place in places() {
        let files: [PathBuf; 2] = ["tls.pem", "tls.key"].map(|name| place.folder.path().join(name));
        // As renewals do it: another file takes the name.
        let lay = |contents: [&[u8]; 2]| {
            for (file, content) in files.iter().zip(contents) {
                let beside = file.with_extension("new");
                std::fs::write(&beside, content).unwrap();
                std::fs::rename(&beside, file).unwrap();
            }
        };
        lay(FIRST);
        // An address that no other test has: what is free there stays free.
        let free = TcpListener::bind("127.73.0.1:0").unwrap().local_addr().unwrap();
        let text = format!(
            "listen = \"{free}\"\norigin = \"https://localhost:{}\"\n[tls]\ncertificate = {:?}\nkey = {:?}\n",
            free.port(),
            files[0],
            files[1]
        );
        place.configure(&text);
        let heard = Heard::of(&place, free);
        assert!(shows(&heard.serving, OLD) && !shows(&heard.serving, NEW));
        let since = condition(&Heard::health(&place), "settings.taken")["since"].clone();

        for (contents, words) in [
            ([RENEWED[0], b"no key"], "tls.key: cannot be read as a PEM private key (tls.key)"),
            ([RENEWED[0], FIRST[1]], "tls.key: is not the key of the certificate (tls.key)"),
            ([b"", RENEWED[1]], "tls.pem: holds no certificate (tls.certificate)"),
        ] {
            lay(contents);
            heard.says(&["ERROR", "SIGHUP: ", words, "; everything stays as it was"]);
            assert!(shows(&heard.serving, OLD), "{words}");
        }
        let health = Heard::health(&place);
        let found = condition(&health, "settings.taken");
        assert_eq!(
            (&found["ok"], &found["severity"], &health["status"]),
            (&false.into(), &"warning".into(), &"degraded".into())
        );
        assert!(found["since"].as_u64() > since.as_u64(), "{found} {since}");
        let plain = b"GET /api/v3/health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n";
        assert_eq!(exchange(connect(&heard.serving, OLD), plain, b"").0, 200, "it serves as before");

        // A connection that stands and has been answered.
        let mut before = connect(&heard.serving, OLD);
        assert!(answers(&mut before).starts_with("HTTP/1.1 200"));
        lay(RENEWED);
        place.configure(&format!("{text}[lease]\nseconds = 1800\n"));
        heard.says(&["WARN", "SIGHUP: ", "restarted", "lease.seconds"]);
        assert!(answers(&mut before).starts_with("HTTP/1.1 200"), "it goes on");
        wait_for("the new certificate", || shows(&heard.serving, NEW));
        assert!(!shows(&heard.serving, OLD));
        wait_for("the condition ends", || condition(&Heard::health(&place), "settings.taken")["ok"] == true);
        let (code, said) = place.outcome(&["doctor"]);
        assert!(code == 3 && said.contains("changed since the start: lease.seconds; restart"), "{said}");
        assert_eq!(heard.serving.end(), Some(0));
    }
}

#[test]
fn level_and_mirrors_are_read_again_and_a_wrong_file_changes_nothing() {
    for place in places() {
        let free = TcpListener::bind("127.73.0.2:0").unwrap().local_addr().unwrap();
        let (mirror, other) = (Node::new(1), Node::new(2).id().to_string());
        let configure = |rest: &str| place.configure(&format!("listen = \"{free}\"\n{rest}"));
        configure("");
        let heard = Heard::of(&place, free);
        let follows = || heard.serving.call(&mirror, "GET", "/api/v3/mirror/present?from=0", b"").0;
        let in_force = || place.json_of(&["doctor"])["findings"].as_array().unwrap()[1]["ok"] == true;
        assert_eq!(follows(), 403);

        configure("lisen = \"127.0.0.1:1\"\n");
        heard.says(&["ERROR", "SIGHUP: ", "directory.toml:2:1: unknown key `lisen`; did you mean `listen`?"]);
        assert_eq!(follows(), 403);
        configure(&format!("[log]\nlevel = \"error\"\n[mirror]\nallow = [\"{}\"]\n", mirror.id()));
        assert!(!in_force());
        heard.hang_up();
        wait_for("the settings hold", in_force);
        assert_eq!(follows(), 200);
        place.text(&["nodes", "ban", &other]);
        configure("[log]\nlevel = \"info\"\n");
        heard.hang_up();
        wait_for("the settings hold", in_force);
        assert_eq!(follows(), 403);
        place.text(&["nodes", "unban", &other]);
        // At level error nothing was said of the ban.
        let changed = line(&heard.said, &["changed by the operator"]);
        assert!(changed.contains("unban"), "{changed}");
        // Whoever reads for it ends with it, and is missed at once where it ends before.
        let reader = children(heard.serving.process());
        assert_eq!(reader.len(), 1);
        kill(reader[0], Signal::SIGKILL).unwrap();
        line(&heard.said, &["ERROR", "has ended, or took too long: restart"]);
        assert_eq!(condition(&Heard::health(&place), "settings.taken")["ok"], false);
        assert_eq!(heard.serving.end(), Some(0));
        wait_for("its end closes the log", || {
            heard.said.try_recv() == Err(std::sync::mpsc::TryRecvError::Disconnected)
        });
    }
}
