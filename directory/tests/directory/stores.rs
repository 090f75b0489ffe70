//! Both stores by one suite: places, sequences, bans, pages, evidence, runs, decisions, and a log that several writers share.

use std::sync::Arc;
use std::time::Duration;

use openred_directory::config::Mode;
use openred_directory::store::decision::{Author, Change, InviteLine, Kept};
use openred_directory::store::sqlite::SqliteStore;
use openred_directory::store::{
    CardStore, Lack, Logged, NewCard, PreviousRun, Query, Registration, Step, Terms, prove_consistency, prove_inclusion,
};
use openred_proto::checked::succession::{Lineage, Step as Word};
use openred_proto::id::{NodeId, UnixMillis};
use openred_proto::log::{entry, tree};

use crate::cluster::Cluster;
use crate::fixture::Node;
use crate::successions::word;

pub(crate) const NOW: UnixMillis = UnixMillis(1_800_000_000_000);
pub(crate) const DAY: Duration = Duration::from_secs(86_400);

/// Where cards are kept: any number of stores can be opened on it.
enum Ground {
    File(tempfile::TempDir),
    Shared(Arc<Cluster>, String),
}

impl Ground {
    fn each() -> [Self; 2] {
        let cluster = Cluster::shared();
        let url = cluster.database();
        [Self::File(tempfile::tempdir().unwrap()), Self::Shared(cluster, url)]
    }

    fn open(&self) -> Box<dyn CardStore + Send> {
        match self {
            Self::File(folder) => Box::new(SqliteStore::open(&folder.path().join("db"), 64).unwrap()),
            Self::Shared(cluster, url) => Box::new(cluster.open(url)),
        }
    }
}

pub(crate) fn card(number: u32, expires_at: UnixMillis) -> NewCard {
    let mut id = [0; 32];
    id[..4].copy_from_slice(&number.to_be_bytes());
    NewCard {
        node: NodeId::from_bytes(id),
        sequence: 1,
        expires_at,
        listed: true,
        sector: format!("s{}", number % 2),
        methods: 1,
        bytes: number.to_be_bytes().repeat(25),
        lineage: Lineage::default(),
    }
}

#[test]
fn a_place_comes_back_at_the_cards_end_and_the_row_goes_when_no_older_card_can_come() {
    for ground in Ground::each() {
        let mut store = ground.open();
        let (old, new) = (card(1, NOW.plus(DAY)), card(2, NOW.plus(DAY * 60)));
        let register =
            |store: &mut dyn CardStore, card: &NewCard, most| store.register(NOW, card, &Terms::open(most)).unwrap();
        assert_eq!(register(&mut *store, &old, 1), Registration::Stored);
        assert_eq!(register(&mut *store, &old, 1), Registration::Refreshed);
        assert_eq!(register(&mut *store, &new, 1), Registration::Full);
        assert_eq!(store.purge(NOW.plus(DAY)).unwrap(), 0);
        assert_eq!(store.purge(NOW.plus(DAY * 2)).unwrap(), 1, "the card");
        assert_eq!(register(&mut *store, &new, 1), Registration::Stored);
        let older = NewCard { sequence: 0, ..old.clone() };
        assert_eq!(register(&mut *store, &older, 9), Registration::Rollback);
        assert_eq!(register(&mut *store, &old, 1), Registration::Full, "coming back takes a place as well");
        assert_eq!(store.purge(NOW.plus(DAY * 9)).unwrap(), 0, "a card of eight days could still come");
        assert_eq!(store.purge(NOW.plus(DAY * 9).plus(Duration::from_millis(1))).unwrap(), 1, "the row");
        assert_eq!(register(&mut *store, &older, 9), Registration::Stored);
    }
}

