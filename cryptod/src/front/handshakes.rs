//! The phases of handshakes over one stream: each call as metered, checked, refused and bounded as one by itself, without what HTTP/2
//! and gRPC take to begin and end a call of its own, which is several times what a phase's bytes cost.
//!
//! In: numbered calls of one connection. Out: their answers, as the vault gives them. Calls reach the vault in the order in which they
//! came. At most [`OPEN`] are open, answers that nobody fetches included; further ones are not read.

use std::future::ready;
use std::sync::Arc;

use futures_util::{Stream, StreamExt};
use openred_proto::cryptod as rpc;
use openred_proto::cryptod::handshake_answer::Outcome;
use openred_proto::cryptod::handshake_call::Phase;
use openred_proto::refusal::REFUSAL_HEADER;
use openred_proto::vault::{Reply, Request};
use tokio::sync::OwnedSemaphorePermit;
use tonic::Status;

use super::connection::Caller;
use super::convert;
use super::link::VaultLink;
use super::places::STREAMS;
use super::refused::Refused;
use super::service::ask;

/// As many as there may be calls by themselves.
const OPEN: usize = STREAMS as usize;

/// What the calls of one stream need.
pub(super) struct Desk {
    vault: VaultLink,
    caller: Arc<Caller>,
    refused: Arc<Refused>,
    _open: OwnedSemaphorePermit,
}

impl Desk {
    /// `open` is held for as long as the stream is.
    pub(super) const fn new(
        vault: VaultLink,
        caller: Arc<Caller>,
        refused: Arc<Refused>,
        open: OwnedSemaphorePermit,
    ) -> Self {
        Self { vault, caller, refused, _open: open }
    }

    /// Answers the calls of the stream. It ends with the calls, with the first that cannot be read, or when those under way have heard
    /// that the vault is gone.
    pub(super) fn serve(
        self,
        calls: impl Stream<Item = Result<rpc::HandshakeCall, Status>> + Send,
    ) -> impl Stream<Item = Result<rpc::HandshakeAnswer, Status>> + Send {
        let gone = self.vault.gone();
        let desk = Arc::new(self);
        let answer = move |call| {
            let desk = Arc::clone(&desk);
            async move { desk.answer(call).await }
        };
        // What is behind one that cannot be read would be read as such again and again.
        let readable = calls.scan(false, |ended, call| {
            let is_over = std::mem::replace(ended, call.is_err());
            ready((!is_over).then_some(call))
        });
        readable.take_until(gone).map(answer).buffer_unordered(OPEN)
    }

    async fn answer(&self, call: Result<rpc::HandshakeCall, Status>) -> Result<rpc::HandshakeAnswer, Status> {
        let call = call.inspect_err(|status| self.refused.see_status(status))?;
        let outcome = ask(&self.vault, &self.caller, || request(call.phase), outcome).await;
        let outcome = outcome.unwrap_or_else(|status| {
            self.refused.see_status(&status);
            Outcome::Refused(refusal(&status))
        });
        Ok(rpc::HandshakeAnswer { number: call.number, outcome: Some(outcome) })
    }
}

fn request(phase: Option<Phase>) -> Result<Request, Status> {
    match phase.ok_or_else(|| convert::wrong("phase"))? {
        Phase::Start(link) => convert::start_handshake(&link),
        Phase::Answer(answer) => convert::answer_handshake(answer),
        Phase::Finish(finish) => convert::finish_handshake(finish),
        Phase::Complete(complete) => convert::complete_handshake(complete),
        Phase::Abandon(handshake) => convert::abandon_handshake(handshake),
        Phase::StartDirect(start) => convert::start_direct(&start),
        Phase::AnswerDirect(answer) => convert::answer_direct(&answer),
    }
}

/// The vault answers each request with a reply of its own kind, so the reply says enough.
fn outcome(reply: Reply) -> Result<Outcome, Status> {
    match reply {
        Reply::HandshakeFinished { .. } => convert::finished_handshake(reply).map(Outcome::Finished),
        Reply::HandshakeCompleted { .. } => convert::completed_handshake(reply).map(Outcome::Completed),
        Reply::Done => convert::done(reply).map(Outcome::Abandoned),
        other => convert::started_handshake(other).map(Outcome::Started),
    }
}

fn refusal(status: &Status) -> rpc::CallRefused {
    let refusal = status.metadata().get(REFUSAL_HEADER).and_then(|code| code.to_str().ok());
    rpc::CallRefused { code: i32::from(status.code()).unsigned_abs(), refusal: refusal.unwrap_or_default().into() }
}

#[cfg(test)]
#[path = "handshakes_tests.rs"]
mod tests;
