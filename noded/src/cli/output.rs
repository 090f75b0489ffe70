//! What a command prints: text for people (80 columns, colour only on a terminal) or one JSON document a line.
//!
//! A reader that went away (a closed pipe) is no error: what is left unprinted nobody wanted.

use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use serde::Serialize;
use serde_json::{Map, Value};

use super::exit::Failure;

/// Something that was to be printed was not taken.
static UNHEARD: AtomicBool = AtomicBool::new(false);

/// Colours have one meaning each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tone {
    Good,
    Warning,
    Bad,
    Plain,
}

/// Where a command's answer goes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Output {
    json: bool,
    colour: bool,
    terminal: bool,
}

impl Output {
    /// For this process's standard output.
    pub(crate) fn new(json: bool) -> Self {
        let terminal = std::io::stdout().is_terminal();
        // https://no-color.org: present and not empty.
        let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self { json, colour: terminal && !json && !refused, terminal: terminal && !json }
    }

    /// Whether the reader is a program.
    pub(crate) fn is_json(&self) -> bool {
        self.json
    }

    /// Whether a person looks at it now.
    pub(crate) fn is_terminal(&self) -> bool {
        self.terminal && std::io::stderr().is_terminal()
    }

    /// Whether all of it has reached its reader so far, or the file that it goes to.
    pub(crate) fn is_heard(&self) -> bool {
        !UNHEARD.load(Ordering::Relaxed)
    }

    /// A line for people. Whatever other processes have put into it, it does not act on their terminal.
    pub(crate) fn line(&self, text: impl AsRef<str>) {
        if !self.json {
            say(&tame(text.as_ref()));
        }
    }

    /// Clears the screen below the top left corner, where the next lines are written.
    pub(crate) fn clear(&self) {
        if self.is_terminal() {
            say("\u{1b}[H\u{1b}[J");
        }
    }

    /// A line that is the command's product, for people and programs alike.
    pub(crate) fn always(&self, text: &str) {
        say(text);
    }

    /// A line beside the command's product, on standard error.
    pub(crate) fn aside(&self, text: &str) {
        aside(text);
    }

    /// A document for programs: `body`'s fields and `schema`.
    pub(crate) fn document(&self, schema: &str, body: &impl Serialize) {
        if !self.json {
            return;
        }
        let mut fields = Map::new();
        fields.insert(String::from("schema"), Value::from(schema));
        if let Ok(Value::Object(body)) = serde_json::to_value(body) {
            fields.extend(body);
        }
        say(&Value::Object(fields).to_string());
    }

    /// A failure, on standard error.
    pub(crate) fn failure(&self, failure: &Failure) {
        if self.json {
            let body = serde_json::json!({
                "schema": "openred.error/1",
                "exit": failure.exit as u8,
                "code": failure.code,
                "message": failure.what,
                "way_out": failure.way_out,
            });
            aside(&body.to_string());
        } else {
            aside(&format!("openred: {failure}"));
        }
    }

    /// `text` in the colour of `tone`, if colours are wanted.
    pub(crate) fn paint(&self, tone: Tone, text: &str) -> String {
        let code = match tone {
            Tone::Good => "32",
            Tone::Warning => "33",
            Tone::Bad => "31",
            Tone::Plain => return text.to_owned(),
        };
        if self.colour { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.to_owned() }
    }
}

/// Line ends, tabs and [`Output::paint`]'s colours pass; every other control character becomes a space.
fn tame(text: &str) -> String {
    let is_colour = |rest: &str| ["[0m", "[31m", "[32m", "[33m"].iter().any(|colour| rest.starts_with(colour));
    let tamed = text.char_indices().map(|(place, letter)| match letter {
        '\n' | '\t' => letter,
        '\u{1b}' if is_colour(&text[place + 1..]) => letter,
        letter if letter.is_control() => ' ',
        letter => letter,
    });
    tamed.collect()
}

fn say(text: &str) {
    say_to(std::io::stdout(), text);
}

fn say_to(stream: impl Write, text: &str) {
    if write_line(stream, text).is_err() {
        UNHEARD.store(true, Ordering::Relaxed);
    }
}

