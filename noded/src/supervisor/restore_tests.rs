//! A restore that is killed at each of its steps: the old node or the new one is whole, and what is left is carried on.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::process::Command;

use super::super::killed;
use super::*;

const STEPS: [Step; 16] = [
    Step::Laid,
    Step::Ready,
    Step::Aside(0),
    Step::Placed(0),
    Step::Aside(1),
    Step::Placed(1),
    Step::Aside(2),
    Step::Placed(2),
    Step::Aside(3),
    Step::Placed(3),
    Step::Aside(4),
    Step::Placed(4),
    Step::Aside(6),
    Step::Placed(6),
    Step::Whole,
    Step::Done,
];

fn manifest() -> Manifest {
    Manifest {
        schema: String::from("openred.backup/1"),
        version: String::from("1"),
        node_id: String::from("did:key:z"),
        created_at: 7,
        running: false,
        files: Vec::new(),
    }
}

/// The files of a node, each with the same content.
fn files(home: &Home) -> [PathBuf; 6] {
    let [trail, modules] = [home.audit(), home.packages()].map(|folder| folder.join("mark"));
    [home.vault_state(), home.database(), trail, home.config(), home.keystore(), modules]
}

fn old_node(home: &Home) {
    for place in files(home) {
        make_private(place.parent().unwrap()).unwrap();
        fs::write(place, "old").unwrap();
    }
}

fn lay<'a>(home: &'a Home) -> Layout<'a> {
    let layout = Layout::of_node(home).unwrap();
    fs::write(layout.reading().join("node.sqlite"), "new").unwrap();
    layout.take("node.sqlite", &home.database()).unwrap();
    layout.take("absent", &home.blobs()).unwrap();
    for place in files(home).iter().filter(|place| **place != home.database()) {
        layout.put(place, b"new").unwrap();
    }
    layout
}

fn holds(home: &Home, content: &str) -> bool {
    files(home).iter().all(|place| fs::read(place).is_ok_and(|found| found == content.as_bytes()))
}

/// What is in the home beside a node.
fn left(home: &Home) -> Vec<String> {
    let names = fs::read_dir(home.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let own = ["vault", "state", "audit", "modules", "openred.toml", "keystore.age", "run"];
    names.filter(|name| !own.contains(&name.as_str())).collect()
}

/// The child: puts a node in place, says each step, and waits at the one it was told to wait at.
fn restore_and_wait(home: &Home) -> ! {
    let after = |step| killed::wait_at(&STEPS, &step);
    lay(home).commit(Change::Node(manifest()), after).unwrap();
    finish(home, after).unwrap();
    unreachable!("killed before");
}

#[test]
fn killed_after_each_step_the_old_or_the_new_node_is_whole() {
    if let Some(folder) = killed::child() {
        restore_and_wait(&Home::new(folder));
    }
    for (number, step) in STEPS.into_iter().enumerate() {
        let (_folder, home) = Home::scratch();
        old_node(&home);
        let test = "supervisor::restore::tests::killed_after_each_step_the_old_or_the_new_node_is_whole";
        killed::at(test, home.path(), number, &step);
        if step == Step::Laid {
            assert!(holds(&home, "old") && !is_pending(&home), "before the change nothing is touched");
            assert_eq!(finish_pending(&home).unwrap(), None);
            assert!(holds(&home, "old"));
            // What the killed one left is in nobody's way.
            lay(&home).commit(Change::Node(manifest()), |_| ()).unwrap();
        } else if step == Step::Done {
            assert!(holds(&home, "new") && !is_pending(&home));
        }
        let finished = finish_pending(&home).unwrap();
        assert_eq!(finished.is_some(), step != Step::Done, "{step:?}");
        assert!(holds(&home, "new"), "{step:?}");
        let left = left(&home);
        assert!(left.len() == 1 && left[0].starts_with(REPLACED), "{step:?}: {left:?}");
        let aside = Home::new(home.path().join(&left[0]));
        assert!(holds(&aside, "old"), "{step:?}: all of what was there, in one place");
        assert_eq!(finish_pending(&home).unwrap(), None, "{step:?}");
    }
}

/// The steps of another identity for a node that is here: trail and keystore are moved aside, the vault's state is replaced.
const CHANGES: [Step; 9] = [
    Step::Laid,
    Step::Ready,
    Step::Aside(2),
    Step::Placed(2),
    Step::Aside(4),
    Step::Placed(4),
    Step::Placed(5),
    Step::Whole,
    Step::Done,
];

/// A node with a trail: the two segments, one that is filed, and what the trail is owed.
fn old_trail(home: &Home) {
    old_node(home);
    make_private(&home.audit_filed()).unwrap();
    let [first, second] = home.audit_segments();
    for place in [first, second, home.audit_owed(), home.audit_filed().join("0000000001.segment")] {
        fs::write(place, "trail").unwrap();
    }
}

fn changing(home: &Home) -> Layout<'_> {
    let layout = Layout::of_key(home).unwrap();
    layout.put(&home.keystore(), b"new").unwrap();
    layout.put_state(b"new").unwrap();
    layout.copy_trail().unwrap();
    layout
}

