//! Sessions of the API: a cookie and a token, each 32 random bytes of which only hashes are kept. Both are asked for on every request, because
//! a browser shows a cookie of `localhost` to every port of this machine.

use openred_module::{Batch, Committed, Context, HostError, Table, UnixMillis};
use ring::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq as _;

use crate::account::Role;

/// Without a request for so long it is over.
const IDLE: u64 = 30 * 60_000;
/// It is over after this in any case.
const LONGEST: u64 = 12 * 3_600_000;
/// A request is noted when the last that was is this old: not each is worth a row.
const NOTED: u64 = 60_000;
/// Sessions of one user; a further one ends the oldest.
const MOST: usize = 8;
/// Letters of a hash that name a session to the operator.
const ID: usize = 12;

/// By the hash of the cookie.
static SESSIONS: Table<String, Session> = Table::new("session");

/// A session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Session {
    pub(crate) name: String,
    pub(crate) role: Role,
    /// Hash of the token.
    token: String,
    pub(crate) created_at: UnixMillis,
    pub(crate) seen_at: UnixMillis,
}

impl Session {
    /// When it is over unless there is another request.
    pub(crate) fn until(&self) -> UnixMillis {
        (self.seen_at + IDLE).min(self.created_at + LONGEST)
    }

    fn lives(&self, now: UnixMillis) -> bool {
        // A clock that was set back makes no session longer.
        now < self.until() && self.created_at <= now + NOTED
    }
}

/// What the client gets of a new session, once.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) cookie: String,
    pub(crate) token: String,
    pub(crate) session: Session,
}

/// As the operator sees it.
#[derive(Debug)]
pub(crate) struct Listed {
    pub(crate) id: String,
    pub(crate) session: Session,
}

fn random(context: &Context) -> String {
    hex::encode([context.unique_id(), context.unique_id()].as_flattened())
}

fn hash(text: &str) -> String {
    hex::encode(digest(&SHA256, text.as_bytes()))
}

/// A session for a user who has just proved who he is, in one batch with what else is to be written; none where that expects something which is so
/// no more. Never one that the client had before.
pub(crate) async fn open(
    context: &Context,
    (name, role): (&str, Role),
    mut batch: Batch,
    now: UnixMillis,
) -> Result<Option<Opened>, HostError> {
    let (cookie, token) = (random(context), random(context));
    let session = Session { name: name.to_owned(), role, token: hash(&token), created_at: now, seen_at: now };
    let (over, mut own): (Vec<_>, Vec<_>) =
        SESSIONS.all(context).await?.into_iter().partition(|(_, session)| !session.lives(now));
    own.retain(|(_, session)| session.name == name);
    own.sort_by_key(|(_, session)| session.seen_at);
    let surplus = own.len().saturating_sub(MOST - 1);
    for (key, _) in over.iter().chain(&own[..surplus]) {
        batch = SESSIONS.delete_in(batch, key);
    }
    let batch = SESSIONS.put_in(batch, &hash(&cookie), &session)?;
    let committed = context.apply(batch).await? == Committed::Yes;
    Ok(committed.then_some(Opened { cookie, token, session }))
}

/// Why a request has no session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Absent {
    /// No cookie, or none of a session that lives.
    Unknown,
    /// Its token is missing or another's.
    Token,
}

/// The session of this cookie and token, which lives on from now.
pub(crate) async fn find(
    context: &Context,
    cookie: &str,
    token: Option<&str>,
    now: UnixMillis,
) -> Result<Result<Session, Absent>, HostError> {
    let key = hash(cookie);
    let entry = SESSIONS.entry(context, &key).await?;
    let Some(mut session) = entry.value.clone().filter(|session| session.lives(now)) else {
        return Ok(Err(Absent::Unknown));
    };
    let is_its = token.is_some_and(|token| hash(token).as_bytes().ct_eq(session.token.as_bytes()).into());
    if !is_its {
        return Ok(Err(Absent::Token));
    }
    if now.saturating_sub(session.seen_at) >= NOTED {
        session.seen_at = now;
        // One that was ended meanwhile stays so: the row is not as it was read.
        let _ = SESSIONS.replace(context, entry, &session).await?;
    }
    Ok(Ok(session))
}

/// Ends the session of this cookie.
pub(crate) async fn close(context: &Context, cookie: &str) -> Result<(), HostError> {
    SESSIONS.delete(context, &hash(cookie)).await
}

/// Those that live.
pub(crate) async fn all(context: &Context) -> Result<Vec<Listed>, HostError> {
    let now = context.now();
    let living = SESSIONS.all(context).await?.into_iter().filter(|(_, session)| session.lives(now));
    Ok(living.map(|(key, session)| Listed { id: key[..ID].to_owned(), session }).collect())
}

/// Ends those of which this is true; how many those were.
pub(crate) async fn end(context: &Context, is_meant: impl Fn(&str, &Session) -> bool) -> Result<usize, HostError> {
    let mut count = 0;
    for (key, session) in SESSIONS.all(context).await? {
        if is_meant(&key[..ID], &session) {
            SESSIONS.delete(context, &key).await?;
            count += 1;
        }
    }
    Ok(count)
}