#[test]
fn a_ban_by_another_connection_stays_and_gives_the_place_back() {
    for ground in Ground::each() {
        let (mut store, mut other) = (ground.open(), ground.open());
        let author = Author { uid: 7, at: NOW };
        store.register(NOW, &card(1, NOW.plus(DAY)), &Terms::open(1)).unwrap();
        let new = card(2, NOW.plus(DAY * 60));
        assert_eq!(store.register(NOW, &new, &Terms::open(1)).unwrap(), Registration::Full);
        let ban = Change::Ban(card(1, NOW).node, "it's \"spam\"; DROP TABLE nodes; --".into());
        assert!(other.change(&author, &ban).unwrap());
        assert!(!other.change(&author, &ban).unwrap(), "there was one");
        assert_eq!(store.register(NOW, &new, &Terms::open(1)).unwrap(), Registration::Stored);
        while store.purge(NOW.plus(DAY * 30)).unwrap() > 0 {}
        let bans = store.bans().unwrap();
        assert_eq!((bans.nodes.len(), bans.nodes[0].reason.as_str()), (1, "it's \"spam\"; DROP TABLE nodes; --"));
        assert!(store.node(&card(1, NOW).node).unwrap().is_none());
        assert!(other.change(&author, &Change::Unban(card(1, NOW).node)).unwrap());
        let history = store.history(None, 9).unwrap();
        let told: Vec<_> = history.iter().map(|entry| (entry.uid, entry.action.as_str())).collect();
        assert_eq!(told, [(7, "unban"), (7, "ban")]);
    }
}

#[test]
fn a_page_goes_on_where_it_ended_and_looks_at_so_many_rows() {
    for ground in Ground::each() {
        let mut store = ground.open();
        store.begin().unwrap();
        for number in 0..500 {
            let listed = number % 100 != 50;
            store.register(NOW, &NewCard { listed, ..card(number, NOW.plus(DAY)) }, &Terms::open(1000)).unwrap();
        }
        store.commit().unwrap();
        let all = Query { listed_only: true, limit: 64, examine: Some(100), ..Query::default() };
        for (query, pages, found) in [
            (all.clone(), 8, 495),
            (Query { sector: Some("none".into()), ..all.clone() }, 1, 0),
            (Query { sector: Some("s1' OR ''='".into()), ..all.clone() }, 1, 0),
            (Query { sector: Some("s1\0".into()), ..all.clone() }, 1, 0),
            (Query { sector: Some("s1".into()), ..all.clone() }, 4, 250),
            (Query { seen_since: Some(NOW.plus(DAY)), ..all.clone() }, 5, 0),
            (Query { seen_before: Some(NOW), ..all.clone() }, 5, 0),
            (Query { alive_at: Some(NOW.plus(DAY)), examine: None, ..all.clone() }, 1, 0),
            (Query { listed_only: false, examine: None, limit: 1000, ..all }, 1, 500),
        ] {
            let (mut seen, mut asked, mut query) = (Vec::new(), 0, query);
            loop {
                let page = store.page(&query).unwrap();
                asked += 1;
                seen.extend(page.held.iter().map(|held| held.node));
                query.after = page.next;
                if page.next.is_none() {
                    break;
                }
            }
            assert_eq!((asked, seen.len()), (pages, found), "{query:?}");
            assert!(seen.is_sorted(), "{query:?}");
        }
        let counts = store.counts(NOW).unwrap();
        assert_eq!((counts.nodes, counts.fresh), (500, 500));
        assert_eq!(store.stats(NOW, NOW).unwrap().sectors, [("s0".to_owned(), 250), ("s1".to_owned(), 250)]);
    }
}

#[test]
fn when_a_card_came_last_is_known_as_long_as_the_card_is_held() {
    for ground in Ground::each() {
        let mut store = ground.open();
        let at = |hours: u32| NOW.plus(DAY / 24 * hours);
        let terms = Terms::open(9);
        let mut cards: Vec<_> = (0..6).map(|number| card(number, NOW.plus(DAY))).collect();
        let whole = |store: &mut dyn CardStore, nodes: u64, fresh: u64| {
            let (all, since) = (store.counts(UnixMillis(0)).unwrap(), store.counts(at(2)).unwrap());
            assert_eq!((all.nodes, all.fresh, since.fresh), (nodes, nodes, fresh));
            let fresh_ones = Query { seen_since: Some(at(2)), limit: 9, ..Query::default() };
            assert_eq!(store.page(&fresh_ones).unwrap().held.len() as u64, fresh);
        };
        for card in &cards {
            store.register(NOW, card, &terms).unwrap();
        }
        whole(&mut *store, 6, 0);
        assert_eq!(store.register(at(3), &cards[0], &terms).unwrap(), Registration::Refreshed);
        cards[1].sequence = 2;
        assert_eq!(store.register(at(4), &cards[1], &terms).unwrap(), Registration::Stored);
        let mut seen = |number: usize| store.node(&cards[number].node).unwrap().unwrap().last_seen;
        assert_eq!([seen(0), seen(1), seen(2)], [at(3), at(4), NOW]);
        whole(&mut *store, 6, 2);
        assert!(store.withdraw(&cards[0].node).unwrap());
        let author = Author { uid: 0, at: NOW };
        assert!(store.change(&author, &Change::Remove(cards[2].node)).unwrap());
        whole(&mut *store, 4, 1);
        assert_eq!(
            store.register(at(5), &cards[0], &terms).unwrap(),
            Registration::Stored,
            "the same card, after its end"
        );
        whole(&mut *store, 5, 2);
        while store.purge(at(25)).unwrap() > 0 {}
        whole(&mut *store, 0, 0);
    }
}

