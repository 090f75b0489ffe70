//! The sharing side of links: making, listing and revoking them, and letting in whoever holds one.
//!
//! A peer sends the secret once (`POST /redeem/{id}`) together with a ticket that it has drawn for this one fetch. Where the link holds, one
//! batch counts the fetch and notes the ticket, before a byte of the file is served; the same ticket again counts nothing, so a
//! fetch that was cut short goes on. With its ticket, and only that peer, it reads (`/by/{ticket}/…`) until the link ends.
//! Every refusal of a link is the one for a file that is not there.
//!
//! In: the operator's orders, a peer's secret. Out: rows `l/` and `k/`, and who may read.

use std::sync::Arc;

use bytes::Bytes;
use openred_module::{
    AuditEvent, Batch, Caller, Committed, Context, HostError, ModuleError, NodeId, Request, Response, Scan, Status,
};
use serde::{Deserialize, Serialize};

use crate::Files;
use crate::document::VERSION;
use crate::error::FilesError;
use crate::link::{FileLink, LinkError, LinkName, Proof, Secret, TICKET, read_hex};
use crate::names;
use crate::readers;
use crate::settings::Settings;
use crate::share::{ATTEMPTS, find, parse_id};
use crate::tree::FileId;

/// Most fetches that one link is for.
pub(crate) const FETCHES: u64 = 1000;
/// Longest life of a link: a year.
pub(crate) const SECONDS: u64 = 366 * 86_400;
/// Longest order of a peer or the operator.
const ORDER: usize = 1024;

/// What a link is to be, for `POST /link/{id}`; the operator's settings say the rest.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinkOrder {
    /// How long it holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds: Option<u64>,
    /// How many fetches it is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fetches: Option<u64>,
}

/// A link as the operator sees it: what is handed on is shown once, when it is made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkView {
    /// Version of this document.
    pub v: u32,
    /// Its name; opens nothing.
    pub link: LinkName,
    /// The file.
    pub id: FileId,
    /// When it was made (Unix milliseconds).
    pub made_at: u64,
    /// From when on it holds no more.
    pub expires_at: u64,
    /// How many fetches it is for.
    pub fetches: u64,
    /// How many have begun.
    pub used: u64,
}

/// The answer to `POST /link/{id}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MadeLink {
    /// Version of this document.
    pub v: u32,
    /// What is handed on. Nobody can tell it again.
    pub text: String,
    /// The link.
    pub link: LinkView,
}

/// The answer to `GET /links`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Links {
    /// Version of this document.
    pub v: u32,
    /// In order of files.
    pub links: Vec<LinkView>,
}

/// A link as it rests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct LinkRow {
    view: LinkView,
    /// Hash of the secret.
    proof: String,
}

/// A fetch that was let in, as it rests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Ticket {
    link: LinkName,
    at: u64,
}

/// What a peer sends to be let in.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Redeem {
    pub(crate) v: u32,
    pub(crate) secret: String,
    pub(crate) ticket: String,
}

fn link_key(id: &FileId, name: &LinkName) -> Bytes {
    names::row_below(names::LINKS, id, &[name.as_bytes()])
}

fn ticket_key(id: &FileId, peer: NodeId, ticket: &[u8; TICKET]) -> Bytes {
    names::row_below(names::TICKETS, id, &[peer.as_bytes(), ticket])
}

fn read<T: for<'a> Deserialize<'a>>(row: &[u8]) -> Result<T, HostError> {
    serde_json::from_slice(row).map_err(|_| HostError::Storage)
}

fn written(row: &impl Serialize) -> Result<Vec<u8>, HostError> {
    serde_json::to_vec(row).map_err(|_| HostError::Storage)
}

/// Until when the ticket of this path lets `peer` (its first id) read the file.
pub(crate) async fn admitted(
    context: &Context,
    id: &FileId,
    peer: NodeId,
    ticket: &str,
) -> Result<Option<u64>, FilesError> {
    let Some(ticket) = read_hex::<TICKET>(ticket) else { return Ok(None) };
    let Some(ticket) = context.get_json::<Ticket>(ticket_key(id, peer, &ticket)).await? else { return Ok(None) };
    let link = context.get_json::<LinkRow>(link_key(id, &ticket.link)).await?;
    Ok(link.map(|link| link.view.expires_at).filter(|end| context.now() < *end))
}

