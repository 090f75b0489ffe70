//! What a NATS server says to a replica of a directory, and letters between replicas: sealed by anybody, and by another replica that has
//! the same identity and says what it should not.

use std::sync::{Arc, OnceLock};

use openred_directory::config::Config;
use openred_directory::identity::Identity;
use openred_directory::limits::{LETTER_BYTES, RUNS};
use openred_directory::replicas::message::{Answer, Copied, Letter, Word};
use openred_directory::replicas::nats::{self, Garbled, Reader, Said};
use openred_directory::replicas::seal::Keys;
use openred_directory::replicas::{Outbox, Replicas};
use openred_directory::route::Kind;
use openred_directory::state::{Directory, Remembered};
use openred_directory::store::decision::Bans;
use openred_directory::store::sqlite::SqliteStore;
use openred_directory::store::{PreviousRun, StoreHandle};
use openred_proto::id::{NodeId, UnixMillis};
use openred_proto::limits::OFFER_IN_DIRECTORY;

use crate::records::{NOW, choice};

/// What the replicas share.
const SEED: [u8; 32] = [7; 32];
/// Items that the directory keeps: few, so that a list of letters fills it.
const ITEMS: u32 = 8;
/// The subscription that a replica has for letters to all.
const ALL: u64 = 1;

/// Reads bytes as each of these.
pub(crate) fn replicas(bytes: &[u8]) {
    let (which, bytes) = choice(bytes, 4);
    match which {
        0 => server(bytes),
        1 => sealed(bytes),
        2 => {
            if let Some(letter) = Letter::decode(bytes) {
                let written = letter.encode();
                assert_eq!(Letter::decode(&written).as_ref(), Some(&letter));
                assert!(written.len() + 64 <= LETTER_BYTES, "{} bytes fit into no letter", written.len());
            }
        }
        _ => heard(bytes),
    }
}

/// All that a server says, cut into pieces of this length; whether it ends in garbage.
fn said(bytes: &[u8], piece: usize) -> (Vec<Said>, Option<Garbled>) {
    let (mut reader, mut all) = (Reader::default(), Vec::new());
    for piece in bytes.chunks(piece) {
        reader.feed(piece);
        loop {
            match reader.said() {
                Ok(Some(one)) => all.push(one),
                Ok(None) => break,
                Err(garbled) => return (all, Some(garbled)),
            }
        }
    }
    (all, None)
}

/// What comes is the same however it is cut, and nobody without the keys has a letter opened.
fn server(bytes: &[u8]) {
    let (piece, bytes) = choice(bytes, 32);
    let (all, garbled) = said(bytes, usize::from(piece) + 1);
    let whole = said(bytes, bytes.len().max(1));
    assert_eq!((&all, &garbled), (&whole.0, &whole.1), "in pieces of {}", piece + 1);
    let keys = Keys::derive(&SEED);
    for one in all {
        if let Said::Message(_, letter) = one {
            assert!(letter.len() <= LETTER_BYTES);
            assert_eq!(keys.open(keys.to_all(), &letter), None, "no replica sealed it");
        }
    }
}

/// What was sealed comes back as it was, on its subject alone and unbent alone.
fn sealed(bytes: &[u8]) {
    let (keys, (place, plain)) = (Keys::derive(&SEED), choice(bytes, u8::MAX));
    assert_eq!(keys.open(keys.to_all(), bytes), None, "no replica sealed it");
    let mut letter = keys.seal(keys.to_all(), plain).unwrap();
    assert_eq!(keys.open(keys.to_all(), &letter).as_deref(), Some(plain));
    assert_eq!(keys.open(&keys.to_one(&[place; 16]), &letter), None);
    let mut stream = Vec::new();
    nats::publish(&mut stream, keys.to_all(), &letter);
    assert!(stream.ends_with(&[&letter[..], b"\r\n"].concat()));
    let place = usize::from(place) % letter.len();
    letter[place] ^= 1;
    assert_eq!(keys.open(keys.to_all(), &letter), None, "byte {place} is another");
}

