//! Bytes signed for one use, put where another is wanted; and the attacker's own bytes, put wherever bytes go.

use anyhow::{Context, Result};
use ed25519_dalek::{Signature, Signer, VerifyingKey};
use openred_cryptod::vault::serve::clock;
use openred_proto::audit::Event;
use openred_proto::checked::statement;
use openred_proto::checked::succession::{Step, Succession};
use openred_proto::cryptod as rpc;
use openred_proto::fields::Writer;
use openred_proto::http_signature::SignatureInput;
use openred_proto::id::NodeId;
use openred_proto::label::{self, Label, signed_bytes};
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

/// The ways are told apart by what stands before the colon of an attempt's name; the test counts them.
pub(crate) fn all(front: &mut Front, report: &mut Report, honest: &mut Honest) -> Result<()> {
    front.afresh()?;
    report.wanted(WANTED)?;
    in_requests(front, report)?;
    in_cards(front, report)?;
    front.afresh()?;
    as_other_statements(front, report, honest)?;
    as_somebody_elses(front, report, honest)?;
    under_other_labels(front, report, honest)?;
    for_a_successor(front, report, honest)?;
    front.afresh()?;
    as_other_proofs(front, report, honest)?;
    as_another(report, honest)?;
    as_another_request(report, honest)
}

/// Labels, separators and further lines in the fields of an HTTP request.
fn in_requests(front: &mut Front, report: &mut Report) -> Result<()> {
    let created = clock().0 / 1000;
    let wanted = String::from_utf8_lossy(WANTED);
    let bare = format!("openred/1/link\0{wanted}");
    let lines = format!("https://a.example/\n\"@method\": {wanted}");
    for (name, method, uri) in [
        ("text in a request: a label as the method", "openred/1/card\0", "https://a.example/"),
        ("text in a request: a label as the address", "POST", bare.as_str()),
        ("text in a request: a line more in the address", "POST", lines.as_str()),
        ("text in a request: the wanted bytes as the address", "POST", &wanted),
    ] {
        report.wanted(uri.as_bytes())?;
        let request = http_request(method, uri, created);
        let came = front.call(|mut keys| async move { keys.sign_http(request).await });
        report.refused((AREA, name), Event::HttpSigned, Refusal::NotAllowed, came)?;
    }
    Ok(())
}

/// The same in the texts of a card.
fn in_cards(front: &mut Front, report: &mut Report) -> Result<()> {
    let text = format!("openred/1/link\0{}", String::from_utf8_lossy(WANTED));
    report.wanted(text.as_bytes())?;
    let named = card_request(&text, 3600);
    let placed = rpc::SignCardRequest { endpoints: vec![text], ..card_request("", 3600) };
    for (name, request) in
        [("text in a card: a label as the name", named), ("text in a card: a label as an endpoint", placed)]
    {
        let came = front.call(|mut keys| async move { keys.sign_card(request).await });
        report.refused((AREA, name), Event::CardSigned, MALFORMED, came)?;
    }
    Ok(())
}

const MALFORMED: Refusal = Refusal::PeerStatement(StatementFault::Malformed);
const UNSIGNED: Refusal = Refusal::PeerStatement(StatementFault::BadSignature);

/// Has the node issue a link on the strength of this card.
fn card_shown(
    front: &mut Front,
    report: &mut Report,
    name: &str,
    (of, card): (NodeId, &[u8]),
    expected: Refusal,
) -> Result<()> {
    let request = issue_request(of, card, LINK_LIFE.as_secs());
    let came = front.call(|mut keys| async move { keys.issue_link(request).await });
    report.refused((AREA, name), Event::LinkIssued, expected, came)
}

/// Has the node take this offer.
fn offer_shown(
    front: &mut Front,
    report: &mut Report,
    name: &str,
    offer: rpc::ReceivedOffer,
    expected: Refusal,
) -> Result<()> {
    let came = front.call(|mut keys| async move { keys.accept_offer(offer).await });
    report.refused((AREA, name), Event::LinkAccepted, expected, came)
}

/// One statement of the node's where another of its kind is wanted.
fn as_other_statements(front: &mut Front, report: &mut Report, honest: &Honest) -> Result<()> {
    let (input, http) = &honest.http;
    let base = statement::encode(&input.base(), &honest.node, http.as_slice().try_into()?);
    let (one, receipt) = (honest.one.id, &honest.link.receipt);
    card_shown(front, report, "another statement as a card: a receipt", (one, receipt), UNSIGNED)?;
    card_shown(front, report, "another statement as a card: an HTTP signature", (one, &base), UNSIGNED)?;
    let card = received_offer(&honest.card, one);
    offer_shown(front, report, "another statement as an offer: a card", card, MALFORMED)?;
    let receipt = received_offer(receipt, one);
    offer_shown(front, report, "another statement as an offer: a receipt", receipt, MALFORMED)
}

