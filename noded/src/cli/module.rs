//! A call of a module's operator route through the node: head, body in frames, head, body in frames.

use openred_proto::admin::{ModuleCost, ModuleRequestFrame, ModuleRequestHead, ModuleResponseFrame};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::client::node;
use super::{Exit, Failure, Invocation, one_line};

/// Bytes of a body in one frame.
const FRAME: usize = 64 * 1024;
/// Frames read ahead of the socket.
const AHEAD: usize = 4;
/// Longest JSON answer; pages are cut long before.
const DOCUMENT: usize = 8 * 1024 * 1024;

/// A module's route.
pub(crate) struct Route {
    pub(crate) module: &'static str,
    pub(crate) method: &'static str,
    pub(crate) path: String,
}

/// An answer whose head said success; the body is still to come.
pub(crate) struct Answer {
    frames: Streaming<ModuleResponseFrame>,
    costs: Vec<ModuleCost>,
    waiting: bytes::Bytes,
}

/// Calls with a JSON document or nothing, and reads a JSON document.
pub(crate) async fn call<T: DeserializeOwned>(
    invocation: &Invocation,
    route: Route,
    body: Option<&impl Serialize>,
) -> Result<T, Failure> {
    let body = body.map(serde_json::to_vec).transpose().map_err(|_| bug("request"))?;
    let kind = if body.is_some() { "application/json" } else { "" };
    let body = body.unwrap_or_default();
    open(invocation, route, kind, std::io::Cursor::new(body)).await?.document().await
}

/// Calls with a body of any length.
pub(crate) async fn open(
    invocation: &Invocation,
    route: Route,
    content_type: &str,
    body: impl AsyncRead + Send + Unpin + 'static,
) -> Result<Answer, Failure> {
    let mut key = [0; 16];
    getrandom::fill(&mut key).map_err(|_| bug("randomness"))?;
    let head = ModuleRequestHead {
        module: route.module.to_owned(),
        method: route.method.to_owned(),
        path: route.path,
        content_type: content_type.to_owned(),
        idempotency_key: key.to_vec().into(),
    };
    let (frames, queue) = mpsc::channel(AHEAD);
    let mut node = node(invocation).await?;
    tokio::spawn(feed(head, body, frames));
    let mut frames = node.call_module(ReceiverStream::new(queue)).await?.into_inner();
    let first = frames.message().await?.ok_or_else(|| bug("answer"))?;
    let head = first.head.ok_or_else(|| bug("answer"))?;
    let mut answer = Answer { frames, costs: head.costs, waiting: first.body };
    if (200..300).contains(&head.status) {
        return Ok(answer);
    }
    let problem: Value = answer.document().await.unwrap_or_default();
    Err(refusal(head.status, &problem))
}

/// Sends the head and then the body as fast as the node takes it. When the node stops reading, so does this.
async fn feed(head: ModuleRequestHead, mut body: impl AsyncRead + Unpin, frames: mpsc::Sender<ModuleRequestFrame>) {
    let mut frame = ModuleRequestFrame { head: Some(head), body: bytes::Bytes::new() };
    loop {
        if frames.send(frame).await.is_err() {
            return;
        }
        let mut chunk = bytes::BytesMut::with_capacity(FRAME);
        match body.read_buf(&mut chunk).await {
            Ok(count) if count > 0 => frame = ModuleRequestFrame { head: None, body: chunk.freeze() },
            _ => return,
        }
    }
}

impl Answer {
    /// What it has cost, as an HTTP server would say it (`Server-Timing`, W3C).
    pub(crate) fn timing(&self) -> String {
        let metric = |cost: &ModuleCost| {
            // A slash is no part of a metric's name.
            format!("{};dur={:.3}", one_line(&cost.name).replace('/', "."), cost.micros as f64 / 1e3)
        };
        self.costs.iter().map(metric).collect::<Vec<_>>().join(", ")
    }

    /// The next piece of the body; none at its end.
    pub(crate) async fn next(&mut self) -> Result<Option<bytes::Bytes>, Failure> {
        loop {
            if !self.waiting.is_empty() {
                return Ok(Some(std::mem::take(&mut self.waiting)));
            }
            match self.frames.message().await? {
                Some(frame) => self.waiting = frame.body,
                None => return Ok(None),
            }
        }
    }

    /// The whole body as a JSON document.
    pub(crate) async fn document<T: DeserializeOwned>(&mut self) -> Result<T, Failure> {
        let mut whole = Vec::new();
        while let Some(piece) = self.next().await? {
            whole.extend_from_slice(&piece);
            if whole.len() > DOCUMENT {
                return Err(bug("answer"));
            }
        }
        serde_json::from_slice(&whole).map_err(|_| bug("answer"))
    }
}

fn bug(what: &str) -> Failure {
    Failure::new(
        Exit::Failed,
        "bug",
        format!("the module's {what} is not of this version"),
        "use one version of the programs",
    )
}

/// A problem document (RFC 9457) as a failure.
pub(crate) fn refusal(status: u32, problem: &Value) -> Failure {
    let exit = match status {
        404 => Exit::NotFound,
        401 | 403 => Exit::Denied,
        409 => Exit::Conflict,
        400 | 405 | 413 => Exit::Usage,
        408 | 504 => Exit::TimeOut,
        _ => Exit::Failed,
    };
    let code = problem["code"].as_str().unwrap_or("module");
    let detail = problem["detail"].as_str().map_or_else(|| format!("the module answered {status}"), one_line);
    Failure::new(exit, code, detail, "")
}
