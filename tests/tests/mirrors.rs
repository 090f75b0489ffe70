//! Mirrors between real processes: one that serves while its directory is away, one that lies, look-ups that do not say whom a node seeks,
//! and all of it over HTTPS.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use openred_tests::harness::{Directory, Node, free_port, wait_for};
use openred_tests::liar::{Liar, Lie};
use openred_tests::tap::Tap;
use openred_tests::world::{World, link_with, registered, status};

/// A mirror of the world's directory, started, behind a proxy that keeps what it is asked.
struct Mirror {
    directory: Directory,
    tap: Tap,
}

impl Mirror {
    fn start(world: &mut World) -> Self {
        let listen = free_port().unwrap();
        let tap = Tap::start(listen).unwrap();
        let origin = format!("http://{}", tap.address());
        let mut directory = Directory::init(&world.path().join("mirror"), listen, &origin).unwrap();
        add(&world.directory, &format!("[mirror]\nallow = [\"{}\"]\n", directory.id));
        add(&directory, &format!("[mirror]\nof = \"{}\"\n", world.directory_setting()));
        world.directory.up().unwrap();
        directory.up().unwrap();
        Self { directory, tap }
    }

    /// Its setting for nodes: the directory's id at its own address.
    fn setting(&self, world: &World) -> String {
        format!("{}@http://{}", world.directory.id, self.tap.address())
    }
}

/// Waits until a mirror has so many entries at least, and nothing is missing.
fn entries(mirror: &Directory, entries: u64) {
    wait_for("the mirror's entries", || {
        let status = mirror.cli(&["status"])?.json()?;
        let mirror = &status["health"]["mirror"];
        ensure!(
            mirror["entries"].as_u64() >= Some(entries) && mirror["entries"] == mirror["upstream_entries"],
            "{status}"
        );
        Ok(Some(()))
    })
    .unwrap();
}

/// A certificate for `localhost`, its key, and the authority that made it.
const TLS: [(&str, &str); 3] = [
    ("tls.pem", include_str!("../../directory/tests/directory/tls/localhost.pem")),
    ("tls.key", include_str!("../../directory/tests/directory/tls/localhost.key")),
    ("ca.pem", include_str!("../../directory/tests/directory/tls/ca.pem")),
];

/// A directory that speaks TLS alone, not started yet; the proxy that it is reached through, and its URL.
fn secure(folder: &Path, more: &str) -> (Directory, Tap, String) {
    let listen = free_port().unwrap();
    let tap = Tap::start(listen).unwrap();
    let origin = format!("https://localhost:{}", tap.address().port());
    let directory = Directory::init(folder, listen, &origin).unwrap();
    for (name, text) in TLS {
        fs::write(folder.join(name), text).unwrap();
    }
    let file = |name: &str| folder.join(name).display().to_string();
    let text = format!(
        "listen = \"{listen}\"\norigin = \"{origin}\"\n[tls]\ncertificate = {:?}\nkey = {:?}\n{more}",
        file("tls.pem"),
        file("tls.key")
    );
    fs::write(folder.join("directory.toml"), text).unwrap();
    (directory, tap, origin)
}

fn add(directory: &Directory, text: &str) {
    let file = directory.home.join("directory.toml");
    let before = fs::read_to_string(&file).unwrap();
    fs::write(&file, before + text).unwrap();
}

/// Has a node use these directories, and more settings.
fn set(node: &Node, directories: &[String], more: &str) {
    let config = node.home.join("openred.toml");
    let text = fs::read_to_string(&config).unwrap();
    let named = text.lines().map(|line| match line.split_once('=') {
        Some((key, _)) if key.trim() == "directories" => format!("directories = {directories:?}\n"),
        _ => format!("{line}\n"),
    });
    fs::write(&config, named.collect::<String>() + more).unwrap();
}

fn condition(node: &Node, code: &str) -> Result<String> {
    let status = status(node)?;
    let conditions = status["node"]["conditions"].as_array().context("conditions")?;
    let found = conditions.iter().find(|condition| condition["code"] == code);
    Ok(found.with_context(|| format!("no {code}: {status}"))?["detail"].as_str().unwrap_or_default().to_owned())
}

#[test]
fn a_mirror_serves_while_its_directory_is_away_and_is_not_told_whom_a_node_seeks() {
    let mut world = World::without_directory().unwrap();
    let mirror = Mirror::start(&mut world);
    let mut bob = world.init("bob", "[links]\nincoming = \"open\"\n").unwrap();
    bob.up().unwrap();
    registered(&bob).unwrap();
    let extra = format!("[directory]\nmirrors = [\"{}\"]\nlook_ups = \"prefix\"\n", mirror.setting(&world));
    let mut alice = world.init("alice", &extra).unwrap();
    alice.up().unwrap();
    registered(&alice).unwrap();
    entries(&mirror.directory, 2);
    world.directory.down().unwrap();
    // The card comes from the mirror; the offer waits for the directory.
    alice.cli(&["link", "request", &bob.id]).unwrap().ok().unwrap();
    assert_eq!(link_with(&alice, &bob.id).unwrap()["state"], "offered");
    let asked = String::from_utf8_lossy(&mirror.tap.received().unwrap()).into_owned();
    assert!(asked.contains("GET /api/v3/nodes/prefix/"), "{asked}");
    let told = [&bob.id, "/log/inclusion"].into_iter().find(|told| asked.contains(told));
    assert_eq!(told, None, "nobody was told whom alice seeks: {asked}");
    world.directory.up().unwrap();
    wait_for("the link", || {
        alice.cli(&["peers", "ping", &bob.id, "--count", "1"])?.ok()?;
        Ok(Some(()))
    })
    .unwrap();
    assert!(condition(&alice, "directory.dishonest").is_err(), "a mirror that is honest is blamed for nothing");
}

