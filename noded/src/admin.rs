//! The operator's service, `openred.admin.v1.Node`, on the AF_UNIX listener that the supervisor handed in.
//!
//! It has a thread and a runtime of its own, so that `status` answers while the node is overrun; what has to run beside
//! sessions is sent to the node's runtime. Authority is the listener: it lies in a directory that only the operator can enter.

mod calls;
mod contacts;
mod operate;
mod reply;

use std::collections::HashMap;
use std::os::unix::net::UnixListener;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;

use futures_util::Stream;
use openred_module::Body;
use openred_proto::admin::node_server::{Node as Contract, NodeServer};
use openred_proto::admin::{
    AcceptLinkRequest, ConfirmContactRequest, Contact, ContactRequest, CopyDatabaseRequest, DatabaseCopy,
    DecideMethodRequest, DecidePeerRequest, Hooks, Link, LinkSelector, Links, ListGenerationsRequest, ListHooksRequest,
    ListLinksRequest, ListMethodsRequest, ListPeersRequest, Methods, ModuleGenerations, ModuleRequestFrame,
    ModuleResponseFrame, NodeStatus, Peer, PeerSelector, Peers, PingReport, PingRequest, RequestLinkRequest,
    SessionProof, SessionProofs, StatusRequest, SwapModuleRequest, SyncedLinks,
};
use openred_proto::checked::session::RequestHead;
use openred_proto::id::NodeId;
use openred_proto::method::{Method, Schedule};
use serde::Deserialize;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::task::AbortOnDropHandle;
use tonic::{Request, Response, Status};

use crate::link::queue::{Asked, Request as Queued};
use crate::link::state::{Link as HeldLink, LinkState};
use crate::module::Want;
use crate::node::Node;
use crate::p2p::PingPlan;
use crate::store::{COPY, KnownPeer};
pub(crate) use operate::Operations;
use reply::{link_status, peer_status, queued_status, refuse, withdrawn_status};

/// Longest wait for a peer's receipt that one call may ask for.
const LONGEST_WAIT: Duration = Duration::from_secs(600);
/// After the receipt the first handshake is usually there at once: it is waited for this long.
const FIRST_HANDSHAKE: Duration = Duration::from_secs(2);
/// The module that knows which messages wait.
const MESSAGING: &str = "messaging";
/// Longest list of conversations that is read: thousands of peers.
const CONVERSATIONS_BYTES: usize = 4 << 20;
/// How long calls that run may take when the node stops.
const DRAIN: Duration = Duration::from_secs(3);

type Outcome<T> = Result<Response<T>, Status>;
type Frames<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Serves `listener` on a thread of its own until `stop` turns true. `main` is the node's runtime.
///
/// # Errors
/// When the thread or its runtime cannot be had.
pub(crate) fn start(
    listener: UnixListener,
    node: Arc<Node>,
    main: Handle,
    stop: watch::Receiver<bool>,
) -> std::io::Result<JoinHandle<()>> {
    listener.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new().name("admin".to_owned()).spawn(move || {
        runtime.block_on(serve(listener, Service { node, main }, stop));
        // Streams that the operator left open end with the process.
        runtime.shutdown_background();
    })
}

async fn serve(listener: UnixListener, service: Service, mut stop: watch::Receiver<bool>) {
    let listener = match tokio::net::UnixListener::from_std(listener) {
        Ok(listener) => UnixListenerStream::new(listener),
        Err(error) => return tracing::error!(%error, "the admin socket cannot be served"),
    };
    let mut stopping = stop.clone();
    let asked = async move {
        let _ = stopping.wait_for(|stop| *stop).await;
    };
    // Calls that run may end: an operator whose message was taken must not read that it failed.
    let serving = tonic::transport::Server::builder()
        .max_frame_size(openred_proto::limits::LOCAL_HTTP2_FRAME)
        .add_service(NodeServer::new(service))
        .serve_with_incoming_shutdown(listener, asked);
    let cut = async {
        let _ = stop.wait_for(|stop| *stop).await;
        tokio::time::sleep(DRAIN).await;
    };
    tokio::select! {
        served = serving => if let Err(error) = served {
            tracing::error!(%error, "the admin service ended");
        },
        () = cut => tracing::warn!("calls of the operator did not end in time and were cut"),
    }
}

