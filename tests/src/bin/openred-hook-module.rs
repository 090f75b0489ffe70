//! A module for measurements: it echoes, lets every call pass its hook, and times its own questions to its node.
//!
//! What it is asked comes from `openred-bench modules`, in the node's place.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use openred_module::{
    Body, Context, HookRequest, Hooks, Manifest, Method, Module, ModuleError, Request, Response, Routes, Status,
    Verdict, async_trait,
};

/// Most questions of one call.
const QUESTIONS: u32 = 100_000;

struct Hooked;

#[async_trait]
impl Module for Hooked {
    fn manifest(&self) -> Manifest {
        Manifest { id: "hooked", version: "1.0.0", summary: "For measurements" }
    }

    fn routes(routes: &mut Routes<Self>) {
        routes.operator(Method::Post, "/echo", 1 << 20, Self::echo);
        routes.operator(Method::Get, "/unary/{count}", 0, Self::unary);
    }

    fn middleware(hooks: &mut Hooks<Self>) {
        hooks.on("pass", Self::pass);
    }
}

impl Hooked {
    async fn echo(self: Arc<Self>, _: Context, request: Request) -> Result<Response, ModuleError> {
        Ok(Response::new(Status::Ok, &request.content_type, request.body))
    }

    /// Reads a row of its node again and again, a unary call each; how long each took, in microseconds.
    async fn unary(self: Arc<Self>, context: Context, request: Request) -> Result<Response, ModuleError> {
        let count: u32 = request.params.get("count").parse().unwrap_or(0).min(QUESTIONS);
        let mut took = Vec::with_capacity(count as usize);
        for _ in 0..count {
            let begun = Instant::now();
            let row = context.get("row").await?;
            took.push(format!("{:.1}", begun.elapsed().as_nanos() as f64 / 1e3));
            if row.is_none() {
                return Err(ModuleError::not_found("no-row", "there is nothing to read"));
            }
        }
        Ok(Response::new(Status::Ok, "text/plain", Body::whole(took.join(" "))))
    }

    async fn pass(self: Arc<Self>, _: Context, _: HookRequest) -> Result<Verdict, ModuleError> {
        Ok(Verdict::Continue)
    }
}

fn main() -> ExitCode {
    openred_module::run(Hooked)
}
