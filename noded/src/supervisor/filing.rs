//! Closed segments of the audit trail on their way out of the two places: filed under their number, as they are or sealed to an
//! auditor, and opened again with the auditor's identity.
//!
//! In: a segment's file and, to be sealed, the caged unsealer, which gets it on a descriptor that only reads and writes into a
//! pipe. Out: a file that is durable and whole, and only then a place that is zeros. Each step finds what was done of it before,
//! and takes for it only what is shown to be the same segment: by its bytes, or, sealed, by their hash in a file beside it.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::thread::ScopedJoinHandle;
use std::time::Duration;

use nix::fcntl::OFlag;
use openred_policy::Identity;
use openred_policy::socket::{open_no_symlinks, sync_directory};
use openred_proto::audit::{Content, Event, SEGMENT_BYTES, SLOT_BYTES};
use openred_proto::id::UnixMillis;
use openred_proto::unseal::{Order, Refused};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::child::Starter;
use super::errand::{Errand, pipe, setup};
use super::keystore::{Fresh, Step, put};
use super::places::make_private;
use super::workshop::Workshop;
use super::{Context, StartFailure, now};
use crate::cli::{Exit, Failure, Passphrase};
use crate::config::NodeConfig;
use crate::home::Home;

/// Bytes copied or cleared at once.
pub(super) const BLOCK: usize = 256 * 1024;
/// What every file of age begins with.
const AGE: &[u8] = b"age-encryption.org/v1\n";
/// A sealed segment is the segment, 16 bytes for each 64 KiB of it, and a header of some hundred bytes.
const SEALED_LEAST: u64 = (SEGMENT_BYTES + SEGMENT_BYTES / (64 * 1024) * 16) as u64;
/// No sealed segment is longer; a helper that writes more fills no disk.
const SEALED_MOST: u64 = SEALED_LEAST + 16 * 1024;
/// Longest that sealing one segment may take. It is 4 MiB and a second's work: a disk or processor that is a hundred times slower is
/// waited for, a helper that was stopped is not.
const SEALING: Duration = Duration::from_secs(120);
/// What lies filed under a segment's number is not shown to be that segment.
pub(super) const TAKEN: &str = "audit.number-taken";
/// What the first slot of a place begins with while it is cleared. No reader of a trail takes it for a slot: it has no hash of its own.
const MARK: &[u8; 8] = b"ORCLEAR1";

/// One filing at a time: that of a vault that has ended may still be under way when the next one's begins, and must not clear a
/// place that is written again.
static FILING: Mutex<()> = Mutex::new(());

/// Seals what it reads from the one descriptor into the other.
pub(super) type Seal<'a> = &'a (dyn Fn(OwnedFd, OwnedFd) -> Result<(), StartFailure> + Sync);

fn failed(place: &Path) -> impl Fn(io::Error) -> StartFailure + '_ {
    move |error| StartFailure::Named(Failure::local(place.display(), &error))
}

/// Whom segments are sealed to, and what it takes to have that done beside a running supervisor.
pub(super) struct Archive {
    auditor: String,
    starter: Starter,
    identity: Option<Identity>,
}

impl Archive {
    /// As the configuration wants it now; none when segments are filed as they are.
    pub(super) fn of(context: &Context) -> io::Result<Option<Self>> {
        let Some(auditor) = context.settings.auditor() else { return Ok(None) };
        Ok(Some(Self { auditor, starter: context.starter.beside()?, identity: context.identities.unseal }))
    }

    /// For a command's own work on a node that does not run.
    pub(super) fn beside(workshop: &Workshop, auditor: &str) -> io::Result<Self> {
        let (starter, identity) = workshop.starter()?;
        Ok(Self { auditor: auditor.to_owned(), starter, identity })
    }

