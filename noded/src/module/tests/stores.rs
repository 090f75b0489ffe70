//! Answers of peers that the host puts into a module's blobs: on a real disk, within grants and quotas.
use openred_module::{Blake3, BlobName, StoreError, StoreInto, Stored};

use super::*;

/// Several writes.
const LENGTH: usize = 700_001;

fn content() -> Vec<u8> {
    (0..LENGTH).map(|at| u8::try_from(at % 241).unwrap()).collect()
}

fn into(bytes: &[u8]) -> StoreInto {
    let hash = Blake3::Whole(*blake3::hash(bytes).as_bytes());
    StoreInto { blob: BlobName::new("got").unwrap(), offset: 0, length: bytes.len() as u64, hash }
}

fn context(bench: &Bench, grants: Grants, writer: Writer) -> Context {
    let granted = Granted::new("trial", grants, &bench.modules.used);
    let hosts = bench.modules.hosts("trial", &Secret::new([5; 32]));
    (hosts.make)(Pen::new(hosts.seal.of_state(0), writer), granted)
}

async fn store(context: &Context, said: Vec<u8>, into: StoreInto) -> Result<Stored, StoreError> {
    let pieces: Vec<_> = said.chunks(65_536).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
    let body = Body::stream(futures_util::stream::iter(pieces));
    context.peer_store(PEER, PeerRequest::post("/x", "text/plain", body), into).await
}

#[test]
fn an_answer_is_written_while_it_is_verified() {
    run(async {
        let bench = bench(0).await;
        let context = context(&bench, Grants::all(), Writer::Active(1));
        let (bytes, blob) = (content(), BlobName::new("got").unwrap());
        assert!(matches!(store(&context, bytes.clone(), into(&bytes)).await, Ok(Stored::Verified)));
        assert_eq!(context.blob_read(&blob, 0, LENGTH).await.unwrap(), bytes);
        // A part of a longer one, at its place.
        let (part, at) = (&bytes[65_536..2 * 65_536], 65_536_u64);
        let value = {
            use blake3::hazmat::HasherExt as _;
            blake3::Hasher::new().set_input_offset(at).update(part).finalize_non_root()
        };
        let hash = Blake3::Subtree { value, at };
        let place = StoreInto { offset: at, length: part.len() as u64, hash, ..into(&[]) };
        assert!(matches!(store(&context, part.to_vec(), place.clone()).await, Ok(Stored::Verified)));
        assert!(matches!(store(&context, vec![0; part.len()], place.clone()).await, Ok(Stored::Wrong { .. })));
        assert!(matches!(store(&context, part.to_vec(), place).await, Ok(Stored::Verified)));
        assert_eq!(context.blob_read(&blob, 0, LENGTH).await.unwrap(), bytes);
        let long = store(&context, vec![1; LENGTH + 1], into(&bytes)).await;
        assert!(matches!(long, Ok(Stored::Wrong { .. })), "{long:?}");
        assert_eq!(context.blob_length(&blob).await.unwrap(), Some(LENGTH as u64));
    });
}

#[test]
fn grants_quotas_and_the_right_to_write_hold_for_what_is_stored() {
    run(async {
        let bench = bench(0).await;
        let bytes = content();
        let refused = async |grants: &[&str], writer| {
            let context = context(&bench, Grants::parse(grants.iter().copied()).unwrap(), writer);
            store(&context, bytes.clone(), into(&bytes)).await.err()
        };
        let granted = ["peer.send", "blob.quota=1"];
        let not_granted = Some(StoreError::Host(HostError::NotGranted));
        assert_eq!(refused(&granted, Writer::Active(1)).await, None);
        let replaced = Some(StoreError::Host(HostError::ShuttingDown));
        assert_eq!(refused(&granted, Writer::Nobody).await, replaced, "another generation writes");
        assert_eq!(refused(&granted[..1], Writer::Active(1)).await, not_granted);
        let not_granted = Some(StoreError::Peer(PeerError::NotGranted));
        assert_eq!(refused(&granted[1..], Writer::Active(1)).await, not_granted);
        let context = context(&bench, Grants::parse(granted).unwrap(), Writer::Active(1));
        let far = StoreInto { offset: 900_000, ..into(&bytes) };
        let full = store(&context, bytes.clone(), far).await;
        assert_eq!(full.err(), Some(StoreError::Host(HostError::Full)), "beyond its quota of 1 MiB");
        assert_eq!(bench.health.report()[0].code, "module.full");
    });
}
