//! What this node offers: taking files in, listing them, who may fetch them, taking them back.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use futures_util::future::try_join;
use openred_module::{
    Batch, BlobName, Body, Committed, Context, HostError, ModuleError, Request, Response, Scan, Status,
};

use crate::document::{Audience, ShareView, Shares, VERSION};
use crate::door;
use crate::error::FilesError;
use crate::names;
use crate::offers;
use crate::readers::{self, Readers};
use crate::tree::{FileHasher, FileId, PieceHash};
use crate::{Files, serve, transfer};

/// Bytes gathered before they are written: fewer, larger writes.
const WRITE: usize = 512 * 1024;
/// How often a row is tried again after another writer came first.
pub(crate) const ATTEMPTS: usize = 8;

pub(crate) fn parse_id(text: &str) -> Result<FileId, FilesError> {
    text.parse().map_err(|_| FilesError::BadId)
}

pub(crate) async fn find(context: &Context, id: &FileId) -> Result<Option<ShareView>, FilesError> {
    Ok(context.get_json(names::row(names::SHARES, id)).await?)
}

/// How long a file is by the row of its share, or of its completed transfer.
async fn known_length(context: &Context, id: &FileId) -> Result<Option<u64>, FilesError> {
    if let Some(share) = find(context, id).await? {
        return Ok(Some(share.length));
    }
    let transfer = transfer::load(context, id).await?;
    Ok(transfer.filter(|transfer| transfer.completed_at.is_some()).map(|transfer| transfer.length))
}

/// Changes a share's row without losing what someone else changed meanwhile. `None` from `change` removes it.
async fn change(
    context: &Context,
    id: &FileId,
    change: impl Fn(Option<ShareView>) -> Result<Option<ShareView>, FilesError>,
) -> Result<Option<ShareView>, FilesError> {
    let key = names::row(names::SHARES, id);
    for _ in 0..ATTEMPTS {
        let row = context.get(key.clone()).await?;
        let before = row.as_ref().map(|row| serde_json::from_slice(row).map_err(|_| HostError::Storage)).transpose()?;
        let after = change(before)?;
        let batch = Batch::new().expect(key.clone(), row);
        let batch = match &after {
            Some(share) => batch.put(key.clone(), serde_json::to_vec(share).map_err(|_| HostError::Storage)?),
            None => batch.delete(key.clone()),
        };
        if context.apply(batch).await? == Committed::Yes {
            return Ok(after);
        }
    }
    Err(HostError::Storage.into())
}

/// Adds these readers to a share; there must be one.
pub(crate) async fn admit(context: &Context, id: &FileId, audience: Audience) -> Result<ShareView, ModuleError> {
    let readers = Readers::named(context, audience).await?;
    let share = change(context, id, |before| {
        let share = before.ok_or(FilesError::NoFile)?;
        let audience = share.audience.clone().joined(readers.stored(Some(&share.audience))?)?;
        Ok(Some(ShareView { audience, ..share }))
    })
    .await?;
    Ok(share.ok_or(HostError::Storage)?)
}

/// Removes what was left behind by whatever was cut short: unfinished shares, and content of which no row says that this node shares or fetches it.
/// Nothing else is at work yet.
pub(crate) async fn drop_unfinished(context: &Context) -> Result<(), ModuleError> {
    let mut known = None;
    let mut after: Option<BlobName> = None;
    loop {
        let names = context.blob_list(after.as_ref()).await?;
        for name in &names {
            let is_left = match names::content_of(name) {
                Some(id) => {
                    if known.is_none() {
                        known = Some(known_files(context).await?);
                    }
                    known.as_ref().is_some_and(|known| !known.contains(&id))
                }
                None => name.as_str().starts_with(names::UPLOAD),
            };
            if is_left {
                context.blob_delete(name).await?;
            }
        }
        let Some(last) = names.last() else { return Ok(()) };
        after = Some(last.clone());
    }
}

/// Those that are shared, or fetched.
async fn known_files(context: &Context) -> Result<BTreeSet<FileId>, HostError> {
    let mut known = BTreeSet::new();
    for prefix in [names::SHARES, names::TRANSFERS] {
        let mut after = None;
        loop {
            let page = context.scan(Scan::prefix(prefix).after(after)).await?;
            known.extend(page.rows.iter().filter_map(|(key, _)| names::file_of(prefix, key)));
            after = page.rows.last().map(|(key, _)| key.clone());
            if !page.more {
                break;
            }
        }
    }
    Ok(known)
}

