//! The peer's routes: description, hashes of the pieces, ranges. A file that a peer may not have does not exist for it.

use std::sync::Arc;

use openred_module::{
    BlobName, BlobRange, Body, BodyError, Caller, Context, ModuleError, NodeId, Params, Request, Response, Status,
};

use crate::Files;
use crate::document::{Meta, ShareView, VERSION};
use crate::door;
use crate::error::FilesError;
use crate::names;
use crate::readers;
use crate::share::{find, parse_id};
use crate::tree::{FileId, HASH, Layout, PIECE};

/// Bytes between two looks at whether a peer may still read: few to be read after it may not, and many for a look.
const LOOK: u64 = 512 * 1024;
/// Media type of content and hashes.
pub(crate) const BYTES: &str = "application/octet-stream";

/// A part of a blob as an answer, which the node reads. It goes on only as fast as it is pulled, and a peer's only while it may.
pub(crate) fn stream_blob(
    context: Context,
    blob: BlobName,
    (from, length): (u64, u64),
    standing: Option<Standing>,
) -> Response {
    let (end, node) = (from + length, context.clone());
    let ranges = futures_util::stream::try_unfold((from, standing), move |(offset, mut standing)| {
        let (context, name) = (context.clone(), blob.clone());
        async move {
            if offset >= end {
                return Ok(None);
            }
            if let Some(standing) = &mut standing {
                standing.holds(&context).await.map_err(|_| BodyError::Failed)?;
            }
            let length = LOOK.min(end - offset);
            Ok(Some((BlobRange { name, offset, length }, (offset + length, standing))))
        }
    });
    Response::new(Status::Ok, BYTES, Body::ranges(&node, ranges)).with_length(length)
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
