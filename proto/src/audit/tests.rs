//! A trail of two segments written by hand, and everything that can be done to it.
#![allow(clippy::unwrap_used, reason = "tests")]

use ed25519_dalek::{Signer, SigningKey};

use super::verify::{FaultKind, Known, Report, Verifier};
use super::*;
use crate::label::signed_bytes;

/// Writes segments as the vault does, one slot after the other.
struct Hand {
    key: SigningKey,
    segments: Vec<Vec<Slot>>,
    sequence: u64,
    hash: Hash,
    time: u64,
}

impl Hand {
    fn new() -> Self {
        let key = SigningKey::from_bytes(&[7; 32]);
        Self { key, segments: Vec::new(), sequence: 0, hash: [0; 32], time: 1_780_000_000_000 }
    }

    fn node(&self) -> NodeId {
        NodeId::from_bytes(self.key.verifying_key().to_bytes())
    }

    fn open(&mut self) {
        let (segment, first) = (self.segments.len() as u64 + 1, self.sequence + 1);
        let (slot, hash) = Header { node: self.node(), segment, first, previous: self.hash }.encode();
        self.segments.push(vec![slot]);
        self.hash = hash;
    }

    fn record(&mut self, event: Event) {
        self.sequence += 1;
        self.time += 5;
        let (time, previous) = (UnixMillis(self.time), self.hash);
        let record = Record { sequence: self.sequence, time, event, outcome: 0, count: 0, subject: [3; 32], previous };
        let (slot, hash) = record.encode();
        let segment = self.segments.len() as u64;
        let slots = self.segments.last_mut().unwrap();
        slots.push(slot);
        self.hash = hash;
        if event.is_signed() {
            let node = NodeId::from_bytes(self.key.verifying_key().to_bytes());
            let checkpoint = Checkpoint { node, segment, sequence: self.sequence, time, hash };
            let signature = self.key.sign(&signed_bytes(Label::Audit, &checkpoint.encode())).to_bytes();
            slots.push(encode_signature(self.sequence, &signature));
        }
    }

    /// Two segments: 1 to 5 signed at 3 and 5 (closed), then 6 to 8 signed at 7.
    fn trail() -> Self {
        use Event::{CardSigned, Checkpoint, HandshakeFinished, HttpSigned, SegmentClosed, Started};
        let mut hand = Self::new();
        hand.open();
        for event in [Started, CardSigned, Checkpoint, HttpSigned, SegmentClosed] {
            hand.record(event);
        }
        hand.open();
        for event in [HttpSigned, Checkpoint, HandshakeFinished] {
            hand.record(event);
        }
        hand
    }

    fn read(&self, known: Vec<Known>) -> Report {
        read(self.node(), &self.segments, known)
    }
}

fn read(node: NodeId, segments: &[Vec<Slot>], known: Vec<Known>) -> Report {
    let mut verifier = Verifier::new(node, known);
    for slots in segments {
        let mut bytes = slots.concat();
        // What was not written yet; a whole segment of it makes no difference but time.
        bytes.resize(bytes.len() + 4 * SLOT_BYTES, 0);
        verifier.segment(&bytes, &mut |_| {});
    }
    verifier.finish()
}

fn kinds(report: &Report) -> Vec<FaultKind> {
    report.faults.iter().map(|fault| fault.kind).collect()
}

#[test]
fn an_untouched_trail_has_no_fault() {
    let hand = Hand::trail();
    let report = hand.read(vec![Known { sequence: 8, hash: hand.hash }]);
    assert_eq!(kinds(&report), []);
    assert_eq!((report.segments, report.records, report.signatures), (2, 8, 3));
    assert_eq!((report.first, report.last, report.signed), (1, 8, 7));
    let (checkpoint, signature) = report.checkpoint.unwrap();
    let kept = crate::checked::statement::encode(&checkpoint.encode(), &hand.node(), &signature);
    assert_eq!(Checkpoint::verify(&kept).unwrap(), checkpoint);
}

#[test]
fn every_byte_that_is_changed_is_found() {
    let hand = Hand::trail();
    for segment in 0..2 {
        for slot in 0..hand.segments[segment].len() {
            for byte in 0..SLOT_BYTES {
                let mut segments = hand.segments.clone();
                segments[segment][slot][byte] ^= 1;
                let report = read(hand.node(), &segments, vec![Known { sequence: 8, hash: hand.hash }]);
                assert!(report.fault_count > 0, "segment {segment}, slot {slot}, byte {byte}");
            }
        }
    }
}

