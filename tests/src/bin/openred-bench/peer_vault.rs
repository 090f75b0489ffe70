//! A second vault, in this process: the other end of a link for the vault that is measured, and the bare operation that it is
//! compared with.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use openred_cryptod::audit::Trail;
use openred_cryptod::front::raw::Link;
use openred_cryptod::keyring::Keyring;
use openred_cryptod::state::State;
use openred_cryptod::vault::Vault;
use openred_cryptod::vault::quota::{Rate, Rates};
use openred_cryptod::vault::serve::{clock, generator};
use openred_proto::checked::card::CardFields;
use openred_proto::cryptod as rpc;
use openred_proto::cryptod::cryptod_client::CryptodClient;
use openred_proto::id::NodeId;
use openred_proto::method::{MethodSet, Schedule};
use openred_proto::vault::{Frame, ReceivedOffer, Reply, Request, Role};
use rand_chacha::ChaCha20Rng;
use tonic::transport::Channel;

const DIRECTORY: NodeId = NodeId::from_bytes([9; 32]);
const LIFE: Duration = Duration::from_secs(3600);

/// A vault of this process.
struct Peer {
    vault: Vault,
    random: ChaCha20Rng,
}

impl Peer {
    fn new() -> Result<Self> {
        let (mut random, now) = (generator()?, clock());
        let keyring = Keyring::from_secrets(&mut [0x5e; 64]);
        let trail = Trail::fresh(keyring.identity(), now)?;
        // Its own quota is none of what is measured.
        let rates = Rates { row: Rate { burst: u32::MAX, per_second: u32::MAX }, ..Rates::default() };
        let vault = Vault::open(keyring, State::new(), trail, &rates, now, &mut random)?;
        Ok(Self { vault, random })
    }

    fn ask(&mut self, body: Request) -> Result<Reply> {
        let outcome = self.vault.handle(clock(), &mut self.random, Role::Node, Frame { id: 1, body });
        self.vault.commit(&mut self.random)?;
        Ok(outcome.reply.body)
    }

    fn card(&mut self) -> Result<Vec<u8>> {
        match self.ask(Request::SignCard { fields: CardFields::default(), suites: MethodSet::ALL, life: LIFE })? {
            Reply::Card { statement, .. } => Ok(statement),
            other => bail!("no card: {other:?}"),
        }
    }
}

/// A link between the vault that is measured and one of this process.
pub(crate) struct Linked {
    peer: Peer,
    row: Vec<u8>,
    peers_row: Vec<u8>,
}

impl Linked {
    /// Over the link's own stream.
    pub(crate) async fn with(link: &Link) -> Result<Self> {
        let mut peer = Peer::new()?;
        let issue = Request::IssueLink {
            peer: peer.vault.node_id(),
            card: peer.card()?,
            directory: DIRECTORY,
            allowed: MethodSet::ALL,
            schedule: Schedule::Seeded,
            life: LIFE,
        };
        let Some(Reply::Described { node, .. }) = link.ask(Request::Describe).await else { bail!("no description") };
        let Some(Reply::LinkIssued { row, offer, .. }) = link.ask(issue).await else { bail!("no link") };
        let offer = ReceivedOffer { offer, sender: node, directory: DIRECTORY, allowed: MethodSet::ALL };
        let Reply::LinkAccepted { row: peers_row, .. } = peer.ask(Request::AcceptOffer(offer))? else {
            bail!("the offer was refused")
        };
        Ok(Self { peer, row, peers_row })
    }

    /// A row of a link, through gRPC.
    pub(crate) async fn over(client: &mut CryptodClient<Channel>) -> Result<Bytes> {
        let mut peer = Peer::new()?;
        let request = rpc::IssueLinkRequest {
            peer: Bytes::copy_from_slice(peer.vault.node_id().as_bytes()),
            card: peer.card()?.into(),
            directory: Bytes::copy_from_slice(DIRECTORY.as_bytes()),
            allowed: 0b1111,
            schedule: 2,
            life_seconds: LIFE.as_secs(),
        };
        Ok(client.issue_link(request).await.context("issuing a link")?.into_inner().row)
    }

    /// The row of the vault that is measured.
    pub(crate) fn row(&self) -> Vec<u8> {
        self.row.clone()
    }

    /// What is asked of it.
    pub(crate) fn request(&self) -> Request {
        Request::LinkKeys { row: self.row() }
    }

    /// The same of the vault in this process.
    pub(crate) fn bare(&mut self) -> Result<()> {
        let body = Request::LinkKeys { row: self.peers_row.clone() };
        match self.peer.ask(body)? {
            Reply::LinkKeys(_) => Ok(()),
            other => bail!("refused: {other:?}"),
        }
    }
}
