//! What replicas say to each other for each thing that somebody does, counted: every letter is read off the real NATS server by somebody who
//! has the replicas' key. docs/directory.md («Scale out») says the same numbers, and is held to them.

use std::collections::BTreeMap;

use openred_directory::replicas::message::{Letter, RunId, Word};
use openred_directory::replicas::seal::Keys;

use crate::cluster::wait_for;
use crate::fixture::Node;
use crate::process::now;
use crate::replicas::{Replicas, Stranger, offer};

/// What the document says.
const DOCUMENT: &str = include_str!("../../../docs/directory.md");
/// What a letter is longer than its word's own text: nonce, seal, who says it and when; and NATS's line before it.
const AROUND: usize = 240;

/// Letters by what they say, with the bytes of the longest, as they are published.
type Said = BTreeMap<&'static str, (usize, usize)>;

/// Somebody who has the key.
struct Reader {
    stranger: Stranger,
    keys: Keys,
    /// Letters that were looked at.
    read: usize,
    said: Said,
    beats: BTreeMap<RunId, u64>,
    longest_beat: usize,
}

/// Bytes of a letter as it goes to NATS.
fn published(subject: &str, sealed: &[u8]) -> usize {
    format!("PUB {subject} {}\r\n\r\n", sealed.len()).len() + sealed.len()
}

impl Reader {
    fn new(replicas: &Replicas) -> Self {
        let text = std::fs::read_to_string(replicas.all[0].place.home().join("directory.key")).unwrap();
        let mut seed = [0; 32];
        hex::decode_to_slice(text.lines().nth(1).unwrap(), &mut seed).unwrap();
        let (stranger, keys) = (Stranger::new(&replicas.broker), Keys::derive(&seed));
        Self { stranger, keys, read: 0, said: Said::new(), beats: BTreeMap::new(), longest_beat: 0 }
    }

    fn listen(&mut self) {
        self.stranger.listen();
        let letters = self.stranger.letters();
        for (subject, sealed) in &letters[self.read..] {
            let letter = Letter::decode(&self.keys.open(subject, sealed).unwrap()).unwrap();
            let what = match letter.word {
                Word::Beat { .. } => {
                    *self.beats.entry(letter.run).or_default() += 1;
                    self.longest_beat = self.longest_beat.max(published(subject, sealed));
                    continue;
                }
                // Compared every half minute, whatever anybody does.
                Word::Have(_) => continue,
                Word::Item(_) => "item",
                Word::Answer { .. } => "answer",
                Word::Reads { .. } => "reads",
                Word::Shown(_) => "shown",
                Word::Done(_) => "done",
                Word::Changed => "changed",
                Word::Want(_) => "want",
                Word::Bye => "bye",
            };
            let (count, longest) = self.said.entry(what).or_default();
            *count += 1;
            *longest = (*longest).max(published(subject, sealed));
        }
        self.read = letters.len();
    }

    /// What was said since the last time. Each replica has said since twice more that it is there: what was still to be said came before.
    fn said(&mut self) -> Said {
        self.listen();
        let before = self.beats.clone();
        wait_for("two beats of each replica", || {
            self.listen();
            self.beats.len() == 3 && self.beats.iter().all(|(run, beats)| *beats >= before.get(run).unwrap_or(&0) + 2)
        });
        std::mem::take(&mut self.said)
    }

    /// That these were said, so often, and nothing else; the bytes of all of them together.
    fn expect(&mut self, what: &str, expected: &[(&str, usize)]) -> usize {
        let said = self.said();
        let counts: Vec<(&str, usize)> = said.iter().map(|(word, (count, _))| (*word, *count)).collect();
        assert_eq!(counts, expected, "{what}");
        for (word, (_, longest)) in said.iter().filter(|(word, _)| **word != "item") {
            assert!(*longest <= AROUND + 80, "{what}: {word} has {longest} bytes");
        }
        said.values().map(|(count, longest)| count * longest).sum()
    }
}

#[test]
fn what_replicas_say_for_each_call_is_what_the_document_says() {
    let replicas = Replicas::new(None);
    let [a, b, c] = &replicas.all[..] else { panic!() };
    let (alice, bob) = (Node::new(1), Node::new(2));
    replicas.register(&[&alice, &bob]);
    let mut reader = Reader::new(&replicas);
    reader.said();
    let mut missing = Vec::new();
    // To the next hundred; a number in a letter has a byte more or less by the time that the test takes.
    let mut document = |bytes: usize, row: &dyn Fn(usize) -> String| {
        let near = [bytes.saturating_sub(40), bytes, bytes + 40].map(|bytes| row(bytes.next_multiple_of(100)));
        if !near.iter().any(|row| DOCUMENT.contains(row)) {
            missing.push(row(bytes));
        }
    };

    for _ in 0..5 {
        assert_eq!(a.serving().register(&alice).0, 200);
    }
    assert_eq!(reader.expect("announcements", &[]), 0);
    document(0, &|bytes| format!("| an announcement, a look-up, a page, a proof | 0 | {bytes} |"));
    for path in [format!("/api/v3/nodes/{}", bob.id()), "/api/v3/nodes/discover".into(), "/api/v3/log/head".into()] {
        assert_eq!(b.serving().get(&path).0, 200);
    }
    assert_eq!(reader.expect("look-ups", &[]), 0);

    let first = offer(&alice, &bob, 0xA5);
    assert_eq!(a.offer(&alice, &first).0, 200);
    let bytes = reader.expect("an offer to nobody who reads", &[("answer", 2), ("item", 1)]);
    let length = first.len();
    document(bytes, &|bytes| {
        format!("| an offer | 1, and an answer of each other replica | {bytes} ({length} of offer) |")
    });

    let shown = b.receive(&bob, 0, 0);
    assert_eq!(shown.items.len(), 1);
    let bytes = reader.expect("a reader and what it is shown", &[("reads", 1), ("shown", 1)]);
    document(bytes, &|bytes| format!("| a reader that comes, and what it is shown | 2 | {bytes} |"));

    let receipt = bob.receipt(&alice.id(), &first, now());
    assert_eq!(c.acknowledge(&bob, &receipt).0, 200);
    let bytes = reader.expect("a receipt", &[("answer", 2), ("done", 1), ("item", 1)]);
    let row = "| a receipt, and that its offer is done with | 2, and an answer of each other replica |";
    let length = receipt.len();
    document(bytes, &|bytes| format!("{row} {bytes} ({length} of receipt) |"));

    let cursor = a.receive(&alice, 0, 0).cursor;
    reader.expect("a receipt that is shown", &[("reads", 1), ("shown", 1)]);
    a.receive(&alice, 0, cursor);
    reader.expect("a receipt that was read", &[("done", 1), ("reads", 1)]);

    a.place.text(&["nodes", "ban", &bob.id().to_string()]);
    let bytes = reader.expect("a ban", &[("changed", 1)]);
    document(bytes, &|bytes| format!("| a change by the operator | 1 | {bytes} |"));
    document(reader.longest_beat, &|bytes| format!("| nothing, in each second of each replica | 1 | {bytes} |"));
    assert!(missing.is_empty(), "docs/directory.md does not have these rows, to the next hundred: {missing:#?}");
}
