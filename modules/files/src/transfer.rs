//! The rows of transfers, which of them run, and the operator's routes on them.

use std::sync::Arc;

use openred_module::{Context, HostError, ModuleError, Request, Response, Scan, Status};

use crate::Files;
use crate::document::{TransferView, Transfers, VERSION};
use crate::error::FilesError;
use crate::names;
use crate::readers;
use crate::share::{find, parse_id};
use crate::tree::FileId;

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

impl Files {
    fn claim(&self, id: FileId) -> bool {
        self.running.lock().expect("no panic happens under this lock").insert(id)
    }

    /// The only writer of this file from now until the guard is dropped; `None` while there is another.
    pub(crate) fn begin(&self, id: FileId) -> Option<BriefTurn<'_>> {
        self.claim(id).then_some(BriefTurn { files: self, id })
    }

    /// The same for work that outlives the call.
    pub(crate) fn begin_long(self: &Arc<Self>, id: FileId) -> Option<Turn> {
        self.claim(id).then(|| Turn { files: Arc::clone(self), id })
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
        let _turn = self.begin(id).ok_or(FilesError::Running)?;
        load(&context, &id).await?.ok_or(FilesError::NoFile)?;
        context.blob_delete(&names::part(&id)).await?;
        if find(&context, &id).await?.is_none() {
            context.blob_delete(&names::data(&id)).await?;
            context.blob_delete(&names::hashes(&id)).await?;
        }
        context.delete(names::row(names::TRANSFERS, &id)).await?;
        Ok(Response::empty(Status::Ok))
    }
}
