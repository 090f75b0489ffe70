//! Filing with helpers that do their work, die in the middle of it, or lie; and begun again from wherever it was left.
#![allow(clippy::unwrap_used, reason = "tests")]
use std::sync::atomic::{AtomicU32, Ordering};

use openred_cryptod::unseal::{encrypt, envelope::Seal as Lock};
use openred_proto::audit::Header;
use openred_proto::id::NodeId;

use super::super::killed;
use super::*;

/// The age specification's own example; nobody here has to open anything.
const AUDITOR: &str = "age1zvkyg2lqzraa2lnjvqej32nkuu0ues2s82hzrye869xeexvn73equnujwj";

struct Place {
    _folder: tempfile::TempDir,
    path: PathBuf,
    file: File,
    filed: PathBuf,
    content: Vec<u8>,
}

fn place() -> Place {
    let folder = tempfile::tempdir().unwrap();
    let top = folder.path().canonicalize().unwrap();
    let (path, filed) = (top.join("a.segment"), top.join("filed"));
    fs::create_dir(&filed).unwrap();
    let header = Header { node: NodeId::from_bytes([1; 32]), segment: 3, first: 9, previous: [2; 32] }.encode().0;
    let mut content = vec![5; SEGMENT_BYTES];
    content[..SLOT_BYTES].copy_from_slice(&header);
    fs::write(&path, &content).unwrap();
    let file = File::options().read(true).write(true).open(&path).unwrap();
    Place { _folder: folder, path, file, filed, content }
}

impl Place {
    fn file(&self, segment: u64, seal: Option<Seal<'_>>) -> Result<(), StartFailure> {
        file_away(&self.path, &self.file, segment, &self.filed, seal)
    }

    fn is_cleared(&self) -> bool {
        fs::read(&self.path).unwrap().iter().all(|byte| *byte == 0)
    }

    fn is_untouched(&self) -> bool {
        fs::read(&self.path).unwrap() == self.content
    }

    fn names(&self) -> Vec<String> {
        let name = |entry: io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
        let mut names: Vec<_> = fs::read_dir(&self.filed).unwrap().map(name).collect();
        names.sort();
        names
    }

    fn hash(&self) -> Hash {
        Sha256::digest(&self.content).into()
    }

    /// The place as a kill in the middle of clearing leaves it: marked, and some of the rest gone.
    fn half_clear(&self) {
        self.file.write_all_at(&[&mark(3, &self.hash())[..], &self.content[SLOT_BYTES..]].concat(), 0).unwrap();
        self.file.write_all_at(&[0; 3 * BLOCK], BLOCK as u64).unwrap();
    }

    /// The same number from another time: one byte is another.
    fn other(&self) -> Vec<u8> {
        let mut other = self.content.clone();
        other[SEGMENT_BYTES - 1] ^= 1;
        other
    }
}

fn order() -> Order {
    Order { recipients: vec![AUDITOR.to_owned()], ..Order::with_secret(Zeroizing::default(), UnixMillis(1)) }
}

/// What the caged helper does.
fn honest(input: OwnedFd, output: OwnedFd) -> Result<(), StartFailure> {
    encrypt(&order(), File::from(input), File::from(output)).unwrap();
    Ok(())
}

fn dead() -> StartFailure {
    StartFailure::Named(Failure::new(Exit::Failed, "start", "the helper was killed", ""))
}

#[test]
fn a_segment_is_filed_once_and_cleared_from_wherever_it_was_left() {
    let place = place();
    assert!(place.file(4, None).is_err() && place.is_untouched(), "another number than the file's");
    place.file(3, None).unwrap();
    let copy = fs::read(place.filed.join("0000000003.segment")).unwrap();
    assert!(copy == place.content && place.is_cleared());
    // As after a crash between the two: the copy stays as it is, what was left of the place is cleared. Whether there is an
    // auditor by now makes no difference.
    place.half_clear();
    assert!(place.file(4, None).is_err() && !place.is_cleared(), "another number than the mark's");
    place.file(3, Some(&honest)).unwrap();
    assert!(fs::read(place.filed.join("0000000003.segment")).unwrap() == copy && place.is_cleared());
    assert_eq!(place.names(), ["0000000003.segment"]);
}

