//! The story, step by step: start, link, handshake, messages, a file, an interrupted file, what each party could see.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{SigSet, Signal};
use openred_tests::harness::{Directory, Node, free_port, is_root, signal_pid, wait_for};
use openred_tests::tap::Tap;
use serde_json::Value;

use super::privacy::{self, Marks};
use super::report::{Report, say};

/// Messages each way.
const MESSAGES: usize = 100;
/// Size of each file.
const FILE_BYTES: u64 = 256 << 20;

/// Everyone on stage.
struct Stage {
    folder: PathBuf,
    tap: Tap,
    directory: Directory,
    alice: Node,
    bob: Node,
    marks: Marks,
}

/// Runs the whole story with state in a fresh folder below `out`.
pub(crate) fn run(out: &Path, keep: bool) -> Result<Report> {
    // Before any thread: with --keep the end is asked for by a signal, which must not end the process past its clean-up.
    let end = if keep { Some(block_end_signals()?) } else { None };
    let mut report = Report::default();
    let mut stage = set(out, &mut report)?;
    link(&mut stage, &mut report)?;
    handshake(&stage, &mut report)?;
    messages(&stage, &mut report)?;
    file(&stage, &mut report)?;
    interrupted_file(&stage, &mut report)?;
    cage(&stage, &mut report)?;
    say("\n  What each party could see");
    let found = privacy::search(&stage.marks, &stage.tap, &stage.directory, &stage.bob, &stage.alice)?;
    report.directory_saw_plaintext = found.directory_saw;
    report.canaries_found_in_control = found.control_found;
    report.control_not_searched = found.not_searched;
    report.control_found_at_directory = found.found_at_directory;
    report.searched_bytes = found.searched;
    report.print();
    report.write(out)?;
    say(&format!("\n  report: {}", out.join("report.json").display()));
    if let Some(end) = end {
        stay(&stage, end)?;
    }
    stage.alice.down()?;
    stage.bob.down()?;
    stage.directory.down()?;
    fs::remove_dir_all(&stage.folder).with_context(|| format!("removing {}", stage.folder.display()))?;
    Ok(report)
}

/// Directory behind a recording proxy, two nodes, all up and registered.
fn set(out: &Path, report: &mut Report) -> Result<Stage> {
    fs::create_dir_all(out)?;
    let folder = out.canonicalize()?.join(format!("run-{}", std::process::id()));
    fs::create_dir(&folder).with_context(|| format!("creating {}", folder.display()))?;
    let start = Instant::now();
    let listen = free_port()?;
    let tap = Tap::start(listen)?;
    let origin = format!("http://{}", tap.address());
    let mut directory = Directory::init(&folder.join("directory"), listen, &origin)?;
    directory.up()?;
    report.row("directory up", start.elapsed().as_secs_f64(), &short(&directory.id));
    let at = format!("{}@{origin}", directory.id);
    let start = Instant::now();
    let mut alice = Node::init(&folder, "alice", &at, 61_000, "")?;
    let mut bob = Node::init(&folder, "bob", &at, 61_010, "")?;
    report.row("two identities made and sealed", start.elapsed().as_secs_f64(), "2 keystores (age)");
    for (node, name) in [(&mut alice, "alice"), (&mut bob, "bob")] {
        let start = Instant::now();
        node.up()?;
        report.row(&format!("{name} up, every layer confirmed"), start.elapsed().as_secs_f64(), &short(&node.id));
    }
    for node in [&alice, &bob] {
        wait_for("registration with the directory", || {
            let status = status(node)?;
            let first = &status["node"]["directories"][0];
            ensure!(first["state"] == "registered", "the node says: {first}");
            Ok(Some(()))
        })?;
    }
    Ok(Stage { folder, tap, directory, alice, bob, marks: Marks::draw() })
}

/// Alice offers, bob's operator accepts, both show the link.
fn link(stage: &mut Stage, report: &mut Report) -> Result<()> {
    let start = Instant::now();
    // Without waiting: bob accepts only after this has returned.
    let request = ["link", "request", &stage.bob.id, "--wait", "0"];
    stage.alice.cli(&request)?.ok().context("alice asks for a link")?;
    let alice = stage.alice.id.clone();
    // Accepting before the offer is there would be a yes in advance: not what is to be shown.
    wait_for("alice's offer at bob", || {
        let waiting = find_link(&stage.bob, &alice)?;
        ensure!(waiting["state"] == "waiting", "bob: {}", waiting["state"]);
        Ok(Some(()))
    })?;
    stage.bob.cli(&["link", "accept", &alice])?.ok().context("bob accepts")?;
    let link = wait_for("the active link on both sides", || {
        let (one, other) = (find_link(&stage.alice, &stage.bob.id)?, find_link(&stage.bob, &alice)?);
        let active = one["state"] == "active" && other["state"] == "active";
        ensure!(active, "alice: {}, bob: {}", one["state"], other["state"]);
        Ok((one["link_id"] == other["link_id"]).then_some(one))
    })?;
    let method = link["method"].as_str().unwrap_or_default().to_owned();
    report.linked = true;
    report.row("linked by a sealed offer", start.elapsed().as_secs_f64(), &format!("method {method}"));
    Ok(())
}

