//! Generated types of the contract to the SDK's and back. What the other side sent is checked here and nowhere later.

use bytes::Bytes;
use openred_proto::id::NodeId;
use openred_proto::module::host_frame::Kind as FromHost;
use openred_proto::module::module_frame::Kind as FromModule;
use openred_proto::module::{self as wire, event};

use super::flow::Piece;
use super::lane::Framed;
use super::{CONTENT_TYPE_BYTES, RANGE_BYTES};
use crate::body::Body;
use crate::error::Status;
use crate::host::{Batch, BlobName, Scan, ScanPage};
use crate::message::{Caller, IdempotencyKey, Method, ModuleName, PeerRequest, Request, Response};
use crate::module::Event;
use crate::range::BlobRange;

impl Framed for wire::HostFrame {
    fn credit(call: u64, bytes: u32) -> Self {
        host_frame(FromHost::Credit(wire::Credit { call, bytes }))
    }
}

impl Framed for wire::ModuleFrame {
    fn credit(call: u64, bytes: u32) -> Self {
        module_frame(FromModule::Credit(wire::Credit { call, bytes }))
    }
}

pub(crate) fn host_frame(kind: FromHost) -> wire::HostFrame {
    wire::HostFrame { kind: Some(kind) }
}

pub(crate) fn module_frame(kind: FromModule) -> wire::ModuleFrame {
    wire::ModuleFrame { kind: Some(kind) }
}

/// A piece of a call's body.
pub(crate) fn chunk(call: u64, piece: Piece) -> wire::Chunk {
    let range = piece.range.map(|range| wire::BlobRange {
        name: range.name.as_str().to_owned(),
        offset: range.offset,
        length: range.length,
    });
    wire::Chunk { call, body: piece.bytes, end: piece.end.into(), limit: piece.limit, range }
}

/// A range that a module names, if it is one.
pub(crate) fn to_range(range: &wire::BlobRange) -> Option<BlobRange> {
    let wire::BlobRange { offset, length, .. } = *range;
    let is_one = length > 0 && length <= RANGE_BYTES && offset.checked_add(length).is_some();
    let name = BlobName::new(&range.name)?;
    is_one.then_some(BlobRange { name, offset, length })
}

pub(crate) fn node_id(bytes: &[u8]) -> Option<NodeId> {
    Some(NodeId::from_bytes(bytes.try_into().ok()?))
}

pub(crate) fn of_node(id: NodeId) -> Bytes {
    Bytes::copy_from_slice(id.as_bytes())
}

pub(crate) fn of_method(method: Method) -> i32 {
    match method {
        Method::Get => wire::Method::Get.into(),
        Method::Post => wire::Method::Post.into(),
    }
}

pub(crate) fn to_method(method: i32) -> Option<Method> {
    match wire::Method::try_from(method).ok()? {
        wire::Method::Unspecified => None,
        wire::Method::Get => Some(Method::Get),
        wire::Method::Post => Some(Method::Post),
    }
}

fn of_key(key: Option<IdempotencyKey>) -> Bytes {
    key.map(|key| Bytes::copy_from_slice(&key)).unwrap_or_default()
}

fn to_key(bytes: &[u8]) -> Option<Option<IdempotencyKey>> {
    if bytes.is_empty() { Some(None) } else { Some(Some(bytes.try_into().ok()?)) }
}

// ---------------------------------------------------------------- calls

/// A call's head; its body goes beside it.
pub(crate) fn of_request(call: u64, request: &Request, first: Option<Piece>) -> wire::Call {
    let (peer, module) = match request.caller {
        Caller::Peer(peer) => (of_node(peer), String::new()),
        Caller::Operator | Caller::Loopback => (Bytes::new(), String::new()),
        Caller::Module(name) => (Bytes::new(), name.as_str().to_owned()),
    };
    let first = first.unwrap_or(Piece::none());
    wire::Call {
        call,
        peer,
        module,
        method: of_method(request.method),
        path: request.path.clone(),
        content_type: request.content_type.clone(),
        length: request.length,
        deadline: request.deadline,
        idempotency_key: of_key(request.idempotency_key),
        body: first.bytes,
        end: first.end.into(),
        loopback: request.caller == Caller::Loopback,
    }
}

