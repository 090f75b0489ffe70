//! gRPC calls at the front, behind HTTP/2: any bytes as a body, or any bytes as one message of the contract. At the other end
//! a vault that takes nothing but what it would take, and answers as the input says.

use std::cell::RefCell;

use http_body_util::{BodyExt, Full};
use openred_cryptod::front::raw;
use openred_proto::id::{HandshakeId, LinkId, NodeId};
use openred_proto::method::description::MethodDescription;
use openred_proto::method::{Method, Place};
use openred_proto::secret::Secret;
use openred_proto::vault::{
    Frame, LinkKeys, LinkSummary, Refusal, RegisteredMethod, Reply, Request, RequestKeys, SessionGrant, decode_frame,
    encode_frame, split_frame,
};
use prost::Message;
use prost::bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::runtime::{Builder, Runtime};
use tonic::body::Body;
use tonic::codegen::http;
use tower::ServiceExt;

use crate::corpus::numbered;
use crate::records::NOW;

const CALLS: [&str; 28] = [
    "Describe",
    "SignCard",
    "SignHttp",
    "IssueLink",
    "InspectOffer",
    "AcceptOffer",
    "GetLinkKeys",
    "RevokeLink",
    "StartHandshake",
    "AnswerHandshake",
    "FinishHandshake",
    "CompleteHandshake",
    "AbandonHandshake",
    "ValidateMatch",
    "GetStoreKey",
    "RenewLink",
    "InspectRenewal",
    "AcceptRenewal",
    "ListLinks",
    "SignSession",
    "StartDirect",
    "AnswerDirect",
    "Handshakes",
    "RegisterMethod",
    "RetireMethod",
    "ListMethods",
    "SignModule",
    "GetSealKey",
];

const NODE: NodeId = NodeId::from_bytes([1; 32]);

thread_local! {
    static RUNTIME: RefCell<Runtime> =
        RefCell::new(Builder::new_current_thread().enable_io().enable_time().build().unwrap());
}

/// Three bytes say which call, whether the rest is a message or a whole body, and what the vault answers.
pub(crate) fn calls(bytes: &[u8]) {
    let Some(([call, form, reply], rest)) = bytes.split_first_chunk::<3>() else { return };
    let body = if form.is_multiple_of(2) { message(rest) } else { rest.to_vec() };
    let path = format!("/openred.cryptod.v1.Cryptod/{}", CALLS[usize::from(*call) % CALLS.len()]);
    RUNTIME.with_borrow(|runtime| runtime.block_on(one_call(&path, body, *reply)));
}

/// As gRPC frames a message: not compressed, its length, itself.
fn message(bytes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(bytes.len()).unwrap();
    [&[0][..], &length.to_be_bytes(), bytes].concat()
}

async fn one_call(path: &str, body: Vec<u8>, reply: u8) {
    let (front, vault) = UnixStream::pair().unwrap();
    let vault = tokio::spawn(vault_that_answers(vault, reply));
    let request = http::Request::builder()
        .method("POST")
        .uri(path)
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Body::new(Full::new(Bytes::from(body)).map_err(|never| match never {})))
        .unwrap();
    let response = raw::service(front, NODE).oneshot(request).await.unwrap_or_else(|never| match never {});
    assert_eq!(response.status(), 200, "gRPC says what is wrong in its own status");
    let said = response.into_body().collect().await;
    assert!(said.is_ok(), "an answer that cannot be read");
    // The link to the vault ends with the service; what the vault saw is its own to judge.
    vault.await.unwrap();
}

