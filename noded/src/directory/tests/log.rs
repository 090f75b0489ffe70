//! The checks of a directory's log against one that is played: what is proven, what is only noticed, what is asked for again, and what is
//! nobody's fault.

use axum::extract::RawQuery;
use ed25519_dalek::{Signer as _, SigningKey};
use openred_proto::log::head::Head;
use openred_proto::log::heads::Heads;
use openred_proto::log::tree::{Frontier, prove_consistency, prove_inclusion};
use openred_proto::log::{Hash, Salt, entry};

use super::super::honesty::Lie;
use super::super::log::Place;
use super::*;

const SEED: [u8; 32] = [0xd1; 32];
const SALT: Salt = [4; 16];

/// The log that a directory shows, and how it answers for it.
#[derive(Clone, Default)]
pub(super) struct Played {
    entries: Vec<Vec<u8>>,
    /// It refuses heads, or proofs, with this.
    no_head: Option<u16>,
    no_proof: Option<u16>,
    /// Its proofs lead nowhere.
    bent: bool,
}

impl Played {
    fn of(entries: impl IntoIterator<Item = u8>) -> Self {
        Self { entries: entries.into_iter().map(|number| vec![number]).collect(), ..Self::default() }
    }

    /// Every hash by its position, and the root over the first `size`.
    fn hashes(&self, size: usize) -> (Vec<Hash>, Hash) {
        let (mut held, mut log) = (Vec::new(), Frontier::default());
        self.entries[..size].iter().for_each(|entry| held.extend(log.append(entry)));
        (held, log.root())
    }

    fn head(&self, seed: &[u8; 32]) -> Bytes {
        let key = SigningKey::from_bytes(seed);
        let directory = NodeId::from_bytes(key.verifying_key().to_bytes());
        let head = Head { directory, size: self.entries.len() as u64, root: self.hashes(self.entries.len()).1 };
        head.note(&key.sign(head.text().as_bytes()).to_bytes()).into_bytes().into()
    }

    /// A proof by two numbers, or none for what goes beyond the log.
    fn prove(&self, call: &str, first: u64, second: u64) -> Option<Vec<Hash>> {
        let size = usize::try_from(second).ok().filter(|size| *size <= self.entries.len() && first <= second)?;
        let (held, _) = self.hashes(size);
        let read = |position: u64| Ok::<_, ()>(held[position as usize]);
        let proof = match call {
            "inclusion" => prove_inclusion(first, second, read),
            _ => prove_consistency(first, second, read),
        };
        let mut proof = proof.unwrap();
        if self.bent {
            proof.iter_mut().for_each(|hash| hash[0] ^= 1);
        }
        Some(proof)
    }
}

pub(super) async fn answer(
    State(script): State<Arc<Script>>,
    Path(call): Path<String>,
    RawQuery(query): RawQuery,
) -> Response {
    let played = lock(&script.log).clone();
    let refused = |status: u16| StatusCode::from_u16(status).unwrap().into_response();
    if call == "head" {
        let head = || String::from_utf8(played.head(&SEED).to_vec()).unwrap();
        return played
            .no_head
            .map_or_else(|| axum::Json(serde_json::json!({ "head": head() })).into_response(), refused);
    }
    if let Some(status) = played.no_proof {
        return refused(status);
    }
    let query = query.unwrap();
    let mut numbers = query.split('&').map(|pair| pair.split_once('=').unwrap().1.parse::<u64>().unwrap());
    match played.prove(&call, numbers.next().unwrap(), numbers.next().unwrap()) {
        Some(proof) => {
            let proof: Vec<String> = proof.iter().map(|hash| wire::encode(hash)).collect();
            axum::Json(serde_json::json!({ "proof": proof })).into_response()
        }
        None => refused(422),
    }
}

impl Stage {
    /// Whose directory shows this log, and was looked at once.
    async fn showing(played: Played) -> Self {
        let stage = Self::new(Script::default()).await;
        stage.shows(played);
        assert!(stage.look().await);
        assert_eq!(stage.lies(), [""; 0]);
        stage
    }

    fn shows(&self, played: Played) {
        *lock(&self.script.log) = played;
    }

    fn client(&self) -> &Client {
        &self.directories.clients[0]
    }

    /// One look at the log; false when it is to be repeated soon.
    async fn look(&self) -> bool {
        self.directories.look(self.client()).await
    }

