//! The way of one call through its points: deciding hooks one after the other, those again whose judgement a change has overtaken, and
//! observers beside the way.

use std::sync::Arc;
use std::time::Duration;

use openred_module::{
    Body, Caller, Class, Field, Fields, Method, ModuleError, PeerRequest, Point, Request, Response, Status,
};
use openred_proto::id::NodeId;
use tokio::time::Instant;

use super::Table;
use super::budget::Budget;
use super::decide::{Step, decide};
use super::entry::Entry;
use super::passing::Passing;

/// See the file's head.
pub(crate) struct Chain {
    table: Arc<Table>,
    budget: Budget,
    own: Option<String>,
    /// Whose answer comes, where somebody wants to know.
    asked: Option<Asked>,
    /// The answer is a hook's: nobody decides about it again.
    is_hooks: bool,
    costs: Costs,
}

/// What a call has waited for: whom, and how long.
pub(crate) type Costs = Vec<(String, Duration)>;

/// A request, for those who are shown its answer.
struct Asked {
    point: Point,
    module: String,
    method: Method,
    path: String,
    peer: Option<NodeId>,
}

/// Where the answer to what stands at `point` stands.
fn answer_of(point: Point) -> Point {
    match point {
        Point::Inbound | Point::InboundResponse => Point::InboundResponse,
        Point::Operator | Point::OperatorResponse => Point::OperatorResponse,
        Point::Outbound | Point::OutboundResponse => Point::OutboundResponse,
    }
}

impl Chain {
    pub(super) fn new(table: Arc<Table>, own: Option<&str>) -> Self {
        Self {
            table,
            budget: Budget::default(),
            own: own.map(str::to_owned),
            asked: None,
            is_hooks: false,
            costs: Costs::new(),
        }
    }

    /// Notes what the call has waited for beside hooks.
    pub(crate) fn waited(&mut self, name: &str, time: Duration) {
        self.costs.push((name.to_owned(), time));
    }

    /// All that it has waited for so far.
    pub(crate) fn take_costs(&mut self) -> Costs {
        std::mem::take(&mut self.costs)
    }

    fn is_empty(&self, point: Point) -> bool {
        self.table.at(point).as_ref().is_ok_and(Vec::is_empty)
    }

    /// A request to `module` of this node. What comes back goes on; or it is the answer.
    pub(crate) async fn request(&mut self, module: &str, mut request: Request) -> Result<Request, Response> {
        let (point, peer) = match request.caller {
            Caller::Peer(peer) => (Point::Inbound, Some(peer)),
            Caller::Operator => (Point::Operator, None),
            // There is no point for calls of one module by another: what they lead to at peers passes the outbound one.
            Caller::Module(_) => return Ok(request),
            // Bytes of a connection, of which its module alone makes calls.
            Caller::Loopback => return Ok(request),
        };
        if self.is_empty(point) && self.is_empty(answer_of(point)) {
            return Ok(request);
        }
        let passing = Passing {
            module: module.to_owned(),
            method: request.method,
            path: std::mem::take(&mut request.path),
            peer,
            content_type: std::mem::take(&mut request.content_type),
            length: request.length,
            status: None,
            body: std::mem::replace(&mut request.body, Body::empty()),
            shown: None,
        };
        let passed = self.pass_request(point, passing).await?;
        (request.path, request.content_type) = (passed.path, passed.content_type);
        (request.length, request.body) = (passed.length, passed.body);
        Ok(request)
    }

    /// A request of `module` to a peer.
    pub(crate) async fn outbound(
        &mut self,
        module: &str,
        peer: NodeId,
        mut request: PeerRequest,
    ) -> Result<PeerRequest, Response> {
        if self.is_empty(Point::Outbound) && self.is_empty(Point::OutboundResponse) {
            return Ok(request);
        }
        let passing = Passing {
            module: module.to_owned(),
            method: request.method,
            path: std::mem::take(&mut request.path),
            peer: Some(peer),
            content_type: std::mem::take(&mut request.content_type),
            length: request.length,
            status: None,
            body: std::mem::replace(&mut request.body, Body::empty()),
            shown: None,
        };
        let passed = self.pass_request(Point::Outbound, passing).await?;
        (request.path, request.content_type) = (passed.path, passed.content_type);
        (request.length, request.body) = (passed.length, passed.body);
        Ok(request)
    }

