//! The socket that modules dial, and the proof that each must bring.
//!
//! Every module of the node can reach it, and nobody else (where it lies is the supervisor's matter). A connection says nothing and gets
//! nothing until it has proven itself; those that have not are few and short-lived.

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream;
use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use openred_proto::id::NodeId;
use openred_proto::limits::LOCAL_HTTP2_FRAME;
use openred_proto::method::description::{DESCRIPTION_BYTES, PER_MODULE};
use openred_proto::module::attachment_server::{Attachment, AttachmentServer};
use openred_proto::module::host_frame::Kind as FromHost;
use openred_proto::module::host_server::HostServer;
use openred_proto::module::module_frame::Kind as FromModule;
use openred_proto::module::network_server::NetworkServer;
use openred_proto::module::peers_server::PeersServer;
use openred_proto::module::{Hello, HostFrame, ModuleFrame, Welcome};
use openred_proto::secret::Secret;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Notify, oneshot};
use tokio::time::timeout;
use tonic::service::Routes;
use tonic::{Request, Response, Status, Streaming};

use super::attached::{Attached, Inner};
use super::fault::Fault;
use super::held::{Held, STREAMS};
use super::hosting::Hosting;
use crate::context::Context;
use crate::wire::{
    CALL_WINDOW, CALLS, CONNECTION_WINDOW, CREDIT, DETAIL_BYTES, FEATURES, FEATURES_MOST, FRAME_BYTES, HOOKS, LOOPBACK,
    MESSAGE_BYTES, NAME_BYTES, NEWEST, OLDEST, PROOF_BYTES, RANGES, convert,
};

/// Connections that have not proven themselves: each module makes two, one after the other.
const UNPROVEN: usize = 16;
/// Of those, of one process: so that no module keeps the others out.
const UNPROVEN_OF_ONE: usize = 3;
/// How long they may take; the same machine, perhaps a loaded one.
const PROVING: Duration = Duration::from_secs(10);
/// How long the other side may take to read why it was ended.
const FAREWELL: Duration = Duration::from_millis(250);
/// Longest list of headers: gRPC's own.
const HEADER_BYTES: u32 = 4096;
/// After an error of the listener (no descriptors left, say) it is tried again.
const AGAIN: Duration = Duration::from_millis(100);

type Frames = Pin<Box<dyn Stream<Item = Result<HostFrame, Status>> + Send>>;
type Outcome = Result<Attached, Fault>;

struct Awaited {
    number: u64,
    proof: Secret<PROOF_BYTES>,
    context: Context,
    attached: oneshot::Sender<Outcome>,
}

/// An attachment that waits for its second connection.
struct Ticket {
    ticket: Secret<PROOF_BYTES>,
    inner: Weak<Inner>,
    opened: oneshot::Sender<()>,
}

#[derive(Default)]
struct State {
    awaited: HashMap<String, Awaited>,
    tickets: Vec<Ticket>,
    drawn: u64,
    /// Connections that have proven nothing, by process.
    unproven: HashMap<i32, usize>,
}

/// A connection's place among those that have proven nothing.
struct Place {
    door: Arc<Door>,
    process: i32,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.door.state();
        if let Some(count) = state.unproven.get_mut(&self.process) {
            *count -= 1;
            if *count == 0 {
                state.unproven.remove(&self.process);
            }
        }
    }
}

/// See the file's head.
pub struct Door {
    node: NodeId,
    /// Versions of the contract that it speaks.
    versions: RangeInclusive<u32>,
    state: Mutex<State>,
}

impl Door {
    /// A door of this node.
    pub fn new(node: NodeId) -> Arc<Self> {
        Self::speaking(node, OLDEST..=NEWEST)
    }

    /// One that speaks other versions of the contract: for tests of how a module meets an older or a newer node.
    pub fn speaking(node: NodeId, versions: RangeInclusive<u32>) -> Arc<Self> {
        Arc::new(Self { node, versions, state: Mutex::default() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(test)]
    pub(super) fn unproven(&self) -> usize {
        self.state().unproven.values().sum()
    }

    /// From now on the process that brings `proof`, once, is `module`, and has `context` of the node. Replaces what was expected of
    /// the same module before.
    pub fn expect(self: &Arc<Self>, module: &str, proof: Secret<PROOF_BYTES>, context: Context) -> Expected {
        let (attached, outcome) = oneshot::channel();
        let mut state = self.state();
        state.drawn += 1;
        let number = state.drawn;
        state.awaited.insert(module.to_owned(), Awaited { number, proof, context, attached });
        Expected { door: Arc::clone(self), module: module.to_owned(), number, outcome }
    }

    /// Serves the socket; never returns.
    pub async fn serve(self: Arc<Self>, listener: UnixListener) {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => match self.place(&stream) {
                    Some(place) => drop(tokio::spawn(Arc::clone(&self).connection(stream, place))),
                    None => tracing::warn!("too many connections of modules prove nothing; one was closed"),
                },
                Err(error) => {
                    tracing::warn!(%error, "the modules' socket");
                    tokio::time::sleep(AGAIN).await;
                }
            }
        }
    }

