//! Two nodes with the files module, in virtual time: what arrives is what was shared, whatever goes wrong between.
#![allow(clippy::unwrap_used, reason = "tests")]

use futures_util::StreamExt;
use openred_files::{Audience, FileId, Files, PIECE, Progress, ShareView, Shares, Transfers};
use openred_module::{
    Body, BodyError, Context, Fault, Manifest, Method, Module, ModuleError, NodeId, PeerRequest, Request, Response,
    Routes, Status, TestHost, async_trait, link,
};
use serde::de::DeserializeOwned;

const MIB: usize = 1 << 20;

async fn pair() -> (TestHost, TestHost) {
    let alice = TestHost::start(1, Files::default()).await;
    let bob = TestHost::start(2, Files::default()).await;
    link(&alice, &bob);
    (alice, bob)
}

fn content(length: usize) -> Vec<u8> {
    (0..length).map(|at| u8::try_from((at * 7 + at / 255 + at / 65_536) % 256).unwrap()).collect()
}

async fn ok<T: DeserializeOwned>(response: Response) -> T {
    let status = response.status;
    let body = response.body.collect(MIB).await.unwrap();
    assert!(status.is_success(), "{status:?}: {}", String::from_utf8_lossy(&body));
    serde_json::from_slice(&body).unwrap()
}

async fn refused(response: Response) -> (Status, String) {
    let status = response.status;
    assert!(!status.is_success());
    let problem: serde_json::Value = response.json_body().await.unwrap();
    (status, problem["code"].as_str().unwrap().to_owned())
}

#[tokio::test]
async fn a_peers_new_id_reads_what_the_older_one_was_given_and_no_more_once_that_is_taken_back() {
    let (alice, bob) = pair().await;
    let (old, new, other) = (bob.id(), NodeId::from_bytes([9; 32]), NodeId::from_bytes([7; 32]));
    let given = share(&alice, &old.to_string(), content(10)).await;
    let may = async |peer: NodeId, id: FileId| {
        alice.as_peer(peer, PeerRequest::get(format!("/meta/{id}"))).await.status.is_success()
    };
    let shown = async || {
        let shares: Shares = ok(alice.operator(PeerRequest::get("/shares")).await).await;
        shares.shares.into_iter().map(|share| share.audience.peers).collect::<Vec<_>>()
    };
    assert!(may(old, given.id).await && !may(new, given.id).await);
    alice.succeed(old, new).await;
    assert!(may(new, given.id).await && !may(other, given.id).await);
    assert_eq!(shown().await, [[new.to_string()]]);
    // What is given to the new id is given to that peer, and an audience that is given back as shown is the same.
    let later = share(&alice, &new.to_string(), content(20)).await;
    let order = Audience { all: false, peers: vec![new.to_string(), other.to_string()] };
    let order = Body::whole(serde_json::to_vec(&order).unwrap());
    let set = PeerRequest::post(format!("/audience/{}", given.id), "application/json", order);
    let set: ShareView = ok(alice.operator(set).await).await;
    assert_eq!(set.audience.peers.len(), 2);
    assert!(set.audience.peers.contains(&new.to_string()));
    assert!(may(new, later.id).await && may(other, given.id).await);
    alice.kill_and_restart(Files::default()).await;
    assert!(may(new, given.id).await);
    alice.take_back(old).await;
    for id in [given.id, later.id] {
        assert!(may(old, id).await && !may(new, id).await);
    }
    assert!(may(other, given.id).await);
}

fn share_request(to: &str, bytes: Vec<u8>) -> PeerRequest {
    let chunks: Vec<_> = bytes.chunks(60_000).map(|chunk| Ok(bytes::Bytes::copy_from_slice(chunk))).collect();
    let body = Body::stream(futures_util::stream::iter(chunks));
    PeerRequest::post(format!("/share/{to}/holiday%20film.mkv"), "application/octet-stream", body)
}

async fn share(host: &TestHost, to: &str, bytes: Vec<u8>) -> ShareView {
    ok(host.operator(share_request(to, bytes)).await).await
}

fn fetch_request(from: &TestHost, id: FileId) -> PeerRequest {
    PeerRequest::post(format!("/fetch/{}/{id}", from.id()), "", Body::empty())
}

