//! Typed handlers: what a handler names as its arguments is taken out of the call before it runs, and what it returns becomes the answer.
//!
//! A handler is a method of the module, `async fn greet(self: Arc<Self>, context: Context, greet: Json<Greet>) -> Result<Json<Greeting>, ModuleError>`:
//! up to five arguments, each of a type that implements [`Extract`], in any order. An argument that cannot be had refuses the call with
//! its own code, and the handler does not run. The body can be taken by one argument only ([`Json`], [`Bytes`], [`String`],
//! [`Body`] or the whole [`Request`]).

use std::future::Future;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use openred_proto::id::NodeId;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::body::Body;
use crate::context::Context;
use crate::error::{ModuleError, Status};
use crate::message::{Caller, JSON_LIMIT, Request, Response};
use crate::params::from_params;

/// Media type of text.
const TEXT: &str = "text/plain; charset=utf-8";
/// Media type of bytes that say nothing of themselves.
const BYTES: &str = "application/octet-stream";

/// A call on its way to its handler.
#[derive(Debug)]
pub struct Call {
    /// What the handler may use of the node.
    pub context: Context,
    /// The call. What takes the body leaves an empty one.
    pub request: Request,
}

impl Call {
    async fn bytes(&mut self) -> Result<Bytes, ModuleError> {
        let body = std::mem::replace(&mut self.request.body, Body::empty());
        Ok(body.collect(JSON_LIMIT).await?)
    }
}

/// What a handler can take as an argument.
pub trait Extract: Sized + Send {
    /// Takes it out of the call.
    ///
    /// # Errors
    /// The refusal that the caller gets in place of the handler's answer.
    fn extract(call: &mut Call) -> impl Future<Output = Result<Self, ModuleError>> + Send;
}

impl Extract for Context {
    async fn extract(call: &mut Call) -> Result<Self, ModuleError> {
        Ok(call.context.clone())
    }
}

impl Extract for Caller {
    async fn extract(call: &mut Call) -> Result<Self, ModuleError> {
        Ok(call.request.caller)
    }
}

/// The peer that calls; `not-a-peer` where the operator does.
impl Extract for NodeId {
    async fn extract(call: &mut Call) -> Result<Self, ModuleError> {
        call.request.peer()
    }
}

/// The whole call, with its body.
impl Extract for Request {
    async fn extract(call: &mut Call) -> Result<Self, ModuleError> {
        let left = Request::new(call.request.caller, call.request.method, "");
        Ok(std::mem::replace(&mut call.request, left))
    }
}

/// The body as a stream.
impl Extract for Body {
    async fn extract(call: &mut Call) -> Result<Self, ModuleError> {
        Ok(std::mem::replace(&mut call.request.body, Body::empty()))
    }
}

/// The whole body, of at most 4 MiB and at most the route's limit.
impl Extract for Bytes {
    async fn extract(call: &mut Call) -> Result<Self, ModuleError> {
        call.bytes().await
    }
}

/// The whole body as UTF-8, of at most 4 MiB and at most the route's limit.
impl Extract for String {
    async fn extract(call: &mut Call) -> Result<Self, ModuleError> {
        let bytes = call.bytes().await?;
        Self::from_utf8(bytes.into()).map_err(|_| ModuleError::bad_request("not-utf8", "the body is no UTF-8 text"))
    }
}

/// A JSON document: as an argument, the body (`bad-json` where it is not of this shape); as a result, the answer.
///
/// ```
/// # use std::sync::Arc;
/// # use openred_module::{Json, ModuleError, Routes, Method};
/// # struct Greeter;
/// #[derive(serde::Deserialize)]
/// struct Greet {
///     name: String,
/// }
/// #[derive(serde::Serialize)]
/// struct Greeting {
///     text: String,
/// }
/// impl Greeter {
///     async fn greet(self: Arc<Self>, Json(greet): Json<Greet>) -> Result<Json<Greeting>, ModuleError> {
///         Ok(Json(Greeting { text: format!("Hello, {}", greet.name) }))
///     }
/// }
/// # fn routes(routes: &mut Routes<Greeter>) {
/// routes.operator(Method::Post, "/greet", 1024, Greeter::greet);
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Json<T>(pub T);