/// Streams a body into a blob while it is hashed, and takes the next bytes in while the last ones are written. Memory: two writes' worth.
async fn take_in(
    context: &Context,
    blob: &BlobName,
    mut body: Body,
) -> Result<(FileId, Vec<PieceHash>, u64), ModuleError> {
    let mut hasher = FileHasher::new();
    let mut waiting = BytesMut::with_capacity(WRITE);
    let mut written = 0_u64;
    // Even an empty file is a blob.
    let mut full = Bytes::new();
    loop {
        let length = full.len() as u64;
        let writing = async { Ok::<_, ModuleError>(context.blob_write(blob, written, full).await?) };
        let ((), next) = try_join(writing, gather(&mut body, &mut hasher, &mut waiting)).await?;
        written += length;
        match next {
            Some(bytes) => full = bytes,
            None => break,
        }
    }
    let (id, pieces) = hasher.finish();
    Ok((id, pieces, written))
}

/// The next bytes to write, hashed; `None` at the end.
async fn gather(
    body: &mut Body,
    hasher: &mut FileHasher,
    waiting: &mut BytesMut,
) -> Result<Option<Bytes>, ModuleError> {
    while waiting.len() < WRITE {
        let Some(chunk) = body.next().await else { break };
        let chunk = chunk?;
        hasher.update(&chunk);
        waiting.extend_from_slice(&chunk);
    }
    let most = waiting.len().min(WRITE);
    Ok((most > 0).then(|| waiting.split_to(most).freeze()))
}

/// Writes the hashes of a file's pieces, durable when it returns.
pub(crate) async fn write_hashes(context: &Context, id: &FileId, pieces: &[PieceHash]) -> Result<(), HostError> {
    let blob = names::upload(context.unique_id());
    let mut offset = 0;
    for part in pieces.chunks(WRITE / crate::tree::HASH) {
        let bytes = Bytes::from(part.concat());
        let length = bytes.len() as u64;
        context.blob_write(&blob, offset, bytes).await?;
        offset += length;
    }
    context.blob_rename(&blob, &names::hashes(id)).await
}

/// The path's `{peer}`: all, or one.
fn one_of(request: &Request) -> Result<Audience, FilesError> {
    let audience = Audience::parse(request.params.get("peer"))?;
    if audience == Audience::default() { Err(FilesError::BadAudience) } else { Ok(audience) }
}

impl Files {
    pub(crate) async fn share(self: Arc<Self>, context: Context, request: Request) -> Result<Response, ModuleError> {
        let audience = Audience::parse(request.params.get("to"))?;
        let name = names::decode_file_name(request.params.get("name"))?;
        let blob = names::upload(context.unique_id());
        let taken = take_in(&context, &blob, request.body).await;
        let stored = match taken {
            Ok((id, pieces, length)) => self.keep(&context, &blob, id, &pieces, (name, length, audience)).await,
            Err(error) => Err(error),
        };
        if stored.is_err() {
            // Best effort: the next start removes it as well.
            let _ = context.blob_delete(&blob).await;
        }
        Response::json(Status::Created, &stored?)
    }

    /// Content first, then its hashes, then the row: a row never names what is not there.
    async fn keep(
        &self,
        context: &Context,
        blob: &BlobName,
        id: FileId,
        pieces: &[PieceHash],
        (name, length, audience): (String, u64, Audience),
    ) -> Result<ShareView, ModuleError> {
        let _turn = self.begin(id)?;
        context.blob_rename(blob, &names::data(&id)).await?;
        write_hashes(context, &id, pieces).await?;
        let shared_at = context.now();
        let readers = Readers::named(context, audience).await?;
        let share = change(context, &id, |before| {
            let stored = readers.stored(before.as_ref().map(|before| &before.audience))?;
            let joined = match before {
                Some(before) => before.audience.joined(stored)?,
                None => stored,
            };
            Ok(Some(ShareView { v: VERSION, id, name: name.clone(), length, shared_at, audience: joined }))
        })
        .await?;
        Ok(readers::shown(context, share.ok_or(HostError::Storage)?).await?)
    }

