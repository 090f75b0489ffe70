//! The rows of transfers, which of them run, and the operator's routes on them.

use std::sync::Arc;

use openred_module::{Batch, Context, HostError, ModuleError, Request, Response, Scan, Status};

use crate::Files;
use crate::document::{TransferView, Transfers, VERSION};
use crate::error::FilesError;
use crate::names;
use crate::readers;
use crate::share::{find, parse_id};
use crate::tree::FileId;

/// What holds a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Work {
    /// A call that is over soon.
    Call,
    /// A transfer.
    Transfer,
}

/// Holds a file for one writer; let go when dropped.
pub(crate) struct Turn {
    files: Arc<Files>,
    id: FileId,
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.files.running.lock().expect("no panic happens under this lock").remove(&self.id);
    }
}

/// As [`Turn`], for as long as a call.
pub(crate) struct BriefTurn<'a> {
    files: &'a Files,
    id: FileId,
}

impl Drop for BriefTurn<'_> {
    fn drop(&mut self) {
        self.files.running.lock().expect("no panic happens under this lock").remove(&self.id);
    }
}

pub(crate) async fn load(context: &Context, id: &FileId) -> Result<Option<TransferView>, FilesError> {
    Ok(context.get_json(names::row(names::TRANSFERS, id)).await?)
}

pub(crate) async fn store(context: &Context, transfer: &TransferView) -> Result<(), FilesError> {
    Ok(context.put_json(names::row(names::TRANSFERS, &transfer.id), transfer).await?)
}

/// Also forgets with which tickets this node fetches the file: the next fetch by a link is another one.
pub(crate) async fn without_tickets(context: &Context, id: &FileId, batch: Batch) -> Result<Batch, FilesError> {
    let held = context.scan(Scan::prefix(names::row(names::OWN_TICKETS, id))).await?;
    Ok(held.rows.into_iter().fold(batch, |batch, (key, _)| batch.delete(key)))
}

/// Notes that all of it is here, in one step with the end of its tickets.
pub(crate) async fn complete(context: &Context, transfer: &TransferView) -> Result<(), FilesError> {
    let row = serde_json::to_vec(transfer).map_err(|_| HostError::Storage)?;
    let batch = Batch::new().put(names::row(names::TRANSFERS, &transfer.id), row);
    let _ = context.apply(without_tickets(context, &transfer.id, batch).await?).await?;
    Ok(())
}

impl Files {
    /// Among at most `most` of its kind.
    fn claim(&self, id: FileId, work: Work, most: usize) -> Result<(), FilesError> {
        let mut running = self.running.lock().expect("no panic happens under this lock");
        if running.contains_key(&id) {
            return Err(FilesError::Running);
        }
        if running.values().filter(|at| **at == work).count() >= most {
            return Err(FilesError::TooMany { what: "fetches" });
        }
        running.insert(id, work);
        Ok(())
    }

    /// The only writer of this file from now until the guard is dropped.
    pub(crate) fn begin(&self, id: FileId) -> Result<BriefTurn<'_>, FilesError> {
        self.claim(id, Work::Call, usize::MAX)?;
        Ok(BriefTurn { files: self, id })
    }

    /// The same for a transfer, which outlives the call: one of at most `most`.
    pub(crate) fn begin_transfer(self: &Arc<Self>, id: FileId, most: usize) -> Result<Turn, FilesError> {
        self.claim(id, Work::Transfer, most)?;
        Ok(Turn { files: Arc::clone(self), id })
    }

    pub(crate) async fn transfers(self: Arc<Self>, context: Context, _: Request) -> Result<Response, ModuleError> {
        let page = context.scan(Scan::prefix(names::TRANSFERS)).await?;
        let transfers = page.rows.iter().map(|(_, row)| serde_json::from_slice(row)).collect::<Result<Vec<_>, _>>();
        let mut transfers: Vec<TransferView> = transfers.map_err(|_| HostError::Storage)?;
        for transfer in &mut transfers {
            transfer.peer = readers::present(&context, &transfer.peer).await?;
        }
        Response::json(Status::Ok, &Transfers { v: VERSION, transfers, more: page.more })
    }

    /// Forgets a transfer, complete or not; its content goes too, unless this node shares it.
    pub(crate) async fn remove(self: Arc<Self>, context: Context, request: Request) -> Result<Response, ModuleError> {
        let id = parse_id(request.params.get("id"))?;
        let _turn = self.begin(id)?;
        load(&context, &id).await?.ok_or(FilesError::NoFile)?;
        context.blob_delete(&names::part(&id)).await?;
        if find(&context, &id).await?.is_none() {
            context.blob_delete(&names::data(&id)).await?;
            context.blob_delete(&names::hashes(&id)).await?;
        }
        let batch = without_tickets(&context, &id, Batch::new().delete(names::row(names::TRANSFERS, &id))).await?;
        let _ = context.apply(batch).await?;
        Ok(Response::empty(Status::Ok))
    }
}
