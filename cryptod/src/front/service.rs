//! The generated service: each call takes a token, becomes one request, and its reply one message. No arm decides anything.
//! The phases of handshakes come one by one as well as over a stream (`handshakes`).

use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use futures_util::Stream;
use openred_proto::cryptod as rpc;
use openred_proto::cryptod::cryptod_server::Cryptod;
use openred_proto::http_signature::SignatureInput;
use openred_proto::id::NodeId;
use openred_proto::vault::{Reply, Request};
use tonic::{Code, Response, Status, Streaming};

use super::connection::Caller;
use super::link::{Unanswered, VaultLink};
use super::refused::Refused;
use super::{convert, handshakes, methods};

type Answer<T> = Result<Response<T>, Status>;

/// One front's service.
pub(super) struct Service {
    vault: VaultLink,
    node: NodeId,
    refused: Arc<Refused>,
}

impl Service {
    pub(super) const fn new(vault: VaultLink, node: NodeId, refused: Arc<Refused>) -> Self {
        Self { vault, node, refused }
    }

    /// A call by itself.
    async fn call<M, T>(
        &self,
        call: tonic::Request<M>,
        request: impl FnOnce(M) -> Result<Request, Status>,
        answer: impl FnOnce(Reply) -> Result<T, Status>,
    ) -> Answer<T> {
        let caller = caller(&call)?;
        let message = call.into_inner();
        ask(&self.vault, &caller, || request(message), answer).await.map(Response::new)
    }
}

fn caller<M>(call: &tonic::Request<M>) -> Result<Arc<Caller>, Status> {
    let caller = call.extensions().get::<Arc<Caller>>().cloned();
    caller.ok_or_else(|| Status::internal("a connection without its caller"))
}

/// Meters the caller, checks the message, asks the vault, and turns the reply.
pub(super) async fn ask<T>(
    vault: &VaultLink,
    caller: &Caller,
    request: impl FnOnce() -> Result<Request, Status>,
    answer: impl FnOnce(Reply) -> Result<T, Status>,
) -> Result<T, Status> {
    if !caller.may_call(Instant::now()) {
        return Err(Status::resource_exhausted("too many calls on this connection; slow down"));
    }
    let request = request().inspect_err(|status| {
        if convert::is_callers_fault(status) {
            caller.note_fault(Instant::now());
        }
    })?;
    // Held until this call is over. Too many of what is dear are refused, or they would take what is cheap its streams.
    let _waits = caller.may_wait(request.lane()).map_err(|_| busy())?;
    let reply = vault.ask(caller.places(), request).await.map_err(unanswered)?;
    // The vault refuses out of role what this front never sends: such a caller speaks another contract.
    answer(reply).inspect_err(|status| {
        if status.code() == Code::PermissionDenied {
            caller.note_fault(Instant::now());
        }
    })
}

fn busy() -> Status {
    Status::resource_exhausted("the key process is busy; try again shortly")
}

fn unanswered(why: Unanswered) -> Status {
    match why {
        Unanswered::Gone => Status::unavailable("the key process is restarting; try again shortly"),
        Unanswered::TooLong => Status::invalid_argument("the request is longer than a frame"),
        Unanswered::Late => Status::deadline_exceeded("the key process did not answer in time"),
    }
}

#[tonic::async_trait]
impl Cryptod for Service {
    async fn describe(&self, call: tonic::Request<rpc::DescribeRequest>) -> Answer<rpc::Description> {
        self.call(call, |_| Ok(Request::Describe), convert::description).await
    }

    async fn sign_card(&self, call: tonic::Request<rpc::SignCardRequest>) -> Answer<rpc::SignedCard> {
        self.call(call, convert::sign_card, convert::signed_card).await
    }

    async fn sign_http(&self, call: tonic::Request<rpc::SignHttpRequest>) -> Answer<rpc::HttpSignature> {
        let mut input: Option<SignatureInput> = None;
        let request = |message| {
            let signed = convert::sign_http(message, self.node)?;
            input = Some(signed.clone());
            Ok(Request::SignHttp(signed))
        };
        // The vault gives 64 bytes; the headers around them are made of what was asked.
        let reply = self.call(call, request, Ok).await?.into_inner();
        let input = input.ok_or_else(|| Status::internal("answered without a request"))?;
        convert::http_signature(&input, reply).map(Response::new)
    }

