//! What the audit trail is still owed: what the supervisor saw while no vault was there to record it, the vault's own death by its
//! filter above all. It lies in a small file beside the trail, outlives the supervisor, and is told to the next vault. It stays there
//! and on the board until the vault has answered that it is recorded.

use std::fs::{self, File};
use std::io::{Read, Write};

use openred_proto::audit::Event;
use openred_proto::vault::{Reply, Request};

use super::board::Board;
use super::keystore::Fresh;
use super::operator::Operator;
use super::places::remove;
use crate::cli::Failure;
use crate::home::Home;

/// Longest file: a line for each event that a supervisor reports.
const BYTES: u64 = 256;

/// Keeps events with their counts, durable; what was kept before is among them.
pub(crate) fn keep(home: &Home, reports: &[(Event, u32)]) -> Result<(), Failure> {
    let text: String = reports.iter().map(|(event, count)| format!("{} {count}\n", event.number())).collect();
    let mut fresh = Fresh::begin(&home.audit_owed())?;
    let written = fresh.file.write_all(text.as_bytes());
    written.map_err(|error| Failure::local(home.audit_owed().display(), &error))?;
    fresh.finish(true, |_| ())
}

/// What was kept; nothing where nothing was, and what is no line of ours is passed over.
pub(crate) fn kept(home: &Home) -> Vec<(Event, u32)> {
    let mut text = String::new();
    let read = File::open(home.audit_owed()).and_then(|file| file.take(BYTES).read_to_string(&mut text));
    let lines = read.map_or("", |_| text.as_str()).lines();
    let line = |line: &str| {
        let (event, count) = line.split_once(' ')?;
        let event = Event::from_number(event.parse().ok()?).filter(|event| event.is_of_supervisor())?;
        Some((event, count.parse().ok()?))
    };
    lines.filter_map(line).collect()
}

/// Tells the vault what is noted. A note leaves the board when the vault has recorded it, and not before: whoever notes a death
/// meanwhile, that of this very vault too, keeps it whole.
pub(crate) async fn tell(board: &Board, home: &Home, operator: &mut Operator) {
    let mut recorded = false;
    for (event, count) in board.reports() {
        if let Ok(Reply::Done) = operator.ask(Request::Note { event: event.number(), count }).await {
            board.reported(event, count);
            recorded = true;
        }
    }
    // Nothing waits between the look at the board and the file, and all who keep there run on this thread.
    if recorded {
        settle(home, &board.reports());
    }
}

/// The trail has all but what is left.
fn settle(home: &Home, left: &[(Event, u32)]) {
    if fs::symlink_metadata(home.audit_owed()).is_err() {
        return;
    }
    let settled = if left.is_empty() {
        remove(&home.audit_owed()).map_err(|error| Failure::local(home.audit_owed().display(), &error))
    } else {
        keep(home, left)
    };
    if let Err(failure) = settled {
        tracing::warn!("{failure}; what is kept there is recorded again at the next start");
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::os::unix::net::UnixStream;
    use std::sync::Arc;

    use openred_policy::observe::Baseline;
    use openred_proto::vault::{Frame, Refusal, decode_frame, encode_frame, split_frame};

    use super::*;

    /// A vault's end that answers each request with what `answer` says of it.
    fn vault(mut end: UnixStream, mut answer: impl FnMut(Request) -> Reply + Send + 'static) {
        std::thread::spawn(move || {
            let (mut bytes, mut block) = (Vec::new(), [0; 4096]);
            while let Ok(count @ 1..) = end.read(&mut block) {
                bytes.extend_from_slice(&block[..count]);
                while let Ok((body, used)) = split_frame(&bytes) {
                    let request: Frame<Request> = decode_frame(body).unwrap();
                    bytes.drain(..used);
                    let reply = Frame { id: request.id, body: answer(request.body) };
                    end.write_all(&encode_frame(&reply).unwrap()).unwrap();
                }
            }
        });
    }

    #[test]
    fn what_is_noted_is_owed_until_the_vault_has_recorded_it() {
        let (_folder, home) = Home::scratch();
        fs::create_dir(home.audit()).unwrap();
        let board = Arc::new(Board::new(Baseline::of_this_process().unwrap(), String::new(), String::new(), 0));
        let mourn = |board: &Board, home: &Home| {
            board.report(Event::FilterBroken);
            keep(home, &board.reports()).unwrap();
        };
        mourn(&board, &home);
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (seen, during) = (Arc::clone(&board), home.clone());
        let mut asked = 0;
        vault(theirs, move |request| {
            asked += 1;
            // Nothing of it is on its way only: a death now keeps the whole.
            assert!(!seen.reports().is_empty() && !kept(&during).is_empty());
            match (asked, request) {
                (1, _) => Reply::Refused(Refusal::Quota),
                (2, Request::Note { count, .. }) => {
                    assert_eq!(count, 1);
                    mourn(&seen, &during);
                    Reply::Done
                }
                _ => Reply::Done,
            }
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut operator = Operator::new(ours.into()).unwrap();
            let owed = [(Event::FilterBroken, 1)];
            tell(&board, &home, &mut operator).await;
            assert_eq!((board.reports(), kept(&home)), (owed.to_vec(), owed.to_vec()), "refused");
            tell(&board, &home, &mut operator).await;
            assert_eq!((board.reports(), kept(&home)), (owed.to_vec(), owed.to_vec()), "one more came meanwhile");
            tell(&board, &home, &mut operator).await;
            assert!(board.reports().is_empty() && !home.audit_owed().exists());
        });
    }

    #[test]
    fn what_is_owed_is_kept_until_it_is_settled_and_nothing_else_is_read() {
        let (_folder, home) = Home::scratch();
        fs::create_dir(home.audit()).unwrap();
        assert_eq!(kept(&home), []);
        let owed = [(Event::FilterBroken, 2), (Event::ProcessDied, 1)];
        keep(&home, &[(Event::FilterBroken, 1)]).unwrap();
        keep(&home, &owed).unwrap();
        assert_eq!(kept(&home), owed);
        fs::write(home.audit_owed(), "97 3\n17 1\n98\nx y\n9999 1\n99 -1\n").unwrap();
        assert_eq!(kept(&home), [(Event::FilterBroken, 3)], "nobody else's events");
        fs::write(home.audit_owed(), [0xff; 64]).unwrap();
        assert_eq!(kept(&home), []);
        settle(&home, &owed[1..]);
        assert_eq!(kept(&home), owed[1..]);
        settle(&home, &[]);
        settle(&home, &owed);
        assert!(!home.audit_owed().exists());
    }
}
