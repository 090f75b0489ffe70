//! What a module signs, seals and asks of modules beside it, in the test host: what it promises, authors test against.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;

use openred_module::{
    Body, CallError, Caller, Context, DEPTH, HostError, Manifest, Method, Module, ModuleError, PeerRequest, Request,
    Response, Routes, Status, TestHost, async_trait, verify,
};

/// One of a row of modules, each of which calls the next.
struct Link(&'static str, Option<&'static str>);

#[async_trait]
impl Module for Link {
    fn manifest(&self) -> Manifest {
        Manifest { id: self.0, version: "1.0.0", summary: "for tests" }
    }

    fn routes(routes: &mut Routes<Self>) {
        routes.module(Method::Get, "/next", 0, Self::next);
        routes.operator(Method::Get, "/next", 0, Self::next);
    }
}

impl Link {
    /// Calls the next one, and says who there was.
    async fn next(self: Arc<Self>, context: Context, request: Request) -> Result<Response, ModuleError> {
        let caller = match request.caller {
            Caller::Module(name) => name.as_str().to_owned(),
            _ => "operator".to_owned(),
        };
        let rest = match self.1 {
            None => "the last".to_owned(),
            Some(next) => match context.call_module(next, PeerRequest::get("/next")).await {
                Ok(response) => String::from_utf8(response.body.collect(1000).await?.to_vec()).unwrap(),
                Err(error) => format!("{error:?}"),
            },
        };
        Ok(Response::new(Status::Ok, "text/plain", Body::whole(format!("{caller} > {} > {rest}", self.0))))
    }
}

async fn said(host: &TestHost) -> String {
    let response = host.operator(PeerRequest::get("/next")).await;
    String::from_utf8(response.body.collect(1000).await.unwrap().to_vec()).unwrap()
}

/// Modules in a row on one node, the last of which calls `last`.
async fn row(names: &[&'static str], last: Option<&'static str>) -> Vec<TestHost> {
    let mut hosts = Vec::new();
    for (place, name) in names.iter().enumerate() {
        let next = names.get(place + 1).copied().or(last);
        hosts.push(TestHost::start(place as u8 + 1, Link(name, next)).await);
    }
    for one in &hosts {
        hosts.iter().for_each(|other| one.beside(other));
    }
    hosts
}

fn run(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(test);
}

#[test]
fn modules_call_each_other_four_deep_and_never_in_a_circle() {
    run(async {
        let hosts = row(&["a", "b", "c", "d"], None).await;
        assert_eq!(hosts.len(), DEPTH);
        assert!(said(&hosts[0]).await.ends_with("c > d > the last"));
        let hosts = row(&["a", "b", "c", "d", "e"], None).await;
        assert!(said(&hosts[0]).await.ends_with("c > d > TooDeep"));
        assert!(said(&hosts[1]).await.ends_with("the last"), "four from there");
        let hosts = row(&["a", "b", "c"], Some("a")).await;
        assert!(said(&hosts[0]).await.ends_with("b > c > Cycle"));
    });
}

#[test]
fn a_call_waits_no_longer_than_its_caller_and_needs_its_grant() {
    run(async {
        let hosts = row(&["a", "b"], None).await;
        let past = PeerRequest { deadline: Some(hosts[0].context().now()), ..PeerRequest::get("/next") };
        assert_eq!(hosts[0].context().call_module("b", past).await.map(drop), Err(CallError::TimedOut));
        let late = PeerRequest { deadline: Some(hosts[0].context().now()), ..PeerRequest::get("/next") };
        let response = hosts[0].operator(late).await;
        let text = response.body.collect(1000).await.unwrap();
        assert!(text.ends_with(b"TimedOut"), "its caller waits no longer: {text:?}");
        hosts[0].withdraw_grants();
        assert!(said(&hosts[0]).await.ends_with("NotGranted"));
        assert_eq!(hosts[0].context().sign("words", "x").await, Err(HostError::NotGranted));
        assert_eq!(hosts[0].context().seal("c", "x").await, Err(HostError::NotGranted));
    });
}

#[test]
fn a_word_is_of_one_module_in_one_domain_and_a_seal_of_one_module_and_context() {
    run(async {
        let hosts = row(&["a", "b"], None).await;
        let (a, b) = (hosts[0].context(), hosts[1].context());
        let word = a.sign("words.v1", "it rains").await.unwrap();
        let signer = hosts[0].signer();
        assert_eq!(verify(&word, &signer, "a", "words.v1", b"it rains").unwrap(), a.now());
        for (module, domain, body) in
            [("b", "words.v1", "it rains"), ("a", "words.v2", "it rains"), ("a", "words.v1", "it pours")]
        {
            assert!(verify(&word, &signer, module, domain, body.as_bytes()).is_err(), "{module} {domain} {body}");
        }
        assert!(verify(&word, &hosts[1].signer(), "a", "words.v1", b"it rains").is_err());
        let sealed = a.seal("one", "secret").await.unwrap();
        assert_eq!(a.unseal("one", sealed.clone()).await.unwrap(), "secret");
        assert_eq!(a.unseal("two", sealed.clone()).await, Err(HostError::NotSealed));
        assert_eq!(b.unseal("one", sealed).await, Err(HostError::NotSealed));
    });
}