    async fn pass_request(&mut self, point: Point, mut passing: Passing) -> Result<Passing, Response> {
        let ended = self.pass(point, &mut passing).await;
        if !self.is_empty(answer_of(point)) {
            let Passing { module, method, path, peer, .. } = &passing;
            let (module, path) = (module.clone(), path.clone());
            self.asked = Some(Asked { point, module, method: *method, path, peer: *peer });
        }
        self.is_hooks = ended.is_err();
        ended.map(|()| passing)
    }

    /// The answer to the call, the hooks' own included.
    pub(crate) async fn response(&mut self, mut response: Response) -> Response {
        let Some(Asked { point, module, method, path, peer }) = self.asked.take() else { return response };
        let mut passing = Passing {
            module,
            method,
            path,
            peer,
            content_type: std::mem::take(&mut response.content_type),
            length: response.length.or(response.body.known_length()),
            status: Some(response.status),
            body: std::mem::replace(&mut response.body, Body::empty()),
            shown: None,
        };
        if let Err(other) = self.pass(answer_of(point), &mut passing).await {
            return other;
        }
        Response {
            status: passing.status.unwrap_or(response.status),
            content_type: passing.content_type,
            length: passing.length,
            body: passing.body,
        }
    }

    async fn pass(&mut self, point: Point, passing: &mut Passing) -> Result<(), Response> {
        let table = Arc::clone(&self.table);
        let entries = table.at(point).as_ref().map_err(|cycle| {
            let detail = format!("the hooks at {} have no order: {cycle}", point.name());
            Response::from(ModuleError::new(Status::Unavailable, "hooks-unordered", detail))
        })?;
        let decided = if self.is_hooks { Ok(()) } else { self.decide(entries, passing).await };
        if decided.is_ok() {
            self.observe(entries, passing).await;
        }
        decided
    }

    async fn decide(&mut self, entries: &[Arc<Entry>], passing: &mut Passing) -> Result<(), Response> {
        let mut changed = Fields::default();
        for entry in entries.iter().filter(|entry| entry.spec.class != Class::Observe) {
            let fields = self.step(entry, passing).await?;
            changed = fields.iter().fold(changed, Fields::with);
        }
        if changed.is_empty() {
            return Ok(());
        }
        // They can change nothing, so this is the last time.
        let judges = entries.iter().filter(|entry| matches!(entry.spec.class, Class::Authn | Class::Authz));
        for entry in judges.filter(|entry| entry.spec.judges(changed)) {
            self.step(entry, passing).await?;
        }
        Ok(())
    }

    /// Asks one hook, if the call is one of its; what it changed.
    async fn step(&mut self, entry: &Entry, passing: &mut Passing) -> Result<Fields, Response> {
        if !self.concerns(entry, passing) {
            return Ok(Fields::default());
        }
        if entry.spec.fields.has(Field::Body) {
            passing.show_body().await;
        }
        let request = entry.spec.shown(&passing.seen(), passing.shown.as_ref());
        let begun = Instant::now();
        let said = entry.ask(request, &mut self.budget).await;
        self.waited(&entry.spec.name(), begun.elapsed());
        match decide(&entry.spec, said) {
            Step::Next => Ok(Fields::default()),
            Step::Change(mutation) => Ok(passing.change(mutation)),
            Step::Answer(answer) => Err(Response::new(answer.status, &answer.content_type, Body::whole(answer.body))),
            Step::Refuse(error) => Err(error.into()),
        }
    }

    async fn observe(&self, entries: &[Arc<Entry>], passing: &mut Passing) {
        for entry in entries.iter().filter(|entry| entry.spec.class == Class::Observe) {
            if !self.concerns(entry, passing) {
                continue;
            }
            // Of a body that nobody else wanted to see it is shown what is there without waiting.
            if entry.spec.fields.has(Field::Body) && passing.body.known_length().is_some() {
                passing.show_body().await;
            }
            let request = entry.spec.shown(&passing.seen(), passing.shown.as_ref());
            tokio::spawn(Arc::clone(entry).tell(request));
        }
    }

    fn concerns(&self, entry: &Entry, passing: &Passing) -> bool {
        self.own.as_deref() != Some(entry.spec.module.as_str()) && entry.spec.filter.fits(&passing.seen())
    }
}
