//! What the operator's routes take and give, as JSON.

use openred_module::UnixMillis;
use serde::{Deserialize, Serialize};

use crate::account::Role;

/// Version of these documents.
pub(crate) const VERSION: u32 = 1;

/// A user to be.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewUser {
    pub(crate) password: String,
    #[serde(default)]
    pub(crate) role: Role,
}

/// Another password.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewPassword {
    pub(crate) password: String,
}

/// What an authenticator has to be given, once.
#[derive(Debug, Serialize, Deserialize)]
pub struct Enrolled {
    /// Version of the document.
    pub v: u32,
    /// The user.
    pub name: String,
    /// `otpauth://…`.
    pub uri: String,
    /// Sessions that ended with it.
    pub ended: usize,
}

/// The users.
#[derive(Debug, Serialize, Deserialize)]
pub struct Users {
    /// Version of the document.
    pub v: u32,
    /// By name.
    pub users: Vec<User>,
}

/// A user.
#[derive(Debug, Serialize, Deserialize)]
pub struct User {
    /// Its name.
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// Whether a code of its authenticator was ever taken.
    pub confirmed: bool,
    /// Wrong attempts since the last right one.
    pub failures: u32,
    /// No attempt is looked at before this time; absent: each is.
    pub locked_until: Option<UnixMillis>,
    /// When it was made.
    pub created_at: UnixMillis,
}

/// The sessions that live.
#[derive(Debug, Serialize, Deserialize)]
pub struct Sessions {
    /// Version of the document.
    pub v: u32,
    /// In no order.
    pub sessions: Vec<SessionView>,
}

/// A session.
#[derive(Debug, Serialize, Deserialize)]
pub struct SessionView {
    /// By which it can be ended.
    pub id: String,
    /// Whose.
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// When it began.
    pub created_at: UnixMillis,
    /// Its last request, to a minute.
    pub seen_at: UnixMillis,
    /// When it is over unless there is another request.
    pub until: UnixMillis,
}

/// Sessions that were ended.
#[derive(Debug, Serialize, Deserialize)]
pub struct Ended {
    /// Version of the document.
    pub v: u32,
    /// How many.
    pub ended: usize,
}

/// A challenge that was met.
#[derive(Debug, Serialize, Deserialize)]
pub struct Proved {
    /// Version of the document.
    pub v: u32,
    /// Who has signed.
    pub peer: String,
    /// When, by that node's clock.
    pub at: UnixMillis,
}
