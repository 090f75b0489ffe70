//! The trail on two files in memory: crashes at every byte of a commit, files that were changed in between, full segments, and
//! the share of what others can bring about. What is left is always read with the offline reader as well.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::time::Duration;

use openred_proto::audit::verify::{FaultKind, Known, Report, Verifier};
use openred_proto::audit::{Content, SEGMENT_BYTES};
use openred_proto::secret::Secret;

use super::open::Opening;
use super::*;
use crate::testing::NOW;

type Files = [Vec<u8>; 2];

fn identity() -> Identity {
    Identity::from_seed(&Secret::new([1; 32]))
}

fn blank() -> Files {
    [vec![0; SEGMENT_BYTES], vec![0; SEGMENT_BYTES]]
}

fn try_open(files: &Files, head: Head, anew: bool, now: UnixMillis) -> Result<Trail> {
    let opening = Opening { identity: &identity(), head, anew, earlier: &[], taken: None, now };
    Trail::open(opening, &mut |file, offset, buffer| {
        let from = offset as usize;
        buffer.copy_from_slice(&files[file][from..from + buffer.len()]);
        Ok(())
    })
}

fn lay(files: &mut Files, writes: &[TrailWrite]) {
    for write in writes {
        let from = write.offset as usize;
        files[write.file][from..from + write.bytes.len()].copy_from_slice(&write.bytes);
    }
}

/// A trail that has begun, with `records` in it, all durable; the head is that of the last commit.
fn begun(records: usize) -> (Files, Trail) {
    let (mut files, mut trail) = (blank(), try_open(&blank(), Head::default(), false, NOW).unwrap());
    for _ in 0..records {
        trail.record(Event::HttpSigned, 0, None, NOW);
    }
    lay(&mut files, &trail.commit());
    (files, trail)
}

/// The offline reader on segments in the order of their numbers.
fn read(segments: &[&[u8]], known: Option<Head>) -> (Report, Vec<Record>) {
    let known = known.map(|head| Known { sequence: head.sequence, hash: head.hash });
    let mut verifier = Verifier::new(identity().node_id(), known.into_iter().collect());
    let mut records = Vec::new();
    segments.iter().for_each(|bytes| verifier.segment(bytes, &mut |record| records.push(*record)));
    (verifier.finish(), records)
}

fn events(records: &[Record]) -> Vec<Event> {
    records.iter().map(|record| record.event).collect()
}

#[test]
fn a_start_goes_on_where_the_last_one_ended() {
    let (mut files, mut trail) = begun(2);
    trail.end(Event::Stopped, &identity(), NOW);
    lay(&mut files, &trail.commit());
    let mut again = try_open(&files, trail.head(), false, NOW.plus(Duration::from_secs(9))).unwrap();
    lay(&mut files, &again.commit());
    let (report, records) = read(&[&files[0]], Some(again.head()));
    assert_eq!(report.faults, []);
    use Event::{HttpSigned, SegmentBegun, Started, Stopped};
    assert_eq!(events(&records), [SegmentBegun, Started, HttpSigned, HttpSigned, Stopped, Started]);
    assert_eq!((report.signed, report.last, report.last_hash), (5, 6, again.head().hash));
}

#[test]
fn a_commit_that_a_crash_tore_at_any_byte_loses_only_itself() {
    let (files, mut trail) = begun(3);
    let before = trail.head();
    trail.record(Event::CardSigned, 0, None, NOW);
    trail.sign(Event::Checkpoint, &identity(), NOW);
    trail.record(Event::StoreKeyGiven, 0, None, NOW);
    let (whole, mut cleared) = (trail.commit(), 0);
    for cut in 0..=whole[0].bytes.len() {
        // The first bytes, or the last: a disk writes its sectors in any order.
        for torn in [whole[0].bytes[..cut].to_vec(), [vec![0; cut], whole[0].bytes[cut..].to_vec()].concat()] {
            let mut files = files.clone();
            lay(&mut files, &[TrailWrite { bytes: torn.clone(), ..whole[0].clone() }]);
            let mut again = try_open(&files, before, false, NOW).unwrap();
            lay(&mut files, &again.commit());
            let (report, records) = read(&[&files[0]], Some(again.head()));
            assert_eq!(report.faults, [], "cut at {cut}");
            assert!(records.len() >= 6 && records.last().unwrap().event == Event::Started);
            cleared += usize::from(records.iter().any(|record| record.event == Event::TailCleared));
        }
    }
    assert!(cleared > whole[0].bytes.len(), "what was torn is said: {cleared}");
}

