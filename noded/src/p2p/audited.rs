//! `audited` mode (PROTOCOL 5): both sides sign that a session was opened, before anything else goes over it, and each keeps the other's
//! signature: lasting proof of contact, which a session otherwise never leaves.
//!
//! In: a session whose ACCEPT is here (initiator), or a request `POST /audited` on one (responder). Out: both signatures in the link
//! store, or no session. Who signs and what over is the key process's ([`HandshakeKeys::sign_session`](crate::keys::HandshakeKeys)).

use std::sync::Arc;

use bytes::Bytes;
use openred_module::Body;
use openred_proto::checked::session::{RequestHead, ResponseHead, Side};
use openred_proto::checked::session_proof::{SESSION_WORD_BYTES, SessionWord};
use openred_proto::error::WireError;
use openred_proto::id::HandshakeId;

use super::connections::Connections;
use super::error::NetworkError;
use super::pool::Pooled;
use super::ports::SignedSession;
use super::{PeerNetwork, internal, unix_now};
use crate::config::AuditedPolicy;
use crate::keys::KeysError;
use crate::sensitive::Sensitive;
use crate::session::Session;

/// Where the initiator sends its signature, and gets the responder's.
pub(super) const PATH: &str = "/audited";

/// Why a session was not signed.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotSigned {
    #[error("the peer demands signed sessions, and `links.audited` is \"off\" here")]
    NotAllowed,
    #[error("the session was signed before, or its handshake is not known any more")]
    Unknown,
    #[error("the peer's signature: {0}")]
    Malformed(#[from] WireError),
    #[error("the peer's signature is another's, or over another session")]
    Foreign,
    #[error(transparent)]
    Keys(#[from] KeysError),
    #[error("the peer's signature could not be stored")]
    NotKept,
    #[error("the body broke off or is too long")]
    Cut,
}

/// Whether `statement` is the word of the session's peer, in its role and over this session's hash.
fn check(session: &Session, statement: &[u8]) -> Result<(), NotSigned> {
    let (word, signer) = SessionWord::verify(statement)?;
    let expected = SessionWord { role: session.side.other(), hash: session.hash };
    if signer == session.peer && word == expected { Ok(()) } else { Err(NotSigned::Foreign) }
}

impl PeerNetwork {
    /// Whether a responder has its sessions signed before it takes anything on them.
    pub(super) fn demands_signatures(&self) -> bool {
        self.settings.audited == AuditedPolicy::Require
    }

    /// The initiator's half, on a session that nobody uses yet: signs, if this node or the peer (`demanded`) wants it.
    pub(super) async fn sign_opened(
        self: &Arc<Self>,
        pooled: &Arc<Pooled>,
        connections: &Arc<Connections>,
        handshake: HandshakeId,
        demanded: bool,
    ) -> Result<(), NetworkError> {
        match (self.settings.audited, demanded) {
            (AuditedPolicy::Off | AuditedPolicy::Allow, false) => return Ok(()),
            (AuditedPolicy::Off, true) => {
                tracing::warn!(peer = %Sensitive(pooled.session.peer), "{}; no session", NotSigned::NotAllowed);
                return Err(NetworkError::AuditedNotAllowed);
            }
            (AuditedPolicy::Allow, true) | (AuditedPolicy::Require, _) => {}
        }
        let own = self.keys.sign_session(handshake).await?;
        let head = RequestHead {
            module: internal::MODULE.into(),
            method: "POST".into(),
            path: PATH.into(),
            length: Some(own.len() as u64),
            ..RequestHead::default()
        };
        let answered = self.request_on(pooled, connections, head, &mut Some(Body::whole(own.clone()))).await;
        let (_, body) = answered.inspect_err(|error| {
            if *error == NetworkError::PeerRefusedSession {
                tracing::warn!(peer = %Sensitive(pooled.session.peer), "the peer does not sign sessions; no session");
            }
        })?;
        let theirs = body.collect(SESSION_WORD_BYTES).await.map_err(|_| NetworkError::Interrupted)?;
        let kept = match check(&pooled.session, &theirs) {
            Ok(()) => self.keep_signatures(pooled, own, theirs).await,
            Err(error) => Err(error),
        };
        kept.map_err(|error| {
            tracing::warn!(peer = %Sensitive(pooled.session.peer), %error, "a session was not signed; no session");
            NetworkError::NotSigned
        })
    }

    /// The responder's half: takes the initiator's signature and gives its own.
    pub(super) async fn sign_answered(
        &self,
        pooled: &Arc<Pooled>,
        body: Body,
    ) -> Result<(ResponseHead, Body), NotSigned> {
        let signed = self.try_sign_answered(pooled, body).await;
        if let Err(error) = &signed {
            tracing::warn!(peer = %Sensitive(pooled.session.peer), %error, "a session was not signed: refused");
            self.pool.remove(pooled);
        }
        signed
    }

    async fn try_sign_answered(&self, pooled: &Arc<Pooled>, body: Body) -> Result<(ResponseHead, Body), NotSigned> {
        if self.settings.audited == AuditedPolicy::Off {
            return Err(NotSigned::NotAllowed);
        }
        let theirs = body.collect(SESSION_WORD_BYTES).await.map_err(|_| NotSigned::Cut)?;
        check(&pooled.session, &theirs)?;
        let handshake = pooled.take_handshake().ok_or(NotSigned::Unknown)?;
        let own = self.keys.sign_session(handshake).await?;
        self.keep_signatures(pooled, own.clone(), theirs).await?;
        pooled.set_signed();
        let head = ResponseHead { status: 200, content_type: String::new(), length: Some(own.len() as u64) };
        Ok((head, Body::whole(own)))
    }

    async fn keep_signatures(&self, pooled: &Pooled, own: Bytes, theirs: Bytes) -> Result<(), NotSigned> {
        let session = &pooled.session;
        let (initiator, responder) = match session.side {
            Side::Initiator => (own, theirs),
            Side::Responder => (theirs, own),
        };
        let signed = SignedSession {
            link: pooled.handle.link,
            peer: session.peer,
            hash: session.hash,
            initiator,
            responder,
            at: unix_now(),
        };
        if self.ports.links.session_signed(signed).await { Ok(()) } else { Err(NotSigned::NotKept) }
    }
}
