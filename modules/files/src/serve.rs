//! The peer's routes: description, hashes of the pieces, ranges. A file that a peer may not have does not exist for it.

use std::sync::Arc;

use openred_module::{
    BlobName, Body, BodyError, Caller, Context, ModuleError, NodeId, Params, Request, Response, Status,
};

use crate::Files;
use crate::document::{Meta, ShareView, VERSION};
use crate::door;
use crate::error::FilesError;
use crate::names;
use crate::readers;
use crate::share::{find, parse_id};
use crate::tree::{FileId, HASH, Layout, PIECE};

/// Bytes read from the disk at once: several frames of a session, and still little memory for many readers.
const READ: u64 = 256 * 1024;
/// Media type of content and hashes.
pub(crate) const BYTES: &str = "application/octet-stream";

/// A part of a blob as an answer. Reads only as fast as it is pulled, and a peer's only while it may.
pub(crate) fn stream_blob(
    context: Context,
    blob: BlobName,
    (from, length): (u64, u64),
    standing: Option<Standing>,
) -> Response {
    let end = from + length;
    let stream = futures_util::stream::try_unfold((from, standing), move |(at, mut standing)| {
        let (context, blob) = (context.clone(), blob.clone());
        async move {
            if at >= end {
                return Ok(None);
            }
            if let Some(standing) = &mut standing {
                standing.holds(&context).await.map_err(|_| BodyError::Failed)?;
            }
            let most = usize::try_from(READ.min(end - at)).expect("at most READ");
            let bytes = context.blob_read(&blob, at, most).await.map_err(|_| BodyError::Failed)?;
            if bytes.is_empty() {
                // Removed or cut meanwhile: better an error than a short file.
                return Err(BodyError::Failed);
            }
            let next = at + bytes.len() as u64;
            Ok(Some((bytes, (next, standing))))
        }
    });
    Response::new(Status::Ok, BYTES, Body::stream(stream)).with_length(length)
}

/// That a peer may read a file: found out when it asks, and again while it reads, once anything has changed for anybody.
pub(crate) struct Standing {
    files: Arc<Files>,
    peer: NodeId,
    id: FileId,
    ticket: String,
    /// As of which change.
    revision: u64,
    /// When its link ends, if it reads by one.
    until: Option<u64>,
}

impl Standing {
    async fn of(
        files: &Arc<Files>,
        context: &Context,
        caller: Caller,
        params: &Params,
    ) -> Result<(Self, ShareView), FilesError> {
        let Caller::Peer(peer) = caller else { return Err(FilesError::NoFile) };
        let (id, ticket) = (parse_id(params.get("id"))?, params.get("ticket").to_owned());
        let mut standing = Self { files: Arc::clone(files), peer, id, ticket, revision: 0, until: None };
        let share = standing.check(context).await?;
        Ok((standing, share))
    }

    async fn check(&mut self, context: &Context) -> Result<ShareView, FilesError> {
        // Before the rows are read: what changes meanwhile is looked at once more.
        self.revision = self.files.revision();
        let share = find(context, &self.id).await?.ok_or(FilesError::NoFile)?;
        let ids = context.identities(self.peer).await?;
        self.until = None;
        if !readers::admits(&share.audience, &ids) {
            let first = ids.first().copied().unwrap_or(self.peer);
            let until = door::admitted(context, &self.id, first, &self.ticket).await?;
            self.until = Some(until.ok_or(FilesError::NoFile)?);
        }
        Ok(share)
    }

    async fn holds(&mut self, context: &Context) -> Result<(), FilesError> {
        let is_over = self.until.is_some_and(|until| until <= context.now());
        if is_over || self.revision != self.files.revision() {
            self.check(context).await?;
        }
        Ok(())
    }
}

impl Files {
    pub(crate) async fn meta(self: Arc<Self>, context: Context, request: Request) -> Result<Response, ModuleError> {
        let (_, share) = Standing::of(&self, &context, request.caller, &request.params).await?;
        let meta = Meta { v: VERSION, id: share.id, name: share.name, length: share.length, piece: PIECE };
        Response::json(Status::Ok, &meta)
    }

    pub(crate) async fn pieces(self: Arc<Self>, context: Context, request: Request) -> Result<Response, ModuleError> {
        let (standing, share) = Standing::of(&self, &context, request.caller, &request.params).await?;
        let layout = Layout::new(share.length).ok_or(FilesError::NoFile)?;
        let length = (layout.count() * HASH) as u64;
        Ok(stream_blob(context, names::hashes(&share.id), (0, length), Some(standing)))
    }

    pub(crate) async fn range(self: Arc<Self>, context: Context, request: Request) -> Result<Response, ModuleError> {
        let (standing, share) = Standing::of(&self, &context, request.caller, &request.params).await?;
        let number = |name: &str| request.params.get(name).parse::<u64>().map_err(|_| FilesError::BadRange);
        let (from, length) = (number("from")?, number("length")?);
        let inside = from.checked_add(length).is_some_and(|end| end <= share.length);
        if !inside || length > PIECE {
            return Err(FilesError::BadRange.into());
        }
        Ok(stream_blob(context, names::data(&share.id), (from, length), Some(standing)))
    }
}