#[test]
fn two_cards_of_one_sequence_are_evidence_once() {
    for ground in Ground::each() {
        let mut store = ground.open();
        let first = card(1, NOW.plus(DAY));
        store.register(NOW, &first, &Terms::open(9)).unwrap();
        let other = NewCard { bytes: vec![8; 100], ..first.clone() };
        for _ in 0..2 {
            let kept = store.register(NOW, &other, &Terms::open(9)).unwrap();
            assert_eq!(kept, Registration::Equivocation { kept: true });
        }
        assert_eq!(store.node(&first.node).unwrap().unwrap().evidence, 1);
        assert_eq!(store.counts(NOW).unwrap().evidence, 1);
    }
}

#[test]
fn a_run_that_ended_in_order_says_so_to_the_next() {
    for ground in Ground::each() {
        let mut store = ground.open();
        assert_eq!(store.begin_run(NOW).unwrap(), PreviousRun::Never);
        assert_eq!(store.begin_run(NOW).unwrap(), PreviousRun::CutOff);
        store.end_run(77).unwrap();
        assert_eq!(store.begin_run(NOW).unwrap(), PreviousRun::Ended { latest: 77 });
        assert_eq!(store.begin_run(NOW).unwrap(), PreviousRun::CutOff, "said once");
    }
}

/// The log's proofs, and that each card is the entry that it says.
fn log_is_whole(store: &mut dyn CardStore, cards: &[NewCard]) {
    let end = store.log_end().unwrap();
    let root = tree::root(end.size, |position| store.log_hash(position)).unwrap();
    assert_eq!(root, end.root);
    for card in cards {
        let held = store.node(&card.node).unwrap().expect("no card is lost");
        assert_eq!(held.card, card.bytes);
        let leaf = tree::leaf_hash(&entry(&card.bytes, held.logged.salt.as_ref()));
        let proof = prove_inclusion(store, held.logged.index, end.size).unwrap().unwrap();
        tree::verify_inclusion(held.logged.index, end.size, &leaf, &proof, &end.root).unwrap();
    }
}

#[test]
fn a_group_holds_as_a_whole_or_leaves_nothing() {
    for ground in Ground::each() {
        let (mut store, mut other) = (ground.open(), ground.open());
        let cards: Vec<_> =
            (0..9).map(|number| NewCard { listed: number % 3 > 0, ..card(number, NOW.plus(DAY)) }).collect();
        store.begin().unwrap();
        for card in &cards[..4] {
            store.register(NOW, card, &Terms::open(5)).unwrap();
        }
        assert_eq!(other.log_end().unwrap().size, 0, "nobody sees what is not durable");
        store.roll_back();
        assert_eq!((store.log_end().unwrap().size, store.node(&cards[0].node).unwrap()), (0, None));
        store.begin().unwrap();
        for card in &cards[..4] {
            assert_eq!(store.register(NOW, card, &Terms::open(5)).unwrap(), Registration::Stored);
        }
        store.commit().unwrap();
        let then = other.log_end().unwrap();
        assert_eq!(then.size, 4);
        assert_eq!(other.register(NOW, &cards[4], &Terms::open(5)).unwrap(), Registration::Stored);
        assert_eq!(store.register(NOW, &cards[5], &Terms::open(5)).unwrap(), Registration::Full);
        let newer = NewCard { sequence: 2, bytes: vec![9; 50], ..cards[0].clone() };
        assert_eq!(store.register(NOW, &newer, &Terms::open(5)).unwrap(), Registration::Stored);
        let now = store.log_end().unwrap();
        let proof = prove_consistency(&mut *other, then.size, now.size).unwrap().unwrap();
        tree::verify_consistency(then.size, now.size, &then.root, &now.root, &proof).unwrap();
        assert_eq!(prove_consistency(&mut *other, 1, now.size + 1).unwrap(), None);
        log_is_whole(&mut *store, &[&[newer][..], &cards[1..5]].concat());
    }
}