    pub(crate) async fn shares(self: Arc<Self>, context: Context, request: Request) -> Result<Response, ModuleError> {
        let after = offers::own_place(request.params.get("after"))?;
        let scan = Scan::prefix(names::SHARES).after(after.map(|id| names::row(names::SHARES, &id)));
        let page = context.scan(scan).await?;
        let shares = page.rows.iter().map(|(_, row)| serde_json::from_slice(row)).collect::<Result<Vec<_>, _>>();
        let rows: Vec<ShareView> = shares.map_err(|_| HostError::Storage)?;
        let mut shares = Vec::with_capacity(rows.len());
        for share in rows {
            shares.push(readers::shown(&context, share).await?);
        }
        Response::json(Status::Ok, &Shares { v: VERSION, shares, more: page.more })
    }

    pub(crate) async fn set_audience(
        self: Arc<Self>,
        context: Context,
        request: Request,
    ) -> Result<Response, ModuleError> {
        let id = parse_id(request.params.get("id"))?;
        let audience = request.json::<Audience>().await?.checked()?;
        let readers = Readers::named(&context, audience).await?;
        let share = change(&context, &id, |before| {
            let share = before.ok_or(FilesError::NoFile)?;
            Ok(Some(ShareView { audience: readers.stored(Some(&share.audience))?, ..share }))
        })
        .await?;
        self.changed();
        Response::json(Status::Ok, &readers::shown(&context, share.ok_or(HostError::Storage)?).await?)
    }

    /// One more peer, or all of them, beside those that may read already.
    pub(crate) async fn admit(self: Arc<Self>, context: Context, request: Request) -> Result<Response, ModuleError> {
        let id = parse_id(request.params.get("id"))?;
        let share = admit(&context, &id, one_of(&request)?).await?;
        Response::json(Status::Ok, &readers::shown(&context, share).await?)
    }

    /// One peer less, under whatever id it was let in, and what it reads by a link; or no more all of them, and those that were named still.
    pub(crate) async fn exclude(self: Arc<Self>, context: Context, request: Request) -> Result<Response, ModuleError> {
        let id = parse_id(request.params.get("id"))?;
        let gone = one_of(&request)?;
        let readers = Readers::named(&context, gone.clone()).await?;
        let share = change(&context, &id, |before| {
            let mut share = before.ok_or(FilesError::NoFile)?;
            if share.audience.all && !gone.all {
                return Err(FilesError::SharedWithAll);
            }
            share.audience.all = false;
            share.audience.peers.retain(|peer| !readers.names(peer));
            Ok(Some(share))
        })
        .await?;
        for peer in gone.peers.iter().filter_map(|peer| peer.parse().ok()) {
            door::end_fetches(&context, &id, peer).await?;
        }
        self.changed();
        Response::json(Status::Ok, &readers::shown(&context, share.ok_or(HostError::Storage)?).await?)
    }

    /// Takes a share back, and what its links have let in; its content goes too, unless it is also here as a fetched file.
    pub(crate) async fn unshare(self: Arc<Self>, context: Context, request: Request) -> Result<Response, ModuleError> {
        let id = parse_id(request.params.get("id"))?;
        let _turn = self.begin(id)?;
        find(&context, &id).await?.ok_or(FilesError::NoFile)?;
        // Before the share, so that none is left for the next share of this file; and after it, for one that was made meanwhile.
        door::end_links(&context, &id).await?;
        change(&context, &id, |before| before.map(|_| None).ok_or(FilesError::NoFile)).await?;
        self.changed();
        door::end_links(&context, &id).await?;
        if context.get(names::row(names::TRANSFERS, &id)).await?.is_none() {
            context.blob_delete(&names::data(&id)).await?;
            context.blob_delete(&names::hashes(&id)).await?;
        }
        Ok(Response::empty(Status::Ok))
    }

    pub(crate) async fn read(self: Arc<Self>, context: Context, request: Request) -> Result<Response, ModuleError> {
        let id = parse_id(request.params.get("id"))?;
        let Some(length) = context.blob_length(&names::data(&id)).await? else {
            let begun = context.get(names::row(names::TRANSFERS, &id)).await?.is_some();
            return Err(if begun { FilesError::Incomplete } else { FilesError::NoFile }.into());
        };
        if known_length(&context, &id).await?.is_some_and(|known| known != length) {
            return Err(FilesError::Damaged.into());
        }
        Ok(serve::stream_blob(context, names::data(&id), (0, length), None))
    }
}
