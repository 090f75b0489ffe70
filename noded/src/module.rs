//! The module host: which module answers which request, with what limits, and what a module may use of the node.
//!
//! Modules are called by the SDK's trait alone; nothing here knows what one does. Requests of peers come from the session
//! layer, requests of the operator from the admin service. Each call has a deadline and a place in a bounded table; what a
//! module answers, garbage included, becomes a response. The node's own module, `openred`, is the network layer's.

mod blobs;
mod host;
mod places;
pub(crate) mod ports;
mod space;
#[cfg(test)]
mod tests;
mod timers;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use openred_module::{Body, Caller, Context, Event, Instance, Method, ModuleError, Request, Response, Status};
use openred_proto::checked::session::{RequestHead, ResponseHead};
use openred_proto::id::NodeId;
use openred_proto::secret::Secret;

use crate::clock;
use crate::health::{Condition, Health};
use crate::store::{RowSeal, Store};
pub(crate) use blobs::{Disk, DiskThread};
use host::ModuleHost;
use places::Places;
use ports::PeerCaller;
use space::Space;
use timers::Timers;

/// A peer's call ends after this long. The head of the answer counts; a body may take longer.
const CALL_TIME: Duration = Duration::from_secs(60);
/// A call of the operator may wait for a whole file to arrive.
const OPERATOR_CALL_TIME: Duration = Duration::from_secs(24 * 3600);
/// An event's handler ends after this long.
const EVENT_TIME: Duration = Duration::from_secs(30);
/// A timer that found its module overrun comes again after this.
const TIMER_AGAIN: Duration = Duration::from_secs(1);
/// Largest body of the operator's or a peer's call that the host lets pass: routes have lower limits of their own.
const BODY_BYTES: u64 = 1 << 40;

/// A module in the host's table.
struct Loaded {
    instance: Arc<Instance>,
    context: Context,
    places: Places,
}

/// All modules of this node.
pub(crate) struct Modules {
    loaded: BTreeMap<&'static str, Loaded>,
    timers: Arc<Timers>,
}

/// What every module's host is made of.
#[derive(Clone)]
pub(crate) struct Parts {
    pub(crate) me: NodeId,
    pub(crate) store: Store,
    pub(crate) disk: Disk,
    pub(crate) peers: Arc<dyn PeerCaller>,
    pub(crate) health: Arc<Health>,
}

impl Modules {
    /// A host for `modules`, each with the key that seals its rows. Nothing runs before [`Modules::start`].
    pub(crate) fn new(parts: &Parts, modules: Vec<(Instance, Secret<32>)>) -> Arc<Self> {
        let timers = Arc::new(Timers::default());
        let space = Space::new(Arc::clone(&parts.health));
        let load = |(instance, key): (Instance, Secret<32>)| {
            let id = instance.manifest().id;
            let host = ModuleHost::new(parts, id, RowSeal::new(id, &key), Arc::clone(&timers), Arc::clone(&space));
            let context = Context::new(Arc::new(host));
            (id, Loaded { instance: Arc::new(instance), context, places: Places::default() })
        };
        let loaded = modules.into_iter().map(load).collect();
        Arc::new(Self { loaded, timers })
    }

    /// Starts every module; one that cannot start answers nothing and is named by a condition.
    pub(crate) async fn start(&self, health: &Health) {
        for (id, module) in &self.loaded {
            if let Err(error) = module.instance.start(module.context.clone()).await {
                health.raise(Condition::ModuleDown, clock::now(), format!("{id}: {error}"));
                module.places.close();
            }
        }
    }

    /// Runs the modules' timers; never returns.
    pub(crate) async fn run_timers(self: Arc<Self>) {
        loop {
            let (module, timer) = self.timers.due().await;
            if !self.tell(module, Event::Timer(timer)) {
                // A lost timer would be work that nobody does: it waits until the module has a place.
                self.timers.set(module, timer, clock::now().plus(TIMER_AGAIN));
            }
        }
    }

    /// Tells every module of an event.
    pub(crate) fn tell_all(&self, event: Event) {
        self.loaded.keys().for_each(|module| {
            self.tell(module, event);
        });
    }