/// Two directories, each with a connection of its own, take the same nodes and others at the same time.
#[test]
fn writers_that_race_fork_no_log_and_lose_no_card() {
    const EACH: u32 = 60;
    for ground in Ground::each() {
        let race = |mut store: Box<dyn CardStore + Send>, first: u32| {
            move || {
                let mut stored = 0;
                for number in first..first + EACH {
                    let card = card(number, NOW.plus(DAY));
                    // The file's second writer may be told to come again; a group is asked for as a whole.
                    let taken = loop {
                        if let Err(error) = store.begin() {
                            assert_eq!(error.to_string(), "database: busy");
                            continue;
                        }
                        let taken = store.register(NOW, &card, &Terms::open(1000)).unwrap();
                        store.commit().unwrap();
                        break taken;
                    };
                    stored += u64::from(taken == Registration::Stored);
                }
                stored
            }
        };
        // Half of what each takes is the other's as well.
        let writers = [0, EACH / 2].map(|first| std::thread::spawn(race(ground.open(), first)));
        let stored: u64 = writers.into_iter().map(|writer| writer.join().unwrap()).sum();
        let all: Vec<_> = (0..EACH + EACH / 2).map(|number| card(number, NOW.plus(DAY))).collect();
        let mut store = ground.open();
        assert_eq!((stored, store.log_end().unwrap().size), (all.len() as u64, all.len() as u64));
        log_is_whole(&mut *store, &all);
        let mut places: Vec<_> = all.iter().map(|card| store.node(&card.node).unwrap().unwrap().logged.index).collect();
        places.sort_unstable();
        assert!(places.into_iter().eq(0..all.len() as u64), "one entry each");
    }
}

fn invite(uses: u32) -> InviteLine {
    let (made_at, not_after) = (NOW.0, NOW.plus(DAY).0);
    InviteLine { hash: [uses as u8; 32], uses, used: 0, made_at, not_after, revoked: false, note: "for B's".into() }
}

#[test]
fn decisions_admit_and_are_taken_elsewhere() {
    for (ground, elsewhere) in Ground::each().into_iter().zip(Ground::each()) {
        let (mut store, author) = (ground.open(), Author { uid: 0, at: NOW });
        let by = |mode, invite| Terms { mode, invite, ..Terms::open(9) };
        let card = |number| card(number, NOW.plus(DAY));
        assert!(store.change(&author, &Change::Invite(invite(1))).unwrap());
        let mut register = |card: &NewCard, terms: &Terms| store.register(NOW, card, terms).unwrap();
        let invited = by(Mode::Invite, Some([1; 32]));
        assert_eq!(register(&card(1), &by(Mode::Invite, None)), Registration::NotAdmitted(Lack::Invite));
        assert_eq!(register(&card(1), &invited), Registration::Stored);
        assert_eq!(register(&card(1), &by(Mode::Invite, None)), Registration::Refreshed);
        assert_eq!(register(&card(2), &invited), Registration::NotAdmitted(Lack::InviteSpent));
        assert_eq!(
            register(&card(2), &by(Mode::Invite, Some([9; 32]))),
            Registration::NotAdmitted(Lack::InviteUnknown)
        );
        assert_eq!(register(&card(3), &by(Mode::Approval, None)), Registration::Quarantined);
        let waiting = Query { quarantined_only: true, limit: 9, ..Query::default() };
        assert_eq!(store.page(&waiting).unwrap().held[0].node, card(3).node);
        assert!(store.change(&author, &Change::Approve(card(3).node)).unwrap());
        assert!(!store.node(&card(3).node).unwrap().unwrap().quarantined);
        for change in [
            Change::Ban(card(4).node, "a".into()),
            Change::BanPrefix("192.0.2.0/24".parse().unwrap(), "b".into()),
            Change::Invite(invite(2)),
            Change::Revoke([2; 32]),
            Change::Import(3),
        ] {
            assert!(store.change(&author, &change).unwrap(), "{change:?}");
        }
        assert!(!store.change(&author, &Change::Revoke([2; 32])).unwrap());
        assert_eq!(
            store.invites().unwrap().iter().map(|invite| invite.state(NOW)).collect::<Vec<_>>(),
            ["spent", "revoked"]
        );
        let kept = in_pieces(&mut *store);
        let mut target = elsewhere.open();
        for record in &kept {
            assert_eq!(target.restore(record).unwrap(), !matches!(record, Kept::Card { .. }), "{record:?}");
            assert!(!target.restore(record).unwrap(), "once");
        }
        let others = kept.iter().filter(|record| !matches!(record, Kept::Card { .. }));
        assert!(in_pieces(&mut *target).iter().eq(others));
        assert!(store.change(&author, &Change::Remove(card(3).node)).unwrap());
        assert!(store.node(&card(3).node).unwrap().is_none());
        let stats = store.stats(NOW, NOW).unwrap();
        assert_eq!((stats.counts.nodes, stats.counts.bans, stats.tombstones, stats.invites_open), (1, 2, 1, 0));
        assert_eq!((stats.listed, stats.new_today, stats.admitted, stats.changes), (1, 1, 1, 8));
    }
}

