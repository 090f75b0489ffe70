//! `openred module logs` and `openred module release`: a module's own words, and the operator's to one that was left down. Thin over the
//! supervisor's socket.

use openred_proto::admin::{ModuleLogLine, ModuleLogRequest, ModuleSelector};
use serde_json::json;

use super::client::{request, supervisor};
use super::output::{moment, now};
use super::{Exit, Failure, Invocation, one_line};

pub(crate) async fn logs(invocation: &Invocation, module: String, lines: u32, follow: bool) -> Result<Exit, Failure> {
    // A stream has no time by which it must be over.
    let asked = tonic::Request::new(ModuleLogRequest { module, lines, follow });
    let mut stream = supervisor(invocation).await?.module_log(asked).await?.into_inner();
    let mut last = None;
    while let Some(line) = stream.message().await? {
        show(invocation, &line, last.replace(line.number));
    }
    Ok(Exit::Ok)
}

fn show(invocation: &Invocation, line: &ModuleLogLine, before: Option<u64>) {
    let missing = before.map_or(0, |before| line.number.saturating_sub(before + 1));
    if missing > 0 {
        invocation.output.line(format!("({missing} lines are not kept any more)"));
    }
    invocation.output.line(format!("{}  {}", moment(line.at, now()), one_line(&line.text)));
    invocation.output.document("openred.module-log/1", line);
}

pub(crate) async fn release(invocation: &Invocation, module: String) -> Result<Exit, Failure> {
    let selector = ModuleSelector { module: module.clone() };
    supervisor(invocation).await?.release_module(request(selector)).await?;
    invocation.output.line(format!("{} is released and started again", one_line(&module)));
    invocation.output.document("openred.module-released/1", &json!({ "module": module }));
    Ok(Exit::Ok)
}
