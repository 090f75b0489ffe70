//! The module host: which module answers which request, with what limits, and what a module may use of the node.
//!
//! Each module is a process of its own, which the supervisor starts (`supervisor`) when its life here wants it (`lives`), and which
//! attaches through the SDK's door; nothing here knows what one does. Requests of peers come from the session layer, requests of the
//! operator from the admin service. Each call has a deadline and a place in a bounded table; what a module answers, garbage
//! included, becomes a response. The node's own module, `openred`, is the network layer's.

mod beside;
mod blobs;
mod built_in;
mod callee;
mod egress;
mod gates;
mod granted;
mod host;
pub(crate) mod installed;
mod keeper;
mod lives;
mod loopback;
mod meter;
mod methods;
mod places;
pub(crate) mod ports;
mod rate;
mod seals;
mod slot;
mod space;
mod supervisor;
mod swap;
mod swaps;
mod terms;
#[cfg(test)]
mod tests;
mod timers;
mod view;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, OnceLock, PoisonError, RwLock, Weak};
use std::time::Duration;

use async_trait::async_trait;
use openred_module::manifest::{Manifest, PermissionName};
use openred_module::remote::Door;
use openred_module::{Body, BodyError, Caller, Context, Event, Method, ModuleError, Request, Response, Status};
use openred_proto::admin::ModuleStatus;
use openred_proto::checked::session::{RequestHead, ResponseHead};
use openred_proto::id::NodeId;
use openred_proto::secret::Secret;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout, timeout_at};

use crate::clock;
use crate::health::Health;
use crate::hooks::{Chain, Costs, Hooks, Spec};
use crate::store::{RowSeal, Store};
pub(crate) use blobs::{Disk, DiskThread};
pub(crate) use built_in::{AUTH, BUILT_IN, BuiltIn, MONITOR};
use callee::{Asked, Callee};
pub(crate) use egress::Names;
use gates::Gates;
use granted::Granted;
pub(crate) use granted::{USED, Used};
use host::{ModuleHost, Shared};
use installed::SettingsOf;
pub(crate) use installed::Wanted;
pub(crate) use keeper::{Source, built_in};
pub(crate) use loopback::Loopback;
use meter::Meter;
pub(crate) use methods::ModuleMethods;
use places::Places;
use ports::{ModuleKeys, PeerCaller};
use rate::Bounds;
use space::Space;
pub(crate) use swap::{Shown, Want};
pub(crate) use swaps::SwapError;
use swaps::{Hosts, Nudge, Reach};
use timers::Timers;
pub(crate) use view::{NodeView, Operate, View};

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
    id: &'static str,
    callee: Callee,
    hosts: Hosts,
    places: Arc<Places>,
    meter: Arc<Meter>,
    /// What its active generation is of. None for those that tests link.
    wanted: Option<Wanted>,
    /// The operator's settings for it, as TOML.
    settings: Arc<watch::Sender<String>>,
    /// Of those that were installed.
    gates: Option<Gates>,
    life: Arc<Reach>,
}

impl Loaded {
    /// Notes what a call cost, and whose it was where it went wrong.
    fn called(&self, route: &str, took: Duration, response: &Response) {
        let failed = response.status.code() >= 500;
        self.meter.called(took, failed);
        if failed {
            let route = crate::cli::one_line(route);
            tracing::debug!(module = self.id, route, status = response.status.code(), "a call went wrong");
        }
    }
}

/// Where modules reach this process, and the channel on which they are asked for.
pub(crate) struct Sockets {
    pub(crate) listener: UnixListener,
    pub(crate) supervisor: UnixStream,
    /// Listeners on this machine's loopback that serve modules.
    pub(crate) loopback: Vec<Loopback>,
}