    /// What is proven against the directory, by its name.
    fn lies(&self) -> Vec<&'static str> {
        let kept = self.directories.honesty.evidence(&LIAR);
        kept.iter().map(|evidence| Lie::from_number(evidence.lie).unwrap().name()).collect()
    }

    /// Entries of the last head that was checked.
    fn checked(&self) -> u64 {
        self.client().watch.checked().0
    }

    /// A peer hands these heads over.
    fn told(&self, notes: &[&Bytes]) {
        let heads = Heads { notes: notes.iter().map(|note| note.to_vec()).collect() };
        self.directories.take_heads(self.peer, &heads.encode());
    }

    /// The directory gave the peer's older card, and said that it stands there.
    fn gave(&self, place: Option<Place>) {
        let bytes = self.cards[0].clone();
        self.client().watch.gave(&Card::verify(&bytes, clock::now()).unwrap(), bytes, place);
    }
}

#[tokio::test]
async fn a_log_that_grows_is_followed_and_a_refusal_is_no_lie() {
    let stage = Stage::showing(Played::of(0..3)).await;
    assert_eq!(stage.checked(), 3);
    stage.shows(Played::of(0..5));
    assert!(stage.look().await);
    assert_eq!(stage.checked(), 5);
    let notes = Heads::decode(&stage.directories.own_heads().await.unwrap()).unwrap().notes;
    assert_eq!(notes, [Played::of(0..5).head(&SEED).to_vec()], "peers are told what was checked");
    // Busy is nothing; an answer that is none is noticed, until there is one.
    stage.shows(Played { no_head: Some(503), ..Played::of(0..9) });
    assert!(stage.look().await);
    assert!(stage.conditions().is_empty());
    for played in
        [Played { no_head: Some(404), ..Played::of(0..9) }, Played { no_proof: Some(500), ..Played::of(0..9) }]
    {
        stage.shows(played);
        assert!(stage.look().await);
        assert_eq!((stage.conditions(), stage.checked()), (vec!["directory.doubtful".to_owned()], 5));
    }
    stage.shows(Played::of(0..9));
    assert!(stage.look().await);
    assert!(stage.conditions().is_empty() && stage.lies().is_empty());
    assert_eq!(stage.checked(), 9);
}

#[tokio::test]
async fn a_shorter_log_is_a_lie_when_it_is_shown_twice() {
    let stage = Stage::showing(Played::of(0..5)).await;
    for _ in 0..2 {
        stage.shows(Played::of(0..2));
        assert!(!stage.look().await, "two answers may pass each other: it is asked again");
        stage.shows(Played::of(0..5));
        assert!(stage.look().await);
    }
    assert!(stage.lies().is_empty());
    stage.shows(Played::of(0..2));
    assert!(!stage.look().await);
    assert!(stage.look().await);
    assert_eq!(stage.lies(), ["rolled-back-log"]);
    assert_eq!((stage.conditions(), stage.checked()), (vec!["directory.dishonest".to_owned()], 5));
}

#[tokio::test]
async fn a_log_that_does_not_go_on_from_the_last_head_is_rewritten() {
    let otherwise = || Played::of(10..13);
    let cases = [
        ("of one size, and another", otherwise()),
        ("longer, and another", Played::of(10..19)),
        ("the same, with proofs that lead nowhere", Played { bent: true, ..Played::of(0..9) }),
        ("signed, and not so far", Played { no_proof: Some(422), ..Played::of(0..9) }),
    ];
    for (what, played) in cases {
        let stage = Stage::showing(Played::of(0..3)).await;
        let notes = [Played::of(0..3).head(&SEED), played.head(&SEED)];
        stage.shows(played);
        assert!(stage.look().await, "{what}");
        assert_eq!(stage.lies(), ["rewritten-log"], "{what}");
        let kept = stage.directories.honesty.evidence(&LIAR);
        assert_eq!([&kept[0].first[..], &kept[0].second[..]], [&notes[0][..], &notes[1][..]], "{what}: both are kept");
        // It stays caught, by one piece of evidence.
        stage.look().await;
        assert_eq!(stage.lies().len(), 1, "{what}");
    }
}