async fn fetch(to: &TestHost, from: &TestHost, id: FileId) -> Vec<Progress> {
    let response = to.operator(fetch_request(from, id)).await;
    assert_eq!(response.status, Status::Ok);
    let lines = response.body.collect(MIB).await.unwrap();
    lines
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| serde_json::from_slice(line).unwrap())
        .collect()
}

async fn read(host: &TestHost, id: FileId) -> Vec<u8> {
    let response = host.operator(PeerRequest::get(format!("/read/{id}"))).await;
    assert_eq!(response.status, Status::Ok);
    let length = response.length.unwrap();
    let bytes = response.body.collect(64 * MIB).await.unwrap();
    assert_eq!(bytes.len() as u64, length);
    bytes.to_vec()
}

fn failed_code(progress: &[Progress]) -> &str {
    match progress.last().unwrap() {
        Progress::Failed { code, .. } => code,
        other => panic!("expected a failure, got {other:?}"),
    }
}

fn done(progress: &[Progress]) -> (u64, u64) {
    match progress.last().unwrap() {
        Progress::Done { length, verified, received } => {
            assert_eq!(verified, length, "done means that all of it was seen to have its hash");
            (*length, *received)
        }
        other => panic!("expected the end, got {other:?}"),
    }
}

#[tokio::test]
async fn files_of_every_shape_arrive_whole() {
    let (alice, bob) = pair().await;
    let piece = usize::try_from(PIECE).unwrap();
    for length in [0, 1, 1024, piece - 1, piece, piece + 1, 3 * piece + 12_345] {
        let bytes = content(length);
        let share = share(&alice, "all", bytes.clone()).await;
        assert_eq!(share.id.as_bytes(), blake3::hash(&bytes).as_bytes());
        let progress = fetch(&bob, &alice, share.id).await;
        assert_eq!(done(&progress), (length as u64, length as u64));
        assert!(matches!(&progress[0], Progress::Begun { name, present: 0, .. } if name == "holiday film.mkv"));
        assert!(read(&bob, share.id).await == bytes, "{length} bytes");
        assert_eq!(done(&fetch(&bob, &alice, share.id).await).1, 0, "a second fetch receives nothing");
    }
    assert!(bob.blobs().iter().all(|(name, _)| !name.ends_with(".part") && !name.starts_with("up-")));
}

#[tokio::test]
async fn a_killed_receiver_goes_on_with_what_it_has() {
    let (alice, bob) = pair().await;
    let bytes = content(8 * usize::try_from(PIECE).unwrap() + 5);
    let share = share(&alice, "all", bytes.clone()).await;

    let mut lines = bob.operator(fetch_request(&alice, share.id)).await.body;
    let mut present = 0;
    while present < 3 * PIECE {
        let line = lines.next().await.unwrap().unwrap();
        if let Progress::Verified { present: now, .. } = serde_json::from_slice(&line).unwrap() {
            present = now;
        }
    }
    drop(lines);
    bob.kill_and_restart(Files::default()).await;
    let progress = fetch(&bob, &alice, share.id).await;
    let (length, received) = done(&progress);
    assert_eq!(length, bytes.len() as u64);
    assert!(received <= length - present, "{present} were verified, and {received} came again");
    assert!(read(&bob, share.id).await == bytes);
}

#[tokio::test]
async fn a_power_cut_costs_time_and_never_content() {
    let (alice, bob) = pair().await;
    let bytes = content(3 * usize::try_from(PIECE).unwrap());
    let share = share(&alice, "all", bytes.clone()).await;
    let mut lines = bob.operator(fetch_request(&alice, share.id)).await.body;
    for _ in 0..2 {
        lines.next().await.unwrap().unwrap();
    }
    drop(lines);
    bob.cut_power_and_restart(Files::default()).await;
    done(&fetch(&bob, &alice, share.id).await);
    bob.cut_power_and_restart(Files::default()).await;
    assert!(read(&bob, share.id).await == bytes, "what was reported done is durable");
}