#[test]
fn a_sealed_segment_has_another_name_and_is_filed_from_every_step() {
    let place = place();
    let runs = AtomicU32::new(0);
    let seal = |input, output| {
        runs.fetch_add(1, Ordering::Relaxed);
        honest(input, output)
    };
    // Half a file of a filing that was cut off: nobody takes it for more.
    fs::write(place.filed.join("0000000003.segment.age.new"), &AGE[..10]).unwrap();
    place.file(3, Some(&seal)).unwrap();
    assert_eq!(place.names(), ["0000000003.segment.age", "0000000003.sha256"]);
    let said = fs::read_to_string(place.filed.join("0000000003.sha256")).unwrap();
    assert_eq!(said, format!("{}  0000000003.segment\n", hex::encode(place.hash())));
    let sealed = fs::read(place.filed.join("0000000003.segment.age")).unwrap();
    assert!(place.is_cleared() && (SEALED_LEAST..=SEALED_MOST).contains(&(sealed.len() as u64)));
    // Cut off before the place was cleared, in the middle of that, and before the vault was told.
    let (whole, half) = (|| fs::write(&place.path, &place.content).unwrap(), || place.half_clear());
    for left in [&whole as &dyn Fn(), &half, &|| ()] {
        left();
        place.file(3, Some(&seal)).unwrap();
        place.file(3, None).unwrap();
        assert!(place.is_cleared() && fs::read(place.filed.join("0000000003.segment.age")).unwrap() == sealed);
    }
    assert_eq!((place.names().len(), runs.into_inner()), (2, 1));
}

/// With an auditor; without one it begins with the first copy.
const STEPS: [Reached; 13] = [
    Reached::Hash(Step::Created),
    Reached::Hash(Step::Half),
    Reached::Hash(Step::Written),
    Reached::Hash(Step::Synced),
    Reached::Hash(Step::Renamed),
    Reached::Hash(Step::Durable),
    Reached::Copy(Step::Synced),
    Reached::Copy(Step::Renamed),
    Reached::Copy(Step::Durable),
    Reached::Marked,
    Reached::Half,
    Reached::Zeroed,
    Reached::Clear,
];

/// The child: files the segment of this folder, and waits at the step that it was told to wait at.
fn file_and_wait(folder: &Path, steps: &[Reached], seal: Option<Seal<'_>>) -> ! {
    let path = folder.join("a.segment");
    let file = File::options().read(true).write(true).open(&path).unwrap();
    let after = &mut |step| killed::wait_at(steps, &step);
    file_in_steps(&path, &file, 3, &folder.join("filed"), seal, after).unwrap();
    unreachable!("killed before");
}

fn killed_at_each_step(test: &str, steps: &[Reached], seal: Option<Seal<'_>>, names: &[&str]) {
    if let Some(folder) = killed::child() {
        file_and_wait(&folder, steps, seal);
    }
    for (number, step) in steps.iter().enumerate() {
        let place = place();
        killed::at(test, place.path.parent().unwrap(), number, step);
        let target = place.filed.join(names[0]);
        // Its place is touched only when it lies filed, whole.
        let unfiled = matches!(step, Reached::Hash(_) | Reached::Copy(Step::Synced));
        let uncleared = unfiled || matches!(step, Reached::Copy(_));
        assert_eq!((!target.exists(), place.is_untouched()), (unfiled, uncleared), "{step:?}");
        let kept = fs::read(&target).ok();
        place.file(3, seal).unwrap_or_else(|failure| panic!("{step:?}: {failure}"));
        let filed = fs::read(&target).unwrap();
        assert!(place.is_cleared() && place.names() == names, "{step:?}: {:?}", place.names());
        assert!(kept.is_none_or(|kept| kept == filed), "{step:?}: what lay filed is as it was");
        match seal {
            None => assert!(filed == place.content, "{step:?}"),
            Some(_) => {
                let said = fs::read_to_string(place.filed.join(names[1])).unwrap();
                assert!(said.starts_with(&hex::encode(place.hash())), "{step:?}");
                assert!(is_sealed(&File::open(&target).unwrap()).unwrap(), "{step:?}");
            }
        }
    }
}

