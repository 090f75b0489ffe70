//! Operations that are not `noded`'s, or not now.

use anyhow::{Result, anyhow, bail};
use openred_cryptod::vault::serve::clock;
use openred_proto::audit::Event;
use openred_proto::cryptod as rpc;
use openred_proto::vault::{Refusal, StatementFault};
use prost::bytes::Bytes;
use tonic::Code;

use super::front::Front;
use super::honest::{Honest, answer_request, card_request, continue_request, http_request, issue_request, row_request};
use super::report::{Area, Report};

const AREA: Area = Area::Operations;
/// Nine days, one more than a card may live.
const TOO_LONG: u64 = 9 * 86_400;
const TEN_YEARS: u64 = 3650 * 86_400;
const DAY: u64 = 86_400;

pub(crate) fn all(front: &mut Front, report: &mut Report, honest: &mut Honest) -> Result<()> {
    front.afresh()?;
    outside_the_contract(front, report)?;
    out_of_phase(front, report, honest)?;
    // A caller's faults are counted by connection: the next ones get another.
    front.afresh()?;
    over_the_bounds(front, report, honest)
}

/// The operator's operations, and some that nobody has, on the one socket that `noded` reaches.
fn outside_the_contract(front: &mut Front, report: &mut Report) -> Result<()> {
    for (name, path) in [
        ("lock", "/openred.cryptod.v1.Cryptod/Lock"),
        ("rotate", "/openred.cryptod.v1.Cryptod/Rotate"),
        ("sign bare bytes", "/openred.cryptod.v1.Cryptod/Sign"),
        ("export the key", "/openred.cryptod.v1.Cryptod/ExportKey"),
        ("unlock at the supervisor", "/openred.admin.v1.Supervisor/UnlockKeys"),
    ] {
        let came = front.call_named(path, b"\x0a\x05attack");
        report.turned_away((AREA, name), Code::Unimplemented, came)?;
    }
    let came = front.call_named("/openred.cryptod.v1.Cryptod/SignHttp", &[0xff; 64]);
    report.turned_away((AREA, "a message that is none"), Code::Internal, came)
}

fn out_of_phase(front: &mut Front, report: &mut Report, honest: &mut Honest) -> Result<()> {
    let gone = Refusal::HandshakeGone;
    let request = continue_request(&[9; 16], &[7; 128]);
    let came = front.call(|mut keys| async move { keys.finish_handshake(request).await });
    report.refused((AREA, "FINALIZE of no handshake"), Event::HandshakeFinished, gone, came)?;
    let request = continue_request(&honest.shaken.completed.0, &honest.shaken.completed.1);
    let came = front.call(|mut keys| async move { keys.complete_handshake(request).await });
    report.refused((AREA, "FINALIZE taken twice"), Event::HandshakeCompleted, gone, came)?;

    let (_, noise) = honest.one.start(&honest.link.peers_row)?;
    let request = answer_request(&honest.link.row, &noise);
    let answered = front.call(|mut keys| async move { keys.answer_handshake(request).await });
    let answered = answered.map_err(|refused| anyhow!("an honest VERIFY: {}", refused.text))?;
    let request = continue_request(&answered.handshake, &answered.noise);
    let came = front.call(|mut keys| async move { keys.finish_handshake(request).await });
    report.refused((AREA, "the initiator's phase for a responder"), Event::HandshakeFinished, gone, came)?;
    let request = continue_request(&answered.handshake, &[7; 128]);
    let came = front.call(|mut keys| async move { keys.complete_handshake(request).await });
    report.refused((AREA, "a FINALIZE of one's own"), Event::HandshakeCompleted, Refusal::HandshakeFailed, came)?;

    let row = row_request(&honest.link.row);
    let started = front.call(|mut keys| async move { keys.start_handshake(row).await });
    let started = started.map_err(|refused| anyhow!("an honest REQUEST: {}", refused.text))?;
    let request = answer_request(&honest.link.row, &started.noise);
    let came = front.call(|mut keys| async move { keys.answer_handshake(request).await });
    report.refused((AREA, "the node's own REQUEST"), Event::HandshakeAnswered, Refusal::HandshakeFailed, came)?;
    let request = rpc::HandshakeName { handshake: started.handshake };
    if front.call(|mut keys| async move { keys.abandon_handshake(request).await }).is_err() {
        bail!("an honest abandonment");
    }
    Ok(())
}

fn over_the_bounds(front: &mut Front, report: &mut Report, honest: &mut Honest) -> Result<()> {
    let denied = Refusal::NotAllowed;
    let came = front.call(|mut keys| async move { keys.sign_card(card_request("", TOO_LONG)).await });
    report.refused((AREA, "a card for nine days"), Event::CardSigned, denied, came)?;
    let request = issue_request(honest.one.id, &honest.one.card()?, TEN_YEARS);
    let came = front.call(|mut keys| async move { keys.issue_link(request).await });
    report.refused((AREA, "a link for ten years"), Event::LinkIssued, denied, came)?;
    let request = http_request("GET", "https://directory.example/", clock().0 / 1000 + DAY);
    let came = front.call(|mut keys| async move { keys.sign_http(request).await });
    let early = Refusal::PeerStatement(StatementFault::NotYetValid);
    report.refused((AREA, "a request of tomorrow"), Event::HttpSigned, early, came)?;
    let purpose = String::from("../row");
    let came = front.call(|mut keys| async move { keys.get_store_key(rpc::StoreKeyRequest { purpose }).await });
    report.refused((AREA, "another key by a path"), Event::StoreKeyGiven, denied, came)?;
    let link_id = Bytes::from_static(&[9; 16]);
    let came = front.call(|mut keys| async move { keys.revoke_link(rpc::LinkName { link_id }).await });
    report.refused((AREA, "the end of no link"), Event::LinkRevoked, Refusal::LinkGone, came)
}