/// All modules of this node.
pub(crate) struct Modules {
    loaded: RwLock<BTreeMap<&'static str, Arc<Loaded>>>,
    parts: Parts,
    timers: Arc<Timers>,
    space: Arc<Space>,
    used: Arc<Used>,
    door: Arc<Door>,
    pub(crate) hooks: Arc<Hooks>,
    hook_order: Vec<String>,
    /// None in tests, whose modules are linked.
    methods: Option<Arc<ModuleMethods>>,
    /// Installed modules that shall run.
    expected: RwLock<Vec<Wanted>>,
    /// Installed versions that may be gone back to.
    earlier: RwLock<Vec<Wanted>>,
    /// The operator's settings for each module and version.
    settings: RwLock<SettingsOf>,
    /// The way to the keeper of their lives.
    nudges: OnceLock<mpsc::Sender<Nudge>>,
}

/// The table of modules, for those in it.
pub(crate) type Beside = Arc<OnceLock<Weak<Modules>>>;

/// What every module's host is made of.
#[derive(Clone)]
pub(crate) struct Parts {
    pub(crate) me: NodeId,
    pub(crate) store: Store,
    pub(crate) disk: Disk,
    pub(crate) peers: Arc<dyn PeerCaller>,
    pub(crate) keys: Arc<dyn ModuleKeys>,
    /// Where a module finds the others; filled when they are all there.
    pub(crate) beside: Beside,
    pub(crate) health: Arc<Health>,
    /// Where modules' connections may lead.
    pub(crate) names: Arc<Names>,
    /// The operator's order of hooks.
    pub(crate) hook_order: Vec<String>,
    pub(crate) view: Arc<View>,
}

impl Modules {
    /// A host for these modules, each with the key that seals its rows. Nothing runs before [`Modules::start`].
    pub(crate) fn new(
        parts: Parts,
        used: Arc<Used>,
        modules: Vec<(Wanted, Secret<32>)>,
        methods: Arc<ModuleMethods>,
    ) -> Arc<Self> {
        let empty = Self::empty(parts, used, Some(methods));
        modules.into_iter().for_each(|(wanted, key)| drop(empty.load(wanted, &key)));
        empty.into_shared()
    }

    /// From here on modules find each other.
    fn into_shared(self) -> Arc<Self> {
        let modules = Arc::new(self);
        // Once, here: nothing runs before.
        let _ = modules.parts.beside.set(Arc::downgrade(&modules));
        modules
    }

    fn empty(parts: Parts, used: Arc<Used>, methods: Option<Arc<ModuleMethods>>) -> Self {
        let space = Space::new(Arc::clone(&parts.health));
        let hooks = Hooks::new(&parts.health);
        let (door, hook_order) = (Door::new(parts.me), parts.hook_order.clone());
        let (loaded, expected, earlier, settings) = Default::default();
        let (timers, nudges) = (Arc::default(), OnceLock::new());
        Self {
            loaded,
            parts,
            timers,
            space,
            used,
            door,
            hooks,
            hook_order,
            methods,
            expected,
            earlier,
            settings,
            nudges,
        }
    }

    /// From now on the hooks of the modules that are here are asked, those of them that were granted. So are those of one that shall be here and is
    /// not yet: they fail, and so close what they are to close.
    pub(crate) fn set_granted_hooks(&self) {
        let granted = |wanted: &Wanted| {
            let mut manifest = (*wanted.manifest).clone();
            manifest.hooks.retain(|hook| wanted.granted.includes(PermissionName::Hook, &hook.entry()));
            manifest
        };
        let all = self.all();
        let expected = self.expected.read().unwrap_or_else(PoisonError::into_inner).clone();
        let expected = expected.iter().filter(|wanted| all.iter().all(|module| module.id != wanted.id));
        let manifests: Vec<Manifest> =
            all.iter().filter_map(|module| module.wanted.as_ref()).chain(expected).map(granted).collect();
        self.set_hooks(&manifests.iter().collect::<Vec<_>>());
    }