/// The same back, with the body that was made for it.
pub(crate) fn to_request(call: wire::Call, body: Body) -> Option<Request> {
    let caller = match (call.loopback, call.peer.is_empty(), call.module.as_str()) {
        (true, true, "") => Caller::Loopback,
        (false, true, "") => Caller::Operator,
        (false, false, "") => Caller::Peer(node_id(&call.peer)?),
        (false, true, module) => Caller::Module(ModuleName::new(module)?),
        (true, ..) | (false, false, _) => return None,
    };
    let mut request = Request::new(caller, to_method(call.method)?, call.path).with_body(&call.content_type, body);
    request.length = call.length;
    request.deadline = call.deadline;
    request.idempotency_key = to_key(&call.idempotency_key)?;
    Some(request)
}

pub(crate) fn of_response(call: u64, response: &Response, first: Option<Piece>) -> wire::Reply {
    let first = first.unwrap_or(Piece::none());
    wire::Reply {
        call,
        status: u32::from(response.status.code()),
        content_type: response.content_type.clone(),
        length: response.length.or(response.body.known_length()),
        body: first.bytes,
        end: first.end.into(),
    }
}

/// A reply's head, as far as it is one.
pub(crate) fn to_response(status: u32, content_type: String, length: Option<u64>, body: Body) -> Option<Response> {
    let status = u16::try_from(status).ok().filter(|status| (200..600).contains(status))?;
    let is_type =
        content_type.len() <= CONTENT_TYPE_BYTES && content_type.bytes().all(|byte| (32..127).contains(&byte));
    is_type.then(|| Response { status: Status::from_code(status), content_type, length, body })
}

pub(crate) fn of_event(call: u64, event: Event) -> wire::Event {
    let kind = match event {
        Event::Timer(timer) => event::Kind::Timer(timer),
        Event::PeerReachable(peer) => event::Kind::PeerReachable(of_node(peer)),
        Event::PeerForgotten(peer) => event::Kind::PeerForgotten(of_node(peer)),
        Event::IdentitiesChanged(peer) => event::Kind::IdentitiesChanged(of_node(peer)),
    };
    wire::Event { call, kind: Some(kind) }
}

pub(crate) fn to_event(event: wire::Event) -> Option<Event> {
    Some(match event.kind? {
        event::Kind::Timer(timer) => Event::Timer(timer),
        event::Kind::PeerReachable(peer) => Event::PeerReachable(node_id(&peer)?),
        event::Kind::PeerForgotten(peer) => Event::PeerForgotten(node_id(&peer)?),
        event::Kind::IdentitiesChanged(peer) => Event::IdentitiesChanged(node_id(&peer)?),
    })
}

// ---------------------------------------------------------------- requests to peers

pub(crate) fn of_peer_request(peer: NodeId, request: &PeerRequest) -> wire::PeerSendHead {
    wire::PeerSendHead {
        peer: of_node(peer),
        module: String::new(),
        parent: 0,
        method: of_method(request.method),
        path: request.path.clone(),
        content_type: request.content_type.clone(),
        length: request.length,
        deadline: request.deadline,
        idempotency_key: of_key(request.idempotency_key),
        store: None,
        operator: false,
    }
}

/// The head of a call of another module.
pub(crate) fn of_module_request(call: u64, module: &str, request: &PeerRequest) -> wire::PeerSendHead {
    let head = of_peer_request(NodeId::from_bytes([0; 32]), request);
    wire::PeerSendHead { peer: Bytes::new(), module: module.to_owned(), parent: call, ..head }
}

pub(crate) fn to_peer_request(head: wire::PeerSendHead, body: Body) -> Option<(NodeId, PeerRequest)> {
    let peer = node_id(&head.peer)?;
    Some((peer, to_sent_request(head, body)?))
}

/// The same, whoever it is for.
pub(crate) fn to_sent_request(head: wire::PeerSendHead, body: Body) -> Option<PeerRequest> {
    let request = PeerRequest {
        method: to_method(head.method)?,
        path: head.path,
        content_type: head.content_type,
        length: head.length,
        deadline: head.deadline,
        idempotency_key: to_key(&head.idempotency_key)?,
        body,
    };
    Some(request)
}

// ---------------------------------------------------------------- rows

pub(crate) fn of_batch(batch: Batch) -> wire::KvApplyRequest {
    let row = |(key, value)| wire::Row { key, value };
    wire::KvApplyRequest {
        expect: batch.expect.into_iter().map(row).collect(),
        put: batch.put.into_iter().map(|(key, value)| row((key, Some(value)))).collect(),
        delete: batch.delete,
    }
}

