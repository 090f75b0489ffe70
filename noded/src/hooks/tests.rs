//! Chains of hooks around calls: what each class's failure does, in virtual time, with modules that are made of one function.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use openred_module::{
    Body, Caller, Class, Field, Fields, HookRequest, HookResponse, Method, Mutation, PeerRequest, Request, Response,
    Status,
};
use openred_proto::id::NodeId;
use tokio::time::{Instant, sleep};

use super::spec::tests::spec;
use super::*;

const PEER: NodeId = NodeId::from_bytes([2; 32]);

/// What a hook does with a question: how long it takes, and what it says.
type Does = Box<dyn Fn(&HookRequest) -> (Duration, Result<Verdict, Failure>) + Send + Sync>;

/// A module that is one function.
struct Acting {
    does: Does,
    asked: AtomicU64,
}

#[async_trait::async_trait]
impl Askable for Acting {
    async fn ask(&self, ask: HookAsk) -> Result<Verdict, Failure> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let (takes, said) = (self.does)(&ask.request);
        sleep(takes).await;
        said
    }
}

/// One whose module is being swapped for so long.
struct Held(Duration, Arc<Acting>);

#[async_trait::async_trait]
impl Askable for Held {
    async fn ask(&self, ask: HookAsk) -> Result<Verdict, Failure> {
        self.1.ask(ask).await
    }

    fn held(&self) -> Option<BoxFuture<'_, ()>> {
        Some(Box::pin(sleep(self.0)))
    }
}

fn acting(does: impl Fn(&HookRequest) -> (Duration, Result<Verdict, Failure>) + Send + Sync + 'static) -> Arc<Acting> {
    Arc::new(Acting { does: Box::new(does), asked: AtomicU64::new(0) })
}

fn says(said: Result<Verdict, Failure>) -> Arc<Acting> {
    acting(move |_| (Duration::ZERO, said.clone()))
}

fn hangs() -> Arc<Acting> {
    acting(|_| (Duration::from_secs(3600), Ok(Verdict::Continue)))
}

fn asked(acting: &Acting) -> u64 {
    acting.asked.load(Ordering::Relaxed)
}

fn hooks(list: Vec<(Spec, Arc<Acting>)>) -> (Arc<Hooks>, Arc<Health>) {
    let health = Arc::new(Health::default());
    let hooks = Hooks::new(&health);
    hooks.set(list.into_iter().map(|(spec, acting)| (spec, acting as Arc<dyn Askable>)).collect(), &[]);
    (hooks, health)
}

fn post(path: &str, body: &'static str) -> Request {
    Request::new(Caller::Peer(PEER), Method::Post, path).with_body("text/plain", Body::whole(body))
}

/// What reaches the module, or what the caller gets in its place.
async fn inbound(hooks: &Hooks, request: Request) -> Result<(String, String), (Status, String)> {
    match hooks.chain(None).request("messaging", request).await {
        Ok(request) => {
            let length = request.length;
            let body = request.body.collect(1 << 20).await.unwrap();
            assert_eq!(length, Some(body.len() as u64));
            Ok((request.path, String::from_utf8(body.into()).unwrap()))
        }
        Err(response) => Err(said(response).await),
    }
}

async fn said(response: Response) -> (Status, String) {
    let status = response.status;
    (status, String::from_utf8(response.body.collect(1 << 20).await.unwrap().into()).unwrap())
}

fn body(text: &'static str) -> Mutation {
    Mutation { body: Some(Bytes::from_static(text.as_bytes())), ..Mutation::default() }
}

fn path(text: &str) -> Mutation {
    Mutation { path: Some(text.to_owned()), ..Mutation::default() }
}

