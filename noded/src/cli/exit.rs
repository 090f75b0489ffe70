//! Exit codes and the one form of a failure: what, why, the way out. The codes are an interface (docs/openred.md).

use std::fmt;

use openred_policy::Error as CageError;
use openred_proto::config::ConfigError;
use serde::Serialize;

/// Header of a gRPC status with the stable code of docs/errors.md.
const CODE_HEADER: &str = "openred-code";

/// How a command ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub(crate) enum Exit {
    /// Done.
    Ok = 0,
    /// Failed, for a reason that no other code names.
    Failed = 1,
    /// The command line makes no sense.
    Usage = 2,
    /// It answers, but something is off.
    Degraded = 3,
    /// No such thing.
    NotFound = 4,
    /// Not allowed.
    Denied = 5,
    /// Something is in the way: it exists, runs or is taken already.
    Conflict = 6,
    /// Nobody answered in time.
    TimeOut = 7,
    /// The keys are not open: wrong passphrase, or the key process is away.
    Locked = 8,
    /// Some of it was done.
    Partial = 9,
    /// The configuration is refused. As on usage, denied, conflict and locked, systemd does not start the node again on it.
    BadConfiguration = 78,
}

/// Why a command did not do what was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) exit: Exit,
    /// Stable name in dotted kebab case, for programs.
    pub(crate) code: String,
    /// What and why, one line. A configuration's refusal adds the lines with the caret.
    pub(crate) what: String,
    /// What the operator can do; may be empty where `what` says it.
    pub(crate) way_out: String,
}

impl Failure {
    pub(crate) fn new(exit: Exit, code: &str, what: impl Into<String>, way_out: impl Into<String>) -> Self {
        Self { exit, code: code.to_owned(), what: what.into(), way_out: way_out.into() }
    }

    /// Something on this machine did not work.
    pub(crate) fn local(what: impl fmt::Display, error: &std::io::Error) -> Self {
        let exit = match error.kind() {
            std::io::ErrorKind::NotFound => Exit::NotFound,
            std::io::ErrorKind::PermissionDenied => Exit::Denied,
            std::io::ErrorKind::AlreadyExists | std::io::ErrorKind::AddrInUse => Exit::Conflict,
            std::io::ErrorKind::TimedOut => Exit::TimeOut,
            _ => Exit::Failed,
        };
        let what = format!("{what}: {}", reason(error));
        match error.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
                Self::new(exit, "disk.full", what, "free some space there, or name another place, and try again")
            }
            _ => Self::new(exit, "local", what, ""),
        }
    }

    /// A mistake of the caller that clap does not see.
    pub(crate) fn usage(what: impl Into<String>, way_out: impl Into<String>) -> Self {
        Self::new(Exit::Usage, "usage", what, way_out)
    }

    /// For the operator on the other side of a socket; [`From<tonic::Status>`] reads it back.
    pub(crate) fn into_status(self) -> tonic::Status {
        use tonic::Code;
        let kind = match self.exit {
            Exit::Usage => Code::InvalidArgument,
            Exit::NotFound => Code::NotFound,
            Exit::Denied => Code::PermissionDenied,
            Exit::Conflict => Code::FailedPrecondition,
            Exit::TimeOut => Code::DeadlineExceeded,
            Exit::Locked => Code::Unavailable,
            _ => Code::Unknown,
        };
        let mut status = tonic::Status::new(kind, self.to_string());
        if let Ok(code) = self.code.parse() {
            status.metadata_mut().insert(CODE_HEADER, code);
        }
        status
    }

    /// The same failure with another way out.
    pub(crate) fn way_out(mut self, way_out: impl Into<String>) -> Self {
        self.way_out = way_out.into();
        self
    }
}

/// The system's words without the number that Rust appends.
fn reason(error: &std::io::Error) -> String {
    let text = error.to_string();
    match text.find(" (os error") {
        Some(at) => text[..at].to_lowercase(),
        None => text,
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        if !self.way_out.is_empty() {
            write!(f, "; {}", self.way_out)?;
        }
        Ok(())
    }
}

impl std::error::Error for Failure {}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        match &error {
            ConfigError::Unreadable { file, reason: std::io::ErrorKind::NotFound } => Failure::new(
                Exit::NotFound,
                "config.missing",
                format!("{}: no such file", file.display()),
                "make a node with `openred init`, or name another place with --home or --config",
            ),
            _ => Failure::new(Exit::BadConfiguration, "config.refused", error.to_string(), ""),
        }
    }
}

