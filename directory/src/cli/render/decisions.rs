//! What commands about operators' decisions and about all that is kept print.

use std::fmt::Write as _;
use std::path::Path;

use serde::Serialize;

use super::{document, duration};
use crate::admin::{BanList, History, Imported, InviteList, InviteView};
use crate::store::Stats;
use crate::store::sqlite::migrate::Migration;

/// `nodes bans`.
#[must_use]
pub fn bans(list: &BanList, json: bool) -> String {
    if json {
        return document("bans", list);
    }
    if list.bans.is_empty() {
        return "no bans\n".to_owned();
    }
    let mut text = format!("{:<56}  {:<7}  {}\n", "WHO", "FOR", "REASON");
    for ban in &list.bans {
        let _ = writeln!(text, "{:<56}  {:<7}  {}", ban.who, duration(ban.for_seconds), dash(&ban.reason));
    }
    text
}

/// `invite create`.
#[must_use]
pub fn invited(invite: &str, line: &InviteView, json: bool) -> String {
    #[derive(Serialize)]
    struct Invited<'a> {
        invite: &'a str,
        #[serde(flatten)]
        line: &'a InviteView,
    }
    if json {
        return document("invited", &Invited { invite, line });
    }
    let (uses, ends) = (line.uses, duration(line.ends_in_seconds));
    let nodes = if uses == 1 { "one node".to_owned() } else { format!("{uses} nodes") };
    format!(
        "invite    {invite}\nname      {}\nfor       {nodes}, ends in {ends}\n\
         A node's operator sets it in openred.toml; it is not shown again:\n[directory]\ninvites = [\"{invite}\"]\n",
        line.name
    )
}

/// `invite list`.
#[must_use]
pub fn invites(list: &InviteList, json: bool) -> String {
    if json {
        return document("invites", list);
    }
    if list.invites.is_empty() {
        return "no invites\n".to_owned();
    }
    let mut text = format!("{:<16}  {:<7}  {:<13}  {:<7}  {}\n", "INVITE", "STATE", "USED", "ENDS IN", "NOTE");
    for invite in &list.invites {
        let (used, ends) = (format!("{} of {}", invite.used, invite.uses), duration(invite.ends_in_seconds));
        let _ =
            writeln!(text, "{:<16}  {:<7}  {used:<13}  {ends:<7}  {}", invite.name, invite.state, dash(&invite.note));
    }
    text
}

/// `history`.
#[must_use]
pub fn history(history: &History, json: bool) -> String {
    if json {
        return document("history", history);
    }
    if history.entries.is_empty() {
        return "nothing was changed\n".to_owned();
    }
    let mut text = format!("{:<6}  {:<20}  {:<6}  {:<8}  {}\n", "NUMBER", "AT", "UID", "DID", "WHOM OR WHAT");
    for entry in &history.entries {
        let (number, uid, action) = (entry.number, entry.uid, &entry.action);
        let _ = write!(text, "{number:<6}  {}  {uid:<6}  {action:<8}  {}", utc(entry.at / 1000), entry.target);
        let _ = if entry.remark.is_empty() { writeln!(text) } else { writeln!(text, "  ({})", entry.remark) };
    }
    if let Some(next) = history.next {
        let _ = writeln!(text, "more: --before {next}");
    }
    text
}

/// `stats`.
#[must_use]
pub fn stats(stats: &Stats, json: bool) -> String {
    if json {
        return document("stats", stats);
    }
    let counts = &stats.counts;
    let mut text = String::new();
    for (name, value) in [
        ("nodes", counts.nodes),
        ("  fresh", counts.fresh),
        ("  quarantined", counts.quarantined),
        ("  listed", stats.listed),
        ("  new in a day", stats.new_today),
        ("  let in by name", stats.admitted),
        ("tombstones", stats.tombstones),
        ("successions", stats.successions),
        ("conflicts", counts.evidence),
        ("bans", counts.bans),
        ("open invites", stats.invites_open),
        ("changes", stats.changes),
        ("database, KiB", counts.bytes / 1024),
    ] {
        let _ = writeln!(text, "{name:<18}{value:>12}");
    }
    for (title, groups) in [("by method", &stats.methods), ("by sector", &stats.sectors)] {
        let _ = writeln!(text, "{title}");
        for (name, value) in groups {
            let _ = writeln!(text, "  {:<16}{value:>12}", dash(name));
        }
    }
    text
}

/// `export` into a file.
#[must_use]
pub fn exported(file: &Path, records: u64, json: bool) -> String {
    #[derive(Serialize)]
    struct Exported<'a> {
        file: &'a Path,
        records: u64,
    }
    let exported = Exported { file, records };
    if json { document("exported", &exported) } else { format!("{records} records in {}\n", file.display()) }
}

/// `import`.
#[must_use]
pub fn imported(imported: &Imported, json: bool) -> String {
    if json {
        return document("imported", imported);
    }
    let Imported { taken, known, ended, refused } = imported;
    let mut text = format!("{taken} taken, {known} known before, {ended} ended, {} refused\n", refused.len());
    for (line, why) in refused {
        let _ = writeln!(text, "line {line}: {why}");
    }
    text
}

/// `db check`.
#[must_use]
pub fn database(file: &Path, faults: &[String], json: bool) -> String {
    #[derive(Serialize)]
    struct Database<'a> {
        file: &'a Path,
        ok: bool,
        faults: &'a [String],
    }
    if json {
        return document("database", &Database { file, ok: faults.is_empty(), faults });
    }
    if faults.is_empty() {
        return format!("{}: sound\n", file.display());
    }
    let mut text = format!("{}: damaged\n", file.display());
    for fault in faults {
        let _ = writeln!(text, "  {}", fault.replace('\n', "; "));
    }
    text.push_str("stop the directory, move its state away, start it, and `directory import` the last export\n");
    text
}

/// `db migrate`.
#[must_use]
pub fn migrated(migration: &Migration, json: bool) -> String {
    if json {
        return document("migration", migration);
    }
    let Migration { found, known, steps, snapshot, dry_run } = migration;
    if steps.is_empty() {
        return format!("schema {known} already; nothing to do\n");
    }
    let mut text =
        format!("from schema {found} to {known}{}\n", if *dry_run { ": tried on a copy, nothing changed" } else { "" });
    for step in steps {
        let _ = writeln!(text, "  adds {step}");
    }
    if let Some(snapshot) = snapshot {
        let _ = writeln!(text, "copied before to {}", snapshot.display());
    }
    text
}

fn dash(text: &str) -> &str {
    if text.is_empty() { "-" } else { text }
}

/// Seconds since the epoch as `2026-01-31T12:00:00Z`.
fn utc(seconds: u64) -> String {
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
    let date = httpdate::HttpDate::from(time).to_string();
    // "Sun, 06 Nov 1994 08:49:37 GMT": the crate knows calendars, and this is its one form.
    let months = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let words: Vec<&str> = date.split(' ').collect();
    match words[..] {
        [_, day, month, year, clock, _] => {
            let month = months.iter().position(|name| *name == month).map_or(0, |place| place + 1);
            format!("{year}-{month:02}-{day}T{clock}Z")
        }
        _ => date,
    }
}
