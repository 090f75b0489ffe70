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

use openred_module::{Context, Event, Manifest, Method, Module, ModuleError, Request, Response, Routes, async_trait};

pub use document::{
    ConversationsQuery, Delete, Deleted, InboxQuery, MarkRead, MessageView, Page, Peers, QueuedView, Sent, Summary,
};
pub use keep::{DELETED_IDS, INBOX_BYTES, MESSAGE_COST, PEER_BYTES, PEER_MESSAGES};
pub use record::{MESSAGE_CONTENT_TYPE, TEXT_LIMIT};

use crate::record::ENVELOPE_LIMIT;

/// Longest JSON query or order of the operator, in bytes.
const QUERY_LIMIT: u64 = 64 * 1024;

/// The module. All that must survive is in the host's store; this holds locks and back-off only.
#[derive(Default)]
pub struct Messaging {
    store: store::Writers,
    queue: queue::Queue,
    full: keep::FullPeers,
}

#[async_trait]
impl Module for Messaging {
    fn manifest(&self) -> Manifest {
        Manifest {
            id: "messaging",
            version: env!("CARGO_PKG_VERSION"),
            summary: "Messages between linked nodes, delivered exactly once",
        }
    }

    fn routes(routes: &mut Routes<Self>) {
        routes.operator(Method::Post, "/send/{peer}", TEXT_LIMIT as u64, Self::send);
        routes.operator(Method::Get, "/inbox", 0, Self::inbox);
        routes.operator(Method::Post, "/inbox", QUERY_LIMIT, Self::query_inbox);
        routes.operator(Method::Post, "/read", QUERY_LIMIT, Self::mark_read);
        routes.operator(Method::Post, "/delete", QUERY_LIMIT, Self::delete);
        routes.operator(Method::Get, "/outbox", 0, Self::outbox);
        routes.operator(Method::Get, "/conversations", 0, Self::conversations);
        routes.operator(Method::Post, "/conversations", QUERY_LIMIT, Self::query_conversations);
        routes.operator(Method::Post, "/conversations/{peer}", QUERY_LIMIT, Self::conversation);
        routes.peer(Method::Post, "/deliver", ENVELOPE_LIMIT as u64, Self::receive);
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
