//! Direct contact from the operator's word to a link (PROTOCOL 5, "Direct mode"): a contact is made, two people compare its words, the
//! one who began it confirms, and a link is issued inside. The parts are the network's (`p2p::direct`) and the links'
//! (`link::direct`); here they are put together.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use openred_proto::id::{LinkId, NodeId};

use crate::link::direct::{Brought, CARD, OFFER};
use crate::link::state::{Link, LinkState};
use crate::link::{LinkError, words};
use crate::node::Node;
use crate::p2p::NetworkError;
use crate::p2p::direct::Address;
use crate::p2p::direct::contacts::Contact;

/// Pause between two attempts to bring an offer: whom its operator lets wait is asked for no more than this.
const AGAIN: Duration = Duration::from_secs(2);
/// Refusals in a row after which a contact counts as gone: the other side may just be restarting its key process.
const REFUSALS: usize = 3;

/// Why a direct contact came to nothing, in the operator's words.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ContactError {
    #[error("not of the form http://ADDRESS:PORT or http://ADDRESS:PORT#did:key:…, or it contradicts --expect")]
    BadAddress,
    #[error("no open direct contact with that node; begin one with `openred link direct URL`")]
    None,
    #[error("the words are not those of this contact: somebody may be between the two nodes; the contact is ended")]
    WrongWords,
    #[error("the other side does not answer for its card")]
    NoCard,
    #[error(transparent)]
    Network(#[from] NetworkError),
    #[error(transparent)]
    Link(#[from] LinkError),
}

impl Node {
    /// Contacts whoever is at `url`.
    ///
    /// # Errors
    /// [`ContactError`]; whoever is not the one expected has heard nothing.
    pub(crate) async fn contact(&self, url: &str, expected: Option<NodeId>) -> Result<Arc<Contact>, ContactError> {
        let address = Address::parse(url).and_then(|address| address.expecting(expected));
        let address = address.ok_or(ContactError::BadAddress)?;
        let contact = self.network.contact(&address).await?;
        // The key process has refused where it knows of a link; an accepted offer is one from the receipt on.
        if self.links.is_linked(&contact.peer) {
            self.network.drop_contact(&contact);
            return Err(NetworkError::Linked.into());
        }
        Ok(contact)
    }

    /// The operator says that both sides show the same words, or gives those that the other side shows: the contact that this node
    /// began becomes an offer, which is brought until it is answered.
    ///
    /// # Errors
    /// [`ContactError`].
    pub(crate) async fn confirm(
        self: &Arc<Self>,
        peer: NodeId,
        shown: &str,
        life: Option<Duration>,
    ) -> Result<Link, ContactError> {
        let contact = self.network.contact_with(&peer, true).ok_or(ContactError::None)?;
        self.compare(&contact, shown)?;
        let asked = self.network.ask_contact(&contact, CARD, Bytes::new()).await;
        let (status, card) = asked.inspect_err(|error| {
            if *error == NetworkError::PeerRefusedSession {
                self.network.drop_contact(&contact);
            }
        })?;
        if status != 200 {
            return Err(ContactError::NoCard);
        }
        let link = self.links.offer_to_stranger(peer, card, life).await?;
        tokio::spawn(Arc::clone(self).bring(contact, link.clone()));
        Ok(link)
    }

    /// Checks the words that the other side shows, if the operator gives them; a contact with others is over.
    ///
    /// # Errors
    /// [`ContactError::WrongWords`].
    pub(crate) fn compare(&self, contact: &Arc<Contact>, shown: &str) -> Result<(), ContactError> {
        if shown.is_empty() || words::are(contact.mutual_link(), shown) {
            return Ok(());
        }
        tracing::warn!("the words of a direct contact do not agree: it is ended");
        self.network.drop_contact(contact);
        Err(ContactError::WrongWords)
    }

    /// Brings an offer until it is answered or the contact is over; then the contact has done what it was for.
    async fn bring(self: Arc<Self>, contact: Arc<Contact>, link: Link) {
        let id = link.id();
        let mut refusals = 0;
        while self.is_offered(&id) && contact.is_open(Instant::now()) && refusals < REFUSALS {
            match self.bring_once(&contact, &link).await {
                Ok(Brought::Waits) => refusals = 0,
                Ok(Brought::Taken | Brought::Left) => break,
                Err(ContactError::Network(NetworkError::PeerRefusedSession)) => refusals += 1,
                Err(error) => tracing::debug!(%error, "an offer was not brought; it is tried again"),
            }
            // A first handshake over the link says as much as a receipt.
            self.links.wait_while(id, LinkState::Offered, AGAIN).await;
        }
        if self.is_offered(&id) {
            tracing::info!(link = %id, "the direct contact is over and its offer not answered; `openred link direct` brings it again");
        }
        self.network.drop_contact(&contact);
    }

    async fn bring_once(&self, contact: &Contact, link: &Link) -> Result<Brought, ContactError> {
        let question = self.links.direct_offer(link).await?;
        let (status, body) = self.network.ask_contact(contact, OFFER, question).await?;
        Ok(self.links.direct_answer(contact.peer, link.id(), status, body).await)
    }

    fn is_offered(&self, link: &LinkId) -> bool {
        self.links.state_of_link(link) == Some(LinkState::Offered)
    }
}