#[tokio::test]
async fn a_disk_that_changed_meanwhile_is_noticed() {
    let (alice, bob) = pair().await;
    let bytes = content(4 * usize::try_from(PIECE).unwrap());
    let share = share(&alice, "all", bytes.clone()).await;
    let mut lines = bob.operator(fetch_request(&alice, share.id)).await.body;
    let mut verified = 0;
    while verified < 2 {
        let line = lines.next().await.unwrap().unwrap();
        verified += usize::from(matches!(serde_json::from_slice(&line).unwrap(), Progress::Verified { .. }));
    }
    drop(lines);
    let part = openred_module::BlobName::new(&format!("{}.part", share.id)).unwrap();
    bob.context().blob_write(&part, 17, bytes::Bytes::from_static(b"rot")).await.unwrap();
    bob.kill_and_restart(Files::default()).await;
    done(&fetch(&bob, &alice, share.id).await);
    assert!(read(&bob, share.id).await == bytes);
}

#[tokio::test]
async fn broken_connections_are_tried_again_and_then_named() {
    let (alice, bob) = pair().await;
    let bytes = content(2 * MIB);
    let share = share(&alice, "all", bytes.clone()).await;
    bob.faults([Fault::None, Fault::None, Fault::TruncateResponse(500_000), Fault::DropResponse]);
    done(&fetch(&bob, &alice, share.id).await);
    assert!(read(&bob, share.id).await == bytes);

    let (alice, bob) = pair().await;
    let share = self::share(&alice, "all", bytes).await;
    bob.faults([Fault::None, Fault::None]);
    bob.faults([Fault::TruncateResponse(500_000); 3]);
    assert_eq!(failed_code(&fetch(&bob, &alice, share.id).await), "interrupted");
    alice.set_offline(true);
    assert_eq!(failed_code(&fetch(&bob, &alice, share.id).await), "peer-unreachable");
    let transfers: Transfers = ok(bob.operator(PeerRequest::get("/transfers")).await).await;
    assert_eq!(transfers.transfers[0].failed.as_deref(), Some("peer-unreachable"));
    alice.set_offline(false);
    done(&fetch(&bob, &alice, share.id).await);
    let transfers: Transfers = ok(bob.operator(PeerRequest::get("/transfers")).await).await;
    assert!(transfers.transfers[0].failed.is_none() && transfers.transfers[0].completed_at.is_some());
}

#[tokio::test]
async fn one_wrong_bit_is_refused_and_named_and_the_rest_kept() {
    let (alice, bob) = pair().await;
    let bytes = content(6 * usize::try_from(PIECE).unwrap());
    let share = share(&alice, "all", bytes.clone()).await;
    // Description, hashes, then pieces in any order: the third of these is changed in its last byte.
    bob.faults([Fault::None, Fault::None, Fault::None, Fault::None, Fault::CorruptResponse(PIECE - 1)]);
    let progress = fetch(&bob, &alice, share.id).await;
    assert_eq!(failed_code(&progress), "wrong-content");
    assert!(
        matches!(progress.last().unwrap(), Progress::Failed { detail, .. } if detail.contains("wrong content in piece"))
    );
    assert!(bob.audit_trail().iter().any(|event| event.outcome == "wrong-content" && event.peer == Some(alice.id())));
    let answer = bob.operator(PeerRequest::get(format!("/read/{}", share.id))).await;
    assert_eq!(refused(answer).await, (Status::Conflict, "file-incomplete".to_owned()));
    let (length, received) = done(&fetch(&bob, &alice, share.id).await);
    assert!(received < length);
    assert!(read(&bob, share.id).await == bytes);
}

#[tokio::test]
async fn under_a_node_of_before_the_module_reads_and_verifies_itself() {
    let (alice, bob) = pair().await;
    bob.without_stores();
    let bytes = content(3 * usize::try_from(PIECE).unwrap() + 1);
    let share = share(&alice, "all", bytes.clone()).await;
    bob.faults([Fault::None, Fault::None, Fault::None, Fault::CorruptResponse(PIECE - 1)]);
    assert_eq!(failed_code(&fetch(&bob, &alice, share.id).await), "wrong-content");
    bob.faults([Fault::None, Fault::None, Fault::TruncateResponse(500_000), Fault::DropResponse]);
    let (length, received) = done(&fetch(&bob, &alice, share.id).await);
    assert!(received < length, "what had its hash stays");
    assert!(read(&bob, share.id).await == bytes);
}

