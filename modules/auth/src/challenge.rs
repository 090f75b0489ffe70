//! Challenge and response between peers: who has the key of that node now. A session proves that it was there when the session began;
//! this proves that its key process answers today, for 32 fresh bytes.
//!
//! What is signed is this module's domain `challenge` over: a label, both nodes, the bytes. The peer chooses nothing of it but the bytes.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use openred_module::{
    Body, Context, Json, ModuleError, NodeId, Path, PeerRequest, Response, Status, UnixMillis, verify,
};

use crate::Auth;
use crate::document::{Proved, VERSION};
use crate::error::AuthError;

const MODULE: &str = "auth";
const DOMAIN: &str = "challenge";
const LABEL: &[u8] = b"openred auth challenge v1\0";
/// Bytes of a challenge.
const NONCE: usize = 32;
/// Longest statement.
const STATEMENT: usize = 1024;
/// Between two answers to one peer: each costs the key process a signature.
const PAUSE: u64 = 1000;
/// Peers whose last challenge is remembered.
const PEERS: usize = 1024;

/// When each peer was answered last.
#[derive(Debug, Default)]
pub(crate) struct Answered(Mutex<HashMap<NodeId, UnixMillis>>);

impl Answered {
    fn may(&self, peer: NodeId, now: UnixMillis) -> bool {
        let mut answered = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if answered.get(&peer).is_some_and(|last| now.saturating_sub(*last) < PAUSE && *last <= now) {
            return false;
        }
        if answered.len() >= PEERS {
            answered.retain(|_, last| now.saturating_sub(*last) < PAUSE);
        }
        if answered.len() >= PEERS {
            return false;
        }
        answered.insert(peer, now);
        true
    }
}

fn statement(asks: NodeId, answers: NodeId, nonce: &[u8]) -> Vec<u8> {
    [LABEL, asks.as_bytes(), answers.as_bytes(), nonce].concat()
}

impl Auth {
    /// A linked peer asks this node.
    pub(crate) async fn prove(
        self: Arc<Self>,
        context: Context,
        peer: NodeId,
        nonce: Bytes,
    ) -> Result<Bytes, ModuleError> {
        if nonce.len() != NONCE {
            return Err(AuthError::BadChallenge.into());
        }
        if !self.answered.may(peer, context.now()) {
            return Err(AuthError::PeerTooOften.into());
        }
        Ok(context.sign(DOMAIN, statement(peer, context.node_id(), &nonce)).await?)
    }

    /// The operator has a peer asked.
    pub(crate) async fn challenge(
        self: Arc<Self>,
        context: Context,
        Path(peer): Path<String>,
    ) -> Result<Json<Proved>, ModuleError> {
        let peer: NodeId = peer.parse().map_err(|_| AuthError::BadPeer)?;
        let peer = context.present_id(peer).await?;
        let nonce = [context.unique_id(), context.unique_id()].concat();
        let asked = PeerRequest::post("/prove", "application/octet-stream", Body::whole(nonce.clone()));
        let answer = context.peer_request(peer, asked).await.map_err(AuthError::Peer)?;
        let said = statement(context.node_id(), peer, &nonce);
        let at = judge(answer, peer, &said).await?;
        Ok(Json(Proved { v: VERSION, peer: peer.to_string(), at }))
    }
}

async fn judge(answer: Response, peer: NodeId, said: &[u8]) -> Result<UnixMillis, AuthError> {
    if answer.status != Status::Ok {
        return Err(AuthError::PeerRefused { status: answer.status.code() });
    }
    let proof = answer.body.collect(STATEMENT).await.map_err(|_| AuthError::PeerProof)?;
    verify(&proof, &peer, MODULE, DOMAIN, said).map_err(|_| AuthError::PeerProof)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_peer_is_answered_once_a_second_and_the_memory_of_it_is_bounded() {
        let answered = Answered::default();
        let [one, other] = [1, 2].map(|seed| NodeId::from_bytes([seed; 32]));
        assert!(answered.may(one, 1000) && !answered.may(one, 1999) && answered.may(other, 1999));
        assert!(answered.may(one, 2000));
        assert!(answered.may(one, 500), "a clock that was set back shuts nobody out");
        for number in 0..2 * PEERS as u64 {
            let mut id = [3; 32];
            id[..8].copy_from_slice(&number.to_be_bytes());
            answered.may(NodeId::from_bytes(id), 10_000);
        }
        assert!(answered.0.lock().is_ok_and(|known| known.len() <= PEERS));
        assert!(answered.may(one, 20_000));
    }
}
