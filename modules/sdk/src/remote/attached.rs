//! One attached module: calls in, answers out, until a fault or its end.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{Stream, StreamExt as _, stream};
use openred_proto::module as wire;
use openred_proto::module::host_frame::Kind as FromHost;
use openred_proto::module::{End, HostFrame, ModuleFrame};
use tokio::sync::{oneshot, watch};
use tonic::{Code, Status as Refusal, Streaming};

use super::calls::{Calls, Made};
use super::fault::Fault;
use crate::body::{Body, BodyError};
use crate::error::{ModuleError, Status};
use crate::host::{Host, Within};
use crate::message::{Caller, Request, Response};
use crate::module::Event;
use crate::range::{self, BlobRange};
use crate::wire::convert::{self, host_frame};
use crate::wire::flow::{Budget, Pieces, Reading};
use crate::wire::lane::Lane;

/// Between two pings; a module has until the next to answer.
const ROUND: Duration = Duration::from_secs(10);

/// What an attachment is, for its connections and its callers.
pub(super) struct Inner {
    pub(super) module: String,
    version: String,
    methods: Vec<Bytes>,
    host: Arc<dyn Host>,
    /// Whether it serves hooks.
    pub(super) hooks: bool,
    /// Whether it tells connections from calls of the operator.
    loopback: bool,
    pub(super) lane: Arc<Lane<HostFrame>>,
    calls: Mutex<Calls>,
    ended: watch::Sender<Option<Fault>>,
}

impl Inner {
    pub(super) fn new(
        (module, version, methods): (String, String, Vec<Bytes>),
        (hooks, loopback, ranges): (bool, bool, bool),
        host: Arc<dyn Host>,
    ) -> Arc<Self> {
        let (lane, calls) = (Lane::new(), Mutex::new(Calls::with_ranges(ranges)));
        let ended = watch::Sender::new(None);
        Arc::new(Self { module, version, methods, host, hooks, loopback, lane, calls, ended })
    }

    pub(super) fn calls(&self) -> MutexGuard<'_, Calls> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The node, as long as the attachment lasts: what comes later is refused.
    pub(super) fn host(&self) -> Option<Arc<dyn Host>> {
        self.ended.borrow().is_none().then(|| Arc::clone(&self.host))
    }

    /// What waits for a call of another module that this one makes in `call`; none for a call that does not run.
    pub(super) fn within(&self, call: u64) -> Option<Within> {
        let (mut via, deadline) = if call == 0 { Default::default() } else { self.calls().origin(call)? };
        via.push(self.module.clone());
        Some(Within { call, via, deadline })
    }

    pub(super) fn push(&self, kind: FromHost) {
        self.lane.push(host_frame(kind));
    }

    /// Ends it; the first fault counts.
    pub(super) fn end(&self, fault: Fault) {
        let first = self.ended.send_if_modified(|ended| ended.is_none() && ended.replace(fault).is_none());
        if first {
            self.calls().end();
            self.lane.close();
        }
    }

    /// Waits for its end.
    pub(super) async fn ended(&self) -> Fault {
        let mut ended = self.ended.subscribe();
        // The sender is in here, so it is not gone.
        let fault = ended.wait_for(Option::is_some).await.ok().and_then(|fault| *fault);
        fault.unwrap_or(Fault::Ended)
    }

    /// What the module is sent; behind the last frame, why it was ended.
    pub(super) fn frames(self: &Arc<Self>) -> impl Stream<Item = Result<HostFrame, Refusal>> + Send + 'static {
        let inner = Arc::clone(self);
        let last = stream::once(async move { inner.ended().await });
        let last = last.filter_map(|fault| async move {
            fault.is_misconduct().then(|| Err(Refusal::failed_precondition(fault.code())))
        });
        self.lane.frames().map(Ok).chain(last)
    }

    /// Follows the module until it ends or is ended.
    pub(super) async fn follow(self: Arc<Self>, frames: Streaming<ModuleFrame>) {
        let fault = tokio::select! {
            fault = self.read(frames) => fault,
            fault = self.watch() => fault,
            fault = self.ended() => fault,
        };
        self.end(fault);
    }

    async fn read(&self, mut frames: Streaming<ModuleFrame>) -> Fault {
        loop {
            let frame = match frames.message().await {
                Ok(Some(frame)) => frame,
                Ok(None) => return Fault::Gone,
                Err(status) => return broken(&status),
            };
            let handled = self.calls().handle(frame);
            match handled {
                Ok(Some(delivery)) => delivery.hand_on(),
                Ok(None) => {}
                Err(fault) => return fault,
            }
        }
    }

    async fn watch(&self) -> Fault {
        let mut rounds = tokio::time::interval(ROUND);
        loop {
            rounds.tick().await;
            let round = self.calls().round();
            match round {
                Ok(Some(number)) => self.push(FromHost::Ping(wire::Ping { number })),
                Ok(None) => {}
                Err(fault) => return fault,
            }
        }
    }

    fn cancel(&self, call: u64) {
        let told = self.calls().cancel(call);
        if told {
            self.push(FromHost::Cancel(wire::Cancel { call }));
        }
    }

    /// Sends the rest of a call's body, as there is credit for it.
    async fn send_body(self: Arc<Self>, call: u64, mut pieces: Pieces, budget: Arc<Budget>) {
        while let Some(piece) = pieces.next(&budget).await {
            let last = piece.end != End::More;
            let Ok(room) = self.lane.room().await else { return };
            room.put(host_frame(FromHost::Chunk(convert::chunk(call, piece))));
            if last {
                return;
            }
        }
    }
}

