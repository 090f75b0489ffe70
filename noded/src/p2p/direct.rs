//! Direct contact, without a link (PROTOCOL 5, "Direct mode"): the initiator's driver, and the questions that a contact carries. The
//! responder's is `answer/direct`; what is open is in `contacts`.
//!
//! A contact is a session like any other under a link, with three differences: it is found by no peer but its own, it answers nothing but
//! the two questions by which a link is issued ([`crate::link::direct`]), and it ends when that is done or its time is over.

pub(crate) mod contacts;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::StatusCode;
use openred_module::Body;
use openred_proto::checked::direct::{DirectGreeting, DirectRequest, encode_hello};
use openred_proto::checked::handshake::HandshakeVerify;
use openred_proto::checked::session::{RequestHead, ResponseHead};
use openred_proto::id::NodeId;
use openred_proto::method::Method;

use super::connections::Reach;
use super::error::NetworkError;
use super::open::Sent;
use super::{PeerNetwork, internal, unix_now};
use crate::handshake::direct as request;
use crate::link::direct as questions;
use crate::session::Session;
use contacts::{Came, Contact};

/// How long the other side is given for one question of a contact.
const ASKED: Duration = Duration::from_secs(15);

/// Where a stranger is, and who it must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Address {
    reach: Reach,
    pin: Option<NodeId>,
}

impl Address {
    /// From `http://ADDRESS:PORT`, with the node's id behind a `#` where it is known. None for anything else.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (url, pin) = match text.split_once('#') {
            Some((url, pin)) => (url, Some(pin.parse().ok()?)),
            None => (text, None),
        };
        Some(Self { reach: Reach::parse(url)?, pin })
    }

    /// With a pin beside the one in the text; none when they contradict each other.
    pub(crate) fn expecting(self, expected: Option<NodeId>) -> Option<Self> {
        match (self.pin, expected) {
            (Some(pin), Some(expected)) if pin != expected => None,
            (pin, expected) => Some(Self { pin: pin.or(expected), ..self }),
        }
    }
}

impl PeerNetwork {
    /// Contacts whoever is at `address`; an open contact with it is given again. Nobody's word has been checked by people yet.
    ///
    /// # Errors
    /// [`NetworkError`]; whoever is there and is not the one that is expected has got nothing of this node's identity.
    pub(crate) async fn contact(self: &Arc<Self>, address: &Address) -> Result<Arc<Contact>, NetworkError> {
        let reach = &address.reach;
        let open = self.contacts.at(reach, Instant::now());
        if let Some(open) = open.as_ref().filter(|open| address.pin.is_none_or(|pin| pin == open.peer)) {
            // The other side may have forgotten it, or another node may be there by now: then there is another answer to a greeting.
            let answered = self.ask_contact(open, questions::CARD, Bytes::new()).await;
            match answered {
                Ok(_) => return Ok(Arc::clone(open)),
                Err(error) => tracing::debug!(%error, "an open contact does not answer: it is made anew"),
            }
        }
        let greeting = self.post_handshake(reach, &self.connections, encode_hello().into()).await?;
        let greeting = DirectGreeting::decode(&greeting)?;
        if greeting.node == self.me {
            return Err(NetworkError::WithItself);
        }
        if address.pin.is_some_and(|pin| pin != greeting.node) {
            return Err(NetworkError::PeerUnexpected);
        }
        if !self.contacts.has_room_to(&greeting.node, Instant::now()) {
            return Err(NetworkError::ContactsFull);
        }
        let common = self.ports.links.allowed_methods().intersection(greeting.suites);
        let method = common.iter().next().ok_or(NetworkError::NoCommonMethod)?;
        // The key process fixes the peer here: whoever else answers fails there, and gets no FINALIZE.
        let half_open = self.keys.start_direct(method, greeting.node).await?;
        let verify = self.post_direct(reach, greeting.node, method, half_open.noise.to_vec()).await;
        let meant = (greeting.node, None);
        let (grant, record) = self.finalize(half_open.handshake, verify, meant, reach, &self.connections).await?;
        let now = Instant::now();
        let (session, _) = Session::as_initiator(&grant, &record, now)?;
        let session = session.with_limits(self.settings.limits);
        let contact = Contact::new(session, Came::To(reach.clone()), unix_now());
        if !self.contacts.insert(&contact, now) {
            return Err(NetworkError::ContactsFull);
        }
        // Whoever was there before is not any more.
        if let Some(before) = open {
            self.contacts.remove(&before);
        }
        Ok(contact)
    }

