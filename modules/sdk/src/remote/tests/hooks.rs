//! Hooks over the contract: verdicts as they were given, and what is none.
use super::*;
use crate::hook::{Class, Field, Fields, HookRequest, Mutation, Point, Verdict};
use crate::remote::{HookAsk, Undecided};

impl Probe {
    /// Does what the path says.
    pub(super) async fn gate(self: Arc<Self>, _: Context, request: HookRequest) -> Result<Verdict, ModuleError> {
        match request.path.as_deref() {
            Some("/deny") => Ok(Verdict::deny("not-now", "Later.")),
            Some("/body") => Ok(Verdict::Mutate(Mutation { body: Some("other".into()), ..Mutation::default() })),
            Some("/fail") => Err(ModuleError::new(Status::Conflict, "not-sure", "cannot say")),
            Some("/panic") => panic!("as asked"),
            Some("/hang") => {
                let _dropped = Dropped(Arc::clone(&self.dropped));
                self.entered.notify_one();
                std::future::pending().await
            }
            _ => Ok(Verdict::Continue),
        }
    }
}

fn ask(class: Class, hook: &str, path: &str) -> HookAsk {
    let request = HookRequest { path: Some(path.into()), ..HookRequest::new(Point::Inbound) };
    HookAsk { hook: hook.into(), class, changes: Fields::default().with(Field::Body), millis: 50, request }
}

#[test]
fn a_hook_is_asked_over_the_stream_and_may_hang_alone() {
    run(async {
        let node = Node::new().await;
        let probe = Probe::default();
        let (entered, dropped) = (Arc::clone(&probe.entered), Arc::clone(&probe.dropped));
        let (attached, _pipe) = node.attach(probe).await;
        let asked = |path: &'static str| attached.hook(ask(Class::Transform, "gate", path));
        assert_eq!(asked("/x").await, Ok(Verdict::Continue));
        assert_eq!(asked("/deny").await, Ok(Verdict::deny("not-now", "Later.")));
        let changed = Mutation { body: Some("other".into()), ..Mutation::default() };
        assert_eq!(asked("/body").await, Ok(Verdict::Mutate(changed)));
        assert_eq!(asked("/fail").await, Err(Undecided::Failed("not-sure".into())));
        assert_eq!(asked("/panic").await, Err(Undecided::Failed("module-panicked".into())));
        let none = attached.hook(ask(Class::Authz, "none", "/x")).await;
        assert_eq!(none, Err(Undecided::Failed("no-such-hook".into())));
        tokio::select! {
            _ = asked("/hang") => panic!("it hangs"),
            () = entered.notified() => {}
        }
        dropped.notified().await;
        assert_eq!(said(attached.dispatch(post("/echo", Body::whole("x"))).await).await.1, "x", "the rest goes on");
    });
}

#[test]
fn a_verdict_that_the_hook_may_not_give_ends_the_attachment() {
    run(async {
        let node = Node::new().await;
        let misdeeds = [(Class::Authz, "/body", Fault::BadVerdict), (Class::Observe, "/deny", Fault::BadVerdict)];
        for (class, path, fault) in misdeeds {
            let (attached, _pipe) = node.attach(Probe::default()).await;
            assert_eq!(attached.hook(ask(class, "gate", path)).await, Err(Undecided::Gone));
            assert_eq!(attached.ended().await, fault);
        }
        // Only the beginning of the body was shown.
        let (attached, _pipe) = node.attach(Probe::default()).await;
        let mut long = ask(Class::Transform, "gate", "/body");
        long.request.truncated = true;
        assert_eq!(attached.hook(long).await, Err(Undecided::Gone));
        assert_eq!(attached.ended().await, Fault::BadVerdict);
    });
}

fn verdict(call: u64, verdict: Option<wire::hook_reply::Verdict>) -> FromModule {
    FromModule::HookReply(wire::HookReply { call, verdict })
}

fn goes_on(call: u64) -> FromModule {
    verdict(call, Some(wire::hook_reply::Verdict::Continue(wire::Continue {})))
}

const MISDEEDS: [Misdeed; 8] = [
    (Fault::BadVerdict, |call| vec![verdict(call, None)]),
    (Fault::UnknownCall, |call| vec![goes_on(call + 1)]),
    (Fault::SecondAnswer, |call| vec![goes_on(call), goes_on(call)]),
    (Fault::OutOfTurn, |call| vec![reply(call, b"", End::Done)]),
    (Fault::OutOfTurn, |call| vec![chunk(call, 1, End::Done)]),
    (Fault::OutOfTurn, |call| vec![FromModule::EventDone(wire::EventDone { call })]),
    (Fault::OutOfTurn, |call| vec![FromModule::Cancelled(wire::Cancelled { call })]),
    (Fault::Garbage, |call| {
        let deny = wire::Deny { code: "no".into(), detail: "x".repeat(FRAME_BYTES) };
        vec![verdict(call, Some(wire::hook_reply::Verdict::Deny(deny)))]
    }),
];

#[test]
fn garbage_for_a_hook_goes_through_the_one_failure_policy() {
    run(async {
        let node = Node::new().await;
        for (number, (fault, misdeed)) in MISDEEDS.into_iter().enumerate() {
            let expected = node.expect(PROOF);
            let (bare, attached) = tokio::join!(Bare::dial_hooks(&node), expected.attached());
            let (mut bare, attached) = (bare, attached.unwrap());
            let module = async {
                let call = loop {
                    if let Some(FromHost::HookCall(call)) = bare.frames.message().await.unwrap().unwrap().kind {
                        assert_eq!((call.hook.as_str(), call.path.as_deref()), ("gate", Some("/x")));
                        break call.call;
                    }
                };
                for kind in misdeed(call) {
                    bare.say(kind).await;
                }
            };
            let (answer, ()) = tokio::join!(attached.hook(ask(Class::Authz, "gate", "/x")), module);
            assert_eq!(attached.ended().await, fault, "misdeed {number}");
            assert!(matches!(answer, Err(Undecided::Gone) | Ok(Verdict::Continue)), "misdeed {number}: {answer:?}");
        }
        // A verdict for a call of a route.
        let expected = node.expect(PROOF);
        let (mut bare, attached) = (Bare::dial_hooks(&node).await, expected.attached().await.unwrap());
        let module = async {
            let call = bare.call().await;
            bare.say(goes_on(call)).await;
        };
        let (answer, ()) = tokio::join!(attached.dispatch(post("/x", Body::empty())), module);
        assert_eq!((answer.status, attached.ended().await), (Status::Unavailable, Fault::OutOfTurn));
    });
}

#[test]
fn a_program_without_hooks_is_not_asked() {
    run(async {
        let node = Node::new().await;
        let expected = node.expect(PROOF);
        let (_bare, attached) = tokio::join!(Bare::dial(&node, PROOF), expected.attached());
        let attached = attached.unwrap();
        assert_eq!(attached.hook(ask(Class::Authz, "gate", "/x")).await, Err(Undecided::Unserved));
    });
}

impl Bare {
    async fn dial_hooks(node: &Node) -> Self {
        let hello = wire::Hello { features: vec!["hooks".into()], ..hello(PROOF) };
        let (mut bare, ticket) = Self::first(node, hello).await.unwrap();
        bare.host.open(wire::OpenRequest { ticket }).await.unwrap();
        bare
    }
}
