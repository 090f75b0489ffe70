//! The operator's HTTP API: who may come in, and what each request becomes. Every request but the login and the description shows a cookie and a
//! token; what changes something needs a user who may; every operation is one of a table, and needs its module's own permission behind that.
//!
//! `Host` is checked before anything here (the SDK's `http`), so that no name but this machine's own leads here.

use std::sync::Arc;

use axum::Router;
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, Path, Request, State};
use axum::http::header::{
    CACHE_CONTROL, CONTENT_DISPOSITION, CONTENT_LENGTH, CONTENT_SECURITY_POLICY, CONTENT_TYPE, COOKIE as COOKIES, HOST,
    ORIGIN, REFERRER_POLICY, RETRY_AFTER, SET_COOKIE, X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method as Verb, StatusCode, Uri};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use bytes::Bytes;
use openred_module::{
    AuditEvent, Body, CallError, Context, HostError, IdempotencyKey, ModuleError, OperateError, PROBLEM_JSON,
    PeerRequest,
};
use serde_json::{Value, json};

use crate::Auth;
use crate::account::Role;
use crate::document::VERSION;
use crate::login::{Attempt, Outcome};
use crate::operations;
use crate::session::{self, Absent, Session};

/// The cookie of a session.
pub(crate) const COOKIE: &str = "openred-session";
/// The header with its token.
pub(crate) const TOKEN: &str = "openred-token";
/// Longest body: longer than any operation's or message's; files are shared on the machine.
const BODY: usize = 1 << 20;
/// Seconds that a browser keeps the cookie; the session ends by itself.
const COOKIE_LIFE: u32 = 12 * 3600;
/// The module that this is: its routes are for who is on the machine.
const OWN: &str = "auth";
/// Before a module's id and the path of its route.
const MODULES: &str = "/v1/modules/";
const JSON: &str = "application/json";

#[derive(Clone)]
struct Api {
    auth: Arc<Auth>,
    context: Context,
}

/// What one connection is served with.
pub(crate) fn router(auth: Arc<Auth>, context: Context) -> Router {
    Router::new()
        .route("/v1/openapi.json", get(description))
        .route("/v1/session", post(login).get(show).delete(logout))
        .route("/v1/node/{operation}", post(operate))
        .route("/v1/modules/{module}/{*path}", get(call).post(call))
        .fallback(async || Problem(StatusCode::NOT_FOUND, "no-such-route", "there is no such path".into()))
        .method_not_allowed_fallback(async || {
            Problem(StatusCode::METHOD_NOT_ALLOWED, "wrong-method", "this path takes another method".into())
        })
        .layer(DefaultBodyLimit::max(BODY))
        .layer(from_fn(guard))
        .with_state(Api { auth, context })
}

/// A refusal (RFC 9457): status, stable code, a sentence.
#[derive(Debug)]
struct Problem(StatusCode, &'static str, String);

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let Self(status, code, detail) = self;
        problem(status, code, &detail)
    }
}

fn problem(status: StatusCode, code: &str, detail: &str) -> Response {
    let kind = format!("urn:openred:problem:{code}");
    let document = json!({ "type": kind, "title": code, "status": status.as_u16(), "code": code, "detail": detail });
    (status, [(CONTENT_TYPE, PROBLEM_JSON)], document.to_string()).into_response()
}

