//! A module's own settings: which there are, what each takes, and what they are once the operator has said his.

use std::collections::BTreeMap;

use openred_proto::config::{ConfigError, Source};
use serde::Deserialize;
use toml::{Table, Value};

use super::places;
use super::words::{Code, Line};

/// Longest text, in bytes, unless the setting says less.
const TEXT_BYTES: u64 = 4096;
/// Most entries of a list.
const LIST: usize = 256;

/// One setting, checked: its default is among what it takes.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(try_from = "Written")]
pub struct Setting {
    /// What it takes.
    pub kind: Kind,
    /// Unless the operator says otherwise. Without it the operator has to.
    pub default: Option<Value>,
    /// What it is for.
    pub help: Line,
}

/// What a setting takes.
#[derive(Debug, Clone, PartialEq)]
pub enum Kind {
    /// `true` or `false`.
    Bool,
    /// A number from `least` to `most`, both included.
    Integer {
        /// The least.
        least: i64,
        /// The most.
        most: i64,
    },
    /// A text: one of these if there are any, otherwise of at most so many bytes.
    Text {
        /// The choices.
        one_of: Vec<String>,
        /// The longest, in bytes.
        most: u64,
    },
    /// A list of texts, each of at most so many bytes.
    List {
        /// The longest, in bytes.
        most: u64,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    r#type: Type,
    default: Option<Value>,
    least: Option<i64>,
    most: Option<i64>,
    #[serde(default)]
    one_of: Vec<String>,
    help: Line,
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Type {
    Bool,
    Integer,
    Text,
    List,
}

/// Why a setting's description is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum BadSetting {
    #[error("a setting of this type has no `{0}`; leave it out")]
    Needless(&'static str),
    #[error("`least` is more than `most`; turn them round")]
    Empty,
    #[error("`most` of a text is from 1 to 4096 bytes; choose one of these")]
    Bytes,
    #[error("`one_of` has more than 32 choices or one that is empty or over 200 bytes; leave some out")]
    Choices,
    #[error("the default is none of its values: {0}")]
    Default(String),
}

impl TryFrom<Written> for Setting {
    type Error = BadSetting;

    fn try_from(written: Written) -> Result<Self, BadSetting> {
        let kind = written.kind()?;
        if let Some(default) = &written.default {
            kind.check(default).map_err(BadSetting::Default)?;
        }
        Ok(Self { kind, default: written.default, help: written.help })
    }
}

impl Written {
    fn kind(&self) -> Result<Kind, BadSetting> {
        let is_number = self.r#type == Type::Integer;
        if !self.one_of.is_empty() && self.r#type != Type::Text {
            return Err(BadSetting::Needless("one_of"));
        }
        if self.least.is_some() && !is_number {
            return Err(BadSetting::Needless("least"));
        }
        if self.most.is_some() && (self.r#type == Type::Bool || !self.one_of.is_empty()) {
            return Err(BadSetting::Needless("most"));
        }
        let is_choice = |text: &String| !text.is_empty() && text.len() <= 200;
        if self.one_of.len() > super::ENTRIES || !self.one_of.iter().all(is_choice) {
            return Err(BadSetting::Choices);
        }
        let bytes = || match self.most.map(u64::try_from) {
            None => Ok(TEXT_BYTES),
            Some(Ok(most)) if (1..=TEXT_BYTES).contains(&most) => Ok(most),
            Some(_) => Err(BadSetting::Bytes),
        };
        match self.r#type {
            Type::Bool => Ok(Kind::Bool),
            Type::Integer => {
                let (least, most) = (self.least.unwrap_or(i64::MIN), self.most.unwrap_or(i64::MAX));
                if least > most { Err(BadSetting::Empty) } else { Ok(Kind::Integer { least, most }) }
            }
            Type::Text => Ok(Kind::Text { one_of: self.one_of.clone(), most: bytes()? }),
            Type::List => Ok(Kind::List { most: bytes()? }),
        }
    }
}

impl Kind {
    /// What is wrong with a value, and what is taken instead.
    fn check(&self, value: &Value) -> Result<(), String> {
        let fits = |text: &str, most: u64| text.len() as u64 <= most && !text.contains('\0');
        match (self, value) {
            (Self::Bool, Value::Boolean(_)) => Ok(()),
            (Self::Integer { least, most }, Value::Integer(number)) if (least..=most).contains(&number) => Ok(()),
            (Self::Text { one_of, .. }, Value::String(text)) if one_of.contains(text) => Ok(()),
            (Self::Text { one_of, most }, Value::String(text)) if one_of.is_empty() && fits(text, *most) => Ok(()),
            (Self::List { most }, Value::Array(items)) if items.len() <= LIST => {
                let is_text = |item: &Value| item.as_str().is_some_and(|text| fits(text, *most));
                if items.iter().all(is_text) { Ok(()) } else { Err(self.takes()) }
            }
            _ => Err(self.takes()),
        }
    }

    /// In words.
    fn takes(&self) -> String {
        match self {
            Self::Bool => String::from("use true or false"),
            Self::Integer { least: i64::MIN, most: i64::MAX } => String::from("use a whole number"),
            Self::Integer { least, most } => format!("use a whole number from {least} to {most}"),
            Self::Text { one_of, most } if one_of.is_empty() => format!("use a text of at most {most} bytes"),
            Self::Text { one_of, .. } => format!("use one of {}", one_of.join(", ")),
            Self::List { most } => format!("use a list of at most {LIST} texts, each of at most {most} bytes"),
        }
    }
}

/// A value that the operator set and the module does not take, or one that he has to set.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {what}")]
pub struct WrongSetting {
    /// The setting.
    pub key: String,
    /// What is wrong, and what is taken instead.
    pub what: String,
}

/// The operator's values over the defaults, out of a text.
pub(super) fn resolve(settings: &BTreeMap<Code, Setting>, source: &Source) -> Result<Table, ConfigError> {
    let said: Table = source.parse()?;
    over_defaults(settings, &said).map_err(|wrong| places::refuse(source, &wrong.key, &wrong.what))
}

/// The operator's values over the defaults.
pub(super) fn over_defaults(settings: &BTreeMap<Code, Setting>, said: &Table) -> Result<Table, WrongSetting> {
    let wrong = |key: &str, what: String| WrongSetting { key: key.to_owned(), what };
    for (key, value) in said {
        let Some(setting) = key.parse::<Code>().ok().and_then(|key| settings.get(&key)) else {
            let known: Vec<&str> = settings.keys().map(Code::as_str).collect();
            let known = if known.is_empty() { String::from("it has none") } else { known.join(", ") };
            return Err(wrong(key, format!("this module has no such setting; known here: {known}")));
        };
        setting.kind.check(value).map_err(|takes| wrong(key, format!("not a value of it; {takes}")))?;
    }
    let mut table = Table::new();
    for (key, setting) in settings {
        match said.get(key.as_str()).or(setting.default.as_ref()) {
            Some(value) => drop(table.insert(key.to_string(), value.clone())),
            None => {
                return Err(wrong(key.as_str(), format!("has no default and is not set; {}", setting.kind.takes())));
            }
        }
    }
    Ok(table)
}
