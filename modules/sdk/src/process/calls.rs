//! Calls of the node in the module's process: each runs as a task, and ends with exactly one frame.
//!
//! Whoever takes a call out of the table sends its last frame, so a handler that ends while its call is cancelled sends nothing.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use openred_proto::module as wire;
use openred_proto::module::host_frame::Kind as FromHost;
use openred_proto::module::module_frame::Kind as FromModule;
use openred_proto::module::{End, HostFrame, ModuleFrame};
use tokio::task::AbortHandle;

use crate::body::{Body, BodyError};
use crate::context::Context;
use crate::error::{ModuleError, Status};
use crate::instance::Instance;
use crate::message::{Request, Response};
use crate::module::Event;
use crate::wire::convert::{self, module_frame};
use crate::wire::flow::{Broken, Budget, Inbox, Pieces, Reading, ended};
use crate::wire::hooks;
use crate::wire::lane::Lane;
use crate::wire::{CALLS, DETAIL_BYTES};

/// Whether the module goes on after a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    Go,
    /// The node wants it to end.
    Stop,
}

struct Running {
    inbox: Option<Arc<Inbox>>,
    budget: Arc<Budget>,
    task: AbortHandle,
    /// The head has gone out.
    replied: bool,
}

#[derive(Default)]
struct Table {
    running: HashMap<u64, Running>,
    /// Ids rise, so a frame for a call that has ended is told from nonsense by nobody: it is ignored.
    last: u64,
    draining: bool,
}

/// The calls of one attachment. What still runs ends with it.
pub(super) struct Calls {
    instance: Arc<Instance>,
    context: Context,
    lane: Arc<Lane<ModuleFrame>>,
    settings: Arc<Mutex<String>>,
    /// Whether the node reads ranges of this module's blobs.
    ranges: bool,
    table: Mutex<Table>,
    starting: Mutex<Option<AbortHandle>>,
}

