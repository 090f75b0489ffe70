//! Backups: a node's key alone, or the whole node, sealed by the caged unsealer and read back by it. Everything is checked
//! before anything of a home is touched, and what a restore replaces is moved aside, never deleted.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use nix::fcntl::OFlag;
use openred_policy::socket::{open_no_symlinks, sealed_file};
use openred_proto::config::CONFIG_BYTES;
use openred_proto::id::UnixMillis;
use openred_proto::unseal::{About, Order, Refused};
use sha2::{Digest, Sha256};

use super::create::small_with;
use super::errand::{Errand, Moved, pipe};
use super::filing::{Unfiled, file_closed};
use super::keystore::{Fresh, open, put};
use super::places::{lock, make_private, remove};
use super::restore::{Change, Finished, Layout, finish};
use super::scratch::Scratch;
use super::workshop::Workshop;
use super::{StartFailure, now};
use crate::archive::blobs::{self, Blobs, Totals};
use crate::archive::{
    self, ArchiveError, CONFIG, Content, DATABASE, Extracted, KEYSTORE, LOG, Manifest, PACKAGES, Source, VAULT_STATE,
};
use crate::cli::{Exit, Failure, Passphrase};
use crate::config::NodeConfig;
use crate::home::Home;
use crate::packages::Packages;
use crate::store::{Sound, check};

/// Longest vault state: 4,096 peers in two slots each, and two headers.
const STATE_BYTES: u64 = 8 << 20;
/// Longest keystore; the unsealer reads no further.
const KEYSTORE_BYTES: u64 = 16 * 1024;
/// Name of the folder that the modules' files are read to.
const BLOBS: &str = "blobs";
/// Looks at the vault's state until two in a row are equal; a vault under load writes about every millisecond.
const LOOKS: usize = 200;

/// What every backup command works with.
pub(crate) struct Backup<'a> {
    pub(super) home: &'a Home,
    config: &'a Path,
    pub(super) workshop: Workshop,
    pub(super) secret: Passphrase,
    /// What was cut short, and is done now.
    pub(super) finished: Option<Finished>,
    /// Whom closed segments of the audit trail are sealed to.
    pub(super) auditor: Option<String>,
}

/// A backup that was read to its end and opened.
pub(crate) struct Verified {
    pub(crate) manifest: Manifest,
    pub(crate) about: About,
    pub(crate) database: Option<Sound>,
    /// Of the modules' files, where it has them.
    pub(crate) blobs: Option<Totals>,
}

/// A backup that is the node of its home now.
pub(crate) struct Restored {
    pub(crate) verified: Verified,
    /// Where that lies which was there, if anything was.
    pub(crate) aside: Option<PathBuf>,
    /// What of its trail went there as it was.
    pub(crate) unfiled: Vec<Unfiled>,
}

pub(super) fn failed(place: &Path) -> impl Fn(io::Error) -> Failure + '_ {
    move |error| Failure::local(place.display(), &error)
}

/// A refusal of the unsealer over a backup, in words about the backup.
fn refused(place: &Path, failure: StartFailure) -> Failure {
    let shown = place.display();
    match failure {
        StartFailure::Keystore { refused: Refused::Secret, .. } => Failure::new(
            Exit::Locked,
            "backup.locked",
            format!("{shown}: this passphrase or identity does not open it"),
            "give the one that it was sealed with",
        ),
        StartFailure::Keystore { refused: Refused::Damaged, .. } => Failure::new(
            Exit::Failed,
            "backup.damaged",
            format!("{shown}: damaged, cut short, or no backup"),
            "take another copy of it",
        ),
        other => other.into(),
    }
}

fn broken(place: &Path, error: &ArchiveError) -> Failure {
    let what = format!("{}: {error}", place.display());
    Failure::new(Exit::Failed, "backup.damaged", what, "take another copy of it")
}

/// `place` as it must be for a file that is put there: an absolute path whose folder exists, without symbolic links.
pub(super) fn resolved(place: &Path) -> Result<PathBuf, Failure> {
    let name = place.file_name().ok_or_else(|| Failure::usage("no file is named", "name the backup's file"))?;
    let folder = match place.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    Ok(folder.canonicalize().map_err(failed(folder))?.join(name))
}

