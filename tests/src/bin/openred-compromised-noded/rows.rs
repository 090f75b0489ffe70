//! Sealed rows that are not as the vault sealed them last, and messages that were answered already.

use anyhow::{Result, ensure};
use openred_proto::audit::Event;
use openred_proto::cryptod as rpc;
use openred_proto::vault::Refusal;

use super::front::Front;
use super::honest::{Honest, answer_request, link, row_request};
use super::report::{Area, Report};

const AREA: Area = Area::Rows;
/// A row's version stands behind its layout's number and its link.
const VERSION_AT: usize = 1 + 16 + 7;
/// Bytes before a row's sealed part.
const HEAD: usize = 1 + 16 + 8;

pub(crate) fn all(front: &mut Front, report: &mut Report, honest: &mut Honest) -> Result<()> {
    front.afresh()?;
    changed(front, report, honest)?;
    replayed(front, report, honest)?;
    rolled_back(front, report, honest)
}

fn changed(front: &mut Front, report: &mut Report, honest: &Honest) -> Result<()> {
    let (own, others) = (honest.link.row.to_vec(), &honest.others_link.row);
    let with = |at: usize| {
        let mut row = own.clone();
        row[at] ^= 1;
        row
    };
    let swapped = [&others[..HEAD], &own[HEAD..]].concat();
    for (name, row) in [
        ("a bit of the sealed token", with(own.len() - 20)),
        ("a row under another link's name", swapped),
        ("another version", with(VERSION_AT)),
        ("the peer's row of the same link", honest.link.peers_row.clone()),
    ] {
        let request = row_request(&row);
        let came = front.call(|mut keys| async move { keys.get_link_keys(request).await });
        report.refused((AREA, name), Event::LinkOpened, Refusal::RowSealed, came)?;
        let request = row_request(&row);
        let came = front.call(|mut keys| async move { keys.start_handshake(request).await });
        let name = format!("{name}, for a handshake");
        report.refused((AREA, &name), Event::HandshakeBegun, Refusal::RowSealed, came)?;
    }
    Ok(())
}

fn replayed(front: &mut Front, report: &mut Report, honest: &mut Honest) -> Result<()> {
    let (_, noise) = honest.one.start(&honest.link.peers_row)?;
    let (own, others) = (honest.link.row.clone(), honest.others_link.row.clone());
    let request = answer_request(&others, &noise);
    let came = front.call(|mut keys| async move { keys.answer_handshake(request).await });
    let what = (AREA, "a REQUEST with another link's row");
    report.refused(what, Event::HandshakeAnswered, Refusal::HandshakeFailed, came)?;
    let request = answer_request(&own, &noise);
    ensure!(front.call(|mut keys| async move { keys.answer_handshake(request).await }).is_ok(), "an honest VERIFY");
    let request = answer_request(&own, &noise);
    let came = front.call(|mut keys| async move { keys.answer_handshake(request).await });
    report.refused((AREA, "a REQUEST twice"), Event::HandshakeAnswered, Refusal::Replay, came)
}

/// Rows of a database as it was before a newer link, and before a revocation.
fn rolled_back(front: &mut Front, report: &mut Report, honest: &mut Honest) -> Result<()> {
    let newer = link(front, &mut honest.other, honest.node, &honest.card)?;
    let request = row_request(&honest.others_link.row);
    let came = front.call(|mut keys| async move { keys.start_handshake(request).await });
    let what = (AREA, "the row of a link that a newer one replaced");
    report.refused(what, Event::HandshakeBegun, Refusal::LinkGone, came)?;
    let link_id = newer.id.clone();
    let revoked = front.call(|mut keys| async move { keys.revoke_link(rpc::LinkName { link_id }).await });
    ensure!(revoked.is_ok(), "an honest revocation");
    report.control("revoke", Some(Event::LinkRevoked))?;
    let request = row_request(&newer.row);
    let came = front.call(|mut keys| async move { keys.get_link_keys(request).await });
    report.refused((AREA, "the row of a revoked link"), Event::LinkOpened, Refusal::LinkGone, came)
}
