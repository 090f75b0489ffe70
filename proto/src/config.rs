//! The configuration file's parser, one for all daemons: TOML into a serde type, or an error that a person can act on.
//!
//! It reads one bounded text, refuses unknown, missing and wrong keys, and says where: file, line, column, the line itself
//! with a caret, and the nearest key that exists. It knows no key of its own: each daemon's configuration is a type with
//! `#[serde(deny_unknown_fields)]` on every table. Values that need more than their type are checked by the daemon, which
//! reports through [`Source::refuse`] with the span of a [`Spanned`] value, so that every complaint looks the same.
//!
//! ```
//! # use openred_proto::config::Source;
//! #[derive(serde::Deserialize)]
//! #[serde(deny_unknown_fields)]
//! struct Config { listen: String }
//! let source = Source::new("node.toml", "lisen = \"127.0.0.1:1\"\n");
//! let error = source.parse::<Config>().err().map(|error| error.to_string());
//! assert!(error.is_some_and(|text| text.starts_with("node.toml:1:1: unknown key `lisen`; did you mean `listen`?")));
//! ```

use std::fmt;
use std::io::Read as _;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

pub use toml::Spanned;

/// Longest configuration file: a hand-written file is a few kilobytes; anything near this is the wrong file.
pub const CONFIG_BYTES: usize = 64 * 1024;
/// Longest piece of a source line that is repeated in an error.
const LINE_CHARACTERS: usize = 160;
/// A key is offered as "did you mean" from this similarity on (Jaro-Winkler, 0 to 1).
const NEAR: f64 = 0.75;

/// A configuration text and the name it is known by in errors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    file: PathBuf,
    text: String,
}

/// Why a configuration was refused. Exit code 78 in every daemon (docs/operations.md).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read at all.
    #[error("{}: cannot be read: {reason}", .file.display())]
    Unreadable {
        /// The file as it was named.
        file: PathBuf,
        /// What the system said.
        reason: std::io::ErrorKind,
    },
    /// Not a text of a configuration's size: over [`CONFIG_BYTES`], or not UTF-8.
    #[error("{}: not a configuration file: {reason}", .file.display())]
    NotText {
        /// The file as it was named.
        file: PathBuf,
        /// Which of the two.
        reason: &'static str,
    },
    /// One place in the text is wrong.
    #[error("{0}")]
    Refused(Box<Problem>),
}

/// One wrong place in a configuration. `Display` gives one line of what and where, then the line with a caret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// The file as it was named.
    pub file: PathBuf,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// What is wrong, and the way out where one is known.
    pub message: String,
    /// The key that was probably meant.
    pub nearest: Option<String>,
    /// The line as it stands in the file, shortened if very long.
    pub source: String,
    /// Characters under the caret.
    pub width: usize,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}: {}", self.file.display(), self.line, self.column, self.message)?;
        if let Some(nearest) = &self.nearest {
            write!(f, "; did you mean `{nearest}`?")?;
        }
        let number = self.line.to_string();
        let margin = " ".repeat(number.len());
        // Tabs stay tabs under the line, so that the caret stands where the reader's terminal puts the text.
        let before = self.source.chars().take(self.column - 1);
        let indent: String = before.map(|character| if character == '\t' { '\t' } else { ' ' }).collect();
        let carets = "^".repeat(self.width.max(1));
        write!(f, "\n {margin} |\n {number} | {}\n {margin} | {indent}{carets}", self.source)
    }
}

/// Where a setting's value came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// Built in.
    Default,
    /// Written in the file.
    File,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Origin::Default => "default",
            Origin::File => "file",
        })
    }
}

/// One resolved setting, for `config show`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Setting {
    /// Dotted key.
    pub key: String,
    /// Its value, as TOML writes it.
    pub value: toml::Value,
    /// Whether the file says so.
    pub origin: Origin,
}

impl Source {
    /// A text that is at hand; `file` is only named.
    #[must_use]
    pub fn new(file: impl Into<PathBuf>, text: impl Into<String>) -> Self {
        Self { file: file.into(), text: text.into() }
    }

    /// Reads a file.
    ///
    /// # Errors
    /// [`ConfigError::Unreadable`] or [`ConfigError::NotText`].
    pub fn read(file: &Path) -> Result<Self, ConfigError> {
        let unreadable = |error: std::io::Error| ConfigError::Unreadable { file: file.into(), reason: error.kind() };
        let mut bytes = Vec::new();
        let open = std::fs::File::open(file).map_err(unreadable)?;
        open.take(CONFIG_BYTES as u64 + 1).read_to_end(&mut bytes).map_err(unreadable)?;
        let not_text = |reason| ConfigError::NotText { file: file.into(), reason };
        if bytes.len() > CONFIG_BYTES {
            return Err(not_text("longer than 65,536 bytes"));
        }
        let text = String::from_utf8(bytes).map_err(|_| not_text("it is not UTF-8 text"))?;
        Ok(Self { file: file.into(), text })
    }