/// The service; cheap to clone.
#[derive(Clone)]
struct Service {
    node: Arc<Node>,
    main: Handle,
}

impl Service {
    /// Runs `work` beside the node's sessions.
    async fn on_main<T, F>(&self, work: F) -> Result<T, Status>
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        self.main.spawn(work).await.map_err(|_| Status::unavailable("the node is stopping"))
    }

    /// Messages that wait for each peer, as the messaging module counts them. A module that is down has nothing to say.
    async fn queued(&self) -> HashMap<String, u64> {
        #[derive(Deserialize)]
        struct Document {
            conversations: Vec<Conversation>,
        }
        #[derive(Deserialize)]
        struct Conversation {
            peer: String,
            waiting: u64,
        }
        let head = RequestHead {
            module: MESSAGING.into(),
            method: "GET".into(),
            path: "/conversations".into(),
            ..RequestHead::default()
        };
        let modules = Arc::clone(&self.node.modules);
        let asking = self.on_main(async move {
            let (_, body) = modules.operator_call(head, Body::empty()).await;
            body.collect(CONVERSATIONS_BYTES).await
        });
        let Ok(Ok(document)) = asking.await else { return HashMap::new() };
        let document = serde_json::from_slice::<Document>(&document).unwrap_or(Document { conversations: Vec::new() });
        document.conversations.into_iter().map(|conversation| (conversation.peer, conversation.waiting)).collect()
    }

    /// What both sides of sessions with `peer` signed, newest first.
    async fn proofs(&self, peer: NodeId) -> Result<Vec<SessionProof>, Status> {
        let kept = self.node.store.proofs(peer).await.map_err(|error| refuse(&error.into()))?;
        Ok(kept.iter().filter_map(reply::session_proof).collect())
    }

    async fn peer(&self, peer: NodeId) -> Result<Peer, Status> {
        let known = self.node.store.peer(peer).await.map_err(|error| refuse(&error.into()))?;
        if known.is_none() && self.node.links.of_peer(&peer).is_none() {
            return Err(reply::not_found("peer.unknown", "no such peer; see `openred peers list`"));
        }
        Ok(peer_status(&self.node, peer, known.as_ref(), &self.queued().await))
    }
}

fn parse_peer(text: &str) -> Result<NodeId, Status> {
    text.parse().map_err(|error: openred_proto::error::WireError| reply::invalid("peer.malformed", &error.to_string()))
}

#[tonic::async_trait]
impl Contract for Service {
    async fn get_status(&self, _: Request<StatusRequest>) -> Outcome<NodeStatus> {
        let node = &self.node;
        let (live, waiting) = node.links.counts();
        Ok(Response::new(NodeStatus {
            node_id: node.me.to_string(),
            name: node.config.name.clone(),
            endpoints: node.endpoints.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started_at: node.started_at.0,
            directories: node.directories.status(),
            links: u32::try_from(live).unwrap_or(u32::MAX),
            pending: u32::try_from(waiting).unwrap_or(u32::MAX),
            sessions: u32::try_from(node.network.sessions().len()).unwrap_or(u32::MAX),
            modules: node.modules.names(),
            module_status: node.modules.status(),
            conditions: node.health.report(),
            cryptod_operations: node.operations.load(Ordering::Relaxed),
        }))
    }

    async fn request_link(&self, request: Request<RequestLinkRequest>) -> Outcome<Link> {
        let request = request.into_inner();
        let peer = parse_peer(&request.peer)?;
        let life = contacts::life(request.life_seconds)?;
        let wait = Duration::from_millis(request.wait_millis).min(LONGEST_WAIT);
        let node = Arc::clone(&self.node);
        let asking = self.on_main(async move {
            let until = tokio::time::Instant::now() + wait;
            let link = match node.links.ask(peer, life).await? {
                Asked::Link(link) => *link,
                Asked::Queued(request) => match node.links.wait_queued(&request, wait).await {
                    Ok(link) => link,
                    Err(request) => return Ok(queued_status(&request)),
                },
            };
            if !wait.is_zero() {
                let left = until.saturating_duration_since(tokio::time::Instant::now());
                node.links.wait_while(link.id(), LinkState::Offered, left).await;
                node.links.wait_while(link.id(), LinkState::Pending, wait.min(FIRST_HANDSHAKE)).await;
            }
            Ok(link_status(&node, &node.links.of_peer(&peer).unwrap_or(link)))
        });
        asking.await?.map(Response::new).map_err(|error| refuse(&error))
    }

