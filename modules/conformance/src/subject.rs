//! What is judged: a program, and what its manifest claims.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use openred_module::manifest::{Auth, Manifest};
use openred_module::remote::Attached;
use openred_module::{Body, Caller, Method, ModuleName, NodeId, Request, Response, SandboxHost, Status};
use openred_policy::limits::Limits;
use tokio::time::timeout;

use crate::PATIENCE;

/// Who may call a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Who {
    /// The same module of a linked peer.
    Peer,
    /// The node's operator.
    Operator,
    /// Another module of the node.
    Module,
}

impl Who {
    pub(crate) const ALL: [Self; 3] = [Self::Peer, Self::Operator, Self::Module];
}

/// A route that the manifest claims.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Claim {
    pub(crate) who: Who,
    pub(crate) method: Method,
    /// `{name}` stands for one segment.
    pub(crate) path: String,
    /// Longest body.
    pub(crate) body_bytes: u64,
}

/// A module to be judged.
#[derive(Debug, Clone)]
pub struct Subject {
    pub(crate) module: String,
    pub(crate) version: String,
    pub(crate) program: PathBuf,
    pub(crate) routes: Vec<Claim>,
    pub(crate) limits: Limits,
    /// The program that takes more than it may, in the module's place.
    pub(crate) probe: PathBuf,
}

impl Subject {
    /// The module of this manifest, with its built program; `probe` is `openred-conformance`, which takes too much of the machine in the module's place.
    #[must_use]
    pub fn new(manifest: &Manifest, program: impl Into<PathBuf>, probe: impl Into<PathBuf>) -> Self {
        let claim = |route: &openred_module::manifest::Route| {
            let who = match route.auth {
                Auth::Peer => Who::Peer,
                Auth::Operator => Who::Operator,
                Auth::Module => Who::Module,
            };
            let path = route.path.as_str().to_owned();
            Claim { who, method: route.method, path, body_bytes: route.body_bytes }
        };
        Self {
            module: manifest.id.to_string(),
            version: manifest.version.to_string(),
            program: program.into(),
            limits: Limits {
                memory: u64::from(manifest.limits.memory_megabytes) << 20,
                cpu: manifest.limits.cpu_percent,
                tasks: manifest.limits.tasks,
                descriptors: manifest.limits.descriptors,
            },
            probe: probe.into(),
            routes: manifest.routes.iter().map(claim).collect(),
        }
    }
}

impl Claim {
    /// A call of it without a body, from whom it is for.
    pub(crate) fn request(&self) -> Request {
        let caller = match self.who {
            Who::Peer => Caller::Peer(stranger()),
            Who::Operator => Caller::Operator,
            Who::Module => ModuleName::new("stranger").map_or(Caller::Operator, Caller::Module),
        };
        Request::new(caller, self.method, self.filled())
    }

    /// Its path with something in each place.
    pub(crate) fn filled(&self) -> String {
        let part = |part: &str| if part.starts_with('{') { "x".to_owned() } else { part.to_owned() };
        self.path.split('/').map(part).collect::<Vec<_>>().join("/")
    }

    pub(crate) fn name(&self) -> String {
        let method = if self.method == Method::Get { "GET" } else { "POST" };
        format!("{method} {} ({:?})", self.path, self.who)
    }
}

/// Some peer that the node knows nothing of.
pub(crate) fn stranger() -> NodeId {
    NodeId::from_bytes([77; 32])
}

impl Subject {
    /// Its program in a cage, attached and started.
    pub(crate) async fn start(&self) -> Result<(SandboxHost, Arc<Attached>)> {
        let host = SandboxHost::start(1, &self.module, &self.program).await?;
        let attached = host.attached().context("it is attached")?;
        Ok((host, attached))
    }
}

/// A call's answer, within patience.
pub(crate) async fn ask(attached: &Attached, what: &str, request: Request) -> Result<Response> {
    let answer = timeout(PATIENCE, attached.dispatch(request)).await;
    answer.with_context(|| format!("{what}: no answer within {} s", PATIENCE.as_secs()))
}

/// A refusal's code; nothing for an answer that is none.
pub(crate) async fn code(response: Response) -> Option<String> {
    let problem: serde_json::Value = timeout(PATIENCE, response.json_body()).await.ok()?.ok()?;
    problem["code"].as_str().map(str::to_owned)
}

/// That it goes on: it answers a ping, and refuses what it has not.
pub(crate) async fn is_well(host: &SandboxHost, attached: &Attached) -> Result<()> {
    let pinged = timeout(PATIENCE, attached.ping()).await;
    let pinged = pinged.with_context(|| format!("it does not answer a ping; it said: {}", host.log().trim()))?;
    if !pinged {
        let fault = attached.ended().await;
        anyhow::bail!("its attachment ended ({}): {fault}; it said: {}", fault.code(), host.log().trim());
    }
    let response = ask(attached, "an unknown route", unknown(Body::empty())).await?;
    ensure!(response.status == Status::NotFound, "an unknown route is answered {}", response.status.code());
    Ok(())
}

/// A call that no module serves.
pub(crate) fn unknown(body: Body) -> Request {
    Request::new(Caller::Operator, Method::Post, "/-/no-such-route").with_body("text/plain", body)
}

/// Waits until the module has ended every call.
pub(crate) async fn all_ended(attached: &Attached, what: &str) -> Result<()> {
    let ended = async { while attached.running() > 0 && attached.ping().await {} };
    timeout(PATIENCE, ended).await.with_context(|| format!("{what}: {} calls do not end", attached.running()))?;
    Ok(())
}
