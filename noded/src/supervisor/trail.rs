//! The audit trail's files: made, held and watched by the supervisor, written by the vault through descriptors.
//!
//! Two segments of a fixed size lie in `audit/`. Once a second the supervisor compares them with what it opened and asks the
//! vault where the trail stands. A closed segment is filed (`filing`), durable under its number, before its place is zeros again
//! and the vault is told. A segment that was deleted or replaced while the vault wrote it still hangs on the
//! descriptor: keys are put away at once, and the file is put back from there.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use nix::fcntl::OFlag;
use openred_policy::Role;
use openred_policy::socket::open_no_symlinks;
use openred_policy::spawn::Exit as Ended;
use openred_proto::audit::{Event, SEGMENT_BYTES};
use openred_proto::vault::{AuditStatus, Reply, Request};

use super::filing::{Archive, BLOCK, Seal, TAKEN, copy, file_away};
use super::keystore::Fresh;
use super::operator::Operator;
use super::owed;
use super::places::make_private;
use super::{Context, StartFailure};
use crate::cli::{Exit, Failure};
use crate::home::Home;

/// Between two looks whether a segment is filed, while a start waits for that.
const FILING_LOOK: std::time::Duration = std::time::Duration::from_millis(10);

/// The two segments of one start of the vault.
pub(crate) struct Segments(Arc<[Segment; 2]>);

struct Segment {
    path: PathBuf,
    file: File,
}

/// What was seen to be wrong with the files while the vault writes them.
pub(crate) struct Touched {
    what: String,
}

/// Opens both segments, and makes those that are missing: whether one may be missing, the vault knows.
pub(crate) fn open(home: &Home) -> Result<Segments, Failure> {
    for folder in [home.audit(), home.audit_filed()] {
        make_private(&folder).map_err(|error| Failure::local(folder.display(), &error))?;
    }
    let [first, second] = home.audit_segments();
    Ok(Segments(Arc::new([open_segment(first)?, open_segment(second)?])))
}

fn open_segment(path: PathBuf) -> Result<Segment, Failure> {
    let failed = |error: io::Error| Failure::local(path.display(), &error);
    if let Err(error) = fs::symlink_metadata(&path) {
        if error.kind() != ErrorKind::NotFound {
            return Err(failed(error));
        }
        make_segment(&path).map_err(|failure| {
            failure.way_out("the audit trail takes 8 MiB, set aside before it is needed: free space on its disk")
        })?;
    }
    let file = open_no_symlinks(&path, OFlag::O_RDWR, 0).map_err(failed)?;
    let length = file.metadata().map_err(failed)?.len();
    if length != SEGMENT_BYTES as u64 {
        let what = format!("{}: {length} bytes and not {SEGMENT_BYTES}: it was cut or written to", path.display());
        let way_out = "put the file back as it was, or, if it is lost, begin anew with `openred audit restart`";
        return Err(Failure::new(Exit::Failed, "audit.changed", what, way_out));
    }
    Ok(Segment { path, file })
}

/// Written out whole, so that a full disk is met now and not when a record has to be durable.
fn make_segment(path: &Path) -> Result<(), Failure> {
    let mut fresh = Fresh::begin(path)?;
    let made = (0..SEGMENT_BYTES / BLOCK).try_for_each(|_| fresh.file.write_all(&[0; BLOCK]));
    made.map_err(|error| Failure::local(path.display(), &error))?;
    fresh.finish(false, |_| ())
}

impl Segments {
    /// The vault's descriptors.
    pub(crate) fn descriptors(&self) -> io::Result<[OwnedFd; 2]> {
        Ok([self.0[0].file.try_clone()?.into(), self.0[1].file.try_clone()?.into()])
    }

    /// Whether the names still lead to the files, and the files have their size.
    fn touched(&self) -> Option<Touched> {
        self.0.iter().find_map(|segment| {
            let what = match (segment.file.metadata(), fs::symlink_metadata(&segment.path)) {
                (Ok(held), Ok(named)) if (held.dev(), held.ino()) != (named.dev(), named.ino()) => "was replaced",
                (Ok(held), Ok(_)) if held.len() != SEGMENT_BYTES as u64 => "was cut or made longer",
                (Ok(_), Ok(_)) => return None,
                (_, Err(error)) if error.kind() == ErrorKind::NotFound => "was deleted",
                _ => "cannot be looked at",
            };
            Some(Touched { what: format!("{} {what} while it was written", segment.path.display()) })
        })
    }

