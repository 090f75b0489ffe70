//! `openred audit`: reads the trail of what was done with the node's keys from its files. Nothing here needs the node to run or
//! a key; of a running node the supervisor is asked where the trail stands, so that a cut end shows.

mod segments;

use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use openred_policy::socket::sync_directory;
use openred_proto::admin::{PeerSelector, StatusRequest};
use openred_proto::audit::verify::{Known, Report, Verifier};
use openred_proto::audit::{Checkpoint, Record};
use openred_proto::checked::statement;
use openred_proto::id::NodeId;
use openred_proto::refusal::outcome_name;
use serde_json::{Value, json};

use super::arguments::{Audit, AuditorSource};
use super::client::{request, supervisor};
use super::output::{Output, Tone, moment, now};
use super::{Exit, Failure, Invocation, configuration};
use crate::home::Home;
use crate::supervisor::{Unfiled, file_waiting, lock, put};
use segments::{Reader, Segments, runs};

/// How often `tail --follow` looks: as often as the supervisor does.
const LOOK: Duration = Duration::from_secs(1);
/// A checkpoint kept elsewhere is one signed statement in base64; a longer file is another.
const CHECKPOINT_FILE: u64 = 4096;
/// A reading that meets the vault in the middle of a write is done again.
const READINGS: usize = 3;
pub(crate) async fn audit(invocation: &Invocation, command: Audit) -> Result<Exit, Failure> {
    match command {
        Audit::Tail { lines, follow, peer } => {
            let subject = match peer {
                Some(peer) => Some(named(invocation, peer).await?),
                None => None,
            };
            tail(invocation, lines, follow, subject).await
        }
        Audit::Verify { files, node, checkpoint, auditor } => {
            let kept = checkpoint.as_deref().map(read_checkpoint).transpose()?;
            verify(invocation, &Reader::new(invocation, files, &auditor)?, node, kept).await
        }
        Audit::Export { files, since, checkpoint, auditor } => {
            export(invocation, &Reader::new(invocation, files, &auditor)?, since, checkpoint)
        }
        Audit::Digest { segment, auditor } => digest(invocation, segment, &auditor),
        Audit::Restart => restart(invocation),
    }
}

fn body(record: &Record) -> Value {
    let subject = (record.subject != [0; 32]).then(|| hex::encode(record.subject));
    let outcome = outcome_name(record.outcome).map_or_else(|| record.outcome.to_string(), str::to_owned);
    json!({
        "sequence": record.sequence, "time": record.time.0, "event": record.event.name(),
        "outcome": outcome, "count": record.count, "subject": subject,
    })
}

/// One line for people; a subject is shown by its first half, which tells a node's peers apart.
fn show(output: &Output, record: &Record, now: u64) {
    let outcome = outcome_name(record.outcome).unwrap_or("?");
    let tone = if record.outcome == 0 { Tone::Plain } else { Tone::Warning };
    let mut line =
        format!("{:>8}  {:<12}  {:<22} {outcome}", record.sequence, moment(record.time.0, now), record.event.name());
    if record.count > 0 {
        line.push_str(&format!("  x{}", record.count));
    }
    if record.subject != [0; 32] {
        line.push_str(&format!("  peer {}", hex::encode(&record.subject[..8])));
    }
    output.line(output.paint(tone, &line));
    output.document("openred.audit.record/1", &body(record));
}

/// Every record in order. What is wrong with the trail is for `verify` to say.
fn records(segments: &Segments) -> Vec<Record> {
    let mut records = Vec::new();
    segments.show(&mut Verifier::new(NodeId::from_bytes([0; 32]), Vec::new()), &mut |record| records.push(*record));
    records
}

/// How the trail names a peer: under a key that only the vault has.
async fn named(invocation: &Invocation, peer: String) -> Result<[u8; 32], Failure> {
    peer.parse::<NodeId>().map_err(|error| Failure::usage(format!("{peer}: {error}"), ""))?;
    let answer = supervisor(invocation).await?.show_subject(request(PeerSelector { peer })).await;
    let subject = answer.map_err(Failure::from)?.into_inner().subject;
    let wrong = |_| Failure::new(Exit::Failed, "cryptod.bad-answer", "the supervisor answered out of contract", "");
    subject.as_ref().try_into().map_err(wrong)
}