#[test]
fn neither_a_ban_nor_a_removal_ends_with_a_new_name() {
    for ground in Ground::each() {
        let (mut store, author) = (ground.open(), Author { uid: 0, at: NOW });
        let nodes: Vec<Node> = (1..=4).map(Node::new).collect();
        // Each goes on for the one before it.
        let card = |place: usize, sequence| {
            let said = |to: usize| word(Word::Succeed, &nodes[to - 1], &nodes[to], NOW.0 + to as u64);
            let words: Vec<Vec<u8>> = (1..=place).map(said).collect();
            let lineage = Lineage::verify(words.iter().map(Vec::as_slice), nodes[place].id()).unwrap();
            NewCard { node: nodes[place].id(), sequence, lineage, ..card(place as u32, NOW.plus(DAY)) }
        };
        let outcome = |store: &mut dyn CardStore, card: &NewCard, mode| {
            store.register(NOW, card, &Terms { mode, ..Terms::open(9) }).unwrap()
        };
        let out = Registration::NotAdmitted(Lack::Invite);
        assert!(store.change(&author, &Change::Approve(nodes[0].id())).unwrap());
        assert_eq!(outcome(&mut *store, &card(0, 1), Mode::Invite), Registration::Stored);
        assert_eq!(
            outcome(&mut *store, &card(1, 1), Mode::Invite),
            Registration::Stored,
            "it goes on for one that is in"
        );
        assert!(store.change(&author, &Change::Remove(nodes[1].id())).unwrap());
        assert_eq!(outcome(&mut *store, &card(1, 2), Mode::Invite), out, "what let the first one in went with it");
        assert_eq!(outcome(&mut *store, &card(2, 1), Mode::Invite), out);
        assert!(store.change(&author, &Change::Approve(nodes[1].id())).unwrap());
        assert_eq!(outcome(&mut *store, &card(1, 2), Mode::Invite), Registration::Stored);
        for banned in [0, 1] {
            let ban = Change::Ban(nodes[banned].id(), String::new());
            assert!(store.change(&author, &ban).unwrap());
            assert_eq!(outcome(&mut *store, &card(2, 1), Mode::Invite), out, "{banned} is banned");
            assert_eq!(outcome(&mut *store, &card(2, 1), Mode::Work), Registration::NotAdmitted(Lack::Work));
            assert!(store.change(&author, &Change::Unban(nodes[banned].id())).unwrap());
        }
        assert_eq!(outcome(&mut *store, &card(2, 1), Mode::Invite), Registration::Stored);
        assert!(store.change(&author, &Change::Ban(nodes[2].id(), String::new())).unwrap());
        assert_eq!(outcome(&mut *store, &card(3, 1), Mode::Approval), Registration::Quarantined);
    }
}

