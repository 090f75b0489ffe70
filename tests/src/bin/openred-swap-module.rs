//! A module for tests of swaps: it counts, and what else each version of it does stands in the program itself, behind a mark, as does its
//! version; so a test makes another version of it by changing bytes (`openred_tests::swap_desk`).
#![forbid(unsafe_code)]

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use openred_module::{
    Batch, Committed, Context, HookRequest, Hooks, Manifest, Method, Module, ModuleError, Request, Response, Routes,
    Status, Verdict, async_trait,
};
use serde_json::json;

const COUNT: &str = "count";
/// Calls that wait for what does not come, or is told later.
static WAITING: AtomicUsize = AtomicUsize::new(0);

struct Swapped;

/// What this version does beside counting; through a black box, as the version: folded into the code, the text would not be there to be changed.
fn act() -> &'static str {
    let act = std::hint::black_box("openred-swap-act:................");
    act.trim_start_matches("openred-swap-act:").trim_end_matches('.')
}

async fn for_ever() -> ! {
    loop {
        tokio::time::sleep(Duration::from_secs(3600)).await;
    }
}

#[async_trait]
impl Module for Swapped {
    fn manifest(&self) -> Manifest {
        Manifest { id: "swapped", version: std::hint::black_box("1.0.0+openred.swap"), summary: "counts" }
    }

    fn routes(routes: &mut Routes<Self>) {
        routes.operator(Method::Get, "/shown", 0, Self::shown);
        routes.operator(Method::Post, "/look", 0, Self::shown);
        routes.operator(Method::Post, "/add", 0, Self::add);
        routes.operator(Method::Post, "/hang", 0, Self::hang);
        routes.operator(Method::Post, "/late", 0, Self::late);
        routes.operator(Method::Post, "/go", 0, Self::go);
        routes.operator(Method::Post, "/end", 0, Self::end);
    }

    fn middleware(hooks: &mut Hooks<Self>) {
        hooks.on("gate", Self::gate);
    }

    async fn start(self: Arc<Self>, context: Context) -> Result<(), ModuleError> {
        match act() {
            // Longer than all hooks of a call have together.
            "start-slow" => {
                tokio::time::sleep(Duration::from_secs(2)).await;
                Ok(())
            }
            "start-fails" => Err(ModuleError::new(Status::Internal, "unwilling", "as was asked")),
            "start-hangs" => {
                // Once: what it has written lasts.
                let begun = format!("begun {}", self.manifest().version);
                if context.get(begun.clone()).await?.is_none() {
                    context.put(begun, "yes").await?;
                    for_ever().await
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    async fn migrate(self: Arc<Self>, context: Context, from: String) -> Result<(), ModuleError> {
        match act() {
            "migrates" => Ok(context.put("migrated", from).await?),
            "half-migrates" => {
                context.put(COUNT, "1000000").await?;
                Err(ModuleError::new(Status::Internal, "half-way", "as was asked"))
            }
            "migrate-ends" => {
                context.put(COUNT, "1000000").await?;
                std::process::abort()
            }
            "migrate-hangs" => for_ever().await,
            // No module starts a program: its filter ends it.
            "migrate-forks" => match std::process::Command::new("/bin/true").status() {
                Ok(_) | Err(_) => Ok(()),
            },
            _ => Ok(()),
        }
    }
}

impl Swapped {
    async fn shown(self: Arc<Self>, context: Context, _: Request) -> Result<Response, ModuleError> {
        let row = |name: &'static str| {
            let context = context.clone();
            async move {
                Ok::<_, ModuleError>(context.get(name).await?.map(|row| String::from_utf8_lossy(&row).into_owned()))
            }
        };
        let count: u64 = row(COUNT).await?.and_then(|count| count.parse().ok()).unwrap_or(0);
        let version = self.manifest().version;
        let (migrated, waiting) = (row("migrated").await?, WAITING.load(Ordering::SeqCst));
        let shown = json!({ "version": version, "count": count, "migrated": migrated, "waiting": waiting });
        Response::json(Status::Ok, &shown)
    }

    async fn add(self: Arc<Self>, context: Context, _: Request) -> Result<Response, ModuleError> {
        loop {
            let before = context.get(COUNT).await?;
            let count = before.as_ref().and_then(|row| std::str::from_utf8(row).ok()?.parse().ok()).unwrap_or(0u64) + 1;
            let batch = Batch::new().expect(COUNT, before).put(COUNT, count.to_string());
            if context.apply(batch).await? == Committed::Yes {
                return Response::json(Status::Ok, &json!({ "count": count }));
            }
        }
    }

    async fn gate(self: Arc<Self>, _: Context, _: HookRequest) -> Result<Verdict, ModuleError> {
        Ok(Verdict::Continue)
    }

    async fn hang(self: Arc<Self>, _: Context, _: Request) -> Result<Response, ModuleError> {
        WAITING.fetch_add(1, Ordering::SeqCst);
        for_ever().await
    }

    /// Writes when the row `go` is there.
    async fn late(self: Arc<Self>, context: Context, _: Request) -> Result<Response, ModuleError> {
        WAITING.fetch_add(1, Ordering::SeqCst);
        while context.get("go").await?.is_none() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        context.put("late", "written").await?;
        Response::json(Status::Ok, &json!({}))
    }

    async fn go(self: Arc<Self>, context: Context, _: Request) -> Result<Response, ModuleError> {
        context.put("go", "now").await?;
        Response::json(Status::Ok, &json!({}))
    }

    async fn end(self: Arc<Self>, _: Context, _: Request) -> Result<Response, ModuleError> {
        std::process::abort()
    }
}

fn main() -> ExitCode {
    openred_module::run(Swapped)
}