/// A stream that broke: by what the module sent, or because it has gone.
fn broken(status: &Refusal) -> Fault {
    let by_content = matches!(status.code(), Code::OutOfRange | Code::Internal | Code::Unimplemented);
    if by_content && std::error::Error::source(status).is_none() { Fault::Garbage } else { Fault::Gone }
}

/// A module in its own process, as its host calls it. Dropped, it ends the attachment.
pub struct Attached(pub(super) Arc<Inner>);

impl Attached {
    pub(super) fn new(inner: Arc<Inner>) -> Self {
        Self(inner)
    }

    /// Its id.
    pub fn module(&self) -> &str {
        &self.0.module
    }

    /// Its version, as it says.
    pub fn version(&self) -> &str {
        &self.0.version
    }

    /// The methods that it describes: canonical, if its author's library is right. The key process judges them.
    pub fn methods(&self) -> &[Bytes] {
        &self.0.methods
    }

    /// Waits until the attachment has ended, and says why.
    pub async fn ended(&self) -> Fault {
        self.0.ended().await
    }

    /// Ends it.
    pub fn end(&self, fault: Fault) {
        self.0.end(fault);
    }

    /// Gives the module the operator's settings (TOML), before its start or while it runs.
    ///
    /// # Errors
    /// The module's refusal in its words, or that it has gone.
    pub async fn configure(&self, document: String) -> Result<(), ModuleError> {
        self.ask(FromHost::Configure(wire::Configure { document }), "module-not-configured").await
    }

    /// Runs the module's start. How long that may take is the caller's to say, who then ends the attachment.
    ///
    /// # Errors
    /// The module's refusal in its words, or that it has gone.
    pub async fn start(&self) -> Result<(), ModuleError> {
        self.activate(0).await
    }

    /// The same, naming the epoch in which it is the one that writes.
    ///
    /// # Errors
    /// As of [`Attached::start`].
    pub async fn activate(&self, epoch: u64) -> Result<(), ModuleError> {
        self.ask(FromHost::Activate(wire::Activate { epoch }), "module-not-started").await
    }

    /// Has the module bring the rows that it is given from what version `from` wrote to what it reads itself.
    ///
    /// # Errors
    /// As of [`Attached::start`].
    pub async fn migrate(&self, from: &str) -> Result<(), ModuleError> {
        self.ask(FromHost::Migrate(wire::Migrate { from_version: from.to_owned() }), "module-not-migrated").await
    }

