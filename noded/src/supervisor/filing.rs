//! Closed segments of the audit trail on their way out of the two places: filed under their number, as they are or sealed to an
//! auditor, and opened again with the auditor's identity.
//!
//! In: a segment's file and, to be sealed, the caged unsealer, which gets it on a descriptor that only reads and writes into a
//! pipe. Out: a file that is durable and whole, and only then a place that is zeros. Each step finds what was done of it before.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::thread::ScopedJoinHandle;

use nix::fcntl::OFlag;
use openred_policy::Identity;
use openred_policy::socket::open_no_symlinks;
use openred_proto::audit::{Content, SEGMENT_BYTES, SLOT_BYTES};
use openred_proto::id::UnixMillis;
use openred_proto::unseal::{Order, Refused};
use zeroize::Zeroizing;

use super::child::Starter;
use super::errand::{Errand, pipe, setup};
use super::keystore::Fresh;
use super::workshop::Workshop;
use super::{Context, StartFailure, now};
use crate::cli::{Exit, Failure, Passphrase};
use crate::home::Home;

/// Bytes copied or cleared at once.
pub(super) const BLOCK: usize = 256 * 1024;
/// What every file of age begins with.
const AGE: &[u8] = b"age-encryption.org/v1\n";
/// A sealed segment is the segment, 16 bytes for each 64 KiB of it, and a header of some hundred bytes.
const SEALED_LEAST: u64 = (SEGMENT_BYTES + SEGMENT_BYTES / (64 * 1024) * 16) as u64;
/// No sealed segment is longer; a helper that writes more fills no disk.
const SEALED_MOST: u64 = SEALED_LEAST + 16 * 1024;

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

    /// Runs the caged unsealer once. Called on a thread of its own, which outlives it.
    pub(super) fn seal(&self, input: OwnedFd, output: OwnedFd) -> Result<(), StartFailure> {
        let what = "the runtime for filing a segment";
        let workshop = Workshop::beside(self.starter.beside().map_err(setup(what))?, self.identity);
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

/// Files the closed `segment`, which lies in `file` at `path`, and clears its place. Done in any of its steps before, it goes on
/// from there: what lies filed is whole, whichever of the two it is.
pub(super) fn file_away(
    path: &Path,
    file: &File,
    segment: u64,
    filed: &Path,
    seal: Option<Seal<'_>>,
) -> Result<(), StartFailure> {
    let _alone = FILING.lock().unwrap_or_else(PoisonError::into_inner);
    let targets = names(filed, segment);
    let there = targets.iter().map(|target| target.try_exists()).collect::<io::Result<Vec<_>>>();
    if !there.map_err(failed(filed))?.contains(&true) {
        let mut header = [0; SLOT_BYTES];
        file.read_exact_at(&mut header, 0).map_err(failed(path))?;
        match (Content::of(&header), seal) {
            (Content::Header(header, _), None) if header.segment == segment => copy(file, &targets[0])?,
            (Content::Header(header, _), Some(seal)) if header.segment == segment => {
                sealed(path, file, &targets[1], seal)?;
            }
            _ => {
                let what = format!("{}: the closed segment {segment} is not there", path.display());
                return Err(StartFailure::Named(Failure::new(Exit::Failed, "audit.changed", what, "")));
            }
        }
    }
    (0..SEGMENT_BYTES / BLOCK)
        .try_for_each(|block| file.write_all_at(&[0; BLOCK], (block * BLOCK) as u64))
        .and_then(|()| file.sync_all())
        .map_err(failed(path))
}

/// A durable copy, whole or not there at all.
pub(super) fn copy(from: &File, to: &Path) -> Result<(), StartFailure> {
    let mut fresh = Fresh::begin(to).map_err(StartFailure::Named)?;
    let (mut block, mut offset) = (vec![0; BLOCK], 0);
    loop {
        match from.read_at(&mut block, offset) {
            Ok(0) => return fresh.finish(false, |_| ()).map_err(StartFailure::Named),
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
fn sealed(path: &Path, file: &File, to: &Path, seal: Seal<'_>) -> Result<(), StartFailure> {
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
    let mut head = [0; AGE.len()];
    let whole = (SEALED_LEAST..=SEALED_MOST).contains(&written)
        && fresh.file.read_exact_at(&mut head, 0).is_ok()
        && head == AGE;
    if !whole {
        let what = format!("{}: {written} bytes came from the helper, which is no sealed segment", to.display());
        return Err(StartFailure::Named(Failure::new(Exit::Failed, "audit.unsealed", what, "it is tried again")));
    }
    fresh.finish(false, |_| ()).map_err(StartFailure::Named)
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

/// Reads a filed segment that is sealed, with its auditor's identity. Blocks; it is called on a thread without a runtime.
pub(crate) fn open_filed(home: &Home, uid_base: u32, secret: &Passphrase, place: &Path) -> Result<Vec<u8>, Failure> {
    let workshop = Workshop::open(home, uid_base)?;
    let input = File::open(place).map_err(|error| Failure::local(place.display(), &error))?;
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
