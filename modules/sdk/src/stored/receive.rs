//! A peer's answer on its way into a blob, for hosts: what comes is gathered while what came is written and hashed. In memory are two writes' worth.

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::future::try_join;

use super::{Check, StoreError, StoreInto, Stored};
use crate::body::{Body, BodyError};
use crate::host::{BlobName, HostError};
use crate::message::Response;

/// Bytes gathered before they are written.
const WRITE: usize = 256 * 1024;

/// Where bodies are written.
#[async_trait::async_trait]
pub trait Sink: Send + Sync {
    /// Writes these bytes one behind the other, making the blob if there is none, and takes them into the hash.
    async fn write(&self, blob: &BlobName, offset: u64, bytes: Vec<Bytes>, check: Check) -> Result<Check, HostError>;
}

/// How far a body has come.
enum Came {
    More,
    Whole,
    TooLong,
    Broken(BodyError),
}

/// Writes an answer's body, if it is no refusal.
///
/// # Errors
/// The sink's.
pub async fn receive(sink: &(impl Sink + ?Sized), response: Response, into: &StoreInto) -> Result<Stored, StoreError> {
    let mut check = Check::new(into)?;
    if !response.status.is_success() {
        return Ok(Stored::Refused(response));
    }
    let (mut body, mut received, mut at) = (response.body, 0, into.offset);
    let (mut full, mut came) = (Vec::new(), Came::More);
    loop {
        let length: usize = full.iter().map(Bytes::len).sum();
        let writing = async {
            // An empty body is a blob as well.
            if full.is_empty() && into.length > 0 { Ok(check) } else { sink.write(&into.blob, at, full, check).await }
        };
        let gathering = async {
            Ok(match came {
                Came::More => gather(&mut body, into.length - received).await,
                ended => (Vec::new(), 0, ended),
            })
        };
        let (written, (next, count, how)): (_, (_, u64, _)) = try_join(writing, gathering).await?;
        (check, full, came) = (written, next, how);
        (received, at) = (received + count, at + length as u64);
        if !matches!(came, Came::More) && full.is_empty() {
            break;
        }
    }
    Ok(match came {
        Came::Broken(error) => Stored::Broken { received, error },
        Came::Whole if check.holds() => Stored::Verified,
        Came::More | Came::Whole | Came::TooLong => Stored::Wrong { received },
    })
}

/// The next bytes to write, how many came, and whether more may; of a body that is to have `left` more.
async fn gather(body: &mut Body, left: u64) -> (Vec<Bytes>, u64, Came) {
    let (mut gathered, mut count) = (Vec::new(), 0);
    while count < WRITE as u64 {
        let chunk = match body.next().await {
            Some(Ok(chunk)) => chunk,
            Some(Err(error)) => return (gathered, count, Came::Broken(error)),
            None => return (gathered, count, Came::Whole),
        };
        if chunk.len() as u64 > left - count {
            // Nothing behind what was named is touched.
            return (gathered, count, Came::TooLong);
        }
        count += chunk.len() as u64;
        if !chunk.is_empty() {
            gathered.push(chunk);
        }
    }
    (gathered, count, Came::More)
}