    /// Puts back what was deleted or replaced, from the descriptor; what stood in its place is kept beside it.
    pub(crate) fn restore(&self) -> Result<(), Failure> {
        for segment in self.0.iter() {
            let failed = |error: io::Error| Failure::local(segment.path.display(), &error);
            let held = segment.file.metadata().map_err(failed)?;
            match fs::symlink_metadata(&segment.path) {
                Ok(named) if (named.dev(), named.ino()) == (held.dev(), held.ino()) => continue,
                Ok(_) => {
                    let aside = segment.path.with_extension(format!("found-{}", super::now()));
                    fs::rename(&segment.path, aside).map_err(failed)?;
                }
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(failed(error)),
            }
            copy(&segment.file, &segment.path).map_err(Failure::from)?;
        }
        Ok(())
    }
}

/// The watch over the trail of a vault in service.
pub(crate) struct Watch {
    segments: Segments,
    /// The filing that is under way, on a thread of its own: one disk's time must not be that of all processes.
    filing: Option<JoinHandle<(u64, Result<(), StartFailure>)>>,
    /// The helper broke out of its filter: it is not started again for this vault.
    given_up: bool,
    /// That the files were touched has been said.
    is_told: bool,
}

impl Watch {
    pub(crate) fn new(segments: Segments) -> Self {
        Self { segments, filing: None, given_up: false, is_told: false }
    }

    /// Looks once: at the files, at the vault's word, at a closed segment. False: the files were touched, and the keys have
    /// to be put away.
    pub(crate) async fn look(&mut self, context: &Context, operator: &mut Operator) -> bool {
        if self.is_touched(context) {
            owed::tell(&context.starter.board, &context.home, operator).await;
            return false;
        }
        if self.filing.as_ref().is_some_and(JoinHandle::is_finished) {
            self.filed(context, operator).await;
        }
        owed::tell(&context.starter.board, &context.home, operator).await;
        // No answer is the vault's end, which is seen by who waits for it.
        if let Ok(Reply::AuditStatus(status)) = operator.ask(Request::AuditStatus).await {
            self.note(context, &status);
        }
        true
    }

    /// At a start with both segments full, files the closed one before anybody asks for a key: `noded` needs one to start, and where that is
    /// refused the whole start ends, the next one as well. A segment that cannot be filed is named here, for nobody can ask by then.
    pub(crate) async fn make_room(&mut self, context: &Context, operator: &mut Operator) {
        let Ok(Reply::AuditStatus(status)) = operator.ask(Request::AuditStatus).await else { return };
        if !status.full {
            return;
        }
        self.note(context, &status);
        while self.filing.as_ref().is_some_and(|filing| !filing.is_finished()) {
            tokio::time::sleep(FILING_LOOK).await;
        }
        self.filed(context, operator).await;
        let conditions = context.starter.board.status().conditions;
        for unfiled in conditions.iter().filter(|condition| condition.code == "audit.filing") {
            tracing::error!(
                "both segments of the audit trail are full, and no key is used: {}; {}",
                unfiled.detail,
                unfiled.help
            );
        }
    }

    /// Whether the files were touched; the first time that is said and noted.
    fn is_touched(&mut self, context: &Context) -> bool {
        let Some(Touched { what }) = self.segments.touched() else { return false };
        if !self.is_told {
            self.is_told = true;
            tracing::error!("the audit trail: {what}; the keys are put away");
            let help = "treat it as a break-in until explained; the trail is put back as far as it can be, and \
                        `openred audit verify` says whether it is whole";
            context.starter.board.alarm("audit.touched", what, help, super::now());
            context.starter.board.report(Event::TrailTouched);
        }
        true
    }

