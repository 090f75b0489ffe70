//! `openred key rotate identity` and `key take-back`: what is asked for, and what came of it. The work is the supervisor's
//! (`supervisor/succession`), which runs the caged unsealer for it, here without a running node.

use std::path::Path;

use openred_proto::id::NodeId;
use openred_proto::limits::TAKE_BACK;
use serde_json::json;

use super::arguments::SecretSource;
use super::{Exit, Failure, Invocation, Passphrase, backup};
use crate::supervisor::{Changed, OLDER_LOCKED};

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
    older: &Path,
    secret: &SecretSource,
    older_secret: &SecretSource,
) -> Result<Exit, Failure> {
    // Both are read before anything is opened here: a descriptor that was not given is nobody's then, and not one of this command's own.
    let given = Passphrase::given(older_secret)?;
    let work = backup::work(invocation, secret)?;
    let changed = match work.take_back(older, given.as_ref()) {
        // Only now is it known that the older one has another.
        Err(failure) if failure.code == OLDER_LOCKED && given.is_none() => match Passphrase::asked(older)? {
            Some(asked) => work.take_back(older, Some(&asked))?,
            None => return Err(failure),
        },
        done => done?,
    };
    taken_back(invocation, &changed);
    Ok(Exit::Ok)
}

pub(super) fn take_back_of(invocation: &Invocation, of: NodeId, secret: &SecretSource) -> Result<Exit, Failure> {
    taken_back(invocation, &backup::work(invocation, secret)?.take_back_of(of)?);
    Ok(Exit::Ok)
}

fn taken_back(invocation: &Invocation, changed: &Changed) {
    let output = &invocation.output;
    output.line(format!("{}\nis this node's identity again", changed.about.node));
    output.line("peers and directories follow with the next `openred up`; links are offered anew");
    output.line(format!("what was here is in {}", changed.aside.display()));
    output.line("the keystore is sealed as that of this identity was, and opens with the same");
    print(invocation, changed);
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