/// The node's own words as a peer's, and a peer's as another peer's or by another way.
fn as_somebody_elses(front: &mut Front, report: &mut Report, honest: &Honest) -> Result<()> {
    let (node, own) = (honest.node, &honest.own_offer);
    let name = "its own words as a peer's: the card";
    card_shown(front, report, name, (node, &honest.card), Refusal::NotAllowed)?;
    let name = "its own words as a peer's: an offer";
    offer_shown(front, report, name, received_offer(own, node), Refusal::OfferForOther)?;
    let name = "a peer's words as another peer's: an offer";
    offer_shown(front, report, name, received_offer(&honest.link.offer, honest.other.id), Refusal::OfferSender)?;
    let elsewhere = Bytes::from_static(&[5; 32]);
    let offer = rpc::ReceivedOffer { directory: elsewhere, ..received_offer(&honest.link.offer, honest.one.id) };
    offer_shown(front, report, "a peer's words by another directory: an offer", offer, Refusal::OfferSealed)
}

/// A peer's card that the peer signed, but as something else, or as it stands.
fn under_other_labels(front: &mut Front, report: &mut Report, honest: &mut Honest) -> Result<()> {
    let card = honest.one.card()?;
    let payload = payload(&card).context("a card's payload")?;
    let (peer, key) = (honest.one.id, honest.one.key.clone());
    for label in Label::ALL.into_iter().filter(|label| *label != Label::Card) {
        let signature = key.sign(&signed_bytes(label, &payload)).to_bytes();
        let card = statement::encode(&payload, &peer, &signature);
        let name = format!("a peer's card under another label: {label:?}");
        card_shown(front, report, &name, (peer, &card), UNSIGNED)?;
    }
    let card = statement::encode(&payload, &peer, &key.sign(&payload).to_bytes());
    card_shown(front, report, "a peer's card under another label: none", (peer, &card), UNSIGNED)
}

/// A signature of the node's under a word that the peer goes on in its place, in a card that is in order otherwise.
fn for_a_successor(front: &mut Front, report: &mut Report, honest: &mut Honest) -> Result<()> {
    let card = honest.one.card()?;
    let payload = payload(&card).context("a card's payload")?;
    let (old, new, sequence) = (honest.node, honest.one.id, clock().0);
    let word = Succession { step: Step::Succeed, old, new, sequence };
    report.wanted(&word.encode())?;
    for (name, signed) in [("a card's", &honest.card), ("a receipt's", &honest.link.receipt)] {
        let signature = signed.last_chunk::<64>().context("a signature")?;
        // Behind all other fields of a card, as it is encoded.
        let payload = [&payload[..], &Writer::new().item(12, &word.signed(signature)).finish()].concat();
        let signature = honest.one.key.sign(&signed_bytes(Label::Card, &payload)).to_bytes();
        let card = statement::encode(&payload, &new, &signature);
        let name = format!("a signature under a word for a successor: {name}");
        card_shown(front, report, &name, (new, &card), UNSIGNED)?;
    }
    Ok(())
}

/// Match proofs of the other side, of another link, and of another session.
fn as_other_proofs(front: &mut Front, report: &mut Report, honest: &Honest) -> Result<()> {
    let shaken = &honest.shaken;
    let another = Bytes::from_static(&[6; 32]);
    for (name, row, hash, proof) in [
        ("another proof: the node's own", &honest.link.row, &shaken.hash, &shaken.own_proof),
        ("another proof: of another link", &honest.others_link.row, &shaken.hash, &shaken.peers_proof),
        ("another proof: of another session", &honest.link.row, &another, &shaken.peers_proof),
    ] {
        let (row, hash, proof) = (row.clone(), hash.clone(), proof.clone());
        let request = rpc::ValidateMatchRequest { row, hash, proof };
        let came = front.call(|mut keys| async move { keys.validate_match(request).await });
        report.answered_no((AREA, name), Event::MatchChecked, NO_MATCH, &came)?;
    }
    Ok(())
}

/// What was signed honestly, under every other label.
fn as_another(report: &mut Report, honest: &Honest) -> Result<()> {
    let card = verifies_elsewhere(&honest.node, &honest.card, Some(Label::Card));
    report.useless((AREA, "an honest signature under another label: a card's"), Event::CardSigned, card)?;
    let receipt = verifies_elsewhere(&honest.node, &honest.link.receipt, Some(Label::Receipt));
    report.useless((AREA, "an honest signature under another label: a receipt's"), Event::LinkAccepted, receipt)?;
    let (input, http) = &honest.http;
    let http = statement::encode(&input.base(), &honest.node, http.as_slice().try_into()?);
    let http = verifies_elsewhere(&honest.node, &http, None);
    report.useless((AREA, "an honest signature under another label: a request's"), Event::HttpSigned, http)
}

/// A request that was signed honestly, as one that differs in a field.
fn as_another_request(report: &mut Report, honest: &Honest) -> Result<()> {
    let (input, signature) = &honest.http;
    let header = SignatureInput::signature_header(signature.as_slice().try_into()?);
    input.verify(&header)?;
    let with = |change: fn(&mut SignatureInput)| {
        let mut changed = input.clone();
        change(&mut changed);
        if changed.verify(&header).is_ok() { Err(String::from("it verifies")) } else { Ok(()) }
    };
    for (name, outcome) in [
        ("method", with(|input| input.method = "DELETE".into())),
        ("address", with(|input| input.target_uri.push_str("?and=more"))),
        ("body", with(|input| input.content_sha256[31] ^= 1)),
        ("time", with(|input| input.created += 1)),
        ("nonce", with(|input| input.nonce[0] ^= 1)),
    ] {
        let name = format!("a signed request as another: {name}");
        report.useless((AREA, &name), Event::HttpSigned, outcome)?;
    }
    Ok(())
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
