//! Who is calling: a node that signed its request (RFC 9421), or an address that looks something up.
//!
//! Each handler names one of two extractors. [`Anonymous`]: the address's bucket had a token. [`Signed`]: that as well, then
//! body, time, signature, ban, the node's own bucket, and last the nonce, so that what is refused is not remembered. A node's
//! bucket and its share of the nonces are touched only once its signature has been verified: nobody can use up another's.
//! The table of nonces as a whole is bounded and shared; the address's bucket is what stands before many keys of one caller.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{Extensions, HeaderMap, header};
use bytes::Bytes;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use openred_proto::error::WireError;
use openred_proto::http_signature::SignatureInput;
use openred_proto::id::NodeId;
use serde::de::DeserializeOwned;
use sha2::{Digest as _, Sha256};

use super::parse;
use super::problem::{Code, Problem};
use crate::limits::{BODY_TIME, SIGNATURE_SKEW};
use crate::replay::Refused;
use crate::state::{Caller, Directory};
use crate::store::Held;

/// The caller's socket address; put into each request by the accept loop.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub SocketAddr);

/// A caller without a signature, whose address may ask now.
#[derive(Debug)]
pub(crate) struct Anonymous;

/// A body of a caller without a signature, of at most `LIMIT` bytes of JSON, whose address may ask now.
#[derive(Debug)]
pub(crate) struct Asked<B, const LIMIT: usize>(pub(crate) B);

impl<B: DeserializeOwned, const LIMIT: usize> FromRequest<Arc<Directory>> for Asked<B, LIMIT> {
    type Rejection = Problem;

    async fn from_request(request: Request, directory: &Arc<Directory>) -> Result<Self, Problem> {
        admit_address(directory, request.extensions())?;
        let (parts, body) = request.into_parts();
        parse(&read_body(body, &parts.headers, LIMIT).await?).map(Self)
    }
}

/// A request that its node signed and may make now. Its body has at most `LIMIT` bytes of JSON; where that is 0, none.
#[derive(Debug)]
pub(crate) struct Signed<B, const LIMIT: usize> {
    /// The node it acts for.
    pub(crate) node: NodeId,
    /// Its body.
    pub(crate) body: B,
    /// Its address, where addresses are told apart ([`admit_address`]).
    pub(crate) address: Option<IpAddr>,
}

impl FromRequestParts<Arc<Directory>> for Anonymous {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, directory: &Arc<Directory>) -> Result<Self, Problem> {
        admit_address(directory, &parts.extensions)?;
        Ok(Self)
    }
}

impl<B: DeserializeOwned, const LIMIT: usize> FromRequest<Arc<Directory>> for Signed<B, LIMIT> {
    type Rejection = Problem;

    async fn from_request(request: Request, directory: &Arc<Directory>) -> Result<Self, Problem> {
        let address = admit_address(directory, request.extensions())?;
        let (node, body) = authenticate(directory, request, LIMIT).await?;
        let body = parse(if LIMIT == 0 { b"null" } else { &body })?;
        Ok(Self { node, body, address })
    }
}

impl<B, const LIMIT: usize> Signed<B, LIMIT> {
    /// The calling node as it is registered here.
    pub(crate) async fn registered(&self, directory: &Directory) -> Result<Held, Problem> {
        match directory.held(self.node).await? {
            Some(held) if held.quarantined => Err(Code::NodeQuarantined.into()),
            held => Ok(held.ok_or(Code::NodeUnregistered)?),
        }
    }
}

/// Refuses banned addresses; takes a token of the caller's address, where it is counted, and one of all.
fn admit_address(directory: &Directory, extensions: &Extensions) -> Result<Option<IpAddr>, Problem> {
    let address = extensions.get::<Peer>().map(|peer| peer.0.ip());
    if address.is_some_and(|address| directory.is_banned_address(address)) {
        return Err(Code::AddressBanned.into());
    }
    let address = address.and_then(|address| directory.counted(address));
    if let Some(address) = address {
        take_token(directory, Caller::Address(address))?;
    }
    directory.take_overall().map_err(|wait| Problem::from(Code::DirectoryBusy).retry_after(wait))?;
    Ok(address)
}

