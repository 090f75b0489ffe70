//! Many transfers from one peer at once: what they take of the places that it has for this node's calls.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use openred_files::{FileId, Files, PIECE};
use openred_module::{
    Body, Context, Manifest, Method, Module, ModuleError, PeerRequest, Request, Response, Routes, Status, TestHost,
    async_trait, link,
};

/// The hashes of a content's pieces, as the tree has them below its root.
fn piece_hashes(bytes: &[u8]) -> Vec<[u8; 32]> {
    use blake3::hazmat::HasherExt;
    let piece = |(index, piece): (usize, &[u8])| {
        let mut hasher = blake3::Hasher::new();
        hasher.set_input_offset(index as u64 * PIECE);
        hasher.update(piece).finalize_non_root()
    };
    bytes.chunks(usize::try_from(PIECE).unwrap()).enumerate().map(piece).collect()
}

/// How a fetch ended, in its last line.
async fn fetch(to: &TestHost, from: &TestHost, id: FileId) -> serde_json::Value {
    let request = PeerRequest::post(format!("/fetch/{}/{id}", from.id()), "", Body::empty());
    let lines = to.operator(request).await.body.collect(1 << 20).await.unwrap();
    let last = lines.split(|byte| *byte == b'\n').rfind(|line| !line.is_empty()).unwrap();
    serde_json::from_slice(last).unwrap()
}

/// Serves content, and counts how many of its answers are being read.
struct Crowded {
    content: HashMap<FileId, Vec<u8>>,
    reading: Arc<[AtomicUsize; 2]>,
}

/// An answer that is being read.
struct Answering(Arc<[AtomicUsize; 2]>);

impl Drop for Answering {
    fn drop(&mut self) {
        self.0[0].fetch_sub(1, Ordering::SeqCst);
    }
}

#[async_trait]
impl Module for Crowded {
    fn manifest(&self) -> Manifest {
        Manifest { id: "files", version: "0", summary: "counts" }
    }

    fn routes(routes: &mut Routes<Self>) {
        routes.peer(Method::Get, "/meta/{id}", 0, Self::meta);
        routes.peer(Method::Get, "/pieces/{id}", 0, Self::pieces);
        routes.peer(Method::Get, "/range/{id}/{from}/{length}", 0, Self::range);
    }
}

impl Crowded {
    fn content(&self, request: &Request) -> (FileId, &[u8]) {
        let id: FileId = request.params.get("id").parse().unwrap();
        (id, &self.content[&id])
    }

    fn answer(&self, bytes: Vec<u8>) -> Response {
        use Ordering::SeqCst;
        let now = self.reading[0].fetch_add(1, SeqCst) + 1;
        self.reading[1].fetch_max(now, SeqCst);
        let answering = Answering(Arc::clone(&self.reading));
        let body = futures_util::stream::once(async move {
            // Others come meanwhile.
            for _ in 0..20 {
                tokio::task::yield_now().await;
            }
            drop(answering);
            Ok(bytes.into())
        });
        Response::new(Status::Ok, "", Body::stream(body))
    }

    async fn meta(self: Arc<Self>, _: Context, request: Request) -> Result<Response, ModuleError> {
        let (id, content) = self.content(&request);
        let length = content.len();
        Response::json(
            Status::Ok,
            &serde_json::json!({ "v": 1, "id": id, "name": "x", "length": length, "piece": PIECE }),
        )
    }

    async fn pieces(self: Arc<Self>, _: Context, request: Request) -> Result<Response, ModuleError> {
        let hashes = piece_hashes(self.content(&request).1).concat();
        Ok(self.answer(hashes))
    }

    async fn range(self: Arc<Self>, _: Context, request: Request) -> Result<Response, ModuleError> {
        let number = |name: &str| request.params.get(name).parse::<usize>().unwrap();
        let bytes = self.content(&request).1[number("from")..number("from") + number("length")].to_vec();
        Ok(self.answer(bytes))
    }
}

#[tokio::test]
async fn all_transfers_together_take_only_a_part_of_the_places_that_a_peer_has_for_this_node() {
    let files = (0..6_u8).map(|last| {
        let mut content = vec![0; 3 * usize::try_from(PIECE).unwrap()];
        content.push(last);
        (FileId::from_bytes(*blake3::hash(&content).as_bytes()), content)
    });
    let crowded = Crowded { content: files.collect(), reading: Arc::default() };
    let (ids, reading) = (crowded.content.keys().copied().collect::<Vec<_>>(), Arc::clone(&crowded.reading));
    let (alice, bob) = (TestHost::start(1, crowded).await, TestHost::start(2, Files::default()).await);
    link(&alice, &bob);
    for progress in futures_util::future::join_all(ids.iter().map(|id| fetch(&bob, &alice, *id))).await {
        assert_eq!(progress["event"], "done", "{progress}");
    }
    let most = reading[1].load(Ordering::SeqCst);
    assert!((8..=16).contains(&most), "{most} at once");
}
