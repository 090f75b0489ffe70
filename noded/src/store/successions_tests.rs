//! What is kept of successions: of known peers alone, carried once, withdrawn with the word, and a state that changes hands.
#![allow(clippy::unwrap_used, reason = "tests")]

use openred_cryptod::identity::Identity;
use openred_proto::checked::succession::{Step, Succession};
use openred_proto::secret::Secret;

use super::super::{peers, schema};
use super::*;

const NOW: UnixMillis = UnixMillis(1_800_000_000_000);

fn key(seed: u8) -> Identity {
    Identity::from_seed(&Secret::new([seed; 32]))
}

fn id(seed: u8) -> NodeId {
    key(seed).node_id()
}

fn lineage(words: &[(Step, u8, u8)], node: u8) -> Lineage {
    let words: Vec<Vec<u8>> = (words.iter().zip(NOW.0..))
        .map(|((step, old, new), sequence)| {
            let word = Succession { step: *step, old: id(*old), new: id(*new), sequence };
            key(*old).sign_succession(&word).unwrap()
        })
        .collect();
    Lineage::verify(words.iter().map(Vec::as_slice), id(node)).unwrap()
}

fn store() -> (tempfile::TempDir, Connection) {
    let folder = tempfile::tempdir().unwrap();
    let connection = Connection::open(folder.path().join("db")).unwrap();
    schema::migrate(&connection, folder.path()).unwrap();
    (folder, connection)
}

fn approved(connection: &Connection, node: u8) -> bool {
    peers::get(connection, &id(node)).unwrap().is_some_and(|peer| peer.approved_at.0 > 0)
}

fn rows(connection: &Connection) -> i64 {
    connection.query_row("SELECT count(*) FROM succession", [], |row| row.get(0)).unwrap()
}

#[test]
fn a_strangers_lineage_leaves_nothing_behind() {
    let (_folder, connection) = store();
    let carried = follow(&connection, &id(2), &lineage(&[(Step::Succeed, 1, 2)], 2), NOW).unwrap().unwrap();
    assert_eq!((carried.earlier, carried.is_news, rows(&connection)), (vec![id(1)], false, 0));
    assert!(!approved(&connection, 2));
}

#[test]
fn the_operators_yes_goes_over_and_is_withdrawn_with_the_word() {
    let (_folder, connection) = store();
    peers::approve(&connection, &id(1), NOW).unwrap();
    let named = lineage(&[(Step::Succeed, 1, 2)], 2);
    assert!(follow(&connection, &id(2), &named, NOW).unwrap().unwrap().is_news);
    assert!(approved(&connection, 2));
    assert_eq!(all(&connection).unwrap(), [(id(1), id(2))]);
    assert!(!follow(&connection, &id(2), &named, NOW).unwrap().unwrap().is_news, "heard once");
    let another = follow(&connection, &id(3), &lineage(&[(Step::Succeed, 1, 3)], 3), NOW).unwrap();
    assert_eq!(another, Err(Contradiction::Another));
    assert!(!approved(&connection, 3));

    let back = lineage(&[(Step::Succeed, 1, 2), (Step::TakeBack, 1, 2)], 1);
    assert!(follow(&connection, &id(1), &back, NOW).unwrap().unwrap().is_news);
    assert!(approved(&connection, 1) && !approved(&connection, 2));
    assert_eq!((all(&connection).unwrap(), withdrawn(&connection).unwrap()), (vec![], vec![id(2)]));
    forget_withdrawn(&connection, &id(2)).unwrap();
    assert_eq!(withdrawn(&connection).unwrap(), []);
    assert_eq!(follow(&connection, &id(2), &named, NOW).unwrap(), Err(Contradiction::TakenBack));
}

