//! What `noded` may do, done once each: the control of every attempt, and what the attempts are made from.

use anyhow::{Context, Result, anyhow, ensure};
use openred_cryptod::vault::serve::clock;
use openred_proto::audit::Event;
use openred_proto::checked::card::Card;
use openred_proto::checked::receipt::Receipt;
use openred_proto::cryptod as rpc;
use openred_proto::http_signature::SignatureInput;
use openred_proto::id::NodeId;
use openred_proto::limits::LINK_LIFE;
use prost::bytes::Bytes;

use super::front::{Front, Refused};
use super::peer::{DIRECTORY, Peer};
use super::report::Report;

/// All methods.
pub(crate) const ALL: u32 = 0b1111;
/// A day, of cards.
const DAY_SECONDS: u64 = 86_400;

/// A link with a peer, seen from both sides.
pub(crate) struct Link {
    /// As the vault under attack sealed it.
    pub(crate) row: Bytes,
    /// As the peer's vault sealed it.
    pub(crate) peers_row: Vec<u8>,
    pub(crate) id: Bytes,
    pub(crate) method: u32,
    pub(crate) epoch: u64,
    pub(crate) offer: Vec<u8>,
    pub(crate) receipt: Bytes,
}

/// What honest operations brought.
pub(crate) struct Honest {
    pub(crate) node: NodeId,
    pub(crate) card: Bytes,
    pub(crate) http: (SignatureInput, Vec<u8>),
    pub(crate) one: Peer,
    pub(crate) other: Peer,
    pub(crate) link: Link,
    pub(crate) others_link: Link,
    /// A handshake with the first of them that came to its end.
    pub(crate) shaken: Shaken,
    /// An offer of the node's to a third.
    pub(crate) own_offer: Bytes,
}

/// A handshake that came to its end.
pub(crate) struct Shaken {
    pub(crate) hash: Bytes,
    /// The two match proofs over it: the node's and the peer's.
    pub(crate) own_proof: Bytes,
    pub(crate) peers_proof: Bytes,
    /// Its name in the vault, and its last message.
    pub(crate) completed: (Bytes, Vec<u8>),
}

fn worked<T>(what: &'static str, came: Result<T, Refused>) -> Result<T> {
    came.map_err(|refused| anyhow!("the honest {what}: {}", refused.text))
}

pub(crate) fn card_request(name: &str, life_seconds: u64) -> rpc::SignCardRequest {
    rpc::SignCardRequest { name: name.into(), suites: ALL, life_seconds, ..Default::default() }
}

pub(crate) fn http_request(method: &str, target_uri: &str, created: u64) -> rpc::SignHttpRequest {
    rpc::SignHttpRequest {
        method: method.into(),
        target_uri: target_uri.into(),
        content_sha256: Bytes::from_static(&[7; 32]),
        created,
        nonce: Bytes::from_static(&[8; 16]),
    }
}

pub(crate) fn row_request(row: &[u8]) -> rpc::LinkRow {
    rpc::LinkRow { row: Bytes::copy_from_slice(row) }
}

pub(crate) fn received_offer(offer: &[u8], sender: NodeId) -> rpc::ReceivedOffer {
    rpc::ReceivedOffer {
        offer: Bytes::copy_from_slice(offer),
        sender: Bytes::copy_from_slice(sender.as_bytes()),
        directory: Bytes::copy_from_slice(DIRECTORY.as_bytes()),
        allowed: ALL,
    }
}

pub(crate) fn issue_request(peer: NodeId, card: &[u8], life_seconds: u64) -> rpc::IssueLinkRequest {
    rpc::IssueLinkRequest {
        peer: Bytes::copy_from_slice(peer.as_bytes()),
        card: Bytes::copy_from_slice(card),
        directory: Bytes::copy_from_slice(DIRECTORY.as_bytes()),
        allowed: ALL,
        schedule: 0,
        life_seconds,
    }
}

pub(crate) fn answer_request(row: &[u8], noise: &[u8]) -> rpc::AnswerHandshakeRequest {
    let (row, noise) = (Bytes::copy_from_slice(row), Bytes::copy_from_slice(noise));
    rpc::AnswerHandshakeRequest { row, noise, directory_head: Bytes::new() }
}

pub(crate) fn continue_request(handshake: &[u8], noise: &[u8]) -> rpc::ContinueHandshakeRequest {
    let (handshake, noise) = (Bytes::copy_from_slice(handshake), Bytes::copy_from_slice(noise));
    rpc::ContinueHandshakeRequest { handshake, noise, directory_head: Bytes::new() }
}

/// Links with a peer that offers: the honest way.
pub(crate) fn link(front: &mut Front, peer: &mut Peer, node: NodeId, card: &[u8]) -> Result<Link> {
    let (peers_row, offer) = peer.offer(node, card.to_vec())?;
    let request = received_offer(&offer, peer.id);
    let accepted = worked("acceptance", front.call(|mut keys| async move { keys.accept_offer(request).await }))?;
    let receipt = Receipt::verify(&accepted.receipt, &node).context("the receipt")?;
    ensure!(receipt.issuer == peer.id, "the receipt names the offer's issuer");
    let rpc::LinkSummary { link_id, method, epoch, .. } = accepted.summary.context("a summary")?;
    Ok(Link { row: accepted.row, peers_row, id: link_id, method, epoch, offer, receipt: accepted.receipt })
}