/// Every frame of the front must be one request that `noded` may make; it is answered, rightly or not.
async fn vault_that_answers(mut stream: UnixStream, reply: u8) {
    let (mut bytes, mut piece) = (Vec::new(), [0; 4096]);
    loop {
        match stream.read(&mut piece).await {
            Ok(0) | Err(_) => {
                assert!(bytes.is_empty(), "the front left a frame unfinished");
                return;
            }
            Ok(count) => bytes.extend_from_slice(&piece[..count]),
        }
        while let Ok((body, used)) = split_frame(&bytes) {
            let frame: Frame<Request> = decode_frame(body).expect("the front sends requests and nothing else");
            assert!(
                !matches!(frame.body, Request::Lock | Request::Rotate { .. }),
                "the front asked for what is the operator's"
            );
            // As the vault does: what is over its own cap does not leave it.
            let answer = encode_frame(&Frame { id: frame.id, body: answer(reply) });
            let refused = || encode_frame(&Frame { id: frame.id, body: Reply::Refused(Refusal::Bug) }).unwrap();
            let _ = stream.write_all(&answer.unwrap_or_else(|_| refused())).await;
            bytes.drain(..used);
        }
    }
}

fn first_place() -> Place {
    Place::from_number(1).expect("places are counted from one")
}

/// Any answer there is, to any question.
fn answer(which: u8) -> Reply {
    let bytes = |length: usize| vec![which; length];
    let keys = || RequestKeys { tag: Secret::new([1; 32]), mac1: Secret::new([2; 32]) };
    let keys = || LinkKeys { outgoing: keys(), incoming: keys() };
    let link = LinkId::from_bytes([3; 16]);
    let (method, issuer, epoch) = (Method::Beta, which & 1 == 0, 7);
    let registered = None;
    let summary =
        || LinkSummary { link, peer: NODE, issuer, method, epoch, not_before: NOW, not_after: NOW, registered };
    let grant = || SessionGrant {
        link: Some(link),
        peer: NODE,
        method: Method::Alpha,
        send: Secret::new([4; 32]),
        receive: Secret::new([5; 32]),
        hash: [6; 32],
        mutual_link: [7; 16],
        match_proof: [8; 32],
        peer_card_sequence: 9,
        peer_directory_head: bytes(32),
    };
    let handshake = HandshakeId::from_bytes([9; 16]);
    match which % 18 {
        0 => Reply::Card { statement: bytes(300), sequence: 1, expires_at: NOW },
        1 => Reply::Signature(bytes(usize::from(which))),
        2 => Reply::LinkIssued { summary: summary(), row: bytes(97), offer: bytes(3400), keys: keys() },
        3 => Reply::OfferInspected(summary()),
        4 => Reply::LinkAccepted { summary: summary(), row: bytes(97), receipt: bytes(240), keys: keys() },
        5 => Reply::LinkKeys(keys()),
        6 => Reply::Done,
        7 => Reply::HandshakeStarted { handshake, noise: bytes(1300) },
        8 => Reply::HandshakeFinished { noise: bytes(200), grant: grant() },
        9 => Reply::HandshakeCompleted { grant: grant() },
        10 => Reply::MatchValidated { matched: true },
        11 => Reply::StoreKey(Secret::new([1; 32])),
        12 => Reply::Links(vec![link; 3]),
        13 => Reply::SessionSigned { peer: NODE, statement: bytes(138) },
        14 => Reply::MethodRegistered(first_place()),
        15 => Reply::Methods(vec![RegisteredMethod {
            place: first_place(),
            module: "greet".into(),
            description: bytes(80),
            epoch: 1,
            retired: issuer,
        }]),
        16 => Reply::ModuleSigned(bytes(200)),
        _ => Reply::Refused(Refusal::Quota),
    }
}

