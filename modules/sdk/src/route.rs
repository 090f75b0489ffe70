//! Which handler serves which call: method, path pattern, who may call, how long the body may be.

use std::sync::Arc;

use futures_util::future::BoxFuture;

use crate::error::{ModuleError, Status};
use crate::handler::{Call, Handler};
use crate::manifest::{self, Auth};
use crate::message::{Caller, Method, Request, Response};
use crate::params::Params;

/// Longest path that is looked at, in bytes.
const PATH_LIMIT: usize = 1024;

/// A handler with its module, its type erased.
pub(crate) type Serve = Arc<dyn Fn(Call) -> BoxFuture<'static, Result<Response, ModuleError>> + Send + Sync>;

/// Who may call a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Who {
    Peer,
    Operator,
    Module,
    Loopback,
}

impl Who {
    fn of(auth: Auth) -> Self {
        match auth {
            Auth::Peer => Self::Peer,
            Auth::Operator => Self::Operator,
            Auth::Module => Self::Module,
        }
    }

    fn admits(self, caller: Caller) -> bool {
        let of = match caller {
            Caller::Peer(_) => Self::Peer,
            Caller::Operator => Self::Operator,
            Caller::Module(_) => Self::Module,
            Caller::Loopback => Self::Loopback,
        };
        self == of
    }
}

/// The routes of a module under construction. A pattern's `{name}` stands for one segment of the path.
///
/// ```
/// # use std::sync::Arc;
/// # use openred_module::{Method, ModuleError, Path, Routes};
/// # struct Shelf;
/// # impl Shelf {
/// #     async fn list(self: Arc<Self>) -> Result<(), ModuleError> { Ok(()) }
/// #     async fn book(self: Arc<Self>, Path(_): Path<u32>) -> Result<(), ModuleError> { Ok(()) }
/// # }
/// fn routes(routes: &mut Routes<Shelf>) {
///     // The same handler for this node's operator and for linked peers; bodies of no bytes.
///     routes.operator(Method::Get, "/books", 0, Shelf::list);
///     routes.peer(Method::Get, "/books", 0, Shelf::list);
///     routes.peer(Method::Get, "/books/{number}", 0, Shelf::book);
/// }
/// ```
pub struct Routes<M> {
    module: Arc<M>,
    routes: Vec<Route>,
    claims: Vec<manifest::Route>,
    unclaimed: Option<String>,
}

pub(crate) struct Route {
    who: Who,
    method: Method,
    pattern: &'static str,
    body_limit: u64,
    handler: Serve,
}

impl<M: Send + Sync + 'static> Routes<M> {
    /// With the routes that the manifest claims, where the module has brought it.
    pub(crate) fn new(module: Arc<M>, claims: Vec<manifest::Route>) -> Self {
        Self { module, routes: Vec::new(), claims, unclaimed: None }
    }

    /// The routes; or the first one that only the code has (`true`), or only the manifest.
    pub(crate) fn into_vec(self, has_manifest: bool) -> Result<Vec<Route>, (bool, String)> {
        if let Some(unclaimed) = self.unclaimed {
            return Err((true, unclaimed));
        }
        if has_manifest {
            // Connections are asked for by a permission, not by a route.
            let claimed = |route: &Route| route.who == Who::Loopback || self.claims.iter().any(|claim| route.is(claim));
            if let Some(route) = self.routes.iter().find(|route| !claimed(route)) {
                return Err((true, name(route.method, route.pattern)));
            }
            if let Some(claim) = self.claims.iter().find(|claim| !self.routes.iter().any(|route| route.is(claim))) {
                return Err((false, name(claim.method, claim.path.as_str())));
            }
        }
        Ok(self.routes)
    }

    /// Serves `GET` of this path. Who may call, and how long the body may be, are the manifest's to say.
    pub fn get<A>(&mut self, pattern: &'static str, handler: impl Handler<M, A>) {
        self.claimed(Method::Get, pattern, handler);
    }

    /// Serves `POST` of this path. Who may call, and how long the body may be, are the manifest's to say.
    pub fn post<A>(&mut self, pattern: &'static str, handler: impl Handler<M, A>) {
        self.claimed(Method::Post, pattern, handler);
    }

    fn claimed<A>(&mut self, method: Method, pattern: &'static str, handler: impl Handler<M, A>) {
        let handler = self.serve(handler);
        let fits = |claim: &&manifest::Route| claim.method == method && claim.path.as_str() == pattern;
        let before = self.routes.len();
        for claim in self.claims.iter().filter(fits) {
            let (who, body_limit) = (Who::of(claim.auth), claim.body_bytes);
            self.routes.push(Route { who, method, pattern, body_limit, handler: Arc::clone(&handler) });
        }
        if self.routes.len() == before {
            self.unclaimed.get_or_insert_with(|| name(method, pattern));
        }
    }

    fn serve<A>(&self, handler: impl Handler<M, A>) -> Serve {
        let (module, handler) = (Arc::clone(&self.module), Arc::new(handler));
        Arc::new(move |call| Arc::clone(&handler).call(Arc::clone(&module), call))
    }

    /// A route for the same module of linked peers. `body_limit` in bytes: a longer body fails while it is read.
    pub fn peer<A>(&mut self, method: Method, pattern: &'static str, body_limit: u64, handler: impl Handler<M, A>) {
        self.add(Who::Peer, method, pattern, body_limit, handler);
    }

    /// A route for the operator of this node.
    pub fn operator<A>(&mut self, method: Method, pattern: &'static str, body_limit: u64, handler: impl Handler<M, A>) {
        self.add(Who::Operator, method, pattern, body_limit, handler);
    }

    /// A route for other modules of this node that the operator has granted calls of this one.
    pub fn module<A>(&mut self, method: Method, pattern: &'static str, body_limit: u64, handler: impl Handler<M, A>) {
        self.add(Who::Module, method, pattern, body_limit, handler);
    }

    /// Connections to the address that the operator gave this module (`http.listen`). A call's body is what the client sends, the answer's
    /// body what it gets, for as long as the connection lasts; nobody is known to call. With the feature `http`, `http::serve` answers it.
    pub fn connection<A>(&mut self, handler: impl Handler<M, A>) {
        self.add(Who::Loopback, Method::Post, "/{address}/{client}", u64::MAX, handler);
    }

    fn add<A>(
        &mut self,
        who: Who,
        method: Method,
        pattern: &'static str,
        body_limit: u64,
        handler: impl Handler<M, A>,
    ) {
        let handler = self.serve(handler);
        self.routes.push(Route { who, method, pattern, body_limit, handler });
    }
}