impl From<ModuleError> for Problem {
    fn from(error: ModuleError) -> Self {
        let status = StatusCode::from_u16(error.status.code()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        Self(status, error.code, error.detail)
    }
}

impl From<HostError> for Problem {
    fn from(error: HostError) -> Self {
        ModuleError::from(error).into()
    }
}

type Answer = Result<Response, Problem>;

/// What holds for every request and every answer.
async fn guard(request: Request, next: Next) -> Response {
    let mut answer = match same_origin(request.headers()) {
        Ok(()) => next.run(request).await,
        Err(refused) => refused.into_response(),
    };
    let headers = answer.headers_mut();
    for (name, value) in [
        (CACHE_CONTROL, "no-store"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "no-referrer"),
        // Nothing that comes from here is a page, whatever a module or a peer calls it.
        (CONTENT_SECURITY_POLICY, "default-src 'none'; frame-ancestors 'none'; sandbox"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    answer
}

/// A browser says from which page a request comes: from none but this address's own. Other programs say nothing.
fn same_origin(headers: &HeaderMap) -> Result<(), Problem> {
    let host = headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let own = format!("http://{host}");
    let mut origins = headers.get_all(ORIGIN).iter();
    let mut sites = headers.get_all("sec-fetch-site").iter();
    if origins.all(|origin| origin == own.as_str()) && sites.all(|site| site == "same-origin" || site == "none") {
        return Ok(());
    }
    Err(Problem(StatusCode::FORBIDDEN, "cross-origin", "this request comes from another site's page".into()))
}

async fn description() -> impl IntoResponse {
    ([(CONTENT_TYPE, JSON)], crate::openapi::DOCUMENT.as_str())
}

/// The one cookie of this name; none where there are two, of which one is somebody else's.
fn cookie(headers: &HeaderMap) -> Option<&str> {
    let cookies = headers.get_all(COOKIES).iter().filter_map(|cookies| cookies.to_str().ok());
    let cookies = cookies.flat_map(|cookies| cookies.split(';'));
    let mut own = cookies.filter_map(|cookie| cookie.trim().strip_prefix(COOKIE)?.strip_prefix('='));
    match (own.next(), own.next()) {
        (Some(own), None) => Some(own),
        _ => None,
    }
}

impl Api {
    /// Who asks.
    async fn session(&self, headers: &HeaderMap) -> Result<Session, Problem> {
        let nobody = || Problem(StatusCode::UNAUTHORIZED, "no-session", "log in: POST /v1/session".into());
        let cookie = cookie(headers).ok_or_else(nobody)?;
        let token = headers.get(TOKEN).and_then(|token| token.to_str().ok());
        match session::find(&self.context, cookie, token, self.context.now()).await? {
            Ok(session) => Ok(session),
            Err(Absent::Unknown) => Err(nobody()),
            Err(Absent::Token) => {
                let detail = format!("the header {TOKEN} with the session's token is missing, or is another session's");
                Err(Problem(StatusCode::FORBIDDEN, "bad-token", detail))
            }
        }
    }

    /// Notes who changes something, and that nobody does who may not.
    fn permit(&self, session: &Session, changes_nothing: bool, what: &str) -> Result<(), Problem> {
        if changes_nothing {
            return Ok(());
        }
        if session.role != Role::Operator {
            let detail = format!("{} may look, and change nothing", session.name);
            return Err(Problem(StatusCode::FORBIDDEN, "viewer", detail));
        }
        self.context.audit(AuditEvent { code: "operation", peer: None, outcome: &kebab(what) });
        tracing::info!(user = session.name, operation = what, "asked for over HTTP");
        Ok(())
    }
}

/// `RequestLink` as `request-link`.
fn kebab(name: &str) -> String {
    let mut words = String::new();
    for letter in name.chars() {
        if letter.is_ascii_uppercase() && !words.is_empty() {
            words.push('-');
        }
        words.push(letter.to_ascii_lowercase());
    }
    words
}

/// A body of JSON. A page of another site cannot send this type without asking first.
fn json_body(headers: &HeaderMap, body: Result<Bytes, BytesRejection>) -> Result<Bytes, Problem> {
    let content_type =
        headers.get(CONTENT_TYPE).and_then(|content_type| content_type.to_str().ok()).unwrap_or_default();
    let is_json = content_type.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case(JSON));
    if !is_json {
        return Err(Problem(StatusCode::UNSUPPORTED_MEDIA_TYPE, "not-json", format!("Content-Type has to be {JSON}")));
    }
    whole(body)
}

fn whole(body: Result<Bytes, BytesRejection>) -> Result<Bytes, Problem> {
    body.map_err(|rejected| match rejected.status() {
        StatusCode::PAYLOAD_TOO_LARGE => {
            Problem(StatusCode::PAYLOAD_TOO_LARGE, "body-too-long", format!("the body is longer than {BODY} bytes"))
        }
        _ => Problem(StatusCode::BAD_REQUEST, "body-truncated", "the body broke off".into()),
    })
}

fn answer(document: &Value) -> Response {
    ([(CONTENT_TYPE, JSON)], document.to_string()).into_response()
}

fn view(session: &Session) -> Value {
    json!({ "v": VERSION, "name": session.name, "role": session.role, "until": session.until() })
}

async fn login(State(api): State<Api>, headers: HeaderMap, body: Result<Bytes, BytesRejection>) -> Answer {
    let body = json_body(&headers, body)?;
    let attempt: Attempt = serde_json::from_slice(&body)
        .map_err(|_| Problem(StatusCode::BAD_REQUEST, "bad-json", "expected name, password and code".into()))?;
    match api.auth.door.attempt(&api.context, attempt, cookie(&headers)).await? {
        Outcome::In(opened) => {
            let mut document = view(&opened.session);
            document["token"] = opened.token.into();
            Ok(([(SET_COOKIE, set_cookie(&opened.cookie, COOKIE_LIFE))], answer(&document)).into_response())
        }
        Outcome::Denied => {
            let detail = "name, password or code are wrong, the code was used before, or there were too many attempts: `openred auth user list`";
            Err(Problem(StatusCode::UNAUTHORIZED, "denied", detail.into()))
        }
        Outcome::Busy => {
            let refused = Problem(StatusCode::TOO_MANY_REQUESTS, "too-many-logins", "too many attempts wait".into());
            Ok(([(RETRY_AFTER, "1")], refused).into_response())
        }
    }
}

fn set_cookie(value: &str, life: u32) -> String {
    format!("{COOKIE}={value}; Path=/v1; Max-Age={life}; HttpOnly; SameSite=Strict")
}

async fn show(State(api): State<Api>, headers: HeaderMap) -> Answer {
    Ok(answer(&view(&api.session(&headers).await?)))
}

async fn logout(State(api): State<Api>, headers: HeaderMap) -> Answer {
    api.session(&headers).await?;
    if let Some(cookie) = cookie(&headers) {
        session::close(&api.context, cookie).await?;
    }
    Ok(([(SET_COOKIE, set_cookie("", 0))], answer(&json!({ "v": VERSION }))).into_response())
}

async fn operate(
    State(api): State<Api>,
    Path(name): Path<String>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Answer {
    let session = api.session(&headers).await?;
    let operation = operations::find(&name).ok_or_else(|| {
        Problem(StatusCode::NOT_FOUND, "no-such-operation", "/v1/openapi.json names those there are".into())
    })?;
    let body = json_body(&headers, body)?;
    let request = operation.request(&body).map_err(|why| Problem(StatusCode::BAD_REQUEST, "bad-json", why))?;
    api.permit(&session, operation.changes_nothing, operation.name)?;
    match api.context.operate(operation.name, request).await {
        Ok(reply) => match operation.reply(reply) {
            Some(document) => Ok(answer(&document)),
            None => Err(Problem(StatusCode::BAD_GATEWAY, "bad-reply", "the node's reply cannot be read".into())),
        },
        Err(OperateError::Refused { status, code, detail }) => {
            let status = StatusCode::from_u16(status.code()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            Ok(problem(status, &code, &detail))
        }
        Err(OperateError::Host(error)) => Err(error.into()),
    }
}

async fn call(
    State(api): State<Api>,
    target: Uri,
    verb: Verb,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Answer {
    let session = api.session(&headers).await?;
    if target.query().is_some() {
        return Err(Problem(StatusCode::BAD_REQUEST, "no-query", "routes of modules take no query".into()));
    }
    // As it came: what stands for a slash in a name is the module's to read, as behind the admin socket.
    let (module, path) = target.path().strip_prefix(MODULES).and_then(|rest| rest.split_once('/')).unwrap_or_default();
    if module == OWN {
        let detail = "users and sessions are the machine's own to change: `openred auth`";
        return Err(Problem(StatusCode::FORBIDDEN, "not-here", detail.into()));
    }
    // HEAD comes here as well, and asks for no more than GET.
    let is_get = verb != Verb::POST;
    api.permit(&session, is_get, "CallModule")?;
    let path = format!("/{path}");
    let mut request = if is_get {
        PeerRequest::get(path)
    } else {
        let content_type = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        PeerRequest::post(path, content_type, Body::whole(whole(body)?))
    };
    request.idempotency_key = idempotency_key(&headers)?;
    let response = api.context.operator_call(module, request).await.map_err(uncalled)?;
    Ok(of_module(response))
}

/// 32 hexadecimal digits, so that a request whose answer was lost can be sent again.
fn idempotency_key(headers: &HeaderMap) -> Result<Option<IdempotencyKey>, Problem> {
    let Some(key) = headers.get("idempotency-key") else { return Ok(None) };
    let key = hex::decode(key).ok().and_then(|key| key.try_into().ok());
    let wrong = || Problem(StatusCode::BAD_REQUEST, "bad-idempotency-key", "not of 32 hexadecimal digits".into());
    key.map(Some).ok_or_else(wrong)
}

fn uncalled(error: CallError) -> Problem {
    ModuleError::from(error).into()
}

fn of_module(response: openred_module::Response) -> Response {
    let status = StatusCode::from_u16(response.status.code()).unwrap_or(StatusCode::BAD_GATEWAY);
    let mut answer = Response::new(axum::body::Body::from_stream(response.body));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    if let Ok(content_type) = HeaderValue::try_from(response.content_type) {
        // A browser that is led here saves it and shows nothing.
        if !content_type.as_bytes().ends_with(b"json") {
            headers.insert(CONTENT_DISPOSITION, HeaderValue::from_static("attachment"));
        }
        headers.insert(CONTENT_TYPE, content_type);
    }
    if let Some(length) = response.length {
        headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
    answer
}
