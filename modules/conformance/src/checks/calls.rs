//! Which calls a module serves, and which it refuses.

use anyhow::{Result, ensure};
use openred_module::{Method, Request};

use crate::subject::{Claim, Subject, Who, all_ended, ask, code, is_well, unknown};

/// Refusals of a route that is not there.
const NONE: [&str; 2] = ["no-such-route", "wrong-method"];

/// One that takes its time exists as well: it is given up, and must let go.
pub(super) async fn routes(subject: &Subject) -> Result<()> {
    let (host, attached) = subject.start().await?;
    for claim in &subject.routes {
        let request = claim.request().with_body("application/json", openred_module::Body::whole(body(claim)));
        let answered = ask(&attached, &claim.name(), request).await;
        if let Ok(response) = answered
            && !response.status.is_success()
        {
            let status = response.status.code();
            let code = code(response).await;
            let said = code.as_deref().unwrap_or_default();
            ensure!(code.is_some(), "{}: refused with {status} without a problem document", claim.name());
            ensure!(!NONE.contains(&said), "{}: it has no such route ({said})", claim.name());
        }
        all_ended(&attached, &claim.name()).await?;
    }
    is_well(&host, &attached).await
}

/// As little as a JSON handler would look at.
fn body(claim: &Claim) -> &'static str {
    if claim.body_bytes >= 2 { "{}" } else { "" }
}

pub(super) async fn other_callers(subject: &Subject) -> Result<()> {
    let (host, attached) = subject.start().await?;
    let others = subject.routes.iter().flat_map(|claim| Who::ALL.map(|who| Claim { who, ..claim.clone() }));
    for other in others {
        if subject.routes.iter().any(|route| serves(route, &other)) {
            continue;
        }
        let response = ask(&attached, &other.name(), other.request()).await?;
        let status = response.status.code();
        ensure!(matches!(status, 404 | 405), "{} is not in its manifest, and answered {status}", other.name());
    }
    is_well(&host, &attached).await
}

/// Whether a route serves what another one is asked for: same caller, same method, a path that fits.
fn serves(route: &Claim, asked: &Claim) -> bool {
    let (pattern, path) = (route.path.split('/'), asked.filled());
    route.who == asked.who
        && route.method == asked.method
        && pattern.clone().count() == path.split('/').count()
        && pattern.zip(path.split('/')).all(|(want, have)| want.starts_with('{') || want == have)
}

pub(super) async fn unknown_route(subject: &Subject) -> Result<()> {
    let (host, attached) = subject.start().await?;
    let long = format!("/{}", "x".repeat(4000));
    let paths = ["", "/", "//", "no-slash", "/%2e%2e/x", "/ä/\u{1f512}", "/-/no-such-route/", &long];
    for path in paths {
        let is_root = subject.routes.iter().any(|route| route.path == path);
        let request = Request { path: path.to_owned(), ..unknown(openred_module::Body::whole("x")) };
        let response = ask(&attached, "an unknown route", request).await?;
        let status = response.status.code();
        let shown: String = path.chars().take(40).collect();
        ensure!(is_root || status == 404, "the path {shown:?} is answered {status}");
        let code = code(response).await;
        ensure!(is_root || code.as_deref() == Some("no-such-route"), "the path {shown:?} is refused as {code:?}");
    }
    is_well(&host, &attached).await
}

pub(super) async fn wrong_method(subject: &Subject) -> Result<()> {
    let (host, attached) = subject.start().await?;
    for claim in &subject.routes {
        let method = if claim.method == Method::Get { Method::Post } else { Method::Get };
        let other = Claim { method, ..claim.clone() };
        if subject.routes.iter().any(|route| serves(route, &other)) {
            continue;
        }
        let status = ask(&attached, &other.name(), other.request()).await?.status.code();
        ensure!(matches!(status, 404 | 405), "{} is not in its manifest, and answered {status}", other.name());
    }
    is_well(&host, &attached).await
}

/// Nobody waits for an answer then: the node gives the call up, and the module must let go.
pub(super) async fn deadline(subject: &Subject) -> Result<()> {
    let (host, attached) = subject.start().await?;
    for claim in &subject.routes {
        let mut request = claim.request();
        request.deadline = Some(1);
        let given_up = tokio::time::timeout(std::time::Duration::ZERO, attached.dispatch(request)).await;
        drop(given_up);
        all_ended(&attached, &claim.name()).await?;
    }
    is_well(&host, &attached).await
}
