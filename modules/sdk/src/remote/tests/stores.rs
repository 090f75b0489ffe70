//! Answers of peers that go into the module's blobs: written and verified by the node, never seen by the module.
use super::*;
use crate::{Blake3, BlobName, Fault as Broken, HostError, PeerError, StoreError, StoreInto, Stored};

/// Several writes, and no whole number of anything.
const LENGTH: usize = (1 << 20) + 77;

fn content() -> Vec<u8> {
    (0..LENGTH).map(|at| (at % 241) as u8).collect()
}

fn into(offset: u64, bytes: &[u8]) -> StoreInto {
    let hash = Blake3::Whole(*blake3::hash(bytes).as_bytes());
    StoreInto { blob: BlobName::new("got").unwrap(), offset, length: bytes.len() as u64, hash }
}

impl Probe {
    /// Tries every outcome with a peer that says what it hears.
    pub(super) async fn store(self: Arc<Self>, context: Context, _: Request) -> Result<Response, ModuleError> {
        let (bytes, peer) = (content(), NodeId::from_bytes([2; 32]));
        let echo = |bytes: &[u8]| PeerRequest::post("/echo", "text/x", Body::whole(bytes.to_vec()));
        let store = async |said: &[u8], into| context.peer_store(peer, echo(said), into).await;
        let blob = BlobName::new("got").unwrap();
        let refused =
            store(&bytes, StoreInto { length: 0, hash: Blake3::Subtree { value: [0; 32], at: 0 }, ..into(0, b"") });
        assert_eq!(refused.await.err(), Some(StoreError::BadRange));
        assert_eq!(context.blob_length(&blob).await?, None);
        assert!(matches!(store(b"", into(0, b"")).await, Ok(Stored::Verified)));
        assert_eq!(context.blob_length(&blob).await?, Some(0), "an empty one is one as well");
        assert!(matches!(store(&bytes, into(5, &bytes)).await, Ok(Stored::Verified)));
        assert_eq!(context.blob_read(&blob, 5, LENGTH).await?, bytes[..crate::BLOB_CHUNK]);
        assert_eq!(context.blob_length(&blob).await?, Some(5 + LENGTH as u64));
        let mut wrong = bytes.clone();
        wrong[LENGTH - 1] ^= 1;
        let all = LENGTH as u64;
        assert!(matches!(store(&wrong, into(5, &bytes)).await, Ok(Stored::Wrong { received }) if received == all));
        assert!(
            matches!(store(&bytes[1..], into(5, &bytes)).await, Ok(Stored::Wrong { received }) if received == all - 1)
        );
        // Nothing is written behind the place that was named.
        context.blob_delete(&blob).await?;
        assert!(matches!(store(&bytes, into(0, &bytes[..100])).await, Ok(Stored::Wrong { .. })));
        assert!(context.blob_length(&blob).await?.is_none_or(|length| length <= 100));
        let none = PeerRequest::get("/none");
        let Ok(Stored::Refused(refusal)) = context.peer_store(peer, none, into(0, &bytes)).await else { panic!() };
        assert_eq!(refusal.status, Status::NotFound);
        assert!(String::from_utf8_lossy(&refusal.body.collect(4096).await?).contains("no-such-route"));
        let stranger = NodeId::from_bytes([9; 32]);
        let unknown = context.peer_store(stranger, echo(b""), into(0, b"")).await;
        assert_eq!(unknown.err(), Some(StoreError::Peer(PeerError::NotLinked)));
        Ok(Response::empty(Status::Ok))
    }
}

#[test]
fn an_answer_is_stored_and_verified_or_said_to_be_something_else() {
    run(async {
        let node = Node::new().await;
        let peer = TestHost::start(2, Probe::default()).await;
        crate::link(&node.host, &peer);
        let (attached, _pipe) = node.attach(Probe::default()).await;
        assert_eq!(attached.dispatch(post("/store", Body::empty())).await.status, Status::Ok);
    });
}

#[test]
fn what_breaks_off_and_what_cannot_be_written_is_named() {
    run(async {
        let host = TestHost::start(1, Probe::default()).await;
        let peer = TestHost::start(2, Probe::default()).await;
        crate::link(&host, &peer);
        let bytes = content();
        let echo = || PeerRequest::post("/echo", "", Body::whole(bytes.clone()));
        let store = async || host.context().peer_store(peer.id(), echo(), into(0, &bytes)).await;
        host.faults([Broken::TruncateResponse(300_000)]);
        let broken = store().await;
        assert!(
            matches!(broken, Ok(Stored::Broken { received: 0..=300_000, error: BodyError::Truncated })),
            "{broken:?}"
        );
        host.set_full(true);
        assert_eq!(store().await.err(), Some(StoreError::Host(HostError::Full)));
        host.set_full(false);
        assert!(matches!(store().await, Ok(Stored::Verified)));
        host.without_stores();
        assert_eq!(store().await.err(), Some(StoreError::Unsupported));
    });
}

#[test]
fn a_request_to_store_that_is_none_is_refused() {
    run(async {
        let node = Node::new().await;
        let expected = node.expect(PROOF);
        let (bare, attached) = tokio::join!(Bare::dial(&node, PROOF), expected.attached());
        let (_bare, _attached) = (bare.unwrap(), attached.unwrap());
        let mut client = wire::peers_client::PeersClient::new(channel(&node).await);
        let head = wire::PeerSendHead { peer: vec![2; 32].into(), method: 1, path: "/x".into(), ..Default::default() };
        let frame = wire::PeerSendFrame { head: Some(head), end: End::Done.into(), ..Default::default() };
        let refused = client.peer_store(futures_util::stream::iter([frame])).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::InvalidArgument, "{refused}");
    });
}
