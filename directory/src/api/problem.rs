//! What a client gets when something is wrong: an RFC 9457 problem document with a stable code and a help line. The codes
//! are the contract; `docs/errors.md` has an entry for each, and a test holds the two together.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::Duration;

use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::openapi::{ContentBuilder, Ref, RefOr, ResponseBuilder, ResponsesBuilder};

use crate::error::Error;

/// Media type of a problem document.
pub const MEDIA_TYPE: &str = "application/problem+json";

macro_rules! codes {
    ($($name:ident $status:literal $code:literal $title:literal $help:literal;)*) => {
        /// Stable codes of this API.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[allow(missing_docs, reason = "title and help beside each code say it")]
        pub enum Code { $($name,)* }

        impl Code {
            /// Every code, for documentation and tests.
            pub const ALL: &[Code] = &[$(Code::$name,)*];

            /// HTTP status, stable code, title, help line.
            const fn row(self) -> (u16, &'static str, &'static str, &'static str) {
                match self { $(Code::$name => ($status, $code, $title, $help),)* }
            }
        }
    };
}

codes! {
    RequestUnknown 404 "request.unknown" "No such call" "See /api/v3/openapi.json for the calls there are.";
    RequestMethod 405 "request.method" "No such method on this call" "See /api/v3/openapi.json for the methods there are.";
    RequestMalformed 400 "request.malformed" "A parameter cannot be read" "See /api/v3/openapi.json for names and types.";
    BodyTooLarge 413 "body.too-large" "The body is too long" "A card has at most 4 KiB, an offer about 3.5 KiB, before base64.";
    BodySlow 408 "body.slow" "The body did not come in time" "Send the whole body within 10 seconds.";
    BodyIncomplete 400 "body.incomplete" "The body ended early" "Send as many bytes as Content-Length says.";
    BodyMalformed 400 "body.malformed" "The body is not the expected JSON" "See /api/v3/openapi.json for the fields; bytes are standard base64.";
    SignatureMissing 401 "signature.missing" "The request is not signed" "Send Content-Digest, Signature-Input and Signature, once each (RFC 9421; docs/protocol.md section 7).";
    SignatureMalformed 401 "signature.malformed" "The signature headers are not of this protocol's shape" "Cover @method, @target-uri and content-digest, with created, nonce, alg, keyid and tag, in that order.";
    SignatureDigest 401 "signature.digest" "Content-Digest is not the digest of the body" "Send sha-256 of the body as it is sent; of the empty body too.";
    SignatureClock 401 "signature.clock" "The signature's time is too far from this directory's" "Take the time from the Date header, sign again and retry once.";
    SignatureRepeated 401 "signature.repeated" "This nonce was used before" "Draw a new nonce for each request.";
    SignatureBad 401 "signature.bad" "The signature does not verify" "Sign with the key of keyid; @target-uri begins with this directory's public origin.";
    NodeBanned 403 "node.banned" "This node is banned here" "Ask the operator of this directory.";
    AddressBanned 403 "address.banned" "Callers from this address are refused here" "Ask the operator of this directory.";
    NodeQuarantined 403 "node.quarantined" "This node waits for the operator's approval" "Ask the operator of this directory; an invite lets a node in at once.";
    AdmissionWork 403 "admission.work" "New nodes work for their place here" "Find a nonce as docs/protocol.md section 7 says, of work_bits zero bits, and register with it; or show an invite.";
    AdmissionInvite 403 "admission.invite" "New nodes need an invite here" "Ask the operator for one: `directory.invites` in openred.toml.";
    NodeUnregistered 403 "node.unregistered" "The calling node is not registered here" "Register its card first.";
    NodeSucceeded 409 "node.succeeded" "This identity has named a successor" "If that was not you, take it back within 72 hours: `openred key take-back --of DID`.";
    PrefixWide 422 "prefix.wide" "Too many nodes begin so" "Ask for a prefix that is one digit longer.";
    NodeUnknown 404 "node.unknown" "No such node here" "It never registered here, or its card has ended.";
    LogRange 422 "log.range" "The log does not go so far" "Ask for less than the size of the head that you were given; from and index lie below it.";
    CardMalformed 422 "card.malformed" "The card cannot be read" "Build it by docs/protocol.md section 2.";
    CardSignature 422 "card.signature" "The card's signature does not verify" "The node that the card names must have signed it.";
    CardForeign 403 "card.foreign" "The card is another node's" "A node registers its own card only.";
    CardEnded 422 "card.ended" "The card has ended or has not begun" "Sign a new card; check the node's clock.";
    CardRollback 409 "card.rollback" "A newer card of this node is held" "Raise the sequence above the held one's; after a restored backup, sign a new card.";
    CardEquivocation 409 "card.equivocation" "Another card with this sequence is held" "Find out who else has this node's key; the detail says whether both cards are kept as evidence.";
    CardSuccession 409 "card.succession" "The card's lineage contradicts what was heard before" "One identity has one successor, and takes it back within 72 hours or not at all.";
    OfferMalformed 422 "offer.malformed" "The offer cannot be read" "Build it by docs/protocol.md section 4.";
    OfferForeign 403 "offer.foreign" "The offer is another node's" "The issuer named in the offer must sign the request.";
    OfferEnded 422 "offer.ended" "The offer has ended" "Issue a new one.";
    RecipientUnregistered 404 "recipient.unregistered" "The recipient is not registered here" "Look for it in another directory, or try when it is back.";
    RecipientFull 503 "recipient.full" "Too much waits for this node" "Try again later; one issuer may have 4 offers waiting for one recipient.";
    ReceiptMalformed 422 "receipt.malformed" "The receipt cannot be read or does not verify" "Send the receipt as the node's key process signed it.";
    ReceiptForeign 403 "receipt.foreign" "The receipt is not the caller's" "The recipient of an offer acknowledges it.";
    StreamReplaced 409 "stream.replaced" "Another stream of this node took over" "Keep one stream or long poll a node.";
    RateLimited 429 "rate.limited" "Too many requests" "Wait as Retry-After says.";
    DirectoryBusy 503 "directory.busy" "The directory has too much to do" "Wait as Retry-After says.";
    DirectoryFull 503 "directory.full" "The directory holds as much as its operator allows" "Try another directory, or ask the operator.";
    DirectoryFailing 503 "directory.failing" "The directory cannot write" "Try again later; the operator sees the reason in its log.";
    DirectoryCutOff 503 "directory.cut-off" "The directory reaches its database or its other replicas no more" "Wait as Retry-After says and send it again; the detail says where it is not known whether it holds.";
    DirectoryStoreGone 503 "directory.store-gone" "The directory's database was taken away" "Try another directory; `directory status` tells its operator the way out.";
    MirrorReadsOnly 421 "mirror.reads-only" "This is a mirror, which only answers who reads" "Send it to the directory itself; the detail says which it is.";
    MirrorBehind 503 "mirror.behind" "This mirror has nothing whole yet" "Wait as Retry-After says, or ask the directory itself.";
    MirrorUnknown 403 "mirror.unknown" "This caller is no mirror of this directory" "Ask its operator for a line in mirror.allow.";
    MetricsRemote 403 "metrics.remote" "Metrics are for this machine only" "Ask from loopback, without a proxy, or set metrics_listen.";
}

