//! What the audit trail is still owed: what the supervisor saw while no vault was there to record it, the vault's own death by its
//! filter above all. It lies in a small file beside the trail, outlives the supervisor, and is told to the next vault.

use std::fs::{self, File};
use std::io::{Read, Write};

use openred_proto::audit::Event;

use super::keystore::Fresh;
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

/// The trail has it.
pub(crate) fn settle(home: &Home) {
    if fs::symlink_metadata(home.audit_owed()).is_ok()
        && let Err(error) = remove(&home.audit_owed())
    {
        tracing::warn!("{}: {error}; what it says is recorded again at the next start", home.audit_owed().display());
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

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
        settle(&home);
        settle(&home);
        assert!(!home.audit_owed().exists());
    }
}