    async fn issue_link(&self, call: tonic::Request<rpc::IssueLinkRequest>) -> Answer<rpc::IssuedLink> {
        self.call(call, convert::issue_link, convert::issued_link).await
    }

    async fn inspect_offer(&self, call: tonic::Request<rpc::ReceivedOffer>) -> Answer<rpc::LinkSummary> {
        let request = |offer| convert::received_offer(offer).map(Request::InspectOffer);
        self.call(call, request, convert::inspected_offer).await
    }

    async fn accept_offer(&self, call: tonic::Request<rpc::ReceivedOffer>) -> Answer<rpc::AcceptedLink> {
        let request = |offer| convert::received_offer(offer).map(Request::AcceptOffer);
        self.call(call, request, convert::accepted_link).await
    }

    async fn renew_link(&self, call: tonic::Request<rpc::RenewLinkRequest>) -> Answer<rpc::IssuedLink> {
        self.call(call, convert::renew_link, convert::issued_link).await
    }

    async fn inspect_renewal(&self, call: tonic::Request<rpc::ReceivedRenewal>) -> Answer<rpc::LinkSummary> {
        let request = |offer| convert::received_renewal(offer).map(Request::InspectRenewal);
        self.call(call, request, convert::inspected_offer).await
    }

    async fn accept_renewal(&self, call: tonic::Request<rpc::ReceivedRenewal>) -> Answer<rpc::AcceptedLink> {
        let request = |offer| convert::received_renewal(offer).map(Request::AcceptRenewal);
        self.call(call, request, convert::accepted_link).await
    }

    async fn list_links(&self, call: tonic::Request<rpc::ListLinksRequest>) -> Answer<rpc::LinkNames> {
        self.call(call, |after| convert::list_links(&after), convert::link_names).await
    }

    async fn get_link_keys(&self, call: tonic::Request<rpc::LinkRow>) -> Answer<rpc::LinkKeys> {
        let request = |link: rpc::LinkRow| Ok(Request::LinkKeys { row: convert::row(&link.row)? });
        self.call(call, request, convert::link_keys).await
    }

    async fn revoke_link(&self, call: tonic::Request<rpc::LinkName>) -> Answer<rpc::Done> {
        self.call(call, convert::revoke_link, convert::done).await
    }

    async fn start_handshake(&self, call: tonic::Request<rpc::LinkRow>) -> Answer<rpc::StartedHandshake> {
        self.call(call, |link| convert::start_handshake(&link), convert::started_handshake).await
    }

    async fn answer_handshake(
        &self,
        call: tonic::Request<rpc::AnswerHandshakeRequest>,
    ) -> Answer<rpc::StartedHandshake> {
        self.call(call, convert::answer_handshake, convert::started_handshake).await
    }

    async fn start_direct(&self, call: tonic::Request<rpc::StartDirectRequest>) -> Answer<rpc::StartedHandshake> {
        self.call(call, |start| convert::start_direct(&start), convert::started_handshake).await
    }

    async fn answer_direct(&self, call: tonic::Request<rpc::AnswerDirectRequest>) -> Answer<rpc::StartedHandshake> {
        self.call(call, |answer| convert::answer_direct(&answer), convert::started_handshake).await
    }

    async fn finish_handshake(
        &self,
        call: tonic::Request<rpc::ContinueHandshakeRequest>,
    ) -> Answer<rpc::FinishedHandshake> {
        self.call(call, convert::finish_handshake, convert::finished_handshake).await
    }

    async fn complete_handshake(
        &self,
        call: tonic::Request<rpc::ContinueHandshakeRequest>,
    ) -> Answer<rpc::SessionGrant> {
        self.call(call, convert::complete_handshake, convert::completed_handshake).await
    }

    async fn abandon_handshake(&self, call: tonic::Request<rpc::HandshakeName>) -> Answer<rpc::Done> {
        self.call(call, convert::abandon_handshake, convert::done).await
    }