impl Honest {
    /// Does what `noded` does, with two peers.
    pub(crate) fn begin(front: &mut Front, report: &mut Report) -> Result<Self> {
        let described =
            worked("description", front.call(|mut keys| async move { keys.describe(rpc::DescribeRequest {}).await }))?;
        let node = NodeId::from_bytes(described.node_id[..].try_into().context("a node id")?);
        report.control("describe", None)?;
        let card =
            worked("card", front.call(|mut keys| async move { keys.sign_card(card_request("", DAY_SECONDS)).await }))?;
        let card = card.statement;
        ensure!(Card::verify(&card, clock())?.node_id == node, "the card is the node's");
        report.control("card", Some(Event::CardSigned))?;
        report.signature(&card[card.len() - 64..])?;
        let http = sign_http(front, node)?;
        report.control("http", Some(Event::HttpSigned))?;
        report.signature(&http.1)?;
        let (mut one, mut other) = (Peer::new()?, Peer::new()?);
        let first = link(front, &mut one, node, &card)?;
        report.signature(&first.receipt[first.receipt.len() - 64..])?;
        let others_link = link(front, &mut other, node, &card)?;
        report.control("accept", Some(Event::LinkAccepted))?;
        let shaken = shake(front, &mut one, &first)?;
        report.control("handshake as responder", Some(Event::HandshakeCompleted))?;
        start_and_finish(front, &mut one, &first)?;
        report.control("handshake as initiator", Some(Event::HandshakeFinished))?;
        let purpose = String::from("messaging");
        worked(
            "store key",
            front.call(|mut keys| async move { keys.get_store_key(rpc::StoreKeyRequest { purpose }).await }),
        )?;
        report.control("store key", Some(Event::StoreKeyGiven))?;
        let row = row_request(&first.row);
        worked("request keys", front.call(|mut keys| async move { keys.get_link_keys(row).await }))?;
        report.control("row", None)?;
        let mut third = Peer::new()?;
        let request = issue_request(third.id, &third.card()?, LINK_LIFE.as_secs());
        let issued = worked("offer", front.call(|mut keys| async move { keys.issue_link(request).await }))?;
        report.control("issue", Some(Event::LinkIssued))?;
        Ok(Self { node, card, http, one, other, link: first, others_link, shaken, own_offer: issued.offer })
    }
}

/// A signed request to a directory, which verifies.
pub(crate) fn sign_http(front: &mut Front, node: NodeId) -> Result<(SignatureInput, Vec<u8>)> {
    const URI: &str = "https://directory.example/api/v3/nodes/register";
    let created = clock().0 / 1000;
    let request = http_request("POST", URI, created);
    let signed = worked("HTTP signature", front.call(|mut keys| async move { keys.sign_http(request).await }))?;
    let input = SignatureInput {
        method: "POST".into(),
        target_uri: URI.into(),
        content_sha256: [7; 32],
        created,
        nonce: [8; 16],
        key_id: node,
    };
    input.verify(&signed.signature_header)?;
    Ok((input, signed.signature.to_vec()))
}

/// A handshake that the peer begins, to its end, and its match proof.
pub(crate) fn shake(front: &mut Front, peer: &mut Peer, link: &Link) -> Result<Shaken> {
    let (machine, noise) = peer.start(&link.peers_row)?;
    let request = answer_request(&link.row, &noise);
    let answered = worked("VERIFY", front.call(|mut keys| async move { keys.answer_handshake(request).await }))?;
    let (finalize, granted) = peer.finish(machine, answered.noise.to_vec())?;
    let request = continue_request(&answered.handshake, &finalize);
    let grant =
        worked("end of a handshake", front.call(|mut keys| async move { keys.complete_handshake(request).await }))?;
    ensure!(granted.send.expose() == &grant.receive[..], "both sides hold the same secrets");
    let (row, hash) = (link.row.clone(), grant.hash.clone());
    let peers_proof = Bytes::copy_from_slice(&granted.match_proof);
    let request = rpc::ValidateMatchRequest { row, hash, proof: peers_proof.clone() };
    let matched = worked("match", front.call(|mut keys| async move { keys.validate_match(request).await }))?;
    ensure!(matched.matched, "the tokens match");
    let (hash, own_proof, completed) = (grant.hash, grant.match_proof, (answered.handshake, finalize));
    Ok(Shaken { hash, own_proof, peers_proof, completed })
}

/// A handshake that the node begins.
pub(crate) fn start_and_finish(front: &mut Front, peer: &mut Peer, link: &Link) -> Result<()> {
    let row = row_request(&link.row);
    let started = worked("REQUEST", front.call(|mut keys| async move { keys.start_handshake(row).await }))?;
    let (machine, noise) = peer.answer(&link.peers_row, started.noise.to_vec())?;
    let request = continue_request(&started.handshake, &noise);
    let finished = worked("FINALIZE", front.call(|mut keys| async move { keys.finish_handshake(request).await }))?;
    let granted = peer.complete(machine, finished.noise.to_vec())?;
    let grant = finished.grant.context("a grant")?;
    ensure!(granted.send.expose() == &grant.receive[..], "both sides hold the same secrets");
    Ok(())
}
