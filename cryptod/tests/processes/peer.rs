//! The other party of links, as a vault in this process: what the key process under test does with a peer is real then.

use openred_cryptod::audit::Trail;
use openred_cryptod::keyring::Keyring;
use openred_cryptod::state::State;
use openred_cryptod::vault::Vault;
use openred_cryptod::vault::quota::Rates;
use openred_cryptod::vault::serve::{clock, generator};
use openred_proto::cryptod as rpc;
use openred_proto::id::NodeId;
use openred_proto::method::{MethodSet, Schedule};
use openred_proto::vault::{Frame, Reply, Request, Role};
use prost::bytes::Bytes;

use super::service::{ALL_METHODS, Client, DIRECTORY, card};

/// An hour, of links.
const LIFE: std::time::Duration = std::time::Duration::from_secs(3600);

/// An offer from a peer of its own to the node behind `client`, with what its `noded` would say of it.
pub(crate) async fn offer(client: &mut Client, node: NodeId) -> rpc::ReceivedOffer {
    let (mut random, now) = (generator().unwrap(), clock());
    let mut secrets = [0; 64];
    getrandom::fill(&mut secrets).unwrap();
    let keyring = Keyring::from_secrets(&mut secrets);
    let trail = Trail::fresh(keyring.identity(), now).unwrap();
    let mut vault = Vault::open(keyring, State::new(), trail, &Rates::default(), now, &mut random).unwrap();
    let body = Request::IssueLink {
        peer: node,
        card: card(client).await.statement.to_vec(),
        directory: DIRECTORY,
        allowed: MethodSet::ALL,
        schedule: Schedule::Hourly,
        life: LIFE,
    };
    let reply = vault.handle(now, &mut random, Role::Node, Frame { id: 1, body }).reply.body;
    let Reply::LinkIssued { offer, .. } = reply else { panic!("{reply:?}") };
    rpc::ReceivedOffer {
        offer: offer.into(),
        sender: Bytes::copy_from_slice(vault.node_id().as_bytes()),
        directory: Bytes::copy_from_slice(DIRECTORY.as_bytes()),
        allowed: ALL_METHODS,
    }
}

/// Rows of as many links, each with a peer of its own.
pub(crate) async fn rows(client: &mut Client, node: NodeId, count: usize) -> Vec<Bytes> {
    let mut rows = Vec::new();
    for _ in 0..count {
        let offer = offer(client, node).await;
        rows.push(client.accept_offer(offer).await.unwrap().into_inner().row);
    }
    rows
}