    /// The file's name as errors show it.
    #[must_use]
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// The text.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Parses into `T`.
    ///
    /// # Errors
    /// [`ConfigError::Refused`] at the first key that is unknown, missing or of the wrong type, or where TOML's own rules
    /// are broken.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, ConfigError> {
        toml::from_str(&self.text).map_err(|error| {
            let explained = explain(error.message());
            let span = if explained.missing { header_of(&self.text, error.span()) } else { error.span() };
            self.problem(span.unwrap_or(0..0), explained.message, explained.nearest)
        })
    }

    /// Refuses a value that its type allows; `span` comes from [`Spanned::span`].
    #[must_use]
    pub fn refuse(&self, span: Range<usize>, message: impl Into<String>) -> ConfigError {
        self.problem(span, message.into(), None)
    }

    /// Every setting of `resolved` by its dotted key, in alphabetical order, and whether this text says it.
    ///
    /// # Errors
    /// When `resolved` is not a table that TOML can hold.
    pub fn settings<T: Serialize>(&self, resolved: &T) -> Result<Vec<Setting>, toml::ser::Error> {
        let written: toml::Table = toml::from_str(&self.text).unwrap_or_default();
        let resolved = toml::Table::try_from(resolved)?;
        let mut settings = Vec::new();
        flatten("", &resolved, Some(&written), &mut settings);
        Ok(settings)
    }

    fn problem(&self, span: Range<usize>, message: String, nearest: Option<String>) -> ConfigError {
        let start = floor_boundary(&self.text, span.start);
        let line_start = self.text[..start].rfind('\n').map_or(0, |at| at + 1);
        let line_end = self.text[start..].find('\n').map_or(self.text.len(), |at| start + at);
        let end = floor_boundary(&self.text, span.end).clamp(start, line_end.max(start));
        let source: String = self.text[line_start..line_end].trim_end().chars().take(LINE_CHARACTERS).collect();
        let column = self.text[line_start..start].chars().count() + 1;
        let shown = source.chars().count();
        let width = self.text[start..end].chars().count().min((shown + 1).saturating_sub(column)).max(1);
        ConfigError::Refused(Box::new(Problem {
            file: self.file.clone(),
            line: self.text[..line_start].matches('\n').count() + 1,
            column: column.min(LINE_CHARACTERS + 1),
            message,
            nearest,
            source,
            width,
        }))
    }
}

/// Reads and parses in one step.
///
/// # Errors
/// As [`Source::read`] and [`Source::parse`].
pub fn load<T: DeserializeOwned>(file: &Path) -> Result<T, ConfigError> {
    Source::read(file)?.parse()
}

struct Explained {
    message: String,
    nearest: Option<String>,
    missing: bool,
}

/// Rewrites serde's fixed phrases into ours and finds the nearest key among those it lists.
fn explain(message: &str) -> Explained {
    let first_line = message.lines().next().unwrap_or_default();
    let mut quoted = first_line.split('`').skip(1).step_by(2);
    if first_line.starts_with("unknown field") || first_line.starts_with("unknown variant") {
        let wrong = quoted.next().unwrap_or_default();
        let known: Vec<&str> = quoted.collect();
        let noun = if first_line.starts_with("unknown field") { "key" } else { "value" };
        let nearest = nearest(wrong, &known);
        // With a near one at hand the whole list is noise; without, it is the way out.
        let list = if nearest.is_none() && !known.is_empty() {
            format!("; known here: {}", known.join(", "))
        } else {
            String::new()
        };
        return Explained { message: format!("unknown {noun} `{wrong}`{list}"), nearest, missing: false };
    }
    if first_line.starts_with("missing field") {
        let name = quoted.next().unwrap_or_default();
        return Explained { message: format!("missing key `{name}`"), nearest: None, missing: true };
    }
    let message = message.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join(", ");
    Explained { message, nearest: None, missing: false }
}

fn nearest(wrong: &str, known: &[&str]) -> Option<String> {
    known
        .iter()
        .map(|key| (strsim::jaro_winkler(&wrong.to_ascii_lowercase().replace('-', "_"), key), key))
        .filter(|(similarity, _)| *similarity >= NEAR)
        .max_by(|one, other| one.0.total_cmp(&other.0))
        .map(|(_, key)| (*key).to_owned())
}

/// A missing key has no place of its own: point at its table's header, or at the end of the text for the root table.
fn header_of(text: &str, span: Option<Range<usize>>) -> Option<Range<usize>> {
    let span = span?;
    if span.start == 0 && !text.trim_start().starts_with('[') || text[..floor_boundary(text, span.start)].is_empty() {
        let end = text.trim_end().len();
        let last_line = text[..end].rfind('\n').map_or(0, |at| at + 1);
        return Some(last_line..last_line);
    }
    Some(span)
}