impl Route {
    fn is(&self, claim: &manifest::Route) -> bool {
        Who::of(claim.auth) == self.who && claim.method == self.method && claim.path.as_str() == self.pattern
    }
}

fn name(method: Method, pattern: &str) -> String {
    let method = if method == Method::Get { "GET" } else { "POST" };
    format!("{method} {pattern}")
}

/// The first pair of routes that no call can tell apart.
pub(crate) fn conflict(routes: &[Route]) -> Option<&'static str> {
    let shape = |route: &Route| {
        let path: Vec<&str> =
            route.pattern.split('/').map(|part| if part.starts_with('{') { "{}" } else { part }).collect();
        (route.who, route.method == Method::Get, path)
    };
    let mut seen = std::collections::BTreeSet::new();
    routes.iter().find(|route| !seen.insert(shape(route))).map(|route| route.pattern)
}

/// Finds the handler of a call and fills its parameters. What a caller may not call does not exist for it.
pub(crate) fn find(routes: &[Route], request: &mut Request) -> Result<Serve, ModuleError> {
    let unknown = || ModuleError::not_found("no-such-route", "this module has no such route");
    if request.path.len() > PATH_LIMIT {
        return Err(unknown());
    }
    let mut other_method = false;
    for route in routes.iter().filter(|route| route.who.admits(request.caller)) {
        let Some(params) = match_path(route.pattern, &request.path) else { continue };
        if route.method != request.method {
            other_method = true;
            continue;
        }
        if request.length.is_some_and(|length| length > route.body_limit) {
            let detail = format!("the body is longer than {} bytes", route.body_limit);
            return Err(ModuleError::new(Status::TooLarge, "body-too-long", detail));
        }
        request.params = params;
        let body = std::mem::replace(&mut request.body, crate::Body::empty());
        request.body = body.limited(route.body_limit);
        return Ok(Arc::clone(&route.handler));
    }
    if other_method {
        return Err(ModuleError::new(Status::MethodNotAllowed, "wrong-method", "this route takes another method"));
    }
    Err(unknown())
}

/// Segments must be equal, or non-empty where the pattern names a parameter. No decoding, no normalising: what peers send is compared as it is.
fn match_path(pattern: &'static str, path: &str) -> Option<Params> {
    let mut params = Params::default();
    let mut wanted = pattern.split('/');
    let mut given = path.split('/');
    loop {
        match (wanted.next(), given.next()) {
            (None, None) => return Some(params),
            (Some(want), Some(have)) => match want.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')) {
                Some(_) if have.is_empty() => return None,
                Some(name) => {
                    params.add(name, have);
                }
                None if want == have => {}
                None => return None,
            },
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::match_path;

    #[test]
    fn patterns_match_whole_paths_only() {
        let hit = match_path("/files/{id}/range/{from}", "/files/ab/range/7").expect("matches");
        assert_eq!((hit.get("id"), hit.get("from"), hit.get("other")), ("ab", "7", ""));
        for miss in
            ["/files/ab/range", "/files/ab/range/7/", "/files//range/7", "files/ab/range/7", "/Files/ab/range/7", ""]
        {
            assert!(match_path("/files/{id}/range/{from}", miss).is_none(), "{miss}");
        }
    }
}