#[test]
fn killed_at_each_step_a_segment_is_filed_all_the_same() {
    let test = "supervisor::filing::tests::killed_at_each_step_a_segment_is_filed_all_the_same";
    killed_at_each_step(test, &STEPS[6..], None, &["0000000003.segment"]);
}

#[test]
fn killed_at_each_step_a_segment_is_sealed_all_the_same() {
    let test = "supervisor::filing::tests::killed_at_each_step_a_segment_is_sealed_all_the_same";
    let names = ["0000000003.segment.age", "0000000003.sha256"];
    killed_at_each_step(test, &STEPS, Some(&honest), &names);
}

/// A liar that keeps to the form is found out by whoever opens what it wrote, and by nobody before: no key for that is here.
#[test]
fn what_has_the_form_of_a_sealed_segment_is_taken_for_one() {
    let place = place();
    let junk = |_: OwnedFd, output: OwnedFd| {
        let bytes = [AGE, &vec![1; SEALED_LEAST as usize]].concat();
        File::from(output).write_all(&bytes).map_err(|_| dead())
    };
    place.file(3, Some(&junk)).unwrap();
    assert!(place.is_cleared());
    let said = fs::read_to_string(place.filed.join("0000000003.sha256")).unwrap();
    assert!(
        said.starts_with(&hex::encode(place.hash())),
        "the hash of what should be in it is not the helper's to say"
    );
}

