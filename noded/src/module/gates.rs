//! Which calls reach a module at all: those that its manifest declares, that were granted, that are short enough and not too many. A
//! module hears of no other: what hooks have changed is held to the same before it is called.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use openred_module::manifest::{Auth, Manifest, PermissionName, Rate, Route};
use openred_module::{Caller, ModuleError, Request, Status};

use super::granted::Granted;
use super::rate::Bucket;

/// Callers whose rates are remembered, of one module; the one that waits least is forgotten first.
const CALLERS: usize = 4096;

/// The gates of one module.
pub(super) struct Gates {
    manifest: Arc<Manifest>,
    granted: Arc<Granted>,
    buckets: Mutex<HashMap<(usize, Caller), Bucket>>,
}

impl Gates {
    pub(super) fn new(manifest: Arc<Manifest>, granted: Arc<Granted>) -> Self {
        Self { manifest, granted, buckets: Mutex::default() }
    }

    /// Lets a call through, with its body bounded, or refuses it; which route it goes to.
    pub(super) fn pass(&self, request: Request) -> Result<(Request, usize), ModuleError> {
        self.admit(request, None)
    }

    /// The same for a call that has passed to this route, and that hooks may have changed since: what is as it was, is not counted twice.
    pub(super) fn pass_again(&self, request: Request, route: usize) -> Result<Request, ModuleError> {
        self.admit(request, Some(route)).map(|(request, _)| request)
    }

    fn admit(&self, mut request: Request, counted: Option<usize>) -> Result<(Request, usize), ModuleError> {
        let (number, route) = self.find(&request)?;
        let is_counted = counted == Some(number);
        if matches!(request.caller, Caller::Peer(_))
            && !is_counted
            && !self.granted.may_do(PermissionName::RoutePeer, &route.entry())
        {
            let detail = format!("{} was not granted the route {}", self.manifest.id, route.entry());
            return Err(ModuleError::new(Status::Forbidden, "not-granted", detail));
        }
        // The manifest has none for the operator.
        if let Some(rate) = route.rate
            && !is_counted
            && !self.is_seldom(number, request.caller, rate, Instant::now())
        {
            return Err(ModuleError::new(Status::TooMany, "too-often", "this route takes calls less often"));
        }
        if request.length.is_some_and(|length| length > route.body_bytes) {
            let detail = format!("the body is longer than {} bytes", route.body_bytes);
            return Err(ModuleError::new(Status::TooLarge, "body-too-long", detail));
        }
        let body = std::mem::replace(&mut request.body, openred_module::Body::empty());
        request.body = body.limited(route.body_bytes);
        Ok((request, number))
    }

    fn find(&self, request: &Request) -> Result<(usize, &Route), ModuleError> {
        let none = || ModuleError::not_found("no-such-route", "this module has no such route");
        let auth = match request.caller {
            Caller::Peer(_) => Auth::Peer,
            Caller::Operator => Auth::Operator,
            Caller::Module(_) => Auth::Module,
            // Connections do not come this way.
            Caller::Loopback => return Err(none()),
        };
        let fits = |route: &Route| route.auth == auth && route.path.matches(&request.path);
        let mut fitting = self.manifest.routes.iter().enumerate().filter(|(_, route)| fits(route)).peekable();
        if fitting.peek().is_none() {
            return Err(none());
        }
        fitting.find(|(_, route)| route.method == request.method).ok_or_else(|| {
            ModuleError::new(Status::MethodNotAllowed, "wrong-method", "this route takes another method")
        })
    }

