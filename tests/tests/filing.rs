//! A segment of the audit trail from its last slot to its auditor: filled by the real vault's code on a node's own files, closed,
//! sealed by the caged helper of the running node, opened by a stock `age` and by `openred audit`.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use age::secrecy::ExposeSecret;
use openred_cryptod::unseal::Keystore;
use openred_cryptod::vault::quota::{Rate, Rates};
use openred_cryptod::vault::serve::{Files, clock, generator};
use openred_cryptod::vault::{Changes, start};
use openred_proto::audit::{Event, SEGMENT_BYTES};
use openred_proto::vault::{AuditStatus, Frame, Refusal, Reply, Request, Role};
use openred_tests::harness::{Daemon, Node, binaries, passphrase, refusal, wait_for};
use serde_json::Value;

/// A base of uids that no other test of this suite uses.
const UID_BASE: u32 = 61_700;
/// Requests between two looks at how full the segment is.
const A_ROUND: usize = 300;

fn node(folder: &Path, step: u32) -> Node {
    let nowhere = "did:key:z6MkiTBz1ymuepAQ4HEHYSF1H8quG5GLVVQR3djdX3mDooWp@http://127.0.0.1:9";
    Node::init(&folder.canonicalize().unwrap(), "node", nowhere, UID_BASE + 10 * step, "").unwrap()
}

fn places(node: &Node) -> [PathBuf; 2] {
    ["a", "b"].map(|name| node.home.join("audit").join(format!("{name}.segment")))
}

fn filed(node: &Node) -> PathBuf {
    node.home.join("audit/filed")
}

fn open(place: &Path) -> File {
    File::options().read(true).write(true).open(place).unwrap()
}

fn write(files: &Files, changes: &Changes) {
    for write in &changes.trail {
        files.trail[write.file].write_all_at(&write.bytes, write.offset).unwrap();
    }
    for write in &changes.state {
        files.state.write_all_at(&write.bytes, write.offset).unwrap();
    }
}

/// Has the vault of a stopped node use its keys until its trail stands as it is to, without the quotas that keep `noded` from that.
fn fill(node: &Node, is_enough: impl Fn(&AuditStatus) -> bool) {
    let sealed = fs::read(node.home.join("keystore.age")).unwrap();
    let (keystore, ..) = Keystore::open(&sealed, b"passphrase of node").unwrap();
    let files = Files { state: open(&node.home.join("vault/state")), trail: places(node).map(|place| open(&place)) };
    let mut random = generator().unwrap();
    let (descent, mut secrets) = (keystore.descent(), keystore.into_secrets());
    let much = Rate { burst: u32::MAX, per_second: u32::MAX };
    let orders = start::Orders { anew: false, rates: Rates { store: much, control: much, ..Rates::default() } };
    let mut vault = start::open(&mut secrets, &descent, &files, &orders, &mut random).unwrap();
    loop {
        for id in 0..A_ROUND as u64 {
            let body = Request::StoreKey { purpose: "full".to_owned() };
            let reply = vault.handle(clock(), &mut random, Role::Node, Frame { id, body }).reply.body;
            assert!(matches!(reply, Reply::StoreKey(_) | Reply::Refused(Refusal::AuditFull)), "{reply:?}");
            if vault.must_commit() {
                write(&files, &vault.commit(&mut random).unwrap());
            }
        }
        vault.handle_timeout(clock(), &mut random).unwrap();
        write(&files, &vault.commit(&mut random).unwrap());
        let asked = Frame { id: 0, body: Request::AuditStatus };
        let Reply::AuditStatus(status) = vault.handle(clock(), &mut random, Role::Operator, asked).reply.body else {
            panic!("the trail's status");
        };
        if is_enough(&status) {
            break;
        }
    }
    vault.close(clock(), Event::Stopped);
    write(&files, &vault.commit(&mut random).unwrap());
}

/// A stopped node whose first segment waits to be filed.
fn filled(folder: &Path, step: u32) -> Node {
    let mut node = node(folder, step);
    node.up().unwrap();
    node.down().unwrap();
    fill(&node, |status| status.waiting == Some(1));
    node
}

