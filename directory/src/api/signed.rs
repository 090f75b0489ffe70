//! Who is calling: RFC 9421 signatures on requests that act for a node, and the buckets that every caller draws from.
//!
//! A caller gets a [`Signed`] only from [`authenticate`], after signature, time, nonce, ban and bucket. The bucket and the
//! nonce table are touched only after the signature has been verified, so nobody can use up another node's.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderMap, header};
use bytes::Bytes;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use openred_proto::error::WireError;
use openred_proto::http_signature::SignatureInput;
use openred_proto::id::NodeId;
use sha2::{Digest as _, Sha256};

use super::problem::{Code, Problem};
use crate::limits::{BODY_TIME, NonceRefused, SIGNATURE_SKEW};
use crate::state::{Caller, Directory};

/// The caller's socket address; put into each request by the accept loop.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub SocketAddr);

/// A request whose signature holds.
#[derive(Debug)]
pub(crate) struct Signed {
    /// The node it acts for.
    pub(crate) node: NodeId,
    /// Its body.
    pub(crate) body: Bytes,
}

/// Checks a request's signature, and whether its node may call now.
pub(crate) async fn authenticate(directory: &Directory, request: Request, limit: usize) -> Result<Signed, Problem> {
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
    check_time(directory, input.created)?;
    input.verify(signature).map_err(|error| match error {
        WireError::Malformed { .. } => Problem::new(Code::SignatureMalformed, error.to_string()),
        _ => Problem::new(Code::SignatureBad, format!("verified as {} {target}", input.method)),
    })?;
    admit(directory, &input)?;
    Ok(Signed { node: input.key_id, body })
}

fn check_time(directory: &Directory, created: u64) -> Result<(), Problem> {
    let now = directory.now().seconds();
    // Nonces live in memory: what was signed before this process began may have been used with the one before it.
    let too_old = created < directory.started.seconds();
    if too_old || now.abs_diff(created) > SIGNATURE_SKEW.as_secs() {
        return Err(Problem::new(Code::SignatureClock, format!("created={created}, here it is {now}")).at(now));
    }
    Ok(())
}

fn admit(directory: &Directory, input: &SignatureInput) -> Result<(), Problem> {
    if directory.is_banned(&input.key_id) {
        return Err(Code::NodeBanned.into());
    }
    let taken = directory.nonces().take(directory.now(), input.key_id.as_bytes(), &input.nonce);
    taken.map_err(|refused| match refused {
        NonceRefused::Repeated => Problem::from(Code::SignatureRepeated),
        NonceRefused::Full => Problem::from(Code::DirectoryBusy).retry_after(SIGNATURE_SKEW),
    })?;
    take_token(directory, Caller::Node(input.key_id))
}

fn take_token(directory: &Directory, caller: Caller) -> Result<(), Problem> {
    directory.take_token(caller).map_err(|wait| Problem::from(Code::RateLimited).retry_after(wait))
}

/// Look-ups need no signature; they draw from their address's bucket. Loopback is this machine's own, and behind a proxy
/// every address is the proxy's: there the proxy limits.
pub(crate) fn admit_address(directory: &Directory, peer: Option<&Peer>) -> Result<(), Problem> {
    match peer.map(|peer| peer.0.ip()) {
        Some(address) if !directory.behind_proxy && !address.is_loopback() => {
            take_token(directory, Caller::Address(prefix(address)))
        }
        _ => Ok(()),
    }
}

/// One IPv6 customer has a /64.
fn prefix(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64)),
        address => address,
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
