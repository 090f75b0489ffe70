//! The receiving side: description, hashes, what is here already, then the missing pieces, several at a time.
//!
//! The node writes each piece to its place and hashes it meanwhile (`Context::peer_store`); what it must hash to is said here, and what counts. Under a node that
//! cannot do so, this process does both.
//!
//! Nothing that a peer sends counts before it has its hash, and nothing that is on the disk counts after a restart
//! before it has been hashed again: so it does not matter how a run ended. The work is driven by whoever reads the
//! progress, and stops with it.

use std::sync::{Arc, OnceLock, Weak};

use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt, TryStreamExt};
use openred_module::{
    AuditEvent, Blake3, Body, BodySender, Context, ModuleError, NodeId, PeerRequest, Request, Response, Status,
    StoreError, StoreInto, Stored,
};
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

use crate::Files;
use crate::document::{Meta, Progress, TransferView, VERSION};
use crate::door::Redeem;
use crate::error::FilesError;
use crate::link::{FileLink, LinkError, TICKET};
use crate::names;
use crate::settings::Settings;
use crate::share::{parse_id, write_hashes};
use crate::transfer::{self, Turn};
use crate::tree::{FileHasher, FileId, HASH, Layout, PIECE, PieceHash};

/// Pieces asked for at the same time: hides the time between a request and its first byte.
const IN_FLIGHT: usize = 4;
/// Answers with content that are read of one peer at the same time, by all transfers together. A node has places for so many calls of one
/// peer (32), each taken until its answer was read; what else this node asks of it needs some of them.
const OF_ONE_PEER: usize = 16;
/// Attempts at one piece before the run gives up.
const ATTEMPTS: usize = 3;
/// Longest description that is read.
const META_LIMIT: usize = 4 * 1024;
/// Bytes gathered before they are written.
const WRITE: usize = 256 * 1024;
/// Bytes read at once to verify what is here.
const READ: usize = 1024 * 1024;
/// How long a peer may take to begin an answer.
const HEAD_TIMEOUT: u64 = 30_000;
/// Media type of progress lines.
const LINES: &str = "application/x-ndjson";

/// Longest order to fetch by a link.
const ORDER: usize = 1024;

/// What `POST /fetch-link` takes. Not in the path: paths are told to hooks and logs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ByLink {
    /// The link, as it was handed on.
    pub link: String,
}

/// One run of one transfer.
struct Run {
    context: Context,
    peer: NodeId,
    id: FileId,
    /// With which it is let in, if it goes by one.
    link: Option<FileLink>,
    /// What stands before the paths of the peer's routes, once it was let in.
    door: OnceLock<String>,
    lines: BodySender,
    /// See [`OF_ONE_PEER`].
    places: Arc<Semaphore>,
    /// Content bytes that this run received.
    received: std::sync::atomic::AtomicU64,
}

/// How a run that went well ended, in bytes.
struct Whole {
    length: u64,
    /// Of these, what this run has seen to have its hash.
    verified: u64,
}

/// What is to be fetched. The hashes are proven to belong to the id; the length is so only once the last piece has its own.
struct Plan {
    name: String,
    layout: Layout,
    hashes: Vec<PieceHash>,
}

impl Plan {
    /// Where a piece goes, and what it must be.
    fn into(&self, id: &FileId, index: usize) -> StoreInto {
        let (offset, length) = self.layout.piece(index);
        let value = self.hashes[index];
        let hash = if self.layout.count() == 1 { Blake3::Whole(value) } else { Blake3::Subtree { value, at: offset } };
        StoreInto { blob: names::part(id), offset, length, hash }
    }
}

impl Files {
    pub(crate) async fn fetch(self: Arc<Self>, context: Context, request: Request) -> Result<Response, ModuleError> {
        let peer: NodeId = request.params.get("peer").parse().map_err(|_| FilesError::BadPeer)?;
        let id = parse_id(request.params.get("id"))?;
        self.begin_run(context, peer, id, None)
    }