/// Everything that the home holds for the identity that is not there any more, or, `of` the old one, still.
fn is_whole(home: &Home, of: &str) -> bool {
    let is = |place: PathBuf, content: &str| fs::read(place).is_ok_and(|found| found == content.as_bytes());
    let trail = home.audit_segments().into_iter().chain([home.audit_owed()]).all(|place| is(place, "trail"));
    let filed = fs::read_dir(home.audit_filed()).unwrap().count();
    let own = [home.keystore(), home.vault_state()].into_iter().all(|place| is(place, of));
    let stays = [home.config(), home.database()].into_iter().all(|place| is(place, "old"));
    trail && own && stays && filed == usize::from(of == "old")
}

/// The child: changes the identity, says each step, and waits at the one it was told to wait at.
fn change_and_wait(home: &Home) -> ! {
    let after = |step| killed::wait_at(&CHANGES, &step);
    changing(home).commit(Change::Successor(String::from("did:key:z")), after).unwrap();
    finish(home, after).unwrap();
    unreachable!("killed before");
}

#[test]
fn another_identity_that_is_killed_after_each_step_has_no_segment_of_the_older_ones_among_its_own() {
    if let Some(folder) = killed::child() {
        change_and_wait(&Home::new(folder));
    }
    for (number, step) in CHANGES.into_iter().enumerate() {
        let (_folder, home) = Home::scratch();
        old_trail(&home);
        let test = "supervisor::restore::tests::another_identity_that_is_killed_after_each_step_has_no_segment_of_the_older_ones_among_its_own";
        killed::at(test, home.path(), number, &step);
        if step == Step::Laid {
            assert!(is_whole(&home, "old") && !is_pending(&home), "before the change nothing is touched");
            // Whoever takes the home next leaves nothing of it.
            drop(super::super::places::lock(&home).unwrap());
            assert!(is_whole(&home, "old") && left(&home).is_empty(), "{:?}", left(&home));
            continue;
        }
        let finished = finish_pending(&home).unwrap();
        assert_eq!(finished.is_some(), step != Step::Done, "{step:?}");
        assert!(is_whole(&home, "new"), "{step:?}");
        let left = left(&home);
        assert!(left.len() == 1 && left[0].starts_with(REPLACED), "{step:?}: {left:?}");
        let aside = Home::new(home.path().join(&left[0]));
        assert!(fs::read(aside.keystore()).unwrap() == b"old", "{step:?}");
        assert!(fs::read(aside.audit_filed().join("0000000001.segment")).unwrap() == b"trail", "{step:?}");
        assert!(!aside.vault_state().exists() && !aside.path().join(STATE).exists(), "no short-lived key is kept");
    }
}

/// The steps of a key that is restored beside a vault's state.
const KEYS: [Step; 7] =
    [Step::Laid, Step::Ready, Step::Aside(4), Step::Placed(4), Step::Placed(5), Step::Whole, Step::Done];

fn key_and_wait(home: &Home) -> ! {
    let after = |step| killed::wait_at(&KEYS, &step);
    let layout = Layout::of_key(home).unwrap();
    layout.put(&home.keystore(), b"new").unwrap();
    layout.put_state(b"new").unwrap();
    layout.commit(Change::Key(String::from("hash")), after).unwrap();
    finish(home, after).unwrap();
    unreachable!("killed before");
}

#[test]
fn a_key_that_is_restored_and_killed_after_each_step_never_stands_beside_the_state_of_before() {
    if let Some(folder) = killed::child() {
        key_and_wait(&Home::new(folder));
    }
    for (number, step) in KEYS.into_iter().enumerate() {
        let (_folder, home) = Home::scratch();
        old_trail(&home);
        let test = "supervisor::restore::tests::a_key_that_is_restored_and_killed_after_each_step_never_stands_beside_the_state_of_before";
        killed::at(test, home.path(), number, &step);
        drop(super::super::places::lock(&home).unwrap());
        let expected: &[u8] = if step == Step::Laid { b"old" } else { b"new" };
        for place in [home.keystore(), home.vault_state()] {
            assert_eq!(fs::read(place).unwrap(), expected, "{step:?}");
        }
        assert_eq!(fs::read_dir(home.audit_filed()).unwrap().count(), 1, "{step:?}: the trail stays");
        let left = left(&home);
        assert_eq!(left.len(), usize::from(step != Step::Laid), "{step:?}: {left:?}");
    }
}

