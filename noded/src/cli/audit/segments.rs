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
use crate::supervisor::open_filed;

/// Extension of segments that only their auditor reads.
const ENCRYPTED: &str = "age";

/// One segment's bytes and where they came from.
struct Segment {
    path: PathBuf,
    /// Its own, or that of its name when it was not read.
    number: u64,
    header: Option<Header>,
    /// None: sealed, and no identity was given.
    bytes: Option<Vec<u8>>,
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
    uid_base: u32,
    secret: Option<Passphrase>,
}

impl Reader {
    pub(super) fn new(invocation: &Invocation, files: Vec<PathBuf>, auditor: &AuditorSource) -> Result<Self, Failure> {
        let (identity_file, identity_fd) = (auditor.identity_file.clone(), auditor.identity_fd);
        let given = identity_file.is_some() || identity_fd.is_some();
        let source = SecretSource { identity_file, identity_fd, ..SecretSource::default() };
        let secret = if given { Some(Passphrase::by_hand(&source)?) } else { None };
        // Only the uid that a helper takes as root; files may be read where no node lives.
        let uid_base = match configuration::resolved(invocation) {
            Ok(resolved) => resolved.config.uid_base,
            Err(_) => NodeConfig::default().uid_base,
        };
        Ok(Self { home: invocation.home.clone(), files, uid_base, secret })
    }

    /// Whether it reads the whole of a home, to which a living vault's word can be held.
    pub(super) fn is_of_home(&self) -> bool {
        self.files.is_empty()
    }

    pub(super) fn read(&self) -> Result<Segments, Failure> {
        let paths = if self.is_of_home() { self.paths_of_home()? } else { self.files.clone() };
        let encrypted = paths.iter().filter(|path| is_encrypted(path)).count();
        let mut list = Vec::new();
        for path in paths {
            let segment = self.segment(path)?;
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
                same || (later.bytes.is_none() && later.number == earlier.number)
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
                return Ok(Segment { path, number, header: None, bytes: None });
            }
        };
        let header = bytes.first_chunk::<SLOT_BYTES>().and_then(|slot| match Content::of(slot) {
            Content::Header(header, _) => Some(header),
            _ => None,
        });
        let number = header.map_or(u64::MAX, |header| header.segment);
        Ok(Segment { path, number, header, bytes: Some(bytes) })
    }

    /// On a thread of its own: this one has a runtime already.
    fn opened(&self, secret: &Passphrase, path: &Path) -> Result<Vec<u8>, Failure> {
        std::thread::scope(|threads| {
            let thread = threads.spawn(|| open_filed(&self.home, self.uid_base, secret, path));
            let early = |_| Err(Failure::local(path.display(), &std::io::Error::other("a thread ended early")));
            thread.join().unwrap_or_else(early)
        })
    }
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
                None => verifier.unread(segment.number),
            }
        }
    }

    /// Whose trail it says it is.
    pub(super) fn node(&self) -> Option<NodeId> {
        self.list.iter().find_map(|segment| segment.header.map(|header| header.node))
    }

    /// How many were not read.
    pub(super) fn unread(&self) -> usize {
        self.list.iter().filter(|segment| segment.bytes.is_none()).count()
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
