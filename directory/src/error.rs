//! What can stop the directory or one of its commands. Each text is one line: what, why, the way out. What a client of the
//! HTTP API gets to see is [`crate::api::problem::Problem`] instead.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use openred_proto::config::ConfigError;

/// The crate's result.
pub type Result<T> = std::result::Result<T, Error>;

/// `Local…`: this machine or its operator's files; `Misuse…`: the command line; `Peer…`: the running directory's answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration is wrong.
    #[error("{0}")]
    LocalConfig(#[from] ConfigError),
    /// A layer of the cage cannot be had.
    #[error("cannot confine itself: {0}")]
    LocalCage(#[from] openred_policy::Error),
    /// A file operation failed.
    #[error("{}: cannot {action}: {source}", .path.display())]
    LocalFile {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The address is in use.
    #[error(
        "{address}: the port is taken; end what listens there (`ss -ltnp`) or set another `listen` in the configuration"
    )]
    LocalPortTaken {
        /// The configured address.
        address: SocketAddr,
    },
    /// The listener could not be opened for another reason.
    #[error("{address}: cannot listen: {source}")]
    LocalListen {
        /// The configured address.
        address: SocketAddr,
        /// The system's reason.
        source: io::Error,
    },
    /// The service manager opened listeners for this program (directory.socket), and they are not the configured ones.
    #[error(
        "of the listeners that the service manager handed over, {what}; set ListenStream= in directory.socket to what `listen` in the configuration says"
    )]
    LocalInherited {
        /// Which does not fit.
        what: String,
    },
    /// Another directory serves this home.
    #[error("{}: another directory serves this home; stop it first", .socket.display())]
    LocalAlreadyRunning {
        /// The admin socket that answered.
        socket: PathBuf,
    },
    /// The identity key file is not one, or others may read it.
    #[error("{}: {why}", .path.display())]
    LocalKeyFile {
        /// The key file.
        path: PathBuf,
        /// What is wrong with it, and the way out.
        why: &'static str,
    },
    /// Certificate or key cannot be used.
    #[error("{}: {why}", .path.display())]
    LocalTls {
        /// The PEM file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A file that a setting names cannot be used.
    #[error("{}: {why} ({setting})", .path.display())]
    LocalNamed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
        /// Which setting.
        setting: &'static str,
    },
    /// The database refused.
    #[error("database: {0}")]
    LocalStore(rusqlite::Error),
    /// The database has reached its configured size, or the disk is full.
    #[error("database: full; free disk space or raise store.max_megabytes")]
    LocalStoreFull,
    /// Somebody has taken the database's files away under the running directory, or laid others in their place.
    #[error(
        "{}: the database was deleted or replaced while the directory runs: what it took since then is not in what stands there. `directory export` still gives what it holds; then end it, put the file back or move `state/` away, start it, and import",
        .path.display()
    )]
    LocalStoreGone {
        /// The database.
        path: PathBuf,
    },
    /// The shared database refused.
    #[error("database: {}", postgres_words(.0))]
    LocalPostgres(Box<tokio_postgres::Error>),
    /// The shared database cannot be reached just now.
    #[error("database: not to be reached at store.url; start the server, or look at its log")]
    LocalStoreAway,
    /// The shared database did not say whether a change holds.
    #[error("database: lost while it made a change durable; whether it holds is not known")]
    LocalStoreUnknown,
    /// The shared database is not one that can be used.
    #[error("database: cannot be used: {why}")]
    LocalStoreUnfit {
        /// Why, and the way out.
        why: &'static str,
    },
    /// A host in the settings has no address.
    #[error("{host}: no address of this host is known ({setting}): {source}")]
    LocalHost {
        /// The name in the settings.
        host: String,
        /// Which setting.
        setting: &'static str,
        /// The resolver's reason.
        source: io::Error,
    },
    /// The mirrored directory's host has no address.
    #[error("{host}: no address of this host is known (mirror.of): {source}")]
    LocalUpstreamHost {
        /// The name in the settings.
        host: String,
        /// The resolver's reason.
        source: io::Error,
    },
    /// The store's queue is full: try again.
    #[error("database: busy")]
    LocalStoreBusy,
    /// The store's thread has ended.
    #[error("database: stopped")]
    LocalStoreStopped,
    /// Written by a newer version.
    #[error("database: schema {found} is newer than {known}, which this version knows; run the version that wrote it")]
    LocalSchemaNewer {
        /// In the file.
        found: i64,
        /// In this program.
        known: i64,
    },
    /// The runtime could not be built, or a signal not registered.
    #[error("cannot start: {0}")]
    LocalRuntime(io::Error),
    /// No directory answers on the admin socket.
    #[error("{}: no directory is running there; start it with `directory serve`, or name its home with --home", .socket.display())]
    PeerAway {
        /// The admin socket.
        socket: PathBuf,
    },
    /// The running directory refused a command.
    #[error("{0}")]
    PeerRefused(crate::admin::Refusal),
    /// The running directory's answer is not one.
    #[error("the running directory's answer cannot be read; is it of the same version?")]
    PeerMalformed,
    /// Something on the command line.
    #[error("{0}")]
    Misuse(&'static str),
    /// Some of many things did not go; the output has said which.
    #[error("not all of it went")]
    LocalPartly,
    /// A line of a file that is to be taken over.
    #[error("{}:{line}: {why}", .path.display())]
    LocalLine {
        /// The file.
        path: PathBuf,
        /// Which line.
        line: u64,
        /// What is wrong with it.
        why: &'static str,
    },
    /// There is no database.
    #[error("{}: no database yet; `directory serve` makes it", .path.display())]
    LocalNoDatabase {
        /// Where it would be.
        path: PathBuf,
    },
    /// A check found something; its output has said what.
    #[error("not everything is in order")]
    LocalDegraded,
}

impl Error {
    /// For `map_err` on file operations.
    pub(crate) fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
        move |source| Error::LocalFile { action, path: path.to_owned(), source }
    }

    /// The exit code of docs/operations.md.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::LocalConfig(_)
            | Error::LocalTls { .. }
            | Error::LocalNamed { .. }
            | Error::LocalInherited { .. } => 78,
            Error::Misuse(_) => 2,
            Error::LocalDegraded => 3,
            Error::LocalNoDatabase { .. } => 4,
            Error::LocalPartly => 9,
            Error::LocalPortTaken { .. } | Error::LocalAlreadyRunning { .. } => 6,
            Error::PeerRefused(refusal) => refusal.exit_code(),
            _ => 1,
        }
    }
}

/// What the server said, where it said something.
fn postgres_words(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(said) => format!("{} (SQLSTATE {})", said.message(), said.code().code()),
        None => error.to_string(),
    }
}

impl From<rusqlite::Error> for Error {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(rusqlite::ErrorCode::DiskFull) => Error::LocalStoreFull,
            Some(rusqlite::ErrorCode::DatabaseBusy | rusqlite::ErrorCode::DatabaseLocked) => Error::LocalStoreBusy,
            _ => Error::LocalStore(error),
        }
    }
}