impl<T: DeserializeOwned + Send> Extract for Json<T> {
    async fn extract(call: &mut Call) -> Result<Self, ModuleError> {
        let body = std::mem::replace(&mut call.request.body, Body::empty());
        let request = Request::new(call.request.caller, call.request.method, "").with_body("", body);
        request.json().await.map(Self)
    }
}

/// What the pattern's `{names}` matched: one value for a pattern with one name, a tuple in the pattern's order, or a struct with
/// fields of these names. Numbers are read as numbers; `bad-path` where a value is none.
///
/// ```
/// # use std::sync::Arc;
/// # use openred_module::{ModuleError, Path};
/// # struct Library;
/// # impl Library {
/// /// For the pattern `/books/{shelf}/{number}`.
/// async fn book(self: Arc<Self>, Path((shelf, number)): Path<(String, u32)>) -> Result<String, ModuleError> {
///     Ok(format!("book {number} on {shelf}"))
/// }
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Path<T>(pub T);

impl<T: DeserializeOwned + Send> Extract for Path<T> {
    async fn extract(call: &mut Call) -> Result<Self, ModuleError> {
        from_params(&call.request.params).map(Self)
    }
}

/// What a handler can answer with.
pub trait IntoResponse {
    /// The answer.
    ///
    /// # Errors
    /// For what cannot be written as an answer: a type that JSON cannot hold.
    fn into_response(self) -> Result<Response, ModuleError>;
}

impl IntoResponse for Response {
    fn into_response(self) -> Result<Response, ModuleError> {
        Ok(self)
    }
}

/// Done; there is nothing to say.
impl IntoResponse for () {
    fn into_response(self) -> Result<Response, ModuleError> {
        Ok(Response::empty(Status::Ok))
    }
}

impl IntoResponse for Status {
    fn into_response(self) -> Result<Response, ModuleError> {
        Ok(Response::empty(self))
    }
}

impl<T: Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Result<Response, ModuleError> {
        Response::json(Status::Ok, &self.0)
    }
}

impl IntoResponse for String {
    fn into_response(self) -> Result<Response, ModuleError> {
        Ok(Response::new(Status::Ok, TEXT, Body::whole(self)))
    }
}

impl IntoResponse for &'static str {
    fn into_response(self) -> Result<Response, ModuleError> {
        Ok(Response::new(Status::Ok, TEXT, Body::whole(self)))
    }
}

impl IntoResponse for Bytes {
    fn into_response(self) -> Result<Response, ModuleError> {
        Ok(Response::new(Status::Ok, BYTES, Body::whole(self)))
    }
}

/// Another status than 200 for an answer.
impl<R: IntoResponse> IntoResponse for (Status, R) {
    fn into_response(self) -> Result<Response, ModuleError> {
        let mut response = self.1.into_response()?;
        response.status = self.0;
        Ok(response)
    }
}

/// A function that can serve a route; see the arguments in [`Extract`] and the results in [`IntoResponse`]. Implemented for methods of
/// a module, by nobody else.
pub trait Handler<M, Arguments>: Send + Sync + 'static {
    /// Takes the arguments out of the call and runs.
    fn call(self: Arc<Self>, module: Arc<M>, call: Call) -> BoxFuture<'static, Result<Response, ModuleError>>;
}

macro_rules! handler {
    ($($argument:ident),*) => {
        impl<M, F, A, R, E, $($argument),*> Handler<M, ($($argument,)*)> for F
        where
            M: Send + Sync + 'static,
            F: Fn(Arc<M>, $($argument),*) -> A + Send + Sync + 'static,
            A: Future<Output = Result<R, E>> + Send + 'static,
            R: IntoResponse,
            E: Into<ModuleError>,
            $($argument: Extract + 'static,)*
        {
            #[allow(non_snake_case, unused_variables, unused_mut, reason = "the arguments' names are their types', and there may be none")]
            fn call(self: Arc<Self>, module: Arc<M>, mut call: Call) -> BoxFuture<'static, Result<Response, ModuleError>> {
                Box::pin(async move {
                    $(let $argument = $argument::extract(&mut call).await?;)*
                    let answer = self(module, $($argument),*);
                    answer.await.map_err(Into::into)?.into_response()
                })
            }
        }
    };
}

handler!();
handler!(A1);
handler!(A1, A2);
handler!(A1, A2, A3);
handler!(A1, A2, A3, A4);
handler!(A1, A2, A3, A4, A5);