    fn is_seldom(&self, route: usize, caller: Caller, rate: Rate, now: Instant) -> bool {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() >= CALLERS && !buckets.contains_key(&(route, caller)) {
            let oldest = buckets.iter().min_by_key(|(_, bucket)| bucket.at()).map(|(key, _)| *key);
            if let Some(oldest) = oldest {
                buckets.remove(&oldest);
            }
        }
        buckets.entry((route, caller)).or_insert_with(|| Bucket::full(rate, now)).take(rate, now)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use openred_module::{Body, Method, ModuleName};
    use openred_proto::id::NodeId;

    use super::super::granted::Used;
    use super::*;

    const MANIFEST: &str = "id = \"m\"\nversion = \"1.0.0\"\nprogram = \"m\"\ndescription = \"d\"\n
[[route]]\nmethod = \"POST\"\npath = \"/a/{b}\"\nauth = \"peer\"\nbody_bytes = 4\nrate = { per_second = 1, burst = 2 }\n
[[route]]\nmethod = \"GET\"\npath = \"/c\"\nauth = \"peer\"\n
[[route]]\nmethod = \"GET\"\npath = \"/o\"\nauth = \"operator\"\n
[[route]]\nmethod = \"GET\"\npath = \"/m\"\nauth = \"module\"\nrate = { per_second = 1, burst = 2 }\n
[[route]]\nmethod = \"POST\"\npath = \"/p\"\nauth = \"peer\"\n
[[route]]\nmethod = \"POST\"\npath = \"/b\"\nauth = \"peer\"\nrate = { per_second = 1, burst = 1 }\n";

    fn gates() -> Gates {
        let manifest = Arc::new(Manifest::parse("openred.toml", MANIFEST).unwrap());
        let grants = openred_module::manifest::Grants::parse(["route.peer=POST /a/{b}", "route.peer=POST /b"]).unwrap();
        Gates::new(manifest, Granted::new("m", grants, &Used::nowhere()))
    }

    fn call(
        gates: &Gates,
        caller: Caller,
        method: Method,
        path: &str,
        body: &'static [u8],
    ) -> Result<(), &'static str> {
        let request = Request::new(caller, method, path).with_body("", Body::whole(body));
        gates.pass(request).map(drop).map_err(|error| error.code)
    }

    #[test]
    fn only_what_is_declared_granted_short_and_seldom_passes() {
        let (gates, peer) = (gates(), Caller::Peer(NodeId::from_bytes([1; 32])));
        assert_eq!(call(&gates, peer, Method::Post, "/a/x", b"1234"), Ok(()));
        assert_eq!(call(&gates, peer, Method::Post, "/a/x", b"12345"), Err("body-too-long"));
        assert_eq!(call(&gates, peer, Method::Post, "/a/x", b""), Err("too-often"));
        let other = Caller::Peer(NodeId::from_bytes([2; 32]));
        assert_eq!(call(&gates, other, Method::Post, "/a/x", b""), Ok(()), "each has a bucket of its own");
        assert_eq!(call(&gates, peer, Method::Get, "/a/x", b""), Err("wrong-method"));
        assert_eq!(call(&gates, peer, Method::Get, "/c", b""), Err("not-granted"));
        assert_eq!(call(&gates, peer, Method::Get, "/o", b""), Err("no-such-route"));
        assert_eq!(call(&gates, Caller::Operator, Method::Get, "/o", b""), Ok(()));
        assert_eq!(call(&gates, Caller::Operator, Method::Post, "/a/x", b""), Err("no-such-route"));
        assert_eq!(call(&gates, peer, Method::Post, "/a/", b""), Err("no-such-route"));
    }

    #[test]
    fn a_module_that_calls_is_held_to_the_rate_like_a_peer() {
        let gates = gates();
        let caller = |name| Caller::Module(ModuleName::new(name).unwrap());
        for _ in 0..2 {
            assert_eq!(call(&gates, caller("one"), Method::Get, "/m", b""), Ok(()));
        }
        assert_eq!(call(&gates, caller("one"), Method::Get, "/m", b""), Err("too-often"));
        assert_eq!(call(&gates, caller("two"), Method::Get, "/m", b""), Ok(()), "each has a bucket of its own");
    }

    #[test]
    fn what_a_hook_has_made_of_a_call_passes_the_gates_again() {
        let (gates, peer) = (gates(), Caller::Peer(NodeId::from_bytes([1; 32])));
        let request =
            |path: &str, body: &'static [u8]| Request::new(peer, Method::Post, path).with_body("", Body::whole(body));
        let again = |path: &str, body: &'static [u8], route| {
            gates.pass_again(request(path, body), route).map(drop).map_err(|error| error.code)
        };
        let (_, route) = gates.pass(request("/a/x", b"1234")).unwrap();
        for _ in 0..9 {
            assert_eq!(again("/a/y", b"1234", route), Ok(()), "it is the same call, and counted once");
        }
        assert_eq!(again("/a/x", b"12345", route), Err("body-too-long"));
        assert_eq!(again("/p", b"", route), Err("not-granted"));
        assert_eq!(again("/o", b"", route), Err("no-such-route"));
        // To another route it is another call.
        assert_eq!(again("/b", b"", route), Ok(()));
        assert_eq!(again("/b", b"", route), Err("too-often"));
    }
}
