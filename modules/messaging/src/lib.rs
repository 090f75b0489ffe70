//! Messages between linked nodes: nothing acknowledged is lost, nothing is shown twice.
//!
//! The way of a message: the operator's `POST /send/{peer}` stores it in the outbox (one transaction, durable), then
//! `deliver` sends it to the peer's `POST /deliver`, which stores it together with its id (one transaction, durable) before it
//! acknowledges; then the sender takes it off its queue. Whatever is cut short in between is repeated with the same
//! message id and recognised by it. Messages to one peer leave in the order in which they were sent.
//!
//! What a peer may fill is bounded: beyond it, its messages are refused and wait at the sender until there is room. What is older
//! than the operator wants is swept. That a message was read is told to its sender, if the operator lets it. A message may name
//! files that its sender shares; their bytes are fetched by `files`.
//!
//! Files: [`record`] is the form of a message at rest and on the wire, [`attachment`] what it names of files, [`store`] the rows
//! and their transactions, [`keep`] bounds and deletion, [`sweep`] retention by time, [`queue`] delivery and back-off,
//! [`receipts`] read receipts, [`operator`] the operator's routes, [`document`] their JSON, [`settings`] the settings.
//!
//! It does not encrypt (sessions do) and never logs a text or a name.
#![forbid(unsafe_code)]

mod attachment;
mod document;
mod error;
mod keep;
mod operator;
mod queue;
mod receipts;
mod record;
mod settings;
mod store;
mod sweep;

use std::sync::Arc;

use openred_module::{Context, Event, Module, ModuleError, Request, Response, Routes};

pub use attachment::{ATTACHMENTS, Attachment};
pub use document::{
    ConversationsQuery, Delete, Deleted, InboxQuery, MarkRead, MessageView, Page, Peers, QueuedView, Sent, Summary,
};
pub use keep::{DELETED_IDS, INBOX_BYTES, MESSAGE_COST, PEER_BYTES, PEER_MESSAGES};
pub use record::{MESSAGE_CONTENT_TYPE, TEXT_LIMIT};
pub use settings::Settings;

use crate::queue::{Kind, Queue};
use crate::record::ENVELOPE_LIMIT;

/// The module. All that must survive is in the host's store; this holds locks and back-off only.
pub struct Messaging {
    store: store::Writers,
    messages: Queue,
    receipts: Queue,
    full: keep::FullPeers,
    sweep: sweep::Sweep,
}

impl Default for Messaging {
    fn default() -> Self {
        Self {
            store: store::Writers::default(),
            messages: Queue::new(queue::RETRY_TIMER),
            receipts: Queue::new(queue::RECEIPTS_TIMER),
            full: keep::FullPeers::default(),
            sweep: sweep::Sweep::default(),
        }
    }
}

#[openred_module::module]
impl Module for Messaging {
    fn routes(routes: &mut Routes<Self>) {
        routes.post("/send/{peer}", Self::send);
        routes.post("/send/{peer}/{files}", Self::send);
        routes.get("/inbox", Self::inbox);
        routes.post("/inbox", Self::query_inbox);
        routes.post("/sent", Self::query_sent);
        routes.post("/read", Self::mark_read);
        routes.post("/delete", Self::delete);
        routes.get("/outbox", Self::outbox);
        routes.get("/conversations", Self::conversations);
        routes.post("/conversations", Self::query_conversations);
        routes.post("/conversations/{peer}", Self::conversation);
        routes.post("/deliver", Self::receive);
        routes.post("/deliver/attached", Self::receive);
        routes.post("/receipts", Self::take_receipts);
    }

    async fn start(self: Arc<Self>, context: Context) -> Result<(), ModuleError> {
        // What was queued before the restart goes out as soon as timers run.
        self.messages.wake(&context, context.now());
        self.receipts.wake(&context, context.now());
        context.set_timer(sweep::SWEEP_TIMER, context.now());
        Ok(())
    }

    async fn event(self: Arc<Self>, context: Context, event: Event) {
        match event {
            Event::Timer(queue::RETRY_TIMER) => self.retry_due(&context, Kind::Messages).await,
            Event::Timer(queue::RECEIPTS_TIMER) => self.retry_due(&context, Kind::Receipts).await,
            Event::Timer(sweep::SWEEP_TIMER) => self.sweep(&context).await,
            Event::PeerReachable(peer) => self.peer_reachable(&context, peer).await,
            Event::IdentitiesChanged(peer) => self.deliver_to(&context, peer).await,
            // What is queued is kept: a new link with the same peer delivers it.
            Event::PeerForgotten(peer) => {
                let ids = context.identities(peer).await.unwrap_or_else(|_| vec![peer]);
                self.full.forgotten(&context, &ids);
            }
            Event::Timer(_) => {}
        }
    }
}

impl Messaging {
    async fn take_receipts(self: Arc<Self>, context: Context, request: Request) -> Result<Response, ModuleError> {
        let peer = request.peer()?;
        self.note_receipts(&context, peer, request.body).await?;
        Response::json(openred_module::Status::Ok, &serde_json::json!({ "v": record::VERSION }))
    }

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
        assert_eq!(limit("/send/{peer}/{files}"), super::TEXT_LIMIT as u64);
        assert_eq!(limit("/deliver"), super::record::PLAIN_LIMIT as u64);
        assert_eq!(limit("/deliver/attached"), super::ENVELOPE_LIMIT as u64);
        assert_eq!(limit("/receipts"), super::receipts::BODY_LIMIT as u64);
    }
}
