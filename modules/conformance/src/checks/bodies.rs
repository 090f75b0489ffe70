//! Bodies: their bounds, their flow, their ends.

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use futures_util::StreamExt as _;
use openred_module::{Body, BodyError};
use tokio::time::timeout;

use crate::PATIENCE;
use crate::subject::{Claim, Subject, all_ended, ask, is_well};

/// A piece of a body: less than a frame.
const PIECE: usize = 32 * 1024;
/// More than any credit: a writer of so much has to wait for its reader.
const LONG: u64 = 8 << 20;
/// Limits above this are not tried: it would take long, and prove nothing more.
const TRIED: u64 = 1 << 20;

/// Pieces without end, as fast as they are read.
fn endless() -> Body {
    Body::stream(futures_util::stream::repeat_with(|| Ok(Bytes::from(vec![b'x'; PIECE]))))
}

pub(super) async fn too_long(subject: &Subject) -> Result<()> {
    let (host, attached) = subject.start().await?;
    for claim in subject.routes.iter().filter(|claim| claim.body_bytes <= TRIED) {
        let name = claim.name();
        let mut declared = claim.request().with_body("text/plain", endless());
        declared.length = Some(claim.body_bytes + 1);
        let status = ask(&attached, &name, declared).await?.status.code();
        ensure!(
            status == 413,
            "{name}: a body that says to be longer than {} bytes is answered {status}",
            claim.body_bytes
        );
        let undeclared = claim.request().with_body("text/plain", endless());
        let response = ask(&attached, &name, undeclared).await?;
        // A handler that does not read its body may well answer; it must not have taken it.
        ensure!(
            claim.body_bytes == 0 || response.status.code() != 500,
            "{name}: an endless body is answered {}",
            response.status.code()
        );
        drop(response);
        all_ended(&attached, &name).await?;
    }
    is_well(&host, &attached).await
}

pub(super) async fn cut(subject: &Subject) -> Result<()> {
    let (host, attached) = subject.start().await?;
    for claim in &subject.routes {
        for end in [BodyError::Truncated, BodyError::TimedOut, BodyError::Failed] {
            let broken = Body::stream(futures_util::stream::iter([Ok(Bytes::from_static(b"{")), Err(end)]));
            let response = ask(&attached, &claim.name(), claim.request().with_body("application/json", broken)).await?;
            ensure!(
                response.status.code() != 500,
                "{}: a body that breaks off is answered {}",
                claim.name(),
                response.status.code()
            );
        }
        all_ended(&attached, &claim.name()).await?;
    }
    is_well(&host, &attached).await
}

/// The door judges what the module sends beyond its credit; what it grants is seen by a long body's going through, or being refused.
pub(super) async fn credit(subject: &Subject) -> Result<()> {
    let (host, attached) = subject.start().await?;
    for claim in &subject.routes {
        let long = endless().limited(LONG.min(claim.body_bytes));
        let ends = long.take_while(|piece| std::future::ready(piece.is_ok()));
        let response =
            ask(&attached, &claim.name(), claim.request().with_body("text/plain", Body::stream(ends))).await?;
        read(response.body, claim).await?;
        all_ended(&attached, &claim.name()).await?;
    }
    is_well(&host, &attached).await
}

async fn read(mut body: Body, claim: &Claim) -> Result<()> {
    let mut total = 0;
    while total < LONG {
        let piece = timeout(PATIENCE, body.next()).await;
        match piece.with_context(|| format!("{}: its answer stalls", claim.name()))? {
            Some(Ok(piece)) => total += piece.len() as u64,
            Some(Err(_)) | None => return Ok(()),
        }
    }
    Ok(())
}

pub(super) async fn cancel(subject: &Subject) -> Result<()> {
    let (host, attached) = subject.start().await?;
    for claim in &subject.routes {
        // Its body never comes: a handler that reads it waits until it is given up.
        let (writer, body) = Body::channel();
        let mut request = claim.request().with_body("text/plain", body);
        request.length = Some(claim.body_bytes.min(TRIED));
        {
            let call = attached.dispatch(request);
            tokio::pin!(call);
            // Once it is on its way.
            let _ = timeout(std::time::Duration::from_millis(20), &mut call).await;
        }
        drop(writer);
        all_ended(&attached, &claim.name()).await?;
    }
    is_well(&host, &attached).await
}
