//! What a handshake rests on: a link, or nothing but each side's word for who it is (PROTOCOL 5, "Direct mode").
//!
//! The machines are the same for both; what differs is said here: Noise pattern, prologue, psk0, whom the other side must prove to
//! be, and under which bound it waits.

use openred_proto::checked::direct;
use openred_proto::concat::concat;
use openred_proto::id::{LinkId, MethodId, NodeId};
use openred_proto::label::derive;
use openred_proto::method::Method;
use openred_proto::secret::Secret;

use super::half_open::Place;
use super::noise::Side;

/// Prologue word of a handshake over a link.
const LINKED: &[u8] = b"linked";
/// Prologue word of direct contact.
const DIRECT: &[u8] = b"direct";
/// Feature bits of this version: none. They are in the prologue so that nobody between can take one away.
const FEATURES: [u8; 8] = direct::FEATURES;

/// What a handshake rests on.
pub(crate) enum Mode {
    /// A link: `XXpsk0+psk3`.
    Linked(Linked),
    /// No link: `XXpsk3`.
    Direct(Direct),
}

/// The link a handshake runs over, as one side sees it.
pub(crate) struct Linked {
    pub(crate) link_id: LinkId,
    pub(crate) method: Method,
    /// The registered method whose suite that is.
    pub(crate) registered: Option<MethodId>,
    pub(crate) epoch: u64,
    pub(crate) initiator: NodeId,
    pub(crate) responder: NodeId,
    /// The link's pre-shared key of the direction initiator → responder.
    pub(crate) psk: Secret<32>,
    /// The link's base: not used here, handed back with [`Established`](super::Established) for the match proof (PROTOCOL 4.5).
    pub(crate) base: Secret<32>,
}

/// Contact without a link.
pub(crate) struct Direct {
    pub(crate) method: Method,
    /// Whom this node means to reach; none at the responder, who takes whoever proves himself.
    pub(crate) peer: Option<NodeId>,
}

impl Mode {
    /// The suite.
    pub(super) const fn method(&self) -> Method {
        match self {
            Self::Linked(linked) => linked.method,
            Self::Direct(direct) => direct.method,
        }
    }

    /// The Noise protocol's name.
    pub(super) const fn noise_name(&self) -> &'static str {
        match self {
            Self::Linked(linked) => linked.method.noise_name(),
            Self::Direct(direct) => direct.method.direct_noise_name(),
        }
    }

    /// The pre-shared key of the first message.
    pub(super) const fn psk0(&self) -> Option<&Secret<32>> {
        match self {
            Self::Linked(linked) => Some(&linked.psk),
            Self::Direct(_) => None,
        }
    }

    /// Under which bound it waits.
    pub(super) const fn place(&self) -> Place {
        match self {
            Self::Linked(linked) => Place::Link(linked.link_id),
            Self::Direct(_) => Place::Direct,
        }
    }

    /// What both sides must agree on before a byte is exchanged (PROTOCOL 5).
    pub(super) fn prologue(&self) -> Vec<u8> {
        let name = self.noise_name().as_bytes();
        match self {
            Self::Linked(linked) => {
                let epoch = linked.epoch.to_be_bytes();
                let mut parts = vec![
                    derive::PROLOGUE,
                    LINKED,
                    name,
                    &FEATURES[..],
                    &epoch,
                    linked.link_id.as_bytes(),
                    linked.initiator.as_bytes(),
                    linked.responder.as_bytes(),
                ];
                parts.extend(linked.registered.as_ref().map(|method| &method.as_bytes()[..]));
                concat(&parts)
            }
            Self::Direct(_) => concat(&[derive::PROLOGUE, DIRECT, name, &FEATURES]),
        }
    }

    /// Whom the other side must prove to be, and the link with its base.
    pub(super) fn into_parts(self, side: Side) -> (Option<NodeId>, Option<(LinkId, Secret<32>)>) {
        match self {
            Self::Linked(linked) => {
                let peer = match side {
                    Side::Initiator => linked.responder,
                    Side::Responder => linked.initiator,
                };
                (Some(peer), Some((linked.link_id, linked.base)))
            }
            Self::Direct(direct) => (direct.peer, None),
        }
    }
}
