//! The segments of a trail as `openred audit` reads them: from the home or named files, in the order of their numbers. Those that
//! are sealed to an auditor are opened by the caged unsealer when their identity is given, and counted when it is not.

use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use openred_proto::audit::verify::Verifier;
use openred_proto::audit::{Content, Header, Record, SEGMENT_BYTES, SLOT_BYTES};
use openred_proto::id::NodeId;

use super::super::arguments::{AuditorSource, SecretSource};
use super::super::{Exit, Failure, Invocation, Passphrase, configuration};
use crate::config::NodeConfig;
use crate::home::Home;
use crate::supervisor::{Hash, digest, is_sealed, open_filed};

/// Extension of segments that only their auditor reads.
const ENCRYPTED: &str = "age";
/// Runs of numbers that are shown; who has more of them reads the list in the document.
const RUNS: usize = 8;

/// One segment's bytes and where they came from.
struct Segment {
    path: PathBuf,
    /// Its own, or that of its name when it was not read.
    number: u64,
    header: Option<Header>,
    /// None: it was not read.
    bytes: Option<Vec<u8>>,
    /// Its name says that it is sealed, and nothing else does.
    is_name_only: bool,
}

/// Segments in order.
pub(super) struct Segments {
    list: Vec<Segment>,
    /// How many are sealed to an auditor.
    pub(super) encrypted: usize,
}

/// Where to read them, and with what.
pub(super) struct Reader {
    home: Home,
    /// Named ones instead of the home's.
    files: Vec<PathBuf>,
    config: NodeConfig,
    secret: Option<Passphrase>,
}

impl Reader {
    pub(super) fn new(invocation: &Invocation, files: Vec<PathBuf>, auditor: &AuditorSource) -> Result<Self, Failure> {
        let (identity_file, identity_fd) = (auditor.identity_file.clone(), auditor.identity_fd);
        let given = identity_file.is_some() || identity_fd.is_some();
        let source = SecretSource { identity_file, identity_fd, ..SecretSource::default() };
        let secret = if given { Some(Passphrase::by_hand(&source)?) } else { None };
        // Only for a helper's uid as root, and how long it is waited for; files may be read where no node lives.
        let config = configuration::resolved_if_any(invocation).unwrap_or_default();
        Ok(Self { home: invocation.home.clone(), files, config, secret })
    }

    /// Whether it reads the whole of a home, to which a living vault's word can be held.
    pub(super) fn is_of_home(&self) -> bool {
        self.files.is_empty()
    }

    pub(super) fn read(&self) -> Result<Segments, Failure> {
        let paths = if self.is_of_home() { self.paths_of_home()? } else { self.files.clone() };
        let (mut list, mut encrypted) = (Vec::new(), 0);
        for path in paths {
            let segment = self.segment(path)?;
            encrypted += usize::from(is_encrypted(&segment.path) && !segment.is_name_only);
            // The place of one that was filed away is zeros and no segment.
            let is_zeros = segment.bytes.as_ref().is_some_and(|bytes| bytes.iter().all(|byte| *byte == 0));
            if !(is_zeros && self.is_of_home()) {
                list.push(segment);
            }
        }
        list.sort_by_key(|segment| (segment.number, segment.bytes.is_none(), segment.path.clone()));
        if self.is_of_home() {
            // One whose copy is filed and whose place is not cleared yet is there twice.
            list.dedup_by(|later, earlier| {
                let same = later.header.is_some() && later.bytes == earlier.bytes;
                same || (later.bytes.is_none() && !later.is_name_only && later.number == earlier.number)
            });
        }
        Ok(Segments { list, encrypted })
    }

    fn paths_of_home(&self) -> Result<Vec<PathBuf>, Failure> {
        let (mut paths, filed) = (self.home.audit_segments().to_vec(), self.home.audit_filed());
        let entries = fs::read_dir(&filed).map_err(|error| match error.kind() {
            ErrorKind::NotFound => {
                let what = format!("{}: no audit trail is kept here", self.home.audit().display());
                Failure::new(Exit::NotFound, "audit.missing", what, "the first `openred up` begins one")
            }
            _ => Failure::local(filed.display(), &error),
        })?;
        for entry in entries {
            let path = entry.map_err(|error| Failure::local(filed.display(), &error))?.path();
            if is_encrypted(&path) || path.extension().is_some_and(|extension| extension == "segment") {
                paths.push(path);
            }
        }
        Ok(paths)
    }

    fn segment(&self, path: PathBuf) -> Result<Segment, Failure> {
        let bytes = match (is_encrypted(&path), &self.secret) {
            (false, _) => plain(&path)?,
            (true, Some(secret)) => self.opened(secret, &path)?,
            (true, None) => {
                let name = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.split('.').next());
                let number = name.and_then(|name| name.parse().ok()).unwrap_or(u64::MAX);
                let sealed = File::open(&path).and_then(|file| is_sealed(&file));
                let is_name_only = !sealed.map_err(|error| Failure::local(path.display(), &error))?;
                return Ok(Segment { path, number, header: None, bytes: None, is_name_only });
            }
        };
        let header = bytes.first_chunk::<SLOT_BYTES>().and_then(|slot| match Content::of(slot) {
            Content::Header(header, _) => Some(header),
            _ => None,
        });
        let number = header.map_or(u64::MAX, |header| header.segment);
        Ok(Segment { path, number, header, bytes: Some(bytes), is_name_only: false })
    }

    fn opened(&self, secret: &Passphrase, path: &Path) -> Result<Vec<u8>, Failure> {
        beside(path, || open_filed(&self.home, &self.config, secret, path))
    }

    /// Writes the hash of a sealed segment of the home beside it.
    pub(super) fn digest(&self, segment: u64) -> Result<(PathBuf, Hash), Failure> {
        let secret = self.secret.as_ref().ok_or_else(|| {
            Failure::usage("no identity is named", "name the auditor's with --identity-file or --identity-fd")
        })?;
        beside(&self.home.audit_filed(), || digest(&self.home, &self.config, secret, segment))
    }
}