    /// The same from whoever the link names.
    pub(crate) async fn fetch_link(
        self: Arc<Self>,
        context: Context,
        request: Request,
    ) -> Result<Response, ModuleError> {
        let order = request.body.collect(ORDER).await?;
        let order: ByLink = serde_json::from_slice(&order).map_err(|_| FilesError::from(LinkError::BadText))?;
        let link: FileLink = order.link.parse().map_err(FilesError::from)?;
        let (peer, id) = (link.node, link.id);
        self.begin_run(context, peer, id, Some(link))
    }

    fn begin_run(
        self: Arc<Self>,
        context: Context,
        peer: NodeId,
        id: FileId,
        link: Option<FileLink>,
    ) -> Result<Response, ModuleError> {
        let settings: Settings = context.config()?;
        let most = usize::try_from(settings.fetches).unwrap_or(1);
        let turn = self.begin_transfer(id, most)?;
        let places = self.places_at(peer);
        let body = Body::produced(move |lines| async move {
            let run = Run { context, peer, id, link, door: OnceLock::new(), lines, places, received: 0.into() };
            run.finish(turn).await;
        });
        Ok(Response::new(Status::Ok, LINES, body))
    }

    /// What all transfers from this peer share.
    fn places_at(&self, peer: NodeId) -> Arc<Semaphore> {
        let mut peers = self.fetched_of.lock().expect("no panic happens under this lock");
        peers.retain(|_, places| places.strong_count() > 0);
        if let Some(places) = peers.get(&peer).and_then(Weak::upgrade) {
            return places;
        }
        let places = Arc::new(Semaphore::new(OF_ONE_PEER));
        peers.insert(peer, Arc::downgrade(&places));
        places
    }
}

impl Run {
    async fn finish(self, turn: Turn) {
        let outcome = self.go().await;
        // Before the last line: whoever reads it may call again at once.
        drop(turn);
        let received = self.received();
        let last = match outcome {
            Ok(Whole { length, verified }) => Progress::Done { length, verified, received },
            Err(error) => {
                self.note_failure(error).await;
                Progress::Failed { code: error.code().to_owned(), detail: error.to_string(), received }
            }
        };
        if self.say(&last).await.is_ok() {
            self.lines.finish().await;
        }
    }

    fn received(&self) -> u64 {
        self.received.load(std::sync::atomic::Ordering::Relaxed)
    }

    async fn say(&self, progress: &Progress) -> Result<(), FilesError> {
        let mut line = serde_json::to_vec(progress).expect("strings and numbers always serialise");
        line.push(b'\n');
        Ok(self.lines.send(Bytes::from(line)).await?)
    }

    async fn note_failure(&self, error: FilesError) {
        let outcome = if error.is_wrong_content() { "wrong-content" } else { "failed" };
        self.context.audit(AuditEvent { code: "file-fetch", peer: Some(self.peer), outcome });
        if let Ok(Some(transfer)) = transfer::load(&self.context, &self.id).await {
            let failed = Some(error.code().to_owned());
            // A failure that cannot be noted changes nothing about the next run.
            let _ = transfer::store(&self.context, &TransferView { failed, ..transfer }).await;
        }
    }

    async fn go(&self) -> Result<Whole, FilesError> {
        if let Some(length) = self.context.blob_length(&names::data(&self.id)).await? {
            if self.hash_data(length).await? == self.id {
                return self.already_here(length).await;
            }
            // The disk, or a defect, spoiled it: it is a part again, of which every sound piece counts.
            self.context.audit(AuditEvent { code: "file-fetch", peer: None, outcome: "damaged-here" });
            self.context.blob_rename(&names::data(&self.id), &names::part(&self.id)).await?;
        }
        self.enter().await?;
        let plan = self.plan().await?;
        let length = plan.layout.length();
        let row = self.row(&plan).await?;
        self.drop_longer_part(length).await?;
        let missing = self.verify_present(&plan).await?;
        let absent: u64 = missing.iter().map(|index| plan.layout.piece(*index).1).sum();
        let begun =
            Progress::Begun { v: VERSION, id: self.id, name: plan.name.clone(), length, present: length - absent };
        self.say(&begun).await?;
        let verified = self.fetch_missing(&plan, &missing, length - absent).await?;
        self.complete(row).await?;
        Ok(Whole { length, verified })
    }