    fn note(&mut self, context: &Context, status: &AuditStatus) {
        let board = &context.starter.board;
        board.trail(*status);
        if status.full {
            let detail = String::from("both segments of the audit trail are full: no key is used until one is filed");
            board.alarm("audit.full", detail, "free space on the disk of `audit/filed`", super::now());
        } else {
            board.clear("audit.full");
        }
        if let (Some(segment), None, false) = (status.waiting, &self.filing, self.given_up) {
            // A system without a descriptor or a thread to give is asked again with the next look.
            let Ok(archive) = Archive::of(context) else { return };
            let (segments, place) = (Arc::clone(&self.segments.0), usize::from(1 - status.file));
            let filed = context.home.audit_filed();
            let work = move || {
                let Segment { path, file } = &segments[place];
                let seal = archive.as_ref().map(|archive| move |input, output| archive.seal(input, output));
                (segment, file_away(path, file, segment, &filed, seal.as_ref().map(|seal| seal as Seal<'_>)))
            };
            self.filing = std::thread::Builder::new().name(String::from("filing")).spawn(work).ok();
        }
    }

    async fn filed(&mut self, context: &Context, operator: &mut Operator) {
        let Some(filing) = self.filing.take() else { return };
        match filing.join() {
            Ok((segment, Ok(()))) => {
                context.starter.board.clear("audit.filing");
                tracing::info!("audit segment {segment} is filed");
                let _ = operator.ask(Request::AuditFiled { segment }).await;
            }
            Ok((segment, Err(failure))) => {
                if let StartFailure::Child(fault) = &failure
                    && fault.exit().is_some_and(Ended::broke_the_filter)
                {
                    self.given_up = true;
                    broke_out(context);
                }
                let (detail, help) = unfiled(segment, &failure);
                context.starter.board.alarm("audit.filing", detail, &help, super::now());
            }
            // Only a defect of ours: tried again.
            Err(_) => {}
        }
    }

    /// The vault has ended, however: puts the files back as far as they can be. What was touched since the last look is noted for the
    /// next vault.
    pub(crate) fn end(&mut self, context: &Context) {
        let board = &context.starter.board;
        if self.is_touched(context)
            && !board.reports().is_empty()
            && let Err(failure) = owed::keep(&context.home, &board.reports())
        {
            tracing::error!("what the audit trail is owed cannot be kept: {failure}");
        }
        if let Err(failure) = self.segments.restore() {
            tracing::error!("the audit trail cannot be put back: {failure}");
        }
    }
}

/// The alarm's text and its way out.
fn unfiled(segment: u64, failure: &StartFailure) -> (String, String) {
    let (what, help) = match failure {
        // Space is not what is missing.
        StartFailure::Named(failure) if failure.code == TAKEN => (failure.what.clone(), failure.way_out.clone()),
        other => {
            let help = "free space on the disk of `audit/filed`, and see that the supervisor may write there";
            (other.to_string(), help.to_owned())
        }
    };
    let detail = format!("audit segment {segment} cannot be filed: {what}");
    (detail, format!("{help}; it is tried again, and until then the other segment is written"))
}

/// The helper tried a system call that its filter does not have.
fn broke_out(context: &Context) {
    let board = &context.starter.board;
    board.report(Event::FilterBroken);
    let detail =
        String::from("the helper that seals audit segments tried a system call outside its filter and was killed");
    let help =
        "treat it as a break-in until explained: keep the log, then restart the node; the segment is where it was";
    board.alarm(&format!("process.{}.filter", Role::Unseal), detail, help, super::now());
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn segments_are_made_whole_and_one_of_another_length_is_refused_by_name() {
        let (_folder, home) = Home::scratch();
        let segments = open(&home).unwrap();
        assert!(segments.touched().is_none());
        assert_eq!(
            segments.0[0].file.metadata().unwrap().blocks() * 512,
            SEGMENT_BYTES as u64,
            "set aside on the disk"
        );
        let [first, _] = home.audit_segments();
        File::options().write(true).open(&first).unwrap().set_len(5).unwrap();
        assert!(segments.touched().unwrap().what.contains("cut"));
        let refused = open(&home).err().unwrap();
        assert!(refused.to_string().contains("5 bytes"), "{refused}");
    }

    #[test]
    fn the_alarm_says_what_to_do_about_a_number_that_is_taken() {
        let taken = Failure::new(Exit::Conflict, TAKEN, "another lies there", "keep both");
        let (detail, help) = unfiled(3, &StartFailure::Named(taken));
        assert!(detail.ends_with("another lies there") && help.starts_with("keep both; it is tried again"), "{help}");
        let other = Failure::new(Exit::Failed, "local", "no such file", "");
        assert!(unfiled(3, &StartFailure::Named(other)).1.starts_with("free space"));
    }

    #[test]
    fn what_was_deleted_or_replaced_is_put_back_from_the_descriptor() {
        let (_folder, home) = Home::scratch();
        let segments = open(&home).unwrap();
        let [first, second] = home.audit_segments();
        segments.0[0].file.write_all_at(b"first", 1000).unwrap();
        segments.0[1].file.write_all_at(b"second", 2000).unwrap();
        fs::remove_file(&first).unwrap();
        assert!(segments.touched().unwrap().what.contains("deleted"));
        fs::write(&first, vec![7; SEGMENT_BYTES]).unwrap();
        fs::remove_file(&second).unwrap();
        assert!(segments.touched().unwrap().what.contains("replaced"));
        segments.restore().unwrap();
        let again = open(&home).unwrap();
        let at = |place: usize, offset, length| {
            let mut bytes = vec![0; length];
            again.0[place].file.read_exact_at(&mut bytes, offset).unwrap();
            bytes
        };
        assert_eq!((at(0, 1000, 5), at(1, 2000, 6)), (b"first".to_vec(), b"second".to_vec()));
        let kept = fs::read_dir(home.audit()).unwrap().filter_map(Result::ok);
        assert_eq!(kept.filter(|entry| entry.file_name().to_string_lossy().contains("found-")).count(), 1);
    }
}