/// On a thread of its own: this one has a runtime already.
pub(super) fn beside<T: Send>(path: &Path, work: impl FnOnce() -> Result<T, Failure> + Send) -> Result<T, Failure> {
    std::thread::scope(|threads| {
        let early = |_| Err(Failure::local(path.display(), &std::io::Error::other("a thread ended early")));
        threads.spawn(work).join().unwrap_or_else(early)
    })
}

fn is_encrypted(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == ENCRYPTED)
}

fn plain(path: &Path) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    let opened = File::open(path).and_then(|file| file.take(SEGMENT_BYTES as u64 + 1).read_to_end(&mut bytes));
    opened.map_err(|error| Failure::local(path.display(), &error))?;
    Ok(bytes)
}

impl Segments {
    /// Shows them to a verifier, in order.
    pub(super) fn show(&self, verifier: &mut Verifier, visit: &mut dyn FnMut(&Record)) {
        for segment in &self.list {
            match &segment.bytes {
                Some(bytes) => verifier.segment(bytes, visit),
                None if segment.is_name_only => verifier.unsealed(segment.number),
                None => verifier.unread(segment.number),
            }
        }
    }

    /// Whose trail it says it is.
    pub(super) fn node(&self) -> Option<NodeId> {
        self.list.iter().find_map(|segment| segment.header.map(|header| header.node))
    }

    /// The sealed ones that were not opened, by what their names say they are.
    pub(super) fn not_opened(&self) -> Vec<u64> {
        let left = self.list.iter().filter(|segment| segment.bytes.is_none() && !segment.is_name_only);
        left.map(|segment| segment.number).collect()
    }

    /// How many were not read.
    pub(super) fn unread(&self) -> usize {
        self.not_opened().len()
    }

    /// What there is to be said of sealed ones.
    pub(super) fn said(&self) -> Option<String> {
        match (self.encrypted, self.unread()) {
            (0, _) => None,
            (all, 0) => Some(format!("{all} segments are encrypted to the auditor; all were read")),
            (all, left) => Some(format!(
                "{all} segments are encrypted to the auditor; {left} were not read: name the identity with --identity-file"
            )),
        }
    }
}

/// Rising numbers for people: `1 to 4, 9`.
pub(super) fn runs(numbers: &[u64]) -> String {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for number in numbers {
        match runs.last_mut() {
            Some((_, last)) if *number <= last.saturating_add(1) => *last = *number,
            _ => runs.push((*number, *number)),
        }
    }
    let shown = runs.iter().take(RUNS).map(|(first, last)| match (first == last, *last) {
        (_, u64::MAX) => String::from("some whose names have no number"),
        (true, _) => first.to_string(),
        (false, _) => format!("{first} to {last}"),
    });
    let more = (runs.len() > RUNS).then(|| String::from("…"));
    shown.chain(more).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use openred_proto::audit::verify::FaultKind;

    use super::*;

    #[test]
    fn an_empty_file_with_the_name_of_a_sealed_segment_is_a_fault_and_counts_as_none() {
        let (_folder, home) = Home::scratch();
        let filed = home.audit_filed();
        fs::create_dir_all(&filed).unwrap();
        for place in home.audit_segments() {
            fs::write(place, [0_u8; SLOT_BYTES]).unwrap();
        }
        let mut sealed = b"age-encryption.org/v1\n".to_vec();
        fs::write(filed.join("0000000001.segment.age"), &sealed).unwrap();
        sealed.resize(SEGMENT_BYTES + 2048, 1);
        fs::write(filed.join("0000000002.segment.age"), &sealed).unwrap();
        sealed[0] ^= 1;
        fs::write(filed.join("0000000003.segment.age"), &sealed).unwrap();
        let reader = Reader { home, files: Vec::new(), config: NodeConfig::default(), secret: None };
        let segments = reader.read().unwrap();
        assert_eq!((segments.not_opened(), segments.encrypted), (vec![2], 1));
        let mut verifier = Verifier::new(NodeId::from_bytes([1; 32]), Vec::new());
        segments.show(&mut verifier, &mut |_| {});
        let faults: Vec<_> = verifier.finish().faults.iter().map(|fault| (fault.segment, fault.kind)).collect();
        assert_eq!(faults, [(1, FaultKind::NotSealed), (3, FaultKind::NotSealed)]);
    }

    #[test]
    fn numbers_are_shown_in_runs_and_not_without_end() {
        assert_eq!(runs(&[1, 2, 3, 7, 9, 10, u64::MAX]), "1 to 3, 7, 9 to 10, some whose names have no number");
        let many: Vec<u64> = (0..100).map(|number| number * 2).collect();
        assert!(runs(&many).ends_with("14, …"));
    }
}