impl<'a> Backup<'a> {
    pub(crate) fn new(
        home: &'a Home,
        (place, config): (&'a Path, &NodeConfig),
        secret: Passphrase,
        finished: Option<Finished>,
    ) -> Result<Self, Failure> {
        let auditor = Some(config.audit.auditor.clone()).filter(|auditor| !auditor.is_empty());
        Ok(Self { home, config: place, workshop: Workshop::open(home, config)?, secret, finished, auditor })
    }

    pub(super) fn order(&self, recipients: &[String]) -> Result<Order, Failure> {
        let order = Order::with_secret(self.secret.bytes()?, UnixMillis(now()));
        Ok(Order { recipients: recipients.to_vec(), ..order })
    }

    /// The keystore sealed anew, which proves that it opens.
    fn key_part(&self, from: &Path, recipients: &[String]) -> Result<(About, Vec<u8>), StartFailure> {
        let keystore = open(from).map_err(StartFailure::Named)?;
        small_with(&self.workshop, "rewrap", keystore.into(), None, || self.order(recipients))
    }

    /// `key backup`: the key alone, as it is sealed or to `recipients`.
    pub(crate) fn key(&self, place: &Path, recipients: &[String]) -> Result<About, Failure> {
        let place = resolved(place)?;
        let (about, sealed) = self.key_part(&self.home.keystore(), recipients)?;
        put(&place, &sealed, false, |_| ())?;
        Ok(about)
    }

    /// `key restore`: the key alone into this home. A key that is there is moved aside, and only with `force`.
    pub(crate) fn restore_key(&self, from: &Path, recipients: &[String], force: bool) -> Result<About, Failure> {
        let from = resolved(from)?;
        make_private(self.home.path())
            .and_then(|()| make_private(&self.home.run()))
            .map_err(failed(self.home.path()))?;
        let _lock = lock(self.home)?;
        // This very one may have been cut short, and be whole since this command began.
        let is_done = match &self.finished {
            Some(Finished { change: change @ Change::Key(_), .. }) => *change == of_file(&read_keystore(&from)?),
            _ => false,
        };
        if !is_done {
            self.vacant(force, &[self.home.keystore()])?;
        }
        let (about, sealed) = self.key_part(&from, recipients).map_err(|failure| refused(&from, failure))?;
        if is_done {
            return Ok(about);
        }
        let read = read_keystore(&from)?;
        // What was sealed before opens no more; a state of another key is named before anything is changed.
        let state = self.home.vault_state();
        let renewed = match state.symlink_metadata() {
            Ok(_) => Some(self.renewed(&read, &read_state(&state)?)?.1),
            Err(_) => None,
        };
        let layout = Layout::of_key(self.home)?;
        if let Some(renewed) = renewed {
            layout.put_state(&renewed)?;
        }
        layout.put(&self.home.keystore(), &sealed)?;
        layout.commit(of_file(&read), |_| ())?;
        finish(self.home, |_| ())?;
        Ok(about)
    }

    /// A later epoch of a vault's state, without its short-lived keys; proves that this keystore opens it.
    pub(super) fn renewed(&self, keystore: &[u8], state: &[u8]) -> Result<(About, Vec<u8>), StartFailure> {
        self.renewed_with(&self.secret, keystore, state)
    }

    /// The same with what opens a keystore that is not the one here.
    pub(super) fn renewed_with(
        &self,
        secret: &Passphrase,
        keystore: &[u8],
        state: &[u8],
    ) -> Result<(About, Vec<u8>), StartFailure> {
        let memory = |name, bytes: &[u8]| {
            sealed_file(name, bytes).map_err(|error| StartFailure::Named(Failure::local(name, &error)))
        };
        let (read, output) = pipe("the renewed state")?;
        let errand = Errand {
            mode: "renew",
            input: memory("keystore", keystore)?,
            output,
            second: Some(memory("state", state)?),
        };
        let reader = std::thread::spawn(move || {
            let mut bytes = Vec::new();
            File::from(read).take(STATE_BYTES).read_to_end(&mut bytes).map(|_| bytes)
        });
        let about = self.workshop.run(errand, || Ok(Order::with_secret(secret.bytes()?, UnixMillis(now()))));
        let bytes = joined(reader).map_err(|error| StartFailure::Named(Failure::local("the renewed state", &error)));
        let about = about?.ok_or_else(|| {
            StartFailure::Named(Failure::new(Exit::Failed, "start", "the unsealer said nothing of the keystore", ""))
        })?;
        Ok((about, bytes?))
    }

    /// `backup create`: the whole node, the modules' files if `with_files`. `database` is the copy that a running node made;
    /// without it the node is stopped, and stays so meanwhile.
    pub(crate) fn create(
        &self,
        place: &Path,
        recipients: &[String],
        database: Option<&Path>,
        with_files: bool,
    ) -> Result<(Manifest, Option<Totals>), Failure> {
        let place = resolved(place)?;
        let _lock = match database {
            Some(_) => None,
            None => Some(lock(self.home)?),
        };
        let (about, key) = self.key_part(&self.home.keystore(), recipients)?;
        let state = stable_state(&self.home.vault_state())?;
        // Under the keystore as it is here: its copy may be for somebody else.
        self.renewed(&read_keystore(&self.home.keystore())?, &state)?;
        let contents = self.contents(key, state, database)?;
        let running = database.is_some();
        // The home's own path is the operator's; what lies below is `noded`'s, and no link in it is followed.
        let root = self.home.path().canonicalize().map_err(failed(self.home.path()))?;
        let blobs = with_files.then(|| Blobs::below(root.join(blobs::FOLDER)));
        let source = Source { node_id: about.node.to_string(), created_at: now(), running, contents, blobs };
        let manifest = archive::manifest(&source).map_err(|error| self.unread(&error))?;
        let fresh = Fresh::begin(&place)?;
        // The same lock on the whole as on the key in it, so that one secret opens both.
        let blobs = self.seal(&source, &manifest, &about.recipients, &place, &fresh.file)?;
        fresh.finish(false, |_| ())?;
        Ok((manifest, blobs))
    }

    fn unread(&self, error: &ArchiveError) -> Failure {
        let what = format!("{}: {error}", self.home.path().display());
        Failure::new(Exit::Failed, "backup.unread", what, "stop the node, or try again")
    }

    fn contents(
        &self,
        key: Vec<u8>,
        state: Vec<u8>,
        copy: Option<&Path>,
    ) -> Result<Vec<(&'static str, Content)>, Failure> {
        let config = read_config(self.config)?;
        let mut contents = vec![
            (CONFIG, Content::Bytes(config)),
            (KEYSTORE, Content::Bytes(key)),
            (VAULT_STATE, Content::Bytes(state)),
        ];
        let stopped = self.home.database();
        let file = open_regular(copy.unwrap_or(&stopped))?;
        contents.push((DATABASE, file.unwrap_or(Content::Bytes(Vec::new()))));
        // Of a running node the copy has all of it; after a clean end it is empty or gone.
        let log = if copy.is_none() { open_regular(&self.home.database_log())? } else { None };
        if let Some(Content::File(log)) = log
            && log.metadata().is_ok_and(|seen| seen.len() > 0)
        {
            contents.push((LOG, Content::File(log)));
        }
        contents.extend(self.packages()?.map(|packages| (PACKAGES, Content::File(packages))));
        Ok(contents)
    }

    /// The installed modules as one file, which nobody else sees; nothing where there are none.
    fn packages(&self) -> Result<Option<File>, Failure> {
        let folder = Scratch::new(self.home.path())?;
        let place = folder.path().join(PACKAGES);
        let made = File::options().read(true).write(true).create_new(true).open(&place);
        let file = made.map_err(failed(&place))?;
        let count = Packages::of(self.home).pack(io::BufWriter::new(&file))?;
        Ok((count > 0).then_some(file))
    }

    /// Streams the archive through the unsealer into `file`.
    fn seal(
        &self,
        source: &Source,
        manifest: &Manifest,
        to: &[String],
        place: &Path,
        file: &File,
    ) -> Result<Option<Totals>, Failure> {
        let ((plain, plain_end), (sealed, output)) = (pipe("the archive")?, pipe("the backup")?);
        let mut target = file.try_clone().map_err(failed(place))?;
        let moved = Moved::default();
        let plain_end = moved.counting(File::from(plain_end));
        std::thread::scope(|threads| {
            let writer = threads.spawn(move || archive::write(source, manifest, plain_end));
            let copier = threads.spawn(move || io::copy(&mut File::from(sealed), &mut target));
            let errand = Errand { mode: "encrypt", input: plain, output, second: None };
            let sealed = self.workshop.stream(errand, || self.order(to), &moved);
            let written = writer.join().unwrap_or(Err(ArchiveError::Shape("its writer ended early")));
            let copied = copier.join().unwrap_or_else(|_| Err(io::ErrorKind::Other.into()));
            // In the order of causes: a helper that had to be killed breaks the others' pipes, and so does a full disk.
            let sealed = late_first(sealed)?;
            copied.map_err(failed(place))?;
            let blobs = written.map_err(|error| self.unread(&error))?;
            sealed.map(|_| blobs).map_err(Failure::from)
        })
    }

    /// Opens a backup into `folder`: every file as the manifest says, the key opens, the state is the key's, the database is
    /// sound. The state comes back as a restored node gets it; the modules' files are kept only if they are to be.
    fn opened(&self, from: &Path, folder: &Path, keep: bool) -> Result<(Verified, Small, Vec<u8>), Failure> {
        let Extracted { manifest, small, blobs } = self.extracted(from, folder, keep)?;
        let empty = Vec::new();
        let part = |name| small.get(name).unwrap_or(&empty);
        let renewed = self.renewed(part(KEYSTORE), part(VAULT_STATE));
        let (about, state) = renewed.map_err(|failure| refused(from, failure))?;
        if about.node.to_string() != manifest.node_id {
            return Err(broken(from, &ArchiveError::Mismatch(KEYSTORE)));
        }
        let place = folder.join(archive::place_of(DATABASE));
        let length = fs::metadata(&place).map_err(failed(&place))?.len();
        let database = match length {
            0 => None,
            _ => Some(check(&place).map_err(|error| {
                let what = format!("{}: its database: {error}", from.display());
                Failure::new(Exit::Failed, "backup.database", what, "take another backup")
            })?),
        };
        Ok((Verified { manifest, about, database, blobs }, small, state))
    }

    fn extracted(&self, from: &Path, folder: &Path, keep: bool) -> Result<Extracted, Failure> {
        let input = self.workshop.opened(from)?;
        let (plain, output) = pipe("the archive")?;
        let place = folder.to_owned();
        let kept = keep.then(|| folder.join(BLOBS));
        let moved = Moved::default();
        let plain = moved.counting(File::from(plain));
        let reader = std::thread::spawn(move || archive::extract(plain, &place, kept.as_deref()));
        let errand = Errand { mode: "decrypt", input: input.into(), output, second: None };
        let opened = self.workshop.stream(errand, || self.order(&[]), &moved);
        let read = joined(reader);
        let opened = late_first(opened)?;
        // A backup that does not open says so; one that opens and is none is named by what is wrong with it: its reader left then, and
        // the unsealer could not write on.
        match (opened, read) {
            (Ok(_), Ok(read)) => Ok(read),
            // The reader's own trouble ends the unsealer as well.
            (_, Err(ArchiveError::Io(error))) if is_full(&error) => Err(failed(folder)(error)),
            (Err(failure @ StartFailure::Keystore { refused, .. }), read)
                if refused != Refused::Local || read.is_ok() =>
            {
                Err(self::refused(from, failure))
            }
            (_, Err(error)) => Err(broken(from, &error)),
            (Err(failure), Ok(_)) => Err(failure.into()),
        }
    }

    /// `backup verify`: reads everything, and leaves nothing.
    pub(crate) fn verify(&self, from: &Path) -> Result<Verified, Failure> {
        let folder = Scratch::new(self.home.path())?;
        self.opened(from, folder.path(), false).map(|(verified, ..)| verified)
    }

    /// `backup restore`: the whole node into this home. What is there is moved aside, and only with `force`.
    pub(crate) fn restore(&self, from: &Path, force: bool) -> Result<Restored, Failure> {
        let home = self.home;
        for folder in [home.path().to_owned(), home.run()] {
            make_private(&folder).map_err(failed(&folder))?;
        }
        let _lock = lock(home)?;
        let present = [home.keystore(), home.config(), home.vault_state(), home.database()];
        if self.finished.is_none() {
            self.vacant(force, &present)?;
        }
        let layout = Layout::of_node(home)?;
        let (verified, small, state) = self.opened(from, &layout.reading(), true)?;
        let change = Change::Node(verified.manifest.clone());
        match &self.finished {
            // This very one was cut short, and is whole since this command began.
            Some(finished) if finished.change == change => {
                return Ok(Restored { verified, aside: finished.aside.clone(), unfiled: Vec::new() });
            }
            Some(_) => self.vacant(force, &present)?,
            None => {}
        }
        for (name, place) in [(DATABASE, home.database()), (LOG, home.database_log()), (BLOBS, home.blobs())] {
            layout.take(archive::place_of(name), &place)?;
        }
        layout.take_modules(PACKAGES)?.map_err(|error| broken(from, &error))?;
        if !state.is_empty() {
            layout.put(&home.vault_state(), &state)?;
            // The trail stays where the node was: the one here begins anew, with the state's next sequence.
            layout.put(&home.audit_anew(), b"")?;
        }
        let empty = Vec::new();
        layout.put(&home.config(), small.get(CONFIG).unwrap_or(&empty))?;
        layout.put(&home.keystore(), small.get(KEYSTORE).unwrap_or(&empty))?;
        // The last thing before the moment, and no reason to stop: the node that was here may be the reason for the restore.
        let unfiled = file_closed(home, &self.workshop, self.auditor.as_deref());
        layout.commit(change, |_| ())?;
        let aside = finish(home, |_| ())?.and_then(|finished| finished.aside);
        Ok(Restored { verified, aside, unfiled })
    }

    fn vacant(&self, force: bool, places: &[PathBuf]) -> Result<(), Failure> {
        match places.iter().find(|place| place.symlink_metadata().is_ok()) {
            Some(place) if !force => {
                let what = format!("{}: a node lives here already", place.display());
                let way_out = "name another place with --home, or move this one aside with --force";
                Err(Failure::new(Exit::Conflict, "keystore.exists", what, way_out))
            }
            _ => Ok(()),
        }
    }
}

/// What came of an errand, unless it had to be killed: then what others say of it is a consequence.
fn late_first<T>(outcome: Result<T, StartFailure>) -> Result<Result<T, StartFailure>, Failure> {
    match outcome {
        Err(StartFailure::Child(fault)) if fault.is_late() => Err(StartFailure::Child(fault).into()),
        outcome => Ok(outcome),
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge)
}

/// The small files of a backup.
type Small = BTreeMap<&'static str, Vec<u8>>;

fn joined<T, E: From<io::Error>>(thread: JoinHandle<Result<T, E>>) -> Result<T, E> {
    thread.join().unwrap_or_else(|_| Err(io::Error::other("a thread ended early").into()))
}

fn read_config(place: &Path) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    let read = File::open(place).and_then(|file| file.take(CONFIG_BYTES as u64 + 1).read_to_end(&mut bytes));
    read.map_err(failed(place))?;
    if bytes.len() > CONFIG_BYTES {
        return Err(Failure::new(Exit::Failed, "backup.unread", format!("{}: too long", place.display()), ""));
    }
    Ok(bytes)
}

