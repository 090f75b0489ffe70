//! A session before it is needed: found, or opened by a handshake that all callers share; and the next one, opened in the
//! background before the limits of the one in use, so that no request waits for it.
//!
//! Requests that run end on the session on which they began; new ones take the newest. The side that opened it uses it from
//! ACCEPT on, the other from the first request on it: so the opener sends one at once.

use std::sync::Arc;
use std::time::Instant;

use openred_module::Body;
use openred_proto::checked::session::{RequestHead, Side};
use openred_proto::id::NodeId;

use super::error::NetworkError;
use super::pool::{Find, Opening, Pooled};
use super::{PeerNetwork, internal};

impl PeerNetwork {
    /// A session with `peer`: an open one, or the one that a handshake now gives to all who wait.
    pub(super) async fn session(self: &Arc<Self>, peer: NodeId) -> Result<Arc<Pooled>, NetworkError> {
        loop {
            let now = Instant::now();
            let mut ending = match self.pool.find_or_open(peer, now) {
                Find::Session(found) => {
                    self.renew_if_due(&found, now);
                    return Ok(found);
                }
                Find::Wait(ending) => ending,
                Find::Start(opening, ending) => {
                    self.start_opening(peer, opening);
                    ending
                }
            };
            let ended = ending.wait_for(Option::is_some).await.map_err(|_| NetworkError::Bug)?;
            ended.unwrap_or(Err(NetworkError::Bug)).map_err(|error| self.named_at_limit(&peer, error))?;
        }
    }

    /// Opens the next session in the background when this one nears its limits. To be called whenever either side uses it.
    pub(super) fn renew_if_due(self: &Arc<Self>, pooled: &Arc<Pooled>, now: Instant) {
        if let Some(opening) = self.pool.renew_due(pooled, now) {
            self.start_opening(pooled.session.peer, opening);
        }
    }

    /// Opens another session with `peer` beside those that are open, over the newest link; those that run go on.
    pub fn reopen(self: &Arc<Self>, peer: NodeId) {
        if let Some(opening) = self.pool.renew(peer) {
            self.start_opening(peer, opening);
        }
    }

    /// Runs a handshake on a task of its own: a caller that goes away does not end it for the others.
    fn start_opening(self: &Arc<Self>, peer: NodeId, opening: Opening) {
        let network = Arc::clone(self);
        tokio::spawn(async move {
            let result = network.open(peer, &network.connections, Some(opening.sent())).await;
            let is_renewal = opening.is_renewal();
            if let Err(error) = &result
                && is_renewal
            {
                tracing::info!(%error, "the next session with a peer could not be opened yet");
            }
            opening.end(result.as_ref().map(|_| ()).map_err(|error| *error), Instant::now());
            if let Ok(pooled) = result
                && is_renewal
                && pooled.session.side == Side::Initiator
            {
                network.say_it_is_there(&pooled).await;
            }
        });
    }

    /// Tells the peer by a request without content that this side holds the session, too.
    async fn say_it_is_there(self: &Arc<Self>, pooled: &Arc<Pooled>) {
        let head = RequestHead {
            module: internal::MODULE.into(),
            method: "POST".into(),
            path: internal::ECHO.into(),
            length: Some(0),
            ..RequestHead::default()
        };
        let mut body = Some(Body::empty());
        let saying = self.request_on(pooled, &self.connections, head, &mut body);
        if let Some(Err(error)) = pooled.while_held(saying).await {
            tracing::debug!(?error, "a new session could not be shown to the peer");
        }
    }

    /// A session that is at its limits serves nobody any more, whatever kept the next one from being opened.
    fn named_at_limit(&self, peer: &NodeId, error: NetworkError) -> NetworkError {
        if !self.pool.is_at_limit(peer, Instant::now()) {
            return error;
        }
        tracing::warn!(%error, "a session has reached its limit and the next one could not be opened");
        NetworkError::SessionLimit
    }
}