    /// From now on the hooks of these manifests are asked; one whose module is not here has failed before it begins.
    fn set_hooks(&self, manifests: &[&Manifest]) {
        let specs = manifests
            .iter()
            .flat_map(|manifest| manifest.hooks.iter().map(|hook| Spec::of(manifest.id.as_str(), hook)));
        let asked = |spec: Spec| {
            let (callee, places) = match self.get(&spec.module) {
                Some(module) => (module.callee.clone(), Arc::clone(&module.places)),
                None => (Callee::Process(Arc::default()), Arc::default()),
            };
            (spec, Arc::new(Asked { callee, places }) as _)
        };
        self.hooks.set(specs.map(asked).collect(), &self.hook_order);
    }

    /// Puts a module into the table; calls find it from here on.
    fn load(&self, wanted: Wanted, key: &Secret<32>) -> Arc<Loaded> {
        let (id, hosts) = (wanted.id, self.hosts(wanted.id, key));
        let callee = Callee::Process(Arc::default());
        let gates = self.gates(&wanted);
        let (places, meter, settings, life) = (Arc::default(), Arc::default(), Arc::default(), Arc::default());
        self.put(Loaded { id, callee, hosts, places, meter, wanted: Some(wanted), settings, gates, life })
    }

    /// The gates of what was installed. What comes with the node is part of it: its own routes are its gates.
    fn gates(&self, wanted: &Wanted) -> Option<Gates> {
        let is_ours = BUILT_IN.iter().any(|ours| ours.id == wanted.id);
        (!is_ours).then(|| Gates::new(Arc::clone(&wanted.manifest), self.granted(wanted)))
    }

    fn granted(&self, wanted: &Wanted) -> Arc<Granted> {
        let codes = wanted.manifest.audit.keys().map(ToString::to_string).collect();
        Granted::with_codes(wanted.id, wanted.granted.clone(), codes, &self.used)
    }

    fn hosts(&self, id: &'static str, key: &Secret<32>) -> Hosts {
        let (parts, hooks) = (self.parts.clone(), Arc::clone(&self.hooks));
        let (timers, space) = (Arc::clone(&self.timers), Arc::clone(&self.space));
        let (bounds, taken_out) = (Arc::new(Bounds::new(Instant::now().into_std())), Arc::default());
        let disk = self.parts.disk.shared();
        let shared = Shared { disk, timers, space, hooks, bounds, taken_out: Arc::clone(&taken_out) };
        let make =
            move |pen, granted| Context::new(Arc::new(ModuleHost::new(&parts, id, pen, shared.clone(), granted)));
        Hosts { seal: Arc::new(RowSeal::new(id, key)), make: Arc::new(make), taken_out }
    }

    fn put(&self, loaded: Loaded) -> Arc<Loaded> {
        let (id, loaded) = (loaded.id, Arc::new(loaded));
        self.loaded.write().unwrap_or_else(PoisonError::into_inner).insert(id, Arc::clone(&loaded));
        loaded
    }

    fn get(&self, id: &str) -> Option<Arc<Loaded>> {
        self.loaded.read().unwrap_or_else(PoisonError::into_inner).get(id).cloned()
    }

    fn all(&self) -> Vec<Arc<Loaded>> {
        self.loaded.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
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
        self.all().iter().for_each(|module| {
            self.tell(module.id, event);
        });
    }

    /// False when so many events wait for a module that this one was dropped.
    fn tell(&self, module: &str, event: Event) -> bool {
        let Some(module) = self.get(module) else { return true };
        let id = module.id;
        let Some(waiting) = module.places.event() else {
            // A timer comes again, and a module may set hundreds.
            match event {
                Event::Timer(_) => tracing::debug!(module = id, "too many events wait: a timer comes later"),
                _ => tracing::warn!(module = id, "too many events wait: one was dropped"),
            }
            return false;
        };
        let callee = module.callee.clone();
        tokio::spawn(async move {
            let Some(_place) = waiting.place().await else { return };
            if timeout(EVENT_TIME, callee.event(event)).await.is_err() {
                tracing::warn!(module = id, "an event's handler took too long");
            }
        });
        true
    }

