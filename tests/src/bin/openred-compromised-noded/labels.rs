//! Bytes signed for one use, put where another is wanted; and the attacker's own bytes, put wherever bytes go.

use anyhow::Result;
use ed25519_dalek::{Signature, VerifyingKey};
use openred_cryptod::vault::serve::clock;
use openred_proto::audit::Event;
use openred_proto::checked::statement;
use openred_proto::cryptod as rpc;
use openred_proto::id::NodeId;
use openred_proto::label::{self, Label};
use openred_proto::limits::LINK_LIFE;
use openred_proto::refusal::NO_MATCH;
use openred_proto::vault::{Refusal, StatementFault};
use prost::bytes::Bytes;

use super::front::Front;
use super::honest::{Honest, card_request, http_request, issue_request, received_offer};
use super::report::{Area, Report};

const AREA: Area = Area::Labels;
/// What the attacker wants the node's name under.
const WANTED: &[u8] = b"I owe the bearer everything";

pub(crate) fn all(front: &mut Front, report: &mut Report, honest: &mut Honest) -> Result<()> {
    front.afresh()?;
    report.wanted(WANTED)?;
    in_requests(front, report)?;
    in_cards(front, report)?;
    front.afresh()?;
    as_peers_statements(front, report, honest)?;
    as_another(report, honest)
}

/// Labels, separators and further lines in the fields of an HTTP request.
fn in_requests(front: &mut Front, report: &mut Report) -> Result<()> {
    let created = clock().0 / 1000;
    let wanted = String::from_utf8_lossy(WANTED);
    let bare = format!("openred/1/link\0{wanted}");
    let lines = format!("https://a.example/\n\"@method\": {wanted}");
    for (name, method, uri) in [
        ("a label as the method", "openred/1/card\0", "https://a.example/"),
        ("a label as the address", "POST", bare.as_str()),
        ("a line more in the address", "POST", lines.as_str()),
        ("the wanted bytes as the address", "POST", &wanted),
    ] {
        report.wanted(uri.as_bytes())?;
        let request = http_request(method, uri, created);
        let came = front.call(|mut keys| async move { keys.sign_http(request).await });
        report.refused((AREA, name), Event::HttpSigned, Refusal::NotAllowed, came)?;
    }
    Ok(())
}

/// The same in the text of a card.
fn in_cards(front: &mut Front, report: &mut Report) -> Result<()> {
    let name = format!("openred/1/link\0{}", String::from_utf8_lossy(WANTED));
    report.wanted(name.as_bytes())?;
    let request = card_request(&name, 3600);
    let came = front.call(|mut keys| async move { keys.sign_card(request).await });
    let malformed = Refusal::PeerStatement(StatementFault::Malformed);
    report.refused((AREA, "a label as the name"), Event::CardSigned, malformed, came)
}

/// What the node signed itself, as a peer's statement.
fn as_peers_statements(front: &mut Front, report: &mut Report, honest: &Honest) -> Result<()> {
    let (node, life) = (honest.node, LINK_LIFE.as_secs());
    let signature = Refusal::PeerStatement(StatementFault::BadSignature);
    let request = issue_request(honest.one.id, &honest.link.receipt, life);
    let came = front.call(|mut keys| async move { keys.issue_link(request).await });
    report.refused((AREA, "a receipt as a card"), Event::LinkIssued, signature, came)?;
    let (input, http) = &honest.http;
    let base = statement::encode(&input.base(), &node, http.as_slice().try_into()?);
    let request = issue_request(honest.one.id, &base, life);
    let came = front.call(|mut keys| async move { keys.issue_link(request).await });
    report.refused((AREA, "an HTTP signature as a card"), Event::LinkIssued, signature, came)?;
    let request = issue_request(node, &honest.card, life);
    let came = front.call(|mut keys| async move { keys.issue_link(request).await });
    report.refused((AREA, "the node's own card as a peer's"), Event::LinkIssued, Refusal::NotAllowed, came)?;
    let request = received_offer(&honest.card, honest.one.id);
    let came = front.call(|mut keys| async move { keys.accept_offer(request).await });
    let malformed = Refusal::PeerStatement(StatementFault::Malformed);
    report.refused((AREA, "a card as an offer"), Event::LinkAccepted, malformed, came)?;
    let request = received_offer(&honest.link.offer, honest.other.id);
    let came = front.call(|mut keys| async move { keys.accept_offer(request).await });
    report.refused((AREA, "one peer's offer as another's"), Event::LinkAccepted, Refusal::OfferSender, came)?;
    let (row, hash, proof) = (honest.link.row.clone(), honest.hash.clone(), honest.own_proof.clone());
    let request = rpc::ValidateMatchRequest { row, hash, proof };
    let came = front.call(|mut keys| async move { keys.validate_match(request).await });
    report.answered_no((AREA, "the node's own proof as the peer's"), Event::MatchChecked, NO_MATCH, &came)
}

/// What was signed honestly, under every other label.
fn as_another(report: &mut Report, honest: &Honest) -> Result<()> {
    let card = verifies_elsewhere(&honest.node, &honest.card, Some(Label::Card));
    report.useless((AREA, "a card under another label"), Event::CardSigned, card)?;
    let receipt = verifies_elsewhere(&honest.node, &honest.link.receipt, Some(Label::Receipt));
    report.useless((AREA, "a receipt under another label"), Event::LinkAccepted, receipt)?;
    let (input, http) = &honest.http;
    let http = statement::encode(&input.base(), &honest.node, http.as_slice().try_into()?);
    let http = verifies_elsewhere(&honest.node, &http, None);
    report.useless((AREA, "an HTTP signature under a label"), Event::HttpSigned, http)
}

/// Whether a statement's signature is good under a label that is not its own, or over its payload as it stands.
fn verifies_elsewhere(node: &NodeId, bytes: &[u8], own: Option<Label>) -> Result<(), String> {
    let (before, signature) = bytes.split_last_chunk::<64>().ok_or("too short")?;
    let payload = payload(before).ok_or("no payload")?;
    for label in Label::ALL.into_iter().filter(|label| Some(*label) != own) {
        if label::verify(label, &payload, node, signature, "statement").is_ok() {
            return Err(format!("it verifies under {label:?}"));
        }
    }
    let key = VerifyingKey::from_bytes(node.as_bytes()).map_err(|error| error.to_string())?;
    let is_bare = own.is_some() && key.verify_strict(&payload, &Signature::from_bytes(signature)).is_ok();
    if is_bare { Err(String::from("it verifies over the bare payload")) } else { Ok(()) }
}

/// The first field of a statement, whose length is a number of at most two bytes.
fn payload(statement: &[u8]) -> Option<Bytes> {
    let (tag, rest) = statement.split_first()?;
    let (low, rest) = rest.split_first()?;
    let (length, rest) = match low & 0x80 {
        0 => (usize::from(*low), rest),
        _ => (usize::from(low & 0x7f) | usize::from(*rest.first()?) << 7, rest.get(1..)?),
    };
    (*tag == 0x0a).then(|| rest.get(..length).map(Bytes::copy_from_slice))?
}