impl Code {
    /// The code as text.
    #[must_use]
    pub const fn text(self) -> &'static str {
        self.row().1
    }

    /// Its HTTP status.
    #[must_use]
    pub const fn status(self) -> u16 {
        self.row().0
    }
}

/// A problem on its way to the client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    code: Code,
    detail: Cow<'static, str>,
    retry_after: Option<Duration>,
    now: Option<u64>,
    work_bits: Option<u32>,
}

/// The document (RFC 9457).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ProblemDocument {
    /// `urn:openred:problem:` and the code.
    #[serde(rename = "type")]
    pub kind: String,
    /// The same for every occurrence of this code.
    pub title: String,
    /// The HTTP status again.
    pub status: u16,
    /// What is particular to this occurrence.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
    /// The stable code: what programs should look at.
    pub code: String,
    /// The way out.
    pub help: String,
    /// This directory's time in seconds since the epoch, where clocks are the problem.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub now: Option<u64>,
    /// The zero bits to find, where work is asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub work_bits: Option<u32>,
}

impl Problem {
    /// With a detail that tells this occurrence from others.
    pub(crate) fn new(code: Code, detail: impl Into<Cow<'static, str>>) -> Self {
        Self { code, detail: detail.into(), retry_after: None, now: None, work_bits: None }
    }