    async fn sign_session(&self, call: tonic::Request<rpc::HandshakeName>) -> Answer<rpc::SignedSession> {
        self.call(call, convert::sign_session, convert::signed_session).await
    }

    async fn validate_match(&self, call: tonic::Request<rpc::ValidateMatchRequest>) -> Answer<rpc::MatchResult> {
        self.call(call, convert::validate_match, convert::match_result).await
    }

    async fn get_store_key(&self, call: tonic::Request<rpc::StoreKeyRequest>) -> Answer<rpc::StoreKey> {
        self.call(call, convert::store_key_request, convert::store_key).await
    }

    type HandshakesStream = Pin<Box<dyn Stream<Item = Result<rpc::HandshakeAnswer, Status>> + Send>>;

    async fn handshakes(&self, call: tonic::Request<Streaming<rpc::HandshakeCall>>) -> Answer<Self::HandshakesStream> {
        let caller = caller(&call)?;
        let open = caller.may_stream().map_err(|_| busy())?;
        let desk = handshakes::Desk::new(self.vault.clone(), caller, Arc::clone(&self.refused), open);
        Ok(Response::new(Box::pin(desk.serve(call.into_inner()))))
    }

    async fn register_method(&self, call: tonic::Request<rpc::RegisterMethodRequest>) -> Answer<rpc::MethodPlace> {
        self.call(call, methods::register, methods::place).await
    }

    async fn retire_method(&self, call: tonic::Request<rpc::MethodName>) -> Answer<rpc::Done> {
        self.call(call, |method| methods::retire(&method), convert::done).await
    }

    async fn list_methods(&self, call: tonic::Request<rpc::ListMethodsRequest>) -> Answer<rpc::RegisteredMethods> {
        self.call(call, |_| Ok(Request::ListMethods), methods::listed).await
    }

    async fn sign_module(&self, call: tonic::Request<rpc::SignModuleRequest>) -> Answer<rpc::SignedModule> {
        self.call(call, methods::sign, methods::signed).await
    }

    async fn get_seal_key(&self, call: tonic::Request<rpc::SealKeyRequest>) -> Answer<rpc::StoreKey> {
        self.call(call, methods::seal_key, convert::store_key).await
    }

    async fn report(&self, call: tonic::Request<rpc::ReportRequest>) -> Answer<rpc::Done> {
        self.call(call, |report| convert::report(&report), convert::done).await
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use prost::bytes::Bytes;
    use tokio::net::UnixStream;

    use super::*;

    fn request<M>(caller: &Arc<Caller>, message: M) -> tonic::Request<M> {
        let mut request = tonic::Request::new(message);
        request.extensions_mut().insert(Arc::clone(caller));
        request
    }

    #[tokio::test]
    async fn what_somebody_else_sent_is_no_fault_of_the_caller() {
        let (near, _vault) = UnixStream::pair().unwrap();
        let service = Service::new(VaultLink::start(near), NodeId::from_bytes([1; 32]), Arc::default());
        let caller = Arc::new(Caller::new());
        let row = Bytes::from_static(&[1; 97]);
        for length in (0..200).map(|round| if round % 2 == 0 { 0 } else { 5000 }) {
            let id = Bytes::from_static(&[2; 32]);
            let bytes = Bytes::from(vec![0; length]);
            let offer = rpc::ReceivedOffer { offer: bytes.clone(), sender: id.clone(), directory: id, allowed: 1 };
            let answer = rpc::AnswerHandshakeRequest { row: row.clone(), noise: bytes, ..Default::default() };
            let refused = [
                service.inspect_offer(request(&caller, offer)).await.unwrap_err(),
                service.answer_handshake(request(&caller, answer)).await.unwrap_err(),
            ];
            assert!(refused.iter().all(|status| status.code() == Code::InvalidArgument), "{refused:?}");
            assert!(!caller.is_out());
        }
        // The control: a row is the caller's own.
        for _ in 0..200 {
            service.get_link_keys(request(&caller, rpc::LinkRow { row: Bytes::new() })).await.unwrap_err();
        }
        assert!(caller.is_out());
    }
}