#[tokio::test]
async fn lies_in_description_and_hashes_are_refused() {
    let (alice, bob) = pair().await;
    let share = share(&alice, "all", content(2 * usize::try_from(PIECE).unwrap())).await;
    for (faults, code) in [
        (vec![Fault::CorruptResponse(10)], "bad-meta"),
        (vec![Fault::TruncateResponse(10)], "interrupted"),
        (vec![Fault::ExtendResponse(10_000)], "interrupted"),
        (vec![Fault::None, Fault::CorruptResponse(40)], "wrong-content"),
        (vec![Fault::None, Fault::ExtendResponse(32)], "interrupted"),
        (vec![Fault::None, Fault::None, Fault::ExtendResponse(1)], "wrong-content"),
    ] {
        bob.faults(faults.clone());
        assert_eq!(failed_code(&fetch(&bob, &alice, share.id).await), code, "{faults:?}");
    }
}

/// A peer that lies about a file: hashes that combine to the id under a length that is not the file's, and junk wherever
/// it has no true content to send.
struct Liar {
    id: FileId,
    hashes: Vec<[u8; 32]>,
    length: u64,
    content: Vec<u8>,
}

#[async_trait]
impl Module for Liar {
    fn manifest(&self) -> Manifest {
        Manifest { id: "files", version: "0", summary: "lies" }
    }

    fn routes(routes: &mut Routes<Self>) {
        routes.peer(Method::Get, "/meta/{id}", 0, Self::meta);
        routes.peer(Method::Get, "/pieces/{id}", 0, Self::pieces);
        routes.peer(Method::Get, "/range/{id}/{from}/{length}", 0, Self::range);
    }
}

impl Liar {
    async fn meta(self: std::sync::Arc<Self>, _: Context, _: Request) -> Result<Response, ModuleError> {
        Response::json(
            Status::Ok,
            &serde_json::json!({ "v": 1, "id": self.id, "name": "x", "length": self.length, "piece": PIECE }),
        )
    }

    async fn pieces(self: std::sync::Arc<Self>, _: Context, _: Request) -> Result<Response, ModuleError> {
        Ok(Response::new(Status::Ok, "", Body::whole(self.hashes.concat())))
    }

    async fn range(self: std::sync::Arc<Self>, _: Context, request: Request) -> Result<Response, ModuleError> {
        let number = |name: &str| request.params.get(name).parse::<usize>().unwrap();
        let range = number("from")..number("from") + number("length");
        let bytes: Vec<u8> = range.map(|at| self.content.get(at).copied().unwrap_or(0x66)).collect();
        Ok(Response::new(Status::Ok, "", Body::whole(bytes)))
    }
}

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

fn blob_length(host: &TestHost, name: &str) -> Option<usize> {
    host.blobs().into_iter().find(|(blob, _)| blob == name).map(|(_, length)| length)
}

#[tokio::test]
async fn a_shorter_file_with_the_same_root_cannot_be_made() {
    use blake3::hazmat::{Mode, merge_subtrees_non_root};
    let bytes = content(3 * usize::try_from(PIECE).unwrap());
    let pieces = piece_hashes(&bytes);
    // An inner node of the tree as a piece, under a length to match.
    let inner = merge_subtrees_non_root(&pieces[0], &pieces[1], Mode::Hash);
    let id = FileId::from_bytes(*blake3::hash(&bytes).as_bytes());
    let lie = Liar { id, hashes: vec![inner, pieces[2]], length: 2 * PIECE, content: Vec::new() };
    let liar = TestHost::start(3, lie).await;
    let bob = TestHost::start(2, Files::default()).await;
    link(&liar, &bob);
    assert_eq!(failed_code(&fetch(&bob, &liar, id).await), "wrong-content");
}

