//! `POST /p2p/session`: a request of a peer comes in chunk by chunk, is dispatched once its head is authentic, and answered
//! chunk by chunk. Back-pressure is the connection's: what nobody reads is not asked for.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body as HttpBody;
use axum::extract::State;
use axum::response::Response;
use bytes::{Bytes, BytesMut};
use http::StatusCode;
use http_body_util::BodyExt as _;
use openred_module::Body;
use openred_proto::checked::session::{RequestHead, ResponseHead};
use openred_proto::error::WireError;

use super::audited::NotSigned;
use super::carrier::{Held, Inflow, InflowError, Opened, SealedBody};
use super::direct::contacts::Contact;
use super::pool::{InUse, Pooled};
use super::settings::DISPATCH_MAX;
use super::{PeerNetwork, audited, internal, refused, resume};
use crate::session::message::{HEADER_LENGTH, RequestHeader};
use crate::session::state::{IncomingRequest, OutgoingResponse};
use crate::session::{Session, SessionError};

/// Why a request got no sealed answer; for the local log.
#[derive(Debug, thiserror::Error)]
enum Unanswered {
    #[error("the header did not come in time or broke off")]
    Cut,
    #[error("no session has this tag")]
    UnknownTag,
    #[error(transparent)]
    Inflow(#[from] InflowError),
    #[error(transparent)]
    Malformed(#[from] WireError),
    #[error(transparent)]
    Session(#[from] SessionError),
    #[error(transparent)]
    NotSigned(#[from] NotSigned),
    #[error("the session is not signed yet (`links.audited`)")]
    OwesSignature,
    #[error("internal defect: no right to answer")]
    Bug,
}

/// A request whose first chunk authenticated.
struct Received {
    holder: Holder,
    /// Until the answer has gone. None in a contact, which ends by the clock alone.
    using: Option<InUse>,
    head: RequestHead,
    body: Body,
    answer: OutgoingResponse,
}

/// Whose session a request is in.
enum Holder {
    /// A linked peer's.
    Pooled(Arc<Pooled>),
    /// A stranger's.
    Contact(Arc<Contact>),
}

impl Holder {
    fn session(&self) -> &Arc<Session> {
        match self {
            Self::Pooled(pooled) => &pooled.session,
            Self::Contact(contact) => &contact.session,
        }
    }
}

/// The route.
pub(super) async fn handle(State(network): State<Arc<PeerNetwork>>, body: HttpBody) -> Response {
    let answered = match network.receive(body).await {
        Ok(received) => network.respond(received).await,
        Err(reason) => Err(reason),
    };
    match answered {
        Ok(response) => response,
        Err(reason) => {
            tracing::debug!(%reason, "session request refused");
            refused()
        }
    }
}

impl PeerNetwork {
    async fn receive(self: &Arc<Self>, mut body: HttpBody) -> Result<Received, Unanswered> {
        let limit = self.settings.chunk_timeout;
        let (header, current) =
            tokio::time::timeout(limit, read_header(&mut body)).await.map_err(|_| Unanswered::Cut)??;
        let now = Instant::now();
        let pooled = self.pool.by_tag(&header.tag).map(Holder::Pooled);
        let stranger = || self.contacts.by_tag(&header.tag, now).map(Holder::Contact);
        let holder = pooled.or_else(stranger).ok_or(Unanswered::UnknownTag)?;
        let request = holder.session().receive_request(header, now)?;
        let held = Held { reports: Arc::clone(&self.ports.reports), ..Held::default() };
        let inflow: Inflow<HttpBody, IncomingRequest> = Inflow::new(body, request, current, limit, held);
        let mut opened = inflow.open().await?;
        // Not before: anybody can send bytes under a session's tag.
        let using = match &holder {
            Holder::Pooled(pooled) => {
                let using = pooled.hold(now);
                self.renew_if_due(pooled, now);
                Some(using)
            }
            Holder::Contact(_) => None,
        };
        let answer = opened.answer.take().ok_or(Unanswered::Bug)?;
        let head = RequestHead::decode(&opened.head)?;
        Ok(Received { holder, using, head, body: Opened::into_body(opened), answer })
    }

    async fn respond(self: &Arc<Self>, received: Received) -> Result<Response, Unanswered> {
        let Received { holder, using, head, body, answer } = received;
        let (head, body) = match &holder {
            Holder::Contact(contact) => in_time(time_for(&head), self.answer_contact(contact, &head, body)).await,
            Holder::Pooled(pooled) if head.module == internal::MODULE && head.path == audited::PATH => {
                // Not yet for requests of ours: the peer takes the session into use once it has our answer.
                self.sign_answered(pooled, body).await?
            }
            Holder::Pooled(pooled) if pooled.owes_signature() => return Err(Unanswered::OwesSignature),
            Holder::Pooled(pooled) => {
                if pooled.confirm() {
                    self.pool.changed.notify_waiters();
                }
                let (from, limit) = (head.from, time_for(&head));
                let (head, body) = in_time(limit, self.dispatch(pooled, head, body)).await;
                resume::skip(from, head, body)
            }
        };
        let length = head.length.or(body.known_length());
        let message = answer.start(&ResponseHead { length, ..head }, length)?;
        let sealed = SealedBody::new(message, body, length);
        let sealed = match using {
            Some(using) => sealed.using(using),
            None => sealed,
        };
        Response::builder().status(StatusCode::OK).body(HttpBody::new(sealed)).map_err(|_| Unanswered::Bug)
    }

    /// The module's answer.
    async fn dispatch(self: &Arc<Self>, pooled: &Arc<Pooled>, head: RequestHead, body: Body) -> (ResponseHead, Body) {
        if head.module == internal::MODULE {
            internal::dispatch(self, pooled, head, body).await
        } else {
            self.ports.dispatch.dispatch(pooled.session.peer, head, body).await
        }
    }
}

/// How long the answer to a request may take.
fn time_for(head: &RequestHead) -> Duration {
    match head.deadline_millis {
        0 => DISPATCH_MAX,
        millis => Duration::from_millis(millis).min(DISPATCH_MAX),
    }
}

/// The answer to a request, or that it took too long.
async fn in_time(limit: Duration, answering: impl Future<Output = (ResponseHead, Body)>) -> (ResponseHead, Body) {
    let answered = tokio::time::timeout(limit, answering).await;
    answered.unwrap_or_else(|_| (internal::status(StatusCode::GATEWAY_TIMEOUT), Body::empty()))
}

/// Reads the header in clear; what came with it is the beginning of the chunks.
async fn read_header(body: &mut HttpBody) -> Result<(RequestHeader, Bytes), Unanswered> {
    let mut read = Bytes::new();
    while read.len() < HEADER_LENGTH {
        let frame = body.frame().await.ok_or(Unanswered::Cut)?.map_err(|_| Unanswered::Cut)?;
        let data = frame.into_data().unwrap_or_default();
        if read.is_empty() {
            read = data;
        } else {
            // Only a sender that cuts the header in pieces pays for this copy.
            let mut joined = BytesMut::from(&read[..]);
            joined.extend_from_slice(&data);
            read = joined.freeze();
        }
    }
    let header = read.split_to(HEADER_LENGTH);
    let header = header.first_chunk().ok_or(Unanswered::Cut)?;
    Ok((RequestHeader::decode(header)?, read))
}
