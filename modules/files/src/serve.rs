//! The peer's routes: description, hashes of the pieces, ranges. A file that a peer may not have does not exist for it.

use std::sync::Arc;

use openred_module::{BlobName, Body, BodyError, Caller, Context, ModuleError, Params, Request, Response, Status};

use crate::Files;
use crate::document::{Meta, ShareView, VERSION};
use crate::error::FilesError;
use crate::names;
use crate::readers;
use crate::share::{find, parse_id};
use crate::tree::{HASH, Layout, PIECE};

/// Bytes read from the disk at once: several frames of a session, and still little memory for many readers.
const READ: u64 = 256 * 1024;
/// Media type of content and hashes.
pub(crate) const BYTES: &str = "application/octet-stream";

/// A part of a blob as an answer. Reads only as fast as it is pulled.
pub(crate) fn stream_blob(context: Context, blob: BlobName, from: u64, length: u64) -> Response {
    let end = from + length;
    let stream = futures_util::stream::try_unfold(from, move |at| {
        let (context, blob) = (context.clone(), blob.clone());
        async move {
            if at >= end {
                return Ok(None);
            }
            let most = usize::try_from(READ.min(end - at)).expect("at most READ");
            let bytes = context.blob_read(&blob, at, most).await.map_err(|_| BodyError::Failed)?;
            if bytes.is_empty() {
                // Removed or cut meanwhile: better an error than a short file.
                return Err(BodyError::Failed);
            }
            let next = at + bytes.len() as u64;
            Ok(Some((bytes, next)))
        }
    });
    Response::new(Status::Ok, BYTES, Body::stream(stream)).with_length(length)
}

async fn shared_with(context: &Context, caller: Caller, params: &Params) -> Result<ShareView, FilesError> {
    let Caller::Peer(peer) = caller else { return Err(FilesError::NoFile) };
    let id = parse_id(params.get("id"))?;
    let ids = context.identities(peer).await?;
    find(context, &id).await?.filter(|share| readers::admits(&share.audience, &ids)).ok_or(FilesError::NoFile)
}

impl Files {
    pub(crate) async fn meta(self: Arc<Self>, context: Context, request: Request) -> Result<Response, ModuleError> {
        let share = shared_with(&context, request.caller, &request.params).await?;
        let meta = Meta { v: VERSION, id: share.id, name: share.name, length: share.length, piece: PIECE };
        Response::json(Status::Ok, &meta)
    }

    pub(crate) async fn pieces(self: Arc<Self>, context: Context, request: Request) -> Result<Response, ModuleError> {
        let share = shared_with(&context, request.caller, &request.params).await?;
        let layout = Layout::new(share.length).ok_or(FilesError::NoFile)?;
        let length = (layout.count() * HASH) as u64;
        Ok(stream_blob(context, names::hashes(&share.id), 0, length))
    }

    pub(crate) async fn range(self: Arc<Self>, context: Context, request: Request) -> Result<Response, ModuleError> {
        let share = shared_with(&context, request.caller, &request.params).await?;
        let number = |name: &str| request.params.get(name).parse::<u64>().map_err(|_| FilesError::BadRange);
        let (from, length) = (number("from")?, number("length")?);
        let inside = from.checked_add(length).is_some_and(|end| end <= share.length);
        if !inside || length > PIECE {
            return Err(FilesError::BadRange.into());
        }
        Ok(stream_blob(context, names::data(&share.id), from, length))
    }
}