#[test]
fn a_record_that_is_written_anew_with_its_hash_breaks_the_chain_or_the_signature() {
    let hand = Hand::trail();
    let mut segments = hand.segments.clone();
    let Content::Record(record, _) = Content::of(&segments[0][2]) else { panic!() };
    segments[0][2] = Record { subject: [9; 32], ..record }.encode().0;
    assert!(kinds(&read(hand.node(), &segments, vec![])).contains(&FaultKind::Broken));
    // The whole rest of the chain written anew: only the signatures stand in the way.
    let mut forged = Hand { key: SigningKey::from_bytes(&[8; 32]), ..Hand::trail() };
    forged.segments.iter_mut().for_each(Vec::clear);
    assert!(kinds(&read(hand.node(), &forged.segments, vec![])).contains(&FaultKind::NoHeader));
    let mut other = Hand::trail();
    for slot in other.segments.iter_mut().flatten() {
        if let Content::Signature { sequence, .. } = Content::of(slot) {
            *slot = encode_signature(sequence, &[5; 64]);
        }
    }
    let report = other.read(vec![]);
    assert_eq!(kinds(&report), [FaultKind::BadSignature; 3]);
    assert_eq!((report.signed, report.checkpoint), (0, None));
}

#[test]
fn swapped_missing_and_added_records_and_segments_are_named() {
    let hand = Hand::trail();
    let read = |change: &dyn Fn(&mut Vec<Vec<Slot>>)| {
        let mut segments = hand.segments.clone();
        change(&mut segments);
        kinds(&read(hand.node(), &segments, vec![]))
    };
    assert!(read(&|segments| segments[0].swap(1, 2)).contains(&FaultKind::Broken));
    assert!(
        read(&|segments| {
            segments[0].remove(2);
        })
        .contains(&FaultKind::MissingRecords { expected: 2 })
    );
    assert!(read(&|segments| segments[0][2] = [0; SLOT_BYTES]).contains(&FaultKind::AfterEnd));
    assert!(
        read(&|segments| {
            segments[0].remove(4);
        })
        .contains(&FaultKind::Unsigned),
        "a signature taken out"
    );
    assert!(
        read(&|segments| {
            let again = segments[1][1];
            segments[1].push(again);
        })
        .contains(&FaultKind::Broken)
    );
    assert!(read(&|segments| segments[0].truncate(5)).contains(&FaultKind::NotClosed));
    assert!(read(&|segments| segments.swap(0, 1)).contains(&FaultKind::MissingSegment { expected: 3 }));
    let again = hand.segments[1].clone();
    assert!(read(&|segments| segments.push(again.clone())).contains(&FaultKind::MissingSegment { expected: 3 }));
}

#[test]
fn a_cut_tail_shows_against_what_is_known_elsewhere_and_not_otherwise() {
    let hand = Hand::trail();
    let mut segments = hand.segments.clone();
    segments[1].pop();
    assert_eq!(kinds(&read(hand.node(), &segments, vec![])), []);
    let known = Known { sequence: 8, hash: hand.hash };
    assert_eq!(kinds(&read(hand.node(), &segments, vec![known])), [FaultKind::Cut { known: 8 }]);
    let other = Known { sequence: 8, hash: [1; 32] };
    assert_eq!(kinds(&hand.read(vec![other])), [FaultKind::NotTheSame]);
}

#[test]
fn a_trail_of_another_node_a_missing_segment_and_garbage_are_named() {
    let hand = Hand::trail();
    let stranger = NodeId::from_bytes(SigningKey::from_bytes(&[9; 32]).verifying_key().to_bytes());
    let found = kinds(&read(stranger, &hand.segments, vec![]));
    assert!(found.contains(&FaultKind::WrongNode) && found.contains(&FaultKind::BadSignature), "{found:?}");
    let mut three = Hand::trail();
    three.record(Event::SegmentClosed);
    three.open();
    three.record(Event::HttpSigned);
    three.segments.remove(1);
    assert_eq!(kinds(&three.read(vec![]))[0], FaultKind::MissingSegment { expected: 2 });
    for bytes in [vec![], vec![0; 100], vec![0xff; SEGMENT_BYTES], vec![0; SEGMENT_BYTES]] {
        let mut verifier = Verifier::new(hand.node(), vec![]);
        verifier.segment(&bytes, &mut |_| {});
        assert_eq!(kinds(&verifier.finish()), [FaultKind::NoHeader]);
    }
}