    async fn accept_link(&self, request: Request<AcceptLinkRequest>) -> Outcome<Link> {
        let AcceptLinkRequest { peer: text, words } = request.into_inner();
        let (node, asked) = (Arc::clone(&self.node), text.clone());
        let accepting = self.on_main(async move { contacts::accept(&node, &asked, &words).await });
        if let Some(link) = accepting.await?? {
            return Ok(Response::new(link));
        }
        let (node, asked) = (Arc::clone(&self.node), text.clone());
        match self.on_main(async move { node.links.approve(&asked).await }).await? {
            Ok(Some(link)) => Ok(Response::new(link_status(&self.node, &link))),
            // Nothing waits; the operator's yes is kept for the peer's next offer.
            Ok(None) => Ok(Response::new(Link { peer: text, state: "approved".to_owned(), ..Link::default() })),
            Err(error) => Err(refuse(&error)),
        }
    }

    async fn list_links(&self, request: Request<ListLinksRequest>) -> Outcome<Links> {
        let all = request.into_inner().all;
        let links = self.node.links.all().into_iter().filter(|link| all || !link.state.is_over());
        let links = links.map(|link| link_status(&self.node, &link));
        let links = links.chain(self.node.links.all_queued().iter().map(queued_status)).collect();
        Ok(Response::new(Links { links, contacts: contacts::all(&self.node) }))
    }

    async fn contact_peer(&self, request: Request<ContactRequest>) -> Outcome<Contact> {
        let (node, request) = (Arc::clone(&self.node), request.into_inner());
        self.on_main(contacts::contact(node, request)).await?.map(Response::new)
    }

    async fn confirm_contact(&self, request: Request<ConfirmContactRequest>) -> Outcome<Link> {
        let (node, request) = (Arc::clone(&self.node), request.into_inner());
        self.on_main(contacts::confirm(node, request)).await?.map(Response::new)
    }

    async fn drop_contact(&self, request: Request<PeerSelector>) -> Outcome<Contact> {
        contacts::drop_contacts(&self.node, &request.into_inner().peer).map(Response::new)
    }

    async fn show_link(&self, request: Request<LinkSelector>) -> Outcome<Link> {
        let text = request.into_inner().link;
        if let Some(queued) = self.node.links.queued(&text) {
            return Ok(Response::new(queued_status(&queued)));
        }
        let link = self.node.links.select(&text).map_err(|error| refuse(&error))?;
        let proofs = self.proofs(link.peer()).await?;
        let signed_sessions = u32::try_from(proofs.len()).unwrap_or(u32::MAX);
        let signed_at = proofs.first().map_or(0, |newest| newest.signed_at);
        Ok(Response::new(Link { signed_sessions, signed_at, ..link_status(&self.node, &link) }))
    }

    async fn list_proofs(&self, request: Request<PeerSelector>) -> Outcome<SessionProofs> {
        let peer = parse_peer(&request.into_inner().peer)?;
        Ok(Response::new(SessionProofs { proofs: self.proofs(peer).await? }))
    }

    async fn revoke_link(&self, request: Request<LinkSelector>) -> Outcome<Link> {
        let (node, text) = (Arc::clone(&self.node), request.into_inner().link);
        let withdrawn = self.on_main(async move { node.links.take_back(&text).await.map(|request| (request, text)) });
        let text = match withdrawn.await?.map_err(|error| refuse(&error))? {
            (Some(request), _) => return Ok(Response::new(withdrawn_status(&request))),
            (None, text) => text,
        };
        let link = self.node.links.select(&text).map_err(|error| refuse(&error))?;
        let node = Arc::clone(&self.node);
        let revoked = self.on_main(async move { node.links.revoke(link.id()).await }).await?;
        revoked.map(|link| Response::new(link_status(&self.node, &link))).map_err(|error| refuse(&error))
    }

    async fn refuse_offer(&self, request: Request<LinkSelector>) -> Outcome<Link> {
        let text = request.into_inner().link;
        let node = Arc::clone(&self.node);
        let refused = self.on_main(async move { node.links.refuse_offer(&text).await }).await?;
        refused.map(|link| Response::new(link_status(&self.node, &link))).map_err(|error| refuse(&error))
    }