#[test]
fn a_peer_that_was_admitted_for_itself_is_not_led_away() {
    let (_folder, connection) = store();
    peers::approve(&connection, &id(1), NOW).unwrap();
    peers::approve(&connection, &id(2), NOW).unwrap();
    // 7 names 2 its successor and takes it back, all in one card of its own.
    let words = lineage(&[(Step::Succeed, 7, 2), (Step::TakeBack, 7, 2)], 7);
    follow(&connection, &id(7), &words, NOW).unwrap().unwrap();
    assert!(approved(&connection, 2) && !approved(&connection, 7));
    // 1, which is known, does the same: 2 keeps what it had by itself.
    let words = lineage(&[(Step::Succeed, 1, 2), (Step::TakeBack, 1, 2)], 1);
    follow(&connection, &id(1), &words, NOW).unwrap().unwrap();
    assert!(approved(&connection, 2));
    assert_eq!(withdrawn(&connection).unwrap(), []);
}

#[test]
fn a_state_is_taken_over_by_a_successor_and_by_nobody_else() {
    let (_folder, connection) = store();
    assert_eq!(bind(&connection, &id(1), &[], NOW).unwrap(), None);
    assert_eq!(bind(&connection, &id(2), &[], NOW).unwrap(), Some(id(1)));
    assert_eq!(bind(&connection, &id(2), &[id(3)], NOW).unwrap(), Some(id(1)));
    assert_eq!(bind(&connection, &id(2), &[id(1)], NOW).unwrap(), None);
    assert_eq!(bind(&connection, &id(2), &[], NOW).unwrap(), None, "it is its own now");
    assert_eq!(bind(&connection, &id(1), &[], NOW).unwrap(), Some(id(2)));
    assert_eq!(to_reoffer(&connection).unwrap(), []);
}

#[test]
fn a_yes_is_withdrawn_however_many_words_later() {
    let (_folder, connection) = store();
    peers::approve(&connection, &id(1), NOW).unwrap();
    follow(&connection, &id(2), &lineage(&[(Step::Succeed, 1, 2)], 2), NOW).unwrap().unwrap();
    // The third shows only the end of its line.
    follow(&connection, &id(3), &lineage(&[(Step::Succeed, 2, 3)], 3), NOW).unwrap().unwrap();
    assert!(approved(&connection, 3));
    let back = lineage(&[(Step::Succeed, 1, 2), (Step::TakeBack, 1, 2)], 1);
    follow(&connection, &id(1), &back, NOW).unwrap().unwrap();
    assert!(approved(&connection, 1) && !approved(&connection, 2) && !approved(&connection, 3));
    let mut gone = [id(2), id(3)];
    gone.sort();
    assert_eq!(withdrawn(&connection).unwrap(), gone);
}

#[test]
fn what_the_operator_says_himself_stands() {
    let (_folder, connection) = store();
    peers::approve(&connection, &id(1), NOW).unwrap();
    let named = lineage(&[(Step::Succeed, 1, 2)], 2);
    follow(&connection, &id(2), &named, NOW).unwrap().unwrap();
    spoken(&connection, &id(2)).unwrap();
    peers::disapprove(&connection, &id(2)).unwrap();
    follow(&connection, &id(2), &named, NOW).unwrap().unwrap();
    assert!(!approved(&connection, 2), "a yes that he took back does not come again with the next look");
    peers::approve(&connection, &id(2), NOW).unwrap();
    let back = lineage(&[(Step::Succeed, 1, 2), (Step::TakeBack, 1, 2)], 1);
    follow(&connection, &id(1), &back, NOW).unwrap().unwrap();
    assert!(approved(&connection, 2), "his own yes to the second is not the first's");
}

#[test]
fn who_a_known_peer_goes_on_for_is_heard_from_nobody_else_first() {
    let (_folder, connection) = store();
    peers::approve(&connection, &id(2), NOW).unwrap();
    follow(&connection, &id(2), &lineage(&[(Step::Succeed, 1, 2)], 2), NOW).unwrap().unwrap();
    let another = follow(&connection, &id(3), &lineage(&[(Step::Succeed, 1, 3)], 3), NOW).unwrap();
    assert_eq!(another, Err(Contradiction::Another));
    forget(&connection, &id(2)).unwrap();
    assert_eq!(rows(&connection), 0);
}