    /// A place for a connection that has proven nothing yet. The kernel says whose it is.
    fn place(self: &Arc<Self>, stream: &UnixStream) -> Option<Place> {
        let process = stream.peer_cred().ok()?.pid()?;
        let mut state = self.state();
        let all: usize = state.unproven.values().sum();
        let own = state.unproven.get(&process).copied().unwrap_or_default();
        if all >= UNPROVEN || own >= UNPROVEN_OF_ONE {
            return None;
        }
        state.unproven.insert(process, own + 1);
        drop(state);
        Some(Place { door: Arc::clone(self), process })
    }

    async fn connection(self: Arc<Self>, stream: UnixStream, place: Place) {
        let connection = Arc::new(Connection { door: self, attachment: OnceLock::new(), proven: Notify::new() });
        let attachment = AttachmentServer::from_arc(Arc::clone(&connection))
            .max_decoding_message_size(FRAME_BYTES)
            .max_encoding_message_size(FRAME_BYTES);
        let hosting = Hosting::new(Arc::clone(&connection));
        let peers = PeersServer::new(hosting.clone()).max_decoding_message_size(FRAME_BYTES);
        let network = NetworkServer::new(hosting.clone()).max_decoding_message_size(FRAME_BYTES);
        let hosting = HostServer::new(hosting).max_decoding_message_size(MESSAGE_BYTES);
        let routes = Routes::new(attachment).add_service(hosting).add_service(peers).add_service(network).prepare();
        let service = TowerToHyperService::new(Held::new(routes));
        let served = http2::Builder::new(TokioExecutor::new())
            .initial_stream_window_size(CALL_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_frame_size(LOCAL_HTTP2_FRAME)
            .max_concurrent_streams(STREAMS)
            .max_header_list_size(HEADER_BYTES)
            .serve_connection(TokioIo::new(stream), service);
        tokio::select! {
            // How it ended says nothing that its attachment does not say better.
            _ = served => {}
            () = connection.over(place) => {}
        }
    }

    /// Whom the Hello proves, if it does.
    fn prove(&self, hello: &Hello) -> Option<Awaited> {
        let proof: [u8; PROOF_BYTES] = hello.proof.as_ref().try_into().ok()?;
        let mut state = self.state();
        let is_it = state.awaited.get(&hello.module).is_some_and(|awaited| awaited.proof == Secret::new(proof));
        if is_it { state.awaited.remove(&hello.module) } else { None }
    }

    /// The attachment of a ticket, once.
    pub(super) fn open(&self, ticket: &[u8]) -> Option<Arc<Inner>> {
        let ticket: [u8; PROOF_BYTES] = ticket.try_into().ok()?;
        let ticket = Secret::new(ticket);
        let mut state = self.state();
        state.tickets.retain(|waiting| waiting.inner.strong_count() > 0);
        let place = state.tickets.iter().position(|waiting| waiting.ticket == ticket)?;
        let found = state.tickets.swap_remove(place);
        let _ = found.opened.send(());
        found.inner.upgrade()
    }

    fn ticket(&self, inner: &Arc<Inner>) -> (Bytes, oneshot::Receiver<()>) {
        let mut bytes = [0; PROOF_BYTES];
        getrandom::fill(&mut bytes).expect("the kernel's generator answers since the machine was started");
        let (opened, hears) = oneshot::channel();
        let ticket = Ticket { ticket: Secret::new(bytes), inner: Arc::downgrade(inner), opened };
        // As many at most as attachments begin within their time: each took an expectation of the host.
        self.state().tickets.push(ticket);
        (Bytes::copy_from_slice(&bytes), hears)
    }
}

/// A module that is awaited. Dropped, it is not any more.
pub struct Expected {
    door: Arc<Door>,
    module: String,
    number: u64,
    outcome: oneshot::Receiver<Outcome>,
}

impl Expected {
    /// Waits until the module has attached.
    ///
    /// # Errors
    /// What it did wrong after it had proven itself.
    pub async fn attached(mut self) -> Result<Attached, Fault> {
        // Gone without a word: replaced by a later expectation.
        (&mut self.outcome).await.unwrap_or(Err(Fault::Ended))
    }
}

impl Drop for Expected {
    fn drop(&mut self) {
        let mut state = self.door.state();
        if state.awaited.get(&self.module).is_some_and(|awaited| awaited.number == self.number) {
            state.awaited.remove(&self.module);
        }
    }
}

/// One connection, from the first byte to the last.
pub(super) struct Connection {
    door: Arc<Door>,
    attachment: OnceLock<Arc<Inner>>,
    proven: Notify,
}

impl Connection {
    /// The attachment that it belongs to, if it is one's second connection.
    pub(super) fn attachment(&self) -> Option<&Arc<Inner>> {
        self.attachment.get()
    }

    /// Opens it with a ticket.
    pub(super) fn open(&self, ticket: &[u8]) -> Result<(), Fault> {
        let inner = self.door.open(ticket).ok_or(Fault::Unproven)?;
        self.belongs_to(inner)
    }

