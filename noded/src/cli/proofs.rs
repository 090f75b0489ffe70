//! `openred link proof`: what both sides of sessions signed (`links.audited`), for showing to somebody else; and the check of it, which
//! needs no node.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use openred_proto::admin::{PeerSelector, SessionProof as Shown, SessionProofs};
use openred_proto::checked::session_proof::SessionProof;
use serde_json::Value;

use super::client::{node, request};
use super::output::{moment, now};
use super::{Exit, Failure, Invocation};

/// Longest file that is read: four times what one peer's sessions take.
const FILE_BYTES: u64 = 1024 * 1024;

/// Shows those with a peer.
pub(super) async fn show(invocation: &Invocation, peer: String) -> Result<Exit, Failure> {
    let mut node = node(invocation).await?;
    let proofs = node.list_proofs(request(PeerSelector { peer })).await?.into_inner();
    let output = &invocation.output;
    if proofs.proofs.is_empty() {
        output.line("no session with that peer was signed by both sides (`links.audited`)");
    }
    for proof in &proofs.proofs {
        output.line(format!("{}  {}", proof.hash, moment(proof.signed_at, now())));
        output.line(format!("  began     {}", proof.initiator));
        output.line(format!("  answered  {}", proof.responder));
    }
    output.document("openred.session-proofs/1", &proofs);
    Ok(Exit::Ok)
}

/// Verifies what `--json` printed. A time is in none of it: when a session was, nobody signed.
pub(super) fn verify(invocation: &Invocation, path: &Path) -> Result<Exit, Failure> {
    let refused = |what: &str| {
        let what = format!("{}: {what}", path.display());
        Failure::new(Exit::Failed, "proof.malformed", what, "name what `openred --json link proof DID` printed")
    };
    let mut text = String::new();
    let file = File::open(path).map_err(|error| Failure::local(path.display(), &error))?;
    let read = file.take(FILE_BYTES + 1).read_to_string(&mut text);
    read.map_err(|_| refused("no text"))?;
    if text.len() as u64 > FILE_BYTES {
        return Err(refused("longer than 1 MiB"));
    }
    let document: Value = serde_json::from_str(&text).map_err(|_| refused("no JSON"))?;
    let entries = document["proofs"].as_array().ok_or_else(|| refused("no proofs in it"))?;
    let (mut proofs, mut bad) = (Vec::new(), 0);
    for (number, entry) in entries.iter().enumerate() {
        match check(entry) {
            Ok(proof) => {
                let (initiator, responder) = (&proof.initiator, &proof.responder);
                invocation.output.line(format!("good  {}: {initiator} began, {responder} answered", proof.hash));
                proofs.push(proof);
            }
            Err(why) => {
                invocation.output.line(format!("bad   number {}: {why}", number + 1));
                bad += 1;
            }
        }
    }
    invocation.output.document("openred.session-proofs/1", &SessionProofs { proofs });
    match (bad, entries.len()) {
        (0, 1..) => Ok(Exit::Ok),
        (0, _) => Err(refused("no proof in it")),
        _ => {
            let what = format!("{}: {bad} of {} do not verify", path.display(), entries.len());
            Err(Failure::new(Exit::Failed, "proof.bad", what, "what was not signed so proves nothing"))
        }
    }
}

/// Only what is signed counts; what is written beside it must say the same.
fn check(entry: &Value) -> Result<Shown, String> {
    let text = |name: &str| entry[name].as_str().unwrap_or_default();
    let statement = |name: &str| hex::decode(text(name)).map_err(|_| format!("`{name}` is not hexadecimal"));
    let one = statement("initiator_statement")?;
    let other = statement("responder_statement")?;
    let proof = SessionProof::verify(&one, &other).map_err(|error| error.to_string())?;
    let shown = Shown {
        initiator: proof.initiator.to_string(),
        responder: proof.responder.to_string(),
        hash: hex::encode(proof.hash),
        signed_at: 0,
        initiator_statement: hex::encode(one),
        responder_statement: hex::encode(other),
        link_id: String::new(),
    };
    let said = [text("initiator"), text("responder"), text("hash")];
    let signed = [&shown.initiator, &shown.responder, &shown.hash];
    if said.iter().zip(signed).any(|(said, signed)| said != signed) {
        return Err(String::from("what is written beside the signatures is not what they are over"));
    }
    Ok(shown)
}
