//! One attempt to log in: counted before it is judged, judged in the same time whoever is named, and answered with the same word whatever was wrong.

use openred_module::{AuditEvent, Batch, Committed, Context, HostError};
use serde::Deserialize;
use tokio::sync::{Mutex, Semaphore};

use crate::account::{ACCOUNTS, Account, is_name};
use crate::password::{Hashed, LONGEST};
use crate::session::{self, Opened};

/// Attempts that wait for their turn: each takes tens of milliseconds.
const WAITING: usize = 8;
/// Where an attempt under a name that nobody has is counted.
const NOBODY: &[u8] = b"nobody";

/// What a client sends.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Attempt {
    name: String,
    password: String,
    code: String,
}

impl std::fmt::Debug for Attempt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Attempt").field("name", &self.name).finish_non_exhaustive()
    }
}

/// How it went.
#[derive(Debug)]
pub(crate) enum Outcome {
    In(Opened),
    /// Whatever was wrong: name, password or code, or too many attempts before.
    Denied,
    /// Too many wait.
    Busy,
}

/// The door: one attempt at a time, so that memory is bounded and none overtakes another's count.
#[derive(Debug)]
pub(crate) struct Door {
    waiting: Semaphore,
    turn: Mutex<()>,
}

impl Default for Door {
    fn default() -> Self {
        Self { waiting: Semaphore::new(WAITING), turn: Mutex::default() }
    }
}

impl Door {
    /// Judges an attempt. `before` is the cookie that its client had: that session ends with a success.
    pub(crate) async fn attempt(
        &self,
        context: &Context,
        attempt: Attempt,
        before: Option<&str>,
    ) -> Result<Outcome, HostError> {
        let Ok(_place) = self.waiting.try_acquire() else { return Ok(Outcome::Busy) };
        let _turn = self.turn.lock().await;
        let now = context.now();
        let entry = match is_name(&attempt.name) {
            true => Some(ACCOUNTS.entry(context, &attempt.name).await?),
            false => None,
        };
        let known = entry.as_ref().and_then(|entry| entry.value.clone());
        let counted = known.as_ref().filter(|account| !account.is_locked(now)).cloned();
        let mut counted = counted.map(|account| account.attempted(now));
        match (&counted, entry) {
            (Some(account), Some(entry)) => {
                // Changed by the operator at this very moment: what was read holds no more.
                if ACCOUNTS.replace(context, entry, account).await? == Committed::No {
                    counted = None;
                }
            }
            // As much work as for a name that somebody has.
            _ => context.put(NOBODY, now.to_be_bytes().to_vec()).await?,
        }
        let hashed = known.as_ref().map_or_else(Hashed::nobody, |account| account.password.clone());
        let is_right = attempt.password.len() <= LONGEST && hashed.is(&attempt.password);
        let taken = counted.as_ref().and_then(|account| account.totp.take(&attempt.code, now));
        let (Some(account), Some(totp), true) = (counted, taken, is_right) else {
            denied(context, &attempt.name, known.as_ref(), now);
            return Ok(Outcome::Denied);
        };
        let entry = ACCOUNTS.entry(context, &attempt.name).await?;
        let is_so = entry.value.as_ref() == Some(&account);
        let account = Account { totp, ..account.forgiven() };
        let batch = ACCOUNTS.expect_in(Batch::new(), &entry);
        let batch = ACCOUNTS.put_in(batch, &attempt.name, &account)?;
        let opened = match is_so {
            true => session::open(context, (&attempt.name, account.role), batch, now).await?,
            false => None,
        };
        let Some(opened) = opened else {
            denied(context, &attempt.name, known.as_ref(), now);
            return Ok(Outcome::Denied);
        };
        if let Some(before) = before {
            session::close(context, before).await?;
        }
        context.audit(AuditEvent { code: "login", peer: None, outcome: "in" });
        tracing::info!(user = attempt.name, "logged in");
        Ok(Outcome::In(opened))
    }
}

fn denied(context: &Context, name: &str, known: Option<&Account>, now: u64) {
    let outcome = match known {
        None => "unknown",
        Some(account) if account.is_locked(now) => "locked",
        Some(_) => "denied",
    };
    context.audit(AuditEvent { code: "login", peer: None, outcome });
    // A name that nobody has may be a password, typed into the wrong field.
    let user = if known.is_some() { name } else { "?" };
    tracing::warn!(user, outcome, "a login was denied");
}