/// Ends a link: from its first change on it lets nobody in. Cut short, it is ended by the next sweep.
async fn end(context: &Context, id: &FileId, name: &LinkName) -> Result<(), FilesError> {
    let key = link_key(id, name);
    // Under expectation, so that a fetch that is let in right now has its ticket noted before, or not at all.
    loop {
        let Some(row) = context.get(key.clone()).await? else { return Ok(()) };
        let mut link: LinkRow = read(&row)?;
        link.view.expires_at = 0;
        if context.apply(Batch::new().expect(key.clone(), Some(row)).put(key.clone(), written(&link)?)).await?
            == Committed::Yes
        {
            break;
        }
    }
    let mut after = None;
    loop {
        let page = context.scan(Scan::prefix(names::row(names::TICKETS, id)).after(after)).await?;
        let is_its = |row: &Bytes| read::<Ticket>(row).is_ok_and(|ticket| ticket.link == *name);
        let out = page.rows.iter().filter(|(_, row)| is_its(row));
        let _ = context.apply(out.fold(Batch::new(), |batch, (key, _)| batch.delete(key.clone()))).await?;
        after = page.rows.last().map(|(key, _)| key.clone());
        if !page.more || after.is_none() {
            break;
        }
    }
    Ok(context.delete(key).await?)
}

/// Ends what links have let this peer read of a file, whichever of its ids it had. A link that it holds may let it in again, as another fetch.
pub(crate) async fn end_fetches(context: &Context, id: &FileId, peer: NodeId) -> Result<(), FilesError> {
    for known in context.identities(peer).await? {
        let held = Scan::prefix(names::row_below(names::TICKETS, id, &[known.as_bytes()]));
        loop {
            let page = context.scan(held.clone()).await?;
            let batch = page.rows.iter().fold(Batch::new(), |batch, (key, _)| batch.delete(key.clone()));
            let _ = context.apply(batch).await?;
            if !page.more {
                break;
            }
        }
    }
    Ok(())
}

/// Ends all links of a file, as its share does.
pub(crate) async fn end_links(context: &Context, id: &FileId) -> Result<(), FilesError> {
    for LinkRow { view, .. } in links(context).await?.iter().filter(|row| row.view.id == *id) {
        end(context, id, &view.link).await?;
    }
    Ok(())
}

async fn links(context: &Context) -> Result<Vec<LinkRow>, HostError> {
    let mut rows = Vec::new();
    let mut after = None;
    loop {
        let page = context.scan(Scan::prefix(names::LINKS).after(after)).await?;
        for (_, row) in &page.rows {
            rows.push(read::<LinkRow>(row)?);
        }
        after = page.rows.last().map(|(key, _)| key.clone());
        if !page.more || after.is_none() {
            return Ok(rows);
        }
    }
}

/// Removes links that have ended, and those of shares that have; says how many are left. The first let nobody in any more, and are room.
pub(crate) async fn sweep(context: &Context) -> Result<usize, FilesError> {
    let mut live = 0;
    for LinkRow { view, .. } in links(context).await? {
        if context.now() < view.expires_at && find(context, &view.id).await?.is_some() {
            live += 1;
        } else {
            end(context, &view.id, &view.link).await?;
        }
    }
    Ok(live)
}

impl Files {
    pub(crate) async fn make_link(
        self: Arc<Self>,
        context: Context,
        request: Request,
    ) -> Result<Response, ModuleError> {
        let id = parse_id(request.params.get("id"))?;
        let order = request.json::<LinkOrder>().await?;
        let settings: Settings = context.config()?;
        let seconds = order.seconds.unwrap_or(settings.link_hours.unsigned_abs() * 3600);
        let fetches = order.fetches.unwrap_or(settings.link_fetches.unsigned_abs());
        if !(1..=SECONDS).contains(&seconds) || !(1..=FETCHES).contains(&fetches) {
            return Err(FilesError::from(LinkError::BadOrder).into());
        }
        // One at a time, so that two that come together are not one too many.
        let _turn = self.making.lock().await;
        if sweep(&context).await? as u64 >= settings.links.unsigned_abs() {
            return Err(FilesError::TooMany { what: "links" }.into());
        }
        let secret = Secret::new([context.unique_id(), context.unique_id()]);
        let made_at = context.now();
        let view = LinkView {
            v: VERSION,
            link: secret.name(),
            id,
            made_at,
            expires_at: made_at + seconds * 1000,
            fetches,
            used: 0,
        };
        let row = LinkRow { view: view.clone(), proof: secret.proof(&id).text() };
        let share_key = names::row(names::SHARES, &id);
        for _ in 0..ATTEMPTS {
            let share = context.get(share_key.clone()).await?.ok_or(FilesError::NoFile)?;
            // A link of a share that ends just now would be one of the next share of this file.
            let batch = Batch::new().expect(share_key.clone(), Some(share));
            if context.apply(batch.put(link_key(&id, &view.link), written(&row)?)).await? == Committed::Yes {
                let text = FileLink { node: context.node_id(), id, secret }.text();
                return Response::json(Status::Created, &MadeLink { v: VERSION, text, link: view });
            }
        }
        Err(HostError::Storage.into())
    }