#[test]
fn a_mirror_in_the_place_of_a_directory_is_named_as_what_it_is() {
    let mut world = World::without_directory().unwrap();
    let mirror = Mirror::start(&mut world);
    let mut alice = world.init("alice", "").unwrap();
    set(&alice, &[world.directory_setting(), mirror.setting(&world)], "");
    alice.up_without_answers().unwrap();
    registered(&alice).unwrap();
    wait_for("the mirror's refusal", || {
        let status = status(&alice)?;
        let second = &status["node"]["directories"][1];
        ensure!(second["state"] == "refused", "{second}");
        ensure!(second["detail"].as_str().is_some_and(|detail| detail.contains("directory.mirrors")), "{second}");
        Ok(Some(()))
    })
    .unwrap();
    assert!(condition(&alice, "directory.dishonest").is_err());
}

#[test]
fn a_mirror_that_lies_is_named_and_the_directory_is_asked() {
    for (lie, name) in
        [(Lie::SwapPrekey, "swapped-card"), (Lie::ForeignHead, "bad-head"), (Lie::ForgeInclusion, "forged-inclusion")]
    {
        let world = World::without_directory().unwrap();
        // One key at two addresses: what the second one shows could be a mirror's.
        let (honest, liar) = (Liar::start(7, 3).unwrap(), Liar::start(7, 3).unwrap());
        let mut bob = world.init("bob", "[links]\nincoming = \"open\"\n").unwrap();
        set(&bob, &[honest.setting(), liar.setting()], "");
        bob.up_without_answers().unwrap();
        registered(&bob).unwrap();
        wait_for("bob at both", || {
            let status = status(&bob)?;
            ensure!(status["node"]["directories"][1]["state"] == "registered", "{status}");
            Ok(Some(()))
        })
        .unwrap();
        liar.lie(lie);
        let mut alice = world.init("alice", "").unwrap();
        set(&alice, &[honest.setting()], &format!("[directory]\nmirrors = [{:?}]\n", liar.setting()));
        alice.up_without_answers().unwrap();
        registered(&alice).unwrap();
        alice.cli(&["link", "request", &bob.id]).unwrap().ok().unwrap();
        wait_for(name, || {
            let detail = condition(&alice, "directory.dishonest")?;
            ensure!(detail.contains(&format!("{}, a mirror: {name}", liar.setting())), "{detail}");
            Ok(Some(()))
        })
        .unwrap();
    }
}

/// Neither reads nor has it read a word that is not sealed.
fn speaks_tls_alone(tap: &Tap) {
    let sent = tap.received().unwrap();
    assert!(sent.starts_with(&[0x16, 3]), "it begins with a handshake of TLS");
    assert!(!sent.windows(4).any(|window| window == b"/api"), "something was said in the clear");
}

#[test]
fn directory_and_mirror_are_reached_over_https_and_not_under_another_name_or_authority() {
    let world = World::without_directory().unwrap();
    let place = |name: &str| world.path().join(name);
    let (mut directory, at_directory, url) = secure(&place("secure"), "");
    let (mut mirror, at_mirror, mirror_url) = secure(&place("mirror"), "");
    let authority = place("secure").join("ca.pem").display().to_string();
    add(&directory, &format!("[mirror]\nallow = [\"{}\"]\n", mirror.id));
    add(&mirror, &format!("[mirror]\nof = \"{}@{url}\"\ncertificates = {authority:?}\n", directory.id));
    directory.up().unwrap();
    mirror.up().unwrap();
    let node = |name: &str, more: &str, mirror: &str| {
        let mut node = world.init(name, "").unwrap();
        let named = format!("{more}mirrors = [\"{}@{mirror}\"]\n", directory.id);
        set(
            &node,
            &[format!("{}@{url}", directory.id)],
            &format!("[directory]\n{named}[links]\nincoming = \"open\"\n"),
        );
        node.up_without_answers().unwrap();
        node
    };
    let trusts = format!("ca_file = {authority:?}\n");
    let bob = node("bob", &trusts, &mirror_url);
    let alice = node("alice", &trusts, &mirror_url);
    // The same mirror, by a name that its certificate does not say.
    let carol = node("carol", &trusts, &mirror_url.replace("localhost", "127.0.0.1"));
    // The public web's authorities vouch for neither.
    let dave = node("dave", "", &mirror_url);
    for node in [&bob, &alice, &carol] {
        registered(node).unwrap();
    }
    wait_for("dave's word of it", || {
        let status = status(&dave)?;
        ensure!(status["node"]["directories"][0]["state"] == "unreachable", "{status}");
        Ok(Some(()))
    })
    .unwrap();
    entries(&mirror, 3);
    directory.down().unwrap();
    let asks = |node: &Node| {
        node.cli(&["link", "request", &bob.id]).unwrap().ok().unwrap();
        link_with(node, &bob.id).unwrap()["state"].as_str().unwrap().to_owned()
    };
    assert_eq!(asks(&alice), "offered", "the card came from the mirror");
    assert_eq!((asks(&carol), asks(&dave)), ("queued".to_owned(), "queued".to_owned()), "nobody was believed");
    directory.up().unwrap();
    wait_for("the link", || {
        alice.cli(&["peers", "ping", &bob.id, "--count", "1"])?.ok()?;
        Ok(Some(()))
    })
    .unwrap();
    assert!(condition(&alice, "directory.dishonest").is_err(), "nobody is blamed");
    speaks_tls_alone(&at_directory);
    speaks_tls_alone(&at_mirror);
}