    async fn post_direct(
        &self,
        reach: &Reach,
        peer: NodeId,
        method: Method,
        noise: Vec<u8>,
    ) -> Result<HandshakeVerify, NetworkError> {
        let mac1_key = request::mac1_key(&peer);
        let request = request::build(&mac1_key, method, noise);
        let (mac1, covered) = (request.mac1, request.without_cookie());
        let encode = |cookie| DirectRequest { cookie, ..request.clone() }.encode();
        self.post_request(&Sent { peer, mac1_key: &mac1_key, mac1, covered }, reach, &self.connections, encode).await
    }

    /// Asks the other side of a contact that this node began.
    ///
    /// # Errors
    /// [`NetworkError`]; `PeerRefusedSession` when it does not know the contact any more.
    pub(crate) async fn ask_contact(
        self: &Arc<Self>,
        contact: &Contact,
        path: &'static str,
        body: Bytes,
    ) -> Result<(u16, Bytes), NetworkError> {
        let Came::To(reach) = &contact.came else { return Err(NetworkError::Bug) };
        let head = RequestHead {
            module: internal::MODULE.into(),
            method: "POST".into(),
            path: path.into(),
            length: Some(body.len() as u64),
            deadline_millis: u64::try_from(ASKED.as_millis()).unwrap_or(u64::MAX),
            ..RequestHead::default()
        };
        let asking = async {
            let mut body = Some(Body::whole(body));
            let ticket = contact.session.begin_request(Instant::now())?;
            let (head, body) = self.exchange(ticket, None, reach, &self.connections, head, &mut body).await?;
            let body = body.collect(questions::BODY_BYTES).await.map_err(|_| NetworkError::Interrupted)?;
            Ok((head.status, body))
        };
        tokio::time::timeout(ASKED, asking).await.unwrap_or(Err(NetworkError::TimedOut))
    }

    /// Answers one question of a contact that came: about the link to be, and nothing else.
    pub(super) async fn answer_contact(
        self: &Arc<Self>,
        contact: &Arc<Contact>,
        head: &RequestHead,
        body: Body,
    ) -> (ResponseHead, Body) {
        let is_question = head.module == internal::MODULE && head.method == "POST" && !contact.is_ours();
        if !is_question || !contact.count() {
            return (internal::status(StatusCode::NOT_FOUND), Body::empty());
        }
        let Ok(body) = body.collect(questions::BODY_BYTES).await else {
            return (internal::status(StatusCode::PAYLOAD_TOO_LARGE), Body::empty());
        };
        let mutual_link = contact.session.mutual_link;
        let (status, body) = self.ports.links.answer_contact(contact.peer, mutual_link, &head.path, body).await;
        if head.path == questions::OFFER && StatusCode::from_u16(status).is_ok_and(|status| status.is_success()) {
            contact.set_has_offer();
        }
        (ResponseHead { status, content_type: String::new(), length: None }, Body::whole(body))
    }

    /// Contacts that wait for somebody's word.
    pub(crate) fn contacts(&self) -> Vec<Arc<Contact>> {
        self.contacts.all(Instant::now())
    }

    /// The contact with `peer`: the one that this node began, or the one that came.
    pub(crate) fn contact_with(&self, peer: &NodeId, ours: bool) -> Option<Arc<Contact>> {
        self.contacts().into_iter().find(|contact| contact.peer == *peer && contact.is_ours() == ours)
    }

    /// Ends a contact; the other side hears nothing of it.
    pub(crate) fn drop_contact(&self, contact: &Arc<Contact>) {
        self.contacts.remove(contact);
    }

    /// Whether one more may come from `address`.
    pub(super) fn has_room_for(&self, address: IpAddr) -> bool {
        self.contacts.has_room(address, Instant::now())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn an_address_may_name_whom_it_leads_to() {
        let id = NodeId::from_bytes([7; 32]);
        let plain = Address::parse("http://127.0.0.1:7690").unwrap();
        assert_eq!(plain.pin, None);
        let pinned = Address::parse(&format!("http://127.0.0.1:7690/#{id}")).unwrap();
        assert_eq!(pinned.pin, Some(id));
        assert_eq!(plain.expecting(Some(id)).unwrap().pin, Some(id));
        assert_eq!(pinned.clone().expecting(None).unwrap().pin, Some(id));
        assert_eq!(pinned.expecting(Some(NodeId::from_bytes([8; 32]))), None, "two that contradict each other");
        for bad in ["http://127.0.0.1:7690#nobody", "http://node.example:7690", "https://127.0.0.1:1", "", "#"] {
            assert_eq!(Address::parse(bad), None, "{bad}");
        }
    }
}