fn take_token(directory: &Directory, caller: Caller) -> Result<(), Problem> {
    directory.take_token(caller).map_err(|wait| Problem::from(Code::RateLimited).retry_after(wait))
}

/// Checks a request's signature, and whether its node may call now.
async fn authenticate(directory: &Directory, request: Request, limit: usize) -> Result<(NodeId, Bytes), Problem> {
    let (parts, body) = request.into_parts();
    let digest = one(&parts.headers, "content-digest")?;
    let input = one(&parts.headers, "signature-input")?;
    let signature = one(&parts.headers, "signature")?;
    let body = read_body(body, &parts.headers, limit).await?;
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
    let target = format!("{}{path}", directory.origin);
    let input = SignatureInput::from_headers(parts.method.as_str(), &target, Sha256::digest(&body).into(), input)
        .map_err(|error| Problem::new(Code::SignatureMalformed, error.to_string()))?;
    if digest != input.content_digest() {
        return Err(Code::SignatureDigest.into());
    }
    // One moment for time and nonce: between two a second could turn.
    let now = directory.now();
    let refuse = |refused| refuse_replay(refused, input.created, now.seconds());
    directory.replay().check_time(now, input.created).map_err(refuse)?;
    input.verify(signature).map_err(|error| match error {
        WireError::Malformed { .. } => Problem::new(Code::SignatureMalformed, error.to_string()),
        _ => Problem::new(Code::SignatureBad, format!("verified as {} {target}", input.method)),
    })?;
    if directory.is_banned(&input.key_id) {
        return Err(Code::NodeBanned.into());
    }
    take_token(directory, Caller::Node(input.key_id))?;
    directory.replay().take(now, input.created, &input.key_id, &input.nonce).map_err(refuse)?;
    // A nonce that another replica has taken is as good as one of ours.
    if let (Some(replicas), Some(nonces)) = (directory.replicas(), directory.shared_nonces()) {
        let tag = replicas.keys.tag(&input.key_id, &input.nonce);
        if !nonces.take(tag).await? {
            return Err(Code::SignatureRepeated.into());
        }
    }
    Ok((input.key_id, body))
}

fn refuse_replay(refused: Refused, created: u64, now: u64) -> Problem {
    match refused {
        Refused::Clock => Problem::new(Code::SignatureClock, format!("created={created}, here it is {now}")).at(now),
        Refused::Restarted(wait) => {
            Problem::new(Code::DirectoryBusy, "it has just restarted: sign again then").retry_after(wait)
        }
        Refused::Repeated => Code::SignatureRepeated.into(),
        Refused::Share => Problem::from(Code::RateLimited).retry_after(SIGNATURE_SKEW),
        Refused::Full => Problem::from(Code::DirectoryBusy).retry_after(SIGNATURE_SKEW),
    }
}

/// The one value of a header; twice is as good as none, because proxies disagree on which one counts.
fn one<'a>(headers: &'a HeaderMap, name: &'static str) -> Result<&'a str, Problem> {
    let mut values = headers.get_all(name).iter();
    match (values.next().and_then(|value| value.to_str().ok()), values.next()) {
        (Some(value), None) => Ok(value),
        _ => Err(Problem::new(Code::SignatureMissing, name)),
    }
}

/// Reads a bounded body in bounded time.
async fn read_body(body: Body, headers: &HeaderMap, limit: usize) -> Result<Bytes, Problem> {
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|length| length > limit as u64) {
        return Err(Code::BodyTooLarge.into());
    }
    let collected = tokio::time::timeout(BODY_TIME, Limited::new(body, limit).collect());
    match collected.await {
        Err(_) => Err(Code::BodySlow.into()),
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(Code::BodyTooLarge.into()),
        Ok(Err(_)) => Err(Code::BodyIncomplete.into()),
    }
}