/// Starts a node, whatever becomes of it.
fn begin(node: &Node, log: &Path) -> Daemon {
    let (home, secret) = (node.home.display().to_string(), passphrase(node));
    let up = ["--home", &home, "up", "--passphrase-file", &secret];
    Daemon::start(&binaries().unwrap().join("openred"), &up, log).unwrap()
}

fn identity(folder: &Path, name: &str) -> (String, String) {
    let identity = age::x25519::Identity::generate();
    let place = folder.join(name);
    fs::write(&place, format!("{}\n", identity.to_string().expose_secret())).unwrap();
    fs::set_permissions(&place, Permissions::from_mode(0o600)).unwrap();
    (identity.to_public().to_string(), place.display().to_string())
}

fn set_auditor(node: &Node, auditor: &str) {
    let config = node.home.join("openred.toml");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, format!("{text}\n[audit]\nauditor = \"{auditor}\"\n")).unwrap();
}

fn verify(node: &Node, more: &[&str]) -> (i32, Value) {
    let answer = node.cli(&[&["audit", "verify", "--node", &node.id], more].concat()).unwrap();
    (answer.code, serde_json::from_str(answer.stdout.trim()).unwrap_or_else(|_| panic!("{answer:?}")))
}

fn supervisor(node: &Node) -> Value {
    // Nothing while it starts.
    let status: Value = serde_json::from_str(node.cli(&["status"]).unwrap().stdout.trim()).unwrap_or_default();
    status["supervisor"].clone()
}

fn alarms(node: &Node) -> Vec<String> {
    let conditions = supervisor(node)["conditions"].as_array().cloned().unwrap_or_default();
    conditions.iter().filter_map(|condition| condition["code"].as_str().map(str::to_owned)).collect()
}

/// Waits until the vault has been told, which comes last.
fn told(node: &Node) {
    wait_for("the vault to hear of it", || {
        let trail = &supervisor(node)["trail"];
        Ok((trail["segment"] == 2 && trail["waiting"] == 0).then_some(()))
    })
    .unwrap();
    let [first, _] = places(node);
    assert!(fs::read(first).unwrap().iter().all(|byte| *byte == 0), "its place is cleared");
}

