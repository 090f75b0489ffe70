//! Which calls reach a module at all: those that its manifest declares, that were granted, that are short enough and not too many. A
//! module hears of no other.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use openred_module::manifest::{Auth, Manifest, PermissionName, Rate, Route};
use openred_module::{Caller, ModuleError, Request, Status};
use openred_proto::id::NodeId;

use super::granted::Granted;

/// Callers whose rates are remembered, of one module; the one that waits least is forgotten first.
const CALLERS: usize = 4096;

/// The gates of one module.
pub(super) struct Gates {
    manifest: Arc<Manifest>,
    granted: Arc<Granted>,
    buckets: Mutex<HashMap<(usize, NodeId), Bucket>>,
}

/// A token bucket. Time is an argument.
struct Bucket {
    tokens: f64,
    at: Instant,
}

impl Bucket {
    fn take(&mut self, rate: Rate, now: Instant) -> bool {
        let grown = now.saturating_duration_since(self.at).as_secs_f64() * f64::from(rate.per_second);
        (self.tokens, self.at) = ((self.tokens + grown).min(f64::from(rate.burst)), now);
        let has = self.tokens >= 1.0;
        if has {
            self.tokens -= 1.0;
        }
        has
    }
}

impl Gates {
    pub(super) fn new(manifest: Arc<Manifest>, granted: Arc<Granted>) -> Self {
        Self { manifest, granted, buckets: Mutex::default() }
    }

    /// Lets a call through, with its body bounded, or refuses it.
    pub(super) fn pass(&self, mut request: Request) -> Result<Request, ModuleError> {
        let (number, route) = self.find(&request)?;
        if let Caller::Peer(peer) = request.caller {
            if !self.granted.may_do(PermissionName::RoutePeer, &route.entry()) {
                let detail = format!("{} was not granted the route {}", self.manifest.id, route.entry());
                return Err(ModuleError::new(Status::Forbidden, "not-granted", detail));
            }
            if let Some(rate) = route.rate
                && !self.is_seldom(number, peer, rate, Instant::now())
            {
                return Err(ModuleError::new(Status::TooMany, "too-often", "this route takes calls less often"));
            }
        }
        if request.length.is_some_and(|length| length > route.body_bytes) {
            let detail = format!("the body is longer than {} bytes", route.body_bytes);
            return Err(ModuleError::new(Status::TooLarge, "body-too-long", detail));
        }
        let body = std::mem::replace(&mut request.body, openred_module::Body::empty());
        request.body = body.limited(route.body_bytes);
        Ok(request)
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

    fn is_seldom(&self, route: usize, peer: NodeId, rate: Rate, now: Instant) -> bool {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() >= CALLERS && !buckets.contains_key(&(route, peer)) {
            let oldest = buckets.iter().min_by_key(|(_, bucket)| bucket.at).map(|(key, _)| *key);
            if let Some(oldest) = oldest {
                buckets.remove(&oldest);
            }
        }
        let full = || Bucket { tokens: f64::from(rate.burst), at: now };
        buckets.entry((route, peer)).or_insert_with(full).take(rate, now)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::time::Duration;

    use openred_module::{Body, Method};

    use super::super::granted::Used;
    use super::*;

    const MANIFEST: &str = "id = \"m\"\nversion = \"1.0.0\"\nprogram = \"m\"\ndescription = \"d\"\n
[[route]]\nmethod = \"POST\"\npath = \"/a/{b}\"\nauth = \"peer\"\nbody_bytes = 4\nrate = { per_second = 1, burst = 2 }\n
[[route]]\nmethod = \"GET\"\npath = \"/c\"\nauth = \"peer\"\n
[[route]]\nmethod = \"GET\"\npath = \"/o\"\nauth = \"operator\"\n";

    fn gates() -> Gates {
        let manifest = Arc::new(Manifest::parse("openred.toml", MANIFEST).unwrap());
        let grants = openred_module::manifest::Grants::parse(["route.peer=POST /a/{b}"]).unwrap();
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
    fn a_bucket_fills_again() {
        let (rate, begun) = (Rate { per_second: 2, burst: 2 }, Instant::now());
        let mut bucket = Bucket { tokens: 2.0, at: begun };
        assert!(bucket.take(rate, begun) && bucket.take(rate, begun) && !bucket.take(rate, begun));
        assert!(bucket.take(rate, begun + Duration::from_millis(500)));
        assert!(!bucket.take(rate, begun + Duration::from_millis(600)));
    }
}
