//! What would make the trail say less, or something else.

use anyhow::{Context, Result, ensure};
use openred_proto::audit::Event;
use openred_proto::cryptod as rpc;
use openred_proto::id::NodeId;
use openred_proto::vault::{Frame, Refusal, Reply, Request, decode_frame, encode_frame, split_frame};
use tonic::{Code, Status};

use super::front::{Front, Refused};
use super::honest::{row_request, sign_http};
use super::report::{Area, Report};

const AREA: Area = Area::Audit;
/// Refusals in a row: several times what the trail lists at once.
const FLOOD: u32 = 400;
/// As long as a row, and none.
const NO_ROW: [u8; 97] = [3; 97];

pub(crate) fn all(front: &mut Front, report: &mut Report) -> Result<()> {
    front.afresh()?;
    for (name, call, code) in [
        ("say that a segment is filed", "AuditFiled", Code::Unimplemented),
        ("note what the supervisor notes", "Note", Code::Unimplemented),
        // Number 99 is none of the events that are `noded`'s to see.
        ("report what only others see", "Report", Code::InvalidArgument),
        ("ask where the trail stands", "AuditStatus", Code::Unimplemented),
        ("ask how a peer is named", "AuditSubject", Code::Unimplemented),
    ] {
        let came = front.call_named(&format!("/openred.cryptod.v1.Cryptod/{call}"), &[0x08, 99, 0x10, 0x01]);
        report.turned_away((AREA, name), code, came)?;
    }
    // The vault's own frames, past the contract: the front passes none on, and hangs up.
    let frame = encode_frame(&Frame { id: 1, body: Request::AuditFiled { segment: 1 } })?;
    let answer = front.raw(&frame)?;
    let answered = split_frame(&answer).is_ok_and(|(body, _)| decode_frame::<Reply>(body).is_ok());
    let closed = Refused::from(Status::aborted("closed"));
    let came = if answered { Ok(answer) } else { Err(Refused { more: answer, ..closed }) };
    report.turned_away((AREA, "the vault's own frames"), Code::Aborted, came)?;
    below_the_contract(front, report)
}

/// What HTTP/2 itself refuses, before any service could count it.
fn below_the_contract(front: &mut Front, report: &mut Report) -> Result<()> {
    const BEGINNING: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    for (name, head, payload) in [
        ("a frame that is longer than any may be", b"\x01\0\0\x00\x01\0\0\0\x01", &[0; 100][..]),
        ("a head that cannot be read", b"\0\0\x28\x01\x05\0\0\0\x01", &[0xff; 40][..]),
        ("data on no stream", b"\0\0\x04\x00\0\0\0\0\0", &b"data"[..]),
    ] {
        let answer = front.raw(&[BEGINNING, head, payload].concat())?;
        let hung_up = frames(&answer).last().is_some_and(|(kind, payload)| *kind == GOAWAY && payload[4..8] != [0; 4]);
        let closed = Refused { more: answer.clone(), ..Refused::from(Status::aborted("closed")) };
        report.turned_away((AREA, name), Code::Aborted, if hung_up { Err(closed) } else { Ok(answer) })?;
    }
    Ok(())
}

/// Type of the frame by which a connection is ended, with a code behind the last stream's number (RFC 9113, 6.8).
const GOAWAY: u8 = 7;

/// The whole frames of an answer: type and payload.
fn frames(mut bytes: &[u8]) -> Vec<(u8, &[u8])> {
    let mut found = Vec::new();
    while let Some((head, rest)) = bytes.split_first_chunk::<9>() {
        let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
        let Some((payload, rest)) = rest.split_at_checked(length) else { break };
        found.push((head[3], payload));
        bytes = rest;
    }
    found
}

/// Many refusals, so that what comes between them is not listed; then an honest operation, which must be.
pub(crate) fn flood(front: &mut Front, report: &mut Report) -> Result<()> {
    front.afresh()?;
    let described = front.call(|mut keys| async move { keys.describe(rpc::DescribeRequest {}).await });
    let node = described.ok().context("who the node is")?.node_id;
    for _ in 0..FLOOD {
        let request = row_request(&NO_ROW);
        let came = front.call(|mut keys| async move { keys.get_link_keys(request).await });
        let refused = came.err().and_then(|refused| refused.refusal);
        ensure!(refused.as_deref() == Some(Refusal::RowSealed.code()), "of the flood: {refused:?}");
    }
    report.many(FLOOD, Event::LinkOpened, Refusal::RowSealed)?;
    let (_, signature) = sign_http(front, NodeId::from_bytes(node[..].try_into()?))?;
    report.signature(&signature)?;
    report.hidden((AREA, "an operation hidden in a flood"), Event::HttpSigned)
}