#[tokio::test]
async fn a_longer_file_with_the_same_hashes_leaves_nothing_behind_the_true_end() {
    let (alice, bob) = pair().await;
    let bytes = content(2 * usize::try_from(PIECE).unwrap() + 5);
    let share = share(&alice, "all", bytes.clone()).await;
    // As many pieces with the same hashes, so the list proves itself; the content of the last is junk, 4 MiB of it.
    let lie = Liar { id: share.id, hashes: piece_hashes(&bytes), length: 3 * PIECE, content: bytes.clone() };
    let liar = TestHost::start(3, lie).await;
    link(&liar, &bob);
    assert_eq!(failed_code(&fetch(&bob, &liar, share.id).await), "wrong-content");
    let part = format!("{}.part", share.id);
    assert_eq!(blob_length(&bob, &part), Some(3 * usize::try_from(PIECE).unwrap()), "the junk is on the disk");

    assert_eq!(done(&fetch(&bob, &alice, share.id).await).0, bytes.len() as u64);
    assert_eq!(blob_length(&bob, &format!("{}.data", share.id)), Some(bytes.len()));
    assert!(read(&bob, share.id).await == bytes);
    // Nor does the lie do harm once the file is here.
    assert_eq!(done(&fetch(&bob, &liar, share.id).await), (bytes.len() as u64, 0));
    assert!(read(&bob, share.id).await == bytes);
}

#[tokio::test]
async fn a_complete_file_that_was_spoiled_is_noticed_and_mended_by_the_next_fetch() {
    let (alice, bob) = pair().await;
    let bytes = content(2 * usize::try_from(PIECE).unwrap() + 5);
    let share = share(&alice, "all", bytes.clone()).await;
    done(&fetch(&bob, &alice, share.id).await);
    let data = openred_module::BlobName::new(&format!("{}.data", share.id)).unwrap();
    for (at, junk, again) in [(bytes.len() as u64, &b"behind the end"[..], bytes.len() as u64), (17, b"rot", PIECE)] {
        bob.context().blob_write(&data, at, bytes::Bytes::copy_from_slice(junk)).await.unwrap();
        if at > 17 {
            let answer = bob.operator(PeerRequest::get(format!("/read/{}", share.id))).await;
            assert_eq!(refused(answer).await, (Status::Conflict, "file-damaged".to_owned()));
        }
        let progress = fetch(&bob, &alice, share.id).await;
        assert_eq!(done(&progress), (bytes.len() as u64, again), "what is sound is not fetched again");
        assert!(read(&bob, share.id).await == bytes);
    }
    assert!(bob.audit_trail().iter().any(|event| event.outcome == "damaged-here"));
}

#[tokio::test]
async fn only_those_it_is_shared_with_can_see_a_file() {
    let (alice, bob) = pair().await;
    let carol = TestHost::start(3, Files::default()).await;
    link(&alice, &carol);
    let share = share(&alice, &bob.id().to_string(), content(1000)).await;
    done(&fetch(&bob, &alice, share.id).await);
    assert_eq!(failed_code(&fetch(&carol, &alice, share.id).await), "not-shared");
    let unknown = FileId::from_bytes([7; 32]);
    assert_eq!(failed_code(&fetch(&carol, &alice, unknown).await), "not-shared");
    for path in ["meta", "pieces"] {
        let hidden = refused(alice.as_peer(carol.id(), PeerRequest::get(format!("/{path}/{}", share.id))).await).await;
        let absent = refused(alice.as_peer(carol.id(), PeerRequest::get(format!("/{path}/{unknown}"))).await).await;
        assert_eq!(hidden, absent, "the two look the same");
    }
    let range = alice.as_peer(carol.id(), PeerRequest::get(format!("/range/{}/0/10", share.id))).await;
    assert_eq!(refused(range).await.0, Status::NotFound);

    let audience = Audience { all: false, peers: vec![carol.id().to_string()] };
    let body = Body::whole(serde_json::to_vec(&audience).unwrap());
    let order = PeerRequest::post(format!("/audience/{}", share.id), "application/json", body);
    let changed: ShareView = ok(alice.operator(order).await).await;
    assert_eq!(changed.audience, audience);
    done(&fetch(&carol, &alice, share.id).await);
    let meta = alice.as_peer(bob.id(), PeerRequest::get(format!("/meta/{}", share.id))).await;
    assert_eq!(refused(meta).await.0, Status::NotFound);
}

