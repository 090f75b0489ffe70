//! Says who somebody is: the operator over HTTP by a password and a one-time code, and peers by a challenge to their keys.
//!
//! The API is served on this machine's loopback where the operator has named an address (`auth.listen`): [`api`] is its routes, [`login`] one attempt,
//! [`session`] what an attempt that was right opens, [`operations`] what can be asked for, [`openapi`] its description. Users are rows ([`account`], [`password`],
//! [`totp`]) that only the admin socket's commands change ([`operator`]). [`challenge`] is the half that peers see.
//!
//! It has no power of its own: each operation needs the node's leave (`node.operate`), each statement its key process.
#![forbid(unsafe_code)]

mod account;
mod api;
mod challenge;
mod document;
mod error;
mod login;
mod openapi;
mod operations;
mod operator;
mod password;
mod session;
mod totp;

use std::sync::Arc;

use openred_module::{Context, Module, ModuleError, Request, Response, Routes, http};

pub use account::Role;
pub use document::{Ended, Enrolled, Proved, SessionView, Sessions, User, Users};
pub use totp::code_at;

/// The module. What must survive is in the host's store.
#[derive(Debug, Default)]
pub struct Auth {
    door: login::Door,
    answered: challenge::Answered,
}

#[openred_module::module]
impl Module for Auth {
    fn routes(routes: &mut Routes<Self>) {
        routes.get("/users", Self::users);
        routes.post("/users/{name}", Self::add_user);
        routes.post("/users/{name}/password", Self::set_password);
        routes.post("/users/{name}/totp", Self::enrol);
        routes.post("/users/{name}/unlock", Self::unlock);
        routes.post("/users/{name}/remove", Self::remove_user);
        routes.get("/sessions", Self::sessions);
        routes.post("/sessions/{id}/end", Self::end_sessions);
        routes.post("/challenge/{peer}", Self::challenge);
        routes.post("/prove", Self::prove);
        routes.connection(Self::connection);
    }
}

impl Auth {
    /// Somebody on this machine.
    async fn connection(self: Arc<Self>, context: Context, request: Request) -> Result<Response, ModuleError> {
        http::serve(request, api::router(self, context))
    }
}