/// A keystore that [`open`] takes.
fn read_keystore(place: &Path) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    open(place)?.take(KEYSTORE_BYTES).read_to_end(&mut bytes).map_err(failed(place))?;
    Ok(bytes)
}

/// What the restore of this key's file is known by.
fn of_file(bytes: &[u8]) -> Change {
    Change::Key(hex::encode(Sha256::digest(bytes)))
}

pub(super) fn read_state(place: &Path) -> Result<Vec<u8>, Failure> {
    let file = open_no_symlinks(place, OFlag::O_RDONLY | OFlag::O_NONBLOCK, 0).map_err(failed(place))?;
    let length = file.metadata().map_err(failed(place))?.len().min(STATE_BYTES);
    let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
    file.read_exact_at(&mut bytes, 0).map_err(failed(place))?;
    Ok(bytes)
}

/// The vault's state as of one moment: two looks in a row that are equal. At most the last commit is half in it, as after a
/// crash, which the state survives. A node that never ran has none.
fn stable_state(place: &Path) -> Result<Vec<u8>, Failure> {
    if place.symlink_metadata().is_err() {
        return Ok(Vec::new());
    }
    let mut before = read_state(place)?;
    for _ in 0..LOOKS {
        let again = read_state(place)?;
        if again == before {
            return Ok(again);
        }
        before = again;
    }
    let what = format!("{}: it changes too fast to be copied", place.display());
    Err(Failure::new(Exit::Failed, "backup.unread", what, "try again, or stop the node first"))
}

/// A file that may not be there; a link, a pipe or a folder in its place is refused.
fn open_regular(place: &Path) -> Result<Option<Content>, Failure> {
    let file = match open_no_symlinks(place, OFlag::O_RDONLY | OFlag::O_NONBLOCK, 0) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(failed(place))?,
    };
    if !file.metadata().map_err(failed(place))?.is_file() {
        let what = format!("{}: no regular file", place.display());
        return Err(Failure::new(
            Exit::Failed,
            "backup.unread",
            what,
            "somebody changed the node's state: look into it",
        ));
    }
    Ok(Some(Content::File(file)))
}

/// Removes the copy that a running node made.
pub(crate) fn remove_copy(place: &Path) {
    let _ = remove(place);
}