    /// The hash of what is here as complete, read anew: what was whole once may not be so any more.
    async fn hash_data(&self, length: u64) -> Result<FileId, FilesError> {
        let mut hasher = FileHasher::new();
        let mut at = 0;
        while at < length {
            let bytes = self.context.blob_read(&names::data(&self.id), at, READ).await?;
            if bytes.is_empty() {
                break;
            }
            hasher.update(&bytes);
            at += bytes.len() as u64;
        }
        Ok(hasher.finish().0)
    }

    /// The hashes of the pieces bind a file's length only together with the last piece's content. So a peer can name a wrong
    /// length, and what it sent beyond the true one lies behind the end of the file: such a part is no use to anyone.
    async fn drop_longer_part(&self, length: u64) -> Result<(), FilesError> {
        let part = names::part(&self.id);
        if self.context.blob_length(&part).await?.is_some_and(|here| here > length) {
            self.context.blob_delete(&part).await?;
        }
        Ok(())
    }

    /// What is here has its hash, all of it.
    async fn already_here(&self, length: u64) -> Result<Whole, FilesError> {
        let row = transfer::load(&self.context, &self.id).await?;
        let name = row.as_ref().map_or_else(String::new, |row| row.name.clone());
        if let Some(row) = row.filter(|row| row.completed_at.is_none()) {
            self.mark_complete(row).await?;
        }
        self.say(&Progress::Begun { v: VERSION, id: self.id, name, length, present: length }).await?;
        Ok(Whole { length, verified: length })
    }

    async fn ask(&self, path: String) -> Result<Response, FilesError> {
        self.send(PeerRequest::get(path)).await
    }

    async fn send(&self, request: PeerRequest) -> Result<Response, FilesError> {
        let response = self.context.peer_request(self.peer, self.due(request)).await?;
        if response.status.is_success() { Ok(response) } else { Err(self.refused(response.status)) }
    }

    fn due(&self, mut request: PeerRequest) -> PeerRequest {
        request.deadline = Some(self.context.now() + HEAD_TIMEOUT);
        request
    }

    fn refused(&self, status: Status) -> FilesError {
        match status {
            // Also in the middle: the link has ended meanwhile.
            Status::NotFound if self.link.is_some() => LinkError::Refused.into(),
            Status::NotFound => FilesError::PeerHasNot,
            status => FilesError::PeerRefused { status: status.code() },
        }
    }

    /// Has the peer let this run in, where it goes by a link.
    async fn enter(&self) -> Result<(), FilesError> {
        let Some(link) = &self.link else { return Ok(()) };
        let key = names::row_below(names::OWN_TICKETS, &self.id, &[link.secret.name().as_bytes()]);
        let held = self.context.get(key.clone()).await?.and_then(|row| <[u8; TICKET]>::try_from(&*row).ok());
        let ticket = match held {
            Some(ticket) => ticket,
            None => {
                // Durable before the peer hears of it: whatever ends this run, the next one is the same fetch to the peer.
                let ticket = self.context.unique_id();
                self.context.put(key.clone(), ticket.to_vec()).await?;
                ticket
            }
        };
        let mut attempt = 1;
        let outcome = loop {
            match self.redeem(link, &ticket).await {
                Err(error) if error.is_passing() && attempt < ATTEMPTS => attempt += 1,
                outcome => break outcome,
            }
        };
        if outcome == Err(LinkError::Refused.into()) {
            self.context.delete(key).await?;
        }
        // Once a run.
        let _ = self.door.set(format!("/by/{}", hex::encode(ticket)));
        outcome
    }

    async fn redeem(&self, link: &FileLink, ticket: &[u8; TICKET]) -> Result<(), FilesError> {
        let order = Redeem { v: VERSION, secret: link.secret.text().to_string(), ticket: hex::encode(ticket) };
        let body = Body::whole(serde_json::to_vec(&order).expect("strings always serialise"));
        let request = PeerRequest::post(format!("/redeem/{}", self.id), "application/json", body);
        match self.send(request).await.map(drop) {
            Err(FilesError::PeerRefused { status: 429 }) => Err(LinkError::RefusedForNow.into()),
            outcome => outcome,
        }
    }