    /// False when so many events wait for a module that this one was dropped.
    fn tell(&self, module: &str, event: Event) -> bool {
        let Some(module) = self.loaded.get(module) else { return true };
        let Some(waiting) = module.places.event() else {
            tracing::warn!(module = module.instance.manifest().id, "too many events wait: one was dropped");
            return false;
        };
        let (instance, context) = (Arc::clone(&module.instance), module.context.clone());
        tokio::spawn(async move {
            let Some(_place) = waiting.place().await else { return };
            if tokio::time::timeout(EVENT_TIME, instance.event(context, event)).await.is_err() {
                tracing::warn!(module = instance.manifest().id, "an event's handler took too long");
            }
        });
        true
    }

    /// Names and versions, for `status`.
    pub(crate) fn names(&self) -> Vec<String> {
        let name =
            |module: &Loaded| format!("{} {}", module.instance.manifest().id, module.instance.manifest().version);
        self.loaded.values().map(name).collect()
    }

    /// A call of the operator.
    pub(crate) async fn operator_call(&self, head: RequestHead, body: Body) -> (ResponseHead, Body) {
        self.call(Caller::Operator, head, body).await
    }

    async fn call(&self, caller: Caller, head: RequestHead, body: Body) -> (ResponseHead, Body) {
        let Some(module) = self.loaded.get(head.module.as_str()) else {
            return refuse(ModuleError::not_found("no-such-module", "this node serves no such module"));
        };
        let Some(_place) = module.places.call(caller) else {
            return refuse(if module.places.is_closed() {
                ModuleError::new(Status::Unavailable, "module-down", "the module did not start")
            } else {
                ModuleError::new(Status::TooMany, "module-busy", "the module has too many calls in flight")
            });
        };
        let most = if caller == Caller::Operator { OPERATOR_CALL_TIME } else { CALL_TIME };
        let limit = match head.deadline_millis {
            0 => most,
            millis => Duration::from_millis(millis).min(most),
        };
        let request = match to_request(caller, head, body) {
            Ok(request) => request,
            Err(refused) => return refuse(refused),
        };
        match tokio::time::timeout(limit, module.instance.dispatch(module.context.clone(), request)).await {
            Ok(response) => answer(response),
            Err(_) => {
                refuse(ModuleError::new(Status::TimedOut, "module-timed-out", "the module did not answer in time"))
            }
        }
    }
}

#[async_trait]
impl crate::p2p::ports::Dispatch for Modules {
    async fn dispatch(&self, peer: NodeId, head: RequestHead, body: Body) -> (ResponseHead, Body) {
        self.call(Caller::Peer(peer), head, body).await
    }
}

fn to_request(caller: Caller, head: RequestHead, body: Body) -> Result<Request, ModuleError> {
    let method = match head.method.as_str() {
        "GET" => Method::Get,
        "POST" => Method::Post,
        _ => return Err(ModuleError::new(Status::MethodNotAllowed, "no-such-method", "modules answer GET and POST")),
    };
    let idempotency_key = match head.idempotency_key.as_slice() {
        [] => None,
        key => Some(key.try_into().map_err(|_| ModuleError::bad_request("bad-idempotency-key", "not of 16 bytes"))?),
    };
    let mut request = Request::new(caller, method, head.path).with_body(&head.content_type, body.limited(BODY_BYTES));
    request.length = head.length.or(request.length);
    request.deadline = (head.deadline_millis > 0).then(|| clock::now().0.saturating_add(head.deadline_millis));
    request.idempotency_key = idempotency_key;
    Ok(request)
}

fn answer(response: Response) -> (ResponseHead, Body) {
    let head = ResponseHead {
        status: response.status.code(),
        content_type: response.content_type,
        length: response.length.or(response.body.known_length()),
    };
    (head, response.body)
}

fn refuse(error: ModuleError) -> (ResponseHead, Body) {
    answer(Response::from(error))
}

/// Opens the blobs' folder and starts the disk's thread.
///
/// # Errors
/// When the folder cannot be made.
pub(crate) fn open_disk(state: &Path, most_bytes: u64) -> std::io::Result<(Disk, DiskThread)> {
    Disk::open(&state.join("blobs"), most_bytes)
}
