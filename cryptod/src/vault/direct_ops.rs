//! Handshakes without a link (PROTOCOL 5, "Direct mode"): what begins them, and what forbids them. They go on as every other
//! handshake does (`handshake_ops`).
//!
//! Nothing of them is durable: there is no link to remember timestamps of. What a replayed REQUEST is worth is a VERIFY that nobody
//! can answer; whoever could ask for many of them needs a cookie of `noded`'s for each address, and finds the places bounded.

use openred_proto::id::{NodeId, UnixMillis};
use openred_proto::method::Method;
use openred_proto::vault::Reply;
use rand_core::CryptoRng;

use super::Unlocked;
use super::handshake_ops::{check_head, credentials};
use crate::error::{Error, Result};
use crate::handshake::{Answered, Direct, Incoming, Mode};
use crate::link::transform::Side;

impl Unlocked {
    pub(super) fn start_direct(
        &mut self,
        now: UnixMillis,
        random: &mut impl CryptoRng,
        method: Method,
        peer: NodeId,
    ) -> Result<Reply> {
        if peer == self.keyring.identity.node_id() {
            return Err(Error::MisuseNotAllowed);
        }
        self.check_not_linked(now, &peer)?;
        let own = credentials(&self.statics, &self.state, method)?;
        let mode = Mode::Direct(Direct { method, peer: Some(peer) });
        let (handshake, noise) = self.handshakes.begin(now, random, now, mode, &own)?;
        Ok(Reply::HandshakeStarted { handshake, noise })
    }

    pub(super) fn answer_direct(
        &mut self,
        now: UnixMillis,
        random: &mut impl CryptoRng,
        method: Method,
        noise: &[u8],
        directory_head: &[u8],
    ) -> Result<Reply> {
        check_head(directory_head)?;
        let own = credentials(&self.statics, &self.state, method)?;
        let incoming = Incoming { message: noise, accepted: UnixMillis(0), directory_head };
        let mode = Mode::Direct(Direct { method, peer: None });
        let Answered { id: handshake, message: noise, .. } =
            self.handshakes.answer(now, random, mode, &own, &incoming)?;
        Ok(Reply::HandshakeAnswered { handshake, noise })
    }

    /// While a live link with a peer exists, direct contact with it is a downgrade (PROTOCOL 5). An offer of this node's that
    /// nobody has answered is no link yet: a link that was accepted here is one, or one over which the peer has proved itself.
    ///
    /// # Errors
    /// [`Error::PeerDirectDowngrade`].
    pub(super) fn check_not_linked(&self, now: UnixMillis, peer: &NodeId) -> Result<()> {
        let mut links = self.state.peer(peer).into_iter().flat_map(|peer| peer.links.iter().flatten());
        let is_held = links.any(|link| {
            let is_mutual = link.side == Side::Acceptor || link.proven;
            is_mutual && !link.revoked && !link.is_expired(now)
        });
        if is_held { Err(Error::PeerDirectDowngrade) } else { Ok(()) }
    }
}