    /// Runs the caged unsealer once. Called on a thread of its own, which outlives it.
    pub(super) fn seal(&self, input: OwnedFd, output: OwnedFd) -> Result<(), StartFailure> {
        let what = "the runtime for filing a segment";
        let workshop = Workshop::beside(self.starter.beside().map_err(setup(what))?, self.identity, SEALING);
        let order = || {
            let recipients = vec![self.auditor.clone()];
            Ok(Order { recipients, ..Order::with_secret(Zeroizing::default(), UnixMillis(now())) })
        };
        let errand = Errand { mode: "encrypt", input, output, second: None };
        workshop.map_err(setup(what))?.run(errand, order).map(|_| ())
    }
}

/// The names under which a segment may lie filed: as it is, and sealed.
fn names(filed: &Path, segment: u64) -> [PathBuf; 2] {
    ["segment", "segment.age"].map(|extension| filed.join(format!("{segment:010}.{extension}")))
}

/// Beside a sealed segment: the hash of what was sealed, as `sha256sum` writes it, by which it is known again without being opened.
fn hash_of(filed: &Path, segment: u64, hash: &Hash) -> (PathBuf, String) {
    let line = format!("{}  {segment:010}.segment\n", hex::encode(hash));
    (filed.join(format!("{segment:010}.sha256")), line)
}

/// SHA-256 of a segment's bytes.
pub(crate) type Hash = [u8; 32];

/// What a closed segment's place holds.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// All of it.
    Whole(Hash),
    /// What is left of it: it is filed, and its place was being cleared.
    Marked(Hash),
    /// Zeros.
    Clear,
}

/// Where a filing has got to; the fault test kills the process after each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reached {
    /// With the file of the hash.
    Hash(Step),
    /// With the segment's own file.
    Copy(Step),
    /// The place is marked as one that is cleared.
    Marked,
    /// Half of it is written over.
    Half,
    /// All of it is, on the disk, but for the mark.
    Zeroed,
    /// The mark too.
    Clear,
}

/// Files the closed `segment`, which lies in `file` at `path`, and clears its place. Done in any of its steps before, it goes on
/// from there; what lies filed under its number and is another segment, or may be, stops it.
pub(super) fn file_away(
    path: &Path,
    file: &File,
    segment: u64,
    filed: &Path,
    seal: Option<Seal<'_>>,
) -> Result<(), StartFailure> {
    file_in_steps(path, file, segment, filed, seal, &mut |_| ())
}

/// The same; `after` hears of each step.
fn file_in_steps(
    path: &Path,
    file: &File,
    segment: u64,
    filed: &Path,
    seal: Option<Seal<'_>>,
    after: &mut dyn FnMut(Reached),
) -> Result<(), StartFailure> {
    let _alone = FILING.lock().unwrap_or_else(PoisonError::into_inner);
    let place = look(path, file, segment)?;
    let targets = names(filed, segment);
    let mut is_filed = false;
    for target in &targets {
        is_filed |= lies_at(target, (path, segment), place)?;
    }
    match (place, is_filed, seal) {
        (_, true, _) => {}
        (Place::Whole(_), false, None) => copied(file, &targets[0], |step| after(Reached::Copy(step)))?,
        (Place::Whole(hash), false, Some(seal)) => {
            let (beside, line) = hash_of(filed, segment, &hash);
            put(&beside, line.as_bytes(), true, |step| after(Reached::Hash(step))).map_err(StartFailure::Named)?;
            sealed(path, file, &targets[1], seal, |step| after(Reached::Copy(step)))?;
        }
        (Place::Marked(_) | Place::Clear, false, _) => return Err(gone(path, segment)),
    }
    // Also of a name that was there: whoever made it may have been killed before it was durable.
    sync_directory(filed).map_err(failed(filed))?;
    let (Place::Whole(hash) | Place::Marked(hash)) = place else { return Ok(()) };
    // Sealing takes its time: what is cleared is what was filed, and nothing that was written there since.
    if look(path, file, segment)? != place {
        return Err(gone(path, segment));
    }
    clear(file, segment, &hash, after).map_err(failed(path))
}