/// Sessions made anew, timed by alice's node; then both sides' word for the mutual link and the tokens.
fn handshake(stage: &Stage, report: &mut Report) -> Result<()> {
    let start = Instant::now();
    let ping = ["peers", "ping", &stage.bob.id, "--count", "20", "--fresh"];
    let answer = stage.alice.cli(&ping)?.json().context("alice pings bob over fresh sessions")?;
    report.handshake_ms = answer["median_us"].as_f64().context("ping reports a median")? / 1000.0;
    let how_much = format!("20 × connect + handshake + reply, median {:.1} ms", report.handshake_ms);
    report.row("handshakes (REQUEST, VERIFY, FINALIZE)", start.elapsed().as_secs_f64(), &how_much);
    let (alice, bob) = wait_for("both sides' word for the link", || {
        let (one, other) = (find_link(&stage.alice, &stage.bob.id)?, find_link(&stage.bob, &stage.alice.id)?);
        ensure!(one["match"] == "matched" && other["match"] == "matched", "{one} {other}");
        ensure!(one["mutual_link"] == other["mutual_link"], "mutual links differ: {one} {other}");
        Ok(Some((one, other)))
    })?;
    let mutual = alice["mutual_link"].as_str().unwrap_or_default();
    report.mutual_link_equal = mutual.len() == 32 && alice["mutual_link"] == bob["mutual_link"];
    report.tokens_matched = alice["match"] == "matched" && bob["match"] == "matched";
    say(&format!("    mutual link on both sides: {mutual} ({})", alice["mutual_words"].as_str().unwrap_or_default()));
    Ok(())
}

/// A hundred messages each way, each with a text of its own, each found once in the right inbox.
fn messages(stage: &Stage, report: &mut Report) -> Result<()> {
    let start = Instant::now();
    let mut sent = [Vec::new(), Vec::new()];
    for number in 0..MESSAGES {
        for ((from, to, name), texts) in
            [(&stage.alice, &stage.bob, "alice"), (&stage.bob, &stage.alice, "bob")].into_iter().zip(&mut sent)
        {
            let text = format!("message {number} of {name} {}", stage.marks.message.text());
            from.cli(&["send", &to.id, &text])?.ok()?;
            texts.push(text);
            report.messages_sent += 1;
        }
    }
    sent.iter_mut().for_each(|texts| texts.sort());
    let [of_alice, of_bob] = sent;
    report.messages_received = wait_for("all messages in both inboxes", || {
        let (at_bob, at_alice) = (texts(&stage.bob)?, texts(&stage.alice)?);
        let count = at_bob.len() + at_alice.len();
        ensure!(at_bob == of_alice && at_alice == of_bob, "{count} of {}, or not the same", 2 * MESSAGES);
        Ok(Some(count as u64))
    })?;
    report.row("100 messages each way", start.elapsed().as_secs_f64(), "200 sent; each found once, word for word");
    Ok(())
}

/// A file from alice's disk to bob's, verified by BLAKE3 on arrival and byte for byte here.
fn file(stage: &Stage, report: &mut Report) -> Result<()> {
    let (path, id) = shared_file(stage, "first")?;
    let out = stage.folder.join("fetched-first");
    let start = Instant::now();
    let answer = stage.bob.cli(&["fetch", &stage.alice.id, &id, "--out", &out.to_string_lossy()])?.json()?;
    let seconds = start.elapsed().as_secs_f64();
    report.file_bytes = fs::metadata(&out)?.len();
    report.file_verified = answer["verified"] == true && same_bytes(&path, &out)?;
    let rate = FILE_BYTES as f64 / seconds / f64::from(1 << 20);
    report.row("256 MiB file, disk to disk", seconds, &format!("{rate:.0} MiB/s, verified (BLAKE3)"));
    Ok(())
}

/// A second file; bob's `noded` is killed in the middle, comes back, and fetches the rest.
fn interrupted_file(stage: &Stage, report: &mut Report) -> Result<()> {
    let (path, id) = shared_file(stage, "second")?;
    let out = stage.folder.join("fetched-second");
    let start = Instant::now();
    let arguments = ["fetch", &stage.alice.id, &id, "--out", &out.to_string_lossy()];
    let (mut first, lines) = stage.bob.stream(&arguments)?;
    let victim = stage.bob.child_pid("noded")?;
    let mut before = 0;
    for line in lines {
        let event: Value = serde_json::from_str(&line).unwrap_or_default();
        before = event["done"].as_u64().unwrap_or(before);
        if event["event"] == "progress" && before >= FILE_BYTES / 8 {
            signal_pid(victim, Signal::SIGKILL)?;
            break;
        }
    }
    let _ = first.wait()?;
    ensure!(
        before > 0 && before < FILE_BYTES,
        "noded was killed after {before} of {FILE_BYTES} bytes: not in the middle"
    );
    wait_for("bob's noded after the kill", || {
        let pid = stage.bob.child_pid("noded")?;
        Ok((pid != victim && status(&stage.bob)?["supervisor"]["state"] == "ready").then_some(()))
    })?;
    let answer = wait_for("the rest of the file", || Ok(Some(stage.bob.cli(&arguments)?.json()?)))?;
    let second = answer["received"].as_u64().context("fetch reports what it received")?;
    report.resumed =
        before > 0 && second + before / 2 <= FILE_BYTES && answer["verified"] == true && same_bytes(&path, &out)?;
    let how_much = format!("{} MiB before the kill, {} MiB after", before >> 20, second >> 20);
    report.row("a transfer killed and resumed", start.elapsed().as_secs_f64(), &how_much);
    Ok(())
}