#[test]
fn a_full_segment_is_sealed_to_its_auditor_and_a_stock_age_opens_it() {
    let folder = tempfile::tempdir().unwrap();
    let top = folder.path().canonicalize().unwrap();
    let mut node = filled(&top, 0);
    let ((auditor, key), (_, other)) = (identity(&top, "auditor"), identity(&top, "other"));
    let [first, second] = places(&node);
    let before = [&first, &second, &node.home.join("vault/state")].map(|place| fs::read(place).unwrap());
    set_auditor(&node, &auditor);
    // In the way of the first tries: an alarm, and nothing is lost by them.
    let sealed = filed(&node).join("0000000001.segment.age");
    let obstacle = filed(&node).join("0000000001.segment.age.new");
    fs::create_dir(&obstacle).unwrap();
    let daemon = begin(&node, &top.join("first.log"));
    wait_for("the alarm", || Ok(alarms(&node).contains(&"audit.filing".to_owned()).then_some(()))).unwrap();
    assert!(!sealed.exists() && fs::read(&first).unwrap() == before[0]);
    fs::remove_dir(&obstacle).unwrap();
    told(&node);
    wait_for("the alarm's end", || Ok((!alarms(&node).contains(&"audit.filing".to_owned())).then_some(()))).unwrap();
    let mut names: Vec<_> = fs::read_dir(filed(&node)).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["0000000001.segment.age", "0000000001.sha256"]);

    let (code, report) = verify(&node, &[]);
    assert_eq!(
        (code, &report["encrypted_segments"], &report["unread_segments"]),
        (9, &1.into(), &1.into()),
        "nothing is said of what was not opened: {report}"
    );
    let (code, report) = verify(&node, &["--identity-file", &key]);
    assert_eq!(
        (code, &report["encrypted_segments"], &report["unread_segments"]),
        (0, &1.into(), &0.into()),
        "{report}"
    );
    assert_eq!((&report["first"], &report["compared_with_live_vault"]), (&1.into(), &true.into()), "{report}");
    assert!(report["records"].as_u64().unwrap() > 30_000, "{report}");
    let wrong = node.cli(&["audit", "verify", "--identity-file", &other]).unwrap();
    assert_eq!(refusal(&wrong), (8, "audit.locked".into()));
    let place = sealed.display().to_string();
    let exported = node.cli(&["audit", "export", &place, "--identity-file", &key]).unwrap().ok().unwrap();
    assert!(exported.stdout.lines().count() > 30_000);
    let nothing = node.cli(&["audit", "export", &place]).unwrap().ok().unwrap();
    assert!(nothing.stdout.is_empty() && nothing.stderr.contains("1 were not read"), "{nothing:?}");

    let opened = Command::new("age").args(["--decrypt", "--identity", &key]).arg(&sealed).output();
    let opened = opened.expect("`age` is installed by scripts/prepare");
    assert!(opened.status.success() && opened.stdout == before[0], "as the vault wrote it");
    let plain = top.join("opened").display().to_string();
    fs::write(&plain, &opened.stdout).unwrap();
    let (code, report) = verify(&node, &[&plain]);
    assert_eq!((code, &report["segments"], &report["fault_count"]), (0, &1.into(), &0.into()), "{report}");
    let flipped = top.join("flipped.age");
    let mut bytes = fs::read(&sealed).unwrap();
    bytes[SEGMENT_BYTES / 2] ^= 1;
    fs::write(&flipped, bytes).unwrap();
    let damaged = node.cli(&["audit", "verify", &flipped.display().to_string(), "--identity-file", &key]).unwrap();
    assert_eq!(refusal(&damaged), (1, "audit.damaged".into()));

    // As after a kill between the file and its place: the same file, and nothing is missing.
    daemon.stop().unwrap();
    let kept = fs::read(&sealed).unwrap();
    let go_back = || {
        for (place, content) in [&first, &second, &node.home.join("vault/state")].iter().zip(&before) {
            fs::write(place, content).unwrap();
        }
    };
    go_back();
    let daemon = begin(&node, &top.join("again.log"));
    told(&node);
    assert!(fs::read(&sealed).unwrap() == kept);
    daemon.stop().unwrap();
    // Sealed by a version that wrote no hash beside it: it cannot be told to be the one until its auditor has said what is in it.
    go_back();
    let beside = filed(&node).join("0000000001.sha256");
    let hash = fs::read(&beside).unwrap();
    fs::remove_file(&beside).unwrap();
    let daemon = begin(&node, &top.join("older.log"));
    let alarm = wait_for("the alarm", || {
        let conditions = supervisor(&node)["conditions"].as_array().cloned().unwrap_or_default();
        Ok(conditions.into_iter().find(|condition| condition["code"] == "audit.filing"))
    });
    assert!(alarm.unwrap()["help"].as_str().unwrap().contains("openred audit digest 1"));
    let digest = |key: &[&str]| node.cli(&[&["audit", "digest", "1"], key].concat()).unwrap();
    assert_eq!(refusal(&digest(&[])), (2, "usage".into()));
    assert_eq!(refusal(&digest(&["--identity-file", &other])), (8, "audit.locked".into()));
    assert!(!beside.exists() && fs::read(&first).unwrap() == before[0]);
    let said = digest(&["--identity-file", &key]).json().unwrap();
    assert!(hash.starts_with(said["sha256"].as_str().unwrap().as_bytes()) && fs::read(&beside).unwrap() == hash);
    told(&node);
    assert!(fs::read(&sealed).unwrap() == kept);
    digest(&["--identity-file", &key]).ok().unwrap();
    // Another one's hash beside it is not written over.
    fs::write(&beside, "another").unwrap();
    assert_eq!(refusal(&digest(&["--identity-file", &key])), (6, "audit.number-taken".into()));
    assert_eq!(fs::read(&beside).unwrap(), b"another");
    fs::write(&beside, &hash).unwrap();
    daemon.stop().unwrap();
    node.up_without_answers().unwrap();
    assert_eq!(verify(&node, &["--identity-file", &key]).0, 0);
    node.down().unwrap();
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = entries.collect();
    names.sort();
    names
}

fn is_zeros(place: &Path) -> bool {
    fs::read(place).unwrap().iter().all(|byte| *byte == 0)
}

