//! `openred auth …`: thin over the module `auth`.

use serde::{Deserialize, Serialize};
use serde_json::json;
use zeroize::Zeroizing;

use super::arguments::{Auth, PassphraseSource, Totp, User};
use super::module::{Route, call};
use super::output::{Output, Tone, moment, now, table};
use super::{Exit, Failure, Invocation, Passphrase, one_line};

const MODULE: &str = "auth";

/// What an authenticator is given.
#[derive(Serialize, Deserialize)]
struct Enrolled {
    v: u32,
    name: String,
    uri: String,
    ended: usize,
}

#[derive(Serialize, Deserialize)]
struct Users {
    v: u32,
    users: Vec<Known>,
}

#[derive(Serialize, Deserialize)]
struct Known {
    name: String,
    role: String,
    confirmed: bool,
    failures: u32,
    locked_until: Option<u64>,
    created_at: u64,
}

#[derive(Serialize, Deserialize)]
struct Sessions {
    v: u32,
    sessions: Vec<Session>,
}

#[derive(Serialize, Deserialize)]
struct Session {
    id: String,
    name: String,
    role: String,
    created_at: u64,
    seen_at: u64,
    until: u64,
}

#[derive(Serialize, Deserialize)]
struct Ended {
    v: u32,
    ended: usize,
}

#[derive(Serialize, Deserialize)]
struct Proved {
    v: u32,
    peer: String,
    at: u64,
}

fn get(path: &str) -> Route {
    Route { module: MODULE, method: "GET", path: path.to_owned() }
}

fn post(path: String) -> Route {
    Route { module: MODULE, method: "POST", path }
}

pub(crate) async fn auth(invocation: &Invocation, command: Auth) -> Result<Exit, Failure> {
    let output = &invocation.output;
    match command {
        Auth::User(User::Add { name, viewer, password }) => {
            let role = if viewer { "viewer" } else { "operator" };
            let body = json!({ "password": &*given(&password)?, "role": role });
            let made: Enrolled = call(invocation, post(named(&name, "")?), Some(&body)).await?;
            enrolled(output, &made);
        }
        Auth::User(User::List) => users(output, &call(invocation, get("/users"), None::<&()>).await?),
        Auth::User(User::Remove { name }) => {
            ended(output, "removed", &call(invocation, post(named(&name, "/remove")?), None::<&()>).await?);
        }
        Auth::User(User::Password { name, password }) => {
            let body = json!({ "password": &*given(&password)? });
            ended(output, "set", &call(invocation, post(named(&name, "/password")?), Some(&body)).await?);
        }
        Auth::Totp(Totp::Enrol { name }) => {
            let made: Enrolled = call(invocation, post(named(&name, "/totp")?), None::<&()>).await?;
            enrolled(output, &made);
        }
        Auth::Unlock { name } => {
            users(output, &call(invocation, post(named(&name, "/unlock")?), None::<&()>).await?);
        }
        Auth::Sessions { end: None, end_all: false } => {
            sessions(output, &call(invocation, get("/sessions"), None::<&()>).await?);
        }
        Auth::Sessions { end, .. } => {
            let id = end.unwrap_or_else(|| String::from("all"));
            let path = format!("/sessions/{}/end", plain(&id)?);
            ended(output, "done", &call(invocation, post(path), None::<&()>).await?);
        }
        Auth::Challenge { peer } => {
            let proved: Proved = call(invocation, post(format!("/challenge/{}", plain(&peer)?)), None::<&()>).await?;
            output.line(one_line(&format!("{} holds its key: signed {}", proved.peer, moment(proved.at, now()))));
            output.document("openred.auth-challenge/1", &proved);
        }
    }
    Ok(Exit::Ok)
}

fn named(name: &str, what: &str) -> Result<String, Failure> {
    Ok(format!("/users/{}{what}", plain(name)?))
}

/// One segment of a path.
fn plain(word: &str) -> Result<&str, Failure> {
    let is_plain = !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte));
    let wrong =
        || Failure::usage("no name, number or node id has such characters", "`openred auth user list` shows names");
    is_plain.then_some(word).ok_or_else(wrong)
}

/// The password, as text.
fn given(source: &PassphraseSource) -> Result<Zeroizing<String>, Failure> {
    let bytes = Passphrase::new_for_creation(source)?.bytes()?;
    let text =
        std::str::from_utf8(&bytes).map_err(|_| Failure::usage("the password is no UTF-8 text", "choose another"))?;
    Ok(Zeroizing::new(text.to_owned()))
}

fn enrolled(output: &Output, made: &Enrolled) {
    output.line(one_line(&made.uri));
    output.line(format!("give this to the authenticator of {}; it is shown once", one_line(&made.name)));
    output.document("openred.auth-enrolled/1", made);
}

fn ended(output: &Output, what: &str, ended: &Ended) {
    output.line(format!("{what}; sessions ended: {}", ended.ended));
    output.document("openred.auth-ended/1", ended);
}

fn users(output: &Output, users: &Users) {
    let now = now();
    let mut rows = vec![["name", "role", "second factor", "wrong", "locked"].map(str::to_owned).to_vec()];
    for user in &users.users {
        let factor = if user.confirmed { "in use" } else { "not used yet" };
        let locked = user.locked_until.map_or_else(String::new, |until| output.paint(Tone::Bad, &moment(until, now)));
        rows.push(vec![
            one_line(&user.name),
            one_line(&user.role),
            factor.to_owned(),
            user.failures.to_string(),
            locked,
        ]);
    }
    if users.users.is_empty() {
        output.line("nobody may use the API: `openred auth user add NAME`");
    } else {
        table(&rows).iter().for_each(|row| output.line(row));
    }
    output.document("openred.auth-users/1", users);
}

fn sessions(output: &Output, sessions: &Sessions) {
    let now = now();
    let mut rows = vec![["id", "name", "role", "began", "ends"].map(str::to_owned).to_vec()];
    for session in &sessions.sessions {
        let (began, ends) = (moment(session.created_at, now), moment(session.until, now));
        rows.push(vec![one_line(&session.id), one_line(&session.name), one_line(&session.role), began, ends]);
    }
    if sessions.sessions.is_empty() {
        output.line("nobody is logged in");
    } else {
        table(&rows).iter().for_each(|row| output.line(row));
    }
    output.document("openred.auth-sessions/1", sessions);
}