    pub(crate) fn retry_after(mut self, wait: Duration) -> Self {
        self.retry_after = Some(wait);
        self
    }

    /// Names the directory's time, so that a client can correct its own.
    pub(crate) fn at(mut self, seconds: u64) -> Self {
        self.now = Some(seconds);
        self
    }

    /// Says how much work is asked for.
    pub(crate) fn work(mut self, bits: u32) -> Self {
        self.work_bits = Some(bits);
        self
    }

    /// Its code.
    #[must_use]
    pub const fn code(&self) -> Code {
        self.code
    }
}

impl From<Code> for Problem {
    fn from(code: Code) -> Self {
        Self::new(code, "")
    }
}

impl From<PathRejection> for Problem {
    fn from(rejection: PathRejection) -> Self {
        Self::new(Code::RequestMalformed, rejection.body_text())
    }
}

impl From<QueryRejection> for Problem {
    fn from(rejection: QueryRejection) -> Self {
        Self::new(Code::RequestMalformed, rejection.body_text())
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        match error {
            Error::LocalStoreBusy => Self::from(Code::DirectoryBusy).retry_after(Duration::from_secs(1)),
            Error::LocalStoreAway => Self::from(Code::DirectoryCutOff).retry_after(Duration::from_secs(5)),
            Error::LocalStoreUnknown => {
                let detail = "The connection was lost during the commit: it may hold or not. The same request again does no harm.";
                Self::new(Code::DirectoryCutOff, detail).retry_after(Duration::from_secs(5))
            }
            Error::LocalStoreGone { .. } => Self::from(Code::DirectoryStoreGone).retry_after(Duration::from_secs(60)),
            Error::LocalStoreFull => Self::from(Code::DirectoryFull).retry_after(Duration::from_secs(60)),
            _ => Self::from(Code::DirectoryFailing).retry_after(Duration::from_secs(10)),
        }
    }
}

impl utoipa::IntoResponses for Problem {
    fn responses() -> BTreeMap<String, RefOr<utoipa::openapi::Response>> {
        let document = |description| {
            let content = ContentBuilder::new().schema(Some(Ref::from_schema_name("ProblemDocument"))).build();
            ResponseBuilder::new().description(description).content(MEDIA_TYPE, content).build()
        };
        let responses = ResponsesBuilder::new().response("4XX", document("refused"));
        responses.response("5XX", document("not now")).build().into()
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let (status, code, title, help) = self.code.row();
        let document = ProblemDocument {
            kind: format!("urn:openred:problem:{code}"),
            title: title.to_owned(),
            status,
            detail: self.detail.into_owned(),
            code: code.to_owned(),
            help: help.to_owned(),
            now: self.now,
            work_bits: self.work_bits,
        };
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, axum::Json(document)).into_response();
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE));
        if let Some(wait) = self.retry_after {
            let seconds = wait.as_millis().div_ceil(1000).max(1);
            if let Ok(value) = HeaderValue::from_str(&seconds.to_string()) {
                response.headers_mut().insert(header::RETRY_AFTER, value);
            }
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_documented_and_unique() {
        let documented = include_str!("../../../docs/errors.md");
        for code in Code::ALL {
            assert!(documented.contains(&format!("`{}`", code.text())), "docs/errors.md lacks {}", code.text());
            assert_eq!(Code::ALL.iter().filter(|other| other.text() == code.text()).count(), 1);
            assert!((400..600).contains(&code.status()));
        }
    }
}