    /// Names and versions, for `status`.
    pub(crate) fn names(&self) -> Vec<String> {
        let name = |module: &Arc<Loaded>| match module.callee.state() {
            (_, Some(version)) => format!("{} {version}", module.id),
            (state, None) => format!("{} ({state})", module.id),
        };
        self.all().iter().map(name).collect()
    }

    /// What each does and costs, for `status`.
    pub(crate) fn status(&self) -> Vec<ModuleStatus> {
        let read = |module: &Arc<Loaded>| {
            let (state, version) = module.callee.state();
            module.meter.read(module.id, state, version)
        };
        self.all().iter().map(read).collect()
    }

    /// The operator's operations, for modules that were granted them.
    pub(crate) fn operate_by(&self, operations: Arc<dyn Operate>) {
        self.parts.view.operate_by(operations);
    }

    /// A call of the operator.
    pub(crate) async fn operator_call(&self, head: RequestHead, body: Body) -> (ResponseHead, Body) {
        self.operator_call_costed(head, body).await.0
    }

    /// The same, and what it waited for. Peers are not told that: it would name who stands in their way, and how long each thinks.
    pub(crate) async fn operator_call_costed(&self, head: RequestHead, body: Body) -> ((ResponseHead, Body), Costs) {
        let mut chain = self.hooks.chain(None);
        let answer = self.call(Caller::Operator, head, body, &mut chain).await;
        (answer, chain.take_costs())
    }

    async fn call(&self, caller: Caller, head: RequestHead, body: Body, chain: &mut Chain) -> (ResponseHead, Body) {
        let Some(module) = self.get(&head.module) else {
            return refuse(ModuleError::not_found("no-such-module", "this node serves no such module"));
        };
        let id = module.id;
        let Some(place) = module.places.call(caller) else {
            module.meter.refused();
            let detail = format!("{id} has too many calls in flight");
            return refuse(ModuleError::new(Status::TooMany, "module-busy", detail));
        };
        let most = if caller == Caller::Operator { OPERATOR_CALL_TIME } else { CALL_TIME };
        let limit = match head.deadline_millis {
            0 => most,
            millis => Duration::from_millis(millis).min(most),
        };
        let request = to_request(caller, head, body);
        let passed = request.and_then(|request| match &module.gates {
            Some(gates) => gates.pass(request).map(|(request, route)| (request, Some((gates, route)))),
            None => Ok((request, None)),
        });
        let (request, gates) = match passed {
            Ok(passed) => passed,
            Err(refused) => return refuse(refused),
        };
        let (route, begun) = (format!("{:?} {}", request.method, request.path), Instant::now());
        let until = begun + limit;
        let hooked = timeout_at(until, chain.request(id, request)).await;
        // A hook may have made another call of it.
        let hooked = hooked.map(|hooked| match (hooked, gates) {
            (Ok(request), Some((gates, route))) => gates.pass_again(request, route).map_err(Response::from),
            (hooked, _) => hooked,
        });
        let response = match hooked {
            Ok(Ok(request)) => {
                let asked = Instant::now();
                let response = timeout_at(until, module.callee.dispatch(request)).await.unwrap_or_else(|_| {
                    let detail = format!("{id} did not answer {route} in time");
                    ModuleError::new(Status::TimedOut, "module-timed-out", detail).into()
                });
                module.called(&route, begun.elapsed(), &response);
                chain.waited(id, asked.elapsed());
                response
            }
            Ok(Err(response)) => response,
            // Hooks have times of their own: it is the body that did not come, which one of them is shown.
            Err(_) => return refuse(BodyError::TimedOut.into()),
        };
        match timeout_at(until, chain.response(response)).await {
            Ok(response) if caller == Caller::Operator => answer(response),
            Ok(response) => answer(place.until_read(response)),
            Err(_) => refuse(BodyError::TimedOut.into()),
        }
    }
}

#[async_trait]
impl crate::p2p::ports::Dispatch for Modules {
    async fn dispatch(&self, peer: NodeId, head: RequestHead, body: Body) -> (ResponseHead, Body) {
        self.call(Caller::Peer(peer), head, body, &mut self.hooks.chain(None)).await
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