    fn belongs_to(&self, inner: Arc<Inner>) -> Result<(), Fault> {
        self.attachment.set(inner).map_err(|_| Fault::OutOfTurn)?;
        self.proven.notify_one();
        Ok(())
    }

    /// Returns when the connection is to be closed: it proved nothing in time, or its attachment has ended.
    async fn over(&self, place: Place) {
        if timeout(PROVING, self.proven.notified()).await.is_err() {
            return tracing::warn!("a connection to the modules' socket proved nothing in time");
        }
        drop(place);
        if let Some(inner) = self.attachment.get() {
            inner.ended().await;
            tokio::time::sleep(FAREWELL).await;
        }
    }

    async fn welcome(&self, mut frames: Streaming<ModuleFrame>) -> Result<Frames, Fault> {
        let first = timeout(PROVING, frames.message()).await.map_err(|_| Fault::NoHello)?;
        let hello = match first.ok().flatten().and_then(|frame| frame.kind) {
            Some(FromModule::Hello(hello)) if is_bounded(&hello) => hello,
            _ => return Err(Fault::NoHello),
        };
        let Some(Awaited { context, attached, .. }) = self.door.prove(&hello) else { return Err(Fault::Unproven) };
        let versions = &self.door.versions;
        let Some(version) = common(hello.oldest, hello.newest, versions) else {
            let node = (*versions.start(), *versions.end());
            let fault = Fault::Version { module: (hello.oldest, hello.newest), node };
            // The one who waits may have stopped.
            drop(attached.send(Err(fault)));
            return Err(fault);
        };
        let features: Vec<String> =
            hello.features.into_iter().filter(|name| FEATURES.contains(&name.as_str())).collect();
        let has = |feature: &str| features.iter().any(|name| name == feature);
        let both = (has(HOOKS), has(LOOPBACK), has(RANGES));
        let said = (hello.module, hello.version, hello.methods);
        let inner = Inner::new(said, both, context.host());
        let (ticket, opened) = self.door.ticket(&inner);
        inner.push(FromHost::Welcome(Welcome {
            version,
            features,
            node_id: convert::of_node(self.door.node),
            ticket,
            frame: u32::try_from(FRAME_BYTES).unwrap_or(u32::MAX),
            calls: u32::try_from(CALLS).unwrap_or(u32::MAX),
            credit: CREDIT,
        }));
        self.belongs_to(Arc::clone(&inner))?;
        let sent: Frames = Box::pin(inner.frames());
        tokio::spawn(Arc::clone(&inner).follow(frames));
        tokio::spawn(async move {
            let outcome = tokio::select! {
                opened = timeout(PROVING, opened) => match opened {
                    Ok(Ok(())) => Ok(Attached::new(inner)),
                    _ => {
                        inner.end(Fault::HalfOpen);
                        Err(Fault::HalfOpen)
                    }
                },
                fault = inner.ended() => Err(fault),
            };
            // Nobody waits any more: the attachment ends with what is dropped here.
            drop(attached.send(outcome));
        });
        Ok(sent)
    }
}

#[tonic::async_trait]
impl Attachment for Connection {
    type AttachStream = Frames;

    async fn attach(&self, request: Request<Streaming<ModuleFrame>>) -> Result<Response<Frames>, Status> {
        self.welcome(request.into_inner()).await.map(Response::new).map_err(|fault| {
            tracing::warn!(fault = fault.code(), "a module did not attach: {fault}");
            match fault {
                Fault::Unproven => Status::unauthenticated(fault.code()),
                _ => Status::failed_precondition(fault.code()),
            }
        })
    }
}

fn is_bounded(hello: &Hello) -> bool {
    hello.module.len() <= NAME_BYTES
        && hello.version.len() <= NAME_BYTES
        && hello.version.bytes().all(|byte| (33..127).contains(&byte))
        && hello.summary.len() <= DETAIL_BYTES
        && hello.methods.len() <= PER_MODULE
        && hello.methods.iter().all(|method| method.len() <= DESCRIPTION_BYTES)
        && hello.features.len() <= FEATURES_MOST
        && hello.features.iter().all(|feature| feature.len() <= NAME_BYTES)
}

/// The newest version that both speak. A range that is none is spoken by nobody.
fn common(oldest: u32, newest: u32, spoken: &RangeInclusive<u32>) -> Option<u32> {
    let version = newest.min(*spoken.end());
    (oldest <= newest && version >= oldest && spoken.contains(&version)).then_some(version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_common_version_is_spoken() {
        let node = OLDEST..=NEWEST;
        assert_eq!(common(1, 1, &(1..=3)), Some(1), "N-2");
        assert_eq!(common(1, 2, &(1..=3)), Some(2), "N-1");
        assert_eq!(common(1, 1, &(2..=4)), None, "N-3");
        assert_eq!(common(2, 9, &(1..=3)), Some(3));
        assert_eq!(common(1, NEWEST + 5, &node), Some(NEWEST));
        assert_eq!(common(NEWEST + 1, NEWEST + 5, &node), None, "from the future");
        assert_eq!(common(0, 0, &node), None);
        assert_eq!(common(5, 1, &node), None, "a range that is none");
    }
}