/// What the place holds of this segment; an error if it holds another.
fn look(path: &Path, file: &File, segment: u64) -> Result<Place, StartFailure> {
    let mut slot = [0; SLOT_BYTES];
    file.read_exact_at(&mut slot, 0).map_err(failed(path))?;
    let mut hash = [0; 32];
    hash.copy_from_slice(&slot[16..48]);
    if slot == mark(segment, &hash) {
        return Ok(Place::Marked(hash));
    }
    match Content::of(&slot) {
        Content::Header(header, _) if header.segment == segment => {
            hashed(file).map_err(failed(path))?.map(Place::Whole).ok_or_else(|| gone(path, segment))
        }
        Content::Empty if is_zeros(file).map_err(failed(path))? => Ok(Place::Clear),
        _ => Err(gone(path, segment)),
    }
}

fn gone(path: &Path, segment: u64) -> StartFailure {
    let what = format!("{}: the closed segment {segment} is not there, nor wholly filed", path.display());
    let way_out = "put the file back as it was, or what was filed of it into `audit/filed`";
    StartFailure::Named(Failure::new(Exit::Failed, "audit.changed", what, way_out))
}

/// Whether the segment lies filed as `target`. Another one there, or one that may be another, is an error: nothing is cleared for it.
fn lies_at(target: &Path, (path, segment): (&Path, u64), place: Place) -> Result<bool, StartFailure> {
    match fs::symlink_metadata(target) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
        seen => seen.map_err(failed(target))?,
    };
    let (Place::Whole(hash) | Place::Marked(hash)) = place else { return Ok(true) };
    let same = is_same(target, segment, &hash).map_err(failed(target))?;
    if same {
        return Ok(true);
    }
    Err(StartFailure::Named(taken(target, path, segment)))
}

fn taken(target: &Path, path: &Path, segment: u64) -> Failure {
    let (shown, other) = (path.display(), target.display());
    let what = format!(
        "{shown}: the closed segment {segment} is kept there: {other} has its number and is not shown to be the same"
    );
    let way_out = "treat it as a break-in until explained, unless an older state was put back; keep both: with that file moved out of \
                   `audit/filed` the segment is filed beside what remains";
    let (beside, _) = hash_of(target.parent().unwrap_or(target), segment, &[0; 32]);
    if target.extension().is_some_and(|extension| extension == "age") && beside.symlink_metadata().is_err() {
        // Versions before there were hashes left such files.
        let way_out = format!(
            "`openred audit digest {segment}` with the auditor's identity writes the hash beside it by which it is known; if it is \
             another: {way_out}"
        );
        return Failure::new(Exit::Conflict, TAKEN, what, way_out);
    }
    Failure::new(Exit::Conflict, TAKEN, what, way_out)
}

fn is_same(target: &Path, segment: u64, hash: &Hash) -> io::Result<bool> {
    let kept = open_regular(target)?;
    if target.extension().is_none_or(|extension| extension != "age") {
        return Ok(hashed(&kept)?.is_some_and(|kept| kept == *hash));
    }
    let (beside, line) = hash_of(target.parent().unwrap_or(target), segment, hash);
    match said(&beside, line.len()) {
        Ok(said) => Ok(said == line.as_bytes() && is_sealed(&kept)?),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// What the file beside a sealed segment says, no further than shows that it is another.
fn said(beside: &Path, length: usize) -> io::Result<Vec<u8>> {
    let mut said = Vec::with_capacity(length + 1);
    open_regular(beside)?.take(length as u64 + 1).read_to_end(&mut said)?;
    Ok(said)
}

/// No link at its end, and no pipe that would have to be waited for.
fn open_regular(path: &Path) -> io::Result<File> {
    let file = File::options().read(true).custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits()).open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::other("no regular file")) }
}

/// Whether a file begins as one of age and has the length of a sealed segment; its identity alone says more.
pub(crate) fn is_sealed(file: &File) -> io::Result<bool> {
    let mut head = [0; AGE.len()];
    if !(SEALED_LEAST..=SEALED_MOST).contains(&file.metadata()?.len()) {
        return Ok(false);
    }
    file.read_exact_at(&mut head, 0)?;
    Ok(head == AGE)
}