/// One message of each call, answered as it should be and otherwise, and bodies that are none.
pub(crate) fn corpus() -> Vec<(String, Vec<u8>)> {
    use openred_proto::cryptod as rpc;
    let of = |length: usize| Bytes::from(vec![7; length]);
    let offer = rpc::ReceivedOffer { offer: of(3400), sender: of(32), directory: of(32), allowed: 15 }.encode_to_vec();
    let card = rpc::SignCardRequest {
        endpoints: vec!["http://192.0.2.7:7690".into()],
        name: "alice".into(),
        suites: 15,
        life_seconds: 3600,
        ..Default::default()
    };
    let signed = rpc::SignHttpRequest {
        method: "POST".into(),
        target_uri: "https://directory.example/api".into(),
        content_sha256: of(32),
        created: NOW.seconds(),
        nonce: of(16),
    };
    let issue = rpc::IssueLinkRequest {
        peer: of(32),
        card: of(300),
        directory: of(32),
        allowed: 3,
        schedule: 2,
        life_seconds: 60,
    };
    let renew = rpc::RenewLinkRequest {
        row: of(97),
        card: of(300),
        directory: of(32),
        allowed: 3,
        schedule: 1,
        life_seconds: 60,
    };
    let received = rpc::ReceivedOffer { offer: of(3400), sender: of(32), directory: of(32), allowed: 15 };
    let renewal = rpc::ReceivedRenewal { received: Some(received), row: of(97) }.encode_to_vec();
    let row = rpc::LinkRow { row: of(97) }.encode_to_vec();
    let answered = rpc::AnswerHandshakeRequest { row: of(97), noise: of(1300), directory_head: of(32) };
    let goes_on = |head| rpc::ContinueHandshakeRequest { handshake: of(16), noise: of(600), directory_head: of(head) };
    let matched = rpc::ValidateMatchRequest { row: of(97), hash: of(32), proof: of(32) };
    let described = MethodDescription::floor("omega").encode();
    let stated = rpc::SignModuleRequest { module: "greet".into(), domain: "words".into(), digest: of(32), length: 9 };
    let calls = [
        (17, Vec::new()),
        (0, card.encode_to_vec()),
        (64 - 64 % 18 + 1, signed.encode_to_vec()),
        (2, issue.encode_to_vec()),
        (3, offer.clone()),
        (4, offer),
        (5, row.clone()),
        (6, rpc::LinkName { link_id: of(16) }.encode_to_vec()),
        (7, row),
        (7, answered.encode_to_vec()),
        (8, goes_on(32).encode_to_vec()),
        (9, goes_on(0).encode_to_vec()),
        (6, rpc::HandshakeName { handshake: of(16) }.encode_to_vec()),
        (10, matched.encode_to_vec()),
        (11, rpc::StoreKeyRequest { purpose: "files".into() }.encode_to_vec()),
        (2, renew.encode_to_vec()),
        (3, renewal.clone()),
        (4, renewal),
        (12, rpc::ListLinksRequest { after: of(16) }.encode_to_vec()),
        (13, rpc::HandshakeName { handshake: of(16) }.encode_to_vec()),
        (7, rpc::StartDirectRequest { method: 2, peer: of(32) }.encode_to_vec()),
        (7, rpc::AnswerDirectRequest { method: 3, noise: of(1300), directory_head: of(32) }.encode_to_vec()),
        // A stream that ends at once: what it carries are the calls above.
        (6, Vec::new()),
        (14, rpc::RegisterMethodRequest { module: "greet".into(), description: described.into() }.encode_to_vec()),
        (6, rpc::MethodName { method: of(16) }.encode_to_vec()),
        (15, Vec::new()),
        (16, stated.encode_to_vec()),
        (11, rpc::SealKeyRequest { module: "greet".into() }.encode_to_vec()),
    ];
    let mut inputs: Vec<Vec<u8>> =
        (0_u8..).zip(&calls).map(|(call, (reply, bytes))| [&[call, 0, *reply], &bytes[..]].concat()).collect();
    let header = calls[6].1.clone();
    inputs.extend([
        [&[6, 1, 5], &message(&header)[..]].concat(),
        [&[6, 1, 5, 1], &message(&header)[1..]].concat(),
        [&[6, 1, 5], &message(&header)[..8]].concat(),
        [&[6, 1, 5], &message(&header)[..], &message(&header)[..]].concat(),
        [&[6, 1, 5][..], &[0, 0xff, 0xff, 0xff, 0xff, 1]].concat(),
    ]);
    numbered(inputs)
}
