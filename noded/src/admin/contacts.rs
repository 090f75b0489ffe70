//! The operator's calls about direct contact: thin over [`crate::contact`].

use std::sync::Arc;
use std::time::Duration;

use openred_proto::admin;
use openred_proto::id::NodeId;
use openred_proto::limits::{LINK_LIFE_MAX, LINK_LIFE_MIN};
use openred_proto::vault::Refusal;
use tonic::{Code, Status};

use super::reply::{self, link_status};
use super::{FIRST_HANDSHAKE, LONGEST_WAIT, parse_peer};
use crate::contact::ContactError;
use crate::keys::KeysError;
use crate::link::state::LinkState;
use crate::link::words;
use crate::node::Node;
use crate::p2p::NetworkError;
use crate::p2p::direct::contacts::{Contact, LIFE};

/// A link's life as asked for; none: as configured.
pub(super) fn life(seconds: u64) -> Result<Option<Duration>, Status> {
    let life = (seconds > 0).then(|| Duration::from_secs(seconds));
    if life.is_some_and(|life| !(LINK_LIFE_MIN..=LINK_LIFE_MAX).contains(&life)) {
        return Err(reply::invalid("link.life", "a link lives between 10 s and 30 days"));
    }
    Ok(life)
}

pub(super) async fn contact(node: Arc<Node>, request: admin::ContactRequest) -> Result<admin::Contact, Status> {
    let expected = (!request.expect.is_empty()).then(|| parse_peer(&request.expect)).transpose()?;
    let contact = node.contact(&request.url, expected).await.map_err(|error| refuse(&error))?;
    Ok(status(&contact))
}

pub(super) async fn confirm(node: Arc<Node>, request: admin::ConfirmContactRequest) -> Result<admin::Link, Status> {
    let (peer, life) = (parse_peer(&request.peer)?, life(request.life_seconds)?);
    let link = node.confirm(peer, &request.words, life).await.map_err(|error| refuse(&error))?;
    let wait = Duration::from_millis(request.wait_millis).min(LONGEST_WAIT);
    if !wait.is_zero() {
        node.links.wait_while(link.id(), LinkState::Offered, wait).await;
        node.links.wait_while(link.id(), LinkState::Pending, wait.min(FIRST_HANDSHAKE)).await;
    }
    // What came of it, also when that is its end.
    let now = node.links.all().into_iter().find(|now| now.id() == link.id());
    Ok(link_status(&node, &now.unwrap_or(link)))
}

/// Ends every contact with a peer; the one shown is this node's own, if there is one.
pub(super) fn drop_contacts(node: &Node, text: &str) -> Result<admin::Contact, Status> {
    let peer = parse_peer(text)?;
    let contact = [true, false].into_iter().find_map(|ours| node.network.contact_with(&peer, ours));
    let contact = contact.ok_or_else(|| refuse(&ContactError::None))?;
    node.network.end_contacts(&peer);
    Ok(status(&contact))
}

/// Contacts of peers with which there is no link, oldest first.
pub(super) fn all(node: &Node) -> Vec<admin::Contact> {
    let contacts = node.network.contacts();
    contacts.iter().filter(|contact| !node.links.is_linked(&contact.peer)).map(|contact| status(contact)).collect()
}

/// The operator's yes to a peer of a contact. One that this node began is confirmed by it; of one that came, the words are compared,
/// if he gives them, or those of the offer that it has left. None: the yes goes its usual way.
pub(super) async fn accept(node: &Arc<Node>, text: &str, shown: &str) -> Result<Option<admin::Link>, Status> {
    let waiting = node.links.select(text).ok().filter(|link| link.state == LinkState::Waiting);
    let peer = match (text.parse::<NodeId>(), &waiting) {
        (Ok(peer), _) => peer,
        (_, Some(waiting)) => waiting.peer(),
        // It is said what is wrong with it where every other yes is.
        _ => return Ok(None),
    };
    if node.network.contact_with(&peer, true).is_some() {
        let link = node.confirm(peer, shown, None).await.map_err(|error| refuse(&error))?;
        return Ok(Some(link_status(node, &link)));
    }
    if let Some(contact) = node.network.contact_with(&peer, false) {
        node.compare(&contact, shown).map_err(|error| refuse(&error))?;
        return Ok(None);
    }
    let agrees =
        |link: &crate::link::state::Link| link.mutual_link.as_ref().is_some_and(|known| words::are(known, shown));
    match waiting {
        _ if shown.is_empty() => Ok(None),
        Some(waiting) if agrees(&waiting) => Ok(None),
        Some(waiting) => {
            // Whoever has left this offer is not who the operator takes it for.
            node.links.revoke(waiting.id()).await.map_err(|error| reply::refuse(&error))?;
            Err(refuse(&ContactError::WrongWords))
        }
        None => Err(refuse(&ContactError::None)),
    }
}

fn status(contact: &Contact) -> admin::Contact {
    admin::Contact {
        peer: contact.peer.to_string(),
        mutual_link: hex::encode(contact.mutual_link()),
        words: words::words(contact.mutual_link()),
        initiator: contact.is_ours(),
        since: contact.at.0,
        until: contact.at.plus(LIFE).0,
    }
}

fn refuse(error: &ContactError) -> Status {
    let (kind, code) = match error {
        ContactError::BadAddress => (Code::InvalidArgument, "contact.address"),
        ContactError::None => (Code::NotFound, "contact.none"),
        ContactError::WrongWords => (Code::PermissionDenied, "contact.words"),
        ContactError::NoCard => (Code::FailedPrecondition, "contact.no-card"),
        ContactError::Link(error) => return reply::refuse(error),
        ContactError::Network(NetworkError::Keys(KeysError::Refused(Refusal::DirectDowngrade))) => {
            (Code::FailedPrecondition, "link.exists")
        }
        ContactError::Network(NetworkError::Keys(error)) => reply::keys(error),
        ContactError::Network(error) => network(*error),
    };
    reply::status(kind, code, &error.to_string())
}

const fn network(error: NetworkError) -> (Code, &'static str) {
    match error {
        NetworkError::Linked => (Code::FailedPrecondition, "link.exists"),
        NetworkError::PeerUnexpected => (Code::PermissionDenied, "contact.unexpected"),
        NetworkError::WithItself => (Code::InvalidArgument, "link.with-itself"),
        NetworkError::NoCommonMethod => (Code::FailedPrecondition, "link.no-common-method"),
        NetworkError::PeerRefusedHandshake | NetworkError::PeerRefusedSession => {
            (Code::PermissionDenied, "contact.refused")
        }
        NetworkError::TimedOut => (Code::DeadlineExceeded, "contact.slow"),
        NetworkError::Busy | NetworkError::ContactsFull => (Code::ResourceExhausted, "contact.busy"),
        NetworkError::PeerOffline(_) | NetworkError::Interrupted => (Code::Unavailable, "peer.unreachable"),
        _ => (Code::FailedPrecondition, "contact.failed"),
    }
}