#[test]
fn a_helper_that_dies_or_lies_leaves_the_segment_where_it_is() {
    let place = place();
    let half = |mut output: File| output.write_all(&[AGE, &vec![1; SEGMENT_BYTES / 2]].concat());
    let killed = |_: OwnedFd, output: OwnedFd| half(output.into()).map_err(|_| dead()).and(Err(dead()));
    let short = |_: OwnedFd, output: OwnedFd| half(output.into()).map_err(|_| dead());
    let silent = |_: OwnedFd, _: OwnedFd| Ok(());
    let plain = |input: OwnedFd, output: OwnedFd| {
        io::copy(&mut File::from(input).chain(&[0; 4096][..]), &mut File::from(output)).map(drop).map_err(|_| dead())
    };
    let endless = |_: OwnedFd, output: OwnedFd| {
        // Its pipe is closed on it.
        assert!(io::copy(&mut AGE.chain(io::repeat(1)), &mut File::from(output)).is_err());
        Ok(())
    };
    for (name, seal) in [
        ("killed", &killed as Seal<'_>),
        ("short", &short),
        ("silent", &silent),
        ("plain", &plain),
        ("endless", &endless),
    ] {
        assert!(place.file(3, Some(seal)).is_err(), "{name}");
        assert!(place.is_untouched(), "{name}");
        assert!(!place.names().iter().any(|name| name.contains("segment")), "{name}: {:?}", place.names());
    }
    place.file(3, Some(&honest)).unwrap();
    assert!(place.is_cleared());
}

#[test]
fn the_helper_reads_the_segment_and_cannot_write_it() {
    let place = place();
    let prying = |input: OwnedFd, _: OwnedFd| {
        assert!(File::from(input).write_all_at(b"x", 0).is_err());
        Err(dead())
    };
    assert!(place.file(3, Some(&prying)).is_err() && place.is_untouched());
    // The name leads elsewhere by now: that file is not taken for the segment.
    fs::rename(&place.path, place.path.with_extension("moved")).unwrap();
    fs::write(&place.path, &place.content).unwrap();
    assert!(place.file(3, Some(&honest)).is_err() && place.names() == ["0000000003.sha256"]);
}

#[test]
fn the_bounds_hold_for_what_age_makes() {
    assert!(Lock::to(&[AUDITOR.to_owned()]).is_ok());
    let mut sealed = Vec::new();
    encrypt(&order(), &vec![0; SEGMENT_BYTES][..], &mut sealed).unwrap();
    assert!((SEALED_LEAST..=SEALED_MOST).contains(&(sealed.len() as u64)) && sealed.starts_with(AGE));
}

fn code(outcome: Result<(), StartFailure>) -> String {
    match outcome {
        Err(StartFailure::Named(failure)) => failure.code,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_number_that_is_taken_by_another_segment_clears_nothing() {
    let place = place();
    let (plain, sealed) = (place.filed.join("0000000003.segment"), place.filed.join("0000000003.segment.age"));
    for other in
        [place.other(), place.content[..SEGMENT_BYTES - 1].to_vec(), [&place.content[..], b"x"].concat(), vec![]]
    {
        fs::write(&plain, &other).unwrap();
        for seal in [None, Some(&honest as Seal<'_>)] {
            assert_eq!(code(place.file(3, seal)), TAKEN, "{} bytes", other.len());
        }
        assert!(place.is_untouched() && fs::read(&plain).unwrap() == other && place.names().len() == 1);
    }
    fs::remove_file(&plain).unwrap();
    // Sealed under a number that came again: by another hash, by none, and with the right one beside what is no sealed segment.
    place.file.write_all_at(&place.other(), 0).unwrap();
    place.file(3, Some(&honest)).unwrap();
    let (kept, beside) = (fs::read(&sealed).unwrap(), place.filed.join("0000000003.sha256"));
    place.file.write_all_at(&place.content, 0).unwrap();
    assert_eq!(code(place.file(3, Some(&honest))), TAKEN, "another hash");
    fs::remove_file(&beside).unwrap();
    assert_eq!(code(place.file(3, None)), TAKEN, "no hash");
    assert!(place.is_untouched() && fs::read(&sealed).unwrap() == kept);
    fs::write(&beside, hash_of(&place.filed, 3, &place.hash()).1).unwrap();
    fs::write(&sealed, b"").unwrap();
    assert_eq!(code(place.file(3, None)), TAKEN, "no sealed segment");
    assert!(place.is_untouched());
    // The way out.
    fs::rename(&sealed, place.path.with_extension("kept")).unwrap();
    place.file(3, Some(&honest)).unwrap();
    assert!(place.is_cleared());
}

#[test]
fn a_place_that_is_written_while_it_is_filed_is_not_cleared() {
    for (at, byte) in [(SEGMENT_BYTES - 1, 6), (40, 4)] {
        let place = place();
        let late = |input: OwnedFd, output: OwnedFd| {
            honest(input, output)?;
            place.file.write_all_at(&[byte], at as u64).map_err(|_| dead())
        };
        assert_eq!(code(place.file(3, Some(&late))), "audit.changed", "byte {at}");
        let mut expected = place.content.clone();
        expected[at] = byte;
        assert!(fs::read(&place.path).unwrap() == expected);
    }
}

#[test]
fn what_is_half_cleared_is_compared_as_well_and_needs_its_filed_copy() {
    let place = place();
    place.half_clear();
    let before = fs::read(&place.path).unwrap();
    assert_eq!(code(place.file(3, None)), "audit.changed", "nothing lies filed");
    fs::write(place.filed.join("0000000003.segment"), place.other()).unwrap();
    assert_eq!(code(place.file(3, None)), TAKEN);
    assert!(fs::read(&place.path).unwrap() == before);
    // Neither a header nor a mark, and not cleared: whose it is cannot be said.
    place.file.write_all_at(&[0; SLOT_BYTES], 0).unwrap();
    fs::write(place.filed.join("0000000003.segment"), &place.content).unwrap();
    assert_eq!(code(place.file(3, None)), "audit.changed");
    assert!(!place.is_cleared());
}

#[test]
fn a_filed_name_that_cannot_be_made_durable_clears_nothing() {
    let mut place = place();
    fs::write(place.filed.join("0000000003.segment"), &place.content).unwrap();
    // Names are made durable in the folder itself and over no link; the file can be read through it.
    let link = place.path.with_extension("link");
    std::os::unix::fs::symlink(&place.filed, &link).unwrap();
    let filed = std::mem::replace(&mut place.filed, link);
    assert!(place.file(3, None).is_err() && place.is_untouched());
    place.filed = filed;
    place.file(3, None).unwrap();
    assert!(place.is_cleared());
}