impl From<CageError> for Failure {
    fn from(error: CageError) -> Self {
        Failure::new(Exit::Failed, "cage", error.to_string(), "")
    }
}

impl From<tonic::Status> for Failure {
    fn from(status: tonic::Status) -> Self {
        let code = status.metadata().get(CODE_HEADER).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let exit = match status.code() {
            _ if matches!(code, "cryptod.away" | "locked" | "keys.locked" | "keystore.locked") => Exit::Locked,
            _ if code == "cryptod.slow" => Exit::TimeOut,
            // The client's own deadline: tonic ends the call by itself.
            tonic::Code::Cancelled => Exit::TimeOut,
            tonic::Code::NotFound => Exit::NotFound,
            tonic::Code::PermissionDenied | tonic::Code::Unauthenticated => Exit::Denied,
            tonic::Code::AlreadyExists | tonic::Code::FailedPrecondition | tonic::Code::Aborted => Exit::Conflict,
            tonic::Code::DeadlineExceeded => Exit::TimeOut,
            tonic::Code::InvalidArgument => Exit::Usage,
            _ => Exit::Failed,
        };
        let code = if code.is_empty() { "node" } else { code };
        Failure::new(exit, code, one_line(status.message()), "")
    }
}

/// Text of another process on one line: control characters become spaces, so that it cannot act on the terminal.
pub(crate) fn one_line(text: &str) -> String {
    text.chars().map(|character| if character.is_control() { ' ' } else { character }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_those_of_the_documentation() {
        let table = include_str!("../../../docs/openred.md");
        for (exit, name) in [
            (Exit::Ok, "ok"),
            (Exit::Failed, "failed"),
            (Exit::Usage, "usage"),
            (Exit::Degraded, "degraded"),
            (Exit::NotFound, "not found"),
            (Exit::Denied, "denied"),
            (Exit::Conflict, "conflict"),
            (Exit::TimeOut, "time-out"),
            (Exit::Locked, "locked"),
            (Exit::Partial, "partial"),
            (Exit::BadConfiguration, "bad configuration"),
        ] {
            assert!(table.contains(&format!("| {} | {name} |", exit as u8)), "{name}");
        }
    }

    #[test]
    fn a_status_becomes_its_exit_code() {
        let exit = |status: tonic::Status| Failure::from(status).exit;
        assert_eq!(exit(tonic::Status::not_found("x")), Exit::NotFound);
        assert_eq!(exit(tonic::Status::permission_denied("x")), Exit::Denied);
        assert_eq!(exit(tonic::Status::deadline_exceeded("x")), Exit::TimeOut);
        assert_eq!(exit(tonic::Status::unavailable("x")), Exit::Failed);
        let mut away = tonic::Status::unavailable("the key process is away");
        away.metadata_mut().insert(CODE_HEADER, tonic::metadata::MetadataValue::from_static("cryptod.away"));
        assert_eq!(exit(away), Exit::Locked);
        let mut refused = tonic::Status::resource_exhausted("cryptod refused: no room");
        refused.metadata_mut().insert(CODE_HEADER, tonic::metadata::MetadataValue::from_static("cryptod.capacity"));
        assert_eq!(exit(refused), Exit::Failed, "it answered: nothing is locked");
        assert_eq!(exit(tonic::Status::cancelled("Timeout expired")), Exit::TimeOut);
        for (exit, code) in [
            (Exit::Failed, "keystore.damaged"),
            (Exit::Conflict, "keys.open"),
            (Exit::Denied, "keystore.foreign"),
            (Exit::NotFound, "keystore.missing"),
            (Exit::Locked, "keystore.locked"),
            (Exit::Locked, "keys.locked"),
        ] {
            let sent = Failure::new(exit, code, "what", "way out");
            let read = Failure::from(sent.into_status());
            assert_eq!((read.exit, read.code.as_str(), read.to_string().as_str()), (exit, code, "what; way out"));
        }
    }

    #[test]
    fn foreign_text_cannot_move_the_cursor() {
        assert_eq!(one_line("a\u{1b}[2Jb\nc"), "a [2Jb c");
    }
}