#[test]
fn what_was_taken_out_or_changed_below_what_the_state_knows_stops_the_start() {
    let (files, trail) = begun(5);
    let head = trail.head();
    let refused = |change: &dyn Fn(&mut Files)| {
        let mut files = files.clone();
        change(&mut files);
        matches!(try_open(&files, head, false, NOW), Err(Error::LocalAuditChanged(_)))
    };
    assert!(refused(&|files| *files = blank()), "deleted");
    assert!(refused(&|files| files[0][SLOT_BYTES * 6..].fill(0)), "truncated");
    assert!(refused(&|files| files[0][SLOT_BYTES * 7 + 3] ^= 1), "changed");
    assert!(refused(&|files| files.swap(0, 1)), "swapped");
    let other = begun(2).0;
    assert!(refused(&|files| *files = other.clone()), "set back");
    assert!(refused(&|files| files[0][SLOT_BYTES * 1000] = 1), "something far behind the end");
    assert!(matches!(try_open(&files, Head::default(), false, NOW), Err(Error::LocalAuditChanged(_))), "a lost state");
}

#[test]
fn the_operator_can_begin_anew_and_the_trail_says_so_for_good() {
    let (mut files, trail) = begun(5);
    files[0][SLOT_BYTES * 3] ^= 1;
    files[1][SLOT_BYTES * 700] = 9;
    let mut again = try_open(&files, trail.head(), true, NOW).unwrap();
    lay(&mut files, &again.commit());
    assert!(files[1].iter().all(|byte| *byte == 0) && files[0][SLOT_BYTES * 4..].iter().all(|byte| *byte == 0));
    let (report, records) = read(&[&files[0]], Some(again.head()));
    assert_eq!(events(&records), [Event::SegmentBegun, Event::BegunAnew, Event::Started]);
    assert_eq!(records[0].sequence, trail.head().sequence + 1, "no sequence is used twice");
    assert_eq!(report.faults.iter().map(|fault| fault.kind).collect::<Vec<_>>(), [FaultKind::BegunAnew]);
    assert!(try_open(&files, again.head(), false, NOW).is_ok());
}

#[test]
fn another_identity_of_the_node_begins_behind_a_trail_that_is_whole_and_nobody_else() {
    let (mut files, trail) = begun(5);
    let other = Identity::from_seed(&openred_proto::secret::Secret::new([0x77; 32]));
    let opened = |files: &Files, head: Head, earlier: &[NodeId]| {
        let opening = Opening { identity: &other, head, anew: false, earlier, taken: Some([5; 32]), now: NOW };
        Trail::open(opening, &mut |file, offset, buffer| {
            let from = usize::try_from(offset).unwrap();
            buffer.copy_from_slice(&files[file][from..from + buffer.len()]);
            Ok(())
        })
    };
    let mine = [identity().node_id()];
    assert!(matches!(opened(&files, trail.head(), &[]), Err(Error::LocalAuditChanged(_))), "a stranger's");
    let mut cut = files.clone();
    cut[0][SLOT_BYTES * 4..].fill(0);
    assert!(matches!(opened(&cut, trail.head(), &mine), Err(Error::LocalAuditChanged(_))), "it was cut before");
    let mut next = opened(&files, trail.head(), &mine).unwrap();
    lay(&mut files, &next.commit());
    let records: Vec<Record> = (1..4)
        .filter_map(|at| match Content::of(files[0].as_chunks::<SLOT_BYTES>().0.get(at).unwrap()) {
            Content::Record(record, _) => Some(record),
            _ => None,
        })
        .collect();
    assert_eq!(events(&records)[..2], [Event::SegmentBegun, Event::IdentityTaken]);
    assert_eq!(records[1].subject, [5; 32]);
    assert!(opened(&files, next.head(), &mine).is_ok(), "it goes on as its own");
}

#[test]
fn a_clock_before_the_last_record_is_refused_by_name() {
    let (files, trail) = begun(1);
    let at = |back: u64| try_open(&files, trail.head(), false, NOW.minus(Duration::from_secs(back))).map(drop);
    assert_eq!(at(60), Ok(()), "what a time service corrects");
    assert_eq!(at(61), Err(Error::LocalAuditClock(1)));
    assert_eq!(at(86_400), Err(Error::LocalAuditClock(86_340)));
}

#[test]
fn time_never_falls_within_the_trail() {
    let (mut files, mut trail) = begun(1);
    trail.record(Event::HttpSigned, 0, None, NOW.minus(Duration::from_secs(3600)));
    trail.record(Event::HttpSigned, 0, None, NOW.plus(Duration::from_secs(1)));
    lay(&mut files, &trail.commit());
    assert_eq!(read(&[&files[0]], Some(trail.head())).0.faults, []);
}