fn aside(text: &str) {
    let _ = write_line(std::io::stderr(), text);
}

fn write_line(mut stream: impl Write, text: &str) -> std::io::Result<()> {
    writeln!(stream, "{text}").and_then(|()| stream.flush())
}

/// Columns of text, each as wide as its widest cell, two spaces between; no trailing spaces.
pub(crate) fn table(rows: &[Vec<String>]) -> Vec<String> {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let line = |row: &Vec<String>| {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        cells.join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

/// `text` cut at words into lines of at most 80 columns; its own indentation stays, each further line gets `indent`.
pub(crate) fn wrap(text: &str, indent: usize) -> Vec<String> {
    let body = text.trim_start_matches(' ');
    let mut line = " ".repeat(text.len() - body.len());
    let mut lines = Vec::new();
    for (place, word) in body.split(' ').enumerate() {
        if place > 0 && line.chars().count() + 1 + word.chars().count() > 80 {
            lines.push(std::mem::replace(&mut line, " ".repeat(indent)));
        } else if place > 0 {
            line.push(' ');
        }
        line.push_str(word);
    }
    lines.push(line);
    lines
}

/// A span of time in its largest sensible unit.
pub(crate) fn span(millis: u64) -> String {
    match millis / 1000 {
        0 => format!("{millis} ms"),
        seconds @ 1..=119 => format!("{seconds} s"),
        seconds @ 120..=7199 => format!("{} min", seconds / 60),
        seconds @ 7200..=172_799 => format!("{} h", seconds / 3600),
        seconds => format!("{} d", seconds / 86_400),
    }
}

/// A moment as seen from `now`, both Unix milliseconds: `3 min ago`, `in 23 h`, `never` for 0.
pub(crate) fn moment(at: u64, now: u64) -> String {
    match at {
        0 => String::from("never"),
        at if at > now => format!("in {}", span(at - now)),
        at => format!("{} ago", span(now - at)),
    }
}

/// Bytes for people.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 4] = ["kB", "MB", "GB", "TB"];
    if count < 1000 {
        return format!("{count} B");
    }
    let mut value = count as f64 / 1000.0;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// This machine's clock in Unix milliseconds.
pub(crate) fn now() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn columns_line_up_without_trailing_spaces() {
        let rows = [vec!["a".to_owned(), "bb".to_owned()], vec!["ccc".to_owned(), String::new()]];
        assert_eq!(table(&rows), ["a    bb", "ccc"]);
    }

    #[test]
    fn lines_are_cut_at_words() {
        let text = "word ".repeat(30);
        for line in wrap(text.trim(), 4) {
            assert!(line.chars().count() <= 80, "{line}");
        }
        assert_eq!(wrap("  ok  a", 4), ["  ok  a"]);
        assert_eq!(
            wrap(&format!("  a {}", "b".repeat(80)), 4),
            [String::from("  a"), format!("    {}", "b".repeat(80))]
        );
    }

    #[test]
    fn what_others_say_does_not_act_on_the_terminal() {
        let painted = "\u{1b}[31mbad\u{1b}[0m: two\nlines\tof text";
        assert_eq!(tame(painted), painted);
        assert_eq!(tame("\u{1b}[2J\u{1b}]0;title\u{7}\r\u{9b}H\u{1b}"), " [2J ]0;title   H ");
    }

    #[test]
    fn what_is_not_taken_is_not_heard() {
        let output = Output::new(true);
        say_to(Vec::new(), "taken");
        assert!(output.is_heard());
        say_to(std::fs::File::options().write(true).open("/dev/full").unwrap(), "lost");
        assert!(!output.is_heard());
    }

    #[test]
    fn times_and_sizes() {
        assert_eq!(moment(0, 5), "never");
        assert_eq!(moment(1_000, 61_000), "60 s ago");
        assert_eq!(moment(90_000_000, 0), "in 25 h");
        assert_eq!((bytes(999), bytes(256_000_000)), ("999 B".to_owned(), "256.0 MB".to_owned()));
    }
}