#[tokio::test(start_paused = true)]
async fn each_class_fails_as_it_must() {
    let failures = [Failure::Undecided("its module has gone".into()), Failure::Saturated];
    for class in Class::ALL {
        for opens in [false, true] {
            let hook = || Spec { opens, ..spec("guard", "gate", class) };
            let goes_on = class == Class::Observe || class == Class::Transform && opens;
            for failure in &failures {
                let (hooks, _) = hooks(vec![(hook(), says(Err(failure.clone())))]);
                match inbound(&hooks, post("/x", "a")).await {
                    Ok(_) => assert!(goes_on, "{class:?} {failure:?}"),
                    Err((status, text)) => {
                        assert!(!goes_on && status == Status::Unavailable, "{class:?} {failure:?}");
                        assert!(text.contains("hook-failed") && text.contains("guard/gate"), "{text}");
                    }
                }
            }
            let (hooks, _) = hooks(vec![(hook(), hangs())]);
            let begun = Instant::now();
            match inbound(&hooks, post("/x", "a")).await {
                Ok(_) => assert!(goes_on),
                Err((status, text)) => {
                    assert!(!goes_on && status == Status::TimedOut);
                    assert!(text.contains("hook-timed-out") && text.contains("guard/gate"), "{text}");
                }
            }
            // An observer is never waited for.
            let waited = if class == Class::Observe { Duration::ZERO } else { Duration::from_millis(50) };
            assert!(begun.elapsed() >= waited && begun.elapsed() < waited + Duration::from_millis(5), "{class:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_transform_changes_the_next_hook_and_the_module_see() {
    let first = says(Ok(Verdict::Mutate(body("changed"))));
    let second = acting(|request| {
        assert_eq!((request.body.as_deref(), request.length), (Some(&b"changed"[..]), Some(7)));
        (Duration::ZERO, Ok(Verdict::Mutate(path("/other"))))
    });
    let (hooks, _) =
        hooks(vec![(spec("a", "body", Class::Transform), first), (spec("b", "path", Class::Transform), second)]);
    assert_eq!(inbound(&hooks, post("/x", "as it came")).await, Ok(("/other".into(), "changed".into())));
    let report = hooks.report();
    let at = &report.points[0];
    assert_eq!((at.point.as_str(), at.hooks.len()), ("inbound", 2));
    assert_eq!((at.hooks[0].calls, at.hooks[0].changed, at.hooks[0].breaker.as_str()), (1, 1, "closed"));
}

#[tokio::test(start_paused = true)]
async fn a_call_that_was_changed_is_judged_again() {
    let judge = || {
        acting(|request| {
            let bad = request.path.as_deref() == Some("/secret");
            (Duration::ZERO, Ok(if bad { Verdict::deny("secret", "Not for you.") } else { Verdict::Continue }))
        })
    };
    let turn = || (spec("z", "turn", Class::Transform), says(Ok(Verdict::Mutate(path("/secret")))));
    let gate = judge();
    let (hooks_, _) = hooks(vec![(spec("guard", "gate", Class::Authz), Arc::clone(&gate)), turn()]);
    let (status, text) = inbound(&hooks_, post("/x", "")).await.unwrap_err();
    assert_eq!((status, asked(&gate)), (Status::Forbidden, 2));
    assert!(text.contains("guard/gate refuses it (secret)"), "{text}");
    // Chosen by a path that the call only has now.
    let mut narrow = spec("guard", "gate", Class::Authz);
    (narrow.fields, narrow.filter.path) = (Fields::default().with(Field::Peer), Some("/secret".into()));
    let gate = says(Ok(Verdict::deny("secret", "Not for you.")));
    let (hooks_, _) = hooks(vec![(narrow, Arc::clone(&gate)), turn()]);
    assert_eq!(inbound(&hooks_, post("/x", "")).await.unwrap_err().0, Status::Forbidden);
    assert_eq!(asked(&gate), 1);
    // Who looks at nothing of what was changed is not asked twice.
    let gate = judge();
    let blind = Spec { fields: Fields::default().with(Field::Peer), ..spec("guard", "gate", Class::Authz) };
    let (hooks_, _) = hooks(vec![(blind, Arc::clone(&gate)), turn()]);
    assert_eq!(inbound(&hooks_, post("/x", "")).await.unwrap().0, "/secret");
    assert_eq!(asked(&gate), 1);
}

#[tokio::test(start_paused = true)]
async fn an_answer_or_a_denial_ends_the_way_and_observers_of_the_answer_hear_of_it() {
    let answer = HookResponse { status: Status::Accepted, content_type: "text/plain".into(), body: "kept".into() };
    for (verdict, status) in [
        (Verdict::Respond(answer), Status::Accepted),
        (Verdict::deny("no-strangers", "Strangers stay out."), Status::Forbidden),
    ] {
        let (never, judge) = (hangs(), says(Ok(Verdict::deny("x", ""))));
        let watch = acting(move |request| {
            assert_eq!(request.status, Some(status.code()));
            (Duration::ZERO, Ok(Verdict::Continue))
        });
        let at_answer = |class| Spec { point: Point::InboundResponse, ..spec("watch", "answers", class) };
        let (hooks, _) = hooks(vec![
            (spec("a", "first", Class::Authn), says(Ok(verdict))),
            (spec("b", "next", Class::Authz), Arc::clone(&never)),
            (at_answer(Class::Observe), Arc::clone(&watch)),
            (Spec { id: "judge".into(), ..at_answer(Class::Authz) }, Arc::clone(&judge)),
        ]);
        let mut chain = hooks.chain(None);
        let ended = chain.request("messaging", post("/x", "a")).await.unwrap_err();
        let response = chain.response(ended).await;
        assert_eq!(response.status, status);
        tokio::task::yield_now().await;
        assert_eq!((asked(&never), asked(&watch), asked(&judge)), (0, 1, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn answers_pass_their_own_hooks() {
    let hook = acting(|request| {
        assert_eq!((request.status, request.path.as_deref()), (Some(200), Some("/x")));
        let mutation = Mutation { status: Some(Status::Created), ..body("other") };
        (Duration::ZERO, Ok(Verdict::Mutate(mutation)))
    });
    let at = Spec { point: Point::InboundResponse, ..spec("a", "answers", Class::Transform) };
    let (hooks, _) = hooks(vec![(at, hook)]);
    let mut chain = hooks.chain(None);
    chain.request("messaging", post("/x", "a")).await.unwrap();
    let response = chain.response(Response::new(Status::Ok, "text/plain", Body::whole("one"))).await;
    assert_eq!(response.length, Some(5));
    assert_eq!(said(response).await, (Status::Created, "other".into()));
}

#[tokio::test(start_paused = true)]
async fn all_hooks_of_a_call_have_a_quarter_of_a_second_together() {
    let slow = || acting(|_| (Duration::from_millis(90), Ok(Verdict::Continue)));
    let hook = |id: &str| Spec { timeout: Duration::from_secs(9), ..spec("slow", id, Class::Authz) };
    let last = slow();
    let list = vec![(hook("a"), slow()), (hook("b"), slow()), (hook("c"), Arc::clone(&last)), (hook("d"), slow())];
    let (hooks, health) = hooks(list);
    let begun = Instant::now();
    let (status, text) = inbound(&hooks, post("/x", "")).await.unwrap_err();
    assert_eq!((status, begun.elapsed().as_millis() / 10), (Status::TimedOut, 25));
    assert!(text.contains("250 ms") && text.contains("slow/c"), "{text}");
    for _ in 0..10 {
        assert!(inbound(&hooks, post("/x", "")).await.is_err());
    }
    assert_eq!(asked(&last), 11, "its time was cut short by others: that opens no breaker");
    assert!(health.report().is_empty());
    // A request and its answer share it.
    let twice = |point| Spec { point, ..hook("a") };
    let (hooks, _) = super::tests::hooks(vec![
        (twice(Point::Inbound), slow()),
        (Spec { id: "b".into(), ..twice(Point::Inbound) }, slow()),
        (twice(Point::InboundResponse), slow()),
    ]);
    let mut chain = hooks.chain(None);
    chain.request("messaging", post("/x", "")).await.unwrap();
    assert_eq!(chain.response(Response::empty(Status::Ok)).await.status, Status::TimedOut);
}

#[tokio::test(start_paused = true)]
async fn a_breaker_leaves_a_hook_alone_and_tries_it_again() {
    let well = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let is_well = Arc::clone(&well);
    let acting = acting(move |_| {
        let gone = Failure::Undecided("its module has gone".into());
        (Duration::ZERO, if is_well.load(Ordering::Relaxed) { Ok(Verdict::Continue) } else { Err(gone) })
    });
    let (hooks, health) = hooks(vec![(spec("guard", "gate", Class::Authz), Arc::clone(&acting))]);
    for _ in 0..9 {
        assert_eq!(inbound(&hooks, post("/x", "")).await.unwrap_err().0, Status::Unavailable);
    }
    assert_eq!(asked(&acting), 5);
    let report = health.report();
    assert_eq!((report[0].code.as_str(), report[0].detail.as_str()), ("hook.off", "guard/gate"));
    assert_eq!(hooks.report().points[0].hooks[0].breaker, "open");
    sleep(Duration::from_secs(1)).await;
    assert!(inbound(&hooks, post("/x", "")).await.is_err());
    assert_eq!(asked(&acting), 6);
    well.store(true, Ordering::Relaxed);
    sleep(Duration::from_secs(2)).await;
    assert!(inbound(&hooks, post("/x", "")).await.is_ok() && inbound(&hooks, post("/x", "")).await.is_ok());
    assert!(health.report().is_empty());
    let row = &hooks.report().points[0].hooks[0];
    assert_eq!(
        (row.calls, row.failed, row.last_failure.as_str(), row.breaker.as_str()),
        (12, 10, "undecided", "closed")
    );
}

#[tokio::test(start_paused = true)]
async fn hooks_without_an_order_let_nothing_pass_and_the_rest_goes_on() {
    let one = Spec { before: vec!["b".into()], ..spec("a", "x", Class::Authz) };
    let other = Spec { before: vec!["a/x".into()], ..spec("b", "y", Class::Authz) };
    let (hooks, _) = hooks(vec![(one, says(Ok(Verdict::Continue))), (other, says(Ok(Verdict::Continue)))]);
    let (status, text) = inbound(&hooks, post("/x", "")).await.unwrap_err();
    assert!(status == Status::Unavailable && text.contains("a/x → b/y → a/x"), "{text}");
    assert!(hooks.report().points[0].cycle.contains("a/x → b/y → a/x"));
    let operator = Request { caller: Caller::Operator, ..post("/x", "a") };
    assert!(inbound(&hooks, operator).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_module_is_not_asked_about_its_own_requests_to_peers() {
    let acting = says(Ok(Verdict::deny("no", "No.")));
    let at = Spec { point: Point::Outbound, ..spec("guard", "out", Class::Authz) };
    let (hooks, _) = hooks(vec![(at, Arc::clone(&acting))]);
    let post = || PeerRequest::post("/x", "text/plain", Body::whole("a"));
    assert!(hooks.chain(Some("guard")).outbound("guard", PEER, post()).await.is_ok());
    let refused = hooks.chain(Some("messaging")).outbound("messaging", PEER, post()).await.unwrap_err();
    assert_eq!((refused.status, asked(&acting)), (Status::Forbidden, 1));
}

#[tokio::test(start_paused = true)]
async fn figures_and_breakers_outlive_a_change_of_the_other_hooks() {
    let gate = || (spec("guard", "gate", Class::Authz), says(Ok(Verdict::Continue)) as Arc<dyn Askable>);
    let (hooks, _) = hooks(Vec::new());
    hooks.set(vec![gate()], &[]);
    inbound(&hooks, post("/x", "")).await.unwrap();
    let other = (spec("a", "first", Class::Authz), says(Ok(Verdict::Continue)) as Arc<dyn Askable>);
    hooks.set(vec![gate(), other], &["guard".into()]);
    let rows = hooks.report().points.remove(0).hooks;
    let seen: Vec<_> = rows.iter().map(|row| (row.module.as_str(), row.because.as_str(), row.calls)).collect();
    assert_eq!(seen, [("guard", "list 1", 1), ("a", "name", 0)]);
}

#[tokio::test(start_paused = true)]
async fn a_hook_that_is_declared_anew_is_no_longer_off() {
    let gone = || says(Err(Failure::Undecided("its module has gone".into()))) as Arc<dyn Askable>;
    let health = Arc::new(Health::default());
    let hooks = Hooks::new(&health);
    let gate = spec("guard", "gate", Class::Authz);
    hooks.set(vec![(gate.clone(), gone())], &[]);
    for _ in 0..5 {
        assert!(inbound(&hooks, post("/x", "")).await.is_err());
    }
    assert_eq!(health.report().len(), 1);
    hooks.set(vec![(gate.clone(), gone())], &[]);
    assert_eq!(health.report().len(), 1, "the same one");
    hooks.set(vec![(Spec { timeout: Duration::from_millis(80), ..gate }, gone())], &[]);
    assert!(health.report().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_hook_whose_module_is_swapped_is_waited_for_out_of_nobodys_time() {
    let hooks = Hooks::new(&Arc::new(Health::default()));
    let slow = acting(|_| (Duration::from_millis(40), Ok(Verdict::Continue)));
    let held = |id| (spec("guard", id, Class::Authz), Arc::new(Held(Duration::from_secs(3), Arc::clone(&slow))) as _);
    hooks.set(vec![held("one"), held("two")], &[]);
    assert_eq!(inbound(&hooks, post("/x", "y")).await.unwrap().0, "/x");
    assert_eq!(asked(&slow), 2);
    let report = hooks.report();
    let all: Vec<_> = report.points.iter().flat_map(|point| &point.hooks).collect();
    assert!(all.iter().all(|hook| hook.failed == 0 && hook.worst_micros < 100_000.0), "{all:?}");
}