pub(crate) fn to_batch(request: wire::KvApplyRequest) -> Option<Batch> {
    let put = request.put.into_iter().map(|row| Some((row.key, row.value?))).collect::<Option<_>>()?;
    Some(Batch {
        expect: request.expect.into_iter().map(|row| (row.key, row.value)).collect(),
        put,
        delete: request.delete,
    })
}

pub(crate) fn of_scan(scan: Scan) -> wire::KvScanRequest {
    wire::KvScanRequest {
        prefix: scan.prefix,
        after: scan.after,
        limit: u32::try_from(scan.limit).unwrap_or(u32::MAX),
        backwards: scan.backwards,
    }
}

pub(crate) fn to_scan(request: wire::KvScanRequest) -> Scan {
    Scan { prefix: request.prefix, after: request.after, limit: request.limit as usize, backwards: request.backwards }
}

/// A page that fits a message: cut rather than refused, as a host may always stop early.
pub(crate) fn of_page(page: ScanPage, most: usize) -> wire::KvScanReply {
    let (mut bytes, mut more) = (0, page.more);
    let mut rows = Vec::with_capacity(page.rows.len());
    for (key, value) in page.rows {
        bytes += key.len() + value.len() + ROW_BYTES;
        if bytes > most && !rows.is_empty() {
            more = true;
            break;
        }
        rows.push(wire::Row { key, value: Some(value) });
    }
    wire::KvScanReply { rows, more }
}

/// What protobuf adds to a row: tags and lengths of three fields.
const ROW_BYTES: usize = 16;

pub(crate) fn to_page(reply: wire::KvScanReply) -> Option<ScanPage> {
    let rows = reply.rows.into_iter().map(|row| Some((row.key, row.value?))).collect::<Option<_>>()?;
    Some(ScanPage { rows, more: reply.more })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn a_page_is_cut_to_a_message_and_never_to_nothing() {
        let row = |key: &'static str| (Bytes::from(key), Bytes::from(vec![1; 100]));
        let page = ScanPage { rows: vec![row("a"), row("b"), row("c")], more: false };
        let cut = of_page(page.clone(), 240);
        assert_eq!((cut.rows.len(), cut.more), (2, true));
        assert_eq!(of_page(page.clone(), 1).rows.len(), 1);
        assert_eq!(to_page(of_page(page.clone(), 10_000)), Some(page));
    }

    #[test]
    fn what_is_no_head_is_refused() {
        let head = |status, content_type: &str| to_response(status, content_type.into(), None, Body::empty());
        assert_eq!(head(200, "text/plain").unwrap().status, Status::Ok);
        for status in [0, 100, 199, 600, 65_536 + 200] {
            assert!(head(status, "").is_none(), "{status}");
        }
        for content_type in ["a\r\nb", "é", &"x".repeat(CONTENT_TYPE_BYTES + 1)] {
            assert!(head(200, content_type).is_none(), "{content_type:?}");
        }
        let request = Request::new(Caller::Peer(NodeId::from_bytes([1; 32])), Method::Post, "/a");
        let call = of_request(1, &request, None);
        assert_eq!(to_request(call.clone(), Body::empty()).unwrap().caller, request.caller);
        for broken in [
            wire::Call { peer: Bytes::from_static(b"short"), ..call.clone() },
            wire::Call { method: 0, ..call.clone() },
            wire::Call { loopback: true, ..call.clone() },
            wire::Call { method: 77, ..call.clone() },
            wire::Call { idempotency_key: Bytes::from_static(b"short"), ..call.clone() },
            wire::Call { module: "other".into(), ..call },
        ] {
            assert!(to_request(broken, Body::empty()).is_none());
        }
    }

    #[test]
    fn batches_scans_and_events_come_back_as_themselves() {
        let batch = Batch::new().expect("a", None).expect("b", Some(Bytes::new())).put("c", "1").delete("d");
        assert_eq!(to_batch(of_batch(batch.clone())), Some(batch));
        let scan = Scan::prefix("p").after(Some(Bytes::from("q"))).limit(3).backwards();
        assert_eq!(to_scan(of_scan(scan.clone())), scan);
        let peer = NodeId::from_bytes([9; 32]);
        for event in
            [Event::Timer(3), Event::PeerReachable(peer), Event::PeerForgotten(peer), Event::IdentitiesChanged(peer)]
        {
            assert_eq!(to_event(of_event(1, event)), Some(event));
        }
        let bare = wire::Row { key: Bytes::new(), value: None };
        assert!(to_batch(wire::KvApplyRequest { put: vec![bare], ..Default::default() }).is_none());
    }
}