    /// A peer's route, through the door by which this run was let in.
    fn path(&self, route: &str) -> String {
        format!("{}{route}", self.door.get().map_or("", String::as_str))
    }

    async fn plan(&self) -> Result<Plan, FilesError> {
        let meta = self.ask(self.path(&format!("/meta/{}", self.id))).await?;
        let meta = meta.body.collect(META_LIMIT).await?;
        let meta: Meta = serde_json::from_slice(&meta).map_err(|_| FilesError::PeerMeta)?;
        let layout = Layout::new(meta.length).ok_or(FilesError::PeerMeta)?;
        if meta.v != VERSION || meta.id != self.id || meta.piece != PIECE || !names::is_file_name(&meta.name) {
            return Err(FilesError::PeerMeta);
        }
        let _place = self.places.acquire().await;
        let hashes = self.ask(self.path(&format!("/pieces/{}", self.id))).await?;
        let hashes = hashes.body.collect(layout.count() * HASH).await?;
        let (hashes, rest) = hashes.as_chunks::<HASH>();
        if !rest.is_empty() || !layout.proves(hashes, &self.id) {
            return Err(FilesError::PeerPieces);
        }
        Ok(Plan { name: meta.name, layout, hashes: hashes.to_vec() })
    }

    async fn row(&self, plan: &Plan) -> Result<TransferView, FilesError> {
        let earlier = transfer::load(&self.context, &self.id).await?;
        let row = TransferView {
            v: VERSION,
            id: self.id,
            peer: self.peer.to_string(),
            name: plan.name.clone(),
            length: plan.layout.length(),
            begun_at: earlier.map_or_else(|| self.context.now(), |row| row.begun_at),
            completed_at: None,
            failed: None,
        };
        transfer::store(&self.context, &row).await?;
        // Kept for the day when this node serves the file itself.
        write_hashes(&self.context, &self.id, &plan.hashes).await?;
        Ok(row)
    }

    /// Which pieces are not here with their hash.
    async fn verify_present(&self, plan: &Plan) -> Result<Vec<usize>, FilesError> {
        let part = names::part(&self.id);
        let here = self.context.blob_length(&part).await?.unwrap_or(0);
        let mut missing = Vec::new();
        for index in 0..plan.layout.count() {
            let (from, length) = plan.layout.piece(index);
            let whole = length > 0 && from + length <= here;
            if !whole || self.hash_present(plan, index).await? != plan.hashes[index] {
                missing.push(index);
            }
        }
        Ok(missing)
    }

    async fn hash_present(&self, plan: &Plan, index: usize) -> Result<PieceHash, FilesError> {
        let (from, length) = plan.layout.piece(index);
        let mut hasher = plan.layout.hasher(index);
        let (mut at, end) = (from, from + length);
        while at < end {
            let most = usize::try_from(end - at).unwrap_or(READ).min(READ);
            let bytes = self.context.blob_read(&names::part(&self.id), at, most).await?;
            if bytes.is_empty() {
                break;
            }
            hasher.update(&bytes);
            at += bytes.len() as u64;
        }
        Ok(hasher.finish())
    }

    /// Bytes that have their hash in the end, `present` ones included.
    async fn fetch_missing(&self, plan: &Plan, missing: &[usize], mut present: u64) -> Result<u64, FilesError> {
        let pieces = futures_util::stream::iter(missing.iter().copied());
        let mut verified = pieces.map(|index| self.fetch_piece(plan, index)).buffer_unordered(IN_FLIGHT);
        while let Some(length) = verified.try_next().await? {
            present += length;
            self.say(&Progress::Verified { present, received: self.received() }).await?;
        }
        Ok(present)
    }

    async fn fetch_piece(&self, plan: &Plan, index: usize) -> Result<u64, FilesError> {
        let mut attempt = 1;
        loop {
            match self.try_piece(plan, index).await {
                Err(error) if error.is_passing() && attempt < ATTEMPTS => attempt += 1,
                outcome => return outcome,
            }
        }
    }