    async fn sync_links(&self, request: Request<PeerSelector>) -> Outcome<SyncedLinks> {
        let peer = parse_peer(&request.into_inner().peer)?;
        let node = Arc::clone(&self.node);
        let synced = self.on_main(async move { node.links.sync(peer).await.map(|mended| (mended, node)) }).await?;
        let (mended, node) = synced.map_err(|error| refuse(&error))?;
        let peer = node.links.current(&peer);
        let of_peer = node.links.all().into_iter().filter(|link| link.peer() == peer && !link.state.is_over());
        let links = of_peer.map(|link| link_status(&self.node, &link)).collect();
        Ok(Response::new(SyncedLinks { mended: u32::try_from(mended).unwrap_or(u32::MAX), links }))
    }

    async fn list_hooks(&self, _: Request<ListHooksRequest>) -> Outcome<Hooks> {
        Ok(Response::new(self.node.modules.hooks.report()))
    }

    async fn list_methods(&self, _: Request<ListMethodsRequest>) -> Outcome<Methods> {
        Ok(Response::new(reply::methods_status(&self.node)))
    }

    async fn decide_method(&self, request: Request<DecideMethodRequest>) -> Outcome<Methods> {
        let DecideMethodRequest { method, allow, schedule } = request.into_inner();
        let unknown =
            |_| reply::invalid("method.unknown", "alpha, beta, gamma, delta or MODULE/METHOD; hourly, daily or seeded");
        // A module's method has its module's name before its own.
        let (described, method) = if method.contains('/') { (method, String::new()) } else { (String::new(), method) };
        let method = (!method.is_empty()).then(|| method.parse::<Method>()).transpose().map_err(unknown)?;
        let schedule = (!schedule.is_empty()).then(|| schedule.parse::<Schedule>()).transpose().map_err(unknown)?;
        let node = Arc::clone(&self.node);
        let decided = self.on_main(async move {
            if let Some(method) = method {
                node.links.decide_method(method, allow).await?;
            }
            if !described.is_empty() {
                node.links.decide_described(&described, allow).await?;
            }
            match schedule {
                Some(schedule) => node.links.decide_schedule(schedule).await,
                None => Ok(()),
            }
        });
        decided.await?.map_err(|error| refuse(&error))?;
        Ok(Response::new(reply::methods_status(&self.node)))
    }

    async fn list_peers(&self, _: Request<ListPeersRequest>) -> Outcome<Peers> {
        let known = self.node.store.peers().await.map_err(|error| refuse(&error.into()))?;
        let queued = self.queued().await;
        let shown = |known: &KnownPeer| peer_status(&self.node, known.node, Some(known), &queued);
        let mut peers: Vec<Peer> = known.iter().map(shown).collect();
        // Offers that wait come from nodes of which nothing else is known yet.
        for link in self.node.links.all() {
            let id = link.peer().to_string();
            if !peers.iter().any(|peer| peer.node_id == id) {
                peers.push(peer_status(&self.node, link.peer(), None, &queued));
            }
        }
        Ok(Response::new(Peers { peers }))
    }

    async fn show_peer(&self, request: Request<PeerSelector>) -> Outcome<Peer> {
        let peer = parse_peer(&request.into_inner().peer)?;
        Ok(Response::new(self.peer(peer).await?))
    }

    async fn forget_peer(&self, request: Request<PeerSelector>) -> Outcome<Peer> {
        let peer = parse_peer(&request.into_inner().peer)?;
        if self.node.links.of_peer(&peer).is_some_and(|link| !link.state.is_over()) {
            return Err(reply::conflict("peer.linked", "there is a link with this peer; revoke it first"));
        }
        if self.node.links.queued(&peer.to_string()).is_some() {
            return Err(reply::conflict("peer.linked", "a link with this peer is asked for; revoke it first"));
        }
        let shown = self.peer(peer).await?;
        self.node.store.forget_peer(peer).await.map_err(|error| refuse(&error.into()))?;
        self.node.directories.forget(&peer);
        Ok(Response::new(shown))
    }