/// What the supervisor saw of the key process from outside.
fn cage(stage: &Stage, report: &mut Report) -> Result<()> {
    let start = Instant::now();
    let doctor = stage.alice.cli(&["doctor"])?;
    let doctor: Value = serde_json::from_str(doctor.stdout.trim()).context("doctor prints JSON")?;
    for process in doctor["processes"].as_array().context("doctor lists processes")? {
        let name = process["name"].as_str().unwrap_or_default();
        if name == "front" || name == "vault" {
            let allowed = process["syscalls_allowed"].as_u64().context("counted from the filter")?;
            report.key_process_syscalls_allowed.insert(name.to_owned(), allowed);
            let interfaces = process["network_interfaces"].as_array().cloned().unwrap_or_default();
            report
                .key_process_network_interfaces
                .extend(interfaces.iter().filter_map(Value::as_str).map(|interface| format!("{name}:{interface}")));
        }
    }
    ensure!(report.key_process_syscalls_allowed.len() == 2, "doctor names front and vault: {doctor}");
    ensure!(doctor["ok"] == true, "doctor finds a layer off: {doctor}");
    report.uid = doctor["uid"].as_str().unwrap_or_default().to_owned();
    let expected = if is_root() { "separate" } else { "shared" };
    ensure!(report.uid == expected, "uids are {}, expected {expected}", report.uid);
    let layers = doctor["layers"].as_array().map_or(0, Vec::len);
    let calls = &report.key_process_syscalls_allowed;
    let how_much = format!("{layers} layers in place; calls: front {}, vault {}", calls["front"], calls["vault"]);
    report.row("doctor, from outside", start.elapsed().as_secs_f64(), &how_much);
    Ok(())
}

/// Makes a file with the mark in its name and all over its content, and shares it from alice.
fn shared_file(stage: &Stage, name: &str) -> Result<(PathBuf, String)> {
    let path = stage.folder.join(format!("{name}-{}.bin", stage.marks.file_name.text()));
    let mut file = BufWriter::new(File::create(&path)?);
    let mut block = vec![0; 1 << 20];
    for number in 0..FILE_BYTES >> 20 {
        if number % 64 == 0 {
            getrandom::fill(&mut block).context("the system has randomness")?;
        }
        let mark = format!("{name} {number} {}", stage.marks.file_content.text());
        block[..mark.len()].copy_from_slice(mark.as_bytes());
        file.write_all(&block)?;
    }
    file.into_inner()?.sync_all()?;
    let shared = stage.alice.cli(&["share", &path.to_string_lossy(), "--to", &stage.bob.id])?.json()?;
    let id = shared["id"].as_str().context("share prints the file's id")?.to_owned();
    Ok((path, id))
}

fn same_bytes(one: &Path, other: &Path) -> Result<bool> {
    Ok(fs::read(one)? == fs::read(other)?)
}

fn status(node: &Node) -> Result<Value> {
    Ok(serde_json::from_str(node.cli(&["status"])?.stdout.trim())?)
}

fn find_link(node: &Node, peer: &str) -> Result<Value> {
    let links = node.cli(&["link", "list"])?.json()?;
    let links = links["links"].as_array().context("link list prints links")?.clone();
    links.into_iter().find(|link| link["peer"] == peer).context("no link with the peer")
}

/// The texts in a node's inbox, in order of their letters.
fn texts(node: &Node) -> Result<Vec<String>> {
    let inbox = node.cli(&["inbox", "--all"])?.json()?;
    let messages = inbox["messages"].as_array().context("inbox prints messages")?;
    let mut texts: Vec<String> =
        messages.iter().map(|message| message["text"].as_str().unwrap_or_default().to_owned()).collect();
    texts.sort();
    Ok(texts)
}

fn short(id: &str) -> String {
    format!("…{}", &id[id.len().saturating_sub(8)..])
}

/// `--keep`: says how to use what runs, and waits for the end.
fn stay(stage: &Stage, end: SigSet) -> Result<()> {
    say("\n  Everything keeps running until you press Ctrl-C. Try:");
    for node in [&stage.alice, &stage.bob] {
        say(&format!("    openred --home {} status", node.home.display()));
    }
    say(&format!("    openred --home {} send {} hello", stage.alice.home.display(), stage.bob.id));
    say(&format!("    directory --home {} nodes list", stage.directory.home.display()));
    end.wait()?;
    Ok(())
}

fn block_end_signals() -> Result<SigSet> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    signals.thread_block()?;
    Ok(signals)
}
