//! Answers that lie in a module's blobs, which the host reads also when the module is no more: on a real disk.
use futures_util::StreamExt as _;
use openred_module::{BlobName, BlobRange, BodyError};
use tokio::net::UnixStream;
use tokio::task::JoinSet;

use super::super::keeper::end;
use super::super::lives::Troubles;
use super::super::supervisor::Supervisor;
use super::*;

/// Longer than what is read ahead of a reader.
const LENGTH: u64 = 8 << 20;

/// A body of one range, of which a little is read.
async fn begun(bench: &Bench, writer: Writer) -> Body {
    let hosts = bench.modules.get("trial").unwrap().hosts.clone();
    let granted = Granted::new("trial", Grants::all(), &bench.modules.used);
    let context = (hosts.make)(Pen::new(hosts.seal.of_state(0), writer), granted);
    let name = BlobName::new("long").unwrap();
    // A hole, and its end.
    context.blob_write(&name, LENGTH - 1, Bytes::from_static(b"x")).await.unwrap();
    let range = BlobRange { name, offset: 0, length: LENGTH };
    let mut body = Body::ranges(&context, futures_util::stream::iter([Ok(range)]));
    assert!(body.next().await.unwrap().is_ok());
    body
}

#[test]
fn what_a_module_serves_from_its_blobs_ends_with_its_removal() {
    run(async {
        let bench = bench(0).await;
        let (served, other) = (begun(&bench, Writer::Active(1)).await, begun(&bench, Writer::Active(1)).await);
        let count = other.collect(usize::try_from(LENGTH).unwrap()).await.unwrap().len() as u64;
        assert!(count < LENGTH, "some was read before");
        let mut tasks = JoinSet::new();
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let supervisor = Supervisor::start(ours, &mut tasks);
        let trial = bench.modules.get("trial").unwrap();
        let troubles = Troubles::new(Arc::clone(&bench.health));
        end(Arc::clone(&bench.modules), supervisor, troubles, trial, None).await;
        let read = served.collect(usize::try_from(LENGTH).unwrap()).await;
        assert_eq!(read, Err(BodyError::Failed));
    });
}