    pub(crate) async fn links(self: Arc<Self>, context: Context, _: Request) -> Result<Response, ModuleError> {
        let links = links(&context).await?.into_iter().map(|row| row.view);
        let links = links.filter(|link| context.now() < link.expires_at).collect();
        Response::json(Status::Ok, &Links { v: VERSION, links })
    }

    /// Takes a link back, by its name. What it has let in ends too.
    pub(crate) async fn revoke(self: Arc<Self>, context: Context, request: Request) -> Result<Response, ModuleError> {
        let name = LinkName::try_from(request.params.get("link").to_owned());
        let name = name.map_err(|_| FilesError::from(LinkError::None))?;
        let row = links(&context).await?.into_iter().find(|row| row.view.link == name);
        let id = row.ok_or(FilesError::from(LinkError::None))?.view.id;
        end(&context, &id, &name).await?;
        self.changed();
        Ok(Response::empty(Status::Ok))
    }

    pub(crate) async fn redeem(self: Arc<Self>, context: Context, request: Request) -> Result<Response, ModuleError> {
        let Caller::Peer(peer) = request.caller else { return Err(FilesError::NoFile.into()) };
        let id = parse_id(request.params.get("id"))?;
        let body = request.body.collect(ORDER).await?;
        let bad = || ModuleError::bad_request("bad-json", "not an order to redeem a link, of this version");
        let order: Redeem = serde_json::from_slice(&body).map_err(|_| bad())?;
        let secret = Secret::read(&order.secret).filter(|_| order.v == VERSION).ok_or_else(bad)?;
        let ticket = read_hex::<TICKET>(&order.ticket).ok_or_else(bad)?;
        let first = context.first_id(peer).await?;
        let tries = || self.tries.lock().expect("no panic happens under this lock");
        tries().take(first, context.now()).map_err(FilesError::from)?;
        match let_in(&context, &id, (peer, first), &secret, &ticket).await {
            Ok(()) => {
                tries().give_back(first);
                Response::json(Status::Ok, &serde_json::json!({ "v": VERSION }))
            }
            Err(error) => {
                if error == FilesError::NoFile {
                    context.audit(AuditEvent { code: "file-link", peer: Some(peer), outcome: "refused" });
                } else {
                    tries().give_back(first);
                }
                Err(error.into())
            }
        }
    }
}

/// Counts a fetch and notes its ticket, in one step; or finds that this was done before.
async fn let_in(
    context: &Context,
    id: &FileId,
    (peer, first): (NodeId, NodeId),
    secret: &Secret,
    ticket: &[u8; TICKET],
) -> Result<(), FilesError> {
    let (name, proof) = (secret.name(), secret.proof(id));
    let (link_key, ticket_key) = (link_key(id, &name), ticket_key(id, first, ticket));
    // Whoever loses has been overtaken by a fetch that counts, or by the link's end.
    for _ in 0..=FETCHES {
        let link_row = context.get(link_key.clone()).await?;
        let link = link_row.as_ref().map(|row| read::<LinkRow>(row)).transpose()?;
        let expected = link.as_ref().and_then(|link| Proof::read(&link.proof)).unwrap_or_else(Proof::none);
        let is_right = expected == proof;
        let now = context.now();
        let mut link = link.filter(|link| is_right && now < link.view.expires_at).ok_or(FilesError::NoFile)?;
        let share = find(context, id).await?.ok_or(FilesError::NoFile)?;
        if readers::admits(&share.audience, &context.identities(peer).await?) {
            // It may fetch without a link, and does not use this one up.
            return Ok(());
        }
        let ticket_row = context.get(ticket_key.clone()).await?;
        let held = ticket_row.as_ref().map(|row| read::<Ticket>(row)).transpose()?;
        if held.is_some_and(|held| held.link == name) {
            return Ok(());
        }
        if link.view.used >= link.view.fetches {
            return Err(FilesError::NoFile);
        }
        link.view.used += 1;
        let batch = Batch::new()
            .expect(link_key.clone(), link_row)
            .expect(ticket_key.clone(), ticket_row)
            .put(link_key.clone(), written(&link)?)
            .put(ticket_key.clone(), written(&Ticket { link: name, at: now })?);
        if context.apply(batch).await? == Committed::Yes {
            context.audit(AuditEvent { code: "file-link", peer: Some(peer), outcome: "ok" });
            return Ok(());
        }
    }
    Err(HostError::Storage.into())
}