#[test]
fn a_segment_that_cannot_be_read_is_no_gap_and_excuses_no_other() {
    let mut hand = Hand::trail();
    hand.record(Event::SegmentClosed);
    hand.open();
    hand.record(Event::HttpSigned);
    let read = |order: &[std::result::Result<usize, u64>]| {
        let mut verifier = Verifier::new(hand.node(), vec![]);
        for segment in order {
            match segment {
                Ok(index) => verifier.segment(&hand.segments[*index].concat(), &mut |_| {}),
                Err(number) => verifier.unread(*number),
            }
        }
        verifier.finish()
    };
    let report = read(&[Ok(0), Err(2), Ok(2)]);
    assert_eq!((kinds(&report), report.segments, report.first, report.last), (vec![], 2, 1, 10));
    assert_eq!(kinds(&read(&[Err(1), Err(2), Ok(2)])), []);
    assert_eq!(read(&[Err(1), Ok(1)]).first, 6);
    assert_eq!(kinds(&read(&[Ok(0), Err(3)])), [FaultKind::MissingSegment { expected: 2 }]);
    assert_eq!(kinds(&read(&[Err(1), Ok(2)])), [FaultKind::MissingSegment { expected: 2 }]);
    assert_eq!(kinds(&read(&[Ok(2), Err(4)])), [FaultKind::NotClosed], "what is unread follows no open end");
    let back = read(&[Ok(1), Err(3), Err(4), Ok(0)]);
    assert!(kinds(&back).contains(&FaultKind::MissingSegment { expected: 5 }));
}

#[test]
fn what_is_known_of_a_segment_that_was_not_read_is_not_called_compared() {
    let mut hand = Hand::trail();
    let (known, end) = (Known { sequence: 8, hash: [1; 32] }, Known { sequence: 11, hash: [1; 32] });
    hand.record(Event::SegmentClosed);
    hand.open();
    hand.record(Event::HttpSigned);
    let read = |known: Vec<Known>, live: Option<Known>, last: bool| {
        let mut verifier = Verifier::new(hand.node(), known).living(live);
        verifier.segment(&hand.segments[0].concat(), &mut |_| {});
        verifier.unread(2);
        if last {
            verifier.segment(&hand.segments[2].concat(), &mut |_| {});
        }
        let report = verifier.finish();
        (kinds(&report), report.uncompared)
    };
    assert_eq!(read(vec![known], None, true), (vec![], vec![8]), "it may be in the one that was not read");
    assert_eq!(read(vec![known], None, false), (vec![], vec![8]));
    assert_eq!(read(vec![end], None, true), (vec![FaultKind::Cut { known: 11 }], vec![]));
    assert_eq!(read(vec![], Some(end), false), (vec![FaultKind::Cut { known: 11 }], vec![]), "a living vault's is not");
    let met = Known { sequence: 10, hash: hand.hash };
    assert_eq!(read(vec![met], Some(met), true), (vec![], vec![]));
    assert_eq!(hand.read(vec![known]).uncompared, Vec::<u64>::new());
}

#[test]
fn a_name_alone_makes_no_sealed_segment() {
    let mut hand = Hand::trail();
    hand.record(Event::SegmentClosed);
    hand.open();
    hand.record(Event::HttpSigned);
    let mut verifier = Verifier::new(hand.node(), vec![]);
    verifier.segment(&hand.segments[0].concat(), &mut |_| {});
    verifier.unsealed(2);
    verifier.segment(&hand.segments[2].concat(), &mut |_| {});
    assert_eq!(kinds(&verifier.finish()), [FaultKind::NotSealed, FaultKind::MissingSegment { expected: 2 }]);
}

#[test]
fn numbers_and_names_of_events_are_unique_and_come_back() {
    let names: std::collections::HashSet<_> = Event::ALL.iter().map(|event| event.name()).collect();
    assert_eq!(names.len(), Event::ALL.len());
    for event in Event::ALL {
        assert_eq!(Event::from_number(event.number()), Some(*event));
        assert!(!(event.is_of_node() && event.is_of_supervisor()));
    }
    assert_eq!(Event::from_number(0), None);
}

proptest::proptest! {
    #[test]
    fn no_slot_panics_and_what_is_read_is_what_was_written(bytes in proptest::array::uniform32(0_u8..)) {
        let mut slot = [0; SLOT_BYTES];
        for (place, byte) in slot.iter_mut().enumerate() {
            *byte = bytes[place % 32].wrapping_mul(place as u8 | 1);
        }
        match Content::of(&slot) {
            Content::Record(record, _) => assert_eq!(record.encode().0, slot),
            Content::Header(header, _) => assert_eq!(header.encode().0, slot),
            _ => {}
        }
    }
}