/// Records until the segment is full, committing as the loop would.
fn fill(files: &mut Files, trail: &mut Trail) -> Result<()> {
    let segment = trail.head().segment;
    while trail.head().segment == segment {
        trail.make_room(&identity(), NOW)?;
        trail.record(Event::HttpSigned, 0, None, NOW);
        if trail.must_commit() {
            lay(files, &trail.commit());
        }
    }
    lay(files, &trail.commit());
    Ok(())
}

#[test]
fn a_full_segment_is_signed_and_the_other_goes_on_until_that_is_full() {
    let (mut files, mut trail) = begun(0);
    fill(&mut files, &mut trail).unwrap();
    let status = trail.status();
    assert_eq!((status.segment, status.file, status.waiting, status.full), (2, 1, Some(1), false));
    assert_eq!(fill(&mut files, &mut trail), Err(Error::LocalAuditFull));
    lay(&mut files, &trail.commit());
    assert!(trail.status().full);
    let (report, _) = read(&[&files[0], &files[1]], Some(trail.head()));
    assert_eq!((report.faults.clone(), report.segments), (vec![], 2));
    // Nothing but the segment that waits can be called filed; then it goes on.
    for wrong in [0, 2, 3] {
        assert_eq!(trail.filed(wrong), Err(Error::MisuseNotAllowed));
    }
    let filed = std::mem::replace(&mut files[0], vec![0; SEGMENT_BYTES]);
    trail.filed(1).unwrap();
    assert_eq!(trail.make_room(&identity(), NOW), Ok(true));
    lay(&mut files, &trail.commit());
    assert_eq!((trail.status().segment, trail.status().waiting), (3, Some(2)));
    let (report, _) = read(&[&filed, &files[1], &files[0]], Some(trail.head()));
    assert_eq!((report.faults, report.segments, report.last), (vec![], 3, trail.head().sequence));
}

#[test]
fn a_switch_that_the_state_never_heard_of_is_found_again_wherever_it_was_cut() {
    let (mut files, mut trail) = begun(0);
    while trail.has_room() {
        trail.record(Event::HttpSigned, 0, None, NOW);
        if trail.must_commit() {
            lay(&mut files, &trail.commit());
        }
    }
    lay(&mut files, &trail.commit());
    let before = trail.head();
    trail.make_room(&identity(), NOW).unwrap();
    trail.record(Event::CardSigned, 0, None, NOW);
    let writes = trail.commit();
    assert_eq!(writes.len(), 2);
    for (first, second) in [(0, 0), (100, 0), (256, 0), (256, 64), (256, 128), (256, 200), (256, 256), (256, 384)] {
        let mut files = files.clone();
        for (write, length) in writes.iter().zip([first, second]) {
            lay(&mut files, &[TrailWrite { bytes: write.bytes[..length].to_vec(), ..write.clone() }]);
        }
        let mut again = try_open(&files, before, false, NOW).unwrap();
        lay(&mut files, &again.commit());
        let segments: &[&[u8]] = if again.head().segment == 2 { &[&files[0], &files[1]] } else { &[&files[0]] };
        let (report, records) = read(segments, Some(again.head()));
        assert_eq!(report.faults, [], "{first} {second}");
        assert_eq!(records.last().unwrap().event, Event::Started, "{first} {second}");
        assert_eq!(again.head().segment, 2, "there was no room for more in the first");
    }
}

#[test]
fn with_both_segments_full_the_vault_comes_up_to_have_one_filed() {
    let (mut files, mut trail) = begun(0);
    fill(&mut files, &mut trail).unwrap();
    assert_eq!(fill(&mut files, &mut trail), Err(Error::LocalAuditFull));
    trail.end(Event::Stopped, &identity(), NOW);
    lay(&mut files, &trail.commit());
    for _ in 0..3 {
        let mut again = try_open(&files, trail.head(), false, NOW).unwrap();
        assert!(again.status().full);
        again.end(Event::Stopped, &identity(), NOW);
        lay(&mut files, &again.commit());
        trail = again;
    }
    assert_eq!(read(&[&files[0], &files[1]], Some(trail.head())).0.faults, []);
    files[0].fill(0);
    trail.filed(1).unwrap();
    trail.make_room(&identity(), NOW).unwrap();
    lay(&mut files, &trail.commit());
    let (report, records) = read(&[&files[1], &files[0]], Some(trail.head()));
    assert_eq!(report.faults, []);
    assert_eq!(records.last().unwrap().event, Event::Started, "recorded once there is room");
}