fn floor_boundary(text: &str, at: usize) -> usize {
    let mut at = at.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

fn flatten(prefix: &str, table: &toml::Table, written: Option<&toml::Table>, settings: &mut Vec<Setting>) {
    for (key, value) in table {
        let in_file = written.and_then(|written| written.get(key));
        let key = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
        match value {
            toml::Value::Table(inner) => flatten(&key, inner, in_file.and_then(toml::Value::as_table), settings),
            value => settings.push(Setting {
                key,
                value: value.clone(),
                origin: if in_file.is_some() { Origin::File } else { Origin::Default },
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[derive(Debug, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Config {
        origin: String,
        #[serde(default)]
        limits: Limits,
    }

    #[derive(Debug, Serialize, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Limits {
        connections: u32,
        mode: Mode,
    }

    #[derive(Debug, Default, Serialize, Deserialize)]
    #[serde(rename_all = "kebab-case")]
    enum Mode {
        #[default]
        Open,
        Closed,
    }

    impl Default for Limits {
        fn default() -> Self {
            Self { connections: 8, mode: Mode::Open }
        }
    }

    fn refusal(text: &str) -> String {
        Source::new("directory.toml", text).parse::<Config>().unwrap_err().to_string()
    }

    #[test]
    fn unknown_key_names_the_nearest_with_a_caret() {
        let text = "origin = \"http://localhost\"\n\n[limits]\nconections = 4\n";
        let expected = "directory.toml:4:1: unknown key `conections`; did you mean `connections`?\n   |\n 4 | conections = 4\n   | ^^^^^^^^^^";
        assert_eq!(refusal(text), expected);
    }

    #[test]
    fn a_key_near_to_none_gets_the_list() {
        let text = "origin = \"x\"\nzzz = 1\n";
        let first = refusal(text).lines().next().unwrap().to_owned();
        assert_eq!(first, "directory.toml:2:1: unknown key `zzz`; known here: origin, limits");
    }

    #[test]
    fn missing_key_and_wrong_type_and_bad_toml_say_where() {
        for (text, expected) in [
            ("[limits]\nconnections = 4\n", "directory.toml:2:1: missing key `origin`"),
            ("", "directory.toml:1:1: missing key `origin`"),
            ("origin = 7\n", "directory.toml:1:10: invalid type: integer `7`, expected a string"),
            (
                "origin = \"x\"\n[limits]\n\tmode = \"opne\"\n",
                "directory.toml:3:9: unknown value `opne`; did you mean `open`?",
            ),
            ("origin = \"x\"\norigin = \"y\"\n", "directory.toml:2:1: duplicate key"),
            ("origin = \"x\n", "directory.toml:1:12: invalid basic string, expected `\"`"),
            ("origin = \"é\"\nlïmits = 1\n", "directory.toml:2:2: "),
        ] {
            let error = refusal(text);
            assert!(error.starts_with(expected), "{text:?}\n{error}");
        }
    }

    #[test]
    fn any_text_is_refused_or_parsed_without_a_panic() {
        proptest::proptest!(|(text in ".{0,200}")| {
            if let Err(error) = Source::new("x", text).parse::<Config>() {
                proptest::prop_assert!(error.to_string().starts_with("x:"));
            }
        });
    }

    #[test]
    fn a_refused_value_points_at_its_span() {
        #[derive(Deserialize)]
        struct Plain {
            port: Spanned<u16>,
        }
        let source = Source::new("a.toml", "# first\nport = 80\n");
        let plain: Plain = source.parse().unwrap();
        let error = source.refuse(plain.port.span(), "ports under 1024 need root").to_string();
        assert_eq!(error, "a.toml:2:8: ports under 1024 need root\n   |\n 2 | port = 80\n   |        ^^");
    }

    #[test]
    fn settings_tell_file_from_default() {
        let source = Source::new("a.toml", "origin = \"x\"\n[limits]\nmode = \"closed\"\n");
        let config: Config = source.parse().unwrap();
        let settings = source.settings(&config).unwrap();
        let shown: Vec<String> = settings.iter().map(|s| format!("{} = {} ({})", s.key, s.value, s.origin)).collect();
        assert_eq!(
            shown,
            ["limits.connections = 8 (default)", "limits.mode = \"closed\" (file)", "origin = \"x\" (file)"]
        );
    }

    #[test]
    fn files_that_are_not_configurations() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("directory.toml");
        assert!(matches!(Source::read(&file), Err(ConfigError::Unreadable { .. })));
        std::fs::write(&file, [0xff, 0xfe]).unwrap();
        assert!(matches!(Source::read(&file), Err(ConfigError::NotText { .. })));
        std::fs::write(&file, vec![b'#'; CONFIG_BYTES + 1]).unwrap();
        assert!(matches!(Source::read(&file), Err(ConfigError::NotText { .. })));
        std::fs::write(&file, "origin = \"x\"").unwrap();
        assert_eq!(load::<Config>(&file).unwrap().origin, "x");
    }
}
