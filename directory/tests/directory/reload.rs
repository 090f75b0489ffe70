//! SIGHUP at the real program in its cage: what is read again, what is refused, and what health says of it.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
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

/// A directory that speaks TLS with these files, which are laid beside its home.
fn speaks_tls(place: &Place, address: std::net::SocketAddr, contents: [&[u8]; 2]) -> [PathBuf; 2] {
    let files = ["tls.pem", "tls.key"].map(|name| place.folder.path().join(name));
    files.iter().zip(contents).for_each(|(file, content)| std::fs::write(file, content).unwrap());
    place.configure(&format!(
        "listen = \"{address}\"\norigin = \"https://localhost:{}\"\n[tls]\ncertificate = {:?}\nkey = {:?}\n",
        address.port(),
        files[0],
        files[1]
    ));
    files
}

/// Which of these are in the memory that a process can write to. Only root may look.
fn held_by(process: Pid, patterns: &[&[u8]]) -> Vec<bool> {
    let maps = std::fs::read_to_string(format!("/proc/{process}/maps")).unwrap();
    let memory = File::open(format!("/proc/{process}/mem")).unwrap();
    let mut found = vec![false; patterns.len()];
    for map in maps.lines().filter(|map| map.contains(" rw")) {
        let (start, end) = map.split(' ').next().unwrap().split_once('-').unwrap();
        let [start, end] = [start, end].map(|number| u64::from_str_radix(number, 16).unwrap());
        let mut content = vec![0; usize::try_from(end - start).unwrap()];
        // What the kernel does not give (a guard) stays empty.
        for (number, page) in (0_u64..).zip(content.chunks_mut(4096)) {
            let _ = memory.read_exact_at(page, start + number * 4096);
        }
        for (found, pattern) in found.iter_mut().zip(patterns) {
            *found |= content.windows(pattern.len()).any(|piece| piece == *pattern);
        }
    }
    found
}

#[test]
fn a_key_is_wiped_where_it_was_on_its_way_and_nobody_looks_into_who_reads_it() {
    for place in places() {
        let free = TcpListener::bind("127.73.0.3:0").unwrap().local_addr().unwrap();
        let [certificate, key] = speaks_tls(&place, free, FIRST);
        let heard = Heard::of(&place, free);
        let reader = children(heard.serving.process())[0];
        // The kernel closes /proc/PID of a process that is not dumpable to its own user: the files are root's.
        let owner = std::fs::metadata(format!("/proc/{reader}/mem")).unwrap().uid();
        assert_ne!(Some(owner), place.user.or_else(|| Some(geteuid().as_raw()).filter(|user| *user != 0)));
        std::fs::write(certificate, RENEWED[0]).unwrap();
        std::fs::write(key, RENEWED[1]).unwrap();
        heard.says(&["SIGHUP: read again", "certificate=true"]);
        wait_for("the new certificate", || shows(&heard.serving, include_bytes!("tls/renewed-ca.pem")));
        if !geteuid().is_root() {
            continue;
        }
        for [certificate, key] in [FIRST, RENEWED] {
            let key_der = PrivateKeyDer::from_pem_slice(key).unwrap();
            // Where the key's number begins, with what stands before it: the number alone is what signs.
            let der = key_der.secret_der();
            let begin = der.windows(2).position(|bytes| bytes == [4, 32]).unwrap();
            let text = key.split(|byte| *byte == b'\n').nth(1).unwrap();
            let chain = CertificateDer::from_pem_slice(certificate).unwrap();
            let home = place.home();
            let patterns = [text, &der[begin..begin + 34], home.as_os_str().as_encoded_bytes(), &chain[..]];
            let [in_main, in_reader] = [heard.serving.process(), reader].map(|process| held_by(process, &patterns));
            assert_eq!(in_main[..2], [false, false], "as text, as DER");
            assert_eq!(in_reader[..2], [false, false], "as text, as DER");
            assert!(in_main[2] && in_reader[2], "what is there is found");
            assert!(in_main[3] || certificate != RENEWED[0], "and so is the chain that is shown");
        }
    }
}

/// A part of what the reader says, behind its length.
fn part(reader: &mut UnixStream) -> Vec<u8> {
    let mut length = [0; 4];
    reader.read_exact(&mut length).unwrap();
    let mut part = vec![0; u32::from_be_bytes(length) as usize];
    reader.read_exact(&mut part).unwrap();
    part
}

#[test]
fn who_reads_says_when_it_can_be_asked_and_reads_a_key_only_for_who_speaks_tls() {
    for place in places() {
        speaks_tls(&place, "127.0.0.1:1".parse().unwrap(), FIRST);
        for (arguments, key) in [(&["read-again", "--tls"][..], FIRST[1]), (&["read-again"], b"")] {
            let (mut near, far) = UnixStream::pair().unwrap();
            let mut child = place.command(arguments).stdin(Stdio::from(OwnedFd::from(far))).spawn().unwrap();
            let mut word = [0];
            near.read_exact(&mut word).unwrap();
            assert_eq!(word, *b"!");
            // From here on this does not end it, however early it comes.
            kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGHUP).unwrap();
            for _ in 0..2 {
                near.write_all(b"r").unwrap();
                let answer: Value = serde_json::from_slice(&part(&mut near)).unwrap();
                let found = &answer["Found"];
                assert_eq!((&found["certificate"], found["tls"].is_null()), (&true.into(), key.is_empty()), "{answer}");
                assert!(!answer.to_string().contains("PRIVATE"));
                assert_eq!(part(&mut near), key);
            }
            drop(near);
            assert_eq!(child.wait().unwrap().code(), Some(0), "it ends with who asks");
        }
        // Where the start failed meanwhile, it has nothing to add.
        let (near, far) = UnixStream::pair().unwrap();
        drop(near);
        let ended = place.command(&["read-again"]).stdin(Stdio::from(OwnedFd::from(far))).output().unwrap();
        assert_eq!((ended.status.code(), ended.stderr), (Some(0), Vec::new()));
    }
}
