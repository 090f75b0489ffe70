//! What modules of this node may ask: that a peer may fetch a share, and what there is to say of it.
//!
//! In: the id of a share, from a module that the operator has granted calls of this one (`module.call`). Out: the share's id, name and
//! length. No content goes this way, and nothing that is not shared already.

use std::sync::Arc;

use openred_module::{Context, ModuleError, Request, Response, Status};

use crate::Files;
use crate::document::{Attached, Audience, VERSION};
use crate::share;

impl Files {
    /// Adds a peer to the readers of a share.
    pub(crate) async fn attach(self: Arc<Self>, context: Context, request: Request) -> Result<Response, ModuleError> {
        let id = share::parse_id(request.params.get("id"))?;
        let peer = Audience { all: false, peers: vec![request.params.get("peer").to_owned()] }.checked()?;
        let share = share::admit(&context, &id, peer).await?;
        Response::json(Status::Ok, &Attached { v: VERSION, id: share.id, name: share.name, length: share.length })
    }
}