#[tokio::test]
async fn sharing_again_adds_readers_and_unsharing_removes_the_content() {
    let (alice, bob) = pair().await;
    let first = share(&alice, &bob.id().to_string(), content(5000)).await;
    let again = share(&alice, "none", content(5000)).await;
    assert_eq!(first.id, again.id);
    assert_eq!(again.audience.peers, [bob.id().to_string()]);
    let shares: Shares = ok(alice.operator(PeerRequest::get("/shares")).await).await;
    assert_eq!(shares.shares.len(), 1);
    let answer = alice.operator(PeerRequest::post(format!("/unshare/{}", first.id), "", Body::empty())).await;
    assert_eq!(answer.status, Status::Ok);
    assert!(alice.blobs().is_empty());
    assert_eq!(failed_code(&fetch(&bob, &alice, first.id).await), "not-shared");
    let answer = alice.operator(PeerRequest::post(format!("/unshare/{}", first.id), "", Body::empty())).await;
    assert_eq!(refused(answer).await, (Status::NotFound, "no-such-file".to_owned()));
}

#[tokio::test]
async fn a_fetched_file_can_be_removed_and_a_shared_one_stays() {
    let (alice, bob) = pair().await;
    let share = share(&alice, "all", content(5000)).await;
    done(&fetch(&bob, &alice, share.id).await);
    let remove = || PeerRequest::post(format!("/remove/{}", share.id), "", Body::empty());
    assert_eq!(bob.operator(remove()).await.status, Status::Ok);
    assert!(bob.blobs().is_empty());
    assert_eq!(bob.count_rows(b""), 0);
    assert_eq!(refused(alice.operator(remove()).await).await.1, "no-such-file");
    assert_eq!(read(&alice, share.id).await, content(5000));
}

#[tokio::test]
async fn one_writer_a_file() {
    let (alice, bob) = pair().await;
    let share = share(&alice, "all", content(9 * MIB)).await;
    let mut first = bob.operator(fetch_request(&alice, share.id)).await.body;
    first.next().await.unwrap().unwrap();
    let second = bob.operator(fetch_request(&alice, share.id)).await;
    assert_eq!(refused(second).await, (Status::Conflict, "transfer-running".to_owned()));
    let remove = bob.operator(PeerRequest::post(format!("/remove/{}", share.id), "", Body::empty())).await;
    assert_eq!(refused(remove).await.1, "transfer-running");
    while let Some(line) = first.next().await {
        line.unwrap();
    }
    done(&fetch(&bob, &alice, share.id).await);
}

#[tokio::test]
async fn a_share_that_is_cut_short_leaves_nothing() {
    let (alice, _bob) = pair().await;
    let (sender, body) = Body::channel();
    let request = PeerRequest::post("/share/all/x", "", body);
    let write = async move {
        for _ in 0..20 {
            sender.send(vec![1; 60_000].into()).await.unwrap();
        }
        drop(sender);
    };
    let (answer, ()) = futures_util::join!(alice.operator(request), write);
    assert_eq!(refused(answer).await.1, "body-truncated");
    assert!(alice.blobs().is_empty());

    // Killed in the middle: the next start removes it.
    let stray = openred_module::BlobName::new("up-00").unwrap();
    alice.context().blob_write(&stray, 0, bytes::Bytes::from_static(b"half")).await.unwrap();
    alice.kill_and_restart(Files::default()).await;
    assert!(alice.blobs().is_empty());
}

#[tokio::test]
async fn nothing_is_left_that_no_row_knows() {
    // Killed between the row of a share that ends and its content.
    let (alice, bob) = pair().await;
    let id = share(&alice, "all", content(1000)).await.id;
    done(&fetch(&bob, &alice, id).await);
    alice.crash_after(1);
    drop(alice.operator(PeerRequest::post(format!("/unshare/{id}"), "", Body::empty())).await);
    assert_eq!((alice.count_rows(b"s/"), alice.blobs().len()), (0, 2));
    alice.kill_and_restart(Files::default()).await;
    assert_eq!(alice.blobs(), []);
    bob.kill_and_restart(Files::default()).await;
    assert_eq!(read(&bob, id).await, content(1000), "what was fetched stays");
    // Whoever shares goes away at any moment, also between the content and the row.
    let mut between = 0;
    for polls in 0..40 {
        let (alice, _bob) = pair().await;
        {
            let mut sharing = std::pin::pin!(alice.operator(share_request("all", content(1000))));
            for _ in 0..polls {
                if futures_util::poll!(sharing.as_mut()).is_ready() {
                    break;
                }
                tokio::task::yield_now().await;
            }
        }
        let is_named = alice.blobs().iter().any(|(name, _)| name.ends_with(".data"));
        between += usize::from(is_named && alice.count_rows(b"s/") == 0);
        alice.kill_and_restart(Files::default()).await;
        assert_eq!(alice.blobs().len(), 2 * alice.count_rows(b"s/"), "after {polls} polls");
    }
    assert!(between > 0, "one of them was that moment");
}