#[test]
fn a_segment_that_waits_is_sealed_to_its_auditor_before_another_identity_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let top = folder.path().canonicalize().unwrap();
    let mut node = filled(&top, 2);
    let (auditor, key) = identity(&top, "auditor");
    set_auditor(&node, &auditor);
    let [first, second] = places(&node);
    let (closed, open) = (fs::read(&first).unwrap(), fs::read(&second).unwrap());
    let secret = format!("{}.passphrase", node.home.display());
    let rotate = ["key", "rotate", "identity", "--passphrase-file", &secret];
    // One that cannot be filed is not left behind: nothing is changed.
    let obstacle = filed(&node).join("0000000001.segment");
    fs::write(&obstacle, "another").unwrap();
    assert_eq!(refusal(&node.cli(&rotate).unwrap()), (6, "audit.number-taken".into()));
    assert!(fs::read(&first).unwrap() == closed && !node.home.join("changing").exists());
    fs::remove_file(&obstacle).unwrap();

    let said = node.cli(&rotate).unwrap().json().unwrap();
    let aside = PathBuf::from(said["replaced"].as_str().unwrap()).join("audit");
    assert_eq!(names(&aside.join("filed")), ["0000000001.segment.age", "0000000001.sha256"]);
    assert!(is_zeros(&aside.join("a.segment")) && is_zeros(&first), "in clear nowhere");
    assert!(fs::read(aside.join("b.segment")).unwrap() == open, "the one that was written is kept as it was");
    let sealed = aside.join("filed/0000000001.segment.age");
    let opened = Command::new("age").args(["--decrypt", "--identity", &key]).arg(&sealed).output().unwrap();
    assert!(opened.status.success() && opened.stdout == closed);
    let (sealed, written) = (sealed.display().to_string(), aside.join("b.segment").display().to_string());
    let (code, report) = verify(&node, &[&sealed, &written, "--identity-file", &key]);
    assert_eq!((code, &report["segments"], &report["fault_count"]), (0, &2.into(), &0.into()), "{report}");

    said["node_id"].as_str().unwrap().clone_into(&mut node.id);
    assert!(names(&filed(&node)).is_empty(), "no segment of the older identity");
    node.up_without_answers().unwrap();
    let (code, report) = verify(&node, &[]);
    assert_eq!((code, &report["fault_count"]), (0, &0.into()), "{report}");
    node.down().unwrap();
}

/// What lies aside after a command that was to file what waits, and could not: it went on and said so.
fn is_left_in_clear(said: &Value, aside: &Path, closed: &[u8]) {
    let left = aside.join("a.segment");
    assert_eq!(said["left_in_clear"][0]["path"], left.display().to_string(), "{said}");
    assert_eq!(said["left_in_clear"].as_array().unwrap().len(), 1, "{said}");
    assert!(fs::read(&left).unwrap() == closed, "as it was");
}

/// And after one that could.
fn is_sealed_aside(said: &Value, aside: &Path, (key, closed): (&str, &[u8])) {
    assert_eq!(said["left_in_clear"], Value::Array(Vec::new()), "{said}");
    assert_eq!(names(&aside.join("filed")), ["0000000001.segment.age", "0000000001.sha256"]);
    assert!(is_zeros(&aside.join("a.segment")), "in clear nowhere");
    let sealed = aside.join("filed/0000000001.segment.age");
    let opened = Command::new("age").args(["--decrypt", "--identity", key]).arg(sealed).output().unwrap();
    assert!(opened.status.success() && opened.stdout == closed);
}

#[test]
fn a_segment_that_waits_is_sealed_before_the_trail_is_begun_anew() {
    let folder = tempfile::tempdir().unwrap();
    let top = folder.path().canonicalize().unwrap();
    let mut node = filled(&top, 4);
    let (auditor, key) = identity(&top, "auditor");
    set_auditor(&node, &auditor);
    let closed = fs::read(&places(&node)[0]).unwrap();
    let aside = |said: &Value| PathBuf::from(said["aside"].as_str().unwrap());
    // One that cannot be filed: the trail may be lost for that very reason.
    fs::write(filed(&node).join("0000000001.segment"), "another").unwrap();
    let said = node.cli(&["audit", "restart"]).unwrap().json().unwrap();
    is_left_in_clear(&said, &aside(&said), &closed);

    places(&node).iter().for_each(|place| {
        let kept = aside(&said).join(place.file_name().unwrap());
        fs::copy(kept, place).unwrap();
    });
    let said = node.cli(&["audit", "restart"]).unwrap().json().unwrap();
    is_sealed_aside(&said, &aside(&said), (&key, &closed));
    node.up_without_answers().unwrap();
    node.down().unwrap();
}