impl Calls {
    pub(super) fn new(
        instance: Arc<Instance>,
        context: Context,
        lane: Arc<Lane<ModuleFrame>>,
        settings: Arc<Mutex<String>>,
        ranges: bool,
    ) -> Arc<Self> {
        Arc::new(Self {
            instance,
            context,
            lane,
            settings,
            ranges,
            table: Mutex::default(),
            starting: Mutex::default(),
        })
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes one frame of the node. Never waits.
    pub(super) fn handle(self: &Arc<Self>, frame: HostFrame) -> Result<Next, Broken> {
        match frame.kind {
            Some(FromHost::Call(call)) => self.call(call)?,
            Some(FromHost::Event(event)) => self.event(event)?,
            Some(FromHost::HookCall(call)) => self.hook(call)?,
            Some(FromHost::Chunk(chunk)) => {
                let inbox = self.table().running.get(&chunk.call).and_then(|running| running.inbox.clone());
                if let Some(inbox) = inbox {
                    inbox.take(chunk.body, ended(chunk.end, chunk.limit)?, false)?;
                }
            }
            Some(FromHost::Credit(credit)) => {
                if let Some(running) = self.table().running.get(&credit.call) {
                    running.budget.add(credit.bytes)?;
                }
            }
            Some(FromHost::Cancel(cancel)) => self.cancel(cancel.call),
            Some(FromHost::Activate(_)) => self.activate(),
            Some(FromHost::Configure(configure)) => self.configure(configure.document),
            Some(FromHost::Ping(ping)) => {
                self.lane.push(module_frame(FromModule::Pong(wire::Pong { number: ping.number })));
            }
            Some(FromHost::Drain(_)) => {
                let mut table = self.table();
                table.draining = true;
                self.drained(&table);
            }
            Some(FromHost::Shutdown(_)) => return Ok(Next::Stop),
            Some(FromHost::Migrate(migrate)) => {
                let (instance, context) = (Arc::clone(&self.instance), self.context.clone());
                let migrated = async move { instance.migrate(context, migrate.from_version).await };
                self.work(migrated, FromModule::Migrated(wire::Migrated {}));
            }
            // Of a later version, or said twice: nothing that this side would have to answer.
            Some(FromHost::Welcome(_)) | None => {}
        }
        Ok(Next::Go)
    }

    /// Takes the operator's settings; ones that the manifest does not declare are refused, and those before stay.
    fn configure(&self, document: String) {
        let said = match self.instance.accepts(&document) {
            Ok(()) => {
                *self.settings.lock().unwrap_or_else(PoisonError::into_inner) = document;
                FromModule::Configured(wire::Configured {})
            }
            Err(why) => FromModule::Failed(wire::Failed { code: "bad-settings".into(), detail: shortened(why) }),
        };
        self.lane.push(module_frame(said));
    }

    fn call(self: &Arc<Self>, call: wire::Call) -> Result<(), Broken> {
        let id = call.call;
        let first = call.body.clone();
        let (inbox, body) = match ended(call.end, 0)? {
            Some(Ok(())) => (None, Body::whole(first)),
            end => {
                let inbox = Inbox::new();
                inbox.take(first, end, true)?;
                let body = inbox.body(Arc::new(Granting { lane: Arc::clone(&self.lane), call: id }));
                (Some(inbox), body)
            }
        };
        let request = convert::to_request(call, body);
        let budget = Budget::new();
        let (calls, own) = (Arc::clone(self), Arc::clone(&budget));
        self.begin(id, inbox, budget, unanswered, async move {
            let response = match request {
                Some(request) => calls.dispatch(id, request).await,
                None => {
                    ModuleError::bad_request("bad-call", "the node sent a call that this module cannot read").into()
                }
            };
            calls.answer(id, response, &own).await;
        })
    }

    async fn dispatch(&self, id: u64, request: Request) -> Response {
        self.instance.dispatch(self.context.within(id), request).await
    }

    fn event(self: &Arc<Self>, event: wire::Event) -> Result<(), Broken> {
        let id = event.call;
        let event: Option<Event> = convert::to_event(event);
        let calls = Arc::clone(self);
        self.begin(id, None, Budget::new(), event_done, async move {
            if let Some(event) = event {
                calls.instance.event(calls.context.within(id), event).await;
            }
            calls.finish(id, |replied| event_done(id, replied));
        })
    }

    fn hook(self: &Arc<Self>, call: wire::HookCall) -> Result<(), Broken> {
        let id = call.call;
        let asked = hooks::to_hook(call);
        let calls = Arc::clone(self);
        self.begin(id, None, Budget::new(), hook_failed, async move {
            let answer = match asked {
                Some((hook, request)) => calls.instance.hook(calls.context.within(id), &hook, request).await,
                None => Err(ModuleError::bad_request("bad-call", "the node asked a hook what this module cannot read")),
            };
            if let Err(error) = &answer {
                tracing::warn!(code = error.code, "a hook did not decide: {}", error.detail);
            }
            calls.finish(id, |_| FromModule::HookReply(hooks::of_verdict(id, answer)));
        })
    }

    fn begin(
        self: &Arc<Self>,
        id: u64,
        inbox: Option<Arc<Inbox>>,
        budget: Arc<Budget>,
        last: Last,
        work: impl Future<Output = ()> + Send + 'static,
    ) -> Result<(), Broken> {
        let mut table = self.table();
        if id <= table.last || table.running.len() >= CALLS {
            return Err(Broken::Unknown);
        }
        table.last = id;
        let guard = Unfinished { calls: Arc::clone(self), call: id, last };
        // Under the lock: a task that ends at once finds its entry.
        let task = tokio::spawn(async move {
            let _guard = guard;
            work.await;
        });
        table.running.insert(id, Running { inbox, budget, task: task.abort_handle(), replied: false });
        Ok(())
    }

    async fn answer(&self, id: u64, mut response: Response, budget: &Budget) {
        response.length = response.length.or(response.body.known_length());
        let body = std::mem::replace(&mut response.body, Body::empty());
        let mut pieces = Pieces::new(body).with_ranges(self.ranges);
        let first = pieces.first(budget);
        let whole = first.is_some();
        let reply = FromModule::Reply(convert::of_response(id, &response, first));
        if !self.put(id, reply, whole).await || whole {
            return;
        }
        while let Some(piece) = pieces.next(budget).await {
            let last = piece.end != End::More;
            if !self.put(id, FromModule::Chunk(convert::chunk(id, piece)), last).await || last {
                return;
            }
        }
    }

    /// Sends a frame of a call that still runs; false if it does not any more.
    async fn put(&self, id: u64, frame: FromModule, last: bool) -> bool {
        let Ok(room) = self.lane.room().await else { return false };
        let mut table = self.table();
        let Some(running) = table.running.get_mut(&id) else { return false };
        running.replied = true;
        if last {
            close(table.running.remove(&id));
        }
        room.put(module_frame(frame));
        self.drained(&table);
        true
    }

    /// Ends a call if it still runs; `last` is told whether its head has gone out.
    fn finish(&self, id: u64, last: impl FnOnce(bool) -> FromModule) {
        let mut table = self.table();
        let Some(running) = table.running.remove(&id) else { return };
        let replied = running.replied;
        close(Some(running));
        self.lane.push(module_frame(last(replied)));
        self.drained(&table);
    }

    fn cancel(&self, id: u64) {
        let task = self.table().running.get(&id).map(|running| running.task.clone());
        self.finish(id, |_| FromModule::Cancelled(wire::Cancelled { call: id }));
        if let Some(task) = task {
            task.abort();
        }
    }

    fn drained(&self, table: &Table) {
        if table.draining && table.running.is_empty() {
            self.lane.push(module_frame(FromModule::Drained(wire::Drained {})));
        }
    }

    fn activate(self: &Arc<Self>) {
        let (instance, context) = (Arc::clone(&self.instance), self.context.clone());
        let started = async move { instance.start(context).await };
        self.work(started, FromModule::Activated(wire::Activated {}));
    }

    /// Does what the node waits for; `done` says that it went well. One at a time: the node asks no second thing before.
    fn work(self: &Arc<Self>, work: impl Future<Output = Result<(), ModuleError>> + Send + 'static, done: FromModule) {
        let answer = Answer { calls: Arc::clone(self), said: None };
        let starting = tokio::spawn(async move {
            let mut answer = answer;
            answer.said = Some(match work.await {
                Ok(()) => done,
                Err(error) => FromModule::Failed(wire::Failed { code: error.code.to_owned(), detail: error.detail }),
            });
        });
        *self.starting.lock().unwrap_or_else(PoisonError::into_inner) = Some(starting.abort_handle());
    }

    /// Ends what runs, for an attachment that is over.
    pub(super) fn end(&self) {
        let running = std::mem::take(&mut self.table().running);
        running.into_values().for_each(|running| {
            running.task.abort();
            close(Some(running));
        });
        if let Some(starting) = self.starting.lock().unwrap_or_else(PoisonError::into_inner).take() {
            starting.abort();
        }
        self.lane.close();
    }
}

/// As much of a text as the node reads.
fn shortened(mut text: String) -> String {
    let end = (0..=DETAIL_BYTES.min(text.len())).rev().find(|at| text.is_char_boundary(*at));
    text.truncate(end.unwrap_or_default());
    text
}

/// No more credit is granted for a call that ends, and nobody waits for credit.
fn close(running: Option<Running>) {
    if let Some(running) = running {
        running.budget.close();
        if let Some(inbox) = running.inbox {
            inbox.fail(BodyError::Truncated);
        }
    }
}

/// The last frame of a call whose handler did not come to its end; is told whether the head has gone out.
type Last = fn(u64, bool) -> FromModule;

fn unanswered(call: u64, replied: bool) -> FromModule {
    if replied {
        let (body, end) = (Default::default(), End::Failed.into());
        return FromModule::Chunk(wire::Chunk { call, body, end, limit: 0, range: None });
    }
    let error = ModuleError::new(Status::Internal, "module-panicked", "the module failed inside");
    let mut response = Response::from(error);
    let first = Pieces::new(std::mem::replace(&mut response.body, Body::empty())).first(&Budget::new());
    FromModule::Reply(convert::of_response(call, &response, first))
}

fn event_done(call: u64, _: bool) -> FromModule {
    FromModule::EventDone(wire::EventDone { call })
}

fn hook_failed(call: u64, _: bool) -> FromModule {
    let error = ModuleError::new(Status::Internal, "module-panicked", "the module failed inside");
    FromModule::HookReply(hooks::of_verdict(call, Err(error)))
}

/// Answers for a handler that panicked.
struct Unfinished {
    calls: Arc<Calls>,
    call: u64,
    last: Last,
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        let (call, last) = (self.call, self.last);
        self.calls.finish(call, |replied| last(call, replied));
    }
}

/// What the node hears of what it asked, also where that panicked.
struct Answer {
    calls: Arc<Calls>,
    said: Option<FromModule>,
}

impl Drop for Answer {
    fn drop(&mut self) {
        let panicked = || {
            let (code, detail) = ("module-panicked".into(), "the module failed inside".into());
            FromModule::Failed(wire::Failed { code, detail })
        };
        let said = self.said.take().unwrap_or_else(panicked);
        self.calls.lane.push(module_frame(said));
    }
}

/// Credit for the body of one call.
struct Granting {
    lane: Arc<Lane<ModuleFrame>>,
    call: u64,
}

impl Reading for Granting {
    fn read(&self, bytes: u32) {
        self.lane.credit(self.call, bytes);
    }

    // The rest comes as far as there is credit, and is thrown away.
    fn left(&self) {}
}