/// Shows the file block by block, no further than a segment's end can be told from; how much that was.
fn blocks(file: &File, mut visit: impl FnMut(&[u8])) -> io::Result<u64> {
    let (mut block, mut offset) = (vec![0; BLOCK], 0);
    while offset <= SEGMENT_BYTES as u64 {
        match file.read_at(&mut block, offset) {
            Ok(0) => break,
            Ok(count) => {
                offset += count as u64;
                visit(&block[..count]);
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(offset)
}

/// None: it has not a segment's length.
fn hashed(file: &File) -> io::Result<Option<Hash>> {
    let mut hash = Sha256::new();
    let length = blocks(file, |block| hash.update(block))?;
    Ok((length == SEGMENT_BYTES as u64).then(|| hash.finalize().into()))
}

fn is_zeros(file: &File) -> io::Result<bool> {
    let mut zeros = true;
    blocks(file, |block| zeros &= block.iter().all(|byte| *byte == 0))?;
    Ok(zeros)
}

/// Says in a place's first slot which segment's rest is cleared.
fn mark(segment: u64, hash: &Hash) -> [u8; SLOT_BYTES] {
    let mut slot = [0; SLOT_BYTES];
    slot[..8].copy_from_slice(MARK);
    slot[8..16].copy_from_slice(&segment.to_le_bytes());
    slot[16..48].copy_from_slice(hash);
    slot
}

/// Of which segment a place says that it is being cleared.
fn marked(slot: &[u8; SLOT_BYTES]) -> Option<u64> {
    let (segment, hash) = (slot[8..16].try_into().ok()?, slot[16..48].try_into().ok()?);
    let segment = u64::from_le_bytes(segment);
    (*slot == mark(segment, &hash)).then_some(segment)
}

/// Clears a place whose segment is durable elsewhere. The mark is durable before anything else goes, and goes last: what a kill leaves
/// half cleared is known by it, and compared all the same.
fn clear(file: &File, segment: u64, hash: &Hash, after: &mut dyn FnMut(Reached)) -> io::Result<()> {
    const BLOCKS: usize = SEGMENT_BYTES / BLOCK;
    file.write_all_at(&mark(segment, hash), 0)?;
    file.sync_all()?;
    after(Reached::Marked);
    file.write_all_at(&[0; BLOCK - SLOT_BYTES], SLOT_BYTES as u64)?;
    for block in 1..BLOCKS {
        if block == BLOCKS / 2 {
            after(Reached::Half);
        }
        file.write_all_at(&[0; BLOCK], (block * BLOCK) as u64)?;
    }
    file.sync_all()?;
    after(Reached::Zeroed);
    file.write_all_at(&[0; SLOT_BYTES], 0)?;
    file.sync_all()?;
    after(Reached::Clear);
    Ok(())
}

/// A durable copy, whole or not there at all.
pub(super) fn copy(from: &File, to: &Path) -> Result<(), StartFailure> {
    copied(from, to, |_| ())
}

fn copied(from: &File, to: &Path, after: impl FnMut(Step)) -> Result<(), StartFailure> {
    let mut fresh = Fresh::begin(to).map_err(StartFailure::Named)?;
    let (mut block, mut offset) = (vec![0; BLOCK], 0);
    loop {
        match from.read_at(&mut block, offset) {
            Ok(0) => return fresh.finish(false, after).map_err(StartFailure::Named),
            Ok(count) => {
                offset += count as u64;
                fresh.file.write_all(&block[..count]).map_err(failed(to))?;
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(failed(to)(error)),
        }
    }
}

/// A durable sealed copy, whole or not there at all.
fn sealed(path: &Path, file: &File, to: &Path, seal: Seal<'_>, after: impl FnMut(Step)) -> Result<(), StartFailure> {
    let fresh = Fresh::begin(to).map_err(StartFailure::Named)?;
    let input = read_only(path, file).map_err(failed(path))?;
    let (read, output) = pipe("the sealed segment")?;
    let mut target = fresh.file.try_clone().map_err(failed(to))?;
    let written = std::thread::scope(|threads| {
        let copier = threads.spawn(move || io::copy(&mut File::from(read).take(SEALED_MOST + 1), &mut target));
        let done = seal(input.into(), output);
        let written = joined(copier).map_err(failed(to));
        // Why the helper gave up says more than that its pipe came to an end.
        done.and(written)
    })?;
    if !is_sealed(&fresh.file).map_err(failed(to))? {
        let what = format!("{}: {written} bytes came from the helper, which is no sealed segment", to.display());
        return Err(StartFailure::Named(Failure::new(Exit::Failed, "audit.unsealed", what, "it is tried again")));
    }
    fresh.finish(false, after).map_err(StartFailure::Named)
}

/// The same file for a helper that has nothing to write into it.
fn read_only(path: &Path, held: &File) -> io::Result<File> {
    let file = open_no_symlinks(path, OFlag::O_RDONLY | OFlag::O_NONBLOCK, 0)?;
    let (named, held) = (file.metadata()?, held.metadata()?);
    if (named.dev(), named.ino()) == (held.dev(), held.ino()) { Ok(file) } else { Err(ErrorKind::NotFound.into()) }
}

fn joined<T>(thread: ScopedJoinHandle<'_, io::Result<T>>) -> io::Result<T> {
    thread.join().unwrap_or_else(|_| Err(io::Error::other("a thread ended early")))
}

/// A closed segment that could not be filed.
pub(crate) struct Unfiled {
    /// Its place.
    pub(crate) place: PathBuf,
    pub(crate) why: Failure,
}

/// For who holds the home's lock: files each closed segment as a running node would have, before its trail is put somewhere else. There
/// nobody would file it any more, and one that is to be sealed to an auditor would stay in clear.
pub(super) fn file_closed(home: &Home, workshop: &Workshop, auditor: Option<&str>) -> Vec<Unfiled> {
    let places = home.audit_segments().into_iter();
    let tried = places.map(|place| (file_one(home, &place, workshop, auditor), place));
    tried.filter_map(|(filed, place)| filed.err().map(|why| Unfiled { place, why })).collect()
}

/// The same for a command that has no workshop of its own. Blocks; it is called on a thread without a runtime.
pub(crate) fn file_waiting(home: &Home, config: &NodeConfig) -> Result<Vec<Unfiled>, Failure> {
    let auditor = Some(config.audit.auditor.as_str()).filter(|auditor| !auditor.is_empty());
    Ok(file_closed(home, &Workshop::open(home, config)?, auditor))
}

fn file_one(home: &Home, place: &Path, workshop: &Workshop, auditor: Option<&str>) -> Result<(), Failure> {
    let failed = |error: io::Error| Failure::local(place.display(), &error);
    let file = match open_no_symlinks(place, OFlag::O_RDWR | OFlag::O_NONBLOCK, 0) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        opened => opened.map_err(failed)?,
    };
    let Some(segment) = closed(&file).map_err(failed)? else { return Ok(()) };
    let filed = home.audit_filed();
    make_private(&filed).map_err(|error| Failure::local(filed.display(), &error))?;
    let archive = auditor.map(|auditor| Archive::beside(workshop, auditor)).transpose().map_err(failed)?;
    let seal = archive.as_ref().map(|archive| move |input, output| archive.seal(input, output));
    Ok(file_away(place, &file, segment, &filed, seal.as_ref().map(|seal| seal as Seal<'_>))?)
}

/// The number of the segment in a place if it is closed: nothing is written into it any more. One whose clearing was cut off is closed
/// too, and its place says of which it is.
fn closed(file: &File) -> io::Result<Option<u64>> {
    let mut bytes = vec![0; SEGMENT_BYTES];
    match file.read_exact_at(&mut bytes, 0) {
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(None),
        read => read?,
    }
    let slots = bytes.as_chunks::<SLOT_BYTES>().0;
    let Some(first) = slots.first() else { return Ok(None) };
    if let Some(segment) = marked(first) {
        return Ok(Some(segment));
    }
    let Content::Header(header, _) = Content::of(first) else { return Ok(None) };
    let closes = |slot: &[u8; SLOT_BYTES]| matches!(Content::of(slot), Content::Record(record, _) if record.event == Event::SegmentClosed);
    Ok(slots.iter().any(closes).then_some(header.segment))
}

/// Writes beside a sealed segment the hash of what is in it, where none is: its auditor's identity opens it. Whether it is the one that
/// waits under its number is then seen by that hash, as ever.
pub(crate) fn digest(
    home: &Home,
    config: &NodeConfig,
    secret: &Passphrase,
    segment: u64,
) -> Result<(PathBuf, Hash), Failure> {
    let (filed, [_, sealed]) = (home.audit_filed(), names(&home.audit_filed(), segment));
    let bytes = open_filed(home, config, secret, &sealed)?;
    let shown = sealed.display();
    let header = bytes.first_chunk::<SLOT_BYTES>().map(Content::of);
    if bytes.len() != SEGMENT_BYTES || !matches!(header, Some(Content::Header(header, _)) if header.segment == segment)
    {
        let what = format!("{shown}: what is sealed in it is not segment {segment}");
        return Err(Failure::new(Exit::Conflict, TAKEN, what, "move it out of `audit/filed`, and keep it"));
    }
    let hash: Hash = Sha256::digest(&bytes).into();
    let (beside, line) = hash_of(&filed, segment, &hash);
    match said(&beside, line.len()) {
        Ok(said) if said == line.as_bytes() => {}
        Ok(_) => {
            let what = format!("{}: it says another hash than that of what is sealed beside it", beside.display());
            let way_out = "treat it as a break-in until explained: one of the two was changed; keep both";
            return Err(Failure::new(Exit::Conflict, TAKEN, what, way_out));
        }
        Err(error) if error.kind() == ErrorKind::NotFound => put(&beside, line.as_bytes(), false, |_| ())?,
        Err(error) => return Err(Failure::local(beside.display(), &error)),
    }
    Ok((beside, hash))
}

/// Reads a filed segment that is sealed, with its auditor's identity. Blocks; it is called on a thread without a runtime.
pub(crate) fn open_filed(
    home: &Home,
    config: &NodeConfig,
    secret: &Passphrase,
    place: &Path,
) -> Result<Vec<u8>, Failure> {
    let workshop = Workshop::open(home, config)?;
    let input = workshop.opened(place)?;
    let (read, output) = pipe("the opened segment")?;
    let (opened, bytes) = std::thread::scope(|threads| {
        let reader = threads.spawn(move || {
            let mut bytes = Vec::new();
            File::from(read).take(SEGMENT_BYTES as u64 + 1).read_to_end(&mut bytes).map(|_| bytes)
        });
        let order = || Ok(Order::with_secret(secret.bytes()?, UnixMillis(now())));
        let errand = Errand { mode: "decrypt", input: input.into(), output, second: None };
        (workshop.run(errand, order), joined(reader))
    });
    let shown = place.display();
    match opened {
        Err(StartFailure::Keystore { refused: Refused::Secret, .. }) => {
            let what = format!("{shown}: this identity does not open it");
            Err(Failure::new(Exit::Locked, "audit.locked", what, "name the identity of the auditor it was sealed to"))
        }
        Err(StartFailure::Keystore { refused: Refused::Damaged, .. }) => {
            let what = format!("{shown}: damaged, cut short, or no sealed segment");
            Err(Failure::new(Exit::Failed, "audit.damaged", what, "take another copy of it"))
        }
        Err(other) => Err(other.into()),
        Ok(_) => bytes.map_err(|error| Failure::local(&shown, &error)),
    }
}

#[cfg(test)]
#[path = "filing_tests.rs"]
mod tests;
