//! Messages between linked nodes: nothing acknowledged is lost, nothing is shown twice.
//!
//! The way of a message: the operator's `POST /send/{peer}` stores it in the outbox (one transaction, durable), then
//! `deliver` sends it to the peer's `POST /deliver`, which stores it together with its id (one transaction, durable) before it
//! acknowledges; then the sender takes it off its queue. Whatever is cut short in between is repeated with the same
//! message id and recognised by it. Messages to one peer leave in the order in which they were sent.
//!
//! What a peer may fill is bounded: beyond it, its messages are refused and wait at the sender until there is room.
//!
//! Files: [`record`] is the form of a message at rest and on the wire, [`store`] the rows and their transactions, [`keep`]
//! bounds and deletion, [`queue`] delivery and back-off, [`operator`] the operator's routes, [`document`] their JSON.
//!
//! It does not encrypt (sessions do) and never logs a text or a name.
#![forbid(unsafe_code)]

mod document;
mod error;
mod keep;
mod operator;
mod queue;
mod record;
mod store;

use std::sync::Arc;

use openred_module::{Context, Event, Module, ModuleError, Request, Response, Routes};

pub use document::{
    ConversationsQuery, Delete, Deleted, InboxQuery, MarkRead, MessageView, Page, Peers, QueuedView, Sent, Summary,
};
pub use keep::{DELETED_IDS, INBOX_BYTES, MESSAGE_COST, PEER_BYTES, PEER_MESSAGES};
pub use record::{MESSAGE_CONTENT_TYPE, TEXT_LIMIT};

use crate::record::ENVELOPE_LIMIT;

/// The module. All that must survive is in the host's store; this holds locks and back-off only.
#[derive(Default)]
pub struct Messaging {
    store: store::Writers,
    queue: queue::Queue,
    full: keep::FullPeers,
}

#[openred_module::module]
impl Module for Messaging {
    fn routes(routes: &mut Routes<Self>) {
        routes.post("/send/{peer}", Self::send);
        routes.get("/inbox", Self::inbox);
        routes.post("/inbox", Self::query_inbox);
        routes.post("/read", Self::mark_read);
        routes.post("/delete", Self::delete);
        routes.get("/outbox", Self::outbox);
        routes.get("/conversations", Self::conversations);
        routes.post("/conversations", Self::query_conversations);
        routes.post("/conversations/{peer}", Self::conversation);
        routes.post("/deliver", Self::receive);
    }

    async fn start(self: Arc<Self>, context: Context) -> Result<(), ModuleError> {
        // What was queued before the restart goes out as soon as timers run.
        self.queue.wake(&context, context.now());
        Ok(())
    }

    async fn event(self: Arc<Self>, context: Context, event: Event) {
        match event {
            Event::Timer(queue::RETRY_TIMER) => self.retry_due(&context).await,
            Event::PeerReachable(peer) => self.peer_reachable(&context, peer).await,
            Event::IdentitiesChanged(peer) => self.deliver_to(&context, peer).await,
            // Kept: a new link with the same peer delivers what is queued.
            Event::PeerForgotten(_) | Event::Timer(_) => {}
        }
    }
}

impl Messaging {
    async fn receive(self: Arc<Self>, context: Context, request: Request) -> Result<Response, ModuleError> {
        let peer = request.peer()?;
        let bytes = request.body.collect(ENVELOPE_LIMIT).await?;
        let envelope = record::Envelope::decode(&bytes).map_err(error::MessagingError::from)?;
        let cost = keep::cost(&envelope);
        let ids = store::Ids::of(&context, peer).await?;
        let outcome = self.store.receive(&context, (peer, &ids), envelope).await;
        match &outcome {
            Err(error::MessagingError::InboxFull) => self.full.refused(&context, ids.first(), cost),
            Ok(_) => self.full.taken(&context, ids.first()),
            Err(_) => {}
        }
        Response::json(openred_module::Status::Ok, &outcome?)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    #[test]
    fn the_manifest_lets_pass_what_the_code_takes() {
        let manifest =
            openred_module::manifest::Manifest::parse("openred.toml", include_str!("../openred.toml")).unwrap();
        let limit = |path: &str| manifest.routes.iter().find(|route| route.path.as_str() == path).unwrap().body_bytes;
        assert_eq!(limit("/send/{peer}"), super::TEXT_LIMIT as u64);
        assert_eq!(limit("/deliver"), super::ENVELOPE_LIMIT as u64);
    }
}
