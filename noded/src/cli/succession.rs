//! `openred key rotate identity` and `key take-back`: what is asked for, and what came of it. The work is the supervisor's
//! (`supervisor/succession`), which runs the caged unsealer for it, here without a running node.

use std::path::Path;

use openred_proto::id::NodeId;
use openred_proto::limits::TAKE_BACK;
use serde_json::json;

use super::arguments::SecretSource;
use super::{Exit, Failure, Invocation, backup};
use crate::supervisor::Changed;

pub(super) fn rotate(invocation: &Invocation, secret: &SecretSource) -> Result<Exit, Failure> {
    let changed = backup::work(invocation, secret)?.succeed()?;
    let output = &invocation.output;
    output.line(format!("{}\nis this node's identity from now on", changed.about.node));
    output.line("peers and directories follow with the next `openred up`; links are offered anew");
    output.line(format!("the older keystore is {}:", changed.aside.join("keystore.age").display()));
    let hours = TAKE_BACK.as_secs() / 3600;
    output.line(format!("for {hours} hours `openred key take-back` undoes this with it; destroy it after that"));
    print(invocation, &changed);
    Ok(Exit::Ok)
}

pub(super) fn take_back(
    invocation: &Invocation,
    older: Option<&Path>,
    successor: Option<NodeId>,
    secret: &SecretSource,
) -> Result<Exit, Failure> {
    let changed = backup::work(invocation, secret)?.take_back(older, successor)?;
    let output = &invocation.output;
    output.line(format!("{}\nis this node's identity again", changed.about.node));
    output.line("peers and directories follow with the next `openred up`; links are offered anew");
    output.line(format!("what was here is in {}", changed.aside.display()));
    print(invocation, &changed);
    Ok(Exit::Ok)
}

fn print(invocation: &Invocation, changed: &Changed) {
    let earlier: Vec<String> = changed.about.lineage.earlier().iter().map(ToString::to_string).collect();
    let body = json!({
        "node_id": changed.about.node.to_string(),
        "earlier": earlier,
        "replaced": changed.aside.display().to_string(),
    });
    invocation.output.document("openred.key-succession/1", &body);
}