#[test]
fn a_segment_that_waits_is_sealed_before_a_restore_moves_it_aside() {
    let folder = tempfile::tempdir().unwrap();
    let top = folder.path().canonicalize().unwrap();
    let mut node = filled(&top, 5);
    let (auditor, key) = identity(&top, "auditor");
    set_auditor(&node, &auditor);
    let closed = fs::read(&places(&node)[0]).unwrap();
    let (backup, secret) = (top.join("backup").display().to_string(), format!("{}.passphrase", node.home.display()));
    node.cli(&["backup", "create", &backup, "--passphrase-file", &secret]).unwrap().ok().unwrap();
    let restore = ["backup", "restore", &backup, "--force", "--passphrase-file", &secret];
    let aside = |said: &Value| PathBuf::from(said["replaced"].as_str().unwrap()).join("audit");
    fs::write(filed(&node).join("0000000001.segment"), "another").unwrap();
    let said = node.cli(&restore).unwrap().json().unwrap();
    is_left_in_clear(&said, &aside(&said), &closed);

    places(&node).iter().for_each(|place| {
        let kept = aside(&said).join(place.file_name().unwrap());
        fs::copy(kept, place).unwrap();
    });
    let said = node.cli(&restore).unwrap().json().unwrap();
    is_sealed_aside(&said, &aside(&said), (&key, &closed));
    node.up_without_answers().unwrap();
    node.down().unwrap();
}

#[test]
fn without_an_auditor_it_is_filed_as_it_is_and_not_taken_for_another_of_its_number() {
    let folder = tempfile::tempdir().unwrap();
    let top = folder.path().canonicalize().unwrap();
    let node = filled(&top, 1);
    let [first, _] = places(&node);
    let before = fs::read(&first).unwrap();
    // As an older state that was put back leaves it: the number lies filed, and is another segment.
    let place = filed(&node).join("0000000001.segment");
    let mut other = before.clone();
    other[SEGMENT_BYTES / 2] ^= 1;
    fs::write(&place, &other).unwrap();
    let daemon = begin(&node, &top.join("taken.log"));
    wait_for("the alarm", || Ok(alarms(&node).contains(&"audit.filing".to_owned()).then_some(()))).unwrap();
    assert!(fs::read(&first).unwrap() == before && fs::read(&place).unwrap() == other, "neither was touched");
    fs::rename(&place, top.join("other")).unwrap();
    told(&node);
    assert!(fs::read(&place).unwrap() == before);
    let (code, report) = verify(&node, &[]);
    assert_eq!((code, &report["encrypted_segments"], &report["first"]), (0, &0.into(), &1.into()), "{report}");
    daemon.stop().unwrap();
}

#[test]
fn with_both_segments_full_no_node_starts_before_one_is_filed() {
    let folder = tempfile::tempdir().unwrap();
    let mut node = filled(folder.path(), 6);
    fill(&node, |status| status.full);
    // The closed one cannot be filed.
    let obstacle = filed(&node).join("0000000001.segment.new");
    fs::create_dir(&obstacle).unwrap();
    let mut daemon = begin(&node, &folder.path().join("full.log"));
    let code = wait_for("the start's end", || daemon.ended()).unwrap();
    let said = daemon.output();
    assert!(code != 0 && said.contains("audit segment 1 cannot be filed"), "exit code {code}: {said}");
    assert!(said.contains("the audit trail is full"), "{said}");
    fs::remove_dir(&obstacle).unwrap();
    node.up().unwrap();
    wait_for("both segments to be filed", || {
        let found = alarms(&node);
        Ok((filed(&node).join("0000000002.segment").exists() && !found.iter().any(|alarm| alarm.starts_with("audit.")))
            .then_some(()))
    })
    .unwrap();
    node.cli(&["key", "rotate", "prekey"]).unwrap().ok().unwrap();
    let (code, report) = verify(&node, &[]);
    assert_eq!((code, &report["first"], &report["fault_count"]), (0, &1.into(), &0.into()), "{report}");
    node.down().unwrap();
}