#[tokio::test]
async fn a_full_disk_is_said_on_both_sides() {
    let (alice, bob) = pair().await;
    let share = share(&alice, "all", content(9 * MIB)).await;
    bob.set_full(true);
    assert_eq!(failed_code(&fetch(&bob, &alice, share.id).await), "disk-full");
    bob.set_full(false);
    done(&fetch(&bob, &alice, share.id).await);
    alice.set_full(true);
    assert_eq!(refused(alice.operator(share_request("all", content(10))).await).await.1, "disk-full");
}

#[tokio::test]
async fn a_file_that_vanishes_while_it_is_read_is_an_error_and_no_short_file() {
    let (alice, _bob) = pair().await;
    let share = share(&alice, "all", content(2 * MIB)).await;
    let mut body = alice.operator(PeerRequest::get(format!("/read/{}", share.id))).await.body;
    body.next().await.unwrap().unwrap();
    let data = openred_module::BlobName::new(&format!("{}.data", share.id)).unwrap();
    alice.context().blob_delete(&data).await.unwrap();
    assert_eq!(body.collect(4 * MIB).await, Err(BodyError::Failed));
}

#[tokio::test]
async fn wrong_calls_are_refused_by_name() {
    let (alice, bob) = pair().await;
    let share = share(&alice, "all", content(1000)).await;
    let id = share.id;
    let post = |path: String| PeerRequest::post(path, "", Body::whole("x"));
    let empty = |path: String| PeerRequest::post(path, "", Body::empty());
    for (request, code) in [
        (post("/share/all/..".to_owned()), "bad-file-name"),
        (post("/share/all/a%2Fb".to_owned()), "bad-file-name"),
        (post("/share/everyone/x".to_owned()), "bad-audience"),
        (empty(format!("/fetch/nobody/{id}")), "bad-peer"),
        (empty(format!("/fetch/{}/zz", bob.id())), "bad-file-id"),
        (PeerRequest::get("/read/zz"), "bad-file-id"),
        (PeerRequest::get(format!("/read/{}", FileId::from_bytes([1; 32]))), "no-such-file"),
        (empty(format!("/remove/{}", FileId::from_bytes([1; 32]))), "no-such-file"),
        (PeerRequest::post(format!("/audience/{id}"), "", Body::whole(r#"{"peers":["x"]}"#)), "bad-audience"),
        (PeerRequest::post(format!("/audience/{id}"), "", Body::whole(r#"{"everyone":true}"#)), "bad-json"),
    ] {
        let path = request.path.clone();
        assert_eq!(refused(alice.operator(request).await).await.1, code, "{path}");
    }
    let many: Vec<NodeId> = (0..1001_u16)
        .map(|number| {
            let mut id = [7; 32];
            id[..2].copy_from_slice(&number.to_be_bytes());
            NodeId::from_bytes(id)
        })
        .collect();
    let many =
        serde_json::to_string(&serde_json::json!({ "peers": many.iter().map(NodeId::to_string).collect::<Vec<_>>() }));
    let audience = PeerRequest::post(format!("/audience/{id}"), "", Body::whole(many.unwrap()));
    assert_eq!(refused(alice.operator(audience).await).await, (Status::Conflict, "too-many-readers".to_owned()));
    for range in ["0/1001", "1000/1", "18446744073709551615/1", "1/18446744073709551615", "-1/3", "a/b"] {
        let answer = alice.as_peer(bob.id(), PeerRequest::get(format!("/range/{id}/{range}"))).await;
        assert_eq!(refused(answer).await, (Status::BadRequest, "bad-range".to_owned()), "{range}");
    }
}