    /// Fetches one piece to its place. Bytes go to the disk before they are verified, and count only after.
    async fn try_piece(&self, plan: &Plan, index: usize) -> Result<u64, FilesError> {
        let (from, length) = plan.layout.piece(index);
        let range = PeerRequest::get(self.path(&format!("/range/{}/{from}/{length}", self.id)));
        let into = plan.into(&self.id, index);
        // Nobody closes it, so there is one in the end.
        let _place = self.places.acquire().await;
        let request = self.due(range.resumable(self.context.unique_id()));
        let (received, outcome) = match self.context.peer_store(self.peer, request, into).await {
            Err(StoreError::Unsupported) => return self.read_piece(plan, index).await,
            Err(StoreError::Peer(error)) => return Err(error.into()),
            Err(StoreError::Host(error)) => return Err(error.into()),
            Err(StoreError::BadRange) => return Err(FilesError::PeerMeta),
            Ok(Stored::Refused(refusal)) => return Err(self.refused(refusal.status)),
            Ok(Stored::Verified) => (length, Ok(length)),
            Ok(Stored::Wrong { received }) => (received, Err(FilesError::PeerContent { piece: index })),
            Ok(Stored::Broken { received, error }) => (received, Err(error.into())),
        };
        self.received.fetch_add(received, std::sync::atomic::Ordering::Relaxed);
        outcome
    }

    /// The same under a node that stores no answers: piece by piece through this process.
    async fn read_piece(&self, plan: &Plan, index: usize) -> Result<u64, FilesError> {
        let (from, length) = plan.layout.piece(index);
        let range = PeerRequest::get(self.path(&format!("/range/{}/{from}/{length}", self.id)));
        let response = self.send(range.resumable(self.context.unique_id())).await?;
        let mut body = response.body;
        let mut hasher = plan.layout.hasher(index);
        let mut waiting = BytesMut::with_capacity(WRITE);
        let (mut written, mut arrived) = (from, 0_u64);
        while let Some(chunk) = body.next().await {
            let chunk = chunk?;
            arrived += chunk.len() as u64;
            if arrived > length {
                return Err(FilesError::PeerContent { piece: index });
            }
            self.received.fetch_add(chunk.len() as u64, std::sync::atomic::Ordering::Relaxed);
            hasher.update(&chunk);
            waiting.extend_from_slice(&chunk);
            if waiting.len() >= WRITE {
                written = self.write(written, &mut waiting).await?;
            }
        }
        self.write(written, &mut waiting).await?;
        if arrived != length || hasher.finish() != plan.hashes[index] {
            return Err(FilesError::PeerContent { piece: index });
        }
        Ok(length)
    }

    async fn write(&self, at: u64, waiting: &mut BytesMut) -> Result<u64, FilesError> {
        let mut at = at;
        loop {
            let bytes = waiting.split_to(waiting.len().min(WRITE)).freeze();
            let length = bytes.len() as u64;
            self.context.blob_write(&names::part(&self.id), at, bytes).await?;
            at += length;
            if waiting.is_empty() {
                return Ok(at);
            }
        }
    }

    async fn complete(&self, row: TransferView) -> Result<(), FilesError> {
        // Every piece has its hash; only their sum could still be wrong, by bytes behind the last one.
        if self.context.blob_length(&names::part(&self.id)).await? != Some(row.length) {
            self.context.blob_delete(&names::part(&self.id)).await?;
            return Err(FilesError::Damaged);
        }
        self.context.blob_rename(&names::part(&self.id), &names::data(&self.id)).await?;
        self.mark_complete(row).await?;
        self.context.audit(AuditEvent { code: "file-fetch", peer: Some(self.peer), outcome: "ok" });
        Ok(())
    }

    async fn mark_complete(&self, row: TransferView) -> Result<(), FilesError> {
        let completed_at = Some(self.context.now());
        transfer::complete(&self.context, &TransferView { completed_at, failed: None, ..row }).await
    }
}
