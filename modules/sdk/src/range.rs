//! Bodies that lie in the module's own blobs. A module says which parts of them its answer is; its node reads them. So none of the bytes passes
//! the module, which decides as before, range by range.
//!
//! Where nobody reads them for the module (a node without the feature, a test host, a module that reads such a body itself), they are read
//! through the [`Host`] and are a stream like any other.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll, ready};

use bytes::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{Stream, StreamExt as _};

use crate::body::BodyError;
use crate::host::{BlobName, Host};

/// Bytes of one read: several frames of a session.
const READ: u64 = 256 * 1024;
/// Reads at the same time: the next one is made while the last is sent.
const AHEAD: usize = 2;

/// A part of one of the module's own blobs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlobRange {
    /// The blob.
    pub name: BlobName,
    /// Where the part begins.
    pub offset: u64,
    /// How long it is. A blob that ends before is an error of the body, never a short body.
    pub length: u64,
}

/// Ranges as they are handed on, or, where they are not, their bytes.
pub(crate) struct Ranges {
    ranges: BoxStream<'static, Result<BlobRange, BodyError>>,
    host: Arc<dyn Host>,
    reading: Option<BoxStream<'static, Result<Bytes, BodyError>>>,
}

impl Ranges {
    pub(crate) fn new(
        host: Arc<dyn Host>,
        ranges: impl Stream<Item = Result<BlobRange, BodyError>> + Send + 'static,
    ) -> Self {
        Self { ranges: ranges.boxed(), host, reading: None }
    }

    /// The next range, as long as nobody has begun to read bytes.
    #[cfg(feature = "wire")]
    pub(crate) async fn next_range(&mut self) -> Option<Result<BlobRange, BodyError>> {
        self.ranges.next().await
    }

    pub(crate) fn poll_bytes(&mut self, task: &mut TaskContext<'_>) -> Poll<Option<Result<Bytes, BodyError>>> {
        loop {
            if let Some(reading) = &mut self.reading {
                match ready!(reading.poll_next_unpin(task)) {
                    Some(bytes) => return Poll::Ready(Some(bytes)),
                    None => self.reading = None,
                }
            }
            match ready!(Pin::new(&mut self.ranges).poll_next(task)) {
                Some(Ok(range)) => self.reading = Some(read(&self.host, range)),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return Poll::Ready(None),
            }
        }
    }
}

/// The bytes of a range, read as fast as they are pulled.
pub(crate) fn read(host: &Arc<dyn Host>, range: BlobRange) -> BoxStream<'static, Result<Bytes, BodyError>> {
    let BlobRange { name, offset, length } = range;
    let host = Arc::clone(host);
    let starts = (0..length.div_ceil(READ)).map(|number| number * READ);
    let reads = futures_util::stream::iter(starts).map(move |start| {
        let (host, name) = (Arc::clone(&host), name.clone());
        async move {
            let most = READ.min(length - start);
            let at = offset.checked_add(start).ok_or(BodyError::Failed)?;
            let bytes = host.blob_read(&name, at, usize::try_from(most).unwrap_or(usize::MAX)).await;
            // Removed or cut meanwhile, or never so long: better an error than a short body.
            bytes.ok().filter(|bytes| bytes.len() as u64 == most).ok_or(BodyError::Failed)
        }
    });
    reads.buffered(AHEAD).boxed()
}