    async fn ask(&self, what: FromHost, refused: &'static str) -> Result<(), ModuleError> {
        let asked = self.0.calls().ask();
        let Some(answer) = asked else {
            return Err(ModuleError::new(Status::Conflict, "module-busy", "the module is being asked something else"));
        };
        self.0.push(what);
        match answer.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err((code, detail))) => {
                let detail =
                    if code.is_empty() { "it did not say why".to_owned() } else { format!("{code}: {detail}") };
                Err(ModuleError::new(Status::Internal, refused, detail))
            }
            Err(_) => Err(gone()),
        }
    }

    /// Serves one call. Always answers; a call that is dropped is cancelled in the module.
    pub async fn dispatch(&self, mut request: Request) -> Response {
        if request.caller == Caller::Loopback && !self.0.loopback {
            let detail = "this version of the module takes no connections";
            return ModuleError::new(Status::Unavailable, "no-connections", detail).into();
        }
        let mut pieces = Pieces::new(std::mem::replace(&mut request.body, Body::empty()));
        let Ok(room) = self.0.lane.room().await else { return gone().into() };
        let (made, whole) = {
            let mut calls = self.0.calls();
            let (inner, host) = (Arc::downgrade(&self.0), Arc::clone(&self.0.host));
            let way = |call| Arc::new(Way { inner, call, host }) as Arc<dyn Reading>;
            let Some(made) = calls.begin(way) else { return busy().into() };
            calls.set_origin(made.call, std::mem::take(&mut request.via), request.deadline);
            let first = pieces.first(&made.budget);
            let whole = first.is_some();
            // With the table still held, so that calls leave in the order of their ids.
            room.put(host_frame(FromHost::Call(convert::of_request(made.call, &request, first))));
            (made, whole)
        };
        let Made { call, budget, reply } = made;
        let mut waiting = Waiting { inner: &self.0, call: Some(call) };
        if !whole {
            let task = tokio::spawn(Arc::clone(&self.0).send_body(call, pieces, budget));
            self.0.calls().sent_by(call, task.abort_handle());
        }
        let reply = reply.await;
        waiting.call = None;
        match reply {
            Ok(Some(response)) => response,
            _ => gone().into(),
        }
    }

    /// Tells the module of an event and waits until it has dealt with it. True if it has.
    pub async fn event(&self, event: Event) -> bool {
        let Ok(room) = self.0.lane.room().await else { return false };
        let made = {
            let mut calls = self.0.calls();
            let Some(made) = calls.begin_event() else { return false };
            room.put(host_frame(FromHost::Event(convert::of_event(made.call, event))));
            made
        };
        let mut waiting = Waiting { inner: &self.0, call: Some(made.call) };
        let done = made.reply.await.is_ok();
        waiting.call = None;
        done
    }

    /// Asks the module to take no more calls and to end what runs; true once it has, false if it went before.
    pub async fn drain(&self, most: Duration) -> bool {
        let drained: oneshot::Receiver<()> = self.0.calls().drain();
        self.0.push(FromHost::Drain(wire::Drain { millis: u32::try_from(most.as_millis()).unwrap_or(u32::MAX) }));
        matches!(tokio::time::timeout(most, drained).await, Ok(Ok(())))
    }

    /// Asks whether its loop turns; true once it has answered, false if it went before.
    pub async fn ping(&self) -> bool {
        let (number, answered) = self.0.calls().ping();
        if let Some(number) = number {
            self.0.push(FromHost::Ping(wire::Ping { number }));
        }
        answered.await.is_ok()
    }

    /// Calls and events that the module has not ended, those that were given up among them.
    pub fn running(&self) -> usize {
        self.0.calls().count()
    }

    /// Sends the module a frame that no call stands behind: for the conformance suite. What the module answers is judged like everything else.
    #[doc(hidden)]
    pub fn inject(&self, frame: HostFrame) {
        self.0.lane.push(frame);
    }

    /// Tells its process to end.
    pub fn shut_down(&self) {
        self.0.push(FromHost::Shutdown(wire::Shutdown {}));
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        self.0.end(Fault::Ended);
    }
}

impl std::fmt::Debug for Attached {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Attached({} {})", self.0.module, self.0.version)
    }
}

fn gone() -> ModuleError {
    ModuleError::new(Status::Unavailable, "module-gone", "the module ended before it had answered")
}

fn busy() -> ModuleError {
    ModuleError::new(Status::TooMany, "module-busy", "the module has too many calls in flight")
}

/// A caller that waits; when it stops waiting, the call is cancelled.
pub(super) struct Waiting<'a> {
    pub(super) inner: &'a Inner,
    pub(super) call: Option<u64>,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if let Some(call) = self.call.take() {
            self.inner.cancel(call);
        }
    }
}

/// The way back of credit for one answer's body, and of a reader that has gone.
struct Way {
    inner: Weak<Inner>,
    call: u64,
    /// Reads ranges: also of a module that has ended its call, and itself, since it handed them over.
    host: Arc<dyn Host>,
}

impl Reading for Way {
    fn read(&self, bytes: u32) {
        if let Some(inner) = self.inner.upgrade() {
            inner.lane.credit(self.call, bytes);
        }
    }

    fn left(&self) {
        if let Some(inner) = self.inner.upgrade() {
            inner.cancel(self.call);
        }
    }

    fn fetch(&self, range: BlobRange) -> Option<BoxStream<'static, Result<Bytes, BodyError>>> {
        Some(range::read(&self.host, range))
    }
}