#[test]
fn refusals_and_reports_have_their_share_and_what_is_over_it_is_counted() {
    let (mut files, mut trail) = begun(0);
    for _ in 0..500 {
        trail.record_limited(Event::OfferInspected, 9, 0, NOW);
    }
    let later = NOW.plus(Duration::from_secs(2));
    for _ in 0..500 {
        trail.record_limited(Event::OfferInspected, 9, 0, later);
    }
    trail.record(Event::HttpSigned, 0, None, later);
    trail.maintain(&identity(), later.plus(CHECKPOINT_EVERY));
    lay(&mut files, &trail.commit());
    let (report, records) = read(&[&files[0]], Some(trail.head()));
    assert_eq!(report.faults, []);
    let of = |event| records.iter().filter(|record| record.event == event).collect::<Vec<_>>();
    assert_eq!(of(Event::OfferInspected).len(), 100 + 20);
    assert_eq!(of(Event::NotListed).iter().map(|record| record.count).sum::<u32>(), 400 + 480);
    assert_eq!(of(Event::HttpSigned).len(), 1, "what was done is never left out");
    for step in 0..40_000 {
        trail.record_limited(Event::Misbehaved, 9, 1, later.plus(Duration::from_secs(100 + step)));
        if trail.must_commit() {
            lay(&mut files, &trail.commit());
        }
    }
    assert!(trail.head().slot as usize <= 2 * LIMITED_SLOTS + 200, "a tenth, and as many words about the rest");
}

#[test]
fn the_supervisors_notes_have_a_share_that_nobody_else_spends() {
    let (mut files, mut trail) = begun(0);
    let at = |second: u64| NOW.plus(Duration::from_secs(second));
    let mut turned_back = 0;
    for step in 0..10_000 {
        trail.record_limited(Event::LinkOpened, 9, 0, at(step));
        turned_back += u32::from(!trail.record_reported(Event::CallRefused, 3, at(step)));
        if trail.must_commit() {
            lay(&mut files, &trail.commit());
        }
    }
    assert!(turned_back > 0 && !trail.record_reported(Event::CallRefused, 3, at(10_000)), "the tenth is spent");
    // A process that dies over and over leaves room for what is graver.
    let deaths = (0..2000).filter(|step| trail.record_reported(Event::ProcessDied, 1, at(20_000 + step))).count();
    assert_eq!(deaths, NOTED_DEATHS);
    assert!(trail.record_reported(Event::FilterBroken, 1, at(30_000)));
    trail.maintain(&identity(), at(40_000));
    lay(&mut files, &trail.commit());
    let (report, records) = read(&[&files[0]], Some(trail.head()));
    assert_eq!(report.faults, []);
    let counted = |event| records.iter().filter(|record| record.event == event).map(|record| record.count).sum::<u32>();
    assert_eq!(counted(Event::FilterBroken), 1);
    assert_eq!(counted(Event::CallRefused) + 3 * turned_back, 30_000, "what was turned back is left to who reports it");
}

#[test]
fn what_strangers_bring_about_takes_nothing_from_refusals() {
    let (mut files, mut trail) = begun(0);
    let at = |second: u64| NOW.plus(Duration::from_secs(second));
    let mut taken = 0;
    for step in 0..10_000 {
        taken += usize::from(trail.record_reported(Event::Flooded, 1, at(step)));
        if trail.must_commit() {
            lay(&mut files, &trail.commit());
        }
    }
    assert_eq!(taken, LIMITED_SLOTS, "its tenth is spent");
    trail.record_limited(Event::LinkOpened, 9, 0, at(10_001));
    assert_eq!(trail.limit.left_out, 0, "a refusal has its record all the same");
    assert!(trail.record_reported(Event::CallRefused, 1, at(10_002)));
}

#[test]
fn what_is_left_out_is_counted_with_its_own_count_also_without_room() {
    let (_, mut trail) = begun(0);
    (0..LIMITED_BURST).for_each(|_| trail.record_limited(Event::Flooded, 9, 5, NOW));
    trail.record_limited(Event::Flooded, 9, 17, NOW);
    trail.record_limited(Event::LinkOpened, 9, 0, NOW);
    assert_eq!(trail.limit.left_out, 18);
    trail.head.slot = (SLOTS - CLOSING_SLOTS) as u32;
    trail.record_limited(Event::Flooded, 9, 4, NOW);
    assert_eq!(trail.limit.left_out, 22);
}

#[test]
fn a_checkpoint_comes_with_the_thousandth_record_and_after_a_minute() {
    let (_, mut trail) = begun(0);
    assert!(!trail.maintain(&identity(), NOW));
    assert!(trail.maintain(&identity(), NOW.plus(CHECKPOINT_EVERY)), "the start is signed");
    assert!(!trail.maintain(&identity(), NOW.plus(CHECKPOINT_EVERY * 100)), "nothing happened since");
    let soon = NOW.plus(CHECKPOINT_EVERY + Duration::from_secs(1));
    for _ in 0..CHECKPOINT_RECORDS {
        assert!(!trail.maintain(&identity(), soon));
        trail.record(Event::HttpSigned, 0, None, soon);
    }
    assert!(trail.maintain(&identity(), soon));
}
