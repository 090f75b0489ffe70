//! The operator's routes: users, their second factors, sessions. Only who holds the admin socket gets here, never the HTTP API.

use std::sync::Arc;

use openred_module::{AuditEvent, Committed, Context, HostError, Json, ModuleError, Path};

use crate::Auth;
use crate::account::{ACCOUNTS, Account, MOST, is_name};
use crate::document::{Ended, Enrolled, NewPassword, NewUser, SessionView, Sessions, User, Users, VERSION};
use crate::error::AuthError;
use crate::password::{Hashed, is_strong};
use crate::session;
use crate::totp::Totp;

/// In the place of a session's id: all of them.
const ALL: &str = "all";

type Answer<T> = Result<Json<T>, ModuleError>;

impl Auth {
    pub(crate) async fn add_user(
        self: Arc<Self>,
        context: Context,
        Path(name): Path<String>,
        Json(new): Json<NewUser>,
    ) -> Answer<Enrolled> {
        if !is_name(&name) {
            return Err(AuthError::BadName.into());
        }
        if !is_strong(&new.password) {
            return Err(AuthError::WeakPassword.into());
        }
        if ACCOUNTS.all(&context).await?.len() >= MOST {
            return Err(AuthError::TooManyUsers.into());
        }
        let entry = ACCOUNTS.entry(&context, &name).await?;
        if entry.value.is_some() {
            return Err(AuthError::UserExists.into());
        }
        let totp = new_totp(&context);
        let hashed = Hashed::new(&new.password, context.unique_id());
        let account = Account::new(new.role, hashed, totp.clone(), context.now());
        if ACCOUNTS.replace(&context, entry, &account).await? == Committed::No {
            return Err(AuthError::UserExists.into());
        }
        changed(&context, "added");
        Ok(Json(enrolled(&context, name, &totp, 0)))
    }

    pub(crate) async fn users(self: Arc<Self>, context: Context) -> Answer<Users> {
        let now = context.now();
        let user = |(name, account): (String, Account)| User {
            name,
            role: account.role,
            confirmed: account.totp.is_used(),
            failures: account.failures,
            locked_until: account.is_locked(now).then_some(account.locked_until),
            created_at: account.created_at,
        };
        let users = ACCOUNTS.all(&context).await?.into_iter().map(user).collect();
        Ok(Json(Users { v: VERSION, users }))
    }

    pub(crate) async fn remove_user(self: Arc<Self>, context: Context, Path(name): Path<String>) -> Answer<Ended> {
        let entry = ACCOUNTS.entry(&context, &name).await?;
        if entry.value.is_none() {
            return Err(AuthError::NoUser.into());
        }
        // The row first: who is in has no way back.
        ACCOUNTS.delete(&context, &name).await?;
        let ended = end_of(&context, &name).await?;
        changed(&context, "removed");
        Ok(Json(Ended { v: VERSION, ended }))
    }

    pub(crate) async fn set_password(
        self: Arc<Self>,
        context: Context,
        Path(name): Path<String>,
        Json(new): Json<NewPassword>,
    ) -> Answer<Ended> {
        if !is_strong(&new.password) {
            return Err(AuthError::WeakPassword.into());
        }
        let password = Hashed::new(&new.password, context.unique_id());
        change(&context, &name, |account| Account { password: password.clone(), ..account }).await?;
        let ended = end_of(&context, &name).await?;
        changed(&context, "password");
        Ok(Json(Ended { v: VERSION, ended }))
    }

    /// Another second factor; the one before holds no more, nor does a session that it opened.
    pub(crate) async fn enrol(self: Arc<Self>, context: Context, Path(name): Path<String>) -> Answer<Enrolled> {
        let totp = new_totp(&context);
        change(&context, &name, |account| Account { totp: totp.clone(), ..account }).await?;
        let ended = end_of(&context, &name).await?;
        changed(&context, "enrolled");
        Ok(Json(enrolled(&context, name, &totp, ended)))
    }

    pub(crate) async fn unlock(self: Arc<Self>, context: Context, Path(name): Path<String>) -> Answer<Users> {
        change(&context, &name, Account::forgiven).await?;
        changed(&context, "unlocked");
        self.users(context).await
    }

    pub(crate) async fn sessions(self: Arc<Self>, context: Context) -> Answer<Sessions> {
        let view = |listed: session::Listed| SessionView {
            id: listed.id,
            until: listed.session.until(),
            name: listed.session.name,
            role: listed.session.role,
            created_at: listed.session.created_at,
            seen_at: listed.session.seen_at,
        };
        let sessions = session::all(&context).await?.into_iter().map(view).collect();
        Ok(Json(Sessions { v: VERSION, sessions }))
    }

    pub(crate) async fn end_sessions(self: Arc<Self>, context: Context, Path(id): Path<String>) -> Answer<Ended> {
        let ended = session::end(&context, |own, _| id == ALL || id == own).await?;
        if ended == 0 && id != ALL {
            return Err(AuthError::NoSession.into());
        }
        changed(&context, "sessions-ended");
        Ok(Json(Ended { v: VERSION, ended }))
    }
}

/// Changes a user's row, whatever else changes it meanwhile.
async fn change(context: &Context, name: &str, change: impl Fn(Account) -> Account) -> Result<(), AuthError> {
    loop {
        let entry = ACCOUNTS.entry(context, &name.to_owned()).await?;
        let account = change(entry.value.clone().ok_or(AuthError::NoUser)?);
        if ACCOUNTS.replace(context, entry, &account).await? == Committed::Yes {
            return Ok(());
        }
    }
}

async fn end_of(context: &Context, name: &str) -> Result<usize, HostError> {
    session::end(context, |_, session| session.name == name).await
}

fn new_totp(context: &Context) -> Totp {
    Totp::new([context.unique_id(), context.unique_id()])
}

fn enrolled(context: &Context, name: String, totp: &Totp, ended: usize) -> Enrolled {
    // Enough of the node's id to tell two nodes apart in an authenticator.
    let node: String = context.node_id().to_string().trim_start_matches("did:key:").chars().take(12).collect();
    let uri = totp.uri(&name, &node);
    Enrolled { v: VERSION, name, uri, ended }
}

fn changed(context: &Context, outcome: &'static str) {
    context.audit(AuditEvent { code: "users", peer: None, outcome });
    tracing::info!(outcome, "the API's users were changed");
}
