//! Answers that lie in a module's blobs, which the host reads also when the module is no more, and not at the expense of others: on a real disk.
use std::cell::Cell;
use std::rc::Rc;

use futures_util::StreamExt as _;
use openred_module::{BlobName, BlobRange, BodyError};
use tokio::net::UnixStream;
use tokio::task::{JoinHandle, JoinSet, LocalSet};

use super::super::blobs::SHARE;
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

/// Reads a blob of its own over and over, and counts how often that went.
async fn reads(context: Context, times: usize, asked: Rc<Cell<usize>>, read: Rc<Cell<usize>>) {
    let name = BlobName::new("short").unwrap();
    asked.set(asked.get() + 1);
    for _ in 0..times {
        assert_eq!(context.blob_read(&name, 0, 1).await.unwrap(), "x");
        read.set(read.get() + 1);
    }
}

#[test]
fn a_module_that_reads_without_end_holds_up_no_other() {
    run(async {
        let bench = bench(0).await;
        let contexts = async |id: &'static str| {
            let hosts = bench.modules.hosts(id, &Secret::new([5; 32]));
            let granted = Granted::new(id, Grants::all(), &bench.modules.used);
            let new = |_| (hosts.make)(Pen::new(hosts.seal.of_state(0), Writer::Active(1)), Arc::clone(&granted));
            // Two processes of it, as while it is swapped.
            let contexts = [0, 1].map(new);
            contexts[0].blob_write(&BlobName::new("short").unwrap(), 0, Bytes::from_static(b"x")).await.unwrap();
            contexts
        };
        let (greedy, other) = (contexts("greedy").await, contexts("other").await);
        let (asked, read) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
        let begin = |context: &Context, times| reads(context.clone(), times, Rc::clone(&asked), Rc::clone(&read));
        let disk = &bench.modules.parts.disk;
        let held = disk.hold().await;
        let tasks = LocalSet::new();
        let until_asked = async |count| {
            while asked.get() < count {
                tokio::task::yield_now().await;
            }
        };
        let given_up: Vec<_> = (0..50).map(|at| tasks.spawn_local(begin(&greedy[at % 2], 1))).collect();
        tasks.run_until(until_asked(50)).await;
        assert_eq!(disk.waiting(), SHARE);
        given_up.iter().for_each(JoinHandle::abort);
        for at in 0..50 {
            tasks.spawn_local(begin(&greedy[at % 2], 10));
        }
        tasks.run_until(until_asked(100)).await;
        assert_eq!(disk.waiting(), SHARE, "what was given up waits still, and counts");
        tasks.spawn_local(begin(&other[0], 1));
        tasks.run_until(until_asked(101)).await;
        assert_eq!(disk.waiting(), SHARE + 1, "the other is the next");
        drop(held);
        tasks.await;
        assert_eq!(read.get(), 501, "all came to their turn");
    });
}