/// A directory among replicas, with nothing in it. Its database is there and never asked.
fn directory() -> (Arc<Directory>, Arc<Replicas>, Outbox) {
    static STORE: OnceLock<StoreHandle> = OnceLock::new();
    let store = STORE.get_or_init(|| {
        let folder = std::env::temp_dir().join(format!("openred-fuzz-replicas-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let database = folder.join("database");
        let writer = SqliteStore::open(&database, 64).unwrap();
        let store = StoreHandle::start(writer, [SqliteStore::open_reader(&database).unwrap()]).unwrap();
        std::fs::remove_dir_all(folder).unwrap();
        store
    });
    let mut config = Config::default();
    config.limits.offers = ITEMS;
    let remembered = Remembered { bans: Bans::default(), before: PreviousRun::Never };
    let (identity, clock) = (Identity::from_seed(&SEED), Arc::new(|| NOW));
    let directory = Directory::new(&config, identity, "https://x".into(), store.clone(), remembered, clock);
    let (replicas, words) = Replicas::new("a", 0, Keys::derive(&SEED)).unwrap();
    directory.mailboxes().share(0, Arc::default());
    (directory, replicas, words)
}

/// What another replica says keeps within this one's bounds, whatever it is; a letter that comes twice changes nothing the second time.
/// Each letter stands behind a byte (who says it, whether its time and its number are its own, whether its recipients' mailboxes are read) and its length.
fn heard(mut bytes: &[u8]) {
    let (directory, replicas, _words) = directory();
    let mut count = 0;
    while let Some((&[how, high, low], rest)) = bytes.split_first_chunk::<3>() {
        let length = usize::from(u16::from_be_bytes([high, low])).min(rest.len());
        let (letter, rest) = rest.split_at(length);
        bytes = rest;
        let Some(mut letter) = Letter::decode(letter) else { continue };
        letter.run = [how % 3; 16];
        if how & 0x10 == 0 {
            count += 1;
            (letter.count, letter.at) = (count, NOW.0);
        }
        let reads = match &letter.word {
            Word::Item(item) if how & 0x20 != 0 => Some(item.recipient),
            _ => None,
        };
        let reader = reads.map(|node| directory.mailboxes().read(node, letter.count));
        for (_, word) in replicas.hear(&directory, letter.clone()) {
            let answer = Letter { run: [9; 16], number: u16::MAX, count: u64::MAX, at: u64::MAX, word }.encode();
            assert!(
                answer.len() + 64 <= LETTER_BYTES && Letter::decode(&answer).is_some(),
                "it answers with no letter"
            );
        }
        if let Some(reader) = reader {
            let _ = directory.mailboxes().poll(NOW, &reader, letter.at);
        }
        let keys = kept(&directory, &replicas);
        assert!(replicas.hear(&directory, letter).is_empty(), "a letter is answered once");
        assert_eq!(kept(&directory, &replicas), keys, "a letter that comes twice says nothing");
    }
}

/// The keys of all that waits, which is within its bounds.
fn kept(directory: &Directory, replicas: &Replicas) -> Vec<[u8; 16]> {
    let mailboxes = directory.mailboxes();
    let mut keys = mailboxes.keys();
    keys.sort_unstable();
    assert!(keys.len() <= ITEMS as usize, "{} items wait", keys.len());
    assert!(mailboxes.find(&keys).iter().all(|(_, item)| item.until <= NOW.plus(OFFER_IN_DIRECTORY)));
    drop(mailboxes);
    assert!(replicas.view().others.len() <= RUNS);
    keys
}

/// Real inputs.
pub(crate) fn corpus() -> Vec<(String, Vec<u8>)> {
    let node = |number| NodeId::from_bytes([number; 32]);
    let item = |recipient, kind| {
        let (from, until) = (node(1), NOW.plus(OFFER_IN_DIRECTORY).0);
        let copied =
            Copied { recipient, kind, from, token_id: [3; 32], payload: vec![5; 60], until, sent: true, ask: Some(4) };
        Word::Item(Box::new(copied))
    };
    let offer = item(node(2), Kind::Offer);
    let key = openred_directory::route::key_of(&node(2), Kind::Offer, &node(1), &[3; 32]);
    let words = [
        Word::Beat { name: "b".into(), hello: true },
        offer,
        item(node(1), Kind::Receipt),
        Word::Answer { ask: 0, answer: Answer { taken: true, reads: true } },
        Word::Have(vec![key, [7; 16]]),
        Word::Want(vec![key]),
        Word::Shown(vec![(node(2), key, 1 << 50)]),
        Word::Reads { node: node(2), at: NOW.0 },
        Word::Done(vec![(node(2), key)]),
        Word::Changed,
        Word::Bye,
    ];
    let at = |UnixMillis(at), count, word| Letter { run: [1; 16], number: 1, count, at, word }.encode();
    let letters: Vec<Vec<u8>> = (1..).zip(words).map(|(count, word)| at(NOW, count, word)).collect();
    let list = |how: &[u8]| {
        let framed = letters.iter().zip(how.iter().cycle()).flat_map(|(letter, how)| {
            let length = u16::try_from(letter.len()).unwrap().to_be_bytes();
            [&[*how][..], &length, letter].concat()
        });
        [3].into_iter().chain(framed).collect::<Vec<u8>>()
    };
    let server = format!(
        "INFO {{\"tls_required\":false,\"max_payload\":1048576}}\r\n+OK\r\nPONG\r\nMSG {} {ALL} 5\r\nhello\r\nPING\r\nMSG a {ALL} to 0\r\n\r\n-ERR 'no'\r\n",
        Keys::derive(&SEED).to_all()
    );
    let mut inputs = vec![
        [&[0, 6][..], server.as_bytes()].concat(),
        [&[1, 40][..], &letters[1]].concat(),
        list(&[1]),
        list(&[0x10]),
        list(&[0x21, 0x22]),
    ];
    inputs.extend(letters.iter().map(|letter| [&[2][..], letter].concat()));
    crate::corpus::numbered(inputs)
}