#[test]
fn what_a_restore_left_is_named_and_stays_until_the_next_one() {
    use super::super::board::Board;
    use openred_policy::observe::Baseline;
    let (_folder, home) = Home::scratch();
    old_node(&home);
    std::mem::forget(lay(&home));
    let board = Board::new(Baseline::of_this_process().unwrap(), String::new(), String::new(), 0);
    let told = board.watch_unfinished(unfinished(&home)).unwrap();
    assert!(told.code == "restore.unfinished" && told.detail.contains("/restoring"), "{told:?}");
    assert_eq!(board.status().conditions[0].code, "restore.unfinished");
    assert_eq!(board.doctor().conditions, board.status().conditions, "the same to who asks for the cages");
    // Neither a start nor a change of key takes it for its own.
    drop(super::super::places::lock(&home).unwrap());
    drop(changing(&home));
    assert!(unfinished(&home).join("new/keystore.age").exists() && holds(&home, "old"));
    fs::remove_dir_all(unfinished(&home)).unwrap();
    assert!(
        board.status().conditions.is_empty() && board.doctor().conditions.is_empty(),
        "once it is gone nothing is said of it"
    );
}

#[test]
fn a_note_of_a_build_that_knew_restores_alone_is_carried_on() {
    let (_folder, home) = Home::scratch();
    old_node(&home);
    lay(&home).commit(Change::Node(manifest()), |_| ()).unwrap();
    let note = serde_json::json!({ "manifest": manifest(), "replaced": "replaced-1" }).to_string();
    fs::write(home.path().join(READY).join(NOTE), note).unwrap();
    let finished = finish_pending(&home).unwrap().unwrap();
    assert_eq!((finished.change, finished.aside), (Change::Node(manifest()), Some(home.path().join("replaced-1"))));
    assert!(holds(&home, "new"));
}

#[test]
fn into_an_empty_home_and_nothing_is_left_of_one_that_was_given_up() {
    let (_folder, home) = Home::scratch();
    drop(lay(&home));
    assert!(left(&home).is_empty());
    lay(&home).commit(Change::Node(manifest()), |_| ()).unwrap();
    assert_eq!(finish(&home, |_| ()).unwrap(), Some(Finished { change: Change::Node(manifest()), aside: None }));
    assert!(holds(&home, "new") && left(&home).is_empty());
}

#[test]
fn a_note_that_cannot_be_read_or_leads_elsewhere_is_named_and_nothing_is_moved() {
    for note in ["", "{}", "../x"] {
        let (_folder, home) = Home::scratch();
        old_node(&home);
        lay(&home).commit(Change::Node(manifest()), |_| ()).unwrap();
        let place = home.path().join(READY).join(NOTE);
        let text = match note {
            "../x" => fs::read_to_string(&place).unwrap().replace(REPLACED, "replaced-/../../"),
            other => other.to_owned(),
        };
        fs::write(&place, text).unwrap();
        let refused = finish_pending(&home).err().unwrap();
        assert_eq!(refused.code, "restore.damaged");
        assert!(holds(&home, "old"));
    }
}

/// The child, in a mount namespace where the home's `state` is a file system of its own.
fn restore_beside_a_mount(home: &Home) {
    let refused = lay(home).commit(Change::Node(manifest()), |_| ()).err().unwrap();
    assert_eq!(refused.code, "restore.elsewhere");
    assert!(refused.to_string().contains("/state"), "{refused}");
    assert!(!is_pending(home) && left(home).is_empty());
}

#[test]
fn a_part_that_cannot_be_moved_is_named_before_anything_is() {
    const HOME: &str = "OPENRED_TEST_MOUNTED";
    if let Some(folder) = std::env::var_os(HOME) {
        return restore_beside_a_mount(&Home::new(PathBuf::from(folder)));
    }
    let (_folder, home) = Home::scratch();
    old_node(&home);
    // A user namespace of its own lets the ordinary user mount as well.
    let child = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "sh", "-c"])
        .arg("mount -t tmpfs none \"$1\" && exec \"$2\" --exact --nocapture \"$3\"")
        .arg("sh")
        .args([home.state(), std::env::current_exe().unwrap()])
        .arg("supervisor::restore::tests::a_part_that_cannot_be_moved_is_named_before_anything_is")
        .env(HOME, home.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&child.stdout);
    assert!(child.status.success() && said.contains("1 passed"), "{said}{}", String::from_utf8_lossy(&child.stderr));
    assert!(holds(&home, "old"));
}