    async fn decide_peer(&self, request: Request<DecidePeerRequest>) -> Outcome<Peer> {
        let DecidePeerRequest { peer, allow } = request.into_inner();
        let peer = parse_peer(&peer)?;
        let node = Arc::clone(&self.node);
        let decided = self.on_main(async move { node.links.decide_peer(peer, allow).await }).await?;
        decided.map_err(|error| refuse(&error))?;
        if !allow {
            self.node.network.end_contacts(&peer);
        }
        Ok(Response::new(self.peer(self.node.links.current(&peer)).await?))
    }

    async fn copy_database(&self, _: Request<CopyDatabaseRequest>) -> Outcome<DatabaseCopy> {
        let bytes = self.node.store.copy().await.map_err(|error| refuse(&error.into()))?;
        Ok(Response::new(DatabaseCopy { name: COPY.to_owned(), bytes }))
    }

    type PingStream = Frames<PingReport>;

    async fn ping(&self, request: Request<PingRequest>) -> Outcome<Self::PingStream> {
        let request = request.into_inner();
        let plan = PingPlan {
            peer: self.node.links.current(&parse_peer(&request.peer)?),
            count: request.count,
            concurrency: request.concurrency,
            size: request.size,
            fresh: request.fresh,
            bulk_bytes: request.bulk_bytes,
            module: request.module,
        };
        let network = Arc::clone(&self.node.network);
        // A measurement ends with its caller; a change that was begun does not.
        let pinging = AbortOnDropHandle::new(self.main.spawn(async move { network.ping(plan).await }));
        let outcome = pinging.await.map_err(|_| Status::unavailable("the node is stopping"))?;
        Ok(Response::new(Box::pin(tokio_stream::once(Ok(reply::ping_report(outcome))))))
    }

    async fn swap_module(&self, request: Request<SwapModuleRequest>) -> Outcome<ModuleGenerations> {
        let SwapModuleRequest { module, back, snapshot, version } = request.into_inner();
        let want = match version {
            _ if back => Want::Back { snapshot },
            version if version.is_empty() => Want::Again,
            version => Want::Await(version),
        };
        let (modules, asked) = (Arc::clone(&self.node.modules), module.clone());
        let swapped = self.on_main(async move { modules.swap(asked, want).await }).await?;
        swapped.map_err(|error| reply::swap_refused(&error))?;
        Ok(Response::new(reply::generations(self.node.modules.generations(), &module)))
    }

    async fn list_generations(&self, request: Request<ListGenerationsRequest>) -> Outcome<ModuleGenerations> {
        let module = request.into_inner().module;
        Ok(Response::new(reply::generations(self.node.modules.generations(), &module)))
    }

    type CallModuleStream = Frames<ModuleResponseFrame>;

    async fn call_module(
        &self,
        request: Request<tonic::Streaming<ModuleRequestFrame>>,
    ) -> Outcome<Self::CallModuleStream> {
        let (head, body) = calls::take_request(request.into_inner()).await?;
        let modules = Arc::clone(&self.node.modules);
        let (answer, costs) = self.on_main(async move { modules.operator_call_costed(head, body).await }).await?;
        Ok(Response::new(calls::give_response(answer, costs)))
    }
}

impl crate::link::Links {
    /// Waits until a link has left `state`, at most `most`.
    pub(crate) async fn wait_while(&self, link: openred_proto::id::LinkId, state: LinkState, most: Duration) {
        let leaving = async {
            loop {
                let changed = self.changed.notified();
                if self.state_of_link(&link) != Some(state) {
                    return;
                }
                changed.await;
            }
        };
        // Time over is the answer, too: the caller is told the state as it stands.
        let _ = tokio::time::timeout(most, leaving).await;
    }

    /// Waits until there is a link that was asked for, at most `most`; else the request as it stands then.
    async fn wait_queued(&self, request: &Queued, most: Duration) -> Result<HeldLink, Queued> {
        let peer = request.peer.to_string();
        let leaving = async {
            loop {
                let changed = self.changed.notified();
                if self.queued(&peer).is_none() {
                    return;
                }
                changed.await;
            }
        };
        let _ = tokio::time::timeout(most, leaving).await;
        match self.queued(&peer) {
            Some(request) => Err(request),
            None => self.select(&peer).map_err(|_| *request),
        }
    }
}
