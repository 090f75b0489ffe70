//! The trait, what a module says of itself, and the events it hears.

use std::sync::Arc;

use crate::context::Context;
use crate::error::ModuleError;
use crate::hook::Hooks;
use crate::route::Routes;
use openred_proto::id::NodeId;
use openred_proto::method::description::MethodDescription;

/// What a module says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// Name by which peers and the operator call it: 1 to 32 of `a-z`, `0-9`, `-`.
    pub id: &'static str,
    /// Its own version.
    pub version: &'static str,
    /// One line for the operator.
    pub summary: &'static str,
}

/// A module's own name for one of its timers.
pub type TimerId = u32;

/// Something happened that no caller waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A timer set with [`Context::set_timer`] is due.
    Timer(TimerId),
    /// A session with this peer has opened, in either direction: what waits for it can go now.
    PeerReachable(NodeId),
    /// The link with this peer has ended (revoked or expired).
    PeerForgotten(NodeId),
    /// This peer has named a successor, or has taken that back: [`Context::identities`] answers otherwise from now on. A hint for
    /// what is kept in memory, and lost when the node is killed; what must survive asks.
    IdentitiesChanged(NodeId),
}

/// A module: `routes` alone is needed, and `manifest`, which [`macro@crate::module`] writes. Handlers run at the same time as each other and as events, so shared state belongs behind the host's
/// transactions, or a lock that is not held across an `await`.
///
/// One that reminds, and is not stopped from it by any end of its process:
///
/// ```
/// use std::sync::Arc;
///
/// use openred_module::{
///     Batch, Body, Context, Event, Manifest, Method, Module, ModuleError, PeerRequest, Routes, Table, TestHost, async_trait,
/// };
///
/// struct Reminder;
///
/// static DUE: Table<String, u64> = Table::new("due");
/// static DONE: Table<String, bool> = Table::new("done");
///
/// #[async_trait]
/// impl Module for Reminder {
///     fn manifest(&self) -> Manifest {
///         Manifest { id: "reminder", version: "1.0.0", summary: "Reminds in an hour" }
///     }
///
///     fn routes(routes: &mut Routes<Self>) {
///         routes.operator(Method::Post, "/remind", 1024, Self::remind);
///     }
///
///     // Timers are not kept, rows are: what was cut short is found here.
///     async fn start(self: Arc<Self>, context: Context) -> Result<(), ModuleError> {
///         for (_, at) in DUE.all(&context).await? {
///             context.set_timer(1, at);
///         }
///         Ok(())
///     }
///
///     async fn event(self: Arc<Self>, context: Context, event: Event) {
///         let (Event::Timer(1), Ok(due)) = (event, DUE.all(&context).await) else { return };
///         for (what, _) in due.iter().filter(|(_, at)| *at <= context.now()) {
///             // Both rows or none. What could not be written now is found at the next start.
///             if let Ok(batch) = DONE.put_in(Batch::new(), what, &true) {
///                 let _ = context.apply(DUE.delete_in(batch, what)).await;
///             }
///         }
///     }
/// }
///
/// impl Reminder {
///     async fn remind(self: Arc<Self>, context: Context, what: String) -> Result<(), ModuleError> {
///         let at = context.now() + 3_600_000;
///         DUE.put(&context, &what, &at).await?;
///         context.set_timer(1, at);
///         Ok(())
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let host = TestHost::start(1, Reminder).await;
/// host.operator(PeerRequest::post("/remind", "text/plain", Body::whole("tea"))).await;
/// host.kill_and_restart(Reminder).await;
/// let done = async || DONE.get(&host.context(), &"tea".to_owned()).await.unwrap();
/// host.advance(3_599_999).await;
/// assert_eq!(done().await, None);
/// host.advance(1).await;
/// assert_eq!(done().await, Some(true));
/// # }
/// ```
#[async_trait::async_trait]
pub trait Module: Send + Sync + Sized + 'static {
    /// What it is.
    fn manifest(&self) -> Manifest;

    /// Its whole manifest, where `#[openred_module::module]` has written it. With it, the routes of the code must be those of the manifest.
    fn manifest_text() -> Option<&'static str> {
        None
    }

    /// Which routes it serves.
    fn routes(routes: &mut Routes<Self>);

    /// Methods that it describes, out of vetted primitives: at most four. The node's key process holds each against its table and refuses by
    /// name what is below the floor of its own; none is used before the operator has allowed it (`openred method allow MODULE/METHOD`).
    fn methods(&self) -> Vec<MethodDescription> {
        Vec::new()
    }

    /// Which of its manifest's hooks it serves, by their ids.
    fn middleware(hooks: &mut Hooks<Self>) {
        let _ = hooks;
    }

    /// Called before the first request: recover what was cut short, set timers. A module that cannot start serves nothing. In a process of its
    /// own it is called again when the node's process was replaced: what ran for the old one has been dropped by then.
    async fn start(self: Arc<Self>, context: Context) -> Result<(), ModuleError> {
        let _ = context;
        Ok(())
    }

    /// Called when this version takes over from another, before its start: brings rows that version `from` has written to what this one reads.
    /// `context` gives the rows of a copy and nothing else, so what is done here is seen by nobody until this version is active; a
    /// failure leaves the version before it in service. May be called twice, with a later copy, when the rows were changed meanwhile;
    /// callers wait then, so work that is long belongs into reading old rows as they are. Not called on the way back.
    async fn migrate(self: Arc<Self>, context: Context, from: String) -> Result<(), ModuleError> {
        let _ = (context, from);
        Ok(())
    }

    /// Called for each event. The host runs each on a task of its own; one may wait for peers.
    async fn event(self: Arc<Self>, context: Context, event: Event) {
        let _ = (context, event);
    }
}
