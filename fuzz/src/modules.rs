//! What peers send to the modules that come with a node, and what they answer: messages, receipts, lists, descriptions of files, links.
//!
//! The module itself is driven, on a test host in virtual time: the bytes come to its routes as a peer's call, or are what a peer answers to it.

pub(crate) mod files;
pub(crate) mod messaging;

use std::collections::VecDeque;
use std::future::Future;
use std::sync::{Arc, Mutex};

use openred_module::{
    Body, Context, Manifest, Method, Module, ModuleError, NodeId, PeerRequest, Request, Response, Routes, Status,
    TestHost,
};
use prost::bytes::Bytes;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::runtime::Builder;

/// Peers that are linked, as the module is told.
const BOB: NodeId = NodeId::from_bytes([2; 32]);
const CAROL: NodeId = NodeId::from_bytes([3; 32]);
/// Longest answer of a module that is looked at.
const ANSWER: usize = 4 << 20;
/// Answers of a peer that one input has.
const ANSWERS: usize = 8;
/// What a peer may answer with.
const STATUSES: [Status; 8] = [
    Status::Ok,
    Status::NotFound,
    Status::BadRequest,
    Status::Conflict,
    Status::TooLarge,
    Status::TooMany,
    Status::InsufficientStorage,
    Status::Unavailable,
];

/// Each input in a world of its own, which ends with it.
fn block_on<T>(work: impl Future<Output = T>) -> T {
    Builder::new_current_thread().build().unwrap().block_on(work)
}

/// The first byte says what is done with the rest.
fn choice(bytes: &[u8], of: u8) -> (u8, &[u8]) {
    bytes.split_first().map_or((0, bytes), |(first, rest)| (first % of, rest))
}

type Answers = VecDeque<(Status, Bytes)>;

/// One after the other: a byte for the status, two for the length, the body; the last may be cut short.
fn answers(mut bytes: &[u8]) -> Answers {
    let mut all = Answers::new();
    while let Some(([status, length @ ..], rest)) = bytes.split_first_chunk::<3>()
        && all.len() < ANSWERS
    {
        let (body, after) = rest.split_at(usize::from(u16::from_be_bytes(*length)).min(rest.len()));
        all.push_back((STATUSES[usize::from(*status) % STATUSES.len()], Bytes::copy_from_slice(body)));
        bytes = after;
    }
    all
}

/// A peer's module that says what it is given, whatever it is asked; after that, that it is not there.
struct Peer(Mutex<Answers>);

impl Peer {
    /// Linked with `host`, for as long as what is returned lives.
    async fn beside(host: &TestHost, answers: Answers) -> TestHost {
        let peer = TestHost::start(BOB.as_bytes()[0], Self(Mutex::new(answers))).await;
        openred_module::link(host, &peer);
        peer
    }

    async fn say(self: Arc<Self>, _: Context, _: Request) -> Result<Response, ModuleError> {
        let said = self.0.lock().unwrap().pop_front();
        let (status, body) = said.unwrap_or((Status::Unavailable, Bytes::new()));
        Ok(Response::new(status, "application/json", Body::whole(body)))
    }
}

impl Module for Peer {
    fn manifest(&self) -> Manifest {
        Manifest { id: "peer", version: "1", summary: "says what it is given" }
    }

    fn routes(routes: &mut Routes<Self>) {
        for path in ["/deliver", "/deliver/attached", "/receipts", "/redeem/{id}"] {
            routes.peer(Method::Post, path, u64::MAX, Self::say);
        }
        for path in ["/meta/{id}", "/pieces/{id}", "/range/{id}/{from}/{length}", "/offers/{after}"] {
            routes.peer(Method::Get, path, u64::MAX, Self::say);
        }
    }
}

fn post(path: impl Into<String>, body: impl Into<Bytes>) -> PeerRequest {
    PeerRequest::post(path, "application/json", Body::whole(body))
}

async fn body(response: Response) -> Bytes {
    response.body.collect(ANSWER).await.expect("a module ends its answers")
}

async fn read<T: DeserializeOwned>(response: Response) -> T {
    serde_json::from_slice(&body(response).await).expect("a module's answer has its form")
}

/// A refusal has a name, whatever it refuses.
async fn refused(response: Response) {
    assert!(!response.status.is_success());
    let problem: Value = read(response).await;
    assert!(problem["code"].as_str().is_some_and(|code| !code.is_empty()), "{problem}");
}

/// Bytes as JSON, read by another reader than the module's.
fn value(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).unwrap_or(Value::Null)
}

/// What is shown as a file's name is no path and moves no cursor.
fn is_plain(name: &str) -> bool {
    let turns = |letter: char| matches!(letter, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    !matches!(name, "" | "." | "..")
        && name.chars().all(|letter| !letter.is_control() && !turns(letter) && letter != '/' && letter != '\\')
}

/// Inputs as the targets read them.
mod corpus {
    /// Behind the byte that says what is done with it.
    pub(super) fn after(which: u8, bytes: impl AsRef<[u8]>) -> Vec<u8> {
        [&[which], bytes.as_ref()].concat()
    }

    /// One answer of a peer.
    pub(super) fn said(status: u8, body: impl AsRef<[u8]>) -> Vec<u8> {
        let body = body.as_ref();
        let length = u16::try_from(body.len()).unwrap().to_be_bytes();
        [&[status], &length[..], body].concat()
    }
}