async fn tail(invocation: &Invocation, lines: usize, follow: bool, subject: Option<[u8; 32]>) -> Result<Exit, Failure> {
    let mut shown = 0;
    let mut first = true;
    let reader = Reader::new(invocation, Vec::new(), &AuditorSource::default())?;
    loop {
        let mut found = records(&reader.read()?);
        found.retain(|record| subject.is_none_or(|subject| record.subject == subject));
        let skip = if first { found.len().saturating_sub(lines) } else { 0 };
        for record in found.iter().skip(skip).filter(|record| record.sequence > shown) {
            show(&invocation.output, record, now());
        }
        shown = found.last().map_or(shown, |record| record.sequence);
        first = false;
        if !follow {
            return Ok(Exit::Ok);
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn read_checkpoint(path: &Path) -> Result<Checkpoint, Failure> {
    let refused = |what: String| {
        let way_out = "name a file that `openred audit export --checkpoint` has written";
        Failure::usage(format!("{}: {what}", path.display()), way_out)
    };
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(CHECKPOINT_FILE).read_to_string(&mut text));
    read.map_err(|error| refused(error.to_string()))?;
    let bytes = STANDARD.decode(text.trim()).map_err(|_| refused(String::from("no checkpoint")))?;
    Checkpoint::verify(&bytes).map_err(|error| refused(error.to_string()))
}

/// Where the living vault says that its trail stands; none when the node does not run.
async fn live(invocation: &Invocation) -> Option<Known> {
    let status = supervisor(invocation).await.ok()?.get_status(request(StatusRequest {})).await.ok()?.into_inner();
    let trail = status.trail?;
    let mut hash = [0; 32];
    hex::decode_to_slice(&trail.hash, &mut hash).ok()?;
    Some(Known { sequence: trail.sequence, hash })
}

async fn verify(
    invocation: &Invocation,
    reader: &Reader,
    node: Option<String>,
    kept: Option<Checkpoint>,
) -> Result<Exit, Failure> {
    let named = match (node, &kept) {
        (Some(text), _) => {
            Some(text.parse::<NodeId>().map_err(|error| Failure::usage(format!("{text}: {error}"), ""))?)
        }
        (None, kept) => kept.map(|kept| kept.node),
    };
    let mut reading = 1;
    loop {
        // Asked first: what it knows is in the files by then.
        let live = if reader.is_of_home() { live(invocation).await } else { None };
        let segments = reader.read()?;
        let Some(node) = named.or(segments.node()) else {
            return Err(Failure::new(Exit::Failed, "audit.no-segment", "no file is a segment of an audit trail", ""));
        };
        let kept = kept.map(|kept| Known { sequence: kept.sequence, hash: kept.hash });
        let mut verifier = Verifier::new(node, kept.into_iter().collect()).living(live);
        segments.show(&mut verifier, &mut |_| {});
        let report = verifier.finish();
        // A segment that was sealed between the two is read no more without its auditor.
        let is_missed = live.is_some_and(|live| report.uncompared.contains(&live.sequence));
        if (report.fault_count > 0 || is_missed) && live.is_some() && reading < READINGS {
            reading += 1;
            tokio::time::sleep(LOOK).await;
            continue;
        }
        tell(invocation, (node, named.is_some()), live.is_some() && !is_missed, &segments, &report);
        // What was not opened may hold anything: who asks by exit code alone is told so as well.
        return Ok(match (report.fault_count, report.uncompared.is_empty() && segments.unread() == 0) {
            (0, true) => Exit::Ok,
            (0, false) => Exit::Partial,
            _ => Exit::Failed,
        });
    }
}

/// What it comes to. Of what was not opened nothing is known: with such segments no trail is called whole.
fn verdict(report: &Report, not_opened: &[u64], live: bool) -> (Tone, String) {
    const READ: &str = "what was read is as the key process wrote it";
    match (report.fault_count, not_opened, report.uncompared.is_empty()) {
        (0, [], true) if live => (Tone::Good, "whole, and as long as the living vault says".to_owned()),
        (0, [], true) => {
            let text = "whole as far as it goes; a cut end shows against a running node or --checkpoint";
            (Tone::Good, text.to_owned())
        }
        (0, [], false) => (Tone::Warning, format!("{READ}; what it was to be compared with is not in it")),
        (0, left, _) => {
            let which = runs(left);
            let text = format!(
                "{READ}; not opened, and nothing is said of them: {which}; name their auditor's identity with \
                 --identity-file"
            );
            (Tone::Warning, text)
        }
        _ => (Tone::Bad, "not as the key process wrote it".to_owned()),
    }
}

fn tell(invocation: &Invocation, (node, named): (NodeId, bool), live: bool, segments: &Segments, report: &Report) {
    let output = &invocation.output;
    let faults: Vec<Value> = report
        .faults
        .iter()
        .map(|fault| {
            json!({ "segment": fault.segment, "slot": fault.slot, "sequence": fault.sequence, "what": fault.kind.to_string() })
        })
        .collect();
    output.document(
        "openred.audit.verify/1",
        &json!({
            "node": node.to_string(), "node_was_named": named, "compared_with_live_vault": live,
            "segments": report.segments, "encrypted_segments": segments.encrypted, "unread_segments": segments.unread(),
            "not_opened": segments.not_opened(), "not_compared": report.uncompared,
            "records": report.records, "signatures": report.signatures, "first": report.first, "last": report.last, "signed_to": report.signed,
            "fault_count": report.fault_count, "faults": faults,
        }),
    );
    output.line(format!("trail of {node}"));
    output.line(format!(
        "{} records in {} segments, {} to {}; {} signatures, the last over {}",
        report.records, report.segments, report.first, report.last, report.signatures, report.signed
    ));
    if let Some(line) = segments.said() {
        output.line(line);
    }
    for fault in &report.faults {
        let place = format!("segment {}, slot {}, sequence {}", fault.segment, fault.slot, fault.sequence);
        output.line(output.paint(Tone::Bad, &format!("{place}: {}", fault.kind)));
    }
    if report.fault_count > report.faults.len() as u64 {
        output.line(format!("… {} faults in all", report.fault_count));
    }
    for sequence in &report.uncompared {
        let text =
            format!("sequence {sequence}, known from elsewhere, was not compared: its record is not among those read");
        output.line(output.paint(Tone::Warning, &text));
    }
    let (tone, text) = verdict(report, &segments.not_opened(), live);
    output.line(output.paint(tone, &text));
    if !named {
        output.line("the node id is the trail's own word; name the one you know with --node");
    }
}

fn export(invocation: &Invocation, reader: &Reader, since: u64, checkpoint: bool) -> Result<Exit, Failure> {
    let segments = reader.read()?;
    // Beside the records, which a program reads.
    if let Some(line) = segments.said() {
        invocation.output.aside(&line);
    }
    if !checkpoint {
        for record in records(&segments).iter().filter(|record| record.sequence >= since) {
            invocation.output.always(&body(record).to_string());
        }
        return Ok(Exit::Ok);
    }
    let mut verifier = Verifier::new(segments.node().unwrap_or(NodeId::from_bytes([0; 32])), Vec::new());
    segments.show(&mut verifier, &mut |_| {});
    match verifier.finish().checkpoint {
        Some((checkpoint, signature)) => {
            let signed = statement::encode(&checkpoint.encode(), &checkpoint.node, &signature);
            invocation.output.always(&STANDARD.encode(signed));
            Ok(Exit::Ok)
        }
        None => Err(Failure::new(
            Exit::NotFound,
            "audit.unsigned",
            "the trail has no signature yet",
            "try again in a minute",
        )),
    }
}

fn digest(invocation: &Invocation, segment: u64, auditor: &AuditorSource) -> Result<Exit, Failure> {
    let (path, hash) = Reader::new(invocation, Vec::new(), auditor)?.digest(segment)?;
    let (path, hash) = (path.display().to_string(), hex::encode(hash));
    invocation.output.line(format!("segment {segment} is {hash}"));
    invocation.output.line(format!("written to {path}"));
    let body = json!({ "segment": segment, "sha256": hash, "path": path });
    invocation.output.document("openred.audit.digest/1", &body);
    Ok(Exit::Ok)
}

/// Moves the segments into a folder of their own, filed ones with the others: a trail that is begun anew over a lost state counts from
/// one again, and must not meet the same numbers. They are there for good before the word is that has the places cleared.
fn put_aside(home: &Home) -> Result<PathBuf, Failure> {
    let aside = home.audit().join(format!("aside-{}", now()));
    crate::supervisor::make_private(&aside).map_err(|error| Failure::local(aside.display(), &error))?;
    for path in home.audit_segments().into_iter().chain([home.audit_filed()]) {
        match fs::rename(&path, aside.join(path.file_name().unwrap_or_default())) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(Failure::local(path.display(), &error)),
            _ => {}
        }
    }
    let synced = sync_directory(&aside).and_then(|()| sync_directory(&home.audit()));
    synced.map_err(|error| Failure::local(aside.display(), &error))?;
    Ok(aside)
}

/// Names what could not be filed, and lies in `folder` as it was.
pub(super) fn left_in_clear(output: &Output, unfiled: &[Unfiled], folder: &Path) -> Vec<Value> {
    let mut left = Vec::new();
    for Unfiled { place, why } in unfiled {
        let place = folder.join(place.file_name().unwrap_or_default()).display().to_string();
        output.line(output.paint(Tone::Warning, &format!("left in clear: {place}, {}", why.what)));
        left.push(json!({ "path": place, "why": why.what, "code": why.code }));
    }
    left
}

/// Puts the trail aside and leaves the word for the next start. A segment that waits to be filed is filed first.
fn restart(invocation: &Invocation) -> Result<Exit, Failure> {
    let home = &invocation.home;
    let missing = || {
        let what = format!("{}: no audit trail is kept here", home.audit().display());
        Failure::new(Exit::NotFound, "audit.missing", what, "the first `openred up` begins one")
    };
    if !home.path().is_dir() {
        return Err(missing());
    }
    // Held to the end; an exchange that was cut short is carried to its end first, and may bring another trail.
    let _lock = lock(home)?;
    if !home.audit().is_dir() {
        return Err(missing());
    }
    let config = configuration::resolved_if_any(invocation)?;
    let unfiled = segments::beside(&home.audit(), || file_waiting(home, &config))?;
    let aside = put_aside(home)?;
    put(&home.audit_anew(), b"", true, |_| ())?;
    invocation.output.line(format!("what was there lies in {}", aside.display()));
    let left = left_in_clear(&invocation.output, &unfiled, &aside);
    invocation.output.line("the next `openred up` begins the trail anew, and the trail says so for good");
    let body = json!({ "aside": aside.display().to_string(), "left_in_clear": left });
    invocation.output.document("openred.audit.restart/1", &body);
    Ok(Exit::Ok)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn nothing_that_was_not_opened_or_compared_is_called_whole() {
        let (clean, missed) = (Report::default(), Report { uncompared: vec![7], ..Report::default() });
        assert!(
            verdict(&clean, &[], true).1.starts_with("whole") && verdict(&clean, &[], false).1.starts_with("whole")
        );
        for (report, left, live) in [
            (&clean, &[1, 2, 5][..], true),
            (&clean, &[1][..], false),
            (&missed, &[][..], true),
            (&missed, &[3][..], false),
        ] {
            let (tone, text) = verdict(report, left, live);
            assert!(matches!(tone, Tone::Warning) && !text.contains("whole"), "{text}");
            assert_eq!(text.contains("--identity-file"), !left.is_empty(), "{text}");
        }
        assert!(verdict(&clean, &[1, 2, 5], true).1.contains("1 to 2, 5;"));
        let faulty = Report { fault_count: 1, ..Report::default() };
        assert!(matches!(verdict(&faulty, &[1], true).0, Tone::Bad));
    }

    #[test]
    fn what_was_filed_is_put_aside_with_the_live_segments() {
        let (_folder, home) = Home::scratch();
        fs::create_dir_all(home.audit_filed()).unwrap();
        let [first, _] = home.audit_segments();
        fs::write(&first, b"live").unwrap();
        fs::write(home.audit_filed().join("0000000001.segment"), b"filed").unwrap();
        let aside = put_aside(&home).unwrap();
        assert!(!home.audit_filed().exists() && !first.exists());
        assert_eq!(fs::read(aside.join("a.segment")).unwrap(), b"live");
        assert_eq!(fs::read(aside.join("filed/0000000001.segment")).unwrap(), b"filed");
    }
}