#[test]
fn who_goes_on_for_another_takes_its_place_and_no_second() {
    for ground in Ground::each() {
        let mut store = ground.open();
        let nodes: Vec<Node> = (1..=4).map(Node::new).collect();
        for place in 0..4 {
            let said = |to: usize| word(Word::Succeed, &nodes[to - 1], &nodes[to], NOW.0 + to as u64);
            let words: Vec<Vec<u8>> = (1..=place).map(said).collect();
            let lineage = Lineage::verify(words.iter().map(Vec::as_slice), nodes[place].id()).unwrap();
            let card = NewCard { node: nodes[place].id(), lineage, ..card(place as u32, NOW.plus(DAY)) };
            // The older card stays until the newer one has been taken.
            assert_eq!(store.register(NOW, &card, &Terms::open(2)).unwrap(), Registration::Stored, "{place}");
        }
        assert_eq!(store.counts(NOW).unwrap().nodes, 1);
        assert_eq!(store.register(NOW, &card(9, NOW.plus(DAY)), &Terms::open(2)).unwrap(), Registration::Stored);
        assert_eq!(store.register(NOW, &card(8, NOW.plus(DAY)), &Terms::open(2)).unwrap(), Registration::Full);
    }
}

#[test]
fn rows_without_a_card_count_where_a_page_looks_at_so_many() {
    for ground in Ground::each() {
        let mut store = ground.open();
        store.begin().unwrap();
        for number in 0..100 {
            store.register(NOW, &card(number, NOW.plus(DAY)), &Terms::open(1000)).unwrap();
            if number != 90 {
                assert!(store.withdraw(&card(number, NOW).node).unwrap());
            }
        }
        store.commit().unwrap();
        let mut query = Query { limit: 9, examine: Some(40), ..Query::default() };
        let mut pages = Vec::new();
        loop {
            let page = store.page(&query).unwrap();
            pages.push((page.held.len(), page.next));
            match page.next {
                Some(next) => query.after = Some(next),
                None => break,
            }
        }
        let node = |number| Some(card(number, NOW).node);
        assert_eq!(pages, [(0, node(39)), (0, node(79)), (1, None)]);
        let all = store.page(&Query { examine: None, after: None, ..query }).unwrap();
        assert_eq!((all.held.len(), all.next), (1, None));
    }
}

#[test]
fn a_row_whose_time_is_over_accuses_no_directory() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = SqliteStore::open(&folder.path().join("db"), 64).unwrap();
    let first = NewCard { sequence: 9, ..card(1, NOW.plus(DAY)) };
    let older = NewCard { sequence: 1, bytes: vec![1], ..card(1, NOW.plus(DAY * 30)) };
    let step = |index, card: &NewCard| Step {
        directory: Node::new(9).id(),
        leaves: vec![tree::leaf_hash(&entry(&card.bytes, None))],
        cards: vec![(card.clone(), Logged { index, salt: None }, NOW)],
        head: None,
    };
    store.begin().unwrap();
    assert_eq!(store.follow(NOW, &step(0, &first)).unwrap(), None);
    store.commit().unwrap();
    assert_eq!(store.purge(NOW.plus(DAY * 2)).unwrap(), 1, "its card has ended");
    // The mirrored directory drops a row eight days and some hours after its card's end, and its mirrors at times of their own.
    for (days, contradicted) in [(0, Some(first.node)), (9, Some(first.node)), (10, None)] {
        store.begin().unwrap();
        assert_eq!(store.follow(NOW.plus(DAY * days), &step(1, &older)).unwrap(), contradicted, "after {days} days");
        store.roll_back();
    }
}

#[test]
fn one_node_does_not_fill_the_evidence() {
    for ground in Ground::each() {
        let mut store = ground.open();
        let mut twice = |number, sequence| {
            let card = NewCard { sequence, ..card(number, NOW.plus(DAY)) };
            store.register(NOW, &card, &Terms::open(9)).unwrap();
            store.register(NOW, &NewCard { bytes: vec![1], ..card }, &Terms::open(9)).unwrap()
        };
        for sequence in 1..=4 {
            assert_eq!(twice(1, sequence), Registration::Equivocation { kept: true });
        }
        assert_eq!(twice(1, 5), Registration::Equivocation { kept: false });
        assert_eq!(twice(2, 1), Registration::Equivocation { kept: true });
        assert_eq!(store.counts(NOW).unwrap().evidence, 5);
    }
}

/// Everything that can be taken away, two records at a time.
fn in_pieces(store: &mut dyn CardStore) -> Vec<Kept> {
    let mut all: Vec<Kept> = Vec::new();
    loop {
        let piece = store.kept(all.last(), 2).unwrap();
        if piece.is_empty() {
            return all;
        }
        all.extend(piece);
    }
}