#[tokio::test]
async fn heads_of_peers_are_held_against_what_is_shown_here() {
    let stage = Stage::showing(Played::of(0..5)).await;
    // Part of the same log; not its own; of nobody that is used here; no heads at all.
    let (ours, foreign) = (Played::of(0..3).head(&SEED), Played::of(0..9).head(&[0xd2; 32]));
    let unsigned = Bytes::from(String::from_utf8(ours.to_vec()).unwrap().replace("\n3\n", "\n9\n"));
    assert_ne!(unsigned, ours);
    stage.told(&[&ours, &foreign, &unsigned]);
    stage.directories.take_heads(stage.peer, b"no heads");
    assert!(stage.look().await);
    assert!(stage.lies().is_empty() && stage.conditions().is_empty());
    // One that cannot be held against anything now waits until it can.
    let longer = Played::of(0..7).head(&SEED);
    stage.shows(Played { no_head: Some(503), ..Played::of(0..5) });
    stage.told(&[&longer]);
    assert!(stage.look().await);
    assert!(stage.lies().is_empty());
    stage.shows(Played::of(0..7));
    assert!(stage.look().await);
    assert!(stage.lies().is_empty(), "it has come so far meanwhile");
    for other in [Played::of(0..9), Played::of(20..24)] {
        let stage = Stage::showing(Played::of(0..7)).await;
        stage.told(&[&other.head(&SEED)]);
        assert!(stage.look().await);
        assert_eq!(stage.lies(), ["two-faces"]);
    }
}

#[tokio::test]
async fn a_mirror_is_held_to_no_head() {
    let stage = Stage::showing(Played::of(0..5)).await;
    stage.client().stands(Standing::Refused(DirectoryError::Mirror));
    stage.told(&[&Played::of(0..9).head(&SEED)]);
    stage.shows(Played::of(0..2));
    assert!(stage.look().await && stage.look().await);
    assert!(stage.lies().is_empty());
    // What it was told as a mirror is forgotten.
    stage.client().stands(Standing::Registered);
    stage.shows(Played::of(0..5));
    assert!(stage.look().await);
    assert!(stage.lies().is_empty());
}

#[tokio::test]
async fn a_card_stands_in_the_log_where_it_is_said_to_or_is_asked_for_again_and_noticed() {
    let stage = Stage::showing(Played::of(0..3)).await;
    let doubtful = || stage.conditions() == ["directory.doubtful"];
    // It is not listed: without a salt it is said to stand nowhere.
    for nowhere in [None, Some(Place { index: 1, salt: None })] {
        stage.gave(nowhere);
        assert!(stage.look().await);
        assert!(doubtful());
    }
    let place = Some(Place { index: 3, salt: Some(SALT) });
    let mut played = Played::of(0..3);
    played.entries.push(entry(&stage.cards[0], Some(&SALT)).to_vec());
    stage.shows(played.clone());
    stage.gave(place);
    assert!(stage.look().await);
    assert!(stage.conditions().is_empty(), "found: the doubt is settled");
    // Where the log has not come so far, it is looked for three times.
    let stage = Stage::showing(Played::of(0..3)).await;
    stage.gave(place);
    assert!(!stage.look().await);
    assert!(!stage.look().await);
    assert!(stage.conditions().is_empty());
    assert!(stage.look().await);
    assert_eq!(stage.conditions(), ["directory.doubtful"]);
    // A proof that leads elsewhere is a lie: it signed for the root.
    for lie in [Played { bent: true, ..played.clone() }, Played::of(0..4)] {
        let stage = Stage::showing(lie).await;
        stage.gave(place);
        assert!(stage.look().await);
        assert_eq!(stage.lies(), ["forged-inclusion"]);
    }
}

#[tokio::test]
async fn a_head_that_it_did_not_sign_and_its_own_older_card_are_lies_by_name() {
    let stage = Stage::showing(Played::of(0..3)).await;
    let card =
        async || stage.directories.keys.sign_card(CardFields::default(), MethodSet::ALL, DAY).await.unwrap().statement;
    let (older, newer) = (card().await, card().await);
    stage.client().watch.took(newer.clone());
    stage.says(&[&older]);
    assert!(stage.look().await);
    assert_eq!(stage.lies(), ["replay"]);
    let mut changed = newer.to_vec();
    *changed.last_mut().unwrap() ^= 1;
    stage.says(&[&changed.into()]);
    assert!(stage.look().await);
    assert_eq!(stage.lies(), ["replay", "swapped-card"]);
    stage.says(&[&newer]);
    assert!(stage.look().await);
    assert_eq!(stage.lies().len(), 2, "its own card, as it is, is none");
}

#[tokio::test]
async fn another_directorys_newer_card_is_asked_for_and_an_older_answer_noticed() {
    let stage = Stage::showing(Played::of(0..3)).await;
    let [older, newer] = &stage.cards;
    stage.says(&[newer]);
    stage.directories.look_up(stage.peer, Keep::Card).await.unwrap();
    stage.says(&[older]);
    for _ in 0..2 {
        stage.client().watch.cross(stage.peer);
    }
    assert!(stage.look().await);
    assert_eq!(stage.conditions(), ["directory.doubtful"]);
    assert!(stage.lies().is_empty(), "who is behind has signed nothing that contradicts it");
}
